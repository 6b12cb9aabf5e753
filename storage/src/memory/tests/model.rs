//! The tier against a map: what is resident is always what was put in less what the tier said went out.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

#[derive(Debug, Clone)]
enum Op {
    Put { key: u64, len: usize, ttl: u64, dirty: bool, prefetched: bool, force: bool },
    Get(u64),
    Peek(u64),
    Remove(u64),
    SetClean(u64),
    SetExpiry(u64, u64),
    Advance(u64),
    Reap(usize),
    Shrink(u64),
    Limits(u64, u64),
    Setting(usize),
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![8 => 0usize..300, 2 => 0usize..4000, 1 => Just(70_000), 1 => Just(400_000)];
    let ttl = prop_oneof![3 => Just(0u64), 1 => 1u64..50];
    prop_oneof![
        30 => (0u64..120, len, ttl, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(key, len, ttl, dirty, prefetched, force)| Op::Put { key, len, ttl, dirty, prefetched, force }
        ),
        30 => (0u64..120).prop_map(Op::Get),
        5 => (0u64..120).prop_map(Op::Peek),
        5 => (0u64..120).prop_map(Op::Remove),
        3 => (0u64..120).prop_map(Op::SetClean),
        3 => (0u64..120, 0u64..60).prop_map(|(k, t)| Op::SetExpiry(k, t)),
        3 => (1u64..20).prop_map(Op::Advance),
        3 => (0usize..100).prop_map(Op::Reap),
        1 => (0u64..200_000).prop_map(Op::Shrink),
        2 => (0u64..300_000, 0u64..100).prop_map(|(b, i)| Op::Limits(b, i)),
        1 => (0usize..6).prop_map(Op::Setting),
        1 => Just(Op::Clear),
    ]
}

#[derive(Debug, Clone, PartialEq)]
struct Known {
    key: u64,
    version: u64,
    len: usize,
    expires_at: u64,
    dirty: bool,
    unused: bool,
}

/// Two keys in three share an identity with another.
fn id(key: u64) -> u64 {
    if key.is_multiple_of(3) { key } else { key / 3 * 3 + 1 }
}

fn value(key: u64, version: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| (key.wrapping_mul(31).wrapping_add(version * 7).wrapping_add(i as u64)) as u8).collect()
}

struct Run {
    tier: MemoryTier,
    known: HashMap<u64, Known>,
    now: u64,
    version: u64,
}

impl Run {
    fn gone(&mut self, out: Vec<Evicted>) -> Result<(), TestCaseError> {
        for e in out {
            let known = self.known.remove(&e.ident.bits());
            let known = known.ok_or_else(|| TestCaseError::fail(format!("{e:?} was not there")))?;
            prop_assert_eq!(&e.key[..], &known.key.to_le_bytes());
            prop_assert_eq!(&e.value[..], &value(known.key, known.version, known.len)[..]);
            prop_assert_eq!(e.version.0, known.version);
            prop_assert_eq!((e.dirty, e.expires_at), (known.dirty, known.expires_at));
            prop_assert_eq!(e.unused_prefetch, known.unused);
            prop_assert_eq!(e.bytes, 8 + known.len as u64 + ENTRY_OVERHEAD);
            if e.reason == Reason::Expired {
                prop_assert!(e.expires_at != 0 && e.expires_at <= self.now);
            }
        }
        Ok(())
    }

    fn put(&mut self, op: Op) -> Result<(), TestCaseError> {
        let Op::Put { key, len, ttl, dirty, prefetched, force } = op else { return Ok(()) };
        self.version += 1;
        let expires_at = if ttl == 0 { 0 } else { self.now + ttl - 1 };
        let new = NewEntry {
            ident: ident(id(key)),
            pair: Pair::new(&key.to_le_bytes(), &value(key, self.version, len).into()),
            version: Version(self.version),
            content_type: ContentType::Media,
            expires_at,
            dirty,
            prefetched,
            force,
        };
        let mut out = Vec::new();
        let limits = self.tier.budget.limits();
        let admitted = self.tier.insert(new, self.now, &mut out);
        let fits = 8 + len as u64 + ENTRY_OVERHEAD <= limits.bytes && limits.items > 0;
        if force {
            prop_assert_eq!(admitted, fits && (expires_at == 0 || expires_at > self.now));
        }
        let put = Known { key, version: self.version, len, expires_at, dirty, unused: prefetched };
        // What had the identity: silently replaced if of the same key, reported if of another.
        let before = self.known.get(&id(key)).cloned();
        let displaced = out.iter().position(|e| e.reason == Reason::Displaced);
        if let Some(before) = before {
            let evicted_before =
                out.iter().any(|e| e.ident.bits() == id(key) && e.reason == Reason::Capacity);
            prop_assert!(!evicted_before, "what is being replaced is not evicted for it");
            prop_assert_eq!(displaced.is_some(), before.key != key);
            if before.key == key {
                self.known.remove(&id(key));
            }
        } else {
            prop_assert!(displaced.is_none());
        }
        if let Some(at) = displaced {
            let out = vec![out.remove(at)];
            self.gone(out)?;
        }
        if !admitted {
            let refused = out.iter().position(|e| e.ident.bits() == id(key));
            prop_assert_eq!(refused.is_some(), dirty);
            if let Some(at) = refused {
                self.known.insert(id(key), put);
                let out = vec![out.remove(at)];
                self.gone(out)?;
            }
        } else {
            self.known.insert(id(key), put);
        }
        self.gone(out)
    }

    fn apply(&mut self, op: Op) -> Result<(), TestCaseError> {
        let mut out = Vec::new();
        match op {
            Op::Put { .. } => self.put(op)?,
            Op::Get(key) => {
                let found = self.tier.get(ident(id(key)), &key.to_le_bytes(), self.now);
                let known = self.known.get_mut(&id(key)).filter(|k| k.key == key);
                match (found, known) {
                    (Lookup::Hit(hit), Some(k)) => {
                        prop_assert!(k.expires_at == 0 || k.expires_at > self.now, "expired");
                        prop_assert_eq!(&hit.value[..], &value(k.key, k.version, k.len)[..]);
                        prop_assert_eq!((hit.version.0, hit.expires_at), (k.version, k.expires_at));
                        prop_assert_eq!(hit.content_type, ContentType::Media);
                        prop_assert_eq!(hit.first_use_of_prefetched, std::mem::take(&mut k.unused));
                    }
                    (Lookup::Expired, Some(k)) => {
                        prop_assert!(k.expires_at != 0 && k.expires_at <= self.now);
                    }
                    (found, known) => {
                        prop_assert!(found == Lookup::Miss && known.is_none(), "{:?} {:?}", found, known);
                    }
                }
            }
            Op::Peek(key) => {
                let live = self.known.get(&id(key)).filter(|k| k.key == key);
                let live = live.filter(|k| k.expires_at == 0 || k.expires_at > self.now);
                let hit = self.tier.peek(ident(id(key)), &key.to_le_bytes(), self.now);
                prop_assert_eq!(hit.map(|h| h.version.0), live.map(|k| k.version));
            }
            Op::Remove(key) => {
                let removed: Vec<_> = self.tier.remove(ident(id(key))).into_iter().collect();
                prop_assert_eq!(removed.len(), usize::from(self.known.contains_key(&id(key))));
                self.gone(removed)?;
            }
            Op::SetClean(key) => {
                let version = self.known.get(&id(key)).map_or(0, |k| k.version);
                let known = self.known.get_mut(&id(key));
                prop_assert!(!self.tier.set_clean(ident(id(key)), Version(version + 1)));
                prop_assert_eq!(self.tier.set_clean(ident(id(key)), Version(version)), known.is_some());
                if let Some(k) = known {
                    k.dirty = false;
                }
            }
            Op::SetExpiry(key, at) => {
                let version = self.known.get(&id(key)).map_or(0, |k| k.version);
                let known = self.known.get_mut(&id(key));
                prop_assert!(!self.tier.set_expiry(ident(id(key)), Version(version + 1), 1));
                prop_assert_eq!(self.tier.set_expiry(ident(id(key)), Version(version), at), known.is_some());
                if let Some(k) = known {
                    k.expires_at = at;
                }
            }
            Op::Advance(ms) => self.now += ms,
            Op::Reap(budget) => {
                let n = self.tier.expire(self.now, budget, &mut out);
                prop_assert_eq!(n, out.len());
                prop_assert!(out.iter().all(|e| e.reason == Reason::Expired));
                prop_assert!(n <= budget);
                self.gone(out)?;
            }
            Op::Shrink(bytes) => {
                self.tier.shrink_to(bytes, &mut out);
                prop_assert!(self.tier.stats().weight <= bytes);
                self.gone(out)?;
            }
            Op::Limits(bytes, items) => {
                self.tier.set_limits(bytes, items, &mut out);
                self.gone(out)?;
            }
            Op::Setting(n) => {
                let adaptive = self.tier.policy() == MemoryPolicy::Adaptive;
                prop_assert_eq!(self.tier.set_setting(Setting::ALL[n]), adaptive);
                prop_assert_eq!(self.tier.setting(), adaptive.then_some(Setting::ALL[n]));
            }
            Op::Clear => {
                let dead = |k: &&Known| k.expires_at != 0 && k.expires_at <= self.now;
                let alive = self.known.len() - self.known.values().filter(dead).count();
                prop_assert_eq!(self.tier.clear(self.now), alive as u64);
                self.known.clear();
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        self.tier.audit();
        let mut resident = 0;
        for shard in 0..self.tier.shard_count() {
            for r in self.tier.snapshot(shard) {
                resident += 1;
                let known = self.known.get(&r.ident.bits());
                let found = (r.version.0, r.expires_at, r.dirty);
                prop_assert_eq!(Some(found), known.map(|k| (k.version, k.expires_at, k.dirty)));
                prop_assert_eq!(Some(r.key.to_vec()), known.map(|k| k.key.to_le_bytes().to_vec()));
                prop_assert!(self.tier.contains(r.ident));
            }
        }
        prop_assert_eq!(resident, self.known.len(), "nothing leaves silently");
        let stats = self.tier.stats();
        let dirty: Vec<_> = self.known.values().filter(|k| k.dirty).collect();
        prop_assert_eq!(stats.dirty_items, dirty.len() as u64);
        prop_assert_eq!(
            stats.dirty_bytes,
            dirty.iter().map(|k| 8 + k.len as u64 + ENTRY_OVERHEAD).sum::<u64>()
        );
        prop_assert_eq!(stats.value_bytes, self.known.values().map(|k| k.len as u64).sum::<u64>());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn agrees_with_a_map(
        ops in prop::collection::vec(op(), 1..400),
        policy in prop_oneof![2 => Just(MemoryPolicy::Adaptive), 1 => Just(MemoryPolicy::Lru)],
        shards in prop_oneof![Just(1usize), Just(4), Just(16)],
        max_items in prop_oneof![Just(1u64), 2u64..200],
        max_bytes in prop_oneof![Just(500u64), 1_000u64..500_000],
    ) {
        let tier = tier(max_bytes, max_items, policy, Some(shards));
        let mut run = Run { tier, known: HashMap::new(), now: 1, version: 0 };
        for op in ops {
            run.apply(op)?;
            run.check()?;
        }
    }
}
