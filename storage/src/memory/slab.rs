//! Where the entries of a shard stand: numbered slots in chunks.
//!
//! Chunks grow and go one by one, so that nothing is copied when the shard grows and memory comes back when it
//! shrinks. Freed slots are used again lowest first; the shard moves entries down from the end while more than
//! an eighth of the slots (or 64) are free ([`Slab::wants_compaction`]), so that free slots are bounded.

use super::entry::Entry;
use std::collections::BTreeSet;

const CHUNK: usize = 64;
const SHIFT: u32 = CHUNK.trailing_zeros();

type Chunk = [Option<Entry>; CHUNK];

#[derive(Debug, Default)]
pub(super) struct Slab {
    chunks: Vec<Box<Chunk>>,
    /// The vacant slots below `end`.
    free: BTreeSet<u32>,
    /// All slots from here on are vacant.
    end: u32,
}

impl Slab {
    pub(super) fn get(&self, slot: u32) -> Option<&Entry> {
        self.chunks.get((slot >> SHIFT) as usize)?.get(slot as usize % CHUNK)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.cell(slot)?.as_mut()
    }

    fn cell(&mut self, slot: u32) -> Option<&mut Option<Entry>> {
        self.chunks.get_mut((slot >> SHIFT) as usize)?.get_mut(slot as usize % CHUNK)
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.end as usize - self.free.len()
    }

    /// All slots from here on are vacant.
    pub(super) fn end(&self) -> u32 {
        self.end
    }

    /// Puts an entry into a vacant slot, or gives it back if all 2^32 - 1 are taken.
    pub(super) fn insert(&mut self, entry: Entry) -> Result<u32, Entry> {
        let slot = match self.free.pop_first() {
            Some(slot) => slot,
            None if self.end == super::entry::NIL => return Err(entry),
            None => {
                if (self.end >> SHIFT) as usize == self.chunks.len() {
                    self.chunks.push(Box::new([const { None }; CHUNK]));
                }
                self.end += 1;
                self.end - 1
            }
        };
        match self.cell(slot) {
            Some(cell) => {
                *cell = Some(entry);
                Ok(slot)
            }
            None => Err(entry),
        }
    }

    /// Empties a slot.
    pub(super) fn take(&mut self, slot: u32) -> Option<Entry> {
        let entry = self.cell(slot)?.take()?;
        self.free.insert(slot);
        Some(entry)
    }

    /// Whether so many slots are free that entries should move down.
    pub(super) fn wants_compaction(&self) -> bool {
        self.free.len() > (self.len() / 8).max(CHUNK)
    }

    /// Moves the last entry into the lowest free slot; returns from where and whereto. `None` once the last
    /// slots were vacant and have been cut off, or nothing is free.
    pub(super) fn move_last_down(&mut self) -> Option<(u32, u32)> {
        while self.end > 0 && self.free.remove(&(self.end - 1)) {
            self.end -= 1;
        }
        let moved = self.free.pop_first().and_then(|to| {
            let from = self.end.checked_sub(1)?;
            let entry = self.cell(from)?.take()?;
            *self.cell(to)? = Some(entry);
            self.end = from;
            Some((from, to))
        });
        // One spare chunk stays, so that a count that swings about a multiple does not allocate each time.
        self.chunks.truncate((self.end as usize).div_ceil(CHUNK) + 1);
        moved
    }

    /// Bytes allocated, of the free slots too.
    pub(super) fn allocated(&self) -> usize {
        self.chunks.len() * size_of::<Chunk>()
            + self.chunks.capacity() * size_of::<Box<Chunk>>()
            + self.free.len() * 8
    }
}
