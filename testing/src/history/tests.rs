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
    /// A removal of which nobody is told how it ended is seen by one read, and not by the next.
    Blinking,
    /// Nothing is durable but what is flushed, whatever was promised.
    OnlyFlushes,
}

/// What the toy promises: what survives without a flush, and whether it writes its removals by itself when it is given
/// the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mode {
    /// With the number of marks that it takes, instead of one of them.
    promise: Promise,
    writes_removals: bool,
}

impl Mode {
    const fn of(promise: Promise, writes_removals: bool) -> Mode {
        Mode { promise, writes_removals }
    }

    /// What is promised of a crash at this mark.
    fn at(self, mark: u64) -> Promise {
        match self.promise {
            Promise::Until(takes) => Promise::Until(mark.saturating_sub(takes)),
            Promise::RemovalsUntil(takes) => Promise::RemovalsUntil(mark.saturating_sub(takes)),
            always => always,
        }
    }
}

const MODES: [Mode; 5] = [
    Mode::of(Promise::Durable, false),
    Mode::of(Promise::FromFlush, false),
    Mode::of(Promise::FromFlush, true),
    Mode::of(Promise::Until(12), false),
    Mode::of(Promise::RemovalsUntil(12), false),
];

/// All values that a key had, the last one in force, each with the moment since when; how many of them are durable.
#[derive(Debug, Default, Clone)]
struct Cell {
    values: Vec<(Option<Value>, u64)>,
    durable: usize,
}

impl Cell {
    fn now(&self) -> Option<Value> {
        self.values.last().and_then(|(value, _)| *value)
    }

    fn before(&self) -> Option<Value> {
        self.values.iter().rev().nth(1).and_then(|(value, _)| *value)
    }

    /// Up to the last of which this holds, all are durable.
    fn keep(&mut self, holds: impl Fn(&(Option<Value>, u64)) -> bool) {
        let kept = self.values.iter().rposition(holds).map_or(0, |at| at + 1);
        self.durable = self.durable.max(kept);
    }
}

struct Toy {
    mistake: Mistake,
    mode: Mode,
    now: u64,
    /// The next read of this key finds nothing.
    blinks: Option<String>,
    cells: BTreeMap<String, Cell>,
    dice: Dice,
}

impl Toy {
    fn slips(&mut self, mistake: Mistake) -> bool {
        self.mistake == mistake && self.dice.below(20) == 0
    }

    fn write(&mut self, key: &str, value: Option<Value>) -> Outcome {
        let now = self.now;
        if self.dice.below(30) == 0 {
            if self.mistake == Mistake::RefusedAndDone {
                self.cells.entry(key.into()).or_default().values.push((value, now));
            }
            return Outcome::Refused;
        }
        if self.slips(Mistake::LostWrite) {
            return Outcome::Done;
        }
        // Nobody is told how it ended; it was done, or not.
        let unknown = value.is_none() && self.dice.below(3) == 0;
        if unknown && self.dice.below(2) == 0 {
            self.blinks = Some(key.into());
            return Outcome::Unknown;
        }
        let durable = self.mode.promise == Promise::Durable && self.mistake != Mistake::OnlyFlushes;
        let cell = self.cells.entry(key.into()).or_default();
        cell.values.push((value, now));
        if unknown {
            return Outcome::Unknown;
        }
        if durable {
            cell.durable = cell.values.len();
        }
        Outcome::Done
    }

    fn read(&mut self, key: &str) -> Option<Value> {
        if self.slips(Mistake::Mixture) {
            return Some(u64::MAX);
        }
        if self.slips(Mistake::OtherKey) {
            return self.cells.values().find_map(Cell::now);
        }
        if self.mistake == Mistake::Blinking && self.blinks.take_if(|k| k == key).is_some() {
            return None;
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

    /// It has the time to write its removals.
    fn work(&mut self) {
        if self.mistake != Mistake::OnlyFlushes {
            self.cells.values_mut().for_each(|cell| cell.keep(|(value, _)| value.is_none()));
        }
    }

    /// What is durable for its age.
    fn age(&mut self) {
        let now = self.now;
        for cell in self.cells.values_mut() {
            match self.mode.promise {
                Promise::Until(takes) => cell.keep(|(_, at)| at + takes < now),
                Promise::RemovalsUntil(takes) => cell.keep(|(v, at)| v.is_none() && at + takes < now),
                Promise::Durable | Promise::FromFlush => {}
            }
        }
    }

    fn crash(&mut self) {
        let mistake = self.mistake;
        if mistake != Mistake::OnlyFlushes {
            self.age();
        }
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
fn live(mistake: Mistake, mode: Mode, seed: u64) -> Result<(), Violation> {
    let (cells, dice) = (BTreeMap::new(), Dice::new(seed));
    let mut toy = Toy { mistake, mode, now: 0, blinks: None, cells, dice };
    let mut dice = Dice::new(seed ^ 0xabcd);
    let history = History::default();
    let mut next = 0;
    for step in 0..300 {
        let key = format!("k{}", dice.below(4));
        toy.now = step;
        match dice.below(21) {
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
                toy.cells.entry(key.clone()).or_default().values.push((None, step));
                history.forgotten(&key, &since, step);
            }
            18 => {
                let begun = history.flush(step);
                toy.flush();
                history.flushed(begun, step);
            }
            19 if mode.writes_removals => {
                let begun = history.flush(step);
                toy.work();
                history.flushed_removals(begun, step);
            }
            19 => {}
            _ => {
                history.check(told)?;
                toy.crash();
                let found = |key: &str| toy.cells.get(key).and_then(Cell::now);
                history.check_crash(mode.at(step), told, found)?;
                history.restart(found);
            }
        }
    }
    history.check(told)
}

#[test]
fn a_store_without_mistakes_is_never_blamed() {
    for mode in MODES {
        for seed in 0..1_000 {
            live(Mistake::None, mode, seed).unwrap_or_else(|e| panic!("{mode:?}, seed {seed}: {e}"));
        }
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
        Blinking,
        OnlyFlushes,
    ];
    for mode in MODES {
        // What promises nothing but flushes has none to break.
        let flushes_alone = mode.promise == Promise::FromFlush && !mode.writes_removals;
        for mistake in all.into_iter().filter(|m| *m != OnlyFlushes || !flushes_alone) {
            let found = (0..200).filter(|seed| live(mistake, mode, *seed).is_err()).count();
            let least = if mistake == OnlyFlushes { 60 } else { 100 };
            assert!(found > least, "{mistake:?}, {mode:?}: found in {found} of 200 lives");
        }
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

/// While a removal is under way a read may find nothing, but then the value is gone.
#[test]
fn what_was_found_gone_does_not_come_back() {
    let judged = |reads: &[Option<Value>], absence: Absence, ends: Option<Outcome>| {
        let history = History::default();
        let put = history.write("k", Some(1), 0);
        history.wrote("k", put, Outcome::Done, 0);
        let removal = history.write("k", None, 0);
        for value in reads {
            let begun = history.read(0);
            history.was_read("k", begun, *value, 0);
        }
        if let Some(outcome) = ends {
            history.wrote("k", removal, outcome, 0);
        }
        history.check(|_| absence)
    };
    let (gone, back) = ([Some(1), None, None], [Some(1), None, Some(1)]);
    for ends in [None, Some(Outcome::Unknown), Some(Outcome::Done)] {
        judged(&gone, Absence::Told, ends).unwrap();
        let e = judged(&back, Absence::Told, ends).unwrap_err();
        assert!(e.what.contains("came back"), "{e}");
        // Where reads fail, to find nothing says nothing.
        judged(&back, Absence::Allowed, ends).unwrap();
    }
}

/// A removal that began and ended between two reads of a value that is still being put has taken it away.
#[test]
fn a_removal_counts_although_nobody_saw_it() {
    let history = History::default();
    let slow = history.write("k", Some(1), 0);
    let read = || {
        let begun = history.read(0);
        history.was_read("k", begun, Some(1), 0);
    };
    read();
    let removal = history.write("k", None, 0);
    history.wrote("k", removal, Outcome::Done, 0);
    history.check(told).unwrap();
    read();
    assert!(history.check(|_| Absence::Allowed).is_err_and(|e| e.what.contains("came back")));
    history.wrote("k", slow, Outcome::Done, 0);
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

/// Removals that are written by themselves, values that are not, and what a clock says of both.
#[test]
fn what_has_had_its_time_is_durable() {
    let history = History::default();
    let write = |key, value, mark| {
        let begun = history.write(key, value, mark);
        history.wrote(key, begun, Outcome::Done, mark);
    };
    let judge = |promise, key: &'static str, value| {
        let absence = |k: &str| if k == key { Absence::Told } else { Absence::Allowed };
        history.check_crash(promise, absence, |k| if k == key { value } else { None }).is_ok()
    };
    write("put", Some(1), 10);
    write("removed", Some(2), 10);
    let flush = history.flush(10);
    history.flushed(flush, 10);
    write("put", Some(3), 20);
    write("removed", None, 20);
    let removals = [Promise::FromFlush, Promise::RemovalsUntil(21)];
    for promise in [Promise::Until(20), Promise::RemovalsUntil(20), removals[0]] {
        assert!(judge(promise, "put", Some(1)) && judge(promise, "removed", Some(2)), "{promise:?}");
    }
    assert!(!judge(Promise::Until(21), "put", Some(1)) && judge(Promise::Until(21), "put", Some(3)));
    assert!(!judge(removals[1], "removed", Some(2)));
    let begun = history.flush(25);
    history.flushed_removals(begun, 25);
    for promise in removals {
        assert!(judge(promise, "put", Some(1)) && !judge(promise, "removed", Some(2)), "{promise:?}");
        assert!(judge(promise, "removed", None), "{promise:?}");
    }
    // Before that had ended, nobody knew.
    let before = history.up_to(25);
    before.check_crash(removals[0], |_| Absence::Allowed, |k| (k == "removed").then_some(2)).unwrap();
}
