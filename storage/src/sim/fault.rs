//! Calls of a file system that go wrong on purpose.
//!
//! Invariant: a fault strikes the calls that it names and no others; a call that failed may have done its work in
//! part, as a real disk's does, and never more than was asked for.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Interrupted by a signal.
pub const EINTR: i32 = 4;
/// Input/output error.
pub const EIO: i32 = 5;
/// Permission denied.
pub const EACCES: i32 = 13;
/// This process has too many open files.
pub const EMFILE: i32 = 24;
/// No space left on the device.
pub const ENOSPC: i32 = 28;
/// The file system is mounted for reading alone.
pub const EROFS: i32 = 30;
/// The quota is used up.
pub const EDQUOT: i32 = 122;

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Opening to read.
    Open,
    /// Opening to write what is there.
    OpenToWrite,
    /// Making a file.
    Create,
    /// Making a directory.
    MakeDir,
    /// Listing a directory.
    List,
    /// Asking what a path is.
    Kind,
    /// Renaming.
    Rename,
    /// Removing a file.
    RemoveFile,
    /// Removing a directory.
    RemoveDir,
    /// Making what happened in a directory durable.
    SyncDir,
    /// Asking for a lock.
    Lock,
    /// The moment after a lock was asked for.
    Locked,
    /// Reading from a file.
    Read,
    /// Writing to a file.
    Write,
    /// Reserving room for a file.
    Allocate,
    /// Making a file's bytes durable.
    Sync,
    /// Asking an open file for its length, or for what it occupies.
    Len,
    /// Asking for free space.
    Space,
    /// Asking for a path without links.
    Canonical,
    /// Asking for bytes that nobody can guess; on no path.
    Random,
}

impl Op {
    /// How many kinds there are.
    pub const COUNT: usize = Op::Random as usize + 1;

    /// Whether the call changes what a crash would leave. Allocation counts as none: it changes no byte.
    pub fn changes(self) -> bool {
        match self {
            Op::OpenToWrite
            | Op::Create
            | Op::MakeDir
            | Op::Rename
            | Op::RemoveFile
            | Op::RemoveDir
            | Op::SyncDir
            | Op::Lock
            | Op::Write
            | Op::Sync => true,
            Op::Open | Op::List | Op::Kind | Op::Locked | Op::Read | Op::Allocate => false,
            Op::Len | Op::Space | Op::Canonical | Op::Random => false,
        }
    }

    /// Whether the call is one of an open file, whatever has become of its name.
    pub(super) fn is_of_handle(self) -> bool {
        matches!(self, Op::Read | Op::Write | Op::Allocate | Op::Sync | Op::Len)
    }
}

/// One call.
#[derive(Debug)]
pub struct Call<'a> {
    /// What is called.
    pub op: Op,
    /// On which path; of a rename the new one.
    pub path: &'a Path,
    /// Of reads and writes, on which bytes.
    pub range: Range<u64>,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The call fails with this error of the system. Of a write, some bytes may have arrived.
    Error(i32),
    /// Fewer bytes are read or written than were asked for. Other calls fail with `EIO`.
    Short,
    /// A sync fails with `EIO`, and what was not synced is forgotten: some of it is on the disk, the rest never will be,
    /// and the next sync succeeds. Of a directory, that is what happened to its names. Other calls fail with `EIO`.
    Forgotten,
}

impl Trouble {
    /// The error that it is where the call can only fail.
    pub fn error(self) -> io::Error {
        let errno = match self {
            Trouble::Error(errno) => errno,
            Trouble::Short | Trouble::Forgotten => EIO,
        };
        io::Error::from_raw_os_error(errno)
    }
}

/// How a path can be away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Away {
    /// Nobody finds anything there, through handles that were open before neither.
    Missing,
    /// Somebody has renamed it: what was opened before works on.
    Renamed,
    /// Its disk is unplugged: names and handles give `EIO`.
    Unplugged,
}

impl Away {
    /// What a call gives that is about something that is away so.
    pub(super) fn error(self, op: Op) -> Option<io::Error> {
        match self {
            Away::Renamed if op.is_of_handle() => None,
            Away::Renamed | Away::Missing => Some(io::ErrorKind::NotFound.into()),
            Away::Unplugged => Some(io::Error::from_raw_os_error(EIO)),
        }
    }
}

type Hits = Box<dyn Fn(&Call<'_>) -> bool + Send + Sync>;

/// Calls that go wrong.
pub struct Fault {
    hits: Hits,
    below: PathBuf,
    after: u64,
    times: u64,
    trouble: Trouble,
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault")
            .field("below", &self.below)
            .field("after", &self.after)
            .field("times", &self.times)
            .field("trouble", &self.trouble)
            .finish_non_exhaustive()
    }
}

impl Fault {
    /// All calls of which this is true fail, with `EIO`.
    pub fn when(hits: impl Fn(&Call<'_>) -> bool + Send + Sync + 'static) -> Fault {
        let (hits, below) = (Box::new(hits), PathBuf::new());
        Fault { hits, below, after: 0, times: u64::MAX, trouble: Trouble::Error(EIO) }
    }

    /// All calls of this kind fail.
    pub fn on(op: Op) -> Fault {
        Fault::when(move |c| c.op == op)
    }

    /// All calls of these kinds fail.
    pub fn on_any(ops: &'static [Op]) -> Fault {
        Fault::when(|c| ops.contains(&c.op))
    }

    /// Below this path only.
    pub fn below(self, path: impl Into<PathBuf>) -> Fault {
        Fault { below: path.into(), ..self }
    }

    /// After so many that succeed.
    pub fn after(self, calls: u64) -> Fault {
        Fault { after: calls, ..self }
    }

    /// So many calls and no more.
    pub fn times(self, times: u64) -> Fault {
        Fault { times, ..self }
    }

    /// With this error.
    pub fn errno(self, errno: i32) -> Fault {
        self.trouble(Trouble::Error(errno))
    }

    /// In this way.
    pub fn trouble(self, trouble: Trouble) -> Fault {
        Fault { trouble, ..self }
    }

    /// Whether it is still to strike as often as it was told to.
    pub fn pending(&self) -> bool {
        self.times > 0
    }

    /// What goes wrong with this call, if anything does.
    pub fn check(&mut self, call: &Call<'_>) -> Option<Trouble> {
        if self.times == 0 || !call.path.starts_with(&self.below) || !(self.hits)(call) {
            return None;
        }
        if self.after > 0 {
            self.after -= 1;
            return None;
        }
        self.times = if self.times == u64::MAX { u64::MAX } else { self.times - 1 };
        Some(self.trouble)
    }
}
