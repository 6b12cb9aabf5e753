//! The handle: a store, open. The methods are in modules by what they are for:
//!
//! | module | what for |
//! |---|---|
//! | `read` | the value of a key, and what is known of it |
//! | `write` | put, remove, expiry |
//! | `make` | get, or make and put: single flight |
//! | `walk` | keys of a prefix, prefix removal, clear |
//! | `placement` | demote, promote, directories put back in service |
//! | `upkeep` | flush, verify, stats, events |
//! | `items` | what goes in and comes out: options, entries |
//!
//! Invariants: all clones share one engine, and the last to go closes it, a walk that is still held included; the
//! methods decide nothing and write nothing by themselves: what an operation promises, and what a crash leaves of it,
//! is said in the engine.

use crate::builder::Builder;
use crate::config::Config;
use crate::engine::{Engine, Recovery};
use crate::error::Result;
use std::sync::Arc;

mod items;
mod make;
mod optimizer;
mod placement;
mod read;
mod upkeep;
mod walk;
mod write;

pub use items::{Entry, Info, PutOptions};
pub use optimizer::Tuned;
pub use walk::Keys;

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
    /// What answers other processes, until the store is closed.
    #[cfg(feature = "remote")]
    server: parking_lot::Mutex<Option<crate::remote::Server>>,
}

impl Handle {
    /// Answers nobody any more. Before the store lets go of its locks, under which its socket is made and removed.
    fn fall_silent(&self, remove_socket: bool) {
        #[cfg(feature = "remote")]
        if let Some(server) = self.server.lock().take() {
            server.stop(remove_socket);
        }
        #[cfg(not(feature = "remote"))]
        let _ = remove_socket;
    }
}

/// A handle may be cloned, sent to any thread and used from several at once: otherwise this does not compile.
const fn shared<T: Clone + Send + Sync>() {}
const _: () = shared::<Cache>();

impl Drop for Handle {
    fn drop(&mut self) {
        self.fall_silent(true);
        if let Err(e) = self.engine.close() {
            tracing::error!(error = %e, "closing the cache");
        }
    }
}

impl Cache {
    pub(crate) fn new(engine: Arc<Engine>, recovery: Recovery) -> Cache {
        Cache {
            inner: Arc::new(Handle {
                engine,
                recovery,
                #[cfg(feature = "remote")]
                server: parking_lot::Mutex::default(),
            }),
        }
    }

    /// Answers other processes from now on.
    #[cfg(feature = "remote")]
    pub(crate) fn serve(&self) {
        let engine = &self.inner.engine;
        *self.inner.server.lock() = crate::remote::Server::start(engine.clone(), &engine.places());
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
    /// ```
    /// use thermocline::{Cache, Config, Error};
    ///
    /// let mut config = Config::from_toml("[storage_tiers.memory]\nmax_size = \"16MiB\"")?;
    /// let cache = Cache::open(config.clone())?;
    /// assert_eq!(cache.stats().tiers[0].as_ref().and_then(|t| t.limit), Some(16 << 20));
    ///
    /// config.memory.max_size = 7; // less than the least
    /// assert!(matches!(Cache::open(config), Err(Error::Config(_))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open(config: Config) -> Result<Cache> {
        Builder::from_config(config).open()
    }

    /// Closes the store: writes what is dirty, lets go of the directories. Other handles get `Error::Closed` from then
    /// on; a second call does nothing.
    ///
    /// ```
    /// use thermocline::{Cache, Error};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let builder = Cache::builder().root(dir.path());
    /// let cache = builder.clone().open()?;
    /// let other = cache.clone();
    /// cache.put("k", "v")?;
    /// cache.close()?;
    /// assert!(matches!(other.get("k"), Err(Error::Closed)));
    /// assert!(other.close().is_ok());
    ///
    /// let cache = builder.open()?;
    /// assert_eq!(cache.get("k")?.as_deref(), Some(&b"v"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// What keeps the data from stable storage. The store is closed all the same.
    pub fn close(&self) -> Result<()> {
        self.inner.fall_silent(true);
        self.engine().close()
    }

    /// Ends the store as a crash of the process would: nothing more is written. For tests of what survives.
    #[doc(hidden)]
    pub fn crash(&self) {
        self.inner.fall_silent(false);
        self.engine().crash();
    }

    /// Leaves a decision for the metrics server, as the optimizer does: for tests of what goes there.
    #[doc(hidden)]
    pub fn note_decision(&self, fields: Vec<(String, String)>) {
        self.engine().decision(fields);
    }

    /// Does what the optimizer might have decided: for tests of what comes of it, beside faults, crashes and other threads.
    /// It is the optimizer's own way to do it; what it decides follows from times that no test can give twice.
    #[doc(hidden)]
    pub fn apply(&self, change: &crate::optimizer::Change) -> std::result::Result<(), String> {
        if self.engine().is_closed() {
            return Err(crate::Error::Closed.to_string());
        }
        self.engine().apply(change)
    }

    /// Waits until the tiers have made the indexes that they are making: false if they have not within this time.
    #[doc(hidden)]
    pub fn settle(&self, limit: std::time::Duration) -> bool {
        self.engine().settle(limit)
    }

    /// Runs every background job once, for a store opened without background threads. One that fails keeps no other
    /// from being run, as if each had its thread. `Ok`: what the writer had to write when it began is durable.
    #[doc(hidden)]
    pub fn step(&self) -> Result<()> {
        let engine = self.engine();
        let written = engine.write_step();
        while engine.move_step() {}
        engine.keep_step();
        written
    }
}
