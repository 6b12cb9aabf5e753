//! What was done to each key, when, and what a store may answer.
//!
//! A [`History`] has of each key the writes (puts and removals), each with the moments at which it was called and at
//! which it returned, and the reads. Values are numbers that are never used twice. It judges
//!
//! - what reads returned: each key is an atomic register. That is decided with *zones* (Gibbons and Korach, "Testing
//!   Shared Memories", 1997): the operations of one value, its write and its reads, must have had it at some time
//!   between the first that ended and the last that began, and no two values can be there at once. A removal counts as
//!   a write of nothing, and what read nothing must not lie within the zone of a value, unless a cache may also forget:
//!   whether that is in order is for the caller to say ([`Absence`]);
//! - what is found after a crash, by what was promised ([`Promise`]): of the writes of each key the last ones may be
//!   missing, but none that a flush acknowledged, that was durable when it returned, or that the store has had the time
//!   to write by itself, and nothing that an earlier opening had replaced. A write that was refused may be found, for a disk that fails can take a write and
//!   then nothing that would undo it; but not once anything later is durable.
//!
//! Moments come from one counter. Each has a *mark* with it, a number that the caller gives: a simulation gives how
//! many changes its disk had seen, and can then ask for the history [up to](History::up_to) one of them; where there is
//! a clock, it is the time.

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A value. Each is written once.
pub type Value = u64;

/// What the acknowledgement of a write promises about a crash. Whatever it is, a write survives once a flush that began
/// after it has succeeded ([`flushed`](History::flushed)), and a removal once those were written that were acknowledged
/// ([`flushed_removals`](History::flushed_removals)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// The write survives.
    Durable,
    /// No more than that.
    FromFlush,
    /// Besides, the write survives if it had returned before this mark: the store has had the time to write it by itself.
    Until(u64),
    /// As `Until`, of removals alone.
    RemovalsUntil(u64),
}

impl Promise {
    /// Whether a write that has returned is durable without a flush.
    fn keeps(self, w: &Write) -> bool {
        match self {
            Promise::Durable => true,
            Promise::FromFlush => false,
            Promise::Until(mark) => w.ended.mark < mark,
            Promise::RemovalsUntil(mark) => w.value.is_none() && w.ended.mark < mark,
        }
    }
}

/// When a read may find nothing although something was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// Only if the key was removed, or [forgotten](History::forgotten).
    Told,
    /// At any time: reads fail, or the disk is damaged.
    Allowed,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was refused, and nobody sees an effect of it from the moment on at which it returned.
    Refused,
    /// Nobody knows: the process ended, or the error does not say.
    Unknown,
}

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    time: u64,
    mark: u64,
}

const NEVER: Moment = Moment { time: u64::MAX, mark: u64::MAX };

/// A put (with its value), a removal, or what made the key go away by itself (both without).
#[derive(Debug, Clone, Copy)]
struct Write {
    value: Option<Value>,
    began: Moment,
    ended: Moment,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy)]
struct Read {
    value: Option<Value>,
    began: Moment,
    ended: Moment,
}

/// A key's history since the store was opened.
#[derive(Debug, Clone, Default)]
struct Past {
    /// What was there at the beginning, which was durable.
    first: Option<Value>,
    writes: Vec<Write>,
    reads: Vec<Read>,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Whose history it is.
    pub key: String,
    /// What was found.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

impl std::error::Error for Violation {}

/// An operation that has begun.
#[derive(Debug)]
pub struct Begun {
    began: Moment,
    /// Of a write, where it stands in the key's history.
    at: usize,
}

const SHARDS: usize = 64;

/// See the module. May be used by many threads at once.
#[derive(Debug)]
pub struct History {
    keys: Vec<Mutex<BTreeMap<String, Past>>>,
    clock: Mutex<Moment>,
    /// Flushes that succeeded.
    flushes: Mutex<Vec<Flush>>,
}

/// What made writes durable that had returned before it began.
#[derive(Debug, Clone, Copy)]
struct Flush {
    began: Moment,
    ended: Moment,
    removals_alone: bool,
}

impl Default for History {
    fn default() -> History {
        History {
            keys: (0..SHARDS).map(|_| Mutex::default()).collect(),
            clock: Mutex::new(Moment { time: 0, mark: 0 }),
            flushes: Mutex::default(),
        }
    }
}

impl History {
    /// The next moment, later than all before.
    fn now(&self, mark: u64) -> Moment {
        let mut clock = self.clock.lock();
        clock.time += 1;
        clock.mark = clock.mark.max(mark);
        *clock
    }

    fn with<T>(&self, key: &str, then: impl FnOnce(&mut Past) -> T) -> T {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let shard = usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or(0);
        match self.keys.get(shard) {
            Some(shard) => then(shard.lock().entry(key.to_owned()).or_default()),
            None => then(&mut Past::default()),
        }
    }

    /// A put (with its value) or a removal is about to be called. Its end has to be told with [`wrote`](Self::wrote).
    pub fn write(&self, key: &str, value: Option<Value>, mark: u64) -> Begun {
        self.with(key, |past| {
            let began = self.now(mark);
            let write = Write { value, began, ended: NEVER, outcome: Outcome::Unknown };
            past.writes.push(write);
            Begun { began, at: past.writes.len() - 1 }
        })
    }

    /// The same of a put that may have been undone, or put off, since another operation began: a value is made for a key
    /// that was absent then, and a removal that comes before the making voids it all the same.
    pub fn write_since(&self, key: &str, value: Option<Value>, since: &Begun, mark: u64) -> Begun {
        let begun = self.write(key, value, mark);
        self.with(key, |past| {
            if let Some(write) = past.writes.get_mut(begun.at) {
                write.began = since.began;
            }
        });
        Begun { began: since.began, at: begun.at }
    }

    /// The write has returned.
    pub fn wrote(&self, key: &str, begun: Begun, outcome: Outcome, mark: u64) {
        self.with(key, |past| {
            if let Some(write) = past.writes.get_mut(begun.at) {
                write.outcome = outcome;
                if outcome != Outcome::Unknown {
                    write.ended = self.now(mark);
                }
            }
        });
    }

    /// A read is about to be called.
    pub fn read(&self, mark: u64) -> Begun {
        Begun { began: self.now(mark), at: 0 }
    }

    /// The read has returned this. Reads that failed are not told.
    pub fn was_read(&self, key: &str, begun: Begun, value: Option<Value>, mark: u64) {
        self.with(key, |past| past.reads.push(Read { value, began: begun.began, ended: self.now(mark) }));
    }

    /// The store said that it let go of the key: evicted it, or found it expired. It did so at some time since
    /// [`moment`](Self::moment) gave `since`.
    pub fn forgotten(&self, key: &str, since: &Begun, mark: u64) {
        self.with(key, |past| {
            let (began, ended) = (since.began, self.now(mark));
            past.writes.push(Write { value: None, began, ended, outcome: Outcome::Unknown });
        });
    }

    /// The present moment.
    pub fn moment(&self, mark: u64) -> Begun {
        Begun { began: self.now(mark), at: 0 }
    }

    /// A flush is about to be called.
    pub fn flush(&self, mark: u64) -> Begun {
        Begun { began: self.now(mark), at: 0 }
    }

    /// The flush has succeeded: what had returned before it began is durable. So it is when a store that writes by itself
    /// was given the time to, and says that it did.
    pub fn flushed(&self, begun: Begun, mark: u64) {
        self.push_flush(begun, mark, false);
    }

    /// The removals that had returned before this began are durable: for stores that journal those by themselves, and
    /// values only when they have to.
    pub fn flushed_removals(&self, begun: Begun, mark: u64) {
        self.push_flush(begun, mark, true);
    }

    fn push_flush(&self, begun: Begun, mark: u64, removals_alone: bool) {
        let (began, ended) = (begun.began, self.now(mark));
        self.flushes.lock().push(Flush { began, ended, removals_alone });
    }

    /// The history as it was when this mark was reached: what began with it or later has not, and what had not ended has
    /// an unknown outcome.
    pub fn up_to(&self, mark: u64) -> History {
        let cut = History::default();
        *cut.clock.lock() = *self.clock.lock();
        for (from, to) in self.keys.iter().zip(&cut.keys) {
            let mut to = to.lock();
            for (key, past) in from.lock().iter() {
                let mut past = past.clone();
                past.reads.clear();
                past.writes.retain(|w| w.began.mark < mark);
                for w in past.writes.iter_mut().filter(|w| w.ended.mark >= mark) {
                    (w.ended, w.outcome) = (NEVER, Outcome::Unknown);
                }
                to.insert(key.clone(), past);
            }
        }
        *cut.flushes.lock() = self.flushes.lock().iter().copied().filter(|f| f.ended.mark < mark).collect();
        cut
    }

    /// Judges all reads so far; `absence` says of each key when it may have been found absent.
    ///
    /// # Errors
    /// The first that is not in order.
    pub fn check(&self, absence: impl Fn(&str) -> Absence) -> Result<(), Violation> {
        for shard in &self.keys {
            for (key, past) in shard.lock().iter() {
                past.check(absence(key)).map_err(|what| Violation { key: key.clone(), what })?;
            }
        }
        Ok(())
    }

    /// Judges what was found after a crash of everything that this is the history of; `absence` as for
    /// [`check`](Self::check).
    ///
    /// # Errors
    /// The first key of which it is not in order.
    pub fn check_crash(
        &self,
        promise: Promise,
        absence: impl Fn(&str) -> Absence,
        found: impl Fn(&str) -> Option<Value>,
    ) -> Result<(), Violation> {
        let mut known = self.known(promise);
        let last = self.keys.iter().map(|shard| known.last_durable(shard.lock().values())).max();
        known.settled = known.settled.max(last.unwrap_or(0));
        for shard in &self.keys {
            for (key, past) in shard.lock().iter() {
                past.check_crash(&known, absence(key), found(key))
                    .map_err(|what| Violation { key: key.clone(), what })?;
            }
        }
        Ok(())
    }

    /// What is known of a crash now.
    fn known(&self, promise: Promise) -> Known {
        let flushes = self.flushes.lock();
        let last =
            |of: fn(&&Flush) -> bool| flushes.iter().filter(of).map(|f| f.began.time).max().unwrap_or(0);
        let (flushed, removals) = (last(|f| !f.removals_alone), last(|_| true));
        Known { promise, flushed, removals, settled: removals }
    }

    /// Begins a new history, with marks from 0, with what is found now, which is durable.
    pub fn restart(&self, found: impl Fn(&str) -> Option<Value>) {
        for shard in &self.keys {
            for (key, past) in shard.lock().iter_mut() {
                *past = Past { first: found(key), ..Past::default() };
            }
        }
        self.flushes.lock().clear();
        self.clock.lock().mark = 0;
    }

    /// All keys that anything was done to.
    pub fn keys(&self) -> Vec<String> {
        self.keys.iter().flat_map(|shard| shard.lock().keys().cloned().collect::<Vec<_>>()).collect()
    }
}

/// What is known when a crash is judged: when the last flush began, of everything and of removals at least, and when
/// the last of what is durable did.
struct Known {
    promise: Promise,
    flushed: u64,
    removals: u64,
    settled: u64,
}

impl Known {
    fn is_durable(&self, w: &Write) -> bool {
        let flushed = if w.value.is_none() { self.removals } else { self.flushed };
        w.outcome == Outcome::Done && (w.ended.time < flushed || self.promise.keeps(w))
    }

    /// When the last of these writes that are durable began.
    fn last_durable<'a>(&self, pasts: impl Iterator<Item = &'a Past>) -> u64 {
        let durable = pasts.flat_map(|past| &past.writes).filter(|w| self.is_durable(w));
        durable.map(|w| w.began.time).max().unwrap_or(0)
    }
}

impl Past {
    /// All writes; the value of the beginning counts as written before everything.
    fn all_writes(&self) -> impl Iterator<Item = Write> {
        let zero = Moment { time: 0, mark: 0 };
        let first = |value| Write { value: Some(value), began: zero, ended: zero, outcome: Outcome::Done };
        self.first.map(first).into_iter().chain(self.writes.iter().copied())
    }

    fn write_of(&self, value: Value) -> Option<Write> {
        self.all_writes().find(|w| w.value == Some(value))
    }

    fn check(&self, absence: Absence) -> Result<(), String> {
        if self.reads.is_empty() {
            return Ok(());
        }
        let order = Order::of(self);
        let mut zones: HashMap<Value, Zone> = HashMap::new();
        // Of what was nothing, each for itself: nobody can say which removal a read of nothing saw.
        let mut nothing: Vec<Zone> = Vec::new();
        for r in &self.reads {
            let Some(value) = r.value else {
                if absence == Absence::Told {
                    order.check_absent(r)?;
                    nothing.push(Zone { first_end: r.ended.time, last_begin: r.began.time });
                }
                continue;
            };
            let Some(w) = order.of_value.get(&value) else {
                return Err(format!("a read returned {value}, which was never written"));
            };
            if r.ended.time < w.began.time {
                return Err(format!("a read returned {value} before it was written"));
            }
            if w.outcome == Outcome::Refused && r.began.time > w.ended.time {
                return Err(format!("a read returned {value}, the write of which had failed before"));
            }
            order.check_not_replaced(w, r)?;
            let zone = zones.entry(value).or_insert(Zone::of(w));
            zone.add(r);
        }
        // A write that nobody saw the value of is in the way of the others as well; if it was done at all.
        for w in self.writes.iter().filter(|w| w.outcome == Outcome::Done) {
            match w.value {
                Some(value) => _ = zones.entry(value).or_insert(Zone::of(w)),
                None => nothing.push(Zone::of(w)),
            }
        }
        check_zones(&zones, &nothing)
    }

    fn check_crash(&self, known: &Known, absence: Absence, found: Option<Value>) -> Result<(), String> {
        let durable = |x: &&Write| known.is_durable(x);
        let replaced = |ended: u64| self.writes.iter().filter(durable).find(|x| ended < x.began.time);
        match found {
            Some(value) => {
                let Some(w) = self.write_of(value) else {
                    return Err(format!("{value} was found after a crash, which was never written"));
                };
                // A disk that failed may have taken the write, and then not what undoes it.
                if w.outcome == Outcome::Refused && w.ended.time < known.settled {
                    return Err(format!("{value} was found after a crash, the write of which had failed"));
                }
                replaced(w.ended.time).map_or(Ok(()), |x| {
                    let by = x.value.map_or("a removal".into(), |v| v.to_string());
                    Err(format!("{value} was found after a crash, though {by} had durably replaced it"))
                })
            }
            None if absence == Absence::Allowed => Ok(()),
            None => {
                // The key was absent at first, or something took it away, and no durable put came after.
                let put_after = |ended: u64| {
                    self.writes.iter().filter(durable).any(|x| x.value.is_some() && ended < x.began.time)
                };
                let at_first = self.first.is_none() && !put_after(0);
                let taken = |x: &Write| {
                    x.value.is_none() && x.outcome != Outcome::Refused && !put_after(x.ended.time)
                };
                if at_first || self.writes.iter().any(taken) {
                    return Ok(());
                }
                let lost =
                    self.writes.iter().filter(durable).filter_map(|w| w.value).next_back().or(self.first);
                Err(format!("nothing was found after a crash, though {lost:?} was durable"))
            }
        }
    }
}

/// A key's writes as those who judge reads look for them, so that a read does not cost a look at all of them: there may
/// be a hundred thousand of each.
struct Order {
    of_value: HashMap<Value, Write>,
    done: Latest,
    puts_done: Latest,
    /// What took the value away, or may have.
    taken: Latest,
}

impl Order {
    fn of(past: &Past) -> Order {
        let (began, ended) = (|w: &Write| w.began.time, |w: &Write| w.ended.time);
        let done = |w: &Write| w.outcome == Outcome::Done;
        let taken = |w: &Write| w.value.is_none() && w.outcome != Outcome::Refused;
        Order {
            of_value: past.all_writes().filter_map(|w| Some((w.value?, w))).collect(),
            done: Latest::of(past.all_writes().filter(done), ended, began),
            puts_done: Latest::of(past.all_writes().filter(|w| done(w) && w.value.is_some()), ended, began),
            taken: Latest::of(past.all_writes().filter(taken), began, ended),
        }
    }

    /// No write that came after `w` had ended when the read began.
    fn check_not_replaced(&self, w: &Write, r: &Read) -> Result<(), String> {
        let last = self.done.before(r.began.time);
        match last.filter(|x| w.ended.time < x.began.time) {
            None => Ok(()),
            Some(Write { value: None, .. }) => {
                Err(format!("a read returned {:?}, which had been removed before it began", w.value))
            }
            Some(x) => Err(format!(
                "a read returned {:?}, which {:?} had replaced before it began",
                w.value, x.value
            )),
        }
    }

    /// Of every put that had ended before the read began, something may have taken the value away. If that is so of the
    /// one that began last, it is so of the others.
    fn check_absent(&self, r: &Read) -> Result<(), String> {
        let Some(put) = self.puts_done.before(r.began.time) else { return Ok(()) };
        let taken = self.taken.before(r.ended.time);
        if taken.is_some_and(|x| x.ended.time > put.began.time) {
            return Ok(());
        }
        Err(format!("a read found nothing, though {:?} had been put before it began", put.value))
    }
}

/// Writes, sorted by one of their times; with each time the one among those up to it whose other time is the latest.
struct Latest(Vec<(u64, Write)>);

impl Latest {
    fn of(writes: impl Iterator<Item = Write>, by: fn(&Write) -> u64, other: fn(&Write) -> u64) -> Latest {
        let mut all: Vec<(u64, Write)> = writes.map(|w| (by(&w), w)).collect();
        all.sort_by_key(|(time, _)| *time);
        let mut latest: Option<Write> = None;
        for (_, w) in &mut all {
            *w = latest.filter(|l| other(l) > other(w)).unwrap_or(*w);
            latest = Some(*w);
        }
        Latest(all)
    }

    /// Of those before this time, the one whose other time is the latest.
    fn before(&self, time: u64) -> Option<&Write> {
        let at = self.0.partition_point(|(t, _)| *t < time).checked_sub(1)?;
        self.0.get(at).map(|(_, w)| w)
    }
}

/// When the value of a key must have been there: from `low`, when the first of its operations had ended, to `high`,
/// when the last began; if that is backwards, at some moment between the two.
#[derive(Debug, Clone, Copy)]
struct Zone {
    first_end: u64,
    last_begin: u64,
}

impl Zone {
    fn of(w: &Write) -> Zone {
        Zone { first_end: w.ended.time, last_begin: w.began.time }
    }

    fn add(&mut self, r: &Read) {
        self.first_end = self.first_end.min(r.ended.time);
        self.last_begin = self.last_begin.max(r.began.time);
    }

    fn is_forward(&self) -> bool {
        self.first_end < self.last_begin
    }
}

fn check_zones(zones: &HashMap<Value, Zone>, nothing: &[Zone]) -> Result<(), String> {
    let (mut forward, backward): (Vec<_>, Vec<_>) = zones.iter().partition(|(_, z)| z.is_forward());
    forward.sort_by_key(|(_, z)| z.first_end);
    for pair in forward.windows(2) {
        if let [(a, za), (b, zb)] = pair
            && zb.first_end < za.last_begin
        {
            return Err(format!(
                "{a} and {b} were read in turns: one came back after the other had replaced it"
            ));
        }
    }
    // The value that was there all the while, before and after.
    let around = |z: &Zone| {
        // The last forward zone that begins before it.
        let at = forward.partition_point(|(_, f)| f.first_end < z.last_begin).checked_sub(1)?;
        forward.get(at).filter(|(_, f)| z.first_end < f.last_begin).map(|(value, _)| **value)
    };
    for (b, z) in backward {
        if let Some(a) = around(z) {
            return Err(format!("{b} was written while {a} was there before and after"));
        }
    }
    match nothing.iter().find_map(around) {
        Some(a) => Err(format!("{a} was gone, by a removal or for a read, and came back")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
