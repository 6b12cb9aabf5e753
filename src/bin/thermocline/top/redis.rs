//! A store of a fleet: looks at what it reports to a Redis server.
//!
//! Invariants: a look is a report that has not been seen before, with the time that it is of, so that what came between two
//! looks is what came between two reports; no message has the URL's user or password in it.

use super::snapshot::{Snapshot, Turn};
use super::source::Source;
use crate::failure::{Failure, LOCKED};
use crate::show;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};
use thermocline::config::RedisUrl;
use thermocline::metrics::{RedisReader, RedisReport};

/// Decisions that are asked for.
const DECISIONS: usize = 32;
/// How often it is looked for a new report.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a report may stay away that names no interval.
const INTERVAL: Duration = Duration::from_secs(10);

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
        let value = |text: &String| text.parse::<f64>().map_or_else(|_| json!(text), |n| json!(n));
        let object = |of: &[(String, String)]| -> Map<String, Value> {
            of.iter().map(|(name, text)| (name.clone(), value(text))).collect()
        };
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
    Failure { code: LOCKED, message }
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

fn snapshot(at: Instant, report: &RedisReport) -> Snapshot {
    let number = |(name, text): &(String, String)| Some((show::safe(name), text.parse::<f64>().ok()?));
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
    let action = format!("{}: {}{failed}", of("change")?, of("because").unwrap_or_default());
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
            ("change", "TrimAllocator"),
            ("because", "memory\u{1b}[2J"),
            ("result", "not done: no"),
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
        assert_eq!(look.turns[0].actions, ["TrimAllocator: memory\\x1b[2J (not done: no)"]);
        assert_eq!((look.turns[0].pressure, &*look.turns[0].strategy), (Some(0.42), "balanced"));
    }
}
