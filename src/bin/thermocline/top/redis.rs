//! A store of a fleet: looks at what it reports to a Redis server.
//!
//! Invariants: a look is a report that has not been seen before, with the time that it is of, so that what came between two
//! looks is what came between two reports; no message has the URL's user or password in it.

use super::snapshot::{Snapshot, Turn};
use super::source::Source;
use crate::failure::{Failure, LOCKED};
use crate::show;
use serde_json::{Map, Number, Value, json};
use std::time::{Duration, Instant};
use thermocline::config::RedisUrl;
use thermocline::metrics::{Kind, RedisReader, RedisReport, metrics};

/// Decisions that are asked for.
const DECISIONS: usize = 32;
/// How often it is looked for a new report.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a report may stay away that names no interval.
const INTERVAL: Duration = Duration::from_secs(10);

/// Numbers of a report and of its decisions that are no metrics.
const NUMBERS: [&str; 5] = ["pid", "interval_seconds", "time_ms", "number", "pressure"];
/// What the flat list has of a latency.
const PARTS: [&str; 7] = ["_count", "_sum", "_max", "_p50", "_p90", "_p99", "_p999"];

/// An instance, by the name that it reports under.
#[derive(Debug)]
pub struct Fleet {
    reader: RedisReader,
    instance: String,
    /// The time of the first report by the machine that made it, and ours then.
    origin: Option<(Instant, i64)>,
    /// The time of the last one.
    last: Option<i64>,
}

impl Fleet {
    /// Of this server, whose URL is not repeated. Without a name: the one that reports there.
    pub fn find(url: &str, prefix: Option<&str>, instance: Option<&str>) -> Result<Fleet, Failure> {
        let mut reader = RedisReader::new(&RedisUrl::from(url), prefix)
            .map_err(|why| Failure::usage(format!("the URL of the Redis server: {why}")))?;
        let names = reader.instances().map_err(|why| unreachable(&reader, &why))?;
        let server = reader.server();
        let list =
            |names: &[String]| names.iter().map(|n| format!("--instance {n}")).collect::<Vec<_>>().join(", ");
        let instance = match (instance, names.as_slice()) {
            (Some(name), _) if names.iter().any(|n| n == name) => name.to_owned(),
            (None, [one]) => one.clone(),
            (None, [_, _, ..]) => {
                return Err(Failure::usage(format!(
                    "{server}: several stores report there: choose {}",
                    list(&names)
                )));
            }
            (_, []) => {
                return Err(nobody(format!(
                    "{server}: no store reports there: set `metrics.redis.url` of its program to this server and database, \
                     or `metrics.redis.prefix` here (--config FILE) to that of its program"
                )));
            }
            (Some(name), _) => {
                return Err(nobody(format!(
                    "{server}: {name} does not report there; these do: {}",
                    list(&names)
                )));
            }
        };
        Ok(Fleet { reader, instance, origin: None, last: None })
    }

    /// What it has reported last.
    fn report(&mut self) -> Result<RedisReport, Failure> {
        let report =
            self.reader.look(&self.instance, DECISIONS).map_err(|why| unreachable(&self.reader, &why))?;
        report.ok_or_else(|| {
            nobody(format!(
                "{}: {} reports no more: the store was closed, or its machine or network is gone",
                self.reader.server(),
                self.instance
            ))
        })
    }

    /// What it has reported last, for programs.
    pub fn document(&mut self) -> Result<Value, Failure> {
        let report = self.report()?;
        let history: Vec<Value> = report.decisions.iter().map(|d| Value::Object(object(d))).collect();
        Ok(json!({ "instance": self.instance, "figures": object(&report.fields), "history": history }))
    }

    /// The moment that a report is of, by our clock.
    fn moment(&mut self, time_ms: i64) -> Instant {
        let (ours, theirs) = *self.origin.get_or_insert_with(|| (Instant::now(), time_ms));
        match u64::try_from(time_ms.saturating_sub(theirs)) {
            Ok(since) => ours.checked_add(Duration::from_millis(since)).unwrap_or(ours),
            // Its clock was set back.
            Err(_) => {
                self.origin = Some((Instant::now(), time_ms));
                Instant::now()
            }
        }
    }
}

fn nobody(message: String) -> Failure {
    Failure::new(LOCKED, message)
}

fn unreachable(reader: &RedisReader, why: &str) -> Failure {
    let server = reader.server();
    Failure::failed(format!(
        "{server}: {why}: see that the server runs there, and that user, password and database in the URL are right"
    ))
}

impl Source for Fleet {
    fn name(&self) -> String {
        format!("{} at {}", show::safe(&self.instance), self.reader.server())
    }

    fn look(&mut self) -> Result<Snapshot, Failure> {
        let begun = Instant::now();
        loop {
            let report = self.report()?;
            let number = |name: &str| report.field(name).and_then(|text| text.parse::<i64>().ok());
            let time_ms = number("time_ms")
                .ok_or_else(|| Failure::failed(format!("{}: what it reports makes no sense", self.name())))?;
            if self.last.replace(time_ms) != Some(time_ms) {
                let at = self.moment(time_ms);
                return Ok(snapshot(at, &report));
            }
            let interval =
                number("interval_seconds").and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
            if begun.elapsed() > 2 * interval.unwrap_or(INTERVAL) + Duration::from_secs(1) {
                return Err(Failure::failed(format!("{}: no new report", self.name())));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Fields for programs: what counts or measures as a number, and everything else as it came, however much a name, an id or a
/// word looks like one.
fn object(of: &[(String, String)]) -> Map<String, Value> {
    let value = |name: &str, text: &str| number(name, text).map_or_else(|| json!(text), Value::Number);
    of.iter().map(|(name, text)| (name.clone(), value(name, text))).collect()
}

/// The number that a field is, to its last digit. `None`: it is none, by its name or by what it says.
fn number(name: &str, text: &str) -> Option<Number> {
    if !NUMBERS.contains(&name) && !is_metric(name) {
        return None;
    }
    let whole = text.parse::<u64>().map(Number::from).or_else(|_| text.parse::<i64>().map(Number::from));
    whole.ok().or_else(|| Number::from_f64(text.parse().ok()?))
}

/// Whether a field has the name of a metric, as the flat list has it.
fn is_metric(field: &str) -> bool {
    let name = field.split_once('{').map_or(field, |(name, _)| name);
    metrics().iter().any(|metric| match name.strip_prefix(metric.name) {
        Some("") => metric.kind != Kind::Histogram,
        Some(part) => metric.kind == Kind::Histogram && PARTS.contains(&part),
        None => false,
    })
}

fn snapshot(at: Instant, report: &RedisReport) -> Snapshot {
    let number = |(name, text): &(String, String)| Some((show::safe(name), number(name, text)?.as_f64()?));
    let mut turns: Vec<Turn> = Vec::new();
    let mut before = None;
    for decision in &report.decisions {
        let of = |name: &str| decision.iter().find(|(n, _)| n == name).map(|(_, text)| text.as_str());
        // What was sent twice was decided once.
        let told = (of("number"), of("time_ms"));
        if before.replace(told) == Some(told) {
            continue;
        }
        turns.extend(turn(&of));
    }
    Snapshot {
        at,
        process: report.field("pid").and_then(|pid| pid.parse().ok()),
        numbers: report.fields.iter().filter_map(number).collect(),
        distributions: Default::default(),
        out_of_service: Vec::new(),
        turns,
    }
}

fn turn<'a>(of: &impl Fn(&str) -> Option<&'a str>) -> Option<Turn> {
    let failed = of("result").filter(|r| *r != "done").map(|r| format!(" ({r})")).unwrap_or_default();
    let back = of("takes_back").filter(|back| *back == "true").map_or("", |_| "taken back: ");
    let action = format!("{back}{}: {}{failed}", of("change")?, of("because").unwrap_or_default());
    Some(Turn {
        unix_ms: of("time_ms")?.parse().ok()?,
        pressure: of("pressure").and_then(|p| p.parse().ok()),
        parts: Vec::new(),
        strategy: show::safe(of("strategy").unwrap_or("?")),
        actions: vec![show::safe(&action)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_look() {
        let pairs =
            |of: &[(&str, &str)]| of.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect::<Vec<_>>();
        let decision = pairs(&[
            ("number", "4"),
            ("time_ms", "1700000000000"),
            ("strategy", "balanced"),
            ("pressure", "0.420"),
            ("change", "allocator"),
            ("because", "memory\u{1b}[2J"),
            ("result", "not done: no"),
            ("takes_back", "true"),
        ]);
        let mut report = RedisReport::default();
        report.fields = pairs(&[
            ("pid", "7"),
            ("gets_total", "5"),
            ("host", "web"),
            ("get_seconds_p99{tier=\"ssd\"}", "0.001"),
        ]);
        report.decisions = vec![decision.clone(), decision, pairs(&[("odd", "1")])];
        let look = snapshot(Instant::now(), &report);
        assert_eq!(
            (look.process, look.number("gets_total"), look.number("host")),
            (Some(7), Some(5.0), None)
        );
        assert_eq!(look.turns.len(), 1);
        assert_eq!(look.turns[0].actions, ["taken back: allocator: memory\\x1b[2J (not done: no)"]);
        assert_eq!((look.turns[0].pressure, &*look.turns[0].strategy), (Some(0.42), "balanced"));
    }

    #[test]
    fn only_what_counts_or_measures_is_a_number() {
        let all = [
            ("store", "1234e567"),
            ("host", "10"),
            ("because", "nan"),
            ("items", "18446744073709551615"),
            ("dirty_bytes", "inf"),
            ("get_seconds_p99{tier=\"ssd\"}", "0.001"),
            ("get_seconds_p98{tier=\"ssd\"}", "7"),
            ("pressure", "not known"),
            ("time_ms", "-5"),
        ];
        let shown = object(&all.map(|(name, text)| (name.to_owned(), text.to_owned())));
        let wanted = json!({
            "store": "1234e567", "host": "10", "because": "nan", "items": u64::MAX, "dirty_bytes": "inf",
            "get_seconds_p99{tier=\"ssd\"}": 0.001, "get_seconds_p98{tier=\"ssd\"}": "7",
            "pressure": "not known", "time_ms": -5,
        });
        assert_eq!(Value::Object(shown), wanted);
        // All that a store reports of its metrics is one.
        let stats = thermocline::Cache::builder().memory(16 << 20).open().unwrap().stats();
        let fields = thermocline::metrics::samples(&stats).flat_map(|sample| sample.fields());
        assert!(fields.map(|(name, text)| assert!(number(&name, &text).is_some(), "{name}")).count() > 50);
    }
}
