//! `cadscope top`: a terminal view of what a node does now.
//!
//! It shows the snapshots of an agent that runs, or observes by itself: the same data, the same pictures. The terminal
//! is left as it was found, also after SIGTERM.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::{DefaultTerminal, Frame};

use crate::config::TopConfig;
use crate::discover::Mappings;
use crate::live::Snapshot;
use crate::observe::ObserverOptions;
use crate::preflight::{self, Node};
use crate::privileges;

use self::draw::Look;
use self::source::{News, Origin, Stop};
use self::state::State;

mod connection;
mod draw;
mod panels;
mod source;
mod state;

/// How often the picture is drawn anew while nobody presses a key: bars grow.
const FRAME: Duration = Duration::from_millis(250);

/// What is shown.
struct Screen {
    state: State,
    look: Look,
    snapshot: Option<Snapshot>,
    /// When the snapshot came.
    came: Instant,
    /// Where snapshots come from, or why none does.
    place: String,
    trouble: Option<String>,
}

/// Shows it until the user has seen enough.
///
/// # Errors
/// There is no terminal, the agent does not answer, or the node lacks something.
pub fn run(config: &TopConfig, node: &Node, options: ObserverOptions) -> anyhow::Result<u8> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        bail!("`cadscope top` draws on a terminal; for programs the same data is at the agent's /live");
    }
    let origin = match source::choose(config)? {
        Some(way) => Origin::Agent(way),
        None => {
            preflight::require(node, true)?;
            let mappings = Mappings::open(&options.sys)?;
            // Before the first thread starts: each has rights of its own.
            privileges::give_up(!options.allow_multi || !preflight::has_uprobe_multi(node))?;
            Origin::Own(mappings)
        }
    };
    let stop = Stop::on_signals()?;
    let (place, news) = source::start(origin, options, &stop)?;
    let terminal = ratatui::try_init().context("cannot draw on this terminal")?;
    let screen = Screen {
        state: State::default(),
        look: Look::from_environment(|name| std::env::var(name).ok()),
        snapshot: None,
        came: Instant::now(),
        place,
        trouble: None,
    };
    let shown = screen.show(terminal, &news, &stop);
    ratatui::restore();
    stop.set();
    shown.map(|()| 0)
}

impl Screen {
    fn show(
        mut self,
        mut terminal: DefaultTerminal,
        news: &Receiver<News>,
        stop: &Stop,
    ) -> anyhow::Result<()> {
        while !self.state.is_over() && !stop.is_set() && !has_hung_up() {
            self.take(news)?;
            terminal.draw(|frame| self.draw(frame)).context("cannot draw on this terminal")?;
            if event::poll(FRAME).context("cannot read keys")?
                && let Event::Key(key) = event::read().context("cannot read keys")?
                && key.kind == KeyEventKind::Press
            {
                self.state.press(key);
            }
        }
        Ok(())
    }

    fn take(&mut self, news: &Receiver<News>) -> anyhow::Result<()> {
        loop {
            match news.try_recv() {
                Ok(News::Snapshot(snapshot)) => {
                    self.trouble = None;
                    if !self.state.is_paused() || self.snapshot.is_none() {
                        (self.snapshot, self.came) = (Some(*snapshot), Instant::now());
                    }
                }
                Ok(News::Trouble(trouble)) => self.trouble = Some(trouble),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => bail!("the observation has ended; see the lines above"),
            }
        }
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let passed = if self.state.is_paused() { Duration::ZERO } else { self.came.elapsed() };
        let passed_ns = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        match &self.snapshot {
            Some(snapshot) => {
                let place = self.trouble.as_ref().unwrap_or(&self.place);
                draw::draw(frame, &mut self.state, &self.look, snapshot, passed_ns, place);
            }
            None => draw::wait(frame, &self.look, self.trouble.as_ref().unwrap_or(&self.place)),
        }
    }
}

/// Whether the terminal has gone.
fn has_hung_up() -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let stdin = std::io::stdin();
    let mut descriptors = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    let asked = poll(&mut descriptors, PollTimeout::ZERO);
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    asked.is_ok() && descriptors.iter().any(|one| one.revents().is_some_and(|had| had.intersects(gone)))
}
