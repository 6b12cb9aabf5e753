//! What compressing comes to, by content type and codec: values tried, bytes before and after, time.
//!
//! Invariant: counters only rise; a value is counted once for each time that a compressor was run on it, or a sample of
//! it looked at, and not at all where its type or its length decided.

use crate::types::{Codec, ContentType};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one content type and one codec.
#[derive(Debug, Default)]
struct Counter {
    kept: AtomicU64,
    original_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    skipped: AtomicU64,
    skipped_bytes: AtomicU64,
    nanos: AtomicU64,
}

/// What was compressed, and what that took. Any number of threads may count at once.
#[derive(Debug, Default)]
pub struct Effort([[Counter; 3]; 4]);

/// What one codec did to the values of one content type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Values that are stored compressed by it.
    pub kept: u64,
    /// Their bytes before.
    pub original_bytes: u64,
    /// Their bytes after.
    pub stored_bytes: u64,
    /// Values that are stored as they were, because they did not shrink enough or a sample said that they would not.
    pub skipped: u64,
    /// Their bytes.
    pub skipped_bytes: u64,
    /// Nanoseconds of processor time, about, for all of them, in vain or not.
    pub nanos: u64,
}

/// One value that a codec was tried on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    pub(crate) codec: Codec,
    pub(crate) original: usize,
    /// `None`: it was in vain.
    pub(crate) stored: Option<usize>,
    pub(crate) nanos: u64,
}

impl Effort {
    fn counter(&self, content_type: ContentType, codec: Codec) -> Option<&Counter> {
        let codec = match codec {
            Codec::None => return None,
            Codec::Zlib => 0,
            Codec::Lz4 => 1,
            Codec::Deflate => 2,
        };
        let row = (content_type as usize).checked_sub(1)?;
        self.0.get(row)?.get(codec)
    }

    pub(crate) fn count(&self, content_type: ContentType, attempt: Attempt) {
        let Some(counter) = self.counter(content_type, attempt.codec) else { return };
        let add = |to: &AtomicU64, n: usize| to.fetch_add(n as u64, Ordering::Relaxed);
        match attempt.stored {
            Some(stored) => {
                add(&counter.kept, 1);
                add(&counter.original_bytes, attempt.original);
                add(&counter.stored_bytes, stored);
            }
            None => {
                add(&counter.skipped, 1);
                add(&counter.skipped_bytes, attempt.original);
            }
        }
        counter.nanos.fetch_add(attempt.nanos, Ordering::Relaxed);
    }

    /// What was counted so far of a content type (`Auto` has none) and a codec (`None` likewise).
    pub fn spent(&self, content_type: ContentType, codec: Codec) -> Spent {
        let Some(counter) = self.counter(content_type, codec) else { return Spent::default() };
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Spent {
            kept: of(&counter.kept),
            original_bytes: of(&counter.original_bytes),
            stored_bytes: of(&counter.stored_bytes),
            skipped: of(&counter.skipped),
            skipped_bytes: of(&counter.skipped_bytes),
            nanos: of(&counter.nanos),
        }
    }
}
