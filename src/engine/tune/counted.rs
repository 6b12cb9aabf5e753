//! What the engine counts, made into what a sample of it says: shares, means and percentiles since the turn before.
//!
//! Invariant: where nothing was measured there is `None`, never 0.

use crate::optimizer::DirectorySample;
use crate::stats::{DirIo, Stats, TypeStats};
use std::collections::HashMap;
use std::path::PathBuf;
use thermocline_storage::Tier;
use thermocline_storage::latency::Latency;

/// Bytes of a content type that were given to a codec, and what is stored of them: those that it was tried on in vain
/// whole.
pub(super) fn compressed(t: &TypeStats) -> (u64, u64) {
    let all = [&t.zlib, &t.lz4, &t.deflate];
    let original = all.iter().map(|c| c.original_bytes + c.skipped_bytes).sum();
    (original, all.iter().map(|c| c.stored_bytes + c.skipped_bytes).sum())
}

/// Seconds of a processor that compressing a content type took.
pub(super) fn spent(t: &TypeStats) -> f64 {
    [&t.zlib, &t.lz4, &t.deflate].iter().map(|c| c.nanos as f64 / 1e9).sum()
}

/// How many requests each tier answered since the turn before, and none of them: what their latencies weigh.
pub(super) fn weights(stats: &Stats, answered: &mut [u64; 5]) -> [f64; 5] {
    let [m, s, h, c] = Tier::ALL.map(|tier| stats.tier(tier).map_or(0, |t| t.hits));
    let now = [m, s, h, c, stats.counts.misses];
    let before = std::mem::replace(answered, now);
    let mut since = [0.0; 5];
    for ((since, now), before) in since.iter_mut().zip(now).zip(before) {
        *since = now.saturating_sub(before) as f64;
    }
    since
}

/// A figure of a latency in seconds; `None` where nothing was measured.
pub(super) fn seconds(latency: &Latency, figure: impl Fn(&Latency) -> u64) -> Option<f64> {
    (latency.count > 0).then(|| figure(latency) as f64 / 1e9)
}

/// Nanoseconds of a hit in the dearest tier. One that answers seldom is as dear as it was when it last did: whether it
/// happened to answer since the turn before must not change what a miss costs.
pub(super) fn dearest(gets: &[Latency], known: &mut [f64; 4]) -> f64 {
    for (known, now) in known.iter_mut().zip(gets).filter(|(_, now)| now.count > 0) {
        let now = now.sum_ns as f64 / now.count as f64;
        *known = if *known > 0.0 { *known + (now - *known) / 8.0 } else { now };
    }
    known.iter().copied().fold(0.0, f64::max)
}

/// What a request costs in the mean of several latencies, each with its weight, in seconds. To find nothing takes no time
/// to speak of, and who asked has to get it from elsewhere: a miss counts as what the `dearest` tier takes, in nanoseconds,
/// which its caller would not keep if elsewhere were cheaper. Counted by its time, what turns misses into hits would seem to
/// make things worse.
pub(super) fn cost(parts: &[(f64, &Latency)], miss: &Latency, dearest: f64) -> Option<f64> {
    let weight: f64 = parts.iter().map(|(w, _)| w).sum();
    let of = |(w, l): &(f64, &Latency)| {
        let mean = l.sum_ns as f64 / l.count.max(1) as f64;
        w * if std::ptr::eq(*l, miss) { mean.max(dearest) } else { mean }
    };
    let sum: f64 = parts.iter().map(of).sum();
    (weight > 0.0).then(|| sum / weight / 1e9)
}

/// The least time, in seconds, that this share of all requests took at most: each latency is a sample of so many of them
/// as its weight says.
pub(super) fn quantile(parts: &[(f64, &Latency)], share: f64) -> Option<f64> {
    let weight: f64 = parts.iter().map(|(w, _)| w).sum();
    if weight <= 0.0 {
        return None;
    }
    let within = |ns: u64| {
        let part = |(w, l): &(f64, &Latency)| w * l.at_most(ns) as f64 / l.count.max(1) as f64;
        parts.iter().map(part).sum::<f64>() / weight >= share
    };
    let (mut low, mut high) = (0u64, 1u64 << 37);
    while high - low > 1 + low / 64 {
        let middle = low + (high - low) / 2;
        if within(middle) { high = middle } else { low = middle }
    }
    Some(high as f64 / 1e9)
}

/// Seconds that the operations took of the directory for which that is most, the catalog's among them, since the turn
/// before, whose counts make way for those of now. `None` without any directory.
pub(super) fn busiest(stats: &Stats, before: &mut HashMap<PathBuf, DirIo>) -> Option<f64> {
    let of_tiers = stats.tiers.iter().flatten().flat_map(|t| &t.io);
    let all = of_tiers.chain(&stats.catalog_io).map(|now| {
        let then = before.insert(now.path.clone(), now.clone()).unwrap_or_default();
        let kinds = [
            (&now.read_latency, &then.read_latency),
            (&now.write_latency, &then.write_latency),
            (&now.sync_latency, &then.sync_latency),
        ];
        kinds.iter().map(|(now, then)| now.since(then).sum_ns as f64 / 1e9).sum()
    });
    all.reduce(f64::max)
}

pub(super) fn directory(tier: Tier, now: &DirIo, before: &DirIo) -> DirectorySample {
    let (read, write) =
        (now.read_latency.since(&before.read_latency), now.write_latency.since(&before.write_latency));
    let mut of = DirectorySample::new(tier, now.path.clone());
    of.reads = now.reads.saturating_sub(before.reads);
    of.read_bytes = now.read_bytes.saturating_sub(before.read_bytes);
    of.read_mean = seconds(&read, Latency::mean_ns);
    of.read_p99 = seconds(&read, Latency::p99_ns);
    of.writes = now.writes.saturating_sub(before.writes);
    of.write_bytes = now.write_bytes.saturating_sub(before.write_bytes);
    of.write_mean = seconds(&write, Latency::mean_ns);
    of.write_p99 = seconds(&write, Latency::p99_ns);
    let sync = now.sync_latency.since(&before.sync_latency);
    (of.syncs, of.sync_mean) = (sync.count, seconds(&sync, Latency::mean_ns));
    of.disk = now.disk_reads.since(&before.disk_reads);
    for ((of, now), before) in of.alone.iter_mut().zip(&now.alone).zip(&before.alone) {
        *of = now.since(before);
    }
    of
}
