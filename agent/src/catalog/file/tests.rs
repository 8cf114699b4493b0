//! Files as a user writes them, right and wrong, and what is said of them.

use proptest::prelude::*;

use super::super::{Catalog, Comparison};

const GOOD: &str = r#"
[[probe]]
id = "mine.gear"
function = "Gear::build(int)"
symbols = ["_ZN4Gear5buildEi"]
title = "gear {teeth}"
metric = "gear_build_seconds"
help = "Time to build a gear."
error_when = ["ret == 0"]
[probe.labels]
status = "status"
teeth = { value = "teeth", range = true }
[probe.attributes]
"cad.teeth" = "teeth"
[[probe.layout]]
when = ["occt >= 7.6", "freecad < 1.1"]
[probe.layout.enter]
teeth = "i32(arg1)"
[probe.layout.leave]
ret = "u8(ret)"
"#;

fn add(text: &str) -> Result<Catalog, String> {
    let mut catalog = Catalog::default();
    catalog.add(text, "gears.toml").map(|()| catalog).map_err(|error| error.to_string())
}

#[test]
fn a_probe_of_the_user_is_read() {
    let catalog = add(GOOD).unwrap();
    let probe = &catalog.probes[0];
    assert_eq!(probe.error_when, [Comparison { value: "ret".to_owned(), number: 0, equal: true }]);
    // The layout that was given, and one without values for all other builds.
    assert_eq!(probe.layouts.len(), 2);
    assert!(probe.layout_for("7.8.1", "1.0").unwrap().values.len() == 2);
    assert!(probe.layout_for("7.8.1", "1.1").unwrap().values.is_empty());
}

#[test]
fn what_is_wrong_is_named_with_file_probe_key_and_fix() {
    for (from, to, wanted) in [
        ("title =", "titel =", "gears.toml: probe `mine.gear`: `titel` is not known; did you mean `title`?"),
        ("range = true", "rnage = true", "`labels.teeth.rnage` is not known; did you mean `range`?"),
        (
            "[probe.layout.leave]",
            "[probe.layout.leaves]",
            "`layout.leaves` is not known; did you mean `leave`?",
        ),
        ("id = \"mine.gear\"\n", "", "probe `#1`: `id` is missing; add `id = \"…\"`"),
        ("_ZN4Gear5buildEi", "Gear::build(int)", "nm -D"),
        ("[\"_ZN4Gear5buildEi\"]", "[]", "`symbols` is missing"),
        ("gear_build_seconds", "gear_build", "must end in `_seconds`"),
        ("help = \"Time to build a gear.\"", "", "say what gear_build_seconds measures"),
        ("ret == 0", "ret = 0", "has not the form `value == number`"),
        ("ret == 0", "rte == 0", "`error_when` uses `rte`, which no layout reads"),
        ("gear {teeth}", "gear {tooth}", "`title` uses `tooth`"),
        ("\"cad.teeth\" = \"teeth\"", "\"cad.teeth\" = \"t\"", "`attributes.cad.teeth` uses `t`"),
        ("i32(arg1)", "i32(rsi)", "`layout.enter.teeth` `rsi` is no register"),
        ("i32(arg1)", "i32(ret)", "[probe.layout.leave]"),
        ("occt >= 7.6", "occt = 7.6", "has not the form `occt >= 7.8`"),
        ("occt >= 7.6", "qt >= 5", "has not the form `occt >= 7.8`"),
        ("status = \"status\"", "status = \"ok\"", "must be \"status\""),
        ("status = \"status\"", "pod = \"status\"", "cadscope adds itself"),
        ("range = true", "range = true, workbench = true", "takes one of"),
        ("title = \"gear {teeth}\"", "title = 7", "is a integer; write a text in quotes"),
        ("function =", "function", "gears.toml: TOML parse error at line 4"),
        ("[[probe]]", "[probe]", "begin each probe with [[probe]]"),
        ("[[probe]]", "x = 1\n[[probe]]", "unknown key `x`"),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let message = add(&GOOD.replacen(from, to, 1)).unwrap_err();
        assert!(message.contains(wanted), "{wanted}\n{message}");
        assert!(message.starts_with("gears.toml: "), "{message}");
    }
}

#[test]
fn an_id_is_taken_once_and_a_refused_file_changes_nothing() {
    let mut catalog = add(GOOD).unwrap();
    let other = GOOD.replace("mine.gear", "mine.wheel");
    let message = catalog.add(&format!("{other}{GOOD}"), "more.toml").unwrap_err().to_string();
    assert_eq!(message, "more.toml: probe `mine.gear`: `id` is taken by another probe; choose a new one");
    assert_eq!(catalog.probes.len(), 1);
    catalog.add(&other, "more.toml").unwrap();
    assert_eq!(catalog.probes.len(), 2);
}

#[test]
fn probes_of_one_family_have_the_same_labels() {
    let mut catalog = add(GOOD).unwrap();
    let other = GOOD.replace("mine.gear", "mine.wheel").replace("status = \"status\"", "");
    let message = catalog.add(&other, "more.toml").unwrap_err().to_string();
    assert!(message.contains("`labels` are teeth, but gear_build_seconds has status, teeth"), "{message}");
}

#[test]
fn a_layout_that_can_never_be_used_is_refused() {
    let text = format!("{GOOD}[[probe.layout]]\n[[probe.layout]]\n");
    assert!(add(&text).unwrap_err().contains("move that one to the end"));
}

#[test]
fn the_example_of_the_documentation_is_right() {
    let source = include_str!("../../catalog.rs");
    let begin = source.find("//! [[probe]]").unwrap();
    let lines = source[begin..].lines().take_while(|line| *line != "//! ```");
    let text: Vec<&str> = lines.map(|line| line.trim_start_matches("//!")).collect();
    let catalog = add(&text.join("\n")).unwrap();
    assert_eq!(catalog.probes[0].layouts[0].values.len(), 8);
}

proptest! {
    #[test]
    fn no_damage_makes_the_reader_panic(at in 0usize..700, cut in 0usize..30, put in "\\PC{0,6}") {
        let mut text = GOOD.to_owned();
        let at = at.min(text.len());
        text.replace_range(at..(at + cut).min(text.len()), &put);
        let _ = add(&text);
    }
}
