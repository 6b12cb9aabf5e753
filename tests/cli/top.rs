//! `top`, with a terminal and without.

use super::*;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What a terminal gets when the screen that was there before is shown again, and the cursor.
const BACK: [&str; 2] = ["\x1b[?1049l", "\x1b[?25h"];

/// The command in a terminal of 80 columns and 24 rows.
struct InTerminal {
    child: Child,
    keys: Option<File>,
    /// The other side, as the command has it.
    side: Option<File>,
    before: rustix::termios::Termios,
    seen: Arc<Mutex<Vec<u8>>>,
    closed: Arc<AtomicBool>,
}

impl InTerminal {
    fn start(args: &[&str]) -> InTerminal {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let name = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
        let side = File::from(
            rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap(),
        );
        let size = rustix::termios::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&side, size).unwrap();
        let stdio = || Stdio::from(side.try_clone().unwrap());
        let child = command(args).stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let keys = File::from(terminal);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, to) = (keys.try_clone().unwrap(), seen.clone());
        let closed = Arc::new(AtomicBool::new(false));
        let is_closed = closed.clone();
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            let tenth = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            while !is_closed.load(Ordering::SeqCst) {
                let mut of = [rustix::event::PollFd::new(&screen, rustix::event::PollFlags::IN)];
                if !matches!(rustix::event::poll(&mut of, Some(&tenth)), Ok(1..)) {
                    continue;
                }
                let Ok(n @ 1..) = screen.read(&mut some) else { return };
                to.lock().unwrap().extend_from_slice(&some[..n]);
            }
        });
        let before = rustix::termios::tcgetattr(&side).unwrap();
        InTerminal { child, keys: Some(keys), side: Some(side), before, seen, closed }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keys.as_mut().unwrap().write_all(keys).unwrap();
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// The terminal goes, as when its window is closed.
    fn close(&mut self) {
        (self.keys, self.side) = (None, None);
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Whether the terminal takes lines and signals, as it did before.
    fn is_as_before(&self) -> bool {
        let now = rustix::termios::tcgetattr(self.side.as_ref().unwrap()).unwrap();
        (now.local_modes, now.input_modes, now.output_modes)
            == (self.before.local_modes, self.before.input_modes, self.before.output_modes)
    }

    /// All that was sent.
    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// What stands on the screen: moves of the cursor are followed, colours are not.
    fn screen(&self) -> String {
        let mut cells = vec![vec![' '; 80]; 24];
        let (mut row, mut column) = (0, 0);
        let seen = self.seen();
        let mut chars = seen.chars();
        while let Some(c) = chars.next() {
            if c != '\x1b' {
                if let Some(cell) = cells.get_mut(row).and_then(|r: &mut Vec<char>| r.get_mut(column)) {
                    *cell = c;
                }
                column += 1;
                continue;
            }
            // `[`, parameters, and the letter that says what it is.
            let mut sequence = String::new();
            for c in chars.by_ref() {
                if c != '[' {
                    sequence.push(c);
                }
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
            if let Some((r, c)) = sequence.strip_suffix('H').and_then(|at| at.split_once(';')) {
                (row, column) = (r.parse::<usize>().unwrap() - 1, c.parse::<usize>().unwrap() - 1);
            }
        }
        cells.into_iter().map(|row| row.into_iter().collect::<String>() + "\n").collect()
    }

    /// Waits until what was sent is as it is to be: another thread takes it from the terminal.
    fn wait_until(&self, so: impl Fn(&str) -> bool) {
        let start = Instant::now();
        while !so(&self.seen()) {
            assert!(start.elapsed() < Duration::from_secs(30), "{:?}", self.seen());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until something stands on the screen.
    fn wait_for(&self, what: &str) {
        let start = Instant::now();
        while !self.screen().contains(what) {
            assert!(start.elapsed() < Duration::from_secs(30), "no {what:?} on\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn end(&mut self) -> Option<i32> {
        let code = wait(&mut self.child, Duration::from_secs(60));
        let start = Instant::now();
        while !BACK.iter().all(|back| self.seen().contains(back)) {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", self.seen());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(self.is_as_before(), "the modes of the terminal are others than before");
        code
    }
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A store that this process has open.
fn open(place: &Place) -> Cache {
    let cache = Cache::builder().root(&place.root).open().unwrap();
    for no in 0..500 {
        cache.put(format!("k{no}"), format!("text {no} ").repeat(200)).unwrap();
    }
    cache.flush().unwrap();
    cache
}

#[test]
fn it_is_live_in_a_terminal_and_puts_that_back() {
    let place = Place::new();
    let cache = open(&place);
    let mut top = InTerminal::start(&["top", "--root", place.root()]);
    top.wait_for("memory");
    top.wait_for("500 items");
    assert!(!top.seen().contains(BACK[0]));
    // It goes on looking.
    cache.put("one more", "v").unwrap();
    top.wait_for("501 items");
    top.press(b"p");
    top.wait_for("paused");
    top.press(b"q");
    assert_eq!(top.end(), Some(0));
    // A key that is a signal elsewhere, and a signal.
    let mut top = InTerminal::start(&["top", place.root()]);
    top.wait_for("501 items");
    top.press(b"\x03");
    assert_eq!(top.end(), Some(130));
    let mut top = InTerminal::start(&["top", place.root()]);
    top.wait_for("memory");
    assert!(!top.is_as_before());
    top.signal(rustix::process::Signal::TERM);
    assert_eq!(top.end(), Some(130));
    // The store is closed, and opened again, while it looks on.
    let mut top = InTerminal::start(&["top", place.root()]);
    top.wait_for("memory");
    cache.close().unwrap();
    top.wait_for("no answer: ");
    let again = open(&place);
    again.put("two more", "v").unwrap();
    top.wait_for("502 items");
    assert!(!top.screen().contains("no answer: "), "{}", top.screen());
    top.press(b"q");
    assert_eq!(top.end(), Some(0));
}

#[test]
fn it_stops_with_the_terminal_as_it_was_and_goes_on() {
    let place = Place::new();
    let _cache = open(&place);
    for by_key in [false, true] {
        let mut top = InTerminal::start(&["top", place.root()]);
        top.wait_for("500 items");
        if by_key {
            top.press(b"\x1a")
        } else {
            top.signal(rustix::process::Signal::TSTP)
        }
        let start = Instant::now();
        while state(&top.child) != "T" {
            assert!(start.elapsed() < Duration::from_secs(20), "{}", state(&top.child));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(top.is_as_before());
        top.wait_until(|seen| seen.contains(BACK[0]));
        let seen = top.seen().len();
        top.signal(rustix::process::Signal::CONT);
        while !top.seen().get(seen..).is_some_and(|since| since.contains("memory")) {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", top.seen());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!top.is_as_before());
        top.press(b"q");
        assert_eq!(top.end(), Some(0));
    }
    // And one that would end it on the spot.
    let mut top = InTerminal::start(&["top", place.root()]);
    top.wait_for("500 items");
    top.signal(rustix::process::Signal::QUIT);
    assert_eq!(top.end(), Some(130));
}

#[test]
fn it_ends_when_its_terminal_is_gone() {
    let place = Place::new();
    let _cache = open(&place);
    let mut top = InTerminal::start(&["top", place.root()]);
    top.wait_for("500 items");
    top.close();
    assert_eq!(wait(&mut top.child, Duration::from_secs(10)), Some(130));
}

/// What listens takes the question and does not answer, which is waited for half a minute.
#[test]
fn it_can_be_left_before_there_is_anything_to_see() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut top = InTerminal::start(&["top", dir.path().to_str().unwrap()]);
    // First it looks who is there; when it asks, signals are watched.
    let mut asking = Vec::new();
    until("it asks", || {
        for (stream, _) in std::iter::from_fn(|| listener.accept().ok()) {
            stream.set_nonblocking(true).unwrap();
            asking.push(stream);
        }
        asking.iter().any(|mut stream| stream.read(&mut [0]).is_ok_and(|n| n > 0))
    });
    top.signal(rustix::process::Signal::INT);
    assert_eq!(wait(&mut top.child, Duration::from_secs(10)), Some(130));
    assert!(top.is_as_before());
}

#[test]
fn without_a_terminal_there_is_one_picture_or_none() {
    let place = Place::new();
    let nobody = place.run(&["top", "--once"]).with(3);
    assert!(nobody.err.contains("nobody to ask"), "{}", nobody.err);
    let cache = open(&place);
    let refused = place.run(&["top"]).with(2);
    assert!(refused.err.contains("no terminal") && refused.err.contains("stat --json"), "{}", refused.err);
    let refused = run(&["bench", "--top"]).with(2);
    assert!(refused.err.contains("no terminal"), "{}", refused.err);
    let refused = run(&["top", "--once"]).with(2);
    assert!(refused.err.contains("no store is named"), "{}", refused.err);
    let once = std::thread::scope(|s| {
        let once = s.spawn(|| place.run(&["top", "--once"]).with(0).text());
        while !once.is_finished() {
            cache.get("k1").unwrap();
        }
        once.join().unwrap()
    });
    for part in ["500 items", "hits 100.00 %", "\nssd ", "text "] {
        assert!(once.contains(part), "{part}\n{once}");
    }
    assert!(once.lines().all(|l| l.chars().count() <= 110) && !once.contains('\x1b'), "{once}");
    // The sample in the documentation has the same tables.
    let sample = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/command.md")).unwrap();
    let heads = ["tier ", "flow ", "latency ", "type "];
    let heads: Vec<&str> = once.lines().filter(|l| heads.iter().any(|head| l.starts_with(head))).collect();
    assert_eq!(heads.len(), 4, "{once}");
    assert!(heads.iter().all(|head| sample.lines().any(|l| l == *head)), "{heads:#?}");
    let json = place.run(&["top", "--json"]).with(0).json();
    assert_eq!((&json["figures"]["items"], &json["history"]), (&500.into(), &Value::Array(vec![])));
    // It is not opened by that, nor changed.
    assert_eq!(cache.stats().items, 500);
}

#[test]
fn a_benchmark_can_be_watched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let args = ["bench", "--top", "--data", "4MiB", "--seconds", "3", "--allow-ram-disk", "--dir", path];
    let mut bench = InTerminal::start(&args);
    bench.wait_for("q quit");
    bench.wait_for("memory");
    assert_eq!(bench.end(), Some(0), "{}", bench.screen());
    // The result comes after it, on the screen that was there before.
    let result =
        |seen: &str| seen.rsplit_once(BACK[0]).is_some_and(|(_, r)| r.contains("ssd") && r.contains("p50"));
    bench.wait_until(result);
    assert!(left_in(dir.path()).is_empty());
}

/// That it stops is said where it is seen: on the screen that was there before. A key does what a signal does.
#[test]
fn a_benchmark_that_is_watched_can_be_interrupted() {
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), "[storage]\nsocket = false\n").unwrap();
    for by_key in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let mut args =
            vec!["bench", "--top", "--data", "4MiB", "--seconds", "60", "--allow-ram-disk", "--dir", path];
        // It is watched whatever the file says of the socket.
        args.extend(["--config", config.path().to_str().unwrap()]);
        let mut bench = InTerminal::start(&args);
        bench.wait_for("memory");
        if by_key {
            bench.press(b"\x03")
        } else {
            bench.signal(rustix::process::Signal::TERM)
        }
        assert_eq!(bench.end(), Some(130), "{}", bench.screen());
        let is_said = |after: &str| after.contains("stopping, which takes seconds");
        bench.wait_until(|seen| seen.split_once(BACK[0]).is_some_and(|(_, after)| is_said(after)));
        assert!(left_in(dir.path()).is_empty());
    }
}
