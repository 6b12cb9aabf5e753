//! The mechanism of the Thermocline cache store.
//!
//! This crate can hold, find, move and drop items in four tiers; *when* something moves and *what* moves
//! is decided by the `thermocline` crate. The words used here (tier, container, place, catalog, version)
//! and the invariants are those of `docs/design.md`.
//!
//! Linux only.

#![allow(rustdoc::private_intra_doc_links, reason = "the modules' texts speak to who reads the code")]

#[cfg(not(target_os = "linux"))]
compile_error!(
    "thermocline-storage supports Linux only: it relies on posix_fallocate, flock and Linux's page cache"
);

#[macro_use]
mod log;

pub mod appendlog;
pub mod catalog;
pub mod clock;
pub mod codec;
pub mod cold;
pub mod container;
pub mod error;
pub mod flaw;
pub mod hdd;
pub mod home;
pub mod ident;
pub mod item;
mod keys;
pub mod latency;
pub mod memory;
mod openfiles;
pub mod pair;
pub mod quarantine;
pub mod record;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
pub mod ssd;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
mod tierdir;
pub mod types;
pub mod vfs;

pub use error::{Error, Result};
pub use ident::{Hasher, Ident};
pub use item::Item;
pub use types::{Codec, ContainerNo, ContentType, Place, Tier, Version};
