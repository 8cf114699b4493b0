//! What the screen shows at each size and in each state.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::live::{EndedWorker, KindRow, OpenRow, Own, SlowRow, WorkerRow};

const LOOK: Look = Look { color: true, ascii: false };

fn snapshot() -> Snapshot {
    let worker = |pid: u32, program: &str, mib: u64| WorkerRow {
        pid,
        program: program.to_owned(),
        freecad_version: "1.0.2".to_owned(),
        occt_version: "7.8.1".to_owned(),
        flow_type: "export".to_owned(),
        job: "order-17".to_owned(),
        age_ns: 61_000_000_000,
        operations: 1234,
        failed: u64::from(pid == 4711) * 2,
        open: 0,
        cpu_share: (pid == 4711).then_some(0.97),
        resident_bytes: mib << 20,
        memory_kib: vec![mib << 8, mib << 9, mib << 10],
        ..WorkerRow::default()
    };
    let open = |depth: u32, age_ns: u64, title: &str, kind: &str, line: &str| OpenRow {
        pid: 4711,
        tid: 4711,
        depth,
        age_ns,
        title: title.to_owned(),
        kind: kind.to_owned(),
        line: line.to_owned(),
    };
    let kind = |kind: &str, count: u64, failed: u64, ms: u64| KindRow {
        kind: kind.to_owned(),
        open: 0,
        per_second: count as f64 / 10.0,
        count,
        failed,
        total_ns: count * ms * 1_000_000,
        p50_ns: ms * 1_000_000,
        p95_ns: 2 * ms * 1_000_000,
        max_ns: 3 * ms * 1_000_000,
    };
    Snapshot {
        version: "0.1.0".to_owned(),
        host: "node-1".to_owned(),
        at_ms: 1_000_000,
        up_seconds: 100,
        own: Own { cpu_ns: 0, cpu_share: 0.004, resident_bytes: 20 << 20 },
        worker_count: 2,
        workers: vec![worker(4711, "freecadcmd", 300), worker(5, "python3.11", 40)],
        open: vec![
            open(0, 3_200_000_000, "recompute document Plate", "recompute document", ""),
            open(1, 3_000_000_000, "boolean cut", "boolean cut", "plate.py:14 in drill"),
        ],
        kinds: vec![kind("boolean cut", 111, 1, 10), kind("recompute document", 6, 0, 54)],
        slow: vec![SlowRow {
            at_ms: 940_000,
            pid: 4711,
            program: "freecadcmd".to_owned(),
            job: "order-17".to_owned(),
            title: "boolean union".to_owned(),
            outcome: "exception".to_owned(),
            exception: "Standard_Failure".to_owned(),
            duration_ns: 2_500_000_000,
            line: "plate.py:9 in join".to_owned(),
            within: vec!["recompute Part::Fuse Joined".to_owned()],
            memory_bytes: 0,
        }],
        ended: vec![EndedWorker {
            at_ms: 990_000,
            pid: 44,
            program: "freecadcmd".to_owned(),
            how: "crash".to_owned(),
            code: Some(1),
            signal: "SIGSEGV".to_owned(),
            lived_ns: 5_100_000_000,
            operations: 7,
            failed: 1,
            ..EndedWorker::default()
        }],
        ..Snapshot::default()
    }
}

fn drawn(snapshot: &Snapshot, keys: &str, look: Look, (columns, rows): (u16, u16), passed_ns: u64) -> Buffer {
    let mut state = State::default();
    for key in keys.chars() {
        let code = if key == '\n' { KeyCode::Enter } else { KeyCode::Char(key) };
        state.press(KeyEvent::new(code, KeyModifiers::NONE));
    }
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    terminal
        .draw(|frame| draw(frame, &mut state, &look, snapshot, passed_ns, "agent http://n:9777"))
        .unwrap();
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> Vec<String> {
    let rows = buffer.content().chunks(usize::from(buffer.area().width));
    rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned())
        .collect()
}

/// The picture of 80 × 24, which fits an ssh session.
#[test]
fn everything_fits_eighty_columns() {
    let picture = text(&drawn(&snapshot(), "", LOOK, (80, 24), 0));
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/top/draw/80x24.txt");
    if std::env::var_os("CADSCOPE_WRITE").is_some() {
        std::fs::write(&path, picture.join("\n") + "\n").unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert!(expected.trim_end() == picture.join("\n"), "\n{}\n", picture.join("\n"));
}

#[test]
fn bars_grow_between_snapshots() {
    let bar = |passed_ns: u64| {
        let picture = text(&drawn(&snapshot(), "", LOOK, (80, 24), passed_ns));
        picture[3].chars().filter(|cell| "▏▎▍▌▋▊▉█".contains(*cell)).count()
    };
    assert!(bar(0) < bar(1_000_000_000), "{} {}", bar(0), bar(1_000_000_000));
    let later = text(&drawn(&snapshot(), "", LOOK, (80, 24), 1_000_000_000));
    assert!(later[3].contains("4.20 s"), "{}", later[3]);
}

#[test]
fn colours_say_what_signs_say_and_can_be_off() {
    let colours = |look: Look| {
        let buffer = drawn(&snapshot(), "", look, (120, 40), 0);
        let colours = buffer.content().iter().map(|cell| (cell.fg, cell.bg));
        let mut colours: Vec<_> = colours.filter(|both| *both != (Color::Reset, Color::Reset)).collect();
        colours.dedup();
        colours
    };
    let rich = colours(LOOK);
    assert!(
        rich.contains(&(Color::Red, Color::Reset)) && rich.contains(&(Color::Cyan, Color::Reset)),
        "{rich:?}"
    );
    assert_eq!(colours(Look { color: false, ascii: false }), []);
}

#[test]
fn a_terminal_without_utf8_gets_ascii() {
    let mut snapshot = snapshot();
    snapshot.workers[0].program = "größe".to_owned();
    for keys in ["", "?", "/cut", "4", "5"] {
        let picture = text(&drawn(&snapshot, keys, Look { color: true, ascii: true }, (100, 40), 0));
        assert!(picture.iter().all(|row| row.is_ascii()), "{keys}\n{}", picture.join("\n"));
    }
}

#[test]
fn no_size_is_too_small_and_no_name_steers() {
    let mut snapshot = snapshot();
    for text in [&mut snapshot.workers[0].program, &mut snapshot.open[0].title, &mut snapshot.slow[0].title] {
        *text = "\u{1b}[2J\u{202e}evil\r\n".repeat(40);
    }
    snapshot.host = "a\u{7}b".to_owned();
    for (columns, rows) in [(1, 1), (3, 2), (10, 5), (40, 10), (80, 24), (300, 100)] {
        for keys in ["", "?", "/x", "1", "2", "3", "4", "5"] {
            let picture = text(&drawn(&snapshot, keys, LOOK, (columns, rows), 0));
            assert!(picture.iter().all(|row| !row.contains(char::is_control) && !row.contains('\u{202e}')));
        }
    }
}

#[test]
fn a_filter_leaves_what_has_the_word() {
    let picture = text(&drawn(&snapshot(), "/python\n", LOOK, (80, 24), 0)).join("\n");
    assert!(picture.contains("python3.11") && !picture.contains("4711"), "{picture}");
    assert!(picture.contains("1 of 2") && picture.contains("filter: python"), "{picture}");
}

#[test]
fn panels_share_the_rows_fairly() {
    assert_eq!(share(20, &[0, 100, 100, 1]), [2, 8, 7, 3]);
    assert_eq!(share(20, &[0, 0]), [2, 18]);
    assert_eq!(share(5, &[9, 9, 9]), [4, 1, 0]);
    assert_eq!(share(0, &[9]), [0]);
}

#[test]
fn the_locale_and_no_color_are_honoured() {
    let look = |set: &[(&str, &str)]| {
        Look::from_environment(|name| set.iter().find(|pair| pair.0 == name).map(|pair| pair.1.to_owned()))
    };
    let both = |look: Look| (look.color, look.ascii);
    assert_eq!(both(look(&[("LANG", "de_DE.UTF-8")])), (true, false));
    assert_eq!(both(look(&[("LANG", "C.utf8"), ("NO_COLOR", "1")])), (false, false));
    assert_eq!(both(look(&[("LANG", "C.UTF-8"), ("LC_ALL", "C"), ("NO_COLOR", "")])), (true, true));
    assert_eq!(both(look(&[("TERM", "dumb")])), (false, true));
}
