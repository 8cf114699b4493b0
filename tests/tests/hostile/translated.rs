//! Workers under valgrind: it reads their code, and would take a probe for a breakpoint of the program.

use super::*;
use cadscope_tests::residue::altered_text;

/// What the agent makes of such a worker.
const MISSED: &str = "cadscope_workers_missed_total";
const TOOLS: [&str; 3] = ["memcheck", "callgrind", "none"];

fn valgrind(tool_name: &str) -> Result<Vec<String>> {
    let valgrind = tool("valgrind", "valgrind")?.to_string_lossy().into_owned();
    let mut words = vec![valgrind, format!("--tool={tool_name}"), "-q".to_owned()];
    if tool_name == "callgrind" {
        words.push("--callgrind-out-file=/dev/null".to_owned());
    }
    Ok(words)
}

fn missed(agent: &Agent) -> Result<f64> {
    Ok(agent.metrics()?.sum(MISSED, &[("reason", "translated")]))
}

/// Waits until nothing of the program's text is altered in a process.
fn bare(pid: u32, program: &Path) -> Result<()> {
    let name = program.to_string_lossy();
    until("the worker's text is that of its file", LIMIT, || {
        altered_text(pid).ok()?.iter().all(|place| !place.contains(&*name)).then_some(())
    })
}

#[test]
fn a_worker_under_valgrind_does_as_if_nobody_watched() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &[])?;
    for (round, name) in TOOLS.iter().enumerate() {
        let valgrind = valgrind(name)?;
        let wrapper: Vec<&str> = valgrind.iter().map(String::as_str).collect();
        // Somebody else's probes go with it, and come back.
        let other = watched.waiting(&[], &["30"])?;
        watched.agent.learn(&["hostile-worker"], || Ok(()))?;
        let before = (watched.settled()?, missed(&watched.agent)?);
        let worker = watched.waiting(&wrapper, &["40"])?;
        bare(worker.pid, &watched.program)?;
        until("/status says why it has no probes", LIMIT, || {
            let said = watched.agent.get("/status").ok()?.1.contains("while valgrind runs the file");
            (said && !watched.agent.has_probed(&["hostile-worker"]).ok()?).then_some(())
        })?;
        let ended = worker.end()?;
        ensure!((ended.code, ended.stdout.as_str()) == (0, "820"), "{name}: {ended:?}");
        watched.agent.learn(&["hostile-worker"], || Ok(()))?;
        let ended = other.end()?;
        ensure!((ended.code, ended.stdout.as_str()) == (0, "465"), "{name}: {ended:?}");
        let all = |m: &cadscope_tests::metrics::Metrics| m.sum(CALLS, &[]) >= before.0 + 30.0;
        let seen = watched.agent.metrics_when(LIMIT, all)?.sum(CALLS, &[]) - before.0;
        ensure!(seen == 30.0, "round {round}, {name}: {seen} of 30 calls; agent:\n{}", watched.agent.log());
        ensure!(missed(&watched.agent)? > before.1, "{name}: not counted");
        watched.is_well()?;
    }
    ensure!(watched.agent.log().contains("translated"), "no word of it:\n{}", watched.agent.log());
    harmless(
        "A worker under valgrind",
        "memcheck, callgrind and none, beside another worker of the same file",
        "it prints and ends as it does unwatched; its file has no probes meanwhile, which is said; afterwards every call is counted",
    )
}

#[test]
fn a_worker_that_was_under_valgrind_before_the_agent_came_does_as_if_nobody_watched() -> Result<()> {
    let _node = require_root()?;
    let program = build_program("hostile/hostile.cpp")?;
    let folder = scratch()?;
    let catalog = folder.path().join("hostile.toml");
    fs::write(&catalog, CATALOG)?;
    let valgrind = valgrind("none")?;
    let wrapper: Vec<&str> = valgrind.iter().map(String::as_str).collect();
    let (worker, other) =
        (Waiting::start(&wrapper, &program, &["40"])?, Waiting::start(&[], &program, &["30"])?);
    let agent = Agent::start(&[OsStr::new("--catalog"), catalog.as_os_str()])?;
    agent.metrics_when(LIMIT, |m| m.sum(MISSED, &[("reason", "translated")]) > 0.0)?;
    ensure!(missed(&agent)? > 0.0, "agent:\n{}", agent.log());
    bare(worker.pid, &program)?;
    let ended = worker.end()?;
    ensure!((ended.code, ended.stdout.as_str()) == (0, "820"), "{ended:?}");
    agent.learn(&["hostile-"], || Ok(()))?;
    ensure!(other.end()?.stdout == "465");
    let seen = agent.metrics_when(LIMIT, |m| m.sum(CALLS, &[]) >= 30.0)?.sum(CALLS, &[]);
    ensure!(seen == 30.0, "{seen} of 30 calls; agent:\n{}", agent.log());
    Ok(())
}

/// The kernel tells of each processor's processes apart.
#[test]
fn what_a_worker_under_valgrind_was_before_on_another_processor_is_not_taken_for_what_it_is() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &[])?;
    let valgrind = valgrind("none")?.join(" ");
    // `0-3,8`: the first of them is looked at first.
    let status = fs::read_to_string("/proc/self/status")?;
    let allowed =
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).context("no list")?;
    let processors: Vec<&str> = allowed.trim().split([',', '-']).collect();
    let (first, last) = (processors[0], processors[processors.len() - 1]);
    let script = format!("taskset -p -c {first} $$ > /dev/null && exec {valgrind} \"$0\" \"$@\"");
    // Has the file probed.
    let other = watched.waiting(&[], &["30"])?;
    watched.agent.learn(&["hostile-worker"], || Ok(()))?;
    let worker = behind_its_back(&watched.agent, || {
        watched.waiting(&["taskset", "-c", last, "sh", "-c", &script], &["40"])
    })?;
    bare(worker.pid, &watched.program)?;
    // And stays so.
    std::thread::sleep(Duration::from_secs(2));
    let name = watched.program.to_string_lossy();
    ensure!(altered_text(worker.pid)?.iter().all(|place| !place.contains(&*name)), "probed again");
    let ended = worker.end()?;
    ensure!((ended.code, ended.stdout.as_str()) == (0, "820"), "{ended:?}");
    watched.agent.learn(&["hostile-worker"], || Ok(()))?;
    drop(other);
    watched.is_well()
}

/// What the agent keeps from it: that these tests could fail.
#[test]
fn a_worker_under_valgrind_ends_at_a_probe_if_the_agent_is_told_not_to_give_way() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &["--give-way=false"])?;
    let valgrind = valgrind("none")?;
    let wrapper: Vec<&str> = valgrind.iter().map(String::as_str).collect();
    let other = watched.waiting(&[], &["30"])?;
    watched.agent.learn(&["hostile-worker"], || Ok(()))?;
    let ended = watched.waiting(&wrapper, &["40"])?.end()?;
    ensure!(ended.code == 128 + Signal::SIGTRAP as i32 && ended.stdout.is_empty(), "{ended:?}");
    drop(other);
    watched.is_well()
}
