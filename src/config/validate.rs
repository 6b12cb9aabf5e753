//! What a configuration must keep, setting by setting and among each other.
//!
//! Invariants: no disk is touched, so that a configuration can be checked on another machine; a setting that was read
//! from a file and not changed since is reported with its line; each error says what would be right.

use super::metrics::{check_name, check_url};
use super::settings::{Field, SETTINGS, Setting};
use super::{Config, ConfigError, DirConfig, MIB, Persistence, own_sizes, size};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

/// The smallest number of containers that a directory must have room for: one is written, one is reclaimed, and
/// something has to be left to read.
const LEAST_SEGMENTS: u64 = 4;
const LEAST_GENERATIONS: u64 = 2;
const LEAST_PACKS: u64 = 2;
/// Bytes of the smallest container of each tier: the lower limit of their settings.
const LEAST_CONTAINER: u64 = MIB;

impl Config {
    /// Checks everything: each setting's limits, and what settings ask of each other. Touches no disk.
    ///
    /// ```
    /// use thermocline::Config;
    ///
    /// let text = "[storage]\nmax_value_size = \"128MiB\"\ninflight = \"64MiB\"";
    /// let config = Config::from_toml(text)?; // each is possible by itself
    /// let error = config.validate().unwrap_err();
    /// assert!(error.at.is_some());
    /// assert!(error.message.contains("inflight"));
    /// # Ok::<(), thermocline::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// What is wrong: the setting, its value, and what would be right; with file and line if the value is still the one
    /// that was read there. With [`others`](ConfigError::others), if more is.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut copy = self.clone();
        // One of each table: of a tier, one may follow from another.
        let (mut table, mut beyond) = ("", Vec::new());
        for setting in SETTINGS {
            let of = setting.name.rsplit_once('.').map_or("", |(of, _)| of);
            if of != table
                && let Err(message) = check(setting, &mut copy)
            {
                table = of;
                beyond.push(self.wrong(setting.name, message));
            }
        }
        ConfigError::all(beyond).map_or(Ok(()), Err)?;
        // What settings ask of each other says nothing where one is impossible by itself.
        let rules = [
            // Each of these presumes the one before.
            self.sizes_of_tiers().and_then(|()| self.containers()).and_then(|()| self.values()),
            self.resources(),
            self.durability(),
            self.paths(),
        ];
        ConfigError::all(rules.into_iter().filter_map(Result::err).collect()).map_or(Ok(()), Err)
    }

    fn sizes_of_tiers(&self) -> Result<(), ConfigError> {
        let tiers = [
            ("storage_tiers.ssd.max_size", &self.ssd.dirs, Some(self.ssd.max_size)),
            ("storage_tiers.hdd.max_size", &self.hdd.dirs, Some(self.hdd.max_size)),
            ("storage_tiers.cold.limit", &self.cold.dirs, self.cold.limit),
        ];
        for (name, dirs, whole) in tiers {
            let (Some(whole), own) = (whole, own_sizes(dirs)) else { continue };
            let share = dirs.iter().any(|d| d.size.is_none());
            if own > whole || (share && own == whole) {
                let message = format!(
                    "{name} = {}, but the sizes of single directories come to {}: {}",
                    size::show(whole),
                    size::show(own),
                    if share { "something has to be left for the others" } else { "raise it, or lower them" }
                );
                return Err(self.wrong(name, message));
            }
        }
        Ok(())
    }

    fn containers(&self) -> Result<(), ConfigError> {
        let ssd = ("storage_tiers.ssd.max_size", "storage.segment_size", "segments", LEAST_SEGMENTS);
        let hdd = ("storage_tiers.hdd.max_size", "storage.generation_size", "generations", LEAST_GENERATIONS);
        let cold = ("storage_tiers.cold.limit", "storage.pack_size", "packs", LEAST_PACKS);
        let tiers = [
            (ssd, self.ssd_limits(), self.segment_size()),
            (hdd, self.hdd_limits(), self.generation_size()),
            (cold, self.cold_limits().into_iter().flatten().collect(), self.pack_size()),
        ];
        for ((tier, container, what, least), limits, one) in tiers {
            let Some(smallest) = limits.into_iter().min() else { continue };
            let needed = one.saturating_mul(least);
            if smallest < needed {
                let lower =
                    if one > LEAST_CONTAINER { format!(", or lower {container}") } else { String::new() };
                let message = format!(
                    "{tier} leaves a directory {}, which holds fewer than {least} {what} of {}: give each \
                     directory at least {}{lower}",
                    size::show(smallest),
                    size::show(one),
                    size::show(needed)
                );
                return Err(self.wrong(tier, message));
            }
        }
        Ok(())
    }

    /// The largest value must pass through every door that it has to.
    fn values(&self) -> Result<(), ConfigError> {
        let largest = self.max_value_size();
        let name = "storage.max_value_size";
        if self.inflight() < largest {
            let message = format!(
                "storage.inflight = {} is less than one value of {name} = {} needs: raise it, or write \"auto\"",
                size::show(self.inflight()),
                size::show(largest)
            );
            return Err(self.wrong("storage.inflight", message));
        }
        match self.room_for_value() {
            Some((tier, room)) if largest > room => {
                let message = format!(
                    "{name} = {} is more than half of what {tier} gives one directory: lower it to at most {}, \
                     or raise {tier}",
                    size::show(largest),
                    size::show(room)
                );
                Err(self.wrong(name, message))
            }
            _ => Ok(()),
        }
    }

    /// What is freed, read and kept at least fits into what there is at most.
    fn resources(&self) -> Result<(), ConfigError> {
        let (memory, io) = (&self.resources.memory, &self.resources.io);
        if memory.buffer_percent >= memory.max_usage_percent {
            let name = "resource_management.memory.buffer_percent";
            let message = format!(
                "{name} = {} leaves nothing of max_usage_percent = {}: lower it below that",
                memory.buffer_percent, memory.max_usage_percent
            );
            return Err(self.wrong(name, message));
        }
        if io.read_ahead_size < io.buffer_size {
            let name = "resource_management.io.read_ahead_size";
            let message = format!(
                "{name} = {} is less than the smallest read, buffer_size = {}: raise it to at least that",
                size::show(io.read_ahead_size),
                size::show(io.buffer_size)
            );
            return Err(self.wrong(name, message));
        }
        if self.memory_floor() > self.memory.max_size {
            let name = "optimizer.memory_floor";
            let message = format!(
                "{name} = {} is more than storage_tiers.memory.max_size = {}: lower it, or write \"auto\"",
                size::show(self.memory_floor()),
                size::show(self.memory.max_size)
            );
            return Err(self.wrong(name, message));
        }
        Ok(())
    }

    fn durability(&self) -> Result<(), ConfigError> {
        if self.has_disk() {
            return Ok(());
        }
        let alone = "there is memory alone: name a directory of a tier, or";
        if self.storage.persistence == Persistence::Always {
            let message = format!("storage.persistence = \"always\", but {alone} choose \"every_second\"");
            return Err(self.wrong("storage.persistence", message));
        }
        if let Some(catalog) = &self.storage.catalog {
            let message = format!("storage.catalog = {catalog:?}, but {alone} leave it out");
            return Err(self.wrong("storage.catalog", message));
        }
        Ok(())
    }

    /// By name only; links are seen through when the store is opened.
    fn paths(&self) -> Result<(), ConfigError> {
        let of =
            |name, dirs: &'_ [DirConfig]| dirs.iter().map(|d| (name, d.path.clone())).collect::<Vec<_>>();
        let mut all = of("storage_tiers.ssd.paths", &self.ssd.dirs);
        all.extend(of("storage_tiers.hdd.paths", &self.hdd.dirs));
        all.extend(of("storage_tiers.cold.paths", &self.cold.dirs));
        for (at, (name, path)) in all.iter().enumerate() {
            for (other_name, other) in all.iter().take(at) {
                let (real, other_real) = (by_name(path), by_name(other));
                if real == other_real {
                    let also = if path == other { String::new() } else { format!(", as {other:?}") };
                    let message = format!(
                        "{name}: {path:?} is given twice (also in {other_name}{also}): give each tier directories of \
                         its own"
                    );
                    return Err(self.wrong(name, message));
                }
                if real.starts_with(&other_real) || other_real.starts_with(&real) {
                    let message = format!(
                        "{name}: of {path:?} and {other:?} one lies inside the other: give directories side by \
                         side"
                    );
                    return Err(self.wrong(name, message));
                }
            }
        }
        match &self.storage.catalog {
            Some(catalog) if all.iter().any(|(_, path)| by_name(path).starts_with(by_name(catalog))) => {
                let message = format!(
                    "storage.catalog = {catalog:?} is, or holds, a directory of a tier: name one of its own"
                );
                Err(self.wrong("storage.catalog", message))
            }
            _ => Ok(()),
        }
    }

    /// An error of a setting, with its line if its value is the one that was read there.
    fn wrong(&self, name: &str, message: String) -> ConfigError {
        let source = self.origin.0.as_ref();
        let read = source.and_then(|s| {
            // A list of one may have been written as `path`.
            let single = name.strip_suffix('s').filter(|_| name.ends_with(".paths"));
            s.read.iter().find(|(n, ..)| *n == name || Some(*n) == single)
        });
        let unchanged = read.filter(|(n, value, _)| {
            SETTINGS.iter().find(|s| s.name == *n).is_some_and(|s| s.show(self).as_ref() == Some(value))
        });
        ConfigError {
            file: unchanged.and(source).and_then(|s| s.file.clone()),
            at: unchanged.map(|(.., at)| *at),
            message,
            others: Vec::new(),
        }
    }
}

/// One setting's limits. Of a tier that is too small for any container also what suffices, so that it is corrected
/// once.
pub(super) fn check(setting: &Setting, config: &mut Config) -> Result<(), String> {
    let Err(message) = check_limits(setting, config) else { return Ok(()) };
    let (size, one, least) = match setting.name {
        "storage_tiers.ssd.max_size" => (config.ssd.max_size, config.segment_size(), LEAST_SEGMENTS),
        "storage_tiers.hdd.max_size" => (config.hdd.max_size, config.generation_size(), LEAST_GENERATIONS),
        "storage_tiers.cold.limit" => {
            (config.cold.limit.unwrap_or(u64::MAX), config.pack_size(), LEAST_PACKS)
        }
        _ => return Err(message),
    };
    if size >= LEAST_CONTAINER {
        return Err(message);
    }
    let needed = size::show(one.saturating_mul(least));
    Err(format!("{message}; with the other settings as they are each directory needs at least {needed}"))
}

fn check_limits(setting: &Setting, config: &mut Config) -> Result<(), String> {
    let name = setting.name;
    match &setting.field {
        Field::Size(at, range) => within(name, *at(config), range, size::show),
        Field::AutoSize(at, range) | Field::OptionalSize(at, range) => {
            at(config).map_or(Ok(()), |n| within(name, n, range, size::show))
        }
        Field::Count(..)
            if name == "compression.algorithms.lz4.level" && config.compression.lz4.level != 1 =>
        {
            Err(format!(
                "{name} = {}: lz4 has no levels, leave it out or write 1",
                config.compression.lz4.level
            ))
        }
        Field::Count(at, range, unit) => counted(name, *at(config), range, unit),
        Field::OptionalCount(at, range, unit) => at(config).map_or(Ok(()), |n| counted(name, n, range, unit)),
        Field::Ratio(at) => {
            let ratio = *at(config);
            if ratio > 0.0 && ratio <= 1.0 {
                return Ok(());
            }
            Err(format!("{name} = {ratio}: a share is more than 0 and at most 1"))
        }
        Field::Factor(at, range) => {
            let (factor, least, most) = (*at(config), *range.start(), *range.end());
            if factor >= least as f64 && factor <= most as f64 {
                return Ok(());
            }
            Err(format!("{name} = {factor} is out of its limits: from {least} to {most}"))
        }
        Field::Path(at) => at(config).as_deref().map_or(Ok(()), |path| not_empty(name, path)),
        Field::Url(at) => at(config).as_ref().map_or(Ok(()), |url| check_url(name, url)),
        Field::Name(at) => check_name(name, at(config)),
        Field::OptionalName(at) => at(config).as_ref().map_or(Ok(()), |value| check_name(name, value)),
        Field::Dir(at) | Field::Dirs(at) => at(config).iter().try_for_each(|d| {
            not_empty(name, &d.path)?;
            d.size.map_or(Ok(()), |n| {
                within(&format!("{name}: size of {:?}", d.path), n, &(1..=1 << 60), size::show)
            })
        }),
        Field::Flag(_) | Field::Choice { .. } | Field::Fixed(..) => Ok(()),
    }
}

fn within<S: Display>(
    name: &str,
    value: u64,
    range: &RangeInclusive<u64>,
    show: impl Fn(u64) -> S,
) -> Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    let (least, most) = (show(*range.start()), show(*range.end()));
    Err(format!("{name} = {} is out of its limits: from {least} to {most}", show(value)))
}

fn counted(name: &str, value: u64, range: &RangeInclusive<u64>, unit: &str) -> Result<(), String> {
    within(name, value, range, |n| n).map_err(|e| format!("{e} {unit}").trim_end().to_owned())
}

/// A path without `.` and `..`, as far as its names tell.
fn by_name(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => {
                out.pop();
            }
            // Above the root there is nothing.
            Component::ParentDir if out.has_root() => {}
            part => out.push(part),
        }
    }
    out
}

fn not_empty(name: &str, path: &Path) -> Result<(), String> {
    if path.as_os_str().is_empty() {
        Err(format!("{name}: a path is empty: name a directory"))
    } else {
        Ok(())
    }
}
