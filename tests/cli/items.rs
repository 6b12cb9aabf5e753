//! Single items, and the store as a whole.

use super::*;

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
    let none = place.run(&["rm", "--hex", "fe", "61", "--json"]).with(1).json();
    assert_eq!(none, serde_json::json!({ "removed": 0, "not_found": [{ "key_hex": "fe" }, { "key": "a" }] }));
    let odd = place.run(&["get", "--hex", "ffe"]).with(2).err;
    assert!(odd.contains("pairs of hexadecimal digits"), "{odd}");
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
fn what_looks_like_a_size_has_to_be_one() -> Try {
    let place = Place::new();
    let dir = place.root.parent().ok_or("parent")?;
    let put = |ssd: &str| run(&["put", "k", file!(), "--create", "--ssd", dir.join(ssd).to_str().unwrap()]);
    for ssd in ["cache=5G", "cache= 5G", "cache=5 Gi"] {
        let ran = put(ssd);
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        assert!(ran.err.contains("is not a size") && ran.err.contains("cache=5GiB"), "{}", ran.err);
        assert!(left_in(dir).is_empty(), "{:?}", left_in(dir));
    }
    put("cache=5G/").with(0);
    assert!(dir.join("cache=5G/segments").is_dir());
    Ok(())
}

#[test]
fn stat_shows_no_limit_that_nobody_gave() -> Try {
    let place = Place::new();
    place.put("k", b"v", &["--create"]).with(0);
    let rows = |ran: Ran| -> Vec<Vec<String>> {
        let text = ran.with(0).text();
        let rows = text.lines().filter(|l| ["  ssd", "  hdd", "  cold"].iter().any(|t| l.starts_with(t)));
        rows.map(|l| l.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let bare = rows(place.run(&["stat"]));
    assert_eq!(bare.len(), 3);
    assert!(bare.iter().all(|row| row[row.len() - 3..row.len() - 1] == ["–", "–"]), "{bare:?}");
    assert!(place.run(&["stat"]).text().contains("does not keep its limits"));
    let json = place.run(&["stat", "--json"]).with(0).json();
    assert!(["ssd", "hdd"].iter().all(|t| json["tiers"][t]["limit"].is_null()), "{json}");

    let at = |name: &str| place.root.join(name).to_str().unwrap().to_owned();
    let (ssd, hdd, cold) = (at("ssd=5GiB"), at("hdd"), at("cold"));
    let some = ["stat", "--ssd", &ssd, "--hdd", &hdd, "--cold", &cold];
    let json = run(&[&some[..], &["--json"]].concat()).with(0).json();
    assert_eq!(json["tiers"]["ssd"]["limit"].as_u64(), Some(5 << 30));
    assert!(json["tiers"]["hdd"]["limit"].is_null(), "{json}");
    assert!(rows(run(&some))[0].join(" ").contains("5.00 GiB"));

    let config = place.root.with_extension("toml");
    std::fs::write(&config, "[storage_tiers.memory]\nmax_size = \"64MiB\"\n")?;
    let args = ["stat", "--config", config.to_str().ok_or("path")?];
    let json = place.run(&[&args[..], &["--json"]].concat()).with(0).json();
    assert_eq!(json["tiers"]["ssd"]["limit"].as_u64(), Some(5 << 30));
    let text = place.run(&args).text();
    assert!(text.contains("none") && !text.contains("does not keep"), "{text}");
    Ok(())
}

#[test]
fn single_puts_take_little_room_each() -> Try {
    let place = Place::new();
    const PUTS: u64 = 20;
    for n in 0..PUTS {
        place.put(&format!("k{n}"), b"a few bytes", &["--create"]).with(0);
    }
    let stat = place.run(&["stat", "--json"]).with(0).json();
    let ssd = &stat["tiers"]["ssd"];
    let occupied = ssd["bytes"].as_u64().ok_or("bytes")?;
    assert!(ssd["items"] == PUTS && occupied <= PUTS << 20, "{ssd}");
    Ok(())
}

#[test]
fn what_a_put_makes_is_said() -> Try {
    let place = Place::new();
    let err = place.put("k", b"v", &["--create"]).with(0).err;
    for tier in ["ssd", "hdd", "cold"] {
        let says = format!("{} ({tier}; ", place.root.join(tier).display());
        assert!(err.starts_with("thermocline: made ") && err.contains(&says), "{says}: {err}");
    }
    assert!(err.contains(" on "), "{err}");
    assert_eq!(place.put("k", b"v", &["--create"]).with(0).err, "");
    assert_eq!(place.put("k", b"v", &[]).with(0).err, "");
    Ok(())
}

/// Nothing says it again later.
#[test]
fn what_an_opening_finds_lost_is_said() -> Try {
    let place = Place::new();
    place.put("k", b"v", &["--create"]).with(0);
    assert_eq!(place.run(&["stat"]).with(0).err, "");
    let segments = place.root.join("ssd/segments");
    for file in std::fs::read_dir(&segments)? {
        let path = file?.path();
        std::fs::write(&path, vec![0xaa; std::fs::metadata(&path)?.len() as usize])?;
    }
    let ran = place.run(&["get", "k"]).with(1);
    let says = ["opening found 1 item lost", "quarantine", segments.to_str().ok_or("path")?];
    assert!(says.iter().all(|s| ran.err.contains(s)), "{}", ran.err);
    Ok(())
}

#[test]
fn what_stands_in_the_place_of_what_was_given_up_is_said() -> Try {
    let place = Place::new();
    place.put("k", b"v", &["--create"]).with(0);
    let hdd = place.root.join("hdd");
    std::fs::remove_dir_all(&hdd)?;
    let err = place.run(&["stat", "--discard-missing"]).with(0).err;
    assert!(err.contains(&format!("made {} (hdd; ", hdd.display())), "{err}");
    assert_eq!(place.run(&["stat"]).with(0).err, "");
    Ok(())
}

#[test]
fn verify_gives_nothing_up() -> Try {
    let place = Place::new();
    place.put("k", b"v", &["--create"]).with(0);
    let help = run(&["verify", "--help"]).with(0).text();
    assert!(help.contains("--without-missing") && !help.contains("--discard-missing"), "{help}");
    for more in [&[][..], &["--repair"]] {
        let err = place.run(&[&["verify", "--discard-missing"], more].concat()).with(2).err;
        assert!(err.contains("verify gives nothing up") && err.contains("--without-missing"), "{err}");
    }
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
    let err = run_with_input(&args, b"0123456789x").with(2).err;
    assert!(err.contains("max_value_size") && err.starts_with("thermocline: standard input: "), "{err}");
}

#[test]
fn a_store_that_is_open_elsewhere_is_locked_for_what_has_to_have_it() -> Try {
    let place = Place::new();
    let cache = Cache::builder().root(&place.root).open()?;
    cache.put("k", "v")?;
    let again = Cache::builder().root(&place.root).open().map(drop).map_err(|e| e.to_string());
    assert!(again.as_ref().is_err_and(|e| e.contains("or by another handle of this one")), "{again:?}");
    // What only looks asks whoever has it open: tests/socket.rs.
    for args in [&["stat"][..], &["ls"], &["verify"]] {
        let ran = place.run(args).with(0);
        let here = format!("open in process {}, ", std::process::id());
        assert!(ran.err.contains(&here), "{}", ran.err);
    }
    for args in [&["get", "k"][..], &["rm", "k"], &["serve-metrics", "0"], &["verify", "--repair"]] {
        let ran = place.run(args).with(3);
        assert!(
            ran.err.contains("in use by another process: ") && ran.err.contains("/lock` says"),
            "{}",
            ran.err
        );
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
    std::fs::write(&segment, &bytes)?;
    let damaged = place.run(&["get", "k42"]).with(4);
    assert!(damaged.err.contains("k42: its record is damaged"), "{}", damaged.err);
    place.run(&["get", "k42"]).with(1);
    assert!(place.run(&["stat"]).with(0).text().contains("199 items in all"));
    // And another one.
    let at = find(&bytes, b"k43").ok_or("k43")?;
    bytes[at + 10] ^= 1;
    std::fs::write(&segment, bytes)?;
    for _ in 0..2 {
        let ran = place.run(&["verify"]).with(1);
        assert!(ran.text().contains("1 lost") && ran.text().contains("198 items"), "{}", ran.text());
        assert!(ran.text().contains("lost: k43 (ssd record in "), "{}", ran.text());
    }
    let json = place.run(&["verify", "--json"]).with(1).json();
    let finding = &json["findings"][0];
    assert_eq!((&finding["key"], &finding["part"]), (&"k43".into(), &"record".into()), "{json:#}");
    assert_eq!((&finding["items_lost"], &finding["tier"]), (&1.into(), &"ssd".into()));
    let ran = place.run(&["verify", "--repair"]).with(1);
    assert!(ran.text().contains("lost: k43 ") && ran.text().contains("1 item lost"), "{}", ran.text());
    place.run(&["verify"]).with(0);
    let ran = place.run(&["verify", "--repair"]).with(0);
    assert!(ran.text().contains("nothing was changed"), "{}", ran.text());
    // A variable that is not set does not cost everything.
    let refused = place.run(&["rm", "--prefix", ""]).with(2);
    assert!(refused.err.contains("give --all"), "{}", refused.err);
    assert!(!place.run(&["ls"]).with(0).out.is_empty());
    let refused = place.run(&["put", "k", "--ttl", "0"]).with(2);
    assert!(refused.err.contains("`thermocline rm`"), "{}", refused.err);
    place.run(&["rm", "--all"]).with(0);
    place.put("k", b"v", &[]).with(0);
    assert!(place.run(&["stat"]).with(0).text().contains("1 item in all"));
    Ok(())
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
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
