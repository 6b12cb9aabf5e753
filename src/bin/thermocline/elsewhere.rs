//! A store that another process has open: what is asked of it over the socket in its directory.
//!
//! Invariant: whatever keeps it from answering, the exit code is that of a store that is open in another process, with what
//! is to be done.

use crate::dirs::{is_store, tier_dirs};
use crate::failure::{Failure, LOCKED};
use crate::options::OpenArgs;
use serde_json::{Value, json};
use std::path::PathBuf;
use thermocline::remote::{Error, OpenStore};

/// Asks whoever has the store open that was refused with `locked`. Any other failure stays what it is.
pub fn ask(args: &OpenArgs, locked: Failure) -> Result<OpenStore, Failure> {
    // To give something up is no question.
    if locked.code != LOCKED || args.discards() {
        return Err(locked);
    }
    let Ok(config) = args.which.config() else { return Err(locked) };
    let dirs: Vec<PathBuf> = tier_dirs(&config).map(|d| d.path.clone()).collect();
    // What is none of the store's would go unnoticed.
    if dirs.iter().any(|dir| !is_store(dir).unwrap_or(false)) {
        return Err(locked);
    }
    OpenStore::find(&dirs).map_err(|e| Failure { code: LOCKED, message: format!("{}; {e}", locked.message) })
}

/// Why it gave no answer.
pub fn unanswered(e: Error) -> Failure {
    Failure { code: LOCKED, message: e.to_string() }
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
