//! Values of four kinds, each a function of a seed, so that what was put can be made again and compared.
//!
//! They are made to compress as the real things do: text and JSON by zlib to a quarter or a third, half of the binary
//! values by lz4 to about a half and the other half not at all, media not at all.

use crate::random::Random;
use thermocline::ContentType;

/// Common words; longer ones are made of syllables, so that a dictionary does not learn the text by heart.
const WORDS: [&str; 96] = [
    "the", "of", "and", "to", "in", "is", "it", "that", "was", "for", "on", "are", "with", "as", "at", "be",
    "this", "have", "from", "or", "one", "had", "by", "but", "not", "what", "all", "were", "when", "we",
    "there", "can", "an", "your", "which", "their", "said", "if", "do", "will", "each", "about", "how", "up",
    "out", "them", "then", "she", "many", "some", "so", "these", "would", "other", "into", "has", "more",
    "two", "like", "him", "see", "time", "could", "no", "make", "than", "first", "been", "its", "who", "now",
    "people", "my", "made", "over", "did", "down", "only", "way", "find", "use", "may", "water", "long",
    "little", "very", "after", "called", "just", "where", "most", "know", "lake", "cold", "warm", "deep",
];
const SYLLABLES: [&str; 32] = [
    "an", "ber", "con", "dal", "en", "fer", "gra", "hol", "in", "jo", "kel", "lan", "mer", "nor", "op",
    "pre", "qui", "ras", "sol", "ter", "un", "ver", "wil", "xen", "yar", "zo", "tion", "ment", "ing", "ed",
    "ly", "al",
];

/// What one item of the synthetic load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// What it is put as.
    pub content_type: ContentType,
    /// Bytes.
    pub len: usize,
}

/// Bytes of a value on average, in round figures.
pub const MEAN_LEN: u64 = 15_500;

/// Type and size of an item: 35 % text, 35 % JSON, 20 % binary, 10 % media, each type's sizes spread evenly over the
/// logarithm.
pub fn kind(seed: u64) -> Kind {
    let mut random = Random::new(seed ^ 0x6b69_6e64);
    let (content_type, least, doublings) = match random.below(100) {
        0..=34 => (ContentType::Text, 1 << 10, 5.0),
        35..=69 => (ContentType::Json, 256, 6.0),
        70..=89 => (ContentType::Binary, 2 << 10, 5.0),
        _ => (ContentType::Media, 8 << 10, 5.0),
    };
    Kind { content_type, len: (f64::from(least) * (doublings * random.unit()).exp2()) as usize }
}

/// The value of a seed.
pub fn value(seed: u64, kind: Kind) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut out = Vec::with_capacity(kind.len + 64);
    match kind.content_type {
        ContentType::Text => text(&mut random, &mut out, kind.len),
        ContentType::Json => json(&mut random, &mut out, kind.len),
        ContentType::Media => media(&mut random, &mut out, kind.len),
        _ => binary(&mut random, &mut out, kind.len),
    }
    out.truncate(kind.len);
    out
}

fn pick<'a>(random: &mut Random, from: &'a [&'a str]) -> &'a str {
    from.get(random.below(from.len() as u64) as usize).copied().unwrap_or_default()
}

fn word(random: &mut Random, out: &mut Vec<u8>) {
    if random.below(10) < 6 {
        out.extend_from_slice(pick(random, &WORDS).as_bytes());
    } else {
        for _ in 0..2 + random.below(3) {
            out.extend_from_slice(pick(random, &SYLLABLES).as_bytes());
        }
    }
}

fn text(random: &mut Random, out: &mut Vec<u8>, len: usize) {
    while out.len() < len {
        let words = 5 + random.below(15);
        for n in 0..words {
            word(random, out);
            out.extend_from_slice(if n + 1 == words { b".\n" } else { b" " });
        }
    }
}

/// An array of records; cut at its length, as a page of a larger answer would be.
fn json(random: &mut Random, out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(b"[");
    while out.len() < len {
        out.extend_from_slice(format!("{{\"id\":{},\"name\":\"", random.below(1 << 40)).as_bytes());
        word(random, out);
        out.extend_from_slice(b"\",\"tags\":[\"");
        word(random, out);
        out.extend_from_slice(b"\",\"");
        word(random, out);
        let (day, price) = (random.below(28) + 1, random.below(1_000_000));
        let tail = format!(
            "\"],\"created\":\"2024-03-{day:02}T{:02}:{:02}:00Z\",\"price\":{}.{:02},\"active\":{}}},\n",
            random.below(24),
            random.below(60),
            price / 100,
            price % 100,
            random.below(4) > 0,
        );
        out.extend_from_slice(tail.as_bytes());
    }
}

/// Rows of counters, small numbers and a few random bytes, or random bytes alone.
fn binary(random: &mut Random, out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(b"\x00\x01ROWS\x00\x00");
    if random.below(2) == 0 {
        return random.fill(out, len);
    }
    let (mut id, mut at) = (random.below(1 << 32), random.below(1 << 40));
    while out.len() < len {
        id += 1;
        at += random.below(1000);
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&at.to_le_bytes());
        out.extend_from_slice(&[0; 10]);
        random.fill(out, 6);
    }
}

/// The head of a JPEG and then noise.
fn media(random: &mut Random, out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00");
    random.fill(out, len);
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::ZlibEncoder};
    use std::io::Write;

    #[test]
    fn a_value_is_a_function_of_its_seed() {
        for seed in 0..200 {
            let kind = kind(seed);
            let made = value(seed, kind);
            assert_eq!(made.len(), kind.len);
            assert_eq!(made, value(seed, kind));
            assert_ne!(made, value(seed + 1, kind));
        }
    }

    #[test]
    fn values_are_as_long_as_is_said() {
        let sum: usize = (0..20_000).map(|seed| kind(seed).len).sum();
        let mean = sum as f64 / 20_000.0;
        assert!((mean / MEAN_LEN as f64 - 1.0).abs() < 0.05, "{mean}");
    }

    #[test]
    fn every_type_comes_and_compresses_as_it_should() {
        let zlib = |data: &[u8]| {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(6));
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap().len() as f64 / data.len() as f64
        };
        for (content_type, least, most) in
            [(ContentType::Text, 0.2, 0.5), (ContentType::Json, 0.15, 0.5), (ContentType::Media, 0.99, 1.1)]
        {
            let ratio = zlib(&value(5, Kind { content_type, len: 20_000 }));
            assert!((least..most).contains(&ratio), "{content_type}: {ratio}");
            assert!((0..100).any(|seed| kind(seed).content_type == content_type));
        }
        let binary: Vec<f64> = (0..20)
            .map(|seed| zlib(&value(seed, Kind { content_type: ContentType::Binary, len: 20_000 })))
            .collect();
        assert!(binary.iter().any(|r| *r < 0.6) && binary.iter().any(|r| *r > 0.99), "{binary:?}");
    }
}
