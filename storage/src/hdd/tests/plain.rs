//! What works when nothing breaks.

use super::*;

fn items(from: u32, n: u32, len: usize) -> Vec<Item> {
    (from..from + n).map(|i| item(i, len + i as usize % 50)).collect()
}

#[test]
fn what_is_written_is_read_at_once_after_sealing_and_after_reopening() {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    let mut all = items(0, 500, 900);
    all.push(item(500, 300_000));
    all.extend(items(501, 200, 100));
    all.push(item(1000, 0));
    let mut written = open.write(&all[..300]);
    for one in &all[300..310] {
        written.extend(open.write(std::slice::from_ref(one)));
    }
    written.extend(open.write(&all[310..]));
    assert_eq!(open.check(&all, &written), all.len());
    assert_eq!(open.check(&all, &written), all.len(), "a second time, by the cached headers");
    open.settle();
    assert_eq!(open.check(&all, &written), all.len(), "by sled");
    let known = open.known();
    assert!(known.len() >= 3, "{known:?}");
    open.hdd.close().unwrap();
    assert!(open.hdd.write(&all[..1], Purpose::Write).is_err());
    drop(open);

    let again = bench.open(&known);
    assert!(again.report.missing.is_empty() && again.report.quarantined.is_empty());
    assert_eq!(again.check(&all, &written), all.len());
    again.settle();
    assert_eq!(again.hdd.health().rebuilt, 0, "{:?}", again.hdd.health());
    assert_eq!(again.hdd.health().faults, 0);
    assert!(again.hdd.health().open > 0);
    assert!(again.read(&Written { place: crate::Place::new(known[0].no, 9999).unwrap(), bytes: 0 }).is_err());
}
