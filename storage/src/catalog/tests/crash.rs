//! Disks that fail at every call, power cuts at every call, full disks.

use super::*;
use crate::sim::Op as Call;
use crate::testing::FaultFs;
use crate::vfs::RealFs;

/// Two checkpoints, containers made and dropped, moves, removals, a clear, values in flight across syncs.
const SCRIPT: &[Op] = &[
    Op::Put(1, true),
    Op::Put(2, true),
    Op::Put(3, true),
    Op::Take(3),
    Op::Commit(0),
    Op::Commit(0),
    Op::Sync,
    Op::Remove(1),
    Op::Put(1, true),
    Op::Sync,
    Op::Commit(0),
    Op::Take(3),
    Op::Commit(0),
    Op::Checkpoint,
    Op::NewContainer,
    Op::Own(4, true),
    Op::Swap(1, false),
    Op::Swap(2, false),
    Op::Swap(3, false),
    Op::Expiry(2, 9),
    Op::Sync,
    Op::Drop,
    Op::Drop,
    Op::Own(5, true),
    Op::Sync,
    Op::Remove(5),
    Op::Checkpoint,
    Op::Own(6, true),
    Op::Sync,
    Op::Clear,
    Op::Own(7, true),
    Op::Sync,
    Op::Own(8, true),
];

fn world() -> World {
    let mem = disk();
    mem.keep_trace();
    World::new(Some(mem), Path::new("/c"))
}

/// A catalog in which the first of two writes is durable, and the second is only queued; and their container.
fn one_synced_of_two() -> (SimFs, Catalog, Arc<Entry>) {
    let mem = disk();
    let (cat, _) = open(Arc::new(mem.clone()), Path::new("/c"), 1).unwrap();
    let entry = container(&cat);
    write(&cat, id(1), Place::new(entry.no, 1).unwrap());
    cat.sync().unwrap();
    write(&cat, id(2), Place::new(entry.no, 2).unwrap());
    (mem, cat, entry)
}

fn script_calls() -> (u64, Vec<String>) {
    let mut w = world();
    w.start().unwrap();
    for op in SCRIPT {
        w.run(*op);
        w.check();
    }
    let mem = w.vfs.unwrap();
    (mem.changes(), mem.trace())
}

/// Every call from the n-th on fails, opening included; then the power goes. What was acknowledged is there, what
/// was not is a prefix; and opening again, which is cut off at each of its calls as well, changes nothing.
#[test]
fn a_power_cut_at_any_call_leaves_a_prefix_no_shorter_than_what_was_acknowledged() {
    let (calls, _) = script_calls();
    for n in 0..calls {
        for seed in [n % 5, n % 3 + 7] {
            let mut w = world();
            w.vfs.as_ref().unwrap().fail_changes(n + 1..);
            if w.start().is_ok() {
                for op in SCRIPT {
                    w.run(*op);
                    w.check();
                }
            } else {
                w.counter = 0;
            }
            // A recovery that is cut off as well.
            w.crash(n * 0x9e37_79b9 + 1);
            w.vfs.as_ref().unwrap().fail_changes(seed * 5 + 1..);
            if let Err(e) = w.start() {
                assert!(matches!(e, Error::Io { .. }), "{e}");
            }
            w.reopen(n * 0x85eb_ca6b + 7);
            w.run(Op::Own(9, true));
            w.run(Op::Sync);
            w.reopen(2);
        }
    }
}

/// What is acknowledged survives a power cut that takes everything unsynced, and then the loss of either copy.
#[test]
fn what_is_acknowledged_is_on_stable_storage_in_both_copies() {
    let mut w = world();
    w.start().unwrap();
    for op in SCRIPT {
        w.run(*op);
        if !matches!(op, Op::Sync | Op::Checkpoint) {
            continue;
        }
        assert!(w.log.is_empty(), "acknowledged");
        for copy in COPIES {
            let mem = w.vfs.as_ref().unwrap().crash_losing_all();
            for path in mem.files().iter().filter(|p| p.starts_with(Path::new("/c").join(copy))) {
                mem.delete(path);
            }
            let (cat, _) = open(Arc::new(mem), Path::new("/c"), 2).unwrap();
            assert_eq!(durable(&cat), w.acked, "{op:?} without copy {copy}");
        }
    }
}

/// One call fails with EIO. Whatever `sync` then acknowledges is there after a power cut.
#[test]
fn an_error_at_any_call_never_makes_sync_lie() {
    let (calls, trace) = script_calls();
    assert!(trace.iter().any(|t| t.starts_with("Rename")) && trace.iter().any(|t| t.starts_with("SyncDir")));
    let mut acknowledged = 0;
    for n in 0..calls {
        for seed in [n % 7, n % 3 + 9] {
            let mut w = world();
            w.vfs.as_ref().unwrap().fail_changes(nth(n));
            if w.start().is_err() {
                w.counter = 0;
                w.reopen(seed);
            }
            for op in SCRIPT {
                w.run(*op);
                w.check();
            }
            // One error is mended by now: the last sync is good.
            let r = w.cat().sync();
            acknowledged += u64::from(r.is_ok());
            assert!(r.is_ok(), "call {n} ({}): {r:?}", trace[usize::try_from(n).unwrap()]);
            w.acknowledge(&r);
            w.reopen(n * 0x9e37_79b9 + seed);
        }
    }
    assert_eq!(acknowledged, calls * 2);
}

/// As above, with a second error while the first is being mended.
#[test]
fn an_error_while_an_error_is_mended_never_makes_sync_lie() {
    let (calls, _) = script_calls();
    for n in 20..calls {
        for ahead in (1..25).step_by(1 + n as usize % 2) {
            let mut w = world();
            w.start().unwrap();
            let mem = w.vfs.clone().unwrap();
            mem.fail_changes(nth(n));
            let mut armed = false;
            for op in SCRIPT {
                w.run(*op);
                if !armed && w.cat().journal.as_ref().unwrap().broken() {
                    armed = true;
                    mem.fail_changes(nth(mem.changes() + ahead));
                }
            }
            let r = w.cat().sync();
            w.acknowledge(&r);
            w.check();
            w.reopen(n + ahead);
        }
    }
}

/// The journal fails under another thread while a checkpoint is between its shards and its end: neither the
/// checkpoint nor the journal has those frames, so nobody may be told that they are durable.
#[test]
fn a_sync_that_fails_during_a_checkpoint_is_not_covered_by_it() {
    for before_end in [false, true] {
        let mem = disk();
        let (cat, _) = open(Arc::new(mem.clone()), Path::new("/c"), 1).unwrap();
        let entry = container(&cat);
        write(&cat, id(1), Place::new(entry.no, 1).unwrap());
        cat.sync().unwrap();
        let journal = cat.journal.as_ref().unwrap();
        let one = cat.checkpointing.lock();
        let (seq, _) = journal.rotate(5).unwrap();
        let late = |p: u32| {
            // The shards' blocks are written already; a write comes, and its sync fails.
            write(&cat, id(2), Place::new(entry.no, p).unwrap());
            mem.fail_changes(nth(mem.changes() + 1));
            assert!(journal.sync(5).is_err());
        };
        let written = if before_end {
            late(2);
            cat.write_checkpoint(journal, seq, &[])
        } else {
            let w = cat.write_checkpoint(journal, seq, &[]);
            late(2);
            w
        };
        match written {
            Ok((pair, newest)) => {
                assert!(!before_end, "the pair that failed is not written again");
                cat.publish(&pair, seq).unwrap();
                journal.mend(newest);
            }
            Err(_) => assert!(before_end),
        }
        assert!(journal.broken(), "still: the late frame is nowhere");
        drop(one);
        cat.sync().unwrap();
        assert!(!journal.broken());
        let end = durable(&cat);
        assert_eq!(end.len(), 2);
        let (again, _) = open(Arc::new(mem.crash_losing_all()), Path::new("/c"), 2).unwrap();
        assert_eq!(durable(&again), end);
    }
}

fn full(mem: &SimFs, slack: u64) {
    mem.set_room(Path::new("/"), Some(mem.used(Path::new("/")) + slack));
}

#[test]
fn a_full_disk_gives_up_the_reserve_and_removals_become_durable() {
    let mem = disk();
    let mut w = World::new(Some(mem.clone()), Path::new("/c"));
    w.start().unwrap();
    for i in 0..10 {
        w.run(Op::Own(i, true));
    }
    w.run(Op::Sync);
    w.run(Op::Checkpoint);
    w.cat().maintain();
    let reserve = Path::new("/c/reserve").to_path_buf();
    assert!(mem.files().contains(&reserve));
    full(&mem, 100);
    for i in 0..5 {
        w.run(Op::Remove(i));
        w.run(Op::Sync);
        assert!(w.log.is_empty(), "acknowledged");
    }
    assert!(!mem.files().contains(&reserve), "given up");
    w.cat().maintain();
    assert!(!mem.files().contains(&reserve), "there is no room to set it aside again");
    mem.set_room(Path::new("/"), None);
    w.cat().maintain();
    assert!(mem.files().contains(&reserve), "set aside again");
    w.reopen(3);
}

#[test]
fn without_a_reserve_a_full_disk_is_an_error_that_loses_nothing() {
    let mem = disk();
    let mut w = World::new(Some(mem.clone()), Path::new("/c"));
    w.start().unwrap();
    w.run(Op::Own(1, true));
    w.run(Op::Checkpoint);
    full(&mem, 100);
    for round in 0..3 {
        w.run(Op::Own(2 + round, true));
        let r = w.cat().sync();
        assert!(r.as_ref().is_err_and(Error::is_no_space), "{r:?}");
        assert!(!w.cat().journal.as_ref().unwrap().broken(), "nothing failed: there is no room");
        assert!(w.cat().checkpoint_now().is_err());
        w.check();
    }
    // A power cut now: what was acknowledged is there once there is room for a new journal.
    let cut = mem.crash_losing_all();
    assert_eq!(durable(&open(Arc::new(cut), Path::new("/c"), 2).unwrap().0), w.acked);
    mem.set_room(Path::new("/"), None);
    w.run(Op::Sync);
    assert!(w.log.is_empty(), "works again when there is room");
    w.reopen(3);
    assert_eq!(w.durable.len(), 4);
}

/// A broken journal on a full disk: the checkpoint that mends it may use the reserve too.
#[test]
fn mending_may_use_the_reserve() {
    let mem = disk();
    let mut w = World::new(Some(mem.clone()), Path::new("/c"));
    w.start().unwrap();
    w.run(Op::Own(1, true));
    w.run(Op::Sync);
    w.cat().maintain();
    full(&mem, 100);
    w.run(Op::Remove(1));
    mem.fail_changes(nth(mem.changes()));
    w.run(Op::Sync);
    assert!(w.log.is_empty(), "acknowledged");
    w.reopen(3);
    assert!(w.durable.is_empty());
}

/// A pair begun while the journal was broken follows on from nothing until its checkpoint is published, even if it
/// can be written perfectly well.
#[test]
fn a_pair_whose_checkpoint_was_not_published_counts_for_nothing() {
    for kind in [crate::sim::Op::Rename, crate::sim::Op::SyncDir] {
        let (mem, cat, entry) = one_synced_of_two();
        mem.fail_changes(nth(mem.changes()));
        let journal = cat.journal.as_ref().unwrap();
        assert!(journal.sync(1).is_err());
        mem.fail(Fault::on(kind));
        assert!(cat.sync().is_err());
        mem.heal();
        write(&cat, id(3), Place::new(entry.no, 3).unwrap());
        assert!(journal.sync(1).is_err(), "only a checkpoint makes it good");
        cat.sync().unwrap();
        let (again, _) = open(Arc::new(mem.crash_losing_all()), Path::new("/c"), 2).unwrap();
        assert_eq!(durable(&again), durable(&cat));
    }
}

/// What an orphan holds is never named durable before its checkpoint is published: a crash would find a gap below
/// that number and take an undamaged catalog for a lost one.
#[test]
fn an_orphan_does_not_name_itself_durable() {
    let (mem, cat, entry) = one_synced_of_two();
    let cat = Arc::new(cat);
    // A write comes while the checkpoint is being made: its frame goes to the new pair.
    let (weak, no, n) = (Arc::downgrade(&cat), entry.no, AtomicU64::new(9));
    cat.on_checkpoint(move || {
        let p = u32::try_from(n.fetch_add(1, Ordering::Relaxed)).unwrap();
        write(&weak.upgrade().unwrap(), id(3), Place::new(no, p).unwrap());
        Vec::new()
    });
    mem.fail_changes(nth(mem.changes()));
    assert!(cat.journal.as_ref().unwrap().sync(1).is_err());
    mem.fail(Fault::on(crate::sim::Op::Rename));
    let durable_before = cat.journal.as_ref().unwrap().durable();
    for _ in 0..3 {
        assert!(cat.sync().is_err());
        assert_eq!(cat.journal.as_ref().unwrap().durable(), durable_before);
        let (again, _) = open(Arc::new(mem.kill()), Path::new("/c"), 2).unwrap();
        assert!(durable(&again).contains_key(&id(1)));
    }
    mem.heal();
    cat.sync().unwrap();
    let (again, _) = open(Arc::new(mem.crash_losing_all()), Path::new("/c"), 2).unwrap();
    assert_eq!(durable(&again), durable(&cat));
}

/// A disk that goes on failing gets no trail of files from the attempts to mend.
#[test]
fn attempts_to_mend_leave_no_trail() {
    let mem = disk();
    let (cat, _) = open(Arc::new(mem.clone()), Path::new("/c"), 1).unwrap();
    write(&cat, id(1), Place::new(container(&cat).no, 1).unwrap());
    mem.fail_changes(nth(mem.changes() + 1));
    assert!(cat.journal.as_ref().unwrap().sync(1).is_err());
    let before = mem.files().len();
    for _ in 0..20 {
        // The pair is made; the checkpoint fails.
        mem.fail_changes(nth(mem.changes() + 10));
        assert!(cat.sync().is_err());
    }
    assert!(mem.files().len() <= before + 2, "{:?}", mem.files());
    mem.heal();
    cat.sync().unwrap();
}

/// A pair that grew large is followed by another without a checkpoint, and replay goes through all of them; a
/// program killed over and over does not pile them up.
#[test]
fn replay_goes_through_a_chain_of_pairs_and_opening_shortens_it() {
    let mem = disk();
    let (cat, _) = open(Arc::new(mem.clone()), Path::new("/c"), 1).unwrap();
    cat.journal.as_ref().unwrap().set_max_file(1000);
    let entry = container(&cat);
    for p in 1..3000 {
        write(&cat, id((p % 50) as u8), Place::new(entry.no, p).unwrap());
        if p % 20 == 0 {
            cat.sync().unwrap();
        }
    }
    cat.sync().unwrap();
    let end = durable(&cat);
    let count = mem.files().len();
    assert!(count > 140, "{count}");
    drop(cat);
    let (cat, rec) = open(Arc::new(mem.clone()), Path::new("/c"), 2).unwrap();
    assert_eq!(durable(&cat), end);
    assert_eq!(rec.frames, 3000);
    assert!(mem.files().len() < 8, "{:?}", mem.files());
    drop(cat);
    assert_eq!(durable(&open(Arc::new(mem), Path::new("/c"), 3).unwrap().0), end);
}

/// A catalog at rest with some places in it, with a reserve or without, and what it says.
fn at_rest(reserve: bool) -> (SimFs, BTreeMap<Ident, At>) {
    let mem = disk();
    let (cat, _) = open(Arc::new(mem.clone()), Path::new("/c"), 1).unwrap();
    let entry = container(&cat);
    (1..5).for_each(|i| write(&cat, id(i), Place::new(entry.no, i.into()).unwrap()));
    cat.sync().unwrap();
    if reserve {
        cat.maintain();
    }
    let all = durable(&cat);
    cat.close();
    (mem, all)
}

/// Of a closed store nothing can be removed to make room, but the reserve is there. Wherever such an opening is cut off,
/// the next one finds everything.
#[test]
fn opening_on_a_full_disk_gives_up_the_reserve_and_a_power_cut_meanwhile_loses_nothing() {
    let again = |mem: &SimFs, counter| open(Arc::new(mem.clone()), Path::new("/c"), counter);
    let (mem, all) = at_rest(true);
    full(&mem, 0);
    let before = mem.changes();
    assert_eq!(durable(&again(&mem, 2).unwrap().0), all);
    assert!(!mem.files().contains(&Path::new("/c/reserve").to_path_buf()), "given up");
    for n in 0..mem.changes() - before {
        let (mem, all) = at_rest(true);
        full(&mem, 0);
        mem.stop_after(mem.changes() + n);
        let _ = again(&mem, 2);
        for seed in 0..5 {
            let cut = mem.crash(&mut Dice::new(seed));
            cut.set_room(Path::new("/"), None);
            assert_eq!(durable(&again(&cut, 3).unwrap().0), all, "{n}, seed {seed}");
        }
    }
}

/// A pair that is not whole goes again: attempts on a full or failing disk leave no trail, and lose nothing, wherever
/// the power is cut.
#[test]
fn an_opening_that_cannot_make_its_journal_takes_the_pair_back() {
    let again = |mem: &SimFs, counter| open(Arc::new(mem.clone()), Path::new("/c"), counter);
    let fault = |n| match n {
        0 => None,
        1 => Some(Fault::on(crate::sim::Op::Write).below("/c/b")),
        _ => Some(Fault::on(crate::sim::Op::SyncDir).below("/c/b")),
    };
    for kind in 0..3 {
        let ready = || {
            let (mem, all) = at_rest(false);
            match fault(kind) {
                Some(fault) => mem.fail(fault),
                None => full(&mem, 0),
            }
            (mem, all)
        };
        let (mem, all) = ready();
        let (files, before) = (mem.files(), mem.changes());
        let mut calls = 0;
        for attempt in 0..3 {
            assert!(again(&mem, 2 + attempt).is_err(), "{kind}");
            assert_eq!(mem.files(), files, "{kind}: a trail");
            calls = mem.changes() - before;
        }
        for n in 0..calls {
            let (mem, _) = ready();
            mem.stop_after(mem.changes() + n);
            (0..3).for_each(|attempt| assert!(again(&mem, 2 + attempt).is_err()));
            for seed in 0..5 {
                let cut = mem.crash(&mut Dice::new(seed));
                cut.heal();
                cut.set_room(Path::new("/"), None);
                assert_eq!(durable(&again(&cut, 5).unwrap().0), all, "{kind}, {n}, seed {seed}");
            }
        }
    }
}

/// A process is killed while it syncs, the next opens and answers, and then the power goes: nothing of what the second
/// process found may have been in the page cache alone.
#[test]
fn what_an_opening_found_in_the_page_cache_survives_a_power_cut() {
    let mut unsynced = 0;
    for n in 1..=6 {
        let (mem, cat, _) = one_synced_of_two();
        mem.fail_changes(mem.changes() + n..);
        let _ = cat.sync();
        drop(cat);
        mem.heal();
        let (cat, _) = open(Arc::new(mem.clone()), Path::new("/c"), 2).unwrap();
        let found = durable(&cat);
        unsynced += u32::from(found.contains_key(&id(2)));
        let cut = mem.crash_losing_all();
        let (cat, _) = open(Arc::new(cut), Path::new("/c"), 3).unwrap();
        assert_eq!(durable(&cat), found, "killed before change {n}");
    }
    assert!(unsynced > 0);
}

/// A file system that panics in the journal: the frames are in no queue then, and nothing may count as durable before a
/// checkpoint has them.
#[test]
fn a_panic_while_the_journal_is_written_makes_nothing_durable_that_is_not() {
    for op in [Call::Write, Call::Sync, Call::Allocate] {
        let dir = tempfile::tempdir().unwrap();
        let disk = FaultFs::default();
        let (cat, _) = open(Arc::new(disk.clone()), dir.path(), 1).unwrap();
        let entry = container(&cat);
        for i in 0..200u8 {
            write(&cat, id(i), Place::new(entry.no, u32::from(i)).unwrap());
        }
        let armed = disk.panicking(op);
        armed.store(true, std::sync::atomic::Ordering::SeqCst);
        // It mends the journal by a checkpoint, or says that it could not.
        let done = cat.sync();
        assert!(!armed.load(std::sync::atomic::Ordering::SeqCst), "{op:?}: nothing panicked");
        assert!(done.is_err() || cat.stats().checkpoints > 0, "{op:?}: it says that all is well");
        cat.sync().unwrap();
        let (before, counter) = (durable(&cat), 2);
        assert_eq!(before.len(), 200);
        cat.close();
        drop(cat);
        let (cat, _) = open(Arc::new(RealFs), dir.path(), counter).unwrap();
        assert_eq!(durable(&cat), before, "{op:?}");
    }
}
