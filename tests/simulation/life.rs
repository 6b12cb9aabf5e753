//! One life of a store: openings, work, and ends, from a seed.

mod asked;
mod ops;
mod recovery;

use crate::common;
use crate::plan::{KIB, Plan};
use crate::rows::Doing;
use crate::told::Told;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thermocline::testing::ManualClock;
use thermocline::{Cache, Event, Persistence, Received, Subscription};
use thermocline_storage::sim::{Dice, SimFs};
use thermocline_testing::history::{Absence, Begun, History, Promise, Value};

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
    /// Other dice, for what was thought of later.
    more: Dice,
    /// And others, for what the optimizer might do.
    turns: Dice,
    told: &'a mut Told,
    fs: SimFs,
    clock: Arc<ManualClock>,
    now: u64,
    store: Option<(Cache, Subscription)>,
    history: History,
    /// When each value expires that does.
    expires: BTreeMap<Value, Expiry>,
    /// Values whose expiry is not durable.
    loose: Vec<Value>,
    /// Everything that was done is durable.
    settled: bool,
    /// Of each key, those of its values that expire.
    of_key: BTreeMap<String, Vec<Value>>,
    /// Of each key the value that was put last, or found by an opening.
    last: BTreeMap<String, Value>,
    values: Value,
    /// Calls fail at present.
    failing: bool,
    /// A bit was turned under the open store: from then on items may be absent.
    rotten: bool,
    doing: Doing,
}

/// When a value expires, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Expiry {
    /// As long as the store is open.
    now: u64,
    /// After a crash, at the latest.
    latest: u64,
}

/// Lives from this seed.
pub fn live(seed: u64, told: &mut Told) -> Check {
    let mut dice = Dice::new(seed);
    let plan = Plan::draw(seed, &mut dice);
    live_by(seed, dice, plan, told)
}

/// Lives from this seed as it was lived before there were later thoughts.
pub fn live_without_later_thoughts(seed: u64, told: &mut Told) -> Check {
    let mut dice = Dice::new(seed);
    let plan = Plan::draw(seed, &mut dice).without_later_thoughts();
    live_by(seed, dice, plan, told)
}

/// Lives from this seed as it was lived before the optimizer had a hand in it.
pub fn live_without_the_optimizer(seed: u64, told: &mut Told) -> Check {
    let mut dice = Dice::new(seed);
    let plan = Plan::draw(seed, &mut dice).without_the_optimizer();
    live_by(seed, dice, plan, told)
}

fn live_by(seed: u64, dice: Dice, plan: Plan, told: &mut Told) -> Check {
    told.say(|| format!("{plan:?}"));
    let fs = plan.all_dirs().iter().fold(SimFs::new(seed), |fs, dir| fs.with_dir(dir.as_ref()));
    let fs = if plan.maps { fs.with_maps() } else { fs };
    if told.trace.is_some() {
        fs.keep_trace();
    }
    let mut life = Life {
        plan,
        dice,
        more: Dice::new(seed.rotate_left(32)),
        turns: Dice::new(seed.rotate_left(16)),
        told,
        fs,
        clock: Arc::new(ManualClock::new(START)),
        now: START,
        store: None,
        history: History::default(),
        expires: BTreeMap::new(),
        loose: Vec::new(),
        settled: false,
        of_key: BTreeMap::new(),
        last: BTreeMap::new(),
        values: 0,
        failing: false,
        rotten: false,
        doing: Doing::Opening,
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

    /// Whether what a read finds is all that there is.
    fn is_sure(&self) -> bool {
        !self.failing && !self.rotten
    }

    /// When an item may be absent, as far as is known.
    fn absence(&self) -> impl Fn(&str) -> Absence {
        let rotten = self.rotten;
        move |key| if rotten { Absence::Allowed } else { absence(key) }
    }

    fn open(&mut self) -> Check {
        self.doing = Doing::Opening;
        if self.plan.wide && self.more.one_in(3) {
            let (ahead, seed) = (1 + self.more.below(140), self.more.roll());
            self.fs.crash_at(self.mark() + ahead, seed);
        }
        let since = self.history.moment(self.mark());
        let builder = self.plan.builder().simulated(Arc::new(self.fs.clone()), self.clock.clone());
        let store = builder.open_with_events(4_000).map_err(|e| format!("opening failed: {e}"))?;
        self.store = Some(store);
        self.told.say(|| "open".into());
        self.hear(&since)?;
        if self.plan.wide {
            self.recover_clones()?;
        }
        Ok(())
    }

    /// What the store said that it let go of.
    fn hear(&mut self, since: &Begun) -> Check<BTreeSet<String>> {
        let mark = self.mark();
        let mut gone = BTreeSet::new();
        let Some((_, events)) = &self.store else { return Ok(gone) };
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
                    let key = String::from_utf8_lossy(&key).into_owned();
                    self.history.forgotten(&key, since, mark);
                    gone.insert(key);
                }
                Ok(Received::Event(Event::Evicted { key: None, .. } | Event::Displaced { .. })) => {
                    if self.is_sure() {
                        return Err("something went whose key nobody could read".into());
                    }
                    // Any may be it.
                    for key in self.history.keys() {
                        self.history.forgotten(&key, since, mark);
                        gone.insert(key);
                    }
                }
                Ok(Received::Event(Event::Promoted { .. } | Event::Demoted { .. })) => {
                    self.told.counts.moved += 1
                }
                Ok(Received::Event(e @ (Event::Quarantined { .. } | Event::Lost { .. }))) if !self.rotten => {
                    return Err(format!("damage that nobody did: {e:?}"));
                }
                Ok(Received::Lagged(n)) => return Err(format!("{n} events were missed")),
                Ok(_) => {}
                Err(_) => return Ok(gone),
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
        if self.plan.wide && self.plan.rot && self.is_sure() && self.more.one_in(80) {
            self.rot();
        }
        let since = self.history.moment(self.mark());
        self.doing = Doing::Else;
        if self.plan.turned && self.turns.one_in(6) {
            self.turn();
        } else if self.plan.wide && self.more.one_in(8) {
            self.ask()?;
        } else {
            self.act()?;
        }
        self.hear(&since)?;
        self.recover_clones()?;
        if std::mem::take(&mut self.settled) {
            self.settle_expiries();
        }
        Ok(())
    }

    fn act(&mut self) -> Check {
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
            76..=79 => self.flush()?,
            80..=83 => self.advance(),
            84 => self.expire_in(),
            _ => self.work()?,
        }
        Ok(())
    }

    fn change_faults(&mut self) -> Check {
        if self.failing {
            self.fs.heal();
            self.told.say(|| "healed".into());
            return self.mend();
        }
        let dir = *self.dice.pick(&self.plan.all_dirs()).unwrap_or(&"/");
        let dir = Path::new(if self.dice.one_in(3) { "/" } else { dir });
        self.failing = true;
        match self.dice.below(6) {
            0 => {
                let room = self.fs.used(dir) + self.dice.below(64 * KIB);
                self.told.say(|| format!("{} has {room} bytes of room", dir.display()));
                self.fs.set_room(dir, Some(room));
                self.told.fault("full");
            }
            1 => {
                let (name, how) = self.plan.away(&mut self.more);
                self.told.say(|| format!("{} is {name}", dir.display()));
                self.fs.take_away(dir, how);
                self.told.fault(name);
            }
            _ => {
                let (name, fault) = self.plan.fault(&mut self.dice, &mut self.more);
                self.told.say(|| format!("{name}: {fault:?}"));
                self.fs.fail(fault);
                self.told.fault(name);
            }
        }
        Ok(())
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
            self.told.counts.prefetched += cache.stats().counts.prefetched;
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
        self.told.counts.mapped += before.mapped();
        self.keep(&before);
        let history = std::mem::take(&mut self.history);
        let (disk, found) = self.recover(&history, disk, self.rotten)?;
        history.restart(|key| found.get(key).copied());
        self.history = history;
        self.last = found;
        // Which of two times is in force after the crash is not known.
        self.loose.clear();
        self.expires.values_mut().for_each(|e| e.now = e.latest);
        self.fs = disk;
        Ok(())
    }

    /// What was out of service comes back by itself some time after the disk works again.
    fn mend(&mut self) -> Check {
        if std::mem::take(&mut self.failing) {
            let since = self.history.moment(self.mark());
            self.doing = Doing::Working;
            // What is being built, of a disk that was away, took no time by this clock. If it went on meanwhile, the index
            // would have taken minutes, and rest for eight times as long.
            if !self.cache().settle(Duration::from_secs(60)) {
                return Err("the keeper of the HDD tier does not end".into());
            }
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
        self.hear(&since)?;
        self.history.flushed(begun, self.mark());
        Ok(())
    }
}

/// Of each key what was found.
type Found = BTreeMap<String, Value>;
