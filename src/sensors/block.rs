//! Rates of the block devices behind the directories of the tiers.

use super::parse::{BlockStat, block_stat, text};
use super::readings::DeviceReading;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a sector in the kernel's counters, whatever the device's are.
const SECTOR: f64 = 512.0;

/// One directory, and the counters that the last sample read.
#[derive(Debug)]
pub(super) struct Watched {
    directory: PathBuf,
    before: Option<((u32, u32), BlockStat)>,
}

impl Watched {
    pub(super) fn new(directory: PathBuf) -> Watched {
        Watched { directory, before: None }
    }

    /// Looks at the device, which may have become another since.
    pub(super) fn read(
        &mut self,
        sys: &Path,
        device_of: impl Fn(&Path) -> Option<(u32, u32)>,
        elapsed: Option<Duration>,
    ) -> DeviceReading {
        let device = device_of(&self.directory);
        let stat = device.and_then(|(major, minor)| {
            block_stat(&text(&sys.join(format!("dev/block/{major}:{minor}/stat")))?)
        });
        let now = device.zip(stat);
        let before = std::mem::replace(&mut self.before, now);
        let mut reading =
            DeviceReading { directory: self.directory.clone(), device, ..DeviceReading::default() };
        let Some((which, stat)) = now else { return reading };
        reading.in_flight = Some(stat.in_flight);
        let before = before.filter(|(w, _)| *w == which).map(|(_, s)| s);
        if let Some((before, elapsed)) = before.zip(elapsed) {
            rates(&mut reading, &before, &stat, elapsed.as_secs_f64());
        }
        reading
    }
}

fn rates(to: &mut DeviceReading, before: &BlockStat, now: &BlockStat, seconds: f64) {
    let grown = |of: fn(&BlockStat) -> u64| of(now).checked_sub(of(before)).map(|n| n as f64);
    let rate = |n: Option<f64>, scale: f64| Some(n? * scale / seconds).filter(|r| r.is_finite());
    let mean = |ms: Option<f64>, n: Option<f64>| n.filter(|n| *n > 0.0).and_then(|n| Some(ms? / n / 1000.0));
    let (reads, writes) = (grown(|s| s.reads), grown(|s| s.writes));
    let (read, written) = (grown(|s| s.read_sectors), grown(|s| s.write_sectors));
    to.reads = rate(reads, 1.0);
    to.writes = rate(writes, 1.0);
    to.read_bytes = rate(read, SECTOR);
    to.write_bytes = rate(written, SECTOR);
    to.read_latency = mean(grown(|s| s.read_ms), reads);
    to.write_latency = mean(grown(|s| s.write_ms), writes);
    let busy = grown(|s| s.busy_ms).map(|ms| ms / 1000.0);
    to.busy = busy.map(|b| (b / seconds).min(1.0)).filter(|b| b.is_finite());
}
