//! Compression by content type, and the way back.
//!
//! Purpose: choose how the bytes of a value are stored, and turn stored bytes into the value again. Nothing
//! here touches a disk.
//!
//! Invariants:
//!
//! - [`decode`] of what [`encode`] returned is the value, byte for byte.
//! - [`decode`] returns a value of exactly the recorded length or an error. It never panics, and a forged length
//!   cannot make it allocate: a length that the payload cannot expand to by the rules of its format is refused
//!   before any allocation, and below that the output grows only as fast as the payload really yields bytes
//!   (zlib, deflate), or after a walk over the block has shown that it has that length (LZ4).
//! - [`encode`] never returns more bytes than it was given, and on any failure of a compressor stores the value
//!   as it is.
//!
//! Every thread keeps its compressor states (about 300 KiB each for deflate) and one scratch buffer of at most
//! 1 MiB: to allocate and clear them for each value costs more than to compress a value of 1 KiB.

mod deflate;
mod detect;
mod effort;
mod lz4;
#[cfg(test)]
mod tests;

use crate::record::MAX_VALUE;
use crate::types::{Codec, ContentType};
use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

pub use detect::detect;
pub(crate) use effort::Attempt;
pub use effort::{Effort, Spent};

/// Batches of more bytes than this are compressed on several threads.
const PARALLEL_FROM: usize = 1 << 20;

/// Values shorter than this are not sampled: to compress them whole costs hardly more.
const SAMPLE_FROM: usize = 8 << 10;

/// Largest sample in bytes.
const SAMPLE_MAX: usize = 16 << 10;

/// The settings of one compressor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Algorithm {
    /// zlib: 0 (off) to 9; lz4: 1, it has no other.
    pub level: u32,
    /// Values shorter than this many bytes are stored as they are.
    pub min_size: u64,
    /// The result is kept only if stored / original is at most this; above 0, at most 1.
    pub threshold: f64,
}

/// Which content type is compressed how.
#[derive(Debug, Clone, PartialEq)]
pub struct Compression {
    /// Settings of zlib.
    pub zlib: Algorithm,
    /// Settings of LZ4.
    pub lz4: Algorithm,
    /// Codec of [`ContentType::Text`]: zlib, lz4 or none, as for the others.
    pub text: Codec,
    /// Codec of [`ContentType::Json`].
    pub json: Codec,
    /// Codec of [`ContentType::Binary`].
    pub binary: Codec,
    /// Codec of [`ContentType::Media`].
    pub media: Codec,
    /// zlib's level of text, JSON, binary and media, where it is another than [`zlib`](Self::zlib)'s.
    pub levels: [Option<u32>; 4],
}

impl Default for Compression {
    fn default() -> Self {
        Compression {
            zlib: Algorithm { level: 6, min_size: 1024, threshold: 0.8 },
            lz4: Algorithm { level: 1, min_size: 512, threshold: 0.6 },
            text: Codec::Zlib,
            json: Codec::Zlib,
            binary: Codec::Lz4,
            media: Codec::Lz4,
            levels: [None; 4],
        }
    }
}

impl Compression {
    /// Compresses nothing.
    pub fn none() -> Compression {
        Compression {
            text: Codec::None,
            json: Codec::None,
            binary: Codec::None,
            media: Codec::None,
            ..Compression::default()
        }
    }

    /// The codec that values of this type are tried with. `Auto` counts as binary: callers resolve it with
    /// [`detect`] first.
    pub fn codec_of(&self, content_type: ContentType) -> Codec {
        match content_type {
            ContentType::Text => self.text,
            ContentType::Json => self.json,
            ContentType::Binary | ContentType::Auto => self.binary,
            ContentType::Media => self.media,
        }
    }

    /// zlib's level for values of this type.
    pub fn level_of(&self, content_type: ContentType) -> u32 {
        let of = match content_type {
            ContentType::Text => 0,
            ContentType::Json => 1,
            ContentType::Binary | ContentType::Auto => 2,
            ContentType::Media => 3,
        };
        self.levels.get(of).copied().flatten().unwrap_or(self.zlib.level)
    }

    /// Has values of this type compressed so from now on: by zlib at this level, or by another codec.
    pub fn set(&mut self, content_type: ContentType, codec: Codec, level: u32) {
        let (of, slot) = match content_type {
            ContentType::Text => (0, &mut self.text),
            ContentType::Json => (1, &mut self.json),
            ContentType::Binary | ContentType::Auto => (2, &mut self.binary),
            ContentType::Media => (3, &mut self.media),
        };
        *slot = codec;
        if let Some(own) = self.levels.get_mut(of).filter(|_| codec == Codec::Zlib) {
            *own = Some(level);
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// A message that names the setting and what would be right.
    pub fn validate(&self) -> Result<(), String> {
        for level in self.levels.iter().flatten().chain([&self.zlib.level]) {
            if *level > 9 {
                return Err(format!("zlib level {level} does not exist: choose 0 (off) to 9"));
            }
        }
        if self.lz4.level != 1 {
            return Err(format!(
                "lz4 has no compression levels: leave its level at 1 (not {}), or choose zlib for a better ratio",
                self.lz4.level
            ));
        }
        for (name, algorithm) in [("zlib", &self.zlib), ("lz4", &self.lz4)] {
            let t = algorithm.threshold;
            // Written so that NaN is refused too.
            if !(t > 0.0 && t <= 1.0) {
                return Err(format!(
                    "{name} threshold {t} is impossible: it is stored / original, so choose above 0 and at most 1"
                ));
            }
        }
        let types =
            [("text", self.text), ("json", self.json), ("binary", self.binary), ("media", self.media)];
        for (name, codec) in types {
            if codec == Codec::Deflate {
                return Err(format!(
                    "{name} cannot be compressed with {codec}: choose \"zlib\", \"lz4\" or \"none\""
                ));
            }
        }
        Ok(())
    }
}

/// Encodes a value for a disk tier: the codec of its type if the value is long enough, a sample of it says that
/// it may shrink, and the result is small enough; else the value as it is, without a copy.
///
/// A panic in a compressor is caught, and the value stored as it is.
pub fn encode(policy: &Compression, content_type: ContentType, value: &Bytes) -> (Codec, Bytes) {
    let (codec, payload, _) = attempt(policy, content_type, value);
    (codec, payload)
}

/// [`encode`], counted.
pub fn encode_counted(
    policy: &Compression,
    content_type: ContentType,
    value: &Bytes,
    effort: &Effort,
) -> (Codec, Bytes) {
    let (codec, payload, attempt) = attempt(policy, content_type, value);
    if let Some(attempt) = attempt {
        effort.count(content_type, attempt);
    }
    (codec, payload)
}

/// [`encode`], and what a compressor that was tried did.
pub(crate) fn attempt(
    policy: &Compression,
    content_type: ContentType,
    value: &Bytes,
) -> (Codec, Bytes, Option<Attempt>) {
    let codec = policy.codec_of(content_type);
    let (algorithm, zlib) = match codec {
        Codec::Zlib => (&policy.zlib, true),
        Codec::Lz4 => (&policy.lz4, false),
        Codec::None | Codec::Deflate => return (Codec::None, value.clone(), None),
    };
    let Some(limit) = largest_kept(algorithm, value.len()) else {
        return (Codec::None, value.clone(), None);
    };
    let level = policy.level_of(content_type);
    if zlib && level == 0 {
        return (Codec::None, value.clone(), None);
    }
    let start = Instant::now();
    let packed = catch_unwind(AssertUnwindSafe(|| {
        if !may_shrink(value, zlib) {
            return None;
        }
        if zlib { deflate::compress(value, level, true, limit) } else { lz4::compress(value, limit) }
    }));
    let packed = packed.ok().flatten();
    let attempt = Attempt {
        codec,
        original: value.len(),
        stored: packed.as_ref().map(Bytes::len),
        nanos: crate::latency::nanos(start),
    };
    match packed {
        Some(packed) => (codec, packed, Some(attempt)),
        None => (Codec::None, value.clone(), Some(attempt)),
    }
}

/// Encodes a batch, in order, and counts what that takes. More than 1 MiB is spread over as many threads as the machine
/// has; the calling thread works too, and does it alone where no thread can be had.
pub fn encode_all(
    policy: &Compression,
    items: Vec<(ContentType, Bytes)>,
    effort: &Effort,
) -> Vec<(Codec, Bytes)> {
    let bytes: usize = items
        .iter()
        .filter(|(kind, _)| policy.codec_of(*kind) != Codec::None)
        .map(|(_, value)| value.len())
        .fold(0, usize::saturating_add);
    spread(&items, bytes, |(kind, value)| encode_counted(policy, *kind, value, effort))
}

/// Does some work on each item, in parallel where `bytes`, what the work is about in all, are more than 1 MiB.
pub(crate) fn spread<T: Sync, R: Send>(items: &[T], bytes: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    // Asking for the number of cores reads files of the system: not for every small batch.
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads =
        if bytes <= PARALLEL_FROM { 1 } else { cores().min(items.len()).min(bytes / (PARALLEL_FROM / 2)) };
    if threads < 2 {
        return items.iter().map(work).collect();
    }
    // Values differ in size and cost, so each thread takes the next one rather than a fixed share.
    let next = AtomicUsize::new(0);
    let share = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(i) else { return done };
            done.push((i, work(item)));
        }
    };
    let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
    let mut place = |done: Vec<(usize, R)>| {
        for (i, result) in done {
            if let Some(slot) = results.get_mut(i) {
                *slot = Some(result);
            }
        }
    };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads)
            .filter_map(|_| std::thread::Builder::new().name("encode".into()).spawn_scoped(scope, share).ok())
            .collect();
        place(share());
        for helper in helpers {
            // Codecs catch panics; were a helper to die all the same, its share is done again below.
            if let Ok(done) = helper.join() {
                place(done);
            }
        }
    });
    results.into_iter().zip(items).map(|(done, item)| done.unwrap_or_else(|| work(item))).collect()
}

/// Decodes stored bytes to a value of exactly `original_len` bytes. `Codec::None` shares the payload.
///
/// Memory use is bounded by what the payload really expands to, whatever `original_len` says.
///
/// # Errors
///
/// What is wrong with the payload: the caller adds where it stood.
pub fn decode(codec: Codec, payload: &Bytes, original_len: u32) -> Result<Bytes, &'static str> {
    if u64::from(original_len) > MAX_VALUE {
        return Err("the recorded length is beyond the largest value");
    }
    let len = original_len as usize;
    let decoded = match codec {
        Codec::None if payload.len() == len => return Ok(payload.clone()),
        Codec::None => return Err("the payload has not the recorded length"),
        Codec::Zlib => catch_unwind(AssertUnwindSafe(|| deflate::decompress(payload, true, len))),
        Codec::Deflate => catch_unwind(AssertUnwindSafe(|| deflate::decompress(payload, false, len))),
        Codec::Lz4 => catch_unwind(AssertUnwindSafe(|| lz4::decompress(payload, len))),
    };
    match decoded {
        Ok(result) => result.map(Bytes::from),
        Err(_) => Err("the decompressor panicked"),
    }
}

/// Compresses to a raw deflate stream, as in ZIP files; levels above 9 count as 9. May be longer than the value
/// (by 5 bytes for each 16 KiB and a few more): the caller stores the value as it is then.
pub fn deflate(value: &[u8], level: u32) -> Vec<u8> {
    deflate::compress_whole(value, level)
}

/// The largest result that is kept for a value of `len` bytes; `None` if none can be.
fn largest_kept(algorithm: &Algorithm, len: usize) -> Option<usize> {
    if len < 2 || (len as u64) < algorithm.min_size || len as u64 > MAX_VALUE {
        return None;
    }
    // At most 1 GiB, so exact in an f64. A result as long as the value would only cost time to read.
    let limit = (len as f64 * algorithm.threshold).floor();
    if limit < 1.0 { None } else { Some((limit as usize).min(len - 1)) }
}

/// A quick look at a sample of a long value: whether it may shrink at all. The sample, a quarter of the value but
/// at most 16 KiB, is three stretches put side by side, so that LZ4 finds what they have in common; deflate also
/// gains where bytes are merely unevenly distributed, which the order-0 entropy (Shannon 1948) tells.
fn may_shrink(value: &[u8], entropy_coded: bool) -> bool {
    if value.len() < SAMPLE_FROM {
        return true;
    }
    let sample = sample(value, (value.len() / 4).min(SAMPLE_MAX));
    // 3 % is less than any threshold of use asks for, and more than chance gives.
    let worth = sample.len() - sample.len() / 32;
    lz4::compressed_len(&sample).is_some_and(|n| n <= worth)
        || (entropy_coded && entropy_bits(&sample) <= 8.0 * 31.0 / 32.0)
}

/// About `len` bytes of the value: half from its beginning, a quarter from its middle, a quarter from its end.
fn sample(value: &[u8], len: usize) -> Vec<u8> {
    let half = len / 2;
    let quarter = len / 4;
    let middle = value.len() / 2;
    let stretches = [
        value.get(..half),
        value.get(middle..middle.saturating_add(quarter)),
        value.get(value.len().saturating_sub(quarter)..),
    ];
    stretches.into_iter().flatten().flatten().copied().collect()
}

/// Order-0 entropy in bits a byte.
fn entropy_bits(sample: &[u8]) -> f64 {
    let mut counts = [0u32; 256];
    for &b in sample {
        if let Some(c) = counts.get_mut(usize::from(b)) {
            *c += 1;
        }
    }
    let total = sample.len().max(1) as f64;
    counts
        .iter()
        .filter(|&&c| c > 0)
        .map(|&c| {
            let p = f64::from(c) / total;
            -p * p.log2()
        })
        .sum()
}
