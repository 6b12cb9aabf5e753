//! The directories that were named against those that the store knows: which are there, which are missing, forgotten
//! or mistyped, and which must not become one.
//!
//! Invariant: nothing here writes.

use crate::failure::Failure;
use serde_json::{Value, json};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thermocline::config::DirConfig;
use thermocline::{Config, StorageError, Tier};
use thermocline_storage::home::{DirInfo, Home, HomeRequest, OpenFlags, WantedDir};
use thermocline_storage::vfs::RealFs;

/// What may lie in a directory that becomes one of a store: what every ext4 file system has, and what an opening that
/// was cut short leaves (which makes its socket last: one where there is no identity is somebody else's).
const NOT_FOREIGN: [&str; 10] = [
    "lost+found",
    "store.a",
    "store.b",
    "lock",
    "catalog",
    "quarantine",
    "segments",
    "generations",
    "packs",
    "README.txt",
];

/// The directories of all disk tiers.
pub fn tier_dirs(config: &Config) -> impl Iterator<Item = &DirConfig> {
    dirs_by_tier(config).map(|(_, dir)| dir)
}

/// The same, each with its tier.
pub fn dirs_by_tier(config: &Config) -> impl Iterator<Item = (Tier, &DirConfig)> {
    let tiers =
        [(Tier::Ssd, &config.ssd.dirs), (Tier::Hdd, &config.hdd.dirs), (Tier::Cold, &config.cold.dirs)];
    tiers.into_iter().flat_map(|(tier, dirs)| dirs.iter().map(move |d| (tier, d)))
}

/// Whether a directory has the identity of a store, in either copy.
///
/// # Errors
/// It cannot be looked at, so that nobody knows.
pub fn is_store(dir: &Path) -> io::Result<bool> {
    for name in ["store.a", "store.b"] {
        match std::fs::metadata(dir.join(name)) {
            Ok(_) => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

/// Whether a directory of the store is where it was last.
pub fn is_there(dir: &DirInfo) -> bool {
    is_store(&dir.path).unwrap_or(true)
}

/// The options that name them.
pub fn options(dirs: &[DirInfo]) -> String {
    let options = dirs.iter().map(|d| format!("--{} {}", d.tier, d.path.display()));
    options.collect::<Vec<_>>().join(" ")
}

/// For programs: directories that were left out.
pub fn left_out_json(dirs: &[DirInfo]) -> Value {
    dirs.iter().map(|d| json!({ "tier": d.tier.name(), "path": d.path.to_string_lossy() })).collect()
}

/// For people: what it means that directories were left out. Empty: none was.
pub fn left_out_note(dirs: &[DirInfo]) -> String {
    match dirs {
        [] => String::new(),
        [one] => format!("opened without {}: what is in it is absent until it is back", one.path.display()),
        all => {
            let all: Vec<_> = all.iter().map(|d| d.path.display().to_string()).collect();
            format!("opened without {}: what is in them is absent until they are back", all.join(", "))
        }
    }
}

/// How the directories that were named stand to those that the store has.
#[derive(Debug)]
pub struct Roster {
    /// Of the store, and here.
    pub present: Vec<PathBuf>,
    /// Of the store and named, and not here.
    pub away: Vec<DirInfo>,
    /// Of the store and not named, where they were last.
    pub unnamed: Vec<DirInfo>,
    /// Named, and none of the store's.
    pub strangers: Vec<PathBuf>,
}

impl Roster {
    /// Asks those that are there. `None`: they do not say.
    pub fn of(config: &Config) -> Option<Roster> {
        let mut dirs = wanted(config);
        // What is no store's yet would be refused, and says nothing.
        dirs.retain(|d| is_store(&d.path).unwrap_or(false));
        let flags = OpenFlags { without_missing: true, read_only: true, ..OpenFlags::default() };
        let request = HomeRequest { dirs, catalog: config.storage.catalog.clone(), flags };
        let home = Home::open(Arc::new(RealFs), &request).ok()?;
        let named: Vec<(&Path, PathBuf)> =
            tier_dirs(config).map(|d| (d.path.as_path(), real(&d.path))).collect();
        let is_named = |d: &&DirInfo| named.iter().any(|(_, real)| *real == d.path);
        let (away, unnamed) = home.dirs().iter().filter(|d| !d.present).partition::<Vec<_>, _>(is_named);
        let known = |real: &Path| home.dirs().iter().any(|d| d.path == *real);
        let stranger = |(path, real): &&(&Path, PathBuf)| !known(real) && !is_store(path).unwrap_or(true);
        Some(Roster {
            present: home.dirs().iter().filter(|d| d.present).map(|d| d.path.clone()).collect(),
            away: away.into_iter().cloned().collect(),
            unnamed: unnamed.into_iter().cloned().collect(),
            strangers: named.iter().filter(stranger).map(|(path, _)| path.to_path_buf()).collect(),
        })
    }

    /// What to say of a store that was refused for a directory that is missing or not of it.
    fn failure(&self, e: thermocline::Error) -> Failure {
        let there = list(&self.present);
        let give_up = match self.unnamed.iter().any(is_there) {
            true => "",
            false => ", or give up what was in it (--discard-missing, with any command but verify)",
        };
        match (self.strangers.as_slice(), self.unnamed.as_slice()) {
            // One instead of the other: a slip of the pen, which `put --create` would not mend.
            ([stranger, ..], [_, ..]) => Failure::usage(format!(
                "{}: {}; what else was named ({there}) is of a store that also has {}, which is not named: is the \
                 name mistyped? Give that instead{}; if a new directory is meant, give both{give_up}",
                stranger.display(),
                absence(stranger),
                options(&self.unnamed),
                if self.unnamed.iter().all(is_there) { "" } else { ", once its disk is mounted" },
            )),
            ([], [_, ..]) => {
                let message = format!(
                    "not all directories of the store are named: give {}, too; or go on without what is in {} \
                     (--without-missing){give_up}",
                    options(&self.unnamed),
                    if self.unnamed.len() == 1 { "it" } else { "them" },
                );
                // Forgotten, which the command line mends, or away.
                let forgotten = self.away.is_empty() && self.unnamed.iter().all(is_there);
                if forgotten { Failure::usage(message) } else { Failure::failed(message) }
            }
            ([stranger, ..], []) if self.away.is_empty() => {
                no_store(std::slice::from_ref(stranger), &format!("joins it to the others ({there})"))
            }
            (strangers, []) => {
                let (away, why) = match e.storage() {
                    Some(StorageError::MissingDirectory { path, why }) => (path.display(), why),
                    _ => return e.into(),
                };
                let (are, mistyped) =
                    (if self.present.len() == 1 { "is" } else { "are" }, mistyped(strangers));
                Failure::failed(format!(
                    "{away}: {why}: mount it, or go on without it (--without-missing), or give up what was in it \
                     (--discard-missing, with any command but verify); of the store {there} {are} there{mistyped}"
                ))
            }
        }
    }
}

/// Refuses what would make a store, or join a directory to one. If any directory is one of a store, the engine
/// judges the others, without writing: it knows which of them are missing, and which are unknown to it.
pub fn check_is_store(config: &Config, flags: OpenFlags) -> Result<(), Failure> {
    let mut stores = 0;
    let mut others = Vec::new();
    for dir in tier_dirs(config) {
        if is_store(&dir.path).map_err(|e| Failure::given("look at", &dir.path, &e))? {
            stores += 1;
        } else {
            others.push(dir.path.clone());
        }
    }
    if others.is_empty() {
        return Ok(());
    }
    if stores == 0 {
        return Err(no_store(&others, "makes one"));
    }
    if flags.discard_missing {
        // What is given up joins as new: to be asked for twice would be once too often.
        return Ok(());
    }
    let request = HomeRequest { dirs: wanted(config), catalog: config.storage.catalog.clone(), flags };
    match Home::open(Arc::new(RealFs), &request) {
        Ok(_) => Ok(()),
        Err(e) => Err(refused(config, e.into())),
    }
}

/// What to say of a store that did not open.
pub fn refused(config: &Config, e: thermocline::Error) -> Failure {
    let joins = match e.storage() {
        Some(StorageError::MissingDirectory { .. }) => None,
        // A directory that is none of the store's would join it.
        Some(StorageError::BadDirectory { path, why })
            if why.starts_with("it is not part of the store yet") =>
        {
            Some(path.clone())
        }
        _ => return e.into(),
    };
    match (Roster::of(config), joins) {
        (Some(roster), _) => roster.failure(e),
        (None, Some(path)) => no_store(&[path], "joins it to the others"),
        (None, None) => e.into(),
    }
}

/// Refuses to make a store, or a part of one, of a directory in which something else lies. (A program may: the engine
/// touches nothing that it does not know.)
pub fn refuse_foreign(config: &Config) -> Result<(), Failure> {
    for dir in tier_dirs(config) {
        let path = &dir.path;
        if is_store(path).map_err(|e| Failure::given("look at", path, &e))? {
            continue;
        }
        let Some(found) = foreign(path).map_err(|e| Failure::given("list", path, &e))? else { continue };
        return Err(Failure::usage(format!(
            "{}: no store is there, and it is not empty ({found} is in it): name a directory that is empty or not there \
             yet, {} for one, or move away what is in it",
            path.display(),
            path.join("thermocline").display()
        )));
    }
    Ok(())
}

/// Something in a directory that is not the engine's; `None`: there is nothing, or no directory.
pub fn foreign(path: &Path) -> io::Result<Option<String>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let name = entry?.file_name();
        if !NOT_FOREIGN.iter().any(|known| name == *known) {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// The directories of all disk tiers, as the engine is asked for them.
fn wanted(config: &Config) -> Vec<WantedDir> {
    dirs_by_tier(config).map(|(tier, d)| WantedDir { tier, path: d.path.clone() }).collect()
}

/// Without links, as far as it is there.
pub fn real(path: &Path) -> PathBuf {
    let parent = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(parent).or_else(|| std::path::absolute(path).ok()).unwrap_or_default()
}

/// What a path is that is no store's directory.
fn absence(path: &Path) -> &'static str {
    if path.exists() { "no store is there" } else { "it does not exist" }
}

/// Asks whether these, which were named and are no store's, were meant.
fn mistyped(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| format!("; {}: {}: is the name mistyped?", p.display(), absence(p))).collect()
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn no_store(paths: &[PathBuf], create: &str) -> Failure {
    let (first, rest) =
        paths.split_first().map_or((PathBuf::new(), Vec::new()), |(f, r)| (f.clone(), r.to_vec()));
    let nor = if rest.is_empty() { String::new() } else { format!(", nor in {}", list(&rest)) };
    let gone = if first.exists() { "" } else { " (it does not exist)" };
    Failure::usage(format!(
        "{}: no store is there{gone}{nor}: check the name, or mount its disk; `thermocline put --create` {create}",
        first.display()
    ))
}
