//! A tier that fails while the store is used: it is taken out of service, reads go on from the others, it is told of,
//! and it comes back, by itself or when it is asked for.

#![cfg(test)]

mod common;

use common::value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thermocline::testing::ManualClock;
use thermocline::{Cache, Error, Event, Received, Subscription, Tier};
use thermocline_storage::sim::{Away, Fault, Op, SimFs};
use thermocline_storage::vfs::{OpenMode, Vfs};

const KIB: u64 = 1 << 10;
const DIRS: [&str; 3] = ["/s", "/h", "/c"];
/// Items in each tier.
const EACH: u64 = 8;

fn dir(tier: Tier) -> &'static Path {
    Path::new(DIRS[tier as usize - 1])
}

fn key(tier: Tier, no: u64) -> String {
    format!("{tier}/{no}")
}

fn bytes(tier: Tier, no: u64) -> bytes::Bytes {
    value(tier as u64 * 100 + no, 1, 600)
}

fn store() -> (SimFs, Arc<ManualClock>, Cache) {
    store_of(3)
}

fn store_of(seed: u64) -> (SimFs, Arc<ManualClock>, Cache) {
    let fs = DIRS.iter().chain(&["/k"]).fold(SimFs::new(seed), |fs, dir| fs.with_dir(Path::new(dir)));
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let cache = fill(open(&fs, &clock));
    // What stands on the highest tier is in memory as well, until it is opened again.
    (fs, clock, cache)
}

fn open(fs: &SimFs, clock: &Arc<ManualClock>) -> Cache {
    let mut b = Cache::builder().memory(64 * KIB).ssd(DIRS[0], 512 * KIB).hdd(DIRS[1], 1024 * KIB);
    b = b.cold(DIRS[2]).cold_limit(512 * KIB).catalog("/k");
    b.config_mut().resources.io.write_buffer_size = 64 * KIB;
    let s = &mut b.config_mut().storage;
    (s.block_size, s.write_stall_limit) = (KIB, 0);
    (s.segment_size, s.generation_size, s.pack_size) = (Some(16 * KIB), Some(32 * KIB), Some(16 * KIB));
    (s.max_value_size, s.inflight) = (Some(8 * KIB), Some(1 << 20));
    b.simulated(Arc::new(fs.clone()), clock.clone()).open().unwrap()
}

fn fill(cache: Cache) -> Cache {
    for tier in Tier::DISK {
        for no in 0..EACH {
            cache.put(key(tier, no), bytes(tier, no)).unwrap();
        }
    }
    cache.flush().unwrap();
    for tier in Tier::DISK {
        for no in 0..EACH {
            // Out of memory too.
            cache.demote(key(tier, no), tier).unwrap();
        }
    }
    cache
}

fn heard(events: &Subscription) -> Vec<(bool, Tier)> {
    let mut all = Vec::new();
    while let Ok(Received::Event(event)) = events.try_recv() {
        match event {
            Event::TierOutOfService { tier, .. } => all.push((false, tier)),
            Event::TierBack { tier, .. } => all.push((true, tier)),
            _ => {}
        }
    }
    all
}

fn out(cache: &Cache, tier: Tier) -> usize {
    cache.stats().tier(tier).unwrap().out_of_service.len()
}

#[test]
fn each_tier_goes_out_of_service_and_comes_back() {
    for tier in Tier::DISK {
        let (fs, clock, cache) = store();
        let events = cache.subscribe();
        for (round, by_hand) in [(0, false), (1, true)] {
            // The disk is pulled. Somebody reads what stands on it.
            fs.take_away(dir(tier), Away::Missing);
            assert_eq!(cache.get(key(tier, round)).unwrap(), None, "{tier}");
            cache.step().ok();
            assert_eq!(out(&cache, tier), 1, "{tier}");
            assert_eq!(heard(&events), [(false, tier)]);
            let stats = cache.stats();
            let (path, why) = &stats.tier(tier).unwrap().out_of_service[0];
            assert!(path == dir(tier) && !why.is_empty(), "{path:?}: {why}");
            for other in Tier::DISK.into_iter().filter(|t| *t != tier) {
                let no = 2 + round;
                assert_eq!(
                    cache.get(key(other, no)).unwrap(),
                    Some(bytes(other, no)),
                    "{other} without {tier}"
                );
                assert_eq!(out(&cache, other), 0);
            }
            assert!(!cache.put_back(tier).unwrap(), "it is still away");
            assert_eq!(heard(&events), []);
            fs.heal();
            if by_hand {
                assert!(cache.put_back(tier).unwrap());
            } else {
                clock.advance(29_000);
                cache.step().ok();
                assert_eq!(out(&cache, tier), 1, "its time has not come");
                clock.advance(1_000);
                cache.step().unwrap();
            }
            assert_eq!(out(&cache, tier), 0);
            assert_eq!(heard(&events), [(true, tier)]);
            // Nothing is forgotten, and what was put meanwhile is kept.
            assert_eq!(cache.get(key(tier, round)).unwrap(), Some(bytes(tier, round)), "{tier}");
            cache.put("after", value(1, round, 100)).unwrap();
            cache.flush().unwrap();
        }
        assert_eq!(cache.stats().counts.damaged, 0);
        cache.close().unwrap();
        assert!(matches!(cache.put_back(tier), Err(Error::Closed)));
    }
}

/// All files below a directory, by what their paths are from there, with their bytes.
fn tree(fs: &SimFs, dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let below = |path: PathBuf| Some((path.strip_prefix(dir).ok()?.to_path_buf(), fs.read(&path)));
    fs.files().into_iter().filter_map(below).collect()
}

fn copy(fs: &SimFs, from: &Path, to: &Path) {
    plant(fs, to, &tree(fs, from));
}

fn plant(fs: &SimFs, to: &Path, files: &[(PathBuf, Vec<u8>)]) {
    for (path, bytes) in files {
        let path = to.join(path);
        fs.create_dir_all(path.parent().unwrap()).unwrap();
        fs.open(&path, OpenMode::CreateNew).unwrap().write_all_at(bytes, 0).unwrap();
    }
}

/// What must not be taken for the directory of a tier, with a word of why it is refused.
fn impostors(fs: &SimFs, tier: Tier, older: &[(PathBuf, Vec<u8>)]) -> Vec<(PathBuf, &'static str)> {
    let all = [
        ("/older", older.to_vec(), "older copy"),
        ("/copy", tree(fs, dir(tier)), "a copy of the directory"),
        ("/strange", tree(&store_of(4).0, dir(tier)), "another store"),
        ("/sibling", tree(fs, dir(if tier == Tier::Ssd { Tier::Hdd } else { Tier::Ssd })), "directory"),
        ("/bare", vec![(dir_of_containers(tier).join("x"), vec![1])], "mount its disk"),
    ];
    for (path, files, _) in &all {
        plant(fs, Path::new(path), files);
    }
    all.into_iter().map(|(path, _, why)| (path.into(), why)).collect()
}

fn dir_of_containers(tier: Tier) -> &'static Path {
    Path::new(["segments", "generations", "packs"][tier as usize - 1])
}

#[test]
fn a_directory_that_is_another_is_not_taken_back() {
    for tier in Tier::DISK {
        let (fs, clock, cache) = store();
        let older = tree(&fs, dir(tier));
        cache.close().unwrap();
        let cache = open(&fs, &clock);
        let events = cache.subscribe();
        let away = Path::new("/away");
        for (round, (impostor, word)) in impostors(&fs, tier, &older).into_iter().enumerate() {
            let (round, what) = (round as u64, format!("{tier}, {}", impostor.display()));
            fs.rename(dir(tier), away).unwrap();
            fs.rename(&impostor, dir(tier)).unwrap();
            let before = tree(&fs, dir(tier));
            // Somebody writes, until it is noticed; and reads.
            for no in 0..4 {
                let name = format!("{round}/{no}");
                cache.put(&name, value(no, round, 700)).unwrap();
                let _ = cache.flush();
                let _ = cache.demote(&name, tier);
                cache.step().ok();
            }
            for no in 0..EACH {
                let got = cache.get(key(tier, no)).unwrap();
                assert!(got.is_none() || got == Some(bytes(tier, no)), "{what}");
            }
            assert_eq!(out(&cache, tier), 1, "{what}");
            // Neither by itself nor when it is asked for.
            clock.advance(31_000);
            cache.step().ok();
            assert!(!cache.put_back(tier).unwrap(), "{what}");
            let stats = cache.stats();
            let (_, why) = &stats.tier(tier).unwrap().out_of_service[0];
            assert!(why.contains(word), "{what}: {why}");
            let mut last = None;
            while let Ok(Received::Event(event)) = events.try_recv() {
                if let Event::TierOutOfService { why, .. } = event {
                    last = Some(why);
                }
            }
            assert_eq!(last.as_ref(), Some(why), "{what}: the event says why too");
            assert!(tree(&fs, dir(tier)) == before, "{what}: it was written to");
            // The right one.
            fs.rename(dir(tier), &impostor).unwrap();
            fs.rename(away, dir(tier)).unwrap();
            assert!(cache.put_back(tier).unwrap(), "{what}");
            cache.flush().unwrap();
            for no in 0..EACH {
                assert_eq!(cache.get(key(tier, no)).unwrap(), Some(bytes(tier, no)), "{what}");
            }
        }
        assert_eq!(cache.stats().counts.damaged, 0);
        cache.close().unwrap();
    }
}

#[test]
fn an_impostor_is_noticed_by_who_reads() {
    for tier in Tier::DISK {
        let (fs, clock, cache) = store();
        cache.close().unwrap();
        let cache = open(&fs, &clock);
        copy(&fs, dir(tier), Path::new("/copy"));
        fs.rename(dir(tier), Path::new("/away")).unwrap();
        fs.rename(Path::new("/copy"), dir(tier)).unwrap();
        let mut absent = 0;
        for no in 0..EACH {
            match cache.get(key(tier, no)).unwrap() {
                None => absent += 1,
                got => assert_eq!(got, Some(bytes(tier, no)), "{tier}"),
            }
        }
        cache.step().ok();
        // A file that is open is that of the right directory, wherever that is now.
        assert_eq!(out(&cache, tier), usize::from(absent > 0), "{tier}: {absent}");
        // The SSD tier opens its files with the store; the HDD tier in the background, which may have come to its end.
        assert!(absent > 0 || tier != Tier::Cold, "{tier}: nothing was opened, so nothing was tried");
        assert_eq!(cache.stats().counts.damaged, 0);
    }
}

/// Its journal is open all the time, and takes bytes wherever it has gone.
#[test]
fn nothing_is_acknowledged_for_a_catalog_that_has_gone() {
    let (fs, clock, cache) = store();
    cache.flush().unwrap();
    let (place, away) = (Path::new("/k"), Path::new("/away"));
    copy(&fs, place, Path::new("/copy"));
    fs.rename(place, away).unwrap();
    let gone = tree(&fs, away);
    let e = cache.put("late", value(9, 9, 100)).and_then(|_| cache.flush()).unwrap_err();
    assert!(e.to_string().contains("/k"), "{e}");
    fs.rename(Path::new("/copy"), place).unwrap();
    let before = tree(&fs, place);
    assert!(cache.flush().is_err() && cache.remove("late").and_then(|_| cache.flush()).is_err());
    cache.put("late", value(9, 9, 100)).unwrap();
    cache.step().ok();
    assert!(tree(&fs, place) == before, "what stands in its place was written to");
    assert!(tree(&fs, away) == gone, "it was written to where nobody will look for it");
    assert_eq!(cache.get(key(Tier::Ssd, 1)).unwrap(), Some(bytes(Tier::Ssd, 1)), "reads go on");
    // It is there again: what had been refused is durable now.
    fs.rename(place, Path::new("/copy")).unwrap();
    fs.rename(away, place).unwrap();
    cache.flush().unwrap();
    let disk = fs.crash_losing_all();
    let cache = open(&disk, &clock);
    assert_eq!(cache.get("late").unwrap(), Some(value(9, 9, 100)));
    for tier in Tier::DISK {
        assert_eq!(cache.get(key(tier, 1)).unwrap(), Some(bytes(tier, 1)));
    }
}

#[test]
fn a_close_without_its_catalog_says_so() {
    let (fs, clock, cache) = store();
    cache.flush().unwrap();
    let (place, away) = (Path::new("/k"), Path::new("/away"));
    copy(&fs, place, Path::new("/copy"));
    fs.rename(place, away).unwrap();
    fs.rename(Path::new("/copy"), place).unwrap();
    let before = tree(&fs, place);
    cache.put("late", value(9, 9, 100)).unwrap();
    assert!(cache.close().is_err(), "there is nowhere to put a checkpoint");
    assert!(tree(&fs, place) == before, "it was written to");
    fs.rename(place, Path::new("/copy")).unwrap();
    fs.rename(away, place).unwrap();
    let cache = open(&fs, &clock);
    assert_eq!(cache.get("late").unwrap(), None, "that it is not kept was said");
    for tier in Tier::DISK {
        assert_eq!(cache.get(key(tier, 1)).unwrap(), Some(bytes(tier, 1)));
    }
}

#[test]
fn a_tier_that_takes_no_writes_is_read_on() {
    for tier in Tier::DISK {
        let (fs, _, cache) = store();
        let events = cache.subscribe();
        fs.fail(Fault::on_any(&[Op::Write, Op::Create, Op::Sync]).below(dir(tier)));
        for no in 0..4 {
            let name = format!("new/{no}");
            cache.put(&name, value(no, 2, 700)).unwrap();
            // It fails, and so does what it was to be written by.
            let _ = cache.flush();
            let _ = cache.demote(&name, tier);
            cache.step().ok();
        }
        assert_eq!((out(&cache, tier), heard(&events)), (1, vec![(false, tier)]));
        for of in Tier::DISK {
            assert_eq!(cache.get(key(of, 1)).unwrap(), Some(bytes(of, 1)), "{of} without {tier}");
        }
        fs.heal();
        assert!(cache.put_back(tier).unwrap());
        assert_eq!(heard(&events), [(true, tier)]);
        for no in 0..4 {
            assert_eq!(cache.get(format!("new/{no}")).unwrap(), Some(value(no, 2, 700)));
        }
        cache.flush().unwrap();
        cache.close().unwrap();
    }
}

#[test]
fn one_bad_sector_takes_no_tier_out() {
    for tier in Tier::DISK {
        let (fs, _, cache) = store();
        fs.fail(Fault::on(Op::Read).below(dir(tier)));
        assert_eq!(cache.get(key(tier, 0)).unwrap(), None);
        cache.step().unwrap();
        assert_eq!(out(&cache, tier), 0, "{tier}: it can be written to");
        fs.heal();
        assert_eq!(cache.get(key(tier, 0)).unwrap(), Some(bytes(tier, 0)));
        assert!(matches!(cache.put_back(Tier::Memory), Err(Error::NoSuchTier(Tier::Memory))));
    }
}
