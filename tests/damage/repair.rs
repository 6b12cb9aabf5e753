//! The check and the repair of a store with one place of one file damaged.
//!
//! Of each case: the check changes nothing on the disk and does not fail where the store opens; what is absent
//! afterwards it has said, by key or in a count, and nothing that is there has it called lost; the repair leaves a store
//! that the check finds whole, and in which everything is that was not lost.

use crate::check::read;
use crate::harm::{self, Case};
use crate::store::{End, Rest, builder};
use crate::{Progress, caught, counted, number, seed, torture, watched};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use thermocline::{CheckReport, Cost, Part};
use thermocline_storage::sim::{Dice, SimFs};

/// Seconds after which no more cases are begun.
const BUDGET: u64 = 60;
/// Of the list of the other tests, so many from its beginning.
const CASES: usize = 6_000;
const HANGS: Duration = Duration::from_secs(60);

type Check<T = ()> = Result<T, String>;

/// Every file and its bytes.
fn picture(disk: &SimFs) -> BTreeMap<PathBuf, Vec<u8>> {
    disk.files().into_iter().map(|path| (path.clone(), disk.read(&path))).collect()
}

/// How much happened.
#[derive(Debug, Default)]
struct Told {
    ran: u64,
    clean: u64,
    lost: u64,
    named: u64,
    parts: BTreeMap<Part, u64>,
}

fn looked_at(disk: &SimFs) -> thermocline::Result<CheckReport> {
    builder(Arc::new(disk.clone()), Rest::clock()).check(|_| {})
}

fn lost(report: &CheckReport) -> (BTreeSet<String>, u64) {
    let (mut keys, mut unnamed) = (BTreeSet::new(), 0);
    for finding in &report.findings {
        match (finding.cost, &finding.key) {
            (Cost::Lost(1), Some(key)) => _ = keys.insert(String::from_utf8_lossy(key).into_owned()),
            (Cost::Lost(n) | Cost::OutOfReach(n), _) => unnamed += n,
            _ => {}
        }
    }
    (keys, unnamed)
}

fn case(rest: &Rest, case: &Case, told: &mut Told) -> Check {
    let disk = rest.disk();
    case.apply(&disk);
    let (before, changes) = (picture(&disk), disk.changes());
    let found = looked_at(&disk).map_err(|e| format!("the check: {e}"))?;
    if disk.changes() != changes || picture(&disk) != before {
        return Err(format!("the check has changed something: {found:?}"));
    }
    // What is absent without a repair.
    let opened = builder(Arc::new(disk.kill()), Rest::clock()).open().map_err(|e| e.to_string())?;
    let absent = read(&opened, &rest.expected)?;
    opened.crash();
    let (keys, unnamed) = lost(&found);
    let silent: Vec<&String> = absent.iter().filter(|k| !keys.contains(*k)).collect();
    if silent.len() as u64 > unnamed {
        return Err(format!("{silent:?} are absent, and the check says {found:?}"));
    }
    // Of one that has expired its damaged header may not say so any more.
    let there = |k: &&String| !absent.contains(*k) && rest.expected.get(*k).is_some_and(Option::is_some);
    if let Some(key) = keys.iter().find(there) {
        return Err(format!("{key} is there, and the check calls it lost: {found:?}"));
    }
    told.lost += absent.len() as u64;
    told.named += (absent.len() - silent.len()) as u64;
    told.clean += u64::from(found.is_clean());
    for finding in &found.findings {
        *told.parts.entry(finding.part).or_default() += 1;
    }
    mended(rest, &disk, &found, &absent)
}

/// After a repair everything is whole, and everything is there that was before.
fn mended(rest: &Rest, disk: &SimFs, found: &CheckReport, absent: &BTreeSet<String>) -> Check {
    let before = picture(disk);
    let repaired = builder(Arc::new(disk.clone()), Rest::clock()).repair(|_| {});
    let repaired = repaired.map_err(|e| format!("the repair: {e}"))?;
    if found.is_clean() && picture(disk) != before {
        return Err("nothing was wrong, and the repair has changed something".to_owned());
    }
    if !repaired.left.is_empty() || !repaired.failed.is_empty() {
        return Err(format!("the repair leaves {:?} because of {:?}", repaired.left, repaired.failed));
    }
    let again = looked_at(disk).map_err(|e| format!("the check after the repair: {e}"))?;
    if !again.is_clean() {
        return Err(format!("the repair left {again:?}"));
    }
    let cache = builder(Arc::new(disk.clone()), Rest::clock()).open().map_err(|e| e.to_string())?;
    let gone = read(&cache, &rest.expected)?;
    cache.crash();
    match gone == *absent {
        true => Ok(()),
        false => Err(format!("{gone:?} are absent after the repair, {absent:?} before; {repaired:?}")),
    }
}

#[test]
fn a_whole_store_is_whole_whatever_a_crash_left() {
    for end in [End::Closed, End::Killed, End::HalfPublished, End::Published] {
        let rest = Rest::build(end);
        let found = looked_at(&rest.disk()).unwrap();
        assert!(found.is_clean(), "{end:?}: {found:?}");
        let live = rest.expected.values().flatten().count() as u64;
        assert_eq!(found.items, live, "{end:?}");
        assert!(found.containers > 6 && found.bytes > 1_000, "{found:?}");
    }
}

#[test]
fn one_damaged_place_is_found_and_mended() {
    let rests = [End::Killed, End::Closed].map(Rest::build);
    let (mut cases, _): (Vec<(usize, Case)>, usize) = harm::cases(&rests, torture(), seed());
    if !torture() {
        // Those that matter most stand first.
        cases.truncate(CASES);
    }
    let budget = number("THERMOCLINE_SECONDS").unwrap_or(if torture() { u64::MAX } else { BUDGET });
    let progress = Progress::of("repair");
    let from = progress.first(cases.len() as u64) as usize;
    let (next, begun) = (AtomicUsize::new(from), Instant::now());
    let work = || {
        let (mut told, mut failures) = (Told::default(), Vec::new());
        while begun.elapsed() < Duration::from_secs(budget) && failures.len() < 8 {
            let Some((rest, one)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let rest = &rests[*rest];
            let name = format!("{:?}, {one}", rest.end);
            told.ran += 1;
            if let Err(why) = watched(&name, HANGS, || caught(|| case(rest, one, &mut told))) {
                failures.push(format!("{name}: {why}"));
            }
        }
        (told, failures)
    };
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    let (mut all, mut failures) = (Told::default(), Vec::new());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let (told, of_thread) = thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
            failures.extend(of_thread);
            all.ran += told.ran;
            all.clean += told.clean;
            all.lost += told.lost;
            all.named += told.named;
            told.parts.into_iter().for_each(|(part, n)| *all.parts.entry(part).or_default() += n);
        }
    });
    println!("{} of {} cases from {from} on in {:?}: {all:?}", all.ran, cases.len(), begun.elapsed());
    if failures.is_empty() {
        progress.note((from + all.ran as usize) as u64);
    }
    counted("damaged places that verify mends", all.ran, cases.len() as u64, begun.elapsed());
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
    assert!(all.ran as usize > 300.min(cases.len() - from - 1), "the machine is too slow to say anything");
    // A stretch of all of them may be of one part of one file.
    if torture() {
        return;
    }
    assert!(all.lost > 0 && all.named > all.lost / 2, "hardly anything happened: {all:?}");
    assert!(all.parts.len() >= 8, "few kinds of damage: {all:?}");
}

/// The places that a repair writes something anew for: a part of the path, where, and so far behind it.
const PLACES: [(&str, &[u8], usize); 8] = [
    ("/segments/", b"TCSEGEND", 33),
    ("/segments/", b"TCSEGMNT", 33),
    ("/segments/", b"TCR1", 41),
    ("/values-", b"TCV1", 9),
    ("/values-", b"TCB1", 33),
    ("/packs/", b"PK\x01\x02", 47),
    ("/catalog/a/manifest", b"state", 7),
    ("/catalog/b/checkpoint-", b"TCCB", 9),
];

/// Changes of one repair after which it is cut off.
const CUTS: u64 = 40;

#[test]
fn a_repair_that_is_cut_off_costs_nothing_and_can_be_begun_again() {
    let rest = Rest::build(End::Killed);
    let mut dice = Dice::new(seed());
    let mut cuts = 0;
    for (part, near, behind) in PLACES {
        let at = |path: &PathBuf| rest.read(path).windows(near.len()).position(|w| w == near);
        let paths = rest.files().into_iter().filter(|p| p.to_string_lossy().contains(part));
        // One that costs something where that can be: a place that is read.
        let harmed = paths.filter_map(|path| {
            let disk = rest.disk();
            let place = at(&path)? + behind;
            disk.edit(&path, |bytes| bytes[place] ^= 1);
            (!looked_at(&disk).unwrap().is_clean()).then_some(disk)
        });
        let harmed = harmed.into_iter().next().unwrap_or_else(|| panic!("{part}: nothing is found"));
        let opened = builder(Arc::new(harmed.kill()), Rest::clock()).open().unwrap();
        let absent = read(&opened, &rest.expected).unwrap();
        opened.crash();
        let whole = harmed.kill();
        let before = whole.changes();
        builder(Arc::new(whole.clone()), Rest::clock()).repair(|_| {}).unwrap();
        let changes = whole.changes() - before;
        assert!(changes > 20, "{part}: {changes} changes");
        // At each change, where there is time.
        let places = if torture() { changes } else { CUTS.min(changes) };
        for cut in 0..places {
            let ahead = 1 + cut * changes / places;
            let disk = harmed.kill();
            disk.stop_after(disk.changes() + ahead);
            let _ = builder(Arc::new(disk.clone()), Rest::clock()).repair(|_| {});
            let disk = if cut % 2 == 0 { disk.crash(&mut dice) } else { disk.kill() };
            let what = format!("{part} {}, cut after {ahead} of {changes}", near.escape_ascii());
            let again = builder(Arc::new(disk.clone()), Rest::clock()).repair(|_| {});
            let again = again.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(again.left.is_empty() && again.failed.is_empty(), "{what}: {again:?}");
            assert!(looked_at(&disk).unwrap().is_clean(), "{what}");
            let cache = builder(Arc::new(disk.clone()), Rest::clock()).open().unwrap();
            assert_eq!(read(&cache, &rest.expected), Ok(absent.clone()), "{what}");
            cache.crash();
            cuts += 1;
        }
    }
    println!("{cuts} repairs were cut off");
}
