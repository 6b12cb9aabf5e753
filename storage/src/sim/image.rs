//! What a file and a directory hold: as the process sees it, as it is on stable storage, and what lies between.
//!
//! What a crash may leave of either is the list of the module above, and nothing else.

use super::dice::Dice;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a disk writes as a whole or not at all.
const SECTOR: u64 = 512;

/// How much of what was not synced a crash leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing.
    None,
    /// All of it.
    All,
    /// The first so many, and sectors of the one after.
    Prefix,
    /// Any.
    Some,
}

impl Fate {
    pub(super) fn draw(dice: &mut Dice) -> Fate {
        match dice.below(4) {
            0 => Fate::None,
            1 => Fate::All,
            2 => Fate::Prefix,
            _ => Fate::Some,
        }
    }
}

/// A change of a file that is not synced.
#[derive(Debug, Clone)]
enum Change {
    Write { at: u64, bytes: Vec<u8> },
    Grow { to: u64 },
}

/// Bytes and a length: what is behind the bytes, up to the length, is zeros. Copies share the bytes until one of them is
/// written to: a disk is copied far more often than most of its files are.
#[derive(Debug, Clone, Default)]
struct Content {
    bytes: Arc<Vec<u8>>,
    len: u64,
}

impl Content {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        let Ok(start) = usize::try_from(at) else { return };
        let end = start.saturating_add(bytes.len());
        let all = Arc::make_mut(&mut self.bytes);
        if all.len() < start {
            all.resize(start, 0);
        }
        // What stands there is replaced, and the rest is added.
        let (over, behind) = bytes.split_at(bytes.len().min(all.len() - start));
        if let Some(to) = all.get_mut(start..start + over.len()) {
            to.copy_from_slice(over);
        }
        all.extend_from_slice(behind);
        self.len = self.len.max(end as u64);
    }

    fn read(&self, buf: &mut [u8], at: u64) -> usize {
        let left = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX);
        let count = left.min(buf.len());
        let from = usize::try_from(at).ok().and_then(|at| self.bytes.get(at..)).unwrap_or_default();
        let (known, zeros) = buf.split_at_mut(from.len().min(count));
        known.copy_from_slice(from.split_at(known.len()).0);
        let behind = count - known.len();
        zeros.split_at_mut(behind).0.fill(0);
        count
    }

    /// The sector that this offset lies in: where it begins, and its bytes, fewer at the end.
    fn sector(&self, at: u64) -> (u64, Vec<u8>) {
        let start = at - at % SECTOR;
        let mut bytes = vec![0; SECTOR as usize];
        let have = self.read(&mut bytes, start);
        bytes.truncate(have);
        (start, bytes)
    }

    /// Turns a bit; says whether there is one.
    fn turn(&mut self, at: u64, bit: u32) -> bool {
        let mut byte = [0];
        if self.read(&mut byte, at) == 0 {
            return false;
        }
        self.write(at, &byte.map(|b| b ^ 1 << (bit % 8)));
        true
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { at, bytes } => self.write(*at, bytes),
            Change::Grow { to } => self.len = self.len.max(*to),
        }
    }

    /// Those sectors of a write that arrived.
    fn write_torn(&mut self, at: u64, bytes: &[u8], dice: &mut Dice) {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|r| !r.is_empty()) {
            let here = at + done as u64;
            let room = usize::try_from(SECTOR - here % SECTOR).unwrap_or(rest.len());
            let (sector, _) = rest.split_at(room.min(rest.len()));
            if dice.one_in(2) {
                self.write(here, sector);
            }
            done += sector.len();
        }
    }
}

/// A file.
#[derive(Debug, Clone, Default)]
pub(super) struct FileImage {
    now: Content,
    synced: Content,
    pending: Vec<Change>,
    /// One of the sectors that were written and synced, as it was before: where it begins, and its bytes.
    before: Option<(u64, Vec<u8>)>,
}

impl FileImage {
    pub(super) fn len(&self) -> u64 {
        self.now.len
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.now.bytes.to_vec();
        bytes.resize(usize::try_from(self.now.len).unwrap_or(bytes.len()), 0);
        bytes
    }

    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> usize {
        self.now.read(buf, at)
    }

    pub(super) fn write(&mut self, bytes: &[u8], at: u64) {
        self.change(Change::Write { at, bytes: bytes.to_vec() });
    }

    pub(super) fn grow(&mut self, to: u64) {
        if to > self.now.len {
            self.change(Change::Grow { to });
        }
    }

    fn change(&mut self, change: Change) {
        self.now.apply(&change);
        self.pending.push(change);
    }

    pub(super) fn sync(&mut self, dice: &mut Dice) {
        if let Some(Change::Write { at, bytes }) = dice.pick(&self.pending)
            && (self.before.is_none() || dice.one_in(3))
        {
            let (start, old) = self.synced.sector(at + dice.below(bytes.len() as u64));
            // What was not there before was zeros, if blocks were reserved for it, or nothing.
            self.before = Some((start, old));
        }
        for change in std::mem::take(&mut self.pending) {
            self.synced.apply(&change);
        }
    }

    /// A sync fails as Linux's do: some of the pages reached the disk, the others will not, and are clean: the next
    /// sync succeeds.
    pub(super) fn sync_in_vain(&mut self, dice: &mut Dice) {
        let left = std::mem::take(&mut self.pending);
        arrive(&mut self.synced, &left, dice);
    }

    /// What is found after a crash.
    pub(super) fn survive(&self, dice: &mut Dice) -> FileImage {
        let mut left = self.synced.clone();
        arrive(&mut left, &self.pending, dice);
        FileImage { before: self.before.clone(), ..FileImage::settled(left) }
    }

    /// What is found after a crash if nothing that was not synced arrived.
    pub(super) fn synced(&self) -> FileImage {
        FileImage { before: self.before.clone(), ..FileImage::settled(self.synced.clone()) }
    }

    /// As it is seen, with nothing left to sync.
    pub(super) fn copy(&self) -> FileImage {
        FileImage { before: self.before.clone(), ..FileImage::settled(self.now.clone()) }
    }

    fn settled(content: Content) -> FileImage {
        FileImage { now: content.clone(), synced: content, ..FileImage::default() }
    }

    /// Turns a bit of what is on the disk, and of what is seen; says whether there is one. What is not synced stays so.
    pub(super) fn turn(&mut self, at: u64, bit: u32) -> bool {
        let synced = self.synced.turn(at, bit);
        self.now.turn(at, bit) || synced
    }

    /// A sector that was synced is as it was before; says which, or `None` if nothing is changed by that.
    pub(super) fn take_back(&mut self) -> Option<u64> {
        let (start, mut old) = self.before.take()?;
        let (_, have) = self.synced.sector(start);
        old.resize(have.len(), 0);
        self.synced.write(start, &old);
        self.now.write(start, &old);
        (old != have).then_some(start)
    }

    /// Changes what is on the disk behind the back of who uses it.
    pub(super) fn edit(&mut self, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.bytes();
        edit(&mut bytes);
        let len = bytes.len() as u64;
        // Zeros at the end, of which a journal has a mebibyte, need not be kept.
        bytes.truncate(bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1));
        *self = FileImage::settled(Content { bytes: Arc::new(bytes), len });
    }
}

/// Some of the changes reach the disk.
fn arrive(on_disk: &mut Content, changes: &[Change], dice: &mut Dice) {
    let fate = Fate::draw(dice);
    let first = match fate {
        Fate::None => return,
        Fate::All => changes.len(),
        Fate::Prefix => usize::try_from(dice.below(changes.len() as u64)).unwrap_or(0),
        Fate::Some => 0,
    };
    let (whole, torn) = changes.split_at_checked(first).unwrap_or((changes, &[]));
    whole.iter().for_each(|c| on_disk.apply(c));
    let mut torn: Vec<&Change> = torn.iter().collect();
    if fate == Fate::Prefix {
        torn.truncate(1);
    } else if dice.one_in(2) {
        torn.reverse();
    }
    for change in torn {
        match change {
            Change::Write { at, bytes } => on_disk.write_torn(*at, bytes, dice),
            change if dice.one_in(2) => on_disk.apply(change),
            Change::Grow { .. } => {}
        }
    }
}

/// The number of a file or a directory.
pub(super) type Id = u64;

/// What a name leads to.
pub(super) type Names = BTreeMap<String, Id>;

/// A change of directories that is not durable: the names that it sets and takes away.
#[derive(Debug, Clone)]
pub(super) struct Renaming {
    /// Directory, name, and what it leads to now.
    pub(super) names: Vec<(Id, String, Option<Id>)>,
}

/// A directory.
#[derive(Debug, Clone, Default)]
pub(super) struct DirImage {
    pub(super) now: Names,
    pub(super) synced: Names,
}

/// Which image of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// What the process sees.
    Now,
    /// What is durable.
    Synced,
}

/// Enters what a change made of names into one image of the directories.
pub(super) fn enter(change: &Renaming, dirs: &mut BTreeMap<Id, DirImage>, view: View) {
    for (dir, name, to) in &change.names {
        let Some(dir) = dirs.get_mut(dir) else { continue };
        let names = if view == View::Now { &mut dir.now } else { &mut dir.synced };
        match to {
            Some(id) => names.insert(name.clone(), *id),
            None => names.remove(name),
        };
    }
}

/// Those of `changes`, in order, that have `happened`, and those before that were of the same names.
pub(super) fn with_what_it_needs(changes: &[Renaming], mut happened: Vec<bool>) -> Vec<bool> {
    let mut names: BTreeSet<(Id, &str)> = BTreeSet::new();
    for (change, happened) in changes.iter().zip(&mut happened).rev() {
        *happened |= change.names.iter().any(|(dir, name, _)| names.contains(&(*dir, name.as_str())));
        if *happened {
            names.extend(change.names.iter().map(|(dir, name, _)| (*dir, name.as_str())));
        }
    }
    happened
}
