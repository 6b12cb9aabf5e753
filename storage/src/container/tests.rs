//! Numbers of containers, and when they are free again.

use super::table::{FOR_RECLAIM, MOST};
use super::*;
use crate::testing::Hollow;

#[test]
fn a_number_is_reused_only_when_nobody_holds_the_entry() {
    let c = Containers::new(1);
    let r = c.reserve(Purpose::Write).unwrap();
    let held = c.publish(r, Tier::Ssd, 0, 0, Arc::new(Hollow(1000)));
    let entry = c.remove(r.no).unwrap();
    c.release(entry.no, Arc::downgrade(&entry));
    drop(entry);
    assert_ne!(c.reserve(Purpose::Write).unwrap().no, r.no, "a reader still holds it");
    drop(held);
    let again = c.reserve(Purpose::Write).unwrap();
    assert_eq!(again.no, r.no);
    assert_ne!(again.id, r.id, "ids are never reused");
}

#[test]
fn attached_numbers_are_not_handed_out() {
    let c = Containers::new(2);
    let known =
        Known { no: 3, id: 9, tier: Tier::Hdd, dir: 0, created_ms: 0, records: 4, earliest_expiry: u64::MAX };
    c.attach(known, Arc::new(Hollow(1000)));
    let mut seen: Vec<_> = (0..4).map(|_| c.reserve(Purpose::Write).unwrap().no).collect();
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 4]);
    c.add_live(Place::new(3, 0).unwrap(), 2);
    assert_eq!(c.get(3).unwrap().live_bytes(), 500);
}

/// Takes so many numbers for reclaim.
fn take(c: &Containers, count: usize) -> Vec<Reserved> {
    (0..count).map(|_| c.reserve(Purpose::Reclaim).unwrap()).collect()
}

#[test]
fn numbers_that_only_rest_are_not_in_use() {
    let c = Containers::new(1);
    let entry = |r: Reserved| c.publish(r, Tier::Ssd, 0, 0, Arc::new(Hollow(1)));
    let drop_it = |r: Reserved| {
        let entry = entry(r);
        c.remove(r.no);
        c.release(r.no, Arc::downgrade(&entry));
    };
    let all = take(&c, MOST as usize);
    assert!(matches!(c.reserve(Purpose::Reclaim), Err(Error::NoNumber { .. })));
    let (few, many) = all.split_at(10);
    few.iter().for_each(|r| drop_it(*r));
    assert!(matches!(c.reserve(Purpose::Write), Err(Error::NoNumber { .. })), "those are for reclaim");
    // Some are free now, though too few. What is dropped later counts all the same.
    many.iter().take(FOR_RECLAIM).for_each(|r| drop_it(*r));
    let mut written = 0;
    while c.reserve(Purpose::Write).is_ok() {
        written += 1;
    }
    assert_eq!(written, 10);
    assert_eq!(take(&c, FOR_RECLAIM).len(), FOR_RECLAIM);
}

#[test]
fn counts_are_those_of_the_tiers_across_the_whole_table() {
    let c = Containers::new(1);
    assert!(c.counts().is_empty());
    // More than is counted at a time, and gaps.
    let mut live = [0; 2];
    for (n, r) in take(&c, 3_000).into_iter().enumerate() {
        if n % 3 == 0 {
            continue;
        }
        let tier = if n % 2 == 0 { Tier::Ssd } else { Tier::Cold };
        c.publish(r, tier, 0, 0, Arc::new(Hollow(1)));
        c.add_live(Place::new(r.no, 0).unwrap(), 3);
        live[n % 2] += 3;
    }
    let counts = c.counts();
    assert_eq!(counts.len(), 2);
    for (tier, live) in [(Tier::Ssd, live[0]), (Tier::Cold, live[1])] {
        let containers = c.of_tier(tier).len() as u64;
        assert_eq!(counts[&tier], Counted { containers, live }, "{tier:?}");
    }
    assert_eq!(counts.values().map(|c| c.containers).sum::<u64>(), c.all().len() as u64);
}
