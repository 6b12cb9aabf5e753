//! A store that is open answers questions of other processes: a Unix socket in its directory.
//!
//! One process at a time has a store. What others want to know while it runs (figures, keys, whether records are whole,
//! what the optimizer did) they ask over `socket` in the first directory of the highest tier on disk. `thermocline stat`,
//! `ls`, `verify` and `top` do so by themselves; [`OpenStore`] is for programs.
//!
//! | module | job |
//! |---|---|
//! | `place` | where the socket is: made, found, removed |
//! | `frame` | what goes over it, to the byte |
//! | `serve` | the side that has the store open |
//! | `answer` | the questions, and what is answered |
//! | `document` | figures and turns of the optimizer as JSON |
//! | `ask` | the side that asks |
//!
//! Invariants:
//! - nothing that is asked changes the store: see the engine's `inspect.rs`; no value, and no part of one, is ever sent;
//! - the socket has mode 0600 from its first moment, and each side looks who the other is: the same user, or root;
//! - the engine waits for nobody here: a connection has a thread of its own, of which there are [`CONNECTIONS`] at most,
//!   and ends when its client does not send, or take, a frame in [`PATIENCE`]; closing the store ends all at once;
//! - what a client can make this hold is bounded: a request is at most [`REQUEST`] bytes, and read before anything is done.
//!
//! What a crash leaves: a socket that nobody listens on. Whoever opens the store next has its locks and replaces it.
//! Nothing that opens, checks or repairs a store looks at it.

mod answer;
mod ask;
mod document;
mod frame;
mod place;
mod serve;
#[cfg(test)]
mod tests;

pub use ask::{Error, Item, OpenStore};
pub use document::{stat, turns};
pub(crate) use serve::Server;

/// What the log calls this: the name stays, whatever becomes of the modules.
pub(crate) const LOG: &str = "thermocline::remote";

use std::time::Duration;

/// Connections at a time; who comes then waits until one ends.
pub(crate) const CONNECTIONS: usize = 4;
/// How long a client may take to send its request, or to take a frame of the answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a request: the longest prefix of keys, in hexadecimal digits, and some.
pub(crate) const REQUEST: usize = 80 << 10;
/// Bytes of a frame of an answer.
pub(crate) const ANSWER: usize = 16 << 20;
