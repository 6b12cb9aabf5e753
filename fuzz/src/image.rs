//! A small store in all tiers, at rest: what is forged.

use crate::value;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use thermocline::testing::vfs::Vfs;
use thermocline::testing::{Clock, ManualClock};
use thermocline::{Builder, Cache, Persistence, PutOptions, Tier};
use thermocline_storage::sim::SimFs;

/// When the store is made.
pub const START: u64 = 1_700_000_000_000;
/// When it is opened again.
pub const LATER: u64 = START + 100_000;
/// Its directories, hottest first.
pub const DIRS: [&str; 3] = ["/s", "/h", "/c"];
const KIB: u64 = 1 << 10;

/// The store.
pub struct Image {
    disk: SimFs,
    /// Its id.
    pub store: [u8; 16],
    /// Of each key every value that it ever had, the newest last; `None` where it was removed.
    pub values: BTreeMap<String, Vec<Option<Bytes>>>,
    /// Every file.
    pub files: Vec<PathBuf>,
}

/// A store like it.
pub fn builder(vfs: Arc<dyn Vfs>, clock: Arc<dyn Clock>) -> Builder {
    let mut b = Cache::builder().memory(64 * KIB).persistence(Persistence::EverySecond);
    b = b.ssd(DIRS[0], 512 * KIB).hdd(DIRS[1], 1024 * KIB).cold(DIRS[2]).cold_limit(512 * KIB);
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

/// A clock that shows when the store is opened again.
pub fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(LATER))
}

impl Image {
    /// The store as it was closed, or killed: made once in a process.
    pub fn get(killed: bool) -> &'static Image {
        static IMAGES: [OnceLock<Image>; 2] = [const { OnceLock::new() }; 2];
        IMAGES[usize::from(killed)].get_or_init(|| Image::make(killed))
    }

    fn make(killed: bool) -> Image {
        let disk = DIRS.iter().fold(SimFs::new(5), |fs, dir| fs.with_dir(Path::new(dir)));
        let clock = Arc::new(ManualClock::new(START));
        let cache = builder(Arc::new(disk.clone()), clock.clone()).open().unwrap();
        let mut values: BTreeMap<String, Vec<Option<Bytes>>> = BTreeMap::new();
        let mut put = |cache: &Cache, tier: Tier, name: &str, len: usize, ttl: Option<u64>| {
            let key = format!("{tier}/{name}");
            let all = values.entry(key.clone()).or_default();
            let value = value::make(&key, all.len() as u64, len);
            let mut options = PutOptions::new();
            if let Some(seconds) = ttl {
                options = options.ttl(Duration::from_secs(seconds));
            }
            cache.put_with(&key, value.clone(), options).unwrap();
            all.push(Some(value));
            key
        };
        for round in 0..3 {
            for tier in [Tier::Cold, Tier::Hdd, Tier::Ssd] {
                let mut keys = vec![put(&cache, tier, "again", 90 + round, None)];
                keys.push(put(&cache, tier, &format!("{round}"), 50, (round == 1).then_some(50)));
                keys.push(put(&cache, tier, &format!("text {round}"), 700, Some(5_000_000)));
                if round == 0 {
                    keys.push(put(&cache, tier, "large", if tier == Tier::Hdd { 1_500 } else { 900 }, None));
                    keys.push(put(&cache, tier, &"long/".repeat(60), 10, None));
                }
                cache.flush().unwrap();
                keys.iter().for_each(|key| _ = cache.demote(key, tier).unwrap());
                cache.flush().unwrap();
            }
        }
        for tier in Tier::DISK {
            let key = format!("{tier}/0");
            assert!(cache.remove(&key).unwrap());
            values.get_mut(&key).unwrap().push(None);
            let key = format!("{tier}/text 2");
            assert!(cache.expire_in(&key, Some(Duration::from_secs(4_000_000))).unwrap());
        }
        cache.flush().unwrap();
        if killed {
            let left = disk.kill();
            cache.crash();
            return Image::of(left, values);
        }
        cache.close().unwrap();
        Image::of(disk.kill(), values)
    }

    fn of(disk: SimFs, values: BTreeMap<String, Vec<Option<Bytes>>>) -> Image {
        let files: Vec<PathBuf> = disk.files();
        let record = String::from_utf8_lossy(&disk.read(Path::new("/s/store.a"))).into_owned();
        let hex = record.lines().find_map(|l| l.strip_prefix("store ")).unwrap();
        let store = u128::from_str_radix(hex, 16).unwrap().to_be_bytes();
        let image = Image { disk, store, values, files };
        for what in ["seg-", "values-", "pack-", "journal-", "checkpoint-"] {
            assert!(!image.of_name(what).is_empty(), "no {what} in {:?}", image.files);
        }
        image
    }

    /// A copy to forge.
    pub fn disk(&self) -> SimFs {
        self.disk.kill()
    }

    /// The files whose names begin like this.
    pub fn of_name(&self, prefix: &str) -> Vec<PathBuf> {
        let is = |p: &&PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
        self.files.iter().filter(is).cloned().collect()
    }
}
