//! The command's log: what the engine says, in a file that does not grow without end.
//!
//! FILE is the newest; FILE.1 is the one before it, FILE.2 the one before that, as far as they are kept. A thread writes,
//! so that a slow disk under the log keeps nobody waiting; where it cannot keep up, lines are left out.
//!
//! Invariants: no file is touched but FILE and those numbers of it; where FILE cannot be written any more, the command goes
//! on. A crash loses the lines that were not written yet; one in the middle of renaming leaves a number out, which the next
//! renaming closes.

use crate::failure::Failure;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use thermocline::config::{LogConfig, LogLevel, LogRotation};
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::WorkerGuard;

/// Seconds of a day of UTC.
const DAY: u64 = 86_400;

/// A log that is written to. Dropped last: what was said until then is in the file.
#[must_use]
pub struct Log {
    _worker: Option<WorkerGuard>,
}

/// Starts the log that is configured; none if there is none.
pub fn start(config: &LogConfig) -> Result<Log, Failure> {
    let Some(path) = &config.file else { return Ok(Log { _worker: None }) };
    let rolling = Rolling::open(path, config).map_err(|e| Failure::given("write the log", path, &e))?;
    let (writer, worker) = tracing_appender::non_blocking(rolling);
    let level = match config.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
        _ => LevelFilter::INFO,
    };
    let subscriber =
        tracing_subscriber::fmt().with_writer(writer).with_max_level(level).with_ansi(false).finish();
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|e| Failure::failed(format!("start the log: {e}")))?;
    Ok(Log { _worker: Some(worker) })
}

/// A file that is set aside for a new one now and then.
struct Rolling {
    path: PathBuf,
    rotation: LogRotation,
    max_size: u64,
    keep: u64,
    file: File,
    /// Bytes in it.
    len: u64,
    /// The day of its newest line, counted from 1970.
    day: u64,
}

impl Rolling {
    fn open(path: &Path, config: &LogConfig) -> io::Result<Rolling> {
        let (file, len, day) = newest(path)?;
        let (path, rotation) = (path.to_path_buf(), config.rotation);
        Ok(Rolling { path, rotation, max_size: config.max_size, keep: config.keep, file, len, day })
    }

    fn is_due(&self, more: u64, today: u64) -> bool {
        let full = self.len + more > self.max_size;
        match self.rotation {
            LogRotation::Daily => self.len > 0 && (full || today > self.day),
            LogRotation::Size => self.len > 0 && full,
            _ => false,
        }
    }

    /// Sets the file aside, unless another process has done so.
    fn roll(&mut self) -> io::Result<()> {
        let ours = self.file.metadata()?;
        let same = |now: std::fs::Metadata| (now.dev(), now.ino()) == (ours.dev(), ours.ino());
        if std::fs::metadata(&self.path).is_ok_and(same) {
            let number = |n: u64| -> PathBuf {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{n}"));
                name.into()
            };
            // From the oldest on; one that is kept no longer is replaced.
            for n in (1..self.keep.saturating_sub(1)).rev() {
                gone_is_fine(std::fs::rename(number(n), number(n + 1)))?;
            }
            match self.keep {
                0 | 1 => gone_is_fine(std::fs::remove_file(&self.path))?,
                _ => gone_is_fine(std::fs::rename(&self.path, number(1)))?,
            }
        }
        (self.file, self.len, self.day) = newest(&self.path)?;
        Ok(())
    }
}

impl Write for Rolling {
    /// A line, which is what comes at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let today = day(SystemTime::now());
        if self.is_due(line.len() as u64, today) && self.roll().is_err() {
            // Where it cannot be set aside it grows: a log that is too long is better than none. Tried again after as much.
            self.len = 0;
        }
        self.day = today;
        self.file.write_all(line)?;
        self.len += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The file that is written to, its length, and the day of its newest line.
fn newest(path: &Path) -> io::Result<(File, u64, u64)> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let meta = file.metadata()?;
    let day = day(meta.modified().unwrap_or_else(|_| SystemTime::now()));
    Ok((file, meta.len(), day))
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
    use std::time::Duration;

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
        one.write_all(b"12345678").unwrap();
        two.write_all(b"abcdefgh").unwrap();
        // Each takes its own lines for all there are; the second finds that it was done.
        one.write_all(b"9ABCD").unwrap();
        two.write_all(b"ijklm").unwrap();
        let text: String = files(dir.path()).into_iter().map(|(_, text)| text).collect();
        assert_eq!(text.len(), 26, "{text}");
        assert_eq!(files(dir.path()).len(), 2);
    }
}
