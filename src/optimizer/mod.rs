//! The optimizer: a control loop that samples, decides, acts and records.
//!
//! [`Sample`] is what was seen since the last one; [`decide`] is a pure function of sample, [`State`] and [`Policy`],
//! so that every rule is tested without a clock; an [`Executor`] applies the [`Action`]s; [`History`] keeps what was
//! seen, decided and done, and what came of it. [`Optimizer::step`] is one turn of the loop.
//!
//! Invariants:
//! - the same sample, state and policy give the same decision, and none of them makes it panic;
//! - every value that an action sets is within the policy's bounds;
//! - what is missing from a sample leaves out the rules that need it and nothing else;
//! - what follows from a limit (memory, processors, a tier that is full) is a *correction*: it is done at once. What
//!   might help is an *experiment*: one at a time for each goal, judged two samples later against its goal, taken back
//!   if that is worse by more than the noise, and then not tried again for a time that doubles, up to an hour's samples;
//!   where the load has become another meanwhile, there is no verdict;
//! - under a sample that stays as it is the settings come to rest, but for experiments that are retried ever more
//!   rarely.

mod action;
mod control;
mod decide;
mod history;
mod load;
mod plan;
mod policy;
mod rules;
mod sample;
mod state;
#[cfg(test)]
mod tests;
mod trial;
mod words;

pub use action::{Action, Change, Direction, Goal, Knob};
pub use control::{Executor, Optimizer};
pub use decide::{Decision, decide};
pub use history::{Effect, History, Outcome, Record};
pub use policy::{Ceilings, Policy, Strategy, StrategyPolicy};
pub use sample::{
    Counters, DirectorySample, Knobs, Method, PrefetchSample, Requests, Sample, TierCounters, TierSample,
    TypeSample,
};
pub use state::State;
pub use thermocline_storage::vfs::DiskReads;

/// All numbers that are compared with a limit may be this far from it and count as equal: a share that is computed is
/// off by less.
const EPSILON: f64 = 1e-9;

/// Whether a number is over a limit, and not merely at it.
fn over(value: f64, limit: f64) -> bool {
    value > limit + EPSILON * limit.abs().max(1.0)
}

/// A number within bounds; of bounds that contradict each other the upper one holds.
fn bounded(value: u64, least: u64, most: u64) -> u64 {
    value.max(least).min(most)
}

/// The largest power of two that is not above a number.
fn floor_power(value: f64) -> u64 {
    let n = value.clamp(1.0, 2f64.powi(62)) as u64;
    1 << n.max(1).ilog2()
}
