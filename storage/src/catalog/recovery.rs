//! Opening: from a checkpoint and the journals after it back to the catalog.
//!
//! Invariants:
//! - replay goes by number and compares no versions;
//! - a batch is taken from whichever copy verifies; the union of both is written and synced into both before the
//!   first answer, so that what was read once is read again;
//! - a gap at or below a number that some batch names as durable is a lost catalog, never a shorter history; a gap
//!   above every such number is a torn tail, and the journal is cut there;
//! - an older checkpoint is never a substitute for the newest one.
//!
//! A crash during recovery leaves the same files, or the union in both copies, or also an empty new journal pair.

use super::checkpoint::{self, checkpoint_path};
use super::frame::{FRAME, FileHead, Frame, HEAD, decode_batch, seed};
use super::journal::{COPIES, Journal, journal_path};
use super::shard::Shard;
use super::{Catalog, SHARDS};
use crate::clock::EngineClock;
use crate::container::{Containers, Known, Listed};
use crate::error::{Error, IoContext, Result};
use crate::ident::Ident;
use crate::types::{Place, Version};
use crate::vfs::{OpenMode, Vfs, VfsFile};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
}

/// One copy of a file of the catalog.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn VfsFile>,
    pub(crate) len: u64,
}

/// Opens those copies of a file that are there. Permission and I/O trouble is an error, absence is not.
pub(crate) fn open_twins(vfs: &dyn Vfs, paths: &[PathBuf]) -> Result<Vec<Copy>> {
    let mut copies = Vec::new();
    for path in paths {
        match vfs.open(path, OpenMode::Read) {
            Ok(file) => {
                let len = file.len().at("measure", path)?;
                copies.push(Copy { path: path.clone(), file, len });
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            // A link, or a directory, in the place of a copy: that copy is damaged.
            Err(e) if e.raw_os_error() == Some(40) || e.kind() == std::io::ErrorKind::IsADirectory => {}
            Err(e) => return Err(Error::io("open", path, e)),
        }
    }
    Ok(copies)
}

/// Files `PREFIX` + 16 hexadecimal digits in a folder; an unreadable folder counts as empty, because there are two.
pub(crate) fn numbered(vfs: &dyn Vfs, folder: &Path, prefix: &str) -> Vec<(String, u64)> {
    let entries = vfs.read_dir(folder).unwrap_or_default();
    entries
        .into_iter()
        .filter_map(|e| {
            let digits = e.name.strip_prefix(prefix)?;
            let n = (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten()?;
            Some((e.name, n))
        })
        .collect()
}

impl Catalog {
    /// Opens the catalog. `CatalogLost` if it is damaged in both copies.
    pub fn open(setup: Setup) -> Result<(Catalog, Recovered)> {
        make_folders(&setup)?;
        let mut replay = Replay::new(&setup)?;
        replay.run(&setup)?;
        replay.into_catalog(setup)
    }

    /// A new, empty catalog in the place of whatever is there, which is removed: to be filled by
    /// [`adopt`](Self::adopt) and published by a checkpoint.
    pub fn rebuild(setup: Setup) -> Result<Catalog> {
        make_folders(&setup)?;
        let mut last = 0;
        for copy in COPIES {
            let folder = setup.dir.join(copy);
            for prefix in ["checkpoint-", "journal-"] {
                last =
                    numbered(&*setup.vfs, &folder, prefix).into_iter().map(|(_, n)| n).fold(last, u64::max);
            }
        }
        // Not fresh: nothing is published before the containers are adopted. A crash until then finds the lost
        // catalog again, and nothing deleted.
        let mut replay = Replay { last_seq: last, ..Replay::empty() };
        replay.out.fresh = false;
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
            let old = self.shard(shard).write().index.insert(l.ident, place);
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

    /// Takes out everything that points into containers for which `lost` holds; gives how many went.
    pub fn drop_lost(&self, lost: impl Fn(u16) -> bool) -> u64 {
        let mut count = 0;
        for no in 0..SHARDS {
            let gone: Vec<(Ident, Place)> =
                self.shard(no).read().index.iter().filter(|(_, p)| lost(p.container())).collect();
            for (ident, place) in gone {
                count += u64::from(self.lock(ident).kill(ident, place));
            }
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

/// The journals of one sequence number, read from both copies.
struct Pair {
    seq: u64,
    head: FileHead,
    copies: Vec<(PathBuf, Vec<u8>)>,
}

struct Replay {
    shards: Vec<Shard>,
    containers: BTreeMap<u16, Known>,
    out: Recovered,
    /// The number of the next frame.
    next: u64,
    /// Frames up to here are known to have been durable.
    durable: u64,
    time: u64,
    first_seq: u64,
    last_seq: u64,
    tail: HashMap<Ident, (u64, Place)>,
}

impl Replay {
    fn empty() -> Replay {
        Replay {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            containers: BTreeMap::new(),
            out: Recovered { fresh: true, ..Recovered::default() },
            next: 1,
            durable: 0,
            time: 0,
            first_seq: 1,
            last_seq: 0,
            tail: HashMap::new(),
        }
    }

    /// Loads the newest checkpoint, if there is one.
    fn new(setup: &Setup) -> Result<Replay> {
        let mut replay = Replay::empty();
        let seqs = COPIES.iter().flat_map(|c| numbered(&*setup.vfs, &setup.dir.join(c), "checkpoint-"));
        let Some(seq) = seqs.map(|(_, n)| n).max() else { return Ok(replay) };
        let loaded = checkpoint::load(&*setup.vfs, &setup.dir, &setup.store, seq)?;
        replay.out.fresh = false;
        replay.out.heat = loaded.heat;
        replay.out.mended += loaded.mended;
        replay.shards = loaded.shards;
        replay.containers = loaded.containers.into_iter().map(|k| (k.no, k)).collect();
        replay.durable = loaded.newest;
        replay.time = loaded.time;
        replay.first_seq = seq;
        replay.last_seq = seq;
        Ok(replay)
    }

    fn lost(setup: &Setup, why: String) -> Error {
        Error::CatalogLost { path: setup.dir.clone(), why }
    }

    fn run(&mut self, setup: &Setup) -> Result<()> {
        let mut pairs = self.read_journals(setup)?;
        if self.out.fresh {
            // A store whose first checkpoint was never published has no containers and no frames.
            let empty = pairs.iter().all(|p| p.copies.iter().all(|(_, b)| b.len() <= HEAD));
            return match empty && !setup.has_containers {
                true => Ok(()),
                false => Err(Self::lost(setup, "there is no checkpoint in either copy".into())),
            };
        }
        // The pair made with the checkpoint begins the history; without it nothing says what came after.
        match pairs.first() {
            Some(p) if p.seq == self.first_seq => self.next = p.head.first,
            _ => {
                return Err(Self::lost(
                    setup,
                    format!("journal {:x} is missing or unreadable", self.first_seq),
                ));
            }
        }
        let heads: Vec<FileHead> = pairs.iter().map(|p| p.head).collect();
        for (i, pair) in pairs.iter_mut().enumerate() {
            // A later open cut the history where its first journal begins.
            let later = heads.iter().skip(i + 1).filter(|h| h.open > pair.head.open);
            let limit = later.map(|h| h.first).min().unwrap_or(u64::MAX);
            self.replay_pair(setup, pair, limit)?;
        }
        // Numbers known durable that no journal held?
        if self.durable >= self.next {
            let why = format!("frames {} to {} are damaged in both copies", self.next, self.durable);
            return Err(Self::lost(setup, why));
        }
        self.out.tail =
            self.tail.iter().filter(|(_, (n, _))| *n > self.durable).map(|(i, (_, p))| (*i, *p)).collect();
        Ok(())
    }

    fn read_journals(&mut self, setup: &Setup) -> Result<Vec<Pair>> {
        let mut seqs: Vec<u64> = COPIES
            .iter()
            .flat_map(|c| numbered(&*setup.vfs, &setup.dir.join(c), "journal-"))
            .map(|(_, n)| n)
            .filter(|n| *n >= self.first_seq)
            .collect();
        seqs.sort_unstable();
        seqs.dedup();
        let mut pairs = Vec::new();
        for seq in seqs {
            self.last_seq = self.last_seq.max(seq);
            let mut copies = Vec::new();
            let mut head = None;
            for copy in open_twins(&*setup.vfs, &COPIES.map(|c| journal_path(&setup.dir, c, seq)))? {
                let mut bytes = vec![0; usize::try_from(copy.len).unwrap_or(0)];
                let n = match copy.file.read_at(&mut bytes, 0) {
                    Ok(n) => n,
                    Err(e) => {
                        tracing::warn!(path = %copy.path.display(), error = %e, "cannot read a copy of the journal");
                        0
                    }
                };
                bytes.truncate(n);
                match FileHead::decode(&bytes, &setup.store, seq, &copy.path)? {
                    Some(h) => head = Some(h),
                    None => self.out.mended += 1,
                }
                copies.push((copy.path, bytes));
            }
            // A pair without any readable header was being made when the crash came: nothing was written to it.
            // If something was, its frames are missed as a gap.
            if let Some(head) = head {
                pairs.push(Pair { seq, head, copies });
            }
        }
        Ok(pairs)
    }

    fn replay_pair(&mut self, setup: &Setup, pair: &mut Pair, limit: u64) -> Result<()> {
        let seed = seed(&setup.store, pair.seq);
        let mut at = HEAD;
        let mut dead = pair.head.first != self.next;
        while !dead {
            let found = pair.copies.iter().find_map(|(_, bytes)| {
                let (head, _) = decode_batch(bytes.get(at..)?, pair.seq, seed)?;
                (head.first == self.next).then_some(head)
            });
            let Some(head) = found else { break };
            if head.first >= limit {
                dead = true;
                continue;
            }
            let whole = pair.copies.iter().find_map(|(_, bytes)| {
                let rest = bytes.get(at..)?;
                decode_batch(rest, pair.seq, seed)?;
                rest.get(..head.len()).map(<[u8]>::to_vec)
            });
            let Some(whole) = whole else { break };
            self.mend_copies(setup, pair, at, &whole, seed);
            self.durable = self.durable.max(head.durable);
            self.time = self.time.max(head.time);
            for b in whole.get(HEAD..).unwrap_or_default().chunks_exact(FRAME) {
                if self.next >= limit {
                    break;
                }
                let frame = Frame::decode(b)
                    .ok_or_else(|| Self::lost(setup, format!("frame {} is of an unknown kind", self.next)))?;
                self.apply(self.next, frame);
                self.next += 1;
                self.out.frames += 1;
            }
            at += head.len();
        }
        self.look_beyond(pair, at, seed, limit)
    }

    /// What stands behind the last batch that follows on: a torn tail, or the proof that something durable is
    /// missing before it.
    fn look_beyond(&mut self, pair: &Pair, from: usize, seed: u64, limit: u64) -> Result<()> {
        for (_, bytes) in &pair.copies {
            let mut at = from;
            while at + HEAD <= bytes.len() {
                match decode_batch(bytes.get(at..).unwrap_or_default(), pair.seq, seed) {
                    Some((head, _)) => {
                        if head.first < limit {
                            self.durable = self.durable.max(head.durable.min(limit - 1));
                        }
                        at += head.len();
                    }
                    None => at += FRAME,
                }
            }
            let tail = bytes.get(from..).unwrap_or_default();
            self.out.torn |= tail.iter().any(|b| *b != 0);
        }
        Ok(())
    }

    /// Brings a batch that one copy lacks into the bytes that are to be written back to it.
    fn mend_copies(&mut self, setup: &Setup, pair: &mut Pair, at: usize, whole: &[u8], seed: u64) {
        for (path, bytes) in &mut pair.copies {
            if decode_batch(bytes.get(at..).unwrap_or_default(), pair.seq, seed).is_some() {
                continue;
            }
            self.out.mended += 1;
            if bytes.len() < at + whole.len() {
                bytes.resize(at + whole.len(), 0);
            }
            if let Some(slot) = bytes.get_mut(at..at + whole.len()) {
                slot.copy_from_slice(whole);
            }
            if !setup.read_only {
                let result = setup.vfs.open(path, OpenMode::ReadWrite).and_then(|f| {
                    f.write_all_at(whole, at as u64)?;
                    f.sync()
                });
                if let Err(e) = result {
                    tracing::warn!(path = %path.display(), error = %e, "cannot mend a copy of the journal");
                }
            }
        }
    }

    fn apply(&mut self, number: u64, frame: Frame) {
        let shard_no = match frame {
            Frame::Put { ident, .. } | Frame::Dead { ident, .. } | Frame::Expire { ident, .. } => {
                Catalog::shard_of(ident)
            }
            Frame::Clear { shard, .. } => usize::try_from(shard).unwrap_or(SHARDS),
            Frame::Created(k) => {
                self.containers.insert(k.no, k);
                return;
            }
            Frame::Dropped { no, id } => {
                if self.containers.get(&no).is_some_and(|k| k.id == id) {
                    self.containers.remove(&no);
                }
                return;
            }
        };
        if let Frame::Put { place, expires_at, .. } = frame
            && let Some(k) = self.containers.get_mut(&place.container())
        {
            k.records += 1;
            if expires_at != 0 {
                k.earliest_expiry = k.earliest_expiry.min(expires_at);
            }
        }
        let Some(shard) = self.shards.get_mut(shard_no) else { return };
        if number <= shard.last_frame {
            return;
        }
        shard.last_frame = number;
        match frame {
            Frame::Put { ident, place, .. } => {
                shard.index.insert(ident, place);
                shard.expiries.remove(&ident);
                self.tail.insert(ident, (number, place));
            }
            Frame::Dead { ident, .. } => {
                shard.index.remove(ident);
                shard.expiries.remove(&ident);
                self.tail.remove(&ident);
            }
            Frame::Expire { ident, place, expires_at, .. } => {
                if shard.index.get(ident) == Some(place) {
                    shard.expiries.insert(ident, expires_at);
                    if let Some(k) = self.containers.get_mut(&place.container())
                        && expires_at != 0
                    {
                        k.earliest_expiry = k.earliest_expiry.min(expires_at);
                    }
                }
            }
            Frame::Clear { .. } => {
                shard.index.take();
                shard.expiries.clear();
                self.tail.retain(|i, _| Catalog::shard_of(*i) != shard_no);
            }
            Frame::Created(_) | Frame::Dropped { .. } => {}
        }
    }

    fn into_catalog(mut self, setup: Setup) -> Result<(Catalog, Recovered)> {
        setup.clock.at_least(self.time);
        self.out.containers = self.containers.into_values().collect();
        let containers = Arc::new(Containers::new(setup.open));
        let journal = if setup.read_only {
            None
        } else {
            sync_all(&setup, self.first_seq, self.last_seq);
            let seq = self.last_seq + 1;
            Some(Journal::create(setup.vfs.clone(), &setup.dir, setup.store, setup.open, seq, self.next)?)
        };
        let writes = journal.is_some();
        let catalog = Catalog::assemble(
            setup.vfs,
            setup.dir,
            setup.store,
            setup.open,
            setup.clock,
            containers,
            journal,
            self.shards,
        );
        if self.out.fresh && writes {
            // The first checkpoint, so that from now on its absence is damage and not youth.
            catalog.checkpoint()?;
        }
        Ok((catalog, self.out))
    }
}

/// Syncs the journals that were read: a killed process may have left them in the page cache only.
fn sync_all(setup: &Setup, first: u64, last: u64) {
    for seq in first..=last {
        for copy in COPIES {
            let path = journal_path(&setup.dir, copy, seq);
            if let Ok(file) = setup.vfs.open(&path, OpenMode::ReadWrite)
                && let Err(e) = file.sync()
            {
                tracing::warn!(path = %path.display(), error = %e, "cannot sync a copy of the journal");
            }
            let path = checkpoint_path(&setup.dir, copy, seq);
            if let Ok(file) = setup.vfs.open(&path, OpenMode::ReadWrite) {
                let _ = file.sync();
            }
        }
        let _ = COPIES.iter().try_for_each(|c| setup.vfs.sync_dir(&setup.dir.join(c)));
    }
}
