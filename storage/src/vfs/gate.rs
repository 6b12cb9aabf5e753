//! How many reads of the disks are under way at once.
//!
//! A disk serves several requests better than one, and too many worse: each waits for all that came before it. Whoever
//! comes when there are as many as are allowed waits here.
//!
//! Invariants: never are more inside than were allowed when the last of them came in; whoever leaves wakes one of those
//! who wait; without a crowd, coming and going is one atomic operation each, and takes no lock.

use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicU64, Ordering};

/// Lets so many in at once.
#[derive(Debug)]
pub struct Gate {
    limit: AtomicU64,
    inside: AtomicU64,
    /// Those who wait, by number.
    waiting: Mutex<u64>,
    left: Condvar,
}

/// Somebody inside; leaves when it is dropped.
#[derive(Debug)]
pub(super) struct Inside<'a>(&'a Gate);

impl Default for Gate {
    /// Without a limit.
    fn default() -> Gate {
        Gate::new(u64::MAX)
    }
}

impl Gate {
    /// A gate that lets so many in, one at least.
    pub fn new(limit: u64) -> Gate {
        Gate {
            limit: AtomicU64::new(limit.max(1)),
            inside: AtomicU64::new(0),
            waiting: Mutex::new(0),
            left: Condvar::new(),
        }
    }

    /// How many it lets in.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Lets so many in from now on, one at least. Who is inside stays.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit.max(1), Ordering::SeqCst);
        // There may be room for those who wait.
        let _waiting = self.waiting.lock();
        self.left.notify_all();
    }

    fn try_enter(&self) -> bool {
        let limit = self.limit.load(Ordering::SeqCst);
        let more = |inside: u64| (inside < limit).then_some(inside + 1);
        self.inside.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// Waits until there is room, and comes in.
    pub(super) fn enter(&self) -> Inside<'_> {
        if !self.try_enter() {
            let mut waiting = self.waiting.lock();
            *waiting += 1;
            // Who leaves after this looks for those who wait under the lock, so no wake is missed.
            while !self.try_enter() {
                self.left.wait(&mut waiting);
            }
            *waiting -= 1;
        }
        Inside(self)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let before = self.0.inside.fetch_sub(1, Ordering::SeqCst);
        // Only where it was full can anybody wait.
        if before >= self.0.limit.load(Ordering::SeqCst) && *self.0.waiting.lock() > 0 {
            self.0.left.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    #[test]
    fn no_more_are_inside_than_are_let_in_and_everybody_comes_in_at_last() {
        let gate = Arc::new(Gate::new(3));
        let (most, now) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _inside = gate.enter();
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        let most = most.into_inner();
        assert!((2..=3).contains(&most), "{most}");
        assert_eq!((gate.inside.load(Ordering::SeqCst), *gate.waiting.lock()), (0, 0));
    }

    #[test]
    fn a_wider_gate_lets_in_who_waits_and_a_narrower_one_lets_nobody_in_before_there_is_room() {
        let gate = Arc::new(Gate::new(1));
        let first = gate.enter();
        let (told, heard) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let (gate, told) = (gate.clone(), told.clone());
                scope.spawn(move || {
                    let _inside = gate.enter();
                    told.send(()).unwrap();
                });
            }
            let until = Instant::now() + Duration::from_secs(20);
            while *gate.waiting.lock() < 3 {
                assert!(Instant::now() < until, "they never came");
                std::thread::yield_now();
            }
            assert!(heard.try_recv().is_err());
            gate.set_limit(2);
            for _ in 0..3 {
                heard.recv_timeout(Duration::from_secs(20)).unwrap();
            }
            gate.set_limit(0);
            assert_eq!(gate.limit(), 1);
            assert!(!gate.try_enter(), "one is inside");
            drop(first);
            drop(gate.enter());
        });
    }
}
