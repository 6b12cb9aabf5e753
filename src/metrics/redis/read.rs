//! What stores report to a server, read again: for who looks after them.
//!
//! Invariants: nothing is written; a look is one round trip, with the deadline of the connection; what comes is believed no
//! more than what anybody may have written there: what is none of a report's is passed over. No error has any part of the URL
//! in it but where the server is.

use super::target::Target;
use super::wire::{Connection, Dress, Failed, refused, text};
use crate::config::{RedisConfig, RedisUrl};
use redis::{Cmd, Value, cmd};
use std::sync::Arc;

/// Instances that are told at most.
const MOST_INSTANCES: usize = 1_000;

/// What an instance has reported last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisReport {
    /// The fields of the hash: metrics by the names of the flat list, and what is beside them; see
    /// [`redis_fields`](super::redis_fields).
    pub fields: Vec<(String, String)>,
    /// The last decisions of the optimizer, the newest last, each with its fields.
    pub decisions: Vec<Vec<(String, String)>>,
}

impl RedisReport {
    /// A field of the hash.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Reads what stores report to a Redis server: who reports, and what.
#[derive(Debug)]
pub struct RedisReader {
    target: Target,
    prefix: String,
    connection: Option<Connection>,
}

impl RedisReader {
    /// Of a server, and the prefix that its stores are configured with; `None`: the usual one. Connects to nobody yet.
    ///
    /// # Errors
    /// What is wrong with the URL, of which nothing is repeated.
    pub fn new(url: &RedisUrl, prefix: Option<&str>) -> Result<RedisReader, String> {
        let prefix = prefix.map_or_else(|| RedisConfig::default().prefix, str::to_owned);
        Ok(RedisReader { target: Target::parse(url.expose())?, prefix, connection: None })
    }

    /// Where the server is: without user and password.
    pub fn server(&self) -> String {
        self.target.to_string()
    }

    /// The instances that report now, in the order of their names.
    ///
    /// # Errors
    /// Why the server does not say.
    pub fn instances(&mut self) -> Result<Vec<String>, String> {
        let server_now = self.connected()?.now_ms();
        let mut ask = cmd("ZRANGEBYSCORE");
        ask.arg(format!("{}:instances", self.prefix)).arg(server_now).arg("+inf");
        ask.arg("LIMIT").arg(0).arg(MOST_INSTANCES);
        let replies = self.ask(&[ask])?;
        let mut names: Vec<String> =
            replies.first().map(list).unwrap_or_default().iter().filter_map(word).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// What an instance has reported last, with so many decisions at most. `None`: it does not report (any more).
    ///
    /// # Errors
    /// Why the server does not say.
    pub fn look(&mut self, instance: &str, decisions: usize) -> Result<Option<RedisReport>, String> {
        let mut current = cmd("HGETALL");
        current.arg(format!("{}:current:{instance}", self.prefix));
        let mut past = cmd("XREVRANGE");
        past.arg(format!("{}:decisions:{instance}", self.prefix))
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(decisions);
        let replies = self.ask(&[current, past])?;
        let [current, past] = replies.as_slice() else {
            return Err("its answer is none of Redis's".to_owned());
        };
        let fields = pairs(current);
        if fields.is_empty() {
            return Ok(None);
        }
        let mut decisions: Vec<_> =
            list(past).iter().filter_map(|entry| Some(pairs(list(entry).get(1)?))).collect();
        decisions.reverse();
        Ok(Some(RedisReport { fields, decisions }))
    }

    fn connected(&mut self) -> Result<&mut Connection, String> {
        if self.connection.is_none() {
            let dress = Dress { keepalive: true, nodelay: true };
            self.connection = Some(Connection::open(&self.target, dress, &Arc::default())?);
        }
        self.connection.as_mut().ok_or_else(|| "it cannot be reached".to_owned())
    }

    /// A try at it. The error outside is that nobody could be asked.
    fn send(&mut self, commands: &[Cmd]) -> Result<Result<Vec<Value>, Failed>, String> {
        let answer = self.connected()?.ask(commands);
        if answer.is_err() {
            self.connection = None;
        }
        Ok(answer)
    }

    /// One round trip. After a failure the next one connects anew, and so does this one, once, if the server ended a
    /// connection that was kept: it does not keep what is idle (`timeout` in its configuration), or began anew.
    fn ask(&mut self, commands: &[Cmd]) -> Result<Vec<Value>, String> {
        let was_kept = self.connection.is_some();
        let mut answer = self.send(commands)?;
        if was_kept && matches!(answer, Err(Failed { ended: true, .. })) {
            answer = self.send(commands)?;
        }
        let replies = answer.map_err(|e| e.why)?;
        match replies.iter().find_map(refused) {
            Some(e) => Err(format!("it refuses to tell: {}", text(e, &self.target))),
            None => Ok(replies),
        }
    }
}

fn list(value: &Value) -> &[Value] {
    match value {
        Value::Array(all) | Value::Set(all) => all,
        _ => &[],
    }
}

fn word(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Some(text.clone()),
        Value::Int(n) => Some(n.to_string()),
        _ => None,
    }
}

/// Names and values, which come one after the other, or as a map.
fn pairs(value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Map(all) => all.iter().filter_map(|(name, value)| Some((word(name)?, word(value)?))).collect(),
        other => {
            let pair = |pair: &[Value]| Some((word(pair.first()?)?, word(pair.get(1)?)?));
            list(other).chunks_exact(2).filter_map(pair).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn what_is_none_of_a_reports_is_passed_over() {
        let flat = Value::Array(vec![
            bulk("a"),
            bulk("1"),
            Value::Nil,
            bulk("2"),
            bulk("b"),
            Value::Int(3),
            bulk("c"),
        ]);
        assert_eq!(pairs(&flat), [("a".into(), "1".into()), ("b".into(), "3".into())]);
        assert_eq!(pairs(&Value::Map(vec![(bulk("a"), bulk("1"))])), [("a".into(), "1".into())]);
        assert!(pairs(&Value::Nil).is_empty() && pairs(&bulk("x")).is_empty());
    }

    #[test]
    fn a_url_that_is_wrong_is_not_repeated() {
        let wrong = RedisReader::new(&"http://user:s3cret@host".into(), None).unwrap_err();
        assert!(!wrong.contains("s3cret") && !wrong.contains("host"), "{wrong}");
        let right = RedisReader::new(&"redis://user:s3cret@host".into(), None).unwrap();
        assert_eq!(right.server(), "redis://host:6379/15");
        assert!(!format!("{right:?}").contains("s3cret"));
    }
}
