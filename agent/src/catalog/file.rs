//! Turns the text of a catalogue file into probes.
//!
//! Strict: a key that is not known, a value that is never read, a symbol that is not mangled are errors that name the
//! file, the probe, the key and the fix. What passes here needs no check later.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::{Table, Value};

use self::families::{also, family, rollup};
use self::labels::labels;
use self::layouts::{layouts, product};
use self::names::check_names;
use self::table::{Wrong, as_text, check_keys, is_name, required_text, subtable, text, texts, wrong};
use super::keys::unknown_key;
use super::{Comparison, Derived, Probe};

pub(super) use self::families::check_beside;

mod families;
mod labels;
mod layouts;
mod names;
mod table;

/// Why a catalogue file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// It is no TOML.
    #[error("{origin}: {message}")]
    Syntax {
        /// The file.
        origin: String,
        /// What the TOML parser says, with line and column.
        message: String,
    },
    /// Something of one probe is wrong.
    #[error("{origin}: probe `{probe}`: `{key}` {problem}")]
    Probe {
        /// The file.
        origin: String,
        /// Its id, or its number in the file while it has none.
        probe: String,
        /// Which key.
        key: String,
        /// What is wrong, and the fix.
        problem: String,
    },
    /// A key outside of the probes.
    #[error("{origin}: unknown key `{key}`; a catalogue file holds only [[probe]] tables")]
    UnknownKey {
        /// The file.
        origin: String,
        /// The key.
        key: String,
    },
}

const PROBE_KEYS: [&str; 22] = [
    "absent",
    "also",
    "attributes",
    "by_value",
    "count_when",
    "counter",
    "derived",
    "error_when",
    "function",
    "group",
    "help",
    "id",
    "ignore_when",
    "labels",
    "layout",
    "metric",
    "product",
    "rollup",
    "symbols",
    "tallies",
    "tally",
    "title",
];
const DERIVED_KEYS: [&str; 5] = ["each", "file", "from", "sum", "to"];

const DERIVED_FORMS: &str =
    "must be { sum = [\"…\"] }, { from = \"…\", to = \"…\", each = 8 } or { file = \"…\" }";

/// Reads a file of `[[probe]]` tables.
pub(super) fn read(text: &str, origin: &str) -> Result<Vec<Probe>, CatalogError> {
    let origin_of = || origin.to_owned();
    let table: Table = text
        .parse()
        .map_err(|e: toml::de::Error| CatalogError::Syntax { origin: origin_of(), message: e.to_string() })?;
    if let Some(key) = unknown_key(&table, &["probe"]) {
        return Err(CatalogError::UnknownKey { origin: origin_of(), key: key.to_owned() });
    }
    match table.get("probe") {
        None => Ok(Vec::new()),
        Some(Value::Array(tables)) => read_tables(tables, origin),
        Some(_) => Err(CatalogError::Syntax {
            origin: origin_of(),
            message: "`probe` is not a list; begin each probe with [[probe]]".to_owned(),
        }),
    }
}

/// Reads `[[probe]]` tables.
pub(super) fn read_tables(tables: &[Value], origin: &str) -> Result<Vec<Probe>, CatalogError> {
    let mut probes = Vec::new();
    for (number, value) in tables.iter().enumerate() {
        let id =
            value.get("id").and_then(Value::as_str).map_or_else(|| format!("#{}", number + 1), str::to_owned);
        let probe = match value {
            Value::Table(table) => probe(table),
            _ => Err(wrong("probe", "is no table; begin each probe with [[probe]]")),
        };
        probes.push(probe.map_err(|Wrong { key, problem }| CatalogError::Probe {
            origin: origin.to_owned(),
            probe: id,
            key,
            problem,
        })?);
    }
    Ok(probes)
}

fn probe(table: &Table) -> Result<Probe, Wrong> {
    check_keys(table, &PROBE_KEYS, "")?;
    let id = required_text(table, "id")?;
    if !id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')) {
        return Err(wrong("id", "is made of letters, digits, `.`, `_` and `-`: `mine.gear`"));
    }
    let function = required_text(table, "function")?;
    let metric = family(table, "metric", "_seconds")?;
    let counter = family(table, "counter", "_total")?;
    let probe = Probe {
        symbols: symbols(table)?,
        title: text(table, "title")?.unwrap_or_else(|| function.clone()),
        metric,
        counter,
        help: text(table, "help")?.unwrap_or_default(),
        labels: labels(table)?,
        attributes: attributes(table)?,
        layouts: layouts(table)?,
        derived: derived(table)?,
        group: text(table, "group")?,
        error_when: comparisons(table, "error_when")?,
        count_when: comparisons(table, "count_when")?,
        ignore_when: comparisons(table, "ignore_when")?,
        also: also(table)?,
        tally: text(table, "tally")?,
        tallies: text(table, "tallies")?,
        rollup: rollup(table)?,
        product: text(table, "product")?.map(|name| product(&name)).transpose()?,
        absent: text(table, "absent")?,
        id,
        function,
    };
    check_names(&probe)?;
    Ok(probe)
}

fn symbols(table: &Table) -> Result<Vec<String>, Wrong> {
    let symbols = texts(table, "symbols", "symbols")?;
    if symbols.is_empty() {
        return Err(wrong("symbols", "is missing; `nm -D --defined-only LIBRARY` lists the mangled names"));
    }
    for symbol in &symbols {
        if !symbol.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$' | '@')) {
            return Err(wrong(
                "symbols",
                format!(
                    "`{symbol}` is no mangled name; `nm -D --defined-only LIBRARY` lists them, `c++filt` explains them"
                ),
            ));
        }
    }
    Ok(symbols)
}

fn attributes(table: &Table) -> Result<BTreeMap<String, String>, Wrong> {
    let mut attributes = BTreeMap::new();
    for (name, value) in subtable(table, "attributes", "attributes")?.into_iter().flatten() {
        attributes.insert(name.clone(), as_text(value, &format!("attributes.{name}"))?);
    }
    Ok(attributes)
}

fn derived(table: &Table) -> Result<BTreeMap<Arc<str>, Derived>, Wrong> {
    let mut all = BTreeMap::new();
    for (name, value) in subtable(table, "derived", "derived")?.into_iter().flatten() {
        let key = format!("derived.{name}");
        let Value::Table(table) = value else {
            return Err(wrong(key, DERIVED_FORMS));
        };
        check_keys(table, &DERIVED_KEYS, &format!("{key}."))?;
        if let Some(path) = text(table, "file")? {
            if table.len() > 1 {
                return Err(wrong(key, DERIVED_FORMS));
            }
            all.insert(name.as_str().into(), Derived::FileBytes(path));
            continue;
        }
        let sum = texts(table, "sum", &key)?;
        let made = match (sum.is_empty(), text(table, "from")?, text(table, "to")?, table.get("each")) {
            (false, None, None, None) => Derived::Sum(sum),
            (true, Some(from), Some(to), Some(Value::Integer(each))) if *each > 0 => {
                Derived::Count { from, to, each: *each }
            }
            _ => return Err(wrong(key, DERIVED_FORMS)),
        };
        all.insert(name.as_str().into(), made);
    }
    Ok(all)
}

fn comparisons(table: &Table, key: &str) -> Result<Vec<Comparison>, Wrong> {
    let parse = |condition: &str, sign: &str| {
        let (name, number) = condition.split_once(sign)?;
        let (value, number) = (name.trim().to_owned(), number.trim().parse().ok()?);
        is_name(&value).then_some(Comparison { value, number, equal: sign == "==" })
    };
    texts(table, key, key)?
        .iter()
        .map(|condition| {
            parse(condition, "==").or_else(|| parse(condition, "!=")).ok_or_else(|| {
                wrong(key, format!("`{condition}` has not the form `value == number` or `value != number`"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
