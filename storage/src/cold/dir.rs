//! One directory of the tier: its paths, how full it is, and whether it can be written to.

use super::README;
use crate::container::{DirStatus, Purpose, TierDir};
use crate::error::{Error, IoContext, Result};
use crate::quarantine::Quarantine;
use crate::types::Tier;
use crate::vfs::{OpenMode, Vfs, replace_small};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The folder with the packs.
const FOLDER: &str = "packs";
/// A directory that failed is tried again after this many milliseconds.
const RETRY_MS: u64 = 30_000;
/// Share of the tier that the quarantine may take.
const QUARANTINE_SHARE: u64 = 20;

/// A directory of the tier.
#[derive(Debug)]
pub(super) struct PackDir {
    pub(super) vfs: Arc<dyn Vfs>,
    /// The store's number for it.
    pub(super) no: u16,
    /// The directory.
    pub(super) path: PathBuf,
    /// Where the packs are.
    pub(super) folder: PathBuf,
    limit: Option<u64>,
    /// What [`Purpose::Write`] leaves free below the limit.
    reserve: u64,
    occupied: AtomicU64,
    pub(super) quarantine: Quarantine,
    /// Why and since when it takes no writes.
    failed: Mutex<Option<(u64, String)>>,
}

/// The name of a pack's file.
pub(super) fn pack_name(id: u64) -> String {
    format!("pack-{id:016x}.zip")
}

/// The id in the name of a pack's file.
pub(super) fn pack_id(name: &str) -> Option<u64> {
    let hex = name.strip_prefix("pack-")?.strip_suffix(".zip")?;
    let id = u64::from_str_radix(hex, 16).ok()?;
    (pack_name(id) == name).then_some(id)
}

impl PackDir {
    /// A directory that is there; `make` makes its folder and its README.
    pub(super) fn open(vfs: Arc<dyn Vfs>, dir: &TierDir, pack_size: u64, make: bool) -> Result<PackDir> {
        let folder = dir.path.join(FOLDER);
        if make {
            vfs.create_dir_all(&folder).at("create", &folder)?;
            vfs.sync_dir(&dir.path).at("sync", &dir.path)?;
            explain(&*vfs, &dir.path);
        }
        let whole = match dir.limit {
            Some(limit) => limit,
            None => vfs.space(&dir.path).at("look at the space of", &dir.path)?.total,
        };
        let quarantine = Quarantine::open(vfs.clone(), &dir.path, whole / QUARANTINE_SHARE)?;
        Ok(PackDir {
            vfs,
            no: dir.no,
            path: dir.path.clone(),
            folder,
            limit: dir.limit,
            // A limit of a few packs must not be all reserve.
            reserve: dir.limit.map_or(0, |limit| pack_size.min(limit / 8)),
            occupied: AtomicU64::new(0),
            quarantine,
            failed: Mutex::default(),
        })
    }

    /// Where the pack with this id lies.
    pub(super) fn pack_path(&self, id: u64) -> PathBuf {
        self.folder.join(pack_name(id))
    }

    /// Bytes of packs, temporary files included, and of the quarantine.
    pub(super) fn occupied(&self) -> u64 {
        self.occupied.load(Ordering::Relaxed).saturating_add(self.quarantine.bytes())
    }

    /// The limit in bytes.
    pub(super) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Counts bytes that are there already.
    pub(super) fn found(&self, bytes: u64) {
        self.occupied.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes about to be written, if the limit allows them.
    pub(super) fn charge(&self, bytes: u64, purpose: Purpose) -> Result<()> {
        let allowed = self.allowed(purpose).saturating_sub(self.quarantine.bytes());
        self.occupied
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                now.checked_add(bytes).filter(|then| *then <= allowed)
            })
            .map(drop)
            .map_err(|_| self.no_space(bytes))
    }

    /// Takes back bytes that are gone.
    pub(super) fn discharge(&self, bytes: u64) {
        let _ = self
            .occupied
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now.saturating_sub(bytes)));
    }

    fn allowed(&self, purpose: Purpose) -> u64 {
        match (self.limit, purpose) {
            (None, _) => u64::MAX,
            (Some(limit), Purpose::Reclaim) => limit,
            (Some(limit), Purpose::Write) => limit - self.reserve,
        }
    }

    /// Bytes that may be written: what limit and file system leave.
    pub(super) fn room(&self, purpose: Purpose) -> u64 {
        let free = self.vfs.space(&self.path).map_or(0, |s| s.free);
        free.min(self.allowed(purpose).saturating_sub(self.occupied()))
    }

    /// That there is no room for so many bytes.
    pub(super) fn no_space(&self, needed: u64) -> Error {
        Error::NoSpace { tier: Tier::Cold, needed, limit: self.limit.unwrap_or(u64::MAX) }
    }

    /// Takes the directory out of service for writing.
    pub(super) fn fail(&self, now_ms: u64, why: &Error) {
        tracing::warn!(path = %self.path.display(), error = %why, "cold: directory out of service for writing");
        *self.failed.lock() = Some((now_ms, why.to_string()));
    }

    /// How the directory is.
    pub(super) fn status(&self) -> DirStatus {
        DirStatus {
            path: self.path.clone(),
            out_of_service: self.failed(),
            quarantine: self.quarantine.bytes(),
            quarantine_removed: self.quarantine.removed(),
        }
    }

    /// Why it takes no writes; `None` if it does.
    pub(super) fn failed(&self) -> Option<String> {
        self.failed.lock().as_ref().map(|(_, why)| why.clone())
    }

    /// After half a minute out of service: tries whether the directory can be written to again.
    pub(super) fn retry(&self, now_ms: u64) {
        let due =
            self.failed.lock().as_ref().is_some_and(|(since, _)| now_ms.saturating_sub(*since) >= RETRY_MS);
        if !due {
            return;
        }
        match self.probe() {
            Ok(()) => {
                tracing::info!(path = %self.path.display(), "cold: directory back in service");
                *self.failed.lock() = None;
            }
            Err(e) => self.fail(now_ms, &e),
        }
    }

    fn probe(&self) -> Result<()> {
        let path = self.folder.join("probe.tmp");
        if self.vfs.kind(&path).at("look at", &path)?.is_some() {
            self.vfs.remove_file(&path).at("remove", &path)?;
        }
        let file = self.vfs.open(&path, OpenMode::CreateNew).at("create", &path)?;
        let written = file
            .write_all_at(&[0; 4096], 0)
            .and_then(|()| file.sync())
            .and_then(|()| self.vfs.sync_dir(&self.folder))
            .at("write", &path);
        self.vfs.remove_file(&path).at("remove", &path)?;
        written
    }
}

/// Puts a README into the directory unless there is one: what a person made of it is theirs. The archive works
/// without, so failing is no reason not to open.
fn explain(vfs: &dyn Vfs, dir: &Path) {
    let path = dir.join("README.txt");
    let made = match vfs.kind(&path) {
        Ok(None) => replace_small(vfs, &path, README.as_bytes()),
        Ok(Some(_)) => Ok(()),
        Err(e) => Err(e),
    };
    if let Err(e) = made {
        tracing::warn!(path = %path.display(), error = %e, "cold: cannot write the README");
    }
}
