//! Least recently used, settled at eviction.
//!
//! A hit writes the number of the use on the entry and nothing else. The shard keeps a binary heap of its slots
//! by the stamp that they had when they were last looked at; a stamp only grows, so the root's is a lower bound
//! of every stamp in the shard. Eviction looks at the root: if it was used since, it goes down to where its
//! stamp of now belongs, else it is the least recently used.
//!
//! Cost: an eviction is O(log n), and each entry used since it was last looked at adds O(log n) once; so a use
//! is paid for at most once, at an eviction. All uses of the tier draw their numbers from one counter, which is
//! a cache line that all threads share.

use crate::ident::Ident;
use crate::memory::HeatSink;
use crate::memory::slab::Slab;

#[derive(Debug, Default)]
pub(in crate::memory) struct Recency {
    /// Stamp when last looked at, slot. The slot's entry has the position in `prev`.
    heap: Vec<(u64, u32)>,
}

impl Recency {
    /// A lower bound of the stamps in the shard; `u64::MAX` if it is empty.
    pub(in crate::memory) fn oldest(&self) -> u64 {
        self.heap.first().map_or(u64::MAX, |&(stamp, _)| stamp)
    }

    /// Adds a slot whose entry has its stamp.
    pub(in crate::memory) fn push(&mut self, slab: &mut Slab, slot: u32) {
        let Some(entry) = slab.get_mut(slot) else { return };
        let stamp = *entry.stamp.get_mut();
        self.heap.push((stamp, slot));
        self.up(slab, self.heap.len() - 1);
    }

    /// Removes a slot whose entry is still in it.
    pub(in crate::memory) fn remove(&mut self, slab: &mut Slab, slot: u32) {
        let Some(at) = slab.get(slot).map(|e| e.prev as usize) else { return };
        if self.heap.get(at).is_none_or(|&(_, s)| s != slot) {
            return;
        }
        self.heap.swap_remove(at);
        if at < self.heap.len() {
            let at = self.up(slab, at);
            self.down(slab, at);
        }
        if self.heap.capacity() > 64 && self.heap.len() < self.heap.capacity() / 4 {
            self.heap.shrink_to(self.heap.len() * 2);
        }
    }

    /// The entry that stood in another slot stands in `to` now.
    pub(in crate::memory) fn moved(&mut self, slab: &Slab, to: u32) {
        if let Some(place) = slab.get(to).and_then(|e| self.heap.get_mut(e.prev as usize)) {
            place.1 = to;
        }
    }

    /// The least recently used slot other than that of `protect`, with its stamp. It stays in the heap.
    pub(in crate::memory) fn victim(
        &mut self,
        slab: &mut Slab,
        protect: Option<Ident>,
        heat: &dyn HeatSink,
    ) -> Option<(u64, u32)> {
        loop {
            let &(seen, slot) = self.heap.first()?;
            let alone = self.heap.len() == 1;
            let entry = slab.get_mut(slot)?;
            let protected = protect == Some(entry.ident);
            if protected && alone {
                return None;
            }
            let now = *entry.stamp.get_mut();
            if now == seen && !protected {
                return Some((seen, slot));
            }
            if now == seen {
                // Its write comes with a fresh stamp, so this is a race with another writer's eviction; the
                // entry behind it is as good.
                return self.second();
            }
            let uses = entry.take_uses();
            if uses > 0 {
                heat.add(entry.ident, uses);
            }
            if let Some(root) = self.heap.first_mut() {
                root.0 = now;
            }
            self.down(slab, 0);
        }
    }

    /// The better of the root's children, as it was when last looked at.
    fn second(&self) -> Option<(u64, u32)> {
        self.heap.get(1).into_iter().chain(self.heap.get(2)).min().copied()
    }

    fn stamp(&self, at: usize) -> u64 {
        self.heap.get(at).map_or(u64::MAX, |&(stamp, _)| stamp)
    }

    fn note(&self, slab: &mut Slab, at: usize) {
        if let Some(entry) = self.heap.get(at).and_then(|&(_, slot)| slab.get_mut(slot)) {
            entry.prev = at as u32;
        }
    }

    /// Moves the element up to where it belongs; returns where that is.
    fn up(&mut self, slab: &mut Slab, mut at: usize) -> usize {
        while at > 0 && self.stamp(at) < self.stamp((at - 1) / 2) {
            self.heap.swap(at, (at - 1) / 2);
            self.note(slab, at);
            at = (at - 1) / 2;
        }
        self.note(slab, at);
        at
    }

    fn down(&mut self, slab: &mut Slab, mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let least = if self.stamp(right) < self.stamp(left) { right } else { left };
            if self.stamp(least) >= self.stamp(at) {
                break;
            }
            self.heap.swap(at, least);
            self.note(slab, at);
            at = least;
        }
        self.note(slab, at);
    }

    /// Bytes allocated.
    pub(in crate::memory) fn allocated(&self) -> usize {
        self.heap.capacity() * size_of::<(u64, u32)>()
    }

    /// Whether it is a heap of lower bounds over every slot, and each entry knows its position.
    #[cfg(test)]
    pub(in crate::memory) fn audit(&self, slab: &Slab) {
        assert_eq!(self.heap.len(), slab.len());
        for (at, &(stamp, slot)) in self.heap.iter().enumerate() {
            let entry = slab.get(slot).unwrap();
            assert_eq!(entry.prev as usize, at);
            assert!(stamp <= entry.stamp.load(std::sync::atomic::Ordering::Relaxed));
            assert!(at == 0 || self.heap[(at - 1) / 2].0 <= stamp);
        }
    }
}
