//! Where the hot items are: under a stationary skewed load, the share of requests that memory and SSD serve, beside
//! that of the best static placement by true frequency: the hottest items, as many as the two tiers hold together,
//! none of them in both.
//!
//! What is lost to it: items in memory are on the SSD as well; the heat is an estimate; and with overwrites, cold items
//! that were just written stand on the SSD until they sink.

#![cfg(test)]

mod common;

use common::{Dice, value};
use std::sync::Arc;
use thermocline::testing::{ManualClock, vfs::RealFs};
use thermocline::{Cache, Tier};

const MIB: u64 = 1 << 20;
const SIZE: usize = 4_000;

/// Ranks drawn by Zipf's law.
struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    fn new(n: usize, s: f64) -> Zipf {
        let mut sum = 0.0;
        let cumulative = (1..=n)
            .map(|rank| {
                sum += (rank as f64).powf(-s);
                sum
            })
            .collect();
        Zipf { cumulative }
    }

    fn draw(&self, dice: &mut Dice) -> usize {
        let whole = self.cumulative.last().unwrap();
        let at = (dice.roll() >> 11) as f64 / (1u64 << 53) as f64 * whole;
        self.cumulative.partition_point(|c| *c <= at)
    }

    /// The share of the requests that go to the first `n`.
    fn share(&self, n: usize) -> f64 {
        self.cumulative[n.min(self.cumulative.len()) - 1] / self.cumulative.last().unwrap()
    }
}

struct Load {
    skew: f64,
    /// Of 100 operations, this many are puts.
    puts: u64,
    keys: usize,
    memory: u64,
    ssd: u64,
    operations: usize,
}

impl Load {
    /// Gives the share served by memory and SSD in the second half, and the best that there could be.
    fn run(&self) -> (f64, f64) {
        let dir = common::scratch();
        let mut builder = Cache::builder()
            .memory(self.memory)
            .ssd(dir.path().join("s"), self.ssd)
            .hdd(dir.path().join("h"), 512 * MIB);
        builder.config_mut().resources.io.write_buffer_size = MIB;
        let s = &mut builder.config_mut().storage;
        s.segment_size = Some(MIB);
        s.generation_size = Some(16 * MIB);
        s.migration_bytes_per_second = 1 << 40;
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let cache = builder.world(Arc::new(RealFs), clock.clone(), false).open().unwrap();
        let zipf = Zipf::new(self.keys, self.skew);
        let mut dice = Dice::new(7);
        // Which key has which rank has nothing to do with when it was put.
        let mut order: Vec<usize> = (0..self.keys).collect();
        for i in (1..self.keys).rev() {
            order.swap(i, dice.below(i as u64 + 1) as usize);
        }
        // Not a multiple of three: nothing of it can be compressed.
        for (n, rank) in order.iter().enumerate() {
            cache.put(format!("{rank}"), value(*rank as u64, 1, SIZE)).unwrap();
            if n % 200 == 0 {
                clock.advance(10);
                cache.step().unwrap();
            }
        }
        let (mut served, mut gets, mut below) = (0, 0, 0);
        let mut by_tier = [0u64; 4];
        for n in 0..self.operations {
            let rank = zipf.draw(&mut dice);
            if dice.below(100) < self.puts {
                cache.put(format!("{rank}"), value(rank as u64, 1, SIZE)).unwrap();
            } else {
                let entry = cache.get_entry(format!("{rank}")).unwrap().expect("nothing is lost");
                below += u64::from(entry.tier > Tier::Ssd);
                if n >= self.operations / 2 {
                    gets += 1;
                    served += u64::from(entry.tier <= Tier::Ssd);
                    by_tier[entry.tier as usize] += 1;
                }
            }
            if n % 100 == 0 {
                clock.advance(10);
                cache.step().unwrap();
            }
        }
        let reached = served as f64 / gets as f64;
        let stats = cache.stats();
        let (memory, ssd) = (stats.tier(Tier::Memory).unwrap(), stats.tier(Tier::Ssd).unwrap());
        let best = zipf.share((memory.items + ssd.items) as usize);
        println!(
            "skew {}, {} % puts: {:.1} % of {:.1} %; by tier {by_tier:?}; {} items in memory, {} on the SSD; {} MiB \
             written for {} MiB put, {} promoted, {} demoted",
            self.skew,
            self.puts,
            100.0 * reached,
            100.0 * best,
            memory.items,
            ssd.items,
            ssd.written / MIB,
            stats.counts.put_bytes / MIB,
            ssd.promoted,
            stats.tier(Tier::Hdd).unwrap().demoted,
        );
        // Without overwrites nothing dies: up to four fifths of the SSD is alive, but for the segment being written.
        let whole = self.ssd / (SIZE as u64 + 96);
        let least = if self.puts == 0 { 65 } else { 30 };
        assert!(ssd.items * 100 >= whole * least, "only {} of {whole} items on the SSD", ssd.items);
        // What is appended, promotions included, is at most 1.3 times what was put; where nothing is put any more, a
        // sixty-fourth of what hits below read may be promoted.
        let reads = if self.puts == 0 { below * SIZE as u64 / 64 } else { 0 };
        assert!(
            ssd.written * 10 <= stats.counts.put_bytes * 13 + reads * 10,
            "{} MiB written",
            ssd.written / MIB
        );
        (reached, best)
    }
}

fn load(skew: f64, puts: u64) -> Load {
    Load { skew, puts, keys: 20_000, memory: 2 * MIB, ssd: 16 * MIB, operations: 400_000 }
}

#[test]
fn reads_alone() {
    for skew in [0.7, 1.0] {
        let (reached, best) = load(skew, 0).run();
        assert!(reached > best - 0.055, "{reached:.3} of {best:.3} at skew {skew}");
    }
}

#[test]
fn reads_and_overwrites() {
    for skew in [0.7, 1.0] {
        let (reached, best) = load(skew, 10).run();
        assert!(reached > best - 0.055, "{reached:.3} of {best:.3} at skew {skew}");
    }
}
