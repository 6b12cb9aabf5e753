//! Where looks at a store come from.

use super::snapshot::Snapshot;
use crate::elsewhere;
use crate::failure::{Failure, LOCKED};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Instant;
use thermocline::remote::OpenStore;

/// Turns of the optimizer that are asked for.
const TURNS: usize = 32;

/// Something that can be looked at again and again.
pub trait Source: Send {
    /// What it is, for people.
    fn name(&self) -> String;
    /// One look.
    ///
    /// # Errors
    /// Why there is none now; a later one may be there.
    fn look(&mut self) -> Result<Snapshot, Failure>;
}

/// A store that a process has open, this one or another: asked over its socket, anew each time, so that a program that was
/// started again is found again.
#[derive(Debug, Clone)]
pub struct Socket {
    directories: Vec<PathBuf>,
}

impl Socket {
    /// One of these directories has the socket.
    pub fn new(directories: Vec<PathBuf>) -> Socket {
        Socket { directories }
    }

    /// The figures of the store and the turns of its optimizer, as they are told.
    pub fn ask(&self) -> Result<(Value, Value), Failure> {
        let store = OpenStore::find(&self.directories).map_err(elsewhere::nobody)?;
        let figures = store.stat().map_err(elsewhere::unanswered)?;
        let turns = store.history(TURNS).map_err(elsewhere::unanswered)?;
        Ok((figures, turns))
    }
}

impl Source for Socket {
    fn name(&self) -> String {
        let first = self.directories.first();
        first.map_or(String::new(), |d| d.display().to_string())
    }

    fn look(&mut self) -> Result<Snapshot, Failure> {
        let (figures, turns) = self.ask()?;
        let snapshot = Snapshot::read(Instant::now(), &figures, &turns);
        snapshot.ok_or_else(|| {
            Failure::new(LOCKED, format!("{}: the figures of the store make no sense", self.name()))
        })
    }
}
