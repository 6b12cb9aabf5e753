//! Which server: the URL, taken apart.
//!
//! Invariant: no error of [`Target::parse`] has any part of the URL in it, and `Debug` shows no password: whatever a URL
//! that is wrong consists of may be one.

use redis::IntoConnectionInfo;
use rustls::pki_types::ServerName;
use std::fmt;

/// The database if the URL names none: far from the first, which most programs use.
const DATABASE: i64 = 15;

const FORM: &str = "write redis://HOST, or redis://USER:PASSWORD@HOST:PORT/DATABASE, with rediss:// for TLS and what is \
                    special in a password percent-encoded";

/// A server, who asks it, and which of its databases.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    /// For TLS: the name that the certificate has to be of.
    pub(super) tls: Option<ServerName<'static>>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: i64,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

/// Where it is, for the log.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        write!(f, "{scheme}://{host}:{}/{}", self.port, self.database)
    }
}

impl Target {
    /// A text without password and user. The longer of them first: the other may be a part of it.
    pub(super) fn conceal(&self, text: &str) -> String {
        let mut secrets: Vec<&str> = self.password.iter().chain(&self.user).map(String::as_str).collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let hide = |text: String, secret: &&str| text.replace(*secret, "***");
        secrets.iter().filter(|secret| !secret.is_empty()).fold(text.to_owned(), hide)
    }

    /// Takes a URL apart, or says what is wrong with it and what would be right.
    pub(crate) fn parse(text: &str) -> Result<Target, String> {
        let wrong = |what: &str| format!("{what}: {FORM}");
        let mut url = redis::parse_redis_url(text).ok_or_else(|| wrong("it is no URL of a Redis server"))?;
        let encrypted = match url.scheme() {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            _ => return Err(wrong("it is not of a server that is reached by TCP")),
        };
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong(
                "it has an option (`?` or `#`), of which there are none; a password is percent-encoded",
            ));
        }
        if !url.username().is_empty() && url.password().is_none() {
            return Err(wrong("it has a user without a password; a password alone is written :PASSWORD@"));
        }
        let path = url.path().trim_start_matches('/');
        let named = !path.is_empty();
        if !path.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong("what follows the host is no number of a database"));
        }
        // The part of the crate that takes URLs apart knows of TLS only with its own, which is not used.
        url.set_scheme("redis").map_err(|()| wrong("it is no URL of a Redis server"))?;
        // What the crate says of a URL is in words of its own.
        let info =
            url.into_connection_info().map_err(|_| wrong("host, port, user or password is impossible"))?;
        let redis::ConnectionAddr::Tcp(host, port) = info.addr() else {
            return Err(wrong("it is not of a server that is reached by TCP"));
        };
        if *port == 0 {
            return Err(wrong("no server has port 0"));
        }
        let tls = match encrypted {
            true => Some(
                ServerName::try_from(host.clone())
                    .map_err(|_| wrong("the host has no name that a certificate could be of"))?,
            ),
            false => None,
        };
        let settings = info.redis_settings();
        let password = settings.password().filter(|p| !p.is_empty());
        Ok(Target {
            host: host.clone(),
            port: *port,
            tls,
            user: settings.username().map(str::to_owned).filter(|_| password.is_some()),
            password: password.map(str::to_owned),
            database: if named { settings.db() } else { DATABASE },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_can_be() {
        let of = |text| {
            let t = Target::parse(text).unwrap();
            (t.host, t.port, t.tls.is_some(), t.user, t.password, t.database)
        };
        let s = |t: &str| t.to_owned();
        assert_eq!(of("redis://10.0.0.1"), (s("10.0.0.1"), 6379, false, None, None, 15));
        assert_eq!(of("redis://host:7000/0"), (s("host"), 7000, false, None, None, 0));
        assert_eq!(of("rediss://[::1]:1/3"), (s("::1"), 1, true, None, None, 3));
        let all = (s("h.example"), 6379, true, Some(s("me")), Some(s("a/b@c:#")), 15);
        assert_eq!(of("rediss://me:a%2Fb%40c%3A%23@h.example/"), all);
        assert_eq!(of("redis://:pw@h"), (s("h"), 6379, false, None, Some(s("pw")), 15));
    }

    #[test]
    fn urls_that_cannot_be_are_refused_and_not_repeated() {
        for text in [
            "s3cret",
            "http://u:s3cret@h",
            "redis://",
            "redis://:s3cret@",
            "redis://:s3cret@h:99999",
            "redis://:s3cret@h:0",
            "redis://:s3cret@h/x",
            "redis://:s3cret@h/-1",
            "redis://:s3cret@h/99999999999999999999",
            "redis://:s3cret@h?protocol=s3cret",
            "redis://:s3#cret@h",
            "rediss://:s3cret@h#insecure",
            "redis://s3cret@h",
            "redis://:s3cret@0.0.0.0",
            "redis://:%ffs3cret@h",
            "unix:///s3cret?pass=s3cret",
            "rediss://:s3cret@%20/1",
        ] {
            let e = Target::parse(text).unwrap_err();
            assert!(!e.contains("s3") && e.contains("redis://HOST"), "{text}: {e}");
        }
        let shown = format!("{:?}", Target::parse("rediss://me:s3cret@[::1]/3").unwrap());
        assert_eq!(shown, "Target(rediss://[::1]:6379/3)");
    }
}
