//! What must hold of a damaged store.

use crate::common;
use crate::harm::Case;
use crate::store::{Expected, Rest, builder};
use std::collections::BTreeSet;
use std::sync::Arc;
use thermocline::{Cache, Event, Received, Subscription};
use thermocline_storage::sim::SimFs;

type Check<T = ()> = Result<T, String>;

thermocline_testing::counts! {
    /// How much happened.
    pub struct Told {
        ran,
        /// Cases in which nothing was lost.
        whole,
        /// Items that were absent, over all cases.
        absent,
        /// Of them, told of by an event with the key; counted by the opening; found by `verify`.
        named,
        lost,
        verified,
        /// Cases in which the store was written to afterwards and opened again.
        went_on,
    }
}

/// Damages a copy of the store and looks at it.
pub fn case(rest: &Rest, case: &Case, goes_on: bool, told: &mut Told) -> Check {
    let disk = rest.disk();
    case.apply(&disk);
    let (cache, events) = open(&disk)?;
    let absent = read(&cache, &rest.expected)?;
    let hit = case.hit();
    let may: BTreeSet<&str> = rest
        .records
        .iter()
        .filter(|(path, at, _)| *path == *case.path && at.start < hit.end && hit.start < at.end)
        .map(|(.., key)| key.as_str())
        .collect();
    if let Some(key) = absent.iter().find(|k| !may.contains(k.as_str())) {
        return Err(format!("{key} is absent, but its record was not hit; {:?}", drain(&events)));
    }
    reported(&cache, &events, &absent, told)?;
    told.absent += absent.len() as u64;
    told.whole += u64::from(absent.is_empty());
    if goes_on {
        told.went_on += 1;
        go_on(&disk, cache, rest, &absent)?;
    } else {
        cache.crash();
    }
    Ok(())
}

/// More than one case has; they take room for each opening.
const EVENTS: usize = 250;

fn open(disk: &SimFs) -> Check<(Cache, Subscription)> {
    let opened = builder(Arc::new(disk.clone()), Rest::clock()).open_with_events(EVENTS);
    opened.map_err(|e| format!("it does not open: {e}"))
}

/// Reads every key, and gives those that are absent and were not before. Anything but the right value is an error.
pub fn read(cache: &Cache, expected: &Expected) -> Check<BTreeSet<String>> {
    let mut absent = BTreeSet::new();
    for (key, value) in expected {
        match (cache.get(key).map_err(|e| format!("get {key}: {e}"))?, value) {
            (None, None) => {}
            (None, Some(_)) => _ = absent.insert(key.clone()),
            (Some(got), Some(value)) if got == *value => {}
            (Some(got), Some(_)) => return Err(format!("{key} is {:?}", common::parse(&got))),
            (Some(got), None) => return Err(format!("{key} came back: {:?}", common::parse(&got))),
        }
    }
    Ok(absent)
}

fn drain(events: &Subscription) -> Vec<Event> {
    let mut all = Vec::new();
    while let Ok(received) = events.try_recv() {
        match received {
            Received::Event(e) => all.push(e),
            more => panic!("events are missing: {more:?}"),
        }
    }
    all
}

/// Every absent item was told of: by its key, or in a count.
pub fn reported(cache: &Cache, events: &Subscription, absent: &BTreeSet<String>, told: &mut Told) -> Check {
    if absent.is_empty() {
        return Ok(());
    }
    let mut named = BTreeSet::new();
    let mut lost = 0;
    let heard = drain(events);
    for event in &heard {
        match event {
            Event::Quarantined { key: Some(key), .. } => {
                named.insert(String::from_utf8_lossy(key).into_owned());
            }
            Event::Lost { items, .. } => lost += items,
            _ => {}
        }
    }
    let recovered = cache.recovery().lost;
    if recovered < lost {
        return Err(format!("events tell of {lost} lost items, and the opening of {recovered}"));
    }
    let unnamed = absent.iter().filter(|k| !named.contains(*k)).count() as u64;
    told.named += absent.len() as u64 - unnamed;
    told.lost += unnamed.min(recovered);
    let left = unnamed.saturating_sub(recovered);
    if left > 0 {
        let report = cache.verify().map_err(|e| format!("verify: {e}"))?;
        let found = (report.damaged.len() + report.unreachable.len()) as u64;
        if found < left {
            return Err(format!("{absent:?} absent, of which {left} nobody told: {heard:?}, {report:?}"));
        }
        told.verified += left;
    }
    Ok(())
}

/// The store takes what is written to it, and has it and everything else after it was closed and opened again.
fn go_on(disk: &SimFs, cache: Cache, rest: &Rest, absent: &BTreeSet<String>) -> Check {
    let mut expected = rest.expected.clone();
    for key in absent {
        expected.insert(key.clone(), None);
    }
    // A new key, one that is there, one that was removed, and one that the damage cost.
    let old = expected.iter().find(|(_, v)| v.is_some()).map(|(k, _)| k.clone());
    let dead = rest.expected.iter().find(|(_, v)| v.is_none()).map(|(k, _)| k.clone());
    let lost = absent.first().cloned();
    for (n, key) in [Some("after".to_owned()), old, dead, lost].into_iter().flatten().enumerate() {
        let value = common::value(n as u64, 1_000, 80);
        cache.put(&key, value.clone()).map_err(|e| format!("put {key} after the damage: {e}"))?;
        expected.insert(key, Some(value));
    }
    cache.flush().map_err(|e| format!("flush after the damage: {e}"))?;
    cache.step().map_err(|e| format!("a step after the damage: {e}"))?;
    let report = cache.verify().map_err(|e| format!("verify: {e}"))?;
    if !report.damaged.is_empty() || !report.unreachable.is_empty() {
        return Err(format!("everything was read, and still there is damage: {report:?}"));
    }
    let gone = read(&cache, &expected)?;
    if !gone.is_empty() {
        return Err(format!("{gone:?} went while the store went on"));
    }
    cache.close().map_err(|e| format!("close after the damage: {e}"))?;
    let (cache, events) = open(disk)?;
    let gone = read(&cache, &expected)?;
    if !gone.is_empty() {
        return Err(format!("{gone:?} is absent after another opening: {:?}", drain(&events)));
    }
    let keys: BTreeSet<String> = cache
        .keys("")
        .map(|k| k.map(|k| String::from_utf8_lossy(&k).into_owned()).map_err(|e| format!("keys: {e}")))
        .collect::<Check<_>>()?;
    let live: BTreeSet<String> =
        expected.iter().filter(|(_, v)| v.is_some()).map(|(k, _)| k.clone()).collect();
    if keys != live {
        return Err(format!("the keys are {keys:?}, not {live:?}"));
    }
    cache.close().map_err(|e| format!("close: {e}"))
}
