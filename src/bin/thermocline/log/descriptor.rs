//! A log that is a descriptor which this process has already: `/dev/stderr`, `/proc/self/fd/3`.
//!
//! Such a path is opened anew by the kernel, which for a socket, as a service's stderr is under systemd, it refuses, and for
//! what another user opened may not allow. What is open is duplicated instead: it is written to as it was given.
//!
//! Invariant: nothing of the descriptor is changed, its flags neither: others write to it too.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::Path;

/// The descriptor that a path leads to, as one of our own, if it can be written to.
pub(super) fn duplicate(path: &Path) -> Option<File> {
    let own = match number(path)? {
        0 => io::stdin().as_fd().try_clone_to_owned().ok()?,
        1 => io::stdout().as_fd().try_clone_to_owned().ok()?,
        2 => io::stderr().as_fd().try_clone_to_owned().ok()?,
        n => {
            let this = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
            pidfd_getfd(this, n, PidfdGetfdFlags::empty()).ok()?
        }
    };
    let is_written = fcntl_getfl(&own).ok()? & OFlags::RWMODE != OFlags::RDONLY;
    is_written.then(|| File::from(own))
}

/// Its number, with links followed up to the one that is a descriptor's.
fn number(path: &Path) -> Option<i32> {
    let mut at = path.to_path_buf();
    // As many as Linux follows.
    for _ in 0..40 {
        let dir = at.parent()?;
        let ours = Path::new("/proc").join(std::process::id().to_string()).join("fd");
        if ["/proc/self/fd", "/proc/thread-self/fd", "/dev/fd"].iter().any(|d| dir == Path::new(d))
            || dir == ours
        {
            return at.file_name()?.to_str()?.parse().ok().filter(|n| *n >= 0);
        }
        at = dir.join(std::fs::read_link(&at).ok()?);
    }
    None
}

/// Writes all of it, also where whoever gave the descriptor made it one that does not wait.
pub(super) fn write_whole(mut file: &File, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                match poll(&mut [PollFd::new(&file, PollFlags::OUT)], None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn links_lead_to_a_descriptor_or_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let link = |name: &str, to: &str| {
            let path = dir.path().join(name);
            std::os::unix::fs::symlink(to, &path).unwrap();
            number(&path)
        };
        assert_eq!(link("a", "/dev/fd/7"), Some(7));
        assert_eq!(link("b", "a"), Some(7));
        assert_eq!(link("c", &format!("/proc/{}/fd/3", std::process::id())), Some(3));
        assert_eq!((link("d", "/proc/1/fd/2"), link("e", "e"), link("f", "none")), (None, None, None));
        assert_eq!(number(Path::new("/proc/self/fd/2")), Some(2));
        assert_eq!((number(Path::new("/")), number(Path::new("/dev/fd/x"))), (None, None));
        // One that cannot be written to is none of a log's.
        let read_only = File::open("/dev/zero").unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&read_only));
        assert!(duplicate(Path::new(&path)).is_none());
    }

    #[test]
    fn what_does_not_wait_is_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let file = File::from(OwnedFd::from(ours));
        let line = vec![b'x'; 4 << 20];
        let reading = std::thread::spawn(move || {
            // Until it is full.
            std::thread::sleep(std::time::Duration::from_millis(50));
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).map(|_| all.len())
        });
        write_whole(&file, &line).unwrap();
        drop(file);
        assert_eq!(reading.join().unwrap().unwrap(), line.len());
    }
}
