//! A connection that keeps a deadline: whatever the server does, a round trip is over by then.
//!
//! Packing commands and parsing replies is the `redis` crate's. The socket is ours, because that crate's connection has a
//! deadline for each read alone, so that a server that sends a byte now and then holds it for ever, and cannot be told
//! from another thread to give up.
//!
//! Invariants: no round trip takes longer than its deadline, and none goes on for longer than [`GRACE`] once the exporter
//! is told to stop; replies beyond [`MOST_REPLIED`] bytes are an error; no error has a password in it, nor more of what the
//! server sent than a short line; after an error the connection is not used again.

use super::Stop;
use super::connect::connect;
use super::target::Target;
use redis::{Cmd, Parser, Value};
use rustls::crypto::ring;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a round trip may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long what is under way may go on when the exporter is to stop.
const GRACE: Duration = Duration::from_millis(300);
/// How often a wait looks whether it is to stop.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// Bytes of the replies of one round trip. They are a few to each command.
const MOST_REPLIED: u64 = 1 << 20;
/// Idle time after which the system asks whether the server is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Characters of an error of the server that are repeated.
const MOST_SAID: usize = 200;

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
    /// What the server's clock said, in milliseconds, and when.
    clock: Option<(i64, Instant)>,
    closing: bool,
}

/// Why a round trip did not succeed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) why: String,
    /// The server had ended the connection, and has answered nothing.
    pub(super) ended: bool,
}

impl Connection {
    /// Connects, gives name and password, chooses the database.
    pub(super) fn open(target: &Target, dress: Dress, stop: &Arc<Stop>) -> Result<Connection, String> {
        let socket =
            connect(&target.host, target.port, stop).map_err(|e| format!("it cannot be reached: {e}"))?;
        let until = Instant::now() + PATIENCE;
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
        let mut connection = Connection { stream, parser: Parser::new(), clock: None, closing: false };
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
        let begun = Instant::now();
        let replies = self.ask(&commands).map_err(|e| e.why)?;
        // Who may not ask for the time goes by the clock of this machine.
        let vital = replies.len().saturating_sub(1);
        // The first that failed is the cause of the others.
        if let Some((n, e)) = replies.iter().take(vital).enumerate().find_map(|(n, r)| Some((n, refused(r)?)))
        {
            return Err(match n == 0 && target.password.is_some() {
                // Some servers repeat the arguments of what they do not know.
                true => {
                    format!("it refuses the user or the password ({})", said(e.code().chars(), target))
                }
                false => format!("it refuses database {}: {}", target.database, text(e, target)),
            });
        }
        if let Some(time) = replies.last() {
            self.note_clock(time, begun);
        }
        Ok(())
    }

    /// Notes the reply to `TIME`, which was asked for then.
    pub(super) fn note_clock(&mut self, reply: &Value, asked: Instant) {
        if let Some(ms) = clock(reply) {
            self.clock = Some((ms, asked));
        }
    }

    /// The time by the server's clock, in milliseconds; by this machine's where the server does not say.
    pub(super) fn now_ms(&self) -> i64 {
        time_of(self.clock, Instant::now(), now_ms())
    }

    /// From here on what is under way has its own time, though the exporter is stopping.
    pub(super) fn take_leave(&mut self, until: Instant) {
        self.closing = true;
        let timed = self.stream.timed();
        timed.stop = Arc::default();
        timed.until = until;
    }

    /// One round trip: all commands, then all replies. Commands that the server refused are among the replies.
    pub(super) fn ask(&mut self, commands: &[Cmd]) -> Result<Vec<Value>, Failed> {
        let mut packed = Vec::new();
        commands.iter().for_each(|command| command.write_packed_command(&mut packed));
        self.send(&packed, commands.len())
    }

    pub(super) fn send(&mut self, packed: &[u8], replies: usize) -> Result<Vec<Value>, Failed> {
        let timed = self.stream.timed();
        timed.left = MOST_REPLIED;
        if !self.closing {
            timed.until = Instant::now() + PATIENCE;
        }
        let stream = self.stream.all();
        stream.write_all(packed).and_then(|()| stream.flush()).map_err(|e| {
            let ended = matches!(
                e.kind(),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
            );
            Failed { why: format!("it takes nothing: {e}"), ended }
        })?;
        let mut found = Vec::with_capacity(replies);
        for _ in 0..replies {
            let value = self.parser.parse_value(&mut *stream).map_err(|e| Failed {
                // The crate's errors may quote what was received; the kind says enough.
                why: match e.is_io_error() {
                    true => format!("it does not answer: {e}"),
                    false => "its answer is none of Redis's".to_owned(),
                },
                ended: found.is_empty() && e.is_connection_dropped(),
            })?;
            found.push(value);
        }
        Ok(found)
    }
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

/// What an error says, in a line without user and password, which some servers repeat with the rest of what they were sent.
pub(super) fn text(e: &redis::ServerError, target: &Target) -> String {
    let details = e.details().into_iter().flat_map(|details| [" ", details]);
    said(e.code().chars().chain(details.flat_map(str::chars)), target)
}

/// The start of what a server said, fit for a line of a log. Of a word without an end no more is looked at either.
fn said(all: impl Iterator<Item = char>, target: &Target) -> String {
    let line: String = all.filter(|c| !c.is_control()).take(4 * MOST_SAID).collect();
    target.conceal(&line).chars().take(MOST_SAID).collect()
}

/// The time by a clock that said so much at a moment, or by ours. Ours may be set meanwhile, the moment cannot. While the machine
/// sleeps no time passes by it: one report is then of the past, which buries nobody.
fn time_of(told: Option<(i64, Instant)>, now: Instant, ours: i64) -> i64 {
    let since = |at| i64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(i64::MAX);
    told.map_or(ours, |(ms, at)| ms.saturating_add(since(at)))
}

/// The reply to `TIME`, in milliseconds.
fn clock(reply: &Value) -> Option<i64> {
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
        let mut connection = Connection { stream, parser, clock: None, closing: true };
        let result = connection.ask(&[redis::cmd("PING")]).map(drop).map_err(|e| e.why);
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

    fn target() -> Target {
        Target::parse("redis://:s3cret@h").unwrap()
    }

    fn error(line: &[u8]) -> redis::ServerError {
        let value = redis::parse_redis_value(line);
        refused(&value.unwrap()).unwrap().clone()
    }

    #[test]
    fn what_a_server_says_of_an_error_is_a_short_line_without_the_password() {
        let forged = error(b"-BAD\nWARN\x1b[2Jforged details\x07 of it\r\n");
        assert_eq!(text(&forged, &target()), "BADWARN[2Jforged details of it");
        let endless = [b"-".as_slice(), &[b'X'; 1 << 20], b"\r\n"].concat();
        assert_eq!(text(&error(&endless), &target()).len(), MOST_SAID);
        // At the end of what is said, where the rest of it would be cut off.
        let named =
            error(b"-NOPERM User monitor has no permissions to run 'hgetall', says monitor-s3cret\r\n");
        let with_user = Target::parse("redis://monitor:monitor-s3cret@h").unwrap();
        let shown = text(&named, &with_user);
        assert_eq!(shown, "NOPERM User *** has no permissions to run 'hgetall', says ***");
        let repeated = format!("-ERR {}s3cret\r\n", "x".repeat(MOST_SAID - 8));
        let shown = text(&error(repeated.as_bytes()), &target());
        assert!(!shown.contains("s3c") && shown.ends_with("x***"), "{shown}");
        let (result, _) = introduced(b"-s3cret\nWARN forged\r\n+OK\r\n*0\r\n");
        assert_eq!(result.unwrap_err(), "it refuses the user or the password (***WARN)");
    }

    /// What becomes of a connection whose server answers so.
    fn introduced(answer: &'static [u8]) -> (Result<(), String>, i64) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target { port: listener.local_addr().unwrap().port(), ..target() };
        let target = Target { host: "127.0.0.1".to_owned(), ..target };
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.write_all(answer).unwrap();
            // Until the other end goes.
            let _ = socket.read_to_end(&mut Vec::new());
        });
        let dress = Dress { keepalive: true, nodelay: true };
        let (result, time) = match Connection::open(&target, dress, &Arc::default()) {
            Ok(connection) => (Ok(()), connection.now_ms()),
            Err(e) => (Err(e), 0),
        };
        server.join().unwrap();
        (result, time)
    }

    #[test]
    fn the_servers_time_goes_on_whatever_this_machines_clock_does() {
        let at = Instant::now();
        // An hour forward, an hour back.
        for ours in [1_000 + 3_600_000, 1_000 - 3_600_000] {
            assert_eq!(time_of(Some((1_000, at)), at + Duration::from_millis(250), ours), 1_250);
        }
        assert_eq!(time_of(None, at, 7), 7);
        // What no clock says.
        assert_eq!(time_of(Some((i64::MAX, at)), at + Duration::from_secs(1), 7), i64::MAX);
        let (result, time) = introduced(b"+OK\r\n+OK\r\n*2\r\n$17\r\n-9223372036854775\r\n$1\r\n0\r\n");
        assert!(result.is_ok() && time < -9_223_372_036_854_000_000, "{result:?} {time}");
        let (_, time) = introduced(b"+OK\r\n+OK\r\n*2\r\n$4\r\n1000\r\n$6\r\n500000\r\n");
        assert!((1_000_500..1_010_000).contains(&time), "{time}");
    }
}
