use super::NewValue;
use crate::{Cache, ContentType, Error, Event, Persistence, Received, Subscription, Tier};
use bytes::Bytes;
use std::sync::Arc;
use thermocline_storage::clock::SystemClock;
use thermocline_storage::pair::Pair;
use thermocline_storage::vfs::RealFs;

type Failure = Box<dyn std::error::Error>;

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
fn what_another_key_of_the_identity_displaces_is_told_once_wherever_its_key_is_known() -> Result<(), Failure>
{
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
fn memory_alone_tells_whom_a_removal_displaced() -> Result<(), Failure> {
    let cache = Cache::builder().memory(4 << 20).open()?;
    let events = cache.subscribe();
    let ident = cache.engine().ident(b"a")?;
    cache.put("a", "1")?;
    assert_eq!(cache.engine().remove_if(ident, b"b", |_| true)?, Some(false));
    assert_eq!(displaced(&events), [(Some(Bytes::from_static(b"a")), Tier::Memory)]);
    Ok(())
}

#[test]
fn memory_alone_keeps_the_older_value_when_a_put_fails() -> Result<(), Box<dyn std::error::Error>> {
    let cache = Cache::builder().memory(4 << 20).open()?;
    cache.put("k", "old")?;
    // As when memory is given back to the system: values that were allowed are too large now.
    cache.engine().memory.set_limits(64 << 10, 100, &mut Vec::new());
    let refused = cache.put("k", vec![0; 128 << 10]);
    assert!(matches!(refused, Err(Error::ValueTooLarge { .. })), "{refused:?}");
    assert_eq!(cache.get("k")?.as_deref(), Some(&b"old"[..]));
    Ok(())
}
