//! Turns the processes that somebody asked for into the answer whether a process is one of them or descends from one.

use std::collections::HashSet;
use std::path::Path;

use crate::discover;

/// Ancestors that are asked for at most.
const MAX_LINEAGE: usize = 32;

/// Everybody, or some processes and their descendants.
#[derive(Debug)]
pub struct Targets(Option<HashSet<u32>>);

impl Targets {
    /// Everybody, or nobody yet.
    #[must_use]
    pub fn new(everybody: bool) -> Self {
        Self((!everybody).then(HashSet::new))
    }

    /// Adds a process.
    pub fn add(&mut self, pid: u32) {
        if let Some(only) = &mut self.0 {
            only.insert(pid);
        }
    }

    /// Whether a process is meant. Ancestors are asked of procfs, once a process.
    pub fn include(&mut self, proc: &Path, pid: u32) -> bool {
        let Some(only) = &mut self.0 else { return true };
        if only.contains(&pid) {
            return true;
        }
        let mut lineage = vec![pid];
        let mut current = pid;
        for _ in 0..MAX_LINEAGE {
            let Some(parent) = discover::parent_of(proc, current) else { return false };
            if only.contains(&parent) {
                only.extend(lineage);
                return true;
            }
            lineage.push(parent);
            current = parent;
        }
        false
    }
}
