//! The catalog: the one index that says which place, if any, is the live copy of a key.
//!
//! A record that the catalog does not point at is garbage, whatever file it stands in. The catalog is kept in RAM
//! (256 shards by identity), changed under a shard's lock, made durable by the [`journal`](self) in two copies and,
//! from time to time, by a checkpoint in two copies.
//!
//! What a crash leaves (each step is on stable storage before the next begins):
//!
//! | after | recovery finds | and does |
//! |---|---|---|
//! | data synced, frame not queued or not synced | records that no frame names | garbage; the key's older copy lives |
//! | frame in one copy only | the batch in one copy | the union is synced into both before the first answer |
//! | new journal pair made, checkpoint not published | old checkpoint, both journals | replays both |
//! | checkpoint in one copy's folder | it, complete | uses it; journals from its number on are there |
//! | checkpoint in both, older files not removed | both | uses the newest; removes the older |
//!
//! Lock order: a shard, then (memory tier, journal files, batches, containers, journal queue, write buffer). No two
//! shards at once. A checkpoint locks shards, and [`Catalog::sync`] may need one: no shard is locked by who calls it.

mod batches;
mod checkpoint;
mod dirty;
mod examine;
mod frame;
mod index;
mod journal;
mod recovery;
mod replay;
mod settle;
mod shard;

pub use batches::Batch;
pub use dirty::{DirtyValue, WriteBuffer};
pub use journal::JOURNAL_STEP;
pub use recovery::{Recovered, Setup};
pub use shard::{Found, Guard, Located, NewValue, Taken};

use crate::clock::EngineClock;
use crate::container::{Containers, Entry, Known, Listed};
use crate::error::{Error, Result};
use crate::ident::Ident;
use crate::latency::Latency;
use crate::types::{ContainerNo, Place, Version};
use crate::vfs::{EntryKind, Vfs};
use batches::Batches;
use frame::Frame;
use journal::Journal;
use parking_lot::{Condvar, Mutex, RwLock};
use shard::Shard;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// The journal of a store in use is not older than this, in milliseconds, and what it takes to write it.
const TIME_EVERY_MS: u64 = 1_000;

/// Number of shards.
pub const SHARDS: usize = 256;

/// How a hidden write ended; later writes of the key wait for it.
#[derive(Debug, Default)]
pub struct Outcome {
    done: Mutex<Option<Result<(), Arc<Error>>>>,
    changed: Condvar,
    cleared: AtomicBool,
}

impl Outcome {
    /// Tells everybody who waits.
    pub fn set(&self, result: Result<(), Arc<Error>>) {
        *self.done.lock() = Some(result);
        self.changed.notify_all();
    }

    /// Tells everybody who waits that a clear took the write away. Nothing says yet that either is durable.
    pub(crate) fn clear(&self) {
        self.cleared.store(true, Ordering::Release);
        self.set(Ok(()));
    }

    /// Whether the write ended because a clear took it away: it is as durable as that.
    pub fn is_cleared(&self) -> bool {
        self.cleared.load(Ordering::Acquire)
    }

    /// Waits for the end, at most this long; `None` if it has not come.
    pub fn wait(&self, timeout: std::time::Duration) -> Option<Result<(), Arc<Error>>> {
        let deadline = std::time::Instant::now() + timeout;
        let mut done = self.done.lock();
        while done.is_none() {
            if self.changed.wait_until(&mut done, deadline).timed_out() {
                break;
            }
        }
        done.clone()
    }
}

/// A value taken from the write buffer to be written.
#[derive(Debug)]
pub struct Flying {
    /// Whose it is.
    pub ident: Ident,
    /// The value.
    pub value: Arc<DirtyValue>,
    /// When it was queued, or the oldest write that it replaced and that could not be written.
    pub since: u64,
}

/// What a walk sees of an identity.
#[derive(Debug)]
pub struct Seen {
    /// Whose it is.
    pub ident: Ident,
    /// What readers see.
    pub found: Found,
}

/// Counts over all shards.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CatalogStats {
    /// Identities with a record on disk.
    pub indexed: u64,
    /// Identities whose newest value is not on disk yet.
    pub dirty: u64,
    /// Of these, identities with nothing on disk.
    pub only_dirty: u64,
    /// Bytes of RAM that index and side tables take, roughly.
    pub bytes: u64,
    /// Frames queued and not yet written.
    pub queued_frames: u64,
    /// Bytes written to both copies of the journal since the store was opened.
    pub journal_written: u64,
    /// Bytes in one copy of the newest journal file.
    pub journal_len: u64,
    /// Checkpoints published since the store was opened.
    pub checkpoints: u64,
    /// Bytes of the catalog's files, both copies and the reserve, as of a second ago.
    pub on_disk: u64,
}

/// The catalog of an open store.
pub struct Catalog {
    shards: Vec<RwLock<Shard>>,
    /// The containers that places lie in.
    pub containers: Arc<Containers>,
    /// The write buffer.
    pub buffer: Arc<WriteBuffer>,
    journal: Option<Arc<Journal>>,
    clock: Arc<EngineClock>,
    next_version: AtomicU64,
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    store: [u8; 16],
    open: u64,
    batches: Mutex<Batches>,
    /// Containers whose removal is queued, with the frame that says so. Not held: who holds one keeps its space.
    dropping: Mutex<Vec<(u64, ContainerNo, Weak<Entry>)>>,
    /// Containers that recovery found and that nobody attached (yet): their directory may be away.
    absent: Mutex<BTreeMap<ContainerNo, Known>>,
    /// Serialises checkpoints.
    checkpointing: Mutex<settle::Rest>,
    checkpoints: AtomicU64,
    /// Bytes of the catalog's files, when they were last looked at.
    on_disk: AtomicU64,
    heat: OnceLock<HeatSource>,
    /// The heat as recovery found it, for a checkpoint before [`Catalog::on_checkpoint`].
    saved_heat: Mutex<Vec<u8>>,
}

type HeatSource = Box<dyn Fn() -> Vec<u8> + Send + Sync>;

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Catalog {
    /// Where checkpoints get the heat of the items from (opaque bytes). Set once.
    pub fn on_checkpoint(&self, heat: impl Fn() -> Vec<u8> + Send + Sync + 'static) {
        let _ = self.heat.set(Box::new(heat));
        *self.saved_heat.lock() = Vec::new();
    }

    /// A catalog without disks: it gives versions and orders writes.
    pub fn in_memory(vfs: Arc<dyn Vfs>, clock: Arc<EngineClock>) -> Catalog {
        Catalog::assemble(
            vfs,
            PathBuf::new(),
            [0; 16],
            1,
            clock,
            Arc::new(Containers::new(1)),
            None,
            Vec::new(),
        )
    }

    #[expect(clippy::too_many_arguments, reason = "one private constructor for the two ways in")]
    fn assemble(
        vfs: Arc<dyn Vfs>,
        dir: PathBuf,
        store: [u8; 16],
        open: u64,
        clock: Arc<EngineClock>,
        containers: Arc<Containers>,
        journal: Option<Journal>,
        mut shards: Vec<Shard>,
    ) -> Catalog {
        shards.resize_with(SHARDS, Shard::default);
        let journal = journal.map(Arc::new);
        if let Some(journal) = journal.clone() {
            let clock = clock.clone();
            containers.on_publish(move |entry| {
                journal.push(Frame::Created(entry.known()), || clock.now());
            });
        }
        Catalog {
            shards: shards.into_iter().map(RwLock::new).collect(),
            containers,
            buffer: Arc::default(),
            journal,
            clock,
            next_version: AtomicU64::new(Version::first_of(open).0 + 1),
            vfs,
            dir,
            store,
            open,
            batches: Mutex::default(),
            dropping: Mutex::default(),
            absent: Mutex::default(),
            checkpointing: Mutex::default(),
            checkpoints: AtomicU64::new(0),
            on_disk: AtomicU64::new(0),
            heat: OnceLock::new(),
            saved_heat: Mutex::default(),
        }
    }

    /// The shard of an identity: its upper eight bits.
    pub const fn shard_of(ident: Ident) -> usize {
        (ident.bits() >> (Ident::BITS - 8)) as usize
    }

    #[expect(clippy::indexing_slicing, reason = "the number of a shard is eight bits, and there are 256")]
    fn shard(&self, no: usize) -> &RwLock<Shard> {
        &self.shards[no & 0xff]
    }

    /// Milliseconds since the epoch on the engine's clock, which never goes back.
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// Locks the shard of an identity for writing.
    pub fn lock(&self, ident: Ident) -> Guard<'_> {
        Guard { shard: self.shard(Self::shard_of(ident)).write(), cat: self }
    }

    /// What readers see of an identity.
    pub fn find(&self, ident: Ident) -> Found {
        self.shard(Self::shard_of(ident)).read().find(self, ident)
    }

    /// Calls `f` with what readers see of an identity, while nobody can change it.
    pub fn with<R>(&self, ident: Ident, f: impl FnOnce(Found) -> R) -> R {
        let shard = self.shard(Self::shard_of(ident)).read();
        f(shard.find(self, ident))
    }

    /// Takes no version, and no id of a container, below this from now on.
    pub fn skip_versions(&self, to: Version) {
        self.containers.skip_ids(to.0);
        self.next_version.fetch_max(to.0, Ordering::Relaxed);
    }

    pub(crate) fn next_version(&self) -> Version {
        Version(self.next_version.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn push(&self, frame: Frame) -> u64 {
        self.journal.as_ref().map_or(0, |j| j.push(frame, || self.now()))
    }

    pub(crate) fn dirty_value(&self, new: NewValue, version: Version) -> DirtyValue {
        DirtyValue::new(&self.buffer, new.pair, new.content_type, new.expires_at, version)
    }

    /// Queues a dirty value that waits for eviction to be written.
    pub fn enqueue(&self, ident: Ident) {
        let mut guard = self.lock(ident);
        self.enqueue_locked(&mut guard.shard, ident);
    }

    /// Queues every dirty value (flush, close).
    pub fn enqueue_all(&self) {
        for shard in &self.shards {
            let mut shard = shard.write();
            let idents: Vec<Ident> = shard
                .dirty
                .iter()
                .filter(|(_, d)| d.newest.is_some() && !d.queued)
                .map(|(i, _)| *i)
                .collect();
            for ident in idents {
                self.enqueue_locked(&mut shard, ident);
            }
        }
    }

    fn enqueue_locked(&self, shard: &mut Shard, ident: Ident) {
        if let Some(d) = shard.dirty.get_mut(&ident)
            && !d.queued
            && let Some(v) = &d.newest
            && v.version != d.flying
        {
            v.charge();
            d.queued = true;
            self.buffer.push(ident, self.now());
        }
    }

    /// Takes dirty values to be written, oldest first, until either limit is reached (at least one, if any).
    /// One writer at a time; it says [`WriteBuffer::landed`] when what it took is committed or queued again.
    pub fn take_dirty(&self, max_items: usize, max_bytes: u64) -> Vec<Flying> {
        let mut out = Vec::new();
        let mut bytes = 0;
        while out.len() < max_items && (out.is_empty() || bytes < max_bytes) {
            let Some((ident, mut since)) = self.buffer.pop() else { break };
            let mut guard = self.lock(ident);
            let Some(d) = guard.shard.dirty.get_mut(&ident) else { continue };
            d.queued = false;
            if let Some(at) = d.since.take() {
                self.buffer.pop_aged(ident, at);
                since = since.min(at);
            }
            match &d.newest {
                Some(v) if v.version != d.flying => {
                    d.in_flight += 1;
                    d.flying = v.version;
                    v.in_batch.store(true, Ordering::Relaxed);
                    bytes += v.bytes();
                    out.push(Flying { ident, value: v.clone(), since });
                }
                _ if d.is_idle() => {
                    guard.shard.dirty.remove(&ident);
                }
                _ => {}
            }
        }
        if out.is_empty() {
            // Only what was removed meanwhile stood in the queue; nobody would say that it landed.
            self.buffer.landed();
        }
        out
    }

    /// Takes a container out of the table and queues the frame that says so. The caller has synced every frame
    /// that took a record from it, and has deleted its files.
    pub fn forget(&self, entry: &Arc<Entry>) {
        // Out of both tables before the frame is numbered: a checkpoint that lists them later than that lacks it.
        self.absent.lock().remove(&entry.no);
        self.containers.remove(entry.no);
        self.batches.lock().forget(entry.id);
        let frame = self.push(Frame::Dropped { no: entry.no, id: entry.id });
        self.dropping.lock().push((frame, entry.no, Arc::downgrade(entry)));
    }

    /// Takes everything out of the catalog, one frame a shard; `under_lock` is called with each shard's number
    /// and the identities that went, while the shard is locked. Gives how many items were visible; of those on disk
    /// that have expired it knows only where the expiry was changed, the rest were to be reaped before.
    pub fn clear(&self, mut under_lock: impl FnMut(usize, &[Ident])) -> u64 {
        let mut count = 0;
        for no in 0..SHARDS {
            let mut guard = Guard { shard: self.shard(no).write(), cat: self };
            let (gone, expired) = guard.clear(no as u64);
            under_lock(no, &gone);
            count += (gone.len() as u64).saturating_sub(expired);
        }
        self.buffer.wake();
        count
    }

    /// What readers see of every identity in a shard, in order of place (dirty ones last).
    pub fn walk(&self, no: usize) -> Vec<Seen> {
        let shard = self.shard(no).read();
        let mut seen: Vec<Seen> = Vec::with_capacity(shard.index.len());
        let only_dirty =
            shard.dirty.iter().filter(|(i, d)| d.newest.is_some() && shard.index.get(**i).is_none());
        // A removal that is still hidden: its identity is in neither.
        let only_hidden = shard.hidden.keys().filter(|i| {
            shard.index.get(**i).is_none() && shard.dirty.get(*i).is_none_or(|d| d.newest.is_none())
        });
        let idents = shard.index.iter().map(|(i, _)| i);
        for ident in idents.chain(only_dirty.map(|(i, _)| *i)).chain(only_hidden.copied()) {
            match shard.find(self, ident) {
                Found::Absent => {}
                found => seen.push(Seen { ident, found }),
            }
        }
        drop(shard);
        seen.sort_by_key(|s| match &s.found {
            Found::At(l) => l.place.to_bits(),
            _ => u64::MAX,
        });
        seen
    }

    /// Which of a container's records the catalog points at.
    pub fn live_in(&self, entry: &Entry, listed: Vec<Listed>) -> Vec<Listed> {
        listed.into_iter().filter(|l| self.is_live(entry, l)).collect()
    }

    /// Whether the catalog points at this record.
    pub fn is_live(&self, entry: &Entry, l: &Listed) -> bool {
        let place = Place::new(entry.no, l.position);
        place.is_some() && self.shard(Self::shard_of(l.ident)).read().index.get(l.ident) == place
    }

    /// The expiry in force of the record at a place, if it was changed since it was written.
    pub fn changed_expiry(&self, ident: Ident, place: Place) -> Option<u64> {
        let shard = self.shard(Self::shard_of(ident)).read();
        (shard.index.get(ident) == Some(place)).then(|| shard.expiries.get(&ident).copied()).flatten()
    }

    /// Identities with a record on disk.
    pub fn indexed(&self) -> u64 {
        self.shards.iter().map(|s| s.read().index.len() as u64).sum()
    }

    /// About so many identities with a record on disk, as far as there are any, from all shards alike.
    pub fn sample(&self, count: usize) -> Vec<Ident> {
        let each = count.div_ceil(self.shards.len().max(1));
        let mut out = Vec::with_capacity(count);
        for shard in &self.shards {
            out.extend(shard.read().index.iter().take(each).map(|(ident, _)| ident));
        }
        out
    }

    /// Everything that points into a container: what reclaim looks at when a listing lacks something.
    pub fn pointing_at(&self, no: ContainerNo) -> Vec<(Ident, Place)> {
        self.pointing_into(|into| into == no)
    }

    /// Everything that points into any of these containers.
    pub fn pointing_into(&self, wanted: impl Fn(ContainerNo) -> bool) -> Vec<(Ident, Place)> {
        let mut out = Vec::new();
        for shard in &self.shards {
            out.extend(shard.read().index.iter().filter(|(_, p)| wanted(p.container())));
        }
        out
    }

    /// Counts over all shards.
    pub fn stats(&self) -> CatalogStats {
        let mut s = CatalogStats::default();
        for shard in &self.shards {
            let shard = shard.read();
            s.indexed += shard.index.len() as u64;
            s.dirty += shard.wet.all;
            s.only_dirty += shard.wet.only;
            s.bytes += shard.index.bytes() as u64
                + (shard.dirty.capacity() * 64
                    + shard.expiries.capacity() * 18
                    + shard.hidden.capacity() * 48) as u64;
        }
        if let Some(j) = &self.journal {
            s.queued_frames = j.queued() as u64;
            s.journal_written = j.written();
            s.journal_len = j.len();
        }
        s.checkpoints = self.checkpoints.load(Ordering::Relaxed);
        s.on_disk = match self.on_disk.load(Ordering::Relaxed) {
            // Nobody has looked yet, just after opening.
            0 if self.journal.is_some() => self.measure(),
            known => known,
        };
        s
    }

    /// How long batches of the journal took to become durable; empty in memory.
    pub fn journal_latency(&self) -> Latency {
        self.journal.as_ref().map(|j| j.latency()).unwrap_or_default()
    }

    /// Housekeeping, about once a second: sets the disk reserve aside again, and looks how large the files are.
    pub fn maintain(&self) {
        let Some(journal) = &self.journal else { return };
        journal.restore_reserve();
        self.measure();
    }

    /// Looks how large the files are.
    fn measure(&self) -> u64 {
        let folders = journal::COPIES.map(|copy| self.dir.join(copy));
        let bytes = folders.iter().chain([&self.dir]).map(|folder| {
            // Journals are preallocated, so their lengths are what they occupy.
            let entries = self.vfs.read_dir(folder).unwrap_or_default();
            entries.iter().filter(|e| e.kind == EntryKind::File).map(|e| e.len).sum::<u64>()
        });
        let bytes = bytes.sum();
        self.on_disk.store(bytes, Ordering::Relaxed);
        bytes
    }

    /// Sees to it that the next [`sync`](Self::sync) brings the time into the journal: what has expired stays dead for
    /// that after a kill, whatever the wall clock shows then. Where nothing on disk expires there is nothing to be kept
    /// dead. Gives `false`, and does nothing, if the journal's newest time is less than a second old.
    pub fn note_time(&self) -> bool {
        let Some(journal) = &self.journal else { return true };
        let now = self.now();
        let expires = |e: &Arc<Entry>| e.earliest_expiry.load(Ordering::Relaxed) != u64::MAX;
        if journal.queued() > 0 || !self.containers.all().iter().any(expires) {
            return true;
        }
        let due = journal.written_ms().saturating_add(TIME_EVERY_MS) <= now;
        if due {
            journal.push(Frame::Time { ms: now }, || now);
        }
        due
    }

    /// Lets go of the journal's files: nothing is made durable any more.
    pub fn close(&self) {
        if let Some(journal) = &self.journal {
            journal.close();
        }
    }

    /// Frames queued and not yet written.
    pub fn queued_frames(&self) -> usize {
        self.journal.as_ref().map_or(0, |j| j.queued())
    }

    /// [`queued_frames`](Self::queued_frames) and [`oldest_frame_ms`](Self::oldest_frame_ms) at one time.
    pub fn waiting_frames(&self) -> (usize, Option<u64>) {
        self.journal.as_ref().map_or((0, None), |j| j.waiting())
    }

    /// When the oldest frame was queued that is not durable yet, in milliseconds of the engine's clock.
    pub fn oldest_frame_ms(&self) -> Option<u64> {
        self.journal.as_ref().and_then(|j| j.oldest_ms())
    }

    /// Bytes in one copy of the journal since the last checkpoint, be it of an earlier opening, that say more than how late
    /// it is: what a kill would leave to be replayed.
    pub fn journal_changes(&self) -> u64 {
        self.journal.as_ref().map_or(0, |j| j.changes())
    }

    /// Bytes in one copy of the newest journal file.
    pub fn journal_len(&self) -> u64 {
        self.journal.as_ref().map_or(0, |j| j.len())
    }
}

#[cfg(test)]
mod tests;
