//! How many reads of the disks are under way at once.
//!
//! A disk serves several requests better than one, and too many worse: each waits for all that came before it. Whoever
//! comes when there are as many as are allowed waits here.
//!
//! Invariants: never are more inside than were allowed when the last of them came in; whoever leaves wakes one of those
//! who wait; without a crowd, coming and going is one atomic operation each, and takes no lock.

use crossbeam::utils::CachePadded;
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicU64, Ordering};

/// Lets so many in at once.
#[derive(Debug)]
pub struct Gate {
    limit: AtomicU64,
    inside: CachePadded<AtomicU64>,
    /// How many wait; counted before they look for room for the last time.
    waiting: AtomicU64,
    lock: Mutex<()>,
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
            inside: CachePadded::default(),
            waiting: AtomicU64::new(0),
            lock: Mutex::new(()),
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
        let _lock = self.lock.lock();
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
            let mut lock = self.lock.lock();
            self.waiting.fetch_add(1, Ordering::SeqCst);
            // Who leaves after this sees that somebody waits, and wakes one; who left before has made room.
            while !self.try_enter() {
                self.left.wait(&mut lock);
            }
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        Inside(self)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
        if self.0.waiting.load(Ordering::SeqCst) > 0 {
            let _lock = self.0.lock.lock();
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
        assert_eq!((gate.inside.load(Ordering::SeqCst), gate.waiting.load(Ordering::SeqCst)), (0, 0));
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
            while gate.waiting.load(Ordering::SeqCst) < 3 {
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

    /// Two leave before either of those who wait has come in: both are woken.
    #[test]
    fn everybody_is_woken_who_has_room() {
        for _ in 0..500 {
            let gate = Arc::new(Gate::new(2));
            let (told, heard) = std::sync::mpsc::channel();
            let (a, b) = (gate.enter(), gate.enter());
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    let (gate, told) = (gate.clone(), told.clone());
                    scope.spawn(move || {
                        drop(gate.enter());
                        told.send(()).unwrap();
                    });
                }
                while gate.waiting.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
                drop(a);
                drop(b);
                for _ in 0..2 {
                    heard
                        .recv_timeout(Duration::from_secs(20))
                        .expect("somebody sleeps beside an empty gate");
                }
            });
        }
    }
}
