//! Group commit into the segments that are being written: one for new records, one for those known to be hot.
//!
//! A batch goes through in *runs*, one for each segment that it reaches: records are encoded into a buffer of at
//! most 4 MiB, appended, and synced once; then they are published, and their places are known. A run that fills
//! its segment writes the footer before that sync. Payloads from 256 KiB are written from where they stand.
//!
//! Invariants: see the module `ssd`. Room for the footer is kept free while a segment fills, so that a full
//! segment always has one, unless it would take more than an eighth of the segment: then reading it would not be
//! worth much more than a scan, and its room is given to records.
//!
//! When a write or sync fails, the segment is left as it was at the last sync, and what is left of the batch is
//! tried once in a new segment, in another directory if there is one. What the failed run left on disk is
//! garbage: no place in it was handed out.
//!
//! What a crash leaves is told at the module `ssd`, and step by step in §12 of the design.

use super::Ssd;
use super::format::{self, HEADER_BLOCK, Identity, TRAILER, Trailer};
use super::open::OnDisk;
use super::segment::Segment;
use crate::appendlog::AppendFile;
use crate::container::{Entry, Purpose, Written};
use crate::error::{Error, Result};
use crate::item::Item;
use crate::record;
use crate::tierdir::Dir;
use crate::types::{Place, Tier};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes that are collected before they are written.
const BUFFER: usize = 4 << 20;
/// Payloads from this size on are not copied into the buffer.
const DIRECT: usize = 256 << 10;
/// Segments that a tier must have room for, so that what is hot is written to one of its own.
const TWO_STREAMS: u64 = 12;
/// The footer's largest share of a segment.
const FOOTER_SHARE: u64 = 8;
/// The first segment of an opening has this part of the size of an ordinary one, each further one twice the size of
/// the one before. Nothing is appended to a segment of an earlier opening, so a process that writes one item and ends
/// would otherwise leave a whole segment behind.
const FIRST_SHARE: u64 = 64;
/// A segment is not made smaller than this for being an opening's first, unless ordinary ones are.
const SMALLEST_FIRST: u64 = 64 << 10;

/// How far a segment is filled, in bytes.
#[derive(Debug, Clone, Copy)]
struct Fill {
    size: u64,
    end: u64,
    /// Bytes of the footer so far; `None`: it will have none.
    footer: Option<u64>,
}

impl Fill {
    fn new(size: u64) -> Fill {
        Fill { size, end: HEADER_BLOCK, footer: Some(0) }
    }

    /// Takes the record of an item, if there is room for it, and says where it will stand.
    fn take(&mut self, key_len: usize, stored_len: usize) -> Option<u64> {
        let at = self.end;
        let end = at + record::size(key_len, stored_len);
        let footer =
            self.footer.map(|n| n + format::entry_len(key_len)).filter(|n| *n <= self.size / FOOTER_SHARE);
        if end + footer.unwrap_or(0) + TRAILER > self.size {
            return None;
        }
        self.end = end;
        self.footer = footer;
        Some(at)
    }
}

/// The largest footer of a segment with one record: one with a longer key has none. It is as quick to scan.
const LONE_FOOTER: u64 = 1024;
/// Bytes of a segment with one record that are not the record's, at most and before rounding.
pub(super) const LONE_OVERHEAD: u64 = HEADER_BLOCK + LONE_FOOTER + TRAILER;

/// Size of a segment for one record alone.
fn lone_size(record: u64) -> u64 {
    (LONE_OVERHEAD + record).next_multiple_of(HEADER_BLOCK)
}

/// The segment that is being written.
#[derive(Debug)]
struct Active {
    log: AppendFile,
    identity: Identity,
    entry: Arc<Entry>,
    segment: Arc<Segment>,
    fill: Fill,
    records: u32,
    earliest_expiry: u64,
}

impl Active {
    /// Writes footer and trailer, behind the footer entries that were published the `pending` ones.
    fn write_footer(&mut self, ssd: &Ssd, pending: Option<&[u8]>) -> Result<()> {
        let entries = match (self.segment.entries(), pending) {
            (Some(mut entries), Some(pending)) => {
                entries.extend_from_slice(pending);
                Some(entries)
            }
            _ => None,
        };
        let has_footer = entries.is_some();
        let mut bytes = entries.unwrap_or_default();
        let footer_len = bytes.len() as u64;
        let size = self.identity.size;
        let footer_at = size.saturating_sub(TRAILER + footer_len);
        let trailer = Trailer {
            identity: self.identity,
            has_footer,
            footer_at,
            footer_len,
            records: u64::from(self.records),
            data_end: self.fill.end,
            earliest_expiry: self.earliest_expiry,
            footer_sum: record::checksum(self.identity.id, &bytes),
        };
        bytes.extend_from_slice(&format::encode_trailer(&trailer));
        self.log.append_at(&bytes, footer_at)?;
        ssd.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Nothing more is appended.
    fn retire(&self, footer: bool) {
        self.segment.sealed(footer);
        self.entry.sealed.store(true, Ordering::Release);
    }
}

/// One run's records, until they are published.
#[derive(Debug, Default)]
struct Run {
    written: Vec<Written>,
    entries: Option<Vec<u8>>,
    expiries: u64,
}

/// Why a run failed.
enum Failure {
    /// The segment did; it is retired. Its directory.
    Segment(Error, Arc<Dir>),
    /// Something else; nothing was written.
    Other(Error),
}

/// One of the two sequences of segments.
#[derive(Debug, Default)]
struct Stream {
    /// The segment that is being written.
    active: Option<Active>,
    /// Size of the segment made last in this opening; 0 before the first.
    last: u64,
}

/// The writing side's state.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// What is new, and what is known to be hot: see [`Writer::stream`].
    streams: [Stream; 2],
    buffer: Vec<u8>,
    closed: bool,
}

impl Writer {
    pub fn write(&mut self, ssd: &Ssd, items: &[Item], purpose: Purpose) -> Result<Vec<Written>> {
        if self.closed {
            return Err(ssd.room.dirs.closed());
        }
        let stream = Self::stream(ssd, purpose);
        let sizes = self.plan(ssd, items, stream);
        ssd.room.check(&sizes, purpose)?;
        let mut out = Vec::with_capacity(items.len());
        let mut rest = items;
        let mut failed_before = false;
        while !rest.is_empty() {
            match self.run(ssd, rest, purpose, stream) {
                Ok(written) => {
                    rest = rest.get(written.len()..).unwrap_or_default();
                    out.extend(written);
                }
                Err(Failure::Other(e)) => return Err(e),
                Err(Failure::Segment(e, dir)) => {
                    // With no other directory to go to, this one gets its second chance now.
                    ssd.room.dirs.failed(&dir, &e);
                    if failed_before {
                        return Err(e);
                    }
                    failed_before = true;
                    warn_seldom!(error = %e, "a segment failed: trying the batch in a new one");
                }
            }
        }
        Ok(out)
    }

    /// Which of the two segments being written takes these records. What reclaim keeps and promotion brings is hot and
    /// stays for long; among new records, most of which sink soon, it would have to be copied again and again. A tier
    /// of a few segments cannot spare a second one.
    fn stream(ssd: &Ssd, purpose: Purpose) -> usize {
        let segments = ssd.room.dirs.limit().map_or(u64::MAX, |limit| limit / ssd.room.segment.max(1));
        usize::from(purpose != Purpose::Write && segments >= TWO_STREAMS)
    }

    fn stream_mut(&mut self, stream: usize) -> &mut Stream {
        let [new, hot] = &mut self.streams;
        if stream == 0 { new } else { hot }
    }

    /// Sizes of the new segments that these items need.
    fn plan(&mut self, ssd: &Ssd, items: &[Item], stream: usize) -> Vec<u64> {
        let mut sizes = Vec::new();
        let stream = self.stream_mut(stream);
        let (mut fill, mut last) = (stream.active.as_ref().map(|a| a.fill), stream.last);
        for item in items {
            let (key, stored) = (item.key.len(), item.payload.len());
            if let Some(size) = alone(ssd, item) {
                sizes.push(size);
            } else if fill.as_mut().and_then(|f| f.take(key, stored)).is_none() {
                last = next_size(ssd, last, item);
                let mut next = Fill::new(last);
                next.take(key, stored);
                sizes.push(last);
                fill = Some(next);
            }
        }
        sizes
    }

    /// Writes, syncs and publishes as many of the items as go into one segment; at least one.
    fn run(
        &mut self,
        ssd: &Ssd,
        items: &[Item],
        purpose: Purpose,
        stream: usize,
    ) -> Result<Vec<Written>, Failure> {
        let Some(first) = items.first() else { return Ok(Vec::new()) };
        if let Some(size) = alone(ssd, first) {
            let mut active = create(ssd, size, purpose).map_err(Failure::Other)?;
            if format::entry_len(first.key.len()) > LONE_FOOTER {
                active.fill.footer = None;
            }
            let only = items.get(..1).unwrap_or_default();
            return match self.fill(ssd, &mut active, only, true) {
                Ok((written, _)) => Ok(written),
                Err(e) => Err(fail(&active, e)),
            };
        }
        let fits = |a: &Active| { a.fill }.take(first.key.len(), first.payload.len()).is_some();
        let now = self.stream_mut(stream);
        let mut active = match now.active.take() {
            Some(active) if fits(&active) && active.segment.dir().in_service() => active,
            full => match create(ssd, next_size(ssd, now.last, first), purpose) {
                Ok(new) => {
                    now.last = new.identity.size;
                    if let Some(full) = full {
                        finish(ssd, full);
                    }
                    new
                }
                Err(e) => {
                    now.active = full;
                    return Err(Failure::Other(e));
                }
            },
        };
        match self.fill(ssd, &mut active, items, false) {
            Ok((written, full)) => {
                self.stream_mut(stream).active = (!full).then_some(active);
                Ok(written)
            }
            Err(e) => Err(fail(&active, e)),
        }
    }

    /// Appends items to a segment while they fit, syncs and publishes. Says whether the segment is now sealed,
    /// because it is `last`ly used or full.
    fn fill(
        &mut self,
        ssd: &Ssd,
        active: &mut Active,
        items: &[Item],
        last: bool,
    ) -> Result<(Vec<Written>, bool)> {
        let began = active.segment.dir().now();
        let before = active.log.synced();
        let had = active.records;
        let mut run = Run { entries: Some(Vec::new()), expiries: u64::MAX, ..Run::default() };
        let mut seal = last;
        self.buffer.clear();
        for item in items {
            if !last && alone(ssd, item).is_some() {
                break;
            }
            let Some(offset) = active.fill.take(item.key.len(), item.payload.len()) else {
                seal = true;
                break;
            };
            self.append(active, item, offset, &mut run)?;
        }
        active.log.append(&self.buffer)?;
        active.earliest_expiry = active.earliest_expiry.min(run.expiries);
        if active.fill.footer.is_none() {
            run.entries = None;
        }
        if seal {
            active.write_footer(ssd, run.entries.as_deref())?;
        }
        active.log.sync()?;
        active.segment.publish(active.fill.end, run.entries.as_deref());
        active.entry.records.fetch_add(u64::from(active.records - had), Ordering::Relaxed);
        active.entry.note_expiry(run.expiries);
        let bytes = active.fill.end - before.min(active.fill.end);
        ssd.written.fetch_add(bytes, Ordering::Relaxed);
        active.segment.dir().wrote(bytes, began);
        if seal {
            active.retire(run.entries.is_some());
        }
        Ok((run.written, seal))
    }

    /// Encodes one record into the buffer, or past it to the file.
    fn append(&mut self, active: &mut Active, item: &Item, offset: u64, run: &mut Run) -> Result<()> {
        let id = active.identity.id;
        let size = record::size(item.key.len(), item.payload.len());
        let unaddressable = || Error::TooLarge { tier: Tier::Ssd, size, limit: super::MAX_SEGMENT };
        let position = u32::try_from(offset / Place::UNIT).map_err(|_| unaddressable())?;
        let place = Place::new(active.entry.no, position).ok_or_else(unaddressable)?;
        if item.payload.len() >= DIRECT {
            let start = self.buffer.len();
            record::encode_head(item, id, position, &mut self.buffer);
            let padding = size - (self.buffer.len() - start + item.payload.len()) as u64;
            active.log.append(&self.buffer)?;
            active.log.append(&item.payload)?;
            self.buffer.clear();
            self.buffer.resize(usize::try_from(padding).unwrap_or(0), 0);
        } else {
            if self.buffer.len() + usize::try_from(size).unwrap_or(BUFFER) > BUFFER {
                active.log.append(&self.buffer)?;
                self.buffer.clear();
            }
            record::encode(item, id, position, &mut self.buffer);
        }
        if let Some(entries) = &mut run.entries {
            format::encode_entry(item, position, entries);
        }
        if item.expires_at != 0 {
            run.expiries = run.expiries.min(item.expires_at);
        }
        active.records += 1;
        run.written.push(Written { place, bytes: u32::try_from(size).unwrap_or(u32::MAX) });
        Ok(())
    }

    /// Seals the segments that are being written, if they have records.
    pub fn seal(&mut self, ssd: &Ssd) -> Result<()> {
        let full: Vec<Active> =
            self.streams.iter_mut().filter_map(|s| s.active.take_if(|a| a.records > 0)).collect();
        // Each is sealed, whatever becomes of the other.
        full.into_iter().map(|active| seal(ssd, active)).fold(Ok(()), Result::and)
    }

    /// Seals, and takes no more writes.
    pub fn close(&mut self, ssd: &Ssd) -> Result<()> {
        self.closed = true;
        let sealed = self.seal(ssd);
        for empty in self.streams.iter_mut().filter_map(|s| s.active.take()) {
            empty.retire(false);
        }
        self.buffer = Vec::new();
        sealed
    }

    /// Writes no more to the segment with this id, which is about to be removed.
    pub fn forget(&mut self, id: u64) {
        for active in self.streams.iter_mut().filter_map(|s| s.active.take_if(|a| a.identity.id == id)) {
            active.retire(false);
        }
    }
}

/// The size of the segment that an item has to itself, if it is larger than half an ordinary one, or does not fit
/// into one beside what is not the record's: with the smallest segments that is less than half.
fn alone(ssd: &Ssd, item: &Item) -> Option<u64> {
    let size = record::size(item.key.len(), item.payload.len());
    let fits = || Fill::new(ssd.room.segment).take(item.key.len(), item.payload.len()).is_some();
    (size > ssd.room.segment / 2 || !fits()).then(|| lone_size(size))
}

/// The size of the segment that follows one of `last` bytes (0: the first) in its stream and begins with this item.
fn next_size(ssd: &Ssd, last: u64, first: &Item) -> u64 {
    let ordinary = ssd.room.segment;
    let begin = (ordinary / FIRST_SHARE).max(SMALLEST_FIRST).next_multiple_of(HEADER_BLOCK);
    let mut size = last.saturating_mul(2).max(begin).min(ordinary);
    let (key, stored) = (first.key.len(), first.payload.len());
    while size < ordinary && Fill::new(size).take(key, stored).is_none() {
        size = size.saturating_mul(2).min(ordinary);
    }
    size
}

/// Retires a segment whose write or sync failed: it counts up to what was published, which is what was synced.
fn fail(active: &Active, e: Error) -> Failure {
    active.retire(false);
    Failure::Segment(e, active.segment.dir().clone())
}

/// Seals a segment that is full. Its records are durable already, so a footer that cannot be written costs a
/// scan, not data.
fn finish(ssd: &Ssd, active: Active) {
    let path = active.segment.path().to_path_buf();
    if let Err(e) = seal(ssd, active) {
        warn_seldom!(path = %path.display(), error = %e, "no footer was written");
    }
}

/// A segment in a directory that is out of service is not written to any more: it can be open where nobody will look
/// again.
fn seal(ssd: &Ssd, mut active: Active) -> Result<()> {
    if !active.segment.dir().in_service() {
        active.retire(false);
        return Ok(());
    }
    let footer = active.segment.entries().is_some();
    let done = active.write_footer(ssd, Some(&[])).and_then(|()| active.log.sync());
    active.retire(footer && done.is_ok());
    done
}

/// Makes a segment and announces it.
fn create(ssd: &Ssd, size: u64, purpose: Purpose) -> Result<Active> {
    ssd.room.check(&[size], purpose)?;
    let mut tried = Vec::new();
    let mut failure = None;
    loop {
        let dir = match ssd.room.dirs.choose(size, purpose, &tried) {
            Ok(dir) => dir,
            Err(e) => return Err(failure.unwrap_or(e)),
        };
        match create_in(ssd, &dir, size, purpose) {
            Ok(active) => return Ok(active),
            Err(e) => ssd.room.dirs.failed(&dir, failure.insert(e)),
        }
        tried.push(dir.no);
    }
}

fn create_in(ssd: &Ssd, dir: &Arc<Dir>, size: u64, purpose: Purpose) -> Result<Active> {
    let reserved = ssd.containers.reserve(purpose)?;
    let created_ms = ssd.clock.wall_ms();
    let identity = Identity { store: ssd.store, id: reserved.id, dir: dir.no, created_ms, size };
    let lease = dir.lease(size);
    let name = super::open::name_of(reserved.id);
    let header = format::encode_header(&identity);
    let log = match AppendFile::create(&*dir.vfs, &dir.folder, &name, &header, Some(size)) {
        Ok(log) => log,
        Err(e) => {
            ssd.containers.abandon(reserved);
            return Err(e);
        }
    };
    ssd.written.fetch_add(HEADER_BLOCK, Ordering::Relaxed);
    let path = log.path().to_path_buf();
    let (file, reading) = (log.file().clone(), ssd.reading.clone());
    let segment =
        Arc::new(Segment::fresh((reserved.no, reserved.id), path.clone(), file, reading, lease.clone()));
    ssd.segments.write().insert(reserved.id, OnDisk { path, lease, segment: Some(segment.clone()) });
    let entry = ssd.containers.publish(reserved, Tier::Ssd, dir.no, created_ms, segment.clone());
    Ok(Active { log, identity, entry, segment, fill: Fill::new(size), records: 0, earliest_expiry: u64::MAX })
}
