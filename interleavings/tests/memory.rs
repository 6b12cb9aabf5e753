//! The memory tier: entries come, are found, replaced, evicted and removed by several threads at once.

#![cfg(test)]

use bytes::Bytes;
use shuttle::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use thermocline_interleavings::explore;
use thermocline_storage::memory::{
    ENTRY_OVERHEAD, Evicted, Lookup, MemoryConfig, MemoryPolicy, MemoryTier, NewEntry, NoHeat,
};
use thermocline_storage::pair::Pair;
use thermocline_storage::{ContentType, Ident, Version};

const VALUE: usize = 64;
/// With this an entry weighs twice as much.
const TWICE: usize = 2 * VALUE + 8 + ENTRY_OVERHEAD as usize;

fn key(n: u64) -> [u8; 8] {
    n.to_le_bytes()
}

/// Spread over the shards, which go by a mix of all bits.
fn ident(n: u64) -> Ident {
    Ident::from_bits(n)
}

fn entry(n: u64, version: u64) -> NewEntry {
    sized(n, version, VALUE)
}

fn sized(n: u64, version: u64, len: usize) -> NewEntry {
    NewEntry {
        ident: ident(n),
        pair: Pair::new(&key(n), &Bytes::from(vec![version as u8; len])),
        version: Version(version),
        content_type: ContentType::Binary,
        expires_at: 0,
        dirty: true,
        prefetched: false,
        force: true,
    }
}

fn tier(policy: MemoryPolicy, items: u64) -> MemoryTier {
    let max_bytes = items * (ENTRY_OVERHEAD + 8 + VALUE as u64);
    MemoryTier::new(&MemoryConfig { max_bytes, max_items: items, policy, shards: Some(2) }, Arc::new(NoHeat))
}

/// What is found of a key: its version, whose bytes all are.
fn find(tier: &MemoryTier, n: u64) -> Option<u64> {
    match tier.get(ident(n), &key(n), 0) {
        Lookup::Hit(hit) => {
            assert!(hit.value.iter().all(|b| u64::from(*b) == hit.version.0), "half of another value");
            Some(hit.version.0)
        }
        Lookup::Miss => None,
        Lookup::Expired => panic!("nothing expires"),
    }
}

/// For a tier at rest.
fn is_within_limits(tier: &MemoryTier) {
    let s = tier.stats();
    assert!(s.weight <= s.max_bytes && s.items <= s.max_items, "{s:?}");
}

/// Room for three, and more than that on its way in, some of twice the size: what came is there or in somebody's hands,
/// and no room is lost by who had made some and got too little.
fn crowded(policy: MemoryPolicy) {
    let tier = Arc::new(tier(policy, 3));
    let put = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..3)
        .map(|no| {
            let (tier, put) = (tier.clone(), put.clone());
            thread::spawn(move || {
                let mut out: Vec<Evicted> = Vec::new();
                let mut removed = 0;
                for n in 0..3 {
                    let len = if n == 1 { TWICE } else { VALUE };
                    tier.insert(sized(no * 10 + n, 1, len), 0, &mut out);
                    put.fetch_add(1, SeqCst);
                    find(&tier, n * 10);
                }
                removed += u64::from(tier.remove(ident(no * 10)).is_some());
                out.len() as u64 + removed
            })
        })
        .collect();
    let gone: u64 = writers.into_iter().map(|w| w.join().unwrap()).sum();
    is_within_limits(&tier);
    let resident: Vec<_> = (0..tier.shard_count()).flat_map(|no| tier.snapshot(no)).collect();
    assert_eq!(resident.len() as u64, tier.stats().items);
    assert_eq!(resident.len() as u64 + gone, put.load(SeqCst), "something left without a word");
    // Nothing stays reserved: the tier can be filled.
    for n in 100..103 {
        assert!(tier.insert(entry(n, 1), 0, &mut Vec::new()));
    }
    assert_eq!(tier.stats().items, 3, "room is missing");
}

/// One key is replaced while others read it and others need room: no reader goes back, nor finds the gap between two
/// values; no value of it is found after its removal.
fn replaced(policy: MemoryPolicy) {
    const LAST: u64 = 4;
    let tier = Arc::new(tier(policy, 8));
    let published = Arc::new(AtomicU64::new(1));
    tier.insert(entry(1, 1), 0, &mut Vec::new());
    let writer = {
        let (tier, published) = (tier.clone(), published.clone());
        thread::spawn(move || {
            for version in 2..=LAST {
                tier.insert(entry(1, version), 0, &mut Vec::new());
                published.store(version, SeqCst);
            }
            let removed = tier.remove(ident(1)).map(|e| e.version.0);
            assert_eq!(removed, Some(LAST));
            published.store(LAST + 1, SeqCst);
        })
    };
    let readers: Vec<_> = (0..2)
        .map(|no| {
            let (tier, published) = (tier.clone(), published.clone());
            thread::spawn(move || {
                let mut seen = 0;
                for n in 0..4 {
                    let at_least = published.load(SeqCst);
                    let found = find(&tier, 1);
                    match found {
                        Some(version) => {
                            assert!(at_least <= LAST, "found after its removal");
                            assert!(
                                version >= seen && version >= at_least,
                                "{version} after {seen}, {at_least}"
                            );
                            seen = version;
                        }
                        // It is being removed, at the earliest.
                        None => assert!(published.load(SeqCst) >= LAST, "the gap between two values"),
                    }
                    // There is room for it.
                    tier.insert(entry(10 + no * 2 + n % 2, 1), 0, &mut Vec::new());
                    tier.set_clean(ident(10), Version(1));
                }
            })
        })
        .collect();
    writer.join().unwrap();
    readers.into_iter().for_each(|r| r.join().unwrap());
    assert_eq!(find(&tier, 1), None);
    is_within_limits(&tier);
}

#[test]
fn limits_hold_and_nothing_leaves_silently() {
    explore("a crowded memory tier, adaptive", || crowded(MemoryPolicy::Adaptive));
    explore("a crowded memory tier, lru", || crowded(MemoryPolicy::Lru));
}

#[test]
fn a_value_follows_the_other_without_a_gap() {
    explore("a key that is replaced", || replaced(MemoryPolicy::Adaptive));
}
