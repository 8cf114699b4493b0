//! Turns workers and operations into a feed for whoever waits for a job: what it is at, and how far.
//!
//! An operation is told of when it ends; that it has begun is seen by looking at the open calls, a few times a second
//! and only while somebody listens. What happened up to such a look is told in its order: a begin before its end, an
//! outer phase before those in it. A phase inside one of its own sort (an export of FreeCAD's that calls OCCT's) is not
//! told of. Of the objects that ended between two looks, only the last of a recompute is, beside those that failed.
//!
//! Bounded: a job's open phases, what waits for the next look, and each listener's queue; see [`hub`].

pub mod event;
pub mod hub;
pub mod redis;
pub mod stream;

use std::collections::HashMap;
use std::sync::Arc;

use self::event::{Event, Kind, Phase};
use self::hub::Hub;
use crate::catalog::Probe;
use crate::clock::WallClock;
use crate::ending::End;
use crate::in_flight::OpenCall;
use crate::observe::Observation;
use crate::operation::{Operation, Value, Worker};

/// Endings that wait for the next look; more are left out, and counted.
const WAITING: usize = 16_384;
/// Recomputes whose objects are counted.
const COUNTED: usize = 4096;
/// Open phases of one job.
const OPEN: usize = 256;

/// Whether calls of a probe are a phase of a job.
#[must_use]
pub fn is_phase(probe: &Probe) -> bool {
    Phase::of(probe).is_some()
}

/// Follows the jobs.
#[derive(Debug)]
pub struct Progress {
    hub: Arc<Hub>,
    clock: WallClock,
    jobs: HashMap<u32, Job>,
    /// Objects done, by process, thread and begin of their recompute.
    counted: HashMap<Recompute, u64>,
    waiting: Vec<Happened>,
}

/// Names a recompute: process, thread, begin.
type Recompute = (u32, u32, u64);

#[derive(Debug)]
struct Job {
    worker: Arc<Worker>,
    started_ns: u64,
    open: Vec<Open>,
}

/// A phase that has been told of, or is hidden in one of its sort.
#[derive(Clone, Debug)]
struct Open {
    call: Call,
    hidden: bool,
    iterations: u64,
}

/// A call that is a phase.
#[derive(Clone, Debug)]
struct Call {
    phase: Phase,
    tid: u32,
    start_ns: u64,
    parent_start_ns: Option<u64>,
    title: String,
    document: Option<String>,
    /// Objects of the document of a recompute.
    objects: Option<u64>,
}

/// What has happened, with what decides its order.
#[derive(Debug)]
struct Happened {
    at_ns: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    JobStarted(Arc<Worker>),
    Begun(Arc<Worker>, Call, u64),
    Ended(Arc<Operation>, Phase, u64),
    JobEnded(Arc<Worker>, Box<End>),
}

impl Happened {
    /// Begins before ends; of begins the outer, of ends the inner first.
    fn order(&self) -> (u64, u8, u64) {
        match &self.what {
            What::JobStarted(_) => (self.at_ns, 0, 0),
            What::Begun(..) => (self.at_ns, 1, 0),
            What::Ended(operation, ..) => (self.at_ns, 2, u64::MAX - operation.start_ns),
            What::JobEnded(..) => (self.at_ns, 3, 0),
        }
    }
}

impl Call {
    fn new(phase: Phase, probe: &Probe, values: &std::collections::BTreeMap<String, Value>) -> Self {
        let number = |name: &str| match values.get(name) {
            Some(Value::Int(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        let document = match values.get("document") {
            Some(Value::Text(text)) => Some(text.to_string()),
            _ => None,
        };
        Self {
            phase,
            tid: 0,
            start_ns: 0,
            parent_start_ns: None,
            title: probe.title(values),
            document,
            objects: number("objects").filter(|_| phase == Phase::Recompute),
        }
    }

    fn of_open(open: &OpenCall) -> Option<Self> {
        let call = Self::new(Phase::of(&open.probe)?, &open.probe, &open.values);
        Some(Self { tid: open.tid, start_ns: open.start_ns, parent_start_ns: open.parent_start_ns, ..call })
    }

    fn of_ended(operation: &Operation, phase: Phase) -> Self {
        let Operation { tid, start_ns, parent_start_ns, .. } = *operation;
        Self { tid, start_ns, parent_start_ns, ..Self::new(phase, &operation.probe, &operation.values) }
    }
}

impl Progress {
    /// Has seen nothing; tells the listeners of this hub.
    #[must_use]
    pub fn new(hub: Arc<Hub>, clock: WallClock) -> Self {
        Self { hub, clock, jobs: HashMap::new(), counted: HashMap::new(), waiting: Vec::new() }
    }

    /// Whether somebody listens, so that the open calls are worth a look.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.hub.has_listeners()
    }

    /// What became of events and listeners.
    #[must_use]
    pub fn counts(&self) -> &hub::Counts {
        self.hub.counts()
    }

    /// Takes an observation.
    pub fn see(&mut self, observation: &Observation) {
        let wanted = self.is_wanted();
        match observation {
            Observation::Started(worker) => {
                let started_ns = worker.executed_ns.unwrap_or_else(crate::clock::now_ns);
                let job = Job { worker: Arc::clone(worker), started_ns, open: Vec::new() };
                self.jobs.insert(worker.process.pid, job);
                if wanted {
                    self.wait(started_ns, What::JobStarted(Arc::clone(worker)));
                }
            }
            Observation::Renewed(worker) => {
                if let Some(job) = self.jobs.get_mut(&worker.process.pid) {
                    job.worker = Arc::clone(worker);
                }
            }
            Observation::Operation(operation) => self.did(operation, wanted),
            Observation::Ended { worker, ended_ns, end, .. } => {
                let pid = worker.process.pid;
                if wanted {
                    self.wait(*ended_ns, What::JobEnded(Arc::clone(worker), end.clone()));
                } else {
                    self.jobs.remove(&pid);
                }
                self.counted.retain(|(of, ..), _| *of != pid);
            }
            Observation::Ready(_)
            | Observation::Called(_)
            | Observation::Late { .. }
            | Observation::Missed { .. }
            | Observation::Repeated { .. }
            | Observation::Limited { .. }
            | Observation::Dropped(_) => {}
        }
    }

    fn did(&mut self, operation: &Operation, wanted: bool) {
        let Some(phase) = Phase::of(&operation.probe) else { return };
        let pid = operation.worker.process.pid;
        let around = operation.parent_start_ns.map(|start| (pid, operation.tid, start));
        let done = match phase {
            Phase::Object => around.map_or(0, |around| {
                if self.counted.len() >= COUNTED && !self.counted.contains_key(&around) {
                    self.counted.clear();
                }
                let done = self.counted.entry(around).or_default();
                *done += 1;
                *done
            }),
            Phase::Recompute => self.counted.remove(&(pid, operation.tid, operation.start_ns)).unwrap_or(0),
            _ => 0,
        };
        if wanted {
            self.wait(operation.end_ns, What::Ended(Arc::new(operation.clone()), phase, done));
        }
    }

    fn wait(&mut self, at_ns: u64, what: What) {
        // There are no more ends of jobs than jobs.
        if self.waiting.len() < WAITING || matches!(what, What::JobEnded(..)) {
            self.waiting.push(Happened { at_ns, what });
        } else {
            self.hub.dropped_events(1);
        }
    }

    /// Tells the listeners what happened until `cut_ns`, given the calls that were open then.
    pub fn tell(&mut self, open: &[OpenCall], cut_ns: u64) {
        self.clock.look();
        let mut now: Vec<Happened> = Vec::new();
        for call in open.iter().filter(|call| call.start_ns <= cut_ns) {
            let Some(begun) = Call::of_open(call) else { continue };
            let what = What::Begun(Arc::clone(&call.worker), begun, call.tally);
            now.push(Happened { at_ns: call.start_ns, what });
        }
        let (past, later) = std::mem::take(&mut self.waiting).into_iter().partition(|h| h.at_ns <= cut_ns);
        self.waiting = later;
        let past: Vec<Happened> = past;
        for happened in past {
            // One that ended may never have been seen open; its begin is told where it belongs.
            if let What::Ended(operation, phase, _) = &happened.what
                && *phase != Phase::Object
            {
                let call = Call::of_ended(operation, *phase);
                let what = What::Begun(Arc::clone(&operation.worker), call, 0);
                now.push(Happened { at_ns: operation.start_ns, what });
            }
            now.push(happened);
        }
        now.sort_by_key(Happened::order);
        let mut events = Vec::new();
        for happened in now {
            self.happened(happened, &mut events);
        }
        only_last_objects(&mut events);
        for event in &events {
            self.hub.tell(event);
        }
        for listener in self.hub.take_joining() {
            for event in self.state() {
                listener.tell(&event);
            }
            self.hub.join(listener);
        }
        self.hub.keep_alive();
    }

    /// Forgets what only matters while somebody listens.
    pub fn rest(&mut self) {
        for happened in self.waiting.drain(..) {
            if let What::JobEnded(worker, _) = happened.what {
                self.jobs.remove(&worker.process.pid);
            }
        }
        for job in self.jobs.values_mut() {
            job.open.clear();
        }
    }

    fn happened(&mut self, happened: Happened, events: &mut Vec<Event>) {
        let Happened { at_ns, what } = happened;
        let at = self.clock.at(at_ns);
        match what {
            What::JobStarted(worker) => events.push(Event::new(Kind::JobStart, &worker, at)),
            What::Begun(worker, call, iterations) => {
                let done = self.done_in(worker.process.pid, &call);
                if let Some(job) = self.jobs.get_mut(&worker.process.pid) {
                    events.extend(job.begun(
                        call,
                        iterations,
                        done,
                        at,
                        self.clock.at(crate::clock::now_ns()),
                    ));
                }
            }
            What::Ended(operation, phase, done) => {
                if let Some(job) = self.jobs.get_mut(&operation.worker.process.pid) {
                    events.extend(job.ended(&operation, phase, done, at));
                }
            }
            What::JobEnded(worker, end) => {
                let job = self.jobs.remove(&worker.process.pid);
                let worker = job.map_or(worker, |job| job.worker);
                events.push(Event::new(Kind::JobEnd, &worker, at).with_end(&end));
            }
        }
    }

    fn done_in(&self, pid: u32, call: &Call) -> u64 {
        let around = call.parent_start_ns.map(|start| (pid, call.tid, start));
        around.and_then(|around| self.counted.get(&around)).copied().unwrap_or(0)
    }

    /// What a listener has missed: every job, and the phases that it is in.
    fn state(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for job in self.jobs.values() {
            events.push(Event::new(Kind::JobStart, &job.worker, self.clock.at(job.started_ns)));
            for open in job.open.iter().filter(|open| !open.hidden) {
                let done = self.done_in(job.worker.process.pid, &open.call);
                let at = self.clock.at(open.call.start_ns);
                events.push(job.event(Kind::Start(open.call.phase), &open.call, at).with_object(
                    &open.call,
                    done + 1,
                    job.objects_around(&open.call),
                ));
            }
        }
        events
    }
}

impl Job {
    fn event(&self, kind: Kind, call: &Call, at: std::time::SystemTime) -> Event {
        Event::new(kind, &self.worker, at).with_call(&call.title, call.document.as_deref(), call.objects)
    }

    /// A call was seen open; tells of it the first time, and of a solver that went on.
    fn begun(
        &mut self,
        call: Call,
        iterations: u64,
        done: u64,
        at: std::time::SystemTime,
        now: std::time::SystemTime,
    ) -> Option<Event> {
        let same = |open: &Open| (open.call.tid, open.call.start_ns) == (call.tid, call.start_ns);
        if let Some(index) = self.open.iter().position(same) {
            let open = self.open.get_mut(index)?;
            let went_on = iterations > open.iterations && !open.hidden;
            open.iterations = open.iterations.max(iterations);
            return went_on.then(|| self.event(Kind::SolveProgress, &call, now).with_iterations(iterations));
        }
        let inside = |open: &Open| {
            open.call.tid == call.tid && open.call.phase == call.phase && open.call.start_ns < call.start_ns
        };
        let hidden = self.open.iter().any(inside);
        let objects = self.objects_around(&call);
        if self.open.len() < OPEN {
            self.open.push(Open { call: call.clone(), hidden, iterations });
        }
        let event = self.event(Kind::Start(call.phase), &call, at).with_object(&call, done + 1, objects);
        (!hidden).then_some(event)
    }

    fn ended(
        &mut self,
        operation: &Operation,
        phase: Phase,
        done: u64,
        at: std::time::SystemTime,
    ) -> Option<Event> {
        let call = Call::of_ended(operation, phase);
        let same = |open: &Open| (open.call.tid, open.call.start_ns) == (call.tid, call.start_ns);
        let open = self.open.iter().position(same).map(|index| self.open.swap_remove(index));
        if open.is_some_and(|open| open.hidden) {
            return None;
        }
        let objects = self.objects_around(&call);
        let mut event = self.event(Kind::End(phase), &call, at).with_outcome(operation);
        event = event.with_object(&call, done, objects);
        if phase == Phase::Recompute {
            event = event.with_done(done);
        }
        match operation.values.get("tally") {
            Some(Value::Int(tally)) => Some(event.with_iterations(u64::try_from(*tally).unwrap_or(0))),
            _ => Some(event),
        }
    }

    /// The number of objects in the recompute that an object is of, and that recompute's begin.
    fn objects_around(&self, call: &Call) -> Option<u64> {
        let around = self
            .open
            .iter()
            .find(|open| open.call.tid == call.tid && Some(open.call.start_ns) == call.parent_start_ns)?;
        around.call.objects
    }
}

/// Of the objects that a recompute has done, the last says it all.
fn only_last_objects(events: &mut Vec<Event>) {
    let mut later = std::collections::HashSet::new();
    events.reverse();
    events.retain(|event| match event.object_of() {
        Some(recompute) => later.insert(recompute),
        None => true,
    });
    events.reverse();
}

#[cfg(test)]
mod tests;
