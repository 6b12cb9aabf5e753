//! The background threads: each drives one job's steps.
//!
//! Invariants:
//! - a step that fails is told of (log, at most a line in ten seconds a class) and tried again at the next beat: no
//!   failure ends a thread, nor a panic;
//! - each thread looks between two rounds whether the store is closing, and closing waits for all of them;
//! - the mover, the sinker and the janitor run at a lower priority; the writer, which callers wait for, does not.
//!
//! What a crash leaves is said where the steps are.

use super::Engine;
use crate::error::Error;
use crate::events::Event;
use parking_lot::{Condvar, Mutex};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use thermocline_storage::Tier;
use thermocline_storage::container::DiskTier;

/// How long the writer gathers before it writes what nobody waits for.
const GATHER: Duration = Duration::from_millis(1000);
/// How long the mover sleeps when nothing wakes it.
const MOVER_PAUSE: Duration = Duration::from_millis(200);
/// Prefetches between two rounds of moves.
const PREFETCHES: usize = 4;
/// The janitor's beat.
const BEAT: Duration = Duration::from_millis(500);
/// The janitor begins no further listing for the reaper after so many milliseconds of a beat.
const REAP_MS: u64 = 500;
/// After a failed commit the writer waits this long before it tries again.
const RETRY: Duration = Duration::from_millis(200);

/// Wakes a thread: at once, or when its pause is over and there is work.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    state: Mutex<Wake>,
    changed: Condvar,
    /// Whether the state is not `No`: set under its lock, read without, so that the many who have work for later
    /// take no lock that they share.
    soon: AtomicBool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Wake {
    #[default]
    No,
    Soon,
    Now,
}

impl Signal {
    /// There is work that can wait for the thread's pause. Cheap: the thread is not woken.
    pub(crate) fn wake_soon(&self) {
        if self.soon.load(Ordering::SeqCst) {
            return;
        }
        let mut state = self.state.lock();
        if *state == Wake::No {
            *state = Wake::Soon;
            self.soon.store(true, Ordering::SeqCst);
        }
    }

    /// There is work that somebody waits for.
    pub(crate) fn wake_now(&self) {
        let mut state = self.state.lock();
        if *state != Wake::Now {
            *state = Wake::Now;
            self.soon.store(true, Ordering::SeqCst);
            self.changed.notify_all();
        }
    }

    /// Sleeps until it is woken or the pause is over; says whether there is work.
    pub(super) fn sleep(&self, pause: Duration) -> bool {
        let deadline = Instant::now() + pause;
        let mut state = self.state.lock();
        while *state != Wake::Now {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        self.soon.store(false, Ordering::SeqCst);
        std::mem::take(&mut *state) != Wake::No
    }
}

impl Engine {
    pub(super) fn has_threads(&self) -> bool {
        self.has_threads.load(Ordering::Acquire)
    }

    /// Starts the threads. Without disks only the janitor is needed.
    pub(crate) fn start(self: &Arc<Self>) -> Result<(), Error> {
        type Job = fn(&Engine);
        let mut jobs: Vec<(&str, Job)> = vec![("thermocline-keep", Engine::run_janitor)];
        if self.has_disk() {
            jobs.push(("thermocline-write", Engine::run_writer));
            jobs.push(("thermocline-move", Engine::run_mover));
        }
        if self.tiers.len() > 1 {
            jobs.push(("thermocline-sink", Engine::run_sinker));
        }
        if self.settings.tunes_every.is_some() {
            jobs.push(("thermocline-tune", Engine::run_tuner));
            self.runs.store(true, Ordering::Relaxed);
        }
        self.has_threads.store(self.has_disk(), Ordering::Release);
        for (name, job) in jobs {
            let engine = self.clone();
            let failed =
                |e| Error::Storage(Arc::new(thermocline_storage::Error::io("start the thread", name, e)));
            let handle = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || engine.go_on_with(name, job))
                .map_err(failed)?;
            self.handles.lock().push(handle);
        }
        Ok(())
    }

    /// Runs a job until the store is closing. Should anything in it panic, a dependency say, it begins again: a store that
    /// nobody writes for would take puts, and make none of them durable.
    fn go_on_with(&self, name: &str, job: fn(&Engine)) {
        while std::panic::catch_unwind(AssertUnwindSafe(|| job(self))).is_err() && !self.is_stopping() {
            self.log.warn("panic", || format!("the thread {name} panicked, and goes on"));
            std::thread::sleep(RETRY);
        }
    }

    /// Wakes every thread, so that it sees that the store is closing, and waits for it to end.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        for s in &self.signals {
            s.wake_now();
        }
        self.catalog.buffer.wake();
        let me = std::thread::current().id();
        for handle in std::mem::take(&mut *self.handles.lock()) {
            if handle.thread().id() != me {
                let _ = handle.join();
            }
        }
        self.has_threads.store(false, Ordering::Release);
    }

    fn run_writer(&self) {
        let mut pause = GATHER;
        while !self.is_stopping() {
            if !self.signals[0].sleep(pause)
                && self.catalog.buffer.queued() == 0
                // Of those that were taken from the queue and did not become durable too.
                && self.catalog.oldest_frame_ms().is_none()
            {
                continue;
            }
            pause = match self.write_step() {
                Ok(()) => GATHER,
                Err(e) => {
                    self.log.warn("writer", || format!("writes do not become durable: {e}"));
                    RETRY
                }
            };
        }
    }

    /// One beat of the writer: what had been queued when it began is durable when this returns `Ok`, for the next beat
    /// comes a second later; and no more is waiting than may wait for that, unless the store is closing.
    pub(crate) fn write_step(&self) -> Result<(), Error> {
        let began = self.now();
        loop {
            let done = self.commit_step()?;
            if done.failed > 0 {
                return Err(self.not_written());
            }
            let left = self.catalog.buffer.oldest_ms().is_some_and(|at| at <= began);
            if done.taken == 0 || !(left || self.pressed()) || self.is_stopping() {
                return Ok(());
            }
        }
    }

    /// Whether there is still enough to write that it should not wait for the next beat.
    fn pressed(&self) -> bool {
        let buffer = &self.catalog.buffer;
        let old = buffer.oldest_ms().is_some_and(|at| at + 500 <= self.now());
        buffer.bytes() >= self.dials.write_buffer() / 2
            || old
            || self.settings.persistence == crate::config::Persistence::Always && buffer.queued() > 0
    }

    /// Moves between the highest disk tier and what is around it.
    fn run_mover(&self) {
        super::priority::lower(self.settings.nice);
        while !self.is_stopping() {
            self.signals[1].sleep(MOVER_PAUSE);
            while !self.is_stopping() && self.mover_step() {}
        }
    }

    /// Moves between the lower tiers: to compress a pack takes long, and the highest tier must not wait for it.
    fn run_sinker(&self) {
        super::priority::lower(self.settings.nice);
        while !self.is_stopping() {
            self.signals[3].sleep(MOVER_PAUSE);
            while !self.is_stopping() && self.sinker_step() {}
        }
    }

    /// A tier is over its high mark: its mover need not wait until its pause is over.
    pub(super) fn wake_mover(&self, tier: Tier) {
        let highest = self.top().is_some_and(|top| top.tier() == tier);
        if let Some(signal) = self.signals.get(if highest { 1 } else { 3 }) {
            signal.wake_now();
        }
    }

    /// One round of moves; says whether there is more to do.
    pub(crate) fn move_step(&self) -> bool {
        // From the bottom up: what sinks needs room below.
        let sunk = self.sinker_step();
        self.mover_step() || sunk
    }

    fn mover_step(&self) -> bool {
        let mut busy = false;
        if let Some(top) = self.top() {
            busy |= self.told("reclaim", self.reclaim_step(top.tier()));
            busy |= self.told("promote", self.promote_step());
            // Somebody is at it now, and may ask for the next of them in a moment. But not before all else.
            for _ in 0..PREFETCHES {
                if self.is_stopping() || !self.told("prefetch", self.prefetch_step()) {
                    break;
                }
                busy = true;
            }
        }
        busy
    }

    fn sinker_step(&self) -> bool {
        let mut busy = false;
        for tier in self.tiers.iter().skip(1).rev() {
            busy |= self.told("reclaim", self.reclaim_step(tier.tier()));
        }
        self.told("rewrite", self.rewrite_step(busy)) || busy
    }

    fn run_janitor(&self) {
        super::priority::lower(self.settings.nice);
        while !self.is_stopping() {
            self.signals[2].sleep(BEAT);
            if self.is_stopping() {
                return;
            }
            self.keep_step();
        }
    }

    /// The optimizer's turns.
    fn run_tuner(&self) {
        super::priority::lower(self.settings.nice);
        let Some(every) = self.settings.tunes_every else { return };
        // What the first turn sees, the second compares with.
        self.tune_step();
        while !self.is_stopping() {
            self.signals[4].sleep(every);
            if !self.is_stopping() && self.tunes() {
                self.tune_step();
            }
        }
    }

    /// Expiry, housekeeping of the tiers, checkpoints.
    pub(crate) fn keep_step(&self) {
        // To list a large container takes long, and the rest is not to wait for more than one such.
        let until = self.now().saturating_add(REAP_MS);
        for _ in 0..64 {
            if !self.told("reap", self.reap_step()) || self.now() >= until {
                break;
            }
        }
        for tier in &self.tiers {
            tier.maintain();
            self.watch_directories(tier);
        }
        self.catalog.maintain();
        self.beat_if_due();
        self.keep_time();
        self.heat.grow(self.catalog_items());
        self.checkpoint_if_due();
    }

    /// Sees to it that the time of what callers were told is in the journal within two seconds and a half (a second at
    /// most once, a beat, and the writer's pause; longer by what the janitor is at, such as a listing for the reaper), even
    /// if they only read: an item that they may have found expired does not come back with a clock that was set back.
    fn keep_time(&self) {
        if self.used.swap(false, Ordering::Relaxed) && self.has_disk() {
            if self.catalog.note_time() {
                self.signals[0].wake_soon();
            } else {
                // The journal's newest time is less than a second old: at the next beat.
                self.note_use();
            }
        }
    }

    /// A checkpoint is due when the journal has grown long, or when there is one and the interval has passed.
    fn checkpoint_if_due(&self) {
        let since = self.now().saturating_sub(*self.checkpointed_ms.lock());
        let interval = u64::try_from(self.settings.checkpoint_interval.as_millis()).unwrap_or(u64::MAX);
        // A store that nobody writes to is not written to: the time alone makes no checkpoint due.
        let old = self.catalog.journal_changes() > 4096 && since >= interval;
        if self.has_disk() && (old || self.journal_due(1)) {
            self.checkpoint();
        }
    }

    /// Whether the journal is longer than so many times the length that makes a checkpoint due.
    fn journal_due(&self, times: u64) -> bool {
        let len = self.catalog.journal_len() / times;
        // Counting the items takes longer: only where it matters.
        len > self.settings.checkpoint_bytes && len > self.catalog_items() * 4
    }

    /// A checkpoint from who adds to the journal, where the janitor does not keep up.
    pub(super) fn checkpoint_if_overdue(&self) {
        if self.journal_due(2) {
            self.checkpoint();
        }
    }

    fn checkpoint(&self) {
        *self.checkpointed_ms.lock() = self.now();
        if let Err(e) = self.catalog.checkpoint() {
            self.log.warn("checkpoint", || format!("no checkpoint could be written: {e}"));
        }
    }

    /// Tries the directories of a tier that are out of service; says whether all of it is in service now.
    pub(crate) fn put_back(&self, tier: Tier) -> Result<bool, Error> {
        let _open = self.using()?;
        let disk = self.tier(tier).ok_or(Error::NoSuchTier(tier))?;
        disk.put_back();
        self.watch_directories(disk);
        // What waited to be written there need not wait for the next try.
        self.signals.iter().for_each(Signal::wake_soon);
        Ok(disk.directories().iter().all(|d| d.out_of_service.is_none()))
    }

    /// Tells of directories that went out of service, came back, or lost part of their quarantine.
    fn watch_directories(&self, tier: &Arc<dyn DiskTier>) {
        let kind = tier.tier();
        let mut seen = self.directories.lock();
        for now in tier.directories() {
            let before = seen.insert(now.path.clone(), (now.out_of_service.clone(), now.quarantine_removed));
            let (was, removed) = before.unwrap_or_default();
            match (was, now.out_of_service) {
                // Told again where the reason is another: what was unplugged is back, but is not what it was.
                (was, Some(why)) if was.as_ref() != Some(&why) => {
                    let path = now.path.clone();
                    self.events.emit(|| Event::TierOutOfService { tier: kind, path, why });
                }
                (Some(_), None) => {
                    let path = now.path.clone();
                    self.events.emit(|| Event::TierBack { tier: kind, path });
                }
                _ => {}
            }
            if now.quarantine_removed > removed {
                let (path, removed) = (now.path, now.quarantine_removed - removed);
                self.events.emit(|| Event::QuarantineTrimmed { tier: kind, path, removed });
            }
        }
    }

    fn told(&self, what: &'static str, result: Result<bool, Error>) -> bool {
        result.unwrap_or_else(|e| {
            self.log.warn(what, || format!("{what}: {e}"));
            false
        })
    }
}

#[cfg(test)]
mod tests;
