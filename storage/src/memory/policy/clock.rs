//! The adaptive policy: a window FIFO before a CLOCK, a ghost FIFO and a frequency sketch.
//!
//! New entries enter the window, a small FIFO. What falls out of it either moves to the main list or goes, by
//! the admission rule of the [`Setting`]. The main list is a CLOCK with counts (the n-chance form of Corbató's
//! second chance, 1968): at its head an entry that was used gives up one of its references and goes round once
//! more, one with none left is the victim. Ideas joined here: the window and the duel by frequency of W-TinyLFU
//! (Einziger, Friedman and Manes, 2017), the filter FIFO and ghost of S3-FIFO (Yang et al., 2023).
//!
//! Invariants: each entry of the shard is in exactly one of the two lists, and says in which; each list knows
//! its weight; one eviction takes at most [`STEPS`] steps of the hand, whatever was used meanwhile.

use super::Pressure;
use super::list::List;
use crate::memory::entry::{Entry, NIL};
use crate::memory::ghost::Ghost;
use crate::memory::shard::mix;
use crate::memory::sketch::Sketch;
use crate::memory::slab::Slab;

/// Most steps of the hand in one eviction; then the entry with the fewest references among those goes.
const STEPS: usize = 128;

/// What lets an entry that falls out of the window into the main list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Admission {
    /// A0: used at least this often while in the window.
    Used(u8),
    /// A1: seen more often than the entry that would have to go for it.
    Frequency,
    /// A2: as `Frequency`, or seen as often and used while in the window; one that the ghost list remembers
    /// enters the main list at once.
    FrequencyOrUse,
}

/// The dials of the adaptive policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// Share of the weight that the window may have, 0 to 1.
    pub window: f32,
    /// Identities that the ghost list remembers, as a multiple of the resident entries, 0 to 2.
    pub ghost: f32,
    /// What leaves the window for the main list.
    pub admission: Admission,
    /// Most references that an entry can have in the main list, 1 to 3.
    pub max_ref: u8,
}

impl Setting {
    /// A filter FIFO with a long ghost list, two uses to pass.
    pub const FILTER: Setting =
        Setting { window: 0.1, ghost: 0.9, admission: Admission::Used(2), max_ref: 3 };
    /// A small filter FIFO, one use to pass.
    pub const SMALL_FILTER: Setting =
        Setting { window: 0.03, ghost: 0.5, admission: Admission::Used(1), max_ref: 2 };
    /// Frequency alone.
    pub const FREQUENCY: Setting =
        Setting { window: 0.01, ghost: 0.0, admission: Admission::Frequency, max_ref: 3 };
    /// Frequency with recency for what comes back soon. What a tier starts with.
    pub const START: Setting =
        Setting { window: 0.03, ghost: 0.5, admission: Admission::FrequencyOrUse, max_ref: 3 };
    /// As `START` with a wide window.
    pub const WIDE: Setting =
        Setting { window: 0.2, ghost: 0.5, admission: Admission::FrequencyOrUse, max_ref: 3 };
    /// A very wide filter FIFO with a long ghost list.
    pub const WIDE_FILTER: Setting =
        Setting { window: 0.4, ghost: 0.9, admission: Admission::Used(2), max_ref: 3 };
    /// All of them.
    pub const ALL: [Setting; 6] = [
        Setting::FILTER,
        Setting::SMALL_FILTER,
        Setting::FREQUENCY,
        Setting::START,
        Setting::WIDE,
        Setting::WIDE_FILTER,
    ];

    /// The setting with every dial within its range.
    fn clamped(self) -> Setting {
        let within = |x: f32, most: f32| if x.is_finite() { x.clamp(0.0, most) } else { 0.0 };
        Setting {
            window: within(self.window, 1.0),
            ghost: within(self.ghost, 2.0),
            admission: self.admission,
            max_ref: self.max_ref.clamp(1, 3),
        }
    }
}

#[derive(Debug)]
pub(in crate::memory) struct Clock {
    setting: Setting,
    window: List,
    main: List,
    ghost: Ghost,
    sketch: Sketch,
}

impl Clock {
    pub(in crate::memory) fn new(setting: Setting) -> Clock {
        Clock {
            setting: setting.clamped(),
            window: List::new(),
            main: List::new(),
            ghost: Ghost::default(),
            sketch: Sketch::new(),
        }
    }

    /// Goes on under another setting. Entries stay where they are; the lists reach their new shares as entries
    /// come and go, and reference counts above the new limit count as the limit.
    pub(in crate::memory) fn set(&mut self, setting: Setting) {
        self.setting = setting.clamped();
        self.fit();
    }

    pub(in crate::memory) fn setting(&self) -> Setting {
        self.setting
    }

    fn fit(&mut self) {
        let entries = self.window.len + self.main.len;
        self.sketch.fit(entries);
        self.ghost.fit((f64::from(self.setting.ghost) * entries as f64) as usize);
    }

    /// Whether the identity was seen before, as far as the sketch remembers; counts this time if not.
    pub(in crate::memory) fn seen_before(&mut self, hash: u64) -> bool {
        let seen = self.sketch.estimate(hash) > 0;
        if !seen {
            self.sketch.add(hash, 1);
        }
        seen
    }

    fn window_is_over(&self) -> bool {
        let all = self.window.bytes + self.main.bytes;
        self.window.bytes as f64 > f64::from(self.setting.window) * all as f64
    }

    pub(in crate::memory) fn admit(&mut self, slab: &mut Slab, slot: u32, hash: u64, room: bool) {
        self.sketch.add(hash, 1);
        let back_soon = self.setting.admission != Admission::Frequency && self.ghost.take(hash);
        if back_soon {
            self.push_main(slab, slot);
        } else {
            if let Some(entry) = slab.get_mut(slot) {
                entry.in_main = false;
            }
            self.window.push_back(slab, slot);
        }
        self.fit();
        if room {
            // Nobody has to go yet, so nobody has to earn a place.
            while self.window.len > 1 && self.window_is_over() {
                let Some(oldest) = self.window.front() else { break };
                self.promote(slab, oldest);
            }
        }
    }

    fn push_main(&mut self, slab: &mut Slab, slot: u32) {
        if let Some(entry) = slab.get_mut(slot) {
            entry.in_main = true;
        }
        self.main.push_back(slab, slot);
    }

    fn promote(&mut self, slab: &mut Slab, slot: u32) {
        self.window.unlink(slab, slot);
        self.push_main(slab, slot);
    }

    fn list_of(&mut self, slab: &Slab, slot: u32) -> &mut List {
        if slab.get(slot).is_some_and(|e| e.in_main) { &mut self.main } else { &mut self.window }
    }

    pub(in crate::memory) fn unlink(&mut self, slab: &mut Slab, slot: u32) {
        self.list_of(slab, slot).unlink(slab, slot);
    }

    pub(in crate::memory) fn moved(&mut self, slab: &mut Slab, to: u32) {
        self.list_of(slab, to).moved(slab, to);
    }

    pub(in crate::memory) fn reweighed(&mut self, slab: &Slab, slot: u32, old: u64, new: u64) {
        let list = self.list_of(slab, slot);
        list.bytes = list.bytes - old + new;
    }

    /// Takes the uses of an entry since the hand, or the window's end, saw it last.
    fn take_uses(&mut self, entry: &mut Entry, pressure: &Pressure<'_>) {
        let uses = entry.take_uses();
        if uses > 0 {
            self.sketch.add(mix(entry.ident), uses.min(u32::from(self.setting.max_ref)));
            pressure.heat.add(entry.ident, uses);
        }
    }

    /// The slot that should go next; it is still in its list.
    pub(in crate::memory) fn victim(&mut self, slab: &mut Slab, pressure: &Pressure<'_>) -> Option<u32> {
        for _ in 0..STEPS {
            if !self.window_is_over() {
                break;
            }
            let Some(slot) = self.oldest(slab, false, pressure) else { break };
            match self.leave_window(slab, slot, pressure) {
                Some(victim) => return Some(victim),
                None => continue,
            }
        }
        // The window is within its share, or has nothing that may go.
        self.hand(slab, pressure).or_else(|| self.oldest(slab, false, pressure))
    }

    /// The first slot of the main list or the window that is not protected.
    fn oldest(&mut self, slab: &mut Slab, main: bool, pressure: &Pressure<'_>) -> Option<u32> {
        let list = if main { &mut self.main } else { &mut self.window };
        let first = list.front()?;
        if pressure.protect.is_none() || slab.get(first).map(|e| e.ident) != pressure.protect {
            return Some(first);
        }
        list.move_to_back(slab, first);
        list.front().filter(|&slot| slot != first)
    }

    /// Decides about the window's oldest: the victim is it, or what has to go for it, or `None` if it moved to
    /// the main list without anything having to go.
    fn leave_window(&mut self, slab: &mut Slab, slot: u32, pressure: &Pressure<'_>) -> Option<u32> {
        let entry = slab.get_mut(slot)?;
        if entry.expired(pressure.now_ms) {
            return Some(slot);
        }
        let hash = mix(entry.ident);
        let refs = entry.refs();
        self.take_uses(entry, pressure);
        match self.setting.admission {
            Admission::Used(least) if refs >= least => {
                if let Some(entry) = slab.get_mut(slot) {
                    entry.set_refs(0);
                }
                self.promote(slab, slot);
                None
            }
            Admission::Used(_) => {
                self.ghost.insert(hash);
                Some(slot)
            }
            Admission::Frequency | Admission::FrequencyOrUse => {
                let Some(rival) = self.hand(slab, pressure) else {
                    self.ghost.insert(hash);
                    return Some(slot);
                };
                if self.wins(slab, hash, refs, rival, pressure) {
                    if let Some(entry) = slab.get_mut(slot) {
                        entry.set_refs(0);
                    }
                    self.promote(slab, slot);
                    Some(rival)
                } else {
                    self.ghost.insert(hash);
                    Some(slot)
                }
            }
        }
    }

    fn wins(&self, slab: &Slab, hash: u64, refs: u8, rival: u32, pressure: &Pressure<'_>) -> bool {
        let Some(rival) = slab.get(rival) else { return true };
        let (mine, its) = (self.sketch.estimate(hash), self.sketch.estimate(mix(rival.ident)));
        let by_use = self.setting.admission == Admission::FrequencyOrUse && refs > 0 && mine == its;
        rival.expired(pressure.now_ms) || mine > its || by_use
    }

    /// Moves the hand to the main list's next victim.
    fn hand(&mut self, slab: &mut Slab, pressure: &Pressure<'_>) -> Option<u32> {
        let (mut fewest, mut best) = (u8::MAX, NIL);
        for _ in 0..STEPS {
            let slot = self.oldest(slab, true, pressure)?;
            let entry = slab.get_mut(slot)?;
            let refs = entry.refs().min(self.setting.max_ref);
            if refs == 0 || entry.expired(pressure.now_ms) {
                return Some(slot);
            }
            entry.set_refs(refs - 1);
            self.take_uses(entry, pressure);
            if refs < fewest {
                (fewest, best) = (refs, slot);
            }
            self.main.move_to_back(slab, slot);
        }
        (best != NIL).then_some(best)
    }

    /// Bytes allocated.
    pub(in crate::memory) fn allocated(&self) -> usize {
        self.ghost.allocated() + self.sketch.allocated()
    }

    /// Number and weight of the entries in the window and in the main list.
    #[cfg(test)]
    pub(in crate::memory) fn shares(&self) -> [(usize, u64); 2] {
        [(self.window.len, self.window.bytes), (self.main.len, self.main.bytes)]
    }
}
