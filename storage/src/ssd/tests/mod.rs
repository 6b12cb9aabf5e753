//! Tests of the tier, on a real file system.

mod basics;
mod damage;
mod failing;
mod limits;
mod model;

use super::*;
use crate::clock::ManualClock;
use crate::container::{Known, TierDir, Unknown};
use crate::ident::{Hasher, Ident};
use crate::types::{Codec, ContentType, Version};
use crate::vfs::{RealFs, Vfs};
use bytes::Bytes;
use std::path::{Path, PathBuf};

const STORE: [u8; 16] = *b"the store's name";
pub(super) const KIB: u64 = 1024;

/// A tier in directories of a test, which can be closed (or left, as by a kill) and opened again.
pub(super) struct Bench {
    pub dirs: Vec<TierDir>,
    pub vfs: Arc<dyn Vfs>,
    pub clock: Arc<ManualClock>,
    pub config: SsdConfig,
    pub opens: u64,
    pub containers: Arc<Containers>,
    pub ssd: Arc<Ssd>,
    pub report: OpenReport,
}

pub(super) fn config(segment_size: u64) -> SsdConfig {
    SsdConfig { segment_size, read_mode: ReadMode::Map, borrow: false, smallest_read: 8192 }
}

pub(super) fn dir(no: u16, path: &Path, limit: u64) -> TierDir {
    TierDir { no, path: path.to_path_buf(), limit: Some(limit), older: None, anchor: None }
}

impl Bench {
    pub fn new(dirs: Vec<TierDir>, config: SsdConfig, vfs: Arc<dyn Vfs>) -> Bench {
        let clock = Arc::new(ManualClock::new(1_000_000));
        let containers = Arc::new(Containers::new(1));
        let ctx = TierContext {
            vfs: vfs.clone(),
            clock: clock.clone(),
            store: STORE,
            containers: containers.clone(),
            dirs: dirs.clone(),
            known: Vec::new(),
            unknown: Unknown::Delete,
        };
        let (ssd, report) = Ssd::open(ctx, config.clone()).unwrap();
        Bench { dirs, vfs, clock, config, opens: 1, containers, ssd, report }
    }

    /// One directory with this limit.
    pub fn one(path: &Path, limit: u64, config: SsdConfig) -> Bench {
        Bench::new(vec![dir(0, path, limit)], config, Arc::new(RealFs))
    }

    pub fn known(&self) -> Vec<Known> {
        self.containers.all().iter().map(|e| e.known()).collect()
    }

    pub fn context(&mut self, known: Vec<Known>, unknown: Unknown) -> TierContext {
        self.opens += 1;
        self.containers = Arc::new(Containers::new(self.opens));
        TierContext {
            vfs: self.vfs.clone(),
            clock: self.clock.clone(),
            store: STORE,
            containers: self.containers.clone(),
            dirs: self.dirs.clone(),
            known,
            unknown,
        }
    }

    pub fn reopen_with(&mut self, known: Vec<Known>, unknown: Unknown) {
        let ctx = self.context(known, unknown);
        (self.ssd, self.report) = Ssd::open(ctx, self.config.clone()).unwrap();
    }

    /// Opens again with all that the table of containers knows; what was not sealed stays so.
    pub fn reopen(&mut self) {
        let known = self.known();
        self.reopen_with(known, Unknown::Delete);
    }

    pub fn put(&self, items: &[Item]) -> Vec<Written> {
        let written = self.ssd.write(items, Purpose::Write).unwrap();
        assert_eq!(written.len(), items.len());
        written
    }

    pub fn read(&self, place: Place) -> Result<Item> {
        let entry = self.containers.get(place.container()).ok_or(Error::Gone(place.container()))?;
        entry.container.read(place.position())
    }

    /// As the engine does it.
    pub fn remove(&self, no: u16) {
        let entry = self.containers.remove(no).unwrap();
        self.ssd.drop_container(&entry).unwrap();
        self.containers.release(entry.no, Arc::downgrade(&entry));
    }

    pub fn files(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for d in &self.dirs {
            let folder = d.path.join(FOLDER);
            all.extend(std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()));
        }
        all.sort();
        all
    }

    /// Bytes on disk, by the file system.
    pub fn on_disk(&self) -> u64 {
        self.files().iter().map(|f| f.metadata().unwrap().len()).sum()
    }
}

pub(super) fn ident(key: &[u8]) -> Ident {
    Hasher::new([7; 16]).ident(key)
}

/// An item whose payload follows from key, version and length.
pub(super) fn item(key: &str, version: u64, len: usize) -> Item {
    let seed = record::checksum(version, key.as_bytes());
    let payload: Vec<u8> = (0..len as u64)
        .map(|n| (seed.wrapping_mul(n | 1).rotate_left((n % 61) as u32) >> 32) as u8)
        .collect();
    Item {
        key: Bytes::copy_from_slice(key.as_bytes()),
        ident: ident(key.as_bytes()),
        version: Version(version),
        expires_at: if version.is_multiple_of(3) { version * 1000 } else { 0 },
        content_type: ContentType::Binary,
        codec: Codec::None,
        original_len: len as u32,
        payload: Bytes::from(payload),
    }
}

pub(super) fn items(n: u64, len: usize) -> Vec<Item> {
    (0..n).map(|i| item(&format!("key/{i}"), i + 1, len)).collect()
}
