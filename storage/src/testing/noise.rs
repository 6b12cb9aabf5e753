//! Bytes that no codec can shrink.

/// `len` bytes that follow from the seed (an even seed and the odd one after it are one): xorshift64, upper half
/// (Marsaglia, "Xorshift RNGs", 2003).
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}
