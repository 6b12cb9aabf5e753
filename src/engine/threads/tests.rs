//! When what nobody waits for becomes durable, and who waits if it does not.

use crate::engine::testkit::Try;
use crate::{Cache, Error, Persistence};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use thermocline_storage::clock::{Clock, ManualClock, SystemClock};
use thermocline_storage::testing::{Fault, FaultFs, Op};
use thermocline_storage::vfs::{RealFs, Vfs};

/// The writer gathers for a second.
const SOON: Duration = Duration::from_secs(2);
/// So often it may take longer, for want of a processor.
const TRIES: u32 = 15;
/// Over a quarter of the write buffer.
const LARGE: usize = 300_000;

fn open(
    dir: &Path,
    persistence: Persistence,
    vfs: Arc<dyn Vfs>,
    clock: Arc<dyn Clock>,
) -> Result<Cache, Error> {
    let mut builder = Cache::builder().memory(4 << 20).ssd(dir, 64 << 20).persistence(persistence);
    builder.config_mut().resources.io.write_buffer_size = 1 << 20;
    let storage = &mut builder.config_mut().storage;
    storage.write_stall_limit = 1;
    builder.world(vfs, clock, true).open()
}

/// Until everything that is to be durable by itself is; gives how long that took.
fn settled(cache: &Cache) -> Duration {
    let (begun, catalog) = (Instant::now(), &cache.engine().catalog);
    while catalog.buffer.oldest_ms().is_some() || catalog.oldest_frame_ms().is_some() {
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody writes");
        std::thread::sleep(Duration::from_millis(5));
    }
    begun.elapsed()
}

/// A kill after a second or so loses nothing, though nobody flushed, woke the writer, or did anything else.
fn is_durable_soon(
    persistence: Persistence,
    work: fn(&Cache) -> Result<(), Error>,
    then: fn(&Cache) -> Try,
) -> Try {
    let mut took = Vec::new();
    for _ in 0..TRIES {
        let dir = tempfile::tempdir()?;
        let cache = open(dir.path(), persistence, Arc::new(RealFs), Arc::new(SystemClock))?;
        cache.put("removed", "old")?;
        cache.flush()?;
        work(&cache)?;
        took.push(settled(&cache));
        cache.crash();
        drop(cache);
        then(&open(dir.path(), persistence, Arc::new(RealFs), Arc::new(SystemClock))?)?;
        if took.last().is_some_and(|took| *took < SOON) {
            return Ok(());
        }
    }
    Err(format!("{persistence:?}: it took {took:?}").into())
}

#[test]
fn what_was_put_or_removed_is_durable_within_a_second() -> Try {
    is_durable_soon(
        Persistence::EverySecond,
        |cache| {
            cache.put("put", "new")?;
            cache.put("large", vec![7; LARGE])?;
            cache.remove("removed").map(drop)
        },
        |cache| {
            assert_eq!(cache.get("put")?.as_deref(), Some(&b"new"[..]));
            assert_eq!(cache.get("large")?.as_deref(), Some(&[7; LARGE][..]));
            assert_eq!(cache.get("removed")?, None);
            Ok(())
        },
    )
}

#[test]
fn what_was_removed_is_durable_within_a_second_though_values_wait_for_eviction() -> Try {
    is_durable_soon(
        Persistence::OnEviction,
        |cache| {
            cache.put("put", "new")?;
            cache.remove("removed").map(drop)
        },
        |cache| {
            assert_eq!((cache.get("put")?, cache.get("removed")?), (None, None));
            Ok(())
        },
    )
}

/// Who writes waits while the disk has not taken for two seconds what is to be durable soon, be it a value, a removal, or
/// the frame of a value that its caller wrote.
#[test]
fn who_writes_waits_for_what_is_two_seconds_old() -> Try {
    type Work = fn(&Cache) -> Result<(), Error>;
    let value: Work = |cache| cache.put("value", "1");
    let large: Work = |cache| cache.put("large", vec![1; LARGE]);
    let removal: Work = |cache| cache.remove("there").map(drop);
    let cases = [
        (Persistence::EverySecond, value, true, true),
        (Persistence::EverySecond, large, true, true),
        (Persistence::EverySecond, removal, true, true),
        (Persistence::OnEviction, value, false, false),
        (Persistence::OnEviction, removal, false, true),
    ];
    for (no, (persistence, work, puts_wait, removals_wait)) in cases.into_iter().enumerate() {
        let dir = tempfile::tempdir()?;
        let (disk, held) = (FaultFs::default(), Arc::new(AtomicBool::new(false)));
        let hold = held.clone();
        disk.watch(move |c| {
            // The catalog's: a value that its caller writes is to get so far.
            let journal = c.path.to_string_lossy().contains("journal");
            while c.op == Op::Sync && journal && hold.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let cache = open(dir.path(), persistence, Arc::new(disk), clock.clone())?;
        for key in ["there", "also there", "here"] {
            cache.put(key, "old")?;
        }
        cache.flush()?;
        held.store(true, Ordering::SeqCst);
        work(&cache)?;
        clock.advance(1_999);
        let early = [cache.put("early", "2"), cache.remove("here").map(drop)];
        clock.advance(1);
        let late = [cache.put("late", "3"), cache.remove("also there").map(drop)];
        held.store(false, Ordering::SeqCst);
        assert!(early.iter().all(Result::is_ok), "{no}: {early:?}");
        let waited = late.each_ref().map(|done| matches!(done, Err(Error::Busy { .. })));
        assert_eq!(waited, [puts_wait, removals_wait], "{no}: {late:?}");
        settled(&cache);
        cache.put("late", "4")?;
        cache.remove("also there")?;
    }
    Ok(())
}

/// The next beat comes a second later: nothing that waits when one begins is left to that, however many batches it takes.
#[test]
fn a_beat_writes_all_that_waited_when_it_began() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = Cache::builder().memory(4 << 20).ssd(dir.path(), 64 << 20);
    builder.config_mut().resources.io.write_buffer_size = 1 << 20;
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let cache = builder.world(Arc::new(RealFs), clock, false).open()?;
    // A batch takes half of the write buffer; the rest is neither much nor old.
    for key in 0..8u8 {
        cache.put([key], vec![key; 100_000])?;
    }
    assert_eq!(cache.engine().catalog.buffer.queued(), 8);
    cache.step()?;
    assert_eq!(cache.engine().catalog.buffer.queued(), 0);
    Ok(())
}

/// What failed to become durable is tried again by the writer itself, whoever else does or does not do anything.
#[test]
fn the_writer_tries_again_once_the_catalogs_disk_is_back() -> Try {
    for work in [|cache: &Cache| cache.put("k", "1"), |cache: &Cache| cache.remove("there").map(drop)] {
        let dir = tempfile::tempdir()?;
        let (disk, dead) = (FaultFs::default(), Arc::new(AtomicBool::new(false)));
        let cache =
            open(dir.path(), Persistence::EverySecond, Arc::new(disk.clone()), Arc::new(SystemClock))?;
        cache.put("there", "old")?;
        cache.flush()?;
        // Neither the journal can be synced, nor a checkpoint be written in its place.
        let catalog = dir.path().join("catalog");
        for op in [Op::Sync, Op::Write, Op::Create] {
            disk.fail(Fault::on(op).below(&catalog));
        }
        let (saw, seen) = (dead.clone(), catalog.clone());
        disk.watch(move |c| {
            if [Op::Sync, Op::Write, Op::Create].contains(&c.op) && c.path.starts_with(&seen) {
                saw.store(true, Ordering::SeqCst);
            }
        });
        work(&cache)?;
        let begun = Instant::now();
        while !dead.load(Ordering::SeqCst) {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody writes");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Well into the time in which nothing works.
        std::thread::sleep(Duration::from_millis(700));
        disk.heal();
        settled(&cache);
        cache.crash();
    }
    Ok(())
}

/// A panic in a background thread, here of the file system, does not end it.
#[test]
fn the_writer_goes_on_after_a_panic() -> Try {
    let dir = tempfile::tempdir()?;
    let disk = FaultFs::default();
    let armed = disk.panicking(Op::Write);
    let cache = open(dir.path(), Persistence::EverySecond, Arc::new(disk), Arc::new(SystemClock))?;
    armed.store(true, Ordering::SeqCst);
    cache.put("k", "1")?;
    settled(&cache);
    assert!(!armed.load(Ordering::SeqCst), "it panicked");
    cache.crash();
    drop(cache);
    let cache = open(dir.path(), Persistence::EverySecond, Arc::new(RealFs), Arc::new(SystemClock))?;
    assert_eq!(cache.get("k")?.as_deref(), Some(&b"1"[..]));
    Ok(())
}
