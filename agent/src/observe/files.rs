//! Turns mappings into files that are looked at and have their probes, or are told as missed.

use crate::attach::{FileError, Placed, Seen};
use crate::clock::now_ns;
use crate::discover::{self, Mapping};
use crate::identify;
use crate::workers::Late;

use super::{Observation, Observer};

/// How many reviews a process whose file could not be looked at gets another look: ten minutes of them.
pub(super) const LOOKS_AGAIN: u8 = 60;

impl Observer {
    /// Looks at a mapping, made at a time of CLOCK_MONOTONIC if it has only now been made.
    pub(super) fn mapped(&mut self, mapping: &Mapping, at_ns: Option<u64>, say: &mut dyn FnMut(Observation)) {
        if mapping.pid == std::process::id() {
            return;
        }
        self.workers.mapped(mapping.pid, &mapping.path);
        if self.targets.include(&self.proc, mapping.pid) {
            let noticed_ns = now_ns();
            self.see(mapping, say);
            if let Some(at_ns) = at_ns {
                self.tell_late(mapping, at_ns, noticed_ns, say);
            }
        } else {
            self.gives_way(mapping, say);
        }
    }

    /// Tells of a file that a worker mapped before its probes were in place.
    pub(super) fn tell_late(
        &mut self,
        mapping: &Mapping,
        at_ns: u64,
        noticed_ns: u64,
        say: &mut dyn FnMut(Observation),
    ) {
        let placed = self.attacher.placed(mapping.file).filter(|placed| placed.placed_ns > at_ns);
        let Some(Placed { analysed_ns, placed_ns }) = placed else { return };
        let noticed_ns = noticed_ns.clamp(at_ns, placed_ns);
        let analysed_ns = analysed_ns.clamp(noticed_ns, placed_ns);
        let late = Late {
            path: mapping.path.clone(),
            mapped_ns: at_ns,
            notice_ns: noticed_ns.saturating_sub(at_ns),
            analyse_ns: analysed_ns.saturating_sub(noticed_ns),
            place_ns: placed_ns.saturating_sub(analysed_ns),
        };
        let news = match self.workers.get_mut(mapping.pid) {
            Some(live) => live.note_late(&late),
            None => self.workers.was_worker(mapping.pid),
        };
        if news {
            say(Observation::Late { pid: mapping.pid, late });
        }
    }

    /// Looks at the file of a mapping if it is new.
    pub(super) fn look(&mut self, mapping: &Mapping) -> Result<Seen, FileError> {
        let (proc, installed) = (&self.proc, &mut self.installed);
        let versions = || {
            let mappings = discover::mappings_of(proc, mapping.pid);
            let paths = mappings.iter().map(|mapping| &mapping.path);
            let mut versions = installed.versions_of(proc, mapping.pid, paths);
            if versions.occt.is_empty() {
                let name = mapping.path.rsplit('/').next().unwrap_or_default();
                versions.occt = identify::occt_version_from_file_name(name).unwrap_or_default();
            }
            versions
        };
        self.attacher.look(&mut self.kernel, proc, mapping, versions)
    }

    pub(super) fn see(&mut self, mapping: &Mapping, say: &mut dyn FnMut(Observation)) {
        if self.gives_way(mapping, say) {
            return;
        }
        match self.look(mapping) {
            Ok(Seen::Plain) => {}
            Ok(Seen::Worker) => {
                let new = !self.workers.contains(mapping.pid);
                self.hold(mapping, say);
                if new {
                    self.enlist(mapping.pid, say);
                }
            }
            Ok(Seen::Tls) => self.hold(mapping, say),
            Ok(Seen::Runtime) => {
                if self.workers.contains(mapping.pid) {
                    self.hold(mapping, say);
                } else if self.workers.was_worker(mapping.pid) {
                    self.hold_for_the_next(mapping, say);
                } else {
                    self.workers.maps_runtime(mapping);
                }
            }
            // Executable files that are not ELF files of this machine are none of our business.
            Err(FileError::Elf(_)) => {}
            Err(error) => self.missed(mapping, &error, say),
        }
    }

    pub(super) fn missed(&mut self, mapping: &Mapping, error: &FileError, say: &mut dyn FnMut(Observation)) {
        if error.may_pass() {
            self.again.entry(mapping.pid).or_insert(LOOKS_AGAIN);
        }
        say(Observation::missed(&mapping.path, error));
    }

    pub(super) fn hold(&mut self, mapping: &Mapping, say: &mut dyn FnMut(Observation)) {
        let analysed_ns = now_ns();
        match self.attacher.hold(&mut self.kernel, mapping.file, mapping.pid) {
            Ok(placed) => {
                if placed {
                    let placed = Placed { analysed_ns, placed_ns: now_ns() };
                    self.attacher.note_placed(mapping.file, placed);
                }
                self.refresh(mapping.pid, say);
            }
            Err(error) => self.missed(mapping, &error, say),
        }
    }

    /// Places the probes of a file that a worker mapped which is gone: the next of its kind finds them.
    pub(super) fn hold_for_the_next(&mut self, mapping: &Mapping, say: &mut dyn FnMut(Observation)) {
        self.hold(mapping, say);
        self.attacher.release(mapping.pid, now_ns());
    }

    /// What was missed then has been told.
    pub(super) fn look_again(&mut self, say: &mut dyn FnMut(Observation)) {
        self.again.retain(|_, left| {
            *left = left.saturating_sub(1);
            *left > 0
        });
        let mut anew = |observation| {
            if !matches!(observation, Observation::Missed { .. }) {
                say(observation);
            }
        };
        for (pid, left) in std::mem::take(&mut self.again) {
            let mappings = discover::mappings_of(&self.proc, pid);
            if mappings.is_empty() && discover::is_alive(&self.proc, pid) {
                self.again.insert(pid, left);
            }
            for mapping in mappings {
                self.mapped(&mapping, None, &mut anew);
            }
            // Anything that failed again has entered it with all its looks.
            self.again.entry(pid).and_modify(|again| *again = left);
        }
    }
}
