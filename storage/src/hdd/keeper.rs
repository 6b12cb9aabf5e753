//! The keeper: one thread that opens, checks, rebuilds, writes and closes the indexes of sealed generations.
//!
//! What it writes is an index, in this order: a new directory `index-N`, filled by sled and closed; its files and
//! directory synced; the seal replaced; older index directories removed. A crash before the seal is replaced
//! leaves a directory that no seal names, which is removed at the next opening, and the index is rebuilt from the
//! value files. A crash after it leaves an index that checks.
//!
//! Invariants: at most [`Core::max_open`] databases are open; indexes in RAM of sealed generations take at most as much
//! as sled's caches may (the least recently used go, and are rebuilt when they are needed); a database is opened
//! only after its seal was checked.

use super::core::{Core, Job};
use super::fence::{Fault, Fence};
use super::generation::Generation;
use super::index::{Extent, IndexFactory};
use super::seal::{self, Seal};
use crate::error::{Error, IoContext, Result};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// Entries handed over the fence at once.
const BATCH: usize = 1024;

/// The keeper's own state.
#[derive(Debug)]
pub(super) struct Keeper {
    core: Arc<Core>,
    open: Vec<Weak<Generation>>,
    in_ram: Vec<Weak<Generation>>,
}

/// Why an index could not be made.
enum Failure {
    /// sled failed, and that was noted.
    Fault,
    /// Something else did, or there is no room.
    Error(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Error(e)
    }
}

/// Says at its end that the keeper has ended: who closes the tier waits for that, after a panic too.
struct Ended(Arc<Core>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.jobs.end();
    }
}

impl Keeper {
    /// A keeper that has nothing open.
    pub fn new(core: Arc<Core>) -> Keeper {
        Keeper { core, open: Vec::new(), in_ram: Vec::new() }
    }

    /// Works until it is told to stop, then seals and closes what is open.
    pub fn run(mut self) {
        let _ended = Ended(Arc::clone(&self.core));
        // At the callers' priority: reads wait for the generation that it opens.
        while let Some(job) = self.core.jobs.next() {
            match job {
                Job::Load(generation) => self.load(&generation, true),
                Job::Check(generation) => self.load(&generation, self.open.len() < self.core.max_open()),
                Job::Persist(generation) => {
                    let _upkeep = generation.upkeep.lock();
                    self.in_ram.push(Arc::downgrade(&generation));
                    self.persist(&generation);
                }
            }
            self.trim();
        }
        for generation in std::mem::take(&mut self.open).iter().filter_map(Weak::upgrade) {
            let _upkeep = generation.upkeep.lock();
            self.close(&generation);
        }
    }

    /// Sees that the generation has a good index; and, if `open`, that it can be looked up in.
    fn load(&mut self, generation: &Arc<Generation>, open: bool) {
        let _upkeep = generation.upkeep.lock();
        if generation.dropped() || (generation.ready() && !(generation.distrusted() && generation.is_open()))
        {
            generation.wake();
            return;
        }
        self.close(generation);
        if generation.distrusted() {
            tracing::debug!(path = %generation.path.display(), "the HDD index is not trusted");
        } else if let Some(factory) = self.core.sled() {
            match self.open_sealed(generation, factory, open) {
                Ok(()) => return generation.wake(),
                Err(Failure::Error(e)) => {
                    tracing::debug!(path = %generation.path.display(), why = %e, "no usable HDD index");
                }
                Err(Failure::Fault) => {}
            }
        }
        let begun = self.core.clock.awake_ms();
        match generation.rebuild() {
            Ok(ram) => {
                generation.set_ram(ram, begun);
                self.in_ram.push(Arc::downgrade(generation));
                self.persist(generation);
            }
            Err(Error::Gone(_)) => generation.wake(),
            Err(e) => {
                warn_seldom!(path = %generation.path.display(), error = %e, "cannot rebuild an HDD index");
                generation.set_failure(&e, begun);
            }
        }
    }

    /// Checks the seal, and opens the database if asked.
    fn open_sealed(
        &mut self,
        generation: &Arc<Generation>,
        factory: Arc<dyn IndexFactory>,
        open: bool,
    ) -> Result<(), Failure> {
        let vfs = &*generation.dir.vfs;
        let seal = Seal::read(vfs, &generation.path, generation.id)?;
        let values = generation.values();
        let covers = seal.values.len() == values.len()
            && seal.values.iter().zip(&values).all(|((a, len), (b, end))| a == b && len <= end);
        if !covers {
            return Err(Error::corrupt(&generation.path, 0, "the seal is of other value files").into());
        }
        seal.check(vfs, &generation.path)?;
        generation.set_index_bytes(seal::occupied(vfs, &generation.path, &seal::index_name(seal.index)));
        if open {
            let fence = self.open_fence(generation, factory, seal.index, u64::from(seal.entries))?;
            let sentinel = self.faults(generation, &fence, fence.sentinel())?;
            if sentinel.as_deref() != Some(&seal.token[..]) {
                fence.abandon();
                return Err(Error::corrupt(fence.path(), 0, "the sentinel is another one's").into());
            }
            generation.set_disk(fence, seal);
            self.open.push(Arc::downgrade(generation));
        }
        Ok(())
    }

    fn open_fence(
        &mut self,
        generation: &Generation,
        factory: Arc<dyn IndexFactory>,
        index: u32,
        entries: u64,
    ) -> Result<Fence, Failure> {
        let most = self.core.max_open();
        self.close_down_to(most - 1);
        let path = generation.path.join(seal::index_name(index));
        // sled opens its files by itself, and makes those that are not there.
        generation.dir.vfs.still_there().at("open the index in", &generation.path)?;
        let (cache, deadline) =
            (self.core.sled_cache.load(Ordering::Relaxed) / 2 / most as u64, self.core.config.sled_deadline);
        Fence::open(&self.core.threads, factory, &path, entries, cache, deadline).map_err(|fault| {
            generation.mark_abandoned(&path, &fault);
            Failure::Fault
        })
    }

    fn faults<T>(&self, generation: &Generation, fence: &Fence, r: Result<T, Fault>) -> Result<T, Failure> {
        r.map_err(|fault| {
            generation.give_up(fence, &fault);
            Failure::Fault
        })
    }

    /// Writes the index in RAM to a new database, and looks up in that from now on. Nothing is lost where that
    /// fails: the index stays in RAM.
    fn persist(&mut self, generation: &Arc<Generation>) {
        let Some(factory) = self.core.sled() else { return };
        let Some(ram) = generation.ram().filter(|r| !r.partial && !r.extents.is_empty()) else { return };
        if generation.dropped() {
            return;
        }
        let made = self.write_index(generation, &factory, &ram.extents);
        drop(ram);
        match made {
            Ok(seal) => {
                generation.remove_old_indexes(Some(seal.index));
                // A generation in which sled led astray keeps its index in RAM; the new one is for the next open.
                if !generation.distrusted()
                    && let Err(Failure::Error(e)) = self.open_sealed(generation, factory, true)
                {
                    warn_seldom!(path = %generation.path.display(), error = %e, "cannot open a new HDD index");
                }
            }
            Err(Failure::Error(e)) => {
                warn_seldom!(path = %generation.path.display(), error = %e, "HDD index stays in RAM");
            }
            Err(Failure::Fault) => {}
        }
    }

    fn write_index(
        &mut self,
        generation: &Arc<Generation>,
        factory: &Arc<dyn IndexFactory>,
        extents: &[Extent],
    ) -> Result<Seal, Failure> {
        let vfs = Arc::clone(&generation.dir.vfs);
        let estimate = factory.estimate(extents.len() as u64);
        generation.claim_index(estimate)?;
        generation.dir.admit_on_disk(estimate)?;
        let entries = vfs.read_dir(&generation.path).at("list", &generation.path)?;
        let last =
            entries.iter().filter_map(|e| seal::index_number(e.name.trim_end_matches(".abandoned"))).max();
        let index = last.map_or(0, |n| n.saturating_add(1));
        let folder = generation.path.join(seal::index_name(index));

        let fence = self.open_fence(generation, Arc::clone(factory), index, extents.len() as u64)?;
        for batch in extents.chunks(BATCH) {
            self.faults(generation, &fence, fence.insert(batch.to_vec()))?;
        }
        let token = self.token(generation)?;
        self.faults(generation, &fence, fence.set_sentinel(token.to_vec()))?;
        self.faults(generation, &fence, fence.close())?;
        // sled writes once more when it is opened for the first time, and no more after that: what is sealed now
        // stays as it is, and is good even after a kill while it is open.
        let fence = self.open_fence(generation, Arc::clone(factory), index, extents.len() as u64)?;
        self.faults(generation, &fence, fence.close())?;

        let seal = Seal {
            container: generation.id,
            token,
            index,
            entries: extents.len() as u32,
            records: extents.iter().map(|e| e.count).fold(0, u32::saturating_add),
            values: generation.values(),
            files: seal::digest(&*vfs, &folder, true)?,
        };
        vfs.sync_dir(&generation.path).at("sync", &generation.path)?;
        seal.write(&*vfs, &generation.path)?;
        generation.set_index_bytes(seal::occupied(&*vfs, &generation.path, &seal::index_name(index)));
        Ok(seal)
    }

    fn token(&self, generation: &Generation) -> Result<[u8; 16]> {
        self.core.vfs.random().at("take random bytes for", &generation.path)
    }

    /// Closes a generation's database and seals it as it was left. The caller holds the generation's `upkeep`.
    fn close(&self, generation: &Arc<Generation>) {
        let Some((fence, seal)) = generation.take_disk() else { return };
        if !self.core.sled_in_favour() {
            // sled's pool is broken: a close would cost the deadline, for each database.
            return fence.abandon();
        }
        if let Err(fault) = fence.close() {
            if fault != Fault::Abandoned {
                generation.give_up(&fence, &fault);
            }
            return;
        }
        if generation.distrusted() {
            return;
        }
        if let Err(e) = self.seal_again(generation, &seal) {
            warn_seldom!(path = %generation.path.display(), error = %e, "HDD index not sealed; it will be rebuilt");
        }
    }

    /// sled may have rewritten its files by opening them alone.
    fn seal_again(&self, generation: &Generation, old: &Seal) -> Result<()> {
        let folder = generation.path.join(seal::index_name(old.index));
        let files = seal::digest(&*generation.dir.vfs, &folder, true)?;
        let name = seal::index_name(old.index);
        generation.set_index_bytes(seal::occupied(&*generation.dir.vfs, &generation.path, &name));
        if files == old.files {
            return Ok(());
        }
        Seal { files, ..old.clone() }.write(&*generation.dir.vfs, &generation.path)
    }

    /// Keeps what is open and what is in RAM within their limits.
    fn trim(&mut self) {
        self.close_down_to(self.core.max_open());
        let mut alive: Vec<Arc<Generation>> = Vec::new();
        for generation in self.in_ram.iter().filter_map(Weak::upgrade).filter(|g| g.ram().is_some()) {
            if !alive.iter().any(|g| Arc::ptr_eq(g, &generation)) {
                alive.push(generation);
            }
        }
        let mut total: u64 = alive.iter().map(|g| g.ram_bytes()).sum();
        let mut by_use: Vec<_> = alive.iter().map(|g| (g.used(), g)).collect();
        by_use.sort_by_key(|(used, _)| *used);
        // The last one used stays, whatever its size: somebody is about to look up in it.
        by_use.pop();
        // Those of which a part is missing go last: until they may be built again, what they have is out of reach.
        by_use.sort_by_key(|(_, g)| g.ram().is_some_and(|ram| ram.partial));
        for (_, generation) in by_use {
            if total > self.core.config.sled_cache / 4 {
                total = total.saturating_sub(generation.ram_bytes());
                generation.drop_ram();
            }
        }
        self.in_ram = alive.iter().filter(|g| g.ram().is_some()).map(Arc::downgrade).collect();
    }

    /// Closes the least recently used databases until at most `most` are open.
    fn close_down_to(&mut self, most: usize) {
        let mut alive: Vec<_> = self.open.iter().filter_map(Weak::upgrade).filter(|g| g.is_open()).collect();
        alive.sort_by_cached_key(|g| g.used());
        let excess = alive.len().saturating_sub(most);
        for generation in alive.drain(..excess) {
            // Held only by a drop of the generation, which closes the database itself.
            if let Some(_upkeep) = generation.upkeep.try_lock() {
                self.close(&generation);
            }
        }
        self.open = alive.iter().map(Arc::downgrade).collect();
    }
}
