//! Turns one feed into many: each listener gets the events of the jobs it asked for, through a bounded queue of its own.
//!
//! Whoever tells never waits. A client that does not keep up is sent off (its stream ends, and it can ask again); Redis
//! loses events instead. Both are counted.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::sync::mpsc;

use super::event::Event;

/// Events that wait for one listener.
const QUEUE: usize = 512;
/// Clients that listen at once.
pub const CLIENTS: usize = 32;
/// A client hears something at least so often: an end that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The jobs that somebody asked for; empty: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Job's id.
    pub job_id: Option<String>,
    /// Request's id.
    pub request_id: Option<String>,
    /// Process.
    pub pid: Option<u32>,
}

impl Filter {
    fn wants(&self, event: &Event) -> bool {
        let worker = &event.worker;
        self.job_id.as_ref().is_none_or(|id| *id == worker.job.id)
            && self.request_id.as_ref().is_none_or(|id| *id == worker.job.request_id)
            && self.pid.is_none_or(|pid| pid == worker.process.pid)
    }
}

/// Where a listener's events go.
#[derive(Debug)]
enum Way {
    /// As server-sent events; whoever does not keep up is sent off.
    Client(mpsc::Sender<Bytes>, Arc<AtomicU64>),
    /// As they are; what finds no room is lost.
    Broker(mpsc::Sender<Event>),
}

/// One listener.
#[derive(Debug)]
pub struct Listener {
    filter: Filter,
    way: Way,
    counts: Arc<Counts>,
}

/// What became of events and listeners.
#[derive(Debug, Default)]
pub struct Counts {
    clients: AtomicUsize,
    slow: AtomicU64,
    lost: AtomicU64,
    refused: AtomicU64,
    published: AtomicU64,
}

impl Counts {
    /// Clients that listen.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Clients that were sent off because they did not keep up.
    #[must_use]
    pub fn slow(&self) -> u64 {
        self.slow.load(Ordering::Relaxed)
    }

    /// Events that the broker took, and that it did not.
    #[must_use]
    pub fn broker(&self) -> (u64, u64) {
        (self.published.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }

    /// Counts an event that the broker took, or did not.
    pub fn count_published(&self, taken: bool) {
        let count = if taken { &self.published } else { &self.refused };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Events that found no room.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Listener {
    /// Tells an event, if it is wanted; `false` if the listener is gone or was sent off.
    pub fn tell(&self, event: &Event) -> bool {
        if !self.filter.wants(event) {
            return true;
        }
        match &self.way {
            Way::Client(queue, number) => {
                let number = number.fetch_add(1, Ordering::Relaxed);
                let mut text = String::new();
                // Writing to a text does not fail.
                let _ =
                    write!(text, "id: {number}\nevent: {}\ndata: {}\n\n", event.kind.as_str(), event.json());
                self.send(queue, Bytes::from(text))
            }
            Way::Broker(queue) => {
                if matches!(queue.try_send(event.clone()), Err(mpsc::error::TrySendError::Full(_))) {
                    self.counts.lost.fetch_add(1, Ordering::Relaxed);
                }
                !queue.is_closed()
            }
        }
    }

    fn send(&self, queue: &mpsc::Sender<Bytes>, text: Bytes) -> bool {
        match queue.try_send(text) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.counts.slow.fetch_add(1, Ordering::Relaxed);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    fn keep_alive(&self) -> bool {
        match &self.way {
            Way::Client(queue, _) => self.send(queue, Bytes::from_static(b": still here\n\n")),
            Way::Broker(queue) => !queue.is_closed(),
        }
    }
}

/// The listeners.
#[derive(Debug, Default)]
pub struct Hub {
    listeners: Mutex<Vec<Listener>>,
    joining: Mutex<Vec<Listener>>,
    number: AtomicUsize,
    counts: Arc<Counts>,
    kept_alive: Mutex<Option<Instant>>,
}

/// A client's place; free again when it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Counts>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held leaves a list that is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// What became of events and listeners.
    #[must_use]
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Whether anybody listens or is about to.
    #[must_use]
    pub fn has_listeners(&self) -> bool {
        self.number.load(Ordering::Relaxed) > 0
    }

    /// A new client; `None` if there are too many.
    #[must_use]
    pub fn client(&self, filter: Filter) -> Option<(mpsc::Receiver<Bytes>, Place)> {
        let taken = |clients: usize| (clients < CLIENTS).then_some(clients + 1);
        self.counts.clients.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).ok()?;
        let place = Place(Arc::clone(&self.counts));
        let (queue, events) = mpsc::channel(QUEUE);
        self.add(filter, Way::Client(queue, Arc::new(AtomicU64::new(1))));
        Some((events, place))
    }

    /// A new broker, which is told everything.
    #[must_use]
    pub fn broker(&self) -> mpsc::Receiver<Event> {
        let (queue, events) = mpsc::channel(8 * QUEUE);
        self.add(Filter::default(), Way::Broker(queue));
        events
    }

    fn add(&self, filter: Filter, way: Way) {
        let mut joining = lock(&self.joining);
        joining.push(Listener { filter, way, counts: Arc::clone(&self.counts) });
        self.number.fetch_add(1, Ordering::Relaxed);
    }

    /// Those who have come since.
    #[must_use]
    pub fn take_joining(&self) -> Vec<Listener> {
        std::mem::take(&mut *lock(&self.joining))
    }

    /// Takes a listener that has been told the state.
    pub fn join(&self, listener: Listener) {
        lock(&self.listeners).push(listener);
    }

    /// Tells everybody.
    pub fn tell(&self, event: &Event) {
        self.keep(|listener| listener.tell(event));
    }

    /// Shows everybody from time to time that there is somebody.
    pub fn keep_alive(&self) {
        let mut kept = lock(&self.kept_alive);
        if kept.is_none_or(|kept| kept.elapsed() >= KEEP_ALIVE) {
            *kept = Some(Instant::now());
            self.keep(Listener::keep_alive);
        }
    }

    /// Counts events that found no room.
    pub fn dropped_events(&self, number: u64) {
        self.counts.lost.fetch_add(number, Ordering::Relaxed);
    }

    /// Ends every stream.
    pub fn close(&self) {
        lock(&self.joining).clear();
        lock(&self.listeners).clear();
        self.number.store(0, Ordering::Relaxed);
    }

    fn keep(&self, stays: impl Fn(&Listener) -> bool) {
        let mut listeners = lock(&self.listeners);
        let before = listeners.len();
        listeners.retain(stays);
        self.number.fetch_sub(before - listeners.len(), Ordering::Relaxed);
    }
}
