//! What the whole tier may hold: bytes and entries, reserved before an entry is put in place.
//!
//! Invariant: the reserved sums never grow beyond the limits in force, so what is resident never does; after a
//! limit was lowered they only fall until they are within it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// An amount of both resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Amount {
    pub(super) bytes: u64,
    pub(super) items: u64,
}

impl Amount {
    pub(super) fn item(bytes: u64) -> Amount {
        Amount { bytes, items: 1 }
    }

    pub(super) fn plus(self, other: Amount) -> Amount {
        Amount {
            bytes: self.bytes.saturating_add(other.bytes),
            items: self.items.saturating_add(other.items),
        }
    }

    pub(super) fn at_most(self, other: Amount) -> Amount {
        Amount { bytes: self.bytes.min(other.bytes), items: self.items.min(other.items) }
    }

    pub(super) fn minus(self, other: Amount) -> Amount {
        Amount {
            bytes: self.bytes.saturating_sub(other.bytes),
            items: self.items.saturating_sub(other.items),
        }
    }
}

/// Which resource is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Short {
    Bytes,
    Items,
}

#[derive(Debug)]
pub(super) struct Budget {
    max_bytes: AtomicU64,
    max_items: AtomicU64,
    bytes: AtomicU64,
    items: AtomicU64,
}

fn add_within(used: &AtomicU64, more: u64, max: u64) -> bool {
    // Also if nothing more is asked for: while the sum is over a limit that was lowered, nobody adds.
    used.fetch_update(Relaxed, Relaxed, |used| used.checked_add(more).filter(|&sum| sum <= max)).is_ok()
}

impl Budget {
    pub(super) fn new(max_bytes: u64, max_items: u64) -> Budget {
        Budget {
            max_bytes: AtomicU64::new(max_bytes),
            max_items: AtomicU64::new(max_items),
            bytes: AtomicU64::new(0),
            items: AtomicU64::new(0),
        }
    }

    pub(super) fn limits(&self) -> Amount {
        Amount { bytes: self.max_bytes.load(Relaxed), items: self.max_items.load(Relaxed) }
    }

    pub(super) fn set_limits(&self, max_bytes: u64, max_items: u64) {
        self.max_bytes.store(max_bytes, Relaxed);
        self.max_items.store(max_items, Relaxed);
    }

    pub(super) fn used(&self) -> Amount {
        Amount { bytes: self.bytes.load(Relaxed), items: self.items.load(Relaxed) }
    }

    /// Reserves all of it or nothing.
    pub(super) fn reserve(&self, more: Amount) -> Result<(), Short> {
        let limits = self.limits();
        if !add_within(&self.items, more.items, limits.items) {
            return Err(Short::Items);
        }
        if !add_within(&self.bytes, more.bytes, limits.bytes) {
            self.items.fetch_sub(more.items, Relaxed);
            return Err(Short::Bytes);
        }
        Ok(())
    }

    /// Gives back what was reserved.
    pub(super) fn release(&self, less: Amount) {
        self.items.fetch_sub(less.items, Relaxed);
        self.bytes.fetch_sub(less.bytes, Relaxed);
    }
}
