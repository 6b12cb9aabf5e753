//! The life of one store: rounds of work that end with SIGKILL, and what is there afterwards.

use crate::common::{self, Dice, parse};
use crate::log::{Sum, key, replay, story};
use crate::plan::{Job, Plan};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use thermocline::{Cache, Event, Received, Subscription};
use thermocline_testing::history::{Absence, History, Promise, Value, Violation};

type Check<T = ()> = Result<T, String>;

/// Within this time a child has to have opened the store and begun to work.
const PATIENCE: Duration = Duration::from_secs(30);
/// The round of a store that lasts longer, where writes have to grow old, and by how much.
const OLD: u64 = 1;
const AGE: Duration = Duration::from_millis(2_400);
const SIGKILL: i32 = 9;

/// A process of ours, which does not outlive its handle.
struct Victim {
    child: Child,
    output: PathBuf,
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Victim {
    fn start(job: &Job, test: &str) -> Victim {
        let output = job.log.with_extension("out");
        let (variable, value) = job.variable();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(variable, value)
            .stdout(Stdio::null())
            .stderr(File::create(&output).unwrap())
            .spawn()
            .unwrap();
        Victim { child, output }
    }

    /// Waits until the log has so many records.
    fn wait_for(&mut self, log: &Path, records: u64) -> Check {
        let deadline = Instant::now() + PATIENCE;
        while std::fs::metadata(log).map_or(0, |m| m.len()) < 32 * records {
            if let Some(status) = self.child.try_wait().map_err(|e| e.to_string())? {
                return Err(self.says(&format!("it ended by itself, {status}")));
            }
            if Instant::now() > deadline {
                return Err(self.says("it does not begin"));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(())
    }

    fn kill(mut self) -> Check {
        let _ = self.child.kill();
        let status = self.child.wait().map_err(|e| e.to_string())?;
        match status.signal() {
            Some(SIGKILL) => Ok(()),
            _ => Err(self.says(&format!("it ended before it was killed, {status}"))),
        }
    }

    fn says(&self, what: &str) -> String {
        format!("{what}: {}", std::fs::read_to_string(&self.output).unwrap_or_default())
    }
}

/// Of each key what was found.
type Found = BTreeMap<String, Value>;

struct Life<'a> {
    seed: u64,
    plan: Plan,
    dice: Dice,
    store: TempDir,
    logs: TempDir,
    history: History,
    sum: &'a mut Sum,
}

/// Lives so many rounds, or until there is no time; `test` is the name of the test that becomes a child.
pub fn live(seed: u64, rounds: u64, test: &str, go_on: impl Fn() -> bool, sum: &mut Sum) -> Check {
    let plan = Plan::draw(seed);
    let store = if plan.in_memory { common::scratch() } else { tempfile::tempdir().unwrap() };
    let (dice, logs) = (Dice::new(!seed), common::scratch());
    let mut life = Life { seed, plan, dice, store, logs, history: History::default(), sum };
    for round in 0..rounds {
        if !go_on() {
            break;
        }
        life.round(round, test).map_err(|why| format!("round {round} of {:?}: {why}", life.plan))?;
    }
    Ok(())
}

impl Life<'_> {
    fn job(&self, round: u64, only_open: bool) -> Job {
        let name = format!("{round}-{}.log", if only_open { "open" } else { "work" });
        let log = self.logs.path().join(name);
        Job { seed: self.seed, round, only_open, store: self.store.path().into(), log }
    }

    fn round(&mut self, round: u64, test: &str) -> Check {
        let job = self.job(round, false);
        let mut victim = Victim::start(&job, test);
        // The first says that it opens.
        victim.wait_for(&job.log, 2)?;
        let longer = if self.plan.grows_old() && round == OLD { AGE } else { Duration::ZERO };
        std::thread::sleep(Duration::from_millis(30 + self.dice.below(370)) + longer);
        victim.kill()?;
        let keep_all = self.plan.tiers.keep_all();
        let told = replay(&job.log, self.plan.keys, keep_all, &self.history, self.sum);
        self.sum.rounds += 1;
        let wrong = |when, e: Violation| format!("{when}: {e}\n{}", story(&job.log, &e.key));
        self.history.check(|_| Absence::Told).map_err(|e| wrong("before the kill", e))?;
        let promise = self.plan.promise(&told);
        self.sum.aged += match promise {
            Promise::Until(ms) => told.ended_before(ms, false),
            Promise::RemovalsUntil(ms) => told.ended_before(ms, true),
            Promise::Durable | Promise::FromFlush => 0,
        };
        if self.dice.below(3) == 0 {
            self.kill_opening(round, test)?;
        }
        let (found, gone) = self.look(&job.log, promise)?;
        self.sum.found += found.len() as u64;
        self.history.restart(|key| found.get(key).copied());
        let begun = self.history.moment(0);
        gone.iter().for_each(|key| self.history.forgotten(key, &begun, 0));
        std::fs::remove_file(&job.log).map_err(|e| e.to_string())
    }

    /// An opening after a kill is killed as well.
    fn kill_opening(&mut self, round: u64, test: &str) -> Check {
        let job = self.job(round, true);
        let mut victim = Victim::start(&job, test);
        victim.wait_for(&job.log, 1)?;
        std::thread::sleep(Duration::from_micros(self.dice.below(30_000)));
        victim.kill().map_err(|e| format!("in an opening: {e}"))?;
        self.sum.killed_opening += 1;
        Ok(())
    }

    /// Opens the store, judges what is there, and ends the opening in one way or another. Gives what was there, and which
    /// keys may be gone since.
    fn look(&mut self, log: &Path, promise: Promise) -> Check<(Found, Vec<String>)> {
        let builder = self.plan.builder(self.store.path());
        let (cache, events) =
            builder.open_with_events(1 << 16).map_err(|e| format!("opening failed: {e}"))?;
        let recovery = cache.recovery();
        if recovery.lost > 0 || recovery.rebuilt || !recovery.quarantined.is_empty() {
            return Err(format!("damage that nobody did: {recovery:?}"));
        }
        let found = self.read_all(&cache)?;
        // What goes by itself may have gone since, in an opening that nobody listened to.
        let absence = if self.plan.tiers.keep_all() { Absence::Told } else { Absence::Allowed };
        self.history
            .check_crash(promise, |_| absence, |k| found.get(k).copied())
            .map_err(|e| format!("after the kill: {e}\n{}", story(log, &e.key)))?;
        let report = cache.verify().map_err(|e| format!("verify: {e}"))?;
        if !report.is_clean() || !report.mended.is_empty() {
            return Err(format!("damage that nobody did: {report:?}"));
        }
        // What was found is durable, and stays.
        let again = self.read_all(&cache)?;
        for no in 0..self.plan.keys {
            let key = key(no);
            let (a, b) = (found.get(&key), again.get(&key));
            if a != b && (b.is_some() || self.plan.tiers.keep_all()) {
                return Err(format!("{key} was {a:?} after the kill, and is {b:?} a moment later"));
            }
        }
        self.walk(&cache, &found)?;
        match self.dice.below(3) {
            0 => cache.close().map_err(|e| format!("close: {e}"))?,
            _ => cache.crash(),
        }
        drop(cache);
        Ok((again, self.hear(&events)?))
    }

    fn read_all(&self, cache: &Cache) -> Check<Found> {
        let mut found = Found::new();
        for no in 0..self.plan.keys {
            let key = key(no);
            let Some(bytes) = cache.get(&key).map_err(|e| format!("get {key}: {e}"))? else { continue };
            match parse(&bytes) {
                Some((of, value)) if of == u64::from(no) => found.insert(key, value),
                other => return Err(format!("{key}: {} bytes that are {other:?}", bytes.len())),
            };
        }
        Ok(found)
    }

    /// The walk over all keys says the same as the reads.
    fn walk(&self, cache: &Cache, found: &Found) -> Check {
        let mut walked = Vec::new();
        for key in cache.keys("") {
            let key = key.map_err(|e| format!("a walk: {e}"))?;
            walked.push(String::from_utf8_lossy(&key).into_owned());
        }
        walked.sort();
        let same = walked.iter().eq(found.keys());
        let fewer = walked.iter().all(|k| found.contains_key(k)) && !self.plan.tiers.keep_all();
        if same || fewer { Ok(()) } else { Err(format!("{} keys, {} items", walked.len(), found.len())) }
    }

    /// Keys that went by themselves.
    fn hear(&self, events: &Subscription) -> Check<Vec<String>> {
        let mut gone = Vec::new();
        while let Ok(received) = events.try_recv() {
            match received {
                Received::Event(Event::Promoted { .. } | Event::Demoted { .. }) => {}
                Received::Event(Event::Evicted { key: of, .. }) if !self.plan.tiers.keep_all() => match of {
                    Some(of) => gone.push(String::from_utf8_lossy(&of).into_owned()),
                    None => gone.extend((0..self.plan.keys).map(key)),
                },
                other => return Err(format!("an event after the kill: {other:?}")),
            }
        }
        Ok(gone)
    }
}
