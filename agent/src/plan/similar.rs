//! Turns the names that a file exports into those that stand for a catalogue's function under another signature.
//!
//! A new version may add a parameter or an inline namespace, and the mangled name of the catalogue is gone. Class and
//! method are still there, next to one another in the mangled name: they find candidates without demangling. A candidate
//! is taken if its namespaces hold those of the catalogue's function in their order, and if its parameters differ in at
//! most one. Where its fields and arguments are now is not known: such a call is timed, and nothing is read from it.

use std::collections::{HashMap, HashSet};

use cpp_demangle::DemangleOptions;

use crate::catalog::Probe;
use crate::demangled::demangled;

/// Longest mangled name that is looked at.
const LONGEST_NAME: usize = 2048;
/// Most names of one class and method that are compared; overloads are a handful.
const MOST_ALIKE: usize = 64;

/// The best stand-in for each probe that has one, and its demangled name.
pub(super) fn find<'a>(
    missing: &[&Probe],
    known: &HashSet<&str>,
    exported: impl Iterator<Item = &'a str>,
) -> HashMap<String, (&'a str, String)> {
    let mut wanted: HashMap<&[u8], Vec<&Probe>> = HashMap::new();
    for probe in missing {
        if let Some(key) = probe.symbols.first().and_then(|symbol| key(symbol.as_bytes())) {
            wanted.entry(key).or_default().push(probe);
        }
    }
    let mut alike: HashMap<&[u8], usize> = HashMap::new();
    let mut best: HashMap<String, (usize, &'a str, String)> = HashMap::new();
    for name in exported.filter(|name| name.len() <= LONGEST_NAME && !known.contains(name)) {
        let Some((key, probes)) = key(name.as_bytes()).and_then(|key| wanted.get_key_value(key)) else {
            continue;
        };
        let seen = alike.entry(key).or_default();
        *seen += 1;
        if *seen > MOST_ALIKE {
            continue;
        }
        for probe in probes {
            let nearest = probe.symbols.iter().filter_map(|symbol| distance(symbol, name)).min();
            let Some(distance) = nearest else { continue };
            let Some(shown) = demangle(name) else { continue };
            let is_better = best.get(&probe.id).is_none_or(|(other, ..)| distance < *other);
            if is_better {
                best.insert(probe.id.clone(), (distance, name, shown));
            }
        }
    }
    best.into_iter().map(|(id, (_, name, shown))| (id, (name, shown))).collect()
}

/// Class and method of a member function, as they stand in its mangled name: `8Document9recompute`.
fn key(name: &[u8]) -> Option<&[u8]> {
    let mut rest = name.strip_prefix(b"_ZN")?;
    while let [b'K' | b'V' | b'R' | b'O', more @ ..] = rest {
        rest = more;
    }
    let (mut last, mut before) = (None, None);
    loop {
        match rest {
            [b'E', ..] => {
                let (from, to): (&[u8], &[u8]) = (before?, rest);
                return from.get(..from.len().checked_sub(to.len())?);
            }
            [b'C' | b'D', b'0'..=b'9', more @ ..] => {
                before = last;
                rest = more;
            }
            [b'S', b't', more @ ..] => rest = more,
            [b'0'..=b'9', ..] => {
                let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                let length: usize = std::str::from_utf8(rest.get(..digits)?).ok()?.parse().ok()?;
                before = last.replace(rest);
                rest = rest.get(digits.checked_add(length)?..)?;
            }
            _ => return None,
        }
    }
}

/// How many parameters differ; `None` if the candidate is another function.
fn distance(symbol: &str, candidate: &str) -> Option<usize> {
    let (wanted, found) = (demangle(symbol)?, demangle(candidate)?);
    let ((wanted_name, wanted), (found_name, found)) = (parts(&wanted)?, parts(&found)?);
    let mut found_spaces = found_name.split("::");
    if !wanted_name.split("::").all(|space| found_spaces.any(|other| other == space)) {
        return None;
    }
    let shared = common(&wanted, &found);
    let distance = wanted.len().max(found.len()) - shared;
    (distance <= 1).then_some(distance)
}

fn demangle(name: &str) -> Option<String> {
    demangled(name, &DemangleOptions::new().no_return_type())
}

/// Qualified name and parameters.
fn parts(function: &str) -> Option<(&str, Vec<&str>)> {
    let (name, rest) = function.split_once('(')?;
    let inside = rest.rsplit_once(')')?.0;
    let (mut depth, mut start, mut parameters) = (0_i32, 0, Vec::new());
    for (at, byte) in inside.bytes().enumerate() {
        match byte {
            b'<' | b'(' => depth += 1,
            b'>' | b')' => depth -= 1,
            b',' if depth == 0 => {
                parameters.push(inside.get(start..at)?.trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    let last = inside.get(start..)?.trim();
    if !last.is_empty() {
        parameters.push(last);
    }
    Some((name, parameters))
}

/// Length of the longest common subsequence of two short lists.
fn common(a: &[&str], b: &[&str]) -> usize {
    let mut row = vec![0_usize; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        let mut left = 0;
        for (y, above) in b.iter().zip(row.iter_mut().skip(1)) {
            let here = if x == y { diagonal + 1 } else { left.max(*above) };
            diagonal = std::mem::replace(above, here);
            left = here;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    const RECOMPUTE: &str = "_ZN3App8Document9recomputeERKSt6vectorIPNS_14DocumentObjectESaIS3_EEbPbi";

    fn found(symbol: &str, exported: &[&'static str]) -> Option<String> {
        let probe = Probe { symbols: vec![symbol.to_owned()], ..samples::probe("p", "") };
        let known = HashSet::from([symbol]);
        find(&[&probe], &known, exported.iter().copied()).remove("p").map(|(_, shown)| shown)
    }

    #[test]
    fn class_and_method_stand_next_to_one_another() {
        assert_eq!(key(RECOMPUTE.as_bytes()), Some(b"8Document9recompute".as_slice()));
        assert_eq!(key(b"_ZNK3App8Document10saveToFileEPKc"), Some(b"8Document10saveToFile".as_slice()));
        assert_eq!(key(b"_ZN15BRepSweep_PrismC1ERK12TopoDS_Shape"), Some(b"15BRepSweep_PrismC1".as_slice()));
        for none in ["PyInit_Part", "_ZN3AppE", "_Z4freev", "_ZN999999999999999999999x", "_ZN4abc"] {
            assert_eq!(key(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn a_changed_signature_and_an_inline_namespace_are_found() {
        let changed = "_ZN3App8Document9recomputeERKSt6vectorIPNS_14DocumentObjectESaIS3_EEbPbix";
        let inlined = "_ZN3App2v18Document4saveEv";
        assert!(found(RECOMPUTE, &[changed]).unwrap().ends_with("bool, bool*, int, long long)"));
        assert_eq!(
            found("_ZN3App8Document4saveEv", &[inlined]).as_deref(),
            Some("App::v1::Document::save()")
        );
    }

    #[test]
    fn another_function_is_not_taken_for_it() {
        let other_namespace = "_ZN3Gui8Document4saveEv";
        assert_eq!(found("_ZN3App8Document4saveEv", &[other_namespace]), None);
        let other_parameters = "_ZN3App8Document9recomputeEPKcS2_d";
        assert_eq!(found(RECOMPUTE, &[other_parameters]), None);
    }

    proptest::proptest! {
        #[test]
        fn no_name_makes_it_panic(name in "_ZN[KV]?[0-9A-Za-z_]{0,40}") {
            let _ = key(name.as_bytes());
            let _ = distance(RECOMPUTE, &name);
        }
    }
}
