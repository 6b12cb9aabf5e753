//! A segment as its readers see it.
//!
//! Invariants:
//! - nothing beyond `readable` is ever looked at; `readable` only grows, and only over bytes that are on stable
//!   storage and never written again;
//! - an item is returned only if the header's checksum (seeded with the container's id) covers header and key,
//!   and the payload's checksum the bytes that are returned, and if its ordinal is the position asked for: what a
//!   disk returns from elsewhere in the segment may be an older value of the same key;
//! - a length found in a record is believed only for how much to read, and only within `readable`, until its
//!   header has verified; only then is memory of that size allocated;
//! - no read takes a lock that a writer holds while it waits for the disk;
//! - the file is opened when it is read, and kept in a bounded cache. A map needs no open file. Who reads a segment
//!   that was dropped meanwhile, and finds it neither mapped nor open, gets `Gone`, and looks the key up again.

use super::format::{self, HEADER_BLOCK, TRAILER};
use super::pin::{Mapped, Pins};
use super::residency::Residency;
use super::{ReadMode, examine, scan};
use crate::container::{Container, Listed, RawRecord};
use crate::error::{Error, IoContext, Result};
use crate::flaw::Flaw;
use crate::item::{Head, Item};
use crate::keys::{Keys, LastKeys};
use crate::openfiles::OpenFiles;
use crate::record::{self, HEADER, Header};
use crate::tierdir::{Dir, Lease};
use crate::types::{ContainerNo, MAX_KEY, Place};
use crate::vfs::VfsFile;
use bytes::Bytes;
use parking_lot::Mutex;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Values from this size on are borrowed from the map, where that is switched on.
pub(super) const BORROW_FROM: usize = 64 << 10;
/// Most of a damaged record that is copied to the quarantine.
const RAW_LIMIT: u64 = 64 << 20;
/// What is copied of a record whose lengths cannot be read.
const RAW_UNKNOWN: u64 = 4096;

/// How segments of a tier are read.
#[derive(Debug)]
pub(super) struct Reading {
    pub mode: ReadMode,
    pub borrow: bool,
    pub smallest: AtomicUsize,
    pub pins: Arc<Pins>,
    pub files: OpenFiles,
    /// Of the segment that was last found damaged.
    pub keys: LastKeys,
}

/// Footer entries of a segment that is being written, as they will stand in its footer. `None` in the segment
/// when it is sealed, or when its footer would not pay for itself.
#[derive(Debug, Default)]
pub(super) struct Directory {
    pub bytes: Vec<u8>,
}

/// One segment.
pub(super) struct Segment {
    no: ContainerNo,
    id: u64,
    path: PathBuf,
    /// It is being removed: no file of it is kept open any more.
    dropped: AtomicBool,
    readable: AtomicU64,
    footer: AtomicBool,
    directory: Mutex<Option<Directory>>,
    map: OnceLock<Option<Arc<Mapped>>>,
    residency: Residency,
    reading: Arc<Reading>,
    lease: Arc<Lease>,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Segment {
    /// A segment that is about to be written: nothing of it is readable.
    pub fn fresh(
        (no, id): (ContainerNo, u64),
        path: PathBuf,
        file: Arc<dyn VfsFile>,
        reading: Arc<Reading>,
        lease: Arc<Lease>,
    ) -> Segment {
        let residency = Residency::new(lease.size());
        reading.files.put(id, file);
        Segment {
            no,
            id,
            path,
            dropped: AtomicBool::new(false),
            readable: AtomicU64::new(0),
            footer: AtomicBool::new(false),
            directory: Mutex::new(Some(Directory::default())),
            map: OnceLock::new(),
            residency,
            reading,
            lease,
        }
    }

    /// A segment found at opening, `len` bytes long: all of it may be read, none is written any more.
    pub fn reopened(
        (no, id): (ContainerNo, u64),
        path: PathBuf,
        file: Arc<dyn VfsFile>,
        len: u64,
        reading: Arc<Reading>,
        lease: Arc<Lease>,
    ) -> Segment {
        let segment = Segment::fresh((no, id), path, file, reading, lease);
        segment.readable.store(len, Ordering::Release);
        segment.footer.store(true, Ordering::Release);
        *segment.directory.lock() = None;
        segment
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn dir(&self) -> &Arc<Dir> {
        self.lease.dir()
    }

    /// Lets readers see the bytes up to `end`, which are durable, and adds their footer entries (`None`: the
    /// segment will have no footer).
    pub fn publish(&self, end: u64, entries: Option<&[u8]>) {
        let mut directory = self.directory.lock();
        match (directory.as_mut(), entries) {
            (Some(d), Some(entries)) => d.bytes.extend_from_slice(entries),
            _ => *directory = None,
        }
        let before = self.readable.fetch_max(end, Ordering::AcqRel);
        drop(directory);
        if self.reading.mode == ReadMode::Map {
            self.residency.touch(before..end);
            if let Some(map) = self.map() {
                map.publish(end);
            }
        }
    }

    /// The footer entries published so far.
    pub fn entries(&self) -> Option<Vec<u8>> {
        self.directory.lock().as_ref().map(|d| d.bytes.clone())
    }

    /// Nothing more is appended; whether a footer stands in the file.
    pub fn sealed(&self, footer: bool) {
        self.footer.store(footer, Ordering::Release);
        *self.directory.lock() = None;
    }

    /// The segment is about to be removed: its file is let go of.
    pub fn dropping(&self) {
        self.dropped.store(true, Ordering::Release);
        self.reading.files.remove(self.id);
    }

    /// The open file. `Gone` if the segment was dropped.
    fn file(&self) -> Result<Arc<dyn VfsFile>> {
        let path = || self.path.clone();
        self.reading.files.open(self.id, self.no, &self.dropped, &*self.dir().vfs, path)
    }

    /// Begins a new generation of residency.
    pub fn age(&self) {
        self.residency.rotate();
    }

    fn readable(&self) -> u64 {
        self.readable.load(Ordering::Acquire)
    }

    fn damaged(&self, offset: u64, what: &str) -> Error {
        Error::corrupt(&self.path, offset, what)
    }

    /// Where the record of a position begins, and where what can be read ends.
    fn locate(&self, position: u32) -> Result<(u64, u64)> {
        let offset = u64::from(position) * Place::UNIT;
        let end = self.readable();
        if offset < HEADER_BLOCK {
            return Err(self.damaged(offset, "no record can begin in the header block"));
        }
        if offset.saturating_add(HEADER as u64) > end {
            return Err(self.damaged(offset, "no record can begin beyond the end"));
        }
        Ok((offset, end))
    }

    /// The map, made when it is first wanted; `None` where there is none: for good, unless the file could only not
    /// be opened just now.
    fn map(&self) -> Option<&Arc<Mapped>> {
        if self.reading.mode != ReadMode::Map {
            return None;
        }
        if let Some(made) = self.map.get() {
            return made.as_ref();
        }
        let file = self.file().ok()?;
        let made = self.map.get_or_init(|| {
            // A fresh segment is mapped whole, a reopened one as far as its file goes.
            let len = file.len().ok().filter(|n| *n > 0)?.min(self.lease.size());
            match file.map(len) {
                Ok(Some(map)) => {
                    map.publish(self.readable());
                    Some(Arc::new(Mapped::new(map, self.lease.clone())))
                }
                Ok(None) => None,
                Err(e) => {
                    tracing::debug!(path = %self.path.display(), error = %e, "no map: reading with pread");
                    None
                }
            }
        });
        made.as_ref()
    }

    /// The bytes of a range if they are mapped and likely in the page cache.
    fn resident(&self, range: Range<u64>) -> Option<(&Arc<Mapped>, &[u8])> {
        if !self.residency.holds(range.clone()) {
            return None;
        }
        let map = self.map()?;
        Some((map, map.slice(range)?))
    }

    /// How many bytes header and key, and how many the payload take, by the unverified first bytes of a record;
    /// both lie within what is readable.
    fn lengths(&self, fixed: &[u8], offset: u64, end: u64) -> Result<(usize, usize)> {
        let (key, stored) = record::peek_lengths(fixed).map_err(|what| self.damaged(offset, what))?;
        let size = (HEADER + key) as u64 + stored as u64;
        if offset.saturating_add(size) > end {
            return Err(self.damaged(offset, "the record reaches beyond the end"));
        }
        Ok((HEADER + key, stored))
    }

    fn parse(&self, bytes: &[u8], offset: u64) -> Result<Header> {
        let header = record::parse_header(bytes, self.id).map_err(|what| self.damaged(offset, what))?;
        if u64::from(header.ordinal) * Place::UNIT != offset {
            return Err(self.damaged(offset, "another record stands here"));
        }
        Ok(header)
    }

    /// The item through the map; `None` if not all of it is likely in the page cache.
    fn read_mapped(&self, offset: u64, end: u64, most: u64) -> Result<Option<Item>> {
        let Some((_, fixed)) = self.resident(offset..offset + HEADER as u64) else { return Ok(None) };
        let (front, stored) = self.lengths(fixed, offset, end)?;
        let range = offset..offset + (front + stored) as u64;
        let Some((map, bytes)) = self.resident(range.clone()) else { return Ok(None) };
        let (front_bytes, payload) =
            bytes.split_at_checked(front).ok_or_else(|| self.damaged(offset, "the record is cut short"))?;
        let header = self.parse(front_bytes, offset)?;
        header.head.within(most)?;
        self.residency.touch(range.clone());
        let borrowed = if self.reading.borrow && stored >= BORROW_FROM {
            self.reading.pins.borrow(map, range.start + front as u64..range.end)
        } else {
            None
        };
        let payload = borrowed.unwrap_or_else(|| aligned_copy(payload));
        header.verify_payload(&payload).map_err(|what| self.damaged(offset, what))?;
        Ok(Some(header.into_item(payload)))
    }

    /// Header and key from the disk, with what was read behind them.
    fn front_from_disk(
        &self,
        file: &dyn VfsFile,
        (offset, end): (u64, u64),
        want: usize,
    ) -> Result<(Header, Vec<u8>)> {
        let want = usize::try_from(end - offset).unwrap_or(usize::MAX).min(want.max(HEADER));
        let mut bytes = vec![0; want];
        if let Err(e) = file.read_exact_at(&mut bytes, offset) {
            // What failed may stand behind the record: try the record alone.
            bytes.truncate(HEADER);
            if want == HEADER {
                return Err(Error::io("read", &self.path, e));
            }
            file.read_exact_at(&mut bytes, offset).at("read", &self.path)?;
        }
        let (front, _) = self.lengths(&bytes, offset, end)?;
        self.extend(file, &mut bytes, offset, front)?;
        Ok((self.parse(&bytes, offset)?, bytes))
    }

    /// Reads on until `bytes`, which stand at `offset`, are at least `len`.
    fn extend(&self, file: &dyn VfsFile, bytes: &mut Vec<u8>, offset: u64, len: usize) -> Result<()> {
        let have = bytes.len();
        if have < len {
            bytes.resize(len, 0);
            let rest = bytes.get_mut(have..).unwrap_or_default();
            file.read_exact_at(rest, offset + have as u64).at("read", &self.path)?;
        }
        Ok(())
    }

    fn read_disk(&self, offset: u64, end: u64, most: u64) -> Result<Item> {
        let file = self.file()?;
        let (header, bytes) =
            self.front_from_disk(&*file, (offset, end), self.reading.smallest.load(Ordering::Relaxed))?;
        header.head.within(most)?;
        let stored = header.head.stored_len as usize;
        let front = header.payload_at();
        let behind = bytes.get(front..).unwrap_or_default();
        let payload = match behind.get(..stored) {
            Some(all) => Bytes::copy_from_slice(all),
            None => {
                let mut payload = Vec::with_capacity(stored);
                payload.extend_from_slice(behind);
                self.extend(&*file, &mut payload, offset + front as u64, stored)?;
                Bytes::from(payload)
            }
        };
        header.verify_payload(&payload).map_err(|what| self.damaged(offset, what))?;
        self.residency.touch(offset..offset + (front + stored) as u64);
        Ok(header.into_item(payload))
    }

    /// The footer's bytes and the end of the records; `None` if there is no footer or it does not verify.
    fn footer(&self) -> Option<(Vec<u8>, u64)> {
        let file = self.file().ok()?;
        let at = file.len().ok()?.checked_sub(TRAILER)?;
        let mut block = [0; format::BLOCK];
        file.read_exact_at(&mut block, at).ok()?;
        let trailer = format::parse_trailer(&block, at).ok().filter(|t| t.identity.id == self.id)?;
        let entries = examine::read_footer(&*file, &trailer, at, self.id)?;
        Some((entries, trailer.data_end))
    }

    /// The footer's entries; `None` if there is no footer or it does not verify.
    fn list_footer(&self) -> Option<Vec<Listed>> {
        let (entries, data_end) = self.footer()?;
        format::parse_entries(&entries, data_end)
    }
}

impl Container for Segment {
    fn read_up_to(&self, position: u32, most: u64) -> Result<Item> {
        let (offset, end) = self.locate(position)?;
        match self.read_mapped(offset, end, most)? {
            Some(item) => Ok(item),
            None => self.read_disk(offset, end, most),
        }
    }

    fn head(&self, position: u32) -> Result<Head> {
        let (offset, end) = self.locate(position)?;
        if let Some((_, fixed)) = self.resident(offset..offset + HEADER as u64) {
            let (front, _) = self.lengths(fixed, offset, end)?;
            let range = offset..offset + front as u64;
            if let Some((_, bytes)) = self.resident(range.clone()) {
                self.residency.touch(range);
                return Ok(self.parse(bytes, offset)?.head);
            }
        }
        let want = self.reading.smallest.load(Ordering::Relaxed).min(HEADER + MAX_KEY);
        let (header, bytes) = self.front_from_disk(&*self.file()?, (offset, end), want)?;
        self.residency.touch(offset..offset + bytes.len() as u64);
        Ok(header.head)
    }

    fn list(&self) -> Result<Vec<Listed>> {
        self.list_reachable().map(|(listed, _)| listed)
    }

    fn list_reachable(&self) -> Result<(Vec<Listed>, Option<Error>)> {
        let being_written = {
            let directory = self.directory.lock();
            directory.as_ref().map(|d| (d.bytes.clone(), self.readable()))
        };
        if let Some((entries, end)) = being_written
            && let Some(listed) = format::parse_entries(&entries, end)
        {
            return Ok((listed, None));
        }
        if self.footer.load(Ordering::Acquire)
            && let Some(listed) = self.list_footer()
        {
            return Ok((listed, None));
        }
        scan::scan(&*self.file()?, self.id, &self.path, self.readable())
    }

    fn raw(&self, position: u32) -> Option<RawRecord> {
        let (offset, end) = self.locate(position).ok()?;
        let file = self.file().ok()?;
        let mut fixed = [0; HEADER];
        file.read_exact_at(&mut fixed, offset).ok()?;
        let size = match self.lengths(&fixed, offset, end) {
            Ok((front, stored)) => (front + stored) as u64,
            Err(_) => RAW_UNKNOWN.min(end - offset),
        };
        let mut bytes = vec![0; usize::try_from(size.min(RAW_LIMIT)).ok()?];
        let n = file.read_at(&mut bytes, offset).ok()?;
        bytes.truncate(n);
        Some(RawRecord { path: self.path.clone(), offset, bytes })
    }

    fn occupied(&self) -> u64 {
        self.lease.size()
    }

    fn key(&self, position: u32) -> Option<Bytes> {
        if let Ok(head) = self.head(position) {
            return Some(head.key);
        }
        // There is none before the segment is sealed.
        if !self.footer.load(Ordering::Acquire) {
            return None;
        }
        let each = |keys: &mut Keys| {
            let (entries, _) = self.footer().unwrap_or_default();
            format::keys_in(&entries).for_each(|(position, key)| keys.enter(position, key));
        };
        self.reading.keys.of(self.id, || Keys::of(each)).key(position)
    }

    fn examine(&self, live: &[u32], each: &mut dyn FnMut(u32, Result<Item>)) -> Vec<Flaw> {
        live.iter().for_each(|position| each(*position, self.read(*position)));
        match self.file() {
            Ok(file) => examine::flaws(&*file, &self.path, self.id),
            // Each of its records was told of.
            Err(_) => Vec::new(),
        }
    }
}

/// A copy that keeps clear of a trap of the processor: where source and target lie less than a vector register
/// apart modulo 4096, loads wait for stores that they only seem to depend on, and a copy of 16 KiB can fall to a
/// thirtieth of its speed.
fn aligned_copy(source: &[u8]) -> Bytes {
    const PAGE: usize = 4096;
    const CLEAR: usize = 64;
    let close = |target: &Vec<u8>| {
        let apart = (target.as_ptr() as usize).wrapping_sub(source.as_ptr() as usize) % PAGE;
        !(CLEAR..=PAGE - CLEAR).contains(&apart)
    };
    let mut target = Vec::with_capacity(source.len());
    if source.len() < PAGE || !close(&target) {
        target.extend_from_slice(source);
        return Bytes::from(target);
    }
    let mut target = Vec::with_capacity(source.len() + 2 * CLEAR);
    let shift = if close(&target) { 2 * CLEAR } else { 0 };
    target.resize(shift, 0);
    target.extend_from_slice(source);
    Bytes::from(target).slice(shift..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_a_copy_at_any_alignment() {
        let page: Vec<u8> = (0..20_000u32).map(|n| (n * 7) as u8).collect();
        for start in (0..4096).step_by(31) {
            let source = &page[start..start + 9000];
            assert_eq!(aligned_copy(source), source);
        }
    }
}
