//! Readers of the texts below `/proc` and `/sys`.
//!
//! Each takes any text and gives a number that makes sense, or `None`.

use super::readings::Stall;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

/// No file that is read here is longer.
const LONGEST: u64 = 64 << 10;
/// No machine has more memory: beyond it a number is a way to say "none".
const MOST_MEMORY: u64 = 1 << 56;
/// No machine has more processors.
const MOST_CPUS: f64 = 65_536.0;

/// A file's text; `None` if it cannot be read, is longer than any such file, or is not UTF-8.
pub(super) fn text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(LONGEST + 1).read_to_end(&mut bytes).ok()?;
    if bytes.len() as u64 > LONGEST {
        return None;
    }
    String::from_utf8(bytes).ok()
}

/// A number that stands alone: digits and nothing else.
pub(super) fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A limit on memory: "max", 0 and what no machine has are none.
pub(super) fn memory_limit(text: &str) -> Option<u64> {
    number(text).filter(|n| (1..MOST_MEMORY).contains(n))
}

/// Processors that `cpu.max` allows: quota and period.
pub(super) fn cpu_max(text: &str) -> Option<f64> {
    let mut words = text.split_whitespace();
    let (quota, period) = (words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    cpus(quota, period)
}

/// Processors that a quota of time in each period is; a negative one is none.
pub(super) fn cpus(quota: &str, period: &str) -> Option<f64> {
    let (quota, period) = (number(quota)?, number(period)?);
    let cpus = quota as f64 / period as f64;
    (quota > 0 && period > 0 && cpus < MOST_CPUS).then_some(cpus)
}

/// The number behind a name at the start of a line, as in `usage_usec 123`.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| number(words.next()?))?
    })
}

/// Bytes of a line of `/proc/PID/status`, as in `RssAnon:   123 kB`.
pub(super) fn status_bytes(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace();
        let kib = number(words.next()?)?;
        if words.next() != Some("kB") {
            return None;
        }
        kib.checked_mul(1024).filter(|n| *n < MOST_MEMORY)
    })
}

/// Pressure-stall information: the ten-second averages.
pub(super) fn stall(text: &str) -> Stall {
    let average = |kind: &str| {
        text.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            if words.next()? != kind {
                return None;
            }
            let percent: f64 = words.find_map(|w| w.strip_prefix("avg10="))?.parse().ok()?;
            // The average overshoots by rounding; anything beyond is no percentage.
            (0.0..=101.0).contains(&percent).then(|| (percent / 100.0).min(1.0))
        })
    };
    Stall { some: average("some"), full: average("full") }
}

/// Counters of a block device since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct BlockStat {
    pub(super) reads: u64,
    pub(super) read_sectors: u64,
    pub(super) read_ms: u64,
    pub(super) writes: u64,
    pub(super) write_sectors: u64,
    pub(super) write_ms: u64,
    pub(super) in_flight: u64,
    pub(super) busy_ms: u64,
}

/// `/sys/dev/block/MAJ:MIN/stat`: at least eleven numbers, of which newer kernels add some.
pub(super) fn block_stat(text: &str) -> Option<BlockStat> {
    let numbers: Vec<u64> = text.split_whitespace().map(number).collect::<Option<_>>()?;
    let [reads, _, read_sectors, read_ms, writes, _, write_sectors, write_ms, in_flight, busy_ms, _, ..] =
        numbers[..]
    else {
        return None;
    };
    Some(BlockStat { reads, read_sectors, read_ms, writes, write_sectors, write_ms, in_flight, busy_ms })
}

/// Bytes a second of a link, from megabits; unknown is -1, or what 32 bits make of it.
pub(super) fn link_speed(text: &str) -> Option<f64> {
    let megabits = number(text).filter(|n| (1..=10_000_000).contains(n))?;
    Some(megabits as f64 * 1e6 / 8.0)
}

/// The path of a cgroup in `/proc/self/cgroup`: of the unified hierarchy, or of a controller of the old ones. Parts
/// that lead up or away are left out.
pub(super) fn cgroup_path(text: &str, controller: Option<&str>) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let found = match controller {
            None => number == "0" && controllers.is_empty(),
            Some(wanted) => controllers.split(',').any(|c| c == wanted),
        };
        let normal = |c: Component<'_>| match c {
            Component::Normal(name) => Some(PathBuf::from(name)),
            _ => None,
        };
        found.then(|| Path::new(path).components().filter_map(normal).collect())
    })
}
