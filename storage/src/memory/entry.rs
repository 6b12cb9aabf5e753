//! One resident entry: its bytes, its metadata and the bits that a hit sets.
//!
//! Invariants:
//! - `key` and `value` never change after the entry is made; a new value is a new entry in the same slot;
//! - what a hit writes is in atomics, so that a hit needs no more than shared access;
//! - `weight` is a function of the two lengths alone, so that sums can be kept without looking at the bytes.

use crate::ident::Ident;
use crate::pair::Pair;
use crate::types::{ContentType, Version};
use bytes::Bytes;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// No slot.
pub(super) const NIL: u32 = u32::MAX;

/// Bytes that an entry costs beyond its key and its value.
///
/// Measured as growth of the resident set under glibc's allocator, at 20,000 to 300,000 entries with values of
/// 100 and 1,000 bytes, after the entries were replaced twice: 165 to 178 under either policy. Of that, slot,
/// index and the policy's structures are 124 to 134 ([`MemoryStats::structure_bytes`](super::MemoryStats)); the
/// rest is the buffer's owner with its count, and what the allocator adds to two allocations.
pub const ENTRY_OVERHEAD: u64 = 176;

const REF_MASK: u32 = 0b11;
const USES_SHIFT: u32 = 4;
const USES_MAX: u32 = 15;
const PREFETCHED: u32 = 1 << 8;
/// The beat of the last use stands in the upper half.
const BEAT_SHIFT: u32 = 16;
const BEAT_MASK: u32 = !0 << BEAT_SHIFT;

/// An entry of the tier.
#[derive(Debug)]
pub(super) struct Entry {
    pair: Pair,
    pub(super) ident: Ident,
    pub(super) version: Version,
    /// Milliseconds since the epoch; 0 means never.
    pub(super) expires_at: u64,
    /// When it was last used, in uses of the whole tier. Only under `Lru`.
    pub(super) stamp: AtomicU64,
    /// The neighbour in its list, or (under `Lru`) the position in the heap.
    pub(super) prev: u32,
    pub(super) next: u32,
    marks: AtomicU32,
    pub(super) content_type: ContentType,
    pub(super) dirty: bool,
    /// Whether it stands in the main list (else in the window). Only under `Adaptive`.
    pub(super) in_main: bool,
    /// Uses that were taken from the marks so far; saturates.
    pub(super) hits: u8,
}

/// The weight of an entry with a key and a value of these lengths, in bytes.
pub fn weight(key_len: usize, value_len: usize) -> u64 {
    (key_len as u64).saturating_add(value_len as u64).saturating_add(ENTRY_OVERHEAD)
}

impl Entry {
    pub(super) fn new(new: super::NewEntry, beat: u16) -> Entry {
        Entry {
            pair: new.pair,
            ident: new.ident,
            version: new.version,
            expires_at: new.expires_at,
            stamp: AtomicU64::new(0),
            prev: NIL,
            next: NIL,
            marks: AtomicU32::new(
                if new.prefetched { PREFETCHED } else { 0 } | u32::from(beat) << BEAT_SHIFT,
            ),
            content_type: new.content_type,
            dirty: new.dirty,
            in_main: false,
            hits: 0,
        }
    }

    pub(super) fn key(&self) -> &[u8] {
        self.pair.key()
    }

    /// The key without a copy; it keeps the value's buffer alive.
    pub(super) fn key_bytes(&self) -> Bytes {
        self.pair.key_bytes()
    }

    /// The value without a copy.
    pub(super) fn value(&self) -> Bytes {
        self.pair.value()
    }

    pub(super) fn value_len(&self) -> u64 {
        self.pair.value_len() as u64
    }

    pub(super) fn weight(&self) -> u64 {
        weight(self.pair.len(), 0)
    }

    pub(super) fn expired(&self, now_ms: u64) -> bool {
        self.expires_at != 0 && self.expires_at <= now_ms
    }

    /// Counts a use, in this beat. Returns whether it was the first of an entry that was prefetched: once, however many
    /// threads hit it at the same time. Writes nothing once the counts are at their limits, but for once a beat.
    pub(super) fn mark_used(&self, beat: u16) -> bool {
        let mut old = self.marks.load(Ordering::Relaxed);
        loop {
            let refs = ((old & REF_MASK) + 1).min(REF_MASK);
            let uses = (((old >> USES_SHIFT) & USES_MAX) + 1).min(USES_MAX);
            let new = refs | (uses << USES_SHIFT) | (u32::from(beat) << BEAT_SHIFT);
            if new == old {
                return false;
            }
            match self.marks.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return old & PREFETCHED != 0,
                Err(now) => old = now,
            }
        }
    }

    /// The beat of its last use.
    pub(super) fn beat(&self) -> u16 {
        (self.marks.load(Ordering::Relaxed) >> BEAT_SHIFT) as u16
    }

    /// For how many beats nobody has used it. What lies more than half of all beats back looks newer than it is.
    pub(super) fn idle(&self, beat: u16) -> u16 {
        let since = beat.wrapping_sub(self.beat());
        // A thread that read the beat just before it changed may write the one before.
        if since > u16::MAX / 2 { 0 } else { since }
    }

    /// Prefetched and not asked for yet.
    pub(super) fn is_unused_prefetch(&self) -> bool {
        self.marks.load(Ordering::Relaxed) & PREFETCHED != 0
    }

    /// The CLOCK reference count, 0 to 3.
    pub(super) fn refs(&mut self) -> u8 {
        (*self.marks.get_mut() & REF_MASK) as u8
    }

    pub(super) fn set_refs(&mut self, refs: u8) {
        let marks = self.marks.get_mut();
        *marks = (*marks & !REF_MASK) | (u32::from(refs) & REF_MASK);
    }

    /// Takes the uses since this was last called (at most 15 are counted).
    pub(super) fn take_uses(&mut self) -> u32 {
        let marks = self.marks.get_mut();
        let uses = (*marks >> USES_SHIFT) & USES_MAX;
        *marks &= !(USES_MAX << USES_SHIFT);
        self.hits = self.hits.saturating_add(uses as u8);
        uses
    }

    /// Takes over what is known of the uses of the entry that this one replaces.
    pub(super) fn inherit(&mut self, old: &mut Entry) {
        let own = *self.marks.get_mut() & (PREFETCHED | BEAT_MASK);
        *self.marks.get_mut() = (*old.marks.get_mut() & !(PREFETCHED | BEAT_MASK)) | own;
        self.hits = old.hits;
        self.prev = old.prev;
        self.next = old.next;
        self.in_main = old.in_main;
        *self.stamp.get_mut() = *old.stamp.get_mut();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::NewEntry;

    fn entry(key: &[u8], value: Bytes, prefetched: bool) -> Entry {
        Entry::new(
            NewEntry {
                ident: Ident::from_bits(1),
                pair: Pair::new(key, &value),
                version: Version(1),
                content_type: ContentType::Binary,
                expires_at: 0,
                dirty: false,
                prefetched,
                force: false,
            },
            7,
        )
    }

    #[test]
    fn idle_time_is_counted_from_the_last_use_or_write_and_beats_come_round() {
        let e = entry(b"k", Bytes::from_static(b"v"), false);
        assert_eq!((e.idle(7), e.idle(9), e.idle(6)), (0, 2, 0));
        for _ in 0..100 {
            e.mark_used(u16::MAX);
        }
        assert_eq!((e.idle(u16::MAX), e.idle(4)), (0, 5));
        let mut later = entry(b"k", Bytes::from_static(b"w"), false);
        let mut old = e;
        later.inherit(&mut old);
        assert_eq!((later.idle(8), later.refs()), (1, 3), "a write is a use");
    }

    #[test]
    fn uses_saturate_are_taken_once_and_a_prefetch_is_used_first_once() {
        let mut e = entry(b"k", Bytes::from_static(b"v"), true);
        assert!(e.is_unused_prefetch());
        assert!(e.mark_used(7));
        assert!(!e.mark_used(7));
        assert!(!e.is_unused_prefetch());
        for _ in 0..100 {
            e.mark_used(7);
        }
        assert_eq!((e.refs(), e.take_uses(), e.take_uses(), e.refs()), (3, 15, 0, 3));
        e.set_refs(1);
        e.mark_used(7);
        assert_eq!((e.refs(), e.take_uses(), e.hits), (2, 1, 16));
    }
}
