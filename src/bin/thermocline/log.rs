//! The command's log: what the engine says, in a file that does not grow without end.
//!
//! | part | job |
//! |---|---|
//! | `rolling` | the file, and those that were set aside |
//! | `descriptor` | what is open already: `/dev/stderr` |
//! | here | lines wait for a thread that writes them |
//!
//! A thread writes, so that a slow disk under the log keeps nobody waiting; where it cannot keep up, lines are left out, and
//! a line says how many.
//!
//! Invariants: who says something waits for no file; of lines that wait there are [`MOST`] bytes at most; where the file cannot
//! be written any more, the command goes on; the end of the command waits [`LEAVE`] at most for what was said. A crash loses
//! the lines that were not written yet.

mod descriptor;
mod rolling;

use crate::failure::Failure;
use parking_lot::{Condvar, Mutex};
use rolling::Rolling;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thermocline::config::{LogConfig, LogLevel};
use tracing::level_filters::LevelFilter;

/// Bytes of lines that wait to be written.
const MOST: usize = 4 << 20;
/// How long the end waits for lines that were said before it.
const LEAVE: Duration = Duration::from_secs(2);

/// A log that is written to. Dropped last: what was said until then is in the file, unless its disk does not take it.
#[must_use]
pub struct Log {
    lines: Option<Arc<Lines>>,
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(lines) = &self.lines {
            lines.end(LEAVE);
        }
    }
}

/// Starts the log that is configured; none if there is none.
pub fn start(config: &LogConfig) -> Result<Log, Failure> {
    let Some(path) = &config.file else { return Ok(Log { lines: None }) };
    let rolling = Rolling::open(path, config).map_err(|e| match e.raw_os_error() {
        Some(code) if code == rustix::io::Errno::NXIO.raw_os_error() => {
            let what = match std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
                true => "it is a socket, which is not opened as a file is: name a file",
                false => "it is a pipe that nobody reads: start its reader first, or name a file",
            };
            Failure::usage(format!("{}: {what}", path.display()))
        }
        _ => Failure::given("write the log to", path, &e),
    })?;
    let lines = Arc::<Lines>::default();
    let level = match config.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
        _ => LevelFilter::INFO,
    };
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || Writer(writer.clone()))
        .with_max_level(level)
        .with_ansi(false)
        .finish();
    let failed = |e: &dyn std::fmt::Display| Failure::failed(format!("start the log: {e}"));
    let writing = lines.clone();
    let spawned = std::thread::Builder::new().name("log".to_owned()).spawn(move || writing.write(rolling));
    spawned.map_err(|e| failed(&e))?;
    tracing::subscriber::set_global_default(subscriber).map_err(|e| failed(&e))?;
    Ok(Log { lines: Some(lines) })
}

/// Lines on their way to the file.
#[derive(Default)]
struct Lines {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines for which there was no room.
    left_out: u64,
    /// Nothing more is coming that has to be waited for.
    ending: bool,
    /// All is written that was to be waited for.
    ended: bool,
}

impl Lines {
    fn add(&self, line: &[u8]) {
        let mut waiting = self.waiting.lock();
        if waiting.bytes + line.len() > MOST {
            waiting.left_out += 1;
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line.to_vec());
        self.changed.notify_all();
    }

    /// What the thread does: one line after the other, until the end.
    fn write(&self, mut file: impl Write) {
        loop {
            let mut waiting = self.waiting.lock();
            while waiting.lines.is_empty() && !waiting.ending {
                self.changed.wait(&mut waiting);
            }
            let Some(line) = waiting.lines.pop_front() else {
                waiting.ended = true;
                self.changed.notify_all();
                return;
            };
            waiting.bytes -= line.len();
            // Told once it has caught up: a line about each would be more of what is too much.
            let has_caught_up = waiting.lines.is_empty();
            let left_out = if has_caught_up { std::mem::take(&mut waiting.left_out) } else { 0 };
            drop(waiting);
            // A log that cannot be written ends nothing.
            let _ = file.write_all(&line);
            if left_out > 0 {
                tracing::warn!(target: crate::LOG, left_out, "the log's disk is too slow: lines were left out");
            }
        }
    }

    /// Waits until all is written, but no longer than this.
    fn end(&self, most: Duration) {
        let until = Instant::now() + most;
        let mut waiting = self.waiting.lock();
        waiting.ending = true;
        self.changed.notify_all();
        while !waiting.ended && !self.changed.wait_until(&mut waiting, until).timed_out() {}
    }
}

/// What the subscriber gives a line, whole, at a time.
struct Writer(Arc<Lines>);

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.add(&one_line(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line whose values may have ends of lines in them, as a path may: those are shown as `\n`, or whoever names a file could
/// make a line of the log.
fn one_line(line: &[u8]) -> Cow<'_, [u8]> {
    let (text, end) = match line {
        [text @ .., b'\n'] => (text, b"\n".as_slice()),
        text => (text, b"".as_slice()),
    };
    if !text.iter().any(|b| matches!(b, b'\n' | b'\r')) {
        return Cow::Borrowed(line);
    }
    let mut one = Vec::with_capacity(line.len() + 8);
    for byte in text {
        match byte {
            b'\n' => one.extend(b"\\n"),
            b'\r' => one.extend(b"\\r"),
            byte => one.push(*byte),
        }
    }
    one.extend(end);
    Cow::Owned(one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A file that takes a line when it is told to.
    struct Slow {
        go: Receiver<()>,
        took: Sender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.go.recv().map_err(io::Error::other)?;
            self.took.send(line.to_vec()).map_err(io::Error::other)?;
            Ok(line.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_disk_keeps_nobody_waiting_and_what_it_does_not_take_is_left_out() {
        let ((go, going), (taking, took)) = (channel(), channel());
        let lines = Arc::<Lines>::default();
        let (writing, file) = (lines.clone(), Slow { go: going, took: taking });
        let thread = std::thread::spawn(move || writing.write(file));
        let begin = Instant::now();
        for n in 0..100_000 {
            Writer(lines.clone()).write_all(format!("line {n:06} {}\n", "x".repeat(100)).as_bytes()).unwrap();
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        let (bytes, left_out) = {
            let waiting = lines.waiting.lock();
            (waiting.lines.iter().map(Vec::len).sum::<usize>(), waiting.left_out)
        };
        assert!(bytes <= MOST && bytes > MOST / 2 && left_out > 50_000, "{bytes} {left_out}");
        // Who ends waits for it, but not for ever.
        let begin = Instant::now();
        lines.end(Duration::from_millis(200));
        let waited = begin.elapsed();
        assert!(waited >= Duration::from_millis(200) && waited < Duration::from_secs(2), "{waited:?}");
        // What waited is written all the same, in order.
        let _ = (0..100_000).try_for_each(|_| go.send(()));
        thread.join().unwrap();
        assert_eq!(lines.waiting.lock().left_out, 0, "it was not told");
        let written: Vec<Vec<u8>> = took.try_iter().collect();
        assert_eq!(written.len() as u64, 100_000 - left_out);
        // All but the one that made room when it was taken come from before the queue was full.
        assert!(written.is_sorted_by(|a, b| a < b) && written[100].starts_with(b"line 000100 "));
        let begin = Instant::now();
        lines.end(Duration::from_secs(60));
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_value_cannot_make_a_line() {
        let lines = Arc::<Lines>::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_writer(move || Writer(writer.clone())).with_ansi(false);
        tracing::subscriber::with_default(subscriber.finish(), || {
            tracing::warn!(path = %"/a\n2026-11-22T00:00:00Z  INFO forged\r", "a word\nof two lines");
        });
        let waiting = lines.waiting.lock();
        let text = String::from_utf8(waiting.lines.iter().flatten().copied().collect()).unwrap();
        assert_eq!(text.find('\n'), Some(text.len() - 1), "{text}");
        assert!(!text.contains('\r') && text.contains("/a\\n2026-11-22T00:00:00Z  INFO forged\\r"), "{text}");
        assert_eq!(&*one_line(b"whole\n"), b"whole\n");
    }
}
