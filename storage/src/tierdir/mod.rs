//! The directories of a disk tier: what each may hold and holds, whether it works, how fast it is, and which of
//! them the next container goes to. The tiers differ in [`Rules`] alone.
//!
//! Invariants:
//! - bytes are counted before disk blocks are reserved or written for them, and until their removal is durable;
//!   with the quarantine they never exceed the limit of the directory. `lingering` counts what was removed while a
//!   reader still held it, whose blocks the disk therefore still has: new bytes are weighed against it too, but
//!   [`Dirs::usage`] does not tell of it, because dropping further containers would not free it;
//! - callers' writes leave the write reserve to reclaim;
//! - where a free-space reserve is kept, nothing is claimed that would leave the file system less;
//! - a directory out of service takes no new container until, [`RETRY_MS`] later or when it is asked for, a probe
//!   succeeded; what it holds is read as before. It goes out of service when a write fails, and when a read failed and
//!   a probe fails too: one bad sector is no reason, a disk that is gone is one. Lack of room is never a failure of the directory.
//!
//! What a crash leaves: an empty folder, or [`PROBE`] in it, which the next opening or the next probe removes.

mod lease;
#[cfg(test)]
mod tests;

pub(crate) use lease::Lease;

use crate::clock::Clock;
use crate::container::{AWAY, DirStatus, NOT_SEEN, Purpose, RawRecord, TierContext, TierDir, Unknown, Usage};
use crate::error::{Error, IoContext, Result};
use crate::home::{Anchor, Anchored};
use crate::quarantine::Quarantine;
use crate::types::Tier;
use crate::vfs::{OpenMode, Vfs};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// How long a directory that failed takes no new containers, in milliseconds.
pub(crate) const RETRY_MS: u64 = 30_000;
/// The file that is written to see whether a directory works again.
pub(crate) const PROBE: &str = "probe.tmp";
/// The quarantine's share of the tier: one part in this many.
const QUARANTINE_SHARE: u64 = 20;
/// The quarantine's cap where neither a limit nor the file system says how large the tier is.
const QUARANTINE_CAP: u64 = 1 << 30;
/// Directories whose free shares differ by less than one part in this many are told apart by their speed.
const SHARES: u64 = 20;
/// How long, in milliseconds, and for how many bytes the file system's word about its free space is taken.
const SPACE_MS: u64 = 1000;
const SPACE_BYTES: u64 = 64 << 20;

/// What a tier asks of its directories.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Whose directories they are.
    pub tier: Tier,
    /// The folder of the containers in each directory.
    pub folder: &'static str,
    /// Bytes that stay free on the file system. `None`: it is not asked before bytes are claimed, because the
    /// tier reserves its containers whole and hears at once that there is no room.
    pub free_reserve: Option<u64>,
}

/// One directory.
#[derive(Debug)]
pub(crate) struct Dir {
    /// The store's number for it.
    pub no: u16,
    /// The directory.
    pub path: PathBuf,
    /// Where the containers lie.
    pub folder: PathBuf,
    /// Bytes that may be occupied; `None`: unlimited.
    pub limit: Option<u64>,
    /// What could not be read.
    pub quarantine: Quarantine,
    /// The file system that it is on.
    pub vfs: Arc<dyn Vfs>,
    anchor: Option<Arc<Anchor>>,
    clock: Arc<dyn Clock>,
    rules: Rules,
    /// What [`Purpose::Write`] leaves free below the limit.
    write_reserve: u64,
    unknown: Unknown,
    older: Option<(u64, Unknown)>,
    /// Ids of the tier's containers in directories that are not here.
    away: HashSet<u64>,
    occupied: AtomicU64,
    lingering: AtomicU64,
    space: Mutex<Known>,
    /// Failed writes in a row.
    failures: AtomicU32,
    /// Since when (boot time in milliseconds) and why it takes no new containers.
    out: Mutex<Option<(u64, String)>>,
    /// A read failed, and nobody has looked since whether the directory works.
    suspect: AtomicBool,
    speed: Mutex<Speed>,
}

/// What the file system said, when, and what was claimed since.
#[derive(Debug, Default)]
struct Known {
    free: u64,
    total: u64,
    at: Option<u64>,
    since: u64,
}

/// An exponentially weighted mean of bytes written per millisecond, weight 1/4 for the newest 100 ms or more.
#[derive(Debug, Default)]
struct Speed {
    bytes: u64,
    ms: u64,
    mean: u64,
}

impl Dir {
    /// The directory, with its folder made if it is missing and the context allows changes.
    fn open(ctx: &TierContext, dir: &TierDir, rules: Rules, write_reserve: u64) -> Result<Dir> {
        let folder = dir.path.join(rules.folder);
        let vfs = &Anchored::over(ctx.vfs.clone(), dir.anchor.clone());
        if ctx.unknown != Unknown::Ignore && vfs.kind(&folder).at("look at", &folder)?.is_none() {
            vfs.create_dir_all(&folder).at("create", &folder)?;
            vfs.sync_dir(&dir.path).at("sync", &dir.path)?;
        }
        let whole = dir.limit.or_else(|| vfs.space(&dir.path).ok().map(|s| s.total));
        let cap = whole.map_or(QUARANTINE_CAP, |n| n / QUARANTINE_SHARE);
        Ok(Dir {
            no: dir.no,
            path: dir.path.clone(),
            folder,
            limit: dir.limit,
            quarantine: Quarantine::open(vfs.clone(), ctx.clock.clone(), &dir.path, cap)?,
            vfs: vfs.clone(),
            anchor: dir.anchor.clone(),
            clock: ctx.clock.clone(),
            rules,
            write_reserve,
            unknown: ctx.unknown,
            older: dir.older,
            away: ctx.known_away(),
            occupied: AtomicU64::new(0),
            lingering: AtomicU64::new(0),
            space: Mutex::default(),
            failures: AtomicU32::new(0),
            out: Mutex::default(),
            suspect: AtomicBool::new(false),
            speed: Mutex::default(),
        })
    }

    /// What to do with the container of this id, which the catalog does not know here.
    pub fn unknown(&self, id: u64) -> Unknown {
        match self.older {
            _ if self.unknown != Unknown::Attach && self.away.contains(&id) => Unknown::Leave,
            Some((before, instead)) if id < before && self.unknown != Unknown::Attach => instead,
            _ => self.unknown,
        }
    }

    /// Why the container of this id is left alone.
    pub fn why_left(&self, id: u64) -> &'static str {
        if self.away.contains(&id) { AWAY } else { NOT_SEEN }
    }

    // Room.

    /// Bytes occupied: containers, what they have reserved, temporary files, the quarantine.
    pub fn occupied(&self) -> u64 {
        self.occupied.load(Ordering::Acquire).saturating_add(self.quarantine.bytes())
    }

    /// What something occupies has changed from `old` to `new` bytes.
    pub fn change(&self, old: u64, new: u64) {
        let moved = |now: u64| Some(now.saturating_add(new).saturating_sub(old));
        let _ = self.occupied.fetch_update(Ordering::AcqRel, Ordering::Acquire, moved);
    }

    /// Counts a file of this size until the lease ends, whether the limit allows it or not.
    pub fn lease(self: &Arc<Self>, size: u64) -> Arc<Lease> {
        self.change(0, size);
        let mut known = self.space.lock();
        known.since = known.since.saturating_add(size);
        Arc::new(Lease::new(self.clone(), size))
    }

    /// Bytes that may still be occupied within the limit; `u64::MAX` without one.
    pub fn room(&self, purpose: Purpose) -> u64 {
        let Some(usable) = self.usable(purpose) else { return u64::MAX };
        usable.saturating_sub(self.occupied.load(Ordering::Acquire))
    }

    /// What containers may occupy in all.
    fn usable(&self, purpose: Purpose) -> Option<u64> {
        let reserve = match purpose {
            Purpose::Write | Purpose::Hot => self.write_reserve,
            Purpose::Reclaim => 0,
        };
        let taken = self.quarantine.bytes().saturating_add(self.lingering.load(Ordering::Relaxed));
        self.limit.map(|limit| limit.saturating_sub(reserve).saturating_sub(taken))
    }

    /// Refuses `needed` more bytes if the limit or the file system has no room for them now.
    pub fn admit(&self, needed: u64, purpose: Purpose) -> Result<()> {
        if self.room(purpose) < needed {
            return Err(self.no_space(needed));
        }
        self.admit_on_disk(needed)
    }

    /// Counts `bytes` more, or refuses as [`admit`](Self::admit) does. Several threads may be at it.
    pub fn claim(&self, bytes: u64, purpose: Purpose) -> Result<()> {
        self.admit_on_disk(bytes)?;
        let usable = self.usable(purpose).unwrap_or(u64::MAX);
        let claimed = self.occupied.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
            now.checked_add(bytes).filter(|sum| *sum <= usable)
        });
        claimed.map(drop).map_err(|_| self.no_space(bytes))
    }

    fn no_space(&self, needed: u64) -> Error {
        Error::NoSpace { tier: self.rules.tier, needed, limit: self.limit.unwrap_or(u64::MAX) }
    }

    /// Refuses `needed` more bytes if the file system would be left with less than its reserve.
    pub fn admit_on_disk(&self, needed: u64) -> Result<()> {
        let Some(reserve) = self.rules.free_reserve else { return Ok(()) };
        let mut known = self.space.lock();
        self.refresh(&mut known, needed)?;
        let free = known.free.saturating_sub(known.since);
        if free < reserve.saturating_add(needed) {
            let why = format!("{free} bytes are free, of which {reserve} stay so");
            return Err(Error::io("append to", &self.path, io::Error::new(io::ErrorKind::StorageFull, why)));
        }
        known.since = known.since.saturating_add(needed);
        Ok(())
    }

    fn refresh(&self, known: &mut Known, needed: u64) -> Result<()> {
        let now = self.clock.boot_ms();
        let fresh = known.at.is_some_and(|at| now.saturating_sub(at) < SPACE_MS);
        let left = known.free.saturating_sub(known.since);
        let reserve = self.rules.free_reserve.unwrap_or(0);
        let scarce = left < reserve.saturating_mul(2).saturating_add(needed);
        if !fresh || scarce || known.since > SPACE_BYTES {
            let space = self.vfs.space(&self.path).at("ask for the free space of", &self.path)?;
            *known = Known { free: space.free, total: space.total, at: Some(now), since: 0 };
        }
        Ok(())
    }

    // Merit.

    /// The time to give to [`wrote`](Self::wrote).
    pub fn now(&self) -> u64 {
        self.clock.awake_ms()
    }

    /// Bytes were written and synced since `began`: the directory works, and this is how fast it is.
    pub fn wrote(&self, bytes: u64, began: u64) {
        self.failures.store(0, Ordering::Relaxed);
        self.note_speed(bytes, self.now().saturating_sub(began));
    }

    fn note_speed(&self, bytes: u64, ms: u64) {
        let mut s = self.speed.lock();
        s.bytes = s.bytes.saturating_add(bytes);
        s.ms = s.ms.saturating_add(ms);
        if s.ms >= 100 {
            let now = s.bytes / s.ms;
            s.mean = if s.mean == 0 { now } else { s.mean - s.mean / 4 + now / 4 };
            (s.bytes, s.ms) = (0, 0);
        }
    }

    /// How good a place for a new container, when `taken` bytes more were in use: free share of the limit (of the
    /// file system, where there is none) in [`SHARES`]ths, then speed, then the share exactly. Larger is better.
    pub fn merit(&self, taken: u64, purpose: Purpose) -> (u64, u64, u64) {
        let (free, total) = match self.limit {
            Some(limit) => (self.room(purpose), limit),
            None => {
                let mut known = self.space.lock();
                match self.refresh(&mut known, 0) {
                    Ok(()) => (known.free.saturating_sub(known.since), known.total),
                    Err(_) => (0, 1),
                }
            }
        };
        let free = u128::from(free.saturating_sub(taken));
        let share =
            |parts: u64| u64::try_from(free * u128::from(parts) / u128::from(total.max(1))).unwrap_or(parts);
        (share(SHARES), self.speed.lock().mean, share(1 << 32))
    }

    // Health.

    /// How the directory is.
    pub fn status(&self) -> DirStatus {
        DirStatus {
            path: self.path.clone(),
            out_of_service: self.out_of_service(),
            quarantine: self.quarantine.bytes(),
            quarantine_removed: self.quarantine.removed(),
        }
    }

    /// Why the directory takes no new containers; `None` while it does.
    pub fn out_of_service(&self) -> Option<String> {
        self.out.lock().as_ref().map(|(_, why)| why.clone())
    }

    /// Whether the directory takes new containers.
    pub fn in_service(&self) -> bool {
        self.out.lock().is_none()
    }

    fn put_out(&self, why: &Error) {
        warn_seldom!(tier = %self.rules.tier, dir = %self.path.display(), error = %why, "out of service for writing");
        *self.out.lock() = Some((self.clock.boot_ms(), why.to_string()));
    }

    /// Tries a directory that has been out of service for [`RETRY_MS`], or at once if it is said so, and puts it back
    /// if it works: says whether it came back. One in which a read failed is tried too, and goes out of service if it does
    /// not work.
    fn retry(&self, now_is_due: bool) -> bool {
        let now = self.clock.boot_ms();
        let since = self.out.lock().as_ref().map(|(at, _)| *at);
        let suspect = self.suspect.swap(false, Ordering::Relaxed);
        match since {
            Some(at) if now_is_due || now.saturating_sub(at) >= RETRY_MS => match self.probe() {
                Ok(()) => {
                    tracing::info!(tier = %self.rules.tier, dir = %self.path.display(), "back in service");
                    self.failures.store(0, Ordering::Relaxed);
                    *self.out.lock() = None;
                    return true;
                }
                Err(e) => self.put_out(&e),
            },
            // That a disk is full is no failure of it, and a probe needs room.
            None if suspect => {
                if let Some(e) = self.probe().err().filter(|e| !e.is_no_space()) {
                    self.put_out(&e);
                }
            }
            _ => {}
        }
        false
    }

    /// Whether it is the directory that was opened, and can be written to. First the one, then the other: another's is
    /// not touched.
    fn probe(&self) -> Result<()> {
        if let Some(anchor) = &self.anchor {
            anchor.check()?;
        }
        let path = self.folder.join(PROBE);
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

    /// Keeps a copy of a damaged record where there is room for it. It is for people to look at: that it cannot be
    /// kept is logged and loses nothing that is served.
    pub fn keep_damaged(&self, raw: &RawRecord, why: &str, key: Option<&[u8]>) {
        // Beyond the end of a file that was cut there is nothing to look at.
        if raw.bytes.is_empty() {
            return;
        }
        let bytes = raw.bytes.len() as u64;
        let kept = if self.room(Purpose::Reclaim) < bytes {
            Err(self.no_space(bytes))
        } else {
            self.quarantine.record(&raw.path, raw.offset, &raw.bytes, why, key)
        };
        if let Err(e) = kept {
            warn_seldom!(path = %raw.path.display(), offset = raw.offset, error = %e, "a damaged record was not quarantined");
        }
    }
}

/// All directories of a tier, at least one.
#[derive(Debug)]
pub(crate) struct Dirs {
    all: Vec<Arc<Dir>>,
    tier: Tier,
}

impl Deref for Dirs {
    type Target = [Arc<Dir>];

    fn deref(&self) -> &[Arc<Dir>] {
        &self.all
    }
}

impl Dirs {
    /// Opens the directories of the context. `write_reserve`: bytes below a directory's limit that callers' writes
    /// leave to reclaim.
    ///
    /// # Errors
    /// `Io` if a folder cannot be made or a quarantine not be listed.
    pub fn open(ctx: &TierContext, rules: Rules, write_reserve: impl Fn(u64) -> u64) -> Result<Dirs> {
        let open = |d: &TierDir| Dir::open(ctx, d, rules, d.limit.map_or(0, &write_reserve)).map(Arc::new);
        Ok(Dirs { all: ctx.dirs.iter().map(open).collect::<Result<_>>()?, tier: rules.tier })
    }

    /// The directory with this number.
    pub fn get(&self, no: u16) -> Option<&Arc<Dir>> {
        self.all.iter().find(|d| d.no == no)
    }

    /// The tier's limit in bytes; `None` if any directory has none.
    pub fn limit(&self) -> Option<u64> {
        self.all.iter().try_fold(0u64, |sum, d| Some(sum.saturating_add(d.limit?)))
    }

    /// What the tier occupies, may occupy and has written.
    pub fn usage(&self, written: u64) -> Usage {
        let occupied = self.all.iter().map(|d| d.occupied()).fold(0, u64::saturating_add);
        Usage { occupied, limit: self.limit(), written }
    }

    /// How each directory is.
    pub fn status(&self) -> Vec<DirStatus> {
        self.all.iter().map(|d| d.status()).collect()
    }

    /// The best directory in service that has room for `needed` bytes more, but for those in `not`: see
    /// [`Dir::merit`].
    ///
    /// # Errors
    /// `OutOfService` if none is in service; `NoSpace`, or `Io` with `StorageFull`, if none has room; `Io` if a
    /// file system does not tell its free space.
    pub fn choose(&self, needed: u64, purpose: Purpose, not: &[u16]) -> Result<Arc<Dir>> {
        let mut best: Vec<_> =
            self.all.iter().filter(|d| d.in_service()).map(|d| (d.merit(0, purpose), d)).collect();
        if best.is_empty() {
            return Err(self.out_of_service());
        }
        best.retain(|(_, d)| !not.contains(&d.no));
        best.sort_by(|(a, da), (b, db)| b.cmp(a).then(da.no.cmp(&db.no)));
        let mut refused = None;
        for (_, dir) in best {
            match dir.admit(needed, purpose) {
                Ok(()) => return Ok(dir.clone()),
                Err(e) => refused = refused.or(Some(e)),
            }
        }
        Err(match refused {
            None | Some(Error::NoSpace { .. }) => self.no_space(needed),
            Some(e) => e,
        })
    }

    /// Making or writing a container failed. Unless it was for lack of room, the directory goes out of service: at
    /// once if there is another to go to; else with the second failure in a row, because the first may have been
    /// the file's.
    pub fn failed(&self, dir: &Dir, why: &Error) {
        if !matches!(why, Error::Io { .. }) || why.is_no_space() {
            return;
        }
        let before = dir.failures.fetch_add(1, Ordering::Relaxed);
        if before > 0 || self.all.iter().any(|d| d.no != dir.no && d.in_service()) {
            dir.put_out(why);
        }
    }

    /// Tries again what has been out of service long enough, and what a read failed in. Gives the numbers of the
    /// directories that came back.
    pub fn retry(&self) -> Vec<u16> {
        self.all.iter().filter(|d| d.retry(false)).map(|d| d.no).collect()
    }

    /// Tries everything that is out of service now.
    pub fn put_back(&self) {
        self.all.iter().for_each(|d| {
            d.retry(true);
        });
    }

    /// A read failed in the directory with this number.
    pub fn suspect(&self, no: u16) {
        if let Some(dir) = self.get(no) {
            dir.suspect.store(true, Ordering::Relaxed);
        }
    }

    /// That there is no room for so many bytes.
    pub fn no_space(&self, needed: u64) -> Error {
        Error::NoSpace { tier: self.tier, needed, limit: self.limit().unwrap_or(u64::MAX) }
    }

    /// Whether any directory takes new containers: `OutOfService` if none does.
    pub fn in_service(&self) -> Result<()> {
        if self.all.iter().any(|d| d.in_service()) { Ok(()) } else { Err(self.out_of_service()) }
    }

    /// That no directory takes new containers, with what the first of them suffers from.
    pub fn out_of_service(&self) -> Error {
        let why =
            |d: &Arc<Dir>| d.out_of_service().map(|why| Error::OutOfService { path: d.path.clone(), why });
        self.all.iter().find_map(why).unwrap_or(Error::Busy("a directory has just come back into service"))
    }

    /// That the tier takes no more writes.
    pub fn closed(&self) -> Error {
        let path = self.all.first().map(|d| d.folder.clone()).unwrap_or_default();
        Error::OutOfService { path, why: "the tier is closed".to_owned() }
    }
}
