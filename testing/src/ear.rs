//! Hearing what is logged.

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// A subscriber that keeps all that is logged: the level, and where it comes from with every field.
#[derive(Debug, Clone, Default)]
pub struct Ear(Arc<Mutex<Vec<(Level, String)>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl Subscriber for Ear {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut text = Text(attributes.metadata().name().to_owned());
        attributes.record(&mut text);
        self.heard(*attributes.metadata().level(), text);
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, values: &Record<'_>) {
        let mut text = Text(String::new());
        values.record(&mut text);
        self.heard(Level::ERROR, text);
    }
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text(event.metadata().target().to_owned());
        event.record(&mut text);
        self.heard(*event.metadata().level(), text);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

impl Ear {
    /// The one of this process, which hears every thread from the first call on.
    ///
    /// # Panics
    /// If somebody else hears what is logged in this process.
    pub fn of_all() -> Ear {
        static EAR: OnceLock<Ear> = OnceLock::new();
        let ear = EAR.get_or_init(|| {
            let ear = Ear::default();
            let heard = tracing::subscriber::set_global_default(ear.clone());
            assert!(heard.is_ok(), "somebody else hears what is logged here");
            ear
        });
        ear.clone()
    }

    /// All that was heard so far.
    pub fn all(&self) -> Vec<(Level, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn heard(&self, level: Level, text: Text) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((level, text.0));
    }
}
