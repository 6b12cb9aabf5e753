//! Metrics to a Redis server, for who looks after many stores.
//!
//! | module | job |
//! |---|---|
//! | `target` | the URL, taken apart |
//! | `connect` | from a name to a socket |
//! | `wire` | a connection that keeps a deadline |
//! | `report` | keys, fields, and the commands of a report |
//! | `read` | what was reported, for who looks after the stores |
//!
//! A thread of its own sends a report each period: one round trip. Where that fails, for whatever reason, it counts, says so
//! once, and tries again after a pause that doubles up to a minute (or the interval, if that is longer); it says once, too,
//! that it goes on.
//!
//! Invariants:
//! - no caller of the store comes here, and nobody holds a lock while this thread waits for the network;
//! - it ends within [`LEAVE`] of being told to, whatever the server does; only a name that the system cannot look up keeps it
//!   longer, and then nobody waits for it;
//! - it keeps no store open: it knows the store by a weak reference, and has a strong one only while it takes the picture, and
//!   while it notes what became of it, never while it waits for the network;
//! - a second carries no more bytes than the configured share of the link, on average over the periods.
//!
//! Nothing is on disk, so a crash leaves nothing here; in Redis, what it had written expires.

mod connect;
mod read;
mod report;
mod target;
mod wire;

pub use read::{RedisReader, RedisReport};
pub use report::{RedisField, RedisKey, redis_fields, redis_keys};
pub(crate) use target::Target;

use crate::config::Config;
use crate::events::RateLimit;
use crate::metrics::decisions::{Decisions, MOST};
use crate::stats::Stats;
use parking_lot::{Condvar, Mutex};
use redis::Value;
use report::{Reporter, When};
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use thermocline_storage::clock::Clock;
use wire::{Connection, Dress, Failed, now_ms, refused, text};

/// The pause after a failure doubles up to this, or to the interval if that is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long after it was told to stop the last round trip may last.
const FAREWELL: Duration = Duration::from_millis(800);
/// How long who stops it waits.
const LEAVE: Duration = Duration::from_millis(950);
/// At most one warning, and one word of its end, in this time, however often a connection comes and goes.
const QUIET: Duration = Duration::from_secs(60);

/// What the log calls it.
const LOG: &str = "thermocline::engine";

/// The store, as this thread knows it.
pub(crate) trait Store: Send + Sync {
    /// All numbers.
    fn stats(&self) -> Stats;
    /// What waits to be told.
    fn decisions(&self) -> &Decisions;
    /// A report arrived, or did not.
    fn count(&self, arrived: bool);
}

/// What is configured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    target: Target,
    dress: Dress,
    reporter: Reporter,
    interval: Duration,
    /// Share of the link.
    share: f64,
}

impl Plan {
    /// Of a configuration that names a server; its URL was checked with the rest.
    pub(crate) fn of(config: &Config, store: [u8; 4]) -> Option<Plan> {
        let redis = &config.metrics.redis;
        let network = config.resources.network;
        Some(Plan {
            target: Target::parse(redis.url.as_ref()?.expose()).ok()?,
            dress: Dress { keepalive: network.tcp_keepalive, nodelay: network.tcp_nodelay },
            reporter: Reporter::new(redis, store),
            interval: Duration::from_secs(redis.interval),
            share: network.max_bandwidth_percent as f64 / 100.0,
        })
    }
}

/// When it was told to stop.
#[derive(Debug, Default)]
struct Stop {
    told: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Stop {
    fn at(&self) -> Option<Instant> {
        *self.told.lock()
    }

    fn tell(&self) {
        self.told.lock().get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }

    /// Waits until then; says whether it was told to stop.
    fn wait_until(&self, then: Instant) -> bool {
        let mut told = self.told.lock();
        while told.is_none() {
            if self.changed.wait_until(&mut told, then).timed_out() {
                break;
            }
        }
        told.is_some()
    }
}

/// The thread, from outside.
#[derive(Debug)]
pub(crate) struct Exporter {
    stop: Arc<Stop>,
    /// Disconnected when the thread has ended.
    ended: Mutex<Receiver<()>>,
}

impl Exporter {
    /// Starts the thread; `first` runs on it before anything else.
    pub(crate) fn start(
        plan: Plan,
        store: Weak<dyn Store>,
        clock: Arc<dyn Clock>,
        first: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Exporter> {
        let stop = Arc::<Stop>::default();
        let (done, ended) = channel::<()>();
        let mut run = Run {
            wait: plan.interval,
            pace: plan.interval,
            plan,
            store,
            stop: stop.clone(),
            connection: None,
            log: RateLimit::every(clock, QUIET),
            warned: false,
            link: None,
        };
        std::thread::Builder::new().name("thermocline-redis".to_owned()).spawn(move || {
            let _done = done;
            first();
            run.all();
        })?;
        Ok(Exporter { stop, ended: Mutex::new(ended) })
    }

    /// Tells it to stop. It is not waited for.
    pub(crate) fn stop(&self) {
        self.stop.tell();
    }

    /// Waits until it has ended, or has had its time.
    pub(crate) fn wait(&self) {
        let Some(told) = self.stop.at() else { return };
        let left = (told + LEAVE).saturating_duration_since(Instant::now());
        // Nothing is ever sent: it is over when the other end is gone.
        let _ = self.ended.lock().recv_timeout(left);
    }
}

/// What the thread has.
struct Run {
    plan: Plan,
    store: Weak<dyn Store>,
    stop: Arc<Stop>,
    connection: Option<Connection>,
    log: RateLimit,
    /// A failure was told of, and not yet that it is over.
    warned: bool,
    /// The pause after the next failure.
    wait: Duration,
    /// The time from the last report to the next.
    pace: Duration,
    /// Bytes a second of the fastest link, where it says.
    link: Option<f64>,
}

/// What one period sends.
struct Parcel {
    packed: Vec<u8>,
    /// So many replies there will be.
    replies: usize,
    /// The numbers of the decisions in it, and which replies of the transaction are theirs.
    numbers: Vec<u64>,
    told: Range<usize>,
}

impl Run {
    fn all(&mut self) {
        let mut next = Instant::now();
        while !self.stop.wait_until(next) && self.store.strong_count() > 0 {
            let begun = Instant::now();
            // Should a dependency panic, the store does not notice, and its metrics go on.
            let sent = std::panic::catch_unwind(AssertUnwindSafe(|| self.period()));
            let sent = sent.unwrap_or_else(|_| Err("a panic while reporting to it".to_owned()));
            // What was cut short by the end of the store is no failure of the server.
            if self.stop.at().is_some() && sent.is_err() {
                self.connection = None;
                break;
            }
            let Some(()) = self.store.upgrade().map(|store| store.count(sent.is_ok())) else { break };
            next = match sent {
                Ok(()) => {
                    self.works();
                    (begun + self.pace).max(Instant::now())
                }
                Err(why) => {
                    self.fails(&why);
                    let pause = self.wait;
                    self.wait = (pause * 2).min(LONGEST_PAUSE.max(self.plan.interval));
                    Instant::now() + pause
                }
            };
        }
        self.farewell();
    }

    /// The time from one report to the next: the interval, or as long as the link is to be left alone.
    fn pause(&self, bytes: usize) -> Duration {
        let allowed = self.link.map(|link| link * self.plan.share);
        let needed = allowed.and_then(|rate| Duration::try_from_secs_f64(bytes as f64 / rate).ok());
        needed.map_or(self.plan.interval, |needed| needed.max(self.plan.interval))
    }

    /// One report.
    fn period(&mut self) -> Result<(), String> {
        let kept = self.connection.take();
        let was_kept = kept.is_some();
        let mut connection = kept.map_or_else(|| self.connect(), Ok)?;
        // Only now: connecting may take long, and keeps no store.
        let parcel = self.parcel(connection.now_ms()).ok_or("the store is gone")?;
        let mut asked = Instant::now();
        let mut answer = connection.send(&parcel.packed, parcel.replies);
        if was_kept && matches!(answer, Err(Failed { ended: true, .. })) {
            // It was idle, and the server does not keep what is idle (`timeout` in its configuration), or began anew.
            connection = self.connect()?;
            asked = Instant::now();
            answer = connection.send(&parcel.packed, parcel.replies);
        }
        let replies = answer.map_err(|e| e.why)?;
        let (time, report) = replies.split_last().ok_or("it does not answer")?;
        connection.note_clock(time, asked);
        self.note_told(&parcel, report.last());
        if let Some(e) = report.iter().find_map(failure) {
            // It is in order and only refuses: but another server may be at its name by the next time.
            return Err(format!("it refuses a report: {}", text(e, &self.plan.target)));
        }
        self.connection = Some(connection);
        Ok(())
    }

    fn connect(&mut self) -> Result<Connection, String> {
        self.link = crate::sensors::fastest_link(&crate::sensors::Roots::default());
        Connection::open(&self.plan.target, self.plan.dress, &self.stop)
    }

    /// The picture of this moment and the decisions that wait; `None` if the store is gone.
    fn parcel(&mut self, theirs: i64) -> Option<Parcel> {
        let store = self.store.upgrade()?;
        let decisions = store.decisions().oldest(MOST);
        let stats = store.stats();
        drop(store);
        let when = When { ours: now_ms(), theirs };
        let pack = |pace| {
            let report = self.plan.reporter.report(&stats, &decisions, when, pace);
            let mut packed = Vec::new();
            report.commands.iter().for_each(|command| command.write_packed_command(&mut packed));
            (report, packed)
        };
        let (mut report, mut packed) = pack(self.pace);
        let pace = self.pause(packed.len());
        if pace > self.pace {
            // The report says how long it counts, and that is longer than was thought.
            (report, packed) = pack(pace);
        }
        self.pace = pace;
        let numbers = decisions.iter().map(|decision| decision.number).collect();
        Some(Parcel { packed, replies: report.commands.len(), numbers, told: report.decisions })
    }

    /// What the server has of the decisions does not wait any more, whatever became of the rest of the report.
    fn note_told(&self, parcel: &Parcel, exec: Option<&Value>) {
        // It is an error if the transaction did not run.
        let Some(Value::Array(replies)) = exec else { return };
        let taken = replies.get(parcel.told.clone()).unwrap_or_default();
        let taken = taken.iter().take_while(|reply| refused(reply).is_none()).count();
        let last = taken.checked_sub(1).and_then(|at| parcel.numbers.get(at));
        if let (Some(last), Some(store)) = (last, self.store.upgrade()) {
            store.decisions().told(*last);
        }
    }

    fn works(&mut self) {
        self.wait = self.plan.interval;
        if std::mem::take(&mut self.warned) {
            let target = &self.plan.target;
            tracing::info!(target: LOG, redis = %target, instance = %self.plan.reporter.instance, "metrics go to Redis again");
        }
    }

    fn fails(&mut self, why: &str) {
        if self.warned {
            return;
        }
        let Plan { target, reporter, .. } = &self.plan;
        self.warned = self.log.warn_of_redis(target, &reporter.instance, || {
            let why = target.conceal(why);
            format!("no metrics go to Redis: {why}; it is tried again without another word")
        });
    }

    /// Takes what is this store's out of the registry. Where that does not succeed in time it expires.
    fn farewell(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let told = self.stop.at().unwrap_or_else(Instant::now);
        connection.take_leave(told + FAREWELL);
        let _ = connection.ask(&self.plan.reporter.farewell());
    }
}

/// The error that a reply is, or has in it.
fn failure(reply: &Value) -> Option<&redis::ServerError> {
    match reply {
        Value::Array(replies) => replies.iter().find_map(refused),
        reply => refused(reply),
    }
}

#[cfg(test)]
mod tests;
