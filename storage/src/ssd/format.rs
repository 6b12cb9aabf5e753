//! The bytes of a segment around its records: header block, footer and trailer.
//!
//! ```text
//! header block, 4096 bytes: one copy of the header at 0, one at 2048, zeros between and behind
//!   0  8 bytes magic "TCSEGMNT"       8  u32 format version (1)
//!  12  u16 directory number          14  u8  tier (1)          15  u8  zero
//!  16  16 bytes store id             32  u64 container id
//!  40  u64 made at (ms since the epoch)
//!  48  u64 size of the file          56  zeros
//! 120  u64 checksum: xxh3-64 of bytes 0..120, seeded with the copy's offset
//!
//! footer, ending where the trailer begins: one entry for each record, in order of position
//!   0  u64 identity (lower 48 bits), key length (upper 16)
//!   8  u64 version                   16  u64 expires at (ms, 0 = never)
//!  24  u32 position                  28  u32 stored length of the payload
//!  32  key
//!
//! trailer, the last 128 bytes of the file
//!   0  8 bytes magic "TCSEGEND"       8  u32 format version (1)
//!  12  u16 directory number          14  u8  tier (1)          15  u8  1: there is a footer, 0: there is none
//!  16  16 bytes store id             32  u64 container id
//!  40  u64 made at                   48  u64 size of the file
//!  56  u64 offset of the footer      64  u64 length of the footer
//!  72  u64 number of records         80  u64 end of the records
//!  88  u64 earliest expiry (u64::MAX: none expires)
//!  96  u64 checksum of the footer: xxh3-64, seeded with the container id
//! 104  zeros
//! 120  u64 checksum: xxh3-64 of bytes 0..120, seeded with the trailer's offset
//! ```
//!
//! All integers are little-endian. Magic, version and the place of the checksum stay as they are in every later
//! format, so that "a newer format" is only ever said of bytes that verify.

use crate::container::Listed;
use crate::ident::Ident;
use crate::item::Item;
use crate::record::{self, checksum, le16, le32, le64};
use crate::types::{MAX_KEY, Place, Tier, Version};

/// The newest format of segments known here.
pub(super) const FORMAT: u32 = 1;
/// Bytes before the first record.
pub(super) const HEADER_BLOCK: u64 = 4096;
/// Where the second copy of the header stands.
pub(super) const SECOND_COPY: usize = 2048;
/// Bytes of a header copy and of the trailer.
pub(super) const BLOCK: usize = 128;
/// Bytes of the trailer.
pub(super) const TRAILER: u64 = BLOCK as u64;

const HEADER_MAGIC: &[u8; 8] = b"TCSEGMNT";
const TRAILER_MAGIC: &[u8; 8] = b"TCSEGEND";
const ENTRY_FIXED: usize = 32;

/// What header and trailer say of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub store: [u8; 16],
    pub id: u64,
    pub dir: u16,
    pub created_ms: u64,
    pub size: u64,
}

/// What the trailer adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    pub identity: Identity,
    pub has_footer: bool,
    pub footer_at: u64,
    pub footer_len: u64,
    pub records: u64,
    pub data_end: u64,
    pub earliest_expiry: u64,
    pub footer_sum: u64,
}

/// Why a header or trailer does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It verifies, and a newer engine wrote it.
    Newer(u32),
    /// It does not verify.
    Damaged(&'static str),
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    for (to, from) in block.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

fn begin(magic: &[u8; 8], i: &Identity, flag: u8) -> [u8; BLOCK] {
    let mut b = [0; BLOCK];
    put(&mut b, 0, magic);
    put(&mut b, 8, &FORMAT.to_le_bytes());
    put(&mut b, 12, &i.dir.to_le_bytes());
    put(&mut b, 14, &[Tier::Ssd as u8, flag]);
    put(&mut b, 16, &i.store);
    put(&mut b, 32, &i.id.to_le_bytes());
    put(&mut b, 40, &i.created_ms.to_le_bytes());
    put(&mut b, 48, &i.size.to_le_bytes());
    b
}

fn seal(block: &mut [u8; BLOCK], offset: u64) {
    let sum = checksum(offset, block.get(..BLOCK - 8).unwrap_or_default());
    put(block, BLOCK - 8, &sum.to_le_bytes());
}

/// Checks magic, checksum, version and tier, in this order.
fn open_block(bytes: &[u8], magic: &[u8; 8], offset: u64) -> Result<(Identity, u8), Unfit> {
    let b: &[u8; BLOCK] = bytes.first_chunk().ok_or(Unfit::Damaged("cut short"))?;
    if b.first_chunk() != Some(magic) {
        return Err(Unfit::Damaged("no magic"));
    }
    if checksum(offset, b.get(..BLOCK - 8).unwrap_or_default()) != le64(b, BLOCK - 8) {
        return Err(Unfit::Damaged("the checksum does not match"));
    }
    let format = le32(b, 8);
    if format > FORMAT {
        return Err(Unfit::Newer(format));
    }
    if format != FORMAT {
        return Err(Unfit::Damaged("a format that never was"));
    }
    let [.., tier, flag] = le32(b, 12).to_le_bytes();
    if Tier::from_u8(tier) != Some(Tier::Ssd) {
        return Err(Unfit::Damaged("a container of another tier"));
    }
    let store = b.get(16..).and_then(|s| s.first_chunk()).copied().unwrap_or_default();
    let identity =
        Identity { store, id: le64(b, 32), dir: le16(b, 12), created_ms: le64(b, 40), size: le64(b, 48) };
    Ok((identity, flag))
}

/// The header block.
pub(super) fn encode_header(identity: &Identity) -> Vec<u8> {
    let mut block = Vec::with_capacity(HEADER_BLOCK as usize);
    for at in [0, SECOND_COPY] {
        let mut copy = begin(HEADER_MAGIC, identity, 0);
        seal(&mut copy, at as u64);
        block.resize(at, 0);
        block.extend_from_slice(&copy);
    }
    block.resize(HEADER_BLOCK as usize, 0);
    block
}

/// The identity in a header block (which may be cut short), from whichever copy verifies.
pub(super) fn parse_header_block(block: &[u8]) -> Result<Identity, Unfit> {
    let copy = |at: usize| parse_header_copy(block.get(at..).unwrap_or_default(), at);
    match copy(0) {
        Ok(identity) => Ok(identity),
        Err(first) => match (copy(SECOND_COPY), first) {
            (Ok(identity), Unfit::Damaged(_)) => Ok(identity),
            (Err(Unfit::Newer(n)), _) | (_, Unfit::Newer(n)) => Err(Unfit::Newer(n)),
            (Err(second), _) => Err(second),
        },
    }
}

/// The identity in the copy of the header that stands at `at` in the header block.
pub(super) fn parse_header_copy(copy: &[u8], at: usize) -> Result<Identity, Unfit> {
    open_block(copy, HEADER_MAGIC, at as u64).map(|(identity, _)| identity)
}

/// The trailer's bytes, to stand `TRAILER` before the end of the file.
pub(super) fn encode_trailer(t: &Trailer) -> [u8; BLOCK] {
    let mut b = begin(TRAILER_MAGIC, &t.identity, u8::from(t.has_footer));
    put(&mut b, 56, &t.footer_at.to_le_bytes());
    put(&mut b, 64, &t.footer_len.to_le_bytes());
    put(&mut b, 72, &t.records.to_le_bytes());
    put(&mut b, 80, &t.data_end.to_le_bytes());
    put(&mut b, 88, &t.earliest_expiry.to_le_bytes());
    put(&mut b, 96, &t.footer_sum.to_le_bytes());
    seal(&mut b, t.identity.size.saturating_sub(TRAILER));
    b
}

/// The trailer that stands at `offset`.
pub(super) fn parse_trailer(bytes: &[u8], offset: u64) -> Result<Trailer, Unfit> {
    let (identity, flag) = open_block(bytes, TRAILER_MAGIC, offset)?;
    if identity.size.checked_sub(TRAILER) != Some(offset) {
        return Err(Unfit::Damaged("not at the end of the file"));
    }
    Ok(Trailer {
        identity,
        has_footer: flag == 1,
        footer_at: le64(bytes, 56),
        footer_len: le64(bytes, 64),
        records: le64(bytes, 72),
        data_end: le64(bytes, 80),
        earliest_expiry: le64(bytes, 88),
        footer_sum: le64(bytes, 96),
    })
}

/// Bytes that a record's entry takes in the footer.
pub(super) const fn entry_len(key_len: usize) -> u64 {
    (ENTRY_FIXED + key_len) as u64
}

/// Appends the footer entry of a record.
pub(super) fn encode_entry(item: &Item, position: u32, out: &mut Vec<u8>) {
    let ident = item.ident.bits() | (item.key.len() as u64) << Ident::BITS;
    out.extend_from_slice(&ident.to_le_bytes());
    out.extend_from_slice(&item.version.0.to_le_bytes());
    out.extend_from_slice(&item.expires_at.to_le_bytes());
    out.extend_from_slice(&position.to_le_bytes());
    out.extend_from_slice(&(item.payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&item.key);
}

/// The records that footer entries tell of. `None` if they make no sense, which a checksum has excluded already
/// for all but the engine's own mistakes.
pub(super) fn parse_entries(mut bytes: &[u8], data_end: u64) -> Option<Vec<Listed>> {
    let mut out = Vec::new();
    let mut floor = HEADER_BLOCK;
    while !bytes.is_empty() {
        let fixed: &[u8; ENTRY_FIXED] = bytes.first_chunk()?;
        let ident = le64(fixed, 0);
        let key_len = usize::try_from(ident >> Ident::BITS).ok()?;
        let position = le32(fixed, 24);
        let size = record::size(key_len, le32(fixed, 28) as usize);
        let offset = u64::from(position) * Place::UNIT;
        let end = offset.checked_add(size)?;
        if key_len == 0 || key_len > MAX_KEY || offset < floor || end > data_end {
            return None;
        }
        floor = end;
        out.push(Listed {
            position,
            ident: Ident::from_bits(ident),
            version: Version(le64(fixed, 8)),
            expires_at: le64(fixed, 16),
            bytes: u32::try_from(size).ok()?,
        });
        bytes = bytes.get(ENTRY_FIXED + key_len..)?;
    }
    Some(out)
}

/// Position and key of each of the footer entries, up to the first that is cut short.
pub(super) fn keys_in(mut bytes: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    std::iter::from_fn(move || {
        let fixed: &[u8; ENTRY_FIXED] = bytes.first_chunk()?;
        let key_len = usize::try_from(le64(fixed, 0) >> Ident::BITS).ok()?;
        let (key, rest) = bytes.get(ENTRY_FIXED..)?.split_at_checked(key_len)?;
        bytes = rest;
        Some((le32(fixed, 24), key))
    })
}
