//! Turns the path that an operation wrote to into that file, as its worker sees it, and into its size.
//!
//! A worker may be over before its last record is read, and its `/proc/PID/root` with it: its root, working directory and
//! mount namespace (without which a container's volumes are gone) are held while it lives in the table. Paths come from workers: they are resolved below the worker's own root and
//! through no magic link, and only a regular file is looked at.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::discover;
use crate::operation::{Operation, Outcome, Value};

/// Workers whose folders are held; those beyond are looked up when needed.
const MAX_WORKERS: usize = 4096;

/// The folders of live workers.
#[derive(Debug)]
pub struct Written {
    proc: PathBuf,
    folders: HashMap<u32, Folders>,
}

#[derive(Debug)]
struct Folders {
    root: File,
    /// Below `root`.
    working: PathBuf,
    /// Keeps what is mounted below `root`.
    _mounts: Option<File>,
}

impl Written {
    /// Nothing yet; `proc` is the node's procfs.
    #[must_use]
    pub fn new(proc: &Path) -> Self {
        Self { proc: proc.to_owned(), folders: HashMap::new() }
    }

    /// Holds the folders of a worker.
    pub fn hold(&mut self, pid: u32) {
        if self.folders.len() < MAX_WORKERS
            && let Some(folders) = folders_of(&self.proc, pid)
        {
            self.folders.insert(pid, folders);
        }
    }

    /// Lets go of them.
    pub fn release(&mut self, pid: u32) {
        self.folders.remove(&pid);
    }

    /// Adds the size of the file that a successful operation wrote, if its probe wants it.
    pub fn size(&self, operation: &mut Operation) {
        let Some((name, path)) = operation.probe.written_file(&operation.values) else { return };
        if operation.outcome != Outcome::Ok {
            return;
        }
        let bytes = self.open(operation.worker.process.pid, Path::new(path)).and_then(|file| {
            let bytes = file.metadata().ok()?.size();
            i64::try_from(bytes).ok()
        });
        if let Some(bytes) = bytes {
            let name = name.to_owned();
            operation.values.insert(name, Value::Int(bytes));
        }
    }

    /// The regular file at a worker's path.
    #[must_use]
    pub fn open(&self, pid: u32, path: &Path) -> Option<Arc<File>> {
        // The live process knows better where it is now.
        let now = folders_of(&self.proc, pid);
        let folders = now.as_ref().or_else(|| self.folders.get(&pid))?;
        let path = folders.working.join(path);
        discover::open_below_root(&folders.root, &path).map(Arc::new)
    }
}

fn folders_of(proc: &Path, pid: u32) -> Option<Folders> {
    let process = proc.join(pid.to_string());
    let root = File::open(process.join("root")).ok()?;
    // As the kernel shows it to us: below the worker's root, whose own path is taken off.
    let working = std::fs::read_link(process.join("cwd")).ok()?;
    let own_root = std::fs::read_link(process.join("root")).ok()?;
    let working = working.strip_prefix(&own_root).unwrap_or(&working);
    let mounts = File::open(process.join("ns/mnt")).ok();
    Some(Folders { root, working: Path::new("/").join(working), _mounts: mounts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn a_relative_path_is_looked_up_where_the_worker_is() {
        let written = Written::new(Path::new("/proc"));
        let own = std::process::id();
        assert!(written.open(own, Path::new("Cargo.toml")).is_some());
        assert!(written.open(own, Path::new("/etc/passwd")).is_some());
        for none in ["/nowhere", "/dev/null", "/etc", "/proc/self/exe"] {
            assert!(written.open(own, Path::new(none)).is_none(), "{none}");
        }
    }

    #[test]
    fn folders_of_a_worker_that_is_gone_are_still_known() {
        let mut child = std::process::Command::new("sleep").arg("60").current_dir("/etc").spawn().unwrap();
        let mut written = Written::new(Path::new("/proc"));
        written.hold(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(written.open(child.id(), Path::new("passwd")).is_some());
        written.release(child.id());
        assert!(written.open(child.id(), Path::new("passwd")).is_none());
    }

    #[test]
    fn only_what_was_written_has_a_size() {
        let mut probe = samples::probe("io.test", "");
        probe.derived.insert("file_bytes".to_owned(), crate::catalog::Derived::FileBytes("path".to_owned()));
        let worker = samples::worker(std::process::id(), "test");
        let mut operation = samples::operation(&Arc::new(probe), &worker, 0.0, 1.0);
        operation.values.extend([samples::text("path", "/etc/passwd")]);
        let written = Written::new(Path::new("/proc"));
        let failed = Operation { outcome: Outcome::Error, ..operation.clone() };
        for (mut operation, has_size) in [(operation, true), (failed, false)] {
            written.size(&mut operation);
            assert_eq!(operation.values.contains_key("file_bytes"), has_size);
        }
    }
}
