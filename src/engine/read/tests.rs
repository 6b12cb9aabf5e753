//! What reading does beside giving a value.

use super::*;
use crate::engine::testkit::Try;
use crate::{Cache, Error};
use std::sync::Arc;
use thermocline_storage::clock::ManualClock;
use thermocline_storage::vfs::RealFs;

#[test]
fn a_large_value_is_read_only_with_a_share_of_the_limit_and_a_small_one_without() -> Try {
    let dir = tempfile::tempdir()?;
    for tier in [Tier::Ssd, Tier::Hdd, Tier::Cold] {
        let path = dir.path().join(tier.to_string());
        let builder = Cache::builder().memory(1 << 20);
        let mut builder = match tier {
            Tier::Ssd => builder.ssd(path, 64 << 20),
            Tier::Hdd => builder.hdd(path, 64 << 20),
            _ => builder.cold(path),
        };
        let s = &mut builder.config_mut().storage;
        s.max_value_size = Some(4 << 20);
        s.inflight = Some(8 << 20);
        s.write_stall_limit = 1;
        let cache = builder.open()?;
        // Zeros: what is stored is small, what comes out is not.
        for (key, len) in [("small", 60_000), ("large", 3 << 20)] {
            cache.put(key, vec![0; len])?;
            cache.flush()?;
            cache.demote(key, tier)?;
            let engine = cache.engine();
            let ident = engine.ident(key.as_bytes())?;
            engine.memory.remove(ident);
            let Found::At(at) = engine.catalog.find(ident) else { return Err("not on disk".into()) };
            let record = at.entry.container.read_up_to(at.place.position(), 59_999);
            let Err(StorageError::Oversized { bytes }) = record else {
                return Err(format!("{tier}, {key}: {record:?}").into());
            };
            assert!((len as u64..=2 * len as u64).contains(&bytes), "{tier}, {key}: {bytes}");
            assert!(at.entry.container.read_up_to(at.place.position(), bytes).is_ok());
        }
        let engine = cache.engine();
        let all = engine.permit(8 << 20)?;
        assert_eq!(cache.get("small")?.map(|v| v.len()), Some(60_000), "{tier}");
        assert!(matches!(cache.get("large"), Err(Error::Busy { .. })), "{tier}");
        drop(all);
        assert_eq!(cache.get("large")?.map(|v| v.len()), Some(3 << 20), "{tier}");
    }
    Ok(())
}
/// A store on an SSD, its clock, and where the one item in it, of key `k`, stands on disk; memory does not have it.
fn one_on_disk(dir: &std::path::Path, ttl_ms: Option<u64>) -> Try<OnDisk> {
    let clock = Arc::new(ManualClock::new(1_000_000));
    let builder = Cache::builder().memory(1 << 20).ssd(dir, 64 << 20);
    let cache = builder.world(Arc::new(RealFs), clock.clone(), false).open()?;
    let options = ttl_ms.map(|ms| crate::PutOptions::new().ttl(Duration::from_millis(ms)));
    cache.put_with("k", "1", options.unwrap_or_default())?;
    cache.flush()?;
    let ident = cache.engine().ident(b"k")?;
    cache.engine().memory.remove(ident);
    let Found::At(at) = cache.engine().catalog.find(ident) else { return Err("not on disk".into()) };
    Ok(OnDisk { cache, clock, ident, at })
}

struct OnDisk {
    cache: Cache,
    clock: Arc<ManualClock>,
    ident: Ident,
    at: Located,
}

#[test]
fn what_was_read_does_not_enter_memory_over_what_came_meanwhile() -> Try {
    let dir = tempfile::tempdir()?;
    let OnDisk { cache, ident, at, .. } = one_on_disk(dir.path(), None)?;
    let engine = cache.engine();
    let read = engine.read_for(ident, b"k", &at)?.ok_or("it is there")?;
    let enters = || engine.install(ident, b"k", &read, &at, true);
    assert!(enters(), "nothing came");
    cache.put("k", "2")?;
    assert!(!enters() && cache.get("k")?.as_deref() == Some(&b"2"[..]), "in the write buffer");
    cache.flush()?;
    engine.memory.remove(ident);
    assert!(!enters() && cache.get("k")?.as_deref() == Some(&b"2"[..]), "at another place");
    cache.remove("k")?;
    assert!(!enters() && cache.get("k")?.is_none(), "removed");
    Ok(())
}

#[test]
fn what_is_busy_is_an_error_and_what_cannot_be_reached_stays() -> Try {
    let dir = tempfile::tempdir()?;
    let OnDisk { cache, ident, at, .. } = one_on_disk(dir.path(), None)?;
    let engine = cache.engine();
    let unread = |e: StorageError| engine.unread(ident, &at, &e, Some(b"k"));
    assert!(unread(StorageError::Busy("a generation is still opening")).is_err());
    let eio = std::io::Error::other("a bad cable");
    assert!(matches!(unread(StorageError::io("read", dir.path(), eio))?, Step::Done(None)));
    assert_eq!(cache.get("k")?.as_deref(), Some(&b"1"[..]));
    Ok(())
}

#[test]
fn damage_is_told_and_kept_and_the_item_is_dead() -> Try {
    let dir = tempfile::tempdir()?;
    let OnDisk { cache, ident, at, .. } = one_on_disk(dir.path(), None)?;
    let (engine, events) = (cache.engine(), cache.subscribe());
    let e = StorageError::corrupt(dir.path(), 0, "a bit is wrong");
    assert!(matches!(engine.unread(ident, &at, &e, Some(b"k"))?, Step::Done(None)));
    assert_eq!(cache.get("k")?, None);
    let told = std::iter::from_fn(|| events.try_recv().ok()).find_map(|received| match received {
        crate::Received::Event(Event::Quarantined { key, path, .. }) => Some((key, path)),
        _ => None,
    });
    let (key, path) = told.ok_or("nobody was told")?;
    assert_eq!(key.as_deref(), Some(&b"k"[..]));
    assert!(path.starts_with(dir.path()), "{}", path.display());
    let kept = std::fs::read_dir(dir.path().join("quarantine"))?.count();
    assert_eq!(kept, 2, "the bytes and a report");
    Ok(())
}

#[test]
fn another_key_of_the_identity_is_not_found_on_disk() -> Try {
    let dir = tempfile::tempdir()?;
    let OnDisk { cache, ident, .. } = one_on_disk(dir.path(), None)?;
    assert!(cache.engine().get_below(ident, b"another", &mut None)?.is_none());
    assert!(cache.engine().get_below(ident, b"k", &mut None)?.is_some());
    Ok(())
}

#[test]
fn what_expired_on_disk_is_neither_read_nor_listed() -> Try {
    for reads in [true, false] {
        let dir = tempfile::tempdir()?;
        let OnDisk { cache, clock, .. } = one_on_disk(dir.path(), Some(60_000))?;
        clock.advance(59_999);
        assert_eq!(cache.keys("").count(), 1);
        clock.advance(1);
        if reads {
            assert_eq!(cache.get("k")?, None);
        } else {
            assert_eq!(cache.keys("").count(), 0);
        }
    }
    Ok(())
}
