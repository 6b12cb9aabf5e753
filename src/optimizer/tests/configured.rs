//! Each setting that the optimizer goes by: another value of it in the configuration is another decision.

use super::*;
use crate::config::{AllocationStrategy, Config, StrategyConfig};

/// What is set, as a number: MiB of sizes and rates, 10 + level of zlib, 1 for lz4, 0 for no compression.
fn number(change: &Change) -> f64 {
    let mib = |n: &u64| *n as f64 / MIB as f64;
    let method = |m: &Method| match m.algorithm {
        Algorithm::Zlib => 10.0 + m.level as f64,
        Algorithm::Lz4 => 1.0,
        _ => 0.0,
    };
    match change {
        Change::FreeMemory { bytes, .. } => mib(bytes),
        Change::EvictIdle { age } => age.as_secs_f64(),
        Change::ResizeMemoryTier { to, .. }
        | Change::SetReclaimRate { to, .. }
        | Change::SetSledCache { to, .. }
        | Change::SetPackSize { to, .. }
        | Change::SetReadAhead { to, .. }
        | Change::SetReadSize { to, .. }
        | Change::SetWriteBuffer { to, .. }
        | Change::SetBackgroundRate { to, .. } => mib(to),
        Change::SetConcurrency { to, .. } => *to as f64,
        Change::SetCompression { to, .. } | Change::RetryCompression { to, .. } => method(to),
        Change::LeaveUncompressed { .. } => 0.0,
        Change::SetPrefetch { to, .. } => *to,
        Change::TrimAllocator => 1.0,
        other => panic!("{other:?}"),
    }
}

/// What is done with a knob under a configuration.
fn decided(config: &Config, strategy: Strategy, sample: &Sample, knob: &Knob) -> Option<f64> {
    let state = State { strategy, ..State::default() };
    turned(&decide(sample, &state, &Policy::of(config)), knob.clone()).map(|c| number(&c))
}

/// One setting: what is decided by its default and by another value.
fn row(
    name: &str,
    change: impl FnOnce(&mut Config),
    sample: &Sample,
    knob: Knob,
    (usual, other): (Option<f64>, Option<f64>),
) {
    let mut config = Config::default();
    let decided = |config: &Config| decided(config, Strategy::Balanced, sample, &knob);
    assert_eq!(decided(&config), usual, "{name}, by default");
    change(&mut config);
    assert_eq!(decided(&config), other, "{name}, changed");
}

/// A sample of compression: a type stored at so many of 1,000.
fn stored(content: usize, per_mille: u64, cpu: f64) -> Sample {
    let mut s = Sample { cpu_percent: Some(cpu), ..quiet() };
    s.types[content] =
        TypeSample { original_bytes: 1000 * MIB, stored_bytes: per_mille * MIB, seconds: None };
    s
}

/// A disk of a tier on which an access takes so long, and a byte next to nothing.
fn disk(tier: Tier, access: f64) -> DirectorySample {
    let mut d = DirectorySample::new(tier, "/d");
    for (class, size) in d.alone.iter_mut().zip([16u64 << 10, 512 << 10]) {
        let nanos = (100.0 * (access + size as f64 / 1e9) * 1e9) as u64;
        *class = DiskReads { count: 100, bytes: 100 * size, nanos };
    }
    d
}

#[test]
fn memory_goes_by_its_settings() {
    use Knob::*;
    let held = |percent| {
        let mut s = with_memory(percent);
        s.tiers[0] = Some(TierSample { bytes: 6_000 * MIB, ..TierSample::default() });
        s
    };
    let freed = |mib: f64| Some(mib);
    row(
        "max_usage_percent",
        |c| c.resources.memory.max_usage_percent = 50,
        &held(60.0),
        MemoryContent,
        (None, freed(2000.0)),
    );
    row(
        "buffer_percent",
        |c| c.resources.memory.buffer_percent = 20,
        &held(85.0),
        MemoryContent,
        (freed(1500.0), freed(2500.0)),
    );
    row(
        "gc_threshold",
        |c| c.resources.memory.gc_threshold = 50,
        &with_memory(60.0),
        Allocator,
        (None, Some(1.0)),
    );
    let over = with_memory(85.0);
    row(
        "allocation_strategy",
        |c| c.resources.memory.allocation_strategy = AllocationStrategy::Static,
        &over,
        MemorySize,
        (Some(64.0), None),
    );
    row(
        "memory_floor",
        |c| c.optimizer.memory_floor = Some(128 * MIB),
        &over,
        MemorySize,
        (Some(64.0), Some(128.0)),
    );
    let mut full = held(30.0);
    (full.requests.gets, full.tiers[1]) = (1000, Some(TierSample::default()));
    row("memory.max_size", |c| c.memory.max_size = GIB, &full, MemorySize, (None, Some(640.0)));
}

#[test]
fn disks_and_background_work_go_by_their_settings() {
    use Knob::*;
    let io = |c: &mut Config, set: fn(&mut crate::config::IoUseConfig)| set(&mut c.resources.io);
    let mut s = quiet();
    let mut many = DirectorySample::new(Tier::Ssd, "/d");
    (many.concurrency, many.disk) = (100, DiskReads { count: 1000, bytes: 1000, nanos: 1_000_000_000 });
    s.directories = vec![many];
    row(
        "max_concurrent_ops",
        |c| io(c, |io| io.max_concurrent_ops = 50),
        &s,
        Concurrency("/d".into()),
        (None, Some(50.0)),
    );
    s.directories = vec![disk(Tier::Ssd, 0.000_02)];
    s.knobs.read_size = 64 << 10;
    let kib = |n: f64| Some(n / 1024.0);
    row("buffer_size", |c| io(c, |io| io.buffer_size = 32 << 10), &s, ReadSize, (kib(8.0), kib(32.0)));
    s.directories = vec![disk(Tier::Hdd, 0.5)];
    row(
        "read_ahead_size",
        |c| io(c, |io| io.read_ahead_size = MIB),
        &s,
        ReadAhead(Tier::Hdd),
        (Some(4.0), Some(1.0)),
    );
    row(
        "write_buffer_size",
        |c| io(c, |io| io.write_buffer_size = 32 * MIB),
        &quiet(),
        WriteBuffer,
        (None, Some(32.0)),
    );
    let mut s = quiet();
    (s.moved_bytes, s.knobs.background_rate) = (60 * 16 * MIB, 32 * MIB);
    let slower = 32.0 * (40.0f64 / 50.0).powi(2);
    let slower = (slower * MIB as f64) as u64 as f64 / MIB as f64;
    row(
        "cpu.max_usage_percent",
        |c| c.resources.cpu.max_usage_percent = 40,
        &s,
        BackgroundRate,
        (None, Some(slower)),
    );
    row(
        "migration_bytes_per_second",
        |c| c.storage.migration_bytes_per_second = 16 * MIB,
        &s,
        BackgroundRate,
        (None, Some(16.0)),
    );
    let mut s = with_memory(30.0);
    (s.tiers[2], s.index_lookups, s.index_misses) = (Some(TierSample::default()), 1000, 900);
    s.knobs.sled_cache = 8 * MIB;
    row("sled_cache", |c| c.storage.sled_cache = 12 * MIB, &s, SledCache, (Some(16.0), Some(12.0)));
    let mut s = quiet();
    let mut d = DirectorySample::new(Tier::Cold, "/c");
    (d.writes, d.write_bytes, d.write_mean) = (64, 64 * MIB, Some(0.01));
    (s.directories, s.knobs.pack_size) = (vec![d], 16 * MIB);
    row("pack_size", |c| c.storage.pack_size = Some(32 * MIB), &s, PackSize, (Some(256.0), Some(32.0)));
}

#[test]
fn compression_goes_by_its_settings() {
    use Knob::Compression;
    row(
        "compression_threshold",
        |c| c.resources.cpu.compression_threshold = 40,
        &stored(0, 500, 50.0),
        Compression(0),
        (None, Some(1.0)),
    );
    let well = |content| stored(content, 500, 30.0);
    row("text", |c| c.compression.text = Algorithm::Lz4, &well(0), Compression(0), (None, Some(1.0)));
    row("json", |c| c.compression.json = Algorithm::None, &well(1), Compression(1), (None, Some(0.0)));
    row("binary", |c| c.compression.binary = Algorithm::Zlib, &well(2), Compression(2), (None, Some(16.0)));
    row("media", |c| c.compression.media = Algorithm::None, &well(3), Compression(3), (None, Some(0.0)));
    row("zlib.level", |c| c.compression.zlib.level = 2, &well(0), Compression(0), (None, Some(12.0)));
    let zlib = |c: &mut Config| c.compression.zlib.threshold = 0.5;
    row("zlib.threshold", zlib, &stored(0, 800, 55.0), Compression(0), (None, Some(0.0)));
    let lz4 = |c: &mut Config| c.compression.lz4.threshold = 0.9;
    row("lz4.threshold", lz4, &stored(2, 810, 55.0), Compression(2), (Some(0.0), None));
}

#[test]
fn each_strategy_goes_by_its_own_row() {
    use Strategy::*;
    /// The row of a strategy, to be changed.
    fn of(config: &mut Config, strategy: Strategy) -> &mut StrategyConfig {
        match strategy {
            Conservative => &mut config.strategies.conservative,
            Balanced => &mut config.strategies.balanced,
            Aggressive => &mut config.strategies.aggressive,
        }
    }
    let mut over = with_memory(60.0);
    over.tiers[0] = Some(TierSample { bytes: 6_000 * MIB, ..TierSample::default() });
    let text = stored(0, 500, 30.0);
    let mut prefetched = with_memory(30.0);
    prefetched.knobs.prefetch = 1.25;
    let idle = |percent| Sample { oldest_idle: Some(Duration::from_secs(200)), ..with_memory(percent) };
    for (strategy, tight, level, multiplier) in [
        (Conservative, 65.0, Some(13.0), 1.0),
        (Balanced, 75.0, None, 1.5),
        (Aggressive, 75.0, Some(19.0), 2.0),
    ] {
        for other in [Conservative, Balanced, Aggressive] {
            let mut config = Config::default();
            let row = of(&mut config, other);
            (row.memory_threshold, row.compression_level) = (0.5, 1);
            (row.prefetch_multiplier, row.eviction_age) = (0.5, 100);
            // The row of another strategy is no matter.
            let changed = other == strategy;
            let is = |sample: &Sample, knob: Knob| decided(&config, strategy, sample, &knob);
            assert_eq!(
                is(&over, Knob::MemoryContent),
                changed.then_some(2000.0),
                "{strategy}: memory_threshold"
            );
            let level = if changed { Some(11.0) } else { level };
            assert_eq!(is(&text, Knob::Compression(0)), level, "{strategy}: compression_level");
            let multiplier = if changed { 0.5 } else { multiplier };
            assert_eq!(is(&prefetched, Knob::Prefetch), Some(multiplier), "{strategy}: prefetch_multiplier");
        }
        let mut config = Config::default();
        assert_eq!(decided(&config, strategy, &idle(tight), &Knob::MemoryContent), None);
        of(&mut config, strategy).eviction_age = 100;
        let evicted = decided(&config, strategy, &idle(tight), &Knob::MemoryContent);
        assert_eq!(evicted, Some(100.0), "{strategy}: eviction_age");
    }
}
