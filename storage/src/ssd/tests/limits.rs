//! Limits, the reserve, several directories, sizes.

use super::*;

#[test]
fn the_limit_holds_and_the_reserve_is_reclaims() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 1000 * KIB, config(64 * KIB));
    let mut n = 0;
    let mut fill = |purpose| {
        loop {
            n += 1;
            match b.ssd.write(&[item("k", n, 20_000)], purpose) {
                Ok(_) => assert!(b.on_disk() <= 1000 * KIB),
                Err(e) => return assert!(matches!(e, Error::NoSpace { .. }), "{e}"),
            }
        }
    };
    fill(Purpose::Write);
    assert_eq!(b.files().len(), 13, "15 fit; two are kept for reclaim");
    fill(Purpose::Reclaim);
    assert_eq!(b.files().len(), 15);
    assert_eq!(b.ssd.usage().occupied, 15 * 64 * KIB);
    for no in 0..3 {
        b.remove(no);
    }
    fill(Purpose::Write);
    assert_eq!(b.files().len(), 13);
}

#[test]
fn what_is_hot_is_written_to_a_segment_of_its_own_where_the_tier_has_room_for_two() {
    for (segments, apart) in [(12, true), (11, false)] {
        let dir = tempfile::tempdir().unwrap();
        let b = Bench::one(dir.path(), segments * 64 * KIB, config(64 * KIB));
        let write = |n, purpose| b.ssd.write(&[item("k", n, 1000)], purpose).unwrap()[0].place.container();
        let (new, hot) = (write(1, Purpose::Write), write(2, Purpose::Hot));
        assert_eq!(new != hot, apart);
        assert_eq!(write(3, Purpose::Reclaim), hot);
        assert_eq!(write(4, Purpose::Write), new);
        b.ssd.seal().unwrap();
        assert!(b.ssd.containers.all().iter().all(|e| e.sealed.load(Ordering::Acquire)), "both are sealed");
    }
}

#[test]
fn a_batch_that_does_not_fit_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 1024 * KIB, config(64 * KIB));
    b.put(&items(1, 100));
    let (files, written) = (b.files().len(), b.ssd.usage().written);
    let e = b.ssd.write(&items(60, 20_000), Purpose::Write).unwrap_err();
    assert!(e.is_no_space());
    assert_eq!((b.files().len(), b.ssd.usage().written), (files, written));
    b.put(&items(10, 100));
}

#[test]
fn an_opening_begins_with_a_small_segment_and_each_further_one_doubles() {
    let dir = tempfile::tempdir().unwrap();
    let mut b = Bench::one(dir.path(), 64 << 20, config(4096 * KIB));
    for n in 0..10 {
        b.put(&items(1, 100));
        assert_eq!(b.on_disk(), (n + 1) * 64 * KIB, "what one item in an opening takes");
        b.ssd.close().unwrap();
        b.reopen();
    }
    let all: Vec<Item> = (0..1000).map(|n| item(&format!("k{n}"), n + 1, 12_000)).collect();
    let written: Vec<Written> = all.chunks(100).flat_map(|some| b.put(some)).collect();
    let sizes: Vec<u64> = b.files().iter().skip(10).map(|f| f.metadata().unwrap().len() / KIB).collect();
    assert_eq!(sizes, [64, 128, 256, 512, 1024, 2048, 4096, 4096]);
    for (i, w) in all.iter().zip(&written) {
        assert_eq!(&b.read(w.place).unwrap(), i);
    }
    // One that is too large for the size that is due gets the next that it fits into, and what follows is larger.
    b.reopen();
    b.put(&[item("large", 1, 900_000)]);
    b.put(&[item("next", 2, 200_000)]);
    let sizes: Vec<u64> = b.files().iter().skip(18).map(|f| f.metadata().unwrap().len() / KIB).collect();
    assert_eq!(sizes, [1024, 2048]);
}

#[test]
fn what_a_batch_will_need_is_known_before_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 4096 * KIB, config(1024 * KIB));
    // 64 + 128 + 256 + 512 + 1024 + 1024 KiB, and one of 1024 KiB is reclaim's.
    let fits: Vec<Item> = (0..130).map(|n| item(&format!("k{n}"), n + 1, 20_000)).collect();
    let too_many: Vec<Item> = (0..150).map(|n| item(&format!("k{n}"), n + 1, 20_000)).collect();
    assert!(b.ssd.write(&too_many, Purpose::Write).unwrap_err().is_no_space());
    assert_eq!((b.files().len(), b.ssd.usage().occupied), (0, 0));
    b.put(&fits);
    assert_eq!((b.files().len(), b.ssd.usage().occupied), (6, 3008 * KIB));
}

#[test]
fn a_segment_that_a_reader_holds_counts_against_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 1024 * KIB, config(64 * KIB));
    for n in 0..14 {
        b.put(&[item("k", n, 30_000), item("l", n, 30_000)]);
    }
    let held: Vec<_> = b.containers.all().into_iter().take(5).collect();
    for e in &held {
        b.remove(e.no);
    }
    assert_eq!(b.ssd.usage().occupied, 9 * 64 * KIB);
    let two = [item("m", 99, 30_000), item("n", 99, 30_000)];
    assert!(b.ssd.write(&two, Purpose::Write).unwrap_err().is_no_space(), "the disk still has their blocks");
    drop(held);
    b.put(&two);
}

#[test]
fn what_can_never_fit_is_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 1024 * KIB, config(64 * KIB));
    let most = b.ssd.max_record();
    let fits = usize::try_from(most).unwrap() - record::HEADER - 8;
    b.put(&[item("12345678", 1, fits)]);
    let e = b.ssd.write(&[item("k", 2, fits + 64)], Purpose::Write).unwrap_err();
    assert!(matches!(e, Error::TooLarge { .. }), "{e}");
}

#[test]
fn what_no_reader_could_make_sense_of_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 1024 * KIB, config(64 * KIB));
    let no_key = Item { key: Bytes::new(), ..item("k", 1, 1) };
    let long_key = item(&"k".repeat(MAX_KEY + 1), 1, 1);
    let auto = Item { content_type: ContentType::Auto, ..item("k", 1, 1) };
    for bad in [no_key, long_key, auto] {
        assert!(b.ssd.write(&[item("good", 1, 1), bad], Purpose::Write).is_err());
    }
    assert!(b.files().is_empty());
    assert!(b.ssd.write(&[], Purpose::Write).unwrap().is_empty());
}

#[test]
fn a_tier_of_a_few_kilobytes_works() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 40 * KIB, config(64 << 20));
    assert_eq!(b.ssd.segment_size(), 12 * KIB, "a quarter of the limit, in blocks");
    let all = items(10, 300);
    for (i, w) in all.iter().zip(b.put(&all)) {
        assert_eq!(&b.read(w.place).unwrap(), i);
    }
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 4 * KIB, config(64 << 20));
    assert!(b.ssd.write(&all, Purpose::Write).is_err());
    b.ssd.close().unwrap();
}

/// Half of the smallest segment is more than has room in it.
#[test]
fn records_of_every_size_find_room_in_the_smallest_segments() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 2048 * KIB, config(MIN_SEGMENT));
    for len in (3700..4200).step_by(7) {
        let item = item("k", 1, len);
        let w = b.put(std::slice::from_ref(&item));
        assert_eq!(b.read(w[0].place).unwrap(), item);
        b.ssd.seal().unwrap();
        b.remove(w[0].place.container());
    }
    assert!(b.containers.all().is_empty(), "one segment for each");
}

#[test]
fn two_directories_share_by_what_is_free() {
    let (a, c) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dirs = vec![dir(3, a.path(), 512 * KIB), dir(5, c.path(), 1536 * KIB)];
    let mut b = Bench::new(dirs, config(64 * KIB), Arc::new(RealFs));
    let mut all = Vec::new();
    for n in 0..20 {
        let batch = [item("k", n, 30_000), item("l", n, 30_000)];
        let w = b.put(&batch);
        all.extend(batch.into_iter().zip(w));
    }
    let count = |b: &Bench, no| b.containers.all().iter().filter(|e| e.dir == no).count();
    assert_eq!((count(&b, 3), count(&b, 5)), (5, 15), "in proportion to their limits");
    b.ssd.close().unwrap();
    b.reopen();
    assert_eq!((count(&b, 3), count(&b, 5)), (5, 15));
    for (i, w) in all {
        assert_eq!(b.read(w.place).unwrap(), i);
    }
    assert_eq!(b.ssd.usage().limit, Some(2048 * KIB));
}

#[test]
fn a_smaller_limit_opens_and_refuses_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut b = Bench::one(dir.path(), 2048 * KIB, config(64 * KIB));
    for n in 0..20 {
        b.put(&[item("k", n, 30_000), item("l", n, 30_000)]);
    }
    b.dirs[0].limit = Some(640 * KIB);
    b.reopen();
    assert!(b.ssd.write(&items(1, 10), Purpose::Reclaim).unwrap_err().is_no_space());
    for no in 0..14 {
        b.remove(no);
    }
    b.put(&items(1, 10));
}

#[test]
fn open_files_are_bounded() {
    // In RAM where that may be: a thousand syncs are slow on a disk.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    for read_mode in [ReadMode::Map, ReadMode::Pread] {
        let config = SsdConfig { read_mode, ..config(8 * KIB) };
        let path = dir.path().join(format!("{read_mode:?}"));
        std::fs::create_dir(&path).unwrap();
        let mut b = Bench::one(&path, 8192 * KIB, config);
        let all: Vec<Item> = (0..300).map(|i| item(&format!("k{i}"), i + 1, 3000)).collect();
        let written = b.put(&all);
        assert_eq!(b.containers.all().len(), 300, "one in a segment");
        let open = || {
            let fds = std::fs::read_dir("/proc/self/fd").unwrap();
            fds.filter(|fd| {
                std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to.starts_with(&path))
            })
            .count()
        };
        // The cache, and the one that is being written.
        assert!(open() <= OPEN_FILES + 1, "{}", open());
        for _ in 0..2 {
            for (i, w) in all.iter().zip(&written) {
                assert_eq!(&b.read(w.place).unwrap(), i, "{read_mode:?}");
            }
            assert!(open() <= OPEN_FILES + 1, "{}", open());
            b.reopen();
        }
        b.ssd.close().unwrap();
        assert_eq!(open(), 0, "closed");
    }
}

#[test]
fn a_reader_of_a_dropped_segment_reads_its_map_or_looks_again() {
    let dir = tempfile::tempdir().unwrap();
    for read_mode in [ReadMode::Map, ReadMode::Pread] {
        let config = SsdConfig { read_mode, ..config(8 * KIB) };
        let b = Bench::one(dir.path(), 1024 * KIB, config);
        let all: Vec<Item> = (0..2).map(|i| item(&format!("k{i}"), i + 1, 3000)).collect();
        let written = b.put(&all);
        let entry = b.containers.remove(written[0].place.container()).unwrap();
        b.ssd.drop_container(&entry).unwrap();
        assert_eq!(b.ssd.reading.files.len(), 1, "a file that is kept open keeps its blocks");
        match (read_mode, entry.container.read(written[0].place.position())) {
            (ReadMode::Map, Ok(read)) => assert_eq!(read, all[0]),
            (ReadMode::Pread, Err(Error::Gone(no))) => assert_eq!(no, entry.no),
            (_, other) => panic!("{read_mode:?}: {other:?}"),
        }
        b.ssd.close().unwrap();
    }
}

#[test]
fn default_sizes() {
    let size = |limit| SsdConfig::segment_size_for(limit, limit);
    assert_eq!(size(0), 1 << 20);
    assert_eq!(size(5 << 30), 64 << 20);
    assert_eq!(size(100 << 20), 4 << 20);
    assert_eq!(size(64 << 30), 64 << 20);
    assert_eq!(size(65 << 30), 128 << 20);
    assert_eq!(size(1 << 40), MAX_SEGMENT);
    assert_eq!(size(u64::MAX), MAX_SEGMENT);
    for shift in 20..39 {
        assert!((1u64 << shift).div_ceil(size(1 << shift)) <= 1024);
    }
    // Many directories: by the whole tier, as far as the smallest one has room for four.
    assert_eq!(SsdConfig::segment_size_for(4 << 30, 256 << 30), 256 << 20);
    assert_eq!(SsdConfig::segment_size_for(1 << 30, 1 << 40), 256 << 20);
    assert_eq!(SsdConfig::for_limit(5 << 30).segment_size, 64 << 20);
}

#[test]
fn a_closed_tier_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let b = Bench::one(dir.path(), 1024 * KIB, config(64 * KIB));
    let w = b.put(&items(1, 10));
    b.ssd.close().unwrap();
    assert!(matches!(b.ssd.write(&items(1, 1), Purpose::Write), Err(Error::OutOfService { .. })));
    assert!(b.read(w[0].place).is_ok());
}
