//! What opening a tier finds.
//!
//! It names and counts; what is to be done about it has been done by the tier, and is told of by the engine.

use super::Known;
use std::path::PathBuf;

/// What a tier found at opening.
#[derive(Debug, Default)]
pub struct OpenReport {
    /// Containers that the catalog knows and the disk does not have.
    pub missing: Vec<Known>,
    /// Containers moved to the quarantine, and why.
    pub quarantined: Vec<(PathBuf, String)>,
    /// Leftovers deleted.
    pub deleted: u64,
    /// Of a tier that is only looked at: the ids of those known containers among `quarantined` that are attached all
    /// the same, so that their items can be named. An opening that may change things gives them up.
    pub given_up: Vec<u64>,
    /// Unknown containers, and copies of those of a directory that is away, that were left alone, or could not be read
    /// when they were to be attached, and why.
    pub unseen: Vec<(PathBuf, String)>,
}

impl OpenReport {
    /// Notes a container that is left where it is although it may hold items.
    pub(crate) fn leave(&mut self, path: PathBuf, why: impl Into<String>) {
        let why = why.into();
        tracing::warn!(path = %path.display(), %why, "a container is left alone where it lies");
        self.unseen.push((path, why));
    }
}

/// Why an unknown container that is older than a rebuilt catalog is left alone.
pub(crate) const NOT_SEEN: &str =
    "it was not seen when the catalog was rebuilt: rebuild it again to take it in";
/// Why a second container of one id is left alone.
pub(crate) const SECOND: &str = "a copy of one that cannot be read now: it may be all that is left of it";
/// Why what has the id of a container that is away is left alone.
pub(crate) const AWAY: &str = "it belongs to a directory that is not here: put it back there";
