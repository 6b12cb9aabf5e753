//! Writes that stay hidden until they are durable: readers see what was beneath.

use super::*;

fn world() -> (Catalog, Arc<Entry>, Place, Place) {
    let (cat, _) = open(Arc::new(disk()), Path::new("/c"), 1).unwrap();
    let entry = container(&cat);
    let (old, new) = (Place::new(entry.no, 1).unwrap(), Place::new(container(&cat).no, 2).unwrap());
    write(&cat, id(1), old);
    (cat, entry, old, new)
}

fn seen(cat: &Catalog) -> Option<Place> {
    match cat.find(id(1)) {
        Found::At(l) => Some(l.place),
        Found::Absent => None,
        Found::Dirty(_) => panic!("hidden"),
    }
}

/// A hidden put, taken and committed, not yet settled.
fn put(cat: &Catalog, place: Place) -> Version {
    let (v, _) = cat.lock(id(1)).put_hidden(id(1), value(3));
    let f = cat.take_dirty(1, 1).remove(0);
    cat.lock(id(1)).commit(id(1), &f.value, place);
    v.version
}

#[test]
fn a_put_is_seen_when_it_is_revealed_and_not_before() {
    let (cat, _, old, new) = world();
    let v = put(&cat, new);
    assert_eq!(seen(&cat), Some(old), "committed, and not synced");
    assert!(cat.lock(id(1)).pending(id(1)).is_some());
    assert!(!cat.lock(id(1)).reveal(id(1), Version(v.0 + 1)), "another write");
    cat.sync().unwrap();
    assert!(cat.lock(id(1)).reveal(id(1), v));
    assert_eq!(seen(&cat), Some(new));
}

#[test]
fn a_withdrawn_put_leaves_what_was_beneath_and_the_next_write_counts() {
    let (cat, entry, old, new) = world();
    cat.lock(id(1)).set_expiry(id(1), 50);
    let v = put(&cat, new);
    assert_eq!(entry.live(), 0);
    cat.lock(id(1)).withdraw(id(1), v);
    assert_eq!(seen(&cat), Some(old));
    assert_eq!(durable(&cat)[&id(1)], (old, Some(50)));
    check_counts(&cat);
    // One that is in flight when it is withdrawn; the very next version is a write that must count.
    let (v, _) = cat.lock(id(1)).put_hidden(id(1), value(3));
    let late = cat.take_dirty(1, 1).remove(0);
    cat.lock(id(1)).withdraw(id(1), v.version);
    let next = cat.lock(id(1)).put(id(1), value(4), true);
    assert_eq!(next.version.0, v.version.0 + 1);
    assert!(!cat.lock(id(1)).commit(id(1), &late.value, new), "garbage");
    let f = cat.take_dirty(1, 1).remove(0);
    assert!(cat.lock(id(1)).commit(id(1), &f.value, new));
    assert_eq!(seen(&cat), Some(new));
    check_counts(&cat);
}

#[test]
fn a_withdrawn_removal_is_as_if_it_had_not_been_unless_the_container_was_given_up() {
    for given_up in [false, true] {
        let (cat, entry, old, _) = world();
        let version = {
            let mut g = cat.lock(id(1));
            let beneath = g.durable(id(1));
            let taken = g.remove(id(1));
            g.hide(id(1), beneath, taken.version);
            taken.version
        };
        assert_eq!(seen(&cat), Some(old), "hidden");
        assert_eq!(cat.walk(Catalog::shard_of(id(1))).len(), 1, "walks see it too");
        seal(&entry);
        if given_up {
            assert!(cat.may_drop(&entry));
        }
        cat.lock(id(1)).withdraw(id(1), version);
        assert_eq!(seen(&cat), (!given_up).then_some(old));
        assert_eq!(cat.may_drop(&entry), given_up);
        check_counts(&cat);
    }
}

#[test]
fn what_a_withdrawal_brings_back_still_expires_after_a_crash() {
    let mem = disk();
    let (cat, _) = open(Arc::new(mem.clone()), Path::new("/c"), 1).unwrap();
    let entry = container(&cat);
    let place = Place::new(entry.no, 1).unwrap();
    let new = NewValue { expires_at: u64::MAX / 2, ..value(1) };
    let v = cat.lock(id(1)).put_in_flight(id(1), new);
    assert!(cat.lock(id(1)).commit(id(1), &v, place));
    let mut g = cat.lock(id(1));
    let beneath = g.durable(id(1));
    let taken = g.remove(id(1));
    g.hide(id(1), beneath, taken.version);
    drop(g);
    // The reaper and a checkpoint find the container empty.
    let (earliest, noted) = (&entry.earliest_expiry, &entry.expiries_noted);
    entry.reaped((earliest.load(Ordering::SeqCst), noted.load(Ordering::SeqCst)), u64::MAX);
    assert_eq!(earliest.load(Ordering::SeqCst), u64::MAX);
    cat.checkpoint_now().unwrap();
    cat.lock(id(1)).withdraw(id(1), taken.version);
    cat.sync().unwrap();
    let known = |r: &Recovered| r.containers.iter().find(|k| k.no == entry.no).map(|k| k.earliest_expiry);
    drop(cat);
    let (_, recovered) = Catalog::open(setup(Arc::new(mem), Path::new("/c"), 2)).unwrap();
    assert!(known(&recovered).unwrap() < u64::MAX / 2, "the reaper never looks at it: {recovered:?}");
}

#[test]
fn a_move_under_a_hidden_write_moves_what_is_seen() {
    let (cat, _, old, new) = world();
    let (v, _) = cat.lock(id(1)).put_hidden(id(1), value(3));
    assert!(cat.lock(id(1)).swap(id(1), old, new, Version(1), 0));
    assert_eq!(seen(&cat), Some(new));
    cat.lock(id(1)).withdraw(id(1), v.version);
    assert_eq!(seen(&cat), Some(new));
    check_counts(&cat);
}

#[test]
fn what_was_killed_or_cleared_under_a_hidden_write_does_not_come_back() {
    for clear in [false, true] {
        for committed in [false, true] {
            let (cat, _, old, new) = world();
            let v = if committed {
                put(&cat, new)
            } else {
                cat.lock(id(1)).put_hidden(id(1), value(3)).0.version
            };
            if clear {
                let mut gone = Vec::new();
                assert_eq!(cat.clear(|_, i| gone.extend_from_slice(i)), 1);
                assert_eq!(gone, [id(1)]);
            } else {
                assert!(cat.lock(id(1)).kill(id(1), old));
            }
            assert_eq!(seen(&cat), None);
            cat.lock(id(1)).withdraw(id(1), v);
            assert_eq!(seen(&cat), None);
            assert!(durable(&cat).is_empty());
            check_counts(&cat);
        }
    }
}

#[test]
fn a_withdrawn_put_does_not_kill_what_only_cannot_be_reached() {
    let mem = disk();
    let (cat, _) = open(Arc::new(mem.clone()), Path::new("/c"), 1).unwrap();
    let place = Place::new(container(&cat).no, 1).unwrap();
    write(&cat, id(1), place);
    cat.sync().unwrap();
    drop(cat);
    // Its directory is away: nothing is attached.
    let (cat, _) = Catalog::open(setup(Arc::new(mem), Path::new("/c"), 2)).unwrap();
    assert_eq!(seen(&cat), None);
    let (v, _) = cat.lock(id(1)).put_hidden(id(1), value(3));
    cat.lock(id(1)).withdraw(id(1), v.version);
    assert_eq!(durable(&cat)[&id(1)].0, place);
}
