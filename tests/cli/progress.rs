//! Progress on a terminal: what takes long says so.

use super::*;

/// Runs a command whose stderr is a terminal and prints what that got.
const TERMINAL: &str = r#"
import os, pty, subprocess, sys
ours, theirs = pty.openpty()
both = os.environ.get("STDOUT_TOO")
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=theirs if both else subprocess.DEVNULL, stderr=theirs)
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
    drawn_by(args, code, &[])
}

fn drawn_by(args: &[&str], code: i32, env: &[(&str, &str)]) -> Option<String> {
    if Command::new("python3").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "python3 is not installed");
        thermocline_testing::skipped("python3 is not installed");
        return None;
    }
    let mut command = Command::new("python3");
    command
        .args(["-c", TERMINAL, env!("CARGO_BIN_EXE_thermocline")])
        .args(args)
        .env("TERM", "xterm")
        .envs(env.iter().copied());
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
    // Nobody wants a rate to the ten thousandth of a request.
    let rates: Vec<&str> = drawn.split_whitespace().filter_map(|word| word.strip_suffix("/s")).collect();
    assert!(!rates.is_empty(), "{drawn:?}");
    assert!(rates.iter().all(|r| r.split_once('.').is_none_or(|(_, digits)| digits.len() <= 1)), "{rates:?}");
    Ok(())
}

#[test]
fn listing_and_removing_say_so() -> Try {
    let place = Place::new();
    place.put("k", b"v", &["--create"]).with(0);
    let Some(listed) = drawn(&["ls", "--root", place.root()], 0) else { return Ok(()) };
    assert!(listed.contains("opening") && listed.contains("listing"), "{listed:?}");
    let removed = drawn(&["rm", "--all", "--root", place.root()], 0).ok_or("python3")?;
    assert!(removed.contains("opening") && removed.contains("removing"), "{removed:?}");
    Ok(())
}

#[test]
fn a_long_list_has_a_header_for_people() -> Try {
    let place = Place::new();
    place.put("some-key", b"v", &["--create"]).with(0);
    let args = ["ls", "--long", "--root", place.root()];
    let piped = run(&args).with(0).text();
    assert_eq!(piped.lines().count(), 1, "{piped}");
    let Some(shown) = drawn_by(&args, 0, &[("STDOUT_TOO", "1")]) else { return Ok(()) };
    let lines: Vec<&str> = shown.lines().map(str::trim_end).collect();
    let at = lines.iter().position(|l| l.ends_with("some-key")).ok_or(shown.clone())?;
    let header = lines.get(at - 1).ok_or(shown.clone())?;
    assert!(header.contains("tier    type          size     lives  key"), "{shown:?}");
    // Each word stands over its column.
    let line = lines.get(at).ok_or("line")?;
    assert_eq!(header.len() - header.rfind("key").ok_or("key")?, 3);
    assert_eq!(line.find("some-key"), Some("tier    type          size     lives  ".len()), "{shown:?}");
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
