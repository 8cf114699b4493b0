//! Turns `labels` tables into labels: what each is made of.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::super::Label;
use super::table::{Wrong, as_text, check_keys, is_name, subtable, text, wrong};

const LABEL_KEYS: [&str; 9] =
    ["bytes", "constant", "extension", "map", "of", "range", "status", "value", "workbench"];
const OUTCOMES: [&str; 5] = ["error", "exception", "killed", "ok", "other"];

/// Labels that the agent itself adds.
const RESERVED_LABELS: [&str; 7] =
    ["container", "freecad_version", "le", "namespace", "occt_version", "pod", "quantile"];

pub(super) fn labels(table: &Table) -> Result<BTreeMap<String, Label>, Wrong> {
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
