//! How the disks are used, from what they were measured to do.
//!
//! Of each tier, *t* is the time a read takes before its first byte (mean latency less the bytes over the throughput),
//! and *B* the throughput while busy. Then B·t bytes cost as much as the access itself:
//!
//! - read-ahead is B·t (a power of two): it doubles the cost of an access at most, and saves the next ones;
//! - the smallest read is a tenth of B·t, of the tier where that is least: reading more than asked costs a tenth at most;
//! - concurrency is a gradient (as in Netflix's concurrency-limits): the limit times usual latency / present latency,
//!   between a half and 1, with half of the usual latency as tolerance, plus its square root while at least half of it
//!   is in use. What is in use follows from Little's law: operations a second times their mean latency;
//! - the write buffer doubles, or is what flows in during four commits if that is more, when callers had to wait; while
//!   memory is over its threshold it shrinks to the latter.
//!
//! Buffers are turned when they are off by a factor of two, the limit when it is off by a tenth.

use super::super::action::{Change, Goal};
use super::super::plan::Plan;
use super::super::sample::{DirectorySample, Sample};
use super::super::{bounded, floor_power};
use super::DISKS;
use thermocline_storage::Tier;

/// Reads below which their mean says nothing.
const FEW: u64 = 16;
/// The smallest read is not larger than this, unless the configuration says so.
const LARGEST_READ: u64 = 64 << 10;
/// Least operations in flight.
const LEAST_OPS: u64 = 16;
/// Times the usual latency that are not yet too many.
const TOLERANCE: f64 = 1.5;
/// Commits whose inflow the write buffer holds.
const COMMITS: f64 = 4.0;

pub(in super::super) fn apply(plan: &mut Plan<'_>) {
    for tier in DISKS {
        read_ahead(plan, tier);
    }
    read_size(plan);
    concurrency(plan);
    write_buffer(plan);
}

/// Bytes that cost as much to read as one access to the tier: B·t.
fn free_bytes(sample: &Sample, tier: Tier) -> Option<f64> {
    let of = |d: &DirectorySample| {
        let (mean, speed) = (d.read_mean?, d.throughput.filter(|b| *b > 0.0)?);
        let size = d.read_bytes as f64 / d.reads as f64;
        Some((mean - size / speed).max(0.0) * speed)
    };
    // With several disks, what none of them pays dear for.
    let read = sample.directories.iter().filter(|d| d.tier == tier && d.reads >= FEW);
    read.filter_map(of).reduce(f64::min)
}

/// Whether a buffer is off by a factor of two.
fn is_off(wanted: f64, from: u64) -> bool {
    wanted >= 2.0 * from as f64 || wanted <= from as f64 / 2.0
}

fn read_ahead(plan: &mut Plan<'_>, tier: Tier) {
    let Some(wanted) = free_bytes(plan.sample, tier) else { return };
    let Some(from) = plan.sample.knobs.read_ahead.get(tier as usize).copied() else { return };
    let most = plan.policy.read_ahead_size;
    let to = bounded(floor_power(wanted), plan.policy.buffer_size, most);
    if to == from || !(is_off(wanted, from) || from > most) {
        return;
    }
    let because = format!("{wanted:.0} bytes cost as much as an access to the tier");
    plan.propose(Change::SetReadAhead { tier, from, to }, Goal::RequestCost, because);
}

fn read_size(plan: &mut Plan<'_>) {
    let least = DISKS.iter().filter_map(|t| free_bytes(plan.sample, *t)).reduce(f64::min);
    let Some(wanted) = least.map(|n| n / 10.0) else { return };
    let (from, smallest) = (plan.sample.knobs.read_size, plan.policy.buffer_size);
    let to = bounded(floor_power(wanted), smallest, LARGEST_READ.max(smallest));
    if to == from || !(is_off(wanted, from) || from < smallest) {
        return;
    }
    let because = format!("{wanted:.0} bytes cost a tenth of an access");
    plan.propose(Change::SetReadSize { from, to }, Goal::RequestCost, because);
}

/// Reads, and the sum of their times. Writes are not held back: they come from one thread for each tier.
fn operations(sample: &Sample) -> (f64, f64) {
    let known =
        sample.directories.iter().filter_map(|d| Some((d.reads as f64, d.reads as f64 * d.read_mean?)));
    known.fold((0.0, 0.0), |(n, time), (more, took)| (n + more, time + took))
}

fn concurrency(plan: &mut Plan<'_>) {
    let (operations, time) = operations(plan.sample);
    let seconds = plan.sample.elapsed.as_secs_f64();
    if operations < FEW as f64 || seconds <= 0.0 {
        return;
    }
    let (latency, in_flight) = (time / operations, time / seconds);
    let usual = plan.state.usual_latency.unwrap_or(latency);
    plan.state.usual_latency = Some(usual + (latency - usual) / 16.0);
    let (from, most) = (plan.sample.knobs.concurrency, plan.policy.max_concurrent_ops.max(1));
    let limit = from as f64;
    let gradient = if latency > 0.0 { (TOLERANCE * usual / latency).clamp(0.5, 1.0) } else { 1.0 };
    let room = if in_flight >= limit / 2.0 { limit.sqrt() } else { 0.0 };
    let to = bounded((limit * gradient + room) as u64, LEAST_OPS.min(most), most);
    if to == from || (to.abs_diff(from) as f64) < limit / 10.0 && (1..=most).contains(&from) {
        return;
    }
    let because = format!(
        "{in_flight:.1} operations are in flight of {from}, at {latency:.6} s where {usual:.6} s is usual"
    );
    if to < from {
        plan.require(Change::SetConcurrency { from, to }, Goal::Tail, because);
    } else {
        plan.propose(Change::SetConcurrency { from, to }, Goal::Tail, because);
    }
}

fn write_buffer(plan: &mut Plan<'_>) {
    let sample = plan.sample;
    let (from, most) = (sample.knobs.write_buffer, plan.policy.write_buffer_size);
    let least = (1 << 20).min(most);
    let inflow = sample.per_second(sample.requests.put_bytes);
    let needed = inflow.zip(sample.commit_mean).map(|(rate, mean)| COMMITS * rate * mean);
    if plan.memory_is_over() {
        let Some(needed) = needed.filter(|n| n * 2.0 <= from as f64) else { return };
        let to = bounded(floor_power(needed * 2.0), least, most);
        if to < from {
            let because = format!("memory is over its threshold, and {needed:.0} bytes are enough");
            plan.require(Change::SetWriteBuffer { from, to }, Goal::MemoryUse, because);
        }
    } else if sample.requests.stalls > 0 && !plan.memory_is_tight() {
        let wanted = needed.map_or(0, floor_power).max(from.saturating_mul(2));
        let to = bounded(wanted, least, most);
        if to > from {
            let because = format!("{} callers had to wait for the disk", sample.requests.stalls);
            plan.propose(Change::SetWriteBuffer { from, to }, Goal::Stalls, because);
        }
    } else if from > most {
        let because = "the write buffer is over the configured size".to_owned();
        plan.require(Change::SetWriteBuffer { from, to: most }, Goal::MemoryUse, because);
    }
}
