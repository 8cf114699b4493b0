//! Promise: the agent's page shows what the workers of a node do, live, in any window, whatever they are called.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::browser::Browser;
use cadscope_tests::freecad::Job;
use cadscope_tests::node::{cache, require_root};
use cadscope_tests::run::Running;
use serde_json::{Value, json};

/// What a worker could call itself in the hope to run as a script of the page.
const HOSTILE: &str =
    "<img src=x onerror=\"document.title='taken'\"></script><script>document.title='taken'</script>";

/// Pictures of the documentation.
const DOCUMENTED: [&str; 3] = ["live-light.png", "live-dark.png", "live-phone.png"];

/// Keeps a picture: for whoever looks, and with `CADSCOPE_WRITE=1` for the documentation.
fn keep(name: &str, picture: &[u8]) -> Result<()> {
    ensure!(picture.starts_with(b"\x89PNG") && picture.len() > 5_000, "{name}: no picture");
    fs::write(cache()?.join(name), picture)?;
    if std::env::var("CADSCOPE_WRITE").is_ok_and(|write| write == "1") && DOCUMENTED.contains(&name) {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/images");
        fs::create_dir_all(&images)?;
        fs::write(images.join(name), picture)?;
    }
    Ok(())
}

fn fits(browser: &mut Browser) -> Result<()> {
    let (wide, window) =
        (browser.value("document.documentElement.scrollWidth")?, browser.value("innerWidth")?);
    ensure!(wide.as_u64() <= window.as_u64(), "the page is {wide} wide in a window of {window}");
    Ok(())
}

#[test]
fn a_browser_shows_what_a_job_does_while_it_does_it() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start::<&str>(&[])?;
    let job = Job::new("plates.py")?.with("JOB_ID", "order-17").with("FLOW_TYPE", "plates");
    let _job = Running(job.prepared().spawn()?);
    let mut browser = Browser::start()?;
    browser.look(1280, 1000, false)?;
    browser.open(&agent.url())?;
    browser.wait_for("/boolean cut/.test(document.querySelector('#open').innerText) && /plates.py:\\d+ in drill/.test(document.querySelector('#open').innerText)")?;
    browser.wait_for("/boolean cut[^]*plates.py:\\d+ in/.test(document.querySelector('#slow').innerText)")?;
    browser.wait_for("/fillet/.test(document.querySelector('#kinds').innerText) && /recompute document/.test(document.querySelector('#kinds').innerText)")?;
    let worker = browser.value("document.querySelector('#workers tbody').innerText")?;
    let worker = worker.as_str().context("no worker")?;
    for part in ["freecadcmd", "FreeCAD 0.20.2", "OCCT 7.6.3", "plates", "MiB", "order-17"] {
        ensure!(worker.contains(part), "{part} in {worker}");
    }
    let width = "parseFloat(document.querySelector('#open .track i').style.width)";
    browser.wait_for(&format!("{width} > 0"))?;
    ensure!(browser.value("Object.keys(tiles).length")?.as_u64() == Some(10));
    ensure!(
        browser.value("document.querySelector('#coverage tbody').innerText.includes('libTKBool')")? == true
    );
    fits(&mut browser)?;
    keep("live-light.png", &browser.picture()?)?;

    browser.look(1280, 1000, true)?;
    ensure!(browser.value("getComputedStyle(document.body).backgroundColor")? == "rgb(20, 22, 26)");
    keep("live-dark.png", &browser.picture()?)?;
    browser.look(390, 844, false)?;
    fits(&mut browser)?;
    keep("live-phone.png", &browser.picture()?)?;

    browser.value("$('filter').value = 'nothing-has-this'; $('filter').dispatchEvent(new Event('input'))")?;
    browser.wait_for("document.querySelectorAll('#workers tbody tr').length === 0")?;
    browser.value("dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' }))")?;
    browser.wait_for("document.querySelectorAll('#workers tbody tr').length === 1")?;
    browser.look(1280, 1000, false)?;
    let hostile = Job::new("plates.py")?.with("JOB_ID", HOSTILE);
    let _hostile = Running(hostile.prepared().spawn()?);
    browser.wait_for("document.querySelector('#workers').innerText.includes('onerror') && document.querySelector('#slow').innerText.includes('onerror')")?;
    ensure!(
        browser.value("document.images.length + document.scripts.length")? == 1,
        "markup of a worker became markup of the page"
    );
    ensure!(browser.value("document.title")?.as_str().is_some_and(|title| title.ends_with("cadscope")));
    fits(&mut browser)?;
    hostile.stop()?;
    job.stop()?;
    browser.wait_for("/success/.test(document.querySelector('#ended').innerText) && document.querySelectorAll('#workers tbody tr').length === 0")?;
    ensure!(browser.complaints().is_empty(), "{:?}", browser.complaints());
    drop(agent);
    browser.wait_for("$('state').textContent === 'no connection to the agent'")?;
    Ok(())
}

/// A node with so many workers, each with an operation in flight, made from a snapshot of a real agent.
fn crowd(snapshot: &Value, workers: u32) -> Value {
    let mut crowd = snapshot.as_object().cloned().unwrap_or_default();
    let row = |n: u32| {
        let program = if n.is_multiple_of(2) { "freecadcmd" } else { "python3.11" };
        json!({ "pid": 10_000 + n, "program": program, "freecad_version": "1.0.2",
            "occt_version": "7.8.1", "flow_type": "export", "job": format!("order-{n}"), "namespace": "cad",
            "pod": format!("worker-{}", n / 4), "container": "job", "age_ns": 1_000_000_000_u64 * u64::from(n),
            "operations": 100 * n, "failed": n % 7, "open": 1, "cpu_share": f64::from(n % 100) / 100.0,
            "resident_bytes": 1_000_000 * u64::from(n + 50), "memory_kib": (0..60).map(|k| 1000 + k * n % 777).collect::<Vec<_>>() })
    };
    let open = |n: u32| {
        json!({ "pid": 10_000 + n, "tid": 10_000 + n, "depth": 0, "age_ns": 37_000_000_u64 * u64::from(n),
            "title": format!("boolean cut {n}"), "kind": "boolean cut", "line": "plate.py:14 in drill" })
    };
    let kind = json!({ "kind": "boolean cut", "open": workers, "per_second": 31.4, "count": 12_345, "failed": 17,
        "total_ns": 9_876_000_000_000_u64, "p50_ns": 80_000_000, "p95_ns": 3_000_000_000_u64, "max_ns": 99_000_000_000_u64 });
    let lists: [(&str, Value); 4] = [
        ("kinds", json!([kind])),
        ("worker_count", json!(workers)),
        ("workers", (0..workers).map(row).collect()),
        ("open", (0..workers).rev().map(open).collect()),
    ];
    crowd.extend(lists.map(|(name, list)| (name.to_owned(), list)));
    Value::Object(crowd)
}

/// Serves the agent's page, and this snapshot again and again.
fn serve(page: String, snapshot: Value) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (page, event) = (page.clone(), format!("data: {snapshot}\n\n"));
            std::thread::spawn(move || -> Result<()> {
                let mut stream = stream;
                let mut request = String::new();
                BufReader::new(stream.try_clone()?).read_line(&mut request)?;
                if !request.contains("/live") {
                    return Ok(write!(
                        stream,
                        "HTTP/1.0 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{page}"
                    )?);
                }
                write!(stream, "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")?;
                loop {
                    stream.write_all(event.as_bytes())?;
                    std::thread::sleep(std::time::Duration::from_millis(500));
                }
            });
        }
    });
    Ok(url)
}

#[test]
fn two_hundred_workers_are_shown_and_found() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start::<&str>(&[])?;
    let snapshot: Value = serde_json::from_str(&agent.get_as("/live", "application/json")?)?;
    let url = serve(agent.get_as("/", "text/html")?, crowd(&snapshot, 200))?;
    let mut browser = Browser::start()?;
    browser.look(1280, 1000, false)?;
    browser.open(&url)?;
    browser.wait_for("document.querySelectorAll('#workers tbody tr').length === 200")?;
    let milliseconds = "(() => { const begin = performance.now(); for (let n = 0; n < 10; n++) draw(); return (performance.now() - begin) / 10 })()";
    println!("a snapshot of 200 workers is drawn in {} ms", browser.value(milliseconds)?);
    ensure!(browser.value("document.querySelectorAll('#open tbody tr').length")? == 100);
    let first = "document.querySelector('#workers tbody tr').innerText.includes('10199')";
    ensure!(browser.value(first)? == true, "not sorted by memory");
    fits(&mut browser)?;
    keep("live-200.png", &browser.picture()?)?;
    browser.look(390, 844, true)?;
    fits(&mut browser)?;
    keep("live-200-phone.png", &browser.picture()?)?;
    browser.value("$('filter').value = 'order-42'; $('filter').dispatchEvent(new Event('input'))")?;
    browser.wait_for("document.querySelectorAll('#workers tbody tr').length === 1")?;
    ensure!(browser.complaints().is_empty(), "{:?}", browser.complaints());
    Ok(())
}
