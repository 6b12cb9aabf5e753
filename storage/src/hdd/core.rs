//! What the parts of the tier share: configuration, caches, the health of sled, the work waiting for the keeper.
//!
//! Invariants: sled is given up for the whole tier after its second database failed, and taken back only by a restart;
//! the cache of block headers stays within its share, and what it says is verified again by who reads the record.
//! Nothing is written here.

use super::block::Block;
use super::fence::{Fault, Threads};
use super::generation::Generation;
use super::index::IndexFactory;
use super::{HddConfig, Health};
use crate::clock::Clock;
use crate::openfiles::OpenFiles;
use crate::vfs::Vfs;
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A lookup that takes so long has read a disk: from its caches sled answers within a tenth of that, the way to its thread
/// and back included.
const FROM_DISK: Duration = Duration::from_micros(500);
/// Databases open at once, at most.
const MAX_OPEN: u64 = 8;
/// So much of the configured cache allows one more of them: besides its cache, each has up to 6 MiB of page table.
const CACHE_PER_OPEN: u64 = 4 << 20;
/// Value files open at once for reading.
const MAX_FILES: usize = 256;
/// Databases that may fail before the tier does without sled.
const MAX_FAULTS: usize = 2;

/// What the parts of the tier share.
#[derive(Debug)]
pub(super) struct Core {
    pub vfs: Arc<dyn Vfs>,
    pub clock: Arc<dyn Clock>,
    pub store: [u8; 16],
    pub config: HddConfig,
    /// How indexes on disk are opened; `None`: they are kept in RAM.
    pub factory: Option<Arc<dyn IndexFactory>>,
    /// Bytes that the tier's caches may take now: half for databases, a quarter for headers of blocks.
    pub sled_cache: AtomicU64,
    /// Bytes that a scan reads at once.
    read_ahead: AtomicU64,
    /// Value files, by generation and number.
    pub files: OpenFiles<(u64, u16)>,
    pub tables: TableCache,
    pub jobs: Jobs,
    /// Threads that serve indexes.
    pub threads: Threads,
    ticks: AtomicU64,
    faults: Mutex<Faults>,
    ram_only: AtomicBool,
    /// Lookups in databases, and those of them that took so long that a disk was read for them.
    pub lookups: [AtomicU64; 2],
    /// Indexes rebuilt from value files.
    pub rebuilt: AtomicU64,
}

#[derive(Debug, Default)]
struct Faults {
    count: u64,
    abandoned: Vec<PathBuf>,
}

impl Core {
    pub fn new(
        vfs: Arc<dyn Vfs>,
        clock: Arc<dyn Clock>,
        store: [u8; 16],
        config: HddConfig,
        factory: Option<Arc<dyn IndexFactory>>,
    ) -> Core {
        Core {
            vfs,
            clock,
            store,
            tables: TableCache::new(config.sled_cache),
            sled_cache: AtomicU64::new(config.sled_cache),
            read_ahead: AtomicU64::new(config.read_ahead),
            config,
            ram_only: AtomicBool::new(factory.is_none()),
            factory,
            files: OpenFiles::new(MAX_FILES),
            jobs: Jobs::default(),
            threads: Threads::default(),
            ticks: AtomicU64::new(0),
            faults: Mutex::default(),
            lookups: Default::default(),
            rebuilt: AtomicU64::new(0),
        }
    }

    /// Bytes that a scan reads at once.
    pub fn read_ahead(&self) -> u64 {
        self.read_ahead.load(Ordering::Relaxed)
    }

    /// Has scans that begin from now on read so many at once.
    pub fn set_read_ahead(&self, bytes: u64) {
        self.read_ahead.store(bytes, Ordering::Relaxed);
    }

    /// A lookup in a database, counted.
    pub fn timed<R>(&self, lookup: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let found = lookup();
        let [all, slow] = &self.lookups;
        all.fetch_add(1, Ordering::Relaxed);
        if start.elapsed() >= FROM_DISK {
            slow.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// How many databases are open at once, at most.
    pub fn max_open(&self) -> usize {
        // By what was configured: to close databases because memory is short would have them opened again and again.
        (self.config.sled_cache / CACHE_PER_OPEN).clamp(1, MAX_OPEN) as usize
    }

    /// A count that rises, to tell what was used last.
    pub fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::Relaxed)
    }

    /// The most that neighbouring small blocks are joined to.
    pub fn extent_max(&self) -> u64 {
        self.config.block_size as u64
    }

    /// Whether sled is used: it is configured, and has not failed too often.
    pub fn sled_in_favour(&self) -> bool {
        !self.ram_only.load(Ordering::Acquire)
    }

    /// The factory, unless the tier does without sled.
    pub fn sled(&self) -> Option<Arc<dyn IndexFactory>> {
        self.factory.clone().filter(|_| self.sled_in_favour())
    }

    /// Notes that a database failed. The second one suggests that sled's process-wide pool is broken, and all of
    /// the tier does without sled until a restart.
    pub fn fault(&self, path: &Path, fault: &Fault) {
        let mut faults = self.faults.lock();
        faults.count += 1;
        if !faults.abandoned.iter().any(|p| p == path) {
            faults.abandoned.push(path.to_path_buf());
        }
        warn_seldom!(path = %path.display(), fault = %fault, "HDD index given up; it is rebuilt");
        if faults.abandoned.len() >= MAX_FAULTS && !self.ram_only.swap(true, Ordering::AcqRel) {
            warn_seldom!("sled failed in {MAX_FAULTS} databases: HDD indexes stay in RAM until a restart");
        }
    }

    /// The health of sled, directories left to the caller.
    pub fn health(&self) -> Health {
        let faults = self.faults.lock();
        Health {
            faults: faults.count,
            abandoned: faults.abandoned.clone(),
            ram_only: self.ram_only.load(Ordering::Acquire),
            rebuilt: self.rebuilt.load(Ordering::Relaxed),
            ..Health::default()
        }
    }
}

/// Headers of blocks read lately. Each was verified when it was read and blocks never change, so an entry is
/// right for as long as its generation is there; the record it leads to is verified all the same.
#[derive(Debug)]
pub(super) struct TableCache {
    blocks: RwLock<Tables>,
    /// Bytes of headers kept.
    most: AtomicUsize,
}

#[derive(Debug, Default)]
struct Tables {
    map: BTreeMap<(u64, u32), Block>,
    weight: usize,
    /// Where the next eviction begins: it goes round, like CLOCK without a second chance.
    hand: (u64, u32),
}

impl Tables {
    /// Lets go of headers until those that are left weigh so much at most.
    fn shrink_to(&mut self, most: usize) {
        while self.weight > most {
            let next = self.map.range(self.hand..).next().map(|(k, _)| *k);
            match next.or_else(|| self.map.keys().next().copied()) {
                Some(key) => {
                    if let Some(old) = self.map.remove(&key) {
                        self.weight -= old.weight();
                    }
                    self.hand = key;
                }
                None => self.weight = 0,
            }
        }
    }
}

impl TableCache {
    /// A cache of a quarter of what the tier's indexes may take.
    fn new(sled_cache: u64) -> TableCache {
        TableCache { blocks: RwLock::default(), most: AtomicUsize::new(Self::share(sled_cache)) }
    }

    fn share(sled_cache: u64) -> usize {
        usize::try_from(sled_cache / 4).unwrap_or(usize::MAX)
    }

    /// Has another part from now on; what is too much goes at once: that is what it is made smaller for.
    pub fn resize(&self, sled_cache: u64) {
        let most = Self::share(sled_cache);
        self.most.store(most, Ordering::Relaxed);
        self.blocks.write().shrink_to(most);
    }

    /// The block of a record, if its header is here.
    pub fn get(&self, container: u64, record: u32) -> Option<Block> {
        let tables = self.blocks.read();
        let (_, block) = tables.map.range((container, 0)..=(container, record)).next_back()?;
        block.holds(record).then(|| block.clone())
    }

    /// Enters a block's verified header.
    pub fn put(&self, block: Block) {
        let mut tables = self.blocks.write();
        tables.weight += block.weight();
        if let Some(old) = tables.map.insert((block.spot.container, block.first), block) {
            tables.weight -= old.weight();
        }
        tables.shrink_to(self.most.load(Ordering::Relaxed));
    }

    /// Lets go of a generation's blocks.
    pub fn forget(&self, container: u64) {
        let mut tables = self.blocks.write();
        let keys: Vec<_> =
            tables.map.range((container, 0)..=(container, u32::MAX)).map(|(k, _)| *k).collect();
        for key in keys {
            if let Some(old) = tables.map.remove(&key) {
                tables.weight -= old.weight();
            }
        }
    }
}

/// Something for the keeper to do.
#[derive(Debug)]
pub(super) enum Job {
    /// A reader waits for this generation's index.
    Load(Arc<Generation>),
    /// See that this generation's index is good.
    Check(Arc<Generation>),
    /// Write the index of this generation, which is sealed.
    Persist(Arc<Generation>),
}

/// The keeper's queue: what readers wait for goes first.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    queue: Mutex<Queue>,
    changed: Condvar,
    stopping: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    urgent: VecDeque<Job>,
    other: VecDeque<Job>,
    busy: bool,
    /// The keeper has ended.
    ended: bool,
}

impl Jobs {
    /// Queues a job; ignored once the keeper is stopping.
    pub fn push(&self, job: Job) {
        if self.stopping() {
            return;
        }
        let mut queue = self.queue.lock();
        match job {
            Job::Load(_) => queue.urgent.push_back(job),
            _ => queue.other.push_back(job),
        }
        self.changed.notify_all();
    }

    /// The next job; `None` when the keeper is to stop. The one before is done.
    pub fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        queue.busy = false;
        self.changed.notify_all();
        loop {
            if self.stopping() {
                return None;
            }
            let job = queue.urgent.pop_front().or_else(|| queue.other.pop_front());
            if job.is_some() {
                queue.busy = true;
                return job;
            }
            self.changed.wait(&mut queue);
        }
    }

    /// Whether the keeper is to stop: long jobs ask now and then.
    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Tells the keeper to stop, and forgets what is queued.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let mut queue = self.queue.lock();
        queue.urgent.clear();
        queue.other.clear();
        self.changed.notify_all();
    }

    /// The keeper has ended, in whatever way.
    pub fn end(&self) {
        self.queue.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits until the keeper has ended; false if it has not within `limit`.
    pub fn wait_ended(&self, limit: Duration) -> bool {
        let until = std::time::Instant::now() + limit;
        let mut queue = self.queue.lock();
        while !queue.ended {
            if self.changed.wait_until(&mut queue, until).timed_out() {
                return queue.ended;
            }
        }
        true
    }

    /// Forgets what is queued but for the indexes that are to be written.
    pub fn only_persist(&self) {
        let mut queue = self.queue.lock();
        queue.urgent.clear();
        queue.other.retain(|j| matches!(j, Job::Persist(_)));
    }

    /// Waits until the keeper is idle; false if it is not within `limit`.
    pub fn wait_idle(&self, limit: Duration) -> bool {
        let until = std::time::Instant::now() + limit;
        let mut queue = self.queue.lock();
        while queue.busy || !queue.urgent.is_empty() || !queue.other.is_empty() {
            if self.changed.wait_until(&mut queue, until).timed_out() {
                return false;
            }
        }
        true
    }
}
