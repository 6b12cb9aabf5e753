//! Finding the records of a segment that has no footer, or a damaged one.
//!
//! Records follow each other, so the scan goes from header to header. Where no header verifies it takes steps of
//! 32 bytes, the alignment of records, until one does. A header verifies only with the container's id, and only where it
//! was written, so what is left of another file, or a record inside a value that was copied from a container, is passed
//! over.
//! Memory is bounded by one window, time by the length of the file.
//!
//! Invariant: what a torn write left is passed over, for it does not verify; nothing is written.

use super::format::HEADER_BLOCK;
use crate::container::Listed;
use crate::error::{Error, Result};
use crate::record::{self, ALIGN, HEADER, Header};
use crate::types::Place;
use crate::vfs::VfsFile;
use std::io;
use std::path::Path;

/// Bytes read at a time.
const WINDOW: u64 = 1 << 20;
/// After a failed read, this much is tried, and then passed over.
const BLOCK: u64 = 4096;
/// A device that fails this often is failing altogether.
const PATIENCE: u32 = 16;

struct Window<'a> {
    file: &'a dyn VfsFile,
    end: u64,
    start: u64,
    bytes: Vec<u8>,
    /// Up to here single blocks are read, because a larger read failed.
    careful: u64,
}

impl Window<'_> {
    /// `len` bytes at `offset`; `None` if the file ends before.
    fn get(&mut self, offset: u64, len: usize) -> io::Result<Option<&[u8]>> {
        let Some(want) = offset.checked_add(len as u64).filter(|e| *e <= self.end) else { return Ok(None) };
        if offset < self.start || want > self.start + self.bytes.len() as u64 {
            let block = ((offset / BLOCK + 1) * BLOCK).max(want).min(self.end) - offset;
            let window = (self.end - offset).min(WINDOW.max(len as u64));
            if offset >= self.careful && self.fill(offset, window).is_err() {
                self.careful = offset + window;
            }
            if offset < self.careful {
                self.fill(offset, block)?;
            }
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        Ok(self.bytes.get(from..).and_then(|b| b.get(..len)))
    }

    fn fill(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.bytes.clear();
        self.bytes.resize(usize::try_from(len).unwrap_or(0), 0);
        self.start = offset;
        let n = self.file.read_at(&mut self.bytes, offset).inspect_err(|_| self.bytes.clear())?;
        self.bytes.truncate(n);
        if (n as u64) < len {
            // The file ends before it should.
            self.end = offset + n as u64;
        }
        Ok(())
    }

    /// The verified header of a record that begins here.
    fn header(&mut self, offset: u64, id: u64) -> io::Result<Option<Header>> {
        let end = self.end;
        let Some(fixed) = self.get(offset, HEADER)? else { return Ok(None) };
        let Ok((key, stored)) = record::peek_lengths(fixed) else { return Ok(None) };
        if offset + (HEADER + key) as u64 + stored as u64 > end {
            return Ok(None);
        }
        let front = self.get(offset, HEADER + key)?;
        let header = front.and_then(|bytes| record::parse_header(bytes, id).ok());
        Ok(header.filter(|h| u64::from(h.ordinal) * Place::UNIT == offset))
    }
}

/// Every record with a header that verifies, in order of position, and why part could not be read, if so.
///
/// # Errors
/// `Io` if the device fails again and again, or fails and nothing is found.
pub(super) fn scan(
    file: &dyn VfsFile,
    id: u64,
    path: &Path,
    end: u64,
) -> Result<(Vec<Listed>, Option<Error>)> {
    let mut window = Window { file, end, start: 0, bytes: Vec::new(), careful: 0 };
    let mut out = Vec::new();
    let mut failures = 0;
    let mut failure = None;
    let mut offset = HEADER_BLOCK;
    while offset + HEADER as u64 <= window.end {
        let Ok(position) = u32::try_from(offset / Place::UNIT) else { break };
        if position > Place::MAX_POSITION {
            break;
        }
        match window.header(offset, id) {
            Ok(Some(header)) => {
                let size = header.size();
                out.push(Listed {
                    position,
                    ident: header.head.ident,
                    version: header.head.version,
                    expires_at: header.head.expires_at,
                    bytes: u32::try_from(size).unwrap_or(u32::MAX),
                });
                offset += size;
            }
            Ok(None) => offset += ALIGN as u64,
            Err(e) => {
                failures += 1;
                if failures >= PATIENCE {
                    return Err(Error::io("scan", path, e));
                }
                failure = Some(e);
                offset = (offset / BLOCK + 1) * BLOCK;
            }
        }
    }
    match failure {
        Some(e) if out.is_empty() => Err(Error::io("scan", path, e)),
        failure => Ok((out, failure.map(|e| Error::io("scan", path, e)))),
    }
}
