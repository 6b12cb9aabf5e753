//! What a crash in the middle of one operation leaves: the disk is stopped before every change that the operation makes,
//! several times with other parts of what was not synced lost, and the store is opened again. The tables of the design
//! name these tests. (`tests/simulation/` does so to any life; here each step is surely reached.)

#![cfg(test)]

mod common;

use bytes::Bytes;
use common::value;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use thermocline::testing::ManualClock;
use thermocline::{Builder, Cache, Error, Tier};
use thermocline_storage::sim::SimFs;

const KIB: u64 = 1 << 10;
const DIRS: [&str; 3] = ["/s", "/h", "/c"];
const NOW: u64 = 1_700_000_000_000;
/// Crash clones of each change.
const SEEDS: u64 = 12;
const ITEMS: u64 = 24;

fn builder(fs: &SimFs) -> Builder {
    let mut b = Cache::builder().memory(64 * KIB).ssd(DIRS[0], 512 * KIB).hdd(DIRS[1], 1024 * KIB);
    b = b.cold(DIRS[2]).cold_limit(512 * KIB).catalog("/k");
    b.config_mut().resources.io.write_buffer_size = 64 * KIB;
    let s = &mut b.config_mut().storage;
    (s.block_size, s.write_stall_limit) = (KIB, 1);
    (s.segment_size, s.generation_size, s.pack_size) = (Some(64 * KIB), Some(64 * KIB), Some(32 * KIB));
    (s.max_value_size, s.inflight) = (Some(24 * KIB), Some(1 << 20));
    b.simulated(Arc::new(fs.clone()), Arc::new(ManualClock::new(NOW)))
}

fn open(fs: &SimFs) -> Cache {
    builder(fs).open().unwrap()
}

fn key(no: u64) -> String {
    format!("{}/{no}", if no.is_multiple_of(2) { "even" } else { "odd" })
}

fn of(no: u64, version: u64) -> Bytes {
    value(no, version, 600)
}

/// A store in which all items are on disk, in all tiers, in their first version.
fn store() -> (SimFs, Cache) {
    let fs = DIRS.iter().chain(&["/k"]).fold(SimFs::new(9), |fs, dir| fs.with_dir(Path::new(dir)));
    let cache = open(&fs);
    for no in 0..ITEMS {
        cache.put(key(no), of(no, 1)).unwrap();
    }
    cache.flush().unwrap();
    for no in 0..ITEMS {
        cache.demote(key(no), Tier::DISK[no as usize % 3]).unwrap();
    }
    cache.flush().unwrap();
    (fs, cache)
}

/// Every crash while `act` runs, and one after it that loses all that was not synced. `judge` sees each store that is
/// opened after one, twice, and whether the crash was after the end.
fn each_crash<T>(fs: &SimFs, act: impl FnOnce() -> T, judge: impl Fn(&Cache, bool, &str)) -> T {
    let first = fs.changes() + 1;
    for change in first..first + 3_000 {
        (0..SEEDS).for_each(|seed| fs.crash_at(change, change * SEEDS + seed));
    }
    let done = act();
    let end = fs.crash_losing_all();
    let clones = fs.taken();
    assert!(clones.len() as u64 >= 4 * SEEDS, "only {} crashes", clones.len());
    let during = clones.into_iter().map(|(at, disk)| (format!("before change {}", at - first), disk, false));
    for (what, disk, after) in during.chain([("after the end".to_owned(), end, true)]) {
        for again in ["", ", opened again"] {
            let cache = open(&disk);
            judge(&cache, after, &format!("{what}{again}"));
            cache.close().unwrap();
        }
    }
    done
}

#[test]
fn a_crash_while_it_closes_loses_nothing_that_was_durable() {
    let (fs, cache) = store();
    // New, changed, removed; none of it is on disk before the store is closed.
    for no in 0..8 {
        cache.put(key(no), of(no, 2)).unwrap();
    }
    (8..12).for_each(|no| assert!(cache.remove(key(no)).unwrap()));
    cache.put("new", of(99, 1)).unwrap();
    each_crash(
        &fs,
        || cache.close().unwrap(),
        |cache, closed, what| {
            for no in 0..ITEMS {
                let got = cache.get(key(no)).unwrap();
                let (before, now) = match no {
                    0..8 => (Some(of(no, 1)), Some(of(no, 2))),
                    8..12 => (Some(of(no, 1)), None),
                    _ => (Some(of(no, 1)), Some(of(no, 1))),
                };
                assert!(got == now || !closed && got == before, "{what}: {}", key(no));
            }
            let new = cache.get("new").unwrap();
            assert!(new == Some(of(99, 1)) || !closed && new.is_none(), "{what}");
        },
    );
}

#[test]
fn a_crash_while_a_large_put_is_written_leaves_the_old_value_or_the_new() {
    for older_is_on_disk in [true, false] {
        let (fs, cache) = store();
        if !older_is_on_disk {
            cache.put(key(1), of(1, 2)).unwrap();
        }
        let large = value(1, 3, 20_000);
        let put = || {
            cache.put(key(1), large.clone()).unwrap();
            cache.flush().unwrap();
        };
        each_crash(&fs, put, |cache, done, what| {
            let got = cache.get(key(1)).unwrap();
            let older = got == Some(of(1, 1)) || !older_is_on_disk && got == Some(of(1, 2));
            assert!(got.as_ref() == Some(&large) || !done && older, "{what}: {:?}", got.map(|v| v.len()));
            assert_eq!(cache.get(key(2)).unwrap(), Some(of(2, 1)), "{what}");
        });
    }
}

#[test]
fn a_crash_while_it_is_cleared_leaves_each_item_whole_or_gone() {
    let (fs, cache) = store();
    let clear = || {
        assert_eq!(cache.clear().unwrap(), ITEMS);
        cache.flush().unwrap();
    };
    each_crash(&fs, clear, |cache, done, what| {
        for no in 0..ITEMS {
            let got = cache.get(key(no)).unwrap();
            assert!(got.is_none() || !done && got == Some(of(no, 1)), "{what}: {}", key(no));
        }
    });
}

#[test]
fn a_crash_while_a_prefix_is_removed_touches_no_other_key() {
    let (fs, cache) = store();
    let remove = || {
        assert_eq!(cache.remove_prefix("even/").unwrap(), ITEMS / 2);
        cache.flush().unwrap();
    };
    each_crash(&fs, remove, |cache, done, what| {
        for no in 0..ITEMS {
            let got = cache.get(key(no)).unwrap();
            let gone = no.is_multiple_of(2) && got.is_none();
            assert!(gone || !(done && no.is_multiple_of(2)) && got == Some(of(no, 1)), "{what}: {}", key(no));
        }
    });
}

#[test]
fn a_crash_while_an_expiry_is_changed_leaves_the_old_one_or_the_new() {
    let (fs, cache) = store();
    let at = |ms: u64| Some(SystemTime::UNIX_EPOCH + Duration::from_millis(NOW + ms));
    // What stands in the record, what stands beside the index, and what a move has folded in.
    let first = Some(Duration::from_secs(1_000));
    (0..ITEMS).for_each(|no| assert!(cache.expire_in(key(no), first).unwrap()));
    cache.flush().unwrap();
    let change = || {
        for no in 0..ITEMS {
            let next = [Some(Duration::from_secs(2_000)), None][no as usize / 2 % 2];
            assert!(cache.expire_in(key(no), next).unwrap());
            if no.is_multiple_of(4) {
                cache.demote(key(no), Tier::Cold).unwrap();
            }
        }
        cache.flush().unwrap();
    };
    each_crash(&fs, change, |cache, done, what| {
        for no in 0..ITEMS {
            let entry = cache.get_entry(key(no)).unwrap();
            let entry = entry.unwrap_or_else(|| panic!("{what}: {} is gone", key(no)));
            assert_eq!(entry.value, of(no, 1), "{what}");
            let next = [at(2_000_000), None][no as usize / 2 % 2];
            let right = entry.expires_at == next || !done && entry.expires_at == at(1_000_000);
            assert!(right, "{what}: {} expires at {:?}", key(no), entry.expires_at);
        }
    });
}

#[test]
fn a_crash_while_the_catalog_is_rebuilt_leaves_it_lost_or_whole() {
    let (fs, cache) = store();
    cache.close().unwrap();
    drop(cache);
    for file in fs.files().into_iter().filter(|f| f.to_string_lossy().contains("checkpoint-")) {
        fs.edit(&file, |bytes| bytes.fill(0));
    }
    assert!(matches!(builder(&fs).open(), Err(Error::Storage(_))), "the catalog is lost");
    let first = fs.changes() + 1;
    for change in first..first + 3_000 {
        (0..SEEDS).for_each(|seed| fs.crash_at(change, change * SEEDS + seed));
    }
    let rebuilt = builder(&fs).rebuild_catalog(true).open().unwrap();
    let end = fs.crash_losing_all();
    let (mut lost, mut whole) = (0, 0);
    let clones = fs.taken().into_iter().map(|(at, disk)| (at - first, disk, false));
    for (at, disk, done) in clones.chain([(0, end, true)]) {
        let cache = match builder(&disk).open() {
            Ok(cache) => {
                whole += 1;
                cache
            }
            // Nothing is begun again that nobody asks for, unless it was under way.
            Err(Error::Storage(e)) if !done => {
                assert!(e.to_string().contains("catalog is lost"), "before change {at}: {e}");
                lost += 1;
                builder(&disk).rebuild_catalog(true).open().unwrap()
            }
            Err(e) => panic!("before change {at}: {e}"),
        };
        for no in 0..ITEMS {
            assert_eq!(cache.get(key(no)).unwrap(), Some(of(no, 1)), "before change {at}: {}", key(no));
        }
        cache.close().unwrap();
    }
    assert!(lost > 0 && whole > 0, "{lost} were lost still, {whole} were whole");
    rebuilt.close().unwrap();
}
