//! The identity of a store and of its directories, their locks, and the open counter.
//!
//! Every directory of a store has the same small record in two copies (`store.a`, `store.b`), and the catalog
//! has it in two more (`a/manifest`, `b/manifest`): whose it is, the secret of the store's hash, the open
//! counter, where the catalog is, and the roster of all directories. [`Home::open`] reads and judges them and
//! takes the locks; [`Home::begin_writing`] raises the counter; [`Home::finish`] records that the catalog is
//! whole and that every directory has the counter.
//!
//! Invariants:
//! - the counter of an open is on stable storage in both manifests, and then in both copies of every directory
//!   present, before anything else is written under it; it is above every counter that was ever used;
//! - so no directory is ever ahead of the catalog: if one is, the catalog went back in time and counts as lost;
//! - a directory's number is never given to another, and the roster knows a directory before its first use;
//! - one process has the store: each directory and the catalog are locked while a [`Home`] lives;
//! - an opening that is refused leaves nothing behind; one that succeeds has written nothing but empty
//!   directories and lock files;
//! - damage of one copy is made good by the next writing; that of both copies of a directory by the roster.
//!
//! Crash. `open`: empty directories and lock files, which mean nothing. `begin_writing` after its n-th write:
//! the manifests are at the new counter or the one before, the newer whole one counts; directories that were not
//! reached have an older epoch, but not older than the roster's, which says what was *confirmed*; new ones
//! that were not reached have no identity, but stand in the roster with epoch 0 and are written now. `finish`:
//! the roster still says the epochs before, which is less than the truth and thus harmless; a new store is
//! still called new, a rebuilding still unfinished.

mod anchor;
mod examine;
mod hold;
mod judge;
mod record;
#[cfg(test)]
mod tests;

pub use anchor::{Anchor, Anchored};
pub use examine::{Whose, whose};

use crate::error::{Error, IoContext, Result};
use crate::types::{Tier, Version};
use crate::vfs::{EntryKind, Vfs};
use hold::{Holdings, Resolved, resolve};
use judge::{Seen, SeenCatalog, judge, other_store};
use record::{
    CatalogAt, CatalogState, Record, identity_paths, manifest_paths, read_pair, refused, write_pair,
};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The folder of the catalog in a directory of the store, unless another place is asked for.
pub const CATALOG_FOLDER: &str = "catalog";

/// A directory that the store is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedDir {
    /// A tier on disk.
    pub tier: Tier,
    /// Where. Made, with those above it, if it does not exist. May be a link to a directory.
    pub path: PathBuf,
}

/// How to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenFlags {
    /// Go on without directories that are missing, or older than the catalog knows. They stay in the roster.
    pub without_missing: bool,
    /// Forget directories that are missing, or older than the catalog knows; if one is nevertheless asked for,
    /// it joins as a new one and what is in it is garbage. `without_missing`, which loses nothing, goes first.
    pub discard_missing: bool,
    /// If the manifest is lost, take the store's identity from its directories, and have the catalog rebuilt.
    pub rebuild_catalog: bool,
    /// Write nothing. Locks are taken all the same.
    pub read_only: bool,
}

/// What is to be opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HomeRequest {
    /// The directories, the highest tier's first. At least one.
    pub dirs: Vec<WantedDir>,
    /// Where the catalog is to be; `None`: where it is, or for a new store in the first directory.
    pub catalog: Option<PathBuf>,
    /// How.
    pub flags: OpenFlags,
}

/// A directory of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirInfo {
    /// Its number, which no other directory of the store ever has.
    pub no: u16,
    /// The tier it serves.
    pub tier: Tier,
    /// Where it is, without links; where it was last, if it is not present.
    pub path: PathBuf,
    /// It may be used. Otherwise it is missing or stale, and the store was opened without it.
    pub present: bool,
    /// It holds nothing yet.
    pub new: bool,
}

/// An open store: who it is, where its directories are. Holds the locks until it is dropped.
pub struct Home {
    vfs: Arc<dyn Vfs>,
    record: Record,
    open_counter: u64,
    catalog_dir: PathBuf,
    dirs: Vec<DirInfo>,
    new_store: bool,
    read_only: bool,
    begun: bool,
    /// Of the manifest and of each directory by its number: the copy to write first.
    first: First,
    /// The counter that is in the identities by now.
    written: Arc<AtomicU64>,
    holdings: Holdings,
}

#[derive(Debug, Default)]
struct First {
    manifest: usize,
    dirs: Vec<(u16, usize)>,
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Home")
            .field("store", &record::hex(&self.record.store))
            .field("open_counter", &self.open_counter)
            .field("catalog_dir", &self.catalog_dir)
            .field("dirs", &self.dirs)
            .field("discarded", &self.record.discarded)
            .field("new_store", &self.new_store)
            .field("catalog_must_rebuild", &self.catalog_must_rebuild())
            .finish_non_exhaustive()
    }
}

impl Home {
    /// Finds out what the directories are, locks them and judges whether they can be used together. Writes
    /// nothing but missing directories (mode 0700) and lock files, and takes these back if it fails.
    ///
    /// # Errors
    /// `Locked` if another process, or another `Home` of this one, has a directory; `BadDirectory` for a file
    /// in the way, a directory given twice or inside another, one of another tier, a catalog that is
    /// elsewhere; `OtherStore`; `NewerFormat`; `MissingDirectory`; `CatalogLost`; `Io`, which for a lack of
    /// permission says what to do.
    pub fn open(vfs: Arc<dyn Vfs>, request: &HomeRequest) -> Result<Home> {
        let flags = &request.flags;
        let places = survey(&*vfs, request)?;
        let mut holdings = Holdings::new(vfs.clone(), flags.read_only);
        let mut seen = Vec::new();
        for (wanted, at) in request.dirs.iter().zip(places) {
            let paths = identity_paths(&at.path);
            // Read-only, what is no directory of a store has no lock file, and gets none.
            let lock = at.exists && (!flags.read_only || read_pair(&*vfs, &paths, true)?.exists);
            let marked = lock && holdings.lock(&at.path)?;
            let identity = read_pair(&*vfs, &paths, true)?;
            seen.push(Seen { tier: wanted.tier, at, identity, marked });
        }
        let mut catalog = find_catalog(&*vfs, request, &seen)?;
        let catalog_there = is_there(&*vfs, &catalog.path)?;
        if catalog_there && (catalog.manifest.exists || !flags.read_only) {
            holdings.lock(&catalog.path)?;
            // What was read before the lock may have been a writer's.
            catalog.manifest = read_pair(&*vfs, &manifest_paths(&catalog.path), false)?;
        }
        let verdict = judge(&seen, &catalog, flags, &mut || random_id(&*vfs))?;
        let open_counter = verdict.record.counter.saturating_add(1);
        check_counter(&catalog.path, open_counter)?;
        for note in &verdict.notes {
            tracing::warn!(store = %record::hex(&verdict.record.store), "{note}");
        }
        if !flags.read_only {
            for dir in verdict.dirs.iter().filter(|d| d.present) {
                if !is_there(&*vfs, &dir.path)? {
                    holdings.make_dir(&dir.path)?;
                    holdings.lock(&dir.path)?;
                }
                if dir.new {
                    // Its lock file tells it from an empty mount point until its identity is written.
                    vfs.sync_dir(&dir.path).at("sync", &dir.path)?;
                }
            }
            for half in ["a", "b"] {
                holdings.make_dir(&catalog.path.join(half))?;
            }
            if !catalog_there {
                holdings.lock(&catalog.path)?;
            }
        }
        let mut record = verdict.record;
        record.catalog = locate(&catalog.path, &verdict.dirs);
        let first = First {
            manifest: catalog.manifest.first,
            dirs: seen.iter().zip(&verdict.dirs).map(|(s, d)| (d.no, s.identity.first)).collect(),
        };
        let present = |dir: &Path| record.catalog.path == dir || is_present(&verdict.dirs, dir);
        holdings.keep(present);
        Ok(Home {
            vfs,
            open_counter,
            catalog_dir: catalog.path,
            dirs: verdict.dirs,
            new_store: record.state == CatalogState::New,
            read_only: flags.read_only,
            begun: false,
            first,
            record,
            written: Arc::default(),
            holdings,
        })
    }

    /// Raises the open counter to [`open_counter`](Self::open_counter): in both manifests, then in both copies
    /// of every directory present, all synced. Also makes good damaged copies, and enters new directories and
    /// new paths. To be called before an open's first write of anything; a second call does nothing.
    ///
    /// # Errors
    /// What could not be written. Nothing is lost then; the counter counts as not raised, and another call
    /// tries again.
    pub fn begin_writing(&mut self) -> Result<()> {
        if self.read_only {
            return Err(Error::BadDirectory {
                path: self.catalog_dir.clone(),
                why: "the store was opened read-only: open it for writing".to_owned(),
            });
        }
        if self.begun {
            return Ok(());
        }
        self.record.counter = self.open_counter;
        self.write_manifest()?;
        for dir in self.dirs.iter().filter(|d| d.present) {
            let identity = Record { this: Some(dir.no), ..self.record.clone() };
            let first = self.first.dirs.iter().find(|(no, _)| *no == dir.no).map_or(0, |(_, first)| *first);
            write_pair(&*self.vfs, &identity_paths(&dir.path), first, &identity)?;
        }
        for member in &mut self.record.dirs {
            if self.dirs.iter().any(|d| d.present && d.no == member.no) {
                member.epoch = self.open_counter;
            }
        }
        self.begun = true;
        self.written.store(self.open_counter, Ordering::Release);
        Ok(())
    }

    /// Records, in both manifests, that the catalog is whole on stable storage (so a new store is no longer
    /// new, a rebuilding has ended), and that every directory present has the counter. To be called once in an
    /// open, after the catalog's first checkpoint and before the first write is acknowledged; begins writing
    /// if that was not done.
    ///
    /// # Errors
    /// What could not be written; the next opening finds things as they were before.
    pub fn finish(&mut self) -> Result<()> {
        self.begin_writing()?;
        self.record.state = CatalogState::Ready;
        self.write_manifest()
    }

    /// The catalog's own files turned out to be lost, and the caller may rebuild them: remembered until
    /// [`finish`](Self::finish), over a crash too once writing has begun.
    ///
    /// # Errors
    /// The manifest could not be written (only if writing has begun).
    pub fn require_rebuild(&mut self) -> Result<()> {
        self.record.state = CatalogState::Rebuilding;
        if self.begun { self.write_manifest() } else { Ok(()) }
    }

    /// A record was found that an open with this counter wrote: the counter of this open will be above it.
    /// For rebuilding, when the counter was taken from directories that may not have seen the last opens. If
    /// writing has begun, it must begin again.
    ///
    /// # Errors
    /// `BadDirectory` if no counter is left above it.
    pub fn counter_was_used(&mut self, counter: u64) -> Result<()> {
        if counter >= self.open_counter {
            let above = counter.saturating_add(1);
            check_counter(&self.catalog_dir, above)?;
            self.open_counter = above;
            self.begun = false;
        }
        Ok(())
    }

    /// The open counter under which the catalog was rebuilt, if it did not see all that may be there: what older
    /// opens wrote and it does not know may be items, and is not to be deleted.
    pub fn rebuilt_in_part(&self) -> Option<u64> {
        (self.record.unseen > 0).then_some(self.record.unseen)
    }

    /// Remembers, with [`finish`](Self::finish), whether the rebuilt catalog saw all that may be there.
    pub fn set_rebuilt_in_part(&mut self, counter: Option<u64>) {
        self.record.unseen = counter.unwrap_or(0);
    }

    fn write_manifest(&mut self) -> Result<()> {
        self.record.edition = self.record.edition.saturating_add(1);
        write_pair(&*self.vfs, &manifest_paths(&self.catalog_dir), self.first.manifest, &self.record)
    }

    /// The store's id, which every container's header carries.
    pub fn store(&self) -> [u8; 16] {
        self.record.store
    }

    /// The secret of the store's hash.
    pub fn secret(&self) -> [u8; 16] {
        self.record.secret
    }

    /// The counter of this open. Nothing may be written under it before [`begin_writing`](Self::begin_writing)
    /// has returned.
    pub fn open_counter(&self) -> u64 {
        self.open_counter
    }

    /// The catalog's directory, with the folders `a` and `b` for its two copies.
    pub fn catalog_dir(&self) -> &Path {
        &self.catalog_dir
    }

    /// All directories of the store: those asked for in their order, then those missing.
    pub fn dirs(&self) -> &[DirInfo] {
        &self.dirs
    }

    /// What tells whether the directory with this number is still where it was; `None` of one that is not locked, which
    /// is one that is only read and has no lock file.
    pub fn anchor(&self, no: u16) -> Option<Arc<Anchor>> {
        let dir = self.dirs.iter().find(|d| d.no == no && d.present)?;
        self.anchor_at(&dir.path, Some(no))
    }

    /// The file system for the catalog, which changes nothing where its directory is no longer the one that was opened.
    pub fn catalog_vfs(&self) -> Arc<dyn Vfs> {
        Anchored::over(self.vfs.clone(), self.anchor_at(&self.catalog_dir, None))
    }

    fn anchor_at(&self, path: &Path, no: Option<u16>) -> Option<Arc<Anchor>> {
        let lock = self.holdings.lock_of(path)?;
        let whose = (self.record.store, no);
        Some(Arc::new(Anchor::new(self.vfs.clone(), path, lock, whose, self.written.clone())))
    }

    /// Of a store that is read only: that nobody has opened it for writing since. Where there is no lock file, none can be
    /// taken to read, and what was read may be half of one state and half of another.
    ///
    /// # Errors
    /// `Locked`: somebody has it, or had.
    pub fn nobody_came(&self) -> Result<()> {
        self.holdings.came().map_or(Ok(()), |path| Err(Error::Locked { path: path.to_path_buf() }))
    }

    /// Numbers of all directories that were ever discarded. What the catalog has in them is gone.
    pub fn discarded(&self) -> &[u16] {
        &self.record.discarded
    }

    /// No opening of this store was ever finished: there is no catalog, and nothing was acknowledged.
    #[cfg(test)]
    pub(crate) fn is_new_store(&self) -> bool {
        self.new_store
    }

    /// The catalog is to be rebuilt from the containers: it is lost, and the flag was given now or before a
    /// crash.
    pub fn catalog_must_rebuild(&self) -> bool {
        self.record.state == CatalogState::Rebuilding
    }
}

fn is_there(vfs: &dyn Vfs, path: &Path) -> Result<bool> {
    match vfs.kind(path).map_err(|e| refused("look at", path, e))? {
        None => Ok(false),
        Some(EntryKind::File) => Err(Error::BadDirectory {
            path: path.to_path_buf(),
            why: "a file is where a directory belongs: remove it".to_owned(),
        }),
        Some(_) => Ok(true),
    }
}

/// That no link stands in the place of the catalog, between it and the directory that it lies in, or of one of its two
/// folders: what is given may be a link, and is resolved; what is in a store leads nowhere else.
fn no_links(vfs: &dyn Vfs, catalog: &Path, seen: &[Seen]) -> Result<()> {
    let above = seen.iter().map(|s| &s.at.path).find(|dir| catalog.starts_with(dir));
    let inside = catalog.ancestors().take_while(|path| above.is_some_and(|dir| *path != dir));
    let mut paths: Vec<PathBuf> = vec![catalog.join("a"), catalog.join("b"), catalog.to_path_buf()];
    paths.extend(inside.map(Path::to_path_buf));
    for path in paths {
        if vfs.kind(&path).map_err(|e| refused("look at", &path, e))? == Some(EntryKind::Other) {
            let why =
                "it is a symbolic link, and none is followed inside a store: put the directory itself here";
            return Err(Error::BadDirectory { path, why: why.to_owned() });
        }
    }
    Ok(())
}

fn is_present(dirs: &[DirInfo], path: &Path) -> bool {
    dirs.iter().any(|d| d.present && d.path == path)
}

/// Sixteen bytes of the system's randomness.
///
/// # Errors
/// `Dependency` if the system gives none.
pub fn random_id(vfs: &dyn Vfs) -> Result<[u8; 16]> {
    let what = "the system's random number generator";
    vfs.random().map_err(|e| Error::Dependency { what, why: e.to_string() })
}

/// For [`doors`](crate::testing::doors).
#[cfg(any(test, feature = "testing"))]
pub(crate) fn read_and_write(bytes: &[u8]) -> Option<Vec<u8>> {
    Record::decode(bytes).ok()?.ok().map(|record| record.encode())
}

fn check_counter(path: &Path, counter: u64) -> Result<()> {
    if counter <= Version::MAX_OPEN {
        return Ok(());
    }
    let why =
        format!("the store was opened {} times, and there are no more: start a new one", Version::MAX_OPEN);
    Err(Error::BadDirectory { path: path.to_path_buf(), why })
}

/// Resolves the paths asked for, and refuses those that overlap.
fn survey(vfs: &dyn Vfs, request: &HomeRequest) -> Result<Vec<Resolved>> {
    let mut places: Vec<Resolved> = Vec::new();
    for wanted in &request.dirs {
        let bad = |why: String| Error::BadDirectory { path: wanted.path.clone(), why };
        if !Tier::DISK.contains(&wanted.tier) {
            return Err(bad(format!("the {} tier has no directories", wanted.tier)));
        }
        let place = resolve(vfs, &wanted.path)?;
        for other in &places {
            if other.path == place.path {
                return Err(bad("it is given twice: give each tier directories of its own".to_owned()));
            }
            if other.path.starts_with(&place.path) || place.path.starts_with(&other.path) {
                let why = "and one of them lies inside the other: give directories side by side";
                return Err(bad(format!("it is given together with {}, {why}", other.path.display())));
            }
        }
        places.push(place);
    }
    if places.is_empty() {
        let why = "no directory is given: name at least one, or use memory alone".to_owned();
        return Err(Error::BadDirectory { path: PathBuf::new(), why });
    }
    Ok(places)
}

/// Where the catalog is: where the directories say, or, if nothing is there any more, where the caller says.
/// For a new store where the caller says, or in the first directory.
fn find_catalog(vfs: &dyn Vfs, request: &HomeRequest, seen: &[Seen]) -> Result<SeenCatalog> {
    let at = |path: PathBuf| -> Result<SeenCatalog> {
        no_links(vfs, &path, seen)?;
        let manifest = read_pair(vfs, &manifest_paths(&path), false)?;
        Ok(SeenCatalog { path, manifest })
    };
    let wanted = request.catalog.as_deref().map(|p| wanted_catalog(vfs, p, seen)).transpose()?;
    let store = seen.iter().find_map(|s| s.identity.best.as_ref()).map(|r| r.store);
    let newest = seen
        .iter()
        .filter_map(|s| s.identity.best.as_ref())
        .filter(|r| Some(r.store) == store)
        .max_by_key(|r| r.edition);
    let recorded = match newest {
        Some(r) => Some(at(recorded_place(r, seen))?),
        // No directory says: a store whose first opening did not end, or with damaged identities.
        None => {
            let mut found = None;
            for s in seen {
                let place = at(s.at.path.join(CATALOG_FOLDER))?;
                if place.manifest.exists {
                    found = Some(place);
                    break;
                }
            }
            found
        }
    };
    match (recorded, wanted) {
        (Some(r), None) => {
            // Rebuilding, and the place is gone with its disk: the default place.
            let gone = request.flags.rebuild_catalog && vfs.kind(&r.path).ok().flatten().is_none();
            if gone { at(default_catalog(seen)) } else { Ok(r) }
        }
        (Some(r), Some(w)) if r.path == w => Ok(r),
        (Some(r), Some(w)) if r.manifest.exists => {
            let why = format!(
                "the catalog is in {}: to move it, close the store, move that directory here by hand, and open \
                 with the new place",
                r.path.display()
            );
            Err(Error::BadDirectory { path: w, why })
        }
        (Some(r), Some(w)) => {
            let w = at(w)?;
            match &w.manifest.best {
                Some(m) if store.is_some_and(|s| s != m.store) => {
                    Err(other_store(&w.path, m.store, store.unwrap_or_default()))
                }
                None if !request.flags.rebuild_catalog => Err(Error::CatalogLost {
                    path: r.path,
                    why: format!("there is no manifest in it, and none in {}", w.path.display()),
                }),
                _ => Ok(w),
            }
        }
        (None, Some(w)) => at(w),
        (None, None) => at(default_catalog(seen)),
    }
}

/// The place asked for; it may lie in a directory of the store, but must not be one or hold one.
fn wanted_catalog(vfs: &dyn Vfs, path: &Path, seen: &[Seen]) -> Result<PathBuf> {
    let place = resolve(vfs, path)?.path;
    match seen.iter().find(|s| s.at.path.starts_with(&place)) {
        None => Ok(place),
        Some(s) => Err(Error::BadDirectory {
            why: format!(
                "the catalog cannot be there, it is or holds {} of the {} tier: name a directory of its own",
                s.at.path.display(),
                s.tier
            ),
            path: place,
        }),
    }
}

/// The place that a record names: mounts may have moved since.
fn recorded_place(record: &Record, seen: &[Seen]) -> PathBuf {
    let moved = record.catalog.inside.as_ref().and_then(|(no, way)| {
        let id = record.member(*no)?.id;
        let is_it = |s: &&Seen| {
            s.identity
                .best
                .as_ref()
                .is_some_and(|r| r.this == Some(*no) && r.own().is_some_and(|m| m.id == id))
        };
        Some(seen.iter().find(is_it)?.at.path.join(way))
    });
    moved.unwrap_or_else(|| record.catalog.path.clone())
}

/// In the first directory; of a store that is there, in the first that is part of it.
fn default_catalog(seen: &[Seen]) -> PathBuf {
    let known = seen.iter().find(|s| s.identity.best.is_some());
    known.or(seen.first()).map(|s| s.at.path.join(CATALOG_FOLDER)).unwrap_or_default()
}

/// How the record names the place.
fn locate(path: &Path, dirs: &[DirInfo]) -> CatalogAt {
    let inside = dirs
        .iter()
        .filter(|d| d.present)
        .find_map(|d| Some((d.no, path.strip_prefix(&d.path).ok()?.to_path_buf())));
    CatalogAt { inside, path: path.to_path_buf() }
}
