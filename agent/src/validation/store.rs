//! Turns exports that are over into what the next one of the same inputs is compared with, also after a restart.
//!
//! The file `exports` in the state folder is a ring of records of one length, each with its number and checksum: what was
//! cut off or damaged is left out, the latest record of a name counts. It is written where it lies and never renamed, for
//! the agent has given up what changes folders by then. The folder belongs to one agent at a time; another works from
//! memory, and so does one whose folder cannot be written to.

use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use tracing::warn;

use crate::digest::{DIGEST_BYTES, Digest, of_parts};

/// Exports that are remembered; beyond, the one that was seen least recently is forgotten.
const MOST: u64 = 10_000;
/// Places of the ring for each export that is remembered.
const RING_FACTOR: u64 = 4;
/// Begins the file, and says how it is written.
const HEAD: &[u8; 16] = b"cadscope export1";
/// Number, name, digest, checksum of all three.
const RECORD_BYTES: usize = 8 + 2 * DIGEST_BYTES + 8;

/// What an export is compared with.
#[derive(Debug)]
pub struct Store {
    most: u64,
    /// Name → digest, and when it was seen, counted in exports.
    digests: HashMap<Digest, (Digest, u64)>,
    by_age: BTreeMap<u64, Digest>,
    seen: u64,
    ring: Option<File>,
}

impl Store {
    /// What the folder holds; it is made if it is not there. Where it cannot be used, which is told, nothing is kept beyond
    /// this run.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        Self::with_limit(folder, MOST)
    }

    fn with_limit(folder: &Path, most: u64) -> Self {
        let mut store = Self { most, digests: HashMap::new(), by_age: BTreeMap::new(), seen: 0, ring: None };
        match store.load(folder) {
            Ok(ring) => store.ring = Some(ring),
            Err(error) => {
                let folder = folder.display();
                warn!(%folder, %error, "digests of exports are not kept beyond this run");
            }
        }
        store
    }

    fn load(&mut self, folder: &Path) -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut ring = options.open(folder.join("exports"))?;
        ring.try_lock().map_err(|_| io::Error::other("another agent works with this folder"))?;
        let mut bytes = Vec::new();
        // What lies behind has been written by someone else.
        Read::by_ref(&mut ring).take(self.place(self.places())).read_to_end(&mut bytes)?;
        let mut records = BTreeMap::new();
        for bytes in bytes.strip_prefix(HEAD).unwrap_or_default().chunks_exact(RECORD_BYTES) {
            if let Some((number, name, digest)) = read(bytes) {
                records.insert(number, (name, digest));
            }
        }
        for (number, (name, digest)) in records {
            self.seen = number.saturating_sub(1);
            self.note(name, digest);
        }
        ring.rewind()?;
        ring.write_all(HEAD)?;
        Ok(ring)
    }

    const fn places(&self) -> u64 {
        self.most.saturating_mul(RING_FACTOR)
    }

    /// Where the record of a place begins.
    const fn place(&self, place: u64) -> u64 {
        HEAD.len() as u64 + place.saturating_mul(RECORD_BYTES as u64)
    }

    /// Takes the digest of an export and gives that of the one before it of the same name.
    pub(super) fn put(&mut self, name: Digest, digest: Digest) -> Option<Digest> {
        let before = self.note(name, digest);
        if let Err(error) = self.write(name, digest) {
            warn!(%error, "digests of exports are not kept beyond this run any more");
            self.ring = None;
        }
        before
    }

    fn note(&mut self, name: Digest, digest: Digest) -> Option<Digest> {
        self.seen = self.seen.saturating_add(1);
        let before = self.digests.insert(name, (digest, self.seen));
        if let Some((_, age)) = before {
            self.by_age.remove(&age);
        }
        self.by_age.insert(self.seen, name);
        if u64::try_from(self.digests.len()).is_ok_and(|held| held > self.most)
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.digests.remove(&oldest);
        }
        before.map(|(digest, _)| digest)
    }

    fn write(&mut self, name: Digest, digest: Digest) -> io::Result<()> {
        let at = self.place(self.seen % self.places().max(1));
        let Some(ring) = &mut self.ring else { return Ok(()) };
        ring.seek(SeekFrom::Start(at))?;
        ring.write_all(&record(self.seen, name, digest))
    }
}

fn record(number: u64, name: Digest, digest: Digest) -> Vec<u8> {
    let number = number.to_le_bytes();
    let check = of_parts([number.as_slice(), &name.0, &digest.0]);
    [&number, name.0.as_slice(), &digest.0, check.0.get(..8).unwrap_or_default()].concat()
}

fn read(bytes: &[u8]) -> Option<(u64, Digest, Digest)> {
    let (number, rest) = bytes.split_first_chunk()?;
    let (name, rest) = rest.split_first_chunk()?;
    let (digest, _) = rest.split_first_chunk()?;
    let (number, name, digest) = (u64::from_le_bytes(*number), Digest(*name), Digest(*digest));
    (record(number, name, digest) == bytes).then_some((number, name, digest))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn digest(number: u64) -> Digest {
        of_parts([number.to_le_bytes().as_slice()])
    }

    #[test]
    fn the_export_before_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        let mut store = Store::open(&state);
        assert_eq!(store.put(digest(1), digest(10)), None);
        assert_eq!(store.put(digest(1), digest(11)), Some(digest(10)));
        drop(store);
        assert_eq!(Store::open(&state).put(digest(1), digest(11)), Some(digest(11)));
    }

    #[test]
    fn what_was_cut_off_or_damaged_is_left_out_and_the_rest_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("exports");
        for (damage, wanted) in [
            ("cut", [true, true, false]),
            ("flip", [true, true, false]),
            ("head", [false, false, false]),
            ("more", [true, true, true]),
        ] {
            let _ = fs::remove_file(&file);
            let mut store = Store::open(folder.path());
            for number in 0..3 {
                store.put(digest(number), digest(number + 10));
            }
            drop(store);
            let mut file = OpenOptions::new().read(true).write(true).open(&file).unwrap();
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
            let mut store = Store::open(folder.path());
            let known: Vec<bool> = (0..3).map(|n| store.put(digest(n), digest(n + 10)).is_some()).collect();
            assert_eq!(known, wanted, "{damage}");
        }
    }

    #[test]
    fn it_and_its_file_stay_small_and_keep_what_was_seen_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::with_limit(folder.path(), 5);
        for number in 0..1000 {
            store.put(digest(number), digest(0));
            store.put(digest(7), digest(1));
            assert!(store.digests.len() <= 5 && store.by_age.len() <= 5);
            let length = fs::metadata(folder.path().join("exports")).unwrap().len();
            assert!(length <= store.place(store.places()));
            if number % 100 == 99 {
                drop(store);
                store = Store::with_limit(folder.path(), 5);
            }
        }
        assert_eq!(store.put(digest(7), digest(1)), Some(digest(1)));
        assert_eq!(store.put(digest(999), digest(0)), Some(digest(0)));
        assert_eq!(store.put(digest(8), digest(0)), None);
    }

    #[test]
    fn a_folder_has_one_writer_and_a_wrong_folder_is_no_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Store::open(folder.path());
        let mut second = Store::open(folder.path());
        assert!(first.ring.is_some() && second.ring.is_none());
        first.put(digest(1), digest(1));
        assert_eq!(second.put(digest(1), digest(2)), None);
        assert_eq!(second.put(digest(1), digest(2)), Some(digest(2)));
        let mut nowhere = Store::open(Path::new("/proc/nowhere"));
        assert_eq!(nowhere.put(digest(1), digest(1)), None);
        assert_eq!(nowhere.put(digest(1), digest(1)), Some(digest(1)));
    }
}
