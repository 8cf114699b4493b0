//! Turns the feed into messages of a Redis: `PUBLISH cadscope:progress:JOB_ID JSON`, on a thread of its own.
//!
//! A broker that is away costs events, which are counted; the connection is tried again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::event::Event;
use super::hub::{Counts, Hub};
use crate::broker::{Connection, RedisUrl};

/// The channel of jobs without an id; with one, `:` and the id follow.
pub const CHANNEL: &str = "cadscope:progress";
/// The pause before a broker that failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Publishes what the hub tells until it is closed.
///
/// # Errors
/// No thread can be made.
pub fn start(url: RedisUrl, hub: &Hub) -> io::Result<()> {
    let (events, counts) = (hub.broker(), Arc::clone(hub.counts()));
    std::thread::Builder::new().name("redis".to_owned()).spawn(move || run(&url, events, &counts))?;
    Ok(())
}

fn run(url: &RedisUrl, mut events: mpsc::Receiver<Event>, counts: &Counts) {
    let mut connection: Option<Connection> = None;
    let mut failing = false;
    while let Some(event) = events.blocking_recv() {
        let told = publish(url, &mut connection, &event);
        if told.is_ok() {
            counts.count_published(true);
            if std::mem::take(&mut failing) {
                tracing::info!("Redis takes progress again");
            }
            continue;
        }
        let Err(error) = told else { continue };
        connection = None;
        counts.count_published(false);
        if !std::mem::replace(&mut failing, true) {
            tracing::warn!(%error, redis = ?url, "progress is not published; trying again");
        }
        std::thread::sleep(PAUSE);
    }
}

fn publish(url: &RedisUrl, connection: &mut Option<Connection>, event: &Event) -> io::Result<()> {
    let job = &event.worker.job.id;
    let channel = if job.is_empty() { CHANNEL.to_owned() } else { format!("{CHANNEL}:{job}") };
    let json = event.json();
    if let Some(open) = connection {
        if open.publish(&channel, &json).is_ok() {
            return Ok(());
        }
        // It was restarted, or closed what was idle.
        *connection = None;
    }
    let mut new = Connection::open(url)?;
    new.publish(&channel, &json)?;
    *connection = Some(new);
    Ok(())
}
