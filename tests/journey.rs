//! One item through every tier, down and up again, moved by what is asked for and by nothing else.

#![cfg(test)]

mod common;

use common::{Dice, value};
use std::sync::Arc;
use thermocline::testing::{ManualClock, vfs::RealFs};
use thermocline::{Builder, Cache, Event, Received, Subscription, Tier};

const MIB: u64 = 1 << 20;
const SIZE: usize = 20_000;

struct Store {
    builder: Builder,
    clock: Arc<ManualClock>,
    cache: Cache,
    events: Subscription,
    others: u64,
    dice: Dice,
}

impl Store {
    fn open(dir: &std::path::Path) -> Store {
        let mut builder = Cache::builder()
            .memory(MIB)
            .ssd(dir.join("s"), 6 * MIB)
            .hdd(dir.join("h"), 8 * MIB)
            .cold(dir.join("c"));
        builder.config_mut().resources.io.write_buffer_size = MIB;
        let s = &mut builder.config_mut().storage;
        s.segment_size = Some(MIB);
        s.generation_size = Some(MIB);
        s.pack_size = Some(MIB);
        s.migration_bytes_per_second = 1 << 40;
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let builder = builder.world(Arc::new(RealFs), clock.clone(), false);
        let cache = builder.clone().open().unwrap();
        let events = cache.subscribe();
        Store { builder, clock, cache, events, others: 0, dice: Dice::new(1) }
    }

    fn reopen(&mut self) {
        self.cache.close().unwrap();
        self.cache = Cache::builder().memory(MIB).open().unwrap();
        self.cache = self.builder.clone().open().unwrap();
        self.events = self.cache.subscribe();
    }

    /// Other items come and are asked for, a few of them again and again.
    fn others_come(&mut self) {
        for _ in 0..20 {
            self.others += 1;
            let no = self.others;
            self.cache.put(format!("other/{no}"), value(no, 1, SIZE)).unwrap();
            for _ in 0..3 {
                let hot = no.saturating_sub(self.dice.below(40)).max(1);
                self.cache.get(format!("other/{hot}")).unwrap();
            }
        }
        self.clock.advance(1000);
        self.cache.step().unwrap();
    }

    /// Items that nobody asked for lately are asked for once, which leaves memory with nothing else.
    fn others_are_read(&mut self) {
        for _ in 0..360 {
            let no = 1 + self.dice.below(self.others);
            self.cache.get(format!("other/{no}")).unwrap();
        }
        self.clock.advance(1000);
        self.cache.step().unwrap();
    }

    fn tier(&self) -> Tier {
        self.cache.tier_of("traveller").unwrap().expect("the traveller is lost")
    }

    /// Moves of the traveller since the last call.
    fn moves(&self) -> Vec<(Tier, Tier)> {
        let mut moves = Vec::new();
        while let Ok(received) = self.events.try_recv() {
            match received {
                Received::Event(
                    Event::Demoted { key: Some(k), from, to } | Event::Promoted { key: Some(k), from, to },
                ) if k == "traveller" => {
                    moves.push((from, to));
                }
                Received::Event(Event::Promoted { .. } | Event::Demoted { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        moves
    }
}

#[test]
fn down_through_every_tier_and_up_again_by_access_alone() {
    let dir = common::scratch();
    let mut store = Store::open(dir.path());
    let bytes = value(0, 2, SIZE);
    store.cache.put("traveller", bytes.clone()).unwrap();
    assert_eq!(store.tier(), Tier::Memory);

    // Down.
    for (above, tier) in [(Tier::Memory, Tier::Ssd), (Tier::Ssd, Tier::Hdd), (Tier::Hdd, Tier::Cold)] {
        let mut rounds = 0;
        while store.tier() == above {
            store.others_come();
            let moves = store.moves();
            assert!(moves.iter().all(|(from, to)| to > from), "it went up: {moves:?}");
            rounds += 1;
            assert!(rounds < 400, "it stays in {above}");
        }
        assert_eq!(store.tier(), tier);
        store.reopen();
        assert_eq!(store.tier(), tier, "after a reopen");
        assert_eq!(store.cache.get_entry("traveller").unwrap().unwrap().tier, tier);
        assert_eq!(store.cache.get("traveller").unwrap().as_ref(), Some(&bytes));
        store.reopen();
        assert_eq!(store.tier(), tier, "after being read once and a reopen");
        println!("{tier} after {rounds} rounds, {} others", store.others);
    }

    // Up: asked for now and then, among others, it comes to memory at once and to the SSD as soon as it is known to
    // be asked for again. Until then its place is the cold one, whatever memory holds.
    let mut rounds = 0;
    let mut seen = Vec::new();
    let mut reopened = false;
    while !seen.contains(&(Tier::Cold, Tier::Ssd)) {
        let before = store.tier();
        assert!(matches!(before, Tier::Memory | Tier::Cold), "after {rounds} uses it is in {before}");
        let entry = store.cache.get_entry("traveller").unwrap().unwrap();
        assert_eq!(entry.value, bytes);
        assert_eq!(entry.tier, before, "use {rounds}");
        let after = store.tier();
        let moved = store.moves();
        let come = moved == [(Tier::Cold, Tier::Memory)];
        assert!(come || moved.is_empty(), "use {rounds}: {moved:?}");
        assert_eq!(after, if come { Tier::Memory } else { before }, "use {rounds}: {moved:?}");
        seen.extend(moved);
        if !reopened && after == Tier::Memory {
            // A step up that writes nothing: after a reopen it is where it was.
            store.reopen();
            assert_eq!(store.tier(), Tier::Cold, "after a reopen");
            reopened = true;
        }
        store.others_are_read();
        seen.extend(store.moves());
        rounds += 1;
        assert!(rounds < 40, "it stays down: {seen:?}, {}", store.tier());
    }
    assert!(reopened, "it was never in memory: {seen:?}");
    println!("up after {rounds} uses");
    assert_eq!(seen.first(), Some(&(Tier::Cold, Tier::Memory)), "{seen:?}");
    let (to_memory, on_disk): (Vec<_>, Vec<_>) =
        seen.iter().copied().partition(|(_, to)| *to == Tier::Memory);
    assert!(to_memory.iter().all(|(from, _)| *from == Tier::Cold), "{seen:?}");
    assert_eq!(on_disk, [(Tier::Cold, Tier::Ssd)]);
    store.reopen();
    assert_eq!(store.tier(), Tier::Ssd);
    assert_eq!(store.cache.get_entry("traveller").unwrap().unwrap().tier, Tier::Ssd);
    assert_eq!(store.cache.get("traveller").unwrap().as_ref(), Some(&bytes));
    assert_eq!(store.cache.get("traveller").unwrap().as_ref(), Some(&bytes));
    assert_eq!(store.tier(), Tier::Memory);
    assert_eq!(store.moves(), [(Tier::Ssd, Tier::Memory)]);
    store.reopen();
    assert_eq!(store.tier(), Tier::Ssd, "what memory held besides is no place of its own");
    assert_eq!(store.cache.get("traveller").unwrap().as_ref(), Some(&bytes));
    assert!(store.cache.verify().unwrap().is_clean());
}
