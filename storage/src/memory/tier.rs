//! The operations of the tier. See the module above for what they keep.
//!
//! Nothing of it is on disk, so a crash leaves nothing.

use super::*;

impl MemoryTier {
    /// An empty tier. `heat` is told of uses when the policy takes them into account and when an entry leaves.
    pub fn new(config: &MemoryConfig, heat: Arc<dyn HeatSink>) -> MemoryTier {
        let n = shards_for(config);
        MemoryTier {
            shards: (0..n).map(|_| CachePadded::new(RwLock::new(Shard::new(config.policy)))).collect(),
            loads: (0..n).map(|_| Load { oldest: AtomicU64::new(u64::MAX), ..Load::default() }).collect(),
            shift: 64 - n.ilog2(),
            budget: Budget::new(config.max_bytes, config.max_items),
            policy: config.policy,
            heat,
            uses: CachePadded::new(AtomicU64::new(1)),
            reaper: Mutex::default(),
            beat: CachePadded::default(),
            idler: Mutex::default(),
        }
    }

    fn number(&self, hash: u64) -> usize {
        // A shift by 64 is the one shard.
        hash.checked_shr(self.shift).unwrap_or(0) as usize
    }

    fn shard(&self, hash: u64) -> Option<&RwLock<Shard>> {
        self.shards.get(self.number(hash)).map(|s| &**s)
    }

    /// Works on a shard under its lock and tells the others what it holds after that.
    fn with<R>(&self, number: usize, cell: &RwLock<Shard>, work: impl FnOnce(&mut Shard) -> R) -> R {
        let mut shard = cell.write();
        let result = work(&mut shard);
        if let Some(load) = self.loads.get(number) {
            let sums = shard.sums();
            load.bytes.store(sums.weight, Relaxed);
            load.items.store(sums.items, Relaxed);
            if let Order::Lru(recency) = &shard.order {
                load.oldest.store(recency.oldest(), Relaxed);
            }
        }
        result
    }

    fn next_stamp(&self) -> u64 {
        self.uses.fetch_add(1, Relaxed)
    }

    fn hit(entry: &Entry, first_use_of_prefetched: bool) -> Hit {
        Hit {
            value: entry.value(),
            version: entry.version,
            content_type: entry.content_type,
            expires_at: entry.expires_at,
            first_use_of_prefetched,
        }
    }

    /// Whether an entry with a key and a value of these lengths is within the limits at all.
    pub fn can_hold(&self, key_len: usize, value_len: usize) -> bool {
        let limits = self.budget.limits();
        entry::weight(key_len, value_len) <= limits.bytes && limits.items > 0
    }

    /// Looks a key up and counts the use.
    pub fn get(&self, ident: Ident, key: &[u8], now_ms: u64) -> Lookup {
        self.get_at(ident, key, || now_ms)
    }

    /// [`get`](Self::get) that asks for the time only if the entry can expire. `now_ms` is called under a shard's
    /// lock: it must not call the tier.
    pub fn get_at(&self, ident: Ident, key: &[u8], now_ms: impl FnOnce() -> u64) -> Lookup {
        let hash = mix(ident);
        let Some(shard) = self.shard(hash) else { return Lookup::Miss };
        let shard = shard.read();
        match shard.find(ident, hash) {
            Some(entry) if entry.key() == key => {
                if entry.expires_at != 0 && entry.expired(now_ms()) {
                    return Lookup::Expired;
                }
                if self.policy == MemoryPolicy::Lru {
                    entry.stamp.store(self.next_stamp(), Relaxed);
                }
                Lookup::Hit(Self::hit(entry, shard.mark_used(entry, self.beat.load(Relaxed))))
            }
            _ => Lookup::Miss,
        }
    }

    /// Looks a key up without counting a use. `None` also if it has expired.
    pub fn peek(&self, ident: Ident, key: &[u8], now_ms: u64) -> Option<Hit> {
        let hash = mix(ident);
        let shard = self.shard(hash)?.read();
        let entry = shard.find(ident, hash)?;
        (entry.key() == key && !entry.expired(now_ms)).then(|| Self::hit(entry, false))
    }

    /// Whether an entry of this identity is resident, expired or not.
    pub fn contains(&self, ident: Ident) -> bool {
        let hash = mix(ident);
        self.shard(hash).is_some_and(|s| s.read().find(ident, hash).is_some())
    }

    /// Puts an entry in, in place of any of its identity, whatever that one's version: the caller orders writes.
    ///
    /// Returns whether it was admitted. If not, what had this identity is gone all the same, and the new entry
    /// is in `out` if it is dirty. What had to go for it is in `out`, and so is an entry of another key that it
    /// displaced; an older value of the same key is not.
    ///
    /// Not admitted are: what has expired; what alone is over a limit; without `force`, under `Adaptive`, what
    /// takes more than a sixteenth of the tier and was not seen lately. While other threads hold reserved room
    /// that together leaves none, a very large entry may be refused too.
    pub fn insert(&self, new: NewEntry, now_ms: u64, out: &mut Vec<Evicted>) -> bool {
        let (ident, force) = (new.ident, new.force);
        let hash = mix(ident);
        let need = Amount::item(entry::weight(new.pair.len(), 0));
        let mut entry = Entry::new(new, self.beat.load(Relaxed));
        if entry.expired(now_ms) {
            return self.refuse(entry, hash, Reason::Expired, out);
        }
        let limits = self.budget.limits();
        if need.bytes > limits.bytes || limits.items == 0 {
            return self.refuse(entry, hash, Reason::NotAdmitted, out);
        }
        if !force && need.bytes > limits.bytes / LARGE && !self.worth_much(ident, hash) {
            return self.refuse(entry, hash, Reason::NotAdmitted, out);
        }
        if self.policy == MemoryPolicy::Lru {
            *entry.stamp.get_mut() = self.next_stamp();
        }
        let mut held = Amount::default();
        let mut room = true;
        loop {
            let short = match self.try_place(entry, hash, need, &mut held, room, out) {
                Placed::Done => return true,
                Placed::NoSlot(entry) => {
                    self.budget.release(held);
                    return self.refuse(entry, hash, Reason::NotAdmitted, out);
                }
                Placed::Short(back, short) => {
                    entry = back;
                    short
                }
            };
            room = false;
            match self.make_room(hash, short, Some(ident), now_ms) {
                Some(gone) => {
                    held = held.plus(Amount::item(gone.bytes));
                    out.push(gone);
                }
                // Only the value that this one replaces is left: it makes room itself.
                None => match self.displace(ident, hash, entry.key(), out) {
                    Some(bytes) => held = held.plus(Amount::item(bytes)),
                    None => {
                        self.budget.release(held);
                        return self.refuse(entry, hash, Reason::NotAdmitted, out);
                    }
                },
            }
            // More than is needed helps only the others.
            self.budget.release(held.minus(need));
            held = held.at_most(need);
        }
    }

    /// Reserves what is missing and puts the entry in place, or says what there is not enough of. Room that was
    /// made stays with the caller, in `held`, so that nobody else takes it meanwhile.
    fn try_place(
        &self,
        entry: Entry,
        hash: u64,
        need: Amount,
        held: &mut Amount,
        room: bool,
        out: &mut Vec<Evicted>,
    ) -> Placed {
        let ident = entry.ident;
        let stamp = entry.stamp.load(Relaxed);
        let number = self.number(hash);
        let Some(cell) = self.shards.get(number) else { return Placed::NoSlot(entry) };
        self.with(number, cell, |shard| {
            let old = shard.find(ident, hash);
            let has = old.map_or(Amount::default(), |e| Amount::item(e.weight())).plus(*held);
            if let Err(short) = self.budget.reserve(need.minus(has)) {
                // The write is a use of what it replaces: in the order of LRU that now comes last.
                if let Some(old) = old {
                    old.stamp.fetch_max(stamp, Relaxed);
                }
                return Placed::Short(entry, short);
            }
            let other_key = old.is_some_and(|e| e.key() != entry.key());
            match shard.place(entry, hash, room, &*self.heat) {
                Ok(old) => {
                    self.budget.release(has.minus(need));
                    if let Some(old) = old.filter(|_| other_key) {
                        out.push(Evicted::new(&old, Reason::Displaced));
                    }
                    Placed::Done
                }
                Err(entry) => {
                    *held = held.plus(need.minus(has));
                    Placed::NoSlot(entry)
                }
            }
        })
    }

    /// Takes out what has this identity, because an entry of `key` is to have it. Returns its weight, which stays
    /// reserved. It is in `out` if it is of another key.
    fn displace(&self, ident: Ident, hash: u64, key: &[u8], out: &mut Vec<Evicted>) -> Option<u64> {
        let old = self.take(ident, hash)?;
        if old.key() != key {
            out.push(Evicted::new(&old, Reason::Displaced));
        }
        Some(old.weight())
    }

    fn refuse(&self, entry: Entry, hash: u64, reason: Reason, out: &mut Vec<Evicted>) -> bool {
        if let Some(bytes) = self.displace(entry.ident, hash, entry.key(), out) {
            self.budget.release(Amount::item(bytes));
        }
        if entry.dirty {
            out.push(Evicted::new(&entry, reason));
        }
        false
    }

    /// Whether a large entry is resident already or was seen before.
    fn worth_much(&self, ident: Ident, hash: u64) -> bool {
        self.shard(hash).is_some_and(|shard| {
            let mut shard = shard.write();
            shard.find(ident, hash).is_some()
                || match &mut shard.order {
                    Order::Lru(_) => true,
                    Order::Clock(clock) => clock.seen_before(hash),
                }
        })
    }

    /// Takes an entry out; its weight stays reserved.
    fn take(&self, ident: Ident, hash: u64) -> Option<Entry> {
        let number = self.number(hash);
        self.with(number, self.shards.get(number)?, |shard| shard.remove(ident, hash, &*self.heat))
    }

    /// Evicts one entry, from whatever shard should give it; its weight stays reserved. `None` if nothing is
    /// left but what is protected.
    fn make_room(&self, hash: u64, short: Short, protect: Option<Ident>, now_ms: u64) -> Option<Evicted> {
        let pressure = Pressure { now_ms, protect, heat: &*self.heat };
        let entry = match self.policy {
            MemoryPolicy::Lru => self.evict_oldest(&pressure),
            MemoryPolicy::Adaptive => self.evict_balanced(self.number(hash), short, &pressure),
        }?;
        let reason = if entry.expired(now_ms) { Reason::Expired } else { Reason::Capacity };
        Some(Evicted::new(&entry, reason))
    }

    /// From the shard `own` if it holds its share, else from the one that holds most, else from any.
    fn evict_balanced(&self, own: usize, short: Short, pressure: &Pressure<'_>) -> Option<Entry> {
        let held = |load: &Load| match short {
            Short::Bytes => load.bytes.load(Relaxed),
            Short::Items => load.items.load(Relaxed),
        };
        let mine = self.loads.get(own).map_or(0, held);
        let (mut all, mut most, mut fullest) = (0u64, mine, own);
        for (number, load) in self.loads.iter().enumerate() {
            let n = held(load);
            all += n;
            if n > most {
                (most, fullest) = (n, number);
            }
        }
        let share = all / self.loads.len() as u64;
        let first = if mine > 0 && mine >= share { own } else { fullest };
        std::iter::once(first)
            .chain(0..self.shards.len())
            .find_map(|number| self.with(number, self.shards.get(number)?, |shard| shard.evict(pressure)))
    }

    /// The entry used least lately, over all shards. Each shard publishes a lower bound of its stamps; the one
    /// with the least is locked and settled, which raises its bound, until it is the least all the same.
    fn evict_oldest(&self, pressure: &Pressure<'_>) -> Option<Entry> {
        let mut without = usize::MAX;
        // One thread alone settles each shard at most once for each time that another becomes the least; under
        // many threads the bounds move meanwhile, and near enough is good enough.
        let mut patience = 4 * self.shards.len();
        loop {
            let (mut least, mut next, mut number) = (u64::MAX, u64::MAX, usize::MAX);
            for (i, load) in self.loads.iter().enumerate().filter(|&(i, _)| i != without) {
                let oldest = load.oldest.load(Relaxed);
                if oldest < least {
                    (next, least, number) = (least, oldest, i);
                } else {
                    next = next.min(oldest);
                }
            }
            let cell = self.shards.get(number)?;
            let found = self.with(number, cell, |shard| match shard.oldest(pressure) {
                None => Err(true),
                Some(stamp) if stamp > next && patience > 0 => Err(false),
                Some(_) => shard.evict(pressure).ok_or(true),
            });
            match found {
                Ok(entry) => return Some(entry),
                // Empty, or nothing in it but what is protected. Only one shard can hold that; an empty one
                // has published by now that it is.
                Err(true) => without = number,
                Err(false) => patience -= 1,
            }
        }
    }

    /// Removes what has this identity, whatever its key. Returns it, expired or not.
    pub fn remove(&self, ident: Ident) -> Option<Evicted> {
        let entry = self.take(ident, mix(ident))?;
        self.budget.release(Amount::item(entry.weight()));
        Some(Evicted::new(&entry, Reason::Removed))
    }

    fn update(&self, ident: Ident, version: Version, change: impl FnOnce(&mut Entry)) -> bool {
        let hash = mix(ident);
        self.shard(hash).is_some_and(|shard| {
            let mut shard = shard.write();
            let same = shard.find(ident, hash).is_some_and(|e| e.version == version);
            same && shard.update(ident, hash, change).is_some()
        })
    }

    /// Says that this version of an entry is on disk now. `false` if that version is not resident.
    pub fn set_clean(&self, ident: Ident, version: Version) -> bool {
        self.update(ident, version, |e| e.dirty = false)
    }

    /// Changes when this version of an entry expires (milliseconds since the epoch, 0 for never). `false` if
    /// that version is not resident.
    pub fn set_expiry(&self, ident: Ident, version: Version, expires_at: u64) -> bool {
        self.update(ident, version, |e| e.expires_at = expires_at)
    }

    /// Removes everything; returns how many entries that were, without those that had expired. What the policy learned is forgotten too, its
    /// setting is not.
    pub fn clear(&self, now_ms: u64) -> u64 {
        let mut removed = 0;
        for (number, cell) in self.shards.iter().enumerate() {
            // Dropped after the lock: freeing many entries takes long.
            let old = self.with(number, cell, |shard| std::mem::replace(shard, shard.successor(self.policy)));
            let sums = old.sums();
            self.budget.release(Amount { bytes: sums.weight, items: sums.items });
            let expired = if sums.expiring == 0 { 0 } else { old.expired(now_ms) };
            removed += sums.items.saturating_sub(expired);
        }
        removed
    }

    /// Evicts until the weight is at most `bytes`, or by as much as it is over that now if others insert
    /// meanwhile. The limit stays.
    pub fn shrink_to(&self, bytes: u64, out: &mut Vec<Evicted>) {
        let mut excess = self.budget.used().bytes.saturating_sub(bytes);
        while excess > 0 {
            let Some(gone) = self.make_room(0, Short::Bytes, None, 0) else { return };
            self.budget.release(Amount::item(gone.bytes));
            excess = excess.saturating_sub(gone.bytes);
            out.push(gone);
        }
    }

    /// Sets the limits, and evicts until what is resident is within them.
    pub fn set_limits(&self, max_bytes: u64, max_items: u64, out: &mut Vec<Evicted>) {
        self.budget.set_limits(max_bytes, max_items);
        loop {
            let (used, limits) = (self.budget.used(), self.budget.limits());
            let short = if used.items > limits.items {
                Short::Items
            } else if used.bytes > limits.bytes {
                Short::Bytes
            } else {
                return;
            };
            // What is reserved and not in place yet cannot be evicted: its thread will find the new limits.
            let Some(gone) = self.make_room(0, short, None, 0) else { return };
            self.budget.release(Amount::item(gone.bytes));
            out.push(gone);
        }
    }

    /// Another beat begins: idle time is counted in them. To be called at even intervals.
    pub fn beat(&self) {
        self.beat.fetch_add(1, Relaxed);
    }

    /// Of some entries that are on disk, about so many of all shards alike: for how many beats the coldest was not used.
    /// `None` if there is none.
    pub fn most_idle(&self, sample: usize) -> Option<u16> {
        let now = self.beat.load(Relaxed);
        let each = u32::try_from(sample.div_ceil(self.shards.len())).unwrap_or(u32::MAX).max(1);
        let of_shard = |cell: &CachePadded<RwLock<Shard>>| {
            let shard = cell.read();
            // Evenly over its slots.
            let step = usize::try_from((shard.end() / each).max(1)).unwrap_or(1);
            (0..shard.end()).step_by(step).filter_map(|slot| shard.idle(slot, now)).max()
        };
        self.shards.iter().filter_map(of_shard).max()
    }

    /// Removes entries that are on disk and that nobody has used, nor written, for `beats` [beats](Self::beat) (at least
    /// 1, at most 32,767): looks at up to `budget` slots, going on where it stopped; says how many entries it removed into
    /// `out`, and whether it came to the end. Takes the exclusive lock only where it found something. If another thread is
    /// at it, does nothing and says that it came to the end.
    pub fn evict_idle(&self, beats: u16, budget: usize, out: &mut Vec<Evicted>) -> (usize, bool) {
        let Some(mut at) = self.idler.try_lock() else { return (0, true) };
        let (mut left, mut removed) = (budget, 0);
        let beats = beats.clamp(1, u16::MAX / 2);
        while left > 0 {
            let Some(cell) = self.shards.get(at.shard) else {
                *at = Reaper::default();
                return (removed, true);
            };
            let now = self.beat.load(Relaxed);
            let found = {
                let shard = cell.read();
                let end = shard.end();
                if at.slot >= end {
                    *at = Reaper { shard: at.shard + 1, slot: 0 };
                    continue;
                }
                let from = at.slot;
                let upto = from.saturating_add(REAP.min(u32::try_from(left).unwrap_or(REAP))).min(end);
                at.slot = upto;
                left = left.saturating_sub((upto - from) as usize);
                (from..upto).filter_map(|slot| shard.idle_in(slot, now, beats)).collect::<Vec<_>>()
            };
            if !found.is_empty() {
                let before = out.len();
                self.with(at.shard, cell, |shard| {
                    // It may have been replaced or used since.
                    let idle = |e: &Entry| !e.dirty && e.idle(now) >= beats;
                    self.take_out(shard, &found, idle, Reason::Idle, out);
                });
                removed += out.len() - before;
            }
        }
        (removed, false)
    }

    /// Removes expired entries: looks at up to `budget` slots, going on where it stopped, and returns how many
    /// entries it removed into `out`. Takes the exclusive lock only where it found something. If another thread
    /// is at it, returns 0 at once.
    pub fn expire(&self, now_ms: u64, budget: usize, out: &mut Vec<Evicted>) -> usize {
        let Some(mut at) = self.reaper.try_lock() else { return 0 };
        let (mut left, mut removed, mut visited) = (budget, 0, 0);
        while left > 0 && visited <= self.shards.len() {
            let Some(cell) = self.shards.get(at.shard) else {
                *at = Reaper::default();
                continue;
            };
            let found = {
                let shard = cell.read();
                let end = if shard.sums().expiring == 0 { 0 } else { shard.end() };
                if at.slot >= end {
                    *at = Reaper { shard: at.shard + 1, slot: 0 };
                    visited += 1;
                    continue;
                }
                let from = at.slot;
                let upto = from.saturating_add(REAP.min(u32::try_from(left).unwrap_or(REAP))).min(end);
                at.slot = upto;
                left = left.saturating_sub((upto - from) as usize);
                (from..upto).filter_map(|slot| shard.expired_in(slot, now_ms)).collect::<Vec<_>>()
            };
            if !found.is_empty() {
                let before = out.len();
                let over = |e: &Entry| e.expired(now_ms);
                self.with(at.shard, cell, |shard| self.take_out(shard, &found, over, Reason::Expired, out));
                removed += out.len() - before;
            }
        }
        removed
    }

    /// Takes out those of them of which it still holds.
    fn take_out(
        &self,
        shard: &mut Shard,
        found: &[Ident],
        holds: impl Fn(&Entry) -> bool,
        reason: Reason,
        out: &mut Vec<Evicted>,
    ) {
        for &ident in found {
            let hash = mix(ident);
            if shard.find(ident, hash).is_some_and(&holds)
                && let Some(entry) = shard.remove(ident, hash, &*self.heat)
            {
                self.budget.release(Amount::item(entry.weight()));
                out.push(Evicted::new(&entry, reason));
            }
        }
    }

    /// Number of shards: [`MemoryTier::snapshot`] takes 0 to this less 1.
    pub fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// What is resident in one shard, in no order, expired entries included; empty if there is no such shard.
    /// Entries never change shards, so that one pass over all finds each that is resident throughout.
    pub fn snapshot(&self, shard: usize) -> Vec<Resident> {
        self.shards.get(shard).map(|s| s.read().residents()).unwrap_or_default()
    }

    /// Goes on under another setting of the adaptive policy; dials out of range are brought into it. `false`,
    /// and nothing happens, under `Lru`.
    pub fn set_setting(&self, setting: Setting) -> bool {
        self.shards.iter().all(|cell| match &mut cell.write().order {
            Order::Lru(_) => false,
            Order::Clock(clock) => {
                clock.set(setting);
                true
            }
        })
    }

    /// The setting in force; `None` under `Lru`.
    pub fn setting(&self) -> Option<Setting> {
        match &self.shards.first()?.read().order {
            Order::Lru(_) => None,
            Order::Clock(clock) => Some(clock.setting()),
        }
    }

    /// The policy that the tier was made with.
    pub fn policy(&self) -> MemoryPolicy {
        self.policy
    }

    /// What the tier holds.
    pub fn stats(&self) -> MemoryStats {
        let limits = self.budget.limits();
        let mut stats =
            MemoryStats { max_bytes: limits.bytes, max_items: limits.items, ..Default::default() };
        for cell in &self.shards {
            let shard = cell.read();
            let sums = shard.sums();
            stats.items += sums.items;
            stats.value_bytes += sums.value_bytes;
            stats.weight += sums.weight;
            stats.dirty_items += sums.dirty_items;
            stats.dirty_bytes += sums.dirty_bytes;
            stats.prefetched_bytes += shard.prefetched();
            stats.structure_bytes += shard.allocated();
        }
        stats
    }
}

/// What became of an entry that was to be put in place.
enum Placed {
    Done,
    /// There is not enough of this.
    Short(Entry, Short),
    /// All 2^32 slots of the shard are taken.
    NoSlot(Entry),
}
