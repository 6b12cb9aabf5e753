//! Identities that left the window a short while ago: a FIFO of 32-bit fingerprints without a queue.
//!
//! A table of buckets of eight cells (one cache line); a cell holds a fingerprint and the number of its
//! insertion, and counts only while that is one of the last `limit`. A full bucket gives up its oldest, so that
//! a few leave early; none stays too long. A wrong answer costs a place in the main list, nothing else.

const WAYS: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Ghost {
    /// A power of two of buckets, or none. 0 is a vacant cell: numbers begin at 1.
    cells: Vec<u64>,
    /// Number of the newest insertion.
    newest: u32,
    limit: u32,
}

impl Ghost {
    /// Remembers the last `limit` insertions from now on.
    pub(super) fn fit(&mut self, limit: usize) {
        self.limit = u32::try_from(limit).unwrap_or(u32::MAX / 2).min(u32::MAX / 2);
        let wanted = (self.limit as usize * 5 / 4).next_power_of_two().max(WAYS);
        if self.limit == 0 {
            self.cells = Vec::new();
        } else if self.cells.len() < wanted || self.cells.len() / 8 > wanted {
            let old = std::mem::replace(&mut self.cells, vec![0; wanted]);
            for cell in old {
                if self.is_live(cell) {
                    self.place(cell);
                }
            }
        }
    }

    fn is_live(&self, cell: u64) -> bool {
        cell != 0 && self.newest - (cell >> 32) as u32 <= self.limit.saturating_sub(1)
    }

    fn bucket(&mut self, print: u32) -> &mut [u64] {
        let buckets = self.cells.len() / WAYS;
        // The low bits of the print chose nothing yet: the shard and the index use other bits of the hash.
        let at = (print as usize & buckets.wrapping_sub(1)) * WAYS;
        self.cells.get_mut(at..at + WAYS).unwrap_or_default()
    }

    fn place(&mut self, cell: u64) {
        let print = cell as u32;
        let bucket = self.bucket(print);
        let same = bucket.iter().position(|&c| c != 0 && c as u32 == print);
        let at = same.or_else(|| (0..bucket.len()).min_by_key(|&i| bucket.get(i).map(|c| c >> 32)));
        if let Some(there) = at.and_then(|i| bucket.get_mut(i)) {
            // While cells move to a smaller table, a newer one may be there already.
            *there = (*there).max(cell);
        }
    }

    /// Remembers an identity.
    pub(super) fn insert(&mut self, hash: u64) {
        if self.limit == 0 {
            return;
        }
        if self.newest == u32::MAX {
            self.cells.fill(0);
            self.newest = 0;
        }
        self.newest += 1;
        self.place((u64::from(self.newest) << 32) | (hash & 0xffff_ffff));
    }

    /// Whether the identity is remembered; if so it is forgotten.
    pub(super) fn take(&mut self, hash: u64) -> bool {
        let (newest, limit) = (self.newest, self.limit);
        let print = hash as u32;
        for cell in self.bucket(print) {
            if *cell != 0 && *cell as u32 == print {
                let live = newest - (*cell >> 32) as u32 <= limit.saturating_sub(1);
                *cell = 0;
                return live;
            }
        }
        false
    }

    /// Bytes allocated.
    pub(super) fn allocated(&self) -> usize {
        self.cells.capacity() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::super::shard::mix;
    use super::*;
    use crate::ident::Ident;

    fn h(i: u64) -> u64 {
        mix(Ident::from_bits(i))
    }

    #[test]
    fn remembers_the_last_ones_and_only_those() {
        let mut g = Ghost::default();
        g.insert(h(1));
        assert!(!g.take(h(1)), "no limit yet: remembers nothing");
        g.fit(1000);
        for i in 0..5000 {
            g.insert(h(i));
        }
        let kept = (4000..5000).filter(|&i| g.take(h(i))).count();
        assert!(kept > 850, "{kept} of 1000");
        assert_eq!((0..4000).filter(|&i| g.take(h(i))).count(), 0);
        assert_eq!((4000..5000).filter(|&i| g.take(h(i))).count(), 0, "taken once");
    }

    #[test]
    fn resizing_keeps_what_is_within_the_limit() {
        let mut g = Ghost::default();
        g.fit(64);
        for i in 0..64 {
            g.insert(h(i));
        }
        g.fit(10_000);
        assert!((0..64).filter(|&i| g.take(h(i))).count() > 40);
        for i in 0..10_000 {
            g.insert(h(i));
        }
        let large = g.allocated();
        g.fit(10);
        assert!(g.allocated() < large / 100);
        assert!((9_990..10_000).filter(|&i| g.take(h(i))).count() > 6);
        g.fit(0);
        g.insert(h(1));
        assert!(!g.take(h(1)) && g.allocated() == 0);
    }

    #[test]
    fn survives_the_wrap_of_its_numbers() {
        let mut g = Ghost::default();
        g.fit(8);
        g.newest = u32::MAX - 2;
        for i in 0..10 {
            g.insert(h(i));
        }
        assert!(g.take(h(9)));
        assert!(!g.take(h(0)));
    }
}
