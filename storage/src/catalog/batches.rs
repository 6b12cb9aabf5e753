//! Batches under way, and when a container may be dropped in spite of them.

use super::Catalog;
use crate::container::Entry;
use crate::types::Tier;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

/// Marks a batch between its write to a tier and its commit; see [`Catalog::may_drop`].
#[derive(Debug)]
pub struct Batch<'a> {
    cat: &'a Catalog,
    no: u64,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.cat.batches.lock().active.remove(&self.no);
    }
}

#[derive(Debug, Default)]
pub(super) struct Batches {
    next: u64,
    /// The batches under way and the tier that each writes to.
    active: BTreeMap<u64, Tier>,
    /// Containers seen empty, with the number that every batch still active then is below. After a `clear` they may be
    /// tens of thousands.
    empty: BTreeMap<u64, u64>,
    /// Containers that may be dropped: nothing is pointed at them again.
    condemned: BTreeSet<u64>,
}

impl Batches {
    pub(super) fn forget(&mut self, id: u64) {
        self.empty.remove(&id);
        self.condemned.remove(&id);
    }
}

impl Catalog {
    /// Starts a batch: held from before the write to `tier`, and no other, until the last of it is committed.
    pub fn batch(&self, tier: Tier) -> Batch<'_> {
        let mut b = self.batches.lock();
        let no = b.next;
        b.next += 1;
        b.active.insert(no, tier);
        Batch { cat: self, no }
    }

    /// Whether a sealed container may be dropped: nothing points at it, and no batch that may have written to it
    /// is still to be committed. The first call that finds it empty only notes so; a later one answers.
    ///
    /// Once it said yes nothing points at the container again. What took the last records from it may still be only
    /// queued: [`sync`](Self::sync), then delete, then [`forget`](Self::forget).
    pub fn may_drop(&self, entry: &Entry) -> bool {
        let mut b = self.batches.lock();
        if !entry.sealed.load(Ordering::Acquire) || entry.live() > 0 {
            b.empty.remove(&entry.id);
            return false;
        }
        let next = b.next;
        // A batch on its way to another tier, which may take long to compress, has nothing in this one.
        let oldest = b.active.iter().find(|(_, tier)| **tier == entry.tier).map_or(next, |(no, _)| *no);
        let free = match b.empty.get(&entry.id) {
            // With nothing active there is nobody to wait for: batches to come do not write to it.
            None => oldest == next,
            Some(seen) => oldest >= *seen,
        };
        // Looked at again: a batch that ended since the first look may have pointed at it.
        if entry.live() > 0 {
            b.empty.remove(&entry.id);
            return false;
        }
        if free {
            b.condemned.insert(entry.id);
        } else {
            b.empty.entry(entry.id).or_insert(next);
        }
        free
    }

    /// Calls `f` unless the container was given up by [`may_drop`](Self::may_drop), which waits meanwhile.
    pub(crate) fn unless_condemned<R>(&self, entry: &Entry, f: impl FnOnce() -> R) -> Option<R> {
        let b = self.batches.lock();
        let there = self.containers.get(entry.no).is_some_and(|e| e.id == entry.id);
        (there && !b.condemned.contains(&entry.id)).then(f)
    }
}
