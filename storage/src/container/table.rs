//! The table of all containers of a store, and their numbers.

use super::{Container, Entry, Known, Purpose};
use crate::error::{Error, Result};
use crate::types::{ContainerNo, Place, Tier, Version};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// A number and an id taken for a container that is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// The number.
    pub no: ContainerNo,
    /// The id, which goes into the container's header and name.
    pub id: u64,
}

/// The containers of a tier.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// How many.
    pub containers: u64,
    /// Live records in them.
    pub live: u64,
}

type PublishHook = Box<dyn Fn(&Entry) + Send + Sync>;

/// How many containers a store may have.
pub(super) const MOST: u32 = 65_535;
/// So many of their numbers only reclaim may take: where all are in use, a container is rewritten to free another's.
pub(super) const FOR_RECLAIM: usize = 64;
/// So many numbers are counted before others have their turn.
const COUNTED_AT_A_TIME: usize = 1024;

/// The table of all containers of a store.
pub struct Containers {
    table: RwLock<Vec<Option<Arc<Entry>>>>,
    numbers: Mutex<Numbers>,
    next_id: AtomicU64,
    hook: OnceLock<PublishHook>,
}

#[derive(Debug, Default)]
struct Numbers {
    /// One past the largest number ever taken.
    high: u32,
    /// Numbers that may be taken at once.
    free: Vec<ContainerNo>,
    /// Numbers whose drop is durable but whose entry somebody may still hold.
    resting: Vec<(ContainerNo, Weak<Entry>)>,
}

impl Numbers {
    /// How many may be taken at once.
    fn left(&self) -> usize {
        self.free.len() + (MOST as usize).saturating_sub(self.high as usize)
    }

    /// Those whose entry nobody holds any more rest no longer.
    fn wake(&mut self) {
        let (rested, resting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.resting).into_iter().partition(|(_, w)| w.strong_count() == 0);
        self.resting = resting;
        self.free.extend(rested.into_iter().map(|(no, _)| no));
    }
}

impl fmt::Debug for Containers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Containers").field("count", &self.all().len()).finish_non_exhaustive()
    }
}

impl Containers {
    /// An empty table. Ids count up from the open counter's first, so that none recurs.
    pub fn new(open_counter: u64) -> Containers {
        Containers {
            table: RwLock::new(Vec::new()),
            numbers: Mutex::default(),
            next_id: AtomicU64::new(Version::first_of(open_counter).0 | 1),
            hook: OnceLock::new(),
        }
    }

    /// What is called with each new container before any place in it is handed out. Set once.
    pub fn on_publish(&self, hook: impl Fn(&Entry) + Send + Sync + 'static) {
        let _ = self.hook.set(Box::new(hook));
    }

    /// Gives out no id below this any more.
    pub fn skip_ids(&self, to: u64) {
        self.next_id.fetch_max(to | 1, Ordering::Relaxed);
    }

    /// Takes a number and an id for a container about to be made.
    ///
    /// # Errors
    /// `NoNumber` when all are in use, or all but those that only reclaim may take.
    pub fn reserve(&self, purpose: Purpose) -> Result<Reserved> {
        let spare = if purpose == Purpose::Reclaim { 0 } else { FOR_RECLAIM };
        let mut numbers = self.numbers.lock();
        // Some may be free and yet too few: those that rest are looked at before anybody is refused.
        if numbers.free.is_empty() || numbers.left() <= spare {
            numbers.wake();
        }
        if numbers.left() <= spare {
            return Err(Error::NoNumber { most: MOST });
        }
        let no = match numbers.free.pop() {
            Some(no) => no,
            None => {
                let next = ContainerNo::try_from(numbers.high).ok();
                numbers.high += 1;
                next.ok_or(Error::NoNumber { most: MOST })?
            }
        };
        Ok(Reserved { no, id: self.next_id.fetch_add(1, Ordering::Relaxed) })
    }

    /// Whether more than so many numbers may be taken for anything but reclaim.
    pub fn has_more_numbers(&self, than: usize) -> bool {
        let least = FOR_RECLAIM.saturating_add(than);
        let mut numbers = self.numbers.lock();
        if numbers.left() <= least {
            numbers.wake();
        }
        numbers.left() > least
    }

    /// The id that the next container gets: none that there is has a larger one.
    pub fn next_id(&self) -> u64 {
        self.next_id.load(Ordering::Relaxed)
    }

    /// How many numbers may be taken at once for anything but reclaim, those that rest not counted.
    pub fn numbers_left(&self) -> usize {
        self.numbers.lock().left().saturating_sub(FOR_RECLAIM)
    }

    /// Gives back a reservation whose container was not made.
    pub fn abandon(&self, reserved: Reserved) {
        self.numbers.lock().free.push(reserved.no);
    }

    /// Enters a new container whose file and directory entry are durable, and announces it to the journal.
    pub fn publish(
        &self,
        reserved: Reserved,
        tier: Tier,
        dir: u16,
        created_ms: u64,
        container: Arc<dyn Container>,
    ) -> Arc<Entry> {
        let known = Known {
            no: reserved.no,
            id: reserved.id,
            tier,
            dir,
            created_ms,
            records: 0,
            earliest_expiry: u64::MAX,
        };
        let entry = self.enter(known, container, false);
        if let Some(hook) = self.hook.get() {
            hook(&entry);
        }
        entry
    }

    /// Enters a container that was there before this open; it is sealed. Not announced: the catalog knows it.
    pub fn attach(&self, known: Known, container: Arc<dyn Container>) -> Arc<Entry> {
        self.keep(known.no);
        self.enter(known, container, true)
    }

    /// Marks a number as taken: the catalog knows a container of that number, attached or not.
    pub fn keep(&self, no: ContainerNo) {
        let mut numbers = self.numbers.lock();
        let high = u32::from(no) + 1;
        while numbers.high < high {
            let no = numbers.high;
            numbers.high += 1;
            if let Ok(no) = ContainerNo::try_from(no) {
                numbers.free.push(no);
            }
        }
        numbers.free.retain(|n| *n != no);
    }

    fn enter(&self, k: Known, container: Arc<dyn Container>, sealed: bool) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            no: k.no,
            id: k.id,
            tier: k.tier,
            dir: k.dir,
            created_ms: k.created_ms,
            container,
            live: AtomicI64::new(0),
            records: AtomicU64::new(k.records),
            earliest_expiry: AtomicU64::new(k.earliest_expiry),
            expiries_noted: AtomicU64::new(0),
            reap_after: AtomicU64::new(0),
            sealed: AtomicBool::new(sealed),
            written_ms: AtomicU64::new(0),
        });
        let mut table = self.table.write();
        let at = usize::from(k.no);
        if table.len() <= at {
            table.resize(at + 1, None);
        }
        if let Some(slot) = table.get_mut(at) {
            *slot = Some(entry.clone());
        }
        entry
    }

    /// The container with this number.
    pub fn get(&self, no: ContainerNo) -> Option<Arc<Entry>> {
        self.table.read().get(usize::from(no)).and_then(Clone::clone)
    }

    /// All containers, by number.
    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.table.read().iter().flatten().cloned().collect()
    }

    /// All containers of a tier, by number.
    pub fn of_tier(&self, tier: Tier) -> Vec<Arc<Entry>> {
        self.table.read().iter().flatten().filter(|e| e.tier == tier).cloned().collect()
    }

    /// How many containers each tier has, and live records in them. Nothing is copied, and the table is left to others now and
    /// then: a store may have tens of thousands of containers, and who enters one waits for whoever reads.
    pub fn counts(&self) -> BTreeMap<Tier, Counted> {
        let mut counts = BTreeMap::<Tier, Counted>::new();
        for start in (0..=MOST as usize).step_by(COUNTED_AT_A_TIME) {
            let table = self.table.read();
            let Some(rest) = table.get(start..) else { break };
            for entry in rest.iter().take(COUNTED_AT_A_TIME).flatten() {
                let counted = counts.entry(entry.tier).or_default();
                counted.containers += 1;
                counted.live += entry.live();
            }
        }
        counts
    }

    /// Takes a container out of the table, so that no new reader finds it. Its number stays taken until
    /// [`release`](Self::release).
    pub fn remove(&self, no: ContainerNo) -> Option<Arc<Entry>> {
        self.table.write().get_mut(usize::from(no)).and_then(Option::take)
    }

    /// Declares the removal of the container with this number durable: the number may be reused once `entry` is held
    /// by nobody.
    pub fn release(&self, no: ContainerNo, entry: Weak<Entry>) {
        self.numbers.lock().resting.push((no, entry));
    }

    /// Live records of a container change by `delta`; unknown numbers are ignored (the container is missing).
    pub fn add_live(&self, place: Place, delta: i64) {
        if let Some(Some(e)) = self.table.read().get(usize::from(place.container())) {
            e.live.fetch_add(delta, Ordering::AcqRel);
        }
    }
}
