//! Turns the question "can the numbers be trusted, and what does the agent cost?" into a dashboard.

use super::model::{Dashboard, Draw, Panel, data_source_variable, label_variable};
use super::query::{By, buckets, gained, or_idle, or_zero, rate, select, summed};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        name: "agent",
        title: "cadscope / agents",
        description: "The agents on themselves: what they observe, what they miss, what they use.",
        variables: vec![
            data_source_variable(),
            label_variable("node", "instance", "Node", "cadscope_build_info", "Which agent"),
        ],
        from: "now-1h",
        rows: vec![
            ("Now", now()),
            ("Coverage", coverage()),
            ("Losses", losses()),
            ("Cost", cost()),
            ("Spans", spans()),
        ],
    }
}

/// Of a counter, over the time shown, on all nodes.
fn total(title: &str, family: &str, description: &str) -> Panel {
    Panel::new(Draw::Stat, title, "short", description)
        .query("total", or_zero(&gained(&select(family, By::Node), "")))
        .thresholds(&[(1.0, "orange")])
}

/// Of a counter, per second, by a label.
fn by(title: &str, family: &str, label: &str, description: &str) -> Panel {
    Panel::new(Draw::Stack, title, "cps", description)
        .query(&format!("{{{{{label}}}}}"), or_idle(&rate(family, By::Node, label), label, "none"))
        .width(8)
}

fn now() -> Vec<Panel> {
    vec![
        Panel::new(Draw::Stat, "Agents", "short", "Agents that answer their scrapes.")
            .query("agents", or_zero(&format!("count({})", select("cadscope_build_info", By::Node)))),
        Panel::new(Draw::Stat, "Probes attached", "short", "Probes attached now, over all files and nodes.")
            .query("attached", or_zero(&summed(&select("cadscope_probes_attached", By::Node), ""))),
        total(
            "Events lost",
            "cadscope_events_lost_total",
            "What the kernel side could not record in the time shown.",
        ),
        total(
            "Workers missed",
            "cadscope_workers_missed_total",
            "Workers that could not be observed in the time shown, or not from their beginning.",
        ),
        total(
            "Records dropped",
            "cadscope_records_dropped_total",
            "Records that agents received in the time shown and could not use.",
        ),
        total(
            "Label sets over the limit",
            "cadscope_series_dropped_total",
            "Label sets in the time shown that were over a family's limit of series.",
        ),
    ]
}

fn coverage() -> Vec<Panel> {
    vec![
        Panel::new(Draw::Lines, "Probes attached", "short", "By node; rises when a worker maps a new library.")
            .query(
                "{{instance}}",
                or_idle(&summed(&select("cadscope_probes_attached", By::Node), "instance"), "instance", "none"),
            )
            .width(8),
        Panel::new(
            Draw::Lines,
            "Probes skipped",
            "short",
            "By reason: the file does not have the function, or it could not be placed there. /status names each.",
        )
        .query(
            "{{reason}}",
            or_idle(&summed(&select("cadscope_probes_skipped", By::Node), "reason"), "reason", "none"),
        )
        .width(8),
        Panel::new(
            Draw::Heat,
            "Time to the first probe",
            "s",
            "From a worker's exec until its first probe is attached. Operations in that time are missed.",
        )
        .query("{{le}}", buckets("cadscope_attach_latency_seconds", By::Node))
        .width(8),
        Panel::new(Draw::Lines, "Workers", "cps", "Workers discovered, per second.")
            .query(
                "{{instance}}",
                or_idle(&rate("cadscope_workers_seen_total", By::Node, "instance"), "instance", "none"),
            )
            .width(8),
        by("Workers missed", "cadscope_workers_missed_total", "reason", "By reason, per second."),
        Panel::new(Draw::Table, "Versions of the agent", "short", "How many agents run which version.")
            .query(
                "",
                or_idle(
                    &format!("count by (version) ({})", select("cadscope_build_info", By::Node)),
                    "version",
                    "none",
                ),
            )
            .columns(&[("version", "Version"), ("Value", "Agents")])
            .width(8),
    ]
}

fn losses() -> Vec<Panel> {
    vec![
        by(
            "Events lost",
            "cadscope_events_lost_total",
            "reason",
            "What the kernel side could not record, per second, by reason. CadscopeLosingEvents fires above zero.",
        ),
        by(
            "Records dropped",
            "cadscope_records_dropped_total",
            "reason",
            "Records that agents received and could not use, per second, by reason.",
        ),
        by(
            "Label sets over the limit",
            "cadscope_series_dropped_total",
            "family",
            "By family, per second; their observations are in the series whose labels say overflow.",
        ),
    ]
}

fn cost() -> Vec<Panel> {
    let lines = |title: &str, unit: &'static str, what: String, description: &str| {
        Panel::new(Draw::Lines, title, unit, description)
            .query("{{instance}}", or_idle(&summed(&what, "instance"), "instance", "none"))
            .width(6)
    };
    let cpu = format!("rate({}[$__rate_interval])", select("process_cpu_seconds_total", By::Node));
    let records = format!("rate({}[$__rate_interval])", select("cadscope_events_received_total", By::Node));
    vec![
        lines("CPU", "percentunit", agents_only(&cpu), "Share of one core that the agent uses, by node."),
        lines(
            "Resident memory",
            "bytes",
            agents_only(&select("process_resident_memory_bytes", By::Node)),
            "Of the agent, by node; the kernel's maps are not in it.",
        ),
        lines(
            "Records received",
            "cps",
            records,
            "Operations and steps of workers' lives, per second, by node.",
        ),
        lines(
            "Series",
            "short",
            select("cadscope_series", By::Node),
            "Series that the agent holds, by node.",
        ),
    ]
}

/// Every exporter has `process_*`; this is the agents' alone.
fn agents_only(what: &str) -> String {
    format!("{what} and on (instance, job) cadscope_build_info")
}

fn spans() -> Vec<Panel> {
    vec![
        Panel::new(
            Draw::Lines,
            "Spans exported",
            "cps",
            "Spans that the collector took, per second. Only with --otlp-endpoint.",
        )
        .query(
            "{{instance}}",
            or_idle(&rate("cadscope_spans_exported_total", By::Node, "instance"), "instance", "none"),
        )
        .width(8),
        by(
            "Spans dropped",
            "cadscope_spans_dropped_total",
            "reason",
            "Spans that were not exported, per second, by reason.",
        ),
        by(
            "Failed requests",
            "cadscope_export_errors_total",
            "exporter",
            "Requests to another system that failed, per second. Observation goes on meanwhile.",
        ),
    ]
}
