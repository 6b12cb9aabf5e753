//! A simulated disk, for tests of this crate and of the programs above it.
//!
//! [`SimFs`] is a file system in memory that tells apart what a process sees and what a power cut leaves: of each file
//! and each directory it keeps the image that is durable and the operations that are not synced yet. From them it
//! makes a *crash clone*: another file system, in which a part of these operations, drawn from a seed, has reached the
//! disk. Operations can be made to fail in the ways in which those of real disks do ([`Fault`]).
//!
//! What a crash clone may look like (the worst that a file system may do within POSIX, which is more than ext4 or XFS
//! do):
//! - of the writes to a file since its last sync, any sectors of 512 bytes have arrived, in any order; what lies between
//!   them and was never written is zeros;
//! - a file is as long as the last of its sectors that arrived, or as it was when it was synced;
//! - of the creations, renames and removals in a directory since it was synced, any have happened. A rename has
//!   happened as a whole or not at all, and what has happened to a name, so has what happened to it before;
//! - a name may thus lead to a file of which nothing was synced, which is empty then.
//!
//! Locks end with the process, so a clone has none; nor has it faults, or a limit of its room.
//!
//! Besides, a disk can lie: a bit turns ([`SimFs::turn`]), or a sector that was synced has its earlier bytes again
//! ([`SimFs::take_back`]).

mod dice;
mod disk;
mod fault;
mod fs;
mod image;
#[cfg(test)]
mod tests;

pub use dice::Dice;
pub use fault::{Away, Call, EACCES, EDQUOT, EINTR, EIO, EMFILE, ENOSPC, EROFS, Fault, Op, Trouble};
pub use fs::SimFs;
