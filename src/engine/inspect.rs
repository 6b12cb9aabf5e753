//! What is asked of an open store from outside: its keys, whether its records are whole, what its optimizer did.
//!
//! Invariants: nothing of the store is changed, not even what any read would change: what has expired is left out and not
//! removed, what is damaged is told and not condemned, no use is counted, nothing is flushed; no shard is locked while a
//! record is read, and no container is held but the one that is being read, so that what is removed meanwhile gives back
//! its room; memory is bounded by the identities of one shard, and by one value, which counts as one in flight; whoever
//! asks is heard between two records, so that he can stop it.
//!
//! Nothing is written, so a crash leaves nothing.

use super::read::{Follow, UNCOUNTED, expired};
use super::{Engine, priority};
use crate::budget::Permit;
use crate::error::Result;
use crate::optimizer::Record;
use bytes::Bytes;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use thermocline_storage::catalog::{Found, Located, SHARDS};
use thermocline_storage::{ContentType, Error as StorageError, Ident, Item, Tier, codec};

/// Identities that are looked at from one hearing to the next.
const CHUNK: usize = 512;
/// A page ends after so many bytes of keys, at the end of a chunk.
const PAGE_BYTES: usize = 512 << 10;
/// A page ends after so long, at the end of a chunk.
const PAGE_TIME: Duration = Duration::from_millis(500);
/// How long a share of the limit on values in flight is waited for from one hearing to the next.
const TURN: Duration = Duration::from_millis(500);

/// How far a list has come: behind this identity of this shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) shard: usize,
    pub(crate) after: Option<Ident>,
}

impl Cursor {
    /// Before everything.
    pub(crate) const START: Cursor = Cursor { shard: 0, after: None };
}

/// A live item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) key: Bytes,
    pub(crate) tier: Tier,
    pub(crate) content_type: ContentType,
    pub(crate) len: u64,
    /// 0: never.
    pub(crate) expires_at: u64,
    pub(crate) version: u64,
}

/// A part of a list.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) items: Vec<Listed>,
    /// Items whose record cannot be read, so that their keys are not known.
    pub(crate) unread: u64,
    /// Where the next part begins; `None`: there is none.
    pub(crate) next: Option<Cursor>,
}

/// What a look through all records tells while it goes on.
#[derive(Debug)]
pub(crate) enum Told {
    /// Records that were looked at, of so many.
    Progress { done: u64, of: u64 },
    /// A record does not verify: the item is lost.
    Lost { tier: Tier, path: PathBuf, key: Option<Bytes>, why: String },
    /// A record cannot be read for now.
    Away { tier: Tier, path: PathBuf, why: String },
}

/// What was found right.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) items: u64,
    pub(crate) bytes: u64,
    pub(crate) containers: u64,
    /// Items whose newest value waits to be written, or moved each time that it was to be read: they are not looked at.
    pub(crate) unwritten: u64,
}

/// Who asked went away, or the store is closing.
#[derive(Debug)]
pub(crate) struct Stopped;

impl Engine {
    /// What the optimizer decided and did, the newest last.
    pub(crate) fn turns(&self) -> Vec<Record> {
        self.tuning(|tuner| tuner.records())
    }

    /// The directories of the store that are here, those of the highest tier first.
    pub(crate) fn places(&self) -> Vec<PathBuf> {
        let home = self.home.lock();
        let dirs = home.iter().flat_map(|home| home.dirs());
        dirs.filter(|d| d.present).map(|d| d.path.clone()).collect()
    }

    /// Live keys of a prefix, in the order of shards and identities: whoever asks again with the cursor that it gives
    /// gets each key that is live throughout once. `beat` is called before each record, which may be slow to read.
    pub(crate) fn page(
        &self,
        prefix: &[u8],
        from: Cursor,
        beat: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<std::result::Result<Page, Stopped>> {
        let began = Instant::now();
        let mut page = Page { items: Vec::new(), unread: 0, next: None };
        let mut bytes = 0;
        let mut after = from.after;
        for shard in from.shard..SHARDS {
            let seen = {
                let _open = self.using()?;
                self.catalog.walk(shard)
            };
            // With their order by place: records that lie side by side are read one after the other.
            let mut seen: Vec<(Ident, usize)> = seen.into_iter().zip(0..).collect();
            seen.retain(|(ident, _)| after.is_none_or(|after| *ident > after));
            after = None;
            seen.sort_unstable();
            for chunk in seen.chunks_mut(CHUNK) {
                let last = chunk.last().map(|(ident, _)| *ident);
                chunk.sort_unstable_by_key(|(_, place)| *place);
                for (ident, _) in chunk {
                    if beat().is_break() {
                        return Ok(Err(Stopped));
                    }
                    let _open = self.using()?;
                    match self.listed(*ident) {
                        Ok(Some(item)) if item.key.starts_with(prefix) => {
                            bytes += item.key.len() + size_of::<Listed>();
                            page.items.push(item);
                        }
                        Ok(_) => {}
                        Err(_) => page.unread += 1,
                    }
                }
                if bytes >= PAGE_BYTES || began.elapsed() >= PAGE_TIME {
                    page.next = Some(Cursor { shard, after: last });
                    return Ok(Ok(page));
                }
            }
        }
        Ok(Ok(page))
    }

    /// The live item of an identity; an error if its record cannot be read, or does not verify.
    fn listed(&self, ident: Ident) -> Result<Option<Listed>> {
        let mut found = self.catalog.find(ident);
        let mut follow = Follow::default();
        loop {
            let now = self.now();
            match &found {
                Found::Absent => return Ok(None),
                Found::Dirty(v) if expired(v.expires_at, now) => return Ok(None),
                Found::Dirty(v) => {
                    return Ok(Some(Listed {
                        key: v.pair.key_bytes(),
                        tier: Tier::Memory,
                        content_type: v.content_type,
                        len: v.pair.value_len() as u64,
                        expires_at: v.expires_at,
                        version: v.version.0,
                    }));
                }
                Found::At(at) => match at.entry.container.head(at.place.position()) {
                    Ok(head) => {
                        let expires_at = at.expires_at.unwrap_or(head.expires_at);
                        if expired(expires_at, now) {
                            return Ok(None);
                        }
                        let tier = if self.memory.contains(ident) { Tier::Memory } else { at.entry.tier };
                        return Ok(Some(Listed {
                            key: head.key,
                            tier,
                            content_type: head.content_type,
                            len: u64::from(head.original_len),
                            expires_at,
                            version: head.version.0,
                        }));
                    }
                    Err(e) => {
                        let before = at.place;
                        found = self.catalog.find(ident);
                        if matches!(&found, Found::At(now) if now.place == before) {
                            return Err(e.into());
                        }
                        follow.on()?;
                    }
                },
            }
        }
    }

    /// Reads every record that the catalog points at, from key to decoded value, and changes nothing: what does not
    /// verify is told. Runs at the priority of background work, for it reads everything.
    pub(crate) fn look_through(
        &self,
        tell: &mut dyn FnMut(Told) -> ControlFlow<()>,
    ) -> Result<std::result::Result<Checked, Stopped>> {
        priority::lower(self.settings.nice);
        let mut checked = Checked::default();
        let mut containers = HashSet::new();
        let mut done = 0;
        for shard in 0..SHARDS {
            let seen = {
                let _open = self.using()?;
                self.catalog.walk(shard)
            };
            let of = self.catalog.indexed();
            for ident in seen {
                done += 1;
                let mut heard = || tell(Told::Progress { done, of: of.max(done) }).is_continue();
                if !heard() {
                    return Ok(Err(Stopped));
                }
                let _open = self.using()?;
                let told = match self.look_at(ident, &mut heard, &mut checked) {
                    Ok((container, told)) => {
                        containers.extend(container);
                        told
                    }
                    Err(stopped) => return Ok(Err(stopped)),
                };
                if told.is_some_and(|told| tell(told).is_break()) {
                    return Ok(Err(Stopped));
                }
            }
        }
        checked.containers = containers.len() as u64;
        Ok(Ok(checked))
    }

    /// One of them; gives the container that it is in, and what is wrong.
    fn look_at(
        &self,
        ident: Ident,
        heard: &mut dyn FnMut() -> bool,
        checked: &mut Checked,
    ) -> std::result::Result<(Option<u64>, Option<Told>), Stopped> {
        // A record that moves each time that it is looked at is a busy one, not a damaged one.
        for _ in 0..64 {
            let found = self.catalog.find(ident);
            let at = match &found {
                Found::Absent => return Ok((None, None)),
                Found::Dirty(_) => {
                    checked.unwritten += 1;
                    return Ok((None, None));
                }
                Found::At(at) => at,
            };
            let container = Some(at.entry.id);
            let position = at.place.position();
            let read = match self.read_in_turn(at, heard)? {
                Ok((item, _permit)) if expired(at.expires_at.unwrap_or(item.expires_at), self.now()) => {
                    return Ok((container, None));
                }
                Ok((item, _permit)) => self.whole(ident, &item).map_err(|why| Ok(why.to_owned())),
                Err(e) if e.is_corrupt() => Err(Ok(e.to_string())),
                Err(e) => Err(Err(e)),
            };
            let why = match read {
                Ok(len) => {
                    checked.items += 1;
                    checked.bytes += len;
                    return Ok((container, None));
                }
                Err(why) => why,
            };
            if !matches!(self.catalog.find(ident), Found::At(now) if now.place == at.place) {
                continue;
            }
            let entry = &at.entry;
            let path = entry.container.raw(position).map(|r| r.path).unwrap_or_default();
            let tier = entry.tier;
            let told = match why {
                Ok(why) => {
                    // What has expired is absent anyhow, as far as that can still be read.
                    let head = || entry.container.head(position).ok().map(|head| head.expires_at);
                    if at.expires_at.or_else(head).is_some_and(|at| expired(at, self.now())) {
                        return Ok((container, None));
                    }
                    let key = entry.container.key(position).filter(|key| self.hasher.ident(key) == ident);
                    Told::Lost { tier, path, key, why }
                }
                Err(StorageError::Gone(_)) => continue,
                Err(e) => Told::Away { tier, path, why: e.to_string() },
            };
            return Ok((container, Some(told)));
        }
        checked.unwritten += 1;
        Ok((None, None))
    }

    /// The record at a place, with its share of the limit on values in flight. That is waited for as long as whoever asks
    /// is there: callers of the store have as much right to it.
    fn read_in_turn(
        &self,
        at: &Located,
        heard: &mut dyn FnMut() -> bool,
    ) -> std::result::Result<std::result::Result<(Item, Option<Permit>), StorageError>, Stopped> {
        let (container, position) = (&at.entry.container, at.place.position());
        let bytes = match container.read_up_to(position, UNCOUNTED) {
            Ok(item) => return Ok(Ok((item, None))),
            Err(StorageError::Oversized { bytes }) => bytes,
            Err(e) => return Ok(Err(e)),
        };
        loop {
            if let Ok(permit) = self.budget.acquire(bytes, TURN) {
                return Ok(container.read_up_to(position, bytes).map(|item| (item, Some(permit))));
            }
            if !heard() {
                return Err(Stopped);
            }
        }
    }

    /// The length of a record's value, or what is wrong with the record.
    fn whole(&self, ident: Ident, item: &Item) -> Result<u64, &'static str> {
        if item.ident != ident || self.hasher.ident(&item.key) != ident {
            return Err("the record is of another identity");
        }
        codec::decode(item.codec, &item.payload, item.original_len).map(|value| value.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cache;
    use std::sync::Weak;
    use thermocline_storage::container::Entry;

    /// Waits until none of these containers is held by anybody, but for the one that is being written.
    fn given_up(containers: &[Weak<Entry>]) -> bool {
        let held = || containers.iter().filter(|c| c.strong_count() > 0).count();
        let began = Instant::now();
        while held() > 1 && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
        held() <= 1
    }

    /// A store of a few segments, and these.
    fn of_segments(dir: &std::path::Path) -> (Cache, Vec<Weak<Entry>>) {
        let cache = Cache::builder().memory(1 << 20).ssd(dir, 64 << 20).open().unwrap();
        let mut random = 7u64;
        let mut byte = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 56) as u8
        };
        for no in 0..2_000 {
            cache.put(format!("k{no}"), (0..4_000).map(|_| byte()).collect::<Vec<u8>>()).unwrap();
        }
        cache.flush().unwrap();
        let engine = cache.engine();
        let mut containers: Vec<Weak<Entry>> = Vec::new();
        for ident in (0..SHARDS).flat_map(|no| engine.catalog.walk(no)) {
            if let Found::At(at) = engine.catalog.find(ident)
                && containers.iter().all(|c| c.as_ptr() != std::sync::Arc::as_ptr(&at.entry))
            {
                containers.push(std::sync::Arc::downgrade(&at.entry));
            }
        }
        assert!(containers.len() > 3, "{}", containers.len());
        (cache, containers)
    }

    /// A segment that is dropped takes up its room until nobody holds it any more: who looks through a shard, which may
    /// take long, would make reclaim drop one after the other, and gain nothing by it.
    #[test]
    fn what_is_dropped_while_it_is_looked_at_is_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, containers) = of_segments(dir.path());
        let engine = cache.engine();
        let (mut told, mut dropped) = (0, false);
        let done = engine.look_through(&mut |what| {
            assert!(matches!(what, Told::Progress { .. }), "{what:?}");
            told += 1;
            if told == 3 {
                cache.clear().unwrap();
                dropped = given_up(&containers);
            }
            ControlFlow::Continue(())
        });
        assert!(dropped, "containers are held");
        let checked = done.unwrap().unwrap();
        assert!(told > 3 && checked.items < 10, "{told} {checked:?}");
    }

    #[test]
    fn what_is_dropped_while_it_is_listed_is_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, containers) = of_segments(dir.path());
        let engine = cache.engine();
        let (mut beats, mut dropped) = (0, false);
        let page = engine.page(b"", Cursor::START, &mut || {
            beats += 1;
            if beats == 3 {
                cache.clear().unwrap();
                dropped = given_up(&containers);
            }
            ControlFlow::Continue(())
        });
        assert!(dropped, "containers are held");
        assert_eq!(page.unwrap().unwrap().items.len(), 2);
    }

    /// A large value is one in flight, as if it was read for a caller; and who waits for its turn is heard.
    #[test]
    fn a_value_that_is_looked_at_takes_its_share_of_those_in_flight() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::builder().memory(1 << 20).ssd(dir.path(), 64 << 20).open().unwrap();
        cache.put("large", vec![7; 1 << 20]).unwrap();
        cache.flush().unwrap();
        let engine = cache.engine();
        let all = engine.budget.acquire(engine.budget.limit(), Duration::ZERO).unwrap();
        let mut heard = 0;
        let stopped = engine.look_through(&mut |_| {
            heard += 1;
            if heard < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert!(matches!(stopped, Ok(Err(Stopped))), "{stopped:?}");
        drop(all);
        let checked = engine.look_through(&mut |_| ControlFlow::Continue(())).unwrap().unwrap();
        assert_eq!((checked.items, engine.budget.used()), (1, 0));
    }
}
