//! Thermocline: an embedded four-tier cache store.
