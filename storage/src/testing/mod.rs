//! What the tests of this crate share: a file system that fails on purpose, a container without records, and
//! bytes to store.

mod faultfs;
mod hollow;
mod noise;

pub(crate) use faultfs::{EACCES, EIO, ENOSPC, Fault, FaultFs, Op};
pub(crate) use hollow::Hollow;
pub(crate) use noise::noise;

use crate::container::{Entry, Known};
use std::sync::atomic::Ordering;

/// What a catalog would know of a container.
pub(crate) fn known_of(entry: &Entry) -> Known {
    Known {
        no: entry.no,
        id: entry.id,
        tier: entry.tier,
        dir: entry.dir,
        created_ms: entry.created_ms,
        records: entry.records.load(Ordering::Relaxed),
        earliest_expiry: entry.earliest_expiry.load(Ordering::Relaxed),
    }
}
