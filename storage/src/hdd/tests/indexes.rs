//! sled that panics, hangs and lies: every record is served all the same.

use super::*;
use std::time::Instant;

fn faulty(trouble: Trouble) -> (Bench, Arc<FaultyFactory>) {
    let mut bench = Bench::new(&[Some(64 << 20)]);
    let factory = Arc::new(FaultyFactory::new(trouble));
    bench.factory = Some(factory.clone());
    bench.config.sled_deadline = Duration::from_millis(300);
    bench.config.open_wait = Duration::from_secs(20);
    (bench, factory)
}

#[test]
fn whatever_an_index_does_every_record_is_served_in_time() {
    for trouble in [
        Trouble::PanicAtOpen,
        Trouble::HangAtOpen,
        Trouble::PanicAtInsert,
        Trouble::FailAtInsert,
        Trouble::PanicAtLookup,
        Trouble::HangAtLookup,
        Trouble::HangAtClose,
        Trouble::Lie,
        Trouble::Forget,
    ] {
        let (mut bench, factory) = faulty(trouble);
        // A panic takes long where its backtrace is being printed, and is then a hang.
        let begin = Instant::now();
        let open = bench.open(&[]);
        let all = items(0, 1000, 900);
        let written: Vec<_> = all.chunks(100).flat_map(|c| open.write(c)).collect();
        assert_eq!(open.check(&all, &written), all.len(), "{trouble:?}");
        open.settle();
        assert_eq!(open.check(&all, &written), all.len(), "{trouble:?}");
        let health = open.hdd.health();
        let lied = matches!(trouble, Trouble::Lie | Trouble::Forget);
        assert_eq!(health.ram_only, !lied, "two faults are enough: {trouble:?} {health:?}");
        assert_eq!(health.faults >= 2, !lied, "{trouble:?} {health:?}");
        let known = open.known();
        open.hdd.close().unwrap();
        drop(open);
        assert!(begin.elapsed() < Duration::from_secs(30), "{trouble:?}: {:?}", begin.elapsed());

        factory.set(Trouble::None);
        let open = bench.open(&known);
        assert_eq!(open.check(&all, &written), all.len(), "{trouble:?}");
        open.settle();
        let health = open.hdd.health();
        assert!(!health.ram_only && health.faults == 0, "a restart begins anew: {health:?}");
        open.hdd.close().unwrap();
        for generation in bench.generations(0) {
            for part in std::fs::read_dir(generation).unwrap() {
                assert!(!part.unwrap().file_name().to_string_lossy().contains("abandoned"), "{trouble:?}");
            }
        }
        if matches!(trouble, Trouble::PanicAtLookup | Trouble::HangAtLookup | Trouble::HangAtClose) {
            let quarantine = std::fs::read_dir(bench.dir(0).join("quarantine")).unwrap();
            assert!(quarantine.count() >= 2, "{trouble:?}");
        }
    }
}

#[test]
fn one_fault_costs_one_database_and_not_the_tier() {
    let (mut bench, factory) = faulty(Trouble::None);
    let open = bench.open(&[]);
    let all = items(0, 1000, 900);
    let written = open.write(&all);
    open.settle();
    factory.set(Trouble::PanicAtLookup);
    assert_eq!(open.read(&written[0]).unwrap(), all[0]);
    factory.set(Trouble::None);
    assert_eq!(open.check(&all, &written), all.len());
    open.settle();
    let health = open.hdd.health();
    assert_eq!((health.faults, health.ram_only, health.abandoned.len()), (1, false, 1), "{health:?}");
}

#[test]
fn a_database_with_another_sentinel_is_not_asked() {
    let (mut bench, factory) = faulty(Trouble::None);
    let Closed { all, written, known } = closed(&mut bench, 300);
    factory.set(Trouble::OtherSentinel);
    let open = bench.open(&known);
    assert_eq!(open.check(&all, &written), all.len());
    open.settle();
    let health = open.hdd.health();
    assert!(health.rebuilt as usize >= known.len() && health.open == 0, "{health:?}");
}

#[test]
fn a_generation_that_does_not_open_in_time_is_busy_not_missing() {
    let (mut bench, factory) = faulty(Trouble::None);
    let open = bench.open(&[]);
    let all = items(0, 300, 900);
    let written = open.write(&all);
    open.settle();
    let known = open.known();
    open.hdd.close().unwrap();
    drop(open);
    factory.set(Trouble::HangAtOpen);
    bench.config.sled_deadline = Duration::from_millis(400);
    bench.config.open_wait = Duration::from_millis(50);
    let open = bench.open(&known);
    assert!(matches!(open.read(&written[0]), Err(Error::Busy(_))));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(open.check(&all, &written), all.len(), "rebuilt");
}
