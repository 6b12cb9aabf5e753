//! A memory limit for the store and the hog: a cgroup of their own, of either hierarchy.

use std::path::{Path, PathBuf};

/// Names the file that a process enters the cgroup by.
pub const VARIABLE: &str = "THERMOCLINE_PHASES_CGROUP";

/// A memory cgroup with a limit; removed when it is dropped.
#[derive(Debug)]
pub struct Limit(PathBuf);

impl Limit {
    /// Makes one below where this process is, if that may be done.
    pub fn make(bytes: u64) -> Option<Limit> {
        let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = |wanted: &dyn Fn(&str) -> bool| {
            let line = text.lines().find(|l| l.split(':').nth(1).is_some_and(wanted))?;
            line.splitn(3, ':').nth(2).map(|path| path.trim_start_matches('/').to_owned())
        };
        let name = format!("thermocline-phases-{}", std::process::id());
        let old = own(&|of| of.split(',').any(|c| c == "memory"))
            .map(|path| (Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"));
        let new = own(&str::is_empty).map(|path| (Path::new("/sys/fs/cgroup").join(path), "memory.max"));
        [old, new].into_iter().flatten().find_map(|(parent, file)| {
            let dir = parent.join(&name);
            std::fs::create_dir(&dir).ok()?;
            let limit = Limit(dir);
            std::fs::write(limit.0.join(file), bytes.to_string()).ok()?;
            // Where it says something else it is not in force.
            let said = std::fs::read_to_string(limit.0.join(file)).ok()?;
            (said.trim().parse() == Ok(bytes)).then_some(limit)
        })
    }

    /// The file that a process enters it by.
    pub fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Enters the cgroup that was made for this process, if one was.
pub fn enter() -> std::io::Result<()> {
    match std::env::var_os(VARIABLE) {
        Some(procs) => std::fs::write(procs, std::process::id().to_string()),
        None => Ok(()),
    }
}
