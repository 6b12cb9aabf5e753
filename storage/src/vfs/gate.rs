//! How many reads of the disks are under way at once.
//!
//! A disk serves several requests better than one, and too many worse: each waits for all that came before it. Whoever
//! comes when there are as many as are allowed waits here. Callers do not wait for background work: a read of that may be
//! of megabytes, and the disk may hang with it.
//!
//! Invariants: never are more inside than were allowed when the last of them came in, but for one caller and one who works
//! in the background, who come in where none of their kind is, so that neither kind keeps the other out, however many
//! come; background work leaves one place free, if there are two; whoever leaves wakes one of each kind that waits; without
//! a crowd, coming and going is one atomic operation each, and takes no lock.

use crossbeam::utils::CachePadded;
use parking_lot::{Condvar, Mutex};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// How many times this thread has said that it works in the background.
    static BACKGROUND: Cell<u32> = const { Cell::new(0) };
}

/// While this lives, what its thread reads is read in the background.
#[derive(Debug)]
#[must_use = "it ends when this is dropped"]
pub struct Background(std::marker::PhantomData<*const ()>);

impl Background {
    /// From now on.
    pub fn begin() -> Background {
        Background::for_ever();
        Background(std::marker::PhantomData)
    }

    /// From now on, until the thread ends.
    pub fn for_ever() {
        BACKGROUND.with(|n| n.set(n.get().saturating_add(1)));
    }

    fn is_on() -> bool {
        BACKGROUND.with(Cell::get) > 0
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        BACKGROUND.with(|n| n.set(n.get().saturating_sub(1)));
    }
}

/// Lets so many in at once.
#[derive(Debug)]
pub struct Gate {
    limit: AtomicU64,
    /// Callers in the lower half, background work in the upper.
    inside: CachePadded<AtomicU64>,
    /// How many wait; counted before they look for room for the last time.
    waiting: AtomicU64,
    lock: Mutex<()>,
    /// Somebody left whom a caller may follow, and whom background work may.
    callers: Condvar,
    others: Condvar,
}

/// One caller inside, and one of those who work in the background.
const CALLER: u64 = 1;
const OTHER: u64 = 1 << 32;

/// Somebody inside, as what they came; leaves when it is dropped.
#[derive(Debug)]
pub(super) struct Inside<'a>(&'a Gate, u64);

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
            callers: Condvar::new(),
            others: Condvar::new(),
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
        self.callers.notify_all();
        self.others.notify_all();
    }

    fn try_enter(&self, who: u64) -> bool {
        let limit = self.limit.load(Ordering::SeqCst);
        let room = |inside: u64| {
            let (callers, others) = (inside % OTHER, inside / OTHER);
            let free = callers + others < limit;
            if who == CALLER { free || callers == 0 } else { others == 0 || free && others < limit - 1 }
        };
        let more = |inside: u64| room(inside).then_some(inside + who);
        self.inside.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// Waits until there is room, and comes in.
    pub(super) fn enter(&self) -> Inside<'_> {
        let (who, left) = if Background::is_on() { (OTHER, &self.others) } else { (CALLER, &self.callers) };
        if !self.try_enter(who) {
            let mut lock = self.lock.lock();
            self.waiting.fetch_add(1, Ordering::SeqCst);
            // Who leaves after this sees that somebody waits, and wakes one; who left before has made room.
            while !self.try_enter(who) {
                left.wait(&mut lock);
            }
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        Inside(self, who)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(self.1, Ordering::SeqCst);
        if self.0.waiting.load(Ordering::SeqCst) > 0 {
            let _lock = self.0.lock.lock();
            self.0.callers.notify_one();
            self.0.others.notify_one();
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
            assert!(!gate.try_enter(CALLER), "one is inside");
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
            // Not in a scope, which would wait for who sleeps for ever.
            for _ in 0..2 {
                let (gate, told) = (gate.clone(), told.clone());
                std::thread::spawn(move || {
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
                heard.recv_timeout(Duration::from_secs(20)).expect("somebody sleeps beside an empty gate");
            }
        }
    }

    /// As many callers as are let in, one after another without end, keep out nobody who works in the background: room is
    /// made by that.
    #[test]
    fn callers_who_come_without_end_do_not_keep_background_work_out() {
        for limit in 1..5 {
            let gate = Gate::new(limit);
            let callers: Vec<Inside<'_>> = (0..limit).map(|_| gate.enter()).collect();
            assert!(!gate.try_enter(CALLER), "{limit}");
            assert!(gate.try_enter(OTHER), "{limit}: it would wait for ever");
            assert!(!gate.try_enter(OTHER), "{limit}: one is enough while it is full");
            drop(callers);
            drop(Inside(&gate, OTHER));
            assert_eq!(gate.inside.load(Ordering::SeqCst), 0);
        }
    }

    /// Who works in the background leaves a place free, and where there is but one, keeps no caller out of it.
    #[test]
    fn no_caller_waits_for_who_works_in_the_background() {
        for limit in 1..5 {
            let gate = Arc::new(Gate::new(limit));
            let background = |gate: &Arc<Gate>| {
                let (gate, (told, heard)) = (gate.clone(), std::sync::mpsc::channel());
                let (leave, left) = std::sync::mpsc::channel::<()>();
                let thread = std::thread::spawn(move || {
                    Background::for_ever();
                    let inside = gate.enter();
                    told.send(()).unwrap();
                    let _ = left.recv();
                    drop(inside);
                });
                (thread, heard, leave)
            };
            let some: Vec<_> = (0..(limit - 1).max(1)).map(|_| background(&gate)).collect();
            some.iter().for_each(|(_, heard, _)| heard.recv_timeout(Duration::from_secs(20)).unwrap());
            assert!(!gate.try_enter(OTHER), "{limit}: all but one place are taken");
            let caller = gate.enter();
            assert!(!gate.try_enter(CALLER) && !gate.try_enter(OTHER), "{limit}: one too many");
            // One more of each waits; who leaves lets in whom they make room for.
            let (thread, heard, leave) = background(&gate);
            let (came, in_at_last) = std::sync::mpsc::channel();
            std::thread::spawn({
                let gate = gate.clone();
                move || {
                    drop(gate.enter());
                    came.send(()).unwrap();
                }
            });
            while gate.waiting.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            drop(caller);
            in_at_last.recv_timeout(Duration::from_secs(20)).expect("a caller sleeps beside a place of his");
            assert!(heard.try_recv().is_err(), "{limit}");
            for (thread, _, leave) in some {
                drop(leave);
                thread.join().unwrap();
            }
            heard.recv_timeout(Duration::from_secs(20)).expect("it sleeps beside an empty gate");
            drop(leave);
            thread.join().unwrap();
            assert_eq!((gate.inside.load(Ordering::SeqCst), gate.waiting.load(Ordering::SeqCst)), (0, 0));
            // What is asked for on this thread is a caller's again.
            drop(Background::begin());
            assert!(!Background::is_on());
        }
    }
}
