//! Heat: an aging estimate of how often each item is asked for, over the items of every tier.
//!
//! A count-min sketch (Cormode and Muthukrishnan 2005) by identity: 63 counters and a stamp in each line of 64
//! bytes, of which an identity uses three, all in one line, so that an access costs one cache line. An access
//! raises only those of the three that are lowest (conservative update, Estan and Varghese 2002). A counter is one
//! byte: exact to 63, above that with five bits of mantissa and probabilistic steps (Morris 1978) up to 4,032.
//!
//! Everything ages: over a *period*, ten recorded accesses for each byte of the table, every counter is halved
//! once (as in TinyLFU, Einziger et al. 2017), but not all at one moment: each [`Heat::record`] pays for the share
//! of the table that it has used up, some lines in one call of 64. A line's stamp says when it was halved last,
//! and an estimate takes that into account, so that lines halved early and late compare.
//!
//! The table is grown a line at a time by linear hashing (Litwin 1980): a new line begins as a copy of the one
//! that it is split from, so that every estimate stays what it was, no memory moves and no reader waits.
//!
//! Invariants:
//!
//! - Every operation is lock-free but [`Heat::grow`], which only waits for another `grow`.
//! - The table is at most 1 byte an expected item and 64 MiB, and never less than 1 KiB.
//! - Updates lost to a race make an estimate smaller, never a counter wrong by more than those updates.
//! - Heat is advice: losing it costs hits, never a value.

use parking_lot::Mutex;
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{
    AtomicU8, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use thermocline_storage::Ident;

/// Bytes of a line: the stamp and 63 counters.
const LINE: usize = 64;
/// Counters that an identity uses.
const ROWS: usize = 3;
/// Counters of a line that each of the three is chosen from.
const ROW: usize = (LINE - 1) / ROWS;
/// Lines of the smallest table: 1 KiB.
const MIN_LINES: usize = 16;
/// Lines of the largest: 64 MiB.
const MAX_LINES: usize = (64 << 20) / LINE;
/// The lines beyond the first 16 lie in groups, each doubling the table, of eight blocks each.
const BLOCKS: usize = 8;
/// Groups of the largest table.
const GROUPS: usize = (MAX_LINES / MIN_LINES).ilog2() as usize;
/// Recorded accesses in which the table as a whole is halved once, for each line: ten a byte.
const PERIOD: u64 = 10 * LINE as u64;
/// One access in this many pays for the aging of that many.
const TICK: u64 = 64;
/// Fraction bits of the phase, which counts periods.
const PHASE_BITS: u32 = 48;
/// Parts of a period that a stamp counts in.
const PARTS: u32 = 16;
/// Most accesses that one call can count, the largest value of a counter.
const MOST: u32 = 63 << 6;
/// First bytes of a saved sketch.
const MAGIC: [u8; 4] = *b"HEAT";
/// Version of the saved form.
const FORMAT: u32 = 1;
/// Bytes before the lines in the saved form: magic, version, number of lines, phase.
const HEADER: usize = 20;

#[repr(align(64))]
struct Line {
    /// When the line was halved last, in sixteenths of a period, modulo 16 periods.
    stamp: AtomicU8,
    rows: [[AtomicU8; ROW]; ROWS],
}

impl Line {
    fn new() -> Line {
        Line::from_bytes(&[0; LINE])
    }

    fn from_bytes(bytes: &[u8; LINE]) -> Line {
        let [stamp, counters @ ..] = bytes;
        let (rows, _) = counters.as_chunks::<ROW>();
        let rows = rows.first_chunk::<ROWS>().copied().unwrap_or([[0; ROW]; ROWS]);
        Line { stamp: AtomicU8::new(*stamp), rows: rows.map(|row| row.map(AtomicU8::new)) }
    }

    fn bytes(&self) -> impl Iterator<Item = &AtomicU8> {
        std::iter::once(&self.stamp).chain(self.rows.iter().flatten())
    }

    fn copy_from(&self, other: &Line) {
        for (to, from) in self.bytes().zip(other.bytes()) {
            to.store(from.load(Relaxed), Relaxed);
        }
    }

    /// Sixteenths of a period since the line was halved.
    fn age(&self, phase: u64) -> u8 {
        stamp_of(phase).wrapping_sub(self.stamp.load(Relaxed))
    }

    /// Halves every counter as often as the line's age asks for: once a period, to the nearest.
    fn halve(&self, phase: u64) {
        let times = (u32::from(self.age(phase)) + PARTS / 2) / PARTS;
        if times == 0 {
            return;
        }
        self.stamp.store(stamp_of(phase), Relaxed);
        for counter in self.rows.iter().flatten() {
            let old = counter.load(Relaxed);
            let new = (0..times).fold(old, |c, _| half(c));
            if new != old {
                // An access that comes between is worth less than a retry: it is lost, or the halving of this
                // one counter is made up for by the next.
                let _ = counter.compare_exchange(old, new, Relaxed, Relaxed);
            }
        }
    }

    /// The three counters of an identity, by the upper bits of its hash.
    fn of(&self, hash: u64) -> impl Iterator<Item = &AtomicU8> {
        self.rows.iter().enumerate().filter_map(move |(i, row)| {
            let bits = (hash >> (64 - 12 * (i + 1))) as usize & 0xFFF;
            row.get((bits * ROW) >> 12)
        })
    }
}

/// The aging frequency estimate. See the module.
pub struct Heat {
    /// Lines in use.
    lines: AtomicUsize,
    /// Periods gone by, as a fixed-point number with [`PHASE_BITS`] fraction bits; wraps.
    phase: AtomicU64,
    /// The first 16 lines.
    first: Box<[Line]>,
    /// The blocks of each group, made when the table grows into them.
    blocks: Box<[OnceLock<Box<[Line]>>]>,
    growing: Mutex<()>,
}

impl Heat {
    /// What one access counts in [`Heat::estimate`].
    pub const ONE: u32 = 16;

    /// A sketch for about this many items, one byte each: at least 1 KiB, at most 64 MiB.
    pub fn new(expected_items: u64) -> Heat {
        let heat = Heat::smallest();
        heat.grow(expected_items);
        heat
    }

    fn smallest() -> Heat {
        Heat {
            lines: AtomicUsize::new(MIN_LINES),
            phase: AtomicU64::new(0),
            first: (0..MIN_LINES).map(|_| Line::new()).collect(),
            blocks: (0..GROUPS * BLOCKS).map(|_| OnceLock::new()).collect(),
            growing: Mutex::new(()),
        }
    }

    /// Counts `n` accesses of an item. Lock-free, one cache line, and now and then the aging of a few more.
    pub fn record(&self, ident: Ident, n: u32) {
        let n = n.min(MOST);
        if n == 0 {
            return;
        }
        let hash = mix(ident.bits());
        let dice = dice(hash);
        if let Some(line) = self.line_of(hash) {
            raise(line, hash, n, dice);
        }
        // The upper bits of the dice are not those that the counters use.
        if dice >> (64 - TICK.ilog2()) == 0 {
            self.tick(u64::from(n.min(255)) * TICK);
        }
    }

    /// The item's accesses of about the last period, each counting [`Heat::ONE`], those longer ago ever less.
    /// Mostly too high where it errs, because of other items. Never more than 4,032 accesses.
    pub fn estimate(&self, ident: Ident) -> u32 {
        let hash = mix(ident.bits());
        let Some(line) = self.line_of(hash) else { return 0 };
        let count = line.of(hash).map(|c| c.load(Relaxed)).min().map_or(0, value);
        // In a steady state a counter holds the accesses of one period right after it was halved and those of
        // two right before.
        let age = u32::from(line.age(self.phase.load(Relaxed))).min(2 * PARTS);
        count * Heat::ONE * PARTS / (PARTS + age)
    }

    /// Bytes of the table.
    pub fn memory(&self) -> usize {
        self.lines.load(Relaxed) * LINE
    }

    /// Makes room for this many items: up to one byte each, 64 MiB in all. Estimates stay what they are. Never
    /// shrinks, and does nothing where the table is large enough already, so that it can be called often; when it
    /// does grow, it copies at most the part that it adds. Callers of the other functions do not wait.
    pub fn grow(&self, expected_items: u64) {
        let wanted = lines_for(expected_items);
        if self.lines.load(Relaxed) >= wanted {
            return;
        }
        let _one_at_a_time = self.growing.lock();
        let mut lines = self.lines.load(Acquire);
        while lines < wanted {
            let Some((block, _)) = block_of(lines) else { return };
            let len = block_len(lines);
            let Some(cell) = self.blocks.get(block) else { return };
            let added = cell.get_or_init(|| (0..len).map(|_| Line::new()).collect());
            for (i, new) in added.iter().enumerate() {
                if let Some(split) = self.line(parent(lines + i)) {
                    new.copy_from(split);
                }
            }
            lines += len;
            self.lines.store(lines, Release);
        }
    }

    /// The saved form: magic, version, number of lines, phase, lines. The caller adds a checksum.
    pub fn to_bytes(&self) -> Vec<u8> {
        let lines = self.lines.load(Acquire);
        let mut out = Vec::with_capacity(HEADER + lines * LINE);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&u32::try_from(lines).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&self.phase.load(Relaxed).to_le_bytes());
        for line in (0..lines).filter_map(|i| self.line(i)) {
            out.extend(line.bytes().map(|b| b.load(Relaxed)));
        }
        out
    }

    /// The sketch saved in `bytes`, brought to the size for `expected_items`: larger or smaller, estimates stay (a
    /// smaller one overestimates more). Bytes that are not a saved sketch, or of another version, give a fresh
    /// one; damaged counters give wrong estimates and nothing else.
    pub fn from_bytes(bytes: &[u8], expected_items: u64) -> Heat {
        let Some((phase, saved)) = parse(bytes) else { return Heat::new(expected_items) };
        let heat = Heat::smallest();
        heat.phase.store(phase, Relaxed);
        let target = lines_for(expected_items);
        if saved.len() > target {
            heat.restore(&fold(saved.to_vec(), target));
        } else {
            heat.restore(saved);
        }
        heat.grow(expected_items);
        heat
    }

    /// Fills a table of the smallest size, new and not shared yet, with these lines.
    fn restore(&self, saved: &[[u8; LINE]]) {
        let (first, mut rest) = saved.split_at(saved.len().min(MIN_LINES));
        for (line, bytes) in self.first.iter().zip(first) {
            line.copy_from(&Line::from_bytes(bytes));
        }
        let mut lines = MIN_LINES;
        while !rest.is_empty() {
            let len = block_len(lines);
            let (Some((added, others)), Some((block, _))) = (rest.split_at_checked(len), block_of(lines))
            else {
                return;
            };
            let Some(cell) = self.blocks.get(block) else { return };
            cell.get_or_init(|| added.iter().map(Line::from_bytes).collect());
            rest = others;
            lines += len;
            self.lines.store(lines, Release);
        }
    }

    /// The line of an identity.
    fn line_of(&self, hash: u64) -> Option<&Line> {
        let lines = self.lines.load(Acquire);
        // The upper half of the doubled table is there only up to `lines`; what would lie beyond is not split yet.
        let split = 1usize << lines.ilog2();
        let i = hash as usize & (2 * split - 1);
        self.line(if i < lines { i } else { i - split })
    }

    fn line(&self, i: usize) -> Option<&Line> {
        match block_of(i) {
            None => self.first.get(i),
            Some((block, at)) => self.blocks.get(block)?.get()?.get(at),
        }
    }

    /// Moves time on by this many accesses and halves the lines whose turn it is.
    fn tick(&self, accesses: u64) {
        let lines = self.lines.load(Relaxed) as u64;
        let step = accesses * ((1 << PHASE_BITS) / (PERIOD * lines));
        let before = self.phase.fetch_add(step, Relaxed);
        let after = before.wrapping_add(step);
        let turn = |phase: u64| ((u128::from(phase) * u128::from(lines)) >> PHASE_BITS) as u64;
        // The phase wraps after 2^16 periods, and then some lines wait for the next one.
        for i in turn(before)..turn(after).min(turn(before) + lines) {
            if let Some(line) = self.line((i % lines) as usize) {
                line.halve(after);
            }
        }
    }
}

impl std::fmt::Debug for Heat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heat").field("memory", &self.memory()).finish_non_exhaustive()
    }
}

/// Counts `n` accesses: raises those of the three counters that are below the new least count.
fn raise(line: &Line, hash: u64, n: u32, dice: u64) {
    let Some(least) = line.of(hash).map(|c| c.load(Relaxed)).min() else { return };
    let target = encode(value(least).saturating_add(n), dice as u32);
    for counter in line.of(hash) {
        let mut seen = counter.load(Relaxed);
        // Another thread may raise or halve it at the same time; a handful of tries is more than it ever takes.
        for _ in 0..8 {
            if seen >= target {
                break;
            }
            match counter.compare_exchange_weak(seen, target, Relaxed, Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
    }
}

/// The accesses that a counter stands for.
fn value(counter: u8) -> u32 {
    match counter >> 5 {
        0 => u32::from(counter),
        exponent => (32 + u32::from(counter & 31)) << (exponent - 1),
    }
}

/// The counter for a number of accesses; between two steps, one of them at random, so that the mean is right.
fn encode(n: u32, dice: u32) -> u8 {
    if n < 64 {
        return n as u8;
    }
    if n >= MOST {
        return u8::MAX;
    }
    // 6 significant bits stay, the first of them implied.
    let shift = n.ilog2() - 5;
    let rest = n & ((1 << shift) - 1);
    let up = u32::from(dice & ((1 << shift) - 1) < rest);
    // Rounding up from 63 to 64 moves on to the next exponent by itself.
    ((shift + 1) * 32 + ((n >> shift) & 31) + up).min(255) as u8
}

/// Half of a counter: above 63 exactly, one exponent less.
const fn half(counter: u8) -> u8 {
    if counter >= 64 { counter - 32 } else { counter >> 1 }
}

const fn stamp_of(phase: u64) -> u8 {
    (phase >> (PHASE_BITS - PARTS.ilog2())) as u8
}

/// Lines of the table for this many items: whole blocks, rounded down.
fn lines_for(items: u64) -> usize {
    let wanted = usize::try_from(items / LINE as u64).unwrap_or(MAX_LINES).clamp(MIN_LINES, MAX_LINES);
    let block = block_len(wanted);
    wanted / block * block
}

/// The line that line `i`, beyond the first 16, is split from.
const fn parent(i: usize) -> usize {
    i - (1 << i.ilog2())
}

/// Lines of the block that line `i` lies in, or that the table would grow by at this size.
const fn block_len(i: usize) -> usize {
    (1 << i.ilog2()) / BLOCKS
}

/// The block of a line and the place in it; `None` for the first 16 lines.
fn block_of(i: usize) -> Option<(usize, usize)> {
    if i < MIN_LINES {
        return None;
    }
    // All powers of two: shifts and masks, for this is on the path of every access.
    let group = i.ilog2() - MIN_LINES.ilog2();
    let shift = i.ilog2() - BLOCKS.ilog2();
    let within = parent(i);
    Some(((group as usize) * BLOCKS + (within >> shift), within & ((1 << shift) - 1)))
}

/// The phase and the lines of a saved sketch.
fn parse(bytes: &[u8]) -> Option<(u64, &[[u8; LINE]])> {
    let (header, lines) = bytes.split_at_checked(HEADER)?;
    let (magic, rest) = header.split_first_chunk::<4>()?;
    let (format, rest) = rest.split_first_chunk::<4>()?;
    let (count, rest) = rest.split_first_chunk::<4>()?;
    let phase = u64::from_le_bytes(*rest.first_chunk::<8>()?);
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (lines, tail) = lines.as_chunks::<LINE>();
    let sound = *magic == MAGIC
        && u32::from_le_bytes(*format) == FORMAT
        && tail.is_empty()
        && lines.len() == count
        && lines_for((count * LINE) as u64) == count;
    sound.then_some((phase, lines))
}

/// Undoes splits until at most `target` lines are left: the larger of two counters stays.
fn fold(mut lines: Vec<[u8; LINE]>, target: usize) -> Vec<[u8; LINE]> {
    while lines.len() > target.max(MIN_LINES) {
        let Some(last) = lines.pop() else { break };
        let into = parent(lines.len());
        if let Some(into) = lines.get_mut(into) {
            // The stamp, the first byte, stays that of the line folded into.
            for (a, b) in into.iter_mut().zip(last).skip(1) {
                *a = (*a).max(b);
            }
        }
    }
    lines
}

/// A bijection that spreads every bit (the finalizer of SplitMix64, Steele et al. 2014).
const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Random bits: a sequence of this thread, stirred with the identity. It need not be secret, for an estimate
/// cannot be driven far by guessing it, and no two runs need differ.
fn dice(hash: u64) -> u64 {
    thread_local! {
        static SEQUENCE: Cell<u64> = const { Cell::new(0) };
    }
    let next = SEQUENCE.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
    SEQUENCE.set(next);
    mix(next ^ hash)
}

#[cfg(test)]
#[path = "heat/tests.rs"]
mod tests;
