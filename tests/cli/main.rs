//! The command, as a user runs it: what it prints, what it leaves, how it exits.

#![cfg(test)]

mod bench;
mod dirs;
mod items;
mod log;
mod progress;
mod replay;
mod serve;
mod settings;
mod top;
mod verify;

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use thermocline::Cache;

type Try = Result<(), Box<dyn std::error::Error>>;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
    command.args(args);
    command
}

struct Ran {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Ended with this code and, where it is a failure, one line on stderr, beside what an opening says.
    fn with(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.text(), self.err);
        let opening = ["thermocline: made ", "thermocline: opening found "];
        let others = self.err.lines().filter(|line| !opening.iter().any(|o| line.starts_with(o)));
        assert!(others.count() <= 1, "{}", self.err);
        self
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

impl From<Output> for Ran {
    fn from(o: Output) -> Ran {
        Ran { code: o.status.code(), out: o.stdout, err: String::from_utf8_lossy(&o.stderr).into_owned() }
    }
}

/// Starts it with pipes for its output.
fn start(args: &[&str], stdin: Stdio) -> Child {
    start_command(command(args).stdin(stdin))
}

fn start_command(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn run(args: &[&str]) -> Ran {
    start(args, Stdio::null()).wait_with_output().unwrap().into()
}

fn run_with_input(args: &[&str], input: &[u8]) -> Ran {
    let mut child = start(args, Stdio::piped());
    // A command that refuses what it is asked may end before it has read anything.
    if let Err(e) = child.stdin.take().unwrap().write_all(input) {
        assert_eq!(e.kind(), std::io::ErrorKind::BrokenPipe, "{e}");
    }
    child.wait_with_output().unwrap().into()
}

/// A directory, and what names a store in it on the command line.
struct Place {
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        Place { root: dir.path().join("store"), _dir: dir }
    }

    fn root(&self) -> &str {
        self.root.to_str().unwrap()
    }

    fn run(&self, args: &[&str]) -> Ran {
        let mut all = args.to_vec();
        all.extend(["--root", self.root()]);
        run(&all)
    }

    fn put(&self, key: &str, value: &[u8], more: &[&str]) -> Ran {
        let mut args = vec!["put", key, "--root", self.root()];
        args.extend(more);
        run_with_input(&args, value)
    }
}

/// What a benchmark or a replay would leave behind.
fn left_in(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().flatten().map(|e| e.path()).collect()
}

/// Waits until something is so, for as long as a machine may stand still.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The state of its first thread, as the kernel names it: `S` sleeps, `T` is stopped.
fn state(child: &Child) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    stat.rsplit(") ").next().unwrap().chars().take(1).collect()
}

/// The next line of what is read, for which a minute is waited, and the rest.
fn line<R: Read + Send + 'static>(mut from: BufReader<R>) -> (String, BufReader<R>) {
    let (said, line) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        let _ = said.send((line, from));
    });
    line.recv_timeout(Duration::from_secs(60)).expect("nothing is said in a minute")
}

fn wait(child: &mut Child, limit: Duration) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    panic!("still running after {limit:?}");
}
