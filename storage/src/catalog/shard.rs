//! One shard of the catalog and what can be done to it under its lock.
//!
//! Invariants:
//! - every change of the durable place (`index`) queues its frame in the same section;
//! - a version is taken under the lock of the key's shard;
//! - live counts of containers follow `index`, change by change; a count is lowered only after the frame that says
//!   why is queued;
//! - `wet` says at any time what a walk over `dirty` would: who asks for counts walks nothing under the lock.
//!
//! Nothing here touches a disk: a crash leaves what is queued as far as the journal got (the catalog's table).

use super::dirty::{Dirty, DirtyValue};
use super::frame::Frame;
use super::index::{IdentMap, Index};
use super::{Catalog, Outcome};
use crate::container::Entry;
use crate::ident::Ident;
use crate::pair::Pair;
use crate::types::{ContentType, Place, Version};
use parking_lot::RwLockWriteGuard;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The state of one shard.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) index: Index,
    pub(crate) dirty: IdentMap<Dirty>,
    pub(crate) wet: Wet,
    /// Writes that are not visible before they are durable (`Persistence::Always`).
    pub(crate) hidden: IdentMap<Hidden>,
    /// Expiries changed since the record was written; valid for the place in the index.
    pub(crate) expiries: IdentMap<u64>,
    /// The newest frame about this shard.
    pub(crate) last_frame: u64,
}

/// How many identities have a newest value that is in no frame yet.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wet {
    pub(crate) all: u64,
    /// Those of them with no record on disk.
    pub(crate) only: u64,
}

/// A write on its way to stable storage, and what readers see until it is there.
#[derive(Debug, Clone)]
pub(crate) struct Hidden {
    pub(crate) beneath: Option<Located>,
    /// The place in the index beneath, even if its container cannot be reached.
    pub(crate) was: Option<Place>,
    pub(crate) outcome: Arc<Outcome>,
    pub(crate) version: Version,
}

/// The live copy of an identity on disk, with its container held.
#[derive(Debug, Clone)]
pub struct Located {
    /// Where.
    pub place: Place,
    /// The container, so that the place stays what it is.
    pub entry: Arc<Entry>,
    /// The expiry in force, where it was changed after the record was written.
    pub expires_at: Option<u64>,
}

/// What the catalog knows of an identity.
#[derive(Debug, Clone)]
pub enum Found {
    /// Nothing.
    Absent,
    /// A value that is not on disk yet.
    Dirty(Arc<DirtyValue>),
    /// A record on disk.
    At(Located),
}

/// What a removal took away.
#[derive(Debug)]
pub struct Taken {
    /// What readers saw before.
    pub found: Found,
    /// The version of the removal.
    pub version: Version,
    /// The frame that records it, if anything was on disk.
    pub frame: Option<u64>,
}

/// What is to be put.
#[derive(Debug, Clone)]
pub struct NewValue {
    /// The full key and the value.
    pub pair: Pair,
    /// Never `Auto`.
    pub content_type: ContentType,
    /// Milliseconds since the epoch; 0 means never.
    pub expires_at: u64,
}

impl Shard {
    pub(crate) fn locate(&self, cat: &Catalog, ident: Ident) -> Option<Located> {
        let place = self.index.get(ident)?;
        let entry = cat.containers.get(place.container())?;
        Some(Located { place, entry, expires_at: self.expiries.get(&ident).copied() })
    }

    /// An identity that had no newest value has one now, or the other way round.
    fn wetted(&mut self, ident: Ident, wet: bool) {
        let only = u64::from(self.index.get(ident).is_none());
        let Wet { all, only: alone } = self.wet;
        self.wet = match wet {
            true => Wet { all: all + 1, only: alone + only },
            false => Wet { all: all.saturating_sub(1), only: alone.saturating_sub(only) },
        };
    }

    fn is_wet(&self, ident: Ident) -> bool {
        self.wet.all > 0 && self.dirty.get(&ident).is_some_and(|d| d.newest.is_some())
    }

    /// What readers see.
    pub(crate) fn find(&self, cat: &Catalog, ident: Ident) -> Found {
        if !self.hidden.is_empty()
            && let Some(h) = self.hidden.get(&ident)
        {
            return h.beneath.clone().map_or(Found::Absent, Found::At);
        }
        if let Some(value) = self.dirty.get(&ident).and_then(|d| d.newest.as_ref()) {
            return Found::Dirty(value.clone());
        }
        self.locate(cat, ident).map_or(Found::Absent, Found::At)
    }
}

/// A shard, locked for writing.
#[derive(Debug)]
pub struct Guard<'a> {
    pub(crate) shard: RwLockWriteGuard<'a, Shard>,
    pub(crate) cat: &'a Catalog,
}

impl Guard<'_> {
    /// What readers see of an identity.
    pub fn find(&self, ident: Ident) -> Found {
        self.shard.find(self.cat, ident)
    }

    /// The outcome that later writes of this identity have to wait for, if one is under way.
    pub fn pending(&self, ident: Ident) -> Option<Arc<Outcome>> {
        self.shard.hidden.get(&ident).map(|h| h.outcome.clone())
    }

    /// The outcome of this very write, if it is still hidden. Another write of the identity may be by now: its
    /// outcome is not for who wrote this one to tell.
    pub fn pending_of(&self, ident: Ident, version: Version) -> Option<Arc<Outcome>> {
        self.shard.hidden.get(&ident).filter(|h| h.version == version).map(|h| h.outcome.clone())
    }

    /// Takes a version without writing anything (a store without disks).
    pub fn version(&self) -> Version {
        self.cat.next_version()
    }

    /// Puts a dirty value, visible at once. `queue` says whether it is to be written soon; if not, it waits for
    /// [`Catalog::enqueue`].
    pub fn put(&mut self, ident: Ident, new: NewValue, queue: bool) -> Arc<DirtyValue> {
        let version = self.cat.next_version();
        let value = Arc::new(self.cat.dirty_value(new, version));
        let now = self.cat.now();
        let dirty = self.shard.dirty.entry(ident).or_default();
        let was_wet = dirty.newest.replace(value.clone()).is_some();
        if queue || dirty.queued {
            value.charge();
            if !dirty.queued {
                dirty.queued = true;
                self.cat.buffer.push(ident, now);
            }
        }
        if !was_wet {
            self.shard.wetted(ident, true);
        }
        value
    }

    /// Puts a value that stays hidden until [`reveal`](Self::reveal) or [`withdraw`](Self::withdraw). The caller has checked
    /// [`pending`](Self::pending).
    pub fn put_hidden(&mut self, ident: Ident, new: NewValue) -> (Arc<DirtyValue>, Arc<Outcome>) {
        let beneath = self.shard.locate(self.cat, ident);
        let was = self.shard.index.get(ident);
        let value = self.put(ident, new, true);
        let outcome = Arc::new(Outcome::default());
        let hidden = Hidden { beneath, was, outcome: outcome.clone(), version: value.version };
        self.shard.hidden.insert(ident, hidden);
        (value, outcome)
    }

    /// Puts a value that its caller writes itself: visible at once, in flight from the start, until
    /// [`commit`](Self::commit) or [`abort`](Self::abort).
    pub fn put_in_flight(&mut self, ident: Ident, new: NewValue) -> Arc<DirtyValue> {
        let version = self.cat.next_version();
        let value = Arc::new(self.cat.dirty_value(new, version));
        value.by_caller.store(true, Ordering::Relaxed);
        let dirty = self.shard.dirty.entry(ident).or_default();
        let before = dirty.newest.replace(value.clone());
        let was_wet = before.is_some();
        *value.before.lock() = before;
        dirty.in_flight += 1;
        dirty.flying = version;
        if !was_wet {
            self.shard.wetted(ident, true);
        }
        value
    }

    /// Whether the newest value of an identity is being written by who put it, who may still be told that it failed.
    pub fn is_being_put(&self, ident: Ident) -> bool {
        let newest = self.shard.dirty.get(&ident).and_then(|d| d.newest.as_ref());
        newest.is_some_and(|v| v.by_caller.load(Ordering::Relaxed))
    }

    /// Hides a write of [`put_in_flight`](Self::put_in_flight) or a removal until it is settled.
    pub fn hide(&mut self, ident: Ident, beneath: Option<Located>, version: Version) -> Arc<Outcome> {
        let outcome = Arc::new(Outcome::default());
        // After a removal the index says nothing any more; what was beneath does.
        let was = beneath.as_ref().map(|b| b.place).or(self.shard.index.get(ident));
        self.shard.hidden.insert(ident, Hidden { beneath, was, outcome: outcome.clone(), version });
        outcome
    }

    /// Whether the newest value of an identity is still to be written by others than who put it: it stands in the
    /// queue, or a batch carries it.
    pub fn is_queued(&self, ident: Ident) -> bool {
        self.shard.dirty.get(&ident).is_some_and(|d| {
            let queued = |v: &Arc<DirtyValue>| d.queued && v.version != d.flying;
            d.newest.as_ref().is_some_and(|v| queued(v) || v.in_batch.load(Ordering::Relaxed))
        })
    }

    /// What is on disk beneath anything dirty.
    pub fn durable(&self, ident: Ident) -> Option<Located> {
        self.shard.locate(self.cat, ident)
    }

    /// Makes a hidden write visible, if it is still the one under way; says whether it was.
    pub fn reveal(&mut self, ident: Ident, version: Version) -> bool {
        match self.shard.hidden.get(&ident) {
            Some(h) if h.version == version => {
                self.shard.hidden.remove(&ident);
                true
            }
            _ => false,
        }
    }

    /// Withdraws a hidden write that failed: readers go on seeing what was beneath it.
    pub fn withdraw(&mut self, ident: Ident, version: Version) {
        let Some(h) = self.shard.hidden.get(&ident) else { return };
        if h.version != version {
            return;
        }
        let (beneath, was) = (h.beneath.clone(), h.was);
        self.shard.hidden.remove(&ident);
        if let Some(d) = self.shard.dirty.get_mut(&ident) {
            let dried = d.newest.take_if(|v| v.version == version).is_some();
            // A batch of it that still comes back is garbage; the next write has a higher version.
            d.last_frame = d.last_frame.max(version);
            if dried {
                self.shard.wetted(ident, false);
            }
        }
        if self.shard.index.get(ident) != was {
            let cat = self.cat;
            let restored = beneath.and_then(|b| {
                cat.unless_condemned(&b.entry, || {
                    // What the record says is not known here, and the reaper may have looked while nothing pointed
                    // there: it looks again, after a crash too.
                    self.point(ident, version, b.place, b.expires_at.unwrap_or(cat.now().max(1)));
                    if let Some(ms) = b.expires_at {
                        self.set_durable_expiry(ident, version, ms);
                    }
                })
            });
            if restored.is_none() {
                self.unpoint(ident, version);
            }
        }
        self.tidy(ident);
    }

    fn tidy(&mut self, ident: Ident) {
        if self.shard.dirty.get(&ident).is_some_and(|d| d.is_idle() && !d.queued) {
            self.shard.dirty.remove(&ident);
        }
    }

    fn frame(&mut self, frame: Frame) -> u64 {
        let n = self.cat.push(frame);
        self.shard.last_frame = n.max(self.shard.last_frame);
        n
    }

    /// Points an identity at a place and queues the frame.
    fn point(&mut self, ident: Ident, version: Version, place: Place, expires_at: u64) -> u64 {
        let old = self.shard.index.insert(ident, place);
        if old.is_none() && self.shard.is_wet(ident) {
            self.shard.wet.only = self.shard.wet.only.saturating_sub(1);
        }
        self.shard.expiries.remove(&ident);
        self.cat.containers.add_live(place, 1);
        if let Some(entry) = self.cat.containers.get(place.container()) {
            entry.note_expiry(expires_at);
        }
        let frame = self.frame(Frame::Put { ident, version, place, expires_at });
        // Only now: whoever sees a container empty finds the frame that emptied it queued, and syncs it.
        if let Some(old) = old {
            self.cat.containers.add_live(old, -1);
        }
        frame
    }

    /// Takes an identity out of the index and queues the frame, if it is there.
    fn unpoint(&mut self, ident: Ident, version: Version) -> Option<u64> {
        let old = self.shard.index.remove(ident)?;
        if self.shard.is_wet(ident) {
            self.shard.wet.only += 1;
        }
        self.shard.expiries.remove(&ident);
        let frame = self.frame(Frame::Dead { ident, version });
        // After the frame, as in `point`.
        self.cat.containers.add_live(old, -1);
        Some(frame)
    }

    /// A batch that carried this value is durable at `place`. It becomes the durable place even if a newer value
    /// waits; it is garbage if a later frame came first. Says which.
    pub fn commit(&mut self, ident: Ident, value: &DirtyValue, place: Place) -> bool {
        let Some(last_frame) = self.shard.dirty.get(&ident).map(|d| d.last_frame) else { return false };
        let current = value.version > last_frame;
        if current {
            // First: should it panic, the value is still one to be written.
            self.point(ident, value.version, place, value.expires_at);
        }
        if let Some(d) = self.shard.dirty.get_mut(&ident) {
            d.in_flight = d.in_flight.saturating_sub(1);
            value.before.lock().take();
            if current {
                d.last_frame = value.version;
                if d.newest.take_if(|n| n.version == value.version).is_some() {
                    self.shard.wetted(ident, false);
                }
            }
        }
        self.tidy(ident);
        current
    }

    /// A batch that carried this value failed: it goes back to the front of the queue, unless something newer
    /// replaced it. That has waited for as long then: after a crash both were gone.
    pub fn requeue(&mut self, ident: Ident, value: &DirtyValue, since: u64) {
        value.in_batch.store(false, Ordering::Relaxed);
        let Some(d) = self.shard.dirty.get_mut(&ident) else { return };
        d.in_flight = d.in_flight.saturating_sub(1);
        if d.flying == value.version {
            d.flying = Version(0);
        }
        if !d.queued && d.newest.as_ref().is_some_and(|n| n.version == value.version) {
            d.queued = true;
            self.cat.buffer.push_front(ident, since);
        }
        if d.queued && d.newest.is_some() {
            let before = d.since;
            let oldest = before.map_or(since, |b| b.min(since));
            d.since = Some(oldest);
            self.cat.buffer.age(ident, before, oldest);
        }
        self.tidy(ident);
    }

    /// A value that its caller wrote itself could not be written: the one before it is the newest again, if it is
    /// still to be written and has not failed meanwhile; then the one before that.
    pub fn abort(&mut self, ident: Ident, value: &DirtyValue) {
        let now = self.cat.now();
        value.failed.store(true, Ordering::Relaxed);
        if let Some(d) = self.shard.dirty.get_mut(&ident) {
            d.in_flight = d.in_flight.saturating_sub(1);
            if d.newest.as_ref().is_some_and(|n| n.version == value.version) {
                let mut before = value.before.lock().take();
                while let Some(failed) = before.take_if(|v| v.failed.load(Ordering::Relaxed)) {
                    before = failed.before.lock().take();
                }
                d.newest = before.filter(|p| p.version > d.last_frame);
                if let Some(p) = &d.newest {
                    // A batch has it, or its own caller: either commits it or gives it back.
                    let in_flight = p.in_batch.load(Ordering::Relaxed) || p.by_caller.load(Ordering::Relaxed);
                    d.flying = if in_flight { p.version } else { Version(0) };
                    if !d.queued && !in_flight {
                        p.charge();
                        d.queued = true;
                        self.cat.buffer.push(ident, now);
                    }
                } else {
                    self.shard.wetted(ident, false);
                }
            }
        }
        self.tidy(ident);
    }

    /// Removes an identity: from now on readers find nothing. Batches in flight come back as garbage.
    pub fn remove(&mut self, ident: Ident) -> Taken {
        let found = self.find(ident);
        let version = self.cat.next_version();
        if let Some(d) = self.shard.dirty.get_mut(&ident) {
            d.last_frame = version;
            if d.newest.take().is_some() {
                self.shard.wetted(ident, false);
            }
        }
        let frame = self.unpoint(ident, version);
        self.tidy(ident);
        Taken { found, version, frame }
    }

    /// Kills the record at a place, if the identity still points there: it expired, was evicted, is damaged.
    /// A hidden write no longer uncovers it either.
    pub fn kill(&mut self, ident: Ident, place: Place) -> bool {
        let mut beneath = false;
        if let Some(h) = self.shard.hidden.get_mut(&ident)
            && h.was == Some(place)
        {
            (h.beneath, h.was) = (None, None);
            beneath = true;
        }
        if self.shard.index.get(ident) != Some(place) {
            return beneath;
        }
        let version = self.cat.next_version();
        self.unpoint(ident, version).is_some()
    }

    /// The end of a move: the record at `old` was copied to `new`, durably, with expiry `folded`. Fails if a put,
    /// a removal or another move came first; then the copy is garbage.
    pub fn swap(&mut self, ident: Ident, old: Place, new: Place, version: Version, folded: u64) -> bool {
        if self.shard.index.get(ident) != Some(old) {
            return false;
        }
        let changed = self.shard.expiries.get(&ident).copied().filter(|ms| *ms != folded);
        self.point(ident, version, new, folded);
        if let Some(ms) = changed {
            self.set_durable_expiry(ident, version, ms);
        }
        if let Some(h) = self.shard.hidden.get_mut(&ident)
            && h.beneath.as_ref().is_some_and(|b| b.place == old)
            && let Some(entry) = self.cat.containers.get(new.container())
        {
            h.beneath = Some(Located { place: new, entry, expires_at: changed });
            h.was = Some(new);
        }
        true
    }

    /// Changes the expiry of what is visible (0: never). Gives the new version, or `None` if nothing is there.
    pub fn set_expiry(&mut self, ident: Ident, expires_at: u64) -> Option<Version> {
        if let Some(d) = self.shard.dirty.get(&ident)
            && let Some(n) = d.newest.clone()
        {
            let new = NewValue { pair: n.pair.clone(), content_type: n.content_type, expires_at };
            let queue = d.queued || d.in_flight > 0;
            return Some(self.put(ident, new, queue).version);
        }
        let place = self.shard.index.get(ident)?;
        let version = self.cat.next_version();
        self.set_durable_expiry(ident, version, expires_at);
        debug_assert_eq!(self.shard.index.get(ident), Some(place));
        Some(version)
    }

    fn set_durable_expiry(&mut self, ident: Ident, version: Version, expires_at: u64) {
        let Some(place) = self.shard.index.get(ident) else { return };
        self.shard.expiries.insert(ident, expires_at);
        if let Some(entry) = self.cat.containers.get(place.container()) {
            entry.note_expiry(expires_at);
        }
        self.frame(Frame::Expire { ident, version, place, expires_at });
    }

    /// Removes everything in the shard with one frame; gives the identities that were visible, and how many of them
    /// are known to have expired.
    pub(crate) fn clear(&mut self, shard_no: u64) -> (Vec<Ident>, u64) {
        let expired = self.known_expired(self.cat.now());
        let version = self.cat.next_version();
        let index = self.shard.index.take();
        let mut gone: Vec<Ident> = index.iter().map(|(ident, _)| ident).collect();
        for (ident, d) in &mut self.shard.dirty {
            if d.newest.take().is_some() && index.get(*ident).is_none() {
                gone.push(*ident);
            }
            d.last_frame = version;
        }
        self.shard.wet = Wet::default();
        self.shard.dirty.retain(|_, d| !d.is_idle() || d.queued);
        self.shard.expiries.clear();
        // What was visible beneath a hidden write is gone as well, and does not come back if the write fails.
        let hidden = &self.shard.hidden;
        gone.retain(|i| hidden.get(i).is_none_or(|h| h.beneath.is_some()));
        gone.extend(
            hidden.iter().filter(|(i, h)| h.beneath.is_some() && index.get(**i).is_none()).map(|(i, _)| *i),
        );
        if index.len() > 0 {
            self.frame(Frame::Clear { shard: shard_no, version });
        }
        // The writes themselves came before the clear and are gone with the rest. Only now: who is told syncs the frame.
        for (_, hidden) in self.shard.hidden.drain() {
            hidden.outcome.clear();
        }
        // After the frame, as in `point`.
        for (_, place) in index.iter() {
            self.cat.containers.add_live(place, -1);
        }
        gone.sort_unstable();
        gone.dedup();
        (gone, expired)
    }

    /// How many of the items that readers see have expired, as far as that is known without reading them.
    fn known_expired(&self, now: u64) -> u64 {
        let over = |ms: u64| ms != 0 && ms <= now;
        let newest = |d: &Dirty| d.newest.as_ref().map(|v| v.expires_at);
        let hidden = &self.shard.hidden;
        let beneath = hidden.values().filter_map(|h| h.beneath.as_ref()?.expires_at);
        let dirty = self.shard.dirty.iter().filter(|(i, _)| hidden.get(*i).is_none());
        let dirty = dirty.filter_map(|(_, d)| newest(d));
        let changed =
            self.shard.expiries.iter().filter(|(i, _)| {
                hidden.get(*i).is_none() && self.shard.dirty.get(*i).and_then(newest).is_none()
            });
        let all = beneath.chain(dirty).chain(changed.map(|(_, ms)| *ms));
        all.filter(|ms| over(*ms)).count() as u64
    }
}
