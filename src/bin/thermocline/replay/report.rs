//! What a replay comes to, beside LRU and the optimum or a bound.

use super::setup::by_items;
use super::trace::{Format, Trace};
use super::{Done, ReplayArgs, models, size_at};
use crate::show;
use serde_json::{Value, json};
use std::fmt::Write as _;
use thermocline::{Config, Tier};

/// What is compared with.
#[derive(Debug)]
pub struct Models {
    /// In items, or in bytes of keys and values.
    by_items: Option<u64>,
    capacity: u64,
    lru: models::Hits,
    /// Of the optimum, or of a cache without limit.
    bound: models::Hits,
}

impl Models {
    /// Computes them over the first `requests` of the trace.
    pub fn of(args: &ReplayArgs, config: &Config, trace: &Trace, requests: u64) -> Models {
        let requests = trace.requests.get(..requests as usize).unwrap_or(&trace.requests);
        let items = trace.keys.len();
        let size = |at: usize| u64::from(size_at(trace, at));
        if let Some(capacity) = by_items(args) {
            let lru = models::lru(requests, items, (capacity, capacity), |_| 1, size);
            let bound = models::Hits { requests: models::optimum(requests, items, capacity), bytes: 0 };
            return Models { by_items: Some(capacity), capacity, lru, bound };
        }
        let key = |at: usize| {
            requests.get(at).and_then(|item| trace.keys.get(*item as usize)).map_or(0, |k| k.len() as u64)
        };
        let capacity = config.memory.max_size;
        let lru =
            models::lru(requests, items, (capacity, config.memory.item_limit), |at| size(at) + key(at), size);
        let mut seen = vec![false; items];
        let mut bound = models::Hits::default();
        for (at, item) in requests.iter().enumerate() {
            if let Some(seen) = seen.get_mut(*item as usize)
                && std::mem::replace(seen, true)
            {
                bound.requests += 1;
                bound.bytes += size(at);
            }
        }
        Models { by_items: None, capacity, lru, bound }
    }
}

/// Items among the first requests of a trace: those are numbered in the order in which they are asked for first.
fn distinct(requests: &[u32]) -> u64 {
    requests.iter().max().map_or(0, |last| u64::from(*last) + 1)
}

fn note(out: &mut String, text: &str) {
    let _ = writeln!(out, "  {}", show::wrap(text));
}

/// What is printed.
pub struct Report<'r> {
    pub args: &'r ReplayArgs,
    pub format: Format,
    pub trace: &'r Trace,
    pub config: &'r Config,
    pub done: &'r Done,
    pub models: &'r Models,
}

impl Report<'_> {
    fn hits(&self) -> u64 {
        self.done.hits.iter().sum()
    }

    fn share(&self, hits: u64) -> String {
        show::ratio(hits as f64 / self.done.requests.max(1) as f64)
    }

    fn byte_share(&self, bytes: u64) -> String {
        show::ratio(bytes as f64 / self.done.request_bytes.max(1) as f64)
    }

    /// The number of items that memory is held to besides its bytes, if it may be less than the trace has.
    fn item_limit(&self) -> Option<u64> {
        let limit = self.config.memory.item_limit;
        (self.models.by_items.is_none() && limit < self.trace.keys.len() as u64).then_some(limit)
    }

    /// Sizes that mean something: the trace's own, or more than one.
    fn has_sizes(&self) -> bool {
        !self.trace.sizes.is_empty() && self.args.value_size.is_none()
    }

    /// Of the requests that were replayed.
    fn distinct_keys(&self) -> u64 {
        let done = usize::try_from(self.done.requests).unwrap_or(usize::MAX);
        distinct(self.trace.requests.get(..done).unwrap_or(&self.trace.requests))
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let names: Vec<String> =
            self.args.traces.iter().map(|p| show::file(p).display().to_string()).collect();
        let _ = writeln!(out, "{} ({})", names.join(", "), self.format.name());
        let done = self.done;
        let _ = write!(
            out,
            "{} requests, {} distinct keys",
            show::count(done.requests),
            show::count(self.distinct_keys())
        );
        if self.has_sizes() {
            let _ = write!(out, ", {} asked for", show::bytes(done.request_bytes));
        }
        let per_second = done.requests as f64 / done.seconds.max(1e-9);
        let _ = writeln!(out, "; {:.1} s, {}\n", done.seconds, show::rate(per_second));
        if done.interrupted {
            let _ = writeln!(out, "Interrupted: what follows holds for the requests so far.\n");
        }
        out.push_str(&self.table());
        let _ = writeln!(out);
        self.notes(&mut out);
        out
    }

    fn table(&self) -> String {
        let sized = self.has_sizes();
        let mut rows = Vec::new();
        let mut row = |name: String, size: String, hits: u64, bytes: Option<u64>| {
            let mut cells = vec![name, size, show::count(hits), self.share(hits)];
            if sized {
                cells.push(bytes.map_or("–".into(), |b| self.byte_share(b)));
            }
            rows.push(cells);
        };
        let memory = match self.models.by_items {
            Some(n) => format!("{} items", show::count(n)),
            None => match self.item_limit() {
                Some(n) => format!("{}, {} items", show::bytes(self.models.capacity), show::count(n)),
                None => show::bytes(self.models.capacity),
            },
        };
        let config = self.config;
        let tiers = [
            (Tier::Ssd, &config.ssd.dirs, Some(config.ssd.max_size)),
            (Tier::Hdd, &config.hdd.dirs, Some(config.hdd.max_size)),
            (Tier::Cold, &config.cold.dirs, config.cold.limit),
        ];
        let tiers: Vec<_> = tiers.into_iter().filter(|(_, dirs, _)| !dirs.is_empty()).collect();
        if tiers.is_empty() {
            row("thermocline".into(), memory.clone(), self.hits(), Some(self.done.hit_bytes));
        } else {
            let of = |tier: Tier| self.done.hits.get(tier as usize).copied().unwrap_or(0);
            row("thermocline: memory".into(), memory.clone(), of(Tier::Memory), None);
            for (tier, _, size) in tiers {
                let size = size.map_or("no limit".into(), show::bytes);
                row(format!("             {tier}"), size, of(tier), None);
            }
            row("             all tiers".into(), String::new(), self.hits(), Some(self.done.hit_bytes));
        }
        row("LRU".into(), memory.clone(), self.models.lru.requests, Some(self.models.lru.bytes));
        match self.models.by_items {
            Some(_) => row("optimum (Belady)".into(), memory, self.models.bound.requests, None),
            None => row(
                "no limit (bound)".into(),
                "∞".into(),
                self.models.bound.requests,
                Some(self.models.bound.bytes),
            ),
        }
        let mut header = vec!["", "size", "hits", "hit ratio"];
        if sized {
            header.push("byte hit ratio");
        }
        show::table(1, &header, rows)
    }

    fn notes(&self, out: &mut String) {
        if self.models.by_items.is_some() {
            note(
                out,
                "LRU and the optimum hold as many items as memory does. The optimum knows the future (Belady, 1966): \
                 nothing of that size hits more.",
            );
        } else {
            note(
                out,
                "LRU holds as many bytes of keys and values as memory has, and as many items; thermocline's overhead counts against it. \
                 The bound is a cache without limit, which misses only what is asked for the first time: no smaller \
                 one can hit more. (The optimum for items of different sizes is NP-hard.)",
            );
        }
        if self.config.has_disk() {
            note(out, "Hits in memory include those in the write buffer.");
        }
        let wrong = self.done.wrong;
        match wrong {
            0 => note(out, "Every hit was compared byte for byte: all right."),
            n => note(out, &format!("WRONG VALUES: {} hits were not what was put.", show::count(n))),
        }
        if self.done.too_large > 0 {
            let (count, most) = (show::count(self.done.too_large), show::bytes(self.config.max_value_size()));
            note(
                out,
                &format!("{count} misses were larger than a value may be here ({most}) and were not put."),
            );
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let done = self.done;
        let share = |hits: u64| hits as f64 / done.requests.max(1) as f64;
        let tiers: serde_json::Map<String, Value> = Tier::ALL
            .into_iter()
            .zip(done.hits)
            .map(|(t, hits)| (t.name().to_owned(), json!({ "hits": hits, "hit_ratio": share(hits) })))
            .collect();
        let (kind, unit) = match self.models.by_items {
            Some(_) => ("optimum", "items"),
            None => ("no_limit", "bytes"),
        };
        json!({
            "traces": self.args.traces.iter().map(|p| p.to_string_lossy()).collect::<Vec<_>>(),
            "format": self.format.name(),
            "requests": done.requests,
            "distinct_keys": self.distinct_keys(),
            "request_bytes": self.has_sizes().then_some(done.request_bytes),
            "seconds": done.seconds,
            "interrupted": done.interrupted,
            "wrong_values": done.wrong,
            "too_large": done.too_large,
            "hits": self.hits(),
            "hit_ratio": share(self.hits()),
            "byte_hit_ratio": self.has_sizes().then(|| done.hit_bytes as f64 / done.request_bytes.max(1) as f64),
            "tiers": tiers,
            "memory": { "capacity": self.models.capacity, "unit": unit, "item_limit": self.config.memory.item_limit },
            "lru": { "hits": self.models.lru.requests, "hit_ratio": share(self.models.lru.requests) },
            "bound": { "kind": kind, "hits": self.models.bound.requests, "hit_ratio": share(self.models.bound.requests) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn distinct_items_of_any_part_of_a_trace() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut trace = Trace::default();
        // Two, one behind the other, with items in common.
        for start in [5, 0] {
            let lines: String = (0..200).map(|n| format!("k{}\n", start + n * n % 37)).collect();
            std::fs::write(file.path(), lines).unwrap();
            trace.read(file.path(), None, usize::MAX, &|_| ()).unwrap();
        }
        for done in 0..=trace.requests.len() {
            let requests = &trace.requests[..done];
            assert_eq!(distinct(requests), requests.iter().collect::<HashSet<_>>().len() as u64, "{done}");
        }
        assert_eq!(distinct(&trace.requests), trace.keys.len() as u64);
    }
}
