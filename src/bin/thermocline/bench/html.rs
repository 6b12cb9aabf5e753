//! What was found, as one page that needs nothing else: tables and plots in SVG, no script, nothing from the network.

use super::Report;
use super::text::{name, page_cache_note, verdict};
use crate::inspect::type_rows;
use crate::show;
use std::fmt::Write as _;
use thermocline::Tier;

const COLOURS: [&str; 4] = ["#d1495b", "#edae49", "#00798c", "#30638e"];
const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222;background:#fff}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid #ccc}\
pre{font:13px/1.45 ui-monospace,monospace;overflow-x:auto;background:#f6f6f4;padding:.8rem}\
svg{max-width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:#222}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#1b1b1b}pre{background:#262626}svg text{fill:#ddd}}";

impl Report<'_> {
    /// The page.
    pub fn html(&self) -> String {
        let mut out = String::from("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
        let _ = writeln!(out, "<title>thermocline bench</title><style>{STYLE}</style></head><body>");
        let (count, bytes) = (show::count(self.items.all.len() as u64), show::bytes(self.items.bytes()));
        let _ = writeln!(out, "<h1>thermocline bench</h1><p>{count} items, {bytes}.</p>");
        if self.found.reads.is_some() {
            let _ = writeln!(out, "<p>{}</p>", escape(&page_cache_note(self.found)));
        }
        plot(&mut out, "Latency of a get, by the tier that answered", &self.latency_plot());
        plot(&mut out, "Who answered", &self.share_plot());
        plot(&mut out, "Compression: stored of original", &self.type_plot());
        plot(&mut out, "Mean get at other sizes", &self.advice_plot());
        if let Some(text) = self.found.advice.as_ref().and_then(|a| verdict(a, &self.alike())) {
            let _ = writeln!(out, "<p>{}</p>", escape(&text));
        }
        let _ = writeln!(
            out,
            "<h2>Everything in figures</h2>\n<pre>{}</pre>\n</body></html>",
            escape(&self.text())
        );
        out
    }

    /// p50, p99 and p99.9 by tier, on a logarithmic scale.
    fn latency_plot(&self) -> String {
        let Some(reads) = &self.found.reads else { return String::new() };
        let mut bars = Vec::new();
        for (tier, colour) in Tier::ALL.into_iter().zip(COLOURS) {
            let Some(l) = reads.of(tier) else { continue };
            for (q, label) in [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9")] {
                let ns = l.at(q).max(1.0);
                bars.push(Bar {
                    label: format!("{tier} {label}"),
                    value: ns,
                    shown: show::nanos(ns),
                    colour,
                });
            }
        }
        bars_svg(&bars, true)
    }

    /// One bar, cut by tier: measured, and the model at other sizes.
    fn share_plot(&self) -> String {
        let Some(reads) = &self.found.reads else { return String::new() };
        let total = reads.total().max(1) as f64;
        let measured = Tier::ALL.map(|t| reads.of(t).map_or(0.0, |l| l.count() as f64 / total));
        let mut rows = vec![("measured".to_owned(), measured)];
        if let Some(a) = &self.found.advice {
            rows.extend(a.telling().iter().map(|r| (name(r), r.shares)));
        }
        let height = rows.len() * 24 + 30;
        let mut svg = open_svg(height);
        for (n, (label, shares)) in rows.iter().enumerate() {
            let y = n * 24;
            let _ =
                write!(svg, "<text x=\"150\" y=\"{}\" text-anchor=\"end\">{}</text>", y + 15, escape(label));
            let mut x = 160.0;
            for ((share, tier), colour) in shares.iter().zip(Tier::ALL).zip(COLOURS) {
                let width = share * 560.0;
                let title = format!("{tier}: {:.1} %", share * 100.0);
                let _ = write!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"18\" fill=\"{colour}\"><title>{title}</title></rect>",
                    y + 2
                );
                x += width;
            }
        }
        for ((n, tier), colour) in Tier::ALL.into_iter().enumerate().zip(COLOURS) {
            let (x, y) = (160 + n * 100, rows.len() * 24 + 8);
            let _ = write!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"{}\">{tier}</text>",
                x + 18,
                y + 11
            );
        }
        svg.push_str("</svg>");
        svg
    }

    fn type_plot(&self) -> String {
        let Some(stats) = &self.found.stats else { return String::new() };
        let bars: Vec<Bar> = type_rows(stats)
            .into_iter()
            .filter(|(_, of)| of.original_bytes > 0)
            .zip(COLOURS)
            .map(|((t, of), colour)| {
                let (original, stored) = (of.original_bytes, of.stored_bytes);
                let value = stored as f64 / original as f64;
                let shown = format!("{value:.2} ({} of {})", show::bytes(stored), show::bytes(original));
                Bar { label: t.to_string(), value, shown, colour }
            })
            .collect();
        bars_svg(&bars, false)
    }

    fn advice_plot(&self) -> String {
        let Some(a) = &self.found.advice else { return String::new() };
        let bars: Vec<Bar> = a
            .telling()
            .iter()
            .map(|r| {
                let value = r.mean_device.unwrap_or(r.mean);
                let colour = match r.change {
                    Some((tier, _)) => COLOURS.get(tier as usize).copied().unwrap_or("#888"),
                    None => "#888",
                };
                Bar { label: name(r), value, shown: show::nanos(value), colour }
            })
            .collect();
        bars_svg(&bars, false)
    }
}

struct Bar {
    label: String,
    value: f64,
    shown: String,
    colour: &'static str,
}

fn plot(out: &mut String, title: &str, svg: &str) {
    if !svg.is_empty() {
        let _ = writeln!(out, "<h2>{}</h2>\n{svg}", escape(title));
    }
}

fn open_svg(height: usize) -> String {
    format!(
        "<svg viewBox=\"0 0 900 {height}\" width=\"900\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\">"
    )
}

/// Horizontal bars, from 0, or from a tenth of the least on a logarithmic scale.
fn bars_svg(bars: &[Bar], logarithmic: bool) -> String {
    if bars.is_empty() {
        return String::new();
    }
    let most = bars.iter().map(|b| b.value).fold(0.0, f64::max);
    let least = bars.iter().map(|b| b.value).fold(f64::MAX, f64::min) / 10.0;
    let length = |value: f64| {
        let part = if logarithmic { (value / least).ln() / (most / least).ln() } else { value / most };
        if part.is_finite() { part.clamp(0.0, 1.0) * 500.0 } else { 0.0 }
    };
    let mut svg = open_svg(bars.len() * 22 + 6);
    for (n, bar) in bars.iter().enumerate() {
        let (y, width) = (n * 22, length(bar.value));
        let _ = write!(
            svg,
            "<text x=\"150\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect x=\"160\" y=\"{}\" width=\"{width:.1}\" height=\"16\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{}\">{}</text>",
            y + 15,
            escape(&bar.label),
            y + 3,
            bar.colour,
            168.0 + width,
            y + 15,
            escape(&bar.shown)
        );
    }
    svg.push_str("</svg>");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_they_should_be() {
        let bar = |value| Bar { label: "<a>".into(), value, shown: "x".into(), colour: "#000" };
        let svg = bars_svg(&[bar(50.0), bar(100.0)], false);
        assert!(svg.contains("width=\"250.0\"") && svg.contains("width=\"500.0\""), "{svg}");
        assert!(svg.contains("&lt;a&gt;") && !svg.contains("<a>"));
        let svg = bars_svg(&[bar(10.0), bar(1000.0)], true);
        assert!(svg.contains("width=\"166.7\"") && svg.contains("width=\"500.0\""), "{svg}");
        assert_eq!(bars_svg(&[], true), "");
        assert!(bars_svg(&[bar(0.0)], true).contains("width=\"0.0\""));
    }
}
