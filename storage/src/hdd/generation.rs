//! A generation: value files, and the index that finds blocks in them.
//!
//! Reading goes: header of the block in the cache of headers → one `pread` of the record; else extent from the
//! index → one `pread` of the extent (about a block) → the record in it. Whatever the index said, a record is
//! returned only if its header, key and payload verify under the generation's id and it carries the record number
//! asked for.
//!
//! The index is in one of these states, and a reader waits (at most `open_wait`) only in the last:
//! - in RAM: while the generation is appended to; after a rebuild; while sled is out of favour;
//! - behind the fence: sealed, checked, open;
//! - neither: the keeper is asked to open or rebuild it.
//!
//! A fault of sled, or an extent from it that leads to no verifiable block, makes sled *distrusted* here: the
//! generation is scanned once, and the index of that scan, in RAM, has the last word while the process lives. Only then is a
//! record that is not found declared damaged.

use super::block::{self, Block, Spot};
use super::core::{Core, Job};
use super::fence::{Fault, Fence};
use super::index::{self, Extent};
use super::scan::{self, Scan};
use super::seal::{self, Seal};
use super::space::Dir;
use super::value;
use crate::container::{Container, Listed, Purpose, RawRecord};
use crate::error::{Error, IoContext, Result};
use crate::item::{Head, Item};
use crate::record::{self, Header};
use crate::types::ContainerNo;
use crate::vfs::{OpenMode, VfsFile, replace_small};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Most bytes that go to the quarantine for one record.
const MAX_RAW: u64 = 64 << 20;
/// Enough for a block header of one record, a record header and the longest key.
const HEAD_PREFIX: u64 = 40 << 10;

/// An index in RAM.
#[derive(Debug, Clone, Default)]
pub(super) struct RamIndex {
    /// By first record number.
    pub extents: Vec<Extent>,
    /// Whether part of the value files could not be read when it was built.
    pub partial: bool,
}

/// One value file as readers see it.
#[derive(Debug, Clone, Copy)]
struct Value {
    /// Readable bytes: what was synced, or the length found at opening.
    end: u64,
    /// Bytes on disk.
    allocated: u64,
}

#[derive(Debug, Default)]
struct State {
    ram: Option<Arc<RamIndex>>,
    disk: Option<(Arc<Fence>, Arc<Seal>)>,
    /// The keeper has been asked.
    queued: bool,
    /// How often the keeper failed to make an index, and why it did the last time.
    failures: u64,
    failure: Option<(io::ErrorKind, String)>,
    used: u64,
}

/// A generation.
pub(super) struct Generation {
    pub core: Arc<Core>,
    pub dir: Arc<Dir>,
    pub no: ContainerNo,
    pub id: u64,
    pub created_ms: u64,
    pub path: PathBuf,
    /// Held by whoever opens, closes, writes or deletes the index: the keeper, or a drop of the generation.
    pub upkeep: Mutex<()>,
    values: RwLock<BTreeMap<u16, Value>>,
    state: Mutex<State>,
    changed: Condvar,
    value_bytes: AtomicU64,
    index_bytes: AtomicU64,
    distrusted: AtomicBool,
    dropped: AtomicBool,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("id", &self.id).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        // What a dropped generation occupied was subtracted when its files went.
        if !self.dropped.load(Ordering::Acquire) {
            self.free();
        }
    }
}

/// What an extent led to.
struct Fetched {
    path: PathBuf,
    /// Where in the file the buffer begins.
    offset: u64,
    buffer: Vec<u8>,
    /// Where in the buffer the record begins and ends.
    start: usize,
    end: usize,
}

/// Why an extent led to nothing.
enum Miss {
    /// The bytes could not be read.
    Error(Error),
    /// The record is not there; damage, or the index is wrong.
    Absent(Error),
}

impl Generation {
    /// A generation without value files; `index_bytes` is what its index occupies or may come to, which the
    /// caller has charged to the directory.
    pub fn new(
        core: Arc<Core>,
        dir: Arc<Dir>,
        no: ContainerNo,
        id: u64,
        created_ms: u64,
        path: PathBuf,
        index_bytes: u64,
    ) -> Generation {
        Generation {
            core,
            dir,
            no,
            id,
            created_ms,
            path,
            upkeep: Mutex::new(()),
            values: RwLock::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            value_bytes: AtomicU64::new(0),
            index_bytes: AtomicU64::new(index_bytes),
            distrusted: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
        }
    }

    /// A value file can be read up to `end`; what it occupies was charged.
    pub fn set_end(&self, no: u16, end: u64) {
        if let Some(value) = self.values.write().get_mut(&no) {
            value.end = end;
        }
    }

    /// Enters a value file that can be read up to `end` and occupies `allocated` bytes, which the caller has
    /// charged to the directory.
    pub fn add_value(&self, no: u16, end: u64, allocated: u64) {
        self.values.write().insert(no, Value { end, allocated });
        self.value_bytes.fetch_add(allocated, Ordering::AcqRel);
    }

    /// Charges the growth of a value file to `len` bytes.
    pub fn claim_value(&self, no: u16, len: u64, purpose: Purpose) -> Result<()> {
        let mut values = self.values.write();
        let Some(value) = values.get_mut(&no) else { return Ok(()) };
        let more = len.saturating_sub(value.allocated);
        self.dir.claim(more, purpose)?;
        value.allocated += more;
        self.value_bytes.fetch_add(more, Ordering::AcqRel);
        Ok(())
    }

    /// Takes part of a charge back: the value file was not allocated beyond `len`.
    pub fn unclaim_value(&self, no: u16, len: u64) {
        if let Some(value) = self.values.write().get_mut(&no) {
            let less = value.allocated.saturating_sub(len);
            value.allocated -= less;
            self.value_bytes.fetch_sub(less, Ordering::AcqRel);
            self.dir.change(less, 0);
        }
    }

    /// Charges an index that may come to occupy `bytes`.
    pub fn claim_index(&self, bytes: u64) -> Result<()> {
        let more = bytes.saturating_sub(self.index_bytes());
        self.dir.claim(more, Purpose::Reclaim)?;
        self.index_bytes.fetch_add(more, Ordering::AcqRel);
        Ok(())
    }

    /// The index occupies this many bytes.
    pub fn set_index_bytes(&self, bytes: u64) {
        self.dir.change(self.index_bytes.swap(bytes, Ordering::AcqRel), bytes);
    }

    /// Bytes charged for the index.
    pub fn index_bytes(&self) -> u64 {
        self.index_bytes.load(Ordering::Acquire)
    }

    /// Value files and their readable lengths.
    pub fn values(&self) -> Vec<(u16, u64)> {
        self.values.read().iter().map(|(no, v)| (*no, v.end)).collect()
    }

    fn free(&self) {
        self.dir.change(self.value_bytes.swap(0, Ordering::AcqRel), 0);
        self.set_index_bytes(0);
    }

    fn value_path(&self, no: u16) -> PathBuf {
        self.path.join(value::name(no))
    }

    fn file(&self, no: u16) -> Result<Arc<dyn VfsFile>> {
        if self.dropped() {
            return Err(Error::Gone(self.no));
        }
        let path = self.value_path(no);
        let open = || self.core.vfs.open(&path, OpenMode::Read).at("open", &path);
        let file = self.core.files.get((self.id, no), open);
        if self.dropped() {
            self.core.files.forget(self.id);
            return Err(Error::Gone(self.no));
        }
        file
    }

    // The index.

    /// Begins an index in RAM, for a generation about to be appended to.
    pub fn begin_ram(&self) {
        self.state.lock().ram = Some(Arc::default());
    }

    /// Enters blocks that are on stable storage.
    pub fn enter(&self, extents: &[Extent]) {
        let mut state = self.state.lock();
        if let Some(ram) = &mut state.ram {
            let ram = Arc::make_mut(ram);
            extents.iter().for_each(|e| index::push(&mut ram.extents, *e, self.core.extent_max()));
        }
    }

    /// The index in RAM.
    pub fn ram(&self) -> Option<Arc<RamIndex>> {
        self.state.lock().ram.clone()
    }

    /// Bytes of the index in RAM.
    pub fn ram_bytes(&self) -> u64 {
        self.ram().map_or(0, |r| (r.extents.capacity() * size_of::<Extent>()) as u64)
    }

    /// Installs an index in RAM.
    pub fn set_ram(&self, ram: RamIndex) {
        let mut state = self.state.lock();
        state.ram = Some(Arc::new(ram));
        self.settle(&mut state);
    }

    /// Forgets the index in RAM.
    pub fn drop_ram(&self) {
        self.state.lock().ram = None;
    }

    /// Installs an open database; an index in RAM is no longer needed.
    pub fn set_disk(&self, fence: Fence, seal: Seal) {
        let mut state = self.state.lock();
        state.disk = Some((Arc::new(fence), Arc::new(seal)));
        state.ram = None;
        state.used = self.core.tick();
        self.settle(&mut state);
    }

    /// Takes the open database away.
    pub fn take_disk(&self) -> Option<(Arc<Fence>, Arc<Seal>)> {
        self.state.lock().disk.take()
    }

    /// Whether a lookup needs nothing more.
    pub fn ready(&self) -> bool {
        let state = self.state.lock();
        state.ram.is_some() || state.disk.is_some()
    }

    /// Whether a database is open.
    pub fn is_open(&self) -> bool {
        self.state.lock().disk.is_some()
    }

    /// When it was last looked up in.
    pub fn used(&self) -> u64 {
        self.state.lock().used
    }

    /// The keeper could not make an index.
    pub fn set_failure(&self, e: &Error) {
        let kind = match e {
            Error::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        let mut state = self.state.lock();
        state.failures += 1;
        state.failure = Some((kind, e.to_string()));
        self.settle(&mut state);
    }

    /// Wakes those who wait.
    pub fn wake(&self) {
        self.settle(&mut self.state.lock());
    }

    fn settle(&self, state: &mut MutexGuard<'_, State>) {
        state.queued = false;
        self.changed.notify_all();
    }

    /// Whether sled led astray here.
    pub fn distrusted(&self) -> bool {
        self.distrusted.load(Ordering::Acquire)
    }

    /// Whether the generation's files are gone.
    pub fn dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    /// Where a record may be, and whether an index in RAM (as against sled) says so.
    fn lookup(self: &Arc<Self>, record: u32) -> Result<(Option<Extent>, bool)> {
        let until = Instant::now() + self.core.config.open_wait;
        let mut state = self.state.lock();
        let failures = state.failures;
        loop {
            if self.dropped() {
                return Err(Error::Gone(self.no));
            }
            state.used = self.core.tick();
            if let Some(ram) = &state.ram {
                let found = index::find(&ram.extents, record);
                if found.is_none() && ram.partial {
                    let why = "part of the generation cannot be read";
                    return Err(Error::io("read", &self.path, io::Error::other(why)));
                }
                return Ok((found, true));
            }
            let fence = state.disk.as_ref().map(|(fence, _)| Arc::clone(fence));
            if let Some(fence) = fence.filter(|_| !self.distrusted()) {
                let answer = MutexGuard::unlocked(&mut state, || fence.lookup(record));
                match answer {
                    Ok(found) => return Ok((found.filter(|e| e.holds(record)), false)),
                    // Closed in the meantime to make room for another: ask again.
                    Err(Fault::Abandoned)
                        if state.disk.as_ref().is_none_or(|(f, _)| !Arc::ptr_eq(f, &fence)) => {}
                    Err(fault) => {
                        if state.disk.as_ref().is_some_and(|(f, _)| Arc::ptr_eq(f, &fence)) {
                            state.disk = None;
                            MutexGuard::unlocked(&mut state, || self.give_up(&fence, &fault));
                        }
                    }
                }
                continue;
            }
            if state.failures != failures
                && let Some((kind, why)) = state.failure.clone()
            {
                return Err(Error::io("index", &self.path, io::Error::new(kind, why)));
            }
            if !state.queued {
                state.queued = true;
                self.core.jobs.push(Job::Load(Arc::clone(self)));
            }
            if self.core.jobs.stopping() || self.changed.wait_until(&mut state, until).timed_out() {
                return Err(Error::Busy("a generation of the HDD tier is still opening"));
            }
        }
    }

    /// Gives a database up, and leaves word for the next opening to move it to the quarantine.
    pub fn give_up(&self, fence: &Fence, fault: &Fault) {
        fence.abandon();
        self.mark_abandoned(fence.path(), fault);
    }

    /// Notes a fault, and leaves word for the next opening. The generation is served from RAM from now on.
    pub fn mark_abandoned(&self, index: &std::path::Path, fault: &Fault) {
        self.distrusted.store(true, Ordering::Release);
        self.core.fault(index, fault);
        let mut marker = index.as_os_str().to_owned();
        marker.push(".abandoned");
        let marker = PathBuf::from(marker);
        if let Err(e) = replace_small(&*self.core.vfs, &marker, fault.to_string().as_bytes()) {
            tracing::warn!(path = %marker.display(), error = %e, "cannot leave word of a database given up");
        }
    }

    /// Builds an index from the value files.
    pub fn rebuild(&self) -> Result<RamIndex> {
        let mut ram = RamIndex::default();
        for (no, end) in self.values() {
            let mut scan = Scan::new(self.file(no)?, self.id, no, end);
            let keep_on = || !self.core.jobs.stopping() && !self.dropped();
            let whole = scan::extents(&mut scan, self.core.extent_max(), &mut ram.extents, &keep_on);
            if !keep_on() {
                return Err(Error::Busy("the HDD tier is closing"));
            }
            ram.partial |= !whole;
        }
        ram.extents.sort_by_key(|e| e.first);
        ram.extents.dedup_by_key(|e| e.first);
        self.core.rebuilt.fetch_add(1, Ordering::Relaxed);
        tracing::info!(path = %self.path.display(), extents = ram.extents.len(), "HDD index rebuilt");
        Ok(ram)
    }

    // Records.

    /// The bytes of a record, and of what stands around it; `whole` or its head at least.
    fn fetch(self: &Arc<Self>, record: u32, whole: bool) -> Result<Fetched> {
        if let Some(block) = self.core.tables.get(self.id, record)
            && let Ok(fetched) = self.fetch_known(&block, record, whole)
        {
            return Ok(fetched);
        }
        loop {
            let (extent, certain) = self.lookup(record)?;
            let missed = match extent {
                Some(extent) => match self.fetch_extent(extent, record, whole) {
                    Ok(fetched) => return Ok(fetched),
                    Err(Miss::Error(e)) => return Err(e),
                    Err(Miss::Absent(e)) => e,
                },
                None => {
                    Error::corrupt(&self.path, 0, format!("record {record} is in none of the value files"))
                }
            };
            if certain {
                return Err(missed);
            }
            tracing::warn!(path = %self.path.display(), record, "HDD index led astray; it is rebuilt");
            self.distrusted.store(true, Ordering::Release);
        }
    }

    /// A record of a block whose header is known: one read of what is wanted.
    fn fetch_known(&self, block: &Block, record: u32, whole: bool) -> Result<Fetched> {
        let path = self.value_path(block.spot.file);
        let (start, end) =
            block.record(record).ok_or_else(|| Error::corrupt(&path, block.spot.offset, "no such record"))?;
        let len = if whole { end - start } else { (end - start).min(HEAD_PREFIX) };
        let offset = block.spot.offset + start;
        let buffer = self.pread(block.spot.file, &path, offset, len)?;
        let end = buffer.len();
        Ok(Fetched { path, offset, buffer, start: 0, end })
    }

    fn pread(&self, no: u16, path: &std::path::Path, offset: u64, len: u64) -> Result<Vec<u8>> {
        let file = self.file(no)?;
        let mut buffer = vec![0; usize::try_from(len).unwrap_or(0)];
        let n = file.read_at(&mut buffer, offset).at("read", path)?;
        buffer.truncate(n);
        Ok(buffer)
    }

    fn fetch_extent(&self, extent: Extent, record: u32, whole: bool) -> Result<Fetched, Miss> {
        let path = self.value_path(extent.file);
        let absent = |what: &str| Miss::Absent(Error::corrupt(&path, extent.offset, what));
        let end = self.values.read().get(&extent.file).map_or(0, |v| v.end);
        let inside = extent.offset >= value::DATA
            && extent.offset % record::ALIGN as u64 == 0
            && extent.offset.checked_add(extent.len).is_some_and(|e| e <= end);
        if !inside {
            return Err(absent("the index points outside of the value file"));
        }
        let small = extent.len <= 2 * self.core.extent_max();
        let len = if whole || small { extent.len } else { extent.len.min(HEAD_PREFIX) };
        let buffer = self.pread(extent.file, &path, extent.offset, len).map_err(Miss::Error)?;
        let spot = Spot { container: self.id, file: extent.file, offset: extent.offset };
        match self.find_in(&buffer, spot, record) {
            Some((start, end)) => Ok(Fetched { path, offset: extent.offset, buffer, start, end }),
            None => Err(absent(&format!("record {record} is not where it was written"))),
        }
    }

    /// Where in a buffer read at `spot` a record is: by the blocks in it, and where none verifies by itself.
    fn find_in(&self, buffer: &[u8], spot: Spot, record: u32) -> Option<(usize, usize)> {
        let mut at = 0;
        while let Some(rest) = buffer.get(at..).filter(|r| r.len() >= record::HEADER) {
            let here = Spot { offset: spot.offset + at as u64, ..spot };
            let step = if !rest.starts_with(b"TC") {
                record::ALIGN
            } else if let Ok(block) = block::parse(rest, here) {
                if let Some((start, end)) = block.record(record) {
                    self.core.tables.put(block);
                    let start = at.saturating_add(usize::try_from(start).ok()?);
                    let end = at.saturating_add(usize::try_from(end).ok()?).min(buffer.len());
                    return (start < end).then_some((start, end));
                }
                usize::try_from(block.len).ok()?
            } else {
                match record::parse_header(rest, self.id) {
                    Ok(h) if h.ordinal == record => {
                        let end = at.saturating_add(usize::try_from(h.size()).ok()?);
                        return Some((at, end.min(buffer.len())));
                    }
                    Ok(h) => usize::try_from(h.size()).ok()?,
                    Err(_) => record::ALIGN,
                }
            };
            at = at.saturating_add(step);
        }
        None
    }

    fn header(&self, fetched: &Fetched, record: u32) -> Result<Header> {
        let offset = fetched.offset + fetched.start as u64;
        let damaged = |what| Error::corrupt(&fetched.path, offset, what);
        let bytes = fetched.buffer.get(fetched.start..fetched.end).unwrap_or_default();
        let header = record::parse_header(bytes, self.id).map_err(damaged)?;
        if header.ordinal != record {
            return Err(damaged("another record stands here"));
        }
        Ok(header)
    }

    // The end.

    /// No reader gets anything from now on. The caller holds `upkeep`.
    pub fn retire(&self) {
        self.dropped.store(true, Ordering::Release);
        self.core.files.forget(self.id);
        self.core.tables.forget(self.id);
        if let Some((fence, _)) = self.take_disk()
            && let Err(fault) = fence.close()
        {
            self.core.fault(fence.path(), &fault);
        }
        self.drop_ram();
        self.wake();
    }

    /// The files are gone.
    pub fn freed(&self) {
        self.free();
    }

    /// Removes index directories other than `keep`, but for those that were given up.
    pub fn remove_old_indexes(&self, keep: Option<u32>) {
        let vfs = &self.core.vfs;
        let Ok(entries) = vfs.read_dir(&self.path) else { return };
        for entry in &entries {
            let Some(no) = seal::index_number(&entry.name) else { continue };
            let marker = format!("{}.abandoned", entry.name);
            if Some(no) != keep && !entries.iter().any(|e| e.name == marker) {
                let path = self.path.join(&entry.name);
                if let Err(e) = vfs.remove_dir_all(&path) {
                    tracing::warn!(path = %path.display(), error = %e, "cannot remove an old HDD index");
                }
            }
        }
    }
}

/// A generation as the table of containers holds it.
#[derive(Debug)]
pub(super) struct Handle(pub Arc<Generation>);

impl Container for Handle {
    fn read(&self, position: u32) -> Result<Item> {
        let fetched = self.0.fetch(position, true)?;
        let header = self.0.header(&fetched, position)?;
        let offset = fetched.offset + fetched.start as u64;
        let damaged = |what| Error::corrupt(&fetched.path, offset, what);
        let start = fetched.start + header.payload_at();
        let end = start + header.head.stored_len as usize;
        let payload = fetched.buffer.get(start..end.min(fetched.end)).unwrap_or_default();
        header.verify_payload(payload).map_err(damaged)?;
        // A payload that is most of what was read takes the buffer over; a small one does not pin a block.
        let payload = if payload.len() >= fetched.buffer.len() / 2 {
            Bytes::from(fetched.buffer).slice(start..end)
        } else {
            Bytes::copy_from_slice(payload)
        };
        Ok(header.into_item(payload))
    }

    fn head(&self, position: u32) -> Result<Head> {
        let fetched = self.0.fetch(position, false)?;
        self.0.header(&fetched, position).map(|h| h.head)
    }

    fn list(&self) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for (no, end) in self.0.values() {
            let mut scan = Scan::new(self.0.file(no)?, self.0.id, no, end);
            scan::list(&mut scan, &mut listed);
            if scan.refused() {
                tracing::warn!(path = %self.0.path.display(), file = no, "part of a value file cannot be read");
            }
        }
        listed.sort_by_key(|l| l.position);
        listed.dedup_by_key(|l| l.position);
        Ok(listed)
    }

    fn raw(&self, position: u32) -> Option<RawRecord> {
        let generation = &self.0;
        if let Ok(fetched) = generation.fetch(position, true) {
            let end = fetched.end.min(fetched.start.saturating_add(MAX_RAW as usize));
            let bytes = fetched.buffer.get(fetched.start..end)?.to_vec();
            let offset = fetched.offset + fetched.start as u64;
            return Some(RawRecord { path: fetched.path, offset, bytes });
        }
        // Nothing verifies: the whole stretch in which the record was.
        let extent = generation.lookup(position).ok()?.0?;
        let path = generation.value_path(extent.file);
        let bytes = generation.pread(extent.file, &path, extent.offset, extent.len.min(MAX_RAW)).ok()?;
        Some(RawRecord { path, offset: extent.offset, bytes })
    }

    fn occupied(&self) -> u64 {
        self.0.value_bytes.load(Ordering::Acquire) + self.0.index_bytes()
    }
}
