//! From the codec of an item to one of the two that every ZIP reader knows.
//!
//! Everything is decoded once: a ZIP entry carries the CRC-32 of the value. A zlib stream keeps its deflate stream
//! (RFC 1950 wraps RFC 1951 in two bytes before and four after), nothing is compressed twice.
//!
//! Invariant: what comes out, decoded, is the value that went in, of the recorded length, or it is an error. Nothing
//! is written here.

use super::ColdConfig;
use crate::codec::{self, Attempt, Compression};
use crate::error::{Error, Result};
use crate::item::Item;
use crate::types::{Codec, ContentType};
use bytes::Bytes;

/// What zlib puts before and after a deflate stream.
const ZLIB_HEADER: usize = 2;
const ZLIB_TRAILER: usize = 4;

/// An item as it goes into a pack.
#[derive(Debug)]
pub(super) struct Prepared {
    /// With codec `None` or `Deflate`.
    pub(super) item: Item,
    /// CRC-32 of the value.
    pub(super) crc: u32,
}

/// Makes items ready for a pack, several at a time; see [`prepare`].
pub(super) fn prepare_all(items: &[Item], config: &ColdConfig) -> Vec<Result<Prepared>> {
    let bytes = items.iter().fold(0, |sum: usize, i| sum.saturating_add(i.original_len as usize));
    codec::spread(items, bytes, |item| prepare(item, config))
}

/// Makes an item ready for a pack.
///
/// # Errors
///
/// `Dependency` if the payload cannot be decoded: the caller verified it when it was read, so it was written wrong.
pub(super) fn prepare(item: &Item, config: &ColdConfig) -> Result<Prepared> {
    let undecodable = |why: &str| Error::Dependency {
        what: "decoding an item on its way to a pack",
        why: format!("version {}, {} bytes of {}: {why}", item.version, item.payload.len(), item.codec),
    };
    let value = codec::decode(item.codec, &item.payload, item.original_len).map_err(undecodable)?;
    let crc = rawzip::crc32(&value);
    let kept = match item.codec {
        Codec::Deflate => Some(item.payload.clone()),
        Codec::Zlib => Some(unwrap_zlib(&item.payload).ok_or_else(|| undecodable("not a zlib stream"))?),
        Codec::None | Codec::Lz4 => None,
    };
    let (codec, payload) = match kept {
        Some(payload) => (Codec::Deflate, payload),
        None => {
            deflated(&value, item, config).map_or((Codec::None, value), |packed| (Codec::Deflate, packed))
        }
    };
    Ok(Prepared { item: Item { codec, payload, ..item.clone() }, crc })
}

/// The value deflated, if its content type is to be compressed and it helps by the settings of zlib. A type whose
/// codec is LZ4 is deflated too: no ZIP reader knows LZ4.
fn deflated(value: &Bytes, item: &Item, config: &ColdConfig) -> Option<Bytes> {
    if config.compression.codec_of(item.content_type) == Codec::None {
        return None;
    }
    let levels = [Some(config.compression.level_of(item.content_type)); 4];
    let policy = Compression { binary: Codec::Zlib, levels, ..config.compression.clone() };
    let (codec, packed, attempt) = codec::attempt(&policy, ContentType::Binary, value);
    let packed = if codec == Codec::Zlib { unwrap_zlib(&packed) } else { None };
    if let Some(attempt) = attempt {
        let stored = packed.as_ref().map(Bytes::len);
        config.effort.count(item.content_type, Attempt { codec: Codec::Deflate, stored, ..attempt });
    }
    packed
}

/// The deflate stream in a zlib stream without a preset dictionary.
fn unwrap_zlib(stream: &Bytes) -> Option<Bytes> {
    const METHOD: u8 = 0x0f;
    const DEFLATE: u8 = 8;
    const DICTIONARY: u8 = 0x20;
    let [method, flags] = *stream.first_chunk::<ZLIB_HEADER>()?;
    let end = stream.len().checked_sub(ZLIB_TRAILER).filter(|end| *end >= ZLIB_HEADER)?;
    (method & METHOD == DEFLATE && flags & DICTIONARY == 0).then(|| stream.slice(ZLIB_HEADER..end))
}
