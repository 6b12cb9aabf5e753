//! A small store at rest, what it must say, and where in its files its live records stand.

use crate::common;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thermocline::testing::vfs::Vfs;
use thermocline::testing::{Clock, ManualClock};
use thermocline::{Builder, Cache, Persistence, PutOptions, Tier};
use thermocline_storage::sim::SimFs;

/// When the store begins.
const START: u64 = 1_700_000_000_000;
/// When it is opened again.
const LATER: u64 = START + 100_000;
const KIB: u64 = 1 << 10;

/// Of each key that was ever put the value that it has; `None`: it was removed or has expired.
pub type Expected = BTreeMap<String, Option<Bytes>>;

const DIRS: [&str; 3] = ["/s", "/h", "/c"];

/// How the store came to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Closed: there is a checkpoint, and nothing in the journal.
    Closed,
    /// Killed: frames follow the checkpoint, and the last of them are not named durable by a later one.
    Killed,
    /// Killed while a checkpoint was published: one copy has it, and both have the one before with its journals.
    HalfPublished,
    /// Killed after both copies had it, and before anything older was removed.
    Published,
}

/// The store at rest.
pub struct Rest {
    pub end: End,
    disk: SimFs,
    pub expected: Expected,
    /// Bytes of a file that hold the live record of a key.
    pub records: Vec<(PathBuf, Range<usize>, String)>,
}

pub fn builder(vfs: Arc<dyn Vfs>, clock: Arc<dyn Clock>) -> Builder {
    with_tiers_from(0, vfs, clock)
}

/// The tiers from this one down.
fn with_tiers_from(first: usize, vfs: Arc<dyn Vfs>, clock: Arc<dyn Clock>) -> Builder {
    let mut b = Cache::builder().memory(64 * KIB).persistence(Persistence::EverySecond);
    if first == 0 {
        b = b.ssd(DIRS[0], 512 * KIB);
    }
    if first <= 1 {
        b = b.hdd(DIRS[1], 1024 * KIB);
    }
    b = b.cold(DIRS[2]).cold_limit(512 * KIB);
    b.config_mut().resources.io.write_buffer_size = 64 * KIB;
    let s = &mut b.config_mut().storage;
    s.segment_size = Some(8 * KIB);
    s.generation_size = Some(32 * KIB);
    s.pack_size = Some(8 * KIB);
    s.block_size = KIB;
    s.max_value_size = Some(8 * KIB);
    s.inflight = Some(1 << 20);
    s.write_stall_limit = 0;
    s.checkpoint_journal_size = 16 * KIB;
    s.erase_after = 1;
    b.simulated(vfs, clock)
}

/// A tag of a key's own, so that a value says whose it is.
fn tag(key: &str) -> u64 {
    key.bytes().fold(7u64, |a, b| a.wrapping_mul(31).wrapping_add(u64::from(b)))
}

/// Work on the store, written down.
struct Making {
    cache: Cache,
    expected: Expected,
    version: u64,
}

impl Making {
    fn put(&mut self, tier: Tier, name: &str, len: usize, ttl: Option<u64>) {
        let key = format!("{tier}/{name}");
        self.version += 1;
        let value = common::value(tag(&key), self.version, len);
        let mut options = PutOptions::new();
        if let Some(ms) = ttl {
            options = options.ttl(Duration::from_millis(ms));
        }
        self.cache.put_with(&key, value.clone(), options).unwrap();
        self.expected.insert(key, Some(value));
    }

    /// What was put goes to its tier.
    fn settle(&self) {
        self.cache.flush().unwrap();
        for key in self.expected.keys() {
            let tier = Tier::DISK.iter().find(|t| key.starts_with(&format!("{t}/"))).unwrap();
            self.cache.demote(key, *tier).unwrap();
        }
        self.cache.flush().unwrap();
    }

    fn gone(&mut self, key: &str) {
        *self.expected.get_mut(key).unwrap() = None;
    }

    fn remove(&mut self, tier: Tier, name: &str) {
        let key = format!("{tier}/{name}");
        assert!(self.cache.remove(&key).unwrap());
        self.gone(&key);
    }

    fn expire_in(&mut self, tier: Tier, name: &str, ms: u64) {
        let key = format!("{tier}/{name}");
        assert!(self.cache.expire_in(&key, Some(Duration::from_millis(ms))).unwrap());
    }

    /// All kinds of items in a tier that is the highest as yet, so that they are written there in batches: live,
    /// overwritten, removed, expiring, large.
    fn first(&mut self, tier: Tier) {
        for name in ["old", "twice", "dead", "later dead", "later old"] {
            self.put(tier, name, 60, None);
        }
        self.put(tier, "short", 70, Some(10_000));
        self.put(tier, "shortened", 70, Some(200_000));
        self.put(tier, "long", 70, Some(50_000_000));
        self.cache.flush().unwrap();
        self.put(tier, "text", 350, None);
        self.put(tier, "old", 90, None);
        self.put(tier, "twice", 80, None);
        // On an HDD it has a block of its own.
        self.put(tier, "large", if tier == Tier::Hdd { 4_200 } else { 600 }, None);
        self.expire_in(tier, "shortened", 20_000);
        self.expire_in(tier, "long", 40_000_000);
        self.cache.flush().unwrap();
        self.put(tier, "twice", 75, None);
        self.remove(tier, "dead");
        self.gone(&format!("{tier}/short"));
        self.gone(&format!("{tier}/shortened"));
        self.cache.flush().unwrap();
    }

    /// What follows the checkpoint.
    fn second(&mut self) {
        for tier in Tier::DISK {
            self.put(tier, "later old", 85, None);
            self.put(tier, "new", 95, None);
            self.remove(tier, "later dead");
        }
        self.settle();
        self.put(Tier::Ssd, "last", 64, None);
        self.cache.flush().unwrap();
    }
}

/// The store's disk, closed or killed, and what it must say.
fn made(close: bool) -> (SimFs, Expected) {
    let fs = DIRS.iter().fold(SimFs::new(5), |fs, dir| fs.with_dir(Path::new(dir)));
    let clock = Arc::new(ManualClock::new(START));
    let open = |first| with_tiers_from(first, Arc::new(fs.clone()), clock.clone()).open().unwrap();
    let mut making = Making { cache: open(2), expected: Expected::new(), version: 0 };
    making.first(Tier::Cold);
    for (no, tier) in [(1, Tier::Hdd), (0, Tier::Ssd)] {
        making.cache.close().unwrap();
        making.cache = open(no);
        making.first(tier);
    }
    // So that there is something in the heat block.
    for key in making.expected.keys() {
        making.cache.get(key).unwrap();
    }
    making.cache.close().unwrap();
    making.cache = open(0);
    making.second();
    if close {
        making.cache.close().unwrap();
    }
    let disk = fs.kill();
    making.cache.crash();
    (disk, making.expected)
}

/// The disk as a kill leaves it in the middle of a checkpoint, when there are so many files of checkpoints.
fn publishing(disk: &SimFs, checkpoints: usize) -> SimFs {
    for ahead in 1..5_000 {
        let disk = disk.kill();
        let cache = builder(Arc::new(disk.clone()), Arc::new(ManualClock::new(START))).open().unwrap();
        disk.stop_after(disk.changes() + ahead);
        // That it cannot remove what is older is no failure.
        let _ = cache.close();
        let files = disk.files();
        let all = files.iter().filter(|p| p.to_string_lossy().contains("checkpoint-"));
        let whole = all.clone().filter(|p| p.extension().is_none()).count();
        if whole == checkpoints && all.count() == checkpoints {
            return disk.kill();
        }
    }
    panic!("there are never {checkpoints} checkpoints");
}

impl Rest {
    pub fn build(end: End) -> Rest {
        let (disk, expected) = made(end == End::Closed);
        let disk = match end {
            End::Closed | End::Killed => disk,
            End::HalfPublished => publishing(&disk, 3),
            End::Published => publishing(&disk, 4),
        };
        let mut rest = Rest { end, disk, expected, records: Vec::new() };
        rest.records = rest.find();
        rest.boast();
        rest
    }

    /// The store on a disk of its own.
    pub fn disk(&self) -> SimFs {
        self.disk.kill()
    }

    pub fn files(&self) -> Vec<PathBuf> {
        self.disk.files()
    }

    pub fn read(&self, path: &Path) -> Vec<u8> {
        self.disk.read(path)
    }

    pub fn clock() -> Arc<ManualClock> {
        Arc::new(ManualClock::new(LATER))
    }

    /// The records of the live items: the newest of the key in the tier where the whole store finds it.
    fn find(&self) -> Vec<(PathBuf, Range<usize>, String)> {
        let cache = builder(Arc::new(self.disk()), Rest::clock()).open().unwrap();
        let mut found = Vec::new();
        for (key, value) in &self.expected {
            assert_eq!(cache.get(key).unwrap(), *value, "{key} of the whole store");
            if value.is_none() {
                continue;
            }
            let tier = Tier::DISK.into_iter().find(|t| key.starts_with(&format!("{t}/"))).unwrap();
            let dir = DIRS[Tier::DISK.iter().position(|t| *t == tier).unwrap()];
            let mut all = Vec::new();
            for path in self.files().iter().filter(|p| p.starts_with(dir)) {
                let of_key = records(&self.read(path)).into_iter().filter(|r| r.key == key.as_bytes());
                all.extend(of_key.map(|r| (path.clone(), r)));
            }
            let newest =
                all.iter().map(|(_, r)| r.version).max().unwrap_or_else(|| panic!("{key}: no record"));
            all.retain(|(_, r)| r.version == newest);
            found.extend(all.into_iter().map(|(path, r)| (path, r.at, key.clone())));
        }
        cache.close().unwrap();
        found
    }

    /// The store is what the test is to be about.
    fn boast(&self) {
        let live = self.expected.values().flatten().count();
        assert!(live >= 18 && self.expected.len() - live >= 12, "{live} of {}", self.expected.len());
        let (mut bytes, mut content) = (0, 0);
        for path in self.files() {
            let all = self.read(&path);
            bytes += all.len();
            content += all.iter().filter(|b| **b != 0 && **b != b' ').count();
            println!(
                "{:?}: {} {} bytes, {} of them something",
                self.end,
                path.display(),
                all.len(),
                content_of(&all)
            );
        }
        println!(
            "{:?}: {bytes} bytes, {content} of them something; {} live records",
            self.end,
            self.records.len()
        );
        assert!(content < 64 << 10);
        let mut old = 0;
        for path in self.files() {
            old += records(&self.read(&path)).len();
        }
        assert!(old > self.records.len() + 15, "dead records are there too: {old}");
    }
}

/// Bytes up to the last that is not zero.
pub fn content_of(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1)
}

/// A record as it stands in a container.
pub struct Record {
    pub at: Range<usize>,
    /// Where its payload begins.
    pub payload: usize,
    pub key: Vec<u8>,
    pub version: u64,
}

/// What looks like a record: in segments and value files by its magic, in packs by the local header before it.
pub fn records(bytes: &[u8]) -> Vec<Record> {
    let int = |at: usize, len: usize| -> u64 {
        bytes.get(at..at + len).map_or(0, |b| b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    };
    let mut found = Vec::new();
    for at in (0..bytes.len()).step_by(32) {
        let rest = &bytes[at..];
        if rest.starts_with(b"TCR1") {
            let key = int(at + 6, 2) as usize;
            let end = at + 64 + key + int(at + 36, 4) as usize;
            let key = bytes.get(at + 64..at + 64 + key).unwrap_or_default().to_vec();
            let payload = at + 64 + key.len();
            found.push(Record { at: at..end, payload, key, version: int(at + 8, 8) });
        } else if rest.starts_with(b"PK\x03\x04") {
            let name = int(at + 26, 2) as usize;
            let extra = at + 30 + name + 4;
            let end = at + int(extra + 52, 4) as usize + int(extra + 36, 4) as usize;
            let (start, len) = match int(extra + 6, 2) & 1 {
                1 => (at + 30, name),
                _ => (extra + 72, int(extra + 56, 4) as usize),
            };
            // The escapes of names: the blank is the only one that these keys have.
            let key = String::from_utf8_lossy(bytes.get(start..start + len).unwrap_or_default());
            let key = key.replace("%20", " ").into_bytes();
            let payload = at + int(extra + 52, 4) as usize;
            found.push(Record { at: at..end, payload, key, version: int(extra + 8, 8) });
        }
    }
    found
}
