use super::*;
use crate::vfs::{DirEntry, Map, OpenMode, RealFs, Space, VfsFile, VfsLock};
use std::fs;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use tempfile::TempDir;

/// Passes on to the real file system until told to stop or to fail.
#[derive(Debug)]
struct Fs(Arc<Fault>);

type Rule = Box<dyn Fn(&str, &Path) -> Option<io::ErrorKind> + Send + Sync>;

struct Fault {
    /// Changes left before everything fails.
    left: AtomicI64,
    rule: Mutex<Rule>,
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fault")
    }
}

impl Fault {
    fn change(&self, op: &str, path: &Path) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(io::Error::other("stopped"));
        }
        self.look(op, path)
    }

    fn look(&self, op: &str, path: &Path) -> io::Result<()> {
        if self.left.load(Ordering::SeqCst) < 0 {
            return Err(io::Error::other("stopped"));
        }
        (self.rule.lock().unwrap())(op, path).map_or(Ok(()), |kind| Err(kind.into()))
    }
}

impl Fs {
    fn stopping_after(changes: i64) -> Arc<Fs> {
        let rule: Rule = Box::new(|_, _| None);
        Arc::new(Fs(Arc::new(Fault { left: AtomicI64::new(changes), rule: Mutex::new(rule) })))
    }

    fn with_rule(rule: impl Fn(&str, &Path) -> Option<io::ErrorKind> + Send + Sync + 'static) -> Arc<Fs> {
        let fs = Fs::stopping_after(i64::MAX);
        *fs.0.rule.lock().unwrap() = Box::new(rule);
        fs
    }

    fn changes(&self) -> i64 {
        i64::MAX - self.0.left.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct FsFile(Arc<dyn VfsFile>, PathBuf, Arc<Fault>);

impl VfsFile for FsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.2.look("read", &self.1)?;
        self.0.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let result = self.2.change("write", &self.1);
        if result.is_err() {
            // Torn: the first half arrives.
            self.0.write_all_at(&buf[..buf.len() / 2], offset)?;
            return result;
        }
        self.0.write_all_at(buf, offset)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.2.change("sync", &self.1)?;
        self.0.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn allocated(&self) -> io::Result<u64> {
        self.0.allocated()
    }
    fn map(&self, len: u64) -> io::Result<Option<Map>> {
        self.0.map(len)
    }
}

impl Vfs for Fs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        match mode {
            OpenMode::Read => self.0.look("open", path)?,
            OpenMode::ReadWrite => self.0.change("open", path)?,
            OpenMode::CreateNew => self.0.change("create", path)?,
        }
        Ok(Arc::new(FsFile(RealFs.open(path, mode)?, path.to_path_buf(), self.0.clone())))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.change("mkdir", path)?;
        RealFs.create_dir_all(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.look("list", path)?;
        RealFs.read_dir(path)
    }
    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        self.0.look("kind", path)?;
        RealFs.kind(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.change("rename", to)?;
        RealFs.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.change("remove", path)?;
        RealFs.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.change("rmdir", path)?;
        RealFs.remove_dir_all(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.change("syncdir", path)?;
        RealFs.sync_dir(path)
    }
    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        self.0.change("lock", path)?;
        RealFs.try_lock(path)
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        RealFs.canonical(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        RealFs.space(path)
    }
}

struct Bench {
    tmp: TempDir,
    request: HomeRequest,
}

/// `ssd`, `hdd` and `cold` under a temporary directory.
fn bench() -> Bench {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().canonicalize().unwrap();
    let dirs = Tier::DISK.map(|tier| WantedDir { tier, path: root.join(tier.name()).join("cache") }).to_vec();
    Bench { tmp, request: HomeRequest { dirs, catalog: None, flags: OpenFlags::default() } }
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().canonicalize().unwrap().join(name)
    }
    fn dir(&self, at: usize) -> &Path {
        &self.request.dirs[at].path
    }
    fn open(&self) -> Result<Home> {
        Home::open(Arc::new(RealFs), &self.request)
    }
    fn with(&self, change: impl FnOnce(&mut HomeRequest)) -> Result<Home> {
        let mut request = self.request.clone();
        change(&mut request);
        Home::open(Arc::new(RealFs), &request)
    }
    /// One whole life of a writing process; its counter.
    fn live(&self) -> u64 {
        let mut home = self.open().unwrap();
        home.begin_writing().unwrap();
        home.finish().unwrap();
        home.open_counter()
    }
    /// All files and directories with their contents.
    fn tree(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn walk(dir: &Path, out: &mut Vec<(PathBuf, Vec<u8>)>) {
            for e in fs::read_dir(dir).unwrap().map(|e| e.unwrap()) {
                if e.file_type().unwrap().is_dir() {
                    out.push((e.path(), Vec::new()));
                    walk(&e.path(), out);
                } else {
                    out.push((e.path(), fs::read(e.path()).unwrap_or_default()));
                }
            }
        }
        let mut out = Vec::new();
        walk(self.tmp.path(), &mut out);
        out.sort();
        out
    }
    fn unmount(&self, at: usize) -> PathBuf {
        let aside = self.path(&format!("aside-{at}"));
        fs::rename(self.dir(at), &aside).unwrap();
        aside
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for e in fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        let target = to.join(e.file_name());
        if e.file_type().unwrap().is_dir() {
            copy_dir(&e.path(), &target);
        } else {
            fs::copy(e.path(), target).unwrap();
        }
    }
}

fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[40] ^= 1;
    fs::write(path, bytes).unwrap();
}

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
    drop(home);
    fs::remove_file(b.dir(1).join("lock")).unwrap();
    assert!(matches!(b.with(read), Err(Error::BadDirectory { path, .. }) if path == b.dir(1)));
    b.open().unwrap();
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
    let whole = Fs::stopping_after(i64::MAX);
    drop(Home::open(whole.clone(), &b.request).unwrap());
    let changes = whole.changes();
    for dir in ["ssd", "hdd", "cold"] {
        fs::remove_dir_all(b.path(dir)).unwrap();
    }
    fs::create_dir_all(b.dir(0)).unwrap();
    fs::create_dir_all(b.path("cold")).unwrap();
    assert!(b.tree() == before && changes > 15);
    for n in 0..changes {
        let count = AtomicI64::new(0);
        let fs = Fs::with_rule(move |op, _| {
            let changes = ["mkdir", "lock", "syncdir", "create", "write", "sync", "rename"].contains(&op);
            (changes && count.fetch_add(1, Ordering::SeqCst) == n).then_some(io::ErrorKind::Other)
        });
        assert!(Home::open(fs, &b.request).is_err(), "change {n}");
        assert!(b.tree() == before, "after change {n}: {:?}", b.tree());
    }
}

#[test]
fn a_lack_of_permission_names_path_and_cure() {
    let b = bench();
    b.live();
    for (failing, open_works) in [("lock", false), ("open", false), ("create", true)] {
        let hdd = b.dir(1).to_path_buf();
        let fs = Fs::with_rule(move |op, path| {
            (op == failing && path.starts_with(&hdd)).then_some(io::ErrorKind::PermissionDenied)
        });
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
    copy_dir(b.dir(1), &b.path("image"));
    b.live();
    fs::remove_dir_all(b.dir(1)).unwrap();
    fs::rename(b.path("image"), b.dir(1)).unwrap();
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
fn discarding_stopped_before_the_new_identity_is_written_goes_on() {
    let b = bench();
    b.live();
    copy_dir(b.dir(1), &b.path("image"));
    b.live();
    fs::remove_dir_all(b.dir(1)).unwrap();
    fs::rename(b.path("image"), b.dir(1)).unwrap();
    let hdd = b.dir(1).to_path_buf();
    let fs = Fs::with_rule(move |op, path| {
        (op == "create" && path.starts_with(&hdd)).then_some(io::ErrorKind::Other)
    });
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
    let rebuilt = b
        .with(|r| {
            r.flags.rebuild_catalog = true;
            r.dirs.push(WantedDir { tier: Tier::Cold, path: b.path("more") });
        })
        .unwrap();
    assert_eq!((rebuilt.discarded(), rebuilt.dirs()[3].no), ([2].as_slice(), 4));
}

#[test]
fn rebuilding_goes_above_every_counter_and_takes_no_directory_for_new() {
    let b = bench();
    b.live();
    let catalog = b.dir(0).join("catalog");
    fs::remove_dir_all(&catalog).unwrap();
    let paths = identity_paths(b.dir(2));
    let own = read_pair(&RealFs, &paths, true).unwrap().best.unwrap();
    write_pair(&RealFs, &paths, 0, &Record { edition: 0, counter: 50, ..own }).unwrap();
    let rebuild = |r: &mut HomeRequest| r.flags.rebuild_catalog = true;
    assert_eq!(b.with(rebuild).unwrap().open_counter(), 51);
    for copy in identity_paths(b.dir(1)) {
        fs::remove_file(copy).unwrap();
    }
    assert!(b.dir(1).join("lock").exists());
    assert!(matches!(b.with(rebuild), Err(Error::MissingDirectory { path, .. }) if path == b.dir(1)));
}

#[test]
fn everything_is_synced_in_its_order() {
    let b = bench();
    let calls: Arc<Mutex<Vec<(String, PathBuf)>>> = Arc::default();
    let log = calls.clone();
    let vfs = Fs::with_rule(move |op, path| {
        log.lock().unwrap().push((op.to_owned(), path.to_path_buf()));
        None
    });
    let mut home = Home::open(vfs, &b.request).unwrap();
    home.begin_writing().unwrap();
    let calls = calls.lock().unwrap();
    let first = |op: &str, path: &Path| {
        calls.iter().position(|(o, p)| o == op && p == path).unwrap_or_else(|| panic!("{op} {path:?}"))
    };
    let mut last = 0;
    for (at, dir) in home.dirs().iter().enumerate() {
        let marked = first("lock", &dir.path.join("lock"));
        let synced =
            calls.iter().skip(marked).position(|(o, p)| o == "syncdir" && *p == dir.path).unwrap() + marked;
        let manifests = manifest_paths(home.catalog_dir()).map(|p| {
            assert!(
                first("rename", &p)
                    < calls.iter().rposition(|(o, d)| o == "syncdir" && d == p.parent().unwrap()).unwrap()
            );
            first("rename", &p)
        });
        let [a, z] = identity_paths(&dir.path).map(|p| first("rename", &p));
        assert!(
            synced < manifests[0] && manifests[0] < manifests[1] && manifests[1] < a && a < z,
            "directory {at}"
        );
        assert!(last < a);
        last = z;
    }
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

#[test]
fn a_full_disk_does_not_keep_the_counter_from_rising() {
    let b = bench();
    b.live();
    let full = |op: &str, path: &Path| {
        (op == "write" && path.extension().is_some_and(|e| e == "tmp")).then_some(io::ErrorKind::StorageFull)
    };
    let mut home = Home::open(Fs::with_rule(full), &b.request).unwrap();
    home.finish().unwrap();
    let used = home.open_counter();
    drop(home);
    assert!(b.tree().iter().all(|(p, _)| p.extension().is_none_or(|e| e != "tmp")));
    let mut home = b.open().unwrap();
    assert_eq!(home.open_counter(), used + 1);
    home.finish().unwrap();
}

/// The identities and the counter must be whole after a stop at any change, whether or not the disk is full.
fn stopped_everywhere(prepare: impl Fn(&Bench), full: bool) {
    let mut n = 0;
    loop {
        let b = bench();
        prepare(&b);
        let fs = Fs::stopping_after(n);
        if full {
            *fs.0.rule.lock().unwrap() = Box::new(|op, path| {
                let tmp = path.extension().is_some_and(|e| e == "tmp");
                (op == "write" && tmp).then_some(io::ErrorKind::StorageFull)
            });
        }
        let before = read_pair(&RealFs, &identity_paths(b.dir(1)), true).unwrap().best;
        // The counter may be used once `begin_writing` has returned.
        let mut used = before.as_ref().map_or(0, |r| r.counter);
        let mut finished = before.is_some();
        let result = Home::open(fs.clone(), &b.request).and_then(|mut home| {
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
        },
        true,
    );
}
