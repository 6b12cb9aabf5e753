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
    for (title, of, unit) in rows {
        let _ = writeln!(
            out,
            "\n{title} (median of {} rounds; × that without the optimizer)",
            runs.first().map_or(0, Vec::len)
        );
        let _ = write!(out, "{:14}", "");
        PHASES.iter().chain(&["whole"]).for_each(|p| _ = write!(out, "{p:>19}"));
        out.push('\n');
        let phases = || (0..PHASES.len()).map(Some).chain([None]);
        let at = |setting: usize, phase| {
            median(runs.get(setting).into_iter().flatten().map(|run| figure(run, phase, of) * unit).collect())
        };
        for (setting, name) in SETTINGS.iter().enumerate() {
            let _ = write!(out, "{name:14}");
            for phase in phases() {
                let (value, without) = (at(setting, phase), at(1, phase));
                let ratio = if without > 0.0 { value / without } else { f64::NAN };
                let _ = write!(out, "{value:11.1} ×{ratio:5.2} ");
            }
            out.push('\n');
        }
    }
    out
}
