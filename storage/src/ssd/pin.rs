//! Values handed out as slices of a map instead of as copies.
//!
//! A slice keeps the map, and so the blocks of its segment, alive after the segment was dropped. All slices
//! together are at most the cap of [`Pins`]; over it, values are copied.
//!
//! Invariants: a slice is given back to the count when its last clone is gone, and not before; a segment whose file
//! was unlinked keeps its bytes for the slices of it, and counts until then.

use crate::tierdir::Lease;
use crate::vfs::Map;
use bytes::Bytes;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A map with its count in the directory, which lasts as long as anything maps the file.
#[derive(Debug)]
pub(super) struct Mapped {
    map: Map,
    _lease: Arc<Lease>,
}

impl Mapped {
    pub fn new(map: Map, lease: Arc<Lease>) -> Mapped {
        Mapped { map, _lease: lease }
    }
}

impl Deref for Mapped {
    type Target = Map;
    fn deref(&self) -> &Map {
        &self.map
    }
}

/// Counts the bytes of all slices that are held.
#[derive(Debug)]
pub(super) struct Pins {
    held: AtomicU64,
    cap: u64,
}

impl Pins {
    pub fn new(cap: u64) -> Pins {
        Pins { held: AtomicU64::new(0), cap }
    }

    /// The bytes of a range as a slice of the map; `None` if the cap is reached or they are not published.
    pub fn borrow(self: &Arc<Pins>, map: &Arc<Mapped>, range: Range<u64>) -> Option<Bytes> {
        map.slice(range.clone())?;
        let bytes = range.end - range.start;
        let room = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.cap);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        Some(Bytes::from_owner(Pinned { map: map.clone(), range, pins: self.clone() }))
    }

    /// Bytes held.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

struct Pinned {
    map: Arc<Mapped>,
    range: Range<u64>,
    pins: Arc<Pins>,
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        self.map.slice(self.range.clone()).unwrap_or_default()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.pins.held.fetch_sub(self.range.end - self.range.start, Ordering::Relaxed);
    }
}
