//! Many threads, tiers too small for what they write, no pauses.
//!
//! Each key has one writer at a time (a lock of its own), so that it is known which write of it was the last; readers
//! take no part in that and check that versions never go back and that every byte is right.

#![cfg(test)]

mod common;

use common::{Rng, parse, value};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};
use thermocline::{
    Builder, Cache, Error, Event, Persistence, PutOptions, Received, RecvError, Subscription, Tier,
};

const MIB: u64 = 1 << 20;
const KEYS: usize = 400;
const THREADS: usize = 8;

fn key(no: usize) -> String {
    format!("key/{no}")
}

/// What a listener heard of.
#[derive(Debug, Default)]
struct Heard {
    /// When a key was last evicted, or a moment later.
    evicted: HashMap<Vec<u8>, Instant>,
    wrong: Vec<String>,
}

/// Takes events in until the store is closed, faster than they come.
fn listen(events: Subscription) -> Heard {
    let mut heard = Heard::default();
    loop {
        match events.recv_timeout(Duration::from_secs(60)) {
            Ok(Received::Event(Event::Evicted { key: Some(key), .. })) => {
                heard.evicted.insert(key.to_vec(), Instant::now());
            }
            Ok(Received::Event(Event::Promoted { .. } | Event::Demoted { .. })) => {}
            Ok(other) => heard.wrong.push(format!("{other:?}")),
            Err(RecvError::Closed) => return heard,
            Err(_) => heard.wrong.push("no event for a minute".into()),
        }
    }
}

/// One key as its writers know it.
#[derive(Debug, Default)]
struct Truth {
    /// Held while it is written.
    writing: Mutex<()>,
    /// The newest version of which a write has begun.
    begun: AtomicU64,
    /// The newest version of which a write was acknowledged.
    acknowledged: AtomicU64,
    /// Whether the newest acknowledged write is a put.
    live: AtomicBool,
    /// The newest version that was removed.
    removed: AtomicU64,
    /// When the newest acknowledged put began.
    at: Mutex<Option<Instant>>,
}

struct Load {
    keys: Vec<Truth>,
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
            keys: (0..KEYS).map(|_| Truth::default()).collect(),
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
        let mut rng = Rng::new(seed);
        while !self.stop.load(Ordering::Relaxed) {
            // A third of the operations go to a few hot keys.
            let no = if rng.below(3) == 0 { rng.below(16) } else { rng.below(KEYS as u64) } as usize;
            match rng.below(10) {
                0..=3 => self.put(cache, no, &mut rng),
                4 => self.remove(cache, no),
                _ => self.read(cache, no),
            }
        }
    }

    fn put(&self, cache: &Cache, no: usize, rng: &mut Rng) {
        let truth = &self.keys[no];
        let _one = truth.writing.lock().unwrap();
        let version = truth.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let started = Instant::now();
        let len = match rng.below(20) {
            0 => rng.below(self.largest),
            1..=8 => rng.below(20_000),
            _ => rng.below(2_000),
        };
        match cache.put(key(no), value(no as u64, version, len as usize)) {
            Ok(()) => {
                truth.acknowledged.store(version, Ordering::SeqCst);
                truth.live.store(true, Ordering::SeqCst);
                *truth.at.lock().unwrap() = Some(started);
                self.puts.fetch_add(1, Ordering::Relaxed);
            }
            Err(Error::Busy { .. }) => {
                self.busy.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => self.wrong(format!("put of {no}: {e}")),
        }
    }

    fn remove(&self, cache: &Cache, no: usize) {
        let truth = &self.keys[no];
        let _one = truth.writing.lock().unwrap();
        let version = truth.begun.load(Ordering::SeqCst);
        match cache.remove(key(no)) {
            Ok(_) => {
                truth.live.store(false, Ordering::SeqCst);
                truth.removed.store(version, Ordering::SeqCst);
                match cache.get(key(no)) {
                    Ok(None) => {}
                    got => {
                        self.wrong(format!("{no} is there after its removal: {:?}", got.map(|v| v.is_some())))
                    }
                }
            }
            Err(Error::Busy { .. }) => {
                self.busy.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => self.wrong(format!("remove of {no}: {e}")),
        }
    }

    fn read(&self, cache: &Cache, no: usize) {
        let truth = &self.keys[no];
        let acknowledged = truth.acknowledged.load(Ordering::SeqCst);
        let removed = truth.removed.load(Ordering::SeqCst);
        let got = match cache.get(key(no)) {
            Ok(Some(got)) => got,
            Ok(None) | Err(Error::Busy { .. }) => return,
            Err(e) => return self.wrong(format!("get of {no}: {e}")),
        };
        let begun = truth.begun.load(Ordering::SeqCst);
        self.hits.fetch_add(1, Ordering::Relaxed);
        match parse(&got) {
            Some((tag, version)) if tag == no as u64 => {
                // Nothing older than what was acknowledged before the read began, or removed, and nothing that
                // was never put.
                if version < acknowledged || version <= removed || version > begun {
                    self.wrong(format!(
                        "{no}: version {version}, acknowledged {acknowledged}, removed {removed}, begun {begun}"
                    ));
                }
            }
            other => self.wrong(format!("{no}: a wrong value: {other:?} of {} bytes", got.len())),
        }
    }

    fn assert_right(&self) {
        let wrong = self.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{:#?}", wrong.iter().take(10).collect::<Vec<_>>());
    }
}

/// Which directories, and how large.
#[derive(Debug, Clone, Copy)]
struct Tiers {
    ssd: u64,
    hdd: u64,
    cold: Option<u64>,
}

fn builder(dir: &Path, tiers: Tiers, persistence: Persistence) -> Builder {
    let mut b = Cache::builder().memory(MIB).persistence(persistence);
    if tiers.ssd > 0 {
        b = b.ssd(dir.join("s"), tiers.ssd * MIB);
    }
    if tiers.hdd > 0 {
        b = b.hdd(dir.join("h"), tiers.hdd * MIB);
    }
    if let Some(limit) = tiers.cold {
        b = b.cold(dir.join("c"));
        if limit > 0 {
            b = b.cold_limit(limit * MIB);
        }
    }
    let s = &mut b.config_mut().storage;
    s.write_buffer = MIB;
    s.segment_size = Some(MIB);
    s.generation_size = Some(MIB);
    s.pack_size = Some(MIB);
    s.migration_bytes_per_second = 1 << 30;
    b
}

/// Runs the load for a while, closes, and checks everything after a reopen.
fn stress(tiers: Tiers, persistence: Persistence, then: Tiers, time: Duration) {
    let dir = common::scratch();
    let cache = builder(dir.path(), tiers, persistence).open().unwrap();
    let load = Load::new(400_000);
    let events = cache.subscribe_with(1 << 20);
    let heard = std::thread::spawn(move || listen(events));
    let threads: Vec<_> = (0..THREADS)
        .map(|n| {
            let (cache, load) = (cache.clone(), load.clone());
            std::thread::spawn(move || load.run(&cache, n as u64))
        })
        .collect();
    let end = Instant::now() + time;
    while Instant::now() < end && !load.stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
    load.stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|t| t.join().unwrap());
    load.assert_right();
    let stats = cache.stats();
    check_all(&cache, &load, None, "before it was closed");
    let started = Instant::now();
    cache.close().unwrap();
    assert!(started.elapsed() < Duration::from_secs(60), "closing took {:?}", started.elapsed());
    drop(cache);
    let heard = heard.join().unwrap();
    assert_eq!(heard.wrong, Vec::<String>::new());
    println!(
        "{tiers:?} {persistence:?}: {} puts, {} busy, {} hits, {} keys evicted, {} containers dropped",
        load.puts.load(Ordering::Relaxed),
        load.busy.load(Ordering::Relaxed),
        load.hits.load(Ordering::Relaxed),
        heard.evicted.len(),
        stats.counts.containers_dropped,
    );
    assert!(load.puts.load(Ordering::Relaxed) > 500, "hardly anything was put");
    if tiers.cold == Some(0) {
        assert!(heard.evicted.is_empty(), "there was room for everything");
    }

    let (cache, events) = builder(dir.path(), then, persistence).open_with_events(1 << 20).unwrap();
    assert_eq!(cache.recovery().lost, 0);
    let mut evicted = heard.evicted;
    check_all(&cache, &load, Some((&mut evicted, &events)), "after a reopen");
    assert!(cache.verify().unwrap().is_clean());
    // It still takes writes.
    for no in 0..KEYS {
        cache.put(key(no), value(no as u64, u64::MAX, 3000)).unwrap();
        assert!(cache.get(key(no)).unwrap().is_some() || no > 0);
    }
    cache.flush().unwrap();
    let within = |cache: &Cache| {
        let stats = cache.stats();
        stats.tiers.iter().flatten().all(|t| t.limit.is_none_or(|limit| t.bytes <= limit))
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !within(&cache) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(within(&cache), "{:?}", cache.stats());
    cache.close().unwrap();
    drop(cache);
    let heard = listen(events);
    assert_eq!(heard.wrong, Vec::<String>::new());
}

/// When keys were evicted, as far as is known, and where it is told; `None`: absence is not looked at.
type Evictions<'a> = Option<(&'a mut HashMap<Vec<u8>, Instant>, &'a Subscription)>;

fn check_all(cache: &Cache, load: &Load, mut evicted: Evictions<'_>, when: &str) {
    for (no, truth) in load.keys.iter().enumerate() {
        let acknowledged = truth.acknowledged.load(Ordering::SeqCst);
        let live = truth.live.load(Ordering::SeqCst);
        match cache.get(key(no)).unwrap() {
            Some(got) => {
                let found = parse(&got);
                assert!(live, "{no}: back after its removal {when}, {found:?}");
                assert_eq!(found, Some((no as u64, acknowledged)), "{no} {when}");
            }
            None => {
                let at = *truth.at.lock().unwrap();
                let heard = |evicted: &Evictions<'_>| {
                    evicted
                        .as_ref()
                        .is_none_or(|(e, _)| e.get(key(no).as_bytes()).is_some_and(|e| Some(*e) >= at))
                };
                // It may also have been evicted since the reopening, which has less room; the event comes a moment
                // after the item is gone.
                let deadline = Instant::now() + Duration::from_secs(10);
                while live && !heard(&evicted) && Instant::now() < deadline {
                    if let Some((evicted, events)) = &mut evicted
                        && let Ok(Received::Event(Event::Evicted { key: Some(key), .. })) =
                            events.recv_timeout(Duration::from_millis(100))
                    {
                        evicted.insert(key.to_vec(), Instant::now());
                    }
                }
                let heard = heard(&evicted);
                assert!(!live || heard, "{no}: version {acknowledged} is missing {when}, without an event");
            }
        }
    }
}

#[test]
fn ssd_alone_too_small() {
    let tiers = Tiers { ssd: 6, hdd: 0, cold: None };
    stress(tiers, Persistence::EverySecond, tiers, Duration::from_secs(4));
}

#[test]
fn all_tiers_too_small() {
    let tiers = Tiers { ssd: 5, hdd: 5, cold: Some(4) };
    stress(tiers, Persistence::EverySecond, tiers, Duration::from_secs(5));
}

#[test]
fn written_on_eviction() {
    let tiers = Tiers { ssd: 5, hdd: 0, cold: Some(4) };
    stress(tiers, Persistence::OnEviction, tiers, Duration::from_secs(4));
}

#[test]
fn always_durable() {
    let tiers = Tiers { ssd: 5, hdd: 0, cold: Some(0) };
    stress(tiers, Persistence::Always, tiers, Duration::from_secs(4));
}

#[test]
fn opened_smaller_than_before() {
    let tiers = Tiers { ssd: 16, hdd: 0, cold: Some(16) };
    let then = Tiers { ssd: 4, hdd: 0, cold: Some(4) };
    stress(tiers, Persistence::EverySecond, then, Duration::from_secs(3));
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
        ("disk", builder(&dir.path().join("1"), tiers, Persistence::EverySecond).open().unwrap()),
        ("always", builder(&dir.path().join("2"), tiers, Persistence::Always).open().unwrap()),
    ] {
        cache.put("count", value(0, 0, 50)).unwrap();
        let won = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for n in 0..THREADS as u64 {
                let (cache, won) = (&cache, &won);
                scope.spawn(move || {
                    for i in 0..EACH {
                        loop {
                            let entry = cache.get_entry("count").unwrap().unwrap();
                            let (_, count) = parse(&entry.value).unwrap();
                            let next = value(0, count + 1, 50);
                            if cache.put_if_version("count", next, entry.version, PutOptions::new()).unwrap()
                            {
                                break;
                            }
                        }
                        if n == 0 && i % 8 == 0 && name != "memory" {
                            cache.demote("count", Tier::Cold).unwrap();
                        }
                        let put = cache.put_if_absent(format!("once/{i}"), "it", PutOptions::new());
                        won.fetch_add(usize::from(put.unwrap()), Ordering::SeqCst);
                    }
                });
            }
        });
        let count = parse(&cache.get("count").unwrap().unwrap()).unwrap().1;
        assert_eq!(count, EACH * THREADS as u64, "{name}");
        assert_eq!(won.into_inner(), EACH as usize, "{name}");
    }
}

/// However many ask for an absent key, one makes it at a time; a removal meanwhile voids what is made.
#[test]
fn one_maker_at_a_time() {
    const ABSENT: usize = 24;
    let dir = common::scratch();
    let cache = builder(dir.path(), Tiers { ssd: 5, hdd: 0, cold: Some(4) }, Persistence::EverySecond);
    let cache = cache.open().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let making: Arc<Vec<AtomicUsize>> = Arc::new((0..ABSENT).map(|_| AtomicUsize::new(0)).collect());
    let made: Arc<Vec<AtomicU64>> = Arc::new((0..ABSENT).map(|_| AtomicU64::new(0)).collect());
    let wrong = Arc::new(Mutex::new(Vec::new()));
    let removals = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|n| {
            let (cache, stop, making, made) = (cache.clone(), stop.clone(), making.clone(), made.clone());
            let (wrong, removals) = (wrong.clone(), removals.clone());
            std::thread::spawn(move || {
                let mut rng = Rng::new(n as u64 + 100);
                while !stop.load(Ordering::Relaxed) {
                    let no = rng.below(ABSENT as u64) as usize;
                    if n == 0 && rng.below(4) == 0 {
                        // What is made before the removal begins must not be seen after it.
                        let before = made[no].load(Ordering::SeqCst);
                        cache.remove(key(no)).unwrap();
                        removals.fetch_add(1, Ordering::Relaxed);
                        if let Some(got) = cache.get(key(no)).unwrap() {
                            let version = parse(&got).map_or(0, |(_, v)| v);
                            if version <= before {
                                wrong
                                    .lock()
                                    .unwrap()
                                    .push(format!("{no}: {version} after a removal at {before}"));
                            }
                        }
                        continue;
                    }
                    let got = cache.get_or_put_with(key(no), || {
                        let others = making[no].fetch_add(1, Ordering::SeqCst);
                        // After a removal a new maker may begin while the voided one goes on; never more than
                        // there were removals.
                        if others > 0 && removals.load(Ordering::SeqCst) == 0 {
                            wrong.lock().unwrap().push(format!("{no}: {others} makers more"));
                        }
                        let version = made[no].fetch_add(1, Ordering::SeqCst) + 1;
                        let len = rng.below(3000) as usize;
                        std::thread::yield_now();
                        making[no].fetch_sub(1, Ordering::SeqCst);
                        Ok::<_, std::io::Error>(value(no as u64, version, len))
                    });
                    let got = got.unwrap();
                    if parse(&got).map(|(tag, _)| tag) != Some(no as u64) {
                        wrong.lock().unwrap().push(format!("{no}: a wrong value"));
                    }
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(3));
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(*wrong.lock().unwrap(), Vec::<String>::new());
    assert!(removals.load(Ordering::Relaxed) > 20);
}

/// Without removals there is exactly one maker a key, whatever the number of callers.
#[test]
fn eight_callers_and_one_maker() {
    let dir = common::scratch();
    let cache = builder(dir.path(), Tiers { ssd: 5, hdd: 0, cold: None }, Persistence::EverySecond);
    let cache = cache.open().unwrap();
    let made = Arc::new(AtomicUsize::new(0));
    for round in 0..100 {
        let barrier = Arc::new(Barrier::new(THREADS));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (cache, made, barrier) = (cache.clone(), made.clone(), barrier.clone());
                std::thread::spawn(move || {
                    barrier.wait();
                    cache
                        .get_or_put_with(format!("round/{round}"), || {
                            made.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(Duration::from_millis(2));
                            Ok::<_, std::io::Error>(value(round, 1, 100))
                        })
                        .unwrap()
                })
            })
            .collect();
        for t in threads {
            assert_eq!(t.join().unwrap(), value(round, 1, 100));
        }
        assert_eq!(made.load(Ordering::SeqCst), round as usize + 1);
    }
    assert_eq!(cache.stats().counts.made, 100);
}

/// A removal, a put or a clear while a value is made: it goes to who waits, and is not cached.
#[test]
fn what_happens_meanwhile_voids_what_is_made() {
    let dir = common::scratch();
    let stores = [
        Cache::builder().memory(MIB).open().unwrap(),
        builder(dir.path(), Tiers { ssd: 5, hdd: 0, cold: None }, Persistence::EverySecond).open().unwrap(),
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
