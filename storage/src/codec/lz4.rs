//! LZ4 blocks without a length prefix (the block format of Y. Collet, 2011).
//!
//! Invariants: a length that the block cannot expand to is refused; over 64 KiB and eight times the block it is
//! allocated only after a walk over the block has shown that it has that length; a thread keeps at most 1 MiB of
//! scratch.

use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use std::cell::RefCell;

/// A block yields at most this many bytes for each of its own: a length byte of 255.
const MAX_EXPANSION: u64 = 255;

/// Lengths up to this are allocated without a second look.
const UNCHECKED: u64 = 64 << 10;

/// The largest scratch buffer that a thread keeps.
const KEPT_SCRATCH: usize = 1 << 20;

#[derive(Default)]
struct Scratch {
    small: Option<CompressTable>,
    large: Option<CompressTable>,
    out: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Compresses with this thread's tables into its scratch buffer, and hands the block to `take`.
fn compress_with<T>(value: &[u8], take: impl FnOnce(&[u8]) -> T) -> Option<T> {
    // Taken out for the time of the work: after a panic there is none, and a new one is made.
    let mut scratch = SCRATCH.take();
    let need = get_maximum_output_size(value.len());
    if scratch.out.len() < need {
        scratch.out.try_reserve_exact(need - scratch.out.len()).ok()?;
        scratch.out.resize(need, 0);
    }
    // 16-bit positions are enough for short values, and their table is half the size to clear.
    let table = if value.len() < usize::from(u16::MAX) {
        scratch.small.get_or_insert_with(CompressTable::small)
    } else {
        scratch.large.get_or_insert_with(CompressTable::large)
    };
    let result = match compress_into_with_table(value, &mut scratch.out, table) {
        Ok(n) => scratch.out.get(..n).map(take),
        Err(_) => None,
    };
    if scratch.out.len() > KEPT_SCRATCH {
        scratch.out = Vec::new();
    }
    SCRATCH.set(scratch);
    result
}

/// The block, if it is at most `limit` bytes.
pub(super) fn compress(value: &[u8], limit: usize) -> Option<Bytes> {
    compress_with(value, |block| (block.len() <= limit).then(|| Bytes::copy_from_slice(block))).flatten()
}

/// The length that the block would have.
pub(super) fn compressed_len(value: &[u8]) -> Option<usize> {
    compress_with(value, <[u8]>::len)
}

/// Decompresses to exactly `len` bytes.
pub(super) fn decompress(payload: &[u8], len: usize) -> Result<Vec<u8>, &'static str> {
    let stored = payload.len() as u64;
    if len as u64 > stored.saturating_mul(MAX_EXPANSION) {
        return Err("the recorded length is more than the block can hold");
    }
    if len as u64 > UNCHECKED.max(stored.saturating_mul(8)) && decoded_len(payload) != Some(len as u64) {
        return Err("the block has not the recorded length");
    }
    let mut out = vec![0; len];
    match decompress_into(payload, &mut out) {
        Ok(n) if n == len => Ok(out),
        Ok(_) => Err("the block is shorter than recorded"),
        Err(_) => Err("the block is damaged"),
    }
}

/// The length that a block decodes to, from its tokens alone; `None` if it is cut off. Offsets are not checked.
fn decoded_len(block: &[u8]) -> Option<u64> {
    let mut rest = block.iter();
    let mut total = 0u64;
    loop {
        let token = *rest.next()?;
        let literals = length(u64::from(token >> 4), &mut rest)?;
        total += literals;
        if literals > 0 {
            rest.nth(usize::try_from(literals - 1).ok()?)?;
        }
        if rest.as_slice().is_empty() {
            return Some(total);
        }
        rest.nth(1)?;
        total += 4 + length(u64::from(token & 15), &mut rest)?;
    }
}

/// A length: 4 bits of the token and, if they are all set, bytes up to the first that is not 255.
fn length(nibble: u64, rest: &mut std::slice::Iter<'_, u8>) -> Option<u64> {
    let mut n = nibble;
    if nibble == 15 {
        loop {
            let b = *rest.next()?;
            n += u64::from(b);
            if b != 255 {
                break;
            }
        }
    }
    Some(n)
}
