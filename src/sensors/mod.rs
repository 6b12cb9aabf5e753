//! Sensors: what the machine and the process are doing, for the optimizer to decide by.
//!
//! [`Sensors::sample`] gives [`Readings`], in which everything may be missing: a kernel without pressure information,
//! a container without `/sys`, a link without a speed. Missing is `None`; who decides leaves out the rule that needs
//! it.
//!
//! Invariants:
//! - nothing read from the system makes a sample panic, or gives a number that is not finite, negative, or beyond what
//!   it measures: what is absurd is `None`;
//! - rates come from differences of counters over the *monotonic* clock; a clock that stands still or goes back, and a
//!   counter that goes back, give `None`, as does the first sample;
//! - nothing is written, and no file is kept open between samples.

mod block;
mod cgroup;
mod machine;
mod network;
mod parse;
mod readings;
mod simulated;
mod system;
#[cfg(test)]
mod tests;

pub use readings::{
    CpuReading, DeviceReading, InterfaceReading, MemoryReading, PressureReading, ProcessReading, Readings,
    Stall,
};
pub use simulated::SimulatedSensors;
pub use system::{Roots, SystemSensors, Times};

use std::time::Duration;

/// Bytes a second of the fastest link that says how fast it is; a look at a few files.
#[cfg(feature = "redis")]
pub(crate) fn fastest_link(roots: &Roots) -> Option<f64> {
    network::Interfaces::default().read(&roots.sys, None).iter().filter_map(|i| i.speed).reduce(f64::max)
}

/// Bytes of anonymous memory of this process that is resident.
pub(crate) fn anonymous() -> Option<u64> {
    parse::status_bytes(&parse::text("/proc/self/status".as_ref())?, "RssAnon")
}

/// Where readings come from.
pub trait Sensors: Send {
    /// Takes a sample. Takes some milliseconds; what cannot be read is missing from it.
    fn sample(&mut self) -> Readings;

    /// Now, by the clock of [`Readings::monotonic`], without a look at anything else: so it is known that a turn would come
    /// too soon before a sample is taken, whose differences the next one would lack. `None` if only a sample tells.
    fn now(&mut self) -> Option<Duration> {
        None
    }
}
