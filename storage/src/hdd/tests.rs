//! What the tests of this module share.

mod ahead;
mod away;
mod damage;
mod disks;
mod drops;
mod incomplete;
mod indexes;
mod plain;

use super::index::{BlockIndex, Extent, IndexFactory};
use super::*;
use crate::clock::ManualClock;
use crate::container::{Containers, Known, TierDir};
use crate::ident::Ident;
use crate::testing::{Fault, FaultFs, Op};
use crate::types::{Codec, ContentType, Version};
use crate::vfs::{RealFs, Space, Vfs};
use bytes::Bytes;
use std::path::Path;

/// An item whose payload is told by its number.
pub(super) fn item(n: u32, len: usize) -> Item {
    let payload: Vec<u8> = (0..len).map(|i| (i as u32).wrapping_mul(31).wrapping_add(n * 7) as u8).collect();
    Item {
        key: Bytes::from(format!("key/{n}")),
        ident: Ident::from_bits(u64::from(n) * 77 + 1),
        version: Version(u64::from(n) + 100),
        expires_at: u64::from(n % 3) * 1000,
        content_type: ContentType::Binary,
        codec: Codec::None,
        original_len: len as u32,
        payload: Bytes::from(payload),
    }
}

/// So many items, with payloads of so many bytes.
fn items(from: u32, n: u32, len: usize) -> Vec<Item> {
    (from..from + n).map(|i| item(i, len)).collect()
}

/// A store of one or more directories that can be closed and opened again.
pub(super) struct Bench {
    pub root: tempfile::TempDir,
    pub vfs: Arc<dyn Vfs>,
    pub clock: Arc<ManualClock>,
    pub limits: Vec<Option<u64>>,
    pub config: HddConfig,
    pub factory: Option<Arc<dyn IndexFactory>>,
    pub store: [u8; 16],
    opens: u64,
}

/// An open tier with its table.
pub(super) struct Open {
    pub hdd: Arc<Hdd>,
    pub report: OpenReport,
    pub containers: Arc<Containers>,
}

impl Bench {
    pub fn new(limits: &[Option<u64>]) -> Bench {
        let config = HddConfig {
            generation_size: 256 << 10,
            block_size: 8 << 10,
            sled_cache: 32 << 20,
            reserve: 1 << 20,
            ..HddConfig::for_limit(limits[0])
        };
        Bench {
            root: tempfile::tempdir().unwrap(),
            vfs: Arc::new(RealFs),
            clock: Arc::new(ManualClock::new(1_000_000)),
            limits: limits.to_vec(),
            config,
            factory: Some(Arc::new(SledFactory)),
            store: [5; 16],
            opens: 0,
        }
    }

    pub fn dir(&self, i: usize) -> PathBuf {
        self.root.path().join(format!("disk{i}"))
    }

    pub fn open(&mut self, known: &[Known]) -> Open {
        self.open_as(known, Unknown::Delete).unwrap()
    }

    pub fn open_as(&mut self, known: &[Known], unknown: Unknown) -> Result<Open> {
        self.opens += 1;
        let containers = Arc::new(Containers::new(self.opens));
        let dirs: Vec<_> = (0..self.limits.len())
            .map(|i| TierDir {
                no: i as u16,
                path: self.dir(i),
                limit: self.limits[i],
                older: None,
                anchor: None,
            })
            .collect();
        dirs.iter().for_each(|d| std::fs::create_dir_all(&d.path).unwrap());
        let ctx = TierContext {
            vfs: self.vfs.clone(),
            clock: self.clock.clone(),
            store: self.store,
            containers: containers.clone(),
            dirs,
            known: known.to_vec(),
            unknown,
        };
        let (hdd, report) = Hdd::open_with(ctx, self.config.clone(), self.factory.clone())?;
        Ok(Open { hdd, report, containers })
    }

    /// The paths of the generations in a directory, oldest first.
    pub fn generations(&self, i: usize) -> Vec<PathBuf> {
        let folder = self.dir(i).join("generations");
        let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        all.sort();
        all
    }
}

impl Open {
    /// What a catalog would know of the containers.
    pub fn known(&self) -> Vec<Known> {
        self.containers.all().iter().map(|e| e.known()).collect()
    }

    pub fn write(&self, items: &[Item]) -> Vec<Written> {
        let written = self.hdd.write(items, Purpose::Write).unwrap();
        assert_eq!(written.len(), items.len());
        written
    }

    pub fn read(&self, w: &Written) -> Result<Item> {
        let entry = self.containers.get(w.place.container()).ok_or(Error::Gone(w.place.container()))?;
        entry.container.read(w.place.position())
    }

    /// Makes the next reads ask the index.
    pub fn forget_headers(&self) {
        self.containers.all().iter().for_each(|e| self.hdd.core.tables.forget(e.id));
    }

    pub fn settle(&self) {
        assert!(self.hdd.settle(Duration::from_secs(30)));
    }

    /// Reads everything and says how many came back; the rest must be damage, never something else.
    pub fn check(&self, items: &[Item], written: &[Written]) -> usize {
        let mut good = 0;
        self.forget_headers();
        for (item, w) in items.iter().zip(written) {
            match self.read(w) {
                Ok(found) => {
                    assert_eq!(&found, item);
                    let entry = self.containers.get(w.place.container()).unwrap();
                    assert_eq!(entry.container.head(w.place.position()).unwrap(), item.head());
                    good += 1;
                }
                Err(Error::Corrupt { .. } | Error::Gone(_)) => {}
                Err(e) => panic!("neither right nor damaged: {e}"),
            }
        }
        good
    }
}

/// A disk says that so much of it is free.
fn says(free: u64) -> impl Fn(&Path) -> Space {
    move |_| Space { free, total: 1 << 40 }
}

/// A tier without sled on a disk that can be told to fail.
fn bad(limits: &[Option<u64>]) -> (Bench, FaultFs) {
    let disk = FaultFs::default();
    disk.say_space(says(1 << 40));
    let mut bench = Bench::new(limits);
    bench.vfs = Arc::new(disk.clone());
    bench.factory = None;
    (bench, disk)
}

/// A tier, closed, and what was written to it.
struct Closed {
    all: Vec<Item>,
    written: Vec<Written>,
    known: Vec<Known>,
}

/// Writes so many items to a new tier, and closes it.
fn closed(bench: &mut Bench, n: u32) -> Closed {
    let open = bench.open(&[]);
    let all = items(0, n, 900);
    let written = open.write(&all);
    let known = open.known();
    open.hdd.close().unwrap();
    Closed { all, written, known }
}

/// [`bad`], and a tier of so many items on it, closed.
fn bad_closed(n: u32) -> (Bench, FaultFs, Closed) {
    let (mut bench, disk) = bad(&[Some(64 << 20)]);
    let closed = closed(&mut bench, n);
    (bench, disk, closed)
}

fn of_values(path: &Path) -> bool {
    path.to_string_lossy().contains("values-")
}

/// What goes wrong with an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    None,
    PanicAtOpen,
    HangAtOpen,
    PanicAtInsert,
    FailAtInsert,
    PanicAtLookup,
    HangAtLookup,
    HangAtClose,
    /// Every lookup answers with an entry that leads elsewhere.
    Lie,
    /// Every lookup answers that there is nothing.
    Forget,
    /// The sentinel is not the one that was left.
    OtherSentinel,
}

/// Makes indexes in RAM that keep one file, so that there is something to seal, and misbehave as told.
#[derive(Debug)]
pub(super) struct FaultyFactory {
    trouble: Arc<Mutex<Trouble>>,
    kept: Arc<Mutex<HashMap<PathBuf, Faulty>>>,
}

#[derive(Debug, Clone)]
struct Faulty {
    trouble: Arc<Mutex<Trouble>>,
    extents: Vec<Extent>,
    token: Option<Vec<u8>>,
    path: PathBuf,
    kept: Arc<Mutex<HashMap<PathBuf, Faulty>>>,
}

impl FaultyFactory {
    pub fn new(trouble: Trouble) -> FaultyFactory {
        FaultyFactory { trouble: Arc::new(Mutex::new(trouble)), kept: Arc::default() }
    }

    pub fn set(&self, trouble: Trouble) {
        *self.trouble.lock() = trouble;
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

impl IndexFactory for FaultyFactory {
    fn open(&self, path: &Path, _: u64, _: u64) -> Result<Box<dyn BlockIndex>, String> {
        let trouble = *self.trouble.lock();
        match trouble {
            Trouble::PanicAtOpen => panic!("on purpose"),
            Trouble::HangAtOpen => hang(),
            _ => {}
        }
        if path.parent().is_some_and(Path::exists) {
            std::fs::create_dir_all(path).unwrap();
            std::fs::write(path.join("db"), b"an index").unwrap();
        }
        let fresh = Faulty {
            trouble: self.trouble.clone(),
            extents: Vec::new(),
            token: None,
            path: path.to_path_buf(),
            kept: self.kept.clone(),
        };
        Ok(Box::new(self.kept.lock().get(path).cloned().unwrap_or(fresh)))
    }

    fn estimate(&self, _: u64) -> u64 {
        8192
    }
}

impl BlockIndex for Faulty {
    fn insert(&mut self, extents: &[Extent]) -> Result<(), String> {
        let trouble = *self.trouble.lock();
        match trouble {
            Trouble::PanicAtInsert => panic!("on purpose"),
            Trouble::FailAtInsert => Err("no".into()),
            _ => {
                self.extents.extend_from_slice(extents);
                Ok(())
            }
        }
    }

    fn lookup(&mut self, record: u32) -> Result<Option<Extent>, String> {
        let trouble = *self.trouble.lock();
        let found = self.extents.iter().rev().find(|e| e.first <= record).copied();
        match trouble {
            Trouble::PanicAtLookup => panic!("on purpose"),
            Trouble::HangAtLookup => hang(),
            Trouble::Forget => Ok(None),
            Trouble::Lie => Ok(found.map(|e| Extent {
                first: record,
                count: 9,
                offset: self.extents[0].offset ^ 32,
                ..e
            })),
            _ => Ok(found),
        }
    }

    fn set_sentinel(&mut self, token: &[u8]) -> Result<(), String> {
        self.token = Some(token.to_vec());
        Ok(())
    }

    fn sentinel(&mut self) -> Result<Option<Vec<u8>>, String> {
        let other = *self.trouble.lock() == Trouble::OtherSentinel;
        Ok(self.token.clone().map(|t| if other { t.iter().map(|b| !b).collect() } else { t }))
    }

    fn close(self: Box<Self>) -> Result<(), String> {
        let trouble = *self.trouble.lock();
        if trouble == Trouble::HangAtClose {
            hang();
        }
        let kept = self.kept.clone();
        kept.lock().insert(self.path.clone(), *self);
        Ok(())
    }
}
