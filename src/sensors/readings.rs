//! What a sample says.

use std::path::PathBuf;
use std::time::Duration;

/// One sample. Whatever could not be read is `None`.
///
/// ```
/// use thermocline::sensors::{Sensors, SystemSensors};
///
/// let mut sensors = SystemSensors::new([std::env::temp_dir()]);
/// let first = sensors.sample();
/// assert!(first.elapsed.is_none(), "rates need two samples");
/// assert!(first.process.anonymous.is_some_and(|bytes| bytes > 0));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Readings {
    /// The monotonic clock: does not run while the machine sleeps. Rates are by it.
    pub monotonic: Duration,
    /// The boot-time clock: runs while the machine sleeps.
    pub boot: Duration,
    /// Time since the previous sample by the monotonic clock; `None` for the first, and if it did not go on.
    pub elapsed: Option<Duration>,
    /// This process.
    pub process: ProcessReading,
    /// Memory of the machine and the limit in force.
    pub memory: MemoryReading,
    /// Processors.
    pub cpu: CpuReading,
    /// Share of the time in which work stood still for want of something.
    pub pressure: PressureReading,
    /// The block devices behind the directories of the tiers, in the order of the directories.
    pub devices: Vec<DeviceReading>,
    /// Network interfaces but the loopback.
    pub network: Vec<InterfaceReading>,
}

/// This process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct ProcessReading {
    /// Bytes of anonymous memory that is resident. Mapped files do not count: their pages are the page cache's.
    pub anonymous: Option<u64>,
    /// Bytes of memory that the process's allocator has given out, mapped blocks among them; `None` where it cannot be asked.
    pub allocated: Option<u64>,
    /// Bytes of all memory that is resident.
    pub resident: Option<u64>,
    /// Percent of the processors that it may use, all of them together being 100.
    pub cpu_percent: Option<f64>,
}

/// Memory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct MemoryReading {
    /// Bytes that the machine has.
    pub total: Option<u64>,
    /// Bytes that can be had without swapping: of the machine's, or within the tightest limit if that is less.
    pub available: Option<u64>,
    /// The limit in force: the least of the machine's memory and of what the cgroups above this process allow.
    pub limit: Option<u64>,
    /// Bytes that the cgroup with the tightest limit uses, page cache included.
    pub cgroup_used: Option<u64>,
}

/// Processors.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct CpuReading {
    /// Percent of the processors that this process may use, in use by anybody: the machine's, or those of a cpuset.
    pub machine_percent: Option<f64>,
    /// Percent of the cgroup's quota in use, if it has one.
    pub quota_percent: Option<f64>,
}

impl CpuReading {
    /// Percent of whichever is scarcer, the processors or the quota.
    pub fn percent(&self) -> Option<f64> {
        match (self.machine_percent, self.quota_percent) {
            (Some(machine), Some(quota)) => Some(machine.max(quota)),
            (machine, quota) => machine.or(quota),
        }
    }
}

/// Pressure-stall information of the last ten seconds, as shares from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Stall {
    /// Some task waited.
    pub some: Option<f64>,
    /// All tasks waited.
    pub full: Option<f64>,
}

/// Pressure-stall information: the cgroup's where it has its own, or the machine's.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct PressureReading {
    /// For a processor.
    pub cpu: Stall,
    /// For input and output.
    pub io: Stall,
    /// For memory.
    pub memory: Stall,
}

/// A block device behind a directory.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct DeviceReading {
    /// The directory.
    pub directory: PathBuf,
    /// Major and minor number; `None` if the directory cannot be looked at.
    pub device: Option<(u32, u32)>,
    /// Reads a second.
    pub reads: Option<f64>,
    /// Bytes read a second.
    pub read_bytes: Option<f64>,
    /// Mean time of a read, in seconds, waiting in the queue included.
    pub read_latency: Option<f64>,
    /// Writes a second.
    pub writes: Option<f64>,
    /// Bytes written a second.
    pub write_bytes: Option<f64>,
    /// Mean time of a write, in seconds.
    pub write_latency: Option<f64>,
    /// Requests in flight at the moment.
    pub in_flight: Option<u64>,
    /// Share of the time, 0 to 1, with any request in flight. A disk that serves many at once is not full at 1.
    pub busy: Option<f64>,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct InterfaceReading {
    /// Its name.
    pub name: String,
    /// Bytes received a second.
    pub received: Option<f64>,
    /// Bytes sent a second.
    pub sent: Option<f64>,
    /// Bytes a second that the link carries each way; virtual ones do not say.
    pub speed: Option<f64>,
}

impl Readings {
    /// Percent in use of the busiest link that says how fast it is, in its busier direction.
    pub fn network_percent(&self) -> Option<f64> {
        let used = |i: &InterfaceReading| Some(i.received?.max(i.sent?) / i.speed? * 100.0);
        self.network.iter().filter_map(used).reduce(f64::max).map(|p| p.min(100.0))
    }

    /// I/O pressure from 0 to 1: the share of time in which some task waited for a disk; without pressure
    /// information, the share in which the busiest device behind a tier was busy.
    pub fn io_pressure(&self) -> Option<f64> {
        self.pressure.io.some.or_else(|| self.devices.iter().filter_map(|d| d.busy).reduce(f64::max))
    }
}
