//! Promise: the agent may die at any moment, by any means; jobs go on, and nothing of it is left. What the kernel itself
//! cannot take away from an agent that dies while it places probes, the next agent takes away.

#![allow(clippy::indexing_slicing, reason = "two workers are started: out of bounds is a failed test")]

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::freecad::Job;
use cadscope_tests::node::{full, require_root};
use cadscope_tests::residue::{altered_text, bpf_ids, left_by_the_kernel, named_uprobes, other_observers};
use cadscope_tests::run::{self, Running};
use nix::sys::signal::Signal;

struct Endless {
    job: Job,
    child: Running,
}

impl Endless {
    fn start() -> Result<Self> {
        let job = Job::new("endless.py")?.with("JOB_SECONDS", "3600");
        let out = File::create(job.folder().join("stdout"))?;
        let child = Running(job.prepared().stdin(Stdio::null()).stdout(out).stderr(Stdio::null()).spawn()?);
        Ok(Self { job, child })
    }

    fn end(mut self) -> Result<()> {
        self.job.stop()?;
        let status = run::wait(&mut self.child.0, Duration::from_secs(60))?;
        let said = run::text(&self.job.folder().join("stdout"));
        ensure!(status.success() && said.contains("job done"), "the job ended with {status}: {said}");
        Ok(())
    }
}

#[test]
#[ignore = "minutes long"]
fn an_agent_killed_many_times_harms_no_job_and_leaves_nothing_behind() -> Result<()> {
    let _node = require_root()?;
    let rounds: u32 = if full() { 100 } else { 20 };
    let short = Job::new("short.py")?;
    let expected = short.run(Duration::from_secs(30))?.stdout;
    let endless = [Endless::start()?, Endless::start()?];
    std::thread::sleep(Duration::from_secs(1));
    run::until("other observers on this node end", Duration::from_secs(120), || {
        other_observers().is_empty().then_some(())
    })
    .with_context(|| format!("{:?}", other_observers()))?;
    let clean = altered_text(endless[0].child.pid())?;
    ensure!(
        clean.is_empty(),
        "someone else has probes in this worker, so ours cannot be told apart: {clean:?}"
    );
    let (programs, links, named) = (bpf_ids("prog")?, bpf_ids("link")?, named_uprobes());
    let (mut probed, mut left_by_kernel) = (0, 0);

    for round in 0..rounds {
        let known = left_by_the_kernel()?;
        let mut agent = Agent::launch::<&str>(&[])?;
        // From before it has attached anything to long after: 0.02 to 5 s.
        let life = Duration::from_millis(20 + u64::from(round * 37 % 100) * 50);
        let mut running =
            short.prepared().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(life);
        let attached = endless.iter().map(|e| altered_text(e.child.pid())).collect::<Result<Vec<_>>>()?;
        probed += usize::from(attached.iter().all(|a| !a.is_empty()));
        let code = agent.end(Signal::SIGKILL)?;
        ensure!(code == 128 + 9, "round {round}: the agent had already ended with {code}:\n{}", agent.log());
        let status = run::wait(&mut running, Duration::from_secs(30))?;
        let mut said = String::new();
        std::io::Read::read_to_string(&mut running.stdout.take().context("stdout")?, &mut said)?;
        ensure!(status.success() && said == expected, "round {round}: a job ended with {status}: {said}");

        if left_by_the_kernel()? > known {
            left_by_kernel += 1;
            let mut next = Agent::start::<&str>(&[])?;
            let code = next.end(Signal::SIGTERM)?;
            ensure!(code == 0, "round {round}: the next agent ended with {code}:\n{}", next.log());
        }
        let gone = run::until("everything of the agent is gone", Duration::from_secs(30), || {
            let left = |kind: &str, before: &std::collections::BTreeSet<u64>| {
                bpf_ids(kind).map(|now| now.difference(before).copied().collect::<Vec<_>>()).ok()
            };
            let clean = left("prog", &programs)?.is_empty()
                && left("link", &links)?.is_empty()
                && endless.iter().all(|e| altered_text(e.child.pid()).is_ok_and(|a| a.is_empty()));
            clean.then_some(())
        });
        gone.with_context(|| {
            let text = altered_text(endless[0].child.pid());
            format!(
                "round {round}, after {life:?}; other observers (none may run) {:?}; programs {:?}, links {:?}, text {text:?}",
                other_observers(),
                bpf_ids("prog"),
                bpf_ids("link")
            )
        })?;
        ensure!(named_uprobes() == named, "round {round} left {:?}", named_uprobes());
    }
    ensure!(
        probed * 10 >= usize::try_from(rounds)?,
        "in hardly any round had the agent attached to the workers: this test has shown nothing"
    );
    eprintln!(
        "{rounds} kills, {probed} of them with probes in place; {left_by_kernel} in the midst of placing them, where the \
         kernel left some to the next agent"
    );
    let after = short.run(Duration::from_secs(30))?.stdout;
    ensure!(after == expected, "a job after all that prints {after}");
    for worker in endless {
        worker.end()?;
    }
    Ok(())
}

#[test]
#[ignore = "minutes long"]
fn an_agent_that_is_told_to_end_leaves_nothing_behind() -> Result<()> {
    let _node = require_root()?;
    let endless = Endless::start()?;
    std::thread::sleep(Duration::from_secs(1));
    let programs = bpf_ids("prog")?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut agent = Agent::start::<&str>(&[])?;
        run::until("the worker is probed", Duration::from_secs(20), || {
            altered_text(endless.child.pid()).ok().filter(|a| !a.is_empty())
        })?;
        let code = agent.end(signal)?;
        ensure!(code == 0, "{signal}: exit {code}\n{}", agent.log());
        let left = altered_text(endless.child.pid())?;
        ensure!(left.is_empty(), "{signal}: {left:?}");
        run::until("its programs are gone", Duration::from_secs(10), || {
            bpf_ids("prog").ok().filter(|now| now.is_subset(&programs))
        })?;
    }
    endless.end()
}
