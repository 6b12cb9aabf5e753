//! The handles of the simulated file system.
//!
//! Invariant: whatever a handle does, it does to the state under its one lock, so that all calls are in one order.

use super::dice::Dice;
use super::disk::{ROOT, State, missing};
use super::fault::{Away, Fault, Op, Trouble};
use super::image::{DirImage, FileImage, Id};
use crate::vfs::{
    DirEntry, EntryKind, Map, OpenMode, Space, Vfs, VfsFile, VfsLock, read_in_full, write_in_full,
};
use parking_lot::{Mutex, MutexGuard};
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What an unlimited disk says that it has.
const HUGE: u64 = 1 << 40;

/// See the module [`sim`](super). Clones of the handle are the same file system.
#[derive(Debug, Clone)]
pub struct SimFs(Arc<Mutex<State>>);

impl SimFs {
    /// An empty disk. What failing calls leave follows from the seed.
    pub fn new(seed: u64) -> SimFs {
        SimFs(Arc::new(Mutex::new(State::new(seed))))
    }

    pub(super) fn of(state: State) -> SimFs {
        SimFs(Arc::new(Mutex::new(state)))
    }

    /// Makes a directory and those above it, durably: the disk as somebody finds it who begins to use it.
    pub fn with_dir(self, path: &Path) -> SimFs {
        let mut s = self.state();
        // Nothing fails yet.
        let _ = s.create_dirs(path);
        s.settle_names();
        drop(s);
        self
    }

    /// Files can be mapped, of this disk and of its clones. A map has what was published at the time at which it was; no
    /// fault strikes who reads it, and no bit that turns later is seen in it.
    pub fn with_maps(self) -> SimFs {
        self.state().maps = true;
        self
    }

    /// Files mapped so far.
    pub fn mapped(&self) -> u64 {
        self.state().mapped
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Makes calls go wrong from now on, besides those that do already.
    pub fn fail(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Nothing fails any more: there are no faults, all that was taken away is back, and there is room.
    pub fn heal(&self) {
        let mut s = self.state();
        s.faults.clear();
        s.away.clear();
        s.room.clear();
    }

    /// Changes with these numbers, counted from 1, fail with `EIO`.
    pub fn fail_changes(&self, numbers: impl RangeBounds<u64>) {
        let first = match numbers.start_bound() {
            Bound::Included(n) => *n,
            Bound::Excluded(n) => n.saturating_add(1),
            Bound::Unbounded => 1,
        };
        let end = match numbers.end_bound() {
            Bound::Included(n) => n.saturating_add(1),
            Bound::Excluded(n) => *n,
            Bound::Unbounded => u64::MAX,
        };
        let mut s = self.state();
        let after = first.saturating_sub(s.changes + 1);
        let times = if end == u64::MAX { end } else { end.saturating_sub(first.max(s.changes + 1)) };
        s.faults.push(Fault::when(|c| c.op.changes()).after(after).times(times));
    }

    /// Calls of this kind so far.
    pub fn calls(&self, op: Op) -> u64 {
        self.state().calls.get(op as usize).copied().unwrap_or(0)
    }

    /// Calls so far that change what a crash would leave.
    pub fn changes(&self) -> u64 {
        self.state().changes
    }

    /// After so many changes in all, everything fails: the process has ended.
    pub fn stop_after(&self, changes: u64) {
        self.state().stop_after = changes;
    }

    /// Keeps a list of all changes from now on.
    pub fn keep_trace(&self) {
        self.state().trace.get_or_insert_default();
    }

    /// The list of changes; empty if none is kept.
    pub fn trace(&self) -> Vec<String> {
        self.state().trace.clone().unwrap_or_default()
    }

    /// Lets a path, and what is below, be away until [`heal`](Self::heal).
    pub fn take_away(&self, path: &Path, how: Away) {
        self.state().away.push((path.to_path_buf(), how));
    }

    /// Files below this path may have so many bytes together; `None`: as many as they like.
    pub fn set_room(&self, path: &Path, bytes: Option<u64>) {
        let mut s = self.state();
        s.room.retain(|(p, _)| p != path);
        s.room.extend(bytes.map(|b| (path.to_path_buf(), b)));
    }

    /// Bytes of all files below a path.
    pub fn used(&self, path: &Path) -> u64 {
        self.state().used(path)
    }

    /// What may be found after a power cut now.
    pub fn crash(&self, dice: &mut Dice) -> SimFs {
        self.state().crash(dice)
    }

    /// Makes a crash clone from this seed just before the change of this number, counted from 1, is made. It can be had
    /// from [`taken`](Self::taken).
    pub fn crash_at(&self, change: u64, seed: u64) {
        self.state().due.push((change, seed));
    }

    /// The crash clones that were made, each with the number of the change before which it was.
    pub fn taken(&self) -> Vec<(u64, SimFs)> {
        std::mem::take(&mut self.state().taken)
    }

    /// The last changes. Of a crash clone that was taken: those before the crash, and as the last one that which was not
    /// made any more.
    pub fn recent(&self) -> Vec<(Op, PathBuf)> {
        self.state().recent.iter().cloned().collect()
    }

    /// What is found after a power cut now if nothing that was not synced has reached the disk.
    pub fn crash_losing_all(&self) -> SimFs {
        let s = self.state();
        let files = s.files.iter().map(|(id, f)| (*id, f.synced())).collect();
        let dirs =
            s.dirs.iter().map(|(id, d)| (*id, DirImage { now: d.synced.clone(), ..DirImage::default() }));
        s.with(files, dirs.collect())
    }

    /// What is found when the process alone ended, and the machine went on: a copy of all that was seen.
    pub fn kill(&self) -> SimFs {
        let s = self.state();
        let dirs = s.dirs.iter().map(|(id, d)| (*id, DirImage { now: d.now.clone(), ..DirImage::default() }));
        s.with(s.files.iter().map(|(id, f)| (*id, f.copy())).collect(), dirs.collect())
    }

    /// All files.
    pub fn files(&self) -> Vec<PathBuf> {
        let s = self.state();
        let mut found = Vec::new();
        let mut left = vec![(ROOT, PathBuf::from("/"))];
        while let Some((id, path)) = left.pop() {
            if s.files.contains_key(&id) {
                found.push(path);
            } else if let Some(dir) = s.dirs.get(&id) {
                left.extend(dir.now.iter().map(|(name, id)| (*id, path.join(name))));
            }
        }
        found.sort();
        found
    }

    /// The bytes of a file.
    ///
    /// # Panics
    /// If there is no such file, as all here that name one: a test that expects it is wrong.
    pub fn read(&self, path: &Path) -> Vec<u8> {
        self.with_file(path, |f| f.bytes())
    }

    /// Changes a file behind the back of who uses it, durably.
    pub fn edit(&self, path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
        self.with_file(path, |f| f.edit(edit));
    }

    /// Turns a bit of a file, durably, whether it is in use or not; says whether there is one.
    pub fn turn(&self, path: &Path, at: u64, bit: u32) -> bool {
        self.with_file(path, |f| f.turn(at, bit))
    }

    /// The disk had lost a write: one of the sectors of a file that were synced has its earlier bytes again. Says where
    /// it begins, or `None` if there is none that this changes.
    pub fn take_back(&self, path: &Path) -> Option<u64> {
        self.with_file(path, FileImage::take_back)
    }

    /// Removes a file behind the back of who uses it, durably.
    pub fn delete(&self, path: &Path) {
        self.with_file(path, |_| ());
        let mut s = self.state();
        if let Ok((dir, name)) = s.place(path)
            && let Some(dir) = s.dirs.get_mut(&dir)
        {
            dir.now.remove(&name);
            dir.synced.remove(&name);
        }
    }

    #[expect(clippy::panic, reason = "only tests call this")]
    fn with_file<T>(&self, path: &Path, then: impl FnOnce(&mut FileImage) -> T) -> T {
        let mut s = self.state();
        match s.file(path).ok().and_then(|id| s.files.get_mut(&id)) {
            Some(file) => then(file),
            None => panic!("{} is no file", path.display()),
        }
    }
}

impl Vfs for SimFs {
    /// These can be guessed: they follow from the seed.
    fn random(&self) -> io::Result<[u8; 16]> {
        let mut s = self.state();
        s.simple(Op::Random, Path::new(""))?;
        let [a, b] = [s.dice.roll(), s.dice.roll()].map(u64::to_le_bytes);
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(a.into_iter().chain(b)).for_each(|(to, from)| *to = from);
        Ok(bytes)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        let mut s = self.state();
        let op = match mode {
            OpenMode::Read => Op::Open,
            OpenMode::ReadWrite => Op::OpenToWrite,
            OpenMode::CreateNew => Op::Create,
        };
        s.simple(op, path)?;
        let id = if mode == OpenMode::CreateNew { s.create(path)? } else { s.file(path)? };
        *s.open.entry(id).or_default() += 1;
        Ok(Arc::new(SimFile { fs: self.clone(), id, path: path.to_path_buf() }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut s = self.state();
        s.simple(Op::MakeDir, path)?;
        s.create_dirs(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut s = self.state();
        s.simple(Op::List, path)?;
        let dir = s.lookup(path).ok_or_else(missing)?;
        let names = &s.dirs.get(&dir).ok_or(io::ErrorKind::NotADirectory)?.now;
        let entry = |(name, id): (&String, &Id)| match s.files.get(id) {
            Some(file) => DirEntry { name: name.clone(), kind: EntryKind::File, len: file.len() },
            None => DirEntry { name: name.clone(), kind: EntryKind::Dir, len: 0 },
        };
        Ok(names.iter().map(entry).collect())
    }

    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        let mut s = self.state();
        match s.simple(Op::Kind, path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            done => done?,
        }
        let kind = |id| if s.files.contains_key(&id) { EntryKind::File } else { EntryKind::Dir };
        Ok(s.lookup(path).map(kind))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut s = self.state();
        s.simple(Op::Rename, to)?;
        let id = s.lookup(from).ok_or_else(missing)?;
        let ((dir, name), (into, new)) = (s.place(from)?, s.place(to)?);
        s.rename(vec![(dir, name, None), (into, new, Some(id))]);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut s = self.state();
        s.simple(Op::RemoveFile, path)?;
        s.file(path)?;
        let (dir, name) = s.place(path)?;
        s.rename(vec![(dir, name, None)]);
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.state().remove_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut s = self.state();
        let trouble = s.call(Op::SyncDir, path, 0..0)?;
        let dir = s.lookup(path).ok_or_else(missing)?;
        match trouble {
            None => {
                s.sync_dir(dir);
                Ok(())
            }
            Some(trouble) => {
                if trouble == Trouble::Forgotten {
                    let mut dice = s.dice.fork();
                    s.sync_dir_in_vain(dir, &mut dice);
                }
                Err(trouble.error())
            }
        }
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        let mut s = self.state();
        s.simple(Op::Lock, path)?;
        let id = match s.lookup(path) {
            Some(id) => id,
            None => s.create(path)?,
        };
        if !s.locks.insert(path.to_path_buf()) {
            return Ok(None);
        }
        let lock = SimLock { fs: self.clone(), path: path.to_path_buf(), id };
        match s.simple(Op::Locked, path) {
            Ok(()) => Ok(Some(Box::new(lock))),
            Err(e) => {
                // The lock's end needs the state.
                drop(s);
                Err(e)
            }
        }
    }

    /// As exclusive as any other lock here, and no change.
    fn try_lock_shared(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        let mut s = self.state();
        s.simple(Op::Open, path)?;
        let id = s.file(path)?;
        let free = s.locks.insert(path.to_path_buf());
        drop(s);
        Ok(free.then(|| {
            Box::new(SimLock { fs: self.clone(), path: path.to_path_buf(), id }) as Box<dyn VfsLock>
        }))
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        self.state().simple(Op::Canonical, path)?;
        Ok(path.to_path_buf())
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let mut s = self.state();
        s.simple(Op::Space, path)?;
        let total = s.room.iter().filter(|(p, _)| path.starts_with(p)).map(|(_, room)| *room).min();
        Ok(Space { free: s.free(path).min(HUGE), total: total.unwrap_or(HUGE) })
    }
}

/// A lock, until it is dropped.
#[derive(Debug)]
struct SimLock {
    fs: SimFs,
    path: PathBuf,
    id: Id,
}

impl VfsLock for SimLock {
    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let mut s = self.fs.state();
        match s.simple(Op::Kind, path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            done => done.map(|()| s.lookup(path) == Some(self.id)),
        }
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.fs.state().locks.remove(&self.path);
    }
}

/// An open file.
#[derive(Debug)]
struct SimFile {
    fs: SimFs,
    id: Id,
    path: PathBuf,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut s = self.fs.state();
        let left = s.open.get_mut(&self.id).map_or(0, |n| {
            *n -= 1;
            *n
        });
        if left == 0 {
            s.open.remove(&self.id);
            s.sweep();
        }
    }
}

impl SimFile {
    fn read_once(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut s = self.fs.state();
        let range = offset..offset.saturating_add(buf.len() as u64);
        let count = match s.call(Op::Read, &self.path, range)? {
            None | Some(Trouble::Forgotten) => buf.len(),
            Some(Trouble::Short) => buf.len().div_ceil(2),
            Some(trouble) => return Err(trouble.error()),
        };
        let buf = buf.get_mut(..count).unwrap_or_default();
        Ok(s.files.get(&self.id).map_or(0, |f| f.read(buf, offset)))
    }

    fn write_once(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let mut s = self.fs.state();
        let range = offset..offset.saturating_add(buf.len() as u64);
        let some = usize::try_from(s.dice.below(buf.len() as u64 + 1)).unwrap_or(0);
        let (count, failed) = match s.call(Op::Write, &self.path, range) {
            Ok(None | Some(Trouble::Forgotten)) => (buf.len(), None),
            Ok(Some(Trouble::Short)) => (buf.len().div_ceil(2), None),
            Ok(Some(trouble)) => (some, Some(trouble.error())),
            // The process ended in the middle of it.
            Err(e) => (some, Some(e)),
        };
        let free = s.free(&self.path);
        let Some(file) = s.files.get_mut(&self.id) else { return Err(missing()) };
        let most = file.len().saturating_add(free).saturating_sub(offset);
        let count = count.min(usize::try_from(most).unwrap_or(usize::MAX));
        let part = buf.get(..count).unwrap_or_default();
        if !part.is_empty() {
            file.write(part, offset);
        }
        match failed {
            Some(e) => Err(e),
            None if count == 0 && !buf.is_empty() => Err(io::ErrorKind::StorageFull.into()),
            None => Ok(count),
        }
    }
}

impl VfsFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        read_in_full(buf, offset, |buf, at| self.read_once(buf, at))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        write_in_full(buf, offset, |buf, at| self.write_once(buf, at))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut s = self.fs.state();
        s.simple(Op::Allocate, &self.path)?;
        let free = s.free(&self.path);
        let Some(file) = s.files.get_mut(&self.id) else { return Err(missing()) };
        if len.saturating_sub(file.len()) > free {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.grow(len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut s = self.fs.state();
        let trouble = s.call(Op::Sync, &self.path, 0..0)?;
        let mut dice = s.dice.fork();
        let Some(file) = s.files.get_mut(&self.id) else { return Err(missing()) };
        match trouble {
            None => {
                file.sync(&mut dice);
                Ok(())
            }
            Some(trouble) => {
                if trouble == Trouble::Forgotten {
                    file.sync_in_vain(&mut dice);
                }
                Err(trouble.error())
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        let mut s = self.fs.state();
        s.simple(Op::Len, &self.path)?;
        Ok(s.files.get(&self.id).map_or(0, FileImage::len))
    }

    fn allocated(&self) -> io::Result<u64> {
        self.len()
    }

    fn map(&self, len: u64) -> io::Result<Option<Map>> {
        let mut s = self.fs.state();
        if !s.maps {
            return Ok(None);
        }
        s.mapped += 1;
        drop(s);
        let (fs, id) = (self.fs.clone(), self.id);
        let read = move |buf: &mut [u8], at| fs.state().files.get(&id).map_or(0, |f| f.read(buf, at));
        Map::of_simulated(len, read).map(Some)
    }
}
