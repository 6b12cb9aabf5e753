//! A read-only memory map of which only published bytes can be seen.
//!
//! This module holds the crate's `unsafe` for maps. The argument:
//!
//! - *Losses*: a `&[u8]` over bytes that somebody changes is undefined behaviour; a `&[u8]` over a page that the
//!   file no longer has is a SIGBUS.
//! - *Hazards*: the writer of the same file appending with `pwrite`; another process changing or truncating it.
//! - *Constraints*: a slice is formed only below `published`, which the writer raises after it wrote those bytes
//!   and below which it never writes again (containers are append-only and are never truncated, punched or
//!   reused: they are freed by unlink, which leaves mapped pages alone). `allocate` has reserved every block
//!   before the map is made, so no page is beyond the end of the file. Other processes are kept out by mode 0700
//!   and the directory's lock; one that ignores both can equally write to this process's memory through /proc.
//!
//! A simulated disk has no file to map. It gives a map of a file in memory that nobody else knows of, which is as long
//! as the map from the beginning, and to which bytes are copied just before they are published: the argument holds for
//! it as it stands, and no more `unsafe` is needed.

use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A shared read-only map of a file.
#[derive(Debug)]
pub struct Map {
    raw: MmapRaw,
    published: AtomicU64,
    #[cfg(any(test, feature = "testing"))]
    copied: Option<Copied>,
}

/// Where the bytes of a simulated file come from, and the file in memory that they are copied to.
#[cfg(any(test, feature = "testing"))]
struct Copied {
    file: File,
    read: Read,
    /// One copies at a time, and raises what is published.
    one: parking_lot::Mutex<()>,
}

/// Reads from an offset; fewer bytes at the end.
#[cfg(any(test, feature = "testing"))]
type Read = Box<dyn Fn(&mut [u8], u64) -> usize + Send + Sync>;

#[cfg(any(test, feature = "testing"))]
impl std::fmt::Debug for Copied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copied").finish_non_exhaustive()
    }
}

#[cfg(any(test, feature = "testing"))]
impl Copied {
    fn copy(&self, range: Range<u64>) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0)];
        let have = (self.read)(&mut bytes, range.start);
        if have < bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        std::os::unix::fs::FileExt::write_all_at(&self.file, &bytes, range.start)
    }
}

impl Map {
    /// Maps the first `len` bytes of a file whose blocks are allocated.
    pub(super) fn new(file: &File, len: u64) -> io::Result<Map> {
        let have = file.metadata()?.len();
        if have < len {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("file has {have} of {len} bytes"),
            ));
        }
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let raw = MmapOptions::new().len(len).map_raw_read_only(file)?;
        Ok(Map {
            raw,
            published: AtomicU64::new(0),
            #[cfg(any(test, feature = "testing"))]
            copied: None,
        })
    }

    /// A map of `len` bytes of a simulated file, which `read` gives.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn of_simulated(
        len: u64,
        read: impl Fn(&mut [u8], u64) -> usize + Send + Sync + 'static,
    ) -> io::Result<Map> {
        let file = File::from(rustix::fs::memfd_create("thermocline-sim", rustix::fs::MemfdFlags::CLOEXEC)?);
        file.set_len(len)?;
        let map = Map::new(&file, len)?;
        let copied = Copied { file, read: Box::new(read), one: parking_lot::Mutex::default() };
        Ok(Map { copied: Some(copied), ..map })
    }

    /// Declares the first `len` bytes immutable from now on. Never lowers what was published.
    ///
    /// The caller must have written them and must never write to them again.
    pub(crate) fn publish(&self, len: u64) {
        let len = len.min(self.raw.len() as u64);
        #[cfg(any(test, feature = "testing"))]
        if let Some(copied) = &self.copied {
            let _one = copied.one.lock();
            let before = self.published();
            if len > before && copied.copy(before..len).is_ok() {
                self.published.store(len, Ordering::Release);
            }
            return;
        }
        self.published.fetch_max(len, Ordering::Release);
    }

    /// Bytes published so far.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// The bytes of a range, or `None` if not all of it is published.
    #[expect(unsafe_code, reason = "a slice of mapped memory; the module's text argues that it is sound")]
    pub fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        if range.start > range.end || range.end > self.published() {
            return None;
        }
        let start = usize::try_from(range.start).ok()?;
        let len = usize::try_from(range.end - range.start).ok()?;
        // SAFETY: `start + len` is at most `published`, which `publish` caps at the length of the map; the bytes
        // below `published` are immutable and backed by the file for the life of the map (see the module's
        // constraints), and the returned borrow ends before the map does.
        Some(unsafe { std::slice::from_raw_parts(self.raw.as_ptr().add(start), len) })
    }
}
