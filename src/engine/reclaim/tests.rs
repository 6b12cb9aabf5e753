//! Reclaim in stores without threads.

use super::*;
use crate::engine::claim::READERS;
use crate::{Builder, Cache};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use thermocline_storage::clock::SystemClock;
use thermocline_storage::vfs::RealFs;

type Try<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

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

/// Each opening that writes begins containers, so a store can run out of their numbers long before it is full.
#[test]
fn without_numbers_for_containers_room_is_made_as_on_a_full_disk() -> Try {
    let dir = tempfile::tempdir()?;
    let builder =
        Cache::builder().memory(1 << 20).ssd(dir.path().join("s"), 64 << 20).cold(dir.path().join("c"));
    let cache = builder.world(Arc::new(RealFs), Arc::new(SystemClock), false).open()?;
    let engine = cache.engine();
    let value = |n: u64| n.to_le_bytes().repeat(1000);
    for n in 0..10 {
        cache.put(format!("{n}"), value(n))?;
        cache.flush()?;
        for tier in &engine.tiers {
            tier.seal()?;
        }
    }
    // All but those that are kept for reclaim are taken by others.
    while engine.catalog.containers.reserve(Purpose::Write).is_ok() {}
    for n in 10..100 {
        cache.put(format!("{n}"), value(n))?;
        cache.flush()?;
        for tier in &engine.tiers {
            tier.seal()?;
        }
    }
    let evicted = cache.stats().counts.evicted;
    let there = (0..100).filter(|n| cache.get(format!("{n}")).is_ok_and(|v| v.is_some())).count() as u64;
    assert!(evicted > 0 && there + evicted == 100, "{there} are there, {evicted} were evicted");
    assert_eq!(cache.get("99")?.as_deref(), Some(&value(99)[..]));
    Ok(())
}
