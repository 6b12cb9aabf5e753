//! The error of the public surface.
//!
//! Invariants: an error is `Clone`, because all who wait for one flight, or one batch, get the same; a lock that
//! another holds and a wait in vain are one variant each, whichever layer met them.

use crate::config::ConfigError;
use std::path::PathBuf;
use std::sync::Arc;
use thermocline_storage as storage;

/// Result of a cache operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Each names the operation, the path and the cause, and says what to do where something can
/// be done.
///
/// ```
/// use thermocline::{Cache, Error};
///
/// let cache = Cache::builder().memory(16 << 20).open()?;
/// match cache.put("", "no key") {
///     Err(Error::BadKey { len }) => assert_eq!(len, 0),
///     Err(e) if e.storage().is_some() => eprintln!("a disk: {e}"),
///     other => other?, // there may be more in later versions
/// }
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store or one of its directories is open in another process, or by another handle of this one.
    #[error("{}: in use by another process, or by another handle of this one: close that one first", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The key is empty or longer than 32,768 bytes.
    #[error("a key of {len} bytes: keys have 1 to 32,768 bytes")]
    BadKey {
        /// Its length in bytes.
        len: usize,
    },
    /// The value is larger than the limit, or than any tier could hold.
    #[error(
        "a value of {size} bytes is over the limit of {limit}: raise the limit on values, or of the tiers"
    )]
    ValueTooLarge {
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A limit held for longer than `write_stall_limit`: the disk is slower than the callers, or is failing.
    #[error("busy: {what}{}", cause.as_ref().map(|c| format!(" (the last failure: {c})")).unwrap_or_default())]
    Busy {
        /// What was waited for.
        what: String,
        /// The failure that keeps writes from landing, if there is one.
        cause: Option<Arc<Error>>,
    },
    /// The maker given to `get_or_put_with` failed, or panicked; nothing is cached.
    #[error("the maker failed: {0}")]
    Maker(Arc<dyn std::error::Error + Send + Sync>),
    /// A maker asked the cache for the very key that it is making, or for one whose maker waits for that.
    #[error("the maker of a key asked for the same key again, itself or by way of other makers")]
    Recursive,
    /// The cache was closed.
    #[error("the cache is closed")]
    Closed,
    /// The operation needs a tier that this store does not have.
    #[error("this store has no {0} tier")]
    NoSuchTier(storage::Tier),
    /// A setting is impossible.
    #[error("{0}")]
    Config(String),
    /// Anything below the cache handle.
    #[error(transparent)]
    Storage(Arc<storage::Error>),
}

impl From<storage::Error> for Error {
    fn from(e: storage::Error) -> Error {
        match e {
            storage::Error::Locked { path } => Error::Locked { path },
            storage::Error::Busy(what) => Error::Busy { what: what.into(), cause: None },
            other => Error::Storage(Arc::new(other)),
        }
    }
}

impl From<ConfigError> for Error {
    fn from(e: ConfigError) -> Error {
        Error::Config(e.to_string())
    }
}

impl From<Arc<storage::Error>> for Error {
    fn from(e: Arc<storage::Error>) -> Error {
        match &*e {
            storage::Error::Locked { path } => Error::Locked { path: path.clone() },
            storage::Error::Busy(what) => Error::Busy { what: (*what).into(), cause: None },
            _ => Error::Storage(e),
        }
    }
}

impl Error {
    /// The storage layer's error, if it is one: to match on damage, missing directories, newer formats.
    ///
    /// ```
    /// use thermocline::{Cache, StorageError};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let nobody = Cache::builder().root(dir.path().join("nowhere")).check(|_| {});
    /// let error = nobody.map(|_| ()).unwrap_err();
    /// assert!(matches!(error.storage(), Some(StorageError::BadDirectory { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn storage(&self) -> Option<&storage::Error> {
        match self {
            Error::Storage(e) => Some(e),
            _ => None,
        }
    }
}
