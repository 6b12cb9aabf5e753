//! Runs a piece of concurrent work many times, each time in another order of its threads.

use shuttle::scheduler::{PctScheduler, ReplayScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};
use std::time::{Duration, Instant};

/// Seconds for one piece of work, unless `THERMOCLINE_SECONDS` says otherwise.
const TIME: u64 = 7;
/// Runs that there have to be in that time, or nothing was tried.
const FEWEST: usize = 50;
/// Steps of a run after which it is taken for one that never ends.
const STEPS: usize = 2_000_000;
/// Changes of priority in one run of the second scheduler: so many things that have to come together.
const DEPTH: usize = 4;
/// Bytes of a thread's stack.
const STACK: usize = 1 << 20;

fn number(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |t| t.parse().unwrap_or_else(|_| panic!("{name}={t}: not a number")))
}

/// Picks any thread that can go on.
struct Chance {
    state: u64,
}

impl Chance {
    /// A number below `n` (SplitMix64: Steele, Lea and Flood, 2014).
    fn below(&mut self, n: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

impl Scheduler for Chance {
    fn new_execution(&mut self) -> Option<Schedule> {
        Some(Schedule::new(self.state))
    }

    fn next_task(&mut self, runnable: &[&Task], _current: Option<TaskId>, _yields: bool) -> Option<TaskId> {
        let n = self.below(runnable.len());
        runnable.get(n).map(|task| task.id())
    }

    /// Nothing that is run here asks shuttle for numbers.
    fn next_u64(&mut self) -> u64 {
        0
    }
}

/// Begins no further run after a moment.
struct Until<S>(S, Instant);

impl<S: Scheduler> Scheduler for Until<S> {
    fn new_execution(&mut self) -> Option<Schedule> {
        if Instant::now() < self.1 { self.0.new_execution() } else { None }
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yields: bool) -> Option<TaskId> {
        self.0.next_task(runnable, current, yields)
    }

    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
}

fn run(scheduler: impl Scheduler + 'static, work: fn()) -> usize {
    let mut config = Config::new();
    config.stack_size = STACK;
    config.failure_persistence = FailurePersistence::Print;
    config.max_steps = MaxSteps::FailAfter(STEPS);
    // The threads that did not fail are left where they are.
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    Runner::new(scheduler, config).run(work)
}

/// Runs `work` for some seconds, under two schedulers: one that picks any thread at each lock, and one that keeps to
/// priorities and changes them a few times (Burckhardt, Kothari, Musuvathi and Nagarakatte, "A Randomized Scheduler
/// with Probabilistic Guarantees of Finding Bugs", 2010).
///
/// A run that fails prints its schedule; `THERMOCLINE_SCHEDULE` with that runs it again. `THERMOCLINE_SEED` begins with
/// other runs, `THERMOCLINE_SECONDS` is the time.
///
/// # Panics
/// If a run fails, never ends, or if too few could be tried.
pub fn explore(name: &str, work: fn()) {
    if let Ok(schedule) = std::env::var("THERMOCLINE_SCHEDULE") {
        run(ReplayScheduler::new_from_encoded(schedule.trim()), work);
        println!("{name}: that schedule passed");
        return;
    }
    let (seed, time) =
        (number("THERMOCLINE_SEED", 1), Duration::from_secs(number("THERMOCLINE_SECONDS", TIME)));
    println!(
        "{name}: from THERMOCLINE_SEED={seed}; a failure prints its schedule: THERMOCLINE_SCHEDULE='…' runs it"
    );
    let begun = Instant::now();
    let by_chance = run(Until(Chance { state: seed }, begun + time / 2), work);
    let by_priority = run(Until(PctScheduler::new_from_seed(seed, DEPTH, usize::MAX), begun + time), work);
    println!("{name}: {by_chance} runs by chance, {by_priority} by priorities, in {:?}", begun.elapsed());
    assert!(by_chance.min(by_priority) >= FEWEST, "{name}: the machine is too slow to say anything");
}
