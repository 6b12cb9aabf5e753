//! What the optimizer can do, and by what each act is measured.

use super::policy::Strategy;
use super::sample::{Method, Sample};
use std::path::PathBuf;
use std::time::Duration;
use thermocline_storage::{ContentType, Tier};

/// A change of the engine. Written, it is a line for people; 0 bytes or reads that it was `from` mean that this is not known.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "`from` is what was, `to` what shall be")]
pub enum Change {
    /// Another strategy: its ceilings hold from now on.
    SetStrategy { from: Strategy, to: Strategy },
    /// Let go of so many bytes of the memory tier, coldest first; what a lower tier can hold moves there.
    FreeMemory { bytes: u64, from: u64, to: u64 },
    /// Give free memory of the allocator back to the system.
    TrimAllocator,
    /// The size of the memory tier.
    ResizeMemoryTier { from: u64, to: u64 },
    /// Clean entries that nobody asked for in so long leave memory.
    EvictIdle { age: Duration },
    /// Demote the least used items of a tier until it is as full as this.
    Rebalance { tier: Tier, from: f64, to: f64 },
    /// Bytes a second that reclaim of a tier may copy.
    SetReclaimRate { tier: Tier, from: u64, to: u64 },
    /// Bytes of the caches of sled.
    SetSledCache { from: u64, to: u64 },
    /// Bytes of a new pack.
    SetPackSize { from: u64, to: u64 },
    /// Bytes that are read ahead in a tier: HDD or cold.
    SetReadAhead { tier: Tier, from: u64, to: u64 },
    /// Bytes of the smallest read.
    SetReadSize { from: u64, to: u64 },
    /// Reads of a directory that may be under way; of each, if none is named.
    SetConcurrency { directory: Option<PathBuf>, from: u64, to: u64 },
    /// Bytes that may wait to be written.
    SetWriteBuffer { from: u64, to: u64 },
    /// Bytes a second of background work.
    SetBackgroundRate { from: u64, to: u64 },
    /// Codec or level of a content type.
    SetCompression { content: ContentType, from: Method, to: Method },
    /// A content type is stored as it is, for so long at least.
    LeaveUncompressed { content: ContentType, from: Method, retry_after: Duration },
    /// A content type is compressed again.
    RetryCompression { content: ContentType, to: Method },
    /// Prefetch multiplier; 0: off.
    SetPrefetch { from: f64, to: f64 },
}

/// What a change turns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "they are named after the changes")]
pub enum Knob {
    Strategy,
    MemoryContent,
    Allocator,
    MemorySize,
    Occupancy(Tier),
    ReclaimRate(Tier),
    SledCache,
    PackSize,
    ReadAhead(Tier),
    ReadSize,
    Concurrency(PathBuf),
    WriteBuffer,
    BackgroundRate,
    /// Of text, JSON, binary, media: 0 to 3.
    Compression(usize),
    Prefetch,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "they say it")]
pub enum Direction {
    Up,
    Down,
}

impl Change {
    /// What it turns.
    pub fn knob(&self) -> Knob {
        match self {
            Change::SetStrategy { .. } => Knob::Strategy,
            Change::FreeMemory { .. } | Change::EvictIdle { .. } => Knob::MemoryContent,
            Change::TrimAllocator => Knob::Allocator,
            Change::ResizeMemoryTier { .. } => Knob::MemorySize,
            Change::Rebalance { tier, .. } => Knob::Occupancy(*tier),
            Change::SetReclaimRate { tier, .. } => Knob::ReclaimRate(*tier),
            Change::SetSledCache { .. } => Knob::SledCache,
            Change::SetPackSize { .. } => Knob::PackSize,
            Change::SetReadAhead { tier, .. } => Knob::ReadAhead(*tier),
            Change::SetReadSize { .. } => Knob::ReadSize,
            Change::SetConcurrency { directory, .. } => {
                Knob::Concurrency(directory.clone().unwrap_or_default())
            }
            Change::SetWriteBuffer { .. } => Knob::WriteBuffer,
            Change::SetBackgroundRate { .. } => Knob::BackgroundRate,
            Change::SetCompression { content, .. }
            | Change::LeaveUncompressed { content, .. }
            | Change::RetryCompression { content, .. } => Knob::Compression(number(*content)),
            Change::SetPrefetch { .. } => Knob::Prefetch,
        }
    }

    /// Which way it turns it.
    pub fn direction(&self) -> Direction {
        let up = match self {
            Change::SetStrategy { from, to } => to > from,
            Change::FreeMemory { .. }
            | Change::TrimAllocator
            | Change::EvictIdle { .. }
            | Change::Rebalance { .. }
            | Change::LeaveUncompressed { .. } => false,
            Change::RetryCompression { .. } => true,
            Change::ResizeMemoryTier { from, to }
            | Change::SetReclaimRate { from, to, .. }
            | Change::SetSledCache { from, to }
            | Change::SetPackSize { from, to }
            | Change::SetReadAhead { from, to, .. }
            | Change::SetReadSize { from, to }
            | Change::SetConcurrency { from, to, .. }
            | Change::SetWriteBuffer { from, to }
            | Change::SetBackgroundRate { from, to } => to > from,
            Change::SetCompression { from, to, .. } => strength(*to) > strength(*from),
            Change::SetPrefetch { from, to } => to > from,
        };
        if up { Direction::Up } else { Direction::Down }
    }

    /// What undoes it, if anything does: entries that have left memory do not come back.
    pub fn reversed(&self) -> Option<Change> {
        let mut back = self.clone();
        match &mut back {
            Change::ResizeMemoryTier { from, to }
            | Change::SetReclaimRate { from, to, .. }
            | Change::SetSledCache { from, to }
            | Change::SetPackSize { from, to }
            | Change::SetReadAhead { from, to, .. }
            | Change::SetReadSize { from, to }
            | Change::SetConcurrency { from, to, .. }
            | Change::SetWriteBuffer { from, to }
            | Change::SetBackgroundRate { from, to } => std::mem::swap(from, to),
            Change::SetCompression { from, to, .. } => std::mem::swap(from, to),
            Change::SetPrefetch { from, to } => std::mem::swap(from, to),
            _ => return None,
        }
        Some(back)
    }
}

/// How hard a method compresses.
fn strength(method: Method) -> u64 {
    match method.algorithm {
        crate::config::Algorithm::None => 0,
        crate::config::Algorithm::Lz4 => 1,
        crate::config::Algorithm::Zlib => 1 + method.level,
    }
}

/// Number of a content type, 0 to 3; that of binary for one that is to be found out.
fn number(content: ContentType) -> usize {
    super::rules::CONTENT.iter().position(|c| *c == content).unwrap_or(2)
}

/// By what an action is measured. Of all, less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Goal {
    /// Pressure on the machine.
    Pressure,
    /// Seconds of a request, in the mean; one that found nothing is as dear as the dearest tier.
    RequestCost,
    /// Seconds of 99 of 100 requests.
    Tail,
    /// Percent of the memory limit.
    MemoryUse,
    /// Percent of the processors.
    CpuUse,
    /// How full a tier is.
    Occupancy(Tier),
    /// Stored / original of a content type, 0 to 3.
    Stored(usize),
    /// Processors, or what part of one, that compressing a content type keeps busy, 0 to 3.
    Compressing(usize),
    /// Share of prefetched items that nobody asked for.
    WastedPrefetch,
    /// Callers a second that had to wait for the disk.
    Stalls,
}

impl Goal {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Goal> {
        use Goal::*;
        let single = [Pressure, RequestCost, Tail, MemoryUse, CpuUse, WastedPrefetch, Stalls];
        let tiers = [Tier::Memory, Tier::Ssd, Tier::Hdd, Tier::Cold].map(Occupancy);
        single.into_iter().chain(tiers).chain((0..4).map(Stored)).chain((0..4).map(Compressing))
    }

    /// Its value in a sample, if that says it.
    pub fn value(self, sample: &Sample) -> Option<f64> {
        match self {
            Goal::Pressure => super::rules::strategy::pressure(sample),
            Goal::RequestCost => sample.requests.mean,
            Goal::Tail => sample.requests.p99,
            Goal::MemoryUse => sample.memory_percent(),
            Goal::CpuUse => sample.cpu_percent,
            Goal::Occupancy(tier) => sample.tier(tier)?.occupancy(),
            Goal::Stored(content) => sample.types.get(content)?.ratio(),
            Goal::Compressing(content) => {
                let elapsed = Some(sample.elapsed.as_secs_f64()).filter(|s| *s > 0.0)?;
                Some(sample.types.get(content)?.seconds? / elapsed)
            }
            Goal::WastedPrefetch => {
                let p = sample.prefetch;
                (p.issued > 0).then(|| 1.0 - (p.used as f64 / p.issued as f64).min(1.0))
            }
            Goal::Stalls => sample.per_second(sample.requests.stalls),
        }
    }

    /// What is noise however steady it was: a difference that nobody would notice.
    pub(super) fn least_difference(self) -> f64 {
        match self {
            Goal::RequestCost => 1e-6,
            Goal::Tail => 1e-5,
            Goal::MemoryUse | Goal::CpuUse => 2.0,
            Goal::Pressure | Goal::WastedPrefetch => 0.05,
            Goal::Occupancy(_) | Goal::Stored(_) => 0.02,
            Goal::Stalls => 0.1,
            // A tenth of one processor.
            Goal::Compressing(_) => 0.1,
        }
    }
}

/// One act, with its reason.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Action {
    /// What is done.
    pub change: Change,
    /// By what it is measured.
    pub goal: Goal,
    /// Why, in words.
    pub because: String,
    /// Whether it undoes an earlier one that made things worse.
    pub takes_back: bool,
}
