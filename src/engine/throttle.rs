//! The brakes on background moves: one for all of them, and one for what leaves each tier.
//!
//! Invariants:
//! - over any time the moves take no more than the rate allows, and what a second of it saved up;
//! - bytes are taken in pieces of an eighth of a second, however many are asked for at once: whoever comes next waits for
//!   one piece, and not for a pack;
//! - a rate that is lowered leaves no debt of the higher one: what is owed is a second's worth at most.
//!
//! Nothing of it is on disk.

use super::Engine;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use thermocline_storage::Tier;

/// Pieces that a second's worth is taken in.
const PIECES: u64 = 8;

/// A bucket of bytes for all, and one for what leaves each tier; each fills up at its rate.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    all: Bucket,
    tiers: [Bucket; 4],
}

#[derive(Debug)]
struct Bucket {
    bytes: f64,
    since: Instant,
}

impl Default for Bucket {
    fn default() -> Self {
        Bucket { bytes: 0.0, since: Instant::now() }
    }
}

impl Bucket {
    /// Fills up for the time that has passed, to a second's worth at most; gives how long it is until something may be
    /// taken.
    fn fill(&mut self, rate: u64, now: Instant) -> Duration {
        let rate = rate.max(1) as f64;
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.bytes = (self.bytes.max(-rate) + rate * passed).min(rate);
        self.since = now;
        Duration::from_secs_f64((-self.bytes / rate).max(0.0))
    }
}

impl Throttle {
    /// Takes a piece of so many bytes, if there is anything in both buckets, and gives how many it took; else how long it
    /// is until there is.
    fn take(
        &mut self,
        own: Option<(Tier, u64)>,
        rate_of_all: u64,
        bytes: u64,
        now: Instant,
    ) -> Result<u64, Duration> {
        let mut wait = self.all.fill(rate_of_all, now);
        let mut rate = rate_of_all;
        let mut of_tier = None;
        if let Some((tier, own_rate)) = own
            && let Some(bucket) = self.tiers.get_mut(tier as usize)
        {
            wait = wait.max(bucket.fill(own_rate, now));
            rate = rate.min(own_rate);
            of_tier = Some(bucket);
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        let piece = bytes.min((rate / PIECES).max(1));
        self.all.bytes -= piece as f64;
        if let Some(bucket) = of_tier {
            bucket.bytes -= piece as f64;
        }
        Ok(piece)
    }
}

impl Engine {
    /// Whether callers may soon wait for room in a tier: what it held back then is no matter.
    fn nearly_full(&self, tier: Tier) -> bool {
        let usage = self.tier(tier).map(|t| t.usage()).unwrap_or_default();
        usage.limit.is_some_and(|limit| usage.occupied > limit / 10 * 9)
    }

    /// Waits until the rates allow so many bytes more out of a tier. Urgent moves, for which callers wait, are not held
    /// up; nor is any while somebody waits for the one under way to end.
    pub(super) fn pace(&self, from: Option<Tier>, bytes: u64, urgent: bool) {
        let mut left = bytes;
        while !urgent && left > 0 {
            // The rates may change while this waits.
            let own = from
                .filter(|tier| !self.nearly_full(*tier))
                .map(|tier| (tier, self.dials.reclaim_rate(tier)));
            let taken = self.throttle.lock().take(own, self.dials.migration_rate(), left, Instant::now());
            if self.is_stopping() || self.urgent.load(Ordering::Relaxed) > 0 {
                return;
            }
            match taken {
                Ok(piece) => left = left.saturating_sub(piece),
                Err(wait) => {
                    std::thread::sleep(wait.clamp(Duration::from_millis(1), Duration::from_millis(50)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
