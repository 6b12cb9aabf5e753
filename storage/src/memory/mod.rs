//! The memory tier: entries in shards, bounded in bytes and in number, under one of two policies.
//!
//! What it is for: the hot items of all tiers and, in a store without disks, all there is. The engine decides
//! what is put in and removed; the tier decides what has to go when there is no room, and says so.
//!
//! Invariants:
//! - one live entry an identity; the full key is compared before a value is handed out; an entry past its
//!   expiry is never handed out;
//! - after an `insert` no older value of that identity is found, whether or not the new one was admitted, and at
//!   no moment between does a reader find neither of two values that follow each other;
//! - the weights (key, value and [`ENTRY_OVERHEAD`]) and the number of resident entries never exceed the limits,
//!   at no moment and under any number of threads: room is reserved before an entry is put in place;
//! - nothing leaves silently: what was evicted is in `out`;
//! - a hit takes a shared lock and writes bits of the entry; no list moves, nothing is allocated;
//! - at most one shard is locked by a thread, and nothing is waited for but a shard's lock, which is held for
//!   short, bounded work. The exceptions are [`MemoryTier::snapshot`] (shared, as long as it takes to list one
//!   shard) and the doubling of a shard's index.
//!
//! The limits are the tier's, not a shard's: room is made in the shard of the new entry if that holds its share,
//! else in the shard that holds most. So a small tier is not broken by sharding, shards stay level, and an entry
//! may be as large as the whole tier.

mod budget;
mod entry;
mod ghost;
mod index;
mod policy;
mod shard;
mod sketch;
mod slab;
#[cfg(test)]
mod tests;
mod tier;

pub use entry::{ENTRY_OVERHEAD, weight};
pub use policy::{Admission, MemoryPolicy, Setting};

use crate::ident::Ident;
use crate::pair::Pair;
use crate::types::{ContentType, Version};
use budget::{Amount, Budget, Short};
use bytes::Bytes;
use crossbeam::utils::CachePadded;
use entry::Entry;
use parking_lot::{Mutex, RwLock};
use policy::{Order, Pressure};
use shard::{Shard, mix};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};

/// Under `Adaptive`, an entry over this part of the tier that was not seen before is admitted only by force: it
/// would push out many for what may never be asked for again.
const LARGE: u64 = 16;
/// Slots looked at under one lock by [`MemoryTier::expire`].
const REAP: u32 = 256;

/// What is told how often entries were used.
///
/// Called under a shard's lock: it must not call the tier and should only count.
pub trait HeatSink: Send + Sync {
    /// `ident` was used `uses` more times (at least; many uses at once are counted as 15).
    fn add(&self, ident: Ident, uses: u32);
}

/// Counts nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoHeat;

impl HeatSink for NoHeat {
    fn add(&self, _ident: Ident, _uses: u32) {}
}

/// Limits and policy of the tier.
#[derive(Debug, Clone)]
pub struct MemoryConfig {
    /// Most bytes of keys, values and overhead ([`ENTRY_OVERHEAD`] an entry).
    pub max_bytes: u64,
    /// Most entries.
    pub max_items: u64,
    /// What goes when there is no room.
    pub policy: MemoryPolicy,
    /// Number of shards, rounded up to a power of two, at most 1,024. `None`: by the limits, one for each 4,096
    /// entries and 4 MiB, at most 64.
    pub shards: Option<usize>,
}

/// An item on its way in.
#[derive(Debug, Clone)]
pub struct NewEntry {
    /// The identity of the key.
    pub ident: Ident,
    /// The full key and the value.
    pub pair: Pair,
    /// The order of the write.
    pub version: Version,
    /// What the value is.
    pub content_type: ContentType,
    /// Milliseconds since the epoch; 0 means never.
    pub expires_at: u64,
    /// Not on any disk yet.
    pub dirty: bool,
    /// Nobody asked for it yet.
    pub prefetched: bool,
    /// Admit even if the policy would not.
    pub force: bool,
}

/// A value found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The value, not copied.
    pub value: Bytes,
    /// The order of the write that made it.
    pub version: Version,
    /// What it is.
    pub content_type: ContentType,
    /// Milliseconds since the epoch; 0 means never.
    pub expires_at: u64,
    /// It was prefetched and this is the first time that it is asked for. Said once.
    pub first_use_of_prefetched: bool,
}

/// What a lookup found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The value.
    Hit(Hit),
    /// The key's entry is there and its time is over. It stays until it is removed, reaped or evicted.
    Expired,
    /// Nothing under this key.
    Miss,
}

/// Why an entry left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// To make room.
    Capacity,
    /// Its time was over.
    Expired,
    /// It was on disk, and nobody had used it for long: by [`MemoryTier::evict_idle`].
    Idle,
    /// It never entered: larger than the tier, or the policy refused it.
    NotAdmitted,
    /// Another key with the same identity took its place.
    Displaced,
    /// By [`MemoryTier::remove`].
    Removed,
}

/// An entry that left, or that was not admitted. It keeps its bytes alive, and they count no longer: write what is
/// dirty and drop it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evicted {
    /// The identity.
    pub ident: Ident,
    /// The full key; it may share its buffer with `value`.
    pub key: Bytes,
    /// The value, not copied.
    pub value: Bytes,
    /// The order of the write that made it.
    pub version: Version,
    /// What it is.
    pub content_type: ContentType,
    /// Milliseconds since the epoch; 0 means never.
    pub expires_at: u64,
    /// Not on any disk yet.
    pub dirty: bool,
    /// Its weight: key, value and overhead.
    pub bytes: u64,
    /// Uses while it was resident; saturates, and many at once were counted as 15.
    pub hits: u8,
    /// It was prefetched and nobody asked for it.
    pub unused_prefetch: bool,
    /// Why.
    pub reason: Reason,
}

impl Evicted {
    fn new(entry: &Entry, reason: Reason) -> Evicted {
        Evicted {
            ident: entry.ident,
            key: entry.key_bytes(),
            value: entry.value(),
            version: entry.version,
            content_type: entry.content_type,
            expires_at: entry.expires_at,
            dirty: entry.dirty,
            bytes: entry.weight(),
            hits: entry.hits,
            unused_prefetch: entry.is_unused_prefetch(),
            reason,
        }
    }
}

/// A resident entry as [`MemoryTier::snapshot`] lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resident {
    /// The identity.
    pub ident: Ident,
    /// The full key. It may keep the value's buffer alive.
    pub key: Bytes,
    /// The order of the write.
    pub version: Version,
    /// Milliseconds since the epoch; 0 means never.
    pub expires_at: u64,
    /// Not on any disk yet.
    pub dirty: bool,
}

/// What the tier holds. Each figure is exact for some moment of the call, not all for the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryStats {
    /// Entries, expired ones that were not found yet included.
    pub items: u64,
    /// Bytes of values.
    pub value_bytes: u64,
    /// Bytes of keys, values and overhead: what `max_bytes` bounds.
    pub weight: u64,
    /// Entries that are not on any disk yet.
    pub dirty_items: u64,
    /// Their weight.
    pub dirty_bytes: u64,
    /// Weight of entries that were prefetched and not asked for yet.
    pub prefetched_bytes: u64,
    /// Bytes that slots, indexes and the policy's structures occupy: what stands behind the overhead.
    pub structure_bytes: u64,
    /// The limit of `weight`.
    pub max_bytes: u64,
    /// The limit of `items`.
    pub max_items: u64,
}

/// What others may know of a shard without its lock; true as of when its lock was last released.
#[derive(Debug, Default)]
struct Load {
    bytes: AtomicU64,
    items: AtomicU64,
    /// Under `Lru`: a lower bound of the stamps in the shard.
    oldest: AtomicU64,
}

/// Where [`MemoryTier::expire`], or [`MemoryTier::evict_idle`], goes on.
#[derive(Debug, Default)]
struct Reaper {
    shard: usize,
    slot: u32,
}

/// The memory tier.
pub struct MemoryTier {
    shards: Box<[CachePadded<RwLock<Shard>>]>,
    loads: Box<[Load]>,
    /// Bits that a hash is shifted right by to give its shard.
    shift: u32,
    budget: Budget,
    policy: MemoryPolicy,
    heat: Arc<dyn HeatSink>,
    /// Number of uses so far. Only under `Lru`.
    uses: CachePadded<AtomicU64>,
    reaper: Mutex<Reaper>,
    /// Counts the beats by which idle time is measured. Read by each hit, written once a beat.
    beat: CachePadded<AtomicU16>,
    idler: Mutex<Reaper>,
}

impl fmt::Debug for MemoryTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTier")
            .field("policy", &self.policy)
            .field("shards", &self.shards.len())
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

fn shards_for(config: &MemoryConfig) -> usize {
    let by_limits = || (config.max_items / 4096).min(config.max_bytes / (4 << 20)).clamp(1, 64) as usize;
    match config.shards {
        Some(n) => n.clamp(1, 1024).next_power_of_two(),
        // Down to a power of two, so that each shard has at least what was divided by.
        None => 1 << by_limits().ilog2(),
    }
}
