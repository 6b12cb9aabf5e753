//! Hit ratios: on a synthetic load with scans, and on real traces where they are.

use super::*;
use std::io::Read as _;

/// The directory of access traces.
const TRACES: &str = "THERMOCLINE_TRACES";

fn share(requests: impl Iterator<Item = u64>, items: u64, policy: MemoryPolicy, setting: Setting) -> f64 {
    let t = tier(1 << 40, items, policy, None);
    t.set_setting(setting);
    let (mut hits, mut all, mut out) = (0u64, 0u64, Vec::new());
    for i in requests {
        all += 1;
        let key = i.to_le_bytes();
        match t.get(ident(i), &key, 0) {
            Lookup::Hit(_) => hits += 1,
            _ => {
                t.insert(NewEntry { force: false, ..new(&key, i, Bytes::new()) }, 0, &mut out);
                out.clear();
            }
        }
    }
    hits as f64 / all as f64
}

/// Requests of an ARC `.lis` trace: start, count, two numbers that do not matter; `count` consecutive blocks.
fn lis(text: &str) -> Vec<u64> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().map_while(|f| f.parse::<u64>().ok());
            Some((fields.next()?, fields.next()?))
        })
        .flat_map(|(start, count)| start..start + count)
        .collect()
}

fn distinct(requests: &[u64]) -> u64 {
    requests.iter().collect::<std::collections::HashSet<_>>().len() as u64
}

#[test]
fn adaptive_beats_lru_on_real_traces() {
    let Some(folder) = std::env::var_os(TRACES) else {
        eprintln!("skipped: {TRACES} does not name a directory of traces");
        return;
    };
    let file = std::fs::File::open(std::path::Path::new(&folder).join("OLTP.lis.gz")).unwrap();
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
    let requests = lis(&text);
    assert_eq!((requests.len(), distinct(&requests)), (914_145, 186_880), "the trace is read as it is meant");
    let mut lead = 0.0;
    for percent in [1, 5, 20] {
        let items = 186_880 * percent / 100;
        let run = |policy| share(requests.iter().copied(), items, policy, Setting::START);
        let (adaptive, lru) = (run(MemoryPolicy::Adaptive), run(MemoryPolicy::Lru));
        eprintln!("{percent} %: adaptive {adaptive:.4}, lru {lru:.4}");
        assert!(adaptive > lru - 0.02, "at {percent} %: {adaptive} against {lru}");
        lead += adaptive - lru;
    }
    assert!(lead >= 0.0, "behind by {} on the average", -lead / 3.0);
}

/// Zipf-like requests over 20,000 keys (those below 2^32), with a scan of 4,000 keys that never come back after
/// each 4,000.
fn with_scans() -> impl Iterator<Item = u64> {
    let mut x = 42u64;
    let mut scanned = 1 << 32;
    (0..400_000u64).map(move |n| {
        if n / 4000 % 2 == 1 {
            scanned += 1;
            return scanned;
        }
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let u = (x >> 11) as f64 / (1u64 << 53) as f64;
        // The inverse of the distribution with density 1/x on [1, 20000].
        20_000f64.powf(u) as u64
    })
}

#[test]
fn adaptive_resists_scans() {
    // Scanned keys are half of the requests and are never hit.
    let run = |policy| 2.0 * share(with_scans(), 1000, policy, Setting::START);
    let (adaptive, lru) = (run(MemoryPolicy::Adaptive), run(MemoryPolicy::Lru));
    assert!(adaptive > lru + 0.08, "{adaptive} against {lru}");
    // The best 1,000 of 20,000 keys draw ln(1000) / ln(20000) = 0.70.
    assert!(adaptive > 0.62, "{adaptive} of at most 0.70");
}
