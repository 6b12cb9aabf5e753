//! Operations that answer by what they find: puts on a condition, values that are made, several keys at once. What they
//! answer has to agree with a read before, for nothing happens in between.

use super::{Check, FICKLE, Life};
use crate::rows::Doing;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use thermocline::Error;
use thermocline_testing::history::{Begun, Outcome};

impl Life<'_> {
    pub(super) fn ask(&mut self) -> Check {
        self.told.counts.conditional += 1;
        let what = self.more.below(12);
        self.told.say(|| format!("question {what} at change {}", self.mark()));
        match what {
            0..=2 => self.put_if_absent(),
            3..=4 => self.put_if_version(),
            5..=6 => self.get_or_make(),
            7 => self.touch(),
            8 => self.expire_never(),
            9 => self.take(),
            10 => self.get_many(),
            _ => self.walk(),
        }
    }

    /// An answer that has to be the one expected, where that is known.
    fn expect(&self, what: &str, key: &str, expected: Option<bool>, got: Option<bool>) -> Check {
        match (expected, got) {
            (Some(expected), Some(got)) if expected != got && self.is_sure() => {
                Err(format!("{what} of {key} said {got}, by a read before it is {expected}"))
            }
            _ => Ok(()),
        }
    }

    fn put_if_absent(&mut self) -> Check {
        self.doing = Doing::Writing;
        let key = self.key();
        let (value, bytes) = self.value(&key);
        let options = self.options(&key, value);
        let live = self.read(&key)?;
        let begun = self.history.write(&key, Some(value), self.mark());
        let done = self.cache().put_if_absent(&key, bytes, options);
        self.told.say(|| format!("put {key:.20} {value} if absent: {done:?}"));
        let put = done.as_ref().ok().copied();
        self.put_ended(&key, value, begun, done);
        // What has expired with the very put is absent, and a put.
        self.expect("put_if_absent", &key, live.map(|live| !live), put)
    }

    fn put_if_version(&mut self) -> Check {
        self.doing = Doing::Writing;
        let key = self.key();
        let (value, bytes) = self.value(&key);
        let options = self.options(&key, value);
        let begun = self.history.read(self.mark());
        let entry = self.cache().get_entry(&key);
        let version = entry.as_ref().ok().and_then(|e| Some(e.as_ref()?.version));
        let live = self.was_read(&key, begun, entry.map(|e| e.map(|e| e.value)))?;
        let other = self.more.one_in(3);
        let wanted = version.unwrap_or(7).wrapping_sub(u64::from(other));
        let begun = self.history.write(&key, Some(value), self.mark());
        let done = self.cache().put_if_version(&key, bytes, wanted, options);
        self.told.say(|| format!("put {key:.20} {value} if it is {wanted}: {done:?}"));
        let put = done.as_ref().ok().copied();
        self.put_ended(&key, value, begun, done);
        self.expect("put_if_version", &key, live.map(|live| live && !other), put)
    }

    fn get_or_make(&mut self) -> Check {
        self.doing = Doing::Writing;
        let key = self.key();
        let (value, bytes) = self.value(&key);
        let options = self.options(&key, value);
        let fails = self.more.one_in(4);
        let read = self.history.read(self.mark());
        let making: Cell<Option<Begun>> = Cell::new(None);
        let got = self.cache().get_or_put_with_options(&key, options, || {
            making.set(Some(self.history.write(&key, Some(value), self.mark())));
            if fails { Err(io::Error::other("on purpose")) } else { Ok(bytes.clone()) }
        });
        self.told.say(|| format!("get {key:.20} or make {value}: {:?}", got.as_ref().map(|v| v.len())));
        let Some(begun) = making.into_inner() else {
            return self.was_read(&key, read, got.map(Some)).map(drop);
        };
        let answer = match (&got, fails) {
            (Ok(made), false) if *made == bytes => Ok(()),
            (Err(Error::Maker(_)), true) => Ok(()),
            // The put of what was made.
            (Err(e), false) if !matches!(e, Error::Maker(_)) => Ok(()),
            (got, _) => Err(format!("{key}: a value was made, and the answer is {got:?}")),
        };
        if fails {
            self.history.wrote(&key, begun, Outcome::Refused, self.mark());
        } else {
            self.put_ended(&key, value, begun, got.map(|_| true));
        }
        // It was absent, or nobody would have made it.
        self.was_read(&key, read, Ok(None))?;
        answer
    }

    fn touch(&mut self) -> Check {
        let key = self.key();
        let live = self.read(&key)?;
        // One that never expires would from then on.
        if !key.starts_with(FICKLE) && self.plan.default_ttl.is_some() {
            return Ok(());
        }
        let done = self.cache().touch(&key);
        self.told.say(|| format!("touch {key:.20}: {done:?}"));
        let touched = done.as_ref().ok().copied();
        if let Some(ms) = self.plan.default_ttl {
            self.expiry_set(&key, self.now + ms, done);
        }
        self.expect("touch", &key, live, touched)
    }

    /// It does not expire, after all.
    fn expire_never(&mut self) -> Check {
        let key = self.key();
        let live = self.read(&key)?;
        let done = self.cache().expire_in(&key, None);
        self.told.say(|| format!("{key:.20} never expires: {done:?}"));
        let set = done.as_ref().ok().copied();
        self.expiry_set(&key, u64::MAX, done);
        self.expect("expire_in", &key, live, set)
    }

    fn take(&mut self) -> Check {
        let key = self.key();
        let live = self.read(&key)?;
        let removed = self.removing(vec![key.clone()], |cache| cache.remove(&key));
        self.told.say(|| format!("remove {key:.20}: {removed:?}"));
        self.expect("remove", &key, live, removed)
    }

    fn get_many(&mut self) -> Check {
        let keys: Vec<String> = (0..1 + self.more.below(5)).map(|_| self.key()).collect();
        let begun: Vec<Begun> = keys.iter().map(|_| self.history.read(self.mark())).collect();
        match self.cache().get_many(&keys) {
            Ok(values) if values.len() != keys.len() => {
                Err(format!("{} values of {} keys", values.len(), keys.len()))
            }
            Ok(values) => keys
                .iter()
                .zip(begun)
                .zip(values)
                .try_for_each(|((key, begun), value)| self.was_read(key, begun, Ok(value)).map(drop)),
            Err(_) if self.failing => Ok(()),
            Err(e) => Err(format!("get_many: {e}")),
        }
    }

    /// A walk has each key that is live, once, and no other.
    fn walk(&mut self) -> Check {
        let prefix = *self.more.pick(&["a/", "b/", "c/", FICKLE, ""]).unwrap_or(&"");
        let mut live = BTreeSet::new();
        for key in self.history.keys().into_iter().filter(|k| k.starts_with(prefix)) {
            if self.read(&key)? == Some(true) {
                live.insert(key);
            }
        }
        let since = self.history.moment(self.mark());
        for key in self.hear(&since)? {
            live.remove(&key);
        }
        let listed: Vec<_> = self.cache().keys(prefix).collect();
        let gone = self.hear(&since)?;
        let mut seen = BTreeSet::new();
        for key in listed {
            match key {
                Ok(key) => {
                    let key = String::from_utf8_lossy(&key).into_owned();
                    if !key.starts_with(prefix) || !seen.insert(key.clone()) {
                        return Err(format!("a walk of {prefix:?} gave {key}, another's or again"));
                    }
                }
                Err(_) if self.failing => {}
                Err(e) => return Err(format!("a walk: {e}")),
            }
        }
        let missed: Vec<_> = live.difference(&seen).filter(|k| !gone.contains(*k)).collect();
        let dead: Vec<_> = seen.difference(&live).collect();
        if self.is_sure() && !(missed.is_empty() && dead.is_empty()) {
            return Err(format!("a walk of {prefix:?} left out {missed:?} and gave {dead:?}"));
        }
        Ok(())
    }
}
