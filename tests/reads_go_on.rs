//! Reads wait for no background work: while a write, a sync or a deletion of the write buffer, of a move, of reclaim, of
//! rewriting, of the reaper or of a checkpoint does not come to an end, or a read of a move or of a verification, items are found in memory and on each tier, absent
//! ones are not, and memory is written to.

#[path = "common/gate.rs"]
mod gate;

use gate::{Gate, LONG, Release};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use thermocline::config::ReadMode;
use thermocline::testing::ManualClock;
use thermocline::{Builder, Cache, Tier};
use thermocline_storage::testing::{FaultFs, Op};

type Try<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Memory holds two entries, so that reads go to the disk. No threads: who is held up is who is called.
fn builder(dir: &Path) -> Builder {
    let builder = Cache::builder().memory(1 << 20).memory_item_limit(2);
    builder.ssd(dir.join("s"), 32 << 20).hdd(dir.join("h"), 64 << 20).cold(dir.join("c"))
}

/// A store with an item of each name on its tier, and its gate and clock.
fn store(dir: &Path) -> Try<(Cache, Arc<Gate>, Arc<ManualClock>)> {
    filled(builder(dir))
}

fn filled(builder: Builder) -> Try<(Cache, Arc<Gate>, Arc<ManualClock>)> {
    let (fs, clock) = (FaultFs::default(), Arc::new(ManualClock::new(1_700_000_000_000)));
    let cache = builder.world(Arc::new(fs.clone()), clock.clone(), false).open()?;
    for (key, tier) in [("ssd", Tier::Ssd), ("hdd", Tier::Hdd), ("cold", Tier::Cold)] {
        cache.put(key, key.repeat(1_000))?;
        cache.flush()?;
        cache.demote(key, tier)?;
        assert_eq!(cache.tier_of(key)?, Some(tier));
    }
    Ok((cache, Gate::of(&fs), clock))
}

/// Everything that a reader may want, in time.
fn reads(cache: &Cache) -> Try {
    let (cache, (done, result)) = (cache.clone(), mpsc::channel::<thermocline::Result<()>>());
    std::thread::spawn(move || {
        let all = || -> thermocline::Result<()> {
            for key in ["ssd", "hdd", "cold"] {
                assert_eq!(cache.get(key)?.as_deref(), Some(key.repeat(1_000).as_bytes()));
                assert!(cache.contains(key)?);
            }
            assert_eq!(cache.get("absent")?, None);
            assert!(cache.keys("").count() >= 4);
            Ok(())
        };
        done.send(all())
    });
    result.recv_timeout(LONG).map_err(|_| "a read waits for what goes on in the background")??;
    Ok(())
}

/// Runs `work` on a thread of its own until it waits for a sync of a path with `part` in it, and reads meanwhile.
fn while_held(
    part: &str,
    work: impl FnOnce(&Cache, &ManualClock) -> thermocline::Result<()> + Send + 'static,
) -> Try {
    while_any_held(Op::Sync, part, work)
}

/// The same for calls of another kind.
fn while_any_held(
    op: Op,
    part: &str,
    work: impl FnOnce(&Cache, &ManualClock) -> thermocline::Result<()> + Send + 'static,
) -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, gate, clock) = store(dir.path())?;
    cache.put("new", "in the write buffer")?;
    gate.hold_any(op, part);
    let release = Release(gate.clone());
    let (working, (done, result)) = (cache.clone(), mpsc::channel());
    std::thread::spawn(move || done.send(work(&working, &clock)));
    gate.until_held();
    let read = reads(&cache);
    drop(release);
    result.recv_timeout(LONG)??;
    read
}

#[test]
fn while_the_write_buffer_is_written() -> Try {
    while_held("segments", |cache, _| cache.flush())
}

#[test]
fn while_the_journal_is_synced() -> Try {
    while_held("journal", |cache, _| cache.flush())
}

#[test]
fn while_an_item_sinks() -> Try {
    while_held("packs", |cache, _| cache.demote("hdd", Tier::Cold).map(drop))
}

#[test]
fn while_an_item_rises() -> Try {
    while_held("segments", |cache, _| cache.promote("cold", Tier::Ssd).map(drop))
}

#[test]
fn while_a_checkpoint_is_written() -> Try {
    while_held("checkpoint", |cache, clock| {
        // More than a page of journal, and later than the interval.
        for _ in 0..100 {
            cache.put("new", "and newer")?;
            cache.flush()?;
        }
        clock.advance(1_000_000);
        cache.step()
    })
}

/// A key that is nowhere is looked for in the catalog alone; some of these are in each shard of it.
fn looks(cache: &Cache) -> Try {
    let (cache, (done, result)) = (cache.clone(), mpsc::channel());
    std::thread::spawn(move || {
        done.send((0..5_000).try_for_each(|n| cache.contains(format!("absent/{n}")).map(drop)))
    });
    result.recv_timeout(LONG).map_err(|_| "a look into the catalog waits for a move's reads")??;
    Ok(())
}

#[test]
fn while_an_item_that_rises_is_read() -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, gate, _) = store(dir.path())?;
    gate.hold_any(Op::Read, "packs");
    let _release = Release(gate.clone());
    let (working, (done, result)) = (cache.clone(), mpsc::channel());
    std::thread::spawn(move || done.send(working.promote("cold", Tier::Ssd)));
    let mut held = 0;
    let rose = loop {
        match result.recv_timeout(Duration::from_millis(10)) {
            Err(mpsc::RecvTimeoutError::Timeout) if gate.holds() => {
                looks(&cache)?;
                held += 1;
                gate.let_one_pass();
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            rose => break rose??,
        }
    };
    assert!(rose && held > 1, "it was read {held} times");
    Ok(())
}

/// More than the SSD holds: it is reclaimed, and what is in it sinks.
fn overflow(cache: &Cache, _: &ManualClock) -> thermocline::Result<()> {
    for n in 0u8..48 {
        cache.put([n], noise(n))?;
        cache.flush()?;
        cache.step()?;
    }
    Ok(())
}

/// A mebibyte that nothing compresses.
fn noise(n: u8) -> Vec<u8> {
    let mut state = u64::from(n) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..1 << 20).map(|_| next()).collect()
}

#[test]
fn while_reclaim_reads_and_writes() -> Try {
    while_any_held(Op::Write, "values", overflow)
}

#[test]
fn while_reclaim_drops_a_segment() -> Try {
    while_any_held(Op::RemoveFile, "segments", overflow)
}

#[test]
fn while_a_segment_is_made() -> Try {
    while_any_held(Op::Allocate, "segments", overflow)
}

/// Packs of one item each, many of them: they are rewritten into one.
fn scatter(cache: &Cache) -> thermocline::Result<()> {
    for n in 0u8..40 {
        cache.put([n], vec![n; 1000])?;
        cache.flush()?;
        cache.demote([n], Tier::Cold)?;
    }
    Ok(())
}

#[test]
fn while_packs_are_rewritten() -> Try {
    while_any_held(Op::RemoveFile, "packs", |cache, _| {
        scatter(cache)?;
        cache.step()
    })
}

#[test]
fn while_expired_items_are_reaped() -> Try {
    while_any_held(Op::RemoveFile, "packs", |cache, clock| {
        scatter(cache)?;
        for n in 0u8..40 {
            cache.expire_in([n], Some(Duration::from_secs(10)))?;
        }
        clock.advance(1_000_000);
        cache.step()
    })
}

/// One read at a time is allowed for each directory.
fn one_at_a_time(dir: &Path) -> Builder {
    let mut builder = builder(dir);
    builder.config_mut().resources.io.max_concurrent_ops = 1;
    // What is mapped is not read through this gate.
    builder.config_mut().storage.read_mode = ReadMode::Pread;
    builder
}

#[test]
fn while_a_verification_s_read_hangs_where_one_at_a_time_is_allowed() -> Try {
    for part in ["segments", "generations", "packs"] {
        let dir = tempfile::tempdir()?;
        let (cache, gate, _) = filled(one_at_a_time(dir.path()))?;
        cache.put("new", "and written")?;
        cache.flush()?;
        gate.hold_one(Op::Read, part);
        let release = Release(gate.clone());
        let (working, (done, result)) = (cache.clone(), mpsc::channel());
        std::thread::spawn(move || done.send(working.verify()));
        gate.until_held();
        let read = reads(&cache);
        drop(release);
        let report = result.recv_timeout(LONG)??;
        assert!(report.is_clean() && report.items >= 3, "{report:?}");
        read.map_err(|e| format!("{part}: {e}"))?;
    }
    Ok(())
}

#[test]
fn while_a_move_s_read_hangs_where_one_at_a_time_is_allowed() -> Try {
    let dir = tempfile::tempdir()?;
    drop(filled(one_at_a_time(dir.path()))?);
    let (fs, clock) = (FaultFs::default(), Arc::new(ManualClock::new(1_700_000_100_000)));
    let cache = one_at_a_time(dir.path()).world(Arc::new(fs.clone()), clock, true).open()?;
    let gate = Gate::of(&fs);
    gate.hold_one(Op::Read, "segments");
    let release = Release(gate.clone());
    // More than the SSD holds, and less than may wait to be written: nothing but the mover reads of it.
    for n in 0u8..48 {
        cache.put([n], noise(n))?;
    }
    gate.until_held();
    let read = reads(&cache);
    drop(release);
    cache.close()?;
    read
}

/// Whoever flushes makes room himself, where nobody else did.
#[test]
fn while_a_read_of_who_makes_room_hangs_where_one_at_a_time_is_allowed() -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, gate, _) = filled(one_at_a_time(dir.path()))?;
    gate.hold_one(Op::Read, "segments");
    let release = Release(gate.clone());
    let (working, (done, result)) = (cache.clone(), mpsc::channel());
    std::thread::spawn(move || {
        // More than the SSD holds.
        let fill = || {
            for n in 0u8..48 {
                working.put([n], noise(n))?;
                working.flush()?;
            }
            Ok::<_, thermocline::Error>(())
        };
        done.send(fill())
    });
    gate.until_held();
    let read = reads(&cache);
    drop(release);
    result.recv_timeout(LONG)??;
    read
}
