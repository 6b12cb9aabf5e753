//! What other processes may ask of a store that is open, over the socket in its directory; and what they may not.

#![cfg(test)]

mod common;

use common::value;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use thermocline::remote::{Error, OpenStore};
use thermocline::{Cache, Cost, Tier};

const MIB: u64 = 1 << 20;

fn command(args: &[&str], root: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
    command.args(args).arg("--root").arg(root).stdin(Stdio::null()).output().unwrap()
}

fn code(ran: &Output) -> Option<i32> {
    ran.status.code()
}

fn err(ran: &Output) -> String {
    String::from_utf8_lossy(&ran.stderr).into_owned()
}

fn json(ran: &Output) -> Value {
    assert_eq!(code(ran), Some(0), "{}", err(ran));
    serde_json::from_slice(&ran.stdout).unwrap()
}

/// Another process that has a store open.
struct Holder {
    child: Child,
}

impl Holder {
    /// Of a store that is there.
    fn start(root: &Path) -> Holder {
        let exe = env!("CARGO_BIN_EXE_thermocline");
        // A umask that would let everybody in.
        let mut command = Command::new("sh");
        command.args(["-c", "umask 0; exec \"$0\" serve-metrics 0 --root \"$1\"", exe]).arg(root);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("serving "), "{line}");
        Holder { child }
    }

    fn end(mut self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A closed store of items `k0`, `k1` … in all disk tiers.
fn stored(root: &Path, items: u64) {
    let cache = Cache::builder().memory(MIB).root(root).open().unwrap();
    for no in 0..items {
        cache.put(format!("k{no}"), value(no, 1, 300)).unwrap();
    }
    cache.demote("k1", Tier::Hdd).unwrap();
    cache.demote("k2", Tier::Cold).unwrap();
    cache.close().unwrap();
}

fn socket(root: &Path) -> PathBuf {
    root.join("ssd/socket")
}

fn find(root: &Path) -> Result<OpenStore, Error> {
    OpenStore::find([root.join("ssd")])
}

fn keys(store: &OpenStore, prefix: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let unread = store.list(prefix.as_bytes(), |item| {
        assert!(keys.insert(String::from_utf8(item.key).unwrap()), "it was there twice");
        ControlFlow::Continue(())
    });
    assert_eq!(unread.unwrap(), 0);
    keys
}

#[test]
fn stat_ls_and_verify_ask_the_process_that_has_the_store_open() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    stored(&root, 300);
    let before = json(&command(&["stat", "--json"], &root));
    assert_eq!(before["open_elsewhere"], Value::Null);
    let holder = Holder::start(&root);

    let stat = json(&command(&["stat", "--json"], &root));
    assert_eq!(stat["open_elsewhere"]["process"], holder.child.id());
    assert_eq!((&stat["items"], &stat["tiers"]["hdd"]["items"]), (&300.into(), &1.into()), "{stat:#}");
    // The same fields, whoever is asked.
    let fields = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(&stat), fields(&before));
    assert_eq!(fields(&stat["tiers"]["ssd"]), fields(&before["tiers"]["ssd"]));
    let text = command(&["stat"], &root);
    assert!(String::from_utf8_lossy(&text.stdout).contains("300 items in all"), "{text:?}");
    assert!(err(&text).contains(&format!("open in process {}", holder.child.id())), "{text:?}");

    let listed = command(&["ls"], &root);
    assert_eq!(code(&listed), Some(0), "{}", err(&listed));
    let all: BTreeSet<String> =
        String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(all, (0..300).map(|no| format!("k{no}")).collect());
    let long = command(&["ls", "k2", "--long", "--json"], &root);
    let rows: Vec<Value> =
        String::from_utf8(long.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows.len(), 111);
    let k2 = rows.iter().find(|r| r["key"] == "k2").unwrap();
    assert_eq!((&k2["tier"], &k2["bytes"]), (&"cold".into(), &300.into()));

    let verified = json(&command(&["verify", "--json"], &root));
    assert_eq!((&verified["clean"], &verified["items"]), (&true.into(), &300.into()), "{verified:#}");
    assert_eq!(verified["open_elsewhere"]["process"], holder.child.id());

    // What would change something has to have the store.
    for args in [&["get", "k1"][..], &["rm", "k1"], &["verify", "--repair"], &["stat", "--discard-missing"]] {
        let refused = command(args, &root);
        assert_eq!(code(&refused), Some(3), "{args:?}: {}", err(&refused));
    }
    holder.end(Signal::TERM);
    assert!(!socket(&root).exists());
    assert_eq!(json(&command(&["stat", "--json"], &root))["items"], 300);
}

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

#[test]
fn what_is_damaged_is_told_and_not_condemned() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder().memory(MIB).root(dir.path()).open().unwrap();
    for no in 0..50 {
        cache.put(format!("key-{no:03}"), value(no, 1, 400)).unwrap();
    }
    cache.flush().unwrap();
    let segments = fs::read_dir(dir.path().join("ssd/segments")).unwrap().map(|e| e.unwrap().path());
    let (path, at) = segments
        .filter_map(|path| {
            let bytes = fs::read(&path).unwrap();
            let at = bytes.windows(7).position(|w| w == b"key-042")?;
            Some((path, at as u64))
        })
        .next()
        .unwrap();
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, at + 60).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[byte[0] ^ 1], at + 60).unwrap();
    let before = cache.stats();
    let store = find(dir.path()).unwrap();
    for _ in 0..2 {
        let mut progress = 0;
        let report = store.verify(|p| progress = p.done).unwrap();
        assert_eq!((report.items, report.findings.len()), (49, 1), "{report:?}");
        let finding = &report.findings[0];
        assert_eq!((finding.key.as_deref(), finding.cost), (Some(&b"key-042"[..]), Cost::Lost(1)));
        assert_eq!((finding.tier, &finding.path), (Some(Tier::Ssd), &path));
        assert!(progress <= 50);
    }
    assert_eq!(keys(&store, "key-04"), (40..50).map(|no| format!("key-{no:03}")).collect());
    let ran = command(&["verify"], dir.path());
    assert_eq!(code(&ran), Some(1));
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(
        text.contains("lost: key-042 (ssd record in ") && text.contains("Once the store is closed,"),
        "{text}"
    );
    // Nothing of it counted as a use, or as damage.
    let after = cache.stats();
    assert_eq!(after.counts, before.counts);
    assert_eq!(fs::read_dir(dir.path().join("ssd/quarantine")).map_or(0, Iterator::count), 0);
    // A verification of its own condemns it.
    assert_eq!(cache.verify().unwrap().damaged.len(), 1);
    assert_eq!(store.verify(|_| {}).unwrap().findings.len(), 0);
}

#[test]
fn what_has_expired_is_not_listed_and_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = Cache::builder().memory(MIB).root(dir.path());
    builder.config_mut().storage.reap_interval = 86_400;
    let cache = builder.open().unwrap();
    let short = thermocline::PutOptions::new().ttl(Duration::from_millis(1));
    cache.put("stays", "1").unwrap();
    cache.put_with("goes", "2", short).unwrap();
    cache.flush().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let (items, expired) = (cache.stats().items, cache.stats().counts.expired);
    let store = find(dir.path()).unwrap();
    assert_eq!(keys(&store, ""), BTreeSet::from(["stays".to_owned()]));
    assert_eq!(store.verify(|_| {}).unwrap().items, 1);
    let now = cache.stats();
    assert_eq!((now.items, now.counts.expired), (items, expired));
}

#[test]
fn a_long_list_comes_in_pages_and_each_key_comes_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder().memory(16 * MIB).root(dir.path()).open().unwrap();
    let long = "x".repeat(600);
    for no in 0..6_000 {
        cache.put(format!("{no}/{long}"), "v").unwrap();
    }
    cache.put("other", "v").unwrap();
    let store = find(dir.path()).unwrap();
    // While others write and read.
    let list = std::thread::scope(|s| {
        let writer = s.spawn(|| {
            for no in 0..500 {
                cache.put(format!("new/{no}"), "v").unwrap();
                assert!(cache.get(format!("{no}/{long}")).unwrap().is_some());
            }
        });
        let list = keys(&store, "");
        writer.join().unwrap();
        list
    });
    assert_eq!(list.iter().filter(|k| !k.starts_with("new/")).count(), 6_001);
    assert_eq!(keys(&store, "oth"), BTreeSet::from(["other".to_owned()]));
    assert_eq!(keys(&store, "none").len(), 0);
}

/// A question, as it stands on the wire.
fn question(json: &str) -> Vec<u8> {
    let mut frame = b"TC\x01\x01".to_vec();
    frame.extend((json.len() as u32).to_le_bytes());
    frame.extend(json.bytes());
    frame
}

/// The kind of the last frame of an answer, and all of its bytes; `None`: nothing came.
fn ask(root: &Path, bytes: &[u8]) -> Option<(u8, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket(root)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // Whoever is refused in the middle need not have been read to the end.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let (mut at, mut last) = (0, None);
    while let Some(head) = answer.get(at..at + 8) {
        assert_eq!(&head[..3], b"TC\x01");
        last = Some(head[3]);
        at += 8 + u32::from_le_bytes(head[4..].try_into().unwrap()) as usize;
    }
    assert_eq!(at, answer.len(), "it does not end with a frame");
    last.map(|kind| (kind, answer))
}

#[test]
fn garbage_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder().memory(MIB).root(dir.path()).open().unwrap();
    cache.put("k", "secret value").unwrap();
    cache.flush().unwrap();
    let before = cache.stats().counts;
    let deep = question(&"[".repeat(70_000));
    let huge = [b"TC\x01\x01".as_slice(), &u32::MAX.to_le_bytes()].concat();
    let over = [b"TC\x01\x01".as_slice(), &81_921u32.to_le_bytes()].concat();
    let not_utf8 = [b"TC\x01\x01\x02\0\0\0".as_slice(), b"\xff\xfe"].concat();
    let prefix = format!("{{\"ask\":\"list\",\"prefix\":\"{}\"}}", "00".repeat(32_769));
    let odd: Vec<Vec<u8>> = vec![
        b"GET /metrics HTTP/1.1\r\n\r\n".to_vec(),
        b"TC\x02\x01\0\0\0\0".to_vec(),
        b"TC\x01\x03\0\0\0\0".to_vec(),
        b"TC\x01\x07\0\0\0\0".to_vec(),
        huge,
        over,
        deep,
        not_utf8,
        question(""),
        question("null"),
        question("{\"ask\":\"put\",\"key\":\"6b\",\"value\":\"76\"}"),
        question("{\"ask\":\"get\",\"key\":\"6b\"}"),
        question("{\"ask\":[\"stat\"]}"),
        question("{\"ask\":\"list\"}"),
        question("{\"ask\":\"list\",\"prefix\":\"6\"}"),
        question("{\"ask\":\"list\",\"prefix\":\"zz\"}"),
        question("{\"ask\":\"list\",\"prefix\":7}"),
        question(&prefix),
    ];
    for bytes in &odd {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let began = Instant::now();
        let (kind, answer) = ask(dir.path(), bytes).unwrap_or_else(|| panic!("{shown}: no answer"));
        assert_eq!(kind, 4, "{shown}: {}", String::from_utf8_lossy(&answer));
        // Of what is refused by its head the rest is not waited for.
        assert!(began.elapsed() < Duration::from_secs(4), "{shown}: {:?}", began.elapsed());
    }
    // A place in a list that there is none of is the end of the list.
    for place in ["\"shard\":18446744073709551615", "\"shard\":255,\"after\":18446744073709551615"] {
        let (kind, answer) =
            ask(dir.path(), &question(&format!("{{\"ask\":\"list\",\"prefix\":\"\",{place}}}"))).unwrap();
        assert!(
            kind == 3 && !answer.windows(5).any(|w| w == b"items"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    for question in ["{\"ask\":\"stat\"}", "{\"ask\":\"list\",\"prefix\":\"\"}", "{\"ask\":\"verify\"}"] {
        let (kind, answer) = ask(dir.path(), &self::question(question)).unwrap();
        assert!(kind == 3 && !answer.windows(6).any(|w| w == b"secret"), "{question}");
    }
    assert_eq!(cache.stats().counts, before);
    assert_eq!(cache.get("k").unwrap().as_deref(), Some(&b"secret value"[..]));
}

#[test]
fn who_stalls_keeps_nobody_waiting_for_long_and_close_waits_for_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder().memory(64 * MIB).root(dir.path()).open().unwrap();
    for no in 0..4_000 {
        cache.put(format!("{no}/{}", "y".repeat(2_000)), "v").unwrap();
    }
    cache.flush().unwrap();
    let connect = || UnixStream::connect(socket(dir.path())).unwrap();
    // Three that send nothing, or not all of it, and one that asks for much and reads nothing.
    let mut silent = [connect(), connect(), connect(), connect()];
    silent[1].write_all(b"TC\x01\x01\x20").unwrap();
    silent[3].write_all(&question("{\"ask\":\"list\",\"prefix\":\"\"}")).unwrap();
    let store = find(dir.path()).unwrap();
    let began = Instant::now();
    assert_eq!(store.stat().unwrap()["items"], 4_000);
    // All places were taken; each is free after five seconds.
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    for stream in &mut silent[..3] {
        stream.set_read_timeout(Some(Duration::from_secs(9))).unwrap();
        let mut nothing = Vec::new();
        assert_eq!(stream.read_to_end(&mut nothing).unwrap(), 0);
    }
    // Reads and writes go on all the while.
    let _silent = [connect(), connect(), connect(), connect(), connect()];
    assert!(cache.get(format!("7/{}", "y".repeat(2_000))).unwrap().is_some());
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    cache.close().unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(matches!(find(dir.path()), Err(Error::NoSocket { .. })));
}

#[test]
fn many_ask_at_once_and_all_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder().memory(MIB).root(dir.path()).open().unwrap();
    cache.put_many((0..2_000).map(|no| (format!("k{no}"), value(no, 1, 500)))).unwrap();
    let store = find(dir.path()).unwrap();
    std::thread::scope(|s| {
        for no in 0..24 {
            let store = &store;
            s.spawn(move || match no % 3 {
                0 => assert_eq!(store.stat().unwrap()["items"], 2_000),
                1 => assert_eq!(keys(store, "k").len(), 2_000),
                _ => match store.verify(|_| {}) {
                    Ok(report) => assert!(report.is_clean()),
                    Err(Error::Refused { why, .. }) => {
                        assert!(why.contains("one verification at a time"), "{why}");
                    }
                    Err(e) => panic!("{e}"),
                },
            });
        }
    });
    assert!(store.verify(|_| {}).unwrap().is_clean(), "the place of a verification is free again");
}

#[test]
fn closing_ends_what_is_under_way() {
    let mut cut_short = 0;
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::builder().memory(MIB).root(dir.path()).open().unwrap();
        cache.put_many((0..3_000).map(|no| (format!("k{no}"), value(no, 1, 2_000)))).unwrap();
        cache.flush().unwrap();
        let store = find(dir.path()).unwrap();
        let asking: Vec<_> = (0..3)
            .map(|no| {
                let store = store.clone();
                std::thread::spawn(move || {
                    let ask = || match no {
                        0 => store.verify(|_| {}).map(drop),
                        1 => store.list(b"", |_| ControlFlow::Continue(())).map(drop),
                        _ => store.stat().map(drop),
                    };
                    loop {
                        // Not one that found nobody: one that was answered, and then was not any more.
                        match ask() {
                            Ok(()) => {}
                            Err(Error::NoSocket { .. }) => return false,
                            Err(_) => return no == 0,
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(60));
        let began = Instant::now();
        cache.close().unwrap();
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        cut_short += asking.into_iter().filter_map(|t| t.join().unwrap().then_some(())).count();
        assert!(!socket(dir.path()).exists());
    }
    assert!(cut_short > 0, "no verification was under way");
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
        let refused = command(&["stat"], root);
        assert_eq!(code(&refused), Some(3), "{what}: {}", err(&refused));
        assert!(err(&refused).contains("in use by another process"), "{}", err(&refused));
        assert!(err(&refused).contains("no socket to ask it by"), "{}", err(&refused));
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
    let refused = command(&["verify"], dir.path());
    assert_eq!(code(&refused), Some(3));
    assert!(err(&refused).contains("storage.socket = false"), "{}", err(&refused));
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

/// What listens and answers with nonsense is an error, not a panic, nor a wait for ever.
#[test]
fn who_asks_believes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let answers: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"nonsense nonsense".to_vec(),
        b"TC\x09\x03\x02\0\0\0{}".to_vec(),
        [b"TC\x01\x03".as_slice(), &u32::MAX.to_le_bytes()].concat(),
        b"TC\x01\x03\x02\0\0\0{".to_vec(),
        b"TC\x01\x03\x02\0\0\0{{".to_vec(),
        b"TC\x01\x01\x02\0\0\0{}".to_vec(),
        b"TC\x01\x04\x02\0\0\0{}".to_vec(),
        b"TC\x01\x03\x02\0\0\0{}".to_vec(),
        b"TC\x01\x03\x1f\0\0\0{\"unread\":0,\"next\":{\"shard\":0}}".to_vec(),
        b"TC\x01\x02\x0e\0\0\0{\"finding\":{}}".to_vec(),
    ];
    let count = answers.len();
    let server = std::thread::spawn(move || {
        for answer in answers {
            // `find` connects once, to see who it is; then the question.
            drop(listener.accept().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 8];
            stream.read_exact(&mut head).unwrap();
            let mut body = vec![0; u32::from_le_bytes(head[4..].try_into().unwrap()) as usize];
            stream.read_exact(&mut body).unwrap();
            let _ = stream.write_all(&answer);
        }
    });
    for no in 0..count {
        let store = OpenStore::find([dir.path()]).unwrap();
        let failed = if no == count - 1 {
            store.verify(|_| {}).map(drop)
        } else {
            store.list(b"", |_| ControlFlow::Continue(())).map(drop)
        };
        let failed = failed.expect_err(&format!("answer {no}"));
        // Two that are whole frames, and of which nothing but what they say is wrong.
        if no == count - 2 {
            assert!(failed.to_string().contains("a page is before the one before"), "{failed}");
        } else if no == count - 1 {
            assert!(failed.to_string().contains("a finding is none"), "{failed}");
        }
    }
    server.join().unwrap();
}

fn frame(kind: u8, json: &str) -> Vec<u8> {
    [&[b'T', b'C', 1, kind], (json.len() as u32).to_le_bytes().as_slice(), json.as_bytes()].concat()
}

/// A server that answers each question with the next of these, the last of them again and again where that is so, until it is
/// not listened to any more.
fn false_server(dir: &Path, answers: Vec<(Vec<u8>, bool)>) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(dir.join("socket")).unwrap();
    std::thread::spawn(move || {
        for (answer, again) in answers {
            // `find` connects once, to see who it is; then the question.
            drop(listener.accept().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 8];
            stream.read_exact(&mut head).unwrap();
            let mut body = vec![0; u32::from_le_bytes(head[4..].try_into().unwrap()) as usize];
            stream.read_exact(&mut body).unwrap();
            while stream.write_all(&answer).is_ok() && again {}
        }
    })
}

/// Another user's process may be asked, by root, and says what it likes: none of that is for the terminal to obey.
#[test]
fn what_is_said_has_nothing_in_it_that_a_terminal_obeys() {
    let dir = tempfile::tempdir().unwrap();
    let evil = "\\u001b]52;c;x\\u0007\\u009b2J\\u202e";
    let finding = format!(
        "{{\"finding\":{{\"tier\":\"ssd\",\"path\":\"/a{evil}\",\"key\":null,\"why\":\"{evil}\",\"lost\":true}}}}"
    );
    let end = "{\"items\":1,\"bytes\":1,\"containers\":1,\"unwritten\":0}";
    let figures = format!("{{\"{evil}\":[\"{evil}\"]}}");
    let server = false_server(
        dir.path(),
        vec![
            (frame(4, &format!("{{\"error\":\"{evil}\"}}")), false),
            ([frame(2, &finding), frame(3, end)].concat(), false),
            (frame(3, &figures), false),
            (frame(4, &format!("{{\"error\":\"{evil}\"}}")), false),
        ],
    );
    let ask = || OpenStore::find([dir.path()]).unwrap();
    let harmless = |text: &str| {
        assert!(text.contains("\\x1b]52;c;x\\x07\\xc2\\x9b2J\\xe2\\x80\\xae"), "{text:?}");
        assert!(!text.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']), "{text:?}");
    };
    harmless(&ask().stat().unwrap_err().to_string());
    let report = ask().verify(|_| {}).unwrap();
    harmless(&report.findings[0].why);
    harmless(report.findings[0].path.to_str().unwrap());
    let figures = ask().stat().unwrap();
    let (name, value) = figures.as_object().unwrap().iter().next().unwrap();
    harmless(name);
    harmless(value[0].as_str().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
    let ran = command.args(["top", "--json"]).arg(dir.path()).stdin(Stdio::null()).output().unwrap();
    assert_eq!(code(&ran), Some(3));
    harmless(&err(&ran));
    server.join().unwrap();
}

/// An answer without an end takes neither time nor memory without one.
#[test]
fn who_is_sent_more_than_there_can_be_does_not_take_it() {
    let dir = tempfile::tempdir().unwrap();
    let items = frame(2, &format!("{{\"items\":[\"{}\"]}}", "x".repeat(1 << 20)));
    let finding = frame(
        2,
        &format!(
            "{{\"finding\":{{\"tier\":\"ssd\",\"path\":\"\",\"key\":null,\"why\":\"{}\",\"lost\":true}}}}",
            "x".repeat(15 << 20)
        ),
    );
    let nothing = frame(2, "{}");
    let server = false_server(
        dir.path(),
        vec![(nothing.clone(), true), (nothing, true), (items, true), (finding, true)],
    );
    let ask = || OpenStore::find([dir.path()]).unwrap();
    let began = Instant::now();
    let failed = [
        ask().stat().map(drop),
        ask().history(1).map(drop),
        ask().list(b"", |_| ControlFlow::Continue(())).map(drop),
        ask().verify(|_| {}).map(drop),
    ];
    for failed in failed {
        assert!(matches!(failed, Err(Error::Nonsense { .. })), "{failed:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    server.join().unwrap();
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

/// The command with these options, which name a store.
fn with(args: &[&str], options: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
    command.args(args);
    for (option, path) in options {
        command.arg(option).arg(path);
    }
    command.stdin(Stdio::null()).output().unwrap()
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

/// What the optimizer did is told with what it went by, and what came of it.
#[test]
fn the_history_says_what_was_done_why_and_what_came_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let cache = Cache::builder().memory(MIB).root(root).open().unwrap();
    let store = find(root).unwrap();
    assert_eq!(store.history(10).unwrap(), Value::Array(vec![]));
    let closed = with(&["history"], &[("--root", &root.join("none"))]);
    assert_eq!(code(&closed), Some(3), "{}", err(&closed));
    for turn in 0..4 {
        for no in 0..300 {
            cache.put(format!("k{no}"), value(no, turn, 9_000)).unwrap();
        }
        // Enough that some of them are timed.
        for no in 0..9_000 {
            assert!(cache.get(format!("k{}", no % 300)).unwrap().is_some());
        }
        std::thread::sleep(Duration::from_millis(30));
        cache.optimizer().run_once().unwrap();
    }
    let turns = store.history(10).unwrap();
    let turns = turns.as_array().unwrap();
    assert!(turns.len() >= 3, "{turns:#?}");
    let times: Vec<u64> = turns.iter().map(|t| t["unix_ms"].as_u64().unwrap()).collect();
    assert!(times.is_sorted() && times[0] > 1_700_000_000_000, "{times:?}");
    let last = &turns[turns.len() - 1];
    assert_eq!((&last["inputs"]["puts"], &last["inputs"]["gets"]), (&300.into(), &9_000.into()), "{last:#}");
    assert!(last["inputs"]["p99_seconds"].as_f64().is_some_and(|s| s > 0.0), "{last:#}");
    let of_memory = last["inputs"]["hit_shares"]["memory"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&of_memory), "{last:#}");
    // Of what was done the next turn has measured the goal; so it is here, where something was.
    for turn in turns.iter().rev().skip(1) {
        let done = turn["actions"].as_array().unwrap().iter().any(|a| a["error"].is_null());
        assert_eq!(turn["effects"].as_array().unwrap().is_empty(), !done, "{turn:#}");
    }
    assert_eq!(store.history(2).unwrap().as_array().unwrap().len(), 2);
    assert_eq!(store.history(2).unwrap()[1], *last);
    // The command says the same.
    let said = json(&command(&["history", "--json", "-n", "2"], root));
    assert_eq!(said["turns"], store.history(2).unwrap());
    let text = command(&["history", "-n", "2"], root);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert_eq!(text.lines().filter(|l| l.contains("strategy ")).count(), 2, "{text}");
    assert!(text.contains("9,000 gets") && text.contains("p99 "), "{text}");
    cache.close().unwrap();
}

/// Records move, are overwritten, removed and made room for while they are verified: none of that is damage, and nothing of it
/// is held up.
#[test]
fn a_verification_beside_all_that_moves_finds_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder()
        .memory(MIB)
        .ssd(dir.path().join("ssd"), 8 * MIB)
        .hdd(dir.path().join("hdd"), 8 * MIB)
        .cold(dir.path().join("cold"))
        .open()
        .unwrap();
    let store = OpenStore::find([dir.path().join("ssd")]).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let over = || done.load(std::sync::atomic::Ordering::SeqCst);
    std::thread::scope(|s| {
        for writer in 0..2u64 {
            let (cache, over) = (&cache, &over);
            s.spawn(move || {
                let mut no = writer;
                while !over() {
                    no += 2;
                    cache.put(format!("k{}", no % 3_000), value(no, no % 5, 6_000)).unwrap();
                    match no % 11 {
                        0 => drop(cache.remove(format!("k{}", no * 7 % 3_000)).unwrap()),
                        1 => drop(cache.demote(format!("k{}", no * 3 % 3_000), Tier::Cold)),
                        2 => drop(cache.get(format!("k{}", no * 5 % 3_000)).unwrap()),
                        _ => {}
                    }
                }
            });
        }
        let began = Instant::now();
        let (mut looks, mut items) = (0, 0);
        while looks < 5 || began.elapsed() < Duration::from_secs(4) {
            let report = store.verify(|_| {});
            let report =
                report.inspect_err(|_| done.store(true, std::sync::atomic::Ordering::SeqCst)).unwrap();
            if !report.is_clean() {
                done.store(true, std::sync::atomic::Ordering::SeqCst);
            }
            assert!(report.is_clean(), "{report:?}");
            (looks, items) = (looks + 1, items + report.items);
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(items > 1_000, "{items}");
    });
    let stats = cache.stats();
    assert_eq!((stats.counts.damaged, stats.counts.unreachable), (0, 0));
    assert!(stats.counts.moved_bytes > 0, "nothing moved: it says nothing");
    cache.close().unwrap();
}

/// What was not read is said not to have been.
#[test]
fn what_waits_to_be_written_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder()
        .memory(16 * MIB)
        .root(dir.path())
        .persistence(thermocline::config::Persistence::OnEviction)
        .open()
        .unwrap();
    for no in 0..7 {
        cache.put(format!("k{no}"), "v").unwrap();
    }
    let report = find(dir.path()).unwrap().verify(|_| {}).unwrap();
    assert_eq!((report.items, report.unwritten, report.is_clean()), (0, 7, true));
    let told = json(&command(&["verify", "--json"], dir.path()));
    assert_eq!((&told["unwritten"], &told["clean"]), (&7.into(), &true.into()));
    let text = command(&["verify"], dir.path());
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("not looked at: 7 items"), "{text}");
    cache.close().unwrap();
}
