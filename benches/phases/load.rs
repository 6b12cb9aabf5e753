//! The load, in the process of one setting: five phases, two callers, a line for each slice of a phase.
//!
//! A slice is so many requests, the same ones in each setting: what is compared is the time of the same work. Where it is
//! so much time, who is slow asks for less of what is dear, and the mean says the contrary.

use crate::{Run, Slice, cgroup};
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
/// Requests of one caller in a slice of each phase: about a second's on two cores of 2.5 GHz.
const WORK: [u64; 5] = [2_000_000, 80_000, 80_000, 250, 2_000_000];
/// Between two requests of an idle caller: a hundredth of a core's time is used, and the mean is of a thousand requests and
/// more.
const PAUSE: Duration = Duration::from_millis(4);
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

/// What one caller did in one slice.
struct Part {
    slice: usize,
    hits: u64,
    requests: u64,
    /// Seconds that it took.
    took: f64,
    /// Nanoseconds of all of them together.
    sum: u64,
    /// Of one in [`KEPT`]: all of them would take more memory than the store.
    nanos: Vec<u64>,
}

/// Where the callers are: they begin each phase together.
struct Course {
    slices: usize,
    together: Barrier,
    /// The slice that the first caller is in, over all phases.
    at: AtomicUsize,
}

/// One caller's way through the phases: the same requests in each setting.
fn caller(cache: &Cache, me: u64, course: &Course, done: &Sender<Part>) -> Result<(), thermocline::Error> {
    let mut dice = Dice(me + 1);
    let mut at = me * SCAN / CALLERS;
    let mut failed = None;
    for slice in 0..PHASES.len() * course.slices {
        let phase = slice / course.slices;
        if slice.is_multiple_of(course.slices) {
            // Who failed comes all the same: the others would wait for ever.
            course.together.wait();
        }
        if failed.is_some() {
            continue;
        }
        if me == 0 {
            course.at.store(slice, Ordering::Relaxed);
        }
        let begun = Instant::now();
        let mut part = Part { slice, hits: 0, requests: 0, took: 0.0, sum: 0, nanos: Vec::new() };
        for _ in 0..WORK[phase] {
            // Somebody is interested in the hot set at all times.
            let (kind, no) = match phase {
                1 if !dice.roll().is_multiple_of(4) => {
                    at = (at + 1) % SCAN;
                    (1, at)
                }
                2 if dice.roll().is_multiple_of(16) => (2, dice.zipf(MEDIA)),
                _ => (0, dice.zipf(HOT)),
            };
            match timed(cache, kind, no, &mut part) {
                Ok(()) => {}
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
            if phase == 3 {
                std::thread::sleep(PAUSE);
            }
        }
        part.took = begun.elapsed().as_secs_f64();
        let _ = done.send(part);
    }
    failed.map_or(Ok(()), Err)
}

/// Makes a request and adds it to a part.
fn timed(cache: &Cache, kind: usize, no: u64, part: &mut Part) -> Result<(), thermocline::Error> {
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
    Ok(())
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

/// Anonymous memory in the mean of what was seen of a slice, and the strategy in force.
#[derive(Default, Clone)]
struct Seen {
    bytes: u64,
    times: u64,
    strategy: String,
    /// When it was seen first.
    unix_ms: u64,
}

/// Looks at the process until the callers are through, and starts the hog when its phase begins.
fn watch(cache: &Cache, course: &Course, ended: &AtomicBool) -> Vec<Seen> {
    let mut seen = vec![Seen::default(); PHASES.len() * course.slices];
    let mut beside = None;
    while !ended.load(Ordering::Relaxed) {
        let slice = course.at.load(Ordering::Relaxed);
        if slice / course.slices == 4 && beside.is_none() {
            beside = hog().ok();
        }
        if let Some(of) = seen.get_mut(slice) {
            of.bytes += anonymous();
            of.times += 1;
            if of.unix_ms == 0 {
                of.unix_ms = now_ms();
            }
            of.strategy = cache.optimizer().strategy().to_string();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(beside);
    seen
}

/// Goes through the phases, and prints a line for each slice.
pub fn run(setting: &str, slices: usize, dir: &Path) -> Result<(), Failed> {
    cgroup::enter()?;
    thermocline::allocator::give_back();
    let cache = builder(setting, dir).open()?;
    for no in 0..HOT {
        cache.put_with(format!("hot/{no}"), text(no), PutOptions::new().content_type(ContentType::Json))?;
    }
    cache.flush()?;
    let course = Course { slices, together: Barrier::new(CALLERS as usize), at: AtomicUsize::new(0) };
    let ended = AtomicBool::new(false);
    let (done, parts) = mpsc::channel();
    let seen = std::thread::scope(|scope| -> Result<Vec<Seen>, Failed> {
        let callers: Vec<_> = (0..CALLERS)
            .map(|me| {
                let (cache, course, done) = (&cache, &course, done.clone());
                scope.spawn(move || caller(cache, me, course, &done))
            })
            .collect();
        let watch = scope.spawn(|| watch(&cache, &course, &ended));
        let mut failed = None;
        for caller in callers {
            match caller.join() {
                Ok(Ok(())) => {}
                Ok(Err(e)) => failed = Some(Failed::from(e)),
                Err(_) => failed = Some("a caller panicked".into()),
            }
        }
        ended.store(true, Ordering::Relaxed);
        let seen = watch.join().map_err(|_| "what watches panicked")?;
        failed.map_or(Ok(seen), Err)
    })?;
    drop(done);
    print(parts.into_iter().collect(), &seen);
    decisions(&cache, &seen);
    let hits = |t: Tier| cache.stats().tier(t).map_or(0, |t| t.hits);
    eprintln!("{setting}: hits by tier {:?}", Tier::ALL.map(hits));
    cache.close()?;
    Ok(())
}

fn print(parts: Vec<Part>, seen: &[Seen]) {
    let mut slices: BTreeMap<usize, Part> = BTreeMap::new();
    for part in parts {
        let slice = part.slice;
        let into = slices.entry(slice).or_insert(Part {
            slice,
            nanos: Vec::new(),
            hits: 0,
            requests: 0,
            took: 0.0,
            sum: 0,
        });
        into.hits += part.hits;
        into.requests += part.requests;
        into.took = into.took.max(part.took);
        into.sum += part.sum;
        into.nanos.extend(part.nanos);
    }
    // A slice that was over before anybody looked is like the one before.
    let mut last = Seen::default();
    for (slice, mut part) in slices {
        part.nanos.sort_unstable();
        let mean = part.sum as f64 / part.requests.max(1) as f64;
        let p99 = part.nanos.get(part.nanos.len() * 99 / 100).copied().unwrap_or(0);
        if let Some(of) = seen.get(slice).filter(|of| of.times > 0) {
            last = of.clone();
        }
        println!(
            "{}",
            json!({"phase": slice * PHASES.len() / seen.len(), "requests": part.requests, "hits": part.hits,
                   "took": part.took, "mean": mean, "p99": p99,
                   "memory": last.bytes / last.times.max(1), "strategy": last.strategy})
        );
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}

/// What the optimizer did, with the slice in which it did it.
fn decisions(cache: &Cache, seen: &[Seen]) {
    for record in cache.optimizer().history() {
        let mut begun =
            seen.iter().enumerate().filter(|(_, of)| of.unix_ms > 0 && of.unix_ms <= record.unix_ms);
        let Some((slice, _)) = begun.next_back() else { continue };
        for outcome in &record.outcomes {
            let failed = outcome.result.as_ref().err().map(|why| format!(" (not done: {why})"));
            let what = format!("{slice}: {}{}", outcome.action, failed.unwrap_or_default());
            println!("{}", json!({"decision": what}));
        }
    }
}

/// Adds a line that [`run`] printed to a run.
pub fn parse(line: &str, run: &mut Run) -> Result<(), String> {
    let value: Value = serde_json::from_str(line).map_err(|e| format!("{line}: {e}"))?;
    if let Some(what) = value["decision"].as_str() {
        run.decisions.push(what.to_owned());
        return Ok(());
    }
    let number = |name: &str| value[name].as_f64().unwrap_or(0.0);
    run.slices.push(Slice {
        phase: number("phase") as usize,
        requests: number("requests") as u64,
        hits: number("hits") as u64,
        took: number("took"),
        mean: number("mean"),
        p99: number("p99"),
        memory: number("memory") as u64,
        strategy: value["strategy"].as_str().unwrap_or_default().to_owned(),
    });
    Ok(())
}
