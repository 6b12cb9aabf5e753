//! The state of the simulated disk: names, files, what is pending, and what a crash makes of it.
//!
//! Invariant: a crash clone shares nothing that can change with the disk that it was made from, so that one history
//! can be cut in many places.

use super::SimFs;
use super::dice::Dice;
use super::fault::{Away, Call, Fault, Op, Trouble};
use super::image::{DirImage, Fate, FileImage, Id, Renaming, View, enter, with_what_it_needs};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

/// The directory at the top.
pub(super) const ROOT: Id = 0;
/// Files that nothing leads to are let go of once in so many times.
const SWEEP: u32 = 512;
/// So many changes are remembered.
const RECENT: usize = 8;

#[derive(Debug)]
pub(super) struct State {
    pub(super) files: BTreeMap<Id, FileImage>,
    pub(super) dirs: BTreeMap<Id, DirImage>,
    pub(super) next: Id,
    /// How many handles each open file has.
    pub(super) open: BTreeMap<Id, usize>,
    /// What happened to names and is not durable, in order.
    pub(super) pending: Vec<Renaming>,
    pub(super) locks: BTreeSet<PathBuf>,
    pub(super) faults: Vec<Fault>,
    /// Directories that are not there for now.
    pub(super) away: Vec<(PathBuf, Away)>,
    /// Bytes that the files below a path may have together.
    pub(super) room: Vec<(PathBuf, u64)>,
    pub(super) calls: [u64; Op::COUNT],
    pub(super) changes: u64,
    pub(super) stop_after: u64,
    pub(super) due: Vec<(u64, u64)>,
    pub(super) taken: Vec<(u64, SimFs)>,
    pub(super) trace: Option<Vec<String>>,
    /// The last changes. Of a crash clone: those before the crash, and the one that was not made any more.
    pub(super) recent: VecDeque<(Op, PathBuf)>,
    pub(super) dice: Dice,
    /// Whether files can be mapped, and how many were.
    pub(super) maps: bool,
    pub(super) mapped: u64,
    /// Times that there may have been something to sweep since it was done.
    unswept: u32,
}

pub(super) fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// The names on a path.
pub(super) fn parts(path: &Path) -> impl Iterator<Item = &str> {
    path.components().filter_map(|c| match c {
        Component::Normal(name) => name.to_str(),
        _ => None,
    })
}

impl State {
    pub(super) fn new(seed: u64) -> State {
        State {
            files: BTreeMap::new(),
            dirs: BTreeMap::from([(ROOT, DirImage::default())]),
            next: ROOT + 1,
            open: BTreeMap::new(),
            pending: Vec::new(),
            locks: BTreeSet::new(),
            faults: Vec::new(),
            away: Vec::new(),
            room: Vec::new(),
            calls: [0; Op::COUNT],
            changes: 0,
            stop_after: u64::MAX,
            due: Vec::new(),
            taken: Vec::new(),
            trace: None,
            recent: VecDeque::with_capacity(RECENT + 1),
            dice: Dice::new(seed),
            maps: false,
            mapped: 0,
            unswept: 0,
        }
    }

    /// Counts a call, and says whether it goes wrong. The outer error is the call's.
    pub(super) fn call(&mut self, op: Op, path: &Path, range: Range<u64>) -> io::Result<Option<Trouble>> {
        if let Some(count) = self.calls.get_mut(op as usize) {
            *count += 1;
        }
        if op.changes() {
            self.changes += 1;
            self.recent.push_back((op, path.to_path_buf()));
            if self.recent.len() > RECENT {
                self.recent.pop_front();
            }
            self.take_clones();
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{op:?} {} {range:?}", path.display()));
            }
        }
        if self.changes > self.stop_after {
            return Err(io::Error::other("the simulated process has ended"));
        }
        let away = self.away.iter().filter(|(a, _)| path.starts_with(a));
        if let Some(e) = away.filter_map(|(_, how)| how.error(op)).next() {
            return Err(e);
        }
        let call = Call { op, path, range };
        Ok(self.faults.iter_mut().find_map(|f| f.check(&call)))
    }

    /// A call that can only succeed or fail.
    pub(super) fn simple(&mut self, op: Op, path: &Path) -> io::Result<()> {
        self.call(op, path, 0..0)?.map_or(Ok(()), |trouble| Err(trouble.error()))
    }

    pub(super) fn take_clones(&mut self) {
        let now = self.changes;
        let due: Vec<(u64, u64)> = self.due.iter().copied().filter(|(at, _)| *at == now).collect();
        for (at, seed) in due {
            let clone = self.crash(&mut Dice::new(seed));
            clone.state().recent = self.recent.clone();
            self.taken.push((at, clone));
        }
    }

    pub(super) fn lookup(&self, path: &Path) -> Option<Id> {
        parts(path).try_fold(ROOT, |dir, name| self.dirs.get(&dir)?.now.get(name).copied())
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<Id> {
        self.lookup(path).filter(|id| self.files.contains_key(id)).ok_or_else(missing)
    }

    /// The directory that a path lies in, and its name there.
    pub(super) fn place(&self, path: &Path) -> io::Result<(Id, String)> {
        let name = path.file_name().and_then(|n| n.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.lookup(path.parent().unwrap_or(Path::new(""))).ok_or_else(missing)?;
        if !self.dirs.contains_key(&dir) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok((dir, name.to_owned()))
    }

    pub(super) fn rename(&mut self, names: Vec<(Id, String, Option<Id>)>) {
        let change = Renaming { names };
        enter(&change, &mut self.dirs, View::Now);
        self.pending.push(change);
        self.sweep();
    }

    /// Now and then lets go of files that no name leads to, or will after any crash, and that nobody has open. They
    /// only take memory, and looking at every name with each call would be most of a simulation's time.
    pub(super) fn sweep(&mut self) {
        self.unswept += 1;
        if self.unswept < SWEEP {
            return;
        }
        self.unswept = 0;
        let live: BTreeSet<Id> = self
            .dirs
            .values()
            .flat_map(|d| d.now.values().chain(d.synced.values()))
            .copied()
            .chain(self.pending.iter().flat_map(|p| p.names.iter().filter_map(|n| n.2)))
            .chain(self.open.keys().copied())
            .collect();
        self.files.retain(|id, _| live.contains(id));
        self.dirs.retain(|id, _| *id == ROOT || live.contains(id));
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<Id> {
        let (dir, name) = self.place(path)?;
        if self.dirs.get(&dir).is_some_and(|d| d.now.contains_key(&name)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = self.fresh();
        self.files.insert(id, FileImage::default());
        self.rename(vec![(dir, name, Some(id))]);
        Ok(id)
    }

    pub(super) fn create_dirs(&mut self, path: &Path) -> io::Result<()> {
        let mut above = PathBuf::from("/");
        for name in parts(path) {
            let here = above.join(name);
            match self.lookup(&here) {
                Some(id) if self.dirs.contains_key(&id) => {}
                Some(_) => return Err(io::ErrorKind::AlreadyExists.into()),
                None => {
                    let (dir, name) = self.place(&here)?;
                    let id = self.fresh();
                    self.dirs.insert(id, DirImage::default());
                    self.rename(vec![(dir, name, Some(id))]);
                }
            }
            above = here;
        }
        Ok(())
    }

    /// What happened to names so far is durable.
    pub(super) fn settle_names(&mut self) {
        self.pending.clear();
        for dir in self.dirs.values_mut() {
            dir.synced = dir.now.clone();
        }
    }

    pub(super) fn fresh(&mut self) -> Id {
        let id = self.next;
        self.next += 1;
        id
    }

    pub(super) fn sync_dir(&mut self, dir: Id) {
        let pending = std::mem::take(&mut self.pending);
        // Nearly always.
        if pending.iter().all(|change| change.names.iter().all(|n| n.0 == dir)) {
            pending.iter().for_each(|change| enter(change, &mut self.dirs, View::Synced));
            return self.sweep();
        }
        let here = pending.iter().map(|change| change.names.iter().any(|n| n.0 == dir)).collect();
        let done = with_what_it_needs(&pending, here);
        for (change, done) in pending.into_iter().zip(done) {
            if done {
                enter(&change, &mut self.dirs, View::Synced);
            } else {
                self.pending.push(change);
            }
        }
        self.sweep();
    }

    /// A sync of a directory fails as those of files do: of what happened there, and what it needs, some is on the disk,
    /// and the rest never will be, though everybody sees it.
    pub(super) fn sync_dir_in_vain(&mut self, dir: Id, dice: &mut Dice) {
        let pending = std::mem::take(&mut self.pending);
        let here = pending.iter().map(|change| change.names.iter().any(|n| n.0 == dir)).collect();
        let here = with_what_it_needs(&pending, here);
        let arrived = here.iter().map(|here| *here && dice.one_in(2)).collect();
        let arrived = with_what_it_needs(&pending, arrived);
        for ((change, here), arrived) in pending.into_iter().zip(here).zip(arrived) {
            if arrived {
                enter(&change, &mut self.dirs, View::Synced);
            } else if !here {
                self.pending.push(change);
            }
        }
        self.sweep();
    }

    pub(super) fn remove_all(&mut self, path: &Path) -> io::Result<()> {
        let id = self.lookup(path).ok_or_else(missing)?;
        let inside: Vec<String> =
            self.dirs.get(&id).ok_or(io::ErrorKind::NotADirectory)?.now.keys().cloned().collect();
        for name in inside {
            let inner = path.join(name);
            if self.lookup(&inner).is_some_and(|id| self.dirs.contains_key(&id)) {
                self.remove_all(&inner)?;
            } else {
                self.simple(Op::RemoveFile, &inner)?;
                let (dir, name) = self.place(&inner)?;
                self.rename(vec![(dir, name, None)]);
            }
        }
        self.simple(Op::RemoveDir, path)?;
        let (dir, name) = self.place(path)?;
        self.rename(vec![(dir, name, None)]);
        Ok(())
    }

    /// Bytes of all files below a path.
    pub(super) fn used(&self, below: &Path) -> u64 {
        let Some(top) = self.lookup(below) else { return 0 };
        let mut used = 0u64;
        let mut left = vec![top];
        while let Some(id) = left.pop() {
            used += self.files.get(&id).map_or(0, FileImage::len);
            left.extend(self.dirs.get(&id).into_iter().flat_map(|d| d.now.values().copied()));
        }
        used
    }

    /// How much a file may grow; `u64::MAX` where nothing limits it.
    pub(super) fn free(&self, path: &Path) -> u64 {
        let limits = self.room.iter().filter(|(below, _)| path.starts_with(below));
        limits.map(|(below, room)| room.saturating_sub(self.used(below))).min().unwrap_or(u64::MAX)
    }

    pub(super) fn crash(&self, dice: &mut Dice) -> SimFs {
        let mut dirs: BTreeMap<Id, DirImage> = BTreeMap::new();
        for (id, dir) in &self.dirs {
            dirs.insert(*id, DirImage { now: dir.synced.clone(), ..DirImage::default() });
        }
        let fate = Fate::draw(dice);
        let prefix = dice.below(self.pending.len() as u64 + 1);
        let happened = (0..self.pending.len() as u64).map(|n| match fate {
            Fate::None => false,
            Fate::All => true,
            Fate::Prefix => n < prefix,
            Fate::Some => dice.one_in(2),
        });
        let happened = with_what_it_needs(&self.pending, happened.collect());
        for (change, _) in self.pending.iter().zip(happened).filter(|(_, happened)| *happened) {
            enter(change, &mut dirs, View::Now);
        }
        let files = self.files.iter().map(|(id, f)| (*id, f.survive(dice))).collect();
        self.with(files, dirs)
    }

    /// Another file system with these images, all of which are durable.
    pub(super) fn with(&self, files: BTreeMap<Id, FileImage>, dirs: BTreeMap<Id, DirImage>) -> SimFs {
        let state = State { files, dirs, next: self.next, maps: self.maps, ..State::new(self.changes) };
        let fs = SimFs::of(state);
        fs.state().settle_names();
        fs
    }
}
