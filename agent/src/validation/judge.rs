//! Turns an export and what was loaded before it into a verdict: the thread's side, which reads files.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, SystemTime};

use cadscope_common::record::ProcessKey;
use tracing::info;

use super::store::Store;
use super::{Export, Message, Verdict, What};
use crate::clock::WallClock;
use crate::config::ValidationConfig;
use crate::digest::{Digest, Format, of_file, of_parts};
use crate::inputs::{self, Argument, Inputs, OpenFile, Start};

/// Files that one process has loaded.
const MAX_LOADED: usize = 1024;
/// A file's time of change is as fine as the kernel's clock tick, and may be another machine's.
const TOLERANCE: Duration = Duration::from_millis(10);

/// What a process has loaded, and when; `None` where that is not known.
type Loaded = Option<Vec<(u64, Digest)>>;

/// The thread's side.
pub(super) struct Judge {
    most_bytes: u64,
    store: Store,
    say: Sender<Verdict>,
    epoch: u64,
    loaded: HashMap<ProcessKey, Loaded>,
}

impl Judge {
    pub(super) fn new(config: &ValidationConfig, store: Store, say: Sender<Verdict>) -> Self {
        Self { most_bytes: config.most_bytes, store, say, epoch: 0, loaded: HashMap::new() }
    }

    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(message) = messages.recv() {
            let verdict = self.take(message);
            if verdict.is_some_and(|verdict| self.say.send(verdict).is_err()) {
                return;
            }
        }
    }

    pub(super) fn take(&mut self, message: Message) -> Option<Verdict> {
        // Something was dropped: what belongs to whom is not known of those that were there before.
        if message.epoch > self.epoch {
            self.epoch = message.epoch;
            self.loaded.clear();
        }
        let is_known = message.since == self.epoch;
        match message.what {
            What::Loaded(file, at_ns) => {
                let digest = file.filter(|_| is_known).and_then(|file| self.loaded_digest(&file));
                self.note_loaded(message.process, at_ns, digest);
                None
            }
            What::Exported(export) if is_known => Some(self.judge(message.process, &export)),
            What::Exported(_) => Some(Verdict::Not("busy")),
            What::Ended => {
                self.loaded.remove(&message.process);
                None
            }
        }
    }

    fn note_loaded(&mut self, process: ProcessKey, at_ns: u64, digest: Option<Digest>) {
        let loaded = self.loaded.entry(process).or_insert_with(|| Some(Vec::new()));
        match (loaded.as_mut(), digest) {
            (Some(list), Some(digest)) if list.len() < MAX_LOADED => list.push((at_ns, digest)),
            _ => *loaded = None,
        }
    }

    fn loaded_digest(&self, file: &OpenFile) -> Option<Digest> {
        let name = file.path.extension().unwrap_or_default().to_string_lossy().into_owned();
        self.digest(&file.file, Format::named(&name)).ok()
    }

    fn judge(&mut self, process: ProcessKey, export: &Export) -> Verdict {
        match self.compare(process, export) {
            Ok(Some(same)) => {
                if !same {
                    let worker = &export.worker;
                    let (pid, program, job) = (worker.process.pid, &worker.program, &worker.job.id);
                    let (path, format) = (export.file.path.display(), &export.format);
                    info!(pid, program, job, %path, format, "an export differs from the earlier one of the same inputs");
                }
                Verdict::Compared { worker: Arc::clone(&export.worker), format: export.format.clone(), same }
            }
            Ok(None) => Verdict::Not("first"),
            Err(reason) => Verdict::Not(reason),
        }
    }

    /// Whether it is what it was before; `None` if it is the first.
    fn compare(&mut self, process: ProcessKey, export: &Export) -> Result<Option<bool>, &'static str> {
        let Export { worker, file, format, number, ended_ns } = export;
        let start = file.start.as_ref().ok_or("inputs_unknown")?;
        let loaded = match self.loaded.get(&process) {
            None => Vec::new(),
            Some(None) => return Err("inputs_unknown"),
            Some(Some(loaded)) => {
                loaded.iter().filter(|(at_ns, _)| at_ns <= ended_ns).map(|(_, digest)| *digest).collect()
            }
        };
        let clock = WallClock::of_this_machine();
        let arguments = self.arguments(start, export, clock.at(start.executed_ns))?;
        let name = Inputs {
            versions: [&worker.freecad_version, &worker.occt_version],
            flow_type: &worker.flow_type,
            job: &worker.job,
            program: &worker.program,
            arguments: &arguments,
            loaded: &loaded,
            format,
            path: &file.path,
            number: *number,
        }
        .name();
        let mut digest = self.exported(&file.file, Format::named(format), clock.at(*ended_ns))?;
        if let Some(beside) = &file.beside {
            let other = self.exported(beside, Format::Raw, clock.at(*ended_ns))?;
            digest = of_parts([digest.0.as_slice(), &other.0]);
        }
        Ok(self.store.put(name, digest).map(|before| before == digest))
    }

    /// The command line behind the program. The first file that it names is the script; others that were changed since the
    /// worker began are taken to be what it writes.
    fn arguments(
        &self,
        start: &Start,
        export: &Export,
        executed: SystemTime,
    ) -> Result<Vec<Argument>, &'static str> {
        let script = start.files.keys().next().ok_or("inputs_unknown")?;
        let job = &export.worker.job;
        let mut arguments = Vec::new();
        for (index, text) in start.arguments.iter().enumerate().skip(1) {
            let file = match start.files.get(&index) {
                Some(file) if !was_changed_after(file, executed)? => Some(file),
                Some(_) if index == *script => return Err("inputs_changed"),
                _ => None,
            };
            let is_exported = inputs::below(&start.folder, Path::new(text)) == export.file.path;
            arguments.push(match file.filter(|_| !is_exported) {
                Some(file) => {
                    let extension = text.rsplit('.').next().unwrap_or_default();
                    Argument::File(self.digest(file, Format::named(extension))?)
                }
                None => inputs::argument(text, &start.folder, &export.file.path, job),
            });
        }
        Ok(arguments)
    }

    /// The digest of a file that was written before this time.
    fn exported(&self, file: &File, format: Format, at: SystemTime) -> Result<Digest, &'static str> {
        if was_changed_after(file, at)? {
            return Err("file_changed");
        }
        self.digest(file, format)
    }

    fn digest(&self, file: &File, format: Format) -> Result<Digest, &'static str> {
        let about = |file: &File| {
            let metadata = file.metadata().map_err(|_| "file_unreadable")?;
            let changed = metadata.modified().map_err(|_| "file_unreadable")?;
            Ok::<_, &'static str>((metadata.dev(), metadata.ino(), metadata.size(), changed))
        };
        let before = about(file)?;
        if before.2 > self.most_bytes {
            return Err("file_too_large");
        }
        let digest = of_file(file, format).map_err(|_| "file_unreadable")?;
        if about(file)? != before {
            return Err("file_changed");
        }
        Ok(digest)
    }
}

fn was_changed_after(file: &File, at: SystemTime) -> Result<bool, &'static str> {
    let changed = file.metadata().and_then(|metadata| metadata.modified()).map_err(|_| "file_unreadable")?;
    Ok(changed > at + TOLERANCE)
}
