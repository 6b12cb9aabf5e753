//! What is said of a store, as JSON: its figures, and the turns of its optimizer.
//!
//! Invariant: the figures are those of the table of metrics, under the names that it gives them, so that a reader of this
//! and a reader of the metrics see the same; no key and no byte of a value is in any of it.

use crate::metrics::{self, Value as Metric};
use crate::optimizer::{Record, Sample};
use crate::stats::Stats;
use serde_json::{Map, Value, json};
use thermocline_storage::Tier;

/// Figures of a store: what `thermocline stat --json` shows of it, and under `numbers` every metric by the name that
/// [`Sample::fields`](crate::metrics::Sample::fields) gives it. Under `distributions` there is for each latency that is
/// not one directory's how many took at most so many nanoseconds and longer than the entry before says, of which the
/// latencies between two looks follow.
pub fn stat(stats: &Stats) -> Value {
    let mut numbers = Map::new();
    let mut distributions = Map::new();
    for sample in metrics::samples(stats) {
        let fields = sample.fields();
        if let Metric::Latency(latency) = sample.value
            && !sample.metric.labels.contains(&"directory")
        {
            let count = fields.first().map(|(name, _)| name.replacen("_count", "", 1));
            let counts: Vec<Value> = latency.counts().map(|(ns, count)| json!([ns, count])).collect();
            distributions.extend(count.map(|name| (name, Value::from(counts))));
        }
        let number = |(name, text): (String, String)| Some((name, json!(text.parse::<f64>().ok()?)));
        numbers.extend(fields.into_iter().filter_map(number));
    }
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "process": std::process::id(),
        "items": stats.items,
        "catalog_bytes": stats.catalog_bytes,
        "catalog_disk_bytes": stats.catalog_disk_bytes,
        "tiers": tiers(stats),
        "numbers": numbers,
        "distributions": distributions,
    })
}

fn tiers(stats: &Stats) -> Map<String, Value> {
    let of = |tier: Tier| {
        let t = stats.tier(tier)?;
        let out = t.out_of_service.iter();
        let out: Vec<Value> =
            out.map(|(path, why)| json!({ "path": path.to_string_lossy(), "why": why })).collect();
        let value = json!({
            "items": t.items,
            "bytes": t.bytes,
            "limit": t.limit,
            "containers": t.containers,
            "out_of_service": out,
        });
        Some((tier.name().to_owned(), value))
    };
    Tier::DISK.into_iter().filter_map(of).collect()
}

/// Turns of the optimizer: when (milliseconds since the epoch), pressure, strategy, the `inputs` that decide, each action
/// in words, with its reason and what became of it, and the `effects` on the goals of what was done, which the next turn
/// measures. What is not known is null.
pub fn turns(records: &[Record]) -> Value {
    records.iter().map(turn).collect()
}

fn turn(record: &Record) -> Value {
    let actions: Vec<Value> = record
        .outcomes
        .iter()
        .map(|o| {
            json!({
                "change": o.action.change.to_string(),
                "because": o.action.because,
                "takes_back": o.action.takes_back,
                "error": o.result.as_ref().err(),
            })
        })
        .collect();
    let effects: Vec<Value> = record
        .effects
        .iter()
        .map(|e| json!({ "goal": e.goal.to_string(), "before": e.before, "after": e.after }))
        .collect();
    json!({
        "unix_ms": record.unix_ms,
        "pressure": record.decision.pressure,
        "strategy": format!("{:?}", record.decision.strategy).to_lowercase(),
        "inputs": inputs(&record.sample),
        "actions": actions,
        "effects": effects,
    })
}

/// What pressure is made of, in shares; what each tier answered; and how long requests took.
fn inputs(sample: &Sample) -> Value {
    let share = |percent: Option<f64>| percent.map(|p| p / 100.0);
    let hits =
        Tier::ALL.into_iter().filter_map(|t| Some((t.name().to_owned(), sample.tier(t)?.hit_rate.into())));
    json!({
        "memory": share(sample.memory_percent()),
        "cpu": share(sample.cpu_percent),
        "io": sample.io_pressure,
        "gets": sample.requests.gets,
        "misses": sample.requests.misses,
        "puts": sample.requests.puts,
        "hit_shares": hits.collect::<Map<String, Value>>(),
        "mean_seconds": sample.requests.mean,
        "p99_seconds": sample.requests.p99,
    })
}
