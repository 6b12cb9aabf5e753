//! The SSD tier: items appended to segments of fixed size, read through a memory map.
//!
//! - [`format`](self) of a segment: a header block with two copies of the header, records, a footer that lists
//!   them, a trailer (`format.rs`);
//! - `segment.rs`, `residency.rs`, `pin.rs`: reading; `scan.rs`: finding records without a footer;
//! - `writer.rs`: group commit into the segments that are being written; `room.rs`: room for segments;
//! - `open.rs`: what is found on disk; `examine.rs`: what a check looks at besides the records.
//!
//! Invariants:
//! - a segment is made whole (reserved, header written, synced, renamed, directory synced) and announced before
//!   a place in it is handed out; it is never truncated, punched, overwritten or reused, and is freed by unlink;
//! - a place is handed out only after its record is on stable storage and published;
//! - after a failed write or sync a segment counts up to its last synced byte and is never written again;
//! - a segment found at opening is sealed;
//! - the bytes on disk (segments with their preallocation, quarantine, segments removed but still held by a
//!   reader) stay within the limit of each directory.
//!
//! What a crash leaves: while a segment is made, a `.tmp` file (deleted at the next opening) or a whole segment
//! that no catalog knows (deleted too); while records are appended, a segment whose records up to the last sync
//! are whole and whose later ones may be torn, which nothing points at; while a footer is written, a segment
//! whose footer does not verify, which is scanned when it must be listed; while a segment is removed, the
//! segment or nothing.

mod examine;
mod format;
mod open;
mod pin;
mod residency;
mod room;
mod scan;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use crate::clock::Clock;
use crate::container::{
    Containers, DirStatus, DiskTier, Entry, OpenReport, Purpose, TierContext, Tuning, Usage, Written,
};
use crate::error::{Error, IoContext, Result};
use crate::item::Item;
use crate::keys::LastKeys;
use crate::openfiles::OpenFiles;
use crate::record::{self, MAX_VALUE};
use crate::tierdir::{Dirs, Lease, Rules};
use crate::types::{MAX_KEY, Place, Tier};
use format::HEADER_BLOCK;
use open::{Files, OnDisk};
use parking_lot::{Mutex, RwLock};
use pin::Pins;
use room::Room;
use segment::Reading;
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use writer::Writer;

/// The folder of segments in each directory.
const FOLDER: &str = "segments";
/// Smallest size of a segment in bytes.
pub const MIN_SEGMENT: u64 = 8 << 10;
/// Largest size of an ordinary segment in bytes: what positions can address.
pub const MAX_SEGMENT: u64 = (Place::MAX_POSITION as u64 + 1) * Place::UNIT;
/// Segments kept open. One that is mapped is read without its file, so these serve `pread` alone.
const OPEN_FILES: usize = 256;
/// How often the older half of the residency bits is forgotten, in milliseconds.
const GENERATION_MS: u64 = 30_000;

/// How segments are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ReadMode {
    /// What was written or read lately through a memory map, the rest with `pread`.
    #[default]
    Map,
    /// With `pread`; nothing is ever mapped.
    Pread,
}

/// How the tier is set up.
#[derive(Debug, Clone)]
pub struct SsdConfig {
    /// Size of a segment in bytes, [`MIN_SEGMENT`] to [`MAX_SEGMENT`]; rounded up to a multiple of 4096 and, so
    /// that a tier has segments to reclaim, lowered to a quarter of the largest directory's limit.
    pub segment_size: u64,
    /// How segments are read.
    pub read_mode: ReadMode,
    /// Hand out values of at least 64 KiB as slices of the map instead of copies, at most 10 % of the tier's
    /// limit (of the file systems, where it has none) at a time. They are checked like any other; but a page of
    /// one that the kernel drops while the slice is held is read again when it is touched, and a device that
    /// then fails kills the process with SIGBUS. Without effect in [`ReadMode::Pread`].
    pub borrow: bool,
    /// Bytes of the first `pread` of a record that is not known to be in the page cache; at least 64.
    pub smallest_read: usize,
}

impl SsdConfig {
    /// A good segment size for a tier of `total` bytes whose smallest directory may hold `smallest`: the power of two
    /// at or below a sixteenth of that directory, between 1 and 64 MiB; larger where the tier would have more than
    /// 1,024 segments, up to [`MAX_SEGMENT`] and a quarter of that directory.
    pub fn segment_size_for(smallest: u64, total: u64) -> u64 {
        let floor_power = |n: u64| 1u64 << n.max(1).ilog2();
        let usual = floor_power(smallest / 16).clamp(1 << 20, 64 << 20);
        let few = total.div_ceil(1024).checked_next_power_of_two().unwrap_or(MAX_SEGMENT);
        usual.max(few.min(MAX_SEGMENT).min(floor_power(smallest / 4)))
    }

    /// The defaults for a tier of `limit` bytes in one directory.
    pub fn for_limit(limit: u64) -> SsdConfig {
        SsdConfig {
            segment_size: SsdConfig::segment_size_for(limit, limit),
            read_mode: ReadMode::Map,
            borrow: false,
            smallest_read: 8 << 10,
        }
    }
}

/// The SSD tier.
#[derive(Debug)]
pub struct Ssd {
    clock: Arc<dyn Clock>,
    store: [u8; 16],
    containers: Arc<Containers>,
    room: Room,
    reading: Arc<Reading>,
    /// Every segment that is on disk, by id.
    segments: RwLock<HashMap<u64, OnDisk>>,
    /// Counts of files that could not be removed at opening.
    _strays: Vec<Arc<Lease>>,
    /// Serialises writers; readers never take it.
    writer: Mutex<Writer>,
    written: AtomicU64,
    aged_at: AtomicU64,
}

impl Ssd {
    /// Opens the tier: attaches the segments that the catalog knows, deals with the others as the context says,
    /// deletes leftovers. Reads headers only.
    ///
    /// # Errors
    /// `NewerFormat` if a newer engine wrote a segment; `Io` if a directory cannot be listed or made. A segment
    /// that is damaged or cannot be read is never an error.
    pub fn open(ctx: TierContext, config: SsdConfig) -> Result<(Arc<Ssd>, OpenReport)> {
        let largest = ctx.dirs.iter().map(|d| d.limit.unwrap_or(u64::MAX)).max().unwrap_or(0);
        let segment_size = config
            .segment_size
            .min(largest / 4)
            .clamp(MIN_SEGMENT, MAX_SEGMENT)
            .next_multiple_of(HEADER_BLOCK);
        let total: u64 = ctx
            .dirs
            .iter()
            .map(|d| d.limit.unwrap_or_else(|| ctx.vfs.space(&d.path).map_or(0, |s| s.total)))
            .fold(0, u64::saturating_add);
        let reading = Arc::new(Reading {
            mode: config.read_mode,
            borrow: config.borrow,
            smallest: AtomicUsize::new(smallest_read(config.smallest_read)),
            pins: Arc::new(Pins::new(total / 10)),
            files: OpenFiles::new(OPEN_FILES),
            keys: LastKeys::default(),
        });
        // Segments are reserved whole, which says at once when the disk is full.
        let rules = Rules { tier: Tier::Ssd, folder: FOLDER, free_reserve: None };
        let dirs = Dirs::open(&ctx, rules, |_| 0)?;
        let (Files { segments, strays }, report) = open::open(&ctx, &dirs, &reading)?;
        let ssd = Ssd {
            store: ctx.store,
            containers: ctx.containers,
            room: Room { dirs, segment: segment_size },
            reading,
            segments: RwLock::new(segments),
            _strays: strays,
            writer: Mutex::default(),
            written: AtomicU64::new(0),
            aged_at: AtomicU64::new(ctx.clock.boot_ms()),
            clock: ctx.clock,
        };
        Ok((Arc::new(ssd), report))
    }

    /// The size of an ordinary segment in force, in bytes.
    pub fn segment_size(&self) -> u64 {
        self.room.segment
    }

    /// Bytes of values handed out as slices of maps and still held.
    pub fn pinned(&self) -> u64 {
        self.reading.pins.held()
    }

    /// What no reader could make sense of is not written.
    fn check(&self, item: &Item) -> Result<()> {
        let size = record::size(item.key.len(), item.payload.len());
        let limit = self.max_record();
        if size > limit || item.payload.len() as u64 > MAX_VALUE || u64::from(item.original_len) > MAX_VALUE {
            return Err(Error::TooLarge { tier: Tier::Ssd, size, limit });
        }
        let stored = crate::types::ContentType::from_u8(item.content_type as u8).is_some();
        if item.key.is_empty() || item.key.len() > MAX_KEY || !stored {
            let path = self.room.dirs.first().map(|d| d.folder.clone()).unwrap_or_default();
            let e = io::Error::new(io::ErrorKind::InvalidInput, "a key of a length, or a type, not allowed");
            return Err(Error::io("append to", path, e));
        }
        Ok(())
    }
}

/// What is read at first of a record that is not known to be in memory: its header at least.
fn smallest_read(wanted: usize) -> usize {
    wanted.clamp(record::HEADER, 1 << 20)
}

impl DiskTier for Ssd {
    fn tier(&self) -> Tier {
        Tier::Ssd
    }

    fn max_record(&self) -> u64 {
        let most = record::size(MAX_KEY, MAX_VALUE as usize);
        let largest = self.room.largest();
        let whole_blocks = largest - largest % HEADER_BLOCK;
        most.min(whole_blocks.saturating_sub(writer::LONE_OVERHEAD))
    }

    fn write(&self, items: &[Item], purpose: Purpose) -> Result<Vec<Written>> {
        for item in items {
            self.check(item)?;
        }
        self.writer.lock().write(self, items, purpose)
    }

    fn in_service(&self) -> Result<()> {
        self.room.dirs.in_service()
    }

    fn seal(&self) -> Result<()> {
        self.writer.lock().seal(self)
    }

    fn drop_container(&self, entry: &Entry) -> Result<()> {
        if !entry.sealed.load(Ordering::Acquire) {
            self.writer.lock().forget(entry.id);
        }
        let Some(file) = self.segments.read().get(&entry.id).cloned() else { return Ok(()) };
        if let Some(segment) = &file.segment {
            segment.dropping();
        }
        match file.lease.dir().vfs.remove_file(&file.path) {
            // It went in an attempt before this one, whose sync of the directory failed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other.at("remove", &file.path)?,
        }
        let folder = &file.lease.dir().folder;
        file.lease.dir().vfs.sync_dir(folder).at("sync", folder)?;
        self.segments.write().remove(&entry.id);
        file.lease.removed();
        Ok(())
    }

    fn usage(&self) -> Usage {
        self.room.dirs.usage(self.written.load(Ordering::Relaxed))
    }

    fn directories(&self) -> Vec<DirStatus> {
        self.room.dirs.status()
    }

    fn quarantine_record(&self, entry: &Entry, position: u32, why: &str) -> Option<PathBuf> {
        let raw = entry.container.raw(position)?;
        if let Some(dir) = self.room.dirs.get(entry.dir) {
            let key = entry.container.key(position);
            dir.keep_damaged(&raw, why, key.as_deref());
        }
        Some(raw.path)
    }

    fn tune(&self, tuning: &Tuning) {
        if let Some(bytes) = tuning.smallest_read {
            self.reading.smallest.store(smallest_read(bytes), Ordering::Relaxed);
        }
    }

    fn maintain(&self) {
        self.reading.keys.forget();
        let now = self.clock.boot_ms();
        if now.saturating_sub(self.aged_at.load(Ordering::Relaxed)) >= GENERATION_MS {
            self.aged_at.store(now, Ordering::Relaxed);
            for segment in self.segments.read().values().filter_map(|f| f.segment.as_ref()) {
                segment.age();
            }
        }
        self.room.dirs.retry();
    }

    fn suspect(&self, entry: &Entry) {
        self.room.dirs.suspect(entry.dir);
    }

    fn put_back(&self) {
        self.room.dirs.put_back();
    }

    fn close(&self) -> Result<()> {
        let done = self.writer.lock().close(self);
        self.segments.write().clear();
        self.reading.files.clear();
        done
    }
}
