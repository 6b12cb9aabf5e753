//! The rate of background work, so that callers do not feel it.
//!
//! The *quiet tail* is the 99th percentile of requests while background work rests (smoothed, and lowered by any turn that is
//! calmer). While the tail is over twice that and something is moved, the rate is multiplied by how far it is over, by a half
//! at least; if that has not lowered it by a fifth one turn later, background work is not the reason, and what is seen
//! now counts as quiet. Over `cpu.max_usage_percent` it is multiplied by the square of how far that is over, and while I/O
//! pressure is over 0.8 by three quarters. When all is well and background work uses its rate up, a sixteenth of the configured
//! rate is added, and tried: additive increase, multiplicative decrease (Chiu and Jain 1989). Below half of the configured
//! rate what was taken comes back faster: that much again each time, or a sixteenth if that is more, and without a trial.
//! If callers feel it, it is taken again.
//!
//! It never falls below a sixty-fourth of the configured rate, nor below what flows into a tier that is over 90 % full,
//! because callers wait for room then.

use super::super::action::{Change, Goal};
use super::super::plan::Plan;
use super::super::{bounded, over};
use super::DISKS;
use super::tiers::least_rate;
use crate::units::nanos;

/// What is left of a tail that slowing background work has lowered.
const LOWERED: f64 = 0.8;
/// How many times the quiet tail callers may feel.
const FELT: f64 = 2.0;
/// I/O pressure over which background work slows.
const PRESSURE: f64 = 0.8;
/// How full a tier is that callers may soon wait for.
const NEARLY_FULL: f64 = 0.9;

pub(in super::super) fn apply(plan: &mut Plan<'_>) {
    learn(plan);
    let (from, most) = (plan.sample.knobs.background_rate, plan.policy.background_rate);
    let least = least_rate(most).max(must(plan)).min(most);
    let (factor, goal, because) = slower(plan);
    if factor < 1.0 {
        let to = bounded((from as f64 * factor) as u64, least, most);
        if to < from {
            plan.state.slowed_at = plan.sample.requests.p99.filter(|_| goal == Goal::Tail);
            plan.require(Change::SetBackgroundRate { from, to }, goal, because);
            return;
        }
    }
    let moved = plan.sample.per_second(plan.sample.moved_bytes);
    let used_up = moved.is_some_and(|m| m >= from as f64 * 0.8);
    let (half, added) = (most / 2, from.saturating_add(most / 16));
    let to = if from < half { from.saturating_mul(2).min(half).max(added) } else { added };
    let to = bounded(to, least, most);
    if from < least {
        let because = "a tier is nearly full, and callers would wait for room".to_owned();
        plan.require(Change::SetBackgroundRate { from, to: least }, Goal::Stalls, because);
    } else if factor >= 1.0 && used_up && to > from {
        let because = "background work uses its rate up, and callers do not feel it".to_owned();
        let change = Change::SetBackgroundRate { from, to };
        if from < half {
            plan.require(change, Goal::Tail, because);
        } else {
            plan.propose(change, Goal::Tail, because);
        }
    } else if from > most {
        let because = "the rate is over the configured one".to_owned();
        plan.require(Change::SetBackgroundRate { from, to: most }, Goal::Tail, because);
    }
}

/// What the tail is while background work rests; or, where to slow that down has not lowered it, what it is now: then
/// something else is the reason, such as other requests.
fn learn(plan: &mut Plan<'_>) {
    let Some(tail) = plan.sample.requests.p99 else { return };
    let moved = plan.sample.per_second(plan.sample.moved_bytes).unwrap_or(0.0);
    let rests = moved <= plan.policy.background_rate as f64 / 64.0;
    let in_vain = plan.state.slowed_at.take().is_some_and(|then| tail > then * LOWERED);
    plan.state.quiet_tail = Some(match plan.state.quiet_tail {
        Some(quiet) if rests => quiet + (tail - quiet) / 4.0,
        Some(quiet) if !in_vain => quiet.min(tail),
        _ => tail,
    });
}

/// What background work has to keep up with, in bytes a second.
fn must(plan: &Plan<'_>) -> u64 {
    let tiers = DISKS.iter().filter_map(|t| plan.sample.tier(*t));
    let full = tiers.filter(|t| t.occupancy().is_some_and(|o| over(o, NEARLY_FULL)));
    full.filter_map(|t| plan.sample.per_second(t.written)).fold(0.0, f64::max) as u64
}

/// By what the rate is multiplied, for which goal, and why; 1 if all is well.
fn slower(plan: &Plan<'_>) -> (f64, Goal, String) {
    let sample = plan.sample;
    let mut found = (1.0, Goal::Tail, String::new());
    let mut take = |factor: f64, goal: Goal, because: String| {
        if factor < found.0 {
            found = (factor, goal, because);
        }
    };
    if let (Some(tail), Some(quiet)) = (sample.requests.p99, plan.state.quiet_tail)
        && sample.moved_bytes > 0
        && over(tail, FELT * quiet)
    {
        let because = format!(
            "99 of 100 requests take {}, over {FELT} times the quiet {}",
            nanos(tail * 1e9),
            nanos(quiet * 1e9)
        );
        take((FELT * quiet / tail).clamp(0.25, 0.5), Goal::Tail, because);
    }
    if let Some(cpu) = sample.cpu_percent
        && plan.cpu_is_over()
    {
        let most = plan.policy.cpu_max_percent;
        let because = format!("the processors are {cpu:.1} % busy, over {most} %");
        take((most / cpu).powi(2).clamp(0.5, 0.9), Goal::CpuUse, because);
    }
    if let Some(io) = sample.io_pressure
        && over(io, PRESSURE)
        && sample.moved_bytes > 0
    {
        take(0.75, Goal::Pressure, format!("I/O pressure is {io:.2}, over {PRESSURE}"));
    }
    found
}
