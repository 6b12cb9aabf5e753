//! Dirty values: writes that no frame names yet, the write buffer that bounds them, and their queue.
//!
//! Invariants:
//! - a dirty value is charged to the write buffer from the moment it is queued to be written until the last
//!   reference to it is gone, in flight included;
//! - an identity stands in the queue at most once, and exactly if its `Dirty::queued` is set;
//! - what waits is as old as the oldest of its writes that is not written: one that replaces a write which then could
//!   not be written takes over its age (`Dirty::since`).

use crate::ident::Ident;
use crate::pair::Pair;
use crate::types::{ContentType, Version};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// What a dirty value takes beyond its key and value, in bytes: its nodes in the tables.
const OVERHEAD: u64 = 192;

/// One value that was put and is not journaled yet.
#[derive(Debug)]
pub struct DirtyValue {
    /// The full key, and the value as it was put.
    pub pair: Pair,
    /// Never `Auto`.
    pub content_type: ContentType,
    /// Milliseconds since the epoch; 0 means never.
    pub expires_at: u64,
    /// The order of the write.
    pub version: Version,
    /// A batch carries it: taken from the queue, neither committed nor given back.
    pub(crate) in_batch: AtomicBool,
    /// Its caller writes it, and nobody else.
    pub(crate) by_caller: AtomicBool,
    /// Its caller could not write it, and was told so: nothing brings it back.
    pub(crate) failed: AtomicBool,
    /// Of one that its caller writes: the newest before it, in case it fails, until it has landed.
    pub(crate) before: Mutex<Option<Arc<DirtyValue>>>,
    charge: Charge,
}

impl DirtyValue {
    pub(crate) fn new(
        buffer: &Arc<WriteBuffer>,
        pair: Pair,
        content_type: ContentType,
        expires_at: u64,
        version: Version,
    ) -> DirtyValue {
        let bytes = pair.len() as u64 + OVERHEAD;
        let charge = Charge { buffer: buffer.clone(), bytes, on: AtomicBool::new(false) };
        DirtyValue {
            pair,
            content_type,
            expires_at,
            version,
            in_batch: AtomicBool::new(false),
            by_caller: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            before: Mutex::default(),
            charge,
        }
    }

    /// Bytes that the value takes of the write buffer.
    pub fn bytes(&self) -> u64 {
        self.charge.bytes
    }

    pub(crate) fn charge(&self) {
        if !self.charge.on.swap(true, Ordering::AcqRel) {
            self.charge.buffer.bytes.fetch_add(self.charge.bytes, Ordering::AcqRel);
        }
    }
}

#[derive(Debug)]
struct Charge {
    buffer: Arc<WriteBuffer>,
    bytes: u64,
    on: AtomicBool,
}

impl Drop for Charge {
    fn drop(&mut self) {
        if *self.on.get_mut() {
            self.buffer.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
            self.buffer.changed.notify_all();
        }
    }
}

/// What one identity has under way. Kept until nothing of it is in flight.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// The newest value, if it is not in a frame yet.
    pub(crate) newest: Option<Arc<DirtyValue>>,
    pub(crate) queued: bool,
    /// Of one that stands in the queue, since when the oldest of its writes has waited that batches could not write.
    pub(crate) since: Option<u64>,
    /// Batches that carry a value of this identity.
    pub(crate) in_flight: u32,
    /// The newest version that a batch carries, so that nothing is written twice.
    pub(crate) flying: Version,
    /// The version of the newest frame of this identity since this record exists: what comes back from a batch
    /// with a lower one is garbage.
    pub(crate) last_frame: Version,
}

impl Dirty {
    pub(crate) fn is_idle(&self) -> bool {
        self.newest.is_none() && self.in_flight == 0
    }
}

/// The write buffer: how much is dirty, and in which order it is to be written.
#[derive(Debug, Default)]
pub struct WriteBuffer {
    bytes: AtomicU64,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Pairs with `changed`; holds nothing.
    gate: Mutex<()>,
}

#[derive(Debug, Default)]
struct Queue {
    idents: VecDeque<(Ident, u64)>,
    /// Those in the queue that batches could not write, by their age: they may have waited for longer than their place
    /// in it says.
    aged: BTreeSet<(u64, Ident)>,
    /// When the oldest of the batch in flight was queued.
    in_flight_since: Option<u64>,
}

impl WriteBuffer {
    /// Bytes charged.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Identities waiting to be written.
    pub fn queued(&self) -> usize {
        self.queue.lock().idents.len()
    }

    /// When the oldest value not yet journaled was queued, in milliseconds of the engine's clock.
    pub fn oldest_ms(&self) -> Option<u64> {
        let q = self.queue.lock();
        let (first, aged) = (q.idents.front().map(|(_, at)| *at), q.aged.first().map(|(at, _)| *at));
        [q.in_flight_since, first, aged].into_iter().flatten().min()
    }

    pub(crate) fn push(&self, ident: Ident, now: u64) {
        self.queue.lock().idents.push_back((ident, now));
    }

    /// In reverse order, if several go back: the oldest is to be written first.
    pub(crate) fn push_front(&self, ident: Ident, at: u64) {
        self.queue.lock().idents.push_front((ident, at));
    }

    /// What stands in the queue has waited since `at`, not only since `before`, or as its place in the queue says.
    pub(crate) fn age(&self, ident: Ident, before: Option<u64>, at: u64) {
        let mut q = self.queue.lock();
        if let Some(before) = before {
            q.aged.remove(&(before, ident));
        }
        q.aged.insert((at, ident));
    }

    /// What was popped has waited since `at`, and is in flight now.
    pub(crate) fn pop_aged(&self, ident: Ident, at: u64) {
        let mut q = self.queue.lock();
        q.aged.remove(&(at, ident));
        q.in_flight_since = Some(q.in_flight_since.map_or(at, |s| s.min(at)));
    }

    /// How many stand in the queue that batches could not write.
    #[cfg(test)]
    pub(crate) fn aged(&self) -> usize {
        self.queue.lock().aged.len()
    }

    pub(crate) fn pop(&self) -> Option<(Ident, u64)> {
        let mut q = self.queue.lock();
        let popped = q.idents.pop_front();
        if let Some((_, at)) = popped {
            q.in_flight_since = Some(q.in_flight_since.map_or(at, |s| s.min(at)));
        }
        popped
    }

    /// Declares that nothing is in flight any more and wakes who waits for room.
    pub fn landed(&self) {
        self.queue.lock().in_flight_since = None;
        self.wake();
    }

    /// Wakes everybody who waits in [`wait`](Self::wait).
    pub fn wake(&self) {
        let _gate = self.gate.lock();
        self.changed.notify_all();
    }

    /// Waits until `ready` holds or the deadline is over; says whether it holds. Woken by changes, and every
    /// 50 ms at the latest, because age is part of what callers wait for.
    pub fn wait(&self, deadline: Instant, ready: impl Fn() -> bool) -> bool {
        loop {
            if ready() {
                return true;
            }
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            let mut gate = self.gate.lock();
            let _ =
                self.changed.wait_until(&mut gate, deadline.min(now + std::time::Duration::from_millis(50)));
        }
    }
}
