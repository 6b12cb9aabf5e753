//! What was seen, decided and done, and what came of it.

use super::action::{Action, Goal};
use super::decide::Decision;
use super::sample::Sample;
use std::collections::VecDeque;

/// What became of an action.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The action.
    pub action: Action,
    /// Done, or why not.
    pub result: Result<(), String>,
}

/// What an action's goal did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effect {
    /// The goal.
    pub goal: Goal,
    /// Its value in the sample that was decided by.
    pub before: Option<f64>,
    /// Its value in the next one.
    pub after: Option<f64>,
}

/// One turn of the loop.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Milliseconds since the epoch by the wall clock.
    pub unix_ms: u64,
    /// What was seen. Its `at` is the boot-time clock.
    pub sample: Sample,
    /// What was decided.
    pub decision: Decision,
    /// What was done, action by action.
    pub outcomes: Vec<Outcome>,
    /// What the goals of the actions did, once the next sample is there.
    pub effects: Vec<Effect>,
}

/// The last records, oldest first; older ones are forgotten.
#[derive(Debug, Clone)]
pub struct History {
    records: VecDeque<Record>,
    most: usize,
}

impl Default for History {
    /// Of 256 records: at one a minute, the last four hours.
    fn default() -> History {
        History::new(256)
    }
}

impl History {
    /// A history of so many records, at least 1.
    pub fn new(most: usize) -> History {
        History { records: VecDeque::new(), most: most.max(1) }
    }

    /// Adds a record, and completes the one before with the effects that its sample shows.
    pub fn push(&mut self, record: Record) {
        if let Some(last) = self.records.back_mut() {
            last.effects = effects(last, &record.sample);
        }
        if self.records.len() >= self.most {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    /// The records, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Record> + ExactSizeIterator {
        self.records.iter()
    }

    /// The newest record.
    pub fn last(&self) -> Option<&Record> {
        self.records.back()
    }

    /// Records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Records at most.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// One for each goal of what was done.
fn effects(record: &Record, next: &Sample) -> Vec<Effect> {
    let done = record.outcomes.iter().filter(|o| o.result.is_ok());
    let mut goals: Vec<Goal> = done.map(|o| o.action.goal).collect();
    goals.sort_unstable();
    goals.dedup();
    let effect = |goal: Goal| Effect { goal, before: goal.value(&record.sample), after: goal.value(next) };
    goals.into_iter().map(effect).collect()
}
