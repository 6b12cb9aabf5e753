//! The archive stands alone: any `unzip` reads it, and from the containers alone the catalog can be built again.

#![cfg(test)]

mod common;

use common::{Dice, value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use thermocline::testing::{ManualClock, vfs::RealFs};
use thermocline::{Builder, Cache, Error, StorageError, Tier};

const MIB: u64 = 1 << 20;

fn builder(dir: &Path) -> Builder {
    let mut b = Cache::builder()
        .memory(MIB)
        .ssd(dir.join("s"), 4 * MIB)
        .hdd(dir.join("h"), 5 * MIB)
        .cold(dir.join("c"));
    b.config_mut().resources.io.write_buffer_size = MIB;
    let s = &mut b.config_mut().storage;
    s.segment_size = Some(MIB);
    s.generation_size = Some(MIB);
    s.pack_size = Some(MIB);
    s.migration_bytes_per_second = 1 << 40;
    b.world(Arc::new(RealFs), Arc::new(ManualClock::new(1_700_000_000_000)), false)
}

/// Keys of every kind, so that names need escaping, shortening, and care with case and folders.
fn key(no: u64) -> Vec<u8> {
    match no % 8 {
        0 => format!("plain/{no}").into_bytes(),
        1 => format!("plain/{}/below", no - 1).into_bytes(),
        2 => format!("CASE/{}", no / 16).into_bytes(),
        3 => format!("case/{}", no / 16).into_bytes(),
        4 => [&[0, 255, b'/', b'.', b'.', b'/'][..], &no.to_be_bytes()].concat(),
        5 => format!("../../{no}").into_bytes(),
        6 => format!("long/{}/{no}", "x".repeat(3000)).into_bytes(),
        _ => format!("/{no}/ü/ /con/").into_bytes(),
    }
}

/// Fills all tiers; what is live at the end.
fn fill(cache: &Cache) -> BTreeMap<Vec<u8>, bytes::Bytes> {
    let mut dice = Dice::new(3);
    let mut live = BTreeMap::new();
    for n in 0..2_500u64 {
        let no = dice.below(900);
        let key = key(no);
        if dice.below(12) == 0 {
            assert_eq!(cache.remove(&key).unwrap(), live.remove(&key).is_some());
        } else {
            let bytes = value(no, n, dice.below(30_000) as usize);
            cache.put(&key, bytes.clone()).unwrap();
            live.insert(key, bytes);
        }
        if n.is_multiple_of(50) {
            cache.step().unwrap();
        }
    }
    for tier in [Tier::Ssd, Tier::Hdd, Tier::Cold] {
        assert!(cache.stats().tier(tier).unwrap().items > 50, "hardly anything in {tier}");
    }
    live
}

fn check(cache: &Cache, live: &BTreeMap<Vec<u8>, bytes::Bytes>) {
    for (key, bytes) in live {
        assert_eq!(cache.get(key).unwrap().as_ref(), Some(bytes), "{:?}", String::from_utf8_lossy(key));
    }
}

fn packs(dir: &Path) -> Vec<PathBuf> {
    let mut packs: Vec<PathBuf> =
        std::fs::read_dir(dir.join("c/packs")).unwrap().map(|e| e.unwrap().path()).collect();
    packs.retain(|p| p.extension().is_some_and(|e| e == "zip"));
    packs
}

#[test]
fn unzip_finds_nothing_wrong_with_any_pack() {
    let dir = common::scratch();
    let cache = builder(dir.path()).open().unwrap();
    let live = fill(&cache);
    cache.close().unwrap();
    if Command::new("unzip").arg("-v").output().is_err() {
        assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "unzip is not installed");
        thermocline_testing::skipped("unzip is not installed");
        return;
    }
    let packs = packs(dir.path());
    assert!(packs.len() > 3, "{packs:?}");
    for pack in &packs {
        let out = Command::new("unzip").arg("-tqq").arg(pack).output().unwrap();
        assert!(
            out.status.success() && out.stderr.is_empty(),
            "{}: {}{}",
            pack.display(),
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    let cache = builder(dir.path()).open().unwrap();
    check(&cache, &live);
}

#[test]
fn a_lost_catalog_is_rebuilt_from_the_containers_alone() {
    let dir = common::scratch();
    let cache = builder(dir.path()).open().unwrap();
    let live = fill(&cache);
    cache.close().unwrap();
    drop(cache);
    std::fs::remove_dir_all(dir.path().join("s/catalog")).unwrap();

    let refused = builder(dir.path()).open();
    match &refused {
        Err(Error::Storage(e)) if matches!(**e, StorageError::CatalogLost { .. }) => {
            assert!(e.to_string().contains("rebuild"), "{e}");
        }
        other => panic!("{other:?}"),
    }
    // Refused again, and nothing was lost by asking.
    assert!(builder(dir.path()).open().is_err());

    let cache = builder(dir.path()).rebuild_catalog(true).open().unwrap();
    assert!(cache.recovery().rebuilt);
    check(&cache, &live);
    assert!(cache.verify().unwrap().is_clean());
    cache.put("new", "value").unwrap();
    cache.close().unwrap();
    drop(cache);
    // It is whole again, and the flag does no harm.
    let cache = builder(dir.path()).rebuild_catalog(true).open().unwrap();
    assert!(!cache.recovery().rebuilt);
    check(&cache, &live);
    assert_eq!(cache.get("new").unwrap().as_deref(), Some(&b"value"[..]));
}
