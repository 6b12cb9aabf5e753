//! What a life is to be like: drawn from its seed.

use std::path::Path;
use thermocline::{Builder, Cache, MemoryPolicy, Persistence};
use thermocline_storage::sim::{Dice, EINTR, EIO, EMFILE, ENOSPC, Fault, Op, Trouble};

pub const KIB: u64 = 1 << 10;
/// The catalog's directory, where it has one.
const CATALOG: &str = "/k";

/// Which tiers, how they are set, and what goes wrong.
#[derive(Debug, Clone)]
pub struct Plan {
    pub ssd: bool,
    pub hdd: bool,
    pub cold: bool,
    pub cold_limited: bool,
    pub two_dirs: bool,
    pub persistence: Persistence,
    pub policy: MemoryPolicy,
    /// Calls fail now and then.
    pub faults: bool,
    pub keys: u64,
    pub factor: u64,
    /// The catalog has a directory of its own.
    pub catalog_apart: bool,
    /// Of the disks that a crash leaves, some have a bit turned somewhere.
    pub rot: bool,
    /// Calls are interrupted now and then.
    pub interrupted: bool,
    /// Nobody flushes: what was put is durable by itself, or by a close.
    pub unflushed: bool,
}

impl Plan {
    pub fn draw(seed: u64, dice: &mut Dice) -> Plan {
        // Other dice: what was drawn before these were thought of stays as it was, and lives that went wrong with it.
        let mut more = Dice::new(!seed);
        let (ssd, hdd, cold) = loop {
            let bits = dice.below(8);
            if bits != 0 {
                break (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
            }
        };
        let persistence = match dice.below(3) {
            0 => Persistence::Always,
            1 => Persistence::EverySecond,
            _ => Persistence::OnEviction,
        };
        Plan {
            ssd,
            hdd,
            cold,
            cold_limited: dice.one_in(2),
            two_dirs: dice.one_in(4),
            persistence,
            policy: if dice.one_in(4) { MemoryPolicy::Lru } else { MemoryPolicy::Adaptive },
            faults: dice.one_in(2),
            keys: 4 + dice.below(40),
            factor: 1 + dice.below(4),
            catalog_apart: more.one_in(5),
            rot: more.one_in(4),
            interrupted: more.one_in(4),
            unflushed: more.one_in(5),
        }
    }

    /// Every directory that there has to be.
    pub fn all_dirs(&self) -> Vec<&'static str> {
        self.dirs().into_iter().chain(self.catalog_apart.then_some(CATALOG)).collect()
    }

    /// Those of the tiers.
    fn dirs(&self) -> Vec<&'static str> {
        let mut dirs = Vec::new();
        for (there, of) in [(self.ssd, ["/s", "/s2"]), (self.hdd, ["/h", "/h2"]), (self.cold, ["/c", "/c2"])]
        {
            if there {
                dirs.extend(&of[..if self.two_dirs { 2 } else { 1 }]);
            }
        }
        dirs
    }

    pub fn builder(&self) -> Builder {
        let mut b =
            Cache::builder().memory(24 * KIB).memory_policy(self.policy).persistence(self.persistence);
        let size = self.factor * 64 * KIB;
        for dir in self.dirs() {
            b = match dir.as_bytes().get(1) {
                Some(b's') => b.ssd(dir, size),
                Some(b'h') => b.hdd(dir, 2 * size),
                _ => b.cold(dir),
            };
        }
        if self.catalog_apart {
            b = b.catalog(CATALOG);
        }
        if self.cold && self.cold_limited {
            b = b.cold_limit(2 * size);
        }
        let s = &mut b.config_mut().storage;
        s.write_buffer = 32 * KIB;
        s.segment_size = Some(size / 8);
        s.generation_size = Some(size / 4);
        s.pack_size = Some(size / 4);
        s.block_size = 4 * KIB;
        s.max_value_size = Some(16 * KIB);
        s.inflight = Some(1 << 20);
        s.write_stall_limit = 0;
        s.checkpoint_journal_size = 16 * KIB;
        s.erase_after = 1;
        b
    }

    /// Something that goes wrong.
    pub fn fault(&self, dice: &mut Dice) -> Fault {
        const ANY: &[Op] = &[
            Op::Open,
            Op::OpenToWrite,
            Op::Create,
            Op::MakeDir,
            Op::List,
            Op::Rename,
            Op::RemoveFile,
            Op::SyncDir,
            Op::Read,
            Op::Write,
            Op::Allocate,
            Op::Sync,
        ];
        const WRITING: &[Op] = &[Op::Create, Op::Write, Op::Allocate];
        const DATA: &[Op] = &[Op::Read, Op::Write];
        const OPENING: &[Op] = &[Op::Open, Op::OpenToWrite, Op::Create];
        let fault = match dice.below(8) {
            0 => Fault::on_any(ANY).errno(EIO),
            1 => Fault::on_any(WRITING).errno(ENOSPC),
            2 => Fault::on(Op::Sync).trouble(Trouble::Forgotten),
            3 => Fault::on(Op::Sync).errno(EIO),
            4 => Fault::on_any(DATA).trouble(Trouble::Short),
            5 => Fault::on_any(OPENING).errno(EMFILE),
            // Not for ever: whoever is interrupted tries again.
            6 if self.interrupted => {
                return Fault::on_any(DATA).errno(EINTR).after(dice.below(12)).times(1 + dice.below(40));
            }
            6 => Fault::on(Op::Read).errno(EIO),
            _ => {
                let one = *dice.pick(ANY).unwrap_or(&Op::Write);
                Fault::on(one).errno(EIO)
            }
        };
        let fault =
            fault.after(dice.below(12)).times(if dice.one_in(3) { u64::MAX } else { 1 + dice.below(3) });
        match dice.pick(&self.all_dirs()) {
            Some(dir) if dice.one_in(2) => fault.below(Path::new(dir)),
            _ => fault,
        }
    }
}
