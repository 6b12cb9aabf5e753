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
use super::moves::Mover;
use crate::error::{Error, Result};
use crate::events::EvictReason;
use crate::stats::Counters;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use thermocline_storage::container::{DiskTier, Entry, Listed, Purpose};
use thermocline_storage::vfs::Background;
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
/// How long an urgent reclaim waits for batches under way before it gives up dropping containers, at most.
const DROP_WAIT: Duration = Duration::from_secs(5);

/// How long empty containers are dropped one after the other before somebody who waits is given what there is.
const DROP_TIME: Duration = Duration::from_millis(500);

/// How long somebody who waits for room waits for reclaim by others before it looks again.
const OTHERS_WAIT: Duration = Duration::from_secs(1);

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
    /// Nothing yet: others are at it, and take their time.
    Later,
    /// Nothing.
    Nothing,
}

/// Where all containers that are empty are room.
const ALL: u64 = u64::MAX;

/// How a reclaim goes about it.
#[derive(Debug, Clone, Copy)]
struct Haste {
    /// Somebody waits for it.
    urgent: bool,
    /// Nothing goes back to the head.
    hard: bool,
    /// Until when batches under way are waited for, those of all containers together; `None`: not at all.
    until: Option<Instant>,
    /// Of which container on those that are empty are no room: see [`drop_empty`](Engine::drop_empty).
    from: u64,
}

/// What became of the empty containers of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
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
    /// Whether the tier is one that loses what finds no room at its head, because nothing is below, and whose readers
    /// keep the room of what was dropped.
    fn is_lone_ssd(&self, tier: &Arc<dyn DiskTier>) -> bool {
        tier.tier() == Tier::Ssd && self.below(Tier::Ssd).is_none()
    }

    fn is_top(&self, tier: Tier) -> bool {
        self.top().is_some_and(|top| top.tier() == tier)
    }

    /// Whether a tier is over its high mark, or over its limit of items. What no reclaim can free (containers that are
    /// not in the catalog, or that could not be emptied) takes from the limit: were it counted against the mark, all
    /// that can be reclaimed would be copied and evicted for it, without end and in vain.
    pub(super) fn is_over(&self, tier: &Arc<dyn DiskTier>) -> bool {
        if self.items_over(tier).is_some() {
            return true;
        }
        let u = tier.usage();
        let Some(limit) = u.limit.filter(|limit| u.occupied > high_mark(*limit)) else { return false };
        let claims = self.claims(tier.tier());
        let all = self.of_tier(tier);
        let ours = all.iter().filter(|e| !claims.is_left_alone(e)).map(|e| e.container.occupied());
        let ours = ours.fold(0, u64::saturating_add);
        ours > high_mark(limit.saturating_sub(u.occupied.saturating_sub(ours)))
    }

    /// Items of a tier that reclaim can free, and the limit of their number, if there are more.
    pub(super) fn items_over(&self, tier: &Arc<dyn DiskTier>) -> Option<(u64, u64)> {
        if tier.tier() != Tier::Ssd {
            return None;
        }
        // What no reclaim can free now is no reason to free others for it: it takes room, but the number is no room.
        let claims = self.claims(tier.tier());
        let free = |e: &&Arc<Entry>| e.container.occupied() > 0 && !claims.is_left_alone(e);
        let items: u64 = self.of_tier(tier).iter().filter(free).map(|e| e.live()).sum();
        (items > self.settings.ssd_items).then_some((items, self.settings.ssd_items))
    }

    /// One reclaim of a tier that is over its high mark; says whether it freed anything.
    pub(super) fn reclaim_step(&self, tier: Tier) -> Result<bool> {
        let Some(tier) = self.tier(tier) else { return Ok(false) };
        self.claims(tier.tier()).tick();
        match self.drop_empty(tier, None, ALL) {
            Dropped::Some => return Ok(true),
            // Their space is as good as free, and what is kept of further ones would take the reserve meanwhile.
            Dropped::Soon => return Ok(false),
            Dropped::None if !self.is_over(tier) => {
                self.claims(tier.tier()).rest(self.written_to(tier.tier()));
                return Ok(false);
            }
            Dropped::None => {}
        }
        let hard = self.is_in_vain(tier);
        Ok(self.reclaim_one(tier, Haste { urgent: false, hard, until: None, from: ALL })? == Freed::Room)
    }

    /// Whether copying to the tier's head what is hot has made no room, so that nothing more is to be kept.
    fn is_in_vain(&self, tier: &Arc<dyn DiskTier>) -> bool {
        let limit = tier.usage().limit.unwrap_or(u64::MAX);
        self.claims(tier.tier()).is_in_vain(limit, self.written_to(tier.tier()))
    }

    /// Bytes of records ever written to a tier.
    fn written_to(&self, tier: Tier) -> u64 {
        self.counters.tier(tier).written.load(Ordering::Relaxed)
    }

    #[expect(clippy::indexing_slicing, reason = "a tier's number is at most 3")]
    pub(super) fn claims(&self, tier: Tier) -> &Claims {
        &self.claims[(tier as usize) & 3]
    }

    fn of_tier(&self, tier: &Arc<dyn DiskTier>) -> Vec<Arc<Entry>> {
        self.catalog.containers.of_tier(tier.tier())
    }

    /// Waits until somebody else's reclaim of a tier comes to an end.
    pub(super) fn wait_for_others(&self, claims: &Claims) -> Freed {
        // They go on without the brake meanwhile.
        self.urgent.fetch_add(1, Ordering::Relaxed);
        let done = claims.wait(OTHERS_WAIT);
        self.urgent.fetch_sub(1, Ordering::Relaxed);
        if done { Freed::ByOthers } else { Freed::Later }
    }

    /// Makes room in a tier whose limit is reached, on behalf of somebody who waits. `hard`: nothing goes back to the
    /// head, so that each container dropped is room gained.
    pub(super) fn make_room(&self, tier: Tier, needed: u64, hard: bool) -> Freed {
        self.make_room_beside(tier, needed, hard, ALL)
    }

    /// The same for who has tried to write before: what is empty of the containers from that one on may be what the try
    /// left, and the next leaves as much.
    pub(super) fn make_room_beside(&self, tier: Tier, needed: u64, hard: bool, from: u64) -> Freed {
        let Some(tier) = self.tier(tier) else { return Freed::Nothing };
        if needed > tier.max_record().saturating_mul(4).max(64 << 20) && tier.usage().limit.is_some() {
            return Freed::Nothing;
        }
        self.claims(tier.tier()).tick();
        let until = Some(self.drop_wait());
        match self.drop_empty(tier, until, from) {
            Dropped::Some => return Freed::Room,
            // What were emptied now would wait for the same batches, and might be lost for nothing.
            Dropped::Soon => return Freed::Later,
            Dropped::None => {}
        }
        self.reclaim_one(tier, Haste { urgent: true, hard, until, from }).unwrap_or_else(|e| {
            let name = tier.tier();
            self.log.warn("reclaim", || format!("the {name} tier cannot make room: {e}"));
            Freed::Nothing
        })
    }

    /// Until when somebody who waits for room waits for batches under way.
    pub(super) fn drop_wait(&self) -> Instant {
        Instant::now() + DROP_WAIT.min(self.settings.write_stall)
    }

    /// Drops empty containers of a tier: all, or as many as it can in [`DROP_TIME`], for after a `clear` there may be tens of
    /// thousands. One that cannot be deleted stays, and does not keep the others' space. Those with the number `from` and
    /// later ones are dropped too, but do not count: who writes many items at once, and finds no room for the last, leaves
    /// the others in a container that nothing points into, and would make room of that for ever.
    pub(super) fn drop_empty(&self, tier: &Arc<dyn DiskTier>, until: Option<Instant>, from: u64) -> Dropped {
        let (mut some, mut soon) = (false, false);
        let enough = Instant::now() + DROP_TIME;
        for claim in self.claims(tier.tier()).empty(|| self.of_tier(tier)) {
            if some && Instant::now() >= enough {
                break;
            }
            match self.drop_container(tier, &claim.entry, until) {
                Ok(true) => some |= claim.entry.id < from,
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

    /// Drops a container that the caller has claimed, if it may be: see the module's text. Until that time batches
    /// under way are waited for.
    pub(super) fn drop_container(
        &self,
        tier: &Arc<dyn DiskTier>,
        entry: &Arc<Entry>,
        until: Option<Instant>,
    ) -> Result<bool> {
        while !self.catalog.may_drop(entry) {
            if entry.live() > 0 || until.is_none_or(|until| Instant::now() > until) {
                return Ok(false);
            }
            // The batches that it waits for go on without the brake meanwhile.
            self.urgent.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
            self.urgent.fetch_sub(1, Ordering::Relaxed);
        }
        self.catalog.sync()?;
        match tier.drop_container(entry) {
            // Not the tier's: its directory is away, and it is deleted when that comes back.
            Ok(()) | Err(StorageError::Gone(_)) => {}
            Err(e) => return Err(e.into()),
        }
        self.catalog.forget(entry);
        if self.is_lone_ssd(tier) {
            self.claims(tier.tier()).dropped(entry);
        }
        self.first_dead.lock().remove(&entry.id);
        self.placement.forget(entry.id);
        Counters::bump(&self.counters.containers_dropped);
        Ok(true)
    }

    /// Reclaims the best candidate of a tier. One that cannot be emptied or deleted is left alone for a while, and the
    /// next is tried.
    fn reclaim_one(&self, tier: &Arc<dyn DiskTier>, haste: Haste) -> Result<Freed> {
        // Also where a writer that needs room does it: readers wait for neither.
        let _background = Background::begin();
        let claims = self.claims(tier.tier());
        let urgent = haste.urgent;
        if haste.hard && urgent {
            // What was left alone, because there was no room to rewrite it, can still be given up.
            claims.forgive();
        }
        let mut failed = None;
        for _ in 0..TRIES {
            // A catalog that cannot be written lets nothing be dropped: what were evicted would be so in vain.
            self.catalog.settle()?;
            let mut choice = self.candidate(tier);
            if matches!(choice, Choice::Nothing) {
                // Everything is in the container that is being appended to.
                tier.seal().ok();
                if self.drop_empty(tier, haste.until, haste.from) == Dropped::Some {
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
            // With the claim in hand nobody drops another meanwhile. The room of those before may be all that is wanted,
            // and what is kept of this one needs it.
            if self.is_lone_ssd(tier) && claims.wait_for_readers() && urgent {
                return Ok(Freed::ByOthers);
            }
            let entry = &claim.entry;
            let occupied = entry.container.occupied();
            match self.reclaim_entry(tier, entry, haste) {
                Ok(true) => {
                    claims.reclaimed(occupied);
                    return Ok(Freed::Room);
                }
                // Empty, and dropped as soon as the batches under way have ended.
                Ok(false) if entry.live() == 0 => {
                    return Ok(if urgent { Freed::Later } else { Freed::Nothing });
                }
                Ok(false) => {}
                // The tier below is full for now: it would say the same of the next.
                Err(Error::Busy { .. }) if urgent => return Ok(Freed::Later),
                Err(e @ Error::Busy { .. }) => {
                    claims.leave_alone(entry);
                    return Err(e);
                }
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
    fn reclaim_entry(&self, tier: &Arc<dyn DiskTier>, entry: &Arc<Entry>, haste: Haste) -> Result<bool> {
        let urgent = haste.urgent;
        for _ in 0..LATE_BATCHES {
            self.empty_out(tier, entry, urgent, haste.hard)?;
            if entry.live() == 0 {
                let gone = self.drop_container(tier, entry, haste.until)?;
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
        self.drop_container(tier, entry, haste.until)
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
            match self.relocate(&kept, tier, Purpose::Reclaim, urgent) {
                Ok(moved) => {
                    self.claims(tier.tier()).kept(moved.bytes);
                    if top {
                        self.placement.spend(moved.bytes);
                    }
                }
                // No room at the head: what was to be kept goes down like the rest.
                Err(e) if e.is_no_space() => movers.extend(kept),
                Err(e) => return Err(e.into()),
            }
        }
        // In order of place: what was written together stays together.
        movers.sort_by_key(|m| m.listed.position);
        self.send_down(tier.tier(), &movers, urgent)
    }

    /// Takes out of `movers` what is worth keeping on its tier, hottest first, up to `cap` bytes and `most` items.
    fn split_hot(&self, tier: Tier, movers: &mut Vec<Mover>, cap: u64, most: usize) -> Vec<Mover> {
        let last = self.below(tier).is_none();
        let live: u64 = movers.iter().map(|m| u64::from(m.listed.bytes)).sum();
        if last && live <= cap && movers.len() <= most {
            return std::mem::take(movers); // nothing need be lost
        }
        self.survey();
        // Where too many items are the reason, what is as hot as the bar may stay: it is as many as there may be.
        let bar = if most == usize::MAX { self.worth_a_copy(tier) } else { self.placement.bar(tier) };
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
        let (mut reason, mut refused) = (EvictReason::Full, false);
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
                // It will have room: until then everything stays where it is, and who waits for room goes on waiting.
                Err(e @ StorageError::Busy(_)) => return Err(e.into()),
                Err(e) => {
                    if matches!(e, StorageError::OutOfService { .. }) {
                        reason = EvictReason::BelowOutOfService;
                    }
                    let name = tier.tier();
                    self.log.warn("demote", || format!("the {name} tier does not take what sinks: {e}"));
                    refused = true;
                    // What did move is no longer live where it was.
                    rest.extend(fit.into_iter().filter(|m| self.catalog.is_live(&m.entry, &m.listed)));
                }
            }
        }
        if refused {
            // What cannot be reached stays here too: that the tiers below fail as well is no reason to give it up. Looked
            // at only now, for a tier that takes the rest has read it, and keeps what it could not.
            rest.retain(|m| self.fetch(m).is_ok());
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
mod tests;
