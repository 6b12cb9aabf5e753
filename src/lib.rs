//! Thermocline: an embedded four-tier cache store.
//!
//! A thermocline is the layer of a lake where warm water meets cold. This engine keeps warm items up and lets cold
//! ones sink, from memory to SSD to HDD to a cold archive, by how often they are used, compressed by what they are.
//! It is linked into a program, is given directories on the disks that the machine has, and does the rest.
//!
//! ```
//! use thermocline::Cache;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let (ssd, hdd, cold) = (dir.path().join("s"), dir.path().join("h"), dir.path().join("c"));
//! let cache = Cache::builder()
//!     .memory(64 << 20)
//!     .ssd(ssd, 1 << 30)
//!     .hdd(hdd, 4 << 30)
//!     .cold(cold)
//!     .open()?;
//! cache.put("thumb/42", vec![7; 10_000])?;
//! assert_eq!(cache.get("thumb/42")?.map(|v| v.len()), Some(10_000));
//! cache.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! Linux only. With `default-features = false` no argument parser, terminal or network crate is compiled.

#![allow(rustdoc::private_intra_doc_links, reason = "the modules' texts speak to who reads the code")]

pub mod allocator;
mod budget;
mod builder;
mod cache;
pub mod config;
mod engine;
mod error;
mod events;
mod flight;
mod heat;
pub mod metrics;
pub mod optimizer;
#[cfg(feature = "remote")]
pub mod remote;
pub mod sensors;
mod stats;

pub use builder::Builder;
pub use cache::{Cache, Entry, Info, Keys, PutOptions, Tuned};
pub use config::{Config, ConfigError, MemoryPolicy, Persistence};
pub use engine::{CheckReport, Cost, Damage, Finding, Progress, Recovery, RepairReport, Step, VerifyReport};
pub use error::{Error, Result};
pub use events::{Event, EvictReason, Received, RecvError, Subscription};
pub use stats::{CodecStats, Counts, DirIo, LatencyStats, OptimizerStats, Stats, TierStats, TypeStats};
pub use thermocline_storage::Error as StorageError;
pub use thermocline_storage::flaw::Part;
pub use thermocline_storage::latency::Latency;
pub use thermocline_storage::{ContentType, Tier};

#[doc(hidden)]
pub mod testing;
#[doc(hidden)]
pub mod units;

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
