//! Thermocline: an embedded four-tier cache store.

pub mod budget;
pub mod events;
pub mod heat;
