//! `history`: what the optimizer of a store that is open saw, did, and made of it.
//!
//! Invariant: what is not known is a dash, or left out; never 0.

use crate::dirs::tier_dirs;
use crate::elsewhere;
use crate::failure::{Failure, OK, Outcome};
use crate::options::StoreArgs;
use crate::show;
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;
use thermocline::remote::OpenStore;

/// The options of `history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// So many turns at most, the last ones
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    turns: usize,
    #[command(flatten)]
    store: StoreArgs,
}

/// Shows the last turns, the oldest first.
pub fn history(args: &HistoryArgs, json: bool) -> Outcome {
    let dirs: Vec<PathBuf> = tier_dirs(&args.store.config()?).map(|d| d.path.clone()).collect();
    if dirs.is_empty() {
        return Err(Failure::usage(
            "no store is named: give --config FILE, --root DIR, or --ssd, --hdd and --cold DIR",
        ));
    }
    elsewhere::one_store(&dirs)?;
    let store = OpenStore::find(&dirs).map_err(elsewhere::nobody)?;
    let turns = store.history(args.turns).map_err(elsewhere::unanswered)?;
    if json {
        let note = elsewhere::note_json(Some(&store));
        show::json(&json!({ "turns": turns, "open_elsewhere": note }))?;
        return Ok(OK);
    }
    let all = turns.as_array().map(Vec::as_slice).unwrap_or_default();
    let text: String = all.iter().map(text).collect();
    let none = "The optimizer of the store has taken no turn yet.\n";
    show::text(if all.is_empty() { none } else { &text })?;
    Ok(OK)
}

fn share(value: &Value) -> String {
    value.as_f64().map_or("–".into(), |share| format!("{:.0} %", 100.0 * share))
}

/// One turn: a line of what was seen, and one for each thing that was done, and that came of it.
fn text(turn: &Value) -> String {
    let number = |value: &Value| value.as_f64().map_or("–".into(), |n| format!("{n:.2}"));
    let seconds = |value: &Value| value.as_f64().map_or("–".into(), |s| show::nanos(s * 1e9));
    let count = |value: &Value| value.as_u64().map_or("–".into(), show::count);
    let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let inputs = turn.get("inputs").unwrap_or(&Value::Null);
    let input = |name: &str| inputs.get(name).unwrap_or(&Value::Null);
    let of = |name: &str| turn.get(name).unwrap_or(&Value::Null);
    let hits = input("hit_shares").as_object().into_iter().flatten();
    let hits: Vec<String> =
        hits.filter(|(_, s)| !s.is_null()).map(|(tier, s)| format!("{tier} {}", share(s))).collect();
    let hits = if hits.is_empty() { String::new() } else { format!(" ({})", hits.join(", ")) };
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}  strategy {}, pressure {} (memory {}, CPU {}, I/O {}); {} gets{hits}, {} puts, p99 {}",
        of("unix_ms").as_u64().map_or("–".into(), show::moment),
        word(of("strategy")),
        number(of("pressure")),
        share(input("memory")),
        share(input("cpu")),
        share(input("io")),
        count(input("gets")),
        count(input("puts")),
        seconds(input("p99_seconds")),
    );
    for action in of("actions").as_array().into_iter().flatten() {
        let back = action.get("takes_back").and_then(Value::as_bool).unwrap_or(false);
        let because = action.get("because").and_then(Value::as_str).unwrap_or_default();
        let failed = action.get("error").and_then(Value::as_str).map(|e| format!(" (not done: {e})"));
        let _ = writeln!(
            out,
            "    {}{}: {because}{}",
            if back { "taken back: " } else { "" },
            word(action.get("change").unwrap_or(&Value::Null)),
            failed.unwrap_or_default()
        );
    }
    for effect in of("effects").as_array().into_iter().flatten() {
        let _ = writeln!(out, "    {}", show::effect(effect));
    }
    out
}
