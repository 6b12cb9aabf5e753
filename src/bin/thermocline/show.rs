//! Numbers, keys and tables for people; keys for programs.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
pub use thermocline::units::{bytes, count, figures, nanos};

/// A count of things: `1 item`, `2 items`.
pub fn things(n: u64, one: &str) -> String {
    format!("{} {one}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A number, to three figures: `850`, `12.3 k`, `1.23 M`.
pub fn number(n: f64) -> String {
    if n < 999.5 {
        figures(n)
    } else if n < 999_500.0 {
        format!("{} k", figures(n / 1e3))
    } else {
        format!("{} M", figures(n / 1e6))
    }
}

/// A rate: `850/s`, `12.3 k/s`, `1.23 M/s`.
pub fn rate(per_second: f64) -> String {
    format!("{}/s", number(per_second))
}

/// A time, UTC: `2026-11-22 21:04:11Z`.
pub fn moment(unix_ms: u64) -> String {
    let (days, s) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    // Howard Hinnant's way from days to a date: years begin with March.
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// What the optimizer did, as a store tells it: what was changed, why, and why not if it was not.
pub fn action(action: &Value) -> Option<String> {
    let text = |name| action.get(name).and_then(Value::as_str);
    let back = action.get("takes_back").and_then(Value::as_bool).unwrap_or(false);
    let back = if back { "taken back: " } else { "" };
    let because = text("because").map(|why| format!(": {why}")).unwrap_or_default();
    let failed = text("error").map(|why| format!(" (not done: {why})")).unwrap_or_default();
    Some(format!("{back}{}{because}{failed}", text("change")?))
}

/// What an action's goal did, as a store tells it: `pressure: 0.92 → 0.71`.
pub fn effect(effect: &Value) -> String {
    let of = |name: &str| match effect.get(name).and_then(Value::as_f64) {
        None => "–".to_owned(),
        Some(n) if n != 0.0 && n.abs() < 0.01 => format!("{n:.2e}"),
        Some(n) => figures(n),
    };
    let goal = effect.get("goal").and_then(Value::as_str).unwrap_or("?");
    format!("{goal}: {} → {}", of("before"), of("after"))
}

/// A part of a whole in per cent; `–` of nothing.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "–".into() } else { format!("{:.1} %", 100.0 * part as f64 / whole as f64) }
}

/// A share between 0 and 1 in per cent, with two digits: hit ratios are compared by the hundredth.
pub fn ratio(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// A key as one line for people: what is no printable UTF-8 as `\xNN`, and `\` as `\\`, so that nothing is ambiguous
/// and nothing in a key reaches the terminal as a control sequence.
pub fn key(key: &[u8]) -> String {
    let mut out = String::with_capacity(key.len());
    for chunk in key.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' {
                out.push_str("\\\\");
            } else if is_obeyed(c) {
                escape(&mut out, c);
            } else {
                out.push(c);
            }
        }
        chunk.invalid().iter().for_each(|b| hex_byte(&mut out, *b));
    }
    out
}

/// Text for people: lines as they are, and in them what a terminal would obey as `\xNN`. Paths and what others say may have
/// such in them.
pub fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && is_obeyed(c) { escape(&mut out, c) } else { out.push(c) }
    }
    out
}

/// Control characters, and marks that change the direction or the look of what follows.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn escape(out: &mut String, c: char) {
    let mut buf = [0; 4];
    c.encode_utf8(&mut buf).bytes().for_each(|b| hex_byte(out, b));
}

/// A JSON document with what a terminal would obey escaped, too, which is the same to whoever reads it as JSON. (Outside of
/// its strings there is nothing such but the ends of lines.)
fn harmless(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_obeyed(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Writes a JSON document in one line.
pub fn json_line(out: &mut impl Write, value: &Value) -> io::Result<()> {
    out.write_all(harmless(&value.to_string()).as_bytes())?;
    out.write_all(b"\n")
}

fn hex_byte(out: &mut String, b: u8) {
    let _ = write!(out, "\\x{b:02x}");
}

/// A file that the command line names, as messages call it: `-` is the standard input.
pub fn file(path: &Path) -> &Path {
    if path.as_os_str() == "-" { Path::new("standard input") } else { path }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// Hexadecimal digits as bytes; `None` if they are none.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| std::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok())).collect()
}

/// A table whose first columns (`left` of them) are names and the others numbers.
pub fn table(left: usize, header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_cell_alignment(if i < left { CellAlignment::Left } else { CellAlignment::Right });
        column.set_padding((if i == 0 { 2 } else { 1 }, 1));
    }
    let lines: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
    let width = lines.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        out.push_str(line);
        out.push('\n');
        if i == 0 {
            let _ = writeln!(out, "  {}", "─".repeat(width.saturating_sub(2)));
        }
    }
    out
}

/// Text in lines of at most 108 characters, the second and later ones indented like a table. A no-break space keeps
/// what it joins together.
pub fn wrap(text: &str) -> String {
    let mut out = String::new();
    let mut width = 2;
    for word in text.split(' ') {
        let len = word.chars().count();
        if width > 2 && width + 1 + len > 108 {
            out.push_str("\n  ");
            width = 2;
        } else if width > 2 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += len;
    }
    out
}

/// Whether something else draws on the whole of the terminal.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// From now on no bar is drawn: the terminal is somebody else's.
pub fn draw_no_bars() {
    TAKEN.store(true, Ordering::SeqCst);
}

/// A bar as it may be drawn.
pub fn drawn(bar: ProgressBar) -> ProgressBar {
    if TAKEN.load(Ordering::SeqCst) {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

/// Something on stderr that moves while nothing can be counted; nothing where stderr is no terminal.
pub fn spinner(what: &'static str) -> ProgressBar {
    let spinner = drawn(ProgressBar::new_spinner().with_message(what));
    spinner.tick();
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

/// The version of the command.
pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Writes one JSON document and a newline to stdout.
pub fn json(value: &Value) -> Result<(), crate::failure::Failure> {
    let mut out = io::stdout().lock();
    out.write_all(harmless(&serde_json::to_string_pretty(value)?).as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

/// Writes a line to stderr that is no failure; nothing if it is empty.
pub fn note(text: &str) -> Result<(), crate::failure::Failure> {
    if !text.is_empty() {
        io::stderr().lock().write_all(format!("thermocline: {}\n", safe(text)).as_bytes())?;
    }
    Ok(())
}

/// Writes text to stdout.
pub fn text(text: &str) -> Result<(), crate::failure::Failure> {
    let mut out = io::stdout().lock();
    out.write_all(safe(text).as_bytes())?;
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers() {
        for (n, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10 << 20, "10.0 MiB"),
            ((1 << 30) - 1, "1.00 GiB"),
            (5 << 40, "5.00 TiB"),
        ] {
            assert_eq!(bytes(n), shown);
        }
        for (n, shown) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), shown);
        }
        for (ns, shown) in [(85.0, "85 ns"), (1234.0, "1.23 µs"), (999_600.0, "1.00 ms"), (2.5e9, "2.50 s")]
        {
            assert_eq!(nanos(ns), shown);
        }
        assert_eq!(rate(1_234_000.0), "1.23 M/s");
        assert_eq!((number(850.0), number(12_340.0)), ("850".into(), "12.3 k".into()));
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(moment(1_700_000_000_000), "2023-11-14 22:13:20Z");
        assert_eq!(
            (moment(0), moment(1_709_164_800_000)),
            ("1970-01-01 00:00:00Z".into(), "2024-02-29 00:00:00Z".into())
        );
        let said = serde_json::json!({ "goal": "pressure", "before": 0.0012, "after": null });
        assert_eq!(effect(&said), "pressure: 1.20e-3 → –");
        assert_eq!(percent(0, 0), "–");
    }

    #[test]
    fn keys_that_are_no_text_are_escaped() {
        assert_eq!(key("thumb/42 ä".as_bytes()), "thumb/42 ä");
        assert_eq!(key(b"a\xffb\n\\"), "a\\xffb\\x0a\\\\");
        assert_eq!(key("\u{1b}[31m".as_bytes()), "\\x1b[31m");
        assert_eq!(key("\u{202e}x".as_bytes()), "\\xe2\\x80\\xaex");
        assert_eq!(key("\u{61c}\u{2060}\u{9b}".as_bytes()), "\\xd8\\x9c\\xe2\\x81\\xa0\\xc2\\x9b");
        assert_eq!(safe("a\u{1b}[2J\n\u{9b}b\\x\r"), "a\\x1b[2J\n\\xc2\\x9bb\\x\\x0d");
    }

    #[test]
    fn json_has_nothing_that_a_terminal_obeys_and_says_the_same() {
        let value =
            serde_json::json!({ "\u{9b}k": ["\u{7f}\u{1b}[31m", "\u{202e}ä\n\"", 1, {}, []], "z": null });
        let mut out = Vec::new();
        json_line(&mut out, &value).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "{\"z\":null,\"\\u009bk\":[\"\\u007f\\u001b[31m\",\"\\u202eä\\n\\\"\",1,{},[]]}\n");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    proptest! {
        #[test]
        fn hex_there_and_back(data in proptest::collection::vec(any::<u8>(), 0..50)) {
            prop_assert_eq!(from_hex(&hex(&data)), Some(data));
        }

        #[test]
        fn no_hex_no_panic(text in "\\PC{0,10}") {
            let _ = from_hex(&text);
        }

        #[test]
        fn a_shown_key_has_no_controls(data in proptest::collection::vec(any::<u8>(), 0..50)) {
            prop_assert!(!key(&data).chars().any(char::is_control));
        }
    }
}
