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
use thermocline::Tier;
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
    // The hottest first: an object has its names in no order that says anything.
    let of_tier = |tier: Tier| Some((tier, input("hit_shares").get(tier.name()).filter(|s| !s.is_null())?));
    let hits = Tier::ALL.into_iter().filter_map(of_tier);
    let hits: Vec<String> = hits.map(|(tier, s)| format!("{tier} {}", share(s))).collect();
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
        let _ = writeln!(out, "    {}", show::action(action).unwrap_or_else(|| "?".to_owned()));
    }
    for effect in of("effects").as_array().into_iter().flatten() {
        let _ = writeln!(out, "    {}", show::effect(effect));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_told_with_the_hottest_tier_first() {
        let turn = json!({
            "unix_ms": 1_700_000_000_000u64, "pressure": 0.42, "strategy": "balanced",
            "inputs": { "gets": 1000, "puts": 3, "p99_seconds": 0.002, "hit_shares":
                { "cold": 0.01, "hdd": null, "memory": 0.7, "ssd": 0.25 } },
            "actions": [{ "change": "text: zlib 6 → lz4", "because": "it saves little", "takes_back": true,
                "error": "no room" }],
            "effects": [{ "goal": "pressure", "before": 0.5, "after": 0.4 }],
        });
        let wanted = "2023-11-14 22:13:20Z  strategy balanced, pressure 0.42 (memory –, CPU –, I/O –); \
            1,000 gets (memory 70 %, ssd 25 %, cold 1 %), 3 puts, p99 2.00 ms\n    \
            taken back: text: zlib 6 → lz4: it saves little (not done: no room)\n    pressure: 0.50 → 0.40\n";
        // Continued lines lose their indentation, which the second and third of the text have of their own.
        assert_eq!(text(&turn), wanted);
    }
}
