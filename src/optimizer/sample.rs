//! What the optimizer sees: the difference of two states of the counters, and the sensors' readings.

use crate::config::Algorithm;
use crate::sensors::Readings;
use std::path::PathBuf;
use std::time::Duration;
use thermocline_storage::Tier;
use thermocline_storage::vfs::DiskReads;

/// What the engine counts, and how it is set. Counts rise since the store was opened, unless it is said that they are
/// of the moment or of the time since the last sample.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Counters {
    /// Keys asked for.
    pub gets: u64,
    /// Of these, keys that no tier held.
    pub misses: u64,
    /// Values put.
    pub puts: u64,
    /// Bytes of these.
    pub put_bytes: u64,
    /// Callers that had to wait for the disk.
    pub stalls: u64,
    /// Bytes that background work moved.
    pub moved_bytes: u64,
    /// Seconds that a request of a caller took, in the mean since the last sample. One that found nothing counts as what
    /// the dearest tier takes, for whoever asked has to get it from somewhere yet.
    pub request_mean: Option<f64>,
    /// Seconds that 99 of 100 requests took at most since the last sample.
    pub request_p99: Option<f64>,
    /// Seconds from handing a batch to the disk until it was durable, in the mean since the last sample.
    pub commit_mean: Option<f64>,
    /// Memory, SSD, HDD, cold, as far as the store has them.
    pub tiers: [Option<TierCounters>; 4],
    /// Bytes in memory that are not on disk yet, at the moment.
    pub dirty_bytes: u64,
    /// Time since the coldest clean entry of memory was used, at the moment.
    pub oldest_idle: Option<Duration>,
    /// Text, JSON, binary, media: bytes given to compression, and bytes stored.
    pub types: [(u64, u64); 4],
    /// The same: seconds of a processor that compressing took, if that is measured.
    pub type_seconds: [Option<f64>; 4],
    /// Items that were prefetched.
    pub prefetched: u64,
    /// Of these, items that were asked for.
    pub prefetched_used: u64,
    /// Lookups in the HDD tier's indexes.
    pub index_lookups: u64,
    /// Of these, those that had to read from a disk.
    pub index_misses: u64,
    /// Each directory, since the last sample.
    pub directories: Vec<DirectorySample>,
    /// Seconds that the operations of the directory that was asked for most took since the last sample, the sum of all; over
    /// the time it is how many were under way in the mean (Little's law). `None` without a disk.
    pub io_seconds: Option<f64>,
    /// How the engine is set, at the moment.
    pub knobs: Knobs,
}

/// What the engine counts of a tier.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct TierCounters {
    /// Requests that it answered.
    pub hits: u64,
    /// Bytes written to it.
    pub written: u64,
    /// Bytes that it occupies, at the moment.
    pub bytes: u64,
    /// Its limit; `None`: unlimited.
    pub limit: Option<u64>,
    /// Items, at the moment.
    pub items: u64,
    /// Their limit.
    pub item_limit: Option<u64>,
    /// Seconds that 99 of 100 hits took at most since the last sample.
    pub p99: Option<f64>,
}

/// A way to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// With what.
    pub algorithm: Algorithm,
    /// zlib's level; 1 otherwise.
    pub level: u64,
}

impl Method {
    /// Stored as it is.
    pub const NONE: Method = Method { algorithm: Algorithm::None, level: 1 };
}

/// How the engine is set.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Knobs {
    /// Bytes that the memory tier may hold.
    pub memory_size: u64,
    /// Bytes a second that reclaim of each tier may copy: memory's does not exist.
    pub reclaim_rate: [u64; 4],
    /// Bytes of the caches of sled.
    pub sled_cache: u64,
    /// Bytes of a new pack.
    pub pack_size: u64,
    /// Bytes that are read ahead, by tier: memory's and the SSD's do not exist.
    pub read_ahead: [u64; 4],
    /// Bytes of the smallest read.
    pub read_size: u64,
    /// Bytes that may wait to be written.
    pub write_buffer: u64,
    /// Bytes a second of background work.
    pub background_rate: u64,
    /// How text, JSON, binary and media are compressed.
    pub methods: [Method; 4],
    /// Prefetch multiplier; 0: off.
    pub prefetch: f64,
}

impl Default for Knobs {
    fn default() -> Knobs {
        let method = |algorithm, level| Method { algorithm, level };
        let (zlib, lz4) = (method(Algorithm::Zlib, 6), method(Algorithm::Lz4, 1));
        Knobs {
            memory_size: 512 << 20,
            reclaim_rate: [64 << 20; 4],
            sled_cache: 32 << 20,
            pack_size: 256 << 20,
            read_ahead: [64 << 10; 4],
            read_size: 8 << 10,
            write_buffer: 64 << 20,
            background_rate: 64 << 20,
            methods: [zlib, zlib, lz4, lz4],
            prefetch: 1.5,
        }
    }
}

/// A directory of a tier, since the last sample.
#[derive(Debug, Clone, PartialEq)]
pub struct DirectorySample {
    /// Its tier.
    pub tier: Tier,
    /// Where it is.
    pub path: PathBuf,
    /// Reads.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Seconds of one in the mean.
    pub read_mean: Option<f64>,
    /// Seconds of 99 of 100 at most.
    pub read_p99: Option<f64>,
    /// Writes.
    pub writes: u64,
    /// Their bytes.
    pub write_bytes: u64,
    /// Seconds of one in the mean.
    pub write_mean: Option<f64>,
    /// Seconds of 99 of 100 at most.
    pub write_p99: Option<f64>,
    /// Syncs.
    pub syncs: u64,
    /// Seconds of one in the mean.
    pub sync_mean: Option<f64>,
    /// Reads that the disk answered, not the page cache, as far as their time says it.
    pub disk: DiskReads,
    /// Of these, the small (up to 16 KiB) and the large ones (from 256 KiB on) that waited for no other.
    pub alone: [DiskReads; 2],
    /// How it is set: reads that may be under way.
    pub concurrency: u64,
}

impl DirectorySample {
    /// A directory that nothing was asked of.
    pub fn new(tier: Tier, path: impl Into<PathBuf>) -> DirectorySample {
        DirectorySample {
            tier,
            path: path.into(),
            reads: 0,
            read_bytes: 0,
            read_mean: None,
            read_p99: None,
            writes: 0,
            write_bytes: 0,
            write_mean: None,
            write_p99: None,
            syncs: 0,
            sync_mean: None,
            disk: DiskReads::default(),
            alone: [DiskReads::default(); 2],
            concurrency: 16,
        }
    }
}

/// What callers asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Requests {
    /// Keys asked for.
    pub gets: u64,
    /// Of these, keys that no tier held.
    pub misses: u64,
    /// Values put.
    pub puts: u64,
    /// Bytes of these.
    pub put_bytes: u64,
    /// Callers that had to wait for the disk.
    pub stalls: u64,
    /// Seconds that a request took, in the mean.
    pub mean: Option<f64>,
    /// Seconds that 99 of 100 took at most.
    pub p99: Option<f64>,
}

/// A tier since the last sample.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct TierSample {
    /// Share of the requests that it answered; `None` if there were none.
    pub hit_rate: Option<f64>,
    /// Requests that it answered.
    pub hits: u64,
    /// Bytes written to it.
    pub written: u64,
    /// Bytes that it occupies.
    pub bytes: u64,
    /// Its limit.
    pub limit: Option<u64>,
    /// Items.
    pub items: u64,
    /// Their limit.
    pub item_limit: Option<u64>,
    /// Seconds that 99 of 100 hits took at most.
    pub p99: Option<f64>,
}

impl TierSample {
    /// How full it is, by bytes or items, whichever is more; `None` without limits.
    pub fn occupancy(&self) -> Option<f64> {
        let share = |n: u64, of: Option<u64>| of.filter(|of| *of > 0).map(|of| n as f64 / of as f64);
        let (bytes, items) = (share(self.bytes, self.limit), share(self.items, self.item_limit));
        bytes.into_iter().chain(items).reduce(f64::max)
    }
}

/// A content type since the last sample.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct TypeSample {
    /// Bytes given to compression.
    pub original_bytes: u64,
    /// Bytes stored of them.
    pub stored_bytes: u64,
    /// Seconds of a processor that it took.
    pub seconds: Option<f64>,
}

impl TypeSample {
    /// Stored / original; `None` if there was nothing.
    pub fn ratio(&self) -> Option<f64> {
        (self.original_bytes > 0).then(|| self.stored_bytes as f64 / self.original_bytes as f64)
    }
}

/// Prefetching since the last sample.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct PrefetchSample {
    /// Items that were prefetched.
    pub issued: u64,
    /// Items that were asked for after they had been prefetched.
    pub used: u64,
}

/// What [`decide`](super::decide) sees. What is not known is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// The boot-time clock.
    pub at: Duration,
    /// Since the last sample.
    pub elapsed: Duration,
    /// Bytes of anonymous memory of this process.
    pub memory_used: Option<u64>,
    /// Bytes of it that the allocator has given out.
    pub memory_allocated: Option<u64>,
    /// Bytes that it is measured against: the machine's, or the cgroups' tightest limit.
    pub memory_limit: Option<u64>,
    /// Bytes that can be had without swapping.
    pub memory_available: Option<u64>,
    /// Share of the time in which some task waited for memory.
    pub memory_stalled: Option<f64>,
    /// Percent of the processors, or of the quota, in use.
    pub cpu_percent: Option<f64>,
    /// Percent of them that this process uses.
    pub process_cpu_percent: Option<f64>,
    /// I/O pressure, 0 to 1.
    pub io_pressure: Option<f64>,
    /// Percent of the busiest link.
    pub network_percent: Option<f64>,
    /// What callers asked for.
    pub requests: Requests,
    /// Memory, SSD, HDD, cold, as far as the store has them.
    pub tiers: [Option<TierSample>; 4],
    /// Bytes in memory that are not on disk yet.
    pub dirty_bytes: u64,
    /// Time since the coldest clean entry of memory was used.
    pub oldest_idle: Option<Duration>,
    /// Seconds until a batch was durable, in the mean.
    pub commit_mean: Option<f64>,
    /// Bytes that background work moved.
    pub moved_bytes: u64,
    /// Text, JSON, binary, media.
    pub types: [TypeSample; 4],
    /// Prefetching.
    pub prefetch: PrefetchSample,
    /// Lookups in the HDD tier's indexes.
    pub index_lookups: u64,
    /// Of these, those that had to read from a disk.
    pub index_misses: u64,
    /// The directories.
    pub directories: Vec<DirectorySample>,
    /// How the engine is set.
    pub knobs: Knobs,
}

impl Sample {
    /// What happened between two states of the counters. A count that went back, which none should, counts as
    /// nothing; a number that is none is left out.
    pub fn between(before: &Counters, now: &Counters, readings: &Readings, elapsed: Duration) -> Sample {
        let gets = now.gets.saturating_sub(before.gets);
        let mut directories = now.directories.clone();
        for (directory, device) in directories.iter_mut().filter_map(|d| {
            let device = readings.devices.iter().find(|r| r.directory == d.path)?;
            Some((d, device))
        }) {
            directory.read_mean = directory.read_mean.or(device.read_latency);
            directory.write_mean = directory.write_mean.or(device.write_latency);
        }
        let mut tiers = [None; 4];
        for ((tier, now), before) in tiers.iter_mut().zip(&now.tiers).zip(&before.tiers) {
            *tier = now.as_ref().map(|now| tier_between(&before.unwrap_or_default(), now, gets));
        }
        let mut types = [TypeSample::default(); 4];
        for (n, of) in types.iter_mut().enumerate() {
            let take = |c: &Counters| c.types.get(n).copied().unwrap_or_default();
            let seconds = |c: &Counters| c.type_seconds.get(n).copied().flatten();
            let (new, old) = (take(now), take(before));
            of.original_bytes = new.0.saturating_sub(old.0);
            of.stored_bytes = new.1.saturating_sub(old.1);
            of.seconds = seconds(now).map(|s| s - seconds(before).unwrap_or(0.0));
        }
        let since = |of: fn(&Counters) -> u64| of(now).saturating_sub(of(before));
        Sample {
            at: readings.boot,
            elapsed,
            memory_used: readings.process.anonymous,
            memory_allocated: readings.process.allocated,
            memory_limit: readings.memory.limit,
            memory_available: readings.memory.available,
            memory_stalled: readings.pressure.memory.some,
            cpu_percent: readings.cpu.percent(),
            process_cpu_percent: readings.process.cpu_percent,
            io_pressure: readings.io_pressure().or_else(|| in_flight(now.io_seconds?, elapsed)),
            network_percent: readings.network_percent(),
            requests: Requests {
                gets,
                misses: since(|c| c.misses),
                puts: since(|c| c.puts),
                put_bytes: since(|c| c.put_bytes),
                stalls: since(|c| c.stalls),
                mean: now.request_mean,
                p99: now.request_p99,
            },
            tiers,
            dirty_bytes: now.dirty_bytes,
            oldest_idle: now.oldest_idle,
            commit_mean: now.commit_mean,
            moved_bytes: since(|c| c.moved_bytes),
            types,
            prefetch: PrefetchSample { issued: since(|c| c.prefetched), used: since(|c| c.prefetched_used) },
            index_lookups: since(|c| c.index_lookups),
            index_misses: since(|c| c.index_misses),
            directories,
            knobs: now.knobs.clone(),
        }
        .cleaned()
    }

    /// The same without numbers that are none: not finite, negative, or beyond what they measure.
    pub(super) fn cleaned(mut self) -> Sample {
        let within = |n: &mut Option<f64>, most: f64| *n = n.filter(|n| (0.0..=most).contains(n));
        for percent in [&mut self.cpu_percent, &mut self.process_cpu_percent, &mut self.network_percent] {
            within(percent, 100.0);
        }
        within(&mut self.io_pressure, 1.0);
        within(&mut self.memory_stalled, 1.0);
        self.memory_limit = self.memory_limit.filter(|n| *n > 0);
        // No time or speed is larger.
        const MOST: f64 = 1e15;
        let requests = &mut self.requests;
        for n in [&mut self.commit_mean, &mut requests.mean, &mut requests.p99] {
            within(n, MOST);
        }
        self.tiers.iter_mut().flatten().for_each(|t| within(&mut t.p99, MOST));
        self.types.iter_mut().for_each(|t| within(&mut t.seconds, MOST));
        for d in &mut self.directories {
            for n in
                [&mut d.read_mean, &mut d.read_p99, &mut d.write_mean, &mut d.write_p99, &mut d.sync_mean]
            {
                within(n, MOST);
            }
        }
        if !(0.0..=1000.0).contains(&self.knobs.prefetch) {
            self.knobs.prefetch = 0.0;
        }
        self
    }

    /// Percent of the memory limit that this process uses.
    pub fn memory_percent(&self) -> Option<f64> {
        Some(self.memory_used? as f64 / self.memory_limit.filter(|n| *n > 0)? as f64 * 100.0)
    }

    /// Bytes of its anonymous memory that the process does not use: what its allocator keeps of what was freed.
    pub fn memory_spare(&self) -> Option<u64> {
        Some(self.memory_used?.saturating_sub(self.memory_allocated?))
    }

    /// The tier, if the store has it.
    pub fn tier(&self, tier: Tier) -> Option<&TierSample> {
        self.tiers.get(tier as usize).and_then(Option::as_ref)
    }

    /// So many in a second; `None` if no time has passed.
    pub(super) fn per_second(&self, n: u64) -> Option<f64> {
        let seconds = self.elapsed.as_secs_f64();
        (seconds > 0.0).then(|| n as f64 / seconds)
    }
}

/// I/O pressure where neither the system nor a device says it, as on tmpfs, or an overlay in a container: how many
/// operations were under way in the mean, of which one is all that a disk need have to be busy.
fn in_flight(seconds: f64, elapsed: Duration) -> Option<f64> {
    let mean = seconds / elapsed.as_secs_f64();
    (mean >= 0.0).then_some(mean.min(1.0))
}

fn tier_between(before: &TierCounters, now: &TierCounters, gets: u64) -> TierSample {
    let hits = now.hits.saturating_sub(before.hits);
    TierSample {
        hit_rate: (gets > 0).then(|| (hits as f64 / gets as f64).min(1.0)),
        hits,
        written: now.written.saturating_sub(before.written),
        bytes: now.bytes,
        limit: now.limit,
        items: now.items,
        item_limit: now.item_limit,
        p99: now.p99,
    }
}
