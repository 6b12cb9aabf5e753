//! From a name to a socket.
//!
//! Invariants: an address is tried for [`CONNECT`], and a name has [`ADDRESSES`] of them at most; the wait for one ends
//! within [`LOOK`] of a stop. Looking up the name alone cannot be cut short, for which the system has no deadline: its time
//! counts for nothing else, so that a resolver that takes long, and finds it, leaves the connection all of its own.

use super::Stop;
use super::wire::LOOK;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How long one address is tried. Linux sends what got lost again after a second: a single packet that is lost is no
/// reason to give up.
const CONNECT: Duration = Duration::from_millis(2500);
/// Addresses of a name that are tried.
const ADDRESSES: usize = 8;

/// A connection to the first address that takes one.
pub(super) fn connect(host: &str, port: u16, stop: &Stop) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()?.take(ADDRESSES) {
        match attempt(address, stop) {
            Ok(socket) => return Ok(socket),
            Err(e) => failed = e,
        }
    }
    Err(failed)
}

fn attempt(address: SocketAddr, stop: &Stop) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(e) if e.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => comes_about(&socket, stop)?,
        done => done?,
    }
    socket.set_nonblocking(false)?;
    let socket = TcpStream::from(socket);
    // Where nobody listens at a port of this machine that the system may give out, it may give it to this very socket,
    // which is then connected with itself, and would take its own commands for replies.
    match socket.local_addr()? == socket.peer_addr()? {
        true => Err(ErrorKind::ConnectionRefused.into()),
        false => Ok(socket),
    }
}

/// Waits for a connection, in slices, so that a stop is seen.
fn comes_about(socket: &Socket, stop: &Stop) -> io::Result<()> {
    let until = Instant::now() + CONNECT;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || stop.at().is_some() {
            return Err(io::Error::new(ErrorKind::TimedOut, "no connection in time"));
        }
        let pause = Timespec::try_from(left.min(LOOK)).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&pause)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return socket.take_error()?.map_or(Ok(()), Err),
            Err(e) => return Err(e.into()),
        }
    }
}

/// A listener that takes no connection: its queue is full, so that the system drops what asks for one.
#[cfg(test)]
pub(super) struct Full {
    listener: std::net::TcpListener,
    queued: Vec<Socket>,
}

#[cfg(test)]
impl Full {
    pub(super) fn new() -> Full {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let full = Full { listener: listener.into(), queued: Vec::new() };
        let address = full.address();
        let queued = std::iter::from_fn(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.connect_timeout(&address.into(), Duration::from_millis(200)).ok().map(|()| socket)
        });
        let queued: Vec<Socket> = queued.take(100).collect();
        assert!(!queued.is_empty() && queued.len() < 100);
        Full { queued, ..full }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Takes what waits: the next that asks gets a connection.
    pub(super) fn make_room(&mut self) {
        (0..self.queued.len()).for_each(|_| drop(self.listener.accept().unwrap()));
        self.queued.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_first_packet_that_is_lost_is_sent_again() {
        // The system asks again after a second, and then after three: where this machine stands still there may be no room by
        // the first, and no time for the other.
        let is_sent_again = || {
            let mut full = Full::new();
            let address = full.address();
            let began = Instant::now();
            let connecting =
                std::thread::spawn(move || connect("127.0.0.1", address.port(), &Stop::default()));
            std::thread::sleep(Duration::from_millis(300));
            full.make_room();
            let connected = connecting.join().unwrap();
            assert!(began.elapsed() >= Duration::from_millis(300), "the queue was not full");
            connected.is_ok()
        };
        assert!((0..5).any(|_| is_sent_again()));
    }

    #[test]
    fn who_takes_no_connection_is_given_up_and_not_waited_for_at_a_stop() {
        let full = Full::new();
        let port = full.address().port();
        let stop = Arc::<Stop>::default();
        let began = Instant::now();
        assert_eq!(connect("127.0.0.1", port, &stop).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(began.elapsed() >= CONNECT && began.elapsed() < CONNECT * 2, "{:?}", began.elapsed());
        let told = stop.clone();
        let telling = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            told.tell();
        });
        let (connected, took) = thermocline_testing::timed(|| connect("127.0.0.1", port, &stop));
        assert!(connected.is_err() && took < Duration::from_millis(1500), "{took:?}");
        telling.join().unwrap();
    }
}
