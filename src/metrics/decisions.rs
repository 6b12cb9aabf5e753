//! What was decided, until somebody has been told: a queue that never grows beyond its length.
//!
//! Invariant: who adds to it waits for nobody but another who adds or takes, never for a disk or a network; where it is
//! full, the oldest decision goes, and is counted.

use parking_lot::Mutex;
use std::collections::VecDeque;

/// Decisions that wait at most. A report takes all of them: between two reports no more may come than wait.
pub(crate) const MOST: usize = 256;

/// What a decision says of itself: name, and what that is.
pub(crate) const FIELDS: [(&str, &str); 6] = [
    ("strategy", "The strategy in force after the turn: conservative, balanced, aggressive."),
    ("pressure", "The pressure at the turn, 0 to 1, or `not known`."),
    (
        "change",
        "What was to be changed, and from what to what, in words: `reclaim of ssd: 64.0 → 1.00 MiB/s`.",
    ),
    ("because", "Why, in words."),
    ("result", "`done`, or `not done:` and why not."),
    ("takes_back", "`true` where it undoes an earlier one that had made things worse, else `false`."),
];

/// Name and value, as they will be shown.
pub(crate) type Fields = Vec<(String, String)>;

/// A decision, with a number that rises by one from each to the next, which tells two of them apart, and one that was
/// sent twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) number: u64,
    pub(crate) time_ms: i64,
    pub(crate) fields: Fields,
}

#[derive(Debug, Default)]
pub(crate) struct Decisions(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: VecDeque<Decision>,
}

impl Decisions {
    /// Adds one; says whether the oldest had to go for it.
    pub(crate) fn add(&self, time_ms: i64, fields: Fields) -> bool {
        let mut queue = self.0.lock();
        let full = queue.waiting.len() >= MOST;
        if full {
            queue.waiting.pop_front();
        }
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push_back(Decision { number, time_ms, fields });
        full
    }

    /// The oldest of them, which stay.
    #[cfg(any(feature = "redis", test))]
    pub(crate) fn oldest(&self, most: usize) -> Vec<Decision> {
        self.0.lock().waiting.iter().take(most).cloned().collect()
    }

    /// All up to this number were told.
    #[cfg(any(feature = "redis", test))]
    pub(crate) fn told(&self, last: u64) {
        let mut queue = self.0.lock();
        while queue.waiting.front().is_some_and(|d| d.number <= last) {
            queue.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_where_it_is_full_and_what_was_told_is_not_told_again() {
        let queue = Decisions::default();
        let numbers = |of: Vec<Decision>| of.iter().map(|d| d.number).collect::<Vec<_>>();
        for n in 0..MOST as u64 {
            assert!(!queue.add(n as i64, vec![("n".into(), n.to_string())]));
        }
        let taken = queue.oldest(3);
        assert_eq!(numbers(taken.clone()), [0, 1, 2]);
        assert_eq!((taken[2].time_ms, &*taken[2].fields[0].1), (2, "2"));
        // While these are under way two more come: the oldest two of those that were taken make way.
        assert!(queue.add(0, Vec::new()) && queue.add(0, Vec::new()));
        queue.told(2);
        assert_eq!(numbers(queue.oldest(2)), [3, 4]);
        assert_eq!(queue.oldest(usize::MAX).len(), MOST - 1);
        queue.told(u64::MAX);
        assert!(queue.oldest(1).is_empty() && !queue.add(0, Vec::new()));
    }
}
