//! The live picture: a terminal, its keys, and a thread that looks.
//!
//! Invariants: the terminal is put back however this is left: a key, a signal that can be caught and is one to end or to stop
//! a program, an error, a panic (SIGKILL and SIGSTOP leave it, and `reset` helps), and taken again when the program goes on;
//! the keys are answered whatever the store does, because another thread waits for it, for the first look, too; where the
//! terminal is gone, this ends.

use super::snapshot::Snapshot;
use super::source::Source;
use super::view::View;
use crate::failure::Failure;
use crate::interrupt::{self, Drawing};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGQUIT, SIGTSTP, SIGUSR1, SIGUSR2};
use signal_hook::flag;
use signal_hook::low_level::emulate_default_handler;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
struct Screen {
    /// There until this goes.
    terminal: Option<DefaultTerminal>,
    /// Given up after the terminal was put back.
    _drawing: Drawing,
}

impl Screen {
    fn open() -> Result<Screen, Failure> {
        let drawing = Drawing::begin();
        // A panic, too, puts the terminal back before it is told.
        let terminal = ratatui::try_init().map_err(|e| {
            ratatui::restore();
            Failure::failed(format!("draw on the terminal: {e}: `thermocline top --once` prints one picture"))
        })?;
        Ok(Screen { terminal: Some(terminal), _drawing: drawing })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // What cannot be put back is not to be complained about into it; which ratatui would do when it is dropped, with a
        // panic where not even that can be written.
        if let Some(mut terminal) = self.terminal.take()
            && terminal.show_cursor().is_err()
        {
            std::mem::forget(terminal);
        }
        let _ = ratatui::try_restore();
    }
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Quit,
    Interrupt,
    Pause,
    Suspend,
}

/// Signals that would end or stop the program with the terminal as it is.
struct Signals {
    /// Those that end it.
    end: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    /// The picture has ended, and what goes on takes them as any program does.
    over: Arc<AtomicBool>,
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

impl Signals {
    fn watch() -> Result<Signals, Failure> {
        let signals = Signals { end: Arc::default(), stop: Arc::default(), over: Arc::default() };
        let of = |signal| if signal == SIGTSTP { &signals.stop } else { &signals.end };
        for signal in [SIGQUIT, SIGUSR1, SIGUSR2, SIGTSTP] {
            flag::register_conditional_default(signal, signals.over.clone())
                .and_then(|_| flag::register(signal, of(signal).clone()))
                .map_err(|e| Failure::failed(format!("watch for signals: {e}")))?;
        }
        Ok(signals)
    }
}

/// Whether anything can be read from the terminal, after a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Terminal {
    Quiet,
    Ready,
    Gone,
}

/// How often it is looked whether the terminal is there, and how many times in a row it has to be gone.
const LOOK: Duration = Duration::from_millis(500);
const LONG_GONE: u32 = 6;

/// Waits for a key. Where the terminal is gone, to read from it would be tried for ever.
fn wait_for_key(time: Duration) -> Terminal {
    let stdin = io::stdin();
    let mut of = [PollFd::new(&stdin, PollFlags::IN)];
    let time = Timespec { tv_sec: 0, tv_nsec: i64::try_from(time.as_nanos()).unwrap_or(100_000_000) };
    if !matches!(poll(&mut of, Some(&time)), Ok(1..)) {
        return Terminal::Quiet;
    }
    let found = of.map(|fd| fd.revents()).into_iter().fold(PollFlags::empty(), |all, one| all | one);
    if found.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
        Terminal::Gone
    } else {
        Terminal::Ready
    }
}

fn asked(event: &Event) -> Option<Asked> {
    let Event::Key(key) = event else { return None };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        // The terminal gives the key, and no signal.
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Asked::Interrupt),
        KeyCode::Char('z') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Asked::Suspend),
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
    let (sender, looks) = sync_channel(1);
    // Not waited for at the end: it may be waiting for a store that does not answer.
    let (go_on, until) = sync_channel::<()>(0);
    std::thread::spawn(move || watch(&mut source, every, &sender, &until));
    let first = loop {
        if interrupt::asked() {
            return Ok(Left::Interrupted);
        }
        if over() {
            return Ok(Left::Over);
        }
        match looks.recv_timeout(BEAT) {
            Ok(first) => break first?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::failed("the look at the store ended"));
            }
        }
    };
    let signals = Signals::watch()?;
    let _watched = Watched::begin();
    let mut picture = Picture { name, before: None, now: first, trouble: None, paused: false };
    loop {
        let left = draw(&mut Screen::open()?, &mut picture, &looks, &signals, &over)?;
        let Some(left) = left else {
            // The terminal is as it was, and whoever asked for this has it.
            signals.stop.store(false, Ordering::SeqCst);
            emulate_default_handler(SIGTSTP).map_err(|e| Failure::failed(format!("stop: {e}")))?;
            continue;
        };
        drop(go_on);
        return Ok(left);
    }
}

/// While it lives, a terminal that goes away ends the process within a few seconds. The picture looks before it reads; but
/// who reads at the moment at which the terminal goes reads for ever, and looks at nothing any more.
struct Watched {
    _alive: SyncSender<()>,
}

impl Watched {
    fn begin() -> Watched {
        let (alive, ended) = sync_channel::<()>(0);
        std::thread::spawn(move || {
            let mut gone = 0;
            while gone < LONG_GONE {
                if ended.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                gone = if wait_for_key(Duration::ZERO) == Terminal::Gone { gone + 1 } else { 0 };
            }
            interrupt::give_up();
        });
        Watched { _alive: alive }
    }
}

/// Looks again and again, as long as anybody takes what is seen.
fn watch(
    source: &mut impl Source,
    every: Duration,
    sender: &SyncSender<Result<Snapshot, Failure>>,
    until: &Receiver<()>,
) {
    loop {
        if sender.send(source.look()).is_err() {
            return;
        }
        if until.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// What is on the screen.
struct Picture {
    name: String,
    before: Option<Snapshot>,
    now: Snapshot,
    trouble: Option<String>,
    paused: bool,
}

/// Draws until it is left; `None`: the program is to stop for a while.
fn draw(
    screen: &mut Screen,
    picture: &mut Picture,
    looks: &Receiver<Result<Snapshot, Failure>>,
    signals: &Signals,
    over: impl Fn() -> bool,
) -> Result<Option<Left>, Failure> {
    match draw_on(screen, picture, looks, signals, over) {
        Ok(left) => Ok(left),
        // A terminal may go between any two calls: each of them can be the first that notices.
        Err(e) if is_gone(&e) => Ok(Some(Left::Interrupted)),
        Err(e) => Err(Failure::failed(format!("draw on the terminal: {e}"))),
    }
}

/// Whether that is why it failed.
fn is_gone(e: &io::Error) -> bool {
    let said = [Errno::IO, Errno::NXIO, Errno::NODEV, Errno::NOTTY].map(|no| Some(no.raw_os_error()));
    said.contains(&e.raw_os_error()) || wait_for_key(BEAT) == Terminal::Gone || interrupt::asked()
}

fn draw_on(
    screen: &mut Screen,
    picture: &mut Picture,
    looks: &Receiver<Result<Snapshot, Failure>>,
    signals: &Signals,
    over: impl Fn() -> bool,
) -> io::Result<Option<Left>> {
    let mut changed = true;
    loop {
        if interrupt::asked() || signals.end.load(Ordering::SeqCst) {
            return Ok(Some(Left::Interrupted));
        }
        if signals.stop.load(Ordering::SeqCst) {
            return Ok(None);
        }
        if over() {
            return Ok(Some(Left::Over));
        }
        match looks.try_recv() {
            // What comes while it stands still is taken all the same, so that the next picture is of the last second.
            Ok(Ok(look)) => {
                picture.before = Some(std::mem::replace(&mut picture.now, look));
                (picture.trouble, changed) = (None, changed || !picture.paused);
            }
            Ok(Err(why)) => (picture.trouble, changed) = (Some(why.message), changed || !picture.paused),
            Err(_) => {}
        }
        if std::mem::take(&mut changed) {
            let keys = if picture.paused { "paused, p goes on, q quits" } else { "q quit, p pause" };
            let Picture { name, before, now, trouble, .. } = &*picture;
            let view = View { name, before: before.as_ref(), now, trouble: trouble.as_deref(), keys };
            if let Some(terminal) = &mut screen.terminal {
                terminal.draw(|frame| frame.render_widget(&view, frame.area()))?;
            }
        }
        let terminal = wait_for_key(BEAT);
        if terminal == Terminal::Gone {
            return Ok(Some(Left::Interrupted));
        }
        // Also where no key is: another size is told to the same.
        while event::poll(Duration::ZERO)? {
            let event = event::read()?;
            changed |= matches!(event, Event::Resize(..));
            match asked(&event) {
                Some(Asked::Quit) => return Ok(Some(Left::Quit)),
                Some(Asked::Interrupt) => return Ok(Some(Left::Interrupted)),
                Some(Asked::Suspend) => return Ok(None),
                Some(Asked::Pause) => (picture.paused, changed) = (!picture.paused, true),
                None => {}
            }
            if wait_for_key(Duration::ZERO) == Terminal::Gone {
                return Ok(Some(Left::Interrupted));
            }
        }
        if terminal == Terminal::Ready && !changed {
            // What was read is only the beginning of a key.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
