//! The record that says whose a directory is: its text form, and its two copies on disk.
//!
//! One form serves both places. A directory of the store has it as `store.a` and `store.b`, where `this` names
//! the directory; the catalog has it as `a/manifest` and `b/manifest`, where `this` is `-`. Every copy carries
//! the whole roster, so that any one that survives says what belongs to the store.
//!
//! Whatever the version of the format, the first line is the magic and the version, and the line `checksum`
//! covers all bytes before it. Behind it stand spaces up to a multiple of 4096 bytes: a copy can then be
//! written again in place when the disk has no block free for a new file.
//!
//! Crash: a copy is replaced by a rename, so each is the old one or the new one. Only when the disk is full is
//! it overwritten in place; the copy that may tear is then the one that is not needed, because the other is
//! whole and synced ([`Pair::first`]).

use crate::error::{Error, IoContext, Result};
use crate::types::Tier;
use crate::vfs::{self, OpenMode, Vfs};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_64;

/// The newest format that is known here, and the one that is written.
pub(super) const FORMAT: u32 = 1;
const MAGIC: &str = "thermocline-store";
const CHECKSUM: &str = "checksum ";
/// A copy is padded to a multiple of this many bytes.
const BLOCK: usize = 4096;
/// Longest file that is read as a record: 1000 directories with the longest paths there are.
pub(super) const MAX_BYTES: u64 = 16 << 20;

/// Whether the catalog beside a manifest can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CatalogState {
    /// The store is being made: no catalog was ever whole, nothing was acknowledged.
    New,
    /// Whole.
    Ready,
    /// It was lost, and the rebuilding that was asked for has not ended.
    Rebuilding,
}

impl CatalogState {
    const ALL: [(CatalogState, &'static str); 3] = [
        (CatalogState::New, "new"),
        (CatalogState::Ready, "ready"),
        (CatalogState::Rebuilding, "rebuilding"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(s, _)| *s == self).map_or("ready", |(_, n)| n)
    }
}

/// Where the catalog is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CatalogAt {
    /// The directory of the store that it lies in, and the way from there; `None`: elsewhere.
    pub inside: Option<(u16, PathBuf)>,
    /// The whole path when this was written.
    pub path: PathBuf,
}

/// A directory as the roster knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Its number in the store, never reused.
    pub no: u16,
    /// The tier it serves.
    pub tier: Tier,
    /// Its own random id.
    pub id: [u8; 16],
    /// The open counter that it is known to have on stable storage; 0: its identity was never seen written.
    pub epoch: u64,
    /// Where it was last.
    pub path: PathBuf,
}

/// One record.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Raised by every round of writing: of two copies, the higher is the newer.
    pub edition: u64,
    /// The store's id.
    pub store: [u8; 16],
    /// The secret of the store's hash.
    pub secret: [u8; 16],
    /// The open counter under which this was written: of a directory, its epoch.
    pub counter: u64,
    /// See [`CatalogState`]; means something in a manifest only.
    pub state: CatalogState,
    /// The catalog was rebuilt under this counter and did not see all that may be there; 0: it did, or was not.
    pub unseen: u64,
    /// Where the catalog is.
    pub catalog: CatalogAt,
    /// The number of the directory that this is the identity of; `None` in a manifest.
    pub this: Option<u16>,
    /// The roster.
    pub dirs: Vec<Member>,
    /// Numbers of directories that were discarded.
    pub discarded: Vec<u16>,
}

impl Record {
    /// The member with this number.
    pub fn member(&self, no: u16) -> Option<&Member> {
        self.dirs.iter().find(|m| m.no == no)
    }

    /// The roster's entry of the directory that this is the identity of.
    pub fn own(&self) -> Option<&Member> {
        self.this.and_then(|no| self.member(no))
    }

    /// The bytes of a copy.
    pub fn encode(&self) -> Vec<u8> {
        let mut t = format!("{MAGIC} {FORMAT}\n");
        let number = |n: Option<u16>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let _ = writeln!(t, "edition {}", self.edition);
        let _ = writeln!(t, "store {}", hex(&self.store));
        let _ = writeln!(t, "secret {}", hex(&self.secret));
        let _ = writeln!(t, "counter {}", self.counter);
        let _ = writeln!(t, "state {}", self.state.name());
        let _ = writeln!(t, "this {}", number(self.this));
        let _ = writeln!(t, "catalog {}", escape(&self.catalog.path));
        if let Some((no, way)) = &self.catalog.inside {
            let _ = writeln!(t, "catalog-in {no} {}", escape(way));
        }
        for m in &self.dirs {
            let _ = writeln!(t, "dir {} {} {} {} {}", m.no, m.tier, hex(&m.id), m.epoch, escape(&m.path));
        }
        for no in &self.discarded {
            let _ = writeln!(t, "discarded {no}");
        }
        if self.unseen > 0 {
            let _ = writeln!(t, "unseen {}", self.unseen);
        }
        let sum = XxHash3_64::oneshot(t.as_bytes());
        let _ = writeln!(t, "{CHECKSUM}{sum:016x}");
        let mut bytes = t.into_bytes();
        pad(&mut bytes, BLOCK);
        bytes
    }

    /// Reads a copy; the outer error is a newer format, the inner says what is damaged.
    pub fn decode(bytes: &[u8]) -> Result<Result<Record, String>, u32> {
        let covered = match verified(bytes) {
            Ok(text) => text,
            Err(why) => return Ok(Err(why)),
        };
        let (first, rest) = covered.split_once('\n').unwrap_or((covered, ""));
        let version = first
            .split_once(' ')
            .filter(|(magic, _)| *magic == MAGIC)
            .and_then(|(_, version)| version.parse::<u32>().ok());
        match version {
            Some(FORMAT) => Ok(parse(rest)),
            Some(newer) if newer > FORMAT => Err(newer),
            _ => Ok(Err("its first line is not that of a store's identity".to_owned())),
        }
    }
}

/// The text that the checksum covers, once it is verified.
fn verified(bytes: &[u8]) -> Result<&str, String> {
    let mark = format!("\n{CHECKSUM}");
    let text = std::str::from_utf8(bytes).map_err(|e| format!("byte {} is not text", e.valid_up_to()))?;
    // There is one such line, as a path has no line's end in it. Behind it most of a record is padding, which a search
    // from the end would go through.
    let (covered, _) = text.split_once(&mark).ok_or("it has no checksum")?;
    let tail = text.get(covered.len() + mark.len()..).unwrap_or_default();
    let (digits, padding) = tail.split_once('\n').ok_or("its end is missing")?;
    if !is_blank(padding.as_bytes()) {
        return Err("there is something behind its checksum".to_owned());
    }
    // The newline before `checksum` is covered too.
    let covered = bytes.get(..=covered.len()).unwrap_or_default();
    if u64::from_str_radix(digits, 16).ok() != Some(XxHash3_64::oneshot(covered)) {
        return Err("its checksum is wrong".to_owned());
    }
    std::str::from_utf8(covered).map_err(|e| e.to_string())
}

/// Whether these are blanks and line ends alone. Nearly all of it are blanks: whole pieces are compared.
fn is_blank(padding: &[u8]) -> bool {
    const BLANKS: [u8; 256] = [b' '; 256];
    let blank = |b: &u8| matches!(b, b' ' | b'\n');
    padding.chunks(BLANKS.len()).all(|piece| BLANKS.starts_with(piece) || piece.iter().all(blank))
}

fn parse(text: &str) -> Result<Record, String> {
    let mut lines = Lines { lines: text.lines() };
    let edition = lines.number("edition")?;
    let store = lines.id("store")?;
    let secret = lines.id("secret")?;
    let counter = lines.number("counter")?;
    let state = lines.value("state")?;
    let state = CatalogState::ALL
        .iter()
        .find(|(_, n)| *n == state)
        .map(|(s, _)| *s)
        .ok_or_else(|| format!("unknown state {state:?}"))?;
    let this = match lines.value("this")? {
        "-" => None,
        n => Some(n.parse().map_err(|_| format!("directory number {n:?}"))?),
    };
    let path = unescape(lines.value("catalog")?)?;
    let mut record = Record {
        edition,
        store,
        secret,
        counter,
        state,
        unseen: 0,
        catalog: CatalogAt { inside: None, path },
        this,
        dirs: Vec::new(),
        discarded: Vec::new(),
    };
    for line in lines.lines {
        let bad = || format!("line {line:?}");
        match line.split_once(' ') {
            Some(("catalog-in", v)) => {
                let (no, way) = v.split_once(' ').ok_or_else(bad)?;
                record.catalog.inside = Some((no.parse().map_err(|_| bad())?, unescape(way)?));
            }
            Some(("dir", v)) => record.dirs.push(member(v)?),
            Some(("unseen", v)) => record.unseen = v.parse().map_err(|_| bad())?,
            Some(("discarded", v)) => record.discarded.push(v.parse().map_err(|_| bad())?),
            _ => return Err(bad()),
        }
    }
    check(&record)?;
    Ok(record)
}

/// What a record that was written by this code always has.
fn check(record: &Record) -> Result<(), String> {
    let mut numbers: Vec<u16> = record.dirs.iter().map(|m| m.no).collect();
    numbers.extend(&record.discarded);
    numbers.sort_unstable();
    if let Some(twice) = numbers.windows(2).find(|w| w.first() == w.get(1)) {
        return Err(format!("directory numbers {twice:?} are one"));
    }
    if record.this.is_some() && record.own().is_none() {
        return Err("the directory is not in its own roster".to_owned());
    }
    Ok(())
}

fn member(line: &str) -> Result<Member, String> {
    let bad = || format!("directory {line:?}");
    let mut parts = line.splitn(5, ' ');
    let mut next = || parts.next().ok_or_else(bad);
    let no = next()?.parse().map_err(|_| bad())?;
    let tier = next()?;
    let tier = Tier::DISK.into_iter().find(|t| t.name() == tier).ok_or_else(bad)?;
    let id = unhex(next()?).ok_or_else(bad)?;
    let epoch = next()?.parse().map_err(|_| bad())?;
    let path = unescape(next()?)?;
    Ok(Member { no, tier, id, epoch, path })
}

struct Lines<'a> {
    lines: std::str::Lines<'a>,
}

impl<'a> Lines<'a> {
    fn value(&mut self, name: &str) -> Result<&'a str, String> {
        self.lines
            .next()
            .and_then(|l| l.strip_prefix(name))
            .and_then(|l| l.strip_prefix(' '))
            .ok_or_else(|| format!("the line {name:?} is missing"))
    }

    fn number(&mut self, name: &str) -> Result<u64, String> {
        self.value(name)?.parse().map_err(|_| format!("{name} is not a number"))
    }

    fn id(&mut self, name: &str) -> Result<[u8; 16], String> {
        unhex(self.value(name)?).ok_or_else(|| format!("{name} is not 32 hexadecimal digits"))
    }
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|b| [b >> 4, b & 15]);
    digits.filter_map(|d| char::from_digit(u32::from(d), 16)).collect()
}

fn unhex(digits: &str) -> Option<[u8; 16]> {
    if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    Some(u128::from_str_radix(digits, 16).ok()?.to_be_bytes())
}

/// A path as text on one line: `%`, control characters and bytes that are not UTF-8 become `%XX`.
fn escape(path: &Path) -> String {
    let mut out = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '%' || c.is_control() {
                let mut buf = [0; 4];
                for b in c.encode_utf8(&mut buf).bytes() {
                    let _ = write!(out, "%{b:02X}");
                }
            } else {
                out.push(c);
            }
        }
        for b in chunk.invalid() {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

fn unescape(text: &str) -> Result<PathBuf, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(b) = rest.next() {
        if b != b'%' {
            bytes.push(b);
            continue;
        }
        let mut digit = || rest.next().and_then(|d| char::from(d).to_digit(16));
        match (digit(), digit()) {
            (Some(h), Some(l)) => bytes.extend(u8::try_from(h * 16 + l)),
            _ => return Err(format!("path {text:?}")),
        }
    }
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

fn pad(bytes: &mut Vec<u8>, to_multiple_of: usize) {
    let len = bytes.len().next_multiple_of(to_multiple_of);
    bytes.resize(len.saturating_sub(1), b' ');
    bytes.push(b'\n');
}

/// The two copies of a record, as they were found.
#[derive(Clone)]
pub(super) struct Pair {
    /// The newer of the copies that are whole.
    pub best: Option<Record>,
    /// Which copy is to be written first: the one that is not `best`.
    pub first: usize,
    /// Whether there is a file at all.
    pub exists: bool,
    /// What is wrong, if a copy is damaged or missing while something is there.
    pub damage: Option<String>,
}

/// Paths of the two copies in a directory of the store.
pub(super) fn identity_paths(dir: &Path) -> [PathBuf; 2] {
    [dir.join("store.a"), dir.join("store.b")]
}

/// Paths of the two copies in the catalog.
pub(super) fn manifest_paths(catalog: &Path) -> [PathBuf; 2] {
    [catalog.join("a").join("manifest"), catalog.join("b").join("manifest")]
}

/// Reads both copies. Damage and unreadable sectors are told in the result; a newer format and a refused
/// permission are errors. In a directory, a copy that does not say which directory it is counts as damaged.
pub(super) fn read_pair(vfs: &dyn Vfs, paths: &[PathBuf; 2], is_identity: bool) -> Result<Pair> {
    let mut pair = Pair { best: None, first: 0, exists: false, damage: None };
    let mut absent = None;
    for (i, path) in paths.iter().enumerate() {
        let found = match vfs::read_small(vfs, path, MAX_BYTES) {
            Ok(bytes) => match Record::decode(&bytes) {
                Ok(Ok(r)) if r.this.is_some() != is_identity => {
                    Err("it is an identity where a manifest belongs, or the reverse".to_owned())
                }
                Ok(found) => found,
                Err(found) => {
                    return Err(Error::NewerFormat { path: path.clone(), found, supported: FORMAT });
                }
            },
            Err(e) if is_absent(&e) => {
                absent = Some(format!("{} is missing", path.display()));
                continue;
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(refused("read", path, e)),
            Err(e) => Err(e.to_string()),
        };
        pair.exists = true;
        match found {
            Ok(r) if pair.best.as_ref().is_none_or(|b| b.edition < r.edition) => {
                pair.first = 1 - i;
                pair.best = Some(r);
            }
            Ok(_) => {}
            Err(why) => pair.damage = Some(format!("{}: {why}", path.display())),
        }
    }
    if pair.exists && pair.damage.is_none() {
        pair.damage = absent;
    }
    Ok(pair)
}

/// Writes both copies, the one that is not needed first. On an error at least one copy is whole.
pub(super) fn write_pair(vfs: &dyn Vfs, paths: &[PathBuf; 2], first: usize, record: &Record) -> Result<()> {
    let bytes = record.encode();
    let order = if first == 0 { [0, 1] } else { [1, 0] };
    for path in order.iter().filter_map(|i| paths.get(*i)) {
        match vfs::replace_small(vfs, path, &bytes) {
            Ok(()) => {}
            Err(e) if Error::io("replace", path, io::Error::from(e.kind())).is_no_space() => {
                overwrite(vfs, path, &bytes, e)?;
            }
            Err(e) => return Err(refused("replace", path, e)),
        }
    }
    Ok(())
}

/// The disk is full: writes over the blocks that the copy has. Only if it is there, and long enough.
fn overwrite(vfs: &dyn Vfs, path: &Path, bytes: &[u8], full: io::Error) -> Result<()> {
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(".tmp");
    let _ = vfs.remove_file(Path::new(&tmp));
    let Ok(file) = vfs.open(path, OpenMode::ReadWrite) else { return Err(Error::io("replace", path, full)) };
    let len = usize::try_from(file.len().at("measure", path)?).unwrap_or(0);
    if len < bytes.len() || len as u64 > MAX_BYTES {
        return Err(Error::io("replace", path, full));
    }
    let mut padded = bytes.to_vec();
    if len > padded.len() {
        pad(&mut padded, len);
    }
    file.write_all_at(&padded, 0).at("write", path)?;
    file.sync().at("sync", path)
}

/// There is no such file, or no directory for it.
pub(super) fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// An I/O error that says the cure where there is one.
pub(super) fn refused(op: &'static str, path: &Path, e: io::Error) -> Error {
    let cure = match e.kind() {
        io::ErrorKind::PermissionDenied => {
            "give the user who runs this program permission to read, write and search the directory \
             (chown or chmod; chattr -i, if it is immutable)"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "mount the file system for writing (a check, as by `thermocline verify`, needs none)"
        }
        // All directories above are made too: what says so has no room for any, as `/proc`.
        io::ErrorKind::NotFound if op == "create" => "no directory can be made there: name one on a disk",
        _ => return Error::io(op, path, e),
    };
    let text = format!("{e}: {cure}");
    Error::io(op, path, io::Error::new(e.kind(), text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::RealFs;
    use proptest::prelude::*;

    fn sample(path: PathBuf) -> Record {
        Record {
            edition: 7,
            store: [1; 16],
            secret: [2; 16],
            counter: 3,
            state: CatalogState::Ready,
            unseen: 2,
            catalog: CatalogAt { inside: Some((0, PathBuf::from("catalog"))), path: path.join("catalog") },
            this: Some(0),
            dirs: vec![Member { no: 0, tier: Tier::Ssd, id: [3; 16], epoch: 3, path }],
            discarded: vec![4, 9],
        }
    }

    proptest! {
        #[test]
        fn any_path_survives(bytes in proptest::collection::vec(1u8.., 0..40)) {
            let record = sample(PathBuf::from(OsString::from_vec(bytes)));
            let read = Record::decode(&record.encode());
            prop_assert!(matches!(read, Ok(Ok(r)) if r == record));
        }

        #[test]
        fn no_change_of_a_byte_goes_unseen(at in 0usize..400, to in any::<u8>()) {
            let record = sample(PathBuf::from("/mnt/a b"));
            let mut bytes = record.encode();
            let text_len = bytes.iter().position(|b| bytes.len() > 4000 && *b == b' ').map_or(0, |_| {
                String::from_utf8_lossy(&bytes).trim_end().len()
            });
            prop_assume!(at < text_len && bytes[at] != to);
            // A checksum's digit may change its case without changing its number.
            prop_assume!(!bytes[at].eq_ignore_ascii_case(&to));
            bytes[at] = to;
            prop_assert!(matches!(Record::decode(&bytes), Ok(Err(_))));
        }

        #[test]
        fn rubbish_is_never_a_record(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(matches!(Record::decode(&bytes), Ok(Err(_))));
        }
    }

    #[test]
    fn a_newer_format_is_told_apart_from_damage() {
        let sealed = |t: &str| format!("{t}checksum {:016x}\n", XxHash3_64::oneshot(t.as_bytes()));
        let newer = sealed("thermocline-store 2\nwhatever\n");
        assert!(matches!(Record::decode(newer.as_bytes()), Err(2)));
        let flipped = newer.replace("store 2", "store 3");
        assert!(matches!(Record::decode(flipped.as_bytes()), Ok(Err(_))), "a flipped digit is damage");
        let dir = tempfile::tempdir().unwrap();
        let paths = identity_paths(dir.path());
        std::fs::write(&paths[1], &newer).unwrap();
        assert!(matches!(
            read_pair(&RealFs, &paths, true),
            Err(Error::NewerFormat { found: 2, supported: FORMAT, .. })
        ));
    }

    #[test]
    fn the_newer_whole_copy_wins_and_the_other_is_written_first() {
        let dir = tempfile::tempdir().unwrap();
        let paths = identity_paths(dir.path());
        let record = sample(dir.path().to_path_buf());
        write_pair(&RealFs, &paths, 0, &record).unwrap();
        let newer = Record { edition: 8, ..record.clone() };
        vfs::replace_small(&RealFs, &paths[1], &newer.encode()).unwrap();
        let pair = read_pair(&RealFs, &paths, true).unwrap();
        assert!(pair.best == Some(newer) && pair.first == 0 && pair.damage.is_none());
        let newest = Record { edition: 9, ..record.clone() };
        vfs::replace_small(&RealFs, &paths[0], &newest.encode()).unwrap();
        let pair = read_pair(&RealFs, &paths, true).unwrap();
        assert!(pair.best == Some(newest) && pair.first == 1);
        vfs::replace_small(&RealFs, &paths[0], &record.encode()).unwrap();
        std::fs::write(&paths[1], b"torn").unwrap();
        let pair = read_pair(&RealFs, &paths, true).unwrap();
        assert!(pair.best == Some(record) && pair.first == 1);
        assert!(pair.damage.unwrap().contains("store.b"));
    }

    #[test]
    fn a_manifest_is_no_identity() {
        let dir = tempfile::tempdir().unwrap();
        let paths = identity_paths(dir.path());
        let record = Record { this: None, ..sample(dir.path().to_path_buf()) };
        write_pair(&RealFs, &paths, 0, &record).unwrap();
        let pair = read_pair(&RealFs, &paths, true).unwrap();
        assert!(pair.exists && pair.best.is_none());
        assert!(read_pair(&RealFs, &paths, false).unwrap().best.is_some());
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let paths = identity_paths(dir.path());
        let elsewhere = dir.path().join("elsewhere");
        std::fs::write(&elsewhere, sample(dir.path().to_path_buf()).encode()).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &paths[0]).unwrap();
        let pair = read_pair(&RealFs, &paths, true).unwrap();
        assert!(pair.exists && pair.best.is_none());
    }
}
