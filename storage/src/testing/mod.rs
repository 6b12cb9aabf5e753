//! What the tests of this crate share: a file system that fails on purpose, a container without records, and
//! bytes to store.

mod faultfs;
mod hollow;
mod noise;

pub(crate) use faultfs::{EACCES, EIO, ENOSPC, Fault, FaultFs, Op};
pub(crate) use hollow::Hollow;
pub(crate) use noise::noise;
