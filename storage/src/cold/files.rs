//! A bounded cache of open files: an archive has more packs than a process may have descriptors.

use crate::vfs::VfsFile;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Packs kept open.
pub(super) const OPEN_FILES: usize = 128;

/// The files used last, by container id. A file that falls out stays open while somebody reads it.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<u64, (Arc<dyn VfsFile>, u64)>,
    clock: u64,
}

impl OpenFiles {
    /// The open file of a container.
    pub(super) fn get(&self, id: u64) -> Option<Arc<dyn VfsFile>> {
        let mut state = self.state.lock();
        state.clock += 1;
        let now = state.clock;
        state.files.get_mut(&id).map(|(file, used)| {
            *used = now;
            file.clone()
        })
    }

    /// Keeps a file, and lets go of the one not used for longest if there are too many.
    pub(super) fn put(&self, id: u64, file: Arc<dyn VfsFile>) {
        let mut state = self.state.lock();
        state.clock += 1;
        let now = state.clock;
        state.files.insert(id, (file, now));
        if state.files.len() > OPEN_FILES {
            let oldest = state.files.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                state.files.remove(&oldest);
            }
        }
    }

    /// Lets go of a container's file.
    pub(super) fn remove(&self, id: u64) {
        self.state.lock().files.remove(&id);
    }

    /// Lets go of all.
    pub(super) fn clear(&self) {
        self.state.lock().files.clear();
    }

    /// How many are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.state.lock().files.len()
    }
}
