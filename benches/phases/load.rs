//! The load, in the process of one setting: five phases, two callers, a line for each second.

use crate::{Second, cgroup};
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};
use thermocline::{Builder, Cache, ContentType, PutOptions, Tier};

/// What is charged for a value that has to be made.
pub const ORIGIN: Duration = Duration::from_millis(3);
/// The memory of the store and the hog together.
pub const LIMIT_MIB: u64 = 1024;
const HOG_MIB: u64 = 300;
const MIB: u64 = 1 << 20;
/// The phases, in their order.
pub const PHASES: [&str; 5] = ["hot set", "scan", "media", "idle", "memory hog"];
/// Keys of the hot set, of the scan, and pieces of media.
const HOT: u64 = 40_000;
const SCAN: u64 = 60_000;
const MEDIA: u64 = 260;
const CALLERS: u64 = 2;
/// Times of requests that are kept, for the tail: one in so many.
const KEPT: u64 = 16;

type Failed = Box<dyn std::error::Error>;

/// The store of a setting.
fn builder(setting: &str, dir: &Path) -> Builder {
    let mut builder = Cache::builder()
        .memory(256 * MIB)
        .ssd(dir.join("ssd"), 256 * MIB)
        .hdd(dir.join("hdd"), 512 * MIB)
        .cold(dir.join("cold"))
        .cold_limit(1024 * MIB);
    let config = builder.config_mut();
    config.optimizer.enabled = setting == "optimizer";
    // So that it takes as many turns in a phase as it would in a quarter of an hour.
    config.optimizer.interval = 1;
    let row = match setting {
        "aggressive" => config.strategies.aggressive,
        "conservative" => config.strategies.conservative,
        _ => config.strategies.balanced,
    };
    if setting != "optimizer" {
        config.strategies.balanced = row;
        config.compression.zlib.level = row.compression_level;
    }
    builder
}

/// Numbers that follow from a seed: SplitMix64 (Steele, Lea and Flood, 2014).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `n`, the first ones far more often: about Zipf with exponent 1.
    fn zipf(&mut self, n: u64) -> u64 {
        let share = (self.roll() >> 11) as f64 / (1u64 << 53) as f64;
        (((n + 1) as f64).powf(share) as u64 - 1).min(n - 1)
    }
}

/// JSON of 1 to 8 KiB that shrinks to about a quarter.
fn text(no: u64) -> Bytes {
    let mut dice = Dice(no);
    let len = 1024 + (dice.roll() % (7 << 10)) as usize;
    let mut text = String::with_capacity(len + 80);
    text.push('[');
    while text.len() < len {
        let (depth, warm) = (dice.roll() % 90, dice.roll() % 300);
        text.push_str(&format!(
            "{{\"depth\":{depth},\"temperature\":{warm},\"lake\":\"thermocline\",\"ok\":true}},"
        ));
    }
    text.push_str("{}]");
    Bytes::from(text)
}

/// A mebibyte that shrinks not at all.
fn media(no: u64) -> Bytes {
    let mut dice = Dice(no ^ 0x006d_6564_6961);
    Bytes::from((0..MIB / 8).flat_map(|_| dice.roll().to_le_bytes()).collect::<Vec<u8>>())
}

/// One request: a key, and what it is if it has to be made.
fn request(cache: &Cache, kind: usize, no: u64) -> Result<bool, thermocline::Error> {
    let key = format!("{}/{no}", ["hot", "scan", "media"][kind]);
    if cache.get(&key)?.is_some() {
        return Ok(true);
    }
    let (value, content) = match kind {
        2 => (media(no), ContentType::Media),
        _ => (text(no + kind as u64 * HOT), ContentType::Json),
    };
    cache.put_with(&key, value, PutOptions::new().content_type(content))?;
    Ok(false)
}

/// What one caller did in one second.
struct Part {
    second: u64,
    phase: usize,
    hits: u64,
    requests: u64,
    /// Of all of them together.
    sum: u64,
    /// Of one in [`KEPT`]: all of them would take more memory than the store.
    nanos: Vec<u64>,
}

fn caller(
    cache: &Cache,
    me: u64,
    seconds: u64,
    begun: Instant,
    done: &Sender<Part>,
) -> Result<(), thermocline::Error> {
    let mut dice = Dice(me + 1);
    let mut at = me * SCAN / CALLERS;
    let mut part = Part { second: 0, phase: 0, hits: 0, requests: 0, sum: 0, nanos: Vec::new() };
    loop {
        let second = begun.elapsed().as_secs();
        let phase = (second / seconds) as usize;
        if second != part.second {
            let next = Part { second, phase, hits: 0, requests: 0, sum: 0, nanos: Vec::new() };
            let _ = done.send(std::mem::replace(&mut part, next));
        }
        if phase >= PHASES.len() {
            return Ok(());
        }
        // Somebody is interested in the hot set at all times.
        let (kind, no) = match phase {
            1 if !dice.roll().is_multiple_of(4) => {
                at = (at + 1) % SCAN;
                (1, at)
            }
            2 if dice.roll().is_multiple_of(16) => (2, dice.zipf(MEDIA)),
            _ => (0, dice.zipf(HOT)),
        };
        let start = Instant::now();
        let hit = request(cache, kind, no)?;
        let charged = if hit { Duration::ZERO } else { ORIGIN };
        let nanos = (start.elapsed() + charged).as_nanos() as u64;
        if part.requests.is_multiple_of(KEPT) {
            part.nanos.push(nanos);
        }
        part.requests += 1;
        part.sum += nanos;
        part.hits += u64::from(hit);
        if phase == 3 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Ends the process when it is dropped.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hog() -> std::io::Result<Beside> {
    let me = std::env::current_exe()?;
    // It is born into this process's cgroup. What reads this process's output is not to wait for its end.
    let mut command = Command::new(me);
    command.arg("--hog").arg(HOG_MIB.to_string()).stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().map(Beside)
}

/// Bytes of anonymous memory of this process.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Goes through the phases, and prints a line for each second.
pub fn run(setting: &str, seconds: u64, dir: &Path) -> Result<(), Failed> {
    cgroup::enter()?;
    thermocline::allocator::give_back();
    let cache = builder(setting, dir).open()?;
    for no in 0..HOT {
        cache.put_with(format!("hot/{no}"), text(no), PutOptions::new().content_type(ContentType::Json))?;
    }
    cache.flush()?;
    let (begun, ended) = (Instant::now(), AtomicBool::new(false));
    let (done, parts) = mpsc::channel();
    let mut memory: BTreeMap<u64, (u64, String)> = BTreeMap::new();
    std::thread::scope(|scope| -> Result<(), Failed> {
        let callers: Vec<_> = (0..CALLERS)
            .map(|me| {
                let (cache, done) = (&cache, done.clone());
                scope.spawn(move || caller(cache, me, seconds, begun, &done))
            })
            .collect();
        let watch = scope.spawn(|| {
            let mut beside = None;
            while !ended.load(Ordering::Relaxed) {
                let second = begun.elapsed().as_secs();
                if second / seconds == 4 && beside.is_none() {
                    beside = hog().ok();
                }
                memory.insert(second, (anonymous(), cache.optimizer().strategy().to_string()));
                std::thread::sleep(Duration::from_millis(100));
            }
            drop(beside);
        });
        let mut failed = None;
        for caller in callers {
            match caller.join() {
                Ok(Ok(())) => {}
                Ok(Err(e)) => failed = Some(Failed::from(e)),
                Err(_) => failed = Some("a caller panicked".into()),
            }
        }
        ended.store(true, Ordering::Relaxed);
        let _ = watch.join();
        failed.map_or(Ok(()), Err)
    })?;
    drop(done);
    print(parts.into_iter().collect(), &memory);
    let hits = |t: Tier| cache.stats().tier(t).map_or(0, |t| t.hits);
    eprintln!("{setting}: hits by tier {:?}", Tier::ALL.map(hits));
    cache.close()?;
    Ok(())
}

fn print(parts: Vec<Part>, memory: &BTreeMap<u64, (u64, String)>) {
    let mut seconds: BTreeMap<u64, Part> = BTreeMap::new();
    for part in parts.into_iter().filter(|p| p.phase < PHASES.len()) {
        let into = seconds.entry(part.second).or_insert(Part {
            nanos: Vec::new(),
            hits: 0,
            requests: 0,
            sum: 0,
            ..part
        });
        into.hits += part.hits;
        into.requests += part.requests;
        into.sum += part.sum;
        into.nanos.extend(part.nanos);
    }
    for (second, mut part) in seconds {
        part.nanos.sort_unstable();
        let mean = part.sum as f64 / part.requests.max(1) as f64;
        let p99 = part.nanos.get(part.nanos.len() * 99 / 100).copied().unwrap_or(0);
        let (memory, strategy) = memory.get(&second).cloned().unwrap_or_default();
        println!(
            "{}",
            json!({"phase": part.phase, "requests": part.requests, "hits": part.hits, "mean": mean, "p99": p99,
                   "memory": memory, "strategy": strategy})
        );
    }
}

/// A line that [`run`] printed.
pub fn parse(line: &str) -> Result<Second, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| format!("{line}: {e}"))?;
    let number = |name: &str| value[name].as_f64().unwrap_or(0.0);
    Ok(Second {
        phase: number("phase") as usize,
        requests: number("requests") as u64,
        hits: number("hits") as u64,
        mean: number("mean"),
        p99: number("p99"),
        memory: number("memory") as u64,
        strategy: value["strategy"].as_str().unwrap_or_default().to_owned(),
    })
}
