//! The one move protocol: copy a record to its new container, durably, then swap the durable place from old to new.
//!
//! If a put, a removal or another move came first, the swap fails and the copy is garbage. A crash before the swap's
//! frame is synced leaves the old record live; one after it, the new.

use super::Engine;
use super::read::expired;
use crate::error::Result;
use crate::events::{Event, EvictReason};
use crate::stats::Counters;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thermocline_storage::catalog::{Found, Located};
use thermocline_storage::container::{DiskTier, Entry, Listed, Purpose, Supply};
use thermocline_storage::vfs::Background;
use thermocline_storage::{Codec, Error as StorageError, Ident, Item, Place, Tier, Version, codec};

/// Bytes of one write to a tier: small enough that it fits beside what is being reclaimed.
pub(super) fn batch_bytes(tier: &Arc<dyn DiskTier>) -> u64 {
    tier.usage().limit.map_or(u64::MAX, |limit| (limit / 16).max(1))
}

/// What an entry of a pack takes beside the record, about: what is a little too much for a pack would leave the next one
/// nearly empty.
const PACK_HEADERS: u64 = 256;

/// One live record to be moved.
#[derive(Debug, Clone)]
pub(super) struct Mover {
    pub(super) entry: Arc<Entry>,
    pub(super) listed: Listed,
}

/// What became of the records of a move.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub(super) items: u64,
    pub(super) bytes: u64,
    /// Why some records could not be read, if there are any: they stay where they are, absent for now. Not an error
    /// of the move, for that would be one of the tier that the records go to.
    pub(super) unreachable: Option<StorageError>,
}

/// Where an item was when it was read to be moved.
struct Taken {
    key: Bytes,
    version: Version,
    expires_at: u64,
    at: Located,
}

/// Records on their way to a tier, read when they are needed.
struct Moving<'a> {
    engine: &'a Engine,
    to: &'a Arc<dyn DiskTier>,
    chunk: &'a [Mover],
    /// Of each, what was found when it was read last.
    taken: RefCell<Vec<Option<Taken>>>,
    unreachable: RefCell<Option<StorageError>>,
    /// Whose rate counts, beside that of all.
    from: Option<Tier>,
    urgent: bool,
    /// So many of them were paced: one that is read again is not held up again.
    paced: Cell<usize>,
    /// How long they were held up.
    waited: Cell<Duration>,
}

impl Moving<'_> {
    /// Waits until the rates allow those up to `end`, if they go into a pack, which is read a window at a time. Before
    /// other batches, which are short, it was waited for the whole.
    fn pace_up_to(&self, end: usize) {
        let new = self.paced.get()..end;
        if self.to.tier() == Tier::Cold && !new.is_empty() {
            let bytes = new.map(|n| self.bytes(n)).sum();
            let begun = Instant::now();
            self.engine.pace(self.from, bytes, self.urgent);
            self.waited.set(self.waited.get() + begun.elapsed());
            self.paced.set(end);
        }
    }
}

impl Supply for Moving<'_> {
    fn len(&self) -> usize {
        self.chunk.len()
    }

    fn bytes(&self, n: usize) -> u64 {
        self.chunk.get(n).map_or(0, |m| u64::from(m.listed.bytes))
    }

    fn least(&self, range: Range<usize>) -> u64 {
        // What comes from an archive is as small as it gets.
        let packed = |m: &&Mover| m.entry.tier == Tier::Cold;
        self.chunk
            .get(range)
            .unwrap_or_default()
            .iter()
            .filter(packed)
            .map(|m| u64::from(m.listed.bytes))
            .sum()
    }

    fn load(&self, range: Range<usize>) -> Vec<Option<Item>> {
        self.pace_up_to(range.end);
        // What is in the pack by then is durable soon; the rest stays where it is.
        let leave = self.to.tier() == Tier::Cold && !self.urgent && self.engine.is_stopping();
        let load = |n: usize| {
            let m = self.chunk.get(n).filter(|_| !leave)?;
            let (taken, item) = match self.engine.fetch(m) {
                Ok(Some((item, at))) => {
                    let key = item.key.clone();
                    let taken = Taken { key, version: item.version, expires_at: item.expires_at, at };
                    (Some(taken), Some(self.engine.encoded_for(self.to, m.entry.tier, item)))
                }
                Ok(None) => (None, None),
                Err(e) => {
                    self.unreachable.borrow_mut().get_or_insert(e);
                    (None, None)
                }
            };
            if let Some(slot) = self.taken.borrow_mut().get_mut(n) {
                *slot = taken;
            }
            item
        };
        range.map(load).collect()
    }

    fn waited(&self) -> Duration {
        self.waited.get()
    }
}

impl Engine {
    /// An item from a tier that does not compress, encoded for one that does. Otherwise items move as they are: what
    /// could not be compressed once is not tried again, and nothing is decompressed. (The archive does its own.)
    fn encoded_for(&self, to: &Arc<dyn DiskTier>, from: Tier, item: Item) -> Item {
        let compressed = self.settings.compress.get(from as usize).copied().unwrap_or(false);
        match self.compression(to) {
            Some(policy) if !compressed && item.codec == Codec::None && to.tier() != Tier::Cold => {
                let (codec, payload) =
                    codec::encode_counted(&policy, item.content_type, &item.payload, &self.meters.effort);
                Item { codec, payload, ..item }
            }
            _ => item,
        }
    }

    /// Moves records to a tier, in batches. Damaged and expired ones die on the way; those that cannot be reached stay.
    /// Stops, with an error, at the first batch that the tier does not take.
    pub(super) fn relocate(
        &self,
        movers: &[Mover],
        to: &Arc<dyn DiskTier>,
        purpose: Purpose,
        urgent: bool,
    ) -> Result<Moved, StorageError> {
        // Whoever asked for it: no read waits for what it reads.
        let _background = Background::begin();
        let Some(from) = movers.first().map(|m| m.entry.tier) else { return Ok(Moved::default()) };
        let (most_items, most_bytes, headers) = match to.tier() {
            // A pack is one file, which nobody can read before it ends, so one batch fills it; a step of that is a window.
            Tier::Cold => (usize::MAX, self.full_size(Tier::Cold), PACK_HEADERS),
            _ => (self.settings.batch_items.max(1), batch_bytes(to).min(self.settings.move_bytes), 0),
        };
        let mut moved = Moved::default();
        let mut rest = movers;
        while !rest.is_empty() {
            let mut bytes = 0;
            let count = rest
                .iter()
                .take(most_items)
                .take_while(|m| {
                    let first = bytes == 0;
                    bytes += u64::from(m.listed.bytes) + headers;
                    first || bytes <= most_bytes
                })
                .count()
                .max(1);
            let (chunk, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            rest = later;
            // What rises is bounded by its credit, and not held up by what sinks.
            let from = Some(from).filter(|_| purpose != Purpose::Hot);
            if to.tier() != Tier::Cold {
                let bytes = chunk.iter().map(|m| u64::from(m.listed.bytes)).sum();
                self.pace(from, bytes, urgent);
            }
            let done = self.move_chunk(chunk, from, to, purpose, urgent)?;
            moved.items += done.items;
            moved.bytes += done.bytes;
            moved.unreachable = moved.unreachable.or(done.unreachable);
            if self.is_stopping() && !urgent {
                break;
            }
        }
        Ok(moved)
    }

    fn move_chunk(
        &self,
        chunk: &[Mover],
        from: Option<Tier>,
        to: &Arc<dyn DiskTier>,
        purpose: Purpose,
        urgent: bool,
    ) -> Result<Moved, StorageError> {
        let patience = (Instant::now() + self.settings.write_stall, urgent);
        let taken = RefCell::new(chunk.iter().map(|_| None).collect());
        let unreachable = RefCell::default();
        let (paced, waited) = (Cell::default(), Cell::default());
        let moving = Moving { engine: self, to, chunk, taken, unreachable, from, urgent, paced, waited };
        let (written, _batch) = match self.append(to, &moving, purpose, patience) {
            // One item that does not decode keeps a pack from being written: it is damaged, and dies alone.
            Err(StorageError::Dependency { .. }) => {
                self.condemn_undecodable(chunk);
                self.append(to, &moving, purpose, patience)?
            }
            done => done?,
        };
        let mut moved = Moved { unreachable: moving.unreachable.take(), ..Moved::default() };
        for ((m, w), taken) in chunk.iter().zip(written).zip(moving.taken.into_inner()) {
            let (Some(w), Some(taken)) = (w, taken) else { continue };
            let ident = m.listed.ident;
            let swapped = self.catalog.lock(ident).swap(
                ident,
                taken.at.place,
                w.place,
                taken.version,
                taken.expires_at,
            );
            if swapped {
                moved.items += 1;
                moved.bytes += u64::from(w.bytes);
                self.tell_move(&taken.key, taken.at.entry.tier, to.tier());
            }
        }
        Counters::add(&self.counters.moved_bytes, moved.bytes);
        Ok(moved)
    }

    /// What is read but does not decode is dead.
    fn condemn_undecodable(&self, chunk: &[Mover]) {
        for m in chunk {
            let Ok(Some((item, at))) = self.fetch(m) else { continue };
            if let Err(why) = codec::decode(item.codec, &item.payload, item.original_len) {
                self.condemn(item.ident, at.place, &at.entry, why, Some(item.key));
            }
        }
    }

    fn tell_move(&self, key: &Bytes, from: Tier, to: Tier) {
        let key = Some(key.clone());
        if to > from {
            Counters::bump(&self.counters.tier(to).demoted);
            self.events.emit(|| Event::Demoted { key, from, to });
        } else if to < from {
            Counters::bump(&self.counters.tier(to).promoted);
            self.events.emit(|| Event::Promoted { key, from, to });
        }
    }

    /// Reads a record that is to be moved, with the expiry in force folded in; `None` if it is not to be moved any
    /// more. An error if it cannot be reached: the container stays as it is.
    pub(super) fn fetch(&self, m: &Mover) -> Result<Option<(Item, Located)>, StorageError> {
        let ident = m.listed.ident;
        let Some(place) = Place::new(m.entry.no, m.listed.position) else { return Ok(None) };
        let Some(at) = self.catalog.lock(ident).durable(ident).filter(|at| at.place == place) else {
            return Ok(None);
        };
        match m.entry.container.read(place.position()) {
            Ok(mut item) => {
                if item.ident != ident {
                    self.condemn(ident, place, &m.entry, "the record is of another identity", None);
                    return Ok(None);
                }
                item.expires_at = at.expires_at.unwrap_or(item.expires_at);
                if expired(item.expires_at, self.now()) {
                    self.expire_at(ident, &at, Some(item.key));
                    return Ok(None);
                }
                Ok(Some((item, at)))
            }
            Err(e) if e.is_corrupt() => {
                self.condemn(ident, place, &m.entry, &e.to_string(), None);
                Ok(None)
            }
            Err(StorageError::Gone(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Drops records for good, each with an event, which is told before anybody can find the item gone.
    pub(super) fn evict(&self, movers: &[Mover], reason: EvictReason) -> u64 {
        let mut count = 0;
        for m in movers {
            let Some(place) = Place::new(m.entry.no, m.listed.position) else { continue };
            let key = m.entry.container.head(place.position()).ok().map(|h| h.key);
            let mut guard = self.catalog.lock(m.listed.ident);
            if !guard.kill(m.listed.ident, place) {
                continue;
            }
            if matches!(guard.find(m.listed.ident), Found::Absent) {
                self.memory.remove(m.listed.ident);
            }
            let tier = m.entry.tier;
            self.events.emit(|| Event::Evicted { key, tier, reason });
            drop(guard);
            count += 1;
            Counters::bump(&self.counters.evicted);
            Counters::bump(&self.counters.tier(tier).evicted);
        }
        count
    }

    /// Moves one key's record to a tier, if it is not there; says whether it moved.
    pub(crate) fn move_key(&self, ident: Ident, key: &[u8], to: Tier) -> Result<bool> {
        let tier = self.tier(to).ok_or(crate::Error::NoSuchTier(to))?;
        for _ in 0..16 {
            let Some(at) = self.on_disk(ident, key)? else { return Ok(false) };
            if at.entry.tier == to {
                return Ok(false);
            }
            let listed = Listed {
                position: at.place.position(),
                ident,
                version: thermocline_storage::Version(0),
                expires_at: 0,
                bytes: 0,
            };
            let mover = Mover { entry: at.entry.clone(), listed };
            let moved = self.relocate(&[mover], tier, Purpose::Write, true)?;
            if let Some(e) = moved.unreachable {
                return Err(e.into());
            }
            if moved.items > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where a live key's record stands on disk, after writing it there if it was dirty.
    fn on_disk(&self, ident: Ident, key: &[u8]) -> Result<Option<Located>> {
        loop {
            match self.look_up(ident, key)? {
                (Found::At(at), Some(_)) => return Ok(Some(at)),
                (Found::Dirty(_), Some(_)) => self.flush_all()?,
                _ => return Ok(None),
            }
        }
    }

    /// Moves a key down to a tier, out of memory included; says whether anything changed.
    pub(crate) fn demote(&self, key: &[u8], to: Tier) -> Result<bool> {
        let ident = self.ident(key)?;
        let _open = self.using()?;
        if to == Tier::Memory || self.known(ident, key)?.is_none() {
            return Ok(false);
        }
        let target = self.tier(to).ok_or(crate::Error::NoSuchTier(to))?.tier();
        let mut changed = false;
        if let Some(at) = self.on_disk(ident, key)?
            && at.entry.tier < target
        {
            changed = self.move_key(ident, key, target)?;
        }
        // A value put in the meantime is dirty and stays.
        let guard = self.catalog.lock(ident);
        if matches!(guard.find(ident), Found::At(_)) {
            changed |= self.memory.remove(ident).is_some();
        }
        Ok(changed)
    }

    /// Moves a key up to a tier; says whether anything changed.
    pub(crate) fn promote(&self, key: &[u8], to: Tier) -> Result<bool> {
        let ident = self.ident(key)?;
        let _open = self.using()?;
        if to == Tier::Memory {
            let found = self.catalog.find(ident);
            if self.memory.peek(ident, key, self.now()).is_some() {
                return Ok(false);
            }
            let Found::At(at) = found else { return Ok(false) };
            return match self.read_for(ident, key, &at)? {
                Some(got) => {
                    let entered = self.install(ident, key, &got, &at, true);
                    if entered {
                        Counters::bump(&self.counters.tier(Tier::Memory).promoted);
                        let (key, from) = (Some(bytes::Bytes::copy_from_slice(key)), at.entry.tier);
                        self.events.emit(|| Event::Promoted { key, from, to });
                    }
                    Ok(entered)
                }
                None => Ok(false),
            };
        }
        let target = self.tier(to).ok_or(crate::Error::NoSuchTier(to))?.tier();
        match self.on_disk(ident, key)? {
            Some(at) if at.entry.tier > target => self.move_key(ident, key, target),
            _ => Ok(false),
        }
    }
}
