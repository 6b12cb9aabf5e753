//! What is asked of the store, to tell whether an experiment was judged under the load that it began with.

use super::action::Knob;
use super::sample::Sample;

/// So many points more or less of a share is another load.
const POINTS: f64 = 0.1;
/// So many times the requests is another load.
const MORE: f64 = 1.5;

/// What was asked of the store in one sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Load {
    /// Requests a second.
    rate: f64,
    /// Share of them that are puts.
    puts: Option<f64>,
    /// Share of the gets that memory, SSD, HDD and archive answered.
    answered: Option<[f64; 4]>,
}

impl Load {
    /// `None` if no time has passed.
    pub(super) fn of(sample: &Sample) -> Option<Load> {
        let (gets, puts) = (sample.requests.gets as f64, sample.requests.puts as f64);
        let rate = (gets + puts) / Some(sample.elapsed.as_secs_f64()).filter(|s| *s > 0.0)?;
        let hits = sample.tiers.map(|t| t.map_or(0.0, |t| t.hits as f64));
        Some(Load {
            rate,
            puts: (rate > 0.0).then(|| puts / (gets + puts)),
            answered: (gets > 0.0).then(|| hits.map(|h| h / gets)),
        })
    }

    /// Whether what is asked now is something else, and not what the change of this knob did to it.
    ///
    /// More requests are the load's. Fewer may be callers who wait longer for each, which is what an experiment is judged
    /// for. What each tier answers is the load's too, but where the knob decides what memory holds: there only memory's
    /// answering less is, as no experiment makes it smaller.
    pub(super) fn has_moved(&self, now: &Load, knob: &Knob) -> bool {
        let fills = matches!(knob, Knob::MemorySize | Knob::Prefetch);
        let shifted = match (self.answered, now.answered) {
            (Some([memory, ..]), Some([then, ..])) if fills => memory - then > POINTS,
            (Some(was), Some(is)) => was.iter().zip(is).any(|(was, is)| (was - is).abs() > POINTS),
            _ => false,
        };
        let mixed = self.puts.zip(now.puts).is_some_and(|(was, is)| (was - is).abs() > POINTS);
        shifted || mixed || now.rate > self.rate * MORE
    }
}
