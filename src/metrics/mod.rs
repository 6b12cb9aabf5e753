//! What the engine measures of itself, and how it is shown: one source, [`Stats`], and views of it that agree.
//!
//! | module | job |
//! |---|---|
//! | `record` | what is timed and counted while the engine works |
//! | `table` | every metric there is: name, unit, kind, help, labels, and where in [`Stats`] its values are |
//! | `prometheus` | the table as text for Prometheus |
//! | `redis` | the table to a Redis server, each period; a feature |
//! | `decisions` | what the optimizer decided, until it is there |
//!
//! Invariants: every number of [`Stats`] is in the table (a test takes it apart, field by field, so that a field that is
//! new does not compile before it is thought of); a view takes its values from the table alone; no key and no byte of a
//! value is in any of it. Nothing here takes a lock that the engine's work waits for, and nothing is on disk: every
//! counter begins at 0 with each opening. (What goes to Redis is asked for by a thread of its own.)
//!
//! ```
//! use thermocline::{Cache, metrics};
//!
//! let cache = Cache::builder().memory(16 << 20).open()?; // memory alone
//! cache.put("k", "v")?;
//! let stats = cache.stats();
//! let puts = metrics::samples(&stats).find(|sample| sample.metric.name == "puts_total");
//! assert_eq!(puts.map(|sample| sample.fields()), Some(vec![("puts_total".into(), "1".into())]));
//! assert!(stats.to_prometheus().contains("\nthermocline_puts_total 1\n"));
//! # Ok::<(), thermocline::Error>(())
//! ```

mod decisions;
mod prometheus;
mod record;
#[cfg(feature = "redis")]
pub(crate) mod redis;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use decisions::{Decisions, FIELDS as DECISION_FIELDS};
pub use prometheus::CONTENT_TYPE;
pub(crate) use record::{Latencies, Meters};
#[cfg(feature = "redis")]
pub use redis::{RedisField, RedisKey, RedisReader, RedisReport, redis_fields, redis_keys};
pub use table::{Kind, Metric, Sample, Unit, Value, metrics, samples};

#[cfg(doc)]
use crate::stats::Stats;
