//! What the optimizer must keep to: limits of the configuration, and the table of strategies.

use crate::config::{Algorithm, AllocationStrategy, Config, StrategyConfig};
use std::fmt;
use std::time::Duration;

/// How hard the engine works to use less of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[non_exhaustive]
pub enum Strategy {
    /// The machine has room.
    Conservative,
    /// The start.
    #[default]
    Balanced,
    /// The machine is under pressure.
    Aggressive,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Strategy::Conservative => "conservative",
            Strategy::Balanced => "balanced",
            Strategy::Aggressive => "aggressive",
        })
    }
}

/// What a strategy allows at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StrategyPolicy {
    /// Share of the memory limit.
    pub memory_threshold: f64,
    /// zlib's level.
    pub compression_level: u64,
    /// What 64 KiB of prefetching are multiplied by.
    pub prefetch_multiplier: f64,
    /// Idle time after which a clean entry may leave memory early.
    pub eviction_age: Duration,
}

/// The configuration, as far as the optimizer goes by it. [`Default`] has the documented defaults.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Policy {
    /// Percent of the memory limit that this process may use.
    pub memory_max_percent: f64,
    /// When it is over: percent of the limit that it goes below.
    pub memory_buffer_percent: f64,
    /// Percent over which memory is given back to the system too.
    pub gc_threshold: f64,
    /// Whether the memory tier grows and shrinks.
    pub dynamic: bool,
    /// Bytes below which the memory tier does not shrink.
    pub memory_floor: u64,
    /// Bytes of the memory tier at most.
    pub memory_max: u64,
    /// Percent of the processors over which background work slows.
    pub cpu_max_percent: f64,
    /// Percent over which lz4 is preferred to zlib.
    pub compression_threshold: f64,
    /// Disk operations in flight at most.
    pub max_concurrent_ops: u64,
    /// Bytes of the smallest read at least.
    pub buffer_size: u64,
    /// Bytes that wait to be written at most.
    pub write_buffer_size: u64,
    /// Bytes that are read ahead at most.
    pub read_ahead_size: u64,
    /// Bytes a second of background work at most.
    pub background_rate: u64,
    /// Bytes of the caches of sled at most.
    pub sled_cache: u64,
    /// Bytes of a pack at most.
    pub pack_size: u64,
    /// What text, JSON, binary and media are compressed with.
    pub algorithms: [Algorithm; 4],
    /// zlib's level where nothing else is decided.
    pub zlib_level: u64,
    /// Stored / original over which zlib's result is not kept.
    pub zlib_threshold: f64,
    /// The same of lz4.
    pub lz4_threshold: f64,
    /// Conservative, balanced, aggressive.
    pub strategies: [StrategyPolicy; 3],
}

impl Default for Policy {
    fn default() -> Policy {
        let row = |memory_threshold, compression_level, prefetch_multiplier, seconds| StrategyPolicy {
            memory_threshold,
            compression_level,
            prefetch_multiplier,
            eviction_age: Duration::from_secs(seconds),
        };
        Policy {
            memory_max_percent: 80.0,
            memory_buffer_percent: 10.0,
            gc_threshold: 85.0,
            dynamic: true,
            memory_floor: 64 << 20,
            memory_max: 512 << 20,
            cpu_max_percent: 70.0,
            compression_threshold: 60.0,
            max_concurrent_ops: 100,
            buffer_size: 8 << 10,
            write_buffer_size: 64 << 20,
            read_ahead_size: 4 << 20,
            background_rate: 64 << 20,
            sled_cache: 32 << 20,
            pack_size: 256 << 20,
            algorithms: [Algorithm::Zlib, Algorithm::Zlib, Algorithm::Lz4, Algorithm::Lz4],
            zlib_level: 6,
            zlib_threshold: 0.8,
            lz4_threshold: 0.6,
            strategies: [row(0.7, 3, 1.0, 1200), row(0.8, 6, 1.5, 600), row(0.9, 9, 2.0, 300)],
        }
    }
}

impl Policy {
    /// What a configuration says.
    pub fn of(config: &Config) -> Policy {
        let (r, c) = (&config.resources, &config.compression);
        let row = |s: &StrategyConfig| StrategyPolicy {
            memory_threshold: s.memory_threshold,
            compression_level: s.compression_level,
            prefetch_multiplier: s.prefetch_multiplier,
            eviction_age: Duration::from_secs(s.eviction_age),
        };
        Policy {
            memory_max_percent: r.memory.max_usage_percent as f64,
            memory_buffer_percent: r.memory.buffer_percent as f64,
            gc_threshold: r.memory.gc_threshold as f64,
            dynamic: r.memory.allocation_strategy == AllocationStrategy::Dynamic,
            memory_floor: config.memory_floor(),
            memory_max: config.memory.max_size,
            cpu_max_percent: r.cpu.max_usage_percent as f64,
            compression_threshold: r.cpu.compression_threshold as f64,
            max_concurrent_ops: r.io.max_concurrent_ops,
            buffer_size: r.io.buffer_size,
            write_buffer_size: r.io.write_buffer_size,
            read_ahead_size: r.io.read_ahead_size,
            background_rate: config.storage.migration_bytes_per_second,
            sled_cache: config.storage.sled_cache,
            pack_size: config.pack_size(),
            algorithms: [c.text, c.json, c.binary, c.media],
            zlib_level: c.zlib.level,
            zlib_threshold: c.zlib.threshold,
            lz4_threshold: c.lz4.threshold,
            strategies: [
                &config.strategies.conservative,
                &config.strategies.balanced,
                &config.strategies.aggressive,
            ]
            .map(row),
        }
    }

    /// A strategy's row.
    pub fn strategy(&self, strategy: Strategy) -> &StrategyPolicy {
        let [conservative, balanced, aggressive] = &self.strategies;
        match strategy {
            Strategy::Conservative => conservative,
            Strategy::Balanced => balanced,
            Strategy::Aggressive => aggressive,
        }
    }

    /// What holds under a strategy.
    pub fn ceilings(&self, strategy: Strategy) -> Ceilings {
        let row = self.strategy(strategy);
        Ceilings {
            memory_percent: (row.memory_threshold * 100.0).min(self.memory_max_percent),
            compression_level: row.compression_level.clamp(1, 9),
            prefetch: row.prefetch_multiplier.max(0.0),
            eviction_age: row.eviction_age,
        }
    }

    /// Share of a value that an algorithm must at least save to be kept.
    pub(super) fn hoped_saving(&self, algorithm: Algorithm) -> f64 {
        match algorithm {
            Algorithm::Zlib => 1.0 - self.zlib_threshold,
            Algorithm::Lz4 => 1.0 - self.lz4_threshold,
            _ => 0.0,
        }
    }
}

/// What the strategy in force allows, with the limits that hold under any.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Percent of the memory limit: the strategy's threshold, or `max_usage_percent` if that is less.
    pub memory_percent: f64,
    /// zlib's level.
    pub compression_level: u64,
    /// Prefetch multiplier.
    pub prefetch: f64,
    /// Idle time after which a clean entry may leave memory early.
    pub eviction_age: Duration,
}
