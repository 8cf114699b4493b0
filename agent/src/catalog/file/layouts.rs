//! Turns `[[probe.layout]]` tables into layouts: the builds that each is of, and the program that reads its values.

use toml::{Table, Value};

use super::super::expression::{self, Expression};
use super::super::program::{self, ResultPlace};
use super::super::{Condition, Layout, Product, decode};
use super::table::{Wrong, as_text, check_keys, is_name, subtable, texts, wrong};

const LAYOUT_KEYS: [&str; 3] = ["enter", "leave", "when"];

pub(super) fn layouts(table: &Table) -> Result<Vec<Layout>, Wrong> {
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
    let version = decode::version_numbers(version.trim()).ok_or_else(form)?;
    let (at_least, below) = if at_least { (Some(version), None) } else { (None, Some(version)) };
    Ok(Condition { product, at_least, below })
}

pub(super) fn product(name: &str) -> Result<Product, Wrong> {
    match name {
        "occt" => Ok(Product::Occt),
        "freecad" => Ok(Product::FreeCad),
        _ => Err(wrong("product", "is `occt` or `freecad`")),
    }
}
