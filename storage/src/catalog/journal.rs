//! The journal: frames queued in order, written to two copies and synced in batches.
//!
//! Invariants:
//! - a frame is numbered and queued under its shard's lock, in the section that changes the durable place, so the
//!   order of numbers is the order of changes;
//! - both copies hold the same bytes at the same offsets, so a batch damaged in one is read from the other;
//! - `durable` is raised only when both copies are synced (or a checkpoint that contains the frames is published),
//!   and every batch names it: a gap at or below it is damage, above it a torn tail;
//! - a file whose write or sync failed is never written again: both copies are abandoned, and nothing that waits
//!   is acknowledged before a checkpoint with a new pair is published ([`Journal::broken`]).
//!
//! Lock order: shard, then files, then queue; nothing is locked while the queue is held.

use super::frame::{BatchHead, FRAME, FileHead, Frame, HEAD, MAX_BATCH, encode_batch, seed};
use crate::error::{Error, IoContext, Result};
use crate::vfs::{OpenMode, Vfs, VfsFile};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The two folders of the catalog.
pub(crate) const COPIES: [&str; 2] = ["a", "b"];
/// Journal files grow by this much at a time, so that syncs need not change their length.
const STEP: u64 = 1 << 20;
/// Bytes set aside on the catalog's disk: room for two steps of both copies.
const RESERVE: u64 = 4 * STEP;

/// The path of a journal file.
pub(crate) fn journal_path(dir: &Path, copy: &str, seq: u64) -> PathBuf {
    dir.join(copy).join(format!("journal-{seq:016x}"))
}

#[derive(Debug)]
struct Queue {
    frames: Vec<Frame>,
    /// Number of the next frame to be queued; the queue holds the `frames.len()` before it.
    next: u64,
}

#[derive(Debug)]
struct Files {
    seq: u64,
    pair: Vec<(PathBuf, Arc<dyn VfsFile>)>,
    /// Where the next batch goes.
    end: u64,
    allocated: u64,
}

/// The journal of an open store.
#[derive(Debug)]
pub(crate) struct Journal {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    store: [u8; 16],
    open: u64,
    queue: Mutex<Queue>,
    files: Mutex<Files>,
    durable: AtomicU64,
    broken: AtomicBool,
    written: AtomicU64,
}

impl Journal {
    /// A new pair of files with this sequence number, whose first frame will be `next`. When this returns, both
    /// files and their names are durable. A crash before leaves empty files, which recovery skips.
    pub(crate) fn create(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        store: [u8; 16],
        open: u64,
        seq: u64,
        next: u64,
    ) -> Result<Journal> {
        let head = FileHead { store, seq, open, first: next };
        let files = create_pair(&*vfs, dir, &head)?;
        Ok(Journal {
            vfs,
            dir: dir.to_path_buf(),
            store,
            open,
            queue: Mutex::new(Queue { frames: Vec::new(), next }),
            files: Mutex::new(files),
            durable: AtomicU64::new(next.saturating_sub(1)),
            broken: AtomicBool::new(false),
            written: AtomicU64::new(0),
        })
    }

    /// Numbers and queues a frame. The caller holds the lock of the shard that the frame is about.
    pub(crate) fn push(&self, frame: Frame) -> u64 {
        let mut q = self.queue.lock();
        q.frames.push(frame);
        q.next += 1;
        q.next - 1
    }

    /// Frames queued and not yet written.
    pub(crate) fn queued(&self) -> usize {
        self.queue.lock().frames.len()
    }

    /// Frames up to and including this number are durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Whether a copy failed, so that only a checkpoint makes anything durable again.
    pub(crate) fn broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Bytes in one copy of the newest file.
    pub(crate) fn len(&self) -> u64 {
        self.files.lock().end
    }

    /// Bytes written to both copies since the store was opened.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Writes and syncs what is queued. On `Ok` every frame queued before the call is durable. On an error the
    /// journal is broken; the frames that were queued are covered by the next checkpoint.
    pub(crate) fn sync(&self, time: u64) -> Result<u64> {
        let mut files = self.files.lock();
        if self.broken() {
            return Err(Error::Busy("the journal failed; a checkpoint must replace it first"));
        }
        let (frames, next) = {
            let mut q = self.queue.lock();
            (std::mem::take(&mut q.frames), q.next)
        };
        if frames.is_empty() {
            return Ok(self.durable());
        }
        if let Err(e) = self.make_room(&mut files, frames.len()) {
            // Nothing was written: the pair is as good as it was, and the frames wait for room.
            let mut q = self.queue.lock();
            let newer = std::mem::replace(&mut q.frames, frames);
            q.frames.extend(newer);
            return Err(e);
        }
        match self.write(&mut files, &frames, next, time) {
            Ok(()) => {
                self.durable.fetch_max(next - 1, Ordering::AcqRel);
                Ok(next - 1)
            }
            Err(e) => {
                self.broken.store(true, Ordering::Release);
                Err(e)
            }
        }
    }

    /// Sees to it that both files have blocks for this many frames, giving up the reserve if the disk is full: it
    /// is there so that removes and reclaim go on, which make room.
    fn make_room(&self, files: &mut Files, frames: usize) -> Result<()> {
        let need = files.end + (frames * FRAME + frames.div_ceil(MAX_BATCH) * HEAD) as u64;
        if need <= files.allocated {
            return Ok(());
        }
        let want = need.next_multiple_of(STEP);
        let extend = || files.pair.iter().try_for_each(|(path, file)| file.allocate(want).at("extend", path));
        match extend() {
            Err(e) if e.is_no_space() && self.vfs.remove_file(&self.reserve()).is_ok() => {
                tracing::warn!(error = %e, "the catalog's disk is full: its reserve is given up");
                extend()?;
            }
            other => other?,
        }
        files.allocated = want;
        Ok(())
    }

    fn reserve(&self) -> PathBuf {
        self.dir.join("reserve")
    }

    /// Sets aside the reserve if it is missing and there is room for it, twice over.
    pub(crate) fn restore_reserve(&self) {
        let path = self.reserve();
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
        for (path, file) in &files.pair {
            file.write_all_at(&out, files.end).at("append to", path)?;
        }
        for (path, file) in &files.pair {
            file.sync().at("sync", path)?;
        }
        files.end = end;
        self.written.fetch_add(2 * out.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Starts a new pair of files, for a checkpoint. What is queued goes to the old pair first, unless that is
    /// broken: then the checkpoint covers it and it is dropped from the queue. Returns the new sequence number and
    /// the number of its first frame: every frame below is in the shards when this returns.
    pub(crate) fn rotate(&self, time: u64) -> Result<(u64, u64)> {
        if !self.broken() {
            // A failure here breaks the journal, which the checkpoint is about to mend.
            let _ = self.sync(time);
        }
        let mut files = self.files.lock();
        let next = {
            let mut q = self.queue.lock();
            if self.broken() {
                q.frames.clear();
            }
            // Frames queued since the sync above go to the new file: its first frame is the first of them.
            q.next - q.frames.len() as u64
        };
        let seq = files.seq + 1;
        let head = FileHead { store: self.store, seq, open: self.open, first: next };
        *files = create_pair(&*self.vfs, &self.dir, &head)?;
        Ok((seq, next))
    }

    /// Writes what is queued to the new pair although the journal is broken: for the checkpoint that mends it. The
    /// frames do not count as durable before [`mend`](Self::mend).
    pub(crate) fn sync_unmended(&self, time: u64) -> Result<u64> {
        let mut files = self.files.lock();
        let (frames, next) = {
            let mut q = self.queue.lock();
            (std::mem::take(&mut q.frames), q.next)
        };
        if frames.is_empty() {
            return Ok(next - 1);
        }
        let written = self
            .make_room(&mut files, frames.len())
            .and_then(|()| self.write(&mut files, &frames, next, time));
        if let Err(e) = written {
            self.broken.store(true, Ordering::Release);
            return Err(e);
        }
        Ok(next - 1)
    }

    /// A checkpoint that contains every frame up to `number` was published.
    pub(crate) fn mend(&self, number: u64) {
        self.durable.fetch_max(number, Ordering::AcqRel);
        self.broken.store(false, Ordering::Release);
    }
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
    Ok(Files { seq: head.seq, pair, end: HEAD as u64, allocated: HEAD as u64 })
}
