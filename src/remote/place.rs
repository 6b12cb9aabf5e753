//! Where the socket is: `socket` in a directory of the store.
//!
//! Invariants: no link in its place is followed when it is made or removed, and nothing but a socket is replaced; it has
//! its mode before anybody can connect, whatever the umask; only the one that was made here is removed, or one on which
//! nobody listens. Whoever makes one holds the directory's lock, so that no living process of the engine's has one there;
//! one that is alive is somebody else's, and stays.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fchmod, openat, statat, unlinkat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Its name.
pub(super) const NAME: &str = "socket";
/// Its mode.
const MODE: u32 = 0o600;
/// Bytes of the longest path that an address takes, without the zero behind it.
const LONGEST: usize = 107;
/// Connections that wait for their turn.
const BACKLOG: i32 = 16;

/// A directory, held open.
#[derive(Debug)]
pub(super) struct Place {
    dir: OwnedFd,
    path: PathBuf,
}

/// Which socket it is that was made.
pub(super) type Made = (u64, u64);

impl Place {
    pub(super) fn open(path: &Path) -> io::Result<Place> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty())?;
        Ok(Place { dir, path: path.to_path_buf() })
    }

    /// The socket's path.
    pub(super) fn path(&self) -> PathBuf {
        self.path.join(NAME)
    }

    /// The owner of the directory.
    pub(super) fn owner(&self) -> io::Result<u32> {
        Ok(rustix::fs::fstat(&self.dir)?.st_uid)
    }

    /// The socket's address: its path, or where that is too long for one, a shorter path to the same place.
    pub(super) fn address(&self) -> io::Result<SocketAddrUnix> {
        let path = self.path();
        if path.as_os_str().as_bytes().len() <= LONGEST {
            return Ok(SocketAddrUnix::new(&path)?);
        }
        Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{NAME}", self.dir.as_raw_fd()))?)
    }

    fn look(&self) -> io::Result<Option<Stat>> {
        match statat(&self.dir, NAME, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether a socket is there.
    ///
    /// # Errors
    /// Something else is.
    pub(super) fn is_there(&self) -> io::Result<bool> {
        match self.look()? {
            Some(stat) if is_socket(&stat) => Ok(true),
            Some(_) => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "what is there is no socket: move it away, and open the store again",
            )),
            None => Ok(false),
        }
    }

    /// Removes what a process that is dead by now has left.
    ///
    /// # Errors
    /// Somebody listens there, or it cannot be told whether anybody does.
    pub(super) fn clear(&self) -> io::Result<()> {
        if !self.is_there()? {
            return Ok(());
        }
        if self.is_alive()? {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another program listens on the socket that is there: give that one another place, or the store another \
                 directory, and open it again",
            ));
        }
        match unlinkat(&self.dir, NAME, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether anybody listens on the socket that is there. Waits for nobody.
    fn is_alive(&self) -> io::Result<bool> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match connect(&socket, &self.address()?) {
            // Its queue is full, or it is of another kind than ours: somebody's in any case.
            Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS | Errno::PROTOTYPE) => Ok(true),
            Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Makes the socket, and listens.
    pub(super) fn listen(&self) -> io::Result<(UnixListener, Made)> {
        self.clear()?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // The file that `bind` makes has the mode that the socket has, less what the umask takes away.
        fchmod(&socket, Mode::from_raw_mode(MODE))?;
        bind(&socket, &self.address()?)?;
        let listening = || {
            let stat = self.look()?.filter(is_socket).ok_or(io::ErrorKind::NotFound)?;
            if stat.st_mode & 0o7777 != MODE {
                let why = format!("it was made with mode {:o}, not {MODE:o}", stat.st_mode & 0o7777);
                return Err(io::Error::other(why));
            }
            listen(&socket, BACKLOG)?;
            Ok((stat.st_dev, stat.st_ino))
        };
        let made = listening().inspect_err(|_| {
            let _ = self.clear();
        })?;
        Ok((UnixListener::from(socket), made))
    }

    /// Removes the socket that was made, if it is still the one.
    pub(super) fn remove(&self, made: Made) {
        if self.look().is_ok_and(|s| s.is_some_and(|s| (s.st_dev, s.st_ino) == made)) {
            let _ = unlinkat(&self.dir, NAME, AtFlags::empty());
        }
    }
}

fn is_socket(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Socket
}
