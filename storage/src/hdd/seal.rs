//! The seal: a small file beside an index that says, to the byte, what the index was when it was left.
//!
//! ```text
//!  0  u32  magic "TCS1"          4  u32  format (1)
//!  8  u64  container id
//! 16  16 bytes  token, the same as the index's sentinel
//! 32  u32  number of the index   36  u32  entries in the index
//! 40  u32  records               44  u32  number of value files
//! 48  u32  number of index files 52  u32  zero
//! 56  for each value file: u32 number, u32 zero, u64 length that the index covers
//!     for each index file: u32 length of its name, its name, u64 length, u64 xxh3-64 of its bytes
//!     u64  checksum of all of the above: xxh3-64 seeded with the container's id
//! ```
//!
//! Invariant: sled never opens a database whose files differ by one bit from those that sled left when it was
//! last closed. Damage, an older copy put back, a file lost, a database that a kill left half-written: all of them
//! fail here, before sled can panic over them, answer from them or allocate what a damaged length says.
//!
//! The seal is replaced whole (temporary name, sync, rename, directory sync) after the index's files were synced:
//! a crash leaves the old seal, which does not match what is there, or the new one, which does.

use crate::error::{Error, IoContext, Result};
use crate::record::{checksum, le32, le64};
use crate::vfs::{EntryKind, OpenMode, Vfs, VfsFile, read_small, replace_small};
use std::path::Path;
use twox_hash::XxHash3_64;

/// The seal's name in its generation.
pub(super) const NAME: &str = "seal";
const MAGIC: [u8; 4] = *b"TCS1";
const FORMAT: u32 = 1;
/// No seal is longer: an index has a handful of files, a generation at most 65,536.
const MAX_LEN: u64 = 2 << 20;

/// The name of an index's directory in its generation.
pub(super) fn index_name(no: u32) -> String {
    format!("index-{no:04}")
}

/// The number in the name of an index's directory.
pub(super) fn index_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("index-")?;
    (digits.len() >= 4 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// A file of the index: its name below the index's directory, its length and its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IndexFile {
    pub name: String,
    pub len: u64,
    pub sum: u64,
}

/// What the seal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seal {
    /// The generation's container id.
    pub container: u64,
    /// Random, the same as the index's sentinel.
    pub token: [u8; 16],
    /// Which `index-N`.
    pub index: u32,
    /// Entries in the index, the sentinel left out.
    pub entries: u32,
    /// Records in the generation.
    pub records: u32,
    /// Value files and how much of each the index covers.
    pub values: Vec<(u16, u64)>,
    /// The index's files, by name.
    pub files: Vec<IndexFile>,
}

impl Seal {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.container.to_le_bytes());
        out.extend_from_slice(&self.token);
        let counts =
            [self.index, self.entries, self.records, self.values.len() as u32, self.files.len() as u32, 0];
        counts.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        for (no, len) in &self.values {
            out.extend_from_slice(&u64::from(*no).to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
        }
        for file in &self.files {
            out.extend_from_slice(&(file.name.len() as u32).to_le_bytes());
            out.extend_from_slice(file.name.as_bytes());
            out.extend_from_slice(&file.len.to_le_bytes());
            out.extend_from_slice(&file.sum.to_le_bytes());
        }
        let sum = checksum(self.container, &out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    pub(super) fn parse(bytes: &[u8], container: u64) -> Result<Seal, &'static str> {
        let (body, sum) = bytes.split_at_checked(bytes.len().saturating_sub(8)).ok_or("it is cut short")?;
        if !body.starts_with(&MAGIC) || body.len() < 56 {
            return Err("it is no seal");
        }
        if checksum(container, body) != le64(sum, 0) {
            return Err("its checksum does not match");
        }
        if le32(body, 4) != FORMAT || le64(body, 8) != container {
            return Err("it is of another format or generation");
        }
        let token = body.get(16..32).and_then(|t| t.first_chunk().copied()).ok_or("it is cut short")?;
        let (values, files) = (le32(body, 44) as usize, le32(body, 48) as usize);
        let mut seal = Seal {
            container,
            token,
            index: le32(body, 32),
            entries: le32(body, 36),
            records: le32(body, 40),
            values: Vec::new(),
            files: Vec::new(),
        };
        let mut rest = body.get(56..).unwrap_or_default();
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at_checked(n)?;
            rest = tail;
            Some(head)
        };
        for _ in 0..values {
            let v = take(16).ok_or("it is cut short")?;
            let no = u16::try_from(le64(v, 0)).map_err(|_| "impossible value file number")?;
            seal.values.push((no, le64(v, 8)));
        }
        for _ in 0..files {
            let len = le32(take(4).ok_or("it is cut short")?, 0) as usize;
            let name = take(len).ok_or("it is cut short")?;
            let name = String::from_utf8(name.to_vec()).map_err(|_| "a name is no text")?;
            let v = take(16).ok_or("it is cut short")?;
            seal.files.push(IndexFile { name, len: le64(v, 0), sum: le64(v, 8) });
        }
        Ok(seal)
    }

    /// Reads the seal of a generation. `Corrupt` if it is not whole.
    pub fn read(vfs: &dyn Vfs, generation: &Path, container: u64) -> Result<Seal> {
        let path = generation.join(NAME);
        let bytes = read_small(vfs, &path, MAX_LEN).at("read", &path)?;
        Seal::parse(&bytes, container).map_err(|why| Error::corrupt(&path, 0, why))
    }

    /// Writes the seal, durably, in place of the one that is there.
    pub fn write(&self, vfs: &dyn Vfs, generation: &Path) -> Result<()> {
        let path = generation.join(NAME);
        replace_small(vfs, &path, &self.encode()).at("write", &path)
    }

    /// Checks that the index's files are, to the byte, those that the seal describes.
    pub fn check(&self, vfs: &dyn Vfs, generation: &Path) -> Result<()> {
        let folder = generation.join(index_name(self.index));
        let found = digest(vfs, &folder, false)?;
        if found != self.files {
            return Err(Error::corrupt(&folder, 0, "the index is not the one that was sealed"));
        }
        Ok(())
    }
}

/// Lengths and checksums of an index's files, by name; each is synced first if `sync`.
pub(super) fn digest(vfs: &dyn Vfs, folder: &Path, sync: bool) -> Result<Vec<IndexFile>> {
    let mut files = Vec::new();
    for entry in vfs.read_dir(folder).at("list", folder)? {
        let path = folder.join(&entry.name);
        match entry.kind {
            EntryKind::File => {
                let file = vfs.open(&path, OpenMode::Read).at("open", &path)?;
                if sync {
                    file.sync().at("sync", &path)?;
                }
                let (len, sum) = sum_of(&*file).at("read", &path)?;
                files.push(IndexFile { name: entry.name, len, sum });
            }
            // sled makes one, for values far larger than any of ours.
            EntryKind::Dir if vfs.read_dir(&path).at("list", &path)?.is_empty() => {}
            _ => return Err(Error::corrupt(&path, 0, "nothing like this belongs to an index")),
        }
    }
    if sync {
        vfs.sync_dir(folder).at("sync", folder)?;
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn sum_of(file: &dyn VfsFile) -> std::io::Result<(u64, u64)> {
    let mut hasher = XxHash3_64::new();
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        let n = file.read_at(&mut buffer, at)?;
        std::hash::Hasher::write(&mut hasher, buffer.get(..n).unwrap_or_default());
        at += n as u64;
        if n < buffer.len() {
            return Ok((at, std::hash::Hasher::finish(&hasher)));
        }
    }
}

/// Bytes that an index of a generation occupies, with its seal.
pub(super) fn occupied(vfs: &dyn Vfs, generation: &Path, index: &str) -> u64 {
    let size = |path: &Path, len: u64| {
        let file = vfs.open(path, OpenMode::Read);
        file.and_then(|f| f.allocated()).unwrap_or(len).max(len)
    };
    let folder = generation.join(index);
    let entries = vfs.read_dir(&folder).unwrap_or_default();
    let files = entries.iter().filter(|e| e.kind == EntryKind::File);
    files.map(|e| size(&folder.join(&e.name), e.len)).sum::<u64>() + size(&generation.join(NAME), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::RealFs;

    fn sample() -> Seal {
        Seal {
            container: 9,
            token: [7; 16],
            index: 2,
            entries: 30,
            records: 400,
            values: vec![(0, 1 << 20), (3, 8192)],
            files: vec![IndexFile { name: "db".into(), len: 5, sum: 6 }],
        }
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_found() {
        let bytes = sample().encode();
        assert_eq!(Seal::parse(&bytes, 9).unwrap(), sample());
        assert!(Seal::parse(&bytes, 8).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Seal::parse(&bad, 9).is_err(), "bit {bit}");
        }
        (0..bytes.len()).for_each(|n| assert!(Seal::parse(&bytes[..n], 9).is_err()));
    }

    #[test]
    fn a_changed_missing_or_added_index_file_breaks_the_seal() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(index_name(2));
        std::fs::create_dir_all(folder.join("blobs")).unwrap();
        std::fs::write(folder.join("db"), b"content").unwrap();
        let seal = Seal { files: digest(&RealFs, &folder, true).unwrap(), ..sample() };
        seal.check(&RealFs, dir.path()).unwrap();
        std::fs::write(folder.join("db"), b"contenT").unwrap();
        assert!(seal.check(&RealFs, dir.path()).is_err());
        std::fs::write(folder.join("db"), b"content").unwrap();
        seal.check(&RealFs, dir.path()).unwrap();
        std::fs::write(folder.join("snap.1"), b"").unwrap();
        assert!(seal.check(&RealFs, dir.path()).is_err());
        std::fs::remove_file(folder.join("snap.1")).unwrap();
        std::fs::remove_file(folder.join("db")).unwrap();
        assert!(seal.check(&RealFs, dir.path()).is_err());
    }
}
