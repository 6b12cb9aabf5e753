//! Reading: memory, then the write buffer, then the disk tier that the catalog names.
//!
//! Invariants:
//! - the full key is compared and the checksum verified before a byte is returned;
//! - what is found on disk enters memory only if, under the shard's lock, the catalog still names the same place:
//!   a place is never reused while its container is held, so that comparison is the ticket;
//! - bytes that fail verification kill the entry; bytes that cannot be reached leave it, and count as absent.
//!
//! A read writes in two cases only: a dead frame for what has expired or is damaged, and a copy of damaged bytes in
//! the quarantine. A crash leaves both, one or neither; as long as the frame is not durable, the next read finds the
//! same again.

use super::Engine;
use crate::budget::Permit;
use crate::error::Result;
use crate::events::Event;
use crate::metrics::Latencies;
use crate::stats::Counters;
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use thermocline_storage::catalog::{DirtyValue, Found, Located};
use thermocline_storage::memory::{Hit, Lookup, NewEntry};
use thermocline_storage::pair::Pair;
use thermocline_storage::{ContentType, Error as StorageError, Ident, Item, Tier, Version};
use thermocline_storage::{codec, record};

/// Reads of at most so many bytes take no share of the limit on values in flight: what they add is bounded by the number of
/// threads, and they neither wait behind large values nor touch a lock that all threads share.
pub(super) const UNCOUNTED: u64 = 64 << 10;

/// Follows a record that moves while it is looked up, for as long as that can be.
///
/// A container goes only when nothing points at it, so the next lookup finds another place; but what stands beneath
/// a write that is not visible yet may be gone until that write is durable, which takes a sync.
#[derive(Debug, Default)]
pub(crate) struct Follow(u32);

impl Follow {
    /// How often before it gives up.
    const MOST: u32 = 64;
    /// How often without waiting.
    const AT_ONCE: u32 = 8;

    /// Before looking once more; in the end, an error. Waits 1.6 s in all.
    pub(crate) fn on(&mut self) -> Result<()> {
        self.0 += 1;
        if self.0 >= Self::MOST {
            let what = "the record moved each time it was looked up".into();
            return Err(crate::Error::Busy { what, cause: None });
        }
        if let Some(ms) = self.0.checked_sub(Self::AT_ONCE) {
            std::thread::sleep(Duration::from_millis(ms.into()));
        }
        Ok(())
    }
}

/// What a read found.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub(crate) value: Bytes,
    pub(crate) content_type: ContentType,
    pub(crate) tier: Tier,
    pub(crate) expires_at: u64,
    pub(crate) version: Version,
}

/// A look that found nothing, not yet counted: after how many requests it came, and when it began, if it is timed.
#[derive(Debug)]
#[must_use = "a request that misses is counted"]
pub(crate) struct Miss {
    nth: u64,
    start: Option<Instant>,
}

/// What is known of a key without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) version: Version,
    pub(crate) expires_at: u64,
    pub(crate) tier: Tier,
    pub(crate) content_type: ContentType,
    /// Length of the value in bytes.
    pub(crate) len: u64,
}

impl Known {
    pub(crate) fn from_memory(hit: &Hit) -> Known {
        Known {
            version: hit.version,
            expires_at: hit.expires_at,
            tier: Tier::Memory,
            content_type: hit.content_type,
            len: hit.value.len() as u64,
        }
    }
}

/// Whether an expiry (0: never) has come.
pub(crate) fn expired(expires_at: u64, now: u64) -> bool {
    expires_at != 0 && expires_at <= now
}

impl Got {
    fn from_memory(hit: Hit) -> Got {
        Got {
            value: hit.value,
            content_type: hit.content_type,
            tier: Tier::Memory,
            expires_at: hit.expires_at,
            version: hit.version,
        }
    }

    fn from_dirty(v: &DirtyValue) -> Got {
        Got {
            value: v.pair.value(),
            content_type: v.content_type,
            tier: Tier::Memory,
            expires_at: v.expires_at,
            version: v.version,
        }
    }
}

impl Engine {
    /// The value of a key, from wherever it is.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Got>> {
        match self.look(key)? {
            Ok(got) => Ok(Some(got)),
            Err(miss) => {
                self.missed(miss);
                Ok(None)
            }
        }
    }

    /// As [`get`](Self::get), but what is not found is no request that missed before [`missed`](Self::missed) says so: who
    /// looks again in the same request misses once.
    pub(crate) fn look(&self, key: &[u8]) -> Result<Result<Got, Miss>> {
        let ident = self.ident(key)?;
        if let Some(got) = self.get_resident(ident, key) {
            return Ok(Ok(got));
        }
        let nth = self.counters.gets.load(Ordering::Relaxed);
        let mut start = Latencies::is_sampled(nth).then(Instant::now);
        let got =
            self.get_below(ident, key, &mut start).inspect_err(|_| Counters::bump(&self.counters.gets))?;
        let Some(got) = got else { return Ok(Err(Miss { nth, start })) };
        Counters::bump(&self.counters.gets);
        Counters::bump(&self.counters.tier(got.tier).hits);
        if let Some(start) = start {
            self.latencies.got(Some(got.tier), nth, start);
        }
        Ok(Ok(got))
    }

    /// Counts a request that [`look`](Self::look) found nothing for.
    pub(crate) fn missed(&self, miss: Miss) {
        Counters::bump(&self.counters.gets);
        Counters::bump(&self.counters.misses);
        if let Some(start) = miss.start {
            self.latencies.got(None, miss.nth, start);
        }
    }

    /// The value of a key if memory has it: no lock that waits for a disk, no disk.
    pub(crate) fn get_memory(&self, key: &[u8]) -> Result<Option<Got>> {
        let ident = self.ident(key)?;
        Ok(self.get_resident(ident, key))
    }

    /// What memory has. That a hit is to be timed is seen in the counter that it raises anyway.
    #[inline]
    fn get_resident(&self, ident: Ident, key: &[u8]) -> Option<Got> {
        let hits = self.counters.memory_hits.line();
        if Latencies::is_timed_hit(hits.load(Ordering::Relaxed)) {
            return self.get_resident_timed(ident, key, hits);
        }
        match self.memory.get_at(ident, key, || self.now()) {
            Lookup::Hit(hit) => {
                hits.fetch_add(1, Ordering::Relaxed);
                if hit.first_use_of_prefetched {
                    self.prefetch_used();
                }
                Some(Got::from_memory(hit))
            }
            Lookup::Expired | Lookup::Miss => None,
        }
    }

    #[cold]
    #[inline(never)]
    fn get_resident_timed(&self, ident: Ident, key: &[u8], hits: &AtomicU64) -> Option<Got> {
        let start = Instant::now();
        let Lookup::Hit(hit) = self.memory.get_at(ident, key, || self.now()) else { return None };
        self.latencies.get(Tier::Memory).since(start);
        hits.fetch_add(1, Ordering::Relaxed);
        if hit.first_use_of_prefetched {
            self.prefetch_used();
        }
        Some(Got::from_memory(hit))
    }

    /// What the write buffer or a disk has. `start` is when this began, if it is to be timed; it is now, from where a
    /// tier is read of which every read is timed.
    fn get_below(&self, ident: Ident, key: &[u8], start: &mut Option<Instant>) -> Result<Option<Got>> {
        if !self.has_disk() {
            return Ok(None);
        }
        let mut follow = Follow::default();
        loop {
            match self.catalog.find(ident) {
                Found::Absent => return Ok(None),
                Found::Dirty(v) => {
                    if v.pair.key() != key || expired(v.expires_at, self.now()) {
                        return Ok(None);
                    }
                    self.heat.record(ident, 1);
                    self.install_dirty(ident, &v);
                    return Ok(Some(Got::from_dirty(&v)));
                }
                Found::At(at) => {
                    if at.entry.tier > Tier::Ssd {
                        start.get_or_insert_with(Instant::now);
                    }
                    match self.read_at(ident, key, &at)? {
                        Step::Moved => follow.on()?,
                        Step::Done(got) => return Ok(got),
                    }
                }
            }
        }
    }

    /// Reads the record at a place on behalf of a caller.
    fn read_at(&self, ident: Ident, key: &[u8], at: &Located) -> Result<Step> {
        let (item, _permit) = match self.read_record(at)? {
            Ok(read) => read,
            Err(e) => return self.unread(ident, at, &e, Some(key)),
        };
        // Another key of the same identity is live. It displaced this one, if this one was ever put.
        if item.key != key {
            return Ok(Step::Done(None));
        }
        let expires_at = at.expires_at.unwrap_or(item.expires_at);
        if expired(expires_at, self.now()) {
            self.expire_at(ident, at, Some(item.key));
            return Ok(Step::Done(None));
        }
        let stored = record::size(item.key.len(), item.payload.len());
        let value = match codec::decode(item.codec, &item.payload, item.original_len) {
            Ok(value) => value,
            Err(why) => {
                self.condemn(ident, at.place, &at.entry, why, Some(item.key));
                return Ok(Step::Done(None));
            }
        };
        self.heat.record(ident, 1);
        let got = Got {
            value,
            content_type: item.content_type,
            tier: at.entry.tier,
            expires_at,
            version: item.version,
        };
        if self.install(ident, &item.key, &got, at, false) {
            self.tell_entered(item.key, at.entry.tier);
        }
        self.consider_promotion(ident, at, stored);
        self.consider_prefetch(ident, at);
        Ok(Step::Done(Some(got)))
    }

    /// Reads the record at a place for a promotion: no heat, no installing.
    pub(crate) fn read_for(&self, ident: Ident, key: &[u8], at: &Located) -> Result<Option<Got>> {
        let (item, _permit) = match self.read_record(at)? {
            Ok(read) => read,
            Err(e) => return self.unread(ident, at, &e, Some(key)).map(|_| None),
        };
        let expires_at = at.expires_at.unwrap_or(item.expires_at);
        if item.key != key || expired(expires_at, self.now()) {
            return Ok(None);
        }
        Ok(codec::decode(item.codec, &item.payload, item.original_len).ok().map(|value| Got {
            value,
            content_type: item.content_type,
            tier: at.entry.tier,
            expires_at,
            version: item.version,
        }))
    }

    /// What a failed read means for the caller.
    pub(super) fn unread(
        &self,
        ident: Ident,
        at: &Located,
        e: &StorageError,
        key: Option<&[u8]>,
    ) -> Result<Step> {
        match e {
            StorageError::Gone(_) => Ok(Step::Moved),
            StorageError::Busy(what) => Err(StorageError::Busy(what).into()),
            StorageError::Corrupt { .. } => {
                self.condemn(ident, at.place, &at.entry, &e.to_string(), key.map(Bytes::copy_from_slice));
                Ok(Step::Done(None))
            }
            _ => {
                Counters::bump(&self.counters.unreachable);
                let tier = at.entry.tier;
                if let Some(disk) = self.tier(tier) {
                    disk.suspect(&at.entry);
                }
                self.log.warn("unreachable", || format!("an item of the {tier} tier cannot be reached: {e}"));
                Ok(Step::Done(None))
            }
        }
    }

    /// An item on disk was found to have expired: its entry dies.
    pub(crate) fn expire_at(&self, ident: Ident, at: &Located, key: Option<Bytes>) {
        let mut guard = self.catalog.lock(ident);
        // The expiry may have been changed since it was read.
        let now_at = guard.durable(ident);
        let same = now_at.is_some_and(|l| l.place == at.place && l.expires_at == at.expires_at);
        if same && guard.kill(ident, at.place) {
            if matches!(guard.find(ident), Found::Absent) {
                self.memory.remove(ident);
            }
            drop(guard);
            Counters::bump(&self.counters.expired);
            let tier = at.entry.tier;
            self.events.emit(|| Event::Expired { key, tier });
        }
    }

    /// Enters a value read from disk into memory, if the catalog still names the place it was read from.
    /// `force` enters it even where the policy would not. Says whether it did.
    pub(crate) fn install(&self, ident: Ident, key: &[u8], got: &Got, at: &Located, force: bool) -> bool {
        let mut out = Vec::new();
        let now = self.now();
        let entered = self.catalog.with(ident, |found| match found {
            Found::At(l) if l.place == at.place && l.expires_at == at.expires_at => {
                let entry = NewEntry {
                    ident,
                    pair: Pair::new(key, &got.value),
                    version: got.version,
                    content_type: got.content_type,
                    expires_at: got.expires_at,
                    dirty: false,
                    prefetched: false,
                    force,
                };
                self.memory.insert(entry, now, &mut out)
            }
            _ => false,
        });
        self.let_go(out);
        entered
    }

    /// Memory holds now what a tier below has.
    pub(super) fn tell_entered(&self, key: Bytes, from: Tier) {
        Counters::bump(&self.counters.tier(Tier::Memory).promoted);
        self.events.emit(|| Event::Promoted { key: Some(key), from, to: Tier::Memory });
    }

    fn install_dirty(&self, ident: Ident, v: &DirtyValue) {
        let mut out = Vec::new();
        let now = self.now();
        self.catalog.with(ident, |found| {
            if let Found::Dirty(d) = found
                && d.version == v.version
            {
                let entry = NewEntry {
                    ident,
                    pair: v.pair.clone(),
                    version: v.version,
                    content_type: v.content_type,
                    expires_at: v.expires_at,
                    // It is queued to be written already, or will be when memory lets it go.
                    dirty: true,
                    prefetched: false,
                    force: false,
                };
                self.memory.insert(entry, now, &mut out);
            }
        });
        self.let_go(out);
    }

    /// What is known of a key without reading its value. `None`: absent.
    pub(crate) fn known(&self, ident: Ident, key: &[u8]) -> Result<Option<Known>> {
        let now = self.now();
        if let Some(hit) = self.memory.peek(ident, key, now) {
            return Ok(Some(Known::from_memory(&hit)));
        }
        if !self.has_disk() {
            return Ok(None);
        }
        self.look_up(ident, key).map(|(_, known)| known)
    }

    /// What the catalog has of a key, and what is known of it if that is the key's and alive. A record that moves
    /// meanwhile is followed.
    pub(super) fn look_up(&self, ident: Ident, key: &[u8]) -> Result<(Found, Option<Known>)> {
        let mut follow = Follow::default();
        loop {
            let found = self.catalog.find(ident);
            match self.judge(ident, key, &found)? {
                Judged::Moved => follow.on()?,
                Judged::Absent | Judged::Unreadable => return Ok((found, None)),
                Judged::Live(known) => return Ok((found, Some(known))),
            }
        }
    }

    /// Whether what the catalog found is the live item of this key.
    pub(crate) fn judge(&self, ident: Ident, key: &[u8], found: &Found) -> Result<Judged> {
        Ok(match found {
            Found::Absent => Judged::Absent,
            Found::Dirty(v) if v.pair.key() == key && !expired(v.expires_at, self.now()) => {
                Judged::Live(Known {
                    version: v.version,
                    expires_at: v.expires_at,
                    tier: Tier::Memory,
                    content_type: v.content_type,
                    len: v.pair.value_len() as u64,
                })
            }
            Found::Dirty(_) => Judged::Absent,
            Found::At(at) => match at.entry.container.head(at.place.position()) {
                Ok(head) => {
                    let expires_at = at.expires_at.unwrap_or(head.expires_at);
                    if head.key != key {
                        Judged::Absent
                    } else if expired(expires_at, self.now()) {
                        self.expire_at(ident, at, Some(head.key));
                        Judged::Absent
                    } else {
                        Judged::Live(Known {
                            version: head.version,
                            expires_at,
                            tier: at.entry.tier,
                            content_type: head.content_type,
                            len: u64::from(head.original_len),
                        })
                    }
                }
                Err(e) => match self.unread(ident, at, &e, Some(key))? {
                    Step::Moved => Judged::Moved,
                    Step::Done(_) => Judged::Unreadable,
                },
            },
        })
    }

    /// The record at a place, and the share of the limit on values in flight that it takes; small values take none.
    /// The outer error is that no share was to be had.
    fn read_record(&self, at: &Located) -> Result<Result<(Item, Option<Permit>), StorageError>> {
        let container = &at.entry.container;
        let bytes = match container.read_up_to(at.place.position(), UNCOUNTED) {
            Ok(item) => return Ok(Ok((item, None))),
            Err(StorageError::Oversized { bytes }) => bytes,
            Err(e) => return Ok(Err(e)),
        };
        let permit = self.permit(bytes)?;
        Ok(container.read_up_to(at.place.position(), bytes).map(|item| (item, Some(permit))))
    }

    /// A share of the limit on values in flight.
    pub(crate) fn permit(&self, bytes: u64) -> Result<Permit> {
        self.budget.acquire(bytes, self.settings.write_stall).map_err(|_| {
            Counters::bump(&self.counters.busy);
            crate::Error::Busy { what: "too many bytes of values are in flight".into(), cause: None }
        })
    }
}

pub(super) enum Step {
    /// The record went elsewhere: look it up again.
    Moved,
    Done(Option<Got>),
}

/// Whether a key is live, by what the catalog found.
pub(crate) enum Judged {
    Moved,
    Absent,
    /// There is an entry that cannot be read: it counts as absent for readers and as live for removals.
    Unreadable,
    Live(Known),
}

#[cfg(test)]
mod tests;
