//! Where `top` has its snapshots from: an agent that runs, over HTTP, or an observation of its own.
//!
//! Both run on a thread of their own and hand snapshots over a channel that holds one: who is slow misses some.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};

use crate::clock::now_ns;
use crate::config::{TopConfig, TopSource};
use crate::discover::{self, Mappings};
use crate::live::{Recent, Snapshot};
use crate::observe::{Observer, ObserverOptions};

use super::connection::{Stream, Way};

/// How long an agent is given to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// An agent sends a snapshot a second, or at least a comment every 15 seconds.
const SILENCE: Duration = Duration::from_secs(40);
/// How long an agent that may not be there is waited for.
const GUESS: Duration = Duration::from_millis(500);
/// Between two tries to connect again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the picture has to end by itself after a signal.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes of a snapshot.
const MAX_LINE: u64 = 32 << 20;
/// How often records are taken.
const TICK: Duration = Duration::from_millis(100);
/// Between two snapshots, and two looks at what workers use.
const SNAPSHOT: Duration = Duration::from_millis(1000);

/// What the source has to say.
#[derive(Debug)]
pub(super) enum News {
    /// What the node does.
    Snapshot(Box<Snapshot>),
    /// Why there is nothing new.
    Trouble(String),
}

/// Says that it is over.
#[derive(Clone, Debug)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Set by SIGTERM, SIGHUP and SIGINT, which end the process if it does not end by itself.
    pub(super) fn on_signals() -> anyhow::Result<Self> {
        let stop = Self(Arc::default());
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT]);
        signals.thread_block().context("cannot block signals")?;
        let own = stop.clone();
        std::thread::spawn(move || {
            if signals.wait().is_ok() {
                own.set();
                // Who reads keys from a terminal that has gone may never come back from it.
                std::thread::sleep(GRACE);
                ratatui::restore();
                std::process::exit(0);
            }
        });
        Ok(stop)
    }

    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where snapshots are to come from.
pub(super) enum Origin {
    /// An agent that runs already.
    Agent(Way),
    /// An observation of its own, whose mapping events were opened while the rights for it were there.
    Own(Mappings),
}

/// The agent to ask; `None` for an observation of its own, because the user wants it or no agent answers.
pub(super) fn choose(config: &TopConfig) -> anyhow::Result<Option<Way>> {
    let open = |url| Way::open(url, &config.access);
    Ok(match &config.source {
        TopSource::Agent(url) => Some(open(url.clone())?),
        TopSource::Own => None,
        TopSource::Any(url) => open(url.clone()).ok().filter(|way| way.connect(GUESS).is_ok()),
    })
}

/// Starts the source; gives its name and what it says.
pub(super) fn start(
    origin: Origin,
    options: ObserverOptions,
    stop: &Stop,
) -> anyhow::Result<(String, Receiver<News>)> {
    let (sender, news) = sync_channel(1);
    let stop = stop.clone();
    let mappings = match origin {
        Origin::Own(mappings) => mappings,
        Origin::Agent(way) => {
            let stream = way.connect(PATIENCE)?;
            let place = format!("agent {}", way.url());
            std::thread::spawn(move || follow(&way, Some(stream), &sender, &stop));
            return Ok((place, news));
        }
    };
    let recent = Recent::new(options.sources.threshold);
    let observer = Observer::start(options, mappings)?;
    std::thread::Builder::new()
        .name("observe".to_owned())
        .spawn(move || observe(observer, recent, &sender, &stop))?;
    Ok(("own observation".to_owned(), news))
}

fn observe(mut observer: Observer, mut recent: Recent, sender: &SyncSender<News>, stop: &Stop) {
    observer.scan(None, &mut |observation| recent.see(&observation));
    let mut next = Instant::now();
    while !stop.is_set() {
        observer.poll(TICK, &mut |observation| recent.see(&observation));
        if Instant::now() < next {
            continue;
        }
        next = Instant::now() + SNAPSHOT;
        let pids: Vec<u32> = observer.workers().map(|live| live.worker.process.pid).collect();
        for pid in pids {
            if let Some(usage) = discover::usage_of(observer.proc(), pid) {
                recent.usage(pid, usage, now_ns());
            }
        }
        if !send(sender, News::Snapshot(Box::new(recent.snapshot(&observer)))) {
            return;
        }
    }
}

/// Whether somebody still listens.
fn send(sender: &SyncSender<News>, news: News) -> bool {
    !matches!(sender.try_send(news), Err(TrySendError::Disconnected(_)))
}

/// Reads the stream of an agent; connects again when it ends.
fn follow(way: &Way, first: Option<BufReader<Stream>>, sender: &SyncSender<News>, stop: &Stop) {
    let mut stream = first;
    while !stop.is_set() {
        let ended = match stream.take().map_or_else(|| way.connect(PATIENCE), Ok) {
            Ok(stream) => read(stream, sender),
            Err(error) => Err(error),
        };
        let reason =
            ended.err().map_or_else(|| "the agent ended the stream".to_owned(), |error| format!("{error:#}"));
        if !send(sender, News::Trouble(format!("{reason}; trying again"))) {
            return;
        }
        std::thread::sleep(AGAIN);
    }
}

fn read(mut stream: BufReader<Stream>, sender: &SyncSender<News>) -> anyhow::Result<()> {
    stream.get_ref().set_patience(SILENCE)?;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = match stream.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            // Over TLS: it went without a word.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            read => read.context("the agent is silent")?,
        };
        if read == 0 {
            return Ok(());
        }
        let Some(json) = line.strip_prefix(b"data: ") else { continue };
        let snapshot = serde_json::from_slice(json).context("the agent is of another version")?;
        if !send(sender, News::Snapshot(Box::new(snapshot))) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use super::*;
    use crate::config::{Access, AgentUrl};

    /// An agent that answers each connection with the next of these.
    fn agent(answers: Vec<String>) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let way = to(listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while request.read_line(&mut line).unwrap() > 2 {}
                assert!(
                    line.starts_with("GET /live HTTP/1.0\r\n") && line.contains("text/event-stream"),
                    "{line}"
                );
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        way
    }

    fn to(address: std::net::SocketAddr) -> Way {
        Way::open(AgentUrl::of(address, false), &Access::default()).unwrap()
    }

    fn event(host: &str) -> String {
        let snapshot = Snapshot { host: host.to_owned(), ..Snapshot::default() };
        format!("data: {}\n\n", serde_json::to_string(&snapshot).unwrap())
    }

    #[test]
    fn a_stream_that_ends_is_asked_for_again() {
        let head = "HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        let way = agent(vec![format!("{head}: hello\n\n{}", event("a")), format!("{head}{}", event("b"))]);
        let (sender, news) = sync_channel(8);
        let stop = Stop(Arc::default());
        let (inner, first) = (stop.clone(), way.connect(PATIENCE).unwrap());
        let thread = std::thread::spawn(move || follow(&way, Some(first), &sender, &inner));
        let mut told = Vec::new();
        while told.iter().filter(|line: &&String| line.starts_with("host")).count() < 2 {
            match news.recv_timeout(Duration::from_secs(20)).unwrap() {
                News::Snapshot(snapshot) => told.push(format!("host {}", snapshot.host)),
                News::Trouble(trouble) => told.push(trouble),
            }
        }
        assert_eq!(told, ["host a", "the agent ended the stream; trying again", "host b"]);
        stop.set();
        drop(news);
        thread.join().unwrap();
    }

    #[test]
    fn who_is_no_agent_is_refused() {
        let refused = |answer: &[u8]| {
            let answer = String::from_utf8(answer.to_vec()).unwrap();
            agent(vec![answer]).connect(PATIENCE).unwrap_err().to_string()
        };
        let error = refused(b"HTTP/1.1 404 Not Found\r\n\r\n");
        assert!(error.contains("no cadscope agent") && error.contains("404"), "{error}");
        let error = refused(b"HTTP/1.1 401 Unauthorized\r\n\r\n");
        assert!(error.contains("--token-file"), "{error}");
        let error = refused(b"\x15\x03\x03\0\x02\x02\x32");
        assert!(error.contains("is it https://127.0.0.1:"), "{error}");
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = to(closed).connect(PATIENCE).unwrap_err().to_string();
        assert!(error.contains("is one running there"), "{error}");
    }
}
