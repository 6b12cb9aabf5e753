//! What is asked is answered rightly, whatever goes on meanwhile, and changes nothing.

use super::*;

#[test]
fn stat_ls_and_verify_ask_the_process_that_has_the_store_open() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    stored(&root, 300);
    let before = json(&command(&["stat", "--json"], &root));
    assert_eq!(before["open_elsewhere"], Value::Null);
    let holder = Holder::start(&root);

    let stat = json(&command(&["stat", "--json"], &root));
    assert_eq!(stat["open_elsewhere"]["process"], holder.child.id());
    assert_eq!((&stat["items"], &stat["tiers"]["hdd"]["items"]), (&300.into(), &1.into()), "{stat:#}");
    // The same fields, whoever is asked.
    let fields = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(&stat), fields(&before));
    assert_eq!(fields(&stat["tiers"]["ssd"]), fields(&before["tiers"]["ssd"]));
    let text = command(&["stat"], &root);
    assert!(String::from_utf8_lossy(&text.stdout).contains("300 items in all"), "{text:?}");
    assert!(err(&text).contains(&format!("open in process {}", holder.child.id())), "{text:?}");

    let listed = command(&["ls"], &root);
    assert_eq!(code(&listed), Some(0), "{}", err(&listed));
    let all: BTreeSet<String> =
        String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(all, (0..300).map(|no| format!("k{no}")).collect());
    let long = command(&["ls", "k2", "--long", "--json"], &root);
    let rows: Vec<Value> =
        String::from_utf8(long.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows.len(), 111);
    let k2 = rows.iter().find(|r| r["key"] == "k2").unwrap();
    assert_eq!((&k2["tier"], &k2["bytes"]), (&"cold".into(), &300.into()));

    let verified = json(&command(&["verify", "--json"], &root));
    assert_eq!((&verified["clean"], &verified["items"]), (&true.into(), &300.into()), "{verified:#}");
    assert_eq!(verified["open_elsewhere"]["process"], holder.child.id());

    // What would change something has to have the store.
    for args in [&["get", "k1"][..], &["rm", "k1"], &["verify", "--repair"], &["stat", "--discard-missing"]] {
        let refused = command(args, &root);
        assert_eq!(code(&refused), Some(3), "{args:?}: {}", err(&refused));
    }
    holder.end(Signal::TERM);
    assert!(!socket(&root).exists());
    assert_eq!(json(&command(&["stat", "--json"], &root))["items"], 300);
}

#[test]
fn what_is_damaged_is_told_and_not_condemned() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder().memory(MIB).root(dir.path()).open().unwrap();
    for no in 0..50 {
        cache.put(format!("key-{no:03}"), value(no, 1, 400)).unwrap();
    }
    cache.flush().unwrap();
    let segments = fs::read_dir(dir.path().join("ssd/segments")).unwrap().map(|e| e.unwrap().path());
    let (path, at) = segments
        .filter_map(|path| {
            let bytes = fs::read(&path).unwrap();
            let at = bytes.windows(7).position(|w| w == b"key-042")?;
            Some((path, at as u64))
        })
        .next()
        .unwrap();
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, at + 60).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[byte[0] ^ 1], at + 60).unwrap();
    let before = cache.stats();
    let store = find(dir.path()).unwrap();
    for _ in 0..2 {
        let mut progress = 0;
        let report = store.verify(|p| progress = p.done).unwrap();
        assert_eq!((report.items, report.findings.len()), (49, 1), "{report:?}");
        let finding = &report.findings[0];
        assert_eq!((finding.key.as_deref(), finding.cost), (Some(&b"key-042"[..]), Cost::Lost(1)));
        assert_eq!((finding.tier, &finding.path), (Some(Tier::Ssd), &path));
        assert!(progress <= 50);
    }
    assert_eq!(keys(&store, "key-04"), (40..50).map(|no| format!("key-{no:03}")).collect());
    let ran = command(&["verify"], dir.path());
    assert_eq!(code(&ran), Some(1));
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(
        text.contains("lost: key-042 (ssd record in ") && text.contains("Once the store is closed,"),
        "{text}"
    );
    // Nothing of it counted as a use, or as damage.
    let after = cache.stats();
    assert_eq!(after.counts, before.counts);
    assert_eq!(fs::read_dir(dir.path().join("ssd/quarantine")).map_or(0, Iterator::count), 0);
    // A verification of its own condemns it.
    assert_eq!(cache.verify().unwrap().damaged.len(), 1);
    assert_eq!(store.verify(|_| {}).unwrap().findings.len(), 0);
}

#[test]
fn what_has_expired_is_not_listed_and_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = Cache::builder().memory(MIB).root(dir.path());
    builder.config_mut().storage.reap_interval = 86_400;
    let cache = builder.open().unwrap();
    let short = thermocline::PutOptions::new().ttl(Duration::from_millis(1));
    cache.put("stays", "1").unwrap();
    cache.put_with("goes", "2", short).unwrap();
    cache.flush().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let (items, expired) = (cache.stats().items, cache.stats().counts.expired);
    let store = find(dir.path()).unwrap();
    assert_eq!(keys(&store, ""), BTreeSet::from(["stays".to_owned()]));
    assert_eq!(store.verify(|_| {}).unwrap().items, 1);
    let now = cache.stats();
    assert_eq!((now.items, now.counts.expired), (items, expired));
}

#[test]
fn a_long_list_comes_in_pages_and_each_key_comes_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder().memory(16 * MIB).root(dir.path()).open().unwrap();
    let long = "x".repeat(600);
    for no in 0..6_000 {
        cache.put(format!("{no}/{long}"), "v").unwrap();
    }
    cache.put("other", "v").unwrap();
    let store = find(dir.path()).unwrap();
    // While others write and read.
    let list = std::thread::scope(|s| {
        let writer = s.spawn(|| {
            for no in 0..500 {
                cache.put(format!("new/{no}"), "v").unwrap();
                assert!(cache.get(format!("{no}/{long}")).unwrap().is_some());
            }
        });
        let list = keys(&store, "");
        writer.join().unwrap();
        list
    });
    assert_eq!(list.iter().filter(|k| !k.starts_with("new/")).count(), 6_001);
    assert_eq!(keys(&store, "oth"), BTreeSet::from(["other".to_owned()]));
    assert_eq!(keys(&store, "none").len(), 0);
}

/// What the optimizer did is told with what it went by, and what came of it.
#[test]
fn the_history_says_what_was_done_why_and_what_came_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let mut builder = Cache::builder().memory(MIB).root(root);
    // A turn is one a tenth of the interval after the one before.
    builder.config_mut().optimizer.interval = 1;
    let cache = builder.open().unwrap();
    cache.optimizer().pause();
    let store = find(root).unwrap();
    assert_eq!(store.history(10).unwrap(), Value::Array(vec![]));
    let closed = with(&["history"], &[("--root", &root.join("none"))]);
    assert_eq!(code(&closed), Some(3), "{}", err(&closed));
    for turn in 0..4 {
        for no in 0..300 {
            cache.put(format!("k{no}"), value(no, turn, 9_000)).unwrap();
        }
        // Enough that some of them are timed.
        for no in 0..9_000 {
            assert!(cache.get(format!("k{}", no % 300)).unwrap().is_some());
        }
        std::thread::sleep(Duration::from_millis(110));
        cache.optimizer().run_once().unwrap();
    }
    let turns = store.history(10).unwrap();
    let turns = turns.as_array().unwrap();
    assert!(turns.len() >= 3, "{turns:#?}");
    let times: Vec<u64> = turns.iter().map(|t| t["unix_ms"].as_u64().unwrap()).collect();
    assert!(times.is_sorted() && times[0] > 1_700_000_000_000, "{times:?}");
    let last = &turns[turns.len() - 1];
    assert_eq!((&last["inputs"]["puts"], &last["inputs"]["gets"]), (&300.into(), &9_000.into()), "{last:#}");
    assert!(last["inputs"]["p99_seconds"].as_f64().is_some_and(|s| s > 0.0), "{last:#}");
    let of_memory = last["inputs"]["hit_shares"]["memory"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&of_memory), "{last:#}");
    // Of what was done the next turn has measured the goal; so it is here, where something was.
    for turn in turns.iter().rev().skip(1) {
        let done = turn["actions"].as_array().unwrap().iter().any(|a| a["error"].is_null());
        assert_eq!(turn["effects"].as_array().unwrap().is_empty(), !done, "{turn:#}");
    }
    assert_eq!(store.history(2).unwrap().as_array().unwrap().len(), 2);
    assert_eq!(store.history(2).unwrap()[1], *last);
    // The command says the same.
    let said = json(&command(&["history", "--json", "-n", "2"], root));
    assert_eq!(said["turns"], store.history(2).unwrap());
    let text = command(&["history", "-n", "2"], root);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert_eq!(text.lines().filter(|l| l.contains("strategy ")).count(), 2, "{text}");
    assert!(text.contains("9,000 gets") && text.contains("p99 "), "{text}");
    // Tiers in the order in which they are asked, and what was done in words.
    let at: Vec<_> = ["(memory ", ", ssd ", ", hdd ", ", cold "].iter().map(|part| text.find(part)).collect();
    assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{at:?}\n{text}");
    assert!(!text.contains(" { "), "{text}");
    cache.close().unwrap();
}

/// Records move, are overwritten, removed and made room for while they are verified: none of that is damage, and nothing of it
/// is held up.
#[test]
fn a_verification_beside_all_that_moves_finds_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder()
        .memory(MIB)
        .ssd(dir.path().join("ssd"), 8 * MIB)
        .hdd(dir.path().join("hdd"), 8 * MIB)
        .cold(dir.path().join("cold"))
        .open()
        .unwrap();
    let store = OpenStore::find([dir.path().join("ssd")]).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let over = || done.load(std::sync::atomic::Ordering::SeqCst);
    std::thread::scope(|s| {
        for writer in 0..2u64 {
            let (cache, over) = (&cache, &over);
            s.spawn(move || {
                let mut no = writer;
                while !over() {
                    no += 2;
                    cache.put(format!("k{}", no % 3_000), value(no, no % 5, 6_000)).unwrap();
                    match no % 11 {
                        0 => drop(cache.remove(format!("k{}", no * 7 % 3_000)).unwrap()),
                        1 => drop(cache.demote(format!("k{}", no * 3 % 3_000), Tier::Cold)),
                        2 => drop(cache.get(format!("k{}", no * 5 % 3_000)).unwrap()),
                        _ => {}
                    }
                }
            });
        }
        let began = Instant::now();
        let (mut looks, mut items) = (0, 0);
        while looks < 5 || began.elapsed() < Duration::from_secs(4) {
            let report = store.verify(|_| {});
            let report =
                report.inspect_err(|_| done.store(true, std::sync::atomic::Ordering::SeqCst)).unwrap();
            if !report.is_clean() {
                done.store(true, std::sync::atomic::Ordering::SeqCst);
            }
            assert!(report.is_clean(), "{report:?}");
            (looks, items) = (looks + 1, items + report.items);
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(items > 1_000, "{items}");
    });
    let stats = cache.stats();
    assert_eq!((stats.counts.damaged, stats.counts.unreachable), (0, 0));
    assert!(stats.counts.moved_bytes > 0, "nothing moved: it says nothing");
    cache.close().unwrap();
}

/// What was not read is said not to have been.
#[test]
fn what_waits_to_be_written_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder()
        .memory(16 * MIB)
        .root(dir.path())
        .persistence(thermocline::config::Persistence::OnEviction)
        .open()
        .unwrap();
    for no in 0..7 {
        cache.put(format!("k{no}"), "v").unwrap();
    }
    let report = find(dir.path()).unwrap().verify(|_| {}).unwrap();
    assert_eq!((report.items, report.unwritten, report.is_clean()), (0, 7, true));
    let told = json(&command(&["verify", "--json"], dir.path()));
    assert_eq!((&told["unwritten"], &told["clean"]), (&7.into(), &true.into()));
    let text = command(&["verify"], dir.path());
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("not looked at: 7 items"), "{text}");
    cache.close().unwrap();
}
