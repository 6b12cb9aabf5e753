//! What a program may ask of the optimizer.
//!
//! Nothing of it is on disk, so a crash leaves nothing.

use super::Cache;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::optimizer::{Record, Strategy};

/// The optimizer of an open store: what it saw, decided and did, and its brakes. From [`Cache::optimizer`].
#[derive(Debug, Clone, Copy)]
pub struct Tuned<'a> {
    engine: &'a Engine,
}

impl Cache {
    /// The optimizer: what it saw and did, and to pause it, or to give it a turn at once.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let mut builder = thermocline::Cache::builder().root(dir.path());
    /// builder.config_mut().optimizer.interval = 1;
    /// builder.config_mut().optimizer.enabled = false; // this program has its own schedule
    /// let cache = builder.open()?;
    /// assert!(cache.optimizer().run_once()?.is_none()); // nothing to compare with yet
    /// cache.put("k", "v")?;
    /// # std::thread::sleep(std::time::Duration::from_millis(150));
    /// if let Some(record) = cache.optimizer().run_once()? {
    ///     println!("pressure {:?}, {}", record.decision.pressure, record.decision.strategy);
    ///     for outcome in &record.outcomes {
    ///         println!("{}: {:?}", outcome.action, outcome.result);
    ///     }
    /// }
    /// assert_eq!(cache.optimizer().history().len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn optimizer(&self) -> Tuned<'_> {
        Tuned { engine: self.engine() }
    }
}

impl Tuned<'_> {
    /// One turn now, also where the optimizer is paused, or off: looks, decides, acts. What it did; or `None` for the first,
    /// which has nothing to compare with, and where less time than a tenth of `optimizer.interval`, or a second if that is
    /// less, has passed since the turn before, the store's own included: then nothing is decided, and the next turn sees all
    /// of the time. Takes some milliseconds; where much memory is to be freed, longer.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn run_once(&self) -> Result<Option<Record>> {
        if self.engine.is_closed() {
            return Err(Error::Closed);
        }
        Ok(self.engine.tune_step())
    }

    /// Takes no turns by itself until [`resume`](Self::resume). What is set stays as it is.
    pub fn pause(&self) {
        self.engine.pause_tuning(true);
    }

    /// Goes on after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.engine.pause_tuning(false);
    }

    /// Whether it takes turns by itself: it is enabled in the configuration, the store has its threads, and it is not
    /// paused.
    pub fn is_running(&self) -> bool {
        self.engine.tunes()
    }

    /// The strategy in force.
    pub fn strategy(&self) -> Strategy {
        self.engine.tuning(|t| t.strategy())
    }

    /// The newest record: what was seen, decided and done.
    pub fn last(&self) -> Option<Record> {
        self.engine.tuning(|t| t.last())
    }

    /// The records of the last 256 turns, oldest first.
    pub fn history(&self) -> Vec<Record> {
        self.engine.tuning(|t| t.records())
    }
}
