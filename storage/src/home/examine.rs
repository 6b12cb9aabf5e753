//! Which copies of the store's identity are not what they should be. One whole copy of each is enough to open, and
//! every opening writes both anew.
//!
//! Invariant: nothing is written, and nothing of it decides what is served.

use super::Home;
use super::record::{MAX_BYTES, Record, identity_paths, is_absent, manifest_paths};
use crate::flaw::{Flaw, Part};
use crate::vfs;

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
