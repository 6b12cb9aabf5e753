//! What other sizes would do: an LRU stack per kind of weight over the sequence of accesses that was recorded.
//!
//! A tier is taken to hold what was used last, down to the depth that it and the tiers above it have room for
//! (memory counted apart: what it holds is below, too). The engine keeps by frequency, which is better on a skewed
//! load, so the model's row for the sizes as they are is shown beside what was measured: how far they are apart is
//! how far the other rows may be off.

use super::items::Items;
use super::phases::History;
use super::plan::Plan;
use super::{Findings, Reads};
use crate::stack::Stack;
use thermocline::{ContentType, Stats, Tier};

/// Bytes that an item takes in memory beyond key and value.
const MEMORY_OVERHEAD: u64 = thermocline_storage::memory::ENTRY_OVERHEAD;
/// Bytes of a record on disk beyond key and value, about.
const RECORD_OVERHEAD: u64 = 64;

/// Which tier is changed, and by which factor; `None`: none.
pub type Change = Option<(Tier, f64)>;

/// One choice of sizes.
#[derive(Debug)]
pub struct Row {
    /// What is changed.
    pub change: Change,
    /// Share of the requests that each tier answers.
    pub shares: [f64; 4],
    /// Mean latency in nanoseconds with the tiers' measured means.
    pub mean: f64,
    /// The same with the means measured with the page cache dropped.
    pub mean_device: Option<f64>,
}

/// The table.
#[derive(Debug)]
pub struct Advice {
    pub rows: Vec<Row>,
    /// Accesses that it is computed from.
    pub accesses: u64,
    /// What was measured: shares, mean latency.
    pub measured: [f64; 4],
    pub measured_mean: f64,
}

impl Advice {
    /// Whether none of the sizes changes who answers: what is read again fits in any case.
    pub fn is_flat(&self) -> bool {
        let first = self.rows.first().map(|r| r.shares).unwrap_or_default();
        let near = |r: &Row| r.shares.iter().zip(first).all(|(a, b)| (a - b).abs() < 0.0005);
        self.rows.iter().all(near)
    }

    /// The rows that say something.
    pub fn telling(&self) -> &[Row] {
        if self.is_flat() { self.rows.get(..1).unwrap_or_default() } else { &self.rows }
    }
}

/// Depths down to which memory, SSD and HDD answer.
type Depths = [u64; 3];

impl Advice {
    /// From what was found. `None` if there is too little of it.
    pub fn of(plan: &Plan, items: &Items, found: &Findings, history: &History) -> Option<Advice> {
        let (reads, stats) = (found.reads.as_ref()?, found.stats.as_ref()?);
        if history.measured.is_empty() {
            return None;
        }
        let memory: Vec<u64> =
            items.all.iter().map(|i| i.len + i.key.len() as u64 + MEMORY_OVERHEAD).collect();
        let disk = disk_weights(items, stats);
        let now = capacities(plan, stats, &disk);
        let mut choices: Vec<(Change, [u64; 3])> = vec![(None, now)];
        for (n, tier) in [Tier::Memory, Tier::Ssd, Tier::Hdd].into_iter().enumerate() {
            for factor in [0.5, 2.0] {
                let mut sizes = now;
                if let Some(size) = sizes.get_mut(n) {
                    *size = (*size as f64 * factor) as u64;
                }
                choices.push((Some((tier, factor)), sizes));
            }
        }
        let depths: Vec<Depths> =
            choices.iter().map(|(_, [m, s, h])| [*m, *s, s.saturating_add(*h)]).collect();
        let counts = count(memory, disk, history, &depths);
        let accesses = history.measured.len() as u64;
        let device = found.reopen.as_ref().map(|r| &r.reads);
        let rows = choices
            .iter()
            .zip(counts)
            .map(|((change, _), counts)| {
                let shares = counts.map(|n| n as f64 / accesses as f64);
                let mean =
                    mean_of(&shares, |t| reads.of(t).or(device.and_then(|d| d.of(t))).map(|l| l.mean()));
                let from_device = |t| match t {
                    Tier::Memory => reads.of(t).map(|l| l.mean()),
                    _ => device.and_then(|d| d.of(t)).map(|l| l.mean()),
                };
                let mean_device = shares
                    .iter()
                    .zip(Tier::ALL)
                    .all(|(share, t)| *share == 0.0 || from_device(t).is_some())
                    .then(|| mean_of(&shares, from_device));
                Row { change: *change, shares, mean, mean_device }
            })
            .collect();
        let measured = measured(reads);
        Some(Advice { rows, accesses, measured, measured_mean: reads.mean() })
    }
}

fn measured(reads: &Reads) -> [f64; 4] {
    let total = reads.answered().max(1) as f64;
    Tier::ALL.map(|t| reads.of(t).map_or(0.0, |l| l.count() as f64 / total))
}

fn mean_of(shares: &[f64; 4], of: impl Fn(Tier) -> Option<f64>) -> f64 {
    shares.iter().zip(Tier::ALL).map(|(share, t)| share * of(t).unwrap_or(0.0)).sum()
}

/// What each item takes on disk: its length by the ratio that its content type was stored at.
fn disk_weights(items: &Items, stats: &Stats) -> Vec<u64> {
    let ratio = |t: ContentType| {
        let t = stats.content(t).filter(|t| t.original_bytes > 0);
        t.map_or(1.0, |t| t.stored_bytes as f64 / t.original_bytes as f64)
    };
    let of = |t| (t, ratio(t));
    let ratios = ContentType::STORED.map(of);
    let by_type = |t| ratios.iter().find(|(of, _)| *of == t).map_or(1.0, |(_, r)| *r);
    let weigh = |i: &super::items::Item| {
        (i.len as f64 * by_type(i.content_type)) as u64 + i.key.len() as u64 + RECORD_OVERHEAD
    };
    items.all.iter().map(weigh).collect()
}

/// Bytes of live items that memory, SSD and HDD held at the end; of a tier that nothing had to leave, four fifths of
/// its limit, at which it starts to move items down.
fn capacities(plan: &Plan, stats: &Stats, disk: &[u64]) -> [u64; 3] {
    let mean = disk.iter().sum::<u64>() / disk.len().max(1) as u64;
    let of = |tier: Tier, limit: u64, below: &[Tier]| {
        let items = |t: Tier| stats.tier(t).map_or(0, |s| s.items);
        if below.iter().any(|t| items(*t) > 0) { items(tier).saturating_mul(mean) } else { limit / 5 * 4 }
    };
    [
        plan.config.memory.max_size,
        of(Tier::Ssd, plan.config.ssd.max_size, &[Tier::Hdd, Tier::Cold]),
        of(Tier::Hdd, plan.config.hdd.max_size, &[Tier::Cold]),
    ]
}

/// How many of the measured accesses each tier answers, for each choice of depths: after all items were put in their
/// order and the warm-up was read.
fn count(memory: Vec<u64>, disk: Vec<u64>, history: &History, depths: &[Depths]) -> Vec<[u64; 4]> {
    let items = memory.len() as u32;
    let accesses = memory.len() + history.warm_up.len() + history.measured.len();
    let mut in_memory = Stack::new(memory, accesses);
    let mut on_disk = Stack::new(disk, accesses);
    for item in (0..items).chain(history.warm_up.iter().copied()) {
        in_memory.access(item);
        on_disk.access(item);
    }
    let mut counts = vec![[0u64; 4]; depths.len()];
    for item in &history.measured {
        let (Some(m), Some(d)) = (in_memory.access(*item), on_disk.access(*item)) else { continue };
        for ([memory, ssd, hdd], [c0, c1, c2, c3]) in depths.iter().zip(&mut counts) {
            let tier = if m <= *memory {
                c0
            } else if d <= *ssd {
                c1
            } else if d <= *hdd {
                c2
            } else {
                c3
            };
            *tier += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_by_depth() {
        // Four items of weight 1, put in the order 0 1 2 3; each is then at depth 4 − n.
        let history = History { warm_up: vec![], measured: vec![3, 2, 1, 0] };
        // 3: depth 1. 2: depth 2. 1: depth 3. 0: depth 4.
        let counts = count(vec![1; 4], vec![1; 4], &history, &[[1, 2, 3], [4, 4, 4], [0, 0, 0]]);
        assert_eq!(counts, [[1, 1, 1, 1], [4, 0, 0, 0], [0, 0, 0, 4]]);
        let warm = History { warm_up: vec![0], measured: vec![0, 0] };
        assert_eq!(count(vec![1; 4], vec![1; 4], &warm, &[[1, 2, 3]]), [[2, 0, 0, 0]]);
    }

    #[test]
    fn means() {
        let of = |t: Tier| (t != Tier::Cold).then_some((t as usize + 1) as f64);
        assert_eq!(mean_of(&[0.5, 0.25, 0.25, 0.0], of), 0.5 + 0.5 + 0.75);
    }
}
