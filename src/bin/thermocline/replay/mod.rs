//! `replay`: the engine under a recorded sequence of requests, beside LRU and the optimum.

mod models;
mod report;
mod setup;
mod trace;

use crate::failure::{Failure, INTERRUPTED, NOT_FOUND, OK, Outcome, check_dir};
use crate::interrupt::{WorkDir, stopped, watch};
use crate::options::{size, wrong};
use crate::random::Random;
use crate::show;
use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use report::{Models, Report};
use serde_json::json;
use std::hash::{DefaultHasher, Hasher};
use std::path::PathBuf;
use std::time::Instant;
use thermocline::{Cache, ContentType, PutOptions};
use trace::{Format, Trace};

/// Bytes of a value where neither the trace nor an option says them.
const VALUE_SIZE: u32 = 64;
/// Requests between two looks at the clock and at the signals.
const STRIDE: usize = 1024;

/// How it is called: clap knows no "one of these, or the file that was named before the subcommand".
pub const USAGE: &str =
    "thermocline replay [OPTIONS] <TRACE>... --memory-items <N> | --memory <SIZE> | --config <FILE>";

/// The options of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Traces, replayed one after the other; gzip is found out by itself; - is the standard input
    #[arg(value_name = "TRACE")]
    traces: Vec<PathBuf>,
    /// How to read them [default: found out from the first line]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// Configuration in TOML; options override it. Its tiers on disk get fresh directories under --dir
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Most items in memory; alone, memory is made large enough for them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    memory_items: Option<u64>,
    /// Bytes of memory: values, keys and overhead (at least 1 MiB)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// Add an SSD tier of this size (at least 4 MiB)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    ssd: Option<u64>,
    /// Add an HDD tier of this size (at least 2 MiB)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    hdd: Option<u64>,
    /// Add a cold tier of this size (at least 2 MiB)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    cold: Option<u64>,
    /// Bytes of every value, whatever the trace says [default: as the trace says, or 64]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    value_size: Option<u64>,
    /// Only the first N requests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Where the directories of disk tiers are made, and removed afterwards
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// Make disk tiers on a RAM file system, too
    #[arg(long)]
    allow_ram_disk: bool,
}

/// What the engine did.
#[derive(Debug, Default)]
struct Done {
    requests: u64,
    request_bytes: u64,
    /// Hits by tier.
    hits: [u64; 4],
    hit_bytes: u64,
    wrong: u64,
    too_large: u64,
    seconds: f64,
    interrupted: bool,
}

/// Replays.
pub fn run(args: &ReplayArgs, json: bool) -> Outcome {
    watch("without results")?;
    // What can be refused without the trace is: reading one may take minutes.
    let mut config = setup::config(args)?;
    if config.has_disk() {
        check_dir(&args.dir)?;
        setup::refuse_ram(args)?;
    }
    let (mut trace, format) = read(args)?;
    if stopped() {
        return interrupted_reading(&trace, json);
    }
    if let Some(size) = args.value_size {
        let size = u32::try_from(size).map_err(|_| Failure::usage("--value-size: at most 4 GiB"))?;
        trace.sizes.clear();
        trace.sizes.resize(trace.requests.len(), size);
    }
    setup::make_room(args, &trace, &mut config);
    config.validate().map_err(|e| wrong(e, &setup::typed(args)))?;
    let mut work = None;
    if config.has_disk() {
        let dir = WorkDir::new_in(&args.dir, "replay")?;
        setup::place(&mut config, dir.path());
        work = Some(dir);
    }
    let max_value = config.max_value_size();
    let cache = Cache::open(config.clone())?;
    let done = drive(&cache, &trace, max_value)?;
    cache.close()?;
    drop(work);
    let spinner = show::spinner("computing LRU and the bound");
    let models = Models::of(args, &config, &trace, done.requests);
    spinner.finish_and_clear();
    let report = Report { args, format, trace: &trace, config: &config, done: &done, models: &models };
    if json {
        show::json(&report.json())?;
    } else {
        show::text(&report.text())?;
    }
    Ok(match &done {
        Done { wrong: 1.., .. } => NOT_FOUND,
        Done { interrupted: true, .. } => INTERRUPTED,
        _ => OK,
    })
}

/// All traces, one behind the other.
fn read(args: &ReplayArgs) -> Result<(Trace, Format), Failure> {
    let limit = args.limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let spinner = show::spinner("reading the trace");
    let mut trace = Trace::default();
    let mut format = Format::Keys;
    for path in &args.traces {
        format = trace.read(path, args.format, limit, &|n| {
            spinner.set_message(format!("reading the trace: {} requests", show::count(n)));
        })?;
    }
    spinner.finish_and_clear();
    Ok((trace, format))
}

/// Says how far the reading had come: there is nothing else yet.
fn interrupted_reading(trace: &Trace, json: bool) -> Outcome {
    let read = trace.requests.len() as u64;
    if json {
        show::json(&json!({ "interrupted": true, "requests_read": read, "requests": 0 }))?;
    } else {
        let read = show::things(read, "request");
        show::text(&format!("Interrupted while the trace was read: {read} so far, none replayed.\n"))?;
    }
    Ok(INTERRUPTED)
}

fn size_at(trace: &Trace, at: usize) -> u32 {
    trace.sizes.get(at).copied().unwrap_or(VALUE_SIZE)
}

/// Get, and on a miss put.
fn drive(cache: &Cache, trace: &Trace, max_value: u64) -> Result<Done, Failure> {
    let bar = bar(trace.requests.len() as u64);
    let mut done = Done::default();
    let mut put_size: Vec<u32> = vec![0; trace.keys.len()];
    let options = PutOptions::new().content_type(ContentType::Binary);
    let mut value = Vec::new();
    let start = Instant::now();
    for (at, item) in trace.requests.iter().enumerate() {
        if at % STRIDE == 0 {
            bar.set_position(at as u64);
            if stopped() {
                done.interrupted = true;
                break;
            }
        }
        let Some(key) = trace.keys.get(*item as usize) else { continue };
        let size = size_at(trace, at);
        done.requests += 1;
        done.request_bytes += u64::from(size);
        if let Some(entry) = cache.get_entry(key)? {
            if let Some(hits) = done.hits.get_mut(entry.tier as usize) {
                *hits += 1;
            }
            done.hit_bytes += u64::from(size);
            make(key, put_size.get(*item as usize).copied().unwrap_or(0), &mut value);
            done.wrong += u64::from(entry.value != value);
        } else if u64::from(size) > max_value {
            done.too_large += 1;
        } else {
            make(key, size, &mut value);
            cache.put_with(key, Bytes::copy_from_slice(&value), options)?;
            if let Some(slot) = put_size.get_mut(*item as usize) {
                *slot = size;
            }
        }
    }
    done.seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    Ok(done)
}

/// The value of a key: bytes without a pattern, from a hash of the key and the size.
fn make(key: &[u8], size: u32, out: &mut Vec<u8>) {
    let mut hash = DefaultHasher::new();
    hash.write(key);
    hash.write_u32(size);
    out.clear();
    Random::new(hash.finish()).fill(out, size as usize);
}

fn bar(len: u64) -> ProgressBar {
    let bar = ProgressBar::new(len);
    let template = "replaying  {wide_bar} {human_pos}/{human_len}  {rate}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        // indicatif's own has four decimals.
        bar.set_style(style.with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{}/s", show::count(state.per_sec() as u64));
        }));
    }
    bar
}
