//! Every metric there is.
//!
//! Invariants: a name is there once, in lower case with `_`, and its end says the unit (`_bytes`, `_seconds`) and whether
//! it only rises (`_total`); base units alone; what a label can be is bounded by the store's configuration, never by what
//! is put into it.

use crate::stats::{CodecStats, DirIo, Stats, TierStats, TypeStats};
use std::fmt;
use std::fmt::Write as _;
use thermocline_storage::latency::Latency;
use thermocline_storage::{ContentType, Tier};

/// What the values of a metric are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Rises for as long as the store is open, and begins at 0 with the next opening.
    Counter,
    /// As it is at the moment.
    Gauge,
    /// Durations, counted by length.
    Histogram,
}

impl Kind {
    /// The lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// What a metric is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// Things: items, calls, containers.
    Count,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// A part of one, from 0 to 1.
    Share,
}

impl Unit {
    /// The lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Unit::Count => "count",
            Unit::Bytes => "bytes",
            Unit::Seconds => "seconds",
            Unit::Share => "share",
        }
    }
}

type Read = for<'a> fn(&'a Stats, &mut Samples<'a>);

/// One metric: what it is called and says, whatever its values are.
#[non_exhaustive]
pub struct Metric {
    /// The name. For Prometheus `thermocline_` comes before it.
    pub name: &'static str,
    /// What the values are like.
    pub kind: Kind,
    /// What they count.
    pub unit: Unit,
    /// What it says, in a line.
    pub help: &'static str,
    /// The labels that each sample has.
    pub labels: &'static [&'static str],
    read: Read,
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metric").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// One value, as [`Stats`] has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value<'a> {
    /// A count, or bytes.
    Number(u64),
    /// A time in nanoseconds. It is shown in seconds.
    Nanos(u64),
    /// A share, in millionths. It is shown as a part of one.
    Millionths(u64),
    /// How long something took.
    Latency(&'a Latency),
}

impl From<u64> for Value<'_> {
    fn from(n: u64) -> Self {
        Value::Number(n)
    }
}

impl<'a> From<&'a Latency> for Value<'a> {
    fn from(latency: &'a Latency) -> Self {
        Value::Latency(latency)
    }
}

/// One value of a metric, with what it is of.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Sample<'a> {
    /// Of which metric.
    pub metric: &'static Metric,
    /// Labels and what they are here, in the order of [`Metric::labels`].
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: Value<'a>,
}

impl Sample<'_> {
    /// Name and value, each as text, of a list that knows single numbers only: one pair, or of a latency one each for
    /// `_count`, `_sum`, `_max`, `_p50`, `_p90`, `_p99` and `_p999`. Labels stand behind the name in braces, as for
    /// Prometheus; a number has all its digits, and a time is in seconds.
    pub fn fields(&self) -> Vec<(String, String)> {
        let field = |end: &str, value: String| {
            let mut name = format!("{}{end}", self.metric.name);
            write_labels(&mut name, self.labels.iter().map(|(label, of)| (*label, of.as_str())));
            (name, value)
        };
        match self.value {
            Value::Number(n) => vec![field("", n.to_string())],
            Value::Nanos(ns) => vec![field("", seconds(ns))],
            Value::Millionths(n) => vec![field("", share(n))],
            Value::Latency(l) => vec![
                field("_count", l.count.to_string()),
                field("_sum", seconds(l.sum_ns)),
                field("_max", seconds(l.max_ns)),
                field("_p50", seconds(l.p50_ns())),
                field("_p90", seconds(l.p90_ns())),
                field("_p99", seconds(l.p99_ns())),
                field("_p999", seconds(l.p999_ns())),
            ],
        }
    }
}

/// Nanoseconds as seconds, exactly.
pub(super) fn seconds(ns: u64) -> String {
    let text = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Millionths as a part of one, exactly.
pub(super) fn share(millionths: u64) -> String {
    seconds(millionths.saturating_mul(1000))
}

/// Labels in braces, nothing of none.
pub(super) fn write_labels<'a>(out: &mut String, labels: impl Iterator<Item = (&'a str, &'a str)>) {
    let mut open = false;
    for (label, value) in labels {
        out.push(if open { ',' } else { '{' });
        open = true;
        let _ = write!(out, "{label}=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    if open {
        out.push('}');
    }
}

/// Takes the samples of one metric after the other.
struct Samples<'a> {
    metric: &'static Metric,
    taken: Vec<Sample<'a>>,
}

impl<'a> Samples<'a> {
    fn one(&mut self, value: impl Into<Value<'a>>) {
        self.of(&[], value);
    }

    fn of(&mut self, labels: &[&str], value: impl Into<Value<'a>>) {
        let labels = self.metric.labels.iter().zip(labels).map(|(label, of)| (*label, (*of).to_owned()));
        self.taken.push(Sample { metric: self.metric, labels: labels.collect(), value: value.into() });
    }

    /// One of each tier that the store has and for which there is a value.
    fn tiers<V: Into<Value<'a>>>(&mut self, stats: &'a Stats, value: impl Fn(&'a TierStats) -> Option<V>) {
        for tier in Tier::ALL {
            if let Some(value) = stats.tier(tier).and_then(&value) {
                self.of(&[tier.name()], value);
            }
        }
    }

    /// One of each tier, of values by tier number.
    fn by_tier(&mut self, stats: &Stats, tiers: &[Tier], values: &'a [Latency; 4]) {
        for tier in tiers.iter().filter(|t| stats.tier(**t).is_some()) {
            if let Some(value) = values.get(*tier as usize) {
                self.of(&[tier.name()], value);
            }
        }
    }

    /// One of each directory, and of the catalog.
    fn directories<V: Into<Value<'a>>>(&mut self, stats: &'a Stats, value: impl Fn(&'a DirIo) -> V) {
        for tier in Tier::DISK {
            for io in stats.tier(tier).map(|t| t.io.as_slice()).unwrap_or_default() {
                self.of(&[tier.name(), &io.path.to_string_lossy()], value(io));
            }
        }
        if let Some(io) = &stats.catalog_io {
            self.of(&["catalog", &io.path.to_string_lossy()], value(io));
        }
    }

    fn types(&mut self, stats: &'a Stats, value: impl Fn(&'a TypeStats) -> u64) {
        for (content_type, t) in ContentType::STORED.iter().zip(&stats.types) {
            self.of(&[content_type.name()], value(t));
        }
    }

    fn codecs<V: Into<Value<'a>>>(&mut self, stats: &'a Stats, value: impl Fn(&'a CodecStats) -> V) {
        for (content_type, t) in ContentType::STORED.iter().zip(&stats.types) {
            for (codec, c) in [("zlib", &t.zlib), ("lz4", &t.lz4), ("deflate", &t.deflate)] {
                self.of(&[content_type.name(), codec], value(c));
            }
        }
    }
}

/// All metrics.
pub fn metrics() -> &'static [Metric] {
    METRICS
}

/// The values of all metrics, in the order of [`metrics`]; nothing of what the store does not have.
pub fn samples(stats: &Stats) -> impl Iterator<Item = Sample<'_>> {
    METRICS.iter().flat_map(|metric| {
        let mut samples = Samples { metric, taken: Vec::new() };
        (metric.read)(stats, &mut samples);
        samples.taken
    })
}

const NONE: &[&str] = &[];
const TIER: &[&str] = &["tier"];
const DIRECTORY: &[&str] = &["tier", "directory"];
const TYPE: &[&str] = &["content_type"];
const CODEC: &[&str] = &["content_type", "codec"];

type Text = &'static str;
type Labels = &'static [&'static str];

const fn counter(unit: Unit, name: Text, labels: Labels, help: Text, read: Read) -> Metric {
    Metric { name, kind: Kind::Counter, unit, help, labels, read }
}

const fn gauge(unit: Unit, name: Text, labels: Labels, help: Text, read: Read) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, help, labels, read }
}

const fn histogram(name: Text, labels: Labels, help: Text, read: Read) -> Metric {
    Metric { name, kind: Kind::Histogram, unit: Unit::Seconds, help, labels, read }
}

/// Millionths of a share.
fn millionths(share: f64) -> Value<'static> {
    Value::Millionths((share.clamp(0.0, 1.0) * 1e6).round() as u64)
}

use Unit::{Bytes, Count, Seconds, Share};

#[rustfmt::skip] // a row a line, or two
static METRICS: &[Metric] = &[
    gauge(Count, "build_info", &["version"], "1, of the version of the engine.",
        |_, o| o.of(&[env!("CARGO_PKG_VERSION")], 1)),

    counter(Count, "gets_total", NONE, "Keys asked for.", |s, o| o.one(s.counts.gets)),
    counter(Count, "misses_total", NONE, "Of these, keys that no tier held.", |s, o| o.one(s.counts.misses)),
    counter(Count, "puts_total", NONE, "Values accepted.", |s, o| o.one(s.counts.puts)),
    counter(Bytes, "put_bytes_total", NONE, "Bytes of these values.", |s, o| o.one(s.counts.put_bytes)),
    counter(Count, "removes_total", NONE, "Keys removed.", |s, o| o.one(s.counts.removes)),
    counter(Count, "expired_total", NONE, "Items found expired.", |s, o| o.one(s.counts.expired)),
    counter(Count, "evicted_total", NONE, "Items dropped because no tier had room for them.", |s, o| o.one(s.counts.evicted)),
    counter(Count, "damaged_total", NONE, "Records that failed verification.", |s, o| o.one(s.counts.damaged)),
    counter(Count, "unreachable_total", NONE, "Reads that could not reach the disk.", |s, o| o.one(s.counts.unreachable)),
    counter(Count, "displaced_total", NONE, "Items displaced by another key of the same identity.", |s, o| o.one(s.counts.displaced)),
    counter(Count, "write_failures_total", NONE, "Batches that failed to reach a tier and were tried again.", |s, o| o.one(s.counts.write_failures)),
    counter(Count, "stalls_total", NONE, "Callers that had to wait because the disk was slower than they.", |s, o| o.one(s.counts.stalls)),
    counter(Count, "busy_total", NONE, "Callers that waited in vain.", |s, o| o.one(s.counts.busy)),
    counter(Count, "made_total", NONE, "Values made by a single flight.", |s, o| o.one(s.counts.made)),
    counter(Count, "containers_dropped_total", NONE, "Containers dropped whole.", |s, o| o.one(s.counts.containers_dropped)),
    counter(Bytes, "moved_bytes_total", NONE, "Bytes moved by reclaim, demotion and promotion.", |s, o| o.one(s.counts.moved_bytes)),
    counter(Count, "prefetched_total", NONE, "Items that entered memory because they stand behind one that was asked for.", |s, o| o.one(s.counts.prefetched)),
    counter(Count, "prefetch_used_total", NONE, "Prefetched items that were asked for.", |s, o| o.one(s.counts.prefetch_used)),
    counter(Count, "prefetch_wasted_total", NONE, "Prefetched items that left memory before anybody had asked for them.", |s, o| o.one(s.counts.prefetch_wasted)),
    counter(Count, "idle_total", NONE, "Entries that left memory early, because nobody had asked for them for long.", |s, o| o.one(s.counts.idle)),

    counter(Count, "metrics_sent_total", NONE, "Reports that the metrics server took.", |s, o| o.one(s.counts.metrics_sent)),
    counter(Count, "metrics_failed_total", NONE, "Reports that the metrics server did not take, or that did not come to it.", |s, o| o.one(s.counts.metrics_failed)),
    counter(Count, "metrics_dropped_total", NONE, "Decisions of the optimizer that were dropped: too many waited for the metrics server.", |s, o| o.one(s.counts.metrics_dropped)),

    gauge(Share, "optimizer_pressure", NONE, "Pressure on the machine at the optimizer's last turn, 0 to 1.",
        |s, o| s.optimizer.pressure.into_iter().for_each(|p| o.one(millionths(p)))),
    gauge(Count, "optimizer_strategy", NONE, "The strategy in force: 0 conservative, 1 balanced, 2 aggressive.",
        |s, o| o.one(s.optimizer.strategy as u64)),
    counter(Count, "optimizer_turns_total", NONE, "Turns at which the optimizer decided.", |s, o| o.one(s.optimizer.turns)),
    counter(Count, "optimizer_actions_total", NONE, "Actions of the optimizer that were done.", |s, o| o.one(s.optimizer.actions)),
    counter(Count, "optimizer_taken_back_total", NONE, "Of these, those that undid one which had made things worse.",
        |s, o| o.one(s.optimizer.taken_back)),

    gauge(Count, "items", NONE, "Live items in all tiers.", |s, o| o.one(s.items)),
    gauge(Bytes, "dirty_bytes", NONE, "Bytes in the write buffer.", |s, o| o.one(s.dirty_bytes)),
    gauge(Bytes, "inflight_bytes", NONE, "Bytes of values in flight.", |s, o| o.one(s.inflight_bytes)),
    gauge(Bytes, "catalog_memory_bytes", NONE, "Memory that the catalog takes.", |s, o| o.one(s.catalog_bytes)),
    gauge(Bytes, "catalog_disk_bytes", NONE, "Bytes of the catalog on disk.", |s, o| o.one(s.catalog_disk_bytes)),
    counter(Bytes, "journal_written_bytes_total", NONE, "Bytes written to the journal, both copies.", |s, o| o.one(s.journal_bytes)),
    counter(Count, "checkpoints_total", NONE, "Checkpoints published.", |s, o| o.one(s.checkpoints)),

    gauge(Count, "tier_items", TIER, "Items whose live copy is in the tier; in memory, entries.", |s, o| o.tiers(s, |t| Some(t.items))),
    gauge(Bytes, "tier_bytes", TIER, "Bytes that the tier occupies.", |s, o| o.tiers(s, |t| Some(t.bytes))),
    gauge(Bytes, "tier_limit_bytes", TIER, "Its limit; absent where there is none.", |s, o| o.tiers(s, |t| t.limit)),
    gauge(Count, "tier_containers", TIER, "Segments, generations, packs.", |s, o| o.tiers(s, |t| Some(t.containers))),
    gauge(Count, "tier_directories_out_of_service", TIER, "Directories that failed and take no writes for now.",
        |s, o| o.tiers(s, |t| Some(t.out_of_service.len() as u64))),
    counter(Count, "tier_hits_total", TIER, "Reads that the tier answered.", |s, o| o.tiers(s, |t| Some(t.hits))),
    counter(Bytes, "tier_written_bytes_total", TIER, "Bytes of records written to it.", |s, o| o.tiers(s, |t| Some(t.written))),
    counter(Count, "tier_promoted_total", TIER, "Items promoted into it.", |s, o| o.tiers(s, |t| Some(t.promoted))),
    counter(Count, "tier_demoted_total", TIER, "Items demoted into it.", |s, o| o.tiers(s, |t| Some(t.demoted))),
    counter(Count, "tier_evicted_total", TIER, "Items evicted from it for good.", |s, o| o.tiers(s, |t| Some(t.evicted))),

    counter(Count, "directory_reads_total", DIRECTORY, "Reads in a directory, those through maps left out.", |s, o| o.directories(s, |d| d.reads)),
    counter(Bytes, "directory_read_bytes_total", DIRECTORY, "Bytes that they read.", |s, o| o.directories(s, |d| d.read_bytes)),
    counter(Count, "directory_writes_total", DIRECTORY, "Writes.", |s, o| o.directories(s, |d| d.writes)),
    counter(Bytes, "directory_written_bytes_total", DIRECTORY, "Bytes that they wrote.", |s, o| o.directories(s, |d| d.write_bytes)),
    counter(Count, "directory_syncs_total", DIRECTORY, "Syncs of files and folders.", |s, o| o.directories(s, |d| d.syncs)),
    counter(Count, "directory_errors_total", DIRECTORY, "Operations that failed.", |s, o| o.directories(s, |d| d.errors)),
    gauge(Count, "directory_operations_in_flight", DIRECTORY, "Operations under way.", |s, o| o.directories(s, |d| d.in_flight)),
    histogram("directory_read_seconds", DIRECTORY, "How long reads took.", |s, o| o.directories(s, |d| &d.read_latency)),
    histogram("directory_write_seconds", DIRECTORY, "How long writes took.", |s, o| o.directories(s, |d| &d.write_latency)),
    histogram("directory_sync_seconds", DIRECTORY, "How long syncs took.", |s, o| o.directories(s, |d| &d.sync_latency)),

    counter(Count, "type_items_total", TYPE, "Values of the type written to the first disk tier.", |s, o| o.types(s, |t| t.items)),
    counter(Bytes, "type_original_bytes_total", TYPE, "Their bytes.", |s, o| o.types(s, |t| t.original_bytes)),
    counter(Bytes, "type_stored_bytes_total", TYPE, "Their bytes as stored.", |s, o| o.types(s, |t| t.stored_bytes)),
    counter(Count, "compression_kept_total", CODEC, "Values that the codec compressed.", |s, o| o.codecs(s, |c| c.kept)),
    counter(Bytes, "compression_original_bytes_total", CODEC, "Their bytes before.", |s, o| o.codecs(s, |c| c.original_bytes)),
    counter(Bytes, "compression_stored_bytes_total", CODEC, "Their bytes after.", |s, o| o.codecs(s, |c| c.stored_bytes)),
    counter(Count, "compression_skipped_total", CODEC, "Values that it was tried on in vain.", |s, o| o.codecs(s, |c| c.skipped)),
    counter(Bytes, "compression_skipped_bytes_total", CODEC, "Their bytes.", |s, o| o.codecs(s, |c| c.skipped_bytes)),
    counter(Seconds, "compression_seconds_total", CODEC, "Time that it took for all of them, over all threads.", |s, o| o.codecs(s, |c| Value::Nanos(c.nanos))),

    histogram("get_seconds", TIER, "How long reads took that the tier answered; a sample.",
        |s, o| o.by_tier(s, &Tier::ALL, &s.latency.get)),
    histogram("miss_seconds", NONE, "How long reads took that found nothing; a sample.", |s, o| o.one(&s.latency.miss)),
    histogram("put_seconds", NONE, "How long puts took; a sample.", |s, o| o.one(&s.latency.put)),
    histogram("remove_seconds", NONE, "How long removals took; a sample.", |s, o| o.one(&s.latency.remove)),
    histogram("flush_seconds", NONE, "How long flushes took that callers asked for.", |s, o| o.one(&s.latency.flush)),
    histogram("journal_sync_seconds", NONE, "How long batches of the journal took to be synced.", |s, o| o.one(&s.latency.journal_sync)),
    histogram("data_sync_seconds", TIER, "How long batches written to the tier took to be synced.",
        |s, o| o.by_tier(s, &Tier::DISK, &s.latency.data_sync)),
];
