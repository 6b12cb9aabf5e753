//! What an opening holds and has made: locks, lock files and directories.
//!
//! Invariant: until [`Holdings::keep`] is called, dropping takes everything back that this very opening made
//! (lock files while their locks are still held, then directories that are empty), so a refused opening leaves
//! no trace. A crash leaves empty directories and lock files, which mean nothing to the next opening.

use super::record::refused;
use crate::error::{Error, IoContext, Result};
use crate::vfs::{EntryKind, Vfs, VfsLock};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Weak};

/// The name of the lock file in each directory of the store, and in the catalog.
pub(super) const LOCK: &str = "lock";

/// Locks held, and what was made on the way.
#[derive(Debug)]
pub(super) struct Holdings {
    vfs: Arc<dyn Vfs>,
    read_only: bool,
    locks: Vec<(PathBuf, Arc<dyn VfsLock>)>,
    made_files: Vec<PathBuf>,
    made_dirs: Vec<PathBuf>,
    /// Lock files that were not there and, read-only, were not made.
    unlocked: Vec<PathBuf>,
}

impl Holdings {
    /// Nothing held.
    pub fn new(vfs: Arc<dyn Vfs>, read_only: bool) -> Holdings {
        Holdings {
            vfs,
            read_only,
            locks: Vec::new(),
            made_files: Vec::new(),
            made_dirs: Vec::new(),
            unlocked: Vec::new(),
        }
    }

    /// Locks a directory that exists; whether its lock file was there. `Locked` at once if somebody else has it.
    /// Read-only, a lock file that is not there is not made, and the lock is shared with others who read.
    pub fn lock(&mut self, dir: &Path) -> Result<bool> {
        let file = dir.join(LOCK);
        let there = self.vfs.kind(&file).map_err(|e| refused("look at", &file, e))?.is_some();
        if !there && self.read_only {
            // Who writes makes one first, so nobody does. Whether somebody begins to while this reads, `came` tells.
            self.unlocked.push(file);
            return Ok(false);
        }
        let locked = || Error::Locked { path: dir.to_path_buf() };
        let lock = match self.read_only {
            true => self.vfs.try_lock_shared(&file),
            false => self.vfs.try_lock(&file),
        };
        let lock = lock.map_err(|e| refused("lock", &file, e))?.ok_or_else(locked)?;
        // Another opening that failed may have removed the file between our opening it and locking it; then
        // what is locked has no name, or another file has it by now, which the next process would lock.
        if !lock.is_at(&file).at("look at", &file)? {
            let again =
                || self.vfs.kind(&file).is_ok_and(|kind| kind.is_some()) && self.numbers_change(&file);
            return Err(if again() { no_numbers(dir) } else { locked() });
        }
        if !there {
            self.made_files.push(file.clone());
        }
        self.locks.push((dir.to_path_buf(), lock.into()));
        Ok(there)
    }

    /// Whether a file that was opened just now is not found again by its number, time after time: no race is lost so
    /// often.
    fn numbers_change(&self, file: &Path) -> bool {
        (0..3).all(|_| match self.vfs.try_lock_shared(file) {
            Ok(Some(lock)) => lock.is_at(file).is_ok_and(|at| !at),
            _ => false,
        })
    }

    /// A directory that was read without a lock, and has a lock file by now: somebody has opened it meanwhile.
    pub fn came(&self) -> Option<&Path> {
        // What cannot be looked at is no reason to distrust what was read.
        let file = self.unlocked.iter().find(|file| matches!(self.vfs.kind(file), Ok(Some(_))))?;
        file.parent()
    }

    /// The lock of a directory; `None` if it has none.
    pub fn lock_of(&self, dir: &Path) -> Option<Weak<dyn VfsLock>> {
        self.locks.iter().find(|(of, _)| of == dir).map(|(_, lock)| Arc::downgrade(lock))
    }

    /// Makes a directory and those above it that are missing, durably, and remembers which were made.
    pub fn make_dir(&mut self, dir: &Path) -> Result<()> {
        let mut missing = Vec::new();
        for above in dir.ancestors() {
            if above.as_os_str().is_empty() || self.vfs.kind(above).at("look at", above)?.is_some() {
                break;
            }
            missing.push(above.to_path_buf());
        }
        for path in missing.into_iter().rev() {
            self.vfs.create_dir_all(&path).map_err(|e| refused("create", &path, e))?;
            self.made_dirs.push(path.clone());
            if let Some(parent) = path.parent() {
                self.vfs.sync_dir(parent).at("sync", parent)?;
            }
        }
        Ok(())
    }

    /// The opening succeeded: what was made stays, except lock files in directories that are not used after
    /// all (the empty mount point of a disk that the store was opened without).
    pub fn keep(&mut self, used: impl Fn(&Path) -> bool) {
        self.made_dirs.clear();
        for file in self.made_files.drain(..) {
            if !file.parent().is_some_and(&used) {
                let _ = self.vfs.remove_file(&file);
            }
        }
    }
}

impl Drop for Holdings {
    fn drop(&mut self) {
        for file in self.made_files.drain(..) {
            let _ = self.vfs.remove_file(&file);
        }
        for dir in self.made_dirs.drain(..).rev() {
            if self.vfs.read_dir(&dir).is_ok_and(|entries| entries.is_empty()) {
                let _ = self.vfs.remove_dir_all(&dir);
            }
        }
    }
}

fn no_numbers(dir: &Path) -> Error {
    let why = "its file system gives a file another number each time it is looked at, and by the number of its lock \
               file an open store knows its directory again: use a file system that keeps them, such as ext4, xfs or btrfs";
    Error::BadDirectory { path: dir.to_path_buf(), why: why.to_owned() }
}

/// A path of a directory, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    /// Absolute, without links; the part that does not exist yet as given.
    pub path: PathBuf,
    /// Whether it is there.
    pub exists: bool,
}

/// Resolves the path of a directory that may not exist. `BadDirectory` if something else is in the way.
pub(super) fn resolve(vfs: &dyn Vfs, given: &Path) -> Result<Resolved> {
    let bad = |why: &str| Error::BadDirectory { path: given.to_path_buf(), why: why.to_owned() };
    let absolute = std::path::absolute(given).map_err(|_| bad("it is not a path: name a directory"))?;
    let mut below = Vec::new();
    for above in absolute.ancestors() {
        let kind = match vfs.kind(above) {
            Ok(kind) => kind,
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
                return Err(bad("a part of the path is a file: name a directory"));
            }
            Err(e) => return Err(refused("look at", above, e)),
        };
        match kind {
            None => {
                match above.components().next_back() {
                    Some(Component::Normal(name)) => below.push(name.to_owned()),
                    _ => {
                        return Err(bad(
                            "it has `..` below a directory that does not exist: write it without",
                        ));
                    }
                }
                continue;
            }
            Some(EntryKind::File) => {
                return Err(bad("a file is there: name a directory, or remove the file"));
            }
            Some(_) => {}
        }
        let real = match vfs.canonical(above) {
            Ok(real) => real,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(bad("it is a link that leads nowhere: mount what it points to, or remove it"));
            }
            Err(e) => return Err(refused("look at", above, e)),
        };
        if vfs.kind(&real).at("look at", &real)? != Some(EntryKind::Dir) {
            return Err(bad("what is there is no directory: name a directory"));
        }
        let exists = below.is_empty();
        let path = below.into_iter().rev().fold(real, |path, name| path.join(name));
        return Ok(Resolved { path, exists });
    }
    Err(bad("it is not a path: name a directory"))
}
