//! Turns the files that a worker maps, and what it has in memory, into the versions of FreeCAD and OCCT that it runs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::discover::{FileId, Mapping, mappings_of, open_mapped};
use crate::identify;
use crate::plan::Versions;
use crate::resolve::{ElfFile, FileOffset};

use super::{Attacher, map};

impl Attacher {
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
}

/// Where a process has FreeCAD's configuration, if the mapped file defines it.
fn config_address(proc: &Path, mapping: &Mapping) -> Option<u64> {
    let bytes = map(&open_mapped(proc, mapping).ok()?).ok()?;
    let elf = ElfFile::parse(&bytes).ok()?;
    let symbol = elf.find(identify::FREECAD_CONFIG_SYMBOL)?;
    let bias = mapping.start.wrapping_sub(elf.vaddr_of(FileOffset(mapping.offset), procfs::page_size())?.0);
    Some(symbol.vaddr.0.wrapping_add(bias))
}
