//! Eight threads that put, overwrite and read far more than a store with four small tiers holds, while its process's
//! anonymous memory is watched. Shared by the bench and the test of the memory bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use thermocline::{Cache, Error, Persistence};

pub const MIB: u64 = 1 << 20;
const THREADS: u64 = 8;

/// A store and what is done to it.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub name: &'static str,
    pub memory: u64,
    pub write_buffer: u64,
    pub sled_cache: u64,
    pub inflight: u64,
    /// Limit of SSD and HDD.
    pub disk: u64,
    pub cold: u64,
    pub pack: Option<u64>,
    pub persistence: Persistence,
    /// Whether the process told its allocator to give memory back.
    pub gives_back: bool,
}

/// Everything small, so that what is not bounded shows.
pub const SMALL: Load = Load {
    name: "small limits",
    memory: 24 * MIB,
    write_buffer: 8 * MIB,
    sled_cache: 4 * MIB,
    inflight: 8 * MIB,
    disk: 64 * MIB,
    cold: 64 * MIB,
    pack: None,
    persistence: Persistence::EverySecond,
    gives_back: true,
};

/// What a load took.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// The most anonymous memory that was resident, less what the callers' own values took.
    pub most: u64,
    /// The sum of the limits and of the catalog, and 20 %, and 32 MiB.
    pub bound: u64,
    pub catalog: u64,
    pub put: u64,
}

/// Anonymous bytes of this process that are resident.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(u64::MAX >> 10) * 1024
}

/// A generator of numbers that look random (xorshift64*; Vigna, 2016).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

/// A value that says which key it is of: its number in every eight bytes, with noise, so that it shrinks a little.
fn value(no: u64, noise: &mut Numbers, len: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len as usize + 16);
    while (bytes.len() as u64) < len {
        bytes.extend_from_slice(&no.to_le_bytes());
        bytes.extend_from_slice(&noise.below(u64::MAX).to_le_bytes());
    }
    bytes.truncate(len as usize);
    bytes
}

fn is_of(no: u64, value: &[u8]) -> bool {
    value.chunks(16).all(|c| c.iter().zip(no.to_le_bytes()).all(|(a, b)| *a == b))
}

/// What the callers hold in their hands, and whether they are to go on.
#[derive(Default)]
struct Callers {
    stop: AtomicBool,
    put: AtomicU64,
    held: AtomicU64,
    wrong: AtomicBool,
}

fn caller(cache: &Cache, seed: u64, callers: &Callers) {
    let mut rng = Numbers(seed * 77 + 1);
    let mut noise = Numbers(seed + 1);
    while !callers.stop.load(Ordering::Relaxed) {
        let no = rng.below(60_000);
        if rng.below(3) == 0 {
            match cache.get(format!("{no}")) {
                Ok(Some(got)) => {
                    callers.held.fetch_add(got.len() as u64, Ordering::Relaxed);
                    if !is_of(no, &got) {
                        callers.wrong.store(true, Ordering::Relaxed);
                    }
                    callers.held.fetch_sub(got.len() as u64, Ordering::Relaxed);
                }
                Ok(None) | Err(Error::Busy { .. }) => {}
                Err(_) => callers.wrong.store(true, Ordering::Relaxed),
            }
            continue;
        }
        let len = match rng.below(100) {
            0 => rng.below(MIB),
            1..=20 => rng.below(60_000),
            _ => rng.below(2_000),
        };
        callers.held.fetch_add(len, Ordering::Relaxed);
        match cache.put(format!("{no}"), value(no, &mut noise, len)) {
            Ok(()) => {
                callers.put.fetch_add(len, Ordering::Relaxed);
            }
            Err(Error::Busy { .. }) => {}
            Err(_) => callers.wrong.store(true, Ordering::Relaxed),
        }
        callers.held.fetch_sub(len, Ordering::Relaxed);
    }
}

impl Load {
    fn open(&self, dir: &std::path::Path) -> thermocline::Result<Cache> {
        let mut builder = Cache::builder()
            .memory(self.memory)
            .memory_item_limit(1 << 30)
            .ssd(dir.join("s"), self.disk)
            .hdd(dir.join("h"), self.disk)
            .cold(dir.join("c"))
            .cold_limit(self.cold)
            .persistence(self.persistence);
        builder.config_mut().resources.io.write_buffer_size = self.write_buffer;
        let s = &mut builder.config_mut().storage;
        s.sled_cache = self.sled_cache;
        s.inflight = Some(self.inflight);
        s.max_value_size = Some(MIB);
        s.pack_size = self.pack;
        s.migration_bytes_per_second = 1 << 40;
        builder.open()
    }

    /// Runs it for so long, in this process.
    ///
    /// # Errors
    ///
    /// What kept the store from opening, or that a read or a put went wrong.
    pub fn run(&self, dir: &std::path::Path, time: Duration) -> Result<Taken, Box<dyn std::error::Error>> {
        if self.gives_back {
            thermocline::allocator::give_back();
        }
        let cache = self.open(dir)?;
        let callers = Arc::new(Callers::default());
        let threads: Vec<_> = (0..THREADS)
            .map(|n| {
                let (cache, callers) = (cache.clone(), callers.clone());
                std::thread::spawn(move || caller(&cache, n, &callers))
            })
            .collect();
        let end = Instant::now() + time;
        let (mut most, mut catalog) = (0, 0);
        while Instant::now() < end {
            let held = callers.held.load(Ordering::Relaxed);
            most = most.max(anonymous().saturating_sub(held));
            catalog = catalog.max(cache.stats().catalog_bytes);
            std::thread::sleep(Duration::from_millis(5));
        }
        callers.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| "a caller panicked")?;
        }
        if callers.wrong.load(Ordering::Relaxed) {
            return Err("a read or a put went wrong".into());
        }
        let limits = self.memory + self.write_buffer + self.sled_cache + self.inflight;
        let bound = (limits + catalog) * 12 / 10 + 32 * MIB;
        Ok(Taken { most, bound, catalog, put: callers.put.load(Ordering::Relaxed) })
    }
}
