//! Rewriting of packs: what is dead in them is physically gone, and many small ones become one.
//!
//! Invariants: packs are rewritten under a claim, one rewriting at a time, since nothing is below to take what finds
//! no room; a pack of which something could not be moved keeps it, and is left alone for a while. What the packs hold
//! goes by the move protocol, and they are dropped as reclaim drops: a crash leaves what those two tables (§10 of the
//! design) say, in between both copies, of which the catalog names one.

use super::Engine;
use super::claim::Choice;
use super::moves::Mover;
use super::reclaim::{Dropped, Freed};
use crate::error::Result;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use thermocline_storage::Tier;
use thermocline_storage::container::{DiskTier, Entry, Purpose};
use thermocline_storage::vfs::Background;

/// So many small packs are merged into one.
const MERGE: usize = 8;
/// At most so many at a time.
const MERGE_MOST: usize = 4 * MERGE;
/// How long who needs a container's number waits for one of a container that was dropped, which somebody may read.
const NUMBER_WAIT: Duration = Duration::from_secs(1);
/// How long it goes on to list containers to find small ones, once it has two: to list a generation may take as long
/// as to read it.
const LIST_TIME: Duration = Duration::from_millis(500);

impl Engine {
    /// Rewrites packs: those with little alive, those whose dead have been there for `erase_after`, and small ones,
    /// several into one. Says whether any is gone for it. While reclaim is `busy`, packs are merged only once there are
    /// a good many: it needs the processor more.
    pub(super) fn rewrite_step(&self, busy: bool) -> Result<bool> {
        let Some(tier) = self.tier(Tier::Cold) else { return Ok(false) };
        let claims = self.claims(Tier::Cold);
        claims.tick();
        // Alone: nothing is below the archive.
        let choice = claims.choose(
            true,
            || self.catalog.containers.of_tier(Tier::Cold),
            |packs| self.packs_to_rewrite(packs, busy),
        );
        let Choice::Claimed(claimed) = choice else { return Ok(false) };
        let chosen: Vec<Arc<Entry>> = claimed.iter().map(|c| c.entry.clone()).collect();
        let done = self.rewrite(tier, &chosen, false);
        for entry in chosen.iter().filter(|e| e.live() > 0) {
            claims.leave_alone(entry);
        }
        done
    }

    fn packs_to_rewrite(&self, mut packs: Vec<Arc<Entry>>, busy: bool) -> Vec<Arc<Entry>> {
        if let Some(stale) = packs.iter().find(|e| self.is_stale(e)) {
            return vec![stale.clone()];
        }
        packs.retain(|e| e.container.occupied() < self.full_size(Tier::Cold) / 4);
        packs.sort_by_cached_key(|e| e.container.occupied());
        packs.truncate(MERGE_MOST);
        if packs.len() < if busy { MERGE_MOST } else { MERGE } {
            packs.clear();
        }
        packs
    }

    /// Bytes of a container of a tier that is full.
    #[expect(clippy::indexing_slicing, reason = "a tier's number is at most 3")]
    pub(super) fn full_size(&self, tier: Tier) -> u64 {
        match tier {
            // Packs get smaller and larger while it runs; what is small is so beside those of now.
            Tier::Cold => self.dials.pack_size(),
            _ => self.settings.container_size[(tier as usize) & 3],
        }
    }

    /// Room for one container more, where all their numbers are in use, for somebody who waits: small ones of one
    /// tier become one, for which nothing is lost; where no tier has such, the one that needs the number makes room as if
    /// it were full. `more_than`: so many numbers were not enough, since what is written takes several containers.
    pub(super) fn make_number(&self, tier: Tier, more_than: usize) -> Freed {
        if self.has_number(more_than, Instant::now()) {
            return Freed::Room;
        }
        let merged = self.merge(more_than).unwrap_or_else(|e| {
            self.log.warn("merge", || format!("small containers are not merged: {e}"));
            Freed::Nothing
        });
        let freed = if merged == Freed::Nothing { self.make_room(tier, 0, true) } else { merged };
        if freed == Freed::Room {
            self.has_number(0, Instant::now() + NUMBER_WAIT);
        }
        freed
    }

    /// Whether more than so many containers may be begun. The number of one that was dropped is free once that is durable
    /// and nobody reads it any more, for which is waited at most that long.
    fn has_number(&self, more_than: usize, until: Instant) -> bool {
        // Whether or not the journal can be written: if not, no number is free, and the next write says why.
        let _ = self.catalog.sync();
        loop {
            if self.catalog.containers.has_more_numbers(more_than) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Drops what is empty in any tier, or else merges small containers of one tier, that with the most containers first.
    /// Others are waited for only where no tier has such, and never in a circle: see `claim`.
    fn merge(&self, more_than: usize) -> Result<Freed> {
        let _background = Background::begin();
        // What were moved while the catalog cannot be written would free nothing.
        self.catalog.settle()?;
        let mut tiers: Vec<_> = self.tiers.iter().collect();
        // Counted, and let go of at once: the number of one that is dropped is not free while somebody holds it.
        tiers.sort_by_cached_key(|t| Reverse(self.catalog.containers.of_tier(t.tier()).len()));
        let mut soon = false;
        for tier in &tiers {
            match self.drop_empty(tier, None, u64::MAX) {
                // It may be no more than what the last try left behind.
                Dropped::Some if more_than == 0 || self.has_number(more_than, Instant::now()) => {
                    return Ok(Freed::Room);
                }
                Dropped::Soon => soon = true,
                Dropped::Some | Dropped::None => {}
            }
        }
        let (mut others, mut failed) = (None, None);
        for tier in tiers {
            match self.merge_on(tier) {
                Ok(Freed::Nothing) => {}
                Ok(Freed::Later) => others = others.or(Some(tier)),
                Ok(freed) => return Ok(freed),
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        match others {
            Some(tier) => Ok(self.wait_for_others(self.claims(tier.tier()))),
            None if soon => Ok(Freed::Later),
            None => failed.map_or(Ok(Freed::Nothing), Err),
        }
    }

    /// Merges small containers of a tier. `Later`: others hold them, and may be waited for.
    fn merge_on(&self, tier: &Arc<dyn DiskTier>) -> Result<Freed> {
        let claims = self.claims(tier.tier());
        let full = self.full_size(tier.tier());
        let choice = claims.choose(
            self.below(tier.tier()).is_none(),
            || self.catalog.containers.of_tier(tier.tier()),
            |all| with_little(all, full),
        );
        let mut claimed = match choice {
            Choice::Claimed(claimed) => claimed,
            Choice::Others if self.may_wait_for(tier.tier()) => return Ok(Freed::Later),
            Choice::Others | Choice::Nothing => return Ok(Freed::Nothing),
        };
        let mut small = Vec::new();
        let (until, at_last) = (Instant::now() + LIST_TIME, self.drop_wait());
        for claim in &claimed {
            // Two make room, if little; with fewer, something that is full would be given up for want of time.
            if (small.len() >= 2 && Instant::now() >= until) || Instant::now() >= at_last {
                break;
            }
            // One that cannot be read for now is no reason to leave the others.
            let Ok(listed) = claim.entry.container.list() else { continue };
            let listed = self.catalog.live_in(&claim.entry, listed);
            let bytes: u64 = listed.iter().map(|l| u64::from(l.bytes)).sum();
            if bytes < full / 4 {
                small.push((bytes, claim.entry.clone()));
            }
        }
        small.sort_by_key(|(bytes, _)| *bytes);
        small.truncate(MERGE_MOST);
        // Somebody waits: no more than one container is filled. Four are small enough for that, if there are as many.
        let mut sum = 0;
        let chosen: Vec<Arc<Entry>> = small
            .into_iter()
            .take_while(|(bytes, _)| {
                sum += bytes;
                sum <= full
            })
            .map(|(_, entry)| entry)
            .collect();
        if chosen.len() < 2 {
            return Ok(Freed::Nothing);
        }
        // Others need not wait for what stays as it is.
        claimed.retain(|claim| chosen.iter().any(|e| e.id == claim.entry.id));
        let gone = self.rewrite(tier, &chosen, true);
        for entry in chosen.iter().filter(|e| e.live() > 0) {
            claims.leave_alone(entry);
        }
        Ok(if gone? { Freed::Room } else { Freed::Nothing })
    }

    /// Whether this thread may wait for who holds containers of a tier: not while it holds some there or below, for
    /// which they may be waiting in turn.
    fn may_wait_for(&self, tier: Tier) -> bool {
        !self.tiers.iter().any(|t| t.tier() >= tier && self.claims(t.tier()).has_mine())
    }

    fn rewrite(&self, tier: &Arc<dyn DiskTier>, chosen: &[Arc<Entry>], urgent: bool) -> Result<bool> {
        let mut movers = Vec::new();
        for entry in chosen {
            let listed = self.catalog.live_in(entry, entry.container.list()?);
            movers.extend(listed.into_iter().map(|listed| Mover { entry: entry.clone(), listed }));
        }
        self.relocate(&movers, tier, Purpose::Reclaim, urgent)?;
        let mut gone = false;
        let until = urgent.then(|| self.drop_wait());
        for entry in chosen {
            if self.is_stopping() && !urgent {
                break;
            }
            if entry.live() > 0 {
                self.relocate(&self.unlisted(entry), tier, Purpose::Reclaim, urgent)?;
            }
            if entry.live() == 0 {
                gone |= self.drop_container(tier, entry, until)?;
            }
        }
        Ok(gone)
    }

    /// Whether a pack is mostly dead, or holds what has been dead for `erase_after`.
    fn is_stale(&self, entry: &Arc<Entry>) -> bool {
        let records = entry.records.load(Ordering::Relaxed);
        let live = entry.live();
        if live >= records {
            return false;
        }
        let now = self.now();
        // Not known since when after a restart: the pack's age is the most it can be.
        let since = *self
            .first_dead
            .lock()
            .entry(entry.id)
            .or_insert(if self.opened_ms >= entry.created_ms { entry.created_ms } else { now });
        live * 2 < records || now.saturating_sub(since) >= self.settings.erase_after_ms
    }
}

/// Those in which the least seems to be alive: by the room that they take, and by the number of items, for a container
/// takes room from the beginning that may never be filled. Not so one of a single large item, which is as large as that.
fn with_little(mut all: Vec<Arc<Entry>>, full: u64) -> Vec<Arc<Entry>> {
    let large = |e: &Entry| {
        let occupied = e.container.occupied();
        e.records.load(Ordering::Relaxed) == 1 && occupied > full / 2 && occupied != full
    };
    // Asked once of each: others change it meanwhile, and a sort that finds no order may panic.
    all.sort_by_cached_key(|e| (large(e), e.live()));
    let mut chosen: Vec<Arc<Entry>> = all.iter().take(MERGE_MOST).cloned().collect();
    all.sort_by_cached_key(|e| e.live_bytes());
    let few: HashSet<u64> = chosen.iter().map(|e| e.id).collect();
    chosen.extend(all.into_iter().take(MERGE_MOST).filter(|e| !few.contains(&e.id)));
    chosen
}

#[cfg(test)]
mod tests;
