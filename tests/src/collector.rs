//! Runs the OpenTelemetry Collector and reads the spans that it passes on.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::free_port;
use crate::run::{self, Running};

/// A span as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// 32 hex digits.
    pub trace: String,
    /// 16 hex digits.
    pub id: String,
    /// 16 hex digits, or empty.
    pub parent: String,
    /// What it is called.
    pub name: String,
    /// Nanoseconds since 1970.
    pub start_ns: u64,
    /// The same.
    pub end_ns: u64,
    /// 0 unset, 2 error.
    pub status: u64,
    /// Attributes as text.
    pub attributes: BTreeMap<String, String>,
    /// Attributes of its resource as text.
    pub resource: BTreeMap<String, String>,
    /// Names of its events.
    pub events: Vec<String>,
}

/// What has come, as spans and as it was said.
#[derive(Debug, Default)]
struct Received {
    spans: Vec<Span>,
    bodies: String,
}

type Spans = Arc<Mutex<Received>>;

/// The collector, and where it sends what it receives.
#[derive(Debug)]
pub struct Collector {
    process: Option<Running>,
    network: Option<PathBuf>,
    config: PathBuf,
    address: String,
    grpc: u16,
    http: u16,
    spans: Spans,
    folder: tempfile::TempDir,
}

impl Collector {
    /// Starts the collector on ports that are free.
    ///
    /// # Errors
    /// It has not been made, or does not listen.
    pub fn start() -> Result<Self> {
        Self::start_at(None, "127.0.0.1")
    }

    /// The same in another network, at an address of it.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_at(network: Option<&Path>, address: &str) -> Result<Self> {
        let (folder, grpc, http) = (crate::node::scratch()?, free_port()?, free_port()?);
        let (sink, spans) = sink(network)?;
        let config = folder.path().join("config.yaml");
        std::fs::write(
            &config,
            format!(
                "receivers:\n  otlp: {{protocols: {{grpc: {{endpoint: \"{address}:{grpc}\"}}, \
                 http: {{endpoint: \"{address}:{http}\"}}}}}}\n\
                 exporters:\n  otlphttp: {{endpoint: \"http://127.0.0.1:{sink}\", encoding: json, compression: none}}\n\
                 service:\n  telemetry: {{metrics: {{level: none}}}}\n  \
                 pipelines: {{traces: {{receivers: [otlp], exporters: [otlphttp]}}}}\n"
            ),
        )?;
        let network = network.map(Path::to_owned);
        let address = address.to_owned();
        let mut collector = Self { process: None, network, config, address, grpc, http, spans, folder };
        collector.restart()?;
        Ok(collector)
    }

    /// Starts it again where it was.
    ///
    /// # Errors
    /// It does not listen.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        let log = std::fs::File::create(self.folder.path().join("log"))?;
        let mut command = Command::new("nsenter");
        command.args(self.network.iter().map(|network| format!("--net={}", network.display()))).arg("--");
        command
            .arg(crate::builds::folder()?.join("otelcol/otelcol"))
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().context("nsenter (util-linux) cannot be started")?;
        self.process = Some(Running(child));
        let at = |port: &u16| Ok(TcpStream::connect((self.address.as_str(), *port))?);
        let listens = || {
            [self.grpc, self.http]
                .iter()
                .all(|port| crate::network::inside(self.network.as_deref(), || at(port)).is_ok())
        };
        run::until("the collector listens", Duration::from_secs(20), || listens().then_some(()))
            .with_context(|| run::text(&self.folder.path().join("log")))
    }

    /// Ends it as kill -9 does.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().and_then(|process| i32::try_from(process.pid()).ok())
    }

    /// For OTLP over gRPC.
    #[must_use]
    pub fn grpc(&self) -> String {
        format!("http://{}:{}", self.address, self.grpc)
    }

    /// For OTLP over HTTP.
    #[must_use]
    pub fn http(&self) -> String {
        format!("http://{}:{}", self.address, self.http)
    }

    /// What has arrived.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).spans.clone()
    }

    /// Every word that has arrived: JSON, one document after the other.
    #[must_use]
    pub fn bodies(&self) -> String {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).bodies.clone()
    }

    /// What has arrived once `done` holds for it.
    ///
    /// # Errors
    /// It does not within the limit; says what arrived.
    pub fn spans_when(
        &self,
        what: &str,
        limit: Duration,
        done: impl Fn(&[Span]) -> bool,
    ) -> Result<Vec<Span>> {
        let until = Instant::now() + limit;
        loop {
            let spans = self.spans();
            if done(&spans) {
                return Ok(spans);
            }
            let names: Vec<_> =
                spans.iter().map(|span| format!("{} {} < {}", span.name, span.id, span.parent)).collect();
            let shown = names.len().min(200);
            ensure!(
                Instant::now() < until,
                "not within {limit:?}: {what}; arrived: {:#?}",
                names.get(..shown)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Receives OTLP in JSON; gives its port.
fn sink(network: Option<&Path>) -> Result<(u16, Spans)> {
    let listener = crate::network::inside(network, || Ok(TcpListener::bind("127.0.0.1:0")?))?;
    let port = listener.local_addr()?.port();
    let spans = Spans::default();
    let kept = Arc::clone(&spans);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let kept = Arc::clone(&kept);
            // A connection that breaks is the collector's to make anew.
            std::thread::spawn(move || receive(stream, &kept).ok());
        }
    });
    Ok((port, spans))
}

fn receive(mut stream: TcpStream, spans: &Spans) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(number) = line.strip_prefix("content-length:") {
                length = number.trim().parse()?;
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let found = read(&serde_json::from_slice(&body)?);
        let mut received = spans.lock().unwrap_or_else(PoisonError::into_inner);
        received.spans.extend(found);
        received.bodies += &String::from_utf8_lossy(&body);
        drop(received);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")?;
    }
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

fn attributes(of: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| {
        let value = value.as_object().and_then(|kinds| kinds.values().next()).cloned().unwrap_or_default();
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    };
    let pair = |pair: &Value| Some((pair["key"].as_str()?.to_owned(), text(&pair["value"])));
    list(of, "attributes").iter().filter_map(pair).collect()
}

fn read(request: &Value) -> Vec<Span> {
    let mut spans = Vec::new();
    for group in list(request, "resourceSpans") {
        let resource = attributes(&group["resource"]);
        for span in list(group, "scopeSpans").iter().flat_map(|scope| list(scope, "spans")) {
            let text = |name: &str| span[name].as_str().unwrap_or_default().to_owned();
            spans.push(Span {
                trace: text("traceId"),
                id: text("spanId"),
                parent: text("parentSpanId"),
                name: text("name"),
                start_ns: text("startTimeUnixNano").parse().unwrap_or(0),
                end_ns: text("endTimeUnixNano").parse().unwrap_or(0),
                status: span.pointer("/status/code").and_then(Value::as_u64).unwrap_or(0),
                attributes: attributes(span),
                resource: resource.clone(),
                events: list(span, "events")
                    .iter()
                    .filter_map(|e| Some(e["name"].as_str()?.to_owned()))
                    .collect(),
            });
        }
    }
    spans
}

/// The packages of the virtual environment with the OpenTelemetry SDK.
///
/// # Errors
/// It has not been made.
pub fn packages(environment: &Path) -> Result<PathBuf> {
    let lib = environment.join("lib");
    let python =
        std::fs::read_dir(&lib).with_context(|| lib.display().to_string())?.next().context("no Python")??;
    Ok(python.path().join("site-packages"))
}
