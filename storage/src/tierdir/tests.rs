//! Directories of a tier: limits, shares, and how they fail and come back.

use super::*;
use crate::clock::ManualClock;
use crate::container::{Containers, Known};
use crate::vfs::RealFs;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn context(home: &Path, limits: &[Option<u64>]) -> (TierContext, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(1_000_000));
    let dir = |(no, limit): (usize, &Option<u64>)| {
        let path = home.join(no.to_string());
        std::fs::create_dir_all(&path).unwrap();
        TierDir { no: no as u16, path, limit: *limit, older: None, anchor: None }
    };
    let ctx = TierContext {
        vfs: Arc::new(RealFs),
        clock: clock.clone(),
        store: [1; 16],
        containers: Arc::new(Containers::new(1)),
        dirs: limits.iter().enumerate().map(dir).collect(),
        known: Vec::new(),
        unknown: Unknown::Delete,
    };
    (ctx, clock)
}

const RULES: Rules = Rules { tier: Tier::Ssd, folder: "things", free_reserve: None };

fn io_error() -> Error {
    Error::io("write", Path::new("x"), io::Error::other("test"))
}

#[test]
fn among_equally_free_directories_the_faster_is_taken() {
    let home = tempfile::tempdir().unwrap();
    let (ctx, _) = context(home.path(), &[Some(MIB); 3]);
    let dirs = Dirs::open(&ctx, RULES, |_| 0).unwrap();
    let order = || {
        let mut taken = Vec::new();
        while let Ok(dir) = dirs.choose(1, Purpose::Write, &taken) {
            taken.push(dir.no);
        }
        taken
    };
    assert_eq!(order(), [0, 1, 2]);
    dirs[1].note_speed(1000, 100);
    dirs[2].note_speed(3000, 100);
    assert_eq!(order(), [2, 1, 0]);
    for _ in 0..20 {
        dirs[1].note_speed(200, 4);
    }
    assert_eq!(order(), [2, 1, 0], "80 ms are too short to tell");
    dirs[1].note_speed(200_000, 20);
    assert_eq!(order(), [1, 2, 0]);
    let held = dirs[1].lease(1 << 18);
    assert_eq!(order(), [2, 0, 1], "room comes before speed");
    dirs.failed(&dirs[2], &io_error());
    assert_eq!(order(), [0, 1]);
    drop(held);
    assert_eq!(order(), [1, 0]);
}

#[test]
fn a_claim_stays_within_limit_reserve_and_quarantine() {
    let home = tempfile::tempdir().unwrap();
    let (ctx, _) = context(home.path(), &[Some(MIB)]);
    let dirs = Dirs::open(&ctx, RULES, |limit| limit / 4).unwrap();
    let dir = &dirs[0];
    assert_eq!((dir.room(Purpose::Write), dir.room(Purpose::Reclaim)), (3 * MIB / 4, MIB));
    assert!(matches!(dir.claim(3 * MIB / 4 + 1, Purpose::Write), Err(Error::NoSpace { limit: MIB, .. })));
    assert_eq!(dirs.usage(0).occupied, 0, "what is refused does not count");
    dir.claim(3 * MIB / 4, Purpose::Write).unwrap();
    assert!(dir.claim(1, Purpose::Write).is_err());
    let raw = RawRecord { path: "seg".into(), offset: 0, bytes: vec![1; 1000] };
    dir.keep_damaged(&raw, "test", None);
    assert_eq!(dirs.usage(7), Usage { occupied: 3 * MIB / 4 + 1000, limit: Some(MIB), written: 7 });
    assert!(dir.claim(MIB / 4, Purpose::Reclaim).is_err(), "the quarantine takes room too");
    dir.claim(MIB / 4 - 1000, Purpose::Reclaim).unwrap();
    dir.keep_damaged(&raw, "test", None);
    assert_eq!(dirs.usage(0).occupied, MIB, "what does not fit is not kept");
    dir.change(MIB / 2, 0);
    assert_eq!(dir.room(Purpose::Reclaim), MIB / 2);
}

#[test]
fn what_a_reader_holds_takes_room_beyond_its_removal() {
    let home = tempfile::tempdir().unwrap();
    let (ctx, _) = context(home.path(), &[Some(MIB)]);
    let dirs = Dirs::open(&ctx, RULES, |_| 0).unwrap();
    let lease = dirs[0].lease(MIB / 2);
    let reader = lease.clone();
    lease.removed();
    lease.removed();
    drop(lease);
    assert_eq!((dirs.usage(0).occupied, dirs[0].room(Purpose::Write)), (0, MIB / 2));
    assert!(dirs[0].claim(MIB / 2 + 1, Purpose::Reclaim).is_err());
    drop(reader);
    assert_eq!(dirs[0].room(Purpose::Write), MIB);
    drop(dirs[0].lease(MIB / 2));
    assert_eq!((dirs.usage(0).occupied, dirs[0].room(Purpose::Write)), (0, MIB));
}

#[test]
fn the_second_failure_in_a_row_takes_the_only_directory_out_and_a_probe_brings_it_back() {
    let home = tempfile::tempdir().unwrap();
    let (ctx, clock) = context(home.path(), &[Some(MIB)]);
    let dirs = Dirs::open(&ctx, RULES, |_| 0).unwrap();
    let full = Error::io("write", Path::new("x"), io::ErrorKind::StorageFull.into());
    for e in [full, dirs.no_space(1), Error::Busy("test")] {
        dirs.failed(&dirs[0], &e);
        dirs.failed(&dirs[0], &e);
        assert!(dirs[0].in_service(), "{e}");
    }
    dirs.failed(&dirs[0], &io_error());
    dirs[0].wrote(1, dirs[0].now());
    dirs.failed(&dirs[0], &io_error());
    assert!(dirs[0].in_service(), "they are not in a row");
    dirs.failed(&dirs[0], &io_error());
    assert!(matches!(dirs.choose(1, Purpose::Reclaim, &[]), Err(Error::OutOfService { .. })));
    assert!(dirs.status()[0].out_of_service.as_ref().unwrap().contains("test"));
    clock.advance(RETRY_MS - 1);
    dirs.retry();
    assert!(!dirs[0].in_service());
    clock.advance(1);
    let folder = home.path().join("0/things");
    std::fs::rename(&folder, home.path().join("aside")).unwrap();
    dirs.retry();
    assert!(!dirs[0].in_service(), "the probe fails");
    std::fs::rename(home.path().join("aside"), &folder).unwrap();
    std::fs::write(folder.join(PROBE), b"left by a crash").unwrap();
    dirs.retry();
    assert!(!dirs[0].in_service(), "it was tried just now");
    clock.advance(RETRY_MS);
    dirs.retry();
    assert!(dirs[0].in_service());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    dirs.failed(&dirs[0], &io_error());
    assert!(dirs[0].in_service(), "it begins anew");
}

#[test]
fn a_failing_directory_goes_at_once_where_there_is_another() {
    let home = tempfile::tempdir().unwrap();
    let (ctx, _) = context(home.path(), &[Some(MIB), None]);
    let dirs = Dirs::open(&ctx, RULES, |_| 0).unwrap();
    assert_eq!(dirs.limit(), None);
    dirs.failed(&dirs[0], &io_error());
    assert!(!dirs[0].in_service());
    dirs.failed(&dirs[1], &io_error());
    assert!(dirs[1].in_service(), "the last one has a second chance");
    assert_eq!(dirs.choose(1, Purpose::Write, &[]).unwrap().no, 1);
    assert!(dirs.choose(1, Purpose::Write, &[1]).unwrap_err().is_no_space());
}

#[test]
fn the_free_space_reserve_stays_free() {
    let home = tempfile::tempdir().unwrap();
    let (ctx, _) = context(home.path(), &[None]);
    let free = ctx.vfs.space(home.path()).unwrap().free;
    let rules = Rules { free_reserve: Some(free / 2), ..RULES };
    let dirs = Dirs::open(&ctx, rules, |_| 0).unwrap();
    dirs[0].claim(1, Purpose::Write).unwrap();
    let e = dirs.choose(free / 2 + free / 4, Purpose::Write, &[]).unwrap_err();
    assert!(e.is_no_space() && matches!(e, Error::Io { .. }), "{e}");
    assert!(dirs[0].claim(free / 2 + free / 4, Purpose::Reclaim).is_err());
    assert_eq!(dirs.usage(0).occupied, 1);
}

#[test]
fn looking_only_makes_no_folder() {
    let home = tempfile::tempdir().unwrap();
    let (mut ctx, _) = context(home.path(), &[None]);
    ctx.unknown = Unknown::Ignore;
    Dirs::open(&ctx, RULES, |_| 0).unwrap();
    assert_eq!(std::fs::read_dir(home.path().join("0")).unwrap().count(), 0);
    ctx.unknown = Unknown::Attach;
    Dirs::open(&ctx, RULES, |_| 0).unwrap();
    assert!(home.path().join("0/things").is_dir());
}

#[test]
fn what_belongs_to_a_directory_that_is_away_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let (mut ctx, _) = context(home.path(), &[None]);
    let known = |no: u16| Known {
        no,
        id: 40 + u64::from(no),
        tier: Tier::Ssd,
        dir: no,
        created_ms: 0,
        records: 0,
        earliest_expiry: u64::MAX,
    };
    ctx.known = vec![known(0), known(7)];
    let dirs = Dirs::open(&ctx, RULES, |_| 0).unwrap();
    assert_eq!(
        [40, 47, 99].map(|id| dirs[0].unknown(id)),
        [Unknown::Delete, Unknown::Leave, Unknown::Delete]
    );
    ctx.unknown = Unknown::Attach;
    let dirs = Dirs::open(&ctx, RULES, |_| 0).unwrap();
    assert_eq!(dirs[0].unknown(47), Unknown::Attach, "the catalog is lost, and with it what is away");
}
