//! Single behaviours, each with an example.

use super::*;

fn put(tier: &MemoryTier, i: u64, len: usize) -> Vec<Evicted> {
    let mut out = Vec::new();
    tier.insert(new(&i.to_le_bytes(), i, vec![0; len]), 0, &mut out);
    out
}

fn hit(tier: &MemoryTier, i: u64) -> bool {
    matches!(tier.get(ident(i), &i.to_le_bytes(), 0), Lookup::Hit(_))
}

#[test]
fn threads_may_share_it() {
    fn shared<T: Send + Sync>() {}
    shared::<MemoryTier>();
}

/// Many entries, all used to the limit: an eviction still takes a bounded number of steps, and takes one out.
#[test]
fn an_eviction_ends_where_everything_is_in_use() {
    let t = tier(1 << 30, 5000, MemoryPolicy::Adaptive, Some(1));
    for i in 0..5000 {
        put(&t, i, 1);
        for _ in 0..4 {
            assert!(hit(&t, i));
        }
    }
    let gone = put(&t, 9000, 1);
    assert_eq!(gone.len(), 1);
    let untouched = (0..5000u64).filter(|&i| {
        let hash = mix(ident(i));
        let mut shard = t.shards[0].write();
        shard.update(ident(i), hash, |e| e.refs() == 3).unwrap_or(false)
    });
    let untouched = untouched.count();
    assert!(untouched > 4500, "the hand went over a part only: {untouched}");
    assert!(untouched < 4900, "and took references from what it met: {untouched}");
    t.audit();
}

#[test]
fn shards_follow_the_limits() {
    let count = |bytes, items| tier(bytes, items, MemoryPolicy::Adaptive, None).shard_count();
    assert_eq!(count(1 << 20, 1 << 30), 1);
    assert_eq!(count(1 << 40, 10), 1);
    assert_eq!(count(512 << 20, 100_000), 16);
    assert_eq!(count(1 << 40, 1 << 30), 64);
    assert_eq!(tier(1, 1, MemoryPolicy::Lru, Some(5)).shard_count(), 8);
    assert_eq!(tier(1, 1, MemoryPolicy::Lru, Some(0)).shard_count(), 1);
}

#[test]
fn a_small_tier_in_many_shards_is_used_to_its_limits() {
    for policy in [MemoryPolicy::Adaptive, MemoryPolicy::Lru] {
        let by_items = tier(1 << 30, 10, policy, Some(64));
        let by_bytes = tier(entry::weight(8, 100) * 10, 1 << 30, policy, Some(64));
        for t in [&by_items, &by_bytes] {
            for i in 0..1000 {
                put(t, i, 100);
                t.audit();
            }
            assert_eq!(t.stats().items, 10, "{policy:?}");
        }
    }
}

#[test]
fn one_entry_may_be_as_large_as_the_tier_and_no_larger() {
    for policy in [MemoryPolicy::Adaptive, MemoryPolicy::Lru] {
        let max = 10 << 20;
        let t = tier(max, 1 << 30, policy, Some(16));
        for i in 0..1000 {
            put(&t, i, 1000);
        }
        let largest = (max - 8 - ENTRY_OVERHEAD) as usize;
        assert_eq!(put(&t, 5000, largest).len(), 1000);
        assert!(hit(&t, 5000) && t.stats().items == 1);
        let mut out = Vec::new();
        let too_large = NewEntry { dirty: true, ..new(b"12345678", 5000, vec![1; largest + 1]) };
        assert!(!t.insert(too_large, 0, &mut out));
        let reasons: Vec<_> = out.iter().map(|e| (e.reason, e.dirty)).collect();
        assert_eq!(reasons, [(Reason::Displaced, false), (Reason::NotAdmitted, true)]);
        assert!(!t.contains(ident(5000)), "never a stale value");
        t.audit();
    }
}

#[test]
fn a_large_entry_nobody_forces_is_admitted_at_its_second_sight() {
    let t = tier(1 << 20, 1000, MemoryPolicy::Adaptive, None);
    let mut out = Vec::new();
    let large = || NewEntry { force: false, ..new(b"k", 1, vec![1; 100_000]) };
    assert!(!t.insert(large(), 0, &mut out) && out.is_empty());
    assert!(t.insert(large(), 0, &mut out));
    let small = NewEntry { force: false, ..new(b"l", 2, vec![1; 1000]) };
    assert!(t.insert(small, 0, &mut out));
}

#[test]
fn the_key_is_compared_and_not_only_its_identity() {
    let t = tier(1 << 20, 10, MemoryPolicy::Adaptive, None);
    let mut out = Vec::new();
    assert!(t.insert(new(b"a", 7, "of a"), 0, &mut out));
    assert_eq!(t.get(ident(7), b"b", 0), Lookup::Miss);
    assert!(t.peek(ident(7), b"b", 0).is_none());
    assert!(t.insert(new(b"b", 7, "of b"), 0, &mut out));
    assert_eq!((out.len(), out[0].reason, &out[0].key[..]), (1, Reason::Displaced, &b"a"[..]));
    assert_eq!(t.get(ident(7), b"a", 0), Lookup::Miss);
    assert!(matches!(t.get(ident(7), b"b", 0), Lookup::Hit(h) if h.value == "of b"));
}

#[test]
fn a_replacement_keeps_the_number_of_entries_and_evicts_nobody_else() {
    for policy in [MemoryPolicy::Adaptive, MemoryPolicy::Lru] {
        let t = tier(1 << 20, 3, policy, Some(4));
        for i in 0..3 {
            put(&t, i, 10);
        }
        for round in 0..100 {
            assert!(put(&t, round % 3, 10 + round as usize).is_empty());
        }
        assert_eq!(t.stats().items, 3);
    }
}

#[test]
fn uses_reach_the_heat_sink() {
    for policy in [MemoryPolicy::Adaptive, MemoryPolicy::Lru] {
        let heat = Arc::new(Counted::default());
        let t = MemoryTier::new(&config(1 << 20, 50, policy, Some(2)), heat.clone());
        for i in 0..50 {
            put(&t, i, 10);
        }
        for _ in 0..5 {
            assert!(hit(&t, 7));
        }
        assert!(heat.0.lock().is_empty(), "a hit itself tells nobody");
        let removed = t.remove(ident(7)).unwrap();
        assert_eq!((removed.hits, heat.0.lock().get(&7).copied()), (5, Some(5)));
        for _ in 0..4 {
            assert!(hit(&t, 8));
        }
        put(&t, 8, 20);
        assert_eq!(heat.0.lock().get(&8).copied(), Some(4), "at replacement");
        for i in 0..50 {
            hit(&t, i);
        }
        for i in 100..1000 {
            put(&t, i, 10);
        }
        let reported = (0..50).filter(|i| ![7, 8].contains(i) && heat.0.lock().contains_key(i)).count();
        assert!(reported > 40, "when the hand passes, or at eviction: {reported}");
        for i in 0..50 {
            t.remove(ident(i));
        }
        let heat = heat.0.lock();
        for i in (0..50).filter(|i| ![7, 8].contains(i)) {
            assert_eq!(heat.get(&i).copied(), Some(1), "each use once, {policy:?}");
        }
    }
}

#[test]
fn the_reaper_goes_on_where_it_stopped_and_finds_all() {
    let t = tier(1 << 30, 1 << 20, MemoryPolicy::Adaptive, Some(8));
    let mut out = Vec::new();
    for i in 0u64..5000 {
        let key = i.to_le_bytes();
        let expires_at = if i % 2 == 0 { 10 } else { 0 };
        t.insert(NewEntry { expires_at, ..new(&key, i, "v") }, 0, &mut out);
    }
    assert_eq!(t.expire(9, usize::MAX, &mut out), 0);
    let (mut removed, mut steps) = (0, 0);
    while removed < 2500 {
        let n = t.expire(10, 100, &mut out);
        assert!(n <= 100);
        removed += n;
        steps += 1;
        assert!(steps < 300, "{removed} after {steps} steps");
    }
    assert_eq!((removed, out.len(), t.stats().items), (2500, 2500, 2500));
    assert_eq!(t.expire(10, usize::MAX, &mut out), 0);
    t.audit();
}

#[test]
fn memory_of_structures_follows_the_entries_down() {
    for policy in [MemoryPolicy::Adaptive, MemoryPolicy::Lru] {
        let t = tier(64 << 20, 1 << 30, policy, Some(4));
        let empty = t.stats().structure_bytes;
        for i in 0..200_000 {
            put(&t, i, 10);
        }
        let full = t.stats();
        assert!(full.structure_bytes <= full.items * ENTRY_OVERHEAD + empty, "{full:?}");
        t.shrink_to(1 << 20, &mut Vec::new());
        for i in 200_000..200_060 {
            put(&t, i, 1 << 20);
        }
        let few = t.stats();
        assert!(few.weight > 60 << 20 && few.items < 6000, "{few:?}");
        assert!(few.structure_bytes < empty + (2 << 20), "{policy:?}: {few:?}, {empty} when empty");
        t.audit();
    }
}

#[test]
fn settings_can_change_while_it_runs() {
    let t = tier(1 << 30, 500, MemoryPolicy::Adaptive, Some(2));
    let mut x = 1u64;
    for setting in Setting::ALL.iter().cycle().take(12) {
        assert!(t.set_setting(*setting));
        for _ in 0..3000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let i = (x >> 33) % 2000 * ((x >> 50) % 3) / 2;
            if !hit(&t, i) {
                put(&t, i, 10);
            }
        }
        t.audit();
        assert_eq!(t.stats().items, 500);
        let (window, all) = t.shards.iter().fold((0, 0), |(w, a), s| match &s.read().order {
            Order::Clock(c) => (w + c.shares()[0].0, a + c.shares()[0].0 + c.shares()[1].0),
            Order::Lru(_) => (w, a),
        });
        let share = window as f32 / all as f32;
        assert!((share - setting.window).abs() < 0.03, "{share} of {}", setting.window);
    }
    let mad = Setting { window: f32::NAN, ghost: -1.0, max_ref: 200, ..Setting::START };
    assert!(t.set_setting(mad));
    let sane = t.setting().unwrap();
    assert_eq!((sane.window, sane.ghost, sane.max_ref), (0.0, 0.0, 3));
    assert!(!tier(1, 1, MemoryPolicy::Lru, None).set_setting(Setting::START));
}

/// A large entry takes its room from whatever shards come first; once it is gone they are level again.
#[test]
fn shards_become_level_again() {
    let t = tier(4 << 20, 1 << 30, MemoryPolicy::Adaptive, Some(8));
    for i in 0..30_000 {
        put(&t, i, 100);
        if i == 15_000 {
            put(&t, 1 << 40, 3 << 20);
            t.remove(ident(1 << 40));
        }
    }
    let held: Vec<u64> = t.loads.iter().map(|l| l.bytes.load(Relaxed)).collect();
    let (least, most) = (*held.iter().min().unwrap(), *held.iter().max().unwrap());
    assert!(most < least + least / 10, "{held:?}");
    t.audit();
}

/// Evicts what is idle until a whole walk finds nothing: entries move to free slots behind a walk that takes some out.
fn evict_all_idle(tier: &MemoryTier, beats: u16, at_a_time: usize, out: &mut Vec<Evicted>) -> usize {
    let (mut removed, mut since) = (0, 0);
    for _ in 0..10_000 {
        let (some, ended) = tier.evict_idle(beats, at_a_time, out);
        removed += some;
        since += some;
        if ended && since == 0 {
            return removed;
        }
        if ended {
            since = 0;
        }
    }
    panic!("it comes to no end");
}

#[test]
fn what_is_on_disk_and_idle_leaves_early_and_nothing_else_does() {
    for policy in [MemoryPolicy::Adaptive, MemoryPolicy::Lru] {
        let t = tier(1 << 30, 5000, policy, Some(4));
        let mut out = Vec::new();
        for n in 0..3000u64 {
            let entry = new(&n.to_le_bytes(), n, vec![0; 20]);
            assert!(t.insert(NewEntry { dirty: n % 3 == 0, ..entry }, 0, &mut out));
        }
        t.beat();
        t.beat();
        assert!((0..3000).filter(|n| n % 3 == 1).all(|n| hit(&t, n)));
        t.beat();
        assert_eq!(t.most_idle(1000), Some(3));
        assert_eq!(t.evict_idle(4, 1 << 20, &mut out), (0, true), "nobody is idle for so long");
        assert_eq!(evict_all_idle(&t, 3, 100, &mut out), 1000);
        assert!(out.iter().all(|e| e.reason == Reason::Idle && !e.dirty && e.ident.bits() % 3 == 2));
        assert_eq!((out.len(), t.stats().items), (1000, 2000));
        // What was dirty is on disk now; and what was used is idle in its turn.
        assert!(t.set_clean(ident(0), Version(1)));
        assert_eq!(evict_all_idle(&t, 3, 1 << 20, &mut out), 1);
        t.beat();
        t.beat();
        assert_eq!(evict_all_idle(&t, 3, 1 << 20, &mut out), 1000);
        t.audit();
    }
}
