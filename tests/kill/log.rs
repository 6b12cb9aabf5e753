//! What a process did, written down so that it survives the process: records of 32 bytes, each appended with one
//! `write(2)`. The page cache outlives a killed process, and no record lies across two pages, so each is there whole or
//! not at all.
//!
//! Each has the time, which is taken before it is written. A beginning is written before the call and an end after it: in
//! the order of the file, operations last longer than they did, never shorter. So the judge errs on the side of the store.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use thermocline_testing::history::{Begun, History, Outcome, Value};

const RECORD: usize = 32;
/// In the place of a key.
pub const NAMELESS: u32 = u32::MAX;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The process is about to open the store.
    Opening,
    /// A put of this value to this key begins.
    Put(u32, Value),
    /// A removal of this key begins.
    Remove(u32),
    /// A read of this key begins.
    Read(u32),
    /// A flush begins.
    Flush,
    /// An operation ended as it should.
    Done,
    /// An operation was refused.
    Refused,
    /// A read ended with this; 0: with nothing.
    Found(Value),
    /// It is asked what the store tells; if that is done, there was nothing: what it evicted before is in the log.
    Listen,
    /// The store told that it evicted this key; [`NAMELESS`]: one that it could not name.
    Evicted(u32),
    /// The store told that it moved something.
    Moved,
}

impl Entry {
    fn parts(self) -> (u32, u32, u64) {
        match self {
            Entry::Opening => (1, 0, 0),
            Entry::Put(key, value) => (2, key, value),
            Entry::Remove(key) => (3, key, 0),
            Entry::Read(key) => (4, key, 0),
            Entry::Flush => (5, 0, 0),
            Entry::Done => (6, 0, 0),
            Entry::Refused => (7, 0, 0),
            Entry::Found(value) => (8, 0, value),
            Entry::Evicted(key) => (9, key, 0),
            Entry::Moved => (10, 0, 0),
            Entry::Listen => (11, 0, 0),
        }
    }

    fn of(kind: u32, key: u32, value: u64) -> Entry {
        match kind {
            1 => Entry::Opening,
            2 => Entry::Put(key, value),
            3 => Entry::Remove(key),
            4 => Entry::Read(key),
            5 => Entry::Flush,
            6 => Entry::Done,
            7 => Entry::Refused,
            8 => Entry::Found(value),
            9 => Entry::Evicted(key),
            10 => Entry::Moved,
            11 => Entry::Listen,
            other => panic!("a record of kind {other} in the log"),
        }
    }
}

/// The writing end.
#[derive(Debug)]
pub struct Log {
    file: File,
    operations: AtomicU64,
    begun: Instant,
}

impl Log {
    pub fn open(path: &Path) -> Log {
        let file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        Log { file, operations: AtomicU64::new(0), begun: Instant::now() }
    }

    fn write(&self, operation: u64, entry: Entry) {
        let (kind, key, value) = entry.parts();
        let ms = self.begun.elapsed().as_millis() as u64;
        let mut record = [0; RECORD];
        record[..4].copy_from_slice(&kind.to_le_bytes());
        record[4..8].copy_from_slice(&key.to_le_bytes());
        record[8..16].copy_from_slice(&value.to_le_bytes());
        record[16..24].copy_from_slice(&operation.to_le_bytes());
        record[24..].copy_from_slice(&ms.to_le_bytes());
        assert_eq!((&self.file).write(&record).unwrap(), RECORD, "a short write to the log");
    }

    /// Something happened.
    pub fn say(&self, entry: Entry) {
        self.write(0, entry);
    }

    /// An operation begins; [`end`](Self::end) wants its number.
    pub fn begin(&self, entry: Entry) -> u64 {
        let operation = 1 + self.operations.fetch_add(1, Ordering::Relaxed);
        self.write(operation, entry);
        operation
    }

    pub fn end(&self, operation: u64, entry: Entry) {
        self.write(operation, entry);
    }
}

thermocline_testing::counts! {
    /// How much happened.
    pub struct Sum {
        rounds,
        killed_opening,
        acknowledged,
        /// Writes and flushes under way when the process was killed.
        cut_off,
        refused,
        reads,
        flushes,
        evicted,
        moved,
        /// Writes that had to be there after a kill although nobody had flushed.
        aged,
        /// Items that were there after a kill, over all rounds.
        found,
    }
}

impl Sum {
    pub fn is_lively(&self) -> bool {
        let all = [self.killed_opening, self.acknowledged, self.cut_off, self.reads, self.flushes];
        all.iter().chain(&[self.evicted, self.moved, self.aged, self.found]).all(|n| *n > 0)
    }
}

pub fn key(no: u32) -> String {
    // Some are long.
    let tail = if no.is_multiple_of(17) { "x".repeat(200) } else { String::new() };
    format!("key/{no}{tail}")
}

/// Which key it is.
pub fn number(key: &[u8]) -> u32 {
    let digits: Vec<u8> = key.iter().copied().filter(u8::is_ascii_digit).collect();
    String::from_utf8_lossy(&digits).parse().expect("a key of this test")
}

/// Each entry, its operation, and its time in milliseconds.
fn records(bytes: &[u8]) -> impl Iterator<Item = (Entry, u64, u64)> {
    bytes.chunks_exact(RECORD).map(|record| {
        let word = |at: usize| u64::from_le_bytes(*record[at..].first_chunk().unwrap());
        let (kind, no) = ((word(0) & 0xffff_ffff) as u32, (word(0) >> 32) as u32);
        (Entry::of(kind, no, word(8)), word(16), word(24))
    })
}

/// What the log says about this key, and the flushes: for people. Each with its line.
pub fn story(path: &Path, of: &str) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let mut operations = std::collections::HashSet::new();
    let mut story = String::new();
    for (at, (entry, operation, ms)) in records(&bytes).enumerate() {
        let about = match entry {
            Entry::Put(no, _) | Entry::Remove(no) | Entry::Read(no) => key(no) == of,
            Entry::Flush => true,
            Entry::Evicted(no) => no == NAMELESS || key(no) == of,
            _ => operations.contains(&operation),
        };
        if about {
            operations.insert(operation);
            story += &format!("{at}: {ms} ms, operation {operation}: {entry:?}\n");
        }
    }
    story
}

/// What a log says besides what it enters into the history.
#[derive(Debug, Default)]
pub struct Told {
    /// When the last write, and the last removal, began that was acknowledged.
    pub write_began: u64,
    pub removal_began: u64,
    /// When each write and each removal ended.
    writes_ended: Vec<u64>,
    removals_ended: Vec<u64>,
}

impl Told {
    /// How many writes, or removals alone, had ended before this.
    pub fn ended_before(&self, ms: u64, removals_alone: bool) -> u64 {
        let of = if removals_alone { &self.removals_ended } else { &self.writes_ended };
        of.iter().filter(|at| **at < ms).count() as u64
    }

    fn wrote(&mut self, removal: bool, (began, ended): (u64, u64)) {
        self.write_began = self.write_began.max(began);
        self.writes_ended.push(ended);
        if removal {
            self.removal_began = self.removal_began.max(began);
            self.removals_ended.push(ended);
        }
    }
}

/// A log on its way into the history.
struct Replay<'a> {
    history: &'a History,
    sum: &'a mut Sum,
    told: Told,
    open: HashMap<u64, (Entry, Begun, u64)>,
    /// What was evicted before this is known.
    heard: Begun,
    /// How many keys there are.
    keys: u32,
}

/// Enters what a log says into the history, and counts it. `keep_all`: the store has room for everything.
pub fn replay(path: &Path, keys: u32, keep_all: bool, history: &History, sum: &mut Sum) -> Told {
    let bytes = std::fs::read(path).unwrap();
    let (heard, open) = (history.moment(0), HashMap::new());
    let mut replay = Replay { history, sum, told: Told::default(), open, heard, keys };
    for (entry, operation, ms) in records(&bytes) {
        replay.take(entry, operation, ms);
    }
    // What went since then, nobody was there to tell. A store that has room for everything lets nothing go: there what is
    // absent was lost.
    if !keep_all {
        (0..keys).for_each(|no| replay.forgotten(no));
    }
    let cut_off = |what: &Entry| !matches!(what, Entry::Read(_) | Entry::Listen);
    replay.sum.cut_off += replay.open.values().filter(|(what, ..)| cut_off(what)).count() as u64;
    replay.told
}

impl Replay<'_> {
    fn take(&mut self, entry: Entry, operation: u64, ms: u64) {
        let begun = match entry {
            Entry::Put(no, value) => self.history.write(&key(no), Some(value), ms),
            Entry::Remove(no) => self.history.write(&key(no), None, ms),
            Entry::Read(_) => self.history.read(ms),
            Entry::Flush => self.history.flush(ms),
            Entry::Listen => self.history.moment(ms),
            Entry::Opening => return,
            Entry::Evicted(no) => {
                self.sum.evicted += 1;
                match no {
                    NAMELESS => (0..self.keys).for_each(|no| self.forgotten(no)),
                    no => self.forgotten(no),
                }
                return;
            }
            Entry::Moved => return self.sum.moved += 1,
            Entry::Done | Entry::Refused | Entry::Found(_) => {
                let begun = self.open.remove(&operation).expect("the beginning of what ended");
                return self.end(begun, entry, ms);
            }
        };
        self.open.insert(operation, (entry, begun, ms));
    }

    fn forgotten(&self, no: u32) {
        self.history.forgotten(&key(no), &self.heard, 0);
    }

    fn end(&mut self, (what, begun, began): (Entry, Begun, u64), how: Entry, ms: u64) {
        match (what, how) {
            (Entry::Put(no, _) | Entry::Remove(no), Entry::Done) => {
                self.sum.acknowledged += 1;
                self.told.wrote(matches!(what, Entry::Remove(_)), (began, ms));
                self.history.wrote(&key(no), begun, Outcome::Done, ms);
            }
            (Entry::Put(no, _), Entry::Refused) => {
                self.sum.refused += 1;
                self.history.wrote(&key(no), begun, Outcome::Refused, ms);
            }
            (Entry::Read(no), Entry::Found(value)) => {
                self.sum.reads += 1;
                self.history.was_read(&key(no), begun, (value != 0).then_some(value), ms);
            }
            (Entry::Flush, Entry::Done) => {
                self.sum.flushes += 1;
                self.history.flushed(begun, ms);
            }
            (Entry::Listen, _) => self.heard = begun,
            // A removal that failed may have had its effect; a flush and a read that failed say nothing.
            _ => self.sum.refused += 1,
        }
    }
}

mod tests;
