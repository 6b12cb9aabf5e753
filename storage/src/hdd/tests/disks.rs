//! Disks that are full, fail to sync, or fail altogether, and what cannot be read of unknown generations and copies.

use super::*;
use crate::testing::ENOSPC;

#[test]
fn a_failed_sync_seals_the_generation_and_the_batch_goes_to_a_new_one() {
    let (mut bench, disk) = bad(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    let all = items(0, 60, 900);
    let mut written = open.write(&all[..20]);
    disk.fail(Fault::when(|c| c.op == Op::Sync && of_values(c.path)).times(1));
    written.extend(open.write(&all[20..40]));
    assert_eq!(disk.pending(), 0, "a sync did fail");
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
    let all = items(0, 40, 900);
    let mut written = open.write(&all[..20]);
    disk.fail(Fault::on_any(&[Op::Create, Op::Write]));
    let error = open.hdd.write(&all[20..], Purpose::Write).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    disk.heal();
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
    let all = items(0, 40, 900);
    let mut written = open.write(&all[..20]);
    disk.say_space(says(bench.config.reserve + 100));
    bench.clock.advance(2000);
    let error = open.hdd.write(&items(100, 200, 900), Purpose::Reclaim).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    disk.say_space(says(1 << 40));
    disk.fail(Fault::on(Op::Allocate).errno(ENOSPC));
    let before = open.hdd.usage().occupied;
    let error = open.hdd.write(&items(100, 200, 900), Purpose::Write).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    assert_eq!(open.hdd.usage().occupied, before, "what was refused is not charged");
    disk.heal();
    written.extend(open.write(&all[20..]));
    assert_eq!(open.check(&all, &written), 40);
    assert!(open.hdd.health().out_of_service.is_empty(), "a full disk is no broken disk");
}

#[test]
fn an_unknown_generation_that_cannot_be_read_is_nobodys_to_delete() {
    for op in [Op::Open, Op::Read] {
        let (mut bench, faults, _) = bad_closed(60);
        let path = bench.generations(0).remove(0);
        faults.fail(Fault::on(op).below(&path));
        let open = bench.open(&[]);
        assert!(path.exists() && open.report.deleted == 0, "{op:?}: {:?}", open.report);
        assert!(open.hdd.usage().occupied > 0, "{op:?}: it counts");
        open.hdd.close().unwrap();
        drop(open);
        faults.heal();
        let open = bench.open(&[]);
        assert!(!path.exists() && open.report.deleted == 1, "it was ours: {:?}", open.report);
        open.hdd.close().unwrap();
    }
}

#[test]
fn a_copy_of_a_generation_that_cannot_be_read_is_kept() {
    for op in [Op::Open, Op::Read] {
        let (mut bench, faults) = bad(&[Some(64 << 20), Some(64 << 20)]);
        let Closed { all, written, known } = closed(&mut bench, 60);
        let dir = usize::from(known[0].dir);
        let path = bench.generations(dir).remove(0);
        let copy = bench.dir(1 - dir).join("generations").join(path.file_name().unwrap());
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(path.join("values-0000"), copy.join("values-0000")).unwrap();
        faults.fail(Fault::on(op).below(&path));
        let open = bench.open(&known);
        assert!(copy.exists() && open.report.quarantined.is_empty(), "{op:?}: {:?}", open.report);
        assert_eq!(open.report.unseen[0].0, copy);
        open.hdd.close().unwrap();
        drop(open);
        faults.heal();
        let open = bench.open(&known);
        assert!(path.exists() && open.report.quarantined.len() == 1, "{op:?}: {:?}", open.report);
        assert_eq!(open.check(&all, &written), all.len());
        open.hdd.close().unwrap();
    }
}

#[test]
fn a_copy_of_a_generation_that_is_larger_than_the_quarantine_stays() {
    let mut bench = Bench::new(&[Some(64 << 20), Some(1 << 20)]);
    let Closed { all, written, known } = closed(&mut bench, 300);
    let path = bench.generations(0).remove(0);
    let copy = bench.dir(1).join("generations").join(path.file_name().unwrap());
    std::fs::create_dir(&copy).unwrap();
    let size = std::fs::copy(path.join("values-0000"), copy.join("values-0000")).unwrap();
    assert!(size > (1 << 20) / 20);
    let open = bench.open(&known);
    assert!(path.exists() && copy.exists(), "it is deleted: {:?}", open.report);
    assert!(open.report.quarantined[0].1.contains("left in its place"), "{:?}", open.report);
    assert_eq!(open.check(&all, &written), all.len());
    open.hdd.close().unwrap();
}
