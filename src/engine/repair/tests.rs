//! What a repair does that damage to a disk alone does not bring about.

use super::*;
use crate::engine::testkit::Try;
use crate::{Builder, Cache};
use std::path::Path;
use thermocline_storage::clock::SystemClock;
use thermocline_storage::vfs::RealFs;
use thermocline_storage::{Tier, Version};

/// A store without threads, with one disk tier.
fn builder(dir: &Path) -> Builder {
    let mut builder = Cache::builder().memory(1 << 20).ssd(dir, 16 << 20);
    builder.config_mut().storage.segment_size = Some(1 << 20);
    builder.world(Arc::new(RealFs), Arc::new(SystemClock), false)
}

/// A store with two items in one segment, which is sealed.
fn two_items(dir: &Path) -> Try<(Cache, Arc<Entry>)> {
    let cache = builder(dir).open()?;
    cache.put("one", vec![1; 1000])?;
    cache.put("other", vec![2; 1000])?;
    cache.flush()?;
    cache.engine().tier(Tier::Ssd).ok_or("no tier")?.seal()?;
    let entry = cache.engine().catalog.containers.all().into_iter().find(|e| e.live() == 2);
    Ok((cache, entry.ok_or("no segment")?))
}

#[test]
fn a_record_of_another_identity_is_lost_once() -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, _) = two_items(dir.path())?;
    let catalog = &cache.engine().catalog;
    let at = |key: &[u8]| -> Try<(Ident, Place)> {
        let ident = cache.engine().hasher.ident(key);
        Ok((ident, catalog.lock(ident).durable(ident).ok_or("not durable")?.place))
    };
    let ((one, its), (_, others)) = (at(b"one")?, at(b"other")?);
    assert!(catalog.lock(one).swap(one, its, others, Version(1 << 20), 0));
    cache.close()?;
    drop(cache);

    let repaired = builder(dir.path()).repair(|_| {})?;
    assert_eq!(repaired.lost.len(), 1, "{repaired:?}");
    assert!(repaired.lost.iter().all(|f| f.why.contains("another identity") && f.key.is_none()));
    assert!(repaired.left.is_empty() && repaired.failed.is_empty(), "{repaired:?}");
    assert!(builder(dir.path()).check(|_| {})?.is_clean());
    let cache = builder(dir.path()).open()?;
    assert_eq!(cache.get("one")?, None);
    assert_eq!(cache.get("other")?.as_deref(), Some(&[2; 1000][..]));
    Ok(())
}

#[test]
fn a_container_that_stays_is_called_by_its_reason() -> Try {
    let dir = tempfile::tempdir()?;
    let (cache, entry) = two_items(dir.path())?;
    let engine = cache.engine();
    let why = || engine.renew(entry.id).err().map_or_else(String::new, |e| e.to_string());
    engine.claims(Tier::Ssd).leave_alone(&entry);
    assert!(why().contains("cannot be emptied now"), "{}", why());
    engine.claims(Tier::Ssd).forgive();
    // A batch that may land in it keeps it from being dropped: once its items were copied out, and when it is empty.
    let under_way = engine.catalog.batch(Tier::Ssd);
    for live in [2, 0] {
        assert_eq!(entry.live(), live);
        let why = why();
        assert!(why.contains("could not be dropped"), "{why}");
    }
    drop(under_way);
    engine.renew(entry.id)?;
    assert!(engine.catalog.containers.all().iter().all(|e| e.id != entry.id));
    assert_eq!(cache.get("one")?.as_deref(), Some(&[1; 1000][..]));
    Ok(())
}

/// Nothing is lost by a pack without a byte in which everything had expired; but the catalog still has it there.
#[test]
fn an_empty_file_of_what_has_expired_is_dropped() -> Try {
    let dir = tempfile::tempdir()?;
    let clock = Arc::new(crate::testing::ManualClock::new(1_700_000_000_000));
    let builder =
        || Cache::builder().memory(1 << 20).cold(dir.path()).world(Arc::new(RealFs), clock.clone(), false);
    let cache = builder().open()?;
    cache.put("k", vec![1; 1000])?;
    cache.flush()?;
    // The catalog knows of this without the record.
    cache.expire_in("k", Some(Duration::from_secs(10)))?;
    cache.flush()?;
    cache.close()?;
    drop(cache);
    clock.advance(20_000);
    let packs: Vec<_> =
        std::fs::read_dir(dir.path().join("packs"))?.collect::<std::result::Result<_, _>>()?;
    assert_eq!(packs.len(), 1);
    for pack in packs {
        std::fs::write(pack.path(), b"")?;
    }
    let repaired = builder().repair(|_| {})?;
    assert!(
        repaired.lost.is_empty() && repaired.left.is_empty() && repaired.failed.is_empty(),
        "{repaired:?}"
    );
    assert!(!repaired.mended.is_empty() && builder().check(|_| {})?.is_clean());
    assert_eq!(std::fs::read_dir(dir.path().join("packs"))?.count(), 0);
    Ok(())
}
