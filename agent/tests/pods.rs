//! The labels of pods come over real TLS, to whoever has the token, from a server that the account's authority vouches for.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cadscope::container::Container;
use cadscope::export::pods::{Labels, Pods};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient as _, Request};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const POD: &str = r#"{"metadata":{"name":"gear","uid":"u-1","labels":{"team":"cad"}}}"#;

fn openssl(folder: &Path, arguments: &str) {
    let mut openssl = Command::new("openssl");
    let done = openssl.args(arguments.split(' ')).current_dir(folder).output();
    let done = done.unwrap_or_else(|error| panic!("openssl (apt-get install openssl): {error}"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Answers each request on a connection of its own, as the owner of this certificate of the folder's; its address.
fn serve_as(folder: &Path, name: &str) -> String {
    openssl(
        folder,
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.crt",
    );
    openssl(folder, "req -newkey rsa:2048 -nodes -subj /CN=api -keyout api.key -out api.csr");
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    openssl(
        folder,
        "x509 -req -in api.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out api.crt",
    );
    let chain = vec![CertificateDer::from_pem_file(folder.join(format!("{name}.crt"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                request.extend(byte);
            }
            let request = String::from_utf8_lossy(&request).to_lowercase();
            let (status, body) = if !request.contains("authorization: bearer secret\r\n") {
                ("403 Forbidden", "{}")
            } else if request.starts_with("get /api/v1/namespaces/cad/pods/gear http/1.1\r\n") {
                ("200 OK", POD)
            } else {
                ("404 Not Found", "{}")
            };
            let length = body.len();
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes());
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    format!("https://127.0.0.1:{port}")
}

fn serve(folder: &Path) -> String {
    serve_as(folder, "api")
}

fn container(pod: &str, uid: &str) -> Container {
    Container {
        namespace: "cad".to_owned(),
        pod: pod.to_owned(),
        pod_uid: uid.to_owned(),
        ..Container::default()
    }
}

fn labels(pods: &Pods, container: &Container, limit: Duration) -> Option<Labels> {
    let end = Instant::now() + limit;
    loop {
        let labels = pods.labels(container, Instant::now());
        if labels.is_some() || Instant::now() > end {
            return labels;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The failed request is counted, and not made again for a minute.
fn fails_once(pods: &Pods) {
    let end = Instant::now() + Duration::from_secs(60);
    while pods.errors() == 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(pods.errors(), 1);
}

#[test]
fn labels_come_over_tls_to_whoever_has_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let api = serve(folder.path());
    std::fs::write(folder.path().join("token"), "secret\n").unwrap();
    let pods = Pods::of(api, folder.path().to_owned()).unwrap();
    let long = Duration::from_secs(60);
    let found = labels(&pods, &container("gear", "u-1"), long).unwrap();
    assert_eq!(found.get("team").map(String::as_str), Some("cad"));
    // Another pod under the same name, and none: known to have no labels.
    assert_eq!(labels(&pods, &container("gear", "u-2"), long), Some(Labels::default()));
    assert_eq!(labels(&pods, &container("gone", "u-3"), long), Some(Labels::default()));
    // The token is read anew for each pod. A refusal is no answer: it may be mended.
    std::fs::write(folder.path().join("token"), "wrong").unwrap();
    assert_eq!(pods.errors(), 0);
    assert_eq!(labels(&pods, &container("other", "u-4"), Duration::from_secs(1)), None);
    fails_once(&pods);
}

#[test]
fn a_server_of_another_authority_is_told_nothing() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let api = serve(folder.path());
    serve(other.path());
    std::fs::write(other.path().join("token"), "secret").unwrap();
    let pods = Pods::of(api, other.path().to_owned()).unwrap();
    assert_eq!(labels(&pods, &container("gear", "u-1"), Duration::from_secs(2)), None);
    fails_once(&pods);
}

#[test]
fn a_server_whose_certificate_is_a_ca_is_refused_in_plain_words() {
    let folder = tempfile::tempdir().unwrap();
    let api = serve_as(folder.path(), "ca");
    let tls = cadscope::trust::client(Some(&folder.path().join("ca.crt"))).unwrap();
    let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_only();
    let request = Request::get(api).body(Bytes::new()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let client = HyperClient::new(connector.enable_http1().build(), Duration::from_secs(60), None);
        client.send_bytes(request).await
    });
    let said = cadscope::trust::why(&*answer.unwrap_err());
    assert!(said.starts_with("the server's certificate is itself a CA: "), "{said}");
}
