//! Promise: `cadscope top` shows on any terminal what the workers of a node do, while they do it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::freecad::Job;
use cadscope_tests::node::{cadscope, require_root};
use cadscope_tests::run::Running;
use cadscope_tests::terminal::Terminal;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What `command` leaves on the screen of an 80 × 24 terminal, with its exit status below.
fn terminal(arguments: &str, environment: &str) -> Result<Terminal> {
    let program = cadscope()?;
    Terminal::start(
        80,
        24,
        &format!(
            "env -u NO_COLOR LANG=C.UTF-8 LC_ALL= {environment} {} top {arguments}; echo ended with $?; sleep 600",
            program.display()
        ),
    )
}

/// Colours by their number, or red to cyan; 39 is the terminal's own.
fn has_colours(screen: &str) -> bool {
    screen.contains("38;5;") || (31..37).any(|colour| screen.contains(&format!("[{colour}m")))
}

/// A boolean is in flight with its bar and the line that called it, and one has been slow.
fn shows_the_job(screen: &str) -> bool {
    let in_flight =
        |row: &str| row.contains('█') && row.contains("boolean cut") && row.contains("plates.py:");
    screen.lines().any(in_flight)
        && screen
            .lines()
            .any(|row| row.contains("boolean cut") && row.contains(" s  ") && row.contains("in drill"))
        && screen.contains("Workers  1")
        && screen.lines().any(|row| row.contains("freecadcmd") && row.contains('%') && row.contains('M'))
}

#[test]
fn top_shows_a_job_of_an_agent_and_obeys_its_keys() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start::<&str>(&[])?;
    let job = Job::new("plates.py")?.with("JOB_ID", "order-17");
    let _job = Running(job.prepared().spawn()?);
    let terminal = terminal(&format!("--connect {}", agent.url()), "")?;
    let screen = terminal.wait_for("the job", shows_the_job)?;
    ensure!(screen.lines().count() <= 24 && screen.lines().all(|row| row.chars().count() <= 80), "{screen}");
    ensure!(has_colours(&terminal.coloured_screen()?), "no colours");
    println!("{screen}");

    terminal.press(&["?"])?;
    terminal.wait_for("help", |screen| screen.contains("Any key closes this"))?;
    terminal.press(&["x", "/"])?;
    terminal.press(&["-l", "nothing-has-this"])?;
    terminal.press(&["Enter"])?;
    terminal.wait_for("a filter", |screen| screen.contains("0 of 1") && !screen.contains("freecadcmd"))?;
    terminal.press(&["Escape"])?;
    terminal.wait_for("no filter", |screen| screen.contains("freecadcmd"))?;
    terminal.press(&["3"])?;
    terminal.wait_for("operations alone", |screen| {
        screen.contains("fillet") && screen.contains("recompute document") && !screen.contains("In flight")
    })?;
    terminal.press(&["3", "Tab", "s"])?;
    job.stop()?;
    terminal.wait_for("the job's end", |screen| screen.contains("none is running"))?;
    terminal.press(&["5"])?;
    terminal
        .wait_for("how it ended", |screen| screen.contains("success") && screen.contains("freecadcmd"))?;
    terminal.press(&["q"])?;
    let screen = terminal.wait_for("its end", |screen| screen.contains("ended with 0"))?;
    ensure!(!screen.contains("Workers"), "the screen was not given back:\n{screen}");
    Ok(())
}

#[test]
fn top_says_when_its_agent_goes_and_finds_it_again() -> Result<()> {
    let _node = require_root()?;
    let mut agent = Agent::start::<&str>(&[])?;
    let terminal = terminal(&format!("--connect {}", agent.url()), "NO_COLOR=1")?;
    terminal.wait_for("a picture", |screen| screen.contains("Workers"))?;
    ensure!(!has_colours(&terminal.coloured_screen()?), "colours in spite of NO_COLOR");
    agent.end(Signal::SIGTERM)?;
    terminal.wait_for("trouble", |screen| {
        screen.contains("trying again") || screen.contains("no agent answers")
    })?;
    let again = Agent::start_at(agent.port())?;
    let screen =
        terminal.wait_for("the agent again", |screen| screen.contains(&format!("agent {}", again.url())))?;
    ensure!(screen.contains("Workers"), "{screen}");
    // A terminal that goes away takes its `top` along.
    let children = terminal.children()?;
    ensure!(!children.is_empty(), "no top");
    drop(terminal);
    let until = Instant::now() + Duration::from_secs(30);
    while children.iter().any(|pid| Path::new("/proc").join(pid.to_string()).exists()) {
        ensure!(Instant::now() < until, "it runs on without its terminal");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

#[test]
fn top_observes_by_itself_and_leaves_the_terminal_as_it_was() -> Result<()> {
    let _node = require_root()?;
    let job = Job::new("plates.py")?;
    let _job = Running(job.prepared().spawn()?);
    let terminal = terminal("--alone", "")?;
    let screen = terminal.wait_for("the job", shows_the_job)?;
    ensure!(screen.contains("own observation"), "{screen}");
    // It has no more rights than an agent, whoever started it.
    let kept = format!("CapEff:\t{:016x}\n", 1_u64 << 2 | 1 << 19 | 1 << 38 | 1 << 39 | 1 << 40);
    for pid in terminal.children()? {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = std::fs::read_to_string(thread?.path().join("status"))?;
            ensure!(status.contains(&kept) && status.contains("Seccomp:\t2\n"), "{status}");
        }
    }
    for pid in terminal.children()? {
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
    }
    let screen = terminal.wait_for("its end", |screen| screen.contains("ended with 0"))?;
    ensure!(!screen.contains("Workers"), "the screen was not given back:\n{screen}");
    job.stop()
}

#[test]
fn who_has_no_terminal_or_no_agent_is_told() -> Result<()> {
    let _node = require_root()?;
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(cadscope()?);
        cadscope_tests::run::run(command.arg("top").args(arguments), Duration::from_secs(30))
    };
    let ended = run(&[])?;
    ensure!(ended.code == 1 && ended.stderr.contains("draws on a terminal"), "{ended:?}");
    let ended = run(&["--connect", "https://node"])?;
    ensure!(ended.code == 2 && ended.stderr.contains("https://HOST:PORT"), "{ended:?}");
    let terminal = terminal("--connect 127.0.0.1:1", "")?;
    terminal.wait_for("no agent", |screen| {
        screen.contains("no agent answers") && screen.contains("ended with 1")
    })?;
    Ok(())
}
