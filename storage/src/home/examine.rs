//! Which copies of the store's identity are not what they should be. One whole copy of each is enough to open, and
//! every opening writes both anew. And whose a directory is, for who does not open it.
//!
//! Invariant: nothing is written, and nothing of it decides what is served.

use super::Home;
use super::record::{MAX_BYTES, Record, identity_paths, is_absent, manifest_paths, read_pair};
use crate::error::Result;
use crate::flaw::{Flaw, Part};
use crate::types::Tier;
use crate::vfs::{self, Vfs};
use std::path::{Path, PathBuf};

/// Whose a directory is, as its identity says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whose {
    /// The store's id.
    pub store: [u8; 16],
    /// All directories of that store, those of the highest tier first, where they were at its last opening.
    pub dirs: Vec<(Tier, PathBuf)>,
}

/// Whose a directory is; `None`: it has no identity that is whole. Takes no lock, so that a store may be open.
///
/// # Errors
/// `NewerFormat`; `Io` where permission is refused.
pub fn whose(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Whose>> {
    let found = read_pair(vfs, &identity_paths(dir), true)?.best;
    Ok(found.map(|record| {
        let mut dirs: Vec<_> = record.dirs.into_iter().map(|m| (m.no, m.tier, m.path)).collect();
        dirs.sort_by_key(|(no, tier, _)| (*tier, *no));
        Whose { store: record.store, dirs: dirs.into_iter().map(|(_, tier, path)| (tier, path)).collect() }
    }))
}

impl Home {
    /// The copies of the identities and of the manifest that are damaged, missing, or another's. Nothing is written.
    pub fn flaws(&self) -> Vec<Flaw> {
        let mut found = Vec::new();
        let directories = self.dirs.iter().filter(|d| d.present && !d.new);
        for dir in directories {
            self.examine(&identity_paths(&dir.path), Part::Identity, Some(dir.no), &mut found);
        }
        // Of a store that is being made one copy may not be there yet.
        if !self.new_store {
            self.examine(&manifest_paths(&self.catalog_dir), Part::Manifest, None, &mut found);
        }
        found
    }

    fn examine(&self, paths: &[std::path::PathBuf; 2], part: Part, this: Option<u16>, found: &mut Vec<Flaw>) {
        for path in paths {
            let why = match vfs::read_small(&*self.vfs, path, MAX_BYTES) {
                Ok(bytes) => match Record::decode(&bytes) {
                    Ok(Ok(r)) if r.store == self.record.store && r.this == this => continue,
                    Ok(Ok(_)) => "it is another directory's, or another store's".to_owned(),
                    Ok(Err(why)) => why,
                    Err(newer) => format!("format {newer}, which is newer"),
                },
                Err(e) if is_absent(&e) => "it is missing".to_owned(),
                Err(e) => format!("it cannot be read: {e}"),
            };
            found.push(Flaw::new(path, part, why));
        }
    }
}
