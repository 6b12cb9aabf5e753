//! The clock, injected so that a simulation can drive it.
//!
//! Invariants: [`EngineClock`] never goes back, across restarts included, as far as the journal knows the time; so
//! what had expired stays expired, whatever the wall clock does. It runs on boot time: a wall clock that jumps moves
//! nothing.

use rustix::time::ClockId;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where time comes from.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Milliseconds since the epoch by the wall clock; may jump.
    fn wall_ms(&self) -> u64;
    /// Milliseconds since boot, suspend included; never goes back.
    fn boot_ms(&self) -> u64;
    /// Milliseconds since boot that the machine was not suspended for; never goes back. What measures how long work took
    /// asks this one: while the machine sleeps, nothing works.
    fn awake_ms(&self) -> u64;
}

/// The machine's clocks.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall_ms(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
    }

    fn boot_ms(&self) -> u64 {
        shown(ClockId::Boottime)
    }

    fn awake_ms(&self) -> u64 {
        shown(ClockId::Monotonic)
    }
}

fn shown(clock: ClockId) -> u64 {
    let t = rustix::time::clock_gettime(clock);
    u64::try_from(t.tv_sec).unwrap_or(0) * 1000 + u64::try_from(t.tv_nsec).unwrap_or(0) / 1_000_000
}

/// A clock that stands still until it is told to move.
#[derive(Debug)]
pub struct ManualClock {
    ms: AtomicU64,
    /// How much of it the machine slept.
    slept: AtomicU64,
}

impl ManualClock {
    /// A clock that shows this many milliseconds since the epoch.
    pub fn new(ms: u64) -> ManualClock {
        ManualClock { ms: AtomicU64::new(ms), slept: AtomicU64::new(0) }
    }

    /// Moves on by this many milliseconds.
    pub fn advance(&self, ms: u64) {
        self.ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Moves on by this many milliseconds, for which the machine is suspended.
    pub fn sleep(&self, ms: u64) {
        self.slept.fetch_add(ms, Ordering::Relaxed);
        self.advance(ms);
    }
}

impl Clock for ManualClock {
    fn wall_ms(&self) -> u64 {
        self.ms.load(Ordering::Relaxed)
    }

    fn boot_ms(&self) -> u64 {
        self.wall_ms()
    }

    fn awake_ms(&self) -> u64 {
        self.wall_ms().saturating_sub(self.slept.load(Ordering::Relaxed))
    }
}

/// The year 37,648, in milliseconds since the epoch.
const NEVER: u64 = 1 << 50;

/// The engine's clock: it never goes back, across restarts included. It starts at the later of the wall clock and
/// the newest time in the journal, and runs on boot time from there.
#[derive(Debug)]
pub struct EngineClock {
    source: std::sync::Arc<dyn Clock>,
    base: AtomicU64,
    boot: u64,
}

impl EngineClock {
    /// A clock that has read nothing from a journal yet.
    pub fn new(source: std::sync::Arc<dyn Clock>) -> EngineClock {
        let (base, boot) = (AtomicU64::new(source.wall_ms()), source.boot_ms());
        EngineClock { source, base, boot }
    }

    /// Sees to it that the clock shows at least this from now on: the newest time of the journal. A time that no
    /// journal reaches does not count, because the clock could not go back from it.
    pub fn at_least(&self, ms: u64) {
        if ms < NEVER {
            self.base.fetch_max(ms, Ordering::Relaxed);
        }
    }

    /// Milliseconds since the epoch.
    pub fn now(&self) -> u64 {
        let passed = self.source.boot_ms().saturating_sub(self.boot);
        self.base.load(Ordering::Relaxed).saturating_add(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_journal_reaches_does_not_move_the_clock() {
        let clock = EngineClock::new(std::sync::Arc::new(ManualClock::new(1000)));
        for impossible in [u64::MAX, u64::MAX - 1, NEVER] {
            clock.at_least(impossible);
            assert_eq!(clock.now(), 1000);
        }
        clock.at_least(2000);
        assert_eq!(clock.now(), 2000);
    }

    #[test]
    fn what_expires_expires_while_the_machine_sleeps_and_work_takes_no_longer_for_it() {
        let source = std::sync::Arc::new(ManualClock::new(1000));
        let clock = EngineClock::new(source.clone());
        source.advance(10);
        source.sleep(500);
        assert_eq!((clock.now(), source.boot_ms(), source.awake_ms()), (1510, 1510, 1010));
    }

    /// Both run at the same rate, and that which does not count sleep is never ahead.
    #[test]
    fn the_machine_has_been_awake_for_no_longer_than_since_it_booted() {
        let awake = SystemClock.awake_ms();
        assert!(awake > 0 && awake <= SystemClock.boot_ms());
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(SystemClock.awake_ms() >= awake + 20);
    }
}
