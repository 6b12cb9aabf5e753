//! Reading a value file from one end to the other, whatever state it is in.
//!
//! The scan goes from block to block by their lengths and jumps over payloads that it does not need. Where no
//! block verifies it steps by 32 bytes until a block or a single record does. Memory is bounded by one chunk plus
//! the largest header (a record's key, a block's table). Regions that the disk refuses to read are stepped over
//! and counted, so that a caller can tell "not there" from "not reachable".

use super::block::{self, Block, Spot};
use super::index::{self, Extent};
use super::reader::MOST_AHEAD;
use super::value;
use crate::container::Listed;
use crate::record::{self, Header};
use crate::vfs::VfsFile;
use std::sync::Arc;

/// What is read at once at first, and after a jump: enough for the header of most blocks and records.
const FIRST: usize = 64 << 10;
/// What is stepped over when the disk refuses to read.
const PAGE: u64 = 4096;
/// After so many refused pages the rest of the file is given up: a dying disk takes seconds for each.
const MAX_REFUSED: u32 = 64;

/// One thing found in a value file.
#[derive(Debug)]
pub(super) enum Found {
    /// A block whose header verifies.
    Block(Block),
    /// A record, found without its block, and where it begins.
    Record(u64, Header),
}

/// A scan of one value file.
pub(super) struct Scan<'a> {
    file: Arc<dyn VfsFile>,
    container: u64,
    no: u16,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
    /// Bytes that are read at once while what is wanted is no farther ahead than that.
    ahead: usize,
    refused: u32,
    keep_on: &'a dyn Fn() -> bool,
}

impl<'a> Scan<'a> {
    /// A scan of the file's bytes up to `end`, `ahead` of them at once.
    pub fn new(file: Arc<dyn VfsFile>, container: u64, no: u16, end: u64, ahead: u64) -> Scan<'a> {
        let (buffer, buffer_at) = (Vec::new(), 0);
        let (keep_on, at) = (&|| true, value::DATA);
        let ahead = usize::try_from(ahead.min(MOST_AHEAD)).unwrap_or(0);
        Scan { file, container, no, at, end, buffer, buffer_at, ahead, refused: 0, keep_on }
    }

    /// Ends once `keep_on` says no, which is asked before each step: the disk may take long for each.
    pub fn while_true(self, keep_on: &'a dyn Fn() -> bool) -> Scan<'a> {
        Scan { keep_on, ..self }
    }

    /// Whether part of the file could not be read.
    pub fn refused(&self) -> bool {
        self.refused > 0
    }

    /// The bytes from `at`, `len` of them or as many as there are; empty if they cannot be read.
    fn view(&mut self, at: u64, len: usize) -> &[u8] {
        let end = self.end.min(at.saturating_add(len as u64));
        let have = self.buffer_at + self.buffer.len() as u64;
        if at < self.buffer_at || end > have {
            self.fill(at, len);
        }
        let have = self.buffer_at + self.buffer.len() as u64;
        let start = usize::try_from(at.saturating_sub(self.buffer_at)).unwrap_or(usize::MAX);
        let stop = usize::try_from(end.min(have).saturating_sub(self.buffer_at)).unwrap_or(0);
        self.buffer.get(start..stop).unwrap_or_default()
    }

    fn fill(&mut self, at: u64, len: usize) {
        // After a jump the next header is likely to be as far away again: what lies between is not read.
        let near = !self.buffer.is_empty() && at >= self.buffer_at && {
            at - self.buffer_at <= (self.buffer.len() as u64).saturating_add(self.ahead as u64)
        };
        let ahead = if near { self.ahead } else { self.ahead.min(FIRST) };
        self.buffer_at = at;
        let left = usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX);
        for want in [len.max(ahead), len] {
            self.buffer.resize(want.min(left), 0);
            match self.file.read_at(&mut self.buffer, at) {
                Ok(n) => {
                    self.buffer.truncate(n);
                    if n == 0 {
                        self.end = self.end.min(at);
                    }
                    return;
                }
                Err(_) => self.buffer.clear(),
            }
        }
        self.refused += 1;
    }

    /// The next thing found.
    pub fn next(&mut self) -> Option<Found> {
        // A length that a block claims may lead anywhere, but not back.
        while self.at.checked_add(record::HEADER as u64).is_some_and(|end| end <= self.end)
            && self.refused < MAX_REFUSED
            && (self.keep_on)()
        {
            let at = self.at;
            let refused = self.refused;
            let spot = Spot { container: self.container, file: self.no, offset: at };
            let claimed = block::peek_header_len(self.view(at, record::HEADER));
            if self.refused > refused {
                self.at = (at + 1).next_multiple_of(PAGE);
                continue;
            }
            if let Ok(len) = claimed
                && let Ok(found) = block::parse(self.view(at, len), spot)
            {
                self.at = at.saturating_add(found.len);
                return Some(Found::Block(found));
            }
            if let Some(header) = self.record(at) {
                self.at = at.saturating_add(header.size());
                return Some(Found::Record(at, header));
            }
            self.skip();
        }
        None
    }

    /// Steps to the next place at which a block or a record could begin.
    fn skip(&mut self) {
        self.at += record::ALIGN as u64;
        let from = usize::try_from(self.at.saturating_sub(self.buffer_at)).unwrap_or(usize::MAX);
        let rest = self.buffer.get(from..).unwrap_or_default();
        let next =
            rest.chunks(record::ALIGN).position(|c| matches!(c, [b'T', b'C', ..]) || c.len() < record::ALIGN);
        self.at += (next.unwrap_or(rest.len() / record::ALIGN) * record::ALIGN) as u64;
    }

    /// The record at an offset, its header and key verified.
    pub fn record(&mut self, at: u64) -> Option<Header> {
        let (key, _) = record::peek_lengths(self.view(at, record::HEADER)).ok()?;
        let container = self.container;
        record::parse_header(self.view(at, record::HEADER + key), container).ok()
    }
}

/// The extents of a value file, appended to `extents`. `watch` is shown all that is found. Returns whether all of the
/// file, as far as the scan went, could be read.
pub(super) fn extents(
    scan: &mut Scan,
    max: u64,
    extents: &mut Vec<Extent>,
    watch: &mut dyn FnMut(&Found),
) -> bool {
    while let Some(found) = scan.next() {
        let file = scan.no;
        watch(&found);
        let new = match found {
            Found::Block(b) => {
                let len = b.len.min(scan.end.saturating_sub(b.spot.offset));
                Extent { first: b.first, count: b.count(), file, offset: b.spot.offset, len }
            }
            Found::Record(offset, h) => {
                let len = h.size().min(scan.end.saturating_sub(offset));
                Extent { first: h.ordinal, count: 1, file, offset, len }
            }
        };
        index::push(extents, new, max);
    }
    !scan.refused()
}

/// Every record of a value file whose header verifies, appended to `listed`.
pub(super) fn list(scan: &mut Scan, listed: &mut Vec<Listed>) {
    let entry = |h: Header| Listed {
        position: h.ordinal,
        ident: h.head.ident,
        version: h.head.version,
        expires_at: h.head.expires_at,
        bytes: u32::try_from(h.size()).unwrap_or(u32::MAX),
    };
    while let Some(found) = scan.next() {
        match found {
            Found::Block(b) => {
                let after = scan.at;
                for (n, start, _) in b.records() {
                    if let Some(h) = scan.record(b.spot.offset + start).filter(|h| h.ordinal == n) {
                        listed.push(entry(h));
                    }
                }
                scan.at = after;
            }
            Found::Record(_, h) => listed.push(entry(h)),
        }
    }
}
