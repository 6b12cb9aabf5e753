//! The questions, and what is answered.
//!
//! Invariants: a question has no effect before all of it was read and understood; each answer is made in pieces of bounded
//! size, and none before the one before was taken.

use super::frame::{self, Kind};
use super::{PATIENCE, document};
use crate::engine::{Cursor, Engine, Listed, Told};
use bytes::Bytes;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use thermocline_storage::Ident;
use thermocline_storage::types::MAX_KEY;

/// Items of a list in a frame; each is at most 64 KiB of hexadecimal digits and some.
const ITEMS: usize = 64;
/// How often it is told how far a verification is, and seen whether anybody listens.
const BEAT: Duration = Duration::from_millis(200);

/// Why an answer ends in the middle.
const CLOSING: &str = "the store is being closed";

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    Stat,
    List { prefix: Vec<u8>, from: Cursor },
    Verify,
    History { most: usize },
}

impl Question {
    /// Reads a question.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(body: &[u8]) -> Result<Question, &'static str> {
        let value: Value = serde_json::from_slice(body).map_err(|_| "the question is no JSON")?;
        let number = |name: &str| value.get(name).and_then(Value::as_u64);
        match value.get("ask").and_then(Value::as_str) {
            Some("stat") => Ok(Question::Stat),
            Some("verify") => Ok(Question::Verify),
            Some("history") => {
                let most = number("most").and_then(|n| usize::try_from(n).ok());
                Ok(Question::History { most: most.unwrap_or(usize::MAX) })
            }
            Some("list") => {
                let prefix = value.get("prefix").and_then(Value::as_str).and_then(from_hex);
                let prefix = prefix.filter(|p| p.len() <= MAX_KEY).ok_or("the prefix is none")?;
                let shard = number("shard").and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
                let after = number("after").map(Ident::from_bits);
                Ok(Question::List { prefix, from: Cursor { shard, after } })
            }
            _ => Err("the question is none that is answered here: stat, list, verify, history"),
        }
    }

    /// The question as it is sent.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Question::Stat => json!({ "ask": "stat" }),
            Question::Verify => json!({ "ask": "verify" }),
            Question::History { most } => json!({ "ask": "history", "most": most }),
            Question::List { prefix, from } => json!({
                "ask": "list",
                "prefix": hex(prefix),
                "shard": from.shard,
                "after": from.after.map(Ident::bits),
            }),
        }
    }
}

/// The end of an answer, or why it has none.
pub(super) type Ended = Result<Value, String>;

/// Where an answer goes.
pub(super) struct Answer<'a> {
    pub(super) stream: &'a UnixStream,
    /// Whether the store is closing.
    pub(super) stop: &'a dyn Fn() -> bool,
}

impl Answer<'_> {
    fn send(&self, kind: Kind, value: &Value) -> io::Result<()> {
        frame::write(self.stream, kind, value.to_string().as_bytes(), PATIENCE)
    }

    /// Says why there is no answer.
    pub(super) fn refuse(&self, why: &str) -> io::Result<()> {
        self.send(Kind::Refusal, &json!({ "error": why, "version": frame::VERSION }))
    }

    pub(super) fn stat(&self, engine: &Engine) -> io::Result<()> {
        self.send(Kind::End, &document::stat(&engine.stats()))
    }

    pub(super) fn history(&self, engine: &Engine, most: usize) -> io::Result<()> {
        let turns = engine.turns();
        let last = turns.get(turns.len().saturating_sub(most)..).unwrap_or_default();
        self.send(Kind::End, &json!({ "turns": document::turns(last) }))
    }

    pub(super) fn list(&self, engine: &Engine, prefix: &[u8], from: Cursor) -> io::Result<()> {
        let mut told = Instant::now();
        let mut gone = None;
        // Records may be slow to read: a part without items says that there is more to come, and finds out whether anybody
        // is waiting for it.
        let page = engine.page(prefix, from, &mut || {
            if (self.stop)() {
                return ControlFlow::Break(());
            }
            if told.elapsed() >= BEAT {
                told = Instant::now();
                gone = self.send(Kind::Part, &json!({ "items": [] })).err();
            }
            if gone.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let page = match (page, gone) {
            (Ok(Ok(page)), _) => page,
            (Ok(Err(_)), Some(e)) => return Err(e),
            (Ok(Err(_)), None) => return self.refuse(CLOSING),
            (Err(e), _) => return self.refuse(&e.to_string()),
        };
        for items in page.items.chunks(ITEMS) {
            let items: Vec<Value> = items.iter().map(item).collect();
            self.send(Kind::Part, &json!({ "items": items }))?;
        }
        let next = page.next.map(|c| json!({ "shard": c.shard, "after": c.after.map(Ident::bits) }));
        self.send(Kind::End, &json!({ "unread": page.unread, "next": next }))
    }

    /// Has everything verified; gives how that ended, which is for [`ended`](Self::ended) to say once the next
    /// verification may begin.
    pub(super) fn verify(&self, engine: &Engine) -> io::Result<Ended> {
        let mut failed = None;
        let mut told = Instant::now();
        let done = engine.look_through(&mut |what| {
            let sent = match what {
                Told::Progress { .. } if (self.stop)() => return ControlFlow::Break(()),
                Told::Progress { .. } if told.elapsed() < BEAT => return ControlFlow::Continue(()),
                Told::Progress { done, of } => {
                    told = Instant::now();
                    self.send(Kind::Part, &json!({ "done": done, "of": of }))
                }
                Told::Lost { tier, path, key, why } => {
                    let finding = finding(tier.name(), &path, key.as_ref(), &why, true);
                    self.send(Kind::Part, &finding)
                }
                Told::Away { tier, path, why } => {
                    self.send(Kind::Part, &finding(tier.name(), &path, None, &why, false))
                }
            };
            match sent {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    failed = Some(e);
                    ControlFlow::Break(())
                }
            }
        });
        match done {
            Ok(Ok(sum)) => {
                let sum = json!({
                    "items": sum.items,
                    "bytes": sum.bytes,
                    "containers": sum.containers,
                    "unwritten": sum.unwritten,
                });
                Ok(Ok(sum))
            }
            Ok(Err(_)) => match failed {
                Some(e) => Err(e),
                None => Ok(Err(CLOSING.to_owned())),
            },
            Err(e) => Ok(Err(e.to_string())),
        }
    }

    /// Says how a verification ended.
    pub(super) fn ended(&self, ended: Ended) -> io::Result<()> {
        match ended {
            Ok(sum) => self.send(Kind::End, &sum),
            Err(why) => self.refuse(&why),
        }
    }
}

fn item(item: &Listed) -> Value {
    json!({
        "key": hex(&item.key),
        "tier": item.tier.name(),
        "content_type": item.content_type.name(),
        "bytes": item.len,
        "expires_at_ms": (item.expires_at != 0).then_some(item.expires_at),
        "version": item.version,
    })
}

fn finding(tier: &str, path: &Path, key: Option<&Bytes>, why: &str, lost: bool) -> Value {
    let path = path.to_string_lossy();
    json!({ "finding": { "tier": tier, "path": path, "key": key.map(|k| hex(k)), "why": why, "lost": lost } })
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// Hexadecimal digits as bytes; `None` if they are none.
pub(super) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    });
    pairs.collect()
}
