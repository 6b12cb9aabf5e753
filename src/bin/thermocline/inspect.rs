//! `stat` and `config`: what a store holds, and how it is set up.

use crate::failure::{Failure, OK, Outcome};
use crate::options::{OpenArgs, StoreArgs, tier_dirs};
use crate::show;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;
use thermocline::{ContentType, Stats, Tier};

/// The options of `stat`.
#[derive(Debug, Args)]
pub struct StatArgs {
    #[command(flatten)]
    store: OpenArgs,
}

/// Shows what each tier holds.
pub fn stat(args: &StatArgs, json: bool) -> Outcome {
    let cache = args.store.open()?;
    let stats = cache.stats();
    cache.close()?;
    if json {
        show::json(&stats_json(&stats, &args.store))?;
    } else {
        show::text(&stats_text(&stats, &args.store))?;
    }
    Ok(OK)
}

fn stats_text(stats: &Stats, store: &OpenArgs) -> String {
    let mut rows = Vec::new();
    let mut assumed = false;
    for tier in Tier::DISK {
        let Some(t) = stats.tier(tier) else { continue };
        let said = store.says_limit(tier);
        assumed |= !said;
        let limit = t.limit.filter(|_| said);
        rows.push(vec![
            tier.to_string(),
            show::count(t.items),
            show::bytes(t.bytes),
            limit.map_or(if said { "none" } else { "–" }.into(), show::bytes),
            limit.map_or("–".into(), |limit| show::percent(t.bytes, limit)),
            show::count(t.containers),
        ]);
    }
    let mut out = show::table(1, &["tier", "items", "occupied", "limit", "full", "containers"], rows);
    for tier in Tier::DISK {
        for (path, why) in stats.tier(tier).map(|t| t.out_of_service.as_slice()).unwrap_or_default() {
            let _ = writeln!(out, "\n  out of service: {} ({tier}): {why}", path.display());
        }
    }
    let _ = writeln!(
        out,
        "\n  {} in all; the catalog takes {} of RAM, {} on disk",
        show::things(stats.items, "item"),
        show::bytes(stats.catalog_bytes),
        show::bytes(stats.catalog_disk_bytes)
    );
    if assumed {
        let why = "–: a store does not keep its limits; they are known with --config FILE, or with DIR=SIZE.";
        let _ = writeln!(out, "  {why}");
    }
    out
}

fn stats_json(stats: &Stats, store: &OpenArgs) -> Value {
    let tiers: serde_json::Map<String, Value> = Tier::DISK
        .into_iter()
        .filter_map(|tier| {
            let t = stats.tier(tier)?;
            let out = t.out_of_service.iter();
            let out: Vec<Value> =
                out.map(|(path, why)| json!({ "path": path.to_string_lossy(), "why": why })).collect();
            let value = json!({
                "out_of_service": out,
                "items": t.items, "bytes": t.bytes, "limit": t.limit.filter(|_| store.says_limit(tier)), "containers": t.containers,
            });
            Some((tier.name().to_owned(), value))
        })
        .collect();
    json!({
        "items": stats.items,
        "catalog_bytes": stats.catalog_bytes,
        "catalog_disk_bytes": stats.catalog_disk_bytes,
        "tiers": tiers,
    })
}

/// A bar on stderr that counts items; nothing where stderr is no terminal.
pub fn counting_bar(len: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(len);
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
    Show(ConfigArgs),
    /// Say whether it can be used; touches no disk
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
    config.validate().map_err(|e| Failure::usage(e.to_string()))?;
    if let ConfigCommand::Show(_) = command {
        let toml = config.to_toml().map_err(|e| Failure::usage(e.to_string()))?;
        if json {
            let value: Value = toml::from_str(&toml).map_err(|e| Failure::failed(e.to_string()))?;
            show::json(&value)?;
        } else {
            show::text(&toml)?;
        }
        return Ok(OK);
    }
    let dirs: Vec<String> = tier_dirs(&config).map(|d| d.path.to_string_lossy().into_owned()).collect();
    if json {
        show::json(&json!({ "valid": true, "directories": dirs }))?;
    } else {
        show::text(&match dirs.as_slice() {
            [] => "usable: memory alone\n".to_owned(),
            dirs => format!("usable: {}\n", dirs.join(", ")),
        })?;
    }
    Ok(OK)
}

/// A content type's row of how well it compressed.
pub fn type_rows(stats: &Stats) -> Vec<(ContentType, u64, u64, u64)> {
    let of = |t| stats.content(t).map(|s| (t, s.items, s.original_bytes, s.stored_bytes));
    ContentType::STORED.into_iter().filter_map(of).filter(|(_, items, ..)| *items > 0).collect()
}
