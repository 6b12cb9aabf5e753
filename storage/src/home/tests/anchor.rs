//! What stands where a directory was, while the store is open.

use super::*;

/// The words in which it is refused.
fn refusal(anchor: &Anchor) -> String {
    anchor.check().expect_err("it is not the directory that was opened").to_string()
}

fn open_and_write(b: &Bench) -> Home {
    let mut home = b.open().unwrap();
    home.begin_writing().unwrap();
    home.finish().unwrap();
    home
}

/// That nothing can be changed below a directory, nor read.
fn untouchable(anchor: &Arc<Anchor>, dir: &Path) {
    let vfs = Anchored::over(Arc::new(RealFs), Some(anchor.clone()));
    let lock = dir.join("lock");
    assert!(vfs.open(&dir.join("new"), crate::vfs::OpenMode::CreateNew).is_err());
    assert!(vfs.open(&lock, crate::vfs::OpenMode::Read).is_err());
    assert!(vfs.create_dir_all(&dir.join("new")).is_err() && vfs.read_dir(dir).is_err());
    assert!(vfs.remove_file(&lock).is_err() && vfs.remove_dir_all(dir).is_err());
    assert!(vfs.rename(&lock, &dir.join("other")).is_err());
    assert!(vfs.sync_dir(dir).is_err() && vfs.try_lock(&dir.join("new")).is_err());
}

#[test]
fn what_stands_where_a_directory_was_is_told_apart() {
    let b = bench();
    b.live();
    copy_dir(b.dir(1), &b.path("older"));
    let other = bench();
    other.live();
    let home = open_and_write(&b);
    let anchor = home.anchor(1).unwrap();
    anchor.check().unwrap();
    copy_dir(b.dir(1), &b.path("now"));
    let whole = b.tree();
    let aside = b.unmount(1);
    assert!(refusal(&anchor).contains("mount its disk"), "{}", refusal(&anchor));
    untouchable(&anchor, b.dir(1));
    let damaged = b.path("damaged");
    copy_dir(&aside, &damaged);
    identity_paths(&damaged).iter().for_each(|path| damage(path));
    let (earlier, now) = (home.open_counter() - 1, home.open_counter());
    let impostors = [
        (b.path("older"), format!("ends at opening {earlier}, and this is opening {now}")),
        (b.path("now"), "put the one back that was in use".to_owned()),
        (b.dir(2).to_path_buf(), "is directory 2 of the store, and directory 1 belongs here".to_owned()),
        (other.dir(1).to_path_buf(), "belongs to another store".to_owned()),
        (damaged, "identity files cannot be read".to_owned()),
    ];
    for (impostor, why) in impostors {
        copy_dir(&impostor, b.dir(1));
        let before = b.tree();
        assert!(refusal(&anchor).contains(&why), "{}", refusal(&anchor));
        untouchable(&anchor, b.dir(1));
        assert!(before == b.tree(), "{why}: something was written");
        fs::remove_dir_all(b.dir(1)).unwrap();
    }
    fs::remove_dir_all(b.path("damaged")).unwrap();
    fs::rename(aside, b.dir(1)).unwrap();
    anchor.check().unwrap();
    assert!(whole == b.tree());
    // Its own is still its own with a bad sector in both.
    let kept = identity_paths(b.dir(1)).map(|path| (fs::read(&path).unwrap(), damage(&path), path));
    anchor.check().unwrap();
    kept.iter().for_each(|(bytes, (), path)| fs::write(path, bytes).unwrap());
    drop(home);
    assert!(anchor.check().is_err(), "the store is closed");
    untouchable(&anchor, b.dir(1));
}

#[test]
fn a_directory_that_somebody_else_has_opened_since_is_refused() {
    let b = bench();
    let home = open_and_write(&b);
    let anchor = home.anchor(1).unwrap();
    // What another process would leave that came by while this one had no hold on any of it.
    let mut pair = read_pair(&RealFs, &identity_paths(b.dir(1)), true).unwrap().best.unwrap();
    pair.counter += 1;
    write_pair(&RealFs, &identity_paths(b.dir(1)), 0, &pair).unwrap();
    assert!(refusal(&anchor).contains("somebody else has used it"), "{}", refusal(&anchor));
}

#[test]
fn the_catalogs_place_is_held_too() {
    let b = bench();
    let home = open_and_write(&b);
    let (dir, aside) = (home.catalog_dir().to_path_buf(), b.path("catalog-aside"));
    let vfs = home.catalog_vfs();
    let new = dir.join("a").join("new");
    vfs.open(&new, crate::vfs::OpenMode::CreateNew).unwrap();
    copy_dir(&dir, &b.path("copy"));
    fs::rename(&dir, &aside).unwrap();
    fs::rename(b.path("copy"), &dir).unwrap();
    assert!(vfs.remove_file(&new).is_err() && new.exists());
    fs::remove_dir_all(&dir).unwrap();
    fs::rename(&aside, &dir).unwrap();
    vfs.remove_file(&new).unwrap();
}

#[test]
fn a_lock_file_that_was_removed_is_said_to_be() {
    let b = bench();
    let home = open_and_write(&b);
    let anchor = home.anchor(1).unwrap();
    fs::remove_file(b.dir(1).join("lock")).unwrap();
    assert!(refusal(&anchor).contains("its file `lock` was removed"), "{}", refusal(&anchor));
    untouchable_without_lock(&anchor, b.dir(1));
    drop(home);
    // What is said to do helps.
    b.live();
}

fn untouchable_without_lock(anchor: &Arc<Anchor>, dir: &Path) {
    let vfs = Anchored::over(Arc::new(RealFs), Some(anchor.clone()));
    let e = vfs.still_there().unwrap_err();
    assert!(e.to_string().contains("its lock file was removed"), "{e}");
    assert!(vfs.open(&dir.join("new"), crate::vfs::OpenMode::CreateNew).is_err());
}

/// A disk on which a file with the name of a lock file takes its place, just after it was locked, so many times.
fn replacing(times: u64) -> Arc<FaultFs> {
    let disk = FaultFs::default();
    let left = std::sync::atomic::AtomicU64::new(times);
    disk.watch(move |call| {
        let order = Ordering::Relaxed;
        if call.op == Op::Locked && left.try_update(order, order, |n| n.checked_sub(1)).is_ok() {
            fs::remove_file(call.path).unwrap();
            fs::write(call.path, []).unwrap();
        }
    });
    Arc::new(disk)
}

#[test]
fn a_lock_file_that_is_another_by_the_time_it_is_locked_is_no_lock() {
    let b = bench();
    b.live();
    let e = Home::open(replacing(1), &b.request).unwrap_err();
    assert!(matches!(e, Error::Locked { .. }), "{e}");
    // A file system that gives another number each time would have every opening believe that.
    let e = Home::open(replacing(u64::MAX), &b.request).unwrap_err().to_string();
    assert!(e.contains("another number") && e.contains("use a file system that keeps them"), "{e}");
    b.live();
}
