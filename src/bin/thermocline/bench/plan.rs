//! Where the tiers of a benchmark are and how large: fresh directories, and sizes by which every tier is used.

use super::BenchArgs;
use super::items::Items;
use crate::device::{Device, available_ram, free, holds_nothing};
use crate::failure::Failure;
use crate::interrupt::WorkDir;
use crate::options::{typed_sizes, wrong};
use crate::show;
use crate::values::MEAN_LEN;
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
    /// The directories of the disk tiers, in the order of the configuration.
    pub dirs: Vec<(Tier, PathBuf)>,
    #[expect(dead_code, reason = "held for what dropping it does")]
    work: Vec<WorkDir>,
}

impl Plan {
    /// Decides, and makes the directories.
    pub fn new(args: &BenchArgs, items: &mut Items) -> Result<Plan, Failure> {
        let (mut config, [ssd, hdd, cold]) = wanted(args)?;
        let files = args.files.is_some();
        // Every file is to fit that is no larger than any value may be. One that is, is left out: made for it, the tiers
        // would hold all others many times over.
        let lens = || items.all.iter().map(|item| item.len).filter(|len| *len <= 64 * MIB);
        let (data, largest) = (lens().sum::<u64>(), lens().max().unwrap_or(0));
        let mut work = Works { what: "bench", at: Vec::new(), needed: needed(data), args };
        config.ssd.dirs = work.fresh(&ssd, "ssd")?;
        config.hdd.dirs = work.fresh(&hdd, "hdd")?;
        config.cold.dirs = work.fresh(&cold, "cold")?;
        config.storage.catalog = None;
        // What is stored is perhaps half of the data; of files nobody knows before.
        let (ssd_part, hdd_part) = if files { (8, 8) } else { (6, 5) };
        let even = |part: u64| (data / part).next_multiple_of(MIB);
        // A value may be half of a directory.
        let fits = |dirs: usize| (2 * largest).next_multiple_of(MIB).saturating_mul(dirs.max(1) as u64);
        let size = |part, dirs: &[DirConfig]| even(part).max(8 * MIB).max(fits(dirs.len()));
        config.ssd.max_size = ssd.size.unwrap_or_else(|| size(ssd_part, &config.ssd.dirs));
        config.hdd.max_size = hdd.size.unwrap_or_else(|| size(hdd_part, &config.hdd.dirs));
        config.cold.limit = cold.size;
        let of = |tier, dirs: &[DirConfig]| dirs.iter().map(|d| (tier, d.path.clone())).collect::<Vec<_>>();
        let mut dirs = of(Tier::Ssd, &config.ssd.dirs);
        dirs.extend(of(Tier::Hdd, &config.hdd.dirs));
        dirs.extend(of(Tier::Cold, &config.cold.dirs));
        if let Some(memory) = args.memory {
            config.memory.max_size = memory;
        } else if args.config.is_none() {
            config.memory.max_size = even(16).max(4 * MIB);
        }
        if args.config.is_none() {
            config.memory.item_limit = 1 << 40;
            config.ssd.item_limit = 1 << 40;
            // What waits to be written is served from RAM: it must not be most of a small store.
            config.resources.io.write_buffer_size = (data / 16).clamp(MIB, 64 * MIB);
            if config.hdd.max_size < 64 * MIB {
                config.storage.generation_size = Some(1 << (config.hdd.max_size / 8).max(MIB).ilog2());
            }
        }
        if args.top {
            // Without it there would be nothing to see.
            config.storage.socket = true;
        }
        let sized = |tier: &Option<TierArg>| tier.as_ref().is_some_and(|t| t.size.is_some());
        let typed =
            typed_sizes([args.memory.is_some(), sized(&args.ssd), sized(&args.hdd), sized(&args.cold)]);
        config.validate().map_err(|e| wrong(e, &typed))?;
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

/// Refuses so much made-up data as the disks or the RAM have no room for. To be asked before the list of the items is
/// made, which takes RAM by itself.
pub fn check(args: &BenchArgs, data: u64) -> Result<(), Failure> {
    for tier in wanted(args)?.1 {
        if tier.dirs.is_empty() {
            check_parent(&args.dir, needed(data), args)?;
        }
        for dir in &tier.dirs {
            check_parent(&dir.path, needed(data), args)?;
        }
    }
    check_ram(data, available_ram())
}

/// Bytes of RAM that an item of the list takes, with its key and its entry in the catalog.
const ITEM_RAM: u64 = 256;

/// The list of the items and the catalog are to take half of the available RAM at most. Where nobody knows how much
/// that is, it counts as 8 GiB.
fn check_ram(data: u64, available: Option<u64>) -> Result<(), Failure> {
    let items = data / MEAN_LEN;
    let room = available.unwrap_or(8 << 30) / 2;
    let takes = items.saturating_mul(ITEM_RAM);
    if takes <= room {
        return Ok(());
    }
    let (data, most) = (show::bytes(data), show::bytes((room / ITEM_RAM).saturating_mul(MEAN_LEN)));
    Err(Failure::usage(format!(
        "--data: {data} are about {} items, and a list of them takes about {} of RAM, of which {} may be used: the most \
         is about {most}",
        show::count(items),
        show::bytes(takes),
        show::bytes(room)
    )))
}

/// Bytes that a file system should have free for so much data.
fn needed(data: u64) -> u64 {
    data.saturating_mul(2)
}

/// The configuration to begin with, and where SSD, HDD and cold tier are wanted.
fn wanted(args: &BenchArgs) -> Result<(Config, [Wanted; 3]), Failure> {
    let config = match &args.config {
        Some(file) => Config::from_file(file).map_err(|e| Failure::config(&e))?,
        None => Config::default(),
    };
    let ssd = Wanted::of(&args.ssd, &config.ssd.dirs, Some(config.ssd.max_size));
    let hdd = Wanted::of(&args.hdd, &config.hdd.dirs, Some(config.hdd.max_size));
    let cold = Wanted::of(&args.cold, &config.cold.dirs, config.cold.limit);
    Ok((config, [ssd, hdd, cold]))
}

/// Refuses a RAM file system and one that has too little free.
fn check_parent(parent: &Path, needed: u64, args: &BenchArgs) -> Result<(), Failure> {
    let device = Device::of(parent);
    if device.is_ram() && !args.allow_ram_disk {
        return Err(Failure::usage(format!(
            "{}: a RAM file system ({}) is no disk, and its figures would say nothing about one: name a directory on a \
             disk, or say --allow-ram-disk",
            parent.display(),
            device.file_system.unwrap_or_default()
        )));
    }
    if holds_nothing(parent) {
        return Err(Failure::usage(format!(
            "{}: its file system ({}) has no room for files at all: name a directory on a disk",
            parent.display(),
            device.file_system.unwrap_or_default()
        )));
    }
    match free(parent).filter(|free| *free < needed) {
        Some(free) => Err(Failure::usage(format!(
            "{}: {} are free and {} may be needed: name another directory, or use less data",
            parent.display(),
            show::bytes(free),
            show::bytes(needed)
        ))),
        None => Ok(()),
    }
}

/// Where a tier is wanted, and how large.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// Below which directories, with sizes of their own where they have them; none: in the common place.
    dirs: Vec<DirConfig>,
    /// Of the whole tier.
    size: Option<u64>,
}

impl Wanted {
    /// The option, over what the file says of the tier.
    fn of(option: &Option<TierArg>, dirs: &[DirConfig], size: Option<u64>) -> Wanted {
        match option.clone().unwrap_or_default() {
            // A directory from the command line has nothing to do with the file's size.
            TierArg { dir: Some(path), size } => Wanted { dirs: vec![DirConfig { path, size: None }], size },
            // A size from it is shared evenly by the file's directories.
            TierArg { dir: None, size: Some(size) } => {
                let dirs = dirs.iter().map(|d| DirConfig { path: d.path.clone(), size: None });
                Wanted { dirs: dirs.collect(), size: Some(size) }
            }
            TierArg { dir: None, size: None } => {
                Wanted { dirs: dirs.to_vec(), size: size.filter(|_| !dirs.is_empty()) }
            }
        }
    }
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
    /// Fresh directories for a tier, with the sizes that are wanted.
    fn fresh(&mut self, wanted: &Wanted, tier: &str) -> Result<Vec<DirConfig>, Failure> {
        if wanted.dirs.is_empty() {
            let path = self.dir(&self.args.dir, tier)?;
            return Ok(vec![DirConfig { path, size: None }]);
        }
        let mut fresh = Vec::new();
        for (n, dir) in wanted.dirs.iter().enumerate() {
            let name = if n == 0 { tier.to_owned() } else { format!("{tier}-{n}") };
            fresh.push(DirConfig { path: self.dir(&dir.path, &name)?, size: dir.size });
        }
        Ok(fresh)
    }

    /// A directory in a fresh one of the parent.
    fn dir(&mut self, parent: &Path, name: &str) -> Result<PathBuf, Failure> {
        let make = |dir: &WorkDir| {
            let path = dir.path().join(name);
            // Made here, so that it can be asked what it stands on.
            std::fs::create_dir(&path).map_err(|e| Failure::given("make", &path, &e))?;
            Ok(path)
        };
        if let Some((_, dir)) = self.at.iter().find(|(p, _)| p == parent) {
            return make(dir);
        }
        check_parent(parent, self.needed, self.args)?;
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
    fn the_list_of_the_items_has_to_fit_into_ram() {
        let most = ((4 << 30) / ITEM_RAM) * MEAN_LEN;
        for available in [Some(8 << 30), None] {
            assert!(check_ram(most, available).is_ok());
            let e = check_ram(most + MEAN_LEN, available).unwrap_err();
            assert!(e.message.contains("16,777,217 items"), "{}", e.message);
        }
        assert!(check_ram(u64::MAX, Some(8 << 30)).is_err() && check_ram(1 << 30, Some(1 << 30)).is_ok());
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let file = [("/f", Some(4)), ("/g", None)].map(|(p, size)| DirConfig { path: p.into(), size });
        let bare = |paths: &[&str]| paths.iter().map(|p| DirConfig { path: p.into(), size: None }).collect();
        let of = |option: Option<TierArg>| Wanted::of(&option, &file, Some(7));
        assert_eq!(of(None), Wanted { dirs: file.to_vec(), size: Some(7) });
        let dir = Some(TierArg { dir: Some("/o".into()), size: None });
        assert_eq!(of(dir), Wanted { dirs: bare(&["/o"]), size: None });
        let size = Some(TierArg { dir: None, size: Some(9) });
        assert_eq!(of(size), Wanted { dirs: bare(&["/f", "/g"]), size: Some(9) });
        assert_eq!(Wanted::of(&None, &[], Some(7)), Wanted { dirs: Vec::new(), size: None });
    }
}
