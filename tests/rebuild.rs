//! Rebuilding the catalog where not everything can be seen: what was not seen is reported, kept, and taken in later.

#![cfg(test)]

mod common;

use common::value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thermocline::testing::SystemClock;
use thermocline::{Builder, Cache, Tier};
use thermocline_storage::testing::{Fault, FaultFs, Op};

const MIB: u64 = 1 << 20;
/// Items in each tier.
const EACH: u64 = 30;

fn builder(dir: &Path) -> Builder {
    let mut b = Cache::builder()
        .memory(MIB)
        .ssd(dir.join("s"), 64 * MIB)
        .hdd(dir.join("h"), 64 * MIB)
        .cold(dir.join("c"));
    let s = &mut b.config_mut().storage;
    s.segment_size = Some(MIB);
    s.generation_size = Some(MIB);
    s.pack_size = Some(MIB);
    b
}

fn rebuilding(dir: &Path) -> Builder {
    builder(dir).rebuild_catalog(true)
}

/// Items 0 to 29 on the SSD, 30 to 59 on the HDD, 60 to 89 in the archive, each of 100 KB.
fn fill(dir: &Path) {
    let cache = builder(dir).open().unwrap();
    for no in 0..EACH {
        cache.put(key(no), value(no, 1, 100_000)).unwrap();
    }
    cache.flush().unwrap();
    let segments = |cache: &Cache| cache.stats().tier(Tier::Ssd).unwrap().containers;
    let of_these = segments(&cache);
    cache.close().unwrap();
    drop(cache);
    // In segments of their own, since it is another opening.
    let cache = builder(dir).open().unwrap();
    for no in EACH..3 * EACH {
        cache.put(key(no), value(no, 1, 100_000)).unwrap();
        let below = if no / EACH == 1 { Tier::Hdd } else { Tier::Cold };
        assert!(cache.demote(key(no), below).unwrap());
    }
    cache.close().unwrap();
    drop(cache);
    // Until the segments that hold nothing but old copies are gone: an old copy would do as well.
    let cache = builder(dir).open().unwrap();
    let begin = std::time::Instant::now();
    while segments(&cache) > of_these {
        assert!(begin.elapsed().as_secs() < 60, "dead segments stay");
        cache.step().unwrap();
    }
    cache.close().unwrap();
}

fn key(no: u64) -> String {
    format!("key/{no}")
}

/// The items that are absent; the others are right.
fn absent(cache: &Cache) -> Vec<u64> {
    let mut absent = Vec::new();
    for no in 0..3 * EACH {
        match cache.get(key(no)).unwrap() {
            Some(found) => assert_eq!(found, value(no, 1, 100_000), "{no}"),
            None => absent.push(no),
        }
    }
    absent
}

/// The oldest container of each tier that holds items: a segment, a value file of a generation, a pack.
fn victims(dir: &Path) -> Vec<PathBuf> {
    let first = |folder: &Path, part: &str| {
        let mut found: Vec<PathBuf> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.file_name().unwrap().to_string_lossy().contains(part))
            .collect();
        found.sort();
        found.remove(0)
    };
    let generation = first(&dir.join("h/generations"), "gen-");
    vec![
        first(&dir.join("s/segments"), "seg-"),
        first(&generation, "values-"),
        first(&dir.join("c/packs"), ".zip"),
    ]
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn is_verified(cache: &Cache) -> bool {
    cache.verify().unwrap().is_clean()
}

#[test]
fn containers_that_cannot_be_read() {
    common::as_nobody("containers_that_cannot_be_read", |dir| {
        fill(dir);
        fs::remove_dir_all(dir.join("s/catalog")).unwrap();
        let victims = victims(dir);
        victims.iter().for_each(|v| mode(v, 0o000));

        let cache = rebuilding(dir).open().unwrap();
        assert!(cache.recovery().rebuilt);
        assert_eq!(cache.recovery().unseen.len(), 3, "{:?}", cache.recovery().unseen);
        let gone = absent(&cache);
        for tier in 0..3 {
            assert!(gone.iter().any(|no| no / EACH == tier), "{gone:?}");
        }
        assert!(gone.len() < 60, "the rest is not served: {gone:?}");
        assert!(is_verified(&cache));
        // What is removed and replaced meanwhile.
        let (removed, replaced) = (gone[0], gone[1]);
        assert!(!cache.remove(key(removed)).unwrap());
        cache.put(key(replaced), "newer").unwrap();
        cache.close().unwrap();
        drop(cache);

        // Readable again, but nobody asked for them: left alone, counted and reported.
        victims.iter().for_each(|v| mode(v, 0o600));
        for _ in 0..2 {
            let cache = builder(dir).open().unwrap();
            assert_eq!(cache.recovery().unseen.len(), 3, "{:?}", cache.recovery().unseen);
            assert!(victims.iter().all(|v| v.exists()), "an item is deleted");
            assert_eq!(cache.get(key(gone[2])).unwrap(), None);
            assert!(cache.stats().tier(Tier::Cold).unwrap().bytes >= EACH / 4 * 100_000);
            cache.close().unwrap();
        }

        let cache = rebuilding(dir).open().unwrap();
        assert!(!cache.recovery().rebuilt && cache.recovery().unseen.is_empty(), "{:?}", cache.recovery());
        assert_eq!(
            cache.get(key(replaced)).unwrap().as_deref(),
            Some(&b"newer"[..]),
            "an older one overrode it"
        );
        cache.put(key(replaced), value(replaced, 1, 100_000)).unwrap();
        assert_eq!(absent(&cache), [0; 0]);
        assert!(is_verified(&cache));
        cache.close().unwrap();
        drop(cache);
        // That was all: from now on what nobody knows is a leftover again, also after what was taken in is dead.
        let cache = builder(dir).open().unwrap();
        assert!(cache.recovery().unseen.is_empty());
        assert_eq!(absent(&cache), [0; 0]);
    });
}

#[test]
fn a_directory_that_is_away() {
    let dir = common::scratch();
    let dir = dir.path();
    fill(dir);
    fs::rename(dir.join("s"), dir.join("away")).unwrap();
    // The catalog was in it.
    let open = || rebuilding(dir).without_missing(true).open();
    let cache = open().unwrap();
    assert!(cache.recovery().rebuilt);
    let unseen = cache.recovery().unseen.clone();
    assert!(unseen.iter().any(|(path, _)| path.ends_with("s")), "{unseen:?}");
    assert_eq!(absent(&cache), Vec::from_iter(0..EACH));
    cache.put(key(0), "newer").unwrap();
    cache.close().unwrap();
    drop(cache);

    let _ = fs::remove_dir_all(dir.join("s"));
    fs::rename(dir.join("away"), dir.join("s")).unwrap();
    let segments = || fs::read_dir(dir.join("s/segments")).unwrap().count();
    let before = segments();
    assert!(before > 2);
    let cache = builder(dir).open().unwrap();
    assert_eq!(cache.recovery().unseen.len(), before, "{:?}", cache.recovery().unseen);
    assert_eq!(segments(), before, "an item is deleted");
    assert_eq!(cache.get(key(1)).unwrap(), None);
    cache.close().unwrap();
    drop(cache);

    let cache = rebuilding(dir).open().unwrap();
    assert!(cache.recovery().unseen.is_empty(), "{:?}", cache.recovery());
    assert_eq!(cache.get(key(0)).unwrap().as_deref(), Some(&b"newer"[..]), "an older one overrode it");
    assert_eq!(cache.get(key(1)).unwrap(), Some(value(1, 1, 100_000)));
    cache.remove(key(0)).unwrap();
    assert_eq!(absent(&cache), [0]);
    cache.close().unwrap();
    drop(cache);
    // Nothing is left to be taken in: what was removed stays so.
    let cache = rebuilding(dir).open().unwrap();
    assert_eq!(absent(&cache), [0]);
}

#[test]
fn the_command_says_that_something_was_not_seen() {
    let dir = common::scratch();
    let dir = dir.path();
    fill(dir);
    fs::rename(dir.join("h"), dir.join("away")).unwrap();
    fs::remove_dir_all(dir.join("s/catalog")).unwrap();
    let verify = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_thermocline"));
        command.arg("verify").args(more);
        for (option, name) in [("--ssd", "s"), ("--hdd", "h"), ("--cold", "c")] {
            command.arg(option).arg(dir.join(name));
        }
        let out = command.output().unwrap();
        let told = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.code(), told)
    };
    let rebuilding = ["--repair", "--rebuild-catalog", "--without-missing"];
    for (more, expected) in [(&rebuilding[..], 4), (&["--without-missing"], 1)] {
        let (code, told) = verify(more);
        assert!(code == Some(expected) && told.contains("not in the catalog: "), "{code:?}: {told}");
    }
    fs::rename(dir.join("away"), dir.join("h")).unwrap();
    let (code, told) = verify(&[]);
    assert!(
        code == Some(1) && told.contains("gen-") && told.contains("rebuild it again"),
        "{code:?}: {told}"
    );
    let (code, told) = verify(&["--repair", "--rebuild-catalog"]);
    assert!(code == Some(0) && told.contains("90 items"), "{code:?}: {told}");
}

/// The real file system, where everything but the first block of a file cannot be read.
fn bad_sectors(victim: &Path) -> FaultFs {
    let (fs, victim) = (FaultFs::default().without_maps(), victim.to_path_buf());
    fs.fail(Fault::when(move |c| c.op == Op::Read && c.path == victim && c.range.end > 4096));
    fs
}

#[test]
fn containers_that_cannot_be_listed() {
    let dir = common::scratch();
    let dir = dir.path();
    for tier in 0..3 {
        for name in ["s", "h", "c"] {
            let _ = fs::remove_dir_all(dir.join(name));
        }
        fill(dir);
        let victim = victims(dir).remove(tier);
        fs::remove_dir_all(dir.join("s/catalog")).unwrap();
        let world = bad_sectors(&victim);
        let begin = || rebuilding(dir).world(Arc::new(world.clone()), Arc::new(SystemClock), false);
        let cache = begin().open().unwrap();
        assert!(cache.recovery().rebuilt);
        assert_eq!(cache.recovery().unseen.len(), 1, "{}: {:?}", victim.display(), cache.recovery().unseen);
        let gone = absent(&cache);
        assert!(!gone.is_empty(), "{}", victim.display());
        // Nothing in it is alive, and yet it is not dropped.
        for _ in 0..20 {
            cache.step().unwrap();
        }
        cache.close().unwrap();
        drop(cache);
        assert!(victim.exists(), "{} is deleted", victim.display());
        if tier == 1 {
            // Of the generation another file was read, so it is in the catalog, as far as it was.
            continue;
        }
        let cache = rebuilding(dir).open().unwrap();
        assert!(!cache.recovery().rebuilt && cache.recovery().unseen.is_empty(), "{:?}", cache.recovery());
        assert_eq!(absent(&cache), [0; 0], "{}", victim.display());
        cache.close().unwrap();
    }
}
