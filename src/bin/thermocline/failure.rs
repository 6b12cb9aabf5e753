//! What ends a subcommand early: one line that names the thing and the cure, and the exit code.
//!
//! Invariant: every way out of the command has one of the codes of [`EXIT_CODES`], which `--help` prints.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use thermocline::{ConfigError, Error, StorageError};

/// Done, and what was asked for was found right.
pub const OK: u8 = 0;
/// A key was not found, or damage was.
pub const NOT_FOUND: u8 = 1;
/// The command line or the configuration is wrong.
pub const USAGE: u8 = 2;
/// The store is open elsewhere, or is not though it has to be.
pub const LOCKED: u8 = 3;
/// The disk or the store failed.
pub const FAILED: u8 = 4;
/// Stopped by a signal.
pub const INTERRUPTED: u8 = 130;

/// The codes, as `--help` tells them.
pub const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  a key was not found, or a value or the store was found damaged
    2  the command line or the configuration is wrong
    3  the store is open in another process; stat, ls: and that does not answer;
       top, history: it is open in none, or that does not answer
    4  the disk or the store failed
  130  interrupted";

/// What a refused access means, and the cure.
pub const PERMISSION: &str = "permission denied: chown it, or run this as its owner";

/// Opens a file that the command line names, for reading; a directory is refused at once.
pub fn open_given(path: &Path) -> Result<File, Failure> {
    let opened = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => Ok(file),
    });
    opened.map_err(|e| Failure::given("read", path, &e))
}

/// A directory that the command line names and that has to be there.
pub fn check_dir(path: &Path) -> Result<(), Failure> {
    let found = std::fs::metadata(path).and_then(|meta| match meta.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    });
    found.map_err(|e| Failure::given("look at", path, &e))
}

/// Why a subcommand ended early.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// One line for stderr; empty: say nothing.
    pub message: String,
    /// More such lines.
    pub more: Vec<String>,
}

/// Result of a subcommand: its exit code.
pub type Outcome = Result<u8, Failure>;

impl Failure {
    /// What ends it, with a code.
    pub fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), more: Vec::new() }
    }

    /// The command line or the configuration is wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(USAGE, message)
    }

    /// All that is wrong with a configuration, each on its line.
    pub fn config(e: &ConfigError) -> Failure {
        let mut first = e.clone();
        let others = std::mem::take(&mut first.others);
        Failure {
            more: others.iter().map(ToString::to_string).collect(),
            ..Failure::usage(first.to_string())
        }
    }

    /// The disk or the store failed.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::new(FAILED, message)
    }

    /// What a system call on a file said.
    pub fn io(doing: &str, path: &Path, e: &io::Error) -> Failure {
        Failure::failed(format!("{doing} {}: {e}", path.display()))
    }

    /// The same of a path that the command line names: it is a wrong command line if nothing is there, or not what
    /// was wanted. What the system forbids keeps its own code, with the cure.
    pub fn given(doing: &str, path: &Path, e: &io::Error) -> Failure {
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Failure::usage(format!("{path:?}: no name of a file has a zero byte in it"));
        }
        let path = path.display();
        match e.kind() {
            io::ErrorKind::NotFound => Failure::usage(format!("{path}: it does not exist: check the name")),
            io::ErrorKind::NotADirectory => {
                Failure::usage(format!("{path}: it is, or lies below, a file: name a directory"))
            }
            io::ErrorKind::IsADirectory => Failure::usage(format!("{path}: it is a directory: name a file")),
            io::ErrorKind::PermissionDenied => Failure::failed(format!(
                "{path}: permission denied to {doing} it: chown it, or run this as its owner"
            )),
            io::ErrorKind::ReadOnlyFilesystem => Failure::failed(format!(
                "{doing} {path}: its file system is read-only: mount it for writing, or name another place"
            )),
            _ => Failure::failed(format!("{doing} {path}: {e}")),
        }
    }

    /// Whether whoever read our output went away (`ls | head`): no failure at all.
    fn is_quiet(&self) -> bool {
        self.message.is_empty()
    }

    /// Reports it and gives the code to exit with.
    pub fn report(&self) -> ExitCode {
        if !self.is_quiet() {
            let line =
                |text: &String| format!("thermocline: {}\n", crate::show::safe(&text.replace('\n', " ")));
            let lines: String = std::iter::once(&self.message).chain(&self.more).map(line).collect();
            let _ = io::Write::write_all(&mut io::stderr().lock(), lines.as_bytes());
        }
        ExitCode::from(self.code)
    }
}

/// Writing to stdout or stderr failed.
impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        if e.kind() == io::ErrorKind::BrokenPipe {
            return Failure::new(OK, "");
        }
        Failure::failed(format!("write the output: {e}"))
    }
}

impl From<serde_json::Error> for Failure {
    fn from(e: serde_json::Error) -> Failure {
        Failure::from(io::Error::from(e))
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        let code = match &e {
            Error::Locked { .. } => LOCKED,
            Error::Config(_) | Error::BadKey { .. } | Error::ValueTooLarge { .. } | Error::NoSuchTier(_) => {
                USAGE
            }
            // A file in the way, another store's directory, another tier's, one of two copies: the wrong was named.
            Error::Storage(e)
                if matches!(**e, StorageError::BadDirectory { .. } | StorageError::OtherStore { .. }) =>
            {
                USAGE
            }
            _ => FAILED,
        };
        Failure::new(code, with_cure(&e))
    }
}

/// The engine's errors speak to programs; where an option or a tool is the cure, this names it.
fn with_cure(e: &Error) -> String {
    if let Error::Locked { path } = e {
        let lock = path.join("lock");
        return format!(
            "{}: in use by another process: close that one first; `fuser {}` says which it is",
            path.display(),
            lock.display()
        );
    }
    match e.storage() {
        Some(StorageError::MissingDirectory { path, why }) => format!(
            "{}: {why}: mount it, or name it if it is not named (--ssd, --hdd or --cold DIR), or go on without it (--without-missing), or give up what was in it \
             (--discard-missing, with any command but verify)",
            path.display()
        ),
        Some(StorageError::CatalogLost { path, why }) => format!(
            "{}: the catalog is lost ({why}): first see that the right disks are mounted, that of the catalog above \
             all, and, where it was moved, named (--catalog DIR); only if it is lost for good, `thermocline verify --rebuild-catalog` builds one from what is there, \
             and removed and overwritten items may be among it",
            path.display()
        ),
        _ => one_line(e),
    }
}

fn one_line(e: &dyn Display) -> String {
    e.to_string()
}
