//! What is said of a store, as JSON.

use super::answer::Answer;
use super::document;
use super::frame::{self, Kind};
use crate::engine::Cursor;
use crate::optimizer::{self, Effect, Goal, Outcome, Policy, Record, Sample, State};
use crate::{Cache, Tier};
use serde_json::Value;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// From the distributions follow the percentiles that the numbers say.
#[test]
fn the_figures_of_a_store_are_those_of_its_stats() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder().root(dir.path()).socket(false).open().unwrap();
    for no in 0..3_000 {
        cache.put(format!("key {no}"), vec![7; 500]).unwrap();
        cache.get(format!("key {no}")).unwrap();
    }
    cache.flush().unwrap();
    let stats = cache.stats();
    let said = document::stat(&stats);
    assert_eq!(said["items"], 3_000);
    assert_eq!(said["tiers"]["ssd"]["limit"].as_u64(), stats.tier(Tier::Ssd).and_then(|t| t.limit));
    assert_eq!(said["numbers"]["puts_total"], 3_000.0);
    let puts = said["distributions"]["put_seconds"].as_array().unwrap();
    let count: u64 = puts.iter().map(|entry| entry[1].as_u64().unwrap()).sum();
    assert_eq!((count, count > 100), (stats.latency.put.count, true));
    let mut below = 0;
    let median = puts.iter().find(|entry| {
        below += entry[1].as_u64().unwrap();
        2 * below >= count
    });
    assert_eq!(median.and_then(|entry| entry[0].as_u64()), Some(stats.latency.put.p50_ns()));
    let ends: Vec<u64> = puts.iter().map(|entry| entry[0].as_u64().unwrap()).collect();
    assert!(ends.is_sorted() && ends.len() > 1, "{ends:?}");
    // A directory's latencies would be many, and are in the metrics.
    assert!(said["distributions"].as_object().unwrap().keys().all(|name| !name.contains("directory")));
    assert!(!said.to_string().contains("key 1"));
}

#[test]
fn a_turn_of_the_optimizer_says_what_was_done_and_why() {
    let mut sample = Sample::default();
    (sample.cpu_percent, sample.io_pressure) = (Some(95.0), Some(0.9));
    let policy = Policy::default();
    let first = optimizer::decide(&sample, &State::default(), &policy);
    let decision = optimizer::decide(&sample, &first.state, &policy);
    let outcomes: Vec<Outcome> = decision
        .actions
        .iter()
        .map(|action| Outcome { action: action.clone(), result: Err("no room".into()) })
        .collect();
    assert!(!outcomes.is_empty());
    let effects = vec![Effect { goal: Goal::Tail, before: Some(0.5), after: None }];
    let record = Record { unix_ms: 7, sample, decision, outcomes, effects };
    let said = document::turns(&[record]);
    let turn = &said[0];
    assert_eq!((&turn["unix_ms"], &turn["strategy"]), (&7.into(), &"aggressive".into()));
    assert!(turn["pressure"].as_f64().is_some_and(|p| p > 0.8), "{turn}");
    let action = &turn["actions"][0];
    assert_eq!(action["change"], "strategy: balanced → aggressive", "{turn}");
    assert!(action["because"].as_str().is_some_and(|b| !b.is_empty()));
    assert_eq!(action["error"], "no room");
    assert_eq!(action["takes_back"], false);
    let inputs = &turn["inputs"];
    assert_eq!((&inputs["cpu"], &inputs["io"], &inputs["memory"]), (&0.95.into(), &0.9.into(), &Value::Null));
    assert_eq!((&inputs["gets"], &inputs["hit_shares"]), (&0.into(), &serde_json::json!({})));
    assert_eq!(
        turn["effects"],
        serde_json::json!([{ "goal": "seconds of 99 of 100 requests", "before": 0.5, "after": null }])
    );
}

/// Whoever asks gives up what says nothing for half a minute: a disk that is slow says that there is more to come.
#[test]
fn a_page_that_takes_long_is_heard_of_all_the_while() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder().root(dir.path()).socket(false).open().unwrap();
    for no in 0..30 {
        cache.put(format!("key {no}"), "v").unwrap();
    }
    cache.flush().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|s| {
        s.spawn(|| {
            // It is looked before each record whether to stop: so slow is each.
            let slow = || {
                std::thread::sleep(Duration::from_millis(60));
                false
            };
            let to = Answer { stream: &theirs, stop: &slow };
            to.list(cache.engine(), b"", Cursor::START).unwrap();
        });
        let (mut beats, mut items) = (0, 0);
        loop {
            let (kind, body) = frame::read(&ours, 1 << 20, Duration::from_secs(20)).unwrap();
            let value: Value = serde_json::from_slice(&body).unwrap();
            match (kind, value["items"].as_array().map(Vec::len)) {
                (Kind::Part, Some(0)) => beats += 1,
                (Kind::Part, Some(n)) => items += n,
                (Kind::End, _) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(beats > 0 && items > 0, "{beats} {items}");
    });
}
