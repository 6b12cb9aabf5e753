//! Tests of the tier as a whole.

mod lru;
mod model;
mod single;
mod stress;
mod traces;

use super::*;
use crate::pair::Pair;

/// A sink that adds up.
#[derive(Default)]
struct Counted(Mutex<std::collections::HashMap<u64, u64>>);

impl HeatSink for Counted {
    fn add(&self, ident: Ident, uses: u32) {
        *self.0.lock().entry(ident.bits()).or_default() += u64::from(uses);
    }
}

fn config(max_bytes: u64, max_items: u64, policy: MemoryPolicy, shards: Option<usize>) -> MemoryConfig {
    MemoryConfig { max_bytes, max_items, policy, shards }
}

fn tier(max_bytes: u64, max_items: u64, policy: MemoryPolicy, shards: Option<usize>) -> MemoryTier {
    MemoryTier::new(&config(max_bytes, max_items, policy, shards), Arc::new(NoHeat))
}

fn ident(i: u64) -> Ident {
    Ident::from_bits(i)
}

fn new(key: &[u8], i: u64, value: impl Into<Bytes>) -> NewEntry {
    NewEntry {
        ident: ident(i),
        pair: Pair::new(key, &value.into()),
        version: Version(1),
        content_type: ContentType::Binary,
        expires_at: 0,
        dirty: false,
        prefetched: false,
        force: true,
    }
}

impl MemoryTier {
    /// Checks every structure and sum against the entries themselves, and the limits. For a quiet tier.
    fn audit(&self) {
        let (mut weight, mut items) = (0, 0);
        for (cell, load) in self.shards.iter().zip(&self.loads) {
            let shard = cell.read();
            let (sums, prefetched) = shard.audit();
            assert_eq!(sums, shard.sums(), "the sums are those of the entries");
            assert_eq!(prefetched, shard.prefetched());
            assert_eq!((load.bytes.load(Relaxed), load.items.load(Relaxed)), (sums.weight, sums.items));
            weight += sums.weight;
            items += sums.items;
        }
        assert_eq!(self.budget.used(), Amount { bytes: weight, items }, "nothing stays reserved");
        let limits = self.budget.limits();
        assert!(weight <= limits.bytes && items <= limits.items, "{weight}, {items} within {limits:?}");
    }
}
