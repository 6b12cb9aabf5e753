//! Generations that are dropped, and what a power cut leaves of them.

use super::*;
use crate::sim::{Dice, SimFs, Trouble};

/// A tier with one generation on a simulated disk, and what its catalog knows.
fn simulated(seed: u64) -> (Bench, SimFs, Open, Vec<Known>) {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    let disk = SimFs::new(seed).with_dir(&bench.dir(0));
    bench.vfs = Arc::new(disk.clone());
    bench.factory = None;
    let open = bench.open(&[]);
    open.write(&items(0, 60, 900));
    let known = open.known();
    (bench, disk, open, known)
}

/// A catalog that still knows the generation finds it whole, or finds that it is gone; never without its values. Says
/// whether it is there.
fn survives(bench: &mut Bench, cut: SimFs, known: &[Known]) -> bool {
    bench.vfs = Arc::new(cut);
    let open = bench.open(known);
    let report = &open.report;
    assert!(report.quarantined.is_empty() && report.unseen.is_empty(), "damage that nobody did: {report:?}");
    let there = report.missing.is_empty();
    for entry in open.containers.all() {
        assert_eq!(entry.container.list().unwrap().len(), 60);
    }
    open.hdd.close().unwrap();
    there
}

/// A sync of the directory that fails may forget the new name for good, while the next succeeds: the files would then be
/// removed, durably, from under the old name.
#[test]
fn a_generation_whose_drop_is_tried_again_comes_back_whole_or_not_at_all() {
    let mut came_back = 0;
    for seed in 0..8 {
        let (mut bench, disk, open, known) = simulated(seed);
        let entry = open.containers.all().remove(0);
        disk.fail(Fault::on(Op::SyncDir).trouble(Trouble::Forgotten).times(1));
        let error = open.hdd.drop_container(&entry).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        let cut = |dice: u64| [disk.crash(&mut Dice::new(dice)), disk.kill(), disk.crash_losing_all()];
        for cut in (0..12).flat_map(cut) {
            came_back += u32::from(survives(&mut bench, cut, &known));
        }
        open.hdd.drop_container(&entry).unwrap();
        for cut in (0..12).flat_map(cut) {
            assert!(!survives(&mut bench, cut, &known), "its drop had succeeded");
        }
        open.hdd.close().unwrap();
    }
    assert!(came_back > 0, "no new name was forgotten");
}
