//! What is asked of an open store from outside: its keys, whether its records are whole, what its optimizer did.
//!
//! Invariants: nothing of the store is changed, not even what any read would change: what has expired is left out and not
//! removed, what is damaged is told and not condemned, no use is counted, nothing is flushed; no shard is locked while a
//! record is read; memory is bounded by what one shard holds, and by one value; whoever asks is heard between two records,
//! so that he can stop it.
//!
//! Nothing is written, so a crash leaves nothing.

use super::read::{Follow, expired};
use super::{Engine, priority};
use crate::error::{Error, Result};
use crate::optimizer::Record;
use bytes::Bytes;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use thermocline_storage::catalog::{Found, SHARDS, Seen};
use thermocline_storage::{ContentType, Error as StorageError, Ident, Item, Tier, codec};

/// Identities that are looked at from one hearing to the next.
const CHUNK: usize = 512;
/// A page ends after so many bytes of keys, at the end of a chunk.
const PAGE_BYTES: usize = 512 << 10;
/// A page ends after so long, at the end of a chunk.
const PAGE_TIME: Duration = Duration::from_millis(500);

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
    /// Items whose newest value waits to be written, and is not looked at.
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
    /// gets each key that is live throughout once.
    pub(crate) fn page(&self, prefix: &[u8], from: Cursor, stop: &dyn Fn() -> bool) -> Result<Page> {
        let began = Instant::now();
        let mut page = Page { items: Vec::new(), unread: 0, next: None };
        let mut bytes = 0;
        let mut after = from.after;
        for shard in from.shard..SHARDS {
            let mut seen: Vec<Seen> = {
                let _open = self.using()?;
                self.catalog.walk(shard)
            };
            seen.retain(|s| after.is_none_or(|after| s.ident > after));
            after = None;
            seen.sort_unstable_by_key(|s| s.ident);
            while !seen.is_empty() {
                let rest = seen.split_off(CHUNK.min(seen.len()));
                let last = seen.last().map(|s| s.ident);
                // Records that lie side by side are read one after the other.
                seen.sort_by_key(|s| match &s.found {
                    Found::At(at) => at.place.to_bits(),
                    _ => u64::MAX,
                });
                for s in seen {
                    if stop() {
                        return Err(Error::Closed);
                    }
                    let _open = self.using()?;
                    match self.listed(s.ident, s.found) {
                        Ok(Some(item)) if item.key.starts_with(prefix) => {
                            bytes += item.key.len() + size_of::<Listed>();
                            page.items.push(item);
                        }
                        Ok(_) => {}
                        Err(_) => page.unread += 1,
                    }
                }
                seen = rest;
                if bytes >= PAGE_BYTES || began.elapsed() >= PAGE_TIME {
                    page.next = Some(Cursor { shard, after: last });
                    return Ok(page);
                }
            }
        }
        Ok(page)
    }

    /// The live item of an identity; an error if its record cannot be read, or does not verify.
    fn listed(&self, ident: Ident, mut found: Found) -> Result<Option<Listed>> {
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
            for s in seen {
                done += 1;
                let _open = self.using()?;
                let of = self.catalog.indexed().max(done);
                if tell(Told::Progress { done, of }).is_break() {
                    return Ok(Err(Stopped));
                }
                if let Found::At(at) = &s.found {
                    containers.insert(at.entry.id);
                }
                let told = self.look_at(s.ident, s.found, &mut checked);
                if told.is_some_and(|told| tell(told).is_break()) {
                    return Ok(Err(Stopped));
                }
            }
        }
        checked.containers = containers.len() as u64;
        Ok(Ok(checked))
    }

    /// One of them; gives what is wrong.
    fn look_at(&self, ident: Ident, mut found: Found, checked: &mut Checked) -> Option<Told> {
        // A record that moves each time that it is looked at is a busy one, not a damaged one.
        for _ in 0..64 {
            let at = match &found {
                Found::Absent => return None,
                Found::Dirty(_) => {
                    checked.unwritten += 1;
                    return None;
                }
                Found::At(at) => at,
            };
            let position = at.place.position();
            let why = match at.entry.container.read(position) {
                Ok(item) if expired(at.expires_at.unwrap_or(item.expires_at), self.now()) => return None,
                Ok(item) => match self.whole(ident, &item) {
                    Ok(len) => {
                        checked.items += 1;
                        checked.bytes += len;
                        return None;
                    }
                    Err(why) => Ok(why.to_owned()),
                },
                Err(e) if e.is_corrupt() => Ok(e.to_string()),
                Err(e) => Err(e),
            };
            let (entry, place, expires_at) = (at.entry.clone(), at.place, at.expires_at);
            found = self.catalog.find(ident);
            if !matches!(&found, Found::At(now) if now.place == place) {
                continue;
            }
            let path = entry.container.raw(position).map(|r| r.path).unwrap_or_default();
            let tier = entry.tier;
            return match why {
                Ok(why) => {
                    // What has expired is absent anyhow, as far as that can still be read.
                    let head = || entry.container.head(position).ok().map(|head| head.expires_at);
                    if expires_at.or_else(head).is_some_and(|at| expired(at, self.now())) {
                        return None;
                    }
                    let key = entry.container.key(position).filter(|key| self.hasher.ident(key) == ident);
                    Some(Told::Lost { tier, path, key, why })
                }
                Err(StorageError::Gone(_)) => continue,
                Err(e) => Some(Told::Away { tier, path, why: e.to_string() }),
            };
        }
        None
    }

    /// The length of a record's value, or what is wrong with the record.
    fn whole(&self, ident: Ident, item: &Item) -> Result<u64, &'static str> {
        if item.ident != ident || self.hasher.ident(&item.key) != ident {
            return Err("the record is of another identity");
        }
        codec::decode(item.codec, &item.payload, item.original_len).map(|value| value.len() as u64)
    }
}
