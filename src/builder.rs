//! The builder: a store described in code.

use crate::cache::Cache;
use crate::config::{Config, MemoryPolicy, Persistence};
use crate::engine::{Engine, World};
use crate::error::Result;
use crate::events::{Events, Subscription};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thermocline_storage::clock::{Clock, SystemClock};
use thermocline_storage::home::OpenFlags;
use thermocline_storage::vfs::{RealFs, Vfs};

/// Describes a store and opens it. What is not said has the default of [`Config`].
///
/// ```no_run
/// use thermocline::{Cache, Persistence};
///
/// # fn main() -> Result<(), thermocline::Error> {
/// let cache = Cache::builder()
///     .memory(512 << 20)
///     .ssd("/mnt/nvme/cache", 5 << 30)
///     .hdd("/mnt/disk/cache", 50 << 30)
///     .cold("/mnt/archive/cache")
///     .persistence(Persistence::EverySecond)
///     .open()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is opened"]
pub struct Builder {
    config: Config,
    flags: OpenFlags,
    world: World,
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
        let world =
            World { vfs: Arc::new(RealFs), clock: Arc::new(SystemClock), threads: true, simulated: false };
        Builder { config, flags: OpenFlags::default(), world }
    }

    /// The configuration as it stands, for every setting that has no method here.
    pub fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    /// Bytes of the memory tier: values, keys and overhead. At least 1 MiB.
    pub fn memory(mut self, bytes: u64) -> Builder {
        self.config.memory.max_size = bytes;
        self
    }

    /// Most entries of the memory tier.
    pub fn memory_item_limit(mut self, items: u64) -> Builder {
        self.config.memory.item_limit = items;
        self
    }

    /// How the memory tier chooses what to keep.
    pub fn memory_policy(mut self, policy: MemoryPolicy) -> Builder {
        self.config.memory.policy = policy;
        self
    }

    /// A directory of the SSD tier and the bytes that may be occupied in it. May be called again.
    pub fn ssd(mut self, dir: impl Into<PathBuf>, bytes: u64) -> Builder {
        self.config.add_ssd(dir, bytes);
        self
    }

    /// A directory of the HDD tier and the bytes that may be occupied in it. May be called again.
    pub fn hdd(mut self, dir: impl Into<PathBuf>, bytes: u64) -> Builder {
        self.config.add_hdd(dir, bytes);
        self
    }

    /// A directory of the cold tier. May be called again. Unlimited unless [`cold_limit`](Self::cold_limit) is given.
    pub fn cold(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.config.add_cold(dir);
        self
    }

    /// Bytes that the cold tier may occupy in all.
    pub fn cold_limit(mut self, bytes: u64) -> Builder {
        self.config.cold.limit = Some(bytes);
        self
    }

    /// All three disk tiers under one directory, with the sizes that they have by default.
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

    /// How long an item lives unless its put says otherwise, in whole seconds (rounded up).
    pub fn default_ttl(mut self, ttl: Duration) -> Builder {
        self.config.storage.default_ttl =
            Some(ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)));
        self
    }

    /// Largest value in bytes, up to 1 GiB.
    pub fn max_value_size(mut self, bytes: u64) -> Builder {
        self.config.storage.max_value_size = Some(bytes);
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
        self.world = World { vfs, clock, threads, simulated: false };
        self
    }

    /// What the store gets from a simulation: no thread of its own, no sled, containers as small as configured.
    #[doc(hidden)]
    pub fn simulated(mut self, vfs: Arc<dyn Vfs>, clock: Arc<dyn Clock>) -> Builder {
        self.world = World { vfs, clock, threads: false, simulated: true };
        self
    }

    /// Opens the store, making its directories (mode 0700) where they are missing.
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
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_events(self, capacity: usize) -> Result<(Cache, Subscription)> {
        self.open_engine(|events| events.subscribe_with(capacity))
    }

    fn open_engine<T>(self, before: impl FnOnce(&Events) -> T) -> Result<(Cache, T)> {
        let threads = self.world.threads;
        let events = Arc::new(Events::new());
        let subscribed = before(&events);
        let (engine, recovery) = Engine::open(&self.config, self.flags, self.world, events)?;
        if threads {
            engine.begin()?;
        }
        Ok((Cache::new(engine, recovery), subscribed))
    }
}
