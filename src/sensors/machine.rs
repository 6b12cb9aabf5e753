//! What the crate `sysinfo` tells: memory of the machine, time of its processors, and the process.

use std::time::Duration;
use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// What is asked of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct MachineReading {
    /// Bytes, 0 if unknown.
    pub(super) total: u64,
    pub(super) available: u64,
    /// Bytes of the process that are resident, 0 if unknown.
    pub(super) resident: u64,
    /// Percent of the processors in use since the last call.
    pub(super) cpu_percent: f64,
    /// Processors.
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
            cpu_percent: f64::from(system.global_cpu_usage()),
            cpus: system.cpus().len(),
            ..MachineReading::default()
        };
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
