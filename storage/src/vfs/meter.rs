//! A file system whose traffic is counted, directory by directory: what a disk is asked for, and how long it takes.
//!
//! Invariants: nothing but the count, and that no more reads are under way than the [`Gate`] lets in, differs from the
//! file system below, neither results nor their order; an operation
//! is in flight from before the call until it returned, however it ends; a file counts for the directory under whose
//! path it was opened, the deepest of those that are counted.
//!
//! What is not seen: reads through a map, which are the page cache's, and sled's, which opens files of its own. What a
//! read costs here may be the page cache's as well: this is the door to the disk, not the disk.

use super::gate::Gate;
use super::{DirEntry, EntryKind, Map, OpenMode, Space, Vfs, VfsFile, VfsLock};
use crate::latency::{Histogram, Latency, nanos};
use crossbeam::utils::CachePadded;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Operations of one kind.
#[derive(Debug, Default)]
struct Kind {
    bytes: AtomicU64,
    errors: AtomicU64,
    latency: Histogram,
}

/// What takes no longer than this, and an eighth of a nanosecond for each byte, is taken for a read of the page cache. To
/// copy from there takes a microsecond or two and a tenth of a nanosecond a byte, to read a page of flash 50 µs and more.
/// A disk that is faster yet is not told from the cache, nor need it be: an access to it costs next to nothing.
const CACHED_NS: u64 = 30_000;
const CACHED_BYTES_PER_NS: u64 = 8;
/// Reads of at most so many bytes are small: their time is that of an access.
const SMALL: u64 = 16 << 10;
/// Reads of at least so many are large: their time is that of the bytes too.
const LARGE: u64 = 256 << 10;

/// Reads of one kind that the disk answered.
#[derive(Debug, Default)]
struct Class {
    count: AtomicU64,
    bytes: AtomicU64,
    nanos: AtomicU64,
}

impl Class {
    fn add(&self, bytes: u64, nanos: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    fn snapshot(&self) -> DiskReads {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        DiskReads { count: of(&self.count), bytes: of(&self.bytes), nanos: of(&self.nanos) }
    }
}

/// Reads that were too slow to be the page cache's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskReads {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their time together, in nanoseconds.
    pub nanos: u64,
}

impl DiskReads {
    /// What came since an earlier state.
    #[must_use]
    pub fn since(&self, earlier: &DiskReads) -> DiskReads {
        DiskReads {
            count: self.count.saturating_sub(earlier.count),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            nanos: self.nanos.saturating_sub(earlier.nanos),
        }
    }
}

/// What is counted of one directory.
#[derive(Debug, Default)]
pub struct Meter {
    path: PathBuf,
    reads: CachePadded<Kind>,
    /// All reads of the disk; the small and the large of those that began while nothing else was under way.
    disk: CachePadded<Class>,
    alone: CachePadded<[Class; 2]>,
    writes: CachePadded<Kind>,
    syncs: CachePadded<Kind>,
    in_flight: CachePadded<AtomicU64>,
    /// So many reads of it may be under way: a disk that hangs keeps nobody from another one.
    gate: Gate,
}

/// The traffic of one directory since it was first counted. Those that failed have their time in the latencies too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The directory.
    pub path: PathBuf,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// How long reads took; as many as there were.
    pub read: Latency,
    /// Those that the disk answered, not the page cache, as far as their time says it.
    pub disk: DiskReads,
    /// Of these, those that waited for no other: up to 16 KiB, and from 256 KiB on.
    pub alone: [DiskReads; 2],
    /// Bytes that were written.
    pub write_bytes: u64,
    /// Writes, and reservations of blocks, that failed.
    pub write_errors: u64,
    /// How long writes took; as many as there were.
    pub write: Latency,
    /// Syncs that failed.
    pub sync_errors: u64,
    /// How long syncs took, of files and of folders; as many as there were.
    pub sync: Latency,
    /// Operations under way.
    pub in_flight: u64,
}

impl Meter {
    /// Counts what goes on below a directory.
    pub fn new(path: &Path) -> Arc<Meter> {
        Arc::new(Meter { path: path.to_path_buf(), ..Meter::default() })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What lets so many reads be under way.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What was counted so far.
    pub fn traffic(&self) -> Traffic {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Traffic {
            path: self.path.clone(),
            read_bytes: of(&self.reads.bytes),
            read_errors: of(&self.reads.errors),
            read: self.reads.latency.snapshot(),
            disk: self.disk.snapshot(),
            alone: self.alone.each_ref().map(Class::snapshot),
            write_bytes: of(&self.writes.bytes),
            write_errors: of(&self.writes.errors),
            write: self.writes.latency.snapshot(),
            sync_errors: of(&self.syncs.errors),
            sync: self.syncs.latency.snapshot(),
            in_flight: of(&self.in_flight),
        }
    }

    /// Counts a read of so many bytes that took so long, if it was the disk's. What it cost shows where it was alone:
    /// otherwise it has waited for others.
    fn note_disk(&self, bytes: usize, nanos: u64, alone: bool) {
        let bytes = bytes as u64;
        if bytes == 0 || nanos <= CACHED_NS + bytes / CACHED_BYTES_PER_NS {
            return;
        }
        self.disk.add(bytes, nanos);
        let [small, large] = &*self.alone;
        match bytes {
            _ if !alone => {}
            ..=SMALL => small.add(bytes, nanos),
            LARGE.. => large.add(bytes, nanos),
            _ => {}
        }
    }

    /// Does an operation, and counts it with the bytes that it says it came to.
    fn count<T>(
        &self,
        kind: &Kind,
        work: impl FnOnce() -> io::Result<T>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        let _under_way = UnderWay::begin(&self.in_flight);
        let start = Instant::now();
        let done = work();
        kind.latency.since(start);
        match &done {
            Ok(got) => kind.bytes.fetch_add(bytes(got) as u64, Ordering::Relaxed),
            Err(_) => kind.errors.fetch_add(1, Ordering::Relaxed),
        };
        done
    }
}

/// An operation under way, which ends by a panic too.
struct UnderWay<'a>(&'a AtomicU64);

impl UnderWay<'_> {
    fn begin(in_flight: &AtomicU64) -> UnderWay<'_> {
        in_flight.fetch_add(1, Ordering::Relaxed);
        UnderWay(in_flight)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Another file system, counted.
#[derive(Debug, Clone)]
pub struct Metered {
    below: Arc<dyn Vfs>,
    meters: Arc<[Arc<Meter>]>,
}

impl Metered {
    /// Counts what goes through to the file system below in the directories of these meters; elsewhere nothing.
    pub fn new(below: Arc<dyn Vfs>, meters: Arc<[Arc<Meter>]>) -> Metered {
        Metered { below, meters }
    }

    fn meter(&self, path: &Path) -> Option<&Arc<Meter>> {
        let above = self.meters.iter().filter(|m| path.starts_with(&m.path));
        above.max_by_key(|m| m.path.components().count())
    }
}

impl Vfs for Metered {
    fn still_there(&self) -> io::Result<()> {
        self.below.still_there()
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        let file = self.below.open(path, mode)?;
        Ok(match self.meter(path) {
            Some(meter) => Arc::new(File { file, meter: meter.clone() }),
            None => file,
        })
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.below.create_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.below.read_dir(path)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        self.below.kind(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.below.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.below.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.below.remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        match self.meter(path) {
            Some(meter) => meter.count(&meter.syncs, || self.below.sync_dir(path), |()| 0),
            None => self.below.sync_dir(path),
        }
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        self.below.try_lock(path)
    }

    fn try_lock_shared(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        self.below.try_lock_shared(path)
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        self.below.canonical(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.below.space(path)
    }

    fn random(&self) -> io::Result<[u8; 16]> {
        self.below.random()
    }
}

/// A file of it.
#[derive(Debug)]
struct File {
    file: Arc<dyn VfsFile>,
    meter: Arc<Meter>,
}

impl VfsFile for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        // The wait for others is not the disk's.
        let _inside = self.meter.gate.enter();
        let alone = self.meter.in_flight.load(Ordering::Relaxed) == 0;
        let start = Instant::now();
        let done = self.meter.count(&self.meter.reads, || self.file.read_at(buf, offset), |n| *n);
        done.inspect(|n| self.meter.note_disk(*n, nanos(start), alone))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.meter.count(&self.meter.writes, || self.file.write_all_at(buf, offset), |()| buf.len())
    }

    /// No data: only its failure is a write's.
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len).inspect_err(|_| {
            self.meter.writes.errors.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.meter.count(&self.meter.syncs, || self.file.sync(), |()| 0)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocated(&self) -> io::Result<u64> {
        self.file.allocated()
    }

    fn map(&self, len: u64) -> io::Result<Option<Map>> {
        self.file.map(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{EIO, ENOSPC, Fault, FaultFs, Op};
    use crate::vfs::RealFs;

    fn metered(below: Arc<dyn Vfs>, dirs: &[&Path]) -> (Metered, Vec<Arc<Meter>>) {
        let meters: Vec<Arc<Meter>> = dirs.iter().map(|dir| Meter::new(dir)).collect();
        (Metered::new(below, meters.clone().into()), meters)
    }

    #[test]
    fn what_goes_through_is_counted_for_the_deepest_directory_and_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        let (fs, meters) = metered(Arc::new(RealFs), &[dir.path(), &inner]);
        fs.create_dir_all(&inner).unwrap();
        // Not in `inner`, though its name begins so.
        let beside = fs.open(&dir.path().join("inner-not"), OpenMode::CreateNew).unwrap();
        beside.write_all_at(b"12345", 0).unwrap();
        let file = fs.open(&inner.join("file"), OpenMode::CreateNew).unwrap();
        file.write_all_at(b"0123456789", 0).unwrap();
        file.sync().unwrap();
        fs.sync_dir(&inner).unwrap();
        let mut buf = [0; 16];
        assert_eq!(file.read_at(&mut buf, 7).unwrap(), 3);
        assert_eq!(&buf[..3], b"789");
        let [outer, inner] = [meters[0].traffic(), meters[1].traffic()];
        assert_eq!((outer.write.count, outer.write_bytes, outer.read.count, outer.sync.count), (1, 5, 0, 0));
        assert_eq!((inner.write.count, inner.write_bytes), (1, 10));
        assert_eq!((inner.read.count, inner.read_bytes, inner.sync.count), (1, 3, 2));
        assert_eq!((inner.in_flight, inner.read_errors + inner.write_errors + inner.sync_errors), (0, 0));
        assert!(inner.sync.sum_ns > 0 && inner.path.ends_with("inner"));
    }

    /// A read of the page cache is no measure of the disk, and what a byte costs is told from what an access does.
    #[test]
    fn reads_of_the_disk_are_told_from_the_page_caches_and_by_their_size() {
        let meter = Meter::default();
        let us = |n: u64| n * 1000;
        for (bytes, nanos) in [
            // The cache's: a call of a few µs, a mebibyte copied at 10 GB/s.
            (4 << 10, us(2)),
            (16 << 10, us(30)),
            (1 << 20, us(105)),
            // Nothing was read: the end of the file.
            (0, us(500)),
            // The disk's.
            (4 << 10, us(80)),
            (16 << 10, us(8000)),
            (64 << 10, us(9000)),
            (256 << 10, us(10_000)),
            (1 << 20, us(16_000)),
        ] {
            meter.note_disk(bytes, nanos, true);
        }
        // It has waited for another.
        meter.note_disk(4 << 10, us(900), false);
        let of = |count, kib: u64, n| DiskReads { count, bytes: kib << 10, nanos: us(n) };
        assert_eq!(meter.traffic().alone, [of(2, 20, 8080), of(2, 1280, 26_000)]);
        assert_eq!(meter.traffic().disk, of(6, 4 + 20 + 64 + 1280, 900 + 8080 + 9000 + 26_000));
        assert_eq!(of(2, 20, 8080).since(&of(1, 4, 80)), of(1, 16, 8000));
    }

    #[test]
    fn what_lies_in_no_counted_directory_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (fs, meters) = metered(Arc::new(RealFs), &[&dir.path().join("counted")]);
        let file = fs.open(&dir.path().join("file"), OpenMode::CreateNew).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        fs.sync_dir(dir.path()).unwrap();
        let nothing = Traffic { path: dir.path().join("counted"), ..Traffic::default() };
        assert_eq!(meters[0].traffic(), nothing);
    }

    #[test]
    fn what_fails_is_counted_and_comes_back_and_what_is_under_way_is_in_flight() {
        let dir = tempfile::tempdir().unwrap();
        let below = FaultFs::default();
        let (fs, meters) = metered(Arc::new(below.clone()), &[dir.path()]);
        let file = fs.open(&dir.path().join("file"), OpenMode::CreateNew).unwrap();
        let seen = Arc::new(AtomicU64::new(0));
        let (meter, most) = (meters[0].clone(), seen.clone());
        below.watch(move |_| {
            most.fetch_max(meter.traffic().in_flight, Ordering::Relaxed);
        });
        file.write_all_at(b"1", 0).unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), 1);
        for (op, errno) in
            [(Op::Read, EIO), (Op::Write, EIO), (Op::Sync, EIO), (Op::SyncDir, EIO), (Op::Allocate, ENOSPC)]
        {
            below.fail(Fault::on(op).errno(errno));
        }
        let errors = [
            file.read_at(&mut [0; 1], 0).map(drop),
            file.write_all_at(b"23", 0),
            file.sync(),
            fs.sync_dir(dir.path()),
            file.allocate(10),
        ];
        let codes: Vec<Option<i32>> = errors.into_iter().map(|e| e.unwrap_err().raw_os_error()).collect();
        assert_eq!(codes, [Some(EIO), Some(EIO), Some(EIO), Some(EIO), Some(ENOSPC)]);
        let traffic = meters[0].traffic();
        assert_eq!((traffic.read_errors, traffic.write_errors, traffic.sync_errors), (1, 2, 2));
        // Those that failed took their time too; what they moved is not known.
        assert_eq!((traffic.read.count, traffic.write.count, traffic.sync.count), (1, 2, 2));
        assert_eq!((traffic.read_bytes, traffic.write_bytes, traffic.in_flight), (0, 1, 0));
    }
}
