//! Promise: what goes into and comes out of the system's OpenSSL can be observed, and nothing of other libraries is taken.

use std::fs;

use cadscope::plan::{TlsEdge, tls};
use cadscope_common::cookie::RETURN_NOT_FINAL;

/// Python's own `ssl` needs it: it is on every machine that has FreeCAD.
const LIBSSL: &str = "/usr/lib/x86_64-linux-gnu/libssl.so.3";
const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

#[test]
fn openssl_is_seen_at_both_ends_with_what_it_returns() {
    let sites = tls(&fs::read(LIBSSL).unwrap()).unwrap();
    let count = |edge| sites.iter().filter(|site| site.edge == edge).count();
    assert_eq!((count(TlsEdge::Write), count(TlsEdge::Read), count(TlsEdge::Free)), (2, 2, 1), "{sites:?}");
    assert!(count(TlsEdge::ReadEnd) >= 2, "{sites:?}");
    for end in sites.iter().filter(|site| site.edge == TlsEdge::ReadEnd) {
        assert_ne!(end.site.return_register, RETURN_NOT_FINAL, "{end:?}");
    }
    let mut functions: Vec<u16> = sites.iter().map(|site| site.function).collect();
    functions.sort_unstable();
    functions.dedup();
    assert_eq!(functions, [0, 1, 2, 3, 4]);
}

#[test]
fn a_library_without_tls_has_no_sites() {
    assert!(tls(&fs::read(LIBC).unwrap()).unwrap().is_empty());
}
