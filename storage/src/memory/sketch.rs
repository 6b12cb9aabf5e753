//! How often an identity was seen lately: a 4-bit count-min sketch with conservative update (Cormode and
//! Muthukrishnan, 2005; Estan and Varghese, 2002) that ages by halving (TinyLFU: Einziger, Friedman and Manes,
//! 2017).
//!
//! 16 counters an entry, in blocks of one cache line: a line's eight words make four rows of 32 counters, and
//! an identity has one counter in each row of one line. When the shard grows the table is doubled by copying it,
//! which leaves every estimate as it was; when it shrinks the halves are folded by the larger counter, which
//! never lowers one.

const WORDS: usize = 8;
/// Entries that one block of 128 counters is for.
const ENTRIES: usize = 8;
const SMALLEST: usize = 64;
/// Counts taken, in multiples of the entries, between two halvings.
const PERIOD: u64 = 10;

/// The largest count.
pub(super) const MAX: u8 = 15;

#[derive(Debug)]
pub(super) struct Sketch {
    /// A power of two of blocks.
    words: Vec<u64>,
    added: u64,
    /// Entries that the sketch is for.
    entries: usize,
}

impl Sketch {
    pub(super) fn new() -> Sketch {
        Sketch { words: vec![0; SMALLEST / ENTRIES * WORDS], added: 0, entries: SMALLEST }
    }

    fn capacity(&self) -> usize {
        self.words.len() / WORDS * ENTRIES
    }

    /// Follows the number of entries.
    pub(super) fn fit(&mut self, entries: usize) {
        self.entries = entries.max(SMALLEST);
        while self.capacity() < self.entries {
            self.words.extend_from_within(..);
        }
        while self.capacity() / 8 > self.entries {
            let half = self.words.len() / 2;
            let upper = self.words.split_off(half);
            for (a, b) in self.words.iter_mut().zip(upper) {
                *a = (0..16).fold(0, |w, n| w | nibble(*a, n).max(nibble(b, n)) << (4 * n));
            }
            self.words.shrink_to_fit();
        }
    }

    /// The words of the rows of `hash`, with the position of the counter in each.
    fn cells(&self, hash: u64) -> [(usize, u32); 4] {
        let blocks = self.words.len() / WORDS;
        let base = (hash as u32 as usize & (blocks - 1)) * WORDS;
        std::array::from_fn(|row| {
            let pick = (hash >> (32 + 5 * row)) as u32 & 31;
            (base + 2 * row + (pick >> 4) as usize, pick & 15)
        })
    }

    /// How often `hash` was seen, at most 15; too high at times, too low only by ageing.
    pub(super) fn estimate(&self, hash: u64) -> u8 {
        self.cells(hash)
            .iter()
            .map(|&(word, n)| nibble(self.words.get(word).copied().unwrap_or(0), n))
            .min()
            .unwrap_or(0) as u8
    }

    /// Counts `n` uses.
    pub(super) fn add(&mut self, hash: u64, n: u32) {
        if n == 0 {
            return;
        }
        let new = (u64::from(self.estimate(hash)) + u64::from(n)).min(u64::from(MAX));
        for (word, n) in self.cells(hash) {
            if let Some(w) = self.words.get_mut(word) {
                let old = nibble(*w, n);
                if old < new {
                    *w += (new - old) << (4 * n);
                }
            }
        }
        self.added += u64::from(n);
        if self.added >= PERIOD * self.entries as u64 {
            self.added = 0;
            for w in &mut self.words {
                *w = (*w >> 1) & 0x7777_7777_7777_7777;
            }
        }
    }

    /// Bytes allocated.
    pub(super) fn allocated(&self) -> usize {
        self.words.capacity() * 8
    }
}

fn nibble(word: u64, n: u32) -> u64 {
    (word >> (4 * n)) & 15
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
    fn counts_saturates_and_halves() {
        let mut s = Sketch::new();
        s.fit(1000);
        s.add(h(1), 3);
        s.add(h(1), 1);
        s.add(h(2), 100);
        assert_eq!((s.estimate(h(1)), s.estimate(h(2)), s.estimate(h(3))), (4, 15, 0));
        for _ in 0..(PERIOD * 1000 - 104 - 1) / 10 {
            s.add(h(4), 10);
        }
        assert_eq!(s.estimate(h(1)), 4);
        s.add(h(4), 10);
        assert_eq!((s.estimate(h(1)), s.estimate(h(2))), (2, 7));
    }

    #[test]
    fn never_counts_too_little_and_seldom_too_much() {
        let mut s = Sketch::new();
        s.fit(4096);
        for i in 0..4096u64 {
            s.add(h(i), 1 + (i % 3) as u32);
        }
        let mut over = 0;
        for i in 0..4096u64 {
            let true_count = 1 + (i % 3) as u8;
            assert!(s.estimate(h(i)) >= true_count);
            over += usize::from(s.estimate(h(i)) > true_count);
        }
        assert!(over < 4096 / 10, "{over} of 4096 too high");
    }

    #[test]
    fn growing_keeps_every_estimate_and_shrinking_lowers_none() {
        let mut s = Sketch::new();
        s.fit(512);
        for i in 0..512 {
            s.add(h(i), 1 + (i % 5) as u32);
        }
        let before: Vec<u8> = (0..1024).map(|i| s.estimate(h(i))).collect();
        s.fit(5000);
        assert_eq!(s.allocated(), 8192 * 8);
        assert_eq!(before, (0..1024).map(|i| s.estimate(h(i))).collect::<Vec<_>>());
        s.fit(10);
        assert_eq!(s.allocated(), 512 * 8);
        assert!((0..1024).all(|i| s.estimate(h(i)) >= before[i as usize]));
    }
}
