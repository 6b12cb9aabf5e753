//! What of the engine may change while it runs. The optimizer turns it; whoever works reads it.
//!
//! Invariants:
//! - each dial is within what the configuration allows, whoever turned it: it is brought there when it is set;
//! - to read one takes no lock that anybody holds for longer than a pointer's copy, and no two of them depend on each
//!   other: work that is under way goes on with what it read, and what comes next goes by the new.

use super::Settings;
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use thermocline_storage::codec::Compression;
use thermocline_storage::{Codec, ContentType, Tier};

/// The least that a rate of background work is set to, in bytes a second: it comes to an end at some time.
const LEAST_RATE: u64 = 64 << 10;
/// The least of a write buffer.
const LEAST_BUFFER: u64 = 256 << 10;
/// What prefetching is a multiple of.
pub(crate) const PREFETCH_UNIT: u64 = 64 << 10;
/// The least of the HDD tier's caches.
const LEAST_CACHE: u64 = 1 << 20;
/// The least of a pack.
const LEAST_PACK: u64 = 1 << 20;
/// The most that a smallest read is.
const LARGEST_READ: u64 = 1 << 20;
/// What is read ahead until the disk is measured: about what an access to a disk that turns costs.
pub(super) const FIRST_AHEAD: u64 = 1 << 20;

/// The dials, each as it stands now.
#[derive(Debug)]
pub(crate) struct Dials {
    /// What was configured: where they stood at first, and what bounds them.
    configured: Settings,
    migration_rate: AtomicU64,
    write_buffer: AtomicU64,
    /// By tier number: the most that is read at once of what is not asked for yet.
    read_ahead: [AtomicU64; 4],
    /// By tier number: bytes a second that its reclaim may copy.
    reclaim_rate: [AtomicU64; 4],
    /// The bits of the multiplier.
    prefetch: AtomicU64,
    sled_cache: AtomicU64,
    pack_size: AtomicU64,
    read_size: AtomicU64,
    compression: RwLock<Arc<Compression>>,
}

impl Dials {
    pub(crate) fn new(settings: &Settings) -> Dials {
        Dials {
            migration_rate: AtomicU64::new(settings.migration_rate),
            write_buffer: AtomicU64::new(settings.write_buffer),
            read_ahead: [(); 4].map(|()| AtomicU64::new(settings.read_ahead.min(FIRST_AHEAD))),
            reclaim_rate: [(); 4].map(|()| AtomicU64::new(settings.migration_rate)),
            prefetch: AtomicU64::new(settings.prefetch.to_bits()),
            sled_cache: AtomicU64::new(settings.sled_cache),
            pack_size: AtomicU64::new(settings.pack_size),
            read_size: AtomicU64::new(settings.read_size),
            compression: RwLock::new(Arc::new(settings.compression.clone())),
            configured: settings.clone(),
        }
    }

    /// Bytes that background moves may move in a second.
    pub(crate) fn migration_rate(&self) -> u64 {
        self.migration_rate.load(Ordering::Relaxed)
    }

    /// Sets [`migration_rate`](Self::migration_rate), within the configured one.
    pub(crate) fn set_migration_rate(&self, bytes: u64) -> u64 {
        let most = self.configured.migration_rate;
        set(&self.migration_rate, bytes, LEAST_RATE.min(most), most)
    }

    /// Bytes that may wait to be written.
    pub(crate) fn write_buffer(&self) -> u64 {
        self.write_buffer.load(Ordering::Relaxed)
    }

    /// Sets [`write_buffer`](Self::write_buffer), within the configured one. What is in it stays; callers wait until there
    /// is room.
    pub(crate) fn set_write_buffer(&self, bytes: u64) -> u64 {
        let most = self.configured.write_buffer;
        set(&self.write_buffer, bytes, least(LEAST_BUFFER, most), most)
    }

    /// Bytes of a tier that are read at once of what is not asked for yet: behind an item, at most, and by who goes through a
    /// container. 0 where nothing reads ahead.
    pub(crate) fn read_ahead(&self, tier: Tier) -> u64 {
        match tier {
            Tier::Hdd | Tier::Cold => of(&self.read_ahead, tier).load(Ordering::Relaxed),
            _ => 0,
        }
    }

    /// Sets [`read_ahead`](Self::read_ahead), from the smallest read to the configured one.
    pub(crate) fn set_read_ahead(&self, tier: Tier, bytes: u64) -> u64 {
        let most = self.configured.read_ahead;
        set(of(&self.read_ahead, tier), bytes, self.configured.read_size.min(most), most)
    }

    /// Bytes a second that reclaim of a tier may copy, of those of [`migration_rate`](Self::migration_rate).
    pub(crate) fn reclaim_rate(&self, tier: Tier) -> u64 {
        of(&self.reclaim_rate, tier).load(Ordering::Relaxed)
    }

    /// Sets [`reclaim_rate`](Self::reclaim_rate), within the configured rate.
    pub(crate) fn set_reclaim_rate(&self, tier: Tier, bytes: u64) -> u64 {
        let most = self.configured.migration_rate;
        set(of(&self.reclaim_rate, tier), bytes, LEAST_RATE.min(most), most)
    }

    /// What 64 KiB are multiplied by that are read behind an item that was found on HDD or in the archive; 0: none.
    pub(crate) fn prefetch(&self) -> f64 {
        f64::from_bits(self.prefetch.load(Ordering::Relaxed))
    }

    /// Sets [`prefetch`](Self::prefetch), within the greatest that is configured for a strategy. What is no multiplier is
    /// 0.
    pub(crate) fn set_prefetch(&self, multiplier: f64) {
        let most = self.configured.most_prefetch;
        let multiplier = if multiplier.is_finite() { multiplier.clamp(0.0, most.max(0.0)) } else { 0.0 };
        self.prefetch.store(multiplier.to_bits(), Ordering::Relaxed);
    }

    /// Bytes behind an item of a tier that are read with it.
    pub(crate) fn prefetch_bytes(&self, tier: Tier) -> u64 {
        ((self.prefetch() * PREFETCH_UNIT as f64) as u64).min(self.read_ahead(tier))
    }

    /// So many reads of a directory that may be under way, brought within what is configured. How it is set is its gate's.
    pub(crate) fn concurrency(&self, reads: u64) -> u64 {
        reads.clamp(1, self.configured.concurrency.max(1))
    }

    /// Bytes of the HDD tier's caches.
    pub(crate) fn sled_cache(&self) -> u64 {
        self.sled_cache.load(Ordering::Relaxed)
    }

    /// Sets [`sled_cache`](Self::sled_cache), within the configured one.
    pub(crate) fn set_sled_cache(&self, bytes: u64) -> u64 {
        let most = self.configured.sled_cache;
        set(&self.sled_cache, bytes, LEAST_CACHE.min(most), most)
    }

    /// Bytes of a pack that is begun from now on.
    pub(crate) fn pack_size(&self) -> u64 {
        self.pack_size.load(Ordering::Relaxed)
    }

    /// Sets [`pack_size`](Self::pack_size), within the configured one.
    pub(crate) fn set_pack_size(&self, bytes: u64) -> u64 {
        let most = self.configured.pack_size;
        set(&self.pack_size, bytes, least(LEAST_PACK, most), most)
    }

    /// Bytes of the smallest read.
    pub(crate) fn read_size(&self) -> u64 {
        self.read_size.load(Ordering::Relaxed)
    }

    /// Sets [`read_size`](Self::read_size): the configured one at least.
    pub(crate) fn set_read_size(&self, bytes: u64) -> u64 {
        let least = self.configured.read_size;
        set(&self.read_size, bytes, least, LARGEST_READ.max(least))
    }

    /// How values are compressed from now on.
    pub(crate) fn compression(&self) -> Arc<Compression> {
        self.compression.read().clone()
    }

    /// Sets [`compression`](Self::compression): a level at most the greatest that is configured, and what is to be stored as
    /// it is stays so. Gives what holds now.
    pub(crate) fn set_compression(&self, mut compression: Compression) -> Compression {
        let most = self.configured.most_level;
        for content in ContentType::STORED {
            let codec = match self.configured.compression.codec_of(content) {
                Codec::None => Codec::None,
                _ => compression.codec_of(content),
            };
            let level = compression.level_of(content).min(most);
            compression.set(content, codec, level);
        }
        *self.compression.write() = Arc::new(compression.clone());
        compression
    }

    /// The same for the archive, which knows deflate alone. While lz4 stands in for zlib, because the processors are busy,
    /// all that it deflates is deflated at the lowest level; else what is lz4's above is deflated at zlib's.
    pub(crate) fn archives(&self, compression: &Compression) -> Compression {
        let configured = &self.configured.compression;
        let is = |of: &Compression, content, codec| of.codec_of(content) == codec;
        let busy = ContentType::STORED
            .into_iter()
            .any(|t| is(configured, t, Codec::Zlib) && is(compression, t, Codec::Lz4));
        let mut archive = compression.clone();
        for (content, level) in ContentType::STORED.into_iter().zip(&mut archive.levels) {
            if is(compression, content, Codec::Lz4) {
                *level = busy.then_some(1);
            }
        }
        archive
    }
}

#[expect(clippy::indexing_slicing, reason = "a tier's number is at most 3")]
fn of(dials: &[AtomicU64; 4], tier: Tier) -> &AtomicU64 {
    &dials[(tier as usize) & 3]
}

/// The least of a dial; where less is configured, as no store but a simulated one has it, half of that.
fn least(of: u64, most: u64) -> u64 {
    if most < of { most / 2 } else { of }
}

fn set(dial: &AtomicU64, to: u64, least: u64, most: u64) -> u64 {
    let to = to.clamp(least, most.max(least));
    dial.store(to, Ordering::Relaxed);
    to
}
