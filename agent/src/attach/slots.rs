//! Turns the plan of a file into its sites and the numbers of its probe programs.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;

use cadscope_common::probe::{MAX_PROBES, ProbeProgram, flags};

use crate::budget::Measure;
use crate::catalog::{Layout, Probe};
use crate::discover::Mapping;
use crate::kernel::{Kernel, KernelError, SiteProgram};
use crate::plan::{Plan, PlannedProbe, Versions};
use crate::resolve::{FileOffset, Site};

use super::changes::Stamp;
use super::file::placed_site;
use super::{Attacher, FileError, PlacedProbe, TrackedFile};

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
    pub(super) program: ProbeProgram,
}

impl Slot {
    /// The layout itself.
    #[must_use]
    pub fn layout(&self) -> Option<&Layout> {
        self.probe.layouts.get(self.layout?)
    }
}

impl Attacher {
    pub(super) fn track(
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

/// Why a probe is not placed that was hit too often.
pub(super) fn too_hot(rate: f64) -> String {
    format!("called {rate:.0} times a second, too often to be observed")
}
