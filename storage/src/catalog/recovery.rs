//! Opening: from a checkpoint and the journals after it back to the catalog.
//!
//! Invariants:
//! - replay goes by number and compares no versions;
//! - a batch is taken from whichever copy verifies; the union of both is written and synced into both before the
//!   first answer, so that what was read once is read again;
//! - a gap at or below a number that some batch names as durable is a lost catalog, never a shorter history; a gap
//!   above every such number is a torn tail, and the journal is cut there;
//! - an older checkpoint is never a substitute for the newest one that was published in both copies.
//!
//! A crash during recovery leaves the same files, or the union in both copies, or also an empty new journal pair.

use super::checkpoint::checkpoint_path;
use super::frame::Frame;
use super::journal::{COPIES, journal_path};
use super::replay::{Replay, read_heads};
use super::{Catalog, SHARDS};
use crate::clock::EngineClock;
use crate::container::{Known, Listed};
use crate::error::{Error, IoContext, Result};
use crate::flaw::Flaw;
use crate::ident::Ident;
use crate::types::{Place, Version};
use crate::vfs::{OpenMode, Vfs, VfsFile};
use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Sequence numbers of files stay below this.
const MAX_SEQ: u64 = 1 << 62;
/// A rebuilt catalog numbers its frames this far above any that a damaged journal may hold.
const REBUILT: u64 = 1 << 40;

/// What a catalog is opened with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The file system.
    pub vfs: Arc<dyn Vfs>,
    /// The catalog's directory; the two copies are in folders below it.
    pub dir: PathBuf,
    /// The store's id.
    pub store: [u8; 16],
    /// The open counter of this open, raised already.
    pub open: u64,
    /// The engine's clock.
    pub clock: Arc<EngineClock>,
    /// Change nothing on disk.
    pub read_only: bool,
    /// There are containers in the store's directories: then a catalog without a checkpoint is a lost one.
    pub has_containers: bool,
    /// Bytes by which journals grow: [`JOURNAL_STEP`](super::JOURNAL_STEP), or less where everything is small.
    pub journal_step: u64,
}

/// What recovery found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// No checkpoint and no journal was there: a new store, or a lost catalog if there are containers.
    pub fresh: bool,
    /// The containers that the catalog knows.
    pub containers: Vec<Known>,
    /// The heat as it was saved.
    pub heat: Vec<u8>,
    /// Records that frames beyond the durable number point at: to be verified before the first answer.
    pub tail: Vec<(Ident, Place)>,
    /// Blocks and batches that were damaged in one copy and read from the other.
    pub mended: u64,
    /// Frames replayed.
    pub frames: u64,
    /// Frames cut off at a torn tail are not known; this says whether there was one.
    pub torn: bool,
    /// Of an opening that changes nothing: the copies of files that are damaged or missing, as no crash leaves them.
    /// Nothing is lost by them.
    pub flaws: Vec<Flaw>,
}

/// One copy of a file of the catalog.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn VfsFile>,
    pub(crate) len: u64,
}

/// Opens those copies of a file that are there and can be opened. A copy that cannot be is as good as damaged;
/// it is an error if no permission is the reason, or if there is no other copy.
pub(crate) fn open_twins(vfs: &dyn Vfs, paths: &[PathBuf]) -> Result<Vec<Copy>> {
    let mut copies = Vec::new();
    let mut failed = None;
    for path in paths {
        match vfs.open(path, OpenMode::Read).and_then(|file| Ok((file.len()?, file))) {
            Ok((len, file)) => copies.push(Copy { path: path.clone(), file, len }),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            // A link, or a directory, in the place of a copy.
            Err(e) if e.raw_os_error() == Some(40) || e.kind() == ErrorKind::IsADirectory => {}
            Err(e) if e.kind() == ErrorKind::PermissionDenied => return Err(Error::io("open", path, e)),
            Err(e) => {
                tracing::warn!(path = %path.display(), error = %e, "cannot open a copy of the catalog");
                failed = Some(Error::io("open", path, e));
            }
        }
    }
    match failed {
        Some(e) if copies.is_empty() => Err(e),
        _ => Ok(copies),
    }
}

/// Files `PREFIX` + 16 hexadecimal digits in a folder; an unreadable folder counts as empty, because there are two.
/// Numbers that no store reaches are nobody's.
pub(crate) fn numbered(vfs: &dyn Vfs, folder: &Path, prefix: &str) -> Vec<(String, u64)> {
    listed(vfs, folder, prefix).unwrap_or_default()
}

/// [`numbered`], where a folder that cannot be read is an error.
pub(crate) fn listed(vfs: &dyn Vfs, folder: &Path, prefix: &str) -> Result<Vec<(String, u64)>> {
    let entries = vfs.read_dir(folder).at("list", folder)?;
    let found = entries
        .into_iter()
        .filter_map(|e| {
            let digits = e.name.strip_prefix(prefix)?;
            let plain = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            let n = plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()?;
            (n < MAX_SEQ).then_some((e.name, n))
        })
        .collect();
    Ok(found)
}

/// The numbers of these files in either copy, rising.
pub(crate) fn both(setup: &Setup, prefix: &str) -> Vec<u64> {
    let all = COPIES.iter().flat_map(|c| numbered(&*setup.vfs, &setup.dir.join(c), prefix));
    all.map(|(_, n)| n).collect::<BTreeSet<u64>>().into_iter().collect()
}

impl Catalog {
    /// Opens the catalog. `CatalogLost` if it is damaged in both copies.
    pub fn open(setup: Setup) -> Result<(Catalog, Recovered)> {
        make_folders(&setup)?;
        let mut replay = Replay::new(&setup)?;
        replay.run(&setup)?;
        if setup.read_only {
            replay.note_flaws(&setup);
        }
        replay.into_catalog(setup)
    }

    /// A new, empty catalog in the place of whatever is there, which is removed: to be filled by
    /// [`adopt`](Self::adopt) and published by a checkpoint.
    pub fn rebuild(setup: Setup) -> Result<Catalog> {
        make_folders(&setup)?;
        // Numbered above everything that is there: if this is not finished, the next opening must find the lost
        // catalog again, and a journal of a later open whose first frame is low would cut its history.
        let mut replay = Replay::empty();
        replay.out.fresh = false;
        replay.last_seq = both(&setup, "checkpoint-").last().copied().unwrap_or(0);
        for (seq, head, _) in read_heads(&setup, 0)? {
            replay.last_seq = replay.last_seq.max(seq);
            replay.next = replay.next.max(head.map_or(0, |h| h.first).saturating_add(REBUILT));
        }
        replay.into_catalog(setup).map(|(catalog, _)| catalog)
    }

    /// Points at a container's records where they are the newest of their identities. For a rebuild: call it for
    /// every container, then checkpoint.
    pub fn adopt(&self, no: u16, listed: &[Listed], newest: &mut HashMap<Ident, Version>) {
        for l in listed {
            let Some(place) = Place::new(no, l.position) else { continue };
            if newest.get(&l.ident).is_some_and(|v| *v >= l.version) {
                continue;
            }
            newest.insert(l.ident, l.version);
            let shard = Self::shard_of(l.ident);
            let old = {
                let mut shard = self.shard(shard).write();
                // What was said of the record before is not said of this one.
                shard.expiries.remove(&l.ident);
                shard.index.insert(l.ident, place)
            };
            self.containers.add_live(place, 1);
            if let Some(old) = old {
                self.containers.add_live(old, -1);
            }
        }
    }

    /// Counts the live records of every container, after the tiers have attached theirs.
    pub fn count_live(&self) {
        for no in 0..SHARDS {
            for (_, place) in self.shard(no).read().index.iter() {
                self.containers.add_live(place, 1);
            }
        }
    }

    /// Takes out everything that points into containers for which `lost` holds, and those of them that are not
    /// attached; gives how many records went.
    pub fn drop_lost(&self, lost: impl Fn(u16) -> bool) -> u64 {
        let mut count = 0;
        for no in 0..SHARDS {
            let gone: Vec<(Ident, Place)> =
                self.shard(no).read().index.iter().filter(|(_, p)| lost(p.container())).collect();
            for (ident, place) in gone {
                count += u64::from(self.lock(ident).kill(ident, place));
            }
        }
        let mut absent = self.absent.lock();
        let away = |no: &u16| lost(*no) && self.containers.get(*no).is_none();
        let gone: Vec<Known> = absent.iter().filter(|(no, _)| away(no)).map(|(_, k)| *k).collect();
        for k in gone {
            // The number stays taken until the next open.
            absent.remove(&k.no);
            self.push(Frame::Dropped { no: k.no, id: k.id });
        }
        count
    }
}

fn make_folders(setup: &Setup) -> Result<()> {
    if setup.read_only {
        return Ok(());
    }
    for copy in COPIES {
        let folder = setup.dir.join(copy);
        setup.vfs.create_dir_all(&folder).at("create", &folder)?;
        for e in setup.vfs.read_dir(&folder).at("list", &folder)? {
            if e.name.starts_with("checkpoint-") && e.name.ends_with(".tmp") {
                let _ = setup.vfs.remove_file(&folder.join(&e.name));
            }
        }
    }
    setup.vfs.sync_dir(&setup.dir).at("sync", &setup.dir)
}

/// Syncs the journals that were read: a killed process may have left them in the page cache only.
pub(crate) fn sync_all(setup: &Setup, first: u64) -> bool {
    let mut good = true;
    let files = both(setup, "journal-").into_iter().filter(|n| *n >= first);
    let journals = files.flat_map(|seq| COPIES.map(|c| journal_path(&setup.dir, c, seq)));
    let checkpoints = COPIES.map(|c| checkpoint_path(&setup.dir, c, first));
    for path in journals.chain(checkpoints) {
        let result = setup.vfs.open(&path, OpenMode::ReadWrite).and_then(|file| file.sync());
        if let Err(e) = result
            && e.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), error = %e, "cannot sync a copy of the catalog");
            good = false;
        }
    }
    good & COPIES.iter().all(|c| setup.vfs.sync_dir(&setup.dir.join(c)).is_ok())
}
