//! Disks that are full, fail or come back.

use super::*;
use crate::testing::{ENOSPC, Fault, FaultFs, Op};
use crate::vfs::Space;

/// Writes beyond so many bytes of a file fail: a full disk.
fn full(most: u64) -> Fault {
    Fault::when(move |c| c.op == Op::Write && c.range.end > most).errno(ENOSPC)
}

struct Faulted {
    bench: Bench,
    faults: FaultFs,
    cold: Arc<Cold>,
    containers: Arc<Containers>,
}

fn faulted(dirs: usize) -> Faulted {
    let mut bench = Bench::new(dirs);
    let faults = FaultFs::default().without_syncs();
    // The first directory always has most room, so that tests know where packs go.
    faults.say_space(|path| Space {
        free: if path.ends_with("first") { 1 << 40 } else { 1 << 39 },
        total: 1 << 41,
    });
    bench.vfs = Arc::new(faults.clone());
    bench.config.pack_size = SMALLEST_PACK;
    let first = bench.dirs[0].path.join("first");
    std::fs::create_dir(&first).unwrap();
    bench.dirs[0].path = first;
    let (cold, containers) = bench.open();
    Faulted { bench, faults, cold, containers }
}

impl Faulted {
    fn set(&self, dir: usize, fault: Fault) {
        self.faults.fail(fault.below(&self.bench.dirs[dir].path));
    }

    fn write(&self) -> Result<Vec<Written>> {
        self.cold.write(&mixed(), Purpose::Write)
    }

    /// Everything of the last write can be read and lies in this directory.
    fn check(&self, written: &[Written], dir: u16) {
        for (item, w) in mixed().iter().zip(written) {
            assert_eq!(facts(&read(&self.containers, w).unwrap()), facts(item));
            assert_eq!(self.containers.get(w.place.container()).unwrap().dir, dir);
        }
    }

    fn nothing_is_left(&self, dir: usize) {
        assert!(self.bench.files(dir).is_empty(), "{:?}", self.bench.files(dir));
        assert_eq!(self.cold.dirs[dir].occupied(), 0);
    }
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    for most in [0, 100, 2000] {
        let t = faulted(1);
        t.set(0, full(most));
        let e = t.write().unwrap_err();
        assert!(e.is_no_space(), "{e}");
        t.nothing_is_left(0);
        assert!(t.containers.all().is_empty());
        t.faults.heal();
        let written = t.write().unwrap();
        t.check(&written, 0);
    }
}

#[test]
fn every_failing_step_is_an_error_and_leaves_nothing() {
    for fault in [Op::Sync, Op::SyncDir, Op::Rename] {
        let t = faulted(1);
        t.set(0, Fault::on(fault));
        let e = t.write().unwrap_err();
        assert!(matches!(e, Error::Io { .. }), "{fault:?}: {e}");
        t.nothing_is_left(0);
        assert!(t.containers.all().is_empty(), "{fault:?}");
        t.faults.heal();
        let refused = t.write().unwrap_err();
        assert!(matches!(refused, Error::OutOfService { .. }), "{fault:?}: {refused}");
        t.cold.maintain();
        assert!(t.write().is_err(), "too early to try again");
        t.bench.clock.advance(30_000);
        t.cold.maintain();
        let written = t.write().unwrap();
        t.check(&written, 0);
    }
}

#[test]
fn a_directory_that_still_fails_stays_out() {
    let t = faulted(1);
    t.set(0, Fault::on(Op::Sync));
    t.write().unwrap_err();
    t.bench.clock.advance(30_000);
    t.cold.maintain();
    assert!(matches!(t.write(), Err(Error::OutOfService { .. })));
    t.nothing_is_left(0);
}

#[test]
fn one_failed_sync_is_tried_again_in_a_new_pack() {
    let t = faulted(1);
    t.set(0, Fault::on(Op::Sync).times(1));
    let written = t.cold.write(&mixed()[..3], Purpose::Write).unwrap();
    t.check(&written, 0);
    assert_eq!(t.faults.pending(), 0, "the sync failed");
    assert_eq!(t.bench.files(0).len(), 1, "{:?}", t.bench.files(0));
    assert!(t.cold.dirs[0].in_service());
}

#[test]
fn a_record_costs_one_read_and_a_long_one_two() {
    let t = faulted(1);
    let long = item(b"long", &noise(1, 20_000), Codec::None, 3);
    let items = [item(b"a", b"short", Codec::None, 1), item(b"b", &noise(2, 6000), Codec::None, 2), long];
    let written = t.cold.write(&items, Purpose::Write).unwrap();
    for (w, cost) in written.iter().zip([1, 1, 2]) {
        let before = t.faults.calls(Op::Read);
        read(&t.containers, w).unwrap();
        assert_eq!(t.faults.calls(Op::Read) - before, cost);
    }
}

#[test]
fn another_directory_takes_over() {
    for sync in [true, false] {
        let t = faulted(2);
        let written = t.write().unwrap();
        t.check(&written, 0);
        let before = t.bench.files(0);
        t.set(0, if sync { Fault::on(Op::Sync) } else { full(10) });
        let written = t.write().unwrap();
        t.check(&written, 1);
        assert_eq!(t.bench.files(0), before, "sync: {sync}");
        // Reading the first goes on; the full one is not out of service.
        assert_eq!(t.cold.dirs[0].in_service(), !sync);
    }
}

#[test]
fn a_later_pack_that_fails_takes_the_earlier_ones_with_it() {
    let t = faulted(1);
    t.set(0, full(100_000));
    let mut items: Vec<Item> =
        (0..20).map(|i| item(format!("k{i}").as_bytes(), &noise(i, 10_000), Codec::None, i)).collect();
    items.push(item(b"large", &noise(77, 200_000), Codec::None, 77));
    assert!(t.cold.write(&items, Purpose::Reclaim).unwrap_err().is_no_space());
    t.nothing_is_left(0);
    assert!(t.containers.all().is_empty());
    items.pop();
    assert_eq!(t.cold.write(&items, Purpose::Reclaim).unwrap().len(), 20);
    assert!(t.bench.files(0).len() > 3);
}

#[test]
fn what_cannot_be_removed_keeps_counting_and_goes_at_the_next_opening() {
    let mut t = faulted(1);
    t.set(0, Fault::on(Op::SyncDir));
    t.set(0, Fault::on(Op::RemoveFile));
    t.write().unwrap_err();
    let left = t.bench.files(0);
    assert!(!left.is_empty());
    assert!(t.cold.usage().occupied > 0);
    t.faults.heal();
    let (cold, report, _) = t.bench.try_open(vec![], Unknown::Delete).unwrap();
    assert_eq!(report.deleted, left.len() as u64);
    assert_eq!(cold.usage().occupied, 0);
}

#[test]
fn a_stray_file_does_not_keep_the_archive_from_opening() {
    let mut t = faulted(1);
    t.write().unwrap();
    write_file(&t.bench.folder(0).join("pack-00.tmp"), &noise(1, 1000));
    let files = t.bench.files(0);
    let len = |name: &String| std::fs::metadata(t.bench.folder(0).join(name)).unwrap().len();
    let bytes: u64 = files.iter().map(len).sum();
    for (fault, unknown, unseen) in [
        (Op::Open, Unknown::Delete, 0),
        (Op::Read, Unknown::Delete, 0),
        (Op::RemoveFile, Unknown::Delete, 0),
        (Op::Open, Unknown::Attach, files.len() - 1),
        (Op::Read, Unknown::Attach, files.len() - 1),
    ] {
        write_file(&t.bench.folder(0).join("pack-00.tmp"), &noise(1, 1000));
        t.set(0, Fault::on(fault));
        let (cold, report, containers) = t.bench.try_open(vec![], unknown).unwrap();
        assert_eq!(report.unseen.len(), unseen, "{fault:?} {unknown:?}: {report:?}");
        assert!(report.quarantined.is_empty() && containers.all().is_empty(), "{fault:?}");
        let left = t.bench.files(0);
        assert_eq!(left.len(), files.len() - usize::from(fault != Op::RemoveFile), "{fault:?}");
        let gone = if fault == Op::RemoveFile { 0 } else { 1000 };
        assert_eq!(cold.usage().occupied, bytes - gone, "{fault:?}");
        t.faults.heal();
    }
    // What another program put there cannot be moved: it stays, and is told.
    write_file(&t.bench.folder(0).join("pack-00.zip"), &noise(2, 1000));
    write_file(&t.bench.folder(0).join("pack-00000000000000ff.zip"), &noise(2, 1000));
    t.set(0, Fault::on(Op::Rename));
    let (_, report, _) = t.bench.try_open(vec![], Unknown::Delete).unwrap();
    assert_eq!(report.quarantined.len(), 1, "{report:?}");
    assert!(t.bench.files(0).contains(&"pack-00000000000000ff.zip".to_owned()));
}

#[test]
fn a_disk_that_cannot_be_read_is_unreachable_not_damaged() {
    let t = faulted(1);
    let written = t.write().unwrap();
    t.set(0, Fault::on(Op::Read));
    let entry = t.containers.get(written[0].place.container()).unwrap();
    for e in [
        entry.container.read(written[0].place.position()).unwrap_err(),
        entry.container.head(written[0].place.position()).unwrap_err(),
        entry.container.list().unwrap_err(),
    ] {
        assert!(matches!(e, Error::Io { .. }), "{e}");
    }
    t.faults.heal();
    t.check(&written, 0);
}

#[test]
fn a_drop_that_failed_can_be_repeated() {
    for fault in [Op::RemoveFile, Op::SyncDir] {
        let t = faulted(1);
        let written = t.cold.write(&mixed()[..3], Purpose::Write).unwrap();
        let entry = t.containers.remove(written[0].place.container()).unwrap();
        t.set(0, Fault::on(fault));
        assert!(t.cold.drop_container(&entry).is_err(), "{fault:?}");
        t.faults.heal();
        t.cold.drop_container(&entry).unwrap();
        t.nothing_is_left(0);
    }
}

#[test]
fn packs_go_where_there_is_most_room() {
    let mut bench = Bench::new(2);
    bench.config.pack_size = SMALLEST_PACK;
    bench.dirs[0].limit = Some(1 << 20);
    bench.dirs[1].limit = Some(1 << 20);
    let (cold, containers) = bench.open();
    for i in 0..20 {
        cold.write(&[item(&[i], &noise(i.into(), 20_000), Codec::None, i.into())], Purpose::Write).unwrap();
    }
    let in_first = containers.all().iter().filter(|e| e.dir == 0).count();
    assert_eq!(in_first, 10);
    let known: Vec<Known> = containers.all().iter().map(|e| e.known()).collect();
    let (again, report, _) = bench.try_open(known, Unknown::Delete).unwrap();
    assert!(report.missing.is_empty());
    assert_eq!(again.usage(), Usage { written: 0, ..cold.usage() });
}

#[test]
fn a_copy_of_a_pack_that_cannot_be_read_is_kept() {
    for op in [Op::Open, Op::Read] {
        let mut t = faulted(2);
        t.write().unwrap();
        let known: Vec<Known> = t.containers.all().iter().map(|e| e.known()).collect();
        let dir = usize::from(known[0].dir);
        let name = t.bench.files(dir).remove(0);
        let (path, copy) = (t.bench.folder(dir).join(&name), t.bench.folder(1 - dir).join(&name));
        std::fs::copy(&path, &copy).unwrap();
        t.faults.fail(Fault::on(op).below(&path));
        let (_, report, _) = t.bench.try_open(known.clone(), Unknown::Delete).unwrap();
        assert!(copy.exists() && report.quarantined.is_empty(), "{op:?}: {report:?}");
        assert_eq!(report.unseen[0].0, copy);
        t.faults.heal();
        let (_, report, _) = t.bench.try_open(known, Unknown::Delete).unwrap();
        assert!(path.exists() && report.quarantined.len() == 1, "{op:?}: {report:?}");
    }
}
