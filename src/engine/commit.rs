//! The write buffer's way to stable storage.
//!
//! One committer at a time takes the oldest dirty values, encodes them, appends them to the highest disk tier that
//! can hold them (one sync), commits their places under the shards' locks, and syncs the journal. What a crash
//! leaves after each step: nothing; garbage records; garbage records; the values.

use super::Engine;
use super::moves::batch_bytes;
use super::reclaim::Freed;
use crate::config::Persistence;
use crate::error::{Error, Result};
use crate::stats::Counters;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use thermocline_storage::catalog::{Batch, DirtyValue, Flying, NewValue, Outcome};
use thermocline_storage::codec::{self, Compression};
use thermocline_storage::container::{DiskTier, Purpose, Supply, Written};
use thermocline_storage::{Codec, ContentType, Error as StorageError, Ident, Item, Tier, record};

/// Most items and bytes of one batch.
const BATCH_ITEMS: usize = 65_536;
const BATCH_BYTES: u64 = 16 << 20;

/// A tier with a limit of items may have this part of it more, and a batch of as many, before writes wait for reclaim.
const ITEMS_OVER: u64 = 8;

/// How often, and how long apart, a full tier is asked again for room that it did not find.
const PATIENCE: u32 = 10;
/// Room that is made so often, and each time is too little or taken by others, is looked for no longer than may be waited.
const ROUNDS: u32 = 64;
/// Nor, however few the rounds were, for longer than this beyond that: each makes room, on a machine that is slow.
const GRACE: Duration = Duration::from_secs(10);
/// So often what is hot is kept when room is made; if that frees too little, whole containers go.
const SOFT: u32 = 8;
const PAUSE: Duration = Duration::from_millis(5);
/// Of a background move.
const FULL_FOR_NOW: &str = "the tier is full, and its reclaim has not come to an end";

/// Values that go to the same tier.
struct Group<'a> {
    tier: Option<&'a Arc<dyn DiskTier>>,
    purpose: Purpose,
    values: Carried<'a>,
}

fn panicked() -> Arc<StorageError> {
    Arc::new(StorageError::Busy("the thread that was writing it panicked"))
}

/// Values that a batch carries. They wait again if it comes to no end: whatever panics, here and in what is written to.
struct Carried<'a>(&'a Engine, VecDeque<Flying>);

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.1);
        if !values.is_empty() {
            self.0.give_back(values, &panicked());
        }
    }
}

/// Values whose places are committed. Who waits for one is told how that ended, whatever panics: badly, until the
/// journal is synced.
struct Landed<'a> {
    engine: &'a Engine,
    values: Vec<Flying>,
    synced: Result<(), Arc<StorageError>>,
}

impl Landed<'_> {
    fn finish(&mut self) {
        while let Some(f) = self.values.pop() {
            self.engine.finish(&f, &self.synced);
        }
    }
}

impl Drop for Landed<'_> {
    fn drop(&mut self) {
        self.finish();
    }
}

/// How a write ended that is hidden no longer, for who waits for it. If what it replaces in memory was not replaced there,
/// it goes, so that nobody reads it any more.
struct Ended<'a> {
    engine: &'a Engine,
    ident: Ident,
    outcome: Option<Arc<Outcome>>,
    how: &'a Result<(), Arc<StorageError>>,
    entered: bool,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if !self.entered {
            self.engine.memory.remove(self.ident);
        }
        if let Some(outcome) = &self.outcome {
            outcome.set(self.how.clone());
        }
    }
}

/// A batch under way. Whatever panics, it has come to its end, and who waits for room looks again.
struct Landing<'a>(&'a Engine);

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.0.catalog.buffer.landed();
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Committed {
    /// Values taken from the write buffer.
    pub(crate) taken: usize,
    /// Of these, values that could not be written and wait again.
    pub(crate) failed: usize,
}

impl Engine {
    /// Writes one batch of dirty values, and syncs the journal.
    pub(crate) fn commit_step(&self) -> Result<Committed> {
        let _one = self.committing.lock();
        self.commit_locked()
    }

    fn commit_locked(&self) -> Result<Committed> {
        let Some(top) = self.top() else { return Ok(Committed { taken: 0, failed: 0 }) };
        let most = BATCH_BYTES.min(self.dials.write_buffer() / 2).min(batch_bytes(top)).max(1);
        let items = if top.tier() == Tier::Ssd { self.settings.ssd_items / ITEMS_OVER } else { u64::MAX };
        let items = usize::try_from(items).unwrap_or(usize::MAX).clamp(1, BATCH_ITEMS);
        let end = Landing(self);
        let flying = Carried(self, self.catalog.take_dirty(items, most).into());
        let taken = flying.1.len();
        let mut landed = Landed { engine: self, values: Vec::with_capacity(taken), synced: Err(panicked()) };
        let failed = self.write_batch(flying, &mut landed.values);
        let synced = self.catalog.sync().map_err(Arc::new);
        landed.synced = synced.clone();
        if let Err(e) = &synced {
            Counters::bump(&self.counters.write_failures);
            self.fail(e);
        }
        // Gives their bytes of the write buffer back before who waits for them is woken.
        landed.finish();
        drop(end);
        if synced.is_ok() && failed == 0 {
            *self.last_failure.lock() = None;
        }
        // Here whoever waits to be written waits for it too, so the journal cannot outrun it.
        self.checkpoint_if_overdue();
        synced?;
        Ok(Committed { taken, failed })
    }

    /// Writes values to the tiers and commits their places, with which they are among those that `landed`; gives how many
    /// were not.
    fn write_batch(&self, flying: Carried<'_>, landed: &mut Vec<Flying>) -> usize {
        let mut failed = 0;
        for Group { tier, purpose, mut values } in self.by_tier(flying) {
            let done = match tier {
                Some(tier) => {
                    let items = self.encode(tier, values.1.make_contiguous());
                    self.append_down(tier.tier(), &items, purpose, Instant::now() + self.settings.write_stall)
                }
                None => Err(StorageError::Busy("no tier can hold a value of this size any more")),
            };
            match done {
                Ok((written, _batch)) => {
                    self.earn(&written);
                    for w in written {
                        if let Some(f) = values.1.front() {
                            self.catalog.lock(f.ident).commit(f.ident, &f.value, w.place);
                        }
                        // One by one: what was committed is not given back.
                        landed.extend(values.1.pop_front());
                    }
                }
                Err(e) => {
                    Counters::bump(&self.counters.write_failures);
                    let values = std::mem::take(&mut values.1);
                    failed += values.len();
                    self.give_back(values, &Arc::new(e));
                }
            }
        }
        failed
    }

    /// What callers put was written to one tier: so much more may be spent on placing it well.
    fn earn(&self, written: &[Written]) {
        let first = written.first().and_then(|w| self.catalog.containers.get(w.place.container()));
        if let Some(entry) = first {
            self.earn_by_writes(entry.tier, written.iter().map(|w| u64::from(w.bytes)).sum());
        }
    }

    /// The values in groups by the highest tier that can hold each, and by whether they are hot: then they are written
    /// beside other hot ones, and need not be copied out from among cold ones. But not if callers wait for the batch,
    /// which takes a sync more then.
    fn by_tier<'a>(&'a self, mut flying: Carried<'a>) -> Vec<Group<'a>> {
        self.survey();
        let always = self.settings.persistence == Persistence::Always;
        let mut groups: Vec<Group<'_>> = Vec::new();
        while let Some(f) = flying.1.front() {
            let purpose = if !always && self.is_hot(f.ident) { Purpose::Hot } else { Purpose::Write };
            let size = record::size(f.value.pair.key().len(), f.value.pair.value_len());
            let tier = self.tiers.iter().find(|t| t.max_record() >= size);
            let kind = tier.map(|t| t.tier());
            match groups.iter_mut().find(|g| g.purpose == purpose && g.tier.map(|t| t.tier()) == kind) {
                Some(group) => group.values.1.extend(flying.1.pop_front()),
                None => {
                    let first = flying.1.pop_front().into_iter().collect();
                    groups.push(Group { tier, purpose, values: Carried(self, first) });
                }
            }
        }
        groups
    }

    /// How a tier compresses.
    pub(super) fn compression(&self, tier: &Arc<dyn DiskTier>) -> Option<Arc<Compression>> {
        let on = self.settings.compress.get(tier.tier() as usize).copied().unwrap_or(false);
        on.then(|| self.dials.compression())
    }

    fn encode(&self, tier: &Arc<dyn DiskTier>, group: &[Flying]) -> Vec<Item> {
        let values: Vec<(ContentType, Bytes)> =
            group.iter().map(|f| (f.value.content_type, f.value.pair.value())).collect();
        let encoded = match self.compression(tier) {
            Some(policy) => codec::encode_all(&policy, values, &self.meters.effort),
            None => values.into_iter().map(|(_, v)| (Codec::None, v)).collect(),
        };
        group
            .iter()
            .zip(encoded)
            .map(|(f, (codec, payload))| {
                self.count_type(&f.value, payload.len());
                item(f.ident, &f.value, codec, payload)
            })
            .collect()
    }

    fn count_type(&self, v: &DirtyValue, stored: usize) {
        let c = self.counters.content(v.content_type);
        Counters::bump(&c.items);
        Counters::add(&c.original, v.pair.value_len() as u64);
        Counters::add(&c.stored, stored as u64);
    }

    /// Appends to a tier, making room if its limit is reached. While room can be made, by others too, it goes on until
    /// the deadline, which ends in `Busy`; where nobody waits for it (not `urgent`), sooner if the store is being
    /// closed. No space is what it says only where none can be made. The deadline is later by what `supply` waits: else a
    /// move that the rates hold up would come too late for room that is there.
    /// The mark that comes with the places is held until they are committed: no container that was written to is
    /// dropped before.
    pub(super) fn append(
        &self,
        tier: &Arc<dyn DiskTier>,
        supply: &dyn Supply,
        purpose: Purpose,
        (deadline, urgent): (Instant, bool),
    ) -> Result<(Vec<Option<Written>>, Batch<'_>), StorageError> {
        let needed: u64 = (0..supply.len()).map(|n| supply.bytes(n)).sum();
        let (mut rounds, mut own, mut in_vain) = (0, 0, 0);
        // Containers from this one on were made since this was tried first.
        let mut from = None;
        let mut without_number = 0;
        if urgent && purpose != Purpose::Reclaim {
            self.keep_to_items(tier);
        }
        loop {
            let batch = self.catalog.batch(tier.tier());
            let numbers = self.catalog.containers.numbers_left();
            let (start, waited) = (Instant::now(), supply.waited());
            match tier.write_from(supply, purpose) {
                Ok(written) => {
                    let took = start.elapsed().saturating_sub(supply.waited().saturating_sub(waited));
                    let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                    self.latencies.data_sync(tier.tier()).record(ns);
                    let bytes = written.iter().flatten().map(|w| u64::from(w.bytes)).sum();
                    self.note_written(&written);
                    Counters::add(&self.counters.tier(tier.tier()).written, bytes);
                    if self.is_over(tier) {
                        self.wake_mover(tier.tier());
                    }
                    return Ok((written, batch));
                }
                // Reclaim holds its tier's lock already, and is what makes room.
                Err(e) if e.is_no_space() && purpose != Purpose::Reclaim => {
                    drop(batch);
                    // Nothing is given up for what is not written after all.
                    if !urgent && self.is_stopping() {
                        return Err(StorageError::Busy(FULL_FOR_NOW));
                    }
                    let now = Instant::now();
                    let deadline = deadline + supply.waited();
                    let late = now >= deadline;
                    let over = late && (rounds >= ROUNDS || now >= deadline + GRACE);
                    rounds += 1;
                    let freed = match e {
                        StorageError::NoNumber { .. } => {
                            // Once or twice somebody else may have taken the number that was there. After that it
                            // takes more of them than there were.
                            without_number += 1;
                            let more_than = if without_number % 3 == 0 { numbers } else { 0 };
                            self.make_number(tier.tier(), more_than)
                        }
                        _ => {
                            let from = *from.get_or_insert_with(|| self.catalog.containers.next_id());
                            self.make_room_beside(tier.tier(), needed, own >= SOFT, from)
                        }
                    };
                    match freed {
                        // There is room to be had, so nothing need be lost for want of it: it only comes too late.
                        Freed::Later if late => return Err(StorageError::Busy(FULL_FOR_NOW)),
                        Freed::Room | Freed::ByOthers if over => {
                            return Err(StorageError::Busy(FULL_FOR_NOW));
                        }
                        Freed::Room => (own, in_vain) = (own + 1, 0),
                        // Nothing says that it is too little to keep what is hot.
                        Freed::ByOthers => in_vain = 0,
                        Freed::Later => std::thread::sleep(PAUSE),
                        Freed::Nothing => {
                            // Others may hold what is to be reclaimed, or have it in hand, for a moment.
                            (own, in_vain) = (own + 1, in_vain + 1);
                            if in_vain > PATIENCE {
                                return Err(e);
                            }
                            std::thread::sleep(PAUSE);
                        }
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Has a tier that holds far more items than it should reclaimed by who writes to it: that is why callers wait. What
    /// cannot be reclaimed now is no reason to refuse a write, for the tier has room.
    fn keep_to_items(&self, tier: &Arc<dyn DiskTier>) {
        for _ in 0..SOFT {
            let far = |(items, limit): (u64, u64)| items > limit.saturating_add(limit / ITEMS_OVER);
            if !self.items_over(tier).is_some_and(far) {
                return;
            }
            match self.make_room(tier.tier(), 0, false) {
                Freed::Room | Freed::ByOthers => {}
                Freed::Later | Freed::Nothing => return,
            }
        }
    }

    /// Containers are as old as the newest that is in them.
    fn note_written(&self, written: &[Option<Written>]) {
        let now = self.now();
        let mut last = None;
        for no in written.iter().flatten().map(|w| w.place.container()) {
            if last.replace(no) != Some(no)
                && let Some(entry) = self.catalog.containers.get(no)
            {
                entry.written_ms.store(now, Ordering::Relaxed);
            }
        }
    }

    /// Appends to this tier or, where it fails or is out of service, to the next below that takes the items.
    fn append_down(
        &self,
        from: Tier,
        items: &[Item],
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<(Vec<Written>, Batch<'_>), StorageError> {
        let mut first = None;
        for tier in self.tiers.iter().filter(|t| t.tier() >= from) {
            match self.append(tier, &items, purpose, (deadline, true)) {
                Ok((written, batch)) => return Ok((written.into_iter().flatten().collect(), batch)),
                Err(e) => {
                    let name = tier.tier();
                    self.log.warn("append", || format!("the {name} tier does not take a batch: {e}"));
                    first.get_or_insert(e);
                }
            }
        }
        Err(first.unwrap_or(StorageError::Busy("no tier takes writes")))
    }

    /// A batch failed: its values wait again, except those whose callers wait for the outcome.
    fn give_back(&self, group: VecDeque<Flying>, e: &Arc<StorageError>) {
        self.fail(e);
        for f in group.into_iter().rev() {
            let mut guard = self.catalog.lock(f.ident);
            let outcome = guard.pending_of(f.ident, f.value.version);
            guard.withdraw(f.ident, f.value.version);
            guard.requeue(f.ident, &f.value, f.since);
            if let Some(outcome) = outcome {
                outcome.set(Err(e.clone()));
            }
        }
    }

    fn fail(&self, e: &Arc<StorageError>) {
        self.log.warn("commit", || format!("a batch of writes failed and is tried again: {e}"));
        *self.last_failure.lock() = Some(Arc::new(Error::from(e.clone())));
    }

    /// After the journal was synced: hidden writes become visible, memory's copies clean.
    fn finish(&self, f: &Flying, synced: &Result<(), Arc<StorageError>>) {
        let mut out = Vec::new();
        if self.settings.persistence == Persistence::Always {
            let mut guard = self.catalog.lock(f.ident);
            // Told under the lock: who finds a write no longer hidden finds out how it ended.
            let outcome = guard.pending_of(f.ident, f.value.version);
            let mut ended =
                Ended { engine: self, ident: f.ident, outcome, how: synced, entered: synced.is_err() };
            match synced {
                Ok(()) => {
                    if guard.reveal(f.ident, f.value.version) {
                        self.enter_value(f.ident, &f.value, &mut out);
                    }
                    ended.entered = true;
                }
                Err(_) => guard.withdraw(f.ident, f.value.version),
            }
        }
        self.let_go(out);
        self.memory.set_clean(f.ident, f.value.version);
    }

    fn enter_value(&self, ident: Ident, v: &DirtyValue, out: &mut Vec<thermocline_storage::memory::Evicted>) {
        let new = NewValue { pair: v.pair.clone(), content_type: v.content_type, expires_at: v.expires_at };
        if !self.enter(ident, new, v.version, false, false, out) {
            self.memory.remove(ident);
        }
    }

    /// Writes one large value on its caller's thread, down to the journal if that is what the persistence asks. `done` is
    /// how it ends should anything panic: well, from the moment on that others see it.
    pub(super) fn write_large(
        &self,
        ident: Ident,
        v: &Arc<DirtyValue>,
        done: &mut Result<(), Arc<StorageError>>,
    ) -> Result<(), Arc<StorageError>> {
        let size = record::size(v.pair.key().len(), v.pair.value_len());
        let tier = self.tiers.iter().find(|t| t.max_record() >= size).ok_or_else(|| {
            Arc::new(StorageError::Busy("no tier in service can hold a value of this size"))
        })?;
        let (codec, payload) = match self.compression(tier) {
            Some(policy) => {
                codec::encode_counted(&policy, v.content_type, &v.pair.value(), &self.meters.effort)
            }
            None => (Codec::None, v.pair.value()),
        };
        self.count_type(v, payload.len());
        let items = [item(ident, v, codec, payload)];
        let deadline = Instant::now() + self.settings.write_stall;
        let (written, batch) = loop {
            match self.append_down(tier.tier(), &items, Purpose::Write, deadline) {
                // Its caller waits for room like any other.
                Err(e) if e.is_no_space() && Instant::now() < deadline => std::thread::sleep(PAUSE),
                done => break done,
            }
        }
        .map_err(|e| {
            Counters::bump(&self.counters.write_failures);
            Arc::new(e)
        })?;
        self.earn(&written);
        let place = written.first().map(|w| w.place);
        if let Some(place) = place {
            self.catalog.lock(ident).commit(ident, v, place);
        }
        drop(batch);
        if self.settings.persistence == Persistence::Always {
            self.catalog.sync().map_err(Arc::new)?;
            let mut out = Vec::new();
            let mut guard = self.catalog.lock(ident);
            if guard.reveal(ident, v.version) {
                *done = Ok(());
                self.enter_value(ident, v, &mut out);
            }
            drop(guard);
            self.let_go(out);
        }
        Ok(())
    }

    /// Why values wait again that were taken to be written.
    pub(super) fn not_written(&self) -> Error {
        match self.last_failure.lock().clone() {
            Some(e) => (*e).clone(),
            None => self.busy("values could not be written"),
        }
    }

    /// When this returns, everything acknowledged before the call is on stable storage.
    pub(crate) fn flush(&self) -> Result<()> {
        let _open = self.using()?;
        let start = Instant::now();
        self.flush_all()?;
        self.latencies.flush.since(start);
        Ok(())
    }

    /// [`flush`](Self::flush) on behalf of who uses the store already, or closes it.
    pub(super) fn flush_all(&self) -> Result<()> {
        if !self.has_disk() {
            return Ok(());
        }
        let no_large = self.writing_large.try_write_for(self.settings.write_stall);
        let _no_large = no_large.ok_or_else(|| self.busy("a large value is still being written"))?;
        let _one = self.committing.lock();
        self.catalog.enqueue_all();
        let mut left = self.catalog.buffer.queued();
        loop {
            let done = self.commit_locked()?;
            if done.failed > 0 {
                return Err(self.not_written());
            }
            left = left.saturating_sub(done.taken);
            if left == 0 || done.taken == 0 {
                return Ok(());
            }
        }
    }
}

fn item(ident: Ident, v: &DirtyValue, codec: Codec, payload: Bytes) -> Item {
    Item {
        key: v.pair.key_bytes(),
        ident,
        version: v.version,
        expires_at: v.expires_at,
        content_type: v.content_type,
        codec,
        original_len: u32::try_from(v.pair.value_len()).unwrap_or(u32::MAX),
        payload,
    }
}
