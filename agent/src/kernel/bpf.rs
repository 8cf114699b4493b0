//! The calls of bpf(2) that aya 0.14 lacks: loading a program for uprobe_multi with its types, and its link.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya_obj::generated::{bpf_func_info, bpf_insn};
use object::{Object, ObjectSection, SectionKind};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_BTF_LOAD: libc::c_long = 18;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_PERF_EVENT: u32 = 41;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
const BPF_FUNC_COPY_FROM_USER: u8 = 148;
const BPF_F_SLEEPABLE: u32 = 1 << 4;
const LOG_BYTES: u32 = 1 << 24;

/// The head of `union bpf_attr` for BPF_PROG_LOAD, up to the function types (Linux 5.0+).
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    padding: u32,
}

/// The head of `union bpf_attr` for BPF_BTF_LOAD.
#[repr(C)]
#[derive(Default)]
struct BtfLoad {
    btf: u64,
    btf_log_buf: u64,
    btf_size: u32,
    btf_log_size: u32,
    btf_log_level: u32,
    padding: u32,
}

/// `union bpf_attr` for BPF_LINK_CREATE of a uprobe_multi link (Linux 6.6+).
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    cnt: u32,
    multi_flags: u32,
    pid: u32,
    padding: u32,
}

/// `union bpf_attr` for BPF_LINK_CREATE of a perf event (Linux 5.15+).
#[repr(C)]
#[derive(Default)]
struct PerfLinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    bpf_cookie: u64,
}

const _: () = assert!(size_of::<PerfLinkCreate>() == 24);
const _: () = assert!(size_of::<ProgLoad>() == 96);
const _: () = assert!(size_of::<BtfLoad>() == 32);
const _: () = assert!(size_of::<LinkCreate>() == 64);

fn call<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    let size = size_of::<T>();
    // SAFETY: the kernel reads `size` bytes of `attr` and what its pointers name, which the callers keep alive.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An object whose programs do not sleep: each call of `bpf_copy_from_user` is the number -1, its failure.
///
/// # Errors
/// The object is damaged.
pub fn without_sleep(object: &[u8]) -> Result<Vec<u8>, object::Error> {
    const CALL: [u8; 8] = [0x85, 0, 0, 0, BPF_FUNC_COPY_FROM_USER, 0, 0, 0];
    const FAILURE: [u8; 8] = [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let file = object::File::parse(object)?;
    let code = file.sections().filter(|section| section.kind() == SectionKind::Text);
    let ranges: Vec<(u64, u64)> = code.filter_map(|section| section.file_range()).collect();
    let mut changed = object.to_vec();
    for (start, length) in ranges {
        let range = usize::try_from(start).ok().zip(usize::try_from(length).ok());
        let code = range.and_then(|(start, length)| changed.get_mut(start..)?.get_mut(..length));
        for instruction in code.unwrap_or_default().chunks_exact_mut(CALL.len()) {
            if instruction == CALL {
                instruction.copy_from_slice(&FAILURE);
            }
        }
    }
    Ok(changed)
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.addr() as u64
}

/// Loads the types of an object.
///
/// # Errors
/// The kernel's refusal.
pub fn load_btf(types: &[u8]) -> io::Result<OwnedFd> {
    let attr = BtfLoad {
        btf: address(types.as_ptr()),
        btf_size: u32::try_from(types.len()).unwrap_or(u32::MAX),
        ..BtfLoad::default()
    };
    call(BPF_BTF_LOAD, &attr)
}

/// Loads a program for uprobe_multi links; it may sleep. `types` are those of its functions: global ones, of which they
/// tell the arguments, are verified once and not once a caller. The error carries the verifier's last lines.
///
/// # Errors
/// The kernel's refusal.
pub fn load_uprobe_multi(
    name: &str,
    instructions: &[bpf_insn],
    license: &CStr,
    types: Option<(BorrowedFd<'_>, &[bpf_func_info])>,
) -> io::Result<OwnedFd> {
    let mut attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_KPROBE,
        insn_cnt: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        insns: address(instructions.as_ptr()),
        license: address(license.as_ptr()),
        prog_flags: BPF_F_SLEEPABLE,
        expected_attach_type: BPF_TRACE_UPROBE_MULTI,
        ..ProgLoad::default()
    };
    for (to, from) in attr.prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    if let Some((btf, functions)) = types {
        attr.prog_btf_fd = u32::try_from(btf.as_raw_fd()).unwrap_or(0);
        attr.func_info_rec_size = u32::try_from(size_of::<bpf_func_info>()).unwrap_or(0);
        attr.func_info = address(functions.as_ptr());
        attr.func_info_cnt = u32::try_from(functions.len()).unwrap_or(0);
    }
    let refusal = match call(BPF_PROG_LOAD, &attr) {
        Ok(fd) => return Ok(fd),
        Err(refusal) => refusal,
    };
    let mut log = vec![0_u8; LOG_BYTES as usize];
    attr.log_level = 1;
    attr.log_size = LOG_BYTES;
    attr.log_buf = address(log.as_mut_ptr());
    match call(BPF_PROG_LOAD, &attr) {
        Ok(fd) => Ok(fd),
        Err(_) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let text = String::from_utf8_lossy(log.get(..end).unwrap_or_default());
            let mut tail: Vec<&str> = text.lines().rev().take(4).collect();
            tail.reverse();
            Err(io::Error::new(refusal.kind(), format!("{refusal}; verifier: {}", tail.join(" | "))))
        }
    }
}

/// Has a program run at each hit of a perf event, with a cookie; it ends when the descriptor is closed.
///
/// # Errors
/// The kernel's refusal: EINVAL before Linux 5.15.
pub fn link_perf_event(program: BorrowedFd<'_>, event: BorrowedFd<'_>, cookie: u64) -> io::Result<OwnedFd> {
    let raw = |fd: BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX);
    let attr = PerfLinkCreate {
        prog_fd: raw(program),
        target_fd: raw(event),
        attach_type: BPF_PERF_EVENT,
        flags: 0,
        bpf_cookie: cookie,
    };
    call(BPF_LINK_CREATE, &attr)
}

/// Attaches a program to offsets of a file, each with its cookie; the probes go when the descriptor is closed.
///
/// # Errors
/// The kernel's refusal: EINVAL before Linux 6.6, EPERM without CAP_BPF and CAP_PERFMON, or the file is unsuitable.
pub fn link_uprobe_multi(
    program: BorrowedFd<'_>,
    path: &CString,
    offsets: &[u64],
    cookies: &[u64],
) -> io::Result<OwnedFd> {
    let attr = LinkCreate {
        prog_fd: u32::try_from(program.as_raw_fd()).unwrap_or(u32::MAX),
        attach_type: BPF_TRACE_UPROBE_MULTI,
        path: address(path.as_ptr()),
        offsets: address(offsets.as_ptr()),
        cookies: address(cookies.as_ptr()),
        cnt: u32::try_from(offsets.len().min(cookies.len())).unwrap_or(u32::MAX),
        ..LinkCreate::default()
    };
    call(BPF_LINK_CREATE, &attr)
}
