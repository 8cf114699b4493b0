//! Turns what is seen of processes into workers that begin, are renewed and end.

use std::sync::Arc;
use std::time::Duration;

use cadscope_common::record::{Life, ProcessKey};

use crate::clock::now_ns;
use crate::discover;
use crate::ending::{End, How};
use crate::flow_type;
use crate::job::Job;
use crate::operation::Worker;
use crate::plan::Versions;
use crate::workers::Live;

use super::{Observation, Observer};

impl Observer {
    /// Makes a process a worker, with everything it maps already; also one that is gone by now.
    pub(super) fn enlist(&mut self, pid: u32, say: &mut dyn FnMut(Observation)) {
        let now = now_ns();
        let executed = self.kernel.executed_ns(pid);
        let key = discover::key_of(&self.proc, pid);
        // First added, then asked for its end: one of the two sees it.
        let process = key.unwrap_or(ProcessKey { pid, padding: 0, start_boottime_ns: 0 });
        // A refusal shows when the process ends without notice: the review finds it.
        let _ = self.kernel.add_worker(process);
        let gone = self.kernel.ended(pid).filter(|life| is_end_of(life, key, executed));
        if let Some(life) = &gone {
            self.kernel.remove_worker(pid);
            if self.workers.has_ended(pid, life.at_ns) {
                for mapping in self.workers.runtimes_of(pid) {
                    self.hold(&mapping, say);
                }
                self.attacher.release(pid, now);
                self.written.release(pid);
                return;
            }
        }
        let program = self.workers.program_of(pid);
        // Asked first: what it works on is there with its command. The program that was executed before, by a process which
        // had its id perhaps, is none of its own then.
        let begins = gone.is_none() && discover::has_no_command_yet(&self.proc, pid);
        let executed = executed.filter(|_| !begins);
        if let (Some(executed), None) = (executed, &gone) {
            say(Observation::Ready(Duration::from_nanos(now.saturating_sub(executed))));
        }
        let worker = self.worker(process, program, self.attacher.versions_of(pid), executed);
        let live = self.workers.enter(worker, executed.unwrap_or(now));
        if begins {
            // It is told when its exec is over.
            live.announced = false;
        } else {
            say(Observation::Started(Arc::clone(&live.worker)));
        }
        self.written.hold(pid, executed);
        for mapping in self.workers.runtimes_of(pid) {
            self.hold(&mapping, say);
        }
        for mapping in discover::mappings_of(&self.proc, pid) {
            self.see(&mapping, say);
        }
        self.late.extend(gone);
    }

    /// What is known of a process that is a worker.
    pub(super) fn worker(
        &mut self,
        process: ProcessKey,
        program: Option<String>,
        versions: Versions,
        executed_ns: Option<u64>,
    ) -> Worker {
        let (proc, pid) = (&self.proc, process.pid);
        let job = discover::with_environ(proc, pid, |environ| Job::from_environ(environ, &self.variables));
        let job = Arc::new(job);
        let command = discover::command_of(proc, pid);
        Worker {
            process,
            program: program.unwrap_or_else(|| discover::program_of(proc, pid)),
            freecad_version: versions.freecad,
            occt_version: versions.occt,
            executed_ns,
            flow_type: flow_type::flow_type(&job.flow_type, &command, &self.flow_rules),
            container: self.containers.of(proc, pid),
            job,
        }
    }

    /// Takes over what a newly mapped file says of a worker's versions.
    pub(super) fn refresh(&mut self, pid: u32, say: &mut dyn FnMut(Observation)) {
        let Some(live) = self.workers.get_mut(pid) else { return };
        renew(live, &self.attacher.versions_of(pid), say);
    }

    /// Ends a worker that executed another program. An exec maps its program before it is over: a worker that was
    /// recognised by that is the new one.
    pub(super) fn executed(&mut self, process: ProcessKey, at_ns: u64, say: &mut dyn FnMut(Observation)) {
        // Its beginning is told there, and before its end.
        self.follow_mappings(say);
        match self.workers.get_mut(process.pid) {
            Some(live) if live.execs == 0 => {
                live.executed(at_ns);
                let begun = (!live.announced).then(|| Arc::clone(&live.worker));
                // The kernel side has taken it for the old one.
                let _ = self.kernel.add_worker(process);
                if let Some(life) =
                    self.kernel.ended(process.pid).filter(|life| is_end_of(life, Some(process), Some(at_ns)))
                {
                    self.kernel.remove_worker(process.pid);
                    self.late.push(life);
                }
                if let Some(begun) = begun {
                    self.begun(&begun, at_ns, say);
                }
                return;
            }
            Some(live) if !live.announced => {
                self.attacher.release(process.pid, at_ns);
                self.written.release(process.pid);
                self.workers.end(process.pid, at_ns);
            }
            _ => self.end(process.pid, at_ns, None, |_| End::without_exit(How::Replaced), say),
        }
        // Mappings of its new program can have been reported before.
        self.scan(Some(&[process.pid]), say);
    }

    /// Tells of a worker that was recognised before its exec was over.
    pub(super) fn begun(&mut self, known: &Worker, at_ns: u64, say: &mut dyn FnMut(Observation)) {
        let versions = Versions { freecad: known.freecad_version.clone(), occt: known.occt_version.clone() };
        let worker = self.worker(known.process, Some(known.program.clone()), versions, Some(at_ns));
        if let Some(live) = self.workers.get_mut(known.process.pid) {
            live.worker = Arc::new(worker);
            announce(live, say);
        }
    }

    /// The worker that did an operation; one that was not recognised in time is made from what is known.
    pub(super) fn worker_of(
        &mut self,
        process: ProcessKey,
        of_file: &Versions,
        say: &mut dyn FnMut(Observation),
    ) -> Arc<Worker> {
        if !self.workers.contains(process.pid) {
            let executed = self.kernel.executed_ns(process.pid);
            let program = self.workers.program_of(process.pid);
            let worker = self.worker(process, program, of_file.clone(), executed);
            let gone = self.kernel.ended(process.pid).filter(|life| is_end_of(life, Some(process), executed));
            if gone.is_some_and(|life| self.workers.has_ended(process.pid, life.at_ns)) {
                return Arc::new(worker);
            }
            let live = self.workers.enter(worker, executed.unwrap_or_else(now_ns));
            live.settled = true;
            say(Observation::Started(Arc::clone(&live.worker)));
            self.written.hold(process.pid, executed);
            // The kernel side tells of its end: it has made a call.
            self.late.extend(gone);
            for mapping in self.workers.runtimes_of(process.pid) {
                self.hold(&mapping, say);
            }
        }
        let Some(live) = self.workers.get_mut(process.pid) else { return Arc::default() };
        announce(live, say);
        if !live.settled {
            live.settled = true;
            if let Some((file, mut versions)) = self.attacher.read_freecad(&self.proc, process.pid) {
                self.attacher.learn_freecad(file, &versions.freecad);
                // FreeCAD says which OCCT it was compiled with; the files say which it runs with, if less exactly.
                let files = self.attacher.versions_of(process.pid);
                if !versions.occt.starts_with(&files.occt) {
                    versions.occt = files.occt;
                }
                renew(live, &versions, say);
            }
        }
        Arc::clone(&live.worker)
    }

    pub(super) fn exited(&mut self, life: &Life, say: &mut dyn FnMut(Observation)) {
        // One whose calls were only counted, and whose beginning was not seen: they are a worker's, as records would be.
        let pid = life.process.pid;
        if !self.workers.contains(pid) {
            let counts = self.kernel.aggregates(|of| of == pid);
            if let Some(slot) = counts.iter().find_map(|(key, _)| self.attacher.slot(key.probe)).cloned() {
                self.worker_of(life.process, &slot.versions, say);
            }
        }
        let end = |live: &mut Live| End {
            cpu_ns: Some(life.cpu_ns),
            peak_bytes: Some(life.peak_pages.saturating_mul(procfs::page_size())),
            ..End::of_exit(life.status, &life.fate, live.script_failed, live.take_oom())
        };
        // A program begun since, without news of it from the kernel side, is that of another process with its id, whose
        // mappings were taken for its own.
        let another = self.workers.get(pid).is_some_and(|live| live.execs > 0);
        self.end(pid, life.at_ns, Some(life.status), end, say);
        if another {
            self.scan(Some(&[pid]), say);
        }
    }

    pub(super) fn end(
        &mut self,
        pid: u32,
        ended_ns: u64,
        status: Option<u32>,
        end: impl FnOnce(&mut Live) -> End,
        say: &mut dyn FnMut(Observation),
    ) {
        self.take_counts(Some(pid), say);
        self.attacher.release(pid, ended_ns);
        self.sources.end(pid);
        self.written.release(pid);
        if let Some(mut live) = self.workers.end(pid, ended_ns) {
            announce(&mut live, say);
            let end = Box::new(end(&mut live));
            let Live { worker, started_ns, .. } = live;
            say(Observation::Ended { worker, started_ns, ended_ns, status, end });
        }
    }
}

/// Tells of a fork that is a worker after all.
pub(super) fn announce(live: &mut Live, say: &mut dyn FnMut(Observation)) {
    if !live.announced {
        live.announced = true;
        say(Observation::Started(Arc::clone(&live.worker)));
    }
}

/// Whether an end that was seen is that of the process which bears the pid now, or bore it last.
fn is_end_of(life: &Life, key: Option<ProcessKey>, executed_ns: Option<u64>) -> bool {
    // procfs counts in steps of 10 ms.
    const STEP_NS: u64 = 10_000_000;
    let started = |key: ProcessKey| key.start_boottime_ns / STEP_NS;
    key.is_none_or(|key| started(key) == started(life.process))
        && executed_ns.is_none_or(|at| at <= life.at_ns)
}

fn renew(live: &mut Live, versions: &Versions, say: &mut dyn FnMut(Observation)) {
    if live.renew(versions) {
        say(Observation::Renewed(Arc::clone(&live.worker)));
    }
}
