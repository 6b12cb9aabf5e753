//! The limit on the bytes of values in flight: a counting semaphore.
//!
//! Invariants:
//!
//! - The bytes out are never more than the limit, but for one request larger than the whole limit, which is
//!   granted when nothing else is out: it would otherwise wait for ever.
//! - Requests are granted in the order in which they came, so a large one is not overtaken until it starves.
//! - Whoever gives bytes back grants the requests that now fit; a waiter that gives up lets those behind it pass.
//!   So no request waits that could be granted.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A share of a budget of bytes, for callers to wait for. Cloning gives another handle of the same budget.
#[derive(Debug, Clone)]
pub struct Budget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    /// Those that wait, first come first.
    queue: VecDeque<Arc<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    /// Written and read under the lock of the state only.
    granted: AtomicBool,
    wake: Condvar,
}

/// The time given was over before the bytes were to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timed out waiting for other values in flight")]
pub struct Timeout;

/// Bytes taken from a budget, given back on drop.
#[derive(Debug)]
#[must_use = "dropping the permit gives its bytes back"]
pub struct Permit {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Budget {
    /// A budget of this many bytes.
    pub fn new(bytes: u64) -> Budget {
        Budget { shared: Arc::new(Shared { limit: bytes, state: Mutex::default() }) }
    }

    /// Takes `bytes`, waiting at most `timeout` for them, behind all who came before.
    ///
    /// # Errors
    ///
    /// [`Timeout`] if they were not to be had in that time.
    pub fn acquire(&self, bytes: u64, timeout: Duration) -> Result<Permit, Timeout> {
        let mut state = self.shared.state.lock();
        if state.queue.is_empty() && self.shared.fits(&state, bytes) {
            state.used = state.used.saturating_add(bytes);
            return Ok(self.permit(bytes));
        }
        if timeout.is_zero() {
            return Err(Timeout);
        }
        // A time too far off to be a point in time is no limit.
        let deadline = Instant::now().checked_add(timeout);
        let waiter = Arc::new(Waiter { bytes, granted: AtomicBool::new(false), wake: Condvar::new() });
        state.queue.push_back(Arc::clone(&waiter));
        loop {
            let over = match deadline {
                Some(deadline) => waiter.wake.wait_until(&mut state, deadline).timed_out(),
                None => {
                    waiter.wake.wait(&mut state);
                    false
                }
            };
            if waiter.granted.load(Relaxed) {
                return Ok(self.permit(bytes));
            }
            if over {
                state.queue.retain(|w| !Arc::ptr_eq(w, &waiter));
                self.shared.grant(&mut state);
                return Err(Timeout);
            }
        }
    }

    /// Bytes that are out.
    pub fn used(&self) -> u64 {
        self.shared.state.lock().used
    }

    #[cfg(test)]
    /// Bytes that may be out.
    pub fn limit(&self) -> u64 {
        self.shared.limit
    }

    #[cfg(test)]
    /// Callers that wait.
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().queue.len()
    }

    fn permit(&self, bytes: u64) -> Permit {
        Permit { shared: Arc::clone(&self.shared), bytes }
    }
}

impl Shared {
    fn fits(&self, state: &State, bytes: u64) -> bool {
        state.used == 0 || state.used.saturating_add(bytes) <= self.limit
    }

    /// Grants from the head of the queue while it fits.
    fn grant(&self, state: &mut State) {
        while let Some(first) = state.queue.front()
            && self.fits(state, first.bytes)
            && let Some(first) = state.queue.pop_front()
        {
            state.used = state.used.saturating_add(first.bytes);
            first.granted.store(true, Relaxed);
            first.wake.notify_one();
        }
    }
}

impl Permit {
    #[cfg(test)]
    /// The bytes that this permit stands for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.used = state.used.saturating_sub(self.bytes);
        self.shared.grant(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(15);

    /// Until so many wait.
    fn until_waiting(budget: &Budget, n: usize) {
        let start = Instant::now();
        while budget.waiting() < n {
            assert!(start.elapsed() < LONG, "nobody waits");
            std::thread::yield_now();
        }
    }

    #[test]
    fn bytes_are_taken_and_given_back() {
        let budget = Budget::new(100);
        let a = budget.acquire(60, Duration::ZERO).expect("fits");
        let b = budget.acquire(40, Duration::ZERO).expect("fits");
        assert_eq!((budget.used(), budget.limit(), a.bytes()), (100, 100, 60));
        assert_eq!(budget.acquire(1, Duration::ZERO).map(|_| ()), Err(Timeout));
        assert_eq!(budget.acquire(1, SHORT).map(|_| ()), Err(Timeout));
        drop(a);
        assert_eq!(budget.used(), 40);
        drop(budget.acquire(60, Duration::ZERO).expect("fits"));
        drop(b);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn more_than_everything_is_granted_alone() {
        let budget = Budget::new(100);
        let small = budget.acquire(1, Duration::ZERO).expect("fits");
        assert_eq!(budget.acquire(1_000, SHORT).map(|_| ()), Err(Timeout));
        drop(small);
        let huge = budget.acquire(1_000, Duration::ZERO).expect("alone");
        assert_eq!(budget.acquire(1, SHORT).map(|_| ()), Err(Timeout));
        drop(huge);
        drop(budget.acquire(u64::MAX, Duration::ZERO).expect("alone"));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_large_request_is_not_overtaken() {
        let budget = Budget::new(100);
        let first = budget.acquire(50, Duration::ZERO).expect("fits");
        std::thread::scope(|scope| {
            let large = scope.spawn(|| budget.acquire(90, LONG).expect("in its turn"));
            until_waiting(&budget, 1);
            // It would fit, but it came later.
            assert_eq!(budget.acquire(10, SHORT).map(|_| ()), Err(Timeout));
            drop(first);
            let large = large.join().expect("no panic");
            assert_eq!(budget.used(), 90);
            drop(large);
        });
    }

    #[test]
    fn one_that_gives_up_lets_those_behind_it_pass() {
        let budget = Budget::new(100);
        let held = budget.acquire(50, Duration::ZERO).expect("fits");
        std::thread::scope(|scope| {
            let large = scope.spawn(|| budget.acquire(90, Duration::from_millis(200)).map(|_| ()));
            until_waiting(&budget, 1);
            let start = Instant::now();
            let small = scope.spawn(|| budget.acquire(10, LONG));
            assert_eq!(large.join().expect("no panic"), Err(Timeout));
            let small = small.join().expect("no panic").expect("fits once the large one is gone");
            assert!(start.elapsed() < LONG);
            assert_eq!(budget.used(), 60);
            drop((small, held));
        });
        assert_eq!((budget.used(), budget.waiting()), (0, 0));
    }

    #[test]
    fn many_are_granted_by_one_return() {
        let budget = Budget::new(100);
        let all = budget.acquire(100, Duration::ZERO).expect("fits");
        std::thread::scope(|scope| {
            let waiters: Vec<_> =
                (0..8).map(|_| scope.spawn(|| budget.acquire(10, LONG).expect("granted"))).collect();
            until_waiting(&budget, 8);
            drop(all);
            let permits: Vec<_> = waiters.into_iter().map(|w| w.join().expect("no panic")).collect();
            assert_eq!(budget.used(), 80);
            drop(permits);
        });
        assert_eq!(budget.used(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Threads that take and give back at random never have more out than the limit, all get theirs, and
        /// nothing is left over.
        #[test]
        fn the_limit_holds_and_everyone_is_served(
            plans in proptest::collection::vec(proptest::collection::vec(0u64..=100, 1..30), 2..5),
        ) {
            let budget = Budget::new(100);
            let (out, most) = (AtomicU64::new(0), AtomicU64::new(0));
            std::thread::scope(|scope| {
                for plan in &plans {
                    let (budget, out, most) = (&budget, &out, &most);
                    scope.spawn(move || {
                        for &bytes in plan {
                            let permit = budget.acquire(bytes, LONG).expect("served");
                            most.fetch_max(out.fetch_add(bytes, SeqCst) + bytes, SeqCst);
                            std::thread::yield_now();
                            out.fetch_sub(bytes, SeqCst);
                            drop(permit);
                        }
                    });
                }
            });
            prop_assert!(most.into_inner() <= 100);
            prop_assert_eq!((budget.used(), budget.waiting()), (0, 0));
        }
    }
}
