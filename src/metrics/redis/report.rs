//! What is written to the server: keys, fields, and the commands of a report.
//!
//! Invariants: every value comes from the table of metrics, from the configuration, or from a decision of the optimizer, so
//! that neither a key nor a byte of a value can be among them; a report has at most [`MOST_COMMANDS`] commands, in one
//! transaction, so that who reads sees all of it or nothing; every key expires, so that nothing stays of a store that is
//! gone.

use crate::metrics::decisions::{Decision, MOST};
use crate::metrics::{Kind, Sample, samples};
use crate::stats::Stats;
use redis::{Cmd, cmd};
use std::ops::Range;
use std::time::Duration;

/// A key in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisKey {
    /// Its name, in which `PREFIX` and `INSTANCE` stand for what is configured.
    pub pattern: &'static str,
    /// Its type, as Redis calls it.
    pub kind: &'static str,
    /// What is in it.
    pub help: &'static str,
}

/// A field that is beside the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisField {
    /// Its name.
    pub name: &'static str,
    /// The keys that have it.
    pub of: &'static str,
    /// What it says.
    pub help: &'static str,
}

const REGISTRY: RedisKey = RedisKey {
    pattern: "PREFIX:instances",
    kind: "zset",
    help: "names of the stores that report; the score is the time, in milliseconds, from which one counts as gone.",
};
const ALIVE: RedisKey = RedisKey {
    pattern: "PREFIX:alive:INSTANCE",
    kind: "string",
    help: "the time of the last report; gone when three reports are missing.",
};
const CURRENT: RedisKey = RedisKey {
    pattern: "PREFIX:current:INSTANCE",
    kind: "hash",
    help: "the values of all metrics as of the last report; gone when three are missing.",
};
const HISTORY: RedisKey = RedisKey {
    pattern: "PREFIX:history:INSTANCE",
    kind: "stream",
    help: "the last reports, without the histograms of directories; gone a day after the last one.",
};
const DECISIONS: RedisKey = RedisKey {
    pattern: "PREFIX:decisions:INSTANCE",
    kind: "stream",
    help: "the last decisions of the optimizer; gone a day after the last one.",
};

/// All keys that a store writes.
pub fn redis_keys() -> &'static [RedisKey] {
    &[REGISTRY, ALIVE, CURRENT, HISTORY, DECISIONS]
}

const fn field(name: &'static str, of: &'static str, help: &'static str) -> RedisField {
    RedisField { name, of, help }
}

const HOST: RedisField = field("host", "current", "The machine.");
const PROCESS: RedisField = field("pid", "current", "The process.");
const STORE: RedisField = field(
    "store",
    "current",
    "The first eight digits of the store's id; with memory alone, eight at random.",
);
const INTERVAL: RedisField = field(
    "interval_seconds",
    "current",
    "Seconds between two reports: the setting, or more where the share of the link makes it more.",
);
const TIME: RedisField = field(
    "time_ms",
    "current, history, decisions",
    "When it was, by the machine's clock, in milliseconds since 1970.",
);
const NUMBER: RedisField = field(
    "number",
    "decisions",
    "Counts the decisions since the store was opened, from 0. Two of one number and one time are one that was sent twice.",
);

/// All fields beside the metrics and what a decision says of itself.
pub fn redis_fields() -> &'static [RedisField] {
    &[HOST, PROCESS, STORE, INTERVAL, TIME, NUMBER]
}

/// Commands of one report at most.
pub(super) const MOST_COMMANDS: usize = 12 + MOST + 1;
/// What is for looking back stays so long after the last report.
const DAY: Duration = Duration::from_secs(86_400);
/// What an instance is given beyond its missing reports.
const MARGIN: Duration = Duration::from_secs(5);

/// Who reports, and under which names.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    pub(super) instance: String,
    host: String,
    store: String,
    history: u64,
    registry: String,
    alive: String,
    current: String,
    past: String,
    decisions: String,
}

/// When a report is made, in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct When {
    /// By the clock of this machine.
    pub(super) ours: i64,
    /// By the server's.
    pub(super) theirs: i64,
}

/// What is sent at a time.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) commands: Vec<Cmd>,
    /// Which of the replies within `EXEC`'s are those to the decisions.
    pub(super) decisions: Range<usize>,
}

impl Reporter {
    pub(super) fn new(config: &crate::config::RedisConfig, store: [u8; 4]) -> Reporter {
        let host = host();
        let store: String = store.iter().map(|byte| format!("{byte:02x}")).collect();
        let instance = config.instance.clone().unwrap_or_else(|| format!("{}:{store}", plain(&host)));
        let name = |key: RedisKey| key_name(key.pattern, &config.prefix, &instance);
        Reporter {
            registry: name(REGISTRY),
            alive: name(ALIVE),
            current: name(CURRENT),
            past: name(HISTORY),
            decisions: name(DECISIONS),
            history: config.history,
            instance,
            host,
            store,
        }
    }

    /// The commands of a report, of which the next comes after this pause.
    pub(super) fn report(
        &self,
        stats: &Stats,
        decisions: &[Decision],
        when: When,
        pause: Duration,
    ) -> Report {
        let all: Vec<Sample> = samples(stats).collect();
        let fields = |of: &dyn Fn(&Sample) -> bool| -> Vec<(String, String)> {
            all.iter().filter(|sample| of(sample)).flat_map(Sample::fields).collect()
        };
        let life = millis(pause.saturating_mul(3).saturating_add(MARGIN));
        // No fraction of a second: who divides by it is not to think that a report is missing.
        let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
        let mut hash = cmd("HSET");
        hash.arg(&self.current).arg(HOST.name).arg(&self.host).arg(PROCESS.name).arg(std::process::id());
        hash.arg(STORE.name).arg(&self.store).arg(INTERVAL.name).arg(seconds);
        hash.arg(TIME.name).arg(when.ours).arg(fields(&|_| true));
        let mut entry = self.entry(&self.past);
        entry.arg(TIME.name).arg(when.ours).arg(fields(&is_for_looking_back));
        let mut commands = Vec::with_capacity(MOST_COMMANDS);
        commands.extend([
            cmd("MULTI"),
            // What the store no longer has is not to stay.
            of("DEL", &self.current),
            hash,
            expire(&self.current, life),
            entry,
            expire(&self.past, millis(DAY)),
        ]);
        // `MULTI` has a reply of its own.
        let first = commands.len() - 1;
        for decision in decisions.iter().take(MOST) {
            let mut entry = self.entry(&self.decisions);
            entry
                .arg(NUMBER.name)
                .arg(decision.number)
                .arg(TIME.name)
                .arg(decision.time_ms)
                .arg(&decision.fields);
            commands.push(entry);
        }
        let told = first..commands.len() - 1;
        if !decisions.is_empty() {
            commands.push(expire(&self.decisions, millis(DAY)));
        }
        let mut alive = of("SET", &self.alive);
        alive.arg(when.ours).arg("PX").arg(life);
        let mut enter = of("ZADD", &self.registry);
        enter.arg(when.theirs.saturating_add(life)).arg(&self.instance);
        // By the server's clock, which is the same for all who do this.
        let mut bury = of("ZREMRANGEBYSCORE", &self.registry);
        bury.arg("-inf").arg(format!("({}", when.theirs));
        // The clock stands outside: whoever may not ask for it reports all the same.
        commands.extend([alive, enter, bury, expire(&self.registry, millis(DAY)), cmd("EXEC"), cmd("TIME")]);
        Report { commands, decisions: told }
    }

    /// The commands of a store that closes: it is not there any more. What is for looking back stays its day.
    pub(super) fn farewell(&self) -> Vec<Cmd> {
        let mut gone = of("DEL", &self.current);
        gone.arg(&self.alive);
        let mut leave = of("ZREM", &self.registry);
        leave.arg(&self.instance);
        vec![cmd("MULTI"), gone, leave, cmd("EXEC")]
    }

    fn entry(&self, stream: &str) -> Cmd {
        let mut entry = of("XADD", stream);
        entry.arg("MAXLEN").arg("~").arg(self.history).arg("*");
        entry
    }
}

/// Part for part, so that a prefix or an instance may be a word that stands for the other.
fn key_name(pattern: &str, prefix: &str, instance: &str) -> String {
    let part = |part| match part {
        "PREFIX" => prefix,
        "INSTANCE" => instance,
        part => part,
    };
    pattern.split(':').map(part).collect::<Vec<_>>().join(":")
}

/// History has many reports, in the server's memory, and many directories have many histograms: of them it has the counters.
fn is_for_looking_back(sample: &Sample) -> bool {
    sample.metric.kind != Kind::Histogram || !sample.metric.name.starts_with("directory_")
}

fn of(command: &str, key: &str) -> Cmd {
    let mut command = cmd(command);
    command.arg(key);
    command
}

fn expire(key: &str, ms: i64) -> Cmd {
    let mut command = of("PEXPIRE", key);
    command.arg(ms);
    command
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

/// A name of keys is of plain letters.
fn plain(host: &str) -> String {
    host.chars().map(|c| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RedisConfig;

    fn words(command: &Cmd) -> Vec<String> {
        let arg = |a| match a {
            redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => "cursor".to_owned(),
        };
        command.args_iter().map(arg).collect()
    }

    const WHEN: When = When { ours: 1_000_000, theirs: 999_500 };
    const TEN: Duration = Duration::from_secs(10);

    #[test]
    fn a_report_has_so_many_commands_at_most_and_every_key_expires() {
        let config = RedisConfig { instance: Some("me".into()), ..RedisConfig::default() };
        let reporter = Reporter::new(&config, [0xab; 4]);
        let decision = |number| Decision { number, time_ms: 1, fields: vec![("rule".into(), "r".into())] };
        let many: Vec<Decision> = (0..1000).map(decision).collect();
        let report = reporter.report(&Stats::default(), &many, WHEN, TEN);
        assert_eq!(report.commands.len(), MOST_COMMANDS);
        assert_eq!(reporter.report(&Stats::default(), &[], WHEN, TEN).commands.len(), 12);
        let all: Vec<Vec<String>> = report.commands.iter().map(words).collect();
        let written = ["HSET", "XADD", "ZADD"];
        for command in all.iter().filter(|c| written.contains(&&*c[0])) {
            let expires = |c: &&Vec<String>| c[0] == "PEXPIRE" && c[1] == command[1];
            assert!(all.iter().any(|c| expires(&c)), "{command:?}");
        }
        // Of `EXEC`'s replies, which begin with the second command's, these are those to the decisions.
        assert_eq!(report.decisions.len(), MOST);
        for (n, command) in all.iter().skip(1).enumerate() {
            let is_decision = command[0] == "XADD" && command[1] == "thermocline:decisions:me";
            assert_eq!(report.decisions.contains(&n), is_decision, "{n} {command:?}");
        }
        // 3 × 10 s + 5 s from now, by the server's clock; who is before now, is gone.
        assert!(
            all.contains(&["ZADD", "thermocline:instances", "1034500", "me"].map(str::to_owned).to_vec())
        );
        let bury = ["ZREMRANGEBYSCORE", "thermocline:instances", "-inf", "(999500"];
        assert!(all.contains(&bury.map(str::to_owned).to_vec()), "{all:?}");
        assert!(all.iter().any(|c| c.starts_with(&["SET", "thermocline:alive:me"].map(str::to_owned))
            && c[3..] == ["PX", "35000"]));
    }

    #[test]
    fn who_reports_seldom_lives_longer_and_says_so() {
        let reporter = Reporter::new(&RedisConfig::default(), [0xab; 4]);
        let report = reporter.report(&Stats::default(), &[], WHEN, Duration::from_millis(99_500));
        let all: Vec<Vec<String>> = report.commands.iter().map(words).collect();
        let of = |name: &str| all.iter().find(|c| c[0] == name).unwrap();
        let at = of("HSET").iter().position(|word| word == "interval_seconds").unwrap();
        assert_eq!(of("HSET")[at + 1], "100");
        assert_eq!(of("PEXPIRE")[2], "303500");
        assert_eq!(of("SET")[4], "303500");
        assert_eq!(of("ZADD")[2], (999_500 + 303_500).to_string());
    }

    #[test]
    fn names_are_made_part_for_part_and_none_is_anothers() {
        for (prefix, instance) in
            [("CACHE_INSTANCES", "one"), ("INSTANCE", "PREFIX"), ("a:PREFIX", "INSTANCE:b"), ("p", "i")]
        {
            let names: Vec<String> =
                redis_keys().iter().map(|key| key_name(key.pattern, prefix, instance)).collect();
            let wanted = [
                format!("{prefix}:instances"),
                format!("{prefix}:alive:{instance}"),
                format!("{prefix}:current:{instance}"),
                format!("{prefix}:history:{instance}"),
                format!("{prefix}:decisions:{instance}"),
            ];
            assert_eq!(names, wanted);
        }
    }

    #[test]
    fn a_store_without_a_name_is_told_by_host_and_id_and_keeps_it() {
        let reporter = Reporter::new(&RedisConfig::default(), [0xab; 4]);
        assert_eq!(reporter.instance, format!("{}:abababab", plain(&host())));
        assert_eq!(plain("a b/ü.c-d_1"), "a-b--.c-d_1");
    }
}
