//! Who empties which container: reclaim of one tier goes on in several threads at once, each with its own container.
//!
//! Invariants:
//! - a container is emptied and dropped only by who holds the claim on it, and there is one at a time;
//! - a claim is given out for a container of the catalog's table, which is looked at under the lock under which
//!   claims are given back: who drops a container takes it out of the table before.
//!
//! A thread waits for claims on a tier only while it holds none there, and only for what is below the tiers on which
//! it holds one: so nobody waits in a circle. Who needs a container's number looks at every tier, and asks before it waits
//! whether it may (see `make_number`).
//!
//! Where nothing is below, containers are emptied one at a time: the tier's reserve has room for what is kept of one,
//! and what finds no room at the head is lost there. A container that was dropped gives its room back only once nobody
//! reads it any more, so before the next is emptied that is waited for, for a moment.

use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};
use thermocline_storage::container::Entry;

/// What reclaim of one tier remembers.
#[derive(Debug, Default)]
pub(super) struct Claims {
    state: Mutex<State>,
    given_back: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Containers that could not be emptied or deleted: left alone until so many steps have passed.
    stuck: Vec<(u64, u32)>,
    /// Ids of the containers that somebody has claimed, and the threads that did.
    claimed: HashMap<u64, ThreadId>,
    /// Containers that were dropped, and when, while somebody may still have been reading them.
    dropped: Vec<(Weak<Entry>, Instant)>,
    effort: Effort,
}

/// What reclaim did since the tier was last below its high mark.
#[derive(Debug, Default)]
struct Effort {
    /// Bytes that the containers occupied which were emptied and dropped.
    reclaimed: u64,
    /// Bytes of records that went back to the tier's head.
    kept: u64,
    /// Bytes of records that had ever been written to the tier when it began, by reclaim or anybody else.
    written_before: u64,
}

/// Steps for which a container is left alone.
const REST: u32 = 100;

/// How long after its drop a container's readers are waited for. Most are done in far less. Not longer: who holds it may
/// be a read that waits for a share of the limit on values in flight, or a write that is hidden as yet, and both of them
/// may be waiting for the very room that is being made.
pub(super) const READERS: Duration = Duration::from_millis(50);

/// Bytes that reclaim may drop for each byte that arrives. Where three fifths of a container are kept it is two and a
/// half, and records take less room than the containers that hold them.
const EFFORT: u64 = 8;

/// What a choice came to.
#[derive(Debug)]
pub(super) enum Choice<'a> {
    /// These are claimed.
    Claimed(Vec<Claim<'a>>),
    /// There is nothing to choose before others give back what they hold.
    Others,
    /// There is nothing.
    Nothing,
}

/// The sole right to empty and drop a container.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    of: &'a Claims,
    pub(super) entry: Arc<Entry>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.of.state.lock().claimed.remove(&self.entry.id);
        self.of.given_back.notify_all();
    }
}

impl State {
    fn free(&self, entry: &Entry) -> bool {
        entry.sealed.load(Ordering::Acquire) && !self.claimed.contains_key(&entry.id)
    }

    /// Whether the container is one to be emptied. Those of a directory that is away occupy nothing here and cannot
    /// be read.
    fn may_try(&self, entry: &Entry) -> bool {
        self.free(entry) && entry.live() > 0 && entry.container.occupied() > 0 && !self.is_stuck(entry)
    }

    /// Of what was dropped, that is: or what is held for so long that nobody waits for it.
    fn forget_what_was_let_go(&mut self) {
        self.dropped.retain(|(entry, at)| entry.strong_count() > 0 && at.elapsed() < READERS);
    }

    fn is_stuck(&self, entry: &Entry) -> bool {
        self.stuck.iter().any(|(id, _)| *id == entry.id)
    }
}

impl Claims {
    /// One more step has passed.
    pub(super) fn tick(&self) {
        let mut state = self.state.lock();
        for (_, steps) in &mut state.stuck {
            *steps = steps.saturating_sub(1);
        }
        state.stuck.retain(|(_, steps)| *steps > 0);
    }

    /// The container is not tried again for a while.
    pub(super) fn leave_alone(&self, entry: &Entry) {
        let mut state = self.state.lock();
        state.stuck.retain(|(id, _)| *id != entry.id);
        state.stuck.push((entry.id, REST));
    }

    /// What was left alone may be tried again.
    pub(super) fn forgive(&self) {
        self.state.lock().stuck.clear();
    }

    /// Whether the container is left alone.
    pub(super) fn is_left_alone(&self, entry: &Entry) -> bool {
        self.state.lock().is_stuck(entry)
    }

    /// The tier is below its high mark: what reclaim did until now was not in vain. `written`: bytes of records ever
    /// written to it.
    pub(super) fn rest(&self, written: u64) {
        self.state.lock().effort = Effort { written_before: written, ..Effort::default() };
    }

    /// A container that occupied so many bytes was emptied and dropped.
    pub(super) fn reclaimed(&self, bytes: u64) {
        let effort = &mut self.state.lock().effort;
        effort.reclaimed = effort.reclaimed.saturating_add(bytes);
    }

    /// Records of so many bytes went back to the tier's head.
    pub(super) fn kept(&self, bytes: u64) {
        let effort = &mut self.state.lock().effort;
        effort.kept = effort.kept.saturating_add(bytes);
    }

    /// Whether keeping gains nothing: as much was dropped as the tier may hold, and several times what arrived
    /// meanwhile, and still it is over its high mark. What each container costs besides its records, or the room at its
    /// end into which no further one fits, can be as much as the dead that were left behind.
    pub(super) fn is_in_vain(&self, limit: u64, written: u64) -> bool {
        let state = self.state.lock();
        let effort = &state.effort;
        let arrived = written.saturating_sub(effort.written_before).saturating_sub(effort.kept);
        effort.reclaimed > limit.saturating_add(arrived.saturating_mul(EFFORT))
    }

    /// The container was dropped; who reads it keeps its room.
    pub(super) fn dropped(&self, entry: &Arc<Entry>) {
        let mut state = self.state.lock();
        state.forget_what_was_let_go();
        state.dropped.push((Arc::downgrade(entry), Instant::now()));
    }

    /// Waits until nobody holds what was dropped within [`READERS`], or until that is over; says whether there was
    /// anything to wait for.
    pub(super) fn wait_for_readers(&self) -> bool {
        let mut waited = false;
        loop {
            let mut state = self.state.lock();
            state.forget_what_was_let_go();
            if state.dropped.is_empty() {
                return waited;
            }
            drop(state);
            waited = true;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Claims those that `choose` picks of the containers that may be emptied; `all` gives those of the tier. `alone`:
    /// only if no claim is out.
    pub(super) fn choose(
        &self,
        alone: bool,
        all: impl FnOnce() -> Vec<Arc<Entry>>,
        choose: impl FnOnce(Vec<Arc<Entry>>) -> Vec<Arc<Entry>>,
    ) -> Choice<'_> {
        let mut state = self.state.lock();
        if alone && !state.claimed.is_empty() {
            return Choice::Others;
        }
        let mut entries = all();
        entries.retain(|e| state.may_try(e));
        let chosen = choose(entries);
        if chosen.is_empty() {
            return if state.claimed.is_empty() { Choice::Nothing } else { Choice::Others };
        }
        state.claimed.extend(chosen.iter().map(|e| (e.id, thread::current().id())));
        Choice::Claimed(chosen.into_iter().map(|entry| Claim { of: self, entry }).collect())
    }

    /// Claims every sealed container in which nothing is alive.
    pub(super) fn empty(&self, all: impl FnOnce() -> Vec<Arc<Entry>>) -> Vec<Claim<'_>> {
        let mut state = self.state.lock();
        let mut entries = all();
        entries.retain(|e| e.live() == 0 && state.free(e));
        state.claimed.extend(entries.iter().map(|e| (e.id, thread::current().id())));
        entries.into_iter().map(|entry| Claim { of: self, entry }).collect()
    }

    /// Whether this thread has claimed any.
    pub(super) fn has_mine(&self) -> bool {
        let me = thread::current().id();
        self.state.lock().claimed.values().any(|thread| *thread == me)
    }

    /// Waits until some claim is given back; says whether one was, or none is out.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let mut state = self.state.lock();
        state.claimed.is_empty() || !self.given_back.wait_for(&mut state, patience).timed_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thermocline_storage::Tier;
    use thermocline_storage::container::Containers;
    use thermocline_storage::testing::Hollow;

    #[test]
    fn a_container_is_claimed_by_one_at_a_time() {
        let containers = Containers::new(1);
        for live in [1, 1, 0] {
            let reserved = containers.reserve(thermocline_storage::container::Purpose::Write).unwrap();
            let entry = containers.publish(reserved, Tier::Ssd, 0, 7, Arc::new(Hollow(1)));
            entry.live.store(live, Ordering::Relaxed);
            entry.sealed.store(true, Ordering::Relaxed);
        }
        let claims = Claims::default();
        let all = || containers.of_tier(Tier::Ssd);
        let choose = |alone, most| claims.choose(alone, all, |found| found.into_iter().take(most).collect());
        let claimed = |choice| match choice {
            Choice::Claimed(claims) => claims,
            other => panic!("{other:?}"),
        };
        assert!(claims.wait(Duration::ZERO), "none is out");
        let empty = claims.empty(all);
        assert_eq!(empty.len(), 1);
        assert!(claims.empty(all).is_empty(), "somebody has it");
        assert!(!claims.wait(Duration::ZERO));
        assert!(claims.has_mine() && !std::thread::scope(|s| s.spawn(|| claims.has_mine()).join().unwrap()));
        assert!(matches!(choose(true, 1), Choice::Others), "one is out");
        let mut mine = claimed(choose(false, 1));
        let yours = claimed(choose(false, 9));
        assert_eq!((mine.len(), yours.len()), (1, 1));
        assert_ne!(mine[0].entry.id, yours[0].entry.id);
        assert!(matches!(choose(false, 9), Choice::Others));
        // Who waits is woken when one is given back. What is left alone is not chosen until it is forgiven.
        let entry = mine[0].entry.clone();
        claims.leave_alone(&entry);
        drop((mine.pop(), empty));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| claims.wait(Duration::from_secs(20)));
            while !waits.is_finished() {
                drop(claims.empty(all));
            }
            assert!(waits.join().unwrap());
        });
        assert!(matches!(choose(false, 9), Choice::Others));
        claims.forgive();
        assert_eq!(claimed(choose(false, 9)).len(), 1);
        drop(yours);
        assert_eq!(claimed(choose(true, 9)).len(), 2);
        claims.leave_alone(&entry);
        assert_eq!(claimed(choose(true, 9)).len(), 1);
        assert!(matches!(choose(true, 0), Choice::Nothing));
    }

    /// After a `clear` there may be tens of thousands. One after the other, each search would go through all of them.
    #[test]
    fn very_many_claims_are_given_back_in_little_time() {
        let containers = Containers::new(1);
        for _ in 0..60_000 {
            let reserved = containers.reserve(thermocline_storage::container::Purpose::Write).unwrap();
            let entry = containers.publish(reserved, Tier::Ssd, 0, 7, Arc::new(Hollow(1)));
            entry.sealed.store(true, Ordering::Relaxed);
        }
        let claims = Claims::default();
        let all = claims.empty(|| containers.of_tier(Tier::Ssd));
        assert_eq!(all.len(), 60_000);
        let began = Instant::now();
        // While they are out, everyone else asks about each container.
        assert!(claims.empty(|| containers.of_tier(Tier::Ssd)).is_empty());
        drop(all);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(claims.wait(Duration::ZERO), "none is out");
    }

    #[test]
    fn who_reads_what_was_dropped_is_waited_for_but_not_for_long() {
        let containers = Containers::new(1);
        let reserved = containers.reserve(thermocline_storage::container::Purpose::Write).unwrap();
        let no = reserved.no;
        let entry = containers.publish(reserved, Tier::Ssd, 0, 7, Arc::new(Hollow(1)));
        containers.remove(no);
        let claims = Claims::default();
        assert!(!claims.wait_for_readers(), "nothing was dropped");
        let began = Instant::now();
        claims.dropped(&entry);
        assert!(claims.wait_for_readers() && began.elapsed() >= READERS, "somebody holds it");
        assert!(!claims.wait_for_readers(), "it has been waited for");
        claims.dropped(&entry);
        drop(entry);
        assert!(!claims.wait_for_readers(), "nobody holds it");
        assert!(claims.state.lock().dropped.is_empty());
    }

    #[test]
    fn keeping_is_in_vain_when_a_tier_was_copied_and_is_no_emptier() {
        let claims = Claims::default();
        claims.rest(5_000);
        // Twenty containers of 24, of each of which 14 are kept, and nothing arrives: 10 are free each time.
        for n in 0u64..20 {
            assert_eq!(claims.is_in_vain(240, 5_000 + 14 * n), n > 10, "{n}");
            claims.kept(14);
            claims.reclaimed(24);
        }
        // What arrives has to be made room for.
        assert!(!claims.is_in_vain(240, 5_000 + 14 * 20 + 60));
        claims.rest(5_280);
        assert!(!claims.is_in_vain(240, 5_280));
    }
}
