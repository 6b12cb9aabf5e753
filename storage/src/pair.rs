//! A key and its value as every part of the engine holds them while they are in RAM: one buffer, counted.
//!
//! The memory tier, the write buffer and a caller's `Bytes` share what one [`Pair`] holds, so a value counts once
//! however many of them refer to it.
//!
//! Invariants:
//! - neither key nor value ever changes;
//! - a value of up to [`COPIED`] bytes refers to nothing else: a small slice does not keep its caller's large buffer
//!   alive. A larger one is the caller's buffer.

use bytes::Bytes;

/// Values of up to this many bytes are copied, with the key, into a buffer of their own.
pub const COPIED: usize = 64 << 10;

/// A key and its value. A clone refers to the same bytes.
#[derive(Debug, Clone)]
pub struct Pair(Payload);

#[derive(Debug, Clone)]
enum Payload {
    /// Key and value behind one another in a buffer that nothing else refers to.
    Copied { both: Bytes, key_len: u16 },
    /// A key of our own and the caller's buffer.
    Kept(Box<(Bytes, Bytes)>),
}

/// A buffer that is counted from the start. `Bytes::from(Vec)` would allocate its count at the first clone,
/// which is a hit.
fn owned(bytes: Vec<u8>) -> Bytes {
    Bytes::from_owner(bytes.into_boxed_slice())
}

impl Pair {
    /// Copies the key, and the value if it is small.
    pub fn new(key: &[u8], value: &Bytes) -> Pair {
        Pair(match u16::try_from(key.len()) {
            Ok(key_len) if value.len() <= COPIED => {
                let mut both = Vec::with_capacity(key.len() + value.len());
                both.extend_from_slice(key);
                both.extend_from_slice(value);
                Payload::Copied { both: owned(both), key_len }
            }
            _ => Payload::Kept(Box::new((owned(key.to_vec()), value.clone()))),
        })
    }

    /// The full key.
    pub fn key(&self) -> &[u8] {
        match &self.0 {
            Payload::Copied { both, key_len } => both.get(..usize::from(*key_len)).unwrap_or_default(),
            Payload::Kept(kept) => &kept.0,
        }
    }

    /// The key without a copy; it keeps the value's buffer alive.
    pub fn key_bytes(&self) -> Bytes {
        match &self.0 {
            Payload::Copied { both, key_len } => both.slice(..usize::from(*key_len).min(both.len())),
            Payload::Kept(kept) => kept.0.clone(),
        }
    }

    /// The value without a copy.
    pub fn value(&self) -> Bytes {
        match &self.0 {
            Payload::Copied { both, key_len } => both.slice(usize::from(*key_len).min(both.len())..),
            Payload::Kept(kept) => kept.1.clone(),
        }
    }

    /// Bytes of the value.
    pub fn value_len(&self) -> usize {
        match &self.0 {
            Payload::Copied { both, key_len } => both.len().saturating_sub(usize::from(*key_len)),
            Payload::Kept(kept) => kept.1.len(),
        }
    }

    /// Bytes of key and value together.
    pub fn len(&self) -> usize {
        match &self.0 {
            Payload::Copied { both, .. } => both.len(),
            Payload::Kept(kept) => kept.0.len() + kept.1.len(),
        }
    }

    /// Whether key and value are both empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_slice_does_not_pin_the_callers_buffer_and_a_large_value_is_not_copied() {
        let big = Bytes::from(vec![7u8; 1 << 20]);
        let small = Pair::new(b"k", &big.slice(10..100));
        assert_eq!(small.value(), big.slice(10..100));
        let large = Pair::new(b"k", &big.slice(..COPIED + 1));
        assert_eq!(large.value().as_ptr(), big.as_ptr());
        drop(large);
        assert!(big.is_unique(), "the small pair must not refer to the caller's buffer");
        assert_eq!(small.value().as_ptr(), small.clone().value().as_ptr(), "handed out without a copy");
    }

    #[test]
    fn keys_and_values_of_any_length_come_back() {
        for key_len in [0usize, 1, 17, 32_768, 70_000] {
            for value_len in [0usize, 1, COPIED, COPIED + 1] {
                let p = Pair::new(&vec![1; key_len], &Bytes::from(vec![2; value_len]));
                assert_eq!((p.key(), p.key_bytes()), (&vec![1; key_len][..], vec![1; key_len].into()));
                assert_eq!(p.value(), vec![2; value_len]);
                assert_eq!((p.value_len(), p.len()), (value_len, key_len + value_len));
                assert_eq!(p.is_empty(), key_len + value_len == 0);
            }
        }
    }
}
