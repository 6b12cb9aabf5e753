//! What is done to a store, and what the judge is told of it.

use super::{Check, Expiry, FICKLE, Life};
use crate::common;
use crate::rows::Doing;
use bytes::Bytes;
use std::time::Duration;
use thermocline::testing::change;
use thermocline::{Cache, Persistence, PutOptions, Tier};
use thermocline_testing::history::{Begun, Outcome, Value};

/// So many rounds of the background jobs at most come one after the other, while calls fail.
const ROUNDS: u32 = 6;

impl Life<'_> {
    pub(super) fn put(&mut self) {
        self.doing = Doing::Writing;
        let key = self.key();
        let (value, bytes) = self.value(&key);
        let options = self.options(&key, value);
        self.told.say(|| format!("put {key:.20} {value} ({} bytes)", bytes.len()));
        let begun = self.history.write(&key, Some(value), self.mark());
        let done = self.cache().put_with(&key, bytes, options);
        self.put_ended(&key, value, begun, done.map(|()| true));
    }

    /// How long a value is to live: the fickle ones for a while, if at all; the others until they are let go of.
    pub(super) fn options(&mut self, key: &str, value: Value) -> PutOptions {
        let fickle = key.starts_with(FICKLE);
        let ms = (fickle && self.dice.one_in(2)).then(|| self.dice.below(20_000));
        let options = match (ms, self.plan.default_ttl) {
            (Some(ms), _) => PutOptions::new().ttl(Duration::from_millis(ms)),
            (None, Some(_)) if !fickle => PutOptions::new().forever(),
            (None, _) => PutOptions::new(),
        };
        if let Some(ms) = ms.or(self.plan.default_ttl.filter(|_| fickle)) {
            let at = self.now + ms;
            self.expires.insert(value, Expiry { now: at, latest: at });
            self.of_key.entry(key.to_owned()).or_default().push(value);
        }
        options
    }

    /// A put has returned: that it put, that its condition did not hold, or why it could not.
    pub(super) fn put_ended(
        &mut self,
        key: &str,
        value: Value,
        begun: Begun,
        done: thermocline::Result<bool>,
    ) {
        let outcome = match done {
            Ok(true) => {
                self.last.insert(key.to_owned(), value);
                Outcome::Done
            }
            Ok(false) => Outcome::Refused,
            Err(e) => {
                self.told.counts.refused += 1;
                self.told.say(|| format!("refused: {e}"));
                Outcome::Refused
            }
        };
        self.history.wrote(key, begun, outcome, self.mark());
    }

    /// What a read gave: whose value it is, and that it has not expired; after a crash, by any of its times.
    pub(super) fn judge(&self, key: &str, bytes: Option<&[u8]>, crashed: bool) -> Check<Option<Value>> {
        let Some(bytes) = bytes else { return Ok(None) };
        let tag = key.bytes().fold(7u64, |a, b| a.wrapping_mul(31).wrapping_add(u64::from(b)));
        match common::parse(bytes) {
            Some((of, value)) if of == tag => {
                let at = self.expires.get(&value).map(|e| if crashed { e.latest } else { e.now });
                if at.is_some_and(|at| at <= self.now) {
                    return Err(format!("{key}: {value} was read after it had expired"));
                }
                Ok(Some(value))
            }
            other => Err(format!("{key}: a read gave {} bytes that are {other:?}", bytes.len())),
        }
    }

    /// Reads; says whether something was found, if that is known.
    pub(super) fn read(&mut self, key: &str) -> Check<Option<bool>> {
        let begun = self.history.read(self.mark());
        let got = self.cache().get(key);
        self.was_read(key, begun, got)
    }

    /// A read of a key has returned; says whether something was found, if that is known.
    pub(super) fn was_read(
        &mut self,
        key: &str,
        begun: Begun,
        got: thermocline::Result<Option<Bytes>>,
    ) -> Check<Option<bool>> {
        self.told.say(|| format!("get {key:.20}: {:?}", got.as_ref().map(|v| v.as_ref().map(|v| v.len()))));
        match got {
            // What cannot be reached is absent for now.
            Ok(None) if self.failing => Ok(None),
            Err(_) if self.failing => Ok(None),
            Ok(found) => {
                let value = self.judge(key, found.as_deref(), false)?;
                self.history.was_read(key, begun, value, self.mark());
                self.history.check(self.absence()).map_err(|e| e.to_string())?;
                Ok(Some(value.is_some()))
            }
            Err(e) => Err(format!("get {key}: {e}")),
        }
    }

    pub(super) fn remove(&mut self) {
        let key = self.key();
        self.told.say(|| format!("remove {key:.20}"));
        self.removing(vec![key.clone()], |cache| cache.remove(&key));
    }

    pub(super) fn remove_many(&mut self) {
        let prefix = *self.dice.pick(&["a/", "b/", "c/", FICKLE, ""]).unwrap_or(&"");
        self.told.say(|| format!("remove all of {prefix:?}"));
        let keys = self.history.keys().into_iter().filter(|k| k.starts_with(prefix)).collect();
        self.removing(keys, |cache| match prefix {
            "" => cache.clear(),
            _ => cache.remove_prefix(prefix),
        });
    }

    /// A removal that fails may have had its effect. Gives its answer.
    pub(super) fn removing<T>(
        &mut self,
        keys: Vec<String>,
        remove: impl FnOnce(&Cache) -> thermocline::Result<T>,
    ) -> Option<T> {
        let mark = self.mark();
        let begun: Vec<_> = keys.into_iter().map(|k| (self.history.write(&k, None, mark), k)).collect();
        let done = remove(self.cache()).ok();
        let outcome = if done.is_some() { Outcome::Done } else { Outcome::Unknown };
        for (begun, key) in begun {
            self.history.wrote(&key, begun, outcome, self.mark());
        }
        done
    }

    pub(super) fn shift(&mut self) {
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

    pub(super) fn flush(&mut self) -> Check {
        self.doing = Doing::Writing;
        let begun = self.history.flush(self.mark());
        let flushed = self.cache().flush();
        // What went before it returned is no part of what it keeps.
        self.hear(&begun)?;
        match flushed {
            Ok(()) => {
                self.history.flushed(begun, self.mark());
                self.settled = true;
            }
            Err(e) => self.told.say(|| format!("flush: {e}")),
        }
        Ok(())
    }

    /// What the optimizer might do. How much it frees, and how fast what works in the background is, changes nothing that
    /// was promised.
    pub(super) fn turn(&mut self) {
        let change = change(|n| self.turns.below(n));
        let done = self.cache().apply(&change);
        self.told.say(|| format!("{change:?}: {done:?}"));
        // Tiers that are not there say so.
        self.told.counts.turned += u64::from(done.is_ok());
    }

    pub(super) fn advance(&mut self) {
        let ms = if self.dice.one_in(10) { 90_000_000 } else { self.dice.below(5_000) };
        self.clock.advance(ms);
        self.now += ms;
        self.told.say(|| format!("{ms} ms pass"));
    }

    pub(super) fn expire_in(&mut self) {
        let key = self.key();
        if !key.starts_with(FICKLE) {
            return;
        }
        let ms = self.dice.below(10_000);
        self.told.say(|| format!("{key:.20} expires in {ms} ms"));
        let done = self.cache().expire_in(&key, Some(Duration::from_millis(ms)));
        self.expiry_set(&key, self.now + ms, done);
    }

    /// A key was given another time to expire, if it was live; if that failed, nobody knows which is in force.
    pub(super) fn expiry_set(&mut self, key: &str, at: u64, done: thermocline::Result<bool>) {
        match (done, self.last.get(key)) {
            (Ok(false), _) => {}
            (Ok(true), Some(value)) => {
                let never = Expiry { now: u64::MAX, latest: u64::MAX };
                let expiry = self.expires.entry(*value).or_insert(never);
                *expiry = Expiry { now: at, latest: expiry.latest.max(at) };
                self.loose.push(*value);
                self.of_key.entry(key.to_owned()).or_default().push(*value);
                self.settled |= self.plan.persistence == Persistence::Always;
            }
            _ => {
                for value in self.of_key.remove(key).unwrap_or_default() {
                    self.expires.remove(&value);
                }
            }
        }
    }

    /// The times that are in force are durable.
    pub(super) fn settle_expiries(&mut self) {
        for value in self.loose.drain(..) {
            if let Some(e) = self.expires.get_mut(&value) {
                e.latest = e.now;
            }
        }
    }

    /// The background jobs. If nothing is in the way, one round gives everything that is dirty to stable storage, where
    /// values do not wait for eviction.
    pub(super) fn work(&mut self) -> Check {
        self.doing = Doing::Working;
        let writes = self.plan.persistence == Persistence::EverySecond;
        let rounds = if self.plan.wide && writes && self.more.one_in(4) { ROUNDS } else { 1 };
        for _ in 0..rounds {
            match self.work_once()? {
                Some(true) => break,
                Some(false) if self.is_sure() && self.plan.persistence != Persistence::OnEviction => {
                    return Err("what is dirty is not written".into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// One round. What a writer that writes by itself has written is durable. Says whether nothing waits any more to be
    /// written, if it did its work.
    fn work_once(&mut self) -> Check<Option<bool>> {
        let begun = self.history.flush(self.mark());
        let stepped = self.cache().step();
        self.hear(&begun)?;
        match stepped {
            Ok(()) => {
                // What failed waits again.
                let all = self.cache().stats().dirty_bytes == 0;
                match self.plan.persistence {
                    Persistence::OnEviction => self.history.flushed_removals(begun, self.mark()),
                    _ if all => {
                        self.told.counts.written_by_itself += 1;
                        self.history.flushed(begun, self.mark());
                        self.settled = true;
                    }
                    _ => {}
                }
                Ok(Some(all))
            }
            Err(e) if self.failing => {
                self.told.say(|| format!("step: {e}"));
                Ok(None)
            }
            Err(e) => Err(format!("a step failed: {e}")),
        }
    }
}
