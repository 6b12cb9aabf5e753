//! Merging where the numbers for containers run out, in stores without threads.

use super::*;
use crate::engine::scarce::{scatter, take_all_numbers, value};
use crate::engine::testkit::Try;
use crate::{Builder, Cache};
use std::sync::atomic::AtomicBool;
use thermocline_storage::clock::SystemClock;
use thermocline_storage::container::Containers;
use thermocline_storage::testing::{Fault, FaultFs, Hollow, Op};
use thermocline_storage::vfs::{RealFs, Vfs};

/// A store without threads, with segments and packs of 1 MiB, in which writes wait for a second.
fn open(builder: Builder, vfs: Arc<dyn Vfs>) -> Try<Cache> {
    let mut builder = builder.memory(1 << 20);
    let storage = &mut builder.config_mut().storage;
    (storage.segment_size, storage.pack_size, storage.write_stall_limit) = (Some(1 << 20), Some(1 << 20), 1);
    Ok(builder.world(vfs, Arc::new(SystemClock), false).open()?)
}

fn moved(cache: &Cache) -> u64 {
    cache.engine().counters.moved_bytes.load(Ordering::Relaxed)
}

/// The tier with the most containers is one that others hold, for longer than writes may wait.
#[test]
fn who_waits_for_a_number_does_not_wait_for_others_while_another_tier_has_small_containers() -> Try {
    let dir = tempfile::tempdir()?;
    let builder = Cache::builder().ssd(dir.path().join("s"), 64 << 20).cold(dir.path().join("c"));
    let cache = open(builder, Arc::new(RealFs))?;
    let engine = cache.engine();
    scatter(&cache, (0..20).map(|n| n..n + 1), 8_000)?;
    for n in 0..20 {
        assert!(cache.demote(format!("{n}"), Tier::Cold)?);
    }
    while engine.reclaim_step(Tier::Ssd)? {}
    scatter(&cache, (20..30).map(|n| n..n + 1), 8_000)?;
    let first = |all: Vec<Arc<Entry>>| all.into_iter().take(1).collect();
    let cold = || engine.catalog.containers.of_tier(Tier::Cold);
    // By another thread: it is waited for.
    let choose = || engine.claims(Tier::Cold).choose(true, cold, first);
    let hangs = std::thread::scope(|scope| scope.spawn(choose).join().map_err(|_| "a panic"))?;
    assert!(matches!(hangs, Choice::Claimed(_)));
    take_all_numbers(&cache);
    scatter(&cache, (30..40).map(|n| n..n + 1), 8_000)?;
    assert_eq!((cold().len(), cache.stats().counts.evicted), (20, 0));
    drop(hangs);
    Ok(())
}

/// What is empty gives its number before anything is given up for one, whichever tier it is of.
#[test]
fn nothing_is_evicted_for_a_number_while_a_container_of_any_tier_is_empty() -> Try {
    let dir = tempfile::tempdir()?;
    let builder = Cache::builder().ssd(dir.path().join("s"), 64 << 20).cold(dir.path().join("c"));
    let cache = open(builder, Arc::new(RealFs))?;
    let engine = cache.engine();
    scatter(&cache, (0..10).map(|n| n..n + 1), 500_000)?;
    for n in 0..10 {
        assert!(cache.demote(format!("{n}"), Tier::Cold)?);
    }
    cache.put("last", value(10, 500_000))?;
    cache.flush()?;
    let empty = || engine.catalog.containers.of_tier(Tier::Ssd).iter().filter(|e| e.live() == 0).count();
    assert!(empty() >= 10);
    take_all_numbers(&cache);
    assert!(cache.demote("last", Tier::Cold)?);
    assert_eq!(cache.stats().counts.evicted, 0);
    Ok(())
}

/// What is moved while the catalog cannot be written frees nothing.
#[test]
fn nothing_is_merged_while_the_catalog_cannot_be_written() -> Try {
    let dir = tempfile::tempdir()?;
    let fs = FaultFs::default();
    let cache = open(Cache::builder().ssd(dir.path(), 64 << 20), Arc::new(fs.clone()))?;
    scatter(&cache, (0..40).map(|n| n..n + 1), 8_000)?;
    take_all_numbers(&cache);
    let catalog = dir.path().join("catalog");
    assert!(catalog.is_dir());
    fs.fail(Fault::when(move |c| c.op.changes() && c.path.starts_with(&catalog)));
    // The first finds out, and has moved something by then.
    cache.engine().make_number(Tier::Ssd, 0);
    let first = moved(&cache);
    for _ in 0..3 {
        cache.engine().make_number(Tier::Ssd, 0);
    }
    assert_eq!(moved(&cache), first);
    fs.heal();
    assert_eq!(cache.engine().make_number(Tier::Ssd, 0), Freed::Room);
    Ok(())
}

/// Somebody waits: no more is copied for a number than a container holds.
#[test]
fn a_number_costs_one_container_at_most() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(Cache::builder().ssd(dir.path(), 128 << 20), Arc::new(RealFs))?;
    scatter(&cache, (0..40).map(|n| 24 * n..24 * n + 24), 10_000)?;
    take_all_numbers(&cache);
    let before = cache.engine().catalog.containers.all().len();
    assert_eq!(cache.engine().make_number(Tier::Ssd, 0), Freed::Room);
    assert!(cache.engine().catalog.containers.all().len() < before);
    assert!((1..=1 << 20).contains(&moved(&cache)), "{}", moved(&cache));
    Ok(())
}

/// A disk that answers late: to list one container takes longer than is given to look for small ones.
#[test]
fn small_containers_are_merged_however_long_the_first_takes_to_list() -> Try {
    let dir = tempfile::tempdir()?;
    let fs = FaultFs::default().without_maps();
    let cache = open(Cache::builder().ssd(dir.path(), 128 << 20), Arc::new(fs.clone()))?;
    scatter(&cache, (0..10).map(|n| n..n + 1), 8_000)?;
    take_all_numbers(&cache);
    let (segments, late) = (dir.path().join("segments"), AtomicBool::new(true));
    assert!(segments.is_dir());
    fs.watch(move |c| {
        if c.op == Op::Read && c.path.starts_with(&segments) && late.swap(false, Ordering::Relaxed) {
            std::thread::sleep(LIST_TIME + Duration::from_millis(100));
        }
    });
    let began = Instant::now();
    assert_eq!(cache.engine().make_number(Tier::Ssd, 0), Freed::Room);
    assert!(began.elapsed() >= LIST_TIME, "the first list took long");
    assert!(moved(&cache) > 0);
    assert_eq!(cache.stats().counts.evicted, 0);
    Ok(())
}

/// A disk that answers late, and then with errors: nothing small is ever found, and who waits is not kept for longer than
/// writes may wait.
#[test]
fn a_search_for_small_containers_that_finds_none_ends() -> Try {
    let dir = tempfile::tempdir()?;
    let fs = FaultFs::default().without_maps();
    let cache = open(Cache::builder().ssd(dir.path(), 128 << 20), Arc::new(fs.clone()))?;
    scatter(&cache, (0..30).map(|n| n..n + 1), 8_000)?;
    let segments = dir.path().join("segments");
    fs.fail(Fault::on(Op::Read).below(&segments));
    fs.watch(move |c| {
        if c.op == Op::Read && c.path.starts_with(&segments) {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let engine = cache.engine();
    let tier = engine.tier(Tier::Ssd).ok_or("no tier")?;
    let (began, before) = (Instant::now(), fs.calls(Op::Read));
    assert_eq!(engine.merge_on(tier)?, Freed::Nothing);
    assert!(began.elapsed() < Duration::from_secs(4), "writes wait for a second: {:?}", began.elapsed());
    assert!((4..=8).contains(&(fs.calls(Op::Read) - before)), "{}", fs.calls(Op::Read) - before);
    Ok(())
}

/// Large items, each with a segment to itself, are few in it, and it is no larger than they are.
#[test]
fn segments_of_one_large_item_do_not_hide_small_ones() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(Cache::builder().ssd(dir.path(), 128 << 20), Arc::new(RealFs))?;
    scatter(&cache, (0..70).map(|n| n..n + 1), 600_000)?;
    scatter(&cache, (20..30).map(|n| 5 * n..5 * n + 5), 8_000)?;
    take_all_numbers(&cache);
    scatter(&cache, (40..60).map(|n| 5 * n..5 * n + 5), 8_000)?;
    assert_eq!(cache.stats().counts.evicted, 0);
    Ok(())
}

/// Who reclaims a tier needs a number below it, and its own claim is the only one: it does not wait for itself.
#[test]
fn who_waits_for_a_number_does_not_wait_for_itself() -> Try {
    let dir = tempfile::tempdir()?;
    let builder = Cache::builder().ssd(dir.path().join("s"), 64 << 20).cold(dir.path().join("c"));
    let cache = open(builder, Arc::new(RealFs))?;
    let engine = cache.engine();
    scatter(&cache, (0..10).map(|n| n..n + 1), 500_000)?;
    for n in 0..9 {
        assert!(cache.demote(format!("{n}"), Tier::Cold)?);
    }
    while engine.reclaim_step(Tier::Ssd)? {}
    let holds = engine.catalog.containers.of_tier(Tier::Ssd).iter().filter(|e| e.live() > 0).count();
    assert_eq!(holds, 1);
    // Those of what was dropped as well.
    engine.catalog.sync()?;
    take_all_numbers(&cache);
    // The archive, which has nothing small, gives up a pack instead.
    assert_eq!(engine.make_room(Tier::Ssd, 1, true), Freed::Room);
    assert_eq!(cache.stats().counts.evicted, 1);
    Ok(())
}

/// What is written takes several containers, and fewer numbers are left: those for the others are made, too. What each
/// try leaves behind is not taken for them.
#[test]
fn a_few_numbers_that_are_left_are_not_taken_for_enough() -> Try {
    for left in 1..4 {
        let dir = tempfile::tempdir()?;
        let cache = open(Cache::builder().ssd(dir.path(), 64 << 20), Arc::new(RealFs))?;
        scatter(&cache, (0..10).map(|n| n..n + 1), 8_000)?;
        let containers = &cache.engine().catalog.containers;
        let last = (0..left).map(|_| containers.reserve(Purpose::Write)).collect::<Result<Vec<_>, _>>()?;
        take_all_numbers(&cache);
        last.into_iter().for_each(|reserved| containers.abandon(reserved));
        assert!(containers.has_more_numbers(left - 1) && !containers.has_more_numbers(left));
        // In batches of a sixteenth of the tier, which are four segments.
        scatter(&cache, std::iter::once(10..410), 10_000)?;
        assert_eq!(cache.stats().counts.evicted, 0, "{left} are left");
    }
    Ok(())
}

/// What is empty gives more numbers than there were: nothing is copied before it was tried with them.
#[test]
fn nothing_is_merged_while_empty_containers_give_more_numbers_than_there_were() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(Cache::builder().ssd(dir.path(), 64 << 20), Arc::new(RealFs))?;
    let engine = cache.engine();
    scatter(&cache, (0..20).map(|n| n..n + 1), 8_000)?;
    take_all_numbers(&cache);
    for n in 0..3 {
        assert!(cache.remove(format!("{n}"))?);
    }
    cache.flush()?;
    // One number was not enough, and three come.
    assert_eq!(engine.make_number(Tier::Ssd, 1), Freed::Room);
    assert!(engine.catalog.containers.has_more_numbers(2));
    assert_eq!(moved(&cache), 0);
    // Nor were three, and nothing is empty.
    assert_eq!(engine.make_number(Tier::Ssd, 3), Freed::Room);
    assert!(engine.catalog.containers.has_more_numbers(3) && moved(&cache) > 0);
    assert_eq!(cache.stats().counts.evicted, 0);
    Ok(())
}

/// What is alive changes while containers are put in order by it.
#[test]
fn what_changes_meanwhile_does_no_harm_to_the_order() -> Try {
    let containers = Containers::new(1);
    for _ in 0..1_000 {
        let entry =
            containers.publish(containers.reserve(Purpose::Write)?, Tier::Ssd, 0, 7, Arc::new(Hollow(1000)));
        entry.records.store(1_000, Ordering::Relaxed);
    }
    let all = containers.of_tier(Tier::Ssd);
    let done = std::sync::atomic::AtomicBool::new(false);
    let sorted = std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0i64.. {
                for (at, entry) in (0i64..).zip(&all) {
                    entry.live.store((n + at) * 7919 % 1_009, Ordering::Relaxed);
                }
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let sorts = scope.spawn(|| (0..1_000).all(|_| with_little(all.clone(), 1 << 20).len() >= MERGE_MOST));
        let sorted = sorts.join();
        done.store(true, Ordering::Relaxed);
        sorted
    });
    assert!(matches!(sorted, Ok(true)));
    Ok(())
}
