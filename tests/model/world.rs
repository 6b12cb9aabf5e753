//! The store and the model of it, and what each comparison of the two says.

mod apply;

use crate::common;
use crate::ops::Ttl;
use crate::shape::{MIB, Shape};
use bytes::Bytes;
use proptest::test_runner::TestCaseError;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use thermocline::testing::{ManualClock, vfs::RealFs};
use thermocline::{Cache, Entry, Error, Event, Persistence, PutOptions, Received, RecvError, Subscription};

const START: u64 = 1_700_000_000_000;

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

/// A store under test and the model of it.
pub struct World {
    shape: Shape,
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
    /// The last field, so that the store is closed before it is removed: sled would go on writing into it.
    dir: tempfile::TempDir,
}

/// What a comparison of the store and the model gives.
pub type Check = Result<(), TestCaseError>;

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

/// When an entry expires, as the model has it: milliseconds since the epoch, 0 for never.
fn expiry_ms(e: &Entry) -> u64 {
    e.expires_at.map_or(0, |t| t.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64)
}

impl World {
    pub fn open(shape: Shape) -> Result<World, TestCaseError> {
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
                Ok(other) => fail!("{other:?}"),
                Err(RecvError::Empty | RecvError::Closed) => return Ok(()),
                Err(e) => fail!("{e}"),
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
                let expires_at = expiry_ms(e);
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
                (Some(v), Some(e)) => v.bytes == e.value && v.expires_at == expiry_ms(e),
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

    /// The end of a case: all that is there is right, before and after a reopening, and nothing was damaged.
    pub fn end(mut self) -> Check {
        self.check_all()?;
        self.reopen(false)?;
        let counts = self.cache.stats().counts;
        if counts.damaged + counts.unreachable + counts.displaced > 0 {
            fail!("damage where there is none: {counts:?}");
        }
        Ok(())
    }
}
