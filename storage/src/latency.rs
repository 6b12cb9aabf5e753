//! How long operations take: histograms that any thread records into, and what is read out of them.
//!
//! Invariants: recording takes no lock and no memory, and two threads wait for each other no longer than for a cache
//! line; a figure that a [`Latency`] gives is at most 3.2 % above what was recorded, never below it; counts, sum and
//! greatest value are read one after the other while others record, so that they may be a moment apart.

use histogram::{AtomicHistogram, Histogram as Counted};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// 32 buckets for each doubling: 3.2 %.
const GROUPING: u8 = 5;
/// What takes longer than 2³⁶ ns, 69 s, counts as that: callers give up waiting before.
const LONGEST: u8 = 36;

/// A histogram of durations.
pub struct Histogram {
    /// Of each duration one nanosecond less, so that a bucket ends at a round figure and holds it: see
    /// [`Latency::at_most`].
    buckets: Option<AtomicHistogram>,
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").field("sum_ns", &self.sum_ns).finish_non_exhaustive()
    }
}

impl Default for Histogram {
    fn default() -> Histogram {
        // Fails for powers that make no histogram, which these do.
        let buckets = AtomicHistogram::new(GROUPING, LONGEST).ok();
        Histogram { buckets, sum_ns: AtomicU64::new(0), max_ns: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Records that something took so many nanoseconds, one at least.
    pub fn record(&self, ns: u64) {
        let ns = ns.max(1);
        let counted = (ns - 1).min((1u64 << LONGEST) - 1);
        if self.buckets.as_ref().is_some_and(|b| b.increment(counted).is_ok()) {
            self.sum_ns.fetch_add(ns, Ordering::Relaxed);
            // Hardly ever greater: a line that is only read stays with every processor.
            if ns > self.max_ns.load(Ordering::Relaxed) {
                self.max_ns.fetch_max(ns, Ordering::Release);
            }
        }
    }

    /// Records the time from `start` until now.
    pub fn since(&self, start: Instant) {
        self.record(nanos(start));
    }

    /// What was recorded so far.
    pub fn snapshot(&self) -> Latency {
        // Most operations of most stores never happen: nothing is kept of those.
        let Some(buckets) = self.buckets.as_ref().filter(|_| self.max_ns.load(Ordering::Acquire) > 0) else {
            return Latency::default();
        };
        let buckets = buckets.load();
        Latency {
            count: buckets.as_slice().iter().sum(),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
            max_ns: self.max_ns.load(Ordering::Relaxed),
            buckets: Some(buckets),
        }
    }
}

/// Nanoseconds from `start` until now.
pub fn nanos(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// How long an operation took, each time that was measured since the store was opened.
///
/// Percentiles are those of a histogram: up to 3.2 % too high, never too low, and never above the longest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Latency {
    /// How many were measured; of frequent operations that is a sample.
    pub count: u64,
    /// Nanoseconds of all of them together.
    pub sum_ns: u64,
    /// Nanoseconds of the longest.
    pub max_ns: u64,
    /// None where nothing was measured.
    buckets: Option<Counted>,
}

impl Latency {
    /// Nanoseconds that one took on average; 0 of none.
    pub fn mean_ns(&self) -> u64 {
        self.sum_ns.checked_div(self.count).unwrap_or(0)
    }

    /// Nanoseconds that half of them took at most; 0 of none, here and below.
    pub fn p50_ns(&self) -> u64 {
        self.quantile_ns(0.5)
    }

    /// Nanoseconds that nine in ten took at most.
    pub fn p90_ns(&self) -> u64 {
        self.quantile_ns(0.9)
    }

    /// Nanoseconds that 99 in 100 took at most.
    pub fn p99_ns(&self) -> u64 {
        self.quantile_ns(0.99)
    }

    /// Nanoseconds that 999 in 1,000 took at most.
    pub fn p999_ns(&self) -> u64 {
        self.quantile_ns(0.999)
    }

    /// Nanoseconds that this share of them (0 to 1) took at most.
    pub fn quantile_ns(&self, share: f64) -> u64 {
        let share = share.clamp(0.0, 1.0);
        let bucket = self.buckets.as_ref().and_then(|b| b.quantile_bucket(share).ok().flatten());
        bucket.map_or(0, |b| b.end().saturating_add(1).min(self.max_ns))
    }

    /// How many took at most so many nanoseconds. Exact for powers of two; otherwise those of the last bucket that
    /// is partly below count as longer.
    pub fn at_most(&self, ns: u64) -> u64 {
        let buckets = self.buckets.iter().flat_map(Counted::iter);
        buckets.take_while(|b| b.end() < ns).map(|b| b.count()).sum()
    }

    /// How many there were, by how long they took: nanoseconds at most, ascending, and how many took that long and longer
    /// than the entry before says. Only what occurred.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let buckets = self.buckets.iter().flat_map(Counted::iter).filter(|b| b.count() > 0);
        buckets.map(|b| (b.end().saturating_add(1), b.count()))
    }

    /// What came since an earlier snapshot of the same histogram. Which of them took longest is not known: that is the
    /// end of the last bucket.
    #[must_use]
    pub fn since(&self, earlier: &Latency) -> Latency {
        let Some(now) = &self.buckets else { return Latency::default() };
        // A difference that is none, because the earlier one is of another histogram, is taken for all of it.
        let buckets = match &earlier.buckets {
            Some(then) => now.checked_sub(then).unwrap_or_else(|_| now.clone()),
            None => now.clone(),
        };
        let count = buckets.as_slice().iter().sum();
        if count == 0 {
            return Latency::default();
        }
        let sum_ns = self.sum_ns.saturating_sub(earlier.sum_ns);
        let mut since = Latency { count, sum_ns, max_ns: self.max_ns, buckets: Some(buckets) };
        since.max_ns = since.quantile_ns(1.0);
        since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(all: &[u64]) -> Latency {
        let histogram = Histogram::default();
        all.iter().for_each(|ns| histogram.record(*ns));
        histogram.snapshot()
    }

    /// The value of this rank, as the definition has it.
    fn exact(all: &[u64], share: f64) -> u64 {
        let mut sorted = all.to_vec();
        sorted.sort_unstable();
        let rank = (share * all.len() as f64).ceil().max(1.0) as usize;
        sorted[rank - 1]
    }

    #[test]
    fn nothing_was_measured() {
        let none = Histogram::default().snapshot();
        assert_eq!(none, Latency::default());
        assert_eq!((none.mean_ns(), none.p50_ns(), none.p999_ns(), none.at_most(u64::MAX)), (0, 0, 0, 0));
        assert_eq!(none.since(&none), none);
    }

    #[test]
    fn what_takes_longer_than_there_are_buckets_counts_as_the_longest() {
        let day = 86_400_000_000_000;
        let latency = of(&[1000, day, u64::MAX - day - 1000]);
        assert_eq!((latency.count, latency.sum_ns), (3, u64::MAX));
        assert_eq!(latency.at_most(1 << LONGEST), 3);
        assert_eq!(latency.max_ns, u64::MAX - day - 1000);
        assert_eq!(latency.p99_ns(), 1 << LONGEST);
    }

    #[test]
    fn threads_record_at_the_same_time_and_none_is_lost() {
        let histogram = Histogram::default();
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|s| {
            for n in 1..=4 {
                let (histogram, start) = (&histogram, &start);
                s.spawn(move || {
                    start.wait();
                    (0..300_000).for_each(|_| histogram.record(n * 1000));
                });
            }
        });
        let latency = histogram.snapshot();
        assert_eq!((latency.count, latency.sum_ns, latency.max_ns), (1_200_000, 3_000_000_000, 4000));
        assert_eq!(latency.mean_ns(), 2500);
    }

    proptest! {
        #[test]
        fn figures_are_near_the_truth_and_never_below_it(
            all in proptest::collection::vec(prop_oneof![0u64..300, 0u64..1 << 20, 0u64..1 << 36], 1..200),
            share in 0.0f64..=1.0,
        ) {
            let latency = of(&all);
            prop_assert_eq!(latency.count, all.len() as u64);
            prop_assert_eq!(latency.sum_ns, all.iter().map(|ns| ns.max(&1)).sum::<u64>());
            prop_assert_eq!(latency.max_ns, all.iter().copied().max().unwrap().max(1));
            for share in [share, 0.5, 0.9, 0.99, 0.999, 1.0] {
                let (truth, said) = (exact(&all, share), latency.quantile_ns(share));
                let most = truth + truth / 31 + 1;
                prop_assert!((truth..=most).contains(&said), "{share}: {said}, not {truth}");
            }
        }

        #[test]
        fn counts_below_a_power_of_two_are_exact(
            all in proptest::collection::vec(0u64..1 << 36, 0..100), power in 0u32..36,
        ) {
            let bound = 1u64 << power;
            prop_assert_eq!(of(&all).at_most(bound), all.iter().filter(|ns| **ns <= bound).count() as u64);
            // And of a power of two itself.
            prop_assert_eq!(of(&[bound, bound + 1]).at_most(bound), 1);
        }

        #[test]
        fn a_difference_is_what_came_between(
            before in proptest::collection::vec(0u64..1 << 30, 0..50),
            after in proptest::collection::vec(0u64..1 << 30, 0..50),
        ) {
            let histogram = Histogram::default();
            before.iter().for_each(|ns| histogram.record(*ns));
            let earlier = histogram.snapshot();
            after.iter().for_each(|ns| histogram.record(*ns));
            let since = histogram.snapshot().since(&earlier);
            let alone = of(&after);
            prop_assert_eq!((since.count, since.sum_ns), (alone.count, alone.sum_ns));
            prop_assert_eq!(&since.buckets, &alone.buckets);
            prop_assert!(since.max_ns >= alone.max_ns && since.max_ns <= alone.max_ns + alone.max_ns / 31 + 1);
        }
    }
}
