//! Counters, and what `stats()` gives of them.
//!
//! Invariants: a counter only rises while the store is open, and begins at 0 with each opening; nothing of it is on
//! disk. Who counts takes no lock, and what every read counts has a cache line of its own thread's.

use crossbeam::utils::CachePadded;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use thermocline_storage::{ContentType, Tier};

/// Lines of a [`Striped`] counter.
const STRIPES: usize = 16;

/// A counter that each thread raises in a line of its own, as far as they go round: for what every read does, where
/// one line for all would go back and forth between the processors.
#[derive(Debug, Default)]
pub(crate) struct Striped([CachePadded<AtomicU64>; STRIPES]);

impl Striped {
    pub(crate) fn bump(&self) {
        thread_local! {
            static LINE: usize = {
                static NEXT: AtomicUsize = AtomicUsize::new(0);
                NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES
            };
        }
        // A thread that is ending may have lost its number.
        if let Some(line) = self.0.get(LINE.try_with(|line| *line).unwrap_or(0)) {
            line.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn sum(&self) -> u64 {
        self.0.iter().map(|line| line.load(Ordering::Relaxed)).sum()
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What the engine counts. All relaxed: each counter is right, sums across them may be a moment apart.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
            /// Reads that memory answered: they are counted here alone, and added where they belong when asked for.
            pub(crate) memory_hits: Striped,
            pub(crate) tiers: [TierCounters; 4],
            pub(crate) types: [TypeCounters; 4],
        }

        /// Counts since the store was opened, of the store as a whole.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(crate) fn counts(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Calls of `get` and its relatives, one a key.
    gets,
    /// Of these, keys that no tier held.
    misses,
    /// Values accepted by `put` and its relatives.
    puts,
    /// Bytes of these values.
    put_bytes,
    /// Keys removed: by `remove`, `remove_prefix`, `clear`.
    removes,
    /// Items found expired, by a reader or the reaper.
    expired,
    /// Items dropped because no tier had room for them.
    evicted,
    /// Records that failed verification; each is dead and its bytes are in the quarantine.
    damaged,
    /// Reads that could not reach the disk: the items count as absent until it is back.
    unreachable,
    /// Items displaced by another key of the same identity, as far as [`Event::Displaced`](crate::Event::Displaced)
    /// tells of them.
    displaced,
    /// Batches that failed to reach a tier and were tried again.
    write_failures,
    /// Callers that had to wait because the disk was slower than they.
    stalls,
    /// Callers that waited in vain: `Error::Busy`.
    busy,
    /// Values made by a single flight.
    made,
    /// Containers dropped whole.
    containers_dropped,
    /// Bytes moved by reclaim, demotion and promotion.
    moved_bytes,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn bump(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    #[expect(clippy::indexing_slicing, reason = "a tier's number is at most 3")]
    pub(crate) fn tier(&self, tier: Tier) -> &TierCounters {
        &self.tiers[(tier as usize) & 3]
    }

    #[expect(clippy::indexing_slicing, reason = "a stored content type's number is 1 to 4")]
    pub(crate) fn content(&self, t: ContentType) -> &TypeCounters {
        &self.types[(t as usize).wrapping_sub(1) & 3]
    }
}

#[derive(Debug, Default)]
pub(crate) struct TierCounters {
    pub(crate) hits: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) promoted: AtomicU64,
    pub(crate) demoted: AtomicU64,
    pub(crate) evicted: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct TypeCounters {
    pub(crate) items: AtomicU64,
    pub(crate) original: AtomicU64,
    pub(crate) stored: AtomicU64,
}

/// One tier, as it is now and as it was since the store was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierStats {
    /// Items whose live copy is in the tier. In memory: entries, most of which are on a disk tier too.
    pub items: u64,
    /// Bytes that the tier occupies: on disk with dead records, preallocation, indexes and quarantine; in memory
    /// with keys and overhead.
    pub bytes: u64,
    /// Its limit in bytes; `None`: unlimited.
    pub limit: Option<u64>,
    /// Containers (segments, generations, packs).
    pub containers: u64,
    /// Reads that the tier answered.
    pub hits: u64,
    /// Bytes written to it.
    pub written: u64,
    /// Items promoted into it from below.
    pub promoted: u64,
    /// Items demoted into it from above.
    pub demoted: u64,
    /// Items evicted from it for good.
    pub evicted: u64,
    /// Directories that failed and take no writes for now, and how they failed: see
    /// [`Cache::put_back`](crate::Cache::put_back).
    pub out_of_service: Vec<(PathBuf, String)>,
}

/// What compression did to one content type since the store was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TypeStats {
    /// Values written to the first disk tier.
    pub items: u64,
    /// Their bytes.
    pub original_bytes: u64,
    /// Their bytes as stored.
    pub stored_bytes: u64,
}

/// A picture of the store.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Stats {
    /// The store as a whole.
    pub counts: Counts,
    /// Memory, SSD, HDD, cold; `None` for a tier that the store does not have.
    pub tiers: [Option<TierStats>; 4],
    /// Text, JSON, binary, media.
    pub types: [TypeStats; 4],
    /// Live items in all: on disk, or still to be written.
    pub items: u64,
    /// Bytes in the write buffer: of values that are to be written, or are being written. With
    /// [`Persistence::OnEviction`](crate::Persistence::OnEviction) a value that memory keeps is not among them before
    /// memory evicts it, or a flush writes it.
    pub dirty_bytes: u64,
    /// Bytes of values in flight: being read, decoded, or written by their callers.
    pub inflight_bytes: u64,
    /// Bytes of RAM that the catalog takes, roughly.
    pub catalog_bytes: u64,
    /// Bytes written to the journal, both copies.
    pub journal_bytes: u64,
    /// Checkpoints published.
    pub checkpoints: u64,
    /// Bytes of the catalog on disk, both copies and its reserve, as of the last half second. They lie beside what the
    /// limit of a tier counts.
    pub catalog_disk_bytes: u64,
}

impl Stats {
    /// The tier's part, if the store has it.
    pub fn tier(&self, tier: Tier) -> Option<&TierStats> {
        self.tiers.get(tier as usize).and_then(Option::as_ref)
    }

    /// The content type's part (`Auto` has none).
    pub fn content(&self, t: ContentType) -> Option<&TypeStats> {
        (t as usize).checked_sub(1).and_then(|i| self.types.get(i))
    }
}
