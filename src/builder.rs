//! The builder: a store described in code.
//!
//! Invariants: nothing is touched before [`Builder::open`], [`Builder::check`] or [`Builder::repair`]; one that fails
//! leaves no lock held and no thread behind. What a crash in the middle of them leaves is said at the engine's
//! `open.rs` and `repair.rs`; a check changes nothing, so it leaves nothing.

use crate::cache::Cache;
use crate::config::{Config, MemoryPolicy, Persistence};
use crate::engine::{self, CheckReport, Engine, Progress, RepairReport, World};
use crate::error::Result;
use crate::events::{Events, Subscription};
use crate::sensors::Sensors;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thermocline_storage::clock::{Clock, SystemClock};
use thermocline_storage::home::OpenFlags;
use thermocline_storage::vfs::{RealFs, Vfs};

/// Describes a store and opens it. What is not said has the default of [`Config`].
///
/// ```
/// use thermocline::{Cache, MemoryPolicy, Tier};
///
/// # let dir = tempfile::tempdir()?;
/// # let (nvme, nvme2, archive) = (dir.path().join("1"), dir.path().join("2"), dir.path().join("3"));
/// let cache = Cache::builder()
///     .memory(16 << 20)
///     .memory_policy(MemoryPolicy::Lru)
///     .ssd(nvme, 64 << 20)
///     .ssd(nvme2, 64 << 20) // one more directory of the same tier
///     .cold(archive)
///     .cold_limit(256 << 20)
///     .open()?;
/// let stats = cache.stats();
/// let limit = |tier| stats.tier(tier).and_then(|t| t.limit);
/// assert_eq!(limit(Tier::Ssd), Some(128 << 20));
/// assert_eq!(limit(Tier::Cold), Some(256 << 20));
/// assert!(stats.tier(Tier::Hdd).is_none()); // not asked for
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is opened"]
pub struct Builder {
    config: Config,
    flags: OpenFlags,
    world: World,
    /// Its directories are the machine's, in which there can be a socket.
    #[cfg(feature = "remote")]
    real: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Builder::new()
    }
}

impl Builder {
    /// Memory alone, everything at its default.
    pub fn new() -> Builder {
        Builder::from_config(Config::default())
    }

    /// Starts from a configuration.
    pub fn from_config(config: Config) -> Builder {
        let world = World {
            vfs: Arc::new(RealFs),
            clock: Arc::new(SystemClock),
            threads: true,
            simulated: false,
            sensors: Default::default(),
        };
        Builder {
            config,
            flags: OpenFlags::default(),
            world,
            #[cfg(feature = "remote")]
            real: true,
        }
    }

    /// What the optimizer sees of the machine, in place of what it would ask the system for: for a host that knows
    /// better, or a test. Given to the first store that this builder, or a clone of it, opens.
    ///
    /// ```
    /// use thermocline::Cache;
    /// use thermocline::sensors::{Readings, SimulatedSensors};
    ///
    /// let mut busy = Readings::default();
    /// busy.cpu.machine_percent = Some(95.0);
    /// let cache = Cache::builder().memory(16 << 20).sensors(SimulatedSensors::new([busy])).open()?;
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    pub fn sensors(self, sensors: impl Sensors + 'static) -> Builder {
        self.world.sensors.put(Box::new(sensors));
        self
    }

    /// The configuration as it stands, for every setting that has no method here.
    ///
    /// ```
    /// use thermocline::Cache;
    ///
    /// let mut builder = Cache::builder().memory(16 << 20);
    /// builder.config_mut().storage.reap_interval = 5; // seconds
    /// let cache = builder.open()?;
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    pub fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    /// Bytes of the memory tier: values, keys and overhead. At least 1 MiB.
    pub fn memory(mut self, bytes: u64) -> Builder {
        self.config.memory.max_size = bytes;
        self
    }

    /// Most entries of the memory tier, at least one.
    pub fn memory_item_limit(mut self, items: u64) -> Builder {
        self.config.memory.item_limit = items;
        self
    }

    /// How the memory tier chooses what to keep.
    pub fn memory_policy(mut self, policy: MemoryPolicy) -> Builder {
        self.config.memory.policy = policy;
        self
    }

    /// A directory of the SSD tier and the bytes that may be occupied in it: at least 4 MiB, or four segments if their
    /// size is set. May be called again: one more directory.
    pub fn ssd(mut self, dir: impl Into<PathBuf>, bytes: u64) -> Builder {
        self.config.add_ssd(dir, bytes);
        self
    }

    /// A directory of the HDD tier and the bytes that may be occupied in it: at least 8 MiB, or two generations if
    /// their size is set. May be called again: one more directory.
    pub fn hdd(mut self, dir: impl Into<PathBuf>, bytes: u64) -> Builder {
        self.config.add_hdd(dir, bytes);
        self
    }

    /// A directory of the cold tier. May be called again. Unlimited unless [`cold_limit`](Self::cold_limit) is given.
    pub fn cold(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.config.add_cold(dir);
        self
    }

    /// Bytes that the cold tier may occupy in all: at least 8 MiB a directory, or two packs if their size is set.
    pub fn cold_limit(mut self, bytes: u64) -> Builder {
        self.config.cold.limit = Some(bytes);
        self
    }

    /// All three disk tiers under one directory, with the sizes that they have by default.
    ///
    /// ```
    /// use thermocline::{Cache, Tier};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let under = dir.path();
    /// let cache = Cache::builder().memory(16 << 20).root(under).open()?;
    /// let stats = cache.stats();
    /// assert!(Tier::ALL.iter().all(|tier| stats.tier(*tier).is_some()));
    /// assert!(under.join("ssd").is_dir() && under.join("hdd").is_dir() && under.join("cold").is_dir());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn root(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.config.set_root(dir);
        self
    }

    /// Where the catalog lives; without this, in the first directory of the highest disk tier.
    pub fn catalog(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.config.storage.catalog = Some(dir.into());
        self
    }

    /// What a returned `put` means.
    pub fn persistence(mut self, persistence: Persistence) -> Builder {
        self.config.storage.persistence = persistence;
        self
    }

    /// How long an item lives unless its put says otherwise, in whole seconds (rounded up): 1 s to ten years.
    pub fn default_ttl(mut self, ttl: Duration) -> Builder {
        self.config.storage.default_ttl =
            Some(ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)));
        self
    }

    /// Whether other processes may ask the store while it is open, over a socket in its directory
    /// (`remote`, a default feature of the crate): yes, unless told otherwise. Who may: the same user, and root.
    pub fn socket(mut self, yes: bool) -> Builder {
        self.config.storage.socket = yes;
        self
    }

    /// Largest value in bytes: 1 to 1 GiB, and at most half of what the tightest tier gives a directory.
    pub fn max_value_size(mut self, bytes: u64) -> Builder {
        self.config.storage.max_value_size = Some(bytes);
        self
    }

    /// Sends the store's metrics to a Redis server: `redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`, with `rediss://` for
    /// TLS; the database is 15 unless it is named. A thread of its own does it, every ten seconds; a server that is away
    /// or slow costs a counter and a line in the log. See `docs/operations.md`.
    ///
    /// ```
    /// use thermocline::Cache;
    ///
    /// let cache = Cache::builder().memory(16 << 20).redis_metrics("redis://127.0.0.1:1/15").open()?;
    /// cache.put("k", "v")?; // nobody listens at port 1, and nobody notices
    /// cache.close()?;
    ///
    /// let error = Cache::builder().redis_metrics("redis://:s3cret@host:port").open().err();
    /// let error = error.map(|e| e.to_string()).unwrap_or_default();
    /// assert!(error.contains("metrics.redis.url") && !error.contains("s3cret"));
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    pub fn redis_metrics(mut self, url: impl Into<String>) -> Self {
        self.config.metrics.redis.url = Some(url.into().into());
        self
    }

    /// Opens although a directory of the store is missing, or older than the catalog knows: what is in it is absent
    /// until it is back.
    pub fn without_missing(mut self, yes: bool) -> Builder {
        self.flags.without_missing = yes;
        self
    }

    /// Opens although a directory of the store is missing, and gives up what was in it for good.
    pub fn discard_missing(mut self, yes: bool) -> Builder {
        self.flags.discard_missing = yes;
        self
    }

    /// If the catalog is lost, rebuilds it from the containers: of each key, the newest version found. Items that had
    /// been removed or overwritten may be among them. Also takes in what an earlier rebuilding could not see and this
    /// opening can ([`Recovery::unseen`](crate::Recovery::unseen)); items removed since may be among that.
    pub fn rebuild_catalog(mut self, yes: bool) -> Builder {
        self.flags.rebuild_catalog = yes;
        self
    }

    /// Another file system, clock, or no background threads ([`Cache::step`] drives the jobs then): for tests.
    #[doc(hidden)]
    pub fn world(mut self, vfs: Arc<dyn Vfs>, clock: Arc<dyn Clock>, threads: bool) -> Builder {
        let sensors = self.world.sensors.clone();
        self.set_world(World { vfs, clock, threads, simulated: false, sensors });
        self
    }

    /// What the store gets from a simulation: no thread of its own, no sled, containers as small as configured.
    #[doc(hidden)]
    pub fn simulated(mut self, vfs: Arc<dyn Vfs>, clock: Arc<dyn Clock>) -> Builder {
        let sensors = self.world.sensors.clone();
        self.set_world(World { vfs, clock, threads: false, simulated: true, sensors });
        self
    }

    fn set_world(&mut self, world: World) {
        self.world = world;
        #[cfg(feature = "remote")]
        {
            self.real = false;
        }
    }

    /// With background threads, or without, in whatever world: for tests of what goes on at the same time on a simulated
    /// disk.
    #[doc(hidden)]
    pub fn threads(mut self, yes: bool) -> Builder {
        self.world.threads = yes;
        self
    }

    /// Opens the store, making its directories (mode 0700) where they are missing.
    ///
    /// ```
    /// use thermocline::{Cache, Error};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let builder = Cache::builder().root(dir.path());
    /// let cache = builder.clone().open()?;
    /// // One opening at a time, whoever asks: the second is told at once.
    /// assert!(matches!(builder.clone().open(), Err(Error::Locked { .. })));
    /// drop(cache);
    /// assert!(builder.open().is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Config` for an impossible setting; `Locked` if the store is open elsewhere; a storage error for a directory
    /// that cannot be used, is another store's, is missing or too old, for a newer format, and for a catalog that is
    /// lost. Each says what to do. Nothing is left half-made.
    pub fn open(self) -> Result<Cache> {
        self.open_engine(|_| ()).map(|(cache, ())| cache)
    }

    /// [`open`](Self::open), with a subscription that misses nothing: it begins before the opening does, so that what
    /// opening itself finds damaged or lost is told too, and what moves or goes because the store was opened with
    /// smaller limits. It holds this many events.
    ///
    /// ```
    /// use thermocline::Cache;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let (cache, events) = Cache::builder().root(dir.path()).open_with_events(1024)?;
    /// let found: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).collect();
    /// assert!(found.is_empty()); // nothing was damaged, moved or lost
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_events(self, capacity: usize) -> Result<(Cache, Subscription)> {
        self.open_engine(|events| events.subscribe_with(capacity))
    }

    /// Reads and checks everything of a store that nobody has open, and changes nothing: every live item, from key to
    /// decoded value, and what is there for the day on which something is lost: second copies, footers, indexes. No
    /// byte, name, mode or time of any file is different afterwards, so it works on a file system that is mounted for
    /// reading, and on a copy that may not be touched. `progress` is told how far it is, after each container.
    ///
    /// Memory: the catalog's, as in an open store, and that of one value. A store in use is `Locked`, and one that is
    /// being checked is for who would open it; several may check it at once. Memory alone: there is nothing to check.
    ///
    /// ```
    /// use thermocline::{Cache, Cost, Part};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let builder = Cache::builder().root(dir.path());
    /// builder.clone().open()?.put("k", "v")?;
    /// let report = builder.clone().check(|progress| assert!(progress.done <= progress.of))?;
    /// assert!(report.is_clean());
    /// assert_eq!(report.items, 1);
    ///
    /// // One of the two copies of a directory's identity is damaged.
    /// std::fs::write(dir.path().join("hdd/store.b"), "scratched")?;
    /// let report = builder.clone().check(|_| {})?;
    /// for finding in &report.findings {
    ///     println!("{}: {}: {}", finding.path.display(), finding.part, finding.why);
    ///     assert_eq!((finding.part, finding.cost), (Part::Identity, Cost::Nothing));
    /// }
    /// assert_eq!(report.findings.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`open`](Self::open), and `BadDirectory` where there is no store: none is made. Damage is no error, but for
    /// `CatalogLost`: without a catalog nobody knows what there is to check.
    pub fn check(self, mut progress: impl FnMut(Progress)) -> Result<CheckReport> {
        engine::check(&self.config, self.flags, &self.world, engine::Step::Check, &mut progress)
    }

    /// [`check`](Self::check), and mends what it finds: copies, headers, footers and indexes are made anew, damaged
    /// records go to the quarantine and are dead. Then everything is checked again, and what is left is said. A store
    /// that is whole is not touched. With [`rebuild_catalog`](Self::rebuild_catalog) a catalog that is lost is rebuilt
    /// first.
    ///
    /// To write a container anew needs room for its live records within the limit of its tier. A crash in the middle
    /// leaves what a crash of an open store leaves; the repair can be begun again.
    ///
    /// ```
    /// use thermocline::Cache;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let builder = Cache::builder().root(dir.path());
    /// builder.clone().open()?.put("k", "v")?;
    /// std::fs::remove_file(dir.path().join("cold/store.a"))?;
    /// let report = builder.clone().repair(|_| {})?;
    /// assert_eq!((report.mended.len(), report.lost.len(), report.left.len()), (1, 0, 0));
    /// assert!(builder.clone().check(|_| {})?.is_clean());
    /// assert!(builder.open()?.contains("k")?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`open`](Self::open); what cannot be mended is no error, and is in [`RepairReport::left`].
    pub fn repair(self, mut progress: impl FnMut(Progress)) -> Result<RepairReport> {
        let events = Arc::new(Events::new());
        engine::repair(&self.config, self.flags, &self.world, &events, &mut progress)
    }

    fn open_engine<T>(self, before: impl FnOnce(&Events) -> T) -> Result<(Cache, T)> {
        let threads = self.world.threads;
        let events = Arc::new(Events::new());
        let subscribed = before(&events);
        let (engine, recovery) = Engine::open(&self.config, self.flags, self.world, events)?;
        if threads {
            engine.begin()?;
        }
        let cache = Cache::new(engine, recovery);
        #[cfg(feature = "remote")]
        if threads && self.real && self.config.storage.socket && self.config.has_disk() {
            cache.serve();
        }
        Ok((cache, subscribed))
    }
}
