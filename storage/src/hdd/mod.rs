//! The HDD tier: generations of value files, each indexed by a sled database that nobody has to trust.
//!
//! ```text
//! DIR/generations/gen-ID/values-0000, values-0001, …    the bytes, in blocks     (value.rs, block.rs)
//!                       /index-0000/                    a sled database          (sled_index.rs, fence.rs)
//!                       /seal                           what the index was       (seal.rs)
//! DIR/quarantine/                                       what could not be read
//! ```
//!
//! What a check looks at, which changes nothing, is in `examine.rs`.
//!
//! A disk that seeks reads 64 KiB for the price of one byte, so items lie in blocks of that size, or have one to
//! themselves. A place is (generation, record number). While a generation is appended to, the index that leads
//! from a record number to a block is in RAM; once it is sealed the index is written, in rising order and in one
//! go, to a sled database of its own, closed and sealed. sled is thus the tier's ordered index, but it is never on
//! the path of a write, is never asked to be durable, and never opens a file that it did not close itself.
//!
//! Invariants:
//! - a record is returned only if its header, key and payload verify under the generation's id and its record
//!   number is the one asked for, whatever the index said;
//! - an index that is lost, stale, damaged, hanging or lying is rebuilt from the value files; it makes no record
//!   dead;
//! - no call waits for sled longer than `sled_deadline`, and no read longer than `open_wait` for an index;
//! - the limit of each directory holds at every moment, allocation, indexes and quarantine included;
//! - readers take no lock that is held across a write to the disk.
//!
//! What a crash leaves is told in `writer.rs` (appending), `keeper.rs` (indexes), `value.rs` (value files) and, for
//! deletion, at [`Hdd::drop_container`](crate::container::DiskTier::drop_container).

mod block;
mod core;
mod examine;
mod fence;
mod generation;
mod index;
mod keeper;
mod open;
mod reader;
mod scan;
mod seal;
mod sled_index;
#[cfg(test)]
mod tests;
mod value;
mod writer;

use self::core::{Core, Job};
use crate::container::{
    Container, DirStatus, DiskTier, Entry, OpenReport, Purpose, TierContext, Tuning, Unknown, Usage, Written,
};
use crate::error::{Error, IoContext, Result};
use crate::item::Item;
use crate::record;
use crate::tierdir::{Dir, Dirs, Rules};
use crate::types::{MAX_KEY, Tier};
use generation::Generation;
use index::IndexFactory;
use keeper::Keeper;
use open::Opening;
use parking_lot::{Mutex, RwLock};
use reader::Handle;
use sled_index::SledFactory;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use writer::Writer;

/// The folder of the generations in each directory.
const FOLDER: &str = "generations";

/// Where the indexes of sealed generations are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum IndexKind {
    /// In sled databases beside the value files.
    #[default]
    Sled,
    /// In RAM only, rebuilt from the value files at each opening: for file systems that sled cannot see, such as
    /// a simulated one.
    Ram,
}

/// How the tier is set up.
#[derive(Debug, Clone)]
pub struct HddConfig {
    /// Bytes of blocks after which a generation is sealed. A larger item has a generation to itself.
    pub generation_size: u64,
    /// Bytes of small records that are put into one block and read together.
    pub block_size: usize,
    /// Bytes that the tier's indexes may take in RAM: half of it is the cache of all open sled databases together, a
    /// quarter indexes in RAM of sealed generations, a quarter headers of blocks read lately.
    pub sled_cache: u64,
    /// Bytes that a scan of a value file reads at once; 4 MiB at most.
    pub read_ahead: u64,
    /// How long an answer of sled is waited for before the database is given up.
    pub sled_deadline: Duration,
    /// How long a read waits for a generation whose index is still being opened, before `Busy`.
    pub open_wait: Duration,
    /// Bytes that stay free on the file system.
    pub reserve: u64,
    /// Where indexes are kept.
    pub index: IndexKind,
}

impl HddConfig {
    /// The defaults for a tier of this many bytes (`None`: unlimited): 64 KiB blocks, 32 MiB for sled, 5 s.
    pub fn for_limit(limit: Option<u64>) -> HddConfig {
        HddConfig {
            generation_size: Self::generation_size_for(limit),
            block_size: 64 << 10,
            sled_cache: 32 << 20,
            read_ahead: 1 << 20,
            sled_deadline: Duration::from_secs(5),
            open_wait: Duration::from_secs(5),
            reserve: Self::reserve_for(limit),
            index: IndexKind::default(),
        }
    }

    /// About a sixteenth of the limit, 256 KiB to 2 GiB.
    pub fn generation_size_for(limit: Option<u64>) -> u64 {
        limit.map_or(2 << 30, |l| (l / 16).clamp(256 << 10, 2 << 30))
    }

    /// The larger of 64 MiB and a 64th of the limit, but no more than a quarter of the limit.
    pub fn reserve_for(limit: Option<u64>) -> u64 {
        limit.map_or(64 << 20, |l| (l / 64).max(64 << 20).min(l / 4))
    }
}

/// For [`doors`](crate::testing::doors).
#[cfg(any(test, feature = "testing"))]
pub(crate) fn read_and_write_seal(bytes: &[u8], container: u64) -> Option<Vec<u8>> {
    seal::Seal::parse(bytes, container).ok().map(|seal| seal.encode())
}

/// The state of what the tier depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// How often sled panicked, hung or reported an error.
    pub faults: u64,
    /// Databases given up; moved to the quarantine at the next opening.
    pub abandoned: Vec<PathBuf>,
    /// No index goes to sled any more until a restart (or by configuration).
    pub ram_only: bool,
    /// Indexes rebuilt from value files since the opening.
    pub rebuilt: u64,
    /// Databases open now.
    pub open: usize,
    /// Directories that take no writes, and why.
    pub out_of_service: Vec<(PathBuf, String)>,
}

/// The HDD tier.
#[derive(Debug)]
pub struct Hdd {
    core: Arc<Core>,
    dirs: Arc<Dirs>,
    generations: Arc<RwLock<HashMap<u64, Arc<Generation>>>>,
    writer: Mutex<Writer>,
    written: Arc<AtomicU64>,
    max_record: u64,
    keeper: Mutex<Option<JoinHandle<()>>>,
    /// Directories of dropped generations that could not be deleted yet, with what they occupy.
    dead: Mutex<Vec<(Arc<Dir>, PathBuf, u64)>>,
}

impl Hdd {
    /// Opens the tier. Reads the headers of value files only; indexes are opened, checked and rebuilt in the
    /// background, the newest generations first.
    ///
    /// # Errors
    /// `NewerFormat`, and `Io` where a directory cannot be listed. Damage is not an error: see [`OpenReport`].
    pub fn open(ctx: TierContext, config: HddConfig) -> Result<(Arc<Hdd>, OpenReport)> {
        let factory: Option<Arc<dyn IndexFactory>> = match config.index {
            IndexKind::Sled => Some(Arc::new(SledFactory)),
            IndexKind::Ram => None,
        };
        Hdd::open_with(ctx, config, factory)
    }

    fn open_with(
        ctx: TierContext,
        mut config: HddConfig,
        factory: Option<Arc<dyn IndexFactory>>,
    ) -> Result<(Arc<Hdd>, OpenReport)> {
        // A read-only check keeps its indexes in RAM: sled writes when it opens.
        let may_change = ctx.unknown != Unknown::Ignore;
        let factory = factory.filter(|_| may_change);
        config.block_size = config.block_size.clamp(4 << 10, 4 << 20);
        config.generation_size = config.generation_size.max(config.block_size as u64);
        let entries = 2 * config.generation_size / config.block_size as u64 + 2;
        let allowance = factory.as_ref().map_or(0, |f| f.estimate(entries));
        let (generation_size, reserve) = (config.generation_size, config.reserve);
        let max_record = max_record(&ctx, allowance);
        let core = Core::new(Arc::clone(&ctx.vfs), Arc::clone(&ctx.clock), ctx.store, config, factory);
        let core = Arc::new(core);
        // The free-space reserve is there so that sled never meets ENOSPC, after which its drop hangs.
        let rules = Rules { tier: Tier::Hdd, folder: FOLDER, free_reserve: Some(reserve) };
        let dirs = Dirs::open(&ctx, rules, |limit| generation_size.max(limit / 20).min(limit / 4))?;

        let mut opening = Opening {
            core: &core,
            containers: &ctx.containers,
            unknown: ctx.unknown,
            known: ctx.known_here(),
            unread: HashSet::new(),
            report: OpenReport::default(),
            generations: HashMap::new(),
        };
        opening.directories(&dirs)?;
        let Opening { mut report, generations, known, .. } = opening;
        report.missing = known.into_values().collect();

        let mut newest_first: Vec<_> = generations.values().cloned().collect();
        newest_first.sort_by_key(|g| std::cmp::Reverse(g.id));
        if may_change {
            newest_first.into_iter().for_each(|g| core.jobs.push(Job::Check(g)));
        }
        let (dirs, generations) = (Arc::new(dirs), Arc::new(RwLock::new(generations)));
        let written = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            core: Arc::clone(&core),
            containers: ctx.containers,
            dirs: Arc::clone(&dirs),
            generations: Arc::clone(&generations),
            written: Arc::clone(&written),
            active: None,
            closed: !may_change,
            allowance,
            max_record,
        };
        let keeper = Keeper::new(Arc::clone(&core));
        let keeper = std::thread::Builder::new().name("thermocline-hdd".into()).spawn(move || keeper.run());
        let keeper = Mutex::new(Some(
            keeper
                .at("start the keeper of", ctx.dirs.first().map_or_else(PathBuf::new, |d| d.path.clone()))?,
        ));
        let writer = Mutex::new(writer);
        let dead = Mutex::default();
        Ok((Arc::new(Hdd { core, dirs, generations, writer, written, max_record, keeper, dead }), report))
    }

    /// The state of sled and of the directories.
    pub fn health(&self) -> Health {
        let open = self.generations.read().values().filter(|g| g.is_open()).count();
        let out = |d: &Arc<Dir>| d.out_of_service().map(|why| (d.folder.clone(), why));
        Health { open, out_of_service: self.dirs.iter().filter_map(out).collect(), ..self.core.health() }
    }

    fn generation(&self, entry: &Entry) -> Result<Arc<Generation>> {
        self.generations.read().get(&entry.id).cloned().ok_or(Error::Gone(entry.no))
    }

    fn remove_dead(&self, dir: &Arc<Dir>, path: PathBuf, bytes: u64) {
        match dir.vfs.remove_dir_all(&path) {
            Ok(()) => dir.change(bytes, 0),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => dir.change(bytes, 0),
            Err(e) => {
                warn_seldom!(path = %path.display(), error = %e, "cannot delete a dropped generation yet");
                self.dead.lock().push((Arc::clone(dir), path, bytes));
            }
        }
    }

    /// Stops the keeper, which closes the databases; it is given up if sled keeps it.
    fn stop_keeper(&self) {
        self.core.jobs.stop();
        self.generations.read().values().for_each(|g| g.wake());
        let Some(keeper) = self.keeper.lock().take() else { return };
        let most = self.core.config.sled_deadline.saturating_mul(self.core.max_open() as u32 + 4);
        if self.core.jobs.wait_ended(most) {
            let _ = keeper.join();
        } else {
            warn_seldom!(
                "sled keeps the HDD tier from closing; what it holds is left to the end of the process"
            );
        }
    }
}

/// Half of what the largest directory may hold, and no more than the largest item of all.
fn max_record(ctx: &TierContext, allowance: u64) -> u64 {
    let largest = record::size(MAX_KEY, record::MAX_VALUE as usize);
    let limit = ctx.dirs.iter().map(|d| d.limit.unwrap_or(u64::MAX)).max().unwrap_or(0);
    (limit / 2).saturating_sub(value::DATA + allowance + block::header_len(1) as u64).min(largest)
}

impl DiskTier for Hdd {
    fn tier(&self) -> Tier {
        Tier::Hdd
    }

    fn max_record(&self) -> u64 {
        self.max_record
    }

    fn write(&self, items: &[Item], purpose: Purpose) -> Result<Vec<Written>> {
        self.writer.lock().write(items, purpose)
    }

    fn in_service(&self) -> Result<()> {
        if self.writer.lock().is_open() { Ok(()) } else { self.dirs.in_service() }
    }

    fn seal(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        if writer.active_has_records() {
            writer.seal();
        }
        Ok(())
    }

    /// Steps: (1) the index is closed, (2) the directory renamed to `.dead`, (3) its parent synced, (4) the files
    /// removed. If (3) failed, (2) is made again: a sync that failed may have forgotten it. A crash before (3) leaves the
    /// generation or a `.dead` directory, after it a `.dead` directory,
    /// which the next opening removes; the catalog no longer knows it either way.
    fn drop_container(&self, entry: &Entry) -> Result<()> {
        let generation = self.generation(entry)?;
        {
            let mut writer = self.writer.lock();
            if writer.active_id() == Some(entry.id) {
                writer.seal();
            }
        }
        generation.give_notice();
        let _upkeep = generation.upkeep.lock();
        generation.retire();
        let bytes = Handle(Arc::clone(&generation)).occupied();
        let mut dead = generation.path.as_os_str().to_owned();
        dead.push(".dead");
        let dead = PathBuf::from(dead);
        let vfs = &generation.dir.vfs;
        match vfs.rename(&generation.path, &dead) {
            // An earlier try got so far, and its sync may have failed: then the rename may be forgotten, though the next
            // sync succeeds, and a crash would bring back the name to a generation without its files. It is made again.
            // Or somebody deleted it: what is not there is dropped.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => match vfs.rename(&dead, &generation.path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                back => {
                    back.and_then(|()| vfs.rename(&generation.path, &dead)).at("rename", &generation.path)?
                }
            },
            other => other.at("rename", &generation.path)?,
        }
        vfs.sync_dir(&generation.dir.folder).at("sync", &generation.dir.folder)?;
        self.generations.write().remove(&entry.id);
        generation.dir.change(0, bytes);
        generation.free();
        self.remove_dead(&generation.dir, dead, bytes);
        Ok(())
    }

    fn usage(&self) -> Usage {
        self.dirs.usage(self.written.load(Ordering::Relaxed))
    }

    fn directories(&self) -> Vec<DirStatus> {
        self.dirs.status()
    }

    fn quarantine_record(&self, entry: &Entry, position: u32, why: &str) -> Option<PathBuf> {
        let generation = self.generation(entry).ok()?;
        let dir = Arc::clone(&generation.dir);
        let handle = Handle(generation);
        let raw = handle.raw(position)?;
        let head = record::parse_header(&raw.bytes, entry.id).ok();
        let key = head.as_ref().map(|h| h.head.key.as_ref());
        dir.keep_damaged(&raw, why, key);
        Some(raw.path)
    }

    fn index_lookups(&self) -> (u64, u64) {
        let [all, slow] = &self.core.lookups;
        (all.load(Ordering::Relaxed), slow.load(Ordering::Relaxed))
    }

    fn tune(&self, tuning: &Tuning) {
        if let Some(bytes) = tuning.index_cache {
            self.core.sled_cache.store(bytes, Ordering::Relaxed);
            self.core.tables.resize(bytes);
        }
        if let Some(bytes) = tuning.read_ahead {
            self.core.set_read_ahead(bytes);
        }
    }

    fn maintain(&self) {
        let back = self.dirs.retry();
        if !back.is_empty() {
            let all = self.generations.read();
            all.values().filter(|g| back.contains(&g.dir.no)).for_each(|g| g.end_rest());
        }
        let dead = std::mem::take(&mut *self.dead.lock());
        dead.into_iter().for_each(|(dir, path, bytes)| self.remove_dead(&dir, path, bytes));
    }

    fn suspect(&self, entry: &Entry) {
        self.dirs.suspect(entry.dir);
    }

    fn put_back(&self) {
        self.dirs.put_back();
        self.generations.read().values().for_each(|g| g.end_rest());
    }

    /// What is queued now: indexes opened, checked, rebuilt, written.
    fn settle(&self, limit: Duration) -> bool {
        self.core.jobs.wait_idle(limit)
    }

    fn close(&self) -> Result<()> {
        {
            let mut writer = self.writer.lock();
            writer.seal();
            writer.closed = true;
        }
        self.core.jobs.only_persist();
        let limit = self.core.config.sled_deadline.saturating_mul(2);
        if !self.core.jobs.wait_idle(limit) {
            tracing::debug!("HDD indexes not all written; the next opening rebuilds them");
        }
        self.stop_keeper();
        self.core.files.clear();
        Ok(())
    }
}

impl Drop for Hdd {
    fn drop(&mut self) {
        self.stop_keeper();
    }
}
