//! The process that is killed: it opens the store and works on it from four threads without pause.

use crate::common::{Dice, parse, value};
use crate::log::{Entry, Log, NAMELESS, key, number};
use crate::plan::{Job, Plan};
use std::time::Duration;
use thermocline::{Cache, Error, Event, Received, RecvError, Subscription, Tier};
use thermocline_testing::history::Value;

const THREADS: u64 = 4;
/// Nobody kills it: it ends by itself.
const LONGEST: Duration = Duration::from_secs(60);
/// Between two questions to the store for what it has to tell.
const PAUSE: Duration = Duration::from_millis(2);

/// Ends the process: what went wrong is in its output, and it was not killed, which its parent sees.
fn wrong(what: &str) -> ! {
    eprintln!("the child: {what}");
    std::process::exit(3);
}

/// Does what is asked until it is killed.
pub fn run(job: &Job) -> ! {
    // A test that ends leaves no process behind.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    // A panic of one thread, the store's own among them, would go unseen: the others go on until they are killed.
    std::panic::set_hook(Box::new(|panic| wrong(&panic.to_string())));
    std::thread::spawn(|| {
        std::thread::sleep(LONGEST);
        wrong("nobody killed it");
    });
    let plan = Plan::draw(job.seed);
    let log = Log::open(&job.log);
    log.say(Entry::Opening);
    let opened = plan.builder(&job.store).open_with_events(1 << 18);
    let (cache, events) = opened.unwrap_or_else(|e| wrong(&format!("opening failed: {e}")));
    if job.only_open {
        loop {
            std::thread::park();
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| listen(&plan, &events, &log));
        for thread in 0..THREADS {
            let worker = Worker { plan: &plan, cache: &cache, log: &log, job, thread };
            scope.spawn(move || worker.work());
        }
    });
    wrong("its threads ended")
}

fn listen(plan: &Plan, events: &Subscription, log: &Log) {
    loop {
        let operation = log.begin(Entry::Listen);
        let heard = events.try_recv();
        if heard == Err(RecvError::Empty) {
            log.end(operation, Entry::Done);
            std::thread::sleep(PAUSE);
            continue;
        }
        match heard {
            Ok(Received::Event(Event::Evicted { key, .. })) => {
                if plan.tiers.keep_all() {
                    wrong(&format!("there is room for everything: {key:?} was evicted"));
                }
                log.say(Entry::Evicted(key.map_or(NAMELESS, |key| number(&key))));
            }
            Ok(Received::Event(Event::Promoted { .. })) => {}
            Ok(Received::Event(Event::Demoted { .. })) => log.say(Entry::Moved),
            other => wrong(&format!("an event: {other:?}")),
        }
    }
}

struct Worker<'a> {
    plan: &'a Plan,
    cache: &'a Cache,
    log: &'a Log,
    job: &'a Job,
    thread: u64,
}

impl Worker<'_> {
    fn work(&self) {
        let mut dice = Dice::new(self.job.seed ^ self.job.round << 32 ^ self.thread << 56);
        // Each value once, over all processes that work on the store; never 0.
        let first: Value = 1 + (self.job.round << 40 | self.thread << 32);
        for value in first.. {
            // A quarter of the operations go to a few keys.
            let few = if dice.below(4) == 0 { 12 } else { u64::from(self.plan.keys) };
            let no = dice.below(few) as u32;
            match dice.below(100) {
                0..=49 => self.put(no, value, &mut dice),
                50..=61 => self.remove(no),
                62..=94 => self.read(no),
                95..=97 => self.demote(no, &mut dice),
                _ if dice.below(3) == 0 => self.flush(),
                _ => {}
            }
        }
    }

    /// `Busy` is in order; anything else is not, for nothing is wrong with the disk.
    fn refused(&self, what: &str, e: &Error) {
        if !matches!(e, Error::Busy { .. }) {
            wrong(&format!("{what}: {e}"));
        }
    }

    fn put(&self, no: u32, number: Value, dice: &mut Dice) {
        let len = match dice.below(40) {
            // Written by its caller.
            0 => 270_000 + dice.below(100_000),
            1..=3 => dice.below(90_000),
            4..=20 => dice.below(12_000),
            _ => dice.below(1_500),
        };
        let bytes = value(u64::from(no), number, len as usize);
        let operation = self.log.begin(Entry::Put(no, number));
        let done = self.cache.put(key(no), bytes);
        self.log.end(operation, if done.is_ok() { Entry::Done } else { Entry::Refused });
        done.unwrap_or_else(|e| self.refused("put", &e));
    }

    fn remove(&self, no: u32) {
        let operation = self.log.begin(Entry::Remove(no));
        let done = self.cache.remove(key(no));
        self.log.end(operation, if done.is_ok() { Entry::Done } else { Entry::Refused });
        done.map(drop).unwrap_or_else(|e| self.refused("remove", &e));
    }

    fn read(&self, no: u32) {
        let operation = self.log.begin(Entry::Read(no));
        match self.cache.get(key(no)) {
            Ok(None) => self.log.end(operation, Entry::Found(0)),
            Ok(Some(bytes)) => match parse(&bytes) {
                Some((of, value)) if of == u64::from(no) => self.log.end(operation, Entry::Found(value)),
                other => wrong(&format!("a read of {no} gave {} bytes that are {other:?}", bytes.len())),
            },
            Err(e) => {
                self.log.end(operation, Entry::Refused);
                self.refused("get", &e);
            }
        }
    }

    fn demote(&self, no: u32, dice: &mut Dice) {
        let tier = if dice.below(2) == 0 { Tier::Cold } else { Tier::Hdd };
        match self.cache.demote(key(no), tier) {
            Ok(_) | Err(Error::NoSuchTier(_)) => {}
            Err(e) => self.refused("demote", &e),
        }
    }

    fn flush(&self) {
        let operation = self.log.begin(Entry::Flush);
        let done = self.cache.flush();
        self.log.end(operation, if done.is_ok() { Entry::Done } else { Entry::Refused });
        done.unwrap_or_else(|e| self.refused("flush", &e));
    }
}
