//! What a replay runs on: memory and tiers by the options, over those of a configuration file.
//!
//! Without a file, sizes of containers and buffers follow from what a tier holds, so that small tiers work as large
//! ones. With one, every setting of it holds unless an option says otherwise; only its directories are replaced by
//! fresh ones, as many as it names.

use super::trace::Trace;
use super::{ReplayArgs, USAGE, VALUE_SIZE};
use crate::device::Device;
use crate::failure::Failure;
use crate::options::{Typed, typed_sizes};
use crate::show;
use std::path::Path;
use thermocline::Config;
use thermocline::config::DirConfig;

const MIB: u64 = 1 << 20;
/// No limit of items that anybody would notice.
const MANY: u64 = 1 << 40;
/// What an item takes in memory beyond key and value, at most, for making memory large enough for a number of items.
const ROOM: u64 = 256;

/// The configuration as far as it does not hang on the trace. Its directories have names alone: [`place`] says where
/// they are.
pub fn config(args: &ReplayArgs) -> Result<Config, Failure> {
    let says_memory = args.config.is_some() || args.memory_items.is_some() || args.memory.is_some();
    let mut lacking = Vec::new();
    if args.traces.is_empty() {
        lacking.push("which trace? Name one or more");
    }
    if !says_memory {
        lacking.push("how much memory? Give --memory-items N or --memory SIZE (or --config FILE)");
    }
    if !lacking.is_empty() {
        return Err(Failure::usage(format!("{}; {USAGE}", lacking.join("; "))));
    }
    let mut config = match &args.config {
        Some(file) => Config::from_file(file).map_err(|e| Failure::usage(e.to_string()))?,
        None => {
            let mut config = Config::default();
            config.memory.item_limit = MANY;
            config.ssd.item_limit = MANY;
            containers(args, &mut config);
            config
        }
    };
    if let Some(items) = args.memory_items {
        config.memory.item_limit = items;
    }
    if let Some(bytes) = args.memory {
        config.memory.max_size = bytes;
    }
    for (name, size, least) in [
        ("--memory", args.memory, MIB),
        ("--ssd", args.ssd, 4 * MIB),
        ("--hdd", args.hdd, 2 * MIB),
        ("--cold", args.cold, 2 * MIB),
    ] {
        if let Some(size) = size.filter(|s| *s < least) {
            let (size, least) = (show::bytes(size), show::bytes(least));
            return Err(Failure::usage(format!("{name}: {size} is too small, the least is {least}")));
        }
    }
    disks(args, &mut config);
    Ok(config)
}

/// A sixteenth of each tier, a power of two, not below what the engine can do.
fn containers(args: &ReplayArgs, config: &mut Config) {
    let part = |size: Option<u64>, most: u64| Some(1u64 << (size? / 16).clamp(MIB, most).ilog2());
    config.storage.segment_size = part(args.ssd, 64 * MIB);
    config.storage.generation_size = part(args.hdd, 1 << 30);
    config.storage.pack_size = part(args.cold, 256 * MIB);
    // What waits to be written is served from RAM: it must not be most of a small store.
    if let Some(smallest) = [args.ssd, args.hdd, args.cold].into_iter().flatten().min() {
        config.resources.io.write_buffer_size = (smallest / 8).clamp(MIB, 64 * MIB);
    }
}

/// One directory of the size that an option gives, or as many as the file names.
fn disks(args: &ReplayArgs, config: &mut Config) {
    if let Some(size) = args.ssd {
        config.ssd.dirs.clear();
        config.add_ssd("ssd", size);
    }
    if let Some(size) = args.hdd {
        config.hdd.dirs.clear();
        config.add_hdd("hdd", size);
    }
    if let Some(size) = args.cold {
        config.cold.dirs.clear();
        config.add_cold("cold");
        config.cold.limit = Some(size);
    }
    config.storage.catalog = None;
    rename(&mut config.ssd.dirs, "ssd");
    rename(&mut config.hdd.dirs, "hdd");
    rename(&mut config.cold.dirs, "cold");
}

fn rename(dirs: &mut [DirConfig], name: &str) {
    for (n, dir) in dirs.iter_mut().enumerate() {
        dir.path = if n == 0 { name.into() } else { format!("{name}-{n}").into() };
    }
}

/// Puts the directories below one.
pub fn place(config: &mut Config, parent: &Path) {
    let tiers = [&mut config.ssd.dirs, &mut config.hdd.dirs, &mut config.cold.dirs];
    tiers.into_iter().flatten().for_each(|dir| dir.path = parent.join(&dir.path));
}

/// Memory for a number of items of the trace, where nothing else says how large it is.
pub fn make_room(args: &ReplayArgs, trace: &Trace, config: &mut Config) {
    if let Some(items) = by_items(args) {
        config.memory.max_size = room_for(items, trace);
    }
}

/// The items that memory holds however large they are, if that is all that was said of it.
pub fn by_items(args: &ReplayArgs) -> Option<u64> {
    args.memory_items.filter(|_| args.memory.is_none() && args.config.is_none())
}

/// Memory that so many items of the trace cannot fill, whichever they are.
fn room_for(items: u64, trace: &Trace) -> u64 {
    let key = trace.keys.iter().map(|k| k.len()).max().unwrap_or(0) as u64;
    let value = u64::from(trace.sizes.iter().max().copied().unwrap_or(VALUE_SIZE));
    // Twice: keys fall unevenly into the parts of the memory tier.
    items.saturating_mul(key + value + ROOM).saturating_mul(2).clamp(64 * MIB, 1 << 50)
}

/// The settings that options say.
pub fn typed(args: &ReplayArgs) -> Typed {
    let mut typed =
        typed_sizes([args.memory.is_some(), args.ssd.is_some(), args.hdd.is_some(), args.cold.is_some()]);
    typed
        .extend(args.memory_items.is_some().then_some(("storage_tiers.memory.item_limit", "--memory-items")));
    typed
}

/// A RAM file system is no disk.
pub fn refuse_ram(args: &ReplayArgs) -> Result<(), Failure> {
    let device = Device::of(&args.dir);
    if device.is_ram() && !args.allow_ram_disk {
        return Err(Failure::usage(format!(
            "{}: a RAM file system ({}) is no disk: name a directory on one with --dir, or say --allow-ram-disk",
            args.dir.display(),
            device.file_system.unwrap_or_default()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ReplayArgs,
    }

    fn of(args: &[&str]) -> Result<Config, Failure> {
        config(&Line::parse_from(["replay", "trace"].iter().chain(args)).args)
    }

    const FILE: &str = r#"
[storage_tiers.memory]
max_size = "3MiB"
item_limit = 77
[storage_tiers.ssd]
paths = [{ path = "/a", size = "64MiB" }, { path = "/b", size = "32MiB" }]
item_limit = 55
[storage_tiers.hdd]
path = "/c"
max_size = "64MiB"
[resource_management.io]
write_buffer_size = "2MiB"
[storage]
segment_size = "2MiB"
generation_size = "8MiB"
pack_size = "4MiB"
catalog = "/d"
"#;

    #[test]
    fn the_settings_of_a_file_hold_unless_an_option_overrides_them() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("t.toml");
        std::fs::write(&file, FILE).unwrap();
        let file = file.to_str().unwrap();
        let c = of(&["--config", file]).unwrap();
        assert_eq!((c.memory.max_size, c.memory.item_limit, c.ssd.item_limit), (3 << 20, 77, 55));
        assert_eq!((c.resources.io.write_buffer_size, c.storage.segment_size), (2 << 20, Some(2 << 20)));
        let paths: Vec<_> = c.ssd.dirs.iter().map(|d| (d.path.to_str().unwrap(), d.size)).collect();
        assert_eq!(paths, [("ssd", Some(64 << 20)), ("ssd-1", Some(32 << 20))]);
        assert_eq!((c.hdd.dirs[0].path.to_str(), c.hdd.max_size), (Some("hdd"), 64 << 20));
        assert!(c.cold.dirs.is_empty() && c.storage.catalog.is_none());
        c.validate().unwrap();

        let more =
            ["--config", file, "--memory-items", "9", "--ssd", "16MiB", "--hdd", "32MiB", "--cold", "16MiB"];
        let c = of(&more).unwrap();
        assert_eq!((c.memory.max_size, c.memory.item_limit, c.ssd.item_limit), (3 << 20, 9, 55));
        assert_eq!((c.ssd.dirs.len(), c.ssd.max_size, c.hdd.max_size), (1, 16 << 20, 32 << 20));
        assert_eq!((c.cold.limit, c.storage.pack_size), (Some(16 << 20), Some(4 << 20)));
        assert_eq!((c.resources.io.write_buffer_size, c.storage.generation_size), (2 << 20, Some(8 << 20)));
        c.validate().unwrap();
    }

    #[test]
    fn without_a_file_containers_follow_from_the_tiers() {
        let c = of(&["--memory", "1MiB", "--ssd", "64MiB", "--hdd", "32MiB", "--cold", "2MiB"]).unwrap();
        assert_eq!((c.memory.item_limit, c.ssd.item_limit), (MANY, MANY));
        assert_eq!((c.storage.segment_size, c.storage.generation_size), (Some(4 << 20), Some(2 << 20)));
        assert_eq!((c.storage.pack_size, c.resources.io.write_buffer_size), (Some(1 << 20), 1 << 20));
        c.validate().unwrap();
        assert!(of(&[]).unwrap_err().message.contains("how much memory"));
        assert!(of(&["--memory", "1KiB"]).unwrap_err().message.contains("--memory"));
    }
}
