//! What is seen: lines of text with a little colour, made from two looks, for a screen of any size.
//!
//! Invariants: nothing here asks, waits or fails; what does not fit is left out from the right and from the bottom, and what
//! matters most stands to the left and at the top. Reasons of decisions go on in the next line, and end in `…` where no
//! further one is left. What is printed has no edge, so that nothing of it is left out.

use super::snapshot::{Between, Share, Snapshot};
use crate::show;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Widget};
use thermocline::{ContentType, Tier};

const DASH: &str = "–";
/// Over this share a tier is nearly full.
const NEARLY: f64 = 0.95;

/// Columns of the time before a decision.
const CLOCK: usize = 10;
/// Of a screen that has fewer columns for its words a decision goes over the edge.
const FEWEST: usize = 10;

/// A picture of a store.
#[derive(Debug)]
pub struct View<'a> {
    /// What it is of.
    pub name: &'a str,
    pub before: Option<&'a Snapshot>,
    pub now: &'a Snapshot,
    /// Why there was no newer look.
    pub trouble: Option<&'a str>,
    /// What the keys do, or that it stands still.
    pub keys: &'a str,
}

impl Widget for &View<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let columns = usize::from(area.width).saturating_sub(CLOCK).max(FEWEST);
        Paragraph::new(self.lines(area.width, area.height, columns)).render(area, buffer);
    }
}

impl View<'_> {
    /// The lines for a screen of this size, with so many columns for the words of a decision.
    fn lines(&self, width: u16, height: u16, columns: usize) -> Vec<Line<'static>> {
        let between = Between::new(self.before, self.now);
        let mut lines = vec![self.head(&between)];
        lines.extend(self.trouble.map(|why| Line::styled(format!("no answer: {}", one_line(why)), alarm())));
        lines.extend(troubles(self.now));
        let blocks = [tiers(&between, width), flow(&between), latencies(&between), compression(&between)];
        // A line between two blocks is worth having where all fit.
        let rows: usize = blocks.iter().map(Vec::len).sum();
        let airy = lines.len() + rows + blocks.len() + 5 <= usize::from(height);
        for block in blocks {
            lines.extend(airy.then(Line::default));
            lines.extend(block);
        }
        lines.extend(airy.then(Line::default));
        let room = usize::from(height).saturating_sub(lines.len());
        lines.extend(optimizer(self.now, room, columns));
        lines
    }

    fn head(&self, between: &Between<'_>) -> Line<'static> {
        let process = self.now.process.map_or(String::new(), |p| format!(" (process {p})"));
        let rate = |name| between.rate(name).map_or(DASH.into(), show::rate);
        let hits = share(between.rise("misses_total"), between.rise("gets_total"));
        let hits = hits.map_or(DASH.into(), |misses| show::ratio(1.0 - misses));
        let items = self.now.number("items").map_or(DASH.into(), |n| show::things(n as u64, "item"));
        let text = format!(
            " gets {}  hits {hits}  puts {}  {items}  {}{process}",
            rate("gets_total"),
            rate("puts_total"),
            one_line(self.name)
        );
        Line::from(vec![
            Span::styled(format!("[{}]", self.keys), Style::new().add_modifier(Modifier::REVERSED)),
            Span::raw(text),
        ])
    }
}

fn alarm() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

fn share(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    let (part, whole) = (part?, whole?);
    (whole > 0.0).then_some(part / whole)
}

fn cell(value: Option<f64>, shown: impl Fn(f64) -> String) -> String {
    value.map_or(DASH.into(), shown)
}

fn bytes(n: f64) -> String {
    show::bytes(n as u64)
}

fn heading(text: String) -> Line<'static> {
    Line::styled(text, Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD))
}

/// What is wrong: directories out of service, damage, failures. Nothing, as a rule.
fn troubles(now: &Snapshot) -> Vec<Line<'static>> {
    let out = now.out_of_service.iter();
    let mut lines: Vec<Line> = out
        .map(|(tier, path, why)| Line::styled(format!("out of service: {path} ({tier}): {why}"), alarm()))
        .collect();
    let counts = [
        ("damaged_total", "damaged"),
        ("unreachable_total", "out of reach"),
        ("write_failures_total", "failed writes"),
        ("busy_total", "busy"),
    ];
    let mut told: Vec<String> = counts
        .iter()
        .filter_map(|(name, what)| Some((now.number(name).filter(|n| *n > 0.0)?, what)))
        .map(|(n, what)| format!("{} {what}", show::count(n as u64)))
        .collect();
    let errors = now.numbers.iter().filter(|(name, _)| name.starts_with("directory_errors_total"));
    let errors: f64 = errors.map(|(_, n)| n).sum();
    if errors > 0.0 {
        told.push(format!("{} disk errors", show::count(errors as u64)));
    }
    if !told.is_empty() {
        lines.push(Line::styled(
            format!("since the opening: {}", told.join(", ")),
            Style::new().fg(Color::Yellow),
        ));
    }
    lines
}

/// The tiers that the store has.
fn present(now: &Snapshot) -> impl Iterator<Item = (Tier, String)> + '_ {
    let tiers = Tier::ALL.into_iter().map(|tier| (tier, format!("{{tier=\"{}\"}}", tier.name())));
    tiers.filter(|(_, label)| now.number(&format!("tier_bytes{label}")).is_some())
}

/// How full each tier is, and what it answers.
fn tiers(between: &Between<'_>, width: u16) -> Vec<Line<'static>> {
    // The rest of a line is 63 wide.
    let bar = usize::from(width.saturating_sub(63)).clamp(8, 40);
    let mut lines = vec![heading(format!(
        "{:<7} {:<bar$} {:>5} {:>8} {:>8} {:>7} {:>6} {:>7} {:>7}",
        "tier", "full", "", "occupied", "limit", "hits", "items", "p50", "p99"
    ))];
    for (tier, label) in present(between.now) {
        let now = |name: &str| between.now.number(&format!("{name}{label}"));
        let (occupied, limit) = (now("tier_bytes"), now("tier_limit_bytes"));
        let full = share(occupied, limit);
        let filled = (full.unwrap_or(0.0).clamp(0.0, 1.0) * bar as f64).round() as usize;
        let colour = match full {
            Some(full) if full > NEARLY && tier != Tier::Memory => Color::Yellow,
            _ => Color::Green,
        };
        let hits = share(between.rise(&format!("tier_hits_total{label}")), between.rise("gets_total"));
        let latency = |share| cell(between.latency(&format!("get_seconds{label}"), share), show::nanos);
        let drawn =
            if full.is_some() { "█".repeat(filled) + &"░".repeat(bar - filled) } else { " ".repeat(bar) };
        lines.push(Line::from(vec![
            Span::raw(format!("{:<7} ", tier.name())),
            Span::styled(drawn, Style::new().fg(colour)),
            Span::raw(format!(
                " {:>5} {:>8} {:>8} {:>7} {:>6} {:>7} {:>7}",
                cell(full, |f| format!("{:.0} %", 100.0 * f)),
                cell(occupied, bytes),
                limit.map_or("none".into(), bytes),
                cell(hits, |h| format!("{:.1} %", 100.0 * h)),
                cell(now("tier_items"), short),
                latency(Share::Half),
                latency(Share::Most),
            )),
        ]));
    }
    lines
}

/// A count in few characters.
fn short(n: f64) -> String {
    if n < 100_000.0 { format!("{n:.0}") } else { show::number(n) }
}

/// What moves between the tiers.
fn flow(between: &Between<'_>) -> Vec<Line<'static>> {
    let per_second = |n: f64| format!("{}/s", bytes(n));
    let moved = cell(between.rate("moved_bytes_total"), per_second);
    let dirty = cell(between.now.number("dirty_bytes"), bytes);
    let mut lines = vec![heading(format!(
        "{:<7} {:>11} {:>11} {:>11} {:>12} {:>12}",
        "flow", "promoted", "demoted", "evicted", "disk reads", "disk writes"
    ))];
    for (tier, label) in present(between.now) {
        let rate = |name: &str| cell(between.rate(&format!("{name}{label}")), show::rate);
        // Of all its directories. What is read through a map is not seen, so that nothing at all means that it is not known.
        let disk = |name: &str| {
            let start = format!("{name}{{tier=\"{}\"", tier.name());
            let seen = tier != Tier::Ssd || between.now.sum(&start).is_some_and(|sum| sum > 0.0);
            cell(between.rate(&start).filter(|_| seen), per_second)
        };
        lines.push(Line::raw(format!(
            "{:<7} {:>11} {:>11} {:>11} {:>12} {:>12}",
            tier.name(),
            rate("tier_promoted_total"),
            rate("tier_demoted_total"),
            rate("tier_evicted_total"),
            disk("directory_read_bytes_total"),
            disk("directory_written_bytes_total"),
        )));
    }
    lines.push(Line::raw(format!("moved {moved} in all, {dirty} to be written")));
    lines
}

/// How long what is not a hit takes.
fn latencies(between: &Between<'_>) -> Vec<Line<'static>> {
    let all = [
        ("put", "put_seconds"),
        ("miss", "miss_seconds"),
        ("remove", "remove_seconds"),
        ("flush", "flush_seconds"),
        ("journal", "journal_sync_seconds"),
    ];
    let row = |share| {
        let cells =
            all.iter().map(|(_, name)| format!("{:>10}", cell(between.latency(name, share), show::nanos)));
        cells.collect::<String>()
    };
    let names: String = all.iter().map(|(name, _)| format!("{name:>10}")).collect();
    vec![
        heading(format!("{:<7} {names}", "latency")),
        Line::raw(format!("{:<7} {}", "p50", row(Share::Half))),
        Line::raw(format!("{:<7} {}", "p99", row(Share::Most))),
    ]
}

/// What compression did to each content type since the store was opened.
fn compression(between: &Between<'_>) -> Vec<Line<'static>> {
    let header = format!(
        "{:<7} {:>10} {:>11} {:>11} {:>8}   since the opening",
        "type", "written", "bytes", "stored", "saved"
    );
    let mut lines = vec![heading(header)];
    for content_type in ContentType::STORED {
        let of =
            |name: &str| between.now.number(&format!("{name}{{content_type=\"{}\"}}", content_type.name()));
        let (items, original) = (of("type_items_total"), of("type_original_bytes_total"));
        let stored = of("type_stored_bytes_total");
        let saved = share(stored, original).map(|s| 1.0 - s);
        lines.push(Line::raw(format!(
            "{:<7} {:>10} {:>11} {:>11} {:>8}",
            content_type.name(),
            cell(items, short),
            cell(original, bytes),
            cell(stored, bytes),
            cell(saved, |s| format!("{:.0} %", 100.0 * s)),
        )));
    }
    lines
}

/// Pressure, strategy, and the last decisions, the newest first, as many as there is room for.
fn optimizer(now: &Snapshot, room: usize, columns: usize) -> Vec<Line<'static>> {
    let Some(last) = now.turns.last() else {
        return vec![heading("optimizer: no decision yet".to_owned())];
    };
    let pressure = cell(last.pressure, |p| format!("{p:.2}"));
    let parts: Vec<String> =
        last.parts.iter().map(|(name, p)| format!("{name} {:.0} %", 100.0 * p)).collect();
    let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
    let text = format!("optimizer: pressure {pressure}{parts}, strategy {}", last.strategy);
    let mut lines = vec![heading(text)];
    let decisions = now.turns.iter().rev().flat_map(|t| t.actions.iter().map(|a| (clock(t.unix_ms), a)));
    let mut room = room.saturating_sub(1);
    for (at, action) in decisions {
        if room == 0 {
            break;
        }
        let folded = folded(action, columns, room);
        room -= folded.len();
        let starts = std::iter::once(at).chain(std::iter::repeat(String::new()));
        let line = |(start, text)| Line::raw(format!("{start:<width$}{text}", width = CLOCK));
        lines.extend(starts.zip(folded).map(line));
    }
    lines
}

/// Text in lines of at most so many columns, broken between words; at most so many lines, of which the last one then ends
/// in `…`.
fn folded(text: &str, columns: usize, most: usize) -> Vec<String> {
    let wide = |text: &str| Span::raw(text).width();
    let mut lines = vec![String::new()];
    let mut cut = false;
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else { break };
        let fits = line.is_empty() || wide(line) + 1 + wide(word) <= columns;
        if fits {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        } else if lines.len() < most {
            lines.push(word.to_owned());
        } else {
            cut = true;
            break;
        }
    }
    // A word, a path as a rule, that is wider than a line.
    for (n, line) in lines.iter_mut().enumerate() {
        let goes_on = cut && n + 1 == most;
        if goes_on || wide(line) > columns {
            let word = |line: &str| line.rfind(' ').filter(|_| wide(line) >= columns);
            while let Some(end) = word(line) {
                line.truncate(end);
            }
            while wide(line) >= columns && line.pop().is_some() {}
            line.push('…');
        }
    }
    lines
}

/// The time of day, UTC.
fn clock(unix_ms: u64) -> String {
    let s = unix_ms / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// A picture as text alone, whose tables are this wide; what is said in words is as long as it is. Nothing would be empty at
/// the end of a line.
pub fn plain(view: &View<'_>, width: u16) -> String {
    let mut text = String::new();
    for line in view.lines(width, 200, usize::MAX) {
        text.push_str(line.to_string().trim_end());
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// What others say, or paths, in the one line that there is for it, with nothing in it that a terminal would obey.
fn one_line(text: &str) -> String {
    show::safe(&text.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::two_looks;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn view<'a>(before: Option<&'a Snapshot>, now: &'a Snapshot) -> View<'a> {
        View { name: "/store", before, now, trouble: None, keys: "q quit" }
    }

    #[test]
    fn all_that_matters_is_on_a_screen_of_the_usual_size() {
        let (before, now) = two_looks();
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| frame.render_widget(&view(Some(&before), &now), frame.area())).unwrap();
        let shown = terminal.backend().to_string();
        for part in [
            "[q quit] gets 100/s  hits 90.00 %  puts 50.0/s  1,000 items  /store",
            "out of service: /mnt/nvme (ssd): Input/output error",
            "since the opening: 1 damaged",
            "memory  █████████████░░░░  75 % 6.00 MiB 8.00 MiB  80.0 %    300  100 ns 1.00 µs",
            "none   0.0 %    100 5.00 ms",
            "moved 1.00 MiB/s in all",
            "3.00/s",
            "latency ",
            "text           120    11.7 KiB    2.93 KiB     75 %",
            "optimizer: pressure 0.42 (memory 50 %, I/O 3 %), strategy balanced",
        ] {
            assert!(shown.contains(part), "{part}\n{shown}");
        }
        // What the store does not have is not there.
        assert!(!shown.contains("hdd"), "{shown}");
        let text = plain(&view(Some(&before), &now), 120);
        for part in
            ["22:13:20Z prefetch: 1", "22:13:20Z taken back: allocator", "22:13:20Z came of it: pressure"]
        {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn any_size_of_screen_is_drawn() {
        let (before, now) = two_looks();
        let empty = Snapshot { numbers: Default::default(), turns: vec![], ..now.clone() };
        for (width, height) in [(80, 24), (40, 10), (200, 60), (1, 1), (3, 200), (500, 2), (0, 0)] {
            for (before, now) in [(Some(&before), &now), (None, &now), (None, &empty), (Some(&now), &empty)] {
                let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
                terminal.draw(|frame| frame.render_widget(&view(before, now), frame.area())).unwrap();
                let _ = plain(&view(before, now), width);
            }
        }
        // On a small one the head and the tiers are seen, on a large one there is air between the blocks.
        let lines = |width, height| {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| frame.render_widget(&view(None, &now), frame.area())).unwrap();
            terminal.backend().to_string()
        };
        assert!(lines(40, 10).contains("memory "), "{}", lines(40, 10));
        let large = lines(200, 60);
        assert!(
            large.contains("prefetch: 1.00 × 64 KiB → off") && large.contains("since the opening"),
            "{large}"
        );
    }

    const LONG: &str = "reclaim of ssd: 64.0 → 1.00 MiB/s: 812 KiB/s flow into the tier, which is 81.3 % full and has \
        been so for longer than anybody would like to read in a line of a screen";

    #[test]
    fn a_reason_is_printed_whole_and_folded_on_a_screen() {
        let (_, mut now) = two_looks();
        now.turns[0].actions = vec![LONG.to_owned(), "pressure: 0.50 → 0.40".to_owned()];
        let text = plain(&view(None, &now), 110);
        assert!(text.contains(&format!("22:13:20Z {LONG}\n")), "{text}");
        let lines = |height| {
            let mut terminal = Terminal::new(TestBackend::new(80, height)).unwrap();
            terminal.draw(|frame| frame.render_widget(&view(None, &now), frame.area())).unwrap();
            let shown = terminal.backend().to_string();
            let lines = shown.lines().map(|l| l.trim_matches('"').trim_end().to_owned());
            lines
                .skip_while(|l| !l.starts_with("22:13:20Z "))
                .take_while(|l| !l.is_empty())
                .collect::<Vec<_>>()
        };
        let whole = lines(40);
        assert!(whole.len() >= 4, "{whole:?}");
        assert!(whole[1].starts_with("          ") && whole[1].chars().count() <= 80, "{whole:?}");
        let (last, reason) = whole.split_last().unwrap();
        assert_eq!(last, "22:13:20Z pressure: 0.50 → 0.40");
        let words: Vec<&str> = reason.iter().flat_map(|l| l.split_whitespace()).skip(1).collect();
        assert_eq!(words.join(" "), LONG);
        // Where one line is left it ends at a word, and says that more is to come.
        let small = (20..40).map(lines).find(|l| l.len() == 1).unwrap();
        let cut = small[0].strip_prefix("22:13:20Z ").unwrap().strip_suffix('…').unwrap();
        assert!(LONG.strip_prefix(cut).is_some_and(|rest| rest.starts_with(' ')), "{small:?}");
    }

    #[test]
    fn text_is_folded_between_words_and_within_the_columns() {
        assert_eq!(folded("a bb ccc", 4, 9), ["a bb", "ccc"]);
        assert_eq!(folded("a bb ccc", 4, 1), ["a…"]);
        assert_eq!(folded("a b/longer/path c", 6, 9), ["a", "b/lon…", "c"]);
        assert_eq!(folded("ä ö ü", usize::MAX, 1), ["ä ö ü"]);
        assert_eq!(folded("漢字 漢字", 5, 9), ["漢字", "漢字"]);
        assert_eq!(folded("", 4, 1), [""]);
    }

    /// What is read through a map is not seen: 0 would be wrong.
    #[test]
    fn what_nobody_counts_is_a_dash() {
        let (mut before, mut now) = two_looks();
        let row = |before: &Snapshot, now: &Snapshot| {
            let text = plain(&view(Some(before), now), 110);
            text.lines().filter(|l| l.starts_with("ssd")).nth(1).unwrap().to_owned()
        };
        assert!(row(&before, &now).contains("2.93 KiB/s"), "{}", row(&before, &now));
        for look in [&mut before, &mut now] {
            let reads =
                |(name, n): (&String, &mut f64)| name.starts_with("directory_read_bytes").then(|| *n = 0.0);
            assert_eq!(look.numbers.iter_mut().filter_map(reads).count(), 2);
        }
        assert!(!row(&before, &now).contains("0 B/s"), "{}", row(&before, &now));
    }

    #[test]
    fn nothing_reaches_the_terminal_that_it_would_obey() {
        let (_, now) = two_looks();
        let odd = View { name: "/a\u{202e}b", trouble: Some("c\u{2066}\u{1b}[2J\nd"), ..view(None, &now) };
        let text = plain(&odd, 200);
        assert!(
            text.contains(r"/a\xe2\x80\xaeb") && text.contains(r"no answer: c\xe2\x81\xa6\x1b[2J d"),
            "{text}"
        );
        assert!(!text.contains(['\u{202e}', '\u{2066}', '\u{1b}']), "{text:?}");
    }

    #[test]
    fn a_store_that_is_gone_is_said_to_be() {
        let (_, now) = two_looks();
        let gone = View { trouble: Some("nobody to ask"), ..view(None, &now) };
        assert!(plain(&gone, 100).contains("no answer: nobody to ask"));
        // A first look has no rates.
        assert!(plain(&view(None, &now), 100).contains("gets –"));
    }
}
