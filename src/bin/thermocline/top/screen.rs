//! The live picture: a terminal, its keys, and a thread that looks.
//!
//! Invariants: the terminal is put back however this is left: a key, a signal, an error, a panic (SIGKILL leaves it, and
//! `reset` helps); the keys are answered whatever the store does, because another thread waits for it.

use super::snapshot::Snapshot;
use super::source::Source;
use super::view::View;
use crate::failure::Failure;
use crate::interrupt;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use std::io::{self, IsTerminal};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// How soon a key or a signal is answered.
const BEAT: Duration = Duration::from_millis(100);

/// How it was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// By a key.
    Quit,
    /// By Ctrl-C or a signal.
    Interrupted,
    /// What was watched came to its end.
    Over,
}

/// Whether there is a terminal to draw on and to read keys from.
pub fn is_there() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The terminal, which is put back when this goes.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> Result<Screen, Failure> {
        // A panic, too, puts the terminal back before it is told.
        let terminal = ratatui::try_init().map_err(|e| {
            ratatui::restore();
            Failure::failed(format!("draw on the terminal: {e}: `thermocline top --once` prints one picture"))
        })?;
        Ok(Screen(terminal))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // What cannot be put back is not to be complained about into it.
        let _ = ratatui::try_restore();
    }
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Quit,
    Interrupt,
    Pause,
}

fn asked(event: &Event) -> Option<Asked> {
    let Event::Key(key) = event else { return None };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        // The terminal gives the key, and no signal.
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Asked::Interrupt),
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => Some(Asked::Quit),
        KeyCode::Char('p' | 'P' | ' ') => Some(Asked::Pause),
        _ => None,
    }
}

/// Shows what a source says until a key, a signal, or `over` says that there is nothing more to see.
///
/// # Errors
/// The first look failed, or the terminal did.
pub fn show(
    mut source: impl Source + 'static,
    every: Duration,
    over: impl Fn() -> bool,
) -> Result<Left, Failure> {
    let name = source.name();
    let first = source.look()?;
    let (sender, looks) = sync_channel(1);
    // Not waited for at the end: it may be waiting for a store that does not answer.
    let (go_on, until) = sync_channel::<()>(0);
    std::thread::spawn(move || watch(&mut source, every, &sender, &until));
    let shown = draw(&mut Screen::open()?.0, &name, first, &looks, over);
    drop(go_on);
    shown
}

/// Looks again and again, as long as anybody takes what is seen.
fn watch(
    source: &mut impl Source,
    every: Duration,
    sender: &SyncSender<Result<Snapshot, Failure>>,
    until: &Receiver<()>,
) {
    while until.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
        if sender.send(source.look()).is_err() {
            return;
        }
    }
}

fn draw(
    terminal: &mut DefaultTerminal,
    name: &str,
    first: Snapshot,
    looks: &Receiver<Result<Snapshot, Failure>>,
    over: impl Fn() -> bool,
) -> Result<Left, Failure> {
    let failed = |e: io::Error| Failure::failed(format!("draw on the terminal: {e}"));
    let (mut before, mut now) = (None, first);
    let (mut trouble, mut paused, mut changed) = (None, false, true);
    loop {
        if interrupt::stopped() {
            return Ok(Left::Interrupted);
        }
        if over() {
            return Ok(Left::Over);
        }
        match looks.try_recv() {
            // What comes while it stands still is taken all the same, so that the next picture is of the last second.
            Ok(Ok(look)) => {
                (before, now) = (Some(now), look);
                (trouble, changed) = (None, changed || !paused);
            }
            Ok(Err(why)) => (trouble, changed) = (Some(why.message), changed || !paused),
            Err(_) => {}
        }
        if std::mem::take(&mut changed) {
            let keys = if paused { "paused, p goes on, q quits" } else { "q quit, p pause" };
            let view = View { name, before: before.as_ref(), now: &now, trouble: trouble.as_deref(), keys };
            terminal.draw(|frame| frame.render_widget(&view, frame.area())).map_err(failed)?;
        }
        if !event::poll(BEAT).map_err(failed)? {
            continue;
        }
        let event = event::read().map_err(failed)?;
        changed |= matches!(event, Event::Resize(..));
        match asked(&event) {
            Some(Asked::Quit) => return Ok(Left::Quit),
            Some(Asked::Interrupt) => return Ok(Left::Interrupted),
            Some(Asked::Pause) => (paused, changed) = (!paused, true),
            None => {}
        }
    }
}
