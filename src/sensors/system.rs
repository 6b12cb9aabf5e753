//! The sensors of the machine that this runs on.

use super::Sensors;
use super::block::Watched;
use super::cgroup::{Cgroups, Quota};
use super::machine::{Machine, MachineReading, RealMachine};
use super::network::Interfaces;
use super::parse::{status_bytes, text};
use super::readings::{CpuReading, MemoryReading, PressureReading, ProcessReading, Readings};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file systems of the kernel, or directories in their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// `/sys/fs/cgroup`.
    pub cgroup: PathBuf,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots { proc: "/proc".into(), sys: "/sys".into(), cgroup: "/sys/fs/cgroup".into() }
    }
}

/// The clocks of a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Since some moment in the past; stands still while the machine sleeps.
    pub monotonic: Duration,
    /// Since boot; runs while the machine sleeps.
    pub boot: Duration,
}

impl Times {
    /// Now.
    pub fn now() -> Times {
        let of = |id| {
            let t = rustix::time::clock_gettime(id);
            let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
            Duration::new(seconds, u32::try_from(t.tv_nsec).unwrap_or(0))
        };
        Times { monotonic: of(rustix::time::ClockId::Monotonic), boot: of(rustix::time::ClockId::Boottime) }
    }
}

type TellTime = Box<dyn FnMut() -> Times + Send>;
type DeviceOf = Box<dyn Fn(&Path) -> Option<(u32, u32)> + Send>;

/// Reads `/proc`, `/sys` and the cgroups. The directories whose devices it watches are the tiers'.
pub struct SystemSensors {
    roots: Roots,
    time: TellTime,
    device_of: DeviceOf,
    machine: Box<dyn Machine>,
    watched: Vec<Watched>,
    interfaces: Interfaces,
    last: Option<Last>,
}

/// What the next sample takes its differences from.
#[derive(Debug)]
struct Last {
    monotonic: Duration,
    cpu_time: Option<Duration>,
    quota: Option<Quota>,
}

impl fmt::Debug for SystemSensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemSensors").field("roots", &self.roots).field("watched", &self.watched).finish()
    }
}

impl SystemSensors {
    /// Sensors that watch the devices behind these directories.
    pub fn new<P: Into<PathBuf>>(directories: impl IntoIterator<Item = P>) -> SystemSensors {
        SystemSensors::with_roots(directories, Roots::default(), Times::now)
    }

    /// The same with other directories in place of the kernel's, and another clock.
    pub fn with_roots<P: Into<PathBuf>>(
        directories: impl IntoIterator<Item = P>,
        roots: Roots,
        time: impl FnMut() -> Times + Send + 'static,
    ) -> SystemSensors {
        let machine = Box::new(RealMachine::new());
        SystemSensors::assemble(directories, roots, Box::new(time), Box::new(device_of), machine)
    }

    pub(super) fn assemble<P: Into<PathBuf>>(
        directories: impl IntoIterator<Item = P>,
        roots: Roots,
        time: TellTime,
        device_of: DeviceOf,
        machine: Box<dyn Machine>,
    ) -> SystemSensors {
        let watched = directories.into_iter().map(|d| Watched::new(d.into())).collect();
        SystemSensors {
            roots,
            time,
            device_of,
            machine,
            watched,
            interfaces: Interfaces::default(),
            last: None,
        }
    }

    fn process(&self, now: &MachineReading, elapsed: Option<Duration>, cpus: f64) -> ProcessReading {
        let status = text(&self.roots.proc.join("self/status"));
        let cpu_percent = || {
            let before = self.last.as_ref()?.cpu_time?;
            let used = now.cpu_time?.checked_sub(before)?.as_secs_f64();
            percent(used / cpus, elapsed?)
        };
        ProcessReading {
            anonymous: status.and_then(|t| status_bytes(&t, "RssAnon")),
            allocated: now.allocated,
            resident: Some(now.resident).filter(|n| *n > 0),
            cpu_percent: cpu_percent(),
        }
    }
}

/// Share of a time, in percent. Counters and clock are read one after the other, so a little more than all is all.
fn percent(used: f64, elapsed: Duration) -> Option<f64> {
    let percent = used / elapsed.as_secs_f64() * 100.0;
    (percent.is_finite() && percent >= 0.0).then(|| percent.min(100.0))
}

impl Sensors for SystemSensors {
    fn sample(&mut self) -> Readings {
        let times = (self.time)();
        let since = self.last.as_ref().and_then(|l| times.monotonic.checked_sub(l.monotonic));
        let elapsed = since.filter(|e| !e.is_zero());
        let machine = self.machine.read();
        let cgroups = Cgroups::find(&self.roots.proc, &self.roots.cgroup);
        let quota = cgroups.quota().filter(|q| machine.cpus == 0 || q.cpus < machine.cpus as f64);
        let total = Some(machine.total).filter(|n| *n > 0);
        let group = cgroups.memory();
        let known = [total, group.map(|g| g.limit)].into_iter().flatten();
        let mine = quota.as_ref().map_or(machine.cpus.max(1) as f64, |q| q.cpus);
        let quota_percent = || {
            let (now, before) = (quota.as_ref()?, self.last.as_ref()?.quota.as_ref()?);
            let used = now.used_us?.checked_sub(before.used_us.filter(|_| before.of == now.of)?)?;
            percent(used as f64 / 1e6 / now.cpus, elapsed?)
        };
        let of_machine = total.and(Some(machine.available)).filter(|n| *n <= machine.total);
        let of_group = group.and_then(|g| Some(g.limit.saturating_sub(g.held?)));
        let readings = Readings {
            monotonic: times.monotonic,
            boot: times.boot,
            elapsed,
            process: self.process(&machine, elapsed, mine),
            memory: MemoryReading {
                total,
                available: [of_machine, of_group].into_iter().flatten().min(),
                limit: known.min(),
                // A limit above the machine's does not bind.
                cgroup_used: group.filter(|g| total.is_none_or(|t| g.limit <= t)).and_then(|g| g.used),
            },
            cpu: CpuReading {
                // Before there is a sample to compare with it says 0.
                machine_percent: Some(machine.cpu_percent)
                    .filter(|p| elapsed.is_some() && (0.0..=100.5).contains(p))
                    .map(|p| p.min(100.0)),
                quota_percent: quota_percent(),
            },
            pressure: PressureReading {
                cpu: cgroups.pressure(&self.roots.proc, "cpu"),
                io: cgroups.pressure(&self.roots.proc, "io"),
                memory: cgroups.pressure(&self.roots.proc, "memory"),
            },
            devices: self
                .watched
                .iter_mut()
                .map(|w| w.read(&self.roots.sys, &self.device_of, elapsed))
                .collect(),
            network: self.interfaces.read(&self.roots.sys, elapsed),
        };
        self.last = Some(Last { monotonic: times.monotonic, cpu_time: machine.cpu_time, quota });
        readings
    }

    fn now(&mut self) -> Option<Duration> {
        Some((self.time)().monotonic)
    }
}

/// The device that a directory's file system is on. One that has none of its own (tmpfs, overlay) has a number that
/// `/sys` does not know.
fn device_of(directory: &Path) -> Option<(u32, u32)> {
    let stat = rustix::fs::stat(directory).ok()?;
    Some((rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)))
}
