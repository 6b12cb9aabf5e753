//! The engine behind the cache handle: what all handles of one store share.
//!
//! Storage holds, finds, moves and drops; here is decided *what* and *when*. Each background job is a `step`, driven
//! by the threads of [`threads`] or, one call at a time, by whoever runs the engine without them.
//!
//! | module | job |
//! |---|---|
//! | `open` | from configuration and directories to an engine |
//! | `read` | get: memory, write buffer, disk; installing what was found |
//! | `write` | put, remove, expiry: the foreground half |
//! | `commit` | the write buffer's way to the highest disk tier |
//! | `reclaim` | demotion, dropping of containers |
//! | `claim` | who empties which container |
//! | `rewrite` | packs that are mostly dead, or small |
//! | `promote` | the way up |
//! | `prefetch` | neighbours of what was asked for |
//! | `tune` | what the optimizer sees and does |
//! | `dials` | what of all this changes while it runs |
//! | `export` | what goes to a metrics server |
//! | `placement` | what belongs on which tier, and what may be spent for it |
//! | `reap` | expiry |
//! | `walk` | keys, prefix removal, clear, verify |
//! | `inspect` | what is asked of an open store from outside, and nothing of it changed |
//! | `check` | a closed store read, and nothing of it changed |
//! | `repair` | what a check found, mended |
//!
//! What holds for all of them: no lock of a shard is held across a write to a disk; a durable place changes only by a
//! frame of the journal, queued under that lock; and what an operation leaves at a crash is said in its module, or in
//! the table of the design that it names.

mod check;
mod claim;
mod commit;
mod dials;
mod export;
#[cfg(feature = "remote")]
mod inspect;
mod moves;
mod open;
mod placement;
mod prefetch;
mod priority;
mod promote;
mod read;
mod reap;
mod rebuild;
mod reclaim;
mod repair;
mod rewrite;
#[cfg(test)]
mod scarce;
mod settings;
mod stats;
#[cfg(test)]
mod testkit;
mod threads;
mod throttle;
mod tune;
mod walk;
mod write;

pub(crate) use check::check;
pub use check::{CheckReport, Cost, Finding, Progress, Step};
#[cfg(feature = "remote")]
pub(crate) use inspect::{Cursor, Listed, Told};
pub use open::Recovery;
pub(crate) use open::World;
pub use repair::RepairReport;
pub(crate) use repair::repair;
pub(crate) use walk::Walk;
pub use walk::{Damage, VerifyReport};
pub(crate) use write::{Put, What};

use crate::budget::Budget;
use crate::config::Persistence;
use crate::error::{Error, Result};
use crate::events::{Event, Events, EvictReason, RateLimit};
use crate::flight::Flights;
use crate::heat::Heat;
use crate::metrics::{Latencies, Meters};
use crate::stats::Counters;
use bytes::Bytes;
use crossbeam::queue::SegQueue;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Duration;
use thermocline_storage::catalog::{Catalog, Found};
use thermocline_storage::codec::Compression;
use thermocline_storage::container::{DiskTier, Entry};
use thermocline_storage::home::Home;
use thermocline_storage::memory::{Evicted, MemoryTier, Reason};
use thermocline_storage::types::MAX_KEY;
use thermocline_storage::{Hasher, Ident, Place, Tier};
use threads::Signal;

/// What the engine needs of the configuration while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) persistence: Persistence,
    pub(crate) write_buffer: u64,
    pub(crate) write_stall: Duration,
    pub(crate) max_value: u64,
    pub(crate) default_ttl_ms: Option<u64>,
    pub(crate) batch_items: usize,
    /// Bytes that a move reads at a time.
    pub(crate) move_bytes: u64,
    /// Bytes a second.
    pub(crate) migration_rate: u64,
    /// The nice value of background threads.
    pub(crate) nice: i32,
    /// Most bytes that are read ahead.
    pub(crate) read_ahead: u64,
    /// How often the optimizer takes a turn; `None`: not by itself.
    pub(crate) tunes_every: Option<Duration>,
    /// No turn comes sooner after another.
    pub(crate) least_turn: Duration,
    pub(crate) sled_cache: u64,
    pub(crate) pack_size: u64,
    /// Bytes of the smallest read.
    pub(crate) read_size: u64,
    /// Disk reads under way at most, of each directory.
    pub(crate) concurrency: u64,
    /// What 64 KiB of neighbours are multiplied by that are read after a hit, at first.
    pub(crate) prefetch: f64,
    /// The greatest such multiplier, and the highest level of zlib, that are configured.
    pub(crate) most_prefetch: f64,
    pub(crate) most_level: u32,
    pub(crate) erase_after_ms: u64,
    pub(crate) reap_interval: Duration,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) checkpoint_interval: Duration,
    /// Most items on the SSD.
    pub(crate) ssd_items: u64,
    /// By tier number: whether it compresses.
    pub(crate) compress: [bool; 4],
    pub(crate) compression: Compression,
    /// By tier number: bytes of a container that is full.
    pub(crate) container_size: [u64; 4],
}

/// One store, open.
pub(crate) struct Engine {
    pub(crate) hasher: Hasher,
    pub(crate) memory: MemoryTier,
    pub(crate) catalog: Catalog,
    /// The disk tiers, hottest first.
    pub(crate) tiers: Vec<Arc<dyn DiskTier>>,
    pub(crate) heat: Arc<Heat>,
    pub(crate) events: Arc<Events>,
    pub(crate) budget: Budget,
    pub(crate) flights: Arc<Flights>,
    pub(crate) counters: Counters,
    pub(crate) latencies: Latencies,
    /// What the disks are asked for, and what compressing takes.
    meters: Meters,
    pub(crate) settings: Settings,
    /// What of the settings changes while it runs, as it stands now.
    pub(crate) dials: dials::Dials,
    prefetch: prefetch::Prefetch,
    tuner: Mutex<tune::Tuner>,
    /// Taken before `tuner`, never after it.
    eyes: Mutex<tune::Eyes>,
    /// The optimizer has a thread; and takes no turn on it.
    runs: AtomicBool,
    paused: AtomicBool,
    /// When the memory tier's last beat was, on the engine's clock.
    beat_ms: AtomicU64,
    export: export::Export,
    pub(crate) log: RateLimit,
    /// No new operation begins.
    closed: AtomicBool,
    /// The background threads end.
    stopping: AtomicBool,
    /// Signals of the background threads, in the order writer, mover, janitor, sinker, tuner.
    signals: [Signal; 5],
    handles: Mutex<Vec<std::thread::JoinHandle<()>>>,
    has_threads: AtomicBool,
    /// One committer at a time.
    committing: Mutex<()>,
    /// Taken shared by puts that their callers write themselves, exclusively by a flush: until such a put has landed or
    /// failed, the acknowledged value that it replaces stands in no queue. Taken before `committing`, never after it.
    writing_large: RwLock<()>,
    /// The last failure of a commit, told to callers who wait in vain.
    last_failure: Mutex<Option<Arc<Error>>>,
    /// Who empties which container, by tier number.
    claims: [claim::Claims; 4],
    /// Callers that wait for room: background moves hurry while there are any.
    urgent: AtomicUsize,
    /// What belongs on which tier.
    placement: placement::Placement,
    /// Places that are to be promoted; takes memory for what is in it, and is bounded by who puts something in.
    promotions: SegQueue<(Ident, Place)>,
    /// Bytes that background moves may still move, and when it was last filled up.
    throttle: Mutex<throttle::Throttle>,
    /// Taken shared by everything that uses the store, exclusively by close.
    open: RwLock<()>,
    /// When the store was opened, on the engine's clock.
    opened_ms: u64,
    /// Keeps the directories locked; taken at close.
    home: Mutex<Option<Home>>,
    /// When each container was first seen with dead records (for `erase_after`).
    first_dead: Mutex<HashMap<u64, u64>>,
    checkpointed_ms: Mutex<u64>,
    /// Whether a caller asked for anything since the janitor looked last.
    used: AtomicBool,
    /// Of each directory, as last seen: whether it is out of service, and what its quarantine lost.
    directories: Mutex<HashMap<std::path::PathBuf, (Option<String>, u64)>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("tiers", &self.tiers.len()).finish_non_exhaustive()
    }
}

impl Engine {
    /// The identity of a key that may be one.
    pub(crate) fn ident(&self, key: &[u8]) -> Result<Ident> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(Error::BadKey { len: key.len() });
        }
        if self.closed.load(std::sync::atomic::Ordering::Acquire) {
            return Err(Error::Closed);
        }
        self.note_use();
        Ok(self.hasher.ident(key))
    }

    /// Somebody is told what the store has and has not by now, which is to stay true: the janitor sees to it that the
    /// journal knows how late it was. A line that all read and hardly anybody writes.
    pub(super) fn note_use(&self) {
        if !self.used.load(std::sync::atomic::Ordering::Relaxed) {
            self.used.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Held by whoever uses the store: it is not closed meanwhile. Not to be taken twice by one thread: a close that
    /// waits comes before the second.
    pub(super) fn using(&self) -> Result<RwLockReadGuard<'_, ()>> {
        // Not to wait for the end of a close that is under way.
        if self.is_closed() {
            return Err(Error::Closed);
        }
        let open = self.open.read();
        if self.is_closed() { Err(Error::Closed) } else { Ok(open) }
    }

    pub(crate) fn now(&self) -> u64 {
        self.catalog.now()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(std::sync::atomic::Ordering::Acquire)
    }

    /// The disk tier of this kind.
    pub(crate) fn tier(&self, tier: Tier) -> Option<&Arc<dyn DiskTier>> {
        self.tiers.iter().find(|t| t.tier() == tier)
    }

    /// The highest disk tier: where writes go.
    pub(crate) fn top(&self) -> Option<&Arc<dyn DiskTier>> {
        self.tiers.first()
    }

    /// The disk tier below another.
    pub(crate) fn below(&self, tier: Tier) -> Option<&Arc<dyn DiskTier>> {
        self.tiers.iter().find(|t| t.tier() > tier)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(std::sync::atomic::Ordering::Acquire)
    }

    pub(crate) fn has_disk(&self) -> bool {
        !self.tiers.is_empty()
    }

    /// Deals with what the memory tier let go. Called without any shard's lock.
    pub(crate) fn let_go(&self, evicted: Vec<Evicted>) {
        for e in evicted {
            if e.unused_prefetch {
                self.prefetch_wasted();
            }
            if e.reason == Reason::Idle {
                Counters::bump(&self.counters.idle);
            }
            if self.has_disk() && e.dirty {
                // Written on eviction, or already on its way.
                self.catalog.enqueue(e.ident);
                self.signals[0].wake_soon();
            }
            // With disks below, nothing is gone but what another key displaced.
            if self.has_disk() && e.reason != Reason::Displaced {
                continue;
            }
            let key = Some(e.key);
            let (counter, event) = match e.reason {
                Reason::Expired => (&self.counters.expired, Event::Expired { key, tier: Tier::Memory }),
                Reason::Displaced => (&self.counters.displaced, Event::Displaced { key, tier: Tier::Memory }),
                _ => {
                    let reason = EvictReason::Full;
                    (&self.counters.evicted, Event::Evicted { key, tier: Tier::Memory, reason })
                }
            };
            Counters::bump(counter);
            self.events.emit(|| event);
        }
    }

    /// Says that an item made way for another key of the same identity. Called without any shard's lock.
    pub(crate) fn tell_displaced(&self, key: Bytes, tier: Tier) {
        Counters::bump(&self.counters.displaced);
        self.events.emit(|| Event::Displaced { key: Some(key), tier });
    }

    /// A record failed verification: it is dead, and its bytes go to the quarantine.
    pub(crate) fn condemn(
        &self,
        ident: Ident,
        place: Place,
        entry: &Arc<Entry>,
        why: &str,
        key: Option<Bytes>,
    ) {
        {
            let mut guard = self.catalog.lock(ident);
            if !guard.kill(ident, place) {
                return; // moved, overwritten or removed in the meantime: nobody was to read it any more
            }
            // Memory holds only what the catalog knows.
            if matches!(guard.find(ident), Found::Absent) {
                self.memory.remove(ident);
            }
        }
        // What stands there may be another item's by now, which is not to be called dead.
        let whose = || entry.container.key(place.position()).filter(|key| self.hasher.ident(key) == ident);
        let key = key.or_else(whose);
        Counters::bump(&self.counters.damaged);
        self.log.warn("damage", || format!("a record of the {} tier is damaged and dead: {why}", entry.tier));
        let tier = self.tier(entry.tier);
        let path = tier.and_then(|tier| tier.quarantine_record(entry, place.position(), why));
        let (tier, why, path) = (entry.tier, why.to_owned(), path.unwrap_or_default());
        self.events.emit(|| Event::Quarantined { tier, path, why, key });
    }
}
