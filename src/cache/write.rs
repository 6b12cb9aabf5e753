//! Writing: put, on a condition or not, remove, and when an item expires.
//!
//! Each of these is one step of the engine, which has the invariants and says what a crash leaves (`write.rs` and
//! `commit.rs` there). Several items are several steps: what came before an error, or a crash, is done.

use super::{Cache, PutOptions};
use crate::engine::Put;
use crate::error::Result;
use bytes::Bytes;
use std::time::Duration;
use thermocline_storage::Version;

impl Cache {
    /// Puts a value, found to be of the type that its bytes look like, with the default time to live.
    ///
    /// When it returns, every read sees it or a later one; what survives a crash is said by
    /// [`Persistence`](crate::Persistence).
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// use thermocline::Error;
    ///
    /// cache.put("k", "older")?;
    /// cache.put("k", vec![1, 2, 3])?; // anything that becomes `Bytes`
    /// assert_eq!(cache.get("k")?.as_deref(), Some(&[1, 2, 3][..]));
    ///
    /// let large = cache.put("large", vec![0; 9 << 20]);
    /// assert!(matches!(large, Err(Error::ValueTooLarge { limit: 0x80_0000, .. }))); // half of memory, here
    /// # Ok::<(), thermocline::Error>(())
    /// ```
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
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// use std::time::Duration;
    /// use thermocline::{ContentType, PutOptions};
    ///
    /// let feed = PutOptions::new().content_type(ContentType::Json).ttl(Duration::from_secs(60));
    /// cache.put_with("feed/7", r#"{"items":[]}"#, feed)?;
    /// let info = cache.info("feed/7")?.ok_or("it is live")?;
    /// assert_eq!(info.content_type, ContentType::Json);
    /// assert!(info.expires_at.is_some());
    ///
    /// cache.put_with("gone", "at once", PutOptions::new().ttl(Duration::ZERO))?;
    /// assert_eq!(cache.get("gone")?, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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

    /// Puts several items; what was put before an error stays.
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// cache.put_many((0..100).map(|n| (format!("row/{n}"), n.to_string())))?;
    /// assert_eq!(cache.keys("row/").count(), 100);
    ///
    /// assert!(cache.put_many([("good", "1"), ("", "no key"), ("never", "2")]).is_err());
    /// assert!(cache.contains("good")? && !cache.contains("never")?);
    /// # Ok::<(), thermocline::Error>(())
    /// ```
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
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// use std::time::Duration;
    /// use thermocline::PutOptions;
    ///
    /// let lease = PutOptions::new().ttl(Duration::from_secs(30));
    /// assert!(cache.put_if_absent("leader", "worker-1", lease)?);
    /// assert!(!cache.put_if_absent("leader", "worker-2", lease)?);
    /// assert_eq!(cache.get("leader")?.as_deref(), Some(&b"worker-1"[..]));
    /// # Ok::<(), thermocline::Error>(())
    /// ```
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

    /// Puts a value if the live item of the key has this version ([`Entry::version`](crate::Entry::version)); says
    /// whether it was put.
    ///
    /// `touch` and `expire_in` are writes too, and an item that is not on disk yet gets a new version from them: then
    /// this refuses, and the item has to be looked at again.
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// use thermocline::PutOptions;
    ///
    /// cache.put("counter", "1")?;
    /// let seen = cache.get_entry("counter")?.ok_or("it was put")?;
    /// assert!(cache.put_if_version("counter", "2", seen.version, PutOptions::new())?);
    /// // Whoever had seen the same version comes too late.
    /// assert!(!cache.put_if_version("counter", "3", seen.version, PutOptions::new())?);
    /// assert_eq!(cache.get("counter")?.as_deref(), Some(&b"2"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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

    /// Counts as a use of a live key and renews its default time to live, if the store has one. Says whether the key
    /// was live.
    ///
    /// ```
    /// use std::time::Duration;
    /// use thermocline::Cache;
    ///
    /// let cache = Cache::builder().memory(16 << 20).default_ttl(Duration::from_secs(60)).open()?;
    /// cache.put("session", "of ann")?;
    /// cache.expire_in("session", Some(Duration::from_secs(1)))?;
    /// let soon = cache.info("session")?.and_then(|info| info.expires_at);
    /// assert!(cache.touch("session")?); // 60 s from now, again
    /// assert!(cache.info("session")?.and_then(|info| info.expires_at) > soon);
    /// assert!(!cache.touch("nobody")?);
    /// # Ok::<(), thermocline::Error>(())
    /// ```
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
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// use std::time::Duration;
    ///
    /// cache.put("k", "v")?;
    /// assert!(cache.expire_in("k", Some(Duration::from_secs(60)))?);
    /// assert!(cache.info("k")?.is_some_and(|info| info.expires_at.is_some()));
    /// assert!(cache.expire_in("k", None)?); // never, after all
    /// assert!(cache.info("k")?.is_some_and(|info| info.expires_at.is_none()));
    /// assert!(!cache.expire_in("missing", None)?);
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`remove`](Self::remove); but if the disk failed, with `Persistence::Always`, the new time holds all the same
    /// for as long as the store is open.
    pub fn expire_in(&self, key: impl AsRef<[u8]>, ttl: Option<Duration>) -> Result<bool> {
        let engine = self.engine();
        let expires_at = ttl.map_or(0, |ttl| engine.expiry(Some(ttl)));
        engine.set_expiry(key.as_ref(), expires_at)
    }

    /// Removes a key; says whether it was live (yes, too, where the record that would tell cannot be read). When it
    /// returns, no read finds it, from any thread; how soon that is durable is said by
    /// [`Persistence`](crate::Persistence) (a second at most in `OnEviction`, too).
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// cache.put("k", "v")?;
    /// assert!(cache.remove("k")?);
    /// assert!(!cache.remove("k")?); // it was not there any more
    /// assert_eq!(cache.get("k")?, None);
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.engine().remove(key.as_ref())
    }

    pub(super) fn what(&self, value: Bytes, options: PutOptions) -> Result<crate::engine::What> {
        let engine = self.engine();
        let expires_at = if options.forever { 0 } else { engine.expiry(options.ttl) };
        engine.what(value, options.content_type, expires_at)
    }
}
