//! `get`, `put`, `rm`, `ls`: single items of a store that is there.

use crate::dirs::{left_out_json, left_out_note};
use crate::elsewhere;
use crate::failure::{Failure, NOT_FOUND, OK, Outcome, open_given};
use crate::options::OpenArgs;
use crate::show;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thermocline::{ContentType, Error, Event, PutOptions, Received, Subscription, Tier};
use thermocline_storage::types::MAX_KEY;

/// A key on the command line: its bytes, or hexadecimal digits of them with `--hex`.
fn key_bytes(key: std::ffi::OsString, hex: bool) -> Result<Vec<u8>, Failure> {
    if !hex {
        return Ok(key.into_vec());
    }
    let digits = key.to_str().and_then(show::from_hex);
    digits.ok_or_else(|| {
        Failure::usage(format!(
            "{}: with --hex keys and prefixes are pairs of hexadecimal digits",
            key.display()
        ))
    })
}

/// One key.
#[derive(Debug, Args)]
struct KeyArgs {
    /// The key
    #[arg(value_name = "KEY")]
    key: std::ffi::OsString,
    /// The key is given as hexadecimal digits
    #[arg(long)]
    hex: bool,
}

impl KeyArgs {
    fn bytes(self) -> Result<Vec<u8>, Failure> {
        key_bytes(self.key, self.hex)
    }
}

/// The options of `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    store: OpenArgs,
}

/// Writes one value to stdout, byte for byte.
pub fn get(args: GetArgs, json: bool) -> Outcome {
    let key = args.key.bytes()?;
    let left_out = args.store.left_out();
    let cache = args.store.open()?;
    let events = cache.subscribe();
    let found = cache.get_entry(&key)?;
    cache.close()?;
    let Some(entry) = found else {
        if let Some(why) = damage(&events, &key) {
            let key = show::key(&key);
            return Err(Failure::failed(format!(
                "{key}: its record is damaged and dead from now on, its bytes are in the quarantine: {why}"
            )));
        }
        let mut message = format!("{}: not found", show::key(&key));
        if !left_out.is_empty() {
            message = format!("{message}; {}", left_out_note(&left_out));
        }
        return Err(Failure::new(NOT_FOUND, message));
    };
    if json {
        let mut object = key_json(&key);
        object.insert("content_type".into(), json!(entry.content_type.name()));
        object.insert("tier".into(), json!(entry.tier.name()));
        object.insert("expires_at_ms".into(), json!(entry.expires_at.map(millis)));
        object.insert("version".into(), json!(entry.version));
        object.insert("bytes".into(), json!(entry.value.len()));
        object.insert("directories_left_out".into(), left_out_json(&left_out));
        match std::str::from_utf8(&entry.value) {
            Ok(text) => object.insert("value".into(), json!(text)),
            Err(_) => object.insert("value_hex".into(), json!(show::hex(&entry.value))),
        };
        show::json(&Value::Object(object))?;
    } else {
        let mut out = io::stdout().lock();
        out.write_all(&entry.value)?;
        out.flush()?;
    }
    Ok(OK)
}

/// What was wrong with the record of a key, if reading it put it into the quarantine.
fn damage(events: &Subscription, wanted: &[u8]) -> Option<String> {
    std::iter::from_fn(|| events.try_recv().ok()).find_map(|received| match received {
        // A key that could not be read may be this one: another's record is hardly read in this moment.
        Received::Event(Event::Quarantined { key, why, .. }) if key.as_ref().is_none_or(|k| k == wanted) => {
            Some(why)
        }
        _ => None,
    })
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TypeArg {
    /// Found from the bytes
    Auto,
    Text,
    Json,
    Binary,
    Media,
}

/// The options of `put`.
#[derive(Debug, Args)]
pub struct PutArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// Where the value is; -: stdin
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// What the value is, which decides how it is compressed
    #[arg(long = "type", value_name = "TYPE", default_value = "auto")]
    content_type: TypeArg,
    /// How long it lives: seconds, or a number and ms, s, m, h or d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    ttl: Option<Duration>,
    /// Make the store, or the directories of it that are new
    #[arg(long)]
    create: bool,
    #[command(flatten)]
    store: OpenArgs,
}

/// Puts one value. When it returns, the value is on stable storage.
pub fn put(args: PutArgs, json: bool) -> Outcome {
    let key = args.key.bytes()?;
    if args.ttl.is_some_and(|ttl| ttl.is_zero()) {
        return Err(Failure::usage("--ttl 0: it would never be there: to remove a key is `thermocline rm`"));
    }
    // All that can be refused is, before a directory is made.
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(Error::BadKey { len: key.len() }.into());
    }
    let value = read_value(&args.file, args.store.max_value_size()?)?;
    let len = value.len();
    let cache = if args.create { args.store.create()? } else { args.store.open()? };
    let mut options = PutOptions::new().content_type(match args.content_type {
        TypeArg::Auto => ContentType::Auto,
        TypeArg::Text => ContentType::Text,
        TypeArg::Json => ContentType::Json,
        TypeArg::Binary => ContentType::Binary,
        TypeArg::Media => ContentType::Media,
    });
    if let Some(ttl) = args.ttl {
        options = options.ttl(ttl);
    }
    cache.put_with(&key, value, options)?;
    cache.close()?;
    if json {
        let mut object = key_json(&key);
        object.insert("bytes".into(), json!(len));
        show::json(&Value::Object(object))?;
    }
    Ok(OK)
}

/// The bytes of a file or of stdin, at most one more than the limit: the engine then says that it is too much.
fn read_value(file: &Path, limit: u64) -> Result<Bytes, Failure> {
    let mut value = Vec::new();
    let most = limit.saturating_add(1);
    let read = if file == Path::new("-") {
        io::stdin().lock().take(most).read_to_end(&mut value)
    } else {
        open_given(file)?.take(most).read_to_end(&mut value)
    };
    let file = show::file(file);
    read.map_err(|e| Failure::given("read", file, &e))?;
    if value.len() as u64 > limit {
        return Err(Failure::usage(format!(
            "{}: more than the {} that a value may have: raise storage.max_value_size, or the sizes of the tiers",
            file.display(),
            show::bytes(limit)
        )));
    }
    Ok(value.into())
}

/// `90`, `90s`, `1500ms`, `5m`, `2h`, `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(split).unwrap_or((text, ""));
    let scale = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let ms = number.parse::<u64>().ok().filter(|_| scale > 0).and_then(|n| n.checked_mul(scale));
    ms.map(Duration::from_millis)
        .ok_or_else(|| "a time is a number of seconds, or a number and ms, s, m, h or d, as in 90s".into())
}

/// How `rm` is called: keys or a prefix, which clap has no sign for.
pub const RM_USAGE: &str = "thermocline rm [OPTIONS] <KEY>...\n       thermocline rm [OPTIONS] --prefix <PREFIX>\n       \
     thermocline rm [OPTIONS] --all";

/// The options of `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The keys
    #[arg(value_name = "KEY", required_unless_present_any = ["prefix", "all"])]
    keys: Vec<std::ffi::OsString>,
    /// Remove every key that starts with this
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["keys", "all"])]
    prefix: Option<std::ffi::OsString>,
    /// Remove every key
    #[arg(long, conflicts_with = "keys")]
    all: bool,
    /// Keys, or the prefix, are given as hexadecimal digits
    #[arg(long)]
    hex: bool,
    #[command(flatten)]
    store: OpenArgs,
}

/// Removes keys, or all keys of a prefix.
pub fn rm(args: RmArgs, json: bool) -> Outcome {
    let prefix = args.prefix.map(|prefix| key_bytes(prefix, args.hex)).transpose()?;
    // `--prefix "$P"` with a variable that is not set is not to cost everything.
    if prefix.as_ref().is_some_and(|p| p.is_empty()) {
        return Err(Failure::usage(
            "--prefix: every key starts with nothing: to remove all there are, give --all",
        ));
    }
    if let Some(prefix) = prefix.or_else(|| args.all.then(Vec::new)) {
        let spinner = show::spinner("opening");
        let cache = args.store.open()?;
        spinner.set_message("removing");
        let removed = cache.remove_prefix(&prefix)?;
        cache.close()?;
        spinner.finish_and_clear();
        if json {
            show::json(&json!({ "removed": removed }))?;
        } else {
            show::text(&format!("{} removed\n", show::count(removed)))?;
        }
        return Ok(OK);
    }
    let keys = args.keys.into_iter().map(|k| key_bytes(k, args.hex)).collect::<Result<Vec<_>, _>>()?;
    let cache = args.store.open()?;
    let mut missing = Vec::new();
    for key in &keys {
        if !cache.remove(key)? {
            missing.push(key);
        }
    }
    cache.close()?;
    if json {
        let not_found: Vec<_> = missing.iter().map(|key| key_json(key)).collect();
        show::json(&json!({ "removed": keys.len() - missing.len(), "not_found": not_found }))?;
        return Ok(if missing.is_empty() { OK } else { NOT_FOUND });
    }
    if missing.is_empty() {
        return Ok(OK);
    }
    let names: Vec<String> = missing.iter().map(|key| show::key(key)).collect();
    Err(Failure::new(NOT_FOUND, format!("not found: {}", names.join(", "))))
}

/// The options of `ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only keys that start with this
    #[arg(value_name = "PREFIX", default_value = "")]
    prefix: std::ffi::OsString,
    /// Also tier, content type, size and time to live
    #[arg(long, short)]
    long: bool,
    /// Keys, and the prefix, as hexadecimal digits
    #[arg(long)]
    hex: bool,
    #[command(flatten)]
    store: OpenArgs,
}

/// Lists keys, a line each, in no order. `--json` gives an object a line.
pub fn ls(args: LsArgs, json: bool) -> Outcome {
    let prefix = key_bytes(args.prefix.clone(), args.hex)?;
    let left_out = args.store.left_out();
    let progress = Listing::begin();
    let cache = match args.store.open() {
        Ok(cache) => cache,
        Err(locked) => return ls_elsewhere(&args, json, &prefix, &progress, locked),
    };
    progress.opened();
    let mut lines = Lines::new(&args, json);
    for key in cache.keys(&prefix) {
        let key = key?;
        progress.found();
        // One that is gone by now is no longer in the list.
        let info = if args.long {
            let Some(info) = cache.info(&key)? else { continue };
            Some(Row {
                tier: info.tier,
                content_type: info.content_type,
                len: info.len,
                expires_at: info.expires_at,
                version: info.version,
            })
        } else {
            None
        };
        lines.add(&key, info)?;
    }
    lines.out.flush()?;
    drop(lines);
    cache.close()?;
    progress.end();
    show::note(&left_out_note(&left_out))?;
    Ok(OK)
}

/// The same of a store that another process has open.
fn ls_elsewhere(args: &LsArgs, json: bool, prefix: &[u8], progress: &Listing, locked: Failure) -> Outcome {
    let store = elsewhere::ask(&args.store, locked)?;
    progress.opened();
    let mut lines = Lines::new(args, json);
    let mut written = Ok(());
    let listed = store.list(prefix, |item| {
        progress.found();
        let row = Row {
            tier: item.tier,
            content_type: item.content_type,
            len: item.len,
            expires_at: item.expires_at,
            version: item.version,
        };
        written = lines.add(&item.key, args.long.then_some(row));
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    written?;
    lines.out.flush()?;
    drop(lines);
    progress.end();
    let unread = listed.map_err(elsewhere::unanswered)?;
    if unread > 0 {
        return Err(Failure::failed(format!(
            "the records of {} cannot be read, so that their keys are not known: `thermocline verify` says where they are",
            show::things(unread, "item")
        )));
    }
    show::note(&elsewhere::note(&store, "which gave this list"))?;
    Ok(OK)
}

/// What is known of a key.
struct Row {
    tier: Tier,
    content_type: ContentType,
    len: u64,
    expires_at: Option<SystemTime>,
    version: u64,
}

/// A list on stdout, a line a key.
struct Lines {
    out: BufWriter<io::StdoutLock<'static>>,
    header: bool,
    json: bool,
    hex: bool,
}

impl Lines {
    fn new(args: &LsArgs, json: bool) -> Lines {
        let header = args.long && !json && io::stdout().is_terminal();
        Lines { out: BufWriter::with_capacity(1 << 16, io::stdout().lock()), header, json, hex: args.hex }
    }

    fn add(&mut self, key: &[u8], info: Option<Row>) -> Result<(), Failure> {
        let out = &mut self.out;
        if self.json {
            let mut object = key_json(key);
            if let Some(info) = &info {
                object.insert("tier".into(), json!(info.tier.name()));
                object.insert("content_type".into(), json!(info.content_type.name()));
                object.insert("bytes".into(), json!(info.len));
                object.insert("expires_at_ms".into(), json!(info.expires_at.map(millis)));
                object.insert("version".into(), json!(info.version));
            }
            show::json_line(out, &Value::Object(object))?;
            return Ok(());
        }
        if std::mem::take(&mut self.header) {
            writeln!(out, "{:<6}  {:<6}  {:>10}  {:>8}  key", "tier", "type", "size", "lives")?;
        }
        if let Some(info) = &info {
            let left = info.expires_at.map_or("never".into(), |at| lives(at, SystemTime::now()));
            write!(
                out,
                "{:<6}  {:<6}  {:>10}  {left:>8}  ",
                info.tier.name(),
                info.content_type.name(),
                show::bytes(info.len)
            )?;
        }
        writeln!(out, "{}", if self.hex { show::hex(key) } else { show::key(key) })?;
        Ok(())
    }
}

/// How far a list is, on stderr; nothing where that is no terminal. Where the list itself goes to one, it is seen to
/// grow, and only what comes before its first line is shown.
struct Listing {
    spinner: ProgressBar,
    is_seen: bool,
}

impl Listing {
    fn begin() -> Listing {
        Listing { spinner: show::spinner("opening"), is_seen: io::stdout().is_terminal() }
    }

    fn opened(&self) {
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {human_pos}  {elapsed}") {
            self.spinner.set_style(style);
        }
        self.spinner.set_message("listing");
    }

    fn found(&self) {
        self.spinner.inc(1);
        if self.is_seen && !self.spinner.is_finished() {
            self.end();
        }
    }

    fn end(&self) {
        self.spinner.finish_and_clear();
    }
}

/// How long something that expires still lives.
fn lives(at: SystemTime, now: SystemTime) -> String {
    let s = at.duration_since(now).map_or(0, |left| left.as_secs());
    match s {
        0..=119 => format!("{s} s"),
        120..=7_199 => format!("{} min", s / 60),
        7_200..=172_799 => format!("{} h", s / 3_600),
        _ => format!("{} d", s / 86_400),
    }
}

fn millis(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// A key for programs: `key` if it is text, else `key_hex`.
fn key_json(key: &[u8]) -> Map<String, Value> {
    let (name, text) = match std::str::from_utf8(key) {
        Ok(text) => ("key", text.to_owned()),
        Err(_) => ("key_hex", show::hex(key)),
    };
    Map::from_iter([(name.to_owned(), Value::String(text))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, ms) in [
            ("90", 90_000),
            ("90s", 90_000),
            ("1500ms", 1500),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1", "1w", "1.5s", "99999999999999999999", "18446744073709551615d", "5é"] {
            assert!(duration(text).is_err(), "{text}");
        }
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert_eq!(lives(now + Duration::from_secs(90), now), "90 s");
        assert_eq!(lives(now + Duration::from_secs(7 * 86_400), now), "7 d");
        assert_eq!(lives(now, now + Duration::from_secs(1)), "0 s");
    }
}
