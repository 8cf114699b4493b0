//! Turns catalogue files into probes: which function is which operation, and what to read from it.
//!
//! The built-in catalogue is the TOML under `catalog/`; a user's own probes have the same form and are added by
//! `--catalog FILE` or a `[[probe]]` table of the configuration file. One probe:
//!
//! ```toml
//! [[probe]]
//! id = "mine.gear"                                    # names it everywhere, once
//! function = "Gear::build(int)"                       # for people
//! symbols = ["_ZN4Gear5buildEi"]                      # mangled, best first
//! title = "gear {teeth}"                              # optional; {label} or {value}
//! metric = "gear_build_seconds"                       # optional: histogram of durations
//! # counter = "gears_built_total"                     # optional: counter of calls
//! help = "Time to build a gear."                      # once per family
//! # product = "occt"                                  # optional: whose function it is, occt or freecad
//! # absent = "since version 2"                        # optional: why a file of that product may not have it
//! # by_value = true                                   # optional: it returns a class by value, whose place is arg0
//! # tally = "iterations"                              # optional: its value `tally` is how often inside it …
//! # tallies = "iterations"                            # … functions with this word were called: only counted
//! # group = "build"                                   # optional: only the outermost open call of a group is measured
//! error_when = ["ret == 0"]                           # any of them (== or !=): the call failed
//! # count_when = ["is_new == 1"]                      # all of them, or the call is not counted or measured
//! # ignore_when = ["parts == 0"]                      # any of them: the call is no operation at all
//! [probe.labels]
//! status = "status"                                   # ok, error, exception, killed
//! material = { constant = "steel" }
//! kind = { value = "kind", map = { 0 = "spur", 1 = "bevel" } }
//! teeth = { value = "teeth", range = true }           # see `ranges`
//! workbench = { value = "class", workbench = true }   # Part::Box -> Part; of = "objects": none where that is 0
//! class = { value = "class" }                         # the text itself: only where there are few
//! source = { value = "path", extension = true }       # lower-case extension
//! format = { value = "path", extension = true, map = { stp = "STEP" } }
//! size = { value = "file_bytes", bytes = true }       # see `ranges`
//! usable = { status = { ok = "true", other = "false" } }
//! [probe.attributes]                                  # of spans: from a value or a label
//! "cad.path" = "path"
//! [probe.derived]
//! parts = { sum = ["teeth", "bolts"] }
//! holes = { from = "begin", to = "end", each = 8 }    # elements of an array between two addresses
//! file_bytes = { file = "path" }                      # size of the file of this name when the call has ended
//! [[probe.also]]                                      # optional: further families that each call goes to
//! counter = "gear_teeth_total"                        # or histogram, or metric (the duration)
//! value = "teeth"                                     # what a call adds; 1 unless told. A histogram needs it
//! help = "Teeth cut."
//! labels = { status = "status" }
//! [[probe.layout]]                                    # the first whose conditions all hold
//! when = ["freecad >= 1.0", "freecad < 1.1"]
//! [probe.layout.enter]                                # values read when the call begins
//! teeth = "i32(arg1)"                                 # a register
//! bolts = "u32[this + 0x40]"                          # memory
//! kind = "u8[[this + 0x48] + 4]"                      # memory behind a pointer
//! begin = "u64[this + 0x50]"
//! end = "u64[this + 0x58]"
//! class = "class[this]"                               # the object's C++ class, by RTTI
//! path = "text[arg2]:128"                             # a C string of up to 128 bytes; string[…] for a std::string
//! [probe.layout.leave]                                # values read when it returns
//! ret = "u8(ret)"
//! ```
//!
//! The form of a value is in the private module `expression`; `cadscope probes --help` has it for users. A worker whose
//! version is not known, or newer than any condition, gets a layout without conditions, or no values.

mod decode;
mod expression;
mod file;
mod kind;
pub(crate) mod keys;
mod name;
mod program;
pub mod ranges;

use std::collections::BTreeMap;
use std::sync::Arc;

use cadscope_common::probe::ProbeProgram;

pub use decode::{demangle_type, printable};
pub use file::CatalogError;

/// The files that the program brings along.
const BUILTIN: [(&str, &str); 8] = [
    ("built-in occt.toml", include_str!("catalog/occt.toml")),
    ("built-in features.toml", include_str!("catalog/features.toml")),
    ("built-in freecad.toml", include_str!("catalog/freecad.toml")),
    ("built-in formats.toml", include_str!("catalog/formats.toml")),
    ("built-in solvers.toml", include_str!("catalog/solvers.toml")),
    ("built-in materials.toml", include_str!("catalog/materials.toml")),
    ("built-in workbenches.toml", include_str!("catalog/workbenches.toml")),
    ("built-in script.toml", include_str!("catalog/script.toml")),
];

/// All probes, in the order of their files.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// No two have the same id; probes of one family have the same label names.
    pub probes: Vec<Arc<Probe>>,
}

impl Catalog {
    /// The probes that the program brings along.
    ///
    /// # Errors
    /// None in a released program: a test loads it.
    pub fn builtin() -> Result<Self, CatalogError> {
        let mut catalog = Self::default();
        for (origin, text) in BUILTIN {
            catalog.add(text, origin)?;
        }
        Ok(catalog)
    }

    /// Adds the probes of a user's file; `origin` names it in errors.
    ///
    /// # Errors
    /// What is wrong with the file, and the fix; the catalogue is then as before.
    pub fn add(&mut self, text: &str, origin: &str) -> Result<(), CatalogError> {
        self.extend(file::read(text, origin)?, origin)
    }

    /// Adds `[[probe]]` tables that were read as part of another file.
    ///
    /// # Errors
    /// As [`Catalog::add`].
    pub fn add_tables(&mut self, tables: &[toml::Value], origin: &str) -> Result<(), CatalogError> {
        self.extend(file::read_tables(tables, origin)?, origin)
    }

    /// The probe of this id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Arc<Probe>> {
        self.probes.iter().find(|probe| probe.id == id)
    }

    /// The number of a tally's word in the kernel, 1 … 255; `None` for a word that no probe tallies.
    #[must_use]
    pub fn tally_number(&self, word: &str) -> Option<u8> {
        let words: std::collections::BTreeSet<&str> =
            self.probes.iter().filter_map(|probe| probe.tallies.as_deref()).collect();
        let index = words.iter().position(|known| *known == word)?;
        u8::try_from(index + 1).ok()
    }

    /// The number of a group in the kernel, 1 … 255; `None` for a word that no probe has.
    #[must_use]
    pub fn group_number(&self, word: &str) -> Option<u8> {
        let words: std::collections::BTreeSet<&str> =
            self.probes.iter().filter_map(|probe| probe.group.as_deref()).collect();
        let index = words.iter().position(|known| *known == word)?;
        u8::try_from(index + 1).ok()
    }

    fn extend(&mut self, probes: Vec<Probe>, origin: &str) -> Result<(), CatalogError> {
        let mut all = self.probes.clone();
        for probe in probes {
            file::check_beside(&all, &probe, origin)?;
            all.push(Arc::new(probe));
        }
        self.probes = all;
        Ok(())
    }
}

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
    /// Values made from other values.
    pub derived: BTreeMap<Arc<str>, Derived>,
    /// Calls of one group that are open inside one another are one piece of work: only the outermost of them goes to
    /// `metric` and `counter` (a STEP export of FreeCAD holds one of OCCT).
    pub group: Option<String>,
    /// A call that returned counts as an error if any of these holds.
    pub error_when: Vec<Comparison>,
    /// The call counts only if all of these hold (`isNew == 1`).
    pub count_when: Vec<Comparison>,
    /// The call is no operation if any of these holds: it had nothing to do.
    pub ignore_when: Vec<Comparison>,
    /// Further families that its calls go to.
    pub also: Vec<Measure>,
    /// Its calls have the value `tally`: how often functions that tally this word were called inside them.
    pub tally: Option<String>,
    /// Its calls are only counted, for the open calls around them that want this word.
    pub tallies: Option<String>,
    /// What its calls add up to in each call of another function around them.
    pub rollup: Option<Rollup>,
    /// Whose function it is.
    pub product: Option<Product>,
    /// Why a build of that product may not have it.
    pub absent: Option<String>,
}

/// A family with one observation for each outer call: the time of those inner calls that are wanted, by their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollup {
    /// Id of the probe of the outer call.
    pub inside: String,
    /// Value of the inner call that says whether it is wanted, …
    pub value: String,
    /// … by its end: `CoordinateSystem`.
    pub suffix: String,
    /// The family.
    pub family: String,
    /// Its help text.
    pub help: String,
    /// The label for the range of the number of inner calls.
    pub label: String,
}

/// `value == number` or `value != number`; does not hold for a value that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Name of the value.
    pub value: String,
    /// The number it is compared with.
    pub number: i64,
    /// What the comparison has to say: `true` for `==`.
    pub equal: bool,
}

/// A family beside a probe's first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Its name.
    pub family: String,
    /// Its help text.
    pub help: String,
    /// What goes to it.
    pub amount: Amount,
    /// Label name → how its value is made.
    pub labels: BTreeMap<String, Label>,
}

/// What a call adds to a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Amount {
    /// A histogram of durations gets its duration.
    Duration,
    /// A counter gets one.
    One,
    /// A counter gets this value.
    Add(String),
    /// A histogram of counts gets this value.
    Observe(String),
}

/// How a value is made from other values; absent if one of them is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Derived {
    /// Their sum.
    Sum(Vec<String>),
    /// How many elements of `each` bytes lie between two addresses, which are themselves left out of the values.
    Count {
        /// Value name of the address of the first element.
        from: String,
        /// Value name of the address after the last.
        to: String,
        /// Bytes of an element.
        each: i64,
    },
    /// Size in bytes of the file that this value names, when the call has ended; filled in after decoding.
    FileBytes(String),
}

/// How a label's value is made from the values of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Label {
    /// The same for every call.
    Constant(String),
    /// By number: `0 = "common"`; anything else is `other`.
    Map(String, BTreeMap<i64, String>),
    /// The range that a number falls in: see [`ranges`].
    Range(String),
    /// The part of a class name before `::` (`Part::Box` → `Part`): its workbench; `none` for a class outside of any,
    /// and where the value of the second name, a number of objects, is 0.
    Workbench(String, Option<String>),
    /// The text itself (bounded by the metric registry).
    Text(String),
    /// The lower-case extension of a file name.
    Extension(String),
    /// By lower-case extension of a file name: `stp = "STEP"`; anything else is `other`.
    FileType(String, BTreeMap<String, String>),
    /// The range that a number of bytes falls in: see [`ranges`].
    Bytes(String),
    /// ok, error, exception, killed.
    Status,
    /// By outcome (`ok = "hit"`); `other` stands for those that are not named.
    StatusAs(BTreeMap<String, String>),
}

/// What to read for one range of builds.
#[derive(Clone, Debug)]
pub struct Layout {
    /// For which builds; see the catalogue's grammar (`occt >= 8.0`); empty = all.
    pub when: Vec<Condition>,
    /// Value names with their place in the record.
    pub values: Vec<(Arc<str>, Place)>,
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
    Word {
        /// Which word.
        index: u8,
        /// Index of the fetch that fills it.
        fetch: u8,
    },
    /// Text blocks, and the fetch. `class` values are type names: mangled as RTTI has them, shown demangled.
    Text {
        /// Index of the first block.
        block: u8,
        /// Number of blocks.
        blocks: u8,
        /// Index of the fetch that fills them.
        fetch: u8,
        /// It is a type's name.
        class: bool,
    },
}
