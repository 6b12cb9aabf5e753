//! A file system of which nothing can be changed.
//!
//! Invariant: nothing below changes through it, not a byte, a name, a mode or a time. Whoever opens a store on it, to
//! check it, need not be trusted to write nothing: what would be a change is refused with `EROFS`. Locks are taken
//! all the same, on files that are there and without writing to them, so that a store in use is found to be so; they
//! are shared, so that two checks do not stand in each other's way.

use super::{DirEntry, EntryKind, Map, OpenMode, Space, Vfs, VfsFile, VfsLock};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Another file system, to look at.
#[derive(Debug, Clone)]
pub struct ReadOnly(Arc<dyn Vfs>);

impl ReadOnly {
    /// What is below is read through this, and stays as it is.
    pub fn new(below: Arc<dyn Vfs>) -> ReadOnly {
        ReadOnly(below)
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the store is only looked at"))
}

impl Vfs for ReadOnly {
    fn still_there(&self) -> io::Result<()> {
        self.0.still_there()
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        match mode {
            OpenMode::Read => Ok(Arc::new(File(self.0.open(path, mode)?))),
            OpenMode::ReadWrite | OpenMode::CreateNew => refused(),
        }
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.read_dir(path)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        self.0.kind(path)
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        refused()
    }

    fn remove_file(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn remove_dir_all(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    /// Nothing is waiting to be made durable: that is no change.
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        self.0.try_lock_shared(path)
    }

    fn try_lock_shared(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        self.0.try_lock_shared(path)
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        self.0.canonical(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.0.space(path)
    }

    fn random(&self) -> io::Result<[u8; 16]> {
        self.0.random()
    }
}

/// A file of it.
#[derive(Debug)]
struct File(Arc<dyn VfsFile>);

impl VfsFile for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        refused()
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        refused()
    }

    fn sync(&self) -> io::Result<()> {
        refused()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::RealFs;

    #[test]
    fn every_change_is_refused_and_what_is_there_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (file, none) = (dir.path().join("file"), dir.path().join("none"));
        std::fs::write(&file, b"content").unwrap();
        let before = std::fs::metadata(&file).unwrap().modified().unwrap();
        let fs = ReadOnly::new(Arc::new(RealFs));
        let open = fs.open(&file, OpenMode::Read).unwrap();
        let refusals = [
            fs.open(&file, OpenMode::ReadWrite).map(drop),
            fs.open(&none, OpenMode::CreateNew).map(drop),
            fs.create_dir_all(&none),
            fs.rename(&file, &none),
            fs.remove_file(&file),
            fs.remove_dir_all(dir.path()),
            fs.sync_dir(dir.path()),
            open.write_all_at(b"x", 0),
            open.allocate(100),
            open.sync(),
        ];
        for (no, refusal) in refusals.into_iter().enumerate() {
            assert_eq!(refusal.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem, "{no}");
        }
        let mut bytes = [0; 7];
        open.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((&bytes, open.len().unwrap()), (b"content", 7));
        assert_eq!(fs.kind(&none).unwrap(), None);
        assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), before);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_lock_is_shared_with_who_looks_and_with_nobody_who_writes() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("lock");
        let fs = ReadOnly::new(Arc::new(RealFs));
        assert_eq!(fs.try_lock(&lock).unwrap_err().kind(), io::ErrorKind::NotFound, "none is made");
        drop(RealFs.try_lock(&lock).unwrap().unwrap());
        let first = fs.try_lock(&lock).unwrap().unwrap();
        let second = fs.try_lock(&lock).unwrap().unwrap();
        assert!(RealFs.try_lock(&lock).unwrap().is_none(), "somebody looks");
        drop((first, second));
        let writes = RealFs.try_lock(&lock).unwrap().unwrap();
        assert!(fs.try_lock(&lock).unwrap().is_none(), "somebody writes");
        drop(writes);
    }
}
