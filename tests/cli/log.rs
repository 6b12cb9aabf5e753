//! The log of the command: `--log` and `[log]`.

use super::*;
use std::os::unix::fs::PermissionsExt;

/// What is asked over the socket is in the log of the process that is asked.
#[test]
fn who_verifies_an_open_store_is_in_its_log() {
    let place = Place::new();
    place.put("k", b"value", &["--create"]).with(0);
    let log = place.root.with_file_name("log");
    let args = ["serve-metrics", "0", "--root", place.root(), "--log", log.to_str().unwrap()];
    let mut serving = start(&args, Stdio::null());
    let mut line = [0; 1];
    serving.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    place.run(&["verify"]).with(0);
    rustix::process::kill_process(rustix::process::Pid::from_child(&serving), rustix::process::Signal::TERM)
        .unwrap();
    assert_eq!(wait(&mut serving, Duration::from_secs(30)), Some(0));
    let text = std::fs::read_to_string(&log).unwrap();
    let of = |what: &str| text.lines().find(|l| l.contains("thermocline::remote") && l.contains(what));
    assert!(of("verification begins").is_some_and(|l| l.contains("process=")), "{text}");
    assert!(of("verification ends").is_some_and(|l| l.contains("all was looked at")), "{text}");
}

#[test]
fn the_log_says_what_happened_and_no_key() -> Try {
    let place = Place::new();
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("t.log");
    let log_path = log.to_str().ok_or("path")?;
    let _ = place.put("whose-key-this-is", b"value", &["--create", "--log", log_path]).with(0);
    let _ = place.run(&["get", "whose-other-key-this-is", "--log", log_path]).with(1);
    let text = std::fs::read_to_string(&log)?;
    let lines: Vec<&str> = text.lines().collect();
    let has = |parts: &[&str]| lines.iter().filter(|l| parts.iter().all(|p| l.contains(p))).count();
    assert_eq!(has(&[" INFO thermocline::command: begins version=\"", " pid="]), 2, "{text}");
    assert_eq!((has(&["thermocline::command: ends code=0"]), has(&["ends code=1"])), (1, 1), "{text}");
    assert!(lines.iter().all(|l| l.starts_with("20") && l.contains("Z ")), "{text}");
    assert!(!text.contains("whose-"), "{text}");
    assert_eq!(std::fs::metadata(&log)?.permissions().mode() & 0o777, 0o600);
    // What the engine says of damage is there too, and its file.
    let identity = place.root.join("ssd/store.a");
    std::fs::write(&identity, "scratched")?;
    let _ = place.run(&["get", "whose-key-this-is", "--log", log_path]).with(0);
    let text = std::fs::read_to_string(&log)?;
    assert!(text.contains(" WARN thermocline_storage::") && text.contains("store.a"), "{text}");
    Ok(())
}

#[test]
fn level_size_and_number_of_files_are_the_configurations() -> Try {
    let place = Place::new();
    let dir = tempfile::tempdir()?;
    let (file, log) = (dir.path().join("t.toml"), dir.path().join("t.log"));
    let config = |level: &str| {
        let text = format!(
            "[storage_tiers.ssd]\npath = {:?}\n[log]\nfile = {log:?}\nlevel = {level:?}\nrotation = \"size\"\nmax_size = \
             \"64KiB\"\nkeep = 2\n",
            place.root.join("ssd")
        );
        std::fs::write(&file, text)
    };
    let path = file.to_str().ok_or("path")?;
    config("warn")?;
    let _ = run_with_input(&["put", "k", "--create", "--config", path], b"v").with(0);
    assert_eq!(std::fs::read_to_string(&log)?, "");
    config("info")?;
    let _ = run(&["get", "k", "--config", path]).with(0);
    assert_eq!(std::fs::read_to_string(&log)?.lines().count(), 2);
    // One that is nearly full goes on; then it is set aside, and what was aside is gone.
    std::fs::write(&log, "x".repeat((64 << 10) - 10))?;
    std::fs::write(dir.path().join("t.log.1"), "old")?;
    let _ = run(&["--config", path, "get", "k"]).with(0);
    assert_eq!(std::fs::read_to_string(&log)?.lines().count(), 2);
    assert_eq!(std::fs::metadata(dir.path().join("t.log.1"))?.len(), (64 << 10) - 10);
    let names: Vec<_> = std::fs::read_dir(dir.path())?.flatten().map(|e| e.file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    // The option comes before the configuration.
    let other = dir.path().join("other");
    let _ = run(&["get", "k", "--config", path, "--log", other.to_str().ok_or("path")?]).with(0);
    assert_eq!(std::fs::read_to_string(&other)?.lines().count(), 2);
    Ok(())
}

#[test]
fn a_log_that_cannot_be_written_is_an_error_that_says_so() {
    let place = Place::new();
    let _ = place.put("k", b"v", &["--create"]).with(0);
    let ran = place.run(&["get", "k", "--log", "/nowhere/at/all"]).with(2);
    assert!(ran.err.contains("/nowhere/at/all: it does not exist"), "{}", ran.err);
    assert!(place.run(&["get", "k", "--log", place.root()]).with(2).err.contains("it is a directory"));
}

#[test]
fn a_pipe_is_written_to_and_one_that_nobody_reads_is_not_waited_for() -> Try {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let place = Place::new();
    let _ = place.put("k", b"v", &["--create"]).with(0);
    let dir = tempfile::tempdir()?;
    let pipe = dir.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0)?;
    let path = pipe.to_str().ok_or("path")?;
    let mut child = start(&["get", "k", "--log", path, "--root", place.root()], Stdio::null());
    assert_eq!(wait(&mut child, Duration::from_secs(20)), Some(2));
    let mut said = String::new();
    child.stderr.take().ok_or("stderr")?.read_to_string(&mut said)?;
    assert!(said.contains("a pipe that nobody reads"), "{said}");
    let reader = std::fs::File::options().read(true).write(true).open(&pipe)?;
    let _ = place.run(&["get", "k", "--log", path]).with(0);
    let mut text = vec![0; 4096];
    let read = (&reader).read(&mut text)?;
    assert!(String::from_utf8_lossy(&text[..read]).contains("ends code=0"));
    Ok(())
}

/// A service's stderr is a socket, which cannot be opened by a name.
#[test]
fn a_standard_error_that_is_a_socket_is_written_to() -> Try {
    use std::os::unix::net::{UnixListener, UnixStream};
    let place = Place::new();
    let _ = place.put("k", b"v", &["--create"]).with(0);
    let dir = tempfile::tempdir()?;
    let link = dir.path().join("log");
    std::os::unix::fs::symlink("/dev/stderr", &link)?;
    for log in ["/dev/stderr", "/proc/self/fd/2", "/dev/fd/2", link.to_str().ok_or("path")?] {
        let (mut ours, theirs) = UnixStream::pair()?;
        let stderr = Stdio::from(std::os::fd::OwnedFd::from(theirs));
        let mut get = command(&["get", "k", "--log", log, "--root", place.root()]);
        let ran = get.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn()?;
        drop(get);
        let mut text = String::new();
        ours.read_to_string(&mut text)?;
        let ran = ran.wait_with_output()?;
        assert_eq!((ran.status.code(), &*ran.stdout), (Some(0), &b"v"[..]), "{log}: {text}");
        assert!(text.contains("ends code=0"), "{log}: {text}");
    }
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket)?;
    let ran = place.run(&["get", "k", "--log", socket.to_str().ok_or("path")?]).with(2);
    assert!(ran.err.contains("it is a socket"), "{}", ran.err);
    Ok(())
}

#[test]
fn no_password_is_shown() -> Try {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("t.toml");
    let path = file.to_str().ok_or("path")?;
    std::fs::write(&file, "[metrics.redis]\nurl = \"redis://me:s3cret@127.0.0.1:1/3\"\n")?;
    for args in [&["config", "show", path][..], &["config", "show", path, "--json"]] {
        let shown = run(args).with(0).text();
        // It can be read, and is of the same server.
        assert!(shown.contains("redis://***:***@127.0.0.1:1/3") && !shown.contains("s3cret"), "{shown}");
    }
    std::fs::write(&file, "[metrics.redis]\nurl = \"redis://me:s3cret@127.0.0.1:port/3\"\n")?;
    let ran = run(&["config", "check", path]).with(2);
    assert!(ran.err.contains("t.toml:2:7") && !ran.err.contains("s3cret"), "{}", ran.err);
    Ok(())
}
