//! A tier that fails while the store is used: it is taken out of service, reads go on from the others, it is told of,
//! and it comes back, by itself or when it is asked for.

#![cfg(test)]

mod common;

use common::value;
use std::path::Path;
use std::sync::Arc;
use thermocline::testing::ManualClock;
use thermocline::{Cache, Error, Event, Received, Subscription, Tier};
use thermocline_storage::sim::{Fault, Op, SimFs};

const KIB: u64 = 1 << 10;
const DIRS: [&str; 3] = ["/s", "/h", "/c"];
/// Items in each tier.
const EACH: u64 = 8;

fn dir(tier: Tier) -> &'static Path {
    Path::new(DIRS[tier as usize - 1])
}

fn key(tier: Tier, no: u64) -> String {
    format!("{tier}/{no}")
}

fn bytes(tier: Tier, no: u64) -> bytes::Bytes {
    value(tier as u64 * 100 + no, 1, 600)
}

fn store() -> (SimFs, Arc<ManualClock>, Cache) {
    let fs = DIRS.iter().chain(&["/k"]).fold(SimFs::new(3), |fs, dir| fs.with_dir(Path::new(dir)));
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let mut b = Cache::builder().memory(64 * KIB).ssd(DIRS[0], 512 * KIB).hdd(DIRS[1], 1024 * KIB);
    b = b.cold(DIRS[2]).cold_limit(512 * KIB).catalog("/k");
    let s = &mut b.config_mut().storage;
    (s.write_buffer, s.block_size, s.write_stall_limit) = (64 * KIB, KIB, 0);
    (s.segment_size, s.generation_size, s.pack_size) = (Some(16 * KIB), Some(32 * KIB), Some(16 * KIB));
    (s.max_value_size, s.inflight) = (Some(8 * KIB), Some(1 << 20));
    let cache = b.simulated(Arc::new(fs.clone()), clock.clone()).open().unwrap();
    for tier in Tier::DISK {
        for no in 0..EACH {
            cache.put(key(tier, no), bytes(tier, no)).unwrap();
        }
    }
    cache.flush().unwrap();
    for tier in Tier::DISK {
        for no in 0..EACH {
            // Out of memory too.
            cache.demote(key(tier, no), tier).unwrap();
        }
    }
    // What stands on the highest tier is in memory as well, until it is opened again.
    (fs, clock, cache)
}

fn heard(events: &Subscription) -> Vec<(bool, Tier)> {
    let mut all = Vec::new();
    while let Ok(Received::Event(event)) = events.try_recv() {
        match event {
            Event::TierOutOfService { tier, .. } => all.push((false, tier)),
            Event::TierBack { tier, .. } => all.push((true, tier)),
            _ => {}
        }
    }
    all
}

fn out(cache: &Cache, tier: Tier) -> usize {
    cache.stats().tier(tier).unwrap().out_of_service.len()
}

#[test]
fn each_tier_goes_out_of_service_and_comes_back() {
    for tier in Tier::DISK {
        let (fs, clock, cache) = store();
        let events = cache.subscribe();
        for (round, by_hand) in [(0, false), (1, true)] {
            // The disk is pulled. Somebody reads what stands on it.
            fs.take_away(dir(tier));
            assert_eq!(cache.get(key(tier, round)).unwrap(), None, "{tier}");
            cache.step().ok();
            assert_eq!(out(&cache, tier), 1, "{tier}");
            assert_eq!(heard(&events), [(false, tier)]);
            let stats = cache.stats();
            let (path, why) = &stats.tier(tier).unwrap().out_of_service[0];
            assert!(path == dir(tier) && !why.is_empty(), "{path:?}: {why}");
            for other in Tier::DISK.into_iter().filter(|t| *t != tier) {
                let no = 2 + round;
                assert_eq!(
                    cache.get(key(other, no)).unwrap(),
                    Some(bytes(other, no)),
                    "{other} without {tier}"
                );
                assert_eq!(out(&cache, other), 0);
            }
            assert!(!cache.put_back(tier).unwrap(), "it is still away");
            assert_eq!(heard(&events), []);
            fs.heal();
            if by_hand {
                assert!(cache.put_back(tier).unwrap());
            } else {
                clock.advance(29_000);
                cache.step().ok();
                assert_eq!(out(&cache, tier), 1, "its time has not come");
                clock.advance(1_000);
                cache.step().unwrap();
            }
            assert_eq!(out(&cache, tier), 0);
            assert_eq!(heard(&events), [(true, tier)]);
            // Nothing is forgotten, and what was put meanwhile is kept.
            assert_eq!(cache.get(key(tier, round)).unwrap(), Some(bytes(tier, round)), "{tier}");
            cache.put("after", value(1, round, 100)).unwrap();
            cache.flush().unwrap();
        }
        assert_eq!(cache.stats().counts.damaged, 0);
        cache.close().unwrap();
        assert!(matches!(cache.put_back(tier), Err(Error::Closed)));
    }
}

#[test]
fn a_tier_that_takes_no_writes_is_read_on() {
    for tier in Tier::DISK {
        let (fs, _, cache) = store();
        let events = cache.subscribe();
        fs.fail(Fault::on_any(&[Op::Write, Op::Create, Op::Sync]).below(dir(tier)));
        for no in 0..4 {
            let name = format!("new/{no}");
            cache.put(&name, value(no, 2, 700)).unwrap();
            // It fails, and so does what it was to be written by.
            let _ = cache.flush();
            let _ = cache.demote(&name, tier);
            cache.step().ok();
        }
        assert_eq!((out(&cache, tier), heard(&events)), (1, vec![(false, tier)]));
        for of in Tier::DISK {
            assert_eq!(cache.get(key(of, 1)).unwrap(), Some(bytes(of, 1)), "{of} without {tier}");
        }
        fs.heal();
        assert!(cache.put_back(tier).unwrap());
        assert_eq!(heard(&events), [(true, tier)]);
        for no in 0..4 {
            assert_eq!(cache.get(format!("new/{no}")).unwrap(), Some(value(no, 2, 700)));
        }
        cache.flush().unwrap();
        cache.close().unwrap();
    }
}

#[test]
fn one_bad_sector_takes_no_tier_out() {
    for tier in Tier::DISK {
        let (fs, _, cache) = store();
        fs.fail(Fault::on(Op::Read).below(dir(tier)));
        assert_eq!(cache.get(key(tier, 0)).unwrap(), None);
        cache.step().unwrap();
        assert_eq!(out(&cache, tier), 0, "{tier}: it can be written to");
        fs.heal();
        assert_eq!(cache.get(key(tier, 0)).unwrap(), Some(bytes(tier, 0)));
        assert!(matches!(cache.put_back(Tier::Memory), Err(Error::NoSuchTier(Tier::Memory))));
    }
}
