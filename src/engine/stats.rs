//! The picture that `stats()` gives.
//!
//! Each number is right by itself; they are read one after the other, so that sums across them may be a moment apart.
//! Nothing is changed, and no lock is held from one to the next.

use super::Engine;
use crate::stats::{LatencyStats, Stats, TierStats, TypeStats};
use std::sync::atomic::Ordering::Relaxed;
use thermocline_storage::{Codec, ContentType, Tier};

impl Engine {
    /// Items that the catalog has on disk.
    pub(super) fn catalog_items(&self) -> u64 {
        self.catalog.indexed()
    }

    pub(crate) fn stats(&self) -> Stats {
        let catalog = self.catalog.stats();
        let mut stats = Stats {
            counts: self.counters.counts(),
            dirty_bytes: self.catalog.buffer.bytes(),
            inflight_bytes: self.budget.used(),
            catalog_bytes: catalog.bytes,
            journal_bytes: catalog.journal_written,
            checkpoints: catalog.checkpoints,
            catalog_disk_bytes: catalog.on_disk,
            catalog_io: self.meters.catalog.as_ref().map(|m| m.traffic().into()),
            latency: LatencyStats { journal_sync: self.catalog.journal_latency(), ..self.latencies.stats() },
            ..Stats::default()
        };
        let memory_hits = self.counters.memory_hits.sum();
        stats.counts.gets += memory_hits;
        let memory = self.memory.stats();
        stats.items = if self.has_disk() { catalog.indexed + catalog.only_dirty } else { memory.items };
        let containers = self.catalog.containers.counts();
        for tier in Tier::ALL {
            let mut t = self.counted(tier);
            if tier == Tier::Memory {
                t.hits += memory_hits;
                t.items = memory.items;
                t.bytes = memory.weight;
                t.limit = Some(memory.max_bytes);
            } else {
                let Some(disk) = self.tier(tier) else { continue };
                let usage = disk.usage();
                t.bytes = usage.occupied;
                t.limit = usage.limit;
                let out = disk.directories().into_iter().filter_map(|d| Some((d.path, d.out_of_service?)));
                t.out_of_service = out.collect();
                t.io = self.meters.of_tier(tier).map(|m| m.traffic().into()).collect();
                let counted = containers.get(&tier).copied().unwrap_or_default();
                (t.containers, t.items) = (counted.containers, counted.live);
            }
            if let Some(slot) = stats.tiers.get_mut(tier as usize) {
                *slot = Some(t);
            }
        }
        for (slot, t) in stats.types.iter_mut().zip(ContentType::STORED) {
            let c = self.counters.content(t);
            *slot = TypeStats {
                items: c.items.load(Relaxed),
                original_bytes: c.original.load(Relaxed),
                stored_bytes: c.stored.load(Relaxed),
                zlib: self.meters.effort.spent(t, Codec::Zlib).into(),
                lz4: self.meters.effort.spent(t, Codec::Lz4).into(),
                deflate: self.meters.effort.spent(t, Codec::Deflate).into(),
            };
        }
        stats
    }

    fn counted(&self, tier: Tier) -> TierStats {
        let c = self.counters.tier(tier);
        TierStats {
            hits: c.hits.load(Relaxed),
            written: c.written.load(Relaxed),
            promoted: c.promoted.load(Relaxed),
            demoted: c.demoted.load(Relaxed),
            evicted: c.evicted.load(Relaxed),
            ..TierStats::default()
        }
    }
}
