//! Records: parsing any bytes must end in a record or an error, and what was encoded must come back.
#![no_main]

use arbitrary::Arbitrary;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use thermocline_storage::record::{self, HEADER};
use thermocline_storage::{Codec, ContentType, Ident, Item, Version};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    container: u64,
    ordinal: u32,
    key: &'a [u8],
    payload: &'a [u8],
    version: u64,
    expires_at: u64,
    ident: u64,
    content_type: u8,
    codec: u8,
    original_len: u32,
    /// Where one bit of the encoded record is flipped.
    flip: u16,
    /// Parsed as they are.
    raw: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let path = Path::new("fuzz");
    // Any bytes: no panic, and no more is returned than was given.
    if let Ok((header, payload)) = record::parse(input.raw, input.container, path, 0) {
        assert!(header.head.key.len() + payload.len() <= input.raw.len());
    }
    let _ = record::parse_header(input.raw, input.container);
    let _ = record::peek_lengths(input.raw);

    if input.key.is_empty() || input.key.len() > thermocline_storage::types::MAX_KEY {
        return;
    }
    let item = Item {
        key: Bytes::copy_from_slice(input.key),
        ident: Ident::from_bits(input.ident),
        version: Version(input.version),
        expires_at: input.expires_at,
        content_type: ContentType::from_u8(1 + input.content_type % 4).unwrap(),
        codec: Codec::from_u8(input.codec % 4).unwrap(),
        original_len: input.original_len % (1 << 30),
        payload: Bytes::copy_from_slice(input.payload),
    };
    let mut bytes = Vec::new();
    record::encode(&item, input.container, input.ordinal, &mut bytes);
    assert_eq!(bytes.len() as u64, record::size(input.key.len(), input.payload.len()));
    let (header, payload) = record::parse(&bytes, input.container, path, 0).expect("it was just encoded");
    assert_eq!(header.ordinal, input.ordinal);
    assert_eq!(header.into_item(payload), item);

    // One flipped bit before the padding is always found.
    let covered = HEADER + input.key.len() + input.payload.len();
    let at = usize::from(input.flip) % (covered * 8);
    bytes[at / 8] ^= 1 << (at % 8);
    assert!(record::parse(&bytes, input.container, path, 0).is_err(), "bit {at} was flipped");
});
