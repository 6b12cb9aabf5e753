//! Rates by a clock that is given, and by the machine's where it takes a whole move.

use super::*;
use crate::Cache;
use crate::engine::moves::Mover;
use crate::engine::testkit::{self, MIB, Try, act, builder, fill, open};
use crate::optimizer::Change;
use thermocline_storage::container::Purpose;

/// Takes as much as goes, a millisecond after another for so many; gives how many bytes that were.
fn taken(throttle: &mut Throttle, own: Option<(Tier, u64)>, all: u64, from: Instant, ms: u64) -> u64 {
    let mut sum = 0;
    for at in 0..ms {
        while let Ok(piece) = throttle.take(own, all, u64::MAX, from + Duration::from_millis(at)) {
            assert!(piece > 0);
            sum += piece;
        }
    }
    sum
}

#[test]
fn over_any_time_the_rates_are_kept_and_used_up() {
    let start = Instant::now();
    let mut throttle = Throttle::default();
    // A minute has passed: a second of it is saved up, and no more.
    let start = start + Duration::from_secs(60);
    let ten = taken(&mut throttle, None, MIB, start, 10_000);
    assert!((10 * MIB..=11 * MIB + MIB / 8).contains(&ten), "{ten} bytes in ten seconds");
    // The rate of a tier binds where it is less; that of all where more than one tier wants some.
    let start = start + Duration::from_secs(10);
    let own = Some((Tier::Ssd, MIB / 4));
    let slow = taken(&mut throttle, own, MIB, start, 10_000);
    assert!((10 * MIB / 4..=12 * MIB / 4).contains(&slow), "{slow} bytes out of the SSD tier");
    let start = start + Duration::from_secs(10);
    taken(&mut throttle, None, MIB, start, 1);
    let wait = throttle.take(Some((Tier::Hdd, 64 * MIB)), MIB, 1, start);
    assert!(wait.is_err_and(|w| w <= Duration::from_millis(125)), "{wait:?}: somebody else took it");
}

#[test]
fn whoever_comes_behind_a_pack_waits_for_a_piece_of_it() {
    let start = Instant::now() + Duration::from_secs(1);
    let mut throttle = Throttle::default();
    for (own, rate) in [(None, MIB), (Some((Tier::Ssd, 64 << 10)), MIB)] {
        let mut asked = 256 * MIB;
        while let Ok(piece) = throttle.take(own, rate, asked, start) {
            asked -= piece;
        }
        assert!(asked > 250 * MIB, "the brake let {} bytes through", 256 * MIB - asked);
        let next = throttle.take(own, rate, 1, start);
        assert!(next.is_err_and(|w| w <= Duration::from_millis(125)), "{own:?}: {next:?}");
    }
    // What was taken at a high rate is not paid for at a low one.
    let start = start + Duration::from_secs(10);
    while throttle.take(None, 1 << 40, u64::MAX, start).is_ok() {}
    let next = throttle.take(None, 64 << 10, 1, start);
    assert!(next.is_err_and(|w| w <= Duration::from_secs(1)), "{next:?}");
}

/// So many values of 10 KB on the highest disk tier.
fn movers(cache: &Cache, n: u32) -> Try<Vec<Mover>> {
    fill(cache, 0..n, 10_000)?;
    testkit::movers(cache, 0..n, 10_100)
}

#[test]
fn a_pack_takes_the_time_that_the_rate_gives_it_and_others_go_on_meanwhile() -> Try {
    let dir = tempfile::tempdir()?;
    // Steps of a quarter of a mebibyte, though the pack is one.
    let mut builder = builder(dir.path());
    builder.config_mut().resources.io.write_buffer_size = 2 * MIB;
    let cache = open(builder)?;
    let movers = movers(&cache, 400)?;
    act(&cache, Change::SetBackgroundRate { from: 0, to: MIB })?;
    let engine = cache.engine();
    let cold = engine.tier(Tier::Cold).ok_or("no archive")?;
    let begun = Instant::now();
    let (took, others) = std::thread::scope(|scope| {
        let pack = scope.spawn(|| engine.relocate(&movers, cold, Purpose::Write, false));
        let mut others = 0;
        while !pack.is_finished() {
            engine.pace(None, 1000, false);
            others += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
        pack.join().map(|moved| (moved.map(|m| (m.items, begun.elapsed())), others))
    })
    .map_err(|_| "a panic")?;
    let (items, took) = took?;
    assert_eq!((items, engine.catalog.containers.of_tier(Tier::Cold).len()), (400, 1), "one pack");
    // 3.85 MiB at 1 MiB/s, of which a second may have been saved up.
    assert!(took >= Duration::from_millis(2500), "{took:?}");
    // Twenty and more of them where the machine has nothing else to do, each behind a piece of an eighth of a second; whoever
    // stood behind a second's worth or the whole would come through three times.
    assert!(others >= 6, "others came through {others} times in {took:?}");
    Ok(())
}

#[test]
fn the_rate_that_is_set_is_the_rate_that_background_work_has() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = builder(dir.path());
    builder.config_mut().storage.migration_bytes_per_second = 64 * MIB;
    let cache = open(builder)?;
    let engine = cache.engine();
    let time = |from: Option<Tier>, bytes: u64| {
        let begun = Instant::now();
        engine.pace(from, bytes, false);
        begun.elapsed()
    };
    // A second may have been saved up, so two seconds' worth take one at least. What the rate of another would hold up for a
    // minute takes far less than that, however busy the machine is.
    let (one, most) = (Duration::from_millis(800), Duration::from_secs(25));
    assert!(time(None, 128 * MIB) >= one, "the configured rate");
    act(&cache, Change::SetBackgroundRate { from: 0, to: MIB })?;
    assert!(time(None, 2 * MIB) >= one, "the background rate");
    act(&cache, Change::SetBackgroundRate { from: 0, to: 64 * MIB })?;
    act(&cache, Change::SetReclaimRate { tier: Tier::Hdd, from: 0, to: MIB })?;
    assert!(time(Some(Tier::Hdd), 2 * MIB) >= one, "the rate of the tier");
    assert!(time(Some(Tier::Ssd), 64 * MIB) < most, "another tier");
    let begun = Instant::now();
    engine.pace(Some(Tier::Hdd), 100 * MIB, true);
    assert!(begun.elapsed() < most, "somebody waits for it");
    Ok(())
}

#[test]
fn a_step_of_a_move_is_so_many_items_as_are_configured() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = builder(dir.path());
    builder.config_mut().resources.cpu.batch_size = 10;
    let cache = open(builder)?;
    let movers = movers(&cache, 35)?;
    let writes = |cache: &Cache| cache.stats().latency.data_sync[Tier::Hdd as usize].count;
    let before = writes(&cache);
    let engine = cache.engine();
    engine.relocate(&movers, engine.tier(Tier::Hdd).ok_or("no HDD")?, Purpose::Write, true)?;
    assert_eq!(writes(&cache) - before, 4);
    Ok(())
}

/// What was read of a pack when the store closes is written; the rest stays where it is.
#[test]
fn a_store_that_closes_does_not_wait_for_the_whole_of_a_pack() -> Try {
    let dir = tempfile::tempdir()?;
    let mut slow = builder(dir.path());
    slow.config_mut().resources.io.write_buffer_size = 2 * MIB;
    // A window of a quarter of a mebibyte takes a second or two, and the rest twenty.
    slow.config_mut().storage.migration_bytes_per_second = 128 << 10;
    slow.config_mut().storage.read_mode = thermocline_storage::ssd::ReadMode::Pread;
    let cache = open(slow)?;
    let movers = movers(&cache, 300)?;
    let engine = cache.engine();
    let cold = engine.tier(Tier::Cold).ok_or("no archive")?;
    let reads = || -> u64 { engine.meters.of_tier(Tier::Ssd).map(|m| m.traffic().read.count).sum() };
    let before = reads();
    let moved = std::thread::scope(|scope| {
        let pack = scope.spawn(|| engine.relocate(&movers, cold, Purpose::Write, false));
        // Until the first window was let through.
        while reads() == before && !pack.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        engine.stopping.store(true, Ordering::Release);
        pack.join()
    })
    .map_err(|_| "a panic")??;
    engine.stopping.store(false, Ordering::Release);
    assert!((1..300).contains(&moved.items), "{} items", moved.items);
    let mut tiers = Vec::new();
    for no in 0..300u32 {
        let ident = engine.ident(&no.to_be_bytes())?;
        tiers.push(engine.catalog.lock(ident).durable(ident).ok_or("nothing is lost")?.entry.tier);
    }
    let (packed, rest) = tiers.split_at(moved.items as usize);
    assert!(packed.iter().all(|t| *t == Tier::Cold), "what was read: {tiers:?}");
    assert!(rest.iter().all(|t| *t == Tier::Ssd), "the rest: {tiers:?}");
    for no in 0..300u32 {
        let noise = thermocline_storage::testing::noise(no.into(), 10_000);
        assert_eq!(cache.get(no.to_be_bytes())?.as_deref(), Some(&*noise), "{no}");
    }
    Ok(())
}

/// A pack that takes most of a minute keeps an empty one from being dropped, for which somebody waits.
#[test]
fn who_waits_for_a_pack_under_way_does_not_wait_for_the_brake() -> Try {
    let dir = tempfile::tempdir()?;
    let mut slow = builder(dir.path());
    slow.config_mut().resources.io.write_buffer_size = 2 * MIB;
    slow.config_mut().storage.migration_bytes_per_second = 64 << 10;
    let cache = open(slow)?;
    let mut movers = movers(&cache, 310)?;
    let engine = cache.engine();
    let cold = engine.tier(Tier::Cold).ok_or("no archive")?;
    engine.relocate(&movers.split_off(300), cold, Purpose::Write, true)?;
    for no in 300..310u32 {
        cache.remove(no.to_be_bytes())?;
    }
    cache.flush()?;
    let empty = engine.catalog.containers.of_tier(Tier::Cold).pop().ok_or("no pack")?;
    assert_eq!(empty.live(), 0);
    std::thread::scope(|scope| -> Try {
        let pack = scope.spawn(|| engine.relocate(&movers, cold, Purpose::Write, false));
        std::thread::sleep(Duration::from_millis(200));
        let until = Instant::now() + Duration::from_secs(20);
        assert!(!pack.is_finished());
        assert!(engine.drop_container(cold, &empty, Some(until))?, "it waits for the brake");
        assert_eq!(pack.join().map_err(|_| "a panic")??.items, 300);
        Ok(())
    })
}

/// Items, for leave to write which it waited so long each time that they were asked for, or says so.
struct Held {
    items: Vec<thermocline_storage::Item>,
    each: Duration,
    waited: std::cell::Cell<Duration>,
}

impl thermocline_storage::container::Supply for Held {
    fn len(&self) -> usize {
        self.items.len()
    }
    fn bytes(&self, n: usize) -> u64 {
        self.items.as_slice().bytes(n)
    }
    fn least(&self, range: std::ops::Range<usize>) -> u64 {
        self.items.as_slice().least(range)
    }
    fn load(&self, range: std::ops::Range<usize>) -> Vec<Option<thermocline_storage::Item>> {
        self.waited.set(self.waited.get() + self.each);
        self.items.as_slice().load(range)
    }
    fn waited(&self) -> Duration {
        self.waited.get()
    }
}

/// A tier that is full, and has room as soon as somebody asks for it.
#[test]
fn who_was_held_up_does_not_come_too_late_for_room_nor_make_the_disk_seem_slow() -> Try {
    let dir = tempfile::tempdir()?;
    let mut builder = Cache::builder().memory(MIB).ssd(dir.path(), 16 * MIB);
    builder.config_mut().storage.segment_size = Some(MIB);
    let cache = open(builder)?;
    let items: Vec<_> = movers(&cache, 40)?
        .iter()
        .map(|m| m.entry.container.read(m.listed.position))
        .collect::<Result<_, _>>()?;
    let engine = cache.engine();
    let ssd = engine.tier(Tier::Ssd).ok_or("no SSD")?;
    let past = Instant::now().checked_sub(Duration::from_secs(60)).ok_or("the machine has just begun")?;
    // What is appended and not entered in the catalog is garbage, so that each segment is empty soon.
    let append = |each: Duration| {
        let held = Held { items: items.clone(), each, waited: Default::default() };
        let sum = || cache.stats().latency.data_sync[Tier::Ssd as usize].sum_ns;
        let before = sum();
        engine.append(ssd, &held, Purpose::Write, (past, false)).map(|_| sum() - before)
    };
    for n in 0..100 {
        let ns = append(Duration::from_secs(3600)).map_err(|e| format!("the {n}th: {e}"))?;
        assert_eq!(ns, 1, "all of the time was waited");
    }
    let late = (0..100).find_map(|_| append(Duration::ZERO).err());
    assert!(matches!(late, Some(thermocline_storage::Error::Busy(_))), "who was not held up comes too late");
    Ok(())
}

/// What a pack waits for the brake is no time of its write.
#[test]
fn the_time_of_a_pack_is_not_that_of_the_brake() -> Try {
    let dir = tempfile::tempdir()?;
    let mut slow = builder(dir.path());
    slow.config_mut().storage.migration_bytes_per_second = 128 << 10;
    let cache = open(slow)?;
    let movers = movers(&cache, 60)?;
    let engine = cache.engine();
    let begun = Instant::now();
    engine.relocate(&movers, engine.tier(Tier::Cold).ok_or("no archive")?, Purpose::Write, false)?;
    let took = begun.elapsed();
    let write = cache.stats().latency.data_sync[Tier::Cold as usize].clone();
    assert_eq!(write.count, 1);
    assert!(Duration::from_nanos(write.sum_ns) < took / 2, "{} ns of {took:?}", write.sum_ns);
    Ok(())
}
