//! Getting what may have to be made: single flight (see [`flight`](crate::flight)).
//!
//! Invariants: a key is looked up once more after its flight began, so that nobody makes what was put in between; a
//! flight that began is landed on every way out, or those who follow it would wait for ever (a panic of the maker
//! lands it as its lead is dropped).

use super::{Cache, PutOptions};
use crate::error::{Error, Result};
use crate::flight::Part;
use bytes::Bytes;
use std::sync::Arc;

impl Cache {
    /// The value of a key or, if it is absent, the one that `make` makes, which is put. Single flight: however many
    /// callers ask for an absent key, one makes it and the others wait for it.
    ///
    /// A put, a removal or a clear of the key while it is being made wins: the value made goes to those who wait for
    /// it and is not cached.
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// use std::io;
    /// use thermocline::Error;
    ///
    /// let page = cache.get_or_put_with("page/1", || Ok::<_, io::Error>("slow to make"))?;
    /// assert_eq!(page, "slow to make");
    /// let again = cache.get_or_put_with("page/1", || Err::<&str, _>(io::Error::other("not asked")))?;
    /// assert_eq!(again, "slow to make");
    ///
    /// // The maker's own error comes back, and nothing is cached.
    /// let failed = cache.get_or_put_with("page/2", || Err::<&str, _>(io::Error::other("no backend")));
    /// assert!(matches!(failed, Err(Error::Maker(e)) if e.is::<io::Error>()));
    /// assert!(!cache.contains("page/2")?);
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Maker` with the error of `make`, for all who waited, nothing being cached; the same if `make` panics.
    /// `Recursive` if `make` asks for the same key, or for one whose maker waits for this one. Otherwise as
    /// [`get`](Self::get) and [`put`](Self::put).
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
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// use std::io;
    /// use std::time::Duration;
    /// use thermocline::PutOptions;
    ///
    /// let minute = PutOptions::new().ttl(Duration::from_secs(60));
    /// let page = cache.get_or_put_with_options("page/2", minute, || Ok::<_, io::Error>("made"))?;
    /// assert_eq!(page, "made");
    /// assert!(cache.info("page/2")?.is_some_and(|info| info.expires_at.is_some()));
    /// # Ok::<(), thermocline::Error>(())
    /// ```
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
        let miss = match engine.look(key)? {
            Ok(got) => return Ok(got.value),
            Err(miss) => miss,
        };
        let lead = match engine.flights.join(engine.ident(key)?, key) {
            Part::Recursive => {
                engine.missed(miss);
                return Err(Error::Recursive);
            }
            Part::Follow(flight) => {
                engine.missed(miss);
                return engine.flights.wait(&flight);
            }
            Part::Lead(lead) => lead,
        };
        // Somebody may have landed between the look and the start of this flight. That is the look that counts.
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
}
