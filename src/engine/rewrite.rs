//! Rewriting of packs: what is dead in them is physically gone, and many small ones become one.
//!
//! Invariants: packs are rewritten under a claim, one rewriting at a time, since nothing is below to take what finds
//! no room; a pack of which something could not be moved keeps it, and is left alone for a while. What the packs hold
//! goes by the move protocol, and they are dropped as reclaim drops: a crash leaves what those two tables (§10 of the
//! design) say, in between both copies, of which the catalog names one.

use super::Engine;
use super::claim::Choice;
use super::moves::Mover;
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use thermocline_storage::Tier;
use thermocline_storage::container::{DiskTier, Entry, Purpose};

/// So many small packs are merged into one.
const MERGE: usize = 8;
/// At most so many at a time.
const MERGE_MOST: usize = 4 * MERGE;

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
        let done = self.rewrite(tier, &chosen);
        for entry in chosen.iter().filter(|e| e.live() > 0) {
            claims.leave_alone(entry);
        }
        done
    }

    fn packs_to_rewrite(&self, mut packs: Vec<Arc<Entry>>, busy: bool) -> Vec<Arc<Entry>> {
        if let Some(stale) = packs.iter().find(|e| self.is_stale(e)) {
            return vec![stale.clone()];
        }
        packs.retain(|e| e.container.occupied() < self.settings.pack_size / 4);
        packs.sort_by_key(|e| e.container.occupied());
        packs.truncate(MERGE_MOST);
        if packs.len() < if busy { MERGE_MOST } else { MERGE } {
            packs.clear();
        }
        packs
    }

    fn rewrite(&self, tier: &Arc<dyn DiskTier>, chosen: &[Arc<Entry>]) -> Result<bool> {
        let mut movers = Vec::new();
        for entry in chosen {
            let listed = self.catalog.live_in(entry, entry.container.list()?);
            movers.extend(listed.into_iter().map(|listed| Mover { entry: entry.clone(), listed }));
        }
        self.relocate(&movers, tier, Purpose::Reclaim, false)?;
        let mut gone = false;
        for entry in chosen {
            if self.is_stopping() {
                break;
            }
            if entry.live() > 0 {
                self.relocate(&self.unlisted(entry), tier, Purpose::Reclaim, false)?;
            }
            if entry.live() == 0 {
                gone |= self.drop_container(tier, entry, false)?;
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
