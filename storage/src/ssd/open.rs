//! What is found on disk at opening.
//!
//! Only headers are read. A segment that the catalog knows is attached, sealed; a known one whose file cannot be
//! opened or read just now is attached too, and its reads fail until the next opening, so that its items are
//! absent and not forgotten. A segment goes to the quarantine only if neither a copy of its header nor its
//! trailer says who it is, or if they name another store or container than its place does.
//!
//! A crash in here leaves some leftovers deleted and some not; the next opening goes on.

use super::format::{self, Identity, Unfit};
use super::segment::{Reading, Segment};
use crate::appendlog::TMP;
use crate::container::{
    Container, Known, Listed, OpenReport, Purpose, RawRecord, SECOND, TierContext, Unknown,
};
use crate::error::{Error, IoContext, Result};
use crate::item::{Head, Item};
use crate::tierdir::{Dir, Lease, PROBE};
use crate::types::Tier;
use crate::vfs::{EntryKind, OpenMode, VfsFile};
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A segment file on disk and its count in its directory.
#[derive(Debug, Clone)]
pub(super) struct OnDisk {
    pub path: PathBuf,
    pub lease: Arc<Lease>,
    /// How to read it; `None` if it could not be opened.
    pub segment: Option<Arc<Segment>>,
}

const PREFIX: &str = "seg-";
const ANOTHERS: &str = "it belongs to another store";

/// The file name of a segment.
pub(super) fn name_of(id: u64) -> String {
    format!("{PREFIX}{id:016x}")
}

fn id_of(name: &str) -> Option<u64> {
    let id = u64::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok()?;
    (name_of(id) == name).then_some(id)
}

/// What the tier holds of its files.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Those of containers, by id.
    pub segments: HashMap<u64, OnDisk>,
    /// Counts of files that are in the way and could not be removed.
    pub strays: Vec<Arc<Lease>>,
}

struct Opening<'a> {
    ctx: &'a TierContext,
    reading: &'a Arc<Reading>,
    /// Known and not yet found.
    known: HashMap<u64, Known>,
    /// Attached, though they could not be read.
    unread: HashSet<u64>,
    files: Files,
    report: OpenReport,
}

/// Attaches what is there to the table of containers.
pub(super) fn open(
    ctx: &TierContext,
    dirs: &[Arc<Dir>],
    reading: &Arc<Reading>,
) -> Result<(Files, OpenReport)> {
    let mut o = Opening {
        ctx,
        reading,
        known: ctx.known_here(),
        unread: HashSet::new(),
        files: Files::default(),
        report: OpenReport::default(),
    };
    let mut found = Vec::new();
    for dir in dirs {
        o.folder(dir, &mut found)?;
    }
    // One that lies in two directories, because somebody copied it, is taken where the catalog says; if it is damaged
    // there, where it is whole.
    found.sort_by_key(|(dir, _, id, _)| o.known.get(id).is_none_or(|k| k.dir != dir.no));
    let mut unknown = Vec::new();
    for (dir, path, id, len) in found {
        match o.known.get(&id).copied() {
            Some(known) => o.known(&dir, path, known, len)?,
            None => unknown.push((dir, path, id, len)),
        }
    }
    // Numbers that the catalog knows are all taken before one is given to a segment that it does not.
    for (dir, path, id, len) in unknown {
        o.stranger(&dir, path, id, len)?;
    }
    o.report.missing.extend(o.known.into_values());
    o.report.missing.sort_by_key(|k| k.no);
    Ok((o.files, o.report))
}

impl Opening<'_> {
    /// Lists the segments of a directory, with their ids and lengths, and removes leftovers.
    fn folder(&mut self, dir: &Arc<Dir>, found: &mut Vec<(Arc<Dir>, PathBuf, u64, u64)>) -> Result<()> {
        let vfs = &*self.ctx.vfs;
        let folder = &dir.folder;
        if self.ctx.unknown == Unknown::Ignore && vfs.kind(folder).at("look at", folder)?.is_none() {
            return Ok(());
        }
        let deleted = self.report.deleted;
        let mut entries = vfs.read_dir(folder).at("list", folder)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for e in entries {
            let path = folder.join(&e.name);
            if e.kind != EntryKind::File {
                continue;
            }
            if e.name.ends_with(TMP) && (e.name.starts_with(PREFIX) || e.name == PROBE) {
                self.delete(dir, &path, e.len);
            } else if let Some(id) = id_of(&e.name) {
                found.push((dir.clone(), path, id, e.len));
            }
        }
        if self.report.deleted > deleted {
            vfs.sync_dir(folder).at("sync", folder)?;
        }
        Ok(())
    }

    /// Deletes a leftover; says whether it is gone. One that cannot be deleted is met again at the next opening.
    fn delete(&mut self, dir: &Arc<Dir>, path: &Path, len: u64) -> bool {
        if self.ctx.unknown != Unknown::Ignore {
            match self.ctx.vfs.remove_file(path) {
                Ok(()) => {
                    self.report.deleted += 1;
                    return true;
                }
                Err(e) => tracing::warn!(path = %path.display(), error = %e, "a leftover stays"),
            }
        }
        self.files.strays.push(dir.lease(len));
        false
    }

    fn known(&mut self, dir: &Arc<Dir>, path: PathBuf, known: Known, len: u64) -> Result<()> {
        let known = Known { dir: dir.no, ..known };
        match self.identify(&path, known.id, len) {
            Found::Ours(file, _) => self.attach(dir, path, known, file, len),
            Found::Unreadable(Some(file), _) => {
                self.unread.insert(known.id);
                self.attach(dir, path, known, file, len);
            }
            Found::Unreadable(None, why) => {
                self.unread.insert(known.id);
                tracing::warn!(path = %path.display(), error = %why, "a segment cannot be opened");
                let lease = dir.lease(len);
                let file = OnDisk { path: path.clone(), lease: lease.clone(), segment: None };
                self.files.segments.insert(known.id, file);
                self.ctx.containers.attach(known, Arc::new(Unreachable { path, why, lease }));
            }
            Found::Newer(found) => return Err(newer(path, found)),
            Found::Foreign => {
                self.set_aside(dir, path, ANOTHERS, len);
                return Ok(());
            }
            Found::Unfit(why) => {
                self.quarantine(dir, path.clone(), why, len);
                // Who only looks can still say whose items are lost with it.
                if self.ctx.unknown == Unknown::Ignore
                    && let Ok(file) = self.ctx.vfs.open(&path, OpenMode::Read)
                {
                    self.attach(dir, path, known, file, len);
                    self.known.remove(&known.id);
                    self.report.given_up.push(known.id);
                }
                return Ok(());
            }
        }
        self.known.remove(&known.id);
        Ok(())
    }

    fn stranger(&mut self, dir: &Arc<Dir>, path: PathBuf, id: u64, len: u64) -> Result<()> {
        let fate = dir.unknown(id);
        if matches!(fate, Unknown::Ignore | Unknown::Leave) {
            self.files.strays.push(dir.lease(len));
            if fate == Unknown::Leave {
                self.report.leave(path, dir.why_left(id));
            }
            return Ok(());
        }
        match self.identify(&path, id, len) {
            Found::Newer(found) => Err(newer(path, found)),
            Found::Foreign => {
                self.set_aside(dir, path, ANOTHERS, len);
                Ok(())
            }
            Found::Unfit(why) => {
                self.quarantine(dir, path, why, len);
                Ok(())
            }
            Found::Ours(..) if self.unread.contains(&id) => {
                self.files.strays.push(dir.lease(len));
                self.report.leave(path, SECOND);
                Ok(())
            }
            // A copy of one that is attached: two places would name one record.
            Found::Ours(..) if self.files.segments.contains_key(&id) => {
                self.set_aside(dir, path, "a second file with this container's id", len);
                Ok(())
            }
            Found::Ours(file, identity) if fate == Unknown::Attach => {
                let no = self.ctx.containers.reserve(Purpose::Reclaim)?.no;
                let (records, earliest_expiry) =
                    read_trailer(&*file, len).map_or((0, 0), |t| (t.records, t.earliest_expiry));
                let known = Known {
                    no,
                    id,
                    tier: Tier::Ssd,
                    dir: dir.no,
                    created_ms: identity.created_ms,
                    records,
                    earliest_expiry,
                };
                self.attach(dir, path, known, file, len);
                Ok(())
            }
            Found::Unreadable(_, why) if fate == Unknown::Attach => {
                self.files.strays.push(dir.lease(len));
                self.report.leave(path, format!("it cannot be read: {why}"));
                Ok(())
            }
            // Whose it is cannot be told, so it is nobody's to delete.
            Found::Unreadable(_, why) => {
                tracing::warn!(path = %path.display(), error = %why, "an unknown segment cannot be read, and stays");
                self.files.strays.push(dir.lease(len));
                Ok(())
            }
            Found::Ours(..) => {
                if self.delete(dir, &path, len) {
                    self.ctx.vfs.sync_dir(&dir.folder).at("sync", &dir.folder)?;
                }
                Ok(())
            }
        }
    }

    fn attach(&mut self, dir: &Arc<Dir>, path: PathBuf, known: Known, file: Arc<dyn VfsFile>, len: u64) {
        let lease = dir.lease(len);
        let reading = self.reading.clone();
        let segment = Arc::new(Segment::reopened(
            (known.no, known.id),
            path.clone(),
            file,
            len,
            reading,
            lease.clone(),
        ));
        self.files.segments.insert(known.id, OnDisk { path, lease, segment: Some(segment.clone()) });
        self.ctx.containers.attach(known, segment);
    }

    /// Moves a segment to the quarantine.
    fn quarantine(&mut self, dir: &Arc<Dir>, path: PathBuf, why: String, len: u64) {
        tracing::warn!(path = %path.display(), %why, bytes = len, "a segment is damaged");
        let moved = self.may_change().and_then(|()| dir.quarantine.container(&path, &why));
        self.was_moved(dir, path, why, len, moved);
    }

    /// Moves a segment of another store, or a second copy, to the quarantine, if it is not deleted there at once.
    fn set_aside(&mut self, dir: &Arc<Dir>, path: PathBuf, why: &str, len: u64) {
        tracing::warn!(path = %path.display(), %why, bytes = len, "a segment is not this tier's to serve");
        let moved = self.may_change().and_then(|()| dir.quarantine.set_aside(&path, len, why));
        self.was_moved(dir, path, why.to_owned(), len, moved);
    }

    fn may_change(&self) -> Result<()> {
        if self.ctx.unknown == Unknown::Ignore { Err(Error::Busy("nothing is changed")) } else { Ok(()) }
    }

    /// Reports what was to be moved to the quarantine. What could not be stays where it is, and counted; a look, which
    /// changes nothing, leaves all of it.
    fn was_moved(&mut self, dir: &Arc<Dir>, path: PathBuf, why: String, len: u64, moved: Result<()>) {
        let stays = match moved {
            Ok(()) => String::new(),
            Err(e) => {
                self.files.strays.push(dir.lease(len));
                match self.ctx.unknown {
                    Unknown::Ignore => " (left in its place)".to_owned(),
                    _ => format!(" (left in its place: {e})"),
                }
            }
        };
        self.report.quarantined.push((path, why + &stays));
    }

    /// Whose file this is, by its header, or else by its trailer.
    fn identify(&self, path: &Path, id: u64, len: u64) -> Found {
        let file = match self.ctx.vfs.open(path, OpenMode::Read) {
            Ok(file) => file,
            Err(e) => return Found::Unreadable(None, e),
        };
        let mut block = vec![0; usize::try_from(len.min(format::HEADER_BLOCK)).unwrap_or(0)];
        let n = match file.read_at(&mut block, 0) {
            Ok(n) => n,
            Err(e) => return Found::Unreadable(Some(file), e),
        };
        block.truncate(n);
        let identity = match format::parse_header_block(&block) {
            Ok(identity) => identity,
            Err(Unfit::Newer(found)) => return Found::Newer(found),
            Err(Unfit::Damaged(why)) => match read_trailer(&*file, len) {
                Some(trailer) => trailer.identity,
                None => return Found::Unfit(format!("no copy of the header can be read: {why}")),
            },
        };
        if identity.store != self.ctx.store {
            return Found::Foreign;
        }
        if identity.id != id {
            return Found::Unfit(format!("its header says that it is {}", name_of(identity.id)));
        }
        if identity.size != len {
            tracing::warn!(path = %path.display(), expected = identity.size, found = len, "cut or grown");
        }
        Found::Ours(file, identity)
    }
}

enum Found {
    Ours(Arc<dyn VfsFile>, Identity),
    Unreadable(Option<Arc<dyn VfsFile>>, io::Error),
    Newer(u32),
    /// Of another store.
    Foreign,
    Unfit(String),
}

fn newer(path: PathBuf, found: u32) -> Error {
    Error::NewerFormat { path, found, supported: format::FORMAT }
}

fn read_trailer(file: &dyn VfsFile, len: u64) -> Option<format::Trailer> {
    let at = len.checked_sub(format::TRAILER)?;
    let mut block = [0; format::BLOCK];
    file.read_exact_at(&mut block, at).ok()?;
    format::parse_trailer(&block, at).ok()
}

/// A segment that the catalog knows and that could not be opened: its items are absent until the next opening.
#[derive(Debug)]
struct Unreachable {
    path: PathBuf,
    why: io::Error,
    lease: Arc<Lease>,
}

impl Unreachable {
    fn error(&self) -> Error {
        Error::io("open", &self.path, io::Error::new(self.why.kind(), self.why.to_string()))
    }
}

impl Container for Unreachable {
    fn read_up_to(&self, _: u32, _: u64) -> Result<Item> {
        Err(self.error())
    }
    fn head(&self, _: u32) -> Result<Head> {
        Err(self.error())
    }
    fn list(&self) -> Result<Vec<Listed>> {
        Err(self.error())
    }
    fn raw(&self, _: u32) -> Option<RawRecord> {
        None
    }
    fn occupied(&self) -> u64 {
        self.lease.size()
    }
}
