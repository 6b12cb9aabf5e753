//! What of the machine the engine may use, and how hard the optimizer works to stay there.

use super::{GIB, KIB, MIB};

/// What of the machine may be used: `[resource_management]`.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ResourcesConfig {
    /// Memory.
    pub memory: MemoryUseConfig,
    /// Processors.
    pub cpu: CpuUseConfig,
    /// Disks.
    pub io: IoUseConfig,
    /// Network.
    pub network: NetworkUseConfig,
}

/// Whether the memory tier changes its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum AllocationStrategy {
    /// The optimizer grows and shrinks it between its floor and its `max_size`.
    #[default]
    Dynamic,
    /// It is `max_size`.
    Static,
}

/// Memory of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryUseConfig {
    /// Percent of the machine's memory, or the cgroup's, that this process may use: 1 to 100, by default 80.
    pub max_usage_percent: u64,
    /// When it is over: percent that are freed below that, 0 to 99, by default 10.
    pub buffer_percent: u64,
    /// Percent over which memory is given back to the system too: 1 to 100, by default 85.
    pub gc_threshold: u64,
    /// Whether the memory tier changes its size.
    pub allocation_strategy: AllocationStrategy,
}

impl Default for MemoryUseConfig {
    fn default() -> MemoryUseConfig {
        MemoryUseConfig {
            max_usage_percent: 80,
            buffer_percent: 10,
            gc_threshold: 85,
            allocation_strategy: AllocationStrategy::default(),
        }
    }
}

/// Processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuUseConfig {
    /// Percent of the processors over which background work slows: 1 to 100, by default 70.
    pub max_usage_percent: u64,
    /// Percent over which lz4 is preferred to zlib: 1 to 100, by default 60.
    pub compression_threshold: u64,
    /// Items of one step of migration: 1 to 100,000, by default 1,000.
    pub batch_size: u64,
    /// Nice value of background threads: 0 to 19, by default 10.
    pub priority_nice: u64,
}

impl Default for CpuUseConfig {
    fn default() -> CpuUseConfig {
        CpuUseConfig { max_usage_percent: 70, compression_threshold: 60, batch_size: 1000, priority_nice: 10 }
    }
}

/// Disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoUseConfig {
    /// Reads of each tier's directory under way at most: 1 to 10,000, by default 100. Writes, syncs and maps do not count;
    /// background reads leave one place to callers.
    pub max_concurrent_ops: u64,
    /// Bytes of the smallest read: 512 to 1 MiB, by default 8 KiB.
    pub buffer_size: u64,
    /// Bytes that wait to be written at most: 1 MiB to 16 GiB, by default 64 MiB. Half of it starts a write.
    pub write_buffer_size: u64,
    /// Bytes that are read ahead at most: 4 KiB to 64 MiB, by default 4 MiB.
    pub read_ahead_size: u64,
}

impl Default for IoUseConfig {
    fn default() -> IoUseConfig {
        IoUseConfig {
            max_concurrent_ops: 100,
            buffer_size: 8 * KIB,
            write_buffer_size: 64 * MIB,
            read_ahead_size: 4 * MIB,
        }
    }
}

/// Network, of which metrics are the only user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkUseConfig {
    /// Percent of the link that may be used: 1 to 100, by default 50.
    pub max_bandwidth_percent: u64,
    /// Whether connections are kept alive.
    pub tcp_keepalive: bool,
    /// Whether small packets are sent at once.
    pub tcp_nodelay: bool,
}

impl Default for NetworkUseConfig {
    fn default() -> NetworkUseConfig {
        NetworkUseConfig { max_bandwidth_percent: 50, tcp_keepalive: true, tcp_nodelay: true }
    }
}

/// What a strategy allows at most.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct StrategyConfig {
    /// Share of memory: more than 0, at most 1.
    pub memory_threshold: f64,
    /// zlib's level: 1 to 9.
    pub compression_level: u64,
    /// What 64 KiB of prefetching are multiplied by: 0 to 16.
    pub prefetch_multiplier: f64,
    /// Seconds of idle time after which a clean entry may leave memory early: 1 to 86,400.
    pub eviction_age: u64,
}

/// The strategies: `[optimization_strategies]`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct StrategiesConfig {
    /// Under pressure: 0.9, 9, 2.0, 300.
    pub aggressive: StrategyConfig,
    /// The start: 0.8, 6, 1.5, 600.
    pub balanced: StrategyConfig,
    /// With room: 0.7, 3, 1.0, 1200.
    pub conservative: StrategyConfig,
}

impl Default for StrategiesConfig {
    fn default() -> StrategiesConfig {
        let row = |memory_threshold, compression_level, prefetch_multiplier, eviction_age| StrategyConfig {
            memory_threshold,
            compression_level,
            prefetch_multiplier,
            eviction_age,
        };
        StrategiesConfig {
            aggressive: row(0.9, 9, 2.0, 300),
            balanced: row(0.8, 6, 1.5, 600),
            conservative: row(0.7, 3, 1.0, 1200),
        }
    }
}

/// The optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OptimizerConfig {
    /// Whether it runs by itself.
    pub enabled: bool,
    /// Seconds between two decisions: 1 to 86,400, by default 60.
    pub interval: u64,
    /// Bytes below which the memory tier does not shrink: at least 1 MiB; `None`: see
    /// [`Config::memory_floor`](super::Config::memory_floor).
    pub memory_floor: Option<u64>,
}

impl Default for OptimizerConfig {
    fn default() -> OptimizerConfig {
        OptimizerConfig { enabled: true, interval: 60, memory_floor: None }
    }
}

impl super::Config {
    /// Bytes below which the memory tier does not shrink: the setting, or an eighth of its `max_size`, at least 1 MiB.
    pub fn memory_floor(&self) -> u64 {
        let most = self.memory.max_size;
        self.optimizer.memory_floor.unwrap_or((most / 8).max(MIB).min(most))
    }
}

/// Largest write buffer.
pub(super) const MOST_BUFFERED: u64 = 16 * GIB;
