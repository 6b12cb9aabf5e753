//! The thread against servers that are no Redis: what they do at which moment is theirs to say.

use super::connect::Full;
use super::*;
use redis::Parser;
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::RecvTimeoutError;
use thermocline_storage::clock::SystemClock;
use thermocline_testing::timed;

#[derive(Default)]
struct Fake {
    decisions: Decisions,
    sent: AtomicU64,
    failed: AtomicU64,
}

impl Store for Fake {
    fn stats(&self) -> Stats {
        Stats::default()
    }
    fn decisions(&self) -> &Decisions {
        &self.decisions
    }
    fn count(&self, arrived: bool) {
        let counter = if arrived { &self.sent } else { &self.failed };
        counter.fetch_add(1, Relaxed);
    }
}

fn plan(url: String) -> Plan {
    let mut config = Config::default();
    config.metrics.redis.url = Some(url.into());
    Plan::of(&config, [0; 4]).unwrap()
}

#[test]
fn the_thread_has_ended_when_it_was_waited_for_though_the_server_hangs() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for scheme in ["redis", "rediss"] {
        let store: Arc<dyn Store> = Arc::new(Fake::default());
        let plan = plan(format!("{scheme}://{address}"));
        let exporter = Exporter::start(plan, Arc::downgrade(&store), Arc::new(SystemClock), || {}).unwrap();
        // It hangs in its first round trip.
        let held = listener.accept().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let ((), took) = timed(|| {
            exporter.stop();
            exporter.wait();
        });
        assert!(took < Duration::from_secs(1), "{took:?}");
        // Who waits gives up before long; where the machine stood still it may not have ended by then.
        let ended = timed(|| exporter.ended.lock().recv_timeout(Duration::from_secs(20)));
        assert_eq!(ended.0, Err(RecvTimeoutError::Disconnected));
        assert!(ended.1 < Duration::from_millis(100), "{:?}", ended.1);
        drop(held);
    }
}

#[test]
fn it_ends_with_the_store_that_nobody_closed() {
    let store: Arc<dyn Store> = Arc::new(Fake::default());
    let plan = Plan { interval: Duration::from_millis(20), ..plan("redis://127.0.0.1:1".to_owned()) };
    let exporter = Exporter::start(plan, Arc::downgrade(&store), Arc::new(SystemClock), || {}).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    drop(store);
    let ended = exporter.ended.lock().recv_timeout(Duration::from_secs(70));
    assert_eq!(ended, Err(RecvTimeoutError::Disconnected));
}

fn run(link: Option<f64>) -> Run {
    let store: Weak<dyn Store> = Weak::<Fake>::new();
    let plan = plan("redis://h".to_owned());
    let log = RateLimit::every(Arc::new(SystemClock), QUIET);
    let (stop, wait, pace) = (Arc::default(), plan.interval, plan.interval);
    Run { plan, store, stop, connection: None, log, warned: false, wait, pace, link }
}

#[test]
fn a_slow_link_is_left_its_share() {
    // Half of a link, as configured by default; an interval of ten seconds.
    assert_eq!(run(None).pause(1 << 30), Duration::from_secs(10));
    assert_eq!(run(Some(1e6)).pause(20_000), Duration::from_secs(10));
    assert_eq!(run(Some(1000.0)).pause(20_000), Duration::from_secs(40));
}

/// A server that knows as much as a report needs, and no more: of the commands of a transaction, the one that is called
/// `refuses` fails. It ends a connection after so many transactions.
fn serve(listener: TcpListener, refuses: &'static str, transactions: usize) {
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let mut parser = Parser::new();
            let mut queued: Option<Vec<bool>> = None;
            let mut left = transactions;
            while let Some(words) = words(&mut parser, &socket) {
                let answer = match (&*words[0], &mut queued) {
                    ("MULTI", _) => {
                        queued = Some(Vec::new());
                        "+OK\r\n".to_owned()
                    }
                    ("EXEC", all) => {
                        left -= 1;
                        let all = all.take().unwrap();
                        let each = |refused: &bool| if *refused { "-WRONGTYPE of it\r\n" } else { ":1\r\n" };
                        format!("*{}\r\n{}", all.len(), all.iter().map(each).collect::<String>())
                    }
                    (_, Some(all)) => {
                        let called = words.join(" ");
                        all.push(!refuses.is_empty() && called.starts_with(refuses));
                        "+QUEUED\r\n".to_owned()
                    }
                    ("TIME", None) => "*2\r\n:1000000\r\n:0\r\n".to_owned(),
                    _ => "+OK\r\n".to_owned(),
                };
                let is_over = left == 0 && words[0] == "TIME";
                if (&socket).write_all(answer.as_bytes()).is_err() || is_over {
                    break;
                }
            }
        }
    });
}

/// A command, as it came.
fn words(parser: &mut Parser, mut socket: impl Read) -> Option<Vec<String>> {
    let Ok(Value::Array(words)) = parser.parse_value(&mut socket) else { return None };
    let text = |word| match word {
        Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        other => panic!("{other:?}"),
    };
    Some(words.into_iter().map(text).collect())
}

/// A store that reports to this address as fast as it can, and the thread.
fn reporting(url: String, interval: Duration) -> (Arc<Fake>, Exporter) {
    let store = Arc::new(Fake::default());
    let known: Arc<dyn Store> = store.clone();
    let plan = Plan { interval, ..plan(url) };
    let exporter = Exporter::start(plan, Arc::downgrade(&known), Arc::new(SystemClock), || {}).unwrap();
    (store, exporter)
}

fn until(what: &str, so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const SOON: Duration = Duration::from_millis(20);

#[test]
fn a_connection_that_the_server_ended_while_it_was_idle_costs_no_report() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    serve(listener, "", 1);
    let (store, exporter) = reporting(url, SOON);
    until("ten reports", || store.sent.load(Relaxed) >= 10);
    assert_eq!(store.failed.load(Relaxed), 0);
    exporter.stop();
    exporter.wait();
}

#[test]
fn who_ends_every_connection_before_it_answers_is_asked_twice_in_a_period_and_not_more() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicU64::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            let mut parser = Parser::new();
            while let Some(words) = words(&mut parser, &socket) {
                match &*words[0] {
                    // The first report is taken, and none after it.
                    "EXEC" if count.fetch_add(1, Relaxed) > 0 => break,
                    "EXEC" => (0..12).for_each(|_| socket.write_all(b"+OK\r\n").unwrap()),
                    "SELECT" => socket.write_all(b"+OK\r\n+OK\r\n").unwrap(),
                    _ => {}
                }
            }
        }
    });
    let (store, exporter) = reporting(url, SOON);
    // A connection that was kept is asked on, and one more; later ones are new. So it is asked twice more often than it fails,
    // and in a period that is not over once more than that.
    let least = Cell::new(u64::MAX);
    until("failures, and a pause", || {
        let failed = store.failed.load(Relaxed);
        if failed >= 3 {
            least.set(least.get().min(asked.load(Relaxed) - failed));
        }
        least.get() <= 2
    });
    assert_eq!((store.sent.load(Relaxed), least.get()), (1, 2));
    exporter.stop();
    exporter.wait();
}

/// A reader is idle between two looks, and the server may not keep what is idle.
#[test]
fn who_reads_goes_on_after_the_server_ended_an_idle_connection_and_does_not_insist() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicU64::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            let mut parser = Parser::new();
            while let Some(words) = words(&mut parser, &socket) {
                match &*words[0] {
                    "SELECT" => socket.write_all(b"+OK\r\n:0\r\n").unwrap(),
                    // Three looks are answered, each the last of its connection; and then none.
                    "XREVRANGE" if count.fetch_add(1, Relaxed) < 3 => {
                        socket.write_all(b"*2\r\n+a\r\n+1\r\n*0\r\n").unwrap();
                        break;
                    }
                    "XREVRANGE" => break,
                    _ => {}
                }
            }
        }
    });
    let mut reader = RedisReader::new(&url.as_str().into(), None).unwrap();
    for _ in 0..3 {
        let report = reader.look("i", 1).unwrap().unwrap();
        assert_eq!(report.field("a"), Some("1"));
    }
    let why = reader.look("i", 1).unwrap_err();
    assert!(why.contains("does not answer") || why.contains("takes nothing"), "{why}");
    // On the one that was kept, which ended before it was asked, and on one more.
    assert_eq!(asked.load(Relaxed), 4);
}

#[test]
fn decisions_that_the_server_has_are_not_sent_again_though_it_refuses_another_part() {
    for (refuses, left) in [("XADD thermocline:history", 0), ("XADD thermocline:decisions", 3)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        serve(listener, refuses, usize::MAX);
        let store = Arc::new(Fake::default());
        (0..3).for_each(|n| assert!(!store.decisions.add(n, vec![("n".into(), n.to_string())])));
        let known: Arc<dyn Store> = store.clone();
        let plan = Plan { interval: SOON, ..plan(url) };
        let exporter = Exporter::start(plan, Arc::downgrade(&known), Arc::new(SystemClock), || {}).unwrap();
        until("it failed", || store.failed.load(Relaxed) >= 1);
        assert_eq!(store.decisions.oldest(9).len(), left, "{refuses}");
        exporter.stop();
        exporter.wait();
    }
}

/// Whoever has the store holds it twice here: as what it is, and as what the thread knows.
#[test]
fn nobody_holds_the_store_while_the_network_is_waited_for() {
    // Connecting, and waiting for an answer.
    let full = Full::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [full.address(), silent.local_addr().unwrap()] {
        let (store, exporter) = reporting(format!("redis://{address}"), SOON);
        std::thread::sleep(Duration::from_millis(300));
        for _ in 0..20 {
            assert_eq!(Arc::strong_count(&store), 1, "{address}");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (ended, took) = timed(|| {
            exporter.stop();
            exporter.ended.lock().recv_timeout(Duration::from_secs(20))
        });
        assert_eq!(ended, Err(RecvTimeoutError::Disconnected));
        assert!(took < Duration::from_millis(700), "{took:?}");
    }
    // And in the middle of a report: the first is answered, the next is not.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let hold = std::thread::spawn(move || {
        let (mut socket, _): (TcpStream, _) = listener.accept().unwrap();
        let mut parser = Parser::new();
        while words(&mut parser, &socket).unwrap()[0] != "TIME" {}
        socket.write_all(b"+OK\r\n+OK\r\n").unwrap();
        while words(&mut parser, &socket).unwrap()[0] != "EXEC" {}
        socket
    });
    let (store, exporter) = reporting(url, SOON);
    let socket = hold.join().unwrap();
    assert_eq!(Arc::strong_count(&store), 1);
    exporter.stop();
    exporter.wait();
    drop(socket);
}

#[test]
fn a_report_over_a_slow_link_says_how_long_it_counts() {
    let store: Arc<dyn Store> = Arc::new(Fake::default());
    let mut run = Run { store: Arc::downgrade(&store), ..run(Some(1000.0)) };
    let parcel = run.parcel(0).unwrap();
    // Which makes it a few bytes longer.
    let apart = run.pace.abs_diff(run.pause(parcel.packed.len()));
    assert!(run.pace > run.plan.interval && apart < Duration::from_secs(1), "{:?}", run.pace);
    let text = String::from_utf8(parcel.packed).unwrap();
    let seconds = (run.pace.as_secs_f64().ceil() as u64).to_string();
    let said = text.split("interval_seconds\r\n").nth(1).unwrap().lines().nth(1).unwrap();
    assert_eq!(said, seconds);
}
