//! What of a segment is not needed to read its records, and is looked at all the same: both copies of the header, the
//! trailer, the footer. A segment without them is listed by a scan, and one that has lost all of them is nobody's.
//!
//! Invariants: nothing is written; a trailer of zeros is no damage, for a crash leaves it.

use super::format::{self, Identity, SECOND_COPY, TRAILER, Unfit};
use crate::flaw::{Flaw, Part};
use crate::record;
use crate::vfs::VfsFile;
use std::path::Path;

/// What is wrong around the records of the segment with this id.
pub(super) fn flaws(file: &dyn VfsFile, path: &Path, id: u64) -> Vec<Flaw> {
    let mut found = Vec::new();
    let size = header(file, path, id, &mut found);
    match file.len() {
        Ok(len) if size.is_some_and(|size| size != len) => {
            let why = format!("it is {len} bytes long instead of {}", size.unwrap_or_default());
            found.push(Flaw::new(path, Part::Container, why));
        }
        Ok(len) => found.extend(footer(file, len, id).err().map(|why| Flaw::new(path, Part::Footer, why))),
        Err(e) => found.push(Flaw::new(path, Part::Container, format!("its length cannot be told: {e}"))),
    }
    found
}

/// Looks at both copies of the header; gives the size that they say.
fn header(file: &dyn VfsFile, path: &Path, id: u64, found: &mut Vec<Flaw>) -> Option<u64> {
    let mut size = None;
    for (no, at) in [0, SECOND_COPY].into_iter().enumerate() {
        let mut block = [0; format::BLOCK];
        let copy = file
            .read_exact_at(&mut block, at as u64)
            .map_err(|e| e.to_string())
            .and_then(|()| format::parse_header_copy(&block, at).map_err(|e| unfit(&e)))
            .and_then(|identity| of_this(&identity, id));
        match copy {
            Ok(identity) => size = Some(identity.size),
            Err(why) => found.push(Flaw::new(path, Part::Header, format!("copy {} of 2: {why}", no + 1))),
        }
    }
    size
}

fn of_this(identity: &Identity, id: u64) -> Result<Identity, String> {
    if identity.id == id { Ok(*identity) } else { Err("it is of another segment".to_owned()) }
}

fn unfit(why: &Unfit) -> String {
    match why {
        Unfit::Newer(found) => format!("format {found}, which is newer"),
        Unfit::Damaged(why) => (*why).to_owned(),
    }
}

/// Checks trailer and footer. Where a trailer was never written there are zeros: the segment was not sealed before its
/// process ended, which is no damage.
fn footer(file: &dyn VfsFile, len: u64, id: u64) -> Result<(), String> {
    let at = len.checked_sub(TRAILER).ok_or("there is no room for a trailer")?;
    let mut block = [0; format::BLOCK];
    file.read_exact_at(&mut block, at).map_err(|e| format!("the trailer cannot be read: {e}"))?;
    if block.iter().all(|b| *b == 0) {
        return Ok(());
    }
    let trailer = format::parse_trailer(&block, at).map_err(|e| format!("the trailer: {}", unfit(&e)))?;
    of_this(&trailer.identity, id).map_err(|why| format!("the trailer: {why}"))?;
    if trailer.has_footer && read_footer(file, &trailer, at, id).is_none() {
        return Err("its checksum does not match, or it cannot be read".to_owned());
    }
    Ok(())
}

/// The bytes of the footer that a trailer at `at` tells of, if they verify.
pub(super) fn read_footer(
    file: &dyn VfsFile,
    trailer: &format::Trailer,
    at: u64,
    id: u64,
) -> Option<Vec<u8>> {
    // A footer is at most an eighth of its segment, so the file bounds what is allocated here.
    if !trailer.has_footer || trailer.footer_at.checked_add(trailer.footer_len)? != at {
        return None;
    }
    let mut entries = vec![0; usize::try_from(trailer.footer_len).ok()?];
    file.read_exact_at(&mut entries, trailer.footer_at).ok()?;
    (record::checksum(id, &entries) == trailer.footer_sum).then_some(entries)
}
