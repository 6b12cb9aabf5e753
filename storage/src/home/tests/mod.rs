//! Tests: a faulty file system and a bench of three directories; the cases stand in the modules below.

mod anchor;
mod crash;
mod damage;
mod rules;

use super::*;
use crate::testing::{EACCES, ENOSPC, Fault, FaultFs, Op};
use crate::vfs::RealFs;
use std::fs;
use tempfile::TempDir;

/// The real file system, in which of a failing write the beginning arrives, so that it tears the text.
fn faulty() -> FaultFs {
    FaultFs::default().tearing(|len| len.min(150))
}

fn failing(fault: Fault) -> Arc<FaultFs> {
    let fs = faulty();
    fs.fail(fault);
    Arc::new(fs)
}

/// Writing a file whole fails, as on a full disk.
fn full() -> Fault {
    Fault::when(|c| c.op == Op::Write && c.path.extension().is_some_and(|e| e == "tmp")).errno(ENOSPC)
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
    /// One whole life, after which a directory is as it was before it.
    fn live_and_put_back(&self, at: usize) {
        copy_dir(self.dir(at), &self.path("image"));
        self.live();
        fs::remove_dir_all(self.dir(at)).unwrap();
        fs::rename(self.path("image"), self.dir(at)).unwrap();
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
