//! Which parts of a segment are likely to be in the page cache.
//!
//! A bit for each 64 KiB, in two generations. What is written or read sets the bit of the current generation; a
//! part counts as resident while either generation has its bit. Every 30 s the older generation is emptied and
//! becomes the current one, so a part that nobody touched for 30 to 60 s is read with `pread` again, where a
//! failing device is an error and not a SIGBUS.
//!
//! The bits are a guess: the kernel may drop a page earlier. A touch of such a page through the map reads it
//! from the device, as any map does, and a device that fails just then is a SIGBUS after all. To ask the kernel first
//! (`mincore`) costs more than a `pread` does: who must not be ended reads with `pread` alone ([`ReadMode::Pread`]).
//! Nothing but speed hangs on a bit that is lost to a race.
//!
//! [`ReadMode::Pread`]: super::ReadMode::Pread

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Bytes that one bit stands for.
pub(super) const GRANULE: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Residency {
    generations: [Box<[AtomicU64]>; 2],
    current: AtomicUsize,
}

impl Residency {
    /// For a file of this many bytes, nothing of it resident.
    pub fn new(bytes: u64) -> Residency {
        let words = usize::try_from(bytes.div_ceil(GRANULE * 64)).unwrap_or(0);
        let generation = || (0..words).map(|_| AtomicU64::new(0)).collect();
        Residency { generations: [generation(), generation()], current: AtomicUsize::new(0) }
    }

    fn word(&self, generation: usize, granule: u64) -> Option<&AtomicU64> {
        self.generations.get(generation & 1)?.get(usize::try_from(granule / 64).ok()?)
    }

    fn granules(bytes: &Range<u64>) -> Range<u64> {
        bytes.start / GRANULE..bytes.end.div_ceil(GRANULE)
    }

    /// Notes that these bytes were written or read.
    pub fn touch(&self, bytes: Range<u64>) {
        let current = self.current.load(Ordering::Relaxed);
        for granule in Self::granules(&bytes) {
            let bit = 1 << (granule % 64);
            // Looked at first, so that hits share the cache line instead of passing it round.
            if let Some(word) = self.word(current, granule).filter(|w| w.load(Ordering::Relaxed) & bit == 0) {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// Whether all of these bytes were touched lately.
    pub fn holds(&self, bytes: Range<u64>) -> bool {
        Self::granules(&bytes).all(|granule| {
            let bit = 1 << (granule % 64);
            (0..2).any(|g| self.word(g, granule).is_some_and(|w| w.load(Ordering::Relaxed) & bit != 0))
        })
    }

    /// Begins a new generation in place of the older one.
    pub fn rotate(&self) {
        let next = self.current.load(Ordering::Relaxed) ^ 1;
        for word in self.generations.get(next & 1).into_iter().flatten() {
            word.store(0, Ordering::Relaxed);
        }
        self.current.store(next, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_turns_forget_what_is_not_touched() {
        let r = Residency::new(100 * GRANULE);
        assert!(!r.holds(0..1));
        r.touch(GRANULE - 1..GRANULE + 1);
        r.touch(99 * GRANULE..100 * GRANULE);
        assert!(r.holds(0..2 * GRANULE));
        assert!(!r.holds(0..2 * GRANULE + 1));
        r.rotate();
        assert!(r.holds(0..2 * GRANULE));
        r.touch(0..1);
        r.rotate();
        assert!(r.holds(0..1), "touched in the generation before");
        assert!(!r.holds(GRANULE..GRANULE + 1));
        assert!(!r.holds(99 * GRANULE..100 * GRANULE));
    }

    #[test]
    fn beyond_the_end_nothing_is_resident() {
        let r = Residency::new(10);
        r.touch(1 << 40..(1 << 40) + 5);
        assert!(!r.holds(1 << 40..(1 << 40) + 5));
    }
}
