//! Random histories against the model, and threads against each other.

use super::*;
use crate::vfs::RealFs;
use proptest::prelude::*;
use std::sync::atomic::AtomicU32;

fn op(faults: bool) -> impl Strategy<Value = Op> {
    let i = 0..12u8;
    prop_oneof![
        8 => (i.clone(), any::<bool>()).prop_map(|(i, q)| Op::Put(i, q)),
        5 => any::<u8>().prop_map(Op::Take),
        8 => any::<u8>().prop_map(Op::Commit),
        2 => any::<u8>().prop_map(Op::Requeue),
        4 => (i.clone(), any::<bool>()).prop_map(|(i, g)| Op::Own(i, g)),
        3 => i.clone().prop_map(Op::Remove),
        4 => (i.clone(), any::<bool>()).prop_map(|(i, s)| Op::Swap(i, s)),
        1 => i.clone().prop_map(Op::Kill),
        3 => (i.clone(), any::<u8>()).prop_map(|(i, ms)| Op::Expiry(i, ms)),
        1 => Just(Op::Enqueue),
        1 => Just(Op::Clear),
        4 => Just(Op::Sync),
        2 => Just(Op::Checkpoint),
        2 => Just(Op::NewContainer),
        2 => Just(Op::Drop),
        2 => any::<u64>().prop_map(Op::Reopen),
        3 => (0..40u8, any::<bool>()).prop_map(move |(n, once)| {
            // Real files do not fail to order.
            if faults { Op::Fault(n, once) } else { Op::Sync }
        }),
    ]
}

fn history(mut world: World, ops: Vec<Op>) {
    world.start().unwrap();
    for op in ops {
        world.run(op);
        world.check();
    }
    world.reopen(1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// On a disk that fails and loses its power.
    #[test]
    fn a_random_history_is_what_the_model_says(ops in prop::collection::vec(op(true), 1..120)) {
        history(World::new(Some(disk()), Path::new("/c")), ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// On real files.
    #[test]
    fn a_random_history_on_real_files(ops in prop::collection::vec(op(false), 1..80)) {
        let dir = tempfile::tempdir().unwrap();
        history(World::new(None, dir.path()), ops);
    }
}

#[test]
fn the_write_buffer_is_charged_for_what_is_queued_or_in_flight_and_for_nothing_else() {
    let mem = disk();
    let (cat, _) = open(Arc::new(mem), Path::new("/c"), 1).unwrap();
    let b = &cat.buffer;
    let lazy = cat.lock(id(1)).put(id(1), value(1), false);
    assert_eq!(b.bytes(), 0, "it waits for eviction");
    cat.enqueue(id(1));
    cat.enqueue(id(1));
    assert_eq!((b.bytes(), b.queued()), (lazy.bytes(), 1));
    let one = lazy.bytes();
    drop(lazy);
    let flying = cat.take_dirty(9, u64::MAX);
    assert_eq!((flying.len(), b.bytes(), b.queued()), (1, one, 0));
    assert!(b.oldest_ms().is_some(), "in flight counts as not journaled");
    cat.lock(id(1)).put(id(1), value(1), true);
    assert_eq!(b.bytes(), 2 * one, "the one in flight and the one that waits");
    cat.lock(id(1)).remove(id(1));
    assert_eq!(b.bytes(), one);
    let place = Place::new(container(&cat).no, 1).unwrap();
    assert!(!cat.lock(id(1)).commit(id(1), &flying[0].value, place), "a removal came first");
    drop(flying);
    b.landed();
    assert_eq!(b.bytes(), 0);
    assert_eq!(b.queued(), 1, "the removed one still stands in the queue");
    assert!(cat.take_dirty(9, u64::MAX).is_empty());
    assert_eq!(b.oldest_ms(), None, "nothing is waited for");
    assert_eq!(cat.stats().dirty, 0);
    assert!(cat.shards.iter().all(|s| s.read().dirty.is_empty()));
}

#[test]
fn what_cannot_be_written_goes_back_in_order() {
    let (cat, _) = open(Arc::new(disk()), Path::new("/c"), 1).unwrap();
    for i in 0..5 {
        cat.lock(id(i)).put(id(i), value(1), true);
    }
    let flying = cat.take_dirty(3, u64::MAX);
    for f in flying.iter().rev() {
        cat.lock(f.ident).requeue(f.ident, &f.value, f.since);
    }
    let again: Vec<_> = cat.take_dirty(9, u64::MAX).iter().map(|f| f.ident).collect();
    assert_eq!(again, (0..5).map(id).collect::<Vec<_>>());
}

/// A batch fails while its key is put again: after a crash both were gone, so what waits is as old as the first.
#[test]
fn what_replaces_a_write_that_fails_takes_over_its_age() {
    let clock = Arc::new(ManualClock::new(1000));
    let how = setup(Arc::new(disk()), Path::new("/c"), 1);
    let (cat, _) = open_with(Setup { clock: Arc::new(EngineClock::new(clock.clone())), ..how }).unwrap();
    let put = |i| drop(cat.lock(id(i)).put(id(i), value(1), true));
    let (b, began) = (&cat.buffer, cat.now());
    put(1);
    for round in 1..4 {
        let flying = cat.take_dirty(1, u64::MAX);
        assert_eq!((flying.len(), flying[0].ident, flying[0].since), (1, id(1), began), "{round}");
        assert_eq!(b.oldest_ms(), Some(began), "in flight");
        clock.advance(1000);
        put(1);
        cat.lock(id(1)).requeue(id(1), &flying[0].value, flying[0].since);
        b.landed();
        assert_eq!((b.oldest_ms(), b.queued()), (Some(began), 1), "{round}");
        check_counts(&cat);
    }
    // Others stand behind it; what is written, or removed, is waited for no more.
    put(2);
    let place = |n| Place::new(container(&cat).no, n).unwrap();
    let flying = cat.take_dirty(1, u64::MAX);
    assert!(cat.lock(id(1)).commit(id(1), &flying[0].value, place(1)));
    b.landed();
    assert_eq!(b.oldest_ms(), Some(began + 3000));
    let flying = cat.take_dirty(1, u64::MAX);
    put(2);
    cat.lock(id(2)).remove(id(2));
    cat.lock(id(2)).requeue(id(2), &flying[0].value, flying[0].since);
    assert!(cat.take_dirty(9, u64::MAX).is_empty());
    assert_eq!((b.oldest_ms(), b.queued()), (None, 0));
    check_counts(&cat);
}

/// Of a batch that fails part by part, the parts go back one after the other.
#[test]
fn the_oldest_that_waits_is_known_in_whichever_order_values_go_back() {
    let clock = Arc::new(ManualClock::new(1000));
    let how = setup(Arc::new(disk()), Path::new("/c"), 1);
    let (cat, _) = open_with(Setup { clock: Arc::new(EngineClock::new(clock.clone())), ..how }).unwrap();
    let began = cat.now();
    for i in 0..5 {
        cat.lock(id(i)).put(id(i), value(1), true);
        clock.advance(10);
    }
    for f in cat.take_dirty(9, u64::MAX) {
        cat.lock(f.ident).requeue(f.ident, &f.value, f.since);
    }
    cat.buffer.landed();
    for left in (1..=5).rev() {
        assert_eq!((cat.buffer.oldest_ms(), cat.buffer.queued()), (Some(began), left));
        let f = cat.take_dirty(1, 1).remove(0);
        let place = Place::new(container(&cat).no, 1).unwrap();
        assert!(cat.lock(f.ident).commit(f.ident, &f.value, place));
        cat.buffer.landed();
        check_counts(&cat);
    }
    assert_eq!(cat.buffer.oldest_ms(), None);
}

#[test]
fn limits_of_a_batch_hold_but_one_item_always_goes() {
    let (cat, _) = open(Arc::new(disk()), Path::new("/c"), 1).unwrap();
    for i in 0..6 {
        cat.lock(id(i)).put(id(i), value(1), true);
    }
    assert_eq!(cat.take_dirty(9, 1).len(), 1);
    assert_eq!(cat.take_dirty(2, u64::MAX).len(), 2);
    assert_eq!(cat.take_dirty(9, u64::MAX).len(), 3);
}

/// Two writers, a committer, a mover and a checkpointer; then the index on disk is the one in memory, and every
/// identity is what its only writer left.
#[test]
fn threads_agree_on_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (cat, _) = open(Arc::new(RealFs), dir.path(), 1).unwrap();
    let entry = container(&cat);
    let (position, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let next = || Place::new(entry.no, position.fetch_add(1, Ordering::Relaxed)).unwrap();
    let mut last: Vec<BTreeMap<Ident, bool>> = Vec::new();
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) || cat.buffer.queued() > 0 {
                let _batch = cat.batch(Tier::Ssd);
                for f in cat.take_dirty(100, 1 << 20) {
                    cat.lock(f.ident).commit(f.ident, &f.value, next());
                }
                cat.buffer.landed();
                cat.sync().unwrap();
            }
        });
        s.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                for (ident, (place, _)) in durable(&cat) {
                    cat.lock(ident).swap(ident, place, next(), Version(1), 0);
                }
                if n % 8 == 0 {
                    cat.checkpoint_now().unwrap();
                }
            }
        });
        let writers: Vec<_> = (0..2u8)
            .map(|w| {
                let cat = &cat;
                s.spawn(move || {
                    let mut mine = BTreeMap::new();
                    let began = std::time::Instant::now();
                    let mut n = u64::from(w);
                    while began.elapsed() < std::time::Duration::from_millis(700) {
                        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        let ident = id((n >> 33) as u8 % 60 * 2 + w);
                        let put = n >> 60 != 0;
                        if put {
                            cat.lock(ident).put(ident, value(n), true);
                        } else {
                            cat.lock(ident).remove(ident);
                        }
                        mine.insert(ident, put);
                    }
                    mine
                })
            })
            .collect();
        last.extend(writers.into_iter().map(|w| w.join().unwrap()));
        stop.store(true, Ordering::Relaxed);
    });
    cat.sync().unwrap();
    check_counts(&cat);
    assert_eq!(cat.buffer.bytes(), 0);
    let end = durable(&cat);
    for (ident, there) in last.iter().flatten() {
        assert_eq!(end.contains_key(ident), *there, "{ident:?}");
    }
    drop(cat);
    let (cat, _) = open(Arc::new(RealFs), dir.path(), 2).unwrap();
    assert_eq!(durable(&cat), end);
    check_counts(&cat);
}

/// A record goes while a newer value of its key waits to be written: that is in the buffer alone from then on.
#[test]
fn what_waits_is_counted_when_the_record_below_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (cat, _) = open(Arc::new(SimFs::new(1).with_dir(dir.path())), dir.path(), 1).unwrap();
    let ident = id(1);
    let place = Place::new(container(&cat).no, 1).unwrap();
    write(&cat, ident, place);
    cat.lock(ident).put(ident, value(2), true);
    check_counts(&cat);
    assert!(cat.lock(ident).kill(ident, place));
    check_counts(&cat);
    let shard = cat.shards.iter().find(|s| s.read().wet.all > 0).unwrap();
    assert_eq!(shard.read().wet.only, 1);
}
