//! The server does not do its part: the store and its callers do not notice.

use super::*;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thermocline_testing::Ear;
use tracing::Level;

const PASSWORD: &str = "s3cret-Pass/word";

/// Lines of a level about the server at a port.
fn about(ear: &Ear, port: u16, level: Level) -> Vec<String> {
    let name = format!(":{port}/");
    let of = |(l, text): &(Level, String)| *l == level && text.contains("Redis") && text.contains(&name);
    ear.all().into_iter().filter(of).map(|(_, text)| text).collect()
}

/// A store whose reports fail: it goes on, and says so once, without the password. Gives the warning.
fn is_not_noticed(ear: &Ear, url: &str, port: u16, times: u64) -> (Cache, String) {
    let cache = reporting(url, "one").open().unwrap();
    works(&cache);
    until("failures are counted", || failed(&cache) >= times);
    works(&cache);
    assert_eq!(sent(&cache), 0);
    let warnings = about(ear, port, Level::WARN);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    // For who filters by fields.
    let fields = [" class=\"redis\"".to_owned(), format!(":{port}/"), " instance=one".to_owned()];
    assert!(fields.iter().all(|field| warnings[0].contains(field)), "{warnings:?}");
    assert!(warnings[0].contains(" redis=redis"), "{warnings:?}");
    let said = format!("{cache:?} {:?}", ear.all());
    assert!(!said.contains(PASSWORD) && !said.contains("s3cret"), "{said}");
    (cache, warnings[0].clone())
}

fn works(cache: &Cache) {
    let ((), all) = timed(|| {
        for n in 0..2000 {
            let key = format!("k{n}");
            cache.put(&key, vec![1; 100]).unwrap();
            assert!(cache.get(&key).unwrap().is_some());
        }
    });
    // Some milliseconds; and far less than any wait for a network, though it were one alone that waits.
    assert!(all < Duration::from_secs(1), "{all:?}");
}

/// It reports by itself once the cause is gone, and says so once.
fn recovers(ear: &Ear, cache: &Cache, port: u16) {
    let before = sent(cache);
    until("it reports by itself", || sent(cache) > before);
    until("it says so", || !about(ear, port, Level::INFO).is_empty());
    assert_eq!(about(ear, port, Level::INFO).len(), 1);
}

#[test]
fn absent_at_start_then_there_then_killed_then_there_again() {
    if !is_installed() {
        return;
    }
    let ear = Ear::of_all();
    let mut server = Server::start(&[]);
    server.kill();
    let (cache, why) = is_not_noticed(&ear, &server.url(), server.port, 2);
    assert!(why.contains("cannot be reached") && why.contains("refused"), "{why}");
    assert!(server.begin());
    recovers(&ear, &cache, server.port);
    server.kill();
    let before = failed(&cache);
    until("it fails", || failed(&cache) > before);
    works(&cache);
    assert!(server.begin());
    let before = sent(&cache);
    until("it reports again", || sent(&cache) > before);
    // The second time is within a minute of the first, and not worth another line.
    assert_eq!(
        (about(&ear, server.port, Level::WARN).len(), about(&ear, server.port, Level::INFO).len()),
        (1, 1)
    );
    server.kill();
    assert!(close(&cache) < CLOSE);
}

#[test]
fn hung_it_accepts_and_never_answers() {
    let ear = Ear::of_all();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let over = Arc::new(AtomicBool::new(false));
    let held = {
        let over = over.clone();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            while !over.load(Ordering::Relaxed) {
                held.extend(listener.accept().ok());
                std::thread::sleep(Duration::from_millis(5));
            }
            held.len()
        })
    };
    let (cache, why) = is_not_noticed(&ear, &format!("redis://127.0.0.1:{port}"), port, 1);
    assert!(why.contains("does not answer"), "{why}");
    // In the middle of the next try.
    std::thread::sleep(Duration::from_millis(1500));
    assert!(close(&cache) < CLOSE);
    // TLS is waited for no longer.
    let cache = reporting(&format!("rediss://127.0.0.1:{port}"), "one").open().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(close(&cache) < CLOSE);
    over.store(true, Ordering::Relaxed);
    assert!(held.join().unwrap() >= 2);
}

#[test]
fn a_server_that_hangs_goes_on_one_day() {
    if !is_installed() {
        return;
    }
    let ear = Ear::of_all();
    let server = Server::start(&[]);
    let cache = reporting(&server.url(), "one").open().unwrap();
    until("a report", || sent(&cache) > 0);
    server.signal(rustix::process::Signal::STOP);
    until("it fails", || failed(&cache) > 0);
    works(&cache);
    let (closing, both) = timed(|| close(&reporting(&server.url(), "two").open().unwrap()));
    assert!(closing < CLOSE && both < CLOSE, "{closing:?} {both:?}");
    server.signal(rustix::process::Signal::CONT);
    recovers(&ear, &cache, server.port);
    assert!(close(&cache) < CLOSE);
}

#[test]
fn out_of_memory() {
    if !is_installed() {
        return;
    }
    let ear = Ear::of_all();
    let server = Server::start(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]);
    let (cache, why) = is_not_noticed(&ear, &server.url(), server.port, 2);
    assert!(why.contains("OOM"), "{why}");
    // Nothing is there, not a part of a report either.
    assert!(keys(&mut server.metrics()).is_empty());
    assert_eq!(server.client().ask(&["CONFIG", "SET", "maxmemory", "0"]).text(), "OK");
    recovers(&ear, &cache, server.port);
    assert_eq!(server.client().ask(&["CONFIG", "SET", "maxmemory", "1"]).text(), "OK");
    assert!(close(&cache) < CLOSE);
}

#[test]
fn read_only() {
    if !is_installed() {
        return;
    }
    let ear = Ear::of_all();
    let server = Server::start(&["--replicaof", "127.0.0.1", &free_port().to_string()]);
    let (cache, why) = is_not_noticed(&ear, &server.url(), server.port, 2);
    assert!(why.contains("READONLY"), "{why}");
    assert_eq!(server.client().ask(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    recovers(&ear, &cache, server.port);
    assert!(close(&cache) < CLOSE);
}

#[test]
fn wrong_password() {
    if !is_installed() {
        return;
    }
    let ear = Ear::of_all();
    let server = Server::start(&["--requirepass", "another"]);
    let url = format!("redis://:{}@127.0.0.1:{}", PASSWORD.replace('/', "%2F"), server.port);
    let (cache, why) = is_not_noticed(&ear, &url, server.port, 2);
    assert!(why.contains("refuses the user or the password (WRONGPASS)"), "{why}");
    let mut client = server.client();
    assert_eq!(client.ask(&["AUTH", "another"]).text(), "OK");
    assert_eq!(client.ask(&["CONFIG", "SET", "requirepass", PASSWORD]).text(), "OK");
    recovers(&ear, &cache, server.port);
    assert!(close(&cache) < CLOSE);
    let said = format!("{:?} {:?}", ear.all(), reporting(&url, "one"));
    assert!(!said.contains("s3cret"), "{said}");
}

#[test]
fn no_password_where_one_is_wanted_and_one_where_none_is() {
    if !is_installed() {
        return;
    }
    let ear = Ear::of_all();
    let server = Server::start(&["--requirepass", PASSWORD]);
    let (cache, why) = is_not_noticed(&ear, &server.url(), server.port, 1);
    assert!(why.contains("NOAUTH"), "{why}");
    assert!(close(&cache) < CLOSE);
    let server = Server::start(&[]);
    let url = format!("redis://me:{}@127.0.0.1:{}", PASSWORD.replace('/', "%2F"), server.port);
    let (cache, why) = is_not_noticed(&ear, &url, server.port, 1);
    assert!(why.contains("refuses the user or the password"), "{why}");
    assert!(close(&cache) < CLOSE);
}

#[test]
fn wrong_database() {
    if !is_installed() {
        return;
    }
    let ear = Ear::of_all();
    let server = Server::start(&[]);
    let (cache, why) = is_not_noticed(&ear, &format!("{}/99", server.url()), server.port, 2);
    assert!(why.contains("refuses database 99") && why.contains("out of range"), "{why}");
    // Nothing came into any other.
    assert_eq!(server.client().ask(&["INFO", "keyspace"]).text().matches("db").count(), 0);
    assert!(close(&cache) < CLOSE);
}

#[test]
fn decisions_wait_for_the_server_and_the_oldest_go() {
    if !is_installed() {
        return;
    }
    let _ear = Ear::of_all();
    let mut server = Server::start(&[]);
    server.kill();
    let cache = reporting(&server.url(), "one").open().unwrap();
    for n in 0..300 {
        cache.note_decision(vec![("rule".into(), n.to_string())]);
    }
    assert_eq!(cache.stats().counts.metrics_dropped, 300 - 256);
    assert!(server.begin());
    let mut client = server.metrics();
    until("those that were kept", || client.ask(&["XLEN", "thermocline:decisions:one"]).number() > 0);
    // All at once: with an interval of an hour the rest would wait for another hour.
    assert_eq!(client.ask(&["XLEN", "thermocline:decisions:one"]).number(), 256);
    let first = client.ask(&["XRANGE", "thermocline:decisions:one", "-", "+", "COUNT", "1"]).all_text();
    assert!(first.contains("\n44\n"), "{first}");
    assert!(close(&cache) < CLOSE);
}

#[test]
fn an_address_that_nobody_answers_at_keeps_nobody_from_closing() {
    use socket2::{Domain, Socket, Type};
    let ear = Ear::of_all();
    // A listener whose queue is full: the system drops whatever asks for a connection.
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    full.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap();
    let asks = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.connect_timeout(&address, Duration::from_millis(300)).is_ok().then_some(socket)
    };
    let queued: Vec<Socket> = std::iter::from_fn(asks).take(100).collect();
    assert!(!queued.is_empty() && queued.len() < 100);
    let port = address.as_socket().unwrap().port();
    let url = format!("redis://127.0.0.1:{port}");
    let cache = reporting(&url, "one").open().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    works(&cache);
    assert!(close(&cache) < CLOSE);
    assert!(about(&ear, port, Level::WARN).is_empty(), "it was told of though the store closed");
    let (cache, why) = is_not_noticed(&ear, &url, port, 1);
    assert!(why.contains("cannot be reached") && why.contains("no connection in time"), "{why}");
    assert!(close(&cache) < CLOSE);
}

#[test]
fn a_connection_that_the_server_ends_while_it_is_idle_costs_nothing() {
    if !is_installed() {
        return;
    }
    let ear = Ear::of_all();
    let server = Server::start(&[]);
    let cache = reporting(&server.url(), "one").open().unwrap();
    let mut client = server.client();
    for _ in 0..3 {
        let before = sent(&cache);
        until("a report", || sent(&cache) > before);
        // As `timeout` does, which counts in seconds what a test would wait for.
        assert!(client.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).number() >= 1);
    }
    let before = sent(&cache);
    until("a report", || sent(&cache) > before);
    assert_eq!(failed(&cache), 0);
    assert!(about(&ear, server.port, Level::WARN).is_empty(), "{:?}", about(&ear, server.port, Level::WARN));
    assert!(close(&cache) < CLOSE);
}

/// A key of another type stands where decisions go: nothing else of the report is the worse for it, and each decision is
/// there once when it is gone.
#[test]
fn one_key_of_the_wrong_type_does_not_repeat_the_others() {
    if !is_installed() {
        return;
    }
    let ear = Ear::of_all();
    let server = Server::start(&[]);
    let mut client = server.metrics();
    assert_eq!(client.ask(&["SET", "thermocline:history:one", "in the way"]).text(), "OK");
    let cache = reporting(&server.url(), "one").open().unwrap();
    (0..3).for_each(|n| cache.note_decision(vec![("rule".into(), n.to_string())]));
    until("it fails twice", || failed(&cache) >= 2);
    assert!(about(&ear, server.port, Level::WARN)[0].contains("WRONGTYPE"));
    assert_eq!(client.ask(&["XLEN", "thermocline:decisions:one"]).number(), 3);
    assert_eq!(client.ask(&["DEL", "thermocline:history:one"]).number(), 1);
    recovers(&ear, &cache, server.port);
    assert_eq!(client.ask(&["XLEN", "thermocline:decisions:one"]).number(), 3);
    assert!(close(&cache) < CLOSE);
}
