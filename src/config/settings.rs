//! The table of all settings: name, place in [`Config`], limits, and what each does.
//!
//! Reading, writing, checking and suggesting go by this table alone.

use super::resources::MOST_BUFFERED;
use super::{
    Algorithm, AllocationStrategy, Config, DirConfig, GIB, KIB, LogLevel, LogRotation, MIB, MemoryPolicy,
    Persistence, ReadMode, RedisUrl,
};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// One setting.
pub(super) struct Setting {
    /// Tables and name, with dots.
    pub name: &'static str,
    /// What kind of value, and where it is kept.
    pub field: Field,
    /// What it does, in one line.
    pub does: &'static str,
}

/// Kinds of values.
pub(super) enum Field {
    /// Bytes.
    Size(fn(&mut Config) -> &mut u64, RangeInclusive<u64>),
    /// Bytes, or `"auto"`.
    AutoSize(fn(&mut Config) -> &mut Option<u64>, RangeInclusive<u64>),
    /// Bytes; absent means unlimited.
    OptionalSize(fn(&mut Config) -> &mut Option<u64>, RangeInclusive<u64>),
    /// A whole number of the unit.
    Count(fn(&mut Config) -> &mut u64, RangeInclusive<u64>, &'static str),
    /// The same; may be absent.
    OptionalCount(fn(&mut Config) -> &mut Option<u64>, RangeInclusive<u64>, &'static str),
    /// More than 0 and at most 1.
    Ratio(fn(&mut Config) -> &mut f64),
    /// A number that may have a fraction.
    Factor(fn(&mut Config) -> &mut f64, RangeInclusive<u64>),
    /// True or false.
    Flag(fn(&mut Config) -> &mut bool),
    /// One of some words.
    Choice { words: &'static [&'static str], get: fn(&Config) -> usize, set: fn(&mut Config, usize) },
    /// A path; may be absent.
    Path(fn(&mut Config) -> &mut Option<PathBuf>),
    /// The URL of a Redis server; may be absent.
    Url(fn(&mut Config) -> &mut Option<RedisUrl>),
    /// A word that names of keys in Redis are made of.
    Name(fn(&mut Config) -> &mut String),
    /// The same; may be absent.
    OptionalName(fn(&mut Config) -> &mut Option<String>),
    /// One directory: short for a list of one.
    Dir(fn(&mut Config) -> &mut Vec<DirConfig>),
    /// A list of directories.
    Dirs(fn(&mut Config) -> &mut Vec<DirConfig>),
    /// There is only one right value, in TOML, and this is why.
    Fixed(&'static str, &'static str),
}

const fn setting(name: &'static str, field: Field, does: &'static str) -> Setting {
    Setting { name, field, does }
}

/// No disk is larger: keeps sums far from overflowing.
const MOST: u64 = 1 << 60;
/// A day and ten years, in seconds and days.
const DAY: u64 = 86_400;
const TEN_YEARS: u64 = 3_650;

const PRIORITY: &str = "the order of the tiers is fixed, hottest first";
const UNICAST: &str = "nothing here is multicast";
const UNCOMPRESSED: &str = "the memory tier keeps values as they are";

const PERSISTENCE: [Persistence; 3] =
    [Persistence::Always, Persistence::EverySecond, Persistence::OnEviction];
const ALLOCATIONS: [AllocationStrategy; 2] = [AllocationStrategy::Dynamic, AllocationStrategy::Static];
const POLICIES: [MemoryPolicy; 2] = [MemoryPolicy::Adaptive, MemoryPolicy::Lru];
const LEVELS: [LogLevel; 5] =
    [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];
const ROTATIONS: [LogRotation; 3] = [LogRotation::Daily, LogRotation::Size, LogRotation::Never];
const READ_MODES: [ReadMode; 2] = [ReadMode::Map, ReadMode::Pread];
const ALGORITHMS: [Algorithm; 3] = [Algorithm::None, Algorithm::Zlib, Algorithm::Lz4];
const ALGORITHM_WORDS: &[&str] = &["none", "zlib", "lz4"];

fn index<T: PartialEq>(all: &[T], value: &T) -> usize {
    all.iter().position(|v| v == value).unwrap_or(0)
}

fn pick<T: Copy>(all: &[T], at: usize, into: &mut T) {
    if let Some(value) = all.get(at) {
        *into = *value;
    }
}

macro_rules! choice {
    ($words:expr, $all:expr, $($field:ident).+) => {
        Field::Choice {
            words: $words,
            get: |c| index(&$all, &c.$($field).+),
            set: |c, at| pick(&$all, at, &mut c.$($field).+),
        }
    };
}

/// All of them, in the order in which they are written.
pub(super) static SETTINGS: &[Setting] = &[
    setting(
        "resource_management.memory.max_usage_percent",
        Field::Count(|c| &mut c.resources.memory.max_usage_percent, 1..=100, "percent"),
        "percent of the machine's memory, or the cgroup's, that this process may use",
    ),
    setting(
        "resource_management.memory.buffer_percent",
        Field::Count(|c| &mut c.resources.memory.buffer_percent, 0..=99, "percent"),
        "when it is over: down to that many percent below the maximum",
    ),
    setting(
        "resource_management.memory.gc_threshold",
        Field::Count(|c| &mut c.resources.memory.gc_threshold, 1..=100, "percent"),
        "percent over which memory is given back to the system too",
    ),
    setting(
        "resource_management.memory.allocation_strategy",
        choice!(&["dynamic", "static"], ALLOCATIONS, resources.memory.allocation_strategy),
        "whether the memory tier grows and shrinks between its floor and its max_size, or is max_size",
    ),
    setting(
        "resource_management.cpu.max_usage_percent",
        Field::Count(|c| &mut c.resources.cpu.max_usage_percent, 1..=100, "percent"),
        "percent of the processors over which background work slows",
    ),
    setting(
        "resource_management.cpu.compression_threshold",
        Field::Count(|c| &mut c.resources.cpu.compression_threshold, 1..=100, "percent"),
        "percent of the processors over which lz4 is preferred to zlib",
    ),
    setting(
        "resource_management.cpu.batch_size",
        Field::Count(|c| &mut c.resources.cpu.batch_size, 1..=100_000, "items"),
        "items of one step of migration",
    ),
    setting(
        "resource_management.cpu.priority_nice",
        Field::Count(|c| &mut c.resources.cpu.priority_nice, 0..=19, ""),
        "nice value of background threads",
    ),
    setting(
        "resource_management.io.max_concurrent_ops",
        Field::Count(|c| &mut c.resources.io.max_concurrent_ops, 1..=10_000, "operations"),
        "read operations of each tier's directory under way at most; writes, syncs and maps do not count, and background reads leave one place to callers",
    ),
    setting(
        "resource_management.io.buffer_size",
        Field::Size(|c| &mut c.resources.io.buffer_size, 512..=MIB),
        "bytes of the smallest read",
    ),
    setting(
        "resource_management.io.write_buffer_size",
        Field::Size(|c| &mut c.resources.io.write_buffer_size, MIB..=MOST_BUFFERED),
        "bytes that wait to be written at most; half of it starts a write",
    ),
    setting(
        "resource_management.io.read_ahead_size",
        Field::Size(|c| &mut c.resources.io.read_ahead_size, 4 * KIB..=64 * MIB),
        "bytes that are read ahead at most",
    ),
    setting(
        "resource_management.network.max_bandwidth_percent",
        Field::Count(|c| &mut c.resources.network.max_bandwidth_percent, 1..=100, "percent"),
        "percent of the link that metrics, or a remote tier, may use",
    ),
    setting(
        "resource_management.network.tcp_keepalive",
        Field::Flag(|c| &mut c.resources.network.tcp_keepalive),
        "whether connections are kept alive",
    ),
    setting(
        "resource_management.network.tcp_nodelay",
        Field::Flag(|c| &mut c.resources.network.tcp_nodelay),
        "whether small packets are sent at once",
    ),
    setting("resource_management.network.multicast_enabled", Field::Fixed("false", UNICAST), UNICAST),
    setting(
        "storage_tiers.memory.max_size",
        Field::Size(|c| &mut c.memory.max_size, MIB..=MOST),
        "bytes of values, keys and overhead in memory",
    ),
    setting(
        "storage_tiers.memory.item_limit",
        Field::Count(|c| &mut c.memory.item_limit, 1..=MOST, "entries"),
        "most entries in memory",
    ),
    setting(
        "storage_tiers.memory.policy",
        choice!(&["adaptive", "lru"], POLICIES, memory.policy),
        "what memory keeps: by frequency and recency, with the one setting that was best on average over our traces; or what was used last",
    ),
    setting("storage_tiers.memory.compression", Field::Fixed("false", UNCOMPRESSED), UNCOMPRESSED),
    setting("storage_tiers.memory.priority", Field::Fixed("1", PRIORITY), PRIORITY),
    setting(
        "storage_tiers.ssd.path",
        Field::Dir(|c| &mut c.ssd.dirs),
        "the directory of the SSD tier, which is in use if it has one",
    ),
    setting(
        "storage_tiers.ssd.paths",
        Field::Dirs(|c| &mut c.ssd.dirs),
        "the directories of the SSD tier: paths, or { path, size }",
    ),
    setting(
        "storage_tiers.ssd.max_size",
        Field::Size(|c| &mut c.ssd.max_size, MIB..=MOST),
        "bytes that the SSD tier may occupy; directories without a size share what the others leave",
    ),
    setting(
        "storage_tiers.ssd.item_limit",
        Field::Count(|c| &mut c.ssd.item_limit, 1..=MOST, "items"),
        "items on the SSD above which they sink; from an eighth more, who writes makes them sink first",
    ),
    setting(
        "storage_tiers.ssd.compression",
        Field::Flag(|c| &mut c.ssd.compression),
        "whether the SSD tier compresses",
    ),
    setting("storage_tiers.ssd.priority", Field::Fixed("2", PRIORITY), PRIORITY),
    setting(
        "storage_tiers.hdd.path",
        Field::Dir(|c| &mut c.hdd.dirs),
        "the directory of the HDD tier, which is in use if it has one",
    ),
    setting(
        "storage_tiers.hdd.paths",
        Field::Dirs(|c| &mut c.hdd.dirs),
        "the directories of the HDD tier: paths, or { path, size }",
    ),
    setting(
        "storage_tiers.hdd.max_size",
        Field::Size(|c| &mut c.hdd.max_size, MIB..=MOST),
        "bytes that the HDD tier may occupy; directories without a size share what the others leave",
    ),
    setting(
        "storage_tiers.hdd.compression",
        Field::Flag(|c| &mut c.hdd.compression),
        "whether the HDD tier compresses",
    ),
    setting("storage_tiers.hdd.priority", Field::Fixed("3", PRIORITY), PRIORITY),
    setting(
        "storage_tiers.cold.path",
        Field::Dir(|c| &mut c.cold.dirs),
        "the directory of the cold tier, which is in use if it has one",
    ),
    setting(
        "storage_tiers.cold.paths",
        Field::Dirs(|c| &mut c.cold.dirs),
        "the directories of the cold tier: paths, or { path, size }",
    ),
    setting(
        "storage_tiers.cold.limit",
        Field::OptionalSize(|c| &mut c.cold.limit, MIB..=MOST),
        "bytes that the cold tier may occupy; absent: unlimited",
    ),
    setting(
        "storage_tiers.cold.compression",
        Field::Flag(|c| &mut c.cold.compression),
        "whether the cold tier compresses",
    ),
    setting("storage_tiers.cold.priority", Field::Fixed("4", PRIORITY), PRIORITY),
    setting(
        "storage.persistence",
        choice!(&["always", "every_second", "on_eviction"], PERSISTENCE, storage.persistence),
        "what a returned put means: on stable storage; there within a second; there when memory evicts it",
    ),
    setting(
        "storage.write_stall_limit",
        Field::Count(|c| &mut c.storage.write_stall_limit, 1..=3_600, "seconds"),
        "how long a caller waits for a slow disk before the error Busy",
    ),
    setting(
        "storage.inflight",
        Field::AutoSize(|c| &mut c.storage.inflight, MIB..=64 * GIB),
        "bytes of values in flight; auto: 256 MiB, or twice the largest value if that is more",
    ),
    setting(
        "storage.max_value_size",
        Field::AutoSize(|c| &mut c.storage.max_value_size, 1..=GIB),
        "largest value; auto: 64 MiB, or half of the largest directory of the tightest tier",
    ),
    setting(
        "storage.read_mode",
        choice!(&["map", "pread"], READ_MODES, storage.read_mode),
        "how SSD segments are read: through a map where the block is resident, or with pread alone",
    ),
    setting(
        "storage.borrow_large_values",
        Field::Flag(|c| &mut c.storage.borrow_large_values),
        "whether values from 64 KiB may be slices of the SSD's map instead of copies",
    ),
    setting(
        "storage.catalog",
        Field::Path(|c| &mut c.storage.catalog),
        "directory of the catalog; absent: in the first directory of the highest tier on disk",
    ),
    setting(
        "storage.socket",
        Field::Flag(|c| &mut c.storage.socket),
        "whether other processes of the same user may ask the store while it is open, over `socket` in its directory",
    ),
    setting(
        "storage.default_ttl",
        Field::OptionalCount(|c| &mut c.storage.default_ttl, 1..=TEN_YEARS * DAY, "seconds"),
        "how long an item lives unless it says otherwise; absent: for ever",
    ),
    setting(
        "storage.migration_bytes_per_second",
        Field::Size(|c| &mut c.storage.migration_bytes_per_second, 64 * KIB..=MOST),
        "bytes that migration copies in a second at most",
    ),
    setting(
        "storage.erase_after",
        Field::Count(|c| &mut c.storage.erase_after, 1..=TEN_YEARS, "days"),
        "within this time what is dead in the archive is physically gone",
    ),
    setting(
        "storage.reap_interval",
        Field::Count(|c| &mut c.storage.reap_interval, 1..=DAY, "seconds"),
        "time between two walks of the reaper of expired items",
    ),
    setting(
        "storage.checkpoint_interval",
        Field::Count(|c| &mut c.storage.checkpoint_interval, 1..=DAY, "seconds"),
        "time between two checkpoints of the catalog, if anything was written",
    ),
    setting(
        "storage.checkpoint_journal_size",
        Field::Size(|c| &mut c.storage.checkpoint_journal_size, MIB..=64 * GIB),
        "bytes of the journal that make a checkpoint due earlier; less beside a small tier",
    ),
    setting(
        "storage.segment_size",
        Field::AutoSize(|c| &mut c.storage.segment_size, MIB..=512 * MIB),
        "bytes of a segment of the SSD; auto: a sixteenth of its smallest directory, 1 to 64 MiB; in a tier over 64 GiB more, so that there are at most 1,024",
    ),
    setting(
        "storage.generation_size",
        Field::AutoSize(|c| &mut c.storage.generation_size, MIB..=8 * GIB),
        "bytes of a generation of the HDD; auto: a sixteenth of its smallest directory, 4 MiB to 1 GiB",
    ),
    setting(
        "storage.pack_size",
        Field::AutoSize(|c| &mut c.storage.pack_size, MIB..=480 * MIB),
        "bytes of a pack of the archive; auto: a sixteenth of its smallest limit, 4 to 256 MiB",
    ),
    setting(
        "storage.block_size",
        Field::Size(|c| &mut c.storage.block_size, 4 * KIB..=64 * KIB),
        "bytes of small records that make a block of the HDD",
    ),
    setting(
        "storage.sled_cache",
        Field::Size(|c| &mut c.storage.sled_cache, MIB..=64 * GIB),
        "bytes of cache of the HDD tier's sled databases together",
    ),
    setting(
        "compression.algorithms.zlib.level",
        Field::Count(|c| &mut c.compression.zlib.level, 1..=9, ""),
        "zlib's level: 1 is fast, 9 is small",
    ),
    setting(
        "compression.algorithms.zlib.min_size",
        Field::Size(|c| &mut c.compression.zlib.min_size, 0..=GIB),
        "smallest value that zlib is tried on",
    ),
    setting(
        "compression.algorithms.zlib.threshold",
        Field::Ratio(|c| &mut c.compression.zlib.threshold),
        "kept only if stored / original is at most this",
    ),
    setting(
        "compression.algorithms.lz4.level",
        Field::Count(|c| &mut c.compression.lz4.level, 1..=1, ""),
        "lz4 has no levels",
    ),
    setting(
        "compression.algorithms.lz4.min_size",
        Field::Size(|c| &mut c.compression.lz4.min_size, 0..=GIB),
        "smallest value that lz4 is tried on",
    ),
    setting(
        "compression.algorithms.lz4.threshold",
        Field::Ratio(|c| &mut c.compression.lz4.threshold),
        "kept only if stored / original is at most this",
    ),
    setting(
        "compression.content_types.text",
        choice!(ALGORITHM_WORDS, ALGORITHMS, compression.text),
        "what readable text is compressed with",
    ),
    setting(
        "compression.content_types.json",
        choice!(ALGORITHM_WORDS, ALGORITHMS, compression.json),
        "what JSON is compressed with",
    ),
    setting(
        "compression.content_types.binary",
        choice!(ALGORITHM_WORDS, ALGORITHMS, compression.binary),
        "what anything else is compressed with",
    ),
    setting(
        "compression.content_types.media",
        choice!(ALGORITHM_WORDS, ALGORITHMS, compression.media),
        "what images, audio, video and archives are compressed with",
    ),
    setting(
        "optimization_strategies.aggressive.memory_threshold",
        Field::Ratio(|c| &mut c.strategies.aggressive.memory_threshold),
        "share of memory over which it is freed; resource_management.memory.max_usage_percent holds too",
    ),
    setting(
        "optimization_strategies.aggressive.compression_level",
        Field::Count(|c| &mut c.strategies.aggressive.compression_level, 1..=9, ""),
        "highest level of zlib",
    ),
    setting(
        "optimization_strategies.aggressive.prefetch_multiplier",
        Field::Factor(|c| &mut c.strategies.aggressive.prefetch_multiplier, 0..=16),
        "after a hit on the HDD or the archive, that many times 64 KiB of its neighbours enter memory",
    ),
    setting(
        "optimization_strategies.aggressive.eviction_age",
        Field::Count(|c| &mut c.strategies.aggressive.eviction_age, 1..=DAY, "seconds"),
        "idle time after which a clean entry may leave memory early",
    ),
    setting(
        "optimization_strategies.balanced.memory_threshold",
        Field::Ratio(|c| &mut c.strategies.balanced.memory_threshold),
        "share of memory over which it is freed; resource_management.memory.max_usage_percent holds too",
    ),
    setting(
        "optimization_strategies.balanced.compression_level",
        Field::Count(|c| &mut c.strategies.balanced.compression_level, 1..=9, ""),
        "highest level of zlib",
    ),
    setting(
        "optimization_strategies.balanced.prefetch_multiplier",
        Field::Factor(|c| &mut c.strategies.balanced.prefetch_multiplier, 0..=16),
        "after a hit on the HDD or the archive, that many times 64 KiB of its neighbours enter memory",
    ),
    setting(
        "optimization_strategies.balanced.eviction_age",
        Field::Count(|c| &mut c.strategies.balanced.eviction_age, 1..=DAY, "seconds"),
        "idle time after which a clean entry may leave memory early",
    ),
    setting(
        "optimization_strategies.conservative.memory_threshold",
        Field::Ratio(|c| &mut c.strategies.conservative.memory_threshold),
        "share of memory over which it is freed; resource_management.memory.max_usage_percent holds too",
    ),
    setting(
        "optimization_strategies.conservative.compression_level",
        Field::Count(|c| &mut c.strategies.conservative.compression_level, 1..=9, ""),
        "highest level of zlib",
    ),
    setting(
        "optimization_strategies.conservative.prefetch_multiplier",
        Field::Factor(|c| &mut c.strategies.conservative.prefetch_multiplier, 0..=16),
        "after a hit on the HDD or the archive, that many times 64 KiB of its neighbours enter memory",
    ),
    setting(
        "optimization_strategies.conservative.eviction_age",
        Field::Count(|c| &mut c.strategies.conservative.eviction_age, 1..=DAY, "seconds"),
        "idle time after which a clean entry may leave memory early",
    ),
    setting(
        "optimizer.enabled",
        Field::Flag(|c| &mut c.optimizer.enabled),
        "whether the optimizer runs by itself",
    ),
    setting(
        "optimizer.interval",
        Field::Count(|c| &mut c.optimizer.interval, 1..=DAY, "seconds"),
        "time between two decisions",
    ),
    setting(
        "optimizer.memory_floor",
        Field::AutoSize(|c| &mut c.optimizer.memory_floor, MIB..=MOST),
        "bytes below which the memory tier does not shrink; auto: an eighth of its max_size, at least 1 MiB",
    ),
    setting(
        "metrics.redis.url",
        Field::Url(|c| &mut c.metrics.redis.url),
        "the Redis server that metrics go to; absent: none",
    ),
    setting(
        "metrics.redis.interval",
        Field::Count(|c| &mut c.metrics.redis.interval, 1..=3_600, "seconds"),
        "time between two reports",
    ),
    setting(
        "metrics.redis.prefix",
        Field::Name(|c| &mut c.metrics.redis.prefix),
        "what the names of all keys in Redis begin with",
    ),
    setting(
        "metrics.redis.history",
        Field::Count(|c| &mut c.metrics.redis.history, 1..=1_000_000, "entries"),
        "entries that a stream of reports, or of decisions, keeps, about",
    ),
    setting(
        "metrics.redis.instance",
        Field::OptionalName(|c| &mut c.metrics.redis.instance),
        "the name of this store among others; absent: host, process and the start of the store's id",
    ),
    setting("log.file", Field::Path(|c| &mut c.log.file), "the log of the command; absent: none"),
    setting(
        "log.level",
        choice!(&["error", "warn", "info", "debug", "trace"], LEVELS, log.level),
        "what is worth a line: that, and what is more important",
    ),
    setting(
        "log.rotation",
        choice!(&["daily", "size", "never"], ROTATIONS, log.rotation),
        "when a new file is begun: at midnight, UTC, and at max_size; at max_size; never",
    ),
    setting(
        "log.max_size",
        Field::Size(|c| &mut c.log.max_size, 64 * KIB..=1024 * GIB),
        "bytes of the log at which a new file is begun",
    ),
    setting(
        "log.keep",
        Field::Count(|c| &mut c.log.keep, 1..=1_000, "files"),
        "how many files of the log are kept, the newest included",
    ),
];
