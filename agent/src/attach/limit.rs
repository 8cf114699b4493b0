//! Turns the verdict on a probe that is hit too often into fewer records, or none of its sites.

use std::sync::Arc;

use cadscope_common::probe::flags;

use super::slots::too_hot;
use super::{Attacher, TrackedFile};
use crate::budget::Measure;
use crate::kernel::{AttachError, Kernel, KernelError, Link, SiteProgram};

impl Attacher {
    /// Does what has to be done about a probe; false if that has been done before.
    ///
    /// # Errors
    /// The kernel refused: the probe stays as it is.
    pub fn limit(
        &mut self,
        kernel: &mut Kernel,
        probe: u32,
        measure: Measure,
        rate: f64,
    ) -> Result<bool, super::FileError> {
        let Some(slot) = usize::try_from(probe).ok().and_then(|index| self.slots.get_mut(index)) else {
            return Ok(false);
        };
        if slot.limited.0 >= measure {
            return Ok(false);
        }
        let slot = Arc::make_mut(slot);
        slot.program.flags |= flags::AGGREGATE;
        kernel.set_probe(probe, &slot.program)?;
        slot.limited = (measure, rate);
        if measure == Measure::Remove {
            let number = u16::try_from(probe).unwrap_or(u16::MAX);
            self.relink(kernel, true)?;
            // Until the former links are closed, which `sweep` sees.
            self.relinking = true;
            for (id, file) in &mut self.files {
                let (old, refused) = file.remove(kernel, number, rate);
                self.closing.close(*id, old);
                refused.map_or(Ok(()), Err)?;
            }
        }
        Ok(true)
    }

    /// Says of all probes that for a moment each hit may come twice.
    pub(super) fn relink(&self, kernel: &mut Kernel, yes: bool) -> Result<(), KernelError> {
        for (number, slot) in (0..).zip(&self.slots) {
            let mut program = slot.program;
            program.flags |= if yes { flags::RELINKING } else { 0 };
            kernel.set_probe(number, &program)?;
        }
        Ok(())
    }
}

impl TrackedFile {
    /// Takes the sites of one probe program away. The link of many sites is made anew without them before the old one goes:
    /// in between each is there twice, and no call is missed. Gives the links that are over, in the order to close them in,
    /// and the kernel's refusal, if there is one.
    fn remove(&mut self, kernel: &mut Kernel, slot: u16, rate: f64) -> (Vec<Link>, Option<AttachError>) {
        let mut found = false;
        for probe in self.probes.iter_mut().filter(|probe| probe.slot == slot && probe.sites.is_ok()) {
            probe.sites = Err(too_hot(rate));
            found = true;
        }
        if !found {
            return (Vec::new(), None);
        }
        let (mut sites, mut links, mut old, mut refused) = (Vec::new(), Vec::new(), Vec::new(), None);
        let mut before = std::mem::take(&mut self.links).into_iter();
        for (program, places) in std::mem::take(&mut self.sites) {
            let is_call = matches!(program, SiteProgram::Enter | SiteProgram::Leave | SiteProgram::Tally);
            let stays: Vec<bool> =
                places.iter().map(|(_, cookie)| !is_call || cookie.probe() != u32::from(slot)).collect();
            let mut left: Vec<_> =
                places.iter().zip(&stays).filter(|(_, stays)| **stays).map(|(place, _)| *place).collect();
            match before.next() {
                None => {}
                Some(link) if left.len() == places.len() => links.push(link),
                Some(Link::Perf(mut probes)) => {
                    probes.keep(&stays);
                    links.push(Link::Perf(probes));
                }
                Some(link) if left.is_empty() => old.push(link),
                Some(link) => match kernel.attach(&self.file, program, &left) {
                    Ok(new) => {
                        links.push(new);
                        old.push(link);
                    }
                    Err(error) => {
                        links.push(link);
                        left = places;
                        refused = Some(error);
                    }
                },
            }
            if !left.is_empty() {
                sites.push((program, left));
            }
        }
        (self.sites, self.links) = (sites, links);
        // Entries first, so that what has been entered is seen to leave.
        old.reverse();
        (old, refused)
    }
}
