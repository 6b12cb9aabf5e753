//! Every reader with real and absurd texts; samples of trees in place of `/proc` and `/sys`.

use super::machine::{Machine, MachineReading};
use super::parse::*;
use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Texts that no reader may stumble over.
const ABSURD: &[&str] = &[
    "",
    "\n",
    "-1",
    "max",
    "nan",
    "inf",
    "1e400",
    "99999999999999999999999999",
    "18446744073709551615",
    "some",
    "some avg10=",
    "some avg10=nan avg60=0",
    "some avg10=inf",
    "some avg10=-3",
    "full avg10=1e300",
    "RssAnon:",
    "RssAnon: kB",
    "RssAnon: 18446744073709551615 kB",
    "RssAnon: 12",
    "usage_usec",
    "usage_usec -5",
    "0::",
    "::::",
    "1 2 3",
    "\u{0}\u{0}\u{0}",
    "１２３",
];

#[test]
fn numbers_and_limits() {
    for (read, is) in [("12\n", Some(12)), (" 7 ", Some(7)), ("0", Some(0)), ("1_000", None), ("+5", None)] {
        assert_eq!(number(read), is, "{read:?}");
    }
    for (read, is) in [
        ("536870912\n", Some(536_870_912)),
        ("max\n", None),
        ("0", None),
        ("9223372036854771712", None), // how version 1 writes "none"
        ("-1", None),
    ] {
        assert_eq!(memory_limit(read), is, "{read:?}");
    }
    for (read, is) in [
        ("max 100000\n", None),
        ("200000 100000", Some(2.0)),
        ("50000 100000", Some(0.5)),
        ("100000 0", None),
        ("0 100000", None),
        ("-1 100000", None),
        ("100000", None),
        ("1 2 3", None),
        ("18446744073709551615 1", None),
    ] {
        assert_eq!(cpu_max(read), is, "{read:?}");
    }
    for (read, is) in [
        ("1000\n", Some(1.25e8)),
        ("-1\n", None),
        ("4294967295", None),
        ("65535", Some(8_191_875_000.0)),
        ("0", None),
    ] {
        assert_eq!(link_speed(read), is, "{read:?}");
    }
}

#[test]
fn fields_of_texts() {
    let status = "Name:\tcat\nVmRSS:\t    1234 kB\nRssAnon:\t     100 kB\nRssFile:\t    1134 kB\n";
    assert_eq!(status_bytes(status, "RssAnon"), Some(102_400));
    assert_eq!(status_bytes(status, "Rss"), None);
    assert_eq!(status_bytes("RssAnon:\t 100 MB", "RssAnon"), None);
    let stat = "usage_usec 5000\nuser_usec 4000\nnr_periods 0\n";
    assert_eq!(field(stat, "usage_usec"), Some(5000));
    assert_eq!(field(stat, "usage"), None);
}

#[test]
fn pressure_of_real_and_absurd_texts() {
    let real =
        "some avg10=75.00 avg60=89.86 avg300=57.41 total=352760853\nfull avg10=0.00 avg60=0.00 total=0\n";
    assert_eq!(stall(real), Stall { some: Some(0.75), full: Some(0.0) });
    assert_eq!(stall("some avg10=100.40 avg60=1"), Stall { some: Some(1.0), full: None });
    assert_eq!(stall("some avg60=5.0\nfull avg10=2.50"), Stall { some: None, full: Some(0.025) });
    assert_eq!(stall("some avg10=5000.0"), Stall::default());
}

#[test]
fn counters_of_block_devices() {
    let real = "  105 20 4000 50 200 30 8000 900 3 700 950 0 0 0 0 0 0\n";
    let stat = block_stat(real).unwrap();
    assert_eq!((stat.reads, stat.read_sectors, stat.read_ms), (105, 4000, 50));
    assert_eq!((stat.writes, stat.write_sectors, stat.write_ms), (200, 8000, 900));
    assert_eq!((stat.in_flight, stat.busy_ms), (3, 700));
    assert!(block_stat("1 2 3 4 5 6 7 8 9 10 11").is_some(), "an old kernel");
    assert!(block_stat("1 2 3 4 5 6 7 8 9 10").is_none(), "cut off");
    assert!(block_stat("1 2 3 4 5 6 7 8 -9 10 11").is_none());
}

#[test]
fn paths_of_cgroups() {
    let both = "9:name=systemd:/\n4:memory:/a/b\n3:cpu,cpuacct:/c\n0::/d/e.service\n";
    assert_eq!(cgroup_path(both, None), Some("d/e.service".into()));
    assert_eq!(cgroup_path(both, Some("memory")), Some("a/b".into()));
    assert_eq!(cgroup_path(both, Some("cpuacct")), Some("c".into()));
    assert_eq!(cgroup_path(both, Some("pids")), None);
    assert_eq!(cgroup_path("0::/../../etc\n", None), Some("etc".into()));
    assert_eq!(cgroup_path("0::/a:b\n", None), Some("a:b".into()));
    assert_eq!(cgroup_path("4:memory:/a\n", None), None);
}

/// What any reader made of a text is a number that makes sense.
fn makes_sense(read: &str) {
    let finite = |n: Option<f64>| n.is_none_or(|n| n.is_finite() && n >= 0.0);
    assert!(finite(cpu_max(read)) && finite(link_speed(read)), "{read:?}");
    let s = stall(read);
    assert!([s.some, s.full].into_iter().flatten().all(|n| (0.0..=1.0).contains(&n)), "{read:?}");
    assert!(memory_limit(read).is_none_or(|n| n > 0 && n < 1 << 56), "{read:?}");
    assert!(status_bytes(read, "RssAnon").is_none_or(|n| n < 1 << 56), "{read:?}");
    let path = cgroup_path(read, None).or(cgroup_path(read, Some("memory")));
    assert!(path.is_none_or(|p| p.components().all(|c| matches!(c, std::path::Component::Normal(_)))));
    let _ = (block_stat(read), number(read), field(read, "usage_usec"));
}

proptest! {
    #[test]
    fn no_text_is_stumbled_over(text in "\\PC{0,80}", digits in "[-0-9a-z =.:/\n]{0,120}") {
        makes_sense(&text);
        makes_sense(&digits);
    }
}

/// A tree in place of the kernel's.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Tree {
        Tree(tempfile::tempdir().unwrap())
    }

    fn put(&self, path: &str, bytes: impl AsRef<[u8]>) -> &Tree {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self
    }

    fn roots(&self) -> Roots {
        let root = |name: &str| self.0.path().join(name);
        Roots { proc: root("proc"), sys: root("sys"), cgroup: root("cgroup") }
    }

    fn sensors(&self, machine: Scripted, times: &[u64]) -> SystemSensors {
        let mut times: VecDeque<u64> = times.iter().copied().collect();
        let time = move || {
            let ms = times.pop_front().unwrap_or_default();
            Times { monotonic: Duration::from_millis(ms), boot: Duration::from_millis(ms + 500) }
        };
        let device = |dir: &Path| (dir != Path::new("/missing")).then_some((8, 1));
        let dirs = ["/tier", "/missing"];
        SystemSensors::assemble(dirs, self.roots(), Box::new(time), Box::new(device), Box::new(machine))
    }
}

/// Answers in their order, and the last for ever.
#[derive(Clone, Default)]
struct Scripted(VecDeque<MachineReading>);

impl Machine for Scripted {
    fn read(&mut self) -> MachineReading {
        if self.0.len() > 1 {
            self.0.pop_front().unwrap()
        } else {
            self.0.front().copied().unwrap_or_default()
        }
    }
}

fn machine(cpu_ms: u64) -> MachineReading {
    MachineReading {
        total: 8 << 30,
        available: 2 << 30,
        resident: 300 << 20,
        allocated: Some(200 << 20),
        cpu_percent: 42.0,
        cpus: 4,
        cpu_time: Some(Duration::from_millis(cpu_ms)),
    }
}

fn script(of: impl IntoIterator<Item = MachineReading>) -> Scripted {
    Scripted(of.into_iter().collect())
}

const BLOCK: &str = "sys/dev/block/8:1/stat";
const ETH: &str = "sys/class/net/eth0";

#[test]
fn a_machine_with_everything() {
    let t = Tree::new();
    t.put("proc/self/cgroup", "0::/app/one\n")
        .put("proc/self/status", "RssAnon:\t 1024 kB\n")
        .put("cgroup/app/memory.max", "1073741824\n")
        .put("cgroup/app/memory.current", "900\n")
        .put("cgroup/app/memory.stat", "anon 268435456\nfile 700\nshmem 1024\n")
        .put("cgroup/app/one/memory.max", "max\n")
        .put("cgroup/app/one/cpu.max", "200000 100000\n")
        .put("cgroup/app/one/cpu.stat", "usage_usec 1000000\n")
        .put("cgroup/app/one/io.pressure", "some avg10=25.00 avg60=0\nfull avg10=5.00 avg60=0\n")
        .put("proc/pressure/cpu", "some avg10=10.00\n")
        .put(BLOCK, "100 0 2000 500 100 0 4000 1000 2 1000 0")
        .put(&format!("{ETH}/statistics/rx_bytes"), "1000")
        .put(&format!("{ETH}/statistics/tx_bytes"), "5000")
        .put(&format!("{ETH}/speed"), "1000\n")
        .put("sys/class/net/lo/statistics/rx_bytes", "7")
        .put("sys/class/net/veth1/speed", "-1\n");
    let mut sensors = t.sensors(script([machine(1000), machine(3000)]), &[10_000, 12_000]);
    let first = sensors.sample();
    assert_eq!((first.elapsed, first.cpu.percent(), first.process.cpu_percent), (None, None, None));
    assert_eq!((first.devices[0].reads, first.devices[0].in_flight), (None, Some(2)));
    t.put("cgroup/app/one/cpu.stat", "usage_usec 3000000\n")
        .put(BLOCK, "300 0 6000 1500 100 0 4000 1000 0 2000 0")
        .put(&format!("{ETH}/statistics/rx_bytes"), "501000")
        .put(&format!("{ETH}/statistics/tx_bytes"), "5000");
    let r = sensors.sample();
    assert_eq!((r.elapsed, r.boot), (Some(Duration::from_secs(2)), Duration::from_millis(12_500)));
    assert_eq!((r.process.anonymous, r.process.resident), (Some(1 << 20), Some(300 << 20)));
    assert_eq!(r.process.allocated, Some(200 << 20));
    // Two processors may be used: 2 s of 2 × 2 s, by this process and by the group.
    assert_eq!((r.process.cpu_percent, r.cpu.quota_percent), (Some(50.0), Some(50.0)));
    assert_eq!((r.cpu.machine_percent, r.cpu.percent()), (Some(42.0), Some(50.0)));
    // Of the group's gibibyte a quarter is held, by whomever in it; the page cache is not.
    assert_eq!((r.memory.total, r.memory.available), (Some(8 << 30), Some((768 << 20) - 1024)));
    assert_eq!((r.memory.limit, r.memory.cgroup_used), (Some(1 << 30), Some(900)), "the parent's binds");
    assert_eq!(r.pressure.io, Stall { some: Some(0.25), full: Some(0.05) });
    assert_eq!(r.pressure.cpu.some, Some(0.1), "the machine's, where the group has none");
    assert_eq!(r.pressure.memory, Stall::default());
    assert_eq!(r.io_pressure(), Some(0.25));
    let d = &r.devices[0];
    assert_eq!((d.reads, d.read_bytes, d.read_latency), (Some(100.0), Some(1_024_000.0), Some(0.005)));
    assert_eq!((d.writes, d.write_bytes, d.write_latency), (Some(0.0), Some(0.0), None));
    assert_eq!(d.busy, Some(0.5));
    assert_eq!((r.devices[1].device, r.devices[1].reads), (None, None));
    assert_eq!(r.network.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["eth0", "veth1"]);
    assert_eq!((r.network[0].received, r.network[0].sent), (Some(250_000.0), Some(0.0)));
    assert_eq!(
        (r.network_percent(), r.network[0].speed, r.network[1].speed),
        (Some(0.2), Some(1.25e8), None)
    );
}

/// Of what reports may take a share.
#[test]
#[cfg(feature = "redis")]
fn the_fastest_link_is_one_that_says_how_fast_it_is() {
    let t = Tree::new();
    assert_eq!(fastest_link(&t.roots()), None, "no links");
    t.put("sys/class/net/veth1/speed", "-1\n");
    assert_eq!(fastest_link(&t.roots()), None, "none says");
    for (name, speed) in [("eth0", "100\n"), ("eth1", "1000\n"), ("eth2", "10\n")] {
        t.put(&format!("sys/class/net/{name}/speed"), speed);
    }
    assert_eq!(fastest_link(&t.roots()), Some(1.25e8));
}

#[test]
fn old_hierarchies_and_containers() {
    let t = Tree::new();
    t.put("proc/self/cgroup", "4:memory:/host/name\n2:cpu,cpuacct:/host/name\n0::/\n")
        // Inside a container the root of the mount is the container's own.
        .put("cgroup/memory/memory.limit_in_bytes", "268435456\n")
        .put("cgroup/memory/memory.usage_in_bytes", "1000\n")
        .put("cgroup/memory/memory.stat", "rss 1\ntotal_rss 134217728\n")
        .put("cgroup/cpu/cpu.cfs_quota_us", "50000\n")
        .put("cgroup/cpu/cpu.cfs_period_us", "100000\n")
        .put("cgroup/cpu/cpuacct.usage", "1000000000\n")
        .put("cgroup/unified/memory.max", "536870912\n");
    let mut sensors = t.sensors(script([machine(0)]), &[1000, 2000]);
    let r = sensors.sample();
    assert_eq!((r.memory.limit, r.memory.cgroup_used), (Some(256 << 20), Some(1000)));
    assert_eq!(r.memory.available, Some(128 << 20));
    t.put("cgroup/cpu/cpuacct.usage", "1250000000\n");
    assert_eq!(sensors.sample().cpu.quota_percent, Some(50.0));
    t.put("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
        .put("cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    let r = sensors.sample();
    assert_eq!((r.memory.limit, r.cpu.quota_percent), (Some(512 << 20), None));
    t.put("cgroup/unified/memory.max", format!("{}", 64u64 << 30));
    assert_eq!(sensors.sample().memory.limit, Some(8 << 30), "above the machine's it does not bind");
}

/// The time used stands in another hierarchy than the quota: in the group of the same path, and not in one that merely has
/// the same name.
#[test]
fn time_used_is_that_of_the_group_that_has_the_quota() {
    let t = Tree::new();
    t.put("proc/self/cgroup", "2:cpu:/a/web\n3:cpuacct:/b/web\n")
        .put("cgroup/cpu/a/web/cpu.cfs_quota_us", "50000\n")
        .put("cgroup/cpu/a/web/cpu.cfs_period_us", "100000\n")
        .put("cgroup/cpuacct/b/web/cpuacct.usage", "0\n");
    let mut sensors = t.sensors(script([machine(0)]), &[1000, 2000, 3000, 4000]);
    sensors.sample();
    t.put("cgroup/cpuacct/b/web/cpuacct.usage", "500000000\n");
    assert_eq!(sensors.sample().cpu.quota_percent, None, "of other processes");
    // In a container each mount is the group itself: nothing of the paths is below them.
    let t = Tree::new();
    t.put("proc/self/cgroup", "2:cpu:/host/web\n3:cpuacct:/host/web\n")
        .put("cgroup/cpu/cpu.cfs_quota_us", "50000\n")
        .put("cgroup/cpu/cpu.cfs_period_us", "100000\n")
        .put("cgroup/cpuacct/cpuacct.usage", "0\n");
    let mut sensors = t.sensors(script([machine(0)]), &[1000, 2000]);
    sensors.sample();
    t.put("cgroup/cpuacct/cpuacct.usage", "250000000\n");
    assert_eq!(sensors.sample().cpu.quota_percent, Some(50.0));
}

#[test]
fn a_machine_with_nothing() {
    let r = Tree::new().sensors(Scripted::default(), &[1, 2]).sample();
    assert_eq!((r.memory, r.process, r.cpu), Default::default());
    assert_eq!((r.io_pressure(), r.network_percent()), (None, None));
    assert_eq!(r.devices.len(), 2);
}

#[test]
fn a_machine_that_says_absurd_things() {
    let t = Tree::new();
    let files = [
        "proc/self/cgroup",
        "proc/self/status",
        "cgroup/memory.max",
        "cgroup/cpu.max",
        "cgroup/cpu.stat",
        "cgroup/io.pressure",
        "proc/pressure/io",
        BLOCK,
        "sys/class/net/eth0/speed",
        "sys/class/net/eth0/statistics/rx_bytes",
        "sys/class/net/eth0/statistics/tx_bytes",
    ];
    let mut absurd: Vec<Vec<u8>> = ABSURD.iter().map(|t| t.as_bytes().to_vec()).collect();
    absurd.push(vec![0xff; 100]);
    absurd.push(vec![b'9'; 1 << 20]);
    for bytes in &absurd {
        makes_sense(&String::from_utf8_lossy(&bytes[..bytes.len().min(200)]));
        files.iter().for_each(|f| _ = t.put(f, bytes));
        t.put("proc/self/cgroup", "0::/\n");
        let odd = MachineReading {
            cpu_percent: f64::NAN,
            available: 9 << 40,
            total: 1,
            ..MachineReading::default()
        };
        let mut sensors = t.sensors(script([odd]), &[5, 6]);
        for _ in 0..2 {
            let r = sensors.sample();
            assert_eq!((r.cpu.percent(), r.memory.available), (None, None), "{bytes:?}");
            assert!(r.io_pressure().is_none() && r.network_percent().is_none(), "{bytes:?}");
            assert!(r.memory.limit == Some(1) && r.process.anonymous.is_none(), "{bytes:?}");
        }
    }
}

#[test]
fn a_clock_that_jumps_and_counters_that_go_back_give_no_rates() {
    let t = Tree::new();
    t.put(BLOCK, "100 0 2000 500 100 0 4000 1000 2 1000 0")
        .put(&format!("{ETH}/statistics/rx_bytes"), "1000")
        .put(&format!("{ETH}/statistics/tx_bytes"), "1000");
    let mut sensors = t.sensors(script([machine(1000)]), &[10_000, 10_000, 5_000, 6_000, 7_000]);
    sensors.sample();
    for at in ["stands still", "goes back"] {
        let r = sensors.sample();
        assert_eq!((r.elapsed, r.devices[0].reads, r.process.cpu_percent), (None, None, None), "{at}");
        assert_eq!((r.network[0].received, r.cpu.percent()), (None, None), "{at}");
    }
    assert_eq!(sensors.sample().devices[0].reads, Some(0.0), "it goes on from where it is");
    t.put(BLOCK, "50 0 2000 500 200 0 4000 1000 2 1000 0").put(&format!("{ETH}/statistics/rx_bytes"), "10");
    let r = sensors.sample();
    assert_eq!((r.devices[0].reads, r.devices[0].writes), (None, Some(100.0)), "each by itself");
    assert_eq!((r.network[0].received, r.network[0].sent), (None, Some(0.0)));
}

#[test]
fn the_time_is_told_without_a_look() {
    let t = Tree::new();
    let mut sensors = t.sensors(script([machine(1000), machine(3000)]), &[10_000, 11_900, 12_000]);
    sensors.sample();
    assert_eq!(sensors.now(), Some(Duration::from_millis(11_900)));
    let r = sensors.sample();
    assert_eq!(
        (r.elapsed, r.process.cpu_percent),
        (Some(Duration::from_secs(2)), Some(25.0)),
        "of all the time"
    );
}

#[test]
fn this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let mut sensors = SystemSensors::new([PathBuf::from(dir.path())]);
    sensors.sample();
    let files = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = files();
    std::thread::sleep(Duration::from_millis(250));
    let began = Instant::now();
    let r = sensors.sample();
    let took = began.elapsed();
    println!("a sample took {took:?}: {r:#?}");
    assert!(r.elapsed.is_some_and(|e| e >= Duration::from_millis(250)));
    assert!(r.process.anonymous.unwrap() <= r.process.resident.unwrap().next_multiple_of(8 << 20));
    assert!(r.memory.limit.unwrap() <= r.memory.total.unwrap());
    assert!(r.cpu.machine_percent.is_some_and(|p| (0.0..=100.0).contains(&p)));
    assert!(r.process.cpu_percent.is_some());
    // Other tests of the process open files too; the sensors would add some at every sample.
    (0..50).for_each(|_| _ = sensors.sample());
    assert!(files() < before + 40, "files stay open");
}
