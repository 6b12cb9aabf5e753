//! The keys of a container by the positions of their records, read once for all that are asked for.
//!
//! Whose a damaged record was, and where the next one begins, stands in the container's footer or directory. Reading
//! that anew for every damaged record costs the square of their number, so each tier keeps what it read last.
//!
//! Invariant: at most [`MOST`] bytes are kept in a tier; larger tables are used once. Containers that are complete do
//! not change, so nothing that is kept is ever wrong; what the disk refused to say is lacking for as long.

use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;

/// Bytes that a tier keeps at most: a pack of sixty thousand records with keys of 100 bytes.
const MOST: usize = 8 << 20;

/// Positions and keys of one container.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// Position, and where in `bytes` the key stands; in order of position once it is sorted.
    at: Vec<(u32, usize, usize)>,
    bytes: Vec<u8>,
}

impl Keys {
    /// The table that `fill` enters records in, in any order. Of a position that comes twice one stays.
    pub(crate) fn of(fill: impl FnOnce(&mut Keys)) -> Keys {
        let mut keys = Keys::default();
        fill(&mut keys);
        keys.at.sort_unstable();
        keys.at.dedup_by_key(|(position, ..)| *position);
        keys.at.shrink_to_fit();
        keys.bytes.shrink_to_fit();
        keys
    }

    pub(crate) fn enter(&mut self, position: u32, key: &[u8]) {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(key);
        self.at.push((position, from, self.bytes.len()));
    }

    /// The key of the record at a position.
    pub(crate) fn key(&self, position: u32) -> Option<Bytes> {
        let found = self.at.binary_search_by_key(&position, |(at, ..)| *at).ok()?;
        let (_, from, to) = *self.at.get(found)?;
        self.bytes.get(from..to).map(Bytes::copy_from_slice)
    }

    /// The position of the next record behind a position.
    pub(crate) fn next(&self, position: u32) -> Option<u32> {
        let behind = self.at.partition_point(|(at, ..)| *at <= position);
        self.at.get(behind).map(|(at, ..)| *at)
    }

    fn size(&self) -> usize {
        self.bytes.capacity() + self.at.capacity() * size_of::<(u32, usize, usize)>()
    }
}

/// The table that a tier read last.
#[derive(Debug, Default)]
pub(crate) struct LastKeys(Mutex<Option<(u64, Arc<Keys>)>>);

impl LastKeys {
    /// The table of the container with this id, kept or made. No lock is held while it is made.
    pub(crate) fn of(&self, id: u64, make: impl FnOnce() -> Keys) -> Arc<Keys> {
        if let Some((_, keys)) = self.0.lock().as_ref().filter(|(of, _)| *of == id) {
            return keys.clone();
        }
        let keys = Arc::new(make());
        if keys.size() <= MOST {
            *self.0.lock() = Some((id, keys.clone()));
        }
        keys
    }

    /// Lets go of it.
    pub(crate) fn forget(&self) {
        *self.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(entries: &[(u32, &str)]) -> Keys {
        Keys::of(|keys| entries.iter().for_each(|(position, key)| keys.enter(*position, key.as_bytes())))
    }

    /// Whether the table of this container is kept. If not, another one is now.
    fn keeps(last: &LastKeys, id: u64) -> bool {
        let mut kept = true;
        last.of(id, || {
            kept = false;
            made(&[])
        });
        kept
    }

    #[test]
    fn the_last_table_is_kept_until_another_is_made() {
        let last = LastKeys::default();
        let keys = last.of(1, || made(&[(9, "nine"), (2, "two"), (9, "nine")]));
        assert_eq!((keys.key(9).as_deref(), keys.key(3)), (Some(&b"nine"[..]), None));
        assert_eq!([0, 2, 8, 9].map(|at| keys.next(at)), [Some(2), Some(9), Some(9), None]);
        assert!(keeps(&last, 1) && !keeps(&last, 2) && !keeps(&last, 1) && keeps(&last, 1));
        last.forget();
        assert!(!keeps(&last, 1));
        // What is too large is given all the same.
        let large = "k".repeat(MOST + 1);
        assert!(last.of(3, || made(&[(1, &large)])).key(1).is_some());
        assert!(!keeps(&last, 3));
    }
}
