//! One turn of the loop: sample, decide, act, record.
//!
//! Invariants: an executor that fails half way leaves a record of each action's own result; what failed is no
//! experiment; the engine's own account of its settings ([`Counters::knobs`]) is what the next decision goes by, so that
//! nothing is taken for done that was not. Nothing here is on disk: after a crash it begins anew.

use super::action::Action;
use super::decide::{Decision, decide};
use super::history::{History, Outcome, Record};
use super::policy::Policy;
use super::sample::{Counters, Sample};
use super::state::State;
use crate::sensors::Readings;
use std::time::Duration;

/// Who does what was decided.
pub trait Executor {
    /// Does one action.
    ///
    /// # Errors
    /// Why it could not be done, in words.
    fn apply(&mut self, action: &Action) -> Result<(), String>;
}

impl<F: FnMut(&Action) -> Result<(), String>> Executor for F {
    fn apply(&mut self, action: &Action) -> Result<(), String> {
        self(action)
    }
}

/// The loop's memory.
///
/// ```
/// use thermocline::optimizer::{Action, Counters, Optimizer, Policy};
/// use thermocline::sensors::{Sensors, SystemSensors};
///
/// let mut sensors = SystemSensors::new(std::iter::empty::<&str>());
/// let mut optimizer = Optimizer::new(Policy::default());
/// let mut executor = |action: &Action| -> Result<(), String> { Err(format!("only watching: {action}")) };
/// for turn in 0..2 {
///     let (readings, counters) = (sensors.sample(), Counters::default());
///     let record = optimizer.step(&readings, counters, turn * 1000, &mut executor);
///     assert_eq!(record.is_some(), turn == 1); // the first sample has nothing to compare with
/// }
/// assert_eq!(optimizer.history().len(), 1);
/// ```
#[derive(Debug)]
pub struct Optimizer {
    policy: Policy,
    state: State,
    history: History,
    before: Option<(Duration, Counters)>,
}

/// A turn that is decided, and to be done.
#[derive(Debug)]
pub(crate) struct Turn {
    sample: Sample,
    decision: Decision,
}

impl Turn {
    /// Does it, action by action.
    pub(crate) fn carry_out(&self, executor: &mut dyn Executor) -> Vec<Outcome> {
        let strategy = self.decision.strategy;
        let apply = |action: &Action| {
            let result = executor.apply(action);
            match &result {
                Ok(()) => tracing::info!(strategy = %strategy, "optimizer: {action}"),
                Err(e) => tracing::info!(strategy = %strategy, "optimizer: {action}: not done: {e}"),
            }
            Outcome { action: action.clone(), result }
        };
        self.decision.actions.iter().map(apply).collect()
    }
}

impl Optimizer {
    /// An optimizer that has seen nothing yet.
    pub fn new(policy: Policy) -> Optimizer {
        Optimizer { policy, state: State::default(), history: History::default(), before: None }
    }

    /// What it keeps to.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What it remembers.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What it did.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// One turn. The first only remembers the counters, as does one at which the clock has not moved on.
    pub fn step(
        &mut self,
        readings: &Readings,
        counters: Counters,
        unix_ms: u64,
        executor: &mut dyn Executor,
    ) -> Option<&Record> {
        let turn = self.begin(readings, counters)?;
        let outcomes = turn.carry_out(executor);
        self.end(turn, outcomes, unix_ms)
    }

    /// Time since the counters that the next turn compares with; `None` if there are none, or the clock went back.
    pub(crate) fn since(&self, monotonic: Duration) -> Option<Duration> {
        monotonic.checked_sub(self.before.as_ref()?.0)
    }

    /// The first half of [`step`](Self::step): what is to be done. Between it and [`end`](Self::end) nothing of the
    /// optimizer is needed, so that who asks for the history need not wait for what is done.
    pub(crate) fn begin(&mut self, readings: &Readings, counters: Counters) -> Option<Turn> {
        let now = readings.monotonic;
        let (then, before) = self.before.replace((now, counters))?;
        let elapsed = now.checked_sub(then).filter(|e| !e.is_zero())?;
        let (_, counters) = self.before.as_ref()?;
        let sample = Sample::between(&before, counters, readings, elapsed);
        let decision = decide(&sample, &self.state, &self.policy);
        self.state = decision.state.clone();
        Some(Turn { sample, decision })
    }

    /// The second half: what came of it.
    pub(crate) fn end(&mut self, turn: Turn, outcomes: Vec<Outcome>, unix_ms: u64) -> Option<&Record> {
        let Turn { sample, decision } = turn;
        self.state.applied(&outcomes);
        self.history.push(Record { unix_ms, sample, decision, outcomes, effects: Vec::new() });
        self.history.last()
    }
}
