//! Turns the values of a TOML table into texts, lists and tables, or into what is wrong with them.

use toml::{Table, Value};

use super::super::keys::{suggestion, unknown_key};

/// Longest id, title, label value, …
const MAX_TEXT: usize = 400;

pub(super) struct Wrong {
    pub(super) key: String,
    pub(super) problem: String,
}

pub(super) fn wrong(key: impl Into<String>, problem: impl Into<String>) -> Wrong {
    Wrong { key: key.into(), problem: problem.into() }
}

pub(super) fn check_keys(table: &Table, allowed: &[&str], path: &str) -> Result<(), Wrong> {
    match unknown_key(table, allowed) {
        Some(key) => {
            Err(wrong(format!("{path}{key}"), format!("is not known; {}", suggestion(key, allowed))))
        }
        None => Ok(()),
    }
}

pub(super) fn as_text(value: &Value, key: &str) -> Result<String, Wrong> {
    match value.as_str() {
        Some("") => Err(wrong(key, "is empty; say something or remove it")),
        Some(text) if text.len() > MAX_TEXT => Err(wrong(key, format!("is longer than {MAX_TEXT} bytes"))),
        Some(text) => Ok(text.to_owned()),
        None => Err(wrong(key, format!("is a {}; write a text in quotes", value.type_str()))),
    }
}

pub(super) fn text(table: &Table, key: &str) -> Result<Option<String>, Wrong> {
    table.get(key).map(|value| as_text(value, key)).transpose()
}

pub(super) fn required_text(table: &Table, key: &str) -> Result<String, Wrong> {
    text(table, key)?.ok_or_else(|| wrong(key, format!("is missing; add `{key} = \"…\"`")))
}

pub(super) fn subtable<'a>(table: &'a Table, key: &str, shown: &str) -> Result<Option<&'a Table>, Wrong> {
    match table.get(key) {
        None => Ok(None),
        Some(Value::Table(inner)) => Ok(Some(inner)),
        Some(other) => Err(wrong(shown, format!("is a {}; write a table", other.type_str()))),
    }
}

pub(super) fn texts(table: &Table, key: &str, shown: &str) -> Result<Vec<String>, Wrong> {
    match table.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(|value| as_text(value, shown)).collect(),
        Some(other) => Err(wrong(shown, format!("is a {}; write a list: [\"…\"]", other.type_str()))),
    }
}

pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
