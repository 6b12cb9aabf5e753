//! What tests drive a store with.

pub use thermocline_storage::clock::{Clock, ManualClock, SystemClock};
pub use thermocline_storage::vfs;

use crate::config::Algorithm;
use crate::optimizer::{Change, Method, Strategy};
use std::time::Duration;
use thermocline_storage::{ContentType, Tier};

/// Something that the optimizer might do, drawn with `below`, which gives a number below the one it is given: for
/// [`Cache::apply`](crate::Cache::apply). Sizes are those of small stores. Left out is what is the allocator's alone,
/// which costs too much to be done thousands of times.
pub fn change(mut below: impl FnMut(u64) -> u64) -> Change {
    let mut size = |least: u32, kinds: u64| 1u64 << (u64::from(least) + below(kinds));
    // From 4 KiB to 256 KiB, and from 64 KiB a second to 8 MiB.
    let (bytes, rate) = (size(12, 7), size(16, 8));
    let tier = Tier::ALL.get(below(4) as usize).copied().unwrap_or(Tier::Memory);
    let content = ContentType::STORED.get(below(4) as usize).copied().unwrap_or(ContentType::Text);
    let method = match below(4) {
        0 => Method::NONE,
        1 => Method { algorithm: Algorithm::Lz4, level: 1 },
        _ => Method { algorithm: Algorithm::Zlib, level: 1 + below(9) },
    };
    // What it was is told to people, and decides nothing.
    let (from, was) = (0, Method::NONE);
    match below(18) {
        0 => Change::SetStrategy { from: Strategy::Balanced, to: Strategy::Conservative },
        1..=2 => Change::FreeMemory { bytes, from, to: 0 },
        3..=4 => Change::ResizeMemoryTier { from, to: bytes },
        5 => Change::EvictIdle { age: Duration::from_secs(10 * (1 + below(3))) },
        6 => Change::Rebalance { tier, from: 1.0, to: 0.9 },
        7 => Change::SetReclaimRate { tier, from, to: rate },
        8 => Change::SetSledCache { from, to: rate },
        9 => Change::SetPackSize { from, to: bytes },
        10 => Change::SetReadAhead { tier, from, to: bytes },
        11 => Change::SetReadSize { from, to: bytes },
        12 => Change::SetConcurrency { from, to: 1 + below(4) },
        13 => Change::SetWriteBuffer { from, to: bytes },
        14 => Change::SetBackgroundRate { from, to: rate },
        15 => Change::SetCompression { content, from: was, to: method },
        16 if below(2) == 0 => {
            Change::LeaveUncompressed { content, from: was, retry_after: Duration::from_secs(60) }
        }
        16 => Change::RetryCompression { content, to: method },
        _ => Change::SetPrefetch { from: 1.0, to: below(4) as f64 },
    }
}
