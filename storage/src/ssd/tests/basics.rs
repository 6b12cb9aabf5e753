//! Round trips, listing, reopening, borrowed slices, readers beside writers.

use super::*;
use crate::container::Listed;
use crate::vfs::OpenMode;
use std::sync::atomic::AtomicBool;

fn listed(items: &[Item], written: &[Written]) -> Vec<Listed> {
    items
        .iter()
        .zip(written)
        .map(|(i, w)| Listed {
            position: w.place.position(),
            ident: i.ident,
            version: i.version,
            expires_at: i.expires_at,
            bytes: w.bytes,
        })
        .collect()
}

#[test]
fn what_is_written_is_read_in_either_mode() {
    for read_mode in [ReadMode::Map, ReadMode::Pread] {
        let dir = tempfile::tempdir().unwrap();
        let config = SsdConfig { read_mode, smallest_read: 64, ..config(64 * KIB) };
        let mut b = Bench::one(dir.path(), 4096 * KIB, config);
        let mut all: Vec<Item> = (0..60).map(|i| item(&format!("k{i}"), i + 1, i as usize * 97)).collect();
        all.push(item("half", 100, 32 * 1024 - 200));
        all.push(item("own", 101, 40 * 1024));
        all.push(item("large", 102, 600 * 1024));
        all.push(item(&"n".repeat(MAX_KEY), 103, 10));
        all.push(item("empty", 104, 0));
        let written = b.put(&all);
        for round in 0..3 {
            for (i, w) in all.iter().zip(&written) {
                assert_eq!(&b.read(w.place).unwrap(), i, "round {round}");
                let entry = b.containers.get(w.place.container()).unwrap();
                assert_eq!(entry.container.head(w.place.position()).unwrap(), i.head());
                assert_eq!(u64::from(w.bytes), record::size(i.key.len(), i.payload.len()));
            }
            match round {
                0 => b.ssd.close().unwrap(),
                _ => b.ssd.maintain(),
            }
            b.reopen();
            assert!(b.report.missing.is_empty() && b.report.quarantined.is_empty());
        }
    }
}

#[test]
fn an_item_over_half_a_segment_has_one_to_itself() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 4096 * KIB, config(64 * KIB));
    let batch = [item("a", 1, 100), item("large", 2, 300 * 1024), item("b", 3, 100)];
    let w = b.put(&batch);
    assert_eq!(w[0].place.container(), w[2].place.container(), "the ordinary segment goes on");
    assert_ne!(w[0].place.container(), w[1].place.container());
    assert_eq!(w[1].place.position(), 128);
    let own = b.containers.get(w[1].place.container()).unwrap();
    assert!(own.sealed.load(Ordering::Relaxed));
    assert!(own.container.occupied() < 300 * 1024 + 64 + 3 * 4096);
    assert_eq!(own.container.list().unwrap(), listed(&batch[1..2], &w[1..2]));
    assert!(!b.containers.get(w[0].place.container()).unwrap().sealed.load(Ordering::Relaxed));
}

#[test]
fn payloads_that_bypass_the_buffer_stand_where_they_should() {
    let dir = tempfile::tempdir().unwrap();
    let mut b = Bench::one(dir.path(), 64 << 20, config(4096 * KIB));
    // One byte over, at and below the size that is written from where it stands; and batches beyond the buffer.
    let sizes = [100, (256 << 10) + 1, 7, 256 << 10, 255 << 10, 300_001, 1, 40_000];
    let all: Vec<Item> =
        (0..80).map(|i| item(&format!("{i}"), i + 1, sizes[i as usize % sizes.len()])).collect();
    let w = b.put(&all);
    b.ssd.close().unwrap();
    b.reopen();
    for (i, w) in all.iter().zip(&w) {
        assert_eq!(&b.read(w.place).unwrap(), i);
    }
    assert!(b.containers.all().len() < 8, "several to a segment");
}

#[test]
fn a_listing_is_the_same_from_ram_footer_and_scan() {
    let dir = tempfile::tempdir().unwrap();
    let mut b = Bench::one(dir.path(), 1024 * KIB, config(64 * KIB));
    let all = items(50, 700);
    let w = b.put(&all);
    let no = w[0].place.container();
    let want = listed(&all, &w);
    let entry = b.containers.get(no).unwrap();
    assert_eq!(entry.container.list().unwrap(), want, "being written");
    assert_eq!(entry.records.load(Ordering::Relaxed), 50);
    assert_eq!(entry.earliest_expiry.load(Ordering::Relaxed), 3000);
    b.reopen();
    let entry = b.containers.get(no).unwrap();
    assert!(entry.sealed.load(Ordering::Relaxed), "none is appended to after a reopen");
    assert_eq!(entry.container.list().unwrap(), want, "scanned: it has no footer");
    let more = items(3, 10);
    let next = b.put(&more);
    assert_ne!(next[0].place.container(), no);
    b.ssd.seal().unwrap();
    let entry = b.containers.get(next[0].place.container()).unwrap();
    assert_eq!(entry.container.list().unwrap(), listed(&more, &next), "sealed");
    b.reopen();
    // The footer alone serves: without the records a scan would find nothing.
    let path = b.files().pop().unwrap();
    let file = RealFs.open(&path, OpenMode::ReadWrite).unwrap();
    file.write_all_at(&[0; 512], 4096).unwrap();
    let entry = b.containers.get(next[0].place.container()).unwrap();
    assert_eq!(entry.container.list().unwrap(), listed(&more, &next), "from the footer");
}

#[test]
fn full_segments_have_footers_and_fit() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 4096 * KIB, config(64 * KIB));
    let all = items(400, 1500);
    let w = b.put(&all);
    let last = w.last().unwrap().place.container();
    for path in b.files() {
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, 64 * KIB);
        let at = 64 * KIB - format::TRAILER;
        let trailer = format::parse_trailer(&bytes[at as usize..], at);
        let entry = b.containers.all().into_iter().find(|e| path.ends_with(open::name_of(e.id))).unwrap();
        if entry.no == last {
            assert!(trailer.is_err());
            continue;
        }
        let t = trailer.unwrap();
        assert!(t.has_footer && t.data_end <= t.footer_at);
        assert_eq!(t.records, entry.records.load(Ordering::Relaxed));
        assert_eq!(t.records as usize, entry.container.list().unwrap().len());
    }
}

#[test]
fn tiny_records_do_without_a_footer() {
    let dir = tempfile::tempdir().unwrap();
    let mut b = Bench::one(dir.path(), 4096 * KIB, config(64 * KIB));
    let all = items(1500, 1);
    let w = b.put(&all);
    b.ssd.close().unwrap();
    b.reopen();
    let mut found = 0;
    for e in b.containers.all() {
        let list = e.container.list().unwrap();
        let mine: Vec<_> =
            w.iter().filter(|w| w.place.container() == e.no).map(|w| w.place.position()).collect();
        assert_eq!(list.iter().map(|l| l.position).collect::<Vec<_>>(), mine);
        found += list.len();
    }
    assert_eq!(found, all.len());
    // 96 bytes a record and a footer of an eighth for the first few hundred: the rest is records.
    assert!(b.files().len() <= 3, "{}", b.files().len());
}

#[test]
fn places_that_were_never_handed_out_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 1024 * KIB, config(64 * KIB));
    let w = b.put(&items(3, 200));
    let c = b.containers.get(w[0].place.container()).unwrap().container.clone();
    let good: Vec<_> = w.iter().map(|w| w.place.position()).collect();
    for position in (0..64 * 32).chain([u32::MAX, Place::MAX_POSITION]) {
        if !good.contains(&position) {
            assert!(c.read(position).unwrap_err().is_corrupt(), "{position}");
            assert!(c.head(position).is_err());
        }
    }
}

#[test]
fn leftovers_go_and_strangers_are_attached_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut b = Bench::one(dir.path(), 1024 * KIB, config(64 * KIB));
    let all = items(100, 1000);
    let w = b.put(&all);
    b.ssd.close().unwrap();
    let known = b.known();
    let folder = dir.path().join("segments");
    std::fs::write(folder.join("seg-00000000000000ff.tmp"), b"half made").unwrap();
    std::fs::write(folder.join("somebody's notes"), b"left alone").unwrap();
    let before = b.files();

    b.reopen_with(Vec::new(), Unknown::Ignore);
    assert_eq!(b.files(), before, "a check changes nothing");
    assert_eq!(b.ssd.usage().occupied, b.on_disk() - 10);

    b.reopen_with(Vec::new(), Unknown::Attach);
    assert_eq!(b.report.deleted, 1, "the temporary one");
    let mut versions: Vec<u64> = Vec::new();
    for e in b.containers.all() {
        let list = e.container.list().unwrap();
        assert_eq!(e.records.load(Ordering::Relaxed), list.len() as u64);
        for l in list {
            let it = e.container.read(l.position).unwrap();
            assert_eq!(it, all[it.version.0 as usize - 1]);
            versions.push(it.version.0);
        }
    }
    versions.sort_unstable();
    assert_eq!(versions, (1..=100).collect::<Vec<_>>());

    let gone = Known { no: 77, id: 12345, ..known[0] };
    b.reopen_with(vec![known[0], gone], Unknown::Delete);
    assert_eq!(b.report.missing, [gone]);
    assert_eq!(b.report.deleted, known.len() as u64 - 1);
    assert_eq!(b.files().len(), 2);
    assert_eq!(b.read(w[0].place).unwrap(), all[0]);
}

#[test]
fn a_copy_of_a_segment_in_another_directory_is_set_aside() {
    let (a, c) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dirs = vec![dir(0, a.path(), 4096 * KIB), dir(1, c.path(), 2048 * KIB)];
    let mut b = Bench::new(dirs, config(64 * KIB), Arc::new(RealFs));
    let all = items(3, 100);
    let w = b.put(&all);
    b.ssd.close().unwrap();
    let path = b.files().remove(0);
    let copy = c.path().join(FOLDER).join(path.file_name().unwrap());
    for (known, unknown) in [(b.known(), Unknown::Delete), (Vec::new(), Unknown::Attach)] {
        std::fs::copy(&path, &copy).unwrap();
        b.reopen_with(known, unknown);
        assert_eq!(b.report.quarantined.len(), 1);
        assert_eq!(b.containers.all().len(), 1);
        assert!(path.exists() && !copy.exists());
        assert_eq!(b.containers.all()[0].container.read(w[2].place.position()).unwrap(), all[2]);
    }
    // Moved to another directory of the tier, it is served from there.
    let known = b.known();
    std::fs::rename(&path, &copy).unwrap();
    b.reopen_with(known, Unknown::Delete);
    assert_eq!(b.containers.all()[0].dir, 1);
    assert!(b.report.missing.is_empty());
}

#[test]
fn a_copy_of_a_segment_that_is_larger_than_the_quarantine_stays() {
    let (a, c) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dirs = vec![dir(0, a.path(), 4096 * KIB), dir(1, c.path(), 1024 * KIB)];
    let mut b = Bench::new(dirs, config(64 * KIB), Arc::new(RealFs));
    b.put(&items(3, 100));
    b.ssd.close().unwrap();
    let path = b.files().remove(0);
    assert!(path.starts_with(a.path()));
    let copy = c.path().join(FOLDER).join(path.file_name().unwrap());
    std::fs::copy(&path, &copy).unwrap();
    b.reopen_with(b.known(), Unknown::Delete);
    assert!(path.exists() && copy.exists(), "it is deleted: {:?}", b.report);
    assert!(b.report.quarantined[0].1.contains("left in its place"), "{:?}", b.report);
    assert_eq!(b.ssd.usage().occupied, 2 * 64 * KIB, "it counts");
}

#[test]
fn of_two_copies_of_a_segment_the_one_that_the_catalog_names_counts_unless_it_is_damaged() {
    let (a, c) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Of two that are alike the lower number is written to.
    let dirs = vec![dir(1, a.path(), 1024 * KIB), dir(0, c.path(), 1024 * KIB)];
    let mut b = Bench::new(dirs, config(64 * KIB), Arc::new(RealFs));
    let all = items(3, 100);
    let w = b.put(&all);
    b.ssd.close().unwrap();
    let path = b.files().remove(0);
    assert!(path.starts_with(c.path()));
    // Half of a copy, in the directory that is looked at first.
    let copy = a.path().join(FOLDER).join(path.file_name().unwrap());
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&copy, &whole[..8 << 10]).unwrap();
    let known = b.known();
    b.reopen_with(known.clone(), Unknown::Delete);
    assert_eq!(b.report.quarantined.len(), 1, "{:?}", b.report);
    assert!(path.exists() && !copy.exists() && b.report.missing.is_empty(), "{:?}", b.report);
    assert_eq!(b.containers.all()[0].container.read(w[2].place.position()).unwrap(), all[2]);
    // The one that the catalog names is damaged, the copy is whole.
    std::fs::write(&copy, &whole).unwrap();
    std::fs::write(&path, [0; 8 << 10]).unwrap();
    b.reopen_with(known.clone(), Unknown::Delete);
    assert_eq!(b.report.quarantined.len(), 1, "{:?}", b.report);
    assert!(copy.exists() && !path.exists() && b.report.missing.is_empty(), "{:?}", b.report);
    assert_eq!(b.containers.all()[0].container.read(w[2].place.position()).unwrap(), all[2]);
    // Neither is whole.
    std::fs::write(&copy, [0; 8 << 10]).unwrap();
    b.reopen_with(known.clone(), Unknown::Delete);
    assert_eq!(b.report.missing, known);
}

#[test]
fn a_dropped_segment_serves_who_holds_it_and_its_number_and_id_do_not_recur() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 1024 * KIB, config(64 * KIB));
    let all = items(40, 1000);
    let w = b.put(&all);
    let no = w[0].place.container();
    b.ssd.seal().unwrap();
    let held = b.containers.get(no).unwrap();
    let before = b.ssd.usage().occupied;
    b.remove(no);
    assert_eq!(b.ssd.usage().occupied, before - 64 * KIB);
    assert!(b.files().is_empty());
    assert!(b.read(w[0].place).is_err());
    for (i, w) in all.iter().zip(&w) {
        assert_eq!(&held.container.read(w.place.position()).unwrap(), i);
    }
    let w2 = b.put(&items(1, 10));
    assert_ne!(w2[0].place.container(), no, "a reader still holds the number");
    assert_ne!(b.containers.get(w2[0].place.container()).unwrap().id, held.id);
    b.ssd.drop_container(&held).unwrap();
}

#[test]
fn dropping_the_segment_that_is_being_written_begins_another() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 1024 * KIB, config(64 * KIB));
    let first = b.put(&items(2, 10))[0].place.container();
    b.remove(first);
    let w = b.put(&items(2, 10));
    assert_eq!(b.read(w[1].place).unwrap(), items(2, 10)[1]);
    assert_eq!(b.files().len(), 1);
}

#[test]
fn slices_are_borrowed_up_to_a_tenth_and_outlive_their_segment() {
    let dir = tempfile::tempdir().unwrap();
    let config = SsdConfig { borrow: true, ..config(512 * KIB) };
    let b = Bench::one(dir.path(), 4096 * KIB, config);
    let all: Vec<Item> = (0..8).map(|i| item(&format!("{i}"), i + 1, 100 << 10)).collect();
    let w = b.put(&all);
    let held: Vec<Item> = w.iter().map(|w| b.read(w.place).unwrap()).collect();
    assert_eq!(held, all);
    assert_eq!(b.ssd.pinned(), 4 * 100 * KIB, "four fit in 409 KiB, the rest are copies");
    let small = b.put(&items(1, 1000));
    b.read(small[0].place).unwrap();
    assert_eq!(b.ssd.pinned(), 4 * 100 * KIB, "small values are copied");
    let first = w[0].place.container();
    b.ssd.seal().unwrap();
    b.remove(first);
    assert_eq!(held, all, "readable although its segment is gone");
    drop(held);
    assert_eq!(b.ssd.pinned(), 0);
}

#[test]
fn what_was_not_touched_for_a_minute_is_read_with_pread() {
    let dir = tempfile::tempdir().unwrap();
    let config = SsdConfig { borrow: true, ..config(1024 * KIB) };
    let b = Bench::one(dir.path(), 64 << 20, config);
    let w = b.put(&[item("a", 1, 80 << 10)]);
    let borrowed = || {
        let _item = b.read(w[0].place).unwrap();
        b.ssd.pinned() > 0
    };
    assert!(borrowed(), "just written");
    for _ in 0..2 {
        b.clock.advance(GENERATION_MS);
        b.ssd.maintain();
    }
    assert!(!borrowed(), "the first read after a minute makes sure that it can be read");
    assert!(borrowed());
    b.clock.advance(GENERATION_MS);
    b.ssd.maintain();
    assert!(borrowed(), "touched in the generation before");
}

#[test]
fn readers_see_whole_items_while_segments_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 1024 * KIB, config(64 * KIB));
    let latest: Mutex<Vec<(Item, Place)>> = Mutex::default();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                let mut reads = 0u64;
                while !done.load(Ordering::Relaxed) || reads == 0 {
                    let pick = {
                        let l = latest.lock();
                        l.get(reads as usize * 7 % l.len().max(1)).cloned()
                    };
                    let Some((item, place)) = pick else { continue };
                    reads += 1;
                    match b.read(place) {
                        Ok(found) => assert_eq!(found, item),
                        Err(Error::Gone(_)) => {}
                        // The number may name a younger container by now: the record in it is another.
                        Err(e) => assert!(e.is_corrupt(), "{e}"),
                    }
                }
            });
        }
        for round in 0..150u64 {
            let batch: Vec<Item> = (0..10).map(|i| item(&format!("{i}"), round * 10 + i, 1700)).collect();
            let w = b.put(&batch);
            *latest.lock() = batch.into_iter().zip(w.iter().map(|w| w.place)).collect();
            while b.ssd.usage().occupied > 600 * KIB {
                let oldest = b.containers.all().into_iter().min_by_key(|e| e.id).unwrap().no;
                b.remove(oldest);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
