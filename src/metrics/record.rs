//! What is timed and counted while the engine works.
//!
//! Invariants: recording takes no lock. A hit in memory pays for a look at the counter that it raises anyway, and one in
//! 1,024 for two looks at a clock; of what else is frequent, one in 16 does. Which ones are timed is decided before they
//! begin, so that slow ones are neither favoured nor passed over.

use crate::stats::LatencyStats;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use thermocline_storage::Tier;
use thermocline_storage::codec::Effort;
use thermocline_storage::home::Home;
use thermocline_storage::latency::Histogram;
use thermocline_storage::vfs::{Meter, Metered, Vfs};

/// Of so many hits in memory one is timed. Powers of two, both.
const TIMED_HITS: u64 = 1024;
/// Of so many reads below memory, puts and removals.
const TIMED_OTHERS: u64 = 16;

/// How long operations take; [`LatencyStats`] says what each is. Gets and data syncs are by tier number.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    get: [Histogram; 4],
    miss: Histogram,
    pub(crate) put: Histogram,
    pub(crate) remove: Histogram,
    pub(crate) flush: Histogram,
    data_sync: [Histogram; 4],
}

#[expect(clippy::indexing_slicing, reason = "a tier's number is at most 3")]
fn of(tiers: &[Histogram; 4], tier: Tier) -> &Histogram {
    &tiers[(tier as usize) & 3]
}

impl Latencies {
    /// Whether the hit in memory that comes after so many is timed. Not the first one of a thread, which pays for what
    /// every first one does.
    #[inline]
    pub(crate) fn is_timed_hit(after: u64) -> bool {
        after % TIMED_HITS == TIMED_HITS - 1
    }

    /// Whether a read below memory that comes after so many is timed.
    #[inline]
    pub(crate) fn is_sampled(after: u64) -> bool {
        after.is_multiple_of(TIMED_OTHERS)
    }

    /// Now, if the operation that is about to begin is to be timed: one in many of those that `counter` counts.
    #[inline]
    pub(crate) fn one_in_many(counter: &AtomicU64) -> Option<Instant> {
        Self::is_sampled(counter.load(Ordering::Relaxed)).then(Instant::now)
    }

    pub(crate) fn get(&self, tier: Tier) -> &Histogram {
        of(&self.get, tier)
    }

    pub(crate) fn data_sync(&self, tier: Tier) -> &Histogram {
        of(&self.data_sync, tier)
    }

    /// A read that memory did not answer, the one after `nth` of them, came to its end: with a value from a tier, or none.
    pub(crate) fn got(&self, from: Option<Tier>, nth: u64, start: Instant) {
        match from {
            None => self.miss.since(start),
            // From the write buffer. It counts no more than a hit in memory does.
            Some(Tier::Memory) if !nth.is_multiple_of(TIMED_HITS) => {}
            Some(tier) => self.get(tier).since(start),
        }
    }

    pub(crate) fn stats(&self) -> LatencyStats {
        LatencyStats {
            get: self.get.each_ref().map(Histogram::snapshot),
            miss: self.miss.snapshot(),
            put: self.put.snapshot(),
            remove: self.remove.snapshot(),
            flush: self.flush.snapshot(),
            data_sync: self.data_sync.each_ref().map(Histogram::snapshot),
            ..LatencyStats::default()
        }
    }
}

/// What the disks are asked for, and what compressing takes.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    tiers: Vec<(Tier, Arc<Meter>)>,
    /// Of the catalog, wherever it lies; `None` with memory alone.
    pub(crate) catalog: Option<Arc<Meter>>,
    pub(crate) effort: Arc<Effort>,
}

impl Meters {
    /// One for each directory that is there, and one for the catalog.
    pub(crate) fn of(home: &Home) -> Meters {
        let there = home.dirs().iter().filter(|d| d.present);
        Meters {
            tiers: there.map(|d| (d.tier, Meter::new(&d.path))).collect(),
            catalog: Some(Meter::new(home.catalog_dir())),
            effort: Arc::default(),
        }
    }

    /// A file system that counts for them.
    pub(crate) fn over(&self, vfs: Arc<dyn Vfs>) -> Arc<dyn Vfs> {
        let all = self.tiers.iter().map(|(_, meter)| meter).chain(&self.catalog);
        Arc::new(Metered::new(vfs, all.cloned().collect()))
    }

    /// Lets so many reads of each directory be under way.
    pub(crate) fn set_concurrency(&self, limit: u64) {
        self.tiers.iter().for_each(|(_, meter)| meter.gate().set_limit(limit));
    }

    /// How many reads of a directory may be under way; `None` if none of a tier's is there.
    pub(crate) fn concurrency_of(&self, directory: &Path) -> Option<u64> {
        self.of_directory(directory).map(|meter| meter.gate().limit())
    }

    /// Lets so many reads of one directory be under way; says whether a tier's directory is there.
    pub(crate) fn set_concurrency_of(&self, directory: &Path, limit: u64) -> bool {
        self.of_directory(directory).inspect(|meter| meter.gate().set_limit(limit)).is_some()
    }

    fn of_directory(&self, directory: &Path) -> Option<&Arc<Meter>> {
        self.tiers.iter().map(|(_, meter)| meter).find(|meter| meter.path() == directory)
    }

    /// Those of a tier's directories.
    pub(crate) fn of_tier(&self, tier: Tier) -> impl Iterator<Item = &Arc<Meter>> {
        self.tiers.iter().filter(move |(t, _)| *t == tier).map(|(_, meter)| meter)
    }
}
