//! Indexes that lack what could not be read when they were built: what they have is served, and they are built again.

use super::*;
use crate::clock::Clock;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

/// A read of a value file beyond where a dying disk can be read.
fn far(c: &crate::sim::Call<'_>) -> bool {
    c.op == Op::Read && c.range.end > 40_000 && of_values(c.path)
}

/// While the first of what is given is set, reads of what is far wait; the second is set once one does.
fn hold_far_reads(disk: &FaultFs) -> (Arc<AtomicBool>, Arc<AtomicBool>) {
    let (held, met) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (hold, meet) = (held.clone(), met.clone());
    disk.watch(move |c| {
        while far(c) && hold.load(Ordering::SeqCst) {
            meet.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    (held, met)
}

/// A tier of one generation whose later part cannot be read: each try takes so many milliseconds.
fn dying(ms: u64) -> (Bench, FaultFs, Open, Vec<Item>, Vec<Written>) {
    let (mut bench, disk, Closed { all, written, known }) = bad_closed(100);
    let clock = bench.clock.clone();
    disk.fail(Fault::when(move |c| {
        let fails = far(c);
        clock.advance(if fails { ms } else { 0 });
        fails
    }));
    let open = bench.open(&known);
    open.settle();
    open.forget_headers();
    (bench, disk, open, all, written)
}

#[test]
fn what_cannot_be_reached_is_not_called_damaged() {
    unreachable();
}

/// A tier whose values cannot be read any more since it was opened.
fn unreachable() -> (Bench, FaultFs, Open, Closed) {
    let (mut bench, disk, tier) = bad_closed(100);
    disk.fail(Fault::when(|c| c.op == Op::Read && c.range.start >= value::DATA && of_values(c.path)));
    let open = bench.open(&tier.known);
    for w in &tier.written {
        let error = open.read(w).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
    (bench, disk, open, tier)
}

/// An index that was built while the disk could not be read lacks records that are there.
#[test]
fn what_could_not_be_reached_when_the_index_was_built_is_found_when_the_disk_is_back() {
    let (bench, disk, open, Closed { all, written, .. }) = unreachable();
    disk.heal();
    bench.clock.advance(60_000);
    assert_eq!(open.check(&all, &written), all.len());
}

/// A disk that is dying takes longer to be read through than an index of what it gave is left alone.
#[test]
fn what_can_be_read_is_served_however_long_the_rest_takes() {
    let (_bench, _disk, open, all, written) = dying(70_000);
    let (first, last) = (&written[0], &written[99]);
    for _ in 0..3 {
        let error = open.read(last).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert_eq!(open.read(first).unwrap(), all[0]);
    }
    open.hdd.close().unwrap();
}

/// What the disk gave once is right for ever; and who says that it is back is believed at once.
#[test]
fn an_index_with_less_replaces_none_and_who_puts_the_tier_back_ends_its_rest() {
    let (mut bench, disk, Closed { all, written, known }) = bad_closed(100);
    let end = Arc::new(AtomicU64::new(40_000));
    let readable = end.clone();
    disk.fail(Fault::when(move |c| {
        c.op == Op::Read && c.range.end > readable.load(Ordering::SeqCst) && of_values(c.path)
    }));
    let open = bench.open(&known);
    open.forget_headers();
    let (first, last) = (&written[0], &written[99]);
    assert!(matches!(open.read(last), Err(Error::Io { .. })));
    assert_eq!(open.read(first).unwrap(), all[0]);
    // It is built again, and even less can be read.
    bench.clock.advance(60_000);
    end.store(100, Ordering::SeqCst);
    let rebuilt = open.hdd.health().rebuilt;
    assert!(matches!(open.read(last), Err(Error::Io { .. })));
    assert_eq!(open.hdd.health().rebuilt, rebuilt + 1);
    end.store(40_000, Ordering::SeqCst);
    open.forget_headers();
    assert_eq!(open.read(first).unwrap(), all[0]);
    disk.heal();
    assert!(matches!(open.read(last), Err(Error::Io { .. })));
    open.hdd.put_back();
    assert_eq!(open.check(&all, &written), all.len());
    open.hdd.close().unwrap();
}

/// Each time another part of the disk cannot be read: what was read once is served from then on.
#[test]
fn an_index_that_lacks_something_is_added_to_one_that_lacks_something_else() {
    let (bench, disk, open, all, written) = dying(0);
    let (first, last) = (&written[0], &written[99]);
    assert!(matches!(open.read(last), Err(Error::Io { .. })));
    assert_eq!(open.read(first).unwrap(), all[0]);
    // It is built again, of the other part, which is more.
    disk.heal();
    disk.fail(Fault::when(|c| {
        c.op == Op::Read && (value::DATA..40_000).contains(&c.range.start) && of_values(c.path)
    }));
    bench.clock.advance(60_000);
    let rebuilt = open.hdd.health().rebuilt;
    assert_eq!(open.read(last).unwrap(), all[99]);
    assert_eq!(open.hdd.health().rebuilt, rebuilt + 1);
    disk.heal();
    open.forget_headers();
    assert_eq!(open.read(first).unwrap(), all[0]);
    assert_eq!(open.read(last).unwrap(), all[99]);
    assert_eq!(open.hdd.health().rebuilt, rebuilt + 1, "it rests");
    open.hdd.close().unwrap();
}

/// The keeper, which others need, would do nothing else.
#[test]
fn an_index_that_takes_long_to_build_rests_eight_times_as_long() {
    let (bench, disk, open, all, written) = dying(20_000);
    let took = bench.clock.boot_ms() - 1_000_000;
    assert!((900_000..10_000_000).contains(&took), "less than an eighth of a day: {took}");
    assert!(matches!(open.read(&written[99]), Err(Error::Io { .. })));
    let rebuilt = open.hdd.health().rebuilt;
    disk.heal();
    bench.clock.advance(7 * took);
    assert!(matches!(open.read(&written[99]), Err(Error::Io { .. })));
    assert_eq!(open.hdd.health().rebuilt, rebuilt);
    bench.clock.advance(took);
    assert_eq!(open.check(&all, &written), all.len());
    open.hdd.close().unwrap();
}

/// What was begun while the disk was away says nothing of what is there since.
#[test]
fn an_index_that_is_being_built_when_the_tier_is_put_back_does_not_rest() {
    let (bench, disk, open, all, written) = dying(0);
    assert!(matches!(open.read(&written[99]), Err(Error::Io { .. })));
    bench.clock.advance(60_000);
    let (held, met) = hold_far_reads(&disk);
    held.store(true, Ordering::SeqCst);
    let rebuilt = open.hdd.health().rebuilt;
    let generation = open.hdd.generation(&open.containers.all()[0]).unwrap();
    open.hdd.core.jobs.push(Job::Load(generation));
    while !met.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    bench.clock.advance(1);
    open.hdd.put_back();
    bench.clock.advance(1);
    held.store(false, Ordering::SeqCst);
    open.settle();
    assert_eq!(open.hdd.health().rebuilt, rebuilt + 1);
    disk.heal();
    assert_eq!(open.check(&all, &written), all.len());
    open.hdd.close().unwrap();
}

/// Nobody need say so of a directory that was out of service.
#[test]
fn a_directory_that_comes_back_by_itself_ends_the_rest_of_its_indexes() {
    let (bench, disk, open, all, written) = dying(0);
    assert!(matches!(open.read(&written[99]), Err(Error::Io { .. })));
    disk.fail(Fault::on_any(&[Op::Create, Op::Write]));
    open.hdd.suspect(&open.containers.all()[0]);
    open.hdd.maintain();
    assert_eq!(open.hdd.health().out_of_service.len(), 1);
    disk.heal();
    bench.clock.advance(29_999);
    open.hdd.maintain();
    assert!(matches!(open.read(&written[99]), Err(Error::Io { .. })), "it rests for a minute");
    bench.clock.advance(1);
    open.hdd.maintain();
    assert!(open.hdd.health().out_of_service.is_empty());
    assert_eq!(open.check(&all, &written), all.len());
    open.hdd.close().unwrap();
}

/// To read what a dying disk gives takes minutes, and whose generation is dropped wants none of it.
#[test]
fn who_drops_a_generation_does_not_wait_until_its_index_is_built() {
    let (bench, disk, open, _, written) = dying(0);
    assert!(matches!(open.read(&written[99]), Err(Error::Io { .. })));
    bench.clock.advance(60_000);
    let (reads, dropping) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, dropped) = (reads.clone(), dropping.clone());
    disk.watch(move |c| {
        if far(c) {
            count.fetch_add(1, Ordering::SeqCst);
            while !dropped.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let entry = open.containers.all().remove(0);
    let generation = open.hdd.generation(&entry).unwrap();
    open.hdd.core.jobs.push(Job::Load(generation));
    while reads.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    dropping.store(true, Ordering::SeqCst);
    let began = Instant::now();
    open.hdd.drop_container(&entry).unwrap();
    let (reads, took) = (reads.load(Ordering::SeqCst), began.elapsed());
    // The second try of the page that it was at, and a few more on a machine that is slow.
    assert!(reads <= 6, "{reads} reads in {took:?}");
    assert!(matches!(open.read(&written[0]), Err(Error::Gone(_))));
    open.hdd.close().unwrap();
}

/// Hours of sleep are not hours of reading, and the keeper is none the busier for them.
#[test]
fn an_index_that_the_machine_slept_through_rests_no_longer_for_it() {
    let (mut bench, disk, Closed { all, written, known }) = bad_closed(100);
    let (clock, slept) = (bench.clock.clone(), Arc::new(AtomicBool::new(false)));
    let sleeps = slept.clone();
    disk.fail(Fault::when(move |c| {
        let fails = far(c);
        if fails && !sleeps.swap(true, Ordering::SeqCst) {
            clock.sleep(36_000_000);
        }
        fails
    }));
    let open = bench.open(&known);
    open.settle();
    open.forget_headers();
    assert!(slept.load(Ordering::SeqCst));
    assert!(matches!(open.read(&written[99]), Err(Error::Io { .. })));
    disk.heal();
    bench.clock.sleep(59_999);
    assert!(matches!(open.read(&written[99]), Err(Error::Io { .. })), "it rests for a minute, asleep or not");
    bench.clock.advance(1);
    assert_eq!(open.check(&all, &written), all.len());
    open.hdd.close().unwrap();
}

#[test]
fn no_index_is_left_alone_for_more_than_a_day() {
    let (bench, disk, open, all, written) = dying(36_000_000);
    assert!(matches!(open.read(&written[99]), Err(Error::Io { .. })));
    disk.heal();
    bench.clock.advance(86_400_000);
    assert_eq!(open.check(&all, &written), all.len());
    open.hdd.close().unwrap();
}

/// An index that lacks something serves what it has while it is built again.
#[test]
fn who_asks_for_what_cannot_be_reached_holds_up_nobody_else() {
    let (mut bench, disk, Closed { all, written, known }) = bad_closed(100);
    bench.config.open_wait = Duration::from_secs(20);
    disk.fail(Fault::when(far));
    let (held, met) = hold_far_reads(&disk);
    let open = bench.open(&known);
    assert!(matches!(open.read(&written[99]), Err(Error::Io { .. })));
    open.forget_headers();
    bench.clock.advance(60_000);
    held.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| open.read(&written[99]));
        while !met.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let read = open.read(&written[0]);
        held.store(false, Ordering::SeqCst);
        assert_eq!(read.unwrap(), all[0]);
        assert!(matches!(asks.join().unwrap(), Err(Error::Io { .. })));
    });
    open.hdd.close().unwrap();
}

/// Generations of a tier without sled and with room for one index at most, of which nobody can read the later part.
#[test]
fn an_index_that_lacks_something_is_no_sooner_built_again_for_having_made_room() {
    let (mut bench, disk, Closed { all, written, known }) = bad_closed(900);
    assert!(known.len() >= 3, "{}", known.len());
    bench.config.sled_cache = 0;
    disk.fail(Fault::when(far));
    let open = bench.open(&known);
    open.settle();
    let mut far: Vec<&Written> = Vec::new();
    for w in &written {
        match far.last() {
            Some(last) if last.place.container() == w.place.container() => *far.last_mut().unwrap() = w,
            _ => far.push(w),
        }
    }
    assert!(far.len() >= 3);
    let round = || {
        for w in &far {
            open.forget_headers();
            let error = open.read(w).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error}");
        }
    };
    round();
    let rebuilt = open.hdd.health().rebuilt;
    round();
    round();
    assert_eq!(open.hdd.health().rebuilt, rebuilt, "each is left alone");
    disk.heal();
    bench.clock.advance(60_000);
    assert_eq!(open.check(&all, &written), all.len());
    open.hdd.close().unwrap();
}

/// To try in vain costs the keeper, which others need, time as well: most on a disk that answers late.
#[test]
fn an_index_that_could_not_be_made_is_not_tried_again_at_once() {
    let (mut bench, disk, Closed { all, written, known }) = bad_closed(100);
    let open = bench.open(&known);
    open.settle();
    let tries = Arc::new(AtomicU64::new(0));
    let (count, clock) = (tries.clone(), bench.clock.clone());
    disk.fail(Fault::when(move |c| {
        let fails = c.op == Op::Open && of_values(c.path);
        count.fetch_add(u64::from(fails), Ordering::Relaxed);
        clock.advance(if fails { 2_000 } else { 0 });
        fails
    }));
    let generation = open.hdd.generation(&open.containers.all()[0]).unwrap();
    generation.drop_ram();
    open.hdd.core.files.clear();
    let fails = || {
        open.forget_headers();
        let error = open.read(&written[0]).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    };
    fails();
    let once = tries.load(Ordering::Relaxed);
    assert!(once > 0);
    fails();
    bench.clock.advance(2_000 * 7);
    fails();
    assert_eq!(tries.load(Ordering::Relaxed), once, "it rests eight times as long as it took");
    bench.clock.advance(2_000);
    fails();
    assert!(tries.load(Ordering::Relaxed) > once);
    disk.heal();
    bench.clock.advance(60_000);
    assert_eq!(open.check(&all, &written), all.len());
    open.hdd.close().unwrap();
}

/// What can be read of a generation would be out of reach until its index may be built again.
#[test]
fn an_index_that_lacks_something_makes_room_after_those_that_can_be_built_again() {
    let (mut bench, disk, Closed { all, written, known }) = bad_closed(1500);
    assert!(known.len() >= 5, "{}", known.len());
    let first = bench.generations(0).remove(0);
    disk.fail(Fault::when(far).below(first));
    let open = bench.open(&known);
    open.settle();
    let all_of =
        |open: &Open| open.containers.all().iter().map(|e| open.hdd.generation(e).unwrap()).collect();
    let generations: Vec<Arc<Generation>> = all_of(&open);
    // Two indexes or so.
    bench.config.sled_cache = 4 * 2 * generations.iter().map(|g| g.ram_bytes()).max().unwrap();
    open.hdd.close().unwrap();
    drop(open);
    let open = bench.open(&known);
    open.settle();
    let far = written.len() - 1;
    for n in (300..=far).chain(300..=far).step_by(100) {
        open.forget_headers();
        assert_eq!(open.read(&written[n]).unwrap(), all[n]);
    }
    open.settle();
    let generations: Vec<Arc<Generation>> = all_of(&open);
    assert!(generations.iter().any(|g| g.ram().is_none()), "some had to make room");
    assert_eq!(open.read(&written[0]).unwrap(), all[0]);
    open.hdd.close().unwrap();
}
