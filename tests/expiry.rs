//! What has expired is dead for good: for counts, and after a kill with the wall clock set back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thermocline::testing::ManualClock;
use thermocline::testing::vfs::RealFs;
use thermocline::{Builder, Cache, Persistence, PutOptions};

type Try = Result<(), Box<dyn std::error::Error>>;

/// Milliseconds since the epoch at which each test begins.
const START: u64 = 1_700_000_000_000;

fn builder(dir: &Path) -> Builder {
    let mut builder = Cache::builder().memory(4 << 20).ssd(dir.join("s"), 32 << 20);
    // What expires after the first reaping waits for long.
    builder.config_mut().storage.reap_interval = 3_600;
    builder
}

/// A store without threads, whose clock shows `ms`.
fn open(builder: Builder, ms: u64) -> thermocline::Result<(Cache, Arc<ManualClock>)> {
    let clock = Arc::new(ManualClock::new(ms));
    let cache = builder.world(Arc::new(RealFs), clock.clone(), false).open()?;
    Ok((cache, clock))
}

fn ttl(seconds: u64) -> PutOptions {
    PutOptions::new().ttl(Duration::from_secs(seconds))
}

/// A store in which "late" has expired at 70 s, which nothing on disk says: the container was reaped before.
fn with_an_unreaped_item(dir: &Path) -> thermocline::Result<(Cache, Arc<ManualClock>)> {
    let (cache, clock) = open(builder(dir), START)?;
    cache.put_with("early", "x", ttl(10))?;
    cache.put_with("late", "x", ttl(70))?;
    cache.put("always", "x")?;
    cache.flush()?;
    clock.advance(20_000);
    // The second one writes what the first one found.
    cache.step()?;
    cache.step()?;
    clock.advance(80_000);
    Ok((cache, clock))
}

#[test]
fn after_reads_alone_a_kill_and_a_clock_set_back_what_had_expired_is_dead() -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, _) = with_an_unreaped_item(dir.path())?;
    assert!(cache.get("always")?.is_some());
    // The janitor notes the time, the writer writes it.
    cache.step()?;
    cache.step()?;
    cache.crash();
    let (cache, _) = open(builder(dir.path()), START + 30_000)?;
    assert_eq!(cache.get("late")?, None);
    assert!(cache.get("always")?.is_some());
    Ok(())
}

/// The journal is not written to because somebody reads, where no time can make a difference, nor where nobody asks.
#[test]
fn time_alone_writes_nothing_where_nothing_expires_or_nobody_asks() -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, clock) = with_an_unreaped_item(&dir.path().join("a"))?;
    for _ in 0..3 {
        clock.advance(5_000);
        cache.step()?;
    }
    let before = cache.stats().journal_bytes;
    clock.advance(5_000);
    cache.step()?;
    assert_eq!(cache.stats().journal_bytes, before, "nobody asked for anything");
    assert!(cache.contains("always")?);
    cache.step()?;
    cache.step()?;
    assert!(cache.stats().journal_bytes > before, "somebody did");

    let (cache, clock) = open(builder(&dir.path().join("b")), START)?;
    cache.put("k", "v")?;
    cache.flush()?;
    cache.step()?;
    let before = cache.stats().journal_bytes;
    for _ in 0..3 {
        clock.advance(5_000);
        assert!(cache.get("k")?.is_some());
        cache.step()?;
    }
    assert_eq!(cache.stats().journal_bytes, before, "nothing expires");
    Ok(())
}

#[test]
fn clear_counts_what_is_alive() -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, clock) = with_an_unreaped_item(dir.path())?;
    // Dead on disk and unseen: "late". Alive: "always", "kept". Dead otherwise: what waits to be written, what a
    // shorter life was given.
    cache.put_with("waits", "x", ttl(5))?;
    cache.put_with("kept", "x", ttl(5_000))?;
    cache.put("cut short", "x")?;
    cache.put("overwritten", "x")?;
    cache.flush()?;
    cache.put_with("overwritten", "y", ttl(5))?;
    assert!(cache.expire_in("cut short", Some(Duration::from_secs(5)))?);
    clock.advance(6_000);
    assert_eq!(cache.clear()?, 2);
    assert_eq!(cache.keys("").count(), 0);
    assert_eq!(cache.clear()?, 0);
    Ok(())
}

#[test]
fn clear_of_memory_alone_counts_what_is_alive() -> Try {
    let (cache, clock) = open(Cache::builder().memory(4 << 20).persistence(Persistence::EverySecond), START)?;
    cache.put_with("dead", "x", ttl(5))?;
    cache.put("alive", "x")?;
    clock.advance(6_000);
    assert_eq!(cache.clear()?, 1);
    Ok(())
}

/// A value that waits for its eviction and expires meanwhile is nobody's, but what it replaced is on disk: a removal of
/// all keys of a prefix takes that as well, or a kill would bring it back.
#[test]
fn a_prefix_removal_takes_what_expired_before_it_was_written() -> Try {
    let dir = tempfile::tempdir()?;
    let on_eviction = || builder(dir.path()).persistence(Persistence::OnEviction);
    let (cache, clock) = open(on_eviction(), START)?;
    cache.put("k", "older")?;
    cache.flush()?;
    cache.put_with("k", "newer", ttl(5))?;
    clock.advance(6_000);
    assert_eq!(cache.remove_prefix("k")?, 0, "it is not alive");
    assert_eq!(cache.get("k")?, None);
    // What is removed is durable soon, whatever else waits.
    cache.step()?;
    cache.crash();
    let (cache, _) = open(on_eviction(), START + 6_000)?;
    assert_eq!(cache.get("k")?, None);
    Ok(())
}
