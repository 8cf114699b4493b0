//! Turns exports that are over into what the next one of the same inputs is compared with, also after a restart.
//!
//! The file `exports` in the state folder is a log of records of one length, each with its own checksum: what was cut off
//! or damaged is left out, the last record of a name counts. It is written anew, without what is outdated, when it has
//! become four times as long as what is kept. The folder belongs to one agent at a time; another works from memory, and so
//! does one whose folder cannot be written to.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::digest::{DIGEST_BYTES, Digest, of_parts};

/// Exports that are remembered; beyond, the one that was seen least recently is forgotten.
const MOST: usize = 10_000;
/// Records of the log for each export that is remembered.
const LOG_FACTOR: usize = 4;
/// Begins the log, and says how it is written.
const HEAD: &[u8; 16] = b"cadscope export1";
/// Name, digest, checksum of both.
const RECORD_BYTES: usize = 2 * DIGEST_BYTES + 8;

/// What an export is compared with.
#[derive(Debug)]
pub(super) struct Store {
    most: usize,
    /// Name → digest, and when it was seen, counted in exports.
    digests: HashMap<Digest, (Digest, u64)>,
    by_age: BTreeMap<u64, Digest>,
    seen: u64,
    log: Option<Log>,
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    records: usize,
    /// Held for as long as the log is written.
    _lock: File,
}

impl Store {
    /// What the folder holds; it is made if it is not there. Without a folder, and where it cannot be used, which is told,
    /// nothing is kept beyond this run.
    pub(super) fn open(folder: Option<&Path>) -> Self {
        Self::with_limit(folder, MOST)
    }

    fn with_limit(folder: Option<&Path>, most: usize) -> Self {
        let mut store = Self { most, digests: HashMap::new(), by_age: BTreeMap::new(), seen: 0, log: None };
        if let Some(folder) = folder
            && let Err(error) = store.load(folder)
        {
            let folder = folder.display();
            warn!(%folder, %error, "digests of exports are not kept beyond this run");
        }
        store
    }

    fn load(&mut self, folder: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let lock = private().create(true).truncate(false).write(true).open(folder.join("lock"))?;
        lock.try_lock().map_err(|_| io::Error::other("another agent works with this folder"))?;
        let path = folder.join("exports");
        let mut bytes = Vec::new();
        match File::open(&path) {
            // A log is never longer; what comes after has been written by someone else.
            Ok(file) => drop(file.take(self.longest()).read_to_end(&mut bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        for record in bytes.strip_prefix(HEAD).unwrap_or_default().chunks_exact(RECORD_BYTES) {
            if let Some((name, digest)) = read(record) {
                self.note(name, digest);
            }
        }
        self.log = Some(self.write_anew(path, lock)?);
        Ok(())
    }

    fn longest(&self) -> u64 {
        let records = self.most.saturating_mul(LOG_FACTOR + 1);
        u64::try_from(HEAD.len() + records.saturating_mul(RECORD_BYTES)).unwrap_or(u64::MAX)
    }

    /// A log of what is remembered, the oldest first; the old one is there until the new one is whole.
    fn write_anew(&self, path: PathBuf, lock: File) -> io::Result<Log> {
        let mut bytes = HEAD.to_vec();
        for name in self.by_age.values() {
            if let Some((digest, _)) = self.digests.get(name) {
                bytes.extend(record(*name, *digest));
            }
        }
        let new = path.with_extension("new");
        let mut file = private().create(true).truncate(true).write(true).open(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        Ok(Log { path, file, records: self.digests.len(), _lock: lock })
    }

    /// Takes the digest of an export and gives that of the one before it of the same name.
    pub(super) fn put(&mut self, name: Digest, digest: Digest) -> Option<Digest> {
        let before = self.note(name, digest);
        if let Err(error) = self.write(name, digest) {
            warn!(%error, "digests of exports are not kept beyond this run any more");
            self.log = None;
        }
        before
    }

    fn note(&mut self, name: Digest, digest: Digest) -> Option<Digest> {
        self.seen += 1;
        let before = self.digests.insert(name, (digest, self.seen));
        if let Some((_, age)) = before {
            self.by_age.remove(&age);
        }
        self.by_age.insert(self.seen, name);
        if self.digests.len() > self.most
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.digests.remove(&oldest);
        }
        before.map(|(digest, _)| digest)
    }

    fn write(&mut self, name: Digest, digest: Digest) -> io::Result<()> {
        let Some(mut log) = self.log.take() else { return Ok(()) };
        if log.records >= self.most.saturating_mul(LOG_FACTOR) {
            log = self.write_anew(log.path, log._lock)?;
        } else {
            log.file.write_all(&record(name, digest))?;
            log.records += 1;
        }
        self.log = Some(log);
        Ok(())
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn record(name: Digest, digest: Digest) -> Vec<u8> {
    let check = of_parts([name.0.as_slice(), &digest.0]);
    [&name.0, &digest.0, check.0.get(..8).unwrap_or_default()].concat()
}

fn read(bytes: &[u8]) -> Option<(Digest, Digest)> {
    let name = Digest(bytes.get(..DIGEST_BYTES)?.try_into().ok()?);
    let digest = Digest(bytes.get(DIGEST_BYTES..2 * DIGEST_BYTES)?.try_into().ok()?);
    (record(name, digest) == bytes).then_some((name, digest))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

    use super::*;

    fn digest(number: u64) -> Digest {
        of_parts([number.to_le_bytes().as_slice()])
    }

    #[test]
    fn the_export_before_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        let mut store = Store::open(Some(&state));
        assert_eq!(store.put(digest(1), digest(10)), None);
        assert_eq!(store.put(digest(1), digest(11)), Some(digest(10)));
        drop(store);
        assert_eq!(Store::open(Some(&state)).put(digest(1), digest(11)), Some(digest(11)));
    }

    #[test]
    fn what_was_cut_off_or_damaged_is_left_out_and_the_rest_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("exports");
        for damage in ["cut", "flip", "head", "more"] {
            let _ = fs::remove_file(&log);
            let mut store = Store::open(Some(folder.path()));
            for number in 0..3 {
                store.put(digest(number), digest(number + 10));
            }
            drop(store);
            let mut file = OpenOptions::new().read(true).write(true).open(&log).unwrap();
            let length = file.metadata().unwrap().len();
            match damage {
                "cut" => file.set_len(length - 1).unwrap(),
                "flip" => {
                    file.seek(SeekFrom::Start(length - 20)).unwrap();
                    file.write_all(b"x").unwrap();
                }
                "head" => file.write_all(b"x").unwrap(),
                _ => {
                    file.seek(SeekFrom::End(0)).unwrap();
                    file.write_all(&[7; 1000]).unwrap();
                }
            }
            let mut store = Store::open(Some(folder.path()));
            let known: Vec<bool> = (0..3).map(|n| store.put(digest(n), digest(n + 10)).is_some()).collect();
            let wanted = match damage {
                "head" => [false, false, false],
                "more" => [true, true, true],
                _ => [true, true, false],
            };
            assert_eq!(known, wanted, "{damage}");
        }
    }

    #[test]
    fn it_and_its_log_stay_small_and_keep_what_was_seen_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::with_limit(Some(folder.path()), 5);
        for number in 0..1000 {
            store.put(digest(number), digest(0));
            store.put(digest(7), digest(1));
            assert!(store.digests.len() <= 5 && store.by_age.len() <= 5);
            assert!(fs::metadata(folder.path().join("exports")).unwrap().len() <= store.longest());
        }
        drop(store);
        let mut store = Store::with_limit(Some(folder.path()), 5);
        assert_eq!(store.put(digest(7), digest(1)), Some(digest(1)));
        assert_eq!(store.put(digest(999), digest(0)), Some(digest(0)));
        assert_eq!(store.put(digest(8), digest(0)), None);
    }

    #[test]
    fn a_folder_has_one_writer_and_a_wrong_folder_is_no_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Store::open(Some(folder.path()));
        let mut second = Store::open(Some(folder.path()));
        assert!(first.log.is_some() && second.log.is_none());
        first.put(digest(1), digest(1));
        assert_eq!(second.put(digest(1), digest(2)), None);
        assert_eq!(second.put(digest(1), digest(2)), Some(digest(2)));
        let mut nowhere = Store::open(Some(Path::new("/proc/nowhere")));
        assert_eq!(nowhere.put(digest(1), digest(1)), None);
        assert_eq!(nowhere.put(digest(1), digest(1)), Some(digest(1)));
    }
}
