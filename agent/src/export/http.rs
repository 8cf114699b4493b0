//! Turns HTTP requests into pages over the shared state: `/metrics`, `/livez`, `/readyz`, `/status`, `/live`, `/progress`
//! and `/`, the live page.
//!
//! The pages are read-only. A client is not trusted to be quick or few: request heads are limited in size and time,
//! connections in number and age.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::live::Snapshot;

use super::exposition::Format;
use super::metrics::{Metrics, OwnUsage};
use super::progress::hub::Hub;
use super::progress::stream;

pub use self::guard::{Guard, GuardError};
pub use self::status::{
    AttachMode, FileStatus, KernelStatus, LateStatus, OomStatus, ProbeState, ProbeStatus, Status,
    WorkerStatus,
};

mod guard;
mod live;
mod status;

/// Bytes of a request head.
const HEAD_BYTES: usize = 16 * 1024;
/// A request head has arrived within this, the wait for the next request on a connection included: longer than the
/// usual scrape interval of a minute.
const HEAD_TIME: Duration = Duration::from_secs(75);
/// A TLS handshake is over within this.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Connections served at once; more wait unaccepted.
const CONNECTIONS: usize = 64;
/// A connection is closed at this age: whoever still listens to a stream of events connects again.
const CONNECTION_AGE: Duration = Duration::from_secs(3600);
/// How long open requests may take at the end.
const DRAIN: Duration = Duration::from_secs(2);

/// Why the pages cannot be served, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Someone else listens there.
    #[error("cannot listen on {address}: address already in use; stop the other process or pass --listen")]
    InUse {
        /// As configured.
        address: String,
    },
    /// The port is privileged.
    #[error("cannot listen on {address}: permission denied; pass --listen with a port above 1023")]
    Denied {
        /// As configured.
        address: String,
    },
    /// The address is not of this machine.
    #[error(
        "cannot listen on {address}: this machine has no such address; pass --listen 127.0.0.1:PORT or 0.0.0.0:PORT"
    )]
    NoSuchAddress {
        /// As configured.
        address: String,
    },
    /// Not an address.
    #[error("cannot listen on {address}: {source}; --listen takes HOST:PORT, such as 127.0.0.1:9777")]
    Other {
        /// As configured.
        address: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Listens on `HOST:PORT`.
///
/// # Errors
/// Says what to do about it.
pub async fn bind(address: &str) -> Result<TcpListener, HttpError> {
    TcpListener::bind(address).await.map_err(|source| {
        let address = address.to_owned();
        match source.kind() {
            io::ErrorKind::AddrInUse => HttpError::InUse { address },
            io::ErrorKind::PermissionDenied => HttpError::Denied { address },
            io::ErrorKind::AddrNotAvailable => HttpError::NoSuchAddress { address },
            _ => HttpError::Other { address, source },
        }
    })
}

/// What the pages show. The agent writes, requests read.
#[derive(Debug)]
pub struct Shared {
    metrics: Arc<Metrics>,
    status: RwLock<Status>,
    live: live::Channel,
    progress: Arc<Hub>,
}

impl Shared {
    /// Pages over these metrics and a status that is not ready.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, status: Status) -> Self {
        Self { metrics, status: RwLock::new(status), live: live::Channel::new(), progress: Arc::default() }
    }

    /// Who listens to the progress of jobs.
    #[must_use]
    pub const fn progress(&self) -> &Arc<Hub> {
        &self.progress
    }

    /// Whether somebody looks at what the node does now.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.live.is_watched()
    }

    /// Shows it to whoever looks.
    pub fn show(&self, snapshot: &Snapshot) {
        self.live.show(snapshot);
    }

    /// The metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// The status now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves the pages until `shutdown` completes; open requests then get two seconds.
pub async fn serve(
    listener: TcpListener,
    state: Arc<Shared>,
    guard: Arc<Guard>,
    shutdown: impl Future<Output = ()>,
) {
    let router = router(Arc::clone(&state), Arc::clone(&guard));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let (ending, _) = watch::channel(false);
    tokio::pin!(shutdown);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (router, ending, tls) = (router.clone(), ending.subscribe(), guard.tls());
                tokio::spawn(async move {
                    match tls {
                        None => connection(stream, peer, router, ending).await,
                        Some(tls) => match tokio::time::timeout(HANDSHAKE_TIME, tls.accept(stream)).await {
                            Ok(Ok(stream)) => connection(stream, peer, router, ending).await,
                            Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS handshake"),
                            Err(_) => tracing::debug!(%peer, "no TLS handshake in time"),
                        },
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, or the client is gone already: neither ends the service.
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    ending.send_replace(true);
    state.live.end();
    let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(DRAIN, places.acquire_many(all)).await;
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: SocketAddr,
    router: Router,
    mut ending: watch::Receiver<bool>,
) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let end = async {
        let _ = ending.wait_for(|ending| *ending).await;
    };
    let ended = tokio::time::timeout(CONNECTION_AGE, async {
        tokio::select! {
            ended = &mut connection => ended,
            () = end => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    });
    if let Ok(Err(error)) = ended.await {
        tracing::debug!(%peer, %error, "a connection ended badly");
    }
}

/// The pages. Whether the agent lives and is ready is told to everybody: a kubelet has no token.
fn router(state: Arc<Shared>, guard: Arc<Guard>) -> Router {
    let guarded = middleware::from_fn_with_state(guard, admit);
    Router::new()
        .route("/", get(live::page))
        .route("/live", get(live::live))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/progress", get(progress))
        .route_layer(guarded)
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state(state)
}

async fn admit(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    if guard.admits(request.headers()) {
        return next.run(request).await;
    }
    // The first for programs, the second has a browser ask its user.
    let mut refused = (StatusCode::UNAUTHORIZED, "a token is needed\n").into_response();
    for scheme in ["Bearer", "Basic realm=\"cadscope\", charset=\"UTF-8\""] {
        refused.headers_mut().append(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
    }
    refused
}

async fn metrics(State(state): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Format::negotiate(&accept.collect::<Vec<_>>().join(","));
    let page = state.metrics.encode(format, OwnUsage::now());
    let vary = (header::VARY, HeaderValue::from_static("accept"));
    ([(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type())), vary], page).into_response()
}

async fn readyz(State(state): State<Arc<Shared>>) -> (StatusCode, String) {
    let status = state.status();
    if status.ready {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let reason = status.waiting_for.as_deref().unwrap_or("the first attach pass is not over");
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n"))
}

async fn status(State(state): State<Arc<Shared>>) -> Response {
    match serde_json::to_vec_pretty(&state.status()) {
        Ok(mut page) => {
            page.push(b'\n');
            ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], page).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn progress(State(state): State<Arc<Shared>>, Query(asked): Query<stream::Asked>) -> Response {
    stream::answer(&state.progress, asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GuardConfig;
    use crate::export::metrics::MetricsOptions;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    fn shared() -> Arc<Shared> {
        let status = Status { version: "0.1.0".to_owned(), ..Status::default() };
        Arc::new(Shared::new(Arc::new(Metrics::new(MetricsOptions::default())), status))
    }

    fn open() -> Arc<Guard> {
        Arc::new(Guard::default())
    }

    async fn get(address: SocketAddr, path: &str, accept: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn every_page_answers() {
        let shared = shared();
        let listener = bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, Arc::clone(&shared), open(), async {
            let _ = ended.await;
        }));

        assert!(get(address, "/livez", "*/*").await.starts_with("HTTP/1.1 200"));
        let waiting = get(address, "/readyz", "*/*").await;
        assert!(
            waiting.starts_with("HTTP/1.1 503") && waiting.contains("the first attach pass is not over"),
            "{waiting}"
        );
        shared.update(|status| status.ready = true);
        assert!(get(address, "/readyz", "*/*").await.starts_with("HTTP/1.1 200"));

        let text = get(address, "/metrics", "*/*").await;
        assert!(
            text.contains("content-type: text/plain; version=0.0.4") && text.contains("cadscope_build_info")
        );
        let open = get(address, "/metrics", "application/openmetrics-text;version=1.0.0").await;
        assert!(open.contains("content-type: application/openmetrics-text") && open.ends_with("# EOF\n"));
        let accept =
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        assert!(
            get(address, "/metrics", accept).await.contains("content-type: application/vnd.google.protobuf")
        );

        assert!(get(address, "/", "text/html").await.contains("<a href=\"status\">"));
        assert!(get(address, "/nothing", "*/*").await.starts_with("HTTP/1.1 404"));

        // A connection that stays open and silent does not hold up the end.
        let _silent = TcpStream::connect(address).await.unwrap();
        end.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(1), server).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn status_is_json_of_a_known_form() {
        let shared = shared();
        shared.update(|status| {
            status.kernel.mode = Some(AttachMode::UprobeMulti);
            status.losses.insert("ring_full".to_owned(), 2);
            status.files.push(FileStatus {
                path: "/usr/lib/libTKBO.so.7.8".to_owned(),
                inode: "8:1:42".to_owned(),
                workers: 1,
                attached: true,
                probes: vec![
                    ProbeStatus {
                        id: "bool.api_build".to_owned(),
                        state: ProbeState::Attached,
                        reason: None,
                        entry: Some(4660),
                        exits: 3,
                    },
                    ProbeStatus {
                        id: "bool.other".to_owned(),
                        state: ProbeState::Skipped,
                        reason: Some("no such symbol".to_owned()),
                        entry: None,
                        exits: 0,
                    },
                ],
            });
        });
        assert_eq!(
            serde_json::to_string(&shared.status()).unwrap(),
            r#"{"version":"0.1.0","ready":false,"kernel":{"mode":"uprobe_multi"},"workers":[],"files":[{"path":"/usr/lib/libTKBO.so.7.8","inode":"8:1:42","workers":1,"attached":true,"probes":[{"id":"bool.api_build","state":"attached","entry":4660,"exits":3},{"id":"bool.other","state":"skipped","reason":"no such symbol","exits":0}]}],"losses":{"ring_full":2}}"#
        );
    }

    #[tokio::test]
    async fn a_taken_port_says_what_to_do() {
        let listener = bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let error = bind(&address).await.unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "cannot listen on {address}: address already in use; stop the other process or pass --listen"
            )
        );
        assert!(bind("nonsense").await.unwrap_err().to_string().contains("HOST:PORT"));
        assert!(bind("192.0.2.1:9777").await.unwrap_err().to_string().contains("no such address"));
    }

    #[tokio::test]
    async fn without_the_token_there_is_nothing_but_that_it_lives() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef").unwrap();
        let config = GuardConfig { token: Some(file.path().to_owned()), tls: None };
        let guard = Arc::new(Guard::open(&config).unwrap());
        let listener = bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, shared(), guard, std::future::pending()));
        for path in ["/", "/live", "/metrics", "/status", "/progress?job_id=1"] {
            let refused = get(address, path, "*/*").await;
            assert!(
                refused.starts_with("HTTP/1.1 401") && refused.contains("www-authenticate: Bearer"),
                "{path}"
            );
            let body = refused.split_once("\r\n\r\n").unwrap().1;
            assert_eq!(body, "a token is needed\n");
        }
        let token = "*/*\r\nAuthorization: Bearer 0123456789abcdef";
        assert!(get(address, "/metrics", token).await.contains("cadscope_build_info"));
        assert!(get(address, "/status", token).await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/livez", "*/*").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz", "*/*").await.starts_with("HTTP/1.1 503"));
    }

    #[tokio::test]
    async fn more_connections_than_there_are_places_wait_and_are_served_when_one_is_free() {
        let listener = bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, shared(), open(), std::future::pending()));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let late = tokio::spawn(async move { get(address, "/livez", "*/*").await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!late.is_finished());
        silent.pop();
        let answer = tokio::time::timeout(Duration::from_secs(20), late).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    #[tokio::test]
    async fn an_endless_head_is_refused() {
        let listener = bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, shared(), open(), std::future::pending()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(64 * 1024)).as_bytes()).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.is_empty() || String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 431"));
    }
}
