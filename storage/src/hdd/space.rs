//! The directories of the tier: what each may hold, what it holds, and whether it works.
//!
//! Invariants:
//! - `occupied` is raised before disk blocks are reserved, and never above the limit: value files by the length
//!   reserved, an index by an allowance from the generation's start and by its size once it is there;
//! - callers' writes leave the write reserve to reclaim;
//! - nothing is written while the file system has less than the free-space reserve, so that sled never meets
//!   ENOSPC (after which its drop hangs).

use crate::clock::Clock;
use crate::container::{DirStatus, Purpose, TierDir};
use crate::error::{Error, IoContext, Result};
use crate::quarantine::Quarantine;
use crate::types::Tier;
use crate::vfs::{OpenMode, Vfs};
use parking_lot::Mutex;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The folder of the generations in each directory.
pub(super) const FOLDER: &str = "generations";
/// How long a directory that failed is left alone.
const RETRY_MS: u64 = 30_000;
/// How long, and for how many bytes, the file system's word about its free space is taken.
const SPACE_MS: u64 = 1000;
const SPACE_BYTES: u64 = 64 << 20;
/// The quarantine's cap where the tier has no limit.
const QUARANTINE_CAP: u64 = 1 << 30;

/// One directory.
#[derive(Debug)]
pub(super) struct Dir {
    /// The store's number for it.
    pub no: u16,
    /// Where the generations lie.
    pub folder: PathBuf,
    /// Bytes that may be occupied; `None`: unlimited.
    pub limit: Option<u64>,
    /// What could not be read.
    pub quarantine: Quarantine,
    path: PathBuf,
    vfs: Arc<dyn Vfs>,
    clock: Arc<dyn Clock>,
    write_reserve: u64,
    free_reserve: u64,
    occupied: AtomicU64,
    space: Mutex<Known>,
    failures: AtomicU32,
    out: Mutex<Option<(u64, String)>>,
}

/// What the file system said, when, and what was written since.
#[derive(Debug, Default)]
struct Known {
    free: u64,
    total: u64,
    at: Option<u64>,
    since: u64,
}

impl Dir {
    /// The directory, with its folder of generations made if it is missing and `may_change`.
    pub fn open(
        vfs: Arc<dyn Vfs>,
        clock: Arc<dyn Clock>,
        dir: &TierDir,
        generation_size: u64,
        free_reserve: u64,
        may_change: bool,
    ) -> Result<Dir> {
        let folder = dir.path.join(FOLDER);
        if may_change && vfs.kind(&folder).at("look at", &folder)?.is_none() {
            vfs.create_dir_all(&folder).at("create", &folder)?;
            vfs.sync_dir(&dir.path).at("sync", &dir.path)?;
        }
        let cap = dir.limit.map_or(QUARANTINE_CAP, |l| l / 20);
        let quarantine = Quarantine::open(Arc::clone(&vfs), &dir.path, cap)?;
        Ok(Dir {
            no: dir.no,
            folder,
            limit: dir.limit,
            quarantine,
            path: dir.path.clone(),
            vfs,
            clock,
            write_reserve: dir.limit.map_or(0, |l| generation_size.max(l / 20).min(l / 4)),
            free_reserve,
            occupied: AtomicU64::new(0),
            space: Mutex::default(),
            failures: AtomicU32::new(0),
            out: Mutex::new(None),
        })
    }

    /// Bytes occupied, the quarantine's included.
    pub fn occupied(&self) -> u64 {
        self.occupied.load(Ordering::Acquire) + self.quarantine.bytes()
    }

    /// What something occupies has changed from `old` to `new` bytes.
    pub fn change(&self, old: u64, new: u64) {
        if new >= old {
            self.occupied.fetch_add(new - old, Ordering::AcqRel);
        } else {
            self.occupied.fetch_sub(old - new, Ordering::AcqRel);
        }
    }

    /// Bytes that may still be occupied within the limit.
    pub fn room(&self, purpose: Purpose) -> u64 {
        self.usable(purpose).map_or(u64::MAX, |usable| usable.saturating_sub(self.occupied()))
    }

    /// Refuses `needed` more bytes if the limit or the file system has no room for them now.
    pub fn admit(&self, needed: u64, purpose: Purpose) -> Result<()> {
        if self.room(purpose) < needed {
            return Err(self.no_room(needed));
        }
        self.admit_on_disk(needed)
    }

    /// Charges `bytes` more, or refuses as [`admit`](Self::admit) does. Writer and keeper may both be at it.
    pub fn claim(&self, bytes: u64, purpose: Purpose) -> Result<()> {
        self.admit_on_disk(bytes)?;
        let Some(limit) = self.usable(purpose) else {
            self.occupied.fetch_add(bytes, Ordering::AcqRel);
            return Ok(());
        };
        let usable = limit.saturating_sub(self.quarantine.bytes());
        let claimed = self.occupied.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
            now.checked_add(bytes).filter(|sum| *sum <= usable)
        });
        claimed.map(|_| ()).map_err(|_| self.no_room(bytes))
    }

    fn no_room(&self, needed: u64) -> Error {
        Error::NoSpace { tier: Tier::Hdd, needed, limit: self.limit.unwrap_or(u64::MAX) }
    }

    /// What may be occupied in all.
    fn usable(&self, purpose: Purpose) -> Option<u64> {
        match purpose {
            Purpose::Write => self.limit.map(|l| l.saturating_sub(self.write_reserve)),
            Purpose::Reclaim => self.limit,
        }
    }

    /// Refuses `needed` more bytes if the file system would be left with less than the reserve.
    pub fn admit_on_disk(&self, needed: u64) -> Result<()> {
        let mut known = self.space.lock();
        self.refresh(&mut known, needed)?;
        let free = known.free.saturating_sub(known.since);
        if free < self.free_reserve.saturating_add(needed) {
            let why = format!("{free} bytes are free, of which {} stay so", self.free_reserve);
            return Err(Error::io("append to", &self.path, io::Error::new(io::ErrorKind::StorageFull, why)));
        }
        known.since += needed;
        Ok(())
    }

    fn refresh(&self, known: &mut Known, needed: u64) -> Result<()> {
        let now = self.clock.boot_ms();
        let fresh = known.at.is_some_and(|at| now.saturating_sub(at) < SPACE_MS);
        let left = known.free.saturating_sub(known.since);
        let scarce = left < self.free_reserve.saturating_mul(2).saturating_add(needed);
        if !fresh || scarce || known.since > SPACE_BYTES {
            let space = self.vfs.space(&self.path).at("ask for the free space of", &self.path)?;
            *known = Known { free: space.free, total: space.total, at: Some(now), since: 0 };
        }
        Ok(())
    }

    /// The share that is free, to compare directories by: of the limit, else of the file system.
    pub fn free_share(&self, purpose: Purpose) -> f64 {
        match self.limit {
            Some(limit) => self.room(purpose) as f64 / limit.max(1) as f64,
            None => {
                let mut known = self.space.lock();
                match self.refresh(&mut known, 0) {
                    Ok(()) => known.free.saturating_sub(known.since) as f64 / known.total.max(1) as f64,
                    Err(_) => 0.0,
                }
            }
        }
    }

    /// How the directory is.
    pub fn status(&self) -> DirStatus {
        DirStatus {
            path: self.path.clone(),
            out_of_service: self.out_of_service(),
            quarantine: self.quarantine.bytes(),
            quarantine_removed: self.quarantine.removed(),
        }
    }

    /// Why the directory takes no writes; `None` while it does.
    pub fn out_of_service(&self) -> Option<String> {
        self.out.lock().as_ref().map(|(_, why)| why.clone())
    }

    /// Whether the last write here failed.
    pub fn suspect(&self) -> bool {
        self.failures.load(Ordering::Relaxed) > 0
    }

    /// A write failed for another reason than room. The second in a row puts the directory out of service.
    pub fn failed(&self, why: &Error) {
        if self.failures.fetch_add(1, Ordering::Relaxed) > 0 {
            tracing::warn!(path = %self.path.display(), error = %why, "HDD directory out of service for writing");
            *self.out.lock() = Some((self.clock.boot_ms(), why.to_string()));
        }
    }

    /// A write succeeded.
    pub fn worked(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// The error for writing to a directory that is out of service.
    pub fn refusal(&self) -> Error {
        let why = self.out_of_service().unwrap_or_else(|| "it failed".into());
        Error::OutOfService { path: self.path.clone(), why }
    }

    /// Tries a directory that has been out of service for a while, and puts it back if it works.
    pub fn retry(&self) {
        let due = self.out.lock().as_ref().is_some_and(|(at, _)| self.clock.boot_ms() >= at + RETRY_MS);
        if !due {
            return;
        }
        match self.probe() {
            Ok(()) => {
                tracing::info!(path = %self.path.display(), "HDD directory back in service");
                self.worked();
                *self.out.lock() = None;
            }
            Err(e) => *self.out.lock() = Some((self.clock.boot_ms(), e.to_string())),
        }
    }

    fn probe(&self) -> Result<()> {
        let path = self.folder.join("probe.tmp");
        if self.vfs.kind(&path).at("look at", &path)?.is_some() {
            self.vfs.remove_file(&path).at("remove", &path)?;
        }
        let file = self.vfs.open(&path, OpenMode::CreateNew).at("create", &path)?;
        file.write_all_at(&[0; 4096], 0).at("write", &path)?;
        file.sync().at("sync", &path)?;
        self.vfs.remove_file(&path).at("remove", &path)?;
        self.vfs.sync_dir(&self.folder).at("sync", &self.folder)
    }
}
