//! The side that has the store open.
//!
//! One thread, `thermocline-serve`, takes connections, and gives each a thread of its own, `thermocline-ask`, which reads
//! one question, answers it, and ends. A thread each, because to verify takes long, and whoever watches meanwhile is not
//! to wait for that.
//!
//! Invariants: [`CONNECTIONS`] at most are under way, and one verification; a panic of a connection is that connection's
//! end; [`Server::stop`] ends what is under way in the middle, waits for the threads, and removes the socket, all before
//! the store lets go of its locks.

use super::answer::{Answer, Question};
use super::frame::{self, Kind, Wrong};
use super::place::{Made, Place};
use super::{CONNECTIONS, LOG, PATIENCE, REQUEST};
use crate::engine::Engine;
use parking_lot::{Condvar, Mutex};
use rustix::net::Shutdown;
use std::io;
use std::net::Shutdown as Both;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use thermocline_storage::vfs::Background;

/// After a connection could not be taken, because too many files are open, say.
const REST: Duration = Duration::from_millis(500);

/// Of what anybody can cause there is one line in the log in this time.
const QUIET: Duration = Duration::from_secs(10);

/// What answers, as long as it is not stopped.
#[derive(Debug)]
pub(crate) struct Server {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    place: Place,
    made: Made,
}

#[derive(Debug)]
struct Shared {
    engine: Arc<Engine>,
    listener: UnixListener,
    connections: Mutex<Connections>,
    /// A connection ended, or the server is to stop.
    changed: Condvar,
    stopping: AtomicBool,
    verifying: AtomicBool,
    /// When a stranger, or who is slow, was last told of, and how many were not since.
    told: Mutex<(Option<Instant>, u64)>,
}

#[derive(Debug, Default)]
struct Connections {
    /// Those under way, by number.
    streams: Vec<(u64, Arc<UnixStream>)>,
    threads: Vec<JoinHandle<()>>,
    last: u64,
}

impl Server {
    /// Makes the socket in the first directory, and removes what a crash has left in the others. `None`, and a warning, if
    /// that cannot be: a store is no worse for not being asked.
    pub(crate) fn start(engine: Arc<Engine>, directories: &[PathBuf]) -> Option<Server> {
        let (first, others) = directories.split_first()?;
        for other in others {
            // Of what is no socket it is not for this to judge.
            let _ = Place::open(other).and_then(|place| place.clear());
        }
        match Server::listen(engine, first) {
            Ok(server) => Some(server),
            Err(e) => {
                let path = first.join(super::place::NAME);
                tracing::warn!(
                    target: LOG, class = "socket", path = %path.display(), error = %e,
                    "no socket to be asked by: the store is open without one"
                );
                None
            }
        }
    }

    fn listen(engine: Arc<Engine>, directory: &Path) -> io::Result<Server> {
        let place = Place::open(directory)?;
        let (listener, made) = place.listen()?;
        let shared = Arc::new(Shared {
            engine,
            listener,
            connections: Mutex::default(),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            verifying: AtomicBool::new(false),
            told: Mutex::default(),
        });
        let of_thread = shared.clone();
        let spawned = std::thread::Builder::new()
            .name("thermocline-serve".into())
            .spawn(move || of_thread.run())
            .inspect_err(|_| place.remove(made));
        Ok(Server { shared, thread: spawned?, place, made })
    }

    /// Ends it. With `remove` the socket goes, too; without, it stays as after a crash.
    pub(crate) fn stop(self, remove: bool) {
        if remove {
            // First, so that whoever comes from now on finds none.
            self.place.remove(self.made);
        }
        self.shared.stopping.store(true, Ordering::SeqCst);
        {
            let connections = self.shared.connections.lock();
            for (_, stream) in &connections.streams {
                let _ = stream.shutdown(Both::Both);
            }
            self.shared.changed.notify_all();
        }
        // Wakes `accept`.
        let _ = rustix::net::shutdown(&self.shared.listener, Shutdown::Both);
        let _ = self.thread.join();
    }
}

impl Shared {
    fn stops(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn run(self: &Arc<Self>) {
        while self.wait_for_a_place() {
            match self.listener.accept() {
                Ok((stream, _)) => self.take(stream),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.rest(),
            }
        }
        let threads = std::mem::take(&mut self.connections.lock().threads);
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// Waits until one more may be under way; `false`: the server is to stop.
    fn wait_for_a_place(&self) -> bool {
        let mut connections = self.connections.lock();
        while !self.stops() && connections.streams.len() >= CONNECTIONS {
            self.changed.wait(&mut connections);
        }
        connections.threads.retain(|t| !t.is_finished());
        !self.stops()
    }

    fn rest(&self) {
        let mut connections = self.connections.lock();
        if !self.stops() {
            self.changed.wait_for(&mut connections, REST);
        }
    }

    /// What anybody can make happen again and again is told at most once in [`QUIET`], with how often it was not.
    fn say_seldom(&self, say: impl FnOnce(u64)) {
        let mut told = self.told.lock();
        let (last, left_out) = &mut *told;
        if last.is_some_and(|last| last.elapsed() < QUIET) {
            *left_out += 1;
            return;
        }
        *last = Some(Instant::now());
        say(std::mem::take(left_out));
    }

    /// Begins with a connection, if it is one of the same user, or of root.
    fn take(self: &Arc<Self>, stream: UnixStream) {
        let me = rustix::process::geteuid().as_raw();
        match frame::peer(&stream) {
            Ok((_, user)) if user == me || user == 0 => {}
            Ok((process, user)) => {
                self.say_seldom(|left_out| {
                    tracing::warn!(target: LOG, class = "stranger", process, user, left_out, "another user is not answered");
                });
                return;
            }
            Err(_) => return,
        }
        let stream = Arc::new(stream);
        let mut connections = self.connections.lock();
        if self.stops() {
            return;
        }
        connections.last += 1;
        let no = connections.last;
        let (shared, of_thread) = (self.clone(), stream.clone());
        let spawned = std::thread::Builder::new().name("thermocline-ask".into()).spawn(move || {
            // Its reads wait for those of callers.
            Background::for_ever();
            let answered = std::panic::catch_unwind(AssertUnwindSafe(|| shared.answer(&of_thread)));
            if matches!(&answered, Ok(Err(e)) if e.kind() == io::ErrorKind::TimedOut) && !shared.stops() {
                let process = frame::peer(&of_thread).map_or(0, |(process, _)| process);
                shared.say_seldom(|left_out| {
                    tracing::info!(
                        target: LOG, process, left_out,
                        "who asked was slow to send the question, or to take the answer: the connection is closed"
                    );
                });
            }
            let _ = of_thread.shutdown(Both::Both);
            shared.connections.lock().streams.retain(|(other, _)| *other != no);
            shared.changed.notify_all();
        });
        if let Ok(thread) = spawned {
            connections.streams.push((no, stream));
            connections.threads.push(thread);
        }
    }

    /// One question, and its answer. Who goes away in the middle, or is too slow, is told nothing more.
    fn answer(&self, stream: &UnixStream) -> io::Result<()> {
        let stop = || self.stops();
        let to = Answer { stream, stop: &stop };
        let question = match frame::read(stream, REQUEST, PATIENCE) {
            Ok((Kind::Question, body)) => Question::read(&body),
            Ok(_) => Err("a question was to come"),
            Err(Wrong::Version(_)) => Err("the question is of another version of the protocol"),
            Err(Wrong::TooLong) => Err("the question is too long"),
            Err(Wrong::NoFrame(why)) => Err(why),
            Err(Wrong::Io(e)) => return Err(e),
        };
        match question {
            Err(why) => to.refuse(why),
            Ok(Question::Stat) => to.stat(&self.engine),
            Ok(Question::History { most }) => to.history(&self.engine, most),
            Ok(Question::List { prefix, from }) => to.list(&self.engine, &prefix, from),
            Ok(Question::Verify) => {
                if self.verifying.swap(true, Ordering::SeqCst) {
                    return to.refuse("it is being verified already: one verification at a time");
                }
                let process = frame::peer(stream).map_or(0, |(process, _)| process);
                tracing::info!(target: LOG, process, "verification begins");
                let verified = std::panic::catch_unwind(AssertUnwindSafe(|| to.verify(&self.engine)));
                let how = match &verified {
                    Ok(Ok(Ok(_))) => "all was looked at",
                    Ok(Ok(Err(why))) => why,
                    Ok(Err(_)) => "who asked went away",
                    Err(_) => "it failed",
                };
                tracing::info!(target: LOG, process, how, "verification ends");
                self.verifying.store(false, Ordering::SeqCst);
                to.ended(verified.unwrap_or_else(|_| Ok(Err("the verification failed".to_owned())))?)
            }
        }
    }
}
