//! Turns the checkout into the agent's container image, from Debian packages and crates alone.
//!
//! `deploy/image/Containerfile` is what any builder takes; here buildah does, from a base that mmdebstrap makes, so that
//! no image registry is needed.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::places::{cache, repository, target_dir};
use crate::setup::{self, Purpose};
use crate::shell::{first_line, headline, minutes, run};
use crate::toolchain::cargo_home;

/// Machine that an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Machine {
    /// x86-64
    Amd64,
    /// 64-bit ARM, compiled on this machine
    Arm64,
}

const BASE: &str = "localhost/debian:bookworm";
const TOOLS: &str = "localhost/cadscope-tools:bookworm";
const NAME: &str = "localhost/cadscope";

/// Builds the image and saves it as target/image/cadscope-MACHINE.tar.
pub(crate) fn image(machine: Machine) -> Result<PathBuf> {
    setup::install(Purpose::Package)?;
    let begin = Instant::now();
    if first_line(buildah()?.args(["inspect", "--type", "image", BASE])).is_none() {
        base()?;
    }
    let root = repository()?;
    let machine = match machine {
        Machine::Amd64 => "amd64",
        Machine::Arm64 => "arm64",
    };
    let revision = first_line(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(&root));
    let name = format!("{NAME}:{}", env!("CARGO_PKG_VERSION"));
    headline(&format!("image {name} for {machine}"));
    let build = || -> Result<Command> {
        let mut build = buildah()?;
        build.current_dir(&root).args(["bud", "--isolation=chroot", "--network=host", "--layers"]);
        // What this machine has fetched and trusts already; neither gets into the image.
        build.arg(format!("--volume={}:/root/.cargo/registry", registry()?.display()));
        build.arg("--volume=/etc/ssl/certs:/etc/ssl/certs:ro");
        build.arg(format!("--build-arg=BASE={BASE}"));
        build.arg(format!("--build-arg=TARGETARCH={machine}"));
        build.arg(format!("--build-arg=VERSION={}", env!("CARGO_PKG_VERSION")));
        build.arg(format!("--build-arg=REVISION={}", revision.as_deref().unwrap_or("unknown")));
        build.args([
            "--ignorefile=deploy/image/Containerfile.dockerignore",
            "--file=deploy/image/Containerfile",
        ]);
        Ok(build)
    };
    // The compilers have a name, so that they stay when the layers of this checkout go.
    run(build()?.args(["--target", "tools", "--tag", TOOLS, "."]))?;
    run(build()?.args(["--arch", machine, "--tag", &name, "."]))?;
    let archive = archive(machine)?;
    let _ = std::fs::remove_file(&archive);
    run(buildah()?.args(["push", &name]).arg(format!("oci-archive:{}:{name}", archive.display())))?;
    run(buildah()?.args(["rmi", "--prune"]))?;
    let bytes = std::fs::metadata(&archive)?.len();
    println!(
        "{} ({}.{} MB) in {}",
        archive.display(),
        bytes / 1_000_000,
        bytes / 100_000 % 10,
        minutes(begin.elapsed())
    );
    Ok(archive)
}

/// Where the image of a machine is saved.
fn archive(machine: &str) -> Result<PathBuf> {
    let folder = target_dir()?.join("image");
    std::fs::create_dir_all(&folder)?;
    Ok(folder.join(format!("cadscope-{machine}.tar")))
}

/// Debian as its packages make it.
fn base() -> Result<()> {
    headline(&format!("base image {BASE}"));
    let tar = cache()?.join("debian-bookworm.tar");
    run(Command::new("mmdebstrap")
        .args(["--variant=minbase", "--include=ca-certificates", "bookworm"])
        .arg(&tar))?;
    let container = first_line(buildah()?.args(["from", "scratch"])).context("buildah makes no container")?;
    run(buildah()?.args(["add", &container]).arg(&tar).arg("/"))?;
    run(buildah()?.args(["commit", "--rm", &container, BASE]))?;
    Ok(std::fs::remove_file(&tar)?)
}

/// buildah with a storage of our own.
fn buildah() -> Result<Command> {
    let folder = cache()?.join("containers");
    std::fs::create_dir_all(&folder)?;
    let mut buildah = Command::new("buildah");
    buildah.arg("--root").arg(folder.join("storage")).arg("--runroot").arg(folder.join("run"));
    Ok(buildah)
}

/// Where cargo keeps what it has downloaded, made if it is not there.
fn registry() -> Result<PathBuf> {
    let registry = cargo_home().context("neither CARGO_HOME nor a home directory is set")?.join("registry");
    std::fs::create_dir_all(&registry)?;
    Ok(registry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_compiled_with_the_linker_that_setup_installs() {
        let text = std::fs::read_to_string(repository().unwrap().join("deploy/image/Containerfile")).unwrap();
        let version = setup::crate_version("bpf-linker").unwrap();
        assert!(text.contains(&format!("bpf-linker --version {version} ")), "{version}");
    }
}
