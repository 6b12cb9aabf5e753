//! Neighbours of what was asked for: after a hit on HDD or in the archive, what stands behind it in its container enters
//! memory too, for what was demoted together is often asked for together.
//!
//! Invariants:
//! - a read only queues a place, in a queue of bounded length; it neither waits nor is slowed;
//! - what enters is what the catalog names at that moment, verified, with its full key; it is marked, and asked for, it
//!   counts as a hit like any other;
//! - at most a twentieth of memory holds what was prefetched and not asked for, and it stops while fewer than half of what
//!   was prefetched lately is asked for, but for a little that shows whether that has changed.
//!
//! Nothing is written, so a crash leaves nothing.

use super::Engine;
use super::read::{Got, expired};
use crate::error::Result;
use crate::stats::Counters;
use crossbeam::queue::SegQueue;
use std::sync::atomic::{AtomicU64, Ordering};
use thermocline_storage::catalog::{Found, Located};
use thermocline_storage::memory::NewEntry;
use thermocline_storage::pair::Pair;
use thermocline_storage::{Ident, Item, Place, Tier, codec};

/// Places that wait at most.
const WAITING: usize = 64;
/// The part of memory that may hold what was prefetched and not asked for: one in so many.
const SHARE: u64 = 20;
/// So many are known to be used or not before anything is decided by it; after so many the counts are halved.
const WINDOW: u64 = 256;
/// While prefetching does not pay, one in so many that might be is, to see whether it would.
const TRIAL: u64 = 16;

/// What waits, and what became of what was prefetched.
#[derive(Debug, Default)]
pub(super) struct Prefetch {
    queue: SegQueue<(Ident, Place)>,
    /// Items that were asked for, and such as left without, with the past fading.
    lately_used: AtomicU64,
    lately_wasted: AtomicU64,
    chances: AtomicU64,
}

impl Prefetch {
    /// One that was prefetched is asked for the first time.
    fn note_used(&self) {
        self.lately(&self.lately_used);
    }

    /// One that was prefetched leaves memory, and nobody has asked for it.
    fn note_wasted(&self) {
        self.lately(&self.lately_wasted);
    }

    fn lately(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
        let (used, wasted) = self.known();
        if used + wasted >= 2 * WINDOW {
            self.lately_used.store(used / 2, Ordering::Relaxed);
            self.lately_wasted.store(wasted / 2, Ordering::Relaxed);
        }
    }

    fn known(&self) -> (u64, u64) {
        (self.lately_used.load(Ordering::Relaxed), self.lately_wasted.load(Ordering::Relaxed))
    }

    /// Whether at least half of what was prefetched lately was asked for, as far as anything is known.
    pub(super) fn pays(&self) -> bool {
        let (used, wasted) = self.known();
        used + wasted < WINDOW || used >= wasted
    }

    /// Whether to prefetch now.
    fn is_worth_it(&self) -> bool {
        self.pays() || self.chances.fetch_add(1, Ordering::Relaxed).is_multiple_of(TRIAL)
    }
}

impl Engine {
    /// One that was prefetched is asked for the first time.
    #[cold]
    pub(super) fn prefetch_used(&self) {
        Counters::bump(&self.counters.prefetch_used);
        self.prefetch.note_used();
    }

    /// One that was prefetched leaves memory, and nobody has asked for it.
    pub(super) fn prefetch_wasted(&self) {
        Counters::bump(&self.counters.prefetch_wasted);
        self.prefetch.note_wasted();
    }

    /// After a hit on disk: has its neighbours read, where that is one read more for many of them.
    pub(super) fn consider_prefetch(&self, ident: Ident, at: &Located) {
        let slow = matches!(at.entry.tier, Tier::Hdd | Tier::Cold);
        if !slow || self.dials.prefetch_bytes(at.entry.tier) == 0 || self.prefetch.queue.len() >= WAITING {
            return;
        }
        if self.prefetch.is_worth_it() {
            self.prefetch.queue.push((ident, at.place));
            self.signals[1].wake_now();
        }
    }

    /// Reads the neighbours of one item; says whether there was one that waited.
    pub(super) fn prefetch_step(&self) -> Result<bool> {
        let Some((ident, place)) = self.prefetch.queue.pop() else { return Ok(false) };
        let memory = self.memory.stats();
        let room = (memory.max_bytes / SHARE).saturating_sub(memory.prefetched_bytes);
        let Some(at) = self.catalog.lock(ident).durable(ident).filter(|at| at.place == place) else {
            return Ok(true);
        };
        let bytes = self.dials.prefetch_bytes(at.entry.tier);
        if bytes == 0 || room == 0 {
            return Ok(true);
        }
        // What cannot be read is told of when somebody asks for it.
        let Ok(found) = at.entry.container.following(place.position(), bytes) else { return Ok(true) };
        let mut left = room;
        for (position, item) in found {
            // What it comes to once it is decoded, which nobody has reserved room for.
            let needs = thermocline_storage::memory::weight(item.key.len(), item.original_len as usize);
            if needs > left {
                break;
            }
            left = left.saturating_sub(self.enter_neighbour(&at, position, item));
        }
        Ok(true)
    }

    /// Enters an item that stands at a position of a container, if the catalog says that it is live there and memory does
    /// not have it; gives the bytes that it takes.
    fn enter_neighbour(&self, near: &Located, position: u32, item: Item) -> u64 {
        let Some(place) = Place::new(near.entry.no, position) else { return 0 };
        let ident = self.hasher.ident(&item.key);
        if ident != item.ident || self.memory.contains(ident) {
            return 0;
        }
        let live = |found: &Found| match found {
            Found::At(l) if l.place == place => Some(l.expires_at.unwrap_or(item.expires_at)),
            _ => None,
        };
        let Some(expires_at) = self.catalog.with(ident, |found| live(&found)) else { return 0 };
        let now = self.now();
        let Ok(value) = codec::decode(item.codec, &item.payload, item.original_len) else { return 0 };
        if expired(expires_at, now) {
            return 0;
        }
        let got = Got {
            value,
            content_type: item.content_type,
            tier: near.entry.tier,
            expires_at,
            version: item.version,
        };
        let entry = NewEntry {
            ident,
            pair: Pair::new(&item.key, &got.value),
            version: got.version,
            content_type: got.content_type,
            expires_at,
            dirty: false,
            prefetched: true,
            force: false,
        };
        let bytes = thermocline_storage::memory::weight(item.key.len(), got.value.len());
        let mut out = Vec::new();
        // It may have been overwritten, removed or moved, or its expiry changed, since it was read.
        let entered = self.catalog.with(ident, |found| {
            live(&found) == Some(expires_at)
                && !self.memory.contains(ident)
                && self.memory.insert(entry, now, &mut out)
        });
        self.let_go(out);
        if !entered {
            return 0;
        }
        Counters::bump(&self.counters.prefetched);
        bytes
    }
}

#[cfg(test)]
mod tests;
