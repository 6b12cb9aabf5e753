//! Metrics in a real Redis server: what is there, what never is, and what becomes of the store when the server does not
//! do its part.

#![cfg(test)]

mod bad_luck;
mod content;
mod server;
#[cfg(feature = "cli")]
mod tls;
#[cfg(feature = "cli")]
mod top;

use server::{Client, Reply, Server, free_port, is_installed};
use std::time::{Duration, Instant};
use thermocline::{Builder, Cache};
use thermocline_testing::timed;

/// A store in memory that reports each second.
fn reporting(url: &str, instance: &str) -> Builder {
    let mut builder = Cache::builder().memory(16 << 20).redis_metrics(url);
    let redis = &mut builder.config_mut().metrics.redis;
    (redis.interval, redis.instance) = (1, Some(instance.to_owned()));
    builder
}

fn sent(cache: &Cache) -> u64 {
    cache.stats().counts.metrics_sent
}

fn failed(cache: &Cache) -> u64 {
    cache.stats().counts.metrics_failed
}

/// Waits until something is so, and fails if that takes too long.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < Duration::from_secs(40), "{what}: not within 40 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The names that are alive.
fn instances(client: &mut Client) -> Vec<String> {
    let list = client.ask(&["ZRANGE", "thermocline:instances", "0", "-1"]).list();
    list.iter().map(|name| name.text().to_owned()).collect()
}

/// Every key of the database, sorted.
fn keys(client: &mut Client) -> Vec<String> {
    let mut keys: Vec<String> =
        client.ask(&["KEYS", "*"]).list().iter().map(|key| key.text().to_owned()).collect();
    keys.sort();
    keys
}

/// Closes it, and says how long that took, without what was the machine's.
fn close(cache: &Cache) -> Duration {
    timed(|| cache.close().unwrap()).1
}

/// What `close` may take of a store in memory alone, whatever the server does: what is promised.
const CLOSE: Duration = Duration::from_secs(1);
/// And of one with a disk, which writes what it has.
const CLOSE_DISK: Duration = Duration::from_secs(5);
