//! `verify` and `verify --repair` on real directories, with sled.

use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use thermocline::{Persistence, Tier};

const ITEMS: usize = 60;

/// A store of all tiers, closed, with every index written.
fn store() -> Place {
    let place = Place::new();
    let open = || {
        let mut builder = Cache::builder().root(&place.root).persistence(Persistence::EverySecond);
        let config = builder.config_mut();
        config.storage.generation_size = Some(1 << 20);
        // So that a value can be found in the file.
        (config.ssd.compression, config.hdd.compression, config.cold.compression) = (false, false, false);
        builder.open().unwrap()
    };
    let cache = open();
    for no in 0..ITEMS {
        let key = format!("key-{no}");
        let value = format!("value {no} ").repeat(100 + no * 20);
        cache.put(&key, value).unwrap();
    }
    cache.flush().unwrap();
    for no in 0..ITEMS {
        let tier = [Tier::Ssd, Tier::Hdd, Tier::Cold][no % 3];
        cache.demote(format!("key-{no}"), tier).unwrap();
    }
    cache.close().unwrap();
    drop(cache);
    // The index of the last generation may be left to the opening that follows.
    let begun = Instant::now();
    while some_file(&place.root, "seal").is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no index is written");
        let cache = open();
        std::thread::sleep(Duration::from_millis(200));
        cache.close().unwrap();
    }
    place
}

fn files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below).unwrap().flatten() {
        let path = entry.path();
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&path).into_iter().chain([path])),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn some_file(root: &Path, part: &str) -> Option<PathBuf> {
    files(root).into_iter().find(|p| p.is_file() && p.to_string_lossy().contains(part))
}

/// Of every file and directory: its mode, when it was changed, and its bytes.
fn picture(root: &Path) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
    let look = |path: PathBuf| {
        let meta = fs::symlink_metadata(&path).unwrap();
        let bytes = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        (path, (meta.mode(), meta.mtime(), meta.mtime_nsec(), bytes))
    };
    files(root).into_iter().map(look).collect()
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// Turns a bit where these bytes are found in the file, so far behind their beginning.
fn flip(path: &Path, near: &[u8], behind: isize) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(near.len().max(1)).position(|w| w.starts_with(near));
    let at = at.unwrap_or_else(|| panic!("{}: {near:?} is not in it", path.display()));
    bytes[at.checked_add_signed(behind).unwrap()] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Of each kind of file: a part of its path, what is flipped, what `verify` calls it, and whether an item is lost.
const KINDS: &[(&str, &[u8], isize, &str, bool)] = &[
    ("ssd/store.a", b"counter", 9, "identity", false),
    ("cold/store.b", b"store", 9, "identity", false),
    ("catalog/a/manifest", b"state", 7, "manifest", false),
    ("catalog/a/checkpoint-", b"TCCB", 9, "checkpoint", false),
    ("catalog/b/checkpoint-", b"TCCB", 9, "checkpoint", false),
    ("catalog/b/journal-", b"TCJF", 9, "journal", false),
    ("segments/seg-", b"TCSEGMNT", 33, "header", false),
    ("segments/seg-", b"TCSEGEND", 33, "footer", false),
    ("segments/seg-", b"TCSEGEND", 0, "footer", false),
    ("segments/seg-", b"TCSEGEND", -1, "footer", false),
    ("segments/seg-", b"value 30 value 30", 8, "record", true),
    ("segments/seg-", b"key-30", 5, "record", true),
    ("/values-0000", b"TCV1", 9, "header", false),
    ("/values-0000", b"TCB1", 33, "block", false),
    ("/values-0000", b"value 31 value 31", 8, "record", true),
    ("/seal", b"TCS1", 9, "index", false),
    ("/index-0000/db", b"", 300, "index", false),
    ("/packs/pack-", b"thermocline-pack", 3, "header", false),
    ("/packs/pack-", b"PK\x01\x02", 47, "directory", false),
    ("/packs/pack-", b"PK\x05\x06", 1, "directory", false),
    ("/packs/pack-", b"value 32 value 32", 8, "record", true),
];

#[test]
fn each_kind_of_file_is_checked_named_and_mended() {
    let whole = store();
    whole.run(&["verify"]).with(0);
    for (part, near, behind, called, lost) in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { root: dir.path().join("store"), _dir: dir };
        copy(&whole.root, &place.root);
        // The identity has a file in each directory; of containers the one that has the bytes.
        let has = |p: &PathBuf| {
            p.is_file()
                && p.to_string_lossy().contains(part)
                && fs::read(p).unwrap().windows(near.len().max(1)).any(|w| w.starts_with(near))
        };
        // Of an item that was moved the older copies may still be there: it is lost with the newest.
        let mut holders = files(&place.root).into_iter().filter(has);
        let path = if *lost { holders.next_back() } else { holders.next() };
        let path = path.unwrap_or_else(|| panic!("{part}: {} is nowhere", near.escape_ascii()));
        flip(&path, near, *behind);
        let what = format!("{called} in {}", path.display());
        let before = picture(&place.root);
        let json = place.run(&["verify", "--json"]).with(1).json();
        assert!(picture(&place.root) == before, "{what}: verify has changed something");
        let findings = json["findings"].as_array().unwrap();
        let path = path.to_string_lossy();
        // An index is told of by its directory.
        let named = findings.iter().filter(|f| path.starts_with(f["path"].as_str().unwrap()));
        let named: Vec<_> = named.filter(|f| f["part"] == **called).collect();
        assert!(named.len() == 1 && findings.len() == 1, "{what}: {json:#}");
        assert_eq!(named[0]["items_lost"], u64::from(*lost), "{what}: {json:#}");
        if *lost {
            let no = String::from_utf8_lossy(near)
                .chars()
                .filter(char::is_ascii_digit)
                .take(2)
                .collect::<String>();
            assert_eq!(named[0]["key"], format!("key-{no}"), "{what}: {json:#}");
        }
        let repaired = place.run(&["verify", "--repair"]).with(1);
        let words = if *lost { "1 item lost" } else { "1 mended, nothing lost" };
        assert!(repaired.text().contains(words), "{what}: {}", repaired.text());
        let again = place.run(&["verify", "--json"]).with(0).json();
        assert_eq!(again["items"], (ITEMS - usize::from(*lost)) as u64, "{what}: {again:#}");
    }
}

#[test]
fn a_container_that_nothing_identifies_is_counted_once_and_as_what_it_is() {
    let place = store();
    let has = |p: &PathBuf| {
        p.to_string_lossy().contains("segments/seg-")
            && fs::read(p).unwrap().windows(17).any(|w| w == b"value 30 value 30")
    };
    let path = files(&place.root).into_iter().rfind(has).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // Who it is stands in the header, in the footer, and at the very end.
    bytes[..4096].fill(0);
    let end = bytes.windows(8).rposition(|w| w == b"TCSEGEND").unwrap();
    bytes[end - 4096..].fill(0);
    fs::write(&path, bytes).unwrap();
    let ran = place.run(&["verify"]).with(1);
    let text = ran.text();
    assert!(text.contains("damaged: ssd container") && text.contains("lost: key-30"), "{text}");
    assert!(text.contains("(left in its place)") && !text.contains("busy"), "{text}");
    assert!(text.contains(" lost (with 1 container), 0 out of reach, 0 damaged without loss"), "{text}");
    let ran = place.run(&["verify", "--repair"]).with(1);
    let text = ran.text();
    assert!(text.contains("moved to the quarantine: ") && text.contains("lost: key-30"), "{text}");
    let sum = text.lines().find(|l| l.starts_with("Repaired: ")).unwrap_or_default();
    assert!(
        sum.contains("with a report), 1 container moved to the quarantine, nothing left to repair."),
        "{text}"
    );
    assert!(!sum.contains("mended"), "{text}");
    place.run(&["verify"]).with(0);
}

#[test]
fn it_works_where_nothing_may_be_written() {
    let place = store();
    let set = |files: u32, dirs: u32| {
        for path in files_and_root(&place.root) {
            let mode = if path.is_dir() { dirs } else { files };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    set(0o444, 0o555);
    let before = picture(&place.root);
    place.run(&["verify"]).with(0);
    assert!(picture(&place.root) == before);
    // Permissions keep nobody out who is root: a file system mounted for reading does.
    let script = r#"mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && ! touch "$0/x" 2>/dev/null || exit 77
exec "$1" verify --root "$0""#;
    let mut command = Command::new("unshare");
    // Who is not root is in a namespace of users, too.
    let own = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    command.args([own, "sh", "-c", script, place.root(), env!("CARGO_BIN_EXE_thermocline")]);
    match command.output() {
        Ok(out) if out.status.code() == Some(0) => {}
        Ok(out) if out.status.code().is_none_or(|code| code != 1 && code != 77) => {
            panic!("{}", String::from_utf8_lossy(&out.stderr))
        }
        _ => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "nothing may be mounted here");
            thermocline_testing::skipped("verify on a file system for reading: nothing may be mounted here");
        }
    }
    assert!(picture(&place.root) == before);
    set(0o600, 0o700);
    place.run(&["verify"]).with(0);
}

fn files_and_root(root: &Path) -> Vec<PathBuf> {
    files(root).into_iter().chain([root.to_path_buf()]).collect()
}

#[test]
fn where_no_store_is_none_is_made() {
    let place = Place::new();
    for args in [&["verify"][..], &["verify", "--repair"]] {
        place.run(args).with(2);
        assert!(!place.root.exists());
        let checked = Cache::builder().root(&place.root).check(|_| {});
        assert!(checked.unwrap_err().to_string().contains("no store to read here"));
        assert!(!place.root.exists());
    }
}

/// Without lock files there is nothing to lock for who only reads.
#[test]
fn who_opens_what_is_read_without_a_lock_is_noticed() {
    let place = store();
    for entry in walkdir::WalkDir::new(&place.root).into_iter().map(Result::unwrap) {
        if entry.file_name() == "lock" {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let builder = || Cache::builder().root(&place.root);
    assert!(builder().check(|_| {}).unwrap().is_clean());
    let mut opened = false;
    let checked = builder().check(|_| {
        if !std::mem::replace(&mut opened, true) {
            let cache = builder().open().unwrap();
            cache.clear().unwrap();
            cache.put("new", "value").unwrap();
            cache.close().unwrap();
        }
    });
    assert!(matches!(checked, Err(thermocline::Error::Locked { .. })), "{checked:?}");
}

#[test]
fn several_may_look_at_once_and_nobody_opens_meanwhile() {
    let place = store();
    let mut seen = 0;
    let builder = || Cache::builder().root(&place.root);
    let outer = builder().check(|_| {
        if seen == 0 {
            assert!(builder().check(|_| {}).unwrap().is_clean());
            assert!(matches!(builder().open(), Err(thermocline::Error::Locked { .. })));
        }
        seen += 1;
    });
    assert!(outer.unwrap().is_clean() && seen > 1);
}

/// Where nothing says any more what was there, a line says how much it was.
#[test]
fn what_nobody_can_name_is_a_line_and_leaves_no_empty_pieces() {
    let place = store();
    let segment = some_file(&place.root, "seg-").unwrap();
    fs::File::options().write(true).open(&segment).unwrap().set_len(5_000).unwrap();
    let ran = place.run(&["verify"]).with(1);
    let text = ran.text();
    let nameless: Vec<&str> = text.lines().filter(|l| l.contains("cannot be read (")).collect();
    assert_eq!(nameless.len(), 1, "{text}");
    let count = nameless[0].strip_prefix("lost: ").and_then(|l| l.split(' ').next()?.parse::<u64>().ok());
    assert!(count.is_some_and(|n| n > 10) && nameless[0].contains(" items whose keys "), "{text}");
    let ran = place.run(&["verify", "--repair"]).with(1);
    assert!(ran.text().contains("\nFound: "), "{}", ran.text());
    assert!(ran.text().contains("if anything, is in `quarantine/`"), "{}", ran.text());
    let pieces = files(&place.root).into_iter().filter(|p| p.to_string_lossy().contains("quarantine/"));
    let empty: Vec<PathBuf> = pieces.filter(|p| fs::metadata(p).unwrap().len() == 0).collect();
    assert!(empty.is_empty(), "{empty:?}");
    place.run(&["verify"]).with(0);
}
