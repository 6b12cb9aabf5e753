//! `thermocline top --redis`: a store by what it reports.

use super::*;
use std::process::{Command, Output, Stdio};

fn top(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
    command.arg("top").args(args).stdin(Stdio::null()).output().unwrap()
}

fn told(ran: &Output, code: i32) -> String {
    let err = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(code), "{err}");
    err
}

#[test]
fn a_store_is_shown_by_what_it_reports() {
    if !is_installed() {
        return;
    }
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let nobody = told(&top(&["--redis", &server.url(), "--once"]), 3);
    assert!(nobody.contains("no store reports there") && nobody.contains("metrics.redis.url"), "{nobody}");

    let cache = reporting(&server.url(), "web-1").ssd(dir.path(), 64 << 20).open().unwrap();
    for no in 0..2_000 {
        cache.put(format!("k{no}"), vec![7; 5_000]).unwrap();
        cache.get(format!("k{no}")).unwrap();
    }
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(30));
        cache.optimizer().run_once().unwrap();
    }
    until("it reports", || sent(&cache) > 1);
    // Without a name: it is the only one.
    let once = std::thread::scope(|s| {
        let once = s.spawn(|| top(&["--redis", &server.url(), "--once"]));
        while !once.is_finished() {
            for no in 0..200 {
                cache.get(format!("k{no}")).unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        once.join().unwrap()
    });
    told(&once, 0);
    let picture = String::from_utf8(once.stdout).unwrap();
    for part in ["web-1 at redis://127.0.0.1:", "2,000 items", "hits 100.00 %", "\nmemory ", "\nssd "] {
        assert!(picture.contains(part), "{part}\n{picture}");
    }
    // What was asked for meanwhile: a rate, of two reports that are not the same one.
    assert!(!picture.contains("gets 0") && !picture.contains("gets –"), "{picture}");
    // Percentiles follow from no distribution there, but are told.
    let memory = picture.lines().find(|l| l.starts_with("memory ")).unwrap();
    assert!(memory.contains("ns") || memory.contains("µs"), "{memory}");

    let document = top(&["--redis", &server.url(), "--json"]);
    told(&document, 0);
    let document: serde_json::Value = serde_json::from_slice(&document.stdout).unwrap();
    assert_eq!((&document["instance"], &document["figures"]["items"]), (&"web-1".into(), &2_000.into()));
    for word in ["store", "host"] {
        assert!(document["figures"][word].is_string(), "{word}: {document}");
    }
    let done = cache.optimizer().history().iter().map(|r| r.outcomes.len()).sum::<usize>();
    let history = document["history"].as_array().unwrap();
    assert_eq!(history.is_empty(), done == 0, "{history:?}");
    assert!(history.iter().all(|d| d["change"].is_string()), "{history:?}");

    // Two: one has to be chosen.
    let other = reporting(&server.url(), "web-2").open().unwrap();
    until("the other reports", || sent(&other) > 0);
    let choose = told(&top(&["--redis", &server.url(), "--once"]), 2);
    assert!(choose.contains("--instance web-1, --instance web-2"), "{choose}");
    let chosen = top(&["--redis", &server.url(), "--instance", "web-2", "--once"]);
    told(&chosen, 0);
    assert!(String::from_utf8_lossy(&chosen.stdout).contains("web-2 at "), "{chosen:?}");
    let unknown = told(&top(&["--redis", &server.url(), "--instance", "web-3", "--once"]), 3);
    assert!(unknown.contains("web-3 does not report there") && unknown.contains("web-1"), "{unknown}");
    // One that is closed is gone at once.
    close(&other);
    let gone = told(&top(&["--redis", &server.url(), "--instance", "web-2", "--once"]), 3);
    assert!(gone.contains("does not report"), "{gone}");
    close(&cache);
}

#[test]
fn what_is_wrong_is_said_without_the_password() {
    if !is_installed() {
        return;
    }
    let mut server = Server::start(&["--requirepass", "rightOne"]);
    let port = server.port;
    for (url, code, part) in [
        (format!("redis://:s3cret@127.0.0.1:{port}"), 4, "refuses the user or the password"),
        (format!("redis://127.0.0.1:{port}"), 4, "NOAUTH"),
        (format!("http://:s3cret@127.0.0.1:{port}"), 2, "redis://"),
        (format!("redis://:rightOne@127.0.0.1:{port}/99"), 4, "database 99"),
        (format!("redis://:rightOne@127.0.0.1:{port}"), 3, "no store reports there"),
    ] {
        let said = told(&top(&["--redis", &url, "--once"]), code);
        assert!(said.contains(part) && !said.contains("s3cret") && !said.contains("rightOne"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // The URL may stand in a file, which nobody else can read.
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!("[metrics.redis]\nurl = \"redis://:rightOne@127.0.0.1:{port}\"\nprefix = \"other\"\n");
    std::fs::write(file.path(), text).unwrap();
    let mut builder = reporting(&format!("redis://:rightOne@127.0.0.1:{port}"), "one");
    builder.config_mut().metrics.redis.prefix = "other".into();
    let cache = builder.open().unwrap();
    until("it reports", || sent(&cache) > 0);
    let file = file.path().to_str().unwrap();
    let shown = top(&["--config", file, "--instance", "one", "--once"]);
    told(&shown, 0);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("one at redis://127.0.0.1"), "{shown:?}");
    let nowhere = told(&top(&["--instance", "one", "--once"]), 2);
    assert!(nowhere.contains("--redis URL"), "{nowhere}");
    server.kill();
    let away = told(&top(&["--config", file, "--instance", "one", "--once"]), 4);
    assert!(away.contains("cannot be reached") && !away.contains("rightOne"), "{away}");
    close(&cache);
}

/// Exit code 4, as the documentation says: somebody reports there, who is no store, or speaks otherwise.
#[test]
fn a_report_that_makes_no_sense_is_said_to_be_one() {
    if !is_installed() {
        return;
    }
    let server = Server::start(&[]);
    let mut client = server.metrics();
    let far = (i64::MAX / 1024).to_string();
    let _ = client.ask(&["ZADD", "thermocline:instances", &far, "odd"]);
    let _ = client.ask(&["SET", "thermocline:alive:odd", "1"]);
    let _ = client.ask(&["HSET", "thermocline:current:odd", "time_ms", "soon"]);
    let said = told(&top(&["--redis", &server.url(), "--once"]), 4);
    assert!(said.contains("odd") && said.contains("makes no sense"), "{said}");
}
