//! Pressure, and the strategy that it asks for.
//!
//! Pressure = 0.4 memory + 0.3 CPU + 0.3 I/O, each from 0 to 1, over the weights of those that are known. Over 0.8 it
//! asks for `aggressive`, over 0.6 for `balanced`, else for `conservative`.
//!
//! Hysteresis: two successive samples over a border lead up. Down leads only what is 0.05 below the border, three
//! successive times. So what strays around a border by less than that changes the strategy once at most.

use super::super::action::{Change, Goal};
use super::super::over;
use super::super::plan::Plan;
use super::super::policy::Strategy;
use super::super::sample::Sample;

const WEIGHTS: [f64; 3] = [0.4, 0.3, 0.3];
const AGGRESSIVE: f64 = 0.8;
const BALANCED: f64 = 0.6;
/// How far below a border a lower strategy begins.
const MARGIN: f64 = 0.05;
const TO_RISE: u32 = 2;
const TO_FALL: u32 = 3;

/// Pressure, 0 to 1, from what is known of it.
pub(in super::super) fn pressure(sample: &Sample) -> Option<f64> {
    let share = |percent: Option<f64>| percent.map(|p| (p / 100.0).min(1.0));
    let parts = [share(sample.memory_percent()), share(sample.cpu_percent), sample.io_pressure];
    let known = || parts.iter().zip(WEIGHTS).filter_map(|(part, weight)| Some(((*part)?, weight)));
    let weights: f64 = known().map(|(_, weight)| weight).sum();
    (weights > 0.0).then(|| known().map(|(part, weight)| part * weight).sum::<f64>() / weights)
}

/// What a pressure asks for.
fn asked(pressure: f64) -> Strategy {
    if over(pressure, AGGRESSIVE) {
        Strategy::Aggressive
    } else if over(pressure, BALANCED) {
        Strategy::Balanced
    } else {
        Strategy::Conservative
    }
}

/// Chooses the strategy; gives the pressure.
pub(in super::super) fn apply(plan: &mut Plan<'_>) -> Option<f64> {
    let from = plan.state.strategy;
    let Some(pressure) = pressure(plan.sample) else {
        plan.state.leaning = None;
        return None;
    };
    let (above, below) = (asked(pressure), asked(pressure + MARGIN));
    let (up, to) = if above > from {
        (true, above)
    } else if below < from {
        (false, below)
    } else {
        plan.state.leaning = None;
        return Some(pressure);
    };
    let before = plan.state.leaning.filter(|(was_up, _)| *was_up == up).map_or(0, |(_, n)| n);
    let samples = before + 1;
    if samples < if up { TO_RISE } else { TO_FALL } {
        plan.state.leaning = Some((up, samples));
        return Some(pressure);
    }
    plan.state.leaning = None;
    plan.state.strategy = to;
    let because = format!("pressure is {pressure:.3}, for {samples} samples");
    plan.require(Change::SetStrategy { from, to }, Goal::Pressure, because);
    Some(pressure)
}
