//! `verify`: whether a store is whole, and, if asked for, what can be made whole again.

use crate::dirs::left_out_json;
use crate::elsewhere;
use crate::failure::{FAILED, Failure, NOT_FOUND, OK, Outcome};
use crate::inspect::counting_bar;
use crate::options::OpenArgs;
use crate::show;
use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use thermocline::{CheckReport, Cost, Finding, Part, Progress, Recovery, RepairReport, Step};
use thermocline_storage::home::DirInfo;

/// The options of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Mend what is damaged: copies, footers and indexes are made anew, damaged records and containers go to the
    /// quarantine. Says which items are lost
    #[arg(long)]
    repair: bool,
    /// If the catalog is lost in both copies, build one from what the tiers hold: of each key the newest version
    /// found. Items that had been removed or overwritten may be among them. Repairs what else is damaged, as --repair does
    #[arg(long)]
    rebuild_catalog: bool,
    #[command(flatten)]
    store: OpenArgs,
}

/// The codes, as its `--help` tells them.
pub const EXIT_CODES: &str = "\
Exit codes:
    0  everything was read and is right
    1  damage was found; with --repair: none of it is left, though items may be lost
    2  the command line or the configuration is wrong
    3  the store is open in another process: with --repair; else only if that does not answer
    4  the disk or the store failed, or --repair could not mend everything
  130  interrupted";

/// Reads and checks everything; changes nothing, unless it is to repair.
pub fn verify(args: &VerifyArgs, json: bool) -> Outcome {
    let builder = args.store.builder(args.rebuild_catalog)?;
    if args.store.discards() {
        return Err(Failure::usage(
            "verify gives nothing up: check what is there with --without-missing; to give up what is missing, open the \
             store once with --discard-missing, by `thermocline stat` for one, and then verify",
        ));
    }
    let left_out = args.store.left_out();
    let mut bars = Bars::default();
    // To rebuild is to write.
    if !args.repair && !args.rebuild_catalog {
        let checked = builder.check(|p| bars.show(p));
        bars.end();
        let (report, elsewhere) = match checked.map_err(|e| args.store.refused(e)) {
            Ok(report) => (report, None),
            Err(locked) => {
                let store = elsewhere::ask(&args.store, locked)?;
                let checked = store.verify(|p| bars.show(p));
                bars.end();
                (checked.map_err(elsewhere::unanswered)?, Some(store))
            }
        };
        if json {
            let mut value = with_left_out(check_json(&report), &left_out);
            if let Some(object) = value.as_object_mut() {
                object.insert("open_elsewhere".into(), elsewhere::note_json(elsewhere.as_ref()));
            }
            show::json(&value)?;
        } else {
            show::text(&check_text(&report, &left_out, elsewhere.is_some()))?;
            let what =
                "which read its records; second copies, footers and indexes are looked at when it is closed";
            show::note(&elsewhere.map(|store| elsewhere::note(&store, what)).unwrap_or_default())?;
        }
        return Ok(if report.is_clean() { OK } else { NOT_FOUND });
    }
    let repaired = builder.repair(|p| bars.show(p));
    bars.end();
    let report = repaired.map_err(|e| args.store.refused(e))?;
    if json {
        show::json(&with_left_out(repair_json(&report), &left_out))?;
    } else {
        show::text(&repair_text(&report, &left_out))?;
    }
    Ok(match (report.is_clean(), report.left.is_empty()) {
        (true, _) => OK,
        (false, true) => NOT_FOUND,
        (false, false) => FAILED,
    })
}

/// How far it is, on stderr; nothing where that is no terminal.
#[derive(Default)]
struct Bars {
    now: Option<(Step, ProgressBar)>,
}

impl Bars {
    fn show(&mut self, p: Progress) {
        if self.now.as_ref().is_none_or(|(step, _)| *step != p.step) {
            self.end();
            let bar = match p.step {
                Step::Open => show::spinner("opening, and rebuilding the catalog if it is lost"),
                Step::Mend => counting_bar(p.of, "mending"),
                Step::CheckAgain => counting_bar(p.of, "again"),
                _ => counting_bar(p.of, "checking"),
            };
            self.now = Some((p.step, bar));
        }
        if let Some((_, bar)) = self.now.as_ref().filter(|_| p.of > 0) {
            bar.set_position(p.done);
        }
    }

    fn end(&mut self) {
        if let Some((_, bar)) = self.now.take() {
            bar.finish_and_clear();
        }
    }
}

fn with_left_out(mut value: Value, left_out: &[DirInfo]) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.insert("directories_left_out".into(), left_out_json(left_out));
    }
    value
}

fn check_text(report: &CheckReport, left_out: &[DirInfo], is_open: bool) -> String {
    let mut out = String::new();
    list(&mut out, &report.findings, left_out);
    let _ = writeln!(out, "{}", sum(report, left_out));
    if !report.is_clean() {
        out.push_str("Nothing was changed.");
        if report.findings.iter().any(|f| !matches!(f.cost, Cost::OutOfReach(_))) {
            out.push_str(if is_open { " Once the store is closed," } else { "" });
            out.push_str(" `thermocline verify --repair` mends what can be mended.");
        }
        out.push_str(&advice(&report.findings, left_out));
        out.push('\n');
    }
    out
}

/// The cure of what no repair can help.
fn advice(findings: &[Finding], left_out: &[DirInfo]) -> String {
    let away = |f: &&Finding| matches!(f.cost, Cost::OutOfReach(_)) && !is_left_out(f, left_out);
    let mut out = String::new();
    if findings.iter().any(|f| is_left_out(f, left_out)) {
        out.push_str(
            " Of what was left out nothing is known: mount it, and verify again without --without-missing.",
        );
    }
    if findings.iter().filter(away).any(|f| f.cost == Cost::OutOfReach(0)) {
        out.push_str(
            " What is not in the catalog is taken in by `thermocline verify --rebuild-catalog`, once it can be read.",
        );
    }
    if findings.iter().filter(away).any(|f| f.cost != Cost::OutOfReach(0)) {
        out.push_str(" What is out of reach is there again when its disk can be read.");
    }
    out
}

/// Whether it says that a directory is left out. (That one was not there at a rebuilding is said of no tier, and has a
/// cure of its own.)
fn is_left_out(f: &Finding, left_out: &[DirInfo]) -> bool {
    f.tier.is_some() && matches!(f.cost, Cost::OutOfReach(_)) && left_out.iter().any(|d| d.path == f.path)
}

fn list(out: &mut String, findings: &[Finding], left_out: &[DirInfo]) {
    let nameless =
        |f: &&Finding| f.part == Part::Record && f.key.is_none() && matches!(f.cost, Cost::Lost(_));
    let mut at: BTreeMap<&Path, u64> = BTreeMap::new();
    for f in findings.iter().filter(nameless) {
        *at.entry(&f.path).or_default() += 1;
    }
    for f in findings {
        match at.get(f.path.as_path()).copied().unwrap_or(0) {
            // Thousands of lines that name nothing tell less than one.
            n if n > MOST_NAMELESS && nameless(&f) => {
                let tier = f.tier.map_or(String::new(), |t| format!("{t} "));
                let _ = writeln!(
                    out,
                    "lost: {} whose keys cannot be read ({tier}records in {}): of the first: {}",
                    show::things(n, "item"),
                    f.path.display(),
                    f.why
                );
                at.insert(&f.path, TOLD);
            }
            TOLD if nameless(&f) => {}
            _ => _ = writeln!(out, "{}", line(f, left_out)),
        }
    }
}

/// Lost items without a key that each have a line, of one file.
const MOST_NAMELESS: u64 = 5;
/// In the place of their number: that they were told of.
const TOLD: u64 = 0;

/// One finding as a line: what, whose, where, why, and what it costs.
fn line(f: &Finding, left_out: &[DirInfo]) -> String {
    let tier = f.tier.map_or(String::new(), |t| format!("{t} "));
    let (path, why) = (f.path.display(), &f.why);
    match (f.part, f.cost) {
        (Part::Container, Cost::OutOfReach(n)) if is_left_out(f, left_out) => {
            let items = if n == 0 { "its items".into() } else { show::things(n, "item") };
            format!("left out: {tier}directory {path}: {why}; {items} are absent until it is back")
        }
        (Part::Record, Cost::OutOfReach(_)) => {
            format!("out of reach: an item ({tier}record in {path}): {why}")
        }
        (Part::Record, _) => format!("lost: {} ({tier}record in {path}): {why}", key(f)),
        (_, Cost::OutOfReach(0)) => format!("not in the catalog: {path}: {why}"),
        (_, Cost::OutOfReach(n)) => format!("out of reach: {} in {path}: {why}", show::things(n, "item")),
        (part, Cost::Lost(n)) => format!("lost: {} ({tier}{part} in {path}): {why}", show::things(n, "item")),
        // Of a container that is given up each item has a line of its own.
        (Part::Container, _) => format!("damaged: {tier}container {path}: {why}"),
        (part, _) => format!("damaged: {tier}{part} {path}: {why}; nothing is lost by it"),
    }
}

fn key(f: &Finding) -> String {
    f.key.as_ref().map_or("an item whose key cannot be read".into(), |k| show::key(k))
}

/// What findings come to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Costs {
    /// Items lost.
    lost: u64,
    /// Containers that items are lost with.
    containers: u64,
    /// Items out of reach.
    away: u64,
    /// Things that are wrong and cost nothing.
    free: u64,
}

impl Costs {
    fn of(findings: &[Finding]) -> Costs {
        let mut costs = Costs::default();
        for f in findings {
            match f.cost {
                Cost::Lost(n) => costs.lost += n,
                Cost::OutOfReach(n) => costs.away += n,
                // Its items have findings of their own.
                _ if f.part == Part::Container && findings.iter().any(|item| is_lost_in(item, f)) => {
                    costs.containers += 1;
                }
                _ => costs.free += 1,
            }
        }
        costs
    }
}

fn is_lost_in(item: &Finding, container: &Finding) -> bool {
    matches!(item.cost, Cost::Lost(_)) && item.path.starts_with(&container.path)
}

fn sum(report: &CheckReport, left_out: &[DirInfo]) -> String {
    let verdict = if report.is_clean() {
        "all right".into()
    } else {
        let Costs { lost, containers, away, free } = Costs::of(&report.findings);
        let with = match containers {
            0 => String::new(),
            n => format!(" (with {})", show::things(n, "container")),
        };
        let without = match left_out.len() as u64 {
            0 => String::new(),
            1 => ", 1 directory left out".into(),
            n => format!(", {} directories left out", show::count(n)),
        };
        let [lost, away, free] = [lost, away, free].map(show::count);
        format!("{lost} lost{with}, {away} out of reach, {free} damaged without loss{without}")
    };
    let unwritten = match report.unwritten {
        0 => String::new(),
        n => format!("; not looked at: {}, to be written or on the move", show::things(n, "item")),
    };
    format!(
        "{}, {}, in {}: {verdict}{unwritten}",
        show::things(report.items, "item"),
        show::bytes(report.bytes),
        show::things(report.containers, "container"),
    )
}

fn repair_text(report: &RepairReport, left_out: &[DirInfo]) -> String {
    let mut out = String::new();
    if let Some(recovery) = &report.recovery {
        if recovery.rebuilt {
            out.push_str(
                "The catalog was rebuilt from the containers: removed and overwritten items may be among the live ones.\n",
            );
        }
        for (path, why) in &recovery.quarantined {
            let _ = writeln!(out, "moved to the quarantine: {}: {why}", path.display());
        }
    }
    for f in &report.mended {
        let line = line(f, left_out);
        let _ = writeln!(out, "mended: {}", line.strip_prefix("damaged: ").unwrap_or(&line));
    }
    list(&mut out, &report.lost, left_out);
    for f in &report.left {
        let _ = writeln!(out, "still there: {}", line(f, left_out));
    }
    for (path, why) in &report.failed {
        let _ = writeln!(out, "not mended: {}: {why}", path.display());
    }
    let lost = Costs::of(&report.lost).lost;
    // What was mended is told of above, and counted here all the same: it is the state before.
    let before = if report.is_clean() { "" } else { "Found: " };
    let _ = writeln!(out, "{before}{}", sum(&report.found, left_out));
    if report.is_clean() {
        out.push_str("Nothing was wrong, and nothing was changed.\n");
    } else {
        let rebuilt = report.recovery.as_ref().is_some_and(|r| r.rebuilt);
        let done = done(report.mended.len() as u64, lost, moved(report), report.left.len() as u64, rebuilt);
        let _ = writeln!(out, "{done}{}", advice(&report.left, left_out));
    }
    out
}

/// Containers that the opening moved to the quarantine. What could not be moved is still there, and says so.
fn moved(report: &RepairReport) -> u64 {
    let recovery = report.recovery.iter().flat_map(|r| &r.quarantined);
    recovery.filter(|(_, why)| !why.contains("(left in its place")).count() as u64
}

/// What a repair came to, as a sentence.
fn done(mended: u64, lost: u64, moved: u64, left: u64, rebuilt: bool) -> String {
    let mut did = Vec::new();
    did.extend(rebuilt.then(|| "the catalog rebuilt".to_owned()));
    did.extend((mended > 0).then(|| format!("{} mended", show::count(mended))));
    let again = if lost == 1 {
        "put it again; what is left of it, if anything,"
    } else {
        "put them again; what is left of them, if anything,"
    };
    did.extend((lost > 0).then(|| {
        format!("{} lost ({again} is in `quarantine/`, with a report)", show::things(lost, "item"))
    }));
    did.extend((moved > 0).then(|| format!("{} moved to the quarantine", show::things(moved, "container"))));
    let left = match left {
        0 => "nothing left to repair".to_owned(),
        1 => "1 left as it was".to_owned(),
        n => format!("{} left as they were", show::count(n)),
    };
    if did.is_empty() {
        return format!("Nothing could be repaired: {left}.");
    }
    // What a catalog knew that is lost, nobody knows.
    did.extend((lost == 0 && !rebuilt).then(|| "nothing lost".to_owned()));
    format!("Repaired: {}, {left}.", did.join(", "))
}

fn finding_json(f: &Finding) -> Value {
    let (lost, away) = match f.cost {
        Cost::Lost(n) => (n, 0),
        Cost::OutOfReach(n) => (0, n),
        _ => (0, 0),
    };
    json!({
        "tier": f.tier.map(thermocline::Tier::name),
        "path": f.path.to_string_lossy(),
        "part": f.part.name(),
        "key": f.key.as_ref().map(|k| show::key(k)),
        "key_hex": f.key.as_ref().map(|k| show::hex(k)),
        "why": f.why,
        "items_lost": lost,
        "items_out_of_reach": away,
    })
}

fn all_json(findings: &[Finding]) -> Vec<Value> {
    findings.iter().map(finding_json).collect()
}

fn check_json(report: &CheckReport) -> Value {
    json!({
        "clean": report.is_clean(),
        "items": report.items,
        "bytes": report.bytes,
        "containers": report.containers,
        "unwritten": report.unwritten,
        "findings": all_json(&report.findings),
    })
}

fn repair_json(report: &RepairReport) -> Value {
    let pairs = |all: &[(std::path::PathBuf, String)]| {
        let one = |(path, why): &(std::path::PathBuf, String)| json!({ "path": path.to_string_lossy(), "why": why });
        all.iter().map(one).collect::<Vec<_>>()
    };
    let opening = |r: &Recovery| {
        json!({
            "catalog_rebuilt": r.rebuilt,
            "frames_replayed": r.frames,
            "torn": r.torn,
            "items_lost": r.lost,
            "quarantined": pairs(&r.quarantined),
            "unseen": pairs(&r.unseen),
            "leftovers_deleted": r.deleted,
        })
    };
    json!({
        "clean": report.is_clean(),
        "items": report.found.items,
        "bytes": report.found.bytes,
        "containers": report.found.containers,
        "findings": all_json(&report.found.findings),
        "mended": all_json(&report.mended),
        "lost": all_json(&report.lost),
        "left": all_json(&report.left),
        "failed": pairs(&report.failed),
        "opening": report.recovery.as_ref().map(opening),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_repair_came_to() {
        for (what, said) in [
            (done(2, 0, 0, 0, false), "Repaired: 2 mended, nothing lost, nothing left to repair."),
            (done(0, 0, 0, 0, true), "Repaired: the catalog rebuilt, nothing left to repair."),
            (done(1, 0, 0, 1, true), "Repaired: the catalog rebuilt, 1 mended, 1 left as it was."),
            (
                done(0, 1, 1, 0, false),
                "Repaired: 1 item lost (put it again; what is left of it, if anything, is in `quarantine/`, with a report), 1 container moved to the quarantine, nothing left to repair.",
            ),
            (
                done(0, 2000, 0, 3, false),
                "Repaired: 2,000 items lost (put them again; what is left of them, if anything, is in `quarantine/`, with a report), 3 left as they were.",
            ),
            (done(0, 0, 0, 2, false), "Nothing could be repaired: 2 left as they were."),
        ] {
            assert_eq!(what, said);
        }
    }
}
