//! What the crate `sysinfo` tells: memory of the machine, time of its processors, and the process.
//!
//! Of the processors those count that this process may use: where it is kept to some (a cpuset, `taskset`), what the others
//! have to do is no matter, and their rest is no room.

use rustix::thread::CpuSet;
use std::ffi::OsStr;
use std::time::Duration;
use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// Threads that are asked what they may use: where there are more, all of them are seldom kept to few processors, and the
/// first is the process's own.
const THREADS: usize = 256;

/// What is asked of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct MachineReading {
    /// Bytes, 0 if unknown.
    pub(super) total: u64,
    pub(super) available: u64,
    /// Bytes of the process that are resident, 0 if unknown.
    pub(super) resident: u64,
    /// Bytes that the process's allocator has given out.
    pub(super) allocated: Option<u64>,
    /// Percent of the processors that this process may use, in use by anybody since the last call.
    pub(super) cpu_percent: f64,
    /// These processors; 0 if unknown.
    pub(super) cpus: usize,
    /// Time of processors that the process has used.
    pub(super) cpu_time: Option<Duration>,
}

/// Who is asked; another in tests.
pub(super) trait Machine: Send {
    fn read(&mut self) -> MachineReading;
}

/// The machine that this runs on.
pub(super) struct RealMachine {
    system: Option<System>,
    pid: Option<Pid>,
}

impl RealMachine {
    pub(super) fn new() -> RealMachine {
        RealMachine { system: System::new().ok(), pid: sysinfo::get_current_pid().ok() }
    }
}

impl Machine for RealMachine {
    fn read(&mut self) -> MachineReading {
        let Some(system) = &mut self.system else { return MachineReading::default() };
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        system.refresh_cpu_usage();
        let mut reading = MachineReading {
            total: system.total_memory(),
            available: system.available_memory(),
            allocated: crate::allocator::allocated(),
            ..MachineReading::default()
        };
        let all = system.cpus().iter().map(|cpu| (cpu.name(), f64::from(cpu.usage())));
        (reading.cpus, reading.cpu_percent) = usable(all, allowed().as_ref());
        if let Some(pid) = self.pid {
            let what = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
            system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, what);
            if let Some(process) = system.process(pid) {
                reading.resident = process.memory();
                reading.cpu_time = Some(Duration::from_millis(process.accumulated_cpu_time()));
            }
        }
        reading
    }
}

/// The processors that any thread of this process may use, which a cpuset or whoever started the process may have made
/// fewer: what the calling thread, or another, was kept to says nothing of the rest. Those of the calling thread where it
/// cannot be seen which others there are.
fn allowed() -> Option<CpuSet> {
    let tasks = std::fs::read_dir("/proc/self/task").ok();
    let id = |name: &OsStr| name.to_str()?.parse().ok().and_then(rustix::thread::Pid::from_raw);
    let threads = tasks.into_iter().flatten().flatten().filter_map(|task| id(&task.file_name()));
    allowed_to(threads.take(THREADS)).or_else(|| rustix::thread::sched_getaffinity(None).ok())
}

/// The processors that any of these threads may use; of those that have ended since, nothing is known.
fn allowed_to(threads: impl Iterator<Item = rustix::thread::Pid>) -> Option<CpuSet> {
    let sets = threads.filter_map(|id| rustix::thread::sched_getaffinity(Some(id)).ok());
    sets.reduce(|mut all, of| {
        (0..CpuSet::MAX_CPU).filter(|n| of.is_set(*n)).for_each(|n| all.set(n));
        all
    })
}

/// How many of the processors are allowed, and how busy these are in the mean; all of them where it is not known which are,
/// or none of them is known by its name.
fn usable<'a>(all: impl Iterator<Item = (&'a str, f64)> + Clone, allowed: Option<&CpuSet>) -> (usize, f64) {
    let is_mine = |name: &str| {
        let number = name.strip_prefix("cpu").and_then(|n| n.parse::<usize>().ok());
        number.zip(allowed).is_some_and(|(n, set)| n < CpuSet::MAX_CPU && set.is_set(n))
    };
    let mine: Vec<f64> = all.clone().filter(|(name, _)| is_mine(name)).map(|(_, percent)| percent).collect();
    let counted = if mine.is_empty() { all.map(|(_, percent)| percent).collect() } else { mine };
    (counted.len(), counted.iter().sum::<f64>() / counted.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_that_this_process_may_not_use_do_not_count() {
        let all = [("cpu0", 90.0), ("cpu1", 10.0), ("cpu2", 50.0), ("cpu10", 70.0)];
        let set = |of: &[usize]| {
            let mut set = CpuSet::new();
            of.iter().for_each(|n| set.set(*n));
            set
        };
        assert_eq!(usable(all.into_iter(), Some(&set(&[0, 10]))), (2, 80.0));
        assert_eq!(usable(all.into_iter(), None), (4, 55.0));
        assert_eq!(usable(all.into_iter(), Some(&set(&[7]))), (4, 55.0), "none of them is known");
        assert_eq!(usable([].into_iter(), Some(&set(&[0]))), (0, 0.0));
    }

    /// A thread that is kept to one processor, as each of a process in a cpuset is, and one of many that are not.
    #[test]
    fn the_processors_are_those_of_all_threads_whichever_asks() {
        let before = RealMachine::new().read().cpus;
        let seen = std::thread::spawn(|| {
            let all = allowed()?;
            let first = (0..CpuSet::MAX_CPU).find(|n| all.is_set(*n))?;
            let mut one = CpuSet::new();
            one.set(first);
            rustix::thread::sched_setaffinity(None, &one).ok()?;
            let alone = allowed_to([rustix::thread::gettid()].into_iter())?;
            Some((alone.count(), RealMachine::new().read().cpus))
        });
        assert_eq!(seen.join().ok().flatten(), Some((1, before)));
        let main = rustix::thread::Pid::from_raw(i32::try_from(std::process::id()).unwrap());
        let both = allowed_to(main.into_iter().chain([rustix::thread::gettid()])).unwrap();
        assert_eq!(both.count(), allowed().unwrap().count());
        assert!(allowed_to(std::iter::empty()).is_none());
    }
}
