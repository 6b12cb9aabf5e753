//! `bench`: all four tiers under a load, on directories of its own.
//!
//! Phases: load, settle (migration), read (warm-up, then measured), compare, reopen, read with the page cache
//! dropped, verify. Each leaves its part in [`Findings`]; a signal ends the phase that runs and skips the rest, and
//! what was found so far is printed.

mod advice;
mod html;
mod items;
mod json;
mod phases;
mod plan;
mod text;

use crate::device::{Device, occupied};
use crate::failure::{Failure, INTERRUPTED, NOT_FOUND, OK, Outcome, PERMISSION};
use crate::interrupt::{stopped, watch};
use crate::options::size;
use crate::show;
use crate::top;
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use items::Items;
use plan::{Plan, TierArg, tier_arg};
use serde_json::json;
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;
use thermocline::{Cache, Stats, Tier, VerifyReport};

/// Fewer made-up bytes show nothing.
const LEAST_DATA: u64 = 1 << 20;

/// The options of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Configuration in TOML; options override it. Its directories get fresh subdirectories, its stores are not touched
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the directories of tiers without one of their own are made
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// Bytes of the memory tier [default: a sixteenth of the data]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// A directory that is there, on the SSD, in which the tier's is made, and its size; =SIZE alone keeps it in --dir
    #[arg(long, value_name = "DIR[=SIZE]", value_parser = tier_arg)]
    ssd: Option<TierArg>,
    /// The same of the HDD tier
    #[arg(long, value_name = "DIR[=SIZE]", value_parser = tier_arg)]
    hdd: Option<TierArg>,
    /// The same of the cold tier [default: unlimited]
    #[arg(long, value_name = "DIR[=SIZE]", value_parser = tier_arg)]
    cold: Option<TierArg>,
    /// Use the files below a directory as items instead of made-up values
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
    /// Of the files, at most so many bytes
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "256MiB")]
    limit_bytes: u64,
    /// Of the files, at most so many
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    limit_files: u64,
    /// Bytes of made-up values
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "256MiB", conflicts_with = "files")]
    data: u64,
    /// Seconds of measured reading
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Exponent of the Zipf distribution of the reads
    #[arg(long, value_name = "S", default_value_t = 0.99, value_parser = skew)]
    skew: f64,
    /// Seed of values and reads
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Compare every byte of every item with what was put, and again after a reopen [default with --files]
    #[arg(long)]
    verify: bool,
    /// Do not compare, with --files
    #[arg(long, conflicts_with = "verify")]
    no_verify: bool,
    /// Also write a page with tables and plots
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Show the store live while it is measured: q ends the picture, Ctrl-C the benchmark
    #[arg(long)]
    top: bool,
    /// Put disk tiers on a RAM file system, too
    #[arg(long)]
    allow_ram_disk: bool,
}

fn skew(text: &str) -> Result<f64, String> {
    let s = text.parse::<f64>().ok().filter(|s| *s > 0.0 && *s <= 5.0);
    s.ok_or_else(|| "a number over 0 and at most 5".into())
}

/// Latencies in nanoseconds, to three digits.
#[derive(Debug, Clone)]
pub(crate) struct Latency(Histogram<u64>);

impl Latency {
    /// None yet. An hour is the most that is told apart.
    fn new() -> Result<Latency, Failure> {
        let histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, 3);
        histogram.map(Latency).map_err(|e| Failure::failed(format!("make a histogram: {e}")))
    }

    fn record(&mut self, t: Duration) {
        self.0.saturating_record(u64::try_from(t.as_nanos()).unwrap_or(u64::MAX));
    }

    fn count(&self) -> u64 {
        self.0.len()
    }

    fn mean(&self) -> f64 {
        self.0.mean()
    }

    fn at(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64
    }

    fn max(&self) -> f64 {
        self.0.max() as f64
    }
}

/// Reads by the tier that answered.
#[derive(Debug)]
pub(crate) struct Reads {
    tiers: Vec<(Tier, Latency)>,
    missing: u64,
    /// The keys that were missing.
    missing_keys: HashSet<Bytes>,
    seconds: f64,
}

impl Reads {
    fn new() -> Result<Reads, Failure> {
        let tiers =
            Tier::ALL.into_iter().map(|t| Ok((t, Latency::new()?))).collect::<Result<_, Failure>>()?;
        Ok(Reads { tiers, missing: 0, missing_keys: HashSet::new(), seconds: 0.0 })
    }

    fn of(&self, tier: Tier) -> Option<&Latency> {
        self.tiers.iter().find(|(t, l)| *t == tier && l.count() > 0).map(|(_, l)| l)
    }

    fn answered(&self) -> u64 {
        self.tiers.iter().map(|(_, l)| l.count()).sum()
    }

    fn total(&self) -> u64 {
        self.answered() + self.missing
    }

    /// Mean latency of what was answered, in nanoseconds.
    fn mean(&self) -> f64 {
        let sum: f64 = self.tiers.iter().map(|(_, l)| l.mean() * l.count() as f64).sum();
        sum / self.answered().max(1) as f64
    }
}

/// The load phase.
#[derive(Debug)]
pub(crate) struct Load {
    put: Latency,
    bytes: u64,
    /// In `put` itself, without making or reading the values.
    put_seconds: f64,
    flush_seconds: f64,
}

/// Waiting for migration.
#[derive(Debug)]
pub(crate) struct Settle {
    seconds: f64,
    /// Whether it came to rest before it was given up.
    at_rest: bool,
}

/// What the directories of a tier really occupy, by allocated blocks.
#[derive(Debug)]
pub(crate) struct OnDisk {
    what: &'static str,
    bytes: u64,
    /// What the engine says of it; `None`: of the catalog it says so elsewhere.
    said: Option<u64>,
    /// Whether blocks are what was written: a file system that compresses or shares them allocates less.
    plain: bool,
}

/// What directory and engine may be apart, beside the twentieth part: identities and locks, a directory's own blocks,
/// rounding of each file to a block, and what a file system sets aside behind a file that grows (XFS up to the file's
/// own size again, at most a generation's; ext4 nothing that lasts).
const APART: u64 = 8 << 20;

impl OnDisk {
    /// Whether the directories occupy something else than the engine says.
    fn is_off(&self) -> bool {
        let Some(said) = self.said else { return false };
        let apart = APART + said / 20;
        self.bytes > said + apart || (self.plain && self.bytes + apart < said)
    }
}

/// Closing and opening again.
#[derive(Debug)]
pub(crate) struct Reopen {
    close_seconds: f64,
    open_seconds: f64,
    /// With the store's files dropped from the page cache.
    cold_open_seconds: f64,
    reads: Reads,
}

/// Every byte of every item against what was put.
#[derive(Debug)]
pub(crate) struct Compared {
    when: &'static str,
    items: u64,
    bytes: u64,
    wrong: Vec<String>,
    wrong_count: u64,
    missing: u64,
    /// Files that are no longer what was put.
    changed: u64,
    seconds: f64,
}

/// The engine's own check.
#[derive(Debug)]
pub(crate) struct Verified {
    report: VerifyReport,
    seconds: f64,
}

/// What there is so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The phase that a signal ended.
    interrupted: Option<&'static str>,
    load: Option<Load>,
    settle: Option<Settle>,
    reads: Option<Reads>,
    stats: Option<Stats>,
    on_disk: Vec<OnDisk>,
    /// Whether a difference between that and what the engine says is a failure.
    sizes_judged: bool,
    reopen: Option<Reopen>,
    compared: Vec<Compared>,
    verified: Option<Verified>,
    advice: Option<advice::Advice>,
    /// Items that the engine let go of: evicted because every tier was full, or displaced by a key with the same
    /// identity.
    let_go: u64,
    /// Bytes of RAM that the page cache could have.
    available_ram: Option<u64>,
}

impl Findings {
    /// Items that were put and not found again, at most.
    fn missing(&self) -> u64 {
        let reads = self.reads.iter().chain(self.reopen.as_ref().map(|r| &r.reads));
        let read = reads.map(|r| r.missing_keys.len() as u64).max().unwrap_or(0);
        self.compared.iter().map(|c| c.missing).max().unwrap_or(0).max(read)
    }

    /// Keeps a comparison, if anything was compared.
    fn compare(&mut self, compared: Compared) {
        if compared.items + compared.missing > 0 {
            self.compared.push(compared);
        }
    }

    /// Whether more are missing than the engine let go of: those are lost.
    fn are_lost(&self) -> bool {
        self.missing() > self.let_go
    }

    /// What the engine says wrongly of its size on disk.
    fn off_sizes(&self) -> impl Iterator<Item = &OnDisk> {
        self.on_disk.iter().filter(|d| self.sizes_judged && d.is_off())
    }

    /// What the catalog's copies occupy.
    fn catalog_bytes(&self) -> u64 {
        self.on_disk.iter().filter(|d| d.what == "catalog").map(|d| d.bytes).sum()
    }

    fn is_wrong(&self) -> bool {
        self.are_lost()
            || self.off_sizes().next().is_some()
            || self.compared.iter().any(|c| c.wrong_count > 0)
            || self.verified.as_ref().is_some_and(|v| !v.report.is_clean())
    }
}

/// Items that this handle's engine let go of since it was opened.
fn let_go(cache: &Cache) -> u64 {
    let counts = cache.stats().counts;
    counts.evicted + counts.displaced
}

/// What every way of printing has.
pub(crate) struct Report<'r> {
    args: &'r BenchArgs,
    plan: &'r Plan,
    items: &'r Items,
    devices: &'r [(Tier, PathBuf, Device)],
    found: &'r Findings,
}

/// Runs it.
pub fn run(args: &BenchArgs, json: bool) -> Outcome {
    if args.files.is_none() && args.data < LEAST_DATA {
        let (data, least) = (show::bytes(args.data), show::bytes(LEAST_DATA));
        return Err(Failure::usage(format!("--data: {data} is too little, the least is {least}")));
    }
    if args.top {
        top::check_terminal("leave out --top")?;
    }
    watch("without results")?;
    if args.files.is_none() {
        plan::check(args, args.data)?;
    }
    let mut report_file = None;
    if let Some(path) = &args.report {
        // Now, not after a minute's work.
        report_file = Some(std::fs::File::create(path).map_err(|e| {
            let above = path.parent().filter(|above| !above.as_os_str().is_empty() && !above.exists());
            Failure::given("write", above.unwrap_or(path), &e)
        })?);
    }
    let spinner = show::spinner("looking for items");
    let mut items = match &args.files {
        Some(dir) => Items::files(dir, args.limit_bytes, args.limit_files, args.seed)?,
        None => Items::synthetic(args.data, args.seed),
    };
    spinner.finish_and_clear();
    if stopped() {
        let found = items.all.len() as u64;
        if json {
            show::json(&json!({ "interrupted": "listing", "items": found }))?;
        } else {
            let found = show::things(found, "item");
            show::text(&format!("Interrupted while items were looked for: {found} so far, none put.\n"))?;
        }
        return Ok(INTERRUPTED);
    }
    let plan = Plan::new(args, &mut items)?;
    let devices: Vec<(Tier, PathBuf, Device)> =
        plan.dirs.iter().map(|(tier, dir)| (*tier, dir.clone(), Device::of(dir))).collect();
    let mut found = Findings { available_ram: crate::device::available_ram(), ..Findings::default() };
    let ran = if args.top {
        let dirs = plan.dirs.iter().map(|(_, dir)| dir.clone()).collect();
        let (ran, shown) = top::during(dirs, || phases(args, &plan, &mut items, &mut found));
        ran.and(shown)
    } else {
        phases(args, &plan, &mut items, &mut found)
    };
    if stopped() {
        found.interrupted.get_or_insert("run");
    }
    let report = Report { args, plan: &plan, items: &items, devices: &devices, found: &found };
    if json {
        show::json(&report.json())?;
    } else {
        show::text(&report.text())?;
    }
    if let (Some(path), Some(mut file)) = (&args.report, report_file) {
        let page = report.html();
        std::io::Write::write_all(&mut file, page.as_bytes()).map_err(|e| Failure::io("write", path, &e))?;
    }
    ran?;
    Ok(match &found {
        f if f.is_wrong() => NOT_FOUND,
        Findings { interrupted: Some(_), .. } => INTERRUPTED,
        _ => OK,
    })
}

fn phases(args: &BenchArgs, plan: &Plan, items: &mut Items, found: &mut Findings) -> Result<(), Failure> {
    let compare = args.verify || (args.files.is_some() && !args.no_verify);
    let cache = Cache::open(plan.config.clone())?;
    // Each gives up when a signal asks for it; the first that did gets the blame.
    macro_rules! phase {
        ($cache:ident, $name:literal) => {
            if stopped() {
                found.interrupted = Some($name);
                found.stats.get_or_insert_with(|| $cache.stats());
                found.let_go += let_go(&$cache);
                return Ok(());
            }
        };
    }
    // What a signal ended before anything was measured is no finding.
    found.load = Some(phases::load(&cache, items)?).filter(|load| load.put.count() > 0);
    phase!(cache, "load");
    if items.all.is_empty() {
        return Err(Failure::failed(format!("no file could be read: {PERMISSION}")));
    }
    found.settle = Some(phases::settle(&cache)?);
    phase!(cache, "settle");
    let (reads, history) = phases::read(&cache, items, args)?;
    found.reads = Some(reads).filter(|reads| reads.total() > 0);
    phase!(cache, "read");
    if compare {
        found.compare(phases::compare(&cache, items, "while open")?);
        phase!(cache, "compare");
    }
    phases::settle(&cache)?;
    cache.flush()?;
    phase!(cache, "settle");
    found.sizes_judged = compare;
    let stats = sizes(&cache, plan, found);
    phases::learn_types(&cache, items)?;
    found.stats = Some(stats);
    phase!(cache, "settle");
    let (cache, reopen) = phases::reopen(cache, plan, items, &mut found.let_go)?;
    found.reopen = Some(reopen);
    phase!(cache, "reopen");
    found.verified = Some(phases::verify(&cache)?);
    phase!(cache, "verify");
    if compare {
        found.compare(phases::compare(&cache, items, "after a reopen")?);
        phase!(cache, "compare");
    }
    cache.close()?;
    found.let_go += let_go(&cache);
    found.advice = advice::Advice::of(plan, items, found, &history);
    Ok(())
}

/// Looks at what the engine says and at what there is, again if they differ: between the two looks something may have
/// been dropped.
fn sizes(cache: &Cache, plan: &Plan, found: &mut Findings) -> Stats {
    let mut tries = 10;
    loop {
        let stats = cache.stats();
        found.on_disk = on_disk(plan, &stats);
        tries -= 1;
        if tries == 0 || stopped() || !found.on_disk.iter().any(OnDisk::is_off) {
            return stats;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// What the directories of each tier occupy, and the catalog apart from them.
fn on_disk(plan: &Plan, stats: &Stats) -> Vec<OnDisk> {
    let mut all: Vec<OnDisk> = Vec::new();
    let mut add = |one: OnDisk| match all.iter_mut().find(|d| d.what == one.what) {
        Some(d) => (d.bytes, d.plain) = (d.bytes + one.bytes, d.plain && one.plain),
        None => all.push(one),
    };
    for (tier, dir) in &plan.dirs {
        let catalog = occupied(&dir.join("catalog"));
        let plain = Device::of(dir).is_plain();
        let said = stats.tier(*tier).map(|t| t.bytes);
        add(OnDisk { what: tier.name(), bytes: occupied(dir).saturating_sub(catalog), said, plain });
        if catalog > 0 {
            add(OnDisk { what: "catalog", bytes: catalog, said: None, plain });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_items_are_lost_unless_the_engine_let_go_of_them() {
        let mut found = Findings::default();
        let mut reads = Reads::new().unwrap();
        // Two gets of one item.
        reads.missing = 2;
        reads.missing_keys.extend([Bytes::from("k"), Bytes::from("k")]);
        found.reads = Some(reads);
        assert!((found.missing(), found.are_lost(), found.is_wrong()) == (1, true, true));
        found.let_go = 1;
        assert!(!found.are_lost() && !found.is_wrong());
        let compared = |missing| Compared {
            when: "",
            items: 0,
            bytes: 0,
            wrong: vec![],
            wrong_count: 0,
            missing,
            changed: 0,
            seconds: 0.0,
        };
        found.compared = vec![compared(2), compared(1)];
        assert!(found.missing() == 2 && found.is_wrong());
        found.let_go = 2;
        assert!(!found.is_wrong());
    }

    #[test]
    fn a_size_on_disk_that_the_engine_does_not_say_is_a_failure() {
        let mut found = Findings { sizes_judged: true, ..Findings::default() };
        let of = |bytes, said, plain| OnDisk { what: "ssd", bytes, said, plain };
        let said = 100 << 20;
        for (bytes, plain, off) in [
            (said, true, false),
            (said + said / 20 + APART, true, false),
            (said + said / 20 + APART + 1, true, true),
            (said + said / 20 + APART + 1, false, true),
            (said - said / 20 - APART, true, false),
            (said - said / 20 - APART - 1, true, true),
            (0, false, false),
        ] {
            found.on_disk = vec![of(said, Some(said), true), of(bytes, Some(said), plain)];
            assert_eq!(found.is_wrong(), off, "{bytes} {plain}");
        }
        found.on_disk = vec![of(0, Some(said), true)];
        assert!(found.is_wrong());
        found.sizes_judged = false;
        assert!(!found.is_wrong());
        found.on_disk = vec![of(said, None, true)];
        found.sizes_judged = true;
        assert!(!found.is_wrong());
    }
}
