//! Containers: what every disk tier appends items to and drops whole, and the table of all of them.
//!
//! Invariants:
//! - a container's id is never reused; its number is, but only after its drop is durable and nobody holds the
//!   entry any more ([`Containers::release`], [`Containers::reserve`]);
//! - whoever keeps a [`Place`] across an unlock holds the `Arc<Entry>` of its container, so a place
//!   that is held never names another record than it did;
//! - a container is announced to the journal ([`Containers::on_publish`]) before any place in it is handed out.

mod report;
mod table;

pub use report::OpenReport;
pub(crate) use report::{AWAY, NOT_SEEN, SECOND};
pub use table::{Containers, Counted, Reserved};

use crate::clock::Clock;
use crate::codec::Compression;
use crate::error::{Error, Result};
use crate::flaw::Flaw;
use crate::home::Anchor;
use crate::ident::Ident;
use crate::item::{Head, Item};
use crate::record;
use crate::types::{Codec, ContainerNo, Place, Tier, Version};
use crate::vfs::Vfs;
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// A record as a container lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Its position in the container.
    pub position: u32,
    /// Whose it is.
    pub ident: Ident,
    /// The order of the write.
    pub version: Version,
    /// Milliseconds since the epoch; 0 means never.
    pub expires_at: u64,
    /// Bytes on disk.
    pub bytes: u32,
}

/// The stored bytes of one record, as they are, for the quarantine.
#[derive(Debug, Clone)]
pub struct RawRecord {
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What stands there.
    pub bytes: Vec<u8>,
}

/// Items on their way into a tier, read only as they are needed: what goes into a pack need not fit into memory.
pub trait Supply {
    /// How many there are.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of memory that one of them takes, about.
    fn bytes(&self, n: usize) -> u64;
    /// Bytes on disk that those of a range come to at least.
    fn least(&self, range: Range<usize>) -> u64;
    /// Some of them, in order; `None` for one that is not to be written any more. May be asked for again.
    fn load(&self, range: Range<usize>) -> Vec<Option<Item>>;
    /// How long all calls of [`load`](Self::load) have waited so far for leave to go on: that is no time of the disk that
    /// the items go to, and nobody's fault.
    fn waited(&self) -> Duration {
        Duration::ZERO
    }
}

impl Supply for &[Item] {
    fn len(&self) -> usize {
        <[Item]>::len(self)
    }

    fn bytes(&self, n: usize) -> u64 {
        self.get(n).map_or(0, |i| record::size(i.key.len(), i.payload.len().max(i.original_len as usize)))
    }

    fn least(&self, range: Range<usize>) -> u64 {
        // What is not deflated yet may shrink to almost nothing.
        let payload = |i: &Item| match i.codec {
            Codec::Deflate | Codec::Zlib => i.payload.len() as u64,
            Codec::None | Codec::Lz4 => 0,
        };
        self.get(range).unwrap_or_default().iter().map(payload).sum()
    }

    fn load(&self, range: Range<usize>) -> Vec<Option<Item>> {
        self.get(range).unwrap_or_default().iter().cloned().map(Some).collect()
    }
}

/// A container that can be read. Reads take no lock that a writer holds while it waits for the disk.
pub trait Container: Send + Sync + fmt::Debug + 'static {
    /// The item at a position, with key, header and payload verified. `Corrupt` if the bytes are wrong, `Io` if
    /// they cannot be reached, `Busy` if the container is still opening and the wait of 5 s is over.
    fn read(&self, position: u32) -> Result<Item> {
        self.read_up_to(position, u64::MAX)
    }
    /// [`read`](Self::read), if stored and original length of the value together are at most `most` bytes; if not,
    /// `Oversized`, before memory was taken for it.
    fn read_up_to(&self, position: u32, most: u64) -> Result<Item>;
    /// Items that stand behind this one, as many as are whole in the `bytes` that follow it, read at once; they were
    /// written together, and so are likely to be asked for together. Each is verified; the first that does not verify, or
    /// is not whole, ends it. Nothing, where to read one more costs little.
    fn following(&self, _position: u32, _bytes: u64) -> Result<Vec<(u32, Item)>> {
        Ok(Vec::new())
    }
    /// The head alone; may be cheaper. Verified as far as the header goes.
    fn head(&self, position: u32) -> Result<Head>;
    /// Every record that can be found, in order of position. A damaged footer or index is made good by a scan;
    /// records whose headers cannot be read are left out.
    fn list(&self) -> Result<Vec<Listed>>;
    /// As [`list`](Self::list), with why part of it could not be reached, if so: for a rebuilding of the catalog,
    /// which nothing else tells what is missing.
    fn list_reachable(&self) -> Result<(Vec<Listed>, Option<Error>)> {
        self.list().map(|listed| (listed, None))
    }
    /// What stands on disk at a position (at most 64 MiB of it), unverified.
    fn raw(&self, position: u32) -> Option<RawRecord>;
    /// Bytes that the container occupies on disk, preallocation, dead records and indexes included.
    fn occupied(&self) -> u64;
    /// The key of the record at a position, from whatever still says it, if anything does: for who reports that the
    /// record is lost. What names it is verified by itself; that the record is this key's is not.
    fn key(&self, position: u32) -> Option<Bytes> {
        self.head(position).ok().map(|head| head.key)
    }
    /// Reads the records at these positions, which rise, tells `each` what came of every one, and gives what else is
    /// wrong with the container. Changes nothing, and keeps nothing in memory beyond the call.
    fn examine(&self, live: &[u32], each: &mut dyn FnMut(u32, Result<Item>)) -> Vec<Flaw> {
        live.iter().for_each(|position| each(*position, self.read(*position)));
        Vec::new()
    }
}

/// One container in the table.
#[derive(Debug)]
pub struct Entry {
    /// Its number in slots and frames.
    pub no: ContainerNo,
    /// Its id, never reused.
    pub id: u64,
    /// The tier it belongs to.
    pub tier: Tier,
    /// The number of the store's directory it lies in.
    pub dir: u16,
    /// When it was made, in milliseconds of the engine's clock.
    pub created_ms: u64,
    /// How to read it.
    pub container: Arc<dyn Container>,
    /// Records that the catalog points at: exact.
    pub live: AtomicI64,
    /// Records written to it so far.
    pub records: AtomicU64,
    /// No record of it expires before this (milliseconds; `u64::MAX`: none expires).
    pub earliest_expiry: AtomicU64,
    /// How often an expiry was noted, for [`reaped`](Self::reaped).
    pub expiries_noted: AtomicU64,
    /// It is not listed for the sake of what has expired before this (milliseconds).
    pub reap_after: AtomicU64,
    /// No further record is appended to it.
    pub sealed: AtomicBool,
    /// When it was written to last since the store was opened, in milliseconds of the engine's clock; 0: it was not.
    pub written_ms: AtomicU64,
}

impl Entry {
    /// When the newest of its records came, as far as is known: when it was written to last, or made.
    pub fn newest_ms(&self) -> u64 {
        self.written_ms.load(Ordering::Relaxed).max(self.created_ms)
    }

    /// Live records; never negative in what it returns.
    pub fn live(&self) -> u64 {
        u64::try_from(self.live.load(Ordering::Acquire)).unwrap_or(0)
    }

    /// Estimate of the live bytes: the share of live records of the bytes occupied.
    pub fn live_bytes(&self) -> u64 {
        let records = self.records.load(Ordering::Relaxed).max(1);
        let live = self.live().min(records);
        u64::try_from(u128::from(self.container.occupied()) * u128::from(live) / u128::from(records))
            .unwrap_or(0)
    }

    /// What the catalog remembers of it across a restart.
    pub fn known(&self) -> Known {
        Known {
            no: self.no,
            id: self.id,
            tier: self.tier,
            dir: self.dir,
            created_ms: self.created_ms,
            records: self.records.load(Ordering::Relaxed),
            earliest_expiry: self.earliest_expiry.load(Ordering::Relaxed),
        }
    }

    /// Notes that a record expires at `ms` (0: never).
    pub fn note_expiry(&self, ms: u64) {
        if ms != 0 {
            self.expiries_noted.fetch_add(1, Ordering::SeqCst);
            self.earliest_expiry.fetch_min(ms, Ordering::SeqCst);
        }
    }

    /// Its live records were looked at: none expires before `next`. `before` is what [`earliest_expiry`] was when that
    /// began, and `noted` what [`expiries_noted`] was: expiries noted since are of records that may not have been seen.
    ///
    /// [`earliest_expiry`]: Self::earliest_expiry
    /// [`expiries_noted`]: Self::expiries_noted
    pub fn reaped(&self, (before, noted): (u64, u64), next: u64) {
        let raised =
            self.earliest_expiry.compare_exchange(before, next, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        // Who notes counts first: what was noted before the exchange, and lost by it, is counted by now.
        if raised && self.expiries_noted.load(Ordering::SeqCst) != noted {
            self.earliest_expiry.fetch_min(before, Ordering::SeqCst);
        }
    }
}

/// A container as the catalog remembers it across a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its number.
    pub no: ContainerNo,
    /// Its id.
    pub id: u64,
    /// Its tier.
    pub tier: Tier,
    /// The number of the store's directory it lies in.
    pub dir: u16,
    /// When it was made.
    pub created_ms: u64,
    /// Records written to it, as far as the catalog knows.
    pub records: u64,
    /// See [`Entry::earliest_expiry`].
    pub earliest_expiry: u64,
}

/// Who writes, which decides whether the tier's reserve may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Callers' writes and demotion: refused while only the reserve is left.
    Write,
    /// The same for what is known to be hot, as is what reclaim keeps: callers' writes of such items, and promotion.
    Hot,
    /// Reclaim, which frees more than it takes: may use the reserve.
    Reclaim,
}

/// Where an item came to stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The place.
    pub place: Place,
    /// Bytes on disk.
    pub bytes: u32,
}

/// How full a tier is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes on disk: live, dead, preallocated, indexes and quarantine.
    pub occupied: u64,
    /// The tier's limit in bytes; `None`: unlimited.
    pub limit: Option<u64>,
    /// Bytes appended since the tier was opened.
    pub written: u64,
}

/// How one directory of a tier is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirStatus {
    /// The directory.
    pub path: PathBuf,
    /// Why it takes no writes; `None` while it does.
    pub out_of_service: Option<String>,
    /// Bytes in its quarantine.
    pub quarantine: u64,
    /// Pieces of the quarantine that went because its cap was reached, since the opening.
    pub quarantine_removed: u64,
}

/// One directory of a tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierDir {
    /// The store's number for it.
    pub no: u16,
    /// The path. Containers lie in a folder below it, which the tier makes.
    pub path: PathBuf,
    /// Bytes that the tier may occupy in it; `None`: unlimited.
    pub limit: Option<u64>,
    /// What to do with unknown containers whose id is below this one, instead of what the context says: a rebuilt
    /// catalog does not know what it could not see.
    pub older: Option<(u64, Unknown)>,
    /// What tells whether it is still there, if anything does: not in tests of a tier alone, nor where it is only read.
    pub anchor: Option<Arc<Anchor>>,
}

/// What a tier does at opening with containers that the catalog does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unknown {
    /// They are leftovers of a crash: delete them.
    #[default]
    Delete,
    /// The catalog is being rebuilt: attach each under a fresh number.
    Attach,
    /// Look at nothing, change nothing (a read-only check).
    Ignore,
    /// They are left where they are, counted and reported.
    Leave,
}

/// What every tier is opened with.
#[derive(Debug, Clone)]
pub struct TierContext {
    /// The file system.
    pub vfs: Arc<dyn Vfs>,
    /// The time, for [`Entry::created_ms`] and deadlines.
    pub clock: Arc<dyn Clock>,
    /// The store's id, which every container's header carries.
    pub store: [u8; 16],
    /// The table that containers are entered in.
    pub containers: Arc<Containers>,
    /// The tier's directories that are present; at least one. They exist and are locked by this process.
    pub dirs: Vec<TierDir>,
    /// The containers of this tier that the catalog knows. Of one whose directory is not among `dirs` the file is away;
    /// what has its id here was put here by somebody, may be all that is left of it, and is left alone.
    pub known: Vec<Known>,
    /// What to do with others.
    pub unknown: Unknown,
}

impl TierContext {
    /// The containers that the catalog knows in the directories that are present, by id.
    pub(crate) fn known_here(&self) -> HashMap<u64, Known> {
        self.known.iter().filter(|k| self.is_here(k)).map(|k| (k.id, *k)).collect()
    }

    /// The ids of those that are away.
    pub(crate) fn known_away(&self) -> HashSet<u64> {
        self.known.iter().filter(|k| !self.is_here(k)).map(|k| k.id).collect()
    }

    fn is_here(&self, known: &Known) -> bool {
        self.dirs.iter().any(|d| d.no == known.dir)
    }
}

/// What of a tier may change while it is open. `None`: it stays as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tuning {
    /// Bytes of the caches of all indexes that are open, for those that are opened from now on, and of headers of blocks,
    /// at once (HDD).
    pub index_cache: Option<u64>,
    /// Bytes of a container that is begun from now on (cold), within what the tier takes.
    pub container_size: Option<u64>,
    /// Bytes of the smallest read from the disk (SSD).
    pub smallest_read: Option<usize>,
    /// Bytes that are read at once by who goes through a container from one end to the other, or for what stands behind a
    /// record (HDD, cold).
    pub read_ahead: Option<u64>,
    /// How values are compressed, where the tier does that by itself (cold).
    pub compression: Option<Compression>,
}

/// A tier on disk: the writing side. Reading goes through the [`Entry`] of a place's container.
pub trait DiskTier: Send + Sync + fmt::Debug + 'static {
    /// Which tier.
    fn tier(&self) -> Tier;
    /// Largest record in bytes (header, key and stored payload) that it can take.
    fn max_record(&self) -> u64;
    /// Appends items and makes them durable: when this returns `Ok`, records, container headers and directory
    /// entries are all on stable storage, in the order given. On an error none of them may be pointed at (some
    /// may stand on disk: garbage). After a failed sync the container is sealed at its last synced offset, and
    /// the batch is tried once in a new one. `NoSpace` when the limit does not allow it.
    fn write(&self, items: &[Item], purpose: Purpose) -> Result<Vec<Written>>;
    /// Whether it takes any writes now: `OutOfService` if none of its directories does.
    fn in_service(&self) -> Result<()>;
    /// [`write`](Self::write) of items that are read as they are needed; `None` for those that were not given. Nothing is
    /// read for a tier that takes no writes.
    fn write_from(&self, supply: &dyn Supply, purpose: Purpose) -> Result<Vec<Option<Written>>> {
        self.in_service()?;
        let loaded = supply.load(0..supply.len());
        let given: Vec<Item> = loaded.iter().flatten().cloned().collect();
        let mut written =
            if given.is_empty() { Vec::new() } else { self.write(&given, purpose)? }.into_iter();
        Ok(loaded.into_iter().map(|item| item.and_then(|_| written.next())).collect())
    }
    /// Seals the container being appended to, if it has records, so that reclaim can have it.
    fn seal(&self) -> Result<()>;
    /// Deletes a container's files and makes that durable. Readers that hold it may go on.
    fn drop_container(&self, entry: &Entry) -> Result<()>;
    /// How full it is.
    fn usage(&self) -> Usage;
    /// How its directories are.
    fn directories(&self) -> Vec<DirStatus>;
    /// Copies the bytes at a position that failed verification to the quarantine, with a report. Gives the file they
    /// stand in; `None` if it cannot be read.
    fn quarantine_record(&self, entry: &Entry, position: u32, why: &str) -> Option<PathBuf>;
    /// Housekeeping, about once a second: ageing of residency bits, health of dependencies, quarantine cap.
    fn maintain(&self) {}
    /// Lookups in indexes, and those of them that read a disk, since it was opened.
    fn index_lookups(&self) -> (u64, u64) {
        (0, 0)
    }
    /// Works on with other settings; what does not concern the tier is passed over.
    fn tune(&self, _tuning: &Tuning) {}
    /// Waits, at most so long, until indexes that are being made are made; false if they are not.
    fn settle(&self, _limit: Duration) -> bool {
        true
    }
    /// Reading in the directory of a container failed: it is looked at when [`maintain`](Self::maintain) comes by.
    fn suspect(&self, entry: &Entry);
    /// Tries the directories that are out of service now, instead of when their time comes.
    fn put_back(&self);
    /// Seals, syncs and lets go of everything.
    fn close(&self) -> Result<()>;
}

#[cfg(test)]
mod tests;
