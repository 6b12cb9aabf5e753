//! A load that changes its nature, under several settings of the same store: what the optimizer is worth.
//!
//! `make show-optimizer` (`cargo bench --bench phases -- --rounds 5 --slices 12 --out FILE`) runs, in turns and each in a
//! process of its own, the store with its optimizer, without it (twice: the difference of these two is the noise), and
//! without it with the compression level and the prefetching of each strategy, fixed. Each goes through five phases of so
//! many slices: a small hot set, a scan, large media, idleness, and a process beside it that takes memory. A slice is the
//! same requests in each setting, a second's or less. Where the memory cgroup can be used (as root), store and hog live
//! within a limit; else the machine's memory is the limit, and that is said.
//!
//! What is printed: the mean time of a request by phase and setting, as ratios to the store without its optimizer; tails,
//! hits, memory. Of a machine that others use too, the last table tells more: each slice as in the quieter of its rounds.
//! A request that finds nothing is charged [`load::ORIGIN`] for making the value, whichever setting it is.
//! The page has the medians over the rounds, slice by slice. It is a measurement, and no test.

#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people, which is to stop where it does not know on"
)]

mod cgroup;
mod load;
mod page;
mod table;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is compared. `without` comes twice.
pub const SETTINGS: [&str; 6] =
    ["optimizer", "without", "without again", "aggressive", "balanced", "conservative"];

/// What was asked for.
struct Asked {
    rounds: usize,
    slices: usize,
    out: PathBuf,
    dir: PathBuf,
}

fn asked(args: &[String]) -> Result<Asked, String> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let mut asked =
        Asked { rounds: 5, slices: 12, out: target.join("optimizer.html"), dir: target.join("phases") };
    let mut args = args.iter().filter(|a| *a != "--bench");
    while let Some(name) = args.next() {
        let value = args.next().ok_or(format!("{name} wants a value"))?;
        let number = || value.parse::<usize>().map_err(|_| format!("{name} {value}: give a number"));
        match name.as_str() {
            "--rounds" => asked.rounds = number()?,
            "--slices" => asked.slices = number()?,
            "--out" => asked.out = value.into(),
            "--dir" => asked.dir = value.into(),
            _ => return Err(format!("{name}: what there is are --rounds, --slices, --out and --dir")),
        }
    }
    if asked.rounds == 0 || asked.slices == 0 {
        return Err("at least one round and one slice for each phase".to_owned());
    }
    Ok(asked)
}

/// A slice of one run: the same requests in each setting.
#[derive(Debug, Clone, Default)]
pub struct Slice {
    /// Which of [`load::PHASES`].
    pub phase: usize,
    /// Requests of it.
    pub requests: u64,
    /// Of these, those that found the value.
    pub hits: u64,
    /// Seconds that it took.
    pub took: f64,
    /// Nanoseconds in the mean, what is charged for misses included.
    pub mean: f64,
    /// Nanoseconds that 99 of 100 took at most, likewise.
    pub p99: f64,
    /// Bytes of anonymous memory of the process.
    pub memory: u64,
    /// The strategy in force.
    pub strategy: String,
}

/// One run of one setting.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Its slices, all phases in turn.
    pub slices: Vec<Slice>,
    /// What the optimizer did, and why.
    pub decisions: Vec<String>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.first().map(String::as_str) {
        Some("--child") => child(&args),
        Some("--hog") => hog(&args),
        _ => asked(&args).and_then(|asked| compare(&asked)),
    };
    if let Err(why) = done {
        eprintln!("phases: {why}");
        std::process::exit(1);
    }
}

fn child(args: &[String]) -> Result<(), String> {
    let (Some(setting), Some(slices), Some(dir)) = (args.get(1), args.get(2), args.get(3)) else {
        return Err("--child SETTING SLICES DIRECTORY".to_owned());
    };
    let slices = slices.parse().map_err(|_| "a number of slices".to_owned())?;
    load::run(setting, slices, Path::new(dir)).map_err(|e| e.to_string())
}

/// Takes so many MiB, and touches them again and again until it is ended, or whoever started it is gone.
fn hog(args: &[String]) -> Result<(), String> {
    let mib: usize = args.get(1).and_then(|n| n.parse().ok()).ok_or("--hog MIB")?;
    let parent = std::os::unix::process::parent_id();
    let mut held = vec![1u8; mib << 20];
    while std::os::unix::process::parent_id() == parent {
        for byte in held.iter_mut().step_by(4096) {
            *byte = byte.wrapping_add(1);
        }
        std::hint::black_box(&mut held);
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Ok(())
}

fn compare(asked: &Asked) -> Result<(), String> {
    let limit = cgroup::Limit::make(load::LIMIT_MIB << 20);
    match &limit {
        Some(_) => println!("store and hog within {} MiB (a memory cgroup)", load::LIMIT_MIB),
        None => println!("no memory cgroup can be made here: the limit is the machine's memory"),
    }
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); SETTINGS.len()];
    for round in 0..asked.rounds {
        // Each round begins with another one, so that none is always first.
        for at in 0..SETTINGS.len() {
            let setting = (at + round) % SETTINGS.len();
            let run = one(asked, SETTINGS[setting], limit.as_ref())?;
            let took = |phase| run.slices.iter().filter(|s| s.phase == phase).map(|s| s.took).sum::<f64>();
            let phases: Vec<String> = (0..load::PHASES.len()).map(|p| format!("{:.1}", took(p))).collect();
            println!("round {}, {}: {} s", round + 1, SETTINGS[setting], phases.join(" + "));
            runs[setting].push(run);
        }
    }
    print!("{}", table::text(&runs));
    std::fs::write(&asked.out, page::html(&runs))
        .map_err(|e| format!("write {}: {e}", asked.out.display()))?;
    println!("page: {}", asked.out.display());
    Ok(())
}

/// Runs one setting in a process of its own.
fn one(asked: &Asked, setting: &str, limit: Option<&cgroup::Limit>) -> Result<Run, String> {
    let _ = std::fs::remove_dir_all(&asked.dir);
    std::fs::create_dir_all(&asked.dir).map_err(|e| format!("create {}: {e}", asked.dir.display()))?;
    let me = std::env::current_exe().map_err(|e| format!("find this program: {e}"))?;
    let mut command = Command::new(me);
    command.arg("--child").arg(setting).arg(asked.slices.to_string()).arg(&asked.dir);
    if let Some(limit) = limit {
        command.env(cgroup::VARIABLE, limit.procs());
    }
    let out = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("start a process for {setting}: {e}"))?;
    let _ = std::fs::remove_dir_all(&asked.dir);
    if !out.status.success() {
        return Err(format!(
            "the run of {setting} ended with {} (killed: for want of memory, perhaps)",
            out.status
        ));
    }
    let mut run = Run::default();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        load::parse(line, &mut run)?;
    }
    Ok(run)
}
