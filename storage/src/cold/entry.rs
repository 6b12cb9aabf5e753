//! One entry of a pack: the extra field that makes a ZIP entry a record, and the local header it stands in.
//!
//! ZIP says name, lengths and CRC-32. What it cannot say is in the extra field [`RECORD`], which the local header
//! and the central directory carry alike:
//!
//! ```text
//!  0  u32  magic "TCE1"
//!  4  u8   codec (0 none, 3 deflate)   5  u8  content type   6  u16 flags (bit 0: the name is the key)
//!  8  u64  version
//! 16  u64  expires at (ms since the epoch, 0 = never)
//! 24  u64  identity (48 bits)
//! 32  u32  original length              36 u32 stored length
//! 40  u64  payload checksum: xxh3-64 of the payload, seeded with the version
//! 48  u32  position: offset of the local header / 32
//! 52  u32  offset of the payload from the local header
//! 56  u32  length of the key            60 u32 zero
//! 64  u64  checksum: xxh3-64 of bytes 0..64, then the key (below) and the name, seeded with store and container
//! 72  the key, unless the name, percent-decoded, is the key
//! ```
//!
//! Invariant: nothing of an entry is believed before that checksum matched; it binds the entry to its store, its
//! container and its position, so neither a block of another file nor a ZIP archive inside a value passes for an
//! entry of the pack.

use super::names;
use crate::ident::Ident;
use crate::item::{Head, Item};
use crate::record::{MAX_VALUE, checksum, encode_value_fields, le16, le32, le64, verify_payload};
use crate::types::{Codec, ContentType, MAX_KEY, Version};
use bytes::Bytes;
use rawzip::extra_fields::{ExtraFieldId, ExtraFields};

/// Header id of the record's extra field: "TC".
pub(super) const RECORD: ExtraFieldId = ExtraFieldId::new(u16::from_le_bytes(*b"TC"));
/// Header id of the pack's identity, in the first local header: "TI".
pub(super) const IDENTITY: ExtraFieldId = ExtraFieldId::new(u16::from_le_bytes(*b"TI"));
/// Header id of padding, zeros: "TP".
pub(super) const PADDING: ExtraFieldId = ExtraFieldId::new(u16::from_le_bytes(*b"TP"));
/// Header id and length of an extra field.
pub(super) const EXTRA_HEADER: usize = 4;
/// Fixed part of the record's extra field.
pub(super) const FIXED: usize = 72;
/// Fixed part of a local file header.
pub(super) const LOCAL: usize = 30;
/// Fixed part of a central directory entry.
pub(super) const CENTRAL: usize = 46;
/// Extra field with the modification time, in the central directory.
const TIMESTAMP: usize = 9;
/// The data descriptor behind a payload (payloads are below 4 GiB).
pub(super) const DESCRIPTOR: usize = 16;
/// What a local file header begins with.
pub(super) const SIGNATURE: &[u8; 4] = b"PK\x03\x04";
/// Largest local header in bytes, whatever it claims.
pub(super) const LARGEST_HEADER: usize = LOCAL + 2 * u16::MAX as usize;

const MAGIC: u32 = u32::from_le_bytes(*b"TCE1");
const KEY_IS_NAME: u16 = 1;

/// The seed of a pack's header checksums.
pub(super) fn seed(store: &[u8; 16], id: u64) -> u64 {
    checksum(id, store)
}

/// An entry's metadata, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) head: Head,
    pub(super) payload_sum: u64,
    pub(super) position: u32,
    /// Where the payload begins, from the local header on.
    pub(super) data_at: u32,
    /// Bytes on disk: local header, payload, descriptor, and the entry in the central directory.
    pub(super) bytes: u32,
}

impl Meta {
    /// Bytes from the local header to the end of the payload.
    pub(super) fn payload_end(&self) -> u64 {
        u64::from(self.data_at) + u64::from(self.head.stored_len)
    }

    /// Checks the payload.
    pub(super) fn verify_payload(&self, payload: &[u8]) -> Result<(), &'static str> {
        verify_payload(&self.head, self.payload_sum, payload)
    }
}

/// Where the parts of an entry to be written come to stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Length of the record's extra field without its header.
    pub(super) record_len: usize,
    /// Zeros in the padding field; `None`: no such field.
    pub(super) padding: Option<usize>,
    /// Where the payload begins, from the local header on.
    pub(super) data_at: usize,
    /// Bytes up to the next local header, a multiple of 32.
    pub(super) local_len: u64,
    /// Bytes in the central directory.
    pub(super) central_len: usize,
}

impl Layout {
    /// The layout of an entry; `identity` is the length of the identity field's contents, in the first entry.
    pub(super) fn new(name: usize, key: Option<usize>, identity: Option<usize>, stored: usize) -> Layout {
        let record_len = FIXED + key.unwrap_or(0);
        let fields = EXTRA_HEADER + record_len + identity.map_or(0, |n| EXTRA_HEADER + n);
        let bare = LOCAL + name + fields;
        let end = bare + stored + DESCRIPTOR;
        let gap = end.next_multiple_of(crate::record::ALIGN) - end;
        // A padding field has a header of its own; a smaller gap is widened by one unit.
        let pad = match gap {
            0 => 0,
            gap if gap < EXTRA_HEADER => gap + crate::record::ALIGN,
            gap => gap,
        };
        Layout {
            record_len,
            padding: (pad > 0).then(|| pad - EXTRA_HEADER),
            data_at: bare + pad,
            local_len: (end + pad) as u64,
            central_len: CENTRAL + name + EXTRA_HEADER + record_len + TIMESTAMP,
        }
    }

    /// Bytes on disk in all.
    pub(super) fn bytes(&self) -> u32 {
        u32::try_from(self.local_len + self.central_len as u64).unwrap_or(u32::MAX)
    }
}

/// The contents of the record's extra field. `item` has the codec and payload that go into the pack.
pub(super) fn encode(
    item: &Item,
    name: &str,
    key_is_name: bool,
    position: u32,
    layout: &Layout,
    seed: u64,
) -> Vec<u8> {
    let key: &[u8] = if key_is_name { &[] } else { &item.key };
    let mut out = Vec::with_capacity(layout.record_len);
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.push(item.codec as u8);
    out.push(item.content_type as u8);
    out.extend_from_slice(&(if key_is_name { KEY_IS_NAME } else { 0 }).to_le_bytes());
    encode_value_fields(item, &mut out);
    out.extend_from_slice(&position.to_le_bytes());
    out.extend_from_slice(&(layout.data_at as u32).to_le_bytes());
    out.extend_from_slice(&(item.key.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let sum = header_sum(seed, &out, key, name.as_bytes());
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(key);
    out
}

fn header_sum(seed: u64, fixed: &[u8], key: &[u8], name: &[u8]) -> u64 {
    checksum(checksum(checksum(seed, fixed), key), name)
}

/// Parses and verifies an entry from its name and its extra fields.
pub(super) fn parse(extra: &[u8], name: &[u8], seed: u64) -> Result<Meta, &'static str> {
    let field = ExtraFields::new(extra)
        .find_map(|(id, data)| (id == RECORD).then_some(data))
        .ok_or("the entry has no extra field of a record")?;
    let (fixed, stored_key) = field.split_at_checked(FIXED).ok_or("the extra field is cut short")?;
    let covered = fixed.get(..FIXED - 8).ok_or("the extra field is cut short")?;
    if le32(fixed, 0) != MAGIC {
        return Err("no record of a known format begins here");
    }
    if header_sum(seed, covered, stored_key, name) != le64(fixed, FIXED - 8) {
        return Err("the header's checksum does not match");
    }
    let [codec, content_type] = [4, 5].map(|at| fixed.get(at).copied().unwrap_or(u8::MAX));
    let codec = match Codec::from_u8(codec) {
        Some(codec @ (Codec::None | Codec::Deflate)) => codec,
        _ => return Err("unknown codec"),
    };
    let content_type = ContentType::from_u8(content_type).ok_or("unknown content type")?;
    let is_name = le16(fixed, 6) & KEY_IS_NAME != 0;
    let key = if is_name {
        names::decode(name).ok_or("the name is not well encoded")?
    } else {
        stored_key.to_vec()
    };
    if key.is_empty() || key.len() > MAX_KEY || key.len() != le32(fixed, 56) as usize {
        return Err("impossible key length");
    }
    let (original_len, stored_len) = (le32(fixed, 32), le32(fixed, 36));
    if u64::from(original_len) > MAX_VALUE || u64::from(stored_len) > MAX_VALUE {
        return Err("impossible value length");
    }
    let data_at = le32(fixed, 52);
    let central = CENTRAL + name.len() + EXTRA_HEADER + field.len() + TIMESTAMP;
    let bytes = u64::from(data_at) + u64::from(stored_len) + (DESCRIPTOR + central) as u64;
    Ok(Meta {
        head: Head {
            key: Bytes::from(key),
            ident: Ident::from_bits(le64(fixed, 24)),
            version: Version(le64(fixed, 8)),
            expires_at: le64(fixed, 16),
            content_type,
            codec,
            original_len,
            stored_len,
        },
        payload_sum: le64(fixed, 40),
        position: le32(fixed, 48),
        data_at,
        bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
    })
}

/// What the bytes at a position turned out to be.
#[derive(Debug)]
pub(super) enum Local {
    /// An entry, verified.
    Entry(Meta),
    /// This many bytes are needed to tell; at most [`LARGEST_HEADER`].
    Needs(usize),
    /// No entry of this pack.
    Bad(&'static str),
}

/// Parses and verifies the local header that `bytes` begins with.
pub(super) fn parse_local(bytes: &[u8], seed: u64, position: u32) -> Local {
    if !bytes.starts_with(SIGNATURE.get(..bytes.len().min(4)).unwrap_or_default()) {
        return Local::Bad("no entry begins here");
    }
    if bytes.len() < LOCAL {
        return Local::Needs(LOCAL);
    }
    let name_len = usize::from(le16(bytes, 26));
    let extra_at = LOCAL + name_len;
    let end = extra_at + usize::from(le16(bytes, 28));
    let (Some(name), Some(extra)) = (bytes.get(LOCAL..extra_at), bytes.get(extra_at..end)) else {
        return Local::Needs(end);
    };
    match parse(extra, name, seed) {
        Ok(meta) if meta.position != position => Local::Bad("the entry belongs to another position"),
        Ok(meta) if meta.data_at as usize != end => Local::Bad("the payload begins elsewhere"),
        Ok(meta) => Local::Entry(meta),
        Err(why) => Local::Bad(why),
    }
}
