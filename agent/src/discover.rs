//! Turns processes and their executable mappings into candidates for observation, and opens their files safely.

pub mod container;
pub mod mappings;

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cadscope_common::record::ProcessKey;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, fstatfs};
use procfs::process::{MMPermissions, MMapPath, Process};

use crate::job::ENVIRON_BYTES;

pub use self::container::{Containers, command_of, container_of, has_no_command_yet};
pub use self::mappings::{FileId, Mapping, Mappings, MappingsError, Step};

/// Why a mapped file cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The process ended, or unmapped it, before it could be opened.
    #[error("the process was gone before its file could be opened")]
    Gone,
    /// The file at the path is no longer the one that is mapped.
    #[error("the file at the path is not the one that is mapped")]
    Replaced,
    /// It is a directory, a pipe, a device.
    #[error("not a regular file")]
    NotRegular,
    /// Refused.
    #[error("cannot be opened: {0}")]
    Refused(String),
}

/// Opens the file of a mapping: by the mapping itself, else by its path below the root of the process, which is
/// resolved without leaving that root.
///
/// # Errors
/// Why not.
pub fn open_mapped(proc: &Path, mapping: &Mapping) -> Result<File, OpenError> {
    let process = proc.join(mapping.pid.to_string());
    let by_mapping = process.join("map_files").join(format!("{:x}-{:x}", mapping.start, mapping.end));
    if let Ok(found) = look(AT_FDCWD, &by_mapping, ResolveFlag::empty()) {
        return readable(&regular(found)?);
    }
    let refused = |error: std::io::Error| match error.raw_os_error().map(nix::Error::from_raw) {
        Some(nix::Error::ENOENT | nix::Error::ESRCH) => OpenError::Gone,
        _ => OpenError::Refused(error.to_string()),
    };
    let root = File::open(process.join("root")).map_err(refused)?;
    let path = Path::new(mapping.path.trim_start_matches('/'));
    let found = look_below(&root, path).map_err(|error| refused(error.into()))?;
    let found = regular(found)?;
    if !is_stated(&found, mapping.file).map_err(|error| OpenError::Refused(error.to_string()))? {
        return Err(OpenError::Replaced);
    }
    readable(&found)
}

/// Whether an unopened file can be the one that a mapping states. Only by its inode number where the device of a file is
/// another than its mapping's: the layers of an overlay, the subvolumes of btrfs.
fn is_stated(found: &File, stated: FileId) -> std::io::Result<bool> {
    let metadata = found.metadata()?;
    let same_device = (u64::from(stated.major), u64::from(stated.minor))
        == (nix::sys::stat::major(metadata.dev()), nix::sys::stat::minor(metadata.dev()));
    Ok(metadata.ino() == stated.inode && (same_device || device_may_differ(found)?))
}

fn device_may_differ(file: &File) -> std::io::Result<bool> {
    Ok([OVERLAYFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC].contains(&fstatfs(file)?.filesystem_type()))
}

/// The identity of an open file that a mapping states.
///
/// Each mount of an overlay has a device of its own, but the containers of one image share its files, and the kernel
/// places probes in what they share: there, the inode number and the time of the inode's last change tell a file. A
/// container that writes to its file gets a copy with another time.
///
/// # Errors
/// The kernel's refusal.
pub fn identity(file: &File, stated: FileId) -> std::io::Result<FileId> {
    if fstatfs(file)?.filesystem_type() != OVERLAYFS_SUPER_MAGIC {
        return Ok(stated);
    }
    let metadata = file.metadata()?;
    let changed_ns = metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec());
    Ok(FileId { major: 0, minor: 0, inode: metadata.ino(), changed_ns })
}

fn regular(file: File) -> Result<File, OpenError> {
    let metadata = file.metadata().map_err(|error| OpenError::Refused(error.to_string()))?;
    if metadata.is_file() { Ok(file) } else { Err(OpenError::NotRegular) }
}

/// The executable mappings of a process now; empty if it is gone.
#[must_use]
pub fn mappings_of(proc: &Path, pid: u32) -> Vec<Mapping> {
    let Some(maps) = process(proc, pid).and_then(|process| process.maps().ok()) else { return Vec::new() };
    maps.into_iter()
        .filter(|map| map.perms.contains(MMPermissions::EXECUTE) && map.inode != 0)
        .filter_map(|map| {
            let MMapPath::Path(path) = map.pathname else { return None };
            let path = path.to_string_lossy();
            Some(Mapping {
                pid,
                file: FileId {
                    major: u32::try_from(map.dev.0).ok()?,
                    minor: u32::try_from(map.dev.1).ok()?,
                    inode: map.inode,
                    changed_ns: 0,
                },
                start: map.address.0,
                end: map.address.1,
                offset: map.offset,
                path: path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned(),
            })
        })
        .collect()
}

/// The number of a thread in the innermost PID namespace that it is in; `None` if it is gone.
#[must_use]
pub fn thread_in_its_namespace(proc: &Path, pid: u32, tid: u32) -> Option<u32> {
    let status = proc.join(pid.to_string()).join("task").join(tid.to_string()).join("status");
    let status = std::fs::read_to_string(status).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().next_back()?.parse().ok()
}

/// Resident bytes of a process now; `None` if it is gone.
#[must_use]
pub fn resident_bytes(proc: &Path, pid: u32) -> Option<u64> {
    let pages = process(proc, pid)?.statm().ok()?.resident;
    Some(pages.saturating_mul(procfs::page_size()))
}

/// Every process of the node.
#[must_use]
pub fn processes(proc: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(proc) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Identity of a live process; its start time has the 10 ms steps of /proc.
#[must_use]
pub fn key_of(proc: &Path, pid: u32) -> Option<ProcessKey> {
    let start = stat(&process(proc, pid)?)?.start;
    let per_second = procfs::ticks_per_second().max(1);
    let start_boottime_ns = start.saturating_mul(1_000_000_000 / per_second);
    Some(ProcessKey { pid, padding: 0, start_boottime_ns })
}

/// More than `stat` or `status` of any process has: one in 65,536 groups has 700 KB.
const PROCESS_BYTES: u64 = 1 << 20;

/// A file of a process, as far as this.
fn bounded(process: &Process, name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(2048);
    process.open_relative(name).ok()?.take(PROCESS_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// What is wanted of a process's `stat` (proc(5)).
struct Stat {
    parent: u32,
    /// In the kernel's ticks, in user and kernel mode.
    cpu_ticks: u64,
    /// In the kernel's ticks since boot.
    start: u64,
}

/// Reads it itself: the library that reads the others panics where a text is cut off behind the name.
fn stat(process: &Process) -> Option<Stat> {
    let bytes = bounded(process, "stat")?;
    // Whatever the name holds, it ends at the last parenthesis; the field behind it is the third.
    let end = bytes.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(bytes.get(end + 1..)?).ok()?;
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(number(4)?).ok()?,
        cpu_ticks: number(14)?.saturating_add(number(15)?),
        start: number(22)?,
    })
}

/// The parent of a process; `None` if it is gone or has none.
#[must_use]
pub fn parent_of(proc: &Path, pid: u32) -> Option<u32> {
    Some(stat(&process(proc, pid)?)?.parent).filter(|parent| *parent > 0)
}

/// At most `limit` bytes of a regular file below the root of a process, resolved without leaving that root.
#[must_use]
pub fn read_below_root(proc: &Path, pid: u32, path: &Path, limit: u64) -> Option<Vec<u8>> {
    use std::io::Read;
    let root = File::open(proc.join(pid.to_string()).join("root")).ok()?;
    let file = open_below_root(&root, path)?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Hands over what a process was started with, `NAME=value` texts that end with NUL; empty if it is gone. Environments
/// hold secrets: no copy of it stays in memory.
pub fn with_environ<T>(proc: &Path, pid: u32, take: impl FnOnce(&[u8]) -> T) -> T {
    use std::io::Read;
    // With room for all of it: it would leave copies where it grew.
    let mut bytes = Vec::with_capacity(usize::try_from(ENVIRON_BYTES).unwrap_or(0) + 64);
    if let Ok(file) = File::open(proc.join(pid.to_string()).join("environ")) {
        // Half an environment is better than none.
        let _ = file.take(ENVIRON_BYTES).read_to_end(&mut bytes);
    }
    let taken = take(&bytes);
    bytes.fill(0);
    std::hint::black_box(&bytes);
    taken
}

/// As whom a process touches files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    user: u32,
    groups: Vec<u32>,
}

impl Rights {
    /// Those of a process; `None` if it is gone.
    #[must_use]
    pub fn of(proc: &Path, pid: u32) -> Option<Self> {
        Self::read(&std::fs::read_to_string(proc.join(pid.to_string()).join("status")).ok()?)
    }

    fn read(status: &str) -> Option<Self> {
        let numbers = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.split_whitespace().filter_map(|number| number.parse().ok()).collect::<Vec<u32>>())
        };
        // Real, effective, saved, and the one for files.
        let file = |name: &str| numbers(name)?.get(3).copied();
        let mut groups = numbers("Groups").unwrap_or_default();
        groups.push(file("Gid")?);
        Some(Self { user: file("Uid")?, groups })
    }

    /// Whether the mode of a file lets them read it. Folders on the way to it are not looked at, nor lists of access.
    #[must_use]
    pub fn may_read(&self, file: &File) -> bool {
        file.metadata().is_ok_and(|file| self.may_read_mode(file.mode(), file.uid(), file.gid()))
    }

    fn may_read_mode(&self, mode: u32, owner: u32, group: u32) -> bool {
        match self.user {
            0 => true,
            user if user == owner => mode & 0o400 != 0,
            _ if self.groups.contains(&group) => mode & 0o040 != 0,
            _ => mode & 0o004 != 0,
        }
    }
}

/// A regular file below a root, which `rights` may read, resolved without leaving the root: the agent may read any, and
/// does for nobody what they could not do themselves. What is refused is not opened, only looked at.
#[must_use]
pub fn open_for(rights: &Rights, root: &File, path: &Path) -> Option<File> {
    let found = regular(look_below(root, path).ok()?).ok()?;
    rights.may_read(&found).then(|| readable(&found).ok())?
}

/// A regular file below a root, resolved without leaving it. What is no regular file is not opened, only looked at.
#[must_use]
pub fn open_below_root(root: &File, path: &Path) -> Option<File> {
    readable(&regular(look_below(root, path).ok()?).ok()?).ok()
}

/// A file below a root, unopened: a pipe has no reader by it, a device is not touched.
fn look_below(root: &File, path: &Path) -> nix::Result<File> {
    look(root, path, ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

fn look(folder: impl AsFd, path: &Path, resolve: ResolveFlag) -> nix::Result<File> {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).mode(Mode::empty()).resolve(resolve);
    openat2(folder, path, how).map(File::from)
}

/// The same file, opened to be read.
fn readable(found: &File) -> Result<File, OpenError> {
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(found));
    File::open(again).map_err(|error| OpenError::Refused(error.to_string()))
}

/// What a process uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time on all CPUs since its start.
    pub cpu_ns: u64,
    /// Resident memory.
    pub resident_bytes: u64,
    /// The most of it so far.
    pub peak_bytes: u64,
}

/// What a process uses; `None` if it is gone.
#[must_use]
pub fn usage_of(proc: &Path, pid: u32) -> Option<Usage> {
    let process = process(proc, pid)?;
    let cpu_ticks = stat(&process)?.cpu_ticks;
    let status = bounded(&process, "status")?;
    // A library that reads all sixty lines takes five times as long as the kernel takes to write them.
    let mut memory = Usage::default();
    for line in status.split(|byte| *byte == b'\n') {
        let Some((name, value)) = line.split_at_checked(6) else { continue };
        match name {
            b"VmRSS:" => memory.resident_bytes = kib(value)?,
            b"VmHWM:" => memory.peak_bytes = kib(value)?,
            _ => {}
        }
    }
    let tick_ns = 1_000_000_000 / procfs::ticks_per_second().max(1);
    Some(Usage { cpu_ns: cpu_ticks.saturating_mul(tick_ns), ..memory })
}

/// The bytes of `   12 kB`.
fn kib(value: &[u8]) -> Option<u64> {
    let number = std::str::from_utf8(value).ok()?.trim().strip_suffix("kB")?.trim_end();
    Some(number.parse::<u64>().ok()?.saturating_mul(1024))
}

/// Whether a process is there.
#[must_use]
pub fn is_alive(proc: &Path, pid: u32) -> bool {
    proc.join(pid.to_string()).exists()
}

/// Whether a program runs its own translation of a worker's code: one of valgrind's tools, which are named `memcheck-amd64-linux`
/// and so on.
#[must_use]
pub fn is_translator(path: &str) -> bool {
    ["-amd64-linux", "-arm64-linux"].iter().any(|end| path.ends_with(end))
}

/// File name of the program that a process runs; `?` if it is gone.
#[must_use]
pub fn program_of(proc: &Path, pid: u32) -> String {
    let target =
        std::fs::read_link(proc.join(pid.to_string()).join("exe")).unwrap_or_else(|_| PathBuf::from("?"));
    let name = target.file_name().unwrap_or(target.as_os_str()).to_string_lossy().into_owned();
    name.strip_suffix(" (deleted)").map(str::to_owned).unwrap_or(name)
}

fn process(proc: &Path, pid: u32) -> Option<Process> {
    Process::new_with_root(proc.join(pid.to_string())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_kernel_says_of_it() {
        let own = usage_of(Path::new("/proc"), std::process::id()).unwrap();
        let status = Process::myself().unwrap().status().unwrap();
        assert!(own.resident_bytes > 1 << 20 && own.peak_bytes >= own.resident_bytes, "{own:?}");
        assert!(own.peak_bytes <= status.vmhwm.unwrap() * 1024, "{own:?}");
        assert_eq!(
            (kib(b"\t   12 kB"), kib(b"\t12"), kib(b"\tkB"), kib(b"\xff kB")),
            (Some(12288), None, None, None)
        );
    }

    #[test]
    fn valgrinds_tools_are_known_by_their_names() {
        for tool in ["/usr/libexec/valgrind/memcheck-amd64-linux", "none-arm64-linux"] {
            assert!(is_translator(tool), "{tool}");
        }
        for other in ["/usr/bin/valgrind", "/usr/bin/x86_64-linux-gnu-gcc", "freecadcmd", "?"] {
            assert!(!is_translator(other), "{other}");
        }
    }

    #[test]
    fn a_worker_reads_what_its_user_or_group_may_and_root_all() {
        let status = "Name:\tx\nUid:\t1\t2\t3\t1000\nGid:\t5\t5\t5\t100\nGroups:\t27 44 \n";
        let rights = Rights::read(status).unwrap();
        assert_eq!(rights, Rights { user: 1000, groups: vec![27, 44, 100] });
        for (mode, owner, group, may) in [
            (0o600, 1000, 0, true),
            (0o077, 1000, 100, false),
            (0o640, 0, 44, true),
            (0o604, 0, 100, false),
            (0o604, 0, 0, true),
            (0o600, 0, 0, false),
        ] {
            assert_eq!(rights.may_read_mode(mode, owner, group), may, "{mode:o} {owner} {group}");
        }
        assert!(Rights::default().may_read_mode(0, 1000, 100));
        assert_eq!(Rights::read("Name: x"), None);
    }
}
