//! Reading records of a generation.
//!
//! The way goes: header of the block in the cache of headers → one `pread` of the record; else extent from the
//! index → one `pread` of the extent (about a block) → the record in it. Whatever the index said, a record is
//! returned only if its header, key and payload verify under the generation's id and it carries the record number
//! asked for.

use super::block::{self, Block, Spot};
use super::examine;
use super::generation::Generation;
use super::index::Extent;
use super::scan::{self, Scan};
use super::value;
use crate::container::{Container, Listed, RawRecord};
use crate::error::{Error, IoContext, Result};
use crate::flaw::Flaw;
use crate::item::{Head, Item};
use crate::record::{self, Header};
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most bytes that are read at once of what follows a record, or by a scan.
pub(super) const MOST_AHEAD: u64 = 4 << 20;
/// Most bytes that go to the quarantine for one record.
const MAX_RAW: u64 = 64 << 20;
/// Enough for a block header of one record, a record header and the longest key.
const HEAD_PREFIX: u64 = 40 << 10;

/// What an extent led to.
struct Fetched {
    path: PathBuf,
    /// Where in the file the buffer begins.
    offset: u64,
    buffer: Vec<u8>,
    /// Where in the buffer the record begins and ends.
    start: usize,
    end: usize,
}

/// Why an extent led to nothing.
enum Miss {
    /// The bytes could not be read.
    Error(Error),
    /// The record is not there; damage, or the index is wrong.
    Absent(Error),
}

impl Generation {
    /// The first `most` bytes of a record, or all of it, and what stands around it.
    fn fetch(self: &Arc<Self>, record: u32, most: u64) -> Result<Fetched> {
        if let Some(block) = self.core.tables.get(self.id, record)
            && let Ok(fetched) = self.fetch_known(&block, record, most)
        {
            return Ok(fetched);
        }
        loop {
            let (extent, certain) = self.lookup(record)?;
            let missed = match extent {
                Some(extent) => match self.fetch_extent(extent, record, most) {
                    Ok(fetched) => return Ok(fetched),
                    Err(Miss::Error(e)) => return Err(e),
                    Err(Miss::Absent(e)) => e,
                },
                None => {
                    Error::corrupt(&self.path, 0, format!("record {record} is in none of the value files"))
                }
            };
            if certain {
                return Err(missed);
            }
            warn_seldom!(path = %self.path.display(), record, "HDD index led astray; it is rebuilt");
            self.distrust();
        }
    }

    /// A record of a block whose header is known: one read of what is wanted.
    fn fetch_known(&self, block: &Block, record: u32, most: u64) -> Result<Fetched> {
        let path = self.value_path(block.spot.file);
        let (start, end) =
            block.record(record).ok_or_else(|| Error::corrupt(&path, block.spot.offset, "no such record"))?;
        let offset = block.spot.offset + start;
        let buffer = self.pread(block.spot.file, &path, offset, (end - start).min(most))?;
        let end = buffer.len();
        Ok(Fetched { path, offset, buffer, start: 0, end })
    }

    /// Bytes of a value file, as far as it can be read: a block's header may claim any length.
    fn pread(&self, no: u16, path: &Path, offset: u64, len: u64) -> Result<Vec<u8>> {
        let file = self.file(no)?;
        let len = len.min(self.end(no).saturating_sub(offset));
        let mut buffer = vec![0; usize::try_from(len).unwrap_or(0)];
        let n = file.read_at(&mut buffer, offset).at("read", path)?;
        buffer.truncate(n);
        Ok(buffer)
    }

    fn fetch_extent(&self, extent: Extent, record: u32, most: u64) -> Result<Fetched, Miss> {
        let path = self.value_path(extent.file);
        let absent = |what: &str| Miss::Absent(Error::corrupt(&path, extent.offset, what));
        let end = self.end(extent.file);
        let inside = extent.offset >= value::DATA
            && extent.offset.is_multiple_of(record::ALIGN as u64)
            && extent.offset.checked_add(extent.len).is_some_and(|e| e <= end);
        if !inside {
            return Err(absent("the index points outside of the value file"));
        }
        let small = extent.len <= 2 * self.core.extent_max();
        let len = if small { extent.len } else { extent.len.min(most) };
        let buffer = self.pread(extent.file, &path, extent.offset, len).map_err(Miss::Error)?;
        let spot = Spot { container: self.id, file: extent.file, offset: extent.offset };
        match self.find_in(&buffer, spot, record) {
            Some((start, end)) => Ok(Fetched { path, offset: extent.offset, buffer, start, end }),
            None => Err(absent(&format!("record {record} is not where it was written"))),
        }
    }

    /// Where in a buffer read at `spot` a record is: by the blocks in it, and where none verifies by itself.
    fn find_in(&self, buffer: &[u8], spot: Spot, record: u32) -> Option<(usize, usize)> {
        let mut at = 0;
        while let Some(rest) = buffer.get(at..).filter(|r| r.len() >= record::HEADER) {
            let here = Spot { offset: spot.offset + at as u64, ..spot };
            let step = if !rest.starts_with(b"TC") {
                record::ALIGN
            } else if let Ok(block) = block::parse(rest, here) {
                if let Some((start, end)) = block.record(record) {
                    self.core.tables.put(block);
                    let start = at.saturating_add(usize::try_from(start).ok()?);
                    let end = at.saturating_add(usize::try_from(end).ok()?).min(buffer.len());
                    return (start < end).then_some((start, end));
                }
                usize::try_from(block.len).ok()?
            } else {
                match record::parse_header(rest, self.id) {
                    Ok(h) if h.ordinal == record => {
                        let end = at.saturating_add(usize::try_from(h.size()).ok()?);
                        return Some((at, end.min(buffer.len())));
                    }
                    Ok(h) => usize::try_from(h.size()).ok()?,
                    Err(_) => record::ALIGN,
                }
            };
            at = at.saturating_add(step);
        }
        None
    }

    /// See [`Container::following`]. A record that stands in no block is a large one, with no neighbours to speak of.
    fn following(self: &Arc<Self>, record: u32, bytes: u64) -> Result<Vec<(u32, Item)>> {
        self.fetch(record, HEAD_PREFIX)?;
        let Some(block) = self.core.tables.get(self.id, record) else { return Ok(Vec::new()) };
        let Some((_, end)) = block.record(record) else { return Ok(Vec::new()) };
        let (no, begin) = (block.spot.file, block.spot.offset.saturating_add(end));
        let buffer = self.pread(no, &self.value_path(no), begin, bytes)?;
        let mut found = Vec::new();
        // The rest of its own block, then whole blocks.
        let rest = block
            .records()
            .filter(|(n, ..)| *n > record)
            .map(|(n, start, stop)| (n, start - end, stop - end));
        if !self.take(rest, 0, &buffer, &mut found) {
            return Ok(found);
        }
        let mut at = usize::try_from(block.len.saturating_sub(end)).unwrap_or(usize::MAX);
        while let Some(bytes) = buffer.get(at..).filter(|b| b.len() >= record::HEADER) {
            let spot = Spot { container: self.id, file: no, offset: begin + at as u64 };
            let Ok(next) = block::parse(bytes, spot) else { break };
            if !self.take(next.records(), at, &buffer, &mut found) {
                break;
            }
            at = at.saturating_add(usize::try_from(next.len).unwrap_or(usize::MAX));
        }
        Ok(found)
    }

    /// Takes records that stand so far behind `at` in a buffer, until one is not whole or does not verify; says whether
    /// none was.
    fn take(
        &self,
        records: impl Iterator<Item = (u32, u64, u64)>,
        at: usize,
        buffer: &[u8],
        found: &mut Vec<(u32, Item)>,
    ) -> bool {
        for (no, start, end) in records {
            let range = |n: u64| usize::try_from(n).ok().and_then(|n| n.checked_add(at));
            let bytes = range(start).zip(range(end)).and_then(|(start, end)| buffer.get(start..end));
            let Some(item) = bytes.and_then(|bytes| self.item(no, bytes)) else { return false };
            found.push((no, item));
        }
        true
    }

    /// The record that these bytes are, if they are this one's.
    fn item(&self, record: u32, bytes: &[u8]) -> Option<Item> {
        let header = record::parse_header(bytes, self.id).ok().filter(|h| h.ordinal == record)?;
        let start = header.payload_at();
        let payload = bytes.get(start..start.checked_add(header.head.stored_len as usize)?)?;
        header.verify_payload(payload).ok()?;
        Some(header.into_item(Bytes::copy_from_slice(payload)))
    }

    fn header(&self, fetched: &Fetched, record: u32) -> Result<Header> {
        let offset = fetched.offset + fetched.start as u64;
        let damaged = |what| Error::corrupt(&fetched.path, offset, what);
        let bytes = fetched.buffer.get(fetched.start..fetched.end).unwrap_or_default();
        let header = record::parse_header(bytes, self.id).map_err(damaged)?;
        if header.ordinal != record {
            return Err(damaged("another record stands here"));
        }
        Ok(header)
    }
}

/// A generation as the table of containers holds it.
#[derive(Debug)]
pub(super) struct Handle(pub Arc<Generation>);

impl Container for Handle {
    fn read_up_to(&self, position: u32, most: u64) -> Result<Item> {
        // What does not fit into this is too long: block header, record header and key are in the prefix.
        let fetched = self.0.fetch(position, most.saturating_add(HEAD_PREFIX))?;
        let header = self.0.header(&fetched, position)?;
        header.head.within(most)?;
        let offset = fetched.offset + fetched.start as u64;
        let damaged = |what| Error::corrupt(&fetched.path, offset, what);
        let start = fetched.start + header.payload_at();
        let end = start + header.head.stored_len as usize;
        let payload = fetched.buffer.get(start..end.min(fetched.end)).unwrap_or_default();
        header.verify_payload(payload).map_err(damaged)?;
        // A payload that is most of what was read takes the buffer over; a small one does not pin a block.
        let payload = if payload.len() >= fetched.buffer.len() / 2 {
            Bytes::from(fetched.buffer).slice(start..end)
        } else {
            Bytes::copy_from_slice(payload)
        };
        Ok(header.into_item(payload))
    }

    fn following(&self, position: u32, bytes: u64) -> Result<Vec<(u32, Item)>> {
        self.0.following(position, bytes.min(MOST_AHEAD))
    }

    fn head(&self, position: u32) -> Result<Head> {
        let fetched = self.0.fetch(position, HEAD_PREFIX)?;
        self.0.header(&fetched, position).map(|h| h.head)
    }

    fn list(&self) -> Result<Vec<Listed>> {
        self.list_reachable().map(|(listed, _)| listed)
    }

    fn list_reachable(&self) -> Result<(Vec<Listed>, Option<Error>)> {
        let mut listed = Vec::new();
        let values = self.0.values();
        let (total, mut failed, mut gap) = (values.len(), 0, None);
        for (no, end) in values {
            let file = match self.0.file(no) {
                Ok(file) => file,
                Err(e @ Error::Gone(_)) => return Err(e),
                Err(e) => {
                    warn_seldom!(path = %self.0.path.display(), file = no, error = %e, "cannot open a value file");
                    failed += 1;
                    if failed == total {
                        return Err(e);
                    }
                    gap = Some(e);
                    continue;
                }
            };
            let mut scan = Scan::new(file, self.0.id, no, end, self.0.core.read_ahead());
            scan::list(&mut scan, &mut listed);
            if scan.refused() {
                warn_seldom!(path = %self.0.path.display(), file = no, "part of a value file cannot be read");
                let why = std::io::Error::other("part of it cannot be read");
                gap = Some(Error::io("list", self.0.value_path(no), why));
            }
        }
        // That is a device that cannot be reached, not a generation without records.
        if let Some(e) = gap.take_if(|_| listed.is_empty()) {
            return Err(e);
        }
        listed.sort_by_key(|l| l.position);
        listed.dedup_by_key(|l| l.position);
        Ok((listed, gap))
    }

    fn raw(&self, position: u32) -> Option<RawRecord> {
        let generation = &self.0;
        if let Ok(fetched) = generation.fetch(position, u64::MAX) {
            let end = fetched.end.min(fetched.start.saturating_add(MAX_RAW as usize));
            let bytes = fetched.buffer.get(fetched.start..end)?.to_vec();
            let offset = fetched.offset + fetched.start as u64;
            return Some(RawRecord { path: fetched.path, offset, bytes });
        }
        // Nothing verifies: the whole stretch in which the record was.
        let extent = generation.lookup(position).ok()?.0?;
        let path = generation.value_path(extent.file);
        let bytes = generation.pread(extent.file, &path, extent.offset, extent.len.min(MAX_RAW)).ok()?;
        Some(RawRecord { path, offset: extent.offset, bytes })
    }

    fn occupied(&self) -> u64 {
        self.0.occupied()
    }

    fn examine(&self, live: &[u32], each: &mut dyn FnMut(u32, Result<Item>)) -> Vec<Flaw> {
        examine::examine(&self.0, self, live, each)
    }
}
