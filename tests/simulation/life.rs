//! One life of a store: openings, work, and ends, from a seed.

use crate::common;
use crate::plan::{KIB, Plan};
use crate::told::Told;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thermocline::testing::ManualClock;
use thermocline::{Cache, Event, Persistence, PutOptions, Received, Subscription, Tier};
use thermocline_storage::sim::{Dice, SimFs};
use thermocline_testing::history::{Absence, Begun, History, Outcome, Promise, Value};

/// When a life begins.
const START: u64 = 1_700_000_000_000;

/// Keys that expire begin with this: they may be away at any time.
const FICKLE: &str = "t/";

fn absence(key: &str) -> Absence {
    if key.starts_with(FICKLE) { Absence::Allowed } else { Absence::Told }
}

type Check<T = ()> = Result<T, String>;

/// The store, its disk, and what was done to it since it was opened.
struct Life<'a> {
    plan: Plan,
    dice: Dice,
    told: &'a mut Told,
    fs: SimFs,
    clock: Arc<ManualClock>,
    now: u64,
    store: Option<(Cache, Subscription)>,
    history: History,
    /// When each value expires that does.
    expires: BTreeMap<Value, u64>,
    /// Of each key, those of its values.
    of_key: BTreeMap<String, Vec<Value>>,
    values: Value,
    /// Calls fail at present.
    failing: bool,
}

/// Lives from this seed.
pub fn live(seed: u64, told: &mut Told) -> Check {
    let mut dice = Dice::new(seed);
    let plan = Plan::draw(seed, &mut dice);
    told.say(|| format!("{plan:?}"));
    let fs = plan.all_dirs().iter().fold(SimFs::new(seed), |fs, dir| fs.with_dir(dir.as_ref()));
    if told.trace.is_some() {
        fs.keep_trace();
    }
    let mut life = Life {
        plan,
        dice,
        told,
        fs,
        clock: Arc::new(ManualClock::new(START)),
        now: START,
        store: None,
        history: History::default(),
        expires: BTreeMap::new(),
        of_key: BTreeMap::new(),
        values: 0,
        failing: false,
    };
    let openings = 1 + life.dice.below(2);
    for _ in 0..openings {
        life.open()?;
        for _ in 0..10 + life.dice.below(50) {
            life.step()?;
        }
        life.end()?;
    }
    life.open()?;
    life.close()
}

impl Life<'_> {
    fn promise(&self) -> Promise {
        match self.plan.persistence {
            Persistence::Always => Promise::Durable,
            _ => Promise::FromFlush,
        }
    }

    fn cache(&self) -> &Cache {
        &self.store.as_ref().expect("it is open").0
    }

    fn mark(&self) -> u64 {
        self.fs.changes()
    }

    fn open(&mut self) -> Check {
        let builder = self.plan.builder().simulated(Arc::new(self.fs.clone()), self.clock.clone());
        let store = builder.open_with_events(4_000).map_err(|e| format!("opening failed: {e}"))?;
        self.store = Some(store);
        self.told.say(|| "open".into());
        Ok(())
    }

    /// What the store said that it let go of.
    fn hear(&mut self, since: &Begun) -> Check {
        let mark = self.mark();
        let Some((_, events)) = &self.store else { return Ok(()) };
        loop {
            let heard = events.try_recv();
            if let Ok(heard) = &heard {
                self.told.say(|| format!("  {heard:?}"));
            }
            match heard {
                Ok(Received::Event(
                    Event::Evicted { key: Some(key), .. } | Event::Expired { key: Some(key), .. },
                )) => {
                    self.told.counts.evicted += 1;
                    self.history.forgotten(&String::from_utf8_lossy(&key), since, mark);
                }
                Ok(Received::Event(Event::Evicted { key: None, .. } | Event::Displaced { .. })) => {
                    if !self.failing {
                        return Err("something went whose key nobody could read".into());
                    }
                    // Any may be it.
                    for key in self.history.keys() {
                        self.history.forgotten(&key, since, mark);
                    }
                }
                Ok(Received::Event(Event::Promoted { .. } | Event::Demoted { .. })) => {
                    self.told.counts.moved += 1
                }
                Ok(Received::Event(e @ (Event::Quarantined { .. } | Event::Lost { .. }))) => {
                    return Err(format!("damage that nobody did: {e:?}"));
                }
                Ok(Received::Lagged(n)) => return Err(format!("{n} events were missed")),
                Ok(_) => {}
                Err(_) => return Ok(()),
            }
        }
    }

    fn key(&mut self) -> String {
        let no = self.dice.below(self.plan.keys);
        // Some are long, and all have one of these prefixes.
        let tail = if no.is_multiple_of(7) { "x".repeat(300) } else { String::new() };
        format!("{}{no}{tail}", ["a/", "b/", "c/", FICKLE][no as usize % 4])
    }

    fn value(&mut self, key: &str) -> (Value, bytes::Bytes) {
        self.values += 1;
        let len = match self.dice.below(10) {
            0..=3 => self.dice.below(200),
            4..=7 => self.dice.below(4 * KIB),
            8 => self.dice.below(8 * KIB),
            _ => self.dice.below(16 * KIB),
        };
        let tag = key.bytes().fold(7u64, |a, b| a.wrapping_mul(31).wrapping_add(u64::from(b)));
        (self.values, common::value(tag, self.values, len as usize))
    }

    fn step(&mut self) -> Check {
        self.told.counts.operations += 1;
        if self.dice.one_in(10) {
            let (ahead, seed) = (1 + self.dice.below(12), self.dice.roll());
            self.fs.crash_at(self.mark() + ahead, seed);
        }
        if self.plan.faults && self.dice.one_in(25) {
            self.change_faults()?;
        }
        let since = self.history.moment(self.mark());
        let what = self.dice.below(100);
        self.told.say(|| format!("{what} at change {}", self.mark()));
        match what {
            0..=34 => self.put(),
            35..=59 => {
                let key = self.key();
                self.read(&key)?;
            }
            60..=67 => self.remove(),
            68..=69 => self.remove_many(),
            70..=75 => self.shift(),
            76..=79 if self.plan.unflushed => {}
            76..=79 => self.flush(),
            80..=83 => self.advance(),
            84 => self.expire_in(),
            _ => self.work()?,
        }
        self.hear(&since)?;
        self.recover_clones()
    }

    fn change_faults(&mut self) -> Check {
        if self.failing {
            self.fs.heal();
            self.told.say(|| "healed".into());
            return self.mend();
        }
        let dir = *self.dice.pick(&self.plan.all_dirs()).unwrap_or(&"/");
        let dir = Path::new(if self.dice.one_in(3) { "/" } else { dir });
        self.told.counts.faults += 1;
        self.failing = true;
        match self.dice.below(6) {
            0 => {
                let room = self.fs.used(dir) + self.dice.below(64 * KIB);
                self.told.say(|| format!("{} has {room} bytes of room", dir.display()));
                self.fs.set_room(dir, Some(room));
            }
            1 => {
                self.told.say(|| format!("{} is away", dir.display()));
                self.fs.take_away(dir);
            }
            _ => {
                let fault = self.plan.fault(&mut self.dice);
                self.told.say(|| format!("{fault:?}"));
                self.fs.fail(fault);
            }
        }
        Ok(())
    }

    fn put(&mut self) {
        let key = self.key();
        let (value, bytes) = self.value(&key);
        let mut options = PutOptions::new();
        if key.starts_with(FICKLE) && self.dice.one_in(2) {
            let ms = self.dice.below(20_000);
            options = options.ttl(Duration::from_millis(ms));
            self.expires.insert(value, self.now + ms);
            self.of_key.entry(key.clone()).or_default().push(value);
        }
        self.told.say(|| format!("put {key:.20} {value} ({} bytes)", bytes.len()));
        let begun = self.history.write(&key, Some(value), self.mark());
        let done = self.cache().put_with(&key, bytes, options);
        let outcome = match done {
            Ok(_) => Outcome::Done,
            Err(e) => {
                self.told.counts.refused += 1;
                self.told.say(|| format!("refused: {e}"));
                Outcome::Refused
            }
        };
        self.history.wrote(&key, begun, outcome, self.mark());
    }

    /// What a read gave: whose value it is, and that it has not expired.
    fn judge(&self, key: &str, bytes: Option<&[u8]>, now: u64) -> Check<Option<Value>> {
        let Some(bytes) = bytes else { return Ok(None) };
        let tag = key.bytes().fold(7u64, |a, b| a.wrapping_mul(31).wrapping_add(u64::from(b)));
        match common::parse(bytes) {
            Some((of, value)) if of == tag => {
                if self.expires.get(&value).is_some_and(|at| *at <= now) {
                    return Err(format!("{key}: {value} was read after it had expired"));
                }
                Ok(Some(value))
            }
            other => Err(format!("{key}: a read gave {} bytes that are {other:?}", bytes.len())),
        }
    }

    fn read(&mut self, key: &str) -> Check {
        let begun = self.history.read(self.mark());
        let got = self.cache().get(key);
        self.told.say(|| format!("get {key:.20}: {:?}", got.as_ref().map(|v| v.as_ref().map(|v| v.len()))));
        match got {
            // What cannot be reached is absent for now.
            Ok(None) if self.failing => {}
            Err(_) if self.failing => {}
            Ok(found) => {
                let value = self.judge(key, found.as_deref(), self.now)?;
                self.history.was_read(key, begun, value, self.mark());
                self.history.check(absence).map_err(|e| e.to_string())?;
            }
            Err(e) => return Err(format!("get {key}: {e}")),
        }
        Ok(())
    }

    fn remove(&mut self) {
        let key = self.key();
        self.told.say(|| format!("remove {key:.20}"));
        self.removing(vec![key.clone()], |cache| cache.remove(&key).map(|_| ()));
    }

    fn remove_many(&mut self) {
        let prefix = *self.dice.pick(&["a/", "b/", "c/", FICKLE, ""]).unwrap_or(&"");
        self.told.say(|| format!("remove all of {prefix:?}"));
        let keys = self.history.keys().into_iter().filter(|k| k.starts_with(prefix)).collect();
        self.removing(keys, |cache| match prefix {
            "" => cache.clear().map(|_| ()),
            _ => cache.remove_prefix(prefix).map(|_| ()),
        });
    }

    /// A removal that fails may have had its effect.
    fn removing(&mut self, keys: Vec<String>, remove: impl FnOnce(&Cache) -> thermocline::Result<()>) {
        let mark = self.mark();
        let begun: Vec<_> = keys.into_iter().map(|k| (self.history.write(&k, None, mark), k)).collect();
        let outcome = if remove(self.cache()).is_ok() { Outcome::Done } else { Outcome::Unknown };
        for (begun, key) in begun {
            self.history.wrote(&key, begun, outcome, self.mark());
        }
    }

    fn shift(&mut self) {
        let key = self.key();
        let tier = Tier::ALL[self.dice.below(4) as usize];
        self.told.say(|| format!("shift {key:.20} to {tier}"));
        // Tiers that are not there, and disks that fail, say so.
        let _ = if self.dice.one_in(2) {
            self.cache().demote(&key, tier)
        } else {
            self.cache().promote(&key, tier)
        };
    }

    fn flush(&mut self) {
        let begun = self.history.flush(self.mark());
        match self.cache().flush() {
            Ok(()) => self.history.flushed(begun, self.mark()),
            Err(e) => self.told.say(|| format!("flush: {e}")),
        }
    }

    fn advance(&mut self) {
        let ms = if self.dice.one_in(10) { 90_000_000 } else { self.dice.below(5_000) };
        self.clock.advance(ms);
        self.now += ms;
        self.told.say(|| format!("{ms} ms pass"));
    }

    /// A new time to live. When it expires from now on is not known here.
    fn expire_in(&mut self) {
        let key = self.key();
        if !key.starts_with(FICKLE) {
            return;
        }
        let ms = self.dice.below(10_000);
        self.told.say(|| format!("{key:.20} expires in {ms} ms"));
        let values = self.of_key.remove(&key).unwrap_or_default();
        values.iter().for_each(|v| {
            self.expires.remove(v);
        });
        let _ = self.cache().expire_in(&key, Some(Duration::from_millis(ms)));
    }

    /// The background jobs.
    fn work(&mut self) -> Check {
        match self.cache().step() {
            Ok(()) => Ok(()),
            Err(e) if self.failing => {
                self.told.say(|| format!("step: {e}"));
                Ok(())
            }
            Err(e) => Err(format!("a step failed: {e}")),
        }
    }

    /// The crash clones that are due: each opens, and has what it must.
    fn recover_clones(&mut self) -> Check {
        for (at, clone) in self.fs.taken() {
            let past = self.history.up_to(at);
            self.told.counts.crashes += 1;
            self.told.say(|| format!("crash before change {at}"));
            let rotten = self.plan.rot && self.dice.one_in(2) && self.turn_a_bit(&clone);
            if let Err(e) = self.recover(&past, clone, rotten) {
                self.told.say_changes(&self.fs);
                return Err(format!("after a crash before change {at}: {e}"));
            }
        }
        Ok(())
    }

    /// Keeps what was done to a disk, if that is asked for.
    fn keep(&mut self, disk: &SimFs) {
        if let Some(all) = &mut self.told.trace {
            all.extend(disk.trace());
        }
    }

    /// Opens what a crash left, perhaps after an opening that is cut off as well; gives what is found.
    fn recover(&mut self, past: &History, disk: SimFs, rotten: bool) -> Check<(SimFs, Found)> {
        let mut disk = disk;
        // What one opening evicts may be gone for the next.
        let mut gone = BTreeSet::new();
        while self.dice.one_in(3) {
            self.told.counts.cut_off += 1;
            let ahead = 1 + self.dice.below(60);
            disk.crash_at(disk.changes() + ahead, self.dice.roll());
            let opened = self.look(past, &disk, rotten, &mut gone)?;
            match disk.taken().pop() {
                Some((_, cut)) => disk = cut,
                None => return Ok((disk, opened)),
            }
        }
        let found = self.look(past, &disk, rotten, &mut gone)?;
        Ok((disk, found))
    }

    /// Turns one bit of a file.
    fn turn_a_bit(&mut self, disk: &SimFs) -> bool {
        let files = disk.files();
        let Some(path) = self.dice.pick(&files).cloned() else { return false };
        let (place, bit) = (self.dice.roll(), self.dice.below(8));
        let mut at = None;
        disk.edit(&path, |bytes| {
            at = (place as usize).checked_rem(bytes.len());
            if let Some(at) = at {
                bytes[at] ^= 1 << bit;
            }
        });
        self.told.say(|| format!("bit {bit} of byte {at:?} of {} turned", path.display()));
        self.told.counts.rotten += u64::from(at.is_some());
        at.is_some()
    }

    /// Opens a disk, looks at every key, goes on for a little, and looks again. Rotten: a bit was turned somewhere, so
    /// that items may be absent; never older, and never wrong. So may those that are `gone`, which learns what went.
    fn look(
        &mut self,
        past: &History,
        disk: &SimFs,
        rotten: bool,
        gone: &mut BTreeSet<String>,
    ) -> Check<Found> {
        self.told.counts.recoveries += 1;
        if self.told.trace.is_some() {
            disk.keep_trace();
        }
        let clock = Arc::new(ManualClock::new(self.now));
        let builder = self.plan.builder().simulated(Arc::new(disk.clone()), clock);
        let (cache, events) = builder.open_with_events(4_000).map_err(|e| format!("opening failed: {e}"))?;
        let first = self.look_at(past, &cache)?;
        gone.append(&mut self.gone(&events, rotten)?);
        past.check_crash(
            self.promise(),
            |k| if rotten || gone.contains(k) { Absence::Allowed } else { absence(k) },
            |k| first.get(k).copied(),
        )
        .map_err(|e| {
            self.told.say_changes(disk);
            self.told.say(|| format!("recovery: {:?}\n{:?}", cache.recovery(), cache.stats()));
            e.to_string()
        })?;
        let report = cache.verify().map_err(|e| format!("verify: {e}"))?;
        if !report.is_clean() && !rotten {
            return Err(format!("damage that nobody did: {report:?}"));
        }
        cache.step().map_err(|e| format!("a step failed: {e}"))?;
        let again = self.look_at(past, &cache)?;
        gone.append(&mut self.gone(&events, rotten)?);
        for key in past.keys() {
            let (a, b) = (first.get(&key), again.get(&key));
            let away = b.is_none() && (rotten || gone.contains(&key) || key.starts_with(FICKLE));
            if a != b && !away {
                return Err(format!("{key} was {a:?} after the crash, and is {b:?} after a step"));
            }
        }
        cache.close().map_err(|e| format!("close: {e}"))?;
        self.keep(disk);
        Ok(again)
    }

    fn look_at(&self, past: &History, cache: &Cache) -> Check<Found> {
        let mut found = Found::new();
        for key in past.keys() {
            let got = cache.get(&key).map_err(|e| format!("get {key}: {e}"))?;
            if let Some(value) = self.judge(&key, got.as_deref(), self.now)? {
                found.insert(key, value);
            }
        }
        Ok(found)
    }

    /// Keys that went by themselves.
    fn gone(&self, events: &Subscription, rotten: bool) -> Check<BTreeSet<String>> {
        let mut gone = BTreeSet::new();
        loop {
            match events.try_recv() {
                Ok(Received::Event(Event::Evicted { key: Some(key), .. })) => {
                    gone.insert(String::from_utf8_lossy(&key).into_owned());
                }
                Ok(Received::Event(
                    e @ (Event::Evicted { .. }
                    | Event::Displaced { .. }
                    | Event::Quarantined { .. }
                    | Event::Lost { .. }),
                )) if !rotten => return Err(format!("damage that nobody did: {e:?}")),
                Ok(Received::Lagged(n)) => return Err(format!("{n} events were missed")),
                Ok(_) => {}
                Err(_) => return Ok(gone),
            }
        }
    }

    /// The end of an opening: a close, a kill or a power cut.
    fn end(&mut self) -> Check {
        self.fs.heal();
        let closed = self.dice.one_in(3);
        if closed {
            self.mend()?;
            self.close()?;
        }
        if let Some((cache, _)) = self.store.take() {
            cache.crash();
        }
        self.failing = false;
        self.told.say(|| if closed { "closed" } else { "crash" }.into());
        let disk = match self.dice.below(3) {
            0 => self.fs.kill(),
            _ => self.fs.crash(&mut self.dice),
        };
        self.told.counts.crashes += 1;
        let before = self.fs.clone();
        self.keep(&before);
        let history = std::mem::take(&mut self.history);
        let (disk, found) = self.recover(&history, disk, false)?;
        history.restart(|key| found.get(key).copied());
        self.history = history;
        self.fs = disk;
        Ok(())
    }

    /// What was out of service comes back by itself some time after the disk works again.
    fn mend(&mut self) -> Check {
        if std::mem::take(&mut self.failing) {
            let since = self.history.moment(self.mark());
            for _ in 0..3 {
                self.clock.advance(60_000);
                self.now += 60_000;
                let _ = self.cache().step();
            }
            self.hear(&since)?;
            self.recover_clones()?;
        }
        Ok(())
    }

    /// Everything that was acknowledged is durable then.
    fn close(&mut self) -> Check {
        let since = self.history.moment(self.mark());
        let begun = self.history.flush(self.mark());
        self.cache().close().map_err(|e| format!("close: {e}"))?;
        self.history.flushed(begun, self.mark());
        self.hear(&since)
    }
}

/// Of each key what was found.
type Found = BTreeMap<String, Value>;
