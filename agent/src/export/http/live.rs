//! Turns snapshots of the node into the live page at `/` and its data at `/live`.
//!
//! `/live` is a stream of server-sent events (`Accept: text/event-stream`), one snapshot each, or one snapshot as JSON.
//! Snapshots are made only while somebody looks, once for all who do; who is slow misses some. The page is whole in
//! itself; its content security policy lets it talk to the agent alone, and run and style itself by a nonce.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::Shared;
use crate::live::Snapshot;

/// The page; `NONCE` stands for this answer's.
const PAGE: &str = include_str!("live.html");
/// Streams at once. Scrapes have the other places.
const VIEWERS: usize = 24;
/// How long a snapshot is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// A comment is sent to a silent stream this often, so that a viewer that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// From the observing thread to whoever looks.
#[derive(Debug)]
pub(super) struct Channel {
    latest: watch::Sender<Arc<str>>,
    places: Arc<Semaphore>,
}

impl Channel {
    pub(super) fn new() -> Self {
        Self { latest: watch::Sender::new("".into()), places: Arc::new(Semaphore::new(VIEWERS)) }
    }

    pub(super) fn is_watched(&self) -> bool {
        self.latest.receiver_count() > 0
    }

    /// Ends the streams: an answer that goes on would hold up the agent's end.
    pub(super) fn end(&self) {
        self.latest.send_replace("".into());
    }

    pub(super) fn show(&self, snapshot: &Snapshot) {
        match serde_json::to_string(snapshot) {
            Ok(json) => drop(self.latest.send_replace(json.into())),
            Err(error) => tracing::debug!(%error, "a snapshot could not be written"),
        }
    }
}

/// One who looks; gives his place back with the value.
struct Viewer {
    latest: watch::Receiver<Arc<str>>,
    _place: OwnedSemaphorePermit,
}

impl Viewer {
    /// The next snapshot; `None` at the agent's end.
    async fn next(&mut self) -> Option<Arc<str>> {
        self.latest.changed().await.ok()?;
        Some(Arc::clone(&self.latest.borrow_and_update())).filter(|json| !json.is_empty())
    }
}

pub(super) async fn live(State(state): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let Ok(place) = Arc::clone(&state.live.places).try_acquire_owned() else {
        let message = format!("{VIEWERS} viewers look already; close one, or raise none: try again later\n");
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "10")], message).into_response();
    };
    let mut viewer = Viewer { latest: state.live.latest.subscribe(), _place: place };
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains("text/event-stream") {
        let events = stream::unfold(viewer, |mut viewer| async move {
            let json = viewer.next().await?;
            Some((Ok::<_, Infallible>(Event::default().data(&*json)), viewer))
        });
        let stream = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
        return ([(header::CACHE_CONTROL, "no-store")], stream).into_response();
    }
    match tokio::time::timeout(PATIENCE, viewer.next()).await {
        Ok(Some(json)) => {
            let kind = (header::CONTENT_TYPE, "application/json");
            ([kind, (header::CACHE_CONTROL, "no-store")], format!("{json}\n")).into_response()
        }
        _ => (StatusCode::SERVICE_UNAVAILABLE, "not observing yet: see /readyz\n").into_response(),
    }
}

pub(super) async fn page() -> Response {
    let nonce = nonce();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let Ok(policy) = HeaderValue::try_from(policy) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let headers: [(HeaderName, HeaderValue); 4] = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, Html(PAGE.replace("NONCE", &nonce))).into_response()
}

/// Not to be guessed: each [`std::hash::RandomState`] has a key of the system's random numbers.
fn nonce() -> String {
    use std::hash::{BuildHasher, RandomState};
    let word = |salt: u64| RandomState::new().hash_one((salt, std::time::Instant::now()));
    format!("{:016x}{:016x}", word(1), word(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::http::{Guard, bind, serve};
    use crate::export::metrics::{Metrics, MetricsOptions};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn asked(address: std::net::SocketAddr, path: &str, accept: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\nAccept: {accept}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn started() -> (std::net::SocketAddr, Arc<Shared>) {
        let metrics = Arc::new(Metrics::new(MetricsOptions::default()));
        let shared = Arc::new(Shared::new(metrics, crate::export::http::Status::default()));
        let listener = bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(
            listener,
            Arc::clone(&shared),
            Arc::new(Guard::default()),
            std::future::pending(),
        ));
        (address, shared)
    }

    async fn watched(shared: &Shared, watched: bool) {
        for _ in 0..1000 {
            if shared.is_watched() == watched {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("watched: {}", shared.is_watched());
    }

    #[tokio::test]
    async fn snapshots_are_wanted_while_somebody_looks() {
        let (address, shared) = started().await;
        assert!(!shared.is_watched());
        let mut stream = asked(address, "/live", "text/event-stream").await;
        watched(&shared, true).await;
        let mut seen = String::new();
        for pid in [7, 8] {
            let worker = crate::live::WorkerRow {
                pid,
                program: "a\nb\u{2028}</script>".to_owned(),
                ..Default::default()
            };
            shared.show(&Snapshot { workers: vec![worker], ..Snapshot::default() });
            while !seen.contains(&format!("\"pid\":{pid}")) || !seen.ends_with("\n\n") {
                let mut buffer = [0; 4096];
                let read = stream.read(&mut buffer).await.unwrap();
                seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            }
        }
        assert!(seen.contains("content-type: text/event-stream"), "{seen}");
        let events = seen.lines().filter(|line| line.starts_with("data: "));
        let pids = events.map(|line| serde_json::from_str::<Snapshot>(&line[6..]).unwrap().workers[0].pid);
        assert_eq!(pids.collect::<Vec<_>>(), [7, 8]);
        drop(stream);
        shared.show(&Snapshot::default());
        watched(&shared, false).await;
    }

    #[tokio::test]
    async fn a_stream_does_not_hold_up_the_end() {
        let metrics = Arc::new(Metrics::new(MetricsOptions::default()));
        let shared = Arc::new(Shared::new(metrics, crate::export::http::Status::default()));
        let listener = bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, Arc::clone(&shared), Arc::new(Guard::default()), async {
            let _ = ended.await;
        }));
        let mut stream = asked(address, "/live", "text/event-stream").await;
        watched(&shared, true).await;
        end.send(()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("text/event-stream"), "{answer}");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn one_snapshot_is_json() {
        let (address, shared) = started().await;
        let mut stream = asked(address, "/live", "*/*").await;
        watched(&shared, true).await;
        shared.show(&Snapshot { host: "node-1".to_owned(), ..Snapshot::default() });
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: application/json"), "{head}");
        assert_eq!(serde_json::from_str::<Snapshot>(body).unwrap().host, "node-1");
    }

    #[tokio::test]
    async fn viewers_are_limited() {
        let (address, shared) = started().await;
        let mut viewers = Vec::new();
        for n in 0..VIEWERS {
            viewers.push(asked(address, "/live", "text/event-stream").await);
            while shared.live.places.available_permits() > VIEWERS - n - 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let mut answer = String::new();
        asked(address, "/live", "*/*").await.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 503") || answer.starts_with("HTTP/1.1 503"), "{answer}");
    }

    #[tokio::test]
    async fn the_page_runs_only_its_own_script_and_asks_only_the_agent() {
        let (address, _shared) = started().await;
        let mut nonces = Vec::new();
        for _ in 0..2 {
            let mut answer = String::new();
            asked(address, "/", "text/html").await.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let nonce = head.split("script-src 'nonce-").nth(1).unwrap()[..32].to_owned();
            assert!(head.contains("default-src 'none'") && head.contains("connect-src 'self'"), "{head}");
            assert!(!head.contains("unsafe") && !body.contains("NONCE"));
            assert_eq!(body.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
            nonces.push(nonce);
        }
        assert_ne!(nonces[0], nonces[1]);
    }

    #[test]
    fn the_page_is_whole_in_itself_and_writes_text_only() {
        // The name of a namespace is no address.
        let page = PAGE.replace("\"http://www.w3.org/2000/svg\"", "");
        for outside in [
            "http:",
            "https:",
            "src=",
            "@import",
            "url(",
            "innerHTML",
            "insertAdjacent",
            "document.write",
            " onclick=",
            "style=\"",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
