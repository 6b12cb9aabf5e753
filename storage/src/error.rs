//! Errors of the storage layer: each names the operation, the path and the cause.
//!
//! Invariants: what a person can mend says how; what the engine has to tell apart (bytes that are wrong, bytes out of
//! reach, no room, a container that is gone) is a variant or a method here, never a look at a text.

use crate::types::Tier;
use std::io;
use std::path::{Path, PathBuf};

/// Result of a storage operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong below the cache handle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb: `open`, `append to`, `sync`.
        op: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes on disk are not what was written there.
    #[error("{}: damaged at byte {offset}: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was found.
        what: String,
    },
    /// The container was dropped; look the key up again.
    #[error("container {0} is gone")]
    Gone(u16),
    /// The tier has no room for the bytes within its limit.
    #[error("the {tier} tier has no room for {needed} bytes within its limit of {limit}")]
    NoSpace {
        /// The tier.
        tier: Tier,
        /// Bytes that were to be written.
        needed: u64,
        /// The limit of the tier in bytes.
        limit: u64,
    },
    /// There are as many containers as there can be.
    #[error("all {most} container numbers are in use: larger segments, generations or packs need fewer")]
    NoNumber {
        /// How many there are.
        most: u32,
    },
    /// One item is larger than the tier can ever hold.
    #[error("an item of {size} bytes is larger than the {tier} tier can hold ({limit})")]
    TooLarge {
        /// The tier.
        tier: Tier,
        /// Size of the item's record.
        size: u64,
        /// The largest record the tier takes.
        limit: u64,
    },
    /// A value was not read because it is longer than the reader allowed for.
    #[error("the value takes {bytes} bytes of memory, more than was allowed for")]
    Oversized {
        /// Its stored and its original length together.
        bytes: u64,
    },
    /// The directory is in use by another process (or by another handle of this one).
    #[error("{}: in use by another process, or by another handle of this one", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A file was written by a newer version of the engine.
    #[error("{}: format {found}, this version reads up to {supported}: upgrade the program that opens it", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format number.
        found: u32,
        /// The newest format known here.
        supported: u32,
    },
    /// The directory belongs to another store.
    #[error("{}: belongs to another store ({found}, not {expected}): give each store directories of its own", path.display())]
    OtherStore {
        /// The directory.
        path: PathBuf,
        /// The store that it belongs to.
        found: String,
        /// The store that is being opened.
        expected: String,
    },
    /// The directory cannot be used as one of a store.
    #[error("{}: {why}", path.display())]
    BadDirectory {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// A directory of the store is missing, not given, or older than the catalog knows.
    #[error("{}: {why}; mount it and name it, or open without it, or discard it", path.display())]
    MissingDirectory {
        /// What was given; if nothing was, where it was last seen.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The catalog is damaged in both copies, or behind its directories.
    #[error("{}: the catalog is lost ({why}); first see that the right disks are mounted, otherwise rebuild it from the containers (removed and overwritten items may come back)", path.display())]
    CatalogLost {
        /// The catalog's directory.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// Out of a resource that the engine bounds, after waiting for it.
    #[error("busy: {0}")]
    Busy(&'static str),
    /// A dependency failed: it panicked, hung or reported its own data damaged.
    #[error("{what} failed: {why}")]
    Dependency {
        /// Which.
        what: &'static str,
        /// What it said.
        why: String,
    },
    /// The tier or directory is out of service after failing.
    #[error("{}: out of service: {why}", path.display())]
    OutOfService {
        /// The directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl Error {
    /// An I/O error, naming what was done to what.
    pub fn io(op: &'static str, path: impl AsRef<Path>, source: io::Error) -> Error {
        Error::Io { op, path: path.as_ref().to_path_buf(), source }
    }

    /// Damage at a byte of a file.
    pub fn corrupt(path: impl AsRef<Path>, offset: u64, what: impl Into<String>) -> Error {
        Error::Corrupt { path: path.as_ref().to_path_buf(), offset, what: what.into() }
    }

    /// Whether the bytes themselves are wrong (as against unreachable for now).
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Error::Corrupt { .. })
    }

    /// Whether there was no room: the tier's limit, the file system's, or that of the number of containers.
    pub fn is_no_space(&self) -> bool {
        match self {
            Error::NoSpace { .. } | Error::NoNumber { .. } => true,
            Error::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// Adds the operation and the path to an [`io::Result`].
pub trait IoContext<T> {
    /// Names what was done to what.
    fn at(self, op: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, op: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::io(op, path, e))
    }
}
