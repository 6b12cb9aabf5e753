//! The replay of traces.

use super::*;
use std::io::BufReader;

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
fn the_settings_of_a_file_hold() -> Try {
    let dir = tempfile::tempdir()?;
    let (trace, file) = (dir.path().join("t.txt"), dir.path().join("t.toml"));
    std::fs::write(&trace, (0..2000).map(|i| format!("k{},1000\n", i % 400)).collect::<String>())?;
    let text = "[storage_tiers.memory]\nmax_size = \"2MiB\"\nitem_limit = 50\npolicy = \"lru\"\n\
                [storage_tiers.ssd]\npath = \"/nowhere\"\nmax_size = \"8MiB\"\nitem_limit = 100\n";
    std::fs::write(&file, text)?;
    let at = dir.path().to_str().ok_or("path")?;
    let (trace, file) = (trace.to_str().ok_or("path")?, file.to_str().ok_or("path")?);
    let json = run(&["replay", trace, "--config", file, "--dir", at, "--json"]).with(0).json();
    // A loop over 400 items: of 50 in memory an LRU finds none; without the limit all would fit.
    assert_eq!(json["lru"]["hits"], 0, "{json}");
    assert_eq!((&json["memory"]["item_limit"], &json["memory"]["capacity"]), (&50.into(), &(2 << 20).into()));
    let more = ["replay", trace, "--config", file, "--dir", at, "--memory-items", "1000", "--json"];
    assert_eq!(run(&more).with(0).json()["lru"]["hits"], 1600);
    let text = run(&["replay", trace, "--config", file, "--dir", at]).with(0).text();
    assert!(text.contains("2.00 MiB, 50 items"), "{text}");
    assert!(text.lines().any(|l| l.trim().starts_with("ssd ") && l.contains(" 8.00 MiB ")), "{text}");
    assert_eq!(left_in(dir.path()).len(), 2);
    Ok(())
}

#[test]
fn all_that_is_lacking_is_named_at_once() {
    let err = run(&["replay"]).with(2).err;
    assert!(err.contains("which trace?") && err.contains("--memory-items N or --memory SIZE"), "{err}");
    let err = run(&["replay", "--memory", "1MiB"]).with(2).err;
    assert!(err.contains("which trace?") && !err.contains("how much"), "{err}");
    let err = run(&["replay", file!()]).with(2).err;
    assert!(!err.contains("which trace?") && err.contains("how much"), "{err}");
}

#[test]
fn a_configuration_is_no_trace() -> Try {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("thermocline.toml");
    std::fs::write(&file, "[storage_tiers.memory]\nmax_size = \"64MiB\"\n")?;
    let path = file.to_str().ok_or("path")?;
    let err = run(&["replay", path, "--memory-items", "9"]).with(2).err;
    assert!(err.contains("line 2: not a trace, it seems") && err.contains("--format keys"), "{err}");
    // Who says that they are keys is believed.
    let text = run(&["replay", path, "--memory-items", "9", "--format", "keys"]).with(0).text();
    assert!(text.contains("2 requests"), "{text}");
    Ok(())
}

#[test]
fn a_signal_while_the_trace_is_read() -> Try {
    let dir = tempfile::tempdir()?;
    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)?;
    let path = pipe.to_str().ok_or("path")?;
    let mut child = start(&["replay", path, "--memory-items", "9"], Stdio::null());
    // Opening waits until the other side reads.
    let mut trace = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    trace.write_all(b"a\nb\nc\n").unwrap();
    // It has read all that there is, and then sleeps: it waits for more.
    until("all is read", || rustix::io::ioctl_fionread(&trace).unwrap() == 0 && state(&child) == "S");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    // It says so while it still waits for the trace.
    let (said, _) = line(BufReader::new(child.stderr.take().unwrap()));
    assert!(
        said.contains("stopping") && said.contains("Ctrl-C again ends at once, without results"),
        "{said}"
    );
    assert_eq!(child.try_wait().unwrap(), None);
    // Between saying so and stopping it may read some more. That the trace goes on keeps it from coming to an end.
    until("it reads no more", || match trace.write_all(b"d\n") {
        Ok(()) => child.try_wait().unwrap().is_some(),
        Err(e) => e.kind() == std::io::ErrorKind::BrokenPipe || panic!("{e}"),
    });
    assert_eq!(wait(&mut child, Duration::from_secs(60)), Some(130));
    let text = Ran::from(child.wait_with_output().unwrap()).text();
    assert!(text.starts_with("Interrupted while the trace was read: "), "{text}");
    Ok(())
}

#[test]
fn a_second_signal_ends_it_at_once() -> Try {
    let dir = tempfile::tempdir()?;
    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)?;
    let path = pipe.to_str().ok_or("path")?;
    let mut child = start(&["replay", path, "--memory-items", "9"], Stdio::null());
    let trace = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let mut err = BufReader::new(child.stderr.take().unwrap());
    for expected in ["thermocline: stopping", "thermocline: ended without results\n"] {
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let said;
        (said, err) = line(err);
        assert!(said.starts_with(expected), "{said}");
    }
    assert_eq!(wait(&mut child, Duration::from_secs(30)), Some(130));
    drop(trace);
    Ok(())
}

#[test]
fn a_signal_while_requests_are_replayed() -> Try {
    let dir = tempfile::tempdir()?;
    let trace = dir.path().join("t.txt");
    let at = dir.path().join("work");
    std::fs::create_dir(&at)?;
    // Far more than are replayed before the signal: every other one hits at once, the others fill the disk tiers.
    const REQUESTS: u64 = 1_000_000;
    let key = |i: u64| if i.is_multiple_of(2) { i % 32 } else { i * i % 50_021 };
    std::fs::write(&trace, (0..REQUESTS).map(|i| format!("k{}\n", key(i))).collect::<String>())?;
    let (path, work) = (trace.to_str().ok_or("path")?, at.to_str().ok_or("path")?);
    let tiers = ["--memory", "1MiB", "--ssd", "8MiB", "--hdd", "16MiB", "--cold", "16MiB"];
    for json in [false, true] {
        let mut args = vec!["replay", path, "--dir", work, "--allow-ram-disk", "--value-size", "4KiB"];
        args.extend(tiers);
        args.extend(json.then_some("--json"));
        let mut child = start(&args, Stdio::null());
        // Values in a file of the store: requests are being replayed.
        let filled = || {
            let segments = left_in(&at).into_iter().map(|d| d.join("ssd/segments"));
            let files = segments.flat_map(|s| std::fs::read_dir(s).into_iter().flatten().flatten());
            files.count() > 1
        };
        let begun = Instant::now();
        while !filled() && child.try_wait()?.is_none() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no segment: {:?}", left_in(&at));
            std::thread::sleep(Duration::from_millis(2));
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        let code = wait(&mut child, Duration::from_secs(60));
        let ran = Ran::from(child.wait_with_output()?);
        assert_eq!(code, Some(130), "{}{}", ran.text(), ran.err);
        assert_eq!(left_in(&at), Vec::<PathBuf>::new(), "{}", ran.text());
        if json {
            let json = ran.json();
            assert_eq!((&json["interrupted"], &json["wrong_values"]), (&true.into(), &0.into()), "{json}");
            let done = json["requests"].as_u64().ok_or("requests")?;
            assert!((1..REQUESTS).contains(&done) && json["hits"].as_u64() > Some(0), "{json}");
            assert!(json["distinct_keys"].as_u64() <= Some(done), "{json}");
        } else {
            let text = ran.text();
            assert!(text.contains("Interrupted: what follows holds for the requests so far."), "{text}");
            assert!(
                text.contains(" requests, ") && text.contains("all tiers") && text.contains("LRU"),
                "{text}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_trace_from_a_pipe() {
    let ran = run_with_input(&["replay", "-", "--memory-items", "10", "--json"], b"a\nb\na\n").with(0);
    assert_eq!((ran.json()["requests"].as_u64(), ran.json()["hits"].as_u64()), (Some(3), Some(1)));
    // It is named in words.
    let ran = run_with_input(&["replay", "-", "--memory-items", "10"], b"a\nb\na\n").with(0);
    assert!(ran.text().starts_with("standard input (a key a line)\n"), "{}", ran.text());
    for input in [&b"a b\n"[..], b"", b"\x1f\x8bno gzip"] {
        let err = run_with_input(&["replay", "-", "--memory-items", "10"], input).with(2).err;
        assert!(err.starts_with("thermocline: standard input: "), "{err}");
    }
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
        thermocline_testing::skipped("THERMOCLINE_TRACES is not set");
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
            thermocline_testing::skipped(&format!("{} is not there", path.display()));
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
