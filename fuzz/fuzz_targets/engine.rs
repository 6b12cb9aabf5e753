//! The whole engine on a simulated disk, against the judge of histories: operations, background work, kills, power cuts,
//! disks that fail or are full, and openings again, in any order.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thermocline::testing::{ManualClock, change};
use thermocline::{
    Builder, Cache, Event, MemoryPolicy, Persistence, PutOptions, Received, Subscription, Tier,
};
use thermocline_fuzz::image::START;
use thermocline_fuzz::value;
use thermocline_storage::sim::{Dice, EIO, ENOSPC, Fault, Op, SimFs, Trouble};
use thermocline_testing::history::{Absence, Begun, History, Outcome, Promise};

const KIB: u64 = 1 << 10;
/// Operations of one run.
const MOST: usize = 60;

#[derive(Debug, Arbitrary)]
struct Input {
    tiers: u8,
    /// Bits: how durable, which policy, whether the cold tier has a limit.
    shape: u8,
    seed: u16,
    ops: Vec<Do>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Do {
    Put {
        key: u8,
        len: u16,
        ttl: Option<u8>,
    },
    Get(u8),
    Remove(u8),
    RemovePrefix(u8),
    Shift {
        key: u8,
        tier: u8,
        up: bool,
    },
    Expire {
        key: u8,
        seconds: Option<u8>,
    },
    Flush,
    Step(u8),
    Advance(u16),
    Walk,
    Verify,
    /// The process ends, and the machine goes on.
    Kill,
    /// A power cut.
    Crash(u8),
    Close,
    Fault {
        what: u8,
        after: u8,
        times: u8,
        dir: u8,
    },
    Heal,
    /// What the optimizer might do.
    Turn {
        what: u8,
        to: u8,
    },
}

fn dirs(input: &Input) -> Vec<&'static str> {
    let tiers = if input.tiers % 8 == 0 { 7 } else { input.tiers % 8 };
    ["/s", "/h", "/c"]
        .into_iter()
        .enumerate()
        .filter(|(n, _)| tiers & 1 << n != 0)
        .map(|(_, dir)| dir)
        .collect()
}

fn builder(input: &Input) -> Builder {
    let persistence = [Persistence::Always, Persistence::EverySecond, Persistence::OnEviction];
    let policy = if input.shape & 4 == 0 { MemoryPolicy::Adaptive } else { MemoryPolicy::Lru };
    let mut b =
        Cache::builder().memory(24 * KIB).memory_policy(policy).persistence(promised(input, persistence));
    let size = 64 * KIB;
    for dir in dirs(input) {
        b = match dir {
            "/s" => b.ssd(dir, size),
            "/h" => b.hdd(dir, 2 * size),
            _ if input.shape & 8 == 0 => b.cold(dir),
            _ => b.cold(dir).cold_limit(2 * size),
        };
    }
    b.config_mut().resources.io.write_buffer_size = 32 * KIB;
    let s = &mut b.config_mut().storage;
    s.segment_size = Some(size / 8);
    s.generation_size = Some(size / 4);
    s.pack_size = Some(size / 4);
    s.block_size = 4 * KIB;
    s.max_value_size = Some(16 * KIB);
    s.inflight = Some(1 << 20);
    s.write_stall_limit = 0;
    s.checkpoint_journal_size = 16 * KIB;
    s.erase_after = 1;
    b
}

fn promised<T: Copy>(input: &Input, of: [T; 3]) -> T {
    of[usize::from(input.shape & 3) % 3]
}

/// Keys that expire begin with this: they may be away at any time.
const FICKLE: &str = "t/";

fn key(n: u8) -> String {
    let tail = if n % 16 == 7 { "x".repeat(300) } else { String::new() };
    format!("{}{}{tail}", ["a/", "b/", FICKLE][usize::from(n) % 3], n % 16)
}

fn absence(key: &str) -> Absence {
    if key.starts_with(FICKLE) { Absence::Allowed } else { Absence::Told }
}

struct Run<'a> {
    input: &'a Input,
    dice: Dice,
    fs: SimFs,
    clock: Arc<ManualClock>,
    now: u64,
    cache: Cache,
    events: Subscription,
    history: History,
    expires: BTreeMap<u64, u64>,
    values: u64,
    failing: bool,
}

fn open(input: &Input, fs: &SimFs, clock: &Arc<ManualClock>) -> (Cache, Subscription) {
    builder(input).simulated(Arc::new(fs.clone()), clock.clone()).open_with_events(4_000).expect("it opens")
}

impl Run<'_> {
    fn mark(&self) -> u64 {
        self.fs.changes()
    }

    /// What went by itself, as the store tells it.
    fn hear(&mut self, since: &Begun) {
        let mark = self.mark();
        loop {
            match self.events.try_recv() {
                Ok(Received::Event(
                    Event::Evicted { key: Some(key), .. } | Event::Expired { key: Some(key), .. },
                )) => self.history.forgotten(&String::from_utf8_lossy(&key), since, mark),
                Ok(Received::Event(Event::Evicted { key: None, .. } | Event::Displaced { .. })) => {
                    assert!(self.failing, "something went whose key nobody could read");
                    self.history.keys().iter().for_each(|key| self.history.forgotten(key, since, mark));
                }
                Ok(Received::Event(e @ (Event::Quarantined { .. } | Event::Lost { .. }))) => {
                    panic!("damage that nobody did: {e:?}")
                }
                Ok(Received::Lagged(n)) => panic!("{n} events were missed"),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    fn judge(&self, key: &str, bytes: Option<&[u8]>) -> Option<u64> {
        let n = value::number(key, bytes?).unwrap_or_else(|| panic!("{key}: a value that nobody put"));
        assert!(
            self.expires.get(&n).is_none_or(|at| *at > self.now),
            "{key}: {n} was read after it had expired"
        );
        Some(n)
    }

    fn read(&mut self, key: &str) {
        let begun = self.history.read(self.mark());
        match self.cache.get(key) {
            // What cannot be reached is absent for now.
            Ok(None) | Err(_) if self.failing => {}
            Ok(found) => {
                let value = self.judge(key, found.as_deref());
                self.history.was_read(key, begun, value, self.mark());
                self.history.check(absence).unwrap_or_else(|e| panic!("{e}"));
            }
            Err(e) => panic!("get {key}: {e}"),
        }
    }

    fn put(&mut self, key: &str, len: u16, ttl: Option<u8>) {
        self.values += 1;
        let n = self.values;
        let bytes = value::make(key, n, usize::from(len) % (15 << 10));
        let mut options = PutOptions::new();
        if let Some(seconds) = ttl.filter(|_| key.starts_with(FICKLE)) {
            options = options.ttl(Duration::from_secs(seconds.into()));
            self.expires.insert(n, self.now + 1_000 * u64::from(seconds));
        }
        let begun = self.history.write(key, Some(n), self.mark());
        let done = self.cache.put_with(key, bytes, options);
        let outcome = if done.is_ok() { Outcome::Done } else { Outcome::Refused };
        self.history.wrote(key, begun, outcome, self.mark());
    }

    /// A removal that fails may have had its effect.
    fn remove(&mut self, keys: Vec<String>, remove: impl FnOnce(&Cache) -> bool) {
        let mark = self.mark();
        let begun: Vec<_> = keys.into_iter().map(|k| (self.history.write(&k, None, mark), k)).collect();
        let outcome = if remove(&self.cache) { Outcome::Done } else { Outcome::Unknown };
        for (begun, key) in begun {
            self.history.wrote(&key, begun, outcome, self.mark());
        }
    }

    fn act(&mut self, what: Do) {
        let since = self.history.moment(self.mark());
        match what {
            Do::Put { key: k, len, ttl } => self.put(&key(k), len, ttl),
            Do::Get(k) => self.read(&key(k)),
            Do::Remove(k) => {
                let key = key(k);
                self.remove(vec![key.clone()], |cache| cache.remove(&key).is_ok());
            }
            Do::RemovePrefix(n) => {
                let prefix = ["a/", "b/", FICKLE, ""][usize::from(n) % 4];
                let keys = self.history.keys().into_iter().filter(|k| k.starts_with(prefix)).collect();
                self.remove(keys, |cache| match prefix {
                    "" => cache.clear().is_ok(),
                    _ => cache.remove_prefix(prefix).is_ok(),
                });
            }
            Do::Shift { key: k, tier, up } => {
                let (key, tier) = (key(k), Tier::ALL[usize::from(tier) % 4]);
                // Tiers that are not there, and disks that fail, say so.
                let _ = if up { self.cache.promote(&key, tier) } else { self.cache.demote(&key, tier) };
            }
            Do::Expire { key: k, seconds } if key(k).starts_with(FICKLE) => {
                // When what was put before expires is not known here from now on.
                self.expires.clear();
                let _ = self.cache.expire_in(&key(k), seconds.map(|s| Duration::from_secs(s.into())));
            }
            Do::Expire { .. } => {}
            Do::Flush => {
                let begun = self.history.flush(self.mark());
                if self.cache.flush().is_ok() {
                    self.history.flushed(begun, self.mark());
                }
            }
            Do::Step(n) => {
                for _ in 0..=n % 3 {
                    self.work();
                }
            }
            Do::Advance(ms) => self.advance(u64::from(ms) * 10),
            Do::Walk => self.walk(),
            Do::Verify => {
                let report = self.cache.verify();
                assert!(self.failing || report.as_ref().is_ok_and(|r| r.is_clean()), "{report:?}");
            }
            Do::Fault { what, after, times, dir } => self.fault(what, after, times, dir),
            Do::Heal => self.heal(),
            Do::Turn { what, to } => self.turn(what, to),
            Do::Kill | Do::Crash(_) | Do::Close => return self.end(what),
        }
        self.hear(&since);
    }

    /// The background jobs, once: what they were to write is durable then.
    fn work(&mut self) {
        let begun = self.history.flush(self.mark());
        let done = self.cache.step();
        assert!(self.failing || done.is_ok(), "{done:?}");
        if done.is_ok() {
            let told = promised(self.input, [History::flushed, History::flushed, History::flushed_removals]);
            told(&self.history, begun, self.mark());
        }
    }

    /// Tiers that are not there say so.
    fn turn(&mut self, what: u8, to: u8) {
        let mut dice = Dice::new(u64::from(what) << 8 | u64::from(to));
        let _ = self.cache.apply(&change(|n| dice.below(n)));
    }

    fn advance(&mut self, ms: u64) {
        self.clock.advance(ms);
        self.now += ms;
    }

    /// Every key that is listed is one that was put.
    fn walk(&mut self) {
        let known: BTreeSet<String> = self.history.keys().into_iter().collect();
        for found in self.cache.keys("") {
            match found {
                Ok(key) => assert!(known.contains(&*String::from_utf8_lossy(&key))),
                Err(e) => assert!(self.failing, "{e}"),
            }
        }
    }

    fn fault(&mut self, what: u8, after: u8, times: u8, dir: u8) {
        let fault = match what % 6 {
            0 => Fault::on(Op::Sync).trouble(Trouble::Forgotten),
            1 => Fault::on_any(&[Op::Create, Op::Write, Op::Allocate]).errno(ENOSPC),
            2 => Fault::on_any(&[Op::Read, Op::Write]).trouble(Trouble::Short),
            3 => Fault::on_any(&[Op::Rename, Op::RemoveFile, Op::SyncDir, Op::Create]).errno(EIO),
            4 => Fault::on(Op::Read).errno(EIO),
            _ => Fault::on_any(&[Op::Write, Op::Sync]).errno(EIO),
        };
        let fault = fault.after(u64::from(after % 16)).times(if times == 0 {
            u64::MAX
        } else {
            u64::from(times % 4)
        });
        let dirs = dirs(self.input);
        self.fs.fail(match dirs.get(usize::from(dir) % (dirs.len() + 1)) {
            Some(dir) => fault.below(*dir),
            None => fault,
        });
        self.failing = true;
    }

    /// What was out of service comes back by itself some time after the disk works again.
    fn heal(&mut self) {
        self.fs.heal();
        if !self.failing {
            return;
        }
        for _ in 0..3 {
            self.advance(60_000);
            self.work();
        }
        self.failing = false;
        let since = self.history.moment(self.mark());
        self.hear(&since);
    }

    fn end(&mut self, how: Do) {
        if let Do::Close = how {
            self.heal();
            let since = self.history.moment(self.mark());
            let begun = self.history.flush(self.mark());
            self.cache.close().expect("it closes");
            self.history.flushed(begun, self.mark());
            self.hear(&since);
        }
        self.fs.heal();
        self.cache.clone().crash();
        let left = match how {
            Do::Crash(0) => self.fs.crash_losing_all(),
            Do::Crash(_) => self.fs.crash(&mut self.dice),
            _ => self.fs.kill(),
        };
        self.failing = false;
        self.clock = Arc::new(ManualClock::new(self.now));
        self.fs = left;
        (self.cache, self.events) = open(self.input, &self.fs, &self.clock);
        self.recovered();
    }

    /// What was promised is there.
    fn recovered(&mut self) {
        let mut found = BTreeMap::new();
        for key in self.history.keys() {
            let got = self.cache.get(&key).unwrap_or_else(|e| panic!("get {key}: {e}"));
            if let Some(n) = self.judge(&key, got.as_deref()) {
                found.insert(key, n);
            }
        }
        let gone = self.gone();
        let promise = promised(self.input, [Promise::Durable, Promise::FromFlush, Promise::FromFlush]);
        let absence = |k: &str| if gone.contains(k) { Absence::Allowed } else { absence(k) };
        let found = |k: &str| found.get(k).copied();
        self.history.check_crash(promise, absence, found).unwrap_or_else(|e| panic!("after a crash: {e}"));
        let history = std::mem::take(&mut self.history);
        history.restart(found);
        self.history = history;
    }

    fn gone(&self) -> BTreeSet<String> {
        let mut gone = BTreeSet::new();
        while let Ok(Received::Event(e)) = self.events.try_recv() {
            match e {
                Event::Evicted { key: Some(key), .. } => {
                    _ = gone.insert(String::from_utf8_lossy(&key).into_owned())
                }
                Event::Quarantined { .. } | Event::Lost { .. } => panic!("damage that nobody did: {e:?}"),
                _ => {}
            }
        }
        gone
    }
}

fuzz_target!(init: thermocline_fuzz::begin(), |input: Input| {
    let fs = dirs(&input).iter().fold(SimFs::new(input.seed.into()), |fs, dir| fs.with_dir(Path::new(dir)));
    let clock = Arc::new(ManualClock::new(START));
    let (cache, events) = open(&input, &fs, &clock);
    let mut run = Run {
        input: &input,
        dice: Dice::new(input.seed.into()),
        fs,
        clock,
        now: START,
        cache,
        events,
        history: History::default(),
        expires: BTreeMap::new(),
        values: 0,
        failing: false,
    };
    input.ops.iter().take(MOST).for_each(|what| run.act(*what));
    run.act(Do::Close);
    for key in run.history.keys() {
        run.read(&key);
    }
    run.cache.close().expect("it closes");
});
