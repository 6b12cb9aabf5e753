//! What is put: made-up values, or the files of a directory.

use crate::failure::{Failure, PERMISSION, check_dir};
use crate::interrupt::stopped;
use crate::random::Random;
use crate::show;
use crate::values::{Kind, kind, value};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use thermocline::ContentType;
use thermocline_storage::types::MAX_KEY;
use walkdir::WalkDir;

/// Why an entry of a directory was left out that could not be looked at.
const UNREADABLE: &str = "unreadable";

/// Why a file was left out that would have been one too many.
const OVER: &str = "beyond --limit-bytes or --limit-files";

/// One item.
#[derive(Debug)]
pub struct Item {
    /// The key.
    pub key: Bytes,
    /// Bytes of its value.
    pub len: u64,
    /// What it is put as; for files, once the engine has found it out.
    pub content_type: ContentType,
    /// A hash of the value that was put; `None`: it was not put.
    pub put: Option<u64>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Made(u64, Kind),
    File(PathBuf),
}

/// All of them, in the order in which they are put.
#[derive(Debug)]
pub struct Items {
    /// The items.
    pub all: Vec<Item>,
    /// The directory, if they are files.
    pub dir: Option<PathBuf>,
    /// Files that were left out, by reason.
    pub left_out: BTreeMap<&'static str, u64>,
}

impl Items {
    /// Made-up values of so many bytes in all; fewer if a signal came.
    pub fn synthetic(bytes: u64, seed: u64) -> Items {
        let mut all = Vec::new();
        let mut sum = 0;
        while sum < bytes && !stopped() {
            let n = all.len() as u64;
            let seed = Random::new(seed.wrapping_add(n.wrapping_mul(0x9e37_79b9))).next();
            let kind = kind(seed);
            let key = Bytes::from(format!("{}/{n:08}", kind.content_type));
            sum += kind.len as u64;
            let content_type = kind.content_type;
            all.push(Item {
                key,
                len: kind.len as u64,
                content_type,
                put: None,
                source: Source::Made(seed, kind),
            });
        }
        Items { all, dir: None, left_out: BTreeMap::new() }
    }

    /// The regular files below a directory, links not followed, each once, chosen at random if they are more than
    /// the limits allow. The key is the path below the directory.
    pub fn files(dir: &Path, limit_bytes: u64, limit_files: u64, seed: u64) -> Result<Items, Failure> {
        check_dir(dir)?;
        fs::read_dir(dir).map_err(|e| Failure::given("list", dir, &e))?;
        let mut left_out = BTreeMap::new();
        let mut all = Vec::new();
        for entry in WalkDir::new(dir).follow_root_links(true).sort_by_file_name() {
            if stopped() {
                break;
            }
            let Ok(entry) = entry else {
                *left_out.entry(UNREADABLE).or_insert(0) += 1;
                continue;
            };
            if !entry.file_type().is_file() {
                continue;
            }
            let (path, len) = (entry.path(), entry.metadata().map_or(0, |m| m.len()));
            let key = path.strip_prefix(dir).unwrap_or(path).as_os_str().as_bytes();
            let reason = match len {
                0 => Some("empty"),
                _ if key.len() > MAX_KEY => Some("name too long"),
                _ => None,
            };
            if let Some(reason) = reason {
                *left_out.entry(reason).or_insert(0) += 1;
                continue;
            }
            let key = Bytes::copy_from_slice(key);
            let source = Source::File(path.to_path_buf());
            all.push(Item { key, len, content_type: ContentType::Auto, put: None, source });
        }
        if all.is_empty() && !stopped() {
            let why = match left_out.get(UNREADABLE) {
                Some(n) => format!(" that may be read ({} may not: {PERMISSION})", show::count(*n)),
                None => String::new(),
            };
            return Err(Failure::usage(format!(
                "{}: no file with anything in it is there{why}",
                dir.display()
            )));
        }
        Random::new(seed).shuffle(&mut all);
        let mut items = Items { all, dir: Some(dir.to_path_buf()), left_out };
        let (mut sum, mut count) = (0u64, 0u64);
        items.keep(OVER, |item| {
            let fits = sum.saturating_add(item.len) <= limit_bytes && count < limit_files;
            if fits {
                sum += item.len;
                count += 1;
            }
            fits
        });
        if items.all.is_empty() && !stopped() {
            return Err(Failure::usage(format!(
                "{}: every file there is over the limits: raise --limit-bytes or --limit-files",
                dir.display()
            )));
        }
        Ok(items)
    }

    /// Leaves out what cannot be used, counting why.
    pub fn keep(&mut self, reason: &'static str, good: impl FnMut(&Item) -> bool) {
        let before = self.all.len();
        let mut good = good;
        self.all.retain(|item| good(item));
        let left = (before - self.all.len()) as u64;
        if left > 0 {
            *self.left_out.entry(reason).or_insert(0) += left;
        }
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> u64 {
        self.all.iter().map(|i| i.len).sum()
    }
}

impl Item {
    /// The value: made again, or read again.
    pub fn value(&self) -> io::Result<Bytes> {
        match &self.source {
            Source::Made(seed, kind) => Ok(value(*seed, *kind).into()),
            Source::File(path) => Ok(fs::read(path)?.into()),
        }
    }
}

/// A hash to know a value by that is no longer at hand.
pub fn hash(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(value);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_within_their_limits() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for i in 1..=10u32 {
            fs::write(dir.path().join(format!("sub/{i}")), vec![1; 100 * i as usize]).unwrap();
        }
        fs::write(dir.path().join("nothing"), "").unwrap();
        std::os::unix::fs::symlink("nothing", dir.path().join("link")).unwrap();
        let items = Items::files(dir.path(), u64::MAX, u64::MAX, 1).unwrap();
        assert_eq!((items.all.len(), items.bytes()), (10, 5500));
        assert_eq!(items.left_out.get("empty"), Some(&1));
        assert!(items.all.iter().any(|i| &i.key[..] == b"sub/7" && i.value().unwrap().len() == 700));
        let items = Items::files(dir.path(), 1000, 3, 1).unwrap();
        assert!(items.bytes() <= 1000 && items.all.len() <= 3 && !items.all.is_empty());
        assert!(Items::files(dir.path(), 10, 10, 1).is_err());
        assert!(Items::files(&dir.path().join("nowhere"), 10, 10, 1).is_err());
    }

    #[test]
    fn made_up_items_are_made_again() {
        let items = Items::synthetic(1 << 20, 3);
        assert!(items.bytes() >= 1 << 20);
        for item in items.all.iter().take(20) {
            let value = item.value().unwrap();
            assert_eq!(value.len() as u64, item.len);
            assert_eq!(hash(&value), hash(&item.value().unwrap()));
        }
    }
}
