//! A connection that keeps a deadline: whatever the server does, a round trip is over by then.
//!
//! Packing commands and parsing replies is the `redis` crate's. The socket is ours, because that crate's connection has a
//! deadline for each read alone, so that a server that sends a byte now and then holds it for ever, and cannot be told
//! from another thread to give up.
//!
//! Invariants: no round trip takes longer than its deadline, and none goes on for longer than [`GRACE`] once the exporter
//! is told to stop (looking up a name apart, for which the system has no deadline); replies beyond [`MOST_REPLIED`] bytes
//! are an error; no error has a password in it; after an error the connection is not used again.

use super::Stop;
use super::target::Target;
use redis::{Cmd, Parser, Value};
use rustls::crypto::ring;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a round trip may take, and a connection to come about.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the system may try one address: less than who closes waits.
const CONNECT: Duration = Duration::from_millis(700);
/// How long what is under way may go on when the exporter is to stop.
const GRACE: Duration = Duration::from_millis(300);
/// How often a wait looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of the replies of one round trip. They are a few to each command.
const MOST_REPLIED: u64 = 1 << 20;
/// Idle time after which the system asks whether the server is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How the socket is set up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dress {
    pub(super) keepalive: bool,
    pub(super) nodelay: bool,
}

impl Dress {
    fn put_on(self, socket: &TcpStream) -> io::Result<()> {
        socket.set_nodelay(self.nodelay)?;
        let socket = socket2::SockRef::from(socket);
        socket.set_keepalive(self.keepalive)?;
        if self.keepalive {
            socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE))?;
        }
        Ok(())
    }
}

/// A socket whose reads and writes end at a deadline.
struct Timed {
    socket: TcpStream,
    stop: Arc<Stop>,
    until: Instant,
    /// Bytes that may still be read.
    left: u64,
}

impl Timed {
    /// Tries again until the deadline; each try is short, so that a stop is seen.
    fn keep_on<T>(&mut self, mut what: impl FnMut(&mut TcpStream) -> io::Result<T>) -> io::Result<T> {
        loop {
            let until = self.stop.at().map_or(self.until, |at| self.until.min(at + GRACE));
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(ErrorKind::TimedOut, "no answer in time"));
            }
            let pause = Some(left.min(LOOK).max(Duration::from_millis(1)));
            self.socket.set_read_timeout(pause)?;
            self.socket.set_write_timeout(pause)?;
            match what(&mut self.socket) {
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                done => return done,
            }
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other("the answer is too long to be Redis's"));
        }
        let read = self.keep_on(|socket| socket.read(buf))?;
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

impl Write for Timed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.keep_on(|socket| socket.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Stream {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

impl Stream {
    fn timed(&mut self) -> &mut Timed {
        match self {
            Stream::Plain(timed) => timed,
            Stream::Tls(tls) => &mut tls.sock,
        }
    }

    fn all(&mut self) -> &mut dyn ReadWrite {
        match self {
            Stream::Plain(timed) => timed,
            Stream::Tls(tls) => &mut **tls,
        }
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// A connection: known to the server, in the right database.
pub(super) struct Connection {
    stream: Stream,
    parser: Parser,
    /// What the server's clock is ahead of ours, in milliseconds.
    pub(super) ahead_ms: i64,
    closing: bool,
}

impl Connection {
    /// Connects, gives name and password, chooses the database.
    pub(super) fn open(target: &Target, dress: Dress, stop: &Arc<Stop>) -> Result<Connection, String> {
        let until = Instant::now() + PATIENCE;
        let socket = connect(target, stop, until).map_err(|e| format!("it cannot be reached: {e}"))?;
        dress.put_on(&socket).map_err(|e| format!("the socket cannot be set up: {e}"))?;
        let timed = Timed { socket, stop: stop.clone(), until, left: MOST_REPLIED };
        let stream = match &target.tls {
            None => Stream::Plain(timed),
            Some(name) => {
                let config = trust()?;
                let tls = ClientConnection::new(config, name.clone()).map_err(|e| format!("TLS: {e}"))?;
                Stream::Tls(Box::new(StreamOwned::new(tls, timed)))
            }
        };
        let mut connection = Connection { stream, parser: Parser::new(), ahead_ms: 0, closing: false };
        connection.introduce(target)?;
        Ok(connection)
    }

    /// The one round trip that is not a report's. It has to come before: what is sent together with a `SELECT` that fails
    /// would go to another database.
    fn introduce(&mut self, target: &Target) -> Result<(), String> {
        let mut commands = Vec::new();
        if let Some(password) = &target.password {
            let mut auth = redis::cmd("AUTH");
            target.user.iter().for_each(|user| {
                auth.arg(user);
            });
            auth.arg(password);
            commands.push(auth);
        }
        let mut select = redis::cmd("SELECT");
        select.arg(target.database);
        commands.push(select);
        commands.push(redis::cmd("TIME"));
        let replies = self.ask(&commands)?;
        // Who may not ask for the time goes by the clock of this machine.
        let vital = replies.len().saturating_sub(1);
        // The first that failed is the cause of the others.
        if let Some((n, e)) = replies.iter().take(vital).enumerate().find_map(|(n, r)| Some((n, refused(r)?)))
        {
            return Err(match n == 0 && target.password.is_some() {
                // Some servers repeat the arguments of what they do not know.
                true => format!("it refuses the user or the password ({})", e.code()),
                false => format!("it refuses database {}: {}", target.database, text(e)),
            });
        }
        self.ahead_ms = replies.last().and_then(clock).map_or(0, |ms| ms - now_ms());
        Ok(())
    }

    /// From here on what is under way has its own time, though the exporter is stopping.
    pub(super) fn take_leave(&mut self, until: Instant) {
        self.closing = true;
        let timed = self.stream.timed();
        timed.stop = Arc::default();
        timed.until = until;
    }

    /// One round trip: all commands, then all replies. Commands that the server refused are among the replies.
    pub(super) fn ask(&mut self, commands: &[Cmd]) -> Result<Vec<Value>, String> {
        let mut packed = Vec::new();
        commands.iter().for_each(|command| command.write_packed_command(&mut packed));
        self.send(&packed, commands.len())
    }

    pub(super) fn send(&mut self, packed: &[u8], replies: usize) -> Result<Vec<Value>, String> {
        let timed = self.stream.timed();
        timed.left = MOST_REPLIED;
        if !self.closing {
            timed.until = Instant::now() + PATIENCE;
        }
        let stream = self.stream.all();
        stream
            .write_all(packed)
            .and_then(|()| stream.flush())
            .map_err(|e| format!("it takes nothing: {e}"))?;
        let mut found = Vec::with_capacity(replies);
        for _ in 0..replies {
            // The crate's errors may quote what was received; the kind says enough.
            let value = self.parser.parse_value(&mut *stream).map_err(|e| match e.is_io_error() {
                true => format!("it does not answer: {e}"),
                false => "its answer is none of Redis's".to_owned(),
            })?;
            found.push(value);
        }
        Ok(found)
    }
}

/// The first address that answers.
fn connect(target: &Target, stop: &Stop, until: Instant) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in (target.host.as_str(), target.port).to_socket_addrs()? {
        let left = until.saturating_duration_since(Instant::now()).min(CONNECT);
        if left.is_zero() || stop.at().is_some() {
            return Err(io::Error::new(ErrorKind::TimedOut, "no connection in time"));
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(socket) => return Ok(socket),
            Err(e) => failed = e,
        }
    }
    Err(failed)
}

/// Whom TLS trusts: the certificates that the system does. Certificates are always verified.
fn trust() -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let why = found.errors.first().map_or_else(|| "none was found".to_owned(), ToString::to_string);
        return Err(format!("TLS: the system trusts no certificate: {why}: install ca-certificates"));
    }
    // Named, not the process's default: a program that links two of them has none.
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS: {e}"))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// The error that a reply is.
pub(super) fn refused(reply: &Value) -> Option<&redis::ServerError> {
    match reply {
        Value::ServerError(e) => Some(e),
        _ => None,
    }
}

pub(super) fn text(e: &redis::ServerError) -> String {
    let mut text = e.code().to_owned();
    if let Some(details) = e.details() {
        text.push(' ');
        // A line; what some server would go on about is no use.
        text.extend(details.chars().filter(|c| !c.is_control()).take(200));
    }
    text
}

/// The reply to `TIME`, in milliseconds.
pub(super) fn clock(reply: &Value) -> Option<i64> {
    let Value::Array(parts) = reply else { return None };
    let number = |value: &Value| match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse::<i64>().ok(),
        Value::Int(n) => Some(*n),
        _ => None,
    };
    let seconds = number(parts.first()?)?;
    seconds.checked_mul(1000)?.checked_add(number(parts.get(1)?)? / 1000)
}

/// The wall clock in milliseconds.
pub(crate) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_socket_is_as_configured() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for (keepalive, nodelay) in [(true, true), (true, false), (false, true), (false, false)] {
            let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            Dress { keepalive, nodelay }.put_on(&socket).unwrap();
            assert_eq!(socket.nodelay().unwrap(), nodelay);
            let socket = socket2::SockRef::from(&socket);
            assert_eq!(socket.keepalive().unwrap(), keepalive);
            if keepalive {
                assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
            }
        }
    }

    /// A server that does what it likes, and a connection to it with so much time.
    fn against(
        server: impl FnOnce(TcpStream) + Send + 'static,
        time: Duration,
    ) -> (Result<(), String>, Duration) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = std::thread::spawn(move || server(listener.accept().unwrap().0));
        let begin = Instant::now();
        let timed = Timed { socket, stop: Arc::default(), until: begin + time, left: MOST_REPLIED };
        let (stream, parser) = (Stream::Plain(timed), Parser::new());
        let mut connection = Connection { stream, parser, ahead_ms: 0, closing: true };
        let result = connection.ask(&[redis::cmd("PING")]).map(|_| ());
        let took = begin.elapsed();
        drop(connection);
        server.join().unwrap();
        (result, took)
    }

    #[test]
    fn a_server_that_drips_is_not_waited_for() {
        let drip = |mut socket: TcpStream| {
            let _ = socket.write_all(b"$1000\r\n");
            while socket.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let (result, took) = against(drip, Duration::from_millis(400));
        let why = result.unwrap_err();
        assert!(why.contains("does not answer"), "{why}");
        assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(3), "{took:?}");
    }

    #[test]
    fn an_answer_without_an_end_is_refused() {
        let flood = |mut socket: TcpStream| {
            let _ = socket.write_all(b"$1000000000\r\n");
            while socket.write_all(&[b'x'; 65_536]).is_ok() {}
        };
        let (result, _) = against(flood, Duration::from_secs(20));
        let why = result.unwrap_err();
        assert!(why.contains("too long"), "{why}");
    }

    #[test]
    fn an_answer_that_is_none_is_refused_and_not_quoted() {
        let (result, _) = against(|mut s| drop(s.write_all(b"HTTP/1.1 400 s3cret\r\n\r\n")), PATIENCE);
        let why = result.unwrap_err();
        assert_eq!(why, "its answer is none of Redis's");
    }
}
