//! Turns planned files into placed probes: one set of links per file, whoever maps it, for as long as anybody does.
//!
//! Owns the table of files and the numbers of the probe programs. A file is looked at once; when no worker has mapped
//! it for a while (`linger`), its probes are taken away and the file is closed; one that returns is looked at anew.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::budget::Measure;
use crate::catalog::Catalog;
use crate::discover::{FileId, Mapping, identity, open_mapped};
use crate::identify;
use crate::kernel::Kernel;
use crate::kernel::mapped_file::MappedFile;
use crate::plan::{Survey, Versions, survey, tls};

use self::changes::{Changes, Stamp};
use self::closing::Closing;
use self::translated::Translators;

mod changes;
mod closing;
mod file;
mod limit;
mod slots;
mod translated;
mod versions;

pub use self::file::{FileError, Placed, PlacedProbe, Seen, TrackedFile};
pub use self::slots::Slot;

/// Files that are remembered as uninteresting; the memory starts anew beyond.
const MAX_PLAIN: usize = 100_000;
/// How long is waited for former probes of a file to be gone.
const CLOSED_WITHIN: Duration = Duration::from_millis(100);

/// The table of files and the probe programs in use.
#[derive(Debug)]
pub struct Attacher {
    catalog: Arc<Catalog>,
    linger_ns: u64,
    /// TLS functions are of interest.
    tls: bool,
    plain: HashSet<FileId>,
    files: BTreeMap<FileId, TrackedFile>,
    /// What mappings state of files whose identity is another.
    stated: HashMap<FileId, FileId>,
    slots: Vec<Arc<Slot>>,
    slot_of: HashMap<(String, Option<usize>), u16>,
    tail_calls: HashSet<u16>,
    /// None where the kernel refuses to tell of changes.
    changes: Option<Changes>,
    closing: Closing,
    translators: Translators,
    /// Each hit may come twice, as links are being closed whose sites have others already.
    relinking: bool,
    looks: u64,
}

impl Drop for Attacher {
    fn drop(&mut self) {
        closing::close_together(
            self.files.values_mut().flat_map(|file| std::mem::take(&mut file.links)).collect(),
        );
    }
}

impl Attacher {
    /// An empty table. `tls`: files with TLS functions are of interest, whoever maps them.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, linger: Duration, tls: bool) -> Self {
        Self {
            catalog,
            linger_ns: u64::try_from(linger.as_nanos()).unwrap_or(u64::MAX),
            tls,
            plain: HashSet::new(),
            files: BTreeMap::new(),
            stated: HashMap::new(),
            slots: Vec::new(),
            slot_of: HashMap::new(),
            tail_calls: HashSet::new(),
            changes: Changes::new().ok(),
            closing: Closing::default(),
            translators: Translators::default(),
            relinking: false,
            looks: 0,
        }
    }

    /// Readable when a probed file has been written to; `None` if the kernel refuses to tell.
    #[must_use]
    pub fn descriptor(&self) -> Option<RawFd> {
        self.changes.as_ref().map(Changes::descriptor)
    }

    /// Takes the probes out of files that have been written to, and forgets these: they are looked at anew when a process
    /// maps them. Returns their paths.
    pub fn drop_changed(&mut self) -> Vec<String> {
        let changed = self.changes.as_mut().map(Changes::take).unwrap_or_default();
        changed.into_iter().filter_map(|id| Some(self.drop_file(id)?.path)).collect()
    }

    /// Takes a file's probes away and forgets it.
    fn drop_file(&mut self, id: FileId) -> Option<TrackedFile> {
        let mut tracked = self.files.remove(&id)?;
        self.closing.close(id, std::mem::take(&mut tracked.links));
        if let Some(changes) = &mut self.changes {
            changes.forget(id);
        }
        Some(tracked)
    }

    /// The probes.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// What a probe program number stands for.
    #[must_use]
    pub fn slot(&self, index: u32) -> Option<&Arc<Slot>> {
        self.slots.get(usize::try_from(index).ok()?)
    }

    /// Files that have been looked at, plain ones too.
    #[must_use]
    pub const fn looks(&self) -> u64 {
        self.looks
    }

    /// Probes that are called too often: id, what is done about it, calls a second.
    pub fn limited(&self) -> impl Iterator<Item = (&str, Measure, f64)> {
        let limited = self.slots.iter().filter(|slot| slot.limited.0 != Measure::Record);
        limited.map(|slot| (slot.probe.id.as_str(), slot.limited.0, slot.limited.1))
    }

    /// Every file of interest.
    #[must_use]
    pub const fn files(&self) -> &BTreeMap<FileId, TrackedFile> {
        &self.files
    }

    /// Looks at the file of a mapping if it is new.
    ///
    /// # Errors
    /// It could not be looked at; it will be tried again when it is mapped again, unless it is no ELF file at all.
    pub fn look(
        &mut self,
        kernel: &mut Kernel,
        proc: &Path,
        mapping: &Mapping,
        versions: impl FnOnce() -> Versions,
    ) -> Result<Seen, FileError> {
        if self.plain.contains(&mapping.file) {
            return Ok(Seen::Plain);
        }
        if let Some(known) = self.files.get(&self.identity(mapping.file)) {
            return Ok(known.seen());
        }
        let file = open_mapped(proc, mapping)?;
        let id = identity(&file, mapping.file).map_err(|error| FileError::Read(error.to_string()))?;
        if id != mapping.file {
            self.stated.insert(mapping.file, id);
            if let Some(known) = self.files.get(&id) {
                return Ok(known.seen());
            }
        }
        if !self.closing.wait(id, CLOSED_WITHIN) {
            return Err(FileError::Closing);
        }
        let stamp = Stamp::of(&file).map_err(|error| FileError::Read(error.to_string()))?;
        let bytes = map(&file)?;
        self.looks += 1;
        let survey = match survey(&bytes, &self.catalog).and_then(Survey::of_this_machine) {
            Ok(survey) => survey,
            Err(error) => {
                self.remember_plain(mapping.file);
                return Err(error.into());
            }
        };
        let tls = if self.tls { tls(&bytes)? } else { Vec::new() };
        if survey.is_plain() && tls.is_empty() {
            self.remember_plain(mapping.file);
            return Ok(Seen::Plain);
        }
        let name = mapping.path.rsplit('/').next().unwrap_or_default();
        let mut found = if survey.has_functions() { versions() } else { Versions::default() };
        let own = identify::occt_version_from_file_name(name);
        if let Some(occt) = &own {
            found.occt.clone_from(occt);
        }
        let planned = survey.plan(&found);
        if bytes.was_cut() {
            return Err(FileError::Changed);
        }
        let brings = Versions {
            occt: own.unwrap_or_default(),
            freecad: if planned.has_freecad_config { found.freecad.clone() } else { String::new() },
        };
        let mut tracked = self.track(kernel, (file, stamp), mapping, planned, brings, &found)?;
        tracked.add_tls(&tls);
        let seen = tracked.seen();
        self.files.insert(id, tracked);
        Ok(seen)
    }

    /// Notes that a worker maps a file, and places its probes if they are not in place.
    ///
    /// # Errors
    /// The kernel refused; nothing is placed then.
    pub fn hold(&mut self, kernel: &mut Kernel, stated: FileId, pid: u32) -> Result<bool, FileError> {
        let id = self.identity(stated);
        let Some(tracked) = self.files.get_mut(&id) else { return Ok(false) };
        tracked.workers.insert(pid);
        tracked.idle_since_ns = None;
        if tracked.is_attached() {
            return Ok(false);
        }
        if self.must_give_way(id) {
            return Err(FileError::Translated);
        }
        self.place(kernel, id)
    }

    /// Places the probes of a file.
    fn place(&mut self, kernel: &mut Kernel, id: FileId) -> Result<bool, FileError> {
        let Some(tracked) = self.files.get_mut(&id) else { return Ok(false) };
        if let Some(changes) = &mut self.changes {
            // A refusal (too many watches) leaves the file unwatched, as on a kernel without inotify.
            let _ = changes.watch(id, &tracked.file);
        }
        if Stamp::of(&tracked.file).is_ok_and(|now| tracked.stamp != now) {
            self.drop_file(id);
            return Err(FileError::Changed);
        }
        for (program, sites) in &tracked.sites {
            match kernel.attach(&tracked.file, *program, sites) {
                Ok(link) => tracked.links.push(link),
                Err(error) => {
                    tracked.links.clear();
                    return Err(error.into());
                }
            }
        }
        Ok(tracked.is_attached())
    }

    /// Notes when the probes of a file came into place.
    pub fn note_placed(&mut self, stated: FileId, placed: Placed) {
        let id = self.identity(stated);
        if let Some(tracked) = self.files.get_mut(&id) {
            tracked.placed = Some(placed);
        }
    }

    /// When the probes of a file that holds functions of the catalogue came into place.
    #[must_use]
    pub fn placed(&self, stated: FileId) -> Option<Placed> {
        self.files.get(&self.identity(stated)).filter(|tracked| tracked.has_probes)?.placed
    }

    /// Notes that a process is gone or runs another program.
    pub fn release(&mut self, pid: u32, now_ns: u64) {
        self.translators.release(pid);
        for tracked in self.files.values_mut() {
            if tracked.workers.remove(&pid) && tracked.workers.is_empty() {
                tracked.idle_since_ns = Some(now_ns);
            }
        }
    }

    /// Notes that a child maps what its parent maps.
    pub fn inherit(&mut self, parent: u32, child: u32) {
        for tracked in self.files.values_mut() {
            if tracked.workers.contains(&parent) {
                tracked.workers.insert(child);
            }
        }
    }

    /// Notes which of the files a worker still maps.
    pub fn retain(&mut self, pid: u32, mapped: &HashSet<FileId>, now_ns: u64) {
        let mapped: HashSet<FileId> = mapped.iter().map(|stated| self.identity(*stated)).collect();
        for (id, tracked) in &mut self.files {
            if !mapped.contains(id) && tracked.workers.remove(&pid) && tracked.workers.is_empty() {
                tracked.idle_since_ns = Some(now_ns);
            }
        }
    }

    /// Releases the processes that are gone of those that are no workers: nobody tells of their end.
    pub fn release_gone(&mut self, now_ns: u64, is_alive: impl Fn(u32) -> bool) {
        for tracked in self.files.values_mut().filter(|tracked| tracked.has_tls) {
            tracked.workers.retain(|pid| is_alive(*pid));
            if tracked.workers.is_empty() && tracked.idle_since_ns.is_none() {
                tracked.idle_since_ns = Some(now_ns);
            }
        }
    }

    /// Takes away the probes of files that nobody has mapped for long enough. The files are closed, too, so that a
    /// deleted image frees its space; a file that comes back is looked at anew.
    pub fn sweep(&mut self, kernel: &mut Kernel, now_ns: u64) {
        if self.relinking && self.closing.is_over() {
            // A refusal comes again with the next look.
            self.relinking = self.relink(kernel, false).is_err();
        }
        let linger_ns = self.linger_ns;
        let over: Vec<FileId> = self
            .files
            .iter()
            .filter(|(_, file)| file.workers.is_empty())
            .filter(|(_, file)| {
                file.idle_since_ns.is_some_and(|since| now_ns.saturating_sub(since) >= linger_ns)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.drop_file(id);
        }
    }

    /// Starts the memory of uninteresting files anew: an inode number may have been given to another file.
    pub fn forget_plain(&mut self) {
        self.plain.clear();
        self.stated.retain(|_, id| self.files.contains_key(id));
    }

    /// The identity of a file that mappings state so.
    fn identity(&self, stated: FileId) -> FileId {
        self.stated.get(&stated).copied().unwrap_or(stated)
    }

    fn remember_plain(&mut self, id: FileId) {
        if self.plain.len() >= MAX_PLAIN {
            self.plain.clear();
        }
        self.plain.insert(id);
    }
}

/// Maps a file to read it.
///
/// # Errors
/// The kernel's refusal.
pub fn map(file: &File) -> Result<MappedFile, FileError> {
    MappedFile::open(file).map_err(|error| FileError::Read(error.to_string()))
}
