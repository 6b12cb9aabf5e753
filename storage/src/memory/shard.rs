//! One shard: its slots, the index over them, their order and their sums.
//!
//! Invariants, under the shard's lock: each entry stands in one slot, once in the index and once in the order;
//! at most one entry has an identity; the sums are those of the entries.

use super::entry::Entry;
use super::index::Index;
use super::policy::{MemoryPolicy, Order, Pressure};
use super::slab::Slab;
use super::{HeatSink, Resident};
use crate::ident::Ident;
use std::sync::atomic::{AtomicU64, Ordering};

/// 64 well mixed bits of an identity (the finalizer of SplitMix64: Steele, Lea and Flood, 2014). The top bits
/// choose the shard, others the place in the index, the sketch and the ghost list.
pub(super) fn mix(ident: Ident) -> u64 {
    let mut z = ident.bits().wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn tag(hash: u64) -> u32 {
    (hash >> 20) as u32
}

/// Sums over the entries of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sums {
    pub(super) items: u64,
    pub(super) weight: u64,
    pub(super) value_bytes: u64,
    pub(super) dirty_items: u64,
    pub(super) dirty_bytes: u64,
    /// Entries that have an expiry.
    pub(super) expiring: u64,
}

impl Sums {
    fn count(&mut self, entry: &Entry, sign: impl Fn(u64, u64) -> u64) {
        let weight = entry.weight();
        self.items = sign(self.items, 1);
        self.weight = sign(self.weight, weight);
        self.value_bytes = sign(self.value_bytes, entry.value_len());
        if entry.dirty {
            self.dirty_items = sign(self.dirty_items, 1);
            self.dirty_bytes = sign(self.dirty_bytes, weight);
        }
        if entry.expires_at != 0 {
            self.expiring = sign(self.expiring, 1);
        }
    }

    pub(super) fn add(&mut self, entry: &Entry) {
        self.count(entry, |a, b| a + b);
    }

    fn sub(&mut self, entry: &Entry) {
        self.count(entry, |a, b| a.saturating_sub(b));
    }
}

#[derive(Debug)]
pub(super) struct Shard {
    slab: Slab,
    index: Index,
    pub(super) order: Order,
    sums: Sums,
    /// Weight of the entries that were prefetched and not asked for yet. A hit under the shared lock lowers it.
    prefetched: AtomicU64,
}

impl Shard {
    pub(super) fn new(policy: MemoryPolicy) -> Shard {
        Shard {
            slab: Slab::default(),
            index: Index::new(),
            order: Order::new(policy),
            sums: Sums::default(),
            prefetched: AtomicU64::new(0),
        }
    }

    pub(super) fn sums(&self) -> Sums {
        self.sums
    }

    pub(super) fn prefetched(&self) -> u64 {
        self.prefetched.load(Ordering::Relaxed)
    }

    fn slot(&self, ident: Ident, hash: u64) -> Option<u32> {
        self.index.find(tag(hash), |slot| self.slab.get(slot).is_some_and(|e| e.ident == ident))
    }

    pub(super) fn find(&self, ident: Ident, hash: u64) -> Option<&Entry> {
        self.slab.get(self.slot(ident, hash)?)
    }

    /// Counts a use of an entry of this shard.
    pub(super) fn mark_used(&self, entry: &Entry, beat: u16) -> bool {
        let first = entry.mark_used(beat);
        if first {
            self.prefetched.fetch_sub(entry.weight(), Ordering::Relaxed);
        }
        first
    }

    /// Changes an entry's metadata (not what its order depends on), keeping the sums.
    pub(super) fn update<R>(
        &mut self,
        ident: Ident,
        hash: u64,
        f: impl FnOnce(&mut Entry) -> R,
    ) -> Option<R> {
        let slot = self.slot(ident, hash)?;
        let entry = self.slab.get_mut(slot)?;
        self.sums.sub(entry);
        let result = f(entry);
        self.sums.add(entry);
        Some(result)
    }

    /// Puts an entry in, in place of what has its identity; returns that. `Err` if there is no slot left.
    pub(super) fn place(
        &mut self,
        mut entry: Entry,
        hash: u64,
        room: bool,
        heat: &dyn HeatSink,
    ) -> Result<Option<Entry>, Entry> {
        let slot = self.slot(entry.ident, hash);
        self.sums.add(&entry);
        if entry.is_unused_prefetch() {
            self.prefetched.fetch_add(entry.weight(), Ordering::Relaxed);
        }
        if let Some((slot, old)) = slot.and_then(|slot| Some((slot, self.slab.get_mut(slot)?))) {
            let stamp = *entry.stamp.get_mut();
            let (before, after) = (old.weight(), entry.weight());
            let unused = old.is_unused_prefetch();
            let uses = old.take_uses();
            entry.inherit(old);
            // Stamps are drawn before the lock, and one never goes back.
            let entry_stamp = entry.stamp.get_mut();
            *entry_stamp = stamp.max(*entry_stamp);
            // A write is a use, but not the one that a prefetch waited for.
            if !entry.is_unused_prefetch() {
                entry.mark_used(entry.beat());
            }
            let old = std::mem::replace(old, entry);
            self.order.reweighed(&self.slab, slot, before, after);
            self.sums.sub(&old);
            if unused {
                self.prefetched.fetch_sub(before, Ordering::Relaxed);
            }
            if uses > 0 {
                heat.add(old.ident, uses);
            }
            return Ok(Some(old));
        }
        match self.slab.insert(entry) {
            Ok(slot) => {
                self.index.insert(tag(hash), slot);
                self.order.admit(&mut self.slab, slot, hash, room);
                Ok(None)
            }
            Err(entry) => {
                self.sums.sub(&entry);
                if entry.is_unused_prefetch() {
                    self.prefetched.fetch_sub(entry.weight(), Ordering::Relaxed);
                }
                Err(entry)
            }
        }
    }

    /// Takes out what has this identity. Its uses go to `heat`.
    pub(super) fn remove(&mut self, ident: Ident, hash: u64, heat: &dyn HeatSink) -> Option<Entry> {
        let slot = self.slot(ident, hash)?;
        self.remove_slot(slot, heat)
    }

    fn remove_slot(&mut self, slot: u32, heat: &dyn HeatSink) -> Option<Entry> {
        self.slab.get(slot)?;
        self.order.forget(&mut self.slab, slot);
        let mut entry = self.slab.take(slot)?;
        self.index.remove(tag(mix(entry.ident)), slot);
        self.sums.sub(&entry);
        if entry.is_unused_prefetch() {
            self.prefetched.fetch_sub(entry.weight(), Ordering::Relaxed);
        }
        let uses = entry.take_uses();
        if uses > 0 {
            heat.add(entry.ident, uses);
        }
        self.compact();
        Some(entry)
    }

    /// Moves entries down while too many slots are free. Each removal frees one slot and two moves take two, so
    /// that the free slots never grow beyond what the slab asks for by more than the work of one call.
    fn compact(&mut self) {
        for _ in 0..2 {
            if !self.slab.wants_compaction() {
                return;
            }
            let Some((from, to)) = self.slab.move_last_down() else { return };
            if let Some(ident) = self.slab.get(to).map(|e| e.ident) {
                self.index.moved(tag(mix(ident)), from, to);
                self.order.moved(&mut self.slab, to);
            }
        }
    }

    /// Takes out what the policy says should go next.
    pub(super) fn evict(&mut self, pressure: &Pressure<'_>) -> Option<Entry> {
        let slot = self.order.victim(&mut self.slab, pressure)?;
        self.remove_slot(slot, pressure.heat)
    }

    /// Under `Lru`: the stamp of what [`Shard::evict`] would take.
    pub(super) fn oldest(&mut self, pressure: &Pressure<'_>) -> Option<u64> {
        match &mut self.order {
            Order::Lru(r) => r.victim(&mut self.slab, pressure.protect, pressure.heat).map(|(s, _)| s),
            Order::Clock(_) => None,
        }
    }

    /// An empty shard with this one's setting.
    pub(super) fn successor(&self, policy: MemoryPolicy) -> Shard {
        let mut next = Shard::new(policy);
        if let (Order::Clock(old), Order::Clock(new)) = (&self.order, &mut next.order) {
            new.set(old.setting());
        }
        next
    }

    /// All slots from here on are vacant.
    pub(super) fn end(&self) -> u32 {
        self.slab.end()
    }

    /// The identity in a slot, if the entry there has expired.
    pub(super) fn expired_in(&self, slot: u32, now_ms: u64) -> Option<Ident> {
        self.slab.get(slot).filter(|e| e.expired(now_ms)).map(|e| e.ident)
    }

    /// For how many beats the entry in a slot was not used, if it is on disk.
    pub(super) fn idle(&self, slot: u32, beat: u16) -> Option<u16> {
        self.slab.get(slot).filter(|e| !e.dirty).map(|e| e.idle(beat))
    }

    /// The identity in a slot, if the entry there is on disk and was not used for so many beats.
    pub(super) fn idle_in(&self, slot: u32, beat: u16, beats: u16) -> Option<Ident> {
        self.slab.get(slot).filter(|e| !e.dirty && e.idle(beat) >= beats).map(|e| e.ident)
    }

    /// How many entries have expired.
    pub(super) fn expired(&self, now_ms: u64) -> u64 {
        (0..self.slab.end()).filter(|slot| self.expired_in(*slot, now_ms).is_some()).count() as u64
    }

    pub(super) fn residents(&self) -> Vec<Resident> {
        let mut all = Vec::with_capacity(self.slab.len());
        for entry in (0..self.slab.end()).filter_map(|slot| self.slab.get(slot)) {
            all.push(Resident {
                ident: entry.ident,
                key: entry.key_bytes(),
                version: entry.version,
                expires_at: entry.expires_at,
                dirty: entry.dirty,
            });
        }
        all
    }

    /// Bytes that the shard's structures occupy, without keys and values.
    pub(super) fn allocated(&self) -> u64 {
        (self.slab.allocated() + self.index.allocated() + self.order.allocated()) as u64
    }

    /// The sums, counted anew, and whether slots, index and order agree.
    #[cfg(test)]
    pub(super) fn audit(&self) -> (Sums, u64) {
        let (mut sums, mut prefetched) = (Sums::default(), 0);
        for slot in 0..self.slab.end() {
            let Some(entry) = self.slab.get(slot) else { continue };
            sums.add(entry);
            prefetched += if entry.is_unused_prefetch() { entry.weight() } else { 0 };
            assert_eq!(self.slot(entry.ident, mix(entry.ident)), Some(slot), "indexed under its slot");
        }
        assert_eq!(sums.items as usize, self.slab.len());
        match &self.order {
            Order::Lru(recency) => recency.audit(&self.slab),
            Order::Clock(clock) => {
                let [window, main] = clock.shares();
                assert_eq!(window.0 + main.0, self.slab.len());
                assert_eq!(window.1 + main.1, sums.weight);
            }
        }
        (sums, prefetched)
    }
}
