//! Writing one pack.
//!
//! | after step | a crash leaves | opening then |
//! |---|---|---|
//! | 1 temporary file created, entries appended | `pack-….zip.tmp` | deletes it |
//! | 2 central directory written, file synced | the same | deletes it |
//! | 3 renamed | `pack-….zip` or `….tmp`, whole in both cases | deletes it: the catalog does not know it |
//! | 4 folder synced | `pack-….zip`, whole | the same |
//! | 5 published, places journaled (the caller) | a pack that the catalog knows | attaches it |
//!
//! Invariant: a file whose name ends in `.zip` is complete and was synced before it got the name.

use super::entry::{self, IDENTITY, Layout, PADDING, RECORD};
use super::identity::Identity;
use super::names::Names;
use super::pack;
use super::transcode::Prepared;
use crate::container::{Purpose, Reserved};
use crate::error::{Error, IoContext, Result};
use crate::tierdir::Dir;
use crate::types::{Codec, Place};
use crate::vfs::{OpenMode, VfsFile};
use rawzip::path::EntryPath;
use rawzip::time::{UtcDateTime, ZipDateTime};
use rawzip::{CompressionMethod, DataDescriptorOutput, Header, ZipArchiveWriter};
use std::cell::RefCell;
use std::io::{self, Write};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;
/// Entries a pack may have: bounds the memory for names and the central directory while it is written.
const MAX_ENTRIES: usize = 1 << 20;
/// The years that a ZIP file can tell: 1980 up to what 32 bits of seconds hold.
const TIMES: (i64, i64) = (315_532_800, u32::MAX as i64);
/// Regular file, for its owner alone.
const MODE: u32 = 0o100_600;

/// A pack that is durable but not yet published.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) dir: Arc<Dir>,
    pub(super) reserved: Reserved,
    pub(super) created_ms: u64,
    pub(super) len: u64,
    /// Position and bytes on disk of each item.
    pub(super) placed: Vec<(u32, u32)>,
    /// See `Entry::earliest_expiry`.
    pub(super) earliest_expiry: u64,
}

/// A pack being written.
pub(super) struct PackWriter {
    dir: Arc<Dir>,
    reserved: Reserved,
    created_ms: u64,
    seed: u64,
    identity: String,
    time: UtcDateTime,
    temporary: PathBuf,
    zip: ZipArchiveWriter<Sink>,
    fault: Fault,
    file: Arc<dyn VfsFile>,
    charged: Rc<RefCell<u64>>,
    names: Names,
    placed: Vec<(u32, u32)>,
    central: u64,
    earliest: u64,
}

/// The first error of the sink: rawzip hands on only an `io::Error`.
type Fault = Rc<RefCell<Option<Error>>>;

impl PackWriter {
    /// Begins a pack in `dir` under a temporary name.
    pub(super) fn create(
        dir: &Arc<Dir>,
        reserved: Reserved,
        store: [u8; 16],
        created_ms: u64,
        purpose: Purpose,
    ) -> Result<PackWriter> {
        let identity =
            Identity { format: super::identity::FORMAT, store, id: reserved.id, created_ms }.line();
        let mut temporary = pack::path_in(dir, reserved.id).into_os_string();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let file = dir.vfs.open(&temporary, OpenMode::CreateNew).at("create", &temporary)?;
        let fault = Fault::default();
        let charged = Rc::new(RefCell::new(0));
        let sink = Sink {
            dir: dir.clone(),
            path: temporary.clone(),
            file: file.clone(),
            purpose,
            buffer: Vec::new(),
            at: 0,
            charged: charged.clone(),
            fault: fault.clone(),
        };
        let mut zip = ZipArchiveWriter::new(sink);
        zip.set_comment(identity.as_bytes());
        let seconds = i64::try_from(created_ms / 1000).unwrap_or(i64::MAX).clamp(TIMES.0, TIMES.1);
        Ok(PackWriter {
            dir: dir.clone(),
            reserved,
            created_ms,
            seed: entry::seed(&store, reserved.id),
            identity,
            time: ZipDateTime::from_unix(seconds),
            temporary,
            zip,
            fault,
            file,
            charged,
            names: Names::default(),
            placed: Vec::new(),
            central: 0,
            earliest: u64::MAX,
        })
    }

    /// Bytes that the file would have if it were finished now, nearly.
    pub(super) fn len(&self) -> u64 {
        self.zip.stream_offset() + self.central
    }

    /// Entries so far.
    pub(super) fn entries(&self) -> usize {
        self.placed.len()
    }

    /// Whether no further entry may be added, whatever its size.
    pub(super) fn is_full(&self) -> bool {
        self.placed.len() >= MAX_ENTRIES
            || self.zip.stream_offset() / Place::UNIT > Place::MAX_POSITION.into()
    }

    /// Appends an item.
    pub(super) fn add(&mut self, prepared: &Prepared) -> Result<()> {
        let item = &prepared.item;
        let name = self.names.assign(&item.key);
        let identity = self.placed.is_empty().then_some(self.identity.as_str());
        let layout = Layout::new(
            name.path.len(),
            (!name.exact).then_some(item.key.len()),
            identity.map(str::len),
            item.payload.len(),
        );
        let position = u32::try_from(self.zip.stream_offset() / Place::UNIT)
            .ok()
            .filter(|p| *p <= Place::MAX_POSITION)
            .ok_or(Error::Busy("the pack is full"))?;
        let record = entry::encode(item, &name.path, name.exact, position, &layout, self.seed);
        let method = match item.codec {
            Codec::Deflate => CompressionMethod::DEFLATE,
            _ => CompressionMethod::STORE,
        };
        let fields = Fields { record: &record, identity, padding: layout.padding };
        append(&mut self.zip, &name.path, method, &self.time, &fields, prepared)
            .map_err(|e| failure(&self.fault, &self.temporary, e))?;
        self.placed.push((position, layout.bytes()));
        self.central += layout.central_len as u64;
        if item.expires_at != 0 {
            self.earliest = self.earliest.min(item.expires_at);
        }
        Ok(())
    }

    /// Completes the pack and makes it durable under its name. On an error nothing of it is left, as far as the
    /// file system lets it be removed.
    pub(super) fn finish(self) -> Result<Staged> {
        let PackWriter { dir, reserved, temporary, zip, fault, file, charged, .. } = self;
        let path = pack::path_in(&dir, reserved.id);
        let done = zip
            .finish()
            .map_err(|e| failure(&fault, &temporary, e))
            .and_then(|_| file.sync().at("sync", &temporary))
            .and_then(|()| dir.vfs.rename(&temporary, &path).at("rename", &temporary))
            .and_then(|()| dir.vfs.sync_dir(&dir.folder).at("sync", &dir.folder));
        let len = *charged.borrow();
        match done {
            Ok(()) => Ok(Staged {
                dir,
                reserved,
                created_ms: self.created_ms,
                len,
                placed: self.placed,
                earliest_expiry: self.earliest,
            }),
            Err(e) => {
                remove(&dir, &[temporary, path], len);
                Err(e)
            }
        }
    }

    /// Gives up: removes what was written.
    pub(super) fn discard(self) {
        let charged = *self.charged.borrow();
        remove(&self.dir, &[self.temporary], charged);
    }
}

impl Staged {
    /// Removes the pack again; nothing points at it.
    pub(super) fn discard(self) {
        remove(&self.dir, &[pack::path_in(&self.dir, self.reserved.id)], self.len);
    }
}

/// Removes files that nothing points at. What cannot be removed keeps counting as occupied, and goes at the next
/// opening.
fn remove(dir: &Dir, paths: &[PathBuf], bytes: u64) {
    let mut gone = true;
    for path in paths {
        match dir.vfs.remove_file(path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                gone = false;
                warn_seldom!(path = %path.display(), error = %e, "cold: cannot remove an abandoned pack");
            }
        }
    }
    if gone {
        dir.change(bytes, 0);
    }
    // Only to have it gone early: a pack that comes back after a power cut is unknown to the catalog.
    let _ = dir.vfs.sync_dir(&dir.folder);
}

/// The extra fields of an entry.
struct Fields<'a> {
    record: &'a [u8],
    identity: Option<&'a str>,
    padding: Option<usize>,
}

fn append(
    zip: &mut ZipArchiveWriter<Sink>,
    name: &str,
    method: CompressionMethod,
    time: &UtcDateTime,
    fields: &Fields<'_>,
    prepared: &Prepared,
) -> Result<(), rawzip::Error> {
    let item = &prepared.item;
    let mut builder = zip
        .new_file(EntryPath::verbatim(name.as_bytes()))
        .compression_method(method)
        .unix_permissions(MODE)
        .last_modified(*time)
        .extra_field(RECORD, fields.record, Header::default())?;
    if let Some(identity) = fields.identity {
        builder = builder.extra_field(IDENTITY, identity.as_bytes(), Header::LOCAL)?;
    }
    if let Some(zeros) = fields.padding {
        builder = builder.extra_field(PADDING, &vec![0; zeros], Header::LOCAL)?;
    }
    let (mut out, _) = builder.start()?;
    out.write_all(&item.payload)?;
    out.finish(DataDescriptorOutput::new(prepared.crc, item.original_len.into()))?;
    Ok(())
}

/// What really went wrong.
fn failure(fault: &Fault, path: &std::path::Path, e: rawzip::Error) -> Error {
    fault.borrow_mut().take().unwrap_or_else(|| match e.into_kind() {
        rawzip::ErrorKind::IO(e) => Error::io("write", path, e),
        other => Error::Dependency { what: "rawzip", why: other.to_string() },
    })
}

/// The file behind a buffer; counts every byte against the directory's limit before it is written.
struct Sink {
    dir: Arc<Dir>,
    path: PathBuf,
    file: Arc<dyn VfsFile>,
    purpose: Purpose,
    buffer: Vec<u8>,
    at: u64,
    charged: Rc<RefCell<u64>>,
    fault: Fault,
}

impl Sink {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let n = bytes.len() as u64;
        self.dir.claim(n, self.purpose)?;
        *self.charged.borrow_mut() += n;
        self.file.write_all_at(bytes, self.at).at("write", &self.path)?;
        self.at += n;
        Ok(())
    }

    fn note(&self, done: Result<()>) -> io::Result<()> {
        done.map_err(|e| {
            let said = io::Error::other(e.to_string());
            self.fault.borrow_mut().get_or_insert(e);
            said
        })
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            let done = self.append(bytes);
            self.note(done)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let done = self.append(&buffer);
        buffer.clear();
        self.buffer = buffer;
        self.note(done)
    }
}
