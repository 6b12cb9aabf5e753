//! Configuration as TOML: read with the place of every value, so that an error names its line; written whole.
//!
//! Invariants: what [`Config::to_toml`] writes, [`Config::from_toml`] reads back as the same configuration; an error
//! names the line and column of what is wrong, and, of a name or word, the known one that is nearest to it. Nothing is
//! written here.

use super::settings::{Field, SETTINGS, SHORT, Setting};
use super::validate::check;
use super::{Config, ConfigError, DirConfig, Origin, Source, own_sizes, size};
use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Largest file that is read: a configuration is a few pages.
const MAX_FILE: u64 = 1 << 20;

/// Letters of a name that are looked at: one that is longer is near nothing.
const LONGEST: usize = 64;

/// What is wrong, and at which byte.
struct Wrong {
    message: String,
    at: usize,
}

fn wrong<T>(at: &Range<usize>, message: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { message: message.into(), at: at.start })
}

impl Config {
    /// Reads a file; see [`from_toml`](Self::from_toml).
    ///
    /// ```
    /// use thermocline::Config;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let path = dir.path().join("thermocline.toml");
    /// std::fs::write(&path, "[storage_tiers.memory]\nmax_size = \"64MiB\"\n")?;
    /// assert_eq!(Config::from_file(&path)?.memory.max_size, 64 << 20);
    ///
    /// std::fs::write(&path, "[storage_tiers.memory]\nmax_sise = \"64MiB\"\n")?;
    /// let error = Config::from_file(&path).map(|_| ()).unwrap_err();
    /// assert_eq!(error.at, Some((2, 1))); // line and column
    /// assert!(error.to_string().starts_with(&format!("{}:2:1: ", path.display())));
    /// assert!(error.message.contains("max_size")); // what was meant, it seems
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// It cannot be read, is longer than 1 MiB, is not TOML, or has an unknown name or an impossible value.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Config, ConfigError> {
        let path = path.as_ref();
        let failed = |message: String| ConfigError {
            file: Some(path.to_path_buf()),
            at: None,
            message,
            others: Vec::new(),
        };
        let unread = |e: std::io::Error| {
            failed(match e.kind() {
                ErrorKind::NotFound => "cannot read: it does not exist: check the name".to_owned(),
                ErrorKind::NotADirectory => "cannot read: it lies below a file: check the name".to_owned(),
                ErrorKind::IsADirectory => "cannot read: it is a directory: name a file".to_owned(),
                ErrorKind::PermissionDenied => {
                    "cannot read: permission denied: make it readable, or run this as its owner".to_owned()
                }
                _ => format!("cannot read: {e}"),
            })
        };
        // As much as may be and a byte: what a file says of its length need not be so (a pipe, `/proc`, `/dev`).
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(unread)?;
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unread)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(failed(format!("more than {} are no configuration", size::show(MAX_FILE))));
        }
        let text = String::from_utf8(bytes)
            .map_err(|e| failed(format!("cannot read: {}: save it as UTF-8", e.utf8_error())))?;
        read(&text, Some(path.to_path_buf()))
    }

    /// Reads a configuration; what it does not name keeps its default. Each value is checked by itself; what
    /// settings ask of each other is checked by [`validate`](Self::validate), because options may still
    /// override some.
    ///
    /// ```
    /// use thermocline::{Config, Persistence};
    ///
    /// let config = Config::from_toml(
    ///     r#"
    ///     [storage_tiers.ssd]
    ///     path = "/mnt/nvme/cache"
    ///     max_size = "5GiB"
    ///
    ///     [storage]
    ///     persistence = "always"
    ///     "#,
    /// )?;
    /// assert_eq!(config.ssd.max_size, 5 << 30);
    /// assert_eq!(config.storage.persistence, Persistence::Always);
    /// assert_eq!(config.memory, Config::default().memory); // not named: its default
    ///
    /// let error = Config::from_toml("[storage]\npersistence = \"often\"").unwrap_err();
    /// assert_eq!(error.at.map(|(line, _)| line), Some(2));
    /// assert!(error.message.contains("every_second")); // what would be right
    /// # Ok::<(), thermocline::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// It is not TOML, or has an unknown name or an impossible value: with line, column, and what would be
    /// right.
    pub fn from_toml(text: &str) -> Result<Config, ConfigError> {
        read(text, None)
    }

    /// Writes all settings, with a line on each that says what it does. Those that are absent by default and
    /// not set stand there as comments. The URL of a Redis server is written whole, with its password.
    ///
    /// ```
    /// use thermocline::Config;
    ///
    /// let mut config = Config::default();
    /// config.set_root("/mnt/cache");
    /// let text = config.to_toml()?;
    /// assert!(text.contains("[storage_tiers.hdd]"));
    /// assert_eq!(Config::from_toml(&text)?, config);
    /// # Ok::<(), thermocline::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// A path is not UTF-8, which TOML cannot say.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let mut out = String::new();
        let mut table = "";
        for setting in SETTINGS.iter().filter(|s| !matches!(s.field, Field::Dir(_))) {
            let (of, name) = setting.name.rsplit_once('.').unwrap_or(("", setting.name));
            if of != table {
                let _ = writeln!(out, "{}[{of}]", if table.is_empty() { "" } else { "\n" });
                table = of;
            }
            if let Some(path) = setting.unwritable(self) {
                let message = format!("{}: {path:?} is not UTF-8, which TOML cannot say", setting.name);
                return Err(ConfigError { file: None, at: None, message, others: Vec::new() });
            }
            let _ = match setting.show(self) {
                Some(value) => writeln!(out, "{name} = {value}  # {}", setting.comment()),
                None => writeln!(out, "# {name}:  {}", setting.comment()),
            };
        }
        Ok(out)
    }
}

fn read(text: &str, file: Option<PathBuf>) -> Result<Config, ConfigError> {
    let fail = |message: String, at: usize| ConfigError {
        file: file.clone(),
        at: Some(position(text, at)),
        message,
        others: Vec::new(),
    };
    let all = |wrong: Vec<Wrong>| {
        ConfigError::all(wrong.into_iter().map(|w| fail(w.message, w.at)).collect()).map_or(Ok(()), Err)
    };
    let root = DeTable::parse(text)
        .map_err(|e| fail(e.message().trim_end().to_owned(), e.span().map_or(0, |s| s.start)))?;
    let (mut found, mut wrong) = (Vec::new(), Vec::new());
    walk("", root.get_ref(), &mut found, &mut wrong);
    let mut config = Config::default();
    wrong.extend(found.iter().filter_map(|(setting, value)| setting.read(&mut config, value).err()));
    all(wrong)?;
    // When all is read: what a size has to be at least, others say.
    let beyond = found.iter().filter_map(|(setting, value)| {
        let message = check(setting, &mut config).err()?;
        Some(Wrong { message, at: value.span().start })
    });
    all(beyond.collect())?;
    let given = |name: &str| found.iter().any(|(s, _)| s.name == name);
    fill_in(&mut config, given);
    let read =
        found.iter().filter_map(|(s, v)| Some((s.name, s.show(&config)?, position(text, v.span().start))));
    config.origin = Origin(Some(Arc::new(Source { read: read.collect(), file: file.clone() })));
    Ok(config)
}

/// A tier whose directories all have sizes of their own is as large as they are, unless it says otherwise.
fn fill_in(config: &mut Config, given: impl Fn(&str) -> bool) {
    let all_sized = |dirs: &[DirConfig]| !dirs.is_empty() && dirs.iter().all(|d| d.size.is_some());
    if all_sized(&config.ssd.dirs) && !given("storage_tiers.ssd.max_size") {
        config.ssd.max_size = own_sizes(&config.ssd.dirs);
    }
    if all_sized(&config.hdd.dirs) && !given("storage_tiers.hdd.max_size") {
        config.hdd.max_size = own_sizes(&config.hdd.dirs);
    }
}

/// Line and column of a byte, from 1; columns count characters.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
    (line, before.get(line_start..).unwrap_or_default().chars().count() + 1)
}

type Found<'t, 'i> = Vec<(&'static Setting, &'t Spanned<DeValue<'i>>)>;

/// Finds the setting of every value of a table; a name that is none is wrong.
fn walk<'t, 'i>(prefix: &str, table: &'t DeTable<'i>, found: &mut Found<'t, 'i>, wrong: &mut Vec<Wrong>) {
    for (key, value) in table {
        let name = key.get_ref();
        let full = if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") };
        if let Some(setting) = SETTINGS.iter().find(|s| s.name == full) {
            found.push((setting, value));
            continue;
        }
        if let Some(setting) = SHORT.iter().find(|s| s.name == full && !value.get_ref().is_table()) {
            found.push((setting, value));
            continue;
        }
        let below = format!("{full}.");
        if !SETTINGS.iter().any(|s| s.name.starts_with(&below)) {
            let message = unknown(prefix, name, value.get_ref().is_table());
            wrong.push(Wrong { message, at: key.span().start });
            continue;
        }
        match value.get_ref() {
            DeValue::Table(inner) => walk(&full, inner, found, wrong),
            other => {
                let message = format!("`{full}` is a table, not {}: write [{full}]", a_type(other));
                wrong.push(Wrong { message, at: value.span().start });
            }
        }
    }
}

/// Says that a name is unknown, and what may have been meant.
fn unknown(prefix: &str, name: &str, is_table: bool) -> String {
    let mut known: Vec<&str> = Vec::new();
    for setting in SETTINGS {
        let rest = if prefix.is_empty() {
            Some(setting.name)
        } else {
            setting.name.strip_prefix(prefix).and_then(|r| r.strip_prefix('.'))
        };
        if let Some(next) = rest.and_then(|r| r.split('.').next())
            && !known.contains(&next)
        {
            known.push(next);
        }
    }
    let here = if prefix.is_empty() { "at the top".to_owned() } else { format!("in [{prefix}]") };
    let what = if is_table { "table" } else { "setting" };
    let mut text = format!("unknown {what} `{name}` {here}");
    let elsewhere: Vec<&str> =
        SETTINGS.iter().filter(|s| s.name.rsplit('.').next() == Some(name)).map(|s| s.name).collect();
    if !elsewhere.is_empty() && elsewhere.len() <= 3 {
        let _ = write!(text, "; there is {}", quoted(&elsewhere));
    }
    let near = nearest(name, &known);
    if near.is_empty() {
        let _ = write!(text, "; known here: {}", quoted(&known));
    } else {
        let _ = write!(text, "; did you mean {}?", quoted(&near));
    }
    text
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

/// The closest known names, at most three, none further than a third of the letters.
fn nearest<'n>(name: &str, known: &[&'n str]) -> Vec<&'n str> {
    let limit = name.chars().count().min(LONGEST) / 3 + 1;
    let mut near: Vec<_> =
        known.iter().map(|k| (distance(name, k), *k)).filter(|(d, _)| *d <= limit).collect();
    near.sort_unstable();
    near.into_iter().take(3).map(|(_, k)| k).collect()
}

/// Edits that make one word of the other: insert, delete, replace, swap neighbours (optimal string alignment:
/// Damerau 1964, Levenshtein 1966).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(LONGEST).collect();
    let b: Vec<char> = b.chars().collect();
    let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX / 2);
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut d = (at(&above, j) + usize::from(x != y)).min(at(&above, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                d = d.min(at(&before, j - 1) + 1);
            }
            row.push(d);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(0)
}

fn a_type(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A value with its place and the name of its setting.
struct Given<'a, 'i> {
    name: &'a str,
    value: &'a Spanned<DeValue<'i>>,
}

impl Given<'_, '_> {
    fn not<T>(&self, wanted: &str) -> Result<T, Wrong> {
        let message = format!("{} takes {wanted}, not {}", self.name, a_type(self.value.get_ref()));
        wrong(&self.value.span(), message)
    }

    fn size(&self) -> Result<u64, Wrong> {
        let failed =
            |e: String| Wrong { message: format!("{}: {e}", self.name), at: self.value.span().start };
        match self.value.get_ref() {
            DeValue::String(s) => size::parse(s).map_err(failed),
            DeValue::Integer(i) => u64::from_str_radix(i.as_str(), i.radix())
                .map_err(|_| failed(format!("{} is not a number of bytes", i.as_str()))),
            _ => self.not("a size, as in \"512MiB\""),
        }
    }

    fn count(&self, range: &std::ops::RangeInclusive<u64>, unit: &str) -> Result<u64, Wrong> {
        match self.value.get_ref() {
            DeValue::Integer(i) => u64::from_str_radix(i.as_str(), i.radix()).or_else(|_| {
                let (least, most) = (range.start(), range.end());
                let message = format!("{} = {}: from {least} to {most} {unit}", self.name, i.as_str());
                wrong(&self.value.span(), message.trim_end())
            }),
            _ if unit.is_empty() => self.not("a whole number"),
            _ => self.not(&format!("a whole number ({unit})")),
        }
    }

    fn ratio(&self) -> Result<f64, Wrong> {
        let text = match self.value.get_ref() {
            DeValue::Float(f) => f.as_str(),
            DeValue::Integer(i) if i.radix() == 10 => i.as_str(),
            _ => return self.not("a share between 0 and 1, as in 0.8"),
        };
        match text.parse() {
            Ok(ratio) => Ok(ratio),
            Err(_) => self.not("a share between 0 and 1, as in 0.8"),
        }
    }

    fn factor(&self) -> Result<f64, Wrong> {
        let number = match self.value.get_ref() {
            DeValue::Float(f) => f.as_str().parse().ok(),
            DeValue::Integer(i) if i.radix() == 10 => i.as_str().parse().ok(),
            _ => None,
        };
        number.map_or_else(|| self.not("a number, as in 1.5"), Ok)
    }

    fn text(&self, wanted: &str) -> Result<&str, Wrong> {
        match self.value.get_ref() {
            DeValue::String(s) => Ok(s),
            _ => self.not(wanted),
        }
    }

    /// A path, or where sizes are allowed a table of path and size.
    fn dir(&self) -> Result<DirConfig, Wrong> {
        let DeValue::Table(table) = self.value.get_ref() else {
            let path = PathBuf::from(self.text("a path, or { path = \"…\", size = \"…\" }")?);
            return Ok(DirConfig { path, size: None });
        };
        let (mut path, mut own) = (None, None);
        for (key, value) in table {
            let given = Given { name: self.name, value };
            match key.get_ref().as_ref() {
                "path" => path = Some(PathBuf::from(given.text("a path")?)),
                "size" => own = Some(given.size()?),
                other => {
                    let message =
                        format!("unknown setting `{other}` of a directory; known here: `path`, `size`");
                    return wrong(&key.span(), message);
                }
            }
        }
        match path {
            Some(path) => Ok(DirConfig { path, size: own }),
            None => wrong(&self.value.span(), format!("{}: a directory needs a `path`", self.name)),
        }
    }
}

impl Setting {
    /// Takes a value over into the configuration.
    fn read(&self, config: &mut Config, value: &Spanned<DeValue<'_>>) -> Result<(), Wrong> {
        let given = Given { name: self.name, value };
        let is_auto = matches!(value.get_ref(), DeValue::String(s) if s == "auto");
        match &self.field {
            Field::Size(at, _) => *at(config) = given.size()?,
            Field::AutoSize(at, _) if is_auto => *at(config) = None,
            Field::AutoSize(at, _) | Field::OptionalSize(at, _) => *at(config) = Some(given.size()?),
            Field::Count(at, range, unit) => *at(config) = given.count(range, unit)?,
            Field::OptionalCount(at, range, unit) => *at(config) = Some(given.count(range, unit)?),
            Field::Ratio(at) => *at(config) = given.ratio()?,
            Field::Factor(at, _) => *at(config) = given.factor()?,
            Field::Flag(at) => match value.get_ref() {
                DeValue::Boolean(b) => *at(config) = *b,
                _ => return given.not("true or false"),
            },
            Field::Choice { words, set, .. } => {
                let one_of = format!("one of {}", words.map_quoted());
                let word = given.text(&one_of)?;
                match words.iter().position(|w| *w == word) {
                    Some(n) => set(config, n),
                    None => {
                        let message = format!("{} = {word:?}: write {one_of}", self.name);
                        return wrong(&value.span(), message);
                    }
                }
            }
            Field::Path(at) => *at(config) = Some(PathBuf::from(given.text("a path")?)),
            Field::Url(at) => {
                *at(config) = Some(given.text("a URL, as in \"redis://127.0.0.1:6379/15\"")?.into())
            }
            Field::Name(at) => given.text("a word")?.clone_into(at(config)),
            Field::OptionalName(at) => *at(config) = Some(given.text("a word")?.to_owned()),
            Field::Dir(at) | Field::Dirs(at) if !at(config).is_empty() => {
                let message = format!("{}: both `path` and `paths` are given: write one of them", self.name);
                return wrong(&value.span(), message);
            }
            Field::Dir(at) => {
                let path = PathBuf::from(given.text("a path; for several write `paths`")?);
                at(config).push(DirConfig { path, size: None });
            }
            Field::Dirs(at) => match value.get_ref() {
                DeValue::Array(list) if list.is_empty() => {
                    let message = format!(
                        "{}: the list is empty: name a directory, or leave the setting out",
                        self.name
                    );
                    return wrong(&value.span(), message);
                }
                DeValue::Array(list) => {
                    for value in list {
                        at(config).push(Given { name: self.name, value }.dir()?);
                    }
                }
                _ => return given.not("a list of paths; for one write `path`"),
            },
            Field::Fixed(right, why) => {
                let is_right = match value.get_ref() {
                    DeValue::Boolean(b) => b.to_string() == *right,
                    DeValue::Integer(i) => i.radix() == 10 && i.as_str() == *right,
                    _ => false,
                };
                if !is_right {
                    return wrong(&value.span(), format!("{} must be {right}: {why}", self.name));
                }
            }
        }
        Ok(())
    }

    /// The value as TOML; `None` if it is absent.
    pub(super) fn show(&self, config: &Config) -> Option<String> {
        let mut copy = config.clone();
        let c = &mut copy;
        Some(match &self.field {
            Field::Size(at, _) => show_size(*at(c)),
            Field::AutoSize(at, _) => at(c).map_or_else(|| quote("auto"), show_size),
            Field::OptionalSize(at, _) => show_size((*at(c))?),
            Field::Count(at, ..) => at(c).to_string(),
            Field::OptionalCount(at, ..) => (*at(c))?.to_string(),
            Field::Ratio(at) | Field::Factor(at, _) => format!("{:?}", *at(c)),
            Field::Flag(at) => at(c).to_string(),
            Field::Choice { words, get, .. } => quote(words.get(get(c)).copied().unwrap_or_default()),
            Field::Path(at) => quote(&at(c).as_ref()?.to_string_lossy()),
            Field::Url(at) => quote(at(c).as_ref()?.expose()),
            Field::Name(at) => quote(at(c)),
            Field::OptionalName(at) => quote(at(c).as_ref()?),
            Field::Dir(at) => quote(&at(c).first()?.path.to_string_lossy()),
            Field::Dirs(at) if at(c).is_empty() => return None,
            Field::Dirs(at) => {
                let dirs: Vec<String> = at(c).iter().map(show_dir).collect();
                format!("[{}]", dirs.join(", "))
            }
            Field::Fixed(right, _) => (*right).to_owned(),
        })
    }

    /// What it does, with the words to choose from, or the unit of a number if the line does not name it.
    fn comment(&self) -> String {
        match &self.field {
            Field::Choice { words, .. } => format!("{}: {}", words.map_quoted(), self.does),
            Field::Count(_, _, unit) | Field::OptionalCount(_, _, unit) if !self.does.contains(unit) => {
                format!("{unit}: {}", self.does)
            }
            _ => self.does.to_owned(),
        }
    }

    /// A path of it that TOML cannot say.
    fn unwritable(&self, config: &Config) -> Option<PathBuf> {
        let mut copy = config.clone();
        let paths: Vec<PathBuf> = match &self.field {
            Field::Path(at) => at(&mut copy).iter().cloned().collect(),
            Field::Dirs(at) => at(&mut copy).iter().map(|d| d.path.clone()).collect(),
            _ => return None,
        };
        paths.into_iter().find(|p| p.to_str().is_none())
    }
}

trait Words {
    fn map_quoted(&self) -> String;
}

impl Words for &[&str] {
    fn map_quoted(&self) -> String {
        self.iter().map(|w| quote(w)).collect::<Vec<_>>().join(", ")
    }
}

fn show_size(bytes: u64) -> String {
    let text = size::show(bytes);
    if text.bytes().all(|b| b.is_ascii_digit()) && i64::try_from(bytes).is_ok() { text } else { quote(&text) }
}

fn show_dir(dir: &DirConfig) -> String {
    let path = quote(&dir.path.to_string_lossy());
    match dir.size {
        None => path,
        Some(size) => format!("{{ path = {path}, size = {} }}", show_size(size)),
    }
}

/// A TOML string.
fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_of_words() {
        for (a, b, d) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("ssd", "sdd", 1),
            ("pahts", "paths", 1),
            ("kitten", "sitting", 3),
            ("level", "level", 0),
            ("ab", "ba", 1),
            ("\u{fc}ni", "uni", 1),
        ] {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
        assert_eq!(nearest("pahts", &["paths", "path", "priority"]), ["paths", "path"]);
    }
}
