//! Appending: items into blocks, blocks into the value file of the active generation.
//!
//! Order: (1) a generation is made under a temporary name, its first value file written and synced, its
//! directory synced, renamed, the parent synced, and announced; (2) blocks are written; (3) the value file is
//! synced; (4) the blocks are entered in the index in RAM; (5) places are handed out. A crash after (1) leaves a
//! temporary directory or an empty generation, after (2) bytes that nothing points at, after (3) the same;
//! nothing else refers to a block before (5). After a failed write or sync the generation is sealed at its last
//! synced offset, and the items that were not yet durable are tried once in a new one.

use super::block::{self, Spot};
use super::core::{Core, Job};
use super::generation::Generation;
use super::index::Extent;
use super::reader::Handle;
use super::value::{self, Header, ValueFile};
use crate::container::{Containers, Entry, Purpose, Reserved, Written};
use crate::error::{Error, IoContext, Result};
use crate::item::Item;
use crate::record;
use crate::tierdir::{Dir, Dirs};
use crate::types::{Place, Tier};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Record numbers of a generation: places have 24 bits.
const MAX_RECORDS: u32 = Place::MAX_POSITION;
/// Blocks are gathered up to this many bytes for one write.
const GATHER: usize = 1 << 20;
/// A value file is reserved in steps between these: an eighth of what it has, so that a large file has few
/// extents on the disk and a small one wastes little.
const STEP: (u64, u64) = (64 << 10, 8 << 20);

/// Disks reserve in pages; so does the accounting.
const PAGE: u64 = 4096;

/// The writing side of the tier; behind one lock, which readers never take.
#[derive(Debug)]
pub(super) struct Writer {
    pub core: Arc<Core>,
    pub containers: Arc<Containers>,
    pub dirs: Arc<Dirs>,
    pub generations: Arc<RwLock<HashMap<u64, Arc<Generation>>>>,
    pub written: Arc<AtomicU64>,
    pub active: Option<Active>,
    pub closed: bool,
    /// Bytes to charge for an index when a generation is made.
    pub allowance: u64,
    /// The largest record that is taken.
    pub max_record: u64,
}

/// The generation being appended to.
#[derive(Debug)]
pub(super) struct Active {
    generation: Arc<Generation>,
    entry: Arc<Entry>,
    file: ValueFile,
    next_record: u32,
    next_block: u32,
    /// Bytes of blocks in it.
    bytes: u64,
}

impl Writer {
    /// See [`crate::container::DiskTier::write`].
    pub fn write(&mut self, items: &[Item], purpose: Purpose) -> Result<Vec<Written>> {
        self.refuse(items)?;
        let mut done = Vec::with_capacity(items.len());
        let mut tried_again = false;
        let mut moves = self.dirs.len();
        while let Some(rest) = items.get(done.len()..).filter(|r| !r.is_empty()) {
            let before = done.len();
            match self.append(rest, purpose, &mut done) {
                Ok(()) => {}
                Err(e) if e.is_no_space() => {
                    done.truncate(before);
                    if self.active.as_ref().is_some_and(|a| a.file.log.poisoned()) {
                        self.seal();
                    }
                    moves = moves.saturating_sub(1);
                    if moves == 0 || !self.move_on(rest, purpose) {
                        return Err(e);
                    }
                }
                Err(e) => {
                    done.truncate(before);
                    if let Some(active) = &self.active {
                        self.dirs.failed(&active.generation.dir, &e);
                    }
                    self.seal();
                    if tried_again || matches!(e, Error::OutOfService { .. } | Error::Busy(_)) {
                        return Err(e);
                    }
                    warn_seldom!(error = %e, "write to the HDD tier failed; trying once in a new generation");
                    tried_again = true;
                }
            }
        }
        Ok(done)
    }

    fn refuse(&self, items: &[Item]) -> Result<()> {
        if self.closed {
            return Err(self.dirs.closed());
        }
        for item in items {
            let size = record::size(item.key.len(), item.payload.len());
            if size > self.max_record {
                return Err(Error::TooLarge { tier: Tier::Hdd, size, limit: self.max_record });
            }
        }
        Ok(())
    }

    /// The active generation's directory is full: whether another one has room, in which case it is sealed.
    fn move_on(&mut self, items: &[Item], purpose: Purpose) -> bool {
        let needed = self.needed(items);
        let Some(active) = &self.active else { return false };
        let elsewhere = self.dirs.choose(needed, purpose, &[active.generation.dir.no]).is_ok();
        if elsewhere {
            self.seal();
        }
        elsewhere
    }

    /// Bytes that a new generation needs for the first of the items.
    fn needed(&self, items: &[Item]) -> u64 {
        block::plan(items, self.core.config.block_size, MAX_RECORDS as usize).1 + value::DATA + self.allowance
    }

    /// Appends as many of the items, at least one, as go into the active value file, and syncs them.
    fn append(&mut self, items: &[Item], purpose: Purpose, done: &mut Vec<Written>) -> Result<()> {
        let block_size = self.core.config.block_size;
        let generation_size = self.core.config.generation_size;
        let value_size = value_file_size(generation_size);
        let (_, len) = block::plan(items, block_size, MAX_RECORDS as usize);
        // What is open can still be written to when its disk is away: nobody would read it again.
        let done_with = |a: &Active| a.is_full(len, generation_size) || !a.generation.dir.in_service();
        if self.active.as_ref().is_some_and(done_with) {
            self.seal();
        }
        let mut active = match self.active.take() {
            Some(active) => active,
            None => self.create(self.needed(items), purpose)?,
        };
        let began = active.generation.dir.now();
        let result = active
            .turn_over(&self.core, len, value_size, purpose)
            .and_then(|()| active.append(&self.core, items, purpose, value_size));
        if let Ok(written) = &result {
            let bytes = written.iter().map(|w| u64::from(w.bytes)).sum();
            self.written.fetch_add(bytes, Ordering::Relaxed);
            active.generation.dir.wrote(bytes, began);
        }
        let full = active.bytes >= generation_size || active.next_record >= MAX_RECORDS;
        self.active = Some(active);
        done.extend(result?);
        if full {
            self.seal();
        }
        Ok(())
    }

    /// Makes a generation in the best directory.
    fn create(&self, needed: u64, purpose: Purpose) -> Result<Active> {
        let dir = self.dirs.choose(needed, purpose, &[])?;
        let reserved = self.containers.reserve(purpose)?;
        let charge = value::DATA + self.allowance;
        dir.claim(charge, purpose)
            .and_then(|()| self.create_in(&dir, reserved).inspect_err(|_| dir.change(charge, 0)))
            .inspect_err(|e| {
                self.containers.abandon(reserved);
                self.dirs.failed(&dir, e);
            })
    }

    fn create_in(&self, dir: &Arc<Dir>, reserved: Reserved) -> Result<Active> {
        let vfs = &*dir.vfs;
        let created_ms = self.core.clock.wall_ms();
        let path = dir.folder.join(generation_name(reserved.id));
        let tmp = dir.folder.join(format!("{}.tmp", generation_name(reserved.id)));
        let header = Header { store: self.core.store, container: reserved.id, file: 0, created_ms };
        let make = || {
            vfs.create_dir_all(&tmp).at("create", &tmp)?;
            let file = ValueFile::create(vfs, &tmp, &header)?;
            vfs.rename(&tmp, &path).at("rename", &tmp)?;
            vfs.sync_dir(&dir.folder).at("sync", &dir.folder)?;
            Ok(file)
        };
        let mut file = make().inspect_err(|_| {
            let _ = vfs.remove_dir_all(&tmp);
            let _ = vfs.remove_dir_all(&path);
        })?;
        file.log.moved_to(path.join(value::name(0)));
        let generation = Arc::new(Generation::new(
            Arc::clone(&self.core),
            Arc::clone(dir),
            reserved.no,
            reserved.id,
            created_ms,
            path,
            self.allowance,
        ));
        generation.begin_ram();
        generation.add_value(0, file.log.synced(), file.log.reserved());
        self.core.files.put((reserved.id, 0), Arc::clone(file.log.file()));
        self.generations.write().insert(reserved.id, Arc::clone(&generation));
        let handle = Arc::new(Handle(Arc::clone(&generation)));
        let entry = self.containers.publish(reserved, Tier::Hdd, dir.no, created_ms, handle);
        Ok(Active { generation, entry, file, next_record: 0, next_block: 0, bytes: 0 })
    }

    /// Seals the active generation and has its index written.
    pub fn seal(&mut self) {
        if let Some(active) = self.active.take() {
            active.entry.sealed.store(true, Ordering::Release);
            let file = &active.file;
            active.generation.set_end(file.no, file.log.synced());
            self.core.jobs.push(Job::Persist(active.generation));
        }
    }

    /// Whether the next record goes into a generation that is there, in a directory that takes records.
    pub fn is_open(&self) -> bool {
        self.active.as_ref().is_some_and(|a| a.generation.dir.in_service())
    }

    /// The id of the active generation.
    pub fn active_id(&self) -> Option<u64> {
        self.active.as_ref().map(|a| a.generation.id)
    }

    /// Whether the active generation holds records.
    pub fn active_has_records(&self) -> bool {
        self.active.as_ref().is_some_and(|a| a.next_record > 0)
    }
}

impl Active {
    /// Whether a block of this length no longer goes into the generation. One that is empty takes any.
    fn is_full(&self, len: u64, generation_size: u64) -> bool {
        self.next_record > 0 && self.bytes.saturating_add(len) > generation_size
    }

    /// Begins another value file if the block does not go into this one.
    fn turn_over(&mut self, core: &Core, len: u64, value_size: u64, purpose: Purpose) -> Result<()> {
        let end = self.file.log.appended();
        if end == value::DATA || end.saturating_add(len) <= value_size || self.file.no == u16::MAX {
            return Ok(());
        }
        let generation = &self.generation;
        // The files of this generation so far are synced: `append` leaves none that is not.
        let header = Header {
            store: core.store,
            container: generation.id,
            file: self.file.no + 1,
            created_ms: generation.created_ms,
        };
        generation.dir.claim(value::DATA, purpose)?;
        let file = ValueFile::create(&*generation.dir.vfs, &generation.path, &header)
            .inspect_err(|_| generation.dir.change(value::DATA, 0))?;
        core.files.put((generation.id, file.no), Arc::clone(file.log.file()));
        generation.add_value(file.no, file.log.synced(), file.log.reserved());
        self.file = file;
        Ok(())
    }

    /// Writes blocks to the value file until it, the generation or the items are at their end, and syncs.
    fn append(
        &mut self,
        core: &Core,
        items: &[Item],
        purpose: Purpose,
        value_size: u64,
    ) -> Result<Vec<Written>> {
        let generation_size = core.config.generation_size;
        let (mut rest, mut buffer) = (items, Vec::new());
        let (mut extents, mut written) = (Vec::new(), Vec::new());
        while !rest.is_empty() && self.next_record < MAX_RECORDS {
            let room = (MAX_RECORDS - self.next_record) as usize;
            let (count, len) = block::plan(rest, core.config.block_size, room);
            let (batch, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            let offset = self.file.log.appended() + buffer.len() as u64;
            let begun = !extents.is_empty();
            if begun && (self.is_full(len, generation_size) || offset.saturating_add(len) > value_size) {
                break;
            }
            match self.reserve(offset.saturating_add(len), value_size, purpose) {
                Ok(()) => {}
                // What is gathered is written; the next call says that there is no more room.
                Err(_) if begun => break,
                Err(e) => return Err(e),
            }
            let spot = Spot { container: self.generation.id, file: self.file.no, offset };
            block::encode(spot, self.next_block, self.next_record, batch, &mut buffer);
            let first = self.next_record;
            extents.push(Extent { first, count: count as u32, file: spot.file, offset, len });
            self.note(batch, &mut written)?;
            self.bytes += len;
            self.next_block += 1;
            if buffer.len() >= GATHER {
                self.file.log.append(&buffer)?;
                buffer.clear();
            }
            rest = after;
        }
        self.file.log.append(&buffer)?;
        self.file.log.sync()?;
        self.generation.set_end(self.file.no, self.file.log.synced());
        self.generation.enter(&extents);
        self.entry.records.store(u64::from(self.next_record), Ordering::Relaxed);
        items.iter().take(written.len()).for_each(|i| self.entry.note_expiry(i.expires_at));
        Ok(written)
    }

    /// Gives the records of a block their places.
    fn note(&mut self, batch: &[Item], written: &mut Vec<Written>) -> Result<()> {
        for item in batch {
            let place = Place::new(self.generation.no, self.next_record)
                .ok_or(Error::Busy("a generation is out of record numbers"))?;
            let size = record::size(item.key.len(), item.payload.len());
            written.push(Written { place, bytes: u32::try_from(size).unwrap_or(u32::MAX) });
            self.next_record += 1;
        }
        Ok(())
    }

    /// Reserves disk blocks up to `end`, a step more where there is room for it.
    fn reserve(&mut self, end: u64, value_size: u64, purpose: Purpose) -> Result<()> {
        let before = self.file.log.reserved();
        if end <= before {
            return Ok(());
        }
        let step = (before / 8).clamp(STEP.0, STEP.1);
        let end = end.next_multiple_of(PAGE);
        let generous = end.max(before + step).min(value_size.max(end));
        let no = self.file.no;
        // Charged first: what is reserved on the disk never exceeds what is charged.
        let claimed = match self.generation.claim_value(no, generous, purpose) {
            Ok(()) => generous,
            Err(_) => self.generation.claim_value(no, end, purpose).map(|()| end)?,
        };
        self.file.log.reserve(claimed).inspect_err(|_| self.generation.unclaim_value(no, before))
    }
}

/// The largest value file: a quarter of a generation, so that one file lost is not all of it.
fn value_file_size(generation_size: u64) -> u64 {
    (generation_size / 4).clamp(256 << 10, 1 << 30) + value::DATA
}

/// The name of a generation's directory.
pub(super) fn generation_name(id: u64) -> String {
    format!("gen-{id:016x}")
}

/// The id in the name of a generation's directory.
pub(super) fn generation_id(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("gen-")?;
    let lower = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (digits.len() == 16 && lower).then(|| u64::from_str_radix(digits, 16).ok())?
}
