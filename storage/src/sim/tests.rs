//! The simulated disk: what it keeps, tears, reorders and refuses.

use super::*;
use crate::vfs::{OpenMode, Vfs, VfsFile};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

const FILE: &str = "/d/file";

fn disk() -> SimFs {
    SimFs::new(1).with_dir(Path::new("/d")).with_dir(Path::new("/e"))
}

fn create(fs: &SimFs, path: &str) -> Arc<dyn VfsFile> {
    fs.open(Path::new(path), OpenMode::CreateNew).unwrap()
}

fn sync_dir(fs: &SimFs, path: &str) {
    fs.sync_dir(Path::new(path)).unwrap();
}

/// All that a crash may leave, of many.
fn outcomes<T: Ord>(fs: &SimFs, see: impl Fn(&SimFs) -> T) -> BTreeSet<T> {
    (0..2_000).map(|seed| see(&fs.crash(&mut Dice::new(seed)))).collect()
}

fn names(fs: &SimFs) -> Vec<String> {
    fs.files().iter().map(|p| p.display().to_string()).collect()
}

#[test]
fn what_is_synced_stays_and_what_is_not_arrives_by_sectors() {
    let fs = disk();
    let file = create(&fs, FILE);
    file.write_all_at(&[1; 2048], 0).unwrap();
    file.sync().unwrap();
    assert!(outcomes(&fs, names).contains(&vec![]), "its name is not durable");
    sync_dir(&fs, "/d");
    let see = |fs: &SimFs| fs.read(Path::new(FILE));
    assert_eq!(outcomes(&fs, see), BTreeSet::from([vec![1; 2048]]));
    // Over the end of the second sector, and beyond the end of the file.
    file.write_all_at(&[2; 600], 1000).unwrap();
    file.write_all_at(&[3; 100], 3000).unwrap();
    let found = outcomes(&fs, see);
    assert!(found.len() > 10, "{}", found.len());
    for bytes in &found {
        assert!(bytes.len() == 2048 || bytes.len() == 3072 || bytes.len() == 3100, "{}", bytes.len());
        assert_eq!(bytes[..1000], [1; 1000]);
        for (sector, new) in [(1000..1024, 2), (1024..1536, 2), (1536..1600, 2)] {
            let part = &bytes[sector];
            assert!(part.iter().all(|b| *b == 1) || part.iter().all(|b| *b == new), "a torn sector");
        }
        assert!(bytes.get(2048..3000).is_none_or(|hole| hole.iter().all(|b| *b == 0)));
    }
    assert_eq!(fs.kill().read(Path::new(FILE))[3099], 3, "a killed process leaves all that it wrote");
    file.sync().unwrap();
    assert_eq!(outcomes(&fs, see).len(), 1);
}

#[test]
fn names_last_when_their_directory_is_synced_and_a_rename_happens_whole() {
    let fs = disk();
    let path = Path::new(FILE);
    create(&fs, "/d/tmp").sync().unwrap();
    sync_dir(&fs, "/d");
    fs.rename(Path::new("/d/tmp"), path).unwrap();
    let (before, after) = (vec!["/d/tmp".to_owned()], vec![FILE.to_owned()]);
    assert_eq!(outcomes(&fs, names), BTreeSet::from([before.clone(), after.clone()]));
    // Into another directory: durable with the first of the two that is synced.
    fs.rename(path, Path::new("/e/there")).unwrap();
    sync_dir(&fs, "/e");
    assert_eq!(outcomes(&fs, names), BTreeSet::from([vec!["/e/there".to_owned()]]));
    fs.remove_file(Path::new("/e/there")).unwrap();
    assert_eq!(outcomes(&fs, names).len(), 2);
    sync_dir(&fs, "/e");
    assert_eq!(outcomes(&fs, names), BTreeSet::from([vec![]]));
}

#[test]
fn later_changes_may_last_without_earlier_ones() {
    let fs = disk();
    let (a, b) = (create(&fs, "/d/a"), create(&fs, "/d/b"));
    let found = outcomes(&fs, |fs| names(fs).len());
    assert_eq!(found, BTreeSet::from([0, 1, 2]));
    drop((a, b));
    assert!(outcomes(&fs, names).contains(&vec!["/d/b".to_owned()]));
}

#[test]
fn a_directory_goes_file_by_file() {
    let fs = disk();
    fs.create_dir_all(Path::new("/d/x/y")).unwrap();
    create(&fs, "/d/x/y/1");
    create(&fs, "/d/x/2");
    for dir in ["/d", "/d/x", "/d/x/y"] {
        sync_dir(&fs, dir);
    }
    assert_eq!(outcomes(&fs, |fs| names(fs).len()), BTreeSet::from([2]));
    fs.remove_dir_all(Path::new("/d/x")).unwrap();
    assert_eq!(outcomes(&fs, |fs| names(fs).len()), BTreeSet::from([0, 1, 2]));
    assert!(fs.kind(Path::new("/d/x")).unwrap().is_none());
}

#[test]
fn a_sync_that_forgets_succeeds_the_next_time_and_what_it_forgot_is_lost() {
    let fs = disk();
    let file = create(&fs, FILE);
    sync_dir(&fs, "/d");
    file.write_all_at(&[7; 4096], 0).unwrap();
    fs.fail(Fault::on(Op::Sync).times(1).trouble(Trouble::Forgotten));
    assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(EIO));
    file.sync().unwrap();
    let mut seen = [0; 4096];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(seen, [7; 4096], "as if nothing had happened");
    let found = outcomes(&fs, |fs| fs.read(Path::new(FILE)));
    assert_eq!(found.len(), 1, "nothing is left to the crash");
    let lost = (0..50).any(|seed| {
        let fs = SimFs::new(seed).with_dir(Path::new("/d"));
        let file = create(&fs, FILE);
        file.write_all_at(&[7; 4096], 0).unwrap();
        fs.fail(Fault::on(Op::Sync).times(1).trouble(Trouble::Forgotten));
        file.sync().unwrap_err();
        file.sync().unwrap();
        sync_dir(&fs, "/d");
        fs.crash_losing_all().read(Path::new(FILE)) != [7; 4096]
    });
    assert!(lost);
}

#[test]
fn a_sync_of_a_directory_that_forgets_loses_some_names_for_good_and_succeeds_the_next_time() {
    let lived = |seed| {
        let fs = SimFs::new(seed).with_dir(Path::new("/d")).with_dir(Path::new("/e"));
        create(&fs, "/e/other");
        create(&fs, "/d/a").sync().unwrap();
        sync_dir(&fs, "/d");
        fs.rename(Path::new("/d/a"), Path::new("/d/b")).unwrap();
        create(&fs, "/d/c");
        fs.fail(Fault::on(Op::SyncDir).times(1).trouble(Trouble::Forgotten));
        assert_eq!(fs.sync_dir(Path::new("/d")).unwrap_err().raw_os_error(), Some(EIO));
        sync_dir(&fs, "/d");
        assert_eq!(names(&fs), ["/d/b", "/d/c", "/e/other"], "as if nothing had happened");
        assert_eq!(names(&fs.kill()).len(), 3);
        sync_dir(&fs, "/e");
        let found = outcomes(&fs, names);
        assert_eq!(found.len(), 1, "nothing is left to the crash");
        found.into_iter().next().unwrap()
    };
    let found: BTreeSet<_> = (0..50).map(lived).collect();
    let of = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let all = [
        of(&["/d/a", "/d/c", "/e/other"]),
        of(&["/d/a", "/e/other"]),
        of(&["/d/b", "/d/c", "/e/other"]),
        of(&["/d/b", "/e/other"]),
    ];
    assert_eq!(found, BTreeSet::from(all));
}

#[test]
fn a_sector_that_was_synced_can_be_as_it_was_before() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let fs = SimFs::new(seed).with_dir(Path::new("/d"));
        let file = create(&fs, FILE);
        file.write_all_at(&[1; 1024], 0).unwrap();
        file.sync().unwrap();
        sync_dir(&fs, "/d");
        file.write_all_at(&[2; 600], 200).unwrap();
        file.sync().unwrap();
        let disk = fs.crash(&mut Dice::new(seed));
        if let Some(start) = disk.take_back(Path::new(FILE)) {
            let bytes = disk.read(Path::new(FILE));
            let sector = &bytes[start as usize..start as usize + 512];
            let (second, first) = (sector.iter().all(|b| *b == 1), sector.iter().all(|b| *b == 0));
            assert!(bytes.len() == 1024 && (second || first), "{start}");
            seen.insert((start, second));
            assert_eq!(disk.take_back(Path::new(FILE)), None, "once");
        }
    }
    assert_eq!(seen, BTreeSet::from([(0, true), (512, true), (0, false), (512, false)]));
}

#[test]
fn a_bit_turns_under_who_has_the_file_open_and_what_is_not_synced_stays_so() {
    let fs = disk();
    let file = create(&fs, FILE);
    file.write_all_at(&[0; 8], 0).unwrap();
    file.sync().unwrap();
    sync_dir(&fs, "/d");
    file.write_all_at(&[7; 4], 8).unwrap();
    assert!(fs.turn(Path::new(FILE), 1, 2) && fs.turn(Path::new(FILE), 9, 0));
    assert!(!fs.turn(Path::new(FILE), 12, 0), "there is none");
    assert_eq!(fs.read(Path::new(FILE)), [0, 4, 0, 0, 0, 0, 0, 0, 7, 6, 7, 7]);
    assert_eq!(fs.crash_losing_all().read(Path::new(FILE)), [0, 4, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn what_is_away_is_missing_renamed_or_unplugged() {
    let fs = disk();
    let (file, path, dir) = (create(&fs, FILE), Path::new(FILE), Path::new("/d"));
    let mut bytes = [0; 1];
    let errno = |e: std::io::Error| (e.kind(), e.raw_os_error());
    let missing = (std::io::ErrorKind::NotFound, None);
    fs.take_away(dir, Away::Renamed);
    file.write_all_at(&[1], 0).unwrap();
    file.sync().unwrap();
    assert_eq!((file.len().unwrap(), file.read_at(&mut bytes, 0).unwrap()), (1, 1));
    assert_eq!(fs.open(path, OpenMode::Read).map(drop).map_err(errno), Err(missing));
    assert_eq!(fs.sync_dir(dir).map_err(errno), Err(missing));
    fs.heal();
    fs.take_away(dir, Away::Unplugged);
    assert_eq!(file.read_at(&mut bytes, 0).unwrap_err().raw_os_error(), Some(EIO));
    assert_eq!(fs.kind(path).unwrap_err().raw_os_error(), Some(EIO));
    assert_eq!(fs.space(path).unwrap_err().raw_os_error(), Some(EIO));
    fs.heal();
    fs.take_away(dir, Away::Missing);
    assert_eq!(file.len().map_err(errno), Err(missing));
    fs.heal();
    assert_eq!(fs.read(path), [1]);
}

#[test]
fn what_asks_only_can_fail_as_well() {
    let fs = disk();
    let file = create(&fs, FILE);
    for op in [Op::Len, Op::Space, Op::Canonical, Op::Random, Op::Kind, Op::Lock] {
        fs.fail(Fault::on(op).times(1));
    }
    let path = Path::new(FILE);
    assert!(file.len().is_err() && file.allocated().is_ok());
    assert!(fs.space(path).is_err() && fs.canonical(path).is_err() && fs.random().is_err());
    assert!(fs.kind(path).is_err() && fs.try_lock(path).is_err());
    assert!(fs.space(path).is_ok() && fs.canonical(path).is_ok() && fs.random().is_ok());
}

#[test]
fn short_and_interrupted_calls_are_gone_on_with() {
    let fs = disk();
    let file = create(&fs, FILE);
    let bytes: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    fs.fail(Fault::on_any(&[Op::Read, Op::Write]).times(9).trouble(Trouble::Short));
    fs.fail(Fault::on_any(&[Op::Read, Op::Write]).after(1).times(2).errno(EINTR));
    file.write_all_at(&bytes, 5).unwrap();
    assert!(fs.calls(Op::Write) > 3);
    let mut back = vec![0; 10_000];
    file.read_exact_at(&mut back, 5).unwrap();
    assert_eq!(back, bytes);
    assert!(file.read_exact_at(&mut back, 6).is_err(), "the end of the file is no short read");
}

#[test]
fn a_disk_that_is_full_or_away_says_so() {
    let fs = disk();
    fs.set_room(Path::new("/d"), Some(1000));
    let file = create(&fs, FILE);
    file.write_all_at(&[1; 900], 0).unwrap();
    let e = file.write_all_at(&[1; 200], 900).unwrap_err();
    assert_eq!(
        (e.kind(), file.len().unwrap()),
        (std::io::ErrorKind::StorageFull, 1000),
        "what fits is there"
    );
    assert!(file.allocate(1001).is_err());
    file.write_all_at(&[2; 1000], 0).unwrap();
    create(&fs, "/e/file").write_all_at(&[1; 5000], 0).unwrap();
    assert_eq!(fs.space(Path::new("/d/x")).unwrap().free, 0);
    fs.take_away(Path::new("/d"), Away::Missing);
    assert!(file.write_all_at(&[1], 0).is_err());
    assert!(fs.open(Path::new(FILE), OpenMode::Read).is_err());
    assert_eq!(fs.kind(Path::new(FILE)).unwrap(), None);
    assert!(fs.read_dir(Path::new("/e")).is_ok());
    fs.heal();
    assert_eq!(fs.read(Path::new(FILE)), [2; 1000]);
}

#[test]
fn a_clone_is_of_the_moment_before_a_change_and_shares_nothing() {
    let fs = disk();
    let file = create(&fs, FILE);
    sync_dir(&fs, "/d");
    fs.crash_at(fs.changes() + 3, 7);
    for n in 1..5u8 {
        file.write_all_at(&[n], 0).unwrap();
        file.sync().unwrap();
    }
    let taken = fs.taken();
    assert_eq!(taken.len(), 1);
    // The third change is the second write.
    assert_eq!(taken[0].1.read(Path::new(FILE)), [1]);
    let last: Vec<Op> = taken[0].1.recent().iter().map(|change| change.0).collect();
    assert_eq!(last, [Op::Create, Op::SyncDir, Op::Write, Op::Sync, Op::Write], "with the one not made");
    fs.stop_after(fs.changes());
    assert!(file.write_all_at(&[9], 0).is_err());
    assert!(file.sync().is_err());
    taken[0].1.open(Path::new(FILE), OpenMode::ReadWrite).unwrap().write_all_at(&[5], 0).unwrap();
    assert!([4, 9].contains(&fs.read(Path::new(FILE))[0]));
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let run = |seed| {
        let fs = SimFs::new(3).with_dir(Path::new("/d"));
        let file = create(&fs, FILE);
        for n in 0..20 {
            file.write_all_at(&[n; 700], u64::from(n) * 700).unwrap();
        }
        sync_dir(&fs, "/d");
        fs.crash(&mut Dice::new(seed)).read(Path::new(FILE))
    };
    assert!((0..50).all(|seed| run(seed) == run(seed)));
    assert!((1..50).any(|seed| run(seed) != run(0)));
}

#[test]
fn a_lock_is_held_by_one_and_ends_with_its_holder() {
    let fs = disk();
    let path = Path::new("/d/lock");
    let held = fs.try_lock(path).unwrap();
    assert!(held.is_some() && fs.try_lock(path).unwrap().is_none());
    assert!(fs.kill().try_lock(path).unwrap().is_some(), "locks end with the process");
    drop(held);
    assert!(fs.try_lock(path).unwrap().is_some());
}

#[test]
fn a_map_has_what_was_written_before_it_was_published() {
    assert!(create(&disk(), FILE).map(4096).unwrap().is_none(), "only where it is asked for");
    let fs = disk().with_maps();
    let file = create(&fs, FILE);
    file.allocate(4096).unwrap();
    file.write_all_at(&[1; 100], 0).unwrap();
    let map = file.map(4096).unwrap().unwrap();
    assert!(map.slice(0..1).is_none());
    map.publish(100);
    let first = map.slice(0..100).unwrap();
    file.write_all_at(&[2; 100], 100).unwrap();
    map.publish(200);
    map.publish(150);
    assert_eq!((first, map.slice(99..101).unwrap()), (&[1; 100][..], &[1, 2][..]));
    assert!(map.slice(100..201).is_none());
    map.publish(1 << 20);
    assert_eq!((map.published(), map.slice(4095..4096).unwrap()), (4096, &[0][..]));
    assert_eq!((fs.mapped(), fs.kill().mapped()), (1, 0));
    drop(file);
    fs.remove_file(Path::new(FILE)).unwrap();
    assert_eq!(map.slice(0..2).unwrap(), [1, 1], "as long as it is held");
}
