//! Turns the bytes of a file and the catalogue into a plan: which probes go where in it, and which cannot and why.
//!
//! Pure. `cadscope probes` prints it, the attacher carries it out.

mod similar;

use std::collections::HashSet;
use std::sync::Arc;

use cadscope_common::probe::base;
use cadscope_common::tls::function;

use crate::catalog::{Catalog, Layout, Probe};
use crate::identify;
use crate::resolve::{
    ElfFile, Exit, FollowPolicy, Machine, Placement, Site, Sites, Unplaceable, Unreadable, Vaddr,
};

/// The C++ runtime's entry into a handler: every frame below it has been left by the exception.
const CATCH: &str = "__cxa_begin_catch";
/// The unwinder's ways to start an exception: a throw, and `throw;` in a handler.
const RAISE: [&str; 2] = ["_Unwind_RaiseException", "_Unwind_Resume_or_Rethrow"];
/// How glibc begins to end a thread. It comes to a jump on arm64 only; see the kernel side.
const FORCED: &str = "_Unwind_ForcedUnwind";
/// Where a cleanup hands the exception on.
const RESUME: &str = "_Unwind_Resume";
/// The names under which C libraries export their jumps.
const JUMPS: [&str; 7] = [
    "longjmp",
    "_longjmp",
    "siglongjmp",
    "__longjmp_chk",
    "__libc_longjmp",
    "__libc_siglongjmp",
    "__siglongjmp",
];

/// What a TLS function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsEdge {
    /// Plaintext is handed in.
    Write,
    /// Plaintext is asked for.
    Read,
    /// It has been handed out.
    ReadEnd,
    /// The connection is given up.
    Free,
}

/// OpenSSL's functions by the number that their sites carry. `SSL_write_ex` goes on in `SSL_write_ex2` since 3.3.
const TLS: [(&str, u16); 5] = [
    ("SSL_write", function::WRITE),
    ("SSL_write_ex", function::WRITE_EX),
    ("SSL_read", function::READ),
    ("SSL_read_ex", function::READ_EX),
    ("SSL_free", function::FREE),
];

/// A site of a TLS function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsSite {
    /// What happens there.
    pub edge: TlsEdge,
    /// See [`function`].
    pub function: u16,
    /// Where.
    pub site: Site,
}

/// The sites of a file's TLS functions; none unless data can be seen both going out and coming in.
///
/// # Errors
/// The file is no ELF file of this machine, or damaged.
pub fn tls(bytes: &[u8]) -> Result<Vec<TlsSite>, Unreadable> {
    let elf = ElfFile::parse(bytes)?;
    let mut sites = Vec::new();
    for (symbol, function) in TLS.iter().filter(|(symbol, _)| elf.defines(symbol)) {
        let mut add = |edge, site| sites.push(TlsSite { edge, function: *function, site });
        if symbol.starts_with("SSL_read") {
            let placed = elf.place_with(symbol, FollowPolicy::default(), Placement::ReturnFinal, &[]);
            let Ok(placed) = placed else { continue };
            add(TlsEdge::Read, placed.entry);
            placed.exits.iter().for_each(|(site, _)| add(TlsEdge::ReadEnd, *site));
        } else if let Ok(entry) = elf.entry(symbol) {
            add(if *function == function::FREE { TlsEdge::Free } else { TlsEdge::Write }, entry);
        }
    }
    let has = |edge| sites.iter().any(|site| site.edge == edge);
    if !(has(TlsEdge::Write) && has(TlsEdge::ReadEnd)) {
        sites.clear();
    }
    Ok(sites)
}

/// Versions that layouts are chosen by; `""` = not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Versions {
    /// FreeCAD's.
    pub freecad: String,
    /// OCCT's.
    pub occt: String,
}

/// One probe in this file.
#[derive(Clone, Debug)]
pub struct PlannedProbe {
    /// The probe.
    pub probe: Arc<Probe>,
    /// Index of its layout in `probe.layouts`; `None` if no layout is known to hold for these versions.
    pub layout: Option<usize>,
    /// Its sites, or why there are none.
    pub sites: Result<Sites, Unplaceable>,
    /// The file has the function under this signature only, which the catalogue does not know.
    pub found_as: Option<String>,
}

impl PlannedProbe {
    /// The layout itself.
    #[must_use]
    pub fn layout(&self) -> Option<&Layout> {
        self.probe.layouts.get(self.layout?)
    }

    /// What is not complete about it: another signature, or values whose place is not known for these versions.
    #[must_use]
    pub fn note(&self, versions: &Versions) -> Option<String> {
        if let Some(found) = &self.found_as {
            return Some(format!("another signature, so the duration only: {found}"));
        }
        let read =
            |layout: &Layout| layout.values.iter().map(|(name, _)| name.to_string()).collect::<HashSet<_>>();
        let known = self.layout().map(read).unwrap_or_default();
        let all: HashSet<String> = self.probe.layouts.iter().flat_map(read).collect();
        let mut lacking: Vec<String> = all.difference(&known).cloned().collect();
        lacking.sort();
        (!lacking.is_empty()).then(|| {
            format!(
                "not known where these are in FreeCAD `{}`, OCCT `{}`: {}",
                versions.freecad,
                versions.occt,
                lacking.join(", ")
            )
        })
    }
}

/// All of a file.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The catalogue's functions that the file defines.
    pub probes: Vec<PlannedProbe>,
    /// Where a C++ exception is caught, if the file is or holds a C++ runtime.
    pub caught: Vec<Site>,
    /// Where an exception starts, if the file is or holds an unwinder.
    pub raised: Vec<Site>,
    /// Where a cleanup ends, likewise.
    pub resumed: Vec<Site>,
    /// Where longjmp is entered, if the file is or holds a C library.
    pub jumped: Vec<Site>,
    /// The file holds FreeCAD's configuration, and so its version.
    pub has_freecad_config: bool,
}

impl Plan {
    /// Whether there is any probe to place.
    #[must_use]
    pub fn has_probes(&self) -> bool {
        self.probes.iter().any(|planned| planned.sites.is_ok())
    }

    /// Whether there is nothing at all of interest.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.probes.is_empty()
            && [&self.caught, &self.resumed, &self.raised, &self.jumped].iter().all(|sites| sites.is_empty())
    }
}

/// What a file has of the catalogue. Known before the versions are by which layouts are chosen: these cost a look at the
/// process, and most files have nothing.
#[derive(Debug)]
pub struct Survey<'a> {
    elf: ElfFile<'a>,
    /// The catalogue's functions that the file defines, each with the symbol that it has here.
    found: Vec<(Arc<Probe>, String)>,
    /// The same for those that it has under another signature, shown for people.
    similar: Vec<(Arc<Probe>, &'a str, String)>,
    /// All but the probes.
    rest: Plan,
}

/// Looks what a file has of the catalogue.
///
/// # Errors
/// The file is no ELF file of this machine, or damaged.
pub fn survey<'a>(bytes: &'a [u8], catalog: &Catalog) -> Result<Survey<'a>, Unreadable> {
    let elf = ElfFile::parse(bytes)?;
    if elf.is_cut_off() {
        return Err(Unreadable::Damaged("it ends before its segments do".to_owned()));
    }
    let defined = |probe: &Probe| probe.symbols.iter().find(|symbol| elf.defines(symbol)).cloned();
    let found: Vec<(Arc<Probe>, String)> =
        catalog.probes.iter().filter_map(|probe| Some((Arc::clone(probe), defined(probe)?))).collect();
    let is_of_interest = !found.is_empty() || elf.soname().is_some_and(is_ours);
    let similar = if is_of_interest { similar(&elf, catalog, &found) } else { Vec::new() };
    let forced: &[&str] = if elf.machine() == Machine::Arm64 { &[FORCED] } else { &[] };
    let rest = Plan {
        probes: Vec::new(),
        caught: entries(&elf, &[CATCH]),
        raised: entries(&elf, &[&RAISE, forced].concat()),
        resumed: entries(&elf, &[RESUME]),
        jumped: entries(&elf, &JUMPS),
        has_freecad_config: elf.defines(identify::FREECAD_CONFIG_SYMBOL),
    };
    Ok(Survey { elf, found, similar, rest })
}

impl Survey<'_> {
    /// The same if this machine runs the code: a breakpoint of it is no instruction of another's.
    ///
    /// # Errors
    /// The code is for another machine.
    pub fn of_this_machine(self) -> Result<Self, Unreadable> {
        let own = if cfg!(target_arch = "aarch64") { Machine::Arm64 } else { Machine::X86_64 };
        if self.elf.machine() == own { Ok(self) } else { Err(Unreadable::OtherMachine) }
    }

    /// Whether there are functions of the catalogue.
    #[must_use]
    pub fn has_functions(&self) -> bool {
        !(self.found.is_empty() && self.similar.is_empty())
    }

    /// Whether there is nothing at all of interest.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        !self.has_functions() && self.rest.is_plain()
    }

    /// Places the probes. `versions` are those of the worker that maps the file.
    #[must_use]
    pub fn plan(self, versions: &Versions) -> Plan {
        let Self { elf, found, similar, rest } = self;
        let mut plan = rest;
        let mut symbols = Vec::new();
        for (probe, symbol) in found {
            let chosen = probe.layout_for(&versions.occt, &versions.freecad);
            let layout = chosen
                .and_then(|chosen| probe.layouts.iter().position(|layout| std::ptr::eq(chosen, layout)));
            let reads_return = chosen.is_some_and(|layout| {
                layout
                    .program
                    .fetches
                    .iter()
                    .take(fetch_count(layout))
                    .any(|fetch| fetch.base == base::RETURN)
            });
            let placement = if reads_return { Placement::ReturnFinal } else { Placement::Cheapest };
            let sites = elf.place_with(&symbol, FollowPolicy::default(), placement, &[]);
            plan.probes.push(PlannedProbe { probe, layout, sites, found_as: None });
            symbols.push((symbol, placement));
        }
        go_on_in_each_other(&elf, &mut plan.probes, &symbols);
        plan.probes.extend(similar.into_iter().map(|(probe, symbol, shown)| PlannedProbe {
            probe,
            layout: None,
            sites: elf.place_with(symbol, FollowPolicy::default(), Placement::Cheapest, &[]),
            found_as: Some(shown),
        }));
        plan
    }
}

/// Plans a file. `versions` are those of the worker that maps it.
///
/// # Errors
/// The file is no ELF file of this machine, or damaged.
pub fn plan(bytes: &[u8], catalog: &Catalog, versions: &Versions) -> Result<Plan, Unreadable> {
    Ok(survey(bytes, catalog)?.plan(versions))
}

/// Places again what ends in a tail call: where the callee has probes of its own, the operation goes on until its end.
fn go_on_in_each_other(elf: &ElfFile<'_>, probes: &mut [PlannedProbe], symbols: &[(String, Placement)]) {
    let placed = probes.iter().zip(symbols).filter(|(planned, _)| planned.sites.is_ok());
    let mut probed: Vec<Vaddr> =
        placed.filter_map(|(_, (symbol, _))| elf.find(symbol)).map(|symbol| symbol.vaddr).collect();
    probed.sort_unstable();
    for (planned, (symbol, placement)) in probes.iter_mut().zip(symbols) {
        let Ok(sites) = &planned.sites else { continue };
        if sites.exits.iter().any(|(_, exit)| !matches!(exit, Exit::Return))
            && let Ok(again) = elf.place_with(symbol, FollowPolicy::default(), *placement, &probed)
        {
            planned.sites = Ok(again);
        }
    }
}

/// A library of OCCT or FreeCAD by its name.
fn is_ours(soname: &str) -> bool {
    ["libTK", "libFreeCAD", "libOndsel"].iter().any(|start| soname.starts_with(start))
}

/// Functions that the file has under another signature than the catalogue knows, with how they look to people.
fn similar<'a>(
    elf: &ElfFile<'a>,
    catalog: &Catalog,
    found: &[(Arc<Probe>, String)],
) -> Vec<(Arc<Probe>, &'a str, String)> {
    let has: HashSet<&str> = found.iter().map(|(probe, _)| probe.id.as_str()).collect();
    let missing: Vec<&Probe> =
        catalog.probes.iter().map(Arc::as_ref).filter(|probe| !has.contains(probe.id.as_str())).collect();
    let known: HashSet<&str> =
        catalog.probes.iter().flat_map(|probe| &probe.symbols).map(String::as_str).collect();
    let mut found = similar::find(&missing, &known, elf.exported_names());
    let named = |probe: &Arc<Probe>| {
        let (symbol, shown) = found.remove(&probe.id)?;
        Some((Arc::clone(probe), symbol, shown))
    };
    catalog.probes.iter().filter_map(named).collect()
}

fn fetch_count(layout: &Layout) -> usize {
    usize::try_from(layout.program.fetch_count).unwrap_or(0)
}

fn entries(elf: &ElfFile<'_>, symbols: &[&str]) -> Vec<Site> {
    let mut sites: Vec<Site> = symbols
        .iter()
        .filter(|symbol| elf.defines(symbol))
        .filter_map(|symbol| elf.entry(symbol).ok())
        .collect();
    sites.sort_by_key(|site| site.offset);
    sites.dedup_by_key(|site| site.offset);
    sites
}
