//! Stores that run out of numbers for containers, for tests. What they write is theirs.

use super::testkit::Try;
use crate::Cache;
use std::ops::Range;
use thermocline_storage::container::Purpose;

/// So many bytes that look random.
pub(super) fn value(n: u64, len: u64) -> Vec<u8> {
    let byte = |i: u64| {
        let mixed = (n * 1_000_000 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56) as u8
    };
    (0..len).map(byte).collect()
}

/// Puts the items of each range, of so many bytes, into containers of their own.
pub(super) fn scatter(cache: &Cache, ranges: impl IntoIterator<Item = Range<u64>>, len: u64) -> Try {
    for range in ranges {
        for n in range {
            cache.put(format!("{n}"), value(n, len))?;
        }
        cache.flush()?;
        for tier in &cache.engine().tiers {
            tier.seal()?;
        }
    }
    Ok(())
}

/// All numbers but those that are kept for reclaim are taken by others.
pub(super) fn take_all_numbers(cache: &Cache) {
    while cache.engine().catalog.containers.reserve(Purpose::Write).is_ok() {}
}
