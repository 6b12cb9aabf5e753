//! A gate in front of what is done to a disk.

#![allow(dead_code, reason = "each test uses some of it")]

use parking_lot::{Condvar, Mutex};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thermocline_storage::testing::{FaultFs, Op};

/// Longest that anything here may take: a machine under load is slow, a fault hangs for ever.
pub const LONG: Duration = Duration::from_secs(60);

/// Holds up calls of one kind.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Such calls of paths that contain this wait.
    hold: Option<(Op, String)>,
    /// But for one, all of them go on.
    only_one: bool,
    /// How many wait, and how many of them may go on.
    waiting: usize,
    passes: usize,
}

impl Gate {
    /// In front of a file system.
    pub fn of(fs: &FaultFs) -> Arc<Gate> {
        let gate = Arc::new(Gate::default());
        let calls = gate.clone();
        fs.watch(move |call| calls.pass(call.op, call.path));
        gate
    }

    /// Syncs of paths with `part` in them wait.
    pub fn hold(&self, part: &str) {
        self.hold_any(Op::Sync, part);
    }

    /// Calls of that kind, of paths with `part` in them, wait.
    pub fn hold_any(&self, op: Op, part: &str) {
        self.state.lock().hold = Some((op, part.into()));
    }

    /// The next call of that kind, of a path with `part` in it, waits; those that come meanwhile do not.
    pub fn hold_one(&self, op: Op, part: &str) {
        let mut state = self.state.lock();
        (state.hold, state.only_one) = (Some((op, part.into())), true);
    }

    pub fn let_one_pass(&self) {
        self.state.lock().passes += 1;
        self.changed.notify_all();
    }

    pub fn let_all_pass(&self) {
        self.state.lock().hold = None;
        self.changed.notify_all();
    }

    /// Until a call waits that was not let through.
    pub fn until_held(&self) {
        let mut state = self.state.lock();
        while state.waiting == 0 || state.passes > 0 {
            assert!(!self.changed.wait_for(&mut state, LONG).timed_out(), "nothing is done that is held up");
        }
    }

    /// Whether a call waits that was not let through.
    pub fn holds(&self) -> bool {
        let state = self.state.lock();
        state.waiting > 0 && state.passes == 0
    }

    fn pass(&self, op: Op, path: &Path) {
        let held = |s: &State| {
            s.hold
                .as_ref()
                .is_some_and(|(of, part)| *of == op && path.to_string_lossy().contains(part.as_str()))
        };
        let mut state = self.state.lock();
        if !held(&state) || state.only_one && state.waiting > 0 {
            return;
        }
        state.waiting += 1;
        self.changed.notify_all();
        while held(&state) && state.passes == 0 {
            self.changed.wait(&mut state);
        }
        state.passes = state.passes.saturating_sub(1);
        state.waiting -= 1;
        self.changed.notify_all();
    }
}

/// Lets everything pass in the end, so that a test that fails does not hang.
pub struct Release(pub Arc<Gate>);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.let_all_pass();
    }
}
