//! Turns Debian's kernel packages into what a guest boots: the kernel and the few modules by which it reaches the root file
//! system of this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::builds::{self, ARM64_UNPACKED, UNPACKED, remove};
use crate::shell::run;

/// The processor of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cpu {
    X86_64,
    Arm64,
}

/// A kernel that cadscope is tried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// As it is given on the command line.
    pub(crate) name: &'static str,
    /// The build that holds it.
    pub(crate) build: &'static str,
    pub(crate) cpu: Cpu,
    /// Part of `cargo xtask test`.
    pub(crate) everyday: bool,
    /// It is too old, and is to be refused.
    pub(crate) refused: bool,
    /// It has uprobe_multi; perf events are tried beside.
    pub(crate) multi: bool,
    /// It has the memory controller of cgroup v1.
    pub(crate) v1: bool,
}

/// From the oldest.
pub(crate) const KERNELS: [Kernel; 5] = [
    Kernel { refused: true, v1: true, ..x86("5.10", "linux-5.10", true) },
    Kernel { v1: true, ..x86("6.1", "linux-6.1", true) },
    Kernel { multi: true, ..x86("6.12", "linux-6.12", false) },
    Kernel { multi: true, ..x86("7", "linux-7", false) },
    Kernel { cpu: Cpu::Arm64, multi: true, ..x86("arm64", "linux-arm64", false) },
];

const fn x86(name: &'static str, build: &'static str, everyday: bool) -> Kernel {
    Kernel { name, build, cpu: Cpu::X86_64, everyday, refused: false, multi: false, v1: false }
}

/// What releases of Debian's kernels for arm64 end with.
const ARM64_RELEASE: &str = "-arm64";

/// Modules between a kernel and a file system of its host; not every kernel has each as a module.
pub(crate) const MODULES: [&str; 10] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "netfs",
    "fscache",
    "9pnet",
    "9pnet_virtio",
    "9p",
];

/// Unpacks the kernel of the first of these Debian suites that can be had: the index of one that moves may name files that
/// are gone.
pub(crate) fn unpack(suites: &[&str], target: &Path) -> Result<()> {
    let (root, partial) = (target.with_extension("root"), target.with_extension("partial"));
    remove(&partial)?;
    let got = suites.iter().any(|suite| {
        let mut bootstrap = Command::new("mmdebstrap");
        bootstrap.args(UNPACKED).args(["--include=linux-image-amd64", suite]).arg(&root);
        remove(&root).is_ok() && run(&mut bootstrap).is_ok()
    });
    if !got {
        bail!("no kernel package of {} could be had", suites.join(" or "));
    }
    take(&root, &partial)?;
    remove(&root)?;
    Ok(fs::rename(&partial, target)?)
}

/// What a machine for arm64 has beside its kernel: what a worker in C++ needs.
pub(crate) const ARM64_PACKAGES: [&str; 6] =
    ["linux-image-arm64", "busybox-static", "dash", "coreutils", "util-linux", "libstdc++6"];

/// The kernel of this Debian suite for arm64, and in `root` a root file system: that of this machine has another processor's
/// programs.
pub(crate) fn unpack_arm64(suite: &str, target: &Path) -> Result<()> {
    let (root, partial) = (target.with_extension("root"), target.with_extension("partial"));
    remove(&root)?;
    remove(&partial)?;
    let include = format!("--include={}", ARM64_PACKAGES.join(","));
    run(Command::new("mmdebstrap").args(ARM64_UNPACKED).args([&include, suite]).arg(&root))?;
    take(&root, &partial)?;
    remove(&root.join("usr/lib/modules"))?;
    remove(&root.join("boot"))?;
    for folder in ["bin", "lib", "sbin"] {
        if !root.join(folder).exists() {
            std::os::unix::fs::symlink(format!("usr/{folder}"), root.join(folder))?;
        }
    }
    for folder in ["dev", "proc", "root", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::rename(&root, partial.join("root"))?;
    Ok(fs::rename(&partial, target)?)
}

/// Copies kernel and modules out of an unpacked package.
fn take(root: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.join("modules"))?;
    let files = files_below(root)?;
    let image = files.iter().find(|path| named(path, "vmlinuz")).context("the package has no kernel")?;
    fs::copy(image, to.join("vmlinuz"))?;
    for (number, module) in MODULES.iter().enumerate() {
        let wanted = format!("{module}.ko");
        if let Some(file) = files.iter().find(|path| named(path, &wanted)) {
            fs::copy(file, to.join(format!("modules/{number}-{wanted}")))?;
        }
    }
    Ok(())
}

/// `vmlinuz-6.1.0-56-amd64` is named vmlinuz, `9p.ko.xz` is named 9p.ko.
fn named(path: &Path, name: &str) -> bool {
    let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
    file.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

impl Kernel {
    /// Whether a guest with this `uname -r` has it.
    pub(crate) fn has_release(&self, release: &str) -> bool {
        match self.cpu {
            Cpu::X86_64 => {
                release.starts_with(&format!("{}.", self.name)) && !release.ends_with(ARM64_RELEASE)
            }
            Cpu::Arm64 => release.ends_with(ARM64_RELEASE),
        }
    }

    /// Where it is unpacked.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        Ok(builds::folder()?.join(self.build))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_of_one_kernel() {
        for (release, name) in
            [("6.12.118+deb13-amd64", "6.12"), ("6.12.118+deb13", "6.12"), ("6.1.0-56", "6.1")]
        {
            let known: Vec<_> = KERNELS.iter().filter(|kernel| kernel.has_release(release)).collect();
            assert!(matches!(known[..], [kernel] if kernel.name == name), "{release}");
        }
        let known: Vec<_> =
            KERNELS.iter().filter(|kernel| kernel.has_release("6.12.118+deb13-arm64")).collect();
        assert!(matches!(known[..], [kernel] if kernel.cpu == Cpu::Arm64));
    }

    #[test]
    fn modules_are_told_by_their_whole_name() {
        assert!(named(Path::new("a/virtio.ko"), "virtio.ko") && named(Path::new("9p.ko.xz"), "9p.ko"));
        assert!(!named(Path::new("a/9pnet.ko"), "9p.ko") && !named(Path::new("virtio_pci.ko"), "virtio.ko"));
        assert!(named(Path::new("boot/vmlinuz-6.1.0-56-amd64"), "vmlinuz"));
    }
}
