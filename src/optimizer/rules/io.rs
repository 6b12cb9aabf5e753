//! How the disks are used, from what they were measured to do.
//!
//! Of each directory, *t* is the time that a read takes before its first byte, and *B* the bytes a second after that. Both
//! follow from reads that the disk answered (not the page cache) and that waited for no other: a large one takes as much
//! longer than a small one as its further bytes take, which gives B, and what is left of the small one is t. Queues do not
//! show in it. Then B·t bytes cost as much as the access itself:
//!
//! - read-ahead of the HDD and of the archive is B·t (a power of two): it doubles the cost of an access at most, and saves
//!   the next ones;
//! - the smallest read, which is the SSD's, is a tenth of B·t: reading more than asked costs a tenth at most;
//! - concurrency of each directory is a gradient (as in Netflix's concurrency-limits): the limit times usual latency /
//!   present latency, between a half and 1, with half of the usual latency as tolerance, plus its square root while at least
//!   half of it is in use. What is in use follows from Little's law: operations a second times their mean latency;
//! - the write buffer doubles, or is what flows in during four commits if that is more, when callers had to wait; while
//!   memory is over its threshold it shrinks to twice the latter, and what that took comes back when memory has room.
//!
//! Buffers are turned when they are off by a factor of two, the limit when it is off by a tenth. Of a disk of which t or B
//! is not known, the knobs stay where they are.

use super::super::action::{Change, Goal};
use super::super::plan::Plan;
use super::super::sample::{DirectorySample, Sample};
use super::super::{bounded, floor_power};
use crate::units::{bytes, nanos};
use thermocline_storage::Tier;
use thermocline_storage::vfs::DiskReads;

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
    // Nothing reads ahead elsewhere.
    for tier in [Tier::Hdd, Tier::Cold] {
        read_ahead(plan, tier);
    }
    read_size(plan);
    concurrency(plan);
    write_buffer(plan);
}

/// Bytes that cost a disk as much as one access to it: B·t.
fn free_bytes_of(d: &DirectorySample) -> Option<f64> {
    let [small, large] = &d.alone;
    let mean = |r: &DiskReads| {
        let n = Some(r.count).filter(|n| *n >= FEW)? as f64;
        Some((r.bytes as f64 / n, r.nanos as f64 / 1e9 / n))
    };
    let ((bytes, time), (more, longer)) = (mean(small)?, mean(large)?);
    let speed = (more - bytes) / (longer - time);
    let access = time - bytes / speed;
    // Otherwise chance is greater than what is measured.
    (speed.is_finite() && speed > 0.0 && access > 0.0).then_some(access * speed)
}

/// The same of a tier: with several disks, what none of them pays dear for.
fn free_bytes(sample: &Sample, tier: Tier) -> Option<f64> {
    sample.directories.iter().filter(|d| d.tier == tier).filter_map(free_bytes_of).reduce(f64::min)
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
    let because = format!("{} cost as much as an access to the tier", bytes(wanted as u64));
    plan.propose(Change::SetReadAhead { tier, from, to }, Goal::RequestCost, because);
}

fn read_size(plan: &mut Plan<'_>) {
    // Only the SSD's reads go by it.
    let Some(wanted) = free_bytes(plan.sample, Tier::Ssd).map(|n| n / 10.0) else { return };
    let (from, smallest) = (plan.sample.knobs.read_size, plan.policy.buffer_size);
    let to = bounded(floor_power(wanted), smallest, LARGEST_READ.max(smallest));
    if to == from || !(is_off(wanted, from) || from < smallest) {
        return;
    }
    let because = format!("{} cost a tenth of an access", bytes(wanted as u64));
    plan.propose(Change::SetReadSize { from, to }, Goal::RequestCost, because);
}

/// Each directory for itself: reads that move from one disk to a slower one make neither slow. Writes are not held back:
/// they come from one thread for each tier.
fn concurrency(plan: &mut Plan<'_>) {
    let sample = plan.sample;
    plan.state.usual_latency.retain(|path, _| sample.directories.iter().any(|d| d.path == *path));
    sample.directories.iter().for_each(|d| concurrency_of(plan, d));
}

fn concurrency_of(plan: &mut Plan<'_>, d: &DirectorySample) {
    let (operations, time) = (d.disk.count as f64, d.disk.nanos as f64 / 1e9);
    let seconds = plan.sample.elapsed.as_secs_f64();
    if operations < FEW as f64 || seconds <= 0.0 {
        return;
    }
    let (latency, in_flight) = (time / operations, time / seconds);
    let usual = *plan.state.usual_latency.entry(d.path.clone()).or_insert(latency);
    plan.state.usual_latency.insert(d.path.clone(), usual + (latency - usual) / 16.0);
    let (from, most) = (d.concurrency, plan.policy.max_concurrent_ops.max(1));
    let limit = from as f64;
    let gradient = if latency > 0.0 { (TOLERANCE * usual / latency).clamp(0.5, 1.0) } else { 1.0 };
    let room = if in_flight >= limit / 2.0 { limit.sqrt() } else { 0.0 };
    let to = bounded((limit * gradient + room) as u64, LEAST_OPS.min(most), most);
    if to == from || (to.abs_diff(from) as f64) < limit / 10.0 && (1..=most).contains(&from) {
        return;
    }
    let because = format!(
        "{in_flight:.1} reads are under way of {from}, at {} where {} is usual",
        nanos(latency * 1e9),
        nanos(usual * 1e9)
    );
    let change = Change::SetConcurrency { directory: Some(d.path.clone()), from, to };
    if to < from {
        plan.require(change, Goal::Tail, because);
    } else {
        plan.propose(change, Goal::Tail, because);
    }
}

fn write_buffer(plan: &mut Plan<'_>) {
    let sample = plan.sample;
    let (from, most) = (sample.knobs.write_buffer, plan.policy.write_buffer_size);
    let least = (1 << 20).min(most);
    let inflow = sample.per_second(sample.requests.put_bytes);
    let needed = inflow.zip(sample.commit_mean).map(|(rate, mean)| COMMITS * rate * mean);
    if plan.memory_is_over() && sample.requests.stalls > 0 {
        // What callers wait for is little beside what memory has too much of; but no more than they need.
        let to = bounded(needed.map_or(from, |n| floor_power(n * 2.0)), least, most);
        if to > from {
            let because = format!("{} callers had to wait for the disk", sample.requests.stalls);
            plan.propose(Change::SetWriteBuffer { from, to }, Goal::Stalls, because);
        }
    } else if plan.memory_is_over() {
        let Some(needed) = needed.filter(|n| n * 2.0 <= from as f64) else { return };
        let to = bounded(floor_power(needed * 2.0), least, most);
        if to < from {
            let because = format!("memory is over its threshold, and {} are enough", bytes(needed as u64));
            plan.state.buffer_from = plan.state.buffer_from.max(Some(from));
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
    } else if let Some(was) = plan.state.buffer_from.filter(|_| !plan.memory_is_tight()) {
        let to = bounded(from.saturating_mul(2), least, most.min(was));
        if to > from {
            let because = format!(
                "memory has room again, and the write buffer is less than the {} that it was",
                bytes(was)
            );
            plan.require(Change::SetWriteBuffer { from, to }, Goal::Stalls, because);
        } else {
            plan.state.buffer_from = None;
        }
    }
}
