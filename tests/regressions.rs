//! One test for each fault that a review of the engine found.

#[path = "common/gate.rs"]
mod gate;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use gate::{Gate, LONG, Release};
use thermocline::testing::vfs::RealFs;
use thermocline::testing::{ManualClock, SystemClock};
use thermocline::{Builder, Cache, Error, Event, Persistence, PutOptions, Received, Tier};
use thermocline_storage::testing::{Call, Fault, FaultFs, Op};

type Try = Result<(), Box<dyn std::error::Error>>;

/// Runs something that a fault would never end, and gives what it gave.
fn within(
    what: &str,
    work: impl FnOnce() -> thermocline::Result<()> + Send + 'static,
) -> Result<(), Box<dyn std::error::Error>> {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    Ok(result.recv_timeout(LONG).map_err(|_| format!("{what} does not end"))??)
}

/// Bytes that no codec makes smaller.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 24) as u8
        })
        .collect()
}

/// Driven by [`Cache::step`] alone.
fn stepped(builder: Builder) -> Builder {
    builder.world(Arc::new(RealFs), Arc::new(SystemClock), false)
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map(|d| d.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

/// A batch that comes back tells its own callers how it ended, not those of a later put of the key.
#[test]
fn a_put_is_not_acknowledged_by_an_earlier_one() -> Try {
    let dir = tempfile::tempdir()?;
    let fs = FaultFs::default();
    let cache = Cache::builder()
        .memory(4 << 20)
        .ssd(dir.path().join("s"), 32 << 20)
        .persistence(Persistence::Always)
        .world(Arc::new(fs.clone()), Arc::new(SystemClock), true)
        .open()?;
    cache.put("warm", "makes the segment")?;

    let gate = Gate::of(&fs);
    gate.hold("segments");
    let _release = Release(gate.clone());
    let put = |value: &'static str| {
        let cache = cache.clone();
        let (done, result) = mpsc::channel();
        std::thread::spawn(move || done.send(cache.put("k", value)));
        result
    };
    let first = put("first");
    gate.until_held();
    // Ends the first put (it came before the clear) while its batch is still under way.
    cache.clear()?;
    first.recv_timeout(LONG)??;
    let second = put("second");
    // The second is queued behind the batch of the first.
    std::thread::sleep(Duration::from_millis(200));
    gate.let_one_pass();
    gate.until_held();
    let early = second.recv_timeout(Duration::from_millis(500));
    assert!(early.is_err(), "acknowledged before it was durable: {early:?}, get {:?}", cache.get("k"));
    gate.let_all_pass();
    second.recv_timeout(LONG)??;
    assert_eq!(cache.get("k")?.as_deref(), Some(&b"second"[..]));
    Ok(())
}

#[test]
fn memory_alone_takes_what_is_dead_at_once() -> Try {
    let cache = Cache::builder().memory(4 << 20).open()?;
    cache.put("k", "old")?;
    cache.put_with("k", "new", PutOptions::new().ttl(Duration::ZERO))?;
    assert_eq!(cache.get("k")?, None);
    assert!(!cache.remove("k")?);
    Ok(())
}

#[test]
fn a_default_ttl_without_end_is_no_panic_and_no_instant_death() -> Try {
    let opened = Cache::builder().memory(1 << 20).default_ttl(Duration::MAX).open();
    assert!(matches!(opened, Err(Error::Config(_))), "{opened:?}");
    let cache = Cache::builder().memory(1 << 20).open()?;
    cache.put_with("k", "v", PutOptions::new().ttl(Duration::MAX))?;
    assert!(cache.get_entry("k")?.is_some_and(|e| e.expires_at.is_some()));
    Ok(())
}

/// A tier over its limit of items, whose containers are far from full, does not copy them for ever.
#[test]
fn the_limit_of_items_is_reached_and_reclaim_ends() -> Try {
    let dir = tempfile::tempdir()?;
    for (name, cold) in [("alone", false), ("with an archive", true)] {
        let home = dir.path().join(name);
        // Memory holds next to nothing, so that reads count where the items are.
        let mut builder =
            Cache::builder().memory(4 << 20).memory_item_limit(10).ssd(home.join("s"), 32 << 20);
        if cold {
            builder = builder.cold(home.join("c"));
        }
        builder.config_mut().ssd.item_limit = 50;
        let cache = stepped(builder).open()?;
        for i in 0..300 {
            cache.put(format!("k{i}"), format!("value {i}"))?;
        }
        cache.flush()?;
        // Nothing but writes has been at work: they go on over the limit by an eighth, and a batch of as many.
        let items = cache.stats().tier(Tier::Ssd).ok_or("ssd")?.items;
        assert!(items <= 50 + 2 * 6, "{name}: {items} items");
        // Hot, all of them: heat must not keep more than may stay.
        for _ in 0..20 {
            for i in 0..300 {
                cache.get(format!("k{i}"))?;
            }
        }
        let stepping = cache.clone();
        within(name, move || stepping.step())?;
        let stats = cache.stats();
        let ssd = stats.tier(Tier::Ssd).ok_or("ssd")?;
        assert!((1..=50).contains(&ssd.items), "{name}: {ssd:?}");
        let left = if cold { 300 } else { ssd.items };
        assert_eq!(stats.items, left, "{name}");
        assert_eq!(stats.counts.evicted, 300 - left, "{name}");
        assert_eq!(cache.keys("").count() as u64, left, "{name}");
    }
    Ok(())
}

/// Where the limit of items binds, not that of bytes, items that are asked for now and then do not rise and sink for ever.
#[test]
fn where_the_limit_of_items_binds_what_is_hot_stays_and_the_rest_stays_below() -> Try {
    const ITEMS: u64 = 2_000;
    const LIMIT: u64 = 300;
    const HOT: u64 = 200;
    let dir = tempfile::tempdir()?;
    let mut builder = Cache::builder()
        .memory(4 << 20)
        .memory_item_limit(10)
        .ssd(dir.path().join("s"), 32 << 20)
        .hdd(dir.path().join("h"), 32 << 20);
    builder.config_mut().ssd.item_limit = LIMIT;
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let cache = builder.world(Arc::new(RealFs), clock.clone(), false).open()?;
    let key = |i: u64| format!("k{i}");
    for i in 0..ITEMS {
        cache.put(key(i), noise(i, 500))?;
    }
    cache.flush()?;
    let moves = |cache: &Cache| {
        let stats = cache.stats();
        let of = |t| stats.tier(t).map_or(0, |t| t.promoted + t.demoted);
        of(Tier::Ssd) + of(Tier::Hdd)
    };
    let mut moved = Vec::new();
    for round in 0..60 {
        let before = moves(&cache);
        for i in 0..HOT {
            for _ in 0..8 {
                cache.get(key(i))?;
            }
        }
        for i in (HOT..ITEMS).filter(|i| i % 4 == round % 4) {
            cache.get(key(i))?;
        }
        clock.advance(1_000);
        cache.step()?;
        moved.push(moves(&cache) - before);
    }
    let ssd = cache.stats().tier(Tier::Ssd).ok_or("ssd")?.items;
    assert!((HOT - 20..=LIMIT).contains(&ssd), "{ssd} items on the SSD; moved: {moved:?}");
    let late: u64 = moved.iter().skip(20).sum();
    assert!(late <= 10, "{moved:?}");
    Ok(())
}

/// A container that cannot be deleted keeps its own space and no other's.
#[test]
fn a_container_that_cannot_be_deleted_holds_up_no_other() -> Try {
    let dir = tempfile::tempdir()?;
    let segments = dir.path().join("s/segments");
    let fs = FaultFs::default();
    let cache = Cache::builder()
        .memory(4 << 20)
        .ssd(dir.path().join("s"), 8 << 20)
        .world(Arc::new(fs.clone()), Arc::new(SystemClock), false)
        .open()?;
    for i in 0..200 {
        cache.put(format!("k{i}"), noise(i, 16 << 10))?;
    }
    cache.flush()?;
    let before = files(&segments);
    assert!(before.len() >= 4, "{before:?}");
    let stuck = segments.join(&before[0]);
    fs.fail(Fault::when(move |c| c.op == Op::RemoveFile && c.path == stuck));
    cache.clear()?;
    cache.step()?;
    let after = files(&segments);
    assert!(after.len() <= 2, "the one that is stuck and the one that is written: {after:?}");
    // And what needs room gets it.
    for i in 0..1000 {
        cache.put(format!("k{i}"), noise(i, 16 << 10))?;
        if i % 50 == 0 {
            cache.flush()?;
        }
    }
    cache.flush()?;
    Ok(())
}

/// Containers of a directory that is away take no part in reclaim and do not keep it from the others.
#[test]
fn reclaim_passes_over_a_directory_that_is_away() -> Try {
    let home = tempfile::tempdir()?;
    let path = |name: &str| home.path().join(name);
    for tier in [Tier::Ssd, Tier::Hdd] {
        let builder = |n: u64| {
            let b = Cache::builder().memory(4 << 20);
            let (one, two) = (path(&format!("{tier}1")), path(&format!("{tier}2")));
            stepped(match tier {
                Tier::Ssd => b.ssd(one, n).ssd(two, n),
                _ => b.hdd(one, n).hdd(two, n),
            })
            .catalog(path(&format!("{tier}-catalog")))
        };
        let cache = builder(8 << 20).open()?;
        for i in 0..300 {
            cache.put(format!("k{i}"), noise(i, 16 << 10))?;
            if i % 20 == 0 {
                cache.flush()?;
            }
        }
        cache.close()?;
        drop(cache);
        std::fs::rename(path(&format!("{tier}2")), path(&format!("{tier}-away")))?;

        let cache = builder(8 << 20).without_missing(true).open()?;
        for i in 0..1500 {
            cache.put(format!("new{i}"), noise(i, 16 << 10))?;
            if i % 20 == 0 {
                cache.flush().map_err(|e| format!("{tier} {i}: {e}"))?;
            }
        }
        // Empty ones are nothing that the tier could delete, and go all the same.
        cache.clear()?;
        let stepping = cache.clone();
        within("a step", move || stepping.step())?;
        let containers = cache.stats().tier(tier).map(|t| t.containers);
        assert!(containers.is_some_and(|n| n <= 2), "{tier}: {containers:?}");
        for i in 0..1500 {
            cache.put(format!("new{i}"), noise(i, 16 << 10))?;
            if i % 20 == 0 {
                cache.flush().map_err(|e| format!("{tier} cleared, {i}: {e}"))?;
            }
        }
    }
    Ok(())
}

/// Who waits for room is not held up by reclaim that takes its time.
#[test]
fn callers_do_not_wait_for_the_brake_on_migration() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder =
        Cache::builder().memory(2 << 20).ssd(dir.path().join("s"), 16 << 20).cold(dir.path().join("c"));
    builder.config_mut().resources.io.write_buffer_size = 2 << 20;
    let storage = &mut builder.config_mut().storage;
    storage.segment_size = Some(1 << 20);
    // A segment takes 16 s.
    storage.migration_bytes_per_second = 64 << 10;
    storage.write_stall_limit = 8;
    storage.max_value_size = Some(1 << 20);
    let cache = builder.open()?;
    for i in 0..800 {
        cache.put(format!("k{i}"), noise(i, 64 << 10)).map_err(|e| format!("{i}: {e}"))?;
        if i == 210 {
            // The mover has begun, and has used up what the brake lets through.
            std::thread::sleep(Duration::from_millis(1500));
        }
    }
    within("closing", move || cache.close())?;
    Ok(())
}

#[test]
fn a_closed_cache_does_nothing_more() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = Cache::builder().memory(4 << 20).ssd(dir.path().join("s"), 32 << 20).open()?;
    cache.put("k", "v")?;
    let mut keys = cache.keys("");
    cache.close()?;
    assert!(matches!(cache.flush(), Err(Error::Closed)));
    assert!(matches!(cache.verify(), Err(Error::Closed)));
    assert!(matches!(cache.clear(), Err(Error::Closed)));
    assert!(matches!(cache.remove_prefix(""), Err(Error::Closed)));
    assert!(matches!(cache.demote("k", Tier::Ssd), Err(Error::Closed)));
    assert!(matches!(keys.next(), Some(Err(Error::Closed))));
    assert!(keys.next().is_none());
    cache.close()?;
    Ok(())
}

/// Two makers that ask for each other's key: one is told, neither waits for ever.
#[test]
fn makers_that_wait_for_each_other_are_told() -> Try {
    let cache = Cache::builder().memory(4 << 20).open()?;
    let both = Arc::new(std::sync::Barrier::new(2));
    let start = |mine: &'static str, other: &'static str| {
        let (cache, both) = (cache.clone(), both.clone());
        let (done, result) = mpsc::channel();
        std::thread::spawn(move || {
            let made = cache.get_or_put_with(mine, || {
                both.wait();
                cache.get_or_put_with(other, || Ok::<_, io::Error>("made by the other"))
            });
            done.send(made.map_err(|e| e.to_string()))
        });
        result
    };
    let (a, b) = (start("a", "b"), start("b", "a"));
    let (a, b) = (a.recv_timeout(LONG)?, b.recv_timeout(LONG)?);
    assert!(a.is_err() || b.is_err());
    let told = [a.err(), b.err()].into_iter().flatten().any(|e| e.contains("same key again"));
    assert!(told, "at least one was told why");
    Ok(())
}

/// What is not known of a damaged record is not made up.
#[test]
fn a_damaged_record_found_by_a_walk_has_no_key() -> Try {
    let dir = tempfile::tempdir()?;
    let builder = stepped(Cache::builder().memory(4 << 20).ssd(dir.path().join("s"), 32 << 20));
    let cache = builder.clone().open()?;
    cache.put("a key that can be found in the file", "v")?;
    cache.close()?;
    drop(cache);
    let segments = dir.path().join("s/segments");
    let mut hit = 0;
    for name in files(&segments) {
        let mut bytes = std::fs::read(segments.join(&name))?;
        let key = b"a key that can be found";
        let at: Vec<usize> =
            bytes.windows(key.len()).enumerate().filter(|(_, w)| w == key).map(|(i, _)| i).collect();
        for i in at {
            bytes[i] ^= 1;
            hit += 1;
        }
        std::fs::write(segments.join(&name), bytes)?;
    }
    assert!(hit > 0);
    let cache = builder.open()?;
    let events = cache.subscribe();
    assert_eq!(cache.keys("").filter_map(Result::ok).count(), 0);
    let mut seen = 0;
    while let Ok(received) = events.try_recv() {
        if let Received::Event(Event::Quarantined { key, .. }) = received {
            assert_eq!(key, None);
            seen += 1;
        }
    }
    assert_eq!(seen, 1);
    assert_eq!(cache.stats().counts.damaged, 1);
    Ok(())
}

/// What expires while it waits to be written is counted and told, as anywhere else.
#[test]
fn an_item_that_expires_in_the_write_buffer_is_gone_with_an_event() -> Try {
    let dir = tempfile::tempdir()?;
    let clock = Arc::new(ManualClock::new(1_000_000));
    let cache = Cache::builder()
        .memory(4 << 20)
        .ssd(dir.path().join("s"), 32 << 20)
        .persistence(Persistence::OnEviction)
        .world(Arc::new(RealFs), clock.clone(), false)
        .open()?;
    let events = cache.subscribe();
    cache.put("k", "beneath")?;
    cache.flush()?;
    cache.put_with("k", "above", PutOptions::new().ttl(Duration::from_secs(1)))?;
    clock.advance(2_000);
    assert_eq!(cache.get("k")?, None);
    assert!(!cache.contains("k")? && !cache.remove("k")?);
    cache.put_with("k2", "above", PutOptions::new().ttl(Duration::from_secs(1)))?;
    clock.advance(200_000);
    for _ in 0..3 {
        cache.step()?;
        clock.advance(200_000);
    }
    let mut expired = 0;
    while let Ok(received) = events.try_recv() {
        expired += u64::from(matches!(received, Received::Event(Event::Expired { .. })));
    }
    assert_eq!((expired, cache.stats().counts.expired), (1, 1));
    assert_eq!(cache.stats().items, 0);
    Ok(())
}

/// A record that cannot be reached for now keeps its container, and costs nobody else anything.
#[test]
fn reclaim_evicts_nothing_because_a_record_cannot_be_reached() -> Try {
    let dir = tempfile::tempdir()?;
    let segments = dir.path().join("s/segments");
    let fs = FaultFs::default();
    let mut builder =
        Cache::builder().memory(1 << 20).ssd(dir.path().join("s"), 16 << 20).cold(dir.path().join("c"));
    let storage = &mut builder.config_mut().storage;
    storage.segment_size = Some(1 << 20);
    storage.max_value_size = Some(256 << 10);
    storage.read_mode = thermocline::config::ReadMode::Pread;
    let cache = builder.world(Arc::new(fs.clone()), Arc::new(SystemClock), false).open()?;
    for i in 0..14 {
        cache.put(format!("key number {i} of those"), noise(i, 64 << 10))?;
    }
    cache.flush()?;
    let key = b"key number 7 of those";
    let holds = |name: String| {
        let bytes = std::fs::read(segments.join(&name)).ok()?;
        Some((bytes.windows(key.len()).position(|w| w == key)?, name))
    };
    let (at, name) = files(&segments).into_iter().find_map(holds).ok_or("the key")?;
    // A file goes by the name that it was opened under, be it a temporary one.
    let bad = move |path: &Path| path.to_string_lossy().contains(&name);
    fs.fail(Fault::when(move |c| c.op == Op::Read && c.range.contains(&(at as u64)) && bad(c.path)));

    for i in 14..400 {
        cache.put(format!("key number {i} of those"), noise(i, 64 << 10))?;
        if i % 10 == 0 {
            cache.flush()?;
            cache.step()?;
        }
    }
    cache.flush()?;
    cache.step()?;
    assert_eq!(cache.stats().counts.evicted, 0);
    assert!(cache.get("key number 7 of those")?.is_none(), "it cannot be reached");
    fs.heal();
    for i in 0..400 {
        assert_eq!(
            cache.get(format!("key number {i} of those"))?.map(|v| v.to_vec()),
            Some(noise(i, 64 << 10)),
            "{i}"
        );
    }
    Ok(())
}

/// A checkpoint that fails is tried again ever more seldom, and keeps nobody from anything else.
#[test]
fn a_checkpoint_that_keeps_failing_rests_and_holds_up_nothing() -> Try {
    let dir = tempfile::tempdir()?;
    let (fs, clock) = (FaultFs::default().without_syncs(), Arc::new(ManualClock::new(1_000_000)));
    let mut builder = Cache::builder().memory(16 << 20).ssd(dir.path().join("s"), 64 << 20);
    builder.config_mut().storage.checkpoint_journal_size = 1 << 20;
    let builder = builder.world(Arc::new(fs.clone()), clock.clone(), false);
    let cache = builder.clone().open()?;
    // The first thing that a checkpoint does is to begin a new pair of journals.
    let is_one =
        |c: &Call<'_>| c.op == Op::Create && c.path.to_string_lossy().contains("/catalog/a/journal-");
    let attempts = Arc::new(AtomicU64::new(0));
    let seen = attempts.clone();
    fs.watch(move |c| {
        seen.fetch_add(u64::from(is_one(c)), Ordering::Relaxed);
    });
    fs.fail(Fault::when(is_one));
    // Until the journal is so long that each commit finds a checkpoint overdue.
    let fill = |cache: &Cache| -> Try {
        // What is told is of both copies.
        let end = cache.stats().journal_bytes + (5 << 20);
        while cache.stats().journal_bytes <= end {
            for i in 0..1000 {
                cache.put(format!("k{i}"), "v")?;
            }
            cache.flush()?;
        }
        Ok(())
    };
    fill(&cache)?;
    attempts.store(0, Ordering::Relaxed);
    // After 1, 2, 4 … 32, 60 and 60 s.
    for i in 0..200 {
        cache.put("k", format!("value {i}"))?;
        cache.flush()?;
        cache.step()?;
        clock.advance(1000);
    }
    let tried = attempts.swap(0, Ordering::Relaxed);
    assert!((5..=9).contains(&tried), "{tried} in 200 s");
    assert!(cache.close().is_err(), "it is said");
    assert!(attempts.load(Ordering::Relaxed) > 0, "closing does not wait for the rest to be over");
    drop(cache);

    fs.heal();
    let cache = builder.clone().open()?;
    assert_eq!(cache.get("k")?.as_deref(), Some(&b"value 199"[..]));
    fs.fail(Fault::when(is_one));
    fill(&cache)?;
    // Once it succeeds there is no rest any more.
    fs.heal();
    clock.advance(60_000);
    let before = cache.stats().checkpoints;
    cache.put("k", "last")?;
    cache.flush()?;
    assert_eq!(cache.stats().checkpoints, before + 1);
    cache.close()?;
    Ok(())
}

/// What cannot be read may be of the prefix, and come back: then the removal was none.
#[test]
fn removing_a_prefix_fails_if_some_item_cannot_be_read() -> Try {
    let dir = tempfile::tempdir()?;
    let fs = FaultFs::default().without_maps();
    let open = || {
        let builder = Cache::builder().memory(1 << 20).ssd(dir.path().join("s"), 16 << 20);
        builder.world(Arc::new(fs.clone()), Arc::new(SystemClock), false).open()
    };
    let cache = open()?;
    for key in ["a/1", "a/2", "b/1"] {
        cache.put(key, noise(1, 1000))?;
    }
    cache.close()?;
    drop(cache);
    let cache = open()?;
    fs.fail(Fault::on(Op::Read));
    assert!(cache.remove_prefix("a/").is_err());
    assert_eq!(cache.keys("").count(), 0, "absent for now");
    fs.heal();
    assert_eq!(cache.remove_prefix("a/")?, 2);
    assert_eq!(cache.keys("").collect::<Result<Vec<_>, _>>()?, ["b/1"]);
    Ok(())
}
