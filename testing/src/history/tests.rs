//! The judge is judged: a store that makes no mistake is never blamed, and each kind of mistake is found.

use super::*;
use std::sync::atomic::{AtomicU64, Ordering};
use thermocline_storage::sim::Dice;

fn told(_: &str) -> Absence {
    Absence::Told
}

/// What a toy store gets wrong, now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// A read returns the value before.
    StaleRead,
    /// A removal is undone later.
    Resurrection,
    /// An acknowledged write is dropped.
    LostWrite,
    /// A read returns what nobody wrote.
    Mixture,
    /// A read returns the value of another key.
    OtherKey,
    /// A put that was refused takes effect later.
    RefusedAndDone,
    /// Reads see the new value and the old one in turns while both are being written.
    Flapping,
    /// A crash loses what was flushed.
    CrashLosesFlushed,
    /// A crash brings back a value that a flushed one had replaced.
    CrashGoesBack,
    /// A crash brings back what was removed durably.
    CrashResurrects,
}

/// All values that a key had, the last one in force; of each, whether it is durable.
#[derive(Debug, Default, Clone)]
struct Cell {
    values: Vec<Option<Value>>,
    durable: usize,
}

impl Cell {
    fn now(&self) -> Option<Value> {
        self.values.last().copied().flatten()
    }

    fn before(&self) -> Option<Value> {
        self.values.iter().rev().nth(1).copied().flatten()
    }
}

struct Toy {
    mistake: Mistake,
    cells: BTreeMap<String, Cell>,
    dice: Dice,
}

impl Toy {
    fn slips(&mut self, mistake: Mistake) -> bool {
        self.mistake == mistake && self.dice.below(20) == 0
    }

    fn write(&mut self, key: &str, value: Option<Value>) -> Outcome {
        if self.dice.below(30) == 0 {
            if self.mistake == Mistake::RefusedAndDone {
                self.cells.entry(key.into()).or_default().values.push(value);
            }
            return Outcome::Refused;
        }
        if self.slips(Mistake::LostWrite) {
            return Outcome::Done;
        }
        self.cells.entry(key.into()).or_default().values.push(value);
        Outcome::Done
    }

    fn read(&mut self, key: &str) -> Option<Value> {
        if self.slips(Mistake::Mixture) {
            return Some(u64::MAX);
        }
        if self.slips(Mistake::OtherKey) {
            return self.cells.values().find_map(Cell::now);
        }
        let (stale, back) = (self.slips(Mistake::StaleRead), self.slips(Mistake::Resurrection));
        let cell = self.cells.entry(key.into()).or_default();
        if stale || back && cell.now().is_none() { cell.before() } else { cell.now() }
    }

    fn flush(&mut self) {
        for cell in self.cells.values_mut() {
            cell.durable = cell.values.len();
        }
    }

    fn crash(&mut self) {
        let mistake = self.mistake;
        for cell in self.cells.values_mut() {
            let lost = self.dice.below((cell.values.len() - cell.durable) as u64 + 1);
            cell.values.truncate(cell.values.len() - usize::try_from(lost).unwrap());
            let slips = self.dice.below(4) == 0;
            match (mistake, cell.now()) {
                (Mistake::CrashLosesFlushed, _) if slips => cell.values.clear(),
                (Mistake::CrashGoesBack, Some(_)) if slips => {
                    cell.values.pop();
                }
                (Mistake::CrashResurrects, None) if slips => {
                    cell.values.pop();
                }
                _ => {}
            }
            cell.durable = cell.values.len();
        }
    }
}

/// A random life of a toy store by one thread, crashes included.
fn live(mistake: Mistake, seed: u64) -> Result<(), Violation> {
    let mut toy = Toy { mistake, cells: BTreeMap::new(), dice: Dice::new(seed) };
    let mut dice = Dice::new(seed ^ 0xabcd);
    let history = History::default();
    let mut next = 0;
    for step in 0..300 {
        let key = format!("k{}", dice.below(4));
        match dice.below(20) {
            0..=8 => {
                next += 1;
                let value = (dice.below(4) > 0).then_some(next);
                let begun = history.write(&key, value, step);
                let outcome = toy.write(&key, value);
                history.wrote(&key, begun, outcome, step);
            }
            9..=16 => {
                let begun = history.read(step);
                let value = toy.read(&key);
                history.was_read(&key, begun, value, step);
            }
            17 => {
                let since = history.moment(step);
                toy.cells.entry(key.clone()).or_default().values.push(None);
                history.forgotten(&key, &since, step);
            }
            18 => {
                let begun = history.flush(step);
                toy.flush();
                history.flushed(begun, step);
            }
            _ => {
                history.check(told)?;
                toy.crash();
                let found = |key: &str| toy.cells.get(key).and_then(Cell::now);
                history.check_crash(Promise::FromFlush, told, found)?;
                history.restart(found);
            }
        }
    }
    history.check(told)
}

#[test]
fn a_store_without_mistakes_is_never_blamed() {
    for seed in 0..2_000 {
        live(Mistake::None, seed).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn every_mistake_is_found() {
    use Mistake::*;
    let all = [
        StaleRead,
        Resurrection,
        LostWrite,
        Mixture,
        OtherKey,
        RefusedAndDone,
        CrashLosesFlushed,
        CrashGoesBack,
        CrashResurrects,
    ];
    for mistake in all {
        let found = (0..200).filter(|seed| live(mistake, *seed).is_err()).count();
        assert!(found > 100, "{mistake:?}: found in {found} of 200 lives, some of which were without it");
    }
}

/// Threads, one lock for the store: every order that they come in is in order. With a mistake in it, some are not.
fn live_together(mistake: Mistake) -> Result<(), Violation> {
    let cell: Mutex<(Option<Value>, Option<Value>)> = Mutex::default();
    let (history, next) = (History::default(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (cell, history, next) = (&cell, &history, &next);
            scope.spawn(move || {
                let mut dice = Dice::new(thread);
                for _ in 0..2_000 {
                    if dice.below(4) == 0 {
                        let value = Some(next.fetch_add(1, Ordering::Relaxed));
                        let begun = history.write("k", value, 0);
                        {
                            let mut cell = cell.lock();
                            *cell = (value, cell.0);
                        }
                        std::thread::yield_now();
                        history.wrote("k", begun, Outcome::Done, 0);
                    } else {
                        let begun = history.read(0);
                        let (now, before) = *cell.lock();
                        let flaps = mistake == Mistake::Flapping && dice.below(8) == 0;
                        history.was_read("k", begun, if flaps { before } else { now }, 0);
                    }
                }
            });
        }
    });
    history.check(told)
}

#[test]
fn threads_are_judged_by_what_could_have_been() {
    for _ in 0..5 {
        live_together(Mistake::None).unwrap_or_else(|e| panic!("{e}"));
    }
    assert!((0..5).any(|_| live_together(Mistake::Flapping).is_err()));
}

/// Two writes at the same time, both seen: in this order and not back again.
#[test]
fn a_value_does_not_come_back_after_another_was_read() {
    let history = History::default();
    let (a, b) = (history.write("k", Some(1), 0), history.write("k", Some(2), 0));
    let read = |value| {
        let begun = history.read(0);
        history.was_read("k", begun, Some(value), 0);
    };
    read(1);
    read(2);
    history.check(told).unwrap();
    read(1);
    assert!(history.check(told).is_err());
    history.wrote("k", a, Outcome::Done, 0);
    history.wrote("k", b, Outcome::Done, 0);
}

/// Writes of one key that take long, and others that begin and end meanwhile.
#[test]
fn who_began_last_counts_not_who_ended_last() {
    let history = History::default();
    let replaced = history.write("a", Some(1), 0);
    let slow = history.write("a", Some(2), 0);
    history.wrote("a", replaced, Outcome::Done, 0);
    let quick = history.write("a", Some(3), 0);
    history.wrote("a", quick, Outcome::Done, 0);
    history.wrote("a", slow, Outcome::Done, 0);
    let slow = history.write("b", None, 0);
    for value in [None, Some(4)] {
        let quick = history.write("b", value, 0);
        history.wrote("b", quick, Outcome::Done, 0);
    }
    let read = |key, value| {
        let begun = history.read(0);
        history.was_read(key, begun, value, 0);
        history.check(told)
    };
    read("b", None).unwrap();
    history.wrote("b", slow, Outcome::Done, 0);
    read("b", None).unwrap();
    assert!(read("a", Some(1)).is_err_and(|e| e.what.contains("Some(3) had replaced")));
}

#[test]
fn a_history_up_to_a_mark_knows_nothing_of_what_came_after() {
    let history = History::default();
    let put = |value, from, to| {
        let begun = history.write("k", Some(value), from);
        history.wrote("k", begun, Outcome::Done, to);
    };
    put(1, 0, 2);
    let begun = history.flush(2);
    history.flushed(begun, 4);
    put(2, 4, 6);
    let judge = |mark, found| {
        let cut = history.up_to(mark);
        cut.check_crash(Promise::Durable, told, |_| found).is_ok()
    };
    // Before anything had returned: nothing, or the one that was under way.
    assert_eq!([judge(2, None), judge(2, Some(1)), judge(2, Some(2))], [true, true, false]);
    assert_eq!([judge(5, None), judge(5, Some(1)), judge(5, Some(2))], [false, true, true]);
    assert_eq!([judge(7, None), judge(7, Some(1)), judge(7, Some(2))], [false, false, true]);
    let flushed = |mark, found| {
        let cut = history.up_to(mark);
        cut.check_crash(Promise::FromFlush, told, |_| found).is_ok()
    };
    assert_eq!([flushed(4, None), flushed(5, None)], [true, false]);
    assert_eq!([flushed(7, Some(1)), flushed(7, Some(2))], [true, true]);
}
