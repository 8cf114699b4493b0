//! Turns what is observed of workers into flows: one job each, from the start of its process to its end, in stages.
//!
//! Stages are the outermost operations of a thread that are a stage at all. A flow is told of as started when its
//! versions are known, which is at its first operation or a little later, so that its start and its end carry the same
//! labels. A worker that ran before the agent has not started for it, but ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::Probe;
use crate::ending::End;
use crate::observe::Observation;
use crate::operation::{Operation, Worker};

/// How long a flow waits for its first operation before it is told of as started.
const PATIENCE_NS: u64 = 2_000_000_000;
/// Stages of one worker that wait for the outermost operation of their thread to end.
const MAX_WAITING: usize = 256;

/// A step of a flow.
#[derive(Clone, Debug)]
pub enum Step<'a> {
    /// It has started.
    Started(&'a Worker),
    /// A stage of it is over.
    Stage(&'a Worker, &'static str, Duration),
    /// It is over.
    Completed(&'a Worker, &'a End),
}

/// The flows that run.
#[derive(Debug)]
pub struct Flows {
    agent_boottime_ns: u64,
    live: HashMap<u32, Flow>,
}

#[derive(Debug)]
struct Flow {
    worker: Arc<Worker>,
    seen_ns: u64,
    /// Told of, or not to be told of.
    told: bool,
    /// Its first outermost operation has ended.
    is_up: bool,
    waiting: Vec<Waiting>,
}

/// A stage that may lie inside another.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    tid: u32,
    stage: &'static str,
    start_ns: u64,
    end_ns: u64,
}

impl Flows {
    /// No flows; what started before this time on the boot clock has not started for the agent.
    #[must_use]
    pub fn new(agent_boottime_ns: u64) -> Self {
        Self { agent_boottime_ns, live: HashMap::new() }
    }

    /// Takes an observation.
    pub fn see(&mut self, observation: &Observation, now_ns: u64, mut say: impl FnMut(Step<'_>)) {
        match observation {
            Observation::Started(worker) => {
                let started = worker.process.start_boottime_ns;
                let told = started != 0 && started < self.agent_boottime_ns;
                let flow = Flow {
                    worker: Arc::clone(worker),
                    seen_ns: now_ns,
                    told,
                    is_up: false,
                    waiting: Vec::new(),
                };
                self.live.insert(worker.process.pid, flow);
            }
            Observation::Renewed(worker) => {
                if let Some(flow) = self.live.get_mut(&worker.process.pid) {
                    flow.worker = Arc::clone(worker);
                }
            }
            Observation::Operation(operation) => {
                if let Some(flow) = self.live.get_mut(&operation.worker.process.pid) {
                    flow.tell(&mut say);
                    flow.did(operation, &mut say);
                }
            }
            Observation::Ended { worker, end, .. } => {
                if let Some(mut flow) = self.live.remove(&worker.process.pid) {
                    flow.tell(&mut say);
                    flow.flush(None, &mut say);
                    say(Step::Completed(&flow.worker, end));
                }
            }
            Observation::Repeated { .. } | Observation::Limited { .. } | Observation::Called(_) => {}
            Observation::Ready(_)
            | Observation::Late { .. }
            | Observation::Missed { .. }
            | Observation::Dropped(_) => {}
        }
    }

    /// Tells of flows that have waited long enough.
    pub fn tick(&mut self, now_ns: u64, mut say: impl FnMut(Step<'_>)) {
        for flow in self.live.values_mut() {
            if now_ns.saturating_sub(flow.seen_ns) >= PATIENCE_NS {
                flow.tell(&mut say);
            }
        }
    }
}

impl Flow {
    fn tell(&mut self, say: &mut impl FnMut(Step<'_>)) {
        if !self.told {
            self.told = true;
            say(Step::Started(&self.worker));
        }
    }

    fn did(&mut self, operation: &Operation, say: &mut impl FnMut(Step<'_>)) {
        if let Some(stage) = stage_of(&operation.probe) {
            // Operations end inside-out: this one replaces what lies inside it.
            self.waiting.retain(|inner| inner.tid != operation.tid || inner.start_ns < operation.start_ns);
            if self.waiting.len() >= MAX_WAITING {
                self.flush(None, say);
            }
            let (start_ns, end_ns) = (operation.start_ns, operation.end_ns);
            self.waiting.push(Waiting { tid: operation.tid, stage, start_ns, end_ns });
        }
        if operation.depth == 0 {
            if !self.is_up {
                self.is_up = true;
                if let Some(executed_ns) = self.worker.executed_ns {
                    let startup = Duration::from_nanos(operation.start_ns.saturating_sub(executed_ns));
                    say(Step::Stage(&self.worker, "startup", startup));
                }
            }
            self.flush(Some(operation.tid), say);
        }
    }

    fn flush(&mut self, tid: Option<u32>, say: &mut impl FnMut(Step<'_>)) {
        let (over, waiting) =
            self.waiting.iter().copied().partition(|waiting| tid.is_none_or(|tid| waiting.tid == tid));
        self.waiting = waiting;
        let over: Vec<Waiting> = over;
        for Waiting { stage, start_ns, end_ns, .. } in over {
            say(Step::Stage(&self.worker, stage, Duration::from_nanos(end_ns.saturating_sub(start_ns))));
        }
    }
}

/// The stage that operations of a probe are, wherever they stand.
#[must_use]
pub fn stage_of(probe: &Probe) -> Option<&'static str> {
    match probe.group.as_deref() {
        Some("load") => return Some("load"),
        Some("save") => return Some("save"),
        Some("export") => return Some("export"),
        Some("validation") => return Some("validation"),
        _ => {}
    }
    if probe.metric.as_deref() == Some("freecad_recompute_duration_seconds") {
        return Some("recompute");
    }
    probe.id.starts_with("valid.").then_some("validation")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Probe;
    use crate::ending::How;
    use crate::samples;

    fn operation(worker: &Arc<Worker>, group: &str, depth: u32, start_ms: f64, end_ms: f64) -> Observation {
        let probe = Arc::new(Probe { group: Some(group.to_owned()), ..samples::probe("x.y", "") });
        let operation = samples::operation(&probe, worker, start_ms, end_ms);
        Observation::Operation(Box::new(Operation { depth, ..operation }))
    }

    fn worker(start_boottime_ns: u64) -> Arc<Worker> {
        let mut worker = (*samples::worker(7, "freecadcmd")).clone();
        worker.process.start_boottime_ns = start_boottime_ns;
        worker.executed_ns = Some(1_000_000);
        Arc::new(worker)
    }

    fn ended(worker: &Arc<Worker>) -> Observation {
        let end = Box::new(End::without_exit(How::Success));
        Observation::Ended { worker: Arc::clone(worker), started_ns: 0, ended_ns: 9, status: Some(0), end }
    }

    fn run(observations: &[Observation]) -> Vec<String> {
        let (mut flows, mut out) = (Flows::new(100), Vec::new());
        for observation in observations {
            flows.see(observation, 0, |step| {
                out.push(match step {
                    Step::Started(_) => "started".to_owned(),
                    Step::Stage(_, stage, time) => format!("{stage} {}", time.as_millis()),
                    Step::Completed(_, end) => format!("{:?}", end.how),
                });
            });
        }
        out
    }

    #[test]
    fn a_flow_has_its_outermost_operations_as_stages() {
        let worker = worker(200);
        let steps = run(&[
            Observation::Started(Arc::clone(&worker)),
            operation(&worker, "load", 2, 6.0, 7.0),
            operation(&worker, "export", 1, 5.0, 8.0),
            operation(&worker, "other", 0, 4.0, 9.0),
            operation(&worker, "save", 0, 10.0, 12.0),
            ended(&worker),
        ]);
        assert_eq!(steps, ["started", "startup 3", "export 3", "save 2", "Success"]);
    }

    #[test]
    fn a_worker_that_never_did_anything_starts_and_ends() {
        let worker = worker(200);
        assert_eq!(run(&[Observation::Started(Arc::clone(&worker)), ended(&worker)]), ["started", "Success"]);
    }

    #[test]
    fn a_worker_from_before_the_agent_only_ends() {
        let worker = worker(50);
        assert_eq!(run(&[Observation::Started(Arc::clone(&worker)), ended(&worker)]), ["Success"]);
    }

    #[test]
    fn a_worker_that_waits_is_told_of_after_a_while() {
        let mut flows = Flows::new(0);
        flows.see(&Observation::Started(worker(200)), 5, |_| panic!("too early"));
        let mut told = 0;
        for now in [6, PATIENCE_NS + 5, PATIENCE_NS + 6] {
            flows.tick(now, |_| told += 1);
        }
        assert_eq!(told, 1);
    }
}
