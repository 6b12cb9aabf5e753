//! sled as a [`BlockIndex`]: only ever called on a fence thread.
//!
//! Keys are record numbers, big-endian, so that sled's order is theirs; values are [`Extent::encode`]. The
//! sentinel's key is longer and sorts after every record number (they have 24 bits). Values are far below the
//! size at which sled makes blob files, and there is no flusher thread: an index is filled in one go, closed,
//! and from then on only read.
//!
//! Invariants: a database is filled in one go, in rising order, and never changed afterwards. A kill while one is
//! filled leaves a directory that no seal names (`keeper.rs`); one while it is read changes nothing.

use super::index::{BlockIndex, Extent, IndexFactory};
use std::path::Path;
use std::time::{Duration, Instant};

const SENTINEL: &[u8] = b"\xffsentinel";
/// Up to this many entries sled's smallest sensible segments are used, so that a small index is a small file.
const FEW: u64 = 4096;

/// Opens sled databases.
#[derive(Debug)]
pub(super) struct SledFactory;

struct SledIndex(sled::Db);

impl IndexFactory for SledFactory {
    fn open(&self, path: &Path, entries: u64, cache: u64) -> Result<Box<dyn BlockIndex>, String> {
        let segment = if entries <= FEW { 16 << 10 } else { 64 << 10 };
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(cache.max(1 << 16))
            .flush_every_ms(None)
            .mode(sled::Mode::LowSpace)
            .segment_size(segment);
        // A task of sled's pool may hold the file, and with it the lock, for a moment after a close.
        let until = Instant::now() + Duration::from_secs(1);
        loop {
            match config.open() {
                Ok(db) => return Ok(Box::new(SledIndex(db))),
                Err(sled::Error::Io(e)) if e.to_string().contains("lock") && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(e) => return Err(format!("cannot open: {e}")),
            }
        }
    }

    fn estimate(&self, entries: u64) -> u64 {
        (96 << 10) + entries.saturating_mul(320)
    }
}

impl BlockIndex for SledIndex {
    fn insert(&mut self, extents: &[Extent]) -> Result<(), String> {
        for extent in extents {
            self.0
                .insert(extent.first.to_be_bytes(), &extent.encode()[..])
                .map_err(|e| format!("cannot insert: {e}"))?;
        }
        Ok(())
    }

    fn lookup(&mut self, record: u32) -> Result<Option<Extent>, String> {
        match self.0.range(..=record.to_be_bytes()).next_back() {
            None => Ok(None),
            Some(Err(e)) => Err(format!("cannot look up: {e}")),
            Some(Ok((key, value))) => {
                let key: &[u8; 4] = key.as_ref().try_into().map_err(|_| "a key of the wrong length")?;
                let extent = Extent::decode(u32::from_be_bytes(*key), &value);
                Ok(Some(extent.ok_or("a value of the wrong length")?))
            }
        }
    }

    fn set_sentinel(&mut self, token: &[u8]) -> Result<(), String> {
        self.0.insert(SENTINEL, token).map(|_| ()).map_err(|e| format!("cannot insert: {e}"))
    }

    fn sentinel(&mut self) -> Result<Option<Vec<u8>>, String> {
        self.0.get(SENTINEL).map(|v| v.map(|v| v.to_vec())).map_err(|e| format!("cannot look up: {e}"))
    }

    fn close(self: Box<Self>) -> Result<(), String> {
        // The drop alone flushes; asking first tells whether that works.
        self.0.flush().map_err(|e| format!("cannot flush: {e}"))?;
        drop(self.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hdd::seal::{digest, occupied};
    use crate::vfs::RealFs;

    /// What the keeper relies on so that a kill costs no rebuild, and the limit so that it holds.
    #[test]
    fn from_the_second_opening_on_sled_writes_nothing_and_the_estimate_is_enough() {
        for n in [1, 60, 4000, 4200] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("index-0000");
            let extent =
                |k: u32| Extent { first: k * 9, count: 9, file: 0, offset: u64::from(k) * 8192, len: 8192 };
            let all: Vec<_> = (0..n).map(extent).collect();
            let mut index = SledFactory.open(&path, u64::from(n), 1 << 20).unwrap();
            index.insert(&all).unwrap();
            index.set_sentinel(b"token").unwrap();
            index.close().unwrap();
            SledFactory.open(&path, u64::from(n), 1 << 20).unwrap().close().unwrap();
            let settled = digest(&RealFs, &path, false).unwrap();
            assert!(occupied(&RealFs, dir.path(), "index-0000") + 4096 <= SledFactory.estimate(u64::from(n)));
            let mut index = SledFactory.open(&path, u64::from(n), 1 << 20).unwrap();
            assert_eq!(index.sentinel().unwrap().as_deref(), Some(&b"token"[..]));
            for k in 0..n {
                assert_eq!(index.lookup(k * 9 + 8).unwrap(), Some(extent(k)));
            }
            assert_eq!(index.lookup(u32::MAX >> 8).unwrap(), Some(extent(n - 1)));
            assert_eq!(digest(&RealFs, &path, false).unwrap(), settled, "while it is open");
            index.close().unwrap();
            assert_eq!(digest(&RealFs, &path, false).unwrap(), settled);
        }
    }
}
