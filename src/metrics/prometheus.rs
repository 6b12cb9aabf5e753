//! The table as text for Prometheus: exposition format 0.0.4.
//!
//! Invariant: each family has its `HELP` and `TYPE` once, before its samples, which stand together; the buckets of a
//! histogram rise, the last one, `+Inf`, being its count.

use super::table::{Metric, Sample, Value, samples, seconds, share, write_labels};
use crate::stats::Stats;
use std::fmt::Write as _;
use thermocline_storage::latency::Latency;

/// The media type of what [`Stats::to_prometheus`] gives, for the answer's `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What comes before each name.
const PREFIX: &str = "thermocline_";

/// Buckets end at powers of two nanoseconds, at which counts are exact: from 64 ns to 69 s.
const BOUNDS: std::ops::RangeInclusive<u32> = 6..=36;

impl Stats {
    /// All metrics as text for Prometheus (exposition format 0.0.4), whose media type is
    /// [`metrics::CONTENT_TYPE`](crate::metrics::CONTENT_TYPE). Names begin with `thermocline_`; `docs/operations.md`
    /// has them all.
    ///
    /// ```
    /// # let cache = thermocline::Cache::builder().memory(16 << 20).open()?;
    /// cache.get("missing")?;
    /// let text = cache.stats().to_prometheus();
    /// assert!(text.contains("# TYPE thermocline_misses_total counter\nthermocline_misses_total 1\n"));
    /// # Ok::<(), thermocline::Error>(())
    /// ```
    pub fn to_prometheus(&self) -> String {
        let mut out = String::new();
        let mut last: Option<&'static Metric> = None;
        for sample in samples(self) {
            let metric = sample.metric;
            if last.is_none_or(|last| last.name != metric.name) {
                let help = metric.help.replace('\\', "\\\\").replace('\n', "\\n");
                let _ = writeln!(out, "# HELP {PREFIX}{} {help}", metric.name);
                let _ = writeln!(out, "# TYPE {PREFIX}{} {}", metric.name, metric.kind.name());
                last = Some(metric);
            }
            match sample.value {
                Value::Number(n) => line(&mut out, &sample, "", None, &n.to_string()),
                Value::Nanos(ns) => line(&mut out, &sample, "", None, &seconds(ns)),
                Value::Millionths(n) => line(&mut out, &sample, "", None, &share(n)),
                Value::Latency(latency) => histogram(&mut out, &sample, latency),
            }
        }
        out
    }
}

fn histogram(out: &mut String, sample: &Sample<'_>, latency: &Latency) {
    for power in BOUNDS {
        let bound = 1u64 << power;
        let le = seconds(bound);
        line(out, sample, "_bucket", Some(&le), &latency.at_most(bound).to_string());
    }
    line(out, sample, "_bucket", Some("+Inf"), &latency.count.to_string());
    line(out, sample, "_sum", None, &seconds(latency.sum_ns));
    line(out, sample, "_count", None, &latency.count.to_string());
}

fn line(out: &mut String, sample: &Sample<'_>, end: &str, le: Option<&str>, value: &str) {
    let _ = write!(out, "{PREFIX}{}{end}", sample.metric.name);
    let labels = sample.labels.iter().map(|(label, of)| (*label, of.as_str()));
    write_labels(out, labels.chain(le.map(|le| ("le", le))));
    let _ = writeln!(out, " {value}");
}
