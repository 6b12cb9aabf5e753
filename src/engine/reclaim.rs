//! The one reclaim: choose a container, move what is alive in it, drop it.
//!
//! A disk tier over 80 % of its limit (occupied, not live) reclaims until it is below. The candidate is the container
//! with the best benefit for its cost, `(1 - u) · age / (1 + u)` (Rosenblum and Ousterhout, "The Design and
//! Implementation of a Log-Structured File System", 1992), u being its live share; on the highest tier, what it is
//! worth counts (see `placement`). Of what is alive, the hot goes back to the head of the same tier, under a cap that
//! bounds write amplification; the rest goes to the tier below, or, where there is none that takes it, is evicted,
//! each item with an event. Several threads reclaim a tier side by side, each with a container that it has claimed;
//! in the lowest tier, one at a time.
//!
//! A container is dropped once it is empty, every frame that took a record from it is durable, and no batch is under
//! way that may have written to its tier. What a crash leaves: before the files are deleted, an empty container that the
//! next opening reclaims; after, one that the catalog knows and the disk does not have, with nothing alive in it.

use super::Engine;
use super::claim::{Choice, Claims};
use super::moves::{Moved, Mover};
use crate::error::Result;
use crate::events::EvictReason;
use crate::stats::Counters;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use thermocline_storage::container::{DiskTier, Entry, Listed, Purpose};
use thermocline_storage::{Error as StorageError, Tier, record};

/// Over this share of its limit a tier reclaims.
const HIGH: (u64, u64) = (80, 100);
/// The part of a container's bytes that may go back to the head of the highest tier, if there is credit for it: what
/// is dropped must be worth the work.
const KEEP_TOP: (u64, u64) = (80, 100);
/// The same of a tier between others: it bounds write amplification by reclaim to 1 / (1 - 0.23) = 1.3.
const KEEP: (u64, u64) = (23, 100);
/// The same where nothing is below: what is not kept is lost, so more is paid for keeping.
const KEEP_LAST: (u64, u64) = (60, 100);
/// How long an urgent reclaim waits for batches under way before it gives up dropping a container.
const DROP_WAIT: Duration = Duration::from_secs(5);

/// How long somebody who waits for room waits for reclaim by others before it looks again.
const OTHERS_WAIT: Duration = Duration::from_secs(1);

/// How often, and how long apart, the head of a tier with nothing below is asked for room again.
const READERS: usize = 10;
const READERS_PAUSE: Duration = Duration::from_millis(5);

/// How often a container is emptied again because something landed in it meanwhile. What is alive after that is not
/// in its listing.
const LATE_BATCHES: usize = 4;

/// Containers that one reclaim tries before it gives up.
const TRIES: usize = 4;

/// What came of reclaim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freed {
    /// There is more room.
    Room,
    /// Somebody else made room, which may be taken by now.
    ByOthers,
    /// Nothing.
    Nothing,
}

/// What became of the empty containers of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    /// One at least is gone.
    Some,
    /// One at least goes when the batches under way have ended.
    Soon,
    /// There was none, or none could be deleted.
    None,
}

fn share(bytes: u64, (part, whole): (u64, u64)) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(part) / u128::from(whole)).unwrap_or(u64::MAX)
}

/// What a tier of so many bytes may occupy before it reclaims.
pub(super) fn high_mark(limit: u64) -> u64 {
    share(limit, HIGH)
}

/// Milliseconds since a container was made, and one.
fn age(entry: &Entry, now: u64) -> f64 {
    now.saturating_sub(entry.created_ms) as f64 + 1.0
}

/// The part of a container's bytes that is alive.
fn live_share(entry: &Entry) -> f64 {
    (entry.live_bytes() as f64 / entry.container.occupied().max(1) as f64).min(1.0)
}

impl Engine {
    fn is_top(&self, tier: Tier) -> bool {
        self.top().is_some_and(|top| top.tier() == tier)
    }

    /// Whether a tier is over its high mark, or over its limit of items.
    pub(super) fn is_over(&self, tier: &Arc<dyn DiskTier>) -> bool {
        if self.items_over(tier).is_some() {
            return true;
        }
        let u = tier.usage();
        u.limit.is_some_and(|limit| u.occupied > high_mark(limit))
    }

    /// Items of a tier and the limit of their number, if there are more.
    fn items_over(&self, tier: &Arc<dyn DiskTier>) -> Option<(u64, u64)> {
        if tier.tier() != Tier::Ssd {
            return None;
        }
        let items: u64 = self.catalog.containers.of_tier(Tier::Ssd).iter().map(|e| e.live()).sum();
        (items > self.settings.ssd_items).then_some((items, self.settings.ssd_items))
    }

    /// One reclaim of a tier that is over its high mark; says whether it freed anything.
    pub(super) fn reclaim_step(&self, tier: Tier) -> Result<bool> {
        let Some(tier) = self.tier(tier) else { return Ok(false) };
        match self.drop_empty(tier, false) {
            Dropped::Some => return Ok(true),
            // Their space is as good as free, and what is kept of further ones would take the reserve meanwhile.
            Dropped::Soon => return Ok(false),
            Dropped::None if !self.is_over(tier) => return Ok(false),
            Dropped::None => {}
        }
        Ok(self.reclaim_one(tier, false, false)? == Freed::Room)
    }

    #[expect(clippy::indexing_slicing, reason = "a tier's number is at most 3")]
    pub(super) fn claims(&self, tier: Tier) -> &Claims {
        &self.claims[(tier as usize) & 3]
    }

    fn of_tier(&self, tier: &Arc<dyn DiskTier>) -> Vec<Arc<Entry>> {
        self.catalog.containers.of_tier(tier.tier())
    }

    /// Waits until somebody else's reclaim of a tier comes to an end.
    fn wait_for_others(&self, claims: &Claims) -> Freed {
        // They go on without the brake meanwhile.
        self.urgent.fetch_add(1, Ordering::Relaxed);
        let done = claims.wait(OTHERS_WAIT);
        self.urgent.fetch_sub(1, Ordering::Relaxed);
        if done { Freed::ByOthers } else { Freed::Nothing }
    }

    /// Makes room in a tier whose limit is reached, on behalf of somebody who waits. `hard`: nothing goes back to the
    /// head, so that each container dropped is room gained.
    pub(super) fn make_room(&self, tier: Tier, needed: u64, hard: bool) -> Freed {
        let Some(tier) = self.tier(tier) else { return Freed::Nothing };
        if needed > tier.max_record().saturating_mul(4).max(64 << 20) && tier.usage().limit.is_some() {
            return Freed::Nothing;
        }
        if self.drop_empty(tier, true) == Dropped::Some {
            return Freed::Room;
        }
        self.reclaim_one(tier, true, hard).unwrap_or_else(|e| {
            let name = tier.tier();
            self.log.warn("reclaim", || format!("the {name} tier cannot make room: {e}"));
            Freed::Nothing
        })
    }

    /// Drops every empty container of a tier. One that cannot be deleted stays, and does not keep the others' space.
    fn drop_empty(&self, tier: &Arc<dyn DiskTier>, urgent: bool) -> Dropped {
        let (mut some, mut soon) = (false, false);
        for claim in self.claims(tier.tier()).empty(|| self.of_tier(tier)) {
            match self.drop_container(tier, &claim.entry, urgent) {
                Ok(true) => some = true,
                Ok(false) => soon |= claim.entry.live() == 0,
                Err(e) => {
                    let name = tier.tier();
                    self.log.warn("drop", || {
                        format!("an empty container of the {name} tier is not deleted: {e}")
                    });
                }
            }
        }
        match (some, soon) {
            (true, _) => Dropped::Some,
            (false, true) => Dropped::Soon,
            (false, false) => Dropped::None,
        }
    }

    /// Drops a container that the caller has claimed, if it may be: see the module's text. Urgent: waits for batches
    /// under way.
    pub(super) fn drop_container(
        &self,
        tier: &Arc<dyn DiskTier>,
        entry: &Arc<Entry>,
        urgent: bool,
    ) -> Result<bool> {
        let deadline = std::time::Instant::now() + DROP_WAIT;
        while !self.catalog.may_drop(entry) {
            if !urgent || entry.live() > 0 || std::time::Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.catalog.sync()?;
        match tier.drop_container(entry) {
            // Not the tier's: its directory is away, and it is deleted when that comes back.
            Ok(()) | Err(StorageError::Gone(_)) => {}
            Err(e) => return Err(e.into()),
        }
        self.catalog.forget(entry);
        self.first_dead.lock().remove(&entry.id);
        self.placement.forget(entry.id);
        Counters::bump(&self.counters.containers_dropped);
        Ok(true)
    }

    /// Reclaims the best candidate of a tier. One that cannot be emptied or deleted is left alone for a while, and the
    /// next is tried.
    fn reclaim_one(&self, tier: &Arc<dyn DiskTier>, urgent: bool, hard: bool) -> Result<Freed> {
        let claims = self.claims(tier.tier());
        claims.tick();
        if hard {
            // What was left alone, because there was no room to rewrite it, can still be given up.
            claims.forgive();
        }
        let mut failed = None;
        for _ in 0..TRIES {
            let mut choice = self.candidate(tier);
            if matches!(choice, Choice::Nothing) {
                // Everything is in the container that is being appended to.
                tier.seal().ok();
                if self.drop_empty(tier, urgent) == Dropped::Some {
                    return Ok(Freed::Room);
                }
                choice = self.candidate(tier);
            }
            let claim = match choice {
                Choice::Claimed(mut one) => one.pop(),
                // What others are emptying makes room as well.
                Choice::Others if urgent => return Ok(self.wait_for_others(claims)),
                Choice::Others => return Ok(Freed::Nothing),
                Choice::Nothing => None,
            };
            let Some(claim) = claim else { break };
            let entry = &claim.entry;
            match self.reclaim_entry(tier, entry, urgent, hard) {
                Ok(true) => return Ok(Freed::Room),
                // Empty, and dropped as soon as the batches under way have ended.
                Ok(false) if entry.live() == 0 => return Ok(Freed::Nothing),
                Ok(false) => {}
                Err(e) => failed = failed.or(Some(e)),
            }
            if entry.live() > 0 {
                claims.leave_alone(entry);
            }
            if self.is_stopping() && !urgent {
                break;
            }
        }
        failed.map_or(Ok(Freed::Nothing), Err)
    }

    /// Empties a container and drops it; says whether it is gone. A batch that was on its way into the container when
    /// it was sealed may land in it after it was listed: then it is emptied again.
    fn reclaim_entry(
        &self,
        tier: &Arc<dyn DiskTier>,
        entry: &Arc<Entry>,
        urgent: bool,
        hard: bool,
    ) -> Result<bool> {
        for _ in 0..LATE_BATCHES {
            self.empty_out(tier, entry, urgent, hard)?;
            if entry.live() == 0 {
                let gone = self.drop_container(tier, entry, urgent)?;
                if gone || entry.live() == 0 {
                    return Ok(gone);
                }
            }
            if self.is_stopping() && !urgent {
                break;
            }
        }
        // A background move that was stopped half-way leaves the rest where it is.
        if entry.live() > 0 && (urgent || !self.is_stopping()) {
            let unlisted = self.unlisted(entry);
            self.send_down(tier.tier(), &unlisted, urgent)?;
        }
        self.drop_container(tier, entry, urgent)
    }

    /// Claims the best candidate of a tier.
    fn candidate(&self, tier: &Arc<dyn DiskTier>) -> Choice<'_> {
        let all = self.of_tier(tier);
        if self.is_top(tier.tier()) && self.below(tier.tier()).is_some() {
            self.survey();
            let scores = self.scores_by_worth(&all);
            self.seal_what_idles(tier, &all, &scores);
            self.best(tier, |e| scores.get(&e.id).copied().unwrap_or(0.0))
        } else {
            let now = self.now();
            self.best(tier, |e| {
                let live = live_share(e);
                // What just sank here must not sink further because others of its container died.
                let age = now.saturating_sub(e.newest_ms()) as f64 + 1.0;
                (1.0 - live + 0.01) * age / (1.0 + live)
            })
        }
    }

    fn best(&self, tier: &Arc<dyn DiskTier>, score: impl Fn(&Entry) -> f64) -> Choice<'_> {
        let first = |all: Vec<Arc<Entry>>| {
            all.into_iter()
                .max_by(|a, b| score(a).total_cmp(&score(b)).then(b.id.cmp(&a.id)))
                .into_iter()
                .collect()
        };
        let alone = self.below(tier.tier()).is_none();
        self.claims(tier.tier()).choose(alone, || self.of_tier(tier), first)
    }

    /// Of the highest tier, by id: the room that it would give for what would be lost or copied. New containers are
    /// spared, because nobody can have asked for what is in them yet; but age counts by its root only, so that what is
    /// worth keeping can stay for long.
    fn scores_by_worth(&self, all: &[Arc<Entry>]) -> HashMap<u64, f64> {
        let now = self.now();
        let worth = self.worth(all);
        let score = |e: &Arc<Entry>| {
            let bytes = worth.get(&e.id).map_or(0.0, |bytes| *bytes as f64);
            let worth = (bytes / e.container.occupied().max(1) as f64).min(live_share(e));
            (1.0 - worth + 0.01) / (0.1 + worth) * age(e, now).sqrt()
        };
        all.iter().map(|e| (e.id, score(e))).collect()
    }

    /// Seals the containers that are being written to if one of them, older than most, would be the best to reclaim:
    /// where nothing new is put any more, what was put last would stay for ever.
    fn seal_what_idles(&self, tier: &Arc<dyn DiskTier>, all: &[Arc<Entry>], scores: &HashMap<u64, f64>) {
        let now = self.now();
        let mean = all.iter().map(|e| age(e, now)).sum::<f64>() / all.len().max(1) as f64;
        let score = |e: &Arc<Entry>| scores.get(&e.id).copied().unwrap_or(0.0);
        let (sealed, open): (Vec<&Arc<Entry>>, Vec<_>) =
            all.iter().partition(|e| e.sealed.load(Ordering::Acquire));
        let best = sealed.into_iter().map(score).fold(0.0, f64::max);
        let idles =
            |e: &&Arc<Entry>| e.records.load(Ordering::Relaxed) > 0 && age(e, now) > mean && score(e) > best;
        if open.into_iter().any(|e| idles(&e)) {
            tier.seal().ok();
        }
    }

    /// Moves everything that is alive out of a container.
    fn empty_out(
        &self,
        tier: &Arc<dyn DiskTier>,
        entry: &Arc<Entry>,
        urgent: bool,
        hard: bool,
    ) -> Result<()> {
        let listed = self.catalog.live_in(entry, entry.container.list()?);
        let mut movers: Vec<Mover> =
            listed.into_iter().map(|listed| Mover { entry: entry.clone(), listed }).collect();
        let below = self.below(tier.tier()).cloned();
        let keep = match below {
            Some(_) if self.is_top(tier.tier()) => KEEP_TOP,
            Some(_) => KEEP,
            None => KEEP_LAST,
        };
        // Of a tier that holds too many items, each container keeps its part of what may stay at most: it would be
        // copied for ever, were all of it kept.
        let most = self.items_over(tier).map_or(usize::MAX, |(items, limit)| {
            let kept = u128::from(limit) * movers.len() as u128 / u128::from(items.max(1));
            usize::try_from(kept).unwrap_or(usize::MAX)
        });
        let cap = share(entry.container.occupied(), keep);
        let top = below.is_some() && self.is_top(tier.tier());
        let cap = if top { cap.min(self.placement.credit()) } else { cap };
        let kept = if hard { Vec::new() } else { self.split_hot(tier.tier(), &mut movers, cap, most) };
        if !kept.is_empty() {
            match self.keep(&kept, tier, urgent) {
                Ok(moved) if top => self.placement.spend(moved.bytes),
                Ok(_) => {}
                // No room at the head: what was to be kept goes down like the rest.
                Err(e) if e.is_no_space() => movers.extend(kept),
                Err(e) => return Err(e.into()),
            }
        }
        // In order of place: what was written together stays together.
        movers.sort_by_key(|m| m.listed.position);
        self.send_down(tier.tier(), &movers, urgent)
    }

    /// Copies what is to be kept to the head of its tier. Where nothing is below, what finds no room there is lost: so
    /// whoever still reads a segment that was dropped, and keeps its blocks by that, is waited for a moment.
    fn keep(&self, kept: &[Mover], tier: &Arc<dyn DiskTier>, urgent: bool) -> Result<Moved, StorageError> {
        let lone = tier.tier() == Tier::Ssd && self.below(Tier::Ssd).is_none();
        for _ in 0..if lone { READERS } else { 0 } {
            match self.relocate(kept, tier, Purpose::Reclaim, urgent) {
                Err(e) if e.is_no_space() => std::thread::sleep(READERS_PAUSE),
                done => return done,
            }
        }
        self.relocate(kept, tier, Purpose::Reclaim, urgent)
    }

    /// Takes out of `movers` what is worth keeping on its tier, hottest first, up to `cap` bytes and `most` items.
    fn split_hot(&self, tier: Tier, movers: &mut Vec<Mover>, cap: u64, most: usize) -> Vec<Mover> {
        let last = self.below(tier).is_none();
        let live: u64 = movers.iter().map(|m| u64::from(m.listed.bytes)).sum();
        if last && live <= cap && movers.len() <= most {
            return std::mem::take(movers); // nothing need be lost
        }
        self.survey();
        let bar = self.worth_a_copy(tier);
        let mut hot: Vec<(u32, Mover)> =
            movers.drain(..).map(|m| (self.heat.estimate(m.listed.ident), m)).collect();
        // The newer of two that are as hot was written later.
        hot.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.listed.version.cmp(&a.1.listed.version)));
        let mut kept = Vec::new();
        let mut bytes = 0;
        for (heat, m) in hot {
            let size = u64::from(m.listed.bytes);
            let wanted = last || heat >= bar && !self.memory_serves(m.listed.ident, heat);
            if wanted && bytes + size <= cap && kept.len() < most {
                bytes += size;
                kept.push(m);
            } else {
                movers.push(m);
            }
        }
        kept
    }

    /// Moves records to the first tier below that takes them; what none takes is evicted.
    fn send_down(&self, from: Tier, movers: &[Mover], urgent: bool) -> Result<()> {
        let mut reason = EvictReason::Full;
        let mut rest: Vec<Mover> = movers.to_vec();
        for tier in self.tiers.iter().filter(|t| t.tier() > from) {
            let most = tier.max_record();
            let (fit, large): (Vec<Mover>, Vec<Mover>) =
                rest.into_iter().partition(|m| u64::from(m.listed.bytes) <= most);
            rest = large;
            if fit.is_empty() {
                reason = EvictReason::TooLargeBelow;
                continue;
            }
            match self.relocate(&fit, tier, Purpose::Write, urgent) {
                // What cannot be reached stays, and so does the container.
                Ok(moved) => {
                    if let Some(e) = moved.unreachable {
                        self.log.warn("unreachable", || {
                            format!("records of the {from} tier cannot be read to be moved: {e}")
                        });
                    }
                }
                Err(e) => {
                    if matches!(e, StorageError::OutOfService { .. }) {
                        reason = EvictReason::BelowOutOfService;
                    }
                    let name = tier.tier();
                    self.log.warn("demote", || format!("the {name} tier does not take what sinks: {e}"));
                    // What did move is no longer live where it was.
                    rest.extend(fit.into_iter().filter(|m| self.catalog.is_live(&m.entry, &m.listed)));
                }
            }
        }
        if !rest.is_empty() {
            self.evict(&rest, reason);
        }
        Ok(())
    }

    /// What still points into a container that was emptied: its listing lacked it. Records that do not verify die;
    /// those that do are given, to be moved like the others; what cannot be reached stays, and so does the container.
    pub(super) fn unlisted(&self, entry: &Arc<Entry>) -> Vec<Mover> {
        let mut found = Vec::new();
        for (ident, place) in self.catalog.pointing_at(entry.no) {
            match entry.container.read(place.position()) {
                Ok(item) => {
                    let bytes = record::size(item.key.len(), item.payload.len());
                    let listed = Listed {
                        position: place.position(),
                        ident,
                        version: item.version,
                        expires_at: item.expires_at,
                        bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
                    };
                    found.push(Mover { entry: entry.clone(), listed });
                }
                Err(e) if e.is_corrupt() => self.condemn(ident, place, entry, &e.to_string(), None),
                Err(_) => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cache;
    use std::sync::Arc;
    use thermocline_storage::clock::SystemClock;
    use thermocline_storage::vfs::RealFs;

    type Done = std::result::Result<(), Box<dyn std::error::Error>>;

    /// A store without threads whose one tier is over its high mark, and of which each segment is half dead.
    fn half_dead(dir: &std::path::Path) -> std::result::Result<Cache, Box<dyn std::error::Error>> {
        let mut builder = Cache::builder().memory(1 << 20).ssd(dir, 16 << 20);
        builder.config_mut().storage.segment_size = Some(1 << 20);
        let cache = builder.world(Arc::new(RealFs), Arc::new(SystemClock), false).open()?;
        let engine = cache.engine();
        let tier = engine.tier(Tier::Ssd).ok_or("no tier")?;
        for n in 0u64.. {
            let noise = |i: u64| ((n * 10_000 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8;
            let noise: Vec<u8> = (0..10_000).map(noise).collect();
            // Each is put twice, in batches that lie apart.
            cache.put(format!("{}", if n % 2 == 0 { n } else { n.saturating_sub(41) }), noise)?;
            if n % 20 == 19 {
                cache.flush()?;
                if engine.is_over(tier) {
                    break;
                }
            }
        }
        Ok(cache)
    }

    fn empty(engine: &Engine) -> usize {
        let all = engine.catalog.containers.of_tier(Tier::Ssd);
        all.iter().filter(|e| e.live() == 0 && e.sealed.load(Ordering::Acquire)).count()
    }

    #[test]
    fn the_lowest_tier_is_reclaimed_by_one_at_a_time() -> Done {
        let dir = tempfile::tempdir()?;
        let cache = half_dead(dir.path())?;
        let engine = cache.engine();
        let tier = engine.tier(Tier::Ssd).ok_or("no tier")?;
        assert!(engine.is_over(tier) && empty(engine) == 0);
        let Choice::Claimed(mine) = engine.candidate(tier) else { return Err("nothing to claim".into()) };
        assert_eq!(engine.make_room(Tier::Ssd, 1, false), Freed::Nothing, "while another keeps what is hot");
        drop(mine);
        assert_eq!(engine.make_room(Tier::Ssd, 1, false), Freed::Room);
        Ok(())
    }

    #[test]
    fn what_is_empty_goes_before_anything_else_is_emptied() -> Done {
        let dir = tempfile::tempdir()?;
        let cache = half_dead(dir.path())?;
        let engine = cache.engine();
        let tier = engine.tier(Tier::Ssd).ok_or("no tier")?;
        let under_way = engine.catalog.batch(Tier::Ssd);
        for _ in 0..3 {
            assert!(!engine.reclaim_step(Tier::Ssd)?);
            assert!(engine.is_over(tier));
            assert_eq!(empty(engine), 1);
        }
        drop(under_way);
        assert!(engine.reclaim_step(Tier::Ssd)?);
        assert_eq!((empty(engine), cache.stats().counts.evicted), (0, 0));
        Ok(())
    }
}
