//! Values that say whose they are.

use bytes::Bytes;

/// The value of a key's `n`th write: its tag, its number, its length, and bytes that follow from them.
pub fn make(key: &str, n: u64, len: usize) -> Bytes {
    let mut out = format!("{key} {n} {len} ").into_bytes();
    let mut x = n ^ (len as u64) << 20 ^ 0x9e37_79b9_7f4a_7c15;
    while out.len() < len {
        // Every other one shrinks.
        x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let word = if n.is_multiple_of(2) { x >> 20 } else { 0x6c61_6b65 };
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.truncate(len.max(key.len() + 24));
    Bytes::from(out)
}

/// Which write of the key a value is of; `None` if a byte of it is wrong.
pub fn number(key: &str, value: &[u8]) -> Option<u64> {
    let text = value.strip_prefix(key.as_bytes())?.strip_prefix(b" ")?;
    let mut words = text.split(|b| *b == b' ').map(|w| std::str::from_utf8(w).ok()?.parse::<u64>().ok());
    let (n, len) = (words.next()??, words.next()??);
    (make(key, n, usize::try_from(len).ok()?) == value).then_some(n)
}
