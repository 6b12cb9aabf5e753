//! The brake on log lines that would repeat with every read or write.
//!
//! Invariant: each place in the code has a brake of its own, and a line says how many were left out before it.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Between two lines from one place in the code.
const INTERVAL: Duration = Duration::from_secs(10);

/// What one place in the code logged last, for the whole process: a failing disk fails every store on it.
pub(crate) struct Brake(Mutex<Option<(Instant, u64)>>);

impl Brake {
    pub(crate) const fn new() -> Brake {
        Brake(Mutex::new(None))
    }

    /// Whether a line may be written now: `Some` with the lines that were left out since the last one, or `None`,
    /// and this one is counted as left out.
    pub(crate) fn allow(&self, now: Instant) -> Option<u64> {
        let mut last = self.0.lock();
        match &mut *last {
            Some((at, left_out)) if now.saturating_duration_since(*at) < INTERVAL => {
                *left_out += 1;
                None
            }
            last => Some(last.replace((now, 0)).map_or(0, |(_, left_out)| left_out)),
        }
    }
}

/// As `tracing::warn!`, but at most one line in ten seconds from this place, with the number of those left out. For
/// all that happens while a store is in use; what opening finds is told file by file.
macro_rules! warn_seldom {
    ($($line:tt)+) => {{
        static BRAKE: $crate::log::Brake = $crate::log::Brake::new();
        if let Some(left_out) = BRAKE.allow(std::time::Instant::now()) {
            tracing::warn!(left_out = (left_out > 0).then_some(left_out), $($line)+);
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;
    use thermocline_testing::Ear;

    #[test]
    fn one_line_in_an_interval_with_a_count_of_the_others() {
        let (brake, start) = (Brake::new(), Instant::now());
        let at = |s: u64| brake.allow(start + Duration::from_secs(s));
        assert_eq!(
            [at(0), at(0), at(9), at(10), at(11), at(25), at(40)],
            [Some(0), None, None, Some(2), None, Some(1), Some(0)]
        );
    }

    #[test]
    fn each_place_has_a_brake_of_its_own() {
        let ear = Ear::default();
        tracing::subscriber::with_default(ear.clone(), || {
            for n in 0..100 {
                warn_seldom!(n, "a disk fails");
                warn_seldom!(path = %"/x", "and another");
            }
        });
        assert_eq!(ear.all().len(), 2);
    }
}
