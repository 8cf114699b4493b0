//! Promise: calls of AI providers are measured as their client measures them, and nothing else of them is ever taken.

#![allow(clippy::indexing_slicing, reason = "out of bounds is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::builds;
use cadscope_tests::collector::packages;
use cadscope_tests::metrics::Metrics;
use cadscope_tests::node::{emulated, require_root, scratch, tool};
use cadscope_tests::run::{self, Running};
use serde::Deserialize;

const LIMIT: Duration = Duration::from_secs(60);
/// What must not be found anywhere.
const SECRET: &str = "sk-8c1f4e6b2d7a";

/// A call by the client's own clock, seconds.
#[derive(Debug, Deserialize)]
struct Asked {
    model: String,
    kind: String,
    status: u32,
    first: f64,
    whole: f64,
}

struct Provider {
    _server: Running,
    port: u16,
}

impl Provider {
    fn open(python: &Path, folder: &Path) -> Result<Self> {
        let mut openssl = Command::new(tool("openssl", "openssl")?);
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
        ]);
        openssl.args(["-addext", "subjectAltName=DNS:localhost", "-keyout", "key", "-out", "certificate"]);
        let made = run::run(openssl.current_dir(folder), LIMIT)?;
        ensure!(made.code == 0, "{made:?}");
        let app = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/provider.py");
        let mut server = Command::new(python);
        server.arg(app).args(["certificate", "key"]).current_dir(folder).env("SECRET", SECRET);
        let mut server = Running(server.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
        let mut line = String::new();
        BufReader::new(server.0.stdout.take().context("no output")?).read_line(&mut line)?;
        Ok(Self { _server: server, port: line.trim().parse().context("no port")? })
    }
}

/// A client that has asked and waits; ended with the value.
fn client(program: &Path, name: &str, folder: &Path, port: u16) -> Result<(Running, Vec<Asked>)> {
    let (asked, stop) = (folder.join(format!("asked-{name}")), folder.join("stop"));
    let log = fs::File::create(folder.join(format!("log-{name}")))?;
    let mut command = Command::new(program);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/ask.py")).current_dir(folder);
    command.env("OTEL_PACKAGES", packages(&builds::folder()?.join("otel-python"))?);
    command
        .env("PROVIDER", format!("https://localhost:{port}/v1"))
        .env("CERTIFICATE", folder.join("certificate"));
    command.env("ASKED", &asked).env("STOP", &stop).env("NAME", name).env("SECRET", SECRET);
    command.env("HOME", folder).env("QT_QPA_PLATFORM", "offscreen").env("PYTHONDONTWRITEBYTECODE", "1");
    if name == "freecad" {
        command.env("IN_FREECAD", "1");
    }
    let running = Running(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
    let log = folder.join(format!("log-{name}"));
    run::until("the client has asked", 2 * LIMIT, || run::text(&log).contains("job done").then_some(()))
        .with_context(|| run::text(&log))?;
    let lines = fs::read_to_string(&asked)?;
    Ok((running, lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?))
}

fn labels(asked: &Asked) -> [(&str, &str); 3] {
    [("provider", "local"), ("model", &asked.model), ("operation", "chat")]
}

/// By how much ours is longer than the client's, milliseconds: to the first byte, and as a whole.
fn apart(metrics: &Metrics, asked: &Asked) -> (f64, f64) {
    let ours = |family: &str| metrics.sum(&format!("{family}_sum"), &labels(asked));
    (
        1e3 * (ours("ai_provider_first_byte_seconds") - asked.first),
        1e3 * (ours("ai_provider_latency_seconds") - asked.whole),
    )
}

fn check(metrics: &Metrics, asked: &[Asked]) -> Result<()> {
    let mut by_kind: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for call in asked {
        let count = |family: &str, more: Option<(&str, &str)>| {
            let labels: Vec<_> = labels(call).into_iter().chain(more).collect();
            metrics.sum(family, &labels)
        };
        let status = if call.status == 200 { "ok" } else { "error" };
        let requests = count("ai_provider_requests_total", None);
        ensure!(requests == 1.0, "{requests} requests: {call:?}");
        ensure!(
            count("ai_provider_requests_total", Some(("status", status))) == 1.0,
            "not {status}: {call:?}"
        );
        let answered = if call.status == 0 { 0.0 } else { 1.0 };
        ensure!(count("ai_provider_latency_seconds_count", None) == answered, "{call:?}");
        if call.status != 0 {
            by_kind.entry(&call.kind).or_default().push(apart(metrics, call));
        }
    }
    for (kind, mut apart) in by_kind {
        apart.sort_by(|a, b| a.0.abs().max(a.1.abs()).total_cmp(&b.0.abs().max(b.1.abs())));
        println!("{kind}: ours less the client's, ms, first byte and whole: {apart:.3?}");
        // Another process may run in between on a machine with two processors: half of the calls are undisturbed.
        let (first, whole) = apart[apart.len() / 2];
        ensure!(emulated() || first.abs() < 2.0 && whole.abs() < 2.0, "{kind}: {apart:?}");
    }
    Ok(())
}

#[test]
fn calls_are_measured_as_their_client_measures_them_and_no_secret_is_taken() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let folder = folder.path();
    let python = builds::folder()?.join("otel-python/bin/python");
    ensure!(python.exists(), "{} is not there: run `cargo xtask builds otel-python`", python.display());
    let config = folder.join("cadscope.toml");
    fs::write(&config, "ai_latency = true\n[[ai_provider]]\nhost = \"localhost\"\nprovider = \"local\"\n")?;
    let provider = Provider::open(&python, folder)?;
    let agent = Agent::start(&["--config".as_ref(), config.as_os_str()])?;
    let (_api, mut asked) = client(&python, "api", folder, provider.port)?;
    let freecad = tool("freecadcmd", "freecad-python3")?;
    let (_worker, of_worker) = client(&freecad, "freecad", folder, provider.port)?;
    asked.extend(of_worker);
    ensure!(asked.len() == 2 * 26, "{asked:?}");

    let all = |m: &Metrics| m.sum("ai_provider_requests_total", &[]) >= 54.0;
    let metrics = agent.metrics_when(Duration::from_secs(20), all)?;
    check(&metrics, &asked)?;

    for accept in ["*/*", "application/openmetrics-text"] {
        ensure!(!agent.get_as("/metrics", accept)?.contains(SECRET));
    }
    ensure!(!agent.get("/status")?.1.contains(SECRET) && !agent.log().contains(SECRET), "{}", agent.log());
    ensure!(agent.get("/status")?.1.contains("tls.read"), "no TLS probes in /status");
    // The search itself finds what is there.
    ensure!(!found(agent.pid(), b"ai_provider_latency_seconds")?.is_empty());
    let places = found(agent.pid(), SECRET.as_bytes())?;
    ensure!(places.is_empty(), "in the agent's memory: {places:?}");
    for map in ["CONNECTIONS", "READINGS", "EVENTS"] {
        let mut bpftool = Command::new(tool("bpftool", "bpftool")?);
        let dump = run::run(bpftool.args(["-j", "map", "dump", "name", map]), LIMIT)?;
        ensure!(map == "EVENTS" || dump.code == 0, "{dump:?}");
        let bytes: Vec<String> = SECRET.bytes().map(|byte| format!("\"{byte:#04x}\"")).collect();
        ensure!(!dump.stdout.contains(&bytes.join(",")), "in {map}");
    }
    fs::write(folder.join("stop"), "")?;
    Ok(())
}

#[test]
fn without_the_option_nothing_is_placed_in_tls() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let agent = Agent::start(&[] as &[&str])?;
    let python = builds::folder()?.join("otel-python/bin/python");
    let mut idle = Command::new(&python);
    idle.args(["-c", "import ssl, time; time.sleep(2)"]).current_dir(folder.path());
    ensure!(run::run(&mut idle, LIMIT)?.code == 0);
    ensure!(!agent.get("/status")?.1.contains("tls.") && !agent.get("/metrics")?.1.contains("ai_provider"));
    Ok(())
}

/// Where a process has these bytes in memory that it can write to.
fn found(pid: u32, wanted: &[u8]) -> Result<Vec<String>> {
    let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    let mut places = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
        let Some((start, end)) = range.split_once('-') else { continue };
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        if !rights.starts_with("rw") {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(end - start)?];
        // What is of a device, or gone meanwhile, cannot be read.
        if memory.read_exact_at(&mut bytes, start).is_err() {
            continue;
        }
        if bytes.windows(wanted.len()).any(|window| window == wanted) {
            places.push(line.to_owned());
        }
    }
    Ok(places)
}
