//! The index: identity → place, for the items of one shard.
//!
//! It says which record is the live copy of an identity and nothing else. A `HashMap` keyed by the identity itself
//! stands behind it: identities are secretly seeded hashes already, so they are not hashed again.
//!
//! Invariant: one place an identity. It is in RAM alone, and made again from checkpoint and journals.

use crate::ident::Ident;
use crate::types::Place;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Spreads the 48 identity bits over the 64 that the table looks at: it takes its tag from the upper 7.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct IdentHasher(u64);

impl Hasher for IdentHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A map keyed by identity.
pub(crate) type IdentMap<V> = HashMap<Ident, V, BuildHasherDefault<IdentHasher>>;

/// The places of one shard.
#[derive(Debug, Default)]
pub(crate) struct Index {
    map: IdentMap<Place>,
}

impl Index {
    pub(crate) fn get(&self, ident: Ident) -> Option<Place> {
        self.map.get(&ident).copied()
    }

    /// Points an identity at a place; gives the one it pointed at.
    pub(crate) fn insert(&mut self, ident: Ident, place: Place) -> Option<Place> {
        self.map.insert(ident, place)
    }

    pub(crate) fn remove(&mut self, ident: Ident) -> Option<Place> {
        let old = self.map.remove(&ident);
        // A table that was once large gives its memory back.
        if self.map.capacity() > 1024 && self.map.len() < self.map.capacity() / 4 {
            self.map.shrink_to(self.map.len() * 2);
        }
        old
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ident, Place)> {
        self.map.iter().map(|(i, p)| (*i, *p))
    }

    /// Empties the index, giving what it held.
    pub(crate) fn take(&mut self) -> Index {
        std::mem::take(self)
    }

    /// Bytes of RAM, roughly: what the table has reserved.
    pub(crate) fn bytes(&self) -> usize {
        // hashbrown keeps a control byte a slot and is at most 7/8 full.
        self.map.capacity() * 8 / 7 * (std::mem::size_of::<(Ident, Place)>() + 1)
    }
}
