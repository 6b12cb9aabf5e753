//! The foreground half of writing: put, remove, expiry.
//!
//! A version is taken, the write buffer and memory are changed, and the flights of the key are voided, all under
//! the lock of the key's shard: memory, catalog and log never disagree about which of two writes came last.
//!
//! Invariants:
//! - a put or a removal that fails is withdrawn before its error returns, or was never seen. (A new expiry is not
//!   taken back: with `Always`, an error says that it may not outlive the process.)
//! - with `Persistence::Always` a put or a removal is *hidden* until it is durable, and later writes of the key wait;
//! - no lock of a shard is held across a write to a disk: what has to wait, waits before (the gate) or after it.
//!
//! What a crash leaves: of a put, what the table of `commit` says (§8 of the design), for a large one too, whose
//! caller takes the same steps; of a removal or an expiry, its frame in the journal or not, so the key as it was or as
//! it is to be.

mod large;

use self::large::Large;
use super::Engine;
use super::read::{Known, expired};
use crate::config::Persistence;
use crate::error::{Error, Result};
use crate::metrics::Latencies;
use crate::stats::Counters;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thermocline_storage::catalog::{Found, Guard, NewValue, Outcome};
use thermocline_storage::memory::{Evicted, NewEntry, Reason};
use thermocline_storage::pair::Pair;
use thermocline_storage::{ContentType, Error as StorageError, Ident, Tier, Version, codec, record};

/// What is older than this and not durable, though it is to be soon, makes writers wait.
const OLDEST_DIRTY_MS: u64 = 2_000;
/// Frames waiting for the journal that make writers wait: 32 MiB of them.
const MAX_QUEUED_FRAMES: usize = 1 << 20;

/// How often it is looked whether a value that its caller writes is there.
const PUT_POLL: Duration = Duration::from_millis(2);

/// What is put, with everything decided.
#[derive(Debug, Clone)]
pub(crate) struct What {
    pub(crate) value: Bytes,
    pub(crate) content_type: ContentType,
    pub(crate) expires_at: u64,
}

/// How a conditional put ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// It was put, with this version.
    Done(Version),
    /// The condition did not hold.
    Refused,
}

/// Whose an item was that a removal took away.
enum Whose {
    /// The key's that was asked for.
    Its,
    /// That of another key with the same identity, in this tier.
    Other(Bytes, Tier),
    /// There was none, or it had expired.
    Nobodys,
}

/// Decides, under the lock of the key's shard, whether a put goes ahead.
pub(crate) type Condition<'a> = &'a mut dyn FnMut(&Guard<'_>) -> bool;

impl Engine {
    /// When an item put now expires, in milliseconds (0: never).
    pub(crate) fn expiry(&self, ttl: Option<Duration>) -> u64 {
        let ms =
            ttl.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)).or(self.settings.default_ttl_ms);
        // An expiry of 0 would mean never: the first millisecond of 1970 is as dead as can be.
        ms.map_or(0, |ms| self.now().saturating_add(ms).max(1))
    }

    /// Checks a value's size, and finds its type if that is asked for.
    pub(crate) fn what(&self, value: Bytes, content_type: ContentType, expires_at: u64) -> Result<What> {
        let size = value.len() as u64;
        if size > self.settings.max_value {
            return Err(Error::ValueTooLarge { size, limit: self.settings.max_value });
        }
        let content_type = match content_type {
            ContentType::Auto => codec::detect(&value),
            given => given,
        };
        Ok(What { value, content_type, expires_at })
    }

    /// Puts a value if `condition` holds.
    pub(crate) fn put(&self, key: &[u8], what: What, condition: Condition<'_>) -> Result<Put> {
        let ident = self.ident(key)?;
        let _open = self.using()?;
        self.fits(key, &what)?;
        let bytes = what.value.len() as u64;
        let start = Latencies::one_in_many(&self.counters.puts);
        // Larger ones are written by their callers, past the write buffer.
        let large = bytes > self.settings.write_buffer / 4;
        if self.has_disk() {
            self.gate(if large { 0 } else { bytes }, false)?;
        }
        // The one copy that memory and the write buffer share, made before any lock is taken.
        let pair = Pair::new(key, &what.value);
        let new = NewValue { pair, content_type: what.content_type, expires_at: what.expires_at };
        drop(what);
        let put = if !self.has_disk() {
            self.put_in_memory(ident, new, condition)?
        } else if large {
            self.put_large(ident, new, condition)?
        } else if self.settings.persistence == Persistence::Always {
            self.put_always(ident, new, condition)?
        } else {
            self.put_dirty(ident, new, condition)?
        };
        if matches!(put, Put::Done(_)) {
            Counters::bump(&self.counters.puts);
            Counters::add(&self.counters.put_bytes, bytes);
            start.inspect(|start| self.latencies.put.since(*start));
        }
        Ok(put)
    }

    /// Whether some tier can ever hold the record.
    fn fits(&self, key: &[u8], what: &What) -> Result<()> {
        if !self.has_disk() {
            return Ok(());
        }
        let size = record::size(key.len(), what.value.len());
        let limit = self.tiers.iter().map(|t| t.max_record()).max().unwrap_or(0);
        if size > limit {
            return Err(Error::ValueTooLarge { size: what.value.len() as u64, limit });
        }
        Ok(())
    }

    fn put_in_memory(&self, ident: Ident, new: NewValue, condition: Condition<'_>) -> Result<Put> {
        let mut out = Vec::new();
        let size = new.pair.value_len() as u64;
        let expires_at = new.expires_at;
        if !self.memory.can_hold(new.pair.len(), 0) {
            return Err(Error::ValueTooLarge { size, limit: self.memory.stats().max_bytes });
        }
        let guard = self.catalog.lock(ident);
        if !condition(&guard) {
            return Ok(Put::Refused);
        }
        let version = guard.version();
        let entered = self.enter(ident, new, version, false, true, &mut out);
        self.flights.void(ident);
        drop(guard);
        self.let_go(out);
        // What is dead already does not enter, and is as good as put.
        if !entered && !expired(expires_at, self.now()) {
            return Err(self.busy("memory is taken up by values on their way into it"));
        }
        Ok(Put::Done(version))
    }

    fn put_dirty(&self, ident: Ident, new: NewValue, condition: Condition<'_>) -> Result<Put> {
        let queue = self.settings.persistence != Persistence::OnEviction;
        let mut out = Vec::new();
        let mut guard = self.catalog.lock(ident);
        if !condition(&guard) {
            return Ok(Put::Refused);
        }
        let other = self.other_key(&guard.find(ident), new.pair.key());
        let v = guard.put(ident, new.clone(), queue);
        let entered = self.enter(ident, new, v.version, true, false, &mut out);
        self.flights.void(ident);
        drop(guard);
        let other = untold(other, &out);
        if !entered && !queue {
            // Memory does not want it: it is written as if it had been evicted.
            self.catalog.enqueue(ident);
        }
        let version = v.version;
        drop(v);
        self.let_go(out);
        if let Some(key) = other {
            self.tell_displaced(key, Tier::Memory);
        }
        if self.catalog.buffer.bytes() >= self.dials.write_buffer() / 2 {
            self.signals[0].wake_now();
        } else {
            self.signals[0].wake_soon();
        }
        Ok(Put::Done(version))
    }

    fn put_always(&self, ident: Ident, new: NewValue, condition: Condition<'_>) -> Result<Put> {
        let (version, outcome) = {
            let mut guard = self.lock_settled(ident)?;
            if !condition(&guard) {
                return Ok(Put::Refused);
            }
            let (v, outcome) = guard.put_hidden(ident, new);
            self.flights.void(ident);
            (v.version, outcome)
        };
        self.signals[0].wake_now();
        if !self.has_threads() {
            self.commit_step()?;
        }
        match outcome.wait(self.settings.write_stall) {
            Some(done) => self.put_ended(version, &outcome, done),
            None => {
                let mut guard = self.catalog.lock(ident);
                if guard.pending_of(ident, version).is_none() {
                    // It ended just now.
                    drop(guard);
                    return match outcome.wait(Duration::ZERO) {
                        Some(done) => self.put_ended(version, &outcome, done),
                        None => Err(self.busy("the disk did not take the write in time")),
                    };
                }
                // It may still land: withdraw it, so that the error is the whole truth, and let those go on who
                // wait for it.
                guard.withdraw(ident, version);
                outcome.set(Err(Arc::new(StorageError::Busy("the disk did not take the write in time"))));
                drop(guard);
                Err(self.busy("the disk did not take the write in time"))
            }
        }
    }

    /// What the caller of a hidden put is told. If a clear took it away, then once that is durable: else what was there
    /// before both could come back after a crash.
    fn put_ended(
        &self,
        version: Version,
        outcome: &Outcome,
        done: Result<(), Arc<StorageError>>,
    ) -> Result<Put> {
        done?;
        if outcome.is_cleared() {
            self.catalog.settle()?;
        }
        Ok(Put::Done(version))
    }

    /// A value over a quarter of the write buffer is written by its caller.
    fn put_large(&self, ident: Ident, new: NewValue, condition: Condition<'_>) -> Result<Put> {
        let _permit = self.permit(2 * new.pair.value_len() as u64)?;
        // A flush does not come between: what this put replaces may be what it has to write.
        let no_flush = self.writing_large.try_read_for(self.settings.write_stall);
        let _no_flush = no_flush.ok_or_else(|| self.busy("a flush is under way"))?;
        let always = self.settings.persistence == Persistence::Always;
        let mut out = Vec::new();
        let (v, outcome, other) = {
            let mut guard = self.lock_written(ident)?;
            if !condition(&guard) {
                return Ok(Put::Refused);
            }
            let beneath = guard.durable(ident);
            let other = self.other_key(&guard.find(ident), new.pair.key());
            let v = guard.put_in_flight(ident, new.clone());
            let outcome = always.then(|| guard.hide(ident, beneath, v.version));
            if !always {
                self.enter(ident, new, v.version, false, false, &mut out);
            }
            self.flights.void(ident);
            (v, outcome, untold(other, &out))
        };
        let panicked = Err(Arc::new(StorageError::Busy("the thread that was writing it panicked")));
        let mut large = Large { engine: self, ident, v: &v, outcome, result: panicked };
        self.let_go(out);
        let result = self.write_large(ident, &v, &mut large.result);
        large.result = result.clone();
        drop(large);
        // If it failed, what was before it is back.
        if let Some(key) = other.filter(|_| result.is_ok()) {
            self.tell_displaced(key, Tier::Memory);
        }
        result.map(|()| Put::Done(v.version)).map_err(|e| {
            if e.is_no_space() {
                let cause = Some(Arc::new(Error::from(e)));
                return Error::Busy { what: "no tier has room for the value".into(), cause };
            }
            Error::from(e)
        })
    }

    /// The key of what waits to be written, if it is alive and another than the one that is to take its identity.
    fn other_key(&self, found: &Found, key: &[u8]) -> Option<Bytes> {
        match found {
            Found::Dirty(v) if v.pair.key() != key && !expired(v.expires_at, self.now()) => {
                Some(Bytes::copy_from_slice(v.pair.key()))
            }
            _ => None,
        }
    }

    /// Enters a value into memory under the shard's lock.
    pub(super) fn enter(
        &self,
        ident: Ident,
        new: NewValue,
        version: Version,
        dirty: bool,
        force: bool,
        out: &mut Vec<Evicted>,
    ) -> bool {
        let entry = NewEntry {
            ident,
            pair: new.pair,
            version,
            content_type: new.content_type,
            expires_at: new.expires_at,
            dirty,
            prefetched: false,
            force,
        };
        self.memory.insert(entry, self.now(), out)
    }

    /// Locks a shard once no hidden write of the identity is under way.
    pub(super) fn lock_settled(&self, ident: Ident) -> Result<Guard<'_>> {
        let deadline = Instant::now() + self.settings.write_stall;
        loop {
            let guard = self.catalog.lock(ident);
            let Some(outcome) = guard.pending(ident) else { return Ok(guard) };
            drop(guard);
            let left = deadline.saturating_duration_since(Instant::now());
            if outcome.wait(left).is_none() && left.is_zero() {
                return Err(self.busy("an earlier write of the same key is still under way"));
            }
        }
    }

    /// Locks a shard once what the identity has in the queue is written. A put that its caller writes takes that from
    /// the queue, and may wait long for room: who was told that it is put would lose it by a kill meanwhile, however
    /// long ago that was.
    fn lock_written(&self, ident: Ident) -> Result<Guard<'_>> {
        let deadline = Instant::now() + self.settings.write_stall;
        loop {
            let guard = self.lock_settled(ident)?;
            if !guard.is_queued(ident) {
                return Ok(guard);
            }
            drop(guard);
            if self.commit_step()?.failed > 0 || Instant::now() >= deadline {
                return Err(self.busy("the value before it is not written yet"));
            }
        }
    }

    /// Waits until there is room in the write buffer for so many bytes and the disk keeps up. `journaled`: a removal or a
    /// new expiry, whose frame is to be durable within a second in `OnEviction`, too.
    pub(super) fn gate(&self, bytes: u64, journaled: bool) -> Result<()> {
        let room = || self.room(bytes, journaled);
        if room() {
            return Ok(());
        }
        Counters::bump(&self.counters.stalls);
        let deadline = Instant::now() + self.settings.write_stall;
        self.signals[0].wake_now();
        if !self.has_threads() {
            while !room() {
                self.commit_step()?;
                if Instant::now() >= deadline {
                    return Err(self.busy("the write buffer is full"));
                }
            }
            return Ok(());
        }
        if self.catalog.buffer.wait(deadline, || room() || self.is_closed()) {
            return Ok(());
        }
        Counters::bump(&self.counters.busy);
        Err(self.busy("the write buffer is full, or what is to be durable is older than two seconds"))
    }

    fn room(&self, bytes: u64, journaled: bool) -> bool {
        let buffer = &self.catalog.buffer;
        let (used, dial, most) = (buffer.bytes(), self.dials.write_buffer(), self.settings.write_buffer);
        // A buffer that the optimizer made small is full once it is reached, not before: else a value of about its size
        // would have to wait until it is empty, which it never is while small ones come.
        let after = used.saturating_add(bytes);
        if used > 0 && after > dial && (used >= dial || after > most) {
            return false;
        }
        let (queued, frames) = self.catalog.waiting_frames();
        if queued > MAX_QUEUED_FRAMES {
            return false;
        }
        if !self.has_threads() {
            return true;
        }
        let oldest = match self.settings.persistence {
            Persistence::EverySecond => buffer.oldest_ms().into_iter().chain(frames).min(),
            Persistence::OnEviction if journaled => frames,
            // Nobody promised when; or whoever writes waits for it.
            Persistence::OnEviction | Persistence::Always => None,
        };
        oldest.is_none_or(|at| at.saturating_add(OLDEST_DIRTY_MS) > self.now())
    }

    /// `Busy`, with what keeps writes from landing.
    pub(super) fn busy(&self, what: &str) -> Error {
        Error::Busy { what: what.into(), cause: self.last_failure.lock().clone() }
    }

    /// Removes a key; says whether it was live.
    pub(crate) fn remove(&self, key: &[u8]) -> Result<bool> {
        let ident = self.ident(key)?;
        let _open = self.using()?;
        let start = Latencies::one_in_many(&self.counters.removes);
        self.gate(0, true)?;
        let live = self.remove_if(ident, key, |_| true)?.unwrap_or(false);
        if live {
            start.inspect(|start| self.latencies.remove.since(*start));
        }
        Ok(live)
    }

    /// Removes what the identity has if `condition` holds under the lock; `None` if it did not.
    pub(super) fn remove_if(
        &self,
        ident: Ident,
        key: &[u8],
        condition: impl Fn(&Found) -> bool,
    ) -> Result<Option<bool>> {
        let always = self.settings.persistence == Persistence::Always && self.has_disk();
        let mut guard = self.lock_settled(ident)?;
        if !condition(&guard.find(ident)) {
            return Ok(None);
        }
        let in_memory = self.memory.peek(ident, key, self.now()).is_some();
        let beneath = guard.durable(ident);
        let taken = guard.remove(ident);
        let hidden = always && taken.frame.is_some();
        let resident = self.memory.contains(ident);
        let gone = if hidden {
            guard.hide(ident, beneath, taken.version);
            None
        } else {
            self.memory.remove(ident)
        };
        self.flights.void(ident);
        drop(guard);
        self.signals[0].wake_soon();
        // The answer is read from the record; the effect does not depend on it.
        let whose = if in_memory { Whose::Its } else { self.whose(key, &taken.found, gone) };
        if hidden {
            self.settle_removal(ident, taken.version)?;
        } else if always {
            // There was nothing. But a put that failed may have left its frame, and what takes it back may be to come.
            self.catalog.settle()?;
        }
        let live = matches!(whose, Whose::Its);
        match whose {
            Whose::Its => Counters::bump(&self.counters.removes),
            Whose::Other(key, tier) => {
                self.tell_displaced(key, if resident { Tier::Memory } else { tier });
            }
            Whose::Nobodys => {}
        }
        Ok(Some(live))
    }

    /// Whose the item was that a removal of `key` took away: `gone` from memory, `found` in the catalog.
    fn whose(&self, key: &[u8], found: &Found, gone: Option<Evicted>) -> Whose {
        let now = self.now();
        let of = |its: &[u8], expires_at: u64, tier: Tier| match its == key {
            _ if expired(expires_at, now) => Whose::Nobodys,
            true => Whose::Its,
            false => Whose::Other(Bytes::copy_from_slice(its), tier),
        };
        match (found, gone) {
            // Memory says so without a read.
            (_, Some(gone)) if gone.key != key => of(&gone.key, gone.expires_at, Tier::Memory),
            (Found::At(at), _) => match at.entry.container.head(at.place.position()) {
                Ok(h) => of(&h.key, at.expires_at.unwrap_or(h.expires_at), at.entry.tier),
                Err(_) => Whose::Its,
            },
            (Found::Dirty(v), _) => of(v.pair.key(), v.expires_at, Tier::Memory),
            (Found::Absent, _) => Whose::Nobodys,
        }
    }

    fn settle_removal(&self, ident: Ident, version: Version) -> Result<()> {
        let synced = self.catalog.sync().map_err(Arc::new);
        let mut guard = self.catalog.lock(ident);
        let outcome = guard.pending_of(ident, version);
        match &synced {
            // Otherwise the key was cleared, and what memory has came later.
            Ok(()) if guard.reveal(ident, version) => {
                self.memory.remove(ident);
            }
            Ok(()) => {}
            Err(_) => guard.withdraw(ident, version),
        }
        if let Some(outcome) = outcome {
            outcome.set(synced.clone());
        }
        drop(guard);
        synced.map_err(Error::from)
    }

    /// Changes when a live key expires (0: never); says whether it was live.
    pub(crate) fn set_expiry(&self, key: &[u8], expires_at: u64) -> Result<bool> {
        let ident = self.ident(key)?;
        let _open = self.using()?;
        if !self.has_disk() {
            let guard = self.catalog.lock(ident);
            let Some(hit) = self.memory.peek(ident, key, self.now()) else { return Ok(false) };
            let done = self.memory.set_expiry(ident, hit.version, expires_at);
            drop(guard);
            return Ok(done);
        }
        self.gate(0, true)?;
        let deadline = Instant::now() + self.settings.write_stall;
        loop {
            let (found, Some(_)) = self.look_up(ident, key)? else { return Ok(false) };
            let mut guard = self.lock_settled(ident)?;
            if guard.is_being_put(ident) {
                // It may fail yet, and would live on in what is put here.
                drop(guard);
                if Instant::now() >= deadline {
                    return Err(self.busy("the value is still being written"));
                }
                std::thread::sleep(PUT_POLL);
                continue;
            }
            if !same(&guard.find(ident), &found) {
                continue;
            }
            let in_memory = self.memory.peek(ident, key, self.now());
            if guard.set_expiry(ident, expires_at).is_none() {
                continue;
            }
            let mut out = Vec::new();
            if let Some(hit) = in_memory {
                self.memory.set_expiry(ident, hit.version, expires_at);
                // A value in the write buffer was put again, under a new version.
                if let Found::Dirty(v) = guard.find(ident) {
                    let new = NewValue { pair: v.pair.clone(), content_type: v.content_type, expires_at };
                    self.enter(ident, new, v.version, true, true, &mut out);
                }
            }
            drop(guard);
            self.let_go(out);
            break;
        }
        self.signals[0].wake_soon();
        if self.settings.persistence == Persistence::Always {
            self.catalog.sync()?;
        }
        Ok(true)
    }

    /// Puts if the key's state is still what `decide` said yes to.
    pub(crate) fn put_if(
        &self,
        key: &[u8],
        what: &What,
        decide: impl Fn(Option<Known>) -> bool,
    ) -> Result<Put> {
        let ident = self.ident(key)?;
        loop {
            if !self.has_disk() {
                let mut condition = |_: &Guard<'_>| {
                    let hit = self.memory.peek(ident, key, self.now());
                    decide(hit.as_ref().map(Known::from_memory))
                };
                return self.put(key, what.clone(), &mut condition);
            }
            let (found, known) = self.look_up(ident, key)?;
            if !decide(known) {
                return Ok(Put::Refused);
            }
            match self.put(key, what.clone(), &mut |g| same(&g.find(ident), &found))? {
                Put::Done(v) => return Ok(Put::Done(v)),
                Put::Refused => {} // it changed in between: look again
            }
        }
    }
}

/// The key that was displaced, unless memory held it too, and so tells of it.
fn untold(other: Option<Bytes>, out: &[Evicted]) -> Option<Bytes> {
    other.filter(|key| !out.iter().any(|e| e.reason == Reason::Displaced && e.key == *key))
}

/// Whether two lookups found the same thing.
pub(super) fn same(a: &Found, b: &Found) -> bool {
    match (a, b) {
        (Found::Absent, Found::Absent) => true,
        (Found::Dirty(a), Found::Dirty(b)) => a.version == b.version,
        (Found::At(a), Found::At(b)) => a.place == b.place && a.expires_at == b.expires_at,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
