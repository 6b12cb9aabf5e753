//! Tests: a faulty file system and a bench of three directories; the cases stand in the modules below.

mod crash;
mod damage;
mod rules;

use super::*;
use crate::vfs::{DirEntry, Map, OpenMode, RealFs, Space, VfsFile, VfsLock};
use std::fs;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use tempfile::TempDir;

/// Passes on to the real file system until told to stop or to fail.
#[derive(Debug)]
struct Fs(Arc<Fault>);

type Rule = Box<dyn Fn(&str, &Path) -> Option<io::ErrorKind> + Send + Sync>;

struct Fault {
    /// Changes left before everything fails.
    left: AtomicI64,
    rule: Mutex<Rule>,
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fault")
    }
}

impl Fault {
    fn change(&self, op: &str, path: &Path) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(io::Error::other("stopped"));
        }
        self.look(op, path)
    }

    fn look(&self, op: &str, path: &Path) -> io::Result<()> {
        if self.left.load(Ordering::SeqCst) < 0 {
            return Err(io::Error::other("stopped"));
        }
        (self.rule.lock().unwrap())(op, path).map_or(Ok(()), |kind| Err(kind.into()))
    }
}

impl Fs {
    fn stopping_after(changes: i64) -> Arc<Fs> {
        let rule: Rule = Box::new(|_, _| None);
        Arc::new(Fs(Arc::new(Fault { left: AtomicI64::new(changes), rule: Mutex::new(rule) })))
    }

    fn with_rule(rule: impl Fn(&str, &Path) -> Option<io::ErrorKind> + Send + Sync + 'static) -> Arc<Fs> {
        let fs = Fs::stopping_after(i64::MAX);
        *fs.0.rule.lock().unwrap() = Box::new(rule);
        fs
    }

    fn changes(&self) -> i64 {
        i64::MAX - self.0.left.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct FsFile(Arc<dyn VfsFile>, PathBuf, Arc<Fault>);

impl VfsFile for FsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.2.look("read", &self.1)?;
        self.0.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let result = self.2.change("write", &self.1);
        if result.is_err() {
            // Torn: the beginning arrives.
            self.0.write_all_at(&buf[..buf.len().min(150)], offset)?;
            return result;
        }
        self.0.write_all_at(buf, offset)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.2.change("sync", &self.1)?;
        self.0.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn allocated(&self) -> io::Result<u64> {
        self.0.allocated()
    }
    fn map(&self, len: u64) -> io::Result<Option<Map>> {
        self.0.map(len)
    }
}

impl Vfs for Fs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        match mode {
            OpenMode::Read => self.0.look("open", path)?,
            OpenMode::ReadWrite => self.0.change("open", path)?,
            OpenMode::CreateNew => self.0.change("create", path)?,
        }
        Ok(Arc::new(FsFile(RealFs.open(path, mode)?, path.to_path_buf(), self.0.clone())))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.change("mkdir", path)?;
        RealFs.create_dir_all(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.look("list", path)?;
        RealFs.read_dir(path)
    }
    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        self.0.look("kind", path)?;
        RealFs.kind(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.change("rename", to)?;
        RealFs.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.change("remove", path)?;
        RealFs.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.change("rmdir", path)?;
        RealFs.remove_dir_all(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.change("syncdir", path)?;
        RealFs.sync_dir(path)
    }
    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        self.0.change("lock", path)?;
        let lock = RealFs.try_lock(path)?;
        self.0.look("locked", path)?;
        Ok(lock)
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        RealFs.canonical(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        RealFs.space(path)
    }
}

struct Bench {
    tmp: TempDir,
    request: HomeRequest,
}

/// `ssd`, `hdd` and `cold` under a temporary directory.
fn bench() -> Bench {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().canonicalize().unwrap();
    let dirs = Tier::DISK.map(|tier| WantedDir { tier, path: root.join(tier.name()).join("cache") }).to_vec();
    Bench { tmp, request: HomeRequest { dirs, catalog: None, flags: OpenFlags::default() } }
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().canonicalize().unwrap().join(name)
    }
    fn dir(&self, at: usize) -> &Path {
        &self.request.dirs[at].path
    }
    fn open(&self) -> Result<Home> {
        Home::open(Arc::new(RealFs), &self.request)
    }
    fn with(&self, change: impl FnOnce(&mut HomeRequest)) -> Result<Home> {
        let mut request = self.request.clone();
        change(&mut request);
        Home::open(Arc::new(RealFs), &request)
    }
    /// One whole life of a writing process; its counter.
    fn live(&self) -> u64 {
        let mut home = self.open().unwrap();
        home.begin_writing().unwrap();
        home.finish().unwrap();
        home.open_counter()
    }
    /// All files and directories with their contents.
    fn tree(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn walk(dir: &Path, out: &mut Vec<(PathBuf, Vec<u8>)>) {
            for e in fs::read_dir(dir).unwrap().map(|e| e.unwrap()) {
                if e.file_type().unwrap().is_dir() {
                    out.push((e.path(), Vec::new()));
                    walk(&e.path(), out);
                } else {
                    out.push((e.path(), fs::read(e.path()).unwrap_or_default()));
                }
            }
        }
        let mut out = Vec::new();
        walk(self.tmp.path(), &mut out);
        out.sort();
        out
    }
    fn unmount(&self, at: usize) -> PathBuf {
        let aside = self.path(&format!("aside-{at}"));
        fs::rename(self.dir(at), &aside).unwrap();
        aside
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for e in fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        let target = to.join(e.file_name());
        if e.file_type().unwrap().is_dir() {
            copy_dir(&e.path(), &target);
        } else {
            fs::copy(e.path(), target).unwrap();
        }
    }
}

fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[40] ^= 1;
    fs::write(path, bytes).unwrap();
}
