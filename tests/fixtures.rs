//! Stores that earlier versions of the program have written can be read.
//!
//! `tests/fixtures/format-N.tar.gz` has two stores of format N as they lay on a disk, one closed and one killed, with
//! every content type in every tier, and with items that were removed, overwritten or have expired. An archive is made
//! once, when its format is new (`cargo test --test fixtures -- --ignored`), and never again: what is committed is what
//! that version wrote. This test unpacks it elsewhere and finds what was put. What was put is made here from nothing
//! but this file, so that no change elsewhere changes it.

#![cfg(test)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use thermocline::testing::{ManualClock, vfs::RealFs};
use thermocline::{Builder, Cache, ContentType, Persistence, PutOptions, Tier};

const MIB: u64 = 1 << 20;
/// When the stores were written, in milliseconds since 1970.
const WRITTEN: u64 = 1_700_000_000_000;
/// When they are opened: what lived a minute has expired, what lives a year has not.
const OPENED: u64 = WRITTEN + 3_600_000;
const MINUTE: Duration = Duration::from_secs(60);
const YEAR: Duration = Duration::from_secs(365 * 86_400);
/// The format that the program writes.
const FORMAT: u32 = 1;
/// A repository is no place for more.
const MOST: u64 = 100 << 10;
const STORES: [&str; 2] = ["closed", "killed"];

fn builder(store: &Path, now: u64) -> Builder {
    let mut b = Cache::builder()
        .memory(MIB)
        .ssd(store.join("ssd"), 6 * MIB)
        .hdd(store.join("hdd"), 8 * MIB)
        .cold(store.join("cold"))
        .persistence(Persistence::OnEviction);
    b.config_mut().resources.io.write_buffer_size = MIB;
    let s = &mut b.config_mut().storage;
    s.segment_size = Some(MIB);
    s.generation_size = Some(MIB);
    s.pack_size = Some(MIB);
    b.world(Arc::new(RealFs), Arc::new(ManualClock::new(now)), false)
}

/// What was put under a key.
#[derive(Debug, Clone)]
struct Item {
    content_type: ContentType,
    value: Vec<u8>,
    ttl: Option<Duration>,
}

/// A value of a type: text and JSON compress, media does not, and half of what is binary does.
fn item(content_type: ContentType, seed: u64, len: usize) -> Item {
    let mut state = seed | 1;
    let mut next = move || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut value = Vec::new();
    while value.len() < len {
        let n = next();
        match content_type {
            ContentType::Text => value.extend_from_slice(format!("Line {} of a text.\n", n % 5).as_bytes()),
            ContentType::Json => value.extend_from_slice(format!("{{\"n\":{}}}\n", n % 5).as_bytes()),
            ContentType::Binary => value.extend_from_slice(&(n % 65_536).to_le_bytes()),
            _ => value.extend_from_slice(&n.to_le_bytes()),
        }
    }
    value.truncate(len);
    Item { content_type, value, ttl: None }
}

fn key(tier: Tier, name: &str) -> Vec<u8> {
    format!("{tier}/{name}").into_bytes()
}

/// What the stores hold when they are opened, and where; `None`: it was there once.
fn expected() -> BTreeMap<Vec<u8>, (Tier, Option<Item>)> {
    let mut all = BTreeMap::new();
    for (seed, tier) in (1000..).step_by(100).zip(Tier::DISK) {
        let mut put = |key: Vec<u8>, item: Option<Item>| all.insert(key, (tier, item));
        for (no, t) in (0..).zip(ContentType::STORED) {
            put(key(tier, t.name()), Some(item(t, seed + no, 900 + 300 * no as usize)));
        }
        put(key(tier, "empty"), Some(item(ContentType::Binary, 0, 0)));
        put(key(tier, "large"), Some(item(ContentType::Text, seed + 10, 12_000)));
        put(key(tier, "twice"), Some(item(ContentType::Json, seed + 11, 900)));
        put(key(tier, "a year"), Some(Item { ttl: Some(YEAR), ..item(ContentType::Text, seed + 12, 600) }));
        // No text, a path that leads out, and what names of archives have to escape.
        let mut odd = key(tier, "../ä%20 \\:*?");
        odd.extend([0, 0xff, b'\n']);
        put(odd, Some(item(ContentType::Media, seed + 13, 300)));
        put(key(tier, "removed"), None);
        put(key(tier, "a minute"), None);
    }
    all
}

/// Writes a store as a user does, and leaves it closed or as a kill leaves it.
fn make(store: &Path, close: bool) {
    let open = || builder(store, WRITTEN).open().unwrap();
    let put = |cache: &Cache, key: &[u8], item: &Item| {
        let options = PutOptions::new().content_type(item.content_type);
        let options = item.ttl.map_or(options, |ttl| options.ttl(ttl));
        cache.put_with(key, item.value.clone(), options).unwrap();
    };
    let settle = |cache: &Cache| {
        cache.flush().unwrap();
        for (key, (tier, _)) in expected() {
            cache.demote(key, tier).unwrap();
        }
        cache.flush().unwrap();
    };
    // Everything, and what is not to stay; a checkpoint and whole containers.
    let cache = open();
    for (key, (_, wanted)) in expected() {
        let old = Item { ttl: Some(MINUTE), ..item(ContentType::Text, 99, 800) };
        let item = wanted.filter(|_| !key.ends_with(b"/twice")).unwrap_or(old);
        put(&cache, &key, &item);
    }
    for tier in Tier::DISK {
        cache.expire_in(key(tier, "removed"), None).unwrap();
    }
    settle(&cache);
    cache.close().unwrap();
    drop(cache);
    // And what a journal and containers that are not whole say of it.
    let cache = open();
    for (key, (_, item)) in expected() {
        match item {
            Some(item) if key.ends_with(b"/twice") || key.ends_with(b"/text") => put(&cache, &key, &item),
            None if key.ends_with(b"/removed") => assert!(cache.remove(&key).unwrap()),
            _ => {}
        }
    }
    settle(&cache);
    if close {
        cache.close().unwrap();
    } else {
        cache.crash();
    }
}

fn tar(args: &[&str], archive: &Path, dir: &Path) {
    let mut command = Command::new("tar");
    let out = command.args(args).arg("-f").arg(archive).arg("-C").arg(dir);
    let out = if args.contains(&"-c") { out.args(STORES) } else { out }.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The archive of the format that the program writes. One that is there stays.
#[test]
#[ignore = "makes the archive that is committed, once for each format"]
fn make_the_fixture() {
    let archive = fixtures().join(format!("format-{FORMAT}.tar.gz"));
    if archive.exists() {
        println!("{} is there and stays: it is to be what its version wrote", archive.display());
        return;
    }
    let dir = common::scratch();
    for name in STORES {
        make(&dir.path().join(name), name == "closed");
    }
    std::fs::create_dir_all(fixtures()).unwrap();
    let owner = ["--owner=0", "--group=0", "--numeric-owner", "--sort=name", "--mtime=@1700000000"];
    tar(&[&["-c", "-z", "--sparse"], &owner[..]].concat(), &archive, dir.path());
    println!("{}: {} bytes", archive.display(), std::fs::metadata(&archive).unwrap().len());
}

/// It is there with its bytes, type and expiry, in its tier, and nothing else is.
fn holds_what_was_put(cache: &Cache, what: &str) {
    for (key, (tier, wanted)) in expected() {
        let what = format!("{what}: {}", String::from_utf8_lossy(&key));
        let Some(wanted) = wanted else {
            assert_eq!(cache.tier_of(&key).unwrap(), None, "{what}");
            assert_eq!(cache.get(&key).unwrap(), None, "{what}");
            continue;
        };
        assert_eq!(cache.tier_of(&key).unwrap(), Some(tier), "{what}");
        let entry = cache.get_entry(&key).unwrap().unwrap_or_else(|| panic!("{what} is absent"));
        assert!(entry.value == wanted.value, "{what}: another value");
        assert_eq!((entry.content_type, entry.tier), (wanted.content_type, tier), "{what}");
        let expires = wanted.ttl.map(|ttl| UNIX_EPOCH + Duration::from_millis(WRITTEN) + ttl);
        assert_eq!(entry.expires_at, expires, "{what}");
    }
    let mut keys: Vec<Vec<u8>> = cache.keys("").map(|k| k.unwrap().to_vec()).collect();
    keys.sort();
    let live = expected().into_iter().filter_map(|(key, (_, item))| item.map(|_| key));
    assert_eq!(keys, live.collect::<Vec<_>>(), "{what}");
}

#[test]
fn what_earlier_versions_wrote_is_read() {
    let live = expected().values().filter(|(_, item)| item.is_some()).count() as u64;
    for format in 1..=FORMAT {
        let archive = fixtures().join(format!("format-{format}.tar.gz"));
        assert!(std::fs::metadata(&archive).unwrap().len() < MOST, "{} is too large", archive.display());
        let dir = common::scratch();
        tar(&["-x", "-z", "--no-same-owner"], &archive, dir.path());
        for name in STORES {
            let what = format!("format {format}, {name}");
            let store = dir.path().join(name);
            let check = |items: u64| {
                let report = builder(&store, OPENED).check(|_| {}).unwrap();
                assert!(report.is_clean(), "{what}: {:?}", report.findings);
                assert_eq!(report.items, items, "{what}");
            };
            check(live);
            let cache = builder(&store, OPENED).open().unwrap();
            assert_eq!(cache.recovery().lost, 0, "{what}: {:?}", cache.recovery());
            holds_what_was_put(&cache, &what);
            assert!(cache.verify().unwrap().is_clean(), "{what}");
            // It is a store to go on with.
            cache.put("new", "value").unwrap();
            cache.close().unwrap();
            drop(cache);
            check(live + 1);
            let cache = builder(&store, OPENED).open().unwrap();
            assert_eq!(cache.get("new").unwrap().as_deref(), Some(&b"value"[..]), "{what}");
            assert!(cache.remove("new").unwrap());
            holds_what_was_put(&cache, &format!("{what}, opened again"));
            cache.close().unwrap();
        }
    }
}
