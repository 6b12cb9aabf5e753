//! The whole engine on a disk in memory: reads beside moves and removals, and flushes beside writes.

#![cfg(test)]

use bytes::Bytes;
use shuttle::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use thermocline::optimizer::Change;
use thermocline::testing::ManualClock;
use thermocline::{Cache, Persistence, Tier};
use thermocline_interleavings::explore;
use thermocline_storage::sim::SimFs;
use thermocline_testing::history::{Absence, History, Outcome, Promise, Value};

const KIB: u64 = 1 << 10;
/// Larger than memory, so that every read is one of the write buffer or of a disk.
const SMALL: usize = 3 << 10;
/// Over a quarter of the write buffer: written by its caller.
const LARGE: usize = 9 << 10;

/// What stands behind an item that is read enters a memory of this size.
const ROOM: u64 = 64 * KIB;
/// So small that it does.
const NEAR: usize = 1 << 10;

fn open(fs: &SimFs, persistence: Persistence, memory: u64) -> Cache {
    let b = Cache::builder().memory(memory).persistence(persistence);
    let mut b = if memory == ROOM { b.hdd("/h", 256 * KIB) } else { b.ssd("/s", 64 * KIB).cold("/c") };
    b.config_mut().resources.io.write_buffer_size = 32 * KIB;
    let s = &mut b.config_mut().storage;
    s.segment_size = Some(8 * KIB);
    s.generation_size = Some(32 * KIB);
    s.pack_size = Some(16 * KIB);
    s.block_size = 4 * KIB;
    s.max_value_size = Some(16 * KIB);
    s.inflight = Some(1 << 20);
    s.write_stall_limit = 600;
    s.checkpoint_journal_size = 16 * KIB;
    b.simulated(Arc::new(fs.clone()), Arc::new(ManualClock::new(1_700_000_000_000))).open().unwrap()
}

fn disk() -> SimFs {
    ["/s", "/h", "/c"].iter().fold(SimFs::new(1), |fs, dir| fs.with_dir(dir.as_ref()))
}

/// A value that says of its every byte which write it is.
fn value(number: Value, len: usize) -> Bytes {
    Bytes::from(vec![number as u8; len])
}

fn parse(bytes: &[u8]) -> Value {
    let first = *bytes.first().unwrap();
    assert!(bytes.iter().all(|b| *b == first), "bytes of two values");
    Value::from(first)
}

/// A store, and what was done to it.
struct Store {
    fs: SimFs,
    cache: Cache,
    history: History,
    memory: u64,
}

impl Store {
    fn new(persistence: Persistence) -> Arc<Store> {
        Store::with_memory(persistence, KIB)
    }

    fn with_memory(persistence: Persistence, memory: u64) -> Arc<Store> {
        let fs = disk();
        let cache = open(&fs, persistence, memory);
        Arc::new(Store { fs, cache, history: History::default(), memory })
    }

    /// What is clean leaves memory.
    fn free(&self) {
        self.cache.apply(&Change::FreeMemory { bytes: self.memory, from: 0, to: 0 }).unwrap();
    }

    fn put(&self, key: &str, number: Value, len: usize) {
        let begun = self.history.write(key, Some(number), self.fs.changes());
        self.cache.put(key, value(number, len)).unwrap();
        self.history.wrote(key, begun, Outcome::Done, self.fs.changes());
    }

    fn remove(&self, key: &str) {
        let begun = self.history.write(key, None, self.fs.changes());
        self.cache.remove(key).unwrap();
        self.history.wrote(key, begun, Outcome::Done, self.fs.changes());
    }

    fn read(&self, key: &str) {
        let begun = self.history.read(self.fs.changes());
        let found = self.cache.get(key).unwrap();
        self.history.was_read(key, begun, found.as_deref().map(parse), self.fs.changes());
    }

    fn flush(&self) {
        let begun = self.history.flush(self.fs.changes());
        self.cache.flush().unwrap();
        self.history.flushed(begun, self.fs.changes());
    }

    /// What was read is what may be read, and a power cut now keeps what it must.
    fn judge(&self, promise: Promise) {
        for key in self.history.keys() {
            self.read(&key);
        }
        self.history.check(|_| Absence::Told).unwrap();
        assert!(self.cache.verify().unwrap().is_clean());
        let after = open(&self.fs.crash_losing_all(), Persistence::EverySecond, self.memory);
        let found = |key: &str| after.get(key).unwrap().as_deref().map(parse);
        self.history.check_crash(promise, |_| Absence::Told, found).unwrap();
        after.crash();
        self.cache.crash();
    }
}

/// Records in a few segments, of which one is emptied by moves and by what comes after: `a` and `b` fill the first.
fn settled() -> Arc<Store> {
    let store = Store::new(Persistence::EverySecond);
    for (n, key) in ["a", "b", "c", "d"].into_iter().enumerate() {
        store.put(key, n as Value + 1, SMALL);
    }
    store.flush();
    store
}

/// Readers of a record that goes to another tier, comes back, is replaced and removed, while its container is dropped.
fn moved() {
    let store = settled();
    let with = |work: fn(&Store)| {
        let store = store.clone();
        thread::spawn(move || work(&store))
    };
    let threads = [
        with(|s| {
            s.cache.demote("a", Tier::Cold).unwrap();
            s.cache.promote("a", Tier::Ssd).unwrap();
        }),
        with(|s| {
            s.cache.demote("b", Tier::Cold).unwrap();
            s.cache.step().unwrap();
        }),
        with(|s| {
            s.put("a", 11, SMALL);
            s.read("a");
            s.flush();
            s.remove("b");
            s.read("b");
        }),
        with(|s| {
            for _ in 0..2 {
                s.read("a");
                s.read("b");
            }
        }),
    ];
    threads.into_iter().for_each(|t| t.join().unwrap());
    store.cache.step().unwrap();
    store.flush();
    store.judge(Promise::FromFlush);
}

/// Two threads put the same key, one of them a large value, and each sees to it that its write is durable. When it has
/// returned, a power cut finds one of the two.
fn committed(persistence: Persistence) {
    let store = Store::new(persistence);
    store.put("k", 1, SMALL);
    store.flush();
    let durably = |number: Value, len: usize| {
        let store = store.clone();
        thread::spawn(move || {
            store.put("k", number, len);
            // Without a flush that promises it, only `Always` does.
            if persistence != Persistence::Always {
                store.flush();
            }
            store.fs.crash_losing_all()
        })
    };
    let writers = [durably(2, SMALL), durably(3, LARGE)];
    let others = {
        let store = store.clone();
        thread::spawn(move || {
            store.put("j", 4, SMALL);
            store.cache.step().unwrap();
            store.read("k");
        })
    };
    let clones = writers.map(|w| w.join().unwrap());
    others.join().unwrap();
    for clone in clones {
        let after = open(&clone, persistence, KIB);
        let found = after.get("k").unwrap().as_deref().map(parse);
        assert!(matches!(found, Some(2 | 3)), "after a power cut: {found:?}");
        after.crash();
    }
    store.flush();
    store.judge(Promise::FromFlush);
}

/// Neighbours that entered memory, in all runs.
static ENTERED: AtomicU64 = AtomicU64::new(0);

/// What stands behind an item that is asked for is read to enter memory, while it is replaced, and leaves memory for the
/// disk again, or is removed.
fn neighbours(work: fn(&Store)) {
    let store = Store::with_memory(Persistence::EverySecond, ROOM);
    for (n, key) in ["a", "b"].into_iter().enumerate() {
        store.put(key, n as Value + 1, NEAR);
    }
    store.flush();
    store.free();
    let reader = {
        let store = store.clone();
        thread::spawn(move || {
            store.read("a");
            store.cache.step().unwrap();
            store.read("b");
        })
    };
    let writer = {
        let store = store.clone();
        thread::spawn(move || work(&store))
    };
    [reader, writer].into_iter().for_each(|t| t.join().unwrap());
    store.read("b");
    ENTERED.fetch_add(store.cache.stats().counts.prefetched, Ordering::Relaxed);
    store.flush();
    store.judge(Promise::FromFlush);
}

#[test]
fn what_is_read_ahead_is_no_older_than_what_is_there() {
    explore("a neighbour that is removed", || neighbours(|s| s.remove("b")));
    entered();
    explore("a neighbour that is replaced", || {
        neighbours(|s| {
            s.put("b", 12, NEAR);
            s.flush();
            s.free();
            s.read("b");
        });
    });
    entered();
}

/// Says how many neighbours entered memory since it was asked last: where none did, nothing was shown.
fn entered() {
    let entered = ENTERED.swap(0, Ordering::Relaxed);
    println!("{entered} neighbours entered memory");
    assert!(entered > 0, "none ever entered memory");
}

#[test]
fn reads_beside_moves_and_removals() {
    explore("a record that moves while it is read, replaced and removed", moved);
}

#[test]
fn a_flush_waits_for_what_it_has_to() {
    explore("flushes beside writes, every_second", || committed(Persistence::EverySecond));
    explore("flushes beside writes, on_eviction", || committed(Persistence::OnEviction));
}

#[test]
fn an_acknowledged_write_is_durable() {
    explore("writes that are durable when they return", || committed(Persistence::Always));
}
