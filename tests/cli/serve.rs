//! `serve-metrics`, as Prometheus and others meet it.

use super::*;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;

/// A server, and where it says that it is.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(place: &Place, more: &[&str]) -> Server {
        let mut args = vec!["serve-metrics", "0", "--root", place.root()];
        args.extend(more);
        let mut child = start(&args, Stdio::null());
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.split_whitespace().find_map(|word| word.strip_prefix("http://"));
        let address = url.and_then(|url| url.strip_suffix("/metrics")).unwrap_or_else(|| panic!("{line:?}"));
        assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"), "{line}");
        Server { address: address.to_owned(), child }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Status line and headers, and the body.
    fn ask(&self, request: &str) -> (String, String) {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        (head.to_lowercase(), body.to_owned())
    }

    fn metrics(&self) -> String {
        let (head, body) = self.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        body
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Ends it as a service manager does; gives its exit code.
    fn stop(mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        let code = wait(&mut self.child, Duration::from_secs(30));
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        // It has no results that there would be none of.
        assert!(said.contains("the store is not closed") && !said.contains("results"), "{said}");
        code
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A store with three items of one tier and none in memory.
fn stored() -> Place {
    let place = Place::new();
    let _ = place.put("a", b"1", &["--create"]).with(0);
    let _ = place.put("b", b"22", &[]).with(0);
    let _ = place.put("c", b"333", &[]).with(0);
    place
}

#[test]
fn prometheus_gets_the_metrics_of_the_store_until_a_signal_ends_it() -> Try {
    let place = stored();
    let server = Server::start(&place, &[]);
    let body = server.metrics();
    assert!(body.contains("\nthermocline_items 3\n"), "{body}");
    assert!(body.contains("\nthermocline_tier_items{tier=\"ssd\"} 3\n"), "{body}");
    assert!(body.contains("# TYPE thermocline_get_seconds histogram\n"), "{body}");
    // In use: nobody else has it meanwhile, and who only looks asks the server.
    let _ = place.run(&["get", "a"]).with(3);
    let stat = place.run(&["stat", "--json"]).with(0).json();
    assert_eq!(stat["open_elsewhere"]["process"], server.child.id());
    assert_eq!(server.stop(), Some(0));
    // Given back: the next one opens it and finds everything.
    let stat = place.run(&["stat", "--json"]).with(0);
    assert_eq!(stat.json()["items"], 3);
    Ok(())
}

#[test]
fn what_is_not_asked_for_as_it_should_be_is_refused_in_a_line() {
    let place = stored();
    let server = Server::start(&place, &[]);
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("GET /metrics/../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405"),
        ("no request at all\r\n\r\n", "400"),
    ] {
        let (head, body) = server.ask(request);
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{request:?}: {head}");
        assert!(body.lines().count() <= 1 && !body.contains("thermocline_"), "{body}");
    }
    let (head, body) = server.ask("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.starts_with("http/1.1 200 ") && body.is_empty(), "{head}\n{body}");
    // A request without an end is not read for ever: the connection ends, with an error or without a word.
    // By itself, long before this client would give up.
    let start = Instant::now();
    let mut endless = server.connect();
    let line = format!("X-Long: {}\r\n", "x".repeat(4000));
    let _ = endless.write_all(b"GET /metrics HTTP/1.1\r\n");
    let refused = (0..100).any(|_| endless.write_all(line.as_bytes()).is_err());
    let mut answer = Vec::new();
    let ended = endless.read_to_end(&mut answer).is_err() || !answer.starts_with(b"HTTP/1.1 200");
    assert!(refused || ended);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(server.metrics().contains("thermocline_items 3"));
}

#[test]
fn who_sends_nothing_keeps_nobody_waiting_and_is_not_waited_for_at_the_end() {
    let place = stored();
    let server = Server::start(&place, &[]);
    // From before the first is there: the time of each may have begun long before the last is.
    let start = Instant::now();
    let mut silent: Vec<TcpStream> = (0..20).map(|_| server.connect()).collect();
    // And one that begins a request and does not end it.
    silent[0].write_all(b"GET /metr").unwrap();
    assert!(server.metrics().contains("thermocline_items 3"));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // Nobody is kept for ever, which bounds how long others wait when all places are taken: who has sent nothing for two
    // seconds, who has begun for ten.
    let mut gone = |n: usize, least: u64, most: u64| {
        let mut answer = Vec::new();
        let ended = silent[n].read_to_end(&mut answer);
        let after = start.elapsed().as_secs();
        assert!((least..most).contains(&after), "{n}: {ended:?} after {after} s");
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    };
    gone(1, 1, 8);
    gone(0, 8, 20);
    let _more: Vec<TcpStream> = (0..5).map(|_| server.connect()).collect();
    let start = Instant::now();
    assert_eq!(server.stop(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
}

#[test]
fn where_all_places_are_taken_the_next_has_its_turn_when_one_is_free() {
    let place = stored();
    let server = Server::start(&place, &[]);
    // From before the first is there: its two seconds may have begun long before the last is.
    let start = Instant::now();
    let silent: Vec<TcpStream> = (0..80).map(|_| server.connect()).collect();
    assert!(server.metrics().contains("thermocline_items 3"));
    // There are no more places than for 64; these are free after two seconds.
    let waited = start.elapsed();
    assert!((1..9).contains(&waited.as_secs()), "{waited:?}");
    drop(silent);
    assert!(server.metrics().contains("thermocline_items 3"));
}

#[test]
fn an_address_that_cannot_be_had_says_what_to_do() {
    let place = stored();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let refused = place.run(&["serve-metrics", &port]).with(2);
    assert!(
        refused.err.contains("another program listens there") && refused.err.contains("ss -ltnp"),
        "{}",
        refused.err
    );
    let refused = place.run(&["serve-metrics", "192.0.2.1:9100"]).with(2);
    assert!(refused.err.contains("does not have the address"), "{}", refused.err);
    let wrong = place.run(&["serve-metrics", "nonsense"]);
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.err.contains("name a port"), "{}", wrong.err);
    // The store was not touched: it is as free as before.
    let _ = place.run(&["stat"]).with(0);
}

#[test]
fn programs_are_told_where_it_is_and_a_store_that_is_none_is_refused() {
    let place = stored();
    let mut child = start(&["serve-metrics", "0", "--json", "--root", place.root()], Stdio::null());
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.ends_with("}\n") {
        assert!(out.read_line(&mut text).unwrap() > 0, "{text}");
    }
    let url: Value = serde_json::from_str(&text).unwrap();
    assert!(url["url"].as_str().is_some_and(|url| url.starts_with("http://127.0.0.1:")), "{url}");
    child.kill().unwrap();
    child.wait().unwrap();
    let none = Place::new();
    let refused = none.run(&["serve-metrics", "0"]);
    assert!(matches!(refused.code, Some(2 | 4)), "{:?} {}", refused.code, refused.err);
}

#[test]
fn who_serves_more_than_this_machine_is_told_so() {
    let place = stored();
    for (address, told) in [("0.0.0.0:0", true), ("[::1]:0", false), ("0", false)] {
        let mut child = start(&["serve-metrics", address, "--root", place.root()], Stdio::null());
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        if line.is_empty() && address.starts_with('[') {
            thermocline_testing::skipped("serve-metrics on [::1]: this machine has no IPv6");
            child.wait().unwrap();
            continue;
        }
        assert!(line.contains("/metrics"), "{line}");
        // It is said before the first answer.
        let at = line.split_whitespace().find_map(|word| word.strip_prefix("http://")).unwrap();
        let port = at.trim_end_matches("/metrics").rsplit_once(':').unwrap().1;
        let host = if address.starts_with('[') { "[::1]" } else { "127.0.0.1" };
        let mut asking = TcpStream::connect(format!("{host}:{port}")).unwrap();
        asking.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        asking.read_to_end(&mut Vec::new()).unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let ran = child.wait_with_output().unwrap();
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(said.contains("no password and no encryption"), told, "{address}: {said}");
        assert!(!told || said.matches("0.0.0.0:").count() == 1, "{said}");
    }
}
