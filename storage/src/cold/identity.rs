//! The identity of a pack: which store, which container, when, in which format.
//!
//! It stands in two places, so that one damaged place does not lose the pack: in an extra field of the first
//! entry, at the beginning of the file, and in the comment of the archive, at its end. Both are the same line of
//! ASCII with fields of fixed width, because `unzip` shows the comment to people:
//!
//! ```text
//! thermocline-pack format=00000001 store=<32 hex> pack=<16 hex> created_ms=<16 hex> sum=<16 hex>
//! ```
//!
//! `sum` is the xxh3-64, with seed 0, of what stands before ` sum=`. The line keeps this shape in later formats,
//! so that an older reader can tell "newer" from "damaged".

use crate::record::checksum;
use std::fmt::Write as _;

/// The format that this version writes, and the newest that it reads.
pub(super) const FORMAT: u32 = 1;
/// What the line begins with.
const MARK: &str = "thermocline-pack format=";
/// Length of the line in bytes.
pub(super) const LEN: usize = MARK.len() + 8 + 7 + 32 + 6 + 16 + 12 + 16 + SUM;
/// Length of ` sum=` and the digits.
const SUM: usize = 5 + 16;

/// What a pack says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    /// Format number.
    pub(super) format: u32,
    /// The store's id.
    pub(super) store: [u8; 16],
    /// The container's id.
    pub(super) id: u64,
    /// When it was made, in milliseconds of the engine's clock.
    pub(super) created_ms: u64,
}

impl Identity {
    /// The line.
    pub(super) fn line(&self) -> String {
        let mut line = format!("{MARK}{:08x} store=", self.format);
        for b in self.store {
            let _ = write!(line, "{b:02x}");
        }
        let _ = write!(line, " pack={:016x} created_ms={:016x}", self.id, self.created_ms);
        let sum = checksum(0, line.as_bytes());
        let _ = write!(line, " sum={sum:016x}");
        line
    }

    /// The first valid line in `bytes`, wherever it begins.
    pub(super) fn find(bytes: &[u8]) -> Option<Identity> {
        bytes.windows(LEN).filter(|w| w.starts_with(MARK.as_bytes())).find_map(Identity::parse)
    }

    fn parse(line: &[u8]) -> Option<Identity> {
        let text = std::str::from_utf8(line).ok()?;
        let (front, sum) = text.split_at_checked(text.len().checked_sub(SUM)?)?;
        if u64::from_str_radix(sum.strip_prefix(" sum=")?, 16).ok()? != checksum(0, front.as_bytes()) {
            return None;
        }
        let mut fields = front.strip_prefix(MARK)?.split(' ');
        let format = u32::from_str_radix(fields.next()?, 16).ok()?;
        let store = u128::from_str_radix(fields.next()?.strip_prefix("store=")?, 16).ok()?;
        let id = u64::from_str_radix(fields.next()?.strip_prefix("pack=")?, 16).ok()?;
        let created_ms = u64::from_str_radix(fields.next()?.strip_prefix("created_ms=")?, 16).ok()?;
        Some(Identity { format, store: store.to_be_bytes(), id, created_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_again_and_no_flipped_bit_passes() {
        let is = Identity { format: 1, store: *b"\x01store of a test", id: 77, created_ms: 123 };
        let line = is.line();
        assert_eq!(line.len(), LEN);
        let mut file = b"PK thermocline-pack format=garbage".to_vec();
        file.extend_from_slice(line.as_bytes());
        file.extend_from_slice(b"tail");
        assert_eq!(Identity::find(&file), Some(is));
        for bit in 0..LEN * 8 {
            let mut bad = line.clone().into_bytes();
            bad[bit / 8] ^= 1 << (bit % 8);
            // The case of a hexadecimal digit carries no meaning, so a bit that changes it may pass unharmed.
            assert!(Identity::find(&bad).is_none_or(|found| found == is), "bit {bit}");
        }
        for cut in 0..LEN {
            assert_eq!(Identity::find(&line.as_bytes()[..cut]), None);
        }
    }
}
