//! Turns what the kernel read into values, and values into outcome, labels and titles.
//!
//! Everything here was written by a worker: texts are cut, made valid and printable, numbers are only numbers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use cadscope_common::probe::{TEXT_BLOCK, edge, kind};
use cadscope_common::record::{self, ended_by};
use cpp_demangle::{DemangleOptions, Symbol};

use super::{Condition, Derived, Label, Layout, Place, Probe, Product, ranges};
use crate::operation::{Outcome, Value};

/// Label value where the value could not be read.
const UNKNOWN: &str = "unknown";
/// Label value where the value is none of those that were foreseen.
const OTHER: &str = "other";
/// Label value where there is nothing: a file without extension, a class outside of any workbench.
const NONE: &str = "none";
/// More elements than this in an array are not believed.
const MAX_COUNT: i64 = 100_000_000;

impl Probe {
    /// The layout for a worker's versions (`""` = not known): the first whose conditions all hold.
    #[must_use]
    pub fn layout_for(&self, occt: &str, freecad: &str) -> Option<&Layout> {
        let (occt, freecad) = (version_numbers(occt), version_numbers(freecad));
        self.layouts.iter().find(|layout| {
            layout.when.iter().all(|condition| {
                let version = match condition.product {
                    Product::Occt => &occt,
                    Product::FreeCad => &freecad,
                };
                version.as_ref().is_some_and(|version| condition.holds(version))
            })
        })
    }

    /// The values of a record that `layout`'s program filled; a value that was not read is absent.
    #[must_use]
    pub fn decode(
        &self,
        layout: &Layout,
        record: &record::Operation,
        text: &[u8],
    ) -> BTreeMap<String, Value> {
        let mut values = BTreeMap::new();
        for (name, place) in &layout.values {
            let value = match *place {
                Place::Word { index, fetch } => word(layout, record, index, fetch),
                Place::Text { block, blocks, fetch, class } => {
                    was_read(layout, record, fetch).and_then(|_| text_value(text, block, blocks, class))
                }
            };
            if let Some(value) = value {
                values.insert(name.clone(), value);
            }
        }
        self.derive(&mut values);
        values
    }

    fn derive(&self, values: &mut BTreeMap<String, Value>) {
        let number = |values: &BTreeMap<String, Value>, name: &str| match values.get(name) {
            Some(Value::Int(number)) => Some(*number),
            _ => None,
        };
        for (name, made) in &self.derived {
            let value = match made {
                Derived::Sum(names) => {
                    names.iter().try_fold(0_i64, |sum, name| sum.checked_add(number(values, name)?))
                }
                Derived::Count { from, to, each } => number(values, from)
                    .zip(number(values, to))
                    .and_then(|(from, to)| to.checked_sub(from))
                    .filter(|bytes| *bytes >= 0 && bytes % each == 0)
                    .map(|bytes| bytes / each)
                    .filter(|count| *count <= MAX_COUNT),
            };
            if let Some(value) = value {
                values.insert(name.clone(), Value::Int(value));
            }
        }
        for made in self.derived.values() {
            if let Derived::Count { from, to, .. } = made {
                values.remove(from);
                values.remove(to);
            }
        }
    }

    /// How a call that returned went.
    #[must_use]
    pub fn outcome(&self, values: &BTreeMap<String, Value>) -> Outcome {
        let failed = self.error_when.iter().any(|condition| holds(condition, values));
        if failed { Outcome::Error } else { Outcome::Ok }
    }

    /// The call is one that metrics count.
    #[must_use]
    pub fn counts(&self, values: &BTreeMap<String, Value>) -> bool {
        self.count_when.iter().all(|condition| holds(condition, values))
    }

    /// What the operation is called: the title with its places filled, `?` where a value is absent.
    #[must_use]
    pub fn title(&self, values: &BTreeMap<String, Value>) -> String {
        let mut title = String::with_capacity(self.title.len());
        let mut rest = self.title.as_str();
        while let Some((before, name, after)) = next_place(rest) {
            title.push_str(before);
            match (self.labels.get(name), values.get(name)) {
                (_, Some(Value::Text(text))) => title.push_str(text),
                (Some(label), _) => title.push_str(&label.text(values, Outcome::Ok)),
                (None, Some(Value::Int(number))) => title.push_str(&number.to_string()),
                (None, None) => title.push('?'),
            }
            rest = after;
        }
        title.push_str(rest);
        title
    }

    /// The labels of the operation, sorted by name, without those that the agent adds.
    #[must_use]
    pub fn label_values<'a>(
        &'a self,
        values: &'a BTreeMap<String, Value>,
        outcome: Outcome,
    ) -> Vec<(&'a str, Cow<'a, str>)> {
        self.labels.iter().map(|(name, label)| (name.as_str(), label.text(values, outcome))).collect()
    }

    /// The span attributes of the operation, sorted by name; one whose value is absent is left out.
    #[must_use]
    pub fn attribute_values(&self, values: &BTreeMap<String, Value>, outcome: Outcome) -> Vec<(&str, Value)> {
        let value_of = |name: &String| match (values.get(name), self.labels.get(name)) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(label)) => Some(Value::Text(Arc::from(label.text(values, outcome)))),
            (None, None) => None,
        };
        self.attributes.iter().filter_map(|(name, value)| Some((name.as_str(), value_of(value)?))).collect()
    }
}

impl Condition {
    fn holds(&self, version: &[u32]) -> bool {
        self.at_least.as_deref().is_none_or(|least| version >= least)
            && self.below.as_deref().is_none_or(|limit| version < limit)
    }
}

impl Label {
    /// The value that the label is made from.
    pub(super) fn value(&self) -> Option<&str> {
        match self {
            Self::Constant(_) | Self::Status => None,
            Self::Map(name, _)
            | Self::Range(name)
            | Self::Workbench(name)
            | Self::Text(name)
            | Self::Extension(name)
            | Self::FileType(name, _) => Some(name),
        }
    }

    fn text<'a>(&'a self, values: &'a BTreeMap<String, Value>, outcome: Outcome) -> Cow<'a, str> {
        let value = self.value().and_then(|name| values.get(name));
        match (self, value) {
            (Self::Constant(text), _) => Cow::Borrowed(text),
            (Self::Status, _) => Cow::Borrowed(outcome.as_str()),
            (_, None) => Cow::Borrowed(UNKNOWN),
            (Self::Map(_, map), Some(Value::Int(number))) => {
                Cow::Borrowed(map.get(number).map_or(OTHER, String::as_str))
            }
            (Self::Range(_), Some(Value::Int(number))) => {
                Cow::Borrowed(u64::try_from(*number).map_or(UNKNOWN, ranges::of_count))
            }
            (Self::Text(_), Some(Value::Int(number))) => Cow::Owned(number.to_string()),
            (Self::Text(_), Some(Value::Text(text))) => Cow::Borrowed(text),
            (Self::Workbench(_), Some(Value::Text(class))) => Cow::Borrowed(workbench(class)),
            (Self::Extension(_), Some(Value::Text(path))) => Cow::Owned(extension(path)),
            (Self::FileType(_, map), Some(Value::Text(path))) => {
                Cow::Borrowed(map.get(&extension(path)).map_or(OTHER, String::as_str))
            }
            _ => Cow::Borrowed(OTHER),
        }
    }
}

fn holds((name, wanted): &(String, i64), values: &BTreeMap<String, Value>) -> bool {
    values.get(name) == Some(&Value::Int(*wanted))
}

/// The kind of a fetch if it was read.
fn was_read(layout: &Layout, record: &record::Operation, fetch: u8) -> Option<u8> {
    let fetched = layout.program.fetches.get(usize::from(fetch))?;
    let unread = record.unread.checked_shr(u32::from(fetch)).unwrap_or(1) & 1 == 1;
    // Nothing is read at the end of a call that did not return.
    let ended = fetched.edge == edge::ENTER || record.ended_by == ended_by::RETURN;
    (!unread && ended).then_some(fetched.kind)
}

fn word(layout: &Layout, record: &record::Operation, index: u8, fetch: u8) -> Option<Value> {
    let fetch_kind = was_read(layout, record, fetch)?;
    let bytes = record.words.get(usize::from(index))?.to_le_bytes();
    let [a, b, c, d, ..] = bytes;
    Some(Value::Int(match fetch_kind {
        kind::U8 => i64::from(a),
        kind::U16 => i64::from(u16::from_le_bytes([a, b])),
        kind::U32 => i64::from(u32::from_le_bytes([a, b, c, d])),
        kind::I32 => i64::from(i32::from_le_bytes([a, b, c, d])),
        _ => i64::from_le_bytes(bytes),
    }))
}

fn text_value(text: &[u8], block: u8, blocks: u8, class: bool) -> Option<Value> {
    let begin = usize::from(block) * TEXT_BLOCK;
    let end = (begin + usize::from(blocks) * TEXT_BLOCK).min(text.len());
    let raw = text.get(begin..end)?.split(|&byte| byte == 0).next()?;
    let text = printable(raw);
    if !class {
        return Some(Value::Text(Arc::from(text)));
    }
    (!text.is_empty()).then(|| Value::Text(Arc::from(class_name(&demangle_type(&text)))))
}

/// Valid UTF-8 without control characters.
fn printable(raw: &[u8]) -> String {
    String::from_utf8_lossy(raw).replace(char::is_control, "\u{fffd}")
}

/// A C++ type's name as people write it: `N4Part3BoxE` is `Part::Box`. What is no mangled name stays as it is.
#[must_use]
pub fn demangle_type(name: &str) -> String {
    // GCC marks names of types that are local to a file with a star.
    let bare = name.strip_prefix('*').unwrap_or(name);
    let symbol = Symbol::new(format!("_ZTS{bare}"));
    let demangled = symbol.ok().and_then(|symbol| symbol.demangle_with_options(&DemangleOptions::new()).ok());
    match demangled.as_deref().and_then(|text| text.strip_prefix("typeinfo name for ")) {
        Some(text) => text.to_owned(),
        None => bare.to_owned(),
    }
}

/// A class as FreeCAD's TypeId names it: its Python variants are templates in C++ and have a name of their own there.
fn class_name(class: &str) -> String {
    let inner = class.strip_prefix("App::FeaturePythonT<").and_then(|rest| rest.strip_suffix('>'));
    match inner.map(str::trim) {
        None => class.to_owned(),
        Some("App::DocumentObject") => "App::FeaturePython".to_owned(),
        Some("App::GeoFeature") => "App::GeometryPython".to_owned(),
        Some(inner) => format!("{inner}Python"),
    }
}

fn workbench(class: &str) -> &str {
    match class.split_once("::") {
        Some((name, _))
            if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') =>
        {
            name
        }
        _ => NONE,
    }
}

fn extension(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit_once('.') {
        None => NONE.to_owned(),
        Some((_, "")) => NONE.to_owned(),
        Some((_, found)) if found.len() <= 8 && found.chars().all(|c| c.is_ascii_alphanumeric()) => {
            found.to_ascii_lowercase()
        }
        Some(_) => OTHER.to_owned(),
    }
}

/// The numbers of `7.6.3`; what follows the first part that is no number is left out (`1.1.3rc1`, `0.20.2+dfsg1`).
pub(super) fn version_numbers(version: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in version.split('.').take(4) {
        let digits: &str = part.split(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
        let Ok(number) = digits.parse() else { break };
        numbers.push(number);
        if digits.len() < part.len() {
            break;
        }
    }
    (!numbers.is_empty()).then_some(numbers)
}

/// Text before the next `{name}`, the name, and the text after it.
fn next_place(title: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = title.split_once('{')?;
    let (name, after) = rest.split_once('}')?;
    Some((before, name, after))
}

/// The names in the places of a title.
pub(super) fn places(title: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut rest = title;
    while let Some((_, name, after)) = next_place(rest) {
        names.push(name);
        rest = after;
    }
    names
}
