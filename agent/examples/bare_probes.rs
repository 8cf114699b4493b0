//! Turns file offsets into probes that do nothing: what the kernel itself takes for a hit, the floor of every tool.
//!
//! `bare_probes FILE OFFSET…` places them by uprobe_multi, prints `ready`, and takes them away when its input ends; it says
//! how many milliseconds each took. `cargo xtask bench calls` and `bench attach` measure with it.

use std::ffi::CString;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::time::Instant;

use anyhow::{Context as _, Result};
use aya_obj::generated::bpf_insn;
use cadscope::kernel::bpf::{link_uprobe_multi, load_uprobe_multi};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = CString::new(arguments.next().context("no file")?)?;
    let offsets: Vec<u64> = arguments.map(|offset| offset.parse()).collect::<Result<_, _>>()?;
    let program = load_uprobe_multi("bare", &[number(0xb7), number(0x95)], c"GPL", None)?;
    let cookies = vec![0; offsets.len()];
    let begin = Instant::now();
    let probes = link_uprobe_multi(program.as_fd(), &path, &offsets, &cookies)?;
    let placed = begin.elapsed();
    println!("ready\nplaced {:.2}", placed.as_secs_f64() * 1000.0);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let begin = Instant::now();
    drop(probes);
    println!("removed {:.2}", begin.elapsed().as_secs_f64() * 1000.0);
    Ok(())
}

/// `r0 = 0` or `exit`.
fn number(code: u8) -> bpf_insn {
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(0, 0), off: 0, imm: 0 }
}
