//! What tests share, those of this crate and, with the feature `testing`, those of others: a file system that fails on
//! purpose, a container without records, bytes to store, and doors to parsers.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests alone call it, and are to fail loudly"
)]

pub mod doors;
mod faultfs;
mod hollow;
mod noise;

pub use crate::sim::{Call, EACCES, EIO, ENOSPC, Fault, Op};
pub use faultfs::FaultFs;
pub use hollow::Hollow;
pub use noise::noise;
