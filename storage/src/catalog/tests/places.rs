//! Containers: what is announced, what is dropped, and when a number may be reused.

use super::*;
use crate::container::Purpose;

#[test]
fn a_number_is_reused_only_after_its_drop_is_durable_and_readers_let_go() {
    let mem = disk();
    let (cat, _) = open(Arc::new(mem.clone()), Path::new("/c"), 1).unwrap();
    let entry = container(&cat);
    let no = entry.no;
    write(&cat, id(1), Place::new(no, 1).unwrap());
    let Found::At(held) = cat.find(id(1)) else { panic!() };
    assert!(!cat.may_drop(&entry), "not sealed");
    seal(&entry);
    assert!(!cat.may_drop(&entry), "not empty");
    cat.lock(id(1)).remove(id(1));
    assert!(cat.may_drop(&entry));
    cat.sync().unwrap();
    cat.forget(&entry);
    drop(entry);
    drop(held);
    let other = cat.containers.reserve(Purpose::Write).unwrap();
    assert_ne!(other.no, no, "the frame is only queued");
    mem.fail_changes(mem.changes() + 1..);
    assert!(cat.sync().is_err());
    assert_ne!(cat.containers.reserve(Purpose::Write).unwrap().no, no, "the sync failed");
    mem.heal();
    cat.sync().unwrap();
    let again = cat.containers.reserve(Purpose::Write).unwrap();
    assert_eq!(again.no, no);
    assert!(again.id > other.id);
}

#[test]
fn a_number_that_a_reader_holds_rests() {
    let (cat, _) = open(Arc::new(disk()), Path::new("/c"), 1).unwrap();
    let entry = container(&cat);
    seal(&entry);
    cat.forget(&entry);
    cat.sync().unwrap();
    assert_ne!(cat.containers.reserve(Purpose::Write).unwrap().no, entry.no);
    let no = entry.no;
    drop(entry);
    assert_eq!(cat.containers.reserve(Purpose::Write).unwrap().no, no);
}

#[test]
fn a_container_that_was_forgotten_is_let_go_of_before_that_is_durable() {
    let (cat, _) = open(Arc::new(disk()), Path::new("/c"), 1).unwrap();
    let entry = container(&cat);
    seal(&entry);
    cat.forget(&entry);
    assert_eq!(Arc::strong_count(&entry), 1, "its blocks count until nobody holds it");
}

#[test]
fn a_container_with_a_batch_under_way_is_not_dropped() {
    let (cat, _) = open(Arc::new(disk()), Path::new("/c"), 1).unwrap();
    let entry = container(&cat);
    let batch = cat.batch(Tier::Ssd);
    seal(&entry);
    assert!(!cat.may_drop(&entry));
    let later = cat.batch(Tier::Ssd);
    assert!(!cat.may_drop(&entry), "the batch may have written to it");
    write(&cat, id(1), Place::new(entry.no, 1).unwrap());
    drop(batch);
    assert!(!cat.may_drop(&entry), "it had");
    cat.lock(id(1)).remove(id(1));
    assert!(!cat.may_drop(&entry), "the later one began before it was seen empty again");
    drop(later);
    assert!(cat.may_drop(&entry));
}

#[test]
fn a_batch_on_its_way_to_another_tier_keeps_no_container_from_being_dropped() {
    let (cat, _) = open(Arc::new(disk()), Path::new("/c"), 1).unwrap();
    let entry = container(&cat);
    seal(&entry);
    let _elsewhere = cat.batch(Tier::Cold);
    let here = cat.batch(entry.tier);
    assert!(!cat.may_drop(&entry));
    drop(here);
    assert!(cat.may_drop(&entry));
}

#[test]
fn containers_are_known_after_a_restart_and_their_numbers_are_taken_even_if_their_directory_is_away() {
    let mem = disk();
    let arc: Arc<dyn Vfs> = Arc::new(mem.clone());
    let (cat, _) = open(arc.clone(), Path::new("/c"), 1).unwrap();
    let (a, b, c) = (container(&cat), container(&cat), container(&cat));
    write(&cat, id(1), Place::new(a.no, 1).unwrap());
    write(&cat, id(2), Place::new(b.no, 1).unwrap());
    cat.sync().unwrap();
    seal(&c);
    assert!(cat.may_drop(&c));
    cat.forget(&c);
    cat.sync().unwrap();
    drop(cat);
    // Opened without the directory of `a` and `b`, with checkpoints; twice.
    for open in 2..4 {
        let (cat, rec) = Catalog::open(setup(arc.clone(), Path::new("/c"), open)).unwrap();
        let ids: Vec<u64> = rec.containers.iter().map(|k| k.id).collect();
        assert_eq!(ids, [a.id, b.id]);
        assert_eq!(rec.containers[0].created_ms, 7);
        let fresh = cat.containers.reserve(Purpose::Write).unwrap().no;
        assert!(fresh != a.no && fresh != b.no);
        assert!(matches!(cat.find(id(1)), Found::Absent));
        cat.checkpoint_now().unwrap();
    }
    // `a` is discarded, `b` is back.
    let (cat, rec) = Catalog::open(setup(arc.clone(), Path::new("/c"), 4)).unwrap();
    cat.containers.attach(rec.containers[1], Arc::new(Hollow(0)));
    cat.count_live();
    assert_eq!(cat.drop_lost(|no| no == a.no), 1);
    cat.sync().unwrap();
    drop(cat);
    let (cat, rec) = open(arc, Path::new("/c"), 5).unwrap();
    assert_eq!(rec.containers.iter().map(|k| k.id).collect::<Vec<_>>(), [b.id]);
    assert_eq!(durable(&cat).keys().copied().collect::<Vec<_>>(), [id(2)]);
}

/// Whoever sees a container empty finds the frame that emptied it queued: a sync after that covers it.
#[test]
fn a_count_falls_only_after_its_frame_is_queued() {
    let (cat, _) = open(Arc::new(disk()), Path::new("/c"), 1).unwrap();
    let (a, b) = (container(&cat), container(&cat));
    let (here, there) = (Place::new(a.no, 1).unwrap(), Place::new(b.no, 1).unwrap());
    for way in 0..3 {
        for round in 0..300 {
            write(&cat, id(1), here);
            cat.sync().unwrap();
            let at = std::sync::Barrier::new(2);
            std::thread::scope(|s| {
                s.spawn(|| {
                    at.wait();
                    for _ in 0..100_000 {
                        if a.live.load(Ordering::Acquire) == 0 {
                            break;
                        }
                    }
                    if a.live.load(Ordering::Acquire) == 0 {
                        assert!(cat.queued_frames() > 0, "way {way} round {round}");
                    }
                });
                at.wait();
                match way {
                    0 => drop(cat.lock(id(1)).remove(id(1))),
                    1 => assert!(cat.lock(id(1)).swap(id(1), here, there, Version(1), 0)),
                    _ => drop(cat.clear(|_, _| ())),
                }
            });
        }
    }
}

#[test]
fn heat_survives_and_a_checkpoint_before_there_is_a_source_keeps_it() {
    let mem = disk();
    let arc: Arc<dyn Vfs> = Arc::new(mem.clone());
    let (cat, _) = open(arc.clone(), Path::new("/c"), 1).unwrap();
    cat.on_checkpoint(|| vec![1, 2, 3]);
    cat.checkpoint_now().unwrap();
    drop(cat);
    for n in 2..4 {
        let (cat, rec) = open(arc.clone(), Path::new("/c"), n).unwrap();
        assert_eq!(rec.heat, [1, 2, 3]);
        cat.checkpoint_now().unwrap();
    }
}

#[test]
fn the_tail_is_what_no_later_batch_calls_durable() {
    let mem = disk();
    let arc: Arc<dyn Vfs> = Arc::new(mem.clone());
    let (cat, _) = open(arc.clone(), Path::new("/c"), 1).unwrap();
    let entry = container(&cat);
    write(&cat, id(1), Place::new(entry.no, 1).unwrap());
    cat.sync().unwrap();
    write(&cat, id(2), Place::new(entry.no, 2).unwrap());
    write(&cat, id(3), Place::new(entry.no, 3).unwrap());
    cat.lock(id(3)).remove(id(3));
    cat.sync().unwrap();
    drop(cat);
    let (_, rec) = open(arc, Path::new("/c"), 2).unwrap();
    assert_eq!(rec.tail, [(id(2), Place::new(entry.no, 2).unwrap())]);
    assert_eq!(rec.containers[0].records, 3);
}

#[test]
fn versions_and_ids_rise_from_opening_to_opening() {
    let vfs: Arc<dyn Vfs> = Arc::new(disk());
    let mut last = (Version(0), 0);
    for counter in 1..4 {
        let (cat, _) = open(vfs.clone(), Path::new("/c"), counter).unwrap();
        let entry = container(&cat);
        let taken = (cat.lock(id(1)).version(), entry.id);
        assert!(taken.0 > last.0 && taken.1 > last.1, "{taken:?} after {last:?}");
        last = taken;
    }
}

#[test]
fn the_clock_goes_on_from_the_newest_time_of_the_journal() {
    let vfs: Arc<dyn Vfs> = Arc::new(disk());
    let clock = Arc::new(ManualClock::new(1000));
    let how = setup(vfs.clone(), Path::new("/c"), 1);
    let (cat, _) = open_with(Setup { clock: Arc::new(EngineClock::new(clock.clone())), ..how }).unwrap();
    clock.advance(5000);
    container(&cat);
    cat.sync().unwrap();
    drop(cat);
    // The wall clock shows 1000 again.
    let (cat, _) = open(vfs, Path::new("/c"), 2).unwrap();
    assert_eq!(cat.now(), 6000);
}

#[test]
fn a_move_keeps_an_expiry_that_was_changed_meanwhile() {
    let vfs: Arc<dyn Vfs> = Arc::new(disk());
    let (cat, _) = open(vfs.clone(), Path::new("/c"), 1).unwrap();
    let entry = container(&cat);
    let [old, new] = [1, 2].map(|at| Place::new(entry.no, at).unwrap());
    write(&cat, id(1), old);
    // The copy was made before.
    cat.lock(id(1)).set_expiry(id(1), 9000).unwrap();
    assert!(cat.lock(id(1)).swap(id(1), old, new, Version(1), 0));
    cat.sync().unwrap();
    assert_eq!(durable(&cat)[&id(1)], (new, Some(9000)));
    drop(cat);
    let (cat, _) = open(vfs, Path::new("/c"), 2).unwrap();
    assert_eq!(durable(&cat)[&id(1)], (new, Some(9000)));
}

/// After a `clear` there may be tens of thousands that are empty, while a batch is under way.
#[test]
fn very_many_empty_containers_wait_for_a_batch_in_little_time() {
    let (cat, _) = open(Arc::new(disk()), Path::new("/c"), 1).unwrap();
    let all: Vec<_> = (0..60_000).map(|_| container(&cat)).collect();
    all.iter().for_each(|entry| seal(entry));
    let batch = cat.batch(Tier::Ssd);
    let began = std::time::Instant::now();
    for _ in 0..3 {
        assert!(!all.iter().any(|entry| cat.may_drop(entry)));
    }
    drop(batch);
    for entry in &all {
        assert!(cat.may_drop(entry));
        cat.forget(entry);
    }
    // Half a second; each against each, it would be minutes.
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}
