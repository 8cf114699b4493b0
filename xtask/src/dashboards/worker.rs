//! Turns the question "what is this worker doing, and why is it slow?" into a dashboard.

use super::fleet::{ENDS, variables};
use super::model::{Dashboard, Draw, Panel, label_variable};
use super::query::{
    By, buckets, gained, or_idle, or_zero, quantile_or_idle, rate, select, select_where, summed,
};

/// Families of durations with the label that tells their operations apart, and what these are called together.
const OPERATIONS: [(&str, &str, &str); 8] = [
    ("occt_boolean_duration_seconds", "operation", "boolean"),
    ("occt_feature_duration_seconds", "feature", "feature"),
    ("freecad_object_recompute_duration_seconds", "class", "recompute"),
    ("freecad_document_load_seconds", "source", "load"),
    ("export_duration_seconds", "format", "export"),
    ("a4_constraint_solve_duration_seconds", "solver", "solve"),
    ("topology_hash_compute_duration_seconds", "scope", "topology"),
    ("material_property_apply_duration_seconds", "property", "material"),
];

/// What narrows a family to the pods chosen.
const POD: &str = r#"pod=~"$pod""#;

pub(super) fn dashboard() -> Dashboard {
    let mut all = variables();
    all.push(label_variable(
        "pod",
        "pod",
        "Pod",
        r#"freecad_worker_resident_memory_bytes{namespace=~"$namespace"}"#,
        "Of the worker; narrows what is known by pod: memory, CPU time, kills. Choose the node for the rest",
    ));
    Dashboard {
        name: "worker",
        title: "cadscope / one worker",
        description: "What the workers of one node or pod are doing now, which operations are slow, and what they need.",
        variables: all,
        from: "now-30m",
        rows: vec![
            ("Now", now()),
            ("Operations in flight", in_flight()),
            ("Slow operations", slow()),
            ("Memory and CPU", memory()),
            ("Ends", ends()),
        ],
    }
}

fn pods(family: &str) -> String {
    select_where(family, By::Pods, POD)
}

fn now() -> Vec<Panel> {
    vec![
        Panel::new(Draw::Stat, "Workers", "short", "Processes alive that have loaded FreeCAD or OCCT.")
            .query("workers", or_zero(&summed(&select("freecad_workers", By::Versions), ""))),
        Panel::new(Draw::Stat, "In flight", "short", "Operations that have begun and not ended.")
            .query("in flight", or_zero(&summed(&select("occt_operations_in_flight", By::Versions), ""))),
        Panel::new(Draw::Stat, "Oldest operation", "s", "Age of the oldest operation that has not ended.")
            .query("age", or_zero(&format!("max({})", select("occt_operation_oldest_seconds", By::Versions))))
            .thresholds(&[(120.0, "orange"), (600.0, "red")]),
        Panel::new(Draw::Stat, "Resident memory", "bytes", "Resident memory of the workers, all together.")
            .query("resident", or_zero(&summed(&pods("freecad_worker_resident_memory_bytes"), ""))),
        Panel::new(
            Draw::Stat,
            "Highest peak",
            "bytes",
            "The most memory that one of the workers alive ever had resident.",
        )
        .query("peak", or_zero(&format!("max({})", pods("freecad_worker_peak_memory_bytes")))),
        Panel::new(
            Draw::Stat,
            "Out-of-memory kills",
            "short",
            "Workers that the kernel killed in the time shown because memory ran out.",
        )
        .query("kills", or_zero(&gained(&pods("freecad_worker_oom_kills_total"), "")))
        .thresholds(&[(1.0, "red")]),
    ]
}

fn in_flight() -> Vec<Panel> {
    vec![
        Panel::new(
            Draw::Stack,
            "Operations in flight",
            "short",
            "Operations that have begun and not ended, by kind; an operation inside another counts too.",
        )
        .query(
            "{{operation}}",
            or_idle(
                &format!("{} > 0", summed(&select("occt_operations_in_flight", By::Versions), "operation")),
                "operation",
                "idle",
            ),
        ),
        Panel::new(
            Draw::Lines,
            "Age of the oldest",
            "s",
            "Of the operations that have not ended, by kind. A line that rises steadily is a hung operation; \
             OCCTOperationHung fires at 10 minutes.",
        )
        .query(
            "{{operation}}",
            or_idle(
                &format!(
                    "max by (operation) ({}) > 0",
                    select("occt_operation_oldest_seconds", By::Versions)
                ),
                "operation",
                "idle",
            ),
        )
        .thresholds(&[(600.0, "red")]),
    ]
}

/// One query over all families of durations, each series with a label `what`.
fn over_all(top: u32, of: impl Fn(&str, &str) -> String) -> String {
    let each = OPERATIONS.iter().map(|(family, label, kind)| {
        let what = of(family, label);
        format!(r#"sum by (what) (label_replace({what}, "what", "{kind} $1", "{label}", "(.*)"))"#)
    });
    let all: Vec<_> = each.collect();
    or_idle(&format!("topk({top}, {})", all.join(" or ")), "what", "none yet")
}

fn slow() -> Vec<Panel> {
    let total = over_all(25, |family, label| gained(&select(&format!("{family}_sum"), By::Versions), label));
    let count =
        over_all(100, |family, label| gained(&select(&format!("{family}_count"), By::Versions), label));
    let tail = over_all(100, |family, label| {
        let buckets = gained(&select(&format!("{family}_bucket"), By::Versions), &format!("le, {label}"));
        format!("histogram_quantile(0.95, {buckets})")
    });
    vec![
        Panel::new(
            Draw::Table,
            "Where the time goes",
            "s",
            "Operations by kind in the time shown: all their time, how many, and the 95th percentile. Operations lie \
             inside one another, so the times overlap.",
        )
        .query("", total)
        .query("", count)
        .query("", tail)
        .columns(&[("what", "Operation"), ("Value #A", "Total"), ("Value #B", "Count"), ("Value #C", "p95")])
        .units(&[("Count", "short")]),
        Panel::new(
            Draw::Heat,
            "Booleans",
            "s",
            "How many booleans took how long. The dots are exemplars: a click opens the trace, whose span has the line \
             of the job's script.",
        )
        .traced("{{le}}", buckets("occt_boolean_duration_seconds", By::Versions)),
        Panel::new(Draw::Heat, "Features", "s", "How many features took how long. The dots are traces.")
            .traced("{{le}}", buckets("occt_feature_duration_seconds", By::Versions))
            .width(8),
        Panel::new(
            Draw::Heat,
            "Recompute of objects",
            "s",
            "How many recomputes of one object took how long. The dots are traces.",
        )
        .traced("{{le}}", buckets("freecad_object_recompute_duration_seconds", By::Versions))
        .width(8),
        Panel::new(Draw::Heat, "Exports", "s", "How many exports took how long. The dots are traces.")
            .traced("{{le}}", buckets("export_duration_seconds", By::Versions))
            .width(8),
    ]
}

fn memory() -> Vec<Panel> {
    let by_pod = |what: String| or_idle(&what, "pod", "no worker");
    vec![
        Panel::new(
            Draw::Lines,
            "Resident memory",
            "bytes",
            "Of the workers of a container, all together, and the most that one of them ever had (dashed).",
        )
        .query(
            "{{pod}} {{container}}",
            by_pod(summed(&pods("freecad_worker_resident_memory_bytes"), "pod, container")),
        )
        .query(
            "{{pod}} {{container}} peak",
            by_pod(format!("max by (pod, container) ({})", pods("freecad_worker_peak_memory_bytes"))),
        )
        .right_axis("/peak$/", "bytes"),
        Panel::new(
            Draw::Lines,
            "Memory of operations",
            "bytes",
            "95th percentile of what an operation added to its worker's resident memory at its peak.",
        )
        .traced(
            "{{operation}}",
            quantile_or_idle(0.95, "occt_operation_memory_bytes", By::Versions, "operation"),
        )
        .thresholds(&[(1_610_612_736.0, "orange")]),
        Panel::new(Draw::Lines, "Cores used", "short", "CPU time of the workers of a container, per second.")
            .query(
                "{{pod}} {{container}}",
                by_pod(summed(
                    &format!("rate({}[$__rate_interval])", pods("freecad_worker_cpu_seconds_total")),
                    "pod, container",
                )),
            ),
        Panel::new(
            Draw::Table,
            "Out-of-memory kills",
            "short",
            "Workers that the kernel killed in the time shown, by the operation they were in and by container.",
        )
        .query(
            "",
            or_idle(
                &format!(
                    "{} > 0",
                    gained(&pods("freecad_worker_oom_kills_total"), "operation, namespace, pod, container")
                ),
                "operation",
                "none",
            ),
        )
        .columns(&[
            ("operation", "In operation"),
            ("namespace", "Namespace"),
            ("pod", "Pod"),
            ("container", "Container"),
            ("Value", "Kills"),
        ])
        .thresholds(&[(1.0, "red")]),
    ]
}

fn ends() -> Vec<Panel> {
    let completed = "model_generation_completed_total";
    vec![
        Panel::new(Draw::Stack, "Flows that ended", "cpm", "By what happened to the worker.")
            .query(
                "{{status}}",
                or_idle(&format!("60 * {}", rate(completed, By::Versions, "status")), "status", "idle"),
            )
            .colours(ENDS),
        Panel::new(Draw::Stack, "Exits", "cpm", "Workers that exited, by reason and signal.").query(
            "{{reason}} {{signal}}",
            or_idle(
                &format!("60 * {}", rate("freecad_worker_exits_total", By::Versions, "reason, signal")),
                "reason",
                "idle",
            ),
        ),
    ]
}
