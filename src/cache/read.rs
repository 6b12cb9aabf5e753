//! Reading: the value of a key, and what is known of it without its value.
//!
//! Nothing here decides anything; what a read keeps to is said in the engine's `read.rs`.

use super::{Cache, Entry, Info};
use crate::error::Result;
use bytes::Bytes;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thermocline_storage::Tier;

impl Cache {
    /// The value of a key, from whichever tier has it. `None`: absent, expired, damaged, or out of reach for now.
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// cache.put("thumb/42", vec![7; 3])?;
    /// assert_eq!(cache.get("thumb/42")?.as_deref(), Some(&[7, 7, 7][..]));
    /// assert_eq!(cache.get("thumb/43")?, None); // absence is no error
    /// assert!(cache.get("").is_err()); // but a key has a byte at least
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    ///
    /// # Errors
    /// `BadKey`; `Closed`; `Busy` if a limit held for longer than `write_stall_limit`, or an HDD generation is still
    /// opening.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        Ok(self.engine().get(key.as_ref())?.map(|got| got.value))
    }

    /// The value of a key and what is known of it.
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// use thermocline::{ContentType, Tier};
    ///
    /// cache.put("page", "<html>café</html>")?;
    /// let entry = cache.get_entry("page")?.ok_or("it was put")?;
    /// assert_eq!(entry.content_type, ContentType::Text); // found from the bytes
    /// assert_eq!(entry.tier, Tier::Memory);
    /// assert_eq!(entry.expires_at, None);
    /// let before = entry.version;
    /// cache.put("page", "<html>tea</html>")?;
    /// assert!(cache.get_entry("page")?.is_some_and(|entry| entry.version > before));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let cache = thermocline::Cache::builder().root(dir.path()).open()?;
    /// use thermocline::Tier;
    ///
    /// cache.put("k", "v")?;
    /// assert!(cache.get_memory("k")?.is_some());
    /// cache.demote("k", Tier::Ssd)?; // out of memory
    /// assert_eq!(cache.get_memory("k")?, None); // which is not to say that it is nowhere
    /// let value = match cache.get_memory("k")? {
    ///     Some(value) => Some(value),
    ///     None => cache.get("k")?, // in an asynchronous program: on a thread that may block
    /// };
    /// assert_eq!(value.as_deref(), Some(&b"v"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `BadKey`; `Closed`.
    pub fn get_memory(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        Ok(self.engine().get_memory(key.as_ref())?.map(|got| got.value))
    }

    /// The values of several keys, in their order.
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// cache.put_many([("a", "1"), ("b", "2")])?;
    /// let values = cache.get_many(&["b", "missing", "a"])?;
    /// assert_eq!(values, [Some("2".into()), None, Some("1".into())]);
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get); the first error ends it.
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Bytes>>> {
        keys.iter().map(|key| self.get(key)).collect()
    }

    /// Whether a key is live. Reads its record's head where only the disk has it; counts as no use.
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// use std::time::Duration;
    ///
    /// cache.put("k", "v")?;
    /// assert!(cache.contains("k")?);
    /// cache.expire_in("k", Some(Duration::ZERO))?;
    /// assert!(!cache.contains("k")?); // what has expired is not there, reaped or not
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.tier_of(key)?.is_some())
    }

    /// The highest tier that holds a key; `None` if it is not live. Counts as no use.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let cache = thermocline::Cache::builder().root(dir.path()).open()?;
    /// use thermocline::Tier;
    ///
    /// cache.put("k", "v")?;
    /// assert_eq!(cache.tier_of("k")?, Some(Tier::Memory));
    /// cache.demote("k", Tier::Hdd)?;
    /// assert_eq!(cache.tier_of("k")?, Some(Tier::Hdd));
    /// assert_eq!(cache.tier_of("missing")?, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let cache = thermocline::Cache::builder().root(dir.path()).open()?;
    /// use thermocline::Tier;
    ///
    /// cache.put("film", vec![0; 1 << 20])?;
    /// cache.demote("film", Tier::Cold)?;
    /// let info = cache.info("film")?.ok_or("it is live")?;
    /// assert_eq!((info.len, info.tier), (1 << 20, Tier::Cold));
    /// assert_eq!(cache.tier_of("film")?, Some(Tier::Cold)); // asking brought nothing up
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
}

fn time_of(ms: u64) -> Option<SystemTime> {
    (ms != 0).then(|| UNIX_EPOCH + Duration::from_millis(ms))
}
