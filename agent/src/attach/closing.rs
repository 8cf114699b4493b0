//! Turns links that are given up into probes that are gone, beside the observation.
//!
//! The kernel takes the breakpoints out of every process that maps the file, and waits for the lock of its memory: a
//! process that waits for one of its own pages (of FUSE, of userfaultfd) can hold that for as long as it likes. Until all
//! are out, the file must get no new probes if it has changed: one at the place of an old one would run the instruction
//! that the kernel has kept of the former contents.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::discover::FileId;
use crate::kernel::Link;

/// Of the thread that closes: it does nothing else.
const STACK_BYTES: usize = 64 << 10;
/// Threads that close links beside this one when all are given up.
const CLOSERS: usize = 31;
/// How often is looked whether a file's probes are gone.
const LOOK: Duration = Duration::from_millis(1);

/// How many sets of links are being closed of each file.
type Counts = Arc<Mutex<HashMap<FileId, usize>>>;

/// What is being closed.
#[derive(Debug, Default)]
pub(super) struct Closing(Counts);

/// Links and the note that they are being closed; both end with it.
struct Over {
    links: Vec<Link>,
    file: FileId,
    counts: Counts,
}

impl Closing {
    /// Closes links of a file, the first first.
    pub(super) fn close(&self, file: FileId, links: Vec<Link>) {
        if links.is_empty() {
            return;
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(file).or_default() += 1;
        let over = Over { links, file, counts: Arc::clone(&self.0) };
        // Without a thread they are closed here.
        let beside = std::thread::Builder::new().name("close links".to_owned()).stack_size(STACK_BYTES);
        let _ = beside.spawn(move || drop(over));
    }

    /// Whether nothing is being closed.
    pub(super) fn is_over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Whether former probes of a file are being taken away.
    pub(super) fn holds(&self, file: FileId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&file)
    }

    /// Waits until a file has no former probes, for at most `limit`; whether it has none.
    pub(super) fn wait(&self, file: FileId, limit: Duration) -> bool {
        let begin = Instant::now();
        while self.holds(file) {
            if begin.elapsed() >= limit {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}

/// Closes links that are all given up, together: each waits for the kernel, and they wait for the same.
pub(super) fn close_together(links: Vec<Link>) {
    let beside = CLOSERS.min(links.len().saturating_sub(1));
    let links = Mutex::new(links.into_iter());
    let close = || {
        // A statement of its own: the lock is not held while a link closes.
        loop {
            let link = links.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(link) = link else { break };
            drop(link);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..beside {
            let closer = std::thread::Builder::new().name("close links".to_owned()).stack_size(STACK_BYTES);
            // Those that do not start leave more to the others.
            let _ = closer.spawn_scoped(scope, close);
        }
        close();
    });
}

impl Drop for Over {
    fn drop(&mut self) {
        self.links.drain(..).for_each(drop);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.file) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.file);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::OwnedFd;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn file(inode: u64) -> FileId {
        FileId { major: 0, minor: 0, inode, changed_ns: 0 }
    }

    #[test]
    fn a_file_has_former_probes_until_the_last_link_is_closed() {
        let closing = Closing::default();
        assert!(closing.is_over() && closing.wait(file(1), Duration::ZERO));
        let (mut reader, writer) = std::io::pipe().unwrap();
        closing.close(file(1), vec![Link::Multi(OwnedFd::from(writer))]);
        // The end of the pipe is seen only when its other end has been closed.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        assert!(closing.wait(file(1), SOON) && closing.is_over());
    }

    #[test]
    fn links_that_are_given_up_together_are_all_closed() {
        for count in [0, 1, 2, 100] {
            let pipes: Vec<_> = (0..count).map(|_| std::io::pipe().unwrap()).collect();
            let (readers, writers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
            close_together(writers.into_iter().map(|writer| Link::Multi(OwnedFd::from(writer))).collect());
            for mut reader in readers {
                assert_eq!(reader.read(&mut [0]).unwrap(), 0);
            }
        }
    }

    #[test]
    fn a_link_that_does_not_close_holds_up_its_own_file_only() {
        let closing = Closing::default();
        let (held, wait) = std::sync::mpsc::channel::<()>();
        let over = Over { links: Vec::new(), file: file(1), counts: Arc::clone(&closing.0) };
        closing.0.lock().unwrap().insert(file(1), 1);
        let slow = std::thread::spawn(move || {
            wait.recv().unwrap_err();
            drop(over);
        });
        let (_, writer) = std::io::pipe().unwrap();
        closing.close(file(2), vec![Link::Multi(OwnedFd::from(writer))]);
        assert!(closing.wait(file(2), SOON));
        assert!(!closing.wait(file(1), Duration::from_millis(20)) && !closing.is_over());
        drop(held);
        assert!(closing.wait(file(1), SOON) && closing.is_over());
        slow.join().unwrap();
    }
}
