//! Disks that are really full: a small tmpfs under one of the store's directories, and a file beside the store that
//! takes up what is left, again and again, while the store runs.
//!
//! Nothing hangs or panics, no read returns what it must not, what a flush acknowledged stays (or goes with an event,
//! where the store may evict; see `thermocline_testing::history`), and when the file is deleted the store goes on as
//! before.
//!
//! Mounting takes root. Without it the tests say that they are skipped, though they pass; with CI=true they fail. What is
//! mounted is seen by the test's own threads alone and ends with them, however they end.

#![cfg(test)]

mod common;

use common::{Dice, parse, value};
use rustix::thread::UnshareFlags;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use thermocline::testing::{ManualClock, vfs::RealFs};
use thermocline::{Builder, Cache, Error, Event, Received, RecvError, Subscription, Tier};
use thermocline_testing::history::{Absence, Begun, History, Outcome, Promise, Value};
use thermocline_testing::skipped;

const MIB: u64 = 1 << 20;
/// Longest that one call may take: the limit on waiting is 1 s, and the machine may be slow.
const CALL: Duration = Duration::from_secs(30);
/// Longest that a store takes to recover.
const RECOVERY: Duration = Duration::from_secs(60);
const KEYS: u64 = 3_000;
/// Bytes of the largest value, but for what is written to use up the journal.
const LARGEST: u64 = 40_000;
const BALLAST: &str = "ballast";

/// From now on this thread, and those that it begins, have mounts of their own.
#[expect(unsafe_code, reason = "to leave the mounts that a process shares is unsafe whatever else it shares")]
fn own_mounts() -> Result<(), String> {
    // SAFETY: of what threads share, the table of open files stays shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(|e| e.to_string())?;
    // Or those who had the same mounts would get what is mounted.
    mount(&["--make-rprivate", "/"])
}

fn mount(args: &[&str]) -> Result<(), String> {
    let out = Command::new("mount").args(args).output().map_err(|e| format!("mount: {e}"))?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()) }
}

/// A file system of so many MiB on a directory of its own; gone with its handle.
struct Disk {
    dir: TempDir,
}

impl Disk {
    /// `None`: it cannot be mounted here.
    fn mount(mib: u64) -> Option<Disk> {
        static SAID: Once = Once::new();
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m,mode=0700");
        let disk = ["-t", "tmpfs", "-o", &size, "thermocline-test", dir.path().to_str().unwrap()];
        match own_mounts().and_then(|()| mount(&disk)) {
            Ok(()) => Some(Disk { dir }),
            Err(why) => {
                assert!(std::env::var("CI").as_deref() != Ok("true"), "no disk could be mounted: {why}");
                SAID.call_once(|| {
                    skipped(&format!("all tests of full disks, for none can be mounted: {why}"))
                });
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes up all that is left.
    fn fill(&self) {
        let mut file = OpenOptions::new().append(true).create(true).open(self.path().join(BALLAST)).unwrap();
        let bytes = vec![0x5a; MIB as usize];
        for piece in [MIB as usize, 4096] {
            loop {
                match file.write(&bytes[..piece]) {
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::StorageFull => break,
                    Err(e) => panic!("the ballast: {e}"),
                }
            }
        }
    }

    fn make_room(&self) {
        File::create(self.path().join(BALLAST)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is still open goes when it is closed.
        let out = Command::new("umount").arg("--lazy").arg(self.path()).output();
        if !out.is_ok_and(|o| o.status.success()) {
            eprintln!("{} could not be unmounted", self.path().display());
        }
    }
}

/// Which directories there are, and which lies on the small disk.
#[derive(Debug, Clone, Copy)]
struct Shape {
    ssd: bool,
    hdd: bool,
    cold: bool,
    /// `s`, `h`, `c`, or `j` for the catalog.
    small: &'static str,
    /// What fails on the full disk.
    fails: Fails,
}

/// What fails when the disk is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    /// Every write: there is nowhere else to go, and nothing is given up for it.
    Writes,
    /// Writes once the journal's blocks are used up: the values themselves go elsewhere, or make room for themselves.
    Journal,
    /// Nothing has to: values go elsewhere.
    Nothing,
}

struct Store {
    shape: Shape,
    disk: Disk,
    other: TempDir,
    clock: Arc<ManualClock>,
    history: History,
    /// When the store had nothing to tell: what went by itself before is known.
    heard: Begun,
    values: Value,
    dice: Dice,
}

fn timed<T>(what: &str, call: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = call();
    assert!(begun.elapsed() < CALL, "{what} took {:?}", begun.elapsed());
    done
}

impl Store {
    fn new(shape: Shape) -> Option<Store> {
        let history = History::default();
        Some(Store {
            shape,
            disk: Disk::mount(64)?,
            other: common::scratch(),
            clock: Arc::new(ManualClock::new(1_700_000_000_000)),
            heard: history.moment(0),
            history,
            values: 0,
            dice: Dice::new(1),
        })
    }

    fn dir(&self, name: &str) -> PathBuf {
        let parent = if name == self.shape.small { self.disk.path() } else { self.other.path() };
        parent.join(name)
    }

    /// Large on the small disk, so that it is full before the limit is reached; elsewhere small, so that much sinks.
    fn limit(&self, name: &str) -> u64 {
        if name == self.shape.small { 48 * MIB } else { 12 * MIB }
    }

    fn builder(&self) -> Builder {
        let mut b = Cache::builder().memory(MIB);
        if self.shape.ssd {
            b = b.ssd(self.dir("s"), self.limit("s"));
        }
        if self.shape.hdd {
            b = b.hdd(self.dir("h"), self.limit("h"));
        }
        if self.shape.cold {
            b = b.cold(self.dir("c"));
        }
        if self.shape.small == "j" {
            b = b.catalog(self.dir("j"));
        }
        b.config_mut().resources.io.write_buffer_size = MIB;
        let s = &mut b.config_mut().storage;
        s.write_stall_limit = 1;
        s.segment_size = Some(2 * MIB);
        s.generation_size = Some(2 * MIB);
        s.pack_size = Some(2 * MIB);
        s.migration_bytes_per_second = 1 << 30;
        b.world(Arc::new(RealFs), self.clock.clone(), true)
    }

    fn open(&mut self) -> Result<(Cache, Subscription), Error> {
        self.heard = self.history.moment(0);
        timed("opening", || self.builder().open_with_events(1 << 18))
    }

    /// Writes a few items, and flushes; says what failed. What the store tells is heard after each: what went before a put
    /// is no excuse for what is missing of it.
    fn write(&mut self, cache: &Cache, events: &Subscription, few: u64, largest: u64) -> Result<(), Error> {
        let mut failed = None;
        for _ in 0..few {
            let no = self.dice.below(KEYS);
            self.values += 1;
            // Every third would compress well.
            let bytes = value(no, self.values * 3 + 1, self.dice.below(largest) as usize);
            let begun = self.history.write(&key(no), Some(self.values), 0);
            let done = timed("a put", || cache.put(key(no), bytes));
            let outcome = if done.is_ok() { Outcome::Done } else { Outcome::Refused };
            self.history.wrote(&key(no), begun, outcome, 0);
            self.hear(events);
            if let Err(e) = done {
                failed = Some(e);
                break;
            }
        }
        let begun = self.history.flush(0);
        let flushed = timed("a flush", || cache.flush());
        self.hear(events);
        flushed?;
        self.history.flushed(begun, 0);
        failed.map_or(Ok(()), Err)
    }

    /// What went by itself, as the store tells it before anybody can find it gone. Gives the keys.
    fn hear(&mut self, events: &Subscription) -> Vec<String> {
        let mut gone = Vec::new();
        loop {
            let now = self.history.moment(0);
            match events.try_recv() {
                Ok(Received::Event(Event::Evicted { key: Some(key), .. })) => {
                    let key = String::from_utf8_lossy(&key).into_owned();
                    self.history.forgotten(&key, &self.heard, 0);
                    gone.push(key);
                }
                Ok(Received::Event(
                    Event::Promoted { .. }
                    | Event::Demoted { .. }
                    | Event::TierOutOfService { .. }
                    | Event::TierBack { .. },
                )) => {}
                Ok(other) => panic!("{:?}: an event: {other:?}", self.shape),
                Err(RecvError::Closed) => return gone,
                Err(_) => {
                    self.heard = now;
                    return gone;
                }
            }
        }
    }

    /// Reads every key, and has all reads judged; gives what was found.
    fn check(&mut self, cache: &Cache, events: &Subscription) -> BTreeMap<String, Value> {
        let found = self.read_all(cache);
        self.hear(events);
        self.history.check(|_| Absence::Told).unwrap_or_else(|e| panic!("{:?}: {e}", self.shape));
        found
    }

    /// [`check`](Self::check) after a restart: what was flushed is there, and what is there stays.
    fn check_restarted(&mut self, cache: &Cache, events: &Subscription) {
        let found = self.read_unjudged(cache);
        let gone = self.hear(events);
        self.history
            .check_crash(Promise::FromFlush, |_| Absence::Told, |key| found.get(key).copied())
            .unwrap_or_else(|e| panic!("{:?}: after a restart: {e}", self.shape));
        self.history.restart(|key| found.get(key).copied());
        // What went after it was found is no part of what was before the restart.
        self.heard = self.history.moment(0);
        gone.iter().for_each(|key| self.history.forgotten(key, &self.heard, 0));
        self.check(cache, events);
    }

    fn read_all(&self, cache: &Cache) -> BTreeMap<String, Value> {
        let mut found = BTreeMap::new();
        for key in self.history.keys() {
            let begun = self.history.read(0);
            let value = self.read(cache, &key);
            self.history.was_read(&key, begun, value, 0);
            if let Some(value) = value {
                found.insert(key, value);
            }
        }
        found
    }

    fn read_unjudged(&self, cache: &Cache) -> BTreeMap<String, Value> {
        let keys = self.history.keys().into_iter();
        keys.filter_map(|key| self.read(cache, &key).map(|value| (key, value))).collect()
    }

    fn read(&self, cache: &Cache, key: &str) -> Option<Value> {
        let got = timed("a get", || cache.get(key)).unwrap_or_else(|e| panic!("{key}: {e}"))?;
        match parse(&got) {
            Some((of, number)) if self::key(of) == key => Some(number / 3),
            other => panic!("{key}: wrong bytes: {other:?} of {}", got.len()),
        }
    }

    /// Fills the disk until writes fail, or for long enough; gives the failures.
    fn choke(&mut self, cache: &Cache, events: &Subscription) -> Vec<Error> {
        let mut failures = Vec::new();
        let begun = Instant::now();
        // Where nothing fails, what comes down is what counts, however long the disk takes.
        let (before, enough) = (written(cache, Tier::Ssd), 2 * self.limit("s"));
        for _ in 0..300 {
            self.disk.fill();
            // Small ones, so many that the blocks that the journal has are used up soon.
            let (few, largest) =
                if self.shape.fails == Fails::Journal { (3_000, 100) } else { (10, LARGEST) };
            if let Err(e) = self.write(cache, events, few, largest) {
                failures.push(e);
            }
            let done = match self.shape.fails {
                Fails::Nothing => written(cache, Tier::Ssd) - before > enough,
                _ => begun.elapsed() > Duration::from_secs(20),
            };
            if done || failures.len() >= 3 {
                break;
            }
        }
        failures
    }

    /// Until writes succeed again, without a restart.
    fn recover(&mut self, cache: &Cache, events: &Subscription) {
        self.disk.make_room();
        let begun = Instant::now();
        let mut well = 0;
        while well < 5 {
            // The engine's clock: a second each time, so that at most 60 s pass for it.
            self.clock.advance(1_000);
            match self.write(cache, events, 10, LARGEST) {
                Ok(()) => well += 1,
                Err(e) if begun.elapsed() < RECOVERY => {
                    well = 0;
                    println!("{:?}: not yet: {e}", self.shape.small);
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(e) => panic!("{:?}: it does not recover: {e}", self.shape),
            }
        }
    }
}

fn key(no: u64) -> String {
    format!("key/{no}")
}

fn count_files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|e| if e.file_type().unwrap().is_dir() { count_files(&e.path()) } else { 1 }).sum()
}

/// Calls of a disk that failed, of the tier or of the catalog that is below a directory.
fn refused(cache: &Cache, dir: &Path) -> u64 {
    let stats = cache.stats();
    let all = stats.tiers.iter().flatten().flat_map(|t| &t.io).chain(&stats.catalog_io);
    all.filter(|io| io.path.starts_with(dir)).map(|io| io.errors).sum()
}

/// Bytes that were written to a tier so far.
fn written(cache: &Cache, tier: Tier) -> u64 {
    cache.stats().tier(tier).map_or(0, |t| t.written)
}

impl Store {
    /// The tier that is on the small disk below the SSD's: nothing has to fail when it is full, for it is passed over.
    fn passed_over(&self) -> Option<Tier> {
        let tier = if self.shape.small == "h" { Tier::Hdd } else { Tier::Cold };
        (self.shape.fails == Fails::Nothing).then_some(tier)
    }

    /// Writes until some MiB more sank to a tier.
    fn sink(&mut self, cache: &Cache, events: &Subscription, tier: Tier) {
        let (before, begun) = (written(cache, tier), Instant::now());
        while written(cache, tier) < before + 4 * MIB {
            self.clock.advance(1_000);
            // A disk that is slow for a moment is no fault.
            let done = self.write(cache, events, 10, LARGEST);
            assert!(
                begun.elapsed() < RECOVERY,
                "{:?}: nothing sinks to the {tier} tier: {done:?}",
                self.shape
            );
        }
    }
}

/// Runs, is choked, is read, recovers, is closed and opened again.
fn filled_while_it_runs(shape: Shape) {
    let Some(mut store) = Store::new(shape) else { return };
    let (cache, events) = store.open().unwrap();
    for _ in 0..20 {
        store.write(&cache, &events, 10, LARGEST).unwrap();
    }
    let (mut refused_before, mut before, passed_over) = (0, [0, 0], store.passed_over());
    for round in 0..2 {
        // So that it holds something when it is full; and it takes more once it is not.
        passed_over.into_iter().for_each(|tier| store.sink(&cache, &events, tier));
        before[0] = written(&cache, Tier::Ssd);
        let failures = store.choke(&cache, &events);
        println!("{shape:?}, round {round}: {} failures, the first {:?}", failures.len(), failures.first());
        if shape.fails != Fails::Nothing {
            assert!(!failures.is_empty(), "{shape:?}: nothing failed on a full disk");
        }
        // The disk said so, or was asked before and then left alone, while more than the tier above holds came down to it.
        match passed_over {
            Some(tier) => {
                let above = written(&cache, Tier::Ssd) - before[0];
                // Where else it goes: down, or out, which is told.
                let elsewhere = match tier {
                    Tier::Hdd => written(&cache, Tier::Cold),
                    _ => cache.stats().counts.evicted,
                };
                println!("{shape:?}, round {round}: {above} bytes to the SSD, elsewhere {elsewhere}");
                assert!(above > 2 * store.limit("s") && elsewhere > before[1], "{shape:?}");
                before[1] = elsewhere;
            }
            None => {
                let met = refused(&cache, &store.dir(shape.small));
                println!("{shape:?}, round {round}: {met} calls of the disk failed");
                assert!(met > refused_before, "{shape:?}: the disk that is full refused nothing");
                refused_before = met;
            }
        }
        for e in &failures {
            let text = e.to_string().to_lowercase();
            let named = text.contains("no space") || text.contains("room") || text.contains("bytes are free");
            assert!(named, "{shape:?}: the error does not say that there is no room: {e}");
        }
        assert!(!store.check(&cache, &events).is_empty());
        store.recover(&cache, &events);
        store.check(&cache, &events);
    }
    passed_over.into_iter().for_each(|tier| store.sink(&cache, &events, tier));
    let begun = store.history.flush(0);
    timed("closing", || cache.close()).unwrap();
    drop(cache);
    store.hear(&events);
    store.history.flushed(begun, 0);
    let (cache, events) = store.open().unwrap();
    assert_eq!(cache.recovery().lost, 0);
    store.check_restarted(&cache, &events);
    assert!(cache.verify().unwrap().is_clean());
    cache.close().unwrap();
}

/// The disk is full when the store is opened, after a close and after a crash.
fn full_when_it_opens(shape: Shape) {
    let Some(mut store) = Store::new(shape) else { return };
    for crash in [false, true] {
        let (cache, events) = store.open().unwrap();
        for _ in 0..20 {
            store.write(&cache, &events, 10, LARGEST).unwrap();
        }
        // Housekeeping: the catalog has its reserve.
        cache.step().unwrap();
        let closing = (!crash).then(|| store.history.flush(0));
        match closing {
            Some(_) => cache.close().unwrap(),
            None => cache.crash(),
        }
        drop(cache);
        store.hear(&events);
        closing.into_iter().for_each(|begun| store.history.flushed(begun, 0));
        store.disk.fill();
        let mut files = Vec::new();
        for attempt in 0..4 {
            match store.open() {
                Ok((cache, events)) => {
                    println!("{shape:?}, crash {crash}, attempt {attempt}: it opens");
                    store.check_restarted(&cache, &events);
                    cache.crash();
                    drop(cache);
                    store.hear(&events);
                }
                Err(e) => {
                    // There is a reserve for the first time.
                    assert!(attempt > 0, "{shape:?}, crash {crash}: it does not open: {e}");
                    println!("{shape:?}, crash {crash}, attempt {attempt}: {e}");
                    let text = e.to_string();
                    let path = store.dir(shape.small);
                    assert!(text.contains(path.to_str().unwrap()), "{shape:?}, {attempt}: no path: {e}");
                    assert!(text.to_lowercase().contains("no space"), "{shape:?}, {attempt}: no cause: {e}");
                }
            }
            files.push(count_files(store.disk.path()));
            store.disk.fill();
        }
        assert!(
            files[1..].is_sorted_by(|a, b| a >= b),
            "{shape:?}: failed openings leave a trail: {files:?}"
        );
        store.disk.make_room();
        let (cache, events) = store.open().unwrap();
        assert_eq!(cache.recovery().lost, 0);
        store.check_restarted(&cache, &events);
        store.write(&cache, &events, 10, LARGEST).unwrap();
        assert!(cache.verify().unwrap().is_clean());
        cache.close().unwrap();
        drop(cache);
        store.hear(&events);
    }
}

const SSD: Shape = Shape { ssd: true, hdd: false, cold: false, small: "s", fails: Fails::Journal };
const HDD: Shape = Shape { ssd: false, hdd: true, cold: false, small: "h", fails: Fails::Writes };
const COLD: Shape = Shape { ssd: false, hdd: false, cold: true, small: "c", fails: Fails::Writes };
const SSD_OF_THREE: Shape = Shape { ssd: true, hdd: true, cold: true, small: "s", fails: Fails::Journal };
const HDD_OF_THREE: Shape = Shape { small: "h", fails: Fails::Nothing, ..SSD_OF_THREE };
const COLD_OF_THREE: Shape = Shape { small: "c", fails: Fails::Nothing, ..SSD_OF_THREE };
const CATALOG: Shape = Shape { small: "j", ..SSD_OF_THREE };

macro_rules! disks {
    ($($name:ident: $shape:expr;)*) => {
        mod filled_while_it_runs {
            $(#[test] fn $name() { super::filled_while_it_runs($shape); })*
        }
        mod full_when_it_opens {
            $(#[test] fn $name() { super::full_when_it_opens($shape); })*
        }
    };
}

disks! {
    ssd_alone: super::SSD;
    hdd_alone: super::HDD;
    cold_alone: super::COLD;
    ssd_of_three: super::SSD_OF_THREE;
    hdd_of_three: super::HDD_OF_THREE;
    cold_of_three: super::COLD_OF_THREE;
    catalog: super::CATALOG;
}
