//! The file of the log, and those that were set aside.
//!
//! FILE is the newest; FILE.1 is the one before it, FILE.2 the one before that, as far as they are kept. Several processes
//! may write to one FILE: each looks now and then whether FILE is still the one it has open.
//!
//! Invariants: no file is touched but FILE and those numbers of it; nothing is renamed but regular files, and never through a
//! link: where FILE is one, what it leads to is set aside beside itself; of the processes that write, one at a time sets
//! aside, and only a file that still is FILE. A crash in the middle of renaming leaves a number out, which the next renaming
//! closes.

use super::descriptor::{duplicate, write_whole};
use rustix::fs::{FlockOperation, OFlags, flock};
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use thermocline::config::{LogConfig, LogRotation};

/// Seconds of a day of UTC.
const DAY: u64 = 86_400;
/// How often it is looked whether another process set FILE aside, and how soon what did not succeed is tried again.
const LOOK: Duration = Duration::from_secs(1);
/// Mode of a file that did not exist.
const MODE: u32 = 0o600;

/// A file that is set aside for a new one now and then.
pub(super) struct Rolling {
    path: PathBuf,
    rotation: LogRotation,
    max_size: u64,
    keep: u64,
    file: File,
    /// Whether it is a regular file: a device, a pipe, a terminal are written to and left alone.
    regular: bool,
    /// Bytes in it, as far as is known: others may write to it too.
    len: u64,
    /// The day of its newest line, counted from 1970.
    day: u64,
    look_at: Instant,
    /// Not set aside before then: it was tried, and failed.
    roll_at: Instant,
}

impl Rolling {
    pub(super) fn open(path: &Path, config: &LogConfig) -> io::Result<Rolling> {
        let (file, meta) = newest(path, MODE)?;
        let (path, is_own) = resolve(path);
        let regular =
            is_own && meta.is_file() && std::fs::metadata(&path).is_ok_and(|found| same(&found, &meta));
        let now = Instant::now();
        Ok(Rolling {
            path,
            rotation: if regular { config.rotation } else { LogRotation::Never },
            max_size: config.max_size,
            keep: config.keep,
            file,
            regular,
            len: meta.len(),
            day: day_of(&meta),
            look_at: now + LOOK,
            roll_at: now,
        })
    }

    fn is_due(&self, more: u64, today: u64) -> bool {
        let full = self.len + more > self.max_size;
        match self.rotation {
            LogRotation::Daily => self.len > 0 && (full || today > self.day),
            LogRotation::Size => self.len > 0 && full,
            _ => false,
        }
    }

    /// Looks whether FILE is still what is written to, and how long it has become; goes on in FILE if it is another.
    fn look(&mut self) -> io::Result<()> {
        match std::fs::metadata(&self.path) {
            Ok(found) if same(&found, &self.file.metadata()?) => self.len = found.len(),
            _ => self.go_on()?,
        }
        Ok(())
    }

    /// Goes on in FILE; if there is none, in one of the mode of the one before.
    fn go_on(&mut self) -> io::Result<()> {
        let mode = self.file.metadata()?.mode() & 0o777;
        let (file, meta) = newest(&self.path, mode)?;
        if meta.len() == 0 && meta.mode() & 0o777 != mode {
            // The mask of the process took something from it. Where it is another user's it stays so.
            let _ = file.set_permissions(Permissions::from_mode(mode));
        }
        (self.file, self.len, self.day) = (file, meta.len(), day_of(&meta));
        Ok(())
    }

    /// Sets the file aside, if it still is to be: another process may have done so, or be about to.
    fn roll(&mut self, more: u64, today: u64) -> io::Result<()> {
        // Who sets a file aside has it locked: of two that want to, the second finds it gone from its name.
        flock(&self.file, FlockOperation::NonBlockingLockExclusive)?;
        match std::fs::metadata(&self.path) {
            Ok(found) if same(&found, &self.file.metadata()?) => self.len = found.len(),
            // The lock goes with the file.
            _ => return self.go_on(),
        }
        let done =
            if self.is_due(more, today) { self.set_aside().and_then(|()| self.go_on()) } else { Ok(()) };
        let _ = flock(&self.file, FlockOperation::Unlock);
        done
    }

    fn set_aside(&self) -> io::Result<()> {
        let number = |n: u64| -> PathBuf {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            name.into()
        };
        let last = self.keep.saturating_sub(1);
        if last == 0 {
            return gone_is_fine(std::fs::remove_file(&self.path));
        }
        // From the oldest on, up to the first number that is free: so one that cannot be renamed, however often that is tried,
        // pushes none of the others out. One that is kept no longer is replaced.
        let free = (1..last).find(|n| std::fs::symlink_metadata(number(*n)).is_err()).unwrap_or(last);
        // Not even out of the way.
        for n in 1..=free {
            match std::fs::symlink_metadata(number(n)) {
                Ok(found) if !found.is_file() => return Err(ErrorKind::AlreadyExists.into()),
                Ok(_) => {}
                Err(e) => gone_is_fine(Err(e))?,
            }
        }
        for n in (1..free).rev() {
            gone_is_fine(std::fs::rename(number(n), number(n + 1)))?;
        }
        gone_is_fine(std::fs::rename(&self.path, number(1)))
    }
}

impl Write for Rolling {
    /// A line, which is what comes at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (now, today, more) = (Instant::now(), day(SystemTime::now()), line.len() as u64);
        if self.regular && now >= self.look_at {
            self.look_at = now + LOOK;
            // Where there is nothing to go on in, it goes on where it was.
            let _ = self.look();
        }
        if self.is_due(more, today) && now >= self.roll_at && self.roll(more, today).is_err() {
            // Where it cannot be set aside it grows: a log that is too long is better than none.
            self.roll_at = now + LOOK;
        }
        self.day = today;
        write_whole(&self.file, line)?;
        self.len += more;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The file that is written to.
fn newest(path: &Path, mode: u32) -> io::Result<(File, Metadata)> {
    if let Some(file) = duplicate(path) {
        let meta = file.metadata()?;
        return Ok((file, meta));
    }
    // A pipe that nobody reads is not waited for.
    let mut how = OpenOptions::new();
    how.append(true).create(true).mode(mode).custom_flags(OFlags::NONBLOCK.bits() as i32);
    let file = how.open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        // One that is read slowly is: a part of a line is no use.
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    }
    Ok((file, meta))
}

/// Where the file is, with links resolved, and whether it may be set aside. What is below `/dev` and `/proc` is another's,
/// though it may lead to a regular file, as `/dev/stdout` does.
fn resolve(path: &Path) -> (PathBuf, bool) {
    let mut at = path.to_path_buf();
    // As many as Linux follows.
    for _ in 0..40 {
        if at.starts_with("/dev") || at.starts_with("/proc") {
            return (path.to_path_buf(), false);
        }
        match std::fs::read_link(&at) {
            Ok(to) => at = at.parent().unwrap_or(Path::new("/")).join(to),
            Err(_) => break,
        }
    }
    std::fs::canonicalize(path).map_or_else(|_| (path.to_path_buf(), false), |found| (found, true))
}

fn same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn day_of(meta: &Metadata) -> u64 {
    day(meta.modified().unwrap_or_else(|_| SystemTime::now()))
}

fn day(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / DAY
}

fn gone_is_fine(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    fn config(rotation: LogRotation, max_size: u64, keep: u64) -> LogConfig {
        let mut config = LogConfig::default();
        (config.rotation, config.max_size, config.keep) = (rotation, max_size, keep);
        config
    }

    fn files(dir: &Path) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
        let read = |e: std::fs::DirEntry| {
            (e.file_name().into_string().unwrap(), std::fs::read_to_string(e.path()).unwrap())
        };
        let mut files: Vec<_> = entries.map(read).collect();
        files.sort();
        files
    }

    fn named<const N: usize>(files: [(&str, &str); N]) -> Vec<(String, String)> {
        files.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec()
    }

    #[test]
    fn by_size_so_many_are_kept_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        for other in ["l.3", "l.old", "logbook", "l.10"] {
            std::fs::write(dir.path().join(other), "mine").unwrap();
        }
        let mut log = Rolling::open(&path, &config(LogRotation::Size, 10, 3)).unwrap();
        for n in 0..7 {
            assert_eq!(log.write(format!("line{n}").as_bytes()).unwrap(), 5);
        }
        let others = [("l.10", "mine"), ("l.3", "mine"), ("l.old", "mine"), ("logbook", "mine")];
        let mut wanted = named([("l", "line6"), ("l.1", "line4line5"), ("l.2", "line2line3")]);
        wanted.extend(named(others));
        wanted.sort();
        assert_eq!(files(dir.path()), wanted);
        // It goes on where it was.
        let mut log = Rolling::open(&path, &config(LogRotation::Size, 10, 1)).unwrap();
        log.write_all(b"line7").unwrap();
        log.write_all(b"line8").unwrap();
        let found = files(dir.path());
        assert_eq!(found.iter().find(|(name, _)| name == "l").unwrap().1, "line8");
    }

    #[test]
    fn a_new_day_is_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        std::fs::write(&path, "old").unwrap();
        let yesterday = SystemTime::now() - Duration::from_secs(DAY);
        File::options().append(true).open(&path).unwrap().set_modified(yesterday).unwrap();
        let mut never = Rolling::open(&path, &config(LogRotation::Never, 1, 5)).unwrap();
        assert!(!never.is_due(100, never.day + 10));
        never.rotation = LogRotation::Daily;
        never.max_size = 1 << 20;
        never.write_all(b"new").unwrap();
        never.write_all(b"er").unwrap();
        assert_eq!(files(dir.path()), named([("l", "newer"), ("l.1", "old")]));
    }

    #[test]
    fn of_two_processes_one_sets_it_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let open = || Rolling::open(&path, &config(LogRotation::Size, 10, 5)).unwrap();
        let (mut one, mut two) = (open(), open());
        // However long this takes, none of them looks.
        let never = Instant::now() + Duration::from_secs(3600);
        (one.look_at, two.look_at) = (never, never);
        one.write_all(b"12345678").unwrap();
        two.write_all(b"abcdefgh").unwrap();
        // Each takes its own lines for all there are; the second finds that it was done.
        one.write_all(b"9ABCD").unwrap();
        two.write_all(b"ijklm").unwrap();
        let text: String = files(dir.path()).into_iter().map(|(_, text)| text).collect();
        assert_eq!(text.len(), 26, "{text}");
        assert_eq!(files(dir.path()).len(), 2);
    }

    fn pipe(at: &Path) {
        mknodat(CWD, at, FileType::Fifo, Mode::RWXU, 0).unwrap();
    }

    #[test]
    fn what_is_no_regular_file_is_never_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        pipe(&path);
        let config = config(LogRotation::Size, 10, 3);
        let begin = Instant::now();
        let refused = Rolling::open(&path, &config).map(drop).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::NXIO.raw_os_error()));
        assert!(begin.elapsed() < Duration::from_secs(5));
        let reader = File::options().read(true).write(true).open(&path).unwrap();
        let mut log = Rolling::open(&path, &config).unwrap();
        (0..5).for_each(|n| log.write_all(format!("line{n}\n").as_bytes()).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        // However much was written, and whenever.
        assert!(log.len > 0 && !log.is_due(1 << 20, log.day + 10));
        let mut text = [0; 30];
        io::Read::read_exact(&mut &reader, &mut text).unwrap();
        assert!(text.ends_with(b"line4\n"));
    }

    #[test]
    fn a_link_stays_and_what_it_leads_to_is_set_aside_beside_itself() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (path, real) = (dir.path().join("l"), other.path().join("real"));
        std::os::unix::fs::symlink(&real, &path).unwrap();
        let mut log = Rolling::open(&path, &config(LogRotation::Size, 10, 3)).unwrap();
        log.write_all(b"12345678").unwrap();
        log.write_all(b"abcdefgh").unwrap();
        assert_eq!(files(other.path()), named([("real", "abcdefgh"), ("real.1", "12345678")]));
        assert!(std::fs::symlink_metadata(&path).unwrap().is_symlink());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_descriptor_leads_to_is_anothers() {
        use std::os::fd::AsRawFd;
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("redirected")).unwrap();
        let link = dir.path().join("l");
        std::os::unix::fs::symlink(format!("/proc/self/fd/{}", file.as_raw_fd()), &link).unwrap();
        let mut log = Rolling::open(&link, &config(LogRotation::Size, 10, 3)).unwrap();
        (0..5).for_each(|_| log.write_all(b"12345678").unwrap());
        std::fs::remove_file(&link).unwrap();
        assert_eq!(files(dir.path()), named([("redirected", &"12345678".repeat(5))]));
    }

    #[test]
    fn who_has_written_for_long_goes_on_in_the_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let open = || Rolling::open(&path, &config(LogRotation::Size, 20, 2)).unwrap();
        let (mut one, mut two) = (open(), open());
        one.write_all(b"12345678").unwrap();
        two.write_all(b"abcdefgh").unwrap();
        // A second later one knows of the other's lines.
        one.look_at = Instant::now();
        one.write_all(b"9ABCDEF").unwrap();
        assert_eq!(files(dir.path()), named([("l", "9ABCDEF"), ("l.1", "12345678abcdefgh")]));
        two.look_at = Instant::now();
        two.write_all(b"ij").unwrap();
        assert_eq!(files(dir.path())[0].1, "9ABCDEFij");
        // And so it does where somebody else took the file away.
        std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        two.look_at = Instant::now();
        two.write_all(b"kl").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "kl");
    }

    #[test]
    fn two_that_find_it_full_set_it_aside_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let open = || Rolling::open(&path, &config(LogRotation::Size, 10, 5)).unwrap();
        let mut one = open();
        one.write_all(b"12345678").unwrap();
        let mut two = open();
        // Somebody is at it: it grows meanwhile.
        let held = open();
        flock(&held.file, FlockOperation::LockExclusive).unwrap();
        one.write_all(b"9ABCDEFG").unwrap();
        assert_eq!(files(dir.path()), named([("l", "123456789ABCDEFG")]));
        drop(held);
        one.roll_at = Instant::now();
        one.write_all(b"one").unwrap();
        two.write_all(b"two").unwrap();
        assert_eq!(files(dir.path()), named([("l", "onetwo"), ("l.1", "123456789ABCDEFG")]));
        // What is full by its own lines alone, and is so no more, is left.
        assert!(two.roll(1, two.day).is_ok());
        assert_eq!(files(dir.path()).len(), 2);
    }

    #[test]
    fn where_it_cannot_be_set_aside_it_grows_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let mut log = Rolling::open(&path, &config(LogRotation::Size, 10, 2)).unwrap();
        // A directory is not replaced by a file.
        std::fs::create_dir(dir.path().join("l.1")).unwrap();
        for _ in 0..5 {
            log.roll_at = Instant::now();
            log.write_all(b"12345678").unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 40);
        std::fs::remove_dir(dir.path().join("l.1")).unwrap();
        log.roll_at = Instant::now();
        log.write_all(b"new").unwrap();
        assert_eq!(files(dir.path())[0], ("l".to_owned(), "new".to_owned()));
        // A number that is free is filled, and those beyond it stay.
        std::fs::write(dir.path().join("l.2"), "two").unwrap();
        std::fs::remove_file(dir.path().join("l.1")).unwrap();
        (log.keep, log.len) = (4, 100);
        log.max_size = 1;
        log.write_all(b"newer").unwrap();
        assert_eq!(files(dir.path()), named([("l", "newer"), ("l.1", "new"), ("l.2", "two")]));
    }

    #[test]
    fn what_is_no_file_keeps_its_name_and_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let is_there = |name: &str| std::fs::symlink_metadata(dir.path().join(name)).is_ok();
        for keep in [3, 2] {
            let mut log = Rolling::open(&path, &config(LogRotation::Size, 10, keep)).unwrap();
            for make in [
                |at: &Path| std::fs::create_dir(at).unwrap(),
                |at: &Path| std::os::unix::fs::symlink("/nowhere", at).unwrap(),
            ] {
                make(&dir.path().join("l.1"));
                log.roll_at = Instant::now();
                log.write_all(b"12345678").unwrap();
                log.roll_at = Instant::now();
                log.write_all(b"12345678").unwrap();
                let kind = std::fs::symlink_metadata(dir.path().join("l.1")).unwrap().file_type();
                assert!(!kind.is_file() && is_there("l") && !is_there("l.2"), "{keep} {kind:?}");
                let away = if kind.is_dir() { std::fs::remove_dir } else { std::fs::remove_file };
                away(dir.path().join("l.1")).unwrap();
            }
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 64);
    }

    #[test]
    fn a_new_file_has_the_mode_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        let mut log = Rolling::open(&path, &config(LogRotation::Size, 10, 2)).unwrap();
        assert_eq!(mode(&path), 0o600);
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        log.write_all(b"12345678").unwrap();
        log.write_all(b"12345678").unwrap();
        assert_eq!((mode(&path), mode(&dir.path().join("l.1"))), (0o666, 0o666));
    }
}
