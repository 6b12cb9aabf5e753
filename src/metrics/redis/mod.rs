//! Metrics to a Redis server, for who looks after many stores.
//!
//! | module | job |
//! |---|---|
//! | `target` | the URL, taken apart |
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
//!   longer, and then nobody waits for it: it touches nothing any more but that look;
//! - it keeps no store open: it knows the store by a weak reference;
//! - a second carries no more bytes than the configured share of the link, on average over the periods.
//!
//! Nothing is on disk, so a crash leaves nothing here; in Redis, what it had written expires.

mod read;
mod report;
mod target;
mod wire;

pub use read::{RedisReader, RedisReport};
pub use report::{RedisField, RedisKey, redis_fields, redis_keys};
pub(crate) use target::Target;

use crate::config::Config;
use crate::events::RateLimit;
use crate::metrics::decisions::Decisions;
use crate::stats::Stats;
use parking_lot::{Condvar, Mutex};
use redis::Value;
use report::{MOST_DECISIONS, Reporter};
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use thermocline_storage::clock::Clock;
use wire::{Connection, Dress, now_ms, refused, text};

/// The pause after a failure doubles up to this, or to the interval if that is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long after it was told to stop the last round trip may last.
const FAREWELL: Duration = Duration::from_millis(800);
/// How long who stops it waits.
const LEAVE: Duration = Duration::from_millis(950);
/// At most one warning, and one word of its end, in this time, however often a connection comes and goes.
const QUIET: Duration = Duration::from_secs(60);

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
    /// Bytes a second of the fastest link, where it says.
    link: Option<f64>,
}

impl Run {
    fn all(&mut self) {
        let mut next = Instant::now();
        while !self.stop.wait_until(next) {
            let Some(store) = self.store.upgrade() else { break };
            let begun = Instant::now();
            // Should a dependency panic, the store does not notice, and its metrics go on.
            let sent = std::panic::catch_unwind(AssertUnwindSafe(|| self.period(&*store)));
            let sent = sent.unwrap_or_else(|_| Err("a panic while reporting to it".to_owned()));
            // What was cut short by the end of the store is no failure of the server.
            if self.stop.at().is_some() && sent.is_err() {
                self.connection = None;
                break;
            }
            store.count(sent.is_ok());
            next = match sent {
                Ok(bytes) => {
                    self.works();
                    (begun + self.pause(bytes)).max(Instant::now())
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

    /// One report; gives its bytes.
    fn period(&mut self, store: &dyn Store) -> Result<usize, String> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                self.link = crate::sensors::fastest_link();
                Connection::open(&self.plan.target, self.plan.dress, &self.stop)?
            }
        };
        let decisions = store.decisions().oldest(MOST_DECISIONS);
        let stats = store.stats();
        let commands = self.plan.reporter.report(&stats, &decisions, now_ms(), connection.ahead_ms);
        let mut packed = Vec::new();
        commands.iter().for_each(|command| command.write_packed_command(&mut packed));
        let begun = now_ms();
        let replies = connection.send(&packed, commands.len())?;
        let (time, report) = replies.split_last().ok_or("it does not answer")?;
        if let Some(e) = report.iter().find_map(failure) {
            // It is in order and only refuses: but another server may be at its name by the next time.
            return Err(format!("it refuses a report: {}", text(e)));
        }
        if let Some(theirs) = wire::clock(time) {
            connection.ahead_ms = theirs - begun;
        }
        if let Some(last) = decisions.last() {
            store.decisions().told(last.number);
        }
        self.connection = Some(connection);
        Ok(packed.len())
    }

    fn works(&mut self) {
        self.wait = self.plan.interval;
        if std::mem::take(&mut self.warned) {
            let target = &self.plan.target;
            tracing::info!(target: "thermocline::engine", redis = %target, instance = %self.plan.reporter.instance, "metrics go to Redis again");
        }
    }

    fn fails(&mut self, why: &str) {
        if self.warned {
            return;
        }
        // The server may repeat what it was sent.
        let why = match &self.plan.target.password {
            Some(password) => why.replace(password.as_str(), "***"),
            None => why.to_owned(),
        };
        let target = &self.plan.target;
        self.warned = self.log.warn("redis", || {
            format!("no metrics go to Redis at {target}: {why}; it is tried again without another word")
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
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::sync::mpsc::TryRecvError;
    use thermocline_storage::clock::SystemClock;

    #[derive(Default)]
    struct Fake {
        decisions: Decisions,
        failed: AtomicU64,
    }

    impl Store for Fake {
        fn stats(&self) -> Stats {
            Stats::default()
        }
        fn decisions(&self) -> &Decisions {
            &self.decisions
        }
        fn count(&self, arrived: bool) {
            self.failed.fetch_add(u64::from(!arrived), Relaxed);
        }
    }

    fn plan(url: String) -> Plan {
        let mut config = Config::default();
        config.metrics.redis.url = Some(url.into());
        Plan::of(&config, [0; 4]).unwrap()
    }

    #[test]
    fn the_thread_has_ended_when_it_was_waited_for_though_the_server_hangs() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        for scheme in ["redis", "rediss"] {
            let store: Arc<dyn Store> = Arc::new(Fake::default());
            let plan = plan(format!("{scheme}://{address}"));
            let exporter =
                Exporter::start(plan, Arc::downgrade(&store), Arc::new(SystemClock), || {}).unwrap();
            // It hangs in its first round trip.
            let held = listener.accept().unwrap();
            std::thread::sleep(Duration::from_millis(200));
            let begin = Instant::now();
            exporter.stop();
            exporter.wait();
            assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
            assert_eq!(exporter.ended.lock().try_recv(), Err(TryRecvError::Disconnected));
            drop(held);
        }
    }

    #[test]
    fn it_ends_with_the_store_that_nobody_closed() {
        let store: Arc<dyn Store> = Arc::new(Fake::default());
        let plan = Plan { interval: Duration::from_millis(20), ..plan("redis://127.0.0.1:1".to_owned()) };
        let exporter = Exporter::start(plan, Arc::downgrade(&store), Arc::new(SystemClock), || {}).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        drop(store);
        let ended = exporter.ended.lock().recv_timeout(Duration::from_secs(70));
        assert_eq!(ended, Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
    }

    fn run(link: Option<f64>) -> Run {
        let store: Weak<dyn Store> = Weak::<Fake>::new();
        let plan = plan("redis://h".to_owned());
        let log = RateLimit::every(Arc::new(SystemClock), QUIET);
        let (stop, wait) = (Arc::default(), plan.interval);
        Run { plan, store, stop, connection: None, log, warned: false, wait, link }
    }

    #[test]
    fn a_slow_link_is_left_its_share() {
        // Half of a link, as configured by default; an interval of ten seconds.
        assert_eq!(run(None).pause(1 << 30), Duration::from_secs(10));
        assert_eq!(run(Some(1e6)).pause(20_000), Duration::from_secs(10));
        assert_eq!(run(Some(1000.0)).pause(20_000), Duration::from_secs(40));
    }
}
