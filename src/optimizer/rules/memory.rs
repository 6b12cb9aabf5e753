//! Memory: freed when it is over the threshold, given back to the system, and shared out where it helps.
//!
//! The threshold is the strategy's or `max_usage_percent`, whichever is less. Over it, the memory tier lets go of what
//! it takes to come down to the threshold less `buffer_percent`, as long as it is above its floor, and a dynamic tier
//! shrinks with it. In the buffer below the threshold, idle entries leave. Below the buffer a dynamic tier grows, by a
//! quarter or half of the room at most, if it is full and the tiers below answer what a larger one would; where there are
//! none, if requests find nothing. What a limit took from it comes back by itself, up to twice its size at a time.
//!
//! What the allocator keeps of freed memory is nobody's use. Where that is more than an eighth of what the process takes,
//! it is given back, and over the threshold it counts as freed already: nothing has to leave the tier for it. If less than
//! a quarter goes back, the rest is pieces between what is in use: it is not asked for again for its own sake, nor counted,
//! for a time that doubles. What leaves the tier ends that time, for there is something else to give back then; and as the
//! writer may not have come to it yet, that little goes back in the same turn proves nothing. Over `gc_threshold` the
//! allocator is asked at every turn, counted or not: that is what this limit is for.
//!
//! Memory can be scarce although this process is within its share: others beside it take it. While less than what
//! `gc_threshold` leaves can be had, the tier gives way likewise, until the buffer more than that can be had.

use super::super::action::{Change, Goal};
use super::super::plan::Plan;
use super::super::sample::{Sample, TierSample};
use super::super::{bounded, over};
use crate::units;
use thermocline_storage::Tier;

/// Share of the requests that the tiers below answered, or nobody where there are none, from which on a larger tier is
/// worth it.
const GAIN: f64 = 0.05;
/// Bytes, and share of what the process takes, that the allocator may keep.
const SPARE: u64 = 16 << 20;
const SPARE_SHARE: u64 = 8;
/// How full a tier is that is worth growing.
const FULL: f64 = 0.9;
/// Share of the time waited for memory, over which nothing grows.
const STALLED: f64 = 0.1;

pub(in super::super) fn apply(plan: &mut Plan<'_>) {
    let Some(percent) = plan.sample.memory_percent() else { return };
    let spare = spare(plan);
    let lacking = lacking(plan).saturating_sub(spare);
    // What was freed at the last turn shows in what is seen now only if the allocator and the writer have come to it.
    let waits = plan.state.freed_at.is_some_and(|at| at + 1 >= plan.state.tick);
    let mut freed = false;
    if plan.memory_is_over() || lacking > 0 {
        freed = !waits && free(plan, percent, lacking, spare);
    } else if plan.memory_is_tight() {
        evict_idle(plan, percent);
    } else if plan.policy.dynamic {
        grow(plan);
    }
    // After what frees memory: then there is something to give back, and without that nobody would see that it was freed.
    if freed || spare > 0 || over(percent, plan.policy.gc_threshold) {
        let because = match (freed, spare) {
            (_, 1..) => format!("the allocator keeps {} of what was freed", units::bytes(spare)),
            (true, _) => "what was freed is to be the system's".to_owned(),
            (false, _) => format!("memory use is {percent:.1} %, over {} %", plan.policy.gc_threshold),
        };
        // That little goes back is told of what it keeps only if this was there, and nothing else, when it was asked.
        plan.state.spare_at = Some(plan.state.tick).filter(|_| spare > 0 && !freed);
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

/// Bytes that the allocator keeps and is to give back; 0 if they are few, or if it was asked in vain.
fn spare(plan: &Plan<'_>) -> u64 {
    let kept = plan.sample.memory_spare().unwrap_or(0);
    let many = kept > SPARE && kept > plan.sample.memory_used.unwrap_or(0) / SPARE_SHARE;
    if many && plan.may(&Change::TrimAllocator) { kept } else { 0 }
}

fn free(plan: &mut Plan<'_>, percent: f64, lacking: u64, spare: u64) -> bool {
    let ceiling = plan.ceilings.memory_percent;
    let aim = ceiling - plan.policy.memory_buffer_percent;
    let excess = match plan.memory_is_over() {
        true => plan.sample.memory_used.unwrap_or(0).saturating_sub(spare).saturating_sub(at(plan, aim)),
        false => 0,
    };
    let excess = excess.max(lacking);
    let held = plan.sample.tier(Tier::Memory).map_or(0, |t| t.bytes);
    let floor = plan.policy.memory_floor.min(plan.policy.memory_max);
    let bytes = excess.min(held.saturating_sub(floor));
    let because = if plan.memory_is_over() {
        format!("memory use is {percent:.1} %, over {ceiling:.1} %: down to {:.1} %", aim.max(0.0))
    } else {
        format!("{} lack to what others need: little of the memory is available", units::bytes(lacking))
    };
    let to = held - bytes;
    if bytes > 0 {
        plan.require(Change::FreeMemory { bytes, from: held, to }, Goal::MemoryUse, because.clone());
    }
    let from = plan.sample.knobs.memory_size;
    let size = bounded(to.min(from), floor, plan.policy.memory_max);
    if plan.policy.dynamic && size < from {
        plan.state.shrunk_from = plan.state.shrunk_from.max(Some(from));
        plan.require(Change::ResizeMemoryTier { from, to: size }, Goal::MemoryUse, because);
    }
    if bytes > 0 {
        plan.state.freed_at = Some(plan.state.tick);
        // Else what the allocator keeps of it would pass for in use, and as much again would leave.
        plan.state.lift(&Change::TrimAllocator);
    }
    bytes > 0
}

fn evict_idle(plan: &mut Plan<'_>, percent: f64) {
    let age = plan.ceilings.eviction_age;
    let Some(oldest) = plan.sample.oldest_idle.filter(|oldest| *oldest > age) else { return };
    let because = format!(
        "memory use is {percent:.1} %, and entries have been idle for up to {}, over {}",
        units::nanos(oldest.as_secs_f64() * 1e9),
        units::span(age)
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
    let roomy = plan.ceilings.memory_percent - policy.memory_buffer_percent;
    let room = at(plan, roomy).saturating_sub(sample.memory_used.unwrap_or(0));
    let room = (room / 2).min(sample.memory_available.map_or(u64::MAX, |a| a / 2));
    // What a limit took is given back without a trial: the limit leaves room again.
    let owed = plan.state.shrunk_from.filter(|was| *was > from);
    let step = if owed.is_some() { room.min(from) } else { room.min(from / 4) };
    let most = policy.memory_max.min(owed.unwrap_or(u64::MAX));
    let to = bounded(from.saturating_add(step), policy.memory_floor.min(policy.memory_max), most);
    // A step that nobody would notice is not worth it.
    if to <= from || to - from < (from / 64).min(most - from) {
        return;
    }
    let change = Change::ResizeMemoryTier { from, to };
    if let Some(was) = owed {
        let because =
            format!("memory has room again, and the tier is less than the {} that it was", units::bytes(was));
        return plan.require(change, Goal::RequestCost, because);
    }
    plan.state.shrunk_from = None;
    let gain = gain(sample, tier);
    if gain >= GAIN {
        let because =
            format!("memory is full, and a larger one would answer up to {:.1} % more", gain * 100.0);
        plan.propose(change, Goal::RequestCost, because);
    }
}

/// Share of the requests that a larger tier could answer as well.
fn gain(sample: &Sample, tier: &TierSample) -> f64 {
    let below = sample.tiers.iter().skip(1).any(Option::is_some);
    let found = sample.requests.gets.saturating_sub(sample.requests.misses);
    let more = if below { found.saturating_sub(tier.hits) } else { sample.requests.misses };
    more as f64 / sample.requests.gets.max(1) as f64
}
