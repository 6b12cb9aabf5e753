//! What the tests of Thermocline share, and nothing of Thermocline itself: histories of operations, and the judge of
//! what a store may have answered.

pub mod history;

pub use history::{Absence, History, Outcome, Promise, Violation};
