//! Damage, disks that are away, catalogs that are lost.

use super::*;

#[test]
fn one_damaged_copy_is_made_good() {
    let b = bench();
    b.live();
    for path in [
        b.dir(0).join("store.a"),
        b.dir(1).join("store.b"),
        b.dir(0).join("catalog/a/manifest"),
        b.dir(0).join("catalog/b/manifest"),
    ] {
        let before = b.open().unwrap();
        let (store, secret, counter) = (before.store(), before.secret(), before.open_counter());
        drop(before);
        damage(&path);
        let home = b.open().unwrap();
        assert_eq!((home.store(), home.secret(), home.open_counter()), (store, secret, counter));
        drop(home);
        b.live();
        assert!(Record::decode(&fs::read(&path).unwrap()).unwrap().is_ok(), "{}", path.display());
        fs::remove_file(&path).unwrap();
        b.live();
        assert!(path.exists());
    }
}

#[test]
fn anything_but_blanks_behind_the_checksum_is_damage() {
    let b = bench();
    b.live();
    let bytes = fs::read(b.dir(0).join("store.a")).unwrap();
    let text = bytes.trim_ascii_end().len();
    assert!(bytes.len() - text > 2_000);
    for (at, bit) in (text + 1..bytes.len()).flat_map(|at| [(at, 0), (at, at % 8)]) {
        let mut harmed = bytes.clone();
        harmed[at] ^= 1 << bit;
        assert!(Record::decode(&harmed).unwrap().is_err(), "bit {bit} of byte {at}");
    }
    let mut another_pad = bytes.clone();
    another_pad[text + 1..].fill(b'\n');
    assert!(Record::decode(&another_pad).unwrap().is_ok());
}

#[test]
fn a_directory_with_both_copies_damaged_is_known_by_its_path() {
    let b = bench();
    b.live();
    for copy in identity_paths(b.dir(1)) {
        damage(&copy);
    }
    let aside = b.unmount(1);
    let elsewhere = b.with(|r| r.dirs[1].path.clone_from(&aside));
    assert!(
        matches!(elsewhere, Err(Error::BadDirectory { path, why }) if path == aside && why.contains("store.a"))
    );
    fs::rename(&aside, b.dir(1)).unwrap();
    let home = b.open().unwrap();
    assert_eq!(
        home.dirs()[1],
        DirInfo { no: 1, tier: Tier::Hdd, path: b.dir(1).to_path_buf(), present: true, new: false }
    );
    drop(home);
    b.live();
    let pair = read_pair(&RealFs, &identity_paths(b.dir(1)), true).unwrap();
    assert!(pair.damage.is_none() && pair.best.unwrap().this == Some(1));
}

#[test]
fn identities_alone_damaged_everywhere_are_restored_from_the_manifest() {
    let b = bench();
    b.live();
    let store = b.open().unwrap().store();
    for i in 0..3 {
        identity_paths(b.dir(i)).iter().for_each(|p| damage(p));
    }
    assert_eq!(b.open().unwrap().store(), store);
    manifest_paths(&b.dir(0).join("catalog")).iter().for_each(|p| damage(p));
    assert!(matches!(b.open(), Err(Error::CatalogLost { .. })));
    let e = b.with(|r| r.flags.rebuild_catalog = true).unwrap_err();
    assert!(matches!(&e, Error::BadDirectory { why, .. } if why.contains("restore")), "{e}");
}

#[test]
fn a_newer_format_is_refused() {
    let b = bench();
    b.live();
    let text = String::from_utf8(fs::read(b.dir(1).join("store.b")).unwrap()).unwrap();
    let body = text.rsplit_once("checksum ").unwrap().0.replace("thermocline-store 1", "thermocline-store 2");
    let sum = twox_hash::XxHash3_64::oneshot(body.as_bytes());
    fs::write(b.dir(1).join("store.b"), format!("{body}checksum {sum:016x}\n")).unwrap();
    assert!(matches!(b.open(), Err(Error::NewerFormat { found: 2, supported: 1, .. })));
}

#[test]
fn a_missing_directory_is_refused_gone_without_or_discarded() {
    for bare_mount_point in [false, true] {
        let b = bench();
        b.live();
        let aside = b.unmount(1);
        if bare_mount_point {
            fs::create_dir(b.dir(1)).unwrap();
        }
        let before = b.tree();
        assert!(matches!(b.open(), Err(Error::MissingDirectory { path, .. }) if path == b.dir(1)));
        assert!(b.tree() == before);
        let mut home = b.with(|r| r.flags.without_missing = true).unwrap();
        assert!(!home.dirs()[1].present && home.dirs()[1].no == 1 && home.discarded().is_empty());
        home.finish().unwrap();
        drop(home);
        assert_eq!(b.dir(1).exists(), bare_mount_point);
        assert!(!b.dir(1).join("lock").exists());
        // It comes back: nothing was written to it since, and nothing is lost.
        if bare_mount_point {
            fs::remove_dir(b.dir(1)).unwrap();
        }
        fs::rename(&aside, b.dir(1)).unwrap();
        assert!(b.open().unwrap().dirs().iter().all(|d| d.present));
        b.live();
        // Discarded, and not asked for any more.
        let aside = b.unmount(1);
        let without = |r: &mut HomeRequest| {
            r.dirs.remove(1);
        };
        assert!(matches!(b.with(without), Err(Error::MissingDirectory { .. })));
        let mut home = b
            .with(|r| {
                without(r);
                r.flags.discard_missing = true;
            })
            .unwrap();
        assert_eq!((home.discarded(), home.dirs().len()), ([1].as_slice(), 2));
        home.finish().unwrap();
        drop(home);
        let home = b.with(without).unwrap();
        assert_eq!(home.discarded(), [1], "remembered for ever");
        drop(home);
        fs::rename(&aside, b.dir(1)).unwrap();
        assert!(matches!(b.open(), Err(Error::BadDirectory { path, .. }) if path == b.dir(1)));
        // Its number is not given again.
        let mut home = b.with(|r| r.flags.discard_missing = true).unwrap();
        assert_eq!((home.dirs()[1].no, home.dirs()[1].new), (3, true));
        home.finish().unwrap();
        drop(home);
        assert_eq!(b.open().unwrap().dirs()[1].no, 3);
    }
}

#[test]
fn both_flags_lose_nothing() {
    let b = bench();
    b.live();
    b.unmount(2);
    let home = b
        .with(|r| {
            r.flags.without_missing = true;
            r.flags.discard_missing = true;
        })
        .unwrap();
    assert!(home.discarded().is_empty() && !home.dirs()[2].present);
}

#[test]
fn a_directory_from_the_past_counts_as_missing() {
    let b = bench();
    b.live();
    b.live_and_put_back(1);
    let e = b.open().unwrap_err();
    assert!(
        matches!(&e, Error::MissingDirectory { path, why } if path == b.dir(1) && why.contains("older")),
        "{e}"
    );
    let home = b.with(|r| r.flags.without_missing = true).unwrap();
    assert!(!home.dirs()[1].present);
    drop(home);
    let mut home = b.with(|r| r.flags.discard_missing = true).unwrap();
    assert_eq!((home.discarded(), home.dirs()[1].no, home.dirs()[1].new), ([1].as_slice(), 3, true));
    home.finish().unwrap();
    drop(home);
    b.open().unwrap();
}

#[test]
fn a_stale_directory_is_named_as_it_was_given() {
    let b = bench();
    b.live();
    let (old, new) = (b.dir(1).to_path_buf(), b.path("new"));
    copy_dir(&old, &new);
    let mut home = b.with(|r| r.dirs[1].path.clone_from(&new)).unwrap();
    home.finish().unwrap();
    drop(home);
    let e = b.open().unwrap_err();
    let last = format!("last used as {};", new.display());
    assert!(
        matches!(&e, Error::MissingDirectory { path, why } if *path == old && why.contains(&last)),
        "{e}"
    );
    // And the one that was left out, as it was given.
    let home = b.with(|r| r.flags.without_missing = true).unwrap();
    assert!(!home.dirs()[1].present && home.dirs()[1].path == old);
}

#[test]
fn a_mistyped_directory_is_named_beside_the_one_that_is_missing() {
    let b = bench();
    b.live();
    for (at, exists) in [(1, false), (1, true), (0, false)] {
        let typo = b.path("typo");
        if exists {
            fs::create_dir(&typo).unwrap();
        }
        let aside = (at == 0).then(|| b.unmount(0));
        let e = b.with(|r| r.dirs[at].path.clone_from(&typo)).unwrap_err();
        let what = if exists { "is none of the store's" } else { "does not exist" };
        let says = format!("({} was given, which {what}, and may be mistyped)", typo.display());
        assert!(
            matches!(&e, Error::MissingDirectory { path, why } if path == b.dir(at) && why.contains(&says)),
            "{e}"
        );
        assert!(e.to_string().contains("name it") && !e.to_string().contains("?;"), "{e}");
        if exists {
            fs::remove_dir(&typo).unwrap();
        }
        if let Some(aside) = aside {
            fs::rename(aside, b.dir(0)).unwrap();
        }
        assert!(b.open().is_ok());
    }
    // Nothing is taken for mistyped that was not.
    let e = b.with(|r| drop(r.dirs.remove(1))).unwrap_err();
    assert!(!e.to_string().contains("mistyped"), "{e}");
}

#[test]
fn a_catalog_behind_a_directory_is_lost() {
    let b = bench();
    b.live();
    let catalog = b.dir(0).join("catalog");
    copy_dir(&catalog, &b.path("image"));
    b.live();
    let used = b.live();
    let store = b.open().unwrap().store();
    fs::remove_dir_all(&catalog).unwrap();
    fs::rename(b.path("image"), &catalog).unwrap();
    let before = b.tree();
    assert!(matches!(b.open(), Err(Error::CatalogLost { path, .. }) if path == catalog));
    assert!(b.tree() == before);
    let mut home = b.with(|r| r.flags.rebuild_catalog = true).unwrap();
    assert!(home.catalog_must_rebuild() && home.open_counter() == used + 1 && home.store() == store);
    home.begin_writing().unwrap();
    drop(home);
    let mut home = b.open().unwrap();
    assert!(home.catalog_must_rebuild(), "the rebuilding did not end");
    home.finish().unwrap();
    drop(home);
    assert!(!b.open().unwrap().catalog_must_rebuild());
}

#[test]
fn a_catalog_that_is_gone_is_rebuilt_from_any_directory() {
    let b = bench();
    let used = b.live();
    let (store, secret) = b.open().map(|h| (h.store(), h.secret())).unwrap();
    fs::remove_dir_all(b.dir(0).join("catalog")).unwrap();
    assert!(matches!(b.open(), Err(Error::CatalogLost { .. })));
    // The identities of two directories are damaged as well: the third has the roster.
    for at in [0, 1] {
        identity_paths(b.dir(at)).iter().for_each(|p| damage(p));
    }
    let mut home = b.with(|r| r.flags.rebuild_catalog = true).unwrap();
    assert_eq!((home.store(), home.secret(), home.open_counter()), (store, secret, used + 1));
    assert_eq!(home.dirs().iter().map(|d| d.no).collect::<Vec<_>>(), [0, 1, 2]);
    home.counter_was_used(40).unwrap();
    assert_eq!(home.open_counter(), 41);
    home.finish().unwrap();
    drop(home);
    assert_eq!(b.open().unwrap().open_counter(), 42);
}

#[test]
fn an_unmounted_disk_with_the_catalog_is_missing_and_not_lost() {
    let b = bench();
    b.live();
    b.unmount(0);
    let e = b.open().unwrap_err();
    assert!(
        matches!(&e, Error::MissingDirectory { path, why } if path == b.dir(0) && why.contains("catalog")),
        "{e}"
    );
    assert!(matches!(b.with(|r| r.flags.without_missing = true), Err(Error::CatalogLost { .. })));
    let mut home = b
        .with(|r| {
            r.flags.without_missing = true;
            r.flags.rebuild_catalog = true;
        })
        .unwrap();
    assert_eq!(home.catalog_dir(), b.dir(1).join("catalog"), "in a directory that is there");
    assert!(!home.dirs()[0].present && home.catalog_must_rebuild());
    home.finish().unwrap();
    drop(home);
    assert!(!b.dir(0).exists());
    assert!(matches!(b.open(), Err(Error::MissingDirectory { .. })));
}

#[test]
fn a_directory_that_joined_before_a_crash_is_not_taken_for_new() {
    let b = bench();
    let more = WantedDir { tier: Tier::Hdd, path: b.path("more") };
    b.live();
    let with_more = |r: &mut HomeRequest| r.dirs.push(more.clone());
    let mut home = b.with(with_more).unwrap();
    home.begin_writing().unwrap();
    drop(home);
    // In use, not yet confirmed; then its disk is not mounted.
    fs::rename(b.path("more"), b.path("aside")).unwrap();
    assert!(matches!(b.with(with_more), Err(Error::MissingDirectory { .. })));
    fs::create_dir(b.path("more")).unwrap();
    assert!(matches!(b.with(with_more), Err(Error::MissingDirectory { .. })));
    // But one that a crash left between the roster and its identity goes on as what it is.
    fs::write(b.path("more/lock"), b"").unwrap();
    let home = b.with(with_more).unwrap();
    assert_eq!((home.dirs()[3].no, home.dirs()[3].new), (3, true));
}

#[test]
fn a_store_that_never_held_anything_may_be_asked_for_otherwise() {
    let b = bench();
    let mut home = b.open().unwrap();
    let store = home.store();
    home.begin_writing().unwrap();
    drop(home);
    let home = b
        .with(|r| {
            r.dirs.remove(1);
        })
        .unwrap();
    assert_eq!((home.store(), home.is_new_store(), home.discarded()), (store, true, [1].as_slice()));
}

#[test]
fn the_number_of_a_discarded_directory_is_not_given_again() {
    let b = bench();
    b.live();
    fs::remove_dir_all(b.dir(2)).unwrap();
    let mut home = b.with(|r| r.flags.discard_missing = true).unwrap();
    assert_eq!((home.discarded(), home.dirs()[2].no), ([2].as_slice(), 3));
    home.finish().unwrap();
    drop(home);
    // Nor after a rebuilding, which has it from the directories.
    fs::remove_dir_all(b.dir(0).join("catalog")).unwrap();
    let more = WantedDir { tier: Tier::Cold, path: b.path("more") };
    let mut rebuilt = b
        .with(|r| {
            r.flags.rebuild_catalog = true;
            r.dirs.push(more.clone());
        })
        .unwrap();
    assert_eq!((rebuilt.discarded(), rebuilt.dirs()[3].no), ([2].as_slice(), 4));
    rebuilt.finish().unwrap();
    drop(rebuilt);
    assert_eq!(b.with(|r| r.dirs.push(more)).unwrap().discarded(), [2]);
}

#[test]
fn rebuilding_goes_above_every_counter_and_takes_no_directory_for_new() {
    let b = bench();
    b.live();
    let catalog = b.dir(0).join("catalog");
    fs::remove_dir_all(&catalog).unwrap();
    let paths = identity_paths(b.dir(2));
    let own = read_pair(&RealFs, &paths, true).unwrap().best.unwrap();
    write_pair(&RealFs, &paths, 0, &Record { edition: 0, counter: 50, discarded: vec![7], ..own }).unwrap();
    let rebuild = |r: &mut HomeRequest| r.flags.rebuild_catalog = true;
    let home = b.with(rebuild).unwrap();
    assert_eq!((home.open_counter(), home.discarded()), (51, [7].as_slice()));
    drop(home);
    for copy in identity_paths(b.dir(1)) {
        fs::remove_file(copy).unwrap();
    }
    assert!(b.dir(1).join("lock").exists());
    assert!(matches!(b.with(rebuild), Err(Error::MissingDirectory { path, .. }) if path == b.dir(1)));
}

#[test]
fn the_need_to_rebuild_survives_a_restart() {
    let b = bench();
    b.live();
    let mut home = b.open().unwrap();
    home.require_rebuild().unwrap();
    home.begin_writing().unwrap();
    drop(home);
    assert!(b.open().unwrap().catalog_must_rebuild());
    b.live();
    let mut home = b.open().unwrap();
    home.begin_writing().unwrap();
    home.require_rebuild().unwrap();
    drop(home);
    assert!(b.open().unwrap().catalog_must_rebuild());
}

#[test]
fn mounts_may_move() {
    let b = bench();
    b.live();
    let (ssd, hdd) = (b.unmount(0), b.unmount(1));
    let moved = |r: &mut HomeRequest| {
        r.dirs[0].path.clone_from(&ssd);
        r.dirs[1].path.clone_from(&hdd);
    };
    let mut home = b.with(moved).unwrap();
    assert_eq!(home.dirs().iter().map(|d| d.no).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(home.catalog_dir(), ssd.join("catalog"));
    home.finish().unwrap();
    drop(home);
    // The new place is what the roster says now.
    fs::remove_dir_all(&hdd).unwrap();
    assert!(matches!(b.with(moved), Err(Error::MissingDirectory { path, .. }) if path == hdd));
}

#[test]
fn directories_and_tiers_join_later() {
    let b = bench();
    let later = |r: &mut HomeRequest| {
        r.dirs.remove(0);
    };
    let mut home = b.with(later).unwrap();
    assert_eq!(home.catalog_dir(), b.dir(1).join("catalog"));
    home.finish().unwrap();
    drop(home);
    // A higher tier joins: the catalog stays where it is.
    let mut home = b.open().unwrap();
    assert_eq!(home.catalog_dir(), b.dir(1).join("catalog"));
    assert_eq!(
        home.dirs().iter().map(|d| (d.no, d.new)).collect::<Vec<_>>(),
        [(2, true), (0, false), (1, false)]
    );
    home.begin_writing().unwrap();
    drop(home);
    let again = b.open().unwrap();
    assert_eq!(again.dirs()[0].no, 2);
}

#[test]
fn the_catalog_is_moved_by_hand() {
    let b = bench();
    b.live();
    let (old, new) = (b.dir(0).join("catalog"), b.path("elsewhere"));
    let moved = |r: &mut HomeRequest| r.catalog = Some(new.clone());
    let e = b.with(moved).unwrap_err();
    assert!(matches!(&e, Error::BadDirectory { why, .. } if why.contains(&*old.to_string_lossy())), "{e}");
    b.with(|r| r.catalog = Some(old.clone())).unwrap();
    copy_dir(&old, &b.path("image"));
    b.live();
    fs::rename(&old, &new).unwrap();
    assert!(matches!(b.open(), Err(Error::CatalogLost { .. })));
    let mut home = b.with(moved).unwrap();
    assert_eq!(home.catalog_dir(), new);
    home.finish().unwrap();
    drop(home);
    assert_eq!(b.open().unwrap().catalog_dir(), new, "the directories name it now");
    // A catalog from the past in its place is lost all the same.
    fs::remove_dir_all(&new).unwrap();
    fs::rename(b.path("image"), &new).unwrap();
    assert!(matches!(b.open(), Err(Error::CatalogLost { .. })));
}

#[test]
fn counters_run_out_with_an_error() {
    let b = bench();
    let mut home = b.open().unwrap();
    home.counter_was_used(Version::MAX_OPEN - 1).unwrap();
    assert!(home.counter_was_used(Version::MAX_OPEN).is_err());
    home.finish().unwrap();
    drop(home);
    assert!(matches!(b.open(), Err(Error::BadDirectory { why, .. }) if why.contains("start a new one")));
}
