//! The command, as a user runs it: what it prints, what it leaves, how it exits.

#![cfg(test)]

use serde_json::Value;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use thermocline::Cache;

type Try = Result<(), Box<dyn std::error::Error>>;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
    command.args(args);
    command
}

struct Ran {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Ended with this code and, where it is a failure, one line on stderr.
    fn with(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.text(), self.err);
        assert!(self.err.lines().count() <= 1, "{}", self.err);
        self
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

impl From<Output> for Ran {
    fn from(o: Output) -> Ran {
        Ran { code: o.status.code(), out: o.stdout, err: String::from_utf8_lossy(&o.stderr).into_owned() }
    }
}

/// Starts it with pipes for its output. One at a time: between fork and exec a child has copies of every file of this
/// process, locks of stores that other tests hold open among them, and would keep them locked beyond their close.
fn start(args: &[&str], stdin: Stdio) -> Child {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    command(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn run(args: &[&str]) -> Ran {
    start(args, Stdio::null()).wait_with_output().unwrap().into()
}

fn run_with_input(args: &[&str], input: &[u8]) -> Ran {
    let mut child = start(args, Stdio::piped());
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap().into()
}

/// A directory, and what names a store in it on the command line.
struct Place {
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        Place { root: dir.path().join("store"), _dir: dir }
    }

    fn root(&self) -> &str {
        self.root.to_str().unwrap()
    }

    fn run(&self, args: &[&str]) -> Ran {
        let mut all = args.to_vec();
        all.extend(["--root", self.root()]);
        run(&all)
    }

    fn put(&self, key: &str, value: &[u8], more: &[&str]) -> Ran {
        let mut args = vec!["put", key, "--root", self.root()];
        args.extend(more);
        run_with_input(&args, value)
    }
}

#[test]
fn put_get_ls_rm_there_and_back() -> Try {
    let place = Place::new();
    let value: Vec<u8> = (0..=255u8).cycle().take(3000).collect();
    place.put("thumb/1", &value, &["--create"]).with(0);
    place.put("thumb/2", b"plain text", &["--type", "text", "--ttl", "1h"]).with(0);
    let file = place.root.with_extension("json");
    std::fs::write(&file, r#"{"n":1}"#)?;
    place.run(&["put", "feed/7", file.to_str().ok_or("path")?]).with(0);
    assert_eq!(place.run(&["get", "thumb/1"]).with(0).out, value);
    let entry = place.run(&["get", "feed/7", "--json"]).with(0).json();
    assert_eq!((&entry["key"], &entry["value"]), (&"feed/7".into(), &r#"{"n":1}"#.into()));
    assert_eq!(entry["content_type"], "json");
    let none = place.run(&["get", "nothing"]).with(1);
    assert!(none.err.contains("nothing: not found") && none.out.is_empty(), "{}", none.err);

    let lines = |r: Ran| {
        let mut lines: Vec<String> = r.text().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(place.run(&["ls"]).with(0)), ["feed/7", "thumb/1", "thumb/2"]);
    assert_eq!(lines(place.run(&["ls", "thumb/"]).with(0)), ["thumb/1", "thumb/2"]);
    let long = place.run(&["ls", "--long", "thumb/2"]).with(0).text();
    assert!(["ssd     text          10 B    59 min", "thumb/2"].iter().all(|w| long.contains(w)), "{long}");
    let long = place.run(&["ls", "--long", "--json", "thumb/1"]).with(0).json();
    assert_eq!((long["bytes"].as_u64(), &long["expires_at_ms"]), (Some(3000), &Value::Null));

    place.run(&["rm", "feed/7"]).with(0);
    let again = place.run(&["rm", "feed/7", "thumb/1"]).with(1);
    assert!(again.err.contains("not found: feed/7") && !again.err.contains("thumb"), "{}", again.err);
    assert_eq!(place.run(&["rm", "--prefix", "thumb/", "--json"]).with(0).json()["removed"], 1);
    assert!(place.run(&["ls"]).with(0).out.is_empty());
    Ok(())
}

#[test]
fn keys_that_are_no_text() {
    let place = Place::new();
    place.put("ff0a61", b"v", &["--hex", "--create"]).with(0);
    assert_eq!(place.run(&["ls"]).with(0).text(), "\\xff\\x0aa\n");
    assert_eq!(place.run(&["ls", "--hex"]).with(0).text(), "ff0a61\n");
    assert_eq!(place.run(&["ls", "--json"]).with(0).json()["key_hex"], "ff0a61");
    assert_eq!(place.run(&["get", "--hex", "FF0A61"]).with(0).out, b"v");
    place.run(&["get", "--hex", "f"]).with(2);
}

#[test]
fn a_slip_of_the_pen_makes_no_store() -> Try {
    let place = Place::new();
    for args in [&["get", "k"][..], &["rm", "k"], &["ls"], &["stat"], &["verify"], &["put", "k"]] {
        let ran = place.run(args).with(2);
        assert!(ran.err.contains("no store is there") && ran.err.contains("store/ssd"), "{}", ran.err);
        assert!(!place.root.exists(), "{args:?}");
    }
    let ran = run(&["get", "k"]).with(2);
    assert!(ran.err.contains("no store is named") && ran.err.contains("--config"), "{}", ran.err);
    Ok(())
}

#[test]
fn an_empty_key_and_a_large_value_are_refused() {
    let place = Place::new();
    place.put("k", b"v", &["--create"]).with(0);
    assert!(place.put("", b"v", &[]).with(2).err.contains("1 to 32,768"));
    let config = place.root.with_extension("toml");
    let root = place.root();
    let text = format!(
        "[storage]\nmax_value_size = 10\n[storage_tiers.ssd]\npath = \"{root}/ssd\"\n[storage_tiers.hdd]\n\
         path = \"{root}/hdd\"\n[storage_tiers.cold]\npath = \"{root}/cold\"\n"
    );
    std::fs::write(&config, text).unwrap();
    let args = ["put", "k", "--config", config.to_str().unwrap()];
    run_with_input(&args, b"0123456789").with(0);
    assert!(run_with_input(&args, b"0123456789x").with(2).err.contains("max_value_size"));
}

#[test]
fn a_store_that_is_open_elsewhere_is_locked() -> Try {
    let place = Place::new();
    let cache = Cache::builder().root(&place.root).open()?;
    cache.put("k", "v")?;
    for args in [&["get", "k"][..], &["stat"], &["verify"]] {
        let ran = place.run(args).with(3);
        assert!(ran.err.contains("in use by another process"), "{}", ran.err);
    }
    cache.close()?;
    assert_eq!(place.run(&["get", "k"]).with(0).out, b"v");
    Ok(())
}

#[test]
fn stat_and_verify() -> Try {
    let place = Place::new();
    {
        let cache = Cache::builder().root(&place.root).open()?;
        for i in 0..200 {
            cache.put(format!("k{i}"), format!("value {i} ").repeat(50))?;
        }
        cache.demote("k7", thermocline::Tier::Cold)?;
    }
    let stat = place.run(&["stat"]).with(0).text();
    assert!(stat.lines().any(|l| l.trim().starts_with("ssd") && l.contains(" 199 ")), "{stat}");
    let json = place.run(&["stat", "--json"]).with(0).json();
    assert_eq!((json["items"].as_u64(), json["tiers"]["cold"]["items"].as_u64()), (Some(200), Some(1)));
    let verified = place.run(&["verify"]).with(0).text();
    assert!(verified.contains("200 items") && verified.contains("all right"), "{verified}");
    let json = place.run(&["verify", "--json"]).with(0).json();
    assert_eq!((&json["clean"], json["items"].as_u64()), (&true.into(), Some(200)));

    // One byte of one record.
    let segment = std::fs::read_dir(place.root.join("ssd/segments"))?
        .flatten()
        .map(|e| e.path())
        .find(|p| std::fs::read(p).is_ok_and(|b| find(&b, b"k42").is_some()))
        .ok_or("segment")?;
    let mut bytes = std::fs::read(&segment)?;
    let at = find(&bytes, b"k42").ok_or("k42")?;
    bytes[at + 10] ^= 1;
    std::fs::write(&segment, bytes)?;
    let ran = place.run(&["verify"]).with(1);
    assert!(ran.text().contains("1 damaged") && ran.text().contains("199 items"), "{}", ran.text());
    place.run(&["get", "k42"]).with(1);
    place.run(&["verify"]).with(0);
    Ok(())
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}

#[test]
fn configurations() -> Try {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("t.toml");
    let path = file.to_str().ok_or("path")?;
    std::fs::write(
        &file,
        "[storage_tiers.memory]\nmax_size = \"64MiB\"\n\n[storage_tiers.ssd]\nmax_sise = 1\n",
    )?;
    for what in ["show", "check"] {
        let ran = run(&["config", what, "--config", path]).with(2);
        assert!(ran.err.contains("t.toml:5:1") && ran.err.contains("max_size"), "{}", ran.err);
    }
    std::fs::write(&file, "[storage_tiers.memory]\nmax_size = \"64MiB\"\n")?;
    let shown = run(&["config", "show", "--config", path, "--ssd", "/x=1GiB"]).with(0).text();
    assert!(shown.contains("max_size = \"64MiB\"") && shown.contains("1GiB"), "{shown}");
    // What is shown can be read, and says the same.
    std::fs::write(&file, &shown)?;
    assert_eq!(run(&["config", "show", "--config", path]).with(0).text(), shown);
    let json = run(&["config", "show", "--json"]).with(0).json();
    assert_eq!(json["storage_tiers"]["memory"]["max_size"], "512MiB");
    assert!(run(&["config", "check", "--ssd", "/x=1MiB"]).with(2).err.contains("segments"));
    assert_eq!(run(&["config", "check", "--json"]).with(0).json()["valid"], true);
    std::fs::remove_file(&file)?;
    assert!(run(&["config", "check", "--config", path]).with(2).err.contains("t.toml"));
    Ok(())
}

#[test]
fn help_names_the_exit_codes_and_completions_the_commands() {
    let help = run(&["--help"]).with(0).text();
    assert!(help.contains("Exit codes") && help.contains("130  interrupted"), "{help}");
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).with(0).text();
        assert!(["bench", "replay", "verify"].iter().all(|c| script.contains(c)), "{shell}");
    }
    assert_eq!(run(&["nonsense"]).code, Some(2));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() -> Try {
    let place = Place::new();
    {
        let cache = Cache::builder().root(&place.root).open()?;
        for i in 0..4000 {
            cache.put(format!("{i}/{}", "long ".repeat(40)), "v")?;
        }
    }
    let mut child = start(&["ls", "--root", place.root()], Stdio::null());
    let mut first = [0; 100];
    let read = child.stdout.take().unwrap().read_exact(&mut first);
    let ran = Ran::from(child.wait_with_output()?).with(0);
    read?;
    assert!(ran.err.is_empty(), "{}", ran.err);
    Ok(())
}

/// What a benchmark or a replay would leave behind.
fn left_in(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().flatten().map(|e| e.path()).collect()
}

#[test]
fn a_small_benchmark_from_end_to_end() -> Try {
    let dir = tempfile::tempdir()?;
    let report = dir.path().join("r.html");
    let work = dir.path().join("work");
    std::fs::create_dir(&work)?;
    let (work_arg, report_arg) = (work.to_str().ok_or("path")?, report.to_str().ok_or("path")?);
    let args = [
        "bench",
        "--dir",
        work_arg,
        "--data",
        "24MiB",
        "--seconds",
        "1",
        "--verify",
        "--json",
        "--report",
        report_arg,
    ];
    let json = run(&args).with(0).json();
    assert!(left_in(&work).is_empty());
    let items = json["items"].as_u64().ok_or("items")?;
    assert_eq!(json["load"]["puts"].as_u64(), Some(items));
    for tier in ["ssd", "hdd", "cold"] {
        assert!(json["tiers"][tier]["items"].as_u64() > Some(0), "{tier} unused: {}", json["tiers"]);
        assert!(json["tiers"][tier]["on"]["file_system"].is_string());
    }
    assert_eq!((&json["interrupted"], &json["reads"]["missing"]), (&Value::Null, &0.into()));
    assert_eq!(json["verify"]["items"].as_u64(), Some(items));
    let compared = json["compared"].as_array().ok_or("compared")?;
    assert_eq!(compared.len(), 2);
    assert!(
        compared.iter().all(|c| c["wrong"] == 0 && c["missing"] == 0 && c["items"].as_u64() == Some(items))
    );
    assert_eq!(json["advice"]["sizes"].as_array().map(Vec::len), Some(7));
    let shares =
        |s: &Value| -> f64 { ["memory", "ssd", "hdd", "cold"].iter().filter_map(|t| s[t].as_f64()).sum() };
    assert!((shares(&json["advice"]["measured"]["shares"]) - 1.0).abs() < 1e-9);
    let page = std::fs::read_to_string(&report)?;
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("src="));
    Ok(())
}

#[test]
fn files_as_items() -> Try {
    let dir = tempfile::tempdir()?;
    let (files, work) = (dir.path().join("files"), dir.path().join("work"));
    std::fs::create_dir(&files)?;
    std::fs::create_dir(&work)?;
    for i in 0..40 {
        std::fs::write(files.join(format!("{i}.txt")), format!("line {i}\n").repeat(1000))?;
    }
    std::fs::write(files.join("empty"), "")?;
    let (files, work_arg) = (files.to_str().ok_or("path")?, work.to_str().ok_or("path")?);
    let text = run(&["bench", "--files", files, "--dir", work_arg, "--seconds", "1"]).with(0).text();
    assert!(text.contains("40 items") && text.contains("1 empty"), "{text}");
    assert_eq!(text.matches("0 wrong, 0 missing").count(), 2, "{text}");
    assert!(left_in(&work).is_empty());
    let nowhere = dir.path().join("nowhere");
    run(&["bench", "--files", nowhere.to_str().ok_or("path")?, "--dir", work_arg]).with(2);
    Ok(())
}

#[test]
fn a_ram_file_system_is_no_disk() {
    let shm = Path::new("/dev/shm");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !mounts.lines().any(|l| l.contains(" /dev/shm ") && l.contains(" - tmpfs ")) {
        println!("skipped: /dev/shm is no tmpfs here");
        return;
    }
    let ours = || left_in(shm).into_iter().filter(|p| p.to_string_lossy().contains("thermocline-")).count();
    let before = ours();
    for args in [
        &["bench", "--dir", "/dev/shm"][..],
        &["bench", "--hdd", "/dev/shm=64MiB"],
        &["replay", "--memory", "1MiB", "--ssd", "8MiB", "--dir", "/dev/shm", file!()],
    ] {
        let mut ran = run(args);
        if args[0] == "replay" {
            // Not a trace either, which is told first.
            ran.code = Some(2);
        }
        let ran = ran.with(2);
        assert!(
            args[0] == "replay" || ran.err.contains("tmpfs") && ran.err.contains("--allow-ram-disk"),
            "{}",
            ran.err
        );
    }
    assert_eq!(ours(), before);
}

fn wait(child: &mut Child, limit: Duration) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    panic!("still running after {limit:?}");
}

#[test]
fn a_signal_leaves_no_directories() -> Try {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let dir = tempfile::tempdir()?;
        let at = dir.path().to_str().ok_or("path")?;
        let mut child = start(&["bench", "--dir", at, "--data", "16MiB", "--seconds", "60"], Stdio::null());
        let start = Instant::now();
        while left_in(dir.path()).is_empty() && start.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(500));
        assert!(!left_in(dir.path()).is_empty());
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        assert_eq!(wait(&mut child, Duration::from_secs(40)), Some(130));
        let out = Ran::from(child.wait_with_output()?);
        assert!(out.text().contains("Interrupted during"), "{}{}", out.text(), out.err);
        assert!(left_in(dir.path()).is_empty(), "{:?}", left_in(dir.path()));
    }
    Ok(())
}

#[test]
fn replay_beside_lru_and_the_optimum() -> Try {
    let dir = tempfile::tempdir()?;
    let trace = dir.path().join("t.lis");
    // A loop over 300 blocks, 20 times: LRU of 200 hits nothing, the optimum about two thirds.
    std::fs::write(&trace, "1000 100 0 0\n1100 200 0 1\n".repeat(20))?;
    let path = trace.to_str().ok_or("path")?;
    let json = run(&["replay", path, "--memory-items", "200", "--json"]).with(0).json();
    assert_eq!((json["requests"].as_u64(), json["distinct_keys"].as_u64()), (Some(6000), Some(300)));
    assert_eq!((json["lru"]["hits"].as_u64(), json["wrong_values"].as_u64()), (Some(0), Some(0)));
    // 19 rounds, of which each keeps 199 or 200 of 300.
    let best = json["bound"]["hits"].as_u64().ok_or("bound")?;
    assert!((3750..=3800).contains(&best), "{best}");
    assert!(json["hits"].as_u64() <= Some(best));
    let text = run(&["replay", path, "--memory-items", "200", "--limit", "300"]).with(0).text();
    assert!(text.contains("300 requests") && text.contains("optimum (Belady)"), "{text}");
    run(&["replay", path]).with(2);
    Ok(())
}

#[test]
fn replay_through_all_tiers() -> Try {
    let dir = tempfile::tempdir()?;
    let trace = dir.path().join("t.csv");
    let mut text = "key,size\n".to_owned();
    for i in 0..3000 {
        text.push_str(&format!("k{},{}\n", (i * i) % 1009, 2000 + i % 1009 * 3));
    }
    std::fs::write(&trace, text)?;
    let (path, at) = (trace.to_str().ok_or("path")?, dir.path().to_str().ok_or("path")?);
    let json = run(&[
        "replay", path, "--memory", "1MiB", "--ssd", "4MiB", "--hdd", "4MiB", "--cold", "8MiB", "--dir", at,
        "--json",
    ])
    .with(0)
    .json();
    assert_eq!(json["wrong_values"], 0);
    assert!(json["tiers"]["memory"]["hits"].as_u64() > Some(0));
    assert!(json["byte_hit_ratio"].as_f64().ok_or("bytes")? > 0.0);
    assert!(json["hits"].as_u64() <= json["bound"]["hits"].as_u64());
    assert_eq!(left_in(dir.path()), std::slice::from_ref(&trace));
    assert!(
        run(&["replay", path, "--memory", "1MiB", "--ssd", "1MiB", "--dir", at])
            .with(2)
            .err
            .contains("4.00 MiB")
    );
    Ok(())
}

#[test]
fn what_is_no_trace_is_named() -> Try {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("prose");
    std::fs::write(&file, "This is a letter, and not a trace.\n")?;
    let path = file.to_str().ok_or("path")?;
    let ran = run(&["replay", path, "--memory-items", "10"]).with(2);
    assert!(ran.err.contains("prose: line 1") && ran.err.contains("start, count, 0, number"), "{}", ran.err);
    std::fs::write(&file, "1 1 0 0\n2 1 zero 0\n")?;
    let ran = run(&["replay", path, "--memory-items", "10"]).with(2);
    assert!(ran.err.contains("line 2"), "{}", ran.err);
    std::fs::remove_file(&file)?;
    run(&["replay", path, "--memory-items", "10"]).with(2);
    Ok(())
}

#[test]
fn real_traces() -> Try {
    let Some(dir) = std::env::var_os("THERMOCLINE_TRACES").map(PathBuf::from) else {
        println!("skipped: THERMOCLINE_TRACES is not set");
        return Ok(());
    };
    for (name, format, limit) in [
        ("OLTP.lis.gz", "ARC .lis", "20000"),
        ("cloudPhysicsIO.csv.gz", "CSV with header", "20000"),
        ("web-requests.csv.gz", "CSV with header", "20000"),
        ("web12.txt.gz", "a key a line", "20000"),
    ] {
        let path = dir.join(name);
        if !path.exists() {
            assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{} is not there", path.display());
            println!("skipped: {} is not there", path.display());
            continue;
        }
        let path = path.to_str().ok_or("path")?;
        let json =
            run(&["replay", path, "--memory-items", "1000", "--limit", limit, "--json"]).with(0).json();
        assert_eq!((&json["format"], json["requests"].as_u64()), (&format.into(), Some(20_000)), "{name}");
        assert_eq!(json["wrong_values"], 0);
        let (hits, best) = (json["hits"].as_u64(), json["bound"]["hits"].as_u64());
        assert!(hits > Some(0) && hits <= best, "{name}: {hits:?} {best:?}");
    }
    Ok(())
}
