//! How much background threads ask of the machine: less than the callers', whom they leave a place at each disk.
//!
//! Nothing is owed to anybody here: where the system does not allow it, or does not know of it, threads stay as they are.

use thermocline_storage::vfs::Background;

/// This thread yields to others until it ends: by its nice value, by the place that its reads leave free, and where the I/O scheduler knows of priorities (BFQ, mq-deadline),
/// by the lowest one of best effort, so that it still gets its turn.
pub(super) fn lower(nice: i32) {
    Background::for_ever();
    let me = rustix::thread::gettid();
    // Whoever started this process may have made it nicer still.
    if rustix::process::getpriority_process(Some(me)).is_ok_and(|now| now < nice) {
        let _ = rustix::process::setpriority_process(Some(me), nice);
    }
    lower_io(me.as_raw_nonzero().get());
}

/// `ioprio_set(2)`: which (a thread), whom, and class and level in one number.
const WHO_THREAD: libc::c_long = 1;
const BEST_EFFORT: libc::c_long = 2;
const IDLE: libc::c_long = 3;
const CLASS_SHIFT: u32 = 13;
const LOWEST: libc::c_long = 7;

#[expect(unsafe_code, reason = "no safe wrapper of ioprio_set is among the dependencies")]
fn lower_io(thread: i32) {
    let (thread, priority) = (libc::c_long::from(thread), BEST_EFFORT << CLASS_SHIFT | LOWEST);
    // SAFETY: the system calls take numbers, read and write no memory of this process, and change nothing but the I/O
    // priority of this thread.
    unsafe {
        // The idle class is lower: it stays.
        if libc::syscall(libc::SYS_ioprio_get, WHO_THREAD, thread) < IDLE << CLASS_SHIFT {
            libc::syscall(libc::SYS_ioprio_set, WHO_THREAD, thread, priority);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(unsafe_code, reason = "as above")]
    fn a_thread_that_lowers_itself_is_lower_and_no_other_is() {
        let of = || {
            let me = rustix::thread::gettid();
            // SAFETY: as above; it only reads the priority.
            let io = unsafe {
                libc::syscall(libc::SYS_ioprio_get, WHO_THREAD, libc::c_long::from(me.as_raw_nonzero().get()))
            };
            (rustix::process::getpriority_process(Some(me)).unwrap_or(0), io)
        };
        let before = of();
        let lowered = std::thread::spawn(move || {
            lower(before.0 + 1);
            of()
        });
        let lowered = lowered.join().unwrap_or_default();
        assert_eq!(lowered, (before.0 + 1, BEST_EFFORT << CLASS_SHIFT | LOWEST));
        assert_eq!(of(), before);
    }
}
