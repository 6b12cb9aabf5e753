//! Identity: 48 bits of a secretly seeded hash of a key.
//!
//! SipHash-1-3 (Aumasson and Bernstein, 2012) under a 128-bit secret of the store: whoever chooses keys cannot
//! choose identities, so tables and sketches indexed by identity cannot be flooded.

use siphasher::sip::SipHasher13;
use std::hash::Hasher as _;

/// The 48-bit identity of a key in one store. Two keys may share one; every reader compares the full key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ident(u64);

impl Ident {
    /// Number of bits.
    pub const BITS: u32 = 48;
    /// Mask of the valid bits.
    pub const MASK: u64 = (1 << Self::BITS) - 1;

    /// The identity with these bits; higher ones are dropped.
    pub const fn from_bits(bits: u64) -> Ident {
        Ident(bits & Self::MASK)
    }

    /// The bits.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// The store's secret hash.
#[derive(Clone, Copy)]
pub struct Hasher {
    secret: [u8; 16],
}

impl Hasher {
    /// A hasher with this secret.
    pub const fn new(secret: [u8; 16]) -> Hasher {
        Hasher { secret }
    }

    /// The identity of a key.
    pub fn ident(&self, key: &[u8]) -> Ident {
        let mut h = SipHasher13::new_with_key(&self.secret);
        h.write(key);
        Ident::from_bits(h.finish())
    }
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher(secret)")
    }
}
