//! Tests of the spans of workers and operations.

use std::collections::BTreeMap;

use cadscope_common::record::Fate;

use super::*;
use crate::ending::OutOfMemory;
use crate::job::{Job, Variables};
use crate::python::{Frame, Source};
use crate::samples;

const PARENT: &[u8] =
    b"TRACEPARENT=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\0TRACESTATE=a=b\0\
    JOB_ID=j-1\0REQUEST_ID=r-1\0FLOW_TYPE=gear";

fn tracer(min_ms: u64, ratio: f64) -> Tracer {
    let options = SpanOptions { min_duration: Duration::from_millis(min_ms), ratio };
    let machine = Machine {
        boot_id: "boot".to_owned(),
        host_name: "node-1".to_owned(),
        attributes: vec![KeyValue::new("deployment.environment.name", "test")],
    };
    Tracer::new(options, machine, WallClock::new(0, 1_000_000_000_000_000_000))
}

fn worker(pid: u32, environ: &[u8]) -> Arc<Worker> {
    let job = Arc::new(Job::from_environ(environ, &Variables::default()));
    Arc::new(Worker {
        flow_type: job.flow_type.clone(),
        job,
        ..(*samples::worker(pid, "freecadcmd")).clone()
    })
}

fn boolean(worker: &Arc<Worker>, start_ms: f64, end_ms: f64) -> Operation {
    let probe = Arc::new(crate::catalog::Probe {
        function: "BRepAlgoAPI_BooleanOperation::Build(Message_ProgressRange const&)".to_owned(),
        attributes: BTreeMap::from([("cad.operation".to_owned(), "operation".to_owned())]),
        ..samples::boolean()
    });
    let mut operation = samples::operation(&probe, worker, start_ms, end_ms);
    operation.values = [samples::int("operation", 2)].into();
    operation
}

fn attribute(span: &Span, name: &str) -> Option<String> {
    let found = span.data.attributes.iter().find(|attribute| attribute.key.as_str() == name);
    found.map(|attribute| attribute.value.as_str().into_owned())
}

#[test]
fn a_worker_in_a_trace_is_a_child_of_the_span_that_started_it() {
    let (mut tracer, worker) = (tracer(0, 0.0), worker(7, PARENT));
    let inner = Operation { parent_start_ns: Some(1_000_000), depth: 1, ..boolean(&worker, 1.5, 1.75) };
    let inner = tracer.operation(&inner).unwrap();
    let outer = tracer.operation(&boolean(&worker, 1.0, 2.0)).unwrap();
    let root = tracer.worker(&worker, 500_000, 9_000_000, None).unwrap();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    for span in [&inner, &outer, &root] {
        assert_eq!(span.data.span_context.trace_id().to_string(), trace);
        assert_eq!(span.data.span_context.trace_state().header(), "a=b");
        assert_eq!(attribute(span, "cad.job.id").as_deref(), Some("j-1"));
        assert_eq!(attribute(span, "cad.request.id").as_deref(), Some("r-1"));
        assert_eq!(attribute(span, "cad.flow_type").as_deref(), Some("gear"));
    }
    assert_eq!(root.data.parent_span_id.to_string(), "b7ad6b7169203331");
    assert!(root.data.parent_span_is_remote && !outer.data.parent_span_is_remote);
    assert_eq!(outer.data.parent_span_id, root.data.span_context.span_id());
    assert_eq!(inner.data.parent_span_id, outer.data.span_context.span_id());
    assert_eq!((root.data.name.as_ref(), outer.data.name.as_ref()), ("freecadcmd", "boolean cut"));
}

#[test]
fn stages_are_children_of_the_root() {
    let mut tracer = tracer(0, 1.0);
    let started = Arc::new(Worker { executed_ns: Some(100_000), ..(*worker(7, PARENT)).clone() });
    let probe =
        crate::catalog::Probe { group: Some("export".to_owned()), ..samples::probe("x.step", "export STEP") };
    let first = samples::operation(&Arc::new(probe), &started, 1.0, 2.0);
    let (startup, export) = (tracer.startup(&first).unwrap(), tracer.operation(&first).unwrap());
    let root = tracer.worker(&started, 100_000, 9_000_000, None).unwrap().data.span_context.span_id();
    assert_eq!((startup.data.parent_span_id, export.data.parent_span_id), (root, root));
    assert_eq!(attribute(&startup, "cad.stage").as_deref(), Some("startup"));
    assert_eq!(attribute(&export, "cad.stage").as_deref(), Some("export"));
    assert_eq!(startup.data.end_time, export.data.start_time);
    assert_ne!(startup.data.span_context.span_id(), root);
    assert!(tracer.startup(&boolean(&worker(7, PARENT), 1.0, 2.0)).is_none(), "it ran before the agent");
}

#[test]
fn a_parent_that_is_not_sampled_has_no_children() {
    let environ = b"TRACEPARENT=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let (mut tracer, worker) = (tracer(0, 1.0), worker(7, environ));
    assert!(tracer.operation(&boolean(&worker, 1.0, 2.0)).is_none());
    assert!(tracer.traced(&boolean(&worker, 1.0, 2.0)).is_none());
    assert!(tracer.worker(&worker, 0, 1, None).is_none());
}

#[test]
fn workers_without_context_are_traces_of_their_own_by_ratio() {
    let mut traces = std::collections::HashSet::new();
    let mut tracer = tracer(0, 0.25);
    for pid in 1..=4000 {
        let worker = worker(pid, b"");
        let root = tracer.worker(&worker, 0, 1, None);
        let operation = tracer.operation(&boolean(&worker, 1.0, 2.0));
        assert_eq!(root.is_some(), operation.is_some());
        if let Some(root) = root {
            assert_eq!(root.data.parent_span_id, SpanId::INVALID);
            assert!(traces.insert(root.data.span_context.trace_id()));
        }
    }
    assert!((900..1100).contains(&traces.len()), "{}", traces.len());
}

#[test]
fn ids_are_the_same_after_a_restart_and_differ_between_boots() {
    let (first, second) = (tracer(0, 1.0), tracer(0, 1.0));
    let operation = boolean(&worker(7, b""), 1.0, 2.0);
    assert_eq!(first.traced(&operation), second.traced(&operation));
    let mut other = tracer(0, 1.0);
    other.machine.boot_id = "other".to_owned();
    assert_ne!(first.traced(&operation), other.traced(&operation));
}

#[test]
fn a_short_operation_has_neither_span_nor_exemplar() {
    let (mut tracer, worker) = (tracer(1, 1.0), worker(7, b""));
    assert!(tracer.operation(&boolean(&worker, 1.0, 1.9)).is_none());
    assert!(tracer.traced(&boolean(&worker, 1.0, 1.9)).is_none());
    let span = tracer.operation(&boolean(&worker, 1.0, 2.0)).unwrap();
    let traced = tracer.traced(&boolean(&worker, 1.0, 2.0)).unwrap();
    assert_eq!(traced.trace_id, span.data.span_context.trace_id().to_string());
    assert_eq!(traced.span_id, span.data.span_context.span_id().to_string());
    assert_eq!(traced.at, span.data.end_time);
}

#[test]
fn an_operation_says_what_it_was() {
    let (mut tracer, worker) = (tracer(0, 1.0), worker(7, b""));
    let span = tracer.operation(&boolean(&worker, 1.0, 2.0)).unwrap();
    let all: Vec<_> = span.data.attributes.iter().map(|a| format!("{}={}", a.key, a.value)).collect();
    assert_eq!(
        all,
        [
            "thread.id=7",
            "cad.probe=bool.api_build",
            "cad.outcome=ok",
            "cad.function=BRepAlgoAPI_BooleanOperation::Build",
            "code.function.name=BRepAlgoAPI_BooleanOperation::Build",
            "freecad.version=1.0.2",
            "occt.version=7.8.1",
            "cad.operation=2",
        ]
    );
    assert_eq!(span.data.status, Status::Unset);
    let start = span.data.start_time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(start.as_nanos(), 1_000_000_000_001_000_000);
    let resource: Vec<_> = span
        .resource
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .filter(|a| !a.contains("distro"))
        .collect();
    for wanted in [
        "service.name=freecadcmd",
        "process.pid=7",
        "process.executable.name=freecadcmd",
        "host.name=node-1",
        "deployment.environment.name=test",
    ] {
        assert!(resource.iter().any(|attribute| attribute == wanted), "{wanted} in {resource:?}");
    }
}

#[test]
fn a_slow_operation_names_the_line_of_the_job() {
    let (mut tracer, worker) = (tracer(0, 1.0), worker(7, b""));
    let frame = |file: &str, line, function: &str| Frame {
        file: file.to_owned(),
        line,
        function: function.to_owned(),
    };
    let stack = vec![
        frame("/usr/lib/python3/dist-packages/cq.py", 9, "cut"),
        frame("/jobs/gear.py", 12, "Gear.teeth"),
    ];
    let source = Source::new(stack).map(Arc::new);
    let span = tracer.operation(&Operation { source, ..boolean(&worker, 1.0, 2.0) }).unwrap();
    for (name, value) in [
        ("code.file.path", "/jobs/gear.py"),
        ("code.line.number", "12"),
        ("code.function.name", "Gear.teeth"),
        ("cad.function", "BRepAlgoAPI_BooleanOperation::Build"),
        (
            "code.stacktrace",
            "Traceback (most recent call last):\n  File \"/jobs/gear.py\", line 12, in Gear.teeth\n  \
             File \"/usr/lib/python3/dist-packages/cq.py\", line 9, in cut",
        ),
    ] {
        assert_eq!(attribute(&span, name).as_deref(), Some(value));
    }
}

#[test]
fn failures_are_the_status_and_an_exception_an_event() {
    let (mut tracer, worker) = (tracer(0, 1.0), worker(7, b""));
    let mut operation = boolean(&worker, 1.0, 2.0);
    operation.outcome = Outcome::Exception;
    operation.exception = Some("Standard_Failure".into());
    let span = tracer.operation(&operation).unwrap();
    assert_eq!(attribute(&span, "error.type").as_deref(), Some("Standard_Failure"));
    assert_eq!(span.data.status, Status::error("left by Standard_Failure"));
    let event = &span.data.events.events[0];
    assert_eq!((event.name.as_ref(), event.timestamp), ("exception", span.data.end_time));
    assert_eq!(event.attributes, [KeyValue::new("exception.type", "Standard_Failure")]);

    operation.outcome = Outcome::Killed;
    operation.ended_by = "signal";
    operation.signal = Some(9);
    let span = tracer.operation(&operation).unwrap();
    assert_eq!(attribute(&span, "error.type").as_deref(), Some("SIGKILL"));
    assert_eq!(span.data.status, Status::error("its process was killed by SIGKILL"));

    operation.outcome = Outcome::Error;
    let span = tracer.operation(&operation).unwrap();
    assert_eq!(attribute(&span, "error.type").as_deref(), Some("error"));
}

#[test]
fn the_root_says_how_its_process_ended() {
    let (mut tracer, worker) = (tracer(0, 1.0), worker(7, b""));
    let mut end = |end: End| tracer.worker(&worker, 0, 1_000, Some(&end)).unwrap();
    let exit = |status, failed, oom| End::of_exit(status, &Fate::default(), failed, oom);
    let fine = end(exit(0, false, None));
    assert_eq!(fine.data.status, Status::Unset);
    assert_eq!(attribute(&fine, "process.exit.code").as_deref(), Some("0"));
    let failed = end(exit(3 << 8, false, None));
    assert_eq!(failed.data.status, Status::error("exit status 3"));
    assert_eq!(attribute(&failed, "error.type").as_deref(), Some("3"));
    let raised = end(exit(0, true, None));
    assert_eq!(raised.data.status, Status::error("its script raised an exception"));
    let crashed = end(exit(11, false, None));
    assert_eq!(crashed.data.status, Status::error("crashed: SIGSEGV"));
    assert_eq!(crashed.data.events.events[0].name, "process.end");
    assert_eq!(crashed.data.events.events[0].attributes, [KeyValue::new("cad.signal", "SIGSEGV")]);
    let unseen = end(End::without_exit(How::Unseen));
    assert!(unseen.data.status == Status::Unset && unseen.data.events.events.is_empty());
}

#[test]
fn memory_that_ran_out_is_an_event_of_the_root() {
    let (mut tracer, worker) = (tracer(0, 1.0), worker(7, b""));
    let oom = OutOfMemory {
        at_ns: 900,
        resident_bytes: 4096,
        limit: Limit::Cgroup { level: 0, bytes: 8192 },
        operation: "boolean".to_owned(),
    };
    let end = End::of_exit(9, &Fate::default(), false, Some(oom));
    let root = tracer.worker(&worker, 0, 1_000, Some(&end)).unwrap();
    assert_eq!(root.data.status, Status::error("killed: out of memory"));
    assert_eq!(attribute(&root, "error.type").as_deref(), Some("oom"));
    let event = &root.data.events.events[0];
    assert_eq!(event.name, "oom_kill");
    let operation = KeyValue::new("cad.operation", "boolean");
    assert!(
        event.attributes.contains(&operation)
            && event.attributes.contains(&KeyValue::new("cad.memory.limit", 8192))
    );
    // Where the whole machine was full, there is no limit to name.
    let oom = OutOfMemory { at_ns: 900, resident_bytes: 1, limit: Limit::Node, operation: String::new() };
    let end = End::of_exit(9, &Fate::default(), false, Some(oom));
    let root = tracer.worker(&worker, 0, 1_000, Some(&end)).unwrap();
    let event = &root.data.events.events[0];
    assert!(
        event.attributes.iter().all(|attribute| attribute.key.as_str() != "cad.memory.limit"),
        "{event:?}"
    );
}

#[test]
fn a_pod_is_named_in_the_resource() {
    let mut tracer = tracer(0, 1.0);
    let container = crate::container::Container {
        id: "ab".repeat(32),
        namespace: "cad".to_owned(),
        pod: "worker-1".to_owned(),
        name: "freecad".to_owned(),
        ..crate::container::Container::default()
    };
    let worker = Worker { container: Arc::new(container), ..(*worker(7, b"")).clone() };
    let span = tracer.worker(&worker, 0, 1, None).unwrap();
    let value = |name: &'static str| span.resource.get(&name.into()).map(|value| value.as_str().into_owned());
    assert_eq!(value("k8s.pod.name").as_deref(), Some("worker-1"));
    assert_eq!(value("k8s.container.name").as_deref(), Some("freecad"));
    assert_eq!(value("container.id"), Some("ab".repeat(32)));
    assert_eq!(value("k8s.pod.uid"), None);
}

#[test]
fn what_users_say_of_the_resource_wins() {
    let mut tracer = tracer(0, 1.0);
    tracer.machine.attributes = vec![KeyValue::new("service.name", "gears")];
    let span = tracer.worker(&worker(7, b""), 0, 1, None).unwrap();
    assert_eq!(span.resource.get(&"service.name".into()).unwrap().as_str(), "gears");
}
