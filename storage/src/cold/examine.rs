//! What of a pack is not needed to read its records, and is looked at all the same: both copies of its identity, and
//! what ZIP says of them, in the central directory, the local headers and the descriptors, by which other programs read it.
//!
//! Invariant: nothing is written, and nothing of it decides what is served.

use super::entry::{CENTRAL, DESCRIPTOR, LOCAL, Meta, SIGNATURE};
use super::identity::Identity;
use super::listing;
use super::pack::IDENTITY_WITHIN;
use crate::flaw::{Flaw, Part};
use crate::record::{le16, le32};
use crate::types::{Codec, Place};
use crate::vfs::VfsFile;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

/// What ZIP's fields say in every entry of a pack: version 2.0 is needed, and lengths stand behind the payload.
const VERSION: u16 = 20;
const FLAGS: u16 = 8;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;
const DESCRIBED: &[u8; 4] = b"PK\x07\x08";

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
    listing::from_directory(file, len, seed, &mut |_, _| ()).map(|_| ())
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
    let mut wrong: io::Result<Option<String>> = Ok(None);
    let mut each = |meta: &Meta, central_at| {
        listed.insert(meta.position);
        if let Ok(None) = wrong {
            wrong = said_wrong(file, meta, central_at, live.binary_search(&meta.position).is_ok());
        }
    };
    let directory = listing::from_directory(file, len, seed, &mut each);
    let why = match directory.and_then(|whole| wrong.map(|wrong| (whole, wrong))) {
        Ok((true, None)) if live.iter().all(|position| listed.contains(position)) => return found,
        Ok((true, None)) => "it lacks records that are there".to_owned(),
        Ok((true, Some(what))) => format!("{what}; other programs may not read that item"),
        Ok((false, _)) => "it is damaged; other programs may not read the pack".to_owned(),
        Err(e) => format!("it cannot be read: {e}"),
    };
    found.push(Flaw::new(path, Part::Directory, why));
    found
}

/// What ZIP says of an entry that its record does not: the first such thing. Times, attributes and who made it are
/// nobody's way to the value. Of what is not live only the directory is looked at.
fn said_wrong(file: &dyn VfsFile, meta: &Meta, central_at: u64, is_live: bool) -> io::Result<Option<String>> {
    let head = &meta.head;
    let wrong = |what: &str| Ok(Some(format!("{what} of {} is damaged", head.key.escape_ascii())));
    let method = if head.codec == Codec::Deflate { DEFLATED } else { STORED };
    let mut central = [0; CENTRAL];
    if !read_whole(file, &mut central, central_at)?
        || [6, 8, 10].map(|at| le16(&central, at)) != [VERSION, FLAGS, method]
        || [20, 24].map(|at| le32(&central, at)) != [head.stored_len, head.original_len]
    {
        return wrong("the directory's entry");
    }
    if !is_live {
        return Ok(None);
    }
    let at = u64::from(meta.position) * Place::UNIT;
    let mut local = [0; LOCAL];
    // Checksum and lengths are zeros here: they stand behind the payload.
    if !read_whole(file, &mut local, at)?
        || !local.starts_with(SIGNATURE)
        || [4, 6, 8].map(|at| le16(&local, at)) != [VERSION, FLAGS, method]
        || [14, 18, 22].map(|at| le32(&local, at)) != [0; 3]
    {
        return wrong("the local header");
    }
    let mut behind = [0; DESCRIPTOR];
    // The value's own checksum is held against the directory's: two copies, of which no one bit changes both.
    let expected = [le32(&central, 16), head.stored_len, head.original_len];
    if !read_whole(file, &mut behind, at + meta.payload_end())?
        || !behind.starts_with(DESCRIBED)
        || [4, 8, 12].map(|at| le32(&behind, at)) != expected
    {
        return wrong("the descriptor, or the checksum in the directory,");
    }
    Ok(None)
}

/// Fills the buffer; `false` where the file ends before.
fn read_whole(file: &dyn VfsFile, buffer: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(buffer, at) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}
