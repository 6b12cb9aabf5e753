//! The command `thermocline`: a benchmark of the engine on one's own disks, a replay of access traces, and the tools
//! to look into a store.
//!
//! | module | job |
//! |---|---|
//! | `log` | what the engine says, in a file |
//! | `options` | which store: options and file to a configuration |
//! | `dirs` | the directories that were named against those of the store |
//! | `elsewhere` | a store that another process has open |
//! | `items` | get, put, rm, ls |
//! | `inspect` | stat, config |
//! | `verify` | verify |
//! | `serve` | serve-metrics |
//! | `top` | a store, live |
//! | `bench` | the benchmark |
//! | `replay` | the replay of traces |
//! | `stack` | LRU at every size at once |
//! | `random`, `values` | deterministic load |
//! | `device` | what a directory stands on |
//! | `interrupt` | signals, and directories that must go |
//! | `failure`, `show` | errors, exit codes, numbers and tables |

mod bench;
mod device;
mod dirs;
mod elsewhere;
mod failure;
mod history;
mod inspect;
mod interrupt;
mod items;
mod log;
mod options;
mod random;
mod replay;
mod serve;
mod show;
mod stack;
mod top;
mod values;
mod verify;

use clap::{CommandFactory, Parser, Subcommand};
use failure::{EXIT_CODES, OK, Outcome};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A four-tier cache store: memory, SSD, HDD and a cold archive.
#[derive(Debug, Parser)]
#[command(name = "thermocline", version, about, after_help = EXIT_CODES, propagate_version = true, max_term_width = 110)]
struct Cli {
    /// Print for programs, as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Configuration in TOML; options override it
    // The subcommands that use it have their own of this name, which gets the value wherever it is given.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write a log to FILE; by default that of the configuration, or none
    #[arg(long, global = true, value_name = "FILE")]
    log: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure all four tiers, on this machine's disks or yours
    ///
    /// Without options it makes its directories under /var/tmp, sizes the tiers so that every one is used, runs for
    /// about a minute and removes what it made. No store is touched: a directory that is named gets a fresh
    /// subdirectory, and only that is removed.
    #[command(after_help = EXIT_CODES)]
    Bench(Box<bench::BenchArgs>),
    /// Replay access traces and compare hit ratios with LRU and the optimum
    ///
    /// Runs the engine itself: a get for each request and, on a miss, a put of a value of the item's size; each hit
    /// is compared byte for byte. Traces may be gzipped.
    #[command(after_help = EXIT_CODES, override_usage = replay::USAGE)]
    Replay(Box<replay::ReplayArgs>),
    /// Write one value to stdout, byte for byte
    #[command(after_help = EXIT_CODES)]
    Get(items::GetArgs),
    /// Put one value, from a file or stdin
    ///
    /// When it returns, the value is on stable storage, whatever --persistence says. The store must be there, unless
    /// --create is given.
    #[command(after_help = EXIT_CODES)]
    Put(items::PutArgs),
    /// Remove keys, or all keys of a prefix
    #[command(after_help = EXIT_CODES, override_usage = items::RM_USAGE)]
    Rm(items::RmArgs),
    /// List keys, in no order
    ///
    /// What is no printable UTF-8 in a key is shown as \xNN, and \ as \\. Listing counts as no use of an item.
    #[command(after_help = EXIT_CODES)]
    Ls(items::LsArgs),
    /// Show what each tier holds
    #[command(after_help = EXIT_CODES)]
    Stat(inspect::StatArgs),
    /// Show a store that is open, live: tiers, hits, latencies, migration, compression, decisions
    ///
    /// Asks the program that has the store open, over the socket in the store's directory, and changes nothing; or, with
    /// --redis, a server that the store reports to. Keys: q quits, p holds the picture still, Ctrl-Z stops.
    #[command(after_help = EXIT_CODES)]
    Top(top::TopArgs),
    /// Show what the optimizer of a store that is open did, why, and what came of it
    ///
    /// Asks the program that has the store open, over the socket in the store's directory, and changes nothing.
    #[command(after_help = EXIT_CODES)]
    History(history::HistoryArgs),
    /// Read and check everything, and change nothing
    ///
    /// Names each damaged file, what of it is damaged, and which items are lost. With --repair what can be mended is
    /// mended, and the rest goes to the quarantine.
    #[command(after_help = verify::EXIT_CODES, mut_arg("discard_missing", |a| a.hide(true)))]
    Verify(verify::VerifyArgs),
    /// Serve the metrics of a store to Prometheus, until a signal
    ///
    /// Opens the store, which no other process can then use, and answers GET /metrics on ADDR in Prometheus's text format.
    /// A program that has a store open serves its metrics itself: `Cache::prometheus`. Neither keys nor values are in
    /// them; the paths of the store's directories are. There is no password and no encryption.
    #[command(after_help = EXIT_CODES)]
    ServeMetrics(serve::ServeArgs),
    /// Show or check a configuration
    #[command(subcommand, after_help = EXIT_CODES)]
    Config(inspect::ConfigCommand),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    // Before any thread is started. Where it does nothing, nothing is lost but memory.
    thermocline::allocator::give_back();
    let cli = Cli::parse();
    // Dropped when all is said.
    let _log = match start_log(cli.config.as_deref(), cli.log) {
        Ok(log) => log,
        Err(failure) => return failure.report(),
    };
    // Not what it was asked for: a key may be in that.
    tracing::info!(target: LOG, version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "begins");
    let (code, exit) = match run(cli.command, cli.json) {
        Ok(code) => (code, ExitCode::from(code)),
        Err(failure) => {
            tracing::debug!(target: LOG, error = %failure.message, "failed");
            (failure.code, failure.report())
        }
    };
    tracing::info!(target: LOG, code, "ends");
    exit
}

/// What the log calls the command.
const LOG: &str = "thermocline::command";

/// The log that the configuration names, or the option. A configuration that cannot be used is what the subcommand reports.
fn start_log(config: Option<&Path>, file: Option<PathBuf>) -> Result<log::Log, failure::Failure> {
    let config = config.and_then(|file| thermocline::Config::from_file(file).ok()).unwrap_or_default();
    let mut log = config.log;
    log.file = file.or(log.file);
    log::start(&log)
}

fn run(command: Command, json: bool) -> Outcome {
    match command {
        Command::Bench(args) => bench::run(&args, json),
        Command::Replay(args) => replay::run(&args, json),
        Command::Get(args) => items::get(args, json),
        Command::Put(args) => items::put(args, json),
        Command::Rm(args) => items::rm(args, json),
        Command::Ls(args) => items::ls(args, json),
        Command::Stat(args) => inspect::stat(&args, json),
        Command::Top(args) => top::top(&args, json),
        Command::History(args) => history::history(&args, json),
        Command::Verify(args) => verify::verify(&args, json),
        Command::ServeMetrics(args) => serve::serve(&args, json),
        Command::Config(command) => inspect::config(&command, json),
        Command::Completions { shell } => {
            // Into memory first: the generator panics if it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "thermocline", &mut script);
            io::stdout().lock().write_all(&script)?;
            Ok(OK)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
