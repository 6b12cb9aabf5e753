//! Value files: a header in two copies, then blocks, appended by the process that made the file and by no other.
//!
//! ```text
//!    0  header, first copy (64 bytes), zeros
//! 4096  header, second copy, zeros
//! 8192  blocks, one after the other; zeros where the file is allocated and not yet written
//! ```
//!
//! The header:
//!
//! ```text
//!  0  u32  magic "TCV1"            4  u32  format (1)
//!  8  16 bytes  store id
//! 24  u64  container id
//! 32  u32  number of the value file  36 u32 zero
//! 40  u64  made at (ms since the epoch)
//! 48  u64  zero
//! 56  u64  checksum: xxh3-64 of bytes 0..56
//! ```
//!
//! It is made, written and synced as every container is: see [`appendlog`](crate::appendlog) for the invariants
//! and for what a crash leaves. Opening deletes what has `.tmp` behind its name.

use crate::appendlog::AppendFile;
use crate::error::{Error, Result};
use crate::record::{checksum, le32, le64};
use crate::vfs::{Vfs, VfsFile};
use std::path::Path;

/// Where blocks begin.
pub(super) const DATA: u64 = 8192;
const COPY: u64 = 4096;
const HEADER: usize = 64;
const MAGIC: [u8; 4] = *b"TCV1";
const FORMAT: u32 = 1;

/// The name of a value file in its generation.
pub(super) fn name(no: u16) -> String {
    format!("values-{no:04}")
}

/// The number in the name of a value file.
pub(super) fn number(name: &str) -> Option<u16> {
    // Nothing but what `name` gives: two names of one number would be one file that counts twice.
    let number = name.strip_prefix("values-")?.parse().ok()?;
    (self::name(number) == name).then_some(number)
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The store's id.
    pub store: [u8; 16],
    /// The generation's container id.
    pub container: u64,
    /// The number of the file in its generation.
    pub file: u16,
    /// When the generation was made (ms).
    pub created_ms: u64,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.store);
        out.extend_from_slice(&self.container.to_le_bytes());
        out.extend_from_slice(&u32::from(self.file).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.created_ms.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        let sum = checksum(0, &out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    fn parse(bytes: &[u8; HEADER], path: &Path, at: u64) -> Result<Header> {
        let (fixed, _) = bytes.split_at(HEADER - 8);
        if !bytes.starts_with(&MAGIC) {
            return Err(Error::corrupt(path, at, "no value file's header"));
        }
        if checksum(0, fixed) != le64(bytes, 56) {
            return Err(Error::corrupt(path, at, "the header's checksum does not match"));
        }
        let format = le32(bytes, 4);
        if format > FORMAT {
            return Err(Error::NewerFormat { path: path.to_path_buf(), found: format, supported: FORMAT });
        }
        let store = bytes.get(8..24).and_then(|b| b.first_chunk().copied()).unwrap_or_default();
        let file = u16::try_from(le32(bytes, 32))
            .map_err(|_| Error::corrupt(path, at, "impossible value file number"))?;
        Ok(Header { store, container: le64(bytes, 24), file, created_ms: le64(bytes, 40) })
    }

    /// Both copies of the header, as they are.
    pub fn copies(file: &dyn VfsFile, path: &Path) -> [Result<Header>; 2] {
        [0, COPY].map(|at| {
            let mut bytes = [0; HEADER];
            match file.read_at(&mut bytes, at) {
                Ok(HEADER) => Header::parse(&bytes, path, at),
                Ok(_) => Err(Error::corrupt(path, at, "the header is cut short")),
                Err(e) => Err(Error::io("read", path, e)),
            }
        })
    }

    /// Reads the header from whichever copy is whole. `Corrupt` if neither is; `NewerFormat`.
    pub fn read(file: &dyn VfsFile, path: &Path) -> Result<Header> {
        match Header::copies(file, path) {
            [Ok(header), _] => Ok(header),
            [Err(e @ Error::NewerFormat { .. }), _] => Err(e),
            // Unreachable is not the same as damaged: the first copy may be whole.
            [Err(e), Err(Error::Corrupt { .. })] if !e.is_corrupt() => Err(e),
            [Err(_), second] => second,
        }
    }
}

/// A value file being appended to.
#[derive(Debug)]
pub(super) struct ValueFile {
    /// Its number.
    pub no: u16,
    /// Its bytes, and how many of them are durable.
    pub log: AppendFile,
}

impl ValueFile {
    /// Makes a value file in `folder`; durable, with its name, when it returns.
    pub fn create(vfs: &dyn Vfs, folder: &Path, header: &Header) -> Result<ValueFile> {
        let mut bytes = header.encode();
        bytes.resize(COPY as usize, 0);
        bytes.extend_from_slice(&header.encode());
        bytes.resize(DATA as usize, 0);
        let log = AppendFile::create(vfs, folder, &name(header.file), &bytes, None)?;
        Ok(ValueFile { no: header.file, log })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::{OpenMode, RealFs};

    #[test]
    fn either_copy_of_the_header_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let header = Header { store: [9; 16], container: 5, file: 3, created_ms: 77 };
        let made = ValueFile::create(&RealFs, dir.path(), &header).unwrap();
        let path = dir.path().join("values-0003");
        assert_eq!(Header::read(&**made.log.file(), &path).unwrap(), header);
        for bit in 0..HEADER * 8 {
            let whole = std::fs::read(&path).unwrap();
            for copies in [&[0][..], &[4096], &[0, 4096]] {
                let mut bad = whole.clone();
                for at in copies {
                    bad[at + bit / 8] ^= 1 << (bit % 8);
                }
                std::fs::write(&path, &bad).unwrap();
                let found = Header::read(&*RealFs.open(&path, OpenMode::Read).unwrap(), &path);
                match copies.len() {
                    1 => assert_eq!(found.unwrap(), header),
                    _ => assert!(found.is_err()),
                }
            }
            std::fs::write(&path, &whole).unwrap();
        }
    }

    #[test]
    fn a_number_has_one_name() {
        for no in [0, 7, 9_999, 10_000, u16::MAX] {
            assert_eq!(number(&name(no)), Some(no));
        }
        for other in ["values-00000", "values-7", "values-+007", "values-65536", "values-", "values-0000.tmp"]
        {
            assert_eq!(number(other), None, "{other}");
        }
    }

    #[test]
    fn a_newer_format_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let mut bytes = Header { store: [9; 16], container: 5, file: 0, created_ms: 0 }.encode();
        bytes[4] = 2;
        let sum = checksum(0, &bytes[..56]);
        bytes[56..].copy_from_slice(&sum.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let file = RealFs.open(&path, OpenMode::Read).unwrap();
        assert!(matches!(Header::read(&*file, &path), Err(Error::NewerFormat { found: 2, .. })));
    }

    #[test]
    fn names_and_numbers_agree() {
        assert_eq!(number(&name(12)), Some(12));
        assert_eq!(number(&name(12_345)), Some(12_345));
        for bad in ["values-1", "values-0001.tmp", "values-+001", "values-99999", "index-0001"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }
}
