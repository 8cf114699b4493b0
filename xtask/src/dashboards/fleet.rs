//! Turns the question "how are the jobs doing, everywhere?" into a dashboard.

use serde_json::Value;

use super::model::{Dashboard, Draw, Panel, data_source_variable, label_variable};
use super::query::{
    By, buckets, gain, gained, or_idle, or_zero, quantile, quantile_or_idle, rate, rate_or_idle, select,
    select_where, share, summed,
};

const WORKER: &str =
    "/d/cadscope-worker/cadscope-worker?${datasource:queryparam}&${node:queryparam}&${__url_time_range}";
const VERSIONS: &str = "/d/cadscope-versions/cadscope-versions?${datasource:queryparam}&${__url_time_range}";

/// How a flow can end, and its colour wherever it is drawn.
pub(super) const ENDS: &[(&str, &str)] = &[
    ("success", "green"),
    ("failure", "orange"),
    ("crash", "red"),
    ("oom", "purple"),
    ("killed", "dark-red"),
    ("idle", "text"),
];

/// What every dashboard over workers is narrowed by.
pub(super) fn variables() -> Vec<Value> {
    vec![
        data_source_variable(),
        label_variable(
            "namespace",
            "namespace",
            "Namespace",
            "freecad_worker_resident_memory_bytes",
            "Of the workers' pods; narrows what is known by pod: memory, CPU time, kills",
        ),
        label_variable("node", "instance", "Node", "cadscope_build_info", "Whose agent observed it"),
        label_variable(
            "freecad_version",
            "freecad_version",
            "FreeCAD",
            "freecad_workers",
            "Version of FreeCAD; empty for a worker without it, such as CadQuery",
        ),
        label_variable("occt_version", "occt_version", "OCCT", "freecad_workers", "Version of OCCT"),
    ]
}

pub(super) fn dashboard() -> Dashboard {
    let mut all = variables();
    all.push(label_variable(
        "flow_type",
        "flow_type",
        "Flow type",
        "model_generation_started_total",
        "What kind of job, from the worker's environment; narrows flows and their stages",
    ));
    Dashboard {
        name: "fleet",
        title: "cadscope / CAD workers",
        description: "FreeCAD and OCCT work of all nodes, as their cadscope agents observe it.",
        variables: all,
        from: "now-1h",
        rows: vec![
            ("Now", now()),
            ("Flows", flows()),
            ("Documents", documents()),
            ("OCCT", occt()),
            ("Assembly", assembly()),
            ("Materials and topology", materials()),
            ("Export", export()),
            ("Workbenches and workers", workers()),
        ],
    }
}

fn now() -> Vec<Panel> {
    let completed = "model_generation_completed_total";
    let failed = share(completed, By::Flow, r#"status!="success""#, "", gain);
    vec![
        Panel::new(Draw::Stat, "Workers", "short", "Processes alive that have loaded FreeCAD or OCCT.")
            .query("workers", or_zero(&summed(&select("freecad_workers", By::Versions), ""))),
        Panel::new(
            Draw::Stat,
            "Operations in flight",
            "short",
            "Operations that have begun and not ended, on all nodes.",
        )
        .query("in flight", or_zero(&summed(&select("occt_operations_in_flight", By::Versions), "")))
        .link("Workers", WORKER),
        Panel::new(
            Draw::Stat,
            "Oldest operation",
            "s",
            "Age of the oldest operation that has not ended. A hung boolean shows here before it ends; \
             OCCTOperationHung fires at 10 minutes.",
        )
        .query("age", or_zero(&format!("max({})", select("occt_operation_oldest_seconds", By::Versions))))
        .thresholds(&[(120.0, "orange"), (600.0, "red")])
        .link("Workers", WORKER),
        Panel::new(
            Draw::Stat,
            "Flows that failed",
            "percentunit",
            "Share of the flows that ended in the time shown with anything but success. \
             ModelGenerationHighFailureRate fires at 10 %.",
        )
        .query("failed", or_zero(&failed))
        .thresholds(&[(0.02, "orange"), (0.1, "red")])
        .share(),
        Panel::new(
            Draw::Stat,
            "Out-of-memory kills",
            "short",
            "Workers that the kernel killed in the time shown because memory ran out.",
        )
        .query("kills", or_zero(&gained(&select("freecad_worker_oom_kills_total", By::Pods), "")))
        .thresholds(&[(1.0, "red")])
        .link("Workers", WORKER),
        Panel::new(
            Draw::Stat,
            "Events lost",
            "short",
            "What agents could not record in the time shown. Above zero, the other numbers are lower bounds.",
        )
        .query("lost", or_zero(&gained(&select("cadscope_events_lost_total", By::Node), "")))
        .thresholds(&[(1.0, "orange")])
        .link("Agents", "/d/cadscope-agent/cadscope-agent?${datasource:queryparam}&${__url_time_range}"),
    ]
}

fn flows() -> Vec<Panel> {
    let completed = "model_generation_completed_total";
    let success = r#"status="success""#;
    let rate_of = |what: &str| format!("rate({what}[$__rate_interval])");
    let by_kind = share(completed, By::Flow, success, "flow_type", rate_of);
    let overall = share(completed, By::Flow, success, "", rate_of);
    let overall = format!(r#"label_replace({overall}, "flow_type", "all", "", "")"#);
    vec![
        Panel::new(
            Draw::Lines,
            "1. Model generation success rate",
            "percentunit",
            "Share of the flows that ended with success, over all and by kind of flow; by what happened, not by \
             FreeCAD's exit status. Only while flows end.",
        )
        .query("{{flow_type}}", or_idle(&overall, "flow_type", "idle"))
        .query("{{flow_type}}", by_kind)
        .share(),
        Panel::new(
            Draw::Lines,
            "2. P95 latencies",
            "s",
            "95th percentile of each stage of a flow: from exec to the first operation (startup), then the outermost \
             operations. ModelGenerationSlow fires at 5 minutes.",
        )
        .query(
            "{{flow_type}} {{stage}}",
            quantile_or_idle(0.95, "model_generation_stage_duration_seconds", By::Stage, "stage, flow_type"),
        )
        .thresholds(&[(300.0, "orange")]),
        Panel::new(Draw::Stack, "3. Active flows", "short", "Flows that run, by kind.")
            .query("{{flow_type}}", or_idle(&summed(&select("model_generation_active", By::Flow), "flow_type"), "flow_type", "idle"))
            .width(8),
        Panel::new(
            Draw::Stack,
            "Flows that ended",
            "cpm",
            "By what happened to the worker: crash is a signal or an abort, oom a kill because memory ran out.",
        )
        .query("{{status}}", or_idle(&format!("60 * {}", rate(completed, By::Flow, "status")), "status", "idle"))
        .colours(ENDS)
        .width(8),
        Panel::new(
            Draw::Heat,
            "4. AI provider performance",
            "s",
            "Time of requests to AI providers that workers make. Only with --ai-latency.",
        )
        .traced("{{le}}", buckets("ai_provider_latency_seconds", By::Node))
        .width(8),
    ]
}

fn documents() -> Vec<Panel> {
    let created = format!("topk(10, 60 * {})", rate("freecad_object_created_total", By::Versions, "class"));
    vec![
        Panel::new(
            Draw::Lines,
            "5. Document operations",
            "s",
            "95th percentile of loading, by source, and of recomputing, by the range of the number of objects.",
        )
        .traced(
            "load {{source}}",
            quantile_or_idle(0.95, "freecad_document_load_seconds", By::Versions, "source"),
        )
        .traced(
            "recompute {{doc_complexity}} objects",
            quantile(0.95, "freecad_recompute_duration_seconds", By::Versions, "doc_complexity"),
        )
        .link("Compare versions", VERSIONS),
        Panel::new(
            Draw::Heat,
            "Recompute of documents",
            "s",
            "How many recomputes took how long. The dots are traces.",
        )
        .traced("{{le}}", buckets("freecad_recompute_duration_seconds", By::Versions)),
        Panel::new(
            Draw::Lines,
            "Slowest object classes",
            "s",
            "95th percentile of the recompute of one object, of the ten slowest classes.",
        )
        .query(
            "{{class}}",
            or_idle(
                &format!(
                    "topk(10, {})",
                    quantile(0.95, "freecad_object_recompute_duration_seconds", By::Versions, "class")
                ),
                "class",
                "idle",
            ),
        ),
        Panel::new(
            Draw::Stack,
            "Objects created",
            "cpm",
            "Objects that jobs add to their documents, of the ten most frequent classes.",
        )
        .query("{{class}}", or_idle(&created, "class", "idle")),
    ]
}

fn occt() -> Vec<Panel> {
    let booleans = "occt_boolean_duration_seconds";
    let features = "occt_feature_duration_seconds";
    let failed = |family: &str, over: &str| {
        let count = select_where(&format!("{family}_count"), By::Versions, r#"status!="ok""#);
        format!("60 * {}", summed(&format!("rate({count}[$__rate_interval])"), over))
    };
    vec![
        Panel::new(
            Draw::Lines,
            "6. OCCT operations",
            "s",
            "95th percentile of booleans, by operation, and of features. OCCTBooleanOperationSlow fires at 30 s.",
        )
        .traced("{{operation}}", quantile_or_idle(0.95, booleans, By::Versions, "operation"))
        .traced("{{feature}}", quantile(0.95, features, By::Versions, "feature"))
        .thresholds(&[(30.0, "orange")])
        .link("Compare versions", VERSIONS),
        Panel::new(Draw::Heat, "Booleans", "s", "How many booleans took how long. The dots are traces.")
            .traced("{{le}}", buckets(booleans, By::Versions)),
        Panel::new(
            Draw::Lines,
            "7. OCCT memory usage",
            "bytes",
            "95th percentile of what an operation added to its worker's resident memory at its peak. \
             OCCTHighMemoryUsage fires at 1.5 GiB.",
        )
        .traced(
            "{{operation}}",
            quantile_or_idle(0.95, "occt_operation_memory_bytes", By::Versions, "operation"),
        )
        .thresholds(&[(1_610_612_736.0, "orange")]),
        Panel::new(
            Draw::Stack,
            "Operations that failed",
            "cpm",
            "Booleans and features that ended with an error of their own, an exception or with their process; and \
             exceptions by type.",
        )
        .query("{{operation}} {{status}}", or_idle(&failed(booleans, "operation, status"), "operation", "idle"))
        .query("{{feature}} {{status}}", failed(features, "feature, status"))
        .query(
            "{{exception}}",
            format!("topk(5, 60 * {})", rate("occt_exceptions_total", By::Versions, "exception")),
        ),
    ]
}

fn assembly() -> Vec<Panel> {
    vec![
        Panel::new(
            Draw::Lines,
            "8. Assembly solver",
            "s",
            "95th percentile of constraint solving, by solver, and of the iterations of one solve (right axis). \
             Assembly4SolverSlow fires at 15 s, Assembly4ExcessiveIterations at 200.",
        )
        .traced(
            "{{solver}}",
            quantile_or_idle(0.95, "a4_constraint_solve_duration_seconds", By::Versions, "solver"),
        )
        .query(
            "{{solver}} iterations",
            quantile_or_idle(0.95, "a4_solver_iterations_per_solve", By::Versions, "solver"),
        )
        .right_axis("/iterations$/", "short")
        .thresholds(&[(15.0, "orange")]),
        Panel::new(
            Draw::Lines,
            "9. LCS resolution",
            "s",
            "95th percentile of placing local coordinate systems in one recompute, by the range of their number.",
        )
        .query(
            "{{lcs_count_range}}",
            quantile_or_idle(0.95, "a4_lcs_resolution_duration_seconds", By::Versions, "lcs_count_range"),
        ),
    ]
}

fn materials() -> Vec<Panel> {
    vec![
        Panel::new(
            Draw::Stack,
            "10. Material library",
            "cpm",
            "Accesses to material libraries: found, not found, failed.",
        )
        .query(
            "{{result}}",
            or_idle(
                &format!("60 * {}", rate("material_library_access_total", By::Versions, "result")),
                "result",
                "idle",
            ),
        )
        .colours(&[("hit", "green"), ("miss", "orange"), ("error", "red"), ("idle", "text")])
        .width(8),
        Panel::new(
            Draw::Lines,
            "11. Material application",
            "s",
            "95th percentile of applying a material's property or appearance.",
        )
        .query(
            "{{property}}",
            quantile_or_idle(0.95, "material_property_apply_duration_seconds", By::Versions, "property"),
        )
        .query(
            "appearance {{appearance_type}}",
            quantile(0.95, "material_appearance_apply_duration_seconds", By::Versions, "appearance_type"),
        )
        .width(8),
        Panel::new(
            Draw::Lines,
            "12. Topology hash",
            "s",
            "95th percentile of computing element maps and string hashes, by scope.",
        )
        .query(
            "{{scope}}",
            quantile_or_idle(0.95, "topology_hash_compute_duration_seconds", By::Versions, "scope"),
        )
        .width(8),
    ]
}

fn export() -> Vec<Panel> {
    let validation = "deterministic_export_validation_total";
    let passed = share(validation, By::Versions, r#"result="pass""#, "format", |what| {
        format!("rate({what}[$__rate_interval])")
    });
    vec![
        Panel::new(
            Draw::Lines,
            "13. Export validation",
            "percentunit",
            "Share of the exports that were the same as the earlier export of the same inputs, by \
             format; volatile header fields do not count.",
        )
        .query("{{format}}", or_idle(&passed, "format", "idle"))
        .share()
        .width(8),
        Panel::new(
            Draw::Lines,
            "14. Export duration",
            "s",
            "95th percentile of exports, by format and by the range of the size of the written file.",
        )
        .traced(
            "{{format}} {{file_size_range}}",
            quantile_or_idle(0.95, "export_duration_seconds", By::Versions, "format, file_size_range"),
        )
        .width(8),
        Panel::new(Draw::Heat, "Exports", "s", "How many exports took how long. The dots are traces.")
            .traced("{{le}}", buckets("export_duration_seconds", By::Versions))
            .width(8),
    ]
}

fn workers() -> Vec<Panel> {
    let invocations = gained(&select("freecad_workbench_invocations_total", By::Versions), "workbench");
    let unusable =
        select_where("freecad_workbench_compatibility_total", By::Versions, r#"compatible="false""#);
    vec![
        Panel::new(
            Draw::Bars,
            "15. Workbench usage",
            "short",
            "Workbenches whose modules were loaded in the time shown, and loads that failed.",
        )
        .query("{{workbench}}", or_idle(&format!("sort_desc({invocations})"), "workbench", "none yet"))
        .query("{{workbench}} failed", format!("{} > 0", gained(&unusable, "workbench"))),
        Panel::new(
            Draw::Lines,
            "16. Worker resources",
            "bytes",
            "Resident memory of the workers by namespace and pod, and the cores that they use (right axis).",
        )
        .query(
            "{{namespace}} {{pod}} memory",
            or_idle(
                &summed(&select("freecad_worker_resident_memory_bytes", By::Pods), "namespace, pod"),
                "pod",
                "no worker",
            ),
        )
        .query(
            "{{namespace}} {{pod}} cores",
            or_idle(
                &rate("freecad_worker_cpu_seconds_total", By::Pods, "namespace, pod"),
                "pod",
                "no worker",
            ),
        )
        .right_axis("/cores$/", "short")
        .link("Workers", WORKER),
        Panel::new(
            Draw::Stack,
            "Exits",
            "cpm",
            "Workers that exited, by reason; what FreeCAD reports as success can still be a failed flow.",
        )
        .query(
            "{{reason}} {{signal}}",
            or_idle(
                &format!("60 * {}", rate("freecad_worker_exits_total", By::Versions, "reason, signal")),
                "reason",
                "idle",
            ),
        ),
        Panel::new(
            Draw::Lines,
            "Workers by version",
            "short",
            "Workers alive, by FreeCAD's and OCCT's version.",
        )
        .query(
            "FreeCAD {{freecad_version}}, OCCT {{occt_version}}",
            or_idle(
                &summed(&select("freecad_workers", By::Versions), "freecad_version, occt_version"),
                "freecad_version",
                "none",
            ),
        ),
        Panel::new(
            Draw::Stack,
            "AI provider requests",
            "cpm",
            "Requests of workers to AI providers, by status. Only with --ai-latency.",
        )
        .query(
            "{{provider}} {{status}}",
            or_idle(
                &format!("60 * {}", rate("ai_provider_requests_total", By::Node, "provider, status")),
                "provider",
                "idle",
            ),
        ),
        Panel::new(
            Draw::Lines,
            "Solver iterations",
            "cps",
            "Iterations of the constraint solvers, all together.",
        )
        .query("{{solver}}", rate_or_idle("a4_solver_iterations_total", By::Versions, "solver")),
    ]
}
