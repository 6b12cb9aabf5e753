//! `stat` and `config`: what a store holds, and how it is set up.

use crate::device::{Device, free, occupied};
use crate::dirs::{dirs_by_tier, foreign, is_store, left_out_json, left_out_note};
use crate::elsewhere;
use crate::failure::{EXIT_CODES, Failure, OK, Outcome};
use crate::options::{OpenArgs, StoreArgs};
use crate::show;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::Access;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use thermocline::config::DirConfig;
use thermocline::{Config, ContentType, Stats, Tier, TypeStats, remote};

/// The options of `stat`.
#[derive(Debug, Args)]
pub struct StatArgs {
    #[command(flatten)]
    store: OpenArgs,
}

/// Shows what each tier holds.
pub fn stat(args: &StatArgs, json: bool) -> Outcome {
    let left_out = args.store.left_out();
    let (shown, elsewhere) = match args.store.open() {
        Ok(cache) => {
            let stats = cache.stats();
            cache.close()?;
            (Shown::of(&remote::stat(&stats), |tier| args.store.says_limit(tier)), None)
        }
        Err(locked) => {
            let store = elsewhere::ask(&args.store, locked)?;
            let answer = store.stat().map_err(elsewhere::unanswered)?;
            // Who has it open knows its limits.
            (Shown::of(&answer, |_| true), Some(store))
        }
    };
    let shown = shown.ok_or_else(|| Failure::failed("the figures of the store make no sense"))?;
    if json {
        let mut value = shown.to_json();
        value.insert("directories_left_out".into(), left_out_json(&left_out));
        value.insert("open_elsewhere".into(), elsewhere::note_json(elsewhere.as_ref()));
        show::json(&Value::Object(value))?;
    } else {
        show::text(&shown.text())?;
        show::note(&left_out_note(&left_out))?;
        let note = elsewhere.map(|store| elsewhere::note(&store, "which says this"));
        show::note(&note.unwrap_or_default())?;
    }
    Ok(OK)
}

/// What is shown of a store, whoever has it open.
struct Shown {
    items: u64,
    catalog_bytes: u64,
    catalog_disk_bytes: u64,
    tiers: Vec<ShownTier>,
}

struct ShownTier {
    tier: Tier,
    items: u64,
    bytes: u64,
    /// The limit, if it is known; in that, `None`: there is none.
    limit: Option<Option<u64>>,
    containers: u64,
    out_of_service: Vec<(String, String)>,
}

impl Shown {
    /// Reads the figures. `None`: something of them is missing.
    fn of(figures: &Value, says_limit: impl Fn(Tier) -> bool) -> Option<Shown> {
        let number = |value: &Value, name: &str| value.get(name)?.as_u64();
        let mut tiers = Vec::new();
        for tier in Tier::DISK {
            let Some(t) = figures.get("tiers")?.get(tier.name()) else { continue };
            let limit = match t.get("limit")? {
                Value::Null => None,
                limit => Some(limit.as_u64()?),
            };
            let text = |value: &Value, name: &str| Some(value.get(name)?.as_str()?.to_owned());
            let out = t.get("out_of_service")?.as_array()?.iter();
            tiers.push(ShownTier {
                tier,
                items: number(t, "items")?,
                bytes: number(t, "bytes")?,
                limit: says_limit(tier).then_some(limit),
                containers: number(t, "containers")?,
                out_of_service: out
                    .map(|o| Some((text(o, "path")?, text(o, "why")?)))
                    .collect::<Option<_>>()?,
            });
        }
        Some(Shown {
            items: number(figures, "items")?,
            catalog_bytes: number(figures, "catalog_bytes")?,
            catalog_disk_bytes: number(figures, "catalog_disk_bytes")?,
            tiers,
        })
    }

    fn text(&self) -> String {
        let row = |t: &ShownTier| {
            let limit = t.limit.flatten();
            vec![
                t.tier.to_string(),
                show::count(t.items),
                show::bytes(t.bytes),
                limit.map_or(if t.limit.is_some() { "none" } else { "–" }.into(), show::bytes),
                limit.map_or("–".into(), |limit| show::percent(t.bytes, limit)),
                show::count(t.containers),
            ]
        };
        let header = ["tier", "items", "occupied", "limit", "full", "containers"];
        let mut out = show::table(1, &header, self.tiers.iter().map(row).collect());
        for t in &self.tiers {
            for (path, why) in &t.out_of_service {
                let _ = writeln!(out, "\n  out of service: {path} ({}): {why}", t.tier);
            }
        }
        let _ = writeln!(
            out,
            "\n  {} in all; the catalog takes {} of RAM, {} on disk",
            show::things(self.items, "item"),
            show::bytes(self.catalog_bytes),
            show::bytes(self.catalog_disk_bytes)
        );
        if self.tiers.iter().any(|t| t.limit.is_none()) {
            let why =
                "–: a store does not keep its limits; they are known with --config FILE, or with DIR=SIZE.";
            let _ = writeln!(out, "  {why}");
        }
        out
    }

    fn to_json(&self) -> Map<String, Value> {
        let one = |t: &ShownTier| {
            let out = t.out_of_service.iter();
            let out: Vec<Value> = out.map(|(path, why)| json!({ "path": path, "why": why })).collect();
            let value = json!({
                "out_of_service": out,
                "items": t.items, "bytes": t.bytes, "limit": t.limit.flatten(), "containers": t.containers,
            });
            (t.tier.name().to_owned(), value)
        };
        let tiers: Map<String, Value> = self.tiers.iter().map(one).collect();
        let mut all = Map::new();
        all.insert("items".into(), json!(self.items));
        all.insert("catalog_bytes".into(), json!(self.catalog_bytes));
        all.insert("catalog_disk_bytes".into(), json!(self.catalog_disk_bytes));
        all.insert("tiers".into(), Value::Object(tiers));
        all
    }
}

/// A bar on stderr that counts items; nothing where stderr is no terminal.
pub fn counting_bar(len: u64, what: &'static str) -> ProgressBar {
    let bar = show::drawn(ProgressBar::new(len));
    let style = ProgressStyle::with_template("{msg:<10} {wide_bar} {human_pos}/{human_len}  {elapsed}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}

/// The subcommands of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the whole configuration as it is in force, in TOML
    #[command(after_help = EXIT_CODES)]
    Show(ConfigArgs),
    /// Say whether it can be used: its settings, and where its directories are; opens and writes nothing
    #[command(after_help = EXIT_CODES)]
    Check(ConfigArgs),
}

/// The options of `config show` and `config check`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The configuration, as with --config
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
}

/// Shows or checks a configuration.
pub fn config(command: &ConfigCommand, json: bool) -> Outcome {
    let (ConfigCommand::Show(args) | ConfigCommand::Check(args)) = command;
    let mut store = args.store.clone();
    store.config = args.file.clone().or(store.config);
    let config = store.config()?;
    store.check(&config)?;
    if let ConfigCommand::Show(_) = command {
        // What is shown is copied into tickets.
        let mut config = config;
        if let Some(url) = &mut config.metrics.redis.url {
            *url = url.redacted().into();
        }
        let toml = config.to_toml().map_err(|e| Failure::usage(e.to_string()))?;
        if json {
            let value: Value = toml::from_str(&toml).map_err(|e| Failure::failed(e.to_string()))?;
            show::json(&value)?;
        } else {
            show::text(&toml)?;
        }
        return Ok(OK);
    }
    let looked: Vec<Looked> = dirs_by_tier(&config).map(Looked::at).collect::<Result<_, _>>()?;
    let mut notes: Vec<String> = looked.iter().flat_map(|l| l.notes.clone()).collect();
    let doubt = in_doubt(&looked);
    notes.extend(without_path(&store, &config)?);
    notes.extend(doubt.clone());
    notes.extend(too_large(&store, &config, &looked));
    if json {
        let dirs: Vec<_> = looked.iter().map(|l| l.path.to_string_lossy()).collect();
        let looked: Vec<_> = looked.iter().map(Looked::to_json).collect();
        show::json(&json!({ "valid": true, "directories": dirs, "looked_at": looked, "notes": notes }))?;
    } else {
        show::text(&check_text(&looked, doubt.is_some(), &notes))?;
    }
    Ok(OK)
}

fn check_text(looked: &[Looked], in_doubt: bool, notes: &[String]) -> String {
    let mut out = String::from(match looked {
        [] => "usable: memory alone\n",
        _ if in_doubt => "the settings are right, and a directory is in doubt: see the note\n",
        _ => "usable\n",
    });
    for l in looked {
        let or = |s: &Option<String>| s.clone().unwrap_or_else(|| "unknown".into());
        let (path, device) = (l.path.display(), &l.device);
        let on = format!("{} on {}", or(&device.file_system), or(&device.source));
        let _ = writeln!(out, "  {:<4}  {path}: {} ({on})", l.tier.name(), l.state);
    }
    for note in notes {
        let _ = writeln!(out, "  note: {note}");
    }
    out.push_str(match looked {
        [] => "The settings were checked; there is no directory to look at.\n",
        _ => {
            "The settings were checked, and each directory was looked at from outside: nothing was opened or written. \
             Whether a store is whole says `thermocline verify`.\n"
        }
    });
    out
}

/// A directory of a configuration, as it is seen from outside.
struct Looked {
    tier: Tier,
    path: PathBuf,
    exists: bool,
    is_store: bool,
    state: String,
    /// What it stands on, or would.
    device: Device,
    notes: Vec<String>,
}

impl Looked {
    /// Looks, and writes nothing.
    ///
    /// # Errors
    /// It is no directory, or can be none.
    fn at((tier, dir): (Tier, &DirConfig)) -> Result<Looked, Failure> {
        let path = dir.path.clone();
        let mut notes = Vec::new();
        let whole = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
        // What is there of it: itself, or what it would be made in.
        let mut there = whole.as_path();
        for above in whole.ancestors() {
            there = above;
            match above.symlink_metadata() {
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(e) => return Err(Failure::given("look at", &path, &e)),
                Ok(_) => break,
            }
        }
        let exists = there == whole;
        let found = is_store(there).and_then(|is_store| Ok((is_store, foreign(there)?)));
        let state = match std::fs::metadata(there) {
            Ok(meta) if !meta.is_dir() => {
                return Err(Failure::given("use", &path, &io::ErrorKind::NotADirectory.into()));
            }
            Ok(_) if !exists => format!("does not exist, and would be made in {}", there.display()),
            Ok(_) => match &found {
                Ok((true, _)) => "a directory of a store".to_owned(),
                Ok((false, None)) => "empty".to_owned(),
                Ok((false, Some(name))) => {
                    notes.push(format!(
                        "{}: no store is there, and it is not empty ({name}): `thermocline put --create` makes none in it",
                        path.display()
                    ));
                    "no store".to_owned()
                }
                Err(e) => return Err(Failure::given("look into", &path, e)),
            },
            Err(e) => return Err(Failure::given("look at", &path, &e)),
        };
        if let Err(e) = rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK) {
            notes.push(format!(
                "{}: whoever runs this may not write there: {}",
                path.display(),
                io::Error::from(e)
            ));
        }
        let device = Device::of(there);
        if device.is_ram() {
            notes.push(format!(
                "{}: a RAM file system is no disk: it takes RAM, and what is in it does not outlive the machine's end",
                path.display()
            ));
        }
        let is_store = exists && found.is_ok_and(|(is_store, _)| is_store);
        Ok(Looked { tier, path, exists, is_store, state, device, notes })
    }

    fn to_json(&self) -> Value {
        json!({
            "tier": self.tier.name(),
            "path": self.path.to_string_lossy(),
            "exists": self.exists,
            "state": self.state,
            "on": self.device.to_json(),
        })
    }
}

/// What to say where some directories are a store's and others are not: every subcommand but `put --create` refuses that.
fn in_doubt(looked: &[Looked]) -> Option<String> {
    let (stores, others): (Vec<&Looked>, Vec<&Looked>) = looked.iter().partition(|l| l.is_store);
    if stores.is_empty() || others.is_empty() {
        return None;
    }
    let list =
        |some: &[&Looked]| some.iter().map(|l| l.path.display().to_string()).collect::<Vec<_>>().join(", ");
    Some(format!(
        "{}: no store is there, and {} {} a store's: {} mistyped, or not mounted? No subcommand takes that, but \
         `put --create`, and a program that opens the store with it, would join what is new",
        list(&others),
        list(&stores),
        if stores.len() == 1 { "is" } else { "are" },
        if others.len() == 1 { "is it" } else { "are they" },
    ))
}

/// Limits that somebody gave and for which a file system has no room, those of all tiers on it together.
fn too_large(store: &StoreArgs, config: &Config, looked: &[Looked]) -> Vec<String> {
    let some = |limits: Vec<u64>| limits.into_iter().map(Some).collect::<Vec<_>>();
    let limits = [some(config.ssd_limits()), some(config.hdd_limits()), config.cold_limits()];
    // By file system: its directories, their limits, what they occupy, what is free.
    let mut systems: Vec<(u64, Vec<String>, u64, u64, u64)> = Vec::new();
    for (l, limit) in looked.iter().zip(limits.into_iter().flatten()) {
        let Some(limit) = limit.filter(|_| store.says_limit(l.tier)) else { continue };
        let whole = std::path::absolute(&l.path).unwrap_or_else(|_| l.path.clone());
        let there = whole.ancestors().find_map(|p| Some((p, std::fs::metadata(p).ok()?.dev())));
        let Some((free, dev)) = there.and_then(|(p, dev)| Some((free(p)?, dev))) else { continue };
        let (name, taken) = (l.path.display().to_string(), occupied(&l.path));
        match systems.iter_mut().find(|s| s.0 == dev) {
            Some((_, names, sum, occupied, _)) => {
                names.push(name);
                (*sum, *occupied) = (sum.saturating_add(limit), occupied.saturating_add(taken));
            }
            None => systems.push((dev, vec![name], limit, taken, free)),
        }
    }
    let too_large = systems.into_iter().filter(|(_, _, sum, taken, free)| *sum > free.saturating_add(*taken));
    let note = |(_, names, sum, taken, free): (u64, Vec<String>, u64, u64, u64)| {
        format!(
            "{}: {} by the limits, and the file system has room for {}: lower the limits, or make room",
            names.join(", "),
            show::bytes(sum),
            show::bytes(free.saturating_add(taken))
        )
    };
    too_large.map(note).collect()
}

/// Tiers that the file has settings of and no directory, nor the options: most likely a slip.
fn without_path(store: &StoreArgs, config: &Config) -> Result<Option<String>, Failure> {
    let Some(file) = &store.config else { return Ok(None) };
    let text = std::fs::read_to_string(file).map_err(|e| Failure::given("read", file, &e))?;
    let value: Value = toml::from_str(&text).map_err(|e| Failure::usage(e.to_string()))?;
    let tiers: Vec<String> =
        [(Tier::Ssd, &config.ssd.dirs), (Tier::Hdd, &config.hdd.dirs), (Tier::Cold, &config.cold.dirs)]
            .into_iter()
            .filter(|(tier, dirs)| {
                let table = value.get("storage_tiers").and_then(|t| t.get(tier.name()));
                dirs.is_empty() && table.and_then(Value::as_object).is_some_and(|t| !t.is_empty())
            })
            .map(|(tier, _)| format!("[storage_tiers.{tier}]"))
            .collect();
    if tiers.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!(
        "{}: settings, and no `path`: without one the tier is not used, and its settings do nothing",
        tiers.join(", ")
    )))
}

/// A content type's row of how well it compressed.
pub fn type_rows(stats: &Stats) -> Vec<(ContentType, &TypeStats)> {
    let of = |t| stats.content(t).map(|s| (t, s));
    ContentType::STORED.into_iter().filter_map(of).filter(|(_, s)| s.items > 0).collect()
}

/// What a content type's values were compressed with, in percent of those that a codec was tried on.
pub fn codec_shares(of: &TypeStats) -> String {
    let kept = [("zlib", of.zlib.kept), ("lz4", of.lz4.kept)];
    let in_vain = of.zlib.skipped + of.lz4.skipped;
    let tried = kept.iter().map(|(_, n)| n).sum::<u64>() + in_vain;
    let share = |(name, n): (&str, u64)| format!("{name} {:.0} %", n as f64 / tried as f64 * 100.0);
    let shares = kept.into_iter().chain([("nothing", in_vain)]).filter(|(_, n)| *n > 0).map(share);
    let shares: Vec<String> = shares.collect();
    if shares.is_empty() { "nothing".to_owned() } else { shares.join(", ") }
}
