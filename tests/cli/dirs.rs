//! The directories of a store: missing, mistyped, stale, foreign, forgotten.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

#[test]
fn what_cannot_be_put_makes_no_directories() -> Try {
    let place = Place::new();
    let dir = place.root.parent().ok_or("parent")?;
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    std::fs::write(dir.join("file"), "v")?;
    std::fs::write(dir.join("limit.toml"), "[storage]\nmax_value_size = 3\n")?;
    let long = "k".repeat(32_769);
    for (args, says) in [
        (&["put", "", &path("file")][..], "1 to 32,768"),
        (&["put", &long, &path("file")], "1 to 32,768"),
        (&["put", "k", &path("nowhere")], "does not exist"),
        (&["put", "k", &path("")], "is a directory: name a file"),
        (&["put", "k", &path("file"), "--hdd", "/x"], "--root"),
    ] {
        let mut args = args.to_vec();
        args.extend(["--create", "--root", place.root()]);
        // What the parser of options refuses takes several lines.
        let ran = run(&args);
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        assert!(ran.err.contains(says), "{}", ran.err);
        assert!(!place.root.exists());
    }
    let config = path("limit.toml");
    let ran = place.put("k", b"four", &["--create", "--config", &config]).with(2);
    assert!(ran.err.contains("max_value_size") && !place.root.exists(), "{}", ran.err);
    place.put("k", b"two", &["--create", "--config", &config]).with(0);
    Ok(())
}

/// A store of two tiers side by side, the catalog in the first, one item in each.
fn two_tiers(place: &Place) -> Try {
    let cache = Cache::builder()
        .ssd(place.root.join("ssd"), 64 << 20)
        .hdd(place.root.join("hdd"), 64 << 20)
        .open()?;
    cache.put("up", "v")?;
    cache.put("down", "v")?;
    cache.demote("down", thermocline::Tier::Hdd)?;
    Ok(cache.close()?)
}

#[test]
fn a_disk_that_is_not_mounted_is_to_be_mounted() -> Try {
    let place = Place::new();
    two_tiers(&place)?;
    let at = |name: &str| place.root.join(name).to_str().unwrap().to_owned();
    let (ssd, hdd, away) = (at("ssd"), at("hdd"), at("away"));
    let get = |more: &[&str]| run(&[&["get", "down", "--ssd", &ssd, "--hdd", &hdd][..], more].concat());
    // The directory with the catalog: an empty mount point, then none.
    std::fs::rename(&ssd, &away)?;
    for mount_point in [true, false] {
        if mount_point {
            std::fs::create_dir(&ssd)?;
        }
        let ran = get(&[]).with(4);
        assert!(ran.err.contains("the catalog is in it") && ran.err.contains("mount it"), "{}", ran.err);
        let ran = get(&["--without-missing"]).with(4);
        let (mount, rebuild) = (ran.err.find("mount that first"), ran.err.find("--rebuild-catalog"));
        assert!(mount.is_some() && mount < rebuild, "{}", ran.err);
        if mount_point {
            assert!(left_in(Path::new(&ssd)).is_empty());
            std::fs::remove_dir(&ssd)?;
        }
    }
    std::fs::rename(&away, &ssd)?;
    // The other one.
    std::fs::rename(&hdd, &away)?;
    let ran = get(&[]).with(4);
    assert!(ran.err.contains("does not exist") && ran.err.contains("--without-missing"), "{}", ran.err);
    run(&["get", "up", "--ssd", &ssd, "--hdd", &hdd, "--without-missing"]).with(0);
    std::fs::rename(&away, &hdd)?;
    // One that is none of it joins by --create alone.
    let stray = at("stray");
    for flags in [&[][..], &["--without-missing"]] {
        let ran = get(&[&["--cold", &stray][..], flags].concat()).with(2);
        assert!(ran.err.contains("stray: no store is there") && ran.err.contains("joins it"), "{}", ran.err);
        assert!(!Path::new(&stray).exists());
    }
    run(&["put", "k", file!(), "--ssd", &ssd, "--hdd", &hdd, "--cold", &stray, "--create"]).with(0);
    Ok(())
}

#[test]
fn directories_that_are_not_named_are_to_be_named() -> Try {
    let place = Place::new();
    place.put("k", b"v", &["--create"]).with(0);
    let at = |name: &str| place.root.join(name).to_str().unwrap().to_owned();
    let all = ["ssd", "hdd", "cold"].map(|t| format!("--{t} {}", at(t)));
    for (n, one) in all.iter().enumerate() {
        let (option, path) = one.split_once(' ').ok_or("option")?;
        for command in [&["stat"][..], &["put", "k", file!()], &["put", "k", file!(), "--create"]] {
            let err = run(&[command, &[option, path]].concat()).with(2).err;
            let others: Vec<&str> = all.iter().map(String::as_str).filter(|o| o != one).collect();
            let cure = err.find(&format!("give {}, too", others.join(" ")));
            assert!(cure.is_some() && cure < err.find("--without-missing"), "{n} {command:?}: {err}");
        }
    }
    // What is there and was forgotten is not given up.
    for command in [&["stat"][..], &["verify"], &["put", "k", file!(), "--create"]] {
        let forgot = ["--ssd", &at("ssd"), "--hdd", &at("hdd")];
        let err = run(&[command, &forgot[..]].concat()).with(2).err;
        assert!(!err.contains("--discard-missing"), "{err}");
        let err = run(&[command, &forgot[..], &["--discard-missing"]].concat()).with(2).err;
        assert!(err.contains(&format!("give {}, too", all[2])), "{err}");
    }
    place.run(&["stat"]).with(0);
    // What was named and is not there is to be mounted, not named again.
    std::fs::rename(at("hdd"), at("away"))?;
    let err = run(&["stat", "--ssd", &at("ssd"), "--hdd", &at("hdd"), "--cold", &at("cold")]).with(4).err;
    assert!(err.contains("mount it") && !err.contains("give --"), "{err}");
    assert!(!Path::new(&at("hdd")).exists());
    // One of each.
    let err = run(&["stat", "--ssd", &at("ssd"), "--hdd", &at("hdd")]).with(4).err;
    assert!(err.contains(&format!("give {}, too", all[2])), "{err}");
    assert!(!Path::new(&at("hdd")).exists());
    Ok(())
}

#[test]
fn a_stale_copy_is_named_as_it_was_given() -> Try {
    let place = Place::new();
    two_tiers(&place)?;
    let at = |name: &str| place.root.join(name).to_str().unwrap().to_owned();
    let (ssd, old, new) = (at("ssd"), at("hdd"), at("new"));
    assert!(std::process::Command::new("cp").args(["-a", &old, &new]).status()?.success());
    run(&["put", "k", file!(), "--ssd", &ssd, "--hdd", &new]).with(0);
    let err = run(&["stat", "--ssd", &ssd, "--hdd", &old]).with(4).err;
    assert!(err.starts_with(&format!("thermocline: {old}: it is older than")), "{err}");
    assert!(err.contains(&format!("last used as {new};")) && !err.contains("?:"), "{err}");
    run(&["stat", "--ssd", &ssd, "--hdd", &new]).with(0);
    Ok(())
}

#[test]
fn a_mistyped_directory_is_named_as_that() -> Try {
    let place = Place::new();
    two_tiers(&place)?;
    let at = |name: &str| place.root.join(name).to_str().unwrap().to_owned();
    let (ssd, hdd, typo, empty) = (at("ssd"), at("hdd"), at("hddd"), at("empty"));
    std::fs::create_dir(&empty)?;
    for (wrong, says) in [(&typo, "does not exist"), (&empty, "no store is there")] {
        for command in [&["get", "down"][..], &["stat"], &["put", "k", file!(), "--create"]] {
            let err = run(&[command, &["--ssd", &ssd, "--hdd", wrong]].concat()).with(2).err;
            assert!(err.contains(&format!("{wrong}: ")) && err.contains(says), "{err}");
            assert!(
                err.contains("mistyped") && err.contains(&format!("--hdd {hdd}")) && err.contains(&ssd),
                "{err}"
            );
        }
    }
    assert!(!Path::new(&typo).exists() && left_in(Path::new(&empty)).is_empty());
    // With the disk of the right one away; then with that one named, and a third mistyped.
    std::fs::rename(&hdd, at("away"))?;
    let err = run(&["stat", "--ssd", &ssd, "--hdd", &typo]).with(2).err;
    assert!(err.contains("mistyped") && err.contains("once its disk is mounted"), "{err}");
    let err = run(&["stat", "--ssd", &ssd, "--hdd", &hdd]).with(4).err;
    assert!(
        err.contains(&format!("{hdd}: it does not exist")) && err.contains(&format!("{ssd} is there")),
        "{err}"
    );
    assert!(err.contains("mount it") && !err.contains("mistyped"), "{err}");
    let err =
        run(&["put", "k", file!(), "--create", "--ssd", &ssd, "--hdd", &hdd, "--cold", &typo]).with(4).err;
    assert!(
        err.contains(&format!("{hdd}: it does not exist")) && err.contains(&format!("{typo}: it does not")),
        "{err}"
    );
    std::fs::rename(at("away"), &hdd)?;
    // The catalog's own directory is away, and another name is mistyped.
    std::fs::rename(&ssd, at("away"))?;
    let err = run(&["stat", "--ssd", &at("sssd"), "--hdd", &hdd]).with(4).err;
    assert!(
        err.contains(&format!("{ssd}: it is not there"))
            && err.contains("sssd was given, which does not exist, and may be mistyped): "),
        "{err}"
    );
    let err = run(&["stat", "--ssd", &ssd, "--hdd", &hdd]).with(4).err;
    assert!(!err.contains("mistyped"), "{err}");
    Ok(())
}

#[test]
fn a_store_is_not_made_among_other_files() -> Try {
    let place = Place::new();
    let ssd = place.root.join("ssd");
    std::fs::create_dir_all(ssd.join("lost+found"))?;
    std::fs::write(ssd.join("letter.txt"), "dear")?;
    let err = place.put("k", b"v", &["--create"]).with(2).err;
    assert!(err.contains("ssd: no store is there, and it is not empty (letter.txt"), "{err}");
    assert!(
        err.contains("name a directory") && left_in(&ssd).len() == 2 && !place.root.join("hdd").exists(),
        "{err}"
    );
    std::fs::remove_file(ssd.join("letter.txt"))?;
    place.put("k", b"v", &["--create"]).with(0);
    // In one that is there nobody minds.
    std::fs::write(ssd.join("letter.txt"), "dear")?;
    place.put("k2", b"v", &["--create"]).with(0);
    // A program may.
    let other = tempfile::tempdir()?;
    std::fs::write(other.path().join("letter.txt"), "dear")?;
    Cache::builder().ssd(other.path(), 64 << 20).open()?.close()?;
    assert_eq!(std::fs::read(other.path().join("letter.txt"))?, b"dear");
    Ok(())
}

#[test]
fn what_is_left_out_is_said_to_be() -> Try {
    let place = Place::new();
    two_tiers(&place)?;
    let at = |name: &str| place.root.join(name).to_str().unwrap().to_owned();
    let (ssd, hdd) = (at("ssd"), at("hdd"));
    let go = |args: &[&str]| run(&[args, &["--ssd", &ssd, "--hdd", &hdd, "--without-missing"][..]].concat());
    for command in [&["stat"][..], &["ls"], &["get", "up"]] {
        assert_eq!(go(command).with(0).err, "");
    }
    assert_eq!(go(&["stat", "--json"]).with(0).json()["directories_left_out"], serde_json::json!([]));
    std::fs::rename(&hdd, at("away"))?;
    let says = format!("opened without {hdd}: what is in it is absent until it is back");
    for (command, code) in [(&["stat"][..], 0), (&["ls"], 0), (&["get", "down"], 1)] {
        let err = go(command).with(code).err;
        assert!(err.contains(&says), "{command:?}: {err}");
    }
    for command in [&["stat", "--json"][..], &["get", "up", "--json"]] {
        let json = go(command).with(0).json();
        let out = &json["directories_left_out"];
        assert_eq!((&out[0]["path"], &out[0]["tier"]), (&hdd.as_str().into(), &"hdd".into()), "{json}");
    }
    // No repair helps there.
    let ran = go(&["verify"]).with(1);
    let text = ran.text();
    assert!(
        text.contains(&format!("left out: hdd directory {hdd}")) && text.contains("1 directory left out"),
        "{text}"
    );
    assert!(text.contains("mount it, and verify again") && !text.contains("--repair"), "{text}");
    assert!(!text.contains("not in the catalog"), "{text}");
    assert_eq!(go(&["verify", "--json"]).with(1).json()["directories_left_out"][0]["path"], hdd.as_str());
    Ok(())
}

#[test]
fn a_copy_among_the_originals_is_told_to_be_perhaps_that() -> Try {
    let place = Place::new();
    two_tiers(&place)?;
    let at = |name: &str| place.root.join(name).to_str().unwrap().to_owned();
    let (ssd, hdd, old_ssd, old_hdd) = (at("ssd"), at("hdd"), at("old-ssd"), at("old-hdd"));
    for (from, to) in [(&ssd, &old_ssd), (&hdd, &old_hdd)] {
        assert!(Command::new("cp").args(["-a", from, to]).status()?.success());
    }
    for n in 0..2 {
        run(&["put", &format!("k{n}"), file!(), "--ssd", &ssd, "--hdd", &hdd]).with(0);
    }
    std::fs::rename(&hdd, at("away"))?;
    std::fs::rename(&ssd, at("away-ssd"))?;
    let cure = "all directories from";
    // The catalog is the older one, then the other directory is.
    let err = run(&["get", "up", "--ssd", &old_ssd, "--hdd", &at("away")]).with(4).err;
    assert!(
        err.contains("catalog is lost") && err.contains("a copy or a backup") && err.contains(cure),
        "{err}"
    );
    let err = run(&["get", "up", "--ssd", &at("away-ssd"), "--hdd", &old_hdd]).with(4).err;
    assert!(err.contains("older") && err.contains("backup") && err.contains(cure), "{err}");
    run(&["get", "up", "--ssd", &old_ssd, "--hdd", &old_hdd]).with(0);
    Ok(())
}

#[test]
fn a_directory_that_was_discarded_says_by_what() -> Try {
    let place = Place::new();
    two_tiers(&place)?;
    let at = |name: &str| place.root.join(name).to_str().unwrap().to_owned();
    let (ssd, hdd, away) = (at("ssd"), at("hdd"), at("away"));
    let stat = |more: &[&str]| run(&[&["stat", "--ssd", &ssd, "--hdd", &hdd][..], more].concat());
    std::fs::rename(&hdd, &away)?;
    stat(&["--discard-missing"]).with(0);
    std::fs::remove_dir_all(&hdd)?;
    std::fs::rename(&away, &hdd)?;
    let err = stat(&[]).with(2).err;
    assert!(
        err.contains("was discarded") && err.contains("`discard_missing` (`--discard-missing`)"),
        "{err}"
    );
    Ok(())
}

#[test]
fn what_lies_in_a_store_is_in_the_documentation() -> Try {
    let place = Place::new();
    place.put("k", b"v", &["--create"]).with(0);
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md"))?;
    let layout = text.split("```").nth(1).ok_or("layout")?;
    let catalog =
        layout.split("catalog/").nth(1).and_then(|t| t.split("HDD-DIRECTORY").next()).ok_or("catalog")?;
    for (dir, layout) in [("ssd", layout), ("ssd/catalog", catalog), ("hdd", layout), ("cold", layout)] {
        for path in left_in(&place.root.join(dir)) {
            let name = path.file_name().ok_or("name")?.to_string_lossy().into_owned();
            assert!(layout.contains(&name), "{dir}/{name} is not in {layout}");
        }
    }
    // What single puts do not make is said not to be made by them.
    assert!(!place.root.join("ssd/catalog/reserve").exists());
    let reserve = catalog.lines().skip_while(|l| !l.contains("reserve")).take(2).collect::<String>();
    assert!(reserve.contains("not by single `thermocline put`s"), "{reserve}");
    Ok(())
}

#[test]
fn the_wrong_directory_is_wrong_usage() -> Try {
    let (place, other) = (Place::new(), Place::new());
    two_tiers(&place)?;
    two_tiers(&other)?;
    let at = |place: &Place, name: &str| place.root.join(name).to_str().unwrap().to_owned();
    let (ssd, hdd) = (at(&place, "ssd"), at(&place, "hdd"));
    run(&["get", "up", "--ssd", &hdd, "--hdd", &ssd]).with(2);
    let ran = run(&["get", "up", "--ssd", &ssd, "--hdd", &at(&other, "hdd")]).with(2);
    assert!(ran.err.contains("belongs to another store"), "{}", ran.err);
    std::fs::write(place.root.join("file"), "")?;
    for path in [at(&place, "file"), at(&place, "file/below")] {
        let ran = run(&["get", "up", "--ssd", &path]).with(2);
        assert!(ran.err.contains("file") && ran.err.contains("name a directory"), "{}", ran.err);
        let ran = run(&["put", "k", file!(), "--create", "--ssd", &path]).with(2);
        assert!(ran.err.contains("file") && ran.err.contains("name a directory"), "{}", ran.err);
    }
    Ok(())
}

#[test]
fn no_permission_is_said_to_be_that() -> Try {
    let dir = tempfile::tempdir()?;
    let exe = dir.path().join("thermocline");
    std::fs::copy(env!("CARGO_BIN_EXE_thermocline"), &exe)?;
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode));
    mode(dir.path(), 0o755)?;
    mode(&exe, 0o755)?;
    let place = Place::new();
    mode(place.root.parent().ok_or("parent")?, 0o755)?;
    place.put("k", b"v", &["--create"]).with(0);
    let (shut, trace) = (dir.path().join("shut"), dir.path().join("trace"));
    std::fs::create_dir(&shut)?;
    std::fs::write(&trace, "k\n")?;
    mode(&shut, 0o000)?;
    mode(&trace, 0o000)?;
    mode(&place.root, 0o000)?;
    let value = dir.path().join("value");
    std::fs::write(&value, "v")?;
    let value = value.to_str().ok_or("path")?;
    let (shut_arg, trace) = (shut.to_str().ok_or("path")?, trace.to_str().ok_or("path")?);
    for args in [
        &["get", "k", "--root", place.root()][..],
        &["put", "k", value, "--create", "--root", place.root()],
        &["bench", "--files", shut_arg],
        &["bench", "--dir", shut_arg, "--data", "1MiB"],
        &["replay", trace, "--memory-items", "1"],
        &["put", "k", trace, "--create", "--ssd", shut_arg],
    ] {
        let mut command = Command::new(&exe);
        command.args(args).stdin(Stdio::null());
        if rustix::process::geteuid().is_root() {
            command.uid(65_534).gid(65_534);
        }
        let ran = Ran::from(start_command(&mut command).wait_with_output()?).with(4);
        let told = ran.err.to_lowercase();
        assert!(told.contains("permission denied") && told.contains("chown"), "{args:?}: {}", ran.err);
        assert!(!told.contains("no store is there"), "{}", ran.err);
    }
    mode(&place.root, 0o755)?;
    Ok(mode(&shut, 0o755)?)
}
