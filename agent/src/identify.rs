//! Turns a worker's files and memory into the versions of what it runs: which OCCT, which FreeCAD.
//!
//! OCCT's version stands in the names of its libraries. FreeCAD keeps its own in `App::Application::mConfig`, an exported
//! `std::map<std::string, std::string>` that its start-up fills; Debian's package database knows it before that.
//!
//! Pure: memory comes through a closure. The map is a worker's: every step is bounded, a circle in it ends the walk, and
//! what is no version is no version.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Mangled name of `App::Application::mConfig`. Look in the executable's dynamic symbols first (a copy relocation puts the
/// live object there), then in `libFreeCADApp.so`.
pub const FREECAD_CONFIG_SYMBOL: &str = "_ZN3App11Application7mConfigB5cxx11E";

/// Nodes of the map that are looked at.
const MAX_NODES: usize = 512;
/// Longest key or value that is read.
const MAX_STRING: u64 = 256;
/// Longest version that is believed.
const MAX_VERSION: usize = 32;

// libstdc++, LP64: std::map is { comparator: 8, header node { colour: 8, parent = root, left, right }, count }.
const MAP_ROOT: u64 = 0x10;
const MAP_COUNT: u64 = 0x28;
// A node is { colour: 8, parent, left, right, key: std::string, value: std::string }.
const NODE_LEFT: usize = 0x10;
const NODE_RIGHT: usize = 0x18;
const NODE_KEY: usize = 0x20;
const NODE_VALUE: usize = 0x40;
const NODE_BYTES: usize = 0x60;

/// Versions as FreeCAD itself states them; empty where it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// `0.20.2`.
    pub freecad: String,
    /// `7.6.3`.
    pub occt: String,
}

/// The OCCT version in the name of one of its libraries: `libTKernel.so.7.6.3`, `libTKBO-5e382d13.so.7.9.3`.
///
/// `None` for every other name, and for one that has not all three numbers (`libTKernel.so.7`).
#[must_use]
pub fn occt_version_from_file_name(name: &str) -> Option<String> {
    let (library, version) = name.strip_prefix("libTK")?.split_once(".so.")?;
    let toolkit = match library.split_once('-') {
        // Wheels add a hash of the file to its name.
        Some((toolkit, hash)) => {
            let is_hash =
                hash.len() == 8 && hash.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
            is_hash.then_some(toolkit)?
        }
        None => library,
    };
    let is_word = !toolkit.is_empty() && toolkit.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let parts = version.split('.').count();
    (is_word && parts == 3 && is_version(version)).then(|| version.to_owned())
}

/// The versions in FreeCAD's configuration map at `addr`; `read` fills the buffer from the worker's memory or says false.
///
/// Empty versions if the map is not filled yet, not readable, or no such map.
pub fn versions_from_config(addr: u64, read: impl FnMut(u64, &mut [u8]) -> bool) -> Versions {
    let config = read_map(addr, read);
    let get = |key: &str| config.get(key).filter(|text| is_version(text)).cloned();
    let parts = ["BuildVersionMajor", "BuildVersionMinor", "BuildVersionPoint"].map(get);
    let from_parts = match parts {
        [Some(major), Some(minor), Some(point)] => Some(format!("{major}.{minor}.{point}")),
        [Some(major), Some(minor), None] => Some(format!("{major}.{minor}")),
        _ => None,
    };
    Versions {
        freecad: get("ExeVersion").or(from_parts).unwrap_or_default(),
        occt: get("OCC_VERSION").unwrap_or_default(),
    }
}

/// The FreeCAD version in the text of `/var/lib/dpkg/status`: `0.20.2+dfsg1-4` is `0.20.2`.
#[must_use]
pub fn freecad_version_from_dpkg_status(status: &str) -> Option<String> {
    // Only what names it is looked at closely: the database is large, and its reader has a worker waiting.
    status.match_indices("freecad-python3").find_map(|(at, _)| {
        let (before, after) = status.split_at_checked(at)?;
        let start = before.rfind("\n\n").map_or(0, |gap| gap + 2);
        let end = after.find("\n\n").map_or(status.len(), |gap| at + gap);
        let paragraph = status.get(start..end)?;
        let field = |name: &str| {
            paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let package = field("Package")?;
        let is_freecad = package == "freecad-python3" || package.starts_with("libfreecad-python3-");
        let installed = field("Status").is_none_or(|status| status.ends_with(" installed"));
        (is_freecad && installed).then(|| upstream_version(field("Version")?)).flatten()
    })
}

/// The upstream part of a Debian version.
fn upstream_version(version: &str) -> Option<String> {
    let without_epoch = version.split_once(':').map_or(version, |(_, rest)| rest);
    let upstream = without_epoch.split(['+', '~', '-']).next()?;
    is_version(upstream).then(|| upstream.to_owned())
}

/// Digits in one to four parts, with a suffix such as `rc1` in the last.
fn is_version(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let Some((last, first)) = parts.split_last() else { return false };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    text.len() <= MAX_VERSION
        && first.len() < 4
        && first.iter().all(|part| digits(part))
        && last.starts_with(|c: char| c.is_ascii_digit())
        && last.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// The strings of a `std::map<std::string, std::string>`; entries that cannot be read or are too long are left out.
fn read_map(addr: u64, mut read: impl FnMut(u64, &mut [u8]) -> bool) -> BTreeMap<String, String> {
    let mut entries = BTreeMap::new();
    let (Some(root), Some(count)) = (
        read_word(addr.wrapping_add(MAP_ROOT), &mut read),
        read_word(addr.wrapping_add(MAP_COUNT), &mut read),
    ) else {
        return entries;
    };
    let limit = usize::try_from(count).map_or(MAX_NODES, |count| count.min(MAX_NODES));
    let mut seen = BTreeSet::new();
    let mut waiting = VecDeque::from([root]);
    while let Some(node) = waiting.pop_front() {
        if node == 0 || seen.len() >= limit || !seen.insert(node) {
            continue;
        }
        let mut bytes = [0; NODE_BYTES];
        if !read(node, &mut bytes) {
            continue;
        }
        waiting.extend([NODE_LEFT, NODE_RIGHT].iter().filter_map(|&at| word_in(&bytes, at)));
        let key = read_string(&bytes, NODE_KEY, &mut read);
        let value = read_string(&bytes, NODE_VALUE, &mut read);
        if let (Some(key), Some(value)) = (key, value) {
            entries.insert(key, value);
        }
    }
    entries
}

fn read_word(addr: u64, read: &mut impl FnMut(u64, &mut [u8]) -> bool) -> Option<u64> {
    let mut word = [0; 8];
    read(addr, &mut word).then(|| u64::from_le_bytes(word))
}

fn word_in(node: &[u8; NODE_BYTES], at: usize) -> Option<u64> {
    let word: [u8; 8] = node.get(at..)?.first_chunk().copied()?;
    Some(u64::from_le_bytes(word))
}

/// A `std::string` is { characters, length, … }; short ones lie inside the object, which their pointer then says.
fn read_string(
    node: &[u8; NODE_BYTES],
    at: usize,
    read: &mut impl FnMut(u64, &mut [u8]) -> bool,
) -> Option<String> {
    let (characters, length) = (word_in(node, at)?, word_in(node, at + 8)?);
    if length > MAX_STRING {
        return None;
    }
    let mut text = vec![0; usize::try_from(length).ok()?];
    if !text.is_empty() && !read(characters, &mut text) {
        return None;
    }
    String::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOT_AT: usize = 0x10;
    const COUNT_AT: usize = 0x28;

    /// Memory of a worker: bytes from one address on.
    struct Image {
        base: u64,
        bytes: Vec<u8>,
    }

    impl Image {
        fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
            let Some(at) = addr.checked_sub(self.base).and_then(|at| usize::try_from(at).ok()) else {
                return false;
            };
            match self.bytes.get(at..).and_then(|rest| rest.get(..buf.len())) {
                Some(found) => {
                    buf.copy_from_slice(found);
                    true
                }
                None => false,
            }
        }

        fn put(&mut self, at: usize, word: u64) {
            self.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }

        fn put_string(&mut self, at: usize, text: &str) {
            let characters = if text.len() < 16 {
                self.bytes[at + 16..at + 16 + text.len()].copy_from_slice(text.as_bytes());
                self.base + at as u64 + 16
            } else {
                self.bytes.extend_from_slice(text.as_bytes());
                self.base + (self.bytes.len() - text.len()) as u64
            };
            self.put(at, characters);
            self.put(at + 8, text.len() as u64);
        }

        /// A map at the first address, its nodes as a heap (node n has children 2n+1 and 2n+2).
        fn of_map(entries: &[(&str, &str)]) -> Self {
            let node = |n: usize| 0x30 + n * NODE_BYTES;
            let mut image = Self { base: 0x7f00_0000_1000, bytes: vec![0; node(entries.len())] };
            let address = |n: usize| if n < entries.len() { 0x7f00_0000_1000 + node(n) as u64 } else { 0 };
            image.put(ROOT_AT, address(0));
            image.put(COUNT_AT, entries.len() as u64);
            for (n, (key, value)) in entries.iter().enumerate() {
                image.put(node(n) + NODE_LEFT, address(2 * n + 1));
                image.put(node(n) + NODE_RIGHT, address(2 * n + 2));
                image.put_string(node(n) + NODE_KEY, key);
                image.put_string(node(n) + NODE_VALUE, value);
            }
            image
        }

        fn versions(&self) -> Versions {
            versions_from_config(self.base, |addr, buf| self.read(addr, buf))
        }
    }

    #[test]
    fn versions_are_found_in_the_configuration() {
        let image = Image::of_map(&[
            ("AppHomePath", "/usr/lib/freecad-python3/with/a/long/path/"),
            ("ExeVersion", "0.20.2"),
            ("OCC_VERSION", "7.6.3"),
            ("BuildVersionMajor", "0"),
        ]);
        assert_eq!(image.versions(), Versions { freecad: "0.20.2".into(), occt: "7.6.3".into() });
    }

    #[test]
    fn the_build_version_serves_where_the_program_states_none() {
        let image = Image::of_map(&[
            ("BuildVersionMajor", "1"),
            ("BuildVersionMinor", "1"),
            ("BuildVersionPoint", "3"),
            ("OCC_VERSION", "<script>"),
        ]);
        assert_eq!(image.versions(), Versions { freecad: "1.1.3".into(), occt: String::new() });
    }

    #[test]
    fn an_unfilled_map_has_no_versions() {
        assert_eq!(Image::of_map(&[]).versions(), Versions::default());
        assert_eq!(versions_from_config(8, |_, _| false), Versions::default());
    }

    #[test]
    fn a_circle_ends_the_walk() {
        let mut image = Image::of_map(&[("a", "1"), ("b", "2"), ("ExeVersion", "1.0.0")]);
        let root = image.base + 0x30;
        image.put(0x30 + NODE_BYTES + NODE_LEFT, root);
        image.put(COUNT_AT, u64::MAX);
        assert_eq!(image.versions().freecad, "1.0.0");
    }

    #[test]
    fn a_map_without_end_is_left_after_512_nodes() {
        let mut reads = 0;
        let versions = versions_from_config(0x1000, |addr, buf| {
            reads += 1;
            buf.fill(0);
            if buf.len() == 8 {
                buf.copy_from_slice(&[0xff; 8]);
            } else {
                buf[NODE_LEFT..NODE_LEFT + 8].copy_from_slice(&(addr.wrapping_add(0x60)).to_le_bytes());
                buf[NODE_RIGHT..NODE_RIGHT + 8].copy_from_slice(&(addr.wrapping_mul(3)).to_le_bytes());
            }
            true
        });
        assert_eq!(versions, Versions::default());
        assert_eq!(reads, 2 + MAX_NODES);
    }

    #[test]
    fn occt_is_named_by_its_files() {
        for (name, version) in [
            ("libTKernel.so.7.6.3", Some("7.6.3")),
            ("libTKBO-5e382d13.so.7.9.3", Some("7.9.3")),
            ("libTKG2d-86714293.so.7.7.2", Some("7.7.2")),
            ("libTKernel.so.10.0.12", Some("10.0.12")),
            ("libTKernel.so.7", None),
            ("libTKernel.so", None),
            ("libTKernel.so.7.6.3.debug", None),
            ("libTKernel-xyz.so.7.6.3", None),
            ("libTKernel-5E382D13.so.7.6.3", None),
            ("libTK.so.7.6.3", None),
            ("xlibTKernel.so.7.6.3", None),
            ("libTKernel.so.7..3", None),
            ("libTKernel.so.7.6.x", None),
            ("libtbb.so.2.1.0", None),
        ] {
            assert_eq!(occt_version_from_file_name(name).as_deref(), version, "{name}");
        }
    }

    #[test]
    fn debian_knows_the_version_of_an_installed_freecad() {
        let status = "Package: freecad\nStatus: install ok installed\nVersion: 9\n\n\
            Package: freecad-python3\nStatus: deinstall ok config-files\nVersion: 0.19.1-1\n\n\
            Package: libfreecad-python3-0.20\nStatus: install ok installed\nVersion: 1:0.20.2+dfsg1-4+deb12u1\n";
        assert_eq!(freecad_version_from_dpkg_status(status).as_deref(), Some("0.20.2"));
        assert_eq!(freecad_version_from_dpkg_status("Package: gcc\nVersion: 1\n"), None);
        assert_eq!(freecad_version_from_dpkg_status(""), None);
    }

    proptest! {
        #[test]
        fn no_memory_image_breaks_the_walk(bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0u64..600) {
            let image = Image { base: 0, bytes };
            let versions = versions_from_config(at, |addr, buf| image.read(addr, buf));
            prop_assert!(versions.freecad.len() <= 3 * MAX_VERSION + 2);
        }

        #[test]
        fn a_map_of_any_strings_is_read_whole(
            strings in prop::collection::btree_map("[a-zA-Z]{1,40}", "\\PC{0,40}", 0..40)
        ) {
            let entries: Vec<_> = strings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let image = Image::of_map(&entries);
            prop_assert_eq!(read_map(image.base, |addr, buf| image.read(addr, buf)), strings);
        }

        #[test]
        fn no_name_or_status_panics(text in "\\PC{0,60}") {
            let _ = occt_version_from_file_name(&format!("libTK{text}"));
            let _ = occt_version_from_file_name(&text);
            let _ = freecad_version_from_dpkg_status(&format!("Package: freecad-python3\nVersion: {text}"));
        }
    }
}
