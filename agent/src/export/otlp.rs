//! Turns spans into OTLP requests to a collector, by gRPC or HTTP, on a thread of its own.
//!
//! Whoever makes spans never waits: the queue is bounded, and what finds no place in it is dropped and counted. The
//! spans of one worker share a resource and go out in one request. A request that fails is tried again for half a
//! minute, then its spans are dropped and counted; the next ones are tried as if nothing had been, so export comes back
//! with the collector. Headers, timeout and compression come from the `OTEL_EXPORTER_OTLP_…` variables.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc;

use super::spans::Span;
use crate::config::{OtlpConfig, OtlpProtocol};

/// Spans that wait, some 2 KiB each.
const QUEUE: usize = 8192;
/// Spans that are taken from the queue at once.
const BATCH: usize = 1024;
/// How long spans are gathered before they go out.
const GATHER: Duration = Duration::from_millis(500);
/// A failed request is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause before the first repetition; each is twice the one before, up to the longest.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A request without an answer is given up, whatever the exporter's own timeout.
const LONGEST_REQUEST: Duration = Duration::from_secs(30);
/// How long the rest of the queue may take at the end.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The endpoint or a variable is wrong.
    #[error("cannot export spans: {0}; --otlp-endpoint takes a URL such as http://collector:4317")]
    Exporter(String),
    /// No certificates of authorities for https.
    #[error("cannot export spans: no certificates to check the collector's with: {0}")]
    Certificates(std::io::Error),
    /// No thread, no runtime.
    #[error("cannot export spans: {0}")]
    Thread(std::io::Error),
}

/// What became of the spans.
#[derive(Debug, Default)]
pub struct SpanCounts {
    /// Accepted by the collector.
    pub exported: AtomicU64,
    /// Dropped because the queue was full.
    pub queue_full: AtomicU64,
    /// Dropped because the collector did not take them in time.
    pub failed: AtomicU64,
    /// Requests that failed, each repetition counted.
    pub errors: AtomicU64,
}

/// The sending side of the export.
#[derive(Debug)]
pub struct Otlp {
    queue: Option<mpsc::Sender<Span>>,
    counts: Arc<SpanCounts>,
    ending: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Otlp {
    /// Starts the export. The collector need not be there yet.
    ///
    /// # Errors
    /// The configuration cannot work.
    pub fn start(config: &OtlpConfig) -> Result<Self, OtlpError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(OtlpError::Thread)?;
        let exporter = {
            let _inside = runtime.enter();
            exporter(config)?
        };
        let (queue, spans) = mpsc::channel(QUEUE);
        let counts = Arc::new(SpanCounts::default());
        let ending = Arc::new(AtomicBool::new(false));
        let work =
            Work { exporter, counts: Arc::clone(&counts), ending: Arc::clone(&ending), failing: false };
        let thread = std::thread::Builder::new()
            .name("otlp".to_owned())
            .spawn(move || runtime.block_on(work.run(spans)))
            .map_err(OtlpError::Thread)?;
        Ok(Self { queue: Some(queue), counts, ending, thread: Some(thread) })
    }

    /// Hands a span over, without waiting.
    pub fn send(&self, span: Span) {
        if self.queue.as_ref().is_none_or(|queue| queue.try_send(span).is_err()) {
            self.counts.queue_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What became of the spans so far.
    #[must_use]
    pub fn counts(&self) -> &SpanCounts {
        &self.counts
    }

    /// Sends what waits, for three seconds at most.
    pub fn end(mut self) {
        self.ending.store(true, Ordering::Relaxed);
        self.queue = None;
        let end = Instant::now() + LAST_SPANS + Duration::from_millis(500);
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(thread) = self.thread.take().filter(std::thread::JoinHandle::is_finished)
            && thread.join().is_err()
        {
            tracing::warn!("the export of spans ended unexpectedly");
        }
    }
}

fn exporter(config: &OtlpConfig) -> Result<SpanExporter, OtlpError> {
    let wrong = |error: opentelemetry_otlp::ExporterBuildError| OtlpError::Exporter(error.to_string());
    match config.protocol {
        OtlpProtocol::Grpc => {
            let mut builder = SpanExporter::builder().with_tonic();
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            builder.build().map_err(wrong)
        }
        OtlpProtocol::Http => {
            let connector = hyper_rustls::HttpsConnectorBuilder::new()
                .with_native_roots()
                .map_err(OtlpError::Certificates)?
                .https_or_http()
                .enable_http1()
                .build();
            let mut builder = SpanExporter::builder()
                .with_http()
                .with_protocol(Protocol::HttpBinary)
                .with_http_client(HyperClient::new(connector, LONGEST_REQUEST, None));
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_endpoint(traces_url(endpoint));
            }
            builder.build().map_err(wrong)
        }
    }
}

/// A base URL gets the path of traces; a URL with a path is meant as it is.
fn traces_url(endpoint: &str) -> String {
    let after_scheme = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    match after_scheme.split_once('/') {
        Some((_, path)) if !path.is_empty() => endpoint.to_owned(),
        _ => format!("{}/v1/traces", endpoint.trim_end_matches('/')),
    }
}

/// The receiving side.
struct Work {
    exporter: SpanExporter,
    counts: Arc<SpanCounts>,
    ending: Arc<AtomicBool>,
    /// The last request failed: said once.
    failing: bool,
}

impl Work {
    async fn run(mut self, mut spans: mpsc::Receiver<Span>) {
        let mut batch = Vec::with_capacity(BATCH);
        while spans.recv_many(&mut batch, BATCH).await > 0 {
            let gathered = tokio::time::Instant::now() + GATHER;
            while batch.len() < BATCH && !self.ending.load(Ordering::Relaxed) {
                let room = BATCH - batch.len();
                match tokio::time::timeout_at(gathered, spans.recv_many(&mut batch, room)).await {
                    Ok(1..) => {}
                    // Closed, or time is over.
                    Ok(0) | Err(_) => break,
                }
            }
            // Stable: the spans of a worker stay in the order of their ends.
            batch.sort_by_key(|span| span.process);
            for of_worker in batch.chunk_by(|one, next| one.process == next.process) {
                if let Some(first) = of_worker.first() {
                    let spans = of_worker.iter().map(|span| span.data.clone()).collect();
                    self.deliver(&first.resource, spans).await;
                }
            }
            batch.clear();
        }
    }

    async fn deliver(&mut self, resource: &Resource, spans: Vec<SpanData>) {
        let number = u64::try_from(spans.len()).unwrap_or(u64::MAX);
        self.exporter.set_resource(resource);
        let (begin, mut pause) = (Instant::now(), PAUSE);
        loop {
            let sent = tokio::time::timeout(LONGEST_REQUEST, self.exporter.export(spans.clone())).await;
            let error = match sent {
                Ok(Ok(())) => {
                    self.counts.exported.fetch_add(number, Ordering::Relaxed);
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("the collector takes spans again");
                    }
                    return;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            self.counts.errors.fetch_add(1, Ordering::Relaxed);
            if !std::mem::replace(&mut self.failing, true) {
                tracing::warn!(error, "the collector does not take spans; trying again");
            }
            let ending = self.ending.load(Ordering::Relaxed);
            if begin.elapsed() >= if ending { LAST_SPANS } else { PATIENCE } {
                self.counts.failed.fetch_add(number, Ordering::Relaxed);
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_gets_the_path_of_traces() {
        for (given, used) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("http://c:4318/", "http://c:4318/v1/traces"),
            ("https://c/otlp/v1/traces", "https://c/otlp/v1/traces"),
        ] {
            assert_eq!(traces_url(given), used);
        }
    }

    #[test]
    fn a_wrong_endpoint_is_told_at_the_start() {
        for protocol in [OtlpProtocol::Grpc, OtlpProtocol::Http] {
            let config = OtlpConfig { endpoint: Some("not a url".to_owned()), protocol };
            let error = Otlp::start(&config).unwrap_err().to_string();
            assert!(error.contains("--otlp-endpoint takes a URL"), "{error}");
        }
    }
}
