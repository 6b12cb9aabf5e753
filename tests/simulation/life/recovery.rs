//! Crashes, and what is found after them.

use super::{Check, FICKLE, Found, Life, absence};
use crate::rows::{Crash, Doing};
use std::collections::BTreeSet;
use std::sync::Arc;
use thermocline::testing::ManualClock;
use thermocline::{Cache, Event, Received, Subscription};
use thermocline_storage::sim::SimFs;
use thermocline_testing::history::{Absence, History};

/// Bytes of a file up to its last that is none of the zeros that were reserved for it: there nothing can be damaged.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1)
}

impl Life<'_> {
    /// The crash clones that are due: each opens, and has what it must.
    pub(super) fn recover_clones(&mut self) -> Check {
        for (at, clone) in self.fs.taken() {
            let past = self.history.up_to(at);
            self.told.counts.crashes += 1;
            self.told.say(|| format!("crash before change {at}"));
            self.count_row(&clone);
            // Of a store that is being made there is one copy for a while.
            let made = self.doing != Doing::Opening || !self.last.is_empty();
            let rotten = self.rotten || self.plan.rot && made && self.dice.one_in(2) && self.damage(&clone);
            if let Err(e) = self.recover(&past, clone, rotten) {
                self.told.say_changes(&self.fs);
                return Err(format!("after a crash before change {at}: {e}"));
            }
        }
        Ok(())
    }

    /// Keeps what was done to a disk, if that is asked for.
    pub(super) fn keep(&mut self, disk: &SimFs) {
        if let Some(all) = &mut self.told.trace {
            all.extend(disk.trace());
        }
    }

    /// Counts the rows of the tables that a crash is of.
    fn count_row(&mut self, disk: &SimFs) {
        let top = self.plan.all_dirs().first().map_or("", |dir| &dir[..2]);
        self.told.rows.count(&Crash::new(self.doing, top, &disk.recent()));
    }

    /// Opens what a crash left, perhaps after an opening that is cut off as well; gives what is found.
    pub(super) fn recover(&mut self, past: &History, disk: SimFs, rotten: bool) -> Check<(SimFs, Found)> {
        let mut disk = disk;
        // What one opening evicts may be gone for the next.
        let mut gone = BTreeSet::new();
        if self.plan.wide && self.plan.faults && !rotten && self.more.one_in(4) {
            disk = self.open_while_calls_fail(past, disk, &mut gone)?;
        }
        while self.dice.one_in(3) {
            self.told.counts.cut_off += 1;
            let ahead = 1 + self.dice.below(60);
            disk.crash_at(disk.changes() + ahead, self.dice.roll());
            let opened = self.look(past, &disk, rotten, &mut gone)?;
            match disk.taken().pop() {
                Some((_, cut)) => {
                    self.doing = Doing::Opening;
                    self.count_row(&cut);
                    disk = cut;
                }
                None => return Ok((disk, opened)),
            }
        }
        let found = self.look(past, &disk, rotten, &mut gone)?;
        Ok((disk, found))
    }

    /// Opens it while calls fail: it says why it cannot, or has what it can reach. Neither costs anything. Gives what a
    /// kill or a power cut leaves then.
    fn open_while_calls_fail(
        &mut self,
        past: &History,
        disk: SimFs,
        gone: &mut BTreeSet<String>,
    ) -> Check<SimFs> {
        let (name, fault) = self.plan.fault(&mut self.more.fork(), &mut self.more);
        self.told.say(|| format!("opened with {name}: {fault:?}"));
        self.told.fault(name);
        self.told.counts.failing_openings += 1;
        if self.told.trace.is_some() {
            disk.keep_trace();
        }
        disk.fail(fault);
        let clock = Arc::new(ManualClock::new(self.now));
        let builder = self.plan.builder().simulated(Arc::new(disk.clone()), clock);
        match builder.open_with_events(4_000) {
            Err(e) => {
                self.told.counts.refused_openings += 1;
                self.told.say(|| format!("refused: {e}"));
            }
            Ok((cache, events)) => {
                let mut found = Found::new();
                for key in past.keys() {
                    let Ok(got) = cache.get(&key) else { continue };
                    if let Some(value) = self.judge(&key, got.as_deref(), true)? {
                        found.insert(key, value);
                    }
                }
                past.check_crash(self.promise(), |_| Absence::Allowed, |k| found.get(k).copied())
                    .map_err(|e| format!("opened with {name}: {e}"))?;
                gone.append(&mut self.gone(&events, past, true)?);
                cache.crash();
            }
        }
        self.keep(&disk);
        Ok(if self.more.one_in(2) { disk.kill() } else { disk.crash(&mut self.more) })
    }

    /// Damages a disk that a crash left, in one place.
    fn damage(&mut self, disk: &SimFs) -> bool {
        if self.plan.wide && self.more.one_in(3) {
            return self.take_back(disk);
        }
        let files = disk.files();
        let Some(path) = self.dice.pick(&files).cloned() else { return false };
        let (place, bit) = (self.dice.roll(), self.dice.below(8));
        let mut at = None;
        disk.edit(&path, |bytes| {
            at = (place as usize).checked_rem(used(bytes));
            if let Some(at) = at {
                bytes[at] ^= 1 << bit;
            }
        });
        self.told.say(|| format!("bit {bit} of byte {at:?} of {} turned", path.display()));
        self.told.counts.rotten += u64::from(at.is_some());
        at.is_some()
    }

    /// A write was lost: a sector of a file goes back, though it had been synced.
    fn take_back(&mut self, disk: &SimFs) -> bool {
        let files = disk.files();
        // Most files have none that would.
        for _ in 0..8 {
            let Some(path) = self.more.pick(&files) else { return false };
            if let Some(at) = disk.take_back(path) {
                self.told.say(|| format!("the sector at {at} of {} went back", path.display()));
                self.told.counts.went_back += 1;
                return true;
            }
        }
        false
    }

    /// Turns a bit of a file of the open store. From then on items may be absent.
    pub(super) fn rot(&mut self) {
        let files = self.fs.files();
        let Some(path) = self.more.pick(&files).cloned() else { return };
        let len = used(&self.fs.read(&path)) as u64;
        let (at, bit) = (self.more.below(len), self.more.below(8) as u32);
        if len > 0 && self.fs.turn(&path, at, bit) {
            self.told.say(|| format!("bit {bit} of byte {at} of {} turned, in use", path.display()));
            self.told.counts.rotten_open += 1;
            self.rotten = true;
        }
    }

    /// Opens a disk, looks at every key, goes on for a little, and looks again. Rotten: a bit was turned somewhere, so
    /// that items may be absent; never older, and never wrong. So may those that are `gone`, which learns what went.
    fn look(
        &mut self,
        past: &History,
        disk: &SimFs,
        rotten: bool,
        gone: &mut BTreeSet<String>,
    ) -> Check<Found> {
        self.told.counts.recoveries += 1;
        if self.told.trace.is_some() {
            disk.keep_trace();
        }
        let clock = Arc::new(ManualClock::new(self.now));
        let builder = self.plan.builder().simulated(Arc::new(disk.clone()), clock);
        let (cache, events) = builder.open_with_events(4_000).map_err(|e| format!("opening failed: {e}"))?;
        let first = self.look_at(past, &cache)?;
        gone.append(&mut self.gone(&events, past, rotten)?);
        past.check_crash(
            self.promise(),
            |k| if rotten || gone.contains(k) { Absence::Allowed } else { absence(k) },
            |k| first.get(k).copied(),
        )
        .map_err(|e| {
            self.told.say_changes(disk);
            self.told.say(|| format!("recovery: {:?}\n{:?}", cache.recovery(), cache.stats()));
            e.to_string()
        })?;
        let report = cache.verify().map_err(|e| format!("verify: {e}"))?;
        if !report.is_clean() && !rotten {
            return Err(format!("damage that nobody did: {report:?}"));
        }
        cache.step().map_err(|e| format!("a step failed: {e}"))?;
        let mut again = self.look_at(past, &cache)?;
        gone.append(&mut self.gone(&events, past, rotten)?);
        for key in past.keys() {
            let (a, b) = (first.get(&key), again.get(&key));
            let away = b.is_none() && (rotten || gone.contains(&key) || key.starts_with(FICKLE));
            if a != b && !away {
                return Err(format!("{key} was {a:?} after the crash, and is {b:?} after a step"));
            }
        }
        cache.close().map_err(|e| format!("close: {e}"))?;
        // What goes with the close is not there for whoever opens it next.
        let mut closing = self.gone(&events, past, rotten)?;
        again.retain(|key, _| !closing.contains(key));
        gone.append(&mut closing);
        self.keep(disk);
        Ok(again)
    }

    fn look_at(&self, past: &History, cache: &Cache) -> Check<Found> {
        let mut found = Found::new();
        for key in past.keys() {
            let got = cache.get(&key).map_err(|e| format!("get {key}: {e}"))?;
            if let Some(value) = self.judge(&key, got.as_deref(), true)? {
                found.insert(key, value);
            }
        }
        Ok(found)
    }

    /// Keys that went by themselves. `lenient`: damage is no surprise, or calls fail.
    fn gone(&self, events: &Subscription, past: &History, lenient: bool) -> Check<BTreeSet<String>> {
        let mut gone = BTreeSet::new();
        loop {
            match events.try_recv() {
                Ok(Received::Event(Event::Evicted { key: Some(key), .. })) => {
                    gone.insert(String::from_utf8_lossy(&key).into_owned());
                }
                // Any may be it.
                Ok(Received::Event(Event::Evicted { key: None, .. })) if lenient => gone.extend(past.keys()),
                Ok(Received::Event(
                    e @ (Event::Evicted { .. }
                    | Event::Displaced { .. }
                    | Event::Quarantined { .. }
                    | Event::Lost { .. }),
                )) if !lenient => return Err(format!("damage that nobody did: {e:?}")),
                Ok(Received::Lagged(n)) => return Err(format!("{n} events were missed")),
                Ok(_) => {}
                Err(_) => return Ok(gone),
            }
        }
    }
}
