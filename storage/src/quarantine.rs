//! The quarantine of a directory: what could not be read, kept for a person to look at, with a report beside it.
//!
//! It is kept up to a cap (5 % of its tier); then the oldest goes. Nothing here is ever served.
//!
//! Invariants:
//! - what is moved here is moved durably when the call returns: it is in one of the two places at any moment, and the
//!   frames that say what became of its items come after that;
//! - copies of records are not synced, so that no reader waits for the disk: the record still stands where it stood;
//! - the lock is held for arithmetic alone, never while the disk is asked for something;
//! - all bytes that are kept here count towards the cap, but for the reports, whatever a crash left of them; those that
//!   are being written or removed count towards what is occupied. What has another name than is given here is a
//!   person's: it is neither counted nor removed.
//!
//! The design (§7) has the table of what a crash leaves.
//!
//! The reports are for people, and no program reads them: lines of a word and what it says, in plain words. Their form
//! is shown in `docs/operations.md`.

use crate::clock::Clock;
use crate::error::{Error, IoContext, Result};
use crate::vfs::{EntryKind, OpenMode, Vfs};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder's name in each directory of a store.
pub const FOLDER: &str = "quarantine";

/// The quarantine of one directory of a tier.
#[derive(Debug)]
pub struct Quarantine {
    vfs: Arc<dyn Vfs>,
    clock: Arc<dyn Clock>,
    folder: PathBuf,
    cap: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first: name of the bytes, their size.
    kept: VecDeque<(String, u64)>,
    /// Their sizes together: every write asks for it.
    bytes: u64,
    /// Bytes that are being written, and such as are being removed.
    moving: u64,
    next: u64,
    removed: u64,
}

impl State {
    fn keep(&mut self, name: String, size: u64) {
        self.bytes = self.bytes.saturating_add(size);
        self.kept.push_back((name, size));
    }

    /// Takes out the oldest that are over the cap. They count as moving until they are gone.
    fn over(&mut self, cap: u64) -> Vec<(String, u64)> {
        let mut gone = Vec::new();
        while self.bytes > cap
            && let Some((name, size)) = self.kept.pop_front()
        {
            self.bytes = self.bytes.saturating_sub(size);
            self.moving = self.moving.saturating_add(size);
            self.removed += 1;
            gone.push((name, size));
        }
        gone
    }
}

impl Quarantine {
    /// The quarantine below `dir`, with what is there already. The folder is made when it is first needed.
    pub fn open(vfs: Arc<dyn Vfs>, clock: Arc<dyn Clock>, dir: &Path, cap: u64) -> Result<Quarantine> {
        let folder = dir.join(FOLDER);
        let mut state = State::default();
        if vfs.kind(&folder).at("look at", &folder)? == Some(EntryKind::Dir) {
            let mut entries = vfs.read_dir(&folder).at("list", &folder)?;
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            for e in entries {
                let number = e.name.split_once('-').and_then(|(n, _)| n.parse::<u64>().ok());
                let Some(number) = number else { continue };
                // A number that somebody made up is not counted on from.
                state.next = state.next.max(Some(number).filter(|n| *n < u64::MAX / 2).map_or(0, |n| n + 1));
                match e.name.strip_suffix(".txt") {
                    None => {
                        let size = size_of(&*vfs, &folder.join(&e.name), e.len);
                        state.keep(e.name, size);
                    }
                    // A report whose bytes a crash took ages as they would have. (In order of name, it follows them.)
                    Some(of) if state.kept.back().is_none_or(|(name, _)| name != of) => {
                        state.keep(of.to_owned(), e.len);
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(Quarantine { vfs, clock, folder, cap, state: Mutex::new(state) })
    }

    /// Bytes that are here.
    pub fn bytes(&self) -> u64 {
        let state = self.state.lock();
        state.bytes.saturating_add(state.moving)
    }

    /// How many were removed, since the opening, because the cap was reached.
    pub fn removed(&self) -> u64 {
        self.state.lock().removed
    }

    /// Keeps a copy of the bytes of one record, with a report.
    pub fn record(
        &self,
        source: &Path,
        offset: u64,
        bytes: &[u8],
        why: &str,
        key: Option<&[u8]>,
    ) -> Result<()> {
        let (size, name) = (bytes.len() as u64, self.begin("record", bytes.len() as u64)?);
        let path = self.folder.join(&name);
        let copy = || {
            let file = self.vfs.open(&path, OpenMode::CreateNew).at("create", &path)?;
            file.write_all_at(bytes, 0).at("write", &path)
        };
        if let Err(e) = copy() {
            let _ = self.vfs.remove_file(&path);
            self.end(size, None);
            return Err(e);
        }
        let key = match key {
            Some(key) => key.escape_ascii().to_string(),
            None => "not known: nothing that can still be read says it".to_owned(),
        };
        // Errors name the file, which the report does already.
        let why = why.strip_prefix(&format!("{}: ", source.display())).unwrap_or(why);
        let report = Report {
            what: format!("the record of one item, {} bytes, copied as they stand", bytes.len()),
            from: format!("{} at byte {offset}", source.display()),
            key: Some(key),
            why,
            means: "the item is absent; put it again. Nothing else is lost with it",
        };
        self.report(&name, &report);
        self.end(size, Some((name, size)));
        Ok(())
    }

    /// Moves a container, a file or a directory, here, with a report.
    pub fn container(&self, source: &Path, why: &str) -> Result<()> {
        let means = "the items in it are absent; put them again. The rest of the store is as it was";
        self.take(source, "a container, which held items", why, means)
    }

    /// Moves the index of a container here, with a report.
    pub fn index(&self, source: &Path, why: &str) -> Result<()> {
        let means = "nothing is lost: the index was made anew from the items themselves";
        self.take(source, "an index, which holds no items", why, means)
    }

    fn take(&self, source: &Path, what: &str, why: &str, means: &'static str) -> Result<()> {
        let tail = source.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let name = self.begin(&tail, 0)?;
        let path = self.folder.join(&name);
        let moved = || {
            // Whatever made the folder: a crash that forgot it would forget what is moved into it.
            self.folder.parent().map_or(Ok(()), |above| self.vfs.sync_dir(above).at("sync", above))?;
            self.vfs.rename(source, &path).at("quarantine", source)
        };
        if let Err(e) = moved() {
            self.end(0, None);
            return Err(e);
        }
        let size = size_of(&*self.vfs, &path, 0);
        let what = format!("{what}, {size} bytes, moved whole");
        let report = Report { what, from: source.display().to_string(), key: None, why, means };
        self.report(&name, &report);
        // It has been moved, whatever becomes of this. First where it is, then where it was: if the one fails, the other
        // is left undone, and after a crash it may be found where it was, and be moved again.
        let synced = [Some(&*self.folder), source.parent()]
            .into_iter()
            .flatten()
            .try_for_each(|folder| self.vfs.sync_dir(folder).at("sync", folder));
        if let Err(e) = synced {
            warn_seldom!(path = %path.display(), error = %e, "a move to the quarantine may not be durable");
        }
        self.end(0, Some((name, size)));
        Ok(())
    }

    /// [`container`](Self::container) of what is not to be deleted: another's, or a second copy. Larger than the cap it
    /// would go at once: then it is refused, and stays where it is.
    pub fn set_aside(&self, source: &Path, size: u64, why: &str) -> Result<()> {
        if size > self.cap {
            return Err(Error::Busy("it is larger than the quarantine"));
        }
        self.container(source, why)
    }

    /// A name for something new of so many bytes, which count from now on.
    fn begin(&self, tail: &str, bytes: u64) -> Result<String> {
        self.vfs.create_dir_all(&self.folder).at("create", &self.folder)?;
        let mut state = self.state.lock();
        let n = state.next;
        state.next += 1;
        state.moving = state.moving.saturating_add(bytes);
        Ok(format!("{n:010}-{tail}"))
    }

    /// What was begun with so many bytes is here, or is not. Removes the oldest over the cap.
    fn end(&self, begun: u64, kept: Option<(String, u64)>) {
        let over = {
            let mut state = self.state.lock();
            state.moving = state.moving.saturating_sub(begun);
            if let Some((name, size)) = kept {
                state.keep(name, size);
            }
            state.over(self.cap)
        };
        for (name, size) in over {
            self.remove(&name);
            let mut state = self.state.lock();
            state.moving = state.moving.saturating_sub(size);
        }
    }

    /// The report is for people; failing to write it loses nothing that is served.
    fn report(&self, name: &str, report: &Report<'_>) {
        let path = self.folder.join(format!("{name}.txt"));
        if let Ok(file) = self.vfs.open(&path, OpenMode::CreateNew) {
            let _ = file.write_all_at(report.text(name, self.clock.wall_ms()).as_bytes(), 0);
        }
    }

    fn remove(&self, name: &str) {
        let path = self.folder.join(name);
        let gone = match self.vfs.kind(&path) {
            Ok(Some(EntryKind::Dir)) => self.vfs.remove_dir_all(&path),
            Ok(None) => Ok(()),
            _ => self.vfs.remove_file(&path),
        };
        let _ = self.vfs.remove_file(&self.folder.join(format!("{name}.txt")));
        match gone {
            Ok(()) => warn_seldom!(path = %path.display(), "quarantine over its cap: the oldest was removed"),
            Err(e) => warn_seldom!(path = %path.display(), error = %e, "quarantine: cannot remove"),
        }
    }
}

/// What stands in a report.
struct Report<'a> {
    what: String,
    from: String,
    /// Of a record: whose it was, in words.
    key: Option<String>,
    why: &'a str,
    means: &'static str,
}

impl Report<'_> {
    fn text(&self, name: &str, now: u64) -> String {
        let mut text =
            "Bytes that could not be trusted, kept for you to look at. They are never served.\n\n".to_owned();
        let mut line = |word: &str, says: &str| _ = writeln!(text, "{word:<6} {says}");
        line("what", &self.what);
        line("when", &utc(now));
        line("from", &self.from);
        if let Some(key) = &self.key {
            line("key", key);
        }
        line("why", self.why);
        line("means", self.means);
        line("look", &format!("at {name}, beside this report"));
        line("delete", "both whenever you like, with the store closed; the oldest go by themselves");
        text
    }
}

/// A time by the wall clock as people write it: `2026-01-31 23:59:59 UTC`. The calendar is counted from March, so that
/// a leap day ends a year (Hinnant, "chrono-Compatible Low-Level Date Algorithms", 2013).
fn utc(ms: u64) -> String {
    let (days, second) = (ms / 86_400_000 + 719_468, ms / 1000 % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Bytes of a file, or of all files below a directory (two levels are as deep as containers go).
fn size_of(vfs: &dyn Vfs, path: &Path, known: u64) -> u64 {
    match vfs.kind(path) {
        Ok(Some(EntryKind::File)) if known > 0 => known,
        Ok(Some(EntryKind::File)) => vfs.open(path, OpenMode::Read).and_then(|f| f.len()).unwrap_or(0),
        Ok(Some(EntryKind::Dir)) => vfs
            .read_dir(path)
            .map(|entries| entries.iter().map(|e| size_of(vfs, &path.join(&e.name), e.len)).sum())
            .unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::sim::{Dice, Fault, Op, SimFs};
    use crate::testing::FaultFs;
    use crate::vfs::RealFs;

    fn open(dir: &Path, cap: u64) -> Quarantine {
        Quarantine::open(Arc::new(RealFs), Arc::new(ManualClock::new(1_709_251_199_999)), dir, cap).unwrap()
    }

    #[test]
    fn the_cap_holds_and_the_oldest_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let q = open(dir.path(), 250);
        for _ in 0..3 {
            q.record(Path::new("seg"), 64, &[7; 100], "checksum", Some(b"key\n")).unwrap();
        }
        assert_eq!((q.bytes(), q.removed()), (200, 1));
        let again = open(dir.path(), 250);
        assert_eq!(again.bytes(), 200);
        let text = std::fs::read_to_string(dir.path().join("quarantine/0000000001-record.txt")).unwrap();
        assert!(text.contains("seg at byte 64") && text.contains("key\\n"), "{text}");
        assert!(!dir.path().join("quarantine/0000000000-record").exists());
    }

    #[test]
    fn a_name_with_the_largest_number_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("quarantine")).unwrap();
        std::fs::write(dir.path().join(format!("quarantine/{}-x", u64::MAX)), [1; 10]).unwrap();
        let q = open(dir.path(), 1000);
        for _ in 0..2 {
            q.record(Path::new("seg"), 64, &[7; 100], "checksum", None).unwrap();
        }
        assert_eq!(q.bytes(), 210);
    }

    #[test]
    fn what_a_person_left_here_is_neither_counted_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("quarantine");
        std::fs::create_dir(&folder).unwrap();
        for name in ["notes.txt", "12", "copy-of-1"] {
            std::fs::write(folder.join(name), [1; 1000]).unwrap();
        }
        let q = open(dir.path(), 250);
        assert_eq!(q.bytes(), 0);
        (0..5).for_each(|_| q.record(Path::new("seg"), 64, &[7; 100], "checksum", None).unwrap());
        assert_eq!((q.bytes(), q.removed()), (200, 3));
        assert!(["notes.txt", "12", "copy-of-1"].iter().all(|name| folder.join(name).exists()));
    }

    #[test]
    fn nobody_waits_for_a_disk_here() {
        let dir = tempfile::tempdir().unwrap();
        let fs = FaultFs::default();
        let clock = Arc::new(ManualClock::new(0));
        let q = Arc::new(Quarantine::open(Arc::new(fs.clone()), clock, dir.path(), 250).unwrap());
        let asked = Arc::new(std::sync::atomic::AtomicU64::new(0));
        // Every write asks how much is here: while the disk is at any of this, too.
        let (here, calls) = (Arc::downgrade(&q), asked.clone());
        fs.watch(move |_| {
            let q = here.upgrade().unwrap();
            assert!(q.state.try_lock().is_some(), "the lock is held while the disk works");
            calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        for no in 0..4 {
            let path = dir.path().join(format!("seg-{no}"));
            std::fs::write(&path, [no; 100]).unwrap();
            q.record(Path::new("seg"), 64, &[7; 100], "checksum", None).unwrap();
            q.container(&path, "header unreadable").unwrap();
        }
        assert_eq!((q.bytes(), q.removed()), (200, 6));
        assert!(asked.load(std::sync::atomic::Ordering::Relaxed) > 40);
    }

    /// A folder whose name a crash forgets takes what is in it along; and what is not durable here stays durable there.
    #[test]
    fn a_sync_that_fails_loses_no_container() {
        let (dir, from) = (Path::new("/d"), Path::new("/d/things/seg"));
        for (failing, moved) in [("/d", false), ("/d/quarantine", true), ("/d/things", true)] {
            let fs = SimFs::new(1).with_dir(Path::new("/d/things"));
            let file = fs.open(from, OpenMode::CreateNew).unwrap();
            file.write_all_at(&[5; 100], 0).unwrap();
            file.sync().unwrap();
            fs.sync_dir(Path::new("/d/things")).unwrap();
            let clock = Arc::new(ManualClock::new(0));
            let q = Quarantine::open(Arc::new(fs.clone()), clock, dir, 250).unwrap();
            // The folder was made for a copy, and nobody synced it.
            q.record(Path::new("seg"), 64, &[7; 50], "checksum", None).unwrap();
            fs.fail(Fault::when(move |c| c.op == Op::SyncDir && c.path == Path::new(failing)).times(1));
            assert_eq!(q.container(from, "nothing says what it is").is_ok(), moved, "{failing}");
            for seed in 0..50 {
                let after = fs.crash(&mut Dice::new(seed)).files();
                let there = |name: &str| after.contains(&name.into());
                assert!(
                    there("/d/things/seg") || there("/d/quarantine/0000000001-seg"),
                    "{failing}, seed {seed}: it is gone: {after:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_not_to_be_deleted_is_refused_where_it_would_be() {
        let dir = tempfile::tempdir().unwrap();
        let q = open(dir.path(), 1000);
        let path = dir.path().join("seg");
        std::fs::write(&path, [1; 1001]).unwrap();
        assert!(q.set_aside(&path, 1001, "test").is_err() && path.exists());
        std::fs::write(&path, [1; 1000]).unwrap();
        q.set_aside(&path, 1000, "test").unwrap();
        assert_eq!((q.bytes(), path.exists()), (1000, false));
    }

    #[test]
    fn a_container_is_moved_whole() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("gen")).unwrap();
        std::fs::write(dir.path().join("gen/f"), [1; 10]).unwrap();
        let q = open(dir.path(), 1000);
        q.container(&dir.path().join("gen"), "header unreadable").unwrap();
        assert_eq!(q.bytes(), 10);
        assert!(!dir.path().join("gen").exists());
    }

    /// Stops the disk before each of its changes while a container is moved here, records are copied, and the oldest goes.
    #[test]
    fn a_crash_at_any_change_leaves_a_container_here_or_there_and_all_bytes_counted() {
        let dir = Path::new("/d");
        let (from, names) = (Path::new("/d/things/seg"), ["/d/things/seg", "/d/quarantine/0000000001-seg"]);
        let open = |fs: &SimFs, cap| {
            let clock = Arc::new(ManualClock::new(1_709_251_199_999));
            Quarantine::open(Arc::new(fs.clone()), clock, dir, cap).unwrap()
        };
        let mut orphans = 0;
        for seed in 0..20 {
            let fs = SimFs::new(seed).with_dir(Path::new("/d/things"));
            let file = fs.open(from, OpenMode::CreateNew).unwrap();
            file.write_all_at(&[5; 100], 0).unwrap();
            file.sync().unwrap();
            fs.sync_dir(Path::new("/d/things")).unwrap();
            let first = fs.changes();
            (first + 1..first + 200).for_each(|change| fs.crash_at(change, seed));
            let q = open(&fs, 250);
            q.record(Path::new("seg"), 64, &[7; 100], "checksum", Some(b"key")).unwrap();
            q.container(from, "nothing says what it is").unwrap();
            let (after, moved) = (fs.crash_losing_all(), fs.changes());
            assert_eq!(names.map(|name| after.files().contains(&name.into())), [false, true], "it was moved");
            (0..4).for_each(|_| q.record(Path::new("seg"), 64, &[8; 100], "checksum", None).unwrap());
            for (at, disk) in fs.taken() {
                let files = disk.files();
                let held = |file: &&PathBuf| {
                    file.starts_with("/d/quarantine") && file.extension().is_none_or(|e| e != "txt")
                };
                let bytes: u64 = files.iter().filter(held).map(|f| disk.read(f).len() as u64).sum();
                let there = names.map(|name| files.contains(&name.into()));
                assert!(there != [true, true], "seed {seed}, change {at}: it is in both places");
                let q = open(&disk, 250);
                // Later it may have gone in its turn; on the way it is not lost.
                assert!(there != [false, false] || at > moved, "seed {seed}, change {at}: it is gone");
                let reports = files.iter().filter(|f| f.extension().is_some_and(|e| e == "txt"));
                let alone = |f: &&PathBuf| !files.contains(&f.with_extension(""));
                orphans += reports.filter(alone).count();
                assert!(q.bytes() >= bytes, "seed {seed}, change {at}: {bytes} bytes, {} counted", q.bytes());
                // What is left of anything goes in the end, the reports too.
                (0..6).for_each(|_| q.record(Path::new("seg"), 64, &[9; 120], "checksum", None).unwrap());
                let left = disk.files().iter().filter(|f| f.starts_with("/d/quarantine")).count();
                assert_eq!((q.bytes(), left), (240, 4), "seed {seed}, change {at}");
            }
        }
        assert!(orphans > 0, "no report was left without its bytes: does the test reach that?");
    }

    #[test]
    fn a_report_says_what_a_person_needs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("index-0000")).unwrap();
        let q = open(dir.path(), 1000);
        q.record(
            Path::new("/s/seg"),
            64,
            &[7; 100],
            "/s/seg: the payload's checksum does not match",
            Some(b"k\xff"),
        )
        .unwrap();
        q.record(Path::new("/s/seg"), 64, &[7; 100], "cut short", None).unwrap();
        q.index(&dir.path().join("index-0000"), "sled failed in it").unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join("quarantine").join(name)).unwrap();
        let expected = "Bytes that could not be trusted, kept for you to look at. They are never served.\n\n\
            what   the record of one item, 100 bytes, copied as they stand\n\
            when   2024-02-29 23:59:59 UTC\n\
            from   /s/seg at byte 64\n\
            key    k\\xff\n\
            why    the payload's checksum does not match\n\
            means  the item is absent; put it again. Nothing else is lost with it\n\
            look   at 0000000000-record, beside this report\n\
            delete both whenever you like, with the store closed; the oldest go by themselves\n";
        assert_eq!(read("0000000000-record.txt"), expected);
        assert!(read("0000000001-record.txt").contains("key    not known"));
        assert!(read("0000000002-index-0000.txt").contains("nothing is lost"));
    }

    #[test]
    fn the_calendar() {
        let known: [(u64, &str); 6] = [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_799, "2000-02-29 23:59:59"),
            (951_868_800, "2000-03-01 00:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (1_798_761_599, "2026-12-31 23:59:59"),
        ];
        for (seconds, date) in known {
            assert_eq!(utc(seconds * 1000 + 999), format!("{date} UTC"));
        }
        assert!(utc(u64::MAX).ends_with("UTC"));
    }
}
