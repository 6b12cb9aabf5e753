//! sled that panics, hangs and lies; disks that are full, fail to sync, or fail altogether.

use super::*;
use crate::vfs::{DirEntry, EntryKind, Map, OpenMode, Space, VfsFile, VfsLock};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize};

fn items(from: u32, n: u32) -> Vec<Item> {
    (from..from + n).map(|i| item(i, 900)).collect()
}

fn faulty(trouble: Trouble) -> (Bench, Arc<FaultyFactory>) {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    let factory = Arc::new(FaultyFactory::new(trouble));
    bench.factory = Some(factory.clone());
    bench.config.sled_deadline = Duration::from_millis(300);
    bench.config.open_wait = Duration::from_secs(20);
    (bench, factory)
}

#[test]
fn whatever_an_index_does_every_record_is_served_in_time() {
    for trouble in [
        Trouble::PanicAtOpen,
        Trouble::HangAtOpen,
        Trouble::PanicAtInsert,
        Trouble::FailAtInsert,
        Trouble::PanicAtLookup,
        Trouble::HangAtLookup,
        Trouble::HangAtClose,
        Trouble::Lie,
        Trouble::Forget,
    ] {
        let (mut bench, factory) = faulty(trouble);
        // A panic takes long where its backtrace is being printed, and is then a hang.
        let begin = Instant::now();
        let open = bench.open(&[]);
        let all = items(0, 1000);
        let written: Vec<_> = all.chunks(100).flat_map(|c| open.write(c)).collect();
        assert_eq!(open.check(&all, &written), all.len(), "{trouble:?}");
        open.settle();
        assert_eq!(open.check(&all, &written), all.len(), "{trouble:?}");
        let health = open.hdd.health();
        let lied = matches!(trouble, Trouble::Lie | Trouble::Forget);
        assert_eq!(health.ram_only, !lied, "two faults are enough: {trouble:?} {health:?}");
        assert_eq!(health.faults >= 2, !lied, "{trouble:?} {health:?}");
        let known = open.known();
        open.hdd.close().unwrap();
        drop(open);
        assert!(begin.elapsed() < Duration::from_secs(30), "{trouble:?}: {:?}", begin.elapsed());

        factory.set(Trouble::None);
        let open = bench.open(&known);
        assert_eq!(open.check(&all, &written), all.len(), "{trouble:?}");
        open.settle();
        let health = open.hdd.health();
        assert!(!health.ram_only && health.faults == 0, "a restart begins anew: {health:?}");
        open.hdd.close().unwrap();
        for generation in bench.generations(0) {
            for part in std::fs::read_dir(generation).unwrap() {
                assert!(!part.unwrap().file_name().to_string_lossy().contains("abandoned"), "{trouble:?}");
            }
        }
        if matches!(trouble, Trouble::PanicAtLookup | Trouble::HangAtLookup | Trouble::HangAtClose) {
            let quarantine = std::fs::read_dir(bench.dir(0).join("quarantine")).unwrap();
            assert!(quarantine.count() >= 2, "{trouble:?}");
        }
    }
}

#[test]
fn one_fault_costs_one_database_and_not_the_tier() {
    let (mut bench, factory) = faulty(Trouble::None);
    let open = bench.open(&[]);
    let all = items(0, 1000);
    let written = open.write(&all);
    open.settle();
    factory.set(Trouble::PanicAtLookup);
    assert_eq!(open.read(&written[0]).unwrap(), all[0]);
    factory.set(Trouble::None);
    assert_eq!(open.check(&all, &written), all.len());
    open.settle();
    let health = open.hdd.health();
    assert_eq!((health.faults, health.ram_only, health.abandoned.len()), (1, false, 1), "{health:?}");
}

#[test]
fn a_database_with_another_sentinel_is_not_asked() {
    let (mut bench, factory) = faulty(Trouble::None);
    let open = bench.open(&[]);
    let all = items(0, 300);
    let written = open.write(&all);
    let known = open.known();
    open.hdd.close().unwrap();
    drop(open);
    factory.set(Trouble::OtherSentinel);
    let open = bench.open(&known);
    assert_eq!(open.check(&all, &written), all.len());
    open.settle();
    let health = open.hdd.health();
    assert!(health.rebuilt as usize >= known.len() && health.open == 0, "{health:?}");
}

#[test]
fn a_generation_that_does_not_open_in_time_is_busy_not_missing() {
    let (mut bench, factory) = faulty(Trouble::None);
    let open = bench.open(&[]);
    let all = items(0, 300);
    let written = open.write(&all);
    open.settle();
    let known = open.known();
    open.hdd.close().unwrap();
    drop(open);
    factory.set(Trouble::HangAtOpen);
    bench.config.sled_deadline = Duration::from_millis(400);
    bench.config.open_wait = Duration::from_millis(50);
    let open = bench.open(&known);
    assert!(matches!(open.read(&written[0]), Err(Error::Busy(_))));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(open.check(&all, &written), all.len(), "rebuilt");
}

/// A disk that fails as told.
#[derive(Debug, Default)]
struct Bad {
    /// Syncs of files in this many more syncs fail; counts down.
    syncs_until_failure: AtomicUsize,
    fail_sync: AtomicBool,
    fail_writes: AtomicBool,
    full: AtomicBool,
    unreadable: AtomicBool,
    free: AtomicU64,
}

#[derive(Debug)]
struct BadFs(Arc<Bad>);

#[derive(Debug)]
struct BadFile(Arc<Bad>, Arc<dyn VfsFile>, bool);

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl Vfs for BadFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        let values = path.to_string_lossy().contains("values-");
        if mode == OpenMode::CreateNew && self.0.fail_writes.load(Ordering::SeqCst) {
            return Err(eio());
        }
        Ok(Arc::new(BadFile(self.0.clone(), RealFs.open(path, mode)?, values)))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealFs.create_dir_all(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        RealFs.read_dir(path)
    }
    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        RealFs.kind(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealFs.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        RealFs.remove_dir_all(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealFs.sync_dir(path)
    }
    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        RealFs.try_lock(path)
    }
    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(Space { free: self.0.free.load(Ordering::SeqCst), total: 1 << 40 })
    }
}

impl VfsFile for BadFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.2 && offset >= 8192 && self.0.unreadable.load(Ordering::SeqCst) {
            return Err(eio());
        }
        self.1.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if self.0.fail_writes.load(Ordering::SeqCst) {
            return Err(eio());
        }
        self.1.write_all_at(buf, offset)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        if self.0.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.1.allocate(len)
    }
    fn sync(&self) -> io::Result<()> {
        if self.2 && self.0.fail_sync.load(Ordering::SeqCst) {
            let left = self.0.syncs_until_failure.load(Ordering::SeqCst);
            if left == 0 {
                self.0.fail_sync.store(false, Ordering::SeqCst);
                return Err(eio());
            }
            self.0.syncs_until_failure.store(left - 1, Ordering::SeqCst);
        }
        self.1.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.1.len()
    }
    fn allocated(&self) -> io::Result<u64> {
        self.1.allocated()
    }
    fn map(&self, len: u64) -> io::Result<Option<Map>> {
        self.1.map(len)
    }
}

fn bad(limits: &[Option<u64>]) -> (Bench, Arc<Bad>) {
    let disk = Arc::new(Bad { free: AtomicU64::new(1 << 40), ..Bad::default() });
    let mut bench = Bench::new(limits);
    bench.vfs = Arc::new(BadFs(disk.clone()));
    bench.factory = None;
    (bench, disk)
}

#[test]
fn a_failed_sync_seals_the_generation_and_the_batch_goes_to_a_new_one() {
    let (mut bench, disk) = bad(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    let all = items(0, 60);
    let mut written = open.write(&all[..20]);
    disk.fail_sync.store(true, Ordering::SeqCst);
    written.extend(open.write(&all[20..40]));
    assert!(!disk.fail_sync.load(Ordering::SeqCst), "a sync did fail");
    assert_ne!(written[0].place.container(), written[20].place.container());
    let first = open.containers.get(written[0].place.container()).unwrap();
    assert!(first.sealed.load(Ordering::Relaxed));
    assert_eq!(first.container.list().unwrap().len(), 20, "it counts up to what was synced");
    written.extend(open.write(&all[40..]));
    assert_eq!(written[40].place.container(), written[20].place.container());
    assert_eq!(open.check(&all, &written), 60);
    let known = open.known();
    open.hdd.close().unwrap();
    drop(open);
    let open = bench.open(&known);
    assert_eq!(open.check(&all, &written), 60);
}

#[test]
fn a_disk_that_fails_is_left_alone_and_comes_back() {
    let (mut bench, disk) = bad(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    let all = items(0, 40);
    let mut written = open.write(&all[..20]);
    disk.fail_writes.store(true, Ordering::SeqCst);
    let error = open.hdd.write(&all[20..], Purpose::Write).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    disk.fail_writes.store(false, Ordering::SeqCst);
    let error = open.hdd.write(&all[20..], Purpose::Write).unwrap_err();
    assert!(matches!(error, Error::OutOfService { .. }), "{error}");
    assert_eq!(open.hdd.health().out_of_service.len(), 1);
    assert_eq!(open.check(&all[..20], &written), 20, "it is still read");
    bench.clock.advance(29_000);
    open.hdd.maintain();
    assert!(open.hdd.write(&all[20..], Purpose::Write).is_err());
    bench.clock.advance(2_000);
    open.hdd.maintain();
    written.extend(open.write(&all[20..]));
    assert_eq!(open.check(&all, &written), 40);
}

#[test]
fn a_full_disk_is_said_and_the_reserve_stays_free() {
    let (mut bench, disk) = bad(&[None]);
    let open = bench.open(&[]);
    let all = items(0, 40);
    let mut written = open.write(&all[..20]);
    disk.free.store(bench.config.reserve + 100, Ordering::SeqCst);
    bench.clock.advance(2000);
    let error = open.hdd.write(&items(100, 200), Purpose::Reclaim).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    disk.free.store(1 << 40, Ordering::SeqCst);
    disk.full.store(true, Ordering::SeqCst);
    let before = open.hdd.usage().occupied;
    let error = open.hdd.write(&items(100, 200), Purpose::Write).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    assert_eq!(open.hdd.usage().occupied, before, "what was refused is not charged");
    disk.full.store(false, Ordering::SeqCst);
    written.extend(open.write(&all[20..]));
    assert_eq!(open.check(&all, &written), 40);
    assert!(open.hdd.health().out_of_service.is_empty(), "a full disk is no broken disk");
}

#[test]
fn what_cannot_be_reached_is_not_called_damaged() {
    let (mut bench, disk) = bad(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    let all = items(0, 100);
    let written = open.write(&all);
    let known = open.known();
    open.hdd.close().unwrap();
    drop(open);
    disk.unreadable.store(true, Ordering::SeqCst);
    let open = bench.open(&known);
    for w in &written {
        let error = open.read(w).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
}
