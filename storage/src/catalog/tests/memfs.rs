//! A file system in memory that can be cut off from its power, fail and be full.
//!
//! What was written and not synced may or may not survive a cut, file by file and name by name; a write that was
//! under way may survive in part.

use crate::vfs::{DirEntry, EntryKind, Map, OpenMode, Space, Vfs, VfsFile, VfsLock};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Default)]
struct Node {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Bytes allocated; those behind `now` are zeros. (Lengths are durable at once: nobody depends on one.)
    len: usize,
}

type Names = BTreeMap<PathBuf, Arc<Mutex<Node>>>;

#[derive(Debug, Default)]
struct State {
    names: Names,
    durable: Names,
    dirs: BTreeSet<PathBuf>,
    calls: u64,
    /// Calls from this number on fail.
    fail_from: Option<u64>,
    /// The call of this number fails.
    fail_once: Option<u64>,
    /// Calls of this kind fail.
    fail_kind: Option<&'static str>,
    /// Bytes that all files may have together.
    room: Option<u64>,
    /// What each counted call was.
    trace: Vec<String>,
}

/// See the module. Clones are the same file system.
#[derive(Debug, Default, Clone)]
pub(super) struct MemFs(Arc<Mutex<State>>);

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl State {
    /// Counts a call that changes something; says whether it fails.
    fn call(&mut self, what: &str, path: &Path) -> io::Result<()> {
        let n = self.calls;
        self.calls += 1;
        self.trace.push(format!("{what} {}", path.display()));
        let kind = self.fail_kind == Some(what);
        if kind || self.fail_from.is_some_and(|f| n >= f) || self.fail_once == Some(n) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }

    fn used(&self) -> u64 {
        self.names.values().map(|n| n.lock().len as u64).sum()
    }
}

impl MemFs {
    pub(super) fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    pub(super) fn trace(&self) -> Vec<String> {
        self.0.lock().trace.clone()
    }

    pub(super) fn fail_from(&self, call: Option<u64>) {
        self.0.lock().fail_from = call;
    }

    pub(super) fn fail_once(&self, call: Option<u64>) {
        self.0.lock().fail_once = call;
    }

    pub(super) fn fail_kind(&self, what: Option<&'static str>) {
        self.0.lock().fail_kind = what;
    }

    pub(super) fn set_room(&self, room: Option<u64>) {
        self.0.lock().room = room;
    }

    pub(super) fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// What is left after a power cut; `dice` decides what of the unsynced survives. Faults are over.
    pub(super) fn after_power_cut(&self, mut dice: impl FnMut() -> u64) -> MemFs {
        let s = self.0.lock();
        let mut names = if dice().is_multiple_of(2) { s.durable.clone() } else { s.names.clone() };
        for node in names.values_mut() {
            let n = node.lock();
            let bytes = match dice() % 3 {
                0 => n.synced.clone(),
                1 => n.now.clone(),
                // A part of it: the front is new, the rest is as it was synced, or zeros.
                _ => {
                    let cut = usize::try_from(dice()).unwrap() % (n.now.len() + 1);
                    let mut b = n.synced.clone();
                    b.resize(n.now.len().max(n.synced.len()), 0);
                    b[..cut].copy_from_slice(&n.now[..cut]);
                    b
                }
            };
            let len = n.len.max(bytes.len());
            drop(n);
            *node = Arc::new(Mutex::new(Node { now: bytes.clone(), synced: bytes, len }));
        }
        MemFs(Arc::new(Mutex::new(State {
            durable: names.clone(),
            names,
            dirs: s.dirs.clone(),
            ..State::default()
        })))
    }

    /// A copy that shares nothing.
    pub(super) fn snapshot(&self) -> MemFs {
        self.after_power_cut(|| 1)
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.0.lock().names.keys().cloned().collect()
    }

    pub(super) fn edit(&self, path: &Path, f: impl FnOnce(&mut Vec<u8>)) {
        let s = self.0.lock();
        let mut n = s.names[path].lock();
        f(&mut n.now);
        n.synced = n.now.clone();
        n.len = n.now.len();
    }

    pub(super) fn read(&self, path: &Path) -> Vec<u8> {
        self.0.lock().names[path].lock().now.clone()
    }

    pub(super) fn delete(&self, path: &Path) {
        let mut s = self.0.lock();
        s.names.remove(path);
        s.durable.remove(path);
    }
}

impl Vfs for MemFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        let mut s = self.0.lock();
        if mode == OpenMode::CreateNew {
            s.call("create", path)?;
            if s.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            s.names.insert(path.to_path_buf(), Arc::default());
        }
        let node = s.names.get(path).ok_or_else(missing)?.clone();
        Ok(Arc::new(MemFile { fs: self.clone(), node, path: path.to_path_buf() }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.lock().dirs.insert(path.to_path_buf());
        Ok(())
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let s = self.0.lock();
        let inside = s.names.iter().filter(|(p, _)| p.parent() == Some(path));
        let entry = |(p, n): (&PathBuf, &Arc<Mutex<Node>>)| DirEntry {
            name: p.file_name().unwrap().to_str().unwrap().to_owned(),
            kind: EntryKind::File,
            len: n.lock().len as u64,
        };
        Ok(inside.map(entry).collect())
    }

    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        let s = self.0.lock();
        Ok(match (s.names.contains_key(path), s.dirs.contains(path)) {
            (true, _) => Some(EntryKind::File),
            (_, true) => Some(EntryKind::Dir),
            _ => None,
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut s = self.0.lock();
        s.call("rename", to)?;
        let node = s.names.remove(from).ok_or_else(missing)?;
        s.names.insert(to.to_path_buf(), node);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut s = self.0.lock();
        if !s.names.contains_key(path) {
            return Err(missing());
        }
        s.call("remove", path)?;
        s.names.remove(path);
        Ok(())
    }

    fn remove_dir_all(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut s = self.0.lock();
        s.call("sync-dir", path)?;
        let inside = |p: &PathBuf| p.parent() == Some(path);
        let now: Names =
            s.names.iter().filter(|(p, _)| inside(p)).map(|(p, n)| (p.clone(), n.clone())).collect();
        s.durable.retain(|p, _| !inside(p));
        s.durable.extend(now);
        Ok(())
    }

    fn try_lock(&self, _: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        let s = self.0.lock();
        let total = s.room.unwrap_or(1 << 40);
        Ok(Space { free: total.saturating_sub(s.used()), total })
    }
}

#[derive(Debug)]
struct MemFile {
    fs: MemFs,
    node: Arc<Mutex<Node>>,
    path: PathBuf,
}

impl MemFile {
    fn grow(&self, s: &State, len: u64) -> io::Result<()> {
        let have = self.node.lock().len as u64;
        if len > have && s.room.is_some_and(|room| s.used() + (len - have) > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut n = self.node.lock();
        n.len = n.len.max(usize::try_from(len).unwrap());
        Ok(())
    }
}

fn put(n: &mut Node, buf: &[u8], at: usize) {
    let end = n.now.len().max(at + buf.len());
    n.now.resize(end, 0);
    n.now[at..at + buf.len()].copy_from_slice(buf);
    n.len = n.len.max(end);
}

impl VfsFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.node.lock();
        let at = usize::try_from(offset).unwrap();
        let count = n.len.saturating_sub(at).min(buf.len());
        let from = n.now.get(at..).unwrap_or_default();
        let real = from.len().min(count);
        buf[..real].copy_from_slice(&from[..real]);
        buf[real..count].fill(0);
        Ok(count)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut s = self.fs.0.lock();
        let at = usize::try_from(offset).unwrap();
        if let Err(e) = s.call("write", &self.path) {
            // Half of it got there.
            put(&mut self.node.lock(), &buf[..buf.len() / 2], at);
            return Err(e);
        }
        self.grow(&s, offset + buf.len() as u64)?;
        put(&mut self.node.lock(), buf, at);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut s = self.fs.0.lock();
        s.call("allocate", &self.path)?;
        self.grow(&s, len)
    }

    fn sync(&self) -> io::Result<()> {
        let mut s = self.fs.0.lock();
        s.call("sync", &self.path)?;
        let mut n = self.node.lock();
        n.synced = n.now.clone();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.node.lock().len as u64)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.len()
    }

    fn map(&self, _: u64) -> io::Result<Option<Map>> {
        Ok(None)
    }
}
