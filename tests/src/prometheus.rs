//! Runs a real Prometheus, and a real Alertmanager that posts to this process; asks and listens to them.

#![allow(clippy::indexing_slicing, reason = "a key that JSON lacks is null, not a panic")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::agent::free_port;
use crate::run::{self, Running};

/// The programs, as `cargo xtask builds prometheus` unpacks them.
fn programs() -> Result<PathBuf> {
    let folder = crate::builds::folder()?.join("prometheus");
    ensure!(folder.is_dir(), "{} is not there: run `cargo xtask builds prometheus`", folder.display());
    Ok(std::fs::canonicalize(folder)?)
}

/// `promtool` with these arguments; what it said, if it failed.
///
/// # Errors
/// It is not there, or not content.
pub fn promtool(arguments: &[&str], folder: &Path) -> Result<()> {
    let program = programs()?.join("usr/bin/promtool");
    let ended =
        run::run(Command::new(program).args(arguments).current_dir(folder), Duration::from_secs(120))?;
    ensure!(ended.code == 0, "promtool {}:\n{}\n{}", arguments.join(" "), ended.stdout, ended.stderr);
    Ok(())
}

/// Starts one of the programs, which look for their files in /usr/share; in another network, if one is given.
fn start(program: &str, folder: &Path, arguments: &[String], network: Option<&Path>) -> Result<Running> {
    let root = programs()?;
    let log = std::fs::File::create(folder.join(format!("{program}.log")))?;
    let mut command = Command::new("nsenter");
    command.args(network.map(|network| format!("--net={}", network.display())));
    command.args(["--", "unshare", "--mount", "--propagation", "private", "sh", "-ec"]);
    command.arg("mount -t overlay overlay -o \"lowerdir=$1/usr/share:/usr/share\" /usr/share; p=$1/usr/bin/$2; shift 2; exec \"$p\" \"$@\"");
    command.args(["sh".as_ref(), root.as_os_str(), program.as_ref()]).args(arguments);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(Running(command.spawn().context("nsenter (util-linux) cannot be started")?))
}

fn until_ready(name: &str, at: &At, folder: &Path) -> Result<()> {
    run::until(&format!("{name} is ready"), Duration::from_secs(60), || {
        request(at, "GET", "/-/ready", "").ok().filter(|(status, _)| *status == 200)
    })
    .map(drop)
    .with_context(|| run::text(&folder.join(format!("{name}.log"))))
}

/// A port of 127.0.0.1: of this machine, or of a network namespace.
#[derive(Clone, Debug)]
struct At {
    network: Option<PathBuf>,
    port: u16,
}

const LIMIT: Duration = Duration::from_secs(30);

impl At {
    fn connect(&self) -> Result<TcpStream> {
        let port = self.port;
        crate::network::inside(self.network.as_deref(), || {
            Ok(TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), LIMIT)?)
        })
    }
}

/// One request: status and body.
fn request(at: &At, method: &str, path: &str, form: &str) -> Result<(u16, Vec<u8>)> {
    let mut stream = at.connect()?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{form}",
        form.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no HTTP answer")?;
    let body = answer.split_off(head + 4);
    let head = String::from_utf8_lossy(&answer);
    let status = head.split_whitespace().nth(1).context("no HTTP status")?.parse()?;
    Ok((status, body))
}

fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    text.bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// One series of an answer: its labels, and its values in the order of time.
#[derive(Clone, Debug)]
pub struct Series {
    /// By name, `__name__` included.
    pub labels: std::collections::BTreeMap<String, String>,
    /// One for an instant query.
    pub values: Vec<f64>,
}

/// A running server, ended with the value.
#[derive(Debug)]
pub struct Prometheus {
    _server: Running,
    at: At,
    folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that scrapes these agents each second under the job `cadscope`, with these rules if any, and sends its
    /// alerts to this Alertmanager.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(agents: &[u16], rules: Option<&str>, alertmanager: Option<&Alertmanager>) -> Result<Self> {
        let targets: Vec<_> = agents.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        let mut config = format!(
            "scrape_configs:\n  - job_name: cadscope\n    honor_labels: true\n    static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        );
        if let Some(manager) = alertmanager {
            config += &format!(
                "alerting: {{alertmanagers: [{{static_configs: [{{targets: [\"127.0.0.1:{}\"]}}]}}]}}\n",
                manager.at.port
            );
        }
        Self::start_with(&config, rules, None)
    }

    /// Starts one with what this configuration says beside its intervals of a second, in this network namespace.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_with(config: &str, rules: Option<&str>, network: Option<&Path>) -> Result<Self> {
        let folder = crate::node::scratch()?;
        let at = At { network: network.map(Path::to_owned), port: free_port()? };
        let mut config = format!("global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n{config}");
        if let Some(rules) = rules {
            std::fs::write(folder.path().join("rules.yml"), rules)?;
            config += "rule_files: [rules.yml]\n";
        }
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config)?;
        let server = start(
            "prometheus",
            folder.path(),
            &[
                format!("--config.file={}", file.display()),
                format!("--storage.tsdb.path={}", folder.path().join("data").display()),
                format!("--web.listen-address=127.0.0.1:{}", at.port),
                "--enable-feature=exemplar-storage".to_owned(),
            ],
            network,
        )?;
        until_ready("prometheus", &at, folder.path())?;
        Ok(Self { _server: server, at, folder })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.at.port)
    }

    /// What it has said.
    #[must_use]
    pub fn log(&self) -> String {
        run::text(&self.folder.path().join("prometheus.log"))
    }

    /// The answer to a query now.
    ///
    /// # Errors
    /// It refuses the query.
    pub fn instant(&self, query: &str) -> Result<Vec<Series>> {
        self.ask("/api/v1/query", &format!("query={}", encoded(query)))
    }

    /// The answer to a query at each second of the last `seconds`.
    ///
    /// # Errors
    /// It refuses the query.
    pub fn range(&self, query: &str, seconds: u64) -> Result<Vec<Series>> {
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH)?.as_secs();
        let form = format!("query={}&start={}&end={now}&step=2", encoded(query), now.saturating_sub(seconds));
        self.ask("/api/v1/query_range", &form)
    }

    fn ask(&self, path: &str, form: &str) -> Result<Vec<Series>> {
        let (_, body) = request(&self.at, "POST", path, form)?;
        let answer: Value = serde_json::from_slice(&body)?;
        ensure!(answer["status"] == "success", "{}", answer["error"]);
        let series = answer["data"]["result"].as_array().context("no result")?;
        let number = |pair: &Value| pair[1].as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN);
        Ok(series
            .iter()
            .map(|one| Series {
                labels: serde_json::from_value(one["metric"].clone()).unwrap_or_default(),
                values: match one["values"].as_array() {
                    Some(values) => values.iter().map(number).collect(),
                    None => vec![number(&one["value"])],
                },
            })
            .collect())
    }

    /// Alerts that are pending or firing, as `name state`.
    ///
    /// # Errors
    /// It does not answer.
    pub fn alerts(&self) -> Result<Vec<String>> {
        let (_, body) = request(&self.at, "GET", "/api/v1/alerts", "")?;
        let answer: Value = serde_json::from_slice(&body)?;
        let alerts = answer["data"]["alerts"].as_array().context("no alerts")?;
        Ok(alerts.iter().map(|alert| format!("{} {}", alert["labels"], alert["state"])).collect())
    }
}

/// A running Alertmanager, and what it posted.
#[derive(Debug)]
pub struct Alertmanager {
    _server: Running,
    at: At,
    _folder: tempfile::TempDir,
    posts: Receiver<Value>,
}

impl Alertmanager {
    /// Starts one that sends every alert on at once.
    ///
    /// # Errors
    /// It does not start.
    pub fn start() -> Result<Self> {
        let folder = crate::node::scratch()?;
        let at = At { network: None, port: free_port()? };
        let hook = TcpListener::bind("127.0.0.1:0")?;
        let config = format!(
            "route: {{receiver: hook, group_by: ['...'], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}\n\
             receivers: [{{name: hook, webhook_configs: [{{url: \"http://127.0.0.1:{}/\"}}]}}]\n",
            hook.local_addr()?.port()
        );
        let file = folder.path().join("alertmanager.yml");
        std::fs::write(&file, config)?;
        let (sender, posts) = channel();
        std::thread::spawn(move || {
            for stream in hook.incoming().flatten() {
                // Ends with the process: the receiver may be gone before.
                if let Ok(post) = posted(stream) {
                    let _ = sender.send(post);
                }
            }
        });
        let server = start(
            "prometheus-alertmanager",
            folder.path(),
            &[
                format!("--config.file={}", file.display()),
                format!("--storage.path={}", folder.path().join("data").display()),
                format!("--web.listen-address=127.0.0.1:{}", at.port),
                "--cluster.listen-address=".to_owned(),
            ],
            None,
        )?;
        until_ready("prometheus-alertmanager", &at, folder.path())?;
        Ok(Self { _server: server, at, _folder: folder, posts })
    }

    /// The next alerts that it posts, if any within this time.
    #[must_use]
    pub fn next(&self, within: Duration) -> Vec<Value> {
        let post = self.posts.recv_timeout(within).unwrap_or_default();
        post["alerts"].as_array().cloned().unwrap_or_default()
    }
}

fn posted(mut stream: TcpStream) -> Result<Value> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
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
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    Ok(serde_json::from_slice(&body)?)
}
