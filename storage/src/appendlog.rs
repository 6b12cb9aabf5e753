//! An append-only file that knows how much of it is on stable storage: the code that writes containers.
//!
//! Invariants:
//! - a file with its final name has a complete, synced header, and its directory entry is durable;
//! - bytes are written once, in order, at the end; nothing is ever written to a byte that was written before;
//! - [`AppendFile::synced`] never covers a byte that a successful `sync` did not cover;
//! - after any failed write or sync the file is *poisoned*: it takes no more writes and is never synced again,
//!   because the kernel may have dropped the dirty pages and would report success for pages that it no longer
//!   has. Its contents count up to [`AppendFile::synced`]; what came after is appended elsewhere by the caller.
//!
//! What a crash leaves: before the rename a `.tmp` file, which the next opening deletes; between the rename and
//! the sync of the directory a file with a whole header and no records, or none; after that a file whose bytes
//! up to the last sync are there, and beyond it any mixture of what was written and zeros.

use crate::error::{Error, IoContext, Result};
use crate::vfs::{OpenMode, Vfs, VfsFile};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a temporary name ends in.
pub const TMP: &str = ".tmp";

/// The folder's path of `name` while it is being made.
fn temporary(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}{TMP}"))
}

/// An append-only file and how much of it is durable. One writer; readers share [`file`](Self::file).
#[derive(Debug)]
pub struct AppendFile {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    appended: u64,
    synced: u64,
    reserved: u64,
    poisoned: bool,
}

impl AppendFile {
    /// Makes `folder/name` with this header: under a temporary name, with `preallocate` bytes reserved (`None`:
    /// it grows), synced, renamed, and the folder synced. On an error nothing is left behind, as far as the file
    /// system allows; a name that could not be removed is one that no catalog knows.
    ///
    /// # Errors
    /// `Io`, naming the step that failed; `ENOSPC` of the reservation comes through unchanged.
    pub fn create(
        vfs: &dyn Vfs,
        folder: &Path,
        name: &str,
        header: &[u8],
        preallocate: Option<u64>,
    ) -> Result<AppendFile> {
        let tmp = temporary(folder, name);
        let path = folder.join(name);
        if vfs.kind(&tmp).at("look at", &tmp)?.is_some() {
            vfs.remove_file(&tmp).at("remove", &tmp)?;
        }
        let made = Self::prepare(vfs, &tmp, header, preallocate).and_then(|file| {
            vfs.rename(&tmp, &path).at("rename", &tmp)?;
            vfs.sync_dir(folder).at("sync", folder)?;
            Ok(file)
        });
        match made {
            Ok(file) => {
                let len = header.len() as u64;
                Ok(AppendFile {
                    file,
                    path,
                    appended: len,
                    synced: len,
                    reserved: preallocate.unwrap_or(0).max(len),
                    poisoned: false,
                })
            }
            Err(e) => {
                for leftover in [&tmp, &path] {
                    if let Ok(Some(_)) = vfs.kind(leftover) {
                        let _ = vfs.remove_file(leftover);
                    }
                }
                Err(e)
            }
        }
    }

    fn prepare(
        vfs: &dyn Vfs,
        tmp: &Path,
        header: &[u8],
        preallocate: Option<u64>,
    ) -> Result<Arc<dyn VfsFile>> {
        let file = vfs.open(tmp, OpenMode::CreateNew).at("create", tmp)?;
        if let Some(len) = preallocate {
            file.allocate(len).at("allocate", tmp)?;
        }
        file.write_all_at(header, 0).at("write", tmp)?;
        file.sync().at("sync", tmp)?;
        Ok(file)
    }

    /// Appends bytes and says at which offset they stand. They are not durable before [`sync`](Self::sync).
    ///
    /// # Errors
    /// `Io`; the file is poisoned then.
    pub fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        let at = self.appended;
        self.append_at(bytes, at)?;
        Ok(at)
    }

    /// Appends bytes at `offset`, which must not be below what was appended; the gap stays zeros. For a trailer
    /// at the end of a preallocated file.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_at(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        self.usable("append to")?;
        if offset < self.appended {
            let e = io::Error::new(io::ErrorKind::InvalidInput, "these bytes were written already");
            return Err(Error::io("append to", &self.path, e));
        }
        match self.file.write_all_at(bytes, offset) {
            Ok(()) => {
                self.appended = offset.saturating_add(bytes.len() as u64);
                self.reserved = self.reserved.max(self.appended);
                Ok(())
            }
            Err(e) => {
                self.poisoned = true;
                Err(Error::io("append to", &self.path, e))
            }
        }
    }

    /// Reserves disk blocks for the first `len` bytes, so that appending up to there cannot meet a full disk.
    ///
    /// # Errors
    /// `Io`; nothing that was written is in doubt, so the file is *not* poisoned.
    pub fn reserve(&mut self, len: u64) -> Result<()> {
        self.usable("allocate")?;
        if len > self.reserved {
            self.file.allocate(len).at("allocate", &self.path)?;
            self.reserved = len;
        }
        Ok(())
    }

    /// Makes everything appended durable. After an error nothing is synced again: the kernel may have dropped the
    /// dirty pages and would report success the second time (Rebello et al., "Can Applications Recover from
    /// fsync Failures?", 2020).
    ///
    /// # Errors
    /// `Io`; the file is poisoned then.
    pub fn sync(&mut self) -> Result<()> {
        self.usable("sync")?;
        if self.synced == self.appended {
            return Ok(());
        }
        match self.file.sync() {
            Ok(()) => {
                self.synced = self.appended;
                Ok(())
            }
            Err(e) => {
                self.poisoned = true;
                Err(Error::io("sync", &self.path, e))
            }
        }
    }

    fn usable(&self, op: &'static str) -> Result<()> {
        if self.poisoned {
            let e = io::Error::other("an earlier write or sync of this file failed");
            return Err(Error::io(op, &self.path, e));
        }
        Ok(())
    }

    /// Bytes appended, the header included.
    pub fn appended(&self) -> u64 {
        self.appended
    }

    /// Bytes from the start that are on stable storage.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Bytes from the start that disk blocks are reserved for or that were appended.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// A folder above the file was renamed, so that this is its path now.
    pub fn moved_to(&mut self, path: PathBuf) {
        self.path = path;
    }

    /// Whether a write or a sync failed.
    pub fn poisoned(&self) -> bool {
        self.poisoned
    }

    /// The file, for readers.
    pub fn file(&self) -> &Arc<dyn VfsFile> {
        &self.file
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fault, FaultFs, Op};
    use crate::vfs::RealFs;

    #[test]
    fn what_is_appended_stands_where_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let mut f = AppendFile::create(&RealFs, dir.path(), "a", b"head", Some(8192)).unwrap();
        assert_eq!((f.appended(), f.synced()), (4, 4));
        assert_eq!(f.append(b"one").unwrap(), 4);
        assert_eq!(f.append(b"two").unwrap(), 7);
        assert_eq!((f.appended(), f.synced()), (10, 4));
        f.append_at(b"end", 8189).unwrap();
        assert!(f.append_at(b"x", 100).is_err(), "an offset below the end overwrites");
        f.sync().unwrap();
        assert_eq!(f.synced(), 8192);
        let on_disk = std::fs::read(dir.path().join("a")).unwrap();
        assert_eq!(on_disk.len(), 8192);
        assert_eq!(&on_disk[..10], b"headonetwo");
        assert_eq!(&on_disk[8189..], b"end");
    }

    #[test]
    fn what_is_reserved_grows_and_never_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let mut f = AppendFile::create(&RealFs, dir.path(), "a", b"head", None).unwrap();
        assert_eq!(f.reserved(), 4);
        f.reserve(10_000).unwrap();
        f.reserve(5000).unwrap();
        assert_eq!((f.reserved(), f.appended(), f.file().len().unwrap()), (10_000, 4, 10_000));
        f.append(b"one").unwrap();
        assert_eq!(f.reserved(), 10_000);
        f.append(&[1; 10_000]).unwrap();
        assert_eq!(f.reserved(), 10_007, "what is appended has its blocks");
        assert!(f.reserve(u64::MAX / 4).is_err());
        assert!(!f.poisoned(), "no byte is in doubt");
        f.append(b"two").unwrap();
        f.sync().unwrap();
        let folder = dir.path().join("elsewhere");
        f.moved_to(folder.join("a"));
        assert!(f.path().starts_with(folder));
    }

    #[test]
    fn a_stale_temporary_is_replaced_and_none_is_left() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.tmp"), b"old").unwrap();
        AppendFile::create(&RealFs, dir.path(), "a", b"head", None).unwrap();
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["a"]);
    }

    #[test]
    fn a_reservation_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(AppendFile::create(&RealFs, dir.path(), "a", b"head", Some(u64::MAX / 4)).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_failed_sync_poisons_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let fs = FaultFs::default();
        let mut f = AppendFile::create(&fs, dir.path(), "a", b"head", None).unwrap();
        f.append(b"one").unwrap();
        f.sync().unwrap();
        fs.fail(Fault::on(Op::Sync).times(1));
        f.append(b"two").unwrap();
        assert!(f.sync().is_err());
        assert!(f.poisoned());
        assert_eq!(f.synced(), 7);
        assert!(f.sync().is_err(), "the next sync would report success for pages that may be gone");
        assert!(f.append(b"three").is_err());
    }
}
