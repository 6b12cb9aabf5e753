//! Memory stays within the sum of what was configured, 20 % and 32 MiB, under a load that asks for far more.
//!
//! The load runs in a process of its own, so that nothing else of the tests counts.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a test"
)]

mod common;

use common::{Rng, parse, value};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use thermocline::{Cache, Error};

const MIB: u64 = 1 << 20;
const CHILD: &str = "THERMOCLINE_MEMORY_BOUND_CHILD";

/// Anonymous bytes of this process that are resident.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

#[test]
fn anonymous_memory_stays_within_the_limits() {
    if std::env::var_os(CHILD).is_some() {
        return load();
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "anonymous_memory_stays_within_the_limits", "--nocapture"])
        .env(CHILD, "1")
        // What is measured is what the engine holds. glibc left to itself keeps some MiB of freed memory for each
        // thread that ever allocated, and more the larger the blocks were that were freed.
        .env("MALLOC_MMAP_THRESHOLD_", "131072")
        .env("MALLOC_TRIM_THRESHOLD_", "131072")
        .env("MALLOC_ARENA_MAX", "1")
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&child.stdout));
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

fn load() {
    const MEMORY: u64 = 24 * MIB;
    const WRITE_BUFFER: u64 = 8 * MIB;
    const SLED: u64 = 4 * MIB;
    const INFLIGHT: u64 = 8 * MIB;
    let dir = common::scratch();
    let mut builder = Cache::builder()
        .memory(MEMORY)
        .ssd(dir.path().join("s"), 64 * MIB)
        .hdd(dir.path().join("h"), 64 * MIB)
        .cold(dir.path().join("c"))
        .cold_limit(64 * MIB);
    let s = &mut builder.config_mut().storage;
    s.write_buffer = WRITE_BUFFER;
    s.sled_cache = SLED;
    s.inflight = Some(INFLIGHT);
    s.max_value_size = Some(MIB);
    s.migration_bytes_per_second = 1 << 40;
    let cache = builder.open().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let put = Arc::new(AtomicU64::new(0));
    // Bytes that the callers themselves hold.
    let held = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..8u64)
        .map(|n| {
            let (cache, stop, put, held) = (cache.clone(), stop.clone(), put.clone(), held.clone());
            std::thread::spawn(move || {
                let mut rng = Rng::new(n);
                while !stop.load(Ordering::Relaxed) {
                    let no = rng.below(60_000);
                    if rng.below(3) == 0 {
                        if let Some(got) = cache.get(format!("{no}")).unwrap() {
                            held.fetch_add(got.len() as u64, Ordering::Relaxed);
                            assert_eq!(parse(&got).unwrap().0, no);
                            held.fetch_sub(got.len() as u64, Ordering::Relaxed);
                        }
                        continue;
                    }
                    let len = match rng.below(100) {
                        0 => rng.below(MIB),
                        1..=20 => rng.below(60_000),
                        _ => rng.below(2_000),
                    };
                    held.fetch_add(len, Ordering::Relaxed);
                    match cache.put(format!("{no}"), value(no, rng.next() >> 1, len as usize)) {
                        Ok(()) => put.fetch_add(len, Ordering::Relaxed),
                        Err(Error::Busy { .. }) => 0,
                        Err(e) => panic!("{e}"),
                    };
                    held.fetch_sub(len, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(8);
    let (mut most, mut catalog) = (0, 0);
    while Instant::now() < end {
        let callers = held.load(Ordering::Relaxed);
        most = most.max(anonymous().saturating_sub(callers));
        catalog = catalog.max(cache.stats().catalog_bytes);
        std::thread::sleep(Duration::from_millis(5));
    }
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|t| t.join().unwrap());
    let bound = (MEMORY + WRITE_BUFFER + SLED + INFLIGHT + catalog) * 12 / 10 + 32 * MIB;
    let put = put.load(Ordering::Relaxed);
    println!(
        "at most {:.1} MiB of {:.1} (catalog {catalog} bytes); {} MiB were put",
        most as f64 / MIB as f64,
        bound as f64 / MIB as f64,
        put / MIB
    );
    assert!(put > 96 * MIB, "the load was too small to tell: {put} bytes");
    assert!(most <= bound, "{most} bytes resident, the bound is {bound}");
}
