//! What other processes may ask of a store that is open, over the socket in its directory; and what they may not.

#![cfg(test)]

mod answers;
#[path = "../common/mod.rs"]
mod common;
mod false_answers;
mod place;
mod protocol;

use common::value;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use thermocline::remote::{Error, OpenStore};
use thermocline::{Cache, Cost, Tier};

const MIB: u64 = 1 << 20;

fn command(args: &[&str], root: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
    command.args(args).arg("--root").arg(root).stdin(Stdio::null()).output().unwrap()
}

fn code(ran: &Output) -> Option<i32> {
    ran.status.code()
}

fn err(ran: &Output) -> String {
    String::from_utf8_lossy(&ran.stderr).into_owned()
}

fn json(ran: &Output) -> Value {
    assert_eq!(code(ran), Some(0), "{}", err(ran));
    serde_json::from_slice(&ran.stdout).unwrap()
}

/// Another process that has a store open.
struct Holder {
    child: Child,
}

impl Holder {
    /// Of a store that is there.
    fn start(root: &Path) -> Holder {
        let exe = env!("CARGO_BIN_EXE_thermocline");
        // A umask that would let everybody in.
        let mut command = Command::new("sh");
        command.args(["-c", "umask 0; exec \"$0\" serve-metrics 0 --root \"$1\"", exe]).arg(root);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("serving "), "{line}");
        Holder { child }
    }

    fn end(mut self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A closed store of items `k0`, `k1` … in all disk tiers.
fn stored(root: &Path, items: u64) {
    let cache = Cache::builder().memory(MIB).root(root).open().unwrap();
    for no in 0..items {
        cache.put(format!("k{no}"), value(no, 1, 300)).unwrap();
    }
    cache.demote("k1", Tier::Hdd).unwrap();
    cache.demote("k2", Tier::Cold).unwrap();
    cache.close().unwrap();
}

fn socket(root: &Path) -> PathBuf {
    root.join("ssd/socket")
}

fn find(root: &Path) -> Result<OpenStore, Error> {
    OpenStore::find([root.join("ssd")])
}

fn keys(store: &OpenStore, prefix: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let unread = store.list(prefix.as_bytes(), |item| {
        assert!(keys.insert(String::from_utf8(item.key).unwrap()), "it was there twice");
        ControlFlow::Continue(())
    });
    assert_eq!(unread.unwrap(), 0);
    keys
}

/// A question, as it stands on the wire.
fn question(json: &str) -> Vec<u8> {
    let mut frame = b"TC\x01\x01".to_vec();
    frame.extend((json.len() as u32).to_le_bytes());
    frame.extend(json.bytes());
    frame
}

/// The kind of the last frame of an answer, and all of its bytes; `None`: nothing came.
fn ask(root: &Path, bytes: &[u8]) -> Option<(u8, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket(root)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // Whoever is refused in the middle need not have been read to the end.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let (mut at, mut last) = (0, None);
    while let Some(head) = answer.get(at..at + 8) {
        assert_eq!(&head[..3], b"TC\x01");
        last = Some(head[3]);
        at += 8 + u32::from_le_bytes(head[4..].try_into().unwrap()) as usize;
    }
    assert_eq!(at, answer.len(), "it does not end with a frame");
    last.map(|kind| (kind, answer))
}

/// The command with these options, which name a store.
fn with(args: &[&str], options: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
    command.args(args);
    for (option, path) in options {
        command.arg(option).arg(path);
    }
    command.stdin(Stdio::null()).output().unwrap()
}
