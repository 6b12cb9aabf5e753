//! What may be opened together, and who may.

use super::*;

#[test]
fn a_new_store_is_made_and_found_again() {
    let b = bench();
    let mut home = b.open().unwrap();
    assert!(home.is_new_store() && home.open_counter() == 1 && !home.catalog_must_rebuild());
    assert_eq!(
        home.dirs().iter().map(|d| (d.no, d.present, d.new)).collect::<Vec<_>>(),
        [(0, true, true), (1, true, true), (2, true, true)]
    );
    assert_eq!(home.catalog_dir(), b.dir(0).join("catalog"));
    use std::os::unix::fs::PermissionsExt;
    for dir in [b.dir(0), b.dir(2), home.catalog_dir(), &home.catalog_dir().join("b")] {
        assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o700);
    }
    let (store, secret) = (home.store(), home.secret());
    assert_ne!(store, secret);
    home.begin_writing().unwrap();
    drop(home);
    assert!(b.open().unwrap().is_new_store(), "it was never finished");
    assert_eq!(b.live(), 2);
    let home = b.open().unwrap();
    assert!(!home.is_new_store());
    assert_eq!((home.store(), home.secret(), home.open_counter()), (store, secret, 3));
    assert!(home.dirs().iter().all(|d| d.present && !d.new));
    assert!(!format!("{home:?}").contains(&record::hex(&secret)));
}

#[test]
fn two_stores_differ() {
    let (a, b) = (bench().open().unwrap(), bench().open().unwrap());
    assert!(a.store() != b.store() && a.secret() != b.secret());
}

#[test]
fn opening_writes_nothing_until_writing_begins() {
    let b = bench();
    b.live();
    let before = b.tree();
    drop(b.open().unwrap());
    drop(b.with(|r| r.flags.read_only = true).unwrap());
    assert!(b.tree() == before);
    let mut home = b.with(|r| r.flags.read_only = true).unwrap();
    assert!(matches!(home.begin_writing(), Err(Error::BadDirectory { .. })));
    assert!(b.tree() == before);
}

#[test]
fn reading_only_takes_locks_and_makes_nothing() {
    let b = bench();
    let read = |r: &mut HomeRequest| r.flags.read_only = true;
    assert!(matches!(b.with(read), Err(Error::BadDirectory { .. })));
    assert!(b.tree().is_empty());
    b.live();
    let home = b.with(read).unwrap();
    assert!(matches!(b.open(), Err(Error::Locked { .. })));
    // Others may read at the same time.
    drop(b.with(read).unwrap());
    drop(home);
    // Nobody writes where there is no lock file, and who reads makes none.
    fs::remove_file(b.dir(1).join("lock")).unwrap();
    drop(b.with(read).unwrap());
    assert!(!b.dir(1).join("lock").exists());
    let writes = b.open().unwrap();
    assert!(matches!(b.with(read), Err(Error::Locked { .. })));
    drop(writes);
    let extra = WantedDir { tier: Tier::Cold, path: b.path("more") };
    let more = b.with(|r| {
        read(r);
        r.dirs.push(extra);
    });
    assert!(matches!(more, Err(Error::BadDirectory { path, .. }) if path == b.path("more")));
    assert!(!b.path("more").exists());
}

#[test]
fn a_second_opening_is_locked_out_at_once_and_lets_go_of_all() {
    let b = bench();
    b.live();
    let home = b.open().unwrap();
    assert!(matches!(b.open(), Err(Error::Locked { path }) if path == b.dir(0)));
    // Another store's request that shares one directory takes and releases its other locks.
    let other = b.path("other");
    let shares = |r: &mut HomeRequest| r.dirs[0].path = other.clone();
    assert!(matches!(b.with(shares), Err(Error::Locked { path }) if path == b.dir(1)));
    assert!(!other.exists());
    drop(home);
    b.open().unwrap();
}

#[test]
fn a_lock_on_a_file_that_was_removed_is_none() {
    let b = bench();
    b.live();
    let vfs = faulty();
    vfs.watch(|c| {
        if c.op == Op::Locked {
            fs::remove_file(c.path).unwrap();
        }
    });
    assert!(matches!(Home::open(Arc::new(vfs), &b.request), Err(Error::Locked { path }) if path == b.dir(0)));
}

#[test]
fn the_catalog_is_locked_too() {
    let b = bench();
    let place = b.path("catalog");
    fs::create_dir(&place).unwrap();
    let _held = RealFs.try_lock(&place.join("lock")).unwrap().unwrap();
    let before = b.tree();
    assert!(
        matches!(b.with(|r| r.catalog = Some(place.clone())), Err(Error::Locked { path }) if path == place)
    );
    assert!(b.tree() == before);
}

#[test]
fn a_lack_of_permission_names_path_and_cure() {
    let b = bench();
    b.live();
    for (op, open_works) in [(Op::Lock, false), (Op::Open, false), (Op::Create, true)] {
        let fs = failing(Fault::on(op).below(b.dir(1)).errno(EACCES));
        let e = match Home::open(fs, &b.request) {
            Ok(mut home) => {
                assert!(open_works);
                home.begin_writing().unwrap_err()
            }
            Err(e) => e,
        };
        let text = e.to_string();
        assert!(text.contains(&*b.dir(1).to_string_lossy()) && text.contains("chmod"), "{text}");
    }
}

#[test]
fn directories_must_not_overlap() {
    let b = bench();
    let twice = |r: &mut HomeRequest| r.dirs[1].path = r.dirs[0].path.join("../cache/.");
    assert!(matches!(b.with(twice), Err(Error::BadDirectory { .. })));
    fs::create_dir_all(b.dir(0)).unwrap();
    assert!(matches!(b.with(twice), Err(Error::BadDirectory { why, .. }) if why.contains("twice")));
    std::os::unix::fs::symlink(b.dir(0), b.path("link")).unwrap();
    let linked = b.path("link");
    let by_link = b.with(|r| r.dirs[2].path = linked);
    assert!(matches!(by_link, Err(Error::BadDirectory { why, .. }) if why.contains("twice")));
    let inside = b.with(|r| r.dirs[1].path = r.dirs[0].path.join("deeper/still"));
    assert!(matches!(inside, Err(Error::BadDirectory { why, .. }) if why.contains("inside")));
    let around = b.with(|r| r.dirs[2].path = b.path("ssd"));
    assert!(matches!(around, Err(Error::BadDirectory { why, .. }) if why.contains("inside")));
    let catalog = b.with(|r| r.catalog = Some(b.path("ssd")));
    assert!(matches!(catalog, Err(Error::BadDirectory { .. })));
    let memory = b.with(|r| r.dirs[0].tier = Tier::Memory);
    assert!(matches!(memory, Err(Error::BadDirectory { .. })));
    assert!(matches!(b.with(|r| r.dirs.clear()), Err(Error::BadDirectory { .. })));
    assert!(matches!(b.with(|r| r.dirs[0].path = PathBuf::new()), Err(Error::BadDirectory { .. })));
    assert!(!b.path("hdd").exists());
}

#[test]
fn a_link_may_name_a_directory_but_not_its_files() {
    let b = bench();
    b.live();
    std::os::unix::fs::symlink(b.dir(1), b.path("link")).unwrap();
    let linked = b.with(|r| r.dirs[1].path = b.path("link")).unwrap();
    assert_eq!(linked.dirs()[1].path, b.dir(1));
    drop(linked);
    std::os::unix::fs::symlink(b.path("nowhere"), b.path("dangling")).unwrap();
    let dangling = b.with(|r| r.dirs[1].path = b.path("dangling"));
    assert!(matches!(dangling, Err(Error::BadDirectory { why, .. }) if why.contains("nowhere")));
    fs::remove_file(b.dir(1).join("lock")).unwrap();
    std::os::unix::fs::symlink(b.path("victim"), b.dir(1).join("lock")).unwrap();
    assert!(matches!(b.open(), Err(Error::Io { op: "lock", .. })));
    assert!(!b.path("victim").exists());
}

#[test]
fn a_directory_of_another_store_or_tier_is_refused() {
    let (a, b) = (bench(), bench());
    a.live();
    b.live();
    let mixed = a.with(|r| r.dirs[1].path = b.dir(1).to_path_buf());
    assert!(matches!(mixed, Err(Error::OtherStore { path, .. }) if path == b.dir(1)));
    let swapped = a.with(|r| {
        r.dirs[1].path = a.dir(2).to_path_buf();
        r.dirs[2].path = a.dir(1).to_path_buf();
    });
    let e = swapped.unwrap_err();
    assert!(
        matches!(&e, Error::BadDirectory { path, why } if path == a.dir(2) && why.contains("cold tier")),
        "{e}"
    );
    // The catalog of another store, where this one's was moved to.
    let moved = a.with(|r| r.catalog = Some(b.dir(0).join("catalog")));
    assert!(matches!(moved, Err(Error::BadDirectory { .. })));
    fs::remove_dir_all(a.dir(0).join("catalog")).unwrap();
    let moved = a.with(|r| r.catalog = Some(b.dir(0).join("catalog")));
    assert!(matches!(moved, Err(Error::OtherStore { .. })));
}

#[test]
fn a_copied_directory_is_told() {
    let b = bench();
    b.live();
    copy_dir(b.dir(1), &b.path("copy"));
    let both = b.with(|r| r.dirs.insert(2, WantedDir { tier: Tier::Hdd, path: b.path("copy") }));
    assert!(
        matches!(both, Err(Error::BadDirectory { path, why }) if path == b.path("copy") && why.contains("copy"))
    );
}
