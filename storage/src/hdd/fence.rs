//! The fence: each open index lives on a thread of its own, which may panic or hang without harm to anybody.
//!
//! A thread whose index was closed in peace serves the next one: an allocator with an arena for each thread (glibc's)
//! would otherwise keep the 6 MiB of page table, which sled allocates for each database, in one arena after another.
//!
//! Invariants:
//! - no caller waits longer than its deadline;
//! - an index that panicked, or whose answer came too late, is never used again and never dropped: sled's drop
//!   flushes, and may hang or panic once more (a panic during unwinding aborts the process). Its memory, and at
//!   worst its thread, is what the fault costs; the tier allows two of them and then does without sled.

use super::index::{BlockIndex, Extent, IndexFactory};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use parking_lot::Mutex;
use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Why an index can no longer be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// It panicked.
    Panicked(String),
    /// No answer came in time.
    TimedOut(Duration),
    /// It said so itself.
    Failed(String),
    /// It had been given up before.
    Abandoned,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Panicked(what) => write!(f, "it panicked: {what}"),
            Fault::TimedOut(after) => write!(f, "no answer within {after:?}"),
            Fault::Failed(what) => write!(f, "{what}"),
            Fault::Abandoned => write!(f, "it was given up"),
        }
    }
}

type Answer<T> = Sender<Result<T, Fault>>;

enum Request {
    Insert(Vec<Extent>, Answer<()>),
    Lookup(u32, Answer<Option<Extent>>),
    SetSentinel(Vec<u8>, Answer<()>),
    Sentinel(Answer<Option<Vec<u8>>>),
    Close(Answer<()>),
}

/// An index to be opened, and served until it is closed.
struct Assignment {
    factory: Arc<dyn IndexFactory>,
    path: PathBuf,
    entries: u64,
    cache: u64,
    opened: Answer<()>,
    inbox: Receiver<Request>,
    abandoned: Arc<AtomicBool>,
    /// The way to the thread that does it: back in the pool when the index was closed in peace. It has none of its
    /// own, so that it ends when the pool is dropped.
    thread: Sender<Assignment>,
}

/// The threads that have no index at present, the one that had one last on top. They end with the pool.
#[derive(Default)]
pub(super) struct Threads {
    idle: Arc<Mutex<Vec<Sender<Assignment>>>>,
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").field("idle", &self.idle.lock().len()).finish()
    }
}

impl Threads {
    /// An idle thread, or a new one.
    fn hire(&self) -> Result<Sender<Assignment>, Fault> {
        if let Some(thread) = self.idle.lock().pop() {
            return Ok(thread);
        }
        let (thread, inbox) = unbounded::<Assignment>();
        let pool = Arc::downgrade(&self.idle);
        std::thread::Builder::new()
            .name("thermocline-sled".into())
            .spawn(move || {
                while let Ok(assignment) = inbox.recv() {
                    // What went wrong may have left anything on this thread.
                    let Some((thread, closed)) = assignment.run() else { return };
                    let pool = pool.upgrade();
                    if let Some(idle) = &pool {
                        idle.lock().push(thread);
                    }
                    // Only now, so that whoever opens the next index finds this thread idle.
                    let _ = closed.send(Ok(()));
                }
            })
            .map_err(|e| Fault::Failed(format!("cannot start its thread: {e}")))?;
        Ok(thread)
    }
}

impl Assignment {
    /// Opens the index and serves it; if it was closed in peace, gives back the way to this thread and who is to be
    /// told.
    fn run(self) -> Option<(Sender<Assignment>, Answer<()>)> {
        match guarded(|| self.factory.open(&self.path, self.entries, self.cache)) {
            Ok(index) => {
                let _ = self.opened.send(Ok(()));
                let closed = serve(index, &self.inbox, &self.abandoned)?;
                Some((self.thread, closed))
            }
            Err(fault) => {
                let _ = self.opened.send(Err(fault));
                None
            }
        }
    }
}

/// The near side of the fence of one open index.
pub(super) struct Fence {
    path: PathBuf,
    deadline: Duration,
    requests: Sender<Request>,
    abandoned: Arc<AtomicBool>,
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fence").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Fence {
    /// Opens an index on a thread of its own; at most `deadline` is waited for it, and for each answer later.
    pub fn open(
        threads: &Threads,
        factory: Arc<dyn IndexFactory>,
        path: &Path,
        entries: u64,
        cache: u64,
        deadline: Duration,
    ) -> Result<Fence, Fault> {
        let (requests, inbox) = unbounded();
        let (opened, open) = bounded(1);
        let abandoned = Arc::new(AtomicBool::new(false));
        let fence = Fence { path: path.to_path_buf(), deadline, requests, abandoned: Arc::clone(&abandoned) };
        let thread = threads.hire()?;
        let work = Assignment {
            factory,
            path: path.to_path_buf(),
            entries,
            cache,
            opened,
            inbox,
            abandoned,
            thread: thread.clone(),
        };
        thread.send(work).map_err(|_| Fault::Failed("its thread has ended".into()))?;
        drop(thread);
        fence.wait(&open, Instant::now() + deadline)?;
        Ok(fence)
    }

    /// The directory of the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// See [`BlockIndex::insert`].
    pub fn insert(&self, extents: Vec<Extent>) -> Result<(), Fault> {
        self.call(|answer| Request::Insert(extents, answer))
    }

    /// See [`BlockIndex::lookup`].
    pub fn lookup(&self, record: u32) -> Result<Option<Extent>, Fault> {
        self.call(|answer| Request::Lookup(record, answer))
    }

    /// See [`BlockIndex::set_sentinel`].
    pub fn set_sentinel(&self, token: Vec<u8>) -> Result<(), Fault> {
        self.call(|answer| Request::SetSentinel(token, answer))
    }

    /// See [`BlockIndex::sentinel`].
    pub fn sentinel(&self) -> Result<Option<Vec<u8>>, Fault> {
        self.call(Request::Sentinel)
    }

    /// See [`BlockIndex::close`]. The fence is of no use afterwards.
    pub fn close(&self) -> Result<(), Fault> {
        let closed = self.call(Request::Close);
        self.abandon();
        closed
    }

    /// Gives the index up: it is neither used nor dropped from now on.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    fn call<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, Fault> {
        if self.abandoned.load(Ordering::Acquire) {
            return Err(Fault::Abandoned);
        }
        let (answer, answered) = bounded(1);
        self.requests.send(request(answer)).map_err(|_| Fault::Abandoned)?;
        self.wait(&answered, Instant::now() + self.deadline)
    }

    fn wait<T>(&self, answered: &Receiver<Result<T, Fault>>, until: Instant) -> Result<T, Fault> {
        let result = match answered.recv_deadline(until) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(Fault::TimedOut(self.deadline)),
            Err(RecvTimeoutError::Disconnected) => Err(Fault::Abandoned),
        };
        if result.is_err() {
            self.abandon();
        }
        result
    }
}

impl Drop for Fence {
    /// The thread is not joined: it may never end. An index that was not closed is given up.
    fn drop(&mut self) {
        self.abandon();
    }
}

/// The far side: serves requests until the near side is gone or something went wrong. Gives back who is to be told
/// that the index was closed, if it was.
fn serve(
    index: Box<dyn BlockIndex>,
    inbox: &Receiver<Request>,
    abandoned: &AtomicBool,
) -> Option<Answer<()>> {
    let mut index = ManuallyDrop::new(index);
    while let Ok(request) = inbox.recv() {
        if abandoned.load(Ordering::Acquire) {
            return None;
        }
        let went_well = match request {
            Request::Insert(extents, to) => answer(&to, guarded(|| index.insert(&extents))),
            Request::Lookup(record, to) => answer(&to, guarded(|| index.lookup(record))),
            Request::SetSentinel(token, to) => answer(&to, guarded(|| index.set_sentinel(&token))),
            Request::Sentinel(to) => answer(&to, guarded(|| index.sentinel())),
            Request::Close(to) => {
                let index = ManuallyDrop::into_inner(index);
                return match guarded(|| index.close()) {
                    Ok(()) => Some(to),
                    Err(fault) => {
                        let _ = to.send(Err(fault));
                        None
                    }
                };
            }
        };
        if !went_well {
            return None;
        }
    }
    None
}

fn answer<T>(to: &Answer<T>, result: Result<T, Fault>) -> bool {
    let went_well = result.is_ok();
    let _ = to.send(result);
    went_well
}

fn guarded<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(why)) => Err(Fault::Failed(why)),
        Err(panic) => {
            let said = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
            // A payload whose own drop panics would abort: it is leaked with the rest.
            std::mem::forget(panic);
            Err(Fault::Panicked(said.unwrap_or_else(|| "without a message".into())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hdd::tests::{FaultyFactory, Trouble};

    /// Below a file: nothing can be made there.
    const NOWHERE: &str = "/dev/null/none/0";

    fn open(trouble: Trouble, ms: u64) -> Result<Fence, Fault> {
        let factory = FaultyFactory::new(trouble);
        Fence::open(
            &Threads::default(),
            Arc::new(factory),
            Path::new(NOWHERE),
            1,
            1 << 20,
            Duration::from_millis(ms),
        )
    }

    #[test]
    fn a_panic_is_an_answer_and_the_end() {
        let fence = open(Trouble::PanicAtLookup, 60_000).unwrap();
        fence.insert(vec![]).unwrap();
        assert!(matches!(fence.lookup(1), Err(Fault::Panicked(s)) if s.contains("on purpose")));
        assert_eq!(fence.lookup(1), Err(Fault::Abandoned));
        assert!(matches!(open(Trouble::PanicAtOpen, 60_000), Err(Fault::Panicked(_))));
    }

    #[test]
    fn a_hang_costs_the_deadline_once() {
        let begin = Instant::now();
        let fence = open(Trouble::HangAtLookup, 500).unwrap();
        assert!(matches!(fence.lookup(1), Err(Fault::TimedOut(_))));
        assert_eq!(fence.close(), Err(Fault::Abandoned));
        assert!(matches!(open(Trouble::HangAtOpen, 100), Err(Fault::TimedOut(_))));
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_thread_whose_index_was_closed_serves_the_next() {
        let threads = Threads::default();
        let open = |trouble| {
            let factory = Arc::new(FaultyFactory::new(trouble));
            Fence::open(&threads, factory, Path::new(NOWHERE), 1, 1 << 20, Duration::from_secs(60))
        };
        let idle = || threads.idle.lock().len();
        let (a, b) = (open(Trouble::None).unwrap(), open(Trouble::None).unwrap());
        assert_eq!(idle(), 0);
        a.close().unwrap();
        b.close().unwrap();
        assert_eq!(idle(), 2);
        let c = open(Trouble::PanicAtLookup).unwrap();
        assert_eq!(idle(), 1, "one of the two");
        c.lookup(1).unwrap_err();
        drop(c);
        let d = open(Trouble::None).unwrap();
        assert_eq!(idle(), 0, "the one with the panic does not come back");
        // Its thread ends with the pool: nothing else keeps a way to it.
        let end = Arc::downgrade(&threads.idle);
        drop(threads);
        assert!(end.upgrade().is_none());
        d.close().unwrap();
    }
}
