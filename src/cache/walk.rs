//! Everything under a prefix: listed, removed; and everything, removed.
//!
//! Invariant: a [`Keys`] holds the store open, so that dropping the last [`Cache`] in the middle of a walk does not
//! end it.

use super::{Cache, Handle};
use crate::engine::Walk;
use crate::error::Result;
use bytes::Bytes;
use std::sync::Arc;

impl Cache {
    /// The live keys of a prefix (empty: all), from all tiers, in no order. Each key comes at most once, and every
    /// key that is live throughout does come.
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// cache.put_many([("thumb/1", "a"), ("thumb/2", "b"), ("page/1", "c")])?;
    /// let mut keys = cache.keys("thumb/").collect::<Result<Vec<_>, _>>()?;
    /// keys.sort(); // they come in no order
    /// assert_eq!(keys, ["thumb/1", "thumb/2"]);
    /// assert_eq!(cache.keys("").count(), 3);
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    ///
    /// # Errors
    /// Of the iterator: a storage error or `Busy` in the place of an item whose record cannot be read for now, so that its
    /// key is not known; the walk goes on behind it. `Closed` ends it.
    pub fn keys(&self, prefix: impl AsRef<[u8]>) -> Keys {
        let prefix = Bytes::copy_from_slice(prefix.as_ref());
        Keys { walk: Walk::new(self.inner.engine.clone(), prefix), _handle: self.inner.clone() }
    }

    /// Removes every live key of a prefix; gives how many. Keys written while it runs may stay.
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// cache.put_many([("thumb/1", "a"), ("thumb/2", "b"), ("page/1", "c")])?;
    /// assert_eq!(cache.remove_prefix("thumb/")?, 2);
    /// assert!(cache.contains("page/1")?);
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`remove`](Self::remove), and a storage error if the record of some item cannot be read for now, so that its
    /// key is not known: the others were removed, and it may still have the prefix. What was removed stays removed.
    pub fn remove_prefix(&self, prefix: impl AsRef<[u8]>) -> Result<u64> {
        self.engine().remove_prefix(prefix.as_ref())
    }

    /// Removes everything; gives how many items were alive. One journal frame a catalog shard; containers in which
    /// something has expired are listed before, so that it is not counted: of those that two seconds do not suffice to
    /// begin with, what has expired counts as alive. Seen by others at once; with
    /// [`Persistence::Always`](crate::Persistence::Always) durable when it returns.
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// cache.put_many([("a", "1"), ("b", "2")])?;
    /// assert_eq!(cache.clear()?, 2);
    /// assert_eq!((cache.get("a")?, cache.clear()?), (None, 0));
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    pub fn clear(&self) -> Result<u64> {
        self.engine().clear()
    }
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
