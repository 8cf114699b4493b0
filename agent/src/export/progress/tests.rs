//! What listeners are told of jobs, and when.

use super::hub::Filter;
use super::*;
use crate::ending::How;
use crate::job::{Job as JobOf, Variables};
use crate::operation::Values;
use crate::samples;

fn worker(pid: u32, job: &str) -> Arc<Worker> {
    let environ = format!("JOB_ID={job}");
    let job = Arc::new(JobOf::from_environ(environ.as_bytes(), &Variables::default()));
    Arc::new(Worker { job, executed_ns: Some(1_000_000), ..(*samples::worker(pid, "freecadcmd")).clone() })
}

fn recompute() -> Arc<Probe> {
    let metric = Some("freecad_recompute_duration_seconds".to_owned());
    Arc::new(Probe { metric, ..samples::probe("fc.doc_recompute", "recompute document {document}") })
}

fn object() -> Arc<Probe> {
    let metric = Some("freecad_object_recompute_duration_seconds".to_owned());
    Arc::new(Probe { metric, ..samples::probe("fc.recompute_feature", "recompute {object}") })
}

fn export() -> Arc<Probe> {
    Arc::new(Probe { group: Some("export".to_owned()), ..samples::probe("x.export", "export") })
}

fn values() -> Values {
    Values::from([samples::text("document", "Gear"), samples::int("objects", 3)])
}

fn ms(milliseconds: u64) -> u64 {
    milliseconds * 1_000_000
}

fn did(
    probe: &Arc<Probe>,
    worker: &Arc<Worker>,
    (start, end): (f64, f64),
    around: Option<u64>,
    values: Values,
) -> Observation {
    let operation = samples::operation(probe, worker, start, end);
    Observation::Operation(Operation { parent_start_ns: around, values, ..operation })
}

fn open(probe: &Arc<Probe>, worker: &Arc<Worker>, start_ns: u64, around: Option<u64>) -> OpenCall {
    OpenCall {
        worker: Arc::clone(worker),
        tid: worker.process.pid,
        depth: 0,
        start_ns,
        parent_start_ns: around,
        probe: Arc::clone(probe),
        values: values(),
        tally: 0,
    }
}

fn ended(worker: &Arc<Worker>, at: u64) -> Observation {
    let end = Box::new(End::without_exit(How::Success));
    Observation::Ended { worker: Arc::clone(worker), started_ns: 0, ended_ns: at, status: Some(0), end }
}

/// What a client was told: event, and the fields that tell apart.
fn told(events: &mut tokio::sync::mpsc::Receiver<hyper::body::Bytes>) -> Vec<String> {
    let mut told = Vec::new();
    while let Ok(text) = events.try_recv() {
        let text = String::from_utf8(text.to_vec()).unwrap();
        let Some(data) = text.lines().find_map(|line| line.strip_prefix("data: ")) else { continue };
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        let mut line = data["event"].as_str().unwrap().to_owned();
        for field in ["object", "objects", "recomputed", "outcome", "iterations"] {
            if let Some(value) = data.get(field) {
                line.push_str(&format!(" {field}={value}"));
            }
        }
        told.push(line.replace('"', ""));
    }
    told
}

fn progress() -> (Progress, Arc<Hub>) {
    let hub = Arc::new(Hub::default());
    (Progress::new(Arc::clone(&hub), WallClock::new(0, 1_700_000_000_000_000_000)), hub)
}

#[test]
fn a_job_is_told_in_the_order_of_what_happened() {
    let (mut progress, hub) = progress();
    let (worker, other) = (worker(7, "a"), worker(8, "b"));
    let (mut events, _place) =
        hub.client(Filter { job_id: Some("a".to_owned()), ..Filter::default() }).unwrap();
    assert!(progress.is_wanted());
    progress.see(&Observation::Started(Arc::clone(&worker)));
    progress.see(&Observation::Started(Arc::clone(&other)));
    progress.tell(&[], ms(2));
    // The first look finds the recompute and its first object open, the second knows that two objects are done.
    let around = Some(ms(10));
    progress
        .tell(&[open(&recompute(), &worker, ms(10), None), open(&object(), &worker, ms(11), around)], ms(15));
    progress.see(&did(&object(), &worker, (11.0, 20.0), around, Values::default()));
    progress.see(&did(&object(), &worker, (21.0, 22.0), around, Values::default()));
    progress.see(&did(&export(), &other, (21.0, 22.0), None, Values::default()));
    progress
        .tell(&[open(&recompute(), &worker, ms(10), None), open(&object(), &worker, ms(23), around)], ms(24));
    progress.see(&did(&object(), &worker, (23.0, 30.0), around, Values::default()));
    progress.see(&did(&recompute(), &worker, (10.0, 31.0), None, values()));
    // Inside-out, as operations end; the inner one is part of the outer.
    progress.see(&did(&export(), &worker, (41.0, 42.0), None, Values::default()));
    progress.see(&did(&export(), &worker, (40.0, 43.0), None, Values::default()));
    progress.see(&ended(&worker, ms(50)));
    progress.tell(&[], ms(60));
    assert_eq!(
        told(&mut events),
        [
            "job_start",
            "recompute_start objects=3",
            "object_start object=1 objects=3",
            "object_end object=2 objects=3 outcome=ok",
            "object_start object=3 objects=3",
            "object_end object=3 objects=3 outcome=ok",
            "recompute_end objects=3 recomputed=3 outcome=ok",
            "export_start",
            "export_end outcome=ok",
            "job_end outcome=success",
        ]
    );
}

#[test]
fn what_is_not_certain_yet_waits() {
    let (mut progress, hub) = progress();
    let worker = worker(7, "a");
    let (mut events, _place) = hub.client(Filter::default()).unwrap();
    progress.see(&Observation::Started(Arc::clone(&worker)));
    progress.see(&did(&export(), &worker, (10.0, 20.0), None, Values::default()));
    progress.tell(&[], ms(15));
    assert_eq!(told(&mut events), ["job_start"]);
    progress.tell(&[], ms(25));
    assert_eq!(told(&mut events), ["export_start", "export_end outcome=ok"]);
}

#[test]
fn whoever_comes_late_is_told_where_jobs_are() {
    let (mut progress, hub) = progress();
    let worker = worker(7, "a");
    progress.see(&Observation::Started(Arc::clone(&worker)));
    let around = Some(ms(10));
    progress.see(&did(&object(), &worker, (11.0, 12.0), around, Values::default()));
    let (mut events, _place) = hub.client(Filter { pid: Some(7), ..Filter::default() }).unwrap();
    progress
        .tell(&[open(&recompute(), &worker, ms(10), None), open(&object(), &worker, ms(13), around)], ms(15));
    assert_eq!(
        told(&mut events),
        ["job_start", "recompute_start objects=3", "object_start object=2 objects=3"]
    );
}

#[test]
fn a_client_that_does_not_keep_up_is_sent_off_and_the_others_hear_on() {
    let (mut progress, hub) = progress();
    let worker = worker(7, "a");
    progress.see(&Observation::Started(Arc::clone(&worker)));
    let (mut slow, slow_place) = hub.client(Filter::default()).unwrap();
    let (mut quick, _place) = hub.client(Filter::default()).unwrap();
    progress.tell(&[], ms(2));
    assert_eq!(told(&mut quick), ["job_start"]);
    let mut heard = 0;
    for turn in 0..400_u32 {
        let start = f64::from(turn) + 10.0;
        progress.see(&did(&export(), &worker, (start, start + 0.5), None, Values::default()));
        progress.tell(&[], ms(10 + u64::from(turn) + 1));
        heard += told(&mut quick).len();
    }
    assert_eq!((heard, hub.counts().slow(), hub.counts().clients()), (800, 1, 2));
    assert!(told(&mut slow).len() < 600);
    assert!(matches!(slow.try_recv(), Err(tokio::sync::mpsc::error::TryRecvError::Disconnected)));
    drop(slow_place);
    assert_eq!(hub.counts().clients(), 1);
}

#[test]
fn too_many_clients_are_refused() {
    let hub = Hub::default();
    let places: Vec<_> = (0..hub::CLIENTS).map(|_| hub.client(Filter::default()).unwrap()).collect();
    assert!(hub.client(Filter::default()).is_none());
    drop(places);
    assert!(hub.client(Filter::default()).is_some());
}

#[test]
fn nothing_is_kept_while_nobody_listens() {
    let (mut progress, hub) = progress();
    let worker = worker(7, "a");
    progress.see(&Observation::Started(Arc::clone(&worker)));
    for _ in 0..100 {
        progress.see(&did(&export(), &worker, (1.0, 2.0), None, Values::default()));
    }
    assert!(progress.waiting.is_empty() && !progress.is_wanted());
    // It ends while somebody listens, who then goes.
    let (events, place) = hub.client(Filter::default()).unwrap();
    progress.see(&ended(&worker, 9));
    drop((events, place));
    progress.rest();
    assert!(progress.jobs.is_empty() && progress.waiting.is_empty());
    hub.close();
}
