//! Prefetching: as much as the strategy allows, and none while fewer than half of the items are used.
//!
//! While memory is over its threshold, or the processors over theirs, the multiplier is 1 at most. After it was
//! stopped it is tried again after 10 samples, 20, and so on.

use super::super::action::{Change, Goal};
use super::super::plan::Plan;
use super::super::state::Hold;

/// Items below which the share of the used says nothing.
const FEW: u64 = 32;
/// Share of them that must be used.
const USED: f64 = 0.5;

pub(in super::super) fn apply(plan: &mut Plan<'_>) {
    let from = plan.sample.knobs.prefetch;
    let prefetch = plan.sample.prefetch;
    let strained = plan.memory_is_over() || plan.cpu_is_over();
    let ceiling = if strained { plan.ceilings.prefetch.min(1.0) } else { plan.ceilings.prefetch };
    let tick = plan.state.tick;
    if from > 0.0 && prefetch.issued >= FEW {
        let used = prefetch.used as f64 / prefetch.issued as f64;
        if used < USED {
            plan.state.prefetch_hold.lengthen(tick);
            let because = format!("{:.0} % of the prefetched items were used", used * 100.0);
            plan.require(Change::SetPrefetch { from, to: 0.0 }, Goal::WastedPrefetch, because);
            return;
        }
        plan.state.prefetch_hold = Hold::default();
    }
    if !plan.state.prefetch_hold.is_over(tick) || from == ceiling {
        return;
    }
    let because = match (strained, from == 0.0) {
        (true, _) => "memory or the processors are over their limits",
        (false, true) => "the time in which it was off is over",
        (false, false) => "the strategy's multiplier",
    };
    plan.require(Change::SetPrefetch { from, to: ceiling }, Goal::WastedPrefetch, because.to_owned());
}
