//! A doubly linked list of slots, linked through the entries, oldest first, that knows its weight.
//!
//! Invariant: `len` and `bytes` are those of the entries linked, and an entry is in one list at most (its links are
//! the list's).

use crate::memory::entry::NIL;
use crate::memory::slab::Slab;

#[derive(Debug)]
pub(in crate::memory) struct List {
    head: u32,
    tail: u32,
    pub(in crate::memory) len: usize,
    pub(in crate::memory) bytes: u64,
}

impl List {
    pub(in crate::memory) fn new() -> List {
        List { head: NIL, tail: NIL, len: 0, bytes: 0 }
    }

    pub(in crate::memory) fn front(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    pub(in crate::memory) fn push_back(&mut self, slab: &mut Slab, slot: u32) {
        let Some(entry) = slab.get_mut(slot) else { return };
        entry.prev = self.tail;
        entry.next = NIL;
        self.bytes += entry.weight();
        self.len += 1;
        match slab.get_mut(self.tail) {
            Some(last) => last.next = slot,
            None => self.head = slot,
        }
        self.tail = slot;
    }

    pub(in crate::memory) fn unlink(&mut self, slab: &mut Slab, slot: u32) {
        let Some(entry) = slab.get_mut(slot) else { return };
        let (prev, next) = (entry.prev, entry.next);
        (entry.prev, entry.next) = (NIL, NIL);
        self.bytes -= entry.weight();
        self.len -= 1;
        match slab.get_mut(prev) {
            Some(before) => before.next = next,
            None => self.head = next,
        }
        match slab.get_mut(next) {
            Some(after) => after.prev = prev,
            None => self.tail = prev,
        }
    }

    pub(in crate::memory) fn move_to_back(&mut self, slab: &mut Slab, slot: u32) {
        if self.tail != slot {
            self.unlink(slab, slot);
            self.push_back(slab, slot);
        }
    }

    /// The entry that stood in another slot stands in `to` now: its neighbours are told.
    pub(in crate::memory) fn moved(&mut self, slab: &mut Slab, to: u32) {
        let Some(entry) = slab.get(to) else { return };
        let (prev, next) = (entry.prev, entry.next);
        match slab.get_mut(prev) {
            Some(before) => before.next = to,
            None => self.head = to,
        }
        match slab.get_mut(next) {
            Some(after) => after.prev = to,
            None => self.tail = to,
        }
    }
}
