//! Room for whole segments: what the tier's limit leaves, and the segments that only reclaim may take.
//!
//! The reserve is of the tier and not of each directory: with several directories it may lie in any of them.
//!
//! Invariant: where the tier has three segments or more, a caller's write leaves one or two of them to reclaim, so
//! that what is alive can always be copied out.

use crate::container::Purpose;
use crate::error::Result;
use crate::tierdir::{Dir, Dirs};

/// Segments that only reclaim may take, where the tier is large enough to have them.
const RESERVE: u64 = 2;

/// The directories of the tier, and the size of an ordinary segment in them.
#[derive(Debug)]
pub(super) struct Room {
    pub dirs: Dirs,
    pub segment: u64,
}

impl Room {
    /// Segments that only reclaim may take.
    pub fn reserve(&self) -> u64 {
        match self.dirs.limit().map(|limit| limit / self.segment.max(1)) {
            None | Some(0..=2) => 0,
            Some(3..=7) => 1,
            Some(_) => RESERVE,
        }
    }

    /// Largest segment that an empty tier could take from a caller's write.
    pub fn largest(&self) -> u64 {
        let reserve = self.reserve().saturating_mul(self.segment);
        match (&*self.dirs, self.dirs.limit()) {
            (_, None) => u64::MAX,
            // With several directories the reserve can lie in the others.
            ([only], _) => only.limit.unwrap_or(u64::MAX).saturating_sub(reserve),
            (all, Some(total)) => {
                let most = all.iter().filter_map(|d| d.limit).max().unwrap_or(0);
                most.min(total.saturating_sub(reserve))
            }
        }
    }

    /// Whether new segments of these sizes fit within the limits, and leave the reserve to reclaim.
    ///
    /// # Errors
    /// `NoSpace`; `OutOfService` if no directory takes new segments.
    pub fn check(&self, sizes: &[u64], purpose: Purpose) -> Result<()> {
        let no_space = || self.dirs.no_space(sizes.iter().fold(0, |sum: u64, n| sum.saturating_add(*n)));
        let mut left: Vec<(&Dir, u64, u64)> =
            self.dirs.iter().filter(|d| d.in_service()).map(|d| (&**d, d.room(purpose), 0)).collect();
        if left.is_empty() {
            return Err(self.dirs.out_of_service());
        }
        for size in sizes {
            let best = left
                .iter_mut()
                .filter(|(_, free, _)| free >= size)
                .max_by_key(|(dir, free, taken)| (dir.merit(*taken, purpose), *free))
                .ok_or_else(no_space)?;
            if best.1 != u64::MAX {
                best.1 -= size;
                best.2 += size;
            }
        }
        let segments: u64 =
            left.iter().fold(0, |sum: u64, (_, free, _)| sum.saturating_add(free / self.segment.max(1)));
        if purpose != Purpose::Reclaim && !sizes.is_empty() && segments < self.reserve() {
            return Err(no_space());
        }
        Ok(())
    }
}
