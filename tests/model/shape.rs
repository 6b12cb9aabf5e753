//! Which tiers the store under test has, and how it is set.

use proptest::prelude::*;
use std::path::Path;
use thermocline::{Builder, Cache, MemoryPolicy, Persistence, Tier};

pub const MIB: u64 = 1 << 20;

/// Which tiers, and how the store is set.
#[derive(Debug, Clone)]
pub struct Shape {
    pub ssd: bool,
    pub hdd: bool,
    /// `Some(true)`: limited.
    pub cold: Option<bool>,
    pub persistence: Persistence,
    pub policy: MemoryPolicy,
    pub default_ttl: Option<u64>,
    pub few_in_memory: bool,
}

impl Shape {
    pub fn tiers(&self) -> Vec<Tier> {
        let mut tiers = vec![Tier::Memory];
        tiers.extend(self.ssd.then_some(Tier::Ssd));
        tiers.extend(self.hdd.then_some(Tier::Hdd));
        tiers.extend(self.cold.map(|_| Tier::Cold));
        tiers
    }

    pub fn has_disk(&self) -> bool {
        self.tiers().len() > 1
    }

    /// Half of the smallest tier may be one value.
    pub fn largest(&self) -> u64 {
        if self.has_disk() { MIB } else { MIB / 2 }
    }

    pub fn builder(&self, dir: &Path, small: bool) -> Builder {
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
        b.config_mut().resources.io.write_buffer_size = MIB;
        let s = &mut b.config_mut().storage;
        s.segment_size = Some(MIB);
        s.generation_size = Some(MIB);
        s.pack_size = Some(MIB);
        s.default_ttl = self.default_ttl;
        s.max_value_size = Some(self.largest());
        s.write_stall_limit = 5;
        b
    }
}

/// A store with an HDD tier or without one, the rest at random.
pub fn shape(hdd: bool) -> impl Strategy<Value = Shape> {
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
