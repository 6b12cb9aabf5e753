//! The judgement: what was asked for against what was found. No disk access here; every rule is plain to test.
//!
//! Invariants: a number of a directory is never given twice; nothing that the roster knows is forgotten unless
//! `discard_missing` says so, or the store never held anything; the counter that comes out is at least every
//! counter that went in.

use super::hold::Resolved;
use super::record::{CatalogState, Member, Pair, Record, hex};
use super::{DirInfo, OpenFlags};
use crate::error::{Error, Result};
use crate::types::Tier;
use std::path::{Path, PathBuf};

/// Most directories that one store may have.
pub(super) const MAX_DIRS: usize = 1000;

/// A directory that was asked for, as it was found.
#[derive(Clone)]
pub(super) struct Seen {
    /// The tier that it is wanted for.
    pub tier: Tier,
    /// Where it is.
    pub at: Resolved,
    /// What says whose it is.
    pub identity: Pair,
    /// It had a lock file before this opening.
    pub marked: bool,
}

/// The catalog's place, as it was found.
pub(super) struct SeenCatalog {
    /// Where it is, or is to be.
    pub path: PathBuf,
    /// What stands there.
    pub manifest: Pair,
}

/// What to go on with.
pub(super) struct Verdict {
    /// The store as it now is; its roster has the new directories.
    pub record: Record,
    /// The directories, those asked for first, in their order.
    pub dirs: Vec<DirInfo>,
    /// What somebody may want to know, for the log.
    pub notes: Vec<String>,
}

/// Judges. `fresh` makes random ids.
pub(super) fn judge(
    seen: &[Seen],
    catalog: &SeenCatalog,
    flags: &OpenFlags,
    fresh: &mut dyn FnMut() -> Result<[u8; 16]>,
) -> Result<Verdict> {
    one_store(seen, catalog)?;
    let mut case = Case {
        seen,
        flags,
        fate: vec![Fate::New; seen.len()],
        taken: Vec::new(),
        missing: Vec::new(),
        notes: Vec::new(),
    };
    let mut record = case.base(catalog, fresh)?;
    case.match_identities(&record)?;
    case.match_paths(&record)?;
    case.settle_missing(&mut record)?;
    let dirs = case.number(&mut record, fresh)?;
    Ok(Verdict { record, dirs, notes: case.notes })
}

/// Everything found belongs to one store: the catalog's, or that of the first directory that says one.
fn one_store(seen: &[Seen], catalog: &SeenCatalog) -> Result<()> {
    let known = || seen.iter().filter_map(|s| s.identity.best.as_ref().map(|r| (s, r)));
    let Some(store) = catalog.manifest.best.as_ref().or(known().next().map(|(_, r)| r)).map(|r| r.store)
    else {
        return Ok(());
    };
    match known().find(|(_, r)| r.store != store) {
        None => Ok(()),
        Some((s, r)) => Err(other_store(&s.at.path, r.store, store)),
    }
}

/// The error of a directory that is another store's.
pub(super) fn other_store(path: &Path, found: [u8; 16], expected: [u8; 16]) -> Error {
    Error::OtherStore { path: path.to_path_buf(), found: hex(&found), expected: hex(&expected) }
}

fn bad(path: &Path, why: impl Into<String>) -> Error {
    Error::BadDirectory { path: path.to_path_buf(), why: why.into() }
}

/// What becomes of a directory that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It joins the store.
    New,
    /// It is the member with this number.
    Member(u16),
    /// It is what is left of the member with this number, which counts as missing.
    Missing(u16),
}

/// A member that is missing.
struct Lack {
    no: u16,
    /// Which directory that was asked for is what is left of it; `None`: none is.
    at: Option<usize>,
    why: String,
}

struct Case<'a> {
    seen: &'a [Seen],
    flags: &'a OpenFlags,
    fate: Vec<Fate>,
    /// Members that a directory was matched to.
    taken: Vec<u16>,
    missing: Vec<Lack>,
    notes: Vec<String>,
}

impl<'a> Case<'a> {
    fn identities(&self) -> impl Iterator<Item = (&'a Seen, &'a Record)> + use<'a> {
        self.seen.iter().filter_map(|s| s.identity.best.as_ref().map(|r| (s, r)))
    }

    /// The record to go by: the manifest; or, if it is lost and may be rebuilt, the identities' newest; or, if
    /// there is nothing at all, a new store's.
    fn base(&mut self, catalog: &SeenCatalog, fresh: &mut dyn FnMut() -> Result<[u8; 16]>) -> Result<Record> {
        for (path, pair) in
            self.seen.iter().map(|s| (&s.at.path, &s.identity)).chain([(&catalog.path, &catalog.manifest)])
        {
            if let Some(damage) = &pair.damage {
                self.notes.push(format!("{}: one or both copies are damaged: {damage}", path.display()));
            }
        }
        let why = match (&catalog.manifest.best, self.identities().next()) {
            (Some(manifest), _) => match self.behind(manifest) {
                None => return Ok(manifest.clone()),
                Some(why) => why,
            },
            (None, None) if !catalog.manifest.exists => return self.first(fresh),
            (None, _) => catalog.manifest.damage.clone().unwrap_or_else(|| "it has no manifest".to_owned()),
        };
        if !self.flags.rebuild_catalog {
            let Some(path) = self.disk_of_catalog(catalog) else {
                return Err(Error::CatalogLost { path: catalog.path.clone(), why });
            };
            // Going on without directories is no cure for a missing catalog: what is asked for is a mount.
            return Err(if self.flags.without_missing || self.flags.discard_missing {
                let why = format!("it is in {}, which is not there: mount that first", path.display());
                Error::CatalogLost { path: catalog.path.clone(), why }
            } else {
                let why =
                    "it is not there, and the catalog is in it: without it the catalog has to be rebuilt";
                let newest = self.identities().map(|(_, r)| r).max_by_key(|r| r.edition);
                let mistyped = newest.map(|r| self.mistyped(r)).unwrap_or_default();
                Error::MissingDirectory { path, why: format!("{why}{mistyped}") }
            });
        }
        self.rebuilt_from_identities(catalog, why)
    }

    /// A new store, unless something says that there was one.
    fn first(&self, fresh: &mut dyn FnMut() -> Result<[u8; 16]>) -> Result<Record> {
        if let Some(s) = self.seen.iter().find(|s| s.identity.exists) {
            return Err(damaged(&s.at.path));
        }
        if self.flags.read_only {
            let path = self.seen.first().map(|s| s.at.path.clone()).unwrap_or_default();
            return Err(bad(&path, "there is no store to read here: open it for writing to make one"));
        }
        Ok(Record {
            edition: 0,
            store: fresh()?,
            secret: fresh()?,
            counter: 0,
            state: CatalogState::New,
            unseen: 0,
            catalog: super::record::CatalogAt { inside: None, path: PathBuf::new() },
            this: None,
            dirs: Vec::new(),
            discarded: Vec::new(),
        })
    }

    /// Why the manifest is older than a directory, if it is.
    fn behind(&self, manifest: &Record) -> Option<String> {
        self.identities().find_map(|(s, r)| {
            let path = s.at.path.display();
            let no = r.this.unwrap_or_default();
            if r.counter > manifest.counter {
                Some(format!(
                    "it ends at opening {}, {path} has seen {}: has one of them been put back from a copy or a backup, \
                     or is the other a copy of this store that was opened since? Then give all directories from one and \
                     the same copy",
                    manifest.counter, r.counter
                ))
            } else if manifest.member(no).is_none() && !manifest.discarded.contains(&no) {
                Some(format!(
                    "it does not know directory {no}, {path}: has one of them been put back from a copy or a backup? \
                     Then give all directories from one and the same copy"
                ))
            } else {
                None
            }
        })
    }

    /// The directory that the catalog lies in, if that is not there: the catalog is not lost then, mounting is the
    /// cure, and rebuilding would do harm.
    fn disk_of_catalog(&self, catalog: &SeenCatalog) -> Option<PathBuf> {
        if catalog.manifest.exists {
            return None;
        }
        let newest = self.identities().map(|(_, r)| r).max_by_key(|r| r.edition)?;
        let (no, _) = newest.catalog.inside.as_ref()?;
        let member = newest.member(*no)?;
        let is_there = self.identities().any(|(_, r)| r.this == Some(*no));
        (!is_there).then(|| member.path.clone())
    }

    fn rebuilt_from_identities(&mut self, catalog: &SeenCatalog, why: String) -> Result<Record> {
        let all = || catalog.manifest.best.iter().chain(self.identities().map(|(_, r)| r));
        let Some(newest) = self.identities().map(|(_, r)| r).max_by_key(|r| r.edition) else {
            return Err(bad(
                &catalog.path,
                "its manifest and the identity files of all directories are damaged, so nothing says which \
                 store this is: restore any one store.a, store.b or manifest of the store from a copy",
            ));
        };
        let mut record = newest.clone();
        record.this = None;
        record.state = CatalogState::Rebuilding;
        record.counter = all().map(|r| r.counter).max().unwrap_or(record.counter);
        record.edition = all().map(|r| r.edition).max().unwrap_or(record.edition);
        // A discard that is recorded anywhere happened; a member that is recorded anywhere may hold items.
        for r in all() {
            for no in &r.discarded {
                if !record.discarded.contains(no) {
                    record.discarded.push(*no);
                }
            }
            for m in &r.dirs {
                if record.member(m.no).is_none() {
                    record.dirs.push(m.clone());
                }
            }
        }
        let Record { dirs, discarded, .. } = &mut record;
        dirs.retain(|m| !discarded.contains(&m.no));
        // An identity is written before anything is confirmed: its 0 does not say that a directory was unused.
        dirs.iter_mut().for_each(|m| m.epoch = m.epoch.max(1));
        self.notes.push(format!("{}: the catalog is rebuilt: {why}", catalog.path.display()));
        Ok(record)
    }

    /// Directories that say who they are.
    fn match_identities(&mut self, record: &Record) -> Result<()> {
        let mut ids: Vec<([u8; 16], &Path)> = Vec::new();
        for (at, s) in self.seen.iter().enumerate() {
            let Some(own) = s.identity.best.as_ref().and_then(Record::own) else { continue };
            let epoch = s.identity.best.as_ref().map_or(0, |r| r.counter);
            let path = &s.at.path;
            if let Some((_, first)) = ids.iter().find(|(id, _)| *id == own.id) {
                let why = format!("it is a copy of {}: empty one of the two", first.display());
                return Err(bad(path, why));
            }
            ids.push((own.id, path));
            if record.discarded.contains(&own.no) {
                self.discarded_is_back(at, record)?;
                continue;
            }
            let Some(member) = record.member(own.no) else { continue };
            if member.id != own.id {
                let why = format!(
                    "it says that it is directory {} of the store, which is another: {}; give it back its own \
                     disk, or empty it",
                    own.no,
                    member.path.display()
                );
                return Err(bad(path, why));
            }
            right_tier(s, member)?;
            self.taken.push(member.no);
            if epoch < member.epoch {
                let last = match member.path == *path {
                    true => String::new(),
                    false => format!(", last used as {}", member.path.display()),
                };
                let why = format!(
                    "it is older than the catalog knows: it has seen opening {epoch}, the catalog saw it at {}{last}; \
                     is it an older copy or a backup? Then give the original, or all directories from that copy",
                    member.epoch
                );
                self.lack(at, member.no, why);
                continue;
            }
            if member.path != *path {
                self.notes.push(format!(
                    "directory {} was at {}, is at {}",
                    member.no,
                    member.path.display(),
                    path.display()
                ));
            }
            self.set(at, Fate::Member(member.no));
        }
        Ok(())
    }

    /// A directory whose number was discarded. It joins anew only if the caller says so: its items are garbage.
    fn discarded_is_back(&mut self, at: usize, record: &Record) -> Result<()> {
        let Some(s) = self.seen.get(at) else { return Ok(()) };
        // Said before, but a crash came before the new identity was written.
        let said = record.dirs.iter().any(|m| m.epoch == 0 && m.path == s.at.path);
        if said || (self.flags.discard_missing && !self.flags.without_missing) {
            return Ok(());
        }
        Err(bad(
            &s.at.path,
            "it was discarded from this store: an opening with `discard_missing` (`--discard-missing`) gave it up while \
             it was missing; empty it to use it again, or open with `discard_missing` once more, which does away with \
             what is in it",
        ))
    }

    /// Directories that do not say who they are: known by their path, or new.
    fn match_paths(&mut self, record: &Record) -> Result<()> {
        for (at, s) in self.seen.iter().enumerate() {
            let discarded = s
                .identity
                .best
                .as_ref()
                .and_then(|r| r.this)
                .is_some_and(|no| record.discarded.contains(&no));
            if s.identity.best.is_some() && !discarded {
                continue;
            }
            let path = &s.at.path;
            let member = record.dirs.iter().find(|m| m.path == *path && !self.taken.contains(&m.no));
            let Some(member) = member else {
                if s.identity.exists && !discarded {
                    return Err(damaged(path));
                }
                continue;
            };
            right_tier(s, member)?;
            self.taken.push(member.no);
            // Entered in the roster, and its identity never written: a crash. The lock file, which is made
            // before, tells it from an empty mount point.
            let half_made = member.epoch == 0 && (s.marked || discarded || record.state == CatalogState::New);
            if (s.identity.exists && !discarded) || half_made {
                self.set(at, Fate::Member(member.no));
            } else if s.at.exists {
                let why = "its identity files are not there, its disk may not be mounted";
                self.lack(at, member.no, why.to_owned());
            } else {
                self.lack(at, member.no, "it does not exist, its disk may not be mounted".to_owned());
            }
        }
        Ok(())
    }

    fn set(&mut self, at: usize, fate: Fate) {
        if let Some(f) = self.fate.get_mut(at) {
            *f = fate;
        }
    }

    fn lack(&mut self, at: usize, no: u16, why: String) {
        self.set(at, Fate::Missing(no));
        self.missing.push(Lack { no, at: Some(at), why });
    }

    /// What to add where a member was not given, of those that were given instead and are none of the store's.
    fn mistyped(&self, record: &Record) -> String {
        let stranger = |s: &&Seen| !s.identity.exists && !record.dirs.iter().any(|m| m.path == s.at.path);
        let strangers = self.seen.iter().filter(stranger).map(|s| {
            let what = if s.at.exists { "is none of the store's" } else { "does not exist" };
            format!(" ({} was given, which {what}, and may be mistyped)", s.at.path.display())
        });
        strangers.collect()
    }

    /// Members that nothing was matched to, and those found wanting: refuse, go on without, or discard.
    fn settle_missing(&mut self, record: &mut Record) -> Result<()> {
        for m in &record.dirs {
            if !self.taken.contains(&m.no) {
                let why = "it belongs to the store and is not among the directories given";
                let why = format!("{why}{}", self.mistyped(record));
                self.missing.push(Lack { no: m.no, at: None, why });
            }
        }
        let never_used = record.state == CatalogState::New;
        for Lack { no, at, why } in &self.missing {
            let Some(member) = record.member(*no) else { continue };
            // What was given, not where it was last: that may be another, whole copy of it.
            let given = at.and_then(|at| self.seen.get(at)).map(|s| &s.at.path);
            let path = given.unwrap_or(&member.path).clone();
            if never_used || (self.flags.discard_missing && !self.flags.without_missing) {
                record.dirs.retain(|m| m.no != *no);
                record.discarded.push(*no);
                if let Some(f) = self.fate.iter_mut().find(|f| **f == Fate::Missing(*no)) {
                    *f = Fate::New;
                }
                self.notes.push(format!("directory {no}, {}, is discarded: {why}", path.display()));
            } else if self.flags.without_missing {
                self.notes.push(format!("opened without directory {no}, {}: {why}", path.display()));
            } else {
                return Err(Error::MissingDirectory { path, why: why.clone() });
            }
        }
        Ok(())
    }

    /// Enters new directories in the roster and makes the list of all.
    fn number(
        &mut self,
        record: &mut Record,
        fresh: &mut dyn FnMut() -> Result<[u8; 16]>,
    ) -> Result<Vec<DirInfo>> {
        let mut dirs = Vec::new();
        for (s, fate) in self.seen.iter().zip(&self.fate) {
            let path = s.at.path.clone();
            let (no, present, new) = match *fate {
                Fate::Missing(no) => (no, false, false),
                Fate::Member(no) => {
                    let member = record.dirs.iter_mut().find(|m| m.no == no);
                    let new = member.is_some_and(|m| {
                        m.path.clone_from(&path);
                        m.epoch == 0
                    });
                    (no, true, new)
                }
                Fate::New if self.flags.read_only => {
                    return Err(bad(
                        &path,
                        "it is not part of the store yet: open for writing once, or leave it out",
                    ));
                }
                Fate::New => {
                    let member = newcomer(record, s.tier, &path, fresh()?)?;
                    let no = member.no;
                    record.dirs.push(member);
                    (no, true, true)
                }
            };
            dirs.push(DirInfo { no, tier: s.tier, path, present, new });
        }
        for m in &record.dirs {
            if !dirs.iter().any(|d| d.no == m.no) {
                let path = m.path.clone();
                dirs.push(DirInfo { no: m.no, tier: m.tier, path, present: false, new: false });
            }
        }
        record.dirs.sort_by_key(|m| m.no);
        record.discarded.sort_unstable();
        Ok(dirs)
    }
}

fn newcomer(record: &Record, tier: Tier, path: &Path, id: [u8; 16]) -> Result<Member> {
    if record.dirs.len() >= MAX_DIRS {
        return Err(bad(path, format!("a store has at most {MAX_DIRS} directories")));
    }
    let highest = record.dirs.iter().map(|m| m.no).chain(record.discarded.iter().copied()).max();
    let no = highest.map_or(Some(0), |n| n.checked_add(1)).ok_or_else(|| {
        bad(path, "the store has given out all 65,536 numbers of directories: start a new store")
    })?;
    Ok(Member { no, tier, id, epoch: 0, path: path.to_path_buf() })
}

fn right_tier(seen: &Seen, member: &Member) -> Result<()> {
    if seen.tier == member.tier {
        return Ok(());
    }
    let why = format!(
        "it is a directory of the {} tier of this store, number {}, not of the {} tier: name it there",
        member.tier, member.no, seen.tier
    );
    Err(bad(&seen.at.path, why))
}

fn damaged(path: &Path) -> Error {
    bad(
        path,
        "its identity files store.a and store.b are both damaged, and no catalog knows it at this path: give \
         the catalog's place if it is elsewhere, mount the directory where it was, restore one of the files \
         from a copy, or empty the directory if nothing in it is needed",
    )
}
