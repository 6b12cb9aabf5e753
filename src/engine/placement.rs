//! What belongs on which tier, and what may be spent to bring it there.
//!
//! **The bar** of a tier is the heat of the coldest item that would stand on it or above in the best placement: the
//! items sorted by heat fill the tiers from the top. A *survey* finds it in a sample of the catalog. Identities are
//! secretly seeded hashes, so any part of a hash table is a fair sample.
//!
//! **The credit** bounds what the highest disk tier is written beyond what callers put: a quarter of the bytes that
//! were accepted there, and a sixty-fourth of those that hits below it read, so that a store that is only read still
//! gets better, slowly; and at opening, a thirty-second of the tier's limit. Hot records that reclaim copies to the head, and promotions, are paid for from it; without
//! credit, everything sinks and nothing rises. What was not spent is saved up, at most once the tier's limit. When
//! it is short the bar rises, so that the hottest come first.
//!
//! Invariant: bar and credit are advice, and in memory alone. A crash costs a survey and the credit that was saved up.

use super::Engine;
use crate::heat::Heat;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use thermocline_storage::container::{DiskTier, Entry, Listed};
use thermocline_storage::{Ident, Tier};

/// Heat below which nothing is worth keeping or promoting: two uses.
const FLOOR: u32 = 2 * Heat::ONE;
/// Identities that a survey looks at.
const SAMPLE: usize = 2_048;
/// How long a survey holds, in milliseconds.
const SURVEY_MS: u64 = 100;
/// Of the bytes accepted by the highest disk tier, one in this many may be spent.
const OF_ACCEPTED: u64 = 4;
/// Of the bytes that hits below it read, one in this many.
const OF_READ: u64 = 64;
/// Of the limit of the highest disk tier, one in this many is there at opening.
const OF_LIMIT: u64 = 32;
/// Containers whose worth is found out anew for each that is reclaimed.
const LOOKS: usize = 8;

/// What the engine knows of where items belong.
#[derive(Debug)]
pub(super) struct Placement {
    /// By tier number.
    bars: [AtomicU32; 4],
    /// What is in memory and at least this hot will stay there.
    stays_in_memory: AtomicU32,
    surveyed_ms: AtomicU64,
    credit: AtomicI64,
    /// Of containers of the highest disk tier, by id: their worth when they were last looked at, and the number of
    /// that look.
    worth: Mutex<HashMap<u64, (u64, u64)>>,
    looks: AtomicU64,
}

impl Default for Placement {
    fn default() -> Placement {
        Placement {
            bars: Default::default(),
            stays_in_memory: AtomicU32::new(u32::MAX),
            surveyed_ms: AtomicU64::new(0),
            credit: AtomicI64::new(0),
            worth: Mutex::default(),
            looks: AtomicU64::new(0),
        }
    }
}

impl Placement {
    pub(super) fn bar(&self, tier: Tier) -> u32 {
        self.bars.get(tier as usize).map_or(FLOOR, |b| b.load(Ordering::Relaxed).max(FLOOR))
    }

    /// Whether all items that are not in memory would find room on a tier and those above.
    fn has_room(&self, tier: Tier) -> bool {
        self.bars.get(tier as usize).is_none_or(|b| b.load(Ordering::Relaxed) == 0)
    }

    /// Bytes that may be spent.
    pub(super) fn credit(&self) -> u64 {
        u64::try_from(self.credit.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// So many bytes were spent.
    pub(super) fn spend(&self, bytes: u64) {
        self.credit.fetch_sub(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    fn save(&self, bytes: u64, most: u64) {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let more = i64::try_from(bytes).unwrap_or(i64::MAX);
        let _ = self
            .credit
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |c| Some(c.saturating_add(more).min(most)));
    }

    /// A container is gone.
    pub(super) fn forget(&self, id: u64) {
        self.worth.lock().remove(&id);
    }
}

impl Engine {
    /// What may be spent from the start.
    pub(super) fn advance_credit(&self) {
        let most = self.most_credit();
        self.placement.save(most / OF_LIMIT, most);
    }

    /// Most credit that is saved up.
    fn most_credit(&self) -> u64 {
        self.top().and_then(|t| t.usage().limit).unwrap_or(1 << 30)
    }

    /// The highest disk tier, and no other, took so many bytes of what callers put.
    pub(super) fn earn_by_writes(&self, tier: Tier, bytes: u64) {
        if self.top().is_some_and(|top| top.tier() == tier) {
            self.placement.save(bytes / OF_ACCEPTED, self.most_credit());
        }
    }

    /// A hit below the highest disk tier read so many bytes.
    pub(super) fn earn_by_read(&self, bytes: u64) {
        self.placement.save(bytes.div_ceil(OF_READ), self.most_credit());
    }

    /// How short the credit is, between 0 (half of the most is there) and 1 (nothing).
    fn shortage(&self) -> f64 {
        let enough = (self.most_credit() / 2).max(1);
        1.0 - self.placement.credit().min(enough) as f64 / enough as f64
    }

    /// Whether an item belongs on the highest disk tier.
    pub(super) fn is_hot(&self, ident: Ident) -> bool {
        let Some(top) = self.top() else { return false };
        let heat = self.heat.estimate(ident);
        heat >= self.placement.bar(top.tier()) && !self.memory_serves(ident, heat)
    }

    /// The heat from which a copy to the head of a tier, to stay or to rise, is worth what it costs. On the highest disk
    /// tier that is over the bar by as much as an estimate may be off (a count of n is, by about its root), and the
    /// more the shorter the credit: what only seems hot takes room and credit, and sinks again.
    pub(super) fn worth_a_copy(&self, tier: Tier) -> u32 {
        let bar = self.placement.bar(tier);
        // Below the floor the tier has room for everything, and nothing has to go for the copy.
        if self.top().is_none_or(|top| top.tier() != tier) || self.placement.has_room(tier) {
            return bar;
        }
        let deviation = (f64::from(bar) * f64::from(Heat::ONE)).sqrt();
        let short = self.shortage();
        (f64::from(bar) * (1.0 + short / 2.0) + deviation * (1.0 + short)) as u32
    }

    /// Whether memory serves the item, and will go on doing so: then it need not stand on the highest disk tier too.
    pub(super) fn memory_serves(&self, ident: Ident, heat: u32) -> bool {
        heat >= self.placement.stays_in_memory.load(Ordering::Relaxed) && self.memory.contains(ident)
    }

    /// Finds the bars anew if that is due.
    pub(super) fn survey(&self) {
        let now = self.now();
        let last = self.placement.surveyed_ms.load(Ordering::Relaxed);
        if last != 0 && now < last.saturating_add(SURVEY_MS) {
            return;
        }
        self.placement.surveyed_ms.store(now.max(1), Ordering::Relaxed);
        let (mut inside, mut outside) = (Vec::new(), Vec::new());
        let sample = self.catalog.sample(SAMPLE);
        for ident in &sample {
            let heat = self.heat.estimate(*ident);
            if self.memory.contains(*ident) { inside.push(heat) } else { outside.push(heat) }
        }
        inside.sort_unstable_by(|a, b| b.cmp(a));
        outside.sort_unstable_by(|a, b| b.cmp(a));
        let median = inside.get(inside.len() / 2).copied().unwrap_or(u32::MAX);
        self.placement.stays_in_memory.store(median, Ordering::Relaxed);
        let total = self.catalog_items().max(1) as u128;
        let mut rank = 0u128;
        for tier in &self.tiers {
            rank = rank.saturating_add(u128::from(self.holds(tier)));
            // Of the sample as many are above the bar as of all items.
            let at = usize::try_from(rank * sample.len() as u128 / total).unwrap_or(usize::MAX);
            if let Some(bar) = self.placement.bars.get(tier.tier() as usize) {
                bar.store(outside.get(at).copied().unwrap_or(0), Ordering::Relaxed);
            }
        }
    }

    /// How many items a tier holds when it is as full as it may get, by what those on it take, and by their limit.
    fn holds(&self, tier: &Arc<dyn DiskTier>) -> u64 {
        let Some(limit) = tier.usage().limit else { return u64::MAX };
        let (mut live, mut occupied) = (0u64, 0u64);
        for e in self.catalog.containers.of_tier(tier.tier()) {
            live += e.live();
            occupied += e.container.occupied();
        }
        let room = u128::from(super::reclaim::high_mark(limit));
        let by_room =
            u64::try_from(u128::from(live) * room / u128::from(occupied.max(1))).unwrap_or(u64::MAX);
        if tier.tier() == Tier::Ssd { by_room.min(self.settings.ssd_items) } else { by_room }
    }

    /// Of each container of the highest disk tier, what it is worth in bytes: those of records over the bar whole, of
    /// others in proportion to their heat, of what memory serves nothing. Some are looked at; of the others it is what
    /// was found before, or, if they never were, what is alive.
    pub(super) fn worth(&self, all: &[Arc<Entry>]) -> HashMap<u64, u64> {
        let look = self.placement.looks.fetch_add(1, Ordering::Relaxed) + 1;
        let known = self.placement.worth.lock().clone();
        // One that is still being written to would be known for less than it will hold.
        let mut due: Vec<&Arc<Entry>> = all.iter().filter(|e| e.sealed.load(Ordering::Acquire)).collect();
        due.sort_by_key(|e| (known.get(&e.id).map_or(0, |k| k.1), e.id));
        for entry in due.into_iter().take(LOOKS) {
            // One that cannot be listed was looked at as well: else it would be due for ever, and others never.
            let worth =
                entry.container.list().map_or(entry.live_bytes(), |listed| self.worth_of(entry, listed));
            self.placement.worth.lock().insert(entry.id, (worth, look));
        }
        let mut found = self.placement.worth.lock();
        // What others dropped while it was looked at here would never be forgotten.
        let there: HashSet<u64> = all.iter().map(|e| e.id).collect();
        found.retain(|id, _| there.contains(id));
        all.iter().map(|e| (e.id, found.get(&e.id).map_or(e.live_bytes(), |w| w.0))).collect()
    }

    fn worth_of(&self, entry: &Entry, listed: Vec<Listed>) -> u64 {
        let bar = self.placement.bar(entry.tier);
        let worth = |l: &Listed| {
            let heat = self.heat.estimate(l.ident);
            let share = if self.memory_serves(l.ident, heat) { 0 } else { heat.min(bar) };
            f64::from(l.bytes) * f64::from(share) / f64::from(bar)
        };
        self.catalog.live_in(entry, listed).iter().map(worth).sum::<f64>() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cache;
    use crate::engine::testkit::{Try, open};

    /// A store without threads, on whose SSD reclaim has nothing to do.
    fn store(dir: &std::path::Path) -> Try<Cache> {
        let mut builder =
            Cache::builder().memory(1 << 20).ssd(dir.join("s"), 64 << 20).hdd(dir.join("h"), 64 << 20);
        builder.config_mut().ssd.compression = false;
        builder.config_mut().hdd.compression = false;
        open(builder)
    }

    #[test]
    fn credit_is_a_part_of_what_is_written_and_read_and_copies_are_paid_for() -> Try {
        let dir = tempfile::tempdir()?;
        let cache = store(dir.path())?;
        let engine = cache.engine();
        let credit = || engine.placement.credit();
        assert_eq!(credit(), (64 << 20) / OF_LIMIT, "at opening");
        let before = credit();
        for n in 0..400u32 {
            cache.put(n.to_be_bytes(), vec![7; 20_000])?;
        }
        cache.flush()?;
        let written = cache.stats().tier(Tier::Ssd).ok_or("no SSD")?.written;
        let earned = credit() - before;
        assert!(written > 6 << 20 && earned <= written / OF_ACCEPTED, "{earned} of {written}");
        assert!(earned >= written / OF_ACCEPTED - 400, "{earned} of {written}");
        // What is read from the HDD earns a little; what is read from the SSD nothing.
        let before = credit();
        let key = 0u32.to_be_bytes();
        for (tier, share) in [(Tier::Ssd, 0), (Tier::Hdd, 20_000 / OF_READ)] {
            cache.demote(key, tier)?;
            engine.memory.remove(engine.ident(&key)?);
            assert_eq!(cache.get(key)?.map(|v| v.len()), Some(20_000));
            let earned = credit() - before;
            assert!((share..=share + 10).contains(&earned), "{earned} for a read from {tier}");
        }
        Ok(())
    }

    #[test]
    fn without_credit_nothing_rises() -> Try {
        let dir = tempfile::tempdir()?;
        let cache = store(dir.path())?;
        let engine = cache.engine();
        let keys: Vec<[u8; 4]> = (0..40u32).map(u32::to_be_bytes).collect();
        for key in &keys {
            cache.put(key, vec![key[3]; 30_000])?;
        }
        cache.flush()?;
        let promoted = |cache: &Cache| cache.stats().tier(Tier::Ssd).map_or(0, |t| t.promoted);
        for credit in [false, true] {
            engine.placement.credit.store(if credit { 1 << 20 } else { 0 }, Ordering::Relaxed);
            for key in &keys {
                cache.demote(key, Tier::Hdd)?;
                engine.heat.record(engine.ident(key)?, 60);
            }
            for key in &keys {
                engine.memory.remove(engine.ident(key)?);
                cache.get(key)?;
            }
            if !credit {
                engine.placement.credit.store(0, Ordering::Relaxed);
            }
            while engine.promote_step()? {}
            assert_eq!(promoted(&cache) > 0, credit);
        }
        assert!(engine.placement.credit() < 1 << 20, "nothing was paid");
        Ok(())
    }

    fn segments(cache: &Cache, count: u32) -> Try<Vec<Arc<Entry>>> {
        let engine = cache.engine();
        for n in 0..count {
            cache.put(n.to_be_bytes(), vec![7; 20_000])?;
            cache.flush()?;
            engine.top().ok_or("no tier")?.seal()?;
        }
        Ok(engine.catalog.containers.of_tier(Tier::Ssd))
    }

    #[test]
    fn the_worth_of_what_was_dropped_while_it_was_looked_at_is_forgotten() -> Try {
        let dir = tempfile::tempdir()?;
        let cache = store(dir.path())?;
        let engine = cache.engine();
        let before = segments(&cache, 3)?;
        cache.remove(1u32.to_be_bytes())?;
        cache.flush()?;
        assert!(engine.reclaim_step(Tier::Ssd)?, "it is empty");
        let now = engine.catalog.containers.of_tier(Tier::Ssd);
        assert_eq!((before.len(), now.len()), (3, 2));
        engine.worth(&before);
        engine.worth(&now);
        let known = engine.placement.worth.lock().len();
        assert_eq!(known, 2);
        Ok(())
    }

    /// A container that says nothing of what is in it.
    #[derive(Debug)]
    struct Unreachable;

    impl thermocline_storage::container::Container for Unreachable {
        fn read_up_to(&self, _: u32, _: u64) -> thermocline_storage::Result<thermocline_storage::Item> {
            Err(thermocline_storage::Error::Busy("unreachable"))
        }
        fn head(&self, _: u32) -> thermocline_storage::Result<thermocline_storage::item::Head> {
            Err(thermocline_storage::Error::Busy("unreachable"))
        }
        fn list(&self) -> thermocline_storage::Result<Vec<Listed>> {
            Err(thermocline_storage::Error::Busy("unreachable"))
        }
        fn raw(&self, _: u32) -> Option<thermocline_storage::container::RawRecord> {
            None
        }
        fn occupied(&self) -> u64 {
            1 << 20
        }
    }

    #[test]
    fn what_cannot_be_listed_does_not_keep_others_from_being_looked_at() -> Try {
        let dir = tempfile::tempdir()?;
        let cache = store(dir.path())?;
        let engine = cache.engine();
        segments(&cache, 2)?;
        let containers = &engine.catalog.containers;
        for _ in 0..2 * LOOKS {
            let entry = containers.publish(
                containers.reserve(thermocline_storage::container::Purpose::Write)?,
                Tier::Ssd,
                0,
                7,
                Arc::new(Unreachable),
            );
            entry.sealed.store(true, Ordering::Release);
        }
        let all = containers.of_tier(Tier::Ssd);
        let looked =
            || all.iter().filter_map(|e| engine.placement.worth.lock().get(&e.id).map(|w| w.1)).min();
        for _ in 0..3 {
            engine.worth(&all);
        }
        assert_eq!(looked(), Some(1), "each was looked at once");
        for _ in 0..3 {
            engine.worth(&all);
        }
        assert!(looked() > Some(2), "and each again");
        Ok(())
    }
}
