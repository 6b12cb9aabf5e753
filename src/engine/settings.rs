//! What the engine and its tiers take from the configuration.
//!
//! Nothing is decided here, and nothing is written: a setting becomes the field that goes by it.

use super::Settings;
use super::dials::FIRST_AHEAD;
use crate::config::{self, Config};
use std::time::Duration;
use thermocline_storage::Codec;
use thermocline_storage::codec::{Algorithm, Compression};
use thermocline_storage::hdd::{HddConfig, IndexKind};
use thermocline_storage::ssd::SsdConfig;

/// Two turns of the optimizer are never asked to be further apart than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What the SSD tier is opened with.
pub(super) fn ssd_config(config: &Config) -> SsdConfig {
    SsdConfig {
        segment_size: config.segment_size(),
        read_mode: config.storage.read_mode,
        borrow: config.storage.borrow_large_values,
        smallest_read: usize::try_from(config.resources.io.buffer_size).unwrap_or(8 << 10),
    }
}

/// What the HDD tier is opened with. A simulated store keeps its indexes in RAM: sled opens files of its own.
pub(super) fn hdd_config(config: &Config, simulated: bool) -> HddConfig {
    HddConfig {
        index: if simulated { IndexKind::Ram } else { IndexKind::Sled },
        generation_size: config.generation_size(),
        block_size: usize::try_from(config.storage.block_size).unwrap_or(64 << 10),
        sled_cache: config.storage.sled_cache,
        read_ahead: first_ahead(config),
        ..HddConfig::for_limit(Some(config.hdd.max_size))
    }
}

/// What the engine needs of the configuration while it runs.
pub(super) fn settings(config: &Config) -> Settings {
    let s = &config.storage;
    let strategies =
        [&config.strategies.conservative, &config.strategies.balanced, &config.strategies.aggressive];
    let level = strategies.iter().map(|s| s.compression_level).fold(config.compression.zlib.level, u64::max);
    Settings {
        persistence: s.persistence,
        write_buffer: config.resources.io.write_buffer_size,
        write_stall: Duration::from_secs(s.write_stall_limit),
        max_value: config.max_value_size(),
        default_ttl_ms: s.default_ttl.map(|s| s.saturating_mul(1000)),
        batch_items: usize::try_from(config.resources.cpu.batch_size).unwrap_or(1000),
        move_bytes: move_bytes(config),
        migration_rate: s.migration_bytes_per_second,
        nice: i32::try_from(config.resources.cpu.priority_nice).unwrap_or(10),
        read_ahead: config.resources.io.read_ahead_size,
        concurrency: config.resources.io.max_concurrent_ops,
        tunes_every: config.optimizer.enabled.then(|| Duration::from_secs(config.optimizer.interval)),
        least_turn: (Duration::from_secs(config.optimizer.interval) / 10).min(LONGEST_PAUSE),
        sled_cache: config.storage.sled_cache,
        pack_size: config.pack_size(),
        read_size: config.resources.io.buffer_size,
        prefetch: config.strategies.balanced.prefetch_multiplier,
        most_prefetch: strategies.iter().map(|s| s.prefetch_multiplier).fold(0.0, f64::max),
        most_level: u32::try_from(level).unwrap_or(9),
        erase_after_ms: s.erase_after.saturating_mul(86_400_000),
        reap_interval: Duration::from_secs(s.reap_interval),
        checkpoint_bytes: s.checkpoint_journal_size,
        checkpoint_interval: Duration::from_secs(s.checkpoint_interval),
        compress: [false, config.ssd.compression, config.hdd.compression, config.cold.compression],
        compression: compression(config),
        container_size: [0, config.segment_size(), config.generation_size(), config.pack_size()],
        ssd_items: config.ssd.item_limit,
    }
}

/// How values are compressed.
pub(super) fn compression(config: &Config) -> Compression {
    let c = &config.compression;
    let algorithm = |a: &config::AlgorithmConfig| Algorithm {
        level: u32::try_from(a.level).unwrap_or(1),
        min_size: a.min_size,
        threshold: a.threshold,
    };
    let codec = |a: config::Algorithm| match a {
        config::Algorithm::Zlib => Codec::Zlib,
        config::Algorithm::Lz4 => Codec::Lz4,
        _ => Codec::None,
    };
    Compression {
        zlib: algorithm(&c.zlib),
        lz4: algorithm(&c.lz4),
        text: codec(c.text),
        json: codec(c.json),
        binary: codec(c.binary),
        media: codec(c.media),
        levels: [None; 4],
    }
}

/// Bytes that are read ahead until the disks are measured.
pub(super) fn first_ahead(config: &Config) -> u64 {
    config.resources.io.read_ahead_size.min(FIRST_AHEAD)
}

/// Bytes that a move reads at a time. Small where memory is short, which is where the write buffer is small.
pub(super) fn move_bytes(config: &Config) -> u64 {
    (config.resources.io.write_buffer_size / 8).clamp(256 << 10, 4 << 20)
}
