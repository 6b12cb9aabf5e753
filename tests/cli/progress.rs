//! Progress on a terminal: what takes long says so.

use super::*;

/// Runs a command whose stderr is a terminal and prints what that got.
const TERMINAL: &str = r#"
import os, pty, subprocess, sys
ours, theirs = pty.openpty()
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs)
os.close(theirs)
while True:
    try:
        drawn = os.read(ours, 4096)
    except OSError:
        break
    if not drawn:
        break
    os.write(1, drawn)
sys.exit(child.wait())
"#;

/// What the command draws on a terminal; `None`, with a note, without Python.
fn drawn(args: &[&str], code: i32) -> Option<String> {
    if Command::new("python3").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "python3 is not installed");
        thermocline_testing::skipped("python3 is not installed");
        return None;
    }
    let mut command = Command::new("python3");
    command.args(["-c", TERMINAL, env!("CARGO_BIN_EXE_thermocline")]).args(args).env("TERM", "xterm");
    let ran = Ran::from(start_command(command.stdin(Stdio::null())).wait_with_output().unwrap()).with(code);
    Some(ran.text())
}

#[test]
fn reading_a_trace_and_computing_say_so() -> Try {
    let dir = tempfile::tempdir()?;
    let trace = dir.path().join("trace");
    std::fs::write(&trace, (0..200_000).map(|n| format!("{}\n", n % 1000)).collect::<String>())?;
    let trace = trace.to_str().ok_or("path")?;
    let Some(drawn) = drawn(&["replay", trace, "--memory-items", "10"], 0) else { return Ok(()) };
    for what in ["reading the trace", "replaying", "computing LRU"] {
        assert!(drawn.contains(what), "{what} is not in {drawn:?}");
    }
    Ok(())
}

#[test]
fn rebuilding_a_catalog_says_so() -> Try {
    let place = Place::new();
    place.put("k", b"v", &["--create"]).with(0);
    std::fs::remove_dir_all(place.root.join("ssd/catalog"))?;
    let args = ["verify", "--rebuild-catalog", "--root", place.root()];
    let Some(drawn) = drawn(&args, 1) else { return Ok(()) };
    assert!(drawn.contains("rebuilding the catalog"), "{drawn:?}");
    Ok(())
}
