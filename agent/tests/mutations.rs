//! Promise: no input makes a parser panic, hang, or take memory out of proportion to it.
//!
//! Real inputs are changed in seeded, so repeatable, ways and given to what reads them in the agent: ELF files to sites,
//! /proc's texts, environments, the kernel's records, catalogues, what HTTP clients accept. A few seconds a target unless
//! `CADSCOPE_FUZZ_SECONDS` says more (`cargo xtask fuzz`); a failure names the target and the seed.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::type_complexity,
    reason = "a test: out of bounds is a failure, and each target is listed once"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cadscope::catalog::{Catalog, demangle_type};
use cadscope::config::AgentUrl;
use cadscope::container::Container;
use cadscope::export::exposition::Format;
use cadscope::flow_type::flow_type;
use cadscope::job::{Job, Variables};
use cadscope::plan::{Versions, plan, tls};
use cadscope::receive;

/// Seconds a target.
const SECONDS: u64 = 3;
/// One input is done within this; a machine that does much else is allowed for.
const LONGEST: Duration = Duration::from_secs(20);
/// Memory that an input may take: so much in any case, and so many times its size.
const ANY_BYTES: usize = 64 << 20;
const TIMES: usize = 64;

/// The system's allocator, which remembers the most that was in use.
struct Counting;
static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// xorshift64*: the same numbers from the same seed on any machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % (most.max(1) as u64)).unwrap_or(0)
    }
}

/// Changes an input in one to sixteen places, near its begin as often as anywhere.
fn mutate(input: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(16) {
        let reach = if random.below(2) == 0 { bytes.len().min(4096) } else { bytes.len() };
        let at = random.below(reach);
        match random.below(7) {
            0 => bytes.truncate(at),
            1 => {
                let extra: Vec<u8> = (0..random.below(64)).map(|_| random.next().to_le_bytes()[0]).collect();
                bytes.splice(at..at, extra);
            }
            2 => {
                let from = random.below(bytes.len());
                let part = bytes[from..(from + random.below(256)).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            3 | 4 => {
                let word = [0, 1, u64::MAX, 1 << 31, 1 << 32, 1 << 63, random.next()][random.below(7)];
                let size = [1, 2, 4, 8][random.below(4)];
                for (to, from) in bytes.iter_mut().skip(at).zip(word.to_le_bytes().into_iter().take(size)) {
                    *to = from;
                }
            }
            _ => {
                let bit = 1 << random.below(8);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= bit);
            }
        }
    }
    bytes
}

/// Gives changed inputs to a target for a while; one thread, so that memory is its own.
fn torment(name: &str, seconds: u64, inputs: &[Vec<u8>], target: &dyn Fn(&[u8])) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut seed = 1_u64;
    while Instant::now() < end {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let input = mutate(&inputs[random.below(inputs.len())], &mut random);
        let before = NOW.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let begun = Instant::now();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target(&input)));
        assert!(done.is_ok(), "{name}, seed {seed}: panicked");
        assert!(begun.elapsed() < LONGEST, "{name}, seed {seed}: took {:?}", begun.elapsed());
        let took = MOST.load(Ordering::Relaxed).saturating_sub(before);
        let most = ANY_BYTES.saturating_add(input.len().saturating_mul(TIMES));
        assert!(took <= most, "{name}, seed {seed}: {took} bytes of memory for {} of input", input.len());
        seed += 1;
    }
    eprintln!("{name}: {} inputs", seed - 1);
}

/// Small real ELF files: this machine has at least the runtimes of the test itself.
fn elf_files() -> Vec<Vec<u8>> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut paths: Vec<&str> = maps
        .lines()
        .filter_map(|line| line.split_once('/').map(|(before, _)| &line[before.len()..]))
        .collect();
    paths.sort_unstable();
    paths.dedup();
    let small = |path: &&str| std::fs::metadata(path).is_ok_and(|file| file.len() < 4 << 20);
    let files: Vec<Vec<u8>> =
        paths.into_iter().filter(small).filter_map(|path| std::fs::read(Path::new(path)).ok()).collect();
    assert!(!files.is_empty());
    files
}

#[test]
fn no_input_makes_a_parser_panic_hang_or_grow() {
    let seconds = std::env::var("CADSCOPE_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let seconds: u64 = seconds.unwrap_or(SECONDS);
    let only = std::env::var("CADSCOPE_FUZZ_ONLY").unwrap_or_default();
    let catalog = Catalog::builtin().unwrap();
    let variables = Variables::default();
    let text = |target: fn(&str)| move |bytes: &[u8]| target(&String::from_utf8_lossy(bytes));
    let records: Vec<Vec<u8>> = (0..16_u32)
        .map(|kind| {
            let mut record = kind.to_ne_bytes().to_vec();
            record.resize(600, 7);
            record
        })
        .collect();
    let environ = b"JOB_ID=a\0TRACEPARENT=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\0BAGGAGE=job.id=x,k=%41;p=1\0TRACESTATE=a=b\0FLOW_TYPE=web\0\0=\0";
    let cgroups = "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a1b2c3d_0000_4000_8000_0123456789ab.slice/cri-containerd-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope\n12:pids:/docker/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n";
    let bundle = br#"{"annotations":{"io.kubernetes.cri.sandbox-namespace":"n","io.kubernetes.cri.sandbox-name":"p","io.kubernetes.cri.container-name":"c"}}"#;
    let probes = include_bytes!("../src/catalog/occt.toml");
    let names: Vec<Vec<u8>> =
        ["N4Part3BoxE", "St4pairIiiE", "NSt6vectorIPN3App14DocumentObjectESaIS2_EE", "*N3$_0E"]
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
    let accept = b"application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
    let targets: [(&str, Vec<Vec<u8>>, Box<dyn Fn(&[u8])>); 8] = [
        (
            "elf",
            elf_files(),
            Box::new(|bytes| {
                let _ = plan(bytes, &catalog, &Versions::default());
                let _ = tls(bytes);
            }),
        ),
        ("environ", vec![environ.to_vec()], Box::new(|bytes| drop(Job::from_environ(bytes, &variables)))),
        (
            "cgroup",
            vec![cgroups.as_bytes().to_vec(), bundle.to_vec()],
            Box::new(|bytes| {
                let text = String::from_utf8_lossy(bytes);
                drop(Container::from_cgroups(&text));
                let words: Vec<String> = text.split(['/', '-']).map(str::to_owned).collect();
                drop(Container::default().with_bundle(bytes).with_monitor(&words));
                drop(flow_type(&text, &words, &[]));
            }),
        ),
        ("records", records, Box::new(|bytes| drop(receive::read(bytes, &mut receive::Room::default())))),
        (
            "catalogue",
            vec![probes.to_vec()],
            Box::new(text(|text| {
                // A user's file is small, and so is what is changed of ours.
                let start = text.find("[[probe]]").unwrap_or(0);
                let part = &text[start..text.floor_char_boundary((start + 8192).min(text.len()))];
                drop(Catalog::default().add(part, "changed"));
            })),
        ),
        ("names", names, Box::new(text(|text| drop(demangle_type(text))))),
        (
            "accept",
            vec![accept.to_vec()],
            Box::new(text(|text| assert!(!Format::negotiate(text).content_type().is_empty()))),
        ),
        (
            "url",
            vec![b"http://[::1]:9777/agent/".to_vec()],
            Box::new(text(|text| drop(text.parse::<AgentUrl>()))),
        ),
    ];
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let known = only.is_empty() || targets.iter().any(|(name, ..)| only == *name);
    assert!(known, "CADSCOPE_FUZZ_ONLY={only} is no target");
    for (name, inputs, target) in targets.iter().filter(|(name, ..)| only.is_empty() || only == *name) {
        torment(name, seconds, inputs, target);
    }
}
