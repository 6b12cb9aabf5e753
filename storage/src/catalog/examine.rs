//! Which copies of the catalog's files are not what they should be. Each of them is there twice, and an opening, which
//! reads what it needs from either, writes both anew.
//!
//! Invariants: nothing is written; and what a crash alone can leave (a checkpoint published in one copy while the one
//! before is there, a last batch in one copy) is not called damage.

use super::checkpoint::{checkpoint_path, is_whole};
use super::frame::seed;
use super::journal::COPIES;
use super::recovery::{Setup, both};
use crate::flaw::{Flaw, Part};

/// The copies of the newest checkpoint that are damaged or missing. One that has come into the first copy alone, with
/// the one before still there, was being published when its process ended: that is no damage.
pub(super) fn checkpoints(setup: &Setup) -> Vec<Flaw> {
    let seqs = both(setup, "checkpoint-");
    let Some(seq) = seqs.last().copied() else { return Vec::new() };
    let paths = COPIES.map(|copy| checkpoint_path(&setup.dir, copy, seq));
    let there = paths.each_ref().map(|path| !matches!(setup.vfs.kind(path), Ok(None)));
    let half_published = seqs.len() > 1 && there == [true, false];
    let mut found = Vec::new();
    for (path, there) in paths.into_iter().zip(there) {
        if !there && !half_published {
            found.push(Flaw::new(path, Part::Checkpoint, "it is missing"));
        } else if there && !is_whole(&*setup.vfs, &path, seed(&setup.store, seq)) {
            found.push(Flaw::new(
                path,
                Part::Checkpoint,
                "a block of it does not verify, or it is cut short",
            ));
        }
    }
    found
}

/// What replay found wrong with a copy of a journal.
#[derive(Debug)]
pub(super) struct Differs {
    pub flaw: Flaw,
    /// If the copy has nothing there, which a crash leaves too: the number of the first frame that it lacks.
    pub blank: Option<u64>,
}

/// Those of the differences that no crash explains: what was known to be durable was in both copies. One a file.
pub(super) fn journals(differs: &mut Vec<Differs>, durable: u64) -> Vec<Flaw> {
    let mut found: Vec<Flaw> = Vec::new();
    for d in differs.drain(..) {
        let crashed = d.blank.is_some_and(|first| first > durable);
        if !crashed && !found.iter().any(|f| f.path == d.flaw.path) {
            found.push(d.flaw);
        }
    }
    found
}
