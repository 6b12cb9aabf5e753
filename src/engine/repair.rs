//! The repair: check, mend, check again.
//!
//! What is damaged is never written over. What is there in two copies is written anew by the opening itself; a record
//! that does not verify is condemned as any reader would; and a container of which a header, a footer, a block or a
//! central directory is damaged has its live records copied to a new one, by the move protocol, and is dropped, as by
//! reclaim. So a crash at any point leaves what a crash of a running store leaves, and a store that a repair can be
//! begun on again. Indexes of generations are made anew by who always makes them.

use super::check::{CheckReport, Cost, Finding, Progress, Step, check};
use super::claim::Choice;
use super::moves::Mover;
use super::{Engine, Recovery, World};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::events::Events;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thermocline_storage::Error as StorageError;
use thermocline_storage::container::{DiskTier, Entry, Purpose};
use thermocline_storage::flaw::Part;
use thermocline_storage::home::OpenFlags;
use thermocline_storage::{Ident, Place, codec};

/// How long indexes that are made anew are waited for, for each that is to be, and once more.
const INDEX_WAIT: Duration = Duration::from_secs(60);

/// Nothing in it is alive, and it is still there: the second check reports it.
const NOT_DROPPED: &str = "nothing in it is needed any more, but it could not be dropped";
/// A container that nobody has claimed and nobody may: see [`claim`](super::claim).
const NOT_TO_BE_EMPTIED: &str = "it cannot be emptied now: it is still written to, it occupies nothing (its directory \
    may be away), or emptying it failed before";

/// What [`Builder::repair`](crate::Builder::repair) found and did.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RepairReport {
    /// The store as it was found: of a catalog that was rebuilt, after that.
    pub found: CheckReport,
    /// What was wrong, cost nothing, and is whole again.
    pub mended: Vec<Finding>,
    /// Items that are lost, by key where that is known. What is left of their bytes is in the quarantine.
    pub lost: Vec<Finding>,
    /// What is still wrong: it cannot be reached, or there was no room to write it anew.
    pub left: Vec<Finding>,
    /// Why some of that could not be mended, by the container's directory or file.
    pub failed: Vec<(PathBuf, String)>,
    /// What the opening found and did; `None` if the store was whole, and not opened.
    pub recovery: Option<Recovery>,
}

impl RepairReport {
    /// Whether nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.found.is_clean() && self.left.is_empty() && !self.recovery.as_ref().is_some_and(|r| r.rebuilt)
    }
}

/// Checks a store that nobody has open, mends what can be mended, and says what is lost.
pub(crate) fn repair(
    config: &Config,
    flags: OpenFlags,
    world: &World,
    events: &Arc<Events>,
    progress: &mut dyn FnMut(Progress),
) -> Result<RepairReport> {
    let mut report = RepairReport::default();
    let once = OpenFlags { rebuild_catalog: false, ..flags };
    // What can be rebuilt is checked when it has been.
    let found = if flags.rebuild_catalog {
        None
    } else {
        match check(config, once, world, Step::Check, progress) {
            Err(Error::Storage(e)) if matches!(*e, StorageError::CatalogLost { .. }) => None,
            found => Some(found?),
        }
    };
    report.found = match found {
        Some(found) => found,
        None => {
            let (engine, recovery) = open(config, flags, world, events, progress)?;
            engine.close()?;
            report.recovery = Some(recovery);
            check(config, once, world, Step::Check, progress)?
        }
    };
    if report.found.is_clean() {
        return Ok(report);
    }
    let (engine, recovery) = open(config, once, world, events, progress)?;
    report.failed = engine.mend(&report.found, progress);
    engine.close()?;
    report.recovery.get_or_insert(recovery);
    let after = check(config, once, world, Step::CheckAgain, progress)?;
    let is_left = |f: &Finding| after.findings.iter().any(|a| a.path == f.path && a.part == f.part);
    let costs = |f: &&Finding| matches!(f.cost, Cost::Lost(_));
    let found = &report.found.findings;
    report.lost = found.iter().filter(costs).cloned().collect();
    // What went to the quarantine as a whole is no longer there either, and is told of by the opening.
    let given_up = |f: &Finding| f.part == Part::Container && f.at.is_none();
    let mended = |f: &&Finding| f.cost == Cost::Nothing && !given_up(f) && !is_left(f);
    report.mended = found.iter().filter(mended).cloned().collect();
    report.left = after.findings;
    Ok(report)
}

fn open(
    config: &Config,
    flags: OpenFlags,
    world: &World,
    events: &Arc<Events>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Arc<Engine>, Recovery)> {
    progress(Progress { step: Step::Open, done: 0, of: 0 });
    // No thread is begun: nothing moves but what is mended.
    Engine::open(config, flags, world.clone(), events.clone())
}

impl Engine {
    /// Waits until the tiers have made the indexes that they are making, each at most so long; false if one has not.
    pub(crate) fn settle(&self, limit: Duration) -> bool {
        self.tiers.iter().filter(|tier| !tier.settle(limit)).count() == 0
    }

    /// Mends what a check found; gives what could not be, and why.
    fn mend(&self, found: &CheckReport, progress: &mut dyn FnMut(Progress)) -> Vec<(PathBuf, String)> {
        let indexes = found.findings.iter().filter(|f| f.part == Part::Index).count();
        // Before anything is read: a generation answers once its index is made.
        let patience =
            INDEX_WAIT.saturating_mul(u32::try_from(indexes).unwrap_or(u32::MAX).saturating_add(1));
        if !self.settle(patience) {
            self.log.warn("index", || "the indexes of the HDD tier are not all made yet".to_owned());
        }
        for finding in &found.findings {
            self.condemn_found(finding);
        }
        let mut containers: Vec<(u64, &Finding)> = Vec::new();
        for finding in &found.findings {
            let anew = matches!(
                finding.part,
                Part::Container | Part::Header | Part::Footer | Part::Block | Part::Directory
            );
            if let Some((id, None)) = finding.at
                && anew
                && !containers.iter().any(|(known, _)| *known == id)
            {
                containers.push((id, finding));
            }
        }
        let mut failed = Vec::new();
        let of = containers.len() as u64;
        for (done, (id, finding)) in (0..).zip(&containers) {
            progress(Progress { step: Step::Mend, done, of });
            if let Err(e) = self.renew(*id) {
                failed.push((finding.path.clone(), e.to_string()));
            }
        }
        failed
    }

    /// Condemns the record that a check found lost, if it is as the check found it.
    fn condemn_found(&self, finding: &Finding) {
        let (Cost::Lost(_), Some((id, Some((ident, place))))) = (finding.cost, finding.at) else { return };
        let Some(entry) = self.catalog.containers.get(place.container()).filter(|e| e.id == id) else {
            return;
        };
        if self.is_damaged(&entry, ident, place) {
            self.condemn(ident, place, &entry, &finding.why, finding.key.clone());
        }
    }

    /// Whether what stands there is not the item: by all that the check goes by.
    fn is_damaged(&self, entry: &Entry, ident: Ident, place: Place) -> bool {
        match entry.container.read(place.position()) {
            Ok(item) => {
                item.ident != ident
                    || self.hasher.ident(&item.key) != ident
                    || codec::decode(item.codec, &item.payload, item.original_len).is_err()
            }
            Err(e) => e.is_corrupt(),
        }
    }

    /// Writes what is alive in a container to a new one of the same tier, and drops it.
    fn renew(&self, id: u64) -> Result<()> {
        // It may have gone to the quarantine as a whole.
        let Some(entry) = self.catalog.containers.all().into_iter().find(|e| e.id == id) else {
            return Ok(());
        };
        let Some(tier) = self.tier(entry.tier) else { return Ok(()) };
        if entry.container.occupied() == 0 {
            // Its file is empty, so there is nothing to copy, and nobody may claim it for that: what the catalog has in it
            // yet, such as what has expired, does not verify and is dead.
            self.unlisted(&entry);
        }
        if entry.live() == 0 {
            self.drop_empty(tier, Some(self.drop_wait()), u64::MAX);
            let stays = self.catalog.containers.all().iter().any(|e| e.id == id);
            return if stays { Err(StorageError::Busy(NOT_DROPPED).into()) } else { Ok(()) };
        }
        let claims = self.claims(entry.tier);
        let choice = claims.choose(
            false,
            || self.catalog.containers.of_tier(entry.tier),
            |all| all.into_iter().filter(|e| e.id == id).collect(),
        );
        let claim = match choice {
            Choice::Claimed(claim) => claim,
            Choice::Others => return Err(StorageError::Busy("others are emptied just now").into()),
            Choice::Nothing => return Err(StorageError::Busy(NOT_TO_BE_EMPTIED).into()),
        };
        self.copy_out(tier, &entry)?;
        if entry.live() > 0 {
            let why = format!("{} of its items cannot be read for now, and stay there", entry.live());
            return Err(StorageError::io("empty", PathBuf::new(), std::io::Error::other(why)).into());
        }
        let gone = self.drop_container(tier, &entry, Some(self.drop_wait()))?;
        drop(claim);
        if gone { Ok(()) } else { Err(StorageError::Busy(NOT_DROPPED).into()) }
    }

    fn copy_out(&self, tier: &Arc<dyn DiskTier>, entry: &Arc<Entry>) -> Result<()> {
        let listed = self.catalog.live_in(entry, entry.container.list()?);
        let movers: Vec<Mover> =
            listed.into_iter().map(|listed| Mover { entry: entry.clone(), listed }).collect();
        self.relocate(&movers, tier, Purpose::Reclaim, true)?;
        if entry.live() > 0 {
            self.relocate(&self.unlisted(entry), tier, Purpose::Reclaim, true)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
