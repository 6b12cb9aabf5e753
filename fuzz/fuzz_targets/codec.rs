//! Stored values: any payload with any recorded length is decoded to exactly that or refused, for memory that the
//! payload is worth; and what is encoded comes back.
#![no_main]

use arbitrary::Arbitrary;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use thermocline_fuzz::bound::bounded;
use thermocline_storage::codec::{self, Compression};
use thermocline_storage::{Codec, ContentType};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    codec: u8,
    content_type: u8,
    original_len: u32,
    /// The recorded length is that of what was decoded before, as far as it went.
    repeat: u16,
    bytes: &'a [u8],
}

/// Deflate makes at most 1,032 bytes of one, and the buffer grows fourfold; the states of the decompressors come to less
/// than a mebibyte.
fn most(payload: usize) -> usize {
    (1 << 20) + payload * 1032 * 2
}

fuzz_target!(init: thermocline_fuzz::begin(), |input: Input<'_>| {
    let payload = Bytes::copy_from_slice(input.bytes);
    let codec = Codec::from_u8(input.codec % 4).unwrap();
    for len in [input.original_len, input.original_len % (1 << 16), input.original_len % 64] {
        if let Ok(value) = bounded(most(payload.len()), || codec::decode(codec, &payload, len)) {
            assert_eq!(value.len(), len as usize);
        }
    }
    let content_type = ContentType::from_u8(1 + input.content_type % 4).unwrap();
    let value = Bytes::from(input.bytes.repeat(1 + usize::from(input.repeat) / input.bytes.len().max(1)));
    let (codec, packed) = codec::encode(&Compression::default(), content_type, &value);
    assert!(packed.len() <= value.len());
    assert_eq!(codec::decode(codec, &packed, value.len() as u32).unwrap(), value);
    let raw = Bytes::from(codec::deflate(&value, u32::from(input.codec % 11)));
    assert_eq!(codec::decode(Codec::Deflate, &raw, value.len() as u32).unwrap(), value);
    let detected = codec::detect(&value);
    assert!(detected != ContentType::Auto);
});
