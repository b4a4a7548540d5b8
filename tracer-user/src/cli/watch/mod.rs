//! `status --watch` on a terminal: all volumes, one of them in detail, until `q` or Ctrl-C.

mod detail;
#[cfg(test)]
mod tests;
mod view;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, channel, sync_channel};
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::sys::signal::{SigSet, Signal};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::cli::Outcome;
use crate::io::clock::realtime;
use crate::journal::Journal;
use crate::model::{MarkId, Point, Timestamp};
use crate::service::{GroupSeen, Seen, Survey, run_dir, survey_now, volume_name};

const SURVEY_EVERY: Duration = Duration::from_secs(1);
const KEYS_AWAITED: Duration = Duration::from_millis(100);
/// More than the largest terminal shows.
const MARKS_KEPT: usize = 100;

/// What is shown.
#[derive(Default)]
pub(super) struct Watched {
    seen: Vec<Seen>,
    groups: Vec<GroupSeen>,
    now: Timestamp,
    /// By name, for volumes come and go.
    selected: Option<String>,
    /// The last marks of volumes that were selected, the newest first.
    marks: HashMap<String, Marks>,
    /// Nobody has answered yet.
    asking: bool,
}

struct Marks {
    newest: Option<MarkId>,
    points: Result<Vec<Point>, String>,
}

/// As text.
#[cfg(any(test, fuzzing))]
pub(super) fn screen(seen: Vec<Seen>, now: Timestamp, width: u16, height: u16) -> String {
    Watched { seen, now, ..Watched::default() }.screen(width, height).concat()
}

enum News {
    Seen(Survey, Timestamp),
    Failed(String),
    Marks(String, Marks),
    /// A signal.
    Ended,
}

/// A journal whose marks are wanted.
struct Wanted {
    name: String,
    journal: String,
    newest: Option<MarkId>,
}

pub(super) fn run(volume: Option<&str>) -> anyhow::Result<Outcome> {
    // Before there are threads: these signals wait until one takes them, and end none.
    let ends: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    ends.thread_block().context("signals can't be held back")?;
    on_terminal(|terminal| watch(terminal, volume, ends)).map(|()| Outcome::Done)
}

/// Whatever comes of it, a panic too, the terminal is then as it was.
fn on_terminal(work: impl FnOnce(&mut DefaultTerminal) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut terminal = ratatui::try_init().context("the terminal can't be used; leave --watch away")?;
    let result = work(&mut terminal);
    ratatui::restore();
    result
}

fn watch(terminal: &mut DefaultTerminal, volume: Option<&str>, ends: SigSet) -> anyhow::Result<()> {
    let mut watched = Watched { asking: true, ..Watched::default() };
    watched.selected = volume.map(volume_name);
    let (news, received) = sync_channel(1);
    let (wanted, orders) = channel();
    // These end with the process: none holds anything.
    spawn("signals", &news, move |news| {
        // Whichever it is. That there is none to wait for can't be.
        let _ = ends.wait();
        let _ = news.send(News::Ended);
    })?;
    spawn("marks", &news, move |news| {
        read_marks(&orders, |name, marks| news.send(News::Marks(name, marks)).is_ok())
    })?;
    spawn("survey", &news, |news| {
        loop {
            let found = match survey_now(&run_dir()) {
                Ok(survey) => News::Seen(survey, realtime()),
                Err(error) => News::Failed(format!("the protections can't be asked: {error}")),
            };
            if news.send(found).is_err() {
                return;
            }
            std::thread::sleep(SURVEY_EVERY);
        }
    })?;
    drop(news);
    while watched.hear(&received)? {
        terminal.draw(|frame| view::draw(frame, &watched)).context("the terminal can't be written")?;
        if event::poll(KEYS_AWAITED).context("the keyboard can't be read")?
            && let Event::Key(key) = event::read().context("the keyboard can't be read")?
            && !watched.takes(key)
        {
            return Ok(());
        }
        if let Some(unknown) = watched.unknown_marks() {
            // The thread is there as long as we are.
            let _ = wanted.send(unknown);
        }
    }
    Ok(())
}

/// Its panic has given the terminal back: nothing may be drawn any more.
fn spawn(
    name: &'static str,
    news: &SyncSender<News>,
    body: impl FnOnce(&SyncSender<News>) + Send + 'static,
) -> anyhow::Result<()> {
    let news = news.clone();
    let watched = move || {
        if catch_unwind(AssertUnwindSafe(|| body(&news))).is_err() {
            let _ = news.send(News::Failed(format!("the thread {name} ended, please report it")));
        }
    };
    let thread = std::thread::Builder::new().name(name.into()).spawn(watched);
    thread.context("a thread can't be started").map(drop)
}

/// A long journal takes a while: nobody waits for it.
fn read_marks(orders: &Receiver<Wanted>, tell: impl Fn(String, Marks) -> bool) {
    while let Ok(Wanted { name, journal, newest }) = orders.recv() {
        let points = Journal::open(journal.as_ref()).and_then(|journal| journal.points());
        let points = points.map(|points| points.into_iter().rev().take(MARKS_KEPT).collect());
        let points = points.map_err(|error| format!("{:#}", anyhow!(error)));
        if !tell(name, Marks { newest, points }) {
            return;
        }
    }
}

impl Watched {
    #[cfg(any(test, fuzzing))]
    fn screen(&self, width: u16, height: u16) -> Vec<String> {
        let backend = ratatui::backend::TestBackend::new(width, height);
        let mut terminal = ratatui::Terminal::new(backend).expect("memory can be drawn to");
        terminal.draw(|frame| view::draw(frame, self)).expect("memory can be drawn to");
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(row).collect()
    }

    /// Whether to go on.
    fn takes(&mut self, key: KeyEvent) -> bool {
        if key.kind == KeyEventKind::Release {
            return true;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Down | KeyCode::Char('j') => self.select(|index| index.saturating_add(1)),
            KeyCode::Up | KeyCode::Char('k') => self.select(|index| index.saturating_sub(1)),
            KeyCode::PageDown => self.select(|index| index.saturating_add(10)),
            KeyCode::PageUp => self.select(|index| index.saturating_sub(10)),
            KeyCode::Home => self.select(|_| 0),
            KeyCode::End => self.select(|_| usize::MAX),
            _ => {}
        }
        true
    }

    fn select(&mut self, to: impl Fn(usize) -> usize) {
        let last = self.seen.len().saturating_sub(1);
        self.selected = self.seen.get(to(self.index()).min(last)).map(|seen| seen.name.clone());
    }

    /// Of the selected volume; the first, while that is not there.
    fn index(&self) -> usize {
        self.seen.iter().position(|seen| Some(&seen.name) == self.selected.as_ref()).unwrap_or(0)
    }

    /// Whether to go on.
    fn hear(&mut self, news: &Receiver<News>) -> anyhow::Result<bool> {
        loop {
            match news.try_recv() {
                Ok(News::Seen(survey, now)) => {
                    (self.seen, self.groups) = (survey.volumes, survey.groups);
                    (self.now, self.asking) = (now, false);
                    self.marks.retain(|name, _| self.seen.iter().any(|seen| seen.name == *name));
                }
                Ok(News::Marks(name, marks)) => {
                    self.marks.insert(name, marks);
                }
                Ok(News::Ended) => return Ok(false),
                Ok(News::Failed(why)) => anyhow::bail!(why),
                Err(TryRecvError::Empty) => return Ok(true),
                Err(TryRecvError::Disconnected) => anyhow::bail!("a thread ended, please report it"),
            }
        }
    }

    /// What the marks of the selected volume are to be read for, noted as being read.
    fn unknown_marks(&mut self) -> Option<Wanted> {
        let seen = self.seen.get(self.index())?;
        let status = seen.status.as_ref().filter(|status| !status.journal.is_empty())?;
        let newest = status.last_mark.as_ref().map(|mark| mark.id);
        let name = seen.name.clone();
        match self.marks.get_mut(&name) {
            Some(marks) if marks.newest == newest => return None,
            // What is known is shown until there is more.
            Some(marks) => marks.newest = newest,
            None => drop(self.marks.insert(name.clone(), Marks { newest, points: Ok(Vec::new()) })),
        }
        Some(Wanted { name, journal: status.journal.clone(), newest })
    }
}
