//! What goes on with the store as a whole: making it durable, verifying it, watching it.
//!
//! A crash during a flush leaves what a crash between two commits does: what was durable before, and part of the rest.
//! Of a verification see the engine's `walk.rs`.

use super::Cache;
use crate::engine::{Recovery, VerifyReport};
use crate::error::Result;
use crate::events::Subscription;
use crate::stats::Stats;

impl Cache {
    /// When it returns, everything acknowledged before the call is on stable storage. Memory alone: returns at once.
    ///
    /// ```
    /// use thermocline::{Cache, Persistence, Tier};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let builder = Cache::builder().root(dir.path()).persistence(Persistence::OnEviction);
    /// let cache = builder.open()?;
    /// let on_ssd = || cache.stats().tier(Tier::Ssd).map(|t| t.items);
    /// cache.put("k", "v")?;
    /// assert_eq!(on_ssd(), Some(0)); // in memory alone
    /// cache.flush()?;
    /// assert_eq!(on_ssd(), Some(1)); // on stable storage, and in memory
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// What keeps the data from stable storage; it is kept and tried again.
    pub fn flush(&self) -> Result<()> {
        self.engine().flush()
    }

    /// Reads and checks every live item, from key to decoded value. What fails is dead afterwards, as with any read,
    /// its bytes in the quarantine. This is of a store that goes on being used;
    /// [`Builder::check`](crate::Builder::check) changes nothing, and looks at more.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let cache = thermocline::Cache::builder().root(dir.path()).open()?;
    /// cache.put_many([("a", "1"), ("b", "2")])?;
    /// let report = cache.verify()?;
    /// assert!(report.is_clean());
    /// assert_eq!((report.items, report.bytes), (2, 2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`flush`](Self::flush), which comes first.
    pub fn verify(&self) -> Result<VerifyReport> {
        self.engine().verify(|_| {})
    }

    /// [`verify`](Self::verify), telling as it goes how many items were looked at since the call before: the sum of
    /// what `progress` is given is the total so far. The catalog is walked a shard at a time, and the call comes after
    /// each shard, with 0 for one that holds nothing. With memory alone there is nothing to verify and no call.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let cache = thermocline::Cache::builder().root(dir.path()).open()?;
    /// cache.put_many([("a", "1"), ("b", "2")])?;
    /// let mut done = 0;
    /// cache.verify_with(|more| done += more)?;
    /// assert_eq!(done, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn verify_with(&self, progress: impl FnMut(u64)) -> Result<VerifyReport> {
        self.engine().verify(progress)
    }

    /// Counters and sizes, by tier and content type.
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// use thermocline::Tier;
    ///
    /// cache.put("k", "v")?;
    /// cache.get("k")?;
    /// cache.get("missing")?;
    /// let stats = cache.stats();
    /// assert_eq!((stats.counts.gets, stats.counts.misses), (2, 1));
    /// assert_eq!(stats.tier(Tier::Memory).map(|t| (t.items, t.hits)), Some((1, 1)));
    /// assert!(stats.tier(Tier::Ssd).is_none()); // the store has none
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    pub fn stats(&self) -> Stats {
        self.engine().stats()
    }

    /// [`stats`](Self::stats) as text for Prometheus, for a program that has an HTTP server of its own; see
    /// [`Stats::to_prometheus`]. (`thermocline serve-metrics` is for those that have none and no program either.)
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// cache.put("k", "v")?;
    /// assert!(cache.prometheus().contains("\nthermocline_puts_total 1\n"));
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    pub fn prometheus(&self) -> String {
        self.stats().to_prometheus()
    }

    /// What happens from now on: promotions, demotions, evictions, expiries, damage. Bounded: a slow listener is told
    /// how many events it missed. Holds 1,024 that were not received yet.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let cache = thermocline::Cache::builder().root(dir.path()).open()?;
    /// use thermocline::{Event, Received, Tier};
    ///
    /// let events = cache.subscribe();
    /// cache.put("k", "v")?;
    /// cache.demote("k", Tier::Cold)?;
    /// let event = events.try_recv()?; // told before `demote` returned
    /// assert_eq!(
    ///     event,
    ///     Received::Event(Event::Demoted { key: Some("k".into()), from: Tier::Ssd, to: Tier::Cold })
    /// );
    /// cache.close()?;
    /// assert_eq!(events.count(), 0); // an iterator, which ends when the store is closed
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn subscribe(&self) -> Subscription {
        self.engine().events.subscribe()
    }

    /// [`subscribe`](Self::subscribe), with room for this many events, at least one.
    ///
    /// ```
    /// use thermocline::{Cache, Event, Received, RecvError};
    ///
    /// let cache = Cache::builder().memory(1 << 20).open()?;
    /// let events = cache.subscribe_with(1);
    /// for n in 0..12 {
    ///     cache.put(format!("k{n}"), vec![0; 200_000])?; // five of them fit
    /// }
    /// // There was room for one event. The others were not waited for, and are not concealed.
    /// assert!(matches!(events.try_recv(), Ok(Received::Event(Event::Evicted { .. }))));
    /// assert_eq!(events.try_recv(), Ok(Received::Lagged(6)));
    /// assert_eq!(events.try_recv(), Err(RecvError::Empty));
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    pub fn subscribe_with(&self, capacity: usize) -> Subscription {
        self.engine().events.subscribe_with(capacity)
    }

    /// What opening found and did.
    ///
    /// ```
    /// use thermocline::Cache;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let builder = Cache::builder().root(dir.path());
    /// builder.clone().open()?.put("k", "v")?; // and closes it
    /// let cache = builder.open()?;
    /// let recovery = cache.recovery();
    /// assert!(!recovery.rebuilt && !recovery.torn);
    /// assert_eq!((recovery.lost, recovery.unseen.len()), (0, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recovery(&self) -> &Recovery {
        &self.inner.recovery
    }
}
