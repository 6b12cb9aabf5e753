//! Damaged packs: never a wrong value, never a panic, never memory without bound.

use super::*;
use crate::container::Listed;
use crate::testing::{Fault, FaultFs, Op};
use proptest::prelude::*;
use std::io::Read as _;

/// A small pack: its bytes, what is in it and where.
struct Small {
    bench: Bench,
    known: Known,
    items: Vec<Item>,
    written: Vec<Written>,
    listed: Vec<Listed>,
    path: PathBuf,
    bytes: Vec<u8>,
}

type Template = (Known, Vec<Item>, Vec<Written>, Vec<Listed>, Vec<u8>);

/// The pack is written once: syncing it for each case would be most of the time that the tests take.
fn template() -> &'static Template {
    static TEMPLATE: std::sync::OnceLock<Template> = std::sync::OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let mut bench = Bench::new(1);
        let (cold, containers) = bench.open();
        let items = vec![
            item(b"first", b"a value that is stored", Codec::None, 1),
            item(b"second", &b"deflate ".repeat(30), Codec::None, 2),
            item(&[b'z'; 250], b"a key that is too long for a name", Codec::None, 3),
        ];
        let written = cold.write(&items, Purpose::Write).unwrap();
        let entry = containers.all()[0].clone();
        let listed = entry.container.list().unwrap();
        (entry.known(), items, written, listed, std::fs::read(bench.only_file()).unwrap())
    })
}

fn small() -> Small {
    let (known, items, written, listed, bytes) = template().clone();
    let bench = Bench::new(1);
    std::fs::create_dir(bench.folder(0)).unwrap();
    let path = bench.folder(0).join(pack::name_of(known.id));
    write_file(&path, &bytes);
    Small { bench, known, items, written, listed, path, bytes }
}

impl Small {
    /// Puts these bytes in the pack's place and attaches it.
    fn with(&mut self, bytes: &[u8]) -> Arc<Containers> {
        write_file(&self.path, bytes);
        self.bench.try_open(vec![self.known], Unknown::Ignore).unwrap().2
    }

    /// Reads everything every way there is: what comes back must be right. Returns how many
    /// items did, and how many are listed.
    fn check(&mut self, bytes: &[u8], what: &str) -> (usize, usize) {
        let containers = self.with(bytes);
        let mut right = 0;
        for (item, w) in self.items.iter().zip(&self.written) {
            let container = containers.get(w.place.container()).unwrap().container.clone();
            match container.read(w.place.position()) {
                Ok(got) => {
                    assert_eq!(facts(&got), facts(item), "{what}");
                    right += 1;
                }
                Err(e) => assert!(e.is_corrupt(), "{what}: {e}"),
            }
            if let Ok(head) = container.head(w.place.position()) {
                assert_eq!((&head.key, head.version), (&item.key, item.version), "{what}");
            }
        }
        let listed = containers.all()[0].container.list().unwrap();
        assert!(listed.iter().all(|l| self.listed.contains(l)), "{what}: {listed:?}");
        (right, listed.len())
    }
}

#[test]
fn a_flipped_bit_anywhere_costs_at_most_one_item() {
    let mut small = small();
    let good = small.bytes.clone();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let (right, listed) = small.check(&bad, &format!("bit {bit}"));
        // An entry is left out only if its header *and* its directory entry are damaged.
        assert_eq!(listed, small.items.len(), "bit {bit}");
        assert!(right + 1 >= small.items.len(), "bit {bit}: {right}");
    }
}

#[test]
fn a_pack_may_be_cut_anywhere() {
    let mut small = small();
    let good = small.bytes.clone();
    for n in 0..good.len() {
        let (right, _) = small.check(&good[..n], &format!("cut at {n}"));
        let whole = small
            .listed
            .iter()
            .zip(small.listed.iter().skip(1))
            .filter(|(_, next)| n as u64 >= u64::from(next.position) * Place::UNIT);
        assert!(right >= whole.count(), "cut at {n}");
    }
}

#[test]
fn a_scan_of_local_headers_reads_as_much_at_once_as_it_is_told() {
    let mut bench = Bench::new(1);
    let disk = FaultFs::default();
    bench.vfs = Arc::new(disk.clone());
    bench.config.read_ahead = 32 << 10;
    bench.config.compression = Compression::none();
    let (cold, containers) = bench.open();
    let items: Vec<Item> =
        (0..200).map(|n: u64| item(&n.to_be_bytes(), &noise(n, 5000), Codec::None, n)).collect();
    let written = cold.write(&items, Purpose::Write).unwrap();
    let path = bench.only_file();
    let mut bytes = std::fs::read(&path).unwrap();
    let directory = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    bytes[directory + 50] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let container = containers.get(written[0].place.container()).unwrap().container.clone();
    let reads = || {
        let before = disk.calls(Op::Read);
        assert_eq!(container.list().unwrap().len(), items.len());
        disk.calls(Op::Read) - before
    };
    // A megabyte of records, and a few reads for the central directory.
    let few = reads();
    assert!(few > 30, "{few} reads of 32 KiB");
    cold.tune(&Tuning { read_ahead: Some(1 << 20), ..Tuning::default() });
    let more = reads();
    assert!(more < 12, "{more} reads of 1 MiB");
}

#[test]
fn the_list_survives_the_central_directory() {
    let mut small = small();
    let good = small.bytes.clone();
    let directory = good.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    for (what, range) in [
        ("directory", directory..good.len()),
        ("end record", good.len() - identity::LEN - 22..good.len()),
        ("one entry", directory + 50..directory + 60),
    ] {
        let mut bad = good.clone();
        bad[range].fill(0xaa);
        let containers = small.with(&bad);
        assert_eq!(containers.all()[0].container.list().unwrap(), small.listed, "{what}");
    }
    // A directory that seems whole but begins at its second entry is not believed either.
    let second = directory + 4 + good[directory + 4..].windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let mut bad = good.clone();
    let end = bad.len() - identity::LEN - 22;
    bad[end + 12..end + 16].copy_from_slice(&((end - second) as u32).to_le_bytes());
    bad[end + 16..end + 20].copy_from_slice(&(second as u32).to_le_bytes());
    let containers = small.with(&bad);
    assert_eq!(containers.all()[0].container.list().unwrap(), small.listed);
}

#[test]
fn one_of_two_identities_is_enough() {
    let mut small = small();
    let good = small.bytes.clone();
    let marks: Vec<usize> =
        good.windows(16).enumerate().filter(|(_, w)| *w == b"thermocline-pack").map(|(at, _)| at).collect();
    assert_eq!(marks.len(), 2);
    for (gone, attached) in [(&marks[..1], 1), (&marks[1..], 1), (&marks[..], 0)] {
        let mut bad = good.clone();
        for at in gone {
            bad[at + 30] ^= 1;
        }
        write_file(&small.path, &bad);
        let (_, report, containers) = small.bench.try_open(vec![], Unknown::Attach).unwrap();
        assert_eq!((containers.all().len(), report.quarantined.len()), (attached, 1 - attached));
    }
}

#[test]
fn a_record_of_another_place_or_pack_does_not_pass() {
    let mut small = small();
    let good = small.bytes.clone();
    let [first, second, third] =
        [0, 1, 2].map(|n| (u64::from(small.listed[n].position) * Place::UNIT) as usize);
    let mut moved = good.clone();
    moved.copy_within(second..third, first);
    assert_eq!(small.check(&moved, "moved").0, 2, "the second and the third still stand in their places");
    // Another pack of the store under this one's name.
    let (cold, _) = small.bench.open();
    let other = item(b"first", b"an older value", Codec::None, 0);
    cold.write(&[other], Purpose::Write).unwrap();
    let bytes = std::fs::read(small.bench.only_file()).unwrap();
    std::fs::remove_file(small.bench.only_file()).unwrap();
    assert_eq!(small.check(&bytes, "another pack"), (0, 0));
}

#[test]
fn an_archive_inside_a_value_is_not_listed() {
    let mut small = small();
    let inner = small.bytes.clone();
    let (cold, containers) = small.bench.open();
    let mut aligned = vec![0; 2048];
    aligned.extend_from_slice(&inner);
    let mut outer = item(b"outer", &aligned, Codec::None, 9);
    outer.content_type = ContentType::Media;
    cold.write(&[outer], Purpose::Write).unwrap();
    let path = small.bench.only_file();
    let mut bytes = std::fs::read(&path).unwrap();
    // The header that would be jumped over is lost, and so is the central directory.
    bytes[60] ^= 1;
    let len = bytes.len();
    bytes[len - 600..].fill(0);
    write_file(&path, &bytes);
    assert_eq!(containers.all()[0].container.list().unwrap(), []);
}

#[test]
fn raw_bytes_are_what_stands_there() {
    let mut small = small();
    let mut bad = small.bytes.clone();
    bad[70] ^= 1;
    let containers = small.with(&bad);
    let container = containers.all()[0].container.clone();
    let next = (u64::from(small.listed[1].position) * Place::UNIT) as usize;
    let raw = container.raw(0).unwrap();
    assert_eq!((raw.offset, &raw.bytes[..]), (0, &bad[..next]), "up to the next record");
    let raw = container.raw(small.listed[1].position).unwrap();
    assert!(raw.bytes.starts_with(b"PK\x03\x04") && bad[next..].starts_with(&raw.bytes));
    assert!(container.raw(Place::MAX_POSITION).is_none_or(|r| r.bytes.is_empty()));
}

fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let pieces: Vec<Vec<u8>> = [
        &b"PK\x03\x04"[..],
        b"PK\x01\x02",
        b"PK\x05\x06",
        b"PK\x06\x06",
        b"PK\x06\x07",
        b"TC",
        b"TCE1",
        b"\xff\xff\xff\xff",
        b"\0\0\0\0\0\0\0\0",
        b"thermocline-pack format=",
    ]
    .iter()
    .map(|p| p.to_vec())
    .collect();
    prop::collection::vec(
        prop_oneof![prop::sample::select(pieces), prop::collection::vec(any::<u8>(), 0..40)],
        0..40,
    )
    .prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn garbage_is_only_garbage(bytes in garbage(), position in 0..200_u32) {
        let mut small = small();
        let containers = small.with(&bytes);
        let container = containers.all()[0].container.clone();
        prop_assert_eq!(container.list().unwrap(), []);
        prop_assert!(container.read(position).unwrap_err().is_corrupt());
        prop_assert!(container.head(position).is_err());
        let _ = container.raw(position);
        let (_, report, _) = small.bench.try_open(vec![], Unknown::Attach).unwrap();
        prop_assert_eq!(report.quarantined.len(), 1);
    }

    #[test]
    fn many_damaged_places_never_give_a_wrong_value(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..30),
        tail in garbage(),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut small = small();
        let mut bad = small.bytes.clone();
        for (at, byte) in places {
            let at = at.index(bad.len());
            bad[at] = byte;
        }
        small.check(&bad, "places");
        bad.truncate(keep.index(bad.len()));
        bad.extend_from_slice(&tail);
        small.check(&bad, "tail");
    }
}

/// A tier of two directories of `limit` bytes, a pack in one of them, and what the catalog knows; the pack's file, and
/// where a copy of it would lie.
fn two_directories(limit: u64) -> (Bench, Known, Vec<(Item, Written)>, [PathBuf; 2]) {
    let mut bench = Bench::new(2);
    bench.dirs.iter_mut().for_each(|d| d.limit = Some(limit));
    bench.config.pack_size = SMALLEST_PACK;
    let (cold, containers) = bench.open();
    let items: Vec<Item> =
        (1..4).map(|n| item(&[b'k', n], &noise(n.into(), 9_000), Codec::None, n.into())).collect();
    let written = cold.write(&items, Purpose::Write).unwrap();
    let known = containers.all()[0].known();
    cold.close().unwrap();
    let dir = usize::from(known.dir);
    let name = pack::name_of(known.id);
    let paths = [bench.folder(dir).join(&name), bench.folder(1 - dir).join(&name)];
    (bench, known, items.into_iter().zip(written).collect(), paths)
}

#[test]
fn of_two_copies_of_a_pack_the_whole_one_is_served() {
    type Harm = fn(&mut Vec<u8>);
    let harms: [(Harm, bool); 4] =
        [(|b| b.fill(0), true), (|b| b.truncate(0), true), (|b| b.truncate(10_000), true), (|_| (), false)];
    for (no, (harm, copy_is_served)) in harms.into_iter().enumerate() {
        // The quarantine has room for both, and for neither.
        for limit in [64 << 20, 400 << 10] {
            for unknown in [Unknown::Delete, Unknown::Ignore] {
                let (mut bench, known, items, [path, copy]) = two_directories(limit);
                let mut bytes = std::fs::read(&path).unwrap();
                write_file(&copy, &bytes);
                harm(&mut bytes);
                write_file(&path, &bytes);
                let (cold, report, containers) = bench.try_open(vec![known], unknown).unwrap();
                let what = format!("harm {no}, limit {limit}, {unknown:?}: {report:?}");
                assert!(report.missing.is_empty() && report.deleted == 0, "{what}");
                assert_eq!(containers.all()[0].dir != known.dir, copy_is_served, "{what}");
                for (item, written) in &items {
                    assert_eq!(facts(&read(&containers, written).unwrap()), facts(item), "{what}");
                }
                let (served, other) = if copy_is_served { (&copy, &path) } else { (&path, &copy) };
                assert!(served.exists(), "{what}");
                if unknown == Unknown::Ignore {
                    assert!(other.exists() && report.quarantined.is_empty(), "{what}");
                    continue;
                }
                assert_eq!(report.quarantined.len(), 1, "{what}");
                let kept: u64 = cold.directories().iter().map(|d| d.quarantine).sum();
                let left = std::fs::metadata(other).map_or(0, |m| m.len());
                assert_eq!(kept + left, bytes.len() as u64, "it is deleted: {what}");
                assert_eq!(other.exists(), bytes.len() as u64 > limit / 20, "{what}");
            }
        }
    }
}

/// It may be whole: that is no reason to take it away from where the catalog says it is.
#[test]
fn of_two_copies_of_a_pack_the_one_that_cannot_be_read_for_now_stays() {
    let (mut bench, known, items, [path, copy]) = two_directories(64 << 20);
    std::fs::copy(&path, &copy).unwrap();
    let len = std::fs::metadata(&path).unwrap().len();
    let directory = std::fs::read(&path).unwrap().windows(4).position(|w| w == b"PK\x01\x02").unwrap() as u64;
    for (from, to) in [(0, 1), (directory, directory + 1), (len - 1, len)] {
        let faults = FaultFs::default().without_syncs();
        let (bad, real) = (path.clone(), bench.vfs.clone());
        faults.fail(Fault::when(move |c| {
            c.op == Op::Read && c.path == bad && c.range.start < to && c.range.end > from
        }));
        bench.vfs = Arc::new(faults);
        let (_, report, containers) = bench.try_open(vec![known], Unknown::Delete).unwrap();
        bench.vfs = real;
        assert_eq!(containers.all()[0].dir, known.dir, "{from}: {report:?}");
        assert!(path.exists(), "{from}: {report:?}");
        let (_, report, containers) = bench.try_open(vec![known], Unknown::Delete).unwrap();
        assert!(report.missing.is_empty() && containers.all()[0].dir == known.dir, "{from}: {report:?}");
        for (item, written) in &items {
            assert_eq!(facts(&read(&containers, written).unwrap()), facts(item), "{from}");
        }
        std::fs::copy(&path, &copy).unwrap();
    }
}

#[test]
fn of_two_copies_that_nobody_knows_the_whole_one_is_taken_in() {
    let (mut bench, _, items, [path, copy]) = two_directories(64 << 20);
    for damaged in [&path, &copy] {
        let whole = std::fs::read(&path).unwrap();
        [&path, &copy].iter().for_each(|p| write_file(p, &whole));
        write_file(damaged, &whole[..10_000]);
        let (_, report, containers) = bench.try_open(vec![], Unknown::Attach).unwrap();
        assert_eq!((containers.all().len(), report.quarantined.len()), (1, 1), "{report:?}");
        let listed = containers.all()[0].container.list().unwrap();
        assert_eq!(listed.len(), items.len());
        write_file(&path, &whole);
    }
}

#[test]
fn a_pack_of_which_every_record_is_damaged_is_listed_once() {
    let mut bench = Bench::new(1);
    let (cold, containers) = bench.open();
    let keys: Vec<Vec<u8>> = (0..60).map(|n| format!("key {n}").into_bytes()).collect();
    let items: Vec<Item> = keys.iter().map(|key| item(key, &noise(7, 3_000), Codec::None, 1)).collect();
    let written = cold.write(&items, Purpose::Write).unwrap();
    let known = containers.all()[0].known();
    let path = bench.only_file();
    let mut bytes = std::fs::read(&path).unwrap();
    let at = |w: &Written| (u64::from(w.place.position()) * Place::UNIT) as usize;
    written.iter().for_each(|w| bytes[at(w) + 1] ^= 1);
    // The last entry of the directory too, so that the whole pack is gone through for headers.
    let last = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    bytes[last + 60] ^= 1;
    write_file(&path, &bytes);
    // How often all of it is read at once.
    let (faults, whole) = (FaultFs::default().without_syncs(), Arc::new(AtomicU64::new(0)));
    let (count, len) = (whole.clone(), bytes.len() as u64);
    faults.fail(Fault::when(move |c| {
        let all = c.op == Op::Read && c.range.end - c.range.start > len / 2;
        count.fetch_add(u64::from(all), Ordering::Relaxed);
        false
    }));
    bench.vfs = Arc::new(faults);
    let (cold, _, containers) = bench.try_open(vec![known], Unknown::Delete).unwrap();
    let entry = containers.all()[0].clone();
    for (no, w) in written.iter().enumerate() {
        let position = w.place.position();
        assert!(entry.container.read(position).unwrap_err().is_corrupt());
        let key = (no < 59).then(|| Bytes::from(keys[no].clone()));
        assert_eq!(entry.container.key(position), key);
        assert_eq!(cold.quarantine_record(&entry, position, "a test"), Some(path.clone()));
        let raw = entry.container.raw(position).unwrap();
        assert!(raw.bytes.len() < 4_000 || no >= 58, "up to the next record: {}", raw.bytes.len());
    }
    assert_eq!(whole.load(Ordering::Relaxed), 1);
    cold.maintain();
    assert!(entry.container.key(written[0].place.position()).is_some());
    assert_eq!(whole.load(Ordering::Relaxed), 2, "nothing is kept for long");
}

/// What a program that knows nothing of us reads out of a pack: `None` if any entry is not right.
fn read_by_others(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let archive = rawzip::ZipArchive::from_slice(bytes).ok()?;
    let mut values = Vec::new();
    for found in archive.entries() {
        let found = found.ok()?;
        let entry = archive.get_entry(found.wayfinder()).ok()?;
        let mut value = Vec::new();
        let read = match found.compression_method() {
            rawzip::CompressionMethod::STORE => entry.verifying_reader(entry.data()).read_to_end(&mut value),
            rawzip::CompressionMethod::DEFLATE => entry
                .verifying_reader(flate2::read::DeflateDecoder::new(entry.data()))
                .read_to_end(&mut value),
            _ => return None,
        };
        read.ok()?;
        values.push(value);
    }
    Some(values)
}

/// An archive is not all right because we can read it: that others can is what it is there for.
#[test]
fn what_a_check_passes_over_keeps_no_other_program_from_reading() {
    let mut small = small();
    let good = small.bytes.clone();
    let values = read_by_others(&good).unwrap();
    assert_eq!(values.len(), small.items.len());
    let positions: Vec<u32> = small.listed.iter().map(|l| l.position).collect();
    let mut check = |bytes: &[u8]| {
        let container = small.with(bytes).all()[0].container.clone();
        let mut lost = 0;
        let flaws = container.examine(&positions, &mut |_, read| lost += usize::from(read.is_err()));
        (lost, flaws)
    };
    let (lost, flaws) = check(&good);
    assert!(lost == 0 && flaws.is_empty(), "{flaws:?}");
    let mut passed_over = 0;
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let (lost, flaws) = check(&bad);
        if lost == 0 && flaws.is_empty() {
            assert_eq!(read_by_others(&bad).as_ref(), Some(&values), "bit {bit}: nothing was said");
            passed_over += 1;
        }
    }
    // Times, attributes, who made it, padding; of the end record what no reader needs.
    assert!((500..3_000).contains(&passed_over), "{passed_over} of {}", good.len() * 8);
    // What this reader does not mind, and others do.
    let central = good.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    for (at, what) in [
        (4, "local header"),
        (6, "local header"),
        (8, "local header"),
        (central + 6, "directory's entry"),
        (central + 8, "directory's entry"),
        (central + 16, "checksum in the directory"),
        (central + 20, "directory's entry"),
        (central + 24, "directory's entry"),
    ] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let (lost, flaws) = check(&bad);
        let said = flaws.iter().any(|f| f.why.contains(what) && f.why.contains("first"));
        assert!(lost == 0 && said, "byte {at}: {flaws:?}");
    }
}

#[test]
fn what_others_read_of_keys_in_any_script_is_all_right_as_it_was_written() {
    let mut bench = Bench::new(1);
    let (cold, containers) = bench.open();
    let keys = ["\u{e9}t\u{e9}/\u{6771}\u{4eac}".as_bytes(), b"\xff\xfe raw", b"a b%c", &[b'k'; 3_000]];
    let items: Vec<Item> = keys.iter().map(|key| item(key, &b"value ".repeat(50), Codec::None, 1)).collect();
    let written = cold.write(&items, Purpose::Write).unwrap();
    let mut positions: Vec<u32> = written.iter().map(|w| w.place.position()).collect();
    positions.sort_unstable();
    let flaws = containers.all()[0].container.examine(&positions, &mut |_, read| assert!(read.is_ok()));
    assert!(flaws.is_empty(), "{flaws:?}");
}
