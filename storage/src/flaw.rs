//! What a check finds wrong with a store's files, apart from the records: copies, footers, indexes. Nothing that is
//! served hangs on one of them alone; each is there for the day on which another piece is lost.
//!
//! Plain words for people; what a repair does about a flaw goes by its [`Part`].

use std::fmt;
use std::path::{Path, PathBuf};

/// What a damaged piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Part {
    /// The identity of a directory (`store.a`, `store.b`).
    Identity,
    /// The identity of the store, beside its catalog.
    Manifest,
    /// A checkpoint of the catalog.
    Checkpoint,
    /// A journal of the catalog.
    Journal,
    /// A container: a segment, a generation or a pack.
    Container,
    /// A copy of what says whose a container is.
    Header,
    /// The list of a segment's records at its end.
    Footer,
    /// The table at the head of a generation's block.
    Block,
    /// The index of a generation, or the seal that says what it was.
    Index,
    /// The central directory of a pack, which other programs read it by.
    Directory,
    /// An item's record.
    Record,
}

impl Part {
    /// One word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Identity => "identity",
            Part::Manifest => "manifest",
            Part::Checkpoint => "checkpoint",
            Part::Journal => "journal",
            Part::Container => "container",
            Part::Header => "header",
            Part::Footer => "footer",
            Part::Block => "block",
            Part::Index => "index",
            Part::Directory => "directory",
            Part::Record => "record",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing that is wrong and costs no item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The file, or the directory that an index is.
    pub path: PathBuf,
    /// What it is for.
    pub part: Part,
    /// What is wrong, in plain words.
    pub why: String,
}

impl Flaw {
    pub(crate) fn new(path: impl AsRef<Path>, part: Part, why: impl Into<String>) -> Flaw {
        Flaw { path: path.as_ref().to_path_buf(), part, why: why.into() }
    }
}
