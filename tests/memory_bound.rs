//! Memory stays within the sum of what was configured, 20 % and 32 MiB, under a load that asks for far more.
//!
//! The load runs in a process of its own, so that nothing else of the tests counts. `cargo bench --bench memory` runs
//! more of them, and shows what an allocator left as it is adds.

#![cfg(test)]

mod common;
#[path = "../benches/memory/load.rs"]
mod load;

use load::{Load, MIB, SMALL};
use std::time::Duration;
use thermocline::Persistence;

const CHILD: &str = "THERMOCLINE_MEMORY_BOUND_CHILD";

fn stays_within(test: &str, load: Load) {
    if std::env::var_os(CHILD).is_some() {
        let dir = common::scratch();
        let taken = load.run(dir.path(), Duration::from_secs(8)).unwrap();
        println!(
            "{}: at most {} of {} bytes (catalog {})",
            load.name, taken.most, taken.bound, taken.catalog
        );
        assert!(taken.put > 64 * MIB, "the load was too small to tell: {taken:?}");
        assert!(taken.most <= taken.bound, "{taken:?}");
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&child.stdout));
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

#[test]
fn anonymous_memory_stays_within_the_limits() {
    stays_within("anonymous_memory_stays_within_the_limits", SMALL);
}

#[test]
fn and_where_values_are_written_when_memory_evicts_them() {
    let load = Load { name: "OnEviction", persistence: Persistence::OnEviction, ..SMALL };
    stays_within("and_where_values_are_written_when_memory_evicts_them", load);
}
