//! What several of the integration tests need: values that can be checked by themselves, a scratch directory, and stores
//! with tiers too small for what is put.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use bytes::Bytes;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use tempfile::TempDir;
use thermocline::{Builder, Cache, Persistence};
pub use thermocline_storage::sim::Dice;

const MIB: u64 = 1 << 20;

/// Bytes of the head of a value: two tags, its length and a checksum of the rest.
const HEAD: usize = 32;

/// A value that says whose it is (`tag`), which write of it (`version`), and whether all of it is there. Every third
/// compresses well.
pub fn value(tag: u64, version: u64, len: usize) -> Bytes {
    let len = len.max(HEAD);
    let mut out = Vec::with_capacity(len + 8);
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&(len as u64).to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    let mut dice = Dice::new(tag ^ version.rotate_left(32));
    let text = version.is_multiple_of(3);
    while out.len() < len {
        let n = dice.roll();
        if text {
            out.extend_from_slice(format!("line {:03} of a text; ", n % 1000).as_bytes());
        } else {
            out.extend_from_slice(&n.to_le_bytes());
        }
    }
    out.truncate(len);
    let sum = sum(&out[HEAD..]);
    out[24..HEAD].copy_from_slice(&sum.to_le_bytes());
    Bytes::from(out)
}

fn sum(bytes: &[u8]) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
    sum
}

/// Whose value it is and which write of it; `None` if a byte is wrong.
pub fn parse(bytes: &[u8]) -> Option<(u64, u64)> {
    let word = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk::<8>()?));
    let whole = word(16)? == bytes.len() as u64 && word(24)? == sum(bytes.get(HEAD..)?);
    whole.then_some((word(0)?, word(8)?))
}

/// A directory for a store: in memory where that has room, because syncs are not what is tested here.
pub fn scratch() -> TempDir {
    let shm = Path::new("/dev/shm");
    let roomy = rustix::fs::statvfs(shm).is_ok_and(|s| s.f_bavail * s.f_frsize > 2 << 30);
    let made = if roomy { tempfile::tempdir_in(shm).ok() } else { None };
    made.unwrap_or_else(|| tempfile::tempdir().expect("a scratch directory"))
}

/// The disk tiers of a store, and how many MiB each may occupy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiers {
    /// 0: there is none.
    pub ssd: u64,
    pub hdd: u64,
    /// `None`: there is none; 0: it has no limit.
    pub cold: Option<u64>,
}

impl Tiers {
    /// Builds them in `s`, `h` and `c`, with containers as small as the configuration allows, and the least memory.
    pub fn builder(&self, dir: &Path, persistence: Persistence) -> Builder {
        let mut b = Cache::builder().memory(MIB).persistence(persistence);
        if self.ssd > 0 {
            b = b.ssd(dir.join("s"), self.ssd * MIB);
        }
        if self.hdd > 0 {
            b = b.hdd(dir.join("h"), self.hdd * MIB);
        }
        if let Some(limit) = self.cold {
            b = b.cold(dir.join("c"));
            if limit > 0 {
                b = b.cold_limit(limit * MIB);
            }
        }
        b.config_mut().resources.io.write_buffer_size = MIB;
        let s = &mut b.config_mut().storage;
        s.segment_size = Some(MIB);
        s.generation_size = Some(MIB);
        s.pack_size = Some(MIB);
        s.migration_bytes_per_second = 1 << 30;
        b
    }

    /// Whether there is room for everything, so that nothing may go by itself.
    pub fn keep_all(&self) -> bool {
        self.cold == Some(0)
    }
}

/// Runs `check` with an empty directory as somebody whom permissions bind: as root, in a child that is somebody else,
/// which runs the same test.
pub fn as_nobody(test: &str, check: impl FnOnce(&Path)) {
    const CHILD: &str = "THERMOCLINE_TEST_CHILD";
    const DONE: &str = "checked as nobody";
    if let Some(dir) = std::env::var_os(CHILD) {
        assert!(!rustix::process::geteuid().is_root());
        check(Path::new(&dir));
        println!("{DONE}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    if !rustix::process::geteuid().is_root() {
        return check(dir.path());
    }
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let exe = dir.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o755)).unwrap();
    let inside = dir.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    std::os::unix::fs::chown(&inside, Some(65_534), Some(65_534)).unwrap();
    let mut command = std::process::Command::new(&exe);
    command.args(["--exact", test, "--nocapture"]).env(CHILD, &inside).current_dir(dir.path());
    let out = command.uid(65_534).gid(65_534).output().unwrap();
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{told}{}", String::from_utf8_lossy(&out.stderr));
    assert!(told.contains(DONE), "the child did not run the check: {told}");
}
