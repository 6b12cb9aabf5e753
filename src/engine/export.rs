//! What goes to a metrics server: decisions wait here, and the thread that reports is started and ended.
//!
//! Nothing of it is on disk; callers never come here but to leave a decision, which takes a lock that nobody holds while
//! waiting.

use super::Engine;
use crate::config::Config;
use crate::metrics::Decisions;
use std::sync::Arc;

/// The engine's end of it.
#[derive(Debug, Default)]
pub(crate) struct Export {
    decisions: Decisions,
    /// Whether anybody is to be told.
    wanted: bool,
    #[cfg(feature = "redis")]
    redis: Redis,
}

#[cfg(feature = "redis")]
#[derive(Debug, Default)]
struct Redis {
    plan: parking_lot::Mutex<Option<crate::metrics::redis::Plan>>,
    thread: parking_lot::Mutex<Option<crate::metrics::redis::Exporter>>,
}

impl Export {
    /// Of a store with this id. One in memory alone has none, and is told from others by chance: host and process may be the
    /// same in two containers.
    #[cfg(feature = "redis")]
    pub(super) fn new(config: &Config, store: Option<[u8; 16]>) -> Export {
        use std::hash::{BuildHasher, RandomState};
        let chance = || (RandomState::new().hash_one(std::process::id()) as u32).to_be_bytes();
        let store = store.map_or_else(chance, |[a, b, c, d, ..]| [a, b, c, d]);
        let plan = crate::metrics::redis::Plan::of(config, store);
        let wanted = plan.is_some();
        let redis = Redis { plan: plan.into(), thread: None.into() };
        Export { wanted, redis, ..Export::default() }
    }

    /// The configuration that names a server is refused where there is no client.
    #[cfg(not(feature = "redis"))]
    pub(super) fn new(_: &Config, _: Option<[u8; 16]>) -> Export {
        Export::default()
    }

    /// Tells the thread to end, if there is one; gives what waits for it.
    pub(super) fn leave(&self) -> impl FnOnce() + use<> {
        #[cfg(feature = "redis")]
        let thread = self.redis.thread.lock().take().inspect(crate::metrics::redis::Exporter::stop);
        move || {
            #[cfg(feature = "redis")]
            thread.iter().for_each(crate::metrics::redis::Exporter::wait);
        }
    }
}

impl Engine {
    /// Leaves a decision for the metrics server, if there is one. The fields are texts for people: neither a key nor a byte
    /// of a value may be in them.
    pub(crate) fn decision(&self, fields: Vec<(String, String)>) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        if self.export.wanted && self.export.decisions.add(now.as_millis() as i64, fields) {
            crate::stats::Counters::bump(&self.counters.metrics_dropped);
        }
    }

    /// Starts the thread that reports, if a server is configured. Without it the store works as well.
    #[cfg(feature = "redis")]
    pub(super) fn start_export(self: &Arc<Self>) {
        use crate::metrics::redis::{Exporter, Store};
        let Some(plan) = self.export.redis.plan.lock().take() else { return };
        let strong: Arc<dyn Store> = self.clone();
        let nice = self.settings.nice;
        let lower = move || super::priority::lower(nice);
        let clock = Arc::new(thermocline_storage::clock::SystemClock);
        match Exporter::start(plan, Arc::downgrade(&strong), clock, lower) {
            Ok(thread) => *self.export.redis.thread.lock() = Some(thread),
            Err(e) => {
                strong.count(false);
                self.log.warn("redis", || {
                    format!(
                        "no metrics go to Redis: the thread that reports does not start: {e}: open the store again when the \
                         machine has threads to spare"
                    )
                });
            }
        }
    }

    #[cfg(not(feature = "redis"))]
    pub(super) fn start_export(self: &Arc<Self>) {}
}

#[cfg(feature = "redis")]
impl crate::metrics::redis::Store for Engine {
    fn stats(&self) -> crate::stats::Stats {
        Engine::stats(self)
    }

    fn decisions(&self) -> &Decisions {
        &self.export.decisions
    }

    fn count(&self, arrived: bool) {
        let counters = &self.counters;
        crate::stats::Counters::bump(if arrived { &counters.metrics_sent } else { &counters.metrics_failed });
    }
}
