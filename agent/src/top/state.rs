//! Turns keys into what is shown and how: which panel, sorted by what, filtered by which words.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// Characters of a filter.
const MAX_FILTER: usize = 60;

/// A part of the picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Panel {
    /// Operations in flight.
    Open,
    /// Workers alive.
    #[default]
    Workers,
    /// Kinds of operations.
    Kinds,
    /// Slow operations.
    Slow,
    /// Workers that ended.
    Ended,
}

impl Panel {
    /// From top to bottom.
    pub(super) const ALL: [Self; 5] = [Self::Open, Self::Workers, Self::Kinds, Self::Slow, Self::Ended];

    /// What it can be sorted by; the first is where it begins.
    pub(super) const fn orders(self) -> &'static [&'static str] {
        match self {
            Self::Open => &["age"],
            Self::Workers => &["memory", "CPU", "operations", "failed", "age", "pid"],
            Self::Kinds => &["all time", "rate", "count", "failed", "p95", "longest", "name"],
            Self::Slow => &["time", "duration"],
            Self::Ended => &["time"],
        }
    }

    const fn place(self) -> usize {
        match self {
            Self::Open => 0,
            Self::Workers => 1,
            Self::Kinds => 2,
            Self::Slow => 3,
            Self::Ended => 4,
        }
    }

    fn at(place: usize) -> Self {
        Self::ALL.get(place % Self::ALL.len()).copied().unwrap_or_default()
    }
}

/// How a panel is shown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct View {
    order: usize,
    pub(super) reversed: bool,
    /// Rows above the first that is seen.
    pub(super) offset: usize,
    /// Rows that fit; set when it is drawn.
    pub(super) page: usize,
}

/// What the user chose.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) focus: Panel,
    pub(super) zoomed: bool,
    pub(super) help: bool,
    pub(super) filter: String,
    /// The filter is being typed.
    pub(super) typing: bool,
    views: [View; 5],
    paused: bool,
    over: bool,
}

impl State {
    pub(super) const fn is_over(&self) -> bool {
        self.over
    }

    pub(super) const fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn view(&self, panel: Panel) -> View {
        self.views.get(panel.place()).copied().unwrap_or_default()
    }

    /// What a panel is sorted by.
    pub(super) fn order(&self, panel: Panel) -> &'static str {
        let orders = panel.orders();
        orders.get(self.view(panel).order % orders.len()).copied().unwrap_or_default()
    }

    /// Notes what was drawn of a panel: its rows and how many of them fit. Gives the first to draw.
    pub(super) fn drawn(&mut self, panel: Panel, rows: usize, page: usize) -> usize {
        let Some(view) = self.views.get_mut(panel.place()) else { return 0 };
        view.page = page;
        view.offset = view.offset.min(rows.saturating_sub(page));
        view.offset
    }

    /// Whether a row with these texts passes the filter: each word is in one of them.
    pub(super) fn shows(&self, texts: &[&str]) -> bool {
        let has = |word: &str| texts.iter().any(|text| text.to_lowercase().contains(word));
        self.filter.to_lowercase().split_whitespace().all(has)
    }

    pub(super) fn press(&mut self, key: KeyEvent) {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            match key.code {
                KeyCode::Char('c') => self.over = true,
                KeyCode::Char('u') => self.filter.clear(),
                _ => {}
            }
        } else if self.typing {
            self.type_filter(key.code);
        } else if self.help {
            self.help = false;
        } else {
            self.command(key.code);
        }
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.filter.clear();
                self.typing = false;
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(character) if self.filter.chars().count() < MAX_FILTER => {
                self.filter.push(character);
            }
            _ => {}
        }
    }

    fn command(&mut self, code: KeyCode) {
        let step = |by: usize| (self.focus.place() + by) % Panel::ALL.len();
        match code {
            KeyCode::Char('q') => self.over = true,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = true,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Tab => self.focus = Panel::at(step(1)),
            KeyCode::BackTab => self.focus = Panel::at(step(Panel::ALL.len() - 1)),
            KeyCode::Char('z') | KeyCode::Enter => self.zoomed = !self.zoomed,
            KeyCode::Char(digit @ '1'..='5') => {
                let place = digit.to_digit(10).and_then(|digit| usize::try_from(digit).ok()).unwrap_or(1);
                let panel = Panel::at(place - 1);
                (self.zoomed, self.focus) = (!self.zoomed || self.focus != panel, panel);
            }
            KeyCode::Esc if self.zoomed => self.zoomed = false,
            KeyCode::Esc => self.filter.clear(),
            code => self.of_panel(code),
        }
    }

    /// Keys that are about the panel in focus.
    fn of_panel(&mut self, code: KeyCode) {
        let Some(view) = self.views.get_mut(self.focus.place()) else { return };
        let page = view.page.max(1);
        match code {
            KeyCode::Char('s') => (view.order, view.offset) = (view.order + 1, 0),
            KeyCode::Char('r') => (view.reversed, view.offset) = (!view.reversed, 0),
            KeyCode::Down | KeyCode::Char('j') => view.offset += 1,
            KeyCode::Up | KeyCode::Char('k') => view.offset = view.offset.saturating_sub(1),
            KeyCode::PageDown => view.offset += page,
            KeyCode::PageUp => view.offset = view.offset.saturating_sub(page),
            KeyCode::Home => view.offset = 0,
            // Cut to the last page when it is drawn.
            KeyCode::End => view.offset = usize::MAX / 2,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pressed(keys: &str) -> State {
        let mut state = State::default();
        for key in keys.chars() {
            let code = match key {
                '\t' => KeyCode::Tab,
                '\n' => KeyCode::Enter,
                '\u{1b}' => KeyCode::Esc,
                '<' => KeyCode::Backspace,
                'v' => KeyCode::Down,
                '^' => KeyCode::Up,
                other => KeyCode::Char(other),
            };
            state.press(KeyEvent::new(code, KeyModifiers::NONE));
        }
        state
    }

    #[test]
    fn a_filter_is_typed_and_left() {
        let state = pressed("/cutqs<<");
        assert!(state.typing && !state.is_over());
        assert_eq!(state.filter, "cut");
        assert!(state.shows(&["boolean Cut", "x"]) && !state.shows(&["boolean union"]));
        assert!(!pressed("/cut\n").typing);
        assert_eq!(pressed("/cut\u{1b}").filter, "");
        assert_eq!(pressed("/cut\n\u{1b}").filter, "");
        let words = pressed("/part 47");
        assert!(words.shows(&["Part::Cut", "4711"]) && !words.shows(&["Part::Cut", "5"]));
        assert!(State::default().shows(&[]));
    }

    #[test]
    fn panels_are_chosen_and_zoomed() {
        assert_eq!(pressed("\t").focus, Panel::Kinds);
        assert_eq!(pressed("\t\t\t\t\t").focus, Panel::Workers);
        let zoomed = pressed("4");
        assert!(zoomed.zoomed && zoomed.focus == Panel::Slow);
        assert!(!pressed("44").zoomed && pressed("43").zoomed && !pressed("4\u{1b}").zoomed);
    }

    #[test]
    fn each_panel_has_its_own_order_and_place() {
        let mut state = pressed("ssrvvv");
        assert_eq!((state.order(Panel::Workers), state.order(Panel::Kinds)), ("operations", "all time"));
        assert!(state.view(Panel::Workers).reversed && !state.view(Panel::Kinds).reversed);
        assert_eq!(state.drawn(Panel::Workers, 10, 4), 3);
        assert_eq!(state.drawn(Panel::Workers, 5, 4), 1);
        assert_eq!(pressed("ssssss").order(Panel::Workers), "memory");
    }

    #[test]
    fn it_ends_and_pauses_and_helps() {
        assert!(pressed("q").is_over() && pressed(" ").is_paused() && !pressed("  ").is_paused());
        assert!(pressed("?").help && !pressed("?q").help && !pressed("?q").is_over());
        let mut state = State::default();
        state.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(state.is_over());
    }
}
