//! Turns the files that a process maps, and the packages below its root, into what they say of its versions, without
//! looking into its memory.
//!
//! A package database is read once, and again when it has been written to: an image has one, and its workers map tens of
//! files that want to know.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::discover;
use crate::identify;
use crate::plan::Versions;

/// Where Debian's package database lies below the root of a worker, and how much of it is read.
const DPKG_STATUS: &str = "var/lib/dpkg/status";
const DPKG_BYTES: u64 = 16 << 20;
/// Databases that are remembered; the memory starts anew beyond.
const MAX_DATABASES: usize = 256;

/// What a database is told by: device, inode, bytes, time of writing.
type Stamp = (u64, u64, u64, i64, i64);

/// What the package databases say that were read.
#[derive(Debug, Default)]
pub struct Installed {
    freecad: HashMap<Stamp, String>,
}

impl Installed {
    /// What the files that a process maps say of its versions.
    pub fn versions_of<P: AsRef<str>>(
        &mut self,
        proc: &Path,
        pid: u32,
        paths: impl Iterator<Item = P>,
    ) -> Versions {
        let mut versions = Versions::default();
        let mut has_freecad = false;
        for path in paths {
            let name = path.as_ref().rsplit('/').next().unwrap_or_default();
            has_freecad |= name.starts_with("libFreeCAD") || name.starts_with("freecad");
            if versions.occt.is_empty() {
                versions.occt = identify::occt_version_from_file_name(name).unwrap_or_default();
            }
        }
        if has_freecad {
            versions.freecad = self.freecad_below_root_of(proc, pid).unwrap_or_default();
        }
        versions
    }

    fn freecad_below_root_of(&mut self, proc: &Path, pid: u32) -> Option<String> {
        let root = File::open(proc.join(pid.to_string()).join("root")).ok()?;
        let file = discover::open_below_root(&root, Path::new(DPKG_STATUS))?;
        let now = file.metadata().ok()?;
        let stamp = (now.dev(), now.ino(), now.len(), now.mtime(), now.mtime_nsec());
        if let Some(known) = self.freecad.get(&stamp) {
            return Some(known.clone());
        }
        let mut bytes = Vec::new();
        file.take(DPKG_BYTES).read_to_end(&mut bytes).ok()?;
        let version = identify::freecad_version_from_dpkg_status(&String::from_utf8_lossy(&bytes));
        let version = version.unwrap_or_default();
        if self.freecad.len() >= MAX_DATABASES {
            self.freecad.clear();
        }
        self.freecad.insert(stamp, version.clone());
        Some(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_read_again_when_it_has_been_written_to() {
        let node = tempfile::tempdir().unwrap();
        let database = node.path().join("7/root/var/lib/dpkg");
        std::fs::create_dir_all(&database).unwrap();
        let mut installed = Installed::default();
        let mut versions = || installed.versions_of(node.path(), 7, ["/lib/libFreeCADApp.so"].iter());
        assert_eq!(versions(), Versions::default(), "no database");
        let says = |version: &str| {
            let package =
                format!("Package: freecad-python3\nStatus: install ok installed\nVersion: {version}\n");
            std::fs::write(database.join("status"), package).unwrap();
        };
        says("0.20.2+dfsg1-4");
        assert_eq!(versions().freecad, "0.20.2");
        assert_eq!(versions().freecad, "0.20.2");
        says("0.21.10+dfsg1-4");
        assert_eq!(versions().freecad, "0.21.10");
    }

    #[test]
    fn a_process_without_freecad_has_the_version_of_its_occt_only() {
        let files = ["/usr/lib/libc.so.6", "/usr/lib/libTKBO.so.7.6.3"];
        let found = Installed::default().versions_of(Path::new("/nonexistent"), 1, files.iter());
        assert_eq!((found.freecad.as_str(), found.occt.as_str()), ("", "7.6.3"));
    }
}
