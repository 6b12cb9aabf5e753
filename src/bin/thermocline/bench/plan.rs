//! Where the tiers of a benchmark are and how large: fresh directories, and sizes by which every tier is used.

use super::BenchArgs;
use super::items::Items;
use crate::device::{Device, free};
use crate::failure::Failure;
use crate::interrupt::WorkDir;
use crate::show;
use std::path::{Path, PathBuf};
use thermocline::config::{DirConfig, parse_size};
use thermocline::{Config, Tier};

const MIB: u64 = 1 << 20;

/// A tier on the command line: `DIR`, `DIR=SIZE` or `=SIZE`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TierArg {
    pub dir: Option<PathBuf>,
    pub size: Option<u64>,
}

/// Reads one.
pub fn tier_arg(text: &str) -> Result<TierArg, String> {
    if let Some(size) = text.strip_prefix('=') {
        return parse_size(size).map(|size| TierArg { dir: None, size: Some(size) });
    }
    let dir = crate::options::dir(text)?;
    Ok(TierArg { dir: Some(dir.path), size: dir.size })
}

/// A store made for the benchmark; its directories go when this does.
#[derive(Debug)]
pub struct Plan {
    /// The configuration.
    pub config: Config,
    /// The directory of each disk tier.
    pub dirs: Vec<(Tier, PathBuf)>,
    #[expect(dead_code, reason = "held for what dropping it does")]
    work: Vec<WorkDir>,
}

impl Plan {
    /// Decides, and makes the directories.
    pub fn new(args: &BenchArgs, items: &mut Items) -> Result<Plan, Failure> {
        let mut config = match &args.config {
            Some(file) => Config::from_file(file).map_err(|e| Failure::usage(e.to_string()))?,
            None => Config::default(),
        };
        let files = args.files.is_some();
        let data = items.bytes();
        let of_file = |dirs: &[DirConfig], size: Option<u64>| {
            let dir = dirs.first().map(|d| d.path.clone());
            TierArg { size: size.filter(|_| dir.is_some()), dir }
        };
        let ssd = merge(&args.ssd, of_file(&config.ssd.dirs, Some(config.ssd.max_size)));
        let hdd = merge(&args.hdd, of_file(&config.hdd.dirs, Some(config.hdd.max_size)));
        let cold = merge(&args.cold, of_file(&config.cold.dirs, config.cold.limit));
        let mut work = Works { what: "bench", at: Vec::new(), needed: data.saturating_mul(2), args };
        let dirs = vec![
            (Tier::Ssd, work.dir(ssd.dir.as_deref(), "ssd")?),
            (Tier::Hdd, work.dir(hdd.dir.as_deref(), "hdd")?),
            (Tier::Cold, work.dir(cold.dir.as_deref(), "cold")?),
        ];
        // What is stored is perhaps half of the data; of files nobody knows before.
        let (ssd_part, hdd_part) = if files { (8, 8) } else { (6, 5) };
        let even = |part: u64| (data / part).next_multiple_of(MIB);
        config.ssd.dirs.clear();
        config.hdd.dirs.clear();
        config.cold.dirs.clear();
        config.storage.catalog = None;
        let path = |n: usize| dirs.get(n).map(|(_, p)| p.clone()).unwrap_or_default();
        config.add_ssd(path(0), ssd.size.unwrap_or(even(ssd_part).max(8 * MIB)));
        config.add_hdd(path(1), hdd.size.unwrap_or(even(hdd_part).max(8 * MIB)));
        config.add_cold(path(2));
        config.cold.limit = cold.size;
        if let Some(memory) = args.memory {
            config.memory.max_size = memory;
        } else if args.config.is_none() {
            config.memory.max_size = even(16).max(4 * MIB);
        }
        if args.config.is_none() {
            config.memory.item_limit = 1 << 40;
            config.ssd.item_limit = 1 << 40;
            // What waits to be written is served from RAM: it must not be most of a small store.
            config.storage.write_buffer = (data / 16).clamp(MIB, 64 * MIB);
            if config.hdd.max_size < 64 * MIB {
                config.storage.generation_size = Some(1 << (config.hdd.max_size / 8).max(MIB).ilog2());
            }
        }
        config.validate().map_err(|e| Failure::usage(e.to_string()))?;
        let most = config.max_value_size();
        items.keep("larger than a value may be", |item| item.len <= most);
        if items.all.is_empty() {
            return Err(Failure::usage(format!(
                "no item is at most {}, which is what a value may have with these sizes: raise those of the tiers",
                show::bytes(most)
            )));
        }
        let work = work.at.into_iter().map(|(_, dir)| dir).collect();
        Ok(Plan { config, dirs, work })
    }
}

fn merge(option: &Option<TierArg>, file: TierArg) -> TierArg {
    let option = option.clone().unwrap_or_default();
    // A directory from the command line has nothing to do with the file's size.
    let size = if option.dir.is_some() { None } else { file.size };
    TierArg { size: option.size.or(size), dir: option.dir.or(file.dir) }
}

/// The working directories made so far, by parent.
struct Works<'a> {
    what: &'static str,
    at: Vec<(PathBuf, WorkDir)>,
    /// Bytes that a parent should have free.
    needed: u64,
    args: &'a BenchArgs,
}

impl Works<'_> {
    /// A directory for a tier in a fresh one of the parent, or of the common place.
    fn dir(&mut self, parent: Option<&Path>, name: &str) -> Result<PathBuf, Failure> {
        let parent = parent.unwrap_or(&self.args.dir);
        let make = |dir: &WorkDir| {
            let path = dir.path().join(name);
            // Made here, so that it can be asked what it stands on.
            std::fs::create_dir(&path).map_err(|e| Failure::io("make", &path, &e))?;
            Ok(path)
        };
        if let Some((_, dir)) = self.at.iter().find(|(p, _)| p == parent) {
            return make(dir);
        }
        let device = Device::of(parent);
        if device.is_ram() && !self.args.allow_ram_disk {
            return Err(Failure::usage(format!(
                "{}: a RAM file system ({}) is no disk, and its figures would say nothing about one: name a \
                 directory on a disk, or say --allow-ram-disk",
                parent.display(),
                device.file_system.unwrap_or_default()
            )));
        }
        let needed = self.needed;
        if let Some(free) = free(parent).filter(|free| *free < needed) {
            return Err(Failure::usage(format!(
                "{}: {} are free and {} may be needed: name another directory, or use less data",
                parent.display(),
                show::bytes(free),
                show::bytes(needed)
            )));
        }
        let dir = WorkDir::new_in(parent, self.what)?;
        let path = make(&dir);
        self.at.push((parent.to_path_buf(), dir));
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_on_the_command_line() {
        let of = |text| tier_arg(text).unwrap();
        assert_eq!(of("=8MiB"), TierArg { dir: None, size: Some(8 * MIB) });
        assert_eq!(of("/a=8MiB"), TierArg { dir: Some("/a".into()), size: Some(8 * MIB) });
        assert_eq!(of("/a"), TierArg { dir: Some("/a".into()), size: None });
        assert!(tier_arg("=x").is_err() && tier_arg("").is_err());
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let file = || TierArg { dir: Some("/f".into()), size: Some(7) };
        assert_eq!(merge(&None, file()), file());
        let dir = Some(TierArg { dir: Some("/o".into()), size: None });
        assert_eq!(merge(&dir, file()), TierArg { dir: Some("/o".into()), size: None });
        let size = Some(TierArg { dir: None, size: Some(9) });
        assert_eq!(merge(&size, file()), TierArg { dir: Some("/f".into()), size: Some(9) });
    }
}
