//! What stands behind a record, read at once.

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
