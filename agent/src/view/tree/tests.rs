//! Turns fixed reports into waterfalls and compares them with what a person should see.

use std::sync::Arc;

use super::*;
use crate::catalog::{Label, Probe};
use crate::operation::Value;
use crate::samples;
use crate::view::Skipped;
use crate::workers::Late;

/// A report under construction: operations by title, in milliseconds.
struct Build {
    report: TraceReport,
    worker: Arc<Worker>,
}

impl Build {
    fn new(pid: u32, wall_ms: u64) -> Self {
        let worker = samples::worker(pid, "freecadcmd");
        let life = WorkerReport {
            ended_ns: wall_ms * 1_000_000,
            exit: Some(Exit { code: Some(0), signal: None }),
            ..WorkerReport::new(worker.clone())
        };
        Self { report: TraceReport { workers: vec![life], ..TraceReport::default() }, worker }
    }

    fn add(&mut self, probe: &Arc<Probe>, span: (f64, f64), parent: Option<f64>) -> &mut Operation {
        let mut operation = samples::operation(probe, &self.worker, span.0, span.1);
        operation.parent_start_ns =
            parent.map(|start| samples::operation(probe, &self.worker, start, start).start_ns);
        self.report.operations.push(operation);
        self.report.operations.last_mut().unwrap()
    }
}

fn named(id: &str, title: &str, label: Option<&str>) -> Arc<Probe> {
    let mut probe = samples::probe(id, title);
    if let Some(label) = label {
        probe.labels.insert(label.to_owned(), Label::Text(label.to_owned()));
    }
    Arc::new(probe)
}

fn texts<const N: usize>(values: [(&str, &str); N]) -> BTreeMap<String, Value> {
    values.into_iter().map(|(name, value)| samples::text(name, value)).collect()
}

/// A small job: a document recomputed, an exception inside a fillet, an export, a mesh on another thread.
fn job() -> TraceReport {
    let open = named("doc.restore", "open document", None);
    let document = named("doc.recompute", "recompute document", None);
    let object = named("obj.recompute", "recompute {object} ({class})", Some("class"));
    let boolean = named("bool.api_build", "boolean {operation}", Some("operation"));
    let fillet = named("fillet.build", "fillet", None);
    let mesh = named("mesh.perform", "mesh", None);
    let export = named("step.write", "export {format}", Some("format"));
    let mut build = Build::new(4242, 1840);
    build.add(&open, (21.0, 118.4), None);
    build.add(&document, (120.0, 1320.0), None);
    build.add(&object, (121.0, 131.5), Some(120.0)).values =
        texts([("object", "Box"), ("class", "Part::Box")]);
    build.add(&object, (133.0, 913.0), Some(120.0)).values =
        texts([("object", "Cut001"), ("class", "Part::Cut")]);
    build.add(&boolean, (140.0, 905.0), Some(133.0)).values = texts([("operation", "cut")]);
    let object = build.add(&object, (915.0, 1319.0), Some(120.0));
    object.values = texts([("object", "Fillet"), ("class", "Part::Fillet")]);
    object.outcome = Outcome::Error;
    let fillet = build.add(&fillet, (918.0, 1316.0), Some(915.0));
    fillet.outcome = Outcome::Exception;
    fillet.exception = Some("StdFail_NotDone".into());
    build.add(&mesh, (1400.0, 1650.0), None).tid = 4251;
    build.add(&export, (1405.0, 1799.0), None).values = texts([("format", "STEP")]);
    build.report.command = vec!["freecadcmd".to_owned(), "job.py".to_owned()];
    build.report.losses = [("ring buffer full".to_owned(), 12), ("texts cut".to_owned(), 0)].into();
    let late = |name: &str, analyse_ns| Late {
        path: format!("/usr/lib/{name}"),
        mapped_ns: 0,
        notice_ns: 1_000_000,
        analyse_ns,
        place_ns: 0,
    };
    build.report.late = vec![(4242, late("libTKMath.so", 1_000_000)), (4242, late("libTKBO.so", 40_000_000))];
    build.report.skipped = vec![
        Skipped {
            file: "/l".to_owned(),
            probe: "lcs.resolve".to_owned(),
            reason: "no such symbol".to_owned(),
        },
        Skipped { file: "/l".to_owned(), probe: "asm.solve".to_owned(), reason: "no such symbol".to_owned() },
    ];
    build.report
}

/// Of a page: its lines, without the table of totals.
fn rows(page: &str) -> Vec<&str> {
    page.lines().take_while(|line| !line.starts_with("operation")).filter(|line| !line.is_empty()).collect()
}

#[test]
fn a_job_reads_as_a_waterfall() {
    let page = render_tree(&job(), &TreeOptions::default());
    let expected = "\
$ freecadcmd job.py

freecadcmd · pid 4242 · FreeCAD 1.0.2 · OCCT 7.8.1 · 1.84 s · exit 0
   start  duration   0                  1.84 s
  21.0 ms   97.4 ms  ▐▌                        open document
   120 ms   1.20 s    ▐███████████████▉        recompute document
   121 ms   10.5 ms   ▏                        ├ recompute Box (Part::Box)
   133 ms    780 ms   ▕██████████▍             ├ recompute Cut001 (Part::Cut)
   140 ms    765 ms   ▕██████████▎             │ └ boolean cut
   915 ms    404 ms              ▐████▉        └ ✗ recompute Fillet (Part::Fillet): failed
   918 ms    398 ms              ▐████▉          └ ✗ fillet: StdFail_NotDone
  1.40 s     250 ms                     ███▍   [4251] mesh
  1.41 s     394 ms                     █████▍ export STEP

operation                  count  failed    total      self       p50       max
recompute document             1       ·   1.20 s    5.50 ms   1.20 s    1.20 s
recompute (Part::Cut)          1       ·    780 ms   15.0 ms    780 ms    780 ms
boolean cut                    1       ·    765 ms    765 ms    765 ms    765 ms
recompute (Part::Fillet)       1       1    404 ms   6.00 ms    404 ms    404 ms
fillet                         1       1    398 ms    398 ms    398 ms    398 ms
export STEP                    1       ·    394 ms    394 ms    394 ms    394 ms
mesh                           1       ·    250 ms    250 ms    250 ms    250 ms
open document                  1       ·   97.4 ms   97.4 ms   97.4 ms   97.4 ms
recompute (Part::Box)          1       ·   10.5 ms   10.5 ms   10.5 ms   10.5 ms

not seen
  12 lost: ring buffer full
  process 4242, until probes were in place: libTKBO.so 41.0 ms, libTKMath.so 2.00 ms
  2 probes skipped, no such symbol: asm.solve, lcs.resolve
";
    assert_eq!(page, expected, "\n{page}");
}

#[test]
fn a_narrow_ascii_terminal_gets_the_same_rows() {
    let page = render_tree(&job(), &TreeOptions { width: 80, ascii: true, ..TreeOptions::default() });
    let expected = [
        "$ freecadcmd job.py",
        "freecadcmd, pid 4242, FreeCAD 1.0.2, OCCT 7.8.1, 1.84 s, exit 0",
        "   start  duration   0             1.84 s",
        "  21.0 ms   97.4 ms  =-                   open document",
        "   120 ms   1.20 s    =============-      recompute document",
        "   121 ms   10.5 ms   -                   |-recompute Box (Part::Box)",
        "   133 ms    780 ms   =========           |-recompute Cut001 (Part::Cut)",
        "   140 ms    765 ms   -========           | `-boolean cut",
        "   915 ms    404 ms           -====-      `-x recompute Fillet (Part::F~: failed",
        "   918 ms    398 ms           -====-        `-x fillet: StdFail_NotDone",
        "  1.40 s     250 ms                 ===   [4251] mesh",
        "  1.41 s     394 ms                 ====- export STEP",
    ];
    assert_eq!(rows(&page), expected, "\n{page}");
    assert!(page.is_ascii());
}

#[test]
fn colours_only_wrap_what_is_there_without_them() {
    let plain = render_tree(&job(), &TreeOptions::default());
    let coloured = render_tree(&job(), &TreeOptions { color: true, ..TreeOptions::default() });
    assert!(coloured.contains("\x1b[31m✗ \x1b[0mfillet\x1b[31m: StdFail_NotDone\x1b[0m"));
    assert!(coloured.contains("\x1b[32mexit 0\x1b[0m"));
    let codes = without_codes(&coloured);
    let trimmed: Vec<_> = codes.lines().map(str::trim_end).collect();
    assert_eq!(trimmed, plain.lines().collect::<Vec<_>>());
}

fn without_codes(text: &str) -> String {
    let mut pieces = text.split('\x1b');
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |out, piece| out + piece.split_once('m').unwrap().1)
}

/// 220 boxes created and recomputed one after the other, one of them failing, then a recompute that is killed.
fn repetitive() -> TraceReport {
    let mut build = Build::new(7, 3000);
    let create = named("doc.add_object", "create {object}", None);
    let object = named("obj.recompute", "recompute {object} ({class})", Some("class"));
    let document = named("doc.recompute", "recompute document", None);
    for n in 0..220 {
        let at = 10.0 + f64::from(n) * 2.0;
        build.add(&create, (at, at + 0.3), None).values = texts([("object", &format!("Box{n}"))]);
        build.add(&document, (at + 0.5, at + 1.5), None);
        let object = build.add(&object, (at + 0.6, at + 1.4), Some(at + 0.5));
        object.values = texts([("object", &format!("Box{n}")), ("class", "Part::Box")]);
        if n == 77 {
            object.outcome = Outcome::Error;
        }
    }
    let killed = build.add(&document, (600.0, 2900.0), None);
    (killed.outcome, killed.signal) = (Outcome::Killed, Some(9));
    build.report.workers[0].exit = Some(Exit { code: None, signal: Some(9) });
    build.report
}

#[test]
fn many_short_rows_are_folded_and_failures_inside_are_told() {
    let page = render_tree(&repetitive(), &TreeOptions::default());
    let expected = [
        "freecadcmd · pid 7 · FreeCAD 1.0.2 · OCCT 7.8.1 · 3.00 s · killed by SIGKILL",
        "   start  duration   0                  3.00 s",
        "  10.0 ms   66.0 ms  ░░░░                      … 220 × create (total 66.0 ms)",
        "  10.5 ms    220 ms  ░░░░                      … 220 × recompute document (total 220 ms): 1 failed",
        "   600 ms   2.30 s        ███████████████████▏ † recompute document: killed by SIGKILL",
    ];
    assert_eq!(rows(&page), expected, "\n{page}");
    let full = render_tree(&repetitive(), &TreeOptions { full: true, ..TreeOptions::default() });
    assert_eq!(rows(&full).len(), 2 + 3 * 220 + 1);
    assert!(full.contains("└ ✗ recompute Box77 (Part::Box): failed"));
}

#[test]
fn orphans_and_instants_have_their_rows() {
    let mut build = Build::new(7, 100);
    let probe = named("fillet.build", "fillet", None);
    build.add(&probe, (50.0, 60.0), Some(10.0));
    build.add(&probe, (100.0, 100.0), None);
    // Its own parent, and a parent that begins after it: neither can be.
    build.add(&probe, (20.0, 30.0), Some(20.0));
    build.add(&probe, (40.0, 45.0), Some(50.0));
    let page = render_tree(&build.report, &TreeOptions { width: 72, ..TreeOptions::default() });
    let expected = [
        "freecadcmd · pid 7 · FreeCAD 1.0.2 · OCCT 7.8.1 · 100 ms · exit 0",
        "   start  duration   0           100 ms",
        "  20.0 ms   10.0 ms     ▐█▍             ⋯ fillet",
        "  40.0 ms   5.00 ms         █           ⋯ fillet",
        "  50.0 ms   10.0 ms           █▊        ⋯ fillet",
        "   100 ms      0 s                    ▕ fillet",
    ];
    assert_eq!(rows(&page), expected, "\n{page}");
}

#[test]
fn nothing_is_said_plainly() {
    assert_eq!(render_tree(&TraceReport::default(), &TreeOptions::default()), "no worker was seen\n");
    let page = render_tree(&Build::new(7, 20).report, &TreeOptions::default());
    assert_eq!(page, "freecadcmd · pid 7 · FreeCAD 1.0.2 · OCCT 7.8.1 · 20.0 ms · exit 0\n  no operations\n");
}

#[test]
fn a_worker_known_by_its_operations_only_is_shown() {
    let mut report = job();
    report.workers.clear();
    let page = render_tree(&report, &TreeOptions::default());
    assert!(
        page.contains("freecadcmd · pid 4242 · FreeCAD 1.0.2 · OCCT 7.8.1 · 1.78 s · still running\n"),
        "{page}"
    );
}

#[test]
fn no_line_is_wider_than_asked() {
    let mut report = job();
    let deep = named("deep", "a title that goes on and on {object} and on", None);
    for level in 0..100_u32 {
        let mut operation = report.operations[0].clone();
        operation.probe = Arc::clone(&deep);
        operation.values = texts([("object", "箱\u{1b}[31m箱箱箱箱箱箱箱箱箱箱箱箱箱箱箱箱箱")]);
        operation.start_ns = 200_000_000 + u64::from(level);
        operation.parent_start_ns = (level > 0).then(|| operation.start_ns - 1);
        operation.exception = Some("A".repeat(200).into());
        operation.outcome = Outcome::Exception;
        report.operations.push(operation);
    }
    report.command.push("x".repeat(300));
    report.skipped.push(Skipped { file: String::new(), probe: "y".repeat(300), reason: "z\n".to_owned() });
    for options in [
        TreeOptions { width: 72, ..TreeOptions::default() },
        TreeOptions { width: 80, ascii: true, ..TreeOptions::default() },
        TreeOptions { width: 200, full: true, ..TreeOptions::default() },
    ] {
        let page = render_tree(&report, &options);
        let header = |line: &&str| !line.starts_with("freecadcmd");
        for line in page.lines().filter(header) {
            assert!(width(line) <= options.width, "{} > {}: {line}", width(line), options.width);
        }
        assert!(!page.contains('\u{1b}'));
    }
}

#[test]
fn ten_thousand_operations_are_drawn_at_once() {
    let mut build = Build::new(7, 100_000);
    let probes: Vec<_> = (0..7).map(|n| named(&format!("p{n}"), &format!("work {n}"), None)).collect();
    for n in 0..10_000_u32 {
        let at = f64::from(n) * 10.0;
        let parent = (n % 10 != 0).then(|| at - 10.0 * f64::from(n % 10));
        build.add(&probes[n as usize % probes.len()], (at, at + 5.0), parent);
    }
    let begun = std::time::Instant::now();
    let page = render_tree(&build.report, &TreeOptions::default());
    let full = render_tree(&build.report, &TreeOptions { full: true, ..TreeOptions::default() });
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    assert!(page.lines().count() < 50, "{page}");
    assert!(full.lines().count() > 10_000);
}
