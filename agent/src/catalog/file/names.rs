//! Turns a probe into the first name that it uses and nothing makes, if there is one.

use std::collections::BTreeSet;

use super::super::{Amount, Comparison, Derived, Probe, decode};
use super::table::{Wrong, wrong};

/// Every name that is used must be made somewhere.
pub(super) fn check_names(probe: &Probe) -> Result<(), Wrong> {
    let read: BTreeSet<&str> =
        probe.layouts.iter().flat_map(|layout| &layout.values).map(|(name, _)| &**name).collect();
    let is_value = |name: &str| {
        read.contains(name) || probe.derived.contains_key(name) || (name == "tally" && probe.tally.is_some())
    };
    let need = |known: bool, key: String, name: &str| {
        if known {
            Ok(())
        } else {
            Err(wrong(key, format!("uses `{name}`, which no layout reads; add it there")))
        }
    };
    for (name, made) in &probe.derived {
        let inputs = match made {
            Derived::Sum(names) => names.iter().collect(),
            Derived::Count { from, to, .. } => vec![from, to],
            Derived::FileBytes(path) => vec![path],
        };
        if read.contains(&**name) {
            return Err(wrong(format!("derived.{name}"), "is read by a layout too; give one another name"));
        }
        for input in inputs {
            need(read.contains(input.as_str()), format!("derived.{name}"), input)?;
        }
    }
    for (name, label) in &probe.labels {
        for value in label.value().into_iter().chain(label.count()) {
            need(is_value(value), format!("labels.{name}"), value)?;
        }
    }
    for (key, conditions) in [
        ("error_when", &probe.error_when),
        ("count_when", &probe.count_when),
        ("ignore_when", &probe.ignore_when),
    ] {
        for Comparison { value, .. } in conditions {
            need(is_value(value), key.to_owned(), value)?;
        }
    }
    if let Some(rollup) = &probe.rollup {
        need(is_value(&rollup.value), "rollup.value".to_owned(), &rollup.value)?;
    }
    for measure in &probe.also {
        if let Amount::Add(value) | Amount::Observe(value) = &measure.amount {
            need(is_value(value), "also.value".to_owned(), value)?;
        }
        for (name, label) in &measure.labels {
            if let Some(value) = label.value() {
                need(is_value(value), format!("also.labels.{name}"), value)?;
            }
        }
    }
    for (attribute, name) in &probe.attributes {
        let known = is_value(name) || probe.labels.contains_key(name);
        need(known, format!("attributes.{attribute}"), name)?;
    }
    for name in decode::places(&probe.title) {
        need(is_value(name) || probe.labels.contains_key(name), "title".to_owned(), name)?;
    }
    Ok(())
}
