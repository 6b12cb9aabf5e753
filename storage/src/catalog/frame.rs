//! Frames and batches: the bytes of the journal.
//!
//! ```text
//! file header, 64 bytes                      batch header, 64 bytes
//!  0 u32 magic "TCJF"  4 u32 format           0 u32 magic "TCJB"  4 u32 frames in the batch
//!  8 [16] store id                            8 u64 number of the first frame
//! 24 u64 sequence number of the file         16 u64 durable: frames up to here are synced in both copies
//! 32 u64 open counter                        24 u64 time, ms of the engine's clock
//! 40 u64 number of its first frame           32 u64 open counter
//! 48 u64 zero                                40 u64 sequence number of the file   48 u64 zero
//! 56 u64 checksum of 0..56                   56 u64 checksum of 0..56 and the frames
//!
//! frame, 32 bytes: u48 identity (or shard) · u8 kind · u8 zero · u64 version (or container id)
//!                  u40 place · u24 zero · u64 expiry (or creation time), ms
//! ```
//!
//! Checksums are xxh3-64 seeded with the store id and the file's sequence number, so that no batch of another
//! file verifies here.
//!
//! Invariant: a batch counts whole or not at all: its checksum covers header and frames, so what a torn write leaves
//! of it does not verify. Whether that is the end of the journal or damage is decided by who replays (`recovery.rs`).

use crate::container::Known;
use crate::error::{Error, Result};
use crate::ident::Ident;
use crate::record::{checksum, le32, le64};
use crate::types::{Place, Tier, Version};
use std::path::Path;

/// Bytes of a file header, and of a batch header.
pub(crate) const HEAD: usize = 64;
/// Bytes of a frame.
pub(crate) const FRAME: usize = 32;
/// The newest journal format known here.
pub(crate) const FORMAT: u32 = 1;
/// Most frames in one batch: 2 MiB.
pub(crate) const MAX_BATCH: usize = 65_536;

/// Numbers of frames stay below this.
const MAX_NUMBER: u64 = 1 << 62;

const FILE_MAGIC: u32 = u32::from_le_bytes(*b"TCJF");
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"TCJB");

/// One change of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The live copy of an identity is here now: a write, or a move.
    Put { ident: Ident, version: Version, place: Place, expires_at: u64 },
    /// An identity is dead: removed, expired, evicted, displaced or damaged.
    Dead { ident: Ident, version: Version },
    /// The expiry of the copy at a place was changed.
    Expire { ident: Ident, version: Version, place: Place, expires_at: u64 },
    /// Everything in a shard is dead.
    Clear { shard: u64, version: Version },
    /// A container exists.
    Created(Known),
    /// A container is gone.
    Dropped { no: u16, id: u64 },
    /// It is so late, and nothing else happened: for the time of its batch.
    Time { ms: u64 },
}

const PUT: u8 = 1;
const DEAD: u8 = 2;
const EXPIRE: u8 = 3;
const CLEAR: u8 = 4;
const CREATED: u8 = 5;
const DROPPED: u8 = 6;
const TIME: u8 = 7;

impl Frame {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let (ident, kind, version, place, time) = match *self {
            Frame::Put { ident, version, place, expires_at } => {
                (ident.bits(), PUT, version.0, place.to_bits(), expires_at)
            }
            Frame::Dead { ident, version } => (ident.bits(), DEAD, version.0, 0, 0),
            Frame::Expire { ident, version, place, expires_at } => {
                (ident.bits(), EXPIRE, version.0, place.to_bits(), expires_at)
            }
            Frame::Clear { shard, version } => (shard, CLEAR, version.0, 0, 0),
            Frame::Created(k) => {
                let place = (u64::from(k.no) << 24) | (u64::from(k.dir) << 8) | k.tier as u64;
                (0, CREATED, k.id, place, k.created_ms)
            }
            Frame::Dropped { no, id } => (0, DROPPED, id, u64::from(no) << 24, 0),
            Frame::Time { ms } => (0, TIME, 0, 0, ms),
        };
        out.extend_from_slice(&(ident | (u64::from(kind) << 48)).to_le_bytes());
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&place.to_le_bytes());
        out.extend_from_slice(&time.to_le_bytes());
    }

    /// `None` for a kind that this version does not know (the checksum was right, so a newer one wrote it).
    pub(crate) fn decode(b: &[u8]) -> Option<Frame> {
        let head = le64(b, 0);
        let ident = Ident::from_bits(head);
        let version = Version(le64(b, 8));
        let place = Place::from_bits(le64(b, 16));
        let time = le64(b, 24);
        Some(match (head >> 48) as u8 {
            PUT => Frame::Put { ident, version, place, expires_at: time },
            DEAD => Frame::Dead { ident, version },
            EXPIRE => Frame::Expire { ident, version, place, expires_at: time },
            CLEAR => Frame::Clear { shard: ident.bits(), version },
            CREATED => Frame::Created(Known {
                no: place.container(),
                id: version.0,
                tier: Tier::from_u8(place.position() as u8)?,
                dir: (place.position() >> 8) as u16,
                created_ms: time,
                records: 0,
                earliest_expiry: u64::MAX,
            }),
            DROPPED => Frame::Dropped { no: place.container(), id: version.0 },
            TIME => Frame::Time { ms: time },
            _ => return None,
        })
    }
}

/// What a journal file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileHead {
    pub(crate) store: [u8; 16],
    pub(crate) seq: u64,
    pub(crate) open: u64,
    pub(crate) first: u64,
}

/// The seed of all checksums of a file of the catalog.
pub(crate) fn seed(store: &[u8; 16], seq: u64) -> u64 {
    checksum(seq, store)
}

impl FileHead {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD);
        out.extend_from_slice(&FILE_MAGIC.to_le_bytes());
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.store);
        for n in [self.seq, self.open, self.first, 0] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        let sum = checksum(seed(&self.store, self.seq), &out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// `Ok(None)` if it is damaged; an error only for a newer format.
    pub(crate) fn decode(b: &[u8], store: &[u8; 16], seq: u64, path: &Path) -> Result<Option<FileHead>> {
        let Some(b) = b.get(..HEAD) else { return Ok(None) };
        let sum = checksum(seed(store, seq), b.get(..HEAD - 8).unwrap_or_default());
        if le32(b, 0) != FILE_MAGIC || sum != le64(b, 56) {
            return Ok(None);
        }
        let format = le32(b, 4);
        if format > FORMAT {
            return Err(Error::NewerFormat { path: path.to_path_buf(), found: format, supported: FORMAT });
        }
        let first = le64(b, 40);
        // Numbers are counted on from here, and back by one: no store gets near the end of them.
        let sound = (1..MAX_NUMBER).contains(&first);
        Ok(sound.then(|| FileHead { store: *store, seq, open: le64(b, 32), first }))
    }
}

/// What a batch says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchHead {
    pub(crate) count: u32,
    pub(crate) first: u64,
    /// Frames up to and including this number were synced in both copies when the batch was written.
    pub(crate) durable: u64,
    pub(crate) time: u64,
    pub(crate) open: u64,
}

impl BatchHead {
    /// Bytes of the batch.
    pub(crate) fn len(&self) -> usize {
        HEAD + FRAME * self.count as usize
    }
}

/// Appends a batch to `out`.
pub(crate) fn encode_batch(head: &BatchHead, seq: u64, seed: u64, frames: &[Frame], out: &mut Vec<u8>) {
    let start = out.len();
    out.reserve(head.len());
    out.extend_from_slice(&BATCH_MAGIC.to_le_bytes());
    out.extend_from_slice(&head.count.to_le_bytes());
    for n in [head.first, head.durable, head.time, head.open, seq, 0, 0] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    for f in frames {
        f.encode(out);
    }
    let batch = out.get(start..).unwrap_or_default();
    let sum = batch_sum(batch, seed);
    if let Some(slot) = out.get_mut(start + 56..start + 64) {
        slot.copy_from_slice(&sum.to_le_bytes());
    }
}

fn batch_sum(batch: &[u8], seed: u64) -> u64 {
    let head = checksum(seed, batch.get(..56).unwrap_or_default());
    checksum(head, batch.get(HEAD..).unwrap_or_default())
}

/// The batch that begins at the start of `b`, if one verifies there.
pub(crate) fn decode_batch(b: &[u8], seq: u64, seed: u64) -> Option<(BatchHead, &[u8])> {
    if b.len() < HEAD || le32(b, 0) != BATCH_MAGIC || le64(b, 40) != seq {
        return None;
    }
    let head = BatchHead {
        count: le32(b, 4),
        first: le64(b, 8),
        durable: le64(b, 16),
        time: le64(b, 24),
        open: le64(b, 32),
    };
    if head.count == 0 || head.count as usize > MAX_BATCH {
        return None;
    }
    let batch = b.get(..head.len())?;
    if batch_sum(batch, seed) != le64(b, 56) {
        return None;
    }
    Some((head, batch.get(HEAD..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        let place = Place::new(3, 77).unwrap();
        let ident = Ident::from_bits(0xabcd_ef01_2345);
        vec![
            Frame::Put { ident, version: Version(5), place, expires_at: 9 },
            Frame::Dead { ident, version: Version(6) },
            Frame::Time { ms: 12 },
            Frame::Expire { ident, version: Version(7), place, expires_at: 0 },
            Frame::Clear { shard: 255, version: Version(8) },
            Frame::Created(Known {
                no: 65_535,
                id: u64::MAX,
                tier: Tier::Cold,
                dir: 65_535,
                created_ms: 12,
                records: 0,
                earliest_expiry: u64::MAX,
            }),
            Frame::Dropped { no: 1, id: 2 },
        ]
    }

    #[test]
    fn a_batch_round_trips_and_every_flipped_bit_is_found() {
        let frames = frames();
        let head = BatchHead { count: 7, first: 10, durable: 9, time: 1, open: 2 };
        let mut out = Vec::new();
        encode_batch(&head, 4, 99, &frames, &mut out);
        let (h, body) = decode_batch(&out, 4, 99).unwrap();
        assert_eq!(h, head);
        let back: Vec<_> = body.chunks(FRAME).map(|c| Frame::decode(c).unwrap()).collect();
        assert_eq!(back, frames);
        for bit in 0..out.len() * 8 {
            let mut bad = out.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_batch(&bad, 4, 99).is_none(), "bit {bit}");
        }
        assert!(decode_batch(&out, 5, 99).is_none());
        assert!(decode_batch(&out, 4, 98).is_none());
    }

    #[test]
    fn a_file_header_round_trips() {
        let h = FileHead { store: [7; 16], seq: 3, open: 4, first: 5 };
        let b = h.encode();
        assert_eq!(b.len(), HEAD);
        assert_eq!(FileHead::decode(&b, &[7; 16], 3, Path::new("j")).unwrap(), Some(h));
        assert_eq!(FileHead::decode(&b, &[8; 16], 3, Path::new("j")).unwrap(), None);
    }
}
