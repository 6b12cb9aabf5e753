//! Tests of the catalog. `World` drives a catalog and a plain model of it side by side.

mod crash;
mod damage;
mod hidden;
mod model;
mod places;

use super::*;
use crate::clock::ManualClock;
use crate::container::Purpose;
use crate::pair::Pair;
use crate::sim::{Dice, Fault, SimFs};
use crate::testing::Hollow;
use crate::types::{ContentType, Tier};
use bytes::Bytes;
use frame::{FRAME, HEAD};
use journal::COPIES;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::AtomicBool;

fn setup(vfs: Arc<dyn Vfs>, dir: &Path, open: u64) -> Setup {
    Setup {
        vfs,
        dir: dir.to_path_buf(),
        store: [9; 16],
        open,
        clock: Arc::new(EngineClock::new(Arc::new(ManualClock::new(1000)))),
        read_only: false,
        has_containers: open > 1,
        // So that they cross it.
        journal_step: 1 << 12,
    }
}

/// Opens a catalog and attaches what it knows.
fn open(vfs: Arc<dyn Vfs>, dir: &Path, counter: u64) -> Result<(Catalog, Recovered)> {
    open_with(setup(vfs, dir, counter))
}

fn open_with(how: Setup) -> Result<(Catalog, Recovered)> {
    let (cat, rec) = Catalog::open(how)?;
    for k in &rec.containers {
        cat.containers.attach(*k, Arc::new(Hollow(0)));
    }
    cat.count_live();
    Ok((cat, rec))
}

fn container(cat: &Catalog) -> Arc<Entry> {
    let reserved = cat.containers.reserve(Purpose::Write).unwrap();
    cat.containers.publish(reserved, Tier::Ssd, 0, 7, Arc::new(Hollow(0)))
}

fn seal(entry: &Entry) {
    entry.sealed.store(true, Ordering::Release);
}

fn value(n: u64) -> NewValue {
    NewValue {
        pair: Pair::new(n.to_string().as_bytes(), &Bytes::from_static(b"some value")),
        content_type: ContentType::Binary,
        expires_at: 0,
    }
}

/// Identity `i` of a small set that shares shards.
fn id(i: u8) -> Ident {
    Ident::from_bits((u64::from(i % 5) << 40) | (u64::from(i) + 1))
}

/// Writes and commits one identity at a place.
fn write(cat: &Catalog, ident: Ident, place: Place) {
    let v = cat.lock(ident).put_in_flight(ident, value(1));
    assert!(cat.lock(ident).commit(ident, &v, place));
}

/// A place in the index, and the expiry that was changed since.
type At = (Place, Option<u64>);

/// What the index says.
fn durable(cat: &Catalog) -> BTreeMap<Ident, At> {
    let mut all = BTreeMap::new();
    for no in 0..SHARDS {
        let shard = cat.shard(no).read();
        for (ident, place) in shard.index.iter() {
            all.insert(ident, (place, shard.expiries.get(&ident).copied()));
        }
        for ident in shard.expiries.keys() {
            assert!(shard.index.get(*ident).is_some(), "an expiry of nothing");
        }
    }
    all
}

/// Live counts are exact, and the queue holds exactly what is marked as queued.
fn check_counts(cat: &Catalog) {
    let mut live: BTreeMap<u16, i64> = BTreeMap::new();
    for (place, _) in durable(cat).values() {
        *live.entry(place.container()).or_default() += 1;
    }
    for e in cat.containers.all() {
        let n = live.remove(&e.no).unwrap_or(0);
        assert_eq!(e.live.load(Ordering::Acquire), n, "live count of container {}", e.no);
    }
    assert!(live.is_empty(), "places in containers that are not there: {live:?}");
    let queued: usize = cat.shards.iter().map(|s| s.read().dirty.values().filter(|d| d.queued).count()).sum();
    assert_eq!(cat.buffer.queued(), queued);
    let aged = |d: &dirty::Dirty| d.since.is_some_and(|_| d.queued);
    let aged: usize = cat.shards.iter().map(|s| s.read().dirty.values().filter(|d| aged(d)).count()).sum();
    assert_eq!(cat.buffer.aged(), aged);
    for shard in &cat.shards {
        let shard = shard.read();
        let wet = || shard.dirty.iter().filter(|(_, d)| d.newest.is_some());
        let only = wet().filter(|(ident, _)| shard.index.get(**ident).is_none()).count() as u64;
        assert_eq!(shard.wet, super::shard::Wet { all: wet().count() as u64, only });
    }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Put(u8, bool),
    Take(u8),
    Commit(u8),
    Requeue(u8),
    Own(u8, bool),
    Remove(u8),
    Swap(u8, bool),
    Kill(u8),
    Expiry(u8, u8),
    Enqueue,
    Clear,
    Sync,
    Checkpoint,
    NewContainer,
    Drop,
    Reopen(u64),
    /// A call this far ahead fails, once or from then on.
    Fault(u8, bool),
}

/// A disk with the directories of the tests.
fn disk() -> SimFs {
    SimFs::new(1).with_dir(Path::new("/c")).with_dir(Path::new(damage::DIR))
}

/// The change after so many.
fn nth(n: u64) -> RangeInclusive<u64> {
    n + 1..=n + 1
}

/// What the model knows of a dirty value.
#[derive(Debug, Clone, Copy)]
struct Wet {
    seq: u64,
    version: Version,
    expires_at: u64,
}

/// A catalog beside its model.
struct World {
    vfs: Option<SimFs>,
    real: Arc<dyn Vfs>,
    dir: PathBuf,
    cat: Option<Catalog>,
    counter: u64,
    seq: u64,
    position: u32,
    current: Option<Arc<Entry>>,
    flights: Vec<(Flying, u64)>,
    durable: BTreeMap<Ident, At>,
    dirty: BTreeMap<Ident, Wet>,
    /// What comes back from a batch with a lower number is garbage.
    barrier: BTreeMap<Ident, u64>,
    /// The index at the last sync that was acknowledged, and the changes since, in order.
    acked: BTreeMap<Ident, At>,
    log: Vec<Vec<(Ident, Option<At>)>>,
}

impl World {
    fn new(vfs: Option<SimFs>, dir: &Path) -> World {
        let real: Arc<dyn Vfs> = match &vfs {
            Some(mem) => Arc::new(mem.clone()),
            None => Arc::new(crate::vfs::RealFs),
        };
        World {
            vfs,
            real,
            dir: dir.to_path_buf(),
            cat: None,
            counter: 0,
            seq: 0,
            position: 0,
            current: None,
            flights: Vec::new(),
            durable: BTreeMap::new(),
            dirty: BTreeMap::new(),
            barrier: BTreeMap::new(),
            acked: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    fn cat(&self) -> &Catalog {
        self.cat.as_ref().unwrap()
    }

    /// Ends the process and cuts the power, then opens again.
    fn reopen(&mut self, seed: u64) {
        self.crash(seed);
        self.start().unwrap();
    }

    fn crash(&mut self, seed: u64) {
        self.flights.clear();
        self.current = None;
        self.cat = None;
        if let Some(mem) = &self.vfs {
            let cut = mem.crash(&mut Dice::new(seed));
            self.real = Arc::new(cut.clone());
            self.vfs = Some(cut);
        }
    }

    fn start(&mut self) -> Result<()> {
        self.counter += 1;
        let mut how = setup(self.real.clone(), &self.dir, self.counter);
        how.has_containers = self.position > 0;
        let (cat, _) = open_with(how)?;
        let found = durable(&cat);
        // A prefix of the changes, no shorter than what was acknowledged.
        let mut state = self.acked.clone();
        let mut matches = state == found;
        for step in &self.log {
            if matches {
                break;
            }
            apply(&mut state, step);
            matches = state == found;
        }
        assert!(matches, "found {found:?}, acknowledged {:?}, then {:?}", self.acked, self.log);
        self.durable = found.clone();
        self.acked = found;
        self.log.clear();
        self.dirty.clear();
        self.cat = Some(cat);
        self.check();
        Ok(())
    }

    fn place(&mut self) -> Place {
        if self.current.is_none() {
            self.current = Some(container(self.cat()));
        }
        self.position += 1;
        Place::new(self.current.as_ref().unwrap().no, self.position).unwrap()
    }

    fn change(&mut self, changes: Vec<(Ident, Option<At>)>) {
        apply(&mut self.durable, &changes);
        self.log.push(changes);
    }

    fn acknowledge(&mut self, result: &Result<()>) {
        if result.is_ok() {
            self.acked = self.durable.clone();
            self.log.clear();
        }
    }

    fn wet(&mut self, ident: Ident, version: Version, expires_at: u64) {
        self.seq += 1;
        self.dirty.insert(ident, Wet { seq: self.seq, version, expires_at });
    }

    fn commit(&mut self, flying: &Flying, seq: u64) {
        let (ident, place) = (flying.ident, self.place());
        let current = self.cat().lock(ident).commit(ident, &flying.value, place);
        let barrier = self.barrier.entry(ident).or_default();
        assert_eq!(current, seq > *barrier);
        if current {
            *barrier = seq;
            if self.dirty.get(&ident).is_some_and(|w| w.seq == seq) {
                self.dirty.remove(&ident);
            }
            self.change(vec![(ident, Some((place, None)))]);
        }
    }

    fn kill_stale(&mut self, ident: Ident) {
        if self.durable.contains_key(&ident) {
            self.change(vec![(ident, None)]);
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Put(i, queue) => {
                let v = self.cat().lock(id(i)).put(id(i), value(u64::from(i)), queue);
                self.wet(id(i), v.version, 0);
            }
            Op::Take(n) => {
                for f in self.cat().take_dirty(usize::from(n % 4) + 1, 1 << 20) {
                    let w = self.dirty[&f.ident];
                    assert_eq!(w.version, f.value.version, "the newest value is taken");
                    self.flights.push((f, w.seq));
                }
            }
            Op::Commit(n) => {
                if !self.flights.is_empty() {
                    let (f, seq) = self.flights.remove(usize::from(n) % self.flights.len());
                    self.commit(&f, seq);
                }
            }
            Op::Requeue(n) => {
                if !self.flights.is_empty() {
                    let (f, _) = self.flights.remove(usize::from(n) % self.flights.len());
                    self.cat().lock(f.ident).requeue(f.ident, &f.value, f.since);
                }
            }
            Op::Own(i, good) => self.own(id(i), good),
            Op::Remove(i) => {
                let taken = self.cat().lock(id(i)).remove(id(i));
                assert_eq!(taken.frame.is_some(), self.durable.contains_key(&id(i)));
                self.seq += 1;
                self.barrier.insert(id(i), self.seq);
                self.dirty.remove(&id(i));
                self.kill_stale(id(i));
            }
            Op::Swap(i, stale) => self.swap(id(i), stale),
            Op::Kill(i) => {
                if let Some((place, _)) = self.durable.get(&id(i)).copied() {
                    let other = Place::new(place.container(), place.position() ^ 1).unwrap();
                    assert!(!self.cat().lock(id(i)).kill(id(i), other));
                    assert!(self.cat().lock(id(i)).kill(id(i), place));
                    self.kill_stale(id(i));
                }
            }
            Op::Expiry(i, ms) => {
                let set = self.cat().lock(id(i)).set_expiry(id(i), u64::from(ms));
                if self.dirty.contains_key(&id(i)) {
                    self.wet(id(i), set.unwrap(), u64::from(ms));
                } else if let Some((place, _)) = self.durable.get(&id(i)).copied() {
                    self.change(vec![(id(i), Some((place, Some(u64::from(ms)))))]);
                } else {
                    assert_eq!(set, None);
                }
            }
            Op::Enqueue => self.cat().enqueue_all(),
            Op::Clear => self.clear(),
            Op::Sync => {
                let r = self.cat().sync();
                self.acknowledge(&r);
            }
            Op::Checkpoint => {
                let r = self.cat().checkpoint_now();
                self.acknowledge(&r);
            }
            Op::NewContainer => {
                if let Some(old) = self.current.take() {
                    seal(&old);
                }
            }
            Op::Drop => self.drop_empty(),
            Op::Reopen(seed) => self.reopen(seed),
            Op::Fault(ahead, once) => {
                if let Some(mem) = &self.vfs {
                    let at = mem.changes() + u64::from(ahead) + 1;
                    if once { mem.fail_changes(at..=at) } else { mem.fail_changes(at..) }
                }
            }
        }
    }

    /// A value that its caller writes.
    fn own(&mut self, ident: Ident, good: bool) {
        let before = self.dirty.get(&ident).copied();
        let v = self.cat().lock(ident).put_in_flight(ident, value(2));
        self.wet(ident, v.version, 0);
        let w = self.dirty[&ident];
        if good {
            let f = Flying { ident, value: v, since: 0 };
            self.commit(&f, w.seq);
        } else {
            // What was newest before is the newest again.
            self.cat().lock(ident).abort(ident, &v);
            match before {
                Some(before) => self.dirty.insert(ident, before),
                None => self.dirty.remove(&ident),
            };
        }
    }

    fn swap(&mut self, ident: Ident, stale: bool) {
        let Some((place, changed)) = self.durable.get(&ident).copied() else { return };
        let new = self.place();
        // A stale copy folded an expiry that was changed since.
        let folded = if stale { 77_777 } else { changed.unwrap_or(0) };
        let wrong = Place::new(place.container(), Place::MAX_POSITION).unwrap();
        assert!(!self.cat().lock(ident).swap(ident, wrong, new, Version(1), 0));
        assert!(self.cat().lock(ident).swap(ident, place, new, Version(1), folded));
        let left = changed.filter(|ms| *ms != folded);
        // Two frames: the move, and the expiry that it did not know.
        self.change(vec![(ident, Some((new, None)))]);
        if left.is_some() {
            self.change(vec![(ident, Some((new, left)))]);
        }
    }

    fn clear(&mut self) {
        let mut visible: BTreeSet<Ident> = self.durable.keys().copied().collect();
        visible.extend(self.dirty.keys());
        let mut gone = BTreeSet::new();
        let n = self.cat().clear(|_, idents| gone.extend(idents.iter().copied()));
        assert_eq!(gone, visible);
        // Of what is on disk alone it knows only where the expiry was changed.
        let now = self.cat().now();
        let over = |ms: u64| ms != 0 && ms <= now;
        let beneath = self.durable.iter().filter(|(i, _)| !self.dirty.contains_key(i));
        let expired = beneath.filter(|(_, (_, changed))| changed.is_some_and(over)).count()
            + self.dirty.values().filter(|w| over(w.expires_at)).count();
        assert_eq!(n, (visible.len() - expired) as u64);
        self.seq += 1;
        for i in 0..u8::MAX {
            self.barrier.insert(id(i), self.seq);
        }
        self.dirty.clear();
        for no in 0..SHARDS {
            let shard: Vec<_> =
                self.durable.keys().filter(|i| Catalog::shard_of(**i) == no).map(|i| (*i, None)).collect();
            if !shard.is_empty() {
                self.change(shard);
            }
        }
    }

    fn drop_empty(&mut self) {
        for e in self.cat().containers.all() {
            if self.cat().may_drop(&e) {
                let r = self.cat().sync();
                self.acknowledge(&r);
                if r.is_ok() {
                    self.cat().forget(&e);
                }
            }
        }
    }

    fn check(&self) {
        let cat = self.cat();
        assert_eq!(durable(cat), self.durable);
        check_counts(cat);
        for i in 0..=40 {
            match (cat.find(id(i)), self.dirty.get(&id(i)), self.durable.get(&id(i))) {
                (Found::Dirty(v), Some(w), _) => assert_eq!(v.version, w.version),
                (Found::At(l), None, Some((place, changed))) => {
                    assert_eq!((l.place, l.expires_at), (*place, *changed));
                    assert_eq!(l.entry.no, place.container());
                }
                (Found::Absent, None, None) => {}
                other => panic!("identity {i}: {other:?}"),
            }
        }
    }
}

fn apply(state: &mut BTreeMap<Ident, At>, step: &[(Ident, Option<At>)]) {
    for (ident, at) in step {
        match at {
            Some(at) => state.insert(*ident, *at),
            None => state.remove(ident),
        };
    }
}

/// A store that is only read after a kill would replay the same journal after the next, and after each one more.
#[test]
fn what_was_replayed_counts_until_the_next_checkpoint() {
    let (vfs, dir) = (disk(), Path::new("/store"));
    let open = |counter| open(Arc::new(vfs.clone()), dir, counter).unwrap().0;
    let cat = open(1);
    let entry = container(&cat);
    for n in 0..200u8 {
        write(&cat, id(n), Place::new(entry.no, u32::from(n)).unwrap());
    }
    cat.push(Frame::Time { ms: cat.now() });
    cat.sync().unwrap();
    let least = 200 * FRAME as u64;
    assert!(cat.journal_changes() >= least);
    drop(cat);
    // Twice, for nothing is written by who only reads.
    for counter in 2..4 {
        let cat = open(counter);
        assert_eq!(
            cat.journal_changes(),
            least + FRAME as u64,
            "the container's frame too, not that of the time"
        );
        assert_eq!(cat.journal_len(), HEAD as u64);
    }
    let cat = open(4);
    cat.checkpoint_now().unwrap();
    assert_eq!(cat.journal_changes(), 0);
    drop(cat);
    assert_eq!(open(5).journal_changes(), 0);
}
