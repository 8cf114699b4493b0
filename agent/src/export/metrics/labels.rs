//! Turns names and values that nobody vouches for into labels and family names that Prometheus takes.

use std::collections::BTreeMap;

use super::Kind;
use crate::catalog::Label;
use crate::operation::Operation;

/// Label values are cut here, in bytes.
const LABEL_VALUE_BYTES: usize = 160;

/// Label pairs, sorted by name.
pub(super) type Labels = Vec<(String, String)>;

/// The labels that a family's probe makes, and the versions of the worker.
pub(super) fn labels_of(operation: &Operation, labels: &BTreeMap<String, Label>) -> Labels {
    let own = labels
        .iter()
        .map(|(name, label)| (name.clone(), label.text(&operation.values, operation.outcome).into_owned()));
    let versions = [
        ("freecad_version", &operation.worker.freecad_version),
        ("occt_version", &operation.worker.occt_version),
    ];
    let versions = versions.map(|(name, version)| (name.to_owned(), version.clone()));
    tidy(own.chain(versions).collect())
}

/// Sorts label pairs, keeps the last of each name, and makes names and values fit to expose.
pub(super) fn tidy(labels: Labels) -> Labels {
    let unique: BTreeMap<_, _> =
        labels.into_iter().map(|(name, value)| (label_name(&name), cut(value))).collect();
    unique.into_iter().collect()
}

/// `le` is the histograms' own.
fn label_name(name: &str) -> String {
    if name == "le" { "le_".to_owned() } else { valid_name(name, false) }
}

fn cut(mut value: String) -> String {
    value.truncate(value.floor_char_boundary(LABEL_VALUE_BYTES));
    value
}

/// The name of a family: valid, and with the suffix that counters have.
pub(super) fn family_name(name: &str, kind: Kind) -> String {
    let mut name = valid_name(name, true);
    if kind == Kind::Counter && !name.ends_with("_total") {
        name.push_str("_total");
    }
    name
}

/// Replaces what Prometheus does not take in a name.
fn valid_name(name: &str, colons: bool) -> String {
    let valid = |character: char| {
        character.is_ascii_alphanumeric() || character == '_' || (colons && character == ':')
    };
    let mut out: String =
        name.chars().map(|character| if valid(character) { character } else { '_' }).collect();
    if out.chars().next().is_none_or(|first| first.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_valid() {
        assert_eq!(family_name("1 bad-name", Kind::Counter), "_1_bad_name_total");
        assert_eq!(family_name("", Kind::Gauge), "_");
        assert_eq!(label_name("a:b"), "a_b");
        assert_eq!(label_name("le"), "le_");
        assert_eq!(cut("é".repeat(100)).len(), LABEL_VALUE_BYTES);
    }
}
