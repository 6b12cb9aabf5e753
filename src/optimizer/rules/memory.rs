//! Memory: freed when it is over the threshold, given back to the system, and shared out where it helps.
//!
//! The threshold is the strategy's or `max_usage_percent`, whichever is less. Over it, the memory tier lets go of what
//! it takes to come down to the threshold less `buffer_percent`, as long as it is above its floor, and a dynamic tier
//! shrinks with it. In the buffer below the threshold, idle entries leave. Below the buffer a dynamic tier grows, by a
//! quarter or half of the room at most, if it is full and remembers evicting what was asked for again.
//!
//! Memory can be scarce although this process is within its share: others beside it take it. While less than what
//! `gc_threshold` leaves can be had, the tier gives way likewise, until the buffer more than that can be had.

use super::super::action::{Change, Goal};
use super::super::plan::Plan;
use super::super::{bounded, over};
use thermocline_storage::Tier;

/// Share of the requests that a larger tier would have answered, from which on it is worth growing.
const GAIN: f64 = 0.01;
/// The same, if the tier does not remember: share that the tiers below answered.
const GAIN_BELOW: f64 = 0.05;
/// How full a tier is that is worth growing.
const FULL: f64 = 0.9;
/// Share of the time waited for memory, over which nothing grows.
const STALLED: f64 = 0.1;

pub(in super::super) fn apply(plan: &mut Plan<'_>) {
    let Some(percent) = plan.sample.memory_percent() else { return };
    let lacking = lacking(plan);
    // What was freed at the last turn shows in what is seen now only if the allocator and the writer have come to it.
    let waits = plan.state.freed_at.is_some_and(|at| at + 1 >= plan.state.tick);
    let mut freed = false;
    if plan.memory_is_over() || lacking > 0 {
        freed = !waits && free(plan, percent, lacking);
    } else if plan.memory_is_tight() {
        evict_idle(plan, percent);
    } else if plan.policy.dynamic {
        grow(plan);
    }
    // After what frees memory: then there is something to give back, and without that nobody would see that it was freed.
    if freed || over(percent, plan.policy.gc_threshold) {
        let because = match freed {
            true => "what was freed is to be the system's".to_owned(),
            false => format!("memory use is {percent:.1} %, over {} %", plan.policy.gc_threshold),
        };
        plan.require(Change::TrimAllocator, Goal::MemoryUse, because);
    }
}

/// Bytes at a percentage of the memory limit.
fn at(plan: &Plan<'_>, percent: f64) -> u64 {
    (plan.sample.memory_limit.unwrap_or(0) as f64 * percent.max(0.0) / 100.0) as u64
}

/// Bytes that lack to what should be available, while so little is that others need it; else 0.
fn lacking(plan: &Plan<'_>) -> u64 {
    let left = 100.0 - plan.policy.gc_threshold;
    let Some(available) = plan.sample.memory_available.filter(|a| *a < at(plan, left)) else { return 0 };
    at(plan, left + plan.policy.memory_buffer_percent).saturating_sub(available)
}

fn free(plan: &mut Plan<'_>, percent: f64, lacking: u64) -> bool {
    let ceiling = plan.ceilings.memory_percent;
    let aim = ceiling - plan.policy.memory_buffer_percent;
    let excess = match plan.memory_is_over() {
        true => plan.sample.memory_used.unwrap_or(0).saturating_sub(at(plan, aim)),
        false => 0,
    };
    let excess = excess.max(lacking);
    let held = plan.sample.tier(Tier::Memory).map_or(0, |t| t.bytes);
    let floor = plan.policy.memory_floor.min(plan.policy.memory_max);
    let bytes = excess.min(held.saturating_sub(floor));
    let because = if plan.memory_is_over() {
        format!("memory use is {percent:.1} %, over {ceiling:.1} %: down to {:.1} %", aim.max(0.0))
    } else {
        format!("{lacking} bytes lack to what others need: little of the memory is available")
    };
    let to = held - bytes;
    if bytes > 0 {
        plan.require(Change::FreeMemory { bytes, from: held, to }, Goal::MemoryUse, because.clone());
    }
    let from = plan.sample.knobs.memory_size;
    let size = bounded(to.min(from), floor, plan.policy.memory_max);
    if plan.policy.dynamic && size < from {
        plan.require(Change::ResizeMemoryTier { from, to: size }, Goal::MemoryUse, because);
    }
    if bytes > 0 {
        plan.state.freed_at = Some(plan.state.tick);
    }
    bytes > 0
}

fn evict_idle(plan: &mut Plan<'_>, percent: f64) {
    let age = plan.ceilings.eviction_age;
    let Some(oldest) = plan.sample.oldest_idle.filter(|oldest| *oldest > age) else { return };
    let because = format!(
        "memory use is {percent:.1} %, and entries have been idle for up to {} s, over {} s",
        oldest.as_secs(),
        age.as_secs()
    );
    plan.require(Change::EvictIdle { age }, Goal::MemoryUse, because);
}

fn grow(plan: &mut Plan<'_>) {
    let (sample, policy) = (plan.sample, plan.policy);
    let from = sample.knobs.memory_size;
    let Some(tier) = sample.tier(Tier::Memory).filter(|t| t.bytes as f64 >= from as f64 * FULL) else {
        return;
    };
    if sample.memory_stalled.is_some_and(|s| over(s, STALLED)) || sample.requests.gets == 0 {
        return;
    }
    let gets = sample.requests.gets as f64;
    let (gain, enough) = match sample.ghost_hits {
        Some(ghosts) => (ghosts as f64 / gets, GAIN),
        None => {
            let answered = sample.requests.gets.saturating_sub(sample.requests.misses);
            (answered.saturating_sub(tier.hits) as f64 / gets, GAIN_BELOW)
        }
    };
    let roomy = plan.ceilings.memory_percent - policy.memory_buffer_percent;
    let room = at(plan, roomy).saturating_sub(sample.memory_used.unwrap_or(0));
    let room = (room / 2).min(sample.memory_available.map_or(u64::MAX, |a| a / 2));
    let step = room.min(from / 4);
    let to =
        bounded(from.saturating_add(step), policy.memory_floor.min(policy.memory_max), policy.memory_max);
    // A step that nobody would notice is not worth it.
    if gain < enough || to <= from || to - from < from / 64 {
        return;
    }
    let because = format!("memory is full, and a larger one would answer {:.1} % more", gain * 100.0);
    plan.propose(Change::ResizeMemoryTier { from, to }, Goal::RequestCost, because);
}
