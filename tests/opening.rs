//! What opening a store tells, and what it holds open.

#![cfg(test)]

mod common;

use std::path::{Path, PathBuf};
use thermocline::{Builder, Cache, Event, Received, Tier};

const MIB: u64 = 1 << 20;

fn builder(dir: &Path) -> Builder {
    let mut b = Cache::builder().memory(MIB).ssd(dir.join("s"), 16 * MIB).cold(dir.join("c"));
    b.config_mut().storage.segment_size = Some(MIB);
    b
}

/// The files of a folder, by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
    files.sort();
    files
}

/// Puts `n` values of 100 KB, in as many segments as they need.
fn fill(cache: &Cache, n: u64) {
    for no in 0..n {
        cache.put(format!("key/{no}"), common::value(no, 1, 100_000)).unwrap();
    }
    cache.flush().unwrap();
}

#[test]
fn what_opening_finds_damaged_is_told() {
    let dir = common::scratch();
    let cache = builder(dir.path()).open().unwrap();
    fill(&cache, 30);
    cache.demote("key/0", Tier::Cold).unwrap();
    cache.close().unwrap();
    drop(cache);
    let segment = files(&dir.path().join("s/segments")).remove(0);
    let len = std::fs::metadata(&segment).unwrap().len();
    std::fs::write(&segment, vec![7; len as usize]).unwrap();
    std::fs::remove_file(files(&dir.path().join("c/packs")).remove(0)).unwrap();

    let (cache, events) = builder(dir.path()).open_with_events(100).unwrap();
    let lost = cache.recovery().lost;
    assert!(lost > 1, "{:?}", cache.recovery());
    let told: Vec<Received> = std::iter::from_fn(|| events.try_recv().ok()).collect();
    let quarantined = told.iter().any(|t| {
        matches!(t, Received::Event(Event::Quarantined { tier: Tier::Ssd, path, .. }) if *path == segment)
    });
    assert!(quarantined, "{told:?}");
    let items = |t: &Received| match t {
        Received::Event(Event::Lost { items, containers: 2 }) => Some(*items),
        _ => None,
    };
    assert_eq!(told.iter().find_map(items), Some(lost), "{told:?}");
}
