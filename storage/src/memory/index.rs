//! Tag → slot: an open-addressed table with linear probing and backward-shift deletion (Knuth, The Art of
//! Computer Programming 3, 6.4, algorithm R), so that there are no tombstones and a miss stays short.
//!
//! A cell is a 32-bit tag and a 32-bit slot. Equal tags of different identities may both be in the table, so
//! whoever finds a slot compares the entry's identity. Between 3/16 and 3/4 of the cells are in use.

const EMPTY: u64 = u64::MAX;
const SMALLEST: usize = 16;

#[derive(Debug)]
pub(super) struct Index {
    /// A power of two of cells.
    cells: Vec<u64>,
    len: usize,
}

fn cell_of(tag: u32, slot: u32) -> u64 {
    (u64::from(tag) << 32) | u64::from(slot)
}

impl Index {
    pub(super) fn new() -> Index {
        Index { cells: vec![EMPTY; SMALLEST], len: 0 }
    }

    fn mask(&self) -> usize {
        self.cells.len() - 1
    }

    /// The first slot under this tag that `is_it` accepts.
    pub(super) fn find(&self, tag: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut at = tag as usize & self.mask();
        loop {
            let cell = *self.cells.get(at)?;
            if cell == EMPTY {
                return None;
            }
            if (cell >> 32) as u32 == tag && is_it(cell as u32) {
                return Some(cell as u32);
            }
            at = (at + 1) & self.mask();
        }
    }

    fn position(&self, tag: u32, slot: u32) -> Option<usize> {
        let wanted = cell_of(tag, slot);
        let mut at = tag as usize & self.mask();
        loop {
            match *self.cells.get(at)? {
                cell if cell == wanted => return Some(at),
                EMPTY => return None,
                _ => at = (at + 1) & self.mask(),
            }
        }
    }

    /// Adds a slot under a tag. The slot is never `NIL`, so the cell is never `EMPTY`.
    pub(super) fn insert(&mut self, tag: u32, slot: u32) {
        if (self.len + 1) * 4 > self.cells.len() * 3 {
            self.resize(self.cells.len() * 2);
        }
        self.place(cell_of(tag, slot));
        self.len += 1;
    }

    fn place(&mut self, cell: u64) {
        let mask = self.mask();
        let mut at = (cell >> 32) as usize & mask;
        while let Some(there) = self.cells.get_mut(at) {
            if *there == EMPTY {
                *there = cell;
                return;
            }
            at = (at + 1) & mask;
        }
    }

    fn resize(&mut self, cells: usize) {
        let old = std::mem::replace(&mut self.cells, vec![EMPTY; cells]);
        for cell in old {
            if cell != EMPTY {
                self.place(cell);
            }
        }
    }

    /// Says that what stood in slot `from` now stands in slot `to`.
    pub(super) fn moved(&mut self, tag: u32, from: u32, to: u32) {
        if let Some(cell) = self.position(tag, from).and_then(|at| self.cells.get_mut(at)) {
            *cell = cell_of(tag, to);
        }
    }

    /// Removes a slot from under a tag.
    pub(super) fn remove(&mut self, tag: u32, slot: u32) {
        let Some(mut hole) = self.position(tag, slot) else { return };
        let mask = self.mask();
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let cell = self.cells.get(at).copied().unwrap_or(EMPTY);
            if cell == EMPTY {
                break;
            }
            // The cell may move back to the hole unless its home lies behind the hole.
            let home = (cell >> 32) as usize & mask;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                if let Some(there) = self.cells.get_mut(hole) {
                    *there = cell;
                }
                hole = at;
            }
        }
        if let Some(there) = self.cells.get_mut(hole) {
            *there = EMPTY;
        }
        self.len -= 1;
        if self.cells.len() > SMALLEST && self.len * 16 < self.cells.len() * 3 {
            self.resize(self.cells.len() / 2);
        }
    }

    /// Bytes allocated.
    pub(super) fn allocated(&self) -> usize {
        self.cells.capacity() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// Few tags that lie close together and at the table's end, so that probes collide and wrap.
        #[test]
        fn agrees_with_a_set(ops in prop::collection::vec((any::<bool>(), 0u32..40, 0u32..8), 1..400)) {
            let mut index = Index::new();
            let mut model = BTreeSet::new();
            for (add, tag, slot) in ops {
                let tag = if tag < 20 { tag } else { u32::MAX - tag };
                if add && model.insert((tag, slot)) {
                    index.insert(tag, slot);
                } else if !add {
                    model.remove(&(tag, slot));
                    index.remove(tag, slot);
                }
                prop_assert_eq!(index.len, model.len());
                prop_assert!(index.len * 4 <= index.cells.len() * 3);
                for tag in (0..20).chain(u32::MAX - 39..=u32::MAX - 20) {
                    for slot in 0..8 {
                        prop_assert_eq!(index.find(tag, |s| s == slot).is_some(), model.contains(&(tag, slot)));
                    }
                }
            }
        }
    }

    #[test]
    fn shrinks_when_it_empties() {
        let mut index = Index::new();
        for i in 0..10_000 {
            index.insert(i * 7, i);
        }
        let full = index.allocated();
        for i in 0..10_000 {
            index.remove(i * 7, i);
        }
        assert!(full > 80_000 && index.allocated() == SMALLEST * 8);
    }
}
