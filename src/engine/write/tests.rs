//! Writes on the engine itself, where the surface does not reach.

use super::{Engine, NewValue};
use crate::engine::testkit::Try;
use crate::{Cache, ContentType, Error, Event, Persistence, Received, Subscription, Tier};
use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use thermocline_storage::catalog::DirtyValue;
use thermocline_storage::clock::{Clock, SystemClock};
use thermocline_storage::pair::Pair;
use thermocline_storage::testing::{FaultFs, Op};
use thermocline_storage::vfs::RealFs;

/// Keys and tiers of what was displaced.
fn displaced(events: &Subscription) -> Vec<(Option<Bytes>, Tier)> {
    let of = |received| match received {
        Received::Event(Event::Displaced { key, tier }) => Some((key, tier)),
        _ => None,
    };
    std::iter::from_fn(|| events.try_recv().ok()).filter_map(of).collect()
}

/// What is put under the identity of another key, as if the two had the same.
fn value_of(key: &[u8]) -> NewValue {
    let pair = Pair::new(key, &Bytes::from_static(b"value"));
    NewValue { pair, content_type: ContentType::Text, expires_at: 0 }
}

#[test]
fn what_another_key_of_the_identity_displaces_is_told_once_wherever_its_key_is_known() -> Try {
    let dir = tempfile::tempdir()?;
    let builder = Cache::builder().memory(4 << 20).ssd(dir.path(), 256 << 20);
    let builder = builder.persistence(Persistence::OnEviction);
    let cache = builder.world(Arc::new(RealFs), Arc::new(SystemClock), false).open()?;
    let (engine, events) = (cache.engine(), cache.subscribe());
    let ident = engine.ident(b"a")?;
    let told = |key: &'static [u8], tier| vec![(Some(Bytes::from_static(key)), tier)];

    // In memory and in the write buffer: one item, told once.
    cache.put("a", "1")?;
    engine.put_dirty(ident, value_of(b"b"), &mut |_| true)?;
    assert_eq!(displaced(&events), told(b"a", Tier::Memory));
    // The same key is not displaced.
    engine.put_dirty(ident, value_of(b"b"), &mut |_| true)?;
    assert_eq!(displaced(&events), []);
    // In the write buffer alone.
    engine.memory.remove(ident);
    engine.put_dirty(ident, value_of(b"c"), &mut |_| true)?;
    assert_eq!(displaced(&events), told(b"b", Tier::Memory));
    // What stands in the queue is written first, and a put does not read the disk; what does not is told.
    engine.memory.remove(ident);
    engine.put_large(ident, value_of(b"d"), &mut |_| true)?;
    assert_eq!(displaced(&events), []);
    let waiting = engine.ident(b"w")?;
    cache.put("w", "1")?;
    engine.memory.remove(waiting);
    engine.put_large(waiting, value_of(b"x"), &mut |_| true)?;
    assert_eq!(displaced(&events), told(b"w", Tier::Memory));

    // By a removal: from disk, from memory above it, and from the write buffer alone.
    engine.memory.remove(ident);
    assert_eq!(engine.remove_if(ident, b"a", |_| true)?, Some(false));
    assert_eq!(displaced(&events), told(b"d", Tier::Ssd));
    engine.put_large(ident, value_of(b"e"), &mut |_| true)?;
    assert_eq!(engine.remove_if(ident, b"a", |_| true)?, Some(false));
    assert_eq!(displaced(&events), told(b"e", Tier::Memory));
    engine.put_dirty(ident, value_of(b"f"), &mut |_| true)?;
    engine.memory.remove(ident);
    assert_eq!(engine.remove_if(ident, b"a", |_| true)?, Some(false));
    assert_eq!(displaced(&events), told(b"f", Tier::Memory));
    assert_eq!(engine.remove_if(ident, b"a", |_| true)?, Some(false));
    assert_eq!((displaced(&events), cache.stats().counts.displaced), (vec![], 6));
    Ok(())
}

#[test]
fn memory_alone_tells_whom_a_removal_displaced() -> Try {
    let cache = Cache::builder().memory(4 << 20).open()?;
    let events = cache.subscribe();
    let ident = cache.engine().ident(b"a")?;
    cache.put("a", "1")?;
    assert_eq!(cache.engine().remove_if(ident, b"b", |_| true)?, Some(false));
    assert_eq!(displaced(&events), [(Some(Bytes::from_static(b"a")), Tier::Memory)]);
    Ok(())
}

#[test]
fn memory_alone_keeps_the_older_value_when_a_put_fails() -> Try {
    let cache = Cache::builder().memory(4 << 20).open()?;
    cache.put("k", "old")?;
    // As when memory is given back to the system: values that were allowed are too large now.
    cache.engine().memory.set_limits(64 << 10, 100, &mut Vec::new());
    let refused = cache.put("k", vec![0; 128 << 10]);
    assert!(matches!(refused, Err(Error::ValueTooLarge { .. })), "{refused:?}");
    assert_eq!(cache.get("k")?.as_deref(), Some(&b"old"[..]));
    Ok(())
}

/// What `put_large` does under the lock.
fn large(engine: &Engine, key: &'static [u8], value: &'static [u8]) -> Try<Arc<DirtyValue>> {
    let pair = Pair::new(key, &Bytes::from_static(value));
    let new = NewValue { pair, content_type: ContentType::Text, expires_at: 0 };
    let ident = engine.ident(key)?;
    let value = engine.catalog.lock(ident).put_in_flight(ident, new);
    engine.memory.remove(ident);
    Ok(value)
}

/// Two puts of a key whose callers write them, which both fail, leave what was before them, in whichever order.
#[test]
fn of_two_large_puts_that_fail_neither_comes_back() -> Try {
    for second_first in [false, true] {
        for durable in [false, true] {
            let dir = tempfile::tempdir()?;
            let cache = Cache::builder().memory(4 << 20).ssd(dir.path(), 256 << 20);
            let cache = cache.persistence(Persistence::OnEviction);
            let cache = cache.world(Arc::new(RealFs), Arc::new(SystemClock), false).open()?;
            let engine = cache.engine();
            cache.put("k", "old")?;
            if durable {
                cache.flush()?;
            }
            let ident = engine.ident(b"k")?;
            let (a, b) = (large(engine, b"k", b"first")?, large(engine, b"k", b"second")?);
            let (one, other) = if second_first { (&b, &a) } else { (&a, &b) };
            engine.catalog.lock(ident).abort(ident, one);
            // The committer may come between.
            engine.commit_step()?;
            let left: &[u8] = if second_first { b"first" } else { b"second" };
            assert_eq!(cache.get("k")?.as_deref(), Some(left));
            engine.memory.remove(ident);
            engine.catalog.lock(ident).abort(ident, other);
            for _ in 0..2 {
                assert_eq!(cache.get("k")?.as_deref(), Some(&b"old"[..]), "{second_first} {durable}");
                cache.flush()?;
                engine.memory.remove(ident);
            }
        }
    }
    Ok(())
}

/// A change of expiry puts the value again, and must not put again what its caller is then told has failed.
#[test]
fn the_expiry_of_a_large_value_waits_for_its_end() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = Cache::builder().memory(4 << 20).ssd(dir.path(), 256 << 20);
    builder.config_mut().storage.write_stall_limit = 1;
    let cache = builder.world(Arc::new(RealFs), Arc::new(SystemClock), false).open()?;
    let engine = cache.engine();
    let (ident, value) = (engine.ident(b"k")?, large(engine, b"k", b"refused")?);
    let asked = cache.expire_in("k", Some(Duration::from_secs(600)));
    assert!(matches!(asked, Err(Error::Busy { .. })), "{asked:?}");
    engine.catalog.lock(ident).abort(ident, &value);
    engine.memory.remove(ident);
    assert_eq!(cache.get("k")?, None);
    assert!(!cache.expire_in("k", None)?);
    Ok(())
}

/// Who is told that a put is durable is told so of what became of it: a clear, which has to be durable too.
#[test]
fn a_put_that_a_clear_takes_away_returns_when_that_is_durable() -> Try {
    let dir = tempfile::tempdir()?;
    let (disk, held, met) =
        (FaultFs::default(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (hold, meet) = (held.clone(), met.clone());
    disk.watch(move |c| {
        while c.op == Op::Sync && hold.load(Ordering::SeqCst) {
            meet.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let cache = Cache::builder().memory(4 << 20).ssd(dir.path(), 256 << 20).persistence(Persistence::Always);
    let cache = cache.world(Arc::new(disk), Arc::new(SystemClock), true).open()?;
    cache.put("k", "older")?;
    held.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let put = scope.spawn(|| cache.put("k", "newer"));
        while !met.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let clear = scope.spawn(|| cache.clear());
        std::thread::sleep(Duration::from_millis(500));
        // Nothing is durable: after a crash the older value would be back.
        let told = put.is_finished();
        held.store(false, Ordering::SeqCst);
        assert!(!told);
        assert!(put.join().is_ok_and(|r| r.is_ok()) && clear.join().is_ok_and(|r| r.is_ok()));
    });
    assert_eq!(cache.get("k")?, None);
    Ok(())
}

/// Who puts faster than the disk takes it waits: the write buffer holds no more than its limit, in any mode.
#[test]
fn the_write_buffer_holds_no_more_than_its_limit() -> Try {
    for persistence in [Persistence::EverySecond, Persistence::OnEviction] {
        let dir = tempfile::tempdir()?;
        let mut builder = Cache::builder().memory(8 << 20).ssd(dir.path(), 64 << 20).persistence(persistence);
        builder.config_mut().resources.io.write_buffer_size = 1 << 20;
        let cache = builder.world(Arc::new(RealFs), Arc::new(SystemClock), false).open()?;
        let buffer = &cache.engine().catalog.buffer;
        let mut most = 0;
        for n in 0..1_000u32 {
            cache.put(n.to_be_bytes(), vec![7; 10_000])?;
            most = buffer.bytes().max(most);
        }
        assert!((500_000..=1 << 20).contains(&most), "{persistence:?}: {most} bytes");
    }
    Ok(())
}

/// What panics while a caller writes a large value, here the file system, ends that put and no other: nobody waits for
/// it for ever, and nobody reads it.
#[test]
fn a_panic_while_a_large_value_is_written_leaves_its_key_as_it_was() -> Try {
    for persistence in [Persistence::Always, Persistence::EverySecond] {
        let dir = tempfile::tempdir()?;
        let disk = FaultFs::default();
        let armed = disk.panicking(Op::Write);
        let mut builder = Cache::builder().memory(8 << 20).ssd(dir.path(), 64 << 20).persistence(persistence);
        builder.config_mut().resources.io.write_buffer_size = 1 << 20;
        let storage = &mut builder.config_mut().storage;
        storage.write_stall_limit = 1;
        let cache = builder.world(Arc::new(disk), Arc::new(SystemClock), false).open()?;
        let engine = cache.engine();
        cache.put("k", "old")?;
        cache.flush()?;
        armed.store(true, Ordering::SeqCst);
        let put = catch_unwind(AssertUnwindSafe(|| cache.put("k", vec![1; 400_000])));
        assert!(put.is_err() && !armed.load(Ordering::SeqCst), "it panicked");
        assert_eq!(cache.get("k")?.as_deref(), Some(&b"old"[..]), "{persistence:?}");
        assert!(cache.expire_in("k", None)?, "{persistence:?}");
        cache.put("k", vec![2; 400_000])?;
        cache.flush()?;
        engine.memory.remove(engine.ident(b"k")?);
        assert_eq!(cache.get("k")?.as_deref(), Some(&[2; 400_000][..]), "{persistence:?}");
        assert!(cache.remove("k")?);
        let stats = engine.catalog.stats();
        assert_eq!((stats.dirty, stats.indexed), (0, 0), "{persistence:?}");
    }
    Ok(())
}

/// While small ones come without end it is never empty, and a value of more than what is left waits no longer than they.
#[test]
fn a_write_buffer_that_was_made_small_takes_values_larger_than_it_is() -> Try {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir()?;
    let builder = Cache::builder().memory(64 * MIB).ssd(dir.path(), 256 * MIB);
    let cache = builder.world(Arc::new(RealFs), Arc::new(SystemClock), false).open()?;
    let engine = cache.engine();
    let most = engine.settings.write_buffer;
    assert_eq!(engine.dials.set_write_buffer(MIB), MIB);
    cache.put("a", vec![1; 100_000])?;
    for bytes in [1, MIB, 2 * MIB, most / 4] {
        assert!(engine.room(bytes, false), "{bytes}");
    }
    assert!(!engine.room(most, false), "never more than configured");
    cache.put("b", vec![2; 2 * MIB as usize])?;
    assert!(engine.catalog.buffer.bytes() > 2 * MIB, "it waits beside the other");
    assert!(!engine.room(1, false), "it is full");
    // What is written past the buffer does not wait until it is empty either.
    assert_eq!(engine.dials.set_write_buffer(most), most);
    for no in 0..(most / MIB - 4) {
        cache.put(no.to_be_bytes(), vec![3; MIB as usize - 1000])?;
    }
    let stalls = cache.stats().counts.stalls;
    cache.put("large", vec![4; most as usize / 4 + 1])?;
    assert_eq!(cache.stats().counts.stalls, stalls);
    Ok(())
}

/// The machine's clock, which panics once: when it is asked so many times more.
#[derive(Debug, Default)]
struct Clumsy(AtomicU32);

impl Clock for Clumsy {
    fn wall_ms(&self) -> u64 {
        SystemClock.wall_ms()
    }

    fn boot_ms(&self) -> u64 {
        self.stumble();
        SystemClock.boot_ms()
    }

    fn awake_ms(&self) -> u64 {
        self.stumble();
        SystemClock.awake_ms()
    }
}

impl Clumsy {
    fn stumble(&self) {
        let less = |n: u32| n.checked_sub(1);
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        assert!(left != Ok(1), "on purpose");
    }
}

/// Whatever panics after the sync: who waits for a large put is told that it ended well exactly if it is there.
#[test]
fn what_is_told_of_a_large_put_that_panics_is_what_became_of_it() -> Try {
    let dir = tempfile::tempdir()?;
    let (disk, clock) = (FaultFs::default(), Arc::new(Clumsy::default()));
    let (held, met) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (hold, meet, catalog) = (held.clone(), met.clone(), dir.path().join("catalog"));
    disk.watch(move |c| {
        while c.op == Op::Sync && c.path.starts_with(&catalog) && hold.load(Ordering::SeqCst) {
            meet.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let mut builder =
        Cache::builder().memory(8 << 20).ssd(dir.path(), 64 << 20).persistence(Persistence::Always);
    builder.config_mut().resources.io.write_buffer_size = 1 << 20;
    let cache = builder.world(Arc::new(disk), clock.clone(), false).open()?;
    let (engine, ident) = (cache.engine(), cache.engine().ident(b"k")?);
    let mut well_though_it_panicked = 0;
    for n in 1..100u8 {
        held.store(true, Ordering::SeqCst);
        met.store(false, Ordering::SeqCst);
        let (ended, outcome) = std::thread::scope(|scope| {
            let put = scope.spawn(|| catch_unwind(AssertUnwindSafe(|| cache.put("k", vec![n; 400_000]))));
            while !met.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let outcome = engine.catalog.lock(ident).pending(ident);
            clock.0.store(n.into(), Ordering::SeqCst);
            held.store(false, Ordering::SeqCst);
            (put.join(), outcome)
        });
        clock.0.store(0, Ordering::SeqCst);
        let told = outcome.and_then(|o| o.wait(Duration::ZERO)).ok_or("nothing is told")?;
        let there = cache.get("k")?.is_some_and(|v| v[..] == [n; 400_000]);
        assert_eq!(told.is_ok(), there, "{n}");
        match ended {
            Ok(Ok(put)) => {
                put?;
                assert!(well_though_it_panicked > 0);
                return Ok(());
            }
            _ => well_though_it_panicked += u32::from(there),
        }
    }
    Err("it panics for ever".into())
}

/// What a batch carried when something panicked, here the file system, waits again: a flush writes it.
#[test]
fn what_panics_while_a_batch_is_written_loses_none_of_its_values() -> Try {
    let dir = tempfile::tempdir()?;
    let disk = FaultFs::default();
    let armed = disk.panicking(Op::Write);
    let cache = Cache::builder().memory(8 << 20).ssd(dir.path(), 64 << 20);
    let cache = cache.world(Arc::new(disk), Arc::new(SystemClock), false).open()?;
    let engine = cache.engine();
    for n in 0..100u8 {
        cache.put([n], vec![n; 1000])?;
    }
    armed.store(true, Ordering::SeqCst);
    assert!(catch_unwind(AssertUnwindSafe(|| cache.flush())).is_err());
    assert!(!armed.load(Ordering::SeqCst));
    assert_eq!(engine.catalog.buffer.queued(), 100);
    cache.flush()?;
    assert_eq!((engine.catalog.buffer.queued(), engine.catalog.buffer.bytes()), (0, 0));
    let stats = engine.catalog.stats();
    assert_eq!((stats.dirty, stats.indexed), (0, 100));
    for n in 0..100u8 {
        engine.memory.remove(engine.ident(&[n])?);
        assert_eq!(cache.get([n])?.as_deref(), Some(&[n; 1000][..]));
    }
    Ok(())
}

/// Whatever panics between what was taken to be written and its end, here the clock at each of its calls.
#[test]
fn a_panic_anywhere_in_a_batch_loses_none_of_its_values() -> Try {
    for n in 1..100u32 {
        let (dir, clock) = (tempfile::tempdir()?, Arc::new(Clumsy::default()));
        let builder = || Cache::builder().memory(8 << 20).ssd(dir.path(), 64 << 20);
        let cache = builder().world(Arc::new(RealFs), clock.clone(), false).open()?;
        for round in 0..2u8 {
            for key in 0..20u8 {
                cache.put([key], vec![round; 1000])?;
            }
            if round == 0 {
                cache.flush()?;
            }
        }
        clock.0.store(n, Ordering::SeqCst);
        let ended = catch_unwind(AssertUnwindSafe(|| cache.engine().commit_step()));
        clock.0.store(0, Ordering::SeqCst);
        cache.flush()?;
        let stats = cache.engine().catalog.stats();
        assert_eq!((stats.dirty, stats.indexed, cache.engine().catalog.buffer.bytes()), (0, 20, 0), "{n}");
        cache.crash();
        drop(cache);
        let cache = builder().world(Arc::new(RealFs), Arc::new(SystemClock), false).open()?;
        for key in 0..20u8 {
            assert_eq!(cache.get([key])?.as_deref(), Some(&[1; 1000][..]), "{n}");
        }
        if ended.is_ok() {
            assert!(n > 4, "it panicked so seldom");
            return Ok(());
        }
    }
    Err("it panics for ever".into())
}

/// Who waits for values of one batch is told of each how it ended, whatever panics before or after the journal's sync.
#[test]
fn what_is_told_of_a_batch_that_panics_is_what_became_of_each_value() -> Try {
    let (mut all_well, mut none_well) = (0, 0);
    for n in 1..100u32 {
        let (dir, clock) = (tempfile::tempdir()?, Arc::new(Clumsy::default()));
        let builder = Cache::builder().memory(8 << 20).ssd(dir.path(), 64 << 20);
        let builder = builder.persistence(Persistence::Always);
        let cache = builder.world(Arc::new(RealFs), clock.clone(), false).open()?;
        let engine = cache.engine();
        let mut outcomes = Vec::new();
        let keys = [b"a", b"b", b"c"];
        keys.iter().try_for_each(|key| cache.put(key, "old"))?;
        for key in keys {
            let ident = engine.ident(key)?;
            outcomes.push((key, engine.catalog.lock(ident).put_hidden(ident, value_of(key)).1));
        }
        clock.0.store(n, Ordering::SeqCst);
        let ended = catch_unwind(AssertUnwindSafe(|| engine.commit_step()));
        clock.0.store(0, Ordering::SeqCst);
        let mut well = 0;
        for (key, outcome) in outcomes {
            let told = outcome.wait(Duration::ZERO).ok_or(format!("{n}: nothing is told of {key:?}"))?;
            let expected: &[u8] = if told.is_ok() { b"value" } else { b"old" };
            for _ in 0..2 {
                assert_eq!(cache.get(key)?.as_deref(), Some(expected), "{n}: {told:?}");
                cache.flush()?;
                engine.memory.remove(engine.ident(key)?);
            }
            well += u32::from(told.is_ok());
        }
        if ended.is_ok() {
            assert!(well == 3 && all_well > 0 && none_well > 0, "{well} {all_well} {none_well}");
            return Ok(());
        }
        all_well += u32::from(well == 3);
        none_well += u32::from(well == 0);
    }
    Err("it panics for ever".into())
}

/// Who chooses keys cannot choose what they collide with: the identities of the same keys are others in every store.
#[test]
fn the_same_keys_have_other_identities_in_another_store() -> Try {
    for on_disk in [true, false] {
        let identities = || -> Try<Vec<_>> {
            let dir = tempfile::tempdir()?;
            let builder = Cache::builder().memory(4 << 20);
            let builder = if on_disk { builder.ssd(dir.path(), 256 << 20) } else { builder };
            let cache = builder.world(Arc::new(RealFs), Arc::new(SystemClock), false).open()?;
            let of = |no: u32| Ok(cache.engine().ident(format!("key/{no}").as_bytes())?);
            (0..100).map(of).collect()
        };
        let (one, other) = (identities()?, identities()?);
        let alike = one.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert_eq!(alike, 0, "of 100 keys, on disk: {on_disk}");
    }
    Ok(())
}
