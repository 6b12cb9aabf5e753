//! What is in Redis.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use thermocline::metrics;

/// The metrics that change from one moment to the next, whatever the store does.
const MOVING: &[&str] = &["metrics_sent_total", "metrics_failed_total"];

#[test]
fn the_hash_has_what_the_stats_have() {
    if !is_installed() {
        return;
    }
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let mut builder = reporting(&server.url(), "one").root(dir.path());
    builder.config_mut().metrics.redis.prefix = "fleet".to_owned();
    let cache = builder.open().unwrap();
    for n in 0..200 {
        cache.put(format!("k{n}"), vec![n as u8; 3000]).unwrap();
        cache.get(format!("k{}", n / 2)).unwrap();
        cache.get(format!("none{n}")).unwrap();
    }
    cache.remove("k7").unwrap();
    cache.flush().unwrap();
    let mut client = server.metrics();
    let of_hash = |client: &mut Client| -> BTreeMap<String, String> {
        client.ask(&["HGETALL", "fleet:current:one"]).pairs().into_iter().collect()
    };
    // Once background work is at rest, two reports are of the same numbers: what is in the hash is then what a picture says
    // that was taken before it.
    let flat = |cache: &Cache| -> BTreeMap<String, String> {
        let stats = cache.stats();
        metrics::samples(&stats).flat_map(|sample| sample.fields()).collect()
    };
    let same = |cache: &Cache, client: &mut Client| {
        let before = flat(cache);
        let reports = sent(cache);
        until("a report", || sent(cache) > reports + 1);
        let (hash, after) = (of_hash(client), flat(cache));
        let still = |name: &String| !MOVING.contains(&&**name) && before.get(name) == after.get(name);
        let compared: Vec<&String> = after.keys().filter(|name| still(name)).collect();
        assert!(compared.len() > 150, "{} of {}", compared.len(), after.len());
        for name in compared {
            assert_eq!(hash.get(name), after.get(name), "{name}");
        }
        // And nothing else is in it.
        let own: BTreeSet<&str> =
            metrics::redis_fields().iter().filter(|f| f.of.contains("current")).map(|f| f.name).collect();
        let names: BTreeSet<&str> = hash.keys().map(String::as_str).collect();
        let known: BTreeSet<&str> = after.keys().map(String::as_str).chain(own).collect();
        assert_eq!(names, known);
        hash
    };
    let hash = same(&cache, &mut client);
    assert_eq!(hash["puts_total"], "200");
    assert_eq!((&*hash["gets_total"], &*hash["misses_total"]), ("400", "200"));
    assert_eq!(hash["pid"], std::process::id().to_string());
    assert_eq!(hash["interval_seconds"], "1");
    // History has the same, and grows by one a report.
    let entries = client.ask(&["XRANGE", "fleet:history:one", "-", "+"]).list();
    assert!(entries.len() >= 2);
    let last = entries.last().unwrap().clone().list().remove(1).pairs();
    assert!(last.iter().any(|(name, value)| name == "puts_total" && value == "200"), "{last:?}");
    // All but the histograms of directories and what is said of the instance, each once.
    let past: BTreeSet<&str> = last.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(past.len(), last.len());
    let histograms = ["directory_read_seconds", "directory_write_seconds", "directory_sync_seconds"];
    let left_out = |name: &str| histograms.iter().any(|h| name.starts_with(h));
    let of_now = ["host", "pid", "store", "interval_seconds"];
    let wanted: BTreeSet<&str> =
        hash.keys().map(String::as_str).filter(|n| !left_out(n) && !of_now.contains(n)).collect();
    assert_eq!(past, wanted);
    assert!(hash.keys().filter(|name| left_out(name)).count() >= 21);
    let keys: Vec<String> =
        ["alive:one", "current:one", "history:one", "instances"].map(|k| format!("fleet:{k}")).to_vec();
    assert_eq!(super::keys(&mut client), keys);
    for key in &keys {
        assert!(client.ask(&["PTTL", key]).number() > 0, "{key} does not expire");
    }
    assert!(close(&cache) < CLOSE_DISK);
    // What is for looking back stays; nobody is there.
    assert_eq!(super::keys(&mut client), ["fleet:history:one"]);
}

#[test]
fn decisions_are_told_once_and_in_order() {
    if !is_installed() {
        return;
    }
    let server = Server::start(&[]);
    let mut builder = reporting(&server.url(), "one");
    builder.config_mut().metrics.redis.history = 100;
    let cache = builder.open().unwrap();
    let decide = |n: u64| {
        cache.note_decision(vec![("rule".into(), format!("rule {n}")), ("why".into(), "because".into())])
    };
    (0..150).for_each(decide);
    let mut client = server.metrics();
    let length = |client: &mut Client| client.ask(&["XLEN", "thermocline:decisions:one"]).number();
    let last = |client: &mut Client| {
        let list = client.ask(&["XREVRANGE", "thermocline:decisions:one", "+", "-", "COUNT", "1"]).list();
        list.first().map(|entry| entry.clone().list().remove(1).pairs()).unwrap_or_default()
    };
    until("150 decisions", || last(&mut client).iter().any(|(_, value)| value == "rule 149"));
    let all = client.ask(&["XRANGE", "thermocline:decisions:one", "-", "+"]).list();
    let numbers: Vec<u64> = all
        .into_iter()
        .map(|entry| {
            let fields = entry.list().remove(1).pairs();
            let of = |name: &str| fields.iter().find(|(n, _)| n == name).unwrap().1.clone();
            assert_eq!((of("rule"), of("why")), (format!("rule {}", of("number")), "because".to_owned()));
            assert!(of("time_ms").parse::<u64>().unwrap() > 1_700_000_000_000);
            of("number").parse().unwrap()
        })
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
    assert_eq!(cache.stats().counts.metrics_dropped, 0);
    // Nodes of a stream have a hundred entries: `~` keeps at most one more than it has to.
    (150..600).for_each(|n| {
        decide(n);
        if n % 50 == 0 {
            let reports = sent(&cache);
            until("a report", || sent(&cache) > reports);
        }
    });
    until("the last decision", || last(&mut client).iter().any(|(_, value)| value == "rule 599"));
    assert!(length(&mut client) <= 200, "{}", length(&mut client));
    assert_eq!(cache.stats().counts.metrics_dropped, 0);
}

#[test]
fn no_key_and_no_byte_of_a_value_comes_there() {
    if !is_installed() {
        return;
    }
    let server = Server::start(&[]);
    let mut monitor = server.client();
    assert_eq!(monitor.ask(&["MONITOR"]).text(), "OK");
    let listening = std::thread::spawn(move || {
        let mut heard = Vec::new();
        // It ends with the server.
        while let Ok(line) = monitor.reply() {
            heard.push(line.text().to_owned());
        }
        heard
    });
    let dir = tempfile::tempdir().unwrap();
    let marker = "MARKER-of-an-item";
    let mut builder = reporting(&server.url(), "one").root(dir.path());
    // The optimizer has decided something by the end: others take more than a hundredth of any machine's memory, so it always
    // gives way.
    let config = builder.config_mut();
    (config.optimizer.interval, config.resources.memory.gc_threshold) = (1, 1);
    let cache = builder.open().unwrap();
    let begin = Instant::now();
    let mut n = 0;
    while sent(&cache) < 4 {
        let (key, value) = (format!("{marker}/{}", n % 5000), format!("{marker} {n} ").repeat(50));
        cache.put(&key, value).unwrap();
        cache.get(&key).unwrap();
        cache.get(format!("{marker}/none/{n}")).unwrap();
        if n % 7 == 0 {
            cache.remove(&key).unwrap();
        }
        n += 1;
        std::thread::sleep(Duration::from_micros(200));
    }
    cache.flush().unwrap();
    let mut client = server.metrics();
    until("a decision", || client.ask(&["EXISTS", "thermocline:decisions:one"]).number() == 1);
    let decision = client.ask(&["XRANGE", "thermocline:decisions:one", "-", "+", "COUNT", "1"]).list();
    let decision: BTreeMap<String, String> =
        decision[0].clone().list().remove(1).pairs().into_iter().collect();
    let names: Vec<&str> = decision.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["because", "change", "number", "pressure", "result", "strategy", "takes_back", "time_ms"]
    );
    assert!(["aggressive", "balanced", "conservative"].contains(&&*decision["strategy"]), "{decision:?}");
    assert!(decision["pressure"].parse::<f64>().is_ok_and(|p| (0.0..=1.0).contains(&p)), "{decision:?}");
    assert!(!decision["change"].is_empty() && !decision["because"].is_empty(), "{decision:?}");
    assert!(decision["result"] == "done" || decision["result"].starts_with("not done: "), "{decision:?}");
    assert_eq!(
        client.ask(&["INFO", "keyspace"]).text().matches("db").count(),
        1,
        "database 15 alone is used"
    );
    let mut dump = String::new();
    for key in keys(&mut client) {
        let kind = client.ask(&["TYPE", &key]);
        let of = |client: &mut Client, words: &[&str]| client.ask(words).all_text();
        dump += &format!("{key}\n");
        dump += &match kind.text() {
            "string" => of(&mut client, &["GET", &key]),
            "hash" => of(&mut client, &["HGETALL", &key]),
            "zset" => of(&mut client, &["ZRANGE", &key, "0", "-1", "WITHSCORES"]),
            "stream" => of(&mut client, &["XRANGE", &key, "-", "+"]),
            other => panic!("{other}"),
        };
    }
    assert!(close(&cache) < CLOSE_DISK);
    let seconds = begin.elapsed().as_secs_f64().ceil() as u64;
    drop(client);
    drop(server);
    let heard = listening.join().unwrap();
    assert!(dump.contains("puts_total") && !dump.contains(marker), "{dump}");
    let ours: Vec<&String> =
        heard.iter().filter(|line| line.contains("puts_total") || line.contains("thermocline:")).collect();
    assert!(ours.len() > 20 && heard.iter().any(|line| line.contains("\"HSET\"")), "{heard:?}");
    assert!(!heard.iter().any(|line| line.contains(marker)), "an item's marker came to Redis");
    assert!(heard.iter().any(|line| line.contains("\"XADD\" \"thermocline:decisions:one\"")));
    // One report a period and no more: twelve commands, two of them the frame of the transaction, and decisions; and a few
    // when it comes and goes.
    let reports = heard.iter().filter(|line| line.contains("\"HSET\"")).count() as u64;
    assert!(reports >= 4 && reports <= seconds + 2, "{reports} reports in {seconds} s");
    let own = heard.iter().filter(|line| {
        ![
            "KEYS",
            "TYPE",
            "RANGE\" \"thermocline",
            "HGETALL",
            "\"GET\"",
            "INFO",
            "EXISTS",
            "thermocline:decisions:",
        ]
        .iter()
        .any(|c| line.contains(c))
    });
    let commands = own.count() as u64;
    assert!(commands <= reports * 12 + 12, "{commands} commands in {reports} reports");
}

#[test]
fn two_stores_are_told_apart_and_one_that_is_dead_disappears() {
    if !is_installed() {
        return;
    }
    let server = Server::start(&[]);
    let one = reporting(&server.url(), "one").open().unwrap();
    let mut builder = reporting(&server.url(), "two");
    builder.config_mut().metrics.redis.instance = None;
    let two = builder.open().unwrap();
    one.put("a", "1").unwrap();
    two.put("a", "1").unwrap();
    two.put("b", "2").unwrap();
    let mut client = server.metrics();
    until("both report", || instances(&mut client).len() == 2);
    let names = instances(&mut client);
    let other = names.iter().find(|name| *name != "one").unwrap().clone();
    // Host, and eight digits: chance, where there is no id.
    let (host, digits) = other.rsplit_once(':').unwrap();
    assert!(
        !host.is_empty() && digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit()),
        "{other}"
    );
    let mut puts =
        |name: &str| match client.ask(&["HGET", &format!("thermocline:current:{name}"), "puts_total"]) {
            Reply::Text(text) => text,
            _ => String::new(),
        };
    until("their numbers", || puts("one") == "1" && puts(&other) == "2");
    // One dies without a word. Its entries go when three of its reports are missing, and five seconds.
    let url = format!("redis://127.0.0.1:{}/15", server.port);
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "content::a_store_that_reports_until_it_is_killed", "--ignored", "--nocapture"])
        .env("THERMOCLINE_TEST_REDIS", url)
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut child = child.unwrap();
    until("the third is there", || instances(&mut client).contains(&"doomed".to_owned()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(client.ask(&["EXISTS", "thermocline:alive:doomed", "thermocline:current:doomed"]).number(), 2);
    until("it is gone", || instances(&mut client).len() == 2);
    until("its entries expire", || {
        client.ask(&["EXISTS", "thermocline:alive:doomed", "thermocline:current:doomed"]).number() == 0
    });
    assert_eq!(client.ask(&["EXISTS", "thermocline:alive:one"]).number(), 1);
    // One that is closed goes at once, and leaves the other alone.
    assert!(close(&one) < CLOSE);
    assert_eq!(instances(&mut client), [other]);
    assert_eq!(client.ask(&["EXISTS", "thermocline:alive:one", "thermocline:current:one"]).number(), 0);
}

/// A store on disk has its name from its id, so that it goes on in its history however often it is opened; two in memory alone
/// are told apart though host and process are one.
#[test]
fn a_store_keeps_its_name_and_two_without_an_id_have_two() {
    if !is_installed() {
        return;
    }
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let open = |root: bool| {
        let mut builder = reporting(&server.url(), "");
        builder.config_mut().metrics.redis.instance = None;
        let builder = if root { builder.root(dir.path()) } else { builder };
        builder.open().unwrap()
    };
    let mut client = server.metrics();
    let mut names = BTreeSet::new();
    for _ in 0..3 {
        let cache = open(true);
        until("it reports", || instances(&mut client).len() == 1);
        names.extend(instances(&mut client));
        assert!(close(&cache) < CLOSE_DISK);
        // No farewell comes later, that would take the next one out.
        assert!(instances(&mut client).is_empty());
    }
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(client.ask(&["KEYS", "thermocline:history:*"]).list().len(), 1);
    let pair = [open(false), open(false)];
    until("both report", || instances(&mut client).len() == 2);
    // By chance, not counted from 1, which two processes would do alike.
    let digits = |name: &String| u32::from_str_radix(name.rsplit(':').next().unwrap(), 16).unwrap();
    let names = instances(&mut client);
    assert!(names.iter().map(digits).any(|n| n > 0xffff), "{names:?}");
    pair.iter().for_each(|cache| assert!(close(cache) < CLOSE));
}

/// What the test above starts as a process, and kills.
#[test]
#[ignore = "it goes on until it is killed"]
fn a_store_that_reports_until_it_is_killed() {
    let Ok(url) = std::env::var("THERMOCLINE_TEST_REDIS") else { return };
    let _cache = reporting(&url, "doomed").open().unwrap();
    // Should nobody kill it.
    std::thread::sleep(Duration::from_secs(60));
}

/// The command looks at stores all day; it is an instance of the fleet only where it serves one.
#[test]
#[cfg(feature = "cli")]
fn the_command_reports_only_where_it_serves() {
    use std::io::BufRead;
    use std::process::{Command, Stdio};
    if !is_installed() {
        return;
    }
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.toml");
    let text = format!(
        "[storage_tiers.ssd]\npath = {:?}\n[metrics.redis]\nurl = {:?}\ninstance = \"served\"\n",
        dir.path().join("ssd"),
        server.url()
    );
    std::fs::write(&file, text).unwrap();
    drop(Cache::builder().ssd(dir.path().join("ssd"), 64 << 20).open().unwrap());
    let command = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
        command.args(args).arg("--config").arg(&file).stdout(Stdio::piped());
        command
    };
    for args in [&["stat"][..], &["ls"], &["verify"]] {
        assert!(command(args).output().unwrap().status.success(), "{args:?}");
    }
    let mut client = server.metrics();
    assert!(keys(&mut client).is_empty(), "{:?}", keys(&mut client));
    let mut serving = command(&["serve-metrics", "0"]).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(serving.stdout.take().unwrap()).read_line(&mut line).unwrap();
    until("it reports", || instances(&mut client) == ["served"]);
    rustix::process::kill_process(rustix::process::Pid::from_child(&serving), rustix::process::Signal::TERM)
        .unwrap();
    assert!(serving.wait().unwrap().success());
    assert!(instances(&mut client).is_empty());
}
