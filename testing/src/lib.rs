//! What the tests of Thermocline share, and nothing of Thermocline itself: histories of operations, and the judge of
//! what a store may have answered; runs that may panic or hang, or cannot be; counts of what
//! happened; and an ear for what is logged.

mod counts;
mod ear;
pub mod history;
mod run;
mod time;

pub use ear::Ear;
pub use history::{Absence, History, Outcome, Promise, Violation};
pub use run::{caught, counted, skipped, watched};
pub use time::timed;
