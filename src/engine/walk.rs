//! Walks over everything: keys of a prefix, prefix removal, clear, verify.
//!
//! A walk takes the identities of one catalog shard at a time, dirty ones included, in order of place, and looks each up
//! just before it reads it: what moved meanwhile is read where it is now, and nothing that was removed is held.
//!
//! Invariants: a key is given at most once, and every key that is live throughout is given, or an error in its place
//! if its record cannot be read; no shard is locked while a record is read, so a walk holds up nobody; memory is
//! bounded by what one shard holds.
//!
//! What a crash leaves: of a prefix removal, some keys removed and the others not, each as a removal of its own; of a
//! clear, some shards empty and the others not (one frame a shard); of a verification, what a read that met the same
//! damage leaves, and what a checkpoint does where a copy of the last one was damaged.

use super::Engine;
use super::read::{Follow, Step, expired};
use super::write::same;
use crate::error::{Error, Result};
use crate::stats::Counters;
use bytes::Bytes;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use thermocline_storage::catalog::{Catalog, Found, SHARDS};
use thermocline_storage::vfs::Background;
use thermocline_storage::{Error as StorageError, Ident, Tier, codec};

/// Live keys of a prefix; see `Cache::keys`.
#[derive(Debug)]
pub(crate) struct Walk {
    engine: Arc<Engine>,
    prefix: Bytes,
    shard: usize,
    ready: VecDeque<Result<Bytes>>,
}

impl Walk {
    pub(crate) fn new(engine: Arc<Engine>, prefix: Bytes) -> Walk {
        Walk { engine, prefix, shard: 0, ready: VecDeque::new() }
    }
}

impl Iterator for Walk {
    type Item = Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(key) = self.ready.pop_front() {
                return Some(key);
            }
            if self.shard >= self.engine.walk_shards() {
                return None;
            }
            if self.engine.is_closed() {
                self.shard = usize::MAX;
                return Some(Err(Error::Closed));
            }
            self.ready = self.engine.keys_of_shard(self.shard, &self.prefix);
            self.shard += 1;
        }
    }
}

/// One thing that `Cache::verify` found wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The tier that it is in.
    pub tier: Tier,
    /// The file, where known.
    pub path: Option<PathBuf>,
    /// The key, where it could be read.
    pub key: Option<Bytes>,
    /// What is wrong.
    pub why: String,
}

/// What `Cache::verify` found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Live items read and checked, from key to decoded value.
    pub items: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Bytes of their values as they are stored: compressed, without keys and headers.
    pub stored: u64,
    /// Containers looked at.
    pub containers: u64,
    /// What failed verification. These items are dead now, their bytes in the quarantine.
    pub damaged: Vec<Damage>,
    /// What could not be reached. These items are kept, and absent until they can be.
    pub unreachable: Vec<Damage>,
    /// Checkpoint files of the catalog that were damaged or missing. Nothing is lost with one of the two copies: both
    /// were written anew.
    pub mended: Vec<PathBuf>,
}

impl VerifyReport {
    /// Whether everything was read and was right.
    pub fn is_clean(&self) -> bool {
        self.damaged.is_empty() && self.unreachable.is_empty() && self.mended.is_empty()
    }
}

/// What a walk finds out about an identity that it saw.
enum Named {
    /// Nothing is there any more.
    Gone,
    /// A live key, and what the catalog says of it now.
    Live(Bytes, Found),
    /// One that has expired before it was written: what it replaced may be on disk, and a kill would bring that back.
    Expired(Bytes, Found),
    /// Its record cannot be read for now, so nobody knows its key.
    OutOfReach(StorageError),
}

impl Engine {
    fn walk_shards(&self) -> usize {
        if self.has_disk() { SHARDS } else { self.memory.shard_count() }
    }

    fn keys_of_shard(&self, no: usize, prefix: &[u8]) -> VecDeque<Result<Bytes>> {
        let now = self.now();
        if !self.has_disk() {
            return self
                .memory
                .snapshot(no)
                .into_iter()
                .filter(|r| r.key.starts_with(prefix) && !expired(r.expires_at, now))
                .map(|r| Ok(r.key))
                .collect();
        }
        let mut keys = VecDeque::new();
        for ident in self.catalog.walk(no) {
            match self.key_of(ident) {
                Ok(Named::Live(key, _)) if key.starts_with(prefix) => keys.push_back(Ok(key)),
                Ok(_) => {}
                Err(e) => keys.push_back(Err(e)),
            }
        }
        keys
    }

    /// The live key of an identity that a walk saw, and what the catalog says of it now.
    fn key_of(&self, ident: Ident) -> Result<Named> {
        let mut found = self.catalog.find(ident);
        let mut follow = Follow::default();
        loop {
            match &found {
                Found::Absent => return Ok(Named::Gone),
                Found::Dirty(v) if expired(v.expires_at, self.now()) => {
                    return Ok(Named::Expired(v.pair.key_bytes(), found.clone()));
                }
                Found::Dirty(v) => return Ok(Named::Live(v.pair.key_bytes(), found.clone())),
                Found::At(at) => match at.entry.container.head(at.place.position()) {
                    Ok(head) => {
                        if expired(at.expires_at.unwrap_or(head.expires_at), self.now()) {
                            self.expire_at(ident, at, Some(head.key));
                            return Ok(Named::Gone);
                        }
                        return Ok(Named::Live(head.key, found));
                    }
                    // Kills it, or counts it as out of reach. Its key is not known.
                    Err(e) => match self.unread(ident, at, &e, None)? {
                        Step::Moved => follow.on()?,
                        Step::Done(_) if e.is_corrupt() => return Ok(Named::Gone),
                        Step::Done(_) => return Ok(Named::OutOfReach(e)),
                    },
                },
            }
            found = self.catalog.find(ident);
        }
    }

    /// Removes every live key of a prefix; gives how many. An error if of an item it cannot be told whether it is one
    /// of them, for it may come back into reach.
    pub(crate) fn remove_prefix(&self, prefix: &[u8]) -> Result<u64> {
        let _open = self.using()?;
        let mut removed = 0;
        let mut out_of_reach = None;
        self.flights.void_prefix(prefix);
        for no in 0..self.walk_shards() {
            if !self.has_disk() {
                for key in self.keys_of_shard(no, prefix) {
                    let key = key?;
                    removed +=
                        u64::from(self.remove_if(self.hasher.ident(&key), &key, |_| true)? == Some(true));
                }
                continue;
            }
            self.gate(0, true)?;
            for ident in self.catalog.walk(no) {
                match self.key_of(ident)? {
                    Named::Live(key, found) | Named::Expired(key, found) if key.starts_with(prefix) => {
                        removed += u64::from(self.remove_seen(ident, &key, found)?);
                    }
                    Named::OutOfReach(e) => out_of_reach = out_of_reach.or(Some(e)),
                    _ => {}
                }
            }
        }
        if self.settings.persistence == crate::config::Persistence::Always {
            // As after the removal of a key that is not there.
            self.catalog.settle()?;
        }
        out_of_reach.map_or(Ok(removed), |e| Err(e.into()))
    }

    /// Removes what a walk saw, unless it was written since; follows it where it only moved.
    fn remove_seen(&self, ident: Ident, key: &Bytes, mut found: Found) -> Result<bool> {
        let version = self.version_of(&found);
        for _ in 0..64 {
            if let Some(live) = self.remove_if(ident, key, |now| same(now, &found))? {
                return Ok(live);
            }
            let now = self.catalog.find(ident);
            if version.is_none() || self.version_of(&now) != version {
                return Ok(false);
            }
            found = now;
        }
        Ok(false)
    }

    fn version_of(&self, found: &Found) -> Option<thermocline_storage::Version> {
        match found {
            Found::Absent => None,
            Found::Dirty(v) => Some(v.version),
            Found::At(at) => at.entry.container.head(at.place.position()).ok().map(|h| h.version),
        }
    }

    /// Removes everything; gives how many items were alive.
    pub(crate) fn clear(&self) -> Result<u64> {
        let _open = self.using()?;
        let removed = if self.has_disk() {
            self.gate(0, true)?;
            // What has expired is none of those: a listing of each container that has such, which is cheaper than to
            // read every item. Where that takes too long the number is too high; what is removed does not depend on it.
            self.reap_all();
            self.catalog.clear(|no, idents| {
                for ident in idents {
                    self.memory.remove(*ident);
                }
                self.flights.void_all(|i| Catalog::shard_of(i) == no);
            })
        } else {
            self.flights.void_all(|_| true);
            self.memory.clear(self.now())
        };
        Counters::add(&self.counters.removes, removed);
        self.signals[0].wake_soon();
        self.signals[1].wake_soon();
        if self.settings.persistence == crate::config::Persistence::Always {
            self.catalog.sync()?;
        }
        Ok(removed)
    }

    /// Reads and checks every live item on disk, calling `progress` with each container's number of items.
    pub(crate) fn verify(&self, mut progress: impl FnMut(u64)) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        if !self.has_disk() {
            return self.using().map(|_| report);
        }
        self.flush()?;
        report.mended = self.using().and_then(|_open| Ok(self.catalog.verify_copies()?))?;
        let mut containers = std::collections::HashSet::new();
        for no in 0..SHARDS {
            // Nothing is read, let alone moved to a quarantine, once the directories are let go of; and a close does
            // not wait for the whole of it.
            let _open = self.using()?;
            let mut items = 0;
            for ident in self.catalog.walk(no) {
                let found = self.catalog.find(ident);
                if let Found::At(at) = &found {
                    containers.insert(at.entry.id);
                }
                self.verify_one(ident, found, &mut report)?;
                items += 1;
            }
            progress(items);
        }
        report.containers = containers.len() as u64;
        Ok(report)
    }

    fn verify_one(&self, ident: Ident, mut found: Found, report: &mut VerifyReport) -> Result<()> {
        // Nobody waits for it as for a read; and whoever is told of its progress is no part of it.
        let _background = Background::begin();
        for _ in 0..64 {
            let Found::At(at) = &found else { return Ok(()) };
            let tier = at.entry.tier;
            let damage = |key: Option<Bytes>, why: String| {
                let path = at.entry.container.raw(at.place.position()).map(|r| r.path);
                Damage { tier, path, key, why }
            };
            match at.entry.container.read(at.place.position()) {
                Ok(item) => {
                    match codec::decode(item.codec, &item.payload, item.original_len) {
                        Ok(value) if item.ident == ident => {
                            report.items += 1;
                            report.bytes += value.len() as u64;
                            report.stored += item.payload.len() as u64;
                        }
                        Ok(_) => {
                            let why = "the record is of another identity";
                            report.damaged.push(damage(Some(item.key), why.into()));
                            self.condemn(ident, at.place, &at.entry, why, None);
                        }
                        Err(why) => {
                            report.damaged.push(damage(Some(item.key.clone()), why.into()));
                            self.condemn(ident, at.place, &at.entry, why, Some(item.key));
                        }
                    }
                    return Ok(());
                }
                Err(thermocline_storage::Error::Gone(_)) => found = self.catalog.find(ident),
                Err(e) if e.is_corrupt() => {
                    let key = at.entry.container.key(at.place.position());
                    report.damaged.push(damage(key.clone(), e.to_string()));
                    self.condemn(ident, at.place, &at.entry, &e.to_string(), key);
                    return Ok(());
                }
                Err(e) => {
                    report.unreachable.push(damage(None, e.to_string()));
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cache;
    use crate::engine::testkit::Try;

    #[test]
    fn what_a_walk_saw_is_removed_unless_it_was_put_since() -> Try {
        let dir = tempfile::tempdir()?;
        let cache = Cache::builder().memory(1 << 20).ssd(dir.path(), 64 << 20).open()?;
        let (engine, key) = (cache.engine(), Bytes::from_static(b"k"));
        let ident = engine.ident(&key)?;
        cache.put("k", "1")?;
        cache.flush()?;
        let seen = engine.catalog.find(ident);
        cache.put("k", "2")?;
        assert!(!engine.remove_seen(ident, &key, seen)?);
        assert_eq!(cache.get("k")?.as_deref(), Some(&b"2"[..]));
        assert!(engine.remove_seen(ident, &key, engine.catalog.find(ident))?);
        assert_eq!(cache.get("k")?, None);
        Ok(())
    }
}
