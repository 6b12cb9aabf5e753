//! Where the socket is, whose it is, and how it is found.

use super::*;

#[test]
fn the_socket_is_the_owners_alone_whatever_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    stored(dir.path(), 10);
    let _holder = Holder::start(dir.path());
    let meta = fs::symlink_metadata(socket(dir.path())).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    assert_eq!(meta.uid(), rustix::process::geteuid().as_raw());
}

/// A killed process leaves its socket. It means nothing to whoever comes next.
#[test]
fn a_socket_that_a_kill_left_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    stored(root, 10);
    Holder::start(root).end(Signal::KILL);
    let left = fs::symlink_metadata(socket(root)).unwrap();
    assert!(left.file_type().is_socket());
    assert!(matches!(find(root), Err(Error::NoSocket { .. })));
    // Nobody has it open: it is read, and nothing of it changed.
    let verified = json(&command(&["verify", "--json"], root));
    assert_eq!((&verified["clean"], &verified["open_elsewhere"]), (&true.into(), &Value::Null));
    assert_eq!(fs::symlink_metadata(socket(root)).unwrap().ino(), left.ino());
    let cache = Cache::builder().memory(MIB).root(root).open().unwrap();
    assert_eq!(find(root).unwrap().stat().unwrap()["items"], 10);
    // Nor does a crash in this process take it away.
    cache.crash();
    assert!(fs::symlink_metadata(socket(root)).unwrap().file_type().is_socket());
    // In a directory that is no longer the first, too.
    let more = dir.path().join("more");
    let again = Cache::builder().memory(MIB).ssd(&more, 64 * MIB).ssd(root.join("ssd"), 64 * MIB);
    let again = again.hdd(root.join("hdd"), 64 * MIB).cold(root.join("cold")).open().unwrap();
    assert!(more.join("socket").exists() && !socket(root).exists());
    let dirs = [root.join("ssd"), more.clone()];
    assert_eq!(OpenStore::find(&dirs).unwrap().socket(), more.join("socket"));
    again.close().unwrap();
    assert!(!more.join("socket").exists());
}

/// Closing removes it first, while the store still has its locks.
#[test]
fn a_process_killed_after_it_removed_its_socket_leaves_a_store_that_answers() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    stored(root, 10);
    let holder = Holder::start(root);
    fs::remove_file(socket(root)).unwrap();
    // Until it ends, it has the store, and nobody can ask it.
    assert!(matches!(find(root), Err(Error::NoSocket { .. })));
    refused_as_locked(root, "no socket to ask it by");
    holder.end(Signal::KILL);
    assert!(!socket(root).exists());
    let verified = json(&command(&["verify", "--json"], root));
    assert_eq!((&verified["clean"], &verified["items"]), (&true.into(), &10.into()));
    let cache = Cache::builder().memory(MIB).root(root).open().unwrap();
    let store = find(root).unwrap();
    assert_eq!(store.stat().unwrap()["items"], 10);
    assert_eq!(keys(&store, "k").len(), 10);
    cache.close().unwrap();
    assert!(!socket(root).exists());
}

/// Of a store that is open and has no socket, nothing is told: it is in use, and why nobody can be asked.
fn refused_as_locked(root: &Path, why: &str) {
    for args in [&["stat"][..], &["stat", "--json"], &["ls"], &["ls", "--long"], &["verify"]] {
        let refused = command(args, root);
        assert_eq!(code(&refused), Some(3), "{args:?}: {}", err(&refused));
        assert!(refused.stdout.is_empty() || args.contains(&"--json"), "{args:?}: {refused:?}");
        assert!(err(&refused).contains("in use by another process"), "{args:?}: {}", err(&refused));
        assert!(err(&refused).contains(why), "{args:?}: {}", err(&refused));
    }
}

#[test]
fn a_path_too_long_for_an_address_is_none_the_worse() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("l".repeat(120)).join("m".repeat(120));
    stored(&root, 10);
    let holder = Holder::start(&root);
    assert!(socket(&root).as_os_str().len() > 240);
    assert_eq!(json(&command(&["stat", "--json"], &root))["items"], 10);
    holder.end(Signal::TERM);
    assert!(!socket(&root).exists());
}

#[test]
fn what_is_no_socket_is_left_alone_and_the_store_opens_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    stored(root, 10);
    let at = socket(root);
    let victim = root.join("victim");
    fs::write(&victim, "precious").unwrap();
    type Make<'a> = Box<dyn Fn() + 'a>;
    let in_the_way: [(&str, Make<'_>); 4] = [
        ("file", Box::new(|| fs::write(&at, "text").unwrap())),
        ("directory", Box::new(|| fs::create_dir(&at).unwrap())),
        ("link", Box::new(|| symlink(&victim, &at).unwrap())),
        ("link to nowhere", Box::new(|| symlink(root.join("nowhere"), &at).unwrap())),
    ];
    for (what, make) in &in_the_way {
        make();
        let before = fs::symlink_metadata(&at).unwrap();
        let cache = Cache::builder().memory(MIB).root(root).open().unwrap();
        assert_eq!(cache.get("k1").unwrap(), Some(value(1, 1, 300)), "{what}");
        assert!(matches!(find(root), Err(Error::NoSocket { .. })), "{what}");
        // A command that cannot ask says so.
        refused_as_locked(root, "no socket to ask it by");
        cache.close().unwrap();
        let after = fs::symlink_metadata(&at).unwrap();
        assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()), "{what}");
        assert!(!root.join("nowhere").exists());
        if after.is_dir() { fs::remove_dir(&at).unwrap() } else { fs::remove_file(&at).unwrap() }
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn there_is_none_where_the_configuration_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder().memory(MIB).root(dir.path()).socket(false).open().unwrap();
    assert!(!socket(dir.path()).exists());
    refused_as_locked(dir.path(), "storage.socket = false");
    cache.close().unwrap();
}

/// Another user, as a thread of this process: credentials are the thread's.
fn as_nobody<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|s| {
        s.spawn(|| {
            let nobody = rustix::process::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            act()
        })
        .join()
        .unwrap()
    })
}

/// Even where the modes would let him.
#[test]
fn another_user_is_not_answered_and_not_asked() {
    if !rustix::process::geteuid().is_root() {
        thermocline_testing::skipped("that another user is not answered: run as root, who can be another");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let cache = Cache::builder().memory(MIB).root(root).open().unwrap();
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    // With its modes he does not come there.
    let refused = as_nobody(|| OpenStore::find([root.join("ssd")]).map(drop));
    assert!(matches!(refused, Err(Error::NotYours { .. })), "{refused:?}");
    open(root, 0o777);
    open(&root.join("ssd"), 0o777);
    let refused = as_nobody(|| OpenStore::find([root.join("ssd")]).map(drop));
    assert!(matches!(refused, Err(Error::NotYours { .. })), "{refused:?}");
    open(&socket(root), 0o777);
    let answer = as_nobody(|| ask(root, &question("{\"ask\":\"stat\"}")));
    assert_eq!(answer, None);
    assert!(ask(root, &question("{\"ask\":\"stat\"}")).is_some());
    cache.close().unwrap();
    // He puts a socket of his own there.
    let listener = as_nobody(|| UnixListener::bind(socket(root)).unwrap());
    let asked = find(root);
    assert!(
        matches!(&asked, Err(e @ Error::NotYours { .. }) if e.to_string().contains("user 65534")),
        "{asked:?}"
    );
    drop(listener);
}

/// A socket on which somebody listens, who is none of the engine's: he has the name, and the store does without.
#[test]
fn a_socket_that_is_alive_is_somebody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    stored(root, 10);
    let listener = UnixListener::bind(socket(root)).unwrap();
    let other = UnixListener::bind(root.join("hdd/socket")).unwrap();
    let inode = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
    let before = (inode(&socket(root)), inode(&root.join("hdd/socket")));
    let cache = Cache::builder().memory(MIB).root(root).open().unwrap();
    assert_eq!(cache.get("k1").unwrap(), Some(value(1, 1, 300)));
    cache.close().unwrap();
    assert_eq!((inode(&socket(root)), inode(&root.join("hdd/socket"))), before);
    // They are still heard.
    for (listener, at) in [(listener, socket(root)), (other, root.join("hdd/socket"))] {
        listener.set_nonblocking(true).unwrap();
        while listener.accept().is_ok() {}
        UnixStream::connect(at).unwrap();
        listener.accept().unwrap();
    }
    // Once they are gone, theirs is replaced.
    let cache = Cache::builder().memory(MIB).root(root).open().unwrap();
    assert_eq!(find(root).unwrap().stat().unwrap()["items"], 10);
    assert!(!root.join("hdd/socket").exists());
    cache.close().unwrap();
}

#[test]
fn a_store_is_not_made_around_somebodys_socket() {
    let dir = tempfile::tempdir().unwrap();
    let ssd = dir.path().join("ssd");
    fs::create_dir(&ssd).unwrap();
    let _listener = UnixListener::bind(ssd.join("socket")).unwrap();
    let refused = command(&["put", "k", "--create"], dir.path());
    assert_eq!(code(&refused), Some(2), "{}", err(&refused));
    assert!(err(&refused).contains("socket is in it"), "{}", err(&refused));
}

#[test]
fn directories_of_two_stores_are_refused_whoever_has_them_open() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    stored(&a, 10);
    stored(&b, 20);
    let options = [("--ssd", a.join("ssd")), ("--hdd", b.join("hdd")), ("--cold", a.join("cold"))];
    let options = options.each_ref().map(|(option, path)| (*option, path.as_path()));
    let closed = with(&["stat"], &options);
    assert_eq!(code(&closed), Some(2), "{}", err(&closed));
    let _cache = Cache::builder().memory(MIB).root(&a).open().unwrap();
    for args in [&["stat"][..], &["ls"], &["verify"], &["top", "--once"]] {
        let open = with(args, &options);
        assert_eq!(code(&open), Some(2), "{args:?}: {}", err(&open));
        assert!(err(&open).contains("another store"), "{args:?}: {}", err(&open));
    }
}

#[test]
fn a_store_that_was_opened_without_a_directory_can_be_asked_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    stored(root, 10);
    fs::rename(root.join("hdd"), root.join("away")).unwrap();
    let cache = Cache::builder().memory(MIB).root(root).without_missing(true).open().unwrap();
    let asked = json(&command(&["stat", "--json", "--without-missing"], root));
    assert_eq!(asked["open_elsewhere"]["process"], std::process::id());
    // Without the option a directory that is not there is no slip of the pen that goes unnoticed.
    assert_eq!(code(&command(&["stat"], root)), Some(3));
    let mistyped = [("--ssd", root.join("ssd")), ("--hdd", root.join("hdq")), ("--cold", root.join("cold"))];
    let mistyped = mistyped.each_ref().map(|(option, path)| (*option, path.as_path()));
    let refused = with(&["stat", "--without-missing"], &mistyped);
    assert_eq!(code(&refused), Some(3), "{}", err(&refused));
    cache.close().unwrap();
}

/// The socket is in one directory, and whoever names another of the store finds it all the same.
#[test]
fn any_directory_of_the_store_leads_to_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    stored(root, 10);
    let _cache = Cache::builder().memory(MIB).root(root).open().unwrap();
    let store = OpenStore::find([root.join("cold")]).unwrap();
    assert_eq!((store.socket(), &store.stat().unwrap()["items"]), (&*socket(root), &10.into()));
    let hdd = root.join("hdd");
    let ran = with(&["top", "--json", hdd.to_str().unwrap()], &[]);
    assert_eq!(json(&ran)["figures"]["items"], 10);
}
