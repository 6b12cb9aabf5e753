//! A decision while it is made: the rules look at it and add to it.

use super::action::{Action, Change, Goal};
use super::load::Load;
use super::policy::{Ceilings, Policy};
use super::sample::Sample;
use super::state::State;

/// What the rules see, and what they have decided so far.
pub(super) struct Plan<'a> {
    pub(super) sample: &'a Sample,
    pub(super) policy: &'a Policy,
    pub(super) state: State,
    pub(super) ceilings: Ceilings,
    pub(super) actions: Vec<Action>,
}

impl Plan<'_> {
    /// A correction: a limit asks for it. It ends an experiment with the same knob, and is none.
    pub(super) fn require(&mut self, change: Change, goal: Goal, because: String) {
        let knob = change.knob();
        // What was just taken back has its effect first.
        if self.actions.iter().any(|a| a.takes_back && a.change.knob() == knob) {
            return;
        }
        self.state.trials.retain(|t| t.change.knob() != knob);
        self.actions.push(Action { change, goal, because, takes_back: false });
    }

    /// An experiment: done unless it failed lately, another one has the same goal, or the knob was turned in this
    /// decision or is under trial. Says whether it is done.
    pub(super) fn propose(&mut self, change: Change, goal: Goal, because: String) -> bool {
        let knob = change.knob();
        let taken = self.state.trials.iter().any(|t| t.goal == goal || t.change.knob() == knob)
            || self.actions.iter().any(|a| a.change.knob() == knob);
        if taken || !self.may(&change) {
            return false;
        }
        let action = Action { change, goal, because, takes_back: false };
        self.state.begin(&action, Load::of(self.sample));
        self.actions.push(action);
        true
    }

    /// Whether a change has not failed so lately that it waits.
    pub(super) fn may(&self, change: &Change) -> bool {
        let held = self.state.holds.get(&(change.knob(), change.direction()));
        held.is_none_or(|h| h.is_over(self.state.tick))
    }

    /// Whether memory is over what is freed down to: nothing grows then.
    pub(super) fn memory_is_tight(&self) -> bool {
        let roomy = self.ceilings.memory_percent - self.policy.memory_buffer_percent;
        self.sample.memory_percent().is_some_and(|p| super::over(p, roomy))
    }

    /// Whether memory is over its threshold.
    pub(super) fn memory_is_over(&self) -> bool {
        self.sample.memory_percent().is_some_and(|p| super::over(p, self.ceilings.memory_percent))
    }

    /// Whether the processors are over `max_usage_percent`.
    pub(super) fn cpu_is_over(&self) -> bool {
        self.sample.cpu_percent.is_some_and(|p| super::over(p, self.policy.cpu_max_percent))
    }
}
