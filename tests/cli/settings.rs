//! Configurations, help and completions.

use super::*;

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
    for args in [&["config", "--help"][..], &["config", "check", "--help"], &["config", "show", "--help"]] {
        let help = run(args).with(0).text();
        assert!(help.contains("Exit codes"), "{args:?}: {help}");
    }
    let help = run(&["put", "--help"]).with(0).text();
    assert!(help.contains("the value is on stable storage, whatever --persistence says"), "{help}");
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).with(0).text();
        assert!(["bench", "replay", "verify"].iter().all(|c| script.contains(c)), "{shell}");
    }
    assert_eq!(run(&["nonsense"]).code, Some(2));
}

#[test]
fn a_configuration_is_named_in_any_place() -> Try {
    let dir = tempfile::tempdir()?;
    let (good, bad) = (dir.path().join("good.toml"), dir.path().join("bad.toml"));
    std::fs::write(&good, "[storage_tiers.memory]\nmax_size = \"64MiB\"\n")?;
    std::fs::write(&bad, "[storage_tiers.ssd]\npaths = []\n")?;
    let (good, bad) = (good.to_str().ok_or("path")?, bad.to_str().ok_or("path")?);
    for args in [
        &["config", "show", good][..],
        &["config", "show", "--config", good],
        &["config", "--config", good, "show"],
        &["--config", good, "config", "show"],
    ] {
        let shown = run(args).with(0).text();
        assert!(shown.contains("max_size = \"64MiB\""), "{args:?}: {shown}");
    }
    for args in
        [&["config", "check", bad][..], &["--config", bad, "config", "check"], &["--config", bad, "ls"]]
    {
        let ran = run(args).with(2);
        assert!(ran.err.contains("bad.toml:2:9") && ran.err.contains("the list is empty"), "{}", ran.err);
    }
    assert_eq!(run(&["config", "check", good, "--config", good]).code, Some(2));
    for args in [&["completions", "bash", "--config", good][..], &["--config", good, "completions", "bash"]] {
        assert!(run(args).with(0).text().contains("thermocline"));
    }
    let ran = run(&["--config", good, "replay", good, "--ssd", "1MiB"]).with(2);
    assert!(ran.err.contains("--ssd"), "{}", ran.err);
    Ok(())
}

#[test]
fn paths_that_are_not_there_are_wrong_usage() -> Try {
    let dir = tempfile::tempdir()?;
    let here = dir.path().to_str().ok_or("path")?;
    let file = dir.path().join("trace");
    std::fs::write(&file, "a\n")?;
    let file = file.to_str().ok_or("path")?;
    let (gone, below) = (&format!("{here}/gone"), &format!("{file}/below"));
    let memory = ["--memory-items", "3"];
    for (args, says) in [
        (&["bench", "--dir", gone, "--data", "1MiB"][..], "does not exist"),
        (&["bench", "--dir", file, "--data", "1MiB"], "name a directory"),
        (&["bench", "--files", gone], "does not exist"),
        (&["bench", "--files", below], "name a directory"),
        (&["bench", "--report", here, "--data", "1MiB"], "name a file"),
        (&["bench", "--data", "0"], "the least is 1.00 MiB"),
        (&["bench", "--hdd", gone, "--data", "1MiB"], "does not exist"),
        (&["replay", gone, memory[0], memory[1]], "does not exist"),
        (&["replay", here, memory[0], memory[1]], "name a file"),
        (&["replay", file, memory[0], memory[1], "--ssd", "8MiB", "--dir", gone], "does not exist"),
    ] {
        let ran = run(args).with(2);
        assert!(ran.err.contains(says), "{args:?}: {}", ran.err);
        let begins = ran.err.starts_with("thermocline: /") || ran.err.starts_with("thermocline: --data");
        assert!(begins, "{args:?}: {}", ran.err);
    }
    assert_eq!(left_in(dir.path()).len(), 1);
    Ok(())
}

#[test]
fn a_size_that_is_too_small_is_corrected_once() -> Try {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("t.toml");
    let path = file.to_str().ok_or("path")?;
    for (tier, setting, option) in
        [("ssd", "max_size", "--ssd"), ("hdd", "max_size", "--hdd"), ("cold", "limit", "--cold")]
    {
        let first = run(&["config", "check", option, "q=100"]).with(2).err;
        let (_, least) = first.rsplit_once("at least ").ok_or(first.clone())?;
        run(&["config", "check", option, &format!("q={}", least.trim())]).with(0);
        // And of a file, whatever stands behind it there.
        let write = |size: &str| {
            let text = format!(
                "[storage_tiers.{tier}]\n{setting} = \"{size}\"\npath = \"q\"\n[storage]\nsegment_size = \
                 \"2MiB\"\ngeneration_size = \"2MiB\"\npack_size = \"2MiB\"\n"
            );
            std::fs::write(&file, text)
        };
        write("100")?;
        let first = run(&["config", "check", path]).with(2).err;
        assert!(first.contains("t.toml:2:"), "{first}");
        let (_, least) = first.rsplit_once("at least ").ok_or(first.clone())?;
        write(least.trim())?;
        run(&["config", "check", path]).with(0);
    }
    Ok(())
}

#[test]
fn a_configuration_that_is_not_there_is_told_with_the_cure() -> Try {
    let dir = tempfile::tempdir()?;
    let (here, gone) = (dir.path().to_str().ok_or("path")?, dir.path().join("gone"));
    let err = run(&["get", "k", "--config", gone.to_str().ok_or("path")?]).with(2).err;
    assert!(err.contains("gone: cannot read: it does not exist: check the name"), "{err}");
    let err = run(&["get", "k", "--config", here]).with(2).err;
    assert!(err.contains("name a file"), "{err}");
    Ok(())
}

#[test]
fn config_check_says_what_it_looked_at() -> Try {
    let place = Place::new();
    let dir = place.root.parent().ok_or("parent")?;
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (new, other, file) = (at("new"), at("other"), at("file"));
    place.put("k", b"v", &["--create"]).with(0);
    std::fs::create_dir(&other)?;
    std::fs::write(dir.join("other/letter.txt"), "dear")?;
    std::fs::write(&file, "")?;
    let ssd = place.root.join("ssd").to_str().ok_or("path")?.to_owned();
    let args = ["config", "check", "--ssd", &ssd, "--hdd", &new, "--cold", &other];
    let text = run(&args).with(0).text();
    assert!(!text.starts_with("usable"), "{text}");
    for says in [
        format!("note: {new}, {other}: no store is there, and {ssd} is a store's: are they mistyped"),
        format!("{ssd}: a directory of a store"),
        format!("{new}: does not exist, and would be made in {}", dir.display()),
        format!("{other}: no store is there, and it is not empty (letter.txt)"),
        "nothing was opened or written".to_owned(),
    ] {
        assert!(text.contains(&says), "{says}: {text}");
    }
    assert!(!Path::new(&new).exists());
    let json = run(&[&args[..], &["--json"]].concat()).with(0).json();
    assert_eq!((&json["valid"], &json["looked_at"][1]["exists"]), (&true.into(), &false.into()), "{json}");
    assert!(json["looked_at"][0]["on"]["file_system"].is_string(), "{json}");
    for path in [file.clone(), format!("{file}/below")] {
        let err = run(&["config", "check", "--ssd", &path]).with(2).err;
        assert!(err.contains(&path) && err.contains("name a directory"), "{err}");
    }
    let bare = run(&["config", "check"]).with(0).text();
    assert!(bare.contains("memory alone") && bare.contains("no directory to look at"), "{bare}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    if mounts.lines().any(|l| l.contains(" /dev/shm ") && l.contains(" - tmpfs ")) {
        let text = run(&["config", "check", "--ssd", "/dev/shm/none"]).with(0).text();
        assert!(text.contains("a RAM file system is no disk"), "{text}");
    } else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "/dev/shm is no tmpfs");
        thermocline_testing::skipped("/dev/shm is no tmpfs here");
    }
    Ok(())
}

#[test]
fn config_check_says_all_that_is_wrong_in_the_order_of_the_file() -> Try {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("thermocline.toml");
    let path = file.to_str().ok_or("path")?;
    let check = |text: &str| {
        std::fs::write(&file, text)?;
        let Ran { code, err, .. } = run(&["config", "check", path]);
        assert_eq!(code, Some(2), "{err}");
        let places =
            err.lines().map(|line| line.strip_prefix(&format!("thermocline: {path}:")).unwrap_or(line));
        Ok::<Vec<String>, std::io::Error>(
            places.map(|p| p.chars().take(24).collect::<String>().trim_end().into()).collect(),
        )
    };
    // What is no setting, or takes another kind of value.
    let names = "[storage]\npersistence = \"often\"\n[wrong]\na = 1\n[storage_tiers.memory]\nmax_sise = 1\n";
    assert_eq!(
        check(names)?,
        ["2:15: storage.persistenc", "3:2: unknown table `wron", "6:1: unknown setting `ma",]
    );
    // What is beyond its limits.
    let limits = "[optimizer]\nmemory_floor = 1\n[resource_management.memory]\nmax_usage_percent = 101\n";
    assert_eq!(check(limits)?, ["2:16: optimizer.memory_f", "4:21: resource_managemen"]);
    // What does not go together.
    let rules = "[storage]\ninflight = \"1MiB\"\npersistence = \"always\"\n";
    assert_eq!(check(rules)?, ["2:12: storage.inflight =", "3:15: storage.persistenc"]);
    Ok(())
}

#[test]
fn config_check_compares_limits_with_the_room() -> Try {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (ssd, hdd, cold) = (at("ssd"), at("hdd"), at("cold"));
    let check = |sizes: [&str; 3]| {
        let named = [(&ssd, sizes[0]), (&hdd, sizes[1]), (&cold, sizes[2])].map(|(d, s)| format!("{d}{s}"));
        run(&["config", "check", "--ssd", &named[0], "--hdd", &named[1], "--cold", &named[2]]).with(0).text()
    };
    let text = check(["=64MiB", "=512TiB", "=512TiB"]);
    let says =
        format!("note: {ssd}, {hdd}, {cold}: 1024 TiB by the limits, and the file system has room for ");
    assert!(text.contains(&says) && text.starts_with("usable\n"), "{text}");
    // Nobody gave those; nor is no limit too much.
    let text = check(["=64MiB", "=64MiB", ""]);
    assert!(!text.contains("by the limits"), "{text}");
    let text = check(["", "", ""]);
    assert!(!text.contains("by the limits"), "{text}");
    Ok(())
}

/// As root every directory can be entered, so a copy of the command is run as somebody else.
#[test]
fn config_check_of_a_directory_that_may_not_be_entered() -> Try {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir()?;
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    mode(dir.path(), 0o755)?;
    let exe = dir.path().join("thermocline");
    std::fs::copy(env!("CARGO_BIN_EXE_thermocline"), &exe)?;
    let (closed, listless) = (dir.path().join("closed"), dir.path().join("listless"));
    for (path, bits) in [(&closed, 0o600), (&listless, 0o311)] {
        std::fs::create_dir_all(path.join("below"))?;
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(65_534), Some(65_534))?;
        }
        mode(path, bits)?;
    }
    let run = |args: &[&str], at: &Path| -> Result<Ran, Box<dyn std::error::Error>> {
        let mut command = Command::new(&exe);
        command.args(args).arg(at).current_dir(dir.path());
        if rustix::process::geteuid().is_root() {
            command.uid(65_534).gid(65_534);
        }
        Ok(start_command(&mut command).wait_with_output()?.into())
    };
    for at in [closed.clone(), closed.join("below"), closed.join("none"), listless.clone()] {
        let err = run(&["config", "check", "--hdd"], &at)?.with(4).err;
        assert!(err.contains(&at.display().to_string()) && err.contains("permission denied"), "{err}");
        if !at.ends_with("listless") {
            run(&["stat", "--hdd"], &at)?.with(4);
        }
    }
    for path in [&closed, &listless] {
        mode(path, 0o700)?;
    }
    run(&["config", "check", "--hdd"], &listless)?.with(0);
    Ok(())
}

#[test]
fn settings_of_a_tier_without_a_path_are_told_to_do_nothing() -> Try {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("t.toml");
    let path = file.to_str().ok_or("path")?;
    let here = dir.path().join("ssd");
    let ssd = format!("[storage_tiers.ssd]\npath = \"{}\"\n", here.display());
    std::fs::write(&file, format!("{ssd}[storage_tiers.hdd]\nmax_size = \"9GiB\"\n"))?;
    let says = "[storage_tiers.hdd]: settings, and no `path`";
    let text = run(&["config", "check", path]).with(0).text();
    assert!(text.contains(says), "{text}");
    let json = run(&["config", "check", path, "--json"]).with(0).json();
    assert!(json["notes"][0].as_str().is_some_and(|n| n.starts_with(says)), "{json}");
    let text = run(&["config", "check", path, "--hdd", "/x"]).with(0).text();
    assert!(!text.contains("no `path`"), "{text}");
    std::fs::write(&file, ssd)?;
    let text = run(&["config", "check", path]).with(0).text();
    assert!(!text.contains("no `path`"), "{text}");
    Ok(())
}

#[test]
fn messages_name_the_cure_that_helps() {
    let ran = run(&["config", "check", "--ssd", "q=3MiB"]).with(2);
    assert!(ran.err.contains("at least 4MiB") && !ran.err.contains("segment_size"), "{}", ran.err);
    let ran = run(&["config", "check", "--hdd", "q=3MiB"]).with(2);
    assert!(ran.err.contains("or lower storage.generation_size"), "{}", ran.err);
}

/// What was typed is called as it was typed, what stands in a file as it stands there.
#[test]
fn what_an_option_said_is_named_by_the_option() -> Try {
    let dir = tempfile::tempdir()?;
    let (here, file, trace) =
        (dir.path().to_str().ok_or("path")?, dir.path().join("t.toml"), dir.path().join("t"));
    std::fs::write(
        &file,
        "[storage_tiers.ssd]\npath = \"q\"\nmax_size = \"8MiB\"\n[storage]\nsegment_size = \"2MiB\"\n",
    )?;
    std::fs::write(&trace, "a\n")?;
    let (file, trace) = (file.to_str().ok_or("path")?, trace.to_str().ok_or("path")?);
    for (args, begins) in [
        (&["config", "check", "--ssd", "q=5KiB"][..], "--ssd: 5KiB is out of its limits"),
        (&["stat", "--hdd", "q=5KiB"], "--hdd: 5KiB is out of its limits"),
        (&["put", "k", "--cold", "q=5KiB"], "--cold: 5KiB is out of its limits"),
        (&["config", "check", "--memory", "5KiB"], "--memory: 5KiB is out of its limits"),
        (&["config", "check", "--ssd", "q=3MiB"], "--ssd leaves a directory 3MiB"),
        (&["config", "check", "--ssd", "q=0B"], "--ssd: size of \"q\" = 0"),
        (&["config", "check", "--ssd", "q", "--hdd", "q"], "--hdd: \"q\" is given twice (also in --ssd)"),
        (&["config", "check", file, "--ssd", "q=4MiB"], "--ssd leaves a directory 4MiB"),
        (&["config", "check", file, "--ssd", "q=3MiB", "--ssd", "r=5MiB"], "--ssd leaves a directory 3MiB"),
        (
            &["bench", "--dir", here, "--data", "1MiB", "--ssd", "=5KiB", "--allow-ram-disk"],
            "--ssd: 5KiB is out of its limits",
        ),
        (
            &["bench", "--dir", here, "--data", "1MiB", "--memory", "5KiB", "--allow-ram-disk"],
            "--memory: 5KiB is out",
        ),
        (
            &["replay", trace, "--dir", here, "--config", file, "--ssd", "5MiB", "--allow-ram-disk"],
            "--ssd leaves a directory 5MiB",
        ),
        (
            &["replay", trace, "--memory-items", "9999999999999999999"],
            "--memory-items: 9999999999999999999 is out of its limits",
        ),
    ] {
        let err = run(args).with(2).err;
        assert!(err.starts_with(&format!("thermocline: {begins}")), "{args:?}: {err}");
        assert!(!err.contains("storage_tiers"), "{args:?}: {err}");
    }
    // The limit is the default's here, and the file's there.
    let err = run(&["config", "check", "--ssd", "q=6GiB", "--ssd", "r"]).with(2).err;
    assert!(err.contains("storage_tiers.ssd.max_size = 5GiB"), "{err}");
    std::fs::write(file, "[storage_tiers.ssd]\npath = \"q\"\nmax_size = \"5KiB\"\n")?;
    let err = run(&["config", "check", file, "--hdd", "r=64MiB"]).with(2).err;
    assert!(err.contains("t.toml:3:") && err.contains("storage_tiers.ssd.max_size = 5KiB"), "{err}");
    Ok(())
}

#[test]
fn a_file_that_names_no_directory_is_told_what_it_lacks() -> Try {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("empty.toml");
    std::fs::write(&file, "")?;
    let err = run(&["stat", "--config", file.to_str().ok_or("path")?]).with(2).err;
    assert!(
        err.contains("empty.toml: no store is named in it") && err.contains("[storage_tiers.ssd]"),
        "{err}"
    );
    assert!(err.contains("--root DIR") && !err.contains("--config"), "{err}");
    let err = run(&["stat"]).with(2).err;
    assert!(err.contains("give --config FILE, --root DIR"), "{err}");
    Ok(())
}

#[test]
fn the_usage_of_rm_has_keys_a_prefix_or_all() {
    let text = run(&["rm", "--help"]).with(0).text();
    let usage: Vec<&str> = text.lines().skip_while(|l| !l.starts_with("Usage:")).take(4).collect();
    let wanted = [
        "Usage: thermocline rm [OPTIONS] <KEY>...",
        "       thermocline rm [OPTIONS] --prefix <PREFIX>",
        "       thermocline rm [OPTIONS] --all",
        "",
    ];
    assert_eq!(usage, wanted);
}
