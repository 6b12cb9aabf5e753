//! Metrics take no more than `max_bandwidth_percent` of the link; where no link says how fast it is, there is no limit.

use super::super::action::{Change, Goal};
use super::super::plan::Plan;

pub(in super::super) fn apply(plan: &mut Plan<'_>) {
    let Some(speed) = plan.sample.link_speed else { return };
    let from = plan.sample.knobs.metrics_rate;
    let percent = plan.policy.bandwidth_percent;
    let to = (speed * percent / 100.0).max(1.0) as u64;
    if from != Some(to) {
        let because = format!("{percent} % of a link of {speed:.0} B/s");
        plan.require(Change::SetMetricsRate { from, to: Some(to) }, Goal::Network, because);
    }
}
