//! The benchmark.

use super::*;

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
    // Each was put once, so what is live is what was written at first, but for what is packed better on the way down.
    let stored = |t: &Value| t["stored_bytes"].as_u64().unwrap_or(0);
    let written: u64 = json["types"].as_array().ok_or("types")?.iter().map(stored).sum();
    let live = stored(&json["verify"]);
    assert!(live > written / 2 && live <= written + written / 100, "{live} {written}");
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
fn every_directory_of_a_file_is_used() -> Try {
    let dir = tempfile::tempdir()?;
    let root = dir.path().to_str().ok_or("path")?;
    for name in ["a", "b", "c", "d"] {
        std::fs::create_dir(dir.path().join(name))?;
    }
    let file = dir.path().join("t.toml");
    let text = format!(
        "[storage_tiers.ssd]\npaths = [{{ path = \"{root}/a\", size = \"8MiB\" }}, {{ path = \"{root}/b\", size = \
         \"4MiB\" }}]\n[storage_tiers.hdd]\npath = \"{root}/c\"\nmax_size = \"9MiB\"\n[storage_tiers.cold]\npath = \
         \"{root}/d\"\n"
    );
    std::fs::write(&file, text)?;
    let file = file.to_str().ok_or("path")?;
    let json = run(&["bench", "--config", file, "--data", "2MiB", "--seconds", "1", "--json"]).with(0).json();
    assert_eq!(json["tiers"]["ssd"]["limit"].as_u64(), Some(12 << 20), "{}", json["tiers"]);
    assert_eq!(json["tiers"]["hdd"]["limit"].as_u64(), Some(9 << 20), "{}", json["tiers"]);
    let used: Vec<&str> = ["ssd", "hdd", "cold"]
        .iter()
        .filter_map(|t| json["tiers"][t]["directories"].as_array())
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(used.len(), 4, "{used:?}");
    for (used, (parent, name)) in used.iter().zip([("a", "ssd"), ("b", "ssd-1"), ("c", "hdd"), ("d", "cold")])
    {
        assert!(used.starts_with(&format!("{root}/{parent}/thermocline-bench-")), "{used}");
        assert!(used.ends_with(&format!("/{name}")), "{used}");
        assert!(left_in(&dir.path().join(parent)).is_empty());
    }
    Ok(())
}

#[test]
fn items_that_were_evicted_are_no_failure() -> Try {
    let dir = tempfile::tempdir()?;
    let at = dir.path().to_str().ok_or("path")?;
    let json = run(&[
        "bench",
        "--dir",
        at,
        "--data",
        "24MiB",
        "--ssd",
        "=8MiB",
        "--hdd",
        "=8MiB",
        "--cold",
        "=8MiB",
        "--memory",
        "1MiB",
        "--seconds",
        "1",
        "--verify",
        "--json",
    ])
    .with(0)
    .json();
    let (missing, let_go) = (json["missing"].as_u64(), json["let_go"].as_u64());
    assert!(missing > Some(0) && missing <= let_go, "{missing:?} {let_go:?}");
    Ok(())
}

#[test]
fn a_file_system_without_files_is_named_as_such() {
    let err = run(&["bench", "--hdd", "/proc"]).with(2).err;
    assert!(err.contains("/proc: its file system (proc) has no room for files at all"), "{err}");
    assert!(!err.contains("use less data"), "{err}");
}

#[test]
fn more_data_than_the_disk_has_room_for_is_refused_at_once() -> Try {
    let dir = tempfile::tempdir()?;
    // With bounded memory, so that a list of all the items ends this command and not the machine.
    let script = "ulimit -v 4000000; exec \"$0\" \"$@\"";
    let exe = env!("CARGO_BIN_EXE_thermocline");
    let mut shell = Command::new("sh");
    shell.args(["-c", script, exe, "bench", "--data", "1000000TiB", "--dir"]).arg(dir.path());
    let ran = Ran::from(start_command(shell.stdin(Stdio::null())).wait_with_output()?).with(2);
    assert!(ran.err.contains("are free and") && ran.err.contains("may be needed"), "{}", ran.err);
    assert!(left_in(dir.path()).is_empty());
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
    assert!(text.contains("40 items") && text.contains("files that are no items: 1 empty"), "{text}");
    assert_eq!(text.matches("0 wrong, 0 missing").count(), 2, "{text}");
    let row = |first: &str| text.lines().find(|l| l.split_whitespace().next() == Some(first)).unwrap_or("");
    let heads: Vec<&str> = row("puts").split_whitespace().collect();
    assert_eq!(heads, ["puts", "puts/s", "bytes/s", "mean", "p50", "p99", "p99.9", "max"]);
    // The sizes that are beside each other there.
    assert!(text.contains("Directories and engine agree, to 5 % and 8.00 MiB."), "{text}");
    assert!(row("all").ends_with("–") && text.contains("The data themselves are "), "{text}");
    let device = row("ssd").split_whitespace().nth(3).ok_or("device")?;
    assert!(text.contains(&format!("All on {device}: differences between the disk tiers")), "{text}");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // All of it fits into memory.
    assert!(words.contains("Half or twice the size of any tier changes nothing"), "{text}");
    assert!(!text.contains("memory half"), "{text}");
    assert!(left_in(&work).is_empty());
    let nowhere = dir.path().join("nowhere");
    run(&["bench", "--files", nowhere.to_str().ok_or("path")?, "--dir", work_arg]).with(2);
    Ok(())
}

#[test]
fn files_beyond_the_limits_are_no_items() -> Try {
    let dir = tempfile::tempdir()?;
    let (files, work) = (dir.path().join("files"), dir.path().join("work"));
    std::fs::create_dir(&files)?;
    std::fs::create_dir(&work)?;
    for i in 0..40 {
        std::fs::write(files.join(format!("{i}.txt")), [b'x'; 1024])?;
    }
    let (files, work) = (files.to_str().ok_or("path")?, work.to_str().ok_or("path")?);
    let args = ["bench", "--files", files, "--dir", work, "--seconds", "1", "--limit-bytes", "10KiB"];
    let text = run(&args).with(0).text();
    assert!(text.contains(": 10 items, 10.0 KiB"), "{text}");
    assert!(text.contains("files that are no items: 30 beyond --limit-bytes or --limit-files\n"), "{text}");
    Ok(())
}

#[test]
fn a_size_on_disk_that_the_engine_does_not_say_is_a_failure() -> Try {
    let dir = tempfile::tempdir()?;
    let at = dir.path().to_str().ok_or("path")?;
    let args = ["bench", "--dir", at, "--data", "4MiB", "--seconds", "2", "--verify"];
    let child = start(&args, Stdio::null());
    let begun = Instant::now();
    let ssd = loop {
        assert!(begun.elapsed() < Duration::from_secs(60), "no directory is made");
        let ssd = left_in(dir.path()).pop().map(|work| work.join("ssd"));
        match ssd.filter(|ssd| ssd.join("store.a").exists()) {
            Some(ssd) => break ssd,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    // What the engine knows nothing of.
    let wrote = std::fs::write(ssd.join("foreign"), vec![7; 32 << 20]);
    let ran = Ran::from(child.wait_with_output()?).with(1);
    wrote?;
    assert!(ran.text().contains("WRONG SIZE: the ssd tier occupies"), "{}", ran.text());
    assert!(left_in(dir.path()).is_empty());
    Ok(())
}

#[test]
fn a_ram_file_system_is_no_disk() {
    let shm = Path::new("/dev/shm");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !mounts.lines().any(|l| l.contains(" /dev/shm ") && l.contains(" - tmpfs ")) {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "/dev/shm is no tmpfs: mount one, as every Linux does"
        );
        thermocline_testing::skipped("/dev/shm is no tmpfs here");
        return;
    }
    let ours = || left_in(shm).into_iter().filter(|p| p.to_string_lossy().contains("thermocline-")).count();
    let before = ours();
    for args in [
        &["bench", "--dir", "/dev/shm"][..],
        &["bench", "--hdd", "/dev/shm=64MiB"],
        &["replay", "--memory", "1MiB", "--ssd", "8MiB", "--dir", "/dev/shm", file!()],
    ] {
        // Of `replay` the file is no trace either: what needs no reading is told first.
        let ran = run(args).with(2);
        assert!(ran.err.contains("tmpfs") && ran.err.contains("--allow-ram-disk"), "{}", ran.err);
    }
    assert_eq!(ours(), before);
}

#[test]
fn a_signal_leaves_no_directories() -> Try {
    // While it loads or settles, and while it warms up.
    for (signal, after) in [(rustix::process::Signal::INT, 500), (rustix::process::Signal::TERM, 4000)] {
        let dir = tempfile::tempdir()?;
        let at = dir.path().to_str().ok_or("path")?;
        let mut child = start(&["bench", "--dir", at, "--data", "16MiB", "--seconds", "60"], Stdio::null());
        let start = Instant::now();
        while left_in(dir.path()).is_empty() && start.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(after));
        assert!(!left_in(dir.path()).is_empty());
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        assert_eq!(wait(&mut child, Duration::from_secs(40)), Some(130));
        let out = Ran::from(child.wait_with_output()?);
        assert!(out.text().contains("Interrupted during"), "{}{}", out.text(), out.err);
        assert!(out.err.contains("Ctrl-C again ends at once"), "{}", out.err);
        // Tables without data are left out.
        assert!(!out.text().contains("Reads: 0") && !out.text().contains(" 0 ns"), "{}", out.text());
        assert!(left_in(dir.path()).is_empty(), "{:?}", left_in(dir.path()));
    }
    Ok(())
}

/// The second signal comes while the engine makes files: none of them is left, nor is a directory made again for one.
#[test]
fn a_second_signal_ends_at_once_and_leaves_no_directories() -> Try {
    // Whatever the caller's `PATH` is.
    for (after, path) in [(2000, std::env::var("PATH")?), (2500, "/nowhere".into()), (500, "".into())] {
        let dir = tempfile::tempdir()?;
        let at = dir.path().to_str().ok_or("path")?;
        let mut command = command(&["bench", "--dir", at, "--data", "64MiB", "--seconds", "60"]);
        let mut child = start_command(command.stdin(Stdio::null()).env("PATH", path));
        let start = Instant::now();
        while left_in(dir.path()).is_empty() && start.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(after));
        for _ in 0..2 {
            rustix::process::kill_process(
                rustix::process::Pid::from_child(&child),
                rustix::process::Signal::INT,
            )
            .unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(wait(&mut child, Duration::from_secs(20)), Some(130));
        let said = Ran::from(child.wait_with_output()?).err;
        assert!(said.lines().all(|line| line.starts_with("thermocline: ")), "{said}");
        assert!(left_in(dir.path()).is_empty(), "{:?}", left_in(dir.path()));
    }
    Ok(())
}

/// Most of the data is one file: the tiers are made so large that it fits.
#[test]
fn a_file_larger_than_the_others_together_is_an_item_too() -> Try {
    let (files, work) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    std::fs::write(files.path().join("large"), (0..9 << 20).map(|_| next()).collect::<Vec<u8>>())?;
    for n in 0..20 {
        std::fs::write(files.path().join(format!("small {n}")), vec![b'a' + n; 10_000])?;
    }
    let (files, at) = (files.path().to_str().ok_or("path")?, work.path().to_str().ok_or("path")?);
    let ran = run(&["bench", "--files", files, "--dir", at, "--verify", "--seconds", "1"]).with(0);
    let text = ran.text();
    assert!(text.contains("bench: 21 items") && !text.contains("larger than a value"), "{text}");
    Ok(())
}

/// One file is larger than any value may be: it is left out, and the tiers are not made large for it.
#[test]
fn a_file_that_is_left_out_makes_no_tier_large() -> Try {
    let (files, work) = (tempfile::tempdir()?, tempfile::tempdir()?);
    std::fs::File::create(files.path().join("large"))?.set_len(65 << 20)?;
    for n in 0..20 {
        std::fs::write(files.path().join(format!("small {n}")), vec![b'a' + n; 10_000])?;
    }
    let (files, at) = (files.path().to_str().ok_or("path")?, work.path().to_str().ok_or("path")?);
    let text = run(&["bench", "--files", files, "--dir", at, "--seconds", "1"]).with(0).text();
    assert!(text.contains("bench: 20 items") && text.contains("1 larger than a value"), "{text}");
    assert!(text.contains("8.00 MiB") && !text.contains("128 MiB"), "{text}");
    Ok(())
}
