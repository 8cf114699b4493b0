//! Turns what the kernel read into values, and values into outcome, labels and titles.
//!
//! Everything here was written by a worker: texts are cut, made valid and printable, numbers are only numbers.

use std::borrow::Cow;
use std::sync::Arc;

use cadscope_common::probe::{TEXT_BLOCK, edge, kind};
use cadscope_common::record::{self, ended_by};
use cpp_demangle::DemangleOptions;

use super::{Comparison, Condition, Derived, Label, Layout, Place, Probe, Product, ranges};
use crate::demangled::demangled;
use crate::value::{Outcome, Texts, Value, Values};

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
        texts: &mut Texts,
    ) -> Values {
        let mut values = Values::default();
        for (name, place) in &layout.values {
            let value = match *place {
                Place::Word { index, fetch } => word(layout, record, index, fetch),
                Place::Text { block, blocks, fetch, class } => was_read(layout, record, fetch)
                    .and_then(|_| text_value(text, block, blocks, class, texts)),
            };
            if let Some(value) = value {
                values.insert(Arc::clone(name), value);
            }
        }
        self.derive(&mut values);
        values
    }

    fn derive(&self, values: &mut Values) {
        let number = |values: &Values, name: &str| match values.get(name) {
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
                Derived::FileBytes(_) => None,
            };
            if let Some(value) = value {
                values.insert(Arc::clone(name), Value::Int(value));
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
    pub fn outcome(&self, values: &Values) -> Outcome {
        let failed = self.error_when.iter().any(|condition| condition.holds_for(values));
        if failed { Outcome::Error } else { Outcome::Ok }
    }

    /// The call is one that metrics count.
    #[must_use]
    pub fn counts(&self, values: &Values) -> bool {
        self.count_when.iter().all(|condition| condition.holds_for(values))
    }

    /// The call had nothing to do, and is no operation.
    #[must_use]
    pub fn ignores(&self, values: &Values) -> bool {
        self.ignore_when.iter().any(|condition| condition.holds_for(values))
    }

    /// Name of the value that is the size of a file, and the file's path.
    #[must_use]
    pub fn written_file<'a>(&'a self, values: &'a Values) -> Option<(&'a str, &'a str)> {
        self.derived.iter().find_map(|(name, made)| match made {
            Derived::FileBytes(path) => match values.get(path) {
                Some(Value::Text(path)) => Some((&**name, &**path)),
                _ => None,
            },
            _ => None,
        })
    }

    /// The path of the file that a call of the group `load` reads; `None` for one that reads no file.
    #[must_use]
    pub fn read_file<'a>(&self, values: &'a Values) -> Option<&'a str> {
        let path = self.attributes.get("file.path").filter(|_| self.loads())?;
        match values.get(path) {
            Some(Value::Text(path)) => Some(path),
            _ => None,
        }
    }

    /// Its calls read what the worker then works on.
    #[must_use]
    pub fn loads(&self) -> bool {
        self.group.as_deref() == Some("load")
    }

    /// What the operation is called: the title with its places filled; a value that is absent is left
    /// out, with the space before it.
    #[must_use]
    pub fn title(&self, values: &Values) -> String {
        let mut title = String::with_capacity(self.title.len());
        let mut rest = self.title.as_str();
        while let Some((before, name, after)) = next_place(rest) {
            title.push_str(before);
            match (self.labels.get(name), values.get(name)) {
                (_, Some(Value::Text(text))) => title.push_str(text),
                (Some(label), _) => title.push_str(&label.text(values, Outcome::Ok)),
                (None, Some(Value::Int(number))) => title.push_str(&number.to_string()),
                (None, None) => title.truncate(title.trim_end().len()),
            }
            rest = after;
        }
        title.push_str(rest);
        title
    }

    /// The labels of the operation, sorted by name, without those that the agent adds.
    #[must_use]
    pub fn label_values<'a>(&'a self, values: &'a Values, outcome: Outcome) -> Vec<(&'a str, Cow<'a, str>)> {
        self.labels.iter().map(|(name, label)| (name.as_str(), label.text(values, outcome))).collect()
    }

    /// The span attributes of the operation, sorted by name; one whose value is absent is left out.
    #[must_use]
    pub fn attribute_values(&self, values: &Values, outcome: Outcome) -> Vec<(&str, Value)> {
        let value_of = |name: &String| match (values.get(name), self.labels.get(name)) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(label)) => Some(Value::Text(Arc::from(label.text(values, outcome)))),
            (None, None) => None,
        };
        self.attributes.iter().filter_map(|(name, value)| Some((name.as_str(), value_of(value)?))).collect()
    }
}

impl Comparison {
    fn holds_for(&self, values: &Values) -> bool {
        match values.get(&self.value) {
            Some(Value::Int(number)) => (*number == self.number) == self.equal,
            _ => false,
        }
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
    pub(crate) fn value(&self) -> Option<&str> {
        match self {
            Self::Constant(_) | Self::Status | Self::StatusAs(_) => None,
            Self::Map(name, _)
            | Self::Range(name)
            | Self::Bytes(name)
            | Self::Workbench(name, _)
            | Self::Text(name)
            | Self::Extension(name)
            | Self::FileType(name, _) => Some(name),
        }
    }

    /// The value that says how many objects there are.
    pub(crate) fn count(&self) -> Option<&str> {
        match self {
            Self::Workbench(_, count) => count.as_deref(),
            _ => None,
        }
    }

    /// The label's value.
    pub(crate) fn text<'a>(&'a self, values: &'a Values, outcome: Outcome) -> Cow<'a, str> {
        let value = self.value().and_then(|name| values.get(name));
        match (self, value) {
            (Self::Constant(text), _) => Cow::Borrowed(text),
            (Self::Status, _) => Cow::Borrowed(outcome.as_str()),
            (Self::StatusAs(names), _) => Cow::Borrowed(
                names.get(outcome.as_str()).or_else(|| names.get(OTHER)).map_or(OTHER, String::as_str),
            ),
            // What stands before the first of no objects is anything.
            (Self::Workbench(_, Some(count)), _) if values.get(count) == Some(&Value::Int(0)) => {
                Cow::Borrowed(NONE)
            }
            (_, None) => Cow::Borrowed(UNKNOWN),
            (Self::Map(_, map), Some(Value::Int(number))) => {
                Cow::Borrowed(map.get(number).map_or(OTHER, String::as_str))
            }
            (Self::Range(_), Some(Value::Int(number))) => {
                Cow::Borrowed(u64::try_from(*number).map_or(UNKNOWN, ranges::of_count))
            }
            (Self::Bytes(_), Some(Value::Int(number))) => {
                Cow::Borrowed(u64::try_from(*number).map_or(UNKNOWN, ranges::of_bytes))
            }
            (Self::Text(_), Some(Value::Int(number))) => Cow::Owned(number.to_string()),
            (Self::Text(_), Some(Value::Text(text))) => Cow::Borrowed(text),
            (Self::Workbench(..), Some(Value::Text(class))) => Cow::Borrowed(workbench(class)),
            (Self::Extension(_), Some(Value::Text(path))) => Cow::Owned(extension(path)),
            (Self::FileType(_, map), Some(Value::Text(path))) => {
                Cow::Borrowed(map.get(&extension(path)).map_or(OTHER, String::as_str))
            }
            _ => Cow::Borrowed(OTHER),
        }
    }
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

fn text_value(text: &[u8], block: u8, blocks: u8, class: bool, texts: &mut Texts) -> Option<Value> {
    let begin = usize::from(block) * TEXT_BLOCK;
    let end = (begin + usize::from(blocks) * TEXT_BLOCK).min(text.len());
    let raw = text.get(begin..end)?.split(|&byte| byte == 0).next()?;
    let make = || match class {
        true => Arc::from(class_name(&demangle_type(&printable(raw)))),
        false => Arc::from(printable(raw)),
    };
    (!class || !raw.is_empty()).then(|| Value::Text(texts.get(raw, class, make)))
}

/// Valid UTF-8 without control characters.
#[must_use]
pub fn printable(raw: &[u8]) -> String {
    String::from_utf8_lossy(raw).replace(char::is_control, "\u{fffd}")
}

/// A C++ type's name as people write it: `N4Part3BoxE` is `Part::Box`. What is no mangled name stays as it is.
#[must_use]
pub fn demangle_type(name: &str) -> String {
    // GCC marks names of types that are local to a file with a star.
    let bare = name.strip_prefix('*').unwrap_or(name);
    match demangled(&format!("_ZTS{bare}"), &DemangleOptions::new())
        .as_deref()
        .and_then(|text| text.strip_prefix("typeinfo name for "))
    {
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

#[cfg(test)]
mod tests {
    use cadscope_common::probe::{TEXT_BYTES, WORDS};
    use cadscope_common::record::{ProcessKey, record_kind};
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::Catalog;

    fn empty_record() -> record::Operation {
        record::Operation {
            kind: record_kind::OPERATION,
            probe: 0,
            process: ProcessKey::default(),
            tid: 1,
            depth: 0,
            start_ns: 1,
            end_ns: 2,
            parent_start_ns: 0,
            exception: 0,
            ended_by: ended_by::RETURN,
            signal: 0,
            unread: 0,
            text_len: 0,
            entry_pages: 0,
            exit_pages: 0,
            peak_pages: 0,
            padding: 0,
            words: [0; WORDS],
            text: [0; TEXT_BYTES],
        }
    }

    /// A record in which each named value was read: a number into its word, a text into its blocks.
    fn record_of(
        layout: &Layout,
        values: &[(&str, i64)],
        texts: &[(&str, &str)],
    ) -> (record::Operation, Vec<u8>) {
        let mut record = empty_record();
        let mut text = vec![0; TEXT_BYTES];
        for (name, place) in &layout.values {
            match *place {
                Place::Word { index, fetch } => match values.iter().find(|(n, _)| *n == &**name) {
                    Some((_, value)) => record.words[usize::from(index)] = value.cast_unsigned(),
                    None => record.unread |= 1 << fetch,
                },
                Place::Text { block, fetch, .. } => match texts.iter().find(|(n, _)| *n == &**name) {
                    Some((_, value)) => {
                        let at = usize::from(block) * TEXT_BLOCK;
                        text[at..at + value.len()].copy_from_slice(value.as_bytes());
                    }
                    None => record.unread |= 1 << fetch,
                },
            }
        }
        (record, text)
    }

    fn labels(probe: &Probe, values: &Values) -> String {
        let labels = probe.label_values(values, probe.outcome(values));
        labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_boolean_is_labelled_by_its_kind_and_size() {
        let catalog = Catalog::builtin().unwrap();
        let probe = catalog.get("bool.api_build").unwrap();
        let layout = probe.layout_for("7.6.3", "").unwrap();
        let numbers = [("kind", 1), ("arguments", 1), ("tools", 3), ("done", 0)];
        let (record, text) = record_of(layout, &numbers, &[("argument", "13TopoDS_TSolid")]);
        let values = probe.decode(layout, &record, &text, &mut Texts::default());
        assert_eq!(labels(probe, &values), "operation=union solids_range=0002-0005 status=error");
        assert_eq!(probe.title(&values), "boolean union");
        let attributes = probe.attribute_values(&values, Outcome::Error);
        assert_eq!(attributes[0], ("cad.argument", Value::Text("TopoDS_TSolid".into())));
        assert_eq!(attributes[2], ("cad.solids", Value::Int(4)));
    }

    #[test]
    fn a_recompute_counts_the_objects_and_hides_their_addresses() {
        let catalog = Catalog::builtin().unwrap();
        let probe = catalog.get("fc.doc_recompute").unwrap();
        let layout = probe.layout_for("7.6.3", "0.20.2").unwrap();
        let numbers =
            [("objects_begin", 0x7f00_0000), ("objects_end", 0x7f00_0000 + 8 * 12), ("recomputed", 12)];
        let texts = [("document", "Doc1"), ("newest", "N3App14FeaturePythonTIN4Part7FeatureEEE")];
        let (record, text) = record_of(layout, &numbers, &texts);
        let values = probe.decode(layout, &record, &text, &mut Texts::default());
        assert_eq!(labels(probe, &values), "doc_complexity=0006-0020 workbench=Part");
        assert_eq!(probe.title(&values), "recompute document Doc1");
        assert_eq!(
            values.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            ["document", "newest", "objects", "recomputed"]
        );
        assert_eq!(values.get("newest"), Some(&Value::Text("Part::FeaturePython".into())));
        let empty = [("objects_begin", 0x7f00_0000), ("objects_end", 0x7f00_0000)];
        let (record, text) = record_of(layout, &empty, &texts);
        let values = probe.decode(layout, &record, &text, &mut Texts::default());
        assert_eq!(labels(probe, &values), "doc_complexity=0000 workbench=none", "what was read is stale");
    }

    #[test]
    fn an_unknown_version_gets_a_layout_without_offsets_of_its_own() {
        let catalog = Catalog::builtin().unwrap();
        let probe = catalog.get("fc.recompute_feature").unwrap();
        let names = |freecad| {
            let layout = probe.layout_for("7.8.1", freecad).unwrap();
            layout.values.iter().map(|(name, _)| &**name).collect::<Vec<_>>()
        };
        assert_eq!(names("1.0.0"), ["class", "object", "ret"]);
        assert_eq!(names("2.0"), ["class", "ret"]);
        assert_eq!(names(""), ["class", "ret"]);
        let fillet = catalog.get("feat.fillet_build").unwrap();
        assert_eq!(fillet.layout_for("8.0.1", "").unwrap().values.len(), 2);
        assert_ne!(
            fillet.layout_for("8.0.1", "").unwrap().program,
            fillet.layout_for("7.9.3", "").unwrap().program
        );
        assert_eq!(fillet.layout_for("9.0", "").unwrap().values.len(), 1);
    }

    #[test]
    fn what_was_not_read_is_absent_and_named_unknown() {
        let catalog = Catalog::builtin().unwrap();
        let probe = catalog.get("fc.recompute_feature").unwrap();
        let layout = probe.layout_for("7.6.3", "0.20.2").unwrap();
        let (record, text) = record_of(layout, &[], &[]);
        let values = probe.decode(layout, &record, &text, &mut Texts::default());
        assert!(values.is_empty());
        assert_eq!(labels(probe, &values), "class=unknown status=ok workbench=unknown");
        assert_eq!(probe.title(&values), "recompute unknown");
    }

    #[test]
    fn a_call_that_did_not_return_has_no_values_of_its_end() {
        let catalog = Catalog::builtin().unwrap();
        let probe = catalog.get("bool.api_build").unwrap();
        let layout = probe.layout_for("7.6.3", "").unwrap();
        let (mut record, text) = record_of(layout, &[("kind", 4), ("done", 0)], &[]);
        record.ended_by = ended_by::EXCEPTION;
        let values = probe.decode(layout, &record, &text, &mut Texts::default());
        assert!(values.get("done").is_none());
        assert_eq!(probe.outcome(&values), Outcome::Ok);
        assert_eq!(probe.title(&values), "boolean section");
    }

    #[test]
    fn restored_objects_are_not_created() {
        let catalog = Catalog::builtin().unwrap();
        let probe = catalog.get("fc.add_object").unwrap();
        let is_new = |n| Values::from([("is_new", Value::Int(n))]);
        assert!(probe.counts(&is_new(1)));
        assert!(!probe.counts(&is_new(0)));
        assert!(!probe.counts(&Values::default()));
    }

    #[test]
    fn class_names_are_demangled() {
        for (mangled, name) in [
            ("N4Part3BoxE", "Part::Box"),
            ("16BRepAlgoAPI_Fuse", "BRepAlgoAPI_Fuse"),
            ("16Standard_Failure", "Standard_Failure"),
            ("N3App14FeaturePythonTIN4Part7FeatureEEE", "App::FeaturePythonT<Part::Feature>"),
            ("*N12_GLOBAL__N_13FooE", "(anonymous namespace)::Foo"),
            ("St13runtime_error", "std::runtime_error"),
            ("N4Part3Bo", "N4Part3Bo"),
            ("", ""),
        ] {
            assert_eq!(demangle_type(mangled), name);
        }
        assert_eq!(class_name("App::FeaturePythonT<App::DocumentObject>"), "App::FeaturePython");
        assert_eq!(workbench("PartDesign::Pad"), "PartDesign");
        assert_eq!(workbench("TopoDS_TSolid"), NONE);
        assert_eq!(workbench("(anonymous namespace)::Foo"), NONE);
    }

    #[test]
    fn extensions_are_small_and_few() {
        for (path, wanted) in [
            ("/a/b.STEP", "step"),
            ("/a.b/c", NONE),
            ("c.", NONE),
            ("x.averyverylongone", OTHER),
            ("x.a b", OTHER),
            ("", NONE),
        ] {
            assert_eq!(extension(path), wanted, "{path}");
        }
    }

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(version_numbers("0.20.2+dfsg1"), Some(vec![0, 20, 2]));
        assert_eq!(version_numbers("1.1.3rc1"), Some(vec![1, 1, 3]));
        assert_eq!(version_numbers("dev"), None);
        assert_eq!(version_numbers(""), None);
        assert!(version_numbers("0.20") > version_numbers("0.9.9"));
    }

    proptest! {
        #[test]
        fn no_record_breaks_decoding(
            words in any::<[u64; WORDS]>(),
            unread in any::<u16>(),
            ended in 0u8..8,
            text in prop::collection::vec(any::<u8>(), 0..=TEXT_BYTES),
        ) {
            let record = record::Operation { words, unread, ended_by: ended, ..empty_record() };
            for probe in &Catalog::builtin().unwrap().probes {
                for layout in &probe.layouts {
                    let values = probe.decode(layout, &record, &text, &mut Texts::default());
                    let outcome = probe.outcome(&values);
                    prop_assert!(!probe.title(&values).chars().any(char::is_control));
                    for (_, label) in probe.label_values(&values, outcome) {
                        prop_assert!(!label.chars().any(char::is_control));
                    }
                }
            }
        }
    }
}
