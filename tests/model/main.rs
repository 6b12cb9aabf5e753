//! The cache against a model: a map of what each key holds and of what a crash may make of it.
//!
//! Random operations over tiny tiers, every persistence, every subset of tiers, with reopenings and crashes in
//! between. What is checked at each step: never a wrong, stale or resurrected value; counts and keys exact; nothing
//! absent that was not removed, expired, or evicted with an event that names it. After a crash each key has its last
//! value or an earlier one, nothing older than what was durable at the last flush or close.
//!
//! `THERMOCLINE_CASES` sets the number of cases, however long they take; without it there are thousands, and those
//! that have not begun after a minute and a half are left out, of which there may not be so many that the rest says nothing
//! (`LEAST`). A failure is shrunk, printed, and kept in `tests/model.regressions`,
//! from which it is tried first the next time.

#![cfg(test)]

#[path = "../common/mod.rs"]
mod common;

/// Ends what checks with a failed test case.
macro_rules! fail {
    ($($t:tt)*) => { return Err(TestCaseError::fail(format!($($t)*))) };
}

mod ops;
mod shape;
mod world;

use ops::{Op, op};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};
use shape::{Shape, shape};
use std::time::{Duration, Instant};
use thermocline::Persistence;
use thermocline_testing::counted;
use world::{Check, World};

fn run(shape: Shape, ops: &[Op]) -> Check {
    let mut world = World::open(shape)?;
    for (n, op) in ops.iter().enumerate() {
        world.apply(op).map_err(|e| TestCaseError::fail(format!("operation {n}, {op:?}: {e}")))?;
    }
    world.end()
}

fn check(what: &str, share: (u32, u32), shape: impl Strategy<Value = Shape>, most_ops: usize) {
    let asked: Option<u32> = std::env::var("THERMOCLINE_CASES").ok().and_then(|s| s.parse().ok());
    let cases = (asked.unwrap_or(CASES) * share.0 / share.1).max(1);
    let begun = Instant::now();
    let kept = kept();
    let ran = std::cell::Cell::new(0);
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(KEPT))),
        max_shrink_time: 120_000,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let strategy = (shape, proptest::collection::vec(op(), 1..most_ops));
    let failed = std::cell::Cell::new(false);
    let result = TestRunner::new(config).run(&strategy, |(shape, ops)| {
        // Once a case failed, time is no reason to leave out what shrinks it.
        if asked.is_none() && !failed.get() && begun.elapsed() > BUDGET {
            return Ok(());
        }
        ran.set(ran.get() + 1);
        run(shape, &ops).inspect_err(|_| failed.set(true))
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    // Those that failed once are tried before all others, and are none of them.
    let kept = kept.min(ran.get());
    let ran = ran.get() - kept;
    assert!(ran <= cases, "{ran} of {cases}: are those that are kept counted otherwise?");
    counted(
        &format!("cases of the model, {what}, beside {kept} kept"),
        ran.into(),
        cases.into(),
        begun.elapsed(),
    );
    let least = (LEAST * share.0 / share.1).min(cases);
    assert!(ran >= least, "too slow to say anything: {ran} cases instead of {least}");
}

/// Cases that failed once.
const KEPT: &str = "tests/model.regressions";

/// How many there are.
fn kept() -> u32 {
    let kept = std::fs::read_to_string(KEPT).unwrap_or_default();
    kept.lines().map(|line| u32::from(line.starts_with("cc "))).sum()
}

/// Cases of all tests here together.
const CASES: u32 = 5_000;
/// Fewer of them, all together, are no test: a machine that does not come so far within the budget fails. Each test has
/// its share; fewer are enough if `THERMOCLINE_CASES` asks for fewer.
const LEAST: u32 = 200;
/// After this, no more are begun.
const BUDGET: Duration = Duration::from_secs(90);

#[test]
fn ssd_and_cold_against_the_model() {
    // Here the time goes: two do it at once.
    std::thread::scope(|scope| {
        for half in ["SSD and cold, one half", "SSD and cold, the other"] {
            scope.spawn(|| check(half, (35, 100), shape(false), 60));
        }
    });
}

/// sled makes opening slow, so these are fewer.
#[test]
fn hdd_among_others_against_the_model() {
    check("HDD among others", (1, 10), shape(true), 60);
}

#[test]
fn memory_alone_against_the_model() {
    let strategy = shape(false).prop_map(|s| {
        let persistence = match s.persistence {
            Persistence::Always => Persistence::OnEviction,
            other => other,
        };
        Shape { ssd: false, cold: None, persistence, ..s }
    });
    check("memory alone", (2, 10), strategy, 100);
}
