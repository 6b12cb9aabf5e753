//! Stops and full disks at every change.

use super::*;
use crate::sim::SimFs;
use parking_lot::Mutex;

#[test]
fn a_refused_opening_leaves_no_trace() {
    let b = bench();
    fs::create_dir_all(b.dir(0)).unwrap();
    fs::create_dir_all(b.path("cold")).unwrap();
    fs::write(b.dir(2), b"a file").unwrap();
    let before = b.tree();
    let e = b.open().unwrap_err();
    assert!(
        matches!(&e, Error::BadDirectory { path, why } if path == b.dir(2) && why.contains("file")),
        "{e}"
    );
    assert!(b.tree() == before);
    fs::remove_file(b.dir(2)).unwrap();
    let before = b.tree();
    // Every change fails once, at its place; the taking back works.
    let whole = faulty();
    drop(Home::open(Arc::new(whole.clone()), &b.request).unwrap());
    let changes = whole.changes();
    for dir in ["ssd", "hdd", "cold"] {
        fs::remove_dir_all(b.path(dir)).unwrap();
    }
    fs::create_dir_all(b.dir(0)).unwrap();
    fs::create_dir_all(b.path("cold")).unwrap();
    assert!(b.tree() == before && changes > 15);
    for n in 0..changes {
        let making = &[Op::MakeDir, Op::Lock, Op::SyncDir, Op::Create, Op::Write, Op::Sync, Op::Rename];
        let fs = failing(Fault::on_any(making).after(n).times(1));
        assert!(Home::open(fs, &b.request).is_err(), "change {n}");
        assert!(b.tree() == before, "after change {n}: {:?}", b.tree());
    }
}

#[test]
fn discarding_stopped_before_the_new_identity_is_written_goes_on() {
    let b = bench();
    b.live();
    b.live_and_put_back(1);
    let fs = failing(Fault::on(Op::Create).below(b.dir(1)));
    let mut request = b.request.clone();
    request.flags.discard_missing = true;
    let mut home = Home::open(fs, &request).unwrap();
    home.begin_writing().unwrap_err();
    drop(home);
    assert_eq!(b.open().unwrap().dirs()[1].no, 3);
    b.live();
    assert_eq!(b.open().unwrap().dirs()[1].no, 3);
}

#[test]
fn everything_is_synced_in_its_order() {
    let b = bench();
    let calls: Arc<Mutex<Vec<(Op, PathBuf)>>> = Arc::default();
    let log = calls.clone();
    let vfs = faulty();
    vfs.watch(move |c| log.lock().push((c.op, c.path.to_path_buf())));
    let mut home = Home::open(Arc::new(vfs), &b.request).unwrap();
    home.begin_writing().unwrap();
    let calls = calls.lock();
    let first = |op: Op, path: &Path| {
        calls.iter().position(|(o, p)| *o == op && p == path).unwrap_or_else(|| panic!("{op:?} {path:?}"))
    };
    let mut last = 0;
    for (at, dir) in home.dirs().iter().enumerate() {
        let marked = first(Op::Lock, &dir.path.join("lock"));
        let synced =
            calls.iter().skip(marked).position(|(o, p)| *o == Op::SyncDir && *p == dir.path).unwrap()
                + marked;
        let manifests = manifest_paths(home.catalog_dir()).map(|p| {
            assert!(
                first(Op::Rename, &p)
                    < calls.iter().rposition(|(o, d)| *o == Op::SyncDir && d == p.parent().unwrap()).unwrap()
            );
            first(Op::Rename, &p)
        });
        let [a, z] = identity_paths(&dir.path).map(|p| first(Op::Rename, &p));
        assert!(
            synced < manifests[0] && manifests[0] < manifests[1] && manifests[1] < a && a < z,
            "directory {at}"
        );
        assert!(last < a);
        last = z;
    }
}

#[test]
fn a_full_disk_does_not_keep_the_counter_from_rising() {
    let b = bench();
    b.live();
    let mut home = Home::open(failing(full()), &b.request).unwrap();
    home.finish().unwrap();
    let used = home.open_counter();
    drop(home);
    assert!(b.tree().iter().all(|(p, _)| p.extension().is_none_or(|e| e != "tmp")));
    let mut home = b.open().unwrap();
    assert_eq!(home.open_counter(), used + 1);
    home.finish().unwrap();
}

/// The identities and the counter must be whole after a stop at any change, whether or not the disk is full.
fn stopped_everywhere(prepare: impl Fn(&Bench), on_full_disk: bool) {
    let mut n = 0;
    loop {
        let b = bench();
        prepare(&b);
        let fs = faulty();
        fs.stop_after(n);
        if on_full_disk {
            fs.fail(full());
        }
        let before = read_pair(&RealFs, &identity_paths(b.dir(1)), true).unwrap().best;
        // The counter may be used once `begin_writing` has returned.
        let mut used = before.as_ref().map_or(0, |r| r.counter);
        let mut finished = before.is_some();
        let result = Home::open(Arc::new(fs.clone()), &b.request).and_then(|mut home| {
            home.begin_writing()?;
            used = home.open_counter();
            home.finish()?;
            finished = true;
            Ok(())
        });
        let done = result.is_ok();
        let mut home = b.open().unwrap_or_else(|e| panic!("after change {n}: {e}"));
        assert!(home.open_counter() > used, "after change {n}");
        assert!(home.dirs().iter().all(|d| d.present), "after change {n}");
        assert_eq!(home.dirs().iter().map(|d| d.no).collect::<Vec<_>>(), [0, 1, 2], "after change {n}");
        assert!(!finished || !home.is_new_store(), "after change {n}");
        if let Some(r) = &before {
            assert!(home.store() == r.store && home.secret() == r.secret, "after change {n}");
        }
        let store = home.store();
        let counter = home.open_counter();
        home.finish().unwrap();
        drop(home);
        for at in 0..3 {
            let pair = read_pair(&RealFs, &identity_paths(b.dir(at)), true).unwrap();
            let identity = pair.best.unwrap();
            assert!(pair.damage.is_none() && identity.store == store && identity.counter == counter);
        }
        if done {
            assert!(n > 30, "{n} changes are too few to have stopped everywhere");
            return;
        }
        n += 1;
        assert!(n < 300, "it does not end");
    }
}

#[test]
fn a_first_creation_stopped_anywhere() {
    stopped_everywhere(|_| {}, false);
}

#[test]
fn a_raising_of_the_counter_stopped_anywhere() {
    stopped_everywhere(
        |b| {
            b.live();
        },
        false,
    );
}

#[test]
fn a_raising_of_the_counter_on_a_full_disk_stopped_anywhere() {
    stopped_everywhere(
        |b| {
            b.live();
            // In place, the copy that is whole is written last.
            for at in 0..3 {
                damage(&b.dir(at).join("store.b"));
            }
            damage(&b.dir(0).join("catalog/b/manifest"));
        },
        true,
    );
}

/// On a disk that loses all that was not synced.
#[test]
fn a_counter_that_was_raised_is_not_given_again_after_a_power_cut() {
    let paths = ["/ssd", "/hdd"].map(PathBuf::from);
    let mut disk = paths.iter().fold(SimFs::new(1), |fs, path| fs.with_dir(path));
    let dirs = [Tier::Ssd, Tier::Hdd].into_iter().zip(paths).map(|(tier, path)| WantedDir { tier, path });
    let request = HomeRequest { dirs: dirs.collect(), catalog: None, flags: OpenFlags::default() };
    let mut last = 0;
    for _ in 0..3 {
        let mut home = Home::open(Arc::new(disk.clone()), &request).unwrap();
        home.begin_writing().unwrap();
        assert!(home.open_counter() > last);
        last = home.open_counter();
        disk = disk.crash_losing_all();
    }
}
