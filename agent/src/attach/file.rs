//! A file of interest: what is in it, which probes it has, who maps it, and why one could not be used.

use std::collections::HashSet;
use std::fs::File;

use cadscope_common::cookie::Cookie;

use crate::discover::OpenError;
use crate::kernel::{AttachError, KernelError, Link, SiteProgram};
use crate::plan::{TlsEdge, TlsSite, Versions};
use crate::resolve::{FileOffset, Site, Unreadable};

use super::changes::Stamp;

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It could not be read.
    #[error("cannot be read: {0}")]
    Read(String),
    /// It was written to while it was looked at.
    #[error("was written to while it was looked at")]
    Changed,
    /// It had probes before, which some process does not let go.
    #[error("its former probes are still being taken away")]
    Closing,
    /// A program maps it that would take probes for its own breakpoints.
    #[error(
        "it has no probes while valgrind runs it, which would take them for the worker's own breakpoints"
    )]
    Translated,
    /// It is not an ELF file that can be understood.
    #[error(transparent)]
    Elf(#[from] Unreadable),
    /// The kernel refused.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A map of the kernel side refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl FileError {
    /// Whether it can be otherwise a moment later, for the same process: what the node lacked, or someone else held.
    #[must_use]
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::Open(error) => matches!(error, OpenError::Refused(_)),
            Self::Elf(_) | Self::Translated => false,
            Self::Read(_) | Self::Changed | Self::Closing | Self::Attach(_) | Self::Kernel(_) => true,
        }
    }
}

/// A probe in a file, as `/status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedProbe {
    /// Its id.
    pub id: String,
    /// Its probe program; of no meaning where it is not placed, or has none (TLS).
    pub slot: u16,
    /// Entry and number of exits, or why it is not placed.
    pub sites: Result<(FileOffset, usize), String>,
    /// What is not complete about it.
    pub note: Option<String>,
}

/// A file of interest.
#[derive(Debug)]
pub struct TrackedFile {
    /// As the first worker maps it.
    pub path: String,
    /// Its probes.
    pub probes: Vec<PlacedProbe>,
    /// Versions it brings to a worker.
    pub versions: Versions,
    /// Whether it holds functions of the catalogue (else it is a C or C++ runtime).
    pub has_probes: bool,
    /// Whether it holds TLS functions that are observed.
    pub has_tls: bool,
    /// Whether FreeCAD's configuration can be read through it.
    pub has_freecad_config: bool,
    /// Workers that map it.
    pub workers: HashSet<u32>,
    pub(super) sites: Vec<(SiteProgram, Vec<(FileOffset, Cookie)>)>,
    pub(super) links: Vec<Link>,
    pub(super) file: File,
    pub(super) stamp: Stamp,
    pub(super) idle_since_ns: Option<u64>,
    pub(super) placed: Option<Placed>,
    pub(super) gives_way: bool,
}

/// When a file's probes came into place, CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// When it was known where they go.
    pub analysed_ns: u64,
    /// When they were there.
    pub placed_ns: u64,
}

impl TrackedFile {
    pub(super) const fn seen(&self) -> Seen {
        match (self.has_probes, self.has_tls) {
            (true, _) => Seen::Worker,
            (false, true) => Seen::Tls,
            (false, false) => Seen::Runtime,
        }
    }

    /// Adds the sites of TLS functions.
    pub(super) fn add_tls(&mut self, tls: &[TlsSite]) {
        for (edge, program, id) in [
            (TlsEdge::ReadEnd, SiteProgram::TlsReadEnd, None),
            (TlsEdge::Read, SiteProgram::TlsRead, Some("tls.read")),
            (TlsEdge::Write, SiteProgram::TlsWrite, Some("tls.write")),
            (TlsEdge::Free, SiteProgram::TlsFree, Some("tls.free")),
        ] {
            let sites: Vec<&TlsSite> = tls.iter().filter(|site| site.edge == edge).collect();
            let Some(first) = sites.first() else { continue };
            if let Some(id) = id {
                let exits =
                    tls.iter().filter(|s| edge == TlsEdge::Read && s.edge == TlsEdge::ReadEnd).count();
                let sites = Ok((first.site.offset, exits));
                self.probes.push(PlacedProbe { id: id.to_owned(), slot: u16::MAX, sites, note: None });
            }
            let placed = sites.iter().map(|site| placed_site(site.function, &site.site)).collect();
            self.sites.push((program, placed));
            self.has_tls = true;
        }
    }

    /// Whether its probes are in place.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Whether it has no probes because a program translates it.
    #[must_use]
    pub const fn gives_way(&self) -> bool {
        self.gives_way
    }
}

/// What became of a mapped file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing in it.
    Plain,
    /// It holds functions of the catalogue: who maps it is a worker.
    Worker,
    /// It is a runtime that matters for workers only.
    Runtime,
    /// It holds TLS functions, which matter in every process.
    Tls,
}

pub(super) fn placed_site(slot: u16, site: &Site) -> (FileOffset, Cookie) {
    (site.offset, Cookie::new(slot, site.edge, site.base, site.return_register, site.distance))
}
