//! Taking back what made things worse.
//!
//! An experiment remembers the smoothed value of its goal before, and a margin: a tenth of it, three times the mean
//! deviation of the goal from sample to sample, or what nobody would notice, whichever is most. Two samples later the
//! mean of what was seen since is compared. If it is worse by more than the margin, the change is undone and the same
//! way is closed for a time that doubles (10 samples, 20, 40, 60); if not, it stands, and the way is open again.
//!
//! There is no second store without the change to compare with, so where the load has become another meanwhile
//! ([`Load::has_moved`]), nothing is known of it and there is no verdict: the change stands, since its rule computed it from
//! what was measured and turns the knob again if that says so, and whether the way was closed is as it was. To undo it
//! would be as blind, and a load that comes and goes would have it tried and undone for ever.

use super::action::Goal;
use super::load::Load;
use super::plan::Plan;
use super::rules;
use super::state::{Gauge, Trial};

/// Samples after which an experiment is judged.
const PATIENCE: u32 = 2;

/// Judges what is due and undoes what made things worse. Comes before the rules, which see the knobs that it turned
/// as taken.
pub(super) fn judge(plan: &mut Plan<'_>) {
    let trials = std::mem::take(&mut plan.state.trials);
    for mut trial in trials {
        trial.passed += 1;
        trial.moved |= Load::of(plan.sample)
            .zip(trial.load)
            .is_some_and(|(now, then)| then.has_moved(&now, &trial.change.knob()));
        if let Some(value) = trial.goal.value(plan.sample) {
            trial.sum += value;
            trial.seen += 1;
        }
        if trial.passed < PATIENCE {
            plan.state.trials.push(trial);
        } else {
            conclude(plan, &trial);
        }
    }
    for goal in Goal::all() {
        if let Some(value) = goal.value(plan.sample) {
            plan.state.gauges.entry(goal).or_insert_with(|| Gauge::new(value)).record(value);
        }
    }
}

fn conclude(plan: &mut Plan<'_>, trial: &Trial) {
    if trial.moved {
        return;
    }
    let mean = trial.sum / f64::from(trial.seen.max(1));
    let worse = trial.seen > 0 && mean > trial.before + trial.margin;
    let key = (trial.change.knob(), trial.change.direction());
    if !worse {
        plan.state.holds.remove(&key);
        return;
    }
    plan.state.refuse(&trial.change);
    rules::compression::taken_back(&mut plan.state, &trial.change);
    if let Some(back) = trial.change.reversed() {
        let because = format!(
            "{} was {:.6} before, with {:.6} of noise, and {mean:.6} after: it made things worse",
            trial.goal, trial.before, trial.margin
        );
        plan.require(back, trial.goal, because);
        if let Some(action) = plan.actions.last_mut() {
            action.takes_back = true;
        }
        // The measurements of the experiment are no measure of what comes after.
        plan.state.gauges.insert(trial.goal, Gauge { mean: trial.before, deviation: trial.margin / 3.0 });
    }
}
