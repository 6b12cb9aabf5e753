//! The side that asks.
//!
//! Invariants: what answers is believed no more than a file that anybody may have written: a frame is bounded, so is what
//! all frames of an answer make this hold, and what is missing in it, or is of another kind than it should be, is an error;
//! no text comes further than here with characters in it that a terminal would obey; nobody is asked who is neither the same
//! user nor root (root asks whoever owns the directory); there is an end to all waiting.

use super::answer::{Question, from_hex};
use super::frame::{self, Kind, Wrong};
use super::place::Place;
use super::{ANSWER, PATIENCE};
use crate::engine::{CheckReport, Cost, Cursor, Finding, Progress, Step};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use thermocline_storage::home::whose;
use thermocline_storage::vfs::RealFs;
use thermocline_storage::{ContentType, Ident, Tier};

/// How long it may take until the next frame of an answer is there: as long as the other connections may keep their places,
/// and as reading a large value from a slow disk.
const ANSWERED: Duration = Duration::from_secs(30);

/// How long a verification may go on without getting further: a record is read in this time, however large and slow.
const STUCK: Duration = Duration::from_secs(600);
/// How long one page of a list may take: some hundred records of a disk that is dying.
const PAGE: Duration = Duration::from_secs(1200);
/// Bytes of the parts of a page: its items are a chunk more than half a MiB of keys at most.
const PAGE_BYTES: usize = 64 << 20;
/// Values in a frame, by what stands between them in JSON: a value takes many times the bytes that it is written with. The
/// longest frames are figures and history, with thousands.
const VALUES: usize = 1 << 18;
/// How often it may be told in a second, on average, that it goes on: it is five times in a verification, twice in a list.
const A_SECOND: u64 = 10;
/// And besides: what waited in the socket.
const AT_ONCE: u64 = 1_000;
/// How long a verification, or a list, may take.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);
/// Bytes of the findings of a verification.
const FINDINGS_BYTES: usize = 256 << 20;
/// Characters of what a program says of itself that are passed on.
const WORDS: usize = 2_000;

/// Figures and history are one frame each.
const NO_PARTS: &str = "it comes in parts, and should not";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody can be asked: there is no socket, or nobody listens on it.
    #[error(
        "{}: no socket to ask it by: the program that has it open has `storage.socket = false`, was built without \
         the feature `remote`, is older, or is opening, checking or repairing it just now", path.display()
    )]
    NoSocket {
        /// Where it would be.
        path: PathBuf,
    },
    /// Who asks, or who listens, is somebody else.
    #[error("{}: {why}", path.display())]
    NotYours {
        /// The socket.
        path: PathBuf,
        /// Who it is, and what to do.
        why: String,
    },
    /// The program that has the store open does not answer.
    #[error(
        "{}: no answer in time: the program that has the store open is stopped or overloaded, or others are asking; try \
         again", path.display()
    )]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The program that has the store open says why it does not answer.
    #[error("{}: the program that has the store open says: {why}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What it says, or the beginning of it.
        why: String,
    },
    /// It speaks another version of the protocol.
    #[error(
        "{}: the program that has the store open speaks version {theirs} of the protocol, and this is version {}: use the \
         `thermocline` of its version", path.display(), frame::VERSION
    )]
    Version {
        /// The socket.
        path: PathBuf,
        /// Its version.
        theirs: u8,
    },
    /// What came is no answer.
    #[error("{}: what listens there gives no answer that makes sense ({why})", path.display())]
    Nonsense {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The connection failed, or was closed: the store, for one.
    #[error("{}: the connection ended: {source}; the store may have been closed, try again", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A live item of a store that is open elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Item {
    /// Its key.
    pub key: Vec<u8>,
    /// The highest tier that holds it.
    pub tier: Tier,
    /// What its value was put as, or was found to be.
    pub content_type: ContentType,
    /// Length of the value in bytes.
    pub len: u64,
    /// When it expires; `None`: never.
    pub expires_at: Option<SystemTime>,
    /// The order of the write that made it.
    pub version: u64,
}

/// A store that another process has open, or this one.
///
/// ```
/// use thermocline::Cache;
/// use thermocline::remote::OpenStore;
///
/// # let dir = tempfile::tempdir()?;
/// let cache = Cache::builder().root(dir.path()).open()?;
/// cache.put("k", "v")?;
/// cache.flush()?;
///
/// // In another process, which cannot open it:
/// let store = OpenStore::find([dir.path().join("ssd")])?;
/// assert_eq!(store.process(), Some(std::process::id()));
/// assert_eq!(store.stat()?["items"], 1);
/// assert!(store.verify(|_| {})?.is_clean());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct OpenStore {
    directory: PathBuf,
    socket: PathBuf,
    process: Option<u32>,
}

impl OpenStore {
    /// Finds who has a store open, by directories of the store. The socket is in the first of the highest tier on disk; if
    /// none of these has it, it is looked for in the others that their identities name.
    ///
    /// # Errors
    /// `NoSocket`, `NotYours`; `Silent` and `Io` if what is there cannot be connected to.
    pub fn find<P: AsRef<Path>>(directories: impl IntoIterator<Item = P>) -> Result<OpenStore, Error> {
        let given: Vec<PathBuf> = directories.into_iter().map(|d| d.as_ref().to_path_buf()).collect();
        let mut none = None;
        for directory in &given {
            match link(directory) {
                Err(e @ Error::NoSocket { .. }) => none = none.or(Some(e)),
                found => return found.map(|(_, process)| OpenStore::at(directory, process)),
            }
        }
        for directory in siblings(&given) {
            if let Ok((_, process)) = link(&directory) {
                return Ok(OpenStore::at(&directory, process));
            }
        }
        Err(none.unwrap_or_else(|| Error::NoSocket { path: PathBuf::from(super::place::NAME) }))
    }

    fn at(directory: &Path, process: u32) -> OpenStore {
        OpenStore {
            directory: directory.to_path_buf(),
            socket: directory.join(super::place::NAME),
            process: (process != 0).then_some(process),
        }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process that had it open when it was found; `None`: it has no number that is known here (another container's).
    pub fn process(&self) -> Option<u32> {
        self.process
    }

    /// Its figures: see [`stat`](super::stat).
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn stat(&self) -> Result<Value, Error> {
        self.ask(&Question::Stat, |_, _| Err(self.nonsense(NO_PARTS)))
    }

    /// The last turns of its optimizer, so many at most, oldest first: see [`turns`](super::turns).
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn history(&self, most: usize) -> Result<Value, Error> {
        let mut answer = self.ask(&Question::History { most }, |_, _| Err(self.nonsense(NO_PARTS)))?;
        Ok(answer.get_mut("turns").map(Value::take).unwrap_or_default())
    }

    /// Gives `each` the live keys of a prefix (empty: all), in no order, until it breaks off. A key comes at most once, and
    /// every key that is live throughout does come, but for those whose record cannot be read, of which it gives how many.
    /// Nothing is held in the other process between two pages: `each` may take its time.
    ///
    /// # Errors
    /// Why there is no answer, or not the rest of it.
    pub fn list(&self, prefix: &[u8], mut each: impl FnMut(Item) -> ControlFlow<()>) -> Result<u64, Error> {
        let mut from = Cursor::START;
        let mut unread: u64 = 0;
        let mut pace = Pace::begin();
        loop {
            let mut items: Vec<Item> = Vec::new();
            let question = Question::List { prefix: prefix.to_vec(), from };
            let (began, mut bytes) = (Instant::now(), 0);
            let end = self.ask(&question, |part, len| {
                bytes += len;
                if bytes > PAGE_BYTES {
                    return Err(self.nonsense("a page is too long"));
                }
                if began.elapsed() > PAGE {
                    return Err(Error::Silent { path: self.socket.clone() });
                }
                let all = part.get("items").and_then(Value::as_array);
                for item in all.ok_or_else(|| self.nonsense("a part of a page has no items"))? {
                    items.push(read_item(item).ok_or_else(|| self.nonsense("an item is none"))?);
                }
                Ok(())
            })?;
            let is_empty = items.is_empty();
            for item in items {
                if each(item).is_break() {
                    return Ok(unread);
                }
            }
            let more = number(&end, "unread").ok_or_else(|| self.nonsense("a page has no end"))?;
            unread = unread.saturating_add(more);
            let next = end.get("next").filter(|next| !next.is_null());
            let Some(next) = next else { return Ok(unread) };
            let shard = number(next, "shard").and_then(|n| usize::try_from(n).ok());
            let next = Cursor {
                shard: shard.ok_or_else(|| self.nonsense("a page has no next"))?,
                after: number(next, "after").map(Ident::from_bits),
            };
            // Or what answers could keep this going for ever.
            if (next.shard, next.after) <= (from.shard, from.after) {
                return Err(self.nonsense("a page is before the one before"));
            }
            // A page that ends without an item has taken its time.
            if is_empty && !pace.goes_on() {
                return Err(self.nonsense("there is no end of pages without items"));
            }
            from = next;
        }
    }

    /// Has every record on its disks read and checked, from key to decoded value. Nothing is changed by that: what is
    /// damaged is told, and not condemned, as a read would. What is there for the day on which something is lost (second
    /// copies, footers, indexes) is not looked at: a program is changing it. `progress` is told how far it is.
    ///
    /// # Errors
    /// Why there is no answer, or not the rest of it.
    pub fn verify(&self, mut progress: impl FnMut(Progress)) -> Result<CheckReport, Error> {
        let mut report = CheckReport::default();
        let (mut furthest, mut since, mut bytes) = (0, Instant::now(), 0);
        let mut pace = Pace::begin();
        let end = self.ask(&Question::Verify, |part, len| {
            if let (Some(done), Some(of)) = (number(&part, "done"), number(&part, "of")) {
                if done > furthest {
                    (furthest, since) = (done, Instant::now());
                }
                if done > of || !pace.goes_on() {
                    return Err(self.nonsense("there is no end of how far it says that it is"));
                }
                progress(Progress { step: Step::Check, done, of });
            } else if let Some(finding) = part.get("finding").and_then(read_finding) {
                bytes += len;
                report.findings.push(finding);
            } else {
                return Err(self.nonsense("a finding is none"));
            }
            if bytes > FINDINGS_BYTES {
                return Err(self.nonsense("there are too many findings"));
            }
            if since.elapsed() > STUCK {
                return Err(Error::Silent { path: self.socket.clone() });
            }
            Ok(())
        })?;
        let sum = |name| number(&end, name).ok_or_else(|| self.nonsense("a verification has no end"));
        (report.items, report.bytes, report.containers) = (sum("items")?, sum("bytes")?, sum("containers")?);
        report.unwritten = sum("unwritten")?;
        Ok(report)
    }

    fn nonsense(&self, why: &'static str) -> Error {
        Error::Nonsense { path: self.socket.clone(), why }
    }

    /// Asks; gives each part, and its length, to `each`, and returns the end of the answer.
    fn ask(
        &self,
        question: &Question,
        mut each: impl FnMut(Value, usize) -> Result<(), Error>,
    ) -> Result<Value, Error> {
        let failed = |e| no_answer(&self.socket, e);
        let (stream, _) = link(&self.directory)?;
        frame::write(&stream, Kind::Question, question.to_json().to_string().as_bytes(), PATIENCE)
            .map_err(|e| failed(Wrong::Io(e)))?;
        loop {
            let (kind, body) = frame::read(&stream, ANSWER, ANSWERED).map_err(failed)?;
            if body.iter().filter(|b| matches!(b, b',' | b'[' | b'{')).count() > VALUES {
                return Err(self.nonsense("a part has too many values"));
            }
            let value = serde_json::from_slice(&body).map_err(|_| self.nonsense("a part is no JSON"))?;
            let value = harmless(value);
            match kind {
                Kind::Part => each(value, body.len())?,
                Kind::End => return Ok(value),
                Kind::Refusal => {
                    let why = value.get("error").and_then(Value::as_str).unwrap_or("it gives no reason");
                    let why = why.chars().take(WORDS).collect();
                    return Err(Error::Refused { path: self.socket.clone(), why });
                }
                Kind::Question => return Err(self.nonsense("it asks back")),
            }
        }
    }
}

/// How often somebody says that it goes on, which costs him nothing.
struct Pace {
    began: Instant,
    told: u64,
}

impl Pace {
    fn begin() -> Pace {
        Pace { began: Instant::now(), told: 0 }
    }

    /// Whether it is not yet more, or longer, than anybody has to say it who does what he says.
    fn goes_on(&mut self) -> bool {
        self.told += 1;
        let time = self.began.elapsed();
        time < LONGEST && self.told <= AT_ONCE.saturating_add(time.as_secs().saturating_mul(A_SECOND))
    }
}

/// The other directories of the stores that these are of, where they were at the last opening, as far as they say themselves
/// that they are.
fn siblings(given: &[PathBuf]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for directory in given {
        let Ok(Some(of)) = whose(&RealFs, directory) else { continue };
        for (_, path) in of.dirs {
            let is_its = || matches!(whose(&RealFs, &path), Ok(Some(its)) if its.store == of.store);
            if !given.contains(&path) && !found.contains(&path) && is_its() {
                found.push(path);
            }
        }
    }
    found
}

/// What came, without characters that a terminal would obey, or that change the look of what follows: those are shown as
/// `\xNN`, byte by byte. (Keys come as hexadecimal digits, and are what they are.)
fn harmless(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(printable(text)),
        Value::Array(all) => all.into_iter().map(harmless).collect(),
        Value::Object(all) => all
            .into_iter()
            .map(|(name, value)| (printable(name), harmless(value)))
            .collect::<Map<_, _>>()
            .into(),
        other => other,
    }
}

fn printable(text: String) -> String {
    if !text.chars().any(is_obeyed) {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) {
            let mut bytes = [0; 4];
            c.encode_utf8(&mut bytes).bytes().for_each(|b| {
                let _ = write!(out, "\\x{b:02x}");
            });
        } else {
            out.push(c);
        }
    }
    out
}

/// Control characters, and marks that change direction or look.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Connects to the socket of a directory; gives the process that listens, 0 if that has no number here.
fn link(directory: &Path) -> Result<(UnixStream, u32), Error> {
    let path = directory.join(super::place::NAME);
    let none = || Error::NoSocket { path: path.clone() };
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::AlreadyExists => none(),
        io::ErrorKind::PermissionDenied => Error::NotYours {
            path: path.clone(),
            why: "permission denied: only the user who has the store open, and root, may ask it".into(),
        },
        _ => no_answer(&path, Wrong::Io(e)),
    };
    let place = Place::open(directory).map_err(failed)?;
    if !place.is_there().map_err(failed)? {
        return Err(none());
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(|e| failed(e.into()))?;
    // How long `connect` waits for a place in the queue.
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE)).map_err(|e| failed(e.into()))?;
    connect(&socket, &place.address().map_err(failed)?).map_err(|e| failed(e.into()))?;
    let stream = UnixStream::from(socket);
    let (process, user) = frame::peer(&stream).map_err(failed)?;
    let me = rustix::process::geteuid().as_raw();
    let owner = place.owner().map_err(failed)?;
    // Whoever may write to the directory can put a socket there.
    if user != 0 && user != me && !(me == 0 && user == owner) {
        let why = format!(
            "user {user} listens there, and not user {owner}, whose directory it is: it is not asked"
        );
        return Err(Error::NotYours { path, why });
    }
    Ok((stream, process))
}

fn no_answer(path: &Path, wrong: Wrong) -> Error {
    let path = path.to_path_buf();
    match wrong {
        Wrong::Io(e) if matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
            Error::Silent { path }
        }
        Wrong::Io(source) => Error::Io { path, source },
        Wrong::Version(theirs) => Error::Version { path, theirs },
        Wrong::NoFrame(why) => Error::Nonsense { path, why },
        Wrong::TooLong => Error::Nonsense { path, why: "a part is too long" },
    }
}

fn number(value: &Value, name: &str) -> Option<u64> {
    value.get(name)?.as_u64()
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name)?.as_str()
}

fn tier(value: &Value) -> Option<Tier> {
    let name = text(value, "tier")?;
    Tier::ALL.into_iter().find(|t| t.name() == name)
}

fn read_item(value: &Value) -> Option<Item> {
    let content_type = text(value, "content_type")?;
    let expires_at = match value.get("expires_at_ms")? {
        Value::Null => None,
        ms => Some(UNIX_EPOCH.checked_add(Duration::from_millis(ms.as_u64()?))?),
    };
    Some(Item {
        key: text(value, "key").and_then(from_hex)?,
        tier: tier(value)?,
        content_type: ContentType::STORED.into_iter().find(|t| t.name() == content_type)?,
        len: number(value, "bytes")?,
        expires_at,
        version: number(value, "version")?,
    })
}

fn read_finding(value: &Value) -> Option<Finding> {
    let lost = value.get("lost")?.as_bool()?;
    let key = match value.get("key")? {
        Value::Null => None,
        key => Some(from_hex(key.as_str()?)?.into()),
    };
    let cost = if lost { Cost::Lost(1) } else { Cost::OutOfReach(1) };
    Some(Finding::of_record(
        tier(value),
        text(value, "path")?.into(),
        key,
        text(value, "why")?.to_owned(),
        cost,
    ))
}
