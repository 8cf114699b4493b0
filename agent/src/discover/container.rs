//! Turns a live process into the container that it runs in: its cgroup, and the bundle that its container's monitor
//! (containerd's shim, conmon) knows. Nothing is asked of the runtime.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::{parent_of, read_below_root};
use crate::container::Container;

/// Ancestors between a process and its container's monitor.
const MAX_ANCESTORS: usize = 64;
const BUNDLE_BYTES: u64 = 4 << 20;
/// Where the bundles lie if the monitor does not say: containerd's, CRI-O's and podman's.
const BUNDLES: [&str; 2] =
    ["run/containerd/io.containerd.runtime.v2.task/k8s.io", "run/containers/storage/overlay-containers"];

/// Containers whose names are remembered.
const MAX_CONTAINERS: usize = 4096;

/// The containers that are known, by id.
#[derive(Debug, Default)]
pub struct Containers(HashMap<String, Arc<Container>>);

impl Containers {
    /// The container of a process.
    pub fn of(&mut self, proc: &Path, pid: u32) -> Arc<Container> {
        let Some(container) = cgroup_of(proc, pid) else { return Arc::default() };
        if let Some(known) = self.0.get(&container.id) {
            return Arc::clone(known);
        }
        let found = Arc::new(container_of(proc, pid));
        // Without a name, the process may have been gone too early: the next one is asked again.
        if !found.name.is_empty() {
            if self.0.len() >= MAX_CONTAINERS {
                self.0.clear();
            }
            self.0.insert(found.id.clone(), Arc::clone(&found));
        }
        found
    }
}

/// The container of a process; empty outside of containers, without names where the bundle cannot be read.
#[must_use]
pub fn container_of(proc: &Path, pid: u32) -> Container {
    let Some(container) = cgroup_of(proc, pid) else { return Container::default() };
    let mut monitor = pid;
    for _ in 0..MAX_ANCESTORS {
        let Some(parent) = parent_of(proc, monitor) else { break };
        monitor = parent;
        if cgroup_of(proc, monitor).is_none_or(|outside| outside.id != container.id) {
            return named_by(proc, monitor, container);
        }
    }
    container
}

fn named_by(proc: &Path, monitor: u32, container: Container) -> Container {
    let arguments = command_of(proc, monitor);
    let program = arguments.first().and_then(|program| program.rsplit('/').next()).unwrap_or_default();
    if program.starts_with("conmon") {
        let (container, bundle) = container.with_monitor(&arguments);
        return match bundle.and_then(|bundle| read_bundle(proc, monitor, Path::new(&bundle))) {
            Some(config) => container.with_bundle_names(&config),
            None => container,
        };
    }
    // A shim serves all containers of its pod, from the bundle of the first: the others' lie beside it.
    let beside = (program.starts_with("containerd-shim"))
        .then(|| std::fs::read_link(proc.join(monitor.to_string()).join("cwd")).ok())
        .flatten()
        .and_then(|bundle| Some(bundle.parent()?.join(&container.id)));
    let config = beside.and_then(|bundle| read_bundle(proc, monitor, &bundle)).or_else(|| {
        BUNDLES.iter().find_map(|folder| {
            let folder = Path::new(folder).join(&container.id);
            read_bundle(proc, 1, &folder).or_else(|| read_bundle(proc, 1, &folder.join("userdata")))
        })
    });
    match config {
        Some(config) => container.with_bundle(&config),
        None => container,
    }
}

fn read_bundle(proc: &Path, pid: u32, bundle: &Path) -> Option<Vec<u8>> {
    let path = bundle.join("config.json");
    read_below_root(proc, pid, path.strip_prefix("/").unwrap_or(&path), BUNDLE_BYTES)
}

fn cgroup_of(proc: &Path, pid: u32) -> Option<Container> {
    Container::from_cgroups(&std::fs::read_to_string(proc.join(pid.to_string()).join("cgroup")).ok()?)
}

/// Whether a process is in the middle of an exec, which maps its program before it has a command and an environment. What is
/// dead, or has emptied its command, has none either.
#[must_use]
pub fn has_no_command_yet(proc: &Path, pid: u32) -> bool {
    std::fs::read(proc.join(pid.to_string()).join("cmdline")).is_ok_and(|bytes| bytes.is_empty())
}

/// The command line of a process; empty if it is gone.
#[must_use]
pub fn command_of(proc: &Path, pid: u32) -> Vec<String> {
    let bytes = std::fs::read(proc.join(pid.to_string()).join("cmdline")).unwrap_or_default();
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    bytes.split(|byte| *byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}
