//! Processes that are killed: one opens a store with tiers too small for what it writes, and works on it from four
//! threads; SIGKILL ends it at any moment, an opening after that perhaps as well; then everything is read and judged,
//! and the next round goes on with the same store.
//!
//! What a kill shows is what a process tells or forgets too early: an acknowledgement before the write, a file deleted
//! before what names it. A sync that is missing it does not show, because the page cache survives; that is what
//! tests/simulation is for.
//!
//! `THERMOCLINE_ROUNDS=1000 cargo test --test kill -- --nocapture` takes its time; `THERMOCLINE_SECONDS=n` goes on for so
//! long, with other seeds each time. `THERMOCLINE_SEED=n` works on the
//! store of that seed alone; what its threads do, and when it is killed, is for the machine to say, so a failure may need
//! more rounds to come again.

#![cfg(test)]

mod child;
#[path = "../common/mod.rs"]
mod common;
mod life;
mod log;
mod plan;

use log::Sum;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};
use thermocline_testing::{caught, watched};

/// Rounds of a run without a wish.
const ROUNDS: u64 = 126;
/// Rounds of one store.
const EACH: u64 = 6;
/// After this, no more are begun.
const BUDGET: u64 = 150;
/// A round takes a second or two: a store of which the rounds last longer hangs.
const HANGS: Duration = Duration::from_secs(240);
/// Fewer say nothing.
const LEAST: u64 = 100;
const TEST: &str = "killed_at_any_moment";

fn asked(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.trim().parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

#[test]
fn killed_at_any_moment() {
    if let Some(job) = plan::Job::of_this_process() {
        child::run(&job);
    }
    let (wish, one) = (asked("THERMOCLINE_ROUNDS"), asked("THERMOCLINE_SEED"));
    let seconds = asked("THERMOCLINE_SECONDS");
    let all = wish.or(one.map(|_| 10 * EACH)).or(seconds.map(|_| u64::MAX)).unwrap_or(ROUNDS);
    // Not the same stores again where time is what was asked for.
    let first = seconds.map_or(0, |_| UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64));
    let budget = Duration::from_secs(seconds.unwrap_or(BUDGET));
    let (begun, failed, next) = (Instant::now(), AtomicBool::new(false), AtomicU64::new(0));
    let bounded = wish.is_none();
    let go_on = || !failed.load(Ordering::Relaxed) && (!bounded || begun.elapsed() < budget);
    let work = || {
        let mut sum = Sum::default();
        while go_on() {
            let no = next.fetch_add(1, Ordering::Relaxed);
            if no.saturating_mul(EACH) >= all {
                break;
            }
            let seed = one.unwrap_or(first + no);
            let life = || caught(|| life::live(seed, EACH, TEST, go_on, &mut sum));
            if let Err(why) = watched(&format!("seed {seed}"), HANGS, life) {
                failed.store(true, Ordering::Relaxed);
                panic!(
                    "seed {seed}: {why}\nagain: THERMOCLINE_SEED={seed} cargo test --test kill -- --nocapture"
                );
            }
        }
        sum
    };
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).min(4);
    let mut sum = Sum::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            sum += thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
        }
    });
    let stores = next.load(Ordering::Relaxed).min(all.div_ceil(EACH));
    let seeds = one.map_or(format!("{first}..{}", first + stores), |seed| format!("{seed}, {stores} times"));
    println!("{} rounds, seeds {seeds}, in {:?}: {sum:?}", sum.rounds, begun.elapsed());
    let least = if seconds.is_some() { 1 } else { LEAST.min(all) };
    assert!(sum.rounds >= least, "{} rounds: the machine is too slow to say anything", sum.rounds);
    assert!(sum.rounds < LEAST || one.is_some() || sum.is_lively(), "hardly anything happened: {sum:?}");
}
