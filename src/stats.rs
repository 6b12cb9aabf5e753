//! Counters, and what `stats()` gives of them.
//!
//! Invariants: a counter only rises while the store is open, and begins at 0 with each opening; nothing of it is on
//! disk. Who counts takes no lock, and what every read counts has a cache line of its own thread's.

use crate::optimizer::Strategy;
use crossbeam::utils::CachePadded;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use thermocline_storage::codec::Spent;
use thermocline_storage::latency::Latency;
use thermocline_storage::vfs::{DiskReads, Traffic};
use thermocline_storage::{ContentType, Tier};

/// Lines of a [`Striped`] counter.
const STRIPES: usize = 16;

/// A counter that each thread raises in a line of its own, as far as they go round: for what every read does, where
/// one line for all would go back and forth between the processors.
#[derive(Debug, Default)]
pub(crate) struct Striped([CachePadded<AtomicU64>; STRIPES]);

impl Striped {
    /// The calling thread's line.
    #[inline]
    pub(crate) fn line(&self) -> &AtomicU64 {
        thread_local! {
            static LINE: usize = {
                static NEXT: AtomicUsize = AtomicUsize::new(0);
                NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES
            };
        }
        // A thread that is ending may have lost its number.
        let line = LINE.try_with(|line| *line).unwrap_or(0);
        #[expect(clippy::indexing_slicing, reason = "there are as many lines")]
        &self.0[line % STRIPES]
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
    /// Items that entered memory because they stand behind one on HDD or in the archive that was asked for.
    prefetched,
    /// Of these, items that were asked for.
    prefetch_used,
    /// Of these, items that left memory without.
    prefetch_wasted,
    /// Entries that left memory early, because nobody had asked for them for long; a disk tier has each.
    idle,
    /// Reports that the metrics server took.
    metrics_sent,
    /// Reports that the metrics server did not take, or that did not come to it.
    metrics_failed,
    /// Decisions of the optimizer that were dropped: too many waited for the metrics server.
    metrics_dropped,
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
    /// What the disks were asked for, by directory. Memory has none.
    pub io: Vec<DirIo>,
}

/// What was asked of the disk under one directory since the store was opened, and how long that took.
///
/// Counted where the engine calls the file system. Reads through a map are not seen (SSD segments, unless
/// `storage.read_mode` is `pread`: the page cache answers them, or a fault of a page does), nor is what sled does in the
/// files of its indexes. What is read may come from the page cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirIo {
    /// The directory.
    pub path: PathBuf,
    /// Reads.
    pub reads: u64,
    /// Bytes that they read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes that they wrote.
    pub write_bytes: u64,
    /// Syncs, of files and of folders.
    pub syncs: u64,
    /// Operations that failed, reservations of blocks among them.
    pub errors: u64,
    /// Operations under way at this moment.
    pub in_flight: u64,
    /// How long reads took, failed ones too, as with the others.
    pub read_latency: Latency,
    /// How long writes took.
    pub write_latency: Latency,
    /// How long syncs took.
    pub sync_latency: Latency,
    /// Reads that the disk answered, not the page cache; the small and the large of those that waited for no other.
    pub(crate) disk_reads: DiskReads,
    pub(crate) alone: [DiskReads; 2],
}

impl From<Traffic> for DirIo {
    fn from(t: Traffic) -> DirIo {
        DirIo {
            path: t.path,
            reads: t.read.count,
            read_bytes: t.read_bytes,
            writes: t.write.count,
            write_bytes: t.write_bytes,
            syncs: t.sync.count,
            errors: t.read_errors + t.write_errors + t.sync_errors,
            in_flight: t.in_flight,
            read_latency: t.read,
            write_latency: t.write,
            sync_latency: t.sync,
            disk_reads: t.disk,
            alone: t.alone,
        }
    }
}

/// How long operations took since the store was opened, those that came to a result.
///
/// Frequent ones are timed now and then, so that timing them costs nothing that shows: one hit in 1,024 of those that
/// memory answers on each thread (a value in the write buffer that memory had no room for likewise); one in 16 of hits on
/// the SSD, misses, puts and removals. The others always.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LatencyStats {
    /// Reads that found the value, by the tier that answered: memory, SSD, HDD, cold.
    pub get: [Latency; 4],
    /// Reads that found none, without the look into memory.
    pub miss: Latency,
    /// Puts, with the wait for room in the write buffer and, with `Always`, for the disk.
    pub put: Latency,
    /// Removals of a key that was live, with the same waits.
    pub remove: Latency,
    /// Flushes that callers asked for.
    pub flush: Latency,
    /// Batches of the journal, from the first byte written until both copies were synced.
    pub journal_sync: Latency,
    /// Batches written to a disk tier, those that were moved too, until they were synced; by tier, memory's is empty.
    pub data_sync: [Latency; 4],
}

/// What one codec did to the values of one content type since the store was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CodecStats {
    /// Values that it compressed.
    pub kept: u64,
    /// Their bytes before.
    pub original_bytes: u64,
    /// Their bytes after.
    pub stored_bytes: u64,
    /// Values that it was tried on in vain: they would not have shrunk as much as its threshold asks for.
    pub skipped: u64,
    /// Their bytes.
    pub skipped_bytes: u64,
    /// Nanoseconds that it took for all of them, the sum over all threads.
    pub nanos: u64,
}

impl From<Spent> for CodecStats {
    fn from(s: Spent) -> CodecStats {
        CodecStats {
            kept: s.kept,
            original_bytes: s.original_bytes,
            stored_bytes: s.stored_bytes,
            skipped: s.skipped,
            skipped_bytes: s.skipped_bytes,
            nanos: s.nanos,
        }
    }
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
    /// What zlib was tried on, at writing and at moving to a tier that compresses.
    pub zlib: CodecStats,
    /// What LZ4 was tried on, likewise.
    pub lz4: CodecStats,
    /// What was to be deflated on its way into the archive: values that came there uncompressed, or with LZ4.
    pub deflate: CodecStats,
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
    /// What the disk under the catalog was asked for, journal and checkpoints; not counted for the tier in whose directory
    /// the catalog lies. `None` without a disk tier.
    pub catalog_io: Option<DirIo>,
    /// How long operations took.
    pub latency: LatencyStats,
    /// What the optimizer did.
    pub optimizer: OptimizerStats,
}

/// What the optimizer did since the store was opened; [`Cache::optimizer`](crate::Cache::optimizer) has the whole of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct OptimizerStats {
    /// The strategy in force.
    pub strategy: Strategy,
    /// The pressure on the machine at the last turn, 0 to 1; `None` before the first, and where nothing is known of it.
    pub pressure: Option<f64>,
    /// Turns at which it decided.
    pub turns: u64,
    /// Actions that were done.
    pub actions: u64,
    /// Of these, those that undid one which had made things worse.
    pub taken_back: u64,
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
