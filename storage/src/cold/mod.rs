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
//! Nothing is kept in memory for an item, and about 200 bytes for a pack; files are opened when they are read.

mod entry;
mod identity;
mod listing;
mod names;
mod open;
mod pack;
#[cfg(test)]
mod tests;
mod transcode;
mod writer;

use crate::container::{DirStatus, DiskTier, Entry, OpenReport, Purpose, TierContext, Usage, Written};
use crate::error::{Error, Result};
use crate::item::Item;
use crate::openfiles::OpenFiles;
use crate::record::MAX_VALUE;
use crate::tierdir::{Dir, Dirs, Rules};
use crate::types::{Codec, MAX_KEY, Place, Tier};
use pack::Pack;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColdConfig {
    /// Bytes of a pack at most; larger batches are split into several, and an item larger than half of it has a
    /// pack to itself, however large. Taken as 64 KiB to 480 MiB.
    pub pack_size: u64,
    /// Level of deflate, 0 to 9; 0 stores.
    pub level: u32,
    /// Whether items that come uncompressed, or compressed with lz4, are deflated. Those that come with deflate
    /// or zlib keep it either way.
    pub compress: bool,
}

impl Default for ColdConfig {
    fn default() -> ColdConfig {
        ColdConfig { pack_size: 64 << 20, level: 6, compress: true }
    }
}

/// The cold tier.
#[derive(Debug)]
pub struct Cold {
    ctx: TierContext,
    config: ColdConfig,
    dirs: Dirs,
    files: Arc<OpenFiles>,
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
        let config = ColdConfig { pack_size: config.pack_size.clamp(SMALLEST_PACK, LARGEST_PACK), ..config };
        let rules = Rules { tier: Tier::Cold, folder: FOLDER, free_reserve: Some(0) };
        // A limit of a few packs must not be all reserve.
        let dirs = Dirs::open(&ctx, rules, |limit| config.pack_size.min(limit / 8))?;
        let files = Arc::new(OpenFiles::new(OPEN_FILES));
        let (packs, report) = open::open(&ctx, &dirs, &files)?;
        let cold = Cold {
            ctx,
            config,
            dirs,
            files,
            packs: Mutex::new(packs),
            written: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        };
        Ok((Arc::new(cold), report))
    }

    /// Writes one pack with as many of the items as go into it, in the best directory; if that fails, once more,
    /// elsewhere if there is another one.
    fn one_pack(&self, items: &[Item], purpose: Purpose) -> Result<Staged> {
        let mut full: Vec<u16> = Vec::new();
        let needed = least_bytes(items).min(self.config.pack_size);
        let mut failed = false;
        let mut last = None;
        loop {
            let dir = match self.dirs.choose(needed, purpose, &full) {
                Ok(dir) => dir,
                Err(e) => return Err(last.unwrap_or(e)),
            };
            match self.fill(&dir, items, purpose) {
                Ok(staged) => return Ok(staged),
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
    fn fill(&self, dir: &Arc<Dir>, items: &[Item], purpose: Purpose) -> Result<Staged> {
        let reserved = self.ctx.containers.reserve()?;
        let (now, began) = (self.ctx.clock.wall_ms(), dir.now());
        let staged = PackWriter::create(dir, reserved, self.ctx.store, now, purpose).and_then(|mut pack| {
            match self.append_all(&mut pack, items) {
                Ok(()) => pack.finish(),
                Err(e) => {
                    pack.discard();
                    Err(e)
                }
            }
        });
        match &staged {
            Ok(pack) => dir.wrote(pack.len, began),
            Err(_) => self.ctx.containers.abandon(reserved),
        }
        staged
    }

    fn append_all(&self, pack: &mut PackWriter, items: &[Item]) -> Result<()> {
        for item in items {
            if pack.is_full() {
                break;
            }
            let prepared = transcode::prepare(item, &self.config)?;
            let size = (prepared.item.payload.len() + item.key.len()) as u64;
            let alone = size > self.config.pack_size / 2;
            if pack.entries() > 0 && (alone || pack.len() + size > self.config.pack_size) {
                break;
            }
            pack.add(&prepared)?;
            if alone {
                break;
            }
        }
        Ok(())
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
            let pack = Arc::new(Pack::new(s.dir.clone(), self.files.clone(), no, id, &self.ctx.store, s.len));
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

/// Fewer bytes than these the items cannot come to; what is not deflated yet may shrink to almost nothing.
fn least_bytes(items: &[Item]) -> u64 {
    const HEADERS: u64 = 256;
    let payload = |i: &Item| match i.codec {
        Codec::Deflate | Codec::Zlib => i.payload.len() as u64,
        Codec::None | Codec::Lz4 => 0,
    };
    items.iter().map(|i| HEADERS + payload(i)).sum()
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
        if self.closed.load(Ordering::Acquire) {
            return Err(self.dirs.closed());
        }
        let mut staged: Vec<Staged> = Vec::new();
        let mut rest = items;
        while !rest.is_empty() {
            match self.one_pack(rest, purpose) {
                Ok(pack) => {
                    rest = rest.get(pack.placed.len()..).unwrap_or_default();
                    staged.push(pack);
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
        self.publish(staged)
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

    fn quarantine_record(&self, entry: &Entry, position: u32, why: &str) {
        let Some(pack) = self.pack_of(entry) else { return };
        let Some(raw) = entry.container.raw(position) else { return };
        let key = entry.container.head(position).ok().map(|h| h.key);
        pack.dir.keep_damaged(&raw, why, key.as_deref());
    }

    fn maintain(&self) {
        self.dirs.retry();
    }

    fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.files.clear();
        Ok(())
    }
}
