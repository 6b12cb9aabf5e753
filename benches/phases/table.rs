//! The figures: medians over the rounds, by phase and setting.

use crate::load::PHASES;
use crate::{Run, SETTINGS, Slice};
use std::fmt::Write as _;

/// A figure of some slices.
type Of<'a> = &'a dyn Fn(&[&Slice]) -> f64;

/// The middle one.
pub fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(0.0)
}

/// The second lowest of five: what a neighbour on the machine added is in the others.
pub fn quiet(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 4).copied().unwrap_or(0.0)
}

/// The mean time of a request in a phase, each slice as in the quieter of its rounds: they are the same requests, and a
/// machine that others use adds to some rounds, and takes from none.
fn quiet_mean(runs: &[Run], phase: Option<usize>) -> f64 {
    let slices = runs.iter().map(|run| run.slices.len()).min().unwrap_or(0);
    let (mut sum, mut requests) = (0.0, 0.0);
    for at in 0..slices {
        let rounds: Vec<&Slice> = runs.iter().filter_map(|run| run.slices.get(at)).collect();
        let Some(first) = rounds.first().filter(|s| phase.is_none_or(|p| s.phase == p)) else { continue };
        sum += quiet(rounds.iter().map(|s| s.mean).collect()) * first.requests as f64;
        requests += first.requests as f64;
    }
    sum / f64::max(requests, 1.0)
}

/// Something of one phase of one run; of all of them without a phase.
fn figure(run: &Run, phase: Option<usize>, of: Of<'_>) -> f64 {
    let slices: Vec<&Slice> = run.slices.iter().filter(|s| phase.is_none_or(|p| s.phase == p)).collect();
    of(&slices)
}

/// The mean time of a request.
pub fn mean(slices: &[&Slice]) -> f64 {
    let requests: f64 = slices.iter().map(|s| s.requests as f64).sum();
    slices.iter().map(|s| s.mean * s.requests as f64).sum::<f64>() / requests.max(1.0)
}

/// The middle of the slices' tails.
fn tail(slices: &[&Slice]) -> f64 {
    median(slices.iter().map(|s| s.p99).collect())
}

fn hits(slices: &[&Slice]) -> f64 {
    let all: u64 = slices.iter().map(|s| s.requests).sum();
    slices.iter().map(|s| s.hits).sum::<u64>() as f64 / all.max(1) as f64 * 100.0
}

fn memory(slices: &[&Slice]) -> f64 {
    slices.iter().map(|s| s.memory as f64).sum::<f64>() / slices.len().max(1) as f64 / f64::from(1 << 20)
}

/// The tables.
pub fn text(runs: &[Vec<Run>]) -> String {
    let mut out = String::new();
    let took = |slices: &[&Slice]| slices.iter().map(|s| s.took).sum();
    let rows: [(&str, Of<'_>, f64); 5] = [
        ("mean of a request, µs", &mean, 1e-3),
        ("p99 of a request, µs", &tail, 1e-3),
        ("found, %", &hits, 1.0),
        ("anonymous memory, MiB", &memory, 1.0),
        ("time that it took, s", &took, 1.0),
    ];
    let rounds = runs.first().map_or(0, Vec::len);
    for (title, of, unit) in rows {
        table(&mut out, &format!("{title} (median of {rounds} rounds"), &|setting, phase| {
            median(runs.get(setting).into_iter().flatten().map(|run| figure(run, phase, of) * unit).collect())
        });
    }
    let title = format!("mean of a request, µs (each slice in the quieter of its {rounds} rounds");
    table(&mut out, &title, &|setting, phase| {
        quiet_mean(runs.get(setting).map_or(&[], Vec::as_slice), phase) * 1e-3
    });
    out
}

/// One table: a row for each setting, a column for each phase.
fn table(out: &mut String, title: &str, at: &dyn Fn(usize, Option<usize>) -> f64) {
    let _ = writeln!(out, "\n{title}; × that without the optimizer)");
    let _ = write!(out, "{:14}", "");
    PHASES.iter().chain(&["whole"]).for_each(|p| _ = write!(out, "{p:>19}"));
    out.push('\n');
    for (setting, name) in SETTINGS.iter().enumerate() {
        let _ = write!(out, "{name:14}");
        for phase in (0..PHASES.len()).map(Some).chain([None]) {
            let (value, without) = (at(setting, phase), at(1, phase));
            let ratio = if without > 0.0 { value / without } else { f64::NAN };
            let _ = write!(out, "{value:11.2} ×{ratio:5.2} ");
        }
        out.push('\n');
    }
}
