//! The decision: a pure function.

use super::action::Action;
use super::plan::Plan;
use super::policy::{Ceilings, Policy, Strategy};
use super::sample::Sample;
use super::state::State;
use super::{rules, trial};

/// What is to be done, and why.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Decision {
    /// The pressure, 0 to 1; `None` if nothing that it is made of was known.
    pub pressure: Option<f64>,
    /// The strategy from now on.
    pub strategy: Strategy,
    /// What it allows.
    pub ceilings: Ceilings,
    /// What is to be done, in this order.
    pub actions: Vec<Action>,
    /// The state for the next decision; see [`State::applied`].
    pub state: State,
}

/// Decides. The same arguments give the same decision, and nothing else is looked at.
///
/// ```
/// use thermocline::optimizer::{Change, Policy, Sample, State, Strategy, decide};
///
/// let mut sample = Sample::default();
/// sample.cpu_percent = Some(95.0);
/// sample.io_pressure = Some(0.9);
/// let first = decide(&sample, &State::default(), &Policy::default());
/// assert_eq!(first.strategy, Strategy::Balanced); // one sample may be a moment's
/// let second = decide(&sample, &first.state, &Policy::default());
/// assert_eq!(second.strategy, Strategy::Aggressive);
/// assert!(second.actions.iter().any(|a| matches!(a.change, Change::SetStrategy { .. })));
/// ```
pub fn decide(sample: &Sample, state: &State, policy: &Policy) -> Decision {
    let sample = sample.clone().cleaned();
    let ceilings = policy.ceilings(state.strategy);
    let mut plan = Plan { sample: &sample, policy, state: state.clone(), ceilings, actions: Vec::new() };
    plan.state.tick = plan.state.tick.saturating_add(1);
    trial::judge(&mut plan);
    let pressure = rules::strategy::apply(&mut plan);
    plan.ceilings = policy.ceilings(plan.state.strategy);
    rules::memory::apply(&mut plan);
    rules::tiers::apply(&mut plan);
    rules::background::apply(&mut plan);
    rules::compression::apply(&mut plan);
    rules::prefetch::apply(&mut plan);
    rules::io::apply(&mut plan);
    let Plan { state, ceilings, actions, .. } = plan;
    Decision { pressure, strategy: state.strategy, ceilings, actions, state }
}
