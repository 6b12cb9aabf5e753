//! What is written is read, listed, attached and dropped.

use super::*;
use proptest::prelude::*;

#[test]
fn what_is_written_is_read() {
    let mut bench = Bench::new(1);
    bench.vfs = Arc::new(crate::vfs::RealFs);
    let (cold, containers) = bench.open();
    let items = mixed();
    let written = cold.write(&items, Purpose::Write).unwrap();
    assert_eq!(written.len(), items.len());
    for (item, w) in items.iter().zip(&written) {
        let got = read(&containers, w).unwrap();
        assert_eq!(facts(&got), facts(item));
        assert!(matches!(got.codec, Codec::None | Codec::Deflate));
        let container = containers.get(w.place.container()).unwrap().container.clone();
        assert_eq!(container.head(w.place.position()).unwrap(), got.head());
    }
    // Text shrinks, what came with zlib or deflate is not compressed again, noise is stored.
    let got: Vec<Item> = written.iter().map(|w| read(&containers, w).unwrap()).collect();
    assert!(got[0].codec == Codec::Deflate && got[0].payload.len() * 10 < items[0].payload.len());
    assert_eq!(got[1].payload, items[1].payload.slice(2..items[1].payload.len() - 4));
    assert_eq!(got[2].codec, Codec::Deflate);
    assert_eq!(got[3].payload, items[3].payload);
    assert_eq!(got[7].codec, Codec::None);
    assert_eq!(got[8].codec, Codec::None);
    let entry = containers.get(written[0].place.container()).unwrap();
    assert_eq!(entry.records.load(Ordering::Relaxed), items.len() as u64);
    assert_eq!(entry.earliest_expiry.load(Ordering::Relaxed), 1000);
    assert!(entry.sealed.load(Ordering::Relaxed));
}

#[test]
fn without_compression_what_comes_plain_stays_plain() {
    let mut bench = Bench::new(1);
    bench.config.compression = Compression::none();
    let (cold, containers) = bench.open();
    let written = cold.write(&mixed(), Purpose::Write).unwrap();
    let codecs: Vec<Codec> = written.iter().map(|w| read(&containers, w).unwrap().codec).collect();
    assert_eq!(codecs[..4], [Codec::None, Codec::Deflate, Codec::None, Codec::Deflate]);
}

/// What an item is stored with, by these settings.
fn stored_with(settings: &Compression, it: &Item) -> Codec {
    let mut bench = Bench::new(1);
    bench.config.compression = settings.clone();
    let (cold, containers) = bench.open();
    let written = cold.write(std::slice::from_ref(it), Purpose::Write).unwrap();
    let got = read(&containers, &written[0]).unwrap();
    assert_eq!(facts(&got), facts(it));
    got.codec
}

#[test]
fn what_is_deflated_is_what_the_settings_say() {
    let text = b"the lake is warm above and cold below. ".repeat(50);
    let of = |content_type: ContentType, codec: Codec, value: &[u8]| Item {
        content_type,
        ..item(b"k", value, codec, 1)
    };
    let settings = Compression {
        zlib: Algorithm { level: 6, min_size: 500, threshold: 0.4 },
        lz4: Algorithm { level: 1, min_size: 1 << 20, threshold: 0.01 },
        text: Codec::None,
        json: Codec::Zlib,
        binary: Codec::Lz4,
        media: Codec::Lz4,
        levels: [None; 4],
    };
    // By type: "none" stores, zlib and lz4 deflate, by what zlib asks for.
    for (content_type, codec) in [
        (ContentType::Text, Codec::None),
        (ContentType::Json, Codec::Deflate),
        (ContentType::Binary, Codec::Deflate),
        (ContentType::Media, Codec::Deflate),
    ] {
        for came in [Codec::None, Codec::Lz4] {
            assert_eq!(
                stored_with(&settings, &of(content_type, came, &text)),
                codec,
                "{content_type} {came}"
            );
        }
        // What is deflated already stays so.
        for came in [Codec::Zlib, Codec::Deflate] {
            assert_eq!(stored_with(&settings, &of(content_type, came, &text)), Codec::Deflate);
        }
    }
    // By length.
    let json = |value: &[u8]| of(ContentType::Json, Codec::None, value);
    assert_eq!(stored_with(&settings, &json(&text[..499])), Codec::None);
    assert_eq!(stored_with(&settings, &json(&text[..500])), Codec::Deflate);
    // By what is saved: half of this is noise.
    let half = [noise(3, 1000), vec![0; 1000]].concat();
    assert_eq!(stored_with(&settings, &json(&half)), Codec::None);
    let lenient = Compression { zlib: Algorithm { threshold: 0.6, ..settings.zlib }, ..settings.clone() };
    assert_eq!(stored_with(&lenient, &json(&half)), Codec::Deflate);
    // Level 0 is off.
    let off = Compression { zlib: Algorithm { level: 0, ..settings.zlib }, ..settings.clone() };
    assert_eq!(stored_with(&off, &json(&text)), Codec::None);
}

#[test]
fn the_list_names_every_record_and_its_bytes_add_up() {
    let mut bench = Bench::new(1);
    let (cold, containers) = bench.open();
    let items = mixed();
    let written = cold.write(&items, Purpose::Write).unwrap();
    let entry = containers.get(written[0].place.container()).unwrap();
    let listed = entry.container.list().unwrap();
    assert_eq!(listed.len(), items.len());
    for ((l, item), w) in listed.iter().zip(&items).zip(&written) {
        assert_eq!((l.position, l.bytes), (w.place.position(), w.bytes));
        assert_eq!((l.ident, l.version, l.expires_at), (item.ident, item.version, item.expires_at));
    }
    let sum: u64 = listed.iter().map(|l| u64::from(l.bytes)).sum();
    let len = std::fs::metadata(bench.only_file()).unwrap().len();
    let end = len - sum;
    assert_eq!(end, 22 + identity::LEN as u64, "all but the end record belongs to some entry");
    assert_eq!(cold.usage().occupied, len);
    assert_eq!(entry.container.occupied(), len);
}

#[test]
fn batches_are_split_and_a_large_item_stands_alone() {
    let mut bench = Bench::new(1);
    bench.config.pack_size = SMALLEST_PACK;
    let (cold, containers) = bench.open();
    let mut items: Vec<Item> =
        (0..40).map(|i| item(format!("k{i}").as_bytes(), &noise(i, 4000), Codec::None, i)).collect();
    items.insert(20, item(b"large", &noise(99, 200_000), Codec::None, 99));
    let written = cold.write(&items, Purpose::Write).unwrap();
    for (item, w) in items.iter().zip(&written) {
        assert_eq!(facts(&read(&containers, w).unwrap()), facts(item));
    }
    let alone = containers.get(written[20].place.container()).unwrap();
    assert_eq!(alone.records.load(Ordering::Relaxed), 1);
    for entry in containers.all().iter().filter(|e| e.no != alone.no) {
        assert!(entry.container.occupied() <= SMALLEST_PACK, "{entry:?}");
    }
    assert!(bench.files(0).len() >= 4);
}

#[test]
fn a_pack_is_attached_unread_after_a_restart() {
    let mut bench = Bench::new(1);
    let (cold, containers) = bench.open();
    let items = mixed();
    let written = cold.write(&items, Purpose::Write).unwrap();
    let known = containers.all()[0].known();
    cold.close().unwrap();
    assert!(matches!(cold.write(&items, Purpose::Write), Err(Error::OutOfService { .. })));
    let lost = Known { no: 9, id: 4711, ..known };
    let (again, report, containers) = bench.try_open(vec![known, lost], Unknown::Delete).unwrap();
    assert_eq!(report.missing, [lost]);
    assert_eq!(again.usage().occupied, std::fs::metadata(bench.only_file()).unwrap().len());
    for (item, w) in items.iter().zip(&written) {
        assert_eq!(facts(&read(&containers, w).unwrap()), facts(item));
    }
}

#[test]
fn unknown_packs_are_deleted_attached_or_left() {
    let mut bench = Bench::new(1);
    let (cold, containers) = bench.open();
    let items = mixed();
    cold.write(&items, Purpose::Write).unwrap();
    let id = containers.all()[0].id;
    let listed = containers.all()[0].container.list().unwrap();
    write_file(&bench.folder(0).join("pack-00000000000000aa.zip.tmp"), b"half");

    let before = bench.files(0);
    let (_, report, containers) = bench.try_open(vec![], Unknown::Ignore).unwrap();
    assert_eq!((report.deleted, bench.files(0)), (0, before));
    assert!(containers.all().is_empty());

    let (_, report, containers) = bench.try_open(vec![], Unknown::Attach).unwrap();
    assert_eq!(report.deleted, 1, "the temporary file");
    let entry = &containers.all()[0];
    assert_eq!((entry.id, entry.records.load(Ordering::Relaxed)), (id, items.len() as u64));
    assert_eq!(entry.earliest_expiry.load(Ordering::Relaxed), 1000);
    assert_eq!(entry.created_ms, 1_700_000_000_000);
    assert_eq!(entry.container.list().unwrap(), listed);

    let (cold, report, _) = bench.try_open(vec![], Unknown::Delete).unwrap();
    assert_eq!(report.deleted, 1);
    assert_eq!(cold.usage().occupied, 0);
    assert!(bench.files(0).is_empty());
}

#[test]
fn packs_of_others_are_left_alone_and_renamed_ones_go_to_the_quarantine() {
    let mut bench = Bench::new(1);
    let (cold, _) = bench.open();
    cold.write(&mixed(), Purpose::Write).unwrap();
    bench.store = [9; 16];
    let (_, report, containers) = bench.try_open(vec![], Unknown::Delete).unwrap();
    assert_eq!((report.deleted, report.quarantined.len(), containers.all().len()), (0, 0, 0));
    bench.store = STORE;
    std::fs::rename(bench.only_file(), bench.folder(0).join("pack-0000000000000001.zip")).unwrap();
    write_file(&bench.folder(0).join("pack-0000000000000002.zip"), &noise(1, 10_000));
    write_file(&bench.folder(0).join("notes.txt"), b"somebody's");
    let (cold, report, _) = bench.try_open(vec![], Unknown::Delete).unwrap();
    assert_eq!(report.quarantined.len(), 2, "{report:?}");
    assert_eq!(bench.files(0), ["notes.txt"]);
    assert!(cold.usage().occupied > 10_000, "the quarantine counts");
}

#[test]
fn a_newer_format_is_refused() {
    let mut bench = Bench::new(1);
    bench.open();
    let is = identity::Identity { format: 2, store: STORE, id: 5, created_ms: 1 };
    write_file(&bench.folder(0).join("pack-0000000000000005.zip"), is.line().as_bytes());
    for unknown in [Unknown::Delete, Unknown::Attach] {
        let refused = bench.try_open(vec![], unknown).err();
        assert!(matches!(refused, Some(Error::NewerFormat { found: 2, .. })), "{refused:?}");
    }
    let known = Known {
        no: 0,
        id: 5,
        tier: Tier::Cold,
        dir: 0,
        created_ms: 1,
        records: 1,
        earliest_expiry: u64::MAX,
    };
    let (_, _, containers) = bench.try_open(vec![known], Unknown::Delete).unwrap();
    let read = containers.all()[0].container.read(0);
    assert!(matches!(read, Err(Error::NewerFormat { .. })), "{read:?}");
}

#[test]
fn a_dropped_pack_is_gone_for_those_who_hold_it() {
    let mut bench = Bench::new(1);
    let (cold, containers) = bench.open();
    let written = cold.write(&mixed(), Purpose::Write).unwrap();
    let entry = containers.remove(written[0].place.container()).unwrap();
    cold.drop_container(&entry).unwrap();
    containers.release(entry.no, Arc::downgrade(&entry));
    assert!(bench.files(0).is_empty());
    assert_eq!(cold.usage().occupied, 0);
    assert!(matches!(entry.container.read(0), Err(Error::Gone(no)) if no == entry.no));
    cold.drop_container(&entry).unwrap();
    assert_eq!(cold.usage().occupied, 0);
}

#[test]
fn a_pack_that_vanished_is_unreachable_not_gone() {
    let mut bench = Bench::new(1);
    let (cold, containers) = bench.open();
    let written = cold.write(&mixed(), Purpose::Write).unwrap();
    std::fs::remove_file(bench.only_file()).unwrap();
    assert!(matches!(read(&containers, &written[0]), Err(Error::Io { .. })));
}

#[test]
fn open_files_are_bounded() {
    let mut bench = Bench::new(1);
    let (cold, containers) = bench.open();
    let mut all = Vec::new();
    for i in 0..OPEN_FILES as u64 + 20 {
        let it = item(format!("k{i}").as_bytes(), b"value", Codec::None, i);
        all.push((it.clone(), cold.write(&[it], Purpose::Write).unwrap()[0]));
    }
    for (it, w) in all.iter().chain(&all) {
        assert_eq!(facts(&read(&containers, w).unwrap()), facts(it));
    }
    assert_eq!(cold.shared.files.len(), OPEN_FILES);
}

#[test]
fn limits_hold_and_reclaim_may_use_the_reserve() {
    let mut bench = Bench::new(1);
    bench.config.pack_size = SMALLEST_PACK;
    bench.dirs[0].limit = Some(1 << 20);
    let (cold, _) = bench.open();
    let one = |i: u64| [item(format!("k{i}").as_bytes(), &noise(i, 30_000), Codec::None, i)];
    let fill = |purpose| {
        let refused = (0..100).find_map(|i| cold.write(&one(i), purpose).err()).unwrap();
        assert!(matches!(refused, Error::NoSpace { tier: Tier::Cold, .. }), "{refused}");
        cold.usage().occupied
    };
    let by_write = fill(Purpose::Write);
    assert!(by_write <= (1 << 20) - SMALLEST_PACK && by_write > 900_000, "{by_write}");
    let by_reclaim = fill(Purpose::Reclaim);
    assert!(by_reclaim > by_write && by_reclaim <= 1 << 20, "{by_reclaim}");
    let on_disk: u64 =
        std::fs::read_dir(bench.folder(0)).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(on_disk, by_reclaim, "nothing is left of what was refused");
    assert_eq!(cold.usage().limit, Some(1 << 20));
}

#[test]
fn a_call_is_all_or_nothing() {
    let mut bench = Bench::new(1);
    bench.config.pack_size = SMALLEST_PACK;
    bench.dirs[0].limit = Some(1 << 20);
    let (cold, containers) = bench.open();
    let items: Vec<Item> =
        (0..60).map(|i| item(format!("k{i}").as_bytes(), &noise(i, 30_000), Codec::None, i)).collect();
    for _ in 0..3 {
        assert!(cold.write(&items, Purpose::Write).unwrap_err().is_no_space());
    }
    assert!(bench.files(0).is_empty(), "{:?}", bench.files(0));
    assert!(containers.all().is_empty());
    assert_eq!(cold.usage().occupied, 0);
    // Numbers came back too.
    assert!((0..20).map(|_| containers.reserve(Purpose::Write).unwrap().no).all(|no| no < 20));
}

#[test]
fn an_item_that_cannot_be_decoded_is_not_written() {
    let mut bench = Bench::new(1);
    let (cold, _) = bench.open();
    let mut bad = item(b"k", &[b'x'; 1000], Codec::Lz4, 1);
    bad.original_len += 1;
    let refused = cold.write(&[item(b"good", b"v", Codec::None, 2), bad], Purpose::Write);
    assert!(matches!(refused, Err(Error::Dependency { .. })), "{refused:?}");
    assert!(bench.files(0).is_empty());
}

#[test]
fn the_readme_is_written_once_and_never_over_somebody_elses() {
    let mut bench = Bench::new(1);
    let path = bench.dirs[0].path.join("README.txt");
    bench.open();
    assert!(std::fs::read_to_string(&path).unwrap().contains("unzip"));
    write_file(&path, b"mine");
    bench.open();
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

#[test]
fn a_record_goes_to_the_quarantine() {
    let mut bench = Bench::new(1);
    let (cold, containers) = bench.open();
    let written = cold.write(&mixed(), Purpose::Write).unwrap();
    let entry = containers.all()[0].clone();
    cold.quarantine_record(&entry, written[3].place.position(), "a test");
    let kept: Vec<_> = std::fs::read_dir(bench.dirs[0].path.join("quarantine")).unwrap().collect();
    assert_eq!(kept.len(), 2, "bytes and report");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_batch_comes_back(batch in prop::collection::vec(
        (prop::collection::vec(any::<u8>(), 1..60), prop::collection::vec(any::<u8>(), 0..12_000), 0..4_u8),
        1..12,
    )) {
        let mut bench = Bench::new(1);
        let (cold, containers) = bench.open();
        let items: Vec<Item> = batch
            .iter()
            .enumerate()
            .map(|(i, (key, value, codec))| item(key, value, Codec::from_u8(*codec).unwrap(), i as u64))
            .collect();
        let written = cold.write(&items, Purpose::Write).unwrap();
        for (item, w) in items.iter().zip(&written) {
            prop_assert_eq!(facts(&read(&containers, w).unwrap()), facts(item));
        }
        prop_assert_eq!(containers.all()[0].container.list().unwrap().len(), items.len());
    }
}

/// Every third item is not there any more when it is asked for, and no more is held at a time than a window.
struct Holes {
    items: Vec<Item>,
    most: std::cell::Cell<u64>,
    most_items: std::cell::Cell<usize>,
    loaded: std::cell::Cell<usize>,
}

impl Supply for Holes {
    fn len(&self) -> usize {
        self.items.len()
    }
    fn bytes(&self, n: usize) -> u64 {
        self.items[n].payload.len() as u64
    }
    fn least(&self, _: Range<usize>) -> u64 {
        0
    }
    fn load(&self, range: Range<usize>) -> Vec<Option<Item>> {
        let bytes = range.clone().map(|n| self.bytes(n)).sum();
        self.most.set(self.most.get().max(bytes));
        self.most_items.set(self.most_items.get().max(range.len()));
        self.loaded.set(self.loaded.get() + range.len());
        range.map(|n| (n % 3 != 1).then(|| self.items[n].clone())).collect()
    }
}

#[test]
fn a_pack_is_written_from_a_few_items_at_a_time() {
    for (pack_size, window_items) in [(1 << 20, 1000), (64 << 20, 1000), (64 << 20, 7)] {
        let mut bench = Bench::new(1);
        bench.vfs = Arc::new(crate::vfs::RealFs);
        bench.config.pack_size = pack_size;
        bench.config.window_items = window_items;
        // The values are to fill more than one of the small packs.
        bench.config.compression = Compression::none();
        let (cold, containers) = bench.open();
        let noise = |n: u64| -> Vec<u8> {
            (0..60_000u64).map(|i| ((i + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
        };
        let items: Vec<Item> =
            (0..300).map(|n| item(format!("{n}").as_bytes(), &noise(n), Codec::None, n + 1)).collect();
        let supply = Holes { items, most: 0.into(), most_items: 0.into(), loaded: 0.into() };
        let written = cold.write_from(&supply, Purpose::Write).unwrap();
        assert_eq!(written.len(), supply.len());
        for (n, w) in written.iter().enumerate() {
            assert_eq!(w.is_some(), n % 3 != 1, "{n}");
            if let Some(w) = w {
                assert_eq!(facts(&read(&containers, w).unwrap()), facts(&supply.items[n]));
            }
        }
        assert!(supply.most.get() <= bench.config.window, "{} bytes at a time", supply.most.get());
        assert!(supply.most_items.get() <= window_items, "{} items at a time", supply.most_items.get());
        let packs = bench.files(0).len();
        assert_eq!(packs > 1, pack_size == 1 << 20, "{packs} packs");
        assert!(supply.loaded.get() >= supply.len());
        // Of none that is there, nothing is made.
        assert_eq!(cold.write_from(&Only(&supply, 1), Purpose::Write).unwrap(), [None]);
        assert_eq!(bench.files(0).len(), packs);
    }
}

/// One item of another supply.
struct Only<'a>(&'a Holes, usize);

impl Supply for Only<'_> {
    fn len(&self) -> usize {
        1
    }
    fn bytes(&self, _: usize) -> u64 {
        self.0.bytes(self.1)
    }
    fn least(&self, _: Range<usize>) -> u64 {
        0
    }
    fn load(&self, _: Range<usize>) -> Vec<Option<Item>> {
        self.0.load(self.1..self.1 + 1)
    }
}

#[test]
fn the_neighbours_of_an_entry_come_with_one_read_and_verified() {
    let mut bench = Bench::new(1);
    let disk = crate::testing::FaultFs::default();
    bench.vfs = Arc::new(disk.clone());
    let (cold, containers) = bench.open();
    let of =
        |n: u32| item(format!("key/{n}").as_bytes(), &crate::testing::noise(n.into(), 700), Codec::None, 1);
    let items: Vec<Item> = (0..200).map(of).collect();
    let written = cold.write(&items, Purpose::Write).unwrap();
    let container = containers.get(written[0].place.container()).unwrap().container.clone();
    let positions: Vec<u32> = written.iter().map(|w| w.place.position()).collect();
    let before = disk.calls(crate::testing::Op::Read);
    let found = container.following(positions[3], 64 << 10).unwrap();
    assert_eq!(disk.calls(crate::testing::Op::Read) - before, 2, "its own header, and all of them");
    assert!((60..95).contains(&found.len()), "{}", found.len());
    for (n, (position, found)) in found.iter().enumerate() {
        assert_eq!((*position, facts(found)), (positions[4 + n], facts(&items[4 + n])));
    }
    assert!(container.following(positions[199], 64 << 10).unwrap().is_empty(), "the last one");
    assert!(container.following(positions[3], 100).unwrap().is_empty(), "none is whole in so few");
    // A bit of the sixth behind it: the five before it are good.
    let raw = container.raw(positions[9]).unwrap();
    let mut file = std::fs::read(&raw.path).unwrap();
    file[raw.offset as usize + raw.bytes.len() / 2] ^= 1;
    // In place: the pack is open.
    std::fs::write(&raw.path, &file).unwrap();
    assert_eq!(container.following(positions[3], 64 << 10).unwrap().len(), 5);
}

/// One item, for leave to write which it waits nine seconds of the ten that it takes.
struct Paced {
    item: Item,
    clock: Arc<crate::clock::ManualClock>,
    waited: std::cell::Cell<std::time::Duration>,
}

impl Supply for Paced {
    fn len(&self) -> usize {
        1
    }
    fn bytes(&self, _: usize) -> u64 {
        self.item.payload.len() as u64
    }
    fn least(&self, _: Range<usize>) -> u64 {
        0
    }
    fn load(&self, _: Range<usize>) -> Vec<Option<Item>> {
        self.clock.advance(10_000);
        self.waited.set(self.waited.get() + std::time::Duration::from_secs(9));
        vec![Some(self.item.clone())]
    }
    fn waited(&self) -> std::time::Duration {
        self.waited.get()
    }
}

#[test]
fn what_a_pack_is_held_up_by_is_no_slowness_of_its_disk() {
    let mut bench = Bench::new(1);
    bench.config.compression = Compression::none();
    let (cold, _) = bench.open();
    let item = item(b"k", &crate::testing::noise(1, 1 << 20), Codec::None, 1);
    let supply = Paced { item, clock: bench.clock.clone(), waited: Default::default() };
    // Of the second pack too it counts what that one waited, and not the first.
    for _ in 0..2 {
        cold.write_from(&supply, Purpose::Write).unwrap();
        let (_, speed, _) = cold.dirs[0].merit(0, Purpose::Write);
        assert!((1048..1100).contains(&speed), "{speed} bytes a millisecond");
    }
}
