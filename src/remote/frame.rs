//! What goes over the socket: frames, each with a head of eight bytes.
//!
//! | byte | what |
//! |---|---|
//! | 0, 1 | `TC` |
//! | 2 | version of the protocol: 1 |
//! | 3 | kind: 1 question, 2 part of an answer, 3 end of an answer, 4 refusal |
//! | 4 to 7 | length of what follows, little-endian |
//! | 8 … | JSON, in UTF-8 |
//!
//! A client sends one question; the answer is any number of parts and an end, or a refusal at any point; then the
//! connection is closed.
//!
//! Invariants: a length is held against the most that the reader takes before anything is allocated, and memory grows only
//! with what really comes; a whole frame has one deadline, however few bytes come at a time; nothing that a peer sends
//! raises a signal.

use rustix::net::SendFlags;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const MAGIC: [u8; 2] = *b"TC";
/// The version of the protocol.
pub(super) const VERSION: u8 = 1;
/// Bytes of a head.
pub(super) const HEAD: usize = 8;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Question = 1,
    Part = 2,
    End = 3,
    Refusal = 4,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        [Kind::Question, Kind::Part, Kind::End, Kind::Refusal].into_iter().find(|k| *k as u8 == byte)
    }
}

/// Why no frame was read.
#[derive(Debug)]
pub(super) enum Wrong {
    /// Not the bytes of a frame.
    NoFrame(&'static str),
    /// Of another version of the protocol.
    Version(u8),
    /// Longer than is taken.
    TooLong,
    /// The connection failed, ended, or nothing came in time.
    Io(io::Error),
}

impl From<io::Error> for Wrong {
    fn from(e: io::Error) -> Wrong {
        Wrong::Io(e)
    }
}

/// A stream that is read until a point in time.
struct Until<'a> {
    stream: &'a UnixStream,
    end: Instant,
}

fn left(end: Instant) -> io::Result<Duration> {
    match end.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.end)?))?;
        match self.stream.read(buf) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            read => read,
        }
    }
}

/// Reads a frame of at most so many bytes behind its head.
pub(super) fn read(stream: &UnixStream, most: usize, patience: Duration) -> Result<(Kind, Vec<u8>), Wrong> {
    let mut from = Until { stream, end: Instant::now() + patience };
    let mut head = [0; HEAD];
    from.read_exact(&mut head)?;
    let [a, b, version, kind, len @ ..] = head;
    if [a, b] != MAGIC {
        return Err(Wrong::NoFrame("it does not begin as a frame does"));
    }
    if version != VERSION {
        return Err(Wrong::Version(version));
    }
    let kind = Kind::of(kind).ok_or(Wrong::NoFrame("it is of no kind that there is"))?;
    let len = u32::from_le_bytes(len);
    if len as usize > most {
        return Err(Wrong::TooLong);
    }
    let mut body = Vec::new();
    from.take(u64::from(len)).read_to_end(&mut body)?;
    if body.len() < len as usize {
        return Err(Wrong::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok((kind, body))
}

/// Writes a frame.
pub(super) fn write(stream: &UnixStream, kind: Kind, body: &[u8], patience: Duration) -> io::Result<()> {
    let len = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let [a, b] = MAGIC;
    let mut frame = Vec::with_capacity(HEAD + body.len());
    frame.extend([a, b, VERSION, kind as u8]);
    frame.extend(len.to_le_bytes());
    frame.extend(body);
    let end = Instant::now() + patience;
    let mut rest = frame.as_slice();
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(end)?))?;
        // Not `write`: in a program that leaves SIGPIPE as it is, that would end it.
        match rustix::net::send(stream, rest, SendFlags::NOSIGNAL) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Who is at the other end: process (0: one that cannot be named from here) and user, as they were when it connected, or
/// began to listen.
#[expect(
    unsafe_code,
    reason = "rustix takes a process of another name space, which has the number 0, for one with a number"
)]
pub(super) fn peer(stream: &UnixStream) -> io::Result<(u32, u32)> {
    use std::os::fd::AsRawFd;
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `stream` is borrowed; the kernel writes at most `len` bytes at the address
    // of `who`, which has that many, is not used otherwise meanwhile, and is valid with any bytes.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut who).cast(),
            &raw mut len,
        )
    };
    if done != 0 || len as usize != size_of::<libc::ucred>() {
        return Err(io::Error::last_os_error());
    }
    Ok((u32::try_from(who.pid).unwrap_or(0), who.uid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SOON: Duration = Duration::from_millis(200);

    fn sent(bytes: &[u8]) -> Result<(Kind, Vec<u8>), Wrong> {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(bytes).unwrap();
        drop(a);
        read(&b, 100, SOON)
    }

    #[test]
    fn a_frame_is_what_it_says_to_the_byte() {
        let (a, mut b) = UnixStream::pair().unwrap();
        write(&a, Kind::End, b"{}", SOON).unwrap();
        let mut bytes = [0; 10];
        b.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"TC\x01\x03\x02\0\0\0{}");
        assert!(matches!(sent(&bytes), Ok((Kind::End, body)) if body == b"{}"));
    }

    #[test]
    fn what_is_no_frame_is_refused_before_it_is_believed() {
        assert!(matches!(sent(b"GET / HTTP/1.1\r\n"), Err(Wrong::NoFrame(_))));
        assert!(matches!(sent(b"TC\x02\x01\0\0\0\0"), Err(Wrong::Version(2))));
        assert!(matches!(sent(b"TC\x01\x09\0\0\0\0"), Err(Wrong::NoFrame(_))));
        assert!(matches!(sent(b"TC\x01\x01\xff\xff\xff\xff"), Err(Wrong::TooLong)));
        assert!(matches!(sent(b"TC\x01\x01\x65\0\0\0"), Err(Wrong::TooLong)));
        assert!(matches!(sent(b"TC\x01"), Err(Wrong::Io(e)) if e.kind() == io::ErrorKind::UnexpectedEof));
        assert!(
            matches!(sent(b"TC\x01\x01\x05\0\0\0abc"), Err(Wrong::Io(e)) if e.kind() == io::ErrorKind::UnexpectedEof)
        );
    }

    #[test]
    fn who_sends_a_byte_now_and_then_has_no_longer_than_who_sends_nothing() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let began = Instant::now();
        let slow = std::thread::spawn(move || {
            for byte in b"TC\x01\x01\x60\0\0\0".iter().cycle().take(60) {
                if a.write_all(&[*byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        assert!(matches!(read(&b, 100, SOON), Err(Wrong::Io(e)) if e.kind() == io::ErrorKind::TimedOut));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        drop(b);
        slow.join().unwrap();
    }

    #[test]
    fn who_reads_nothing_is_given_up() {
        let (a, _b) = UnixStream::pair().unwrap();
        let refused = write(&a, Kind::Part, &vec![b' '; 8 << 20], SOON);
        assert!(refused.is_err_and(|e| e.kind() == io::ErrorKind::TimedOut));
    }

    #[test]
    fn the_other_end_is_this_process() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert_eq!(peer(&a).unwrap(), (std::process::id(), rustix::process::geteuid().as_raw()));
    }
}
