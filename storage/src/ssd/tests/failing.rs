//! A file system that fails on purpose: full disks, failing syncs, failing directories.

use super::*;
use crate::testing::{EIO, ENOSPC, Fault, FaultFs, Op};

fn bench(dirs: Vec<TierDir>) -> (Bench, FaultFs) {
    let faults = FaultFs::default().without_maps();
    (Bench::new(dirs, config(64 * KIB), Arc::new(faults.clone())), faults)
}

/// Everything that was acknowledged is there.
fn check(b: &Bench, acknowledged: &[(Item, Place)]) {
    for (item, place) in acknowledged {
        assert_eq!(&b.read(*place).unwrap(), item);
    }
}

#[test]
fn after_a_failed_sync_the_batch_goes_to_a_new_segment() {
    let home = tempfile::tempdir().unwrap();
    let (mut b, faults) = bench(vec![dir(0, home.path(), 2048 * KIB)]);
    let first = items(5, 300);
    let w1 = b.put(&first);
    let (no, end) = (w1[0].place.container(), w1[4].place.position());
    faults.fail(Fault::on(Op::Sync).times(1));
    let second = [item("x", 50, 300), item("y", 51, 300)];
    let w2 = b.put(&second);
    assert_ne!(w2[0].place.container(), no);
    let failed = b.containers.get(no).unwrap();
    assert!(failed.sealed.load(Ordering::Relaxed));
    assert_eq!(failed.container.list().unwrap().len(), 5, "counts up to its last synced offset");
    assert_eq!(failed.records.load(Ordering::Relaxed), 5);
    for position in end + 1..end + 64 {
        assert!(failed.container.read(position).is_err(), "what came after was never handed out");
    }
    let mut all: Vec<_> = first.into_iter().zip(w1.iter().map(|w| w.place)).collect();
    all.extend(second.into_iter().zip(w2.iter().map(|w| w.place)));
    check(&b, &all);
    let third = items(3, 100);
    let w3 = b.put(&third);
    assert_eq!(w3[0].place.container(), w2[0].place.container(), "the directory stays in service");
    b.ssd.close().unwrap();
    b.reopen();
    check(&b, &all);
}

#[test]
fn two_failed_syncs_are_an_error_and_a_pause() {
    let home = tempfile::tempdir().unwrap();
    let (b, faults) = bench(vec![dir(0, home.path(), 2048 * KIB)]);
    b.put(&items(1, 100));
    // The batch, and in the new segment: header, batch.
    faults.fail(Fault::on(Op::Sync));
    for _ in 0..2 {
        let e = b.ssd.write(&items(2, 100), Purpose::Write).unwrap_err();
        assert!(matches!(e, Error::Io { op: "sync", .. } | Error::OutOfService { .. }), "{e}");
    }
    faults.heal();
    assert!(matches!(b.ssd.write(&items(2, 100), Purpose::Write), Err(Error::OutOfService { .. })));
    b.clock.advance(crate::tierdir::RETRY_MS - 1);
    b.ssd.maintain();
    assert!(b.ssd.write(&items(2, 100), Purpose::Write).is_err());
    b.clock.advance(1);
    b.ssd.maintain();
    b.put(&items(2, 100));
}

#[test]
fn a_retry_that_fails_after_its_segment_was_made_is_an_error_too() {
    let home = tempfile::tempdir().unwrap();
    let (b, faults) = bench(vec![dir(0, home.path(), 2048 * KIB)]);
    b.put(&items(1, 100));
    faults.fail(Fault::on(Op::Write).times(1));
    faults.fail(Fault::on(Op::Sync).after(1).times(1));
    let e = b.ssd.write(&items(2, 100), Purpose::Write).unwrap_err();
    assert!(matches!(e, Error::Io { op: "sync", .. }), "{e}");
    assert_eq!(b.containers.all().iter().map(|e| e.container.list().unwrap().len()).sum::<usize>(), 1);
}

#[test]
fn any_call_that_fails_costs_no_acknowledged_item() {
    for (which, errno) in [(0, EIO), (1, EIO), (2, EIO), (3, EIO), (4, EIO), (0, ENOSPC), (1, ENOSPC)] {
        for after in 0..8 {
            let home = tempfile::tempdir().unwrap();
            let (mut b, faults) = bench(vec![dir(0, home.path(), 4096 * KIB)]);
            let op = [Op::Allocate, Op::Write, Op::Sync, Op::SyncDir, Op::Rename][which];
            faults.fail(Fault::on(op).after(after).times(1).errno(errno));
            let mut all: Vec<(Item, Place)> = Vec::new();
            let mut errors = 0;
            for n in 0..12 {
                let batch = [item("a", n * 2, 9000), item("b", n * 2 + 1, 9000)];
                match b.ssd.write(&batch, Purpose::Write) {
                    Ok(w) => all.extend(batch.into_iter().zip(w.iter().map(|w| w.place))),
                    Err(e) => {
                        errors += 1;
                        assert!(matches!(e, Error::Io { .. } | Error::OutOfService { .. }), "{e}");
                        b.clock.advance(crate::tierdir::RETRY_MS);
                        b.ssd.maintain();
                    }
                }
            }
            assert!(errors <= 1, "usable again at once");
            check(&b, &all);
            let placed: std::collections::HashSet<_> = all.iter().map(|(_, p)| *p).collect();
            assert_eq!(placed.len(), all.len(), "no place twice");
            b.ssd.close().unwrap();
            assert_eq!(b.ssd.usage().occupied, b.on_disk(), "which {which} after {after}");
            b.reopen();
            assert!(b.report.missing.is_empty() && b.report.quarantined.is_empty());
            assert_eq!(b.report.deleted, 0, "nothing was left behind");
            check(&b, &all);
        }
    }
}

#[test]
fn a_full_disk_is_an_error_and_then_not() {
    let home = tempfile::tempdir().unwrap();
    let (b, faults) = bench(vec![dir(0, home.path(), 4096 * KIB)]);
    for op in [Op::Allocate, Op::Write] {
        b.ssd.seal().unwrap();
        faults.fail(Fault::on(op).errno(ENOSPC));
        for _ in 0..3 {
            let e = b.ssd.write(&items(3, 100), Purpose::Write).unwrap_err();
            assert!(e.is_no_space(), "{e}");
        }
        faults.heal();
        let w = b.put(&items(3, 100));
        assert_eq!(b.read(w[2].place).unwrap(), items(3, 100)[2]);
    }
    assert_eq!(b.ssd.usage().occupied, b.on_disk());
}

#[test]
fn a_failing_directory_is_left_for_another() {
    let (a, c) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (b, faults) = bench(vec![dir(0, a.path(), 4096 * KIB), dir(1, c.path(), 2048 * KIB)]);
    let w = b.put(&items(1, 100));
    let dir_of = |w: &[Written]| b.containers.get(w[0].place.container()).unwrap().dir;
    assert_eq!(dir_of(&w), 0);
    faults.fail(Fault::on(Op::Sync).below(a.path()));
    let w2 = b.put(&items(2, 100));
    assert_eq!(dir_of(&w2), 1);
    b.ssd.seal().unwrap();
    assert_eq!(dir_of(&b.put(&items(1, 100))), 1, "out of service for new segments");
    assert_eq!(b.read(w[0].place).unwrap(), items(1, 100)[0], "and still read");
    faults.heal();
    b.clock.advance(crate::tierdir::RETRY_MS);
    b.ssd.maintain();
    b.ssd.seal().unwrap();
    assert_eq!(dir_of(&b.put(&items(1, 100))), 0);
}

#[test]
fn a_removal_that_is_not_durable_is_an_error_and_can_be_repeated() {
    let home = tempfile::tempdir().unwrap();
    let (b, faults) = bench(vec![dir(0, home.path(), 2048 * KIB)]);
    let w = b.put(&items(1, 100));
    b.ssd.seal().unwrap();
    let entry = b.containers.remove(w[0].place.container()).unwrap();
    faults.fail(Fault::on(Op::RemoveFile).times(1));
    faults.fail(Fault::on(Op::SyncDir).times(1));
    for _ in 0..2 {
        assert!(b.ssd.drop_container(&entry).is_err());
        assert_eq!(b.ssd.usage().occupied, 64 * KIB);
    }
    b.ssd.drop_container(&entry).unwrap();
    assert_eq!(b.ssd.usage().occupied, 0);
    b.ssd.drop_container(&entry).unwrap();
}

#[test]
fn an_unreadable_segment_is_unreachable_not_lost() {
    let home = tempfile::tempdir().unwrap();
    let (mut b, faults) = bench(vec![dir(0, home.path(), 2048 * KIB)]);
    let all = items(3, 100);
    let w = b.put(&all);
    b.ssd.close().unwrap();
    for op in [Op::Open, Op::Read] {
        faults.fail(Fault::on(op));
        b.reopen();
        assert!(b.report.missing.is_empty() && b.report.quarantined.is_empty());
        for w in &w {
            assert!(matches!(b.read(w.place), Err(Error::Io { .. })));
        }
        let entry = b.containers.get(w[0].place.container()).unwrap();
        assert!(entry.container.list().is_err());
        assert!(entry.container.raw(128).is_none());
        assert_eq!(b.ssd.usage().occupied, 64 * KIB);
        faults.heal();
    }
    for (i, w) in all.iter().zip(&w) {
        assert_eq!(&b.read(w.place).unwrap(), i, "back as soon as the device is");
    }
    faults.fail(Fault::on(Op::Open));
    b.reopen();
    faults.heal();
    b.remove(w[0].place.container());
    assert!(b.files().is_empty(), "what cannot be opened can be dropped");
}

#[test]
fn a_bad_sector_behind_a_record_does_not_take_it_along() {
    let home = tempfile::tempdir().unwrap();
    let (b, faults) = bench(vec![dir(0, home.path(), 2048 * KIB)]);
    let all = items(3, 1000);
    let w = b.put(&all);
    faults.fail(Fault::on(Op::Read).times(1));
    assert_eq!(b.read(w[0].place).unwrap(), all[0], "the large read fails, the exact one does not");
    faults.fail(Fault::on(Op::Read).times(2));
    assert!(matches!(b.read(w[0].place), Err(Error::Io { .. })));
}

#[test]
fn a_scan_passes_over_what_cannot_be_read_and_gives_up_on_a_dead_device() {
    let home = tempfile::tempdir().unwrap();
    let (mut b, faults) = bench(vec![dir(0, home.path(), 2048 * KIB)]);
    let all = items(30, 1000);
    b.put(&all);
    b.reopen();
    let entry = b.containers.all().remove(0);
    // The trailer; then the window, and the block that is tried in its place.
    faults.fail(Fault::on(Op::Read).after(1).times(2));
    let found = entry.container.list().unwrap().len();
    assert!((25..30).contains(&found), "{found}");
    faults.fail(Fault::on(Op::Read));
    assert!(matches!(entry.container.list(), Err(Error::Io { .. })));
}

#[test]
fn an_unknown_segment_that_cannot_be_read_is_nobodys_to_delete() {
    for op in [Op::Open, Op::Read] {
        let home = tempfile::tempdir().unwrap();
        let (mut b, faults) = bench(vec![dir(0, home.path(), 2048 * KIB)]);
        b.put(&items(5, 300));
        b.ssd.close().unwrap();
        let (path, before) = (b.files().remove(0), b.ssd.usage().occupied);
        faults.fail(Fault::on(op).below(&path));
        b.reopen_with(Vec::new(), Unknown::Delete);
        assert!(path.exists() && b.report.deleted == 0, "{op:?}: {:?}", b.report);
        assert_eq!(b.ssd.usage().occupied, before, "it counts");
        faults.heal();
        b.reopen_with(Vec::new(), Unknown::Delete);
        assert!(!path.exists() && b.report.deleted == 1, "it was ours: {:?}", b.report);
    }
}

#[test]
fn a_copy_of_a_segment_that_cannot_be_read_is_kept() {
    for op in [Op::Open, Op::Read] {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut b, faults) = bench(vec![dir(0, one.path(), 2048 * KIB), dir(1, two.path(), 2048 * KIB)]);
        let (all, w) = (items(5, 300), b.put(&items(5, 300)));
        b.ssd.close().unwrap();
        let path = b.files().remove(0);
        let other = if path.starts_with(one.path()) { two.path() } else { one.path() };
        let copy = other.join(FOLDER).join(path.file_name().unwrap());
        std::fs::copy(&path, &copy).unwrap();
        let known = b.known();
        faults.fail(Fault::on(op).below(&path));
        b.reopen_with(known.clone(), Unknown::Delete);
        assert!(copy.exists() && b.report.quarantined.is_empty(), "{op:?}: {:?}", b.report);
        assert_eq!(b.report.unseen[0].0, copy);
        assert!(b.read(w[0].place).is_err());
        faults.heal();
        b.reopen_with(known, Unknown::Delete);
        assert!(path.exists() && b.report.quarantined.len() == 1, "{op:?}: {:?}", b.report);
        check(&b, &all.into_iter().zip(w.iter().map(|w| w.place)).collect::<Vec<_>>());
    }
}

/// What stands in the files of a directory.
fn stands(b: &Bench, of: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = b.files().into_iter().filter(|path| path.starts_with(of));
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn an_open_segment_gets_nothing_more_where_its_directory_is_out_of_service() {
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let dirs = homes.iter().zip(0..).map(|(home, no)| dir(no, home.path(), 2048 * KIB)).collect();
    let (b, _) = bench(dirs);
    let out = |no: u16| {
        let dir = b.ssd.room.dirs.get(no).unwrap();
        let why = Error::io("write", &dir.path, std::io::Error::from_raw_os_error(EIO));
        (0..2).for_each(|_| b.ssd.room.dirs.failed(dir, &why));
    };
    let dir_of = |w: &Written| b.containers.get(w.place.container()).unwrap().dir;
    let w = b.put(&items(3, 100));
    let gone = dir_of(&w[0]);
    out(gone);
    let before = stands(&b, homes[usize::from(gone)].path());
    let w = b.put(&[item("x", 50, 100)]);
    assert_eq!(dir_of(&w[0]), 1 - gone);
    out(1 - gone);
    let other = stands(&b, homes[usize::from(1 - gone)].path());
    assert!(matches!(b.ssd.write(&[item("y", 51, 100)], Purpose::Write), Err(Error::OutOfService { .. })));
    b.ssd.seal().unwrap();
    b.ssd.close().unwrap();
    assert!(before == stands(&b, homes[usize::from(gone)].path()), "it was written to");
    assert!(other == stands(&b, homes[usize::from(1 - gone)].path()), "the other one was written to");
}
