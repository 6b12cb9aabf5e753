//! Checkpoints: the whole catalog in one file, in two copies.
//!
//! ```text
//! file header, 64 bytes: u32 magic "TCCP" · u32 format · [16] store id · u64 sequence number · u64 open counter ·
//!                        u64 time, ms · u64 zero · u64 checksum of 0..56
//! then blocks:           u32 magic "TCCB" · u32 kind · u64 number · u64 payload length · u64 last frame ·
//!                        u64 checksum of the 32 bytes before and the payload; then the payload
//! kinds                  1 containers (42 bytes each) · 2 shard (number = which; u64 entries, u64 expiries, then
//!                        11-byte entries and 19-byte expiries) · 3 heat (opaque) · 4 end (number = blocks before)
//! ```
//!
//! It is fuzzy: each shard's block carries the number of the last frame about that shard which it contains, and
//! replay skips that shard's frames up to it. Order of writing, with what a crash after each step leaves:
//!
//! 1. a new journal pair with the checkpoint's number: recovery replays old and new journals on the old checkpoint;
//! 2. both copies written under temporary names and synced: the same (the temporary files are removed);
//! 3. the new journal synced up to the highest frame that a block contains: the same;
//! 4. renamed and the folder synced, first copy, then second: recovery uses the new one;
//! 5. older checkpoints and journals removed: the same.

use super::frame::seed;
use super::journal::{COPIES, Journal, journal_path};
use super::recovery::{Copy, listed, numbered, open_twins};
use super::shard::Shard;
use super::{Catalog, SHARDS};
use crate::container::Known;
use crate::error::{Error, IoContext, Result};
use crate::ident::Ident;
use crate::record::{checksum, le16, le32, le64};
use crate::types::{Place, Tier};
use crate::vfs::{OpenMode, Vfs, VfsFile};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The newest checkpoint format known here.
const FORMAT: u32 = 1;
const FILE_MAGIC: u32 = u32::from_le_bytes(*b"TCCP");
const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"TCCB");
const HEAD: usize = 64;
const BLOCK_HEAD: usize = 40;
/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;
/// Bytes of a copy that are read at once: most blocks are small, and there are hundreds of them.
const WINDOW: usize = 64 << 10;
/// No block is longer: 97 million entries in one shard.
const MAX_PAYLOAD: u64 = 1 << 30;
const CONTAINERS: u32 = 1;
const SHARD: u32 = 2;
const HEAT: u32 = 3;
const END: u32 = 4;
const CONTAINER_BYTES: usize = 42;
const ENTRY_BYTES: usize = 11;
const EXPIRY_BYTES: usize = 19;

/// The path of a checkpoint file.
pub(crate) fn checkpoint_path(dir: &Path, copy: &str, seq: u64) -> PathBuf {
    dir.join(copy).join(format!("checkpoint-{seq:016x}"))
}

/// Writes the same bytes to both copies.
struct Twin {
    pair: Vec<(PathBuf, Arc<dyn VfsFile>)>,
    /// Bytes not written yet, which go at `at`.
    buffer: Vec<u8>,
    at: u64,
    seed: u64,
    blocks: u64,
}

impl Twin {
    fn create(cat: &Catalog, seq: u64) -> Result<Twin> {
        let mut pair = Vec::new();
        for copy in COPIES {
            let path = checkpoint_path(&cat.dir, copy, seq).with_extension("tmp");
            if cat.vfs.kind(&path).at("look at", &path)?.is_some() {
                cat.vfs.remove_file(&path).at("remove", &path)?;
            }
            let file = cat.vfs.open(&path, OpenMode::CreateNew).at("create", &path)?;
            pair.push((path, file));
        }
        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(&FILE_MAGIC.to_le_bytes());
        head.extend_from_slice(&FORMAT.to_le_bytes());
        head.extend_from_slice(&cat.store);
        for n in [seq, cat.open, cat.now(), 0] {
            head.extend_from_slice(&n.to_le_bytes());
        }
        let seed = seed(&cat.store, seq);
        head.extend_from_slice(&checksum(seed, &head).to_le_bytes());
        Ok(Twin { pair, buffer: head, at: 0, seed, blocks: 0 })
    }

    fn flush(&mut self) -> Result<()> {
        for (path, file) in &self.pair {
            file.write_all_at(&self.buffer, self.at).at("write", path)?;
        }
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes what is left and makes both copies durable.
    fn finish(&mut self) -> Result<()> {
        self.flush()?;
        for (path, file) in &self.pair {
            file.sync().at("sync", path)?;
        }
        Ok(())
    }

    fn block(&mut self, kind: u32, number: u64, last_frame: u64, payload: &[u8]) -> Result<()> {
        let mut head = Vec::with_capacity(BLOCK_HEAD);
        head.extend_from_slice(&BLOCK_MAGIC.to_le_bytes());
        head.extend_from_slice(&kind.to_le_bytes());
        for n in [number, payload.len() as u64, last_frame] {
            head.extend_from_slice(&n.to_le_bytes());
        }
        let sum = checksum(checksum(self.seed, &head), payload);
        head.extend_from_slice(&sum.to_le_bytes());
        self.buffer.extend_from_slice(&head);
        self.buffer.extend_from_slice(payload);
        self.blocks += 1;
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }
}

impl Catalog {
    /// Reads both copies of the newest checkpoint; gives those in which something does not verify or cannot be read.
    /// If there are any, a new checkpoint takes the place of the pair. The journals are left out: they are appended
    /// to, and each opening reads both of them whole.
    ///
    /// # Errors
    ///
    /// The new checkpoint could not be written; the catalog is as durable as it was before.
    pub fn verify_copies(&self) -> Result<Vec<PathBuf>> {
        let Some(journal) = &self.journal else { return Ok(Vec::new()) };
        let mut rest = self.checkpointing.lock();
        let (mut newest, mut unread) = (None, Vec::new());
        for copy in COPIES {
            match listed(&*self.vfs, &self.dir.join(copy), "checkpoint-") {
                Ok(there) => newest = there.iter().map(|(_, seq)| *seq).max().max(newest),
                Err(e) => unread.push(e),
            }
        }
        // One folder that cannot be read is a bad copy; of two nobody knows what is in them.
        if unread.len() == COPIES.len()
            && let Some(e) = unread.pop()
        {
            return Err(e);
        }
        // None before the first one: the journal has everything.
        let Some(seq) = newest else { return Ok(Vec::new()) };
        let paths = COPIES.map(|copy| checkpoint_path(&self.dir, copy, seq));
        let bad: Vec<PathBuf> =
            paths.into_iter().filter(|path| !is_whole(&*self.vfs, path, seed(&self.store, seq))).collect();
        if !bad.is_empty() {
            self.checkpoint_locked(journal, &mut rest)?;
        }
        Ok(bad)
    }

    pub(super) fn checkpoint_once(&self, journal: &Journal) -> Result<()> {
        let (seq, _) = journal.rotate(self.now())?;
        let heat = match self.heat.get() {
            Some(heat) => heat(),
            None => self.saved_heat.lock().clone(),
        };
        let written = self.write_checkpoint(journal, seq, &heat);
        if written.is_err() {
            for copy in COPIES {
                let _ = self.vfs.remove_file(&checkpoint_path(&self.dir, copy, seq).with_extension("tmp"));
            }
            journal.discard_orphan(seq);
        }
        let (pair, newest) = written?;
        self.publish(&pair, seq)?;
        journal.mend(newest);
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.release_dropped(newest);
        remove_older(&*self.vfs, &self.dir, seq);
        Ok(())
    }

    /// Writes both copies under temporary names and makes everything durable that they contain. Gives them, and
    /// the number up to which all frames are in them or in the new journal.
    pub(super) fn write_checkpoint(
        &self,
        journal: &Journal,
        seq: u64,
        heat: &[u8],
    ) -> Result<(Vec<PathBuf>, u64)> {
        let mut twin = Twin::create(self, seq)?;
        // Containers before shards: a container named by a shard's block was published before, or its frame is in
        // the new journal.
        twin.block(CONTAINERS, 0, 0, &self.encode_containers())?;
        let mut newest = journal.durable();
        for no in 0..SHARDS {
            let (payload, last_frame) = encode_shard(&self.shard(no).read());
            newest = newest.max(last_frame);
            twin.block(SHARD, no as u64, last_frame, &payload)?;
        }
        twin.block(HEAT, 0, 0, heat)?;
        let blocks = twin.blocks;
        twin.block(END, blocks, newest, &[])?;
        twin.finish()?;
        // What the blocks contain must be in the new journal before the old one may go.
        let newest = journal.sync_unmended(self.now())?.max(newest);
        Ok((twin.pair.into_iter().map(|(path, _)| path).collect(), newest))
    }

    /// Gives both copies their names. From the first rename on the checkpoint may be what recovery finds, so an
    /// error here takes nothing back: the pair of journals of the same number stays.
    pub(super) fn publish(&self, written: &[PathBuf], seq: u64) -> Result<()> {
        for (copy, tmp) in COPIES.iter().zip(written) {
            let path = checkpoint_path(&self.dir, copy, seq);
            self.vfs.rename(tmp, &path).at("publish", &path)?;
            let folder = self.dir.join(copy);
            self.vfs.sync_dir(&folder).at("sync", &folder)?;
        }
        Ok(())
    }

    fn encode_containers(&self) -> Vec<u8> {
        // Those that are not attached (their directory is away) are still the catalog's: its entries point there.
        let mut known = self.absent.lock().clone();
        known.extend(self.containers.all().iter().map(|e| (e.no, e.known())));
        let mut out = Vec::with_capacity(known.len() * CONTAINER_BYTES);
        for k in known.values() {
            out.extend_from_slice(&k.no.to_le_bytes());
            out.extend_from_slice(&k.id.to_le_bytes());
            out.push(k.tier as u8);
            out.push(0);
            out.extend_from_slice(&k.dir.to_le_bytes());
            out.extend_from_slice(&k.created_ms.to_le_bytes());
            out.extend_from_slice(&k.records.to_le_bytes());
            out.extend_from_slice(&k.earliest_expiry.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
        }
        out
    }
}

fn encode_shard(shard: &Shard) -> (Vec<u8>, u64) {
    let mut out =
        Vec::with_capacity(16 + shard.index.len() * ENTRY_BYTES + shard.expiries.len() * EXPIRY_BYTES);
    out.extend_from_slice(&(shard.index.len() as u64).to_le_bytes());
    out.extend_from_slice(&(shard.expiries.len() as u64).to_le_bytes());
    let pair = |ident: Ident, place: Place, out: &mut Vec<u8>| {
        out.extend_from_slice(ident.bits().to_le_bytes().get(..6).unwrap_or_default());
        out.extend_from_slice(place.to_bits().to_le_bytes().get(..5).unwrap_or_default());
    };
    for (ident, place) in shard.index.iter() {
        pair(ident, place, &mut out);
    }
    for (ident, ms) in &shard.expiries {
        // An expiry without a place cannot be: both go together.
        let place = shard.index.get(*ident).unwrap_or(Place::from_bits(0));
        pair(*ident, place, &mut out);
        out.extend_from_slice(&ms.to_le_bytes());
    }
    (out, shard.last_frame)
}

/// Removes what a published checkpoint replaces. Failing only leaves files that the next one removes.
pub(crate) fn remove_older(vfs: &dyn Vfs, dir: &Path, seq: u64) {
    for copy in COPIES {
        let folder = dir.join(copy);
        for (name, number) in numbered(vfs, &folder, "checkpoint-") {
            if number < seq {
                let _ = vfs.remove_file(&folder.join(name));
            }
        }
        for (_, number) in numbered(vfs, &folder, "journal-") {
            if number < seq {
                let _ = vfs.remove_file(&journal_path(dir, copy, number));
            }
        }
    }
}

/// A checkpoint as it was read.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) shards: Vec<Shard>,
    pub(crate) containers: Vec<Known>,
    pub(crate) heat: Vec<u8>,
    pub(crate) newest: u64,
    pub(crate) time: u64,
    /// Blocks that were damaged in one copy.
    pub(crate) mended: u64,
}

/// Reads a checkpoint, each block from the first copy in which it verifies. `CatalogLost` if it does in neither.
pub(crate) fn load(vfs: &dyn Vfs, dir: &Path, store: &[u8; 16], seq: u64) -> Result<Loaded> {
    let lost = |why: String| Error::CatalogLost { path: dir.to_path_buf(), why };
    let copies = open_twins(vfs, &COPIES.map(|copy| checkpoint_path(dir, copy, seq)))?;
    let seed = seed(store, seq);
    let mut loaded = Loaded { shards: (0..SHARDS).map(|_| Shard::default()).collect(), ..Loaded::default() };
    let mut found = None;
    loaded.mended += (COPIES.len() - copies.len()) as u64;
    // The second copy of a block is read only if the first is damaged; its length at least is compared.
    let lengths = copies.iter().zip(copies.iter().skip(1));
    loaded.mended += lengths.filter(|(a, b)| a.len != b.len).count() as u64;
    for copy in &copies {
        match read_head(copy, seed)? {
            Some(time) => found = Some(time),
            None => loaded.mended += 1,
        }
    }
    loaded.time = found.ok_or_else(|| lost(format!("checkpoint {seq} has no readable header")))?;
    let mut at = HEAD as u64;
    let mut blocks = 0;
    let mut readers: Vec<Reader> = copies.iter().map(Reader::new).collect();
    loop {
        let block = readers.iter_mut().find_map(|reader| {
            let block = read_block(reader, at, seed);
            loaded.mended += u64::from(block.is_none());
            block
        });
        let b =
            block.ok_or_else(|| lost(format!("checkpoint {seq} is damaged at byte {at} in both copies")))?;
        at += (BLOCK_HEAD + b.payload.len()) as u64;
        match b.kind {
            CONTAINERS => loaded.containers = decode_containers(b.payload),
            SHARD => {
                if let Some(shard) = loaded.shards.get_mut(usize::try_from(b.number).unwrap_or(SHARDS)) {
                    decode_shard(b.payload, shard);
                    shard.last_frame = b.last_frame;
                }
            }
            HEAT => loaded.heat = b.payload.to_vec(),
            END if b.number == blocks => {
                loaded.newest = b.last_frame;
                // The frames of such a shard would be passed over, those of the future too.
                if loaded.shards.iter().any(|s| s.last_frame > loaded.newest) {
                    return Err(lost(format!("checkpoint {seq} has frames beyond its newest")));
                }
                return Ok(loaded);
            }
            _ => return Err(lost(format!("checkpoint {seq} has an unknown block before byte {at}"))),
        }
        blocks += 1;
    }
}

/// Whether every block of one copy verifies, to the last.
pub(super) fn is_whole(vfs: &dyn Vfs, path: &Path, seed: u64) -> bool {
    let Ok(copies) = open_twins(vfs, &[path.to_path_buf()]) else { return false };
    let Some(copy) = copies.first().filter(|c| matches!(read_head(c, seed), Ok(Some(_)))) else {
        return false;
    };
    let (mut at, mut reader) = (HEAD as u64, Reader::new(copy));
    while let Some(block) = read_block(&mut reader, at, seed) {
        at += (BLOCK_HEAD + block.payload.len()) as u64;
        if block.kind == END {
            return at == copy.len;
        }
    }
    false
}

fn read_head(copy: &Copy, seed: u64) -> Result<Option<u64>> {
    let mut b = [0; HEAD];
    if copy.file.read_exact_at(&mut b, 0).is_err() {
        return Ok(None);
    }
    if le32(&b, 0) != FILE_MAGIC || checksum(seed, b.get(..56).unwrap_or_default()) != le64(&b, 56) {
        return Ok(None);
    }
    let format = le32(&b, 4);
    if format > FORMAT {
        return Err(Error::NewerFormat { path: copy.path.clone(), found: format, supported: FORMAT });
    }
    Ok(Some(le64(&b, 40)))
}

/// A copy that is read from its beginning to its end.
struct Reader<'a> {
    copy: &'a Copy,
    /// Where `bytes` stand.
    at: u64,
    bytes: Vec<u8>,
    /// A window up to here could not be read, and what is in it is read piece by piece: what cannot be read costs the
    /// block that it stands in, and its disk is not asked for it over and over.
    refused: u64,
}

impl<'a> Reader<'a> {
    fn new(copy: &'a Copy) -> Reader<'a> {
        Reader { copy, at: 0, bytes: Vec::new(), refused: 0 }
    }

    /// These bytes of the copy, if they are there and can be read.
    fn view(&mut self, at: u64, len: usize) -> Option<&[u8]> {
        let end = at.checked_add(len as u64)?;
        if end > self.copy.len {
            return None;
        }
        if at < self.at || end > self.at + self.bytes.len() as u64 {
            self.fill(at, len);
        }
        let from = usize::try_from(at.checked_sub(self.at)?).ok()?;
        self.bytes.get(from..from.checked_add(len)?)
    }

    /// Reads so many bytes, and those behind them for the next blocks, or none.
    fn fill(&mut self, at: u64, len: usize) {
        let left = usize::try_from(self.copy.len.saturating_sub(at)).unwrap_or(usize::MAX);
        let window = if at < self.refused { len } else { len.max(WINDOW).min(left) };
        self.at = at;
        for want in [window, len] {
            self.bytes.resize(want, 0);
            if self.copy.file.read_exact_at(&mut self.bytes, at).is_ok() {
                return;
            }
            self.bytes.clear();
            self.refused = self.refused.max(at.saturating_add(want as u64));
            if want == len {
                return;
            }
        }
    }
}

struct Block<'a> {
    kind: u32,
    number: u64,
    last_frame: u64,
    payload: &'a [u8],
}

/// The block at a byte, if it verifies. A length is believed no further than the file reaches.
fn read_block<'a>(reader: &'a mut Reader, at: u64, seed: u64) -> Option<Block<'a>> {
    let head: [u8; BLOCK_HEAD] = *reader.view(at, BLOCK_HEAD)?.first_chunk()?;
    let len = le64(&head, 16);
    if le32(&head, 0) != BLOCK_MAGIC || len > MAX_PAYLOAD {
        return None;
    }
    let payload = reader.view(at.checked_add(BLOCK_HEAD as u64)?, usize::try_from(len).ok()?)?;
    if checksum(checksum(seed, head.get(..32)?), payload) != le64(&head, 32) {
        return None;
    }
    Some(Block { kind: le32(&head, 4), number: le64(&head, 8), last_frame: le64(&head, 24), payload })
}

fn decode_containers(payload: &[u8]) -> Vec<Known> {
    payload
        .chunks_exact(CONTAINER_BYTES)
        .filter_map(|b| {
            Some(Known {
                no: le16(b, 0),
                id: le64(b, 2),
                tier: Tier::from_u8(*b.get(10)?)?,
                dir: le16(b, 12),
                created_ms: le64(b, 14),
                records: le64(b, 22),
                earliest_expiry: le64(b, 30),
            })
        })
        .collect()
}

fn pair_at(b: &[u8]) -> (Ident, Place) {
    let mut place = [0; 8];
    for (to, from) in place.iter_mut().zip(b.get(6..11).unwrap_or_default()) {
        *to = *from;
    }
    let mut ident = [0; 8];
    for (to, from) in ident.iter_mut().zip(b.get(..6).unwrap_or_default()) {
        *to = *from;
    }
    (Ident::from_bits(u64::from_le_bytes(ident)), Place::from_bits(u64::from_le_bytes(place)))
}

/// The checksum was right, so the counts are; they still bound nothing but what the payload holds.
fn decode_shard(payload: &[u8], shard: &mut Shard) {
    let entries = usize::try_from(le64(payload, 0)).unwrap_or(0);
    let split = entries.saturating_mul(ENTRY_BYTES).min(payload.len().saturating_sub(16));
    let (index, expiries) = payload.get(16..).unwrap_or_default().split_at(split);
    for b in index.chunks_exact(ENTRY_BYTES) {
        let (ident, place) = pair_at(b);
        shard.index.insert(ident, place);
    }
    for b in expiries.chunks_exact(EXPIRY_BYTES) {
        let (ident, _) = pair_at(b);
        shard.expiries.insert(ident, le64(b, 11));
    }
}
