//! Who asks nonsense, who is slow, many at once, and a store that is closed meanwhile.

use super::*;
use thermocline_testing::timed;

#[test]
fn garbage_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder().memory(MIB).root(dir.path()).open().unwrap();
    cache.put("k", "secret value").unwrap();
    cache.flush().unwrap();
    let before = cache.stats().counts;
    let deep = question(&"[".repeat(70_000));
    let huge = [b"TC\x01\x01".as_slice(), &u32::MAX.to_le_bytes()].concat();
    let over = [b"TC\x01\x01".as_slice(), &81_921u32.to_le_bytes()].concat();
    let not_utf8 = [b"TC\x01\x01\x02\0\0\0".as_slice(), b"\xff\xfe"].concat();
    let prefix = format!("{{\"ask\":\"list\",\"prefix\":\"{}\"}}", "00".repeat(32_769));
    let odd: Vec<Vec<u8>> = vec![
        b"GET /metrics HTTP/1.1\r\n\r\n".to_vec(),
        b"TC\x02\x01\0\0\0\0".to_vec(),
        b"TC\x01\x03\0\0\0\0".to_vec(),
        b"TC\x01\x07\0\0\0\0".to_vec(),
        huge,
        over,
        deep,
        not_utf8,
        question(""),
        question("null"),
        question("{\"ask\":\"put\",\"key\":\"6b\",\"value\":\"76\"}"),
        question("{\"ask\":\"get\",\"key\":\"6b\"}"),
        question("{\"ask\":[\"stat\"]}"),
        question("{\"ask\":\"list\"}"),
        question("{\"ask\":\"list\",\"prefix\":\"6\"}"),
        question("{\"ask\":\"list\",\"prefix\":\"zz\"}"),
        question("{\"ask\":\"list\",\"prefix\":7}"),
        question(&prefix),
    ];
    for bytes in &odd {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let began = Instant::now();
        let (kind, answer) = ask(dir.path(), bytes).unwrap_or_else(|| panic!("{shown}: no answer"));
        assert_eq!(kind, 4, "{shown}: {}", String::from_utf8_lossy(&answer));
        // Of what is refused by its head the rest is not waited for.
        assert!(began.elapsed() < Duration::from_secs(4), "{shown}: {:?}", began.elapsed());
    }
    // A place in a list that there is none of is the end of the list.
    for place in ["\"shard\":18446744073709551615", "\"shard\":255,\"after\":18446744073709551615"] {
        let (kind, answer) =
            ask(dir.path(), &question(&format!("{{\"ask\":\"list\",\"prefix\":\"\",{place}}}"))).unwrap();
        assert!(
            kind == 3 && !answer.windows(5).any(|w| w == b"items"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    for question in ["{\"ask\":\"stat\"}", "{\"ask\":\"list\",\"prefix\":\"\"}", "{\"ask\":\"verify\"}"] {
        let (kind, answer) = ask(dir.path(), &self::question(question)).unwrap();
        assert!(kind == 3 && !answer.windows(6).any(|w| w == b"secret"), "{question}");
    }
    assert_eq!(cache.stats().counts, before);
    assert_eq!(cache.get("k").unwrap().as_deref(), Some(&b"secret value"[..]));
}

#[test]
fn who_stalls_keeps_nobody_waiting_for_long_and_close_waits_for_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder().memory(64 * MIB).root(dir.path()).open().unwrap();
    for no in 0..4_000 {
        cache.put(format!("{no}/{}", "y".repeat(2_000)), "v").unwrap();
    }
    cache.flush().unwrap();
    let connect = || UnixStream::connect(socket(dir.path())).unwrap();
    // Three that send nothing, or not all of it, and one that asks for much and reads nothing.
    let mut silent = [connect(), connect(), connect(), connect()];
    silent[1].write_all(b"TC\x01\x01\x20").unwrap();
    silent[3].write_all(&question("{\"ask\":\"list\",\"prefix\":\"\"}")).unwrap();
    let store = find(dir.path()).unwrap();
    let began = Instant::now();
    assert_eq!(store.stat().unwrap()["items"], 4_000);
    // All places were taken; each is free after five seconds.
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    for stream in &mut silent[..3] {
        stream.set_read_timeout(Some(Duration::from_secs(9))).unwrap();
        let mut nothing = Vec::new();
        assert_eq!(stream.read_to_end(&mut nothing).unwrap(), 0);
    }
    // Reads and writes go on all the while.
    let _silent = [connect(), connect(), connect(), connect(), connect()];
    assert!(cache.get(format!("7/{}", "y".repeat(2_000))).unwrap().is_some());
    std::thread::sleep(Duration::from_millis(200));
    let ((), took) = timed(|| cache.close().unwrap());
    // The disk's time is in it, but none of the five seconds that each of those may take.
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(matches!(find(dir.path()), Err(Error::NoSocket { .. })));
}

#[test]
fn many_ask_at_once_and_all_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder().memory(MIB).root(dir.path()).open().unwrap();
    cache.put_many((0..2_000).map(|no| (format!("k{no}"), value(no, 1, 500)))).unwrap();
    let store = find(dir.path()).unwrap();
    std::thread::scope(|s| {
        for no in 0..24 {
            let store = &store;
            s.spawn(move || match no % 3 {
                0 => assert_eq!(store.stat().unwrap()["items"], 2_000),
                1 => assert_eq!(keys(store, "k").len(), 2_000),
                _ => match store.verify(|_| {}) {
                    Ok(report) => assert!(report.is_clean()),
                    Err(Error::Refused { why, .. }) => {
                        assert!(why.contains("one verification at a time"), "{why}");
                    }
                    Err(e) => panic!("{e}"),
                },
            });
        }
    });
    assert!(store.verify(|_| {}).unwrap().is_clean(), "the place of a verification is free again");
}

#[test]
fn closing_ends_what_is_under_way() {
    let mut cut_short = 0;
    for round in 0..50 {
        // Five times, and until one was met in the middle of it.
        if round >= 5 && cut_short > 0 {
            break;
        }
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::builder().memory(MIB).root(dir.path()).open().unwrap();
        cache.put_many((0..3_000).map(|no| (format!("k{no}"), value(no, 1, 2_000)))).unwrap();
        cache.flush().unwrap();
        let store = find(dir.path()).unwrap();
        let asking: Vec<_> = (0..3)
            .map(|no| {
                let store = store.clone();
                std::thread::spawn(move || {
                    let ask = || match no {
                        0 => store.verify(|_| {}).map(drop),
                        1 => store.list(b"", |_| ControlFlow::Continue(())).map(drop),
                        _ => store.stat().map(drop),
                    };
                    loop {
                        // Not one that found nobody: one that was answered, and then was not any more.
                        match ask() {
                            Ok(()) => {}
                            Err(Error::NoSocket { .. }) => return false,
                            Err(_) => return no == 0,
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(60));
        let ((), took) = timed(|| cache.close().unwrap());
        // They go on asking for ever.
        assert!(took < Duration::from_secs(30), "{took:?}");
        cut_short += asking.into_iter().filter_map(|t| t.join().unwrap().then_some(())).count();
        assert!(!socket(dir.path()).exists());
    }
    assert!(cut_short > 0, "no verification was under way");
}
