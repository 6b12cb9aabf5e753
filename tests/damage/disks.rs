//! The HDD tier on real directories, with sled, which the simulation leaves out.

use crate::check::{self, Told};
use crate::common::{self, scratch};
use crate::store::{Expected, Record, records};
use crate::{Progress, number, seed, torture};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use thermocline::{Builder, Cache};
use thermocline_storage::sim::Dice;
use thermocline_testing::{caught, counted, watched};

const MIB: u64 = 1 << 20;
/// Damages that are tried, of which no more are begun after the time.
const CASES: u64 = 400;
const BUDGET: u64 = 30;
/// A case takes some tens of milliseconds.
const HANGS: Duration = Duration::from_secs(90);
/// What a disk loses at once.
const BLOCK: usize = 4096;

fn builder(dir: &Path) -> Builder {
    let mut b = Cache::builder().memory(MIB).hdd(dir.join("h"), 64 * MIB);
    b.config_mut().storage.generation_size = Some(MIB);
    b
}

/// The store at rest: closed, with every generation sealed and its index written.
struct Rest {
    dir: tempfile::TempDir,
    expected: Expected,
    /// Of each value file its records of live values.
    live: Vec<(PathBuf, Record)>,
    indexes: Vec<PathBuf>,
    values: Vec<PathBuf>,
}

fn files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for e in fs::read_dir(below).unwrap().map(Result::unwrap) {
        match e.file_type().unwrap().is_dir() {
            true => found.extend(files(&e.path())),
            false => found.push(e.path()),
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for e in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match e.file_type().unwrap().is_dir() {
            true => copy(&e.path(), &to.join(e.file_name())),
            false => _ = fs::copy(e.path(), to.join(e.file_name())).unwrap(),
        }
    }
}

fn generations(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("h/generations")).unwrap();
    let mut all: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

/// Whether everything that is written in the background is there.
fn settled(dir: &Path) -> bool {
    generations(dir).iter().all(|g| g.join("seal").exists())
}

impl Rest {
    fn build() -> Rest {
        let dir = scratch();
        let mut expected = Expected::new();
        for round in 1..4u64 {
            let cache = builder(dir.path()).open().unwrap();
            for no in 0..120u64 {
                // Each round writes some of the keys again, and the last removes some.
                let key = format!("key/{no}");
                if round == 3 && no % 10 == 3 {
                    assert!(cache.remove(&key).unwrap());
                    expected.insert(key, None);
                } else if no % 3 < 4 - round {
                    let len = if no % 20 == 7 { 150_000 } else { 300 + 40 * no };
                    let value = common::value(no, round, len as usize);
                    cache.put(&key, value.clone()).unwrap();
                    expected.insert(key, Some(value));
                }
                if no % 11 == 0 {
                    cache.flush().unwrap();
                }
            }
            cache.close().unwrap();
        }
        // The index of the last generation is written by the opening that follows.
        let begun = Instant::now();
        while !settled(dir.path()) {
            assert!(begun.elapsed() < Duration::from_secs(60), "the indexes are not written");
            let cache = builder(dir.path()).open().unwrap();
            std::thread::sleep(Duration::from_millis(200));
            cache.close().unwrap();
        }
        let all = files(&dir.path().join("h/generations"));
        let (values, indexes): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|p| p.file_name().unwrap().to_string_lossy().starts_with("values-"));
        let mut live = Vec::new();
        for path in &values {
            live.extend(records(&fs::read(path).unwrap()).into_iter().map(|r| (path.clone(), r)));
        }
        let dead = live.len();
        let mut newest = std::collections::BTreeMap::new();
        for (_, r) in &live {
            let version = newest.entry(r.key.clone()).or_insert(r.version);
            *version = (*version).max(r.version);
        }
        live.retain(|(_, r)| newest.get(&r.key) == Some(&r.version));
        assert!(generations(dir.path()).len() >= 3 && dead > live.len() + 50);
        Rest { dir, expected, live, indexes, values }
    }

    /// Damages a copy of the store at one place, and looks at it.
    fn case(&self, no: u64, told: &mut Told) -> Result<(), (String, String)> {
        let mut dice = Dice::new(seed() ^ no.wrapping_mul(0x9e37_79b9));
        let dir = scratch();
        copy(self.dir.path(), dir.path());
        let of_index = !no.is_multiple_of(3);
        let victim = dice.pick(if of_index { &self.indexes } else { &self.values }).unwrap();
        let there = dir.path().join(victim.strip_prefix(self.dir.path()).unwrap());
        let (what, hit) = if of_index && dice.one_in(6) {
            (self.swap_index(&there, &mut dice), 0..0)
        } else {
            harm(&there, &mut dice)
        };
        let what = format!("case {no}: {}: {what}", victim.strip_prefix(self.dir.path()).unwrap().display());
        let of_hit = |(path, r): &&(PathBuf, Record)| {
            !of_index && path == victim && r.at.start < hit.end && hit.start < r.at.end
        };
        let may: BTreeSet<String> = self
            .live
            .iter()
            .filter(of_hit)
            .map(|(_, r)| String::from_utf8_lossy(&r.key).into_owned())
            .collect();
        watched(&what, HANGS, || caught(|| self.look(dir.path(), &may, told))).map_err(|why| (what, why))
    }

    /// The index of another generation stands in place of this one's.
    fn swap_index(&self, at: &Path, dice: &mut Dice) -> String {
        let generation = at.ancestors().find(|p| p.join("seal").exists()).unwrap();
        let others = generations(self.dir.path());
        let other = dice.pick(&others).unwrap();
        let index = fs::read_dir(other).unwrap().map(|e| e.unwrap().path());
        let index = index.into_iter().find(|p| p.to_string_lossy().contains("index-")).unwrap();
        let mine = generation.join(index.file_name().unwrap());
        let _ = fs::remove_dir_all(&mine);
        copy(&index, &mine);
        if dice.one_in(2) {
            fs::copy(other.join("seal"), generation.join("seal")).unwrap();
        }
        format!("the index of {} in its place", other.display())
    }

    fn look(&self, dir: &Path, may: &BTreeSet<String>, told: &mut Told) -> Result<(), String> {
        let mut expected = self.expected.clone();
        for round in 0..2 {
            let opened = builder(dir).open_with_events(10_000);
            let (cache, events) = opened.map_err(|e| format!("opening {round}: {e}"))?;
            let absent = check::read(&cache, &expected)?;
            if let Some(key) = absent.iter().find(|k| round > 0 || !may.contains(*k)) {
                return Err(format!("opening {round}: {key} is absent, but its record was not hit"));
            }
            check::reported(&cache, &events, &absent, told)?;
            told.absent += absent.len() as u64;
            told.whole += u64::from(round == 0 && absent.is_empty());
            for key in absent {
                expected.insert(key, None);
            }
            let value = common::value(7, round, 5_000);
            cache.put("after", value.clone()).map_err(|e| format!("put: {e}"))?;
            expected.insert("after".into(), Some(value));
            cache.flush().map_err(|e| format!("flush: {e}"))?;
            let report = cache.verify().map_err(|e| format!("verify: {e}"))?;
            if !report.is_clean() {
                return Err(format!("opening {round}: damage beyond what reads found: {report:?}"));
            }
            cache.step().map_err(|e| format!("step: {e}"))?;
            cache.close().map_err(|e| format!("close: {e}"))?;
        }
        told.went_on += 1;
        Ok(())
    }
}

/// Damages a file; says how, and which of its bytes are not what they were.
fn harm(path: &Path, dice: &mut Dice) -> (String, std::ops::Range<usize>) {
    let mut bytes = fs::read(path).unwrap();
    let len = bytes.len();
    // Where there is something, most of the time: the rest is zeros.
    let content = bytes.iter().rposition(|b| *b != 0).map_or(1, |at| at + 1);
    let reach = if dice.one_in(8) { len.max(1) } else { content };
    let at = dice.below(reach as u64) as usize;
    let done = match dice.below(if len == 0 { 1 } else { 6 }) {
        0 => {
            fs::remove_file(path).unwrap();
            return ("deleted".into(), 0..usize::MAX);
        }
        1 => {
            bytes.clear();
            ("emptied".into(), 0..usize::MAX)
        }
        2 => {
            bytes.truncate(at);
            (format!("cut to {at}"), at..usize::MAX)
        }
        3 | 4 => {
            bytes[at] ^= 1 << (at % 8);
            (format!("bit {} of byte {at} turned", at % 8), at..at + 1)
        }
        _ => {
            let from = at / BLOCK * BLOCK;
            let to = (from + BLOCK).min(len);
            bytes[from..to].fill(0);
            (format!("zeros from {from} to {to}"), from..to)
        }
    };
    fs::write(path, bytes).unwrap();
    done
}

#[test]
fn one_damaged_file_of_an_hdd_tier_with_sled() {
    let rest = watched("building the store", Duration::from_secs(180), Rest::build);
    println!("{} files of indexes, {} of values", rest.indexes.len(), rest.values.len());
    let budget = number("THERMOCLINE_SECONDS").unwrap_or(if torture() { u64::MAX } else { BUDGET });
    // Each has damage of its own, so that the next hours bring others.
    let progress = Progress::of("disks");
    let from = progress.first(u64::MAX);
    let cases = if torture() { 20 * CASES } else { CASES };
    let (next, begun) = (AtomicU64::new(from), Instant::now());
    let work = || {
        let (mut told, mut failures) = (Told::default(), Vec::new());
        while begun.elapsed() < Duration::from_secs(budget) && failures.len() < 10 {
            let no = next.fetch_add(1, Ordering::Relaxed);
            if no >= from + cases {
                break;
            }
            told.ran += 1;
            if let Err((what, why)) = rest.case(no, &mut told) {
                failures.push(format!("{what}: {why}"));
            }
        }
        (told, failures)
    };
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    let (mut told, mut failures) = (Told::default(), Vec::new());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let (some, of_thread) = thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
            told += some;
            failures.extend(of_thread);
        }
    });
    println!(
        "seed {}: {} of {cases} cases from {from} on in {:?}: {told:?}",
        seed(),
        told.ran,
        begun.elapsed()
    );
    progress.note(from + told.ran);
    counted("damaged files of an HDD tier with sled", told.ran, cases, begun.elapsed());
    assert!(
        failures.is_empty(),
        "seed {}: {} cases failed:\n{}",
        seed(),
        failures.len(),
        failures.join("\n")
    );
    assert!(told.ran > 30, "the machine is too slow to say anything");
    assert!(told.absent > 0 && told.whole > 0, "hardly anything happened: {told:?}");
}
