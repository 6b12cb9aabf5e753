//! Reclaim in stores without threads.

use super::*;
use crate::engine::claim::READERS;
use crate::engine::scarce::{self, scatter, take_all_numbers};
use crate::engine::testkit::Try;
use crate::{Builder, Cache};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;
use thermocline_storage::catalog::Found;
use thermocline_storage::clock::SystemClock;
use thermocline_storage::testing::{Fault, FaultFs, Op};
use thermocline_storage::vfs::RealFs;
use thermocline_storage::{Ident, Place};

/// A store without threads, with an SSD of sixteen segments.
fn store(dir: &std::path::Path) -> Try<Cache> {
    open(Cache::builder().ssd(dir, 16 << 20))
}

fn open(builder: Builder) -> Try<Cache> {
    let mut builder = builder.memory(1 << 20);
    builder.config_mut().storage.segment_size = Some(1 << 20);
    Ok(builder.world(Arc::new(RealFs), Arc::new(SystemClock), false).open()?)
}

/// 10 KB that look random.
fn value(n: u64) -> Vec<u8> {
    let byte = |i: u64| ((n * 10_000 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8;
    (0..10_000).map(byte).collect()
}

/// A store whose one tier is over its high mark, and of which each segment is half dead.
fn half_dead(dir: &std::path::Path) -> Try<Cache> {
    let cache = store(dir)?;
    let engine = cache.engine();
    let tier = engine.tier(Tier::Ssd).ok_or("no tier")?;
    for n in 0u64.. {
        // Each is put twice, in batches that lie apart.
        cache.put(format!("{}", if n % 2 == 0 { n } else { n.saturating_sub(41) }), value(n))?;
        if n % 20 == 19 {
            cache.flush()?;
            if engine.is_over(tier) {
                break;
            }
        }
    }
    Ok(cache)
}

fn empty(engine: &Engine) -> usize {
    let all = engine.catalog.containers.of_tier(Tier::Ssd);
    all.iter().filter(|e| e.live() == 0 && e.sealed.load(Ordering::Acquire)).count()
}

#[test]
fn the_lowest_tier_is_reclaimed_by_one_at_a_time() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = half_dead(dir.path())?;
    let engine = cache.engine();
    let tier = engine.tier(Tier::Ssd).ok_or("no tier")?;
    assert!(engine.is_over(tier) && empty(engine) == 0);
    let Choice::Claimed(mine) = engine.candidate(tier) else { return Err("nothing to claim".into()) };
    assert_eq!(engine.make_room(Tier::Ssd, 1, false), Freed::Later, "while another keeps what is hot");
    drop(mine);
    assert_eq!(engine.make_room(Tier::Ssd, 1, false), Freed::Room);
    Ok(())
}

#[test]
fn what_is_empty_goes_before_anything_else_is_emptied() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = half_dead(dir.path())?;
    let engine = cache.engine();
    let tier = engine.tier(Tier::Ssd).ok_or("no tier")?;
    let under_way = engine.catalog.batch(Tier::Ssd);
    for _ in 0..3 {
        assert!(!engine.reclaim_step(Tier::Ssd)?);
        assert!(engine.is_over(tier));
        assert_eq!(empty(engine), 1);
    }
    drop(under_way);
    assert!(engine.reclaim_step(Tier::Ssd)?);
    assert_eq!((empty(engine), cache.stats().counts.evicted), (0, 0));
    Ok(())
}

/// However many containers are empty, batches under way are waited for once.
#[test]
fn batches_under_way_are_waited_for_no_longer_than_writes_may() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = Cache::builder().ssd(dir.path(), 16 << 20);
    builder.config_mut().storage.write_stall_limit = 1;
    let cache = open(builder)?;
    let engine = cache.engine();
    scatter(&cache, (0..6).map(|n| n..n + 1), 8_000)?;
    let under_way = engine.catalog.batch(Tier::Ssd);
    assert_eq!(cache.clear()?, 6);
    assert!(empty(engine) >= 5);
    let began = Instant::now();
    assert_eq!(engine.make_room(Tier::Ssd, 1, false), Freed::Later);
    assert!(began.elapsed() >= Duration::from_secs(1));
    // Twice that, and what a slow machine takes; one after the other it would be five seconds and more.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    drop(under_way);
    assert_eq!(engine.make_room(Tier::Ssd, 1, false), Freed::Room);
    Ok(())
}

/// What is emptied now is dropped no sooner than what is empty: it would be lost for nothing.
#[test]
fn nothing_is_evicted_while_what_is_empty_waits_for_a_batch() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = Cache::builder().ssd(dir.path(), 16 << 20);
    builder.config_mut().storage.write_stall_limit = 1;
    let cache = open(builder)?;
    let engine = cache.engine();
    fill(&cache, 0, 500)?;
    let under_way = engine.catalog.batch(Tier::Ssd);
    assert_eq!(engine.make_room(Tier::Ssd, 1, true), Freed::Later);
    let before = cache.stats().counts.evicted;
    assert!(before > 0 && empty(engine) == 1);
    for _ in 0..2 {
        assert_eq!(engine.make_room(Tier::Ssd, 1, true), Freed::Later);
        assert_eq!(cache.stats().counts.evicted, before);
    }
    drop(under_way);
    assert_eq!(engine.make_room(Tier::Ssd, 1, true), Freed::Room);
    assert_eq!((empty(engine), cache.stats().counts.evicted), (0, before));
    Ok(())
}

/// Puts `count` items of 10 KB with new keys, and flushes; gives the number of the next.
fn fill(cache: &Cache, from: u64, count: u64) -> Try<u64> {
    for n in from..from + count {
        cache.put(format!("new {n}"), value(n))?;
    }
    cache.flush()?;
    Ok(from + count)
}

#[test]
fn who_reads_a_dropped_segment_is_waited_for_before_another_is_emptied() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = half_dead(dir.path())?;
    let engine = cache.engine();
    let count = || engine.catalog.containers.of_tier(Tier::Ssd).len();
    let readers = engine.catalog.containers.of_tier(Tier::Ssd);
    // The machine may be slow: what was held for long counts no more.
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(engine.make_room(Tier::Ssd, 1, false), Freed::Room);
        let (before, quick) = (count(), began.elapsed() < READERS);
        if quick {
            assert_eq!(engine.make_room(Tier::Ssd, 1, false), Freed::ByOthers, "its room may be enough");
            assert_eq!(count(), before);
            assert_eq!(engine.make_room(Tier::Ssd, 1, false), Freed::Room, "they are not waited for twice");
            return Ok(());
        }
        fill(&cache, before as u64 * 1_000, 100)?;
    }
    drop(readers);
    Err("never quick enough".into())
}

/// Of a full tier most cannot be freed: the rest is neither evicted for it nor copied for ever.
#[test]
fn what_cannot_be_freed_costs_nothing_else() -> Try {
    // Of the sealed segments so many are left: what is in none but the one that is written to is kept whole, each time.
    for (unseen, left) in [(true, 2), (true, 0), (false, 2), (false, 0)] {
        let dir = tempfile::tempdir()?;
        let cache = store(dir.path())?;
        let engine = cache.engine();
        let tier = engine.tier(Tier::Ssd).ok_or("no tier")?;
        let mut next = 0;
        while !engine.is_over(tier) {
            next = fill(&cache, next, 40)?;
        }
        let sealed = |e: &Arc<Entry>| e.sealed.load(Ordering::Acquire);
        let all: Vec<_> = engine.of_tier(tier).into_iter().filter(sealed).collect();
        for entry in all.iter().skip(left) {
            if unseen {
                // As after a rebuilding that did not see them: they count, and the catalog does not know them.
                engine.catalog.containers.remove(entry.no);
            } else {
                engine.claims(Tier::Ssd).leave_alone(entry);
            }
        }
        let steps = (0..50).take_while(|_| engine.reclaim_step(Tier::Ssd).unwrap_or(false)).count();
        let counts = cache.stats().counts;
        assert_eq!((steps, counts.evicted, counts.containers_dropped), (0, 0, 0), "{unseen} {left}");
        if !unseen {
            // They are tried again in the end, and then there is something to free.
            for _ in 0..200 {
                engine.reclaim_step(Tier::Ssd)?;
            }
            assert!(cache.stats().counts.containers_dropped > 0);
        }
    }
    Ok(())
}

/// A store of an SSD and an HDD, both so full that nothing is left of what sinking takes.
fn two_full(dir: &std::path::Path, stall: u64) -> Try<(Cache, u64)> {
    let mut builder = Cache::builder().ssd(dir.join("s"), 16 << 20).hdd(dir.join("h"), 16 << 20);
    builder.config_mut().storage.write_stall_limit = stall;
    let cache = open(builder)?;
    let mut next = 0;
    while cache.stats().counts.evicted == 0 {
        next = fill(&cache, next, 50)?;
    }
    Ok((cache, next))
}

#[test]
fn what_sinks_in_the_background_stays_while_reclaim_below_hangs() -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, mut next) = two_full(dir.path(), 1)?;
    let engine = cache.engine();
    let hdd = engine.tier(Tier::Hdd).ok_or("no tier")?;
    let Choice::Claimed(hangs) = engine.candidate(hdd) else { return Err("nothing to claim".into()) };
    let before = cache.stats().counts.evicted;
    let refused = loop {
        match engine.reclaim_step(Tier::Ssd) {
            Ok(true) => {}
            Ok(false) => next = fill(&cache, next, 5)?,
            Err(e) => break e,
        }
        assert_eq!(cache.stats().counts.evicted, before);
    };
    assert!(matches!(refused, Error::Busy { .. }), "{refused}");
    assert_eq!(cache.stats().counts.evicted, before);
    // Nor is it lost when the store is closed meanwhile, and that takes no longer than the wait for others.
    engine.stopping.store(true, Ordering::Release);
    let _ = engine.reclaim_step(Tier::Ssd);
    engine.stopping.store(false, Ordering::Release);
    assert_eq!(cache.stats().counts.evicted, before);
    drop(hangs);
    assert!(engine.reclaim_step(Tier::Ssd)?);
    Ok(())
}

/// Others make room all the time, and it is taken each time.
#[test]
fn a_background_move_into_a_full_tier_ends_when_the_store_is_closed() -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, mut next) = two_full(dir.path(), 1)?;
    let engine = cache.engine();
    let hdd = engine.tier(Tier::Hdd).ok_or("no tier")?;
    let Choice::Claimed(hangs) = engine.candidate(hdd) else { return Err("nothing to claim".into()) };
    loop {
        match engine.reclaim_step(Tier::Ssd) {
            Ok(true) => {}
            Ok(false) => next = fill(&cache, next, 5)?,
            Err(_) => break,
        }
    }
    let done = AtomicBool::new(false);
    let took = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let first = |all: Vec<Arc<Entry>>| all.into_iter().take(1).collect();
                drop(engine.claims(Tier::Hdd).choose(false, || engine.of_tier(hdd), first));
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        engine.stopping.store(true, Ordering::Release);
        let began = Instant::now();
        let refused = engine.reclaim_step(Tier::Ssd);
        engine.stopping.store(false, Ordering::Release);
        done.store(true, Ordering::Release);
        refused.is_err().then(|| began.elapsed())
    });
    assert!(took.is_some_and(|took| took < Duration::from_secs(3)), "{took:?}");
    drop(hangs);
    Ok(())
}

/// A move that ends with the store does not go on: room for it would be made in vain.
#[test]
fn nothing_is_evicted_for_a_background_move_when_the_store_is_closed() -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, mut next) = two_full(dir.path(), 1)?;
    let engine = cache.engine();
    loop {
        let before = cache.stats().counts.evicted;
        engine.stopping.store(true, Ordering::Release);
        let done = engine.reclaim_step(Tier::Ssd);
        engine.stopping.store(false, Ordering::Release);
        assert_eq!(cache.stats().counts.evicted, before, "{done:?}");
        match done {
            Ok(_) => next = fill(&cache, next, 5)?,
            Err(e) => return if matches!(e, Error::Busy { .. }) { Ok(()) } else { Err(e.into()) },
        }
    }
}

#[test]
fn who_waits_for_room_is_refused_rather_than_that_anything_is_lost_while_reclaim_below_hangs() -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, _) = two_full(dir.path(), 1)?;
    let engine = cache.engine();
    let hdd = engine.tier(Tier::Hdd).ok_or("no tier")?;
    let Choice::Claimed(hangs) = engine.candidate(hdd) else { return Err("nothing to claim".into()) };
    let before = cache.stats().counts.evicted;
    let later = (0..20).map(|_| engine.make_room(Tier::Ssd, 1, false)).find(|f| *f != Freed::Room);
    assert_eq!((later, cache.stats().counts.evicted), (Some(Freed::Later), before));
    // Nor is anything of what waits to be written.
    let refused = (0..400).find_map(|n| fill(&cache, 1_000_000 + n * 100, 100).err());
    assert!(refused.is_some_and(|e| e.downcast_ref().is_some_and(|e| matches!(e, Error::Busy { .. }))));
    assert_eq!(cache.stats().counts.evicted, before);
    drop(hangs);
    cache.flush()?;
    Ok(())
}

#[test]
fn who_waits_for_room_below_waits_as_long_as_writes_may() -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, _) = two_full(dir.path(), 60)?;
    let engine = cache.engine();
    let hdd = engine.tier(Tier::Hdd).ok_or("no tier")?;
    let Choice::Claimed(hangs) = engine.candidate(hdd) else { return Err("nothing to claim".into()) };
    let before = cache.stats().counts.evicted;
    std::thread::scope(|scope| {
        let sinks = scope.spawn(|| {
            (0..30).map(|_| engine.make_room(Tier::Ssd, 1, true)).filter(|f| *f == Freed::Room).count()
        });
        // Longer than a second for each of the times that a tier is asked in vain.
        std::thread::sleep(Duration::from_millis(12_500));
        let evicted = cache.stats().counts.evicted;
        drop(hangs);
        let sunk = sinks.join();
        assert_eq!(evicted, before, "there was time yet");
        assert!(sunk.is_ok_and(|n| n > 0));
    });
    Ok(())
}

/// What cannot be read for now is not given up because the tier below fails at the same time.
#[test]
fn what_cannot_be_read_stays_when_the_tier_below_takes_nothing() -> Try {
    const BAD: u64 = 300 << 10;
    let dir = tempfile::tempdir()?;
    let fs = FaultFs::default().without_maps();
    let mut builder = Cache::builder()
        .memory(1 << 20)
        .ssd(dir.path().join("s"), 16 << 20)
        .hdd(dir.path().join("h"), 16 << 20);
    builder.config_mut().storage.segment_size = Some(1 << 20);
    let cache = builder.world(Arc::new(fs.clone()), Arc::new(SystemClock), false).open()?;
    let engine = cache.engine();
    let tier = engine.tier(Tier::Ssd).ok_or("no tier")?;
    let mut next = 0;
    while !engine.is_over(tier) {
        next = fill(&cache, next, 40)?;
    }
    let on_ssd = |no| engine.catalog.containers.get(no).is_some_and(|e| e.tier == Tier::Ssd);
    let all = engine.catalog.pointing_into(on_ssd);
    let bad = |place: &Place| u64::from(place.position()) * 32 < BAD;
    let kept: Vec<Ident> = all.iter().filter(|(_, place)| bad(place)).map(|(ident, _)| *ident).collect();
    assert!(kept.len() > 100 && kept.len() < all.len() / 2, "{} of {}", kept.len(), all.len());

    let segments = dir.path().join("s/segments");
    assert!(segments.is_dir());
    fs.fail(Fault::when(move |c| c.op == Op::Read && c.path.starts_with(&segments) && c.range.start < BAD));
    let below = dir.path().join("h");
    fs.fail(Fault::when(move |c| c.op.changes() && c.path.starts_with(&below)));
    for _ in 0..3 {
        engine.make_room(Tier::Ssd, 1, true);
    }
    fs.heal();
    assert!(cache.stats().counts.evicted > 0, "of what can be read");
    for ident in kept {
        assert!(!matches!(engine.catalog.find(ident), Found::Absent), "{ident:?}");
    }
    Ok(())
}

/// A tier that takes nothing costs no second read of what the one below it takes.
#[test]
fn what_one_tier_refuses_is_read_once_for_the_next() -> Try {
    let dir = tempfile::tempdir()?;
    let fs = FaultFs::default().without_maps();
    let mut builder = Cache::builder()
        .memory(1 << 20)
        .ssd(dir.path().join("s"), 16 << 20)
        .hdd(dir.path().join("h"), 16 << 20)
        .cold(dir.path().join("c"));
    builder.config_mut().storage.segment_size = Some(1 << 20);
    let cache = builder.world(Arc::new(fs.clone()), Arc::new(SystemClock), false).open()?;
    let engine = cache.engine();
    let next = fill(&cache, 0, 200)?;
    let on_ssd = |no| engine.catalog.containers.get(no).is_some_and(|e| e.tier == Tier::Ssd);
    let all = engine.catalog.pointing_into(on_ssd);
    let movers = engine.catalog.containers.of_tier(Tier::Ssd).into_iter().flat_map(|e| engine.unlisted(&e));
    let movers: Vec<Mover> = movers.collect();
    assert_eq!((movers.len(), all.len() as u64), (all.len(), next));

    let below = dir.path().join("h");
    fs.fail(Fault::when(move |c| c.op.changes() && c.path.starts_with(&below)));
    let (segments, reads) = (dir.path().join("s"), Arc::new(AtomicU64::new(0)));
    let count = reads.clone();
    fs.watch(move |c| {
        let read = c.op == Op::Read && c.path.starts_with(&segments);
        count.fetch_add(u64::from(read), Ordering::Relaxed);
    });
    let (first, rest) = movers.split_first().ok_or("nothing")?;
    for m in rest {
        assert!(engine.fetch(m)?.is_some());
    }
    let once = reads.swap(0, Ordering::Relaxed);
    // After this the tier between is out of service.
    engine.send_down(Tier::Ssd, std::slice::from_ref(first), true)?;
    assert_eq!(engine.catalog.containers.of_tier(Tier::Hdd).len(), 0);
    reads.store(0, Ordering::Relaxed);
    engine.send_down(Tier::Ssd, rest, true)?;
    // By the archive: the tier between says that it takes nothing before it has read any.
    assert_eq!(reads.load(Ordering::Relaxed), once);
    assert_eq!(cache.stats().counts.evicted, 0);
    fs.heal();
    assert!((0..next).all(|n| cache.get(format!("new {n}")).is_ok_and(|v| v.is_some())));
    Ok(())
}

/// What the catalog cannot write down makes no room: nothing is evicted in vain.
#[test]
fn nothing_is_evicted_while_the_catalog_cannot_be_written() -> Try {
    let dir = tempfile::tempdir()?;
    let fs = FaultFs::default();
    let mut builder = Cache::builder().memory(1 << 20).ssd(dir.path(), 16 << 20);
    builder.config_mut().storage.segment_size = Some(1 << 20);
    builder.config_mut().storage.write_stall_limit = 1;
    let cache = builder.world(Arc::new(fs.clone()), Arc::new(SystemClock), false).open()?;
    let engine = cache.engine();
    let mut next = 0;
    while cache.stats().counts.evicted == 0 {
        next = fill(&cache, next, 40)?;
    }
    let catalog = dir.path().join("catalog");
    assert!(catalog.is_dir());
    fs.fail(Fault::when(move |c| c.op.changes() && c.path.starts_with(&catalog)));
    // The first finds out, and has emptied a container by then.
    let most = engine.catalog.containers.all().iter().map(|e| e.live()).max().ok_or("no container")?;
    let before = cache.stats().counts.evicted;
    engine.make_room(Tier::Ssd, 1, true);
    let first = cache.stats().counts.evicted;
    assert!((1..=most).contains(&(first - before)), "{} of {most}", first - before);
    for _ in 0..20 {
        let _ = engine.reclaim_step(Tier::Ssd);
        engine.make_room(Tier::Ssd, 1, true);
    }
    assert!((0..20).any(|n| fill(&cache, next + n * 40, 40).is_err()));
    assert_eq!(cache.stats().counts.evicted, first);
    fs.heal();
    fill(&cache, next, 40)?;
    Ok(())
}

/// Each opening that writes begins containers, so a store can run out of their numbers long before it is full.
#[test]
fn without_numbers_for_containers_small_ones_are_merged_and_nothing_is_lost() -> Try {
    let dir = tempfile::tempdir()?;
    for (no, lone) in [true, false].into_iter().enumerate() {
        let dir = dir.path().join(no.to_string());
        let mut builder = Cache::builder().memory(1 << 20).ssd(dir.join("s"), 64 << 20);
        if !lone {
            builder = builder.cold(dir.join("c"));
        }
        let cache = builder.world(Arc::new(RealFs), Arc::new(SystemClock), false).open()?;
        scatter(&cache, (0..10).map(|n| n..n + 1), 8_000)?;
        if !lone {
            // The archive has the most of them.
            for n in 0..10 {
                assert!(cache.demote(format!("{n}"), Tier::Cold)?);
            }
        }
        take_all_numbers(&cache);
        scatter(&cache, (10..150).map(|n| n..n + 1), 8_000)?;
        for n in 0..150u64 {
            let found = cache.get(format!("{n}"))?;
            assert!(found.as_deref() == Some(&scarce::value(n, 8_000)[..]), "{lone} {n}");
        }
        assert_eq!(cache.stats().counts.evicted, 0);
    }
    Ok(())
}

/// The tier with the most containers has none with little in it: those of another are merged.
#[test]
fn without_numbers_small_containers_of_any_tier_are_merged() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(Cache::builder().ssd(dir.path().join("s"), 64 << 20).cold(dir.path().join("c")))?;
    let engine = cache.engine();
    scatter(&cache, (0..10).map(|n| n..n + 1), 8_000)?;
    for n in 0..10 {
        assert!(cache.demote(format!("{n}"), Tier::Cold)?);
    }
    while engine.reclaim_step(Tier::Ssd)? {}
    let count = |tier| engine.catalog.containers.of_tier(tier).len();
    let mut next = 0;
    while count(Tier::Ssd) < 16 {
        next = fill(&cache, next, 20)?;
    }
    assert_eq!(count(Tier::Cold), 10);
    take_all_numbers(&cache);
    fill(&cache, next, 4000)?;
    assert_eq!(cache.stats().counts.evicted, 0);
    assert!(count(Tier::Ssd) > 16 && count(Tier::Cold) < 10);
    Ok(())
}

/// Containers that are full are not merged: one is given up for each that is begun.
#[test]
fn without_numbers_and_with_nothing_to_merge_room_is_made_as_on_a_full_disk() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = Cache::builder().ssd(dir.path(), 64 << 20);
    builder.config_mut().ssd.item_limit = 1 << 40;
    let cache = open(builder)?;
    let engine = cache.engine();
    let count = || engine.catalog.containers.of_tier(Tier::Ssd).len() as u64;
    let mut next = 0;
    while count() < 16 {
        next = fill(&cache, next, 20)?;
    }
    let most = count() + 1;
    take_all_numbers(&cache);
    let before = cache.stats().counts;
    let begun = next;
    while cache.stats().counts.evicted < 1000 && next < begun + 5_000 {
        next = fill(&cache, next, 20)?;
        assert!(count() <= most);
    }
    let after = cache.stats().counts;
    let (dropped, evicted) =
        (after.containers_dropped - before.containers_dropped, after.evicted - before.evicted);
    let there = (0..next).filter(|n| cache.get(format!("new {n}")).is_ok_and(|v| v.is_some())).count() as u64;
    assert_eq!(there + evicted, next);
    // A segment holds about a hundred of these.
    assert!(evicted >= 1000 && evicted <= next - begun + 120, "{evicted} for {} in {dropped}", next - begun);
    Ok(())
}
