//! zlib (RFC 1950) and raw deflate (RFC 1951) streams.
//!
//! Invariants: beyond 64 KiB, or eight times the payload, memory grows with what the stream yields and not with the
//! length that a record claims, which is refused beforehand if the stream cannot hold it; a stream that ends early,
//! late or at another length is an error. A state that was in use when something panicked is not used again.

use bytes::Bytes;
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use std::cell::RefCell;

/// A deflate stream yields at most this many bytes for each of its own: a match of 258 bytes takes two bits.
const MAX_EXPANSION: u64 = 1032;

/// What is set aside for the output before the payload has yielded a byte, unless the payload alone justifies
/// more.
const FIRST_OUTPUT: usize = 64 << 10;

#[derive(Default)]
struct States {
    zlib: Option<(u32, Compress)>,
    raw: Option<(u32, Compress)>,
    inflate: Option<Decompress>,
}

thread_local! {
    static STATES: RefCell<States> = RefCell::default();
}

/// Runs `work` with this thread's compressor, reset.
fn with_compressor<T>(level: u32, zlib: bool, work: impl FnOnce(&mut Compress) -> T) -> T {
    let level = level.min(9);
    let fresh = || Compress::new(flate2::Compression::new(level), zlib);
    // The state is taken out for the time of the work: after a panic there is none, and a new one is made.
    let kept = STATES.with_borrow_mut(|s| if zlib { s.zlib.take() } else { s.raw.take() });
    let mut state = match kept {
        Some((l, mut c)) if l == level => {
            c.reset();
            c
        }
        _ => fresh(),
    };
    let result = work(&mut state);
    STATES
        .with_borrow_mut(|s| if zlib { s.zlib = Some((level, state)) } else { s.raw = Some((level, state)) });
    result
}

/// Compresses in one go; `None` as soon as the result is known to exceed `limit` bytes.
pub(super) fn compress(value: &[u8], level: u32, zlib: bool, limit: usize) -> Option<Bytes> {
    let mut out = Vec::new();
    out.try_reserve_exact(limit.max(1)).ok()?;
    let ended = with_compressor(level, zlib, |c| {
        matches!(c.compress_vec(value, &mut out, FlushCompress::Finish), Ok(Status::StreamEnd))
    });
    if !ended || out.len() > limit {
        return None;
    }
    // A buffer much larger than its content would pin memory for as long as the write is queued.
    if out.capacity() - out.len() > out.len() / 4 {
        out.shrink_to_fit();
    }
    Some(Bytes::from(out))
}

/// Compresses to a raw stream of whatever length.
pub(super) fn compress_whole(value: &[u8], level: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() / 2 + 64);
    with_compressor(level, false, |c| {
        let mut rest = value;
        loop {
            let before = c.total_in();
            let status = c.compress_vec(rest, &mut out, FlushCompress::Finish);
            let taken = usize::try_from(c.total_in() - before).unwrap_or(usize::MAX);
            rest = rest.get(taken..).unwrap_or_default();
            match status {
                Ok(Status::StreamEnd) => return,
                // Out of room. With room, a compressor always gets on; an error here means a misused stream,
                // which a fresh or reset one is not: more room is the answer to both, and the loop ends.
                Ok(Status::Ok | Status::BufError) | Err(_) => out.reserve(out.capacity().max(64)),
            }
        }
    });
    out
}

/// Decompresses to exactly `len` bytes, and from exactly the whole payload.
pub(super) fn decompress(payload: &[u8], zlib: bool, len: usize) -> Result<Vec<u8>, &'static str> {
    if len as u64 > (payload.len() as u64).saturating_mul(MAX_EXPANSION) {
        return Err("the recorded length is more than the stream can hold");
    }
    let mut state = STATES.with_borrow_mut(|s| s.inflate.take()).unwrap_or_else(|| Decompress::new(zlib));
    state.reset(zlib);
    let result = inflate(&mut state, payload, len);
    STATES.with_borrow_mut(|s| s.inflate = Some(state));
    result
}

fn inflate(state: &mut Decompress, payload: &[u8], len: usize) -> Result<Vec<u8>, &'static str> {
    const NO_MEMORY: &str = "no memory for the value";
    let mut out = Vec::new();
    let first = len.min(FIRST_OUTPUT.max(payload.len().saturating_mul(8)));
    out.try_reserve_exact(first.max(1)).map_err(|_| NO_MEMORY)?;
    loop {
        let taken = usize::try_from(state.total_in()).unwrap_or(usize::MAX);
        let rest = payload.get(taken..).unwrap_or_default();
        let status = state
            .decompress_vec(rest, &mut out, FlushDecompress::Finish)
            .map_err(|_| "the stream is damaged")?;
        if status == Status::StreamEnd {
            break;
        }
        if out.len() < out.capacity() {
            return Err("the stream ends early");
        }
        if out.len() >= len {
            return Err("the stream is longer than recorded");
        }
        // Fourfold: each step is paid for by bytes that were really there.
        let more = out.len().saturating_mul(3).min(len - out.len());
        out.try_reserve_exact(more).map_err(|_| NO_MEMORY)?;
    }
    if out.len() != len {
        return Err("the stream has not the recorded length");
    }
    if state.total_in() != payload.len() as u64 {
        return Err("bytes follow the end of the stream");
    }
    Ok(out)
}
