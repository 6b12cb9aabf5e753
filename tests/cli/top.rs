//! `top`, with a terminal and without.

use super::*;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};

/// What a terminal gets when the screen that was there before is shown again, and the cursor.
const BACK: [&str; 2] = ["\x1b[?1049l", "\x1b[?25h"];

/// The command in a terminal of 80 columns and 24 rows.
struct InTerminal {
    child: Child,
    keys: File,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl InTerminal {
    fn start(args: &[&str]) -> InTerminal {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let name = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
        let side = File::from(rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap());
        let size = rustix::termios::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&side, size).unwrap();
        let stdio = || Stdio::from(side.try_clone().unwrap());
        let child = command(args).stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let keys = File::from(terminal);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, to) = (keys.try_clone().unwrap(), seen.clone());
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut some) {
                to.lock().unwrap().extend_from_slice(&some[..n]);
            }
        });
        InTerminal { child, keys, seen }
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
    top.keys.write_all(b"p").unwrap();
    top.wait_for("paused");
    top.keys.write_all(b"q").unwrap();
    assert_eq!(top.end(), Some(0));
    // A key that is a signal elsewhere, and a signal.
    let mut top = InTerminal::start(&["top", place.root()]);
    top.wait_for("501 items");
    top.keys.write_all(b"\x03").unwrap();
    assert_eq!(top.end(), Some(130));
    let mut top = InTerminal::start(&["top", place.root()]);
    top.wait_for("memory");
    let pid = rustix::process::Pid::from_raw(top.child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
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
    top.keys.write_all(b"q").unwrap();
    assert_eq!(top.end(), Some(0));
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
    let seen = bench.seen();
    let (_, result) = seen.rsplit_once(BACK[0]).unwrap();
    assert!(result.contains("ssd") && result.contains("p50"), "{result}");
    assert!(left_in(dir.path()).is_empty());
}
