//! A store that another process has open: what is asked of it over the socket in its directory.
//!
//! Invariant: whatever keeps it from answering, the exit code is that of a store that is open in another process, with what
//! is to be done.

use crate::dirs::{is_store, real, tier_dirs};
use crate::failure::{Failure, LOCKED};
use crate::options::OpenArgs;
use serde_json::{Value, json};
use std::path::PathBuf;
use thermocline::remote::{Error, OpenStore};
use thermocline_storage::home::{Whose, whose};
use thermocline_storage::vfs::RealFs;

/// Asks whoever has the store open that was refused with `locked`. Any other failure stays what it is.
pub fn ask(args: &OpenArgs, locked: Failure) -> Result<OpenStore, Failure> {
    // To give something up is no question.
    if locked.code != LOCKED || args.discards() {
        return Err(locked);
    }
    let Ok(config) = args.which.config() else { return Err(locked) };
    let mut dirs: Vec<PathBuf> = tier_dirs(&config).map(|d| d.path.clone()).collect();
    let known = one_store(&dirs)?;
    // What is none of the store's would go unnoticed; what is away is left out if that was asked for.
    let left_out = |dir: &PathBuf| args.goes_on_without() && known.contains(&real(dir));
    dirs.retain(|dir| !left_out(dir) || is_store(dir).unwrap_or(false));
    if dirs.iter().any(|dir| !is_store(dir).unwrap_or(false)) {
        return Err(locked);
    }
    OpenStore::find(&dirs).map_err(|e| Failure::new(LOCKED, format!("{}; {e}", locked.message)))
}

/// Refuses directories of two stores, one of which would be asked for both; gives where all those of the one store were at its
/// last opening. What is no store's directory, or does not say, is passed over.
pub fn one_store(dirs: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut first: Option<(&PathBuf, Whose)> = None;
    for dir in dirs {
        let Ok(Some(whose)) = whose(&RealFs, dir) else { continue };
        match &first {
            Some((other, of)) if of.store != whose.store => {
                return Err(Failure::usage(format!(
                    "{}: it belongs to another store than {}: name the directories of one",
                    dir.display(),
                    other.display()
                )));
            }
            Some(_) => {}
            None => first = Some((dir, whose)),
        }
    }
    Ok(first.map(|(_, of)| of.dirs.into_iter().map(|(_, path)| path).collect()).unwrap_or_default())
}

/// Nobody can be asked, of what only a process that has the store open knows.
pub fn nobody(e: Error) -> Failure {
    match e {
        Error::NoSocket { path } => Failure::new(
            LOCKED,
            format!(
                "{}: nobody to ask: no program has the store open, or the one that has is older, was built without the \
                 feature `remote`, has `storage.socket = false`, or is checking it; `thermocline stat` shows what a store holds that is not open",
                path.display()
            ),
        ),
        e => unanswered(e),
    }
}

/// Why it gave no answer.
pub fn unanswered(e: Error) -> Failure {
    Failure::new(LOCKED, e.to_string())
}

/// For people: who has it open.
pub fn note(store: &OpenStore, what: &str) -> String {
    let process = store.process().map_or("another process".to_owned(), |p| format!("process {p}"));
    format!("the store is open in {process}, {what} ({})", store.socket().display())
}

/// For programs; null: it is not open elsewhere.
pub fn note_json(store: Option<&OpenStore>) -> Value {
    store.map_or(Value::Null, |s| json!({ "process": s.process(), "socket": s.socket().to_string_lossy() }))
}
