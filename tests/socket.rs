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
    assert_eq!(store.history(10).unwrap(), Value::Array(vec![]));
    assert!(store.verify(|_| {}).unwrap().is_clean(), "the place of a verification is free again");
}

#[test]
fn closing_ends_what_is_under_way() {
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
                    while ask().is_ok() {}
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(60));
        let began = Instant::now();
        cache.close().unwrap();
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        asking.into_iter().for_each(|t| t.join().unwrap());
        assert!(!socket(dir.path()).exists());
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
        b"TC\x01\x03\x1d\0\0\0{\"unread\":0,\"next\":{\"shard\":0}}".to_vec(),
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
        assert!(failed.is_err(), "answer {no}");
    }
    server.join().unwrap();
}
