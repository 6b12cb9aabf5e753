//! Thermocline: an embedded four-tier cache store.

pub mod config;
