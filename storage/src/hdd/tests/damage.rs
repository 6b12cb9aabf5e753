//! Damage of every file, at rest: right bytes or an error, for every record, always.

use super::*;
use std::fs;
use std::thread;

/// A store at rest, with what it holds, kept aside so that it can be damaged again and again.
struct Rest {
    bench: Bench,
    aside: tempfile::TempDir,
    known: Vec<Known>,
    all: Vec<Item>,
    written: Vec<Written>,
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    // Whoever copies a store that works finds things gone.
    for e in fs::read_dir(from).into_iter().flatten().map(Result::unwrap) {
        match e.file_type().is_ok_and(|t| t.is_dir()) {
            true => copy(&e.path(), &to.join(e.file_name())),
            false => {
                let _ = fs::copy(e.path(), to.join(e.file_name()));
            }
        }
    }
}

fn files(below: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for e in fs::read_dir(below).unwrap().map(Result::unwrap) {
        match e.file_type().unwrap().is_dir() {
            true => found.extend(files(&e.path(), name)),
            false if e.path().to_string_lossy().contains(name) => found.push(e.path()),
            false => {}
        }
    }
    found.sort();
    found
}

impl Rest {
    fn new() -> Rest {
        let mut bench = Bench::new(&[Some(64 << 20)]);
        let open = bench.open(&[]);
        let mut all: Vec<_> = (0..400).map(|i| item(i, 500 + i as usize)).collect();
        all.push(item(400, 120_000));
        let written = all.chunks(7).flat_map(|c| open.write(c)).collect();
        open.settle();
        let known = open.known();
        assert!(known.len() > 1);
        open.hdd.close().unwrap();
        drop(open);
        let aside = tempfile::tempdir().unwrap();
        copy(&bench.dir(0), aside.path());
        Rest { bench, aside, known, all, written }
    }

    /// Puts everything back as it was.
    fn restore(&self) {
        fs::remove_dir_all(self.bench.dir(0)).unwrap();
        copy(self.aside.path(), &self.bench.dir(0));
    }

    /// Opens, reads everything, and says how many came back.
    fn count(&mut self) -> (usize, Health, OpenReport) {
        let open = self.bench.open(&self.known);
        let good = open.check(&self.all, &self.written);
        open.settle();
        let health = open.hdd.health();
        for entry in open.containers.all() {
            entry.container.list().unwrap();
        }
        open.hdd.close().unwrap();
        (good, health, open.report)
    }
}

type Harm = (&'static str, fn(&Path));

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 1 << (at % 8);
    fs::write(path, bytes).unwrap();
}

const HARMS: [Harm; 8] = [
    ("flip near the start", |p| flip(p, 3)),
    ("flip in the middle", |p| flip(p, fs::metadata(p).unwrap().len() as usize / 2)),
    ("flip at the end", |p| flip(p, fs::metadata(p).unwrap().len() as usize - 1)),
    ("zeroed", |p| fs::write(p, vec![0; fs::metadata(p).unwrap().len() as usize]).unwrap()),
    ("cut", |p| fs::write(p, &fs::read(p).unwrap()[..fs::metadata(p).unwrap().len() as usize / 2]).unwrap()),
    ("deleted", |p| fs::remove_file(p).unwrap()),
    ("emptied", |p| fs::write(p, b"").unwrap()),
    ("a block zeroed", |p| {
        let mut bytes = fs::read(p).unwrap();
        let block = bytes.iter().rposition(|b| *b != 0).unwrap_or(0) / 512 * 512;
        let end = bytes.len().min(block + 512);
        bytes[block..end].fill(0);
        fs::write(p, bytes).unwrap();
    }),
];

#[test]
fn no_damage_to_an_index_costs_a_record() {
    let mut rest = Rest::new();
    let (good, health, _) = rest.count();
    assert_eq!((good, health.rebuilt), (rest.all.len(), 0));
    rest.restore();
    let mut victims = files(&rest.bench.dir(0), "index-");
    victims.extend(files(&rest.bench.dir(0), "seal"));
    let first = rest.bench.generations(0)[0].clone();
    victims.retain(|v| v.starts_with(&first));
    assert!(victims.len() >= 3, "{victims:?}");
    for victim in victims {
        for (what, harm) in HARMS {
            rest.restore();
            harm(&victim);
            let (good, health, report) = rest.count();
            assert_eq!(good, rest.all.len(), "{what}: {}", victim.display());
            assert_eq!((health.rebuilt, health.faults), (1, 0), "{what}: {}", victim.display());
            assert!(report.quarantined.is_empty());
            let (good, health, _) = rest.count();
            assert_eq!((good, health.rebuilt), (rest.all.len(), 0), "the new index was kept: {what}");
        }
    }
}

#[test]
fn an_index_of_another_generation_or_of_none_is_seen_through() {
    let mut rest = Rest::new();
    rest.restore();
    let generations = rest.bench.generations(0);
    for name in ["index-0000", "seal"] {
        let (a, b) = (generations[0].join(name), generations[1].join(name));
        let aside = rest.bench.dir(0).join("swap");
        fs::rename(&a, &aside).unwrap();
        fs::rename(&b, &a).unwrap();
        fs::rename(&aside, &b).unwrap();
    }
    let (good, health, _) = rest.count();
    assert_eq!((good, health.rebuilt), (rest.all.len(), 2));
    rest.restore();
    for generation in &generations {
        fs::remove_dir_all(generation.join("index-0000")).unwrap();
    }
    let (good, health, _) = rest.count();
    assert_eq!((good, health.rebuilt), (rest.all.len(), generations.len() as u64));
}

#[test]
fn a_flipped_bit_in_a_value_file_costs_one_record_at_most() {
    let mut rest = Rest::new();
    let victim = rest.bench.generations(0)[0].join("values-0000");
    let len = fs::metadata(&victim).unwrap().len() as usize;
    for i in 0..60 {
        rest.restore();
        flip(&victim, (i * 7919 + i * i * 131) % len);
        let (good, _, report) = rest.count();
        assert!(good >= rest.all.len() - 1, "flip {i}: {good} of {}", rest.all.len());
        assert!(report.quarantined.is_empty());
    }
    for block in [8192, 8192 + 20] {
        rest.restore();
        flip(&victim, block);
        assert_eq!(rest.count().0, rest.all.len(), "a block's header costs no record");
        for index in files(&rest.bench.dir(0), "seal") {
            fs::remove_file(index).unwrap();
        }
        assert_eq!(rest.count().0, rest.all.len(), "nor does it where the index is rebuilt");
    }
}

#[test]
fn a_value_file_cut_zeroed_or_deleted_costs_what_was_in_it() {
    let mut rest = Rest::new();
    let victim = rest.bench.generations(0)[0].join("values-0000");
    let there = rest.known[0].records as usize;
    for (what, harm) in HARMS {
        rest.restore();
        harm(&victim);
        let (good, health, report) = rest.count();
        assert!(good >= rest.all.len() - there, "{what}: {good}");
        assert_eq!(health.faults, 0);
        match what {
            "zeroed" | "deleted" | "emptied" => {
                assert_eq!(report.quarantined.len(), 1, "{what}");
                assert_eq!(good, rest.all.len() - there);
            }
            "cut" => assert!(good > rest.all.len() - there * 3 / 4, "{what}: {good}"),
            // As many records as begin in it, or go on into it.
            "a block zeroed" => assert!(good >= rest.all.len() - 3, "{what}: {good}"),
            _ => assert!(good >= rest.all.len() - 1, "{what}: {good}"),
        }
    }
    rest.restore();
    let mut bytes = fs::read(&victim).unwrap();
    bytes[20_000..60_000].fill(0xa5);
    fs::write(&victim, bytes).unwrap();
    let (good, _, _) = rest.count();
    assert!(good > rest.all.len() - 40_000 / 500 && good < rest.all.len(), "{good}");
}

#[test]
fn a_damaged_record_goes_to_the_quarantine_with_its_key() {
    let mut rest = Rest::new();
    let victim = rest.bench.generations(0)[0].join("values-0000");
    let mut bytes = fs::read(&victim).unwrap();
    let wanted = &rest.all[3].payload[..];
    let at = bytes.windows(wanted.len()).position(|w| w == wanted).unwrap();
    bytes[at + 5] ^= 1;
    fs::write(&victim, bytes).unwrap();
    let open = rest.bench.open(&rest.known);
    let entry = open.containers.get(rest.written[3].place.container()).unwrap();
    let error = open.read(&rest.written[3]).unwrap_err();
    assert!(error.is_corrupt(), "{error}");
    open.hdd.quarantine_record(&entry, rest.written[3].place.position(), &error.to_string());
    let report = fs::read_to_string(rest.bench.dir(0).join("quarantine/0000000000-record.txt")).unwrap();
    assert!(report.contains("key/3") && report.contains("values-0000"), "{report}");
    let kept = fs::metadata(rest.bench.dir(0).join("quarantine/0000000000-record")).unwrap().len();
    assert_eq!(kept, u64::from(rest.written[3].bytes));
    assert!(rest.written[3].place != rest.written[4].place && open.read(&rest.written[4]).is_ok());
    assert_eq!(open.hdd.health().rebuilt, 0, "a damaged record is no reason to doubt the index");
}

#[test]
fn a_store_killed_at_any_moment_opens_with_what_was_acknowledged() {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    let (mut all, mut written, mut moments) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..12 {
        let batch: Vec<_> = (round * 60..round * 60 + 60).map(|i| item(i, 1500)).collect();
        // The keeper is writing indexes meanwhile, and at every second moment a batch is being written as well: files are
        // copied in any state. What was written before is known then.
        let (moment, dir) = (tempfile::tempdir().unwrap(), bench.dir(0));
        let acknowledged = (all.len(), open.known());
        let within = round % 2 == 1;
        thread::scope(|scope| {
            within.then(|| scope.spawn(|| copy(&dir, moment.path())));
            written.extend(open.write(&batch));
        });
        all.extend(batch);
        if within {
            moments.push((moment, acknowledged.0, acknowledged.1));
        } else {
            copy(&dir, moment.path());
            moments.push((moment, all.len(), open.known()));
        }
    }
    open.settle();
    let known = open.known();
    assert!(open.hdd.health().open > 2);
    let last = tempfile::tempdir().unwrap();
    copy(&bench.dir(0), last.path());
    open.hdd.close().unwrap();
    drop(open);
    fs::remove_dir_all(bench.dir(0)).unwrap();
    copy(last.path(), &bench.dir(0));
    let open = bench.open(&known);
    open.settle();
    assert_eq!(open.hdd.health().rebuilt, 1, "only the generation that was being appended to");
    assert_eq!(open.check(&all, &written), all.len());
    drop(open);
    for (moment, n, known_then) in &moments {
        fs::remove_dir_all(bench.dir(0)).unwrap();
        copy(moment.path(), &bench.dir(0));
        let open = bench.open(known_then);
        assert!(open.report.missing.is_empty());
        assert_eq!(open.check(&all[..*n], &written[..*n]), *n);
        assert_eq!(open.hdd.health().faults, 0);
    }
    // The same, with a file of each index damaged, each of them in its turn.
    for (at, ((moment, n, known_then), (what, harm))) in
        moments.iter().rev().zip(HARMS.iter().chain(&HARMS)).enumerate()
    {
        fs::remove_dir_all(bench.dir(0)).unwrap();
        copy(moment.path(), &bench.dir(0));
        for generation in bench.generations(0) {
            let size = |p: &PathBuf| fs::metadata(p).map_or(0, |m| m.len());
            let index: Vec<_> = files(&generation, "index-").into_iter().filter(|p| size(p) > 0).collect();
            index.iter().cycle().nth(at).inspect(|path| harm(path));
        }
        let open = bench.open(known_then);
        assert_eq!(open.check(&all[..*n], &written[..*n]), *n, "{what}");
    }
    // The same, with the newest value file of each generation emptied, gone or cut, as after a power cut: what stood in
    // it is lost, and nothing else.
    let losses: [Harm; 3] = [
        ("emptied", |p| fs::write(p, b"").unwrap()),
        ("gone", |p| fs::remove_file(p).unwrap()),
        // One that was copied as soon as it was made is no longer than its headers.
        ("cut", |p| {
            let bytes = fs::read(p).unwrap();
            fs::write(p, &bytes[..bytes.len().min(8192 + 700)]).unwrap();
        }),
    ];
    let mut left = 0;
    for (at, (moment, n, known_then)) in moments.iter().enumerate() {
        let (what, harm) = losses[at % losses.len()];
        fs::remove_dir_all(bench.dir(0)).unwrap();
        copy(moment.path(), &bench.dir(0));
        // Of every second moment in the newest generation alone.
        let harmed: Vec<_> =
            bench.generations(0).into_iter().rev().take(if at % 2 == 0 { 1 } else { 99 }).collect();
        for generation in &harmed {
            // One that was just being made may have none.
            files(generation, "values-").last().inspect(|path| harm(path));
        }
        let open = bench.open(known_then);
        let whole = |w: &Written| {
            let entry = open.containers.get(w.place.container());
            entry.is_some_and(|e| !harmed.iter().any(|g| g.ends_with(format!("gen-{:016x}", e.id))))
        };
        let spared = written[..*n].iter().filter(|w| whole(w)).count();
        let good = open.check(&all[..*n], &written[..*n]);
        assert!(good >= spared, "{what} at moment {at}: {good} of {n} are left, {spared} stood elsewhere");
        left += good;
        assert_eq!(open.hdd.health().faults, 0);
    }
    assert!(left > 0, "nothing was spared anywhere: does the test reach that?");
    // The same, but only the indexes go back in time.
    for (moment, _, _) in moments.iter().step_by(3) {
        fs::remove_dir_all(bench.dir(0)).unwrap();
        copy(last.path(), &bench.dir(0));
        for old in fs::read_dir(moment.path().join("generations")).unwrap().map(Result::unwrap) {
            let to = bench.dir(0).join("generations").join(old.file_name());
            for part in fs::read_dir(old.path()).unwrap().map(Result::unwrap) {
                let name = part.file_name();
                if name.to_string_lossy().starts_with("index-") {
                    fs::remove_dir_all(to.join(&name)).unwrap();
                    copy(&part.path(), &to.join(&name));
                } else if name == "seal" {
                    fs::copy(part.path(), to.join(&name)).unwrap();
                }
            }
        }
        let open = bench.open(&known);
        assert_eq!(open.check(&all, &written), all.len());
        assert_eq!(open.hdd.health().faults, 0);
    }
}

#[test]
fn another_stores_generation_is_not_served_and_a_newer_one_is_named() {
    let mut rest = Rest::new();
    let victim = rest.bench.generations(0)[0].join("values-0000");
    let rewrite = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = fs::read(&victim).unwrap();
        for at in [0, 4096] {
            change(&mut bytes[at..at + 56]);
            let sum = record::checksum(0, &bytes[at..at + 56]).to_le_bytes();
            bytes[at + 56..at + 64].copy_from_slice(&sum);
        }
        fs::write(&victim, bytes).unwrap();
    };
    rewrite(&|h| h[8..24].fill(9));
    let (_, _, report) = rest.count();
    assert!(report.quarantined[0].1.contains("another generation or store"), "{report:?}");
    rest.restore();
    rewrite(&|h| h[4] = 2);
    let error = rest.bench.open_as(&rest.known, Unknown::Delete).err().unwrap();
    assert!(matches!(error, Error::NewerFormat { found: 2, supported: 1, .. }), "{error}");
}

#[test]
fn a_record_in_the_place_of_another_is_damage_not_a_value() {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    let open = bench.open(&[]);
    let all: Vec<_> = (100..120).map(|i| item(i, 600)).collect();
    let written = open.write(&all);
    let known = open.known();
    open.hdd.close().unwrap();
    drop(open);
    let victim = bench.generations(0)[0].join("values-0000");
    let mut bytes = fs::read(&victim).unwrap();
    let size = written[0].bytes as usize;
    let at = |i: usize| 8192 + block::header_len(12) + i * size;
    assert!(record::parse_header(&bytes[at(5)..], known[0].id).is_ok_and(|h| h.ordinal == 5));
    bytes.copy_within(at(3)..at(4), at(5));
    fs::write(&victim, bytes).unwrap();
    let open = bench.open(&known);
    for (i, w) in written.iter().enumerate() {
        match i {
            5 => assert!(open.read(w).unwrap_err().is_corrupt()),
            _ => assert_eq!(open.read(w).unwrap(), all[i]),
        }
    }
}

#[test]
fn a_block_that_claims_any_length_costs_neither_memory_nor_the_end_of_the_scan() {
    // The checksum is right, so only a forger, or a mistake of the engine's own, writes such a block.
    for claimed in [u64::MAX, u64::MAX - 31, u64::MAX - 8192, 1 << 63] {
        let mut bench = Bench::new(&[Some(64 << 20)]);
        let open = bench.open(&[]);
        let all: Vec<_> = (100..120).map(|i| item(i, 600)).collect();
        let written = open.write(&all);
        let known = open.known();
        open.hdd.close().unwrap();
        drop(open);
        let generation = bench.generations(0)[0].clone();
        let victim = generation.join("values-0000");
        let mut bytes = fs::read(&victim).unwrap();
        let last = bytes.windows(4).rposition(|w| w == block::MAGIC).unwrap();
        let head = block::peek_header_len(&bytes[last..]).unwrap();
        bytes[last + 40..last + 48].copy_from_slice(&claimed.to_le_bytes());
        let fixed = record::checksum(known[0].id, &bytes[last..last + 56]);
        let sum = record::checksum(fixed, &bytes[last + 64..last + head]);
        bytes[last + 56..last + 64].copy_from_slice(&sum.to_le_bytes());
        fs::write(&victim, &bytes).unwrap();
        // So that the index is made by a scan.
        let _ = fs::remove_file(generation.join(seal::NAME));
        bench.config.open_wait = Duration::from_secs(10);
        let open = bench.open(&known);
        // The second time the block's header is known.
        for _ in 0..2 {
            for (item, w) in all.iter().zip(&written) {
                assert_eq!(open.read(w).unwrap(), *item, "{claimed:x}");
            }
        }
        let entry = open.containers.get(known[0].no).unwrap();
        assert_eq!(entry.container.list().unwrap().len(), all.len(), "{claimed:x}");
        let raw = entry.container.raw(written[19].place.position()).unwrap();
        assert!(raw.bytes.len() <= bytes.len(), "{claimed:x}");
    }
}
