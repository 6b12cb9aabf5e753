//! What the optimizer gives back of freed memory, measured by what the system says this process takes: in a process of its
//! own, for all memory of a process counts.

#![cfg(test)]
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::time::Duration;
use thermocline::Cache;
use thermocline::optimizer::Change;
use thermocline::sensors::{Readings, Sensors, SystemSensors};

const MIB: u64 = 1 << 20;

/// The process as it is, on a machine that has 16 GiB, at seconds that are counted.
struct Given(SystemSensors, u64);

impl Sensors for Given {
    fn sample(&mut self) -> Readings {
        let mut r = Readings::default();
        r.process = self.0.sample().process;
        self.1 += 10;
        (r.monotonic, r.boot) = (Duration::from_secs(self.1), Duration::from_secs(self.1));
        r.memory.limit = Some(16 << 30);
        r.memory.available = Some(8 << 30);
        r
    }
}

/// Bytes of anonymous memory that is resident.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn what_lies_free_between_what_is_in_use_goes_back_to_the_system() {
    let mut builder = Cache::builder().memory(16 << 20).sensors(Given(SystemSensors::new([""; 0]), 0));
    builder.config_mut().optimizer.enabled = false;
    let cache = builder.open().unwrap();
    cache.put("k", "v").unwrap();
    // 256 MiB in pieces of 4,000 bytes, of which one in a hundred stays: hardly a page of the rest is in use, and none of it
    // is at the heap's end, where the allocator would give it back by itself.
    let mut pieces: Vec<Option<Box<[u8]>>> =
        (0..65_000).map(|n: u32| Some(vec![n as u8; 4_000].into_boxed_slice())).collect();
    assert!(cache.optimizer().run_once().unwrap().is_none(), "nothing to compare with");
    pieces.iter_mut().enumerate().filter(|(n, _)| n % 100 != 99).for_each(|(_, piece)| *piece = None);
    let before = anonymous();
    assert!(before > 200 * MIB, "the allocator kept {before}");
    let record = cache.optimizer().run_once().unwrap().expect("a turn");
    let trim = record.outcomes.iter().find(|o| o.action.change == Change::TrimAllocator);
    let trim = trim.unwrap_or_else(|| panic!("{:?}", record.sample));
    assert_eq!(trim.result, Ok(()));
    let after = anonymous();
    assert!(after < before - 150 * MIB, "{before} bytes, and then {after}");
    assert!(pieces.iter().flatten().all(|p| p.len() == 4_000));
    assert_eq!(cache.get("k").unwrap().as_deref(), Some(&b"v"[..]));
}
