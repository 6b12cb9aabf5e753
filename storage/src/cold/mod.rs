//! The cold tier: an archive of ZIP files that outlives the engine.
//!
//! Every batch becomes one or more immutable *packs*, `packs/pack-<id>.zip`, which any `unzip` reads: the entries
//! are the items, their names the keys, and what ZIP has no word for stands in an extra field ([`entry`]). The
//! place of an item is its pack and the offset of its local header in units of 32 bytes, so it is read without
//! looking at the central directory, which is there for people, for listing and for other programs.
//!
//! Invariants:
//! - a file named `.zip` is complete and synced, and never changes; it is removed whole ([`writer`] has the table
//!   of what a crash leaves);
//! - all packs of one [`write`](crate::container::DiskTier::write) are durable before any of them is published;
//!   if one fails, the others are removed;
//! - nothing of an entry is believed before its checksum matched, which binds it to store, pack and position.
//!
//! Nothing is kept in memory for an item, but the keys of the pack that was last found damaged for about a second, and
//! about 200 bytes for a pack; files are opened when they are read.

mod entry;
mod examine;
mod identity;
mod listing;
mod names;
mod open;
mod pack;
#[cfg(test)]
mod tests;
mod transcode;
mod writer;

use crate::codec::{Compression, Effort};
use crate::container::{
    DirStatus, DiskTier, Entry, OpenReport, Purpose, Supply, TierContext, Tuning, Usage, Written,
};
use crate::error::{Error, Result};
use crate::item::Item;
use crate::keys::LastKeys;
use crate::openfiles::OpenFiles;
use crate::record::MAX_VALUE;
use crate::tierdir::{Dir, Dirs, Rules};
use crate::types::{MAX_KEY, Place, Tier};
use pack::{Pack, Shared};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use transcode::Prepared;
use writer::{PackWriter, Staged};

/// Packs kept open.
const OPEN_FILES: usize = 128;
/// The folder with the packs in each directory.
const FOLDER: &str = "packs";
/// What stands in the directory for whoever finds it.
const README: &str = include_str!("readme.txt");
/// Positions count 32 bytes in 24 bits, so no entry may begin beyond 512 MiB.
const LARGEST_PACK: u64 = 480 << 20;
const SMALLEST_PACK: u64 = 64 << 10;
/// Header, names and central directory of the longest key, generously.
const MOST_OVERHEAD: u64 = 4096;

/// Settings of the cold tier.
#[derive(Debug, Clone)]
pub struct ColdConfig {
    /// Bytes of a pack at most; larger batches are split into several, and an item larger than half of it has a
    /// pack to itself, however large. Taken as 64 KiB to 480 MiB.
    pub pack_size: u64,
    /// Which content types are deflated, where items come uncompressed or compressed with lz4: those whose codec is
    /// not `None`, be it zlib or lz4, as a ZIP entry can be no other; `min_size`, `threshold` and `level` are those
    /// of zlib. Items that come with deflate or zlib keep it whatever is said here.
    pub compression: Compression,
    /// Bytes of values that are made ready at a time: enough to occupy several threads, few enough to be held in RAM
    /// twice, and not much work for nothing where the pack is full before all are in it.
    pub window: u64,
    /// Values that are made ready at a time at most.
    pub window_items: usize,
    /// Bytes that a scan of a pack reads at once; 4 MiB at most.
    pub read_ahead: u64,
    /// Where it is counted what deflating takes.
    pub effort: Arc<Effort>,
}

impl Default for ColdConfig {
    fn default() -> ColdConfig {
        ColdConfig {
            pack_size: 64 << 20,
            compression: Compression::default(),
            window: 4 << 20,
            window_items: 1000,
            read_ahead: 1 << 20,
            effort: Arc::default(),
        }
    }
}

/// The cold tier.
#[derive(Debug)]
pub struct Cold {
    ctx: TierContext,
    /// What the next write goes by.
    config: Mutex<Arc<ColdConfig>>,
    dirs: Dirs,
    shared: Arc<Shared>,
    packs: Mutex<HashMap<u64, Arc<Pack>>>,
    written: AtomicU64,
    closed: AtomicBool,
}

impl Cold {
    /// Opens the tier. Packs that the catalog knows are attached unread: each record is verified when it is read.
    /// Temporary files are deleted; unknown packs of this store are treated as `ctx.unknown` says, those of
    /// another store are left alone, and those that cannot be identified go to the quarantine.
    ///
    /// # Errors
    ///
    /// `Io` if a directory cannot be listed; `NewerFormat` if an unknown pack is of a newer format.
    pub fn open(ctx: TierContext, config: ColdConfig) -> Result<(Arc<Cold>, OpenReport)> {
        let config = config.within_bounds();
        let rules = Rules { tier: Tier::Cold, folder: FOLDER, free_reserve: Some(0) };
        // A limit of a few packs must not be all reserve.
        let dirs = Dirs::open(&ctx, rules, |limit| config.pack_size.min(limit / 8))?;
        let shared = Arc::new(Shared {
            files: OpenFiles::new(OPEN_FILES),
            read_ahead: AtomicU64::new(config.read_ahead),
            keys: LastKeys::default(),
        });
        let (packs, report) = open::open(&ctx, &dirs, &shared)?;
        let cold = Cold {
            ctx,
            config: Mutex::new(Arc::new(config)),
            dirs,
            shared,
            packs: Mutex::new(packs),
            written: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        };
        Ok((Arc::new(cold), report))
    }

    /// Writes one pack with as many of the items from `from` on as go into it, in the best directory; if that fails,
    /// once more, elsewhere if there is another one.
    fn one_pack(
        &self,
        config: &ColdConfig,
        supply: &dyn Supply,
        from: usize,
        purpose: Purpose,
    ) -> Result<Filled> {
        let mut full: Vec<u16> = Vec::new();
        let rest = from..supply.len();
        let needed = (supply.least(rest.clone()) + HEADERS * rest.len() as u64).min(config.pack_size);
        let mut failed = false;
        let mut last = None;
        loop {
            let dir = match self.dirs.choose(needed, purpose, &full) {
                Ok(dir) => dir,
                Err(e) => return Err(last.unwrap_or(e)),
            };
            match self.fill(config, &dir, supply, from, purpose) {
                Ok(filled) => return Ok(filled),
                Err(e) if e.is_no_space() => {
                    full.push(dir.no);
                    last = Some(e);
                }
                Err(e @ Error::Io { .. }) => {
                    self.dirs.failed(&dir, &e);
                    if failed {
                        return Err(e);
                    }
                    failed = true;
                    last = Some(e);
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Writes one pack into a directory. On an error nothing of it is left.
    fn fill(
        &self,
        config: &ColdConfig,
        dir: &Arc<Dir>,
        supply: &dyn Supply,
        from: usize,
        purpose: Purpose,
    ) -> Result<Filled> {
        let reserved = self.ctx.containers.reserve(purpose)?;
        let (now, began, waited) = (self.ctx.clock.wall_ms(), dir.now(), supply.waited());
        let filled = PackWriter::create(dir, reserved, self.ctx.store, now, purpose).and_then(|mut pack| {
            match append_all(config, &mut pack, supply, from) {
                Ok(given) if pack.entries() > 0 => Ok(Filled { staged: Some(pack.finish()?), given }),
                Ok(given) => {
                    pack.discard();
                    Ok(Filled { staged: None, given })
                }
                Err(e) => {
                    pack.discard();
                    Err(e)
                }
            }
        });
        match &filled {
            Ok(Filled { staged: Some(pack), .. }) => {
                // What the items were held up by says nothing of how fast the disk is.
                let waited = supply.waited().saturating_sub(waited).as_millis();
                dir.wrote(pack.len, began.saturating_add(u64::try_from(waited).unwrap_or(u64::MAX)));
            }
            _ => self.ctx.containers.abandon(reserved),
        }
        filled
    }

    /// Enters durable packs in the table, and tells where their items stand.
    fn publish(&self, staged: Vec<Staged>) -> Result<Vec<Written>> {
        let mut written = Vec::new();
        for s in staged {
            let (no, id) = (s.reserved.no, s.reserved.id);
            for (position, bytes) in &s.placed {
                // The writer gives no position that does not fit.
                let place = Place::new(no, *position).ok_or(Error::Busy("the pack is full"))?;
                written.push(Written { place, bytes: *bytes });
            }
            let pack =
                Arc::new(Pack::new(s.dir.clone(), self.shared.clone(), no, id, &self.ctx.store, s.len));
            self.packs.lock().insert(id, pack.clone());
            self.written.fetch_add(s.len, Ordering::Relaxed);
            let entry = self.ctx.containers.publish(s.reserved, Tier::Cold, s.dir.no, s.created_ms, pack);
            entry.records.store(s.placed.len() as u64, Ordering::Relaxed);
            if s.earliest_expiry != u64::MAX {
                entry.note_expiry(s.earliest_expiry);
            }
            entry.sealed.store(true, Ordering::Release);
        }
        Ok(written)
    }

    fn pack_of(&self, entry: &Entry) -> Option<Arc<Pack>> {
        self.packs.lock().get(&entry.id).cloned()
    }
}

/// Adds items to a pack until it is full; says of each that it went through whether it was given.
fn append_all(
    config: &ColdConfig,
    pack: &mut PackWriter,
    supply: &dyn Supply,
    from: usize,
) -> Result<Vec<bool>> {
    let mut given = Vec::new();
    while from + given.len() < supply.len() {
        let loaded = supply.load(config.window(supply, from + given.len()));
        let items: Vec<Item> = loaded.iter().flatten().cloned().collect();
        let mut ready = Ready { items: &items, next: 0, prepared: Vec::new().into_iter() };
        for item in &loaded {
            let Some(prepared) = item.as_ref().and_then(|_| ready.next(config)) else {
                given.push(false);
                continue;
            };
            let prepared = prepared?;
            let size = (prepared.item.payload.len() + prepared.item.key.len()) as u64;
            let alone = size > config.pack_size / 2;
            let begun = pack.entries() > 0;
            if pack.is_full() || begun && (alone || pack.len() + size > config.pack_size) {
                return Ok(given);
            }
            pack.add(&prepared)?;
            given.push(true);
            if alone {
                return Ok(given);
            }
        }
    }
    Ok(given)
}

/// What went into one pack.
struct Filled {
    /// The pack, unless none of the items was given.
    staged: Option<Staged>,
    /// Of each item that was gone through, whether it was given, and so is in the pack.
    given: Vec<bool>,
}

/// Items that are made ready in windows: decoded, they may be much longer than stored.
struct Ready<'a> {
    items: &'a [Item],
    next: usize,
    prepared: std::vec::IntoIter<Result<Prepared>>,
}

impl Ready<'_> {
    fn next(&mut self, config: &ColdConfig) -> Option<Result<Prepared>> {
        if self.prepared.len() == 0 {
            let range = config.window(&self.items, self.next);
            self.next = range.end;
            let items = self.items.get(range).unwrap_or_default();
            self.prepared = transcode::prepare_all(items, config).into_iter();
        }
        self.prepared.next()
    }
}

/// Bytes of a pack for each of its entries, at least.
const HEADERS: u64 = 256;

impl ColdConfig {
    fn within_bounds(self) -> ColdConfig {
        ColdConfig { pack_size: self.pack_size.clamp(SMALLEST_PACK, LARGEST_PACK), ..self }
    }

    /// Those that are made ready at a time, from `from` on.
    fn window(&self, supply: &dyn Supply, from: usize) -> Range<usize> {
        let mut bytes = 0u64;
        let more = (from..supply.len()).take(self.window_items).take_while(|n| {
            bytes += supply.bytes(*n);
            bytes <= self.window
        });
        from..from + more.count().max(1)
    }
}

impl DiskTier for Cold {
    fn tier(&self) -> Tier {
        Tier::Cold
    }

    fn max_record(&self) -> u64 {
        let largest = MAX_VALUE + 2 * MAX_KEY as u64 + MOST_OVERHEAD;
        let limits = self.dirs.iter().map(|d| d.limit.unwrap_or(u64::MAX));
        largest.min(limits.max().unwrap_or(u64::MAX))
    }

    fn write(&self, items: &[Item], purpose: Purpose) -> Result<Vec<Written>> {
        Ok(self.write_from(&items, purpose)?.into_iter().flatten().collect())
    }

    fn write_from(&self, supply: &dyn Supply, purpose: Purpose) -> Result<Vec<Option<Written>>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(self.dirs.closed());
        }
        let mut staged: Vec<Staged> = Vec::new();
        let mut given: Vec<bool> = Vec::new();
        let config = self.config.lock().clone();
        while given.len() < supply.len() {
            match self.one_pack(&config, supply, given.len(), purpose) {
                Ok(filled) => {
                    given.extend(filled.given);
                    staged.extend(filled.staged);
                }
                Err(e) => {
                    for pack in staged {
                        let reserved = pack.reserved;
                        pack.discard();
                        self.ctx.containers.abandon(reserved);
                    }
                    return Err(e);
                }
            }
        }
        let mut written = self.publish(staged)?.into_iter();
        Ok(given.into_iter().map(|given| if given { written.next() } else { None }).collect())
    }

    fn in_service(&self) -> Result<()> {
        self.dirs.in_service()
    }

    fn seal(&self) -> Result<()> {
        Ok(())
    }

    fn drop_container(&self, entry: &Entry) -> Result<()> {
        let Some(pack) = self.pack_of(entry) else { return Ok(()) };
        pack.delete()?;
        self.packs.lock().remove(&entry.id);
        Ok(())
    }

    fn usage(&self) -> Usage {
        self.dirs.usage(self.written.load(Ordering::Relaxed))
    }

    fn directories(&self) -> Vec<DirStatus> {
        self.dirs.status()
    }

    fn quarantine_record(&self, entry: &Entry, position: u32, why: &str) -> Option<PathBuf> {
        let pack = self.pack_of(entry)?;
        let raw = entry.container.raw(position)?;
        let key = entry.container.key(position);
        pack.dir.keep_damaged(&raw, why, key.as_deref());
        Some(raw.path)
    }

    fn tune(&self, tuning: &Tuning) {
        if let Some(bytes) = tuning.read_ahead {
            self.shared.read_ahead.store(bytes, Ordering::Relaxed);
        }
        let mut config = self.config.lock();
        let mut next = (**config).clone();
        next.pack_size = tuning.container_size.unwrap_or(next.pack_size);
        if let Some(compression) = &tuning.compression {
            next.compression = compression.clone();
        }
        *config = Arc::new(next.within_bounds());
    }

    fn maintain(&self) {
        self.shared.keys.forget();
        self.dirs.retry();
    }

    fn suspect(&self, entry: &Entry) {
        self.dirs.suspect(entry.dir);
    }

    fn put_back(&self) {
        self.dirs.put_back();
    }

    fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.shared.files.clear();
        self.shared.keys.forget();
        Ok(())
    }
}
