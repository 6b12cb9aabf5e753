//! Configuration: what a store is made of and how it behaves, in TOML or set field by field.
//!
//! Invariants: every setting stands once in a table (`settings.rs`), by which files are read, written and
//! checked, so none is parsed and forgotten; a name that is not in it is an error; nothing outside a setting's
//! limits passes [`Config::validate`].

mod file;
mod metrics;
mod resources;
mod settings;
mod size;
#[cfg(test)]
mod tests;
mod validate;

pub use metrics::{LogConfig, LogLevel, LogRotation, MetricsConfig, RedisConfig, RedisUrl};
pub use resources::{
    AllocationStrategy, CpuUseConfig, IoUseConfig, MemoryUseConfig, NetworkUseConfig, OptimizerConfig,
    ResourcesConfig, StrategiesConfig, StrategyConfig,
};
pub use size::{parse as parse_size, show as show_size};

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use thermocline_storage::memory::MemoryPolicy;
pub use thermocline_storage::ssd::ReadMode;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What a returned `put` means, in the words that Redis users know from `appendfsync`.
///
/// ```
/// use thermocline::{Cache, Error, Persistence, Tier};
///
/// # let dir = tempfile::tempdir()?;
/// let builder = Cache::builder().root(dir.path());
/// let on_ssd = |cache: &Cache| cache.stats().tier(Tier::Ssd).map(|t| t.items);
/// let cache = builder.clone().persistence(Persistence::Always).open()?;
/// cache.put("a", "1")?;
/// assert_eq!(on_ssd(&cache), Some(1)); // it is there when `put` returns
/// cache.close()?;
///
/// let cache = builder.persistence(Persistence::OnEviction).open()?;
/// cache.put("b", "2")?;
/// assert_eq!(on_ssd(&cache), Some(1)); // a crash now would forget "b"
/// cache.close()?; // which writes it
///
/// // Memory alone has no stable storage.
/// let none = Cache::builder().memory(16 << 20).persistence(Persistence::Always).open();
/// assert!(matches!(none, Err(Error::Config(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Persistence {
    /// It is on stable storage.
    Always,
    /// It is in memory, and on stable storage within about a second.
    #[default]
    EverySecond,
    /// It is in memory; written when memory evicts it, at `flush` and at `close`.
    OnEviction,
}

/// What a content type is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// Stored as it is.
    None,
    /// zlib (RFC 1950).
    Zlib,
    /// One LZ4 block.
    Lz4,
}

/// A directory of a tier on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirConfig {
    /// Where. A relative path counts from the working directory of the process.
    pub path: PathBuf,
    /// Bytes that may be occupied in it, at least 1; `None`: an equal share of what the tier's `max_size` leaves.
    pub size: Option<u64>,
}

/// The memory tier.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// Bytes of values, keys and overhead: at least 1 MiB, by default 512 MiB.
    pub max_size: u64,
    /// Most entries: at least 1, by default 100,000.
    pub item_limit: u64,
    /// What to keep; by default [`MemoryPolicy::Adaptive`].
    pub policy: MemoryPolicy,
}

/// The SSD tier; in use if it has a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SsdConfig {
    /// Its directories.
    pub dirs: Vec<DirConfig>,
    /// Bytes in all, dead ones, preallocation and quarantine included: at least 1 MiB, by default 5 GiB. Each
    /// directory has to hold four segments.
    pub max_size: u64,
    /// Most items: at least 1, by default 1,000,000.
    pub item_limit: u64,
    /// Whether it compresses.
    pub compression: bool,
}

/// The HDD tier; in use if it has a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HddConfig {
    /// Its directories.
    pub dirs: Vec<DirConfig>,
    /// Bytes in all, dead ones, indexes and quarantine included: at least 1 MiB, by default 50 GiB. Each directory
    /// has to hold two generations.
    pub max_size: u64,
    /// Whether it compresses.
    pub compression: bool,
}

/// The cold tier; in use if it has a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ColdConfig {
    /// Its directories.
    pub dirs: Vec<DirConfig>,
    /// Bytes in all, dead ones and quarantine included: at least 1 MiB; `None`: unlimited, except directories with
    /// a size of their own. Each directory that is limited has to hold two packs.
    pub limit: Option<u64>,
    /// Whether it compresses.
    pub compression: bool,
}

/// What holds for the store as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StorageConfig {
    /// What a returned `put` means.
    pub persistence: Persistence,
    /// Seconds that a caller waits for a slow disk before `Busy`: 1 to 3,600, by default 30.
    pub write_stall_limit: u64,
    /// Bytes of values in flight: 1 MiB to 64 GiB; `None`: 256 MiB, or twice `max_value_size` if that is more.
    pub inflight: Option<u64>,
    /// Largest value in bytes: 1 to 1 GiB; `None`: see [`Config::max_value_size`].
    pub max_value_size: Option<u64>,
    /// How SSD segments are read.
    pub read_mode: ReadMode,
    /// Whether values from 64 KiB may be handed out as slices of the SSD's map.
    pub borrow_large_values: bool,
    /// Where the catalog is; `None`: where it is, or for a new store in the first directory of the highest tier.
    pub catalog: Option<PathBuf>,
    /// Whether other processes may ask the store while it is open, over a socket in its directory; by default yes. Nothing
    /// without the feature `remote`, which answers.
    pub socket: bool,
    /// Seconds that an item lives unless it says otherwise: 1 to 315,360,000, which is ten years; `None`: for ever.
    pub default_ttl: Option<u64>,
    /// Bytes that migration copies in a second at most: at least 64 KiB, by default 64 MiB.
    pub migration_bytes_per_second: u64,
    /// Days within which what is dead in the archive is physically gone: 1 to 3,650, by default 30.
    pub erase_after: u64,
    /// Seconds between two walks of the reaper of expired items: 1 to 86,400, by default 60.
    pub reap_interval: u64,
    /// Seconds between two checkpoints of the catalog, if anything was written: 1 to 86,400, by default 300.
    pub checkpoint_interval: u64,
    /// Bytes of the journal that make a checkpoint due earlier: 1 MiB to 64 GiB, by default 64 MiB; at most a
    /// thirty-second of the limit of the directory that holds the catalog, but never less than 1 MiB.
    pub checkpoint_journal_size: u64,
    /// Bytes of a segment of the SSD: 1 MiB to 512 MiB; `None`: see [`Config::segment_size`].
    pub segment_size: Option<u64>,
    /// Bytes of a generation of the HDD: 1 MiB to 8 GiB; `None`: see [`Config::generation_size`].
    pub generation_size: Option<u64>,
    /// Bytes of a pack of the archive: 1 MiB to 480 MiB; `None`: see [`Config::pack_size`].
    pub pack_size: Option<u64>,
    /// Bytes of small records that make a block of the HDD: 4 KiB to 64 KiB, by default 64 KiB.
    pub block_size: u64,
    /// Bytes of cache of all sled databases together: 1 MiB to 64 GiB, by default 32 MiB.
    pub sled_cache: u64,
}

/// One compression algorithm.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct AlgorithmConfig {
    /// Level: 1 to 9 for zlib, by default 6; 1 for lz4, which has no levels.
    pub level: u64,
    /// Smallest value in bytes that is compressed: 0 to 1 GiB; by default 1,024 for zlib, 512 for lz4.
    pub min_size: u64,
    /// Compressed bytes are kept only if stored / original is at most this: more than 0, at most 1; by default 0.8
    /// for zlib, 0.6 for lz4.
    pub threshold: f64,
}

/// Compression by content type.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CompressionConfig {
    /// zlib.
    pub zlib: AlgorithmConfig,
    /// LZ4.
    pub lz4: AlgorithmConfig,
    /// Of readable text.
    pub text: Algorithm,
    /// Of JSON.
    pub json: Algorithm,
    /// Of anything else.
    pub binary: Algorithm,
    /// Of what is compressed already.
    pub media: Algorithm,
}

/// The whole configuration. [`Default`] is memory alone with every setting at its default; a tier on disk is in
/// use once it has a directory.
///
/// ```
/// use thermocline::Config;
///
/// let mut config = Config::default();
/// config.memory.max_size = 64 << 20;
/// config.add_ssd("/mnt/nvme/cache", 5 << 30);
/// config.storage.default_ttl = Some(3_600); // seconds
/// config.validate()?; // touches no disk; `Cache::open` asks it, too
/// assert_eq!(config.segment_size(), 64 << 20); // what is not set follows from what is
/// # Ok::<(), thermocline::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The memory tier.
    pub memory: MemoryConfig,
    /// The SSD tier.
    pub ssd: SsdConfig,
    /// The HDD tier.
    pub hdd: HddConfig,
    /// The cold tier.
    pub cold: ColdConfig,
    /// The store as a whole.
    pub storage: StorageConfig,
    /// Compression.
    pub compression: CompressionConfig,
    /// What of the machine may be used.
    pub resources: ResourcesConfig,
    /// What each strategy of the optimizer allows.
    pub strategies: StrategiesConfig,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// Where metrics go.
    pub metrics: MetricsConfig,
    /// The log of the command.
    pub log: LogConfig,
    origin: Origin,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            memory: MemoryConfig {
                max_size: 512 * MIB,
                item_limit: 100_000,
                policy: MemoryPolicy::default(),
            },
            ssd: SsdConfig { dirs: Vec::new(), max_size: 5 * GIB, item_limit: 1_000_000, compression: true },
            hdd: HddConfig { dirs: Vec::new(), max_size: 50 * GIB, compression: true },
            cold: ColdConfig { dirs: Vec::new(), limit: None, compression: true },
            storage: StorageConfig::default(),
            compression: CompressionConfig {
                zlib: AlgorithmConfig { level: 6, min_size: 1024, threshold: 0.8 },
                lz4: AlgorithmConfig { level: 1, min_size: 512, threshold: 0.6 },
                text: Algorithm::Zlib,
                json: Algorithm::Zlib,
                binary: Algorithm::Lz4,
                media: Algorithm::Lz4,
            },
            resources: ResourcesConfig::default(),
            strategies: StrategiesConfig::default(),
            optimizer: OptimizerConfig::default(),
            metrics: MetricsConfig::default(),
            log: LogConfig::default(),
            origin: Origin::default(),
        }
    }
}

impl Default for StorageConfig {
    fn default() -> StorageConfig {
        StorageConfig {
            persistence: Persistence::default(),
            write_stall_limit: 30,
            inflight: None,
            max_value_size: None,
            read_mode: ReadMode::default(),
            borrow_large_values: false,
            catalog: None,
            socket: true,
            default_ttl: None,
            migration_bytes_per_second: 64 * MIB,
            erase_after: 30,
            reap_interval: 60,
            checkpoint_interval: 300,
            checkpoint_journal_size: 64 * MIB,
            segment_size: None,
            generation_size: None,
            pack_size: None,
            block_size: 64 * KIB,
            sled_cache: 32 * MIB,
        }
    }
}

/// Smallest and largest sizes that the containers of a tier get by themselves.
const AUTO_GENERATION: (u64, u64) = (4 * MIB, GIB);
const AUTO_PACK: (u64, u64) = (4 * MIB, 256 * MIB);

impl Config {
    /// Adds a directory of the SSD tier with a size of its own; the tier's `max_size` becomes the sum.
    pub fn add_ssd(&mut self, path: impl Into<PathBuf>, size: u64) {
        self.ssd.dirs.push(DirConfig { path: path.into(), size: Some(size) });
        self.ssd.max_size = own_sizes(&self.ssd.dirs);
    }

    /// Adds a directory of the HDD tier with a size of its own; the tier's `max_size` becomes the sum.
    pub fn add_hdd(&mut self, path: impl Into<PathBuf>, size: u64) {
        self.hdd.dirs.push(DirConfig { path: path.into(), size: Some(size) });
        self.hdd.max_size = own_sizes(&self.hdd.dirs);
    }

    /// Adds a directory of the cold tier.
    pub fn add_cold(&mut self, path: impl Into<PathBuf>) {
        self.cold.dirs.push(DirConfig { path: path.into(), size: None });
    }

    /// All three tiers on disk under one directory, in `ssd`, `hdd` and `cold`, instead of those named so far.
    pub fn set_root(&mut self, root: impl Into<PathBuf>) {
        let root = root.into();
        let under = |name: &str| vec![DirConfig { path: root.join(name), size: None }];
        self.ssd.dirs = under("ssd");
        self.hdd.dirs = under("hdd");
        self.cold.dirs = under("cold");
    }

    /// Whether any tier on disk is in use.
    pub fn has_disk(&self) -> bool {
        !(self.ssd.dirs.is_empty() && self.hdd.dirs.is_empty() && self.cold.dirs.is_empty())
    }

    /// Bytes that each directory of the SSD tier may occupy, in their order.
    pub fn ssd_limits(&self) -> Vec<u64> {
        shares(&self.ssd.dirs, self.ssd.max_size)
    }

    /// Bytes that each directory of the HDD tier may occupy, in their order.
    pub fn hdd_limits(&self) -> Vec<u64> {
        shares(&self.hdd.dirs, self.hdd.max_size)
    }

    /// Bytes that each directory of the cold tier may occupy, in their order; `None`: unlimited.
    pub fn cold_limits(&self) -> Vec<Option<u64>> {
        match self.cold.limit {
            Some(limit) => shares(&self.cold.dirs, limit).into_iter().map(Some).collect(),
            None => self.cold.dirs.iter().map(|d| d.size).collect(),
        }
    }

    /// Bytes of values in flight: the setting, or 256 MiB, or twice the largest value if that is more.
    pub fn inflight(&self) -> u64 {
        let needed = self.max_value_size().saturating_mul(2);
        self.storage.inflight.unwrap_or(needed.max(256 * MIB))
    }

    /// Largest value in bytes: the setting, or 64 MiB, or what every tier in use has room for if that is less.
    pub fn max_value_size(&self) -> u64 {
        self.storage
            .max_value_size
            .unwrap_or_else(|| self.room_for_value().map_or(u64::MAX, |(_, room)| room).min(64 * MIB))
    }

    /// Bytes of the largest value that fits everywhere, and the setting that says so: half of a tier's largest
    /// directory; with memory alone, half of it. `None` if nothing limits it.
    fn room_for_value(&self) -> Option<(&'static str, u64)> {
        let cold = if self.cold_limits().contains(&None) {
            None
        } else {
            self.cold_limits().into_iter().flatten().max()
        };
        let memory = (!self.has_disk()).then_some(self.memory.max_size);
        [
            ("storage_tiers.memory.max_size", memory),
            ("storage_tiers.ssd.max_size", self.ssd_limits().into_iter().max()),
            ("storage_tiers.hdd.max_size", self.hdd_limits().into_iter().max()),
            ("storage_tiers.cold.limit", cold),
        ]
        .into_iter()
        .filter_map(|(name, room)| Some((name, room? / 2)))
        .min_by_key(|(_, room)| *room)
    }

    /// Bytes of a segment: the setting, or a sixteenth of the smallest directory of the SSD tier, rounded down
    /// to a power of two, between 1 and 64 MiB; in a tier over 64 GiB so many more, up to 512 MiB, that there are at
    /// most 1,024 segments.
    pub fn segment_size(&self) -> u64 {
        self.storage.segment_size.unwrap_or_else(|| {
            let limits = self.ssd_limits();
            let total = limits.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
            let smallest = limits.into_iter().min().unwrap_or(self.ssd.max_size);
            thermocline_storage::ssd::SsdConfig::segment_size_for(smallest, total)
        })
    }

    /// Bytes of a generation: the setting, or a sixteenth of the smallest directory of the HDD tier, rounded
    /// down to a power of two, between 4 MiB and 1 GiB.
    pub fn generation_size(&self) -> u64 {
        self.storage
            .generation_size
            .unwrap_or_else(|| auto(self.hdd_limits().into_iter().min(), AUTO_GENERATION))
    }

    /// Bytes of a pack: the setting, or a sixteenth of the smallest limited directory of the cold tier, rounded
    /// down to a power of two, between 4 and 256 MiB; 256 MiB if there is no limit.
    pub fn pack_size(&self) -> u64 {
        self.storage
            .pack_size
            .unwrap_or_else(|| auto(self.cold_limits().into_iter().flatten().min(), AUTO_PACK))
    }
}

fn auto(smallest: Option<u64>, (least, most): (u64, u64)) -> u64 {
    let sixteenth = smallest.map_or(most, |n| n / 16).clamp(least, most);
    1 << sixteenth.ilog2()
}

fn own_sizes(dirs: &[DirConfig]) -> u64 {
    dirs.iter().filter_map(|d| d.size).fold(0, u64::saturating_add)
}

/// Each directory's own size, or an equal share of what the others leave of the whole.
fn shares(dirs: &[DirConfig], whole: u64) -> Vec<u64> {
    let sharing = dirs.iter().filter(|d| d.size.is_none()).count() as u64;
    let left = whole.saturating_sub(own_sizes(dirs));
    let share = left.checked_div(sharing).unwrap_or(0);
    dirs.iter().map(|d| d.size.unwrap_or(share)).collect()
}

/// Where settings were read from, so that a later error can name the line. Makes no difference to equality.
#[derive(Clone, Default)]
struct Origin(Option<Arc<Source>>);

struct Source {
    file: Option<PathBuf>,
    /// Name of a setting, its value as it was read, line and column.
    read: Vec<(&'static str, String, (usize, usize))>,
}

impl PartialEq for Origin {
    fn eq(&self, _: &Origin) -> bool {
        true
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Origin").field(&self.0.as_ref().map(|s| &s.file)).finish()
    }
}

/// A configuration that cannot be used: what is wrong, where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigError {
    /// The file, if it came from one.
    pub file: Option<PathBuf>,
    /// Line and column, from 1, if it stands in a text.
    pub at: Option<(usize, usize)>,
    /// What is wrong, and the cure.
    pub message: String,
    /// What else is wrong, in the order of the text; none of these has others.
    pub others: Vec<ConfigError>,
}

impl ConfigError {
    /// One error of several, the first in the text before the others; what stands in no text comes last.
    fn all(mut errors: Vec<ConfigError>) -> Option<ConfigError> {
        errors.sort_by_key(|e| (e.at.is_none(), e.at));
        // A setting may break several rules at once, and break one in the same words.
        errors.dedup();
        let mut errors = errors.into_iter();
        let mut first = errors.next()?;
        first.others.extend(errors);
        Some(first)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.at) {
            (Some(file), Some((line, column))) => write!(f, "{}:{line}:{column}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, Some((line, column))) => write!(f, "line {line}, column {column}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.message)?;
        self.others.iter().try_for_each(|e| write!(f, "; {e}"))
    }
}

impl std::error::Error for ConfigError {}
