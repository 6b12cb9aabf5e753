//! What each action does to a store, seen from outside of what does it: a dial that turns and moves nothing is found here.

use super::*;
use crate::engine::testkit::{self, MIB, Try, act, done, fill, forget, movers, open};
use crate::sensors::{Readings, SimulatedSensors};
use crate::{Builder, Cache, PutOptions};
use std::ops::Range;
use thermocline_storage::container::Purpose;
use thermocline_storage::ssd::ReadMode;
use thermocline_storage::testing::noise;

/// Of a machine whose disks have nothing to do either, which the system says.
fn script(n: u64, change: impl Fn(u64, &mut Readings)) -> SimulatedSensors {
    testkit::script(n, |at, r| {
        r.pressure.io.some = Some(0.0);
        change(at, r);
    })
}

/// Whose reads are counted.
fn builder(dir: &std::path::Path) -> Builder {
    let mut builder = testkit::builder(dir);
    builder.config_mut().storage.read_mode = ReadMode::Pread;
    builder
}

/// Moves them to a tier in one go, out of memory too.
fn sink(cache: &Cache, keys: Range<u32>, bytes: u32, tier: Tier) -> Try {
    let engine = cache.engine();
    let movers = movers(cache, keys.clone(), bytes)?;
    forget(cache, keys)?;
    let moved = engine.relocate(&movers, engine.tier(tier).ok_or("no such tier")?, Purpose::Write, true)?;
    assert_eq!(moved.items, movers.len() as u64);
    Ok(())
}

/// Reads and bytes that a tier's directories were asked for so far.
fn asked(cache: &Cache, tier: Tier) -> (u64, u64) {
    let stats = cache.stats();
    let io = stats.tier(tier).map(|t| t.io.clone()).unwrap_or_default();
    (io.iter().map(|d| d.reads).sum(), io.iter().map(|d| d.read_bytes).sum())
}

/// The same, while these are read, none of which is in memory.
fn reading(cache: &Cache, keys: impl Iterator<Item = u32>, tier: Tier) -> Try<(u64, u64)> {
    let before = asked(cache, tier);
    for no in keys {
        forget(cache, [no])?;
        assert!(cache.get(no.to_be_bytes())?.is_some(), "{no}");
    }
    let after = asked(cache, tier);
    Ok((after.0 - before.0, after.1 - before.1))
}

#[test]
fn rebalancing_wakes_who_moves_and_what_is_used_least_goes_first() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = Cache::builder().memory(MIB).ssd(dir.path().join("s"), 16 * MIB);
    builder = builder.hdd(dir.path().join("h"), 256 * MIB);
    builder.config_mut().storage.segment_size = Some(MIB);
    let cache = open(builder)?;
    let engine = cache.engine();
    let asleep = || [1, 3].map(|n| !engine.signals[n].sleep(Duration::ZERO));
    asleep();
    assert_eq!(asleep(), [true, true]);
    let rebalance = |tier| act(&cache, Change::Rebalance { tier, from: 0.9, to: 0.8 });
    for tier in [Tier::Ssd, Tier::Hdd] {
        let e = rebalance(tier).expect_err("reclaim would do nothing");
        assert!(e.contains("nothing can be freed"), "{e}");
    }
    assert_eq!(asleep(), [true, true]);
    // Until the tier is over its mark; then the second hundred is asked for, again and again.
    let mut n = 0;
    let ssd = engine.tier(Tier::Ssd).ok_or("no SSD")?;
    while !engine.is_over(ssd) {
        fill(&cache, n..n + 100, 10_000)?;
        n += 100;
    }
    asleep();
    rebalance(Tier::Ssd)?;
    assert_eq!(asleep(), [false, true], "the mover of the highest tier");
    engine.wake_mover(Tier::Hdd);
    assert_eq!(asleep(), [true, false], "the one of the tiers below");
    for _ in 0..8 {
        for no in 100..200u32 {
            engine.memory.remove(engine.ident(&no.to_be_bytes())?);
            cache.get(no.to_be_bytes())?;
        }
    }
    while engine.reclaim_step(Tier::Ssd)? {}
    assert!(!engine.is_over(ssd), "{:?}", ssd.usage());
    let left = |keys: Range<u32>| -> Try<usize> {
        let mut there = 0;
        for no in keys {
            let ident = engine.ident(&no.to_be_bytes())?;
            let at = engine.catalog.lock(ident).durable(ident).ok_or("nothing is lost")?;
            there += usize::from(at.entry.tier == Tier::Ssd);
        }
        Ok(there)
    };
    let (hot, all) = (left(100..200)?, left(0..n)?);
    assert_eq!(hot, 100, "of what is asked for");
    assert!(all < n as usize, "something went down");
    Ok(())
}

#[test]
fn so_many_reads_of_each_directory_are_let_in_as_was_set() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = builder(dir.path());
    builder.config_mut().resources.io.max_concurrent_ops = 90;
    let cache = open(builder)?;
    let gates = |cache: &Cache| -> Vec<u64> {
        let of = |tier| cache.engine().meters.of_tier(tier).map(|m| m.gate().limit()).collect::<Vec<_>>();
        Tier::DISK.into_iter().flat_map(of).collect()
    };
    assert_eq!(gates(&cache), [90, 90, 90]);
    act(&cache, Change::SetConcurrency { directory: None, from: 90, to: 17 })?;
    assert_eq!(gates(&cache), [17, 17, 17]);
    act(&cache, Change::SetConcurrency { directory: None, from: 17, to: 1000 })?;
    assert_eq!(gates(&cache), [90, 90, 90], "no more than configured");
    Ok(())
}

#[test]
fn the_smallest_read_is_what_a_read_takes() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(builder(dir.path()))?;
    fill(&cache, 0..2000, 1000)?;
    drop(cache);
    // What was written lately is known to be in the page cache, and read to the byte.
    let cache = open(builder(dir.path()))?;
    let (reads, bytes) = reading(&cache, [100, 900].into_iter(), Tier::Ssd)?;
    assert!(bytes / reads <= 8 << 10, "{bytes} bytes in {reads} reads, as configured");
    act(&cache, Change::SetReadSize { from: 0, to: 64 << 10 })?;
    let (reads, bytes) = reading(&cache, [300, 1500].into_iter(), Tier::Ssd)?;
    assert!(bytes / reads >= 64 << 10, "{bytes} bytes in {reads} reads");
    Ok(())
}

#[test]
fn packs_are_as_large_as_was_set() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = builder(dir.path());
    builder.config_mut().storage.pack_size = Some(8 * MIB);
    let cache = open(builder)?;
    fill(&cache, 0..600, 10_000)?;
    let packs = |cache: &Cache| cache.stats().tier(Tier::Cold).map_or(0, |t| t.containers);
    sink(&cache, 0..300, 10_100, Tier::Cold)?;
    assert_eq!(packs(&cache), 1);
    act(&cache, Change::SetPackSize { from: 0, to: MIB })?;
    sink(&cache, 300..600, 10_100, Tier::Cold)?;
    assert!((3..=4).contains(&(packs(&cache) - 1)), "{} packs of 3 MB", packs(&cache) - 1);
    // So it is where more than a pack is handed to the tier at once.
    let engine = cache.engine();
    let mut items = Vec::new();
    for no in 300..600u32 {
        let ident = engine.ident(&no.to_be_bytes())?;
        let at = engine.catalog.lock(ident).durable(ident).ok_or("it is on disk")?;
        items.push(at.entry.container.read(at.place.position())?);
    }
    let written = engine.tier(Tier::Cold).ok_or("no archive")?.write(&items, Purpose::Write)?;
    let packs: std::collections::BTreeSet<_> = written.iter().map(|w| w.place.container()).collect();
    assert!((3..=4).contains(&packs.len()), "{} packs of 3 MB", packs.len());
    Ok(())
}

/// Of a record whose block's header is cached nothing else is read; else the whole block is.
#[test]
fn the_cache_of_the_hdd_tier_holds_what_was_set() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(builder(dir.path()))?;
    fill(&cache, 0..100_000, 40)?;
    sink(&cache, 0..100_000, 140, Tier::Hdd)?;
    let some = || (0..100_000u32).step_by(250);
    let n = some().count() as u64;
    reading(&cache, some(), Tier::Hdd)?;
    let (_, bytes) = reading(&cache, some(), Tier::Hdd)?;
    assert!(bytes / n < 1000, "{bytes} bytes of {n} records: all headers are cached");
    act(&cache, Change::SetSledCache { from: 0, to: MIB })?;
    let (_, bytes) = reading(&cache, some(), Tier::Hdd)?;
    assert!(bytes / n > 2000, "{bytes} bytes of {n} records: they are cached though there is no room");
    Ok(())
}

#[test]
fn what_nobody_asks_for_leaves_memory_first() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(builder(dir.path()))?;
    fill(&cache, 0..2000, 10_000)?;
    for _ in 0..4 {
        for no in 500..1000u32 {
            cache.get(no.to_be_bytes())?;
        }
    }
    let engine = cache.engine();
    let before = engine.memory.stats().weight;
    act(&cache, Change::FreeMemory { bytes: before / 2, from: 0, to: 0 })?;
    let after = engine.memory.stats().weight;
    assert!(after <= before / 2 + MIB, "{after} bytes of {before} are left");
    let mut there = 0;
    for no in 500..1000u32 {
        there += usize::from(engine.memory.contains(engine.ident(&no.to_be_bytes())?));
    }
    assert!(there >= 490, "{there} of the 500 that are asked for");
    assert_eq!(cache.get(3u32.to_be_bytes())?.map(|v| v.len()), Some(10_000), "nothing is lost");
    Ok(())
}

/// It is free no sooner than it is written, and until then callers would wait for room.
#[test]
fn memory_that_shrinks_queues_no_more_at_once_than_callers_have_room_beside() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(builder(dir.path()).persistence(crate::Persistence::OnEviction))?;
    for no in 0..2000u32 {
        cache.put(no.to_be_bytes(), noise(no.into(), 10_000))?;
    }
    let engine = cache.engine();
    act(&cache, Change::SetWriteBuffer { from: 0, to: 4 * MIB })?;
    let shrink = || act(&cache, Change::ResizeMemoryTier { from: 64 * MIB, to: MIB });
    let mut turns = 0;
    while engine.memory.stats().weight > MIB {
        shrink()?;
        let waits = engine.catalog.buffer.bytes();
        assert!(waits <= 2 * MIB + AT_A_TIME, "{waits} bytes wait to be written");
        cache.flush()?;
        turns += 1;
        assert!(turns < 20, "{} bytes are left", engine.memory.stats().weight);
    }
    assert!(turns > 1, "it went in one, without regard to who waits");
    assert_eq!(cache.get(3u32.to_be_bytes())?.map(|v| v.len()), Some(10_000), "nothing is lost");
    Ok(())
}

/// By what it lost to a limit: what a larger one might be good for is tried, and judged by times that a test cannot know.
#[test]
fn a_memory_tier_that_had_to_shrink_grows_again_and_answers_more() -> Try {
    let dir = tempfile::tempdir()?;
    let sensors =
        script(60, |at, r| r.process.anonymous = Some(if (1..4).contains(&at) { 920 } else { 100 } * MIB));
    let cache = open(builder(dir.path()).sensors(sensors))?;
    fill(&cache, 0..3000, 10_000)?;
    let optimizer = cache.optimizer();
    for _ in 0..4 {
        optimizer.run_once()?;
    }
    let engine = cache.engine();
    let shrunk = engine.knobs().memory_size;
    assert!(shrunk < 15 * MIB, "{shrunk}");
    let mut hits = Vec::new();
    for _ in 0..30 {
        let before = cache.stats().tier(Tier::Memory).map_or(0, |t| t.hits);
        for no in 0..3000u32 {
            cache.get(no.to_be_bytes())?;
        }
        hits.push(cache.stats().tier(Tier::Memory).map_or(0, |t| t.hits) - before);
        optimizer.run_once()?;
    }
    let grown = engine.knobs().memory_size;
    assert!(grown > 30 * MIB && grown <= 64 * MIB, "{grown}");
    assert_eq!(hits.last(), Some(&3000), "all that is asked for is in memory: {hits:?}");
    assert!(hits[0] < 1500, "{hits:?}");
    Ok(())
}

#[test]
fn a_type_that_does_not_shrink_is_left_alone_and_tried_again_later() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(builder(dir.path()).sensors(script(80, |_, _| {})))?;
    let mut no = 0u64;
    // Two megabytes that say they are JSON, and are noise.
    let mut put = || -> Try<(u64, u64)> {
        let json = PutOptions::new().content_type(ContentType::Json);
        for _ in 0..200 {
            no += 1;
            cache.put_with(no.to_be_bytes(), noise(no, 10_000), json)?;
        }
        cache.flush()?;
        let stats = cache.stats();
        let json = stats.content(ContentType::Json).ok_or("no JSON")?;
        Ok((json.zlib.skipped + json.zlib.kept, json.items))
    };
    let did = |wanted: fn(&Change) -> bool| done(&cache).iter().any(|(c, r)| wanted(c) && r.is_ok());
    assert_eq!(put()?, (200, 200), "each is tried");
    cache.optimizer().run_once()?;
    for turn in 0.. {
        assert!(turn < 5, "it goes on trying");
        put()?;
        cache.optimizer().run_once()?;
        if did(|c| matches!(c, Change::LeaveUncompressed { content: ContentType::Json, .. })) {
            break;
        }
    }
    let (tried, items) = put()?;
    let again = put()?;
    assert_eq!(again, (tried, items + 200), "later values are not tried");
    for turn in 0.. {
        assert!(turn < 30, "it is never tried again");
        cache.optimizer().run_once()?;
        if did(|c| matches!(c, Change::RetryCompression { content: ContentType::Json, .. })) {
            assert!(turn >= 8, "after {turn} turns");
            break;
        }
    }
    assert_eq!(put()?.0, tried + 200, "each is tried again");
    Ok(())
}

/// Over the threshold from the second reading on: there is something to do at the first turn.
fn over_its_threshold(n: u64) -> SimulatedSensors {
    script(n, |at, r| r.process.anonymous = Some(if at < 1 { 100 } else { 920 } * MIB))
}

/// What was decided is left for the metrics server, with all that the manual says of it.
#[test]
#[cfg(feature = "redis")]
fn decisions_are_left_for_the_metrics_server() -> Try {
    let dir = tempfile::tempdir()?;
    // Nobody is asked: the store has no threads.
    let builder = builder(dir.path()).redis_metrics("redis://127.0.0.1:1/15").sensors(over_its_threshold(3));
    let cache = open(builder)?;
    fill(&cache, 0..1000, 10_000)?;
    let left = || cache.engine().export.decisions.oldest(usize::MAX);
    cache.optimizer().run_once()?;
    assert!(left().is_empty(), "nothing was decided");
    let record = cache.optimizer().run_once()?.ok_or("no turn")?;
    assert!(!record.outcomes.is_empty());
    let left = left();
    assert_eq!(left.len(), record.outcomes.len());
    for (decision, outcome) in left.iter().zip(&record.outcomes) {
        let names: Vec<&str> = decision.fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, DECISION_FIELDS.map(|(name, _)| name));
        let values: Vec<&str> = decision.fields.iter().map(|(_, value)| value.as_str()).collect();
        let pressure = record.decision.pressure.ok_or("it is known")?;
        let change = outcome.action.change.to_string();
        assert!(change.contains(": ") && !change.contains(" { "), "{change}");
        assert_eq!(values[..3], ["balanced", &format!("{pressure:.3}"), &change]);
        let result = if outcome.result.is_ok() { "done" } else { "not done: " };
        assert_eq!((values[3], values[5]), (&*outcome.action.because, "false"));
        assert!(values[4].starts_with(result), "{values:?}");
    }
    Ok(())
}

#[test]
fn a_panic_of_what_is_done_is_recorded_and_the_next_turn_comes() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(builder(dir.path()).sensors(over_its_threshold(9)))?;
    fill(&cache, 0..1000, 10_000)?;
    let engine = cache.engine();
    assert!(engine.tune_step().is_none());
    let fails = |action: &Action| match action.change {
        Change::FreeMemory { .. } => panic!("a test"),
        _ => Ok(()),
    };
    let record = engine.tune_step_by(&fails).ok_or("no turn")?;
    let (freed, rest): (Vec<_>, Vec<_>) =
        record.outcomes.iter().partition(|o| matches!(o.action.change, Change::FreeMemory { .. }));
    assert!(freed.len() == 1 && !rest.is_empty(), "{record:?}");
    assert!(freed[0].result.as_ref().is_err_and(|e| e.contains("panicked")), "{freed:?}");
    assert!(rest.iter().all(|o| o.result.is_ok()), "the rest is done: {rest:?}");
    assert_eq!(cache.optimizer().history(), std::slice::from_ref(&record));
    let stats = cache.stats().optimizer;
    assert_eq!((stats.turns, stats.actions, stats.taken_back), (1, rest.len() as u64, 0));
    assert_eq!((stats.pressure, stats.strategy), (record.decision.pressure, record.decision.strategy));
    assert!(engine.tune_step().is_some(), "the next turn");
    assert_eq!(cache.stats().optimizer.turns, 2);
    Ok(())
}

/// While something is done that takes long.
#[test]
fn who_asks_for_the_history_does_not_wait_for_what_is_done() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(builder(dir.path()).sensors(over_its_threshold(9)))?;
    fill(&cache, 0..1000, 10_000)?;
    let engine = cache.engine();
    assert!(engine.tune_step().is_none());
    let (begun, under_way) = std::sync::mpsc::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| -> Try {
        let turn = scope.spawn(move || {
            engine.tune_step_by(&|_| {
                let _ = begun.send(());
                // Should nobody answer, it ends by itself.
                may_go_on.recv_timeout(Duration::from_secs(10)).map_err(|e| e.to_string())
            })
        });
        under_way.recv_timeout(Duration::from_secs(30))?;
        let asked = Instant::now();
        let optimizer = cache.optimizer();
        assert_eq!((optimizer.history().len(), optimizer.last()), (0, None));
        assert_eq!(optimizer.strategy(), cache.stats().optimizer.strategy);
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        drop(go_on);
        assert!(turn.join().map_err(|_| "a panic")?.is_some());
        assert_eq!(optimizer.history().len(), 1);
        Ok(())
    })
}

#[test]
fn two_looks_at_one_moment_are_no_two_turns() -> Try {
    let dir = tempfile::tempdir()?;
    let busy = |r: &mut Readings| {
        r.cpu.machine_percent = Some(100.0);
        r.pressure.io.some = Some(1.0);
        r.process.anonymous = Some(1000 * MIB);
    };
    let times = [0, 60_000, 60_002, 60_004, 60_900, 120_000];
    let sensors = script(times.len() as u64, |at, r| {
        r.monotonic = Duration::from_millis(times[at as usize]);
        busy(r);
    });
    let cache = open(builder(dir.path()).sensors(sensors))?;
    let optimizer = cache.optimizer();
    let turns: Vec<bool> =
        (0..5).map(|_| optimizer.run_once().map(|r| r.is_some())).collect::<Result<_, _>>()?;
    assert_eq!(turns, [false, true, false, false, false]);
    assert_eq!(optimizer.strategy(), Strategy::Balanced, "one moment is one sample");
    cache.put("k", "v")?;
    let record = optimizer.run_once()?.ok_or("no turn")?;
    assert_eq!(record.sample.elapsed, Duration::from_secs(60), "of all the time since");
    assert_eq!(record.sample.requests.puts, 1);
    assert_eq!(optimizer.strategy(), Strategy::Aggressive);
    Ok(())
}

/// Where the system says nothing of the disks, what the engine waits for them does.
#[test]
fn io_pressure_is_what_the_engine_measures_where_nobody_says_it() -> Try {
    let dir = tempfile::tempdir()?;
    let sensors = script(4, |at, r| {
        r.pressure.io.some = Some(0.25).filter(|_| at == 3);
    });
    let cache = open(builder(dir.path()).sensors(sensors))?;
    let optimizer = cache.optimizer();
    optimizer.run_once()?;
    let idle = optimizer.run_once()?.ok_or("no turn")?;
    fill(&cache, 0..2000, 10_000)?;
    let busy = optimizer.run_once()?.ok_or("no turn")?;
    let (idle, busy) = (idle.sample.io_pressure, busy.sample.io_pressure);
    assert_eq!(idle, Some(0.0));
    assert!(busy.is_some_and(|p| p > 0.0005 && p <= 1.0), "{busy:?}");
    let said = optimizer.run_once()?.ok_or("no turn")?;
    assert_eq!(said.sample.io_pressure, Some(0.25), "what the system says goes first");
    Ok(())
}
