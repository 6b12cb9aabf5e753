//! Locks with the interface of `parking_lot`, as far as the engine uses it, for runs under shuttle.
//!
//! Before a lock is taken and after it is given back shuttle decides which thread goes on. A thread that has to wait
//! says so and is asked again later; nobody sleeps. Outside of shuttle's threads they are spin locks that work.
//!
//! As `parking_lot` does it, a writer that waits keeps new readers out: who reads twice at once in one thread is found
//! out here as well. Time does not pass: a wait with a limit ends by what it waits for, or at once where the limit is
//! zero or behind us. A wait that would never end runs into shuttle's limit of steps, which fails the run.

use lock_api::GuardNoSend;
use shuttle_engine::current::try_get_current_task;
use shuttle_engine::runtime::thread::switch;
use shuttle_engine::thread_support::yield_now;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

fn is_scheduled() -> bool {
    // A thread that panics unwinds to its end: shuttle does not take the turn from it.
    !std::thread::panicking() && try_get_current_task().is_some()
}

/// Any thread may go on here.
fn decide() {
    if is_scheduled() {
        switch();
    }
}

/// This thread cannot go on until another did.
fn give_way() {
    if is_scheduled() {
        yield_now();
    } else if std::thread::panicking() && try_get_current_task().is_some() {
        // The run has failed and was told; nobody else will go on.
        std::process::abort();
    } else {
        std::thread::yield_now();
    }
}

fn wait_until<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    decide();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        give_way();
    }
}

/// `None` where no time is left to wait.
fn wait_for<T>(timeout: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    if timeout.is_zero() {
        decide();
        return attempt();
    }
    Some(wait_until(attempt))
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// See [`Mutex`].
pub struct RawMutex(AtomicBool);

impl RawMutex {
    fn take(&self) -> Option<GuardNoSend> {
        (!self.0.swap(true, SeqCst)).then(GuardNoSend::new)
    }
}

// SAFETY: one swap takes the lock, and who has it gives it back.
unsafe impl lock_api::RawMutex for RawMutex {
    const INIT: RawMutex = RawMutex(AtomicBool::new(false));
    type Guard = GuardNoSend;

    fn lock(&self) -> GuardNoSend {
        wait_until(|| self.take())
    }

    fn try_lock(&self) -> Option<GuardNoSend> {
        decide();
        self.take()
    }

    unsafe fn unlock(&self, _guard: GuardNoSend) {
        self.0.store(false, SeqCst);
        decide();
    }

    fn is_locked(&self) -> bool {
        self.0.load(SeqCst)
    }
}

// SAFETY: as above.
unsafe impl lock_api::RawMutexTimed for RawMutex {
    type Duration = Duration;
    type Instant = Instant;

    fn try_lock_for(&self, timeout: Duration) -> Option<GuardNoSend> {
        wait_for(timeout, || self.take())
    }

    fn try_lock_until(&self, deadline: Instant) -> Option<GuardNoSend> {
        self.try_lock_for(left(deadline))
    }
}

/// See [`RwLock`].
pub struct RawRwLock {
    /// Readers, or [`WRITER`].
    state: AtomicUsize,
    /// Writers that wait.
    waiting: AtomicUsize,
}

const WRITER: usize = usize::MAX;

impl RawRwLock {
    fn share(&self) -> Option<GuardNoSend> {
        if self.waiting.load(SeqCst) > 0 {
            return None;
        }
        let more = |n: usize| (n != WRITER).then(|| n + 1);
        self.state.fetch_update(SeqCst, SeqCst, more).is_ok().then(GuardNoSend::new)
    }

    fn take(&self) -> Option<GuardNoSend> {
        self.state.compare_exchange(0, WRITER, SeqCst, SeqCst).is_ok().then(GuardNoSend::new)
    }
}

/// Counts a writer that waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn at(lock: &'a RawRwLock) -> Waiting<'a> {
        lock.waiting.fetch_add(1, SeqCst);
        Waiting(&lock.waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

// SAFETY: the state counts readers or says that there is a writer, and changes from one to the other only through 0.
unsafe impl lock_api::RawRwLock for RawRwLock {
    const INIT: RawRwLock = RawRwLock { state: AtomicUsize::new(0), waiting: AtomicUsize::new(0) };
    type SharedGuard = GuardNoSend;
    type ExclusiveGuard = GuardNoSend;

    fn lock_shared(&self) -> GuardNoSend {
        wait_until(|| self.share())
    }

    fn try_lock_shared(&self) -> Option<GuardNoSend> {
        decide();
        self.share()
    }

    unsafe fn unlock_shared(&self, _guard: GuardNoSend) {
        self.state.fetch_sub(1, SeqCst);
        decide();
    }

    fn lock_exclusive(&self) -> GuardNoSend {
        decide();
        if let Some(guard) = self.take() {
            return guard;
        }
        let _waiting = Waiting::at(self);
        wait_until(|| self.take())
    }

    fn try_lock_exclusive(&self) -> Option<GuardNoSend> {
        decide();
        self.take()
    }

    unsafe fn unlock_exclusive(&self, _guard: GuardNoSend) {
        self.state.store(0, SeqCst);
        decide();
    }

    fn is_locked(&self) -> bool {
        self.state.load(SeqCst) != 0
    }

    fn is_locked_exclusive(&self) -> bool {
        self.state.load(SeqCst) == WRITER
    }
}

// SAFETY: as above.
unsafe impl lock_api::RawRwLockTimed for RawRwLock {
    type Duration = Duration;
    type Instant = Instant;

    fn try_lock_shared_for(&self, timeout: Duration) -> Option<GuardNoSend> {
        wait_for(timeout, || self.share())
    }

    fn try_lock_shared_until(&self, deadline: Instant) -> Option<GuardNoSend> {
        self.try_lock_shared_for(left(deadline))
    }

    fn try_lock_exclusive_for(&self, timeout: Duration) -> Option<GuardNoSend> {
        let _waiting = Waiting::at(self);
        wait_for(timeout, || self.take())
    }

    fn try_lock_exclusive_until(&self, deadline: Instant) -> Option<GuardNoSend> {
        self.try_lock_exclusive_for(left(deadline))
    }
}

/// A lock for one.
pub type Mutex<T> = lock_api::Mutex<RawMutex, T>;
/// What gives it back.
pub type MutexGuard<'a, T> = lock_api::MutexGuard<'a, RawMutex, T>;
/// A lock for many readers or one writer.
pub type RwLock<T> = lock_api::RwLock<RawRwLock, T>;
/// What gives a reader's share back.
pub type RwLockReadGuard<'a, T> = lock_api::RwLockReadGuard<'a, RawRwLock, T>;
/// What gives a writer's lock back.
pub type RwLockWriteGuard<'a, T> = lock_api::RwLockWriteGuard<'a, RawRwLock, T>;

/// How a wait with a limit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether it was its limit.
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

/// Where threads wait to be told that something changed. To tell one tells all, as it may.
#[derive(Debug, Default)]
pub struct Condvar {
    told: AtomicU64,
}

impl Condvar {
    /// Nobody waits yet.
    pub const fn new() -> Condvar {
        Condvar { told: AtomicU64::new(0) }
    }

    /// Wakes who waits.
    pub fn notify_one(&self) -> bool {
        self.notify_all() > 0
    }

    /// Wakes all who wait.
    pub fn notify_all(&self) -> usize {
        self.told.fetch_add(1, SeqCst);
        decide();
        1
    }

    /// Gives the lock back until somebody tells of a change.
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        let before = self.told.load(SeqCst);
        MutexGuard::unlocked(guard, || wait_until(|| (self.told.load(SeqCst) != before).then_some(())));
    }

    /// As [`wait`](Self::wait); ends at once where no time is left.
    pub fn wait_for<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, timeout: Duration) -> WaitTimeoutResult {
        if timeout.is_zero() {
            return WaitTimeoutResult(true);
        }
        self.wait(guard);
        WaitTimeoutResult(false)
    }

    /// As [`wait_for`](Self::wait_for).
    pub fn wait_until<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        deadline: Instant,
    ) -> WaitTimeoutResult {
        self.wait_for(guard, left(deadline))
    }
}
