use crate::Cache;
use crate::engine::testkit::{Try, fill, forget, movers, open_with_clock};
use crate::testing::ManualClock;
use std::sync::Arc;
use thermocline_storage::Tier;
use thermocline_storage::container::Purpose;

const MEMORY: u64 = 4 << 20;

/// A store without threads, with `n` values of a kilobyte in the tier below.
fn store(dir: &std::path::Path, tier: Tier, n: u32) -> Try<(Cache, Arc<ManualClock>)> {
    let builder = Cache::builder().memory(MEMORY).ssd(dir.join("s"), 64 << 20);
    let mut builder = match tier {
        Tier::Hdd => builder.hdd(dir.join("h"), 64 << 20),
        _ => builder.cold(dir.join("c")),
    };
    builder.config_mut().hdd.compression = false;
    let (cache, clock) = open_with_clock(builder)?;
    fill(&cache, 0..n, 1000)?;
    sink(&cache, tier, n)?;
    forget(&cache, 0..n)?;
    Ok((cache, clock))
}

fn value(no: u32) -> Vec<u8> {
    thermocline_storage::testing::noise(no.into(), 1000)
}

/// All of them in one go, as reclaim does it: one by one, each would come to a pack of its own.
fn sink(cache: &Cache, tier: Tier, n: u32) -> Try {
    let engine = cache.engine();
    let to = engine.tier(tier).ok_or("no such tier")?;
    let moved = engine.relocate(&movers(cache, 0..n, 1100)?, to, Purpose::Reclaim, true)?;
    assert_eq!(moved.items, u64::from(n));
    Ok(())
}

fn prefetch(cache: &Cache) -> Try {
    while cache.engine().prefetch_step()? {}
    Ok(())
}

#[test]
fn what_stands_behind_a_hit_enters_memory_and_nothing_that_is_not_live_does() -> Try {
    for tier in [Tier::Hdd, Tier::Cold] {
        let dir = tempfile::tempdir()?;
        let (cache, clock) = store(dir.path(), tier, 400)?;
        let engine = cache.engine();
        // One is gone, one is newer, one expires at once, one has moved.
        cache.remove(12u32.to_be_bytes())?;
        cache.put(13u32.to_be_bytes(), value(1013))?;
        cache.expire_in(14u32.to_be_bytes(), Some(std::time::Duration::from_secs(1)))?;
        clock.advance(1001);
        cache.promote(15u32.to_be_bytes(), Tier::Ssd)?;
        cache.flush()?;
        forget(&cache, 0..400)?;
        assert_eq!(cache.get(10u32.to_be_bytes())?.as_deref(), Some(&*value(10)));
        prefetch(&cache)?;
        let there =
            |no: u32| Ok::<bool, crate::Error>(engine.memory.contains(engine.ident(&no.to_be_bytes())?));
        let entered = cache.stats().counts.prefetched;
        assert!((60..110).contains(&entered), "{tier}: {entered} of 96 KiB");
        for (no, expected) in [(11, true), (12, false), (13, false), (14, false), (15, false), (16, true)] {
            assert_eq!(there(no)?, expected, "{tier}, {no}");
        }
        let before = cache.stats();
        for no in 16..40u32 {
            assert_eq!(cache.get(no.to_be_bytes())?.as_deref(), Some(&*value(no)), "{tier}, {no}");
        }
        let after = cache.stats();
        let hits = |s: &crate::Stats| s.tier(Tier::Memory).map_or(0, |t| t.hits);
        assert_eq!(hits(&after) - hits(&before), 24, "{tier}: none of these came from the disk");
        assert_eq!(cache.stats().counts.prefetch_used, 24);
        assert_eq!(cache.get(13u32.to_be_bytes())?.as_deref(), Some(&*value(1013)));
        assert_eq!(cache.get(14u32.to_be_bytes())?, None);
    }
    Ok(())
}

#[test]
fn it_takes_a_twentieth_of_memory_and_stops_while_it_does_not_pay() -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, _) = store(dir.path(), Tier::Hdd, 3000)?;
    let engine = cache.engine();
    let mut most = 0;
    let tried = |from: u32| -> Try<u64> {
        let before = cache.stats().counts.prefetched;
        for no in (from..from + 1000).step_by(50) {
            cache.get(no.to_be_bytes())?;
            prefetch(&cache)?;
        }
        Ok(cache.stats().counts.prefetched - before)
    };
    assert!(tried(0)? > 100);
    most = most.max(engine.memory.stats().prefetched_bytes);
    assert!(most > MEMORY / 40 && most <= MEMORY / 20 + 2000, "{most} of {MEMORY}");
    // Nobody asks for any of them, and they leave.
    assert!(engine.prefetch.pays(), "nothing is known yet");
    for round in 0..3 {
        tried(round * 1000)?;
        let mut out = Vec::new();
        engine.memory.shrink_to(0, &mut out);
        engine.let_go(out);
    }
    assert!(!engine.prefetch.pays());
    let (used, wasted) = (cache.stats().counts.prefetch_used, cache.stats().counts.prefetch_wasted);
    assert!(used < 20 && wasted > 300, "{used} used, {wasted} not");
    // One in sixteen is tried all the same; when these are asked for, it pays again.
    let seldom = tried(1000)?;
    assert!(seldom < 220, "{seldom}");
    let mut rounds = 0;
    while !engine.prefetch.pays() {
        rounds += 1;
        assert!(rounds < 1000, "it never finds out that it would pay");
        forget(&cache, 0..3000)?;
        for no in 0..150u32 {
            cache.get(no.to_be_bytes())?;
            prefetch(&cache)?;
        }
    }
    // Nothing of it where it is switched off.
    engine.dials.set_prefetch(0.0);
    forget(&cache, 0..3000)?;
    assert_eq!(tried(0)?, 0);
    Ok(())
}
