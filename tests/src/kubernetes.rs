//! Runs a real Kubernetes node on this machine, and containers of podman: `tests/kubernetes/node`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::builds::{self, BUILDS};
use crate::run::{Ended, run};

/// The image with FreeCAD that pods run.
pub const FREECAD: &str = "localhost/freecad:1";

/// A running node with its API; taken down with the value.
#[derive(Debug)]
pub struct Cluster(());

impl Cluster {
    /// Brings it up: about 30 s.
    ///
    /// # Errors
    /// The programs have not been made, or a part does not start.
    pub fn up() -> Result<Self> {
        let builds = builds::folder()?;
        ensure!(builds.join("kubernetes").is_dir(), "no node: run `cargo xtask builds kubernetes`");
        node(&["down"], Duration::from_secs(60))?;
        node(&["up"], Duration::from_secs(300))?;
        Ok(Self(()))
    }

    /// Runs kubectl to success; gives what it printed.
    ///
    /// # Errors
    /// It failed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let all: Vec<&str> = std::iter::once("kubectl").chain(arguments.iter().copied()).collect();
        Ok(node(&all, Duration::from_secs(120))?.stdout)
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// The apiserver refuses them.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        let mut child = command(&["kubectl", "apply", "-f", "-"])?
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("stdin")?.write_all(manifests.as_bytes())?;
        let ended = child.wait_with_output()?;
        ensure!(ended.status.success(), "{}\n{manifests}", String::from_utf8_lossy(&ended.stderr));
        Ok(())
    }

    /// A script that runs `helm` or another client of the API in the node's network, as its administrator.
    ///
    /// # Errors
    /// The node does not say where it is.
    pub fn client(&self, program: &Path) -> Result<String> {
        Ok(format!(
            "#!/bin/sh\nexport CADSCOPE_BUILDS='{}' KUBECONFIG='{}'\nexec '{}' exec '{}' \"$@\"\n",
            builds::folder()?.display(),
            self.config()?.display(),
            folder().join("node").display(),
            program.display()
        ))
    }

    /// An administrator's kubeconfig, for programs in its [`network`](Self::network).
    ///
    /// # Errors
    /// The node does not say where it is.
    pub fn config(&self) -> Result<PathBuf> {
        let root = node(&["root"], Duration::from_secs(20))?.stdout;
        Ok(Path::new(root.trim()).join("admin.conf"))
    }

    /// Its network namespace, from which the API and the pods can be reached.
    #[must_use]
    pub fn network(&self) -> &'static Path {
        Path::new("/run/netns/cadscope-k8s")
    }

    /// Gives an image to the node.
    ///
    /// # Errors
    /// It is none.
    pub fn load(&self, image: &Path) -> Result<()> {
        let image = image.to_str().context("path is not UTF-8")?;
        node(&["load", image], Duration::from_secs(300)).map(drop)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = node(&["down"], Duration::from_secs(60)) {
            eprintln!("the node does not go down: {error:#}");
        }
    }
}

/// Makes an image out of `SOURCE=/DEST` words, without those paths of it.
///
/// # Errors
/// A file is missing.
pub fn image(out: &Path, name: &str, files: &[&str], without: &[&str]) -> Result<()> {
    let mut command = Command::new(crate::node::tool("python3", "python3")?);
    command.arg(folder().join("image.py")).arg(out).arg(name).args(files);
    command.args(without.iter().flat_map(|path| ["--exclude", path]));
    let ended = run(&mut command, Duration::from_secs(300))?;
    ensure!(ended.code == 0, "{}", ended.stderr);
    Ok(())
}

/// Makes an image of the program under test, laid out as that of `cargo xtask image`.
///
/// # Errors
/// It has not been built, or needs libraries, which are not in the image.
pub fn agent_image(folder: &Path, name: &str) -> Result<PathBuf> {
    let out = folder.join("cadscope.tar");
    let program = crate::node::cadscope()?;
    let mut headers = Command::new(crate::node::tool("readelf", "binutils")?);
    let headers = run(headers.args(["--program-headers", "--wide"]).arg(&program), Duration::from_secs(60))?;
    ensure!(
        !headers.stdout.contains("INTERP"),
        "{} is not static: `cargo xtask build --release` makes one that is",
        program.display()
    );
    let program = format!("{}=/usr/bin/cadscope", program.display());
    image(&out, name, &["--entrypoint", "/usr/bin/cadscope", &program], &[])?;
    Ok(out)
}

/// Makes the image [`FREECAD`]: the newest FreeCAD's root file system, with the job scripts of this crate in `/jobs`.
///
/// # Errors
/// It has not been made, or the disk is full.
pub fn freecad_image(folder: &Path) -> Result<PathBuf> {
    let build = BUILDS.iter().find(|build| build.name == "freecad-1.1").context("no such build")?;
    let root = format!("{}=/", build.root()?.display());
    let jobs = format!("{}=/jobs", Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs").display());
    let out = folder.join("freecad.tar");
    let heavy = [
        "/usr/share/doc",
        "/usr/share/locale",
        "/usr/share/man",
        "/var/cache",
        "/var/lib/apt",
        "/proc",
        "/dev",
    ];
    image(&out, FREECAD, &[&root, &jobs], &heavy)?;
    Ok(out)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes")
}

fn command(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(folder().join("node"));
    command.args(words).env("CADSCOPE_BUILDS", builds::folder()?);
    Ok(command)
}

fn node(words: &[&str], limit: Duration) -> Result<Ended> {
    let ended = run(&mut command(words)?, limit)?;
    ensure!(ended.code == 0, "node {}: {}\n{}", words.join(" "), ended.stdout, ended.stderr);
    Ok(ended)
}
