//! The way up: an item asked for again on a lower tier moves to the highest disk tier.
//!
//! Invariants:
//! - an access only queues a place, in a queue of bounded length: a read neither waits for a promotion nor is slowed
//!   by one, and what the full queue forgets is asked for again;
//! - what is copied is paid for from the credit (see `placement`), and only once it was copied;
//! - a place that is out of date by the time its turn comes is dropped: the catalog is asked again.
//!
//! It writes by the move protocol alone: a crash leaves what the table in `moves` (§10 of the design) says.

use super::Engine;
use super::moves::Mover;
use crate::error::Result;
use thermocline_storage::catalog::Located;
use thermocline_storage::container::{Listed, Purpose};
use thermocline_storage::{Ident, Version};

/// Promotions waiting at most.
const PROMOTIONS: usize = 8_192;

impl Engine {
    /// After a hit below the highest disk tier: queues the item if its heat says that it will be asked for again.
    /// A full queue forgets it; it will be asked for again.
    pub(super) fn consider_promotion(&self, ident: Ident, at: &Located, bytes: u64) {
        let Some(top) = self.top() else { return };
        if at.entry.tier == top.tier() {
            return;
        }
        self.earn_by_read(bytes);
        if self.heat.estimate(ident) < self.worth_a_copy(top.tier()) {
            return;
        }
        // Threads that ask at once may each put one more in.
        if self.promotions.len() < PROMOTIONS {
            self.promotions.push((ident, at.place));
            self.signals[1].wake_soon();
        }
    }

    /// Promotes what is queued, one batch; says whether there was anything.
    pub(super) fn promote_step(&self) -> Result<bool> {
        let Some(top) = self.top().cloned() else { return Ok(false) };
        self.survey();
        let bar = self.worth_a_copy(top.tier());
        let mut left = self.placement.credit();
        let mut movers: Vec<Mover> = Vec::new();
        while movers.len() < self.settings.batch_items.max(1) {
            let Some((ident, place)) = self.promotions.pop() else { break };
            if self.heat.estimate(ident) < bar {
                continue;
            }
            let at = self.catalog.lock(ident).durable(ident);
            if let Some(at) = at.filter(|at| at.place == place && at.entry.tier > top.tier())
                && !movers.iter().any(|m| m.listed.ident == ident)
                && let Ok(head) = at.entry.container.head(place.position())
            {
                let bytes = thermocline_storage::record::size(head.key.len(), head.stored_len as usize);
                if bytes > top.max_record() || bytes > left {
                    continue;
                }
                left -= bytes;
                let listed = Listed {
                    position: place.position(),
                    ident,
                    version: Version(0),
                    expires_at: 0,
                    bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
                };
                movers.push(Mover { entry: at.entry, listed });
            }
        }
        if movers.is_empty() {
            return Ok(false);
        }
        match self.relocate(&movers, &top, Purpose::Hot, false) {
            Ok(moved) => {
                self.placement.spend(moved.bytes);
                Ok(true)
            }
            // Reclaim makes room; what is hot is asked for again.
            Err(e) if e.is_no_space() => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
