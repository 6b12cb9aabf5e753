//! The cache handle: the public surface.

use crate::builder::Builder;
use crate::config::Config;
use crate::engine::{Engine, Put, Recovery, VerifyReport, Walk};
use crate::error::{Error, Result};
use crate::events::Subscription;
use crate::flight::Part;
use crate::stats::Stats;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thermocline_storage::{ContentType, Tier, Version};

/// A store, open. Cheap to clone; all clones are the same store. Dropping the last one closes it.
///
/// Keys are 1 to 32,768 bytes; values up to the configured limit (64 MiB unless told otherwise). Every method may be
/// called from any thread. Methods that may touch a disk block; [`get_memory`](Cache::get_memory) never does.
///
/// ```
/// use thermocline::Cache;
///
/// # fn main() -> Result<(), thermocline::Error> {
/// let cache = Cache::builder().memory(16 << 20).open()?; // memory alone
/// cache.put("greeting", "hello")?;
/// assert_eq!(cache.get("greeting")?.as_deref(), Some(&b"hello"[..]));
/// assert!(cache.remove("greeting")?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Cache {
    inner: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    engine: Arc<Engine>,
    recovery: Recovery,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(e) = self.engine.close() {
            tracing::error!(error = %e, "closing the cache");
        }
    }
}

/// One item, as [`Cache::get_entry`] finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The value.
    pub value: Bytes,
    /// What it was put as, or was found to be.
    pub content_type: ContentType,
    /// The tier that answered.
    pub tier: Tier,
    /// When it expires; `None`: never.
    pub expires_at: Option<SystemTime>,
    /// The order of the write that made it, for [`Cache::put_if_version`]. Later writes have greater ones.
    pub version: u64,
}

/// What is known of an item without its value, as [`Cache::info`] finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// Length of the value in bytes.
    pub len: u64,
    /// What it was put as, or was found to be.
    pub content_type: ContentType,
    /// The highest tier that holds it.
    pub tier: Tier,
    /// When it expires; `None`: never.
    pub expires_at: Option<SystemTime>,
    /// The order of the write that made it.
    pub version: u64,
}

/// How a value is put.
///
/// ```
/// # use std::time::Duration;
/// # use thermocline::{Cache, ContentType, PutOptions};
/// # fn main() -> Result<(), thermocline::Error> {
/// # let cache = Cache::builder().memory(16 << 20).open()?;
/// let options = PutOptions::new().content_type(ContentType::Json).ttl(Duration::from_secs(60));
/// cache.put_with("feed/7", r#"{"n":1}"#, options)?;
/// let entry = cache.get_entry("feed/7")?.ok_or(thermocline::Error::Closed)?;
/// assert_eq!(entry.content_type, ContentType::Json);
/// assert!(entry.expires_at.is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutOptions {
    content_type: ContentType,
    ttl: Option<Duration>,
    forever: bool,
}

impl PutOptions {
    /// Content type found from the bytes, the configured default time to live.
    pub const fn new() -> PutOptions {
        PutOptions { content_type: ContentType::Auto, ttl: None, forever: false }
    }

    /// What the value is, which decides how it is compressed.
    #[must_use]
    pub const fn content_type(mut self, content_type: ContentType) -> PutOptions {
        self.content_type = content_type;
        self
    }

    /// How long it lives, to the millisecond. Zero: it is dead at once.
    #[must_use]
    pub const fn ttl(mut self, ttl: Duration) -> PutOptions {
        self.ttl = Some(ttl);
        self.forever = false;
        self
    }

    /// It lives until it is removed or evicted, whatever the configured default.
    #[must_use]
    pub const fn forever(mut self) -> PutOptions {
        self.ttl = None;
        self.forever = true;
        self
    }
}

impl Cache {
    pub(crate) fn new(engine: Arc<Engine>, recovery: Recovery) -> Cache {
        Cache { inner: Arc::new(Handle { engine, recovery }) }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// A builder with every setting at its default.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Opens the store that a configuration describes.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open(config: Config) -> Result<Cache> {
        Builder::from_config(config).open()
    }

    /// The value of a key, from whichever tier has it. `None`: absent, expired, damaged, or out of reach for now.
    ///
    /// # Errors
    /// `BadKey`; `Closed`; `Busy` if a limit held for longer than `write_stall_limit`, or an HDD generation is still
    /// opening.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        Ok(self.engine().get(key.as_ref())?.map(|got| got.value))
    }

    /// The value of a key and what is known of it.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn get_entry(&self, key: impl AsRef<[u8]>) -> Result<Option<Entry>> {
        Ok(self.engine().get(key.as_ref())?.map(|got| Entry {
            value: got.value,
            content_type: got.content_type,
            tier: got.tier,
            expires_at: time_of(got.expires_at),
            version: got.version.0,
        }))
    }

    /// The value of a key if memory has it. Never blocks and never touches a disk: for asynchronous callers, before
    /// they move to a thread that may block.
    ///
    /// # Errors
    /// `BadKey`; `Closed`.
    pub fn get_memory(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        Ok(self.engine().get_memory(key.as_ref())?.map(|got| got.value))
    }

    /// The values of several keys, in their order.
    ///
    /// # Errors
    /// As [`get`](Self::get); the first error ends it.
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Bytes>>> {
        keys.iter().map(|key| self.get(key)).collect()
    }

    /// Puts a value, found to be of the type that its bytes look like, with the default time to live.
    ///
    /// When it returns, every read sees it or a later one; what survives a crash is said by
    /// [`Persistence`](crate::Persistence).
    ///
    /// # Errors
    /// `BadKey`; `ValueTooLarge`; `Closed`; `Busy` if the disk was slower than the callers for longer than
    /// `write_stall_limit`; a storage error. A put that fails leaves the older value untouched, or the key absent if
    /// it was. (With `Persistence::Always`, a put that failed because the disk did may be found after a crash, as long as
    /// nothing later is durable: the disk can have taken the write, and then not what takes it back.)
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Result<()> {
        self.put_with(key, value, PutOptions::new())
    }

    /// Puts a value as the options say.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<()> {
        let what = self.what(value.into(), options)?;
        self.engine().put(key.as_ref(), what, &mut |_| true).map(|_| ())
    }

    fn what(&self, value: Bytes, options: PutOptions) -> Result<crate::engine::What> {
        let engine = self.engine();
        let expires_at = if options.forever { 0 } else { engine.expiry(options.ttl) };
        engine.what(value, options.content_type, expires_at)
    }

    /// Puts several items; what was put before an error stays.
    ///
    /// # Errors
    /// As [`put`](Self::put); the first error ends it.
    pub fn put_many<K: AsRef<[u8]>, V: Into<Bytes>>(
        &self,
        items: impl IntoIterator<Item = (K, V)>,
    ) -> Result<()> {
        items.into_iter().try_for_each(|(key, value)| self.put(key, value))
    }

    /// Puts a value if the key is absent; says whether it was put.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_if_absent(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<bool> {
        let what = self.what(value.into(), options)?;
        Ok(self.engine().put_if(key.as_ref(), &what, |known| known.is_none())? != Put::Refused)
    }

    /// Puts a value if the live item of the key has this version ([`Entry::version`]); says whether it was put.
    ///
    /// `touch` and `expire_in` are writes too, and an item that is not on disk yet gets a new version from them: then
    /// this refuses, and the item has to be looked at again.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_if_version(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        version: u64,
        options: PutOptions,
    ) -> Result<bool> {
        let what = self.what(value.into(), options)?;
        let wanted = Version(version);
        let put =
            self.engine().put_if(key.as_ref(), &what, |known| known.is_some_and(|k| k.version == wanted))?;
        Ok(put != Put::Refused)
    }

    /// The value of a key or, if it is absent, the one that `make` makes, which is put. Single flight: however many
    /// callers ask for an absent key, one makes it and the others wait for it.
    ///
    /// A put, a removal or a clear of the key while it is being made wins: the value made goes to those who wait for
    /// it and is not cached.
    ///
    /// ```
    /// # use thermocline::Cache;
    /// # fn main() -> Result<(), thermocline::Error> {
    /// # let cache = Cache::builder().memory(16 << 20).open()?;
    /// let page = cache.get_or_put_with("page/1", || Ok::<_, std::io::Error>("slow to make"))?;
    /// assert_eq!(page, "slow to make");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Maker` with the error of `make`, for all who waited, nothing being cached; the same if `make` panics.
    /// `Recursive` if `make` asks for the same key, or for one whose maker waits for this one. Otherwise as [`get`](Self::get) and [`put`](Self::put).
    pub fn get_or_put_with<V, E, F>(&self, key: impl AsRef<[u8]>, make: F) -> Result<Bytes>
    where
        V: Into<Bytes>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
        F: FnOnce() -> Result<V, E>,
    {
        self.get_or_put_with_options(key, PutOptions::new(), make)
    }

    /// [`get_or_put_with`](Self::get_or_put_with), putting as the options say.
    ///
    /// # Errors
    /// As there.
    pub fn get_or_put_with_options<V, E, F>(
        &self,
        key: impl AsRef<[u8]>,
        options: PutOptions,
        make: F,
    ) -> Result<Bytes>
    where
        V: Into<Bytes>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
        F: FnOnce() -> Result<V, E>,
    {
        let key = key.as_ref();
        let engine = self.engine();
        if let Some(got) = engine.get(key)? {
            return Ok(got.value);
        }
        let lead = match engine.flights.join(engine.ident(key)?, key) {
            Part::Recursive => return Err(Error::Recursive),
            Part::Follow(flight) => return engine.flights.wait(&flight),
            Part::Lead(lead) => lead,
        };
        // Somebody may have landed between the lookup and the start of this flight.
        match engine.get(key) {
            Ok(None) => {}
            found => {
                let found = found.map(|got| got.map(|got| got.value).unwrap_or_default());
                lead.land(found.clone());
                return found;
            }
        }
        let result = match make() {
            Ok(value) => {
                crate::stats::Counters::bump(&engine.counters.made);
                let value: Bytes = value.into();
                self.what(value.clone(), options)
                    .and_then(|what| engine.put(key, what, &mut |_| !lead.flight.is_void()))
                    .map(|_| value)
            }
            Err(e) => Err(Error::Maker(Arc::from(e.into()))),
        };
        lead.land(result.clone());
        result
    }

    /// Whether a key is live. Reads its record's head where only the disk has it; counts as no use.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.tier_of(key)?.is_some())
    }

    /// The highest tier that holds a key; `None` if it is not live. Counts as no use.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn tier_of(&self, key: impl AsRef<[u8]>) -> Result<Option<Tier>> {
        let engine = self.engine();
        let key = key.as_ref();
        Ok(engine.known(engine.ident(key)?, key)?.map(|known| known.tier))
    }

    /// What is known of a live key without its value; reads its record's head where only the disk has it. Counts as
    /// no use.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn info(&self, key: impl AsRef<[u8]>) -> Result<Option<Info>> {
        let engine = self.engine();
        let key = key.as_ref();
        Ok(engine.known(engine.ident(key)?, key)?.map(|known| Info {
            len: known.len,
            content_type: known.content_type,
            tier: known.tier,
            expires_at: time_of(known.expires_at),
            version: known.version.0,
        }))
    }

    /// Removes a key; says whether it was live. When it returns, no read finds it, from any thread; how soon that is
    /// durable is said by [`Persistence`](crate::Persistence) (a second at most in `OnEviction`, too).
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.engine().remove(key.as_ref())
    }

    /// Removes every live key of a prefix; gives how many. Keys written while it runs may stay.
    ///
    /// # Errors
    /// As [`remove`](Self::remove), and a storage error if the record of some item cannot be read for now, so that its
    /// key is not known: the others were removed, and it may still have the prefix. What was removed stays removed.
    pub fn remove_prefix(&self, prefix: impl AsRef<[u8]>) -> Result<u64> {
        self.engine().remove_prefix(prefix.as_ref())
    }

    /// Removes everything; gives how many items were alive. One journal frame a catalog shard; containers in which
    /// something has expired are listed before, so that it is not counted. Seen by others at once; with
    /// [`Persistence::Always`](crate::Persistence::Always) durable when it returns.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    pub fn clear(&self) -> Result<u64> {
        self.engine().clear()
    }

    /// The live keys of a prefix (empty: all), from all tiers, in no order. Each key comes at most once, and every
    /// key that is live throughout does come.
    ///
    /// ```
    /// # use thermocline::Cache;
    /// # fn main() -> Result<(), thermocline::Error> {
    /// # let cache = Cache::builder().memory(16 << 20).open()?;
    /// cache.put_many([("thumb/1", "a"), ("thumb/2", "b"), ("page/1", "c")])?;
    /// let mut keys = cache.keys("thumb/").collect::<Result<Vec<_>, _>>()?;
    /// keys.sort();
    /// assert_eq!(keys, ["thumb/1", "thumb/2"]);
    /// assert_eq!(cache.remove_prefix("thumb/")?, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn keys(&self, prefix: impl AsRef<[u8]>) -> Keys {
        let prefix = Bytes::copy_from_slice(prefix.as_ref());
        Keys { walk: Walk::new(self.inner.engine.clone(), prefix), _handle: self.inner.clone() }
    }

    /// Counts as a use of a live key and renews its default time to live, if the store has one. Says whether the key
    /// was live.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    pub fn touch(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        let engine = self.engine();
        let key = key.as_ref();
        let ident = engine.ident(key)?;
        if engine.known(ident, key)?.is_none() {
            return Ok(false);
        }
        engine.heat.record(ident, 1);
        match engine.settings.default_ttl_ms {
            Some(_) => engine.set_expiry(key, engine.expiry(None)),
            None => Ok(true),
        }
    }

    /// Lets a live key expire after a time; `None`: never. Says whether the key was live. Seen by others at once; with
    /// [`Persistence::Always`](crate::Persistence::Always) durable when it returns.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    pub fn expire_in(&self, key: impl AsRef<[u8]>, ttl: Option<Duration>) -> Result<bool> {
        let engine = self.engine();
        let expires_at = ttl.map_or(0, |ttl| engine.expiry(Some(ttl)));
        engine.set_expiry(key.as_ref(), expires_at)
    }

    /// Moves a key down to a tier, out of memory included; says whether anything changed. Done, and as durable as
    /// before, when it returns.
    ///
    /// # Errors
    /// `NoSuchTier`; otherwise as [`put`](Self::put).
    pub fn demote(&self, key: impl AsRef<[u8]>, tier: Tier) -> Result<bool> {
        self.engine().demote(key.as_ref(), tier)
    }

    /// Moves a key up to a tier; says whether anything changed. Done, and as durable as before, when it returns.
    ///
    /// # Errors
    /// `NoSuchTier`; otherwise as [`put`](Self::put).
    pub fn promote(&self, key: impl AsRef<[u8]>, tier: Tier) -> Result<bool> {
        self.engine().promote(key.as_ref(), tier)
    }

    /// When it returns, everything acknowledged before the call is on stable storage. Memory alone: returns at once.
    ///
    /// # Errors
    /// What keeps the data from stable storage; it is kept and tried again.
    pub fn flush(&self) -> Result<()> {
        self.engine().flush()
    }

    /// Tries the directories of a tier that are out of service now, and puts those back that work; says whether the
    /// whole tier is in service. By itself each is tried every 30 s.
    ///
    /// A directory goes out of service when writing fails in it, or when a read failed and it turns out that writing
    /// does, too: it takes no writes then, and what it holds is read as far as it can be, while reads and writes go on
    /// in the others. Events tell of it ([`TierOutOfService`](crate::Event::TierOutOfService),
    /// [`TierBack`](crate::Event::TierBack)), and [`TierStats::out_of_service`](crate::TierStats::out_of_service).
    ///
    /// # Errors
    /// `NoSuchTier` for memory and for a tier that the store does not have; `Closed`.
    pub fn put_back(&self, tier: Tier) -> Result<bool> {
        self.engine().put_back(tier)
    }

    /// Reads and checks every live item, from key to decoded value. What fails is dead afterwards, as with any read,
    /// its bytes in the quarantine. This is of a store that goes on being used;
    /// [`Builder::check`](crate::Builder::check) changes nothing, and looks at more.
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
    /// # Errors
    /// As there.
    pub fn verify_with(&self, progress: impl FnMut(u64)) -> Result<VerifyReport> {
        self.engine().verify(progress)
    }

    /// Counters and sizes, by tier and content type.
    ///
    /// ```
    /// # use thermocline::{Cache, Tier};
    /// # fn main() -> Result<(), thermocline::Error> {
    /// # let cache = Cache::builder().memory(16 << 20).open()?;
    /// cache.put("k", "v")?;
    /// cache.get("k")?;
    /// let stats = cache.stats();
    /// assert_eq!(stats.tier(Tier::Memory).map(|t| t.hits), Some(1));
    /// assert!(stats.tier(Tier::Ssd).is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn stats(&self) -> Stats {
        self.engine().stats()
    }

    /// What happens from now on: promotions, demotions, evictions, expiries, damage. Bounded: a slow listener is told
    /// how many events it missed. Holds 1,024 that were not received yet.
    pub fn subscribe(&self) -> Subscription {
        self.engine().events.subscribe()
    }

    /// [`subscribe`](Self::subscribe), with room for this many events, at least one.
    pub fn subscribe_with(&self, capacity: usize) -> Subscription {
        self.engine().events.subscribe_with(capacity)
    }

    /// What opening found and did.
    pub fn recovery(&self) -> &Recovery {
        &self.inner.recovery
    }

    /// Closes the store: writes what is dirty, lets go of the directories. Other handles get `Error::Closed` from then
    /// on; a second call does nothing.
    ///
    /// # Errors
    /// What keeps the data from stable storage. The store is closed all the same.
    pub fn close(&self) -> Result<()> {
        self.engine().close()
    }

    /// Ends the store as a crash of the process would: nothing more is written. For tests of what survives.
    #[doc(hidden)]
    pub fn crash(&self) {
        self.engine().crash();
    }

    /// Runs every background job once, for a store opened without background threads. One that fails keeps no other
    /// from being run, as if each had its thread.
    #[doc(hidden)]
    pub fn step(&self) -> Result<()> {
        let engine = self.engine();
        let committed = engine.commit_step();
        while engine.move_step() {}
        engine.keep_step();
        committed.map(|_| ())
    }
}

fn time_of(ms: u64) -> Option<SystemTime> {
    (ms != 0).then(|| UNIX_EPOCH + Duration::from_millis(ms))
}

/// The live keys of a prefix; see [`Cache::keys`].
#[derive(Debug)]
pub struct Keys {
    walk: Walk,
    /// The store stays open while it is walked.
    _handle: Arc<Handle>,
}

impl Iterator for Keys {
    type Item = Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        self.walk.next()
    }
}
