//! Turns Debian's sources of Kubernetes into the programs of a node, and runs such a node: real pods for tests.
//!
//! The node itself is the script `tests/kubernetes/node`, which the tests run too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::builds::{self, remove};
use crate::places::repository;
use crate::setup::{self, Purpose};
use crate::shell::run;

/// A root file system with Kubernetes 1.20.2's sources and a compiler of its time: built with Go 1.19, the apiserver
/// crashes. Its suite lists the sources and does not have all of them any more: the next one has, and an etcd that need
/// not write through to the disk.
pub(crate) const ROOT: &[&str] = &[
    "--variant=apt",
    "--architectures=amd64",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--aptopt=Acquire::Check-Valid-Until \"false\"",
    "--include=ca-certificates,golang-1.15-go,golang-1.15-src,make,gcc,libc6-dev,rsync,busybox-static",
    "--customize-hook=chroot \"$1\" sh -ec 'cd /etc/apt; \
     sed -n \"1s/^deb \\(.*\\) bullseye main/deb \\1 bookworm main\\ndeb-src \\1 bookworm main/p\" sources.list \
     >sources.list.d/next.list; apt-get -q update; mkdir /build; cd /build; \
     apt-get -q source --download-only kubernetes; apt-get -q download etcd-server/bookworm'",
    "bullseye",
];

/// Compiles them in that root file system.
pub(crate) const PROGRAMS: &str = r#"
cd /build
tar xzf kubernetes_*.orig.tar.gz
cd kubernetes-*
export HOME=/build/home GOROOT=/usr/lib/go-1.15 PATH=/usr/lib/go-1.15/bin:/usr/bin:/bin CGO_ENABLED=0 GOPROXY=off
export KUBE_GIT_VERSION=v1.20.2 KUBE_GIT_COMMIT=0 KUBE_GIT_TREE_STATE=archive KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20
export SOURCE_DATE_EPOCH=1610000000
make WHAT="cmd/kube-apiserver cmd/kubelet cmd/kube-scheduler cmd/kube-controller-manager cmd/kubectl"
gcc -Os -static -o /build/pause /build/pause.c
mkdir /build/bin
mv _output/local/bin/linux/amd64/kube* /build/pause /build/bin
dpkg -x /build/etcd-server_*.deb /build/etcd
cp /build/etcd/usr/bin/etcd "$(command -v busybox)" /build/bin
"#;

/// Makes the programs of a node; a few minutes, and 3 GB while it does.
pub(crate) fn build(target: &Path) -> Result<()> {
    let (root, partial) = (target.with_extension("root"), target.with_extension("partial"));
    remove(&root)?;
    remove(&partial)?;
    run(Command::new("mmdebstrap").args(ROOT).arg(&root))?;
    fs::write(root.join("build/build"), PROGRAMS)?;
    fs::copy(folder()?.join("pause.c"), root.join("build/pause.c"))?;
    let chroot = "mount -t proc proc \"$1/proc\"; exec chroot \"$1\" /usr/bin/env -i PATH=/usr/bin:/bin sh -e /build/build";
    let mut compile = Command::new("unshare");
    run(compile.args(["--mount", "--propagation", "private", "sh", "-ec", chroot, "sh"]).arg(&root))?;
    fs::rename(root.join("build/bin"), &partial)?;
    remove(&root)?;
    Ok(fs::rename(&partial, target)?)
}

/// Has the node do something; makes what it needs before it comes up.
pub(crate) fn node(words: &[String]) -> Result<()> {
    if words.first().is_some_and(|word| word == "image") {
        return run(Command::new("python3").arg(folder()?.join("image.py")).args(words.iter().skip(1)));
    }
    if words.first().is_some_and(|word| word == "up") {
        setup::install(Purpose::Node)?;
        builds::make(&["kubernetes".to_owned()])?;
    }
    // Not by `run`: what kubectl answers may be read by another program.
    let mut node = Command::new(folder()?.join("node"));
    let status = node.args(words).env("CADSCOPE_BUILDS", builds::folder()?).status()?;
    ensure!(status.success(), "k8s {}: {status}", words.join(" "));
    Ok(())
}

fn folder() -> Result<PathBuf> {
    Ok(repository()?.join("tests/kubernetes"))
}
