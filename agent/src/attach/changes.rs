//! Turns writes to probed files into the news that they have changed.
//!
//! The kernel puts a probe at its offset into every process that maps the file later, whatever stands there by then. In
//! a library that is rewritten in place that corrupts the worker, so such a file must lose its probes at once. Writes
//! through a shared mapping are not noticed; no installer writes that way.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::discover::FileId;

/// What a file's contents are told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// That of an open file.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let now = file.metadata()?;
        Ok(Self { bytes: now.len(), modified: (now.mtime(), now.mtime_nsec()) })
    }
}

/// The files that are watched.
#[derive(Debug)]
pub(super) struct Changes {
    inotify: Inotify,
    files: HashMap<WatchDescriptor, FileId>,
}

impl Changes {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The kernel's refusal: too many inotify instances of this user.
    pub(super) fn new() -> nix::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self { inotify, files: HashMap::new() })
    }

    /// Readable when there is news.
    #[must_use]
    pub(super) fn descriptor(&self) -> RawFd {
        self.inotify.as_fd().as_raw_fd()
    }

    /// Watches an open file.
    ///
    /// # Errors
    /// The kernel's refusal: too many watches of this user.
    pub(super) fn watch(&mut self, id: FileId, file: &File) -> nix::Result<()> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let watch = self.inotify.add_watch(&path, AddWatchFlags::IN_MODIFY)?;
        self.files.insert(watch, id);
        Ok(())
    }

    /// Watches a file no longer.
    pub(super) fn forget(&mut self, id: FileId) {
        let inotify = &self.inotify;
        self.files.retain(|watch, file| {
            let keep = *file != id;
            if !keep {
                // Refused only if the file is gone, and its watch with it.
                let _ = inotify.rm_watch(*watch);
            }
            keep
        });
    }

    /// The watched files that have been written to since the last call.
    pub(super) fn take(&mut self) -> Vec<FileId> {
        let mut changed = Vec::new();
        // An error is EAGAIN: nothing more to read.
        while let Ok(events) = self.inotify.read_events() {
            if events.is_empty() {
                break;
            }
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    changed.extend(self.files.values().copied());
                } else if event.mask.contains(AddWatchFlags::IN_MODIFY) {
                    changed.extend(self.files.get(&event.wd));
                }
            }
        }
        changed.sort_unstable();
        changed.dedup();
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_write_is_news_once_and_only_of_a_watched_file() {
        let mut files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let id = |inode| FileId { major: 0, minor: 0, inode, changed_ns: 0 };
        let mut changes = Changes::new().unwrap();
        changes.watch(id(1), &files[0]).unwrap();
        files[1].write_all(b"x").unwrap();
        assert_eq!(changes.take(), []);
        let before = Stamp::of(&files[0]).unwrap();
        files[0].write_all(b"x").unwrap();
        files[0].write_all(b"y").unwrap();
        assert_ne!(before, Stamp::of(&files[0]).unwrap());
        assert_eq!(changes.take(), [id(1)]);
        assert_eq!(changes.take(), []);
        files[0].set_len(0).unwrap();
        assert_eq!(changes.take(), [id(1)]);
        changes.forget(id(1));
        files[0].write_all(b"z").unwrap();
        assert_eq!(changes.take(), []);
    }
}
