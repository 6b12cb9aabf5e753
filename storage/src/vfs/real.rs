//! The real file system, on Linux.
//!
//! Invariants: those of the module above. `sync` is `fdatasync`: of the metadata only what is needed to read the bytes
//! is durable, which includes the length. A lock is `flock`'s: it ends when it is let
//! go of, or with the process, however that ends.

use super::{DirEntry, EntryKind, Map, OpenMode, Space, Vfs, VfsFile, VfsLock, read_in_full, write_in_full};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The machine's file systems.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealFs;

#[derive(Debug)]
struct RealFile(File);

#[derive(Debug)]
struct RealLock(File);

impl VfsLock for RealLock {
    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let locked = self.0.metadata()?;
        match fs::symlink_metadata(path) {
            // A file that is open keeps its number, and its file system the device's.
            Ok(there) => Ok((there.dev(), there.ino()) == (locked.dev(), locked.ino())),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Drop for RealLock {
    /// Lets go at once. To close the file is not enough: a child that this process is just starting has a copy of it,
    /// and with it the lock, until it becomes the program that it is to be.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// `O_NOFOLLOW`: the last component must not be a link.
const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

fn held(locked: Result<(), TryLockError>, file: File) -> io::Result<Option<Box<dyn VfsLock>>> {
    match locked {
        Ok(()) => Ok(Some(Box::new(RealLock(file)))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

fn kind_of(meta: &fs::Metadata) -> EntryKind {
    if meta.is_file() {
        EntryKind::File
    } else if meta.is_dir() {
        EntryKind::Dir
    } else {
        EntryKind::Other
    }
}

/// A link that stands where a folder of a store belongs leads out of the store. (Who swaps a folder for a link between
/// this look and the use of the folder can write to the directory above it, and the files in it as well.)
fn no_link(folder: &Path) -> io::Result<()> {
    if fs::symlink_metadata(folder)?.is_symlink() {
        return Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            "it is a symbolic link, and none is followed inside a store: put the directory itself here, or name the \
             one that the link leads to as a directory of the store",
        ));
    }
    Ok(())
}

impl Vfs for RealFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(NOFOLLOW).mode(0o600);
        match mode {
            OpenMode::Read => {}
            OpenMode::ReadWrite => {
                options.write(true);
            }
            OpenMode::CreateNew => {
                options.write(true).create_new(true);
            }
        }
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        no_link(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        no_link(path)?;
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let len = if meta.is_file() { meta.len() } else { 0 };
            entries.push(DirEntry { name, kind: kind_of(&meta), len });
        }
        Ok(entries)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        match fs::symlink_metadata(path) {
            Ok(meta) => Ok(Some(kind_of(&meta))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        OpenOptions::new().read(true).custom_flags(NOFOLLOW).open(path)?.sync_all()
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(NOFOLLOW)
            .mode(0o600)
            .open(path)?;
        held(file.try_lock(), file)
    }

    fn try_lock_shared(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        let file = OpenOptions::new().read(true).custom_flags(NOFOLLOW).open(path)?;
        held(file.try_lock_shared(), file)
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let s = rustix::fs::statvfs(path)?;
        Ok(Space {
            free: s.f_bavail.saturating_mul(s.f_frsize),
            total: s.f_blocks.saturating_mul(s.f_frsize),
        })
    }
}

impl VfsFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        read_in_full(buf, offset, |buf, at| self.0.read_at(buf, at))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        write_in_full(buf, offset, |buf, at| self.0.write_at(buf, at))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        loop {
            match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, len) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                // A file system without preallocation: a longer file is all there is; ENOSPC then comes from
                // `pwrite`, which the writers handle.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => return self.0.set_len(len),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.blocks() * 512)
    }

    fn map(&self, len: u64) -> io::Result<Option<Map>> {
        Map::new(&self.0, len).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_when_it_is_let_go_of_whoever_has_a_copy_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = File::create(&path).unwrap();
        // What a child has between its fork and its exec.
        let copy = file.try_clone().unwrap();
        let lock = held(file.try_lock(), file).unwrap().unwrap();
        assert!(RealFs.try_lock(&path).unwrap().is_none());
        drop(lock);
        assert!(RealFs.try_lock(&path).unwrap().is_some());
        drop(copy);
    }
}
