//! `cadscope agent`: observes every worker of the node and serves what it sees over HTTP.
//!
//! One thread owns the observation and feeds the metrics; the pages are served by tokio. The two share the metric
//! registry and the status, nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tracing::info;

use self::feed::Feed;
use crate::clock::WallClock;
use crate::config::AgentConfig;
use crate::discover::Mappings;
use crate::export::http::{self, Guard, Shared, Status};
use crate::export::metrics::{Metrics, MetricsOptions};
use crate::export::progress::{Progress, redis};
use crate::export::traces::Traces;
use crate::kernel::own_memory::give_back;
use crate::observe::{Observer, ObserverOptions};
use crate::rollup::Rollups;
use crate::validation::{Store, Validation};

mod feed;
mod status;

/// How often records are taken when none is urgent.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two looks at what workers use.
const USAGE_TICKS: u32 = 50;
/// Ticks between two looks at what is in flight.
const IN_FLIGHT_TICKS: u32 = 10;
/// Ticks between two snapshots, while somebody looks.
const LIVE_TICKS: u32 = 10;
/// Ticks after which memory that the analysis of files took is given back.
const GIVE_BACK_TICKS: u32 = 20;
/// Ticks between two renewals of `/status`.
const STATUS_TICKS: u32 = 10;

/// Runs the agent until SIGTERM or SIGINT. `store` and `mappings` were opened before rights were given up.
///
/// # Errors
/// The port is taken or the node lacks something.
pub fn run(
    config: &AgentConfig,
    options: ObserverOptions,
    store: Option<Store>,
    mappings: Mappings,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let metrics = Arc::new(Metrics::new(MetricsOptions::default()));
    let status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        waiting_for: Some("the first look at all processes".to_owned()),
        ..Status::default()
    };
    let shared = Arc::new(Shared::new(metrics, status));
    let guard = Arc::new(Guard::open(&config.guard)?);
    let listener = runtime.block_on(http::bind(&config.listen.to_string()))?;
    let traces = Traces::start(config)?;
    let slow = options.sources.threshold;
    if let Some(url) = &config.progress_redis {
        redis::start(url.clone(), shared.progress()).context("cannot publish progress")?;
    }
    let validation = config.validation.as_ref().zip(store);
    let holds = !options.min_duration.is_zero();
    let validation = validation.map(|(config, store)| Validation::start(config, store, holds)).transpose()?;
    let observer = Observer::start(options, mappings)?;
    let scheme = guard.scheme();
    info!(listen = %listener.local_addr()?, scheme, kernel = observer.mode().as_str(), "observing");
    let stop = Arc::new(AtomicBool::new(false));
    let thread = {
        let (shared, stop, config) = (Arc::clone(&shared), Arc::clone(&stop), config.clone());
        std::thread::Builder::new()
            .name("observe".to_owned())
            .spawn(move || observe(observer, &config, slow, traces, validation, &shared, &stop))?
    };
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .context("cannot listen for SIGTERM")?;
        http::serve(listener, Arc::clone(&shared), guard, async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            shared.progress().close();
        })
        .await;
        anyhow::Ok(())
    })?;
    stop.store(true, Ordering::Relaxed);
    thread.join().map_err(|_| anyhow::anyhow!("the observing thread ended unexpectedly"))?;
    info!("stopped");
    Ok(())
}

fn observe(
    mut observer: Observer,
    config: &AgentConfig,
    slow: Duration,
    traces: Traces,
    validation: Option<Validation>,
    shared: &Shared,
    stop: &AtomicBool,
) {
    let rollups = Rollups::new(observer.attacher().catalog());
    let progress = Progress::new(Arc::clone(shared.progress()), WallClock::of_this_machine());
    let mut feed =
        Feed::new(shared.metrics(), rollups, config.pod_labels, traces, validation, progress, slow);
    observer.scan(None, &mut |observation| feed.take(observation));
    observer.drain(&mut |observation| feed.take(observation));
    status::renew(&observer, shared, feed.oom_kills());
    give_back();
    let mut tick = 0_u32;
    let mut received = 0;
    let mut unshown = LIVE_TICKS;
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        observer.poll(TICK, &mut |observation| feed.take(observation));
        shared.metrics().events_received(observer.received().saturating_sub(received));
        received = observer.received();
        feed.tick(&mut observer);
        tick = tick.wrapping_add(1);
        if tick.is_multiple_of(STATUS_TICKS) {
            status::renew(&observer, shared, feed.oom_kills());
        }
        if tick.is_multiple_of(IN_FLIGHT_TICKS) {
            shared.metrics().in_flight(&observer.in_flight());
        }
        if tick.is_multiple_of(GIVE_BACK_TICKS) && looks != observer.attacher().looks() {
            looks = observer.attacher().looks();
            give_back();
        }
        if tick % USAGE_TICKS == 1 {
            feed.look_at_usage(&observer);
        }
        // Who has just come is shown something at once.
        unshown = if shared.is_watched() { unshown.saturating_add(1) } else { LIVE_TICKS };
        if shared.is_watched() && unshown > LIVE_TICKS {
            shared.show(&feed.snapshot(&observer));
            unshown = 1;
        }
    }
    observer.drain(&mut |observation| feed.take(observation));
    feed.end(&observer);
}
