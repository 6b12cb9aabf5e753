//! How each content type is compressed.
//!
//! *Effectiveness* of a type = achieved saving / hoped saving, where the hoped one is what the algorithm must save to be
//! kept (1 − `threshold`: 0.2 for zlib, 0.4 for lz4). Below 0.5 it is poor:
//!
//! 1. if it saved anything to speak of and the processors have room, it is compressed harder: zlib for lz4, or the
//!    strategy's highest level. lz4 for zlib would save less yet, so that is no cure;
//! 2. if that was tried, or cannot be, the type is stored as it is, and tried again after 10 samples, 20, and so on.
//!
//! The processors override all of it: over `compression_threshold` zlib gives way to lz4, and comes back 10 points
//! below it, after a time that doubles if it has to give way again soon. The level is the configured one, at most the
//! strategy's; only `aggressive` goes above the configured one, and only with 20 points of room. What lz4 achieves while it
//! stands in for zlib is no verdict on the type: it would be stored as it is for hours after the processors are free again.
//!
//! What harder compression costs is the time of the processors that it takes (it is done by the writer and by moves, so
//! that no request shows it): if that is a tenth of one more than before, or more than the noise, it is taken back.

use super::super::action::{Change, Goal};
use super::super::over;
use super::super::plan::Plan;
use super::super::policy::Strategy;
use super::super::sample::Method;
use super::super::state::{Hold, Mode, State};
use super::CONTENT;
use crate::config::Algorithm;
use std::time::Duration;

/// Effectiveness below which it is poor, and below which there is no hope.
const POOR: f64 = 0.5;
const HOPELESS: f64 = 0.1;
/// Bytes below which the saving says nothing.
const FEW: u64 = 1 << 20;
/// Points of CPU below the threshold at which zlib comes back, and with which the level may rise.
const BACK: f64 = 10.0;
const ROOM: f64 = 20.0;
/// If zlib has to give way again within about so many samples of coming back, it waits longer.
const SOON: u64 = 30;

pub(in super::super) fn apply(plan: &mut Plan<'_>) {
    processors(plan);
    for content in 0..CONTENT.len() {
        let harder = judge(plan, content);
        set(plan, content, harder);
    }
}

/// Whether lz4 is to be taken instead of zlib.
fn processors(plan: &mut Plan<'_>) {
    let Some(cpu) = plan.sample.cpu_percent else { return };
    let threshold = plan.policy.compression_threshold;
    let state = &mut plan.state;
    let tick = state.tick;
    if !state.prefers_lz4 && over(cpu, threshold) {
        state.prefers_lz4 = true;
        match state.left_lz4 {
            Some(left) if tick.saturating_sub(left) <= 2 * SOON + 3 * state.lz4_hold.wait => {
                state.lz4_hold.lengthen(tick);
            }
            _ => state.lz4_hold = Hold::default(),
        }
    } else if state.prefers_lz4 && cpu <= threshold - BACK && state.lz4_hold.is_over(tick) {
        state.prefers_lz4 = false;
        state.left_lz4 = Some(tick);
    }
}

fn configured(plan: &Plan<'_>, content: usize) -> Algorithm {
    plan.policy.algorithms.get(content).copied().unwrap_or(Algorithm::None)
}

fn in_force(plan: &Plan<'_>, content: usize) -> Method {
    plan.sample.knobs.methods.get(content).copied().unwrap_or(Method::NONE)
}

/// Whether what was seen is by lz4 where zlib is wanted: it took zlib's place because the processors are, or were, busy.
fn stands_in(plan: &Plan<'_>, content: usize, mode: Mode) -> bool {
    let wants_zlib = match mode {
        Mode::Configured => configured(plan, content) == Algorithm::Zlib,
        Mode::Harder => true,
        Mode::Stopped => false,
    };
    wants_zlib && in_force(plan, content).algorithm == Algorithm::Lz4
}

/// Whether there is room for a harder method.
fn has_room(plan: &Plan<'_>, points: f64) -> bool {
    let below = plan.policy.compression_threshold - points;
    !plan.state.prefers_lz4 && plan.sample.cpu_percent.is_some_and(|cpu| cpu < below)
}

/// Looks at what the method in force achieved, and changes the type's mode. Says whether it is to be compressed harder
/// from now on.
fn judge(plan: &mut Plan<'_>, content: usize) -> bool {
    let tick = plan.state.tick;
    let (Some(seen), Some(mut state)) =
        (plan.sample.types.get(content).copied(), plan.state.types.get(content).copied())
    else {
        return false;
    };
    let knob = super::super::Knob::Compression(content);
    if plan.actions.iter().any(|a| a.takes_back && a.change.knob() == knob) {
        return false; // What was seen is by the method that was taken back.
    }
    if stands_in(plan, content, state.mode) {
        return false;
    }
    let mut begins = false;
    let hoped = plan.policy.hoped_saving(in_force(plan, content).algorithm);
    if state.mode == Mode::Stopped {
        if state.hold.is_over(tick) {
            state.mode = Mode::Configured;
        }
    } else if let Some(ratio) = seen.ratio().filter(|_| seen.original_bytes >= FEW && hoped > 0.0) {
        let effectiveness = (1.0 - ratio) / hoped;
        if !over(POOR, effectiveness) {
            (state.tried_harder, state.hold) = (false, Hold::default());
        } else if state.mode == Mode::Configured
            && !state.tried_harder
            && effectiveness >= HOPELESS
            && harder(plan, content).is_some_and(|m| m != in_force(plan, content))
        {
            (state.mode, state.tried_harder) = (Mode::Harder, true);
            begins = true;
        } else {
            state.mode = Mode::Stopped;
            state.hold.lengthen(tick);
        }
    }
    if let Some(types) = plan.state.types.get_mut(content) {
        *types = state;
    }
    begins
}

/// A method that saves more, if there is one and room for it.
fn harder(plan: &Plan<'_>, content: usize) -> Option<Method> {
    let level = plan.ceilings.compression_level;
    let possible = configured(plan, content) != Algorithm::None && has_room(plan, BACK);
    possible.then_some(Method { algorithm: Algorithm::Zlib, level })
}

/// The level of zlib in force, from the strategy and the processors.
fn level(plan: &Plan<'_>, now: Method) -> u64 {
    let ceiling = plan.ceilings.compression_level;
    let usual = plan.policy.zlib_level.clamp(1, 9).min(ceiling);
    let raised = now.algorithm == Algorithm::Zlib && now.level > usual;
    // A level that had made lz4 necessary is not tried again.
    let quiet =
        plan.state.lz4_hold.wait == 0 && plan.state.left_lz4.is_none_or(|t| plan.state.tick > t + SOON);
    let may = plan.state.strategy == Strategy::Aggressive && quiet;
    if may && has_room(plan, if raised { BACK } else { ROOM }) { ceiling } else { usual }
}

/// The method that is wanted.
fn wanted(plan: &Plan<'_>, content: usize) -> Method {
    let now = in_force(plan, content);
    let state = plan.state.types.get(content).copied().unwrap_or_default();
    let algorithm = match (state.mode, configured(plan, content)) {
        (Mode::Stopped, _) | (_, Algorithm::None) => return Method::NONE,
        (Mode::Harder, _) => Algorithm::Zlib,
        (Mode::Configured, algorithm) => algorithm,
    };
    match algorithm {
        Algorithm::Zlib if plan.state.prefers_lz4 => Method { algorithm: Algorithm::Lz4, level: 1 },
        Algorithm::Zlib if state.mode == Mode::Harder => {
            Method { algorithm, level: plan.ceilings.compression_level }
        }
        Algorithm::Zlib => Method { algorithm, level: level(plan, now) },
        other => Method { algorithm: other, level: 1 },
    }
}

fn set(plan: &mut Plan<'_>, number: usize, begins_harder: bool) {
    let (from, to) = (in_force(plan, number), wanted(plan, number));
    let Some(content) = CONTENT.get(number).copied().filter(|_| from != to) else { return };
    let state = plan.state.types.get(number).copied().unwrap_or_default();
    let goal = Goal::Stored(number);
    let saved = plan.sample.types.get(number).and_then(|t| t.ratio()).map_or(0.0, |r| (1.0 - r) * 100.0);
    if to == Method::NONE {
        let because = format!("it saves {saved:.1} %, less than half of what is hoped for");
        let retry_after =
            plan.sample.elapsed.saturating_mul(u32::try_from(state.hold.wait).unwrap_or(u32::MAX));
        let retry_after = retry_after.min(Duration::from_secs(86_400 * 365));
        plan.require(Change::LeaveUncompressed { content, from, retry_after }, goal, because);
    } else if from.algorithm == Algorithm::None {
        let because = "the time in which it was not compressed is over".to_owned();
        plan.require(Change::RetryCompression { content, to }, goal, because);
    } else if begins_harder {
        let because = format!("it saves {saved:.1} %, less than half of what is hoped for: harder");
        let change = Change::SetCompression { content, from, to };
        if !plan.propose(change, Goal::Compressing(number), because)
            && let Some(state) = plan.state.types.get_mut(number)
        {
            // Another experiment has the goal: later.
            (state.mode, state.tried_harder) = (Mode::Configured, false);
        }
    } else {
        let cpu = plan.sample.cpu_percent.unwrap_or(0.0);
        let because = match (from.algorithm, to.algorithm) {
            (Algorithm::Zlib, Algorithm::Lz4) => {
                format!("the processors are {cpu:.1} % busy, over {} %", plan.policy.compression_threshold)
            }
            (Algorithm::Lz4, Algorithm::Zlib) => "the processors have room again".to_owned(),
            _ => format!("the level under {}, with the processors {cpu:.1} % busy", plan.state.strategy),
        };
        plan.require(Change::SetCompression { content, from, to }, Goal::CpuUse, because);
    }
}

/// Compressing harder made things worse: it counts as tried.
pub(in super::super) fn taken_back(state: &mut State, change: &Change) {
    let super::super::Knob::Compression(number) = change.knob() else { return };
    if let Some(of) = state.types.get_mut(number) {
        (of.mode, of.tried_harder) = (Mode::Configured, true);
    }
}
