//! Opening: which generations are there, which are missing, which cannot be identified.
//!
//! Only the headers of value files are read here; indexes are the keeper's work, in the background. Names ending
//! in `.tmp` (being made when the process ended) and `.dead` (being deleted) are removed. A generation goes to
//! the quarantine only if none of its value files has a readable header; while one has, or the disk refuses to
//! say, its directory's name tells its id and its blocks and records prove that they belong to it.

use super::core::Core;
use super::generation::Generation;
use super::reader::Handle;
use super::seal;
use super::value::{self, Header};
use super::writer::{generation_id, generation_name};
use crate::container::{Containers, Known, NOT_SEEN, OpenReport, Unknown};
use crate::error::{Error, IoContext, Result};
use crate::tierdir::Dir;
use crate::types::Tier;
use crate::vfs::{EntryKind, OpenMode, Vfs};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// What opening needs.
pub(super) struct Opening<'a> {
    pub core: &'a Arc<Core>,
    pub containers: &'a Containers,
    pub unknown: Unknown,
    pub report: OpenReport,
    pub generations: HashMap<u64, Arc<Generation>>,
}

/// What the headers of a generation's value files say.
enum Identity {
    /// At least one is whole; when the generation was made.
    Whole(u64),
    /// None could be reached.
    Unreachable,
    /// None is whole, and why.
    Lost(String),
}

struct Files {
    identity: Identity,
    /// The directory could not be listed.
    unlisted: bool,
    /// Why it, or one of the files, could not be reached.
    unreachable: Option<String>,
    /// Number, length, bytes on disk.
    values: Vec<(u16, u64, u64)>,
}

impl Opening<'_> {
    /// Attaches the known generations that a directory holds, and sees to the others.
    pub fn directory(&mut self, dir: &Arc<Dir>, known: &mut HashMap<u64, Known>) -> Result<()> {
        let vfs = Arc::clone(&self.core.vfs);
        if self.unknown == Unknown::Ignore && vfs.kind(&dir.folder).at("look at", &dir.folder)?.is_none() {
            return Ok(());
        }
        for entry in vfs.read_dir(&dir.folder).at("list", &dir.folder)? {
            let path = dir.folder.join(&entry.name);
            let Some(id) = generation_id(&entry.name).filter(|_| entry.kind == EntryKind::Dir) else {
                self.leftover(&entry.name, &path, entry.kind);
                continue;
            };
            match (known.remove(&id), dir.unknown(id)) {
                (Some(k), _) => self.attach(dir, k, &path)?,
                (None, Unknown::Ignore) => {}
                (None, Unknown::Leave) => self.leave(dir, &path, id, NOT_SEEN)?,
                (None, Unknown::Delete) => {
                    let dead = dir.folder.join(format!("{}.dead", generation_name(id)));
                    let gone = vfs.rename(&path, &dead).and_then(|()| vfs.remove_dir_all(&dead));
                    self.deleted(&path, gone);
                }
                (None, Unknown::Attach) => {
                    let reserved = self.containers.reserve()?;
                    let k = Known {
                        no: reserved.no,
                        id,
                        tier: Tier::Hdd,
                        dir: dir.no,
                        created_ms: 0,
                        records: 0,
                        earliest_expiry: 0,
                    };
                    self.adopt(dir, k, &path)?;
                    if !self.generations.contains_key(&id) {
                        self.containers.abandon(reserved);
                    }
                }
            }
        }
        if self.unknown != Unknown::Ignore {
            vfs.sync_dir(&dir.folder).at("sync", &dir.folder)?;
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

    /// Leaves a generation that the catalog does not know where it is, and counts it.
    fn leave(&mut self, dir: &Arc<Dir>, path: &Path, id: u64, why: impl Into<String>) -> Result<()> {
        let files = self.files(path, id)?;
        let value_bytes: u64 = files.values.iter().map(|(_, _, allocated)| allocated).sum();
        dir.change(0, self.index_bytes(path) + value_bytes);
        self.report.leave(path.to_path_buf(), why);
        Ok(())
    }

    /// Attaches a generation for a catalog that is being rebuilt, unless part of it cannot be reached: known in
    /// part, it would be dropped once that part is dead.
    fn adopt(&mut self, dir: &Arc<Dir>, known: Known, path: &Path) -> Result<()> {
        match self.files(path, known.id)?.unreachable {
            None => self.attach(dir, known, path),
            Some(why) => self.leave(dir, path, known.id, format!("it cannot be read: {why}")),
        }
    }

    fn attach(&mut self, dir: &Arc<Dir>, mut known: Known, path: &Path) -> Result<()> {
        let files = self.files(path, known.id)?;
        match files.identity {
            Identity::Lost(why) if self.unknown != Unknown::Ignore => {
                tracing::warn!(path = %path.display(), %why, "HDD generation quarantined");
                if let Err(e) = dir.quarantine.container(path, &why) {
                    tracing::warn!(path = %path.display(), error = %e, "cannot quarantine a generation; left alone");
                }
                self.report.quarantined.push((path.to_path_buf(), why));
                return Ok(());
            }
            Identity::Whole(made) if known.created_ms == 0 => known.created_ms = made,
            _ => {}
        }
        known.dir = dir.no;
        if self.unknown != Unknown::Ignore
            && let Err(e) = self.quarantine_abandoned(dir, path)
        {
            tracing::warn!(path = %path.display(), error = %e, "cannot quarantine an HDD index");
        }
        let index_bytes = self.index_bytes(path);
        let value_bytes: u64 = files.values.iter().map(|(_, _, allocated)| allocated).sum();
        dir.change(0, index_bytes + value_bytes);
        let generation = Arc::new(Generation::new(
            Arc::clone(self.core),
            Arc::clone(dir),
            known.no,
            known.id,
            known.created_ms,
            path.to_path_buf(),
            index_bytes,
        ));
        if files.unlisted {
            generation.set_unlisted();
        }
        for (no, len, allocated) in files.values {
            generation.add_value(no, len, allocated);
        }
        self.containers.attach(known, Arc::new(Handle(Arc::clone(&generation))));
        self.generations.insert(known.id, generation);
        Ok(())
    }

    /// Reads the headers of the value files. `NewerFormat` if one says so.
    fn files(&self, path: &Path, id: u64) -> Result<Files> {
        let vfs = &*self.core.vfs;
        let mut values = Vec::new();
        let (mut whole, mut unreachable, mut lost) = (None, None, None);
        let entries = match vfs.read_dir(path) {
            Ok(entries) => entries,
            Err(e) => {
                tracing::warn!(path = %path.display(), error = %e, "cannot list a generation");
                let unreachable = Some(e.to_string());
                return Ok(Files { identity: Identity::Unreachable, unlisted: true, unreachable, values });
            }
        };
        for entry in entries {
            let file_path = path.join(&entry.name);
            let Some(no) = value::number(&entry.name).filter(|_| entry.kind == EntryKind::File) else {
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
                Ok(_) => lost = Some(format!("{} belongs to another generation or store", entry.name)),
                Err(e @ Error::NewerFormat { .. }) => return Err(e),
                Err(e) if e.is_corrupt() => lost = Some(e.to_string()),
                Err(e) => unreachable = Some(e.to_string()),
            }
            values.push((no, entry.len, file.allocated().unwrap_or(0).max(entry.len)));
        }
        let identity = match (whole, &unreachable) {
            (Some(made), _) => Identity::Whole(made),
            (None, Some(_)) => Identity::Unreachable,
            (None, None) => Identity::Lost(lost.unwrap_or_else(|| "it has no value files".into())),
        };
        Ok(Files { identity, unlisted: false, unreachable, values })
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
                    dir.quarantine.container(&folder, "sled failed in this index; it was rebuilt")?;
                }
            }
            if index.is_some() || stale {
                vfs.remove_file(&at).at("remove", &at)?;
            }
        }
        Ok(())
    }
}
