//! Nothing that the library says has a secret in it: of what it logs, its errors, its reports, what `Debug` shows and what
//! an open store answers over its socket, no word is the secret of the store's hash; and no key is logged at `info` or above.

#![cfg(test)]

mod common;

use common::value;
use std::path::Path;
use thermocline::{Builder, Cache, Tier};
use thermocline_testing::Ear;
use tracing::Level;

const MIB: u64 = 1 << 20;
const KEY: &str = "whose-key-this-is";

fn builder(at: &Path) -> Builder {
    let mut b = Cache::builder().memory(MIB).ssd(at.join("s"), 16 * MIB).hdd(at.join("h"), 32 * MIB);
    b = b.cold(at.join("c")).cold_limit(16 * MIB);
    let s = &mut b.config_mut().storage;
    (s.segment_size, s.generation_size, s.pack_size) = (Some(MIB), Some(MIB), Some(MIB));
    b
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(folder) = left.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() { left.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

fn flip(path: &Path, from: usize, step: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    (from..bytes.len()).step_by(step).for_each(|at| bytes[at] ^= 1);
    std::fs::write(path, bytes).unwrap();
}

/// What the open store answers to all that can be asked over its socket, as it comes.
#[cfg(feature = "remote")]
fn answers(at: &Path) -> Vec<String> {
    use std::io::{Read, Write};
    let all = ["\"stat\"", "\"list\",\"prefix\":\"\"", "\"verify\"", "\"history\"", "\"secret\""];
    let ask = |what: &str| {
        let question = format!("{{\"ask\":{what}}}");
        let mut stream = std::os::unix::net::UnixStream::connect(at.join("s/socket")).unwrap();
        let head = [b"TC\x01\x01".as_slice(), &(question.len() as u32).to_le_bytes()].concat();
        stream.write_all(&[&head, question.as_bytes()].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.len() > 8, "{what}: no answer");
        String::from_utf8_lossy(&answer).into_owned()
    };
    all.into_iter().map(ask).collect()
}

#[cfg(not(feature = "remote"))]
fn answers(_: &Path) -> Vec<String> {
    Vec::new()
}

/// Reads all, writes more; every result and report as text.
fn use_it(at: &Path, flags: impl Fn(Builder) -> Builder, said: &mut Vec<String>) {
    said.push(format!("{:?}", builder(at).check(|_| {})));
    match flags(builder(at)).open() {
        Ok(cache) => {
            said.push(format!("{cache:?} {:?}", cache.recovery()));
            for tier in Tier::DISK {
                for no in 0..20 {
                    let name = format!("{KEY}/{tier}/{no}");
                    said.extend(cache.get(&name).err().map(|e| format!("{e} {e:?}")));
                }
            }
            said.push(format!(
                "{:?} {:?}",
                cache.verify(),
                cache.put(format!("{KEY}/more"), value(1, 1, 300))
            ));
            said.extend(answers(at));
            said.push(format!("{:?} {:?} {:?}", cache.step(), cache.close(), cache.stats()));
        }
        Err(e) => said.push(format!("{e} {e:?}")),
    }
    said.push(format!("{:?}", builder(at).repair(|_| {})));
}

#[test]
fn no_secret_is_said_and_no_key_is_logged_at_info_or_above() {
    let ear = Ear::of_all();
    let tmp = tempfile::tempdir().unwrap();
    let at = tmp.path();
    let cache = builder(at).open().unwrap();
    for tier in Tier::DISK {
        for no in 0..20 {
            let name = format!("{KEY}/{tier}/{no}");
            cache.put(&name, value(no, 1, 700)).unwrap();
            cache.flush().unwrap();
            cache.demote(&name, tier).unwrap();
        }
    }
    let mut said = vec![format!("{cache:?} {:?}", builder(at).open().err())];
    cache.close().unwrap();
    drop(cache);
    let identity = std::fs::read_to_string(at.join("s/store.a")).unwrap();
    let secret = identity.lines().find_map(|l| l.strip_prefix("secret ")).unwrap().to_owned();
    let number = |n: usize| u8::from_str_radix(&secret[2 * n..2 * n + 2], 16).unwrap();
    let list = format!("{:?}", (0..16).map(number).collect::<Vec<_>>());
    let word = |from: usize| (from..from + 8).map(number).collect::<Vec<_>>().try_into().unwrap();
    let mut words = vec![secret.clone(), secret.to_uppercase(), list.trim_matches(['[', ']']).to_owned()];
    words.extend([0, 8].map(|from| u64::from_le_bytes(word(from)).to_string()));

    let as_is = |b: Builder| b;
    // Records; identities of the directories, one copy and both; journals; the catalog in both copies, and rebuilt.
    let of = |part: &'static str| files(at).into_iter().filter(move |p| p.to_string_lossy().contains(part));
    for part in ["segments/", "values-", "packs/"] {
        of(part).for_each(|path| flip(&path, 8192, 900));
        use_it(at, as_is, &mut said);
    }
    of("h/store.a").chain(of("c/store.")).for_each(|path| flip(&path, 100, 50));
    use_it(at, as_is, &mut said);
    of("journal-").chain(of("a/checkpoint-")).for_each(|path| flip(&path, 64, 97));
    use_it(at, as_is, &mut said);
    of("checkpoint-").chain(of("/manifest")).for_each(|path| flip(&path, 64, 97));
    use_it(at, as_is, &mut said);
    use_it(at, |b| b.rebuild_catalog(true), &mut said);
    // Another store's directory.
    let other = tempfile::tempdir().unwrap();
    builder(other.path()).open().unwrap().close().unwrap();
    std::fs::remove_dir_all(at.join("h")).unwrap();
    std::fs::rename(other.path().join("h"), at.join("h")).unwrap();
    use_it(at, as_is, &mut said);

    let logged = ear.all();
    let levels = |level| logged.iter().filter(|(l, _)| *l == level).count();
    assert!(
        levels(Level::WARN) > 3 && said.len() > 20,
        "{} lines were heard, {} said",
        logged.len(),
        said.len()
    );
    let reports = files(at)
        .into_iter()
        .filter(|p| p.to_string_lossy().contains("quarantine/") && p.extension().is_some_and(|e| e == "txt"));
    let reports: Vec<String> = reports.map(|p| std::fs::read_to_string(p).unwrap()).collect();
    assert!(!reports.is_empty());
    for text in logged.iter().map(|(_, text)| text).chain(&said).chain(&reports) {
        assert!(!words.iter().any(|word| text.contains(word)), "the secret is in: {text}");
    }
    for (level, text) in logged.iter().filter(|(level, _)| *level <= Level::INFO) {
        assert!(!text.contains(KEY), "a key is logged at {level}: {text}");
    }
}
