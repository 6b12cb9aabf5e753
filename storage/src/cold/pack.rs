//! A pack that is complete: reading it.
//!
//! The file is opened when it is first read, and kept in a cache of open files. A record costs one `pread` of
//! [`SMALLEST_READ`] bytes, and a second one if it is longer. Lengths are used once the checksum that covers them
//! matched, and never beyond the end of the file, so damage cannot make the reader allocate.
//!
//! Invariant: a pack never changes; a damaged entry costs itself and no other. Nothing is written here.

use super::entry::{self, LARGEST_HEADER, Local, Meta};
use super::examine;
use super::identity::{self, Identity};
use super::listing;
use crate::container::{Container, Listed, RawRecord};
use crate::error::{Error, IoContext, Result};
use crate::flaw::Flaw;
use crate::item::{Head, Item};
use crate::keys::{Keys, LastKeys};
use crate::openfiles::OpenFiles;
use crate::tierdir::Dir;
use crate::types::{ContainerNo, Place};
use crate::vfs::VfsFile;
use bytes::Bytes;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is read at first, in bytes: header and payload of most records.
pub(super) const SMALLEST_READ: usize = 8 << 10;
/// Most that [`Container::following`], or a scan, reads at once.
pub(super) const MOST_AHEAD: usize = 4 << 20;
/// Most that [`Container::raw`] returns.
const MOST_RAW: u64 = 64 << 20;
/// Both copies of the identity lie this near to the ends of the file.
pub(super) const IDENTITY_WITHIN: u64 = 4 << 10;

/// The name of a pack's file.
pub(super) fn name_of(id: u64) -> String {
    format!("pack-{id:016x}.zip")
}

/// The id in the name of a pack's file.
pub(super) fn id_in(name: &str) -> Option<u64> {
    let hex = name.strip_prefix("pack-")?.strip_suffix(".zip")?;
    let id = u64::from_str_radix(hex, 16).ok()?;
    (name_of(id) == name).then_some(id)
}

/// Where the pack with this id lies.
pub(super) fn path_in(dir: &Dir, id: u64) -> PathBuf {
    dir.folder.join(name_of(id))
}

/// What the packs of a tier share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) files: OpenFiles,
    /// Bytes that a scan reads at once.
    pub(super) read_ahead: AtomicU64,
    /// Of the pack that was last found damaged.
    pub(super) keys: LastKeys,
}

impl Shared {
    /// Bytes that a scan reads at once.
    fn ahead(&self) -> usize {
        usize::try_from(self.read_ahead.load(Ordering::Relaxed)).unwrap_or(MOST_AHEAD).min(MOST_AHEAD)
    }
}

/// One pack.
#[derive(Debug)]
pub(super) struct Pack {
    pub(super) dir: Arc<Dir>,
    shared: Arc<Shared>,
    no: ContainerNo,
    id: u64,
    seed: u64,
    /// Length of the file.
    len: u64,
    /// Bytes that still count as occupied; zero once the file is gone.
    counted: AtomicU64,
    dropped: AtomicBool,
}

impl Pack {
    /// A pack of `len` bytes, counted as occupied by its directory.
    pub(super) fn new(
        dir: Arc<Dir>,
        shared: Arc<Shared>,
        no: ContainerNo,
        id: u64,
        store: &[u8; 16],
        len: u64,
    ) -> Pack {
        let seed = entry::seed(store, id);
        let counted = AtomicU64::new(len);
        Pack { dir, shared, no, id, seed, len, counted, dropped: AtomicBool::new(false) }
    }

    /// Whether the disk does not say which pack the file is.
    pub(super) fn is_unreachable(&self) -> bool {
        self.file().is_err() || self.file().is_ok_and(|file| identity_of(&*file, self.len).is_err())
    }

    pub(super) fn path(&self) -> PathBuf {
        path_in(&self.dir, self.id)
    }

    /// The open file. `Gone` if the pack was dropped.
    pub(super) fn file(&self) -> Result<Arc<dyn VfsFile>> {
        self.shared.files.open(self.id, self.no, &self.dropped, &*self.dir.vfs, || self.path())
    }

    /// Deletes the file and makes that durable. May be called again after an error.
    pub(super) fn delete(&self) -> Result<()> {
        self.dropped.store(true, Ordering::Release);
        self.shared.files.remove(self.id);
        let path = self.path();
        match self.dir.vfs.remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("remove", path, e)),
        }
        self.dir.change(self.counted.swap(0, Ordering::AcqRel), 0);
        self.dir.vfs.sync_dir(&self.dir.folder).at("sync", &self.dir.folder)
    }

    fn offset(&self, position: u32) -> u64 {
        u64::from(position) * Place::UNIT
    }

    fn damaged(&self, position: u32, what: &str) -> Error {
        Error::corrupt(self.path(), self.offset(position), what)
    }

    /// Up to `most` bytes at a position; fewer at the end of the file.
    fn bytes_at(&self, file: &dyn VfsFile, offset: u64, most: usize) -> Result<Vec<u8>> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; most.min(left)];
        let n = file.read_at(&mut bytes, offset).at("read", self.path())?;
        bytes.truncate(n);
        Ok(bytes)
    }

    /// The verified header at a position, and what was read from there on.
    fn header(&self, file: &dyn VfsFile, position: u32) -> Result<(Meta, Vec<u8>)> {
        let offset = self.offset(position);
        let mut bytes = self.bytes_at(file, offset, SMALLEST_READ)?;
        let mut parsed = entry::parse_local(&bytes, self.seed, position);
        if let Local::Needs(n) = parsed {
            bytes = self.bytes_at(file, offset, n.clamp(SMALLEST_READ, LARGEST_HEADER))?;
            parsed = entry::parse_local(&bytes, self.seed, position);
        }
        match parsed {
            Local::Entry(meta) => Ok((meta, bytes)),
            Local::Needs(_) => Err(self.damaged(position, "the header is cut short")),
            Local::Bad(why) => Err(self.unreadable(file, position, why)),
        }
    }

    /// What a header that does not verify means: damage, unless the whole pack is of a newer format.
    fn unreadable(&self, file: &dyn VfsFile, position: u32, why: &str) -> Error {
        match identity_of(file, self.len) {
            Ok(Some(is)) if is.id == self.id && is.format > identity::FORMAT => self.newer(&is),
            _ => self.damaged(position, why),
        }
    }

    /// That the pack is of a newer format.
    pub(super) fn newer(&self, is: &Identity) -> Error {
        Error::NewerFormat { path: self.path(), found: is.format, supported: identity::FORMAT }
    }

    /// The payload behind a verified header.
    fn payload(&self, file: &dyn VfsFile, position: u32, meta: &Meta, read: Vec<u8>) -> Result<Bytes> {
        if self.offset(position) + meta.payload_end() > self.len {
            return Err(self.damaged(position, "the payload is cut short"));
        }
        let begin = meta.data_at as usize;
        let end = begin + meta.head.stored_len as usize;
        let payload = match read.get(begin..end) {
            Some(payload) => Bytes::copy_from_slice(payload),
            None => {
                let have = read.get(begin..).unwrap_or_default();
                let mut payload = vec![0; end - begin];
                let (front, rest) = payload.split_at_mut(have.len());
                front.copy_from_slice(have);
                let from = self.offset(position) + (begin + have.len()) as u64;
                file.read_exact_at(rest, from).map_err(|e| match e.kind() {
                    io::ErrorKind::UnexpectedEof => self.damaged(position, "the payload is cut short"),
                    _ => Error::io("read", self.path(), e),
                })?;
                Bytes::from(payload)
            }
        };
        meta.verify_payload(&payload).map_err(|why| self.damaged(position, why))?;
        Ok(payload)
    }

    /// Every record that can be found.
    pub(super) fn scan(&self) -> Result<Vec<Listed>> {
        let file = self.file()?;
        listing::list(&*file, self.len, self.seed, self.shared.ahead()).at("list", self.path())
    }

    /// Positions and keys of every record that can be found.
    fn keys(&self, file: &dyn VfsFile) -> Arc<Keys> {
        let each = |keys: &mut Keys| {
            // Whatever comes of the rest, each entry verified by itself.
            let enter = &mut |meta: &Meta| keys.enter(meta.position, &meta.head.key);
            let _ = listing::each(file, self.len, self.seed, self.shared.ahead(), enter);
        };
        self.shared.keys.of(self.id, || Keys::of(each))
    }
}

/// Which pack a file says it is, from whichever of the two copies is whole; the newer format if they differ.
pub(super) fn identity_of(file: &dyn VfsFile, len: u64) -> io::Result<Option<Identity>> {
    let near = usize::try_from(IDENTITY_WITHIN.min(len)).unwrap_or(0);
    let mut bytes = vec![0; near];
    let mut found = None;
    let mut trouble = None;
    for offset in [0, len.saturating_sub(IDENTITY_WITHIN)] {
        match file.read_at(&mut bytes, offset) {
            Ok(n) => found = found.or_else(|| Identity::find(bytes.get(..n).unwrap_or_default())),
            Err(e) => trouble = Some(e),
        }
    }
    match (found, trouble) {
        (None, Some(e)) => Err(e),
        (found, _) => Ok(found),
    }
}

impl Container for Pack {
    fn read_up_to(&self, position: u32, most: u64) -> Result<Item> {
        let file = self.file()?;
        let (meta, read) = self.header(&*file, position)?;
        meta.head.within(most)?;
        let payload = self.payload(&*file, position, &meta, read)?;
        Ok(meta.head.into_item(payload))
    }

    fn following(&self, position: u32, bytes: u64) -> Result<Vec<(u32, Item)>> {
        let file = self.file()?;
        let (meta, _) = self.header(&*file, position)?;
        let begin = self.offset(position) + meta.payload_end() + entry::DESCRIPTOR as u64;
        let most = usize::try_from(bytes).unwrap_or(usize::MAX).min(MOST_AHEAD);
        let read = self.bytes_at(&*file, begin, most)?;
        let (mut found, mut at) = (Vec::new(), 0);
        while let Some(rest) = read.get(at..).filter(|rest| !rest.is_empty()) {
            let here =
                u32::try_from((begin + at as u64) / Place::UNIT).ok().filter(|n| *n <= Place::MAX_POSITION);
            let Some(here) = here else { break };
            let Local::Entry(meta) = entry::parse_local(rest, self.seed, here) else { break };
            let Ok(end) = usize::try_from(meta.payload_end()) else { break };
            let Some(payload) = rest.get(meta.data_at as usize..end) else { break };
            if meta.verify_payload(payload).is_err() {
                break;
            }
            found.push((here, meta.head.into_item(Bytes::copy_from_slice(payload))));
            at = at.saturating_add(end).saturating_add(entry::DESCRIPTOR);
        }
        Ok(found)
    }

    fn head(&self, position: u32) -> Result<Head> {
        let file = self.file()?;
        self.header(&*file, position).map(|(meta, _)| meta.head)
    }

    fn list(&self) -> Result<Vec<Listed>> {
        self.scan()
    }

    fn raw(&self, position: u32) -> Option<RawRecord> {
        let file = self.file().ok()?;
        let offset = self.offset(position);
        let most = match self.header(&*file, position) {
            Ok((meta, _)) => meta.payload_end() + entry::DESCRIPTOR as u64,
            // Nothing says how long it is: up to where the next record is known to begin.
            Err(_) => {
                let next = self.keys(&*file).next(position);
                next.map_or(self.len, |next| self.offset(next)).saturating_sub(offset)
            }
        };
        let most = usize::try_from(most.min(MOST_RAW)).ok()?;
        let bytes = self.bytes_at(&*file, offset, most).ok()?;
        Some(RawRecord { path: self.path(), offset, bytes })
    }

    fn occupied(&self) -> u64 {
        self.counted.load(Ordering::Acquire)
    }

    fn key(&self, position: u32) -> Option<Bytes> {
        if let Ok(head) = self.head(position) {
            return Some(head.key);
        }
        self.keys(&*self.file().ok()?).key(position)
    }

    fn examine(&self, live: &[u32], each: &mut dyn FnMut(u32, Result<Item>)) -> Vec<Flaw> {
        live.iter().for_each(|position| each(*position, self.read(*position)));
        match self.file() {
            Ok(file) => examine::flaws(&*file, &self.path(), self.len, (self.id, self.seed), live),
            // Each of its records was told of.
            Err(_) => Vec::new(),
        }
    }
}
