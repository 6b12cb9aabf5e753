//! Each operation, done to the store and to the model.

use super::{Check, Value, World, ok, short};
use crate::ops::{Op, PREFIXES, Ttl, fill_key, key_of};
use bytes::Bytes;
use proptest::test_runner::TestCaseError;
use std::time::Duration;
use thermocline::{Error, PutOptions, Tier};

impl World {
    pub fn apply(&mut self, op: &Op) -> Check {
        match *op {
            Op::Put { key, size, ttl } => self.put(&key_of(key), size, ttl)?,
            Op::PutMany { key, count, size } => self.put_many(key, count, size)?,
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
            Op::GetFill { start, count } => self.get_fill(start, count)?,
            Op::GetMemory { key } => self.get_memory(&key_of(key))?,
            Op::GetOrPut { key, size } => self.get_or_put(&key_of(key), size)?,
            Op::Contains { key } => self.contains(&key_of(key))?,
            Op::TierOf { key } => self.tier_of(&key_of(key))?,
            Op::Remove { key } => self.remove(&key_of(key))?,
            Op::RemovePrefix { prefix } => self.remove_prefix(prefix)?,
            Op::Clear => self.clear()?,
            Op::Keys { prefix } => self.check_keys(PREFIXES[usize::from(prefix) % PREFIXES.len()])?,
            Op::ExpireIn { key, ms } => self.expire_in(&key_of(key), ms)?,
            Op::Touch { key } => self.touch(&key_of(key))?,
            Op::PutIfAbsent { key, size } => self.put_if_absent(&key_of(key), size)?,
            Op::PutIfVersion { key, size, right } => self.put_if_version(&key_of(key), size, right)?,
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

    /// Notes a put that named no time to live.
    fn wrote_value(&mut self, key: &str, bytes: Bytes) {
        let expires_at = self.expiry(Ttl::Default);
        self.wrote(key, Some(Value { bytes, expires_at }));
    }

    /// Notes a change of expiry alone, which need not give a new version.
    fn wrote_expiry(&mut self, key: &str, value: Value) {
        self.wrote(key, Some(value));
        self.keys.get_mut(key).unwrap().above = 0;
    }

    fn put_many(&mut self, key: u8, count: u8, size: u32) -> Check {
        let mut items = Vec::new();
        for no in key..key.saturating_add(count) {
            let key = key_of(no);
            let bytes = self.new_value(&key, size);
            items.push((key, bytes));
        }
        ok(self.cache.put_many(items.clone()), || "put_many".into())?;
        for (key, bytes) in items {
            self.wrote_value(&key, bytes);
        }
        Ok(())
    }

    fn get_fill(&mut self, start: u8, count: u8) -> Check {
        let keys: Vec<String> = (start..start.saturating_add(count)).map(fill_key).collect();
        let got = ok(self.cache.get_many(&keys), || "get_many".into())?;
        for (key, got) in keys.iter().zip(got) {
            let want = self.current(key).map(|v| &v.bytes);
            if got.as_ref() != want {
                fail!("{key}: got {}, not {}", short(got.as_deref()), short(want.map(|b| &b[..])));
            }
        }
        Ok(())
    }

    fn get_memory(&mut self, key: &str) -> Check {
        let got = ok(self.cache.get_memory(key), || "get_memory".into())?;
        if let Some(got) = got {
            let want = self.current(key).map(|v| &v.bytes);
            if Some(&got) != want {
                fail!("{key} in memory: {}, not {}", short(Some(&got)), short(want.map(|b| &b[..])));
            }
        }
        Ok(())
    }

    fn get_or_put(&mut self, key: &str, size: u32) -> Check {
        let bytes = self.new_value(key, size);
        let made = bytes.clone();
        let got = self.cache.get_or_put_with(key, || Ok::<_, std::io::Error>(made));
        let got = ok(got, || format!("get_or_put_with {key}"))?;
        match self.current(key).map(|v| v.bytes.clone()) {
            Some(want) if got == want => {}
            None if got == bytes => self.wrote_value(key, bytes),
            want => fail!("{key}: got or put {}, had {}", short(Some(&got)), short(want.as_deref())),
        }
        Ok(())
    }

    fn contains(&mut self, key: &str) -> Check {
        let (got, want) = (ok(self.cache.contains(key), || "contains".into())?, self.current(key).is_some());
        if got != want {
            fail!("contains {key}: {got}");
        }
        Ok(())
    }

    fn tier_of(&mut self, key: &str) -> Check {
        let tier = ok(self.cache.tier_of(key), || "tier_of".into())?;
        if tier.is_some() != self.current(key).is_some()
            || tier.is_some_and(|t| !self.shape.tiers().contains(&t))
        {
            fail!("tier_of {key}: {tier:?}");
        }
        Ok(())
    }

    fn remove(&mut self, key: &str) -> Check {
        let was = self.current(key).is_some();
        let got = ok(self.cache.remove(key), || format!("remove {key}"))?;
        if got != was {
            fail!("remove {key} said {got}");
        }
        if self.keys.contains_key(key) {
            self.wrote(key, None);
        }
        Ok(())
    }

    fn remove_prefix(&mut self, prefix: u8) -> Check {
        let prefix = PREFIXES[usize::from(prefix) % PREFIXES.len()];
        let live = self.live(prefix);
        let got = ok(self.cache.remove_prefix(prefix), || format!("remove_prefix {prefix:?}"))?;
        if got != live.len() as u64 {
            fail!("remove_prefix {prefix:?}: {got}, not {}", live.len());
        }
        for key in live {
            self.wrote(&key, None);
        }
        Ok(())
    }

    fn clear(&mut self) -> Check {
        let live = self.live("").len() as u64;
        let got = ok(self.cache.clear(), || "clear".into())?;
        if got != live {
            fail!("clear: {got}, of {live} live");
        }
        for key in self.keys.keys().cloned().collect::<Vec<_>>() {
            self.wrote(&key, None);
        }
        self.check_keys("")
    }

    fn expire_in(&mut self, key: &str, ms: Option<u32>) -> Check {
        let ttl = ms.map(|ms| Duration::from_millis(u64::from(ms)));
        let got = ok(self.cache.expire_in(key, ttl), || format!("expire_in {key}"))?;
        let was = self.current(key).cloned();
        if got != was.is_some() {
            fail!("expire_in {key} said {got}");
        }
        if let Some(v) = was {
            let expires_at = ms.map_or(0, |ms| self.now + u64::from(ms));
            self.wrote_expiry(key, Value { expires_at, ..v });
        }
        Ok(())
    }

    fn touch(&mut self, key: &str) -> Check {
        let was = self.current(key).cloned();
        let got = ok(self.cache.touch(key), || format!("touch {key}"))?;
        if got != was.is_some() {
            fail!("touch {key} said {got}");
        }
        if let Some(v) = was
            && self.shape.default_ttl.is_some()
        {
            let expires_at = self.expiry(Ttl::Default);
            self.wrote_expiry(key, Value { expires_at, ..v });
        }
        Ok(())
    }

    fn put_if_absent(&mut self, key: &str, size: u32) -> Check {
        let bytes = self.new_value(key, size);
        let put = self.cache.put_if_absent(key, bytes.clone(), PutOptions::new());
        let put = ok(put, || format!("put_if_absent {key}"))?;
        if put == self.current(key).is_some() {
            fail!("put_if_absent {key} said {put}");
        }
        if put {
            self.wrote_value(key, bytes);
        }
        Ok(())
    }

    fn put_if_version(&mut self, key: &str, size: u32, right: bool) -> Check {
        let entry = ok(self.cache.get_entry(key), || format!("get {key}"))?;
        self.drain()?;
        let have = entry.map_or(1, |e| e.version);
        let bytes = self.new_value(key, size);
        let version = if right { have } else { have.wrapping_sub(1) };
        let put = self.cache.put_if_version(key, bytes.clone(), version, PutOptions::new());
        let put = ok(put, || format!("put_if_version {key}"))?;
        if put != (right && self.current(key).is_some()) {
            fail!("put_if_version {key} said {put}");
        }
        if put {
            self.wrote_value(key, bytes);
        }
        Ok(())
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
