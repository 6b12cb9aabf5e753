//! Whether a path still leads to the directory that was opened. A disk that goes away leaves its path to whatever is
//! mounted, moved or copied there next: nothing; an older copy of the directory; another store's.
//!
//! Invariants:
//! - what goes through [`Anchored`] opens, makes, renames and removes nothing in a directory whose lock file is not the
//!   one that this process has locked, nor after the store was closed;
//! - no lock is taken anew. A directory whose disk went away and was mounted as another device is the same to people, but
//!   what was open in it is dead, and what was not synced is gone: opening the store again finds out what is left.
//!
//! Nothing is written here.

use super::judge::other_store;
use super::record::{identity_paths, read_pair};
use crate::error::{Error, Result};
use crate::vfs::{DirEntry, EntryKind, OpenMode, Space, Vfs, VfsFile, VfsLock};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// One directory of an open store, or its catalog's, as it was when its lock was taken.
pub struct Anchor {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    lock_file: PathBuf,
    /// Ends with the [`Home`](super::Home).
    lock: Weak<dyn VfsLock>,
    store: [u8; 16],
    /// The directory's number; `None` of a catalog.
    no: Option<u16>,
    /// The open counter that its identity has by now.
    counter: Arc<AtomicU64>,
}

impl fmt::Debug for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anchor").field("path", &self.path).field("no", &self.no).finish_non_exhaustive()
    }
}

impl PartialEq for Anchor {
    fn eq(&self, other: &Anchor) -> bool {
        (&self.path, self.store, self.no) == (&other.path, other.store, other.no)
    }
}

impl Eq for Anchor {}

impl Anchor {
    pub(super) fn new(
        vfs: Arc<dyn Vfs>,
        path: &Path,
        lock: Weak<dyn VfsLock>,
        (store, no): ([u8; 16], Option<u16>),
        counter: Arc<AtomicU64>,
    ) -> Anchor {
        let lock_file = path.join(super::hold::LOCK);
        Anchor { vfs, path: path.to_path_buf(), lock_file, lock, store, no, counter }
    }

    /// Whether the lock that is held is that of the file at the path. One look at a name.
    fn holds(&self) -> io::Result<bool> {
        match self.lock.upgrade() {
            Some(lock) => lock.is_at(&self.lock_file),
            None => Ok(false),
        }
    }

    /// Looks whether the path leads to the directory that was opened, in full: what can be read of its identity must say
    /// so, and its lock must be the one that is held.
    ///
    /// # Errors
    /// Why it does not, and what to do: `OtherStore`, `BadDirectory`; `Io` if it cannot be looked at.
    pub fn check(&self) -> Result<()> {
        let refused = |why: String| Err(Error::BadDirectory { path: self.path.clone(), why });
        let mut why = "it is a copy of the directory that was opened, or that one's disk was mounted as another device: \
                       put the one back that was in use, or close the store and open it again";
        // Its identity is here: the directory, or a copy of it.
        let mut found = false;
        if let Some(here) = self.no {
            let pair = read_pair(&*self.vfs, &identity_paths(&self.path), true)?;
            let now = self.counter.load(Ordering::Acquire);
            match pair.best {
                // Then the lock decides alone: a bad sector is no other directory.
                None if pair.exists => {
                    why = "its identity files cannot be read, and it is not the directory that was opened: put that \
                           one back, or close the store and open it again";
                }
                None => why = "its identity files are not there: mount its disk",
                Some(r) if r.store != self.store => {
                    return Err(other_store(&self.path, r.store, self.store));
                }
                Some(r) if r.this != Some(here) => {
                    let found = r.this.unwrap_or_default();
                    return refused(format!(
                        "it says that it is directory {found} of the store, and directory {here} belongs here: mount \
                         that one"
                    ));
                }
                Some(r) if r.counter < now => {
                    return refused(format!(
                        "it ends at opening {}, and this is opening {now}: it is an older copy. Put the one back that \
                         was in use; or close the store, and open it without this one",
                        r.counter
                    ));
                }
                Some(r) if r.counter > now => {
                    return refused(format!(
                        "it has seen opening {}, and this is opening {now}: somebody else has used it since. Close the \
                         store and open it again",
                        r.counter
                    ));
                }
                Some(_) => found = true,
            }
        }
        match self.holds() {
            Ok(true) => Ok(()),
            Ok(false) if found && matches!(self.vfs.kind(&self.lock_file), Ok(None)) => refused(
                "its file `lock` was removed, by which an open store knows its directory again: close the store and \
                 open it again"
                    .to_owned(),
            ),
            Ok(false) => refused(why.to_owned()),
            Err(e) => Err(Error::io("look at", &self.lock_file, e)),
        }
    }
}

/// A file system as one directory of an open store may use it: see the module.
#[derive(Debug)]
pub struct Anchored {
    vfs: Arc<dyn Vfs>,
    anchor: Arc<Anchor>,
}

impl Anchored {
    /// The file system, for what is below the anchor's directory; as it is without an anchor.
    pub fn over(vfs: Arc<dyn Vfs>, anchor: Option<Arc<Anchor>>) -> Arc<dyn Vfs> {
        match anchor {
            Some(anchor) => Arc::new(Anchored { vfs, anchor }),
            None => vfs,
        }
    }

    fn held(&self) -> io::Result<&dyn Vfs> {
        if self.anchor.holds()? {
            return Ok(&*self.vfs);
        }
        Err(io::Error::new(
            io::ErrorKind::StaleNetworkFileHandle,
            format!(
                "{} does not lead to the directory that was opened, or its lock file was removed",
                self.anchor.path.display()
            ),
        ))
    }
}

impl Vfs for Anchored {
    fn still_there(&self) -> io::Result<()> {
        self.held().map(drop)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        self.held()?.open(path, mode)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.held()?.create_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.held()?.read_dir(path)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        self.vfs.kind(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.held()?.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.held()?.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.held()?.remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.held()?.sync_dir(path)
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        self.held()?.try_lock(path)
    }

    fn try_lock_shared(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        self.held()?.try_lock_shared(path)
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        self.vfs.canonical(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.vfs.space(path)
    }

    fn random(&self) -> io::Result<[u8; 16]> {
        self.vfs.random()
    }
}
