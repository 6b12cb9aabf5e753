//! Bad input and bad luck: each is an error that names the thing and the cure, and leaves nothing half-made.

#![cfg(test)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thermocline::{Builder, Cache, Error, Persistence, PutOptions, StorageError, Tier};

const MIB: u64 = 1 << 20;
const CHILD: &str = "THERMOCLINE_ERRORS_CHILD";

fn one(dir: &Path) -> Builder {
    Cache::builder().memory(MIB).ssd(dir, 16 * MIB)
}

/// Everything under a directory, with the lengths of files.
fn tree(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for e in entries {
        let e = e.unwrap();
        let meta = e.metadata().unwrap();
        found.push((e.path(), if meta.is_dir() { 0 } else { meta.len() }));
        if meta.is_dir() {
            found.extend(tree(&e.path()));
        }
    }
    found.sort();
    found
}

fn message(result: thermocline::Result<Cache>) -> String {
    match result {
        Ok(_) => panic!("it opened"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn keys_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    for cache in [Cache::builder().memory(MIB).open().unwrap(), one(&dir.path().join("s")).open().unwrap()] {
        let long = vec![7u8; 32_769];
        for (key, len) in [(&b""[..], 0usize), (&long[..], 32_769)] {
            let bad = |e: &Error| {
                assert!(matches!(e, Error::BadKey { len: l } if *l == len), "{e:?}");
                assert!(e.to_string().contains("1 to 32,768"), "{e}");
            };
            bad(&cache.put(key, "v").unwrap_err());
            bad(&cache.get(key).unwrap_err());
            bad(&cache.get_memory(key).unwrap_err());
            bad(&cache.get_entry(key).unwrap_err());
            bad(&cache.get_many(&[b"good", key]).unwrap_err());
            bad(&cache.remove(key).unwrap_err());
            bad(&cache.contains(key).unwrap_err());
            bad(&cache.tier_of(key).unwrap_err());
            bad(&cache.touch(key).unwrap_err());
            bad(&cache.expire_in(key, None).unwrap_err());
            bad(&cache.put_if_absent(key, "v", PutOptions::new()).unwrap_err());
            bad(&cache.put_if_version(key, "v", 1, PutOptions::new()).unwrap_err());
            bad(&cache.get_or_put_with(key, || Ok::<_, std::io::Error>("v")).unwrap_err());
            bad(&cache.demote(key, Tier::Ssd).unwrap_err());
            bad(&cache.promote(key, Tier::Memory).unwrap_err());
        }
        // The longest key, and every byte, are good.
        let longest = vec![0u8; 32_768];
        cache.put(&longest, "v").unwrap();
        assert_eq!(cache.get(&longest).unwrap().as_deref(), Some(&b"v"[..]));
        cache.put([0u8, 255], "").unwrap();
        assert_eq!(cache.get([0u8, 255]).unwrap().as_deref(), Some(&b""[..]));
        cache.flush().unwrap();
        assert_eq!(cache.keys("").count(), 2);
        assert!(cache.remove(&longest).unwrap());
    }
}

#[test]
fn values_that_are_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let limited = one(&dir.path().join("s")).max_value_size(1000);
    for (cache, limit) in
        [(limited.open().unwrap(), 1000), (Cache::builder().memory(MIB).open().unwrap(), MIB as usize / 2)]
    {
        cache.put("k", vec![1; limit]).unwrap();
        for result in [
            cache.put("k", vec![2; limit + 1]),
            cache.put_if_absent("k", vec![2; limit + 1], PutOptions::new()).map(|_| ()),
            cache.get_or_put_with("other", || Ok::<_, std::io::Error>(vec![2; limit + 1])).map(|_| ()),
        ] {
            let e = result.unwrap_err();
            assert!(matches!(e, Error::ValueTooLarge { size, .. } if size == limit as u64 + 1), "{e:?}");
            assert!(e.to_string().contains(&limit.to_string()) && e.to_string().contains("raise"), "{e}");
        }
        assert_eq!(cache.get("k").unwrap().map(|v| v.len()), Some(limit), "the older value stays");
        assert_eq!(cache.get("other").unwrap(), None);
        // What is dead at once is no error.
        cache.put_with("dead", "v", PutOptions::new().ttl(Duration::ZERO)).unwrap();
        assert_eq!(cache.get("dead").unwrap(), None);
        cache.put_with("k", "v", PutOptions::new().ttl(Duration::ZERO)).unwrap();
        assert_eq!(cache.get("k").unwrap(), None, "it replaced what was there");
    }
}

#[test]
fn settings_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let with = |change: &dyn Fn(&mut thermocline::Config)| {
        let mut b = one(&path);
        change(b.config_mut());
        b
    };
    let cases: Vec<(Builder, &[&str])> = vec![
        (Cache::builder().memory(1000), &["memory.max_size", "1MiB"]),
        (one(&path).memory_item_limit(0), &["item_limit", "0"]),
        (Cache::builder().ssd(&path, MIB), &["ssd.max_size", "segments"]),
        (Cache::builder().ssd(&path, 0), &["ssd", "0"]),
        (Cache::builder().hdd(&path, MIB), &["hdd.max_size", "generations"]),
        (Cache::builder().cold(&path).cold_limit(1000), &["cold.limit"]),
        (with(&|c| c.resources.io.write_buffer_size = 1), &["write_buffer"]),
        (with(&|c| c.storage.segment_size = Some(1 << 40)), &["segment_size"]),
        (with(&|c| c.storage.segment_size = Some(8 * MIB)), &["ssd.max_size", "segment_size"]),
        (with(&|c| c.storage.max_value_size = Some(15 * MIB)), &["max_value_size", "lower"]),
        (with(&|c| c.storage.inflight = Some(2 * MIB)), &["inflight"]),
        (with(&|c| c.compression.zlib.level = 10), &["zlib.level"]),
        (with(&|c| c.compression.lz4.level = 2), &["lz4", "no levels"]),
        (with(&|c| c.compression.zlib.threshold = 1.5), &["threshold"]),
        (one(&path).hdd(&path, 64 * MIB), &["twice"]),
        (one(&path).hdd(path.join("inside"), 64 * MIB), &["inside"]),
        (Cache::builder().persistence(Persistence::Always), &["persistence", "always"]),
        (Cache::builder().ssd("", 64 * MIB), &["empty"]),
    ];
    for (builder, words) in cases {
        let shown = format!("{builder:?}");
        let text = match builder.open() {
            Err(Error::Config(text)) => text,
            other => panic!("{other:?} for {shown}"),
        };
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
    }
    assert!(tree(dir.path()).is_empty(), "something was made: {:?}", tree(dir.path()));
}

#[test]
fn a_file_of_settings_that_cannot_be() {
    fn open(file: &Path) -> thermocline::Result<Cache> {
        Cache::open(thermocline::Config::from_file(file)?)
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("thermocline.toml");
    fs::write(&file, "[storage_tiers.memory]\nmax_sise = \"1MiB\"\n").unwrap();
    let e = open(&file).map(|_| ()).unwrap_err();
    assert!(matches!(e, Error::Config(_)), "{e:?}");
    let told: thermocline::ConfigError = thermocline::Config::from_file(&file).unwrap_err();
    assert_eq!(e.to_string(), told.to_string());
    assert!(e.to_string().contains("max_sise") && e.to_string().contains(":2:"), "{e}");
}

#[test]
fn a_path_that_is_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "here").unwrap();
    let before = tree(dir.path());
    for path in [file.clone(), file.join("below")] {
        let text = message(one(&path).open());
        assert!(text.contains(&*file.to_string_lossy()), "{text}");
        assert_eq!(tree(dir.path()), before);
    }
    // The second directory of two is wrong: nothing stays of the first.
    let text = message(one(&dir.path().join("new")).cold(&file).open());
    assert!(text.contains(&*file.to_string_lossy()), "{text}");
    assert_eq!(tree(dir.path()), before);
    assert_eq!(fs::read(&file).unwrap(), b"here");
}

#[test]
fn a_store_that_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let cache = one(&path).open().unwrap();
    let e = one(&path).open().map(|_| ()).unwrap_err();
    assert!(matches!(&e, Error::Locked { .. }), "{e:?}");
    assert!(e.to_string().contains("in use") && e.to_string().contains(&*path.to_string_lossy()), "{e}");
    // By another name it is the same directory.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let e = one(&link).open().map(|_| ()).unwrap_err();
    assert!(matches!(e, Error::Locked { .. }), "{e:?}");
    cache.put("k", "v").unwrap();
    cache.close().unwrap();
    assert!(matches!(cache.put("k", "w"), Err(Error::Closed)));
    assert!(matches!(cache.get("k"), Err(Error::Closed)));
    cache.close().unwrap();
    let again = one(&path).open().unwrap();
    assert_eq!(again.get("k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn a_directory_of_another_store() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let first = Cache::builder().memory(MIB).ssd(at("s1"), 16 * MIB).cold(at("c1"));
    let second = Cache::builder().memory(MIB).ssd(at("s2"), 16 * MIB).cold(at("c2"));
    for (b, name) in [(&first, "first"), (&second, "second")] {
        let cache = b.clone().open().unwrap();
        cache.put("who", name).unwrap();
        cache.demote("who", Tier::Cold).unwrap();
        cache.close().unwrap();
    }
    let before = tree(dir.path());
    let mixed = Cache::builder().memory(MIB).ssd(at("s1"), 16 * MIB).cold(at("c2"));
    let e = mixed.open().map(|_| ()).unwrap_err();
    assert!(matches!(e.storage(), Some(StorageError::OtherStore { .. })), "{e:?}");
    assert!(e.to_string().contains("c2") && e.to_string().contains("directories of its own"), "{e}");
    assert_eq!(tree(dir.path()), before);
    for (b, name) in [(first, "first"), (second, "second")] {
        assert_eq!(b.open().unwrap().get("who").unwrap().as_deref(), Some(name.as_bytes()));
    }
}

#[test]
fn a_directory_that_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let both = || Cache::builder().memory(MIB).ssd(at("s"), 16 * MIB).cold(at("c"));
    let cache = both().open().unwrap();
    cache.put("up", "1").unwrap();
    cache.put("down", "2").unwrap();
    cache.demote("down", Tier::Cold).unwrap();
    cache.close().unwrap();
    drop(cache);
    fs::rename(at("c"), at("away")).unwrap();
    for builder in [both(), Cache::builder().memory(MIB).ssd(at("s"), 16 * MIB)] {
        let e = builder.open().map(|_| ()).unwrap_err();
        assert!(matches!(e.storage(), Some(StorageError::MissingDirectory { .. })), "{e:?}");
        assert!(e.to_string().contains("open without it") && e.to_string().contains("discard"), "{e}");
        assert!(!at("c").exists(), "an empty one would hide the loss");
    }
    let cache = both().without_missing(true).open().unwrap();
    assert_eq!(cache.get("down").unwrap(), None);
    assert_eq!(cache.get("up").unwrap().as_deref(), Some(&b"1"[..]));
    cache.close().unwrap();
    drop(cache);
    let _ = fs::remove_dir_all(at("c"));
    fs::rename(at("away"), at("c")).unwrap();
    let cache = both().open().unwrap();
    assert_eq!(cache.get("down").unwrap().as_deref(), Some(&b"2"[..]), "it is back");
    cache.close().unwrap();
    drop(cache);
    fs::remove_dir_all(at("c")).unwrap();
    let cache = both().discard_missing(true).open().unwrap();
    assert_eq!(cache.get("down").unwrap(), None);
    cache.put("down", "3").unwrap();
    cache.close().unwrap();
    drop(cache);
    assert_eq!(both().open().unwrap().get("down").unwrap().as_deref(), Some(&b"3"[..]));
}

#[test]
fn the_limits_of_the_others_while_a_directory_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let all = || {
        let mut b = Cache::builder().memory(MIB).ssd(at("s0"), 8 * MIB);
        for (name, size) in [("s1", 16), ("s2", 64)] {
            b = b.ssd(at(name), size * MIB);
        }
        for (name, size) in [("h1", 32), ("h2", 128)] {
            b = b.hdd(at(name), size * MIB);
        }
        b = b.cold(at("c1")).cold(at("c2"));
        let cold = &mut b.config_mut().cold;
        for (dir, size) in cold.dirs.iter_mut().zip([24, 96]) {
            dir.size = Some(size * MIB);
        }
        b
    };
    let limits = |cache: &Cache| {
        [Tier::Ssd, Tier::Hdd, Tier::Cold].map(|t| cache.stats().tier(t).unwrap().limit.map(|n| n / MIB))
    };
    let cache = all().open().unwrap();
    assert_eq!(limits(&cache), [Some(88), Some(160), Some(120)]);
    cache.close().unwrap();
    drop(cache);
    for missing in ["s1", "h1", "c1"] {
        fs::rename(at(missing), at(&format!("{missing}.away"))).unwrap();
    }
    let cache = all().without_missing(true).open().unwrap();
    assert_eq!(limits(&cache), [Some(72), Some(128), Some(96)], "the limits of those that are here");
}

#[test]
fn a_tier_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let cache = one(&dir.path().join("s")).open().unwrap();
    cache.put("k", "v").unwrap();
    for e in [cache.demote("k", Tier::Cold).unwrap_err(), cache.promote("k", Tier::Hdd).unwrap_err()] {
        assert!(matches!(e, Error::NoSuchTier(_)), "{e:?}");
    }
}

/// As root every directory can be read and written, so the check runs as somebody else.
#[test]
fn directories_without_permission() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return without_permission(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let exe = dir.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
    let inside = dir.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let mut command = std::process::Command::new(&exe);
    command.args(["--exact", "directories_without_permission", "--nocapture"]).env(CHILD, &inside);
    command.current_dir(dir.path());
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&inside, Some(65_534), Some(65_534)).unwrap();
        command.uid(65_534).gid(65_534);
    }
    let out = command.output().unwrap();
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{told}{}", String::from_utf8_lossy(&out.stderr));
    assert!(told.contains("checked without permission"), "the child did not run the check: {told}");
}

fn without_permission(dir: &Path) {
    assert!(!rustix::process::geteuid().is_root());
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();

    // Nothing can be made below it.
    let parent = dir.join("parent");
    fs::create_dir(&parent).unwrap();
    mode(&parent, 0o555);
    let text = message(one(&parent.join("store")).open());
    assert!(text.contains("parent") && text.to_lowercase().contains("permission denied"), "{text}");
    assert!(tree(&parent).is_empty());

    // A directory that is there and cannot be written.
    let text = message(one(&parent).open());
    assert!(text.contains("parent") && text.to_lowercase().contains("permission denied"), "{text}");
    mode(&parent, 0o755);
    assert!(tree(&parent).is_empty(), "{:?}", tree(&parent));

    // A store that is there: unreadable, then read-only. It is untouched, and opens when it may.
    let store = dir.join("store");
    let cache = one(&store).open().unwrap();
    cache.put("k", "v").unwrap();
    cache.close().unwrap();
    drop(cache);
    let before = tree(&store);
    for bad in [0o000, 0o555] {
        mode(&store, bad);
        let text = message(one(&store).open());
        mode(&store, 0o755);
        assert!(
            text.contains("store") && text.to_lowercase().contains("permission denied"),
            "{bad:o}: {text}"
        );
        assert_eq!(tree(&store), before, "{bad:o}");
    }
    assert_eq!(one(&store).open().unwrap().get("k").unwrap().as_deref(), Some(&b"v"[..]));

    // The second directory of two cannot be made: nothing stays of the first.
    mode(&parent, 0o555);
    let text = message(one(&dir.join("fresh")).cold(parent.join("c")).open());
    assert!(text.contains("parent"), "{text}");
    assert!(!dir.join("fresh").exists(), "{:?}", tree(&dir.join("fresh")));
    mode(&parent, 0o755);
    println!("checked without permission");
}
