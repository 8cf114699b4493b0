//! Turns catalogue files into probes: which function is which operation, and what to read from it.
//!
//! The built-in catalogue is the TOML under `catalog/`; a user's own probes have the same form and are added by
//! `--catalog FILE` or a `[[probe]]` table of the configuration file.

use std::collections::BTreeMap;

use cadscope_common::probe::ProbeProgram;

/// One catalogue entry, as it is used.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Names it everywhere: `bool.api_build`.
    pub id: String,
    /// Demangled signature, for people.
    pub function: String,
    /// Mangled names, best first: the first that a file defines is probed there.
    pub symbols: Vec<String>,
    /// What spans and rows are called, with `{value}` places: `boolean {operation}`, `recompute {object}`.
    pub title: String,
    /// The histogram that its durations go to, if any.
    pub metric: Option<String>,
    /// The counter that its calls go to, if any (object creation).
    pub counter: Option<String>,
    /// Help text of the family, needed once per family.
    pub help: String,
    /// Label name → how its value is made.
    pub labels: BTreeMap<String, Label>,
    /// Attribute name (`cad.object`) → value name.
    pub attributes: BTreeMap<String, String>,
    /// Values to read, by layout; the first whose condition holds for the worker's build is used.
    pub layouts: Vec<Layout>,
    /// `value == number` conditions on fetched values under which a call that returned counts as an error.
    pub error_when: Vec<(String, i64)>,
    /// The call counts only if all these `value == number` conditions hold (`isNew == 1`).
    pub count_when: Vec<(String, i64)>,
}

/// How a label's value is made from the values of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Label {
    /// The same for every call.
    Constant(String),
    /// By number: `0 = "common"`; anything else is `other`.
    Map(String, BTreeMap<i64, String>),
    /// The range that a number falls in, named `1`, `2-5`, `6-20`, `21-100`, `101-500`, `501+` (sortable prefix: see
    /// [`ranges`]).
    Range(String),
    /// The part of a class name before `::` (`Part::Box` → `Part`): its workbench.
    Workbench(String),
    /// The text itself (bounded by the metric registry).
    Text(String),
    /// The lower-case extension of a file name.
    Extension(String),
    /// ok, error, exception, killed.
    Status,
}

/// What to read for one range of builds.
#[derive(Clone, Debug)]
pub struct Layout {
    /// For which builds; see the catalogue's grammar (`occt >= 8.0`); empty = all.
    pub when: Vec<Condition>,
    /// Value names with their place in the record.
    pub values: Vec<(String, Place)>,
    /// The compiled program.
    pub program: ProbeProgram,
}

/// `freecad >= 1.0`, `occt < 8.0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `occt` or `freecad`.
    pub product: Product,
    /// Lowest version, inclusive.
    pub at_least: Option<Vec<u32>>,
    /// Highest version, exclusive.
    pub below: Option<Vec<u32>>,
}

/// The products whose versions layouts depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// Open CASCADE Technology.
    Occt,
    /// FreeCAD.
    FreeCad,
}

/// Where a value lies in an operation record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A word, and the index of the fetch that fills it (bit of `unread`).
    Word { index: u8, fetch: u8 },
    /// Text blocks, and the fetch. `class` values are type names: mangled as RTTI has them, shown demangled.
    Text { block: u8, blocks: u8, fetch: u8, class: bool },
}
