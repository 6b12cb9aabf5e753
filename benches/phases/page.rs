//! The page: what the tables say, and each slice's medians as lines.

use crate::load::PHASES;
use crate::table::{median, text};
use crate::{Run, SETTINGS, Slice};
use plotters::prelude::*;
use std::error::Error;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#222;\
background:#fff}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}pre{font:12px/1.45 ui-monospace,monospace;\
overflow-x:auto;background:#f6f6f4;padding:.8rem}svg{max-width:100%;height:auto;background:#fff}";
const COLOURS: [RGBColor; 6] = [
    RGBColor(209, 73, 91),
    RGBColor(0, 121, 140),
    RGBColor(150, 200, 206),
    RGBColor(237, 174, 73),
    RGBColor(102, 161, 130),
    RGBColor(110, 80, 160),
];

/// What is drawn of a slice.
type Of<'a> = &'a dyn Fn(&Slice) -> f64;

/// The page, which needs nothing else.
pub fn html(runs: &[Vec<Run>]) -> String {
    let lines: [(&str, Of<'_>, bool); 4] = [
        ("Mean of a request, µs", &|s| s.mean / 1e3, true),
        ("p99 of a request, µs", &|s| s.p99 / 1e3, true),
        ("Found, %", &|s| s.hits as f64 / s.requests.max(1) as f64 * 100.0, false),
        ("Anonymous memory, MiB", &|s| s.memory as f64 / f64::from(1 << 20), false),
    ];
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>thermocline: the optimizer</title>\
         <style>{STYLE}</style></head><body><h1>The optimizer, and the same store without it</h1>\
         <p>Medians over {} rounds, each setting in a process of its own, in turns. The phases: {}. Strategy by slice of \
         the first round with the optimizer: {}.</p>",
        runs.first().map_or(0, Vec::len),
        PHASES.join(", "),
        strategies(runs)
    );
    for (title, of, logarithmic) in lines {
        out.push_str(&format!("<h2>{title}</h2>"));
        match plot(runs, of, logarithmic) {
            Ok(svg) => out.push_str(&svg),
            Err(e) => out.push_str(&format!("<p>no picture: {e}</p>")),
        }
    }
    out.push_str("<h2>What the optimizer did in the first round, by slice, and why</h2><ol>");
    for what in runs.first().and_then(|r| r.first()).iter().flat_map(|run| &run.decisions) {
        out.push_str(&format!("<li>{}</li>", what.replace('&', "&amp;").replace('<', "&lt;")));
    }
    out.push_str("</ol>");
    out.push_str(&format!("<h2>Figures</h2><pre>{}</pre></body></html>\n", text(runs)));
    out
}

/// Strategies of the optimizer, with the slice from which on each was in force.
fn strategies(runs: &[Vec<Run>]) -> String {
    let Some(run) = runs.first().and_then(|r| r.first()) else { return String::new() };
    let mut found: Vec<(usize, &str)> = Vec::new();
    for (slice, of) in run.slices.iter().enumerate() {
        if found.last().is_none_or(|(_, last)| *last != of.strategy) {
            found.push((slice, &of.strategy));
        }
    }
    found.iter().map(|(s, name)| format!("{name} from {s}")).collect::<Vec<_>>().join(", ")
}

fn plot(runs: &[Vec<Run>], of: Of<'_>, logarithmic: bool) -> Result<String, Box<dyn Error>> {
    let slices = runs.iter().flatten().map(|run| run.slices.len()).max().unwrap_or(0);
    let line = |setting: usize| -> Vec<(f64, f64)> {
        let at =
            |n: usize| median(runs[setting].iter().filter_map(|run| run.slices.get(n)).map(of).collect());
        // What is drawn on a logarithmic scale cannot be nothing.
        (0..slices).map(|n| (n as f64, if logarithmic { at(n).max(0.1).log10() } else { at(n) })).collect()
    };
    let all: Vec<Vec<(f64, f64)>> = (0..SETTINGS.len()).map(line).collect();
    let least = all.iter().flatten().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let most = all.iter().flatten().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let least = if logarithmic { least } else { 0.0 };
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (960, 300)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(28)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..slices as f64, least..most.max(least + 0.1))?;
        let label = |v: &f64| if logarithmic { format!("{:.1}", 10f64.powf(*v)) } else { format!("{v:.0}") };
        chart
            .configure_mesh()
            .x_desc("slices: the same requests in each setting, about a second's")
            .y_label_formatter(&label)
            .light_line_style(WHITE)
            .draw()?;
        for ((points, colour), name) in all.into_iter().zip(COLOURS).zip(SETTINGS) {
            let width = if name == "optimizer" { 3 } else { 1 };
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(width)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}
