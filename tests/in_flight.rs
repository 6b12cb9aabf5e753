//! A large value that its caller is writing, and what it replaces.

#![cfg(test)]

mod common;

use common::{parse, value};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use thermocline::testing::SystemClock;
use thermocline::{Builder, Cache, Persistence};
use thermocline_storage::testing::{FaultFs, Op};
use thermocline_testing::watched;

const MIB: u64 = 1 << 20;
/// Longest that anything here may take: a machine under load is slow, a fault hangs for ever.
const LONG: Duration = Duration::from_secs(60);

fn builder(dir: &Path, fs: &FaultFs, persistence: Persistence) -> Builder {
    let mut b = Cache::builder().memory(4 * MIB).ssd(dir.join("s"), 16 * MIB).persistence(persistence);
    b.config_mut().resources.io.write_buffer_size = MIB;
    b.world(Arc::new(fs.clone()), Arc::new(SystemClock), true)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Holds up the first large write until it is told to go on; says when it is held.
fn hold_the_large_write(fs: &FaultFs) -> (mpsc::Receiver<()>, Arc<AtomicBool>) {
    let (held, is_held) = mpsc::channel();
    let go_on = Arc::new(AtomicBool::new(false));
    let (may, once) = (go_on.clone(), AtomicBool::new(false));
    fs.watch(move |call| {
        let large = call.op == Op::Write && call.range.end - call.range.start > 200_000;
        if large && !once.swap(true, Ordering::SeqCst) {
            held.send(()).unwrap();
            while !may.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    (is_held, go_on)
}

/// A value is acknowledged; a large one of the same key, which is to replace it, is on its way to the disk while a
/// flush begins. When the flush returns, the key is not lost, whatever becomes of the large value: a kill just then
/// leaves the one or the other.
#[test]
fn a_flush_does_not_pass_by_what_a_large_value_replaces() {
    for persistence in [Persistence::EverySecond, Persistence::OnEviction] {
        let dir = tempfile::tempdir().unwrap();
        let fs = FaultFs::default();
        let cache = builder(dir.path(), &fs, persistence).open().unwrap();
        cache.put("other", value(1, 1, 100)).unwrap();
        cache.flush().unwrap();

        let (is_held, go_on) = hold_the_large_write(&fs);
        cache.put("k", value(7, 1, 100)).unwrap();
        let large = {
            let cache = cache.clone();
            std::thread::spawn(move || cache.put("k", value(7, 2, 300_000)))
        };
        is_held.recv_timeout(LONG).unwrap();
        let (flushed, is_flushed) = mpsc::channel();
        let flush = {
            let (cache, from, to) = (cache.clone(), dir.path().join("s"), dir.path().join("killed"));
            std::thread::spawn(move || {
                cache.flush().unwrap();
                copy(&from, &to);
                let _ = flushed.send(());
            })
        };
        // A flush that does not wait would be through by then.
        let early = is_flushed.recv_timeout(Duration::from_millis(500)).is_ok();
        go_on.store(true, Ordering::SeqCst);
        watched("the large put", LONG, || large.join().unwrap().unwrap());
        watched("the flush", LONG, || flush.join().unwrap());
        cache.close().unwrap();

        std::fs::rename(dir.path().join("s"), dir.path().join("gone on")).unwrap();
        std::fs::rename(dir.path().join("killed"), dir.path().join("s")).unwrap();
        let cache = builder(dir.path(), &FaultFs::default(), persistence).open().unwrap();
        let found = cache.get("k").unwrap().and_then(|v| parse(&v));
        assert!(matches!(found, Some((7, 1 | 2))), "{persistence:?}, early: {early}: {found:?}");
    }
}

/// A value is acknowledged, and seconds later a large one of the same key is still on its way to the disk, which may
/// wait for room. A kill then loses neither: what is older than two seconds is written, whatever is to replace it.
#[test]
fn what_a_large_value_replaces_is_written_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let fs = FaultFs::default();
    let cache = builder(dir.path(), &fs, Persistence::EverySecond).open().unwrap();
    cache.put("other", value(1, 1, 100)).unwrap();
    cache.flush().unwrap();
    let (is_held, go_on) = hold_the_large_write(&fs);
    cache.put("k", value(7, 1, 100)).unwrap();
    let large = {
        let cache = cache.clone();
        std::thread::spawn(move || cache.put("k", value(7, 2, 300_000)))
    };
    is_held.recv_timeout(LONG).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    copy(&dir.path().join("s"), &dir.path().join("killed"));
    go_on.store(true, Ordering::SeqCst);
    large.join().unwrap().unwrap();
    cache.close().unwrap();

    std::fs::rename(dir.path().join("s"), dir.path().join("gone on")).unwrap();
    std::fs::rename(dir.path().join("killed"), dir.path().join("s")).unwrap();
    let cache = builder(dir.path(), &FaultFs::default(), Persistence::EverySecond).open().unwrap();
    let found = cache.get("k").unwrap().and_then(|v| parse(&v));
    assert!(matches!(found, Some((7, 1))), "{found:?}");
}
