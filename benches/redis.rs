//! What a Redis server that hangs costs who reads from memory: `make show-redis`.
//!
//! Two stores in memory, one without a server and one whose server accepts connections and never answers. Hits are timed
//! one by one, in turns of the two, so that what else goes on in the machine meets both.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "it is a measurement, for people"
)]

use std::net::TcpListener;
use std::time::Instant;
use thermocline::Cache;

const KEYS: usize = 1000;
const TURNS: usize = 200;
const HITS: usize = 20_000;

fn filled(builder: thermocline::Builder) -> Cache {
    let cache = builder.open().unwrap();
    (0..KEYS).for_each(|n| cache.put(format!("key/{n}"), vec![7; 1024]).unwrap());
    cache
}

fn turn(cache: &Cache, keys: &[String], into: &mut Vec<u64>) {
    for n in 0..HITS {
        let key = &keys[n * 7 % KEYS];
        let begin = Instant::now();
        let value = cache.get(key).unwrap();
        let took = begin.elapsed();
        assert!(value.is_some());
        into.push(took.as_nanos() as u64);
    }
}

/// So many in a thousand were as fast as this or faster.
fn at(sorted: &[u64], thousandths: usize) -> u64 {
    sorted[(sorted.len() * thousandths / 1000).min(sorted.len() - 1)]
}

fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || listener.incoming().flatten().collect::<Vec<_>>());
    let mut hung = Cache::builder().memory(64 << 20).redis_metrics(url);
    hung.config_mut().metrics.redis.interval = 1;
    let stores = [filled(Cache::builder().memory(64 << 20)), filled(hung)];
    let keys: Vec<String> = (0..KEYS).map(|n| format!("key/{n}")).collect();
    let mut times = [Vec::new(), Vec::new()];
    // The first tries are over, and there is one under way.
    let begin = Instant::now();
    while stores[1].stats().counts.metrics_failed == 0 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    for n in 0..2 * TURNS {
        turn(&stores[n % 2], &keys, &mut times[n % 2]);
    }
    let took = begin.elapsed();
    times.iter_mut().for_each(|t| t.sort_unstable());
    println!("a hit in memory, {} of each, in ns (with two looks at a clock)", TURNS * HITS);
    println!("{:<14}{:>8}{:>8}{:>8}", "", "p50", "p99", "p99.9");
    for (name, times) in ["no Redis", "a hung Redis"].iter().zip(&times) {
        println!("{name:<14}{:>8}{:>8}{:>8}", at(times, 500), at(times, 990), at(times, 999));
    }
    let ratio = |thousandths| at(&times[1], thousandths) as f64 / at(&times[0], thousandths) as f64;
    println!("{:<14}{:>8.2}{:>8.2}{:>8.2}", "ratio", ratio(500), ratio(990), ratio(999));
    let counts = stores[1].stats().counts;
    println!(
        "in {:.1} s: {} reports failed, {} arrived",
        took.as_secs_f64(),
        counts.metrics_failed,
        counts.metrics_sent
    );
    let begin = Instant::now();
    stores[1].close().unwrap();
    println!("close took {} ms", begin.elapsed().as_millis());
}
