use super::*;
use crate::engine::testkit::{MIB, Try, action, builder, done, open, open_with_clock, script};
use crate::{Cache, Received};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

#[test]
fn memory_over_its_threshold_is_freed_and_nothing_is_lost() -> Try {
    let dir = tempfile::tempdir()?;
    // From the third second on this process takes 90 % of what there is.
    let sensors = script(6, |at, r| r.process.anonymous = Some(if at < 2 { 100 } else { 920 } * MIB));
    let cache = open(builder(dir.path()).sensors(sensors))?;
    let value = |no: u32| vec![no as u8; 20_000];
    for no in 0..1500u32 {
        cache.put(no.to_be_bytes(), value(no))?;
    }
    let engine = cache.engine();
    let before = engine.memory.stats();
    assert!(before.weight > 25 * MIB && before.dirty_items > 1000, "{before:?}");
    let frees = || done(&cache).iter().any(|(c, r)| matches!(c, Change::FreeMemory { .. }) && r.is_ok());
    // What the allocator of this process keeps is real, and may be asked for first.
    for _ in 0..5 {
        cache.optimizer().run_once()?;
        if frees() {
            break;
        }
    }
    let after = engine.memory.stats();
    assert!(after.weight <= 8 * MIB + AT_A_TIME, "{after:?}");
    assert!(after.max_bytes < 64 * MIB, "a tier that may shrinks with it: {after:?}");
    assert!(frees());
    // What was dirty waits to be written, and is read meanwhile; and is on disk in the end.
    for flushed in [false, true] {
        for no in 0..1500u32 {
            assert_eq!(cache.get(no.to_be_bytes())?.as_deref(), Some(&*value(no)), "{no}, {flushed}");
        }
        cache.flush()?;
    }
    assert_eq!(cache.stats().counts.evicted, 0);
    Ok(())
}

#[test]
fn a_new_strategy_is_told_and_busy_processors_change_the_codec() -> Try {
    let dir = tempfile::tempdir()?;
    let sensors = script(8, |at, r| {
        if at >= 1 {
            r.cpu.machine_percent = Some(95.0);
            r.pressure.io.some = Some(1.0);
            r.process.anonymous = Some(780 * MIB);
        }
    });
    let cache = open(builder(dir.path()).sensors(sensors))?;
    let events = cache.subscribe();
    let text = "the lake is warm above and cold below. ".repeat(200);
    cache.put_with("before", text.clone(), crate::PutOptions::new().content_type(ContentType::Text))?;
    cache.flush()?;
    for _ in 0..6 {
        cache.optimizer().run_once()?;
    }
    cache.put_with("after", text, crate::PutOptions::new().content_type(ContentType::Text))?;
    cache.flush()?;
    let text = cache.stats().content(ContentType::Text).cloned().ok_or("no text")?;
    assert_eq!((text.zlib.kept, text.lz4.kept), (1, 1));
    assert_eq!(cache.optimizer().strategy(), Strategy::Aggressive);
    let mut told = Vec::new();
    while let Ok(Received::Event(event)) = events.try_recv() {
        if let Event::StrategyChanged { from, to } = event {
            told.push((from, to));
        }
    }
    assert_eq!(told, [(Strategy::Balanced, Strategy::Aggressive)]);
    Ok(())
}

/// Each change shows in what the engine says of itself, within what is configured.
#[test]
fn every_knob_turns_and_stays_within_its_bounds() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(builder(dir.path()))?;
    let engine = cache.engine();
    let first = engine.knobs();
    let zlib = |level| Method { algorithm: Algorithm::Zlib, level };
    let (from, tier) = (0, Tier::Hdd);
    let directory = dir.path().join("h");
    let changes = [
        Change::ResizeMemoryTier { from, to: 16 * MIB },
        Change::SetReclaimRate { tier, from, to: 3 * MIB },
        Change::SetReadAhead { tier, from, to: 2 * MIB },
        Change::SetSledCache { from, to: 4 * MIB },
        Change::SetPackSize { from, to: 2 * MIB },
        Change::SetReadSize { from, to: 16 << 10 },
        Change::SetWriteBuffer { from, to: 5 * MIB },
        Change::SetBackgroundRate { from, to: 9 * MIB },
        Change::SetCompression { content: ContentType::Json, from: zlib(6), to: zlib(2) },
        Change::SetPrefetch { from: 1.5, to: 0.5 },
    ];
    for change in &changes {
        let before = engine.knobs();
        engine.act(&action(change.clone()))?;
        assert_ne!(engine.knobs(), before, "{change:?} turned nothing");
    }
    let now = engine.knobs();
    assert_eq!((now.memory_size, now.reclaim_rate[2], now.read_ahead[2]), (16 * MIB, 3 * MIB, 2 * MIB));
    assert_eq!((now.sled_cache, now.pack_size, now.read_size), (4 * MIB, 2 * MIB, 16 << 10));
    assert_eq!((now.write_buffer, now.background_rate), (5 * MIB, 9 * MIB));
    assert_eq!((now.methods[1], now.prefetch), (zlib(2), 0.5));
    assert_eq!((now.reclaim_rate[1], now.methods[0]), (first.reclaim_rate[1], first.methods[0]));
    // Back, and beyond.
    for change in &changes {
        let wide = match change.clone() {
            Change::SetReclaimRate { tier, .. } => Change::SetReclaimRate { tier, from, to: u64::MAX },
            Change::SetReadAhead { tier, .. } => Change::SetReadAhead { tier, from, to: u64::MAX },
            Change::SetSledCache { .. } => Change::SetSledCache { from, to: u64::MAX },
            Change::SetPackSize { .. } => Change::SetPackSize { from, to: u64::MAX },
            Change::SetWriteBuffer { .. } => Change::SetWriteBuffer { from, to: u64::MAX },
            Change::SetBackgroundRate { .. } => Change::SetBackgroundRate { from, to: u64::MAX },
            Change::SetPrefetch { .. } => Change::SetPrefetch { from: 0.0, to: f64::INFINITY },
            Change::SetReadSize { .. } => Change::SetReadSize { from, to: 0 },
            Change::SetCompression { content, from, .. } => {
                Change::SetCompression { content, from, to: zlib(1000) }
            }
            _ => continue,
        };
        engine.act(&action(wide))?;
    }
    let now = engine.knobs();
    assert_eq!((now.sled_cache, now.pack_size, now.read_size), (first.sled_cache, first.pack_size, 8 << 10));
    assert_eq!((now.write_buffer, now.background_rate), (first.write_buffer, first.background_rate));
    assert_eq!((now.reclaim_rate, now.read_ahead[2]), (first.reclaim_rate, 4 * MIB));
    assert_eq!(now.prefetch, 0.0, "what is no multiplier is none");
    assert_eq!(now.methods[1], zlib(9), "the highest level of a strategy");
    for (multiplier, kib) in [(1.0, 64), (1.5, 96), (2.0, 128), (1000.0, 128)] {
        engine.act(&action(Change::SetPrefetch { from: 0.0, to: multiplier }))?;
        assert_eq!(
            engine.dials.prefetch_bytes(Tier::Hdd),
            kib << 10,
            "{multiplier} × 64 KiB, the greatest row's at most"
        );
    }
    engine.act(&action(Change::SetReadAhead { tier, from, to: 80 << 10 }))?;
    assert_eq!(engine.dials.prefetch_bytes(tier), 80 << 10, "never more than is read ahead");
    assert_eq!(engine.dials.prefetch_bytes(Tier::Cold), 128 << 10);
    // Of one directory, and within what is configured.
    let limits = || {
        engine
            .meters
            .of_tier(Tier::Ssd)
            .chain(engine.meters.of_tier(tier))
            .map(|m| m.gate().limit())
            .collect::<Vec<_>>()
    };
    for (to, set) in [(7, 7), (0, 1), (5000, 100)] {
        engine.act(&action(Change::SetConcurrency { directory: Some(directory.clone()), from, to }))?;
        assert_eq!(limits(), [100, set]);
    }
    engine.act(&action(Change::SetConcurrency { directory: None, from, to: 9 }))?;
    assert_eq!(limits(), [9, 9], "of each");
    engine.act(&action(Change::LeaveUncompressed {
        content: ContentType::Json,
        from: zlib(2),
        retry_after: Duration::ZERO,
    }))?;
    assert_eq!(engine.knobs().methods[1], Method::NONE);
    // It still works.
    cache.put("k", vec![7; 100_000])?;
    cache.flush()?;
    for tier in [Tier::Hdd, Tier::Cold] {
        assert!(cache.demote("k", tier)?);
        assert_eq!(cache.get("k")?.map(|v| v.len()), Some(100_000));
    }
    Ok(())
}

#[test]
fn what_cannot_be_done_is_said_and_the_rest_is_done() -> Try {
    let cache = Cache::builder().memory(16 * MIB).open()?;
    let engine = cache.engine();
    for (change, why) in [
        (Change::EvictIdle { age: Duration::from_secs(300) }, "nothing below memory"),
        (Change::SetPackSize { from: 1, to: 2 * MIB }, "no such tier"),
        (Change::SetSledCache { from: 1, to: 2 * MIB }, "no such tier"),
        (Change::SetReadAhead { tier: Tier::Ssd, from: 1, to: 2 * MIB }, "nothing reads ahead"),
        (Change::SetReadAhead { tier: Tier::Hdd, from: 1, to: 2 * MIB }, "no such tier"),
        (Change::SetConcurrency { directory: Some("/nowhere".into()), from: 1, to: 2 }, "/nowhere"),
        (Change::Rebalance { tier: Tier::Ssd, from: 0.9, to: 0.8 }, "no such tier"),
    ] {
        let e = engine.act(&action(change)).expect_err("there is nothing to do it with");
        assert!(e.contains(why), "{e}");
    }
    engine.act(&action(Change::FreeMemory { bytes: MIB, from: 0, to: 0 }))?;
    Ok(())
}

#[test]
fn idle_entries_leave_memory_and_stay_in_the_store() -> Try {
    let dir = tempfile::tempdir()?;
    // In the buffer below the threshold of 80 %.
    let sensors = script(40, |_, r| r.process.anonymous = Some(760 * MIB));
    let (cache, clock) = open_with_clock(builder(dir.path()).sensors(sensors))?;
    for no in 0..100u32 {
        cache.put(no.to_be_bytes(), vec![1; 1000])?;
    }
    cache.flush()?;
    cache.optimizer().run_once()?;
    let engine = cache.engine();
    for second in 0..140 {
        clock.advance(10_000);
        engine.keep_step();
        if second % 5 == 0 {
            cache.get(7u32.to_be_bytes())?;
        }
    }
    cache.optimizer().run_once()?;
    let seen = cache.optimizer().last().ok_or("no record")?.sample.oldest_idle;
    assert_eq!(seen, Some(Duration::from_secs(1390)), "of those that nobody asked for, at least");
    assert!(
        done(&cache).iter().any(|(c, r)| matches!(c, Change::EvictIdle { .. }) && r.is_ok()),
        "{:?}",
        done(&cache)
    );
    assert_eq!(engine.memory.stats().items, 1);
    assert!(engine.memory.contains(engine.ident(&7u32.to_be_bytes())?));
    assert_eq!(cache.get(3u32.to_be_bytes())?.map(|v| v.len()), Some(1000));
    Ok(())
}

#[test]
fn it_runs_by_itself_until_it_is_paused_or_switched_off() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = builder(dir.path());
    builder.config_mut().optimizer.interval = 1;
    let cache = builder.clone().open()?;
    let optimizer = cache.optimizer();
    assert!(optimizer.is_running());
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while optimizer.history().len() < 2 {
        assert!(std::time::Instant::now() < until, "it takes no turns");
        cache.put("k", "v")?;
        std::thread::sleep(Duration::from_millis(20));
    }
    let last = optimizer.last().ok_or("no record")?;
    assert!(last.sample.memory_limit.is_some() && last.sample.requests.puts > 0, "{:?}", last.sample);
    optimizer.pause();
    let paused = optimizer.history().len();
    std::thread::sleep(Duration::from_millis(2500));
    assert!(optimizer.history().len() <= paused + 1, "a turn may have been under way");
    assert!(!optimizer.is_running());
    optimizer.resume();
    assert!(optimizer.is_running());
    cache.close()?;
    assert!(matches!(optimizer.run_once(), Err(crate::Error::Closed)));
    builder.config_mut().optimizer.enabled = false;
    let cache = builder.open()?;
    assert!(!cache.optimizer().is_running());
    std::thread::sleep(Duration::from_millis(1500));
    assert!(cache.optimizer().history().is_empty());
    cache.optimizer().run_once()?;
    std::thread::sleep(Duration::from_millis(150));
    assert!(cache.optimizer().run_once()?.is_some(), "who asks for a turn gets it");
    Ok(())
}

#[test]
fn a_clock_that_stands_still_or_goes_back_is_no_turn() -> Try {
    let dir = tempfile::tempdir()?;
    let times = [5u64, 5, 3, 6];
    let sensors = script(4, |at, r| r.monotonic = Duration::from_secs(times[at as usize & 3]));
    let cache = open(builder(dir.path()).sensors(sensors))?;
    let turns: Vec<bool> =
        (0..4).map(|_| cache.optimizer().run_once().map(|r| r.is_some())).collect::<Result<_, _>>()?;
    assert_eq!(turns, [false, false, false, true]);
    Ok(())
}

#[test]
fn latencies_of_several_tiers_are_weighed_by_what_they_answered() {
    let histogram = |times: &[u64]| {
        let h = thermocline_storage::latency::Histogram::default();
        times.iter().for_each(|ns| h.record(*ns));
        h.snapshot()
    };
    // One hit in 1,024 is timed in memory; on the disk each.
    let (memory, disk) = (histogram(&[1000; 10]), histogram(&[1_000_000; 100]));
    let parts = [(10_240.0, &memory), (100.0, &disk)];
    let mean = cost(&parts, &Latency::default(), 1e9).unwrap_or_default();
    let expected = (10_240.0 * 1e-6 + 100.0 * 1e-3) / 10_340.0;
    assert!((mean / expected - 1.0).abs() < 0.05, "{mean} {expected}");
    let p99 = quantile(&parts, 0.99).unwrap_or_default();
    assert!((0.9e-6..1.2e-6).contains(&p99), "{p99}: fewer than one in a hundred is slow");
    let p995 = quantile(&parts, 0.995).unwrap_or_default();
    assert!((0.9e-3..1.1e-3).contains(&p995), "{p995}");
    assert_eq!((cost(&[], &memory, 1.0), quantile(&[], 0.99)), (None, None));
}

/// To find nothing is quick, and worth nothing.
#[test]
fn a_miss_costs_what_the_dearest_tier_does() {
    let histogram = |ns: u64| {
        let h = thermocline_storage::latency::Histogram::default();
        h.record(ns);
        h.snapshot()
    };
    let (memory, disk, miss) = (histogram(1000), histogram(1_000_000), histogram(500));
    let none = Latency::default();
    let mut known = [0.0; 4];
    let gets = [memory.clone(), disk.clone(), none.clone(), none.clone()];
    assert_eq!(dearest(&gets, &mut known), 1e6);
    let at = |hits: f64, disk_hits: f64, misses: f64, dear| {
        cost(&[(hits, &memory), (disk_hits, &disk), (misses, &miss)], &miss, dear).unwrap_or_default()
    };
    // Misses that become hits, in memory or on the disk, never make a request dearer.
    let half = at(400.0, 100.0, 500.0, 1e6);
    assert!((half / (0.6e-3 + 0.4e-6) - 1.0).abs() < 1e-3, "{half}");
    assert!(at(400.0, 300.0, 300.0, 1e6) <= half * 1.000_001);
    assert!(at(600.0, 100.0, 300.0, 1e6) < half * 0.7);
    // The disk answered nothing this time: a miss is as dear as before, and each answer moves that a little.
    assert_eq!(dearest(&[memory.clone(), none.clone(), none.clone(), none.clone()], &mut known), 1e6);
    assert_eq!(dearest(&[none.clone(), histogram(9_000_000), none.clone(), none], &mut known), 2e6);
    // Where nothing but a miss was ever timed, it costs its time.
    assert_eq!(cost(&[(3.0, &miss)], &miss, dearest(&[], &mut [0.0; 4])), Some(500e-9));
}

/// What is deflated on its way to the archive costs less while the processors are busy, too.
#[test]
fn busy_processors_reach_the_archive() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = builder(dir.path());
    // What the SSD holds comes to the archive uncompressed.
    (builder.config_mut().ssd.compression, builder.config_mut().hdd.compression) = (false, false);
    let cache = open(builder)?;
    let engine = cache.engine();
    let zlib = |level| Method { algorithm: Algorithm::Zlib, level };
    let lz4 = Method { algorithm: Algorithm::Lz4, level: 1 };
    // Words in an order that repeats seldom: a higher level finds more.
    let text: String = (0..40_000u64)
        .map(|n| ["lake ", "warm ", "cold ", "deep "][(n * n / 7 % 1009 % 4) as usize])
        .collect();
    let stored = |key: &str, content: ContentType| -> Try<u64> {
        let before = cache.stats().content(content).map_or(0, |t| t.deflate.stored_bytes);
        cache.put_with(key, text.clone(), crate::PutOptions::new().content_type(content))?;
        cache.flush()?;
        assert!(cache.demote(key, Tier::Cold)?);
        Ok(cache.stats().content(content).map_or(0, |t| t.deflate.stored_bytes) - before)
    };
    let set = |content, from, to| engine.act(&action(Change::SetCompression { content, from, to }));
    let (text, binary) = (ContentType::Text, ContentType::Binary);
    let (hard, usual) = (stored("a", text)?, stored("b", binary)?);
    assert_eq!(hard, usual, "the same level");
    set(text, zlib(6), zlib(9))?;
    assert!(stored("c", text)? < hard);
    set(text, zlib(9), lz4)?;
    let (quick, also) = (stored("d", text)?, stored("e", binary)?);
    assert!(quick > hard && also == quick, "level 1, of what is always lz4 above as well: {quick}, {also}");
    set(text, lz4, zlib(6))?;
    assert_eq!((stored("f", text)?, stored("g", binary)?), (hard, usual));
    Ok(())
}

#[test]
fn nothing_is_compressed_harder_than_is_configured() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = builder(dir.path());
    let config = builder.config_mut();
    (config.compression.media, config.compression.zlib.level) = (Algorithm::None, 3);
    for strategy in [
        &mut config.strategies.conservative,
        &mut config.strategies.balanced,
        &mut config.strategies.aggressive,
    ] {
        strategy.compression_level = 4;
    }
    let cache = open(builder)?;
    let to = Method { algorithm: Algorithm::Zlib, level: 9 };
    let content = ContentType::Media;
    cache.engine().act(&action(Change::SetCompression { content, from: Method::NONE, to }))?;
    assert_eq!(cache.engine().knobs().methods[3], Method::NONE);
    // Nor harder than is configured anywhere.
    let content = ContentType::Text;
    cache.engine().act(&action(Change::SetCompression { content, from: Method::NONE, to }))?;
    assert_eq!(cache.engine().knobs().methods[0], Method { level: 4, ..to });
    Ok(())
}

#[test]
fn who_goes_through_a_container_reads_as_far_ahead_as_is_set() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(builder(dir.path()))?;
    let (engine, tier) = (cache.engine(), Tier::Hdd);
    for no in 0..120u32 {
        cache.put(no.to_be_bytes(), thermocline_storage::testing::noise(no.into(), 20_000))?;
    }
    cache.flush()?;
    for no in 0..120u32 {
        assert!(cache.demote(no.to_be_bytes(), tier)?);
    }
    let ident = engine.ident(&0u32.to_be_bytes())?;
    let at = engine.catalog.lock(ident).durable(ident).ok_or("it is on disk")?;
    // Over two mebibytes.
    let reads = || -> Try<u64> {
        let reads =
            || engine.meters.of_tier(tier).map(|m| m.traffic().read.count).next().ok_or("no directory");
        let before = reads()?;
        assert_eq!(at.entry.container.list()?.len(), 120);
        Ok(reads()? - before)
    };
    let first = reads()?;
    assert!(first <= 6, "{first} reads of a mebibyte, until the disk is measured");
    engine.act(&action(Change::SetReadAhead { tier, from: MIB, to: 128 << 10 }))?;
    let more = reads()?;
    assert!(more >= 16, "{more} reads of 128 KiB");
    Ok(())
}

/// What the meters saw of the disks reaches the rules.
#[test]
fn a_sample_has_what_the_disks_did() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = open(builder(dir.path()).sensors(script(4, |_, _| ())))?;
    cache.optimizer().run_once()?;
    cache.put("k", vec![7; 100_000])?;
    cache.flush()?;
    cache.optimizer().run_once()?;
    let sample = cache.optimizer().last().ok_or("no record")?.sample;
    let ssd = sample.directories.iter().find(|d| d.tier == Tier::Ssd).ok_or("no SSD")?;
    assert!(ssd.writes > 0 && ssd.syncs > 0 && ssd.sync_mean.is_some_and(|s| s > 0.0), "{ssd:?}");
    assert_eq!(ssd.concurrency, 100);
    Ok(())
}

/// Beats are ten seconds apart, and the first may come right after the use.
#[test]
fn nothing_leaves_before_it_is_as_old_as_was_asked_for() -> Try {
    for (age, beats) in [(1, 2), (10, 2), (15, 3), (20, 3), (21, 4)] {
        let dir = tempfile::tempdir()?;
        let sensors = script(9, |_, r| r.process.anonymous = Some(100 * MIB));
        let (cache, clock) = open_with_clock(builder(dir.path()).sensors(sensors))?;
        let engine = cache.engine();
        cache.put("k", "v")?;
        cache.flush()?;
        cache.optimizer().run_once()?;
        for n in 1..=beats {
            clock.advance(IDLE_BEAT_MS);
            engine.beat_if_due();
            engine.act(&action(Change::EvictIdle { age: Duration::from_secs(age) }))?;
            let there = engine.memory.contains(engine.ident(b"k")?);
            assert_eq!(there, n < beats, "{age} s, after {n} beats");
            if n + 1 == beats {
                // What the rule goes by is no more than what leaves: else it would ask in vain.
                cache.optimizer().run_once()?;
                let oldest = cache.optimizer().last().ok_or("no record")?.sample.oldest_idle;
                assert!(oldest.is_some_and(|o| o <= Duration::from_secs(age)), "{age} s: {oldest:?}");
            }
        }
    }
    Ok(())
}

/// Counts how often they are looked at, by a clock that is given.
struct Watched {
    ms: Arc<AtomicU64>,
    looks: Arc<AtomicU64>,
}

impl Sensors for Watched {
    fn sample(&mut self) -> Readings {
        self.looks.fetch_add(1, Relaxed);
        let monotonic = Duration::from_millis(self.ms.load(Relaxed));
        Readings { monotonic, ..Readings::default() }
    }

    fn now(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(self.ms.load(Relaxed)))
    }
}

/// A look takes its differences from the one before, so what is refused may not look: the next turn would miss that time.
#[test]
fn a_turn_that_comes_too_soon_does_not_look() -> Try {
    let dir = tempfile::tempdir()?;
    let (ms, looks) = <(Arc<_>, Arc<AtomicU64>)>::default();
    let sensors = Watched { ms: Arc::clone(&ms), looks: looks.clone() };
    let cache = open(builder(dir.path()).sensors(sensors))?;
    for (at, turn, looked) in
        [(100_000, false, 1), (100_500, false, 1), (101_000, true, 2), (101_999, false, 2)]
    {
        ms.store(at, Relaxed);
        assert_eq!(cache.optimizer().run_once()?.is_some(), turn, "at {at} ms");
        assert_eq!(looks.load(Relaxed), looked, "at {at} ms");
    }
    Ok(())
}
