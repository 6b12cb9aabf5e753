//! A bounded cache of open files: a tier has more containers than a process may have descriptors.
//!
//! Invariants: at most so many are kept, the one not used for longest goes first; a container that is being dropped is
//! not kept, or its blocks would be. The lock is held for a look into the table, never while a file is opened.

use crate::error::{Error, Result};
use crate::types::ContainerNo;
use crate::vfs::{OpenMode, Vfs, VfsFile};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The files used last, by what tells them apart: a container's id where it is one file. A file that falls out stays
/// open while somebody reads it.
#[derive(Debug)]
pub(crate) struct OpenFiles<K = u64> {
    most: usize,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    files: HashMap<K, (Arc<dyn VfsFile>, u64)>,
    clock: u64,
}

impl<K: Copy + Eq + Hash> OpenFiles<K> {
    /// An empty cache of at most this many files.
    pub(crate) fn new(most: usize) -> OpenFiles<K> {
        OpenFiles { most, state: Mutex::new(State { files: HashMap::new(), clock: 0 }) }
    }

    /// A file of the container `no`, which is opened to read and kept if it is not here. Who removes it sets `dropped`
    /// and then lets go of what is here.
    ///
    /// # Errors
    /// `Gone` if the container was dropped; `Io` if its file cannot be opened.
    pub(crate) fn open(
        &self,
        id: K,
        no: ContainerNo,
        dropped: &AtomicBool,
        vfs: &dyn Vfs,
        path: impl FnOnce() -> PathBuf,
    ) -> Result<Arc<dyn VfsFile>> {
        if let Some(file) = self.get(id) {
            return Ok(file);
        }
        let path = path();
        match vfs.open(&path, OpenMode::Read) {
            Ok(file) => {
                // Not kept if it is being removed: a file kept here would keep its blocks.
                if !dropped.load(Ordering::Acquire) {
                    self.put(id, file.clone());
                    if dropped.load(Ordering::Acquire) {
                        self.remove(id);
                    }
                }
                Ok(file)
            }
            // A file that is missing though nobody dropped it is unreachable, not gone: looking its keys up again
            // would lead here again.
            Err(e) if e.kind() == io::ErrorKind::NotFound && dropped.load(Ordering::Acquire) => {
                Err(Error::Gone(no))
            }
            Err(e) => Err(Error::io("open", path, e)),
        }
    }

    /// The open file, if it is here.
    fn get(&self, id: K) -> Option<Arc<dyn VfsFile>> {
        let mut state = self.state.lock();
        state.clock += 1;
        let now = state.clock;
        state.files.get_mut(&id).map(|(file, used)| {
            *used = now;
            file.clone()
        })
    }

    /// Keeps a file, and lets go of the one not used for longest if there are too many.
    pub(crate) fn put(&self, id: K, file: Arc<dyn VfsFile>) {
        let mut state = self.state.lock();
        state.clock += 1;
        let now = state.clock;
        state.files.insert(id, (file, now));
        if state.files.len() > self.most {
            let oldest = state.files.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                state.files.remove(&oldest);
            }
        }
    }

    /// Lets go of a file.
    pub(crate) fn remove(&self, id: K) {
        self.state.lock().files.remove(&id);
    }

    /// Lets go of all files but these.
    pub(crate) fn retain(&self, keep: impl Fn(&K) -> bool) {
        self.state.lock().files.retain(|id, _| keep(id));
    }

    /// Lets go of all.
    pub(crate) fn clear(&self) {
        self.state.lock().files.clear();
    }

    /// How many are kept.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.state.lock().files.len()
    }
}
