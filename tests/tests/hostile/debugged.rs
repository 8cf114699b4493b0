//! Workers under a debugger whose breakpoints lie where probes are.

use super::*;

/// Where the entry's probe lies behind the beginning of `hostile_call`, in bytes.
fn probe_behind_entry(watched: &Watched) -> Result<u64> {
    let status: serde_json::Value = serde_json::from_str(&watched.agent.get("/status")?.1)?;
    let files = status.get("files").and_then(|files| files.as_array()).context("no files")?;
    let probes = files.iter().filter_map(|file| file.get("probes")?.as_array()).flatten();
    let entry = probes
        .filter(|probe| probe.get("id").is_some_and(|id| id == "hostile.call"))
        .find_map(|probe| probe.get("entry")?.as_u64())
        .context("no entry")?;
    let symbols = run(Command::new(tool("nm", "binutils")?).arg("-D").arg(&watched.program), LIMIT)?.stdout;
    let line = symbols.lines().find(|line| line.ends_with(" T hostile_call")).context("no symbol")?;
    let symbol = u64::from_str_radix(line.split(' ').next().unwrap_or_default(), 16)?;
    entry.checked_sub(symbol).filter(|behind| *behind < 64).context("the probe lies elsewhere")
}

fn gdb(script: &[&str]) -> Result<Command> {
    let mut command = Command::new(tool("gdb", "gdb")?);
    command.args(["-q", "-nx", "-batch"]).args(script.iter().flat_map(|line| ["-ex", line]));
    Ok(command)
}

#[test]
fn a_debugged_worker_does_as_unwatched_and_its_calls_are_counted_to_the_last() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &[])?;
    // Keeps the probes in place.
    let other = watched.waiting(&[], &["30"])?;
    watched.agent.learn(&["hostile-worker"], || Ok(()))?;
    let on_the_probe = format!("break *((char *) hostile_call + {})", probe_behind_entry(&watched)?);

    let stops = ["bt 1", "delete", "continue"];
    // The kernel takes a hit at a probe for the probe: the debugger is not told.
    for (stop, then) in [("break hostile_call", &stops[..]), (&on_the_probe, &[])] {
        let (seen, ended) = watched.seen_of(40.0, || {
            let mut command = gdb(&[&[stop, "run"], then].concat())?;
            run(command.arg("--args").arg(&watched.program).args(["calls", "40"]), LIMIT)
        })?;
        let printed = ended.stdout.lines().filter(|line| *line == "820").count();
        ensure!((seen, ended.code, printed) == (40.0, 0, 1), "{stop}: {seen} of 40 calls, {ended:?}");

        // It is attached to, and left again if it stops.
        let (seen, ended) = watched.seen_of(40.0, || {
            let mut worker = watched.waiting(&[], &["40"])?;
            let mut command = gdb(&[stop, "continue", "delete", "detach"])?;
            command.args(["-p", &worker.pid.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
            let mut debugger = Running(command.stderr(Stdio::null()).spawn()?);
            until("the debugger has the worker", LIMIT, || {
                let status = fs::read_to_string(format!("/proc/{}/status", worker.pid)).ok()?;
                let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
                (tracer.trim() != "0").then_some(())
            })?;
            worker.go()?;
            ensure!(worker.line()? == "820", "{stop}");
            wait(&mut debugger.0, LIMIT)?;
            Ok(shell_code(wait(&mut worker.child.0, LIMIT)?))
        })?;
        ensure!((seen, ended) == (40.0, 0), "{stop}, attached: {seen} of 40 calls, ended with {ended}");
    }
    drop(other);
    watched.is_well()?;
    harmless(
        "A debugger's breakpoint on a probe",
        "gdb runs a worker, or attaches to one and leaves it: a breakpoint at a probed function, and one on the probe's own instruction",
        "the worker does as unwatched, and every call is counted",
    )
}
