//! Promise: workers are found by events: files never seen, short jobs, replaced libraries, and who was there before.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::freecad::{Job, copy};
use cadscope_tests::node::{require_root, scratch};
use cadscope_tests::residue;
use cadscope_tests::run::{self, Running};
use cadscope_tests::trace::trace;
use cadscope_tests::worker::{self, Worker};
use nix::sys::signal::Signal;

const BOOLEANS: &str = "occt_boolean_duration_seconds_count";

/// Scrapes until `expected` booleans are counted, and a little longer, so that one too many shows as well.
fn booleans(agent: &Agent, expected: f64) -> Result<f64> {
    agent.metrics_when(Duration::from_secs(10), |m| m.sum(BOOLEANS, &[]) >= expected)?;
    std::thread::sleep(Duration::from_millis(300));
    Ok(agent.metrics()?.sum(BOOLEANS, &[]))
}

fn short_job(program: &Path, libraries: &Path) -> Result<Job> {
    Ok(Job::with_program("short.py", program)?.with("LD_LIBRARY_PATH", libraries.to_str().context("path")?))
}

/// The job really runs from the copy.
fn check_copy(program: &Path, libraries: &Path) -> Result<()> {
    let path = libraries.to_str().context("path")?;
    let job =
        Job::with_program("endless.py", program)?.with("LD_LIBRARY_PATH", path).with("JOB_SECONDS", "20");
    let mut child = Running(job.prepared().stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    let mapped = run::until("libTKBO is mapped", Duration::from_secs(15), || {
        let mappings = residue::text_mappings(child.pid()).ok()?;
        mappings.into_iter().map(|m| m.3).find(|p| p.to_string_lossy().contains("libTKBO"))
    });
    job.stop()?;
    run::wait(&mut child.0, Duration::from_secs(60))?;
    let mapped = mapped?;
    ensure!(mapped.starts_with(libraries), "the copy of FreeCAD runs with {}", mapped.display());
    Ok(())
}

#[test]
fn a_worker_from_files_never_seen_is_observed_from_its_first_operation() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start::<&str>(&[])?;
    let mut seen = Vec::new();
    // A race against the job's first milliseconds, which a machine that is busy with something else can lose.
    for _ in 0..5 {
        let folder = scratch()?; // each time other inodes
        let (program, libraries) = copy(folder.path())?;
        let before = agent.metrics()?;
        short_job(&program, &libraries)?.run(Duration::from_secs(60))?;
        let start = before.sum(BOOLEANS, &[]);
        let counted = booleans(&agent, start + 3.0)? - start;
        let latency = "cadscope_attach_latency_seconds_count";
        let measured = agent.metrics()?.sum(latency, &[]) - before.sum(latency, &[]);
        seen.push((counted, measured));
        check_copy(&program, &libraries)?;
    }
    ensure!(
        seen.iter().filter(|s| s.0 == 3.0).count() >= 3,
        "3 booleans a job, (counted, latencies): {seen:?}; agent:\n{}",
        agent.log()
    );
    ensure!(seen.iter().all(|s| s.1 >= 1.0), "attach latency is not measured: {seen:?}");
    Ok(())
}

/// What is not seen of a job from new files is what it did before their probes were in place, and the trace says when that
/// was. The shell has the trace look at the job as an agent does, without a look at its files before it begins.
#[test]
fn of_files_never_seen_nothing_is_missed_once_their_probes_are_told_to_be_in_place() -> Result<()> {
    let _node = require_root()?;
    let _busy = [Running::busy()?, Running::busy()?];
    for round in 0..3 {
        let folder = scratch()?;
        let (program, libraries) = copy(folder.path())?;
        let job = Job::with_program("soon.py", &program)?;
        let job = job.with("LD_LIBRARY_PATH", libraries.to_str().context("path")?);
        let command = format!("{}; true", job.command().join(" "));
        let environment = job.environment();
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (ended, trace) = trace(None, &["sh", "-c", &command], &environment, Duration::from_secs(120))?;
        ensure!(ended.stdout.contains("job done"), "round {round}: {ended:?}");
        for late in &trace.late {
            let parts = late.notice_ns + late.analyse_ns + late.place_ns;
            ensure!(late.unseen_ns > 0 && late.unseen_ns == parts, "round {round}: {late:?}");
            ensure!(trace.workers.iter().any(|worker| worker.pid == late.pid), "round {round}: {late:?}");
        }
        let of = |name: &str| trace.late.iter().find(|late| late.file.contains(name));
        ensure!(of("/libFreeCADApp.so").is_some(), "round {round}: {:?}", trace.late);
        let algorithms = of("/libTKBO.so").with_context(|| format!("round {round}: {:?}", trace.late))?;
        let ready = algorithms.mapped_ns + algorithms.unseen_ns;
        let cuts: Vec<_> = job.record()?.into_iter().filter(|done| done.kind == "cut").collect();
        let seen = trace.of("bool.api_build");
        let missed = cuts.iter().filter(|cut| {
            !seen.iter().any(|operation| cut.start <= operation.start_ns && operation.end_ns <= cut.end)
        });
        let last_missed = missed.map(|cut| cut.start).max().unwrap_or(0);
        ensure!(last_missed < ready, "round {round}: {last_missed} is missed, ready at {ready}");
        ensure!(
            cuts.len() >= 60 && seen.len() <= cuts.len(),
            "round {round}: {} of {}",
            seen.len(),
            cuts.len()
        );
        check_copy(&program, &libraries)?;
    }
    Ok(())
}

#[test]
fn fifty_short_jobs_from_a_known_image_are_all_observed() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start::<&str>(&[])?;
    let job = Job::new("short.py")?;
    agent.learn(&["/libTKBO.", "/libTKBool.", "/libFreeCADApp.", "/libstdc++"], || {
        job.run(Duration::from_secs(30)).map(drop)
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let start = agent.metrics()?.sum(BOOLEANS, &[]);
    let begin = Instant::now();
    for _ in 0..50 {
        job.run(Duration::from_secs(30))?;
    }
    eprintln!("fifty jobs took {:?}", begin.elapsed());
    let counted = booleans(&agent, start + 150.0)? - start;
    ensure!(counted == 150.0, "{counted} of 150 booleans; agent:\n{}", agent.log());
    Ok(())
}

#[test]
fn a_library_replaced_on_disk_is_observed_as_the_new_file() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let (program, libraries) = copy(folder.path())?;
    let agent = Agent::start::<&str>(&[])?;
    let job = short_job(&program, &libraries)?;
    job.run(Duration::from_secs(60))?;
    booleans(&agent, 3.0)?;
    for round in 0..3 {
        // As a package manager does it: a new file takes the name while the old one may still be mapped.
        let library = libraries.join("libTKBO.so.7.6.3");
        let new = libraries.join("new");
        fs::copy(&library, &new)?;
        fs::rename(&new, &library)?;
        let start = agent.metrics()?.sum(BOOLEANS, &[]);
        job.run(Duration::from_secs(60))?;
        let counted = booleans(&agent, start + 3.0)? - start;
        ensure!(counted == 3.0, "replacement {round}: {counted} of 3 booleans; agent:\n{}", agent.log());
    }
    Ok(())
}

#[test]
fn a_worker_that_was_there_before_the_agent_is_observed() -> Result<()> {
    let _node = require_root()?;
    let job = Job::new("endless.py")?.with("JOB_SECONDS", "60");
    let mut child = Running(job.prepared().stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    std::thread::sleep(Duration::from_secs(2));
    let result = (|| {
        let agent = Agent::start::<&str>(&[])?;
        let start = agent.metrics()?.sum(BOOLEANS, &[]);
        std::thread::sleep(Duration::from_secs(2));
        let counted = agent.metrics()?.sum(BOOLEANS, &[]) - start;
        ensure!(counted >= 10.0, "{counted} booleans of a worker in 2 s; agent:\n{}", agent.log());
        Ok(())
    })();
    job.stop()?;
    run::wait(&mut child.0, Duration::from_secs(60))?;
    result
}

#[test]
fn probes_of_a_file_that_nobody_maps_any_more_are_taken_away() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start(&["--linger", "2"])?;
    let folder = scratch()?;
    let (program, libraries) = copy(folder.path())?;
    short_job(&program, &libraries)?.run(Duration::from_secs(60))?;
    booleans(&agent, 3.0)?;
    let name = libraries.join("libTKBO.so.7.6.3").display().to_string();
    drop(folder);
    // A file may be kept for the next job of the same image, but not once it is gone from the disk for long.
    run::until("the deleted file leaves /status", Duration::from_secs(40), || {
        agent.get("/status").ok().filter(|(_, body)| !body.contains(&name)).map(|_| ())
    })
}

/// Copies of the C++ runtimes that programs of this compiler use, in a folder.
fn copy_runtimes(folder: &Path) -> Result<[std::path::PathBuf; 2]> {
    let compiler = cadscope_tests::node::tool("g++", "g++")?;
    let copy = |name: &str| {
        let argument = format!("-print-file-name={name}");
        let said = run::run(Command::new(&compiler).arg(argument), Duration::from_secs(10))?;
        let to = folder.join(name);
        fs::copy(said.stdout.trim(), &to).with_context(|| format!("{name}: {said:?}"))?;
        Ok::<_, anyhow::Error>(to)
    };
    Ok([copy("libstdc++.so.6")?, copy("libgcc_s.so.1")?])
}

/// How its calls ended is known from the runtimes' probes: missed, an exception would be taken for something else.
#[test]
fn a_job_that_is_over_before_it_is_looked_at_makes_its_runtimes_known_to_the_next() -> Result<()> {
    let _node = require_root()?;
    let built = worker::build("o2")?;
    let folder = scratch()?;
    let program = folder.path().join("torture");
    fs::copy(&built.program, &program)?;
    let worker = Worker { program, ..built };
    let runtimes = folder.path().join("runtimes");
    fs::create_dir(&runtimes)?;
    let copies = copy_runtimes(&runtimes)?;
    let agent = Agent::start(&["--catalog".as_ref(), worker.catalog.as_os_str()])?;
    // Somebody else maps them, so that the agent knows what they are.
    let preload = copies.each_ref().map(|copy| copy.to_string_lossy().into_owned()).join(":");
    let bystander = Running(Command::new("sleep").arg("300").env("LD_PRELOAD", preload).spawn()?);
    worker.run_settled(&["returns"], Duration::from_secs(10))?;
    agent.learn(&[&worker.program.to_string_lossy()], || worker.run(&["returns"]).map(drop))?;
    run::until("the runtimes are known", Duration::from_secs(20), || {
        let status = agent.get("/status").ok()?.1;
        copies.iter().all(|copy| status.contains(&*copy.to_string_lossy())).then_some(())
    })?;
    let paths = copies.each_ref().map(|copy| copy.to_string_lossy().into_owned());
    let paths = paths.each_ref().map(String::as_str);
    ensure!(!agent.has_probed(&paths[..1])?, "nobody who is a worker maps them yet");

    let environment = [("LD_LIBRARY_PATH", runtimes.as_path())];
    agent.signal(Signal::SIGSTOP)?;
    let over = worker.run_with(&["returns"], Duration::ZERO, &environment);
    agent.signal(Signal::SIGCONT)?;
    over?;
    agent.learn(&paths, || Ok(()))?;

    let calls = "torture_call_duration_seconds_count";
    let scenarios = ["throw_frames", "translate", "rethrow"];
    let before = agent.metrics()?.sum(calls, &[("status", "exception")]);
    let (_, made) = worker.run_with(&scenarios, Duration::ZERO, &environment)?;
    let left = made.iter().filter(|call| call.outcome() == "exception").count() as f64;
    let exceptions = |m: &cadscope_tests::metrics::Metrics| m.sum(calls, &[("status", "exception")]) - before;
    let counted = exceptions(&agent.metrics_when(Duration::from_secs(10), |m| exceptions(m) >= left)?);
    ensure!(counted == left && left > 0.0, "{left} calls left by exceptions, {counted} counted");
    drop(bystander);
    Ok(())
}

/// Probes of the old contents would lie inside instructions of the new ones.
#[test]
fn a_library_rewritten_in_place_does_the_same_and_is_observed_anew() -> Result<()> {
    let _node = require_root()?;
    let (built, other) = (worker::build("o2")?, worker::build("o0")?);
    let folder = scratch()?;
    let library = folder.path().join("libtorture_plugin.so");
    let program = folder.path().join("torture");
    fs::copy(&built.program, &program)?;
    fs::copy(built.program.with_file_name("libtorture_plugin.so"), &library)?;
    let worker = Worker { program, ..built };
    let scenario = ["dlopen_dlclose_dlopen"];
    let alone = worker.run(&scenario)?.0;
    let agent = Agent::start(&["--catalog".as_ref(), worker.catalog.as_os_str()])?;
    let calls = "torture_call_duration_seconds_count";
    for contents in [&other.program, &worker.program.with_file_name("libtorture_plugin.so"), &other.program] {
        // The first run shows the agent the file.
        let watched = worker.run_settled(&scenario, Duration::from_secs(5))?.0;
        ensure!(watched.code == alone.code && watched.stdout == alone.stdout, "differs: {watched:?}");
        std::thread::sleep(Duration::from_millis(300));
        let before = agent.metrics()?.sum(calls, &[]);
        let made = worker.run(&scenario)?.1.len() as f64;
        let after = agent.metrics_when(Duration::from_secs(5), |m| m.sum(calls, &[]) >= before + made)?;
        let counted = after.sum(calls, &[]) - before;
        ensure!(counted == made, "{counted} of {made} calls; agent:\n{}", agent.log());
        let bytes = fs::read(contents.with_file_name("libtorture_plugin.so"))?;
        fs::write(&library, bytes)?; // the same inode
        std::thread::sleep(Duration::from_millis(300));
    }
    ensure!(agent.log().contains("rewritten_in_place"), "no word of it:\n{}", agent.log());
    Ok(())
}

/// An overlay mount that ends with the value.
struct Overlay(std::path::PathBuf);

impl Overlay {
    fn mount(folder: &Path, name: &str, image: &Path) -> Result<Self> {
        let [upper, work, merged] = ["upper", "work", "merged"].map(|part| folder.join(name).join(part));
        for part in [&upper, &work, &merged] {
            fs::create_dir_all(part)?;
        }
        let options =
            format!("lowerdir={},upperdir={},workdir={}", image.display(), upper.display(), work.display());
        nix::mount::mount(
            Some("overlay"),
            &merged,
            Some("overlay"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )?;
        Ok(Self(merged))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A probe belongs to the inode that containers share: attached for each, one call would be seen twice.
#[test]
fn containers_of_one_image_are_attached_once() -> Result<()> {
    let _node = require_root()?;
    let built = worker::build("o2")?;
    let folder = scratch()?;
    let image = folder.path().join("image");
    fs::create_dir(&image)?;
    for name in ["torture", "libtorture_plugin.so"] {
        fs::copy(built.program.with_file_name(name), image.join(name))?;
    }
    let containers =
        [Overlay::mount(folder.path(), "one", &image)?, Overlay::mount(folder.path(), "two", &image)?];
    let agent = Agent::start(&["--catalog".as_ref(), built.catalog.as_os_str()])?;
    let calls = "torture_call_duration_seconds_count";
    let workers: Vec<Worker> = containers
        .iter()
        .map(|container| Worker { program: container.0.join("torture"), ..built.clone() })
        .collect();
    for worker in &workers {
        worker.run_settled(&["returns", "throw_frames"], Duration::from_secs(5))?;
        std::thread::sleep(Duration::from_millis(300));
    }
    let before = agent.metrics()?.sum(calls, &[]);
    let mut made = 0.0;
    for worker in &workers {
        made += worker.run(&["returns", "throw_frames"])?.1.len() as f64;
    }
    agent.metrics_when(Duration::from_secs(5), |m| m.sum(calls, &[]) >= before + made)?;
    std::thread::sleep(Duration::from_millis(300));
    let counted = agent.metrics()?.sum(calls, &[]) - before;
    ensure!(counted == made, "{counted} of {made} calls; agent:\n{}", agent.log());
    let status = agent.get("/status")?.1;
    let files = status.matches("/torture\"").count();
    ensure!(files == 1, "the program is listed {files} times: {status}");
    Ok(())
}
