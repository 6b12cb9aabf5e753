//! The most memory that a store takes under eight threads that ask for far more than it may hold, beside its bound:
//! the sum of the configured limits and of the catalog, 20 % of that, and 32 MiB.
//!
//! `cargo bench --bench memory` runs each load in a process of its own for ten seconds, prints a table, and fails if a
//! load whose process calls [`thermocline::allocator::give_back`] took more than its bound. The last rows are of
//! processes that leave glibc's allocator as it is: what it keeps of freed memory comes on top, and is not judged.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints what it found")]

mod load;

use load::{Load, MIB, SMALL};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use thermocline::Persistence;

const CHILD: &str = "THERMOCLINE_MEMORY_BENCH_LOAD";
const TIME: Duration = Duration::from_secs(10);

fn loads() -> Vec<Load> {
    let usual = Load {
        name: "64 MiB of memory, else as it comes",
        memory: 64 * MIB,
        write_buffer: 64 * MIB,
        sled_cache: 32 * MIB,
        inflight: 256 * MIB,
        disk: 256 * MIB,
        ..SMALL
    };
    vec![
        SMALL,
        Load { name: "small limits, OnEviction", persistence: Persistence::OnEviction, ..SMALL },
        Load { name: "small limits, Always", persistence: Persistence::Always, ..SMALL },
        Load { name: "small limits, large packs", disk: 512 * MIB, pack: Some(64 * MIB), ..SMALL },
        usual,
        Load { name: "small limits, glibc as it is", gives_back: false, ..SMALL },
        Load { name: "64 MiB of memory, glibc as it is", gives_back: false, ..usual },
    ]
}

fn child(load: &Load) -> ExitCode {
    let done = tempfile::Builder::new()
        .prefix("thermocline-memory-")
        .tempdir_in("/var/tmp")
        .map_err(Into::into)
        .and_then(|dir| load.run(dir.path(), TIME));
    match done {
        Ok(t) => {
            let mib = |n: u64| n as f64 / MIB as f64;
            let within = t.most <= t.bound;
            let verdict = match (within, load.gives_back) {
                (true, _) => "within",
                (false, true) => "OVER",
                (false, false) => "over, the allocator's",
            };
            println!(
                "{:<36} {:>9.1} {:>9.1} {:>9.2} {:>9.0}  {verdict}",
                load.name,
                mib(t.most),
                mib(t.bound),
                mib(t.catalog),
                mib(t.put)
            );
            ExitCode::from(u8::from(!within && load.gives_back))
        }
        Err(e) => {
            eprintln!("{}: {e}", load.name);
            ExitCode::from(2)
        }
    }
}

fn main() -> ExitCode {
    let loads = loads();
    let chosen = std::env::var(CHILD).ok().and_then(|n| n.parse::<usize>().ok());
    if let Some(load) = chosen.and_then(|n| loads.get(n)) {
        return child(load);
    }
    println!("{:<36} {:>9} {:>9} {:>9} {:>9}", "MiB", "at most", "bound", "catalog", "put");
    let mut failed = false;
    for n in 0..loads.len() {
        let run = std::env::current_exe()
            .and_then(|me| Command::new(me).env(CHILD, n.to_string()).stdin(Stdio::null()).status());
        failed |= !run.is_ok_and(|status| status.success());
    }
    ExitCode::from(u8::from(failed))
}
