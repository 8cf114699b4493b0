//! Turns mappings of programs that translate machine code (valgrind) into files without probes.
//!
//! What matters is that the probes are gone before the program translates a function that has one, which it does when the
//! function is called for the first time.

use super::files::LOOKS_AGAIN;
use super::{Observation, Observer};
use crate::attach::{FileError, Seen};
use crate::clock::now_ns;
use crate::discover::{self, Mapping};

impl Observer {
    /// Notes the programs that run already: nothing that they map gets probes.
    pub(super) fn find_translators(&mut self) {
        if !self.give_way {
            return;
        }
        for pid in discover::processes(&self.proc) {
            if discover::is_translator(&discover::program_of(&self.proc, pid)) {
                for mapping in discover::mappings_of(&self.proc, pid) {
                    self.gives_way(&mapping, &mut |_| {});
                }
            }
        }
    }

    /// Whether a mapping is that of a program that translates; its file has no probes then.
    pub(super) fn gives_way(&mut self, mapping: &Mapping, say: &mut dyn FnMut(Observation)) -> bool {
        if self.give_way && discover::is_translator(&mapping.path) && self.attacher.translates(mapping.pid) {
            // So that its forks and its end are told. A refusal, or one that has ended, shows in the review.
            if let Some(key) = discover::key_of(&self.proc, mapping.pid) {
                let _ = self.kernel.add_worker(key);
            }
        }
        if !self.attacher.is_translator(mapping.pid) {
            return false;
        }
        match self.look(mapping) {
            Ok(Seen::Plain) | Err(FileError::Elf(_)) => {}
            Ok(_) => {
                if self.attacher.give_way(mapping.file, mapping.pid, now_ns()) {
                    say(Observation::missed(&mapping.path, &FileError::Translated));
                }
            }
            Err(error) => self.missed(mapping, &error, say),
        }
        true
    }

    /// Finds those whose end was not told.
    pub(super) fn review_translators(&mut self, now: u64) {
        for pid in self.attacher.translators() {
            if !discover::is_translator(&discover::program_of(&self.proc, pid)) {
                self.attacher.release(pid, now);
            }
        }
    }

    /// Gives files their probes back once no program translates them any more.
    pub(super) fn resume(&mut self, say: &mut dyn FnMut(Observation)) {
        for (workers, path, error) in self.attacher.resume(&mut self.kernel) {
            self.again.extend(workers.into_iter().map(|pid| (pid, LOOKS_AGAIN)));
            say(Observation::missed(&path, &error));
        }
    }
}
