//! What of a pack is not needed to read its records, and is looked at all the same: both copies of its identity, and
//! the central directory, by which other programs read it.
//!
//! Invariant: nothing is written, and nothing of it decides what is served.

use super::identity::Identity;
use super::listing;
use super::pack::IDENTITY_WITHIN;
use crate::flaw::{Flaw, Part};
use crate::vfs::VfsFile;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

/// Whether all that [`flaws`] looks at can be read, whatever it says.
///
/// # Errors
///
/// Of reading.
pub(super) fn reached(file: &dyn VfsFile, len: u64, seed: u64) -> io::Result<()> {
    let near = IDENTITY_WITHIN.min(len / 2);
    let mut bytes = vec![0; usize::try_from(near).unwrap_or(0)];
    for at in [0, len - near] {
        file.read_exact_at(&mut bytes, at)?;
    }
    listing::from_directory(file, len, seed, &mut |_| ()).map(|_| ())
}

/// What is wrong around the records of the pack with this id, which is `len` bytes long.
pub(super) fn flaws(
    file: &dyn VfsFile,
    path: &Path,
    len: u64,
    (id, seed): (u64, u64),
    live: &[u32],
) -> Vec<Flaw> {
    let mut found = Vec::new();
    // The first copy stands in the first local header, which ends before the middle of the smallest pack.
    let near = IDENTITY_WITHIN.min(len / 2);
    for (no, at) in [0, len - near].into_iter().enumerate() {
        let mut bytes = vec![0; usize::try_from(near).unwrap_or(0)];
        let why = match file.read_exact_at(&mut bytes, at) {
            Ok(()) => match Identity::find(&bytes) {
                Some(is) if is.id == id => continue,
                Some(_) => "it is another pack's".to_owned(),
                None => "it is damaged".to_owned(),
            },
            Err(e) => format!("it cannot be read: {e}"),
        };
        found.push(Flaw::new(path, Part::Header, format!("copy {} of 2 of its identity: {why}", no + 1)));
    }
    let mut listed = BTreeSet::new();
    let why = match listing::from_directory(file, len, seed, &mut |meta| _ = listed.insert(meta.position)) {
        Ok(true) if live.iter().all(|position| listed.contains(position)) => return found,
        Ok(true) => "it lacks records that are there".to_owned(),
        Ok(false) => "it is damaged; other programs may not read the pack".to_owned(),
        Err(e) => format!("it cannot be read: {e}"),
    };
    found.push(Flaw::new(path, Part::Directory, why));
    found
}
