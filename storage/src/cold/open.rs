//! Opening the tier: what lies in its directories, held against what the catalog knows.
//!
//! Invariants:
//! - a pack that the catalog knows is attached by its name, without a look at it: what is wrong with it, its reads
//!   find; only where two files have its name, that one is taken with which less is wrong;
//! - what has the name of a pack that is attached is never deleted: it goes to the quarantine, or stays;
//! - one that the catalog does not know is deleted only if it is this store's and says itself that it is the pack that
//!   its name calls it; another store's, and what cannot be read just now, is left alone; what nothing identifies is
//!   quarantined;
//! - a file that cannot be read, moved or deleted is no reason not to open the store.
//!
//! A crash leaves some leftovers deleted and others not, or a pack in the quarantine without its report; the next
//! opening goes on.

use super::identity::{self, Identity};
use super::pack::{self, Pack, Shared, identity_of};
use super::{README, entry, examine};
use crate::container::{Known, OpenReport, Purpose, SECOND, TierContext, Unknown};
use crate::error::{Error, IoContext, Result};
use crate::tierdir::Dir;
use crate::types::Tier;
use crate::vfs::{EntryKind, OpenMode, Vfs, replace_small};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Attached packs by container id.
pub(super) type Packs = HashMap<u64, Arc<Pack>>;

/// A pack's file as the folder lists it.
struct Found {
    dir: Arc<Dir>,
    id: u64,
    len: u64,
}

/// Attaches what is known and settles what is not.
pub(super) fn open(
    ctx: &TierContext,
    dirs: &[Arc<Dir>],
    shared: &Arc<Shared>,
) -> Result<(Packs, OpenReport)> {
    let mut report = OpenReport::default();
    let mut packs = Packs::new();
    let mut found = Vec::new();
    for dir in dirs {
        if ctx.unknown != Unknown::Ignore {
            explain(&*ctx.vfs, &dir.path);
        }
        list_folder(ctx, dir, &mut found, &mut report)?;
    }
    let mut known = ctx.known_here();
    // A pack that lies in two directories, because somebody copied it, is taken where the catalog says; if it is
    // damaged there, where it is whole.
    let mut files_of: HashMap<u64, usize> = HashMap::new();
    found.iter().for_each(|f| *files_of.entry(f.id).or_default() += 1);
    found.sort_by_cached_key(|f| {
        let elsewhere = known.get(&f.id).is_none_or(|k| k.dir != f.dir.no);
        let copied = files_of.get(&f.id).is_some_and(|count| *count > 1);
        (if copied { wrong_with(ctx, f, elsewhere) } else { 0 }, elsewhere)
    });
    let mut unknown = Vec::new();
    for f in found {
        match known.remove(&f.id) {
            Some(k) => {
                let k = Known { dir: f.dir.no, ..k };
                attach(ctx, shared, &f, k, &mut packs);
            }
            None => unknown.push(f),
        }
    }
    report.missing = known.into_values().collect();
    report.missing.sort_by_key(|k| k.id);
    for f in unknown {
        settle(ctx, shared, &f, &mut packs, &mut report)?;
    }
    Ok((packs, report))
}

/// How much is wrong with one of several files of a pack, by which they are told apart. What cannot be read now may be
/// whole: that is no reason to take another for the one that the catalog names.
fn wrong_with(ctx: &TierContext, f: &Found, elsewhere: bool) -> usize {
    let path = pack::path_in(&f.dir, f.id);
    let seed = entry::seed(&ctx.store, f.id);
    let looked_at = ctx.vfs.open(&path, OpenMode::Read).and_then(|file| {
        let is = identity_of(&*file, f.len)?;
        let ours = is.is_some_and(|is| is.id == f.id && is.store == ctx.store);
        if ours {
            examine::reached(&*file, f.len, seed)?;
        }
        Ok((file, ours))
    });
    match looked_at {
        Ok((file, true)) => examine::flaws(&*file, &path, f.len, (f.id, seed), &[]).len(),
        Ok((_, false)) => usize::MAX - 1,
        Err(_) if elsewhere => usize::MAX,
        Err(_) => 0,
    }
}

fn list_folder(
    ctx: &TierContext,
    dir: &Arc<Dir>,
    found: &mut Vec<Found>,
    report: &mut OpenReport,
) -> Result<()> {
    if ctx.vfs.kind(&dir.folder).at("look at", &dir.folder)?.is_none() {
        return Ok(());
    }
    for e in ctx.vfs.read_dir(&dir.folder).at("list", &dir.folder)? {
        if e.kind != EntryKind::File {
            continue;
        }
        let path = dir.folder.join(&e.name);
        if let Some(id) = pack::id_in(&e.name) {
            dir.change(0, e.len);
            found.push(Found { dir: dir.clone(), id, len: e.len });
        } else if e.name.ends_with(".tmp") && ctx.unknown != Unknown::Ignore {
            // One that cannot be deleted is met again at the next opening.
            match ctx.vfs.remove_file(&path) {
                Ok(()) => report.deleted += 1,
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cold: a leftover stays");
                    dir.change(0, e.len);
                }
            }
        }
    }
    Ok(())
}

fn attach(ctx: &TierContext, shared: &Arc<Shared>, f: &Found, known: Known, packs: &mut Packs) -> Arc<Pack> {
    let pack = Arc::new(Pack::new(f.dir.clone(), shared.clone(), known.no, f.id, &ctx.store, f.len));
    ctx.containers.attach(known, pack.clone());
    packs.insert(f.id, pack.clone());
    pack
}

/// Decides about a pack that the catalog does not know.
fn settle(
    ctx: &TierContext,
    shared: &Arc<Shared>,
    f: &Found,
    packs: &mut Packs,
    report: &mut OpenReport,
) -> Result<()> {
    let path = pack::path_in(&f.dir, f.id);
    let fate = f.dir.unknown(f.id);
    match fate {
        Unknown::Ignore => return Ok(()),
        Unknown::Leave => {
            report.leave(path, f.dir.why_left(f.id));
            return Ok(());
        }
        Unknown::Delete | Unknown::Attach => {}
    }
    let identity = ctx.vfs.open(&path, OpenMode::Read).and_then(|file| identity_of(&*file, f.len));
    let is = match identity {
        Ok(Some(is)) => is,
        Ok(None) => {
            quarantine(f, &path, "neither copy of the pack's identity can be read", packs, report);
            return Ok(());
        }
        // Whose it is cannot be told, so it is nobody's to delete.
        Err(e) => {
            if fate == Unknown::Attach {
                report.leave(path, format!("it cannot be read: {e}"));
            } else {
                tracing::warn!(path = %path.display(), error = %e, "cold: an unknown pack cannot be read, and stays");
            }
            return Ok(());
        }
    };
    if is.format > identity::FORMAT {
        return Err(Error::NewerFormat { path, found: is.format, supported: identity::FORMAT });
    }
    if is.store != ctx.store {
        // Somebody put it here; it is theirs.
        tracing::warn!(path = %path.display(), "cold: a pack of another store is left alone");
        return Ok(());
    }
    // What the catalog knows is attached without a look at it.
    if is.id == f.id && packs.get(&f.id).is_some_and(|pack| pack.is_unreachable()) {
        report.leave(path, SECOND);
        return Ok(());
    }
    if is.id != f.id || packs.contains_key(&f.id) {
        let why =
            format!("its name says pack {:016x}, it says {:016x}, which may lie here twice", f.id, is.id);
        quarantine(f, &path, &why, packs, report);
        return Ok(());
    }
    if fate == Unknown::Attach {
        return adopt(ctx, shared, f, &is, packs, report);
    }
    match ctx.vfs.remove_file(&path) {
        Ok(()) => {
            f.dir.change(f.len, 0);
            report.deleted += 1;
        }
        Err(e) => tracing::warn!(path = %path.display(), error = %e, "cold: a leftover stays"),
    }
    Ok(())
}

/// What cannot be moved stays where it is, and counted; so does a second copy that would be deleted there at once.
fn quarantine(f: &Found, path: &Path, why: &str, packs: &Packs, report: &mut OpenReport) {
    let moved = match packs.contains_key(&f.id) {
        true => f.dir.quarantine.set_aside(path, f.len, why),
        false => f.dir.quarantine.container(path, why),
    };
    let stays = match moved {
        Ok(()) => {
            f.dir.change(f.len, 0);
            String::new()
        }
        Err(e) => format!(" (left in its place: {e})"),
    };
    report.quarantined.push((path.to_path_buf(), format!("{why}{stays}")));
}

/// Attaches a pack whose identity was read, under a fresh number.
fn adopt(
    ctx: &TierContext,
    shared: &Arc<Shared>,
    f: &Found,
    is: &Identity,
    packs: &mut Packs,
    report: &mut OpenReport,
) -> Result<()> {
    let reserved = ctx.containers.reserve(Purpose::Reclaim)?;
    let probe = Pack::new(f.dir.clone(), shared.clone(), reserved.no, f.id, &ctx.store, f.len);
    let listed = match probe.scan() {
        Ok(listed) => listed,
        Err(e) => {
            ctx.containers.abandon(reserved);
            report.leave(pack::path_in(&f.dir, f.id), format!("it cannot be read: {e}"));
            return Ok(());
        }
    };
    let expiries = listed.iter().map(|l| l.expires_at).filter(|at| *at != 0);
    let known = Known {
        no: reserved.no,
        id: f.id,
        tier: Tier::Cold,
        dir: f.dir.no,
        created_ms: is.created_ms,
        records: listed.len() as u64,
        earliest_expiry: expiries.min().unwrap_or(u64::MAX),
    };
    attach(ctx, shared, f, known, packs);
    Ok(())
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
