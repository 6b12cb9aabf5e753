//! The rules, one file for each thing that is looked after. Each reads a plan and adds to it.
//!
//! A rule that sets a knob computes a target from what was measured, and turns the knob only if it is well off, so
//! that it comes to rest where the measurements do.

pub(super) mod background;
pub(super) mod compression;
pub(super) mod io;
pub(super) mod memory;
pub(super) mod prefetch;
pub(super) mod strategy;
pub(super) mod tiers;

use thermocline_storage::{ContentType, Tier};

/// The content types, in the order of their numbers.
pub(super) const CONTENT: [ContentType; 4] =
    [ContentType::Text, ContentType::Json, ContentType::Binary, ContentType::Media];

/// The tiers on disk.
const DISKS: [Tier; 3] = [Tier::Ssd, Tier::Hdd, Tier::Cold];
