//! Expiry in the background: what nobody asks for gives its space back all the same.
//!
//! Each container knows a time before which nothing in it expires. When that time has come, its listing is read, what
//! has expired dies, and the next such time is noted; a container whose items expire one by one is looked at no more
//! often than the reap interval. Who counts what is alive (`clear`) has it all looked at before, as far as that does not
//! take too long. Those that were looked at longest ago come first, so that none that cannot be read keeps the others
//! waiting for ever; those of a directory that is away are not looked at.
//!
//! Invariants: an item's own expiry decides, or the one that was changed since its record was written; a read never
//! needs the reaper, for it compares by itself. A put or a change of expiry lowers its container's time, also while
//! its listing is read, so that nothing is forgotten.
//!
//! Each item that goes is a dead frame: a crash leaves it dead, or expired and to be found again, by a clock that the
//! journal keeps from going back.

use super::Engine;
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use thermocline_storage::Place;
use thermocline_storage::catalog::Located;
use thermocline_storage::container::Entry;
use thermocline_storage::vfs::Background;

/// Entries of the memory tier that one step looks at.
const MEMORY_BUDGET: usize = 4_096;
/// A caller begins no further listing after so many milliseconds: each may take as long as to read a whole generation.
const ALL_MS: u64 = 2_000;

impl Engine {
    /// One step: some of memory, and the container that has waited longest. Says whether there was one.
    pub(super) fn reap_step(&self) -> Result<bool> {
        let now = self.now();
        let mut out = Vec::new();
        self.memory.expire(now, MEMORY_BUDGET, &mut out);
        self.let_go(out);
        let due = self
            .catalog
            .containers
            .all()
            .into_iter()
            .filter(|e| due(e, now) && e.reap_after.load(Ordering::Relaxed) <= now)
            .min_by_key(|e| {
                (e.reap_after.load(Ordering::Relaxed), e.earliest_expiry.load(Ordering::Relaxed))
            });
        match due {
            Some(entry) => self.reap(&entry, now).map(|()| true),
            None => Ok(false),
        }
    }

    /// Lets everything die that has expired by now, as far as that can be read, and what can be listed within
    /// [`ALL_MS`] goes.
    pub(super) fn reap_all(&self) {
        let now = self.now();
        let until = now.saturating_add(ALL_MS);
        for entry in self.catalog.containers.all().into_iter().filter(|e| due(e, now)) {
            if self.now() >= until {
                return;
            }
            if let Err(e) = self.reap(&entry, now) {
                self.log.warn("reap", || format!("reap: {e}"));
            }
        }
    }

    fn reap(&self, entry: &Arc<Entry>, now: u64) -> Result<()> {
        let _background = Background::begin();
        let pause = u64::try_from(self.settings.reap_interval.as_millis()).unwrap_or(u64::MAX);
        entry.reap_after.store(now.saturating_add(pause), Ordering::Relaxed);
        let noted = entry.expiries_noted.load(Ordering::SeqCst);
        let before = entry.earliest_expiry.load(Ordering::SeqCst);
        let listed = entry.container.list()?;
        let mut next = u64::MAX;
        for l in self.catalog.live_in(entry, listed) {
            let Some(place) = Place::new(entry.no, l.position) else { continue };
            let changed = self.catalog.changed_expiry(l.ident, place);
            let expires_at = changed.unwrap_or(l.expires_at);
            if expires_at == 0 {
                continue;
            }
            if expires_at <= now {
                let key = entry.container.head(l.position).ok().map(|h| h.key);
                self.expire_at(l.ident, &Located { place, entry: entry.clone(), expires_at: changed }, key);
            } else {
                next = next.min(expires_at);
            }
        }
        entry.reaped((before, noted), next);
        Ok(())
    }
}

/// Whether something of the container may have expired. What is in a directory that is away occupies nothing here, and
/// cannot be read.
fn due(entry: &Entry, now: u64) -> bool {
    entry.earliest_expiry.load(Ordering::Relaxed) <= now && entry.container.occupied() > 0
}

#[cfg(test)]
mod tests;
