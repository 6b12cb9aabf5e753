//! Other programs read the packs: `unzip` and Python's `zipfile`.

use super::*;
use proptest::prelude::*;
use std::process::{Command, Output};

/// Runs a tool; `None`, with a note, where it is not installed.
fn run(tool: &str, arguments: &[&std::ffi::OsStr]) -> Option<Output> {
    match Command::new(tool).args(arguments).env("LC_ALL", "C").output() {
        Ok(output) => Some(output),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{tool} is not installed");
            println!("skipped: {tool} is not installed");
            None
        }
        Err(e) => panic!("{tool}: {e}"),
    }
}

fn unzip_test(pack: &Path) {
    if let Some(out) = run("unzip", &["-tq".as_ref(), pack.as_os_str()]) {
        assert!(out.status.success(), "{out:?}");
        assert!(out.stderr.is_empty(), "{out:?}");
    }
}

/// Extracts a pack with `unzip`; `false` where there is none.
fn unzip_into(pack: &Path, folder: &Path) -> bool {
    let Some(out) = run("unzip", &["-qq".as_ref(), pack.as_os_str(), "-d".as_ref(), folder.as_os_str()])
    else {
        return false;
    };
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    true
}

/// Runs a Python script with arguments; its standard output.
fn python(script: &str, arguments: &[&std::ffi::OsStr]) -> Option<String> {
    let mut all = vec!["-c".as_ref(), script.as_ref()];
    all.extend_from_slice(arguments);
    run("python3", &all).map(|out| {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    })
}

/// Prints key, CRC-32 and version of every entry, by the rules of the README alone.
const READ_ALL: &str = r#"
import re, struct, sys, urllib.parse, zipfile, zlib
with zipfile.ZipFile(sys.argv[1]) as pack:
    assert pack.testzip() is None
    for entry in pack.infolist():
        extra, field = entry.extra, None
        while extra:
            kind, size = struct.unpack_from("<HH", extra)
            if kind == 0x4354:
                field = extra[4:4 + size]
            extra = extra[4 + size:]
        if re.search("~[0-9a-f]{16}$", entry.filename):
            key = field[72:]
        else:
            key = urllib.parse.unquote_to_bytes(entry.filename)
        print(key.hex(), zlib.crc32(pack.read(entry)), struct.unpack_from("<Q", field, 8)[0])
"#;

fn expected(items: &[Item]) -> String {
    let mut out = String::new();
    for item in items {
        let hex: String = item.key.iter().map(|b| format!("{b:02x}")).collect();
        out += &format!("{hex} {} {}\n", rawzip::crc32(&value_of(item)), item.version.0);
    }
    out
}

#[test]
fn unzip_and_python_read_every_entry() {
    let mut bench = Bench::new(1);
    let (cold, _) = bench.open();
    let items = mixed();
    cold.write(&items, Purpose::Write).unwrap();
    let pack = bench.only_file();
    unzip_test(&pack);
    if let Some(out) = run(
        "python3",
        &["-m", "zipfile", "-t"].map(AsRef::as_ref).into_iter().chain([pack.as_os_str()]).collect::<Vec<_>>(),
    ) {
        assert!(out.status.success(), "{out:?}");
    }
    if let Some(read) = python(READ_ALL, &[pack.as_os_str()]) {
        assert_eq!(read, expected(&items));
    }
}

/// The commands of the README: its indented lines.
fn recipe() -> String {
    let lines = README.lines().filter_map(|l| l.strip_prefix("    "));
    lines.map(|l| format!("{l}\n")).collect()
}

#[test]
fn the_recipe_of_the_readme_gets_every_pack_out() {
    let mut bench = Bench::new(1);
    let (cold, _) = bench.open();
    // A file in one pack is a folder in the other; of `twice` the later value is the newer.
    let batches: [&[(&str, &str, u64)]; 2] =
        [&[("a", "1", 1), ("twice", "old", 2)], &[("a/b", "2", 3), ("twice", "new", 4)]];
    for batch in batches {
        let items: Vec<Item> =
            batch.iter().map(|(k, v, n)| item(k.as_bytes(), v.as_bytes(), Codec::None, *n)).collect();
        cold.write(&items, Purpose::Write).unwrap();
    }
    let out = tempfile::tempdir().unwrap();
    let script = recipe().replace("/tmp/out", out.path().to_str().unwrap());
    assert!(script.contains("unzip") && script.contains(out.path().to_str().unwrap()), "{script}");
    if run("unzip", &["-v".as_ref()]).is_none() {
        return;
    }
    let mut sh = Command::new("sh");
    let done = sh.args(["-ec", &script]).current_dir(&bench.dirs[0].path).output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    let text = |folder: &Path, name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let [older, newer] = folders.as_slice() else { panic!("{folders:?}") };
    assert_eq!((text(older, "a"), text(older, "twice")), ("1".into(), "old".into()));
    assert_eq!((text(newer, "a/b"), text(newer, "twice")), ("2".into(), "new".into()));
}

#[test]
fn more_entries_than_16_bits_count() {
    let mut bench = Bench::new(1);
    let (cold, containers) = bench.open();
    let items: Vec<Item> = (0..70_000_u32)
        .map(|i| item(format!("n/{i}").as_bytes(), &i.to_le_bytes(), Codec::None, i.into()))
        .collect();
    let written = cold.write(&items, Purpose::Write).unwrap();
    let pack = bench.only_file();
    assert_eq!(containers.all()[0].container.list().unwrap().len(), items.len());
    for n in [0, 65_534, 65_535, 65_536, 69_999] {
        assert_eq!(facts(&read(&containers, &written[n]).unwrap()), facts(&items[n]));
    }
    unzip_test(&pack);
    let count = "import sys, zipfile; print(len(zipfile.ZipFile(sys.argv[1]).infolist()))";
    if let Some(n) = python(count, &[pack.as_os_str()]) {
        assert_eq!(n.trim(), "70000");
    }
}

#[test]
fn the_files_say_when_they_were_archived() {
    let mut bench = Bench::new(1);
    let (cold, _) = bench.open();
    cold.write(&[item(b"k", b"v", Codec::None, 1)], Purpose::Write).unwrap();
    let when = "import sys, zipfile; print(zipfile.ZipFile(sys.argv[1]).infolist()[0].date_time)";
    if let Some(said) = python(when, &[bench.only_file().as_os_str()]) {
        assert_eq!(said.trim(), "(2023, 11, 14, 22, 13, 20)");
    }
}

/// Every file below a folder.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for e in std::fs::read_dir(folder).unwrap() {
        let e = e.unwrap();
        if e.file_type().unwrap().is_dir() {
            walk(&e.path(), found);
        } else {
            found.push(e.path());
        }
    }
}

fn hostile_keys() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(prop::sample::select(b"aAbB/.~ %-\\:\x00\xff*?[".to_vec()), 1..9),
        prop::collection::vec(any::<u8>(), 1..300),
        prop::sample::select(vec!["/etc/passwd", "../../x", "a/../../b", "con", "é", "a\nb", "-rf", "~/x"])
            .prop_map(|s| s.as_bytes().to_vec()),
        (1..2000_usize).prop_map(|n| b"d/".repeat(n / 2 + 1)),
        (150..900_usize).prop_map(|n| vec![b'L'; n]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 100, ..ProptestConfig::with_cases(24) })]
    #[test]
    fn any_keys_extract_to_their_own_files(keys in prop::collection::btree_set(hostile_keys(), 1..40)) {
        let mut bench = Bench::new(1);
        let (cold, _) = bench.open();
        let items: Vec<Item> = keys
            .iter()
            .enumerate()
            .map(|(i, key)| item(key, format!("value {i}").as_bytes(), Codec::None, i as u64))
            .collect();
        cold.write(&items, Purpose::Write).unwrap();
        let out = tempfile::tempdir().unwrap();
        let target = out.path().join("deep/er/target");
        std::fs::create_dir_all(&target).unwrap();
        if unzip_into(&bench.only_file(), &target) {
            let mut found = Vec::new();
            walk(out.path(), &mut found);
            prop_assert!(found.iter().all(|f| f.starts_with(&target)), "{found:?}");
            let mut values: Vec<String> =
                found.iter().map(|f| std::fs::read_to_string(f).unwrap()).collect();
            values.sort();
            let mut wanted: Vec<String> = (0..items.len()).map(|i| format!("value {i}")).collect();
            wanted.sort();
            prop_assert_eq!(values, wanted);
            for (item, path) in items.iter().filter_map(|i| {
                let name = names::Names::default().assign(&i.key);
                let path = target.join(&name.path);
                (name.exact && path.is_file()).then_some((i, path))
            }) {
                // A name that needed no hash may still belong to another key of this pack that came first.
                let text = std::fs::read(&path).unwrap();
                let decoded = names::decode(path.strip_prefix(&target).unwrap().as_os_str().as_encoded_bytes());
                prop_assert_eq!(decoded.as_deref(), Some(&item.key[..]));
                prop_assert_eq!(text, value_of(item));
            }
        }
    }
}
