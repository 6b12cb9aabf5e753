//! Ctrl-C, SIGTERM and SIGHUP, and the directories that must not be left behind.
//!
//! Invariants: a working directory is registered before it is made and struck off after it is gone; its guard
//! removes it however the scope is left, by a panic too; the first signal asks the work to stop; the second, or
//! [`PATIENCE`] after the first, removes the directories and ends the process on the spot (SIGKILL leaves them:
//! nothing can be done then); each of these two is answered at once with a line on stderr, and waits for no reader of
//! it. A third is ignored while the directories are removed, which it could only cut short. In the instant between the
//! process becoming a shell and the shell's first words it ends that, and the directories are left, as by SIGKILL.

use crate::failure::{Failure, INTERRUPTED, check_dir};
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// How long the work may take to stop: longer than a caller of the engine waits for a slow disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the process becomes, with the directories as arguments. Whoever called it may have set no `PATH`, or one without
/// `rm`; an empty part of it would be the working directory. There is nobody left to do anything about what `rm` says.
const REMOVE: &str =
    "trap '' INT TERM HUP; PATH=${PATH:+$PATH:}/usr/bin:/bin; rm -rf -- \"$@\" 2>/dev/null; exit";

/// How long a line for stderr may take that nobody may be reading.
const SAYING: Duration = Duration::from_millis(300);

/// How long a picture may take to make way.
const LEAVING: Duration = Duration::from_secs(2);

/// How long work may take to stop that does so at once.
const AT_ONCE: Duration = Duration::from_secs(4);

static ASKED: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);
static SCREENS: AtomicUsize = AtomicUsize::new(0);
static LACKING: OnceLock<&str> = OnceLock::new();
static DIRS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn dirs() -> MutexGuard<'static, Vec<PathBuf>> {
    DIRS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on a signal asks the work to stop instead of ending the process. Of work that is ended by a second one,
/// `lacking` says what does not come to pass: "without results".
pub fn watch(lacking: &'static str) -> Result<(), Failure> {
    let _already = LACKING.set(lacking);
    ctrlc::set_handler(request).map_err(|e| Failure::failed(format!("watch for signals: {e}")))
}

/// What a signal does, and the key for one where the terminal gives that: asks the work to stop, and says so, below a picture
/// that is drawn over the whole of the terminal and leaves it first; asked a second time, ends the process.
pub fn request() {
    if ASKED.swap(true, Ordering::SeqCst) {
        give_up();
    }
    std::thread::spawn(|| {
        std::thread::sleep(PATIENCE);
        give_up();
    });
    let begun = Instant::now();
    while SCREENS.load(Ordering::SeqCst) > 0 && begun.elapsed() < LEAVING {
        std::thread::sleep(Duration::from_millis(10));
    }
    ask_to_stop(&STOP, say);
}

/// Whether it was asked to stop, which the work is told a moment later: for a picture, which makes way.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Something draws on the whole of the terminal, for as long as this lives.
#[derive(Debug)]
pub struct Drawing(());

impl Drawing {
    /// From now on.
    pub fn begin() -> Drawing {
        SCREENS.fetch_add(1, Ordering::SeqCst);
        Drawing(())
    }
}

impl Drop for Drawing {
    fn drop(&mut self) {
        SCREENS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The same for work that ends at once, and whose screen nobody is to write on. Should it not end, because the terminal hangs
/// or is gone, the process does.
pub fn watch_quietly() -> Result<(), Failure> {
    let asked = || {
        std::thread::spawn(|| {
            std::thread::sleep(AT_ONCE);
            std::process::exit(i32::from(INTERRUPTED));
        });
        ASKED.store(true, Ordering::SeqCst);
        STOP.store(true, Ordering::SeqCst);
    };
    ctrlc::set_handler(asked).map_err(|e| Failure::failed(format!("watch for signals: {e}")))
}

/// Asks the work to stop, and says so first: it may come to its end, and the process to its own, as soon as it sees this.
fn ask_to_stop(stop: &AtomicBool, say: impl FnOnce(String)) {
    say(format!("stopping, which takes seconds; Ctrl-C again ends at once, {}", lacking()));
    stop.store(true, Ordering::SeqCst);
}

/// Removes the directories and ends the process, whatever it is doing. The process becomes a shell that removes them:
/// with that its threads are gone, which might make them again as fast as they are removed.
pub fn give_up() {
    say(format!("ended {}", lacking()));
    // Held to the end: no directory is made that is not in the list, as it is registered first.
    let left = dirs();
    let script = format!("{REMOVE} {INTERRUPTED}");
    let _no_shell = Command::new("/bin/sh").args(["-c", &script, "sh"]).args(left.iter()).exec();
    left.iter().for_each(|dir| remove(dir));
    std::process::exit(i32::from(INTERRUPTED));
}

fn lacking() -> &'static str {
    LACKING.get().copied().unwrap_or("as it is")
}

/// Writes a line to stderr, below a bar that is drawn there; gives up where it is a pipe that is full.
fn say(line: String) {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || {
        let start = if io::stderr().is_terminal() { "\n" } else { "" };
        let _ = io::stderr().lock().write_all(format!("{start}thermocline: {line}\n").as_bytes());
        let _ = done.send(());
    });
    let _ = wait.recv_timeout(SAYING);
}

/// Whether a signal asked to stop.
pub fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// A directory for as long as this lives.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    /// Makes a fresh directory, mode 0700, in one that exists.
    pub fn new_in(parent: &Path, what: &str) -> Result<WorkDir, Failure> {
        check_dir(parent)?;
        let pid = std::process::id();
        for n in 0..1000 {
            let path = parent.join(format!("thermocline-{what}-{pid}-{n}"));
            dirs().push(path.clone());
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(WorkDir { path }),
                Err(e) => {
                    strike_off(&path);
                    if e.kind() != io::ErrorKind::AlreadyExists {
                        return Err(Failure::given("make a directory in", parent, &e));
                    }
                }
            }
        }
        Err(Failure::failed(format!(
            "{}: full of left-over directories thermocline-{what}-*",
            parent.display()
        )))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        remove(&self.path);
        strike_off(&self.path);
    }
}

fn strike_off(path: &Path) {
    dirs().retain(|p| p != path);
}

/// Removes a directory and what is in it. A thread of the engine may be making something in it at this very moment,
/// directories above that included: it is gone once it has not been there for a while.
fn remove(dir: &Path) {
    let mut gone = 0;
    for _ in 0..40 {
        gone = match fs::remove_dir_all(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => gone + 1,
            _ => 0,
        };
        if gone > 5 {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_directory_is_gone_after_a_panic() {
        let parent = tempfile::tempdir().unwrap();
        let at = parent.path().to_path_buf();
        let panicked = std::panic::catch_unwind(|| {
            let dir = WorkDir::new_in(&at, "test").unwrap();
            fs::write(dir.path().join("file"), "x").unwrap();
            assert_eq!(fs::read_dir(&at).unwrap().count(), 1);
            panic!("on purpose");
        });
        assert!(panicked.is_err());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        assert!(dirs().iter().all(|d| !d.starts_with(parent.path())));
    }

    /// A process that ends in between would have said nothing.
    #[test]
    fn that_it_stops_is_said_before_the_work_can_see_it() {
        let (stop, mut said) = (AtomicBool::new(false), Vec::new());
        ask_to_stop(&stop, |line| {
            assert!(!stop.load(Ordering::SeqCst), "it may have ended by now");
            said.push(line);
        });
        assert!(stop.load(Ordering::SeqCst));
        assert!(matches!(&said[..], [line] if line.starts_with("stopping")), "{said:?}");
    }

    #[test]
    fn two_at_a_time_do_not_meet() {
        let parent = tempfile::tempdir().unwrap();
        let a = WorkDir::new_in(parent.path(), "test").unwrap();
        let b = WorkDir::new_in(parent.path(), "test").unwrap();
        assert_ne!(a.path(), b.path());
    }
}
