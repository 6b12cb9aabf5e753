//! The count of one file's bytes, for files that readers may hold beyond their removal.
//!
//! Invariant: the bytes of a file are counted exactly once from its making until its last holder lets go, as occupied
//! while it has a name, and as lingering from then on. Nothing is written here.

use super::Dir;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Counts a file's bytes in its directory: as occupied until [`removed`](Self::removed), then as lingering until
/// the last holder lets go.
#[derive(Debug)]
pub(crate) struct Lease {
    dir: Arc<Dir>,
    size: u64,
    removed: AtomicBool,
}

impl Lease {
    /// A lease on bytes that the directory counts as occupied already.
    pub(super) fn new(dir: Arc<Dir>, size: u64) -> Lease {
        Lease { dir, size, removed: AtomicBool::new(false) }
    }

    /// The directory.
    pub fn dir(&self) -> &Arc<Dir> {
        &self.dir
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file is gone for good; its blocks are, once the last holder of the lease is.
    pub fn removed(&self) {
        if !self.removed.swap(true, Ordering::AcqRel) {
            self.dir.lingering.fetch_add(self.size, Ordering::Relaxed);
            self.dir.change(self.size, 0);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if *self.removed.get_mut() {
            self.dir.lingering.fetch_sub(self.size, Ordering::Relaxed);
        } else {
            self.dir.change(self.size, 0);
        }
    }
}
