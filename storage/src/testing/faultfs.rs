//! The real file system with faults: the N-th call of a kind fails, or all from there on, below a path or
//! everywhere; the process "stops" after so many changes; calls are counted and can be watched.

use crate::sim::{Call, Fault, Op};
use crate::vfs::{DirEntry, EntryKind, Map, OpenMode, RealFs, Space, Vfs, VfsFile, VfsLock};
use parking_lot::Mutex;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

type Watch = Arc<dyn Fn(&Call<'_>) + Send + Sync>;
type SpaceOf = Box<dyn Fn(&Path) -> Space + Send + Sync>;

struct State {
    faults: Mutex<Vec<Fault>>,
    calls: [AtomicU64; Op::COUNT],
    changes: AtomicU64,
    stop_after: AtomicU64,
    watch: Mutex<Option<Watch>>,
    space: Mutex<Option<SpaceOf>>,
    /// Bytes of a failing write that arrive, by its length.
    arrives: fn(usize) -> usize,
    syncs: bool,
    maps: bool,
}

impl State {
    fn call(&self, op: Op, path: &Path) -> io::Result<()> {
        self.call_on(op, path, 0..0)
    }

    fn call_on(&self, op: Op, path: &Path, range: Range<u64>) -> io::Result<()> {
        self.calls[op as usize].fetch_add(1, Ordering::SeqCst);
        let before = match op.changes() {
            true => self.changes.fetch_add(1, Ordering::SeqCst) + 1,
            false => self.changes.load(Ordering::SeqCst),
        };
        if before > self.stop_after.load(Ordering::SeqCst) {
            return Err(io::Error::other("stopped"));
        }
        let call = Call { op, path, range };
        let watch = self.watch.lock().clone();
        if let Some(watch) = watch {
            watch(&call);
        }
        self.faults
            .lock()
            .iter_mut()
            .find_map(|f| f.check(&call))
            .map_or(Ok(()), |trouble| Err(trouble.error()))
    }
}

/// The real file system with faults. Clones are the same one.
#[derive(Clone)]
pub struct FaultFs(Arc<State>);

impl fmt::Debug for FaultFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultFs")
    }
}

impl Default for FaultFs {
    fn default() -> FaultFs {
        FaultFs(Arc::new(State {
            faults: Mutex::default(),
            calls: Default::default(),
            changes: AtomicU64::new(0),
            stop_after: AtomicU64::new(u64::MAX),
            watch: Mutex::default(),
            space: Mutex::default(),
            arrives: |len| len / 2,
            syncs: true,
            maps: true,
        }))
    }
}

impl FaultFs {
    fn built(mut self, change: impl FnOnce(&mut State)) -> FaultFs {
        change(Arc::get_mut(&mut self.0).expect("it is not shared yet"));
        self
    }

    /// Syncs nothing, for tests that look only at what the process sees: on a busy disk syncing would be nearly
    /// all of their time.
    pub fn without_syncs(self) -> FaultFs {
        self.built(|s| s.syncs = false)
    }

    /// Maps nothing, so that every read comes by here.
    pub fn without_maps(self) -> FaultFs {
        self.built(|s| s.maps = false)
    }

    /// Of a write that fails so many bytes arrive, by its length; without this half of them.
    pub fn tearing(self, arrives: fn(usize) -> usize) -> FaultFs {
        self.built(|s| s.arrives = arrives)
    }

    /// Makes calls fail from now on, besides those that do already.
    pub fn fail(&self, fault: Fault) {
        self.0.faults.lock().push(fault);
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.0.faults.lock().clear();
    }

    /// Faults that have not struck as often as they were to.
    pub fn pending(&self) -> usize {
        self.0.faults.lock().iter().filter(|f| f.pending()).count()
    }

    /// After so many changes in all, everything fails: what a kill leaves.
    pub fn stop_after(&self, changes: u64) {
        self.0.stop_after.store(changes, Ordering::SeqCst);
    }

    /// Calls that changed something, so far.
    pub fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::SeqCst)
    }

    /// Calls of this kind so far.
    pub fn calls(&self, op: Op) -> u64 {
        self.0.calls[op as usize].load(Ordering::SeqCst)
    }

    /// Shows every call before it is made; the call waits until `watch` returns.
    pub fn watch(&self, watch: impl Fn(&Call<'_>) + Send + Sync + 'static) {
        *self.0.watch.lock() = Some(Arc::new(watch));
    }

    /// Watches for a call of this kind, which panics: the first after what is given was set, which is clear then.
    pub fn panicking(&self, op: Op) -> Arc<AtomicBool> {
        let armed = Arc::new(AtomicBool::new(false));
        let strikes = armed.clone();
        self.watch(move |c| {
            let hit = c.op == op && strikes.swap(false, Ordering::SeqCst);
            assert!(!hit, "on purpose");
        });
        armed
    }

    /// What is said of the free space of a path.
    pub fn say_space(&self, space: impl Fn(&Path) -> Space + Send + Sync + 'static) {
        *self.0.space.lock() = Some(Box::new(space));
    }
}

#[derive(Debug)]
struct FaultFile {
    real: Arc<dyn VfsFile>,
    path: PathBuf,
    fs: FaultFs,
}

impl VfsFile for FaultFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.fs.0.call_on(Op::Read, &self.path, offset..offset + buf.len() as u64)?;
        self.real.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let range = offset..offset + buf.len() as u64;
        if let Err(e) = self.fs.0.call_on(Op::Write, &self.path, range) {
            let arrives = (self.fs.0.arrives)(buf.len());
            self.real.write_all_at(&buf[..arrives], offset)?;
            return Err(e);
        }
        self.real.write_all_at(buf, offset)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.fs.0.call(Op::Allocate, &self.path)?;
        self.real.allocate(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.fs.0.call(Op::Sync, &self.path)?;
        if self.fs.0.syncs { self.real.sync() } else { Ok(()) }
    }
    fn len(&self) -> io::Result<u64> {
        self.real.len()
    }
    fn allocated(&self) -> io::Result<u64> {
        self.real.allocated()
    }
    fn map(&self, len: u64) -> io::Result<Option<Map>> {
        if self.fs.0.maps { self.real.map(len) } else { Ok(None) }
    }
}

impl Vfs for FaultFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        let op = match mode {
            OpenMode::Read => Op::Open,
            OpenMode::ReadWrite => Op::OpenToWrite,
            OpenMode::CreateNew => Op::Create,
        };
        self.0.call(op, path)?;
        let real = RealFs.open(path, mode)?;
        Ok(Arc::new(FaultFile { real, path: path.to_path_buf(), fs: self.clone() }))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.call(Op::MakeDir, path)?;
        RealFs.create_dir_all(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.call(Op::List, path)?;
        RealFs.read_dir(path)
    }
    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        self.0.call(Op::Kind, path)?;
        RealFs.kind(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.call(Op::Rename, to)?;
        RealFs.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.call(Op::RemoveFile, path)?;
        RealFs.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.call(Op::RemoveDir, path)?;
        RealFs.remove_dir_all(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.call(Op::SyncDir, path)?;
        if self.0.syncs { RealFs.sync_dir(path) } else { Ok(()) }
    }
    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        self.0.call(Op::Lock, path)?;
        let lock = RealFs.try_lock(path)?;
        self.0.call(Op::Locked, path)?;
        Ok(lock)
    }
    fn try_lock_shared(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        self.0.call(Op::Lock, path)?;
        let lock = RealFs.try_lock_shared(path)?;
        self.0.call(Op::Locked, path)?;
        Ok(lock)
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        RealFs.canonical(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        match &*self.0.space.lock() {
            Some(space) => Ok(space(path)),
            None => RealFs.space(path),
        }
    }
}
