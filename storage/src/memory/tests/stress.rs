//! Many threads: versions of a key only rise, values are those of their version, limits hold at every moment.

use super::*;
use std::sync::atomic::AtomicBool;

const KEYS: u64 = 400;

fn value(i: u64, version: u64, len: usize) -> Vec<u8> {
    let mut v = Vec::with_capacity(16 + len);
    v.extend_from_slice(&i.to_le_bytes());
    v.extend_from_slice(&version.to_le_bytes());
    v.resize(16 + len, (i ^ version) as u8);
    v
}

fn random(x: &mut u64) -> u64 {
    *x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *x >> 33
}

fn check(i: u64, hit: &Hit) {
    assert_eq!(hit.value[..8], i.to_le_bytes());
    assert_eq!(hit.value[8..16], hit.version.0.to_le_bytes());
    assert!(hit.value[16..].iter().all(|&b| b == (i ^ hit.version.0) as u8));
}

fn reader(tier: &MemoryTier, published: &[AtomicU64], mut seed: u64, stop: &AtomicBool) {
    let mut seen = vec![0u64; KEYS as usize];
    while !stop.load(Relaxed) {
        let i = random(&mut seed) % KEYS;
        // Whatever a put returned before this lookup began is not undone.
        let at_least = published[i as usize].load(std::sync::atomic::Ordering::Acquire);
        if let Lookup::Hit(hit) = tier.get(ident(i), &i.to_le_bytes(), 0) {
            check(i, &hit);
            let seen = &mut seen[i as usize];
            assert!(hit.version.0 >= *seen && hit.version.0 >= at_least, "an older version came back");
            *seen = hit.version.0;
        }
    }
}

fn run(policy: MemoryPolicy, max_bytes: u64, max_items: u64) {
    let tier = tier(max_bytes, max_items, policy, Some(4));
    let stop = AtomicBool::new(false);
    let locks: Vec<Mutex<u64>> = (0..KEYS).map(|_| Mutex::new(0)).collect();
    let published: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|s| {
        let (tier, stop, locks, published) = (&tier, &stop, &locks, &published);
        let writers: Vec<_> = (1..=3)
            .map(|seed| {
                s.spawn(move || {
                    let (mut seed, mut out) = (seed, Vec::new());
                    for _ in 0..8_000 {
                        let i = random(&mut seed) % KEYS;
                        let mut version = locks[i as usize].lock();
                        *version += 1;
                        if random(&mut seed).is_multiple_of(8) {
                            tier.remove(ident(i));
                        } else {
                            let len = (random(&mut seed) % 600) as usize;
                            let key = i.to_le_bytes();
                            let new = NewEntry {
                                version: Version(*version),
                                ..new(&key, i, value(i, *version, len))
                            };
                            tier.insert(new, 0, &mut out);
                        }
                        published[i as usize].store(*version, std::sync::atomic::Ordering::Release);
                        out.clear();
                    }
                })
            })
            .collect();
        for seed in 7..9 {
            s.spawn(move || reader(tier, published, seed, stop));
        }
        s.spawn(move || {
            let mut out = Vec::new();
            while !stop.load(Relaxed) {
                let used = tier.budget.used();
                assert!(used.bytes <= max_bytes && used.items <= max_items);
                tier.shrink_to(max_bytes / 2, &mut out);
                tier.expire(1, 100, &mut out);
                std::thread::sleep(std::time::Duration::from_millis(2));
                tier.set_limits(max_bytes / 2, max_items / 2, &mut out);
                tier.set_limits(max_bytes, max_items, &mut out);
                tier.set_setting(Setting::ALL[out.len() % 6]);
                out.clear();
            }
        });
        let results: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        stop.store(true, Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    tier.audit();
    assert!(tier.stats().items > 0);
}

#[test]
fn versions_only_rise_under_adaptive() {
    run(MemoryPolicy::Adaptive, 60_000, 1000);
    run(MemoryPolicy::Adaptive, 1 << 30, 100);
}

#[test]
fn versions_only_rise_under_lru() {
    run(MemoryPolicy::Lru, 60_000, 1000);
    run(MemoryPolicy::Lru, 1 << 30, 100);
}

/// A value that is being replaced by ever larger ones is there at every moment, although each needs room.
#[test]
fn a_reader_never_finds_the_gap_between_two_values() {
    for policy in [MemoryPolicy::Adaptive, MemoryPolicy::Lru] {
        let tier = tier(200_000, 1000, policy, Some(4));
        let stop = AtomicBool::new(false);
        let mut out = Vec::new();
        tier.insert(new(&1u64.to_le_bytes(), 1, value(1, 1, 0)), 0, &mut out);
        std::thread::scope(|s| {
            let (tier, stop) = (&tier, &stop);
            let reader = s.spawn(move || {
                while !stop.load(Relaxed) {
                    let Lookup::Hit(_) = tier.get(ident(1), &1u64.to_le_bytes(), 0) else { return false };
                }
                true
            });
            for round in 0..20_000u64 {
                let i = 2 + round;
                tier.insert(new(&i.to_le_bytes(), i, value(i, 1, 500)), 0, &mut out);
                let replacement = value(1, round, (round % 1000) as usize * 20);
                let key = 1u64.to_le_bytes();
                assert!(tier.insert(new(&key, 1, replacement), 0, &mut out));
                out.clear();
            }
            stop.store(true, Relaxed);
            assert!(reader.join().unwrap(), "{policy:?}");
        });
    }
}
