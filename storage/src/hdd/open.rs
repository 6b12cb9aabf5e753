//! Opening: which generations are there, which are missing, which cannot be identified.
//!
//! Only the headers of value files are read here; indexes are the keeper's work, in the background. Names ending
//! in `.tmp` (being made when the process ended) and `.dead` (being deleted) are removed. A generation goes to
//! the quarantine only if none of its value files has a readable header; while one has, or the disk refuses to
//! say, its directory's name tells its id and its blocks and records prove that they belong to it.
//!
//! A crash in here leaves some leftovers removed and others not, or a generation in the quarantine without its report;
//! the next opening goes on.

use super::core::Core;
use super::generation::Generation;
use super::reader::Handle;
use super::seal;
use super::value::{self, Header};
use super::writer::{generation_id, generation_name};
use crate::container::{Containers, Known, OpenReport, Purpose, SECOND, Unknown};
use crate::error::{Error, IoContext, Result};
use crate::tierdir::Dir;
use crate::types::Tier;
use crate::vfs::{EntryKind, OpenMode, Vfs};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What opening needs.
pub(super) struct Opening<'a> {
    pub core: &'a Arc<Core>,
    pub containers: &'a Containers,
    pub unknown: Unknown,
    /// Known and not yet found.
    pub known: HashMap<u64, Known>,
    /// Entered, though not all of it could be read.
    pub unread: HashSet<u64>,
    pub report: OpenReport,
    pub generations: HashMap<u64, Arc<Generation>>,
}

/// What the headers of a generation's value files say.
enum Identity {
    /// At least one is whole; when the generation was made.
    Whole(u64),
    /// None could be reached.
    Unreachable,
    /// Whole, of another store.
    Foreign,
    /// None is whole, and why.
    Lost(String),
}

struct Files {
    identity: Identity,
    /// The directory could not be listed.
    unlisted: bool,
    /// Why it, or one of the files, could not be reached.
    unreachable: Option<String>,
    /// There is something in it that no generation has.
    strange: bool,
    values: Vec<Value>,
}

const ANOTHERS: &str = "it belongs to another generation or store";

/// A value file's number, length, and bytes on disk.
type Value = (u16, u64, u64);

fn value_bytes(values: &[Value]) -> u64 {
    values.iter().map(|(_, _, allocated)| *allocated).fold(0, u64::saturating_add)
}

/// A generation as a folder lists it.
struct Found {
    dir: Arc<Dir>,
    path: PathBuf,
    id: u64,
}

impl Opening<'_> {
    /// Attaches the known generations that the directories hold, and sees to the others.
    pub fn directories(&mut self, dirs: &[Arc<Dir>]) -> Result<()> {
        let mut found = Vec::new();
        for dir in dirs {
            self.list(dir, &mut found)?;
        }
        // One that lies in two directories, because somebody copied it, is taken where the catalog says; if it is
        // lost there, where it is whole.
        found.sort_by_key(|f| self.known.get(&f.id).is_none_or(|k| k.dir != f.dir.no));
        let mut unknown = Vec::new();
        for f in found {
            match self.known.get(&f.id).copied() {
                Some(known) => self.attach(&f, known)?,
                None => unknown.push(f),
            }
        }
        // Numbers that the catalog knows are all taken before one is given to a generation that it does not.
        for f in unknown {
            self.stranger(&f)?;
        }
        for dir in dirs.iter().filter(|_| self.unknown != Unknown::Ignore) {
            self.core.vfs.sync_dir(&dir.folder).at("sync", &dir.folder)?;
        }
        Ok(())
    }

    /// Lists the generations of a directory and removes leftovers.
    fn list(&mut self, dir: &Arc<Dir>, found: &mut Vec<Found>) -> Result<()> {
        let vfs = Arc::clone(&self.core.vfs);
        if self.unknown == Unknown::Ignore && vfs.kind(&dir.folder).at("look at", &dir.folder)?.is_none() {
            return Ok(());
        }
        for entry in vfs.read_dir(&dir.folder).at("list", &dir.folder)? {
            let path = dir.folder.join(&entry.name);
            match generation_id(&entry.name).filter(|_| entry.kind == EntryKind::Dir) {
                Some(id) => found.push(Found { dir: Arc::clone(dir), path, id }),
                None => self.leftover(&entry.name, &path, entry.kind),
            }
        }
        Ok(())
    }

    fn leftover(&mut self, name: &str, path: &Path, kind: EntryKind) {
        let ours = name.ends_with(".tmp") || name.ends_with(".dead");
        if !ours || self.unknown == Unknown::Ignore {
            return;
        }
        let gone = match kind {
            EntryKind::Dir => self.core.vfs.remove_dir_all(path),
            _ => self.core.vfs.remove_file(path),
        };
        self.deleted(path, gone);
    }

    /// What cannot be deleted is no reason not to open: it is tried again the next time.
    fn deleted(&mut self, path: &Path, gone: std::io::Result<()>) {
        match gone {
            Ok(()) => self.report.deleted += 1,
            Err(e) => tracing::warn!(path = %path.display(), error = %e, "cannot delete a leftover"),
        }
    }

    /// Decides about a generation that the catalog does not know.
    fn stranger(&mut self, f: &Found) -> Result<()> {
        let fate = f.dir.unknown(f.id);
        if fate == Unknown::Ignore {
            return Ok(());
        }
        let files = self.files(&f.path, f.id)?;
        match (fate, files) {
            (Unknown::Leave, files) => self.leave(f, &files, f.dir.why_left(f.id)),
            // One whose removal a crash cut off: there is nothing in it, of ours or anybody's.
            (_, files @ Files { identity: Identity::Lost(_), strange: false, .. })
                if files.values.is_empty() =>
            {
                self.delete(f, &files);
            }
            (_, Files { identity: Identity::Lost(why), values, .. }) => self.quarantine(f, &values, why),
            (_, Files { identity: Identity::Foreign, values, .. }) => self.set_aside(f, &values, ANOTHERS),
            // Known in part, it would be dropped once that part is dead.
            (Unknown::Attach, files @ Files { unreachable: Some(_), .. }) => {
                let why = format!("it cannot be read: {}", files.unreachable.as_deref().unwrap_or_default());
                self.leave(f, &files, why);
            }
            // Whose it is cannot be told, so it is nobody's to delete.
            (_, files @ Files { identity: Identity::Unreachable, .. }) => {
                let why = files.unreachable.as_deref().unwrap_or_default();
                tracing::warn!(path = %f.path.display(), error = why, "an unknown generation cannot be read, and stays");
                f.dir.change(0, self.bytes(&f.path, &files.values));
            }
            (_, files) if self.unread.contains(&f.id) => self.leave(f, &files, SECOND),
            // A copy of one that is attached: two places would name one record.
            (_, files) if self.generations.contains_key(&f.id) => {
                self.set_aside(f, &files.values, "a second directory with this generation's id");
            }
            (Unknown::Attach, files) => {
                let known = Known {
                    no: self.containers.reserve(Purpose::Reclaim)?.no,
                    id: f.id,
                    tier: Tier::Hdd,
                    dir: f.dir.no,
                    created_ms: 0,
                    records: 0,
                    earliest_expiry: 0,
                };
                self.enter(f, known, files);
            }
            (_, files) => self.delete(f, &files),
        }
        Ok(())
    }

    /// Deletes a generation; what cannot be deleted is counted.
    fn delete(&mut self, f: &Found, files: &Files) {
        let vfs = &self.core.vfs;
        let bytes = self.bytes(&f.path, &files.values);
        let dead = f.dir.folder.join(format!("{}.dead", generation_name(f.id)));
        let gone = vfs.rename(&f.path, &dead).and_then(|()| vfs.remove_dir_all(&dead));
        if gone.is_err() {
            f.dir.change(0, bytes);
        }
        self.deleted(&f.path, gone);
    }

    /// Leaves a generation that the catalog does not know where it is, and counts it.
    fn leave(&mut self, f: &Found, files: &Files, why: impl Into<String>) {
        f.dir.change(0, self.bytes(&f.path, &files.values));
        self.report.leave(f.path.clone(), why);
    }

    /// Moves a generation to the quarantine. What cannot be moved stays where it is, and counted.
    fn quarantine(&mut self, f: &Found, values: &[Value], why: String) {
        tracing::warn!(path = %f.path.display(), %why, "HDD generation quarantined");
        self.was_moved(f, self.bytes(&f.path, values), &why, f.dir.quarantine.container(&f.path, &why));
    }

    /// Moves a generation of another store, or a second copy, to the quarantine, if it is not deleted there at once.
    fn set_aside(&mut self, f: &Found, values: &[Value], why: &str) {
        let bytes = self.bytes(&f.path, values);
        tracing::warn!(path = %f.path.display(), %why, bytes, "an HDD generation is not this tier's to serve");
        self.was_moved(f, bytes, why, f.dir.quarantine.set_aside(&f.path, bytes, why));
    }

    fn was_moved(&mut self, f: &Found, bytes: u64, why: &str, moved: Result<()>) {
        let stays = match moved {
            Ok(()) => String::new(),
            Err(e) => {
                f.dir.change(0, bytes);
                format!(" (left in its place: {e})")
            }
        };
        self.report.quarantined.push((f.path.clone(), format!("{why}{stays}")));
    }

    /// Bytes on disk of a generation's value files and indexes.
    fn bytes(&self, path: &Path, values: &[Value]) -> u64 {
        self.index_bytes(path).saturating_add(value_bytes(values))
    }

    /// Attaches a generation that the catalog knows, unless nothing says that it is that one.
    fn attach(&mut self, f: &Found, known: Known) -> Result<()> {
        match self.files(&f.path, f.id)? {
            Files { identity: Identity::Lost(why), values, .. } if self.unknown != Unknown::Ignore => {
                self.quarantine(f, &values, why);
            }
            Files { identity: Identity::Foreign, values, .. } if self.unknown != Unknown::Ignore => {
                self.set_aside(f, &values, ANOTHERS);
            }
            files => {
                // Who only looks says so, and can still say whose items are lost with it.
                if let Identity::Lost(why) = &files.identity {
                    let why = format!("{why} (left in its place)");
                    self.report.quarantined.push((f.path.clone(), why));
                    self.report.given_up.push(f.id);
                }
                self.known.remove(&f.id);
                self.enter(f, known, files);
            }
        }
        Ok(())
    }

    /// Enters a generation in the tables.
    fn enter(&mut self, f: &Found, mut known: Known, files: Files) {
        let (dir, path) = (&f.dir, &f.path);
        if let Identity::Whole(made) = files.identity
            && known.created_ms == 0
        {
            known.created_ms = made;
        }
        known.dir = dir.no;
        if self.unknown != Unknown::Ignore
            && let Err(e) = self.quarantine_abandoned(dir, path)
        {
            tracing::warn!(path = %path.display(), error = %e, "cannot quarantine an HDD index");
        }
        let index_bytes = self.index_bytes(path);
        dir.change(0, index_bytes.saturating_add(value_bytes(&files.values)));
        let generation = Arc::new(Generation::new(
            Arc::clone(self.core),
            Arc::clone(dir),
            known.no,
            known.id,
            known.created_ms,
            path.clone(),
            index_bytes,
        ));
        if files.unreachable.is_some() {
            self.unread.insert(known.id);
        }
        if files.unlisted {
            generation.set_unlisted();
        }
        for (no, len, allocated) in files.values {
            generation.add_value(no, len, allocated);
        }
        self.containers.attach(known, Arc::new(Handle(Arc::clone(&generation))));
        self.generations.insert(known.id, generation);
    }

    /// Reads the headers of the value files. `NewerFormat` if one says so.
    fn files(&self, path: &Path, id: u64) -> Result<Files> {
        let vfs = &*self.core.vfs;
        let (mut values, mut strange) = (Vec::new(), false);
        let (mut whole, mut unreachable, mut lost, mut foreign) = (None, None, None, false);
        let entries = match vfs.read_dir(path) {
            Ok(entries) => entries,
            Err(e) => {
                tracing::warn!(path = %path.display(), error = %e, "cannot list a generation");
                let (identity, unreachable) = (Identity::Unreachable, Some(e.to_string()));
                return Ok(Files { identity, unlisted: true, unreachable, strange: false, values });
            }
        };
        for entry in entries {
            let file_path = path.join(&entry.name);
            let Some(no) = value::number(&entry.name).filter(|_| entry.kind == EntryKind::File) else {
                strange |= !belongs(&entry.name);
                continue;
            };
            let file = match vfs.open(&file_path, OpenMode::Read) {
                Ok(file) => file,
                Err(e) => {
                    tracing::warn!(path = %file_path.display(), error = %e, "cannot open a value file");
                    unreachable = Some(format!("{}: {e}", entry.name));
                    // It is kept in the list so that what it holds counts as unreachable, not as lost.
                    values.push((no, entry.len, entry.len));
                    continue;
                }
            };
            match Header::read(&*file, &file_path) {
                Ok(h) if h.container == id && h.store == self.core.store => whole = Some(h.created_ms),
                Ok(h) if h.store != self.core.store => foreign = true,
                Ok(_) => lost = Some(format!("{} belongs to another generation", entry.name)),
                Err(e @ Error::NewerFormat { .. }) => return Err(e),
                Err(e) if e.is_corrupt() => lost = Some(e.to_string()),
                Err(e) => unreachable = Some(e.to_string()),
            }
            values.push((no, entry.len, file.allocated().unwrap_or(0).max(entry.len)));
        }
        let identity = match (whole, &unreachable) {
            (Some(made), _) => Identity::Whole(made),
            (None, Some(_)) => Identity::Unreachable,
            (None, None) if foreign => Identity::Foreign,
            (None, None) => Identity::Lost(lost.unwrap_or_else(|| "it has no value files".into())),
        };
        Ok(Files { identity, unlisted: false, unreachable, strange, values })
    }

    fn index_bytes(&self, path: &Path) -> u64 {
        let vfs: &dyn Vfs = &*self.core.vfs;
        let Ok(entries) = vfs.read_dir(path) else { return 0 };
        let indexes = entries.iter().filter(|e| seal::index_number(&e.name).is_some());
        indexes.map(|e| seal::occupied(vfs, path, &e.name)).sum()
    }

    /// Databases that were given up, which sled could not be made to let go of while the process lived.
    fn quarantine_abandoned(&self, dir: &Dir, path: &Path) -> Result<()> {
        let vfs = &*self.core.vfs;
        for entry in vfs.read_dir(path).at("list", path)? {
            let stale = entry.name.ends_with(".tmp") && entry.kind == EntryKind::File;
            let index = entry.name.strip_suffix(".abandoned").filter(|n| seal::index_number(n).is_some());
            let at = path.join(&entry.name);
            if let Some(index) = index {
                let folder = path.join(index);
                if vfs.kind(&folder).at("look at", &folder)?.is_some() {
                    dir.quarantine.index(&folder, "sled failed in it while the store was used")?;
                }
            }
            if index.is_some() || stale {
                vfs.remove_file(&at).at("remove", &at)?;
            }
        }
        Ok(())
    }
}

/// Whether a generation without value files may have something of this name in it.
fn belongs(name: &str) -> bool {
    let index = name.strip_suffix(".abandoned").unwrap_or(name);
    name == seal::NAME || name.ends_with(".tmp") || seal::index_number(index).is_some()
}
