//! The check: everything of a closed store is read, and nothing of it is changed.
//!
//! There is no engine behind it: the directories are locked and judged, the catalog is replayed into memory, and the
//! tiers are attached as they lie there, all of it on a file system that refuses every change. Containers are read one
//! after the other, each in the order of its records.
//!
//! Invariants:
//! - not a byte, a name, a mode or a time of any file is different afterwards, whatever was found;
//! - what a crash alone can leave (a torn end of the journal, a segment without a footer, a generation whose index is
//!   not written yet, leftovers) is no damage; what no crash leaves is, whether it costs an item or not;
//! - memory is bounded by the catalog, what was found, and a million places.

use super::open::{World, open_tiers, request, setup};
use super::read::expired;
use super::rebuild;
use crate::config::Config;
use crate::error::Result;
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use thermocline_storage::catalog::{Catalog, Recovered};
use thermocline_storage::clock::EngineClock;
use thermocline_storage::container::{DiskTier, Entry, OpenReport, Unknown};
use thermocline_storage::flaw::{Flaw, Part};
use thermocline_storage::home::{Home, OpenFlags};
use thermocline_storage::vfs::ReadOnly;
use thermocline_storage::{Error as StorageError, Hasher, Ident, Item, Place, Tier, codec};

/// Places that are held at a time: for each so many the index is gone through once.
const PLACES: u64 = 1 << 20;

/// What something that is wrong costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cost {
    /// No item: another copy has it, or it can be made again.
    Nothing,
    /// So many items: nobody has their bytes any more.
    Lost(u64),
    /// So many items, as long as what they stand on cannot be read; 0: nobody knows how many.
    OutOfReach(u64),
}

/// One thing that a check found wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The tier; `None`: the store's catalog or identity.
    pub tier: Option<Tier>,
    /// The file or directory.
    pub path: PathBuf,
    /// What of the store it is.
    pub part: Part,
    /// The key of the item, where it is one's record and something still says whose.
    pub key: Option<Bytes>,
    /// What is wrong, in plain words.
    pub why: String,
    /// What it costs.
    pub cost: Cost,
    /// The container's id, and the record in it.
    pub(super) at: Option<(u64, Option<(Ident, Place)>)>,
}

#[cfg(feature = "remote")]
impl Finding {
    /// One that was told by another process of a record in a store that it has open.
    pub(crate) fn of_record(
        tier: Option<Tier>,
        path: PathBuf,
        key: Option<Bytes>,
        why: String,
        cost: Cost,
    ) -> Finding {
        Finding { tier, path, part: Part::Record, key, why, cost, at: None }
    }
}

/// What [`Builder::check`](crate::Builder::check) found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CheckReport {
    /// Live items read and found right, from key to decoded value.
    pub items: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Containers looked at.
    pub containers: u64,
    /// Items that were not looked at, of a store that another process has open: their newest values wait to be written, or
    /// moved each time that they were to be read.
    pub unwritten: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether everything that was read was right, and nothing was out of reach.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// How far a check or a repair has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What is being done.
    pub step: Step,
    /// Items (containers, while it mends) that are done.
    pub done: u64,
    /// Of so many; 0: nobody knows.
    pub of: u64,
}

/// What a check or a repair is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Reading everything.
    Check,
    /// Opening the store to mend it, and rebuilding its catalog where that is lost.
    Open,
    /// Writing anew what is damaged.
    Mend,
    /// Reading everything again, to see what is left.
    CheckAgain,
}

/// Reads and checks a store that nobody has open, without changing anything.
pub(crate) fn check(
    config: &Config,
    flags: OpenFlags,
    world: &World,
    step: Step,
    progress: &mut dyn FnMut(Progress),
) -> Result<CheckReport> {
    if !world.simulated {
        config.validate()?;
    }
    if !config.has_disk() {
        return Ok(CheckReport::default());
    }
    let world = World { vfs: Arc::new(ReadOnly::new(world.vfs.clone())), threads: false, ..world.clone() };
    let flags = OpenFlags { read_only: true, rebuild_catalog: false, ..flags };
    let home = Home::open(world.vfs.clone(), &request(config, flags))?;
    if home.catalog_must_rebuild() {
        let why = "its rebuilding was interrupted, and is done again by the next opening".to_owned();
        return Err(StorageError::CatalogLost { path: home.catalog_dir().to_path_buf(), why }.into());
    }
    let found = read_all(config, &home, &world, step, progress);
    // Whatever went wrong: where somebody opened the store meanwhile, that is why.
    home.nobody_came()?;
    found
}

fn read_all(
    config: &Config,
    home: &Home,
    world: &World,
    step: Step,
    progress: &mut dyn FnMut(Progress),
) -> Result<CheckReport> {
    let clock = Arc::new(EngineClock::new(world.clock.clone()));
    let (catalog, recovered) = Catalog::open(setup(home, world, clock, true))?;
    let known = (Unknown::Ignore, rebuild::older(home, false));
    let (tiers, opened): (Vec<Arc<dyn DiskTier>>, Vec<OpenReport>) =
        open_tiers(config, home, world, &catalog, &recovered, known, &Arc::default())?.into_iter().unzip();
    catalog.count_live();
    let hasher = Hasher::new(home.secret());
    let mut checker =
        Checker { catalog: &catalog, hasher, report: CheckReport::default(), given_up: HashSet::new() };
    checker.copies(home, &recovered);
    for (tier, found) in tiers.iter().zip(opened) {
        checker.opened(tier.tier(), found);
    }
    checker.missing(home, &recovered);
    checker.containers(home, &mut |done, of| progress(Progress { step, done, of }));
    Ok(checker.report)
}

struct Checker<'a> {
    catalog: &'a Catalog,
    hasher: Hasher,
    report: CheckReport,
    /// Ids of containers that an opening moves to the quarantine.
    given_up: HashSet<u64>,
}

impl Checker<'_> {
    fn find(&mut self, tier: Option<Tier>, path: PathBuf, part: Part, why: String, cost: Cost) {
        self.report.findings.push(Finding { tier, path, part, key: None, why, cost, at: None });
    }

    fn flaw(&mut self, flaw: Flaw, of: Option<&Entry>) {
        let Flaw { path, part, why } = flaw;
        let (tier, at) = (of.map(|e| e.tier), of.map(|e| (e.id, None)));
        self.report.findings.push(Finding { tier, path, part, key: None, why, cost: Cost::Nothing, at });
    }

    /// What is there in two copies.
    fn copies(&mut self, home: &Home, recovered: &Recovered) {
        for flaw in home.flaws().into_iter().chain(recovered.flaws.iter().cloned()) {
            self.flaw(flaw, None);
        }
        let mut unseen = Vec::new();
        if home.rebuilt_in_part().is_some() {
            rebuild::away(home, &mut unseen);
        }
        for (path, why) in unseen {
            self.find(None, path, Part::Container, why, Cost::OutOfReach(0));
        }
    }

    /// What the tiers found when they looked for their containers.
    fn opened(&mut self, tier: Tier, found: OpenReport) {
        for (path, why) in found.quarantined {
            self.find(Some(tier), path, Part::Container, why, Cost::Nothing);
        }
        for (path, why) in found.unseen {
            self.find(Some(tier), path, Part::Container, why, Cost::OutOfReach(0));
        }
        self.given_up.extend(found.given_up);
    }

    /// Containers that the catalog knows and the disk does not have, and directories that are not here.
    fn missing(&mut self, home: &Home, recovered: &Recovered) {
        let path = |no: u16| home.dirs().iter().find(|d| d.no == no).map(|d| d.path.clone());
        for known in recovered.containers.iter().filter(|k| self.catalog.containers.get(k.no).is_none()) {
            // A crash after its last record went and before the catalog heard of its end leaves one, too.
            let items = self.catalog.pointing_at(known.no).len() as u64;
            if items > 0 {
                let why = format!(
                    "the container in it whose name ends in {:016x} is gone, with all in it",
                    known.id
                );
                let path = path(known.dir).unwrap_or_default();
                self.find(Some(known.tier), path, Part::Container, why, Cost::Lost(items));
            }
        }
        for dir in home.dirs().iter().filter(|d| !d.present) {
            let of_dir = self.catalog.containers.of_tier(dir.tier).into_iter().filter(|e| e.dir == dir.no);
            let items = of_dir.map(|e| e.live()).sum();
            let why = "the directory is not here".to_owned();
            self.find(Some(dir.tier), dir.path.clone(), Part::Container, why, Cost::OutOfReach(items));
        }
    }

    /// Reads every container that is here, so many at a time that the places of their live records are few.
    fn containers(&mut self, home: &Home, progress: &mut dyn FnMut(u64, u64)) {
        let away: HashSet<u16> = home.dirs().iter().filter(|d| !d.present).map(|d| d.no).collect();
        let mut entries = self.catalog.containers.all();
        entries.retain(|e| !away.contains(&e.dir));
        let of: u64 = entries.iter().map(|e| e.live()).sum();
        let mut done = 0;
        let mut rest = entries.as_slice();
        progress(0, of);
        while !rest.is_empty() {
            let mut places = 0;
            let count = rest.iter().take_while(|e| {
                let first = places == 0;
                places += e.live();
                first || places <= PLACES
            });
            let count = count.count().max(1);
            let (group, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            rest = later;
            let numbers: HashSet<u16> = group.iter().map(|e| e.no).collect();
            let mut live: HashMap<u16, Vec<(u32, Ident)>> = HashMap::new();
            for (ident, place) in self.catalog.pointing_into(|no| numbers.contains(&no)) {
                live.entry(place.container()).or_default().push((place.position(), ident));
            }
            for entry in group {
                let mut records = live.remove(&entry.no).unwrap_or_default();
                records.sort_unstable();
                self.container(entry, &records);
                done += records.len() as u64;
                progress(done, of);
            }
        }
        self.report.containers = entries.len() as u64;
    }

    fn container(&mut self, entry: &Entry, records: &[(u32, Ident)]) {
        let positions: Vec<u32> = records.iter().map(|(position, _)| *position).collect();
        let mut idents = records.iter().map(|(_, ident)| *ident);
        let flaws = entry.container.examine(&positions, &mut |position, read| {
            if let (Some(ident), Some(place)) = (idents.next(), Place::new(entry.no, position)) {
                self.record(entry, (ident, place), read);
            }
        });
        // Of one that nothing identifies that was said already.
        if !self.given_up.contains(&entry.id) {
            flaws.into_iter().for_each(|flaw| self.flaw(flaw, Some(entry)));
        }
    }

    fn record(&mut self, entry: &Entry, at: (Ident, Place), read: Result<Item, StorageError>) {
        let (ident, place) = at;
        match read {
            Ok(item) => {
                let expires_at = self.catalog.changed_expiry(ident, place).unwrap_or(item.expires_at);
                if expired(expires_at, self.catalog.now()) {
                    return;
                }
                let wrong = if self.given_up.contains(&entry.id) {
                    Some("nothing says any more what its container is")
                } else if item.ident != ident || self.hasher.ident(&item.key) != ident {
                    Some("the record is of another identity")
                } else {
                    match codec::decode(item.codec, &item.payload, item.original_len) {
                        Ok(value) => {
                            self.report.items += 1;
                            self.report.bytes += value.len() as u64;
                            None
                        }
                        Err(why) => Some(why),
                    }
                };
                if let Some(why) = wrong {
                    let path = entry.container.raw(place.position()).map(|r| r.path);
                    self.lost(entry, at, Some(item.key), (path, why.to_owned()), Cost::Lost(1));
                }
            }
            Err(e) if e.is_corrupt() => {
                // What has expired is absent anyhow, as far as that can still be read.
                let head = || entry.container.head(place.position()).ok().map(|head| head.expires_at);
                let expires_at = self.catalog.changed_expiry(ident, place).or_else(head);
                if expires_at.is_some_and(|at| expired(at, self.catalog.now())) {
                    return;
                }
                let key = entry.container.key(place.position());
                self.lost(entry, at, key, told(&e), Cost::Lost(1));
            }
            Err(e) => self.lost(entry, at, None, told(&e), Cost::OutOfReach(1)),
        }
    }

    fn lost(
        &mut self,
        entry: &Entry,
        at: (Ident, Place),
        key: Option<Bytes>,
        (path, why): (Option<PathBuf>, String),
        cost: Cost,
    ) {
        // What stands there may be another item's, which is not to be called lost.
        let key = key.filter(|key| self.hasher.ident(key) == at.0);
        let (tier, part, path) = (Some(entry.tier), Part::Record, path.unwrap_or_default());
        self.report.findings.push(Finding {
            tier,
            path,
            part,
            key,
            why,
            cost,
            at: Some((entry.id, Some(at))),
        });
    }
}

/// Where an error is, and what it says.
fn told(e: &StorageError) -> (Option<PathBuf>, String) {
    let path = match e {
        StorageError::Io { path, .. } | StorageError::Corrupt { path, .. } => Some(path.clone()),
        _ => None,
    };
    let why = match e {
        StorageError::Corrupt { offset, what, .. } => format!("damaged at byte {offset}: {what}"),
        StorageError::Io { op, source, .. } => format!("cannot {op}: {source}"),
        e => e.to_string(),
    };
    (path, why)
}
