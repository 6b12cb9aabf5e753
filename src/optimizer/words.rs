//! What the optimizer did, in words for people: logs, histories and whoever asks an open store have it from here.
//!
//! Invariant: one line, whatever a directory is called.

use super::action::{Action, Change, Goal};
use super::sample::Method;
use crate::config::Algorithm;
use crate::units::{bytes, count, figures, span, step};
use std::fmt::{Display, Formatter, Result};

impl Display for Method {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self.algorithm {
            Algorithm::None => f.write_str("not compressed"),
            Algorithm::Lz4 => f.write_str("lz4"),
            Algorithm::Zlib => write!(f, "zlib {}", self.level),
        }
    }
}

/// A count, a size or a rate that becomes another; 0 is what was not known.
fn turned(from: u64, to: u64, shown: impl Fn(u64) -> String) -> String {
    if from == 0 { format!("to {}", shown(to)) } else { step(&shown(from), &shown(to)) }
}

fn per_second(n: u64) -> String {
    format!("{}/s", bytes(n))
}

/// As it is configured, a multiple of 64 KiB.
fn prefetch(from: f64, to: f64) -> String {
    let whole = |n: f64| if n > 0.0 { format!("{} × 64 KiB", figures(n)) } else { "off".to_owned() };
    if from > 0.0 && to > 0.0 {
        return format!("{} → {}", figures(from), whole(to));
    }
    format!("{} → {}", whole(from), whole(to))
}

/// `reclaim of ssd: 64.0 → 1.00 MiB/s`: what it was, as far as that is known, and what it is to be.
impl Display for Change {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let percent = |share: &f64| format!("{} %", figures(100.0 * share));
        match self {
            Change::SetStrategy { from, to } => write!(f, "strategy: {from} → {to}"),
            Change::FreeMemory { bytes: less, from: 0, .. } => {
                write!(f, "content of memory: {} less", bytes(*less))
            }
            Change::FreeMemory { from, to, .. } => {
                write!(f, "content of memory: {}", turned(*from, *to, bytes))
            }
            Change::TrimAllocator => f.write_str("allocator: what it keeps goes back to the system"),
            Change::ResizeMemoryTier { from, to } => {
                write!(f, "size of memory: {}", turned(*from, *to, bytes))
            }
            Change::EvictIdle { age } => {
                write!(f, "content of memory: without what was idle for {}", span(*age))
            }
            Change::Rebalance { tier, from, to } => {
                write!(f, "fullness of {tier}: {}", step(&percent(from), &percent(to)))
            }
            Change::SetReclaimRate { tier, from, to } => {
                write!(f, "reclaim of {tier}: {}", turned(*from, *to, per_second))
            }
            Change::SetSledCache { from, to } => {
                write!(f, "index caches of hdd: {}", turned(*from, *to, bytes))
            }
            Change::SetPackSize { from, to } => write!(f, "size of packs: {}", turned(*from, *to, bytes)),
            Change::SetReadAhead { tier, from, to } => {
                write!(f, "read-ahead of {tier}: {}", turned(*from, *to, bytes))
            }
            Change::SetReadSize { from, to } => write!(f, "smallest read: {}", turned(*from, *to, bytes)),
            Change::SetConcurrency { directory: None, from, to } => {
                write!(f, "reads at a time of each directory: {}", turned(*from, *to, count))
            }
            // Quoted: it may have ends of lines in its name.
            Change::SetConcurrency { directory: Some(path), from, to } => {
                write!(f, "reads at a time of {path:?}: {}", turned(*from, *to, count))
            }
            Change::SetWriteBuffer { from, to } => write!(f, "write buffer: {}", turned(*from, *to, bytes)),
            Change::SetBackgroundRate { from, to } => {
                write!(f, "background work: {}", turned(*from, *to, per_second))
            }
            Change::SetCompression { content, from, to } => write!(f, "{content}: {from} → {to}"),
            Change::LeaveUncompressed { content, from, retry_after } => {
                write!(f, "{content}: {from} → {} for {} at least", Method::NONE, span(*retry_after))
            }
            Change::RetryCompression { content, to } => write!(f, "{content}: {} → {to}", Method::NONE),
            Change::SetPrefetch { from, to } => {
                write!(f, "prefetch: {}", prefetch(*from, *to))
            }
        }
    }
}

/// With the unit of its value.
impl Display for Goal {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let content = |n: &usize| super::rules::CONTENT.get(*n).copied().unwrap_or_default();
        match self {
            Goal::Pressure => f.write_str("pressure"),
            Goal::RequestCost => f.write_str("seconds a request"),
            Goal::Tail => f.write_str("seconds of 99 of 100 requests"),
            Goal::MemoryUse => f.write_str("memory use in %"),
            Goal::CpuUse => f.write_str("use of the processors in %"),
            Goal::Occupancy(tier) => write!(f, "full share of {tier}"),
            Goal::Stored(n) => write!(f, "stored share of {}", content(n)),
            Goal::Compressing(n) => write!(f, "processors that compress {}", content(n)),
            Goal::WastedPrefetch => f.write_str("wasted share of prefetch"),
            Goal::Stalls => f.write_str("waits for the disk a second"),
        }
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{}: {}", self.change, self.because)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::Strategy;
    use std::path::PathBuf;
    use std::time::Duration;
    use thermocline_storage::{ContentType, Tier};

    const MIB: u64 = 1 << 20;

    #[test]
    fn changes_are_said_in_words_with_units() {
        let (content, zlib) = (ContentType::Text, Method { algorithm: Algorithm::Zlib, level: 6 });
        let lz4 = Method { algorithm: Algorithm::Lz4, level: 1 };
        let directory = Some(PathBuf::from("/mnt/a\nb"));
        let hour = Duration::from_secs(3600);
        let (from, to) = (64 * MIB, MIB);
        for (change, said) in [
            (
                Change::SetStrategy { from: Strategy::Balanced, to: Strategy::Aggressive },
                "strategy: balanced → aggressive",
            ),
            (Change::FreeMemory { bytes: 63 * MIB, from, to }, "content of memory: 64.0 → 1.00 MiB"),
            (Change::FreeMemory { bytes: MIB, from: 0, to: 0 }, "content of memory: 1.00 MiB less"),
            (Change::TrimAllocator, "allocator: what it keeps goes back to the system"),
            (Change::ResizeMemoryTier { from, to: 2048 }, "size of memory: 64.0 MiB → 2.00 KiB"),
            (Change::EvictIdle { age: hour }, "content of memory: without what was idle for 1 h"),
            (Change::Rebalance { tier: Tier::Hdd, from: 0.931, to: 0.8 }, "fullness of hdd: 93.1 → 80.0 %"),
            (Change::SetReclaimRate { tier: Tier::Ssd, from, to }, "reclaim of ssd: 64.0 → 1.00 MiB/s"),
            (Change::SetReclaimRate { tier: Tier::Ssd, from: 0, to }, "reclaim of ssd: to 1.00 MiB/s"),
            (Change::SetSledCache { from, to }, "index caches of hdd: 64.0 → 1.00 MiB"),
            (Change::SetPackSize { from, to }, "size of packs: 64.0 → 1.00 MiB"),
            (
                Change::SetReadAhead { tier: Tier::Cold, from: to, to: from },
                "read-ahead of cold: 1.00 → 64.0 MiB",
            ),
            (Change::SetReadSize { from: 0, to: 8192 }, "smallest read: to 8.00 KiB"),
            (
                Change::SetConcurrency { directory, from: 8, to: 4 },
                r#"reads at a time of "/mnt/a\nb": 8 → 4"#,
            ),
            (
                Change::SetConcurrency { directory: None, from: 0, to: 4 },
                "reads at a time of each directory: to 4",
            ),
            (Change::SetWriteBuffer { from, to }, "write buffer: 64.0 → 1.00 MiB"),
            (Change::SetBackgroundRate { from, to }, "background work: 64.0 → 1.00 MiB/s"),
            (Change::SetCompression { content, from: zlib, to: lz4 }, "text: zlib 6 → lz4"),
            (
                Change::LeaveUncompressed { content, from: lz4, retry_after: hour },
                "text: lz4 → not compressed for 1 h at least",
            ),
            (Change::RetryCompression { content, to: zlib }, "text: not compressed → zlib 6"),
            (Change::SetPrefetch { from: 2.0, to: 0.0 }, "prefetch: 2.00 × 64 KiB → off"),
            (Change::SetPrefetch { from: 0.0, to: 1.0 }, "prefetch: off → 1.00 × 64 KiB"),
            (Change::SetPrefetch { from: 2.0, to: 1.5 }, "prefetch: 2.00 → 1.50 × 64 KiB"),
        ] {
            assert_eq!(change.to_string(), said);
        }
    }

    #[test]
    fn every_goal_has_words_of_its_own() {
        let said: std::collections::BTreeSet<String> = Goal::all().map(|goal| goal.to_string()).collect();
        assert_eq!(said.len(), Goal::all().count(), "{said:?}");
        assert!(said.contains("stored share of json") && said.contains("full share of ssd"), "{said:?}");
    }
}
