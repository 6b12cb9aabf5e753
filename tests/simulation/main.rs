//! The store on a simulated disk: random work, faults, power cuts at any change, recoveries that are cut off as well.
//!
//! Everything follows from a seed. `THERMOCLINE_SEED=n` runs one, and prints what it does; `THERMOCLINE_SEEDS=a..b` a
//! range of them, however long that takes; `THERMOCLINE_SECONDS=n` others each time, for so long. Without any there are
//! ten thousand, of which those that have not begun after the time budget are left out, with a word about it.
//!
//! What is checked: no read returns what it must not (see `thermocline_testing::history`); after a crash the store
//! opens, and has of each key what it promised to have; nothing is damaged that nobody damaged; and what was found
//! after a crash stays while the store goes on.

#![cfg(test)]

#[path = "../common/mod.rs"]
mod common;
mod life;
mod plan;
mod rows;
mod together;
mod told;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use thermocline_testing::{caught, counted, watched};

/// Seeds of a run without a wish.
const SEEDS: Range<u64> = 0..10_000;
/// After this, no more are begun.
const BUDGET: Duration = Duration::from_secs(240);

/// A life takes some tens of milliseconds: after this it hangs.
const HANGS: Duration = Duration::from_secs(120);

/// Lives from this seed, and says of a life that ended badly, in whatever way, how to see it again.
fn live(seed: u64, told: &mut told::Told) -> Result<(), String> {
    let life = || caught(|| life::live(seed, told));
    watched(&format!("seed {seed}"), HANGS, life).map_err(|why| {
        format!(
            "seed {seed}: {why}\nagain: THERMOCLINE_SEED={seed} cargo test --test simulation -- --nocapture"
        )
    })
}

fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.trim().parse().unwrap_or_else(|_| panic!("{text}: not a number"))
}

/// The seeds to live, and for how long others are begun.
fn asked() -> (Range<u64>, Duration) {
    if let Ok(range) = std::env::var("THERMOCLINE_SEEDS") {
        let (from, to) = range.split_once("..").unwrap_or_else(|| panic!("{range}: write it as 0..1000"));
        return (parsed(from)..parsed(to), Duration::MAX);
    }
    if let Ok(seconds) = std::env::var("THERMOCLINE_SECONDS") {
        let now = std::time::UNIX_EPOCH.elapsed().map_or(1, |d| d.as_secs());
        // Nobody lives a million seeds a second, so none comes twice.
        return (now * 1_000_000..u64::MAX, Duration::from_secs(parsed(&seconds)));
    }
    (SEEDS, BUDGET)
}

/// A failure can be looked at again only if nothing but the seed decides: not the time, not the order of threads, not
/// the seeds of hash tables.
#[test]
fn a_seed_gives_the_same_life_twice() {
    let lived = |seed| {
        let mut told = told::Told::traced();
        live(seed, &mut told).unwrap_or_else(|e| panic!("{e}"));
        told.trace.unwrap_or_default()
    };
    for seed in 0..20 {
        let (a, b) = (lived(seed), lived(seed));
        let differs = a.iter().zip(&b).position(|(a, b)| a != b);
        assert!(
            a.len() > 50 && a.len() == b.len() && differs.is_none(),
            "seed {seed} at {differs:?}: {:?}",
            differs.map(|n| (&a[n], &b[n]))
        );
    }
}

/// Lives that went wrong once, and not for a fault in the plan of a life, as they were drawn then: a tier whose
/// containers cost as much besides their records as was kept of each was copied for ever.
const WENT_WRONG_EARLY: [u64; 1] = [1_795_388_241_006_138];

/// And with the operations and faults that were thought of later: a prefix was removed of which an item had expired before
/// it was written, and a crash brought back what it had replaced; the sync after the rename of a dropped generation failed
/// and forgot it, the next one succeeded, and a crash left the generation under its name, without files, as damage.
const WENT_WRONG: [u64; 2] = [3_142_256, 3_144_879];

/// And with the optimizer: a batch of which the last item found no room left the others in a container that was empty for
/// that, and was dropped to make room, again and again; nothing else was reclaimed, and the tier said that it was full.
const WENT_WRONG_LATELY: [u64; 1] = [2_459_047];

#[test]
fn lives_that_went_wrong_once() {
    for seed in WENT_WRONG_LATELY {
        let lived = life::live(seed, &mut told::Told::default());
        lived.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    for seed in WENT_WRONG_EARLY {
        let lived = life::live_without_later_thoughts(seed, &mut told::Told::default());
        lived.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    for seed in WENT_WRONG {
        let lived = life::live_without_the_optimizer(seed, &mut told::Told::default());
        lived.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn any_life_on_a_simulated_disk() {
    if let Ok(seed) = std::env::var("THERMOCLINE_SEED") {
        let mut told = told::Told::aloud();
        live(parsed(&seed), &mut told).unwrap_or_else(|e| panic!("{e}"));
        println!("{:?}", told.counts);
        return;
    }
    let (seeds, budget) = asked();
    let (next, failed, begun) = (AtomicU64::new(seeds.start), AtomicBool::new(false), Instant::now());
    // Twice as many as there are cores: a life waits for its HDD tier's writer now and then.
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get()) * 2;
    let work = || {
        let mut told = told::Told::default();
        let mut ran = 0u64;
        while !failed.load(Ordering::Relaxed) && begun.elapsed() < budget {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            ran += 1;
            if let Err(why) = live(seed, &mut told) {
                failed.store(true, Ordering::Relaxed);
                panic!("{why}");
            }
        }
        (ran, told)
    };
    let done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|t| t.join()).collect()
    });
    let mut told = told::Told::default();
    let mut ran = 0;
    for done in done {
        let (some, of_thread) = done.unwrap_or_else(|e| std::panic::resume_unwind(e));
        ran += some;
        told.add(of_thread);
    }
    let of = seeds.end - seeds.start;
    println!("{ran} seeds, from {}, in {:?}: {:?}", seeds.start, begun.elapsed(), told.counts);
    println!("faults: {:?}", told.faults);
    told.rows.rows().for_each(|(row, crashes)| println!("{crashes:>8} crashes: {row}"));
    if budget == BUDGET {
        counted("lives of the simulation", ran, of, begun.elapsed());
    }
    // Who checks what is handed in has the time for all of them.
    let least = if std::env::var_os("CI").is_some_and(|ci| ci == "true") { of } else { of.min(201) };
    assert!(ran >= least || budget != BUDGET, "the machine is too slow to say anything: {ran} lives");
    assert!(ran < 200 || told.counts.is_lively(), "hardly anything happened: {:?}", told.counts);
    assert!(ran < 1_000 || told.counts.is_wide(), "some things never happened: {:?}", told.counts);
    let never: Vec<_> = told.rows.rows().filter(|(_, crashes)| *crashes == 0).collect();
    assert!(ran < SEEDS.end || never.is_empty(), "no crash was of {never:?}");
}
