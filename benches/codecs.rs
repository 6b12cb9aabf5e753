//! Compression by content type, as the tiers do it: encoding, decoding, and finding the type out.
//!
//! `cargo bench --bench codecs`, with `-- --quick` for a first idea. The values are made up, but shaped like what
//! each type holds; the ratio of each is printed with its name.

#![expect(clippy::expect_used, reason = "a bench that cannot go on ends")]

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;
use thermocline::ContentType;
use thermocline_storage::codec::{self, Compression};

/// Value sizes in bytes.
const SIZES: [usize; 2] = [1 << 10, 16 << 10];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A value that looks like its type.
fn value(content_type: ContentType, size: usize) -> Bytes {
    const WORDS: [&str; 16] = [
        "warm",
        "water",
        "keeps",
        "above",
        "the",
        "cold",
        "and",
        "a",
        "layer",
        "between",
        "them",
        "is",
        "called",
        "thermocline",
        "in",
        "lakes",
    ];
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut out = Vec::with_capacity(size + 64);
    while out.len() < size {
        match content_type {
            ContentType::Text => {
                let word = WORDS.get(random.below(16) as usize).copied().unwrap_or("the");
                out.extend_from_slice(word.as_bytes());
                out.push(if random.below(12) == 0 { b'\n' } else { b' ' });
            }
            ContentType::Json => {
                let start = if out.is_empty() { '[' } else { ',' };
                let (id, price) = (random.below(100_000), random.below(10_000));
                let item = format!(
                    "{start}{{\"id\":{id},\"price\":{price},\"inStock\":true,\"tags\":[\"a\",\"b\"]}}"
                );
                out.extend_from_slice(item.as_bytes());
            }
            // Rows of a table: a counter, a small number, a reading.
            ContentType::Binary => {
                out.extend_from_slice(&(out.len() as u64 / 16).to_le_bytes());
                out.extend_from_slice(&(random.below(1_000) as u32).to_le_bytes());
                out.extend_from_slice(&(random.below(1 << 20) as u32).to_le_bytes());
            }
            // Compressed already.
            _ => out.extend_from_slice(&random.next().to_le_bytes()),
        }
    }
    out.truncate(size);
    Bytes::from(out)
}

fn codecs(c: &mut Criterion) {
    let policy = Compression::default();
    for size in SIZES {
        for content_type in ContentType::STORED {
            let value = value(content_type, size);
            let (codec, payload) = codec::encode(&policy, content_type, &value);
            let percent = 100 * payload.len() / value.len();
            let name = format!("{content_type}, {size} bytes, {} to {percent} %", codec.name());
            let mut group = c.benchmark_group("codec");
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(BenchmarkId::new("encode", &name), |b| {
                b.iter(|| codec::encode(&policy, content_type, black_box(&value)));
            });
            group.bench_function(BenchmarkId::new("decode", &name), |b| {
                let len = u32::try_from(value.len()).expect("sizes are small");
                b.iter(|| codec::decode(codec, black_box(&payload), len).expect("it was encoded above"));
            });
            group.bench_function(BenchmarkId::new("detect", &name), |b| {
                b.iter(|| codec::detect(black_box(&value)));
            });
            group.finish();
        }
    }
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = benches; config = config(); targets = codecs }
criterion_main!(benches);
