//! Tests of the tier as a whole.

mod basic;
mod damage;
mod faults;
mod tools;

use super::*;
use crate::clock::ManualClock;
use crate::codec::Algorithm;
use crate::container::{Containers, Known, Purpose, TierDir, Unknown};
use crate::ident::{Hasher, Ident};
use crate::testing::{FaultFs, noise};
use crate::types::Codec;
use crate::types::{ContentType, Version};
use crate::vfs::Vfs;
use bytes::Bytes;
use std::path::{Path, PathBuf};

pub(super) const STORE: [u8; 16] = *b"store of a test!";

/// A tier in temporary directories.
pub(super) struct Bench {
    pub(super) vfs: Arc<dyn Vfs>,
    pub(super) clock: Arc<ManualClock>,
    pub(super) dirs: Vec<TierDir>,
    pub(super) config: ColdConfig,
    pub(super) open_counter: u64,
    pub(super) store: [u8; 16],
    _temporary: Vec<tempfile::TempDir>,
}

impl Bench {
    pub(super) fn new(dirs: usize) -> Bench {
        let temporary: Vec<_> = (0..dirs).map(|_| tempfile::tempdir().unwrap()).collect();
        let dirs = temporary
            .iter()
            .enumerate()
            .map(|(no, t)| TierDir {
                no: no as u16,
                path: t.path().to_path_buf(),
                limit: None,
                older: None,
                anchor: None,
            })
            .collect();
        Bench {
            vfs: Arc::new(FaultFs::default().without_syncs()),
            clock: Arc::new(ManualClock::new(1_700_000_000_000)),
            dirs,
            config: ColdConfig { compression: eager(), ..ColdConfig::default() },
            open_counter: 1,
            store: STORE,
            _temporary: temporary,
        }
    }

    pub(super) fn try_open(
        &mut self,
        known: Vec<Known>,
        unknown: Unknown,
    ) -> Result<(Arc<Cold>, OpenReport, Arc<Containers>)> {
        let containers = Arc::new(Containers::new(self.open_counter));
        self.open_counter += 1;
        let ctx = TierContext {
            vfs: self.vfs.clone(),
            clock: self.clock.clone(),
            store: self.store,
            containers: containers.clone(),
            dirs: self.dirs.clone(),
            known,
            unknown,
        };
        Cold::open(ctx, self.config.clone()).map(|(cold, report)| (cold, report, containers))
    }

    pub(super) fn open(&mut self) -> (Arc<Cold>, Arc<Containers>) {
        let (cold, _, containers) = self.try_open(Vec::new(), Unknown::Delete).unwrap();
        (cold, containers)
    }

    pub(super) fn folder(&self, dir: usize) -> PathBuf {
        self.dirs[dir].path.join("packs")
    }

    /// Names in the folder of packs, sorted.
    pub(super) fn files(&self, dir: usize) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.folder(dir))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(super) fn only_file(&self) -> PathBuf {
        let files = self.files(0);
        assert_eq!(files.len(), 1, "{files:?}");
        self.folder(0).join(&files[0])
    }
}

/// Deflates short values and for small savings too, so that packs of few bytes have both methods in them.
fn eager() -> Compression {
    let zlib = Algorithm { level: 6, min_size: 64, threshold: 0.95 };
    Compression { zlib, ..Compression::default() }
}

/// An item whose payload is the value encoded with `codec`.
pub(super) fn item(key: &[u8], value: &[u8], codec: Codec, version: u64) -> Item {
    let payload = match codec {
        Codec::None => value.to_vec(),
        Codec::Deflate => crate::codec::deflate(value, 6),
        Codec::Zlib => {
            use std::io::Write as _;
            let mut z = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
            z.write_all(value).unwrap();
            z.finish().unwrap()
        }
        Codec::Lz4 => lz4_flex::block::compress(value),
    };
    Item {
        key: Bytes::copy_from_slice(key),
        ident: Hasher::new([7; 16]).ident(key),
        version: Version(version),
        expires_at: version % 3 * 1000,
        content_type: ContentType::STORED[version as usize % 4],
        codec,
        original_len: value.len() as u32,
        payload: Bytes::from(payload),
    }
}

pub(super) fn value_of(item: &Item) -> Vec<u8> {
    crate::codec::decode(item.codec, &item.payload, item.original_len).unwrap().to_vec()
}

/// What a reader may compare: all but codec and payload, and the value.
pub(super) fn facts(item: &Item) -> (Bytes, Ident, Version, u64, ContentType, Vec<u8>) {
    (item.key.clone(), item.ident, item.version, item.expires_at, item.content_type, value_of(item))
}

pub(super) fn read(containers: &Containers, written: &Written) -> Result<Item> {
    containers.get(written.place.container()).unwrap().container.read(written.place.position())
}

/// A batch with every codec, lengths from nothing to more than a first read, and awkward keys.
pub(super) fn mixed() -> Vec<Item> {
    let text = "the lake is warm above and cold below. ".repeat(600).into_bytes();
    let long_key = vec![b'k'; MAX_KEY];
    vec![
        item(b"a/text", &text, Codec::None, 1),
        item(b"a/zlib", &text[..5000], Codec::Zlib, 2),
        item(b"a/lz4", &text[..7000], Codec::Lz4, 3),
        item(b"a/deflate", &text[..300], Codec::Deflate, 4),
        item(b"empty", b"", Codec::None, 5),
        item(b"a", b"a file where a folder is", Codec::None, 6),
        item(b"../../etc/passwd", b"harmless", Codec::None, 7),
        item(&long_key, &noise(5, 30_000), Codec::None, 8),
        item(b"A/TEXT", &noise(6, 100), Codec::Lz4, 9),
        item(b"one", b"1", Codec::None, 10),
    ]
}

pub(super) fn write_file(path: &Path, bytes: &[u8]) {
    // A file that is cut to nothing and written again is flushed by some file systems when it is closed.
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
}
