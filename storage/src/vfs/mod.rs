//! The only door to the disk.
//!
//! Everything that the engine does to a disk goes through [`Vfs`] and [`VfsFile`], so that a simulated file
//! system can stand behind them. (sled opens its own files; it is fenced elsewhere. The engine's socket, which holds no data,
//! is bound and removed past this.)
//!
//! Invariants that implementations keep:
//! - a path is never followed through a symbolic link in its last component;
//! - files are created with mode 0600, directories with 0700;
//! - `write_all_at` and `read_exact_at` retry short counts and EINTR;
//! - nothing is durable before `sync` of the file *and* `sync_dir` of the directory that names it.

mod gate;
mod map;
mod meter;
mod readonly;
mod real;

pub use gate::{Background, Gate};
pub use map::Map;
pub use meter::{DiskReads, Meter, Metered, Traffic};
pub use readonly::ReadOnly;
pub use real::RealFs;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    ReadWrite,
    /// A file that must not exist yet, to read and write.
    CreateNew,
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A link, a socket, a device: nothing that the engine made.
    Other,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name; names that are not UTF-8 are not listed, the engine makes none.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Length in bytes of a file; 0 otherwise.
    pub len: u64,
}

/// Free and total bytes of the file system that holds a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes available to this process.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Holds a lock until it is dropped.
pub trait VfsLock: Send + Sync + fmt::Debug {
    /// Whether the file at this path is the one that is locked: false if there is none, or another.
    fn is_at(&self, path: &Path) -> io::Result<bool>;
}

/// A file system.
pub trait Vfs: Send + Sync + fmt::Debug + 'static {
    /// Whether paths still lead to what was opened; files that are open can be written to when they do not.
    ///
    /// # Errors
    /// They do not, or it cannot be told.
    fn still_there(&self) -> io::Result<()> {
        Ok(())
    }
    /// Opens or creates a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>>;
    /// Makes a directory and those above it that are missing; fine if it exists.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Entries of a directory, in no order.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
    /// What the path is, without following a link; `None` if there is nothing.
    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>>;
    /// Renames, replacing a file that is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all in it, following no links.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Takes an exclusive lock on a file, made if missing; `None` if somebody else holds it.
    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>>;
    /// Takes a lock on a file that is there, opened to read alone; others may have it too, but nobody at the same time
    /// with [`try_lock`](Self::try_lock). `None` if somebody has that. Where locks are all alike, one of those.
    fn try_lock_shared(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        match self.kind(path)? {
            Some(_) => self.try_lock(path),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
    /// The path without links and dots, of something that exists: two paths of one directory come out equal.
    /// Where there are no links, the path itself.
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(path.to_path_buf())
    }
    /// Free and total bytes where the path lies.
    fn space(&self, path: &Path) -> io::Result<Space>;
    /// Bytes that nobody can guess. They come from the system, and so by the same door as the disks.
    fn random(&self) -> io::Result<[u8; 16]> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        Ok(bytes)
    }
}

/// An open file. Positions are always given, so it can be shared between threads.
pub trait VfsFile: Send + Sync + fmt::Debug + 'static {
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf`.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Reserves disk blocks for the first `len` bytes and sets the length to at least that.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Makes the data and the length durable.
    fn sync(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Bytes that the file occupies on disk, preallocation included.
    fn allocated(&self) -> io::Result<u64>;
    /// A read-only map of the first `len` bytes, all of them unpublished; `None` where maps are not supported.
    fn map(&self, len: u64) -> io::Result<Option<Map>>;

    /// Reads exactly `buf.len()` bytes, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let n = self.read_at(buf, offset)?;
        if n < buf.len() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{n} of {} bytes", buf.len())));
        }
        Ok(())
    }
}

/// Reads until the buffer is full or the file ends, with calls that may read less or be interrupted.
pub(crate) fn read_in_full(
    buf: &mut [u8],
    offset: u64,
    mut once: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
        match once(rest, offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Writes all of a buffer, with calls that may write less or be interrupted.
pub(crate) fn write_in_full(
    buf: &[u8],
    offset: u64,
    mut once: impl FnMut(&[u8], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = buf.get(done..).filter(|r| !r.is_empty()) {
        match once(rest, offset.saturating_add(done as u64)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads a whole file that is expected to be small; refuses one longer than `limit` bytes.
pub fn read_small(vfs: &dyn Vfs, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = vfs.open(path, OpenMode::Read)?;
    let len = file.len()?;
    if len > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{len} bytes, expected at most {limit}"),
        ));
    }
    let mut buf = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut buf, 0)?;
    Ok(buf)
}

/// Writes a small file whole: under a temporary name, synced, renamed over `path`, directory synced. After a
/// crash at any step there is the old file or the new one, and perhaps `path` with `.tmp` behind it.
pub fn replace_small(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(".tmp");
    let tmp = PathBuf::from(tmp);
    if vfs.kind(&tmp)?.is_some() {
        vfs.remove_file(&tmp)?;
    }
    let file = vfs.open(&tmp, OpenMode::CreateNew)?;
    file.write_all_at(bytes, 0)?;
    file.sync()?;
    vfs.rename(&tmp, path)?;
    match path.parent() {
        Some(dir) => vfs.sync_dir(dir),
        None => Ok(()),
    }
}
