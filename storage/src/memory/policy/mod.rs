//! Who has to go: the order of a shard's entries under either policy.
//!
//! Invariants: each entry of the shard stands in the order once, and what is not in the shard does not; the victim is
//! still in the order when it is named, and is never the one that room is made for.

pub(super) mod clock;
mod list;
pub(super) mod lru;

use super::HeatSink;
use super::slab::Slab;
use crate::ident::Ident;
pub use clock::{Admission, Setting};

/// How the memory tier chooses what to evict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum MemoryPolicy {
    /// A window, a CLOCK, a ghost list and a frequency sketch: resists scans, keeps what is used often. The tier starts,
    /// and unless told otherwise stays, with the setting that was best on average over recorded traces
    /// ([`Setting::START`]).
    #[default]
    Adaptive,
    /// The least recently used entry goes first, over all shards; exact when one thread uses the tier.
    Lru,
}

impl MemoryPolicy {
    /// The lower-case name, as in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            MemoryPolicy::Adaptive => "adaptive",
            MemoryPolicy::Lru => "lru",
        }
    }
}

/// What an eviction needs to know.
pub(super) struct Pressure<'a> {
    pub(super) now_ms: u64,
    /// Never chosen: the identity that room is being made for.
    pub(super) protect: Option<Ident>,
    pub(super) heat: &'a dyn HeatSink,
}

/// The order of a shard's entries.
#[derive(Debug)]
pub(super) enum Order {
    Lru(lru::Recency),
    Clock(clock::Clock),
}

impl Order {
    pub(super) fn new(policy: MemoryPolicy) -> Order {
        match policy {
            MemoryPolicy::Lru => Order::Lru(lru::Recency::default()),
            MemoryPolicy::Adaptive => Order::Clock(clock::Clock::new(Setting::START)),
        }
    }

    /// A new entry stands in `slot`. `room`: nothing had to be evicted for it.
    pub(super) fn admit(&mut self, slab: &mut Slab, slot: u32, hash: u64, room: bool) {
        match self {
            Order::Lru(recency) => recency.push(slab, slot),
            Order::Clock(clock) => clock.admit(slab, slot, hash, room),
        }
    }

    /// Takes the entry in `slot`, which is still there, out of the order.
    pub(super) fn forget(&mut self, slab: &mut Slab, slot: u32) {
        match self {
            Order::Lru(recency) => recency.remove(slab, slot),
            Order::Clock(clock) => clock.unlink(slab, slot),
        }
    }

    /// The entry in `slot` was replaced by one that weighs this much more or less.
    pub(super) fn reweighed(&mut self, slab: &Slab, slot: u32, old: u64, new: u64) {
        if let Order::Clock(clock) = self {
            clock.reweighed(slab, slot, old, new);
        }
    }

    /// The entry now in `to` stood in another slot.
    pub(super) fn moved(&mut self, slab: &mut Slab, to: u32) {
        match self {
            Order::Lru(recency) => recency.moved(slab, to),
            Order::Clock(clock) => clock.moved(slab, to),
        }
    }

    /// The slot that should go next; it is still in the order.
    pub(super) fn victim(&mut self, slab: &mut Slab, pressure: &Pressure<'_>) -> Option<u32> {
        match self {
            Order::Lru(recency) => {
                recency.victim(slab, pressure.protect, pressure.heat).map(|(_, slot)| slot)
            }
            Order::Clock(clock) => clock.victim(slab, pressure),
        }
    }

    /// Bytes allocated.
    pub(super) fn allocated(&self) -> usize {
        match self {
            Order::Lru(recency) => recency.allocated(),
            Order::Clock(clock) => clock.allocated(),
        }
    }
}
