//! Turns a program into a worker of a pod, and a port into a Kubernetes API that answers, answers late, or never does.
//!
//! A pod is what the agent takes for one: a cgroup with its uid, and a monitor that names the bundle.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::agent::free_port;
use crate::cgroup::Cgroup;
use crate::hot::Hot;
use crate::node::{scratch, tool};
use crate::run::{Running, run, until};
use crate::worker::build_program;

const LIMIT: Duration = Duration::from_secs(60);
/// Where a pod finds who it is for the API.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const NAMESPACE: &str = "cad";

/// Answers `GET /api/v1/namespaces/…/pods/NAME` after so many seconds: the uid of a pod stands in its name.
const SERVER: &str = r#"
import http.server, json, ssl, sys, time
class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(float(sys.argv[3]))
        name = self.path.rsplit('/', 1)[1]
        pod = {'metadata': {'name': name, 'uid': name.removeprefix('pod-'), 'labels': {'team': 'gears'}}}
        body = json.dumps(pod).encode()
        self.send_response(200 if self.headers['Authorization'] == 'Bearer secret' else 403)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[2])), Api)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(sys.argv[1] + '/ca.crt', sys.argv[1] + '/key')
server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
"#;

/// The API's port, and the account that an agent asks it with. Refuses every connection until told otherwise.
#[derive(Debug)]
pub struct Api {
    port: u16,
    account: tempfile::TempDir,
    dead: Option<TcpListener>,
    server: Option<Running>,
}

impl Api {
    /// Makes its certificate.
    ///
    /// # Errors
    /// openssl is missing.
    pub fn new() -> Result<Self> {
        let account = scratch()?;
        let mut openssl = Command::new(tool("openssl", "openssl")?);
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        openssl.args(["-days", "2", "-subj", "/CN=api", "-addext", "subjectAltName=IP:127.0.0.1"]);
        // It vouches for itself: one that may sign others is no server's.
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        openssl.args(["-out", "ca.crt", "-keyout", "key"]).current_dir(account.path());
        let ended = run(&mut openssl, LIMIT)?;
        ensure!(ended.code == 0, "{ended:?}");
        fs::write(account.path().join("token"), "secret")?;
        Ok(Self { port: free_port()?, account, dead: None, server: None })
    }

    /// The words before an agent that make it one of a pod's, with this API.
    ///
    /// # Errors
    /// util-linux is missing.
    pub fn wrapper(&self) -> Result<Vec<String>> {
        let script = format!(
            "mount -t tmpfs none /run && mkdir -p {ACCOUNT} && cp \"$0\"/ca.crt \"$0\"/token {ACCOUNT} && \
             export KUBERNETES_SERVICE_HOST=127.0.0.1 KUBERNETES_SERVICE_PORT={} && exec \"$@\"",
            self.port
        );
        let unshare = tool("unshare", "util-linux")?.display().to_string();
        let folder = self.account.path().display().to_string();
        Ok(vec![unshare, "--mount".to_owned(), "sh".to_owned(), "-c".to_owned(), script, folder])
    }

    /// From now on every connection is taken, and nothing is ever said.
    ///
    /// # Errors
    /// The port is someone else's.
    pub fn fall_silent(&mut self) -> Result<()> {
        self.refuse();
        let bound = || TcpListener::bind(("127.0.0.1", self.port)).ok();
        self.dead = Some(until("the API's port", LIMIT, bound)?);
        Ok(())
    }

    /// From now on every connection is refused.
    pub fn refuse(&mut self) {
        self.dead = None;
        self.server = None;
    }

    /// From now on it answers, after so many seconds.
    ///
    /// # Errors
    /// It does not start.
    pub fn answer_after(&mut self, seconds: u32) -> Result<()> {
        self.refuse();
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", SERVER]).arg(self.account.path()).arg(self.port.to_string());
        python.arg(seconds.to_string()).stdin(Stdio::null());
        self.server = Some(Running(python.spawn().context("python3 cannot be started")?));
        let connected = || std::net::TcpStream::connect(("127.0.0.1", self.port)).ok().map(drop);
        until("the API listens", LIMIT, connected)
    }
}

/// A worker in a pod, and the cgroups that make it one.
#[derive(Debug)]
pub struct PodWorker {
    /// Calls functions when it is told to.
    pub hot: Hot,
    uid: String,
    _bundle: tempfile::TempDir,
    // Removed in this order, once the worker is gone.
    _container: Cgroup,
    _pod: Cgroup,
}

impl PodWorker {
    /// Starts it in its own pod below `pods`; of each number there is one.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(pods: &Cgroup, number: u32) -> Result<Self> {
        let uid = format!("0a1b2c3d-0000-4000-8000-{number:012x}");
        let pod = pods.child(&format!("pod{uid}"), None)?;
        let container = pod.child(&format!("{number:064x}"), None)?;
        let bundle = scratch()?;
        let names = json!({ "annotations": {
            "io.kubernetes.cri.sandbox-namespace": NAMESPACE,
            "io.kubernetes.cri.sandbox-name": format!("pod-{uid}"),
            "io.kubernetes.cri.container-name": "worker",
        }});
        fs::write(bundle.path().join("config.json"), names.to_string())?;
        let [.., processes] = container.wrapper();
        // A monitor outside of the cgroup, as CRI-O has it; its own output is the worker's.
        let script = "sh -c 'echo $$ >\"$0\" && exec \"$1\"' \"$1\" \"$2\"; exit $?";
        let mut monitor = Command::new("sh");
        monitor.arg0("conmon").args(["-c", script, "conmon", &processes]);
        monitor.arg(build_program("hot/hot.cpp")?).args([Path::new("-b"), bundle.path()]);
        let hot = Hot::start_by(&mut monitor)?;
        Ok(Self { hot, uid, _bundle: bundle, _container: container, _pod: pod })
    }

    /// The uid of its pod.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }
}
