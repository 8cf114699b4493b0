//! What the other tests rest on, tested without cadscope: the worker's record is whole, a true account is accepted and
//! a false one is not, a probe in a process is seen, a copy of FreeCAD runs from the copy.

use std::collections::{BTreeMap, HashMap};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::compare::{Rules, compare};
use cadscope_tests::freecad::{Job, copy};
use cadscope_tests::independent::Count;
use cadscope_tests::record::Call;
use cadscope_tests::residue::{altered_text, bpf_ids, text_mappings};
use cadscope_tests::run::{self, Running};
use cadscope_tests::trace::{Operation, Trace};
use cadscope_tests::{node, worker};

const RULES: Rules<'static> = Rules { skippable: &["torture.tail_table"], max_depth: 64, losses: &[] };

/// The trace that a perfect observer would write.
fn perfect(calls: &[Call]) -> Trace {
    // Calls that were never timed (their process died) began in order: one nanosecond apart will do.
    let starts: HashMap<(i32, i64), i64> =
        calls.iter().map(|c| ((c.pid, c.seq), c.clock_ns.map_or(c.before_ns, |t| t.0))).collect();
    let operation = |call: &Call| {
        let start_ns = starts.get(&(call.pid, call.seq)).copied().unwrap_or(0);
        Operation {
            pid: call.pid,
            tid: call.tid,
            start_ns,
            end_ns: call.clock_ns.map_or(start_ns + 1, |t| t.1),
            parent_start_ns: call.parent.and_then(|p| starts.get(&(call.pid, p)).copied()),
            depth: call.depth,
            probe: call.id.clone(),
            name: call.id.clone(),
            outcome: call.outcome().to_owned(),
            ended_by: call.how.clone(),
            exception: call.exception.clone(),
            signal: call.signal,
            memory: None,
            source: None,
            values: [("n", call.n.or(Some(0))), ("result", call.result)]
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?.into())))
                .collect(),
        }
    };
    Trace {
        schema: 1,
        command: Vec::new(),
        workers: Vec::new(),
        operations: calls.iter().filter(|c| c.depth < RULES.max_depth).map(operation).collect(),
        late: Vec::new(),
        losses: BTreeMap::new(),
        skipped: Vec::new(),
    }
}

#[test]
fn every_variant_of_the_worker_says_the_same_and_keeps_a_whole_record() -> Result<()> {
    let mut first: BTreeMap<String, (i32, String, usize)> = BTreeMap::new();
    for (variant, _) in worker::VARIANTS {
        let worker = worker::build(variant)?;
        for scenario in &worker.scenarios {
            let (ended, calls) =
                worker.run(&[&scenario.name]).with_context(|| format!("{variant} {}", scenario.name))?;
            let this = (ended.code, ended.stdout, calls.len());
            let other = first.entry(scenario.name.clone()).or_insert_with(|| this.clone());
            ensure!(*other == this, "{variant} {}: {this:?}, in the first variant {other:?}", scenario.name);
            ensure!(
                !scenario.ends || calls.iter().any(|c| c.outcome() == "killed"),
                "{} kills nothing",
                scenario.name
            );
        }
    }
    ensure!(first.len() >= 45, "{} scenarios", first.len());
    Ok(())
}

#[test]
fn every_program_of_the_tests_compiles() -> Result<()> {
    for (variant, _) in worker::VARIANTS {
        worker::build(variant)?;
    }
    for source in worker::PROGRAMS {
        ensure!(worker::build_program(source)?.is_file());
    }
    Ok(())
}

#[test]
fn a_true_account_is_accepted() -> Result<()> {
    let worker = worker::build("o2")?;
    for scenario in &worker.scenarios {
        let (_, calls) = worker.run(&[&scenario.name])?;
        let comparison = compare(&calls, &perfect(&calls), RULES);
        ensure!(comparison.complaints.is_empty(), "{}: {}", scenario.name, comparison.complaints.join("\n"));
        let deep = calls.iter().filter(|c| c.depth >= 64).count();
        ensure!(comparison.too_deep == u64::try_from(deep)? && comparison.pairs.len() == calls.len() - deep);
    }
    Ok(())
}

#[test]
fn a_false_account_is_not_accepted() -> Result<()> {
    let worker = worker::build("o2")?;
    let (_, calls) = worker.run(&["throw_frames"])?;
    type Lie = fn(&mut Trace);
    let lies: [(&str, Lie); 9] = [
        ("missing", |t| drop(t.operations.remove(7))),
        ("twice", |t| {
            if let Some(operation) = t.operations.get(7).cloned() {
                t.operations.push(operation);
            }
        }),
        ("outcome", |t| t.operations.iter_mut().take(3).for_each(|o| o.outcome = "error".to_owned())),
        ("exception", |t| t.operations.iter_mut().for_each(|o| o.exception = None)),
        ("parent", |t| t.operations.iter_mut().for_each(|o| o.parent_start_ns = None)),
        ("late", |t| t.operations.iter_mut().for_each(|o| o.end_ns += 50_000_000)),
        ("early", |t| t.operations.iter_mut().for_each(|o| o.start_ns -= 50_000_000)),
        ("value", |t| {
            t.operations.iter_mut().flat_map(|o| o.values.values_mut()).for_each(|v| *v = 77.into());
        }),
        ("loss", |t| t.losses.extend([("lost_operation".to_owned(), 1)])),
    ];
    for (name, lie) in lies {
        let mut trace = perfect(&calls);
        lie(&mut trace);
        ensure!(!compare(&calls, &trace, RULES).complaints.is_empty(), "nobody noticed: {name}");
    }
    Ok(())
}

#[test]
fn a_probe_in_the_text_of_a_worker_is_seen_and_so_are_its_programs() -> Result<()> {
    let _node = node::require_root_only()?;
    let job = Job::new("endless.py")?;
    let mut child = Running(job.prepared().stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    std::thread::sleep(Duration::from_secs(1));
    let result = (|| {
        let clean = altered_text(child.pid())?;
        ensure!(clean.is_empty(), "someone else probes this worker: {clean:?}");
        let script = "uprobe:/usr/lib/x86_64-linux-gnu/libTKBO.so.7.6.3:\
                      _ZN28BRepAlgoAPI_BooleanOperation5BuildERK21Message_ProgressRange { @ = count(); }";
        let mut command = Command::new(node::tool("bpftrace", "bpftrace")?);
        command.args(["-e", script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut bpftrace = Running(command.spawn()?);
        let probed = run::until("its probe", Duration::from_secs(60), || {
            altered_text(child.pid()).ok().filter(|a| !a.is_empty())
        });
        bpf_ids("prog")?;
        bpftrace.interrupt()?;
        let probed = probed?;
        ensure!(probed.len() == 1 && probed.iter().all(|p| p.ends_with("0xcc")), "{probed:?}");
        let after = altered_text(child.pid())?;
        ensure!(after.is_empty(), "{after:?}");
        Ok(())
    })();
    job.stop()?;
    run::wait(&mut child.0, Duration::from_secs(30))?;
    result
}

#[test]
fn a_copy_of_freecad_runs_from_the_copy() -> Result<()> {
    let folder = node::scratch()?;
    let (program, libraries) = copy(folder.path())?;
    let job = Job::with_program("endless.py", &program)?
        .with("LD_LIBRARY_PATH", &libraries.display().to_string())
        .with("JOB_SECONDS", "20");
    let mut child = Running(job.prepared().stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    let mapped = run::until("libTKBO is mapped", Duration::from_secs(15), || {
        let files: Vec<_> = text_mappings(child.pid()).ok()?.into_iter().map(|m| m.3).collect();
        files.iter().any(|f| f.to_string_lossy().contains("libTKBO")).then_some(files)
    });
    job.stop()?;
    run::wait(&mut child.0, Duration::from_secs(30))?;
    let foreign: Vec<_> = mapped?
        .into_iter()
        .filter(|f| {
            let name = f.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let catalogued = name.starts_with("libTK") || name.starts_with("libFreeCAD") || name == "Part.so";
            catalogued && !f.starts_with(folder.path())
        })
        .collect();
    ensure!(foreign.is_empty(), "the copy runs with {foreign:?}");
    Ok(())
}

#[test]
fn the_independent_count_of_a_known_job_is_what_the_job_does() -> Result<()> {
    let _node = node::require_root_only()?;
    let count = Count::start()?;
    Job::new("operations.py")?.run(Duration::from_secs(60))?;
    let counts = count.end()?;
    let expected = [
        ("boolean common", 3.0),
        ("boolean cut", 5.0),
        ("boolean section", 2.0),
        ("boolean union", 6.0),
        ("chamfer", 3.0),
        ("created", 7.0),
        ("fillet", 6.0),
        ("object", 7.0),
        ("recompute", 3.0),
    ];
    let expected: BTreeMap<String, f64> = expected.into_iter().map(|(k, n)| (k.to_owned(), n)).collect();
    ensure!(counts == expected, "bpftrace counted {counts:?}, the job did {expected:?}");
    Ok(())
}
