//! How long something took, on a machine that may stand still meanwhile.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long the thread that watches sleeps.
const BEAT: Duration = Duration::from_millis(5);
/// Later than this it does not wake where there is nothing to tell of.
const LATE: Duration = Duration::from_millis(5);

/// Runs something; says how long that took, without the time in which the machine ran nothing of this process. A bound on
/// what is left says of the code what a bound on the whole would say of the machine: code that waits is no machine that
/// stands still.
pub fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let before = stood_still();
    let begun = Instant::now();
    let done = run();
    let took = begun.elapsed();
    // What is over is counted when the watching thread has woken.
    sleep(4 * BEAT);
    (done, took.saturating_sub(stood_still().saturating_sub(before)))
}

/// Time for which a thread that only sleeps was not woken, since it was first asked for.
fn stood_still() -> Duration {
    static TOTAL: AtomicU64 = AtomicU64::new(0);
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        std::thread::spawn(|| {
            loop {
                let begun = Instant::now();
                sleep(BEAT);
                let late = begun.elapsed().saturating_sub(BEAT);
                if late > LATE {
                    TOTAL.fetch_add(u64::try_from(late.as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
                }
            }
        });
    });
    Duration::from_micros(TOTAL.load(Ordering::SeqCst))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_counted() {
        // Of a machine that stands still less is left; not every time.
        let most = (0..10).map(|_| timed(|| sleep(Duration::from_millis(50))).1).max();
        assert!(most.is_some_and(|most| most >= Duration::from_millis(30)), "{most:?}");
    }

    #[test]
    fn what_stands_still_is_not() {
        let stop = "kill -STOP $0; sleep 1; kill -CONT $0";
        let me = std::process::id().to_string();
        let ((), took) = timed(|| {
            let stopped = std::process::Command::new("sh").args(["-c", stop, &me]).status();
            assert!(stopped.is_ok_and(|ended| ended.success()));
        });
        assert!(took < Duration::from_millis(700), "{took:?}");
    }
}
