//! What a directory stands on: the device, the file system, whether it spins; and what it really occupies.
//!
//! Everything comes from `/proc/self/mountinfo`, `/sys/dev/block` and `statvfs`. What cannot be found out is said to
//! be unknown, not guessed.

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// What a directory stands on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// What is mounted: `/dev/nvme0n1p2`, `tmpfs`.
    pub source: Option<String>,
    /// The file system: `ext4`.
    pub file_system: Option<String>,
    /// Whether it spins, as the kernel has it. Virtual machines and RAID controllers often say what is not so.
    pub spins: Option<bool>,
}

/// One line of `mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    dev: String,
    point: PathBuf,
    file_system: String,
    source: String,
}

impl Device {
    /// What the directory, which exists, stands on.
    pub fn of(dir: &Path) -> Device {
        let Ok(dir) = dir.canonicalize() else { return Device::default() };
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // Of several mounts on one point the last is on top; `max_by_key` gives the last of equals.
        let mounts = text.lines().filter_map(parse_mount).filter(|m| dir.starts_with(&m.point));
        let Some(mount) = mounts.max_by_key(|m| m.point.as_os_str().len()) else { return Device::default() };
        // btrfs, overlays and the like have device numbers of their own, with nothing behind them in /sys.
        let spins = spins(&mount.dev).or_else(|| {
            let real = fs::metadata(&mount.source).ok().filter(|_| mount.source.starts_with("/dev/"))?.rdev();
            spins(&format!("{}:{}", rustix::fs::major(real), rustix::fs::minor(real)))
        });
        Device { source: Some(mount.source), file_system: Some(mount.file_system), spins }
    }

    /// Whether it is RAM, and so no place for a disk tier.
    pub fn is_ram(&self) -> bool {
        matches!(self.file_system.as_deref(), Some("tmpfs" | "ramfs" | "devtmpfs"))
    }

    /// Whether as many blocks are allocated as bytes are written: not where the file system may compress or share them.
    pub fn is_plain(&self) -> bool {
        !matches!(self.file_system.as_deref(), None | Some("btrfs" | "zfs" | "bcachefs" | "f2fs"))
    }

    /// `yes`, `no` or `unknown`.
    pub fn spins_word(&self) -> &'static str {
        match self.spins {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        }
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({ "device": self.source, "file_system": self.file_system, "spins": self.spins })
    }
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`, with spaces, tabs, newlines and
/// backslashes of names as octal escapes.
fn parse_mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(2);
    let (dev, _, point) = (before.next()?, before.next()?, before.next()?);
    let mut after = after.split(' ');
    let (file_system, source) = (after.next()?, after.next()?);
    Some(Mount {
        dev: dev.into(),
        point: unescape(point).into(),
        file_system: file_system.into(),
        source: unescape(source),
    })
}

fn unescape(text: &str) -> String {
    let mut text = text.to_owned();
    for (escaped, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escaped, plain);
    }
    text
}

/// What the kernel says of a device, or of the disk of which it is a partition.
fn spins(dev: &str) -> Option<bool> {
    let at = Path::new("/sys/dev/block").join(dev).canonicalize().ok()?;
    let read = |dir: &Path| fs::read_to_string(dir.join("queue/rotational")).ok();
    match read(&at).or_else(|| read(at.parent()?))?.trim() {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

/// Bytes of the blocks that are allocated to a directory and all below it, as `du` counts them.
pub fn occupied(dir: &Path) -> u64 {
    let entries = WalkDir::new(dir).follow_root_links(true).into_iter().flatten();
    entries
        .filter_map(|e| e.metadata().ok())
        .fold(0, |sum, m| sum.saturating_add(m.blocks().saturating_mul(512)))
}

/// Bytes that an ordinary user may still write to the file system of a directory.
pub fn free(dir: &Path) -> Option<u64> {
    let vfs = rustix::fs::statvfs(dir).ok()?;
    Some(vfs.f_bavail.saturating_mul(vfs.f_frsize))
}

/// Whether the file system of a directory has no room for files at all, as `/proc` and `/sys` have none.
pub fn holds_nothing(dir: &Path) -> bool {
    rustix::fs::statvfs(dir).is_ok_and(|vfs| vfs.f_blocks == 0)
}

/// Bytes of RAM that programs and the page cache can have, as the kernel estimates it.
pub fn available_ram() -> Option<u64> {
    meminfo(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo() {
        let line = "36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 shared:7 - ext3 /dev/root rw";
        let mount = parse_mount(line).unwrap();
        assert_eq!((mount.dev.as_str(), mount.point.to_str().unwrap()), ("98:0", "/mnt two"));
        assert_eq!((mount.file_system.as_str(), mount.source.as_str()), ("ext3", "/dev/root"));
        assert_eq!(parse_mount("36 35 98:0 /mnt1"), None);
        assert_eq!(parse_mount(""), None);
    }

    #[test]
    fn memory() {
        assert_eq!(meminfo("MemTotal: 1 kB\nMemAvailable:   2048 kB\n", "MemAvailable"), Some(2 << 20));
        assert_eq!(meminfo("MemTotal: 1 kB\n", "MemAvailable"), None);
    }

    #[test]
    fn what_is_here() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Device::of(dir.path()).file_system.is_some());
        assert_eq!(Device::of(&dir.path().join("nothing")), Device::default());
        let empty = occupied(dir.path());
        fs::write(dir.path().join("f"), vec![1; 100_000]).unwrap();
        assert!(occupied(dir.path()) >= empty + 100_000);
        // A hole occupies nothing.
        let sparse = fs::File::create(dir.path().join("g")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        assert!(occupied(dir.path()) < 1 << 20);
    }

    #[test]
    fn ram_is_known_for_what_it_is() {
        for (name, ram) in [("tmpfs", true), ("ramfs", true), ("ext4", false)] {
            let device = Device { file_system: Some(name.into()), ..Device::default() };
            assert_eq!(device.is_ram(), ram);
        }
        for (name, plain) in [(Some("ext4"), true), (Some("btrfs"), false), (None, false)] {
            let device = Device { file_system: name.map(str::to_owned), ..Device::default() };
            assert_eq!(device.is_plain(), plain);
        }
        assert!(!Device::default().is_ram());
    }
}
