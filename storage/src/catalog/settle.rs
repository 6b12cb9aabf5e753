//! Who makes the catalog durable, and when: a sync of the journal, or a checkpoint, which mends a journal that failed.
//! Where checkpoints keep failing, those that will be asked for again are tried ever more seldom.
//!
//! Invariants:
//! - `sync` says `Ok` only if everything queued before it is durable in both copies, or is contained in a checkpoint
//!   that both have;
//! - a container's number is released only once the frame that drops it is durable;
//! - one checkpoint is written at a time, and no shard is locked by who asks for one.
//!
//! What a crash leaves at each step is in the tables of §6 of the design: *Rotating and writing a checkpoint*, and
//! *Mending* for one that replaces a journal which failed.

use super::Catalog;
use super::journal::Journal;
use crate::error::{Error, Result};
use std::sync::atomic::Ordering;

/// The rest after a checkpoint that failed, in milliseconds: doubled from the first to the last.
const FIRST_REST_MS: u64 = 1_000;
const LAST_REST_MS: u64 = 60_000;

/// When a checkpoint that kept failing is tried again.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// How long the rest is that was begun last; 0: the last checkpoint succeeded.
    length: u64,
    until: u64,
}

impl Rest {
    fn note(&mut self, failed: bool, now: u64) {
        self.length = match (failed, self.length) {
            (false, _) => 0,
            (true, 0) => FIRST_REST_MS,
            (true, n) => n.saturating_mul(2).min(LAST_REST_MS),
        };
        self.until = now.saturating_add(self.length);
    }
}

impl Catalog {
    /// Makes everything queued durable. If a copy fails, a checkpoint replaces the pair before this returns `Ok`.
    pub fn sync(&self) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        match journal.sync(self.now()) {
            Ok(durable) => {
                self.release_dropped(durable);
                Ok(())
            }
            Err(e) if journal.broken() => {
                if !matches!(e, Error::Busy(_)) {
                    warn_seldom!(error = %e, "the journal failed; a checkpoint replaces it");
                }
                self.mend(journal)
            }
            Err(e) => Err(e),
        }
    }

    /// As [`sync`](Self::sync), at no cost where nothing is queued and the journal is whole.
    pub fn settle(&self) -> Result<()> {
        if self.journal.as_ref().is_none_or(|j| j.settled()) { Ok(()) } else { self.sync() }
    }

    pub(super) fn release_dropped(&self, durable: u64) {
        let mut dropping = self.dropping.lock();
        let (done, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *dropping).into_iter().partition(|(frame, ..)| *frame <= durable);
        *dropping = rest;
        for (_, no, entry) in done {
            self.containers.release(no, entry);
        }
    }

    /// [`checkpoint_now`](Self::checkpoint_now), for who will ask again: after a failure nothing is tried for 1 s on
    /// the engine's clock, which doubles to 60 s with each failure more. One that another thread is writing is waited
    /// for, and will do. Says whether there is a new checkpoint.
    ///
    /// # Errors
    ///
    /// As of `checkpoint_now`, each once.
    pub fn checkpoint(&self) -> Result<bool> {
        let Some(journal) = &self.journal else { return Ok(false) };
        let before = self.checkpoints.load(Ordering::Relaxed);
        let mut rest = self.checkpointing.lock();
        if self.checkpoints.load(Ordering::Relaxed) != before {
            return Ok(true);
        }
        if self.now() < rest.until {
            return Ok(false);
        }
        self.checkpoint_locked(journal, &mut rest).map(|()| true)
    }

    /// Writes a checkpoint and publishes it, together with the heat of the items. Also mends a journal that
    /// failed.
    ///
    /// # Errors
    ///
    /// Something could not be written; the catalog is as durable as it was before.
    pub fn checkpoint_now(&self) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        self.checkpoint_locked(journal, &mut self.checkpointing.lock())
    }

    /// Replaces a journal that failed, unless somebody else has by now; then syncs what is queued.
    pub(super) fn mend(&self, journal: &Journal) -> Result<()> {
        let mut rest = self.checkpointing.lock();
        if journal.broken() {
            return self.checkpoint_locked(journal, &mut rest);
        }
        drop(rest);
        journal.sync(self.now()).map(|durable| self.release_dropped(durable))
    }

    pub(super) fn checkpoint_locked(&self, journal: &Journal, rest: &mut Rest) -> Result<()> {
        let done = match self.checkpoint_once(journal) {
            // Mending needs room; without it nothing gets durable any more, removes included.
            Err(e) if e.is_no_space() && journal.broken() && journal.give_up_reserve(&e) => {
                self.checkpoint_once(journal)
            }
            other => other,
        };
        rest.note(done.is_err(), self.now());
        done
    }
}
