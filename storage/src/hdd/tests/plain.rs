//! What works when nothing breaks.

use super::*;
use crate::types::Place;

/// Items with payloads of so many bytes or a little more.
fn varied(from: u32, n: u32, len: usize) -> Vec<Item> {
    (from..from + n).map(|i| item(i, len + i as usize % 50)).collect()
}

#[test]
fn what_is_written_is_read_at_once_after_sealing_and_after_reopening() {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    let mut all = varied(0, 500, 900);
    all.push(item(500, 300_000));
    all.extend(varied(501, 200, 100));
    all.push(item(1000, 0));
    let mut written = open.write(&all[..300]);
    for one in &all[300..310] {
        written.extend(open.write(std::slice::from_ref(one)));
    }
    written.extend(open.write(&all[310..]));
    assert_eq!(open.check(&all, &written), all.len());
    for (item, w) in all.iter().zip(&written) {
        assert_eq!(&open.read(w).unwrap(), item, "a second time, by the cached headers");
    }
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

#[test]
fn a_list_has_every_record_in_order() {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    let all = varied(0, 600, 700);
    let written = open.write(&all);
    let mut places: Vec<_> = Vec::new();
    for entry in open.containers.all() {
        for l in entry.container.list().unwrap() {
            places.push((crate::Place::new(entry.no, l.position).unwrap(), l));
        }
        assert_eq!(entry.records.load(Ordering::Relaxed), entry.container.list().unwrap().len() as u64);
    }
    assert_eq!(places.len(), all.len());
    places.sort_by_key(|(_, l)| l.version);
    for ((place, l), (item, w)) in places.iter().zip(all.iter().zip(&written)) {
        assert_eq!(
            (*place, l.ident, l.version, l.expires_at),
            (w.place, item.ident, item.version, item.expires_at)
        );
        assert_eq!(l.bytes, w.bytes);
    }
    let expiry = open.containers.all().iter().map(|e| e.earliest_expiry.load(Ordering::Relaxed)).min();
    assert_eq!(expiry, Some(1000));
}

#[test]
fn many_single_writes_make_few_index_entries() {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    let all = varied(0, 200, 100);
    let written: Vec<_> = all.iter().flat_map(|i| open.write(std::slice::from_ref(i))).collect();
    let generation = open.hdd.generation(&open.containers.all()[0]).unwrap();
    let entries = generation.ram().unwrap().extents.len();
    assert!((2..30).contains(&entries), "{entries}");
    assert_eq!(open.check(&all, &written), all.len());
    open.hdd.seal().unwrap();
    open.settle();
    assert_eq!(open.hdd.health().open, 1);
    assert_eq!(open.check(&all, &written), all.len());
    let rebuilt = generation.rebuild().unwrap();
    assert!(rebuilt.extents.len() == entries && !rebuilt.partial);
}

#[test]
fn the_limit_holds_and_the_reserve_is_for_reclaim() {
    let limit = 4 << 20;
    let mut bench = Bench::new(&[Some(limit)]);
    let open = bench.open(&[]);
    let (mut all, mut written) = (Vec::new(), Vec::new());
    let mut fill = |purpose| {
        loop {
            let batch = varied(all.len() as u32, 20, 2000);
            let result = open.hdd.write(&batch, purpose);
            assert!(open.hdd.usage().occupied <= limit, "{:?}", open.hdd.usage());
            match result {
                Ok(w) => {
                    written.extend(w);
                    all.extend(batch);
                }
                Err(e) => {
                    assert!(matches!(e, Error::NoSpace { limit: l, .. } if l == limit), "{e}");
                    return all.len();
                }
            }
        }
    };
    let by_writers = fill(Purpose::Write);
    assert!(by_writers > 1000, "{by_writers}");
    let by_reclaim = fill(Purpose::Reclaim) - by_writers;
    assert!(by_reclaim >= 60, "{by_reclaim}");
    open.settle();
    let on_disk = du(&bench.dir(0));
    let said = open.hdd.usage().occupied;
    // The file system's own blocks for a fragmented file are not the tier's to know.
    assert!(on_disk <= said + 65_536 && said <= limit, "{on_disk} on disk, {said} said");
    assert_eq!(open.check(&all, &written), all.len());

    let entry = open.containers.get(written[0].place.container()).unwrap();
    let held = entry.container.occupied();
    open.containers.remove(entry.no);
    open.hdd.drop_container(&entry).unwrap();
    open.containers.release(entry.no, Arc::downgrade(&entry));
    assert_eq!(open.hdd.usage().occupied, said - held);
    assert!(matches!(entry.container.read(0), Err(Error::Gone(no)) if no == entry.no));
    assert!(matches!(open.hdd.drop_container(&entry), Err(Error::Gone(_))));
    open.hdd.write(&varied(0, 20, 2000), Purpose::Reclaim).unwrap();
    open.hdd.close().unwrap();
}

fn du(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let size = |e: std::fs::DirEntry| match e.file_type().unwrap().is_dir() {
        true => du(&e.path()),
        false => e.metadata().unwrap().blocks() * 512,
    };
    std::fs::read_dir(path).unwrap().map(|e| size(e.unwrap())).sum()
}

#[test]
fn too_large_is_said_before_anything_is_written() {
    let mut bench = Bench::new(&[Some(4 << 20)]);
    let open = bench.open(&[]);
    let size = open.hdd.max_record() as usize;
    let error = open.hdd.write(&[item(1, 10), item(0, size)], Purpose::Write).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert!(open.containers.all().is_empty());
    let large = item(0, size - 100);
    let written = open.write(std::slice::from_ref(&large));
    assert_eq!(open.check(&[large], &written), 1);
    assert!(open.containers.all()[0].sealed.load(Ordering::Relaxed), "it has a generation to itself");
}

#[test]
fn a_large_item_does_not_share_a_generation_and_many_value_files_are_read() {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    bench.config.generation_size = 2 << 20;
    let open = bench.open(&[]);
    let all: Vec<_> = (0..40).map(|i| item(i, 100_000)).chain([item(40, 3 << 20), item(41, 5)]).collect();
    let written = open.write(&all);
    open.settle();
    assert!(bench.generations(0)[0].join("values-0003").exists());
    assert_eq!(written[40].place.position(), 0);
    assert_eq!(written[41].place.position(), 0);
    assert_eq!(open.check(&all, &written), all.len());

    // A crash while a further one was made.
    let left = bench.generations(0)[0].join("values-0099.tmp");
    let known = open.known();
    open.hdd.close().unwrap();
    drop(open);
    std::fs::write(&left, "half a header").unwrap();
    let open = bench.open(&known);
    assert!(!left.exists());
    assert_eq!(open.check(&all, &written), all.len());
}

#[test]
fn a_reader_that_holds_the_files_is_not_disturbed_by_a_drop() {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    let all = varied(0, 300, 900);
    let written = open.write(&all);
    open.settle();
    let entries = open.containers.all();
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                for (item, w) in all.iter().zip(&written).cycle().take(3000) {
                    match entries[usize::from(w.place.container())].container.read(w.place.position()) {
                        Ok(found) => assert_eq!(&found, item),
                        Err(e) => assert!(matches!(e, Error::Gone(_)), "{e}"),
                    }
                }
            });
        }
        for e in &entries {
            std::thread::sleep(Duration::from_millis(3));
            open.hdd.drop_container(e).unwrap();
        }
    });
    assert!(bench.generations(0).is_empty());
    assert_eq!(open.hdd.usage().occupied, 0);
}

#[test]
fn two_directories_share_the_load_and_one_may_be_full() {
    let mut bench = Bench::new(&[Some(2 << 20), Some(16 << 20)]);
    let open = bench.open(&[]);
    let all = varied(0, 4000, 2000);
    let written: Vec<_> = all.chunks(50).flat_map(|c| open.write(c)).collect();
    open.settle();
    assert!(bench.generations(0).len() > 1 && bench.generations(1).len() > 1);
    assert_eq!(open.hdd.usage().limit, Some(18 << 20));
    let known = open.known();
    open.hdd.close().unwrap();
    drop(open);
    let again = bench.open(&known);
    assert_eq!(again.check(&all, &written), all.len());
}

#[test]
fn what_the_catalog_does_not_know_is_deleted_attached_or_left() {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    let all = varied(0, 600, 700);
    let written = open.write(&all);
    let known = open.known();
    open.hdd.close().unwrap();
    drop(open);
    let folders = bench.generations(0);
    std::fs::create_dir(bench.dir(0).join("generations/gen-00000000000000aa.tmp")).unwrap();
    std::fs::create_dir(bench.dir(0).join("generations/gen-00000000000000bb.dead")).unwrap();
    std::fs::create_dir(bench.dir(0).join("generations/a person's")).unwrap();

    let open = bench.open_as(&known, Unknown::Ignore).unwrap();
    assert_eq!(open.report.deleted, 0);
    assert_eq!(open.check(&all, &written), all.len(), "a read-only check reads");
    assert!(open.hdd.write(&all, Purpose::Write).is_err());
    drop(open);

    let open = bench.open_as(&known[1..], Unknown::Attach).unwrap();
    assert_eq!(open.containers.all().len(), known.len());
    let attached = open.containers.all().into_iter().find(|e| e.id == known[0].id).unwrap();
    assert_eq!(attached.created_ms, known[0].created_ms);
    assert_eq!(attached.container.list().unwrap().len() as u64, known[0].records);
    assert_eq!(open.report.deleted, 2);
    drop(open);

    let gone = Known { id: 0xdead, ..known[0] };
    let open = bench.open(&[gone, known[1]]);
    assert_eq!(open.report.missing, [gone]);
    assert_eq!(open.report.deleted, folders.len() as u64 - 1);
    assert_eq!(open.containers.all().len(), 1);
    assert!(bench.dir(0).join("generations/a person's").exists());
}

/// Copies a generation with all that is in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn of_two_copies_of_a_generation_the_one_that_the_catalog_names_counts_unless_it_is_lost() {
    let mut bench = Bench::new(&[Some(64 << 20), Some(64 << 20)]);
    let open = bench.open(&[]);
    let all = varied(0, 60, 700);
    let written = open.write(&all);
    let mut known = open.known();
    assert_eq!((known.len(), known[0].dir), (1, 0));
    open.hdd.close().unwrap();
    drop(open);
    // It is in the directory that is looked at last; its copy will be in the first.
    let twin = bench.generations(0).remove(0);
    let path = bench.dir(1).join("generations").join(twin.file_name().unwrap());
    std::fs::rename(&twin, &path).unwrap();
    known[0].dir = 1;
    for (known, unknown) in [(&known[..], Unknown::Delete), (&[], Unknown::Attach)] {
        copy(&path, &twin);
        let open = bench.open_as(known, unknown).unwrap();
        assert_eq!(open.report.quarantined.len(), 1, "{:?}", open.report);
        let stays = if unknown == Unknown::Delete { &path } else { &twin };
        assert!(stays.exists() && path.exists() != twin.exists(), "{:?}", open.report);
        assert_eq!(open.containers.all().len(), 1, "two places would name one record");
        assert_eq!(open.check(&all, &at(&open, &written)), all.len());
        let occupied = open.hdd.usage().occupied;
        open.hdd.drop_container(&open.containers.all()[0]).unwrap();
        assert!(open.hdd.usage().occupied < occupied && !stays.exists());
        open.hdd.close().unwrap();
        drop(open);
        let kept = std::fs::read_dir(bench.dir(usize::from(stays == &path) ^ 1).join("quarantine")).unwrap();
        let kept = kept.map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
        std::fs::rename(kept, &path).unwrap();
    }
    // The one that the catalog names is lost, the copy is whole.
    copy(&path, &twin);
    std::fs::write(path.join("values-0000"), [0; 9000]).unwrap();
    let open = bench.open(&known);
    assert_eq!(open.report.quarantined.len(), 1, "{:?}", open.report);
    assert!(twin.exists() && !path.exists() && open.report.missing.is_empty(), "{:?}", open.report);
    assert_eq!(open.check(&all, &at(&open, &written)), all.len());
}

/// Where the records of the one container stand now.
fn at(open: &Open, written: &[Written]) -> Vec<Written> {
    let no = open.containers.all()[0].no;
    let place = |w: &Written| Place::new(no, w.place.position()).unwrap();
    written.iter().map(|w| Written { place: place(w), ..*w }).collect()
}

#[test]
fn a_generation_of_another_store_is_set_aside_and_not_deleted() {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    open.write(&varied(0, 60, 700));
    open.hdd.close().unwrap();
    drop(open);
    bench.store = [6; 16];
    let open = bench.open(&[]);
    assert_eq!((open.report.deleted, open.report.quarantined.len()), (0, 1), "{:?}", open.report);
}

#[test]
fn a_generation_of_another_store_that_the_quarantine_cannot_keep_stays() {
    // The quarantine keeps a twentieth: 205 KiB.
    let mut bench = Bench::new(&[Some(4 << 20)]);
    let open = bench.open(&[]);
    open.write(&varied(0, 60, 4000));
    let known = open.known();
    open.hdd.close().unwrap();
    drop(open);
    let path = bench.generations(0).remove(0);
    bench.store = [6; 16];
    for known in [known, Vec::new()] {
        let open = bench.open(&known);
        assert_eq!((open.report.deleted, open.report.quarantined.len()), (0, 1), "{:?}", open.report);
        assert!(path.exists() && open.hdd.usage().occupied > 205 << 10, "{:?}", open.report);
        open.hdd.close().unwrap();
    }
}

#[test]
fn a_generation_without_values_goes_unless_somebody_has_put_something_into_it() {
    for name in ["index-0000", "notes.txt"] {
        let mut bench = Bench::new(&[Some(64 << 20)]);
        let open = bench.open(&[]);
        let path = bench.dir(0).join("generations/gen-00000000000000ff");
        open.hdd.close().unwrap();
        drop(open);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join(name), b"kept").unwrap();
        let open = bench.open(&[]);
        let ours = name != "notes.txt";
        let found = (open.report.deleted, open.report.quarantined.len());
        assert_eq!(found, if ours { (1, 0) } else { (0, 1) }, "{:?}", open.report);
        open.hdd.close().unwrap();
    }
}

/// A database costs memory beyond its cache: with a small cache few are open, and every record comes back.
#[test]
fn a_small_cache_keeps_few_databases_open() {
    for (cache, most) in [(1 << 20, 1), (8 << 20, 2), (1 << 30, 8)] {
        let mut bench = Bench::new(&[Some(64 << 20)]);
        bench.config.sled_cache = cache;
        let open = bench.open(&[]);
        let all: Vec<_> = (0..800).map(|i| item(i, 4000)).collect();
        let written: Vec<_> = all.chunks(50).flat_map(|batch| open.write(batch)).collect();
        open.settle();
        assert!(open.containers.all().len() > 9);
        for round in 0..3 {
            assert_eq!(open.check(&all, &written), all.len(), "round {round}");
            open.settle();
            assert!(open.hdd.health().open <= most, "{} open, {most} allowed", open.hdd.health().open);
        }
        assert!(open.hdd.health().open > 0);
    }
}
