//! Limits of the cgroups that this process is in: version 2, version 1, or both beside each other.
//!
//! A limit of any ancestor binds, so all of them are asked, from the process's own up to the root of the mount. Inside
//! a container the path that the kernel names may not exist below the mount, whose root is then the container's own;
//! directories that are not there are passed over.

use super::parse::{cgroup_path, cpu_max, cpus, field, memory_limit, number, stall, text};
use super::readings::Stall;
use std::path::{Path, PathBuf};

/// Directories from a cgroup up to the root of its mount; no path is longer than this many parts.
const DEEPEST: usize = 64;

/// The cgroups that bind this process.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    /// Unified hierarchy.
    unified: Vec<PathBuf>,
    /// Old hierarchies.
    memory: Vec<PathBuf>,
    cpu: Vec<PathBuf>,
    cpuacct: Vec<PathBuf>,
    /// Where these two are mounted.
    cpu_root: PathBuf,
    cpuacct_root: PathBuf,
}

/// A limit on memory, and what is in use under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryLimit {
    pub(super) limit: u64,
    pub(super) used: Option<u64>,
    /// Of that, what cannot be had without swapping: not the page cache.
    pub(super) held: Option<u64>,
}

/// A quota of processors, and the time used under it, in microseconds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Quota {
    /// Which one, so that counters of two are not compared.
    pub(super) of: PathBuf,
    pub(super) cpus: f64,
    pub(super) used_us: Option<u64>,
}

impl Cgroups {
    /// Asked for at each sample, because a process can be moved.
    pub(super) fn find(proc: &Path, mount: &Path) -> Cgroups {
        let Some(own) = text(&proc.join("self/cgroup")) else { return Cgroups::default() };
        let chain = |root: PathBuf, path: Option<PathBuf>| -> Vec<PathBuf> {
            let Some(path) = path else { return Vec::new() };
            let up = path.ancestors().take(DEEPEST).map(|p| root.join(p));
            up.filter(|p| p.is_dir()).collect()
        };
        // Beside old hierarchies the unified one has a mount of its own.
        let hybrid = mount.join("unified");
        let unified = if hybrid.is_dir() { hybrid } else { mount.to_path_buf() };
        let old = |controller: &str| chain(mount.join(controller), cgroup_path(&own, Some(controller)));
        Cgroups {
            unified: chain(unified, cgroup_path(&own, None)),
            memory: old("memory"),
            cpu: old("cpu"),
            cpuacct: old("cpuacct"),
            cpu_root: mount.join("cpu"),
            cpuacct_root: mount.join("cpuacct"),
        }
    }

    /// The tightest limit on memory.
    pub(super) fn memory(&self) -> Option<MemoryLimit> {
        let read = |dir: &PathBuf, limit: &str, used: &str, held: [&str; 2]| {
            let limit = memory_limit(&text(&dir.join(limit))?)?;
            let stat = text(&dir.join("memory.stat"));
            let [anonymous, shared] = held.map(|name| stat.as_deref().and_then(|t| field(t, name)));
            let held = anonymous.map(|n| n.saturating_add(shared.unwrap_or(0)));
            Some(MemoryLimit { limit, used: text(&dir.join(used)).as_deref().and_then(number), held })
        };
        // Over `high` the kernel slows the group down, long before `max`.
        let of = |limit| {
            self.unified.iter().filter_map(move |d| read(d, limit, "memory.current", ["anon", "shmem"]))
        };
        let new = of("memory.max").chain(of("memory.high"));
        let old = self.memory.iter().filter_map(|d| {
            read(d, "memory.limit_in_bytes", "memory.usage_in_bytes", ["total_rss", "total_shmem"])
        });
        new.chain(old).min_by_key(|l| l.limit)
    }

    /// The tightest quota of processors.
    pub(super) fn quota(&self) -> Option<Quota> {
        let new = self.unified.iter().filter_map(|dir| {
            let cpus = cpu_max(&text(&dir.join("cpu.max"))?)?;
            let used_us = text(&dir.join("cpu.stat")).and_then(|t| field(&t, "usage_usec"));
            Some(Quota { of: dir.clone(), cpus, used_us })
        });
        let old = self.cpu.iter().filter_map(|dir| {
            let (quota, period) =
                (text(&dir.join("cpu.cfs_quota_us"))?, text(&dir.join("cpu.cfs_period_us"))?);
            // The time used stands in the same directory, or in the one of the same path in the other hierarchy. One that is
            // called the same elsewhere is of other processes.
            let path = dir.strip_prefix(&self.cpu_root).ok()?;
            let beside =
                self.cpuacct.iter().find(|d| d.strip_prefix(&self.cpuacct_root).is_ok_and(|p| p == path));
            let usage = |d: &Path| text(&d.join("cpuacct.usage")).as_deref().and_then(number);
            let used_ns = usage(dir).or_else(|| usage(beside?));
            Some(Quota { of: dir.clone(), cpus: cpus(&quota, &period)?, used_us: used_ns.map(|n| n / 1000) })
        });
        new.chain(old).min_by(|a, b| a.cpus.total_cmp(&b.cpus))
    }

    /// Pressure of one kind: the own cgroup's, or the machine's. The root of the hierarchy has no file of its own.
    pub(super) fn pressure(&self, proc: &Path, kind: &str) -> Stall {
        let own = self.unified.first().and_then(|d| text(&d.join(format!("{kind}.pressure"))));
        let machine = || text(&proc.join("pressure").join(kind));
        own.or_else(machine).map(|t| stall(&t)).unwrap_or_default()
    }
}
