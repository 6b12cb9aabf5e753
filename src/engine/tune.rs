//! The optimizer's eyes and hands: what the engine counts, as a sample of it, and what is decided, done.
//!
//! Invariants:
//! - one turn at a time, on the thread of whoever asks for it; no lock is held that a reader or a writer waits for, nor,
//!   while something is done, one that who asks for the history waits for;
//! - a turn comes a tenth of the interval after the one before, or a second, whichever is less, or it is none: what two of
//!   them say is of two times;
//! - an action does what it says or says why not, a panic included, and the engine's own account of its settings is what
//!   the next decision goes by;
//! - what frees memory lets go of clean entries, and hands dirty ones to the writer: nothing is dropped for it that a disk
//!   tier could hold;
//! - the optimizer changes no byte on disk by itself, so a crash leaves nothing of it: the next opening begins with what
//!   is configured.

mod counted;

use super::Engine;
use crate::allocator;
use crate::config::{Algorithm, Config};
use crate::events::Event;
use crate::metrics::DECISION_FIELDS;
use crate::optimizer::{
    Action, Change, Counters, DirectorySample, Knobs, Method, Optimizer, Policy, Record, Strategy,
    TierCounters,
};
use crate::sensors::{Readings, Sensors, SystemSensors, anonymous};
use crate::stats::{DirIo, LatencyStats, OptimizerStats, Stats};
use counted::{busiest, compressed, cost, dearest, directory, quantile, seconds, spent, weights};
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use thermocline_storage::container::Tuning;
use thermocline_storage::latency::Latency;
use thermocline_storage::{Codec, ContentType, Tier};

/// How long a beat of the memory tier's idle time is.
pub(super) const IDLE_BEAT_MS: u64 = 10_000;
/// Bytes of entries that are let go of at a time: they stay in RAM until then.
const AT_A_TIME: u64 = 4 << 20;
/// Slots of the memory tier that are looked at for the coldest entry.
const SAMPLE: usize = 4096;
/// Slots of the memory tier that are looked at before what is idle is let go of.
const SLOTS: usize = 1 << 16;

/// What the loop remembers.
#[derive(Debug)]
pub(crate) struct Tuner {
    optimizer: Optimizer,
    actions: u64,
    taken_back: u64,
}

/// What is asked for readings. Held by who takes a turn, so that it is one at a time; whoever asks for the history does not
/// wait for it.
pub(crate) struct Eyes {
    sensors: Option<Box<dyn Sensors>>,
    directories: Vec<PathBuf>,
    /// When they first looked.
    began: Option<Instant>,
    before: Before,
}

impl std::fmt::Debug for Eyes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Eyes").field("directories", &self.directories).finish_non_exhaustive()
    }
}

impl Eyes {
    /// `sensors` that were given, or those of the system, which are looked for when they are needed.
    pub(super) fn new(sensors: Option<Box<dyn Sensors>>, directories: Vec<PathBuf>) -> Eyes {
        Eyes { sensors, directories, began: None, before: Before::default() }
    }

    fn sensors(&mut self) -> &mut dyn Sensors {
        let directories = &self.directories;
        &mut **self.sensors.get_or_insert_with(|| Box::new(SystemSensors::new(directories.iter())))
    }

    fn look(&mut self) -> Readings {
        let mut readings = self.sensors().sample();
        let now = Instant::now();
        let began = *self.began.get_or_insert(now);
        if readings.monotonic.is_zero() {
            // Whoever gives readings need not give a clock; or it is one that begins now.
            readings.monotonic = now.duration_since(began);
        }
        readings
    }
}

/// What the counters showed at the turn before.
#[derive(Debug, Default)]
struct Before {
    latency: LatencyStats,
    io: HashMap<PathBuf, DirIo>,
    /// What memory, SSD, HDD and archive had answered, and what nobody had.
    answered: [u64; 5],
    /// Nanoseconds of a hit in each tier when one was last timed, smoothed.
    hit_ns: [f64; 4],
}

impl Tuner {
    pub(super) fn new(config: &Config) -> Tuner {
        Tuner { optimizer: Optimizer::new(Policy::of(config)), actions: 0, taken_back: 0 }
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        self.optimizer.history().iter().cloned().collect()
    }

    pub(crate) fn last(&self) -> Option<Record> {
        self.optimizer.history().last().cloned()
    }

    pub(crate) fn strategy(&self) -> Strategy {
        self.optimizer.state().strategy()
    }

    pub(super) fn stats(&self) -> OptimizerStats {
        let state = self.optimizer.state();
        OptimizerStats {
            strategy: state.strategy(),
            pressure: self.optimizer.history().last().and_then(|r| r.decision.pressure),
            turns: state.decisions(),
            actions: self.actions,
            taken_back: self.taken_back,
        }
    }
}

impl Engine {
    /// One turn of the optimizer: looks, decides, acts, records. `None` for the first, which has nothing to compare with,
    /// and where too little time has passed since the one before.
    pub(crate) fn tune_step(&self) -> Option<Record> {
        self.tune_step_by(&|action| self.act(action))
    }

    fn tune_step_by(&self, act: &dyn Fn(&Action) -> Result<(), String>) -> Option<Record> {
        let mut eyes = self.eyes.lock();
        // What the next turn compares with stays, that of the sensors too, so that it sees all of the time.
        let too_soon =
            |at| self.tuning(|t| t.optimizer.since(at)).is_some_and(|since| since < self.settings.least_turn);
        if eyes.sensors().now().is_some_and(too_soon) {
            return None;
        }
        let readings = eyes.look();
        if too_soon(readings.monotonic) {
            return None;
        }
        let stats = self.stats();
        let counters = self.counters_of(&stats, &mut eyes.before);
        eyes.before.latency = stats.latency;
        let turn = self.tuner.lock().optimizer.begin(&readings, counters)?;
        // Without the lock: to free gigabytes takes long.
        let outcomes = turn.carry_out(&mut |action: &Action| {
            let done = std::panic::catch_unwind(AssertUnwindSafe(|| act(action)));
            done.unwrap_or_else(|_| Err("it panicked, which is a fault of the program".to_owned()))
        });
        let done: Vec<bool> =
            outcomes.iter().filter(|o| o.result.is_ok()).map(|o| o.action.takes_back).collect();
        let unix_ms = self.now();
        let mut tuner = self.tuner.lock();
        tuner.actions += done.len() as u64;
        tuner.taken_back += done.iter().filter(|back| **back).count() as u64;
        let record = tuner.optimizer.end(turn, outcomes, unix_ms).cloned();
        drop(tuner);
        record.iter().for_each(|record| self.report(record));
        record
    }

    /// Leaves what was decided for the metrics server.
    fn report(&self, record: &Record) {
        for outcome in &record.outcomes {
            let result = match &outcome.result {
                Ok(()) => "done".to_owned(),
                Err(why) => format!("not done: {why}"),
            };
            let pressure =
                record.decision.pressure.map_or_else(|| "not known".to_owned(), |p| format!("{p:.3}"));
            let values = [
                record.decision.strategy.to_string(),
                pressure,
                outcome.action.change.to_string(),
                outcome.action.because.clone(),
                result,
                outcome.action.takes_back.to_string(),
            ];
            let names = DECISION_FIELDS.iter().map(|(name, _)| (*name).to_owned());
            self.decision(names.zip(values).collect());
        }
    }

    /// Whether the optimizer takes turns by itself now.
    pub(crate) fn tunes(&self) -> bool {
        self.settings.tunes_every.is_some() && self.runs.load(Relaxed) && !self.paused.load(Relaxed)
    }

    pub(crate) fn pause_tuning(&self, paused: bool) {
        self.paused.store(paused, Relaxed);
    }

    /// Something of what the loop remembers.
    pub(crate) fn tuning<R>(&self, of: impl FnOnce(&Tuner) -> R) -> R {
        of(&self.tuner.lock())
    }

    /// What was counted, with latencies since the turn before.
    fn counters_of(&self, stats: &Stats, before: &mut Before) -> Counters {
        let gets: Vec<Latency> =
            stats.latency.get.iter().zip(&before.latency.get).map(|(n, b)| n.since(b)).collect();
        let miss = stats.latency.miss.since(&before.latency.miss);
        let journal = stats.latency.journal_sync.since(&before.latency.journal_sync);
        let weights = weights(stats, &mut before.answered).into_iter();
        let parts: Vec<(f64, &Latency)> =
            weights.zip(gets.iter().chain([&miss])).filter(|(w, l)| *w > 0.0 && l.count > 0).collect();
        // The first of the beats may have come right after the use.
        let idle = |beats: u16| Duration::from_millis(IDLE_BEAT_MS * u64::from(beats.saturating_sub(1)));
        let lookups = self.tiers.iter().map(|tier| tier.index_lookups());
        let (index_lookups, index_misses) = lookups.fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        let c = &stats.counts;
        Counters {
            gets: c.gets,
            misses: c.misses,
            puts: c.puts,
            put_bytes: c.put_bytes,
            stalls: c.stalls,
            moved_bytes: c.moved_bytes,
            request_mean: cost(&parts, &miss, dearest(&gets, &mut before.hit_ns)),
            request_p99: quantile(&parts, 0.99),
            commit_mean: seconds(&journal, Latency::mean_ns),
            tiers: self.tiers_of(stats, &gets),
            dirty_bytes: stats.dirty_bytes,
            oldest_idle: self.memory.most_idle(SAMPLE).map(idle),
            types: stats.types.each_ref().map(compressed),
            type_seconds: stats.types.each_ref().map(|t| Some(spent(t))),
            // Of which it is known.
            prefetched: c.prefetch_used + c.prefetch_wasted,
            prefetched_used: c.prefetch_used,
            index_lookups,
            index_misses,
            directories: self.directories_of(stats, &before.io),
            io_seconds: busiest(stats, &mut before.io),
            knobs: self.knobs(),
        }
    }

    fn tiers_of(&self, stats: &Stats, gets: &[Latency]) -> [Option<TierCounters>; 4] {
        Tier::ALL.map(|tier| {
            let t = stats.tier(tier)?;
            let item_limit = match tier {
                Tier::Memory => Some(self.memory.stats().max_items),
                Tier::Ssd => Some(self.settings.ssd_items),
                _ => None,
            };
            Some(TierCounters {
                hits: t.hits,
                written: t.written,
                bytes: t.bytes,
                limit: t.limit,
                items: t.items,
                item_limit,
                p99: gets.get(tier as usize).and_then(|l| seconds(l, Latency::p99_ns)),
            })
        })
    }

    fn directories_of(&self, stats: &Stats, before: &HashMap<PathBuf, DirIo>) -> Vec<DirectorySample> {
        let mut all = Vec::new();
        let none = DirIo::default();
        for tier in self.tiers.iter().map(|t| t.tier()) {
            for now in stats.tier(tier).map(|t| t.io.as_slice()).unwrap_or_default() {
                let mut of = directory(tier, now, before.get(&now.path).unwrap_or(&none));
                of.concurrency = self.meters.concurrency_of(&now.path).unwrap_or(of.concurrency);
                all.push(of);
            }
        }
        all
    }

    /// How the engine is set.
    fn knobs(&self) -> Knobs {
        let d = &self.dials;
        let policy = d.compression();
        let method = |t: ContentType| match policy.codec_of(t) {
            Codec::Zlib => Method { algorithm: Algorithm::Zlib, level: policy.level_of(t).into() },
            Codec::Lz4 => Method { algorithm: Algorithm::Lz4, level: 1 },
            _ => Method::NONE,
        };
        Knobs {
            memory_size: self.memory.stats().max_bytes,
            reclaim_rate: Tier::ALL.map(|t| d.reclaim_rate(t)),
            sled_cache: d.sled_cache(),
            pack_size: d.pack_size(),
            read_ahead: Tier::ALL.map(|t| d.read_ahead(t)),
            read_size: d.read_size(),
            write_buffer: d.write_buffer(),
            background_rate: d.migration_rate(),
            methods: ContentType::STORED.map(method),
            prefetch: d.prefetch(),
        }
    }

    /// Does one action.
    pub(super) fn act(&self, action: &Action) -> Result<(), String> {
        self.apply(&action.change)
    }

    /// Does what an action says.
    pub(crate) fn apply(&self, change: &Change) -> Result<(), String> {
        let d = &self.dials;
        match change {
            Change::SetStrategy { from, to } => {
                let (from, to) = (*from, *to);
                self.events.emit(|| Event::StrategyChanged { from, to });
            }
            Change::FreeMemory { bytes, .. } => self.free_memory(*bytes),
            Change::TrimAllocator => trim()?,
            Change::ResizeMemoryTier { to, .. } => self.resize_memory(*to),
            Change::EvictIdle { age } => self.evict_idle(*age)?,
            Change::Rebalance { tier, .. } => {
                let found = self.tier(*tier).ok_or("the store has no such tier")?;
                if !self.is_over(found) {
                    return Err(
                        "what is over the mark belongs to containers that nothing can be freed of now".into(),
                    );
                }
                self.wake_mover(*tier);
            }
            Change::SetReclaimRate { tier, to, .. } => _ = d.set_reclaim_rate(*tier, *to),
            Change::SetReadAhead { tier, to, .. } => {
                if !matches!(tier, Tier::Hdd | Tier::Cold) {
                    return Err(format!("nothing reads ahead in the tier {tier}"));
                }
                let bytes = d.set_read_ahead(*tier, *to);
                self.tune(*tier, &Tuning { read_ahead: Some(bytes), ..Tuning::default() })?;
            }
            Change::SetWriteBuffer { to, .. } => _ = d.set_write_buffer(*to),
            Change::SetBackgroundRate { to, .. } => _ = d.set_migration_rate(*to),
            Change::SetConcurrency { directory, to, .. } => {
                let to = d.concurrency(*to);
                match directory {
                    None => self.meters.set_concurrency(to),
                    Some(path) if self.meters.set_concurrency_of(path, to) => {}
                    Some(path) => return Err(format!("no tier has the directory {}", path.display())),
                }
            }
            Change::SetPrefetch { to, .. } => d.set_prefetch(*to),
            Change::SetSledCache { to, .. } => {
                let bytes = d.set_sled_cache(*to);
                self.tune(Tier::Hdd, &Tuning { index_cache: Some(bytes), ..Tuning::default() })?;
            }
            Change::SetPackSize { to, .. } => {
                let bytes = d.set_pack_size(*to);
                self.tune(Tier::Cold, &Tuning { container_size: Some(bytes), ..Tuning::default() })?;
            }
            Change::SetReadSize { to, .. } => {
                let bytes = usize::try_from(d.set_read_size(*to)).ok();
                let tuning = Tuning { smallest_read: bytes, ..Tuning::default() };
                self.tiers.iter().for_each(|tier| tier.tune(&tuning));
            }
            Change::SetCompression { content, to, .. } | Change::RetryCompression { content, to } => {
                self.compress_as(*content, *to);
            }
            Change::LeaveUncompressed { content, .. } => self.compress_as(*content, Method::NONE),
            #[expect(
                unreachable_patterns,
                reason = "what the optimizer learns to ask for is to be said here"
            )]
            other => return Err(format!("the engine does not know how: {other}")),
        }
        Ok(())
    }

    fn tune(&self, tier: Tier, tuning: &Tuning) -> Result<(), String> {
        self.tier(tier).ok_or("the store has no such tier")?.tune(tuning);
        Ok(())
    }

    fn compress_as(&self, content: ContentType, method: Method) {
        let codec = match method.algorithm {
            Algorithm::Zlib => Codec::Zlib,
            Algorithm::Lz4 => Codec::Lz4,
            _ => Codec::None,
        };
        let mut policy = (*self.dials.compression()).clone();
        policy.set(content, codec, u32::try_from(method.level).unwrap_or(9).min(9));
        let policy = self.dials.set_compression(policy);
        // The archive does its own; if it is to compress at all.
        if self.settings.compress.get(Tier::Cold as usize).copied().unwrap_or(false)
            && let Some(cold) = self.tier(Tier::Cold)
        {
            let policy = self.dials.archives(&policy);
            cold.tune(&Tuning { compression: Some(policy), ..Tuning::default() });
        }
    }

    /// Lets go of so many bytes of memory, coldest first. What is dirty waits for the writer in the write buffer, so it
    /// is freed a moment later.
    fn free_memory(&self, bytes: u64) {
        let mut left = bytes;
        while left > 0 && !self.is_stopping() {
            let used = self.memory.stats().weight;
            let now = left.min(AT_A_TIME);
            let waiting = self.catalog.buffer.bytes();
            let mut out = Vec::new();
            self.memory.shrink_to(used.saturating_sub(now), &mut out);
            let freed: u64 = out.iter().map(|e| e.bytes).sum();
            self.let_go(out);
            // What was only in memory is written first: the rest goes at the next turn, or callers would wait for it.
            if freed == 0 || self.is_much_to_write(waiting) {
                break;
            }
            left = left.saturating_sub(freed);
        }
        self.signals[0].wake_now();
    }

    /// Whether more waits to be written than before, and half of the write buffer is full.
    fn is_much_to_write(&self, before: u64) -> bool {
        let waits = self.catalog.buffer.bytes();
        waits > before && waits > self.dials.write_buffer() / 2
    }

    /// Sets the limit of the memory tier, a little at a time where it gets smaller: what it lets go of stays in RAM until
    /// all of one step was let go of. Where that is only in memory, as much at once as half the write buffer: it is no
    /// sooner free than it is written, and callers would wait for it.
    fn resize_memory(&self, to: u64) {
        let items = self.memory.stats().max_items;
        loop {
            let step = to.max(self.memory.stats().weight.saturating_sub(AT_A_TIME));
            let mut out = Vec::new();
            let waiting = self.catalog.buffer.bytes();
            self.memory.set_limits(step, items, &mut out);
            let stuck = step > to && (out.is_empty() || self.is_stopping());
            self.let_go(out);
            if step == to || self.is_much_to_write(waiting) {
                return;
            }
            if stuck {
                // Nothing can go now: those who come in later find the limit.
                let mut out = Vec::new();
                self.memory.set_limits(to, items, &mut out);
                return self.let_go(out);
            }
        }
    }

    /// Lets go of clean entries that nobody has asked for in so long. Without a disk below there are none.
    fn evict_idle(&self, age: Duration) -> Result<(), String> {
        if !self.has_disk() {
            return Err("nothing below memory holds what is idle".to_owned());
        }
        // One more than that many lie between a use and now only if all of that time does.
        let beats = age.as_millis().div_ceil(IDLE_BEAT_MS.into()) + 1;
        let beats = u16::try_from(beats).unwrap_or(u16::MAX);
        loop {
            let mut out = Vec::new();
            let (_, ended) = self.memory.evict_idle(beats, SLOTS, &mut out);
            self.let_go(out);
            if ended || self.is_stopping() {
                return Ok(());
            }
        }
    }

    /// Another beat by which idle time is counted, if it is time.
    pub(super) fn beat_if_due(&self) {
        let now = self.now();
        let last = self.beat_ms.load(Relaxed);
        if now >= last.saturating_add(IDLE_BEAT_MS) {
            // A store that was asleep has not been idle for longer than it was awake.
            self.beat_ms.store(now, Relaxed);
            self.memory.beat();
        }
    }
}

/// Has the allocator give back what it keeps. That most of it stayed is a failure, so that it is not asked again soon.
fn trim() -> Result<(), String> {
    let kept =
        |held: Option<u64>| held.zip(allocator::allocated()).map(|(held, used)| held.saturating_sub(used));
    let before = anonymous();
    let spare = kept(before);
    if !allocator::trim() {
        return Err("the allocator has nothing to give back, or is not glibc's".to_owned());
    }
    let given = before.zip(anonymous()).map(|(before, after)| before.saturating_sub(after));
    match given.zip(spare) {
        Some((given, spare)) if given < spare / 4 => {
            Err(format!("{given} bytes of {spare} went back: the rest lies between what is in use"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod effects;
#[cfg(test)]
mod tests;
