//! The end of a put that its caller writes. What a crash leaves of one is in the table of `commit`.

use crate::engine::Engine;
use std::sync::Arc;
use thermocline_storage::catalog::{DirtyValue, Outcome};
use thermocline_storage::{Error as StorageError, Ident};

/// A put that its caller writes, until it ends. If it failed, then what was before it is back; and whatever became of
/// it, later writes of the key go on. A panic of a dependency ends it like an error: nobody else ever would.
pub(super) struct Large<'a> {
    pub(super) engine: &'a Engine,
    pub(super) ident: Ident,
    pub(super) v: &'a Arc<DirtyValue>,
    pub(super) outcome: Option<Arc<Outcome>>,
    pub(super) result: Result<(), Arc<StorageError>>,
}

impl Drop for Large<'_> {
    fn drop(&mut self) {
        let (engine, ident, v) = (self.engine, self.ident, self.v);
        if self.result.is_err() {
            let mut guard = engine.catalog.lock(ident);
            guard.withdraw(ident, v.version);
            guard.abort(ident, v);
            if engine.memory.peek(ident, v.pair.key(), 0).is_some_and(|h| h.version == v.version) {
                engine.memory.remove(ident);
            }
        }
        if let Some(outcome) = &self.outcome {
            outcome.set(self.result.clone());
        }
    }
}
