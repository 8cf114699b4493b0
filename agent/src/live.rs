//! Turns observations into what a node does now: workers, operations in flight, rates, what was slow, who ended.
//!
//! [`Recent`] remembers a bounded past and costs an operation one look into a table; a [`Snapshot`] is made only when
//! somebody looks. The live page and `cadscope top` show the same snapshot, which travels as JSON.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use crate::attach::TrackedFile;
use crate::clock::now_ns;
use crate::discover;
use crate::ending::{End, signal_name};
use crate::observe::{Observation, Observer};
use crate::operation::{Operation, Outcome, Worker};
use crate::python::Source;

use self::kinds::Kinds;
pub use self::snapshot::{
    Coverage, EndedWorker, FileCoverage, KindRow, OpenRow, Own, SlowRow, Snapshot, WorkerRow,
};

mod kinds;
mod slow;
mod snapshot;

/// Ends of workers that are remembered.
const MAX_ENDED: usize = 50;
/// Looks at a worker's memory that are remembered.
const MAX_MEMORY: usize = 60;
/// Rows of each list of a snapshot.
const MAX_ROWS: usize = 1000;
/// Files of a snapshot.
const MAX_FILES: usize = 200;
/// Names and lines are cut at this many characters.
const MAX_TEXT: usize = 200;

/// What is remembered of the node.
#[derive(Debug)]
pub struct Recent {
    kinds: Kinds,
    slow: slow::Slow,
    ended: VecDeque<(u64, EndedWorker)>,
    workers: HashMap<u32, Track>,
    began_ns: u64,
    own: Option<(u64, Own)>,
}

/// What is remembered of a live worker.
#[derive(Debug, Default)]
struct Track {
    operations: u64,
    failed: u64,
    /// KiB, as often as it was looked at.
    memory: VecDeque<u64>,
    /// When it was looked at last, and its CPU time then.
    cpu: Option<(u64, u64)>,
    cpu_share: Option<f64>,
}

impl Recent {
    /// Remembers nothing; operations of at least `slow` are slow.
    #[must_use]
    pub fn new(slow: Duration) -> Self {
        Self {
            kinds: Kinds::default(),
            slow: slow::Slow::new(slow),
            ended: VecDeque::new(),
            workers: HashMap::new(),
            began_ns: now_ns(),
            own: None,
        }
    }

    /// Takes what happened.
    pub fn see(&mut self, observation: &Observation) {
        match observation {
            Observation::Operation(operation) => self.did(operation),
            Observation::Repeated { operation, count, .. } => {
                self.kinds.repeat(operation, *count, now_ns());
                if let Some(track) = self.workers.get_mut(&operation.worker.process.pid) {
                    track.operations += count;
                }
            }
            Observation::Started(worker) => {
                self.workers.insert(worker.process.pid, Track::default());
            }
            Observation::Ended { worker, started_ns, ended_ns, end, .. } => {
                let track = self.workers.remove(&worker.process.pid).unwrap_or_default();
                if self.ended.len() >= MAX_ENDED {
                    self.ended.pop_front();
                }
                let lived_ns = ended_ns.saturating_sub(*started_ns);
                self.ended.push_back((*ended_ns, ended(worker, end, &track, lived_ns)));
            }
            _ => {}
        }
    }

    fn did(&mut self, operation: &Operation) {
        let failed = operation.outcome != Outcome::Ok;
        self.kinds.see(operation);
        self.slow.see(operation);
        // What is learnt late of a worker that has ended does not revive it.
        if let Some(track) = self.workers.get_mut(&operation.worker.process.pid) {
            track.operations += 1;
            track.failed += u64::from(failed);
        }
    }

    /// Takes what a worker uses; to be called at even times.
    pub fn usage(&mut self, pid: u32, usage: discover::Usage, now_ns: u64) {
        let Some(track) = self.workers.get_mut(&pid) else { return };
        if track.memory.len() >= MAX_MEMORY {
            track.memory.pop_front();
        }
        track.memory.push_back(usage.resident_bytes >> 10);
        if let Some((at_ns, cpu_ns)) = track.cpu.replace((now_ns, usage.cpu_ns)) {
            let passed = now_ns.saturating_sub(at_ns).max(1);
            track.cpu_share = Some(usage.cpu_ns.saturating_sub(cpu_ns) as f64 / passed as f64);
        }
    }

    /// What the node does now.
    pub fn snapshot(&mut self, observer: &Observer) -> Snapshot {
        let (now, at_ms) = (now_ns(), wall_ms());
        let open: Vec<OpenRow> =
            observer.open_operations().iter().take(MAX_ROWS).map(|open| open_row(open, now)).collect();
        let mut workers: Vec<WorkerRow> = observer
            .workers()
            .filter(|live| live.announced)
            .map(|live| {
                let resident = discover::resident_bytes(observer.proc(), live.worker.process.pid);
                self.worker_row(&live.worker, now.saturating_sub(live.started_ns), resident)
            })
            .collect();
        workers.sort_by_key(|worker| worker.pid);
        for row in &mut workers {
            row.open = open.iter().filter(|open| open.pid == row.pid).count();
        }
        let worker_count = workers.len();
        workers.truncate(MAX_ROWS);
        let ago = |then_ns: u64| at_ms.saturating_sub(now.saturating_sub(then_ns) / 1_000_000);
        let kinds = self.kinds.rows(now, &open);
        Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: host(),
            at_ms,
            up_seconds: now.saturating_sub(self.began_ns) / 1_000_000_000,
            own: self.own(now),
            worker_count,
            workers,
            open,
            kinds,
            slow: self.slow.rows(ago),
            ended: self
                .ended
                .iter()
                .rev()
                .map(|(at, row)| EndedWorker { at_ms: ago(*at), ..row.clone() })
                .collect(),
            coverage: coverage(observer),
            losses: observer.losses().into_iter().filter(|(_, count)| *count > 0).collect(),
        }
    }

    fn worker_row(&self, worker: &Worker, age_ns: u64, resident: Option<u64>) -> WorkerRow {
        let none = Track::default();
        let track = self.workers.get(&worker.process.pid).unwrap_or(&none);
        let mut memory: Vec<u64> = track.memory.iter().copied().collect();
        memory.extend(resident.map(|bytes| bytes >> 10));
        WorkerRow {
            pid: worker.process.pid,
            program: cut(&worker.program),
            freecad_version: worker.freecad_version.clone(),
            occt_version: worker.occt_version.clone(),
            flow_type: cut(&worker.flow_type),
            job: cut(&worker.job.id),
            namespace: worker.container.namespace.clone(),
            pod: worker.container.pod.clone(),
            container: worker.container.name.clone(),
            age_ns,
            operations: track.operations,
            failed: track.failed,
            open: 0,
            cpu_share: track.cpu_share,
            resident_bytes: resident.unwrap_or(0),
            memory_kib: memory,
        }
    }

    /// The agent itself; its share of a CPU since the snapshot before, or since its start.
    fn own(&mut self, now: u64) -> Own {
        let usage = discover::usage_of(std::path::Path::new("/proc"), std::process::id());
        let Some(usage) = usage else { return Own::default() };
        let (then, before) = self.own.as_ref().map_or((self.began_ns, 0), |(then, own)| (*then, own.cpu_ns));
        let passed = now.saturating_sub(then).max(1);
        let own = Own {
            cpu_ns: usage.cpu_ns,
            cpu_share: usage.cpu_ns.saturating_sub(before) as f64 / passed as f64,
            resident_bytes: usage.resident_bytes,
        };
        // Ticks of 10 ms are too coarse for less than a few seconds.
        if passed >= 5_000_000_000 || self.own.is_none() {
            self.own = Some((now, own.clone()));
        }
        own
    }
}

fn open_row(open: &crate::in_flight::OpenOperation, now_ns: u64) -> OpenRow {
    OpenRow {
        pid: open.worker.process.pid,
        tid: open.tid,
        depth: open.depth,
        age_ns: now_ns.saturating_sub(open.start_ns).max(1),
        title: cut(&open.title),
        kind: cut(&open.kind),
        line: open.source.as_deref().map(line).unwrap_or_default(),
    }
}

fn ended(worker: &Worker, end: &End, track: &Track, lived_ns: u64) -> EndedWorker {
    EndedWorker {
        at_ms: 0,
        pid: worker.process.pid,
        program: cut(&worker.program),
        flow_type: cut(&worker.flow_type),
        job: cut(&worker.job.id),
        how: end.how.status().unwrap_or("unseen").to_owned(),
        code: end.code,
        signal: signal_name(end.signal),
        operation: end.oom.as_ref().map(|oom| cut(&oom.operation)).unwrap_or_default(),
        lived_ns,
        operations: track.operations,
        failed: track.failed,
    }
}

fn coverage(observer: &Observer) -> Coverage {
    let mut coverage = Coverage::default();
    for file in observer.attacher().files().values() {
        let row = file_coverage(file, &mut coverage.reasons);
        coverage.attached += row.attached;
        coverage.skipped += row.skipped;
        if coverage.files.len() < MAX_FILES && row.attached + row.skipped > 0 {
            coverage.files.push(row);
        }
    }
    coverage.files.sort_by(|a, b| a.path.cmp(&b.path));
    coverage
}

fn file_coverage(file: &TrackedFile, reasons: &mut BTreeMap<String, usize>) -> FileCoverage {
    let mut row =
        FileCoverage { path: cut(&file.path), workers: file.workers.len(), ..FileCoverage::default() };
    for probe in &file.probes {
        match &probe.sites {
            Ok(_) if file.is_attached() => row.attached += 1,
            Ok(_) => {}
            Err(reason) => {
                row.skipped += 1;
                *reasons.entry(cut(reason)).or_default() += 1;
            }
        }
    }
    row
}

/// `plate.py:14 in build`.
fn line(source: &Source) -> String {
    let name = source.at.file.rsplit('/').next().unwrap_or_default();
    cut(&format!("{name}:{} in {}", source.at.line, source.at.function))
}

/// A worker's text, not too long.
fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn wall_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ending::How;
    use crate::samples;

    #[test]
    fn a_worker_that_ended_is_told_with_what_it_did() {
        let (worker, probe) = (samples::worker(7, "freecadcmd"), Arc::new(samples::probe("a.b", "work")));
        let mut recent = Recent::new(Duration::from_millis(250));
        recent.see(&Observation::Started(Arc::clone(&worker)));
        for outcome in [Outcome::Ok, Outcome::Exception] {
            let operation = Operation { outcome, ..samples::operation(&probe, &worker, 1.0, 2.0) };
            recent.see(&Observation::Operation(operation));
        }
        assert_eq!((recent.workers[&7].operations, recent.workers[&7].failed), (2, 1));
        let end = Box::new(End { code: Some(3), ..End::without_exit(How::Failure) });
        let ended = Observation::Ended { worker, started_ns: 1, ended_ns: 11, status: Some(3 << 8), end };
        for _ in 0..2 * MAX_ENDED {
            recent.see(&ended);
        }
        let first = &recent.ended[0].1;
        assert_eq!((first.how.as_str(), first.code, first.lived_ns), ("failure", Some(3), 10));
        assert_eq!((recent.ended.len(), recent.workers.len()), (MAX_ENDED, 0));
    }

    #[test]
    fn memory_and_cpu_are_remembered_for_a_while() {
        let worker = samples::worker(7, "freecadcmd");
        let mut recent = Recent::new(Duration::ZERO);
        recent.see(&Observation::Started(Arc::clone(&worker)));
        for step in 0..100_u64 {
            let usage = discover::Usage {
                cpu_ns: step * 500_000_000,
                resident_bytes: (step + 1) << 20,
                peak_bytes: 0,
            };
            recent.usage(7, usage, step * 1_000_000_000);
        }
        let row = recent.worker_row(&worker, 1, Some(5 << 20));
        assert_eq!((row.memory_kib.len(), row.memory_kib.last()), (MAX_MEMORY + 1, Some(&(5 << 10))));
        assert!(row.cpu_share.is_some_and(|share| (share - 0.5).abs() < 1e-9));
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"é".repeat(5000)).chars().count(), MAX_TEXT + 1);
    }
}
