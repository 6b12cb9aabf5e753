//! The record: one item as bytes, the same in segments and in the value files of generations.
//!
//! ```text
//!  0  u32  magic "TCR1"
//!  4  u8   codec            5  u8  content type      6  u16 key length (1..=32768)
//!  8  u64  version
//! 16  u64  expires at (ms since the epoch, 0 = never)
//! 24  u64  identity (48 bits)
//! 32  u32  original length  36 u32 stored length
//! 40  u64  payload checksum: xxh3-64 of the payload, seeded with the version
//! 48  u32  ordinal: in a segment its position, in a generation its number
//! 52  u32  zero
//! 56  u64  header checksum: xxh3-64 of bytes 0..56 and the key, seeded with the container's id
//! 64  key, payload, zeros up to a multiple of 32
//! ```
//!
//! All integers are little-endian. The seeds bind a record to its container and a payload to its header, so that
//! a block of another file, or of another time, that a disk puts in this place does not verify.
//!
//! Invariants: a length is looked at only within the bytes that are there; nothing else of a record is believed before
//! the header's checksum matched, and its payload not before its own did. A crash leaves a record whole, or not
//! verifying.

use crate::error::{Error, Result};
use crate::ident::Ident;
use crate::item::{Head, Item};
use crate::types::{Codec, ContentType, MAX_KEY, Version};
use bytes::Bytes;
use std::path::Path;
use twox_hash::XxHash3_64;

/// Bytes of the fixed part.
pub const HEADER: usize = 64;
/// Records begin at multiples of this.
pub const ALIGN: usize = 32;
/// Largest value in bytes, whatever the configuration says.
pub const MAX_VALUE: u64 = 1 << 30;

const MAGIC: u32 = u32::from_le_bytes(*b"TCR1");

/// xxh3-64 with a seed: the checksum of everything that the engine writes.
pub fn checksum(seed: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

/// Bytes that a record of this key and stored payload takes, padding included.
pub fn size(key_len: usize, stored_len: usize) -> u64 {
    ((HEADER + key_len + stored_len) as u64).next_multiple_of(ALIGN as u64)
}

/// Appends the record of `item` to `out`.
pub fn encode(item: &Item, container_id: u64, ordinal: u32, out: &mut Vec<u8>) {
    let start = out.len();
    let total = size(item.key.len(), item.payload.len()) as usize;
    out.reserve(total);
    encode_head(item, container_id, ordinal, out);
    out.extend_from_slice(&item.payload);
    out.resize(start + total, 0);
}

/// Appends header and key of the record of `item` to `out`: for a payload so large that it is written from where
/// it stands. The caller sees to the padding.
pub fn encode_head(item: &Item, container_id: u64, ordinal: u32, out: &mut Vec<u8>) {
    debug_assert!(!item.key.is_empty() && item.key.len() <= MAX_KEY);
    let start = out.len();
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.push(item.codec as u8);
    out.push(item.content_type as u8);
    out.extend_from_slice(&(item.key.len() as u16).to_le_bytes());
    encode_value_fields(item, out);
    out.extend_from_slice(&ordinal.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let sum = header_sum(container_id, out.get(start..).unwrap_or_default(), &item.key);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(&item.key);
}

/// Appends bytes 8 to 48 of a header, from the version to the payload's checksum: a pack's entries have the same.
pub(crate) fn encode_value_fields(item: &Item, out: &mut Vec<u8>) {
    out.extend_from_slice(&item.version.0.to_le_bytes());
    out.extend_from_slice(&item.expires_at.to_le_bytes());
    out.extend_from_slice(&item.ident.bits().to_le_bytes());
    out.extend_from_slice(&item.original_len.to_le_bytes());
    out.extend_from_slice(&(item.payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&checksum(item.version.0, &item.payload).to_le_bytes());
}

fn header_sum(container_id: u64, fixed: &[u8], key: &[u8]) -> u64 {
    // Chained, not concatenated: the key is up to 32 KiB and is not worth a copy.
    checksum(checksum(container_id, fixed), key)
}

/// Checks a payload against what its verified header says; wherever the record stands.
pub(crate) fn verify_payload(head: &Head, sum: u64, payload: &[u8]) -> Result<(), &'static str> {
    if payload.len() != head.stored_len as usize {
        return Err("the payload is cut short");
    }
    if checksum(head.version.0, payload) != sum {
        return Err("the payload's checksum does not match");
    }
    Ok(())
}

/// A record's header, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the record says of itself.
    pub head: Head,
    /// In a segment the record's position, in a generation its number.
    pub ordinal: u32,
    payload_sum: u64,
}

impl Header {
    /// Bytes of the whole record, padding included.
    pub fn size(&self) -> u64 {
        size(self.head.key.len(), self.head.stored_len as usize)
    }

    /// Where the payload begins in the record.
    pub fn payload_at(&self) -> usize {
        HEADER + self.head.key.len()
    }

    /// Checks the payload against the header.
    pub fn verify_payload(&self, payload: &[u8]) -> Result<(), &'static str> {
        verify_payload(&self.head, self.payload_sum, payload)
    }

    /// The item, given its verified payload.
    pub fn into_item(self, payload: Bytes) -> Item {
        self.head.into_item(payload)
    }
}

/// What the first [`HEADER`] bytes claim, before the key was seen: only lengths, to know how much to read.
/// Nothing else of an unverified header may be used.
pub fn peek_lengths(fixed: &[u8]) -> Result<(usize, usize), &'static str> {
    let f = Fixed::parse(fixed)?;
    Ok((f.key_len, f.stored_len as usize))
}

/// Parses and verifies header and key from the bytes of a record (`bytes` may stop anywhere after the key).
pub fn parse_header(bytes: &[u8], container_id: u64) -> Result<Header, &'static str> {
    let f = Fixed::parse(bytes)?;
    let fixed = bytes.get(..HEADER - 8).ok_or("the header is cut short")?;
    let key = bytes.get(HEADER..HEADER + f.key_len).ok_or("the key is cut short")?;
    if header_sum(container_id, fixed, key) != f.header_sum {
        return Err("the header's checksum does not match");
    }
    let codec = Codec::from_u8(f.codec).ok_or("unknown codec")?;
    let content_type = ContentType::from_u8(f.content_type).ok_or("unknown content type")?;
    Ok(Header {
        head: Head {
            key: Bytes::copy_from_slice(key),
            ident: Ident::from_bits(f.ident),
            version: Version(f.version),
            expires_at: f.expires_at,
            content_type,
            codec,
            original_len: f.original_len,
            stored_len: f.stored_len,
        },
        ordinal: f.ordinal,
        payload_sum: f.payload_sum,
    })
}

/// Parses and verifies a whole record; `path` and `offset` are for the error.
pub fn parse(bytes: &[u8], container_id: u64, path: &Path, offset: u64) -> Result<(Header, Bytes)> {
    let damaged = |what| Error::corrupt(path, offset, what);
    let header = parse_header(bytes, container_id).map_err(damaged)?;
    let end = header.payload_at() + header.head.stored_len as usize;
    let payload = bytes.get(header.payload_at()..end).ok_or_else(|| damaged("the payload is cut short"))?;
    header.verify_payload(payload).map_err(damaged)?;
    let payload = Bytes::copy_from_slice(payload);
    Ok((header, payload))
}

struct Fixed {
    codec: u8,
    content_type: u8,
    key_len: usize,
    version: u64,
    expires_at: u64,
    ident: u64,
    original_len: u32,
    stored_len: u32,
    payload_sum: u64,
    ordinal: u32,
    header_sum: u64,
}

impl Fixed {
    fn parse(bytes: &[u8]) -> Result<Fixed, &'static str> {
        let b: &[u8; HEADER] = bytes.first_chunk().ok_or("the header is cut short")?;
        if le32(b, 0) != MAGIC {
            return Err("no record begins here");
        }
        let key_len = le16(b, 6) as usize;
        let stored_len = le32(b, 36);
        let original_len = le32(b, 32);
        if key_len == 0 || key_len > MAX_KEY {
            return Err("impossible key length");
        }
        if u64::from(stored_len) > MAX_VALUE || u64::from(original_len) > MAX_VALUE {
            return Err("impossible value length");
        }
        Ok(Fixed {
            codec: b[4],
            content_type: b[5],
            key_len,
            version: le64(b, 8),
            expires_at: le64(b, 16),
            ident: le64(b, 24),
            original_len,
            stored_len,
            payload_sum: le64(b, 40),
            ordinal: le32(b, 48),
            header_sum: le64(b, 56),
        })
    }
}

/// Little-endian integers from a buffer; zero where the buffer is too short, which callers have checked.
pub(crate) fn le64(b: &[u8], at: usize) -> u64 {
    b.get(at..).and_then(|b| b.first_chunk()).map_or(0, |c| u64::from_le_bytes(*c))
}

/// See [`le64`].
pub(crate) fn le32(b: &[u8], at: usize) -> u32 {
    b.get(at..).and_then(|b| b.first_chunk()).map_or(0, |c| u32::from_le_bytes(*c))
}

/// See [`le64`].
pub(crate) fn le16(b: &[u8], at: usize) -> u16 {
    b.get(at..).and_then(|b| b.first_chunk()).map_or(0, |c| u16::from_le_bytes(*c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(key: &[u8], payload: &[u8]) -> Item {
        Item {
            key: Bytes::copy_from_slice(key),
            ident: Ident::from_bits(42),
            version: Version(7),
            expires_at: 9,
            content_type: ContentType::Json,
            codec: Codec::Lz4,
            original_len: 100,
            payload: Bytes::copy_from_slice(payload),
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(key in prop::collection::vec(any::<u8>(), 1..200),
                                  payload in prop::collection::vec(any::<u8>(), 0..500)) {
            let it = item(&key, &payload);
            let mut out = Vec::new();
            encode(&it, 11, 3, &mut out);
            prop_assert_eq!(out.len() as u64, size(key.len(), payload.len()));
            let (h, p) = parse(&out, 11, Path::new("x"), 0).unwrap();
            prop_assert_eq!(h.ordinal, 3);
            prop_assert_eq!(h.into_item(p), it);
        }
    }

    #[test]
    fn every_flipped_bit_before_the_padding_is_found() {
        let it = item(b"key", b"some payload");
        let mut good = Vec::new();
        encode(&it, 11, 3, &mut good);
        for bit in 0..(HEADER + 3 + 12) * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bad, 11, Path::new("x"), 0).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_record_of_another_container_does_not_verify() {
        let mut out = Vec::new();
        encode(&item(b"k", b"v"), 11, 0, &mut out);
        assert!(parse(&out, 12, Path::new("x"), 0).is_err());
    }

    #[test]
    fn any_cut_is_an_error() {
        let mut out = Vec::new();
        encode(&item(b"key", b"payload"), 1, 0, &mut out);
        for n in 0..HEADER + 3 + 7 {
            assert!(parse(&out[..n], 1, Path::new("x"), 0).is_err());
        }
    }
}
