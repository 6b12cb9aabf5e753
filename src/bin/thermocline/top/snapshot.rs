//! A look at a store: its numbers at one moment, and what came between two such moments.
//!
//! Invariant: where something is not known (a store without that tier, a source that does not say it, a first look) it is
//! `None`, and shown as a dash; never as 0.

use crate::show;
use serde_json::Value;
use std::collections::HashMap;
use std::time::Instant;

/// One look.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When.
    pub at: Instant,
    /// The process that has the store open.
    pub process: Option<u64>,
    /// Metrics, by the names of the flat list: `tier_bytes{tier="ssd"}`.
    pub numbers: HashMap<String, f64>,
    /// Of latencies: how many took at most so many nanoseconds, and longer than the entry before says.
    pub distributions: HashMap<String, Vec<(u64, u64)>>,
    /// Directories that take no writes: tier, path and why.
    pub out_of_service: Vec<(String, String, String)>,
    /// The optimizer's last turns, the newest last.
    pub turns: Vec<Turn>,
}

/// A turn of the optimizer.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Milliseconds since the epoch.
    pub unix_ms: u64,
    /// From 0 to 1.
    pub pressure: Option<f64>,
    /// What that is made of, as far as it is known: names and shares.
    pub parts: Vec<(&'static str, f64)>,
    /// The strategy in force.
    pub strategy: String,
    /// What was done, with its reason, and what came of it.
    pub actions: Vec<String>,
}

impl Snapshot {
    /// Reads the figures of a store and the turns of its optimizer, as an open store tells them. `None`: they are none.
    pub fn read(at: Instant, figures: &Value, turns: &Value) -> Option<Snapshot> {
        let numbers = figures.get("numbers")?.as_object()?;
        let distributions = figures.get("distributions")?.as_object()?;
        let entry = |e: &Value| Some((e.get(0)?.as_u64()?, e.get(1)?.as_u64()?));
        let counts = |v: &Value| v.as_array()?.iter().map(entry).collect::<Option<Vec<_>>>();
        let mut out_of_service = Vec::new();
        for (tier, of) in figures.get("tiers")?.as_object()? {
            let text = |v: &Value, name| v.get(name).and_then(Value::as_str).unwrap_or("?").to_owned();
            let out = of.get("out_of_service").and_then(Value::as_array);
            out_of_service
                .extend(out.into_iter().flatten().map(|o| (tier.clone(), text(o, "path"), text(o, "why"))));
        }
        Some(Snapshot {
            at,
            process: figures.get("process").and_then(Value::as_u64),
            numbers: numbers.iter().filter_map(|(name, n)| Some((name.clone(), n.as_f64()?))).collect(),
            distributions: distributions
                .iter()
                .filter_map(|(name, v)| Some((name.clone(), counts(v)?)))
                .collect(),
            out_of_service,
            turns: turns.as_array().into_iter().flatten().filter_map(Turn::read).collect(),
        })
    }

    /// A metric's value.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.numbers.get(name).copied()
    }

    /// The sum of a metric over all of its samples whose labels begin so.
    pub fn sum(&self, start: &str) -> Option<f64> {
        let all = self.numbers.iter().filter(|(name, _)| name.starts_with(start)).map(|(_, n)| *n);
        all.reduce(|a, b| a + b)
    }
}

impl Turn {
    fn read(value: &Value) -> Option<Turn> {
        let inputs = value.get("inputs");
        let part = |(name, of)| Some((name, inputs?.get(of)?.as_f64()?));
        let effects = value.get("effects").and_then(Value::as_array);
        let effects = effects.into_iter().flatten().map(|e| format!("came of it: {}", show::effect(e)));
        let actions = value.get("actions")?.as_array()?.iter().filter_map(show::action);
        Some(Turn {
            unix_ms: value.get("unix_ms")?.as_u64()?,
            pressure: value.get("pressure").and_then(Value::as_f64),
            parts: [("memory", "memory"), ("CPU", "cpu"), ("I/O", "io")]
                .into_iter()
                .filter_map(part)
                .collect(),
            strategy: value.get("strategy")?.as_str()?.to_owned(),
            actions: actions.chain(effects).collect(),
        })
    }
}

/// What came between two looks; since the store was opened, where there is only one.
#[derive(Debug, Clone, Copy)]
pub struct Between<'a> {
    before: Option<&'a Snapshot>,
    /// The later one.
    pub now: &'a Snapshot,
}

impl<'a> Between<'a> {
    /// From one to the other. If the store was opened anew in between, its counters began anew.
    pub fn new(before: Option<&'a Snapshot>, now: &'a Snapshot) -> Between<'a> {
        let went_on = |before: &&Snapshot| {
            let goes_on = |name| before.number(name).unwrap_or(0.0) <= now.number(name).unwrap_or(0.0);
            before.process == now.process
                && ["gets_total", "puts_total", "checkpoints_total"].iter().all(|n| goes_on(n))
        };
        Between { before: before.filter(went_on), now }
    }

    /// How much a counter rose; summed over all samples whose labels begin so.
    pub fn rise(&self, start: &str) -> Option<f64> {
        let before = self.before.and_then(|b| b.sum(start)).unwrap_or(0.0);
        Some((self.now.sum(start)? - before).max(0.0))
    }

    /// The same a second. `None` of a first look.
    pub fn rate(&self, start: &str) -> Option<f64> {
        let seconds = self.now.at.saturating_duration_since(self.before?.at).as_secs_f64();
        if seconds > 0.0 { Some(self.rise(start)? / seconds) } else { None }
    }

    /// Nanoseconds that this share of the operations between the two took at most; if the source says no distribution, of
    /// all since the store was opened. `None`: there were none.
    pub fn latency(&self, name: &str, share: Share) -> Option<f64> {
        let Some(now) = self.now.distributions.get(name) else {
            let (metric, labels) = name.split_at(name.find('{').unwrap_or(name.len()));
            let seconds = self.now.number(&format!("{metric}{}{labels}", share.field()))?;
            return (seconds > 0.0).then_some(seconds * 1e9);
        };
        let before = self.before.and_then(|b| b.distributions.get(name));
        let before: HashMap<u64, u64> = before.into_iter().flatten().copied().collect();
        let since =
            |(ns, count): &(u64, u64)| (*ns, count.saturating_sub(before.get(ns).copied().unwrap_or(0)));
        let since: Vec<(u64, u64)> = now.iter().map(since).collect();
        // Whoever has the store open may say anything.
        let total = since.iter().fold(0u64, |sum, (_, count)| sum.saturating_add(*count));
        let rank = ((total as f64 * share.of()).ceil() as u64).max(1);
        let mut below = 0u64;
        since.iter().find_map(|(ns, count)| {
            below = below.saturating_add(*count);
            (total > 0 && below >= rank).then_some(*ns as f64)
        })
    }
}

/// A share of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// One in two.
    Half,
    /// 99 in 100.
    Most,
}

impl Share {
    fn of(self) -> f64 {
        if self == Share::Half { 0.5 } else { 0.99 }
    }

    fn field(self) -> &'static str {
        if self == Share::Half { "_p50" } else { "_p99" }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    /// A store that has done something, and a second later more.
    pub fn two_looks() -> (Snapshot, Snapshot) {
        let look = |n: u64, at: Instant| {
            let figures = json!({
                "process": 7,
                "tiers": {
                    "ssd": { "out_of_service": [{ "path": "/mnt/nvme", "why": "Input/output error" }] },
                },
                "numbers": {
                    "gets_total": 100 * n, "misses_total": 10 * n, "puts_total": 50 * n, "items": 1000,
                    "moved_bytes_total": (n << 20), "damaged_total": 1, "dirty_bytes": 4096,
                    "checkpoints_total": n,
                    "tier_bytes{tier=\"memory\"}": 6 << 20, "tier_limit_bytes{tier=\"memory\"}": 8 << 20,
                    "tier_items{tier=\"memory\"}": 300, "tier_hits_total{tier=\"memory\"}": 80 * n,
                    "tier_bytes{tier=\"ssd\"}": 60 << 20, "tier_limit_bytes{tier=\"ssd\"}": 64 << 20,
                    "tier_items{tier=\"ssd\"}": 900, "tier_hits_total{tier=\"ssd\"}": 10 * n,
                    "tier_promoted_total{tier=\"ssd\"}": 3 * n, "tier_demoted_total{tier=\"ssd\"}": 0,
                    "tier_bytes{tier=\"cold\"}": 5u64 << 30, "tier_items{tier=\"cold\"}": 100,
                    "tier_hits_total{tier=\"cold\"}": 0, "tier_demoted_total{tier=\"cold\"}": 2 * n,
                    "directory_read_bytes_total{tier=\"ssd\",directory=\"/a\"}": 1000 * n,
                    "directory_read_bytes_total{tier=\"ssd\",directory=\"/b\"}": 2000 * n,
                    "type_items_total{content_type=\"text\"}": 40 * n,
                    "type_original_bytes_total{content_type=\"text\"}": 4000 * n,
                    "type_stored_bytes_total{content_type=\"text\"}": 1000 * n,
                    "get_seconds_p50{tier=\"cold\"}": 0.005,
                },
                "distributions": {
                    "get_seconds{tier=\"memory\"}": [[100, 90 * n], [1000, 10 * n]],
                    "get_seconds{tier=\"ssd\"}": [[5000, 10]],
                },
            });
            let turns = json!([
                { "unix_ms": 1_700_000_000_000u64, "pressure": 0.42, "strategy": "balanced",
                  "inputs": { "memory": 0.5, "cpu": null, "io": 0.031 },
                  "effects": [{ "goal": "pressure", "before": 0.002, "after": 0.001 }], "actions": [
                    { "change": "prefetch: 1.00 × 64 KiB → off", "because": "hardly any is used",
                      "takes_back": false, "error": null },
                    { "change": "allocator", "because": "memory", "takes_back": true, "error": "no" },
                ]},
            ]);
            Snapshot::read(at, &figures, &turns).unwrap()
        };
        let start = Instant::now();
        (look(1, start), look(3, start + Duration::from_secs(2)))
    }

    #[test]
    fn what_came_between_two_looks() {
        let (before, now) = two_looks();
        let between = Between::new(Some(&before), &now);
        assert_eq!(between.rate("gets_total"), Some(100.0));
        assert_eq!(between.rate("moved_bytes_total"), Some(1_048_576.0));
        assert_eq!(between.rate("directory_read_bytes_total{tier=\"ssd\""), Some(3000.0));
        assert_eq!(between.rise("tier_hits_total{tier=\"memory\"}"), Some(160.0));
        assert_eq!(between.rate("tier_promoted_total{tier=\"hdd\"}"), None);
        // Of those between: 180 and 20.
        let of_memory = |share| between.latency("get_seconds{tier=\"memory\"}", share);
        assert_eq!((of_memory(Share::Half), of_memory(Share::Most)), (Some(100.0), Some(1000.0)));
        // None came in between, and none was measured ever.
        assert_eq!(between.latency("get_seconds{tier=\"ssd\"}", Share::Half), None);
        assert_eq!(between.latency("put_seconds", Share::Half), None);
        // Without a distribution: what is said of all.
        assert_eq!(between.latency("get_seconds{tier=\"cold\"}", Share::Half), Some(5e6));
        // What no store counts is no reason to fail.
        let mut odd = now.clone();
        odd.distributions.insert("put_seconds".to_owned(), vec![(5, u64::MAX), (9, u64::MAX)]);
        assert_eq!(Between::new(None, &odd).latency("put_seconds", Share::Most), Some(5.0));
        // A first look has no rates, and says what was since the opening.
        let first = Between::new(None, &now);
        assert_eq!((first.rate("gets_total"), first.rise("gets_total")), (None, Some(300.0)));
        assert_eq!(first.latency("get_seconds{tier=\"ssd\"}", Share::Half), Some(5000.0));
    }

    #[test]
    fn a_store_that_was_opened_anew_has_no_past() {
        let (before, now) = two_looks();
        assert_eq!(Between::new(Some(&now), &before).rate("gets_total"), None);
        let other = Snapshot { process: Some(8), ..now.clone() };
        assert_eq!(Between::new(Some(&before), &other).rate("gets_total"), None);
    }

    #[test]
    fn what_the_optimizer_did_is_a_line_each() {
        let (_, now) = two_looks();
        assert_eq!(now.turns.len(), 1);
        assert_eq!(
            now.turns[0].actions,
            [
                "prefetch: 1.00 × 64 KiB → off: hardly any is used",
                "taken back: allocator: memory (not done: no)",
                "came of it: pressure: 2.00e-3 → 1.00e-3"
            ]
        );
        assert_eq!(Snapshot::read(Instant::now(), &json!({ "numbers": [] }), &Value::Null).map(drop), None);
    }
}
