//! Turns a kernel and a list of commands into what each command said and how it ended: a machine in QEMU whose root file
//! system is this machine's, read-only, over 9p. One for arm64 has a small one of its own, and this machine's in [`HOST`].
//!
//! The processor is emulated (TCG): virtual machines hang where this machine is one itself without nested virtualisation
//! proper, and a test that runs everywhere is worth more than a fast one. Times inside mean nothing. The guest has its own
//! /tmp, /run, /proc, /sys and cgroups, and no network.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::builds;
use crate::places::{repository, target_dir};
use crate::shell::follow;
use crate::vm::kernel::{Cpu, Kernel};

/// Version of the cgroups that a guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cgroups {
    /// v1 with the memory controller, beside a v2 without.
    V1,
    /// The one hierarchy of v2.
    V2,
}

/// What the time of a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// This machine's, on two processors.
    Real,
    /// Instructions, each a nanosecond, on one processor: what programs take is the same whatever else this machine does.
    Instructions,
}

/// A command of the guest, run by the shell of this machine's root file system.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) command: String,
    /// It is ended after so long.
    pub(crate) limit: Duration,
}

/// What became of a guest.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Its `uname -r`.
    pub(crate) release: String,
    /// Exit status of each step that ended, from the first.
    pub(crate) ended: Vec<i32>,
    /// What the steps said to whoever booted it, lines that begin with `@@say `.
    pub(crate) said: Vec<String>,
    /// What they said to it alone, `@@keep `: too much to be printed.
    pub(crate) kept: Vec<String>,
}

/// Where a guest for arm64 has this machine's root file system.
pub(crate) const HOST: &str = "/tmp/host";

const BEGIN: &str = "@@step ";
const END: &str = "@@ended ";
const RELEASE: &str = "@@release ";
const SAY: &str = "@@say ";
const KEEP: &str = "@@keep ";

/// Boots, runs the steps, powers off. What the guest says is printed as it comes; one that dies leaves steps without an end.
pub(crate) fn boot(kernel: &Kernel, cgroups: Cgroups, clock: Clock, steps: &[Step]) -> Result<Outcome> {
    let folder = target_dir()?.join("vm");
    fs::create_dir_all(&folder)?;
    let archive = tempfile::Builder::new().prefix(kernel.name).suffix(".cpio").tempfile_in(&folder)?;
    fs::write(&archive, initramfs(kernel, cgroups, steps)?)?;
    let limit = steps.iter().fold(Duration::from_secs(300), |sum, step| sum + step.limit);
    let mut outcome = Outcome::default();
    let run = follow(&mut qemu(kernel, clock, archive.path(), limit)?, |line| outcome.take(line));
    if let Err(error) = run {
        println!("Linux {}: {error:#}", kernel.name);
    }
    if outcome.ended.len() < steps.len() {
        println!("Linux {} ended after {} of {} steps", kernel.name, outcome.ended.len(), steps.len());
    }
    Ok(outcome)
}

impl Outcome {
    fn take(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(release) = line.strip_prefix(RELEASE) {
            release.clone_into(&mut self.release);
        } else if let Some(status) = line.strip_prefix(END) {
            self.ended.push(status.parse().unwrap_or(-1));
        } else if let Some(kept) = line.strip_prefix(KEEP) {
            self.kept.push(kept.to_owned());
        } else if !line.starts_with(BEGIN) {
            self.said.extend(line.strip_prefix(SAY).map(str::to_owned));
            println!("  {line}");
        }
    }
}

/// QEMU of another suite, with that suite's own libraries and loader.
fn qemu(kernel: &Kernel, clock: Clock, archive: &Path, limit: Duration) -> Result<Command> {
    let (build, program) = match kernel.cpu {
        Cpu::X86_64 => ("qemu", "qemu-system-x86_64"),
        Cpu::Arm64 => ("qemu-arm64", "qemu-system-aarch64"),
    };
    let root = builds::folder()?.join(build).canonicalize().with_context(|| format!("no build `{build}`"))?;
    let usr = root.join("usr");
    let folder = kernel.folder()?.canonicalize().with_context(|| format!("no build `{}`", kernel.build))?;
    let mut qemu = Command::new("timeout");
    qemu.args(["-k", "10", &limit.as_secs().to_string()]).arg(usr.join("lib64/ld-linux-x86-64.so.2"));
    qemu.arg("--library-path").arg(usr.join("lib/x86_64-linux-gnu"));
    qemu.arg(usr.join("bin").join(program));
    qemu.arg("-L").arg(usr.join("share/qemu")).arg("-L").arg(usr.join("share/seabios"));
    let (cpu, console) = match kernel.cpu {
        Cpu::X86_64 => ("max", "ttyS0 mitigations=off tsc=reliable"),
        // Signed pointers by a cheap function of the emulator's own.
        Cpu::Arm64 => ("max,pauth-impdef=on", "ttyAMA0"),
    };
    if kernel.cpu == Cpu::Arm64 {
        qemu.args(["-machine", "virt"]);
    }
    qemu.args(["-cpu", cpu]).args(match clock {
        Clock::Real => ["-accel", "tcg,thread=multi", "-smp", "2", "-m", "2048"].as_slice(),
        Clock::Instructions => {
            &["-accel", "tcg,thread=single", "-smp", "1", "-m", "3072", "-icount", "shift=0,sleep=off"]
        }
    });
    qemu.args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-net", "none"]);
    let own = folder.join("root");
    match kernel.cpu {
        Cpu::X86_64 => share(&mut qemu, "root", Path::new("/")),
        Cpu::Arm64 => {
            share(&mut qemu, "root", &own);
            share(&mut qemu, "host", Path::new("/"));
        }
    }
    qemu.arg("-kernel").arg(folder.join("vmlinuz")).arg("-initrd").arg(archive);
    let layout = if clock == Clock::Instructions { " norandmaps" } else { "" };
    qemu.arg("-append").arg(format!("console={console} quiet panic=-1{layout}"));
    Ok(qemu)
}

/// A folder of this machine. Several file systems can lie below it: their inode numbers are told apart.
fn share(qemu: &mut Command, name: &str, folder: &Path) {
    let folder = folder.display();
    qemu.arg("-fsdev")
        .arg(format!("local,id={name},path={folder},security_model=none,readonly=on,multidevs=remap"));
    qemu.arg("-device").arg(format!("virtio-9p-pci,fsdev={name},mount_tag={name}"));
}

/// The first program of the guest. Modules are tried until those that they need are there; kernels of Debian 13 and newer
/// say that a compressed module is none before busybox unpacks it. A checkout in a folder that is the guest's own is kept.
const INIT: &str = r#"#!/bin/busybox sh
B=/bin/busybox R=/root
for round in 1 2 3 4; do for module in /modules/*; do $B insmod $module 2>/dev/null; done; done
$B mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=524288,ro root $R || echo "the root file system cannot be mounted"
$B mount -t proc proc $R/proc; $B mount -t sysfs sys $R/sys; $B mount -t devtmpfs dev $R/dev
$B mkdir -p $R/dev/shm; HERE=$($B cat /checkout)
case $HERE in /tmp/*|/run/*) $B mount -o bind $R$HERE /kept ;; esac
for folder in tmp run dev/shm; do $B mount -t tmpfs tmpfs $R/$folder; done
case $HERE in /tmp/*|/run/*) $B mkdir -p $R$HERE; $B mount -o bind /kept $R$HERE ;; esac
. /shares
$B mount -t tracefs tracefs $R/sys/kernel/tracing; $B mount -t bpf bpf $R/sys/fs/bpf
. /cgroups
$B ip link set lo up
echo "@@release $($B uname -r)"
. /steps
$B poweroff -f
"#;
const HOST_MOUNT: &str = "H=$R/tmp/host; $B mkdir $H
$B mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=524288,ro host $H || echo \"no host\"\n";
const CGROUP_V2: &str = "$B mount -t cgroup2 cgroup2 $R/sys/fs/cgroup\n";
const CGROUP_V1: &str =
    "$B mount -t tmpfs tmpfs $R/sys/fs/cgroup; cd $R/sys/fs/cgroup; $B mkdir memory unified
$B mount -t cgroup -o memory cgroup memory; $B mount -t cgroup2 cgroup2 unified; cd /\n";

fn initramfs(kernel: &Kernel, cgroups: Cgroups, steps: &[Step]) -> Result<Vec<u8>> {
    let folder = kernel.folder()?;
    let (busybox, host) = match kernel.cpu {
        Cpu::X86_64 => (builds::folder()?.join("qemu/usr/bin/busybox"), ""),
        Cpu::Arm64 => (folder.join("root/usr/bin/busybox"), HOST_MOUNT),
    };
    let mut archive = Archive::default();
    for folder in ["bin", "modules", "root", "proc", "kept"] {
        archive.add(folder, FOLDER, &[])?;
    }
    archive.add(
        "bin/busybox",
        PROGRAM,
        &fs::read(&busybox).with_context(|| busybox.display().to_string())?,
    )?;
    for entry in fs::read_dir(folder.join("modules"))? {
        let entry = entry?;
        let name = format!("modules/{}", entry.file_name().to_string_lossy());
        archive.add(&name, PROGRAM, &fs::read(entry.path())?)?;
    }
    archive.add("init", PROGRAM, INIT.as_bytes())?;
    let checkout = match kernel.cpu {
        Cpu::X86_64 => repository()?.to_string_lossy().into_owned(),
        Cpu::Arm64 => String::new(),
    };
    archive.add("checkout", PROGRAM, checkout.as_bytes())?;
    let mounts = if cgroups == Cgroups::V1 { CGROUP_V1 } else { CGROUP_V2 };
    archive.add("shares", PROGRAM, host.as_bytes())?;
    archive.add("cgroups", PROGRAM, mounts.as_bytes())?;
    archive.add("steps", PROGRAM, script(steps).as_bytes())?;
    archive.end()
}

fn script(steps: &[Step]) -> String {
    let mut script = String::new();
    for (number, step) in steps.iter().enumerate() {
        let command = step.command.replace('\'', r"'\''");
        let seconds = step.limit.as_secs();
        let _ = writeln!(script, "echo '{BEGIN}{number}'");
        let _ = writeln!(
            script,
            "$B chroot $R /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp timeout -k 5 {seconds} \
             /bin/sh -c '{command}' </dev/null 2>&1\necho \"{END}$?\""
        );
    }
    script
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// A cpio archive in the form that the kernel unpacks (`newc`).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let (size, length) = (u32::try_from(content.len())?, u32::try_from(name.len() + 1)?);
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
        let mut header = "070701".to_owned();
        for field in fields {
            let _ = write!(header, "{field:08x}");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Result<Vec<u8>> {
        self.add("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_aligned_and_ends_with_its_trailer() {
        let mut archive = Archive::default();
        archive.add("a", PROGRAM, b"12345").unwrap();
        let bytes = archive.end().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(bytes.get(..6), Some(&b"070701"[..]));
        assert_eq!(bytes.get(112..117), Some(&b"12345"[..]), "name and its end fill the header's row");
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }

    #[test]
    fn a_guest_says_its_release_and_how_each_step_ended() {
        let mut outcome = Outcome::default();
        for line in [
            "@@release 6.1.0\r",
            "@@step 0\r",
            "words\r",
            "@@say a b\r",
            "@@keep c\r",
            "@@ended 0\r",
            "@@step 1",
            "@@ended 101",
        ] {
            outcome.take(line);
        }
        assert_eq!((outcome.release.as_str(), outcome.ended.as_slice()), ("6.1.0", &[0, 101][..]));
        assert_eq!((outcome.said, outcome.kept), (vec!["a b".to_owned()], vec!["c".to_owned()]));
    }

    #[test]
    fn a_command_with_quotes_stays_one_word() {
        let step = Step { command: "echo 'a b'".to_owned(), limit: Duration::from_secs(9) };
        assert!(script(&[step]).contains(r"/bin/sh -c 'echo '\''a b'\'''"));
    }
}
