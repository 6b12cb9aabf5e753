//! Rows of the crash tables of the design that a life alone shows: whether a crash was one of them.
//!
//! Told by the last changes of the disk and the one that was not made any more, and by what the store was doing. A row
//! that two others share on the disk counts with them. What is not told apart here counts for none: the numbers are the
//! least that was reached.

use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use thermocline_storage::sim::Op;

/// What the store was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    Opening,
    /// Putting or flushing: what is written to the highest tier comes from the write buffer.
    Writing,
    /// The background jobs.
    Working,
    Else,
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The folder of a tier's containers.
    Folder,
    Probe,
    /// A container, or a file in it; whether the tier is the highest.
    Container {
        top: bool,
    },
    Journal,
    Other,
}

/// A crash, as far as it is known.
pub struct Crash<'a> {
    doing: Doing,
    /// The changes before, and last the one that was not made.
    changes: Vec<(Op, Part, &'a Path)>,
}

impl<'a> Crash<'a> {
    /// `top`: how the directories of the highest tier begin.
    pub fn new(doing: Doing, top: &str, changes: &'a [(Op, PathBuf)]) -> Crash<'a> {
        let changes = changes.iter().map(|(op, path)| (*op, part(path, top), path.as_path())).collect();
        Crash { doing, changes }
    }

    /// The change that was not made.
    fn next(&self) -> Option<(Op, Part, &Path)> {
        self.changes.last().copied()
    }

    /// The change that was made so many before the last one that was.
    fn made(&self, ago: usize) -> Option<(Op, Part, &Path)> {
        self.changes.iter().rev().nth(ago + 1).copied()
    }

    /// The container that was written last, before the journal, if nothing came between.
    fn before_the_journal(&self) -> Option<Part> {
        let (_, made) = self.changes.split_last()?;
        let aside = |part| matches!(part, Part::Journal | Part::Folder);
        let (op, part, path) = made.iter().rev().find(|(_, part, _)| !aside(*part))?;
        (is_container(*part) && *op != Op::RemoveFile && !is_dead(path)).then_some(*part)
    }

    fn next_is(&self, op: Op, is: impl Fn(Part) -> bool) -> bool {
        self.next().is_some_and(|(o, part, _)| o == op && is(part))
    }

    fn made_was(&self, ago: usize, op: Op, is: impl Fn(Part) -> bool) -> bool {
        self.made(ago).is_some_and(|(o, part, _)| o == op && is(part))
    }

    /// The journal is about to be written, or is being.
    fn at_the_journal(&self) -> bool {
        self.next_is(Op::Write, is_journal) && !self.made(0).is_some_and(|(_, part, _)| is_journal(part))
    }

    fn in_the_journal(&self) -> bool {
        self.next().is_some_and(|(_, part, _)| is_journal(part))
            && self.made(0).is_some_and(|(_, part, _)| is_journal(part))
    }

    fn behind_the_journal(&self) -> bool {
        self.made_was(0, Op::Sync, is_journal)
            && self.made_was(1, Op::Sync, is_journal)
            && !self.next().is_some_and(|(_, part, _)| is_journal(part))
    }

    /// What was written last but the journal is a copy of a record: it stands in a lower tier, to which nobody puts.
    fn is_move(&self) -> bool {
        self.doing != Doing::Opening && self.before_the_journal().is_some_and(is_lower)
    }

    /// What was written last but the journal comes from the write buffer.
    fn is_commit(&self) -> bool {
        self.doing == Doing::Writing && self.before_the_journal().is_some_and(is_top)
    }

    /// A container was removed, so many changes before the last that was made.
    fn removed(&self, ago: usize) -> bool {
        self.made_was(ago, Op::RemoveFile, is_container)
            || self.made_was(ago, Op::Rename, is_container) && self.made(ago).is_some_and(|c| is_dead(c.2))
    }
}

fn part(path: &Path, top: &str) -> Part {
    let text = path.to_str().unwrap_or_default();
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let of_containers = ["/segments", "/generations", "/packs"];
    if of_containers.iter().any(|folder| text.ends_with(folder)) {
        Part::Folder
    } else if name == "probe.tmp" {
        Part::Probe
    } else if of_containers.iter().any(|folder| text.contains(&format!("{folder}/"))) {
        Part::Container { top: text.starts_with(top) }
    } else if name.starts_with("journal-") {
        Part::Journal
    } else {
        Part::Other
    }
}

fn is_journal(part: Part) -> bool {
    part == Part::Journal
}

fn is_folder(part: Part) -> bool {
    part == Part::Folder
}

fn is_container(part: Part) -> bool {
    matches!(part, Part::Container { .. })
}

fn is_top(part: Part) -> bool {
    part == Part::Container { top: true }
}

fn is_lower(part: Part) -> bool {
    part == Part::Container { top: false }
}

fn is_dead(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "dead")
}

fn in_folder(change: Option<(Op, Part, &Path)>, folder: &str) -> bool {
    change.is_some_and(|(_, _, path)| path.to_str().is_some_and(|p| p.contains(folder)))
}

/// The synced folder of a container that was renamed into it just before.
fn is_new(c: &Crash<'_>, folder: &str) -> bool {
    c.made_was(0, Op::SyncDir, is_folder)
        && in_folder(c.made(0), folder)
        && c.made_was(1, Op::Rename, is_container)
        && c.made(1).is_some_and(|change| !is_dead(change.2))
}

/// How a row begins in its table, and whether a crash was of it.
type Row = (&'static str, fn(&Crash<'_>) -> bool);

pub const ROWS: &[Row] = &[
    ("while the folder is made", |c| c.made_was(0, Op::MakeDir, is_folder)),
    ("while a directory is probed", |c| {
        c.made(0).is_some_and(|(op, part, _)| part == Part::Probe && op != Op::RemoveFile)
    }),
    ("1 the oldest dirty values are taken and compressed", |c| {
        c.doing == Doing::Writing && c.next_is(Op::Write, is_top)
    }),
    ("2 appended to the highest disk tier that can hold them, one sync", |c| {
        c.is_commit() && c.made_was(0, Op::Sync, is_top)
    }),
    ("3 the places committed under the shards' locks, frames queued", |c| {
        c.is_commit() && c.at_the_journal()
    }),
    ("4 the journal written and synced, copy a, then b", |c| c.is_commit() && c.in_the_journal()),
    ("5 callers told (`Always`), memory's copies marked clean", |c| c.is_commit() && c.behind_the_journal()),
    ("the copy is written, not synced", |c| c.made_was(0, Op::Write, is_lower)),
    ("the copy is synced", |c| c.is_move() && c.at_the_journal()),
    ("swapped in RAM, frame queued", |c| c.is_move() && c.at_the_journal()),
    ("the frame is synced in one copy of the journal", |c| {
        c.is_move() && c.next_is(Op::Sync, is_journal) && c.made_was(0, Op::Sync, is_journal)
    }),
    ("the frame is synced in both", |c| c.is_move() && c.behind_the_journal()),
    ("some of a container's records were moved", |c| {
        c.doing == Doing::Working && c.at_the_journal() && c.before_the_journal().is_some_and(is_container)
    }),
    ("everything moved, frames synced", |c| {
        c.next_is(Op::RemoveFile, is_container)
            || c.next_is(Op::Rename, is_container) && c.next().is_some_and(|n| is_dead(n.2))
    }),
    ("files deleted, directory not synced", |c| c.removed(0) && c.next_is(Op::SyncDir, is_folder)),
    ("directory synced, \"dropped\" not in the journal", |c| {
        c.removed(1) && c.made_was(0, Op::SyncDir, is_folder)
    }),
    ("the directory's sync", |c| is_new(c, "/segments")),
    ("parent synced, announced", |c| is_new(c, "/generations")),
    ("**drop**: renamed to `.dead`, parent not synced", |c| {
        c.made_was(0, Op::Rename, is_container) && c.made(0).is_some_and(|change| is_dead(change.2))
    }),
];

/// How many crashes were of each row.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reached([u64; 24]);

impl Reached {
    /// Counts one.
    pub fn count(&mut self, crash: &Crash<'_>) {
        for (count, (_, is)) in self.0.iter_mut().zip(ROWS) {
            *count += u64::from(is(crash));
        }
    }

    /// Each row with its number.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ROWS.iter().zip(self.0).map(|((row, _), count)| (*row, count))
    }
}

impl AddAssign for Reached {
    fn add_assign(&mut self, other: Reached) {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a += b);
    }
}

/// The tables have these rows, and say that a life shows them.
#[test]
fn every_row_stands_in_the_design() {
    let design = include_str!("../../docs/design.md");
    assert!(ROWS.len() <= Reached::default().0.len());
    for (row, _) in ROWS {
        let lines: Vec<&str> = design.lines().filter(|l| l.starts_with(&format!("| {row} |"))).collect();
        assert!(lines.len() == 1 && lines[0].contains("*life*"), "{row}: {lines:?}");
    }
}
