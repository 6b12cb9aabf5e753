//! Numbers for people: what the optimizer says and what the command prints have the same units.

use std::time::Duration;

/// Bytes in the largest binary unit that leaves at least 1, to three figures: `12.3 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = "B";
    for name in UNITS {
        unit = name;
        if value < 1023.5 || name == "TiB" {
            break;
        }
        value /= 1024.0;
    }
    if unit == "B" { format!("{n} B") } else { format!("{} {unit}", figures(value)) }
}

/// A count with separators: `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Three figures: `1.23`, `12.3`, `123`.
pub fn figures(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// Nanoseconds, to three figures: `850 ns`, `12.3 µs`, `4.56 ms`, `1.20 s`.
pub fn nanos(ns: f64) -> String {
    if ns < 999.5 {
        format!("{ns:.0} ns")
    } else if ns < 999_500.0 {
        format!("{} µs", figures(ns / 1e3))
    } else if ns < 999_500_000.0 {
        format!("{} ms", figures(ns / 1e6))
    } else {
        format!("{} s", figures(ns / 1e9))
    }
}

/// A time that somebody chose, in the largest unit of which it is a whole number: `90 s`, `10 min`, `4 h`, `2 d`. Any other
/// as [`nanos`] has it.
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds == 0 || time.subsec_nanos() > 0 {
        return nanos(time.as_secs_f64() * 1e9);
    }
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let found = units.iter().find(|(unit, _)| seconds.is_multiple_of(*unit));
    found.map_or_else(String::new, |(unit, name)| format!("{} {name}", count(seconds / unit)))
}

/// From one value to another, with the unit once where both have the same: `64.0 → 1.00 MiB`.
pub fn step(from: &str, to: &str) -> String {
    match (from.rsplit_once(' '), to.rsplit_once(' ')) {
        (Some((number, unit)), Some((_, same))) if unit == same => format!("{number} → {to}"),
        _ => format!("{from} → {to}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_steps() {
        let seconds = [(0, "0 ns"), (90, "90 s"), (600, "10 min"), (14_400, "4 h"), (172_800, "2 d")];
        for (n, shown) in seconds {
            assert_eq!(span(Duration::from_secs(n)), shown);
        }
        assert_eq!(span(Duration::from_millis(1500)), "1.50 s");
        assert_eq!(step(&bytes(64 << 20), &bytes(1 << 20)), "64.0 → 1.00 MiB");
        assert_eq!(step(&bytes(512 << 10), &bytes(1 << 20)), "512 KiB → 1.00 MiB");
        assert_eq!(step("8", "4"), "8 → 4");
    }
}
