//! Sizes in bytes, as people write them: `512MiB`, `1.5GiB`, `64KB`, `1000`.
//!
//! Invariant: [`parse`] of what [`show`] wrote is the same number; nothing wraps, whatever is read.

/// Units by name in lower case, largest first; those of 1024 before those of 1000.
const UNITS: [(&str, &str, u64); 9] = [
    ("tib", "TiB", 1 << 40),
    ("gib", "GiB", 1 << 30),
    ("mib", "MiB", 1 << 20),
    ("kib", "KiB", 1 << 10),
    ("tb", "TB", 1_000_000_000_000),
    ("gb", "GB", 1_000_000_000),
    ("mb", "MB", 1_000_000),
    ("kb", "KB", 1_000),
    ("b", "B", 1),
];

/// Most digits behind the point: enough for a byte of a TiB, and nothing overflows.
const MAX_FRACTION: usize = 12;

/// Reads a size. A number may have a fraction if it has a unit; what comes out is rounded down to a byte. Letters
/// may be large or small.
///
/// ```
/// use thermocline::config::parse_size;
///
/// assert_eq!(parse_size("1.5GiB"), Ok(3 << 29));
/// assert_eq!(parse_size("64kb"), Ok(64_000)); // SI: thousands
/// assert!(parse_size("lots").is_err());
/// ```
///
/// # Errors
/// It is no size, or more than 2⁶⁴ − 1 bytes: what was read, and how to write one.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{text:?} is not a size: write bytes, or a number and KiB, MiB, GiB, TiB (1024) or KB, MB, GB, TB (1000), as in \"512MiB\""
        )
    };
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at_checked(split).ok_or_else(wrong)?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let scale = if unit.is_empty() {
        1
    } else {
        UNITS.iter().find(|(name, ..)| *name == unit).map(|(.., n)| *n).ok_or_else(wrong)?
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |d: &str| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || (number.contains('.') && (!digits(fraction) || scale == 1)) {
        return Err(wrong());
    }
    let large = || format!("{text:?} is too large: the most is {} bytes", u64::MAX);
    let whole: u128 = whole.parse().map_err(|_| large())?;
    let mut bytes = whole.checked_mul(u128::from(scale)).ok_or_else(large)?;
    if !fraction.is_empty() {
        if fraction.len() > MAX_FRACTION {
            return Err(format!("{text:?} has more than {MAX_FRACTION} digits behind the point"));
        }
        let part: u128 = fraction.parse().map_err(|_| wrong())?;
        let ten = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
        bytes += part * u128::from(scale) / ten;
    }
    u64::try_from(bytes).map_err(|_| large())
}

/// Writes a size so that [`parse`] reads the same: in the largest binary unit that divides it.
///
/// ```
/// use thermocline::config::show_size;
///
/// assert_eq!(show_size(5 << 30), "5GiB");
/// assert_eq!(show_size(1536), "1536");
/// ```
pub fn show(bytes: u64) -> String {
    let unit = UNITS.iter().take(4).find(|(.., n)| bytes != 0 && bytes.is_multiple_of(*n));
    match unit {
        Some((_, name, n)) => format!("{}{name}", bytes / n),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("512MiB", 512 << 20),
            ("5GiB", 5 << 30),
            ("64KiB", 65_536),
            ("1.5GiB", 3 << 29),
            (" 2 tib ", 2 << 40),
            ("10KB", 10_000),
            ("1.25MB", 1_250_000),
            ("3GB", 3_000_000_000),
            ("7B", 7),
            ("0.3KiB", 307),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "5G", "5 MiBs", "-1", "1.5", "1.B", ".5GiB", "1e3", "1.2.3KB", "５KB", "0x10"]
        {
            let e = parse(text).unwrap_err();
            assert!(e.contains("512MiB"), "{text}: {e}");
        }
        for text in ["18446744073709551616", "16777216TiB", &"9".repeat(50)] {
            assert!(parse(text).unwrap_err().contains("too large"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_the_same(bytes in any::<u64>(), shift in 0u32..63) {
            let bytes = bytes >> shift << (shift / 2);
            prop_assert_eq!(parse(&show(bytes)), Ok(bytes));
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,20}") {
            let _ = parse(&text);
        }
    }
}
