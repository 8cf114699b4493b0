//! Turns what a probe measures into families, and refuses one that other probes have in another form.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::{Table, Value};

use super::super::{Amount, Label, Measure, Probe, Rollup};
use super::CatalogError;
use super::labels::labels;
use super::table::{Wrong, check_keys, is_name, required_text, subtable, text, wrong};

const ROLLUP_KEYS: [&str; 6] = ["help", "inside", "label", "metric", "suffix", "value"];
const ALSO_KEYS: [&str; 6] = ["counter", "help", "histogram", "labels", "metric", "value"];

pub(super) fn family(table: &Table, key: &str, suffix: &str) -> Result<Option<String>, Wrong> {
    let Some(name) = text(table, key)? else { return Ok(None) };
    if !is_name(&name) {
        return Err(wrong(key, format!("`{name}` is made of letters, digits and `_`")));
    }
    if !name.ends_with(suffix) {
        return Err(wrong(key, format!("`{name}` must end in `{suffix}`")));
    }
    Ok(Some(name))
}

pub(super) fn rollup(table: &Table) -> Result<Option<Rollup>, Wrong> {
    let Some(table) = subtable(table, "rollup", "rollup")? else { return Ok(None) };
    check_keys(table, &ROLLUP_KEYS, "rollup.")?;
    let Some(family) = family(table, "metric", "_seconds")? else {
        return Err(wrong("rollup.metric", "is missing"));
    };
    Ok(Some(Rollup {
        inside: required_text(table, "inside")?,
        value: required_text(table, "value")?,
        suffix: required_text(table, "suffix")?,
        family,
        help: required_text(table, "help")?,
        label: required_text(table, "label")?,
    }))
}

pub(super) fn also(table: &Table) -> Result<Vec<Measure>, Wrong> {
    let tables: &[Value] = match table.get("also") {
        None => &[],
        Some(Value::Array(tables)) => tables,
        Some(_) => return Err(wrong("also", "is not a list; begin each with [[probe.also]]")),
    };
    tables
        .iter()
        .map(|value| match value {
            Value::Table(table) => measure(table),
            _ => Err(wrong("also", "is not a list of tables; begin each with [[probe.also]]")),
        })
        .collect()
}

fn measure(table: &Table) -> Result<Measure, Wrong> {
    check_keys(table, &ALSO_KEYS, "also.")?;
    let value = text(table, "value")?;
    let named = [
        family(table, "metric", "_seconds")?.map(|name| (name, Amount::Duration)),
        family(table, "counter", "_total")?
            .map(|name| (name, value.clone().map_or(Amount::One, Amount::Add))),
        family(table, "histogram", "")?
            .map(|name| (name, value.clone().map_or(Amount::One, Amount::Observe))),
    ];
    let mut named = named.into_iter().flatten();
    let (Some((family, amount)), None) = (named.next(), named.next()) else {
        return Err(wrong("also", "names one family: `metric`, `counter` or `histogram`"));
    };
    if value.is_some() == (amount == Amount::Duration) && amount != Amount::One {
        return Err(wrong("also.value", "goes with `counter` and `histogram` only"));
    }
    if table.contains_key("histogram") && value.is_none() {
        return Err(wrong("also.value", "is missing: what does the histogram hold?"));
    }
    let help = text(table, "help")?.unwrap_or_default();
    Ok(Measure { family, help, amount, labels: labels(table)? })
}

/// Checks a probe against those that are there already.
pub(in super::super) fn check_beside(
    others: &[Arc<Probe>],
    probe: &Probe,
    origin: &str,
) -> Result<(), CatalogError> {
    let error = |key: &str, problem: String| CatalogError::Probe {
        origin: origin.to_owned(),
        probe: probe.id.clone(),
        key: key.to_owned(),
        problem,
    };
    if others.iter().any(|other| other.id == probe.id) {
        return Err(error("id", "is taken by another probe; choose a new one".to_owned()));
    }
    for own in families(probe) {
        let Some(other) = others.iter().find_map(|other| {
            families(other).into_iter().find(|family| family.name == own.name).map(|family| (other, family))
        }) else {
            if own.help.is_empty() {
                return Err(error("help", format!("is missing: say what {} measures", own.name)));
            }
            continue;
        };
        let (other, family) = other;
        if !family.labels.keys().eq(own.labels.keys()) {
            let names =
                |labels: &BTreeMap<String, Label>| labels.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(error(
                "labels",
                format!(
                    "are {}, but {} has {} in probe `{}`; use the same",
                    names(own.labels),
                    own.name,
                    names(family.labels),
                    other.id
                ),
            ));
        }
        if family.kind != own.kind {
            return Err(error(
                own.key,
                format!("{} is the other type in probe `{}`; choose a new name", own.name, other.id),
            ));
        }
    }
    Ok(())
}

/// A family of a probe: all of it that other probes have to agree with.
struct Family<'a> {
    key: &'static str,
    name: &'a str,
    kind: &'static str,
    help: &'a str,
    labels: &'a BTreeMap<String, Label>,
}

fn families(probe: &Probe) -> Vec<Family<'_>> {
    let first = [("metric", &probe.metric), ("counter", &probe.counter)];
    let first = first.into_iter().filter_map(|(key, name)| {
        let name = name.as_deref()?;
        Some(Family { key, name, kind: key, help: &probe.help, labels: &probe.labels })
    });
    let also = probe.also.iter().map(|measure| {
        let kind = match measure.amount {
            Amount::Duration => "metric",
            Amount::One | Amount::Add(_) => "counter",
            Amount::Observe(_) => "histogram",
        };
        Family { key: "also", name: &measure.family, kind, help: &measure.help, labels: &measure.labels }
    });
    first.chain(also).collect()
}
