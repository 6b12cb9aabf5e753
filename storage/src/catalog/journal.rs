//! The journal: frames queued in order, written to two copies and synced in batches.
//!
//! Invariants:
//! - a frame is numbered and queued under its shard's lock, in the section that changes the durable place, so the
//!   order of numbers is the order of changes;
//! - both copies hold the same bytes at the same offsets, so a batch damaged in one is read from the other;
//! - `durable` is raised only when both copies are synced (or a checkpoint that contains the frames is published),
//!   and every batch names it: a gap at or below it is damage, above it a torn tail;
//! - a pair of files of which a write or a sync failed is never written again: both copies are abandoned, and
//!   nothing that waits is acknowledged before a checkpoint with a new pair is published ([`Journal::broken`]);
//! - a pair begun while the journal was broken is an orphan: frames may be missing before it, so nothing in it
//!   counts as durable until the checkpoint of the same number is published ([`Journal::mend`]). That publishing
//!   mends the pair it was made with and no other: a pair that failed since stays broken.
//!
//! Lock order: shard, then files, then queue; nothing is locked while the queue is held.

use super::frame::{BatchHead, FRAME, FileHead, Frame, HEAD, MAX_BATCH, encode_batch, seed};
use super::recovery::Setup;
use crate::error::{Error, IoContext, Result};
use crate::latency::{Histogram, Latency};
use crate::vfs::{OpenMode, Vfs, VfsFile};
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// The two folders of the catalog.
pub(crate) const COPIES: [&str; 2] = ["a", "b"];
/// Journal files grow by this much at a time, so that syncs need not change their length.
pub const JOURNAL_STEP: u64 = 1 << 20;
/// Bytes at which a pair of files is followed by another.
const MAX_FILE: u64 = 256 << 20;
/// Bytes set aside on the catalog's disk: room for two steps of both copies, or for a small checkpoint.
const RESERVE: u64 = 4 << 20;

/// What a write to the journal ends with that did not come to its end.
const PANICKED: Error = Error::Busy("the journal's file system panicked");

/// The path of a journal file.
pub(crate) fn journal_path(dir: &Path, copy: &str, seq: u64) -> PathBuf {
    dir.join(copy).join(format!("journal-{seq:016x}"))
}

#[derive(Debug)]
struct Queue {
    frames: Vec<Frame>,
    /// Number of the next frame to be queued; the queue holds the `frames.len()` before it.
    next: u64,
    /// When the oldest of those that wait was queued, in milliseconds of the engine's clock.
    since: Option<u64>,
    /// Likewise of those that were taken out and are not durable yet.
    taken_since: Option<u64>,
}

impl Queue {
    fn oldest(&self) -> Option<u64> {
        self.taken_since.into_iter().chain(self.since).min()
    }

    /// Whatever waits is taken out.
    fn take(&mut self) -> Vec<Frame> {
        self.taken_since = self.oldest();
        self.since = None;
        std::mem::take(&mut self.frames)
    }
}

#[derive(Debug)]
struct Files {
    seq: u64,
    pair: Vec<(PathBuf, Arc<dyn VfsFile>)>,
    /// Where the next batch goes.
    end: u64,
    allocated: u64,
    /// A write or sync of this pair failed: frames that were taken from the queue are in no journal.
    failed: bool,
    /// Begun while the journal was broken, and the checkpoint that covers the gap before it is not published.
    orphan: bool,
    /// Nothing more is written: the directory may be another's by now.
    closed: bool,
}

impl Files {
    fn open(&self) -> Result<()> {
        if self.closed { Err(Error::Busy("the catalog is closed")) } else { Ok(()) }
    }

    fn broken(&self) -> bool {
        self.failed || self.orphan
    }
}

/// The journal of an open store.
#[derive(Debug)]
pub(crate) struct Journal {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    store: [u8; 16],
    open: u64,
    /// Bytes by which the files grow.
    step: u64,
    queue: Mutex<Queue>,
    files: Mutex<Files>,
    durable: AtomicU64,
    /// What [`Files::broken`] says, to be read without waiting for a sync.
    broken: AtomicBool,
    /// What [`Files::end`] is, likewise.
    len: AtomicU64,
    written: AtomicU64,
    /// How long it took to append a batch to both copies and to sync them.
    latency: Histogram,
    /// Bytes in one copy since the last checkpoint, those that were replayed at opening too, without batches of the time
    /// alone.
    changes: AtomicU64,
    /// The time of the newest batch, on the engine's clock.
    written_ms: AtomicU64,
    /// A pair that has grown to this is followed by another, checkpoint or not.
    max_file: AtomicU64,
}

impl Journal {
    /// A new pair of files with this sequence number, whose first frame will be `next`. When this returns, both
    /// files and their names are durable. A crash before leaves empty files, which recovery skips.
    pub(crate) fn create(setup: &Setup, seq: u64, next: u64) -> Result<Journal> {
        let (vfs, dir) = (&*setup.vfs, &setup.dir);
        let head = FileHead { store: setup.store, seq, open: setup.open, first: next };
        let files = match create_pair(vfs, dir, &head) {
            // As in `make_room`: what is removed from an open store makes room, from a closed one nothing can be.
            Err(e) if e.is_no_space() && give_up_reserve(vfs, dir, &e) => create_pair(vfs, dir, &head),
            made => made,
        };
        let files = files.inspect_err(|_| {
            // Nothing is in it. The next attempt takes the next number: many of them must leave no trail.
            for copy in COPIES {
                let _ = vfs.remove_file(&journal_path(dir, copy, seq));
            }
        })?;
        Ok(Journal {
            vfs: setup.vfs.clone(),
            dir: setup.dir.clone(),
            store: setup.store,
            open: setup.open,
            step: setup.journal_step.max(1),
            queue: Mutex::new(Queue { frames: Vec::new(), next, since: None, taken_since: None }),
            files: Mutex::new(files),
            durable: AtomicU64::new(next.saturating_sub(1)),
            broken: AtomicBool::new(false),
            len: AtomicU64::new(HEAD as u64),
            written: AtomicU64::new(0),
            latency: Histogram::default(),
            changes: AtomicU64::new(0),
            written_ms: AtomicU64::new(0),
            max_file: AtomicU64::new(MAX_FILE),
        })
    }

    /// Numbers and queues a frame. The caller holds the lock of the shard that the frame is about. The first that waits
    /// asks for the time.
    pub(crate) fn push(&self, frame: Frame, now: impl FnOnce() -> u64) -> u64 {
        let mut q = self.queue.lock();
        q.since.get_or_insert_with(now);
        q.frames.push(frame);
        q.next += 1;
        q.next - 1
    }

    /// Frames queued and not yet written.
    pub(crate) fn queued(&self) -> usize {
        self.queue.lock().frames.len()
    }

    /// When the oldest frame that is not durable yet was queued, in milliseconds of the engine's clock.
    pub(crate) fn oldest_ms(&self) -> Option<u64> {
        self.queue.lock().oldest()
    }

    /// [`queued`](Self::queued) and [`oldest_ms`](Self::oldest_ms), for those who ask before each write.
    pub(crate) fn waiting(&self) -> (usize, Option<u64>) {
        let q = self.queue.lock();
        (q.frames.len(), q.oldest())
    }

    /// Frames up to and including this number are durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Whether a copy failed, so that only a checkpoint makes anything durable again.
    pub(crate) fn broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Whether every frame that was ever queued is durable.
    pub(crate) fn settled(&self) -> bool {
        let last = self.queue.lock().next - 1;
        !self.broken() && self.durable() >= last
    }

    /// Bytes in one copy of the newest file.
    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// Bytes written to both copies since the store was opened.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// How long batches took to become durable.
    pub(crate) fn latency(&self) -> Latency {
        self.latency.snapshot()
    }

    /// Bytes in one copy of what an opening would replay, without batches of the time alone.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// So many frames were replayed from older files, and are again at the next opening if no checkpoint comes first.
    pub(crate) fn note_replayed(&self, frames: u64) {
        self.changes.fetch_add(frames.saturating_mul(FRAME as u64), Ordering::Relaxed);
    }

    /// The time of the newest batch, in milliseconds of the engine's clock; 0: none was written since the store was
    /// opened.
    pub(crate) fn written_ms(&self) -> u64 {
        self.written_ms.load(Ordering::Relaxed)
    }

    /// Writes and syncs what is queued. On `Ok` every frame queued before the call is durable. On an error either
    /// there was no room, and the frames wait in the queue; or the journal is broken, and the frames that were
    /// queued are covered by the next checkpoint.
    pub(crate) fn sync(&self, time: u64) -> Result<u64> {
        let mut files = self.files.lock();
        if files.broken() {
            return Err(Error::Busy("the journal failed; a checkpoint must replace it first"));
        }
        self.flush(&mut files, time)
    }

    /// Writes what is queued for the checkpoint that is about to be published, even if the pair is an orphan: then
    /// the frames do not count as durable before [`mend`](Self::mend).
    pub(crate) fn sync_unmended(&self, time: u64) -> Result<u64> {
        let mut files = self.files.lock();
        if files.failed {
            return Err(Error::Busy("the journal failed while its checkpoint was being written"));
        }
        self.flush(&mut files, time)
    }

    /// Gives the number of the last frame queued, all of which are in the pair now.
    fn flush(&self, files: &mut Files, time: u64) -> Result<u64> {
        files.open()?;
        let (frames, next) = {
            let mut q = self.queue.lock();
            (q.take(), q.next)
        };
        if !frames.is_empty() {
            // The frames are in no queue now: whatever panics in here, they are lost to this pair.
            let make_room = || self.make_room(files, &frames, next);
            let room = catch_unwind(AssertUnwindSafe(make_room)).unwrap_or(Err(PANICKED));
            let written = match room {
                // Nothing was written: the pair is as good as it was, and the frames wait for room.
                Err(e) if e.is_no_space() => {
                    let mut q = self.queue.lock();
                    let newer = std::mem::replace(&mut q.frames, frames);
                    q.frames.extend(newer);
                    return Err(e);
                }
                Err(e) => Err(e),
                Ok(()) => {
                    let write = || self.write(files, &frames, next, time);
                    catch_unwind(AssertUnwindSafe(write)).unwrap_or(Err(PANICKED))
                }
            };
            if let Err(e) = written {
                files.failed = true;
                self.broken.store(true, Ordering::Release);
                return Err(e);
            }
        }
        if !files.orphan {
            self.durable.fetch_max(next - 1, Ordering::AcqRel);
            self.queue.lock().taken_since = None;
        }
        Ok(next - 1)
    }

    /// Sees to it that both files have blocks for these frames, giving up the reserve if the disk is full: it is
    /// there so that removes and reclaim go on, which make room.
    fn make_room(&self, files: &mut Files, frames: &[Frame], next: u64) -> Result<()> {
        if files.end >= self.max_file.load(Ordering::Relaxed) && !files.orphan {
            // Recovery reads one pair at a time, so their size bounds what it needs.
            let (seq, first) = (files.seq + 1, next - frames.len() as u64);
            match self.replace(files, seq, first, false) {
                // The old pair may still have blocks, and the reserve is for it.
                Err(e) if e.is_no_space() => {}
                other => other?,
            }
        }
        let need = files.end + (frames.len() * FRAME + frames.len().div_ceil(MAX_BATCH) * HEAD) as u64;
        if need <= files.allocated {
            return Ok(());
        }
        let want = need.next_multiple_of(self.step);
        let extend = || files.pair.iter().try_for_each(|(path, file)| file.allocate(want).at("extend", path));
        match extend() {
            Err(e) if e.is_no_space() && self.give_up_reserve(&e) => extend()?,
            other => other?,
        }
        files.allocated = want;
        Ok(())
    }

    /// Puts a new pair in the place of the current one.
    fn replace(&self, files: &mut Files, seq: u64, first: u64, orphan: bool) -> Result<()> {
        let head = FileHead { store: self.store, seq, open: self.open, first };
        *files = Files { orphan, ..create_pair(&*self.vfs, &self.dir, &head)? };
        self.len.store(files.end, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the blocks of the reserve back to the disk; says whether there were any.
    pub(crate) fn give_up_reserve(&self, why: &Error) -> bool {
        give_up_reserve(&*self.vfs, &self.dir, why)
    }

    /// Sets aside the reserve if it is missing and there is room for it, twice over.
    pub(crate) fn restore_reserve(&self) {
        let path = reserve(&self.dir);
        let room = self.vfs.space(&self.dir).is_ok_and(|s| s.free > 4 * RESERVE);
        if room && matches!(self.vfs.kind(&path), Ok(None)) {
            let made = self.vfs.open(&path, OpenMode::CreateNew).and_then(|f| f.allocate(RESERVE));
            if made.is_err() {
                let _ = self.vfs.remove_file(&path);
            }
        }
    }

    fn write(&self, files: &mut Files, frames: &[Frame], next: u64, time: u64) -> Result<()> {
        let mut first = next - frames.len() as u64;
        let seed = seed(&self.store, files.seq);
        let mut out = Vec::new();
        for chunk in frames.chunks(MAX_BATCH) {
            let head = BatchHead {
                count: chunk.len() as u32,
                first,
                durable: self.durable(),
                time,
                open: self.open,
            };
            encode_batch(&head, files.seq, seed, chunk, &mut out);
            first += chunk.len() as u64;
        }
        let end = files.end + out.len() as u64;
        // The files are open: they would take it where nobody will look for it again.
        self.vfs.still_there().at("write to", &self.dir)?;
        let start = Instant::now();
        for (path, file) in &files.pair {
            file.write_all_at(&out, files.end).at("append to", path)?;
        }
        for (path, file) in &files.pair {
            file.sync().at("sync", path)?;
        }
        self.latency.since(start);
        files.end = end;
        self.len.store(end, Ordering::Relaxed);
        self.written.fetch_add(2 * out.len() as u64, Ordering::Relaxed);
        self.written_ms.store(time, Ordering::Relaxed);
        if frames.iter().any(|f| !matches!(f, Frame::Time { .. })) {
            self.changes.fetch_add(out.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Starts a new pair of files, for a checkpoint. What is queued goes to the old pair first, unless that is
    /// broken: then the checkpoint covers it and it is dropped from the queue. Returns the new sequence number and
    /// the number of its first frame: every frame below is in the shards, or in the section that is about to put it
    /// there, when this returns.
    pub(crate) fn rotate(&self, time: u64) -> Result<(u64, u64)> {
        let mut files = self.files.lock();
        files.open()?;
        if !files.broken() {
            // A failure here breaks the journal, which the checkpoint is about to mend; without room the frames
            // stay queued and go to the new pair.
            let _ = self.flush(&mut files, time);
        }
        let broken = files.broken();
        let next = {
            let mut q = self.queue.lock();
            if broken {
                q.take();
            }
            q.next - q.frames.len() as u64
        };
        let seq = files.seq + 1;
        self.replace(&mut files, seq, next, broken)?;
        Ok((seq, next))
    }

    /// The checkpoint of the current pair was published: every frame up to `number` is in it or in a pair since,
    /// synced.
    pub(crate) fn mend(&self, number: u64) {
        let mut files = self.files.lock();
        files.orphan = false;
        // What was written while it was made.
        self.changes.store(files.end.saturating_sub(HEAD as u64), Ordering::Relaxed);
        self.durable.fetch_max(number, Ordering::AcqRel);
        self.broken.store(files.broken(), Ordering::Release);
        if !files.broken() {
            self.queue.lock().taken_since = None;
        }
    }

    /// The checkpoint `seq` failed before either copy of it was published. If its pair is an orphan nothing will
    /// ever be read from it; it goes, so that attempts on a failing disk leave no trail of files.
    pub(crate) fn discard_orphan(&self, seq: u64) {
        let mut files = self.files.lock();
        if files.orphan && files.seq == seq {
            for (path, _) in &files.pair {
                let _ = self.vfs.remove_file(path);
            }
            files.failed = true;
            files.seq = seq - 1;
        }
    }

    /// Lets go of the files; nothing is written from now on.
    pub(crate) fn close(&self) {
        let mut files = self.files.lock();
        files.closed = true;
        files.pair.clear();
    }

    /// Pairs of at most about this many bytes, for tests.
    #[cfg(test)]
    pub(crate) fn set_max_file(&self, bytes: u64) {
        self.max_file.store(bytes, Ordering::Relaxed);
    }
}

fn reserve(dir: &Path) -> PathBuf {
    dir.join("reserve")
}

fn give_up_reserve(vfs: &dyn Vfs, dir: &Path, why: &Error) -> bool {
    let given = vfs.remove_file(&reserve(dir)).is_ok();
    if given {
        warn_seldom!(error = %why, "the catalog's disk is full: its reserve is given up");
    }
    given
}

fn create_pair(vfs: &dyn Vfs, dir: &Path, head: &FileHead) -> Result<Files> {
    let bytes = head.encode();
    let mut pair = Vec::new();
    for copy in COPIES {
        let path = journal_path(dir, copy, head.seq);
        if vfs.kind(&path).at("look at", &path)?.is_some() {
            // Left by an attempt that failed before it was used.
            vfs.remove_file(&path).at("remove", &path)?;
        }
        let file = vfs.open(&path, OpenMode::CreateNew).at("create", &path)?;
        file.write_all_at(&bytes, 0).at("write", &path)?;
        file.sync().at("sync", &path)?;
        pair.push((path, file));
    }
    for copy in COPIES {
        let folder = dir.join(copy);
        vfs.sync_dir(&folder).at("sync", &folder)?;
    }
    Ok(Files {
        seq: head.seq,
        pair,
        end: HEAD as u64,
        allocated: HEAD as u64,
        failed: false,
        orphan: false,
        closed: false,
    })
}
