//! What keeps the reaper from its work.

use crate::Cache;
use crate::engine::testkit::Try;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thermocline_storage::clock::ManualClock;
use thermocline_storage::container::{Container, Listed, Purpose, RawRecord};
use thermocline_storage::item::Head;
use thermocline_storage::vfs::RealFs;
use thermocline_storage::{Error as StorageError, Item, Tier};

/// A container of so many bytes, how often it was listed, and how long that takes; without this it cannot be read.
#[derive(Debug)]
struct Odd(u64, Arc<AtomicU64>, Option<(Arc<ManualClock>, u64)>);

fn refused() -> StorageError {
    StorageError::io("read", "nowhere", io::Error::other("refused"))
}

impl Container for Odd {
    fn read_up_to(&self, _: u32, _: u64) -> Result<Item, StorageError> {
        Err(refused())
    }
    fn head(&self, _: u32) -> Result<Head, StorageError> {
        Err(refused())
    }
    fn list(&self) -> Result<Vec<Listed>, StorageError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let (clock, ms) = self.2.as_ref().ok_or_else(refused)?;
        clock.advance(*ms);
        Ok(Vec::new())
    }
    fn raw(&self, _: u32) -> Option<RawRecord> {
        None
    }
    fn occupied(&self) -> u64 {
        self.0
    }
}

/// More containers that cannot be read than are tried within the reap interval: on a disk that fails, or in a directory
/// that is away, whose containers occupy nothing here.
#[test]
fn what_cannot_be_read_does_not_keep_what_has_expired_elsewhere() -> Try {
    for occupied in [1, 0] {
        let dir = tempfile::tempdir()?;
        let clock = Arc::new(ManualClock::new(1_000_000));
        let mut builder = Cache::builder().memory(1 << 20).ssd(dir.path(), 64 << 20);
        builder.config_mut().storage.reap_interval = 60;
        let cache = builder.world(Arc::new(RealFs), clock.clone(), false).open()?;
        let engine = cache.engine();
        let tried = Arc::new(AtomicU64::new(0));
        for _ in 0..150 {
            let all = &engine.catalog.containers;
            let container = Arc::new(Odd(occupied, tried.clone(), None));
            all.publish(all.reserve(Purpose::Write)?, Tier::Ssd, 0, 7, container).note_expiry(1);
        }
        cache.put_with("k", "v", crate::PutOptions::new().ttl(Duration::from_secs(1)))?;
        cache.flush()?;
        for _ in 0..300 {
            clock.advance(500);
            engine.keep_step();
        }
        assert_eq!(engine.catalog.indexed(), 0, "it has not been reaped in 150 s");
        assert_eq!(tried.load(Ordering::Relaxed) > 0, occupied > 0, "{occupied}");
    }
    Ok(())
}

/// A listing of a whole generation takes as long as to read it, and the reaper's thread has other things to see to.
#[test]
fn listings_that_take_long_do_not_come_all_at_once() -> Try {
    let dir = tempfile::tempdir()?;
    let clock = Arc::new(ManualClock::new(1_000_000));
    let builder = Cache::builder().memory(1 << 20).ssd(dir.path(), 64 << 20);
    let cache = builder.world(Arc::new(RealFs), clock.clone(), false).open()?;
    let engine = cache.engine();
    let listed = Arc::new(AtomicU64::new(0));
    for _ in 0..10 {
        let all = &engine.catalog.containers;
        let container = Arc::new(Odd(1, listed.clone(), Some((clock.clone(), 2_000))));
        all.publish(all.reserve(Purpose::Write)?, Tier::Ssd, 0, 7, container).note_expiry(1);
    }
    for step in 1..=10 {
        engine.keep_step();
        assert_eq!(listed.load(Ordering::Relaxed), step);
    }
    Ok(())
}

/// Nor does the caller of a clear wait for more of them than its answer is worth.
#[test]
fn a_clear_does_not_wait_for_every_listing() -> Try {
    let dir = tempfile::tempdir()?;
    let clock = Arc::new(ManualClock::new(1_000_000));
    let builder = Cache::builder().memory(1 << 20).ssd(dir.path(), 64 << 20);
    let cache = builder.world(Arc::new(RealFs), clock.clone(), false).open()?;
    let listed = Arc::new(AtomicU64::new(0));
    for _ in 0..100 {
        let all = &cache.engine().catalog.containers;
        let container = Arc::new(Odd(1, listed.clone(), Some((clock.clone(), 500))));
        all.publish(all.reserve(Purpose::Write)?, Tier::Ssd, 0, 7, container).note_expiry(1);
    }
    cache.put("k", "v")?;
    cache.flush()?;
    assert_eq!(cache.clear()?, 1);
    assert_eq!(listed.load(Ordering::Relaxed), 4, "two seconds' worth");
    assert_eq!(cache.get("k")?, None);
    Ok(())
}
