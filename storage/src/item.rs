//! One item on its way to or from a disk tier.
//!
//! Invariants: an [`Item`] says of itself all that its record does, so that it moves between tiers without its catalog
//! entry; its content type is never `Auto`, and `original_len` is the length that decoding must yield.

use crate::error::{Error, Result};
use crate::ident::Ident;
use crate::types::{Codec, ContentType, Version};
use bytes::Bytes;

/// An item with its payload encoded as it is stored. Moves carry it from tier to tier without decoding, unless
/// the tier below cannot hold the codec (a pack holds no lz4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The full key, 1 to [`crate::types::MAX_KEY`] bytes.
    pub key: Bytes,
    /// The identity of the key in this store.
    pub ident: Ident,
    /// The order of the write that made this value.
    pub version: Version,
    /// Milliseconds since the epoch on the engine's clock; 0 means never.
    pub expires_at: u64,
    /// Never `Auto`.
    pub content_type: ContentType,
    /// How `payload` is encoded.
    pub codec: Codec,
    /// Length of the decoded value in bytes.
    pub original_len: u32,
    /// The stored bytes.
    pub payload: Bytes,
}

/// What a record says of itself without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The full key.
    pub key: Bytes,
    /// The identity of the key in this store.
    pub ident: Ident,
    /// The order of the write.
    pub version: Version,
    /// Milliseconds since the epoch; 0 means never.
    pub expires_at: u64,
    /// Never `Auto`.
    pub content_type: ContentType,
    /// How the payload is encoded.
    pub codec: Codec,
    /// Length of the decoded value in bytes.
    pub original_len: u32,
    /// Length of the stored payload in bytes.
    pub stored_len: u32,
}

impl Item {
    /// The item's head.
    pub fn head(&self) -> Head {
        Head {
            key: self.key.clone(),
            ident: self.ident,
            version: self.version,
            expires_at: self.expires_at,
            content_type: self.content_type,
            codec: self.codec,
            original_len: self.original_len,
            stored_len: u32::try_from(self.payload.len()).unwrap_or(u32::MAX),
        }
    }
}

impl Head {
    /// Bytes of memory that reading and decoding the value takes: its stored and its original length.
    fn footprint(&self) -> u64 {
        u64::from(self.stored_len) + u64::from(self.original_len)
    }

    /// `Oversized` if [`footprint`](Self::footprint) is over `most`.
    pub(crate) fn within(&self, most: u64) -> Result<()> {
        let bytes = self.footprint();
        if bytes > most { Err(Error::Oversized { bytes }) } else { Ok(()) }
    }

    /// The item, given its verified payload.
    pub fn into_item(self, payload: Bytes) -> Item {
        Item {
            key: self.key,
            ident: self.ident,
            version: self.version,
            expires_at: self.expires_at,
            content_type: self.content_type,
            codec: self.codec,
            original_len: self.original_len,
            payload,
        }
    }
}
