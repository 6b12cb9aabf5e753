//! Which store: the options that every subcommand on a store takes, and the configuration that they make.
//!
//! Options override the file. A directory named without a size, and without a file that says one, must not be
//! shrunk by a mere look: its limit is then at least 1.25 times what it occupies, which makes it 80 % full, so that
//! opening it starts no demotion, and what is put then is demoted for, if the command runs long enough.

use crate::device::{Device, occupied};
use crate::dirs::{
    Roster, check_is_store, dirs_by_tier, is_store, is_there, options, refuse_foreign, refused,
};
use crate::failure::Failure;
use crate::show;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use thermocline::config::{ConfigError, DirConfig, parse_size};
use thermocline::{Builder, Cache, Config, Persistence, Tier};
use thermocline_storage::home::{DirInfo, OpenFlags};

/// No limit that anybody would notice.
const UNLIMITED: u64 = 1 << 60;

/// A size, as configurations write it.
pub fn size(text: &str) -> Result<u64, String> {
    parse_size(text)
}

/// `DIR` or `DIR=SIZE`. What stands behind the last `=` and begins with a digit is meant as a size and has to be one,
/// or `cache=5G` would be a new directory of the default size. What has a slash in it is part of a path.
pub fn dir(text: &str) -> Result<DirConfig, String> {
    let meant =
        |size: &str| size.trim_start().starts_with(|c: char| c.is_ascii_digit()) && !size.contains('/');
    match text.rsplit_once('=').filter(|(_, size)| meant(size)) {
        Some(("", _)) => Err("a directory comes before the =, as in /mnt/disk/cache=50GiB".into()),
        Some((path, size)) => {
            let size = parse_size(size).map_err(|e| {
                format!("{e}: {path}=5GiB; a directory that is called so is written with a slash, {text}/")
            })?;
            Ok(DirConfig { path: path.into(), size: Some(size) })
        }
        None if text.is_empty() => Err("name a directory".into()),
        None => Ok(DirConfig { path: text.into(), size: None }),
    }
}

/// Settings that options stand for, each with its option.
pub type Typed = Vec<(&'static str, &'static str)>;

/// Those of the sizes of memory, SSD, HDD and cold tier, as far as options say them.
pub fn typed_sizes(said: [bool; 4]) -> Typed {
    let all = [
        ("storage_tiers.memory.max_size", "--memory"),
        ("storage_tiers.ssd.max_size", "--ssd"),
        ("storage_tiers.hdd.max_size", "--hdd"),
        ("storage_tiers.cold.limit", "--cold"),
    ];
    all.into_iter().zip(said).filter_map(|(both, said)| said.then_some(both)).collect()
}

/// What is wrong with a configuration: what was typed is called by its option, for no setting of that name is anywhere
/// where it could be corrected.
pub fn wrong(mut e: ConfigError, typed: &Typed) -> Failure {
    let mut others = std::mem::take(&mut e.others);
    for e in std::iter::once(&mut e).chain(&mut others) {
        for (setting, option) in typed {
            if e.message.starts_with(setting) {
                // Such a value may stand in the file as well: it is not what counts.
                (e.file, e.at) = (None, None);
            }
            e.message = e.message.replace(&format!("{setting} = "), &format!("{option}: "));
            e.message = e.message.replace(setting, option);
        }
    }
    e.others = others;
    Failure::config(&e)
}

/// What a returned put means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PersistenceArg {
    /// It is on stable storage
    Always,
    /// It is there within about a second
    EverySecond,
    /// It is there when memory evicts it
    OnEviction,
}

/// The store: from a file, from options, or from both.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Store")]
pub struct StoreArgs {
    /// Configuration in TOML; options override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Bytes of the memory tier
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// A directory of the SSD tier; may be given again
    #[arg(long, value_name = "DIR[=SIZE]", value_parser = dir)]
    pub ssd: Vec<DirConfig>,
    /// A directory of the HDD tier; may be given again
    #[arg(long, value_name = "DIR[=SIZE]", value_parser = dir)]
    pub hdd: Vec<DirConfig>,
    /// A directory of the cold tier; may be given again
    #[arg(long, value_name = "DIR[=SIZE]", value_parser = dir)]
    pub cold: Vec<DirConfig>,
    /// All three disk tiers under one directory, in ssd, hdd and cold
    #[arg(long, value_name = "DIR", conflicts_with_all = ["ssd", "hdd", "cold"])]
    pub root: Option<PathBuf>,
    /// Where the catalog is [default: in the first directory of the highest disk tier]
    #[arg(long, value_name = "DIR")]
    pub catalog: Option<PathBuf>,
    /// What a returned put means
    #[arg(long, value_name = "WHEN")]
    pub persistence: Option<PersistenceArg>,
}

/// How to open it if something is missing.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Store")]
struct MissingArgs {
    /// Open although a directory is missing; its items are absent until it is back
    #[arg(long)]
    without_missing: bool,
    /// Open although a directory is missing, and give up what was in it for good
    #[arg(long, conflicts_with = "without_missing")]
    discard_missing: bool,
}

/// A store that is to be opened.
#[derive(Debug, Clone, Args)]
pub struct OpenArgs {
    #[command(flatten)]
    pub which: StoreArgs,
    #[command(flatten)]
    missing: MissingArgs,
}

impl StoreArgs {
    /// The file's settings, overridden by the options. Nothing is checked but each by itself.
    pub fn config(&self) -> Result<Config, Failure> {
        let mut config = match &self.config {
            Some(file) => Config::from_file(file).map_err(|e| Failure::config(&e))?,
            None => Config::default(),
        };
        if let Some(memory) = self.memory {
            config.memory.max_size = memory;
        }
        if let Some(root) = &self.root {
            config.set_root(root);
        }
        let sum = |dirs: &[DirConfig]| dirs.iter().map(|d| d.size).sum::<Option<u64>>();
        if !self.ssd.is_empty() {
            config.ssd.dirs.clone_from(&self.ssd);
            config.ssd.max_size = sum(&self.ssd).unwrap_or(config.ssd.max_size);
        }
        if !self.hdd.is_empty() {
            config.hdd.dirs.clone_from(&self.hdd);
            config.hdd.max_size = sum(&self.hdd).unwrap_or(config.hdd.max_size);
        }
        if !self.cold.is_empty() {
            config.cold.dirs.clone_from(&self.cold);
            config.cold.limit = sum(&self.cold);
        }
        if let Some(catalog) = &self.catalog {
            config.storage.catalog = Some(catalog.clone());
        }
        config.storage.persistence = match self.persistence {
            Some(PersistenceArg::Always) => Persistence::Always,
            Some(PersistenceArg::EverySecond) => Persistence::EverySecond,
            Some(PersistenceArg::OnEviction) => Persistence::OnEviction,
            None => config.storage.persistence,
        };
        Ok(config)
    }

    /// Whether the file, or a size with each of its directories, says how much a tier may occupy. Otherwise the limit
    /// is this command's assumption: the store keeps none.
    pub fn says_limit(&self, tier: Tier) -> bool {
        let dirs = match tier {
            Tier::Ssd => &self.ssd,
            Tier::Hdd => &self.hdd,
            Tier::Cold => &self.cold,
            _ => return true,
        };
        self.config.is_some() || (!dirs.is_empty() && dirs.iter().all(|d| d.size.is_some()))
    }

    /// As [`config`](Self::config), of a store on disk that is to be opened, checked as a whole.
    fn of_store(&self) -> Result<Config, Failure> {
        let mut config = self.config()?;
        if !config.has_disk() {
            return Err(Failure::usage(match &self.config {
                Some(file) => format!(
                    "{}: no store is named in it: write the directories as `path` below [storage_tiers.ssd], \
                     [storage_tiers.hdd] and [storage_tiers.cold], as many as it has, or give --root DIR, or --ssd, \
                     --hdd and --cold DIR",
                    file.display()
                ),
                None => "no store is named: give --config FILE, --root DIR, or --ssd, --hdd and --cold DIR"
                    .to_owned(),
            }));
        }
        if self.config.is_none() {
            config.ssd.item_limit = UNLIMITED;
            let taken = |dirs: &[DirConfig]| dirs.iter().map(|d| occupied(&d.path)).collect::<Vec<_>>();
            if config.ssd.dirs.iter().all(|d| d.size.is_none()) {
                config.ssd.max_size = room(config.ssd.max_size, &taken(&config.ssd.dirs));
            }
            if config.hdd.dirs.iter().all(|d| d.size.is_none()) {
                config.hdd.max_size = room(config.hdd.max_size, &taken(&config.hdd.dirs));
            }
        }
        self.check(&config)?;
        // Who reports asks for it: see `open_to_serve`.
        config.metrics.redis.url = None;
        Ok(config)
    }

    /// Checks a configuration that comes of this as a whole.
    pub fn check(&self, config: &Config) -> Result<(), Failure> {
        config.validate().map_err(|e| wrong(e, &self.typed()))
    }

    /// The settings that options say.
    fn typed(&self) -> Typed {
        let tiers = [
            (&self.ssd, ["storage_tiers.ssd.paths", "storage_tiers.ssd.path"], "--ssd"),
            (&self.hdd, ["storage_tiers.hdd.paths", "storage_tiers.hdd.path"], "--hdd"),
            (&self.cold, ["storage_tiers.cold.paths", "storage_tiers.cold.path"], "--cold"),
        ];
        let sized = |dirs: &[DirConfig]| !dirs.is_empty() && dirs.iter().all(|d| d.size.is_some());
        let mut typed =
            typed_sizes([self.memory.is_some(), sized(&self.ssd), sized(&self.hdd), sized(&self.cold)]);
        for (_, names, option) in tiers.into_iter().filter(|(dirs, ..)| !dirs.is_empty()) {
            typed.extend(names.map(|name| (name, option)));
        }
        typed.extend(self.catalog.is_some().then_some(("storage.catalog", "--catalog")));
        typed
    }
}

impl OpenArgs {
    /// Opens a store that is there. A directory that is not one of a store is refused, so that a slip of the pen
    /// makes none.
    pub fn open(&self) -> Result<Cache, Failure> {
        // A look at a store is no instance of a fleet.
        self.open_as(false)
    }

    /// The same for long, with metrics to the server that the configuration names.
    pub fn open_to_serve(&self) -> Result<Cache, Failure> {
        self.open_as(true)
    }

    fn open_as(&self, reports: bool) -> Result<Cache, Failure> {
        // In the place of what is given up something new is made.
        let new = if self.discards() { self.new_dirs()? } else { Vec::new() };
        let mut builder = self.builder(false)?;
        if reports {
            builder.config_mut().metrics = self.which.config()?.metrics;
        }
        let cache = builder.open().map_err(|e| self.refused(e))?;
        show::note(&made_note(&new))?;
        show::note(&lost_note(&cache))?;
        Ok(cache)
    }

    /// What opens, checks or repairs a store that is there; if its catalog is lost in both copies it may be built anew.
    pub fn builder(&self, rebuild_catalog: bool) -> Result<Builder, Failure> {
        let config = self.which.of_store()?;
        let flags = OpenFlags {
            without_missing: self.missing.without_missing,
            discard_missing: self.missing.discard_missing,
            rebuild_catalog,
            read_only: true,
        };
        check_is_store(&config, flags)?;
        self.missing.spares_what_is_there(&config)?;
        Ok(self.missing.apply(Builder::from_config(config)).rebuild_catalog(rebuild_catalog))
    }

    /// What to say of a store that did not open.
    pub fn refused(&self, e: thermocline::Error) -> Failure {
        match self.which.config() {
            Ok(config) => refused(&config, e),
            Err(_) => e.into(),
        }
    }

    /// Opens a store, making what is missing of it.
    pub fn create(&self) -> Result<Cache, Failure> {
        let config = self.which.of_store()?;
        refuse_foreign(&config)?;
        self.missing.spares_what_is_there(&config)?;
        let new = self.new_dirs()?;
        let builder = self.missing.apply(Builder::from_config(config.clone()));
        let cache = builder.open().map_err(|e| refused(&config, e))?;
        show::note(&made_note(&new))?;
        show::note(&lost_note(&cache))?;
        Ok(cache)
    }

    /// The directories that are none of a store yet, which [`create`](Self::create) makes part of one.
    fn new_dirs(&self) -> Result<Vec<(Tier, PathBuf)>, Failure> {
        let config = self.which.of_store()?;
        let mut new = Vec::new();
        for (tier, dir) in dirs_by_tier(&config) {
            if !is_store(&dir.path).map_err(|e| Failure::given("look at", &dir.path, &e))? {
                new.push((tier, dir.path.clone()));
            }
        }
        Ok(new)
    }

    /// The directories of the store that `--without-missing` leaves out, where they were last. To be asked while the
    /// store is not open.
    pub fn left_out(&self) -> Vec<DirInfo> {
        let asked = self.missing.without_missing.then(|| self.which.of_store().ok()).flatten();
        let roster = asked.and_then(|config| Roster::of(&config));
        roster.map(|r| r.away.into_iter().chain(r.unnamed).collect()).unwrap_or_default()
    }

    /// Whether what is missing is to be given up.
    pub fn discards(&self) -> bool {
        self.missing.discard_missing
    }

    /// Whether a directory that is missing is to be done without.
    pub fn goes_on_without(&self) -> bool {
        self.missing.without_missing
    }

    /// Whether the limit of a tier is the user's, not an assumption.
    pub fn says_limit(&self, tier: Tier) -> bool {
        self.which.says_limit(tier)
    }

    /// The largest value that the store takes, in bytes. Looks at the directories, and makes none.
    pub fn max_value_size(&self) -> Result<u64, Failure> {
        Ok(self.which.of_store()?.max_value_size())
    }
}

impl MissingArgs {
    /// A directory that was only forgotten is not given up for good.
    fn spares_what_is_there(self, config: &Config) -> Result<(), Failure> {
        let roster = if self.discard_missing { Roster::of(config) } else { None };
        let mut there = roster.map(|r| r.unnamed).unwrap_or_default();
        there.retain(is_there);
        if there.is_empty() {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "--discard-missing gives up for good what is in directories that are missing, and some are there and were \
             only not named: give {}, too; what really is to be given up, move away or delete first",
            options(&there)
        )))
    }

    fn apply(self, builder: Builder) -> Builder {
        builder.without_missing(self.without_missing).discard_missing(self.discard_missing)
    }
}

/// For people: which directories an opening made part of a store, and what they stand on. Empty: none.
fn made_note(dirs: &[(Tier, PathBuf)]) -> String {
    let one = |(tier, dir): &(Tier, PathBuf)| {
        let device = Device::of(dir);
        let or = |s: Option<String>| s.unwrap_or_else(|| "unknown".into());
        format!("{} ({tier}; {} on {})", dir.display(), or(device.file_system), or(device.source))
    };
    match dirs {
        [] => String::new(),
        _ => format!("made {}", dirs.iter().map(one).collect::<Vec<_>>().join(", ")),
    }
}

/// For people: what this opening found to be gone, which no later one will say again. Empty: nothing.
fn lost_note(cache: &Cache) -> String {
    let recovery = cache.recovery();
    let aside: Vec<String> =
        recovery.quarantined.iter().map(|(path, _)| path.display().to_string()).collect();
    let aside = match &*aside {
        [] => String::new(),
        some => format!("; moved to the quarantine of its directory, with a report: {}", some.join(", ")),
    };
    match recovery.lost {
        0 if aside.is_empty() => String::new(),
        n => format!(
            "opening found {} lost, because what held them is damaged or gone{aside}",
            show::things(n, "item")
        ),
    }
}

/// The limit of a tier whose directories share it and occupy so much: enough that the fullest is 80 % full at most.
fn room(limit: u64, taken: &[u64]) -> u64 {
    let fullest = taken.iter().max().copied().unwrap_or(0);
    limit.max(fullest.saturating_add(fullest.div_ceil(4)).saturating_mul(taken.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_with_and_without_sizes() {
        let of = |text| dir(text).map(|d| (d.path, d.size));
        assert_eq!(of("/a"), Ok(("/a".into(), None)));
        assert_eq!(of("/a=1GiB"), Ok(("/a".into(), Some(1 << 30))));
        assert_eq!(of("/a=b=64KiB"), Ok(("/a=b".into(), Some(64 << 10))));
        assert_eq!(of("/a= 64KiB"), Ok(("/a".into(), Some(64 << 10))));
        for path in ["/a=b", "/a=", "/day=7/a", "/a=5G/"] {
            assert_eq!(of(path), Ok((path.into(), None)));
        }
        for text in ["/a=5G", "/a= 5G", "/a=1GiB=5 Gi", "/a=1e9", "/a=99999999TiB"] {
            assert!(of(text).is_err(), "{text}");
        }
        assert!(of("/a=5G").unwrap_err().contains("/a=5GiB"));
        assert!(of("=1GiB").is_err() && of("").is_err());
    }

    #[test]
    fn options_override_the_file() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("t.toml");
        let text = "[storage_tiers.memory]\nmax_size = \"64MiB\"\n[storage_tiers.ssd]\npath = \"/x\"\n";
        std::fs::write(&file, text).unwrap();
        let mut args = StoreArgs { config: Some(file), ..StoreArgs::default() };
        let config = args.config().unwrap();
        assert_eq!((config.memory.max_size, config.ssd.max_size), (64 << 20, 5 << 30));
        args.memory = Some(1 << 20);
        args.ssd = vec![dir("/y=64MiB").unwrap(), dir("/z=1GiB").unwrap()];
        let config = args.config().unwrap();
        assert_eq!((config.memory.max_size, config.ssd.max_size), (1 << 20, (1 << 30) + (64 << 20)));
        assert_eq!(config.ssd.dirs.len(), 2);
    }

    #[test]
    #[cfg(feature = "redis")]
    fn a_look_at_a_store_reports_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("t.toml");
        std::fs::write(&file, "[storage_tiers.ssd]\npath = \"/x\"\n[metrics.redis]\nurl = \"redis://h\"\n")
            .unwrap();
        let args = StoreArgs { config: Some(file), ..StoreArgs::default() };
        assert!(args.config().unwrap().metrics.redis.url.is_some());
        assert_eq!(args.of_store().unwrap().metrics.redis.url, None);
    }

    #[test]
    fn a_look_at_a_store_does_not_shrink_it() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("big"), vec![1; 1 << 20]).unwrap();
        let args =
            StoreArgs { hdd: vec![dir(tmp.path().to_str().unwrap()).unwrap()], ..StoreArgs::default() };
        assert_eq!(args.of_store().unwrap().hdd.max_size, 50 << 30);
        assert_eq!((room(100, &[10, 60]), room(100, &[10]), room(100, &[])), (150, 100, 100));
        // Filled to 80 %, it is not given more.
        assert_eq!((room(100, &[80]), room(100, &[81])), (100, 102));
        let mut sized = args.clone();
        sized.hdd[0].size = Some(64 << 20);
        assert_eq!(sized.of_store().unwrap().hdd.max_size, 64 << 20);
    }
}
