//! put and get of each tier, through the public surface, at 1 KiB and 16 KiB.
//!
//! `cargo bench --bench tiers` measures; `-- --quick` gives a first idea in a minute. Each store has one disk tier,
//! so that what is measured is that tier's cost and not migration. Puts are flushed: a sample is a batch of items and
//! the flush that makes them durable, so the figure is what the tier takes, not what the write buffer swallows. Gets
//! are of items that memory does not have; their files are in the page cache. Compression is off.

#![expect(clippy::expect_used, reason = "a bench that cannot go on ends")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;
use tempfile::TempDir;
use thermocline::{Cache, Tier};

/// Value sizes in bytes.
const SIZES: [usize; 2] = [1 << 10, 16 << 10];
/// Items that are read from.
const ITEMS: u64 = 2_000;
/// Items of one sample of puts.
const BATCH: u64 = 256;

/// Incompressible bytes, different for each item.
fn value(item: u64, size: usize) -> Vec<u8> {
    let mut state = item.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

fn key(item: u64) -> String {
    format!("bench/{item:012}")
}

/// A store with memory and at most one disk tier. With a disk, memory is as small as may be, so that gets go below.
fn store(tier: Tier, dir: &TempDir) -> Cache {
    let memory = if tier == Tier::Memory { 256 << 20 } else { 1 << 20 };
    let mut builder = Cache::builder().memory(memory).memory_item_limit(1 << 20);
    builder = match tier {
        Tier::Ssd => builder.ssd(dir.path().join("ssd"), 4 << 30),
        Tier::Hdd => builder.hdd(dir.path().join("hdd"), 4 << 30),
        Tier::Cold => builder.cold(dir.path().join("cold")),
        _ => builder,
    };
    let config = builder.config_mut();
    config.ssd.compression = false;
    config.hdd.compression = false;
    config.cold.compression = false;
    builder.open().expect("the store opens")
}

fn put(c: &mut Criterion) {
    let mut group = c.benchmark_group("put");
    for tier in Tier::ALL {
        for size in SIZES {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let cache = store(tier, &dir);
            let mut next = 0;
            group.throughput(Throughput::Elements(BATCH));
            group.bench_function(BenchmarkId::new(tier.name(), size), |b| {
                b.iter_batched(
                    || {
                        // The keys recur, so that a long run does not fill the disk.
                        next = (next + BATCH) % 65_536;
                        (next..next + BATCH).map(|i| (key(i), value(i, size))).collect::<Vec<_>>()
                    },
                    |items| {
                        for (key, value) in items {
                            cache.put(key, value).expect("put");
                        }
                        cache.flush().expect("flush");
                    },
                    BatchSize::PerIteration,
                );
            });
            cache.close().expect("close");
        }
    }
    group.finish();
}

fn get(c: &mut Criterion) {
    let mut group = c.benchmark_group("get");
    for tier in Tier::ALL {
        for size in SIZES {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let cache = store(tier, &dir);
            for item in 0..ITEMS {
                cache.put(key(item), value(item, size)).expect("put");
            }
            cache.flush().expect("flush");
            let mut item = 0;
            group.throughput(Throughput::Elements(1));
            group.bench_function(BenchmarkId::new(tier.name(), size), |b| {
                b.iter(|| {
                    // 1,009 and 2,000 have no common factor: every item comes once in 2,000, far apart in the files.
                    item = (item + 1_009) % ITEMS;
                    let got = cache.get(key(item)).expect("get").expect("every item is there");
                    assert_eq!(got.len(), size);
                    black_box(got)
                });
            });
            let stats = cache.stats();
            let share = |t: Tier| stats.tier(t).map_or(0, |t| t.hits) * 100 / stats.counts.gets.max(1);
            assert!(share(tier) >= 50, "{tier} answered only {} % of the gets", share(tier));
            cache.close().expect("close");
        }
    }
    group.finish();
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
}

criterion_group! { name = benches; config = config(); targets = put, get }
criterion_main!(benches);
