//! Turns the hit of a probe into who made it, when, at which site and in which frame.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    programs::ProbeContext,
};
use cadscope_common::cookie::{Base, Cookie};

use crate::machine;

#[inline(always)]
pub fn ids() -> (u32, u32) {
    // SAFETY: no preconditions.
    let both = unsafe { bpf_get_current_pid_tgid() };
    ((both >> 32) as u32, both as u32)
}

#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// The cookie of the site that was hit.
#[inline(always)]
pub fn cookie_of(ctx: &ProbeContext) -> Cookie {
    // SAFETY: the context is the one the kernel gave.
    Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) })
}

/// The slot that a site's cookie leads to.
#[inline(always)]
pub fn slot_of(ctx: &ProbeContext, cookie: Cookie) -> u64 {
    let (sp, fp) = (machine::stack_pointer(ctx), machine::frame_pointer(ctx));
    let register = match cookie.base() {
        Base::StackPointer => sp,
        Base::FramePointer => fp,
    };
    register.wrapping_add_signed(cookie.distance())
}
