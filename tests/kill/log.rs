//! What a process did, written down so that it survives the process: records of 32 bytes, each appended with one
//! `write(2)`. The page cache outlives a killed process, and no record lies across two pages, so each is there whole or
//! not at all.
//!
//! A beginning is written before the call and an end after it: in the order of the file, operations last longer than
//! they did, never shorter. So the judge errs on the side of the store.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use thermocline_testing::history::{Begun, History, Outcome, Value};

const RECORD: usize = 32;

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
    /// The store told that it evicted something.
    Evicted,
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
            Entry::Evicted => (9, 0, 0),
            Entry::Moved => (10, 0, 0),
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
            9 => Entry::Evicted,
            10 => Entry::Moved,
            other => panic!("a record of kind {other} in the log"),
        }
    }
}

/// The writing end.
#[derive(Debug)]
pub struct Log {
    file: File,
    operations: AtomicU64,
}

impl Log {
    pub fn open(path: &Path) -> Log {
        let file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        Log { file, operations: AtomicU64::new(0) }
    }

    fn write(&self, operation: u64, entry: Entry) {
        let (kind, key, value) = entry.parts();
        let mut record = [0; RECORD];
        record[..4].copy_from_slice(&kind.to_le_bytes());
        record[4..8].copy_from_slice(&key.to_le_bytes());
        record[8..16].copy_from_slice(&value.to_le_bytes());
        record[16..24].copy_from_slice(&operation.to_le_bytes());
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
        /// Items that were there after a kill, over all rounds.
        found,
    }
}

impl Sum {
    pub fn is_lively(&self) -> bool {
        let all = [self.killed_opening, self.acknowledged, self.cut_off, self.reads, self.flushes];
        all.iter().chain(&[self.evicted, self.moved, self.found]).all(|n| *n > 0)
    }
}

pub fn key(no: u32) -> String {
    // Some are long.
    let tail = if no.is_multiple_of(17) { "x".repeat(200) } else { String::new() };
    format!("key/{no}{tail}")
}

fn records(bytes: &[u8]) -> impl Iterator<Item = (Entry, u64)> {
    bytes.chunks_exact(RECORD).map(|record| {
        let word = |at: usize| u64::from_le_bytes(*record[at..].first_chunk().unwrap());
        let (kind, no) = ((word(0) & 0xffff_ffff) as u32, (word(0) >> 32) as u32);
        (Entry::of(kind, no, word(8)), word(16))
    })
}

/// What the log says about this key, and the flushes: for people. Each with its line.
pub fn story(path: &Path, of: &str) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let mut operations = std::collections::HashSet::new();
    let mut story = String::new();
    for (at, (entry, operation)) in records(&bytes).enumerate() {
        let about = match entry {
            Entry::Put(no, _) | Entry::Remove(no) | Entry::Read(no) => key(no) == of,
            Entry::Flush => true,
            _ => operations.contains(&operation),
        };
        if about {
            operations.insert(operation);
            story += &format!("{at}: operation {operation}: {entry:?}\n");
        }
    }
    story
}

/// Enters what a log says into the history, and counts it.
pub fn replay(path: &Path, history: &History, sum: &mut Sum) {
    let bytes = std::fs::read(path).unwrap();
    let mut open: HashMap<u64, (Entry, Begun)> = HashMap::new();
    for (entry, operation) in records(&bytes) {
        let begun = match entry {
            Entry::Put(no, value) => history.write(&key(no), Some(value), 0),
            Entry::Remove(no) => history.write(&key(no), None, 0),
            Entry::Read(_) => history.read(0),
            Entry::Flush => history.flush(0),
            Entry::Opening => continue,
            Entry::Evicted => {
                sum.evicted += 1;
                continue;
            }
            Entry::Moved => {
                sum.moved += 1;
                continue;
            }
            Entry::Done | Entry::Refused | Entry::Found(_) => {
                let (what, begun) = open.remove(&operation).expect("the beginning of what ended");
                end(history, sum, (what, begun), entry);
                continue;
            }
        };
        open.insert(operation, (entry, begun));
    }
    sum.cut_off += open.values().filter(|(what, _)| !matches!(what, Entry::Read(_))).count() as u64;
}

fn end(history: &History, sum: &mut Sum, (what, begun): (Entry, Begun), how: Entry) {
    match (what, how) {
        (Entry::Put(no, _) | Entry::Remove(no), Entry::Done) => {
            sum.acknowledged += 1;
            history.wrote(&key(no), begun, Outcome::Done, 0);
        }
        (Entry::Put(no, _), Entry::Refused) => {
            sum.refused += 1;
            history.wrote(&key(no), begun, Outcome::Refused, 0);
        }
        (Entry::Read(no), Entry::Found(value)) => {
            sum.reads += 1;
            history.was_read(&key(no), begun, (value != 0).then_some(value), 0);
        }
        (Entry::Flush, Entry::Done) => {
            sum.flushes += 1;
            history.flushed(begun, 0);
        }
        // A removal that failed may have had its effect; a flush and a read that failed say nothing.
        _ => sum.refused += 1,
    }
}
