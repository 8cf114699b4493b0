//! Turns the kernel's counters of a process's pages into the memory that an operation needed.
//!
//! Resident pages are read at both ends of a call. In between they can rise and fall: before a process gives memory
//! back it takes its mm's lock, and if it has grown since it last did so, what it holds then is sent. Where that lock's
//! tracepoint is dear (before Linux 6.14), it is the function that unmaps which is observed. The counters are per CPU
//! since Linux 6.2; the shares of the CPUs are added where they are few.

use core::mem::MaybeUninit;

use aya_ebpf::{
    helpers::generated::{bpf_get_smp_processor_id, bpf_probe_read_kernel},
    macros::{fentry, fexit, raw_tracepoint},
    programs::{FEntryContext, FExitContext, RawTracePointContext},
};
use cadscope_common::{
    open::{SeenMemory, Thread},
    record::{NO_LIMIT, OutOfMemory, Resident, record_kind},
    settings::{ABSENT, MAX_COUNTED_CPUS},
};

use crate::{
    emit,
    hit::{ids, now_ns},
    maps::{CPU_OFFSETS, CPU_SHARE, Lowest, RESIDENT, setting},
    task::{current_task, current_u64, kernel, key_of},
};

/// Pages by which a process has grown before it is worth a record: 256 KiB.
const WORTH_PAGES: u64 = 64;
/// A cgroup is full if fewer pages than this are left: the kernel asks for up to 64 at once.
const FULL_PAGES: u64 = 128;
/// Cgroups above the victim's that are looked at.
const MAX_LEVELS: u32 = 8;

/// What a thread has read of its memory holds so long. Some tens of pages can be faulted in meanwhile.
const FRESH_NS: u64 = 20_000;

/// Resident pages and the high-water mark that the kernel keeps when memory is given back, of the current process.
#[inline(always)]
pub fn resident_and_mark(thread: *mut Thread, now_ns: u64) -> (u32, u32) {
    // SAFETY: the thread's state is touched by the thread itself only.
    let seen = unsafe { &mut (*thread).scratch.seen };
    if now_ns.wrapping_sub(seen.at_ns) > FRESH_NS {
        *seen = SeenMemory { at_ns: now_ns, pages: 0, mark_pages: 0 };
        look(seen);
    }
    (seen.pages, seen.mark_pages)
}

/// Reads them.
#[unsafe(no_mangle)]
pub extern "C" fn look(seen: *mut SeenMemory) -> u32 {
    if seen.is_null() {
        return 0;
    }
    let mm = current_u64(setting!(offsets.task_mm));
    if mm != 0 {
        let (pages, mark) = (pages_of(mm), kernel::<u64>(mm, setting!(offsets.mm_hiwater_rss)));
        // SAFETY: the caller's own value.
        unsafe { ((*seen).pages, (*seen).mark_pages) = (pages as u32, mark as u32) };
    }
    0
}

/// Files, anonymous memory and shared memory stand at these places; swapped pages between them.
const COUNTED: [usize; 3] = [0, 1, 3];
/// Words of four `percpu_counter`s; larger ones (with lock debugging) the agent does not offer.
const COUNTER_WORDS: usize = 20;

/// Resident pages of an address space.
#[unsafe(no_mangle)]
pub extern "C" fn pages_of(mm: u64) -> u64 {
    let stat = setting!(offsets.mm_rss_stat);
    if stat == ABSENT {
        return 0;
    }
    // Zeroed by the helper if it cannot read.
    let mut counters = MaybeUninit::<[u64; COUNTER_WORDS]>::uninit();
    let from = mm.wrapping_add(u64::from(stat));
    // SAFETY: the size of the array; the source is checked by the helper.
    unsafe {
        bpf_probe_read_kernel(counters.as_mut_ptr().cast(), 8 * COUNTER_WORDS as u32, from as *const _)
    };
    // SAFETY: written by the helper in any case.
    let counters = unsafe { counters.assume_init_ref() };
    let pages = if setting!(offsets.percpu_count) == ABSENT {
        let own = setting!(offsets.task_rss_stat);
        let mut cached = [0_i32; 4];
        if own != ABSENT {
            cached = kernel(current_task(), own);
        }
        COUNTED.iter().map(|index| counters[*index] as i64 + i64::from(cached[*index])).sum()
    } else {
        per_cpu(counters)
    };
    pages.max(0) as u64
}

#[inline(always)]
fn per_cpu(counters: &[u64; COUNTER_WORDS]) -> i64 {
    let words = setting!(offsets.percpu_size) as usize / 8;
    let (count, shares) =
        (setting!(offsets.percpu_count) as usize / 8, setting!(offsets.percpu_counters) as usize / 8);
    let at = |index: usize, field: usize| {
        let word = index * words + field;
        if word < COUNTER_WORDS { counters[word] } else { 0 }
    };
    let mut pages: i64 = COUNTED.iter().map(|index| at(*index, count) as i64).sum();
    let first = at(0, shares);
    // Before Linux 6.6 the shares of the four lie apart and are left out.
    if at(3, shares) != first.wrapping_add(12) {
        return pages;
    }
    if setting!(counted_cpus) == 1 {
        // SAFETY: no preconditions.
        pages += share(unsafe { bpf_get_smp_processor_id() }, first);
        return pages;
    }
    for cpu in 0..MAX_COUNTED_CPUS as u32 {
        if cpu >= setting!(counted_cpus) {
            break;
        }
        pages += share(cpu, first);
    }
    pages
}

/// What one CPU has not yet added.
#[inline(always)]
fn share(cpu: u32, counters: u64) -> i64 {
    let Some(offset) = CPU_OFFSETS.get_ptr(cpu) else { return 0 };
    // SAFETY: map values live as long as the program.
    let offset = unsafe { *offset };
    if offset == 0 {
        return 0;
    }
    let shares: [i32; 4] = kernel(offset.wrapping_add(counters), 0);
    i64::from(shares[0]) + i64::from(shares[1]) + i64::from(shares[3])
}

/// Not attached: the agent runs it once on each CPU, and it notes where that CPU's share of the kernel's per-CPU memory
/// lies. A per-CPU map is such memory, and the map says at which place of every share.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn cpu_located(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(slot) = CPU_OFFSETS.get_ptr_mut(cpu) else { return 1 };
    let Some(own) = CPU_SHARE.get_ptr_mut(0) else { return 1 };
    // Through memory: the verifier allows no arithmetic on pointers, but does not follow what is stored.
    // SAFETY: an aligned u64 in the map.
    unsafe { core::ptr::write_volatile(slot, (&raw const CPU_SHARE) as u64) };
    // SAFETY: as above.
    let map = unsafe { core::ptr::read_volatile(slot) };
    let place: u64 = kernel(map, setting!(offsets.array_pptrs));
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(slot, own as u64) };
    // SAFETY: as above.
    let own = unsafe { core::ptr::read_volatile(slot) };
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(slot, own.wrapping_sub(place)) };
    0
}

#[raw_tracepoint(tracepoint = "mmap_lock_start_locking")]
pub fn memory_changing(ctx: RawTracePointContext) -> i32 {
    changing(ctx.arg(0));
    0
}

/// `unmap_vmas(struct mmu_gather *, …)`, whose first field is the mm, is about to give memory back.
#[fentry(function = "unmap_vmas")]
pub fn memory_unmapping(ctx: FEntryContext) -> i32 {
    changing(kernel(ctx.arg::<u64>(0), 0));
    0
}

/// It has: from here on a process grows anew.
#[fexit(function = "unmap_vmas")]
pub fn memory_unmapped(ctx: FExitContext) -> i32 {
    let mm = kernel(ctx.arg::<u64>(0), 0);
    if let Some(lowest) = lowest_of(mm) {
        // SAFETY: map values live as long as the program; threads that race lose a record at most.
        unsafe { *lowest = Lowest { pages: pages_of(mm) } };
    }
    0
}

/// Sends what a process holds if it has grown since it last came by here with less.
#[inline(always)]
fn changing(mm: u64) -> Option<()> {
    let lowest = lowest_of(mm)?;
    let pages = pages_of(mm);
    // SAFETY: map values live as long as the program; threads that race lose a record at most.
    let low = unsafe { (*lowest).pages };
    // At first it is 0.
    if pages >= low + WORTH_PAGES {
        let (pid, _) = ids();
        emit::quiet(&Resident { kind: record_kind::RESIDENT, pid, at_ns: now_ns(), pages });
    } else if pages >= low {
        return None;
    }
    // SAFETY: as above.
    unsafe { *lowest = Lowest { pages } };
    Some(())
}

/// Of a process that is followed and whose own memory this is: a debugger for instance reads that of another.
#[inline(always)]
fn lowest_of(mm: u64) -> Option<*mut Lowest> {
    let (pid, _) = ids();
    let lowest = RESIDENT.get_ptr_mut(pid)?;
    (mm == current_u64(setting!(offsets.task_mm))).then_some(lowest)
}

/// Pids are smaller, kernel addresses larger.
const MAX_PID: u64 = 1 << 22;

/// Linux 5.10 gives the victim's pid, newer ones the task.
#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn victim_marked(ctx: RawTracePointContext) -> i32 {
    let victim: u64 = ctx.arg(0);
    let (asking_pid, _) = ids();
    let mut record = OutOfMemory {
        kind: record_kind::OUT_OF_MEMORY,
        level: NO_LIMIT,
        process: Default::default(),
        at_ns: now_ns(),
        pages: 0,
        limit_pages: 0,
        asking_pid,
        padding: 0,
    };
    if victim & 0xffff_ffff <= MAX_PID && victim >> 32 == 0 {
        record.process.pid = victim as u32;
    } else {
        let pid: u32 = kernel(victim, setting!(offsets.task_tgid));
        record.process = key_of(victim, pid);
        let mm: u64 = kernel(victim, setting!(offsets.task_mm));
        if mm != 0 {
            record.pages = pages_of(mm);
        }
        full_cgroup(victim, &mut record);
    }
    emit::urgent(&record);
    0
}

/// Finds the lowest cgroup above the victim that is at its limit.
#[inline(always)]
fn full_cgroup(victim: u64, record: &mut OutOfMemory) {
    if setting!(offsets.cgroups_memory) == ABSENT || setting!(offsets.memcg_memory) == ABSENT {
        return;
    }
    let groups: u64 = kernel(victim, setting!(offsets.task_cgroups));
    let group: u64 = kernel(groups, setting!(offsets.cgroups_memory));
    let mut counter = group.wrapping_add(u64::from(setting!(offsets.memcg_memory)));
    for level in 0..MAX_LEVELS {
        let usage: u64 = kernel(counter, setting!(offsets.counter_usage));
        let limit: u64 = kernel(counter, setting!(offsets.counter_max));
        if limit != 0 && usage.wrapping_add(FULL_PAGES) >= limit {
            record.level = level;
            record.limit_pages = limit;
            break;
        }
        counter = kernel(counter, setting!(offsets.counter_parent));
        if counter == 0 {
            break;
        }
    }
}
