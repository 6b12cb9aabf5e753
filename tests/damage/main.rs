//! The store with one place of one file damaged: every bit, every length, every block, every file.
//!
//! What is checked of each: the store opens; nothing panics or hangs; a read gives the right value or none, never an
//! older one, and never one that was removed or has expired; only items whose own bytes were hit are absent; what is
//! absent is told of (an event with its key, the count of what opening lost, or `verify`'s report); and the store goes
//! on: it is written to, closed and opened again, and has what it had.
//!
//! The part on a simulated disk runs all its cases, those that matter most first. Should its time be over before, it
//! stops, and says how many it skipped. `THERMOCLINE_TORTURE=1` has every bit of every byte that was written and every
//! length of all four stores, however long that takes, and of the zeros that files are filled up with one bit in 32,000;
//! `THERMOCLINE_SEED=n` draws other bits where not all are tried, `THERMOCLINE_SECONDS=n` gives another time, and with
//! `THERMOCLINE_PROGRESS=directory` the next run goes on where this one was stopped.

#![cfg(test)]

mod check;
#[path = "../common/mod.rs"]
mod common;
mod disks;
mod harm;
mod repair;
mod store;

use check::Told;
use harm::Case;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use store::{End, Rest};
use thermocline_testing::{caught, counted, watched};

/// Seconds after which no more cases are begun, if nobody says. All of them take two idle cores about three minutes.
const BUDGET: u64 = 200;
/// One case takes milliseconds: after this it hangs.
const HANGS: Duration = Duration::from_secs(60);

fn torture() -> bool {
    std::env::var_os("THERMOCLINE_TORTURE").is_some_and(|v| v != "0")
}

/// A number that was asked for.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.trim().parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

fn seed() -> u64 {
    number("THERMOCLINE_SEED").unwrap_or(1)
}

/// How long the simulated part may take.
fn budget() -> Duration {
    let otherwise = if torture() { u64::MAX } else { BUDGET };
    Duration::from_secs(number("THERMOCLINE_SECONDS").unwrap_or(otherwise))
}

/// Where runs that are stopped leave off, if somebody asks for that: a list that takes hours is so come to the end of.
struct Progress(Option<PathBuf>);

impl Progress {
    fn of(name: &str) -> Progress {
        Progress(std::env::var_os("THERMOCLINE_PROGRESS").map(|dir| PathBuf::from(dir).join(name)))
    }

    /// The number of the first case that was not tried yet; 0 once all of them were.
    fn first(&self, cases: u64) -> u64 {
        let text = self.0.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        text.and_then(|t| t.trim().parse().ok()).filter(|n| *n < cases).unwrap_or(0)
    }

    /// Everything before this one was tried.
    fn note(&self, next: u64) {
        if let Some(path) = &self.0 {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, next.to_string()).unwrap();
        }
    }
}

#[test]
fn one_damaged_place_of_a_simulated_disk() {
    let rests = [End::Killed, End::Closed, End::HalfPublished, End::Published].map(Rest::build);
    let (cases, first): (Vec<(usize, Case)>, usize) = harm::cases(&rests, torture(), seed());
    let progress = Progress::of("damage");
    let from = progress.first(cases.len() as u64) as usize;
    let (next, stop, begun) = (AtomicUsize::new(from), AtomicBool::new(false), Instant::now());
    let (all, budget) = (torture(), budget());
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    let work = || {
        let (mut told, mut failures) = (Told::default(), Vec::new());
        while !stop.load(Ordering::Relaxed) && begun.elapsed() < budget {
            // A few at a time, for one watch.
            let from = next.fetch_add(64, Ordering::Relaxed);
            let Some(some) = cases.get(from..cases.len().min(from + 64)).filter(|s| !s.is_empty()) else {
                break;
            };
            let named = |(rest, case): &(usize, Case)| format!("{:?}, {case}", rests[*rest].end);
            let name = format!("one of the cases from \"{}\" on", named(&some[0]));
            watched(&name, HANGS, || {
                for (n, one) in some.iter().enumerate() {
                    let goes_on = all || (from + n).is_multiple_of(one.1.goes_on());
                    match caught(|| check::case(&rests[one.0], &one.1, goes_on, &mut told)) {
                        Ok(()) => {}
                        Err(why) => failures.push(format!("{}: {why}", named(one))),
                    }
                    told.ran += 1;
                }
            });
            if failures.len() > 20 {
                stop.store(true, Ordering::Relaxed);
            }
        }
        (told, failures)
    };
    let done: Vec<(Told, Vec<String>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    let (mut told, mut failures) = (Told::default(), Vec::new());
    for (some, of_thread) in done {
        told += some;
        failures.extend(of_thread);
    }
    println!(
        "seed {}: {} of {} cases from {from} on in {:?}: {told:?}",
        seed(),
        told.ran,
        cases.len(),
        begun.elapsed()
    );
    if failures.is_empty() {
        progress.note(from as u64 + told.ran);
    }
    counted("damaged places of a simulated disk", told.ran, cases.len() as u64, begun.elapsed());
    assert!(
        failures.is_empty(),
        "seed {}: {} cases failed:\n{}",
        seed(),
        failures.len(),
        failures.join("\n")
    );
    let left = cases.len() - from;
    assert!(told.ran > 2_000.min(left as u64 - 1), "the machine is too slow to say anything");
    let merge = std::env::var("CI").is_ok_and(|ci| ci == "true") && !torture();
    assert!(
        !merge || told.ran >= first as u64,
        "of the first {first} cases, which are to be tried before a change is merged, {} ran",
        told.ran
    );
    // A stretch of all of them may be of one part of one file.
    assert!(
        torture() || told.absent > 0 && told.named > 0 && told.lost > 0 && told.went_on > 0,
        "hardly anything happened: {told:?}"
    );
}
