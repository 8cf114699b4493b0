//! Turns the path that an operation wrote to or read from into that file, as its worker sees it, and into its size.
//!
//! A worker may be over before its last record is read, and its `/proc/PID/root` with it: its root, working directory and
//! mount namespace (without which a container's volumes are gone) are held while it lives in the table, and so are the
//! files that its arguments name, where exports are validated. Paths come from workers: they are resolved below the
//! worker's own root and through no magic link, and only a regular file is looked at.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::discover::{self, Rights};
use crate::inputs::{OpenFile, Start, Touched, below};
use crate::operation::{Operation, Outcome, Value};

/// Workers whose folders are held; those beyond are looked up when needed.
const MAX_WORKERS: usize = 4096;
/// Arguments of a worker that are looked at, and those of them that may name a file.
const MAX_ARGUMENTS: usize = 64;
const MAX_FILES: usize = 4;
/// Workers whose arguments' files are held.
const MAX_STARTS: usize = 256;

/// The folders of live workers.
#[derive(Debug)]
pub struct Written {
    proc: PathBuf,
    /// Files are opened for whoever comes after: exports are validated.
    keep_files: bool,
    folders: HashMap<u32, Folders>,
    open: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Folders {
    root: File,
    rights: Rights,
    /// Below `root`.
    working: PathBuf,
    /// Keeps what is mounted below `root`.
    _mounts: Option<File>,
    start: Option<Arc<Start>>,
}

impl Written {
    /// Nothing yet; `proc` is the node's procfs.
    #[must_use]
    pub fn new(proc: &Path, keep_files: bool) -> Self {
        Self { proc: proc.to_owned(), keep_files, folders: HashMap::new(), open: Arc::default() }
    }

    /// Holds the folders of a worker; of one whose start was seen, also what it was started with.
    pub fn hold(&mut self, pid: u32, executed_ns: Option<u64>) {
        if self.folders.len() < MAX_WORKERS
            && let Some(mut folders) = folders_of(&self.proc, pid)
        {
            let executed_ns = executed_ns.filter(|_| self.keep_files && self.folders.len() < MAX_STARTS);
            folders.start =
                executed_ns.map(|executed_ns| Arc::new(self.start_of(pid, &folders, executed_ns)));
            self.folders.insert(pid, folders);
        }
    }

    fn start_of(&self, pid: u32, folders: &Folders, executed_ns: u64) -> Start {
        let mut arguments = discover::command_of(&self.proc, pid);
        arguments.truncate(MAX_ARGUMENTS);
        let candidates = arguments.iter().enumerate().skip(1).filter(|(_, text)| !text.starts_with('-'));
        let files: BTreeMap<usize, File> = candidates
            .filter_map(|(index, text)| {
                Some((
                    index,
                    discover::open_for(
                        &folders.rights,
                        &folders.root,
                        &below(&folders.working, Path::new(text)),
                    )?,
                ))
            })
            .take(MAX_FILES)
            .collect();
        Start { arguments, files, folder: folders.working.clone(), executed_ns }
    }

    /// Lets go of them.
    pub fn release(&mut self, pid: u32) {
        self.folders.remove(&pid);
    }

    /// Adds what is wanted of the file that an operation wrote or read: its size, the file itself.
    pub fn look(&self, operation: &mut Operation) {
        let pid = operation.worker.process.pid;
        if let Some((name, path)) = operation.probe.written_file(&operation.values) {
            if operation.outcome != Outcome::Ok {
                return;
            }
            let file = self.open(pid, Path::new(path));
            let bytes = file.as_ref().and_then(|file| i64::try_from(file.file.metadata().ok()?.size()).ok());
            let name = Arc::from(name);
            operation.file = self.keep_files.then(|| self.keep(file));
            if let Some(bytes) = bytes {
                operation.values.insert(name, Value::Int(bytes));
            }
        } else if self.keep_files
            && let Some(path) = operation.probe.read_file(&operation.values)
        {
            operation.file = Some(self.keep(self.open(pid, Path::new(path))));
        }
    }

    fn keep(&self, found: Option<Found>) -> Touched {
        let Some(Found { file, beside, path, start }) = found else { return Touched::Missed("file_gone") };
        match OpenFile::new(file, beside, path, start, &self.open) {
            Some(file) => Touched::Open(Arc::new(file)),
            None => Touched::Missed("busy"),
        }
    }

    /// The regular file at a worker's path.
    fn open(&self, pid: u32, path: &Path) -> Option<Found> {
        // The live process knows better where it is now.
        let now = folders_of(&self.proc, pid);
        let held = self.folders.get(&pid);
        let folders = now.as_ref().or(held)?;
        let path = folders.working.join(path);
        let file = discover::open_for(&folders.rights, &folders.root, &path)?;
        // The buffers of a glTF scene.
        let beside = (self.keep_files && path.extension().is_some_and(|name| name == "gltf"))
            .then(|| discover::open_for(&folders.rights, &folders.root, &path.with_extension("bin")))
            .flatten();
        let start = held.and_then(|held| held.start.clone());
        Some(Found { file, beside, path: below(Path::new("/"), &path), start })
    }
}

struct Found {
    file: File,
    beside: Option<File>,
    path: PathBuf,
    start: Option<Arc<Start>>,
}

fn folders_of(proc: &Path, pid: u32) -> Option<Folders> {
    let process = proc.join(pid.to_string());
    let root = File::open(process.join("root")).ok()?;
    // As the kernel shows it to us: below the worker's root, whose own path is taken off.
    let working = std::fs::read_link(process.join("cwd")).ok()?;
    let own_root = std::fs::read_link(process.join("root")).ok()?;
    let working = working.strip_prefix(&own_root).unwrap_or(&working);
    let mounts = File::open(process.join("ns/mnt")).ok();
    let rights = Rights::of(proc, pid)?;
    Some(Folders { root, rights, working: Path::new("/").join(working), _mounts: mounts, start: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn a_relative_path_is_looked_up_where_the_worker_is() {
        let written = Written::new(Path::new("/proc"), true);
        let own = std::process::id();
        let found = written.open(own, Path::new("src/../Cargo.toml")).unwrap();
        assert_eq!(found.path, std::env::current_dir().unwrap().join("Cargo.toml"));
        assert!(written.open(own, Path::new("/etc/passwd")).is_some());
        for none in ["/nowhere", "/dev/null", "/etc", "/proc/self/exe"] {
            assert!(written.open(own, Path::new(none)).is_none(), "{none}");
        }
    }

    #[test]
    fn folders_of_a_worker_that_is_gone_are_still_known() {
        let mut child = std::process::Command::new("sleep").arg("60").current_dir("/etc").spawn().unwrap();
        let mut written = Written::new(Path::new("/proc"), false);
        written.hold(child.id(), None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(written.open(child.id(), Path::new("passwd")).is_some());
        written.release(child.id());
        assert!(written.open(child.id(), Path::new("passwd")).is_none());
    }

    #[test]
    fn a_worker_was_started_with_the_files_that_its_arguments_name() {
        let mut command = std::process::Command::new("sh");
        let mut child =
            command.args(["-c", "sleep 60; true", "passwd", "-x"]).current_dir("/etc").spawn().unwrap();
        let mut written = Written::new(Path::new("/proc"), true);
        // Between fork and exec the child has the test's own command line.
        while discover::command_of(Path::new("/proc"), child.id()).first().is_none_or(|name| name != "sh") {
            std::thread::yield_now();
        }
        written.hold(child.id(), Some(7));
        let found = written.open(child.id(), Path::new("passwd")).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let start = found.start.unwrap();
        assert_eq!(start.arguments, ["sh", "-c", "sleep 60; true", "passwd", "-x"]);
        assert_eq!((start.files.keys().copied().collect::<Vec<_>>(), start.executed_ns), (vec![3], 7));
        assert_eq!(start.folder, Path::new("/etc"));
    }

    #[test]
    fn only_what_was_written_has_a_size() {
        let mut probe = samples::probe("io.test", "");
        probe.derived.insert("file_bytes".into(), crate::catalog::Derived::FileBytes("path".to_owned()));
        let worker = samples::worker(std::process::id(), "test");
        let mut operation = samples::operation(&Arc::new(probe), &worker, 0.0, 1.0);
        operation.values.extend([samples::text("path", "/etc/passwd")]);
        let failed = Operation { outcome: Outcome::Error, ..operation.clone() };
        for keep_files in [false, true] {
            let written = Written::new(Path::new("/proc"), keep_files);
            for (mut operation, has_size) in [(operation.clone(), true), (failed.clone(), false)] {
                written.look(&mut operation);
                assert_eq!(operation.values.get("file_bytes").is_some(), has_size);
                assert_eq!(operation.file.is_some(), has_size && keep_files);
            }
        }
    }

    #[test]
    fn the_file_that_was_read_is_opened_only_for_who_wants_it() {
        let mut probe = samples::probe("io.test", "");
        probe.group = Some("load".to_owned());
        probe.attributes.insert("file.path".to_owned(), "path".to_owned());
        let worker = samples::worker(std::process::id(), "test");
        let mut operation = samples::operation(&Arc::new(probe), &worker, 0.0, 1.0);
        for (path, keep_files, wanted) in
            [("/etc/passwd", false, None), ("/etc/passwd", true, Some(true)), ("/nowhere", true, Some(false))]
        {
            operation.values.extend([samples::text("path", path)]);
            operation.file = None;
            Written::new(Path::new("/proc"), keep_files).look(&mut operation);
            assert_eq!(operation.file.as_ref().map(|file| matches!(file, Touched::Open(_))), wanted);
        }
    }
}
