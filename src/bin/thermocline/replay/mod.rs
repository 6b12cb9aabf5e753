//! `replay`: the engine under a recorded sequence of requests, beside LRU and the optimum.

mod models;
mod trace;

use crate::device::Device;
use crate::failure::{Failure, INTERRUPTED, NOT_FOUND, OK, Outcome};
use crate::interrupt::{WorkDir, stopped, watch};
use crate::options::size;
use crate::random::Random;
use crate::show;
use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher};
use std::path::PathBuf;
use std::time::Instant;
use thermocline::{Cache, Config, ContentType, PutOptions, Tier};
use trace::{Format, Trace};

const MIB: u64 = 1 << 20;
/// Bytes of a value where neither the trace nor an option says them.
const VALUE_SIZE: u32 = 64;
/// What an item takes in memory beyond key and value, at most, for making memory large enough for a number of items.
const ROOM: u64 = 256;
/// Requests between two looks at the clock and at the signals.
const STRIDE: usize = 1024;

/// The options of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Traces, replayed one after the other; gzip is found out by itself
    #[arg(value_name = "TRACE", required = true)]
    traces: Vec<PathBuf>,
    /// How to read them [default: found out from the first line]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// Configuration in TOML; options override it, and its directories are not used
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
    watch()?;
    let limit = args.limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let mut trace = Trace::default();
    let mut format = Format::Keys;
    for path in &args.traces {
        format = trace.read(path, args.format, limit)?;
    }
    if stopped() {
        return Ok(INTERRUPTED);
    }
    if let Some(size) = args.value_size {
        let size = u32::try_from(size).map_err(|_| Failure::usage("--value-size: at most 4 GiB"))?;
        trace.sizes.clear();
        trace.sizes.resize(trace.requests.len(), size);
    }
    let disks = [args.ssd, args.hdd, args.cold].iter().any(Option::is_some);
    let work = if disks {
        refuse_ram(args)?;
        Some(WorkDir::new_in(&args.dir, "replay")?)
    } else {
        None
    };
    let config = config(args, &trace, work.as_ref())?;
    let max_value = config.max_value_size();
    let cache = Cache::open(config.clone())?;
    let done = drive(&cache, &trace, max_value)?;
    cache.close()?;
    drop(work);
    let models = Models::of(args, &config, &trace, done.requests);
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

fn refuse_ram(args: &ReplayArgs) -> Result<(), Failure> {
    let device = Device::of(&args.dir);
    if device.is_ram() && !args.allow_ram_disk {
        return Err(Failure::usage(format!(
            "{}: a RAM file system ({}) is no disk: name a directory on one with --dir, or say --allow-ram-disk",
            args.dir.display(),
            device.file_system.unwrap_or_default()
        )));
    }
    Ok(())
}

/// The configuration: what a tier holds decides the sizes of its containers, so that small tiers work as large ones.
fn config(args: &ReplayArgs, trace: &Trace, work: Option<&WorkDir>) -> Result<Config, Failure> {
    let mut config = match &args.config {
        Some(file) => Config::from_file(file).map_err(|e| Failure::usage(e.to_string()))?,
        None => Config::default(),
    };
    config.ssd.dirs.clear();
    config.hdd.dirs.clear();
    config.cold.dirs.clear();
    config.storage.catalog = None;
    if args.memory_items.is_none() && args.memory.is_none() && args.config.is_none() {
        return Err(Failure::usage("how much memory? Give --memory-items N or --memory SIZE"));
    }
    config.memory.item_limit = args.memory_items.unwrap_or(1 << 40);
    config.memory.max_size = match (args.memory, args.memory_items) {
        (Some(bytes), _) => bytes,
        (None, Some(items)) => room_for(items, trace),
        (None, None) => config.memory.max_size,
    };
    for (name, size, least) in [
        ("--memory", Some(config.memory.max_size), MIB),
        ("--ssd", args.ssd, 4 * MIB),
        ("--hdd", args.hdd, 2 * MIB),
        ("--cold", args.cold, 2 * MIB),
    ] {
        if size.is_some_and(|s| s < least) {
            let (size, least) = (show::bytes(size.unwrap_or(0)), show::bytes(least));
            return Err(Failure::usage(format!("{name}: {size} is too small, the least is {least}")));
        }
    }
    if let Some(work) = work {
        // A sixteenth of the tier, a power of two, not below what the engine can do.
        let part = |size: u64, most: u64| Some(1u64 << (size / 16).clamp(MIB, most).ilog2());
        if let Some(size) = args.ssd {
            config.add_ssd(work.path().join("ssd"), size);
            config.ssd.item_limit = 1 << 40;
            config.storage.segment_size = part(size, 64 * MIB);
        }
        if let Some(size) = args.hdd {
            config.add_hdd(work.path().join("hdd"), size);
            config.storage.generation_size = part(size, 1 << 30);
        }
        if let Some(size) = args.cold {
            config.add_cold(work.path().join("cold"));
            config.cold.limit = Some(size);
            config.storage.pack_size = part(size, 256 * MIB);
        }
        // What waits to be written is served from RAM: it must not be most of a small store.
        let smallest = [args.ssd, args.hdd, args.cold].into_iter().flatten().min().unwrap_or(64 * MIB);
        config.storage.write_buffer = (smallest / 8).clamp(MIB, 64 * MIB);
    }
    config.validate().map_err(|e| Failure::usage(e.to_string()))?;
    Ok(config)
}

/// Memory that so many items of the trace cannot fill, whichever they are.
fn room_for(items: u64, trace: &Trace) -> u64 {
    let key = trace.keys.iter().map(|k| k.len()).max().unwrap_or(0) as u64;
    let value = u64::from(trace.sizes.iter().max().copied().unwrap_or(VALUE_SIZE));
    // Twice: keys fall unevenly into the parts of the memory tier.
    items.saturating_mul(key + value + ROOM).saturating_mul(2).clamp(64 * MIB, 1 << 50)
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
    let template = "replaying  {wide_bar} {human_pos}/{human_len}  {per_sec}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// What is compared with.
#[derive(Debug)]
struct Models {
    /// In items, or in bytes of keys and values.
    by_items: Option<u64>,
    capacity: u64,
    lru: models::Hits,
    /// Of the optimum, or of a cache without limit.
    bound: models::Hits,
}

impl Models {
    fn of(args: &ReplayArgs, config: &Config, trace: &Trace, requests: u64) -> Models {
        let requests = trace.requests.get(..requests as usize).unwrap_or(&trace.requests);
        let items = trace.keys.len();
        let size = |at: usize| u64::from(size_at(trace, at));
        if args.memory.is_none()
            && let Some(capacity) = args.memory_items
        {
            let lru = models::lru(requests, items, capacity, |_| 1, size);
            let bound = models::Hits { requests: models::optimum(requests, items, capacity), bytes: 0 };
            return Models { by_items: Some(capacity), capacity, lru, bound };
        }
        let key = |at: usize| {
            requests.get(at).and_then(|item| trace.keys.get(*item as usize)).map_or(0, |k| k.len() as u64)
        };
        let capacity = config.memory.max_size;
        let lru = models::lru(requests, items, capacity, |at| size(at) + key(at), size);
        let mut seen = vec![false; items];
        let mut bound = models::Hits::default();
        for (at, item) in requests.iter().enumerate() {
            if let Some(seen) = seen.get_mut(*item as usize)
                && std::mem::replace(seen, true)
            {
                bound.requests += 1;
                bound.bytes += size(at);
            }
        }
        Models { by_items: None, capacity, lru, bound }
    }
}

fn note(out: &mut String, text: &str) {
    let _ = writeln!(out, "  {}", show::wrap(text));
}

/// What is printed.
struct Report<'r> {
    args: &'r ReplayArgs,
    format: Format,
    trace: &'r Trace,
    config: &'r Config,
    done: &'r Done,
    models: &'r Models,
}

impl Report<'_> {
    fn hits(&self) -> u64 {
        self.done.hits.iter().sum()
    }

    fn share(&self, hits: u64) -> String {
        show::ratio(hits as f64 / self.done.requests.max(1) as f64)
    }

    fn byte_share(&self, bytes: u64) -> String {
        show::ratio(bytes as f64 / self.done.request_bytes.max(1) as f64)
    }

    /// Sizes that mean something: the trace's own, or more than one.
    fn has_sizes(&self) -> bool {
        !self.trace.sizes.is_empty() && self.args.value_size.is_none()
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let names: Vec<String> = self.args.traces.iter().map(|p| p.display().to_string()).collect();
        let _ = writeln!(out, "{} ({})", names.join(", "), self.format.name());
        let done = self.done;
        let _ = write!(
            out,
            "{} requests, {} distinct keys",
            show::count(done.requests),
            show::count(self.trace.keys.len() as u64)
        );
        if self.has_sizes() {
            let _ = write!(out, ", {} asked for", show::bytes(done.request_bytes));
        }
        let per_second = done.requests as f64 / done.seconds.max(1e-9);
        let _ = writeln!(out, "; {:.1} s, {}\n", done.seconds, show::rate(per_second));
        if done.interrupted {
            let _ = writeln!(out, "Interrupted: what follows holds for the requests so far.\n");
        }
        out.push_str(&self.table());
        let _ = writeln!(out);
        self.notes(&mut out);
        out
    }

    fn table(&self) -> String {
        let sized = self.has_sizes();
        let mut rows = Vec::new();
        let mut row = |name: String, size: String, hits: u64, bytes: Option<u64>| {
            let mut cells = vec![name, size, show::count(hits), self.share(hits)];
            if sized {
                cells.push(bytes.map_or("–".into(), |b| self.byte_share(b)));
            }
            rows.push(cells);
        };
        let memory = match self.models.by_items {
            Some(n) => format!("{} items", show::count(n)),
            None => show::bytes(self.models.capacity),
        };
        let tiers: Vec<(Tier, Option<u64>)> =
            [(Tier::Ssd, self.args.ssd), (Tier::Hdd, self.args.hdd), (Tier::Cold, self.args.cold)]
                .into_iter()
                .filter(|(_, size)| size.is_some())
                .collect();
        if tiers.is_empty() {
            row("thermocline".into(), memory.clone(), self.hits(), Some(self.done.hit_bytes));
        } else {
            let of = |tier: Tier| self.done.hits.get(tier as usize).copied().unwrap_or(0);
            row("thermocline: memory".into(), memory.clone(), of(Tier::Memory), None);
            for (tier, size) in tiers {
                row(format!("             {tier}"), show::bytes(size.unwrap_or(0)), of(tier), None);
            }
            row("             all tiers".into(), String::new(), self.hits(), Some(self.done.hit_bytes));
        }
        row("LRU".into(), memory.clone(), self.models.lru.requests, Some(self.models.lru.bytes));
        match self.models.by_items {
            Some(_) => row("optimum (Belady)".into(), memory, self.models.bound.requests, None),
            None => row(
                "no limit (bound)".into(),
                "∞".into(),
                self.models.bound.requests,
                Some(self.models.bound.bytes),
            ),
        }
        let mut header = vec!["", "size", "hits", "hit ratio"];
        if sized {
            header.push("byte hit ratio");
        }
        show::table(1, &header, rows)
    }

    fn notes(&self, out: &mut String) {
        if self.models.by_items.is_some() {
            note(
                out,
                "LRU and the optimum hold as many items as memory does. The optimum knows the future (Belady, 1966): \
                 nothing of that size hits more.",
            );
        } else {
            note(
                out,
                "LRU holds as many bytes of keys and values as memory has; thermocline's overhead counts against it. \
                 The bound is a cache without limit, which misses only what is asked for the first time: no smaller \
                 one can hit more. (The optimum for items of different sizes is NP-hard.)",
            );
        }
        if self.config.has_disk() {
            note(out, "Hits in memory include those in the write buffer.");
        }
        let wrong = self.done.wrong;
        match wrong {
            0 => note(out, "Every hit was compared byte for byte: all right."),
            n => note(out, &format!("WRONG VALUES: {} hits were not what was put.", show::count(n))),
        }
        if self.done.too_large > 0 {
            let (count, most) = (show::count(self.done.too_large), show::bytes(self.config.max_value_size()));
            note(
                out,
                &format!("{count} misses were larger than a value may be here ({most}) and were not put."),
            );
        }
    }

    fn json(&self) -> Value {
        let done = self.done;
        let share = |hits: u64| hits as f64 / done.requests.max(1) as f64;
        let tiers: serde_json::Map<String, Value> = Tier::ALL
            .into_iter()
            .zip(done.hits)
            .map(|(t, hits)| (t.name().to_owned(), json!({ "hits": hits, "hit_ratio": share(hits) })))
            .collect();
        let (kind, unit) = match self.models.by_items {
            Some(_) => ("optimum", "items"),
            None => ("no_limit", "bytes"),
        };
        json!({
            "traces": self.args.traces.iter().map(|p| p.to_string_lossy()).collect::<Vec<_>>(),
            "format": self.format.name(),
            "requests": done.requests,
            "distinct_keys": self.trace.keys.len(),
            "request_bytes": self.has_sizes().then_some(done.request_bytes),
            "seconds": done.seconds,
            "interrupted": done.interrupted,
            "wrong_values": done.wrong,
            "too_large": done.too_large,
            "hits": self.hits(),
            "hit_ratio": share(self.hits()),
            "byte_hit_ratio": self.has_sizes().then(|| done.hit_bytes as f64 / done.request_bytes.max(1) as f64),
            "tiers": tiers,
            "memory": { "capacity": self.models.capacity, "unit": unit },
            "lru": { "hits": self.models.lru.requests, "hit_ratio": share(self.models.lru.requests) },
            "bound": { "kind": kind, "hits": self.models.bound.requests, "hit_ratio": share(self.models.bound.requests) },
        })
    }
}
