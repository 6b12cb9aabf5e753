//! What an index of blocks is: extents by record number, kept in RAM or behind the fence.
//!
//! An extent is a stretch of one value file, at most about a block long unless it is one larger block, whose
//! blocks follow each other with rising record numbers. Many small blocks (one for each durable single write)
//! thereby make one entry, and an index is bounded by the bytes that it covers, not by the records.
//!
//! Invariant: an index is advice. Nothing that it says is believed before the bytes it points at verified.
//!
//! Nothing is written here: `keeper.rs` tells when an index goes to disk and what a crash leaves of it.

use crate::record::{le16, le32, le64};
use std::cmp::Reverse;
use std::fmt;
use std::path::Path;

/// A stretch of a value file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// The record number of its first record.
    pub first: u32,
    /// Records in it.
    pub count: u32,
    /// The number of the value file.
    pub file: u16,
    /// Where it begins.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
}

impl Extent {
    /// Bytes of an encoded extent without its first record number, which is the key.
    pub const ENCODED: usize = 24;

    /// Whether a record number is one of its.
    pub fn holds(&self, record: u32) -> bool {
        record >= self.first && record - self.first < self.count
    }

    /// The value of the index's entry.
    pub fn encode(&self) -> [u8; Self::ENCODED] {
        let mut out = [0; Self::ENCODED];
        let parts = self.count.to_le_bytes().into_iter().chain(self.file.to_le_bytes()).chain([0; 2]);
        let parts = parts.chain(self.offset.to_le_bytes()).chain(self.len.to_le_bytes());
        out.iter_mut().zip(parts).for_each(|(o, p)| *o = p);
        out
    }

    /// The extent of an index's entry.
    pub fn decode(first: u32, value: &[u8]) -> Option<Extent> {
        (value.len() == Self::ENCODED).then(|| Extent {
            first,
            count: le32(value, 0),
            file: le16(value, 4),
            offset: le64(value, 8),
            len: le64(value, 16),
        })
    }
}

/// Adds an extent at the end, joined with the last one if they are neighbours and together at most `max` bytes.
pub(super) fn push(extents: &mut Vec<Extent>, new: Extent, max: u64) {
    if let Some(last) = extents.last_mut() {
        let follows = last.file == new.file
            && last.offset + last.len == new.offset
            && last.first.checked_add(last.count) == Some(new.first);
        if follows && last.len + new.len <= max {
            last.count += new.count;
            last.len += new.len;
            return;
        }
    }
    extents.push(new);
}

/// The extent that may hold a record, in extents sorted by their first record.
pub(super) fn find(extents: &[Extent], record: u32) -> Option<Extent> {
    let after = extents.partition_point(|e| e.first <= record);
    extents.get(after.checked_sub(1)?).filter(|e| e.holds(record)).copied()
}

/// Two indexes of the same records as one, sorted by their first record: of extents that cover the same, the longer.
/// The ends rise with the beginnings, so the last one that begins early enough holds a record if any does.
pub(super) fn union(a: &[Extent], b: &[Extent]) -> Vec<Extent> {
    let mut all = [a, b].concat();
    all.sort_by_key(|e| (e.first, Reverse(e.count)));
    let mut end = 0;
    all.retain(|e| {
        let its = u64::from(e.first) + u64::from(e.count);
        let further = its > end;
        end = end.max(its);
        further
    });
    all
}

/// An index on disk. It lives on its fence thread and is free to fail, panic or hang.
pub(super) trait BlockIndex {
    /// Enters extents, rising, each once.
    fn insert(&mut self, extents: &[Extent]) -> Result<(), String>;
    /// The entry with the greatest first record that is at most `record`.
    fn lookup(&mut self, record: u32) -> Result<Option<Extent>, String>;
    /// Sets the sentinel, which is no extent.
    fn set_sentinel(&mut self, token: &[u8]) -> Result<(), String>;
    /// The sentinel.
    fn sentinel(&mut self) -> Result<Option<Vec<u8>>, String>;
    /// Writes out everything and lets go of the files.
    fn close(self: Box<Self>) -> Result<(), String>;
}

/// Opens indexes on disk.
pub(super) trait IndexFactory: Send + Sync + fmt::Debug + 'static {
    /// Opens the index in this directory, made if missing, for about `entries` entries and with a cache of
    /// `cache` bytes. Called on the fence thread.
    fn open(&self, path: &Path, entries: u64, cache: u64) -> Result<Box<dyn BlockIndex>, String>;
    /// Bytes that an index of so many entries takes on disk, with a margin.
    fn estimate(&self, entries: u64) -> u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(first: u32, count: u32, offset: u64, len: u64) -> Extent {
        Extent { first, count, file: 0, offset, len }
    }

    #[test]
    fn neighbours_are_joined_up_to_the_limit() {
        let mut all = Vec::new();
        push(&mut all, extent(0, 2, 100, 50), 120);
        push(&mut all, extent(2, 1, 150, 50), 120);
        push(&mut all, extent(3, 1, 200, 50), 120);
        push(&mut all, extent(5, 1, 250, 10), 120);
        push(&mut all, extent(6, 1, 270, 10), 120);
        assert_eq!(
            all,
            [extent(0, 3, 100, 100), extent(3, 1, 200, 50), extent(5, 1, 250, 10), extent(6, 1, 270, 10)]
        );
        assert_eq!(find(&all, 2), Some(all[0]));
        assert_eq!(find(&all, 3), Some(all[1]));
        assert_eq!(find(&all, 4), None, "between two extents");
        assert_eq!(find(&all, 7), None);
        assert_eq!(find(&[], 0), None);
    }

    #[test]
    fn a_union_finds_what_either_finds() {
        // All pairs of indexes of five records: bit by bit, whether a record is in it, and whether it is joined with the
        // one before.
        let index = |bits: u32| {
            let mut all = Vec::new();
            for n in (0..5).filter(|n| bits >> n & 1 == 1) {
                push(&mut all, extent(n, 1, 100 * u64::from(n), 100), 100 << (bits >> 5 & 3));
            }
            all
        };
        for (a, b) in (0..128).flat_map(|a| (0..128).map(move |b| (a, b))) {
            let both = union(&index(a), &index(b));
            let whole =
                |e: &Extent| e.offset == 100 * u64::from(e.first) && e.len == 100 * u64::from(e.count);
            assert!(both.iter().all(whole) && both.is_sorted_by_key(|e| e.first), "{a} {b}: {both:?}");
            for n in 0..5 {
                assert_eq!(find(&both, n).is_some(), (a | b) >> n & 1 == 1, "{n} of {a} {b}: {both:?}");
            }
        }
        let far = [extent(7, 3, 0, 1), extent(u32::MAX, u32::MAX, 0, 1)];
        assert_eq!(union(&far, &far), far);
    }

    #[test]
    fn an_entry_comes_back_as_it_was() {
        let e = Extent { first: 9, count: 70_000, file: 3, offset: 1 << 33, len: 1 << 30 };
        assert_eq!(Extent::decode(9, &e.encode()), Some(e));
        assert_eq!(Extent::decode(9, &e.encode()[1..]), None);
    }
}
