//! What goes to a quarantine, and from it: what a crash on the way costs, and what is told.

#![cfg(test)]

mod common;

use common::value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thermocline::testing::ManualClock;
use thermocline::{Cache, Event, Received, Tier};
use thermocline_storage::sim::SimFs;

const KIB: u64 = 1 << 10;
const DIRS: [&str; 3] = ["/s", "/h", "/c"];
const FOLDERS: [&str; 3] = ["segments", "generations", "packs"];

fn dir(tier: Tier) -> &'static Path {
    Path::new(DIRS[tier as usize - 1])
}

fn containers(tier: Tier) -> PathBuf {
    dir(tier).join(FOLDERS[tier as usize - 1])
}

fn disk() -> SimFs {
    DIRS.iter().chain(&["/k"]).fold(SimFs::new(5), |fs, dir| fs.with_dir(Path::new(dir)))
}

/// With so many times the usual limits.
fn open(fs: &SimFs, times: u64) -> Cache {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let mut b =
        Cache::builder().memory(64 * KIB).ssd(DIRS[0], times * 512 * KIB).hdd(DIRS[1], times * 1024 * KIB);
    b = b.cold(DIRS[2]).cold_limit(times * 512 * KIB).catalog("/k");
    b.config_mut().resources.io.write_buffer_size = 64 * KIB;
    let s = &mut b.config_mut().storage;
    (s.block_size, s.write_stall_limit) = (KIB, 0);
    (s.segment_size, s.generation_size, s.pack_size) = (Some(32 * KIB), Some(64 * KIB), Some(32 * KIB));
    (s.max_value_size, s.inflight) = (Some(8 * KIB), Some(1 << 20));
    b.simulated(Arc::new(fs.clone()), clock).open().unwrap()
}

fn key(no: u64) -> String {
    format!("key/{no}")
}

/// Puts a version of all items on a tier.
fn put_all(cache: &Cache, tier: Tier, version: u64, items: u64, len: usize) {
    for no in 0..items {
        cache.put(key(no), value(no, version, len)).unwrap();
        cache.flush().unwrap();
        cache.demote(key(no), tier).unwrap();
    }
    cache.flush().unwrap();
}

fn below(fs: &SimFs, folder: &Path) -> Vec<PathBuf> {
    fs.files().into_iter().filter(|f| f.starts_with(folder)).collect()
}

/// A container that nothing identifies any more goes to the quarantine while the store is opened, and what stood in it
/// dies. The disk is stopped before every change of that. (A pack that the catalog knows is not asked who it is.)
#[test]
fn a_crash_while_a_container_is_set_aside_brings_nothing_back() {
    for tier in [Tier::Ssd, Tier::Hdd] {
        let fs = disk();
        let cache = open(&fs, 4);
        put_all(&cache, tier, 1, 6, 600);
        cache.close().unwrap();
        drop(cache);
        let older = below(&fs, &containers(tier));
        let cache = open(&fs, 4);
        put_all(&cache, tier, 2, 6, 600);
        cache.close().unwrap();
        drop(cache);
        let newest: Vec<_> =
            below(&fs, &containers(tier)).into_iter().filter(|f| !older.contains(f)).collect();
        assert!(!newest.is_empty(), "{tier}");
        newest.iter().for_each(|file| fs.edit(file, |bytes| bytes.fill(0xa5)));
        let first = fs.changes();
        (first + 1..first + 2000).for_each(|change| fs.crash_at(change, change * 31 + tier as u64));
        let cache = open(&fs, 4);
        let (made, whole) = (fs.changes() - first, fs.taken());
        assert!(!below(&fs, &dir(tier).join("quarantine")).is_empty(), "{tier}: nothing was set aside");
        let lost = |cache: &Cache, what: &str| {
            for no in 0..6 {
                let got = cache.get(key(no)).unwrap();
                // The older version's container may still be there: it is not what the key has.
                assert!(got.is_none() || got == Some(value(no, 2, 600)), "{what}: {} is back", key(no));
            }
        };
        lost(&cache, "without a crash");
        assert!(whole.len() as u64 == made && made > 10, "{tier}: {made} changes, {} clones", whole.len());
        for (at, disk) in whole {
            let what = format!("{tier}, before change {} of {made}", at - first);
            for _ in 0..2 {
                let cache = open(&disk, 4);
                lost(&cache, &what);
                cache.close().unwrap();
            }
            let left = below(&disk, &containers(tier))
                .into_iter()
                .chain(below(&disk, &dir(tier).join("quarantine")));
            let kept = left.filter(|f| disk.read(f).starts_with(&[0xa5; 100])).count();
            assert_eq!(kept, newest.len(), "{what}: of what was set aside something is gone, or there twice");
        }
    }
}

#[test]
fn what_goes_from_a_full_quarantine_is_told() {
    for tier in Tier::DISK {
        let fs = disk();
        let cache = open(&fs, 1);
        put_all(&cache, tier, 1, 16, 6_000);
        cache.close().unwrap();
        drop(cache);
        for file in below(&fs, &containers(tier)) {
            // Headers and what stands at the end stay: the records are damaged.
            fs.edit(&file, |b| (1000..b.len().saturating_sub(600)).step_by(1024).for_each(|at| b[at] ^= 1));
        }
        let cache = open(&fs, 1);
        let events = cache.subscribe_with(10_000);
        (0..16).for_each(|no| drop(cache.get(key(no)).unwrap()));
        cache.step().ok();
        let (mut copied, mut removed) = (0, 0);
        while let Ok(Received::Event(event)) = events.try_recv() {
            match event {
                Event::Quarantined { tier: of, .. } if of == tier => copied += 1,
                Event::QuarantineTrimmed { tier: of, path, removed: n } => {
                    assert!(of == tier && path == dir(tier) && n > 0, "{of}: {path:?}, {n}");
                    removed += n;
                }
                _ => {}
            }
        }
        let held: Vec<_> = below(&fs, &dir(tier).join("quarantine"));
        let bytes = |f: &PathBuf| fs.read(f).len() as u64;
        let (reports, held): (Vec<PathBuf>, Vec<PathBuf>) =
            held.into_iter().partition(|f| f.extension().is_some_and(|e| e == "txt"));
        assert!(
            removed > 0 && copied == removed + held.len() as u64,
            "{tier}: {copied} copied, {removed} removed, {held:?}"
        );
        assert_eq!(reports.len(), held.len(), "{tier}");
        let limit = [512, 1024, 512][tier as usize - 1] * KIB;
        let sum: u64 = held.iter().map(bytes).sum();
        assert!(sum <= limit / 20 && sum > limit / 40, "{tier}: {sum} bytes are kept");
    }
}
