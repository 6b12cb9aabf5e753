//! The cache against a model: a map of what each key holds and of what a crash may make of it.
//!
//! Random operations over tiny tiers, every persistence, every subset of tiers, with reopenings and crashes in
//! between. What is checked at each step: never a wrong, stale or resurrected value; counts and keys exact; nothing
//! absent that was not removed, expired, or evicted with an event that names it. After a crash each key has its last
//! value or an earlier one, nothing older than what was durable at the last flush or close.
//!
//! `THERMOCLINE_CASES` sets the number of cases, however long they take; without it there are thousands, and those
//! that have not begun after a minute are left out. A failure is shrunk, printed, and kept in `model.regressions`,
//! from which it is tried first the next time.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a test"
)]

mod common;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};
use thermocline::testing::{ManualClock, vfs::RealFs};
use thermocline::{
    Builder, Cache, Error, Event, MemoryPolicy, Persistence, PutOptions, Received, RecvError, Subscription,
    Tier,
};

const START: u64 = 1_700_000_000_000;
const MIB: u64 = 1 << 20;

/// Which tiers, and how the store is set.
#[derive(Debug, Clone)]
struct Shape {
    ssd: bool,
    hdd: bool,
    /// `Some(true)`: limited.
    cold: Option<bool>,
    persistence: Persistence,
    policy: MemoryPolicy,
    default_ttl: Option<u64>,
    few_in_memory: bool,
}

impl Shape {
    fn tiers(&self) -> Vec<Tier> {
        let mut tiers = vec![Tier::Memory];
        tiers.extend(self.ssd.then_some(Tier::Ssd));
        tiers.extend(self.hdd.then_some(Tier::Hdd));
        tiers.extend(self.cold.map(|_| Tier::Cold));
        tiers
    }

    fn has_disk(&self) -> bool {
        self.tiers().len() > 1
    }

    /// Half of the smallest tier may be one value.
    fn largest(&self) -> u64 {
        if self.has_disk() { MIB } else { MIB / 2 }
    }

    fn builder(&self, dir: &Path, small: bool) -> Builder {
        let mut b = Cache::builder().memory(MIB).memory_policy(self.policy).persistence(self.persistence);
        let factor = if small { 1 } else { 2 };
        if self.few_in_memory {
            b = b.memory_item_limit(6);
        }
        if self.ssd {
            b = b.ssd(dir.join("s"), factor * 4 * MIB);
        }
        if self.hdd {
            b = b.hdd(dir.join("h"), factor * 5 * MIB);
        }
        if let Some(limited) = self.cold {
            b = b.cold(dir.join("c"));
            if limited {
                b = b.cold_limit(factor * 4 * MIB);
            }
        }
        let s = &mut b.config_mut().storage;
        s.write_buffer = MIB;
        s.segment_size = Some(MIB);
        s.generation_size = Some(MIB);
        s.pack_size = Some(MIB);
        s.default_ttl = self.default_ttl;
        s.max_value_size = Some(self.largest());
        s.write_stall_limit = 5;
        b
    }
}

#[derive(Debug, Clone)]
enum Op {
    Put {
        key: u8,
        size: u32,
        ttl: Ttl,
    },
    PutMany {
        key: u8,
        count: u8,
        size: u32,
    },
    /// Other keys, to fill the tiers.
    Fill {
        start: u8,
        count: u8,
        size: u32,
    },
    Get {
        key: u8,
        times: u8,
    },
    GetFill {
        start: u8,
        count: u8,
    },
    GetMemory {
        key: u8,
    },
    GetOrPut {
        key: u8,
        size: u32,
    },
    Contains {
        key: u8,
    },
    TierOf {
        key: u8,
    },
    Remove {
        key: u8,
    },
    RemovePrefix {
        prefix: u8,
    },
    Clear,
    Keys {
        prefix: u8,
    },
    ExpireIn {
        key: u8,
        ms: Option<u32>,
    },
    Touch {
        key: u8,
    },
    PutIfAbsent {
        key: u8,
        size: u32,
    },
    PutIfVersion {
        key: u8,
        size: u32,
        right: bool,
    },
    Demote {
        key: u8,
        tier: u8,
    },
    Promote {
        key: u8,
        tier: u8,
    },
    Advance {
        ms: u32,
    },
    Flush,
    Step,
    Verify,
    Reopen {
        small: bool,
    },
    Crash {
        small: bool,
    },
}

#[derive(Debug, Clone, Copy)]
enum Ttl {
    Default,
    Forever,
    Ms(u32),
}

const KEYS: u8 = 14;
const FILL: u8 = 48;
const PREFIXES: [&str; 5] = ["", "a/", "a/b/", "c/", "nothing/"];

fn key_of(no: u8) -> String {
    match no % KEYS {
        n @ 0..=4 => format!("a/{n}"),
        n @ 5..=8 => format!("a/b/{n}"),
        n => format!("c/{n}/{}", "long".repeat(usize::from(n) * 20)),
    }
}

fn fill_key(no: u8) -> String {
    format!("f/{}", no % FILL)
}

/// What a key holds.
#[derive(Debug, Clone, PartialEq)]
struct Value {
    bytes: Bytes,
    expires_at: u64,
}

type State = Option<Value>;

fn alive(state: &State, now: u64) -> Option<&Value> {
    state.as_ref().filter(|v| v.expires_at == 0 || v.expires_at > now)
}

/// One key: what it holds, and what a crash may leave of it, the last being what it holds.
#[derive(Debug, Clone)]
struct History {
    states: Vec<State>,
    /// Versions read from now on are greater than this.
    above: u64,
}

struct World {
    shape: Shape,
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    now: u64,
    cache: Cache,
    events: Subscription,
    keys: BTreeMap<String, History>,
    writes: u64,
    newest_version: u64,
    evictions: u64,
    /// Keys evicted at closing, of which it is not known yet whether it was their newest value.
    unresolved: Vec<String>,
}

type Check = Result<(), TestCaseError>;

macro_rules! fail {
    ($($t:tt)*) => { return Err(TestCaseError::fail(format!($($t)*))) };
}

/// A result that must be `Ok`, with what was done.
fn ok<T>(result: thermocline::Result<T>, what: impl FnOnce() -> String) -> Result<T, TestCaseError> {
    result.map_err(|e| TestCaseError::fail(format!("{}: {e}", what())))
}

/// The start of a value and its length.
fn short(bytes: Option<&[u8]>) -> String {
    match bytes {
        None => "nothing".into(),
        Some(b) => format!("{:?} of {} bytes", common::parse(b), b.len()),
    }
}

impl World {
    fn open(shape: Shape) -> Result<World, TestCaseError> {
        let dir = common::scratch();
        let clock = Arc::new(ManualClock::new(START));
        let builder = shape.builder(dir.path(), false);
        let cache = ok(builder.world(Arc::new(RealFs), clock.clone(), false).open(), || "open".into())?;
        let events = cache.subscribe();
        let keys = BTreeMap::new();
        let (writes, newest_version, evictions) = (0, 0, 0);
        Ok(World {
            shape,
            dir,
            clock,
            now: START,
            cache,
            events,
            keys,
            writes,
            newest_version,
            evictions,
            unresolved: Vec::new(),
        })
    }

    fn current(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).and_then(|h| alive(h.states.last()?, self.now))
    }

    fn live(&self, prefix: &str) -> BTreeSet<String> {
        self.keys.keys().filter(|k| k.starts_with(prefix) && self.current(k).is_some()).cloned().collect()
    }

    /// Notes a write that is visible now. What was written before remains possible after a crash.
    fn wrote(&mut self, key: &str, state: State) {
        let above = self.newest_version;
        let h = self.keys.entry(key.to_owned()).or_insert(History { states: vec![None], above: 0 });
        h.states.push(state);
        h.above = above;
        if self.shape.persistence == Persistence::Always {
            h.states.drain(..h.states.len() - 1);
        }
    }

    /// Everything that was acknowledged is on stable storage.
    fn durable(&mut self) {
        for h in self.keys.values_mut() {
            h.states.drain(..h.states.len() - 1);
        }
    }

    fn new_value(&mut self, key: &str, size: u32) -> Bytes {
        self.writes += 1;
        let tag = key.bytes().fold(7u64, |a, b| a.wrapping_mul(31).wrapping_add(u64::from(b)));
        common::value(tag, self.writes, (size as usize).min(self.shape.largest() as usize))
    }

    fn expiry(&self, ttl: Ttl) -> u64 {
        match ttl {
            Ttl::Forever => 0,
            Ttl::Ms(ms) => self.now + u64::from(ms),
            Ttl::Default => self.shape.default_ttl.map_or(0, |s| self.now + s * 1000),
        }
    }

    fn put(&mut self, key: &str, size: u32, ttl: Ttl) -> Check {
        let bytes = self.new_value(key, size);
        let options = match ttl {
            Ttl::Default => PutOptions::new(),
            Ttl::Forever => PutOptions::new().forever(),
            Ttl::Ms(ms) => PutOptions::new().ttl(Duration::from_millis(u64::from(ms))),
        };
        ok(self.cache.put_with(key, bytes.clone(), options), || format!("put {key} of {size}"))?;
        let expires_at = self.expiry(ttl);
        self.wrote(key, Some(Value { bytes, expires_at }));
        Ok(())
    }

    /// Takes in what happened: an eviction may have taken a key, and then it is gone for good.
    fn drain(&mut self) -> Check {
        loop {
            match self.events.try_recv() {
                Ok(Received::Event(Event::Evicted { key: Some(key), .. })) => self.evicted(&key)?,
                Ok(Received::Event(
                    Event::Promoted { .. } | Event::Demoted { .. } | Event::Expired { .. },
                )) => {}
                Ok(Received::Event(e)) => fail!("an event that nothing here causes: {e:?}"),
                Ok(Received::Lagged(n)) => fail!("{n} events lost"),
                Err(RecvError::Empty | RecvError::Closed) => return Ok(()),
            }
        }
    }

    fn evicted(&mut self, key: &[u8]) -> Check {
        let key = String::from_utf8(key.to_vec()).unwrap();
        let Some(h) = self.keys.get_mut(&key) else { fail!("{key} was evicted and never put") };
        self.evictions += 1;
        // What was evicted may be the older value on disk, beneath one that is still to be written.
        let last = h.states.pop().unwrap();
        h.states.push(None);
        h.states.push(last);
        match self.cache.tier_of(&key) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                self.keys.get_mut(&key).unwrap().states.push(None);
                Ok(())
            }
            // It happened while the store was closing: what became of it is seen when it is open again.
            Err(Error::Closed) => {
                self.unresolved.push(key);
                Ok(())
            }
            Err(e) => fail!("tier_of {key}: {e}"),
        }
    }

    fn check_get(&mut self, key: &str) -> Check {
        let entry = ok(self.cache.get_entry(key), || format!("get {key}"))?;
        let want = self.current(key);
        match (&entry, want) {
            (None, None) => Ok(()),
            (Some(e), Some(w)) => {
                if e.value != w.bytes {
                    fail!("{key}: got {}, not {}", short(Some(&e.value)), short(Some(&w.bytes)));
                }
                let expires_at =
                    e.expires_at.map_or(0, |t| t.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64);
                if expires_at != w.expires_at {
                    fail!("{key}: expires at {expires_at}, not {}", w.expires_at);
                }
                let above = self.keys[key].above;
                if e.version <= above {
                    fail!("{key}: version {} is not above {above}", e.version);
                }
                if !self.shape.tiers().contains(&e.tier) {
                    fail!("{key}: from a tier that is not there: {}", e.tier);
                }
                self.newest_version = self.newest_version.max(e.version);
                Ok(())
            }
            (got, want) => {
                let (got, want) = (got.as_ref().map(|e| &e.value[..]), want.map(|w| &w.bytes[..]));
                fail!("{key}: got {}, not {}", short(got), short(want))
            }
        }
    }

    fn check_keys(&mut self, prefix: &str) -> Check {
        let mut seen = BTreeSet::new();
        for key in self.cache.keys(prefix) {
            let key = String::from_utf8(ok(key, || format!("keys {prefix}"))?.to_vec()).unwrap();
            if !seen.insert(key.clone()) {
                fail!("keys {prefix}: {key} comes twice");
            }
        }
        let want = self.live(prefix);
        if seen != want {
            let missing: Vec<_> = want.difference(&seen).collect();
            let extra: Vec<_> = seen.difference(&want).collect();
            fail!("keys {prefix:?}: missing {missing:?}, not to be there {extra:?}");
        }
        Ok(())
    }

    fn check_all(&mut self) -> Check {
        self.check_keys("")?;
        for key in self.keys.keys().cloned().collect::<Vec<_>>() {
            self.check_get(&key)?;
            self.drain()?;
        }
        Ok(())
    }

    fn reopened(&mut self, small: bool) -> Check {
        let builder = self.shape.builder(self.dir.path(), small);
        let opened = builder.world(Arc::new(RealFs), self.clock.clone(), false).open();
        self.cache = ok(opened, || "reopen".into())?;
        self.events = self.cache.subscribe();
        let r = self.cache.recovery();
        if r.lost != 0 || r.mended != 0 || !r.quarantined.is_empty() {
            fail!("recovery found damage where there is none: {r:?}");
        }
        Ok(())
    }

    /// A handle of memory alone, so that the store can be let go of.
    fn nothing() -> Cache {
        Cache::builder().memory(MIB).open().unwrap()
    }

    /// Memory alone starts afresh, versions included.
    fn forget(&mut self) {
        self.keys.clear();
        self.newest_version = 0;
    }

    fn reopen(&mut self, small: bool) -> Check {
        ok(self.cache.close(), || "close".into())?;
        self.drain()?;
        self.cache = Self::nothing();
        if self.shape.has_disk() {
            self.durable();
        } else {
            self.forget();
        }
        self.reopened(small)?;
        for key in std::mem::take(&mut self.unresolved) {
            if self.is_gone(&key)? {
                self.keys.insert(key, History { states: vec![None], above: 0 });
            }
        }
        self.check_all()
    }

    fn is_gone(&self, key: &str) -> Result<bool, TestCaseError> {
        Ok(ok(self.cache.tier_of(key), || format!("tier_of {key}"))?.is_none())
    }

    fn crash(&mut self, small: bool) -> Check {
        self.cache.crash();
        self.cache = Self::nothing();
        if !self.shape.has_disk() {
            self.forget();
        }
        self.reopened(small)?;
        // What is seen now is what counts from now on.
        for (key, h) in &mut self.keys {
            let got = ok(self.cache.get_entry(key), || format!("get {key} after a crash"))?;
            let found = h.states.iter().rposition(|s| match (alive(s, self.now), &got) {
                (None, None) => true,
                (Some(v), Some(e)) => {
                    v.bytes == e.value && {
                        let at =
                            e.expires_at.map_or(0, |t| t.duration_since(UNIX_EPOCH).unwrap().as_millis());
                        at as u64 == v.expires_at
                    }
                }
                _ => false,
            });
            let Some(at) = found else {
                let states: Vec<_> =
                    h.states.iter().map(|s| short(s.as_ref().map(|v| &v.bytes[..]))).collect();
                fail!("{key} after a crash: {}, of {states:?}", short(got.as_ref().map(|e| &e.value[..])));
            };
            h.states = vec![h.states[at].clone()];
            h.above = 0;
        }
        self.check_all()
    }

    fn apply(&mut self, op: &Op) -> Check {
        match *op {
            Op::Put { key, size, ttl } => self.put(&key_of(key), size, ttl)?,
            Op::PutMany { key, count, size } => {
                let mut items = Vec::new();
                for no in key..key.saturating_add(count) {
                    let key = key_of(no);
                    let bytes = self.new_value(&key, size);
                    items.push((key, bytes));
                }
                ok(self.cache.put_many(items.clone()), || "put_many".into())?;
                let expires_at = self.expiry(Ttl::Default);
                for (key, bytes) in items {
                    self.wrote(&key, Some(Value { bytes, expires_at }));
                }
            }
            Op::Fill { start, count, size } => {
                for no in start..start.saturating_add(count) {
                    self.put(&fill_key(no), size, Ttl::Default)?;
                    self.drain()?;
                }
            }
            Op::Get { key, times } => {
                for _ in 0..times {
                    self.check_get(&key_of(key))?;
                    self.drain()?;
                }
            }
            Op::GetFill { start, count } => {
                let keys: Vec<String> = (start..start.saturating_add(count)).map(fill_key).collect();
                let got = ok(self.cache.get_many(&keys), || "get_many".into())?;
                for (key, got) in keys.iter().zip(got) {
                    let want = self.current(key).map(|v| &v.bytes);
                    if got.as_ref() != want {
                        fail!("{key}: got {}, not {}", short(got.as_deref()), short(want.map(|b| &b[..])));
                    }
                }
            }
            Op::GetMemory { key } => {
                let key = key_of(key);
                let got = ok(self.cache.get_memory(&key), || "get_memory".into())?;
                if let Some(got) = got {
                    let want = self.current(&key).map(|v| &v.bytes);
                    if Some(&got) != want {
                        fail!("{key} in memory: {}, not {}", short(Some(&got)), short(want.map(|b| &b[..])));
                    }
                }
            }
            Op::GetOrPut { key, size } => {
                let key = key_of(key);
                let bytes = self.new_value(&key, size);
                let made = bytes.clone();
                let got = self.cache.get_or_put_with(&key, || Ok::<_, std::io::Error>(made));
                let got = ok(got, || format!("get_or_put_with {key}"))?;
                match self.current(&key).map(|v| v.bytes.clone()) {
                    Some(want) if got == want => {}
                    None if got == bytes => {
                        let expires_at = self.expiry(Ttl::Default);
                        self.wrote(&key, Some(Value { bytes, expires_at }));
                    }
                    want => fail!("{key}: got or put {}, had {}", short(Some(&got)), short(want.as_deref())),
                }
            }
            Op::Contains { key } => {
                let key = key_of(key);
                let (got, want) =
                    (ok(self.cache.contains(&key), || "contains".into())?, self.current(&key).is_some());
                if got != want {
                    fail!("contains {key}: {got}");
                }
            }
            Op::TierOf { key } => {
                let key = key_of(key);
                let tier = ok(self.cache.tier_of(&key), || "tier_of".into())?;
                if tier.is_some() != self.current(&key).is_some()
                    || tier.is_some_and(|t| !self.shape.tiers().contains(&t))
                {
                    fail!("tier_of {key}: {tier:?}");
                }
            }
            Op::Remove { key } => {
                let key = key_of(key);
                let was = self.current(&key).is_some();
                let got = ok(self.cache.remove(&key), || format!("remove {key}"))?;
                if got != was {
                    fail!("remove {key} said {got}");
                }
                if self.keys.contains_key(&key) {
                    self.wrote(&key, None);
                }
            }
            Op::RemovePrefix { prefix } => {
                let prefix = PREFIXES[usize::from(prefix) % PREFIXES.len()];
                let live = self.live(prefix);
                let got = ok(self.cache.remove_prefix(prefix), || format!("remove_prefix {prefix:?}"))?;
                if got != live.len() as u64 {
                    fail!("remove_prefix {prefix:?}: {got}, not {}", live.len());
                }
                for key in live {
                    self.wrote(&key, None);
                }
            }
            Op::Clear => {
                let live = self.live("").len() as u64;
                let got = ok(self.cache.clear(), || "clear".into())?;
                // Items that have expired and were not found yet are counted.
                if got < live || got > self.keys.len() as u64 {
                    fail!("clear: {got}, of {live} live");
                }
                for key in self.keys.keys().cloned().collect::<Vec<_>>() {
                    self.wrote(&key, None);
                }
                self.check_keys("")?;
            }
            Op::Keys { prefix } => self.check_keys(PREFIXES[usize::from(prefix) % PREFIXES.len()])?,
            Op::ExpireIn { key, ms } => {
                let key = key_of(key);
                let ttl = ms.map(|ms| Duration::from_millis(u64::from(ms)));
                let got = ok(self.cache.expire_in(&key, ttl), || format!("expire_in {key}"))?;
                let was = self.current(&key).cloned();
                if got != was.is_some() {
                    fail!("expire_in {key} said {got}");
                }
                if let Some(v) = was {
                    let expires_at = ms.map_or(0, |ms| self.now + u64::from(ms));
                    self.wrote(&key, Some(Value { expires_at, ..v }));
                    // A change of expiry alone need not give a new version.
                    self.keys.get_mut(&key).unwrap().above = 0;
                }
            }
            Op::Touch { key } => {
                let key = key_of(key);
                let was = self.current(&key).cloned();
                let got = ok(self.cache.touch(&key), || format!("touch {key}"))?;
                if got != was.is_some() {
                    fail!("touch {key} said {got}");
                }
                if let Some(v) = was
                    && self.shape.default_ttl.is_some()
                {
                    let expires_at = self.expiry(Ttl::Default);
                    self.wrote(&key, Some(Value { expires_at, ..v }));
                    self.keys.get_mut(&key).unwrap().above = 0;
                }
            }
            Op::PutIfAbsent { key, size } => {
                let key = key_of(key);
                let bytes = self.new_value(&key, size);
                let put = self.cache.put_if_absent(&key, bytes.clone(), PutOptions::new());
                let put = ok(put, || format!("put_if_absent {key}"))?;
                if put == self.current(&key).is_some() {
                    fail!("put_if_absent {key} said {put}");
                }
                if put {
                    let expires_at = self.expiry(Ttl::Default);
                    self.wrote(&key, Some(Value { bytes, expires_at }));
                }
            }
            Op::PutIfVersion { key, size, right } => {
                let key = key_of(key);
                let entry = ok(self.cache.get_entry(&key), || format!("get {key}"))?;
                self.drain()?;
                let have = entry.map_or(1, |e| e.version);
                let bytes = self.new_value(&key, size);
                let version = if right { have } else { have.wrapping_sub(1) };
                let put = self.cache.put_if_version(&key, bytes.clone(), version, PutOptions::new());
                let put = ok(put, || format!("put_if_version {key}"))?;
                if put != (right && self.current(&key).is_some()) {
                    fail!("put_if_version {key} said {put}");
                }
                if put {
                    let expires_at = self.expiry(Ttl::Default);
                    self.wrote(&key, Some(Value { bytes, expires_at }));
                }
            }
            Op::Demote { key, tier } => self.shift(&key_of(key), tier, true)?,
            Op::Promote { key, tier } => self.shift(&key_of(key), tier, false)?,
            Op::Advance { ms } => {
                self.clock.advance(u64::from(ms));
                self.now += u64::from(ms);
            }
            Op::Flush => {
                ok(self.cache.flush(), || "flush".into())?;
                self.drain()?;
                self.durable();
            }
            Op::Step => ok(self.cache.step(), || "step".into())?,
            Op::Verify => {
                let report = ok(self.cache.verify(), || "verify".into())?;
                if !report.is_clean() {
                    fail!("verify: {report:?}");
                }
            }
            Op::Reopen { small } => self.reopen(small)?,
            Op::Crash { small } => self.crash(small)?,
        }
        self.drain()
    }

    fn shift(&mut self, key: &str, tier: u8, down: bool) -> Check {
        let to = Tier::ALL[usize::from(tier) % 4];
        let what = || format!("{} {key} {to}", if down { "demote" } else { "promote" });
        let before = ok(self.cache.tier_of(key), what)?;
        let result = if down { self.cache.demote(key, to) } else { self.cache.promote(key, to) };
        let has = self.shape.tiers().contains(&to);
        match result {
            Ok(moved) => {
                self.drain()?;
                let after = ok(self.cache.tier_of(key), what)?;
                if !moved {
                    return Ok(());
                }
                match after {
                    None if self.current(key).is_none() => Ok(()),
                    None => fail!("{}: it is gone", what()),
                    Some(t) if down && (t < to || before.is_some_and(|b| b >= t)) => {
                        fail!("{} said it moved, from {before:?} to {t}", what())
                    }
                    // Memory may have had it all the while.
                    Some(t) if !down && (t > to || before.is_some_and(|b| b <= t && b > Tier::Memory)) => {
                        fail!("{} said it moved, from {before:?} to {t}", what())
                    }
                    Some(_) => Ok(()),
                }
            }
            Err(Error::NoSuchTier(_)) if !has => Ok(()),
            // The tier is full of what is alive, and has nowhere to send it.
            Err(e) if e.storage().is_some_and(|e| e.is_no_space()) => Ok(()),
            Err(e) => fail!("{}: {e}", what()),
        }
    }
}

fn run(shape: Shape, ops: &[Op]) -> Check {
    let mut world = World::open(shape)?;
    for (n, op) in ops.iter().enumerate() {
        world.apply(op).map_err(|e| TestCaseError::fail(format!("operation {n}, {op:?}: {e}")))?;
    }
    world.check_all()?;
    world.reopen(false)?;
    let counts = world.cache.stats().counts;
    if counts.damaged + counts.unreachable + counts.displaced > 0 {
        fail!("damage where there is none: {counts:?}");
    }
    Ok(())
}

fn size() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..100u32, 4 => 500..5_000u32, 3 => 20_000..70_000u32, 2 => 100_000..250_000u32,
                1 => 270_000..900_000u32]
}

fn ttl() -> impl Strategy<Value = Ttl> {
    prop_oneof![5 => Just(Ttl::Default), 1 => Just(Ttl::Forever), 2 => (0..20_000u32).prop_map(Ttl::Ms)]
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..KEYS;
    prop_oneof![
        12 => (key(), size(), ttl()).prop_map(|(key, size, ttl)| Op::Put { key, size, ttl }),
        2 => (key(), 1..6u8, size()).prop_map(|(key, count, size)| Op::PutMany { key, count, size }),
        4 => (0..FILL, 4..24u8, size()).prop_map(|(start, count, size)| Op::Fill { start, count, size }),
        8 => (key(), 1..5u8).prop_map(|(key, times)| Op::Get { key, times }),
        2 => (0..FILL, 4..24u8).prop_map(|(start, count)| Op::GetFill { start, count }),
        1 => key().prop_map(|key| Op::GetMemory { key }),
        2 => (key(), size()).prop_map(|(key, size)| Op::GetOrPut { key, size }),
        1 => key().prop_map(|key| Op::Contains { key }),
        2 => key().prop_map(|key| Op::TierOf { key }),
        6 => key().prop_map(|key| Op::Remove { key }),
        1 => (0..5u8).prop_map(|prefix| Op::RemovePrefix { prefix }),
        1 => Just(Op::Clear),
        1 => (0..5u8).prop_map(|prefix| Op::Keys { prefix }),
        4 => (key(), proptest::option::weighted(0.8, 0..30_000u32))
            .prop_map(|(key, ms)| Op::ExpireIn { key, ms }),
        1 => key().prop_map(|key| Op::Touch { key }),
        2 => (key(), size()).prop_map(|(key, size)| Op::PutIfAbsent { key, size }),
        2 => (key(), size(), any::<bool>())
            .prop_map(|(key, size, right)| Op::PutIfVersion { key, size, right }),
        3 => (key(), 0..4u8).prop_map(|(key, tier)| Op::Demote { key, tier }),
        3 => (key(), 0..4u8).prop_map(|(key, tier)| Op::Promote { key, tier }),
        4 => prop_oneof![3 => 1..5_000u32, 1 => 50_000..400_000u32].prop_map(|ms| Op::Advance { ms }),
        3 => Just(Op::Flush),
        6 => Just(Op::Step),
        1 => Just(Op::Verify),
        2 => any::<bool>().prop_map(|small| Op::Reopen { small }),
        3 => any::<bool>().prop_map(|small| Op::Crash { small }),
    ]
}

fn shape(hdd: bool) -> impl Strategy<Value = Shape> {
    let cold = prop_oneof![Just(None), Just(Some(false)), Just(Some(true))];
    let persistence =
        prop_oneof![Just(Persistence::EverySecond), Just(Persistence::OnEviction), Just(Persistence::Always)];
    let policy = prop_oneof![3 => Just(MemoryPolicy::Adaptive), 1 => Just(MemoryPolicy::Lru)];
    let ttl = proptest::option::weighted(0.3, 1..60u64);
    (any::<bool>(), cold, persistence, policy, ttl, any::<bool>()).prop_map(
        move |(ssd, cold, persistence, policy, default_ttl, few_in_memory)| {
            // With neither of the others it is the SSD.
            let ssd = ssd || !hdd && cold.is_none();
            Shape { ssd, hdd, cold, persistence, policy, default_ttl, few_in_memory }
        },
    )
}

fn check(share: (u32, u32), shape: impl Strategy<Value = Shape>, most_ops: usize) {
    let asked: Option<u32> = std::env::var("THERMOCLINE_CASES").ok().and_then(|s| s.parse().ok());
    let cases = (asked.unwrap_or(CASES) * share.0 / share.1).max(1);
    let begun = Instant::now();
    let ran = std::cell::Cell::new(0);
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/model.regressions"))),
        max_shrink_time: 120_000,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let strategy = (shape, proptest::collection::vec(op(), 1..most_ops));
    let failed = std::cell::Cell::new(false);
    let result = TestRunner::new(config).run(&strategy, |(shape, ops)| {
        // Once a case failed, time is no reason to leave out what shrinks it.
        if asked.is_none() && !failed.get() && begun.elapsed() > BUDGET {
            return Ok(());
        }
        ran.set(ran.get() + 1);
        run(shape, &ops).inspect_err(|_| failed.set(true))
    });
    println!("{} of {cases} cases in {:?}", ran.get(), begun.elapsed());
    result.unwrap_or_else(|e| panic!("{e}"));
}

/// Cases of all tests here together.
const CASES: u32 = 5_000;
/// After this, no more are begun.
const BUDGET: Duration = Duration::from_secs(60);

#[test]
fn ssd_and_cold_against_the_model() {
    check((7, 10), shape(false), 60);
}

/// sled makes opening slow, so these are fewer.
#[test]
fn hdd_among_others_against_the_model() {
    check((1, 10), shape(true), 60);
}

#[test]
fn memory_alone_against_the_model() {
    let strategy = shape(false).prop_map(|s| {
        let persistence = match s.persistence {
            Persistence::Always => Persistence::OnEviction,
            other => other,
        };
        Shape { ssd: false, cold: None, persistence, ..s }
    });
    check((2, 10), strategy, 100);
}
