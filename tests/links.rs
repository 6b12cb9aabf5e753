//! Symbolic links inside a store are not followed: whatever a link stands in place of, and wherever it leads to, nothing
//! outside is read as the store's, and nothing outside is changed.

#![cfg(test)]

mod common;

use common::value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use thermocline::{Cache, Tier};

const MIB: u64 = 1 << 20;
/// Items in each tier.
const EACH: u64 = 12;

fn key(tier: Tier, no: u64) -> String {
    format!("{tier}/{no}")
}

fn bytes(tier: Tier, no: u64) -> bytes::Bytes {
    value(tier as u64 * 100 + no, 1, 600)
}

fn open(at: &Path) -> thermocline::Result<Cache> {
    let mut b = Cache::builder().memory(MIB).ssd(at.join("s"), 16 * MIB).hdd(at.join("h"), 32 * MIB);
    b = b.cold(at.join("c")).cold_limit(16 * MIB);
    let s = &mut b.config_mut().storage;
    (s.segment_size, s.generation_size, s.pack_size) = (Some(MIB), Some(MIB), Some(MIB));
    b.open()
}

/// A closed store with items in all tiers, a sealed index of sled's, and something in a quarantine.
fn make(at: &Path) {
    for life in 0..2 {
        let cache = open(at).unwrap();
        for tier in Tier::DISK {
            for no in life * EACH / 2..(life + 1) * EACH / 2 {
                cache.put(key(tier, no), bytes(tier, no)).unwrap();
                cache.demote(key(tier, no), tier).unwrap();
            }
        }
        cache.close().unwrap();
    }
    // A damaged record.
    let first = fs::read_dir(at.join("s/segments")).unwrap().map(|e| e.unwrap().path()).min().unwrap();
    let mut segment = fs::read(&first).unwrap();
    segment[4096 + 300] ^= 1;
    fs::write(&first, segment).unwrap();
    let cache = open(at).unwrap();
    (0..EACH).for_each(|no| drop(cache.get(key(Tier::Ssd, no)).unwrap()));
    cache.close().unwrap();
}

/// All that is below a directory, links not followed: where from there, and the bytes of a file.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(|e| e.unwrap()) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let bytes = if kind.is_file() { Some(fs::read(&path).unwrap()) } else { None };
            if kind.is_dir() {
                left.push(path.clone());
            }
            found.insert(path.strip_prefix(dir).unwrap().to_path_buf(), bytes);
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (path, bytes) in tree(from) {
        match bytes {
            Some(bytes) => fs::write(to.join(path), bytes).unwrap(),
            None => fs::create_dir_all(to.join(path)).unwrap(),
        }
    }
}

/// Opens the store, if it can be opened, and does all that reads and writes; nothing else than what was put is read.
fn live(at: &Path, what: &str) -> bool {
    let Ok(cache) = open(at) else { return false };
    for tier in Tier::DISK {
        for no in 0..EACH {
            let got = cache.get(key(tier, no)).unwrap_or_default();
            assert!(got.is_none() || got == Some(bytes(tier, no)), "{what}: {}", key(tier, no));
        }
    }
    for no in 0..EACH {
        for tier in Tier::DISK {
            let name = format!("new/{tier}/{no}");
            let _ = cache.put(&name, value(no, 2, 7_000));
            if no.is_multiple_of(4) {
                let _ = cache.demote(&name, tier);
            }
        }
    }
    Tier::DISK.iter().for_each(|tier| drop(cache.put_back(*tier)));
    let _ = cache.verify();
    let _ = cache.clear();
    let _ = cache.close();
    true
}

/// Each file and directory of a closed store in turn is a link to a copy of it.
#[test]
fn no_link_in_place_of_what_a_store_has_is_followed() {
    let tmp = tempfile::tempdir().unwrap();
    let whole = tmp.path().join("whole");
    make(&whole);
    // The directories that are given may be links; what is in them not.
    let all: Vec<PathBuf> = tree(&whole).into_keys().filter(|p| p.components().count() > 1).collect();
    for part in
        ["seg-", "values-", "index-", "seal", "pack-", "quarantine/", "journal-", "checkpoint-", "lock"]
    {
        assert!(all.iter().any(|p| p.to_string_lossy().contains(part)), "the store has no {part}");
    }
    let sled = all.iter().filter(|p| p.parent().is_some_and(|p| p.to_string_lossy().contains("index-")));
    assert!(sled.count() >= 2, "no database of sled's: {all:?}");
    let mut opened = 0;
    for (n, path) in all.iter().enumerate() {
        let what = format!("{}, of which there are {}", path.display(), all.len());
        let (store, outside) =
            (tmp.path().join(format!("store-{n}")), tmp.path().join(format!("outside-{n}")));
        copy(&whole, &store);
        fs::create_dir(&outside).unwrap();
        let (inside, target) = (store.join(path), outside.join(path.file_name().unwrap()));
        fs::rename(&inside, &target).unwrap();
        symlink(&target, &inside).unwrap();
        let before = tree(&outside);
        opened += usize::from(live(&store, &what));
        assert!(tree(&outside) == before, "{what}: what it leads to was changed");
        fs::remove_dir_all(&store).unwrap();
        fs::remove_dir_all(&outside).unwrap();
    }
    // A link in place of one file is damage of that file; only of a folder it may be said and refused.
    let folders = all.iter().filter(|p| whole.join(p).is_dir()).count();
    assert!(opened + folders + 3 >= all.len(), "only {opened} of {} opened", all.len());
}

/// Names that a store will give to what it makes are links already: to a file, to a folder, to nothing.
#[test]
fn no_link_in_the_way_of_what_a_store_makes_is_followed() {
    let tmp = tempfile::tempdir().unwrap();
    let whole = tmp.path().join("whole");
    make(&whole);
    for n in 0..3 {
        let (store, outside) =
            (tmp.path().join(format!("store-{n}")), tmp.path().join(format!("outside-{n}")));
        copy(&whole, &store);
        fs::create_dir_all(outside.join("folder")).unwrap();
        fs::write(outside.join("file"), b"somebody's").unwrap();
        fs::write(outside.join("folder/file"), b"somebody's").unwrap();
        let target = outside.join(["file", "folder", "nothing"][n]);
        for path in in_the_way(&whole) {
            symlink(&target, store.join(&path)).unwrap();
        }
        let before = tree(&outside);
        for _ in 0..2 {
            live(&store, ["file", "folder", "nothing"][n]);
            assert!(tree(&outside) == before, "{}: what it leads to was changed", target.display());
        }
    }
}

/// Names that are not there, which the store may well use next.
fn in_the_way(store: &Path) -> Vec<PathBuf> {
    let there = tree(store);
    let mut names = Vec::new();
    for path in there.keys().filter(|p| p.components().count() > 1) {
        let beside = |end: &str| PathBuf::from(format!("{}{end}", path.display()));
        names.extend([beside(".tmp"), beside(".dead"), beside(".abandoned"), beside(".txt")]);
        // The next by number, of what has one at its end or before `.zip`; the next opening's, too.
        let text = path.to_string_lossy();
        let (stem, end) = text.strip_suffix(".zip").map_or((&*text, ""), |stem| (stem, ".zip"));
        let digits = stem.len() - stem.trim_end_matches(|c: char| c.is_ascii_hexdigit()).len();
        let (start, number) = stem.split_at(stem.len() - digits);
        let radix =
            if digits == 4 || number.chars().all(|c| c.is_ascii_digit()) && digits == 10 { 10 } else { 16 };
        let Ok(now) = u64::from_str_radix(number, radix) else { continue };
        for next in
            (1..4).map(|k| now + k).chain((1..3).flat_map(|k| (0..3).map(move |j| (k << 24) + j + now)))
        {
            let name = match radix {
                10 => format!("{start}{next:0digits$}{end}"),
                _ => format!("{start}{next:0digits$x}{end}"),
            };
            names.extend([PathBuf::from(format!("{name}.tmp")), PathBuf::from(name)]);
        }
    }
    for folder in ["s/segments", "h/generations", "c/packs"] {
        names.push(Path::new(folder).join("probe.tmp"));
    }
    names.retain(|p| !there.contains_key(p));
    names.sort();
    names.dedup();
    names
}
