//! The priority of the threads: in a process of its own, whose threads are those of one store.

#![cfg(test)]
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use thermocline::Cache;

/// The nice values of this process's threads, by name, of which the system keeps fifteen letters.
fn threads() -> BTreeMap<String, i32> {
    let mut found = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        // One may end while it is looked at.
        let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
        let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(')').unwrap();
        // The nineteenth field is the nice value; behind the name comes the third.
        let nice = rest.split_whitespace().nth(16).unwrap().parse().unwrap();
        found.insert(name.to_owned(), nice);
    }
    found
}

#[test]
fn background_threads_yield_and_those_that_callers_wait_for_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = Cache::builder()
        .memory(16 << 20)
        .ssd(dir.path().join("s"), 64 << 20)
        .hdd(dir.path().join("h"), 64 << 20)
        .cold(dir.path().join("c"));
    let own = threads().values().copied().min().unwrap();
    if own >= 7 {
        thermocline_testing::skipped("the priority of the threads: the test itself has been given a low one");
        return;
    }
    builder.config_mut().resources.cpu.priority_nice = 7;
    let cache = builder.open().unwrap();
    cache.put("k", "v").unwrap();
    cache.flush().unwrap();
    let background = ["thermocline-mov", "thermocline-sin", "thermocline-kee", "thermocline-tun"];
    let until = Instant::now() + Duration::from_secs(30);
    let others = ["thermocline-wri", "thermocline-hdd"];
    // Each has its name, and lowers itself, when it first runs.
    let all = loop {
        let all = threads();
        let lowered = background.iter().all(|name| all.get(*name) == Some(&7));
        if lowered && others.iter().all(|name| all.contains_key(*name)) {
            break all;
        }
        assert!(Instant::now() < until, "{all:?}");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(all.get("thermocline-wri"), Some(&own), "callers wait for the writer: {all:?}");
    assert_eq!(all.get("thermocline-hdd"), Some(&own), "reads wait for the index that it opens: {all:?}");
}
