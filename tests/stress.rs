//! Many threads, tiers too small for what they write, no pauses.
//!
//! What reads return is judged by the history of all operations (`thermocline_testing::history`): each key is a register,
//! nothing in it is stale, invented or back after a removal, and what is absent was removed, or evicted with an event.

#![cfg(test)]

mod common;

use bytes::Bytes;
use common::{Dice, Tiers, parse, value};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};
use thermocline::testing::change;
use thermocline::{Cache, Error, Event, Persistence, PutOptions, Received, RecvError, Subscription, Tier};
use thermocline_testing::history::{Absence, Begun, History, Outcome};

const MIB: u64 = 1 << 20;
const KEYS: usize = 400;
const THREADS: usize = 8;

fn key(no: usize) -> String {
    format!("key/{no}")
}

/// What many threads do to a store, and what comes of it.
struct Load {
    history: History,
    /// Values so far: each is put once.
    values: AtomicU64,
    stop: AtomicBool,
    puts: AtomicU64,
    busy: AtomicU64,
    hits: AtomicU64,
    wrong: Mutex<Vec<String>>,
    largest: u64,
}

impl Load {
    fn new(largest: u64) -> Arc<Load> {
        Arc::new(Load {
            history: History::default(),
            values: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            puts: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            wrong: Mutex::default(),
            largest,
        })
    }

    fn wrong(&self, what: String) {
        self.stop.store(true, Ordering::Relaxed);
        self.wrong.lock().unwrap().push(what);
    }

    fn run(&self, cache: &Cache, seed: u64) {
        let mut dice = Dice::new(seed);
        while !self.stop.load(Ordering::Relaxed) {
            // A third of the operations go to a few hot keys.
            let no = if dice.one_in(3) { dice.below(16) } else { dice.below(KEYS as u64) } as usize;
            match dice.below(10) {
                0..=3 => self.put(cache, no, &mut dice),
                4 => self.remove(cache, no),
                _ => self.read(cache, no),
            }
        }
    }

    fn put(&self, cache: &Cache, no: usize, dice: &mut Dice) {
        let len = match dice.below(20) {
            0 => dice.below(self.largest),
            1..=8 => dice.below(20_000),
            _ => dice.below(2_000),
        };
        let done = self.put_one(cache, no, len as usize);
        if done.is_ok() {
            self.puts.fetch_add(1, Ordering::Relaxed);
        }
        self.refused("put", no, done);
    }

    fn put_one(&self, cache: &Cache, no: usize, len: usize) -> Result<(), Error> {
        let number = 1 + self.values.fetch_add(1, Ordering::Relaxed);
        let (key, bytes) = (key(no), value(no as u64, number, len));
        let begun = self.history.write(&key, Some(number), 0);
        let done = cache.put(&key, bytes);
        self.history.wrote(&key, begun, outcome(&done), 0);
        done
    }

    fn remove(&self, cache: &Cache, no: usize) {
        let key = key(no);
        let begun = self.history.write(&key, None, 0);
        let done = cache.remove(&key);
        self.history.wrote(&key, begun, outcome(&done), 0);
        self.refused("remove", no, done.map(drop));
        // At once: here it would come back, if it did.
        self.read(cache, no);
    }

    /// A store that has no room may say so.
    fn refused(&self, what: &str, no: usize, done: Result<(), Error>) {
        match done {
            Ok(()) => {}
            Err(Error::Busy { .. }) => _ = self.busy.fetch_add(1, Ordering::Relaxed),
            Err(e) => self.wrong(format!("{what} of {no}: {e}")),
        }
    }

    fn read(&self, cache: &Cache, no: usize) {
        let key = key(no);
        let begun = self.history.read(0);
        match cache.get(&key) {
            Ok(None) => self.history.was_read(&key, begun, None, 0),
            Ok(Some(got)) => match parse(&got) {
                Some((tag, number)) if tag == no as u64 => {
                    self.hits.fetch_add(1, Ordering::Relaxed);
                    self.history.was_read(&key, begun, Some(number), 0);
                }
                other => self.wrong(format!("{no}: a wrong value: {other:?} of {} bytes", got.len())),
            },
            Err(Error::Busy { .. }) => {}
            Err(e) => self.wrong(format!("get of {no}: {e}")),
        }
    }

    /// What the optimizer might do, while the others are at it; gives how often.
    fn turn(&self, cache: &Cache) -> u64 {
        let (mut dice, mut turns) = (Dice::new(0x7475_726e), 0);
        while !self.stop.load(Ordering::Relaxed) {
            turns += u64::from(cache.apply(&change(|n| dice.below(n))).is_ok());
            std::thread::sleep(Duration::from_millis(dice.below(20)));
        }
        turns
    }

    fn read_all(&self, cache: &Cache) {
        (0..KEYS).for_each(|no| self.read(cache, no));
    }

    /// Takes events in until the store is closed, faster than they come; gives the keys that were evicted. The store was
    /// opened after `since`. An event comes before anybody finds the item gone: so it went after the last moment at
    /// which there was nothing to hear.
    fn listen(&self, events: &Subscription, mut since: Begun) -> HashSet<String> {
        let mut evicted = HashSet::new();
        loop {
            let now = self.history.moment(0);
            match events.try_recv() {
                Ok(Received::Event(Event::Evicted { key: Some(key), .. })) => {
                    let key = String::from_utf8_lossy(&key).into_owned();
                    self.history.forgotten(&key, &since, 0);
                    evicted.insert(key);
                }
                Ok(Received::Event(
                    Event::Promoted { .. } | Event::Demoted { .. } | Event::StrategyChanged { .. },
                )) => {}
                Ok(other) => self.wrong(format!("an event: {other:?}")),
                Err(RecvError::Closed) => return evicted,
                Err(_) => {
                    since = now;
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// All that was done so far is in order. To be asked when all events were heard.
    fn assert_right(&self) {
        let wrong = self.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{:#?}", wrong.iter().take(10).collect::<Vec<_>>());
        self.history.check(|_| Absence::Told).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// What is refused has no effect.
fn outcome<T>(done: &Result<T, Error>) -> Outcome {
    if done.is_ok() { Outcome::Done } else { Outcome::Refused }
}

/// Waits until each tier is within its limit.
fn settled(cache: &Cache) {
    let within = |cache: &Cache| {
        let stats = cache.stats();
        stats.tiers.iter().flatten().all(|t| t.limit.is_none_or(|limit| t.bytes <= limit))
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !within(cache) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(within(cache), "{:?}", cache.stats());
}

/// Runs the load for a while, closes, and reads everything after a reopen. One value in twenty has up to `largest` bytes,
/// which has to be so many that tiers without an archive that keeps all are too small.
fn stress(tiers: Tiers, persistence: Persistence, then: Tiers, largest: u64, time: Duration) {
    let dir = common::scratch();
    let load = Load::new(largest);
    let since = load.history.moment(0);
    let (cache, events) = tiers.builder(dir.path(), persistence).open_with_events(1 << 20).unwrap();
    let heard = {
        let load = load.clone();
        std::thread::spawn(move || load.listen(&events, since))
    };
    let threads: Vec<_> = (0..THREADS)
        .map(|n| {
            let (cache, load) = (cache.clone(), load.clone());
            std::thread::spawn(move || load.run(&cache, n as u64))
        })
        .collect();
    let turner = {
        let (cache, load) = (cache.clone(), load.clone());
        std::thread::spawn(move || load.turn(&cache))
    };
    let end = Instant::now() + time;
    while Instant::now() < end && !load.stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
    load.stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|t| t.join().unwrap());
    let turns = turner.join().unwrap();
    assert!(turns > 0, "the optimizer never did anything");
    load.read_all(&cache);
    let stats = cache.stats();
    let started = Instant::now();
    cache.close().unwrap();
    assert!(started.elapsed() < Duration::from_secs(60), "closing took {:?}", started.elapsed());
    drop(cache);
    let evicted = heard.join().unwrap();
    let started = Instant::now();
    load.assert_right();
    println!(
        "{tiers:?} {persistence:?}: {turns} turns, {} puts, {} busy, {} hits, {} keys evicted, {} containers dropped, judged in {:?}",
        load.puts.load(Ordering::Relaxed),
        load.busy.load(Ordering::Relaxed),
        load.hits.load(Ordering::Relaxed),
        evicted.len(),
        stats.counts.containers_dropped,
        started.elapsed(),
    );
    assert!(load.puts.load(Ordering::Relaxed) > 500, "hardly anything was put");
    if tiers.keep_all() {
        assert!(evicted.is_empty(), "there was room for everything");
    } else if tiers == then {
        assert!(evicted.len() > 20, "the tiers were not too small: {} keys evicted", evicted.len());
    }

    let since = load.history.moment(0);
    let (cache, events) = then.builder(dir.path(), persistence).open_with_events(1 << 20).unwrap();
    assert_eq!(cache.recovery().lost, 0);
    load.read_all(&cache);
    assert!(cache.verify().unwrap().is_clean());
    settled(&cache);
    // It still takes writes.
    for no in 0..KEYS {
        load.put_one(&cache, no, 3000).unwrap();
        load.read(&cache, no);
    }
    cache.flush().unwrap();
    settled(&cache);
    load.read_all(&cache);
    cache.close().unwrap();
    drop(cache);
    let evicted = load.listen(&events, since);
    load.assert_right();
    println!("after a reopen with {then:?}: {} keys evicted", evicted.len());
    assert!(tiers == then || evicted.len() > 20, "the tiers are not smaller than what is in them");
}

#[test]
fn ssd_alone_too_small() {
    let tiers = Tiers { ssd: 6, hdd: 0, cold: None };
    stress(tiers, Persistence::EverySecond, tiers, 400_000, Duration::from_secs(4));
}

#[test]
fn all_tiers_too_small() {
    let tiers = Tiers { ssd: 4, hdd: 4, cold: Some(4) };
    stress(tiers, Persistence::EverySecond, tiers, 2_000_000, Duration::from_secs(5));
}

#[test]
fn written_on_eviction() {
    let tiers = Tiers { ssd: 5, hdd: 0, cold: Some(4) };
    stress(tiers, Persistence::OnEviction, tiers, 1_500_000, Duration::from_secs(4));
}

#[test]
fn always_durable() {
    let tiers = Tiers { ssd: 5, hdd: 0, cold: Some(0) };
    stress(tiers, Persistence::Always, tiers, 400_000, Duration::from_secs(4));
}

#[test]
fn opened_smaller_than_before() {
    let tiers = Tiers { ssd: 16, hdd: 0, cold: Some(16) };
    let then = Tiers { ssd: 4, hdd: 0, cold: Some(4) };
    stress(tiers, Persistence::EverySecond, then, 2_000_000, Duration::from_secs(3));
}

/// A put that depends on a version goes ahead only if that is still the live one: of concurrent increments none is
/// lost, wherever the item is at the moment; and of those who put an absent key, one does.
#[test]
fn concurrent_increments() {
    const EACH: u64 = 60;
    let dir = common::scratch();
    let tiers = Tiers { ssd: 5, hdd: 0, cold: Some(0) };
    for (name, cache) in [
        ("memory", Cache::builder().memory(MIB).open().unwrap()),
        ("disk", tiers.builder(&dir.path().join("1"), Persistence::EverySecond).open().unwrap()),
        ("always", tiers.builder(&dir.path().join("2"), Persistence::Always).open().unwrap()),
    ] {
        let load = Load::new(0);
        // The tag of a value is the count; its number says whose write it is, for the judge.
        let put_if = |key: &str, count: u64, put: &dyn Fn(Bytes) -> thermocline::Result<bool>| {
            let number = 1 + load.values.fetch_add(1, Ordering::Relaxed);
            let begun = load.history.write(key, Some(number), 0);
            let done = put(value(count, number, 50)).unwrap();
            load.history.wrote(key, begun, if done { Outcome::Done } else { Outcome::Refused }, 0);
            done
        };
        let read = |key: &str| {
            let begun = load.history.read(0);
            let entry = cache.get_entry(key).unwrap().unwrap();
            let (count, number) = parse(&entry.value).unwrap();
            load.history.was_read(key, begun, Some(number), 0);
            (count, entry.version)
        };
        put_if("count", 0, &|bytes| cache.put("count", bytes).map(|()| true));
        let won = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for n in 0..THREADS as u64 {
                let (cache, won, put_if, read) = (&cache, &won, &put_if, &read);
                scope.spawn(move || {
                    for i in 0..EACH {
                        loop {
                            let (count, version) = read("count");
                            let put = |next| cache.put_if_version("count", next, version, PutOptions::new());
                            if put_if("count", count + 1, &put) {
                                break;
                            }
                        }
                        if n == 0 && i % 8 == 0 && name != "memory" {
                            cache.demote("count", Tier::Cold).unwrap();
                        }
                        let once = format!("once/{i}");
                        let put = put_if(&once, 0, &|it| cache.put_if_absent(&once, it, PutOptions::new()));
                        won.fetch_add(usize::from(put), Ordering::SeqCst);
                        read(&once);
                    }
                });
            }
        });
        assert_eq!(read("count").0, EACH * THREADS as u64, "{name}");
        assert_eq!(won.into_inner(), EACH as usize, "{name}");
        load.assert_right();
    }
}

impl Load {
    /// Asks for a key; `make` gives a value of so many bytes if it is to be made, with what happens meanwhile. For the
    /// judge it is a read and, by who makes the value, a put: if that is voided, it came just before what voided it, which
    /// may have been before the making began.
    fn get_or_put(&self, cache: &Cache, no: usize, make: impl FnOnce() -> usize) {
        let key = key(no);
        let (asked, mut made) = (self.history.read(0), None);
        let got = cache.get_or_put_with(&key, || {
            let number = 1 + self.values.fetch_add(1, Ordering::Relaxed);
            made = Some(self.history.write_since(&key, Some(number), &asked, 0));
            Ok::<_, std::io::Error>(value(no as u64, number, make()))
        });
        if let Some(begun) = made {
            // An error does not say whether the value is cached.
            let outcome = if got.is_ok() { Outcome::Done } else { Outcome::Unknown };
            self.history.wrote(&key, begun, outcome, 0);
        }
        match got.map(|bytes| parse(&bytes)) {
            Ok(Some((tag, number))) if tag == no as u64 => {
                self.history.was_read(&key, asked, Some(number), 0)
            }
            other => self.wrong(format!("{no}: a wrong value: {other:?}")),
        }
    }
}

/// However many ask for an absent key, one makes it at a time; a removal meanwhile voids what is made.
#[test]
fn one_maker_at_a_time() {
    const ABSENT: usize = 24;
    let dir = common::scratch();
    let load = Load::new(0);
    let since = load.history.moment(0);
    let builder = Tiers { ssd: 5, hdd: 0, cold: Some(4) }.builder(dir.path(), Persistence::EverySecond);
    let (cache, events) = builder.open_with_events(1 << 20).unwrap();
    let making: Vec<AtomicUsize> = (0..ABSENT).map(|_| AtomicUsize::new(0)).collect();
    let removals = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (load, cache, making, removals) = (&load, &cache, &making, &removals);
        scope.spawn(move || load.listen(&events, since));
        let threads: Vec<_> = (0..THREADS)
            .map(|n| {
                scope.spawn(move || {
                    let mut dice = Dice::new(n as u64 + 100);
                    while !load.stop.load(Ordering::Relaxed) {
                        let no = dice.below(ABSENT as u64) as usize;
                        if n == 0 && dice.below(4) == 0 {
                            load.remove(cache, no);
                            removals.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                        load.get_or_put(cache, no, || {
                            let others = making[no].fetch_add(1, Ordering::SeqCst);
                            // After a removal a new maker may begin while the voided one goes on; never more than
                            // there were removals.
                            if others > 0 && removals.load(Ordering::SeqCst) == 0 {
                                load.wrong(format!("{no}: {others} makers more"));
                            }
                            let len = dice.below(3000) as usize;
                            std::thread::yield_now();
                            making[no].fetch_sub(1, Ordering::SeqCst);
                            len
                        });
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(3));
        load.stop.store(true, Ordering::Relaxed);
        let ended: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
        // Who listens hears of it, whatever became of them.
        cache.close().unwrap();
        ended.into_iter().for_each(|e| e.unwrap());
    });
    load.assert_right();
    assert!(removals.load(Ordering::Relaxed) > 20);
}

/// Without removals there is exactly one maker a key, whatever the number of callers.
#[test]
fn eight_callers_and_one_maker() {
    const ROUNDS: usize = 100;
    let dir = common::scratch();
    let cache = Tiers { ssd: 5, hdd: 0, cold: None }.builder(dir.path(), Persistence::EverySecond);
    let cache = cache.open().unwrap();
    let load = Load::new(0);
    for round in 0..ROUNDS {
        let barrier = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    barrier.wait();
                    load.get_or_put(&cache, round, || {
                        std::thread::sleep(Duration::from_millis(2));
                        100
                    });
                });
            }
        });
        assert_eq!(load.values.load(Ordering::SeqCst), round as u64 + 1);
    }
    load.assert_right();
    assert_eq!(cache.stats().counts.made, ROUNDS as u64);
}

/// A removal, a put or a clear while a value is made: it goes to who waits, and is not cached.
#[test]
fn what_happens_meanwhile_voids_what_is_made() {
    let dir = common::scratch();
    let stores = [
        Cache::builder().memory(MIB).open().unwrap(),
        Tiers { ssd: 5, hdd: 0, cold: None }.builder(dir.path(), Persistence::EverySecond).open().unwrap(),
    ];
    for cache in stores {
        type Meanwhile<'a> = (&'a str, &'a dyn Fn(), Option<&'a [u8]>);
        let meanwhile: [Meanwhile<'_>; 4] = [
            ("remove", &|| assert!(!cache.remove("k").unwrap()), None),
            ("put", &|| cache.put("k", "put").unwrap(), Some(b"put")),
            ("clear", &|| assert_eq!(cache.clear().unwrap(), 0), None),
            ("remove_prefix", &|| assert_eq!(cache.remove_prefix("k").unwrap(), 0), None),
        ];
        for (name, what, then) in meanwhile {
            cache.remove("k").unwrap();
            let got = cache.get_or_put_with("k", || {
                what();
                Ok::<_, std::io::Error>("made")
            });
            assert_eq!(got.unwrap(), "made", "{name}");
            assert_eq!(cache.get("k").unwrap().as_deref(), then, "{name}");
        }
    }
}

#[test]
fn a_maker_that_fails_panics_or_asks_for_itself() {
    let cache = Cache::builder().memory(MIB).open().unwrap();
    let entered = Arc::new(Barrier::new(2));
    let maker = {
        let (cache, entered) = (cache.clone(), entered.clone());
        std::thread::spawn(move || {
            let _ = cache.get_or_put_with("k", || -> Result<&str, std::io::Error> {
                entered.wait();
                std::thread::sleep(Duration::from_millis(200));
                panic!("on purpose")
            });
        })
    };
    entered.wait();
    let waiter = cache.get_or_put_with("k", || -> Result<&str, std::io::Error> { Ok("a second maker") });
    assert!(matches!(waiter, Err(Error::Maker(_))), "{waiter:?}");
    assert!(maker.join().is_err());
    assert_eq!(cache.get("k").unwrap(), None);

    let failed = cache.get_or_put_with("k", || Err::<&str, _>(std::io::Error::other("no")));
    assert!(matches!(&failed, Err(Error::Maker(e)) if e.to_string() == "no"), "{failed:?}");
    assert_eq!(cache.get("k").unwrap(), None);

    let inner = cache.clone();
    let recursive =
        cache.get_or_put_with("k", move || inner.get_or_put_with("k", || Ok::<_, std::io::Error>("x")));
    assert!(
        matches!(&recursive, Err(Error::Maker(e)) if e.to_string().contains("same key")),
        "{recursive:?}"
    );
    assert_eq!(cache.get_or_put_with("k", || Ok::<_, std::io::Error>("at last")).unwrap(), "at last");
}
