//! Turns planned files into placed probes: one set of links per file, whoever maps it, for as long as anybody does.
//!
//! Owns the table of files and the numbers of the probe programs. A file is looked at once; when no worker has mapped
//! it for a while (`linger`), its probes are taken away and the file is closed; one that returns is looked at anew.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cadscope_common::cookie::Cookie;
use cadscope_common::probe::{MAX_PROBES, ProbeProgram, flags};

use crate::budget::Measure;
use crate::catalog::{Catalog, Layout, Probe};
use crate::discover::{FileId, Mapping, OpenError, identity, mappings_of, open_mapped};
use crate::identify;
use crate::kernel::mapped_file::MappedFile;
use crate::kernel::{AttachError, Kernel, KernelError, Link, SiteProgram};
use crate::plan::{Plan, PlannedProbe, Survey, TlsEdge, TlsSite, Versions, survey, tls};
use crate::resolve::{ElfFile, FileOffset, Site, Unreadable};

use self::changes::{Changes, Stamp};
use self::closing::Closing;
use self::translated::Translators;

mod changes;
mod closing;
mod limit;
mod translated;

/// Files that are remembered as uninteresting; the memory starts anew beyond.
const MAX_PLAIN: usize = 100_000;
/// How long is waited for former probes of a file to be gone.
const CLOSED_WITHIN: Duration = Duration::from_millis(100);

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It could not be read.
    #[error("cannot be read: {0}")]
    Read(String),
    /// It was written to while it was looked at.
    #[error("was written to while it was looked at")]
    Changed,
    /// It had probes before, which some process does not let go.
    #[error("its former probes are still being taken away")]
    Closing,
    /// A program maps it that would take probes for its own breakpoints.
    #[error(
        "it has no probes while valgrind runs it, which would take them for the worker's own breakpoints"
    )]
    Translated,
    /// It is not an ELF file that can be understood.
    #[error(transparent)]
    Elf(#[from] Unreadable),
    /// The kernel refused.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A map of the kernel side refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl FileError {
    /// Whether it can be otherwise a moment later, for the same process: what the node lacked, or someone else held.
    #[must_use]
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::Open(error) => matches!(error, OpenError::Refused(_)),
            Self::Elf(_) | Self::Translated => false,
            Self::Read(_) | Self::Changed | Self::Closing | Self::Attach(_) | Self::Kernel(_) => true,
        }
    }
}

/// A probe in a file, as `/status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedProbe {
    /// Its id.
    pub id: String,
    /// Its probe program; of no meaning where it is not placed, or has none (TLS).
    pub slot: u16,
    /// Entry and number of exits, or why it is not placed.
    pub sites: Result<(FileOffset, usize), String>,
    /// What is not complete about it.
    pub note: Option<String>,
}

/// What a probe program number stands for.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The probe.
    pub probe: Arc<Probe>,
    /// Its layout.
    pub layout: Option<usize>,
    /// Versions of the files that use it; the first, if they differ.
    pub versions: Versions,
    /// What is done because it is hit so often, and how often that was, a second.
    pub limited: (Measure, f64),
    program: ProbeProgram,
}

impl Slot {
    /// The layout itself.
    #[must_use]
    pub fn layout(&self) -> Option<&Layout> {
        self.probe.layouts.get(self.layout?)
    }
}

/// A file of interest.
#[derive(Debug)]
pub struct TrackedFile {
    /// As the first worker maps it.
    pub path: String,
    /// Its probes.
    pub probes: Vec<PlacedProbe>,
    /// Versions it brings to a worker.
    pub versions: Versions,
    /// Whether it holds functions of the catalogue (else it is a C or C++ runtime).
    pub has_probes: bool,
    /// Whether it holds TLS functions that are observed.
    pub has_tls: bool,
    /// Whether FreeCAD's configuration can be read through it.
    pub has_freecad_config: bool,
    /// Workers that map it.
    pub workers: HashSet<u32>,
    sites: Vec<(SiteProgram, Vec<(FileOffset, Cookie)>)>,
    links: Vec<Link>,
    file: File,
    stamp: Stamp,
    idle_since_ns: Option<u64>,
    placed: Option<Placed>,
    gives_way: bool,
}

/// When a file's probes came into place, CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// When it was known where they go.
    pub analysed_ns: u64,
    /// When they were there.
    pub placed_ns: u64,
}

impl TrackedFile {
    const fn seen(&self) -> Seen {
        match (self.has_probes, self.has_tls) {
            (true, _) => Seen::Worker,
            (false, true) => Seen::Tls,
            (false, false) => Seen::Runtime,
        }
    }

    /// Adds the sites of TLS functions.
    fn add_tls(&mut self, tls: &[TlsSite]) {
        for (edge, program, id) in [
            (TlsEdge::ReadEnd, SiteProgram::TlsReadEnd, None),
            (TlsEdge::Read, SiteProgram::TlsRead, Some("tls.read")),
            (TlsEdge::Write, SiteProgram::TlsWrite, Some("tls.write")),
            (TlsEdge::Free, SiteProgram::TlsFree, Some("tls.free")),
        ] {
            let sites: Vec<&TlsSite> = tls.iter().filter(|site| site.edge == edge).collect();
            let Some(first) = sites.first() else { continue };
            if let Some(id) = id {
                let exits =
                    tls.iter().filter(|s| edge == TlsEdge::Read && s.edge == TlsEdge::ReadEnd).count();
                let sites = Ok((first.site.offset, exits));
                self.probes.push(PlacedProbe { id: id.to_owned(), slot: u16::MAX, sites, note: None });
            }
            let placed = sites.iter().map(|site| placed_site(site.function, &site.site)).collect();
            self.sites.push((program, placed));
            self.has_tls = true;
        }
    }

    /// Whether its probes are in place.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Whether it has no probes because a program translates it.
    #[must_use]
    pub const fn gives_way(&self) -> bool {
        self.gives_way
    }
}

/// What became of a mapped file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing in it.
    Plain,
    /// It holds functions of the catalogue: who maps it is a worker.
    Worker,
    /// It is a runtime that matters for workers only.
    Runtime,
    /// It holds TLS functions, which matter in every process.
    Tls,
}

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

    /// The versions that a worker's files bring.
    #[must_use]
    pub fn versions_of(&self, pid: u32) -> Versions {
        let mut versions = Versions::default();
        for tracked in self.files.values().filter(|tracked| tracked.workers.contains(&pid)) {
            if versions.freecad.is_empty() {
                versions.freecad.clone_from(&tracked.versions.freecad);
            }
            if versions.occt.is_empty() {
                versions.occt.clone_from(&tracked.versions.occt);
            }
        }
        versions
    }

    /// Reads FreeCAD's own configuration from a live worker; names the file that it belongs to.
    #[must_use]
    pub fn read_freecad(&self, proc: &Path, pid: u32) -> Option<(FileId, Versions)> {
        let memory = File::open(proc.join(pid.to_string()).join("mem")).ok()?;
        let maps = mappings_of(proc, pid);
        let library = self
            .files
            .iter()
            .find(|(_, tracked)| tracked.has_freecad_config && tracked.workers.contains(&pid))
            .map(|(id, _)| *id)?;
        // The program's own copy is the live one where there is one; it is mapped first.
        let candidates = maps
            .first()
            .into_iter()
            .chain(maps.iter().filter(|mapping| self.identity(mapping.file) == library));
        for mapping in candidates {
            let Some(address) = config_address(proc, mapping) else { continue };
            let read = |at: u64, to: &mut [u8]| memory.read_exact_at(to, at).is_ok();
            let found = identify::versions_from_config(address, read);
            if !found.freecad.is_empty() {
                return Some((library, Versions { freecad: found.freecad, occt: found.occt }));
            }
        }
        None
    }

    /// Says which FreeCAD a file is of, once it has been read from a live worker.
    pub fn learn_freecad(&mut self, id: FileId, version: &str) {
        if let Some(tracked) = self.files.get_mut(&id) {
            version.clone_into(&mut tracked.versions.freecad);
        }
    }

    fn remember_plain(&mut self, id: FileId) {
        if self.plain.len() >= MAX_PLAIN {
            self.plain.clear();
        }
        self.plain.insert(id);
    }

    fn track(
        &mut self,
        kernel: &mut Kernel,
        (file, stamp): (File, Stamp),
        mapping: &Mapping,
        planned: Plan,
        brings: Versions,
        versions: &Versions,
    ) -> Result<TrackedFile, FileError> {
        let mut enter = Vec::new();
        let mut leave = Vec::new();
        let mut tally = Vec::new();
        let mut probes = Vec::new();
        let has_probes = planned.has_probes();
        for planned in &planned.probes {
            let mut number = 0;
            let placed = match &planned.sites {
                Ok(sites) => {
                    let slot =
                        self.slot_for(kernel, &planned.probe, planned.layout, sites.tail_calls, versions)?;
                    number = slot;
                    if let Some((Measure::Remove, rate)) = self.slot(u32::from(slot)).map(|slot| slot.limited)
                    {
                        let sites = Err(too_hot(rate));
                        probes.push(PlacedProbe { id: planned.probe.id.clone(), slot, sites, note: None });
                        continue;
                    }
                    if planned.probe.tallies.is_some() {
                        tally.push(placed_site(slot, &sites.entry));
                        note_tally(&mut probes, planned, slot, versions, sites.entry.offset);
                        continue;
                    }
                    enter.push(placed_site(slot, &sites.entry));
                    leave.extend(sites.exits.iter().map(|(site, _)| placed_site(slot, site)));
                    Ok((sites.entry.offset, sites.exits.len()))
                }
                Err(reason) => Err(reason.to_string()),
            };
            let note = planned.note(versions);
            probes.push(PlacedProbe { id: planned.probe.id.clone(), slot: number, sites: placed, note });
        }
        // Two probes can share an exit (a followed tail call); one hit ends both.
        leave.sort_by_key(|(offset, cookie)| (*offset, cookie.edge_bits()));
        leave.dedup_by_key(|(offset, _)| *offset);
        let entry = |sites: &[Site]| sites.iter().map(|site| placed_site(0, site)).collect::<Vec<_>>();
        // Exits first: a call that is entered is then seen to leave.
        let mut sites = vec![
            (SiteProgram::Leave, leave),
            (SiteProgram::Caught, entry(&planned.caught)),
            (SiteProgram::Resumed, entry(&planned.resumed)),
            (SiteProgram::Raised, entry(&planned.raised)),
            (SiteProgram::Jumped, entry(&planned.jumped)),
            (SiteProgram::Enter, enter),
            (SiteProgram::Tally, tally),
        ];
        sites.retain(|(_, sites)| !sites.is_empty());
        Ok(TrackedFile {
            path: mapping.path.clone(),
            probes,
            versions: brings,
            has_probes,
            has_tls: false,
            has_freecad_config: planned.has_freecad_config,
            workers: HashSet::new(),
            sites,
            links: Vec::new(),
            file,
            stamp,
            idle_since_ns: None,
            placed: None,
            gives_way: false,
        })
    }

    fn slot_for(
        &mut self,
        kernel: &mut Kernel,
        probe: &Arc<Probe>,
        layout: Option<usize>,
        tail_calls: bool,
        versions: &Versions,
    ) -> Result<u16, FileError> {
        let key = (probe.id.clone(), layout);
        let group = probe.group.as_deref().and_then(|group| self.catalog.group_number(group));
        let known = self.slot_of.get(&key).copied();
        if let Some(slot) = known
            && (!tail_calls || self.tail_calls.contains(&slot))
        {
            return Ok(slot);
        }
        let full = || KernelError::Map { map: "PROBES", reason: "too many probe programs".to_owned() };
        let slot = match known {
            Some(slot) => slot,
            None => u16::try_from(self.slots.len()).map_err(|_| full())?,
        };
        if u32::from(slot) >= MAX_PROBES {
            return Err(full().into());
        }
        let mut program = layout
            .and_then(|index| probe.layouts.get(index))
            .map_or_else(ProbeProgram::default, |l| l.program);
        let word = probe.tally.as_deref().or(probe.tallies.as_deref());
        if let Some(number) = word.and_then(|word| self.catalog.tally_number(word)) {
            program.flags |= u32::from(number) << flags::TALLY_SHIFT;
        }
        if tail_calls {
            program.flags |= flags::TAIL_CALLS;
            self.tail_calls.insert(slot);
        }
        program.flags |= u32::from(group.unwrap_or(0)) << flags::GROUP_SHIFT;
        match self.slots.get_mut(usize::from(slot)) {
            Some(known) => {
                program.flags |= known.program.flags & flags::AGGREGATE;
                Arc::make_mut(known).program = program;
            }
            None => {
                let limited = (Measure::Record, 0.0);
                let versions = versions.clone();
                self.slots.push(Arc::new(Slot {
                    probe: Arc::clone(probe),
                    layout,
                    versions,
                    limited,
                    program,
                }));
                self.slot_of.insert(key, slot);
            }
        }
        kernel.set_probe(u32::from(slot), &program)?;
        Ok(slot)
    }
}

/// Notes a probe whose calls are only counted: it has no exits.
fn note_tally(
    probes: &mut Vec<PlacedProbe>,
    planned: &PlannedProbe,
    slot: u16,
    versions: &Versions,
    entry: FileOffset,
) {
    let note = planned.note(versions);
    probes.push(PlacedProbe { id: planned.probe.id.clone(), slot, sites: Ok((entry, 0)), note });
}

/// Where a process has FreeCAD's configuration, if the mapped file defines it.
fn config_address(proc: &Path, mapping: &Mapping) -> Option<u64> {
    let bytes = map(&open_mapped(proc, mapping).ok()?).ok()?;
    let elf = ElfFile::parse(&bytes).ok()?;
    let symbol = elf.find(identify::FREECAD_CONFIG_SYMBOL)?;
    let bias = mapping.start.wrapping_sub(elf.vaddr_of(FileOffset(mapping.offset), procfs::page_size())?.0);
    Some(symbol.vaddr.0.wrapping_add(bias))
}

/// Why a probe is not placed that was hit too often.
fn too_hot(rate: f64) -> String {
    format!("called {rate:.0} times a second, too often to be observed")
}

fn placed_site(slot: u16, site: &Site) -> (FileOffset, Cookie) {
    (site.offset, Cookie::new(slot, site.edge, site.base, site.return_register, site.distance))
}

/// Maps a file to read it.
///
/// # Errors
/// The kernel's refusal.
pub fn map(file: &File) -> Result<MappedFile, FileError> {
    MappedFile::open(file).map_err(|error| FileError::Read(error.to_string()))
}
