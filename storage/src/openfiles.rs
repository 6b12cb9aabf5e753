//! A bounded cache of open files: a tier has more containers than a process may have descriptors.

use crate::vfs::VfsFile;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

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

    /// The open file, if it is here.
    pub(crate) fn get(&self, id: K) -> Option<Arc<dyn VfsFile>> {
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
