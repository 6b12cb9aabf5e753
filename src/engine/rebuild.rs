//! A catalog from the containers alone, and what it did not see.
//!
//! Invariants:
//! - no container, and no directory that is away, makes a rebuilding fail: what it could not read is reported, and a
//!   container that could not be listed at all is not in the catalog, so that it is not dropped as dead;
//! - while a rebuilt catalog has not seen all, containers that are older than it and that it does not know are left
//!   where they are. They are taken in only when the caller asks for a rebuilding again, because items removed
//!   since may be among what they hold; an item that the catalog has is replaced by a newer version alone.
//!
//! A crash before the checkpoint leaves the catalog as it was, and the rebuilding is done again; one behind it, a
//! store that still counts as rebuilt in part.

use crate::error::Result;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use thermocline_storage::catalog::{Catalog, Found};
use thermocline_storage::container::{Entry, Listed, Unknown};
use thermocline_storage::home::Home;
use thermocline_storage::{Error as StorageError, Hasher, Ident, Version};

/// Containers and directories that were not seen, and why.
pub(super) type Unseen = Vec<(PathBuf, String)>;

/// What to do with containers that a catalog rebuilt in part does not know: those below the id.
pub(super) fn older(home: &Home, take_in: bool) -> Option<(u64, Unknown)> {
    let instead = if take_in { Unknown::Attach } else { Unknown::Leave };
    home.rebuilt_in_part().map(|counter| (Version::first_of(counter).0, instead))
}

/// Fills an empty catalog from all containers and makes it durable.
pub(super) fn rebuild(catalog: &Catalog, home: &mut Home, unseen: &mut Unseen) -> Result<()> {
    let newest = adopt(catalog, home, catalog.containers.all(), unseen);
    if newest.open() >= home.open_counter() {
        // The directories' own counters had been put back: no version may recur.
        home.counter_was_used(newest.open())?;
        home.begin_writing()?;
        catalog.skip_versions(Version::first_of(home.open_counter()));
    }
    catalog.checkpoint_now()?;
    settle(home, unseen, Some(home.open_counter()));
    Ok(())
}

/// Takes in containers that an earlier rebuilding did not see; `known` are those that the catalog knew.
pub(super) fn take_in(
    catalog: &Catalog,
    home: &mut Home,
    known: &HashSet<u64>,
    unseen: &mut Unseen,
) -> Result<()> {
    let found = catalog.containers.all().into_iter().filter(|e| !known.contains(&e.id)).collect();
    adopt(catalog, home, found, unseen);
    catalog.checkpoint_now()?;
    settle(home, unseen, home.rebuilt_in_part());
    Ok(())
}

/// Adds the directories that are away to what was not seen, and remembers whether that is anything.
fn settle(home: &mut Home, unseen: &mut Unseen, counter: Option<u64>) {
    away(home, unseen);
    home.set_rebuilt_in_part(counter.filter(|_| !unseen.is_empty()));
}

/// The directories that are away.
pub(super) fn away(home: &Home, unseen: &mut Unseen) {
    let why = "the directory was not here when the catalog was rebuilt: bring it back and rebuild again";
    let away = home.dirs().iter().filter(|d| !d.present);
    unseen.extend(away.map(|d| (d.path.clone(), why.to_owned())));
}

/// Enters every record found in the containers, the newest of each identity winning, and gives the newest version
/// found. A record counts only if its key has the identity that it claims: bytes inside a value could look like a
/// record.
fn adopt(catalog: &Catalog, home: &Home, entries: Vec<Arc<Entry>>, unseen: &mut Unseen) -> Version {
    let hasher = Hasher::new(home.secret());
    let mut newest = HashMap::new();
    for entry in entries {
        let listed = match records(&entry, &hasher) {
            Ok((listed, None)) => listed,
            Ok((listed, Some(e))) => {
                unseen.push((path(home, &entry), format!("records of it are left out: {e}")));
                listed
            }
            Err(e) => {
                unseen.push((path(home, &entry), format!("a container of it is left out: {e}")));
                catalog.containers.remove(entry.no);
                continue;
            }
        };
        entry.records.store(listed.len() as u64, Ordering::Relaxed);
        entry.earliest_expiry.store(u64::MAX, Ordering::Relaxed);
        listed.iter().for_each(|l| entry.note_expiry(l.expires_at));
        let listed = comparable(catalog, listed, &mut newest);
        catalog.adopt(entry.no, &listed, &mut newest);
    }
    newest.into_values().max().unwrap_or_default()
}

/// The directory of a container.
fn path(home: &Home, entry: &Entry) -> PathBuf {
    home.dirs().iter().find(|d| d.no == entry.dir).map(|d| d.path.clone()).unwrap_or_default()
}

/// A container's records. Damaged ones are left out, and so are those that cannot be reached, with what the first of
/// these suffers from; an error if nothing else is left.
fn records(entry: &Entry, hasher: &Hasher) -> Result<(Vec<Listed>, Option<StorageError>), StorageError> {
    let (mut listed, mut failed) = entry.container.list_reachable()?;
    listed.retain(|l| match entry.container.head(l.position) {
        Ok(head) => hasher.ident(&head.key) == l.ident,
        Err(e) if e.is_corrupt() => false,
        Err(e) => {
            failed.get_or_insert(e);
            false
        }
    });
    match failed {
        Some(e) if listed.is_empty() => Err(e),
        failed => Ok((listed, failed)),
    }
}

/// Notes the version of what the catalog has of each record's identity. Where that cannot be read there is nothing to
/// compare, and what the catalog has stays.
fn comparable(
    catalog: &Catalog,
    mut listed: Vec<Listed>,
    newest: &mut HashMap<Ident, Version>,
) -> Vec<Listed> {
    listed.retain(|l| {
        if newest.contains_key(&l.ident) {
            return true;
        }
        let Found::At(at) = catalog.find(l.ident) else { return true };
        match at.entry.container.head(at.place.position()) {
            Ok(head) => {
                newest.insert(l.ident, head.version);
                true
            }
            Err(_) => false,
        }
    });
    listed
}
