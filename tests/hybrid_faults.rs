//! What a hybrid cache of today was measured to get wrong, each under its own name, with the loads that showed it.

#![cfg(test)]

mod common;

use bytes::Bytes;
use common::{Tiers, parse, scratch, value};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thermocline::testing::ManualClock;
use thermocline::{Builder, Cache, ContentType, Error, Event, Persistence, PutOptions, Received, Tier};
use thermocline_storage::sim::SimFs;

type Try<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Memory for a few items, and disks with room for all.
fn roomy(dir: &Path) -> Builder {
    Tiers { ssd: 64, hdd: 64, cold: Some(0) }.builder(dir, Persistence::EverySecond)
}

/// Bytes that the files below a directory take.
fn on_disk(dir: &Path) -> Try<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let (path, meta) = entry.and_then(|e| Ok((e.path(), e.metadata()?)))?;
        sum += if meta.is_dir() { on_disk(&path)? } else { meta.blocks() * 512 };
    }
    Ok(sum)
}

/// Compression was set, and never applied.
#[test]
fn compression_that_is_set_is_applied() -> Try {
    let dir = scratch();
    let cache = roomy(dir.path()).open()?;
    let text = |n: u32| format!("{n}: a line of a page that is like the one before\n").repeat(400);
    let mut put = 0;
    for n in 0..1_000 {
        let options = PutOptions::new().content_type(ContentType::Text);
        put += text(n).len() as u64;
        cache.put_with(format!("page/{n}"), text(n), options)?;
    }
    cache.flush()?;
    let written = cache.stats().tier(Tier::Ssd).ok_or("no SSD")?.written;
    assert!(put > 19_000_000 && written < put / 10, "{put} bytes put, {written} written");
    cache.close()?;
    let occupied = on_disk(&dir.path().join("s"))?;
    assert!(occupied < put / 2, "{put} bytes put, {occupied} occupied, reserves and catalog included");
    let cache = roomy(dir.path()).open()?;
    for n in 0..1_000 {
        assert_eq!(cache.get(format!("page/{n}"))?.as_deref(), Some(text(n).as_bytes()), "{n}");
    }
    Ok(())
}

/// After 10,000 updates without a pause, `get` returned 8,620 old values.
#[test]
fn ten_thousand_updates_without_a_pause_leave_no_old_value() -> Try {
    let dir = scratch();
    let cache = roomy(dir.path()).open()?;
    for version in 1..=3 {
        for n in 0..10_000 {
            cache.put(format!("{n}"), value(n, version, 500))?;
        }
        for n in 0..10_000 {
            let got = cache.get(format!("{n}"))?;
            assert_eq!(got.as_deref().and_then(parse), Some((n, version)), "{n}");
        }
    }
    cache.close()?;
    let cache = roomy(dir.path()).open()?;
    for n in 0..10_000 {
        assert_eq!(cache.get(format!("{n}"))?.as_deref().and_then(parse), Some((n, 3)), "{n}, reopened");
    }
    Ok(())
}

/// `remove`, then `get`, returned the value in 1,979 of 2,000 tries.
#[test]
fn what_was_removed_is_not_found() -> Try {
    let dir = scratch();
    let cache = roomy(dir.path()).open()?;
    for n in 0..2_000 {
        cache.put(format!("{n}"), value(n, 1, 2_000))?;
        // Some are still to be written, some are on their way, some are on disk.
        if n % 100 == 99 {
            cache.flush()?;
        }
    }
    for n in 0..2_000 {
        assert!(cache.remove(format!("{n}"))?, "{n} was there");
        assert_eq!(cache.get(format!("{n}"))?, None, "{n}");
    }
    Ok(())
}

/// After a graceful close with concurrent writers a third to a half of 40,000 entries were gone.
#[test]
fn a_close_under_concurrent_writers_loses_nothing_that_was_acknowledged() -> Try {
    let dir = scratch();
    let cache = roomy(dir.path()).open()?;
    let put: Vec<u64> = std::thread::scope(|scope| {
        let writer = |w: u64| {
            let cache = cache.clone();
            move || {
                let mut done = 0;
                for n in 0..10_000 {
                    match cache.put(format!("{w}/{n}"), value(w << 32 | n, 1, 300)) {
                        Ok(()) => done = n + 1,
                        Err(Error::Closed) => break,
                        Err(e) => panic!("{e}"),
                    }
                }
                done
            }
        };
        let writers: Vec<_> = (0..4).map(|w| scope.spawn(writer(w))).collect();
        while cache.stats().items < 20_000 && !writers.iter().all(|w| w.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        cache.clone().close().unwrap();
        writers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    assert!(put.iter().sum::<u64>() >= 20_000, "{put:?}");
    let cache = roomy(dir.path()).open()?;
    for (w, &done) in (0..).zip(&put) {
        for n in 0..done {
            let got = cache.get(format!("{w}/{n}"))?;
            assert_eq!(got.as_deref().and_then(parse), Some((w << 32 | n, 1)), "{w}/{n} of {done}");
        }
    }
    Ok(())
}

/// Inserts without a pause lost 98 %, silently.
#[test]
fn inserts_without_a_pause_are_kept_or_told() -> Try {
    let dir = scratch();
    // Some find no room: those are told of.
    let tiers = Tiers { ssd: 16, hdd: 16, cold: None };
    let cache = tiers.builder(dir.path(), Persistence::EverySecond).open()?;
    let events = cache.subscribe_with(100_000);
    let mut refused = std::collections::HashSet::new();
    for n in 0..8_000u64 {
        match cache.put(format!("{n}"), value(3 * n + 1, 1, 6_000)) {
            Ok(()) => {}
            Err(Error::Busy { .. }) => drop(refused.insert(Bytes::from(format!("{n}")))),
            Err(e) => return Err(e.into()),
        }
    }
    cache.flush()?;
    let mut gone = Vec::new();
    for n in 0..8_000u64 {
        let key = format!("{n}");
        match cache.get(&key)? {
            Some(got) => assert_eq!(parse(&got), Some((3 * n + 1, 1)), "{n}"),
            None => gone.push(Bytes::from(key)),
        }
    }
    // Reclaim goes on while they are looked at, so what it told is asked for last.
    let mut evicted = std::collections::HashSet::new();
    while let Ok(received) = events.try_recv() {
        match received {
            Received::Event(Event::Evicted { key: Some(key), .. }) => {
                evicted.insert(key);
            }
            Received::Event(_) => {}
            lagged => return Err(format!("{lagged:?}").into()),
        }
    }
    let silently: Vec<_> =
        gone.iter().filter(|key| !evicted.contains(*key) && !refused.contains(*key)).collect();
    assert!(silently.is_empty(), "gone without a word, of {} that are gone: {silently:?}", gone.len());
    let there = 8_000 - gone.len();
    assert!(there * 6_000 > (16 + 16) * 500_000, "the half of the disks, at least: {there}");
    Ok(())
}

/// Keys that had been deleted were back after a restart.
#[test]
fn what_was_removed_is_not_back_after_a_restart() -> Try {
    let dir = scratch();
    let cache = roomy(dir.path()).open()?;
    for n in 0..3_000 {
        cache.put(format!("{n}"), value(n, 1, 1_000))?;
    }
    for n in 0..1_000 {
        cache.demote(format!("{n}"), [Tier::Hdd, Tier::Cold][n as usize % 2])?;
    }
    cache.flush()?;
    for n in (0..3_000).step_by(2) {
        assert!(cache.remove(format!("{n}"))?);
    }
    cache.close()?;
    for restart in 0..2 {
        let cache = roomy(dir.path()).open()?;
        for n in 0..3_000 {
            let got = cache.get(format!("{n}"))?;
            assert_eq!(got.is_some(), n % 2 == 1, "{n} after restart {restart}");
        }
        cache.close()?;
    }
    Ok(())
}

/// A full disk poisoned a lock and panicked in the caller.
#[test]
fn a_full_disk_is_an_error_to_the_caller_and_passes() -> Try {
    let disk = SimFs::new(1);
    let mut builder = Cache::builder().memory(1 << 20).ssd("/s", 64 << 20);
    builder.config_mut().storage.segment_size = Some(1 << 20);
    builder.config_mut().storage.write_stall_limit = 0;
    let cache = builder.simulated(Arc::new(disk.clone()), Arc::new(ManualClock::new(1))).open()?;
    let events = cache.subscribe_with(100_000);
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    let mut put = |from: u64, to: u64| {
        for n in from..to {
            match cache.put(format!("{n}"), value(n, 1, 10_000)).and_then(|()| cache.flush()) {
                Ok(()) => acknowledged.push(n),
                Err(e) => {
                    assert!(!e.to_string().is_empty());
                    refused += 1;
                }
            }
        }
        refused
    };
    assert_eq!(put(0, 100), 0);
    disk.set_room(Path::new("/s"), Some(disk.used(Path::new("/s")) + 4_096));
    assert!(put(100, 600) > 0, "nothing was refused");
    disk.set_room(Path::new("/s"), None);
    for _ in 0..10 {
        cache.step()?;
    }
    let before = put(600, 600);
    assert_eq!(put(600, 700), before, "there is room again");
    let mut gone = Vec::new();
    for n in acknowledged {
        match cache.get(format!("{n}"))? {
            Some(got) => assert_eq!(parse(&got), Some((n, 1)), "{n}"),
            None => gone.push(Bytes::from(format!("{n}"))),
        }
    }
    let mut evicted = std::collections::HashSet::new();
    while let Ok(received) = events.try_recv() {
        match received {
            Received::Event(Event::Evicted { key: Some(key), .. }) => drop(evicted.insert(key)),
            Received::Event(_) => {}
            lagged => return Err(format!("{lagged:?}").into()),
        }
    }
    gone.retain(|key| !evicted.contains(key));
    assert!(gone.is_empty(), "acknowledged, and gone without a word: {gone:?}");
    Ok(())
}

/// Opening with limits that are smaller than what is there hung.
#[test]
fn opening_smaller_than_before_ends_and_gets_smaller() -> Try {
    let dir = scratch();
    let sized = |mib| Tiers { ssd: mib, hdd: mib, cold: None }.builder(dir.path(), Persistence::EverySecond);
    let cache = sized(64).open()?;
    for n in 0..6_000 {
        cache.put(format!("{n}"), value(n, 1, 10_000))?;
    }
    cache.close()?;
    let (tell, told) = std::sync::mpsc::channel();
    let smaller = sized(16);
    let opening = std::thread::spawn(move || tell.send(smaller.open()).map_err(|_| "nobody waits"));
    let cache = told.recv_timeout(Duration::from_secs(120)).map_err(|_| "opening hangs")??;
    opening.join().map_err(|_| "it panicked")??;
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    let over = |tier| cache.stats().tier(tier).is_some_and(|t| t.bytes > 16 << 20);
    while over(Tier::Ssd) || over(Tier::Hdd) {
        assert!(std::time::Instant::now() < deadline, "{:?}", cache.stats());
        std::thread::sleep(Duration::from_millis(20));
    }
    cache.put("new", "value")?;
    assert_eq!(cache.get("new")?.as_deref(), Some(&b"value"[..]));
    for n in 0..6_000 {
        let got = cache.get(format!("{n}"))?;
        assert!(got.is_none() || got.as_deref().and_then(parse) == Some((n, 1)), "{n}");
    }
    Ok(())
}
