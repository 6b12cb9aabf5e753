//! Configurations: what is accepted, refused, and said of it.

use super::settings::{Field, SETTINGS};
use super::*;
use proptest::prelude::*;

fn error(text: &str) -> ConfigError {
    Config::from_toml(text).unwrap_err()
}

#[test]
fn all_errors_are_told_the_first_of_the_text_first() {
    let e = error("[storage]\npersistence = \"often\"\n\n[storage_tiers.memory]\nmax_sise = 1\n");
    assert_eq!((e.at, e.others.len(), e.others[0].at), (Some((2, 15)), 1, Some((5, 1))));
    let text = e.to_string();
    assert!(
        text.starts_with("line 2, column 15: ") && text.contains("; line 5, column 1: unknown"),
        "{text}"
    );
    // Set by a program, it stands in no text.
    let mut config = Config::from_toml("[storage]\ninflight = \"1MiB\"\n").unwrap();
    config.storage.persistence = Persistence::Always;
    let e = config.validate().unwrap_err();
    assert_eq!((e.at, e.others.len(), e.others[0].at), (Some((2, 12)), 1, None));
    assert!(e.others[0].message.contains("persistence"), "{e}");
}

/// The message of what `validate` refuses after a change.
fn refused(change: impl FnOnce(&mut Config)) -> String {
    let mut config = Config::default();
    config.add_ssd("/mnt/ssd", GIB);
    change(&mut config);
    config.validate().unwrap_err().to_string()
}

/// The names of the documented file with values that are not the defaults.
const FULL: &str = r#"
[resource_management.memory]
max_usage_percent = 75
buffer_percent = 5
gc_threshold = 90
allocation_strategy = "static"
[resource_management.cpu]
max_usage_percent = 60
compression_threshold = 50
batch_size = 10
priority_nice = 19
[resource_management.io]
max_concurrent_ops = 8
buffer_size = "4KiB"
write_buffer_size = "32MiB"
read_ahead_size = "1MiB"
[resource_management.network]
max_bandwidth_percent = 10
tcp_keepalive = false
tcp_nodelay = false
multicast_enabled = false
[storage_tiers.memory]
max_size = "1.5GiB"
item_limit = 5
policy = "lru"
compression = false
priority = 1
[storage_tiers.ssd]
paths = ["/a", { path = "/b", size = "2GiB" }]
max_size = "8GB"
item_limit = 7
compression = false
priority = 2
[storage_tiers.hdd]
path = "/c"
max_size = 1000000000
compression = false
priority = 3
[storage_tiers.cold]
path = "/d"
limit = "1TiB"
compression = false
priority = 4
[storage]
persistence = "on_eviction"
write_stall_limit = 10
inflight = "512MiB"
max_value_size = "128MiB"
read_mode = "pread"
borrow_large_values = true
catalog = "/e"
socket = false
default_ttl = 60
migration_bytes_per_second = "10MiB"
erase_after = 3
reap_interval = 5
checkpoint_interval = 7
checkpoint_journal_size = "16MiB"
segment_size = "16MiB"
generation_size = "128MiB"
pack_size = "64MiB"
block_size = "32KiB"
sled_cache = "8MiB"
[compression.algorithms.zlib]
level = 9
min_size = 100
threshold = 0.5
[compression.algorithms.lz4]
level = 1
min_size = 64
threshold = 1
[compression.content_types]
text = "lz4"
json = "none"
binary = "zlib"
media = "none"
[optimization_strategies.aggressive]
memory_threshold = 0.95
compression_level = 8
prefetch_multiplier = 4
eviction_age = 100
[optimization_strategies.balanced]
memory_threshold = 0.85
compression_level = 5
prefetch_multiplier = 0.5
eviction_age = 200
[optimization_strategies.conservative]
memory_threshold = 0.5
compression_level = 1
prefetch_multiplier = 0
eviction_age = 86400
[optimizer]
enabled = false
interval = 5
memory_floor = "16MiB"
[metrics.redis]
url = "rediss://me:s3cret@redis.example:6380/2"
interval = 30
prefix = "caches"
history = 10
instance = "one"
[log]
file = "/var/log/thermocline.log"
level = "debug"
rotation = "size"
max_size = "1MiB"
keep = 3
"#;

/// The file, but for what this build cannot do.
fn full() -> String {
    let url = |line: &&str| cfg!(feature = "redis") || !line.starts_with("url = ");
    FULL.lines().filter(url).map(|line| format!("{line}\n")).collect()
}

#[test]
#[cfg(not(feature = "redis"))]
fn a_redis_server_is_refused_where_there_is_no_client() {
    let e = error("[metrics.redis]\nurl = \"redis://:s3cret@h\"\n");
    assert_eq!(e.at, Some((2, 7)));
    assert!(e.message.contains("metrics.redis.url") && e.message.contains("the feature `redis`"), "{e}");
    let opened = crate::Cache::builder().redis_metrics("redis://:s3cret@h").open();
    let e = opened.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(e.contains("the feature `redis`") && !e.contains("s3cret"), "{e}");
}

#[test]
fn the_documented_defaults() {
    let c = Config::default();
    c.validate().unwrap();
    assert_eq!((c.memory.max_size, c.memory.item_limit), (512 << 20, 100_000));
    assert_eq!((c.ssd.max_size, c.ssd.item_limit, c.ssd.compression), (5 << 30, 1_000_000, true));
    assert_eq!((c.hdd.max_size, c.hdd.compression), (50 << 30, true));
    assert_eq!((c.cold.limit, c.cold.compression), (None, true));
    assert_eq!((c.inflight(), c.max_value_size()), (256 << 20, 64 << 20));
    assert_eq!((c.storage.write_stall_limit, c.storage.erase_after), (30, 30));
    let (m, cpu, io, net) = (c.resources.memory, c.resources.cpu, c.resources.io, c.resources.network);
    assert_eq!((m.max_usage_percent, m.buffer_percent, m.gc_threshold), (80, 10, 85));
    assert_eq!(m.allocation_strategy, AllocationStrategy::Dynamic);
    assert_eq!((cpu.max_usage_percent, cpu.compression_threshold), (70, 60));
    assert_eq!((cpu.batch_size, cpu.priority_nice), (1000, 10));
    assert_eq!((io.max_concurrent_ops, io.buffer_size), (100, 8 << 10));
    assert_eq!((io.write_buffer_size, io.read_ahead_size), (64 << 20, 4 << 20));
    assert_eq!((net.max_bandwidth_percent, net.tcp_keepalive, net.tcp_nodelay), (50, true, true));
    let row =
        |s: StrategyConfig| (s.memory_threshold, s.compression_level, s.prefetch_multiplier, s.eviction_age);
    assert_eq!(row(c.strategies.aggressive), (0.9, 9, 2.0, 300));
    assert_eq!(row(c.strategies.balanced), (0.8, 6, 1.5, 600));
    assert_eq!(row(c.strategies.conservative), (0.7, 3, 1.0, 1200));
    assert_eq!((c.optimizer.enabled, c.optimizer.interval, c.memory_floor()), (true, 60, 64 << 20));
    assert_eq!(crate::optimizer::Policy::of(&c), crate::optimizer::Policy::default());
    assert_eq!(c.storage.persistence, Persistence::EverySecond);
    assert_eq!(c.compression.zlib, AlgorithmConfig { level: 6, min_size: 1024, threshold: 0.8 });
    assert_eq!(c.compression.lz4, AlgorithmConfig { level: 1, min_size: 512, threshold: 0.6 });
    assert!(!c.has_disk());
}

#[test]
fn every_setting_is_read_and_changes_something() {
    let full = Config::from_toml(&full()).unwrap();
    full.validate().unwrap();
    let default = Config::default();
    for setting in SETTINGS {
        let in_file = setting.name.rsplit('.').next().unwrap();
        assert!(FULL.contains(in_file), "{} is not in the file of this test", setting.name);
        let possible = cfg!(feature = "redis") || setting.name != "metrics.redis.url";
        if possible
            && !matches!(setting.field, Field::Fixed(..))
            && setting.name != "compression.algorithms.lz4.level"
        {
            assert_ne!(setting.show(&full), setting.show(&default), "{}", setting.name);
        }
    }
    assert_eq!(full.memory.max_size, 3 << 29);
    assert_eq!(full.ssd_limits(), [6_000_000_000 - 147_483_648, 2 << 30]);
    assert_eq!(full.compression.lz4.threshold, 1.0);
    assert_eq!(full.compression.json, Algorithm::None);
    assert_eq!(full.storage.persistence, Persistence::OnEviction);
    assert_eq!(full.storage.read_mode, ReadMode::Pread);
    assert_eq!(full.memory.policy, MemoryPolicy::Lru);
}

#[test]
fn what_is_written_reads_the_same() {
    for config in [Config::default(), Config::from_toml(&full()).unwrap()] {
        let text = config.to_toml().unwrap();
        assert_eq!(Config::from_toml(&text).unwrap(), config, "{text}");
        for setting in SETTINGS.iter().filter(|s| !matches!(s.field, Field::Dir(_))) {
            let name = setting.name.rsplit('.').next().unwrap();
            assert!(text.contains(&format!("{name} = ")) || text.contains(&format!("# {name}:")), "{name}");
        }
    }
    let mut odd = Config::default();
    odd.add_ssd("/a \"quoted\"\\ path\nwith lines #and = signs '", 1001 << 20);
    odd.add_ssd("/ünï", u64::MAX >> 5);
    odd.ssd.max_size = (1 << 60) - 1;
    let text = odd.to_toml().unwrap();
    assert_eq!(Config::from_toml(&text).unwrap(), odd, "{text}");
    use std::os::unix::ffi::OsStringExt;
    odd.storage.catalog = Some(std::ffi::OsString::from_vec(vec![0xff]).into());
    assert!(odd.to_toml().unwrap_err().message.contains("storage.catalog"));
}

#[test]
#[cfg(feature = "redis")]
fn the_password_of_a_url_is_written_to_the_file_and_shown_nowhere_else() {
    let config = Config::from_toml(&full()).unwrap();
    assert!(config.to_toml().unwrap().contains("s3cret"));
    assert!(!format!("{config:?} {config:#?}").contains("s3cret"));
    assert!(!format!("{:?}", crate::Builder::from_config(config)).contains("s3cret"));
    for url in ["redis://:s3cret@h/x", "http://:s3cret@h", "s3cret", "redis://:s3cret@h:port"] {
        let text = format!("# one\n[metrics.redis]\nprefix = \"p\"\nurl = {url:?}\n");
        let e = error(&text);
        assert_eq!(e.at, Some((4, 7)), "{e}");
        assert!(e.message.contains("metrics.redis.url") && e.message.contains("redis://HOST"), "{e}");
        let said = refused(|c| c.metrics.redis.url = Some(url.into()));
        assert!(!format!("{e} {e:?} {said}").contains("s3cret"), "{e}");
    }
    for text in
        ["url = [\"s3cret\"]", "url = { s3cret = 1 }", "url = \"redis://:s3cret@h", "url = 's3cret' x"]
    {
        let e = error(&format!("[metrics.redis]\n{text}\n"));
        assert!(!format!("{e} {e:?}").contains("s3cret"), "{e}");
    }
}

#[test]
fn errors_name_file_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("thermocline.toml");
    std::fs::write(
        &path,
        "[resource_management.io]\n# ünï\nbuffer_size = 512\n  write_bufer_size = \"1MiB\"\n",
    )
    .unwrap();
    let e = Config::from_file(&path).unwrap_err();
    assert_eq!(e.at, Some((4, 3)));
    let text = e.to_string();
    assert!(text.starts_with(&format!("{}:4:3: ", path.display())), "{text}");
    assert!(
        text.contains("`write_bufer_size`") && text.contains("did you mean `write_buffer_size`?"),
        "{text}"
    );
    assert_eq!(error("x = 'ü' é").at, Some((1, 9)));
    assert!(error("[storage]\nreap_interval = \n").at.is_some());
    let missing = Config::from_file(dir.path().join("none")).unwrap_err();
    assert!(missing.to_string().contains("none: cannot read"), "{missing}");
    std::fs::write(&path, vec![b' '; 2 << 20]).unwrap();
    assert!(Config::from_file(&path).unwrap_err().to_string().contains("no configuration"));
    std::fs::write(&path, [0xff]).unwrap();
    assert!(Config::from_file(&path).unwrap_err().to_string().contains("save it as UTF-8"));
}

#[test]
fn a_file_that_does_not_say_its_length_is_read_no_further_than_a_configuration_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
    std::thread::scope(|s| {
        // It ends when nobody reads any more.
        s.spawn(|| std::fs::write(&path, vec![b' '; 2 << 20]).is_err());
        let e = Config::from_file(&path).unwrap_err();
        assert!(e.to_string().contains("no configuration"), "{e}");
    });
}

#[test]
fn unknown_names_are_told_with_what_is_near() {
    for (text, parts) in [
        ("[storage_tier.ssd]\npath = '/a'", ["unknown table `storage_tier` at the top", "`storage_tiers`"]),
        ("[storage_tiers.sdd]\npath = '/a'", ["unknown table `sdd` in [storage_tiers]", "`ssd`"]),
        (
            "[storage_tiers.memory]\nitem_limt = 1",
            ["unknown setting `item_limt`", "did you mean `item_limit`?"],
        ),
        ("[storage]\nbatch_size = 1", ["there is `resource_management.cpu.batch_size`", "`pack_size`"]),
        ("[storage_tiers.hdd]\nitem_limit = 1", ["unknown setting `item_limit`", "known here: `path`"]),
        ("[storage_tiers.cold]\nmax_size = 1", ["unknown setting `max_size`", "`limit`"]),
        ("[compression.algorithms.zlib]\nlvel = 1", ["unknown setting `lvel`", "`level`"]),
        ("[storage_tiers.ssd]\npaths = [{ path = '/a', sise = 1 }]", ["unknown setting `sise`", "`size`"]),
        ("[resource_management.gpu]\nbatch_size = 1", ["unknown table `gpu` in", "`cpu`"]),
        ("[optimization_strategies.bold]\neviction_age = 1", ["unknown table `bold`", "`balanced`"]),
        ("[metrics.statsd]\nurl = ''", ["unknown table `statsd` in [metrics]", "`redis`"]),
        ("[log]\nflie = ''", ["unknown setting `flie`", "`file`"]),
    ] {
        let e = error(text).to_string();
        assert!(parts.iter().all(|p| e.contains(p)), "{text}: {e}");
    }
    assert!(!error(&format!("{} = 1", "x".repeat(500))).message.contains("did you mean"));
}

#[test]
fn impossible_values_are_told_with_what_is_right() {
    for (text, parts) in [
        (
            "[resource_management.io]\nwrite_buffer_size = '64M'",
            ["resource_management.io.write_buffer_size", "512MiB"],
        ),
        ("[resource_management.io]\nwrite_buffer_size = true", ["takes a size", "true or false"]),
        (
            "[resource_management.io]\nwrite_buffer_size = -1",
            ["resource_management.io.write_buffer_size", "-1"],
        ),
        (
            "[resource_management.io]\nwrite_buffer_size = '1KiB'",
            ["resource_management.io.write_buffer_size = 1KiB", "from 1MiB to 16GiB"],
        ),
        (
            "[resource_management.cpu]\nbatch_size = 0",
            ["resource_management.cpu.batch_size = 0 is out of", "from 1 to 100000 items"],
        ),
        (
            "[resource_management.cpu]\nbatch_size = -5",
            ["resource_management.cpu.batch_size = -5", "from 1 to 100000 items"],
        ),
        ("[resource_management.cpu]\nbatch_size = '5'", ["takes a whole number (items)", "a string"]),
        ("[storage]\ndefault_ttl = 0", ["storage.default_ttl", "from 1 to 315360000 seconds"]),
        ("[storage]\nmax_value_size = '2GiB'", ["storage.max_value_size = 2GiB", "to 1GiB"]),
        ("[storage]\nsegment_size = '1GiB'", ["storage.segment_size = 1GiB", "to 512MiB"]),
        ("[storage]\nblock_size = '1MiB'", ["storage.block_size = 1MiB", "to 64KiB"]),
        (
            "[storage]\npersistence = 'sometimes'",
            ["\"sometimes\"", "\"always\", \"every_second\", \"on_eviction\""],
        ),
        ("[storage]\nborrow_large_values = 1", ["takes true or false", "a whole number"]),
        ("[storage]\ncatalog = ''", ["storage.catalog", "empty"]),
        ("[storage]\ncatalog = 5", ["storage.catalog takes a path", "a whole number"]),
        ("storage = 5", ["`storage` is a table", "[storage]"]),
        ("[storage_tiers.memory]\ncompression = true", ["must be false", "as they are"]),
        ("[storage_tiers.memory]\npriority = 2", ["must be 1", "hottest first"]),
        ("[storage_tiers.cold]\npriority = '4'", ["must be 4", "hottest first"]),
        ("[storage_tiers.ssd]\npath = '/a'\npaths = ['/b']", ["both `path` and `paths`", "write one"]),
        ("[storage_tiers.ssd]\npath = ['/a']", ["for several write `paths`", "a list"]),
        ("[storage_tiers.ssd]\npaths = '/a'", ["for one write `path`", "a string"]),
        ("[storage_tiers.ssd]\npaths = ['']", ["storage_tiers.ssd.paths", "empty"]),
        ("[storage_tiers.ssd]\npath = ''", ["storage_tiers.ssd.path", "empty"]),
        ("[storage_tiers.ssd]\npaths = [{ size = 1 }]", ["storage_tiers.ssd.paths", "needs a `path`"]),
        ("[compression.algorithms.zlib]\nlevel = 10", ["zlib.level = 10", "to 9"]),
        ("[compression.algorithms.lz4]\nlevel = 3", ["lz4.level = 3", "lz4 has no levels"]),
        ("[compression.algorithms.zlib]\nthreshold = 1.2", ["threshold = 1.2", "at most 1"]),
        ("[compression.algorithms.zlib]\nthreshold = 0", ["threshold = 0", "more than 0"]),
        ("[compression.algorithms.zlib]\nthreshold = nan", ["threshold = NaN", "more than 0"]),
        (
            "[resource_management.memory]\nmax_usage_percent = 101",
            ["max_usage_percent = 101", "from 1 to 100 percent"],
        ),
        (
            "[resource_management.memory]\nallocation_strategy = 'auto'",
            ["\"auto\"", "\"dynamic\", \"static\""],
        ),
        (
            "[resource_management.network]\nmulticast_enabled = true",
            ["must be false", "nothing here is multicast"],
        ),
        ("[resource_management.cpu]\npriority_nice = 20", ["priority_nice = 20", "from 0 to 19"]),
        ("[optimization_strategies.balanced]\nmemory_threshold = 80", ["memory_threshold = 80", "at most 1"]),
        ("[optimization_strategies.balanced]\nprefetch_multiplier = -1.5", ["= -1.5 is out", "from 0 to 16"]),
        ("[optimization_strategies.balanced]\nprefetch_multiplier = nan", ["= NaN is out", "from 0 to 16"]),
        ("[optimization_strategies.balanced]\nprefetch_multiplier = 'two'", ["takes a number", "a string"]),
        ("[optimizer]\nenabled = 'on'", ["takes true or false", "a string"]),
        ("optimizer = 'of'", ["optimizer = \"of\"", "\"off\", \"on\""]),
        ("optimizer = 5", ["optimizer takes one of \"off\", \"on\"", "a whole number"]),
        ("optimizer = 'off'\n[optimizer]\ninterval = 5", ["duplicate key", ""]),
        ("[optimizer]\ninterval = 0", ["optimizer.interval = 0", "from 1 to 86400 seconds"]),
        ("[compression.content_types]\ntext = 'zstd'", ["\"zstd\"", "\"none\", \"zlib\", \"lz4\""]),
    ] {
        let e = error(text);
        assert!(parts.iter().all(|p| e.to_string().contains(p)), "{text}: {e}");
        assert!(e.at.is_some(), "{text}");
    }
}

#[test]
fn settings_are_checked_against_each_other() {
    for (message, parts) in [
        (refused(|c| c.memory.max_size = 5), ["storage_tiers.memory.max_size = 5", "1MiB"]),
        (refused(|c| c.compression.lz4.level = 2), ["lz4.level = 2", "no levels"]),
        (refused(|c| c.compression.zlib.threshold = f64::NAN), ["zlib.threshold", "more than 0"]),
        (refused(|c| c.storage.segment_size = Some(512 * MIB)), ["fewer than 4 segments", "at least 2GiB"]),
        (refused(|c| c.add_hdd("/h", 7 * MIB)), ["fewer than 2 generations", "at least 8MiB"]),
        (
            refused(|c| {
                c.add_cold("/c");
                c.cold.limit = Some(7 * MIB);
            }),
            ["fewer than 2 packs", "storage.pack_size"],
        ),
        (
            refused(|c| c.storage.max_value_size = Some(600 * MIB)),
            ["lower it to at most 512MiB", "ssd.max_size"],
        ),
        (
            refused(|c| {
                c.storage.max_value_size = Some(20 * MIB);
                c.storage.inflight = Some(10 * MIB);
            }),
            ["storage.inflight = 10MiB", "auto"],
        ),
        (refused(|c| c.resources.memory.buffer_percent = 80), ["buffer_percent = 80", "lower it below"]),
        (refused(|c| c.resources.io.buffer_size = 8 * MIB), ["buffer_size = 8MiB", "1MiB"]),
        (
            refused(|c| (c.resources.io.buffer_size, c.resources.io.read_ahead_size) = (MIB, 4 * KIB)),
            ["read_ahead_size = 4KiB", "at least that"],
        ),
        (refused(|c| c.optimizer.memory_floor = Some(GIB)), ["memory_floor = 1GiB", "max_size = 512MiB"]),
        (refused(|c| c.add_hdd("/mnt/ssd", GIB)), ["storage_tiers.hdd.paths", "given twice"]),
        (refused(|c| c.add_hdd("/mnt/ssd/../ssd/.", GIB)), ["/mnt/ssd/../ssd", "given twice"]),
        (refused(|c| c.add_hdd("/mnt/x/../ssd/below", GIB)), ["storage_tiers.hdd.paths", "lies inside"]),
        (refused(|c| c.compression.zlib.level = 12), ["zlib.level = 12 is", "limits: from 1 to 9"]),
        (refused(|c| c.add_hdd("/mnt/ssd/hdd", GIB)), ["storage_tiers.hdd.paths", "inside the other"]),
        (refused(|c| c.add_cold("/mnt")), ["storage_tiers.cold.paths", "inside the other"]),
        (refused(|c| c.storage.catalog = Some("/mnt".into())), ["storage.catalog", "one of its own"]),
        (refused(|c| c.add_hdd("", GIB)), ["storage_tiers.hdd.path", "empty"]),
        (refused(|c| c.ssd.max_size = 512 * MIB), ["come to 1GiB", "raise it"]),
        (
            refused(|c| {
                c.ssd.dirs.push(DirConfig { path: "/more".into(), size: None });
            }),
            ["come to 1GiB", "left for the others"],
        ),
        (
            refused(|c| {
                c.ssd.dirs.clear();
                c.storage.persistence = Persistence::Always;
            }),
            ["storage.persistence = \"always\"", "memory alone"],
        ),
        (
            refused(|c| {
                c.ssd.dirs.clear();
                c.storage.catalog = Some("/x".into());
            }),
            ["storage.catalog", "memory alone"],
        ),
    ] {
        assert!(parts.iter().all(|p| message.contains(p)), "{message}");
    }
}

#[test]
fn a_later_error_names_the_line_only_while_the_value_stands() {
    let mut config = Config::from_toml("[storage]\n\npersistence = 'always'").unwrap();
    assert_eq!(config.validate().unwrap_err().at, Some((3, 15)));
    config.storage.persistence = Persistence::EverySecond;
    config.validate().unwrap();
    let mut config =
        Config::from_toml("[storage]\nmax_value_size = '1GiB'\n[storage_tiers.ssd]\npath = '/a'").unwrap();
    config.ssd.max_size = GIB;
    assert_eq!(config.validate().unwrap_err().at, Some((2, 18)));
    config.storage.max_value_size = Some(GIB - 1);
    assert_eq!(config.validate().unwrap_err().at, None);
    let twice = Config::from_toml("[storage_tiers]\nssd.path = '/a'\nhdd.path = '/a'").unwrap();
    assert_eq!(twice.validate().unwrap_err().at, Some((3, 12)));
}

#[test]
fn small_tiers_need_no_further_settings() {
    for mib in [4, 5, 16, 63, 100, 1000] {
        let mut c = Config::default();
        c.add_ssd("/s", mib * MIB);
        c.validate().unwrap();
        assert!(c.max_value_size() <= mib * MIB / 2 && c.segment_size() * 4 <= mib * MIB);
    }
    let mut c = Config::default();
    c.memory.max_size = MIB;
    c.validate().unwrap();
    c.add_hdd("/h", 8 * MIB);
    c.add_cold("/c");
    c.validate().unwrap();
    assert_eq!((c.generation_size(), c.pack_size(), c.max_value_size()), (4 * MIB, 256 * MIB, 4 * MIB));
    c.add_ssd("/s", GIB);
    assert_eq!(c.max_value_size(), 4 * MIB, "the tightest tier decides");
    let mut large = Config::default();
    large.add_ssd("/s", 3 << 40);
    large.storage.max_value_size = Some(GIB);
    large.validate().unwrap();
    assert_eq!((large.segment_size(), large.inflight()), (512 * MIB, 2 * GIB));
}

#[test]
fn directories_share_what_is_left() {
    let mut c =
        Config::from_toml("[storage_tiers.hdd]\npaths = ['/a', { path = '/b', size = '20GiB' }, '/c']")
            .unwrap();
    assert_eq!(c.hdd_limits(), [15 * GIB, 20 * GIB, 15 * GIB]);
    c.hdd.dirs.clear();
    c.add_hdd("/x", GIB);
    c.add_hdd("/y", 2 * GIB);
    assert_eq!((c.hdd.max_size, c.hdd_limits()), (3 * GIB, vec![GIB, 2 * GIB]));
    let sized = Config::from_toml("[storage_tiers.ssd]\npaths = [{ path = '/b', size = '20GiB' }]").unwrap();
    assert_eq!(sized.ssd.max_size, 20 * GIB);
    sized.validate().unwrap();
    let mut c = Config::default();
    c.set_root("/r");
    assert_eq!(c.cold.dirs[0].path, PathBuf::from("/r/cold"));
    assert_eq!(c.cold_limits(), [None]);
    c.validate().unwrap();
}

proptest! {
    #[test]
    fn no_text_panics(text in "(\\[?[a-z_.]{0,12}\\]?( = )?['\"{\\[0-9a-zA-Zé]{0,8}['\"}\\]]?\n?){0,6}") {
        let _ = Config::from_toml(&text).map_err(|e| e.to_string());
    }

    #[test]
    fn sums_do_not_overflow(sizes in proptest::collection::vec(any::<Option<u64>>(), 0..5), whole: u64) {
        let mut c = Config::default();
        c.ssd.max_size = whole;
        c.ssd.dirs = sizes.iter().enumerate().map(|(i, size)| DirConfig { path: format!("/{i}").into(), size: *size }).collect();
        let _ = c.validate();
        let _ = (c.ssd_limits(), c.segment_size(), c.max_value_size(), c.inflight());
    }
}

/// The documentation of the fields of a name, without spaces and the commas of thousands.
fn texts_of(field: &str) -> Vec<String> {
    let text = [include_str!("mod.rs"), include_str!("resources.rs"), include_str!("metrics.rs")].join("\n");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let at = (0..lines.len()).filter(|i| lines[*i].starts_with(&format!("pub {field}: ")));
    let text = |i: usize| -> String {
        let docs = lines[..i].iter().rev().take_while(|l| l.starts_with("///"));
        docs.collect::<Vec<_>>().into_iter().rev().map(|l| &l[3..]).collect()
    };
    at.map(|i| text(i).replace(' ', "").replace(",", "")).collect()
}

#[test]
fn the_text_of_a_field_says_its_limits_and_its_default() {
    let defaults = Config::default();
    let mut seen = 0;
    for setting in SETTINGS.iter().filter(|s| !s.name.starts_with("compression.")) {
        let (limits, show): (_, fn(u64) -> String) = match &setting.field {
            Field::Size(_, limits) | Field::AutoSize(_, limits) | Field::OptionalSize(_, limits) => {
                (limits, show_size)
            }
            Field::Count(_, limits, _) | Field::OptionalCount(_, limits, _) => (limits, |n| n.to_string()),
            _ => continue,
        };
        // What no disk has is no limit that anybody needs to know.
        let limits = match *limits.end() == 1 << 60 {
            true => format!("atleast{}", show(*limits.start())),
            false => format!("{}to{}", show(*limits.start()), show(*limits.end())),
        };
        let texts = texts_of(setting.name.rsplit('.').next().unwrap());
        assert!(!texts.is_empty(), "{}", setting.name);
        // Some names are those of several.
        assert!(texts.iter().any(|t| t.contains(&limits)), "{}: {limits}: {texts:?}", setting.name);
        // Each strategy has its own defaults.
        if setting.name.starts_with("optimization_strategies.") {
            continue;
        }
        if let Some(default) = setting.show(&defaults).map(|d| d.replace('"', "")).filter(|d| d != "auto") {
            let default = format!("bydefault{default}");
            assert!(texts.iter().any(|t| t.contains(&default)), "{}: {default}: {texts:?}", setting.name);
        }
        seen += 1;
    }
    assert!(seen > 20, "only {seen} settings were found: does the search work?");
}

#[test]
fn the_optimizer_is_switched_in_a_word() {
    let read = |text: &str| Config::from_toml(text).unwrap();
    assert!(!read("optimizer = \"off\"").optimizer.enabled);
    assert!(read("optimizer = \"on\"").optimizer.enabled);
    let (word, table) = (read("optimizer = \"off\""), read("[optimizer]\nenabled = false"));
    assert_eq!(word, table);
    assert_eq!(word.to_toml().unwrap(), table.to_toml().unwrap());
    assert_eq!(read(&word.to_toml().unwrap()), word);
}
