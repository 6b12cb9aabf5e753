//! Replay: the newest checkpoint, and on it the frames of the journals, by number.
//!
//! See [`recovery`](super::recovery) for the invariants. One pair of journals is in memory at a time.

use super::checkpoint::{self, checkpoint_path};
use super::examine::{self, Differs};
use super::frame::{FORMAT, FRAME, FileHead, Frame, HEAD, decode_batch, seed};
use super::journal::{COPIES, Journal, journal_path};
use super::recovery::{Copy, Recovered, Setup, both, open_twins, sync_all};
use super::shard::Shard;
use super::{Catalog, SHARDS};
use crate::container::{Containers, Known};
use crate::error::{Error, Result};
use crate::flaw::{Flaw, Part};
use crate::ident::Ident;
use crate::types::Place;
use crate::vfs::OpenMode;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// No journal file is read further; the writer begins another long before.
const MAX_READ: u64 = 4 << 30;
/// After this many pairs of journals opening writes a checkpoint, so that a program killed over and over does not
/// pile them up.
const MANY_PAIRS: usize = 64;
/// Above this many entries those of the tail that proved durable are let go.
const MANY_IN_TAIL: usize = 1 << 16;

/// The journals of one sequence number.
struct Pair {
    seq: u64,
    head: FileHead,
    files: Vec<Copy>,
}

/// A file's path and what stands in it.
type Bytes = (PathBuf, Vec<u8>);

/// A sequence number, the header of its journals if one can be read, and the copies that are there.
pub(crate) type Headed = (u64, Option<FileHead>, Vec<Copy>);

/// The journals from a number on: the header, if it can be read in a copy, and the copies that are there.
pub(crate) fn read_heads(setup: &Setup, from: u64) -> Result<Vec<Headed>> {
    let mut found = Vec::new();
    for seq in both(setup, "journal-").into_iter().filter(|n| *n >= from) {
        let files = open_twins(&*setup.vfs, &COPIES.map(|c| journal_path(&setup.dir, c, seq)))?;
        let mut head = None;
        for copy in &files {
            let mut bytes = [0; HEAD];
            if copy.file.read_exact_at(&mut bytes, 0).is_ok() {
                head = FileHead::decode(&bytes, &setup.store, seq, &copy.path)?.or(head);
            }
        }
        found.push((seq, head, files));
    }
    Ok(found)
}

pub(crate) struct Replay {
    shards: Vec<Shard>,
    containers: BTreeMap<u16, Known>,
    pub(crate) out: Recovered,
    /// The number of the next frame.
    pub(crate) next: u64,
    /// Frames up to here are known to have been durable.
    durable: u64,
    time: u64,
    first_seq: u64,
    pub(crate) last_seq: u64,
    pairs: usize,
    /// Frames replayed, without those of the time alone.
    changes: u64,
    tail: HashMap<Ident, (u64, Place)>,
    /// In what the copies of journals differ, or do not verify.
    differs: Vec<Differs>,
}

impl Replay {
    pub(crate) fn empty() -> Replay {
        Replay {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            containers: BTreeMap::new(),
            out: Recovered { fresh: true, ..Recovered::default() },
            next: 1,
            durable: 0,
            time: 0,
            first_seq: 1,
            last_seq: 0,
            pairs: 0,
            changes: 0,
            tail: HashMap::new(),
            differs: Vec::new(),
        }
    }

    /// Loads the newest checkpoint, if there is one.
    ///
    /// One that cannot be read is a lost catalog, with one exception: it is there in one copy only. Then it was
    /// never published, so nothing was removed for it, and the one before with its journals says the same.
    pub(crate) fn new(setup: &Setup) -> Result<Replay> {
        let mut replay = Replay::empty();
        let mut seqs = both(setup, "checkpoint-");
        while let Some(seq) = seqs.pop() {
            let there = |c: &&&str| {
                let path = checkpoint_path(&setup.dir, c, seq);
                !matches!(setup.vfs.kind(&path), Ok(None))
            };
            replay.last_seq = replay.last_seq.max(seq);
            let loaded = match checkpoint::load(&*setup.vfs, &setup.dir, &setup.store, seq) {
                Err(Error::CatalogLost { why, .. })
                    if !seqs.is_empty() && COPIES.iter().filter(there).count() < COPIES.len() =>
                {
                    tracing::warn!(why, "a checkpoint that was not published in both copies is passed over");
                    replay.out.mended += 1;
                    continue;
                }
                other => other?,
            };
            replay.out.fresh = false;
            replay.out.heat = loaded.heat;
            replay.out.mended += loaded.mended;
            replay.shards = loaded.shards;
            replay.containers = loaded.containers.into_iter().map(|k| (k.no, k)).collect();
            replay.durable = loaded.newest;
            replay.time = loaded.time;
            replay.first_seq = seq;
            break;
        }
        Ok(replay)
    }

    fn lost(setup: &Setup, why: String) -> Error {
        Error::CatalogLost { path: setup.dir.clone(), why }
    }

    pub(crate) fn run(&mut self, setup: &Setup) -> Result<()> {
        let pairs = self.read_journals(setup)?;
        if self.out.fresh {
            // A store whose first checkpoint was never published has no containers and no frames.
            let empty = pairs.iter().all(|p| p.files.iter().all(|f| f.len <= HEAD as u64));
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
        for (i, pair) in pairs.iter().enumerate() {
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
        let mut pairs = Vec::new();
        for (seq, head, files) in read_heads(setup, self.first_seq)? {
            self.last_seq = self.last_seq.max(seq);
            match head {
                Some(head) => {
                    self.out.mended += (COPIES.len() - files.len()) as u64;
                    self.note_missing(setup, seq, &head, &files);
                    pairs.push(Pair { seq, head, files });
                }
                // It was being made when the crash came: headers are synced in both copies before anything else
                // is written.
                None if files.iter().all(|f| f.len <= HEAD as u64) => {}
                None => return Err(Self::lost(setup, format!("journal {seq:x} has no readable header"))),
            }
        }
        self.pairs = pairs.len();
        Ok(pairs)
    }

    /// What stands in both copies of a pair. A copy that cannot be read counts as empty if the other can.
    fn read_copies(&mut self, setup: &Setup, pair: &Pair) -> Result<Vec<Bytes>> {
        let mut copies = Vec::new();
        let mut failed = None;
        for copy in &pair.files {
            let len = usize::try_from(copy.len.min(MAX_READ)).unwrap_or(0);
            let mut bytes = vec![0; len];
            let n = match copy.file.read_at(&mut bytes, 0) {
                Ok(n) => n,
                Err(e) => {
                    tracing::warn!(path = %copy.path.display(), error = %e, "cannot read a copy of the journal");
                    failed = Some(Error::io("read", &copy.path, e));
                    0
                }
            };
            bytes.truncate(n);
            if FileHead::decode(&bytes, &setup.store, pair.seq, &copy.path)?.is_none() {
                self.out.mended += 1;
                let blank = self.may_be_half_made(pair.seq) && bytes.iter().all(|b| *b == 0);
                let blank = blank.then_some(pair.head.first);
                self.differ(&copy.path, "its header is damaged", blank);
            }
            copies.push((copy.path.clone(), bytes));
        }
        match failed {
            Some(e) if copies.iter().all(|(_, b)| b.is_empty()) => Err(e),
            _ => Ok(copies),
        }
    }

    fn replay_pair(&mut self, setup: &Setup, pair: &Pair, limit: u64) -> Result<()> {
        let seed = seed(&setup.store, pair.seq);
        let mut copies = self.read_copies(setup, pair)?;
        let mut at = HEAD;
        // A pair that does not follow on was abandoned, or frames before it are missing: `look_beyond` says which.
        let follows = pair.head.first == self.next;
        loop {
            let found = copies.iter().find_map(|(_, bytes)| {
                let rest = bytes.get(at..)?;
                let (head, _) = decode_batch(rest, pair.seq, seed)?;
                (head.first == self.next).then(|| Some((head, rest.get(..head.len())?.to_vec())))?
            });
            let found = found.filter(|(head, _)| follows && head.first < limit);
            let Some((head, whole)) = found else { break };
            self.mend_copies(setup, &mut copies, (at, head.first), &whole);
            self.durable = self.durable.max(head.durable);
            self.time = self.time.max(head.time);
            if self.tail.len() > MANY_IN_TAIL {
                self.tail.retain(|_, (n, _)| *n > head.durable);
            }
            for b in whole.get(HEAD..).unwrap_or_default().chunks_exact(FRAME) {
                if self.next >= limit {
                    break;
                }
                // Its checksum is right, so somebody meant it.
                let newer = || Error::NewerFormat {
                    path: journal_path(&setup.dir, "a", pair.seq),
                    found: FORMAT + 1,
                    supported: FORMAT,
                };
                let frame = Frame::decode(b).ok_or_else(newer)?;
                self.changes += u64::from(!matches!(frame, Frame::Time { .. }));
                self.apply(self.next, frame);
                self.next += 1;
                self.out.frames += 1;
            }
            at += head.len();
        }
        self.look_beyond(pair.seq, &copies, at, seed, limit);
        Ok(())
    }

    /// What stands behind the last batch that follows on: a torn tail, or the proof that something durable is
    /// missing before it.
    fn look_beyond(&mut self, seq: u64, copies: &[Bytes], from: usize, seed: u64, limit: u64) {
        for (_, bytes) in copies {
            // Files are allocated ahead: behind the last byte that is not zero there is nothing.
            let content = without_zeros(bytes);
            self.out.torn |= from < content;
            let mut at = from;
            while at < content {
                match decode_batch(bytes.get(at..).unwrap_or_default(), seq, seed) {
                    Some((head, _)) => {
                        if head.first < limit {
                            self.durable = self.durable.max(head.durable.min(limit.saturating_sub(1)));
                        }
                        at += head.len();
                    }
                    None => at += FRAME,
                }
            }
        }
    }

    fn differ(&mut self, path: &Path, why: &str, blank: Option<u64>) {
        self.differs.push(Differs { flaw: Flaw::new(path, Part::Journal, why), blank });
    }

    fn note_missing(&mut self, setup: &Setup, seq: u64, head: &FileHead, files: &[Copy]) {
        for path in COPIES.map(|c| journal_path(&setup.dir, c, seq)) {
            if !files.iter().any(|f| f.path == path) {
                let blank = self.may_be_half_made(seq).then_some(head.first);
                self.differ(&path, "it is missing", blank);
            }
        }
    }

    /// The pair that was made with the checkpoint was whole before that was published.
    fn may_be_half_made(&self, seq: u64) -> bool {
        seq != self.first_seq
    }

    /// Notes which copies of the catalog's files are damaged.
    pub(crate) fn note_flaws(&mut self, setup: &Setup) {
        self.out.flaws = examine::checkpoints(setup);
        self.out.flaws.extend(examine::journals(&mut self.differs, self.durable));
    }

    /// Writes a batch to the copies that lack it.
    fn mend_copies(&mut self, setup: &Setup, copies: &mut [Bytes], (at, first): (usize, u64), whole: &[u8]) {
        for (path, bytes) in copies {
            let end = at + whole.len();
            if bytes.get(at..end) == Some(whole) {
                continue;
            }
            self.out.mended += 1;
            let stands = bytes.get(at..end.min(bytes.len())).unwrap_or_default();
            let blank = stands.iter().all(|b| *b == 0).then_some(first);
            let why = format!("a batch at byte {at} is damaged, or not there; the other copy has it");
            self.differs.push(Differs { flaw: Flaw::new(&path, Part::Journal, why), blank });
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            if let Some(slot) = bytes.get_mut(at..end) {
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
            // Its batch's time says it.
            Frame::Time { .. } => return,
            Frame::Dropped { no, id } => {
                if self.containers.get(&no).is_some_and(|k| k.id == id) {
                    self.containers.remove(&no);
                }
                return;
            }
        };
        // Containers stand in the checkpoint as they were before its shards: what a shard contains already is news here.
        if let Frame::Put { place, expires_at, .. } | Frame::Expire { place, expires_at, .. } = frame
            && let Some(k) = self.containers.get_mut(&place.container())
        {
            k.records = k.records.saturating_add(u64::from(matches!(frame, Frame::Put { .. })));
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
                }
            }
            Frame::Clear { .. } => {
                shard.index.take();
                shard.expiries.clear();
                self.tail.retain(|i, _| Catalog::shard_of(*i) != shard_no);
            }
            Frame::Created(_) | Frame::Dropped { .. } | Frame::Time { .. } => {}
        }
    }

    pub(crate) fn into_catalog(mut self, setup: Setup) -> Result<(Catalog, Recovered)> {
        setup.clock.at_least(self.time);
        let containers = Arc::new(Containers::new(setup.open));
        for no in self.containers.keys() {
            containers.keep(*no);
        }
        self.out.containers = self.containers.values().copied().collect();
        let mut synced = true;
        let journal = if setup.read_only {
            None
        } else {
            synced = sync_all(&setup, self.first_seq);
            let seq = self.last_seq + 1;
            let journal = Journal::create(&setup, seq, self.next)?;
            journal.note_replayed(self.changes);
            Some(journal)
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
        *catalog.absent.lock() = self.containers;
        *catalog.saved_heat.lock() = self.out.heat.clone();
        if self.out.fresh && writes {
            // The first checkpoint, so that from now on its absence is damage and not youth.
            catalog.checkpoint_now()?;
        } else if writes && (self.out.mended > 0 || !synced || self.pairs > MANY_PAIRS) {
            // What was read from one copy only is in two again before the first answer.
            if let Err(e) = catalog.checkpoint_now() {
                tracing::warn!(error = %e, "the catalog's damaged copy could not be replaced yet");
            }
        }
        Ok((catalog, self.out))
    }
}

/// How many bytes are left without the zeros at the end: a journal is allocated ahead, so these may be many.
fn without_zeros(bytes: &[u8]) -> usize {
    const BLOCK: usize = 64;
    let mut end = bytes.len();
    // Block by block, without a branch for each byte.
    while let Some(block) = end.checked_sub(BLOCK).and_then(|at| bytes.get(at..end))
        && block.iter().fold(0, |all, b| all | b) == 0
    {
        end -= BLOCK;
    }
    bytes.iter().take(end).rposition(|b| *b != 0).map_or(0, |last| last + 1)
}

#[cfg(test)]
mod tests {
    use super::without_zeros;

    #[test]
    fn zeros_at_the_end_are_not_counted() {
        for (ones, zeros) in
            [(0, 0), (0, 5), (0, 64), (1, 0), (1, 63), (1, 64), (63, 200), (64, 64), (65, 1), (130, 1000)]
        {
            let bytes = [vec![1; ones], vec![0; zeros]].concat();
            assert_eq!(without_zeros(&bytes), ones, "{ones} and {zeros}");
        }
        assert_eq!(without_zeros(&[0, 0, 7, 0]), 3);
    }
}
