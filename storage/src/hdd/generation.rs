//! A generation: value files, and the index that finds blocks in them.
//!
//! The index is in one of these states, and a reader waits (at most `open_wait`) only in the last:
//! - in RAM: while the generation is appended to; after a rebuild; while sled is out of favour. (Who asks it for what it
//!   lacks, because part of the generation could not be read, waits too when it is built again for that);
//! - behind the fence: sealed, checked, open;
//! - neither: the keeper is asked to open or rebuild it.
//!
//! A fault of sled, or an extent from it that leads to no verifiable block, makes sled *distrusted* here: the
//! generation is scanned once, and the index of that scan, in RAM, has the last word while the process lives. Only then is a
//! record that is not found declared damaged.
//!
//! Two things are changed on disk here, and nothing depends on either. Index directories that no seal names are
//! removed: a crash leaves some of them. Beside an index that was given up a marker is put, so that the next opening
//! moves it to the quarantine: a crash before it leaves an index that the seal judges.

use super::core::{Core, Job};
use super::fence::{Fault, Fence};
use super::index::{self, Extent};
use super::scan::{self, Found, Scan};
use super::seal::{self, Seal};
use super::value;
use crate::container::Purpose;
use crate::error::{Error, Result};
use crate::tierdir::Dir;
use crate::types::ContainerNo;
use crate::vfs::{VfsFile, replace_small};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// An index in RAM.
#[derive(Debug, Clone, Default)]
pub(super) struct RamIndex {
    /// By first record number.
    pub extents: Vec<Extent>,
    /// Whether part of the value files could not be read when it was built.
    pub partial: bool,
}

/// An index of which a part is missing is built again, if it is asked for what is not in it, after so many milliseconds:
/// the disk may be back. No sooner, for a whole generation is read for that.
const PARTIAL_REST_MS: u64 = 60_000;
/// Nor before so many times as long as building it took: a disk that is dying takes long, and the keeper, which other
/// generations need too, would do nothing else.
const PARTIAL_REST: u64 = 8;
/// Where no value file could be opened, nothing was read: so many milliseconds are enough.
const FAILED_REST_MS: u64 = 1_000;
/// At most, however long an attempt took: the disk may have been replaced since.
const LONGEST_REST_MS: u64 = 86_400_000;

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
    /// Until when, in milliseconds since boot, no index is built again after one of which a part is missing, or none at
    /// all. It is not the index's own: one that is let go of, to make room for others, is no sooner built again.
    again_ms: u64,
    /// When somebody said that the disk is back, by the clock that builds are measured by: an index that was begun before
    /// says nothing of what can be read since.
    ended_ms: Option<u64>,
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
    /// The directory could not be listed, so there may be value files that are not known of.
    unlisted: AtomicBool,
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
            unlisted: AtomicBool::new(false),
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

    /// Not all value files may be known: what is not found is unreachable, not lost.
    pub fn set_unlisted(&self) {
        self.unlisted.store(true, Ordering::Release);
    }

    /// Charges the growth of a value file to `len` bytes.
    pub fn claim_value(&self, no: u16, len: u64, purpose: Purpose) -> Result<()> {
        // Only the writer changes what is allocated, so asking the file system needs no lock that readers take.
        let allocated = self.values.read().get(&no).map_or(0, |v| v.allocated);
        let more = len.saturating_sub(allocated);
        self.dir.claim(more, purpose)?;
        if let Some(value) = self.values.write().get_mut(&no) {
            value.allocated += more;
        }
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

    /// The files are gone, or others count them from now on.
    pub fn free(&self) {
        self.dir.change(self.value_bytes.swap(0, Ordering::AcqRel), 0);
        self.set_index_bytes(0);
    }

    /// The path of a value file.
    pub fn value_path(&self, no: u16) -> PathBuf {
        self.path.join(value::name(no))
    }

    /// A value file, open to read; `Gone` once the generation is dropped.
    pub fn file(&self, no: u16) -> Result<Arc<dyn VfsFile>> {
        if self.dropped() {
            return Err(Error::Gone(self.no));
        }
        let (core, path) = (&self.core, || self.value_path(no));
        core.files.open((self.id, no), self.no, &self.dropped, &*self.dir.vfs, path)
    }

    /// Keeps no file of it open.
    fn let_go_of_files(&self) {
        self.core.files.retain(|(id, _)| *id != self.id);
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

    /// Installs an index in RAM that was begun to be built at that time ([`Clock::awake_ms`](crate::clock::Clock::awake_ms)).
    /// What the disk gave once is right for ever: one of which a part is missing is added to the one before it.
    pub fn set_ram(&self, mut ram: RamIndex, begun_ms: u64) {
        let mut state = self.state.lock();
        if let Some(old) = state.ram.take_if(|_| ram.partial) {
            let partial = old.partial;
            ram = RamIndex { extents: index::union(&old.extents, &ram.extents), partial };
        }
        state.failure = None;
        state.again_ms = if ram.partial { self.rest_after(&mut state, begun_ms, PARTIAL_REST_MS) } else { 0 };
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
        state.again_ms = 0;
        state.used = self.core.tick();
        self.settle(&mut state);
    }

    /// Takes the open database away.
    pub fn take_disk(&self) -> Option<(Arc<Fence>, Arc<Seal>)> {
        self.state.lock().disk.take()
    }

    /// Whether a lookup needs nothing more, or gets nothing more for now.
    pub fn ready(&self) -> bool {
        let state = self.state.lock();
        let ram = state.ram.as_ref().is_some_and(|ram| !ram.partial);
        ram || self.rests(&state) || (state.disk.is_some() && self.trusts_sled())
    }

    /// Whether no index is built for now.
    fn rests(&self, state: &State) -> bool {
        self.core.clock.boot_ms() < state.again_ms
    }

    /// Until when no index is built again after one that was begun at that time and has failed just now.
    fn rest_after(&self, state: &mut State, begun_ms: u64, least: u64) -> u64 {
        if state.ended_ms.take().is_some_and(|ended| begun_ms <= ended) {
            return 0;
        }
        // A machine that sleeps builds nothing, so its sleep is no part of what the build took; but it is part of the rest.
        let clock = &self.core.clock;
        let rest = clock.awake_ms().saturating_sub(begun_ms).saturating_mul(PARTIAL_REST);
        clock.boot_ms().saturating_add(rest.clamp(least, LONGEST_REST_MS))
    }

    /// An index may be built again at once: somebody says that the disk is back. One that is being built may end
    /// without what can be read since, and is followed by no rest either.
    pub fn end_rest(&self) {
        let mut state = self.state.lock();
        state.again_ms = 0;
        state.ended_ms = Some(self.core.clock.awake_ms());
    }

    /// Whether an open database may be asked.
    fn trusts_sled(&self) -> bool {
        !self.distrusted() && self.core.sled_in_favour()
    }

    /// Whether a database is open.
    pub fn is_open(&self) -> bool {
        self.state.lock().disk.is_some()
    }

    /// When it was last looked up in.
    pub fn used(&self) -> u64 {
        self.state.lock().used
    }

    /// The keeper could not make an index, which it began at that time, as it is given to [`set_ram`](Self::set_ram).
    pub fn set_failure(&self, e: &Error, begun_ms: u64) {
        let kind = match e {
            Error::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        let mut state = self.state.lock();
        state.failures += 1;
        state.failure = Some((kind, e.to_string()));
        state.again_ms = self.rest_after(&mut state, begun_ms, FAILED_REST_MS);
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

    /// Sled led astray here: it is not asked again.
    pub fn distrust(&self) {
        self.distrusted.store(true, Ordering::Release);
    }

    /// The readable length of a value file; 0 if there is none.
    pub fn end(&self, no: u16) -> u64 {
        self.values.read().get(&no).map_or(0, |v| v.end)
    }

    /// Bytes on disk, the index included.
    pub fn occupied(&self) -> u64 {
        self.value_bytes.load(Ordering::Acquire) + self.index_bytes()
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
    pub fn lookup(self: &Arc<Self>, record: u32) -> Result<(Option<Extent>, bool)> {
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
                if found.is_some() || !ram.partial {
                    return Ok((found, true));
                }
                if self.rests(&state) {
                    return Err(self.cannot_read_part());
                }
                // The keeper builds it again. What it has is found in it meanwhile.
            }
            let fence = state.disk.as_ref().map(|(fence, _)| Arc::clone(fence));
            if let Some(fence) = fence.filter(|_| self.trusts_sled()) {
                let answer = MutexGuard::unlocked(&mut state, || self.core.timed(|| fence.lookup(record)));
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
            let rests = self.rests(&state);
            if (rests || state.failures != failures)
                && let Some((kind, why)) = state.failure.clone()
            {
                return Err(Error::io("index", &self.path, io::Error::new(kind, why)));
            }
            if rests {
                return Err(self.cannot_read_part());
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

    fn cannot_read_part(&self) -> Error {
        let why = "part of the generation cannot be read";
        Error::io("read", &self.path, io::Error::other(why))
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
        if let Err(e) = replace_small(&*self.dir.vfs, &marker, fault.to_string().as_bytes()) {
            warn_seldom!(path = %marker.display(), error = %e, "cannot leave word of a database given up");
        }
    }

    /// Builds an index from the value files.
    pub fn rebuild(&self) -> Result<RamIndex> {
        let ram = self.rebuild_watched(&mut |_, _| ())?;
        self.core.rebuilt.fetch_add(1, Ordering::Relaxed);
        tracing::info!(path = %self.path.display(), extents = ram.extents.len(), "HDD index rebuilt");
        Ok(ram)
    }

    /// An index from the value files; `watch` is shown what was found, with the number of the file.
    pub fn rebuild_watched(&self, watch: &mut dyn FnMut(u16, &Found)) -> Result<RamIndex> {
        let mut ram = RamIndex::default();
        let values = self.values();
        let mut opened = values.is_empty();
        ram.partial = self.unlisted.load(Ordering::Acquire);
        for (no, end) in values {
            let file = match self.file(no) {
                Ok(file) => file,
                Err(e) => {
                    warn_seldom!(path = %self.path.display(), file = no, error = %e, "cannot open a value file");
                    ram.partial = true;
                    continue;
                }
            };
            opened = true;
            let keep_on = || !self.core.jobs.stopping() && !self.dropped();
            let mut scan = Scan::new(file, self.id, no, end, self.core.read_ahead()).while_true(&keep_on);
            let max = self.core.extent_max();
            let whole = scan::extents(&mut scan, max, &mut ram.extents, &mut |found| watch(no, found));
            if self.dropped() {
                return Err(Error::Gone(self.no));
            }
            if !keep_on() {
                return Err(Error::Busy("the HDD tier is closing"));
            }
            ram.partial |= !whole;
        }
        // Its files may have been missing because it went.
        if self.dropped() {
            return Err(Error::Gone(self.no));
        }
        if !opened {
            return Err(Error::io("open", &self.path, io::Error::other("no value file can be opened")));
        }
        ram.extents.sort_by_key(|e| e.first);
        ram.extents.dedup_by_key(|e| e.first);
        Ok(ram)
    }

    // The end.

    /// No reader gets anything from now on, and an index that is being built ends early, so that who drops the generation
    /// need not wait until it is.
    pub fn give_notice(&self) {
        self.dropped.store(true, Ordering::Release);
    }

    /// Lets go of everything, after notice was given. The caller holds `upkeep`.
    pub fn retire(&self) {
        self.let_go_of_files();
        self.core.tables.forget(self.id);
        if let Some((fence, _)) = self.take_disk()
            && let Err(fault) = fence.close()
        {
            self.core.fault(fence.path(), &fault);
        }
        self.drop_ram();
        self.wake();
    }

    /// Removes index directories other than `keep`, but for those that were given up.
    pub fn remove_old_indexes(&self, keep: Option<u32>) {
        let vfs = &self.dir.vfs;
        let Ok(entries) = vfs.read_dir(&self.path) else { return };
        for entry in &entries {
            let Some(no) = seal::index_number(&entry.name) else { continue };
            let marker = format!("{}.abandoned", entry.name);
            if Some(no) != keep && !entries.iter().any(|e| e.name == marker) {
                let path = self.path.join(&entry.name);
                if let Err(e) = vfs.remove_dir_all(&path) {
                    warn_seldom!(path = %path.display(), error = %e, "cannot remove an old HDD index");
                }
            }
        }
    }
}
