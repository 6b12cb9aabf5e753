//! What the fuzz targets share: a whole small store to forge, edits of its files, checksums made again, a file system
//! that sees what is read, and a bound of memory.

pub mod bound;
pub mod edit;
pub mod image;
pub mod resum;
pub mod tier;
pub mod value;
pub mod watch;

use std::panic;
use std::sync::Once;

/// Panics that the engine catches on purpose come from these crates: decompressors and the reader of ZIP files.
const FENCED: [&str; 4] = ["/rawzip-", "/lz4_flex-", "/zlib-rs-", "/flate2-"];

/// To be called first by each target. libfuzzer-sys ends the process at any panic; those that the engine has a fence
/// for are let through to it, and all others end the process, on whichever thread they are.
pub fn begin() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let abort = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !info.location().is_some_and(|l| FENCED.iter().any(|f| l.file().contains(f))) {
                abort(info);
            }
        }));
    });
}
