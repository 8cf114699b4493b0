//! Promise: docs/metrics.md lists every family that the agent exports, with its labels and its meaning.
//!
//! `CADSCOPE_WRITE=1` writes it: `cargo xtask docs` does.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "clippy.toml allows it in test functions, but not in what they call"
)]

use std::fmt::Write as _;
use std::path::Path;

use cadscope::catalog::{Catalog, ranges};
use cadscope::export::metrics::families::{Description, describe};
use cadscope::export::metrics::{BYTES_BOUNDS, COUNT_BOUNDS, DURATION_BOUNDS, Kind};

const HEAD: &str = "# Metrics

Made from the registry by `cargo xtask docs`; a test compares it.

Every family that an agent exports on `/metrics`: in the text formats with classic buckets, in protobuf with native ones
beside them. Observations of the duration histograms carry the trace as an exemplar where spans are exported. Ids (job,
request, process, trace) are never labels. `freecad_version` and `occt_version` are empty where a worker has no FreeCAD or
its version is not known; `namespace`, `pod` and `container` are there only for workers in a container.

A family has series only once something was observed. Which build shows what: [support-matrix.md](support-matrix.md).
A probe of the user's own adds its family: [your own probes](probes.md).
";

fn table(title: &str, text: &str, families: &[(&String, &Description)]) -> String {
    let mut page =
        format!("\n## {title}\n\n{text}\n\n| family | type | labels | what it is |\n|---|---|---|---|\n");
    for (name, family) in families {
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Durations => "histogram, seconds",
            Kind::Counts => "histogram, count",
            Kind::Bytes => "histogram, bytes",
        };
        let _ = writeln!(page, "| `{name}` | {kind} | {} | {} |", labels.join(", "), family.help);
    }
    page
}

fn numbers(bounds: &[f64]) -> String {
    bounds.iter().map(f64::to_string).collect::<Vec<_>>().join(", ")
}

fn page() -> String {
    let all = describe(&Catalog::builtin().unwrap());
    let of_agent = |name: &str| name.starts_with("cadscope_") || name.starts_with("process_");
    let pick = |wanted: &dyn Fn(&str, &Description) -> bool| {
        all.iter().filter(|(name, family)| wanted(name, family)).collect::<Vec<_>>()
    };
    let mut page = HEAD.to_owned();
    page += &table(
        "Operations",
        "Measured by probes of the catalogue. `status` is ok, error, exception or killed.",
        &pick(&|_, family| !family.probes.is_empty()),
    );
    page += &table(
        "Flows and workers",
        "From the life of worker processes, and over all operations.",
        &pick(&|name, family| family.probes.is_empty() && !of_agent(name)),
    );
    page +=
        &table("The agent on itself", "What it observes, loses and costs.", &pick(&|name, _| of_agent(name)));
    page += "\n## Ranges\n\nLabels that name a range of a number sort as the ranges do.\n\n";
    let counts: Vec<_> = ranges::COUNT_RANGES.iter().map(|(_, name)| format!("`{name}`")).collect();
    let sizes: Vec<_> = ranges::SIZE_RANGES.iter().map(|(_, name)| format!("`{name}`")).collect();
    let _ = writeln!(page, "- `solids_range`, `doc_complexity`, `lcs_count_range`: {}", counts.join(", "));
    let _ = writeln!(page, "- `file_size_range`: {}, `unknown`", sizes.join(", "));
    page += "\n## Buckets\n\nUpper bounds of the classic buckets. Native buckets are 9 % wide.\n\n";
    let _ = writeln!(page, "- seconds: {}", numbers(DURATION_BOUNDS));
    let _ = writeln!(page, "- counts: {}", numbers(COUNT_BOUNDS));
    let _ = writeln!(page, "- bytes: {}", numbers(BYTES_BOUNDS));
    page
}

#[test]
fn the_metric_reference_is_what_the_registry_has() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    if std::env::var_os("CADSCOPE_WRITE").is_some() {
        std::fs::write(&file, page()).unwrap();
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == page(),
        "docs/metrics.md is not what the registry has: run `cargo xtask docs`, or this test with CADSCOPE_WRITE=1"
    );
}
