//! Turns the text of a catalogue file into probes.
//!
//! Strict: a key that is not known, a value that is never read, a symbol that is not mangled are errors that name the
//! file, the probe, the key and the fix. What passes here needs no check later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use toml::{Table, Value};

use super::expression::{self, Expression};
use super::keys::{suggestion, unknown_key};
use super::program::{self, ResultPlace};
use super::{Amount, Comparison, Condition, Derived, Label, Layout, Measure, Probe, Product, Rollup};

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
const LABEL_KEYS: [&str; 9] =
    ["bytes", "constant", "extension", "map", "of", "range", "status", "value", "workbench"];
const OUTCOMES: [&str; 5] = ["error", "exception", "killed", "ok", "other"];
const DERIVED_KEYS: [&str; 5] = ["each", "file", "from", "sum", "to"];
const ROLLUP_KEYS: [&str; 6] = ["help", "inside", "label", "metric", "suffix", "value"];
const ALSO_KEYS: [&str; 6] = ["counter", "help", "histogram", "labels", "metric", "value"];
const LAYOUT_KEYS: [&str; 3] = ["enter", "leave", "when"];

const DERIVED_FORMS: &str =
    "must be { sum = [\"…\"] }, { from = \"…\", to = \"…\", each = 8 } or { file = \"…\" }";

/// Labels that the agent itself adds.
const RESERVED_LABELS: [&str; 7] =
    ["container", "freecad_version", "le", "namespace", "occt_version", "pod", "quantile"];

/// Longest id, title, label value, …
const MAX_TEXT: usize = 400;

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

/// Checks a probe against those that are there already.
pub(super) fn check_beside(others: &[Arc<Probe>], probe: &Probe, origin: &str) -> Result<(), CatalogError> {
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

struct Wrong {
    key: String,
    problem: String,
}

fn wrong(key: impl Into<String>, problem: impl Into<String>) -> Wrong {
    Wrong { key: key.into(), problem: problem.into() }
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

fn check_keys(table: &Table, allowed: &[&str], path: &str) -> Result<(), Wrong> {
    match unknown_key(table, allowed) {
        Some(key) => {
            Err(wrong(format!("{path}{key}"), format!("is not known; {}", suggestion(key, allowed))))
        }
        None => Ok(()),
    }
}

fn as_text(value: &Value, key: &str) -> Result<String, Wrong> {
    match value.as_str() {
        Some("") => Err(wrong(key, "is empty; say something or remove it")),
        Some(text) if text.len() > MAX_TEXT => Err(wrong(key, format!("is longer than {MAX_TEXT} bytes"))),
        Some(text) => Ok(text.to_owned()),
        None => Err(wrong(key, format!("is a {}; write a text in quotes", value.type_str()))),
    }
}

fn text(table: &Table, key: &str) -> Result<Option<String>, Wrong> {
    table.get(key).map(|value| as_text(value, key)).transpose()
}

fn required_text(table: &Table, key: &str) -> Result<String, Wrong> {
    text(table, key)?.ok_or_else(|| wrong(key, format!("is missing; add `{key} = \"…\"`")))
}

fn subtable<'a>(table: &'a Table, key: &str, shown: &str) -> Result<Option<&'a Table>, Wrong> {
    match table.get(key) {
        None => Ok(None),
        Some(Value::Table(inner)) => Ok(Some(inner)),
        Some(other) => Err(wrong(shown, format!("is a {}; write a table", other.type_str()))),
    }
}

fn texts(table: &Table, key: &str, shown: &str) -> Result<Vec<String>, Wrong> {
    match table.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(|value| as_text(value, shown)).collect(),
        Some(other) => Err(wrong(shown, format!("is a {}; write a list: [\"…\"]", other.type_str()))),
    }
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

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn family(table: &Table, key: &str, suffix: &str) -> Result<Option<String>, Wrong> {
    let Some(name) = text(table, key)? else { return Ok(None) };
    if !is_name(&name) {
        return Err(wrong(key, format!("`{name}` is made of letters, digits and `_`")));
    }
    if !name.ends_with(suffix) {
        return Err(wrong(key, format!("`{name}` must end in `{suffix}`")));
    }
    Ok(Some(name))
}

fn labels(table: &Table) -> Result<BTreeMap<String, Label>, Wrong> {
    let mut labels = BTreeMap::new();
    for (name, value) in subtable(table, "labels", "labels")?.into_iter().flatten() {
        let key = format!("labels.{name}");
        if !is_name(name) || name.starts_with("__") {
            return Err(wrong(key, "is no label name: letters, digits and `_`"));
        }
        if RESERVED_LABELS.contains(&name.as_str()) {
            return Err(wrong(key, "is a label that cadscope adds itself; choose another name"));
        }
        labels.insert(name.clone(), label(value, &key)?);
    }
    Ok(labels)
}

fn label(value: &Value, key: &str) -> Result<Label, Wrong> {
    let table = match value {
        Value::String(word) if word == "status" => return Ok(Label::Status),
        Value::Table(table) => table,
        _ => {
            return Err(wrong(key, "must be \"status\", { constant = \"…\" } or { value = \"…\" }"));
        }
    };
    check_keys(table, &LABEL_KEYS, &format!("{key}."))?;
    if let Some(constant) = text(table, "constant")? {
        return if table.len() == 1 {
            Ok(Label::Constant(constant))
        } else {
            Err(wrong(key, "has a constant; remove the other keys"))
        };
    }
    if let Some(names) = subtable(table, "status", &format!("{key}.status"))? {
        check_keys(names, &OUTCOMES, &format!("{key}.status."))?;
        let names = names.iter().map(|(outcome, name)| Ok((outcome.clone(), as_text(name, key)?)));
        return Ok(Label::StatusAs(names.collect::<Result<_, Wrong>>()?));
    }
    let Some(name) = text(table, "value")? else {
        return Err(wrong(key, "says neither `value` nor `constant`; add one"));
    };
    let flag = |flag: &str| match table.get(flag) {
        None => Ok(false),
        Some(Value::Boolean(true)) => Ok(true),
        Some(_) => Err(wrong(format!("{key}.{flag}"), "is true or left out")),
    };
    let map = subtable(table, "map", &format!("{key}.map"))?;
    if flag("bytes")? {
        return if table.len() == 2 {
            Ok(Label::Bytes(name))
        } else {
            Err(wrong(key, "is a range of bytes; remove the other keys"))
        };
    }
    if table.contains_key("of") && !flag("workbench")? {
        return Err(wrong(key, "has `of`, the number of objects, which goes with `workbench = true` only"));
    }
    match (flag("range")?, flag("workbench")?, flag("extension")?, map) {
        (false, false, false, None) => Ok(Label::Text(name)),
        (true, false, false, None) => Ok(Label::Range(name)),
        (false, true, false, None) => Ok(Label::Workbench(name, text(table, "of")?)),
        (false, false, true, None) => Ok(Label::Extension(name)),
        (false, false, false, Some(map)) => Ok(Label::Map(name, number_map(map, key)?)),
        (false, false, true, Some(map)) => Ok(Label::FileType(name, extension_map(map, key)?)),
        _ => Err(wrong(
            key,
            "takes one of `range`, `workbench`, `extension`, `map`, or `extension` with `map`",
        )),
    }
}

fn number_map(map: &Table, key: &str) -> Result<BTreeMap<i64, String>, Wrong> {
    let mut numbers = BTreeMap::new();
    for (number, text) in map {
        let key = format!("{key}.map.{number}");
        let parsed = number.parse().map_err(|_| wrong(&key, "is no whole number: `0 = \"common\"`"))?;
        numbers.insert(parsed, as_text(text, &key)?);
    }
    Ok(numbers)
}

fn extension_map(map: &Table, key: &str) -> Result<BTreeMap<String, String>, Wrong> {
    let mut types = BTreeMap::new();
    for (extension, text) in map {
        let key = format!("{key}.map.{extension}");
        if extension.chars().any(|c| !c.is_ascii_lowercase() && !c.is_ascii_digit()) {
            return Err(wrong(key, "is an extension in small letters without the dot: `stp = \"STEP\"`"));
        }
        types.insert(extension.clone(), as_text(text, &key)?);
    }
    Ok(types)
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

fn rollup(table: &Table) -> Result<Option<Rollup>, Wrong> {
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

fn also(table: &Table) -> Result<Vec<Measure>, Wrong> {
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

fn layouts(table: &Table) -> Result<Vec<Layout>, Wrong> {
    let result = match table.get("by_value") {
        None => ResultPlace::here(false),
        Some(Value::Boolean(by_value)) => ResultPlace::here(*by_value),
        Some(other) => {
            return Err(wrong("by_value", format!("is a {}; write true or false", other.type_str())));
        }
    };
    let tables: &[Value] = match table.get("layout") {
        None => &[],
        Some(Value::Array(tables)) => tables,
        Some(_) => return Err(wrong("layout", "is not a list; begin each with [[probe.layout]]")),
    };
    let mut layouts: Vec<Layout> = Vec::new();
    for value in tables {
        let Value::Table(table) = value else {
            return Err(wrong("layout", "is not a list of tables; begin each with [[probe.layout]]"));
        };
        if layouts.last().is_some_and(|layout| layout.when.is_empty()) {
            return Err(wrong(
                "layout",
                "comes after one without `when`, which fits every build; move that one to the end",
            ));
        }
        layouts.push(layout(table, result)?);
    }
    if layouts.last().is_none_or(|layout| !layout.when.is_empty()) {
        layouts.push(Layout { when: Vec::new(), values: Vec::new(), program: Default::default() });
    }
    Ok(layouts)
}

fn layout(table: &Table, result: ResultPlace) -> Result<Layout, Wrong> {
    check_keys(table, &LAYOUT_KEYS, "layout.")?;
    let when = conditions(table)?;
    let (enter, leave) = (values(table, "enter")?, values(table, "leave")?);
    if let Some((name, _)) = enter.iter().find(|(name, _)| leave.iter().any(|(other, _)| other == name)) {
        return Err(wrong(format!("layout.leave.{name}"), "is read at entry too; give one another name"));
    }
    let (program, values) =
        program::compile(&enter, &leave, result).map_err(|problem| wrong("layout", problem))?;
    let values = values.into_iter().map(|(name, place)| (name.into(), place)).collect();
    Ok(Layout { when, values, program })
}

fn values(table: &Table, edge: &str) -> Result<Vec<(String, Expression)>, Wrong> {
    let mut values = Vec::new();
    for (name, value) in subtable(table, edge, &format!("layout.{edge}"))?.into_iter().flatten() {
        let key = format!("layout.{edge}.{name}");
        if !is_name(name) {
            return Err(wrong(key, "is no value name: letters, digits and `_`"));
        }
        let text = as_text(value, &key)?;
        values.push((name.clone(), expression::parse(&text).map_err(|problem| wrong(&key, problem))?));
    }
    Ok(values)
}

fn conditions(table: &Table) -> Result<Vec<Condition>, Wrong> {
    texts(table, "when", "layout.when")?.iter().map(|text| condition(text)).collect()
}

fn product(name: &str) -> Result<Product, Wrong> {
    match name {
        "occt" => Ok(Product::Occt),
        "freecad" => Ok(Product::FreeCad),
        _ => Err(wrong("product", "is `occt` or `freecad`")),
    }
}

fn condition(text: &str) -> Result<Condition, Wrong> {
    let form = || {
        wrong(
            "layout.when",
            format!(
                "`{text}` has not the form `occt >= 7.8`, `occt < 8.0`, `freecad >= 1.0`, `freecad < 1.1`"
            ),
        )
    };
    let (name, at_least, version) = match (text.split_once(">="), text.split_once('<')) {
        (Some((name, version)), None) => (name, true, version),
        (None, Some((name, version))) => (name, false, version),
        _ => return Err(form()),
    };
    let product = product(name.trim()).map_err(|_| form())?;
    let version = super::decode::version_numbers(version.trim()).ok_or_else(form)?;
    let (at_least, below) = if at_least { (Some(version), None) } else { (None, Some(version)) };
    Ok(Condition { product, at_least, below })
}

/// Every name that is used must be made somewhere.
fn check_names(probe: &Probe) -> Result<(), Wrong> {
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
    for name in super::decode::places(&probe.title) {
        need(is_value(name) || probe.labels.contains_key(name), "title".to_owned(), name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Catalog;
    use super::Comparison;

    const GOOD: &str = r#"
[[probe]]
id = "mine.gear"
function = "Gear::build(int)"
symbols = ["_ZN4Gear5buildEi"]
title = "gear {teeth}"
metric = "gear_build_seconds"
help = "Time to build a gear."
error_when = ["ret == 0"]
[probe.labels]
status = "status"
teeth = { value = "teeth", range = true }
[probe.attributes]
"cad.teeth" = "teeth"
[[probe.layout]]
when = ["occt >= 7.6", "freecad < 1.1"]
[probe.layout.enter]
teeth = "i32(arg1)"
[probe.layout.leave]
ret = "u8(ret)"
"#;

    fn add(text: &str) -> Result<Catalog, String> {
        let mut catalog = Catalog::default();
        catalog.add(text, "gears.toml").map(|()| catalog).map_err(|error| error.to_string())
    }

    #[test]
    fn a_probe_of_the_user_is_read() {
        let catalog = add(GOOD).unwrap();
        let probe = &catalog.probes[0];
        assert_eq!(probe.error_when, [Comparison { value: "ret".to_owned(), number: 0, equal: true }]);
        // The layout that was given, and one without values for all other builds.
        assert_eq!(probe.layouts.len(), 2);
        assert!(probe.layout_for("7.8.1", "1.0").unwrap().values.len() == 2);
        assert!(probe.layout_for("7.8.1", "1.1").unwrap().values.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_with_file_probe_key_and_fix() {
        for (from, to, wanted) in [
            (
                "title =",
                "titel =",
                "gears.toml: probe `mine.gear`: `titel` is not known; did you mean `title`?",
            ),
            ("range = true", "rnage = true", "`labels.teeth.rnage` is not known; did you mean `range`?"),
            (
                "[probe.layout.leave]",
                "[probe.layout.leaves]",
                "`layout.leaves` is not known; did you mean `leave`?",
            ),
            ("id = \"mine.gear\"\n", "", "probe `#1`: `id` is missing; add `id = \"…\"`"),
            ("_ZN4Gear5buildEi", "Gear::build(int)", "nm -D"),
            ("[\"_ZN4Gear5buildEi\"]", "[]", "`symbols` is missing"),
            ("gear_build_seconds", "gear_build", "must end in `_seconds`"),
            ("help = \"Time to build a gear.\"", "", "say what gear_build_seconds measures"),
            ("ret == 0", "ret = 0", "has not the form `value == number`"),
            ("ret == 0", "rte == 0", "`error_when` uses `rte`, which no layout reads"),
            ("gear {teeth}", "gear {tooth}", "`title` uses `tooth`"),
            ("\"cad.teeth\" = \"teeth\"", "\"cad.teeth\" = \"t\"", "`attributes.cad.teeth` uses `t`"),
            ("i32(arg1)", "i32(rsi)", "`layout.enter.teeth` `rsi` is no register"),
            ("i32(arg1)", "i32(ret)", "[probe.layout.leave]"),
            ("occt >= 7.6", "occt = 7.6", "has not the form `occt >= 7.8`"),
            ("occt >= 7.6", "qt >= 5", "has not the form `occt >= 7.8`"),
            ("status = \"status\"", "status = \"ok\"", "must be \"status\""),
            ("status = \"status\"", "pod = \"status\"", "cadscope adds itself"),
            ("range = true", "range = true, workbench = true", "takes one of"),
            ("title = \"gear {teeth}\"", "title = 7", "is a integer; write a text in quotes"),
            ("function =", "function", "gears.toml: TOML parse error at line 4"),
            ("[[probe]]", "[probe]", "begin each probe with [[probe]]"),
            ("[[probe]]", "x = 1\n[[probe]]", "unknown key `x`"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let message = add(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(message.contains(wanted), "{wanted}\n{message}");
            assert!(message.starts_with("gears.toml: "), "{message}");
        }
    }

    #[test]
    fn an_id_is_taken_once_and_a_refused_file_changes_nothing() {
        let mut catalog = add(GOOD).unwrap();
        let other = GOOD.replace("mine.gear", "mine.wheel");
        let message = catalog.add(&format!("{other}{GOOD}"), "more.toml").unwrap_err().to_string();
        assert_eq!(message, "more.toml: probe `mine.gear`: `id` is taken by another probe; choose a new one");
        assert_eq!(catalog.probes.len(), 1);
        catalog.add(&other, "more.toml").unwrap();
        assert_eq!(catalog.probes.len(), 2);
    }

    #[test]
    fn probes_of_one_family_have_the_same_labels() {
        let mut catalog = add(GOOD).unwrap();
        let other = GOOD.replace("mine.gear", "mine.wheel").replace("status = \"status\"", "");
        let message = catalog.add(&other, "more.toml").unwrap_err().to_string();
        assert!(
            message.contains("`labels` are teeth, but gear_build_seconds has status, teeth"),
            "{message}"
        );
    }

    #[test]
    fn a_layout_that_can_never_be_used_is_refused() {
        let text = format!("{GOOD}[[probe.layout]]\n[[probe.layout]]\n");
        assert!(add(&text).unwrap_err().contains("move that one to the end"));
    }

    #[test]
    fn the_example_of_the_documentation_is_right() {
        let source = include_str!("../catalog.rs");
        let begin = source.find("//! [[probe]]").unwrap();
        let lines = source[begin..].lines().take_while(|line| *line != "//! ```");
        let text: Vec<&str> = lines.map(|line| line.trim_start_matches("//!")).collect();
        let catalog = add(&text.join("\n")).unwrap();
        assert_eq!(catalog.probes[0].layouts[0].values.len(), 8);
    }

    proptest! {
        #[test]
        fn no_damage_makes_the_reader_panic(at in 0usize..700, cut in 0usize..30, put in "\\PC{0,6}") {
            let mut text = GOOD.to_owned();
            let at = at.min(text.len());
            text.replace_range(at..(at + cut).min(text.len()), &put);
            let _ = add(&text);
        }
    }
}
