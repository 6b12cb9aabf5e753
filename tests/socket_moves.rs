//! What other processes ask of an open store while its items move, are overwritten and removed: what is listed is there
//! once, and nothing is taken for damage.

#![cfg(test)]

mod common;

use common::{Dice, parse, value};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use thermocline::remote::{Error, OpenStore};
use thermocline::testing::change;
use thermocline::{Cache, Tier};

const MIB: u64 = 1 << 20;
/// Items that stay.
const STAY: u64 = 200;
/// Items that come and go.
const GO: u64 = 200;
/// It goes on so long at least, and until enough was asked.
const TIME: Duration = Duration::from_secs(4);
/// But not for ever.
const LONGEST: Duration = Duration::from_secs(120);

/// Demotes and promotes all of them; overwrites all, and removes those that do not stay.
fn work(cache: &Cache, ended: &AtomicBool, seed: u64) {
    let mut dice = Dice::new(seed);
    while !ended.load(Ordering::Relaxed) {
        let no = dice.below(STAY + GO);
        let key = format!("{}/{no}", if no < STAY { "stay" } else { "go" });
        match dice.below(10) {
            0..=2 => cache.put(&key, value(no, dice.roll(), dice.below(4_000) as usize)).unwrap(),
            3 if no >= STAY => drop(cache.remove(&key).unwrap()),
            4..=5 => drop(cache.demote(&key, Tier::DISK[dice.below(3) as usize]).unwrap()),
            6 => drop(cache.promote(&key, Tier::Ssd).unwrap()),
            7 if dice.one_in(20) => cache.flush().unwrap(),
            7 => drop(cache.apply(&change(|n| dice.below(n)))),
            8 if dice.one_in(50) => cache.step().unwrap(),
            _ => {
                let got = cache.get(&key).unwrap();
                assert!(
                    got.is_none_or(|v| parse(&v).is_some_and(|(of, _)| of == no)),
                    "{key}: a wrong value"
                );
            }
        }
    }
}

#[test]
fn a_verification_and_a_list_beside_moves_overwrites_and_removals_find_nothing_wrong() {
    let dir = common::scratch();
    let mut builder = Cache::builder().memory(MIB).ssd(dir.path().join("s"), 24 * MIB);
    builder = builder.hdd(dir.path().join("h"), 32 * MIB).cold(dir.path().join("c"));
    // The turns are drawn here.
    builder.config_mut().optimizer.enabled = false;
    let s = &mut builder.config_mut().storage;
    (s.segment_size, s.generation_size, s.pack_size) = (Some(MIB), Some(MIB), Some(MIB));
    let cache = builder.open().unwrap();
    for no in 0..STAY {
        cache.put(format!("stay/{no}"), value(no, 1, 1_000)).unwrap();
    }
    cache.flush().unwrap();
    let store = OpenStore::find([dir.path().join("s")]).unwrap();
    let ended = AtomicBool::new(false);
    let (verified, listed) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|n| {
                let (cache, ended) = (&cache, &ended);
                scope.spawn(move || work(cache, ended, n))
            })
            .collect();
        let askers: Vec<_> = (0..2)
            .map(|n| {
                let (store, ended, verified, listed) = (&store, &ended, &verified, &listed);
                scope.spawn(move || {
                    while !ended.load(Ordering::Relaxed) {
                        if n == 0 {
                            let report = match store.verify(|_| {}) {
                                Err(Error::Refused { .. }) => continue,
                                report => report.unwrap(),
                            };
                            assert!(report.is_clean(), "{report:?}");
                            // What waits to be written is on no disk.
                            assert!(report.items > 0, "{report:?}");
                            verified.fetch_add(1, Ordering::Relaxed);
                        } else {
                            let mut keys = BTreeSet::new();
                            let unread = store.list(b"", |item| {
                                assert!(keys.insert(item.key), "it was there twice");
                                ControlFlow::Continue(())
                            });
                            assert_eq!(unread.unwrap(), 0);
                            let stay = keys.iter().filter(|k| k.starts_with(b"stay/")).count() as u64;
                            assert_eq!(stay, STAY, "one that was there all the while is not listed");
                            listed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        let begun = Instant::now();
        let all = || workers.iter().chain(&askers);
        let enough = || verified.load(Ordering::Relaxed) > 2 && listed.load(Ordering::Relaxed) > 2;
        let is_over = || begun.elapsed() > LONGEST || begun.elapsed() > TIME && enough();
        while !is_over() && !all().any(|t| t.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        ended.store(true, Ordering::Relaxed);
    });
    let (verified, listed, stats) = (verified.into_inner(), listed.into_inner(), cache.stats());
    println!("{verified} verifications and {listed} lists, beside {:?}", stats.counts);
    assert!(verified > 2 && listed > 2, "hardly anything was asked");
    assert_eq!((stats.counts.damaged, stats.counts.unreachable), (0, 0));
    assert!(cache.verify().unwrap().is_clean());
    cache.close().unwrap();
}
