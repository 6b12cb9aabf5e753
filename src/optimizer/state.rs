//! What the optimizer remembers from one decision to the next.

use super::action::{Action, Change, Direction, Goal, Knob};
use super::history::Outcome;
use super::load::Load;
use super::policy::Strategy;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Samples of the first wait after something did not work; it doubles with each further time.
pub(super) const FIRST_WAIT: u64 = 10;
/// Samples of the longest wait: at one a minute, a day.
pub(super) const LONGEST_WAIT: u64 = 1440;
/// The same of an experiment: an hour. What it was judged by is gone by then.
pub(super) const LONGEST_REFUSAL: u64 = 60;

/// A time in which something is not tried again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) until: u64,
    pub(super) wait: u64,
}

impl Hold {
    /// It did not work: not before a time that doubles.
    pub(super) fn lengthen(&mut self, tick: u64) {
        self.lengthen_within(tick, LONGEST_WAIT);
    }

    fn lengthen_within(&mut self, tick: u64, longest: u64) {
        self.wait = (self.wait * 2).clamp(FIRST_WAIT, longest);
        self.until = tick.saturating_add(self.wait);
    }

    pub(super) fn is_over(&self, tick: u64) -> bool {
        tick >= self.until
    }
}

/// A smoothed value and how far it strays, as TCP keeps them of round trips (Jacobson 1988).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Gauge {
    pub(super) mean: f64,
    pub(super) deviation: f64,
}

impl Gauge {
    pub(super) fn new(value: f64) -> Gauge {
        Gauge { mean: value, deviation: 0.0 }
    }

    pub(super) fn record(&mut self, value: f64) {
        let error = value - self.mean;
        self.mean += error / 8.0;
        self.deviation += (error.abs() - self.deviation) / 4.0;
    }
}

/// An experiment whose outcome is not known yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Trial {
    pub(super) change: Change,
    pub(super) goal: Goal,
    /// The goal's value before, and how much more than it is noise.
    pub(super) before: f64,
    pub(super) margin: f64,
    /// Sum and number of its values since, and samples that have passed.
    pub(super) sum: f64,
    pub(super) seen: u32,
    pub(super) passed: u32,
    /// What was asked of the store when it began, and whether that has become another.
    pub(super) load: Option<Load>,
    pub(super) moved: bool,
}

/// How a content type is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// As configured, as far as the strategy and the processors allow.
    #[default]
    Configured,
    /// With zlib where lz4 did little, or at the highest level.
    Harder,
    /// Not; tried again when the hold is over.
    Stopped,
}

/// What is remembered of a content type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TypeState {
    pub(super) mode: Mode,
    /// Compressing harder was tried, and did not help.
    pub(super) tried_harder: bool,
    pub(super) hold: Hold,
}

/// The memory of [`decide`](super::decide). A new one begins with the strategy `balanced`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// Decisions made.
    pub(super) tick: u64,
    pub(super) strategy: Strategy,
    /// The strategy that the last samples ask for, whether it is above, and how many of them.
    pub(super) leaning: Option<(bool, u32)>,
    pub(super) trials: Vec<Trial>,
    pub(super) holds: BTreeMap<(Knob, Direction), Hold>,
    pub(super) gauges: BTreeMap<Goal, Gauge>,
    pub(super) types: [TypeState; 4],
    /// Whether the processors are so busy that lz4 is taken instead of zlib; since when not, and how long it stays.
    pub(super) prefers_lz4: bool,
    pub(super) left_lz4: Option<u64>,
    pub(super) lz4_hold: Hold,
    pub(super) prefetch_hold: Hold,
    /// The tail of requests when little else goes on.
    pub(super) quiet_tail: Option<f64>,
    /// The tail for which background work was slowed at the last turn.
    pub(super) slowed_at: Option<f64>,
    /// When memory was freed last.
    pub(super) freed_at: Option<u64>,
    /// When the allocator was asked last, if that was for what it kept and nothing else.
    pub(super) spare_at: Option<u64>,
    /// What the memory tier could hold before a limit took of it.
    pub(super) shrunk_from: Option<u64>,
    /// The usual latency of each directory's disk.
    pub(super) usual_latency: BTreeMap<PathBuf, f64>,
    /// What the write buffer could hold before memory's limit took of it.
    pub(super) buffer_from: Option<u64>,
}

impl State {
    /// The strategy in force.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Decisions made with it.
    pub fn decisions(&self) -> u64 {
        self.tick
    }

    /// Experiments whose outcome is not known yet: what was changed, and the goal.
    pub fn under_trial(&self) -> impl Iterator<Item = (&Change, Goal)> {
        self.trials.iter().map(|t| (&t.change, t.goal))
    }

    /// Takes over what came of a decision's actions. What failed is no experiment, and is not tried again at once.
    pub fn applied(&mut self, outcomes: &[Outcome]) {
        for Outcome { action, result } in outcomes {
            if result.is_err() {
                self.trials.retain(|t| t.change != action.change);
                let proves = action.change != Change::TrimAllocator || self.spare_at == Some(self.tick);
                if proves {
                    self.refuse(&action.change);
                }
            } else if matches!(action.change, Change::TrimAllocator | Change::Rebalance { .. }) {
                // No experiment: it waits for nothing but that there is something to do, and there was.
                self.holds.remove(&(action.change.knob(), action.change.direction()));
            }
        }
    }

    /// Not this way with this knob for a time that doubles.
    pub(super) fn refuse(&mut self, change: &Change) {
        let tick = self.tick;
        let hold = self.holds.entry((change.knob(), change.direction())).or_default();
        hold.lengthen_within(tick, LONGEST_REFUSAL);
    }

    /// This way with this knob again, though it failed; if it fails once more, the time doubles all the same.
    pub(super) fn lift(&mut self, change: &Change) {
        let tick = self.tick;
        if let Some(hold) = self.holds.get_mut(&(change.knob(), change.direction())) {
            hold.until = hold.until.min(tick);
        }
    }

    /// Begins an experiment, if its goal's value is known; else it cannot be judged, and stands.
    pub(super) fn begin(&mut self, action: &Action, load: Option<Load>) {
        let Some(gauge) = self.gauges.get(&action.goal) else { return };
        let noise = (0.1 * gauge.mean.abs()).max(3.0 * gauge.deviation);
        self.trials.push(Trial {
            change: action.change.clone(),
            goal: action.goal,
            before: gauge.mean,
            margin: noise.max(action.goal.least_difference()),
            sum: 0.0,
            seen: 0,
            passed: 0,
            load,
            moved: false,
        });
    }
}
