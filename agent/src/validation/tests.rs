//! Which exports are compared with which, and what comes of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::catalog::{Derived, Label, Probe};
use crate::clock;
use crate::inputs::Start;
use crate::samples;

/// A judge with a folder of its own.
struct Court {
    validation: Validation,
    folder: tempfile::TempDir,
}

impl Court {
    fn new(most_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = ValidationConfig { most_bytes, state: folder.path().join("state") };
        Self { validation: Validation::start(&config, Store::open(&config.state), false).unwrap(), folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// What a worker was started with, now.
    fn start(&self, arguments: &[&str]) -> Arc<Start> {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let files = arguments.iter().enumerate().skip(1);
        let files =
            files.filter_map(|(index, name)| Some((index, File::open(self.path(name)).ok()?))).collect();
        // Longer than the tolerance for the times of files.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let executed_ns = clock::now_ns();
        std::thread::sleep(std::time::Duration::from_millis(50));
        Arc::new(Start { arguments, files, folder: self.folder.path().to_owned(), executed_ns })
    }

    fn open(path: &Path, start: Option<&Arc<Start>>) -> Touched {
        let file = File::open(path).unwrap();
        let open = Arc::new(AtomicUsize::new(0));
        Touched::Open(Arc::new(OpenFile::new(file, None, path.to_owned(), start.cloned(), &open).unwrap()))
    }

    fn load(&mut self, pid: u32, path: Option<&Path>) {
        let probe = Probe { group: Some("load".to_owned()), ..samples::probe("load", "") };
        let mut operation = operation(probe, pid);
        operation.file = path.map(|path| Self::open(path, None));
        self.validation.see(&operation, |_| {});
    }

    fn export(
        &mut self,
        pid: u32,
        path: &Path,
        start: Option<&Arc<Start>>,
    ) -> Vec<Result<bool, &'static str>> {
        let operation = exported(pid, path, start);
        self.see(&operation)
    }

    /// The verdict, however it comes.
    fn see(&mut self, operation: &Operation) -> Vec<Result<bool, &'static str>> {
        let mut verdicts = Vec::new();
        self.validation.see(operation, |verdict| verdicts.push(verdict));
        if verdicts.is_empty() && operation.outcome == Outcome::Ok {
            let limit = std::time::Duration::from_secs(20);
            verdicts.extend(self.validation.verdicts.recv_timeout(limit).ok());
        }
        let plain = verdicts.into_iter().map(|verdict| match verdict {
            Verdict::Compared { format, same, .. } => {
                assert_eq!(format, "STEP");
                Ok(same)
            }
            Verdict::Not(reason) => Err(reason),
        });
        plain.collect()
    }
}

fn operation(probe: Probe, pid: u32) -> Operation {
    let worker = samples::worker(pid, "freecadcmd");
    let mut operation = samples::operation(&Arc::new(probe), &worker, 0.0, 0.0);
    operation.end_ns = clock::now_ns();
    operation
}

fn exported(pid: u32, path: &Path, start: Option<&Arc<Start>>) -> Operation {
    let probe = Probe {
        group: Some("export".to_owned()),
        labels: BTreeMap::from([("format".to_owned(), Label::Constant("STEP".to_owned()))]),
        derived: BTreeMap::from([("bytes".into(), Derived::FileBytes("path".to_owned()))]),
        ..samples::probe("export", "")
    };
    let mut operation = operation(probe, pid);
    operation.values.extend([samples::text("path", path.to_str().unwrap())]);
    operation.file = Some(Court::open(path, start));
    operation
}

fn step(time: &str, x: u32) -> String {
    format!("ISO-10303-21;HEADER;FILE_NAME('a','{time}');ENDSEC;DATA;#1=CARTESIAN_POINT('',({x}.));ENDSEC;")
}

fn compared(same: bool) -> Vec<Result<bool, &'static str>> {
    vec![Ok(same)]
}

fn not(reason: &'static str) -> Vec<Result<bool, &'static str>> {
    vec![Err(reason)]
}

#[test]
fn the_same_geometry_passes_at_another_time_and_another_fails_whatever_the_folder() {
    let mut court = Court::new(1 << 20);
    court.write("job.py", "make()");
    for (pid, folder, text, wanted) in [
        (1, "a", step("10:00", 1), not("first")),
        (2, "b", step("11:00", 1), compared(true)),
        (3, "c", step("12:00", 2), compared(false)),
        (4, "c", step("13:00", 2), compared(true)),
    ] {
        let start = court.start(&["freecadcmd", "job.py", &format!("{folder}/part.step")]);
        let path = court.write(&format!("{folder}/part.step"), &text);
        assert_eq!(court.export(pid, &path, Some(&start)), wanted, "{folder}");
    }
}

#[test]
fn other_inputs_are_no_failure() {
    let mut court = Court::new(1 << 20);
    court.write("job.py", "make()");
    let (one, two) = (court.write("in/a.brep", "1"), court.write("in/b.brep", "2"));
    let mut pid = 0;
    let mut run = |court: &mut Court, arguments: &[&str], loads: &[&Path], x: u32| {
        pid += 1;
        let start = court.start(arguments);
        for load in loads {
            court.load(pid, Some(load));
        }
        let path = court.write("part.step", &step("10:00", x));
        court.export(pid, &path, Some(&start))
    };
    let job = ["freecadcmd", "job.py"];
    assert_eq!(run(&mut court, &job, &[], 1), not("first"));
    assert_eq!(run(&mut court, &["freecadcmd", "job.py", "20"], &[], 2), not("first"));
    assert_eq!(run(&mut court, &job, &[&one], 3), not("first"));
    assert_eq!(run(&mut court, &job, &[&two], 4), not("first"));
    assert_eq!(run(&mut court, &job, &[&one, &two], 5), not("first"));
    assert_eq!(run(&mut court, &job, &[&one, &two], 6), compared(false));
    assert_eq!(run(&mut court, &job, &[], 1), compared(true));
    court.write("job.py", "make(other)");
    assert_eq!(run(&mut court, &job, &[], 7), not("first"));
}

#[test]
fn the_second_export_of_a_name_is_compared_with_the_second() {
    let mut court = Court::new(1 << 20);
    court.write("job.py", "make()");
    for (pid, wanted) in [(1, [not("first"), not("first")]), (2, [compared(true), compared(true)])] {
        let start = court.start(&["freecadcmd", "job.py"]);
        for (x, wanted) in (0..).zip(wanted) {
            let path = court.write("part.step", &step("10:00", x));
            assert_eq!(court.export(pid, &path, Some(&start)), wanted);
        }
        court.validation.end(samples::worker(pid, "").process, |_| {});
    }
}

#[test]
fn what_is_not_known_is_not_judged() {
    let mut court = Court::new(1000);
    let script = court.write("job.py", "make()");
    let start = court.start(&["freecadcmd", "job.py"]);
    let path = court.write("part.step", &step("10:00", 1));
    // Its start was not seen, or it forked; it was told to do something, but by no file.
    assert_eq!(court.export(1, &path, None), not("inputs_unknown"));
    let bare = court.start(&["python", "-m", "worker"]);
    assert_eq!(court.export(2, &path, Some(&bare)), not("inputs_unknown"));
    // Not on the first thread: a server's.
    let other_thread = Operation { tid: 99, ..exported(3, &path, Some(&start)) };
    assert_eq!(court.see(&other_thread), not("inputs_unknown"));
    // Something was loaded that could not be read.
    court.load(4, None);
    assert_eq!(court.export(4, &path, Some(&start)), not("inputs_unknown"));
    // The file is gone, was written to after, or is too large; a failed export is none.
    let gone = Operation { file: Some(Touched::Missed("file_gone")), ..exported(5, &path, Some(&start)) };
    assert_eq!(court.see(&gone), not("file_gone"));
    let early = Operation { end_ns: start.executed_ns - 1_000_000_000, ..exported(6, &path, Some(&start)) };
    assert_eq!(court.see(&early), not("file_changed"));
    let failed = Operation { outcome: Outcome::Error, ..exported(7, &path, Some(&start)) };
    assert_eq!(court.see(&failed), []);
    let large = court.write("large.step", &step(&"1".repeat(1000), 1));
    assert_eq!(court.export(8, &large, Some(&start)), not("file_too_large"));
    // The script is another one now.
    fs::write(script, "other()").unwrap();
    assert_eq!(court.export(9, &path, Some(&start)), not("inputs_changed"));
}

#[test]
fn an_argument_that_the_worker_writes_to_counts_by_its_name() {
    let mut court = Court::new(1 << 20);
    court.write("job.py", "make()");
    court.write("b.step", "of an earlier run");
    for (pid, wanted) in [(1, not("first")), (2, compared(true))] {
        let start = court.start(&["freecadcmd", "job.py", "a.step", "b.step"]);
        court.write("b.step", &format!("of run {pid}"));
        let path = court.write("a.step", &step("10:00", 1));
        assert_eq!(court.export(pid, &path, Some(&start)), wanted);
    }
}

#[test]
fn a_process_of_which_something_was_dropped_has_unknown_inputs_and_a_new_one_has_not() {
    let mut court = Court::new(1 << 20);
    court.write("job.py", "make()");
    let start = court.start(&["freecadcmd", "job.py"]);
    let path = court.write("part.step", &step("10:00", 1));
    let load = court.write("a.brep", "1");
    court.load(1, Some(&load));
    // As if the channel had been full.
    court.validation.epoch += 1;
    assert_eq!(court.export(1, &path, Some(&start)), not("busy"));
    assert_eq!(court.export(2, &path, Some(&start)), not("first"));
}

#[test]
fn an_export_behind_calls_that_were_only_counted_is_not_judged() {
    let mut court = Court::new(1 << 20);
    court.write("job.py", "make()");
    let start = court.start(&["freecadcmd", "job.py"]);
    let path = court.write("part.step", &step("10:00", 1));
    let process = |pid| samples::worker(pid, "").process;
    let of = |group: &str| Probe { group: Some(group.to_owned()), ..samples::probe(group, "") };
    assert_eq!(court.export(1, &path, Some(&start)), not("first"));
    court.validation.limit(&of("feature"), Measure::Count);
    assert_eq!(court.export(2, &path, Some(&start)), compared(true), "such calls are no inputs");
    court.validation.limit(&of("load"), Measure::Count);
    let verdicts = |court: &mut Court| {
        let mut verdicts = Vec::new();
        court.validation.settle(None, |verdict| verdicts.push(verdict));
        verdicts
    };
    for (pid, counted) in [(3, "load"), (4, "export")] {
        court.validation.see(&exported(pid, &path, Some(&start)), |verdict| panic!("{verdict:?}"));
        assert!(court.validation.waits(), "what was counted before it is not known yet");
        court.validation.doubt(&of(counted), process(pid));
        assert_eq!(verdicts(&mut court), [Verdict::Not("inputs_unknown")]);
    }
    // Nothing was counted of this process; that another one ended says nothing of it.
    court.validation.see(&exported(5, &path, Some(&start)), |verdict| panic!("{verdict:?}"));
    court.validation.doubt(&of("feature"), process(5));
    court.validation.end(process(4), |verdict| panic!("{verdict:?}"));
    assert!(court.validation.waits());
    court.validation.end(process(5), |verdict| panic!("{verdict:?}"));
    let verdict = court.validation.verdicts.recv_timeout(std::time::Duration::from_secs(20));
    assert!(matches!(verdict, Ok(Verdict::Compared { same: true, .. })), "{verdict:?}");
    // Calls that are not even counted can be of any process.
    court.validation.limit(&of("load"), Measure::Remove);
    assert_eq!(court.export(6, &path, Some(&start)), not("inputs_unknown"));
}

#[test]
fn a_thread_that_hangs_costs_verdicts_and_no_memory() {
    let (to_thread, held) = sync_channel(WAITING);
    let (_, verdicts) = channel();
    let mut validation = Validation::new(to_thread, verdicts);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.step");
    fs::write(&path, "x").unwrap();
    let operation = exported(1, &path, None);
    let mut refused = 0;
    for _ in 0..WAITING + 5 {
        validation.see(&operation, |verdict| refused += u32::from(verdict == Verdict::Not("busy")));
    }
    assert_eq!((refused, held.try_iter().count()), (5, WAITING));
    for pid in 0..2 * u32::try_from(MAX_PROCESSES).unwrap() {
        validation.see(&exported(pid, &path, None), |_| {});
        let _ = held.try_recv();
    }
    assert!(validation.is_blind && validation.processes.is_empty());
}
