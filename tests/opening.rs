//! What opening a store tells, and what it holds open.

#![cfg(test)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thermocline::testing::ManualClock;
use thermocline::{Builder, Cache, Error, Event, Received, Tier};
use thermocline_storage::testing::{Fault, FaultFs, Op};

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
    // The first ones of an opening are small.
    let len = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
    let segment = files(&dir.path().join("s/segments")).into_iter().max_by_key(len).unwrap();
    let len = len(&segment);
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

/// Nothing says that what the last batch of the journal points at was durable: it is read before the first answer.
#[test]
fn what_the_end_of_the_journal_points_at_is_verified() {
    let dir = common::scratch();
    let cache = builder(dir.path()).open().unwrap();
    cache.put("key", "some value").unwrap();
    cache.flush().unwrap();
    cache.crash();
    drop(cache);
    let segment = files(&dir.path().join("s/segments")).remove(0);
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(10).position(|w| w == b"some value").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();

    let cache = builder(dir.path()).open().unwrap();
    assert_eq!(cache.recovery().lost, 1);
    assert_eq!(cache.get("key").unwrap(), None);
}

/// Runs in a shell that allows few open files: there are more segments.
#[test]
fn more_segments_than_a_process_may_open() {
    const CHILD: &str = "THERMOCLINE_OPENING_CHILD";
    if let Some(dir) = std::env::var_os(CHILD) {
        return with_few_files(Path::new(&dir));
    }
    let dir = common::scratch();
    let out = std::process::Command::new("sh")
        .args([
            "-c",
            "ulimit -n 400 && exec \"$0\" --exact more_segments_than_a_process_may_open --nocapture",
        ])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{told}{}", String::from_utf8_lossy(&out.stderr));
    assert!(told.contains("read all of them"), "the child did not run the check: {told}");
}

fn with_few_files(dir: &Path) {
    let builder = || {
        let mut b = Cache::builder().memory(MIB).ssd(dir.join("s"), 700 * MIB);
        let s = &mut b.config_mut().storage;
        s.segment_size = Some(MIB);
        s.read_mode = thermocline::config::ReadMode::Pread;
        b
    };
    let (n, len) = (500, 600_000);
    let cache = builder().open().unwrap();
    for no in 0..n {
        cache.put(format!("key/{no}"), common::value(no, 1, len)).unwrap();
    }
    cache.close().unwrap();
    drop(cache);
    let cache = builder().open().unwrap();
    assert!(cache.stats().tier(Tier::Ssd).unwrap().containers > 400);
    for no in 0..n {
        assert_eq!(cache.get(format!("key/{no}")).unwrap(), Some(common::value(no, 1, len)), "{no}");
    }
    println!("read all of them");
}

/// Files below a directory that this process holds open.
fn held(dir: &Path) -> Vec<PathBuf> {
    let dir = dir.canonicalize().unwrap();
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
        .filter(|to| to.starts_with(&dir))
        .collect()
}

#[test]
fn a_closed_store_holds_nothing_open() {
    let dir = common::scratch();
    let cache = builder(dir.path()).hdd(dir.path().join("h"), 64 * MIB).open().unwrap();
    fill(&cache, 30);
    for no in 0..30 {
        let below = [Tier::Ssd, Tier::Hdd, Tier::Cold][no % 3];
        cache.demote(format!("key/{no}"), below).unwrap();
        cache.get(format!("key/{no}")).unwrap();
    }
    assert!(held(dir.path()).len() > 10, "{:?}", held(dir.path()));
    let other = cache.clone();
    cache.close().unwrap();
    assert_eq!(held(dir.path()), Vec::<PathBuf>::new());
    assert!(other.get("key/1").is_err());
}

#[test]
fn the_catalog_stays_small_beside_a_small_tier() {
    let dir = common::scratch();
    let mut b = Cache::builder().memory(8 * MIB).ssd(dir.path().join("s"), 32 * MIB);
    b.config_mut().resources.io.write_buffer_size = MIB;
    let cache = b.open().unwrap();
    let catalog = dir.path().join("s/catalog");
    let size = || -> u64 {
        let folders = [catalog.clone(), catalog.join("a"), catalog.join("b")];
        // A file may go while it is looked at.
        let lens = folders.iter().flat_map(|f| files(f)).filter_map(|f| std::fs::metadata(f).ok());
        lens.map(|m| m.len()).sum()
    };
    let mut most = 0;
    for round in 0..400u64 {
        for no in 0..1000 {
            cache.put(format!("{no}"), round.to_le_bytes().to_vec()).unwrap();
        }
        cache.flush().unwrap();
        most = most.max(size());
    }
    let stats = cache.stats();
    assert!(stats.journal_bytes > 24 * MIB, "too little churn to tell: {}", stats.journal_bytes);
    // The reserve of 4 MiB, two copies of at most two journals, and checkpoints of a thousand items.
    assert!(most < 12 * MIB, "{most} bytes of catalog");
    let told = stats.catalog_disk_bytes;
    assert!((4 * MIB..12 * MIB).contains(&told), "{told}");
    println!(
        "at most {most}, told {told}, journaled {}, checkpoints {}",
        stats.journal_bytes, stats.checkpoints
    );
}

/// A container of a directory that is not here may be all that is left of it, wherever it lies: it is not deleted.
#[test]
fn what_belongs_to_a_directory_that_is_away_is_not_deleted_elsewhere() {
    for (tier, folder) in [(Tier::Ssd, "segments"), (Tier::Hdd, "generations"), (Tier::Cold, "packs")] {
        let dir = common::scratch();
        let at = |name: &str| dir.path().join(name);
        let builder = |dirs: &[&str]| {
            dirs.iter().fold(Cache::builder().memory(MIB), |b, name| match tier {
                Tier::Ssd => b.ssd(at(name), 64 * MIB),
                Tier::Hdd => b.hdd(at(name), 64 * MIB),
                _ => b.cold(at(name)),
            })
        };
        // The first one has the catalog.
        let cache = builder(&["a", "b"]).open().unwrap();
        let held = || std::fs::read_dir(at("b").join(folder)).unwrap().next().is_some();
        let mut keys = 0;
        while !held() {
            cache.put(format!("key/{keys}"), common::value(keys, 1, 100_000)).unwrap();
            keys += 1;
            if keys % 10 == 0 {
                cache.flush().unwrap();
                assert!(keys < 400, "{tier}: the second directory is not used");
            }
        }
        cache.flush().unwrap();
        cache.close().unwrap();
        drop(cache);
        // Saved from a disk that fails.
        let mut moved = Vec::new();
        for entry in std::fs::read_dir(at("b").join(folder)).unwrap() {
            let entry = entry.unwrap();
            let to = at("a").join(folder).join(entry.file_name());
            std::fs::rename(entry.path(), &to).unwrap();
            moved.push(to);
        }
        std::fs::rename(at("b"), at("gone")).unwrap();
        for _ in 0..2 {
            let cache = builder(&["a"]).without_missing(true).open().unwrap();
            assert!(moved.iter().all(|p| p.exists()), "{tier}: {:?}", cache.recovery());
            let told = &cache.recovery().unseen;
            assert!(moved.iter().all(|p| told.iter().any(|(path, _)| path == p)), "{tier}: {told:?}");
            cache.close().unwrap();
        }
        std::fs::rename(at("gone"), at("b")).unwrap();
        let cache = builder(&["a", "b"]).open().unwrap();
        for no in 0..keys {
            let found = cache.get(format!("key/{no}")).unwrap().and_then(|v| common::parse(&v));
            assert_eq!(found, Some((no, 1)), "{tier}");
        }
    }
}

/// Links inside a store lead out of it.
#[test]
fn a_link_in_place_of_a_folder_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let opened = || builder(dir.path()).hdd(dir.path().join("h"), 16 * MIB).open();
    fill(&opened().unwrap(), 10);
    let elsewhere = dir.path().join("elsewhere");
    let mut folders = vec![];
    for tier in ["s", "h", "c"] {
        let all = std::fs::read_dir(dir.path().join(tier)).unwrap().map(|e| e.unwrap().path());
        folders.extend(all.filter(|path| path.is_dir()));
    }
    let catalog = folders.iter().find(|f| f.ends_with("catalog")).unwrap().clone();
    folders.extend([catalog.join("a"), catalog.join("b")]);
    assert_eq!(folders.len(), 6, "{folders:?}");
    for folder in folders {
        std::fs::rename(&folder, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &folder).unwrap();
        let before = files(&elsewhere);
        let why = opened().map(|_| ()).unwrap_err().to_string();
        assert!(why.contains(folder.to_str().unwrap()) && why.contains("symbolic link"), "{folder:?}: {why}");
        assert_eq!(files(&elsewhere), before, "{folder:?}");
        std::fs::remove_file(&folder).unwrap();
        std::fs::rename(&elsewhere, &folder).unwrap();
    }
    assert_eq!(opened().unwrap().get("key/0").unwrap().as_deref(), Some(&common::value(0, 1, 100_000)[..]));
}

/// Every file and folder of a store, with its mode.
fn modes(folder: &Path, found: &mut Vec<(PathBuf, u32)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        found.push((path.clone(), meta.permissions().mode() & 0o7777));
        if meta.is_dir() {
            modes(&path, found);
        }
    }
}

#[test]
fn a_store_is_for_its_owner_alone() {
    let dir = common::scratch();
    let cache = builder(dir.path()).hdd(dir.path().join("h"), 16 * MIB).open().unwrap();
    fill(&cache, 30);
    for no in 0..30 {
        cache.demote(format!("key/{no}"), Tier::DISK[no % 3]).unwrap();
    }
    cache.flush().unwrap();
    for what in ["open", "closed"] {
        let mut found = Vec::new();
        modes(dir.path(), &mut found);
        for name in ["segments/", "generations/", "packs/", "catalog/a", "catalog/b", "index-"] {
            // A generation that is being filled has no index yet.
            let there = found.iter().any(|(p, _)| p.to_string_lossy().contains(name));
            assert!(there || what == "open" && name == "index-", "{what}: no {name}");
        }
        for (path, mode) in found {
            // What sled makes goes by the umask; it lies in a folder that nobody else may enter.
            let sleds = path.components().any(|c| c.as_os_str().to_string_lossy().starts_with("index-"));
            if !sleds {
                assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{what}: {}", path.display());
            }
        }
        if what == "open" {
            cache.close().unwrap();
        }
    }
}

/// Without lock files nobody is kept out by who only reads: where somebody came meanwhile, that is the reason of
/// whatever else was found.
#[test]
fn a_check_that_somebody_disturbs_says_so_and_nothing_else() {
    for fails in [Op::Open, Op::List] {
        let dir = common::scratch();
        let cache = builder(dir.path()).open().unwrap();
        fill(&cache, 3);
        cache.close().unwrap();
        for lock in ["s/lock", "c/lock", "s/catalog/lock"] {
            std::fs::remove_file(dir.path().join(lock)).unwrap();
        }
        let disk = FaultFs::default();
        let root = dir.path().to_path_buf();
        disk.watch(move |call| {
            if call.op == fails
                && !call.path.ends_with("manifest")
                && call.path.starts_with(root.join("s/catalog/a"))
            {
                std::fs::write(root.join("s/lock"), []).unwrap();
            }
        });
        let manifest = |path: &Path| path.ends_with("manifest");
        disk.fail(
            Fault::when(move |c| c.op == fails && !manifest(c.path)).below(dir.path().join("s/catalog")),
        );
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let e = builder(dir.path()).simulated(Arc::new(disk), clock).check(|_| ()).unwrap_err();
        assert!(matches!(e, Error::Locked { .. }), "{fails:?}: {e}");
    }
}
