//! Every record of a pack: from the central directory, and where that is damaged, from the local headers.
//!
//! Invariants: an entry is listed only if its checksum matched and it stands where it says; damage makes the list
//! shorter, or sends it to the local headers, and is never an error; memory is bounded by the list and a window of as
//! much as is read at once, whatever lengths the file claims.

use super::entry::{self, Local, SIGNATURE};
use crate::container::Listed;
use crate::record::ALIGN;
use crate::types::Place;
use crate::vfs::VfsFile;
use rawzip::{ReaderAt, ZipLocator};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Room for one entry of the central directory with the longest key; also what is read of it at once.
const DIRECTORY_BUFFER: usize = 256 << 10;
/// How far from the end of the file the end of the central directory is looked for: the comment is one line.
const SEARCH: u64 = 64 << 10;

/// Every record that verifies, in order of position. Local headers are read `ahead` bytes at once, or one of them.
///
/// # Errors
///
/// Of reading only; damage makes the list shorter.
pub(super) fn list(file: &dyn VfsFile, len: u64, seed: u64, ahead: usize) -> io::Result<Vec<Listed>> {
    let mut found = BTreeMap::new();
    each(file, len, seed, ahead, &mut |meta| enter(&mut found, meta))?;
    Ok(found.into_values().collect())
}

/// Gives every record that verifies, in any order, and perhaps twice.
///
/// # Errors
///
/// Of reading.
pub(super) fn each(
    file: &dyn VfsFile,
    len: u64,
    seed: u64,
    ahead: usize,
    found: &mut dyn FnMut(&entry::Meta),
) -> io::Result<()> {
    if !from_directory(file, len, seed, &mut |meta, _| found(meta))? {
        from_headers(file, len, seed, ahead, found)?;
    }
    Ok(())
}

fn enter(found: &mut BTreeMap<u32, Listed>, meta: &entry::Meta) {
    let listed = Listed {
        position: meta.position,
        ident: meta.head.ident,
        version: meta.head.version,
        expires_at: meta.head.expires_at,
        bytes: meta.bytes,
    };
    found.insert(meta.position, listed);
}

/// Gives every entry of the central directory that verifies, and where in the file that stands; `false` if anything about
/// it is wrong.
///
/// # Errors
///
/// Of reading.
pub(super) fn from_directory(
    file: &dyn VfsFile,
    len: u64,
    seed: u64,
    found: &mut dyn FnMut(&entry::Meta, u64),
) -> io::Result<bool> {
    // Nothing that stands in a file may bring the process down, whatever arithmetic the ZIP reader does with it.
    catch_unwind(AssertUnwindSafe(|| directory(file, len, seed, found))).unwrap_or(Ok(false))
}

fn directory(
    file: &dyn VfsFile,
    len: u64,
    seed: u64,
    found: &mut dyn FnMut(&entry::Meta, u64),
) -> io::Result<bool> {
    let reader = Reader { file, len, trouble: RefCell::default() };
    let mut buffer = vec![0; DIRECTORY_BUFFER];
    let located = ZipLocator::new().max_search_space(SEARCH).locate_in_reader(reader, &mut buffer, len);
    let archive = match located {
        Ok(archive) => archive,
        Err((reader, _)) => return reader.trouble.into_inner().map_or(Ok(false), Err),
    };
    let mut whole = true;
    let mut seen = 0_u64;
    let mut entries = archive.entries(&mut buffer);
    loop {
        match entries.next_entry() {
            Ok(Some(e)) => {
                seen += 1;
                let name = e.file_path();
                match entry::parse(e.extra_fields().remaining_bytes(), name.as_bytes(), seed) {
                    Ok(meta) if u64::from(meta.position) * Place::UNIT == e.local_header_offset() => {
                        found(&meta, e.central_directory_offset());
                    }
                    _ => whole = false,
                }
            }
            Ok(None) => break,
            Err(_) => {
                whole = false;
                break;
            }
        }
    }
    let complete = whole && seen == archive.entries_hint();
    archive.into_inner().trouble.into_inner().map_or(Ok(complete), Err)
}

/// Lists by looking for a local header at every position, and past each one that verifies.
fn from_headers(
    file: &dyn VfsFile,
    len: u64,
    seed: u64,
    ahead: usize,
    found: &mut dyn FnMut(&entry::Meta),
) -> io::Result<()> {
    let mut window = Window { file, len, at: 0, ahead, bytes: Vec::new() };
    let mut offset = 0_u64;
    while offset < len {
        let Ok(position) = u32::try_from(offset / Place::UNIT) else { break };
        let meta = if window.from(offset, SIGNATURE.len())?.starts_with(SIGNATURE) {
            window.entry(offset, seed, position)?
        } else {
            None
        };
        match meta {
            Some(meta) => {
                found(&meta);
                let past = offset + meta.payload_end() + entry::DESCRIPTOR as u64;
                offset = past.next_multiple_of(ALIGN as u64);
            }
            None => offset += Place::UNIT,
        }
    }
    Ok(())
}

/// A piece of the file.
struct Window<'a> {
    file: &'a dyn VfsFile,
    len: u64,
    at: u64,
    /// Bytes that are read at once.
    ahead: usize,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// What is known from `offset` on: at least `need` bytes, unless the file ends before.
    fn from(&mut self, offset: u64, need: usize) -> io::Result<&[u8]> {
        let end = self.at + self.bytes.len() as u64;
        let wanted = (offset + need as u64).min(self.len);
        if offset < self.at || wanted > end {
            let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
            self.bytes.resize(self.ahead.max(need).min(left), 0);
            self.at = offset;
            let n = self.file.read_at(&mut self.bytes, offset)?;
            self.bytes.truncate(n);
        }
        let skip = usize::try_from(offset - self.at).unwrap_or(usize::MAX);
        Ok(self.bytes.get(skip..).unwrap_or_default())
    }

    /// The entry at an offset, if one verifies there.
    fn entry(&mut self, offset: u64, seed: u64, position: u32) -> io::Result<Option<entry::Meta>> {
        let mut parsed = entry::parse_local(self.from(offset, entry::LOCAL)?, seed, position);
        if let Local::Needs(n) = parsed {
            parsed = entry::parse_local(self.from(offset, n)?, seed, position);
        }
        match parsed {
            Local::Entry(meta) => Ok(Some(meta)),
            Local::Needs(_) | Local::Bad(_) => Ok(None),
        }
    }
}

/// The file for the ZIP reader. Keeps the first error of the disk, to tell it from damage.
struct Reader<'a> {
    file: &'a dyn VfsFile,
    len: u64,
    trouble: RefCell<Option<io::Error>>,
}

impl ReaderAt for Reader<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        // A forged offset is not passed to the system, which would call it an invalid argument.
        if offset >= self.len {
            return Ok(0);
        }
        self.file.read_at(buffer, offset).map_err(|e| {
            let kind = e.kind();
            self.trouble.borrow_mut().get_or_insert(e);
            io::Error::from(kind)
        })
    }
}
