//! Turns news of programs that translate machine code into files without probes, for as long as such a program maps them.
//!
//! Valgrind reads a worker's code and runs its own translation of it: it would read the breakpoint of a probe as the
//! program's own, and end it by SIGTRAP. The kernel puts probes into every process that maps the file, so they are taken
//! out of the file for all.

use std::collections::{HashMap, HashSet};

use super::{Attacher, FileError};
use crate::discover::FileId;
use crate::kernel::Kernel;

/// Processes that translate; those beyond are not recognised.
const MAX_TRANSLATORS: usize = 1024;
/// Probed files of one of them.
const MAX_FILES: usize = 4096;

/// Processes that translate, and the files of interest that they map.
#[derive(Debug, Default)]
pub(super) struct Translators {
    files: HashMap<u32, HashSet<FileId>>,
    /// A file may get its probes back.
    over: bool,
}

impl Translators {
    pub(super) fn read(&self, id: FileId) -> bool {
        self.files.values().any(|files| files.contains(&id))
    }

    pub(super) fn release(&mut self, pid: u32) {
        self.over |= self.files.remove(&pid).is_some();
    }

    fn has_room(&self) -> bool {
        self.files.len() < MAX_TRANSLATORS
    }
}

impl Attacher {
    /// Notes that a process translates what it maps; whether that is news.
    pub fn translates(&mut self, pid: u32) -> bool {
        let news = !self.is_translator(pid) && self.translators.has_room();
        if news {
            self.translators.files.insert(pid, HashSet::new());
        }
        news
    }

    /// Notes that a process runs another program than it did.
    pub fn translates_no_more(&mut self, pid: u32) {
        self.translators.release(pid);
    }

    /// Notes that a child translates what its parent does.
    pub fn inherit_translation(&mut self, parent: u32, child: u32) {
        if let Some(files) = self.translators.files.get(&parent).cloned()
            && self.translators.has_room()
        {
            self.translators.files.insert(child, files);
        }
    }

    /// Whether a process translates.
    #[must_use]
    pub fn is_translator(&self, pid: u32) -> bool {
        self.translators.files.contains_key(&pid)
    }

    /// The processes that translate.
    #[must_use]
    pub fn translators(&self) -> Vec<u32> {
        self.translators.files.keys().copied().collect()
    }

    /// Notes that a translator maps a file of interest, and takes its probes away; whether it had any.
    pub fn give_way(&mut self, stated: FileId, pid: u32, now_ns: u64) -> bool {
        let id = self.identity(stated);
        let Some(files) = self.translators.files.get_mut(&pid) else { return false };
        if files.len() >= MAX_FILES {
            return false;
        }
        files.insert(id);
        let Some(tracked) = self.files.get_mut(&id) else { return false };
        if tracked.workers.is_empty() {
            tracked.idle_since_ns.get_or_insert(now_ns);
        }
        if !tracked.is_attached() {
            return false;
        }
        tracked.gives_way = true;
        self.closing.close(id, std::mem::take(&mut tracked.links));
        true
    }

    /// Whether a file must have no probes now.
    pub(super) fn must_give_way(&mut self, id: FileId) -> bool {
        let Some(tracked) = self.files.get_mut(&id) else { return false };
        let read = self.translators.read(id);
        let closing = tracked.gives_way && self.closing.holds(id);
        tracked.gives_way = read || closing;
        self.translators.over |= closing && !read;
        tracked.gives_way
    }

    /// Gives probes back to files that a worker maps and no translator does any more. Returns who does not get them, which
    /// file, and why.
    pub fn resume(&mut self, kernel: &mut Kernel) -> Vec<(Vec<u32>, String, FileError)> {
        let mut refused = Vec::new();
        if !std::mem::take(&mut self.translators.over) {
            return refused;
        }
        let waiting = self.files.iter().filter(|(_, tracked)| tracked.gives_way);
        let waiting: Vec<FileId> = waiting.map(|(id, _)| *id).collect();
        for id in waiting {
            if self.must_give_way(id) {
                continue;
            }
            let Some(tracked) = self.files.get(&id).filter(|tracked| !tracked.workers.is_empty()) else {
                continue;
            };
            let (workers, path) = (tracked.workers.iter().copied().collect(), tracked.path.clone());
            if let Err(error) = self.place(kernel, id) {
                refused.push((workers, path, error));
            }
        }
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64) -> FileId {
        FileId { major: 0, minor: 0, inode, changed_ns: 0 }
    }

    #[test]
    fn a_file_is_read_until_the_last_that_translates_it_is_gone() {
        let mut translators = Translators::default();
        for (pid, inodes) in [(1, [1, 2]), (2, [2, 3])] {
            translators.files.insert(pid, inodes.into_iter().map(file).collect());
        }
        translators.release(9);
        assert!(!translators.over && translators.read(file(2)) && !translators.read(file(4)));
        translators.release(1);
        assert!(translators.over && !translators.read(file(1)) && translators.read(file(2)));
        translators.release(2);
        assert!([1, 2, 3].into_iter().all(|inode| !translators.read(file(inode))));
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let mut translators = Translators::default();
        for pid in 0.. {
            if !translators.has_room() {
                break;
            }
            translators.files.insert(pid, HashSet::new());
        }
        assert_eq!(translators.files.len(), MAX_TRANSLATORS);
    }
}
