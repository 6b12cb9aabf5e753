//! Running what may panic or hang, or cannot run here.

#![allow(clippy::print_stderr, reason = "tests alone call it, and a process that ends has to say why")]

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Runs something that says what went wrong; panics are put into words as well.
///
/// # Errors
/// What went wrong.
pub fn caught<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(format!("it panicked: {}", text.unwrap_or_default()))
    })
}

/// Runs something that must end on a thread of its own. If it has not ended after `limit`, the process ends with a word
/// about `what` hangs, for nothing else would end it; the directories that it worked on are left.
pub fn watched<T: Send>(what: &str, limit: Duration, run: impl FnOnce() -> T + Send) -> T {
    let (done, ended) = channel::<()>();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // Let go of at the end, in a panic too.
            let _done = done;
            run()
        });
        if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{what}: it hangs");
            std::process::exit(101);
        }
        thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
    })
}

/// Says that something is not tested, and why.
pub fn skipped(why: &str) {
    tell(&format!("SKIPPED  {why}"));
}

/// Says how many of so many cases ran; those that did not for want of time are skipped.
pub fn counted(what: &str, ran: u64, of: u64, took: Duration) {
    tell(&format!("RAN      {what}: {ran} of {of} in {} s", took.as_secs()));
    if ran < of {
        skipped(&format!("{what}: {} of {of}, for want of time", of - ran));
    }
}

/// To the process's own error output, for cargo hides what tests that pass print; and to the end of the file that
/// `THERMOCLINE_TOLD` names, from which `scripts/test` repeats it when all is over.
fn tell(line: &str) {
    // Who closed it does not want to know.
    let _ = writeln!(std::io::stderr(), "\n{line}");
    let Some(path) = std::env::var_os("THERMOCLINE_TOLD") else { return };
    let file = std::fs::OpenOptions::new().append(true).open(&path);
    if let Err(e) = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
        let _ = writeln!(std::io::stderr(), "{}: cannot be told there: {e}", path.display());
    }
}
