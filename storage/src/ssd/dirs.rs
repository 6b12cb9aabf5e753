//! The directories of the tier: room, health, speed, quarantine.
//!
//! Invariants:
//! - `occupied` counts every segment file in the directory from before it is made until its removal is durable;
//!   `lingering` counts those removed that a reader still holds open, whose blocks the disk therefore still has.
//!   New segments are weighed against both, so the disk never holds more than the limit; [`Usage`] tells only of
//!   the first, because dropping further containers would not free the second;
//! - a directory in which making or writing a segment failed for another reason than lack of space takes no new
//!   segment for [`RETRY_MS`]; its segments are read as before.
//!
//! [`Usage`]: crate::container::Usage

use crate::container::{DirStatus, Purpose, TierDir};
use crate::error::{Error, Result};
use crate::quarantine::Quarantine;
use crate::types::Tier;
use crate::vfs::{Space, Vfs};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The folder of segments in each directory.
pub(super) const FOLDER: &str = "segments";
/// How long a directory that failed takes no new segments, in milliseconds.
pub(super) const RETRY_MS: u64 = 30_000;
/// Segments that only reclaim may take, where the tier is large enough to have them.
const RESERVE: u64 = 2;
/// Directories whose free shares differ by less than one part in this many are told apart by their speed.
const SHARES: u64 = 20;

/// One directory.
#[derive(Debug)]
pub(super) struct Dir {
    pub no: u16,
    pub folder: PathBuf,
    pub limit: Option<u64>,
    pub quarantine: Quarantine,
    vfs: Arc<dyn Vfs>,
    occupied: AtomicU64,
    lingering: AtomicU64,
    /// 0: in service; otherwise the boot time in milliseconds, plus one, at which it failed.
    failed_at: AtomicU64,
    /// How it failed, if it did.
    why: Mutex<String>,
    path: PathBuf,
    speed: Mutex<Speed>,
}

/// An exponentially weighted mean of bytes written per millisecond, weight 1/4 for the newest 100 ms or more.
#[derive(Debug, Default)]
struct Speed {
    bytes: u64,
    ms: u64,
    mean: u64,
}

impl Dir {
    pub fn open(vfs: Arc<dyn Vfs>, dir: &TierDir) -> Result<Dir> {
        let capacity = match dir.limit {
            Some(limit) => limit,
            None => vfs.space(&dir.path).map_or(0, |s| s.total),
        };
        Ok(Dir {
            no: dir.no,
            folder: dir.path.join(FOLDER),
            limit: dir.limit,
            quarantine: Quarantine::open(vfs.clone(), &dir.path, capacity / 20)?,
            vfs,
            occupied: AtomicU64::new(0),
            lingering: AtomicU64::new(0),
            failed_at: AtomicU64::new(0),
            why: Mutex::default(),
            path: dir.path.clone(),
            speed: Mutex::default(),
        })
    }

    /// Bytes of segments and quarantine.
    pub fn occupied(&self) -> u64 {
        self.occupied.load(Ordering::Relaxed).saturating_add(self.quarantine.bytes())
    }

    /// Bytes that new segments may take; `u64::MAX` without a limit.
    pub fn free(&self) -> u64 {
        let Some(limit) = self.limit else { return u64::MAX };
        limit.saturating_sub(self.occupied()).saturating_sub(self.lingering.load(Ordering::Relaxed))
    }

    /// Counts a segment of this size until the lease ends.
    pub fn lease(self: &Arc<Self>, size: u64) -> Arc<Lease> {
        self.occupied.fetch_add(size, Ordering::Relaxed);
        Arc::new(Lease { dir: self.clone(), size, removed: AtomicBool::new(false) })
    }

    pub fn in_service(&self) -> bool {
        self.failed_at.load(Ordering::Relaxed) == 0
    }

    /// How the directory is.
    pub fn status(&self) -> DirStatus {
        DirStatus {
            path: self.path.clone(),
            out_of_service: (!self.in_service()).then(|| self.why.lock().clone()),
            quarantine: self.quarantine.bytes(),
            quarantine_removed: self.quarantine.removed(),
        }
    }

    /// Takes the directory out of service for new segments.
    pub fn fail(&self, now_ms: u64, why: &Error) {
        tracing::warn!(dir = %self.folder.display(), error = %why, "out of service for new segments");
        *self.why.lock() = why.to_string();
        self.failed_at.store(now_ms.saturating_add(1), Ordering::Relaxed);
    }

    /// Puts it back into service when it has waited long enough.
    pub fn retry(&self, now_ms: u64) {
        let failed = self.failed_at.load(Ordering::Relaxed);
        if failed != 0 && now_ms.saturating_add(1).saturating_sub(failed) >= RETRY_MS {
            tracing::info!(dir = %self.folder.display(), "back in service");
            self.failed_at.store(0, Ordering::Relaxed);
        }
    }

    /// Notes how long it took to write and sync so many bytes.
    pub fn note_speed(&self, bytes: u64, ms: u64) {
        let mut s = self.speed.lock();
        s.bytes = s.bytes.saturating_add(bytes);
        s.ms = s.ms.saturating_add(ms);
        if s.ms >= 100 {
            let now = s.bytes / s.ms;
            s.mean = if s.mean == 0 { now } else { s.mean - s.mean / 4 + now / 4 };
            (s.bytes, s.ms) = (0, 0);
        }
    }

    /// Free share in [`SHARES`]ths when `taken` bytes more were in use, then speed: larger is better.
    fn merit(&self, taken: u64) -> (u64, u64) {
        let space = match self.limit {
            Some(total) => Space { free: self.free().saturating_sub(taken), total },
            None => self.vfs.space(&self.folder).unwrap_or(Space { free: 0, total: 1 }),
        };
        let share = u128::from(space.free) * u128::from(SHARES) / u128::from(space.total.max(1));
        (u64::try_from(share).unwrap_or(SHARES), self.speed.lock().mean)
    }
}

/// The count of one segment's bytes in its directory.
#[derive(Debug)]
pub(super) struct Lease {
    dir: Arc<Dir>,
    size: u64,
    removed: AtomicBool,
}

impl Lease {
    pub fn dir(&self) -> &Arc<Dir> {
        &self.dir
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file is gone for good; its blocks are, once the last holder of the lease is.
    pub fn removed(&self) {
        if !self.removed.swap(true, Ordering::AcqRel) {
            self.dir.lingering.fetch_add(self.size, Ordering::Relaxed);
            self.dir.occupied.fetch_sub(self.size, Ordering::Relaxed);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let count = if *self.removed.get_mut() { &self.dir.lingering } else { &self.dir.occupied };
        count.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// All directories of the tier.
#[derive(Debug)]
pub(super) struct Dirs {
    all: Vec<Arc<Dir>>,
    segment: u64,
}

impl Dirs {
    /// How each directory is.
    pub fn status(&self) -> Vec<DirStatus> {
        self.all.iter().map(|d| d.status()).collect()
    }

    /// `segment`: bytes of an ordinary segment.
    pub fn new(all: Vec<Arc<Dir>>, segment: u64) -> Dirs {
        Dirs { all, segment }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Dir>> {
        self.all.iter()
    }

    /// The tier's limit; `None` if any directory has none.
    pub fn limit(&self) -> Option<u64> {
        self.all.iter().try_fold(0u64, |sum, d| Some(sum.saturating_add(d.limit?)))
    }

    /// Whether another directory than this one takes new segments.
    pub fn has_another(&self, than: &Dir) -> bool {
        self.all.iter().any(|d| d.no != than.no && d.in_service())
    }

    /// Segments that only reclaim may take.
    pub fn reserve(&self) -> u64 {
        match self.limit().map(|limit| limit / self.segment.max(1)) {
            None | Some(0..=2) => 0,
            Some(3..=7) => 1,
            Some(_) => RESERVE,
        }
    }

    /// Largest segment that an empty tier could take from a caller's write.
    pub fn largest(&self) -> u64 {
        let reserve = self.reserve().saturating_mul(self.segment);
        match (self.all.as_slice(), self.limit()) {
            (_, None) => u64::MAX,
            // With several directories the reserve can lie in the others.
            ([only], _) => only.limit.unwrap_or(u64::MAX).saturating_sub(reserve),
            (all, Some(total)) => {
                let most = all.iter().filter_map(|d| d.limit).max().unwrap_or(0);
                most.min(total.saturating_sub(reserve))
            }
        }
    }

    /// Whether new segments of these sizes fit within the limits, and leave the reserve to reclaim.
    ///
    /// # Errors
    /// `NoSpace`; `OutOfService` if no directory takes new segments.
    pub fn room_for(&self, sizes: &[u64], purpose: Purpose) -> Result<()> {
        let mut left: Vec<(&Dir, u64, u64)> =
            self.all.iter().filter(|d| d.in_service()).map(|d| (&**d, d.free(), 0)).collect();
        if left.is_empty() {
            return Err(self.out_of_service());
        }
        for size in sizes {
            let best = left
                .iter_mut()
                .filter(|(_, free, _)| free >= size)
                .max_by_key(|(dir, free, taken)| (dir.merit(*taken), *free))
                .ok_or_else(|| self.no_space(sizes))?;
            if best.1 != u64::MAX {
                best.1 -= size;
                best.2 += size;
            }
        }
        let segments: u64 =
            left.iter().fold(0, |sum: u64, (_, free, _)| sum.saturating_add(free / self.segment.max(1)));
        if purpose == Purpose::Write && !sizes.is_empty() && segments < self.reserve() {
            return Err(self.no_space(sizes));
        }
        Ok(())
    }

    /// The directories in service with room for a segment of this size, best first: most free share, then speed.
    pub fn candidates(&self, size: u64) -> Vec<Arc<Dir>> {
        let mut fit: Vec<_> = self
            .all
            .iter()
            .filter(|d| d.in_service() && d.free() >= size)
            .map(|d| (d.merit(0), d.clone()))
            .collect();
        fit.sort_by(|(a, da), (b, db)| b.cmp(a).then(da.no.cmp(&db.no)));
        fit.into_iter().map(|(_, d)| d).collect()
    }

    pub fn no_space(&self, sizes: &[u64]) -> Error {
        let needed = sizes.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
        Error::NoSpace { tier: Tier::Ssd, needed, limit: self.limit().unwrap_or(u64::MAX) }
    }

    pub fn out_of_service(&self) -> Error {
        Error::OutOfService {
            path: self.all.first().map(|d| d.folder.clone()).unwrap_or_default(),
            why: "writing failed; tried again within 30 s".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::RealFs;

    #[test]
    fn among_equally_free_directories_the_faster_is_taken() {
        let home = tempfile::tempdir().unwrap();
        let dir = |no| {
            let d = TierDir { no, path: home.path().join(no.to_string()), limit: Some(1 << 20) };
            Arc::new(Dir::open(Arc::new(RealFs), &d).unwrap())
        };
        let dirs = Dirs::new(vec![dir(0), dir(1), dir(2)], 1 << 14);
        let order = || dirs.candidates(1).iter().map(|d| d.no).collect::<Vec<_>>();
        assert_eq!(order(), [0, 1, 2]);
        dirs.all[1].note_speed(1000, 100);
        dirs.all[2].note_speed(3000, 100);
        assert_eq!(order(), [2, 1, 0]);
        for _ in 0..20 {
            dirs.all[1].note_speed(200, 4);
        }
        assert_eq!(order(), [2, 1, 0], "80 ms are too short to tell");
        dirs.all[1].note_speed(200_000, 20);
        assert_eq!(order(), [1, 2, 0]);
        let held = dirs.all[1].lease(1 << 18);
        assert_eq!(order(), [2, 0, 1], "room comes before speed");
        dirs.all[2].fail(5, &Error::Busy("test"));
        assert_eq!(order(), [0, 1]);
        drop(held);
        assert_eq!(order(), [1, 0]);
    }
}
