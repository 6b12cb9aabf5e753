//! What happens to items and tiers, told to whoever subscribes; and the brake on log lines.
//!
//! Invariants:
//!
//! - [`Events::emit`] never blocks on a listener: each has a queue of bounded length, and when it is full the
//!   newest events are lost to that listener alone, which is told how many, in their place in the order.
//! - Without a subscriber an event costs one relaxed load; it is not even made.
//! - A dropped subscription is forgotten at the next event; its queue is freed at once.

use crate::optimizer::Strategy;
use bytes::Bytes;
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use thermocline_storage::Tier;
use thermocline_storage::clock::Clock;

/// Events that a subscription holds unless it asks for another number.
pub const DEFAULT_CAPACITY: usize = 1024;

/// Something that happened to an item or a tier without, or beyond, a caller's asking.
///
/// A key is `None` where the engine knows only the identity: moves of whole containers do not read every key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An item moved to a higher tier. To memory: a copy of it entered memory, and its record stays where it is; that
    /// it leaves memory again is not told, for nothing moves then.
    Promoted {
        /// Its key, where known.
        key: Option<Bytes>,
        /// The tier that it was found in.
        from: Tier,
        /// The tier that it is in now.
        to: Tier,
    },
    /// An item moved to a lower tier.
    Demoted {
        /// Its key, where known.
        key: Option<Bytes>,
        /// The tier that it left.
        from: Tier,
        /// The tier that it is in now.
        to: Tier,
    },
    /// An item was dropped to make room. With disk tiers also where only an older value of the key went, that was on
    /// disk while a newer one is still to be written: the newer one stays. Whether the key is there,
    /// [`Cache::tier_of`](crate::Cache::tier_of) says.
    Evicted {
        /// Its key, where known.
        key: Option<Bytes>,
        /// The tier that it was in.
        tier: Tier,
        /// Why it was not kept.
        reason: EvictReason,
    },
    /// An item was found to have expired, and is gone.
    Expired {
        /// Its key, where known.
        key: Option<Bytes>,
        /// The tier that it was in.
        tier: Tier,
    },
    /// An item made way for another key with the same 48-bit identity: that key was put or removed. Told where the
    /// older key is at hand: its item was in memory or waited to be written, or a removal read its record to give an
    /// answer. Where a put replaces an item that is on disk alone, nobody is told, nor does
    /// [`Counts::displaced`](crate::Counts::displaced) count it: the index has only the identity, and to learn the key
    /// would cost each put of a key a read of the disk.
    Displaced {
        /// The key of the item that is gone, where known.
        key: Option<Bytes>,
        /// The highest tier that it was in.
        tier: Tier,
    },
    /// Damaged bytes were copied or moved to `quarantine/`.
    Quarantined {
        /// The tier.
        tier: Tier,
        /// The file that they were found in.
        path: PathBuf,
        /// What was wrong with them.
        why: String,
        /// The key of the item that they were, where it could be read.
        key: Option<Bytes>,
    },
    /// The oldest content of a quarantine was deleted, because it had reached its share of the tier.
    QuarantineTrimmed {
        /// The tier.
        tier: Tier,
        /// The quarantine.
        path: PathBuf,
        /// How many pieces were deleted.
        removed: u64,
    },
    /// A directory of a tier failed and is not used; its items are absent for now. Told again when it is tried and
    /// fails for another reason: what is at its path now may be another directory, which is not used either.
    TierOutOfService {
        /// The tier.
        tier: Tier,
        /// The directory.
        path: PathBuf,
        /// How it failed; of another directory than the one that was opened also what to do.
        why: String,
    },
    /// A directory that was out of service is in use again.
    TierBack {
        /// The tier.
        tier: Tier,
        /// The directory.
        path: PathBuf,
    },
    /// The optimizer works by another strategy from now on.
    StrategyChanged {
        /// The one before.
        from: Strategy,
        /// The new one.
        to: Strategy,
    },
    /// Items are gone because the containers that held them are: found at opening.
    Lost {
        /// How many items.
        items: u64,
        /// How many containers were missing, or went to the quarantine.
        containers: u64,
    },
}

/// Why an item was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EvictReason {
    /// Its tier is full, and there is none below or that is full too.
    Full,
    /// Its tier is full, and the one below is out of service.
    BelowOutOfService,
    /// Its tier is full, and the item is larger than any tier below can hold.
    TooLargeBelow,
}

/// What a subscription receives.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Received {
    /// An event.
    Event(Event),
    /// So many events are missing here, because the queue was full.
    Lagged(u64),
}

/// Why nothing was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// Nothing has happened yet, or not within the time given.
    #[error("no event yet")]
    Empty,
    /// The cache is closed and everything that happened has been received.
    #[error("the cache is closed")]
    Closed,
}

/// The sending end of one subscription.
#[derive(Debug)]
struct Listener {
    queue: Sender<Received>,
    /// Events lost since the last `Lagged` was queued. Held locked from the loss, or the queueing, until both
    /// ends agree on it, so that a `Lagged` stands where the events would have stood.
    missed: Arc<Mutex<u64>>,
}

impl Listener {
    /// Queues the event or counts it as lost; false if nobody listens any more.
    fn offer(&self, event: &Event) -> bool {
        use channel::TrySendError::{Disconnected, Full};
        let mut missed = self.missed.lock();
        if *missed > 0 {
            match self.queue.try_send(Received::Lagged(*missed)) {
                Ok(()) => *missed = 0,
                Err(Full(_)) => {
                    *missed += 1;
                    return true;
                }
                Err(Disconnected(_)) => return false,
            }
        }
        match self.queue.try_send(Received::Event(event.clone())) {
            Ok(()) => true,
            Err(Full(_)) => {
                *missed += 1;
                true
            }
            Err(Disconnected(_)) => false,
        }
    }
}

/// The source of events. Dropping it closes every subscription.
#[derive(Debug, Default)]
pub struct Events {
    /// Number of listeners, so that an event that nobody waits for costs one load.
    count: AtomicUsize,
    listeners: Mutex<Vec<Listener>>,
}

impl Events {
    /// A source without listeners.
    pub fn new() -> Events {
        Events::default()
    }

    /// Tells every listener. The event is made only if there is one.
    pub fn emit(&self, event: impl FnOnce() -> Event) {
        if self.count.load(Relaxed) == 0 {
            return;
        }
        let event = event();
        let mut listeners = self.listeners.lock();
        listeners.retain(|l| l.offer(&event));
        self.count.store(listeners.len(), Relaxed);
    }

    /// Ends every subscription once it has received what was queued: the cache is closed.
    pub fn close(&self) {
        let mut listeners = self.listeners.lock();
        listeners.clear();
        self.count.store(0, Relaxed);
    }

    /// A subscription with room for 1,024 events.
    pub fn subscribe(&self) -> Subscription {
        self.subscribe_with(DEFAULT_CAPACITY)
    }

    /// A subscription with room for this many events, at least one. It receives what happens from now on.
    pub fn subscribe_with(&self, capacity: usize) -> Subscription {
        let (queue, receiver) = channel::bounded(capacity.max(1));
        let missed = Arc::new(Mutex::new(0));
        let mut listeners = self.listeners.lock();
        listeners.push(Listener { queue, missed: Arc::clone(&missed) });
        self.count.store(listeners.len(), Relaxed);
        Subscription { receiver, missed }
    }
}

/// The receiving end: a queue of events, and an iterator that waits for the next until the cache is closed.
///
/// ```
/// use std::time::Duration;
/// use thermocline::{Cache, Event, EvictReason, Received, RecvError};
///
/// let cache = Cache::builder().memory(1 << 20).open()?;
/// let events = cache.subscribe();
/// assert_eq!(events.try_recv(), Err(RecvError::Empty));
/// for n in 0..20 {
///     cache.put(format!("k{n}"), vec![0; 100_000])?; // ten of them fit
/// }
/// let first = events.recv_timeout(Duration::from_secs(1));
/// assert!(matches!(first, Ok(Received::Event(Event::Evicted { reason: EvictReason::Full, .. }))));
/// cache.close()?;
/// let evicted = 1 + events.count() as u64; // ends with the cache
/// assert_eq!(evicted, cache.stats().counts.evicted);
/// # Ok::<(), thermocline::Error>(())
/// ```
#[derive(Debug)]
pub struct Subscription {
    receiver: Receiver<Received>,
    missed: Arc<Mutex<u64>>,
}

impl Subscription {
    /// What came next, if anything did; does not wait.
    ///
    /// # Errors
    ///
    /// [`RecvError::Empty`] if nothing did yet, [`RecvError::Closed`] if nothing will.
    pub fn try_recv(&self) -> Result<Received, RecvError> {
        if let Ok(received) = self.receiver.try_recv() {
            return Ok(received);
        }
        // Empty: now a loss that nothing was queued after comes next. Looked at again under the lock, because
        // events may have been queued since, and a loss behind them.
        let mut missed = self.missed.lock();
        match self.receiver.try_recv() {
            Ok(received) => Ok(received),
            Err(_) if *missed > 0 => Ok(Received::Lagged(std::mem::take(&mut *missed))),
            Err(TryRecvError::Empty) => Err(RecvError::Empty),
            Err(TryRecvError::Disconnected) => Err(RecvError::Closed),
        }
    }

    /// What comes next; waits for it at most this long.
    ///
    /// # Errors
    ///
    /// [`RecvError::Empty`] if the time is over, [`RecvError::Closed`] if nothing will come.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Received, RecvError> {
        let Some(deadline) = Instant::now().checked_add(timeout) else { return self.recv() };
        match self.try_recv() {
            Err(RecvError::Empty) => {}
            other => return other,
        }
        // Nothing can be lost without the queue filling up first, so waiting on the queue is enough.
        match self.receiver.recv_deadline(deadline) {
            Ok(received) => Ok(received),
            Err(RecvTimeoutError::Timeout) => Err(RecvError::Empty),
            Err(RecvTimeoutError::Disconnected) => self.try_recv(),
        }
    }

    /// What comes next; waits for it.
    ///
    /// # Errors
    ///
    /// [`RecvError::Closed`] if nothing will come.
    pub fn recv(&self) -> Result<Received, RecvError> {
        match self.try_recv() {
            Err(RecvError::Empty) => {}
            other => return other,
        }
        self.receiver.recv().or_else(|_| self.try_recv())
    }
}

impl Iterator for Subscription {
    type Item = Received;

    fn next(&mut self) -> Option<Received> {
        self.recv().ok()
    }
}

/// What the log calls the engine's warnings: they keep the name wherever in the engine they come from.
const LOG: &str = "thermocline::engine";

/// A brake on log lines: at most one a class in an interval, with the number of those left out before it.
#[derive(Debug)]
pub struct RateLimit {
    clock: Arc<dyn Clock>,
    interval_ms: u64,
    /// Class, boot time of its last line, lines left out since. Classes are words of the program: a handful.
    classes: Mutex<Vec<(&'static str, u64, u64)>>,
}

impl RateLimit {
    /// One line a class each ten seconds.
    pub fn new(clock: Arc<dyn Clock>) -> RateLimit {
        RateLimit::every(clock, Duration::from_secs(10))
    }

    /// One line a class in each interval.
    pub fn every(clock: Arc<dyn Clock>, interval: Duration) -> RateLimit {
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        RateLimit { clock, interval_ms, classes: Mutex::default() }
    }

    /// A warning in the log, unless this class had one lately; says whether it was written.
    pub(crate) fn warn(&self, class: &'static str, text: impl FnOnce() -> String) -> bool {
        let allowed = self.allow(class);
        match allowed {
            Some(0) => tracing::warn!(target: LOG, class, "{}", text()),
            Some(left_out) => tracing::warn!(target: LOG, class, left_out, "{}", text()),
            None => {}
        }
        allowed.is_some()
    }

    /// The same of what becomes of Redis: with the server, and the store's name there.
    #[cfg(feature = "redis")]
    pub(crate) fn warn_of_redis(
        &self,
        redis: &dyn std::fmt::Display,
        instance: &str,
        text: impl FnOnce() -> String,
    ) -> bool {
        let class = "redis";
        let allowed = self.allow(class);
        if let Some(left_out) = allowed {
            // A field without a value is not there.
            let left_out = (left_out > 0).then_some(left_out);
            tracing::warn!(target: LOG, class, left_out, %redis, %instance, "{}", text());
        }
        allowed.is_some()
    }

    /// Whether a line of this class may be written now: `Some` with how many were left out since the last one,
    /// or `None`, and this one is counted as left out.
    pub fn allow(&self, class: &'static str) -> Option<u64> {
        let now = self.clock.boot_ms();
        let mut classes = self.classes.lock();
        match classes.iter_mut().find(|(name, ..)| *name == class) {
            None => {
                classes.push((class, now, 0));
                Some(0)
            }
            Some((_, last, left_out)) if now.saturating_sub(*last) >= self.interval_ms => {
                *last = now;
                Some(std::mem::take(left_out))
            }
            Some((_, _, left_out)) => {
                *left_out += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use thermocline_storage::clock::ManualClock;

    fn event(n: u64) -> Event {
        Event::Expired { key: Some(Bytes::copy_from_slice(&n.to_le_bytes())), tier: Tier::Ssd }
    }

    fn number(event: &Event) -> u64 {
        match event {
            Event::Expired { key: Some(key), .. } => u64::from_le_bytes(key.as_ref().try_into().expect("8")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn closing_ends_subscriptions_after_what_was_queued() {
        let events = Events::new();
        let listener = events.subscribe();
        events.emit(|| event(7));
        events.close();
        assert_eq!(listener.recv(), Ok(Received::Event(event(7))));
        assert_eq!(listener.recv(), Err(RecvError::Closed));
    }

    #[test]
    fn without_a_listener_no_event_is_made() {
        let events = Events::new();
        events.emit(|| panic!("made"));
        drop(events.subscribe());
        events.emit(|| event(1));
        // The one before found the subscription dropped and forgot it.
        events.emit(|| panic!("made"));
    }

    #[test]
    fn every_listener_gets_what_came_after_it_subscribed_in_order() {
        let events = Events::new();
        let a = events.subscribe();
        events.emit(|| event(1));
        let b = events.subscribe();
        events.emit(|| event(2));
        drop(events);
        assert_eq!(a.collect::<Vec<_>>(), [Received::Event(event(1)), Received::Event(event(2))]);
        assert_eq!(b.collect::<Vec<_>>(), [Received::Event(event(2))]);
    }

    #[test]
    fn a_slow_listener_loses_the_newest_and_is_told_where() {
        let events = Events::new();
        let slow = events.subscribe_with(3);
        let quick = events.subscribe();
        (0..5).for_each(|n| events.emit(|| event(n)));
        assert_eq!(slow.try_recv(), Ok(Received::Event(event(0))));
        assert_eq!(slow.try_recv(), Ok(Received::Event(event(1))));
        events.emit(|| event(5));
        assert_eq!(slow.try_recv(), Ok(Received::Event(event(2))));
        assert_eq!(slow.try_recv(), Ok(Received::Lagged(2)));
        assert_eq!(slow.try_recv(), Ok(Received::Event(event(5))));
        assert_eq!(slow.try_recv(), Err(RecvError::Empty));
        assert_eq!((0..6).filter(|n| quick.try_recv() == Ok(Received::Event(event(*n)))).count(), 6);
    }

    #[test]
    fn the_last_loss_is_told_though_nothing_follows_and_the_cache_is_closed() {
        let events = Events::new();
        let slow = events.subscribe_with(1);
        (0..4).for_each(|n| events.emit(|| event(n)));
        drop(events);
        assert_eq!(slow.recv(), Ok(Received::Event(event(0))));
        assert_eq!(slow.recv(), Ok(Received::Lagged(3)));
        assert_eq!(slow.recv(), Err(RecvError::Closed));
        assert_eq!(slow.recv_timeout(Duration::from_millis(1)), Err(RecvError::Closed));
        assert_eq!(slow.try_recv(), Err(RecvError::Closed));
    }

    #[test]
    fn waiting_ends_with_an_event_a_time_out_or_the_close() {
        let events = Events::new();
        let listener = events.subscribe();
        assert_eq!(listener.recv_timeout(Duration::from_millis(5)), Err(RecvError::Empty));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| (listener.recv(), listener.recv_timeout(Duration::MAX)));
            std::thread::sleep(Duration::from_millis(20));
            events.emit(|| event(9));
            drop(events);
            let (first, second) = waiting.join().expect("no panic");
            assert_eq!(first, Ok(Received::Event(event(9))));
            assert_eq!(second, Err(RecvError::Closed));
        });
    }

    #[test]
    fn under_load_every_event_is_received_or_counted() {
        let events = Events::new();
        let mut listener = events.subscribe_with(16);
        let (senders, each) = (3u64, 5_000u64);
        std::thread::scope(|scope| {
            let counting = scope.spawn(move || {
                let (mut got, mut lost, mut last) = (0, 0, [0; 3]);
                for received in &mut listener {
                    match received {
                        Received::Lagged(n) => lost += n,
                        Received::Event(e) => {
                            let n = number(&e);
                            let last = &mut last[(n / each) as usize];
                            assert!(*last <= n % each, "out of order");
                            *last = n % each;
                            got += 1;
                        }
                    }
                }
                (got, lost)
            });
            std::thread::scope(|inner| {
                for s in 0..senders {
                    let events = &events;
                    inner.spawn(move || (0..each).for_each(|n| events.emit(|| event(s * each + n))));
                }
            });
            drop(events);
            let (got, lost) = counting.join().expect("no panic");
            assert_eq!(got + lost, senders * each);
            assert!(lost > 0, "a queue of 16 was never full: the test shows nothing");
        });
    }

    #[test]
    fn a_log_line_a_class_each_ten_seconds() {
        let clock = Arc::new(ManualClock::new(1_000_000));
        let limit = RateLimit::new(clock.clone());
        assert_eq!(limit.allow("disk full"), Some(0));
        assert_eq!(limit.allow("damage"), Some(0));
        clock.advance(9_999);
        assert_eq!(limit.allow("disk full"), None);
        assert_eq!(limit.allow("disk full"), None);
        clock.advance(1);
        assert_eq!(limit.allow("disk full"), Some(2));
        assert_eq!(limit.allow("disk full"), None);
        assert_eq!(limit.allow("damage"), Some(0));
        clock.advance(10_000);
        assert_eq!(limit.allow("disk full"), Some(1));
    }

    proptest! {
        /// Whatever the order of sending and receiving, the received events and the gaps between them add up to
        /// the sequence that was sent.
        #[test]
        fn gaps_stand_where_events_are_missing(steps in proptest::collection::vec(any::<bool>(), 0..200), room in 1usize..5) {
            let events = Events::new();
            let listener = events.subscribe_with(room);
            let (mut sent, mut next) = (0u64, 0u64);
            let mut check = |received| match received {
                Received::Lagged(n) => next += n,
                Received::Event(e) => {
                    assert_eq!(number(&e), next);
                    next += 1;
                }
            };
            for send in steps {
                if send {
                    events.emit(|| event(sent));
                    sent += 1;
                } else if let Ok(received) = listener.try_recv() {
                    check(received);
                }
            }
            drop(events);
            listener.for_each(&mut check);
            prop_assert_eq!(next, sent);
        }
    }
}
