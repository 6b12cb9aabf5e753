//! What stands behind a record, and what a scan needs, read at once; and what is kept of it.

use super::*;
use crate::testing::{FaultFs, Op};

#[test]
fn the_neighbours_of_a_record_come_with_one_read_and_verified() {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    bench.config.generation_size = 8 << 20;
    let disk = FaultFs::default();
    bench.vfs = Arc::new(disk.clone());
    let open = bench.open(&[]);
    let items: Vec<Item> = (0..400).map(|n| item(n, 500)).collect();
    let written = open.write(&items);
    open.settle();
    let container = open.containers.get(written[0].place.container()).unwrap().container.clone();
    container.read(written[3].place.position()).unwrap();
    let reads = disk.calls(Op::Read);
    let found = container.following(written[3].place.position(), 64 << 10).unwrap();
    // One for its head, and one for all of them; over several blocks of 8 KiB.
    assert!(disk.calls(Op::Read) <= reads + 2, "{} reads", disk.calls(Op::Read) - reads);
    assert!((100..130).contains(&found.len()), "{}", found.len());
    for (n, (position, found)) in found.iter().enumerate() {
        assert_eq!((*position, found), (written[4 + n].place.position(), &items[4 + n]));
    }
    assert!(container.following(written[399].place.position(), 64 << 10).unwrap().is_empty(), "the last one");
    assert!(
        container.following(written[3].place.position(), 100).unwrap().is_empty(),
        "none is whole in so few"
    );
    // A bit of the sixth behind it: the five before it are good.
    let (path, bytes) = {
        let raw = container.raw(written[9].place.position()).unwrap();
        (raw.path, raw.offset + raw.bytes.len() as u64 / 2)
    };
    let mut file = std::fs::read(&path).unwrap();
    file[bytes as usize] ^= 1;
    std::fs::write(&path, file).unwrap();
    let found = container.following(written[3].place.position(), 64 << 10).unwrap();
    assert_eq!(found.len(), 5);
}

#[test]
fn a_scan_reads_as_much_at_once_as_it_is_told() {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    (bench.config.generation_size, bench.config.read_ahead) = (8 << 20, 64 << 10);
    let disk = FaultFs::default();
    bench.vfs = Arc::new(disk.clone());
    let open = bench.open(&[]);
    let items: Vec<Item> = (0..4000).map(|n| item(n, 500)).collect();
    let written = open.write(&items);
    open.settle();
    let container = open.containers.get(written[0].place.container()).unwrap().container.clone();
    let reads = || {
        let before = disk.calls(Op::Read);
        assert_eq!(container.list().unwrap().len(), items.len());
        disk.calls(Op::Read) - before
    };
    // Over 2 MiB of records.
    let few = reads();
    assert!(few >= 32, "{few} reads of 64 KiB");
    let ahead = |bytes| open.hdd.tune(&Tuning { read_ahead: Some(bytes), ..Tuning::default() });
    ahead(1 << 20);
    let more = reads();
    assert!((2..8).contains(&more), "{more} reads of 1 MiB");
    ahead(0);
    assert!(reads() > few, "the least that can be read is a header");
}

#[test]
fn a_scan_reads_nothing_of_what_it_jumps_over() {
    let mut bench = Bench::new(&[Some(256 << 20)]);
    (bench.config.generation_size, bench.config.read_ahead) = (64 << 20, 1 << 20);
    let meter = crate::vfs::Meter::new(bench.root.path());
    bench.vfs = Arc::new(crate::vfs::Metered::new(Arc::new(RealFs), [meter.clone()].into()));
    let open = bench.open(&[]);
    let items: Vec<Item> = (0..10).map(|n| item(n, 3 << 20)).collect();
    let written = open.write(&items);
    open.settle();
    let container = open.containers.get(written[0].place.container()).unwrap().container.clone();
    let before = meter.traffic();
    assert_eq!(container.list().unwrap().len(), items.len());
    let after = meter.traffic();
    let read = (after.read_bytes - before.read_bytes) >> 10;
    assert!(read <= 10 * 64, "{read} KiB for ten headers");
}

#[test]
fn a_smaller_cache_lets_go_of_headers_at_once() {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    let items: Vec<Item> = (0..1000).map(|n| item(n, 500)).collect();
    let written = open.write(&items);
    open.check(&items, &written);
    let kept = || {
        let of = |w: &&Written| {
            let entry = open.containers.get(w.place.container()).unwrap();
            open.hdd.core.tables.get(entry.id, w.place.position()).is_some()
        };
        written.iter().filter(of).count()
    };
    assert_eq!(kept(), items.len());
    let most = |bytes| open.hdd.tune(&Tuning { index_cache: Some(bytes), ..Tuning::default() });
    // A quarter of it is for headers: of these blocks a dozen or so.
    most(16 << 10);
    let some = kept();
    assert!((1..items.len() / 2).contains(&some), "{some}");
    most(0);
    assert_eq!(kept(), 0);
    assert_eq!(open.check(&items, &written), items.len(), "they are read again");
}
