//! The tiers on disk: rebalanced when they are over 80 % full, and each with settings of its own.
//!
//! - Reclaim's rate: what flows into the tier in a second, times 1 + (occupancy − 0.8) / 0.2 while it is over 0.8, so
//!   that it keeps up, and faster the fuller the tier is; turned when it is off by more than a quarter.
//! - sled's caches: halved, down to an eighth of the configured size, while memory is over its threshold; doubled
//!   again, up to it, while more than one lookup in twenty reads from a disk and memory has room.
//! - Packs: what the archive's disks write in ten seconds, syncs included, so that a pack lost to a crash, or one that is rewritten,
//!   costs that at most.

use super::super::action::{Change, Goal};
use super::super::plan::Plan;
use super::super::sample::DirectorySample;
use super::super::{bounded, floor_power, over};
use super::DISKS;
use crate::units::bytes;
use thermocline_storage::Tier;

/// How full a tier may be.
const FULL: f64 = 0.8;
/// Lookups below which the share of misses says nothing.
const FEW: u64 = 1000;
/// Bytes written below which their time says nothing.
const FEW_BYTES: u64 = 16 << 20;
/// Seconds that a pack should take to be written.
const PACK_SECONDS: f64 = 10.0;

pub(in super::super) fn apply(plan: &mut Plan<'_>) {
    for (n, tier) in DISKS.into_iter().enumerate() {
        let below = DISKS.iter().skip(n + 1).any(|t| plan.sample.tier(*t).is_some());
        let Some(occupancy) = plan.sample.tier(tier).and_then(|t| t.occupancy()) else { continue };
        // From the lowest nothing sinks: it evicts when it is full. Of items the tier keeps the limit by itself.
        let bytes =
            plan.sample.tier(tier).and_then(|t| t.limit.map(|limit| t.bytes as f64 / limit.max(1) as f64));
        if let Some(from) = bytes.filter(|bytes| below && over(*bytes, FULL)) {
            let because = format!("the tier is {:.1} % full, over {:.0} %", from * 100.0, FULL * 100.0);
            let change = Change::Rebalance { tier, from, to: FULL };
            // Bytes that nothing can free (open containers, damaged ones) count too: then it was asked for in vain.
            if plan.may(&change) {
                plan.require(change, Goal::Occupancy(tier), because);
            }
        }
        reclaim(plan, tier, occupancy);
    }
    sled_cache(plan);
    pack_size(plan);
}

/// Least rate of background work: it never stops.
pub(super) fn least_rate(most: u64) -> u64 {
    (most / 64).max(64 << 10).min(most)
}

fn reclaim(plan: &mut Plan<'_>, tier: Tier, occupancy: f64) {
    let sample = plan.sample;
    let Some(inflow) = sample.tier(tier).and_then(|t| sample.per_second(t.written)) else { return };
    let Some(from) = sample.knobs.reclaim_rate.get(tier as usize).copied() else { return };
    let most = plan.policy.background_rate;
    let wanted = inflow * (1.0 + (occupancy - FULL).max(0.0) / (1.0 - FULL));
    let to = bounded(wanted as u64, least_rate(most), most);
    let off = to.abs_diff(from) as f64 > from as f64 / 4.0;
    if !off {
        return;
    }
    let because =
        format!("{}/s flow into the tier, which is {:.1} % full", bytes(inflow as u64), occupancy * 100.0);
    let change = Change::SetReclaimRate { tier, from, to };
    if to > from {
        plan.require(change, Goal::Occupancy(tier), because);
    } else {
        plan.propose(change, Goal::Occupancy(tier), because);
    }
}

fn sled_cache(plan: &mut Plan<'_>) {
    if plan.sample.tier(Tier::Hdd).is_none() {
        return;
    }
    let (from, most) = (plan.sample.knobs.sled_cache, plan.policy.sled_cache);
    let least = (most / 8).max(1 << 20).min(most);
    if plan.memory_is_over() {
        let to = bounded(from / 2, least, most);
        if to < from {
            let because = "memory is over its threshold".to_owned();
            plan.require(Change::SetSledCache { from, to }, Goal::MemoryUse, because);
        }
        return;
    }
    let (lookups, misses) = (plan.sample.index_lookups, plan.sample.index_misses);
    let share = misses as f64 / lookups.max(1) as f64;
    let to = bounded(from.saturating_mul(2), least, most);
    if lookups >= FEW && over(share, 0.05) && to > from && !plan.memory_is_tight() {
        let because = format!("{:.1} % of the lookups in the indexes read from a disk", share * 100.0);
        plan.propose(Change::SetSledCache { from, to }, Goal::RequestCost, because);
    }
}

fn pack_size(plan: &mut Plan<'_>) {
    // Of writes alone: what a disk gives while it seeks for readers says nothing of a pack. With the syncs: a write fills
    // the page cache, and the disk takes it when it is synced.
    let speed = |d: &DirectorySample| {
        let syncs = d.sync_mean.unwrap_or(0.0) * d.syncs as f64;
        let time = d.write_mean.filter(|m| *m > 0.0)? * d.writes as f64 + syncs;
        (d.write_bytes >= FEW_BYTES).then(|| d.write_bytes as f64 / time)
    };
    let cold = plan.sample.directories.iter().filter(|d| d.tier == Tier::Cold);
    let Some(slowest) = cold.filter_map(speed).reduce(f64::min) else { return };
    let (from, most) = (plan.sample.knobs.pack_size, plan.policy.pack_size);
    let least = (4 << 20).min(most);
    let wanted = slowest * PACK_SECONDS;
    let to = bounded(floor_power(wanted), least, most);
    if to == from || (wanted < 2.0 * from as f64 && wanted * 2.0 > from as f64) {
        return;
    }
    let because =
        format!("the archive's disk takes {}/s: a pack in {PACK_SECONDS:.0} s", bytes(slowest as u64));
    plan.propose(Change::SetPackSize { from, to }, Goal::RequestCost, because);
}
