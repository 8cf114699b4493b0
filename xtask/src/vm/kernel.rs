//! Turns Debian's kernel packages into what a guest boots: the kernel and the few modules by which it reaches the root file
//! system of this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::builds::{self, UNPACKED, remove};
use crate::shell::run;

/// A kernel that cadscope is tried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// As it is given on the command line.
    pub(crate) name: &'static str,
    /// The build that holds it.
    pub(crate) build: &'static str,
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
pub(crate) const KERNELS: [Kernel; 4] = [
    Kernel { name: "5.10", build: "linux-5.10", everyday: true, refused: true, multi: false, v1: true },
    Kernel { name: "6.1", build: "linux-6.1", everyday: true, refused: false, multi: false, v1: true },
    Kernel { name: "6.12", build: "linux-6.12", everyday: false, refused: false, multi: true, v1: false },
    Kernel { name: "7", build: "linux-7", everyday: false, refused: false, multi: true, v1: false },
];

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
    fs::create_dir_all(partial.join("modules"))?;
    let files = files_below(&root)?;
    let image = files.iter().find(|path| named(path, "vmlinuz")).context("the package has no kernel")?;
    fs::copy(image, partial.join("vmlinuz"))?;
    for (number, module) in MODULES.iter().enumerate() {
        let wanted = format!("{module}.ko");
        if let Some(file) = files.iter().find(|path| named(path, &wanted)) {
            fs::copy(file, partial.join(format!("modules/{number}-{wanted}")))?;
        }
    }
    remove(&root)?;
    Ok(fs::rename(&partial, target)?)
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
    /// Where it is unpacked.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        Ok(builds::folder()?.join(self.build))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_told_by_their_whole_name() {
        assert!(named(Path::new("a/virtio.ko"), "virtio.ko") && named(Path::new("9p.ko.xz"), "9p.ko"));
        assert!(!named(Path::new("a/9pnet.ko"), "9p.ko") && !named(Path::new("virtio_pci.ko"), "virtio.ko"));
        assert!(named(Path::new("boot/vmlinuz-6.1.0-56-amd64"), "vmlinuz"));
    }
}
